"""The Kalman filter: movement as a hidden state with inertia, neurons as noisy observations of it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from scipy.linalg import get_lapack_funcs

from bci_adapt.decoders.base import Decoder
from bci_adapt.decoders.blocks import label_blocks
from bci_adapt.decoders.inputs import Bins
from bci_adapt.decoders.stored import Form
from bci_adapt.decoders.timing import arrival_bins, delay_bins, forgetting
from bci_adapt.errors import InputError
from bci_adapt.learning.normaliser import Normaliser

STATES = ("velocity", "position_velocity")
KINDS = ("velocity", "position")
# A covariance that moved by less than this share of itself has converged: the gain is kept until a bin is missing.
_CONVERGED = 1e-13


class _Layout(NamedTuple):
    """Which column of the state each output is, and the blocks of the state that are filtered on their own."""

    of_output: np.ndarray
    blocks: list[slice]
    kinds: list[str]


class KalmanDecoder(Decoder):
    """Kalman filter on normalised square-root counts (Wu et al. 2006):

        x_t = A x_{t−1} + w,  w ~ N(0, W);    z_{t−lag} = H x_t + h + q,  q ~ N(0, Q).

    With ``state="velocity"`` the state is what the outputs are: velocity outputs are one filter, position outputs –
    where there are any – another that knows nothing of the first; A and W are least squares. With
    ``state="position_velocity"`` both are one state with the physical structure of Gilja et al. 2012: position is the
    integral of velocity, v_t = A_v v_{t−1} + w, p_t = p_{t−1} + κ v_t, and only what labels deviate from that (κ is
    `bin_s` where their units agree) is noise of its own. Where only one kind of output is given, the other is formed
    from it: velocity as backward difference, position as the running sum from the segment's first bin.

    The covariance is followed bin by bin until it has converged and again after a bin without neurons, over which the
    state moves by A alone. A segment starts at the mean of the training labels with their covariance.

    With ``adaptive`` H, h and Q are estimated again, in blocks of `update_every_s`, from sufficient statistics of the
    labelled bins that fade over `memory_s`; they begin with those of the training sessions, which count for at most one
    memory. A and W – how the arm moves – stay.

    Parameters
    ----------
    outputs : ``velocity`` or ``position`` for each column of y; velocity for all when None.
    state : ``velocity`` or ``position_velocity``.
    adaptive : learn from labels; otherwise only the normaliser runs.
    lag_bins : the counts of so many bins ago are explained by the state of now. Motor cortex leads the hand by about
        0.1 s (Paninski et al. 2004; Wu et al. 2006 found 0.14 s best), two bins of 0.05 s.
    penalty : added to the noise variance of every channel (features have unit variance): a silent channel, or more
        channels than labelled bins, must not make Q singular.
    memory_s : e-folding time of the statistics in seconds; ``inf`` forgets nothing.
    update_every_s : length of a block.
    normaliser_s, label_delay_s, bin_s, missing : as in `RLSDecoder`.
    """

    name: ClassVar[str] = "kalman"
    description: ClassVar[str] = "Kalman filter, velocity or position–velocity state; adaptive observation model"
    stored: ClassVar[Mapping[str, Form]] = {
        **dict.fromkeys(("A_", "W_", "start_", "P_", "information_"), Form("states states")),
        **dict.fromkeys(("label_mean_", "x_"), Form("states")),
        "label_scale_": Form("states", least=0.0),
        **dict.fromkeys(("mean_", "running_mean_"), Form("channels")),
        **dict.fromkeys(("variance_", "running_variance_"), Form("channels", least=0.0)),
        "moments_": Form("sums sums"),
        "projection_": Form("projected states"),
        "past_": Form("lags channels", nan=True),
        "carried_": Form("formed", nan=True),
        "waiting_X_": Form("waiting channels", nan=True),
        "waiting_states_": Form("waiting states", nan=True),
        "waiting_arrives_": Form("waiting", "int64"),
    }
    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "": {},
        "adaptive": {
            "state": "position_velocity", "adaptive": True, "memory_s": 20.0, "label_delay_s": 0.2,
            "update_every_s": 0.25,
        },
    }  # fmt: skip

    def __init__(
        self,
        outputs: tuple[str, ...] | None = None,
        state: str = "velocity",
        adaptive: bool = False,
        lag_bins: int = 2,
        penalty: float = 0.05,
        memory_s: float = 250.0,
        normaliser_s: float | None = 300.0,
        label_delay_s: float = 0.5,
        update_every_s: float = 0.5,
        bin_s: float | None = None,
        missing: str = "refuse",
    ):
        self.outputs = outputs
        self.state = state
        self.adaptive = adaptive
        self.lag_bins = lag_bins
        self.penalty = penalty
        self.memory_s = memory_s
        self.normaliser_s = normaliser_s
        self.label_delay_s = label_delay_s
        self.update_every_s = update_every_s
        self.bin_s = bin_s
        self.missing = missing

    def _lengths(self) -> dict[str, int | None]:
        d, m = len(self._layout().kinds), self.n_features_in_
        own = {"states": d, "sums": d + 1 + m, "projected": m + 1, "lags": self.lag_bins, "formed": self._n_formed()}
        return {**super()._lengths(), **own}

    # -- the state -----------------------------------------------------------------------------------------------

    def _layout(self) -> _Layout:
        outputs = tuple(self.outputs or ("velocity",) * self.n_outputs_)
        if len(outputs) != self.n_outputs_ or not set(outputs) <= set(KINDS):
            raise InputError(f"outputs: expected {' or '.join(KINDS)} for each of {self.n_outputs_}, got {outputs}")
        if self.state not in STATES:
            raise InputError(f"state must be one of {', '.join(STATES)}, got {self.state!r}")
        n = {kind: outputs.count(kind) for kind in KINDS}
        if self.state == "position_velocity":
            k = max(n.values())
            if not all(count in (0, k) for count in n.values()):
                raise InputError(f"outputs: expected a velocity for each position, got {outputs}")
            first, blocks, kinds = (
                {"position": 0, "velocity": k},
                [slice(0, 2 * k)],
                ["position"] * k + ["velocity"] * k,
            )
        else:
            first = {"velocity": 0, "position": n["velocity"]}
            blocks = [slice(first[kind], first[kind] + n[kind]) for kind in KINDS if n[kind]]
            kinds = ["velocity"] * n["velocity"] + ["position"] * n["position"]
        where = [first[kind] + outputs[:o].count(kind) for o, kind in enumerate(outputs)]
        return _Layout(np.array(where), blocks, kinds)

    def _states(self, labels: np.ndarray, reset: np.ndarray, carried: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """States (n_bins, d) of labels (n_bins, n_outputs; NaN = none), and what the next call needs to go on.

        `carried` (k,) is the last position label (NaN: none in this segment), or the sum of velocities so far.
        """
        layout = self._layout()
        states = np.full((len(labels), len(layout.kinds)), np.nan)
        states[:, layout.of_output] = labels
        formed = np.setdiff1d(np.arange(len(layout.kinds)), layout.of_output)
        if not len(formed) or not len(labels):
            return states, carried
        k = len(formed)
        segment = np.cumsum(reset)
        if formed[0] == 0:  # position from velocity; a missing label moves nothing, and its bin is not used anyway
            velocity = states[:, k:]
            steps = np.nan_to_num(velocity) * self.bin_s_
            total = np.cumsum(steps, axis=0) + np.nan_to_num(carried)
            before = np.vstack([np.zeros(k), (total - steps)[np.flatnonzero(reset)]])
            position = np.where((segment > 0)[:, None], total - before[segment], total)
            states[:, :k] = np.where(np.isfinite(velocity), position, np.nan)
            return states, position[-1]
        position = states[:, :k]
        before = np.vstack([carried, position[:-1]])
        before[np.asarray(reset, bool)] = np.nan
        states[:, k:] = (position - before) / self.bin_s_
        return states, position[-1]

    # -- training ------------------------------------------------------------------------------------------------

    def _fit(self, sessions: Sequence[Bins]) -> None:
        layout, nothing = self._layout(), np.full(self._n_formed(), np.nan)
        days = []
        for bins in sessions:
            labels = np.where((bins.weight > 0).all(axis=1, keepdims=True), bins.Y, np.nan)
            days.append((self._states(labels, bins.reset, nothing)[0], np.cumsum(bins.reset)))
        states = np.concatenate([s for s, _ in days])
        states = states[np.isfinite(states).all(axis=1)]
        if len(states) < 2 or not (states.std(axis=0) > 0).all():
            raise InputError("y: expected labels that vary in every output, got too few or constant ones")
        self.label_mean_, self.label_scale_ = states.mean(axis=0), states.std(axis=0)
        if self.state == "position_velocity":
            # Position is the integral of velocity as it is, its mean included.
            self.label_mean_[len(layout.kinds) // 2 :] = 0.0
        scaled = [((s - self.label_mean_) / self.label_scale_, stretch) for s, stretch in days]
        self._fit_movement(scaled, layout)
        d = len(layout.kinds)
        self.moments_ = np.zeros((d + 1 + self.n_features_in_, d + 1 + self.n_features_in_))
        past = np.full((self.lag_bins, self.n_features_in_), np.nan)
        for bins, (s, _) in zip(sessions, scaled, strict=True):
            statistics = Normaliser.fit(bins.X, bins.observed)
            z, _ = self._lagged(statistics.apply(bins.X, bins.observed)[0], bins, past)
            rows = self._rows(z, s)
            self.moments_ += rows.T @ rows
        if self.moments_[d, d] < d + 2:
            raise InputError(f"fit: expected more than {d + 1} bins with labels and neurons, got too few")
        self.mean_, self.variance_ = statistics.mean, statistics.variance  # type: ignore[possibly-undefined]
        self.running_mean_, self.running_variance_ = self.mean_, self.variance_
        self._observe()
        self.begin()

    def _n_formed(self) -> int:
        layout = self._layout()
        return len(layout.kinds) - len(layout.of_output)

    def _fit_movement(self, sessions: list[tuple[np.ndarray, np.ndarray]], layout: _Layout) -> None:
        """A, W and the covariance at a segment's start, of scaled states (n_bins, d) with the segment of each bin."""
        before, after = [], []
        for s, stretch in sessions:
            follows = np.isfinite(s[:-1]).all(axis=1) & np.isfinite(s[1:]).all(axis=1) & (stretch[:-1] == stretch[1:])
            before.append(s[:-1][follows])
            after.append(s[1:][follows])
        x, y = np.concatenate(before), np.concatenate(after)
        d = x.shape[1]
        self.A_, self.W_, self.start_ = (np.zeros((d, d)) for _ in range(3))
        for block in layout.blocks:
            # Of a position–velocity state the second half moves, and moves the first.
            first = block.start if self.state == "velocity" else d // 2
            free = slice(first, block.stop)
            A = np.linalg.lstsq(x[:, free], y[:, free], rcond=None)[0].T
            rest = y[:, free] - x[:, free] @ A.T
            noise = rest.T @ rest / len(rest)
            self.A_[free, free], self.W_[free, free] = A, noise
            if self.state == "position_velocity":
                moved, velocity = (y - x)[:, :first], y[:, first:]
                kappa = np.sum(moved * velocity, axis=0) / np.sum(velocity**2, axis=0)
                own = np.mean((moved - kappa * velocity) ** 2, axis=0)
                self.A_[:first, :first] = np.eye(first)
                self.A_[:first, first:] = kappa[:, None] * A
                self.W_[:first, first:] = kappa[:, None] * noise
                self.W_[first:, :first] = self.W_[:first, first:].T
                self.W_[:first, :first] = kappa[:, None] * noise * kappa + np.diag(own)
            spread = np.concatenate([s[np.isfinite(s).all(axis=1), block] for s, _ in sessions])
            self.start_[block, block] = spread.T @ spread / len(spread)

    def _rows(self, z: np.ndarray, states: np.ndarray) -> np.ndarray:
        """[state, 1, counts] of every usable bin: their second moments are all that the observation model needs."""
        usable = np.isfinite(states).all(axis=1) & np.isfinite(z).all(axis=1)
        return np.hstack([states[usable], np.ones((int(usable.sum()), 1)), z[usable]])

    def _observe(self) -> None:
        """Observation model from the moments: ``information_`` HᵀQ⁻¹H (d, d) and ``projection_`` (n_channels + 1, d),
        which maps [z, 1] to HᵀQ⁻¹(z − h). Filters of their own have each its own regression.
        """
        layout = self._layout()
        d, m = len(layout.kinds), self.n_features_in_
        n = self.moments_[d, d]
        self.information_, self.projection_ = np.zeros((d, d)), np.zeros((m + 1, d))
        zz = self.moments_[d + 1 :, d + 1 :]
        for block in layout.blocks:
            known = np.append(np.arange(block.start, block.stop), d)
            gram = self.moments_[np.ix_(known, known)].copy()
            cross = self.moments_[known, d + 1 :]
            # States have unit variance: this only keeps a stretch without movement from dividing by zero.
            gram[np.diag_indices(len(known) - 1)] += 1e-9 * n
            model = np.linalg.solve(gram, cross)
            Q = (zz - cross.T @ model - model.T @ cross + model.T @ gram @ model) / n
            Q[np.diag_indices(m)] += self.penalty
            H, h = model[:-1].T, model[-1]
            weights = np.linalg.solve(Q, H)
            information = H.T @ weights
            self.information_[block, block] = (information + information.T) / 2
            self.projection_[:m, block] = weights
            self.projection_[m, block] = -h @ weights

    # -- the session ---------------------------------------------------------------------------------------------

    def begin(self) -> None:
        self.require_fitted()
        d = len(self._layout().kinds)
        if self.A_.shape != (d, d):
            raise InputError(
                f"state, outputs: this decoder was fitted with {len(self.A_)} states, not {d}; fit it again"
            )
        self.x_, self.P_ = np.zeros(d), self.start_
        self.past_ = np.full((self.lag_bins, self.n_features_in_), np.nan)
        self.carried_ = np.full(self._n_formed(), np.nan)
        self.waiting_X_ = np.zeros((0, self.n_features_in_))
        self.waiting_states_, self.waiting_arrives_ = np.zeros((0, d)), np.zeros(0, np.int64)

    def _lagged(self, x: np.ndarray, bins: Bins, past: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Normalised counts of `lag_bins` ago (n_bins, n_channels), NaN where there are none, and those that follow."""
        joined = np.vstack([past, np.where(bins.observed[:, None], x, np.nan)])
        z = joined[: len(x)].copy()
        segment = np.cumsum(bins.reset)
        earlier = np.concatenate([np.zeros(self.lag_bins, int), segment])[: len(x)]
        z[earlier != segment] = np.nan
        after = joined[len(x) :].copy()
        later = np.concatenate([np.zeros(self.lag_bins, int), segment])[len(x) :]
        after[later != (segment[-1] if len(segment) else 0)] = np.nan
        return z, after

    def _observations(self, bins: Bins, past: np.ndarray) -> tuple[np.ndarray, np.ndarray, Normaliser]:
        constant = np.inf if self.normaliser_s is None else self.normaliser_s / self.bin_s_
        running = Normaliser(self.running_mean_, self.running_variance_, constant)
        x, running = running.apply(bins.X, bins.observed)
        return *self._lagged(x, bins, past), running

    def _filter(
        self, z: np.ndarray, reset: np.ndarray, x: np.ndarray, P: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """States (n_bins, d) given the counts so far, and the last one's mean and covariance, in information form:
        P = (P⁻⁻¹ + HᵀQ⁻¹H)⁻¹, x = x⁻ + P (HᵀQ⁻¹(z − h) − HᵀQ⁻¹H x⁻).
        """
        seen = np.asarray(np.isfinite(z).all(axis=1))
        pushes = np.where(seen[:, None], z, 0.0) @ self.projection_[:-1] + self.projection_[-1]
        A, W, information, unit = self.A_, self.W_, self.information_, np.eye(len(x))
        states, step = np.empty((len(z), len(x))), None
        (solve,) = get_lapack_funcs(("gesv",), dtype=np.float64)
        for t, (begins, observed) in enumerate(zip(reset.tolist(), seen.tolist(), strict=True)):
            if begins:
                x, P, step = np.zeros(len(x)), self.start_, None
            if not observed:
                x, P, step = A @ x, A @ P @ A.T + W, None
            else:
                if step is None:
                    before, prior = P, A @ P @ A.T + W
                    # (P⁻⁻¹ + Λ)⁻¹ without inverting a prior that may be singular; LAPACK itself, for speed.
                    P = solve(unit + prior @ information, prior)[2]
                    P = (P + P.T) / 2
                    now = A - P @ (information @ A)
                    x = now @ x + P @ pushes[t]
                    if t % 16 == 0 and np.abs(P - before).max() <= _CONVERGED * np.abs(P).max():
                        step = now
                else:
                    x = step @ x + P @ pushes[t]
            states[t] = x
        return states, x, P

    def _outputs(self, states: np.ndarray) -> np.ndarray:
        return (states * self.label_scale_ + self.label_mean_)[:, self._layout().of_output]

    def _predict(self, bins: Bins, continuing: bool) -> np.ndarray:
        x, P, past = (self.x_, self.P_, self.past_) if continuing else (
            np.zeros_like(self.x_), self.start_, np.full_like(self.past_, np.nan),
        )  # fmt: skip
        z, _, _ = self._observations(bins, past)
        return self._outputs(self._filter(z, bins.reset, x, P)[0])

    def with_fitted_statistics(self) -> Self:
        other = copy.copy(self)
        other.running_mean_, other.running_variance_ = self.mean_, self.variance_
        return other

    def _partial_fit(self, bins: Bins, arrives: Any) -> np.ndarray:
        n_bins = len(bins.X)
        z, self.past_, running = self._observations(bins, self.past_)
        if not self.adaptive:
            states, self.x_, self.P_ = self._filter(z, bins.reset, self.x_, self.P_)
        else:
            known = arrival_bins(arrives, n_bins, delay_bins(self.label_delay_s, self.bin_s_))
            labels = np.where((bins.weight > 0).all(axis=1, keepdims=True), bins.Y, np.nan)
            formed, self.carried_ = self._states(labels, bins.reset, self.carried_)
            queue = np.vstack([self.waiting_X_, z])
            targets = np.vstack([self.waiting_states_, (formed - self.label_mean_) / self.label_scale_])
            due = np.concatenate([self.waiting_arrives_, known])
            block = max(1, delay_bins(self.update_every_s, self.bin_s_))
            steps, taken = label_blocks(due, len(self.waiting_arrives_), bins.reset, block)
            states = np.empty((n_bins, len(self.x_)))
            for stretch, blocks in steps:
                states[stretch], self.x_, self.P_ = self._filter(z[stretch], bins.reset[stretch], self.x_, self.P_)
                for rows in blocks:
                    self._update(self._rows(queue[rows], targets[rows]))
            self.waiting_X_, self.waiting_states_ = queue[taken:], targets[taken:]
            self.waiting_arrives_ = due[taken:] - n_bins
        self.running_mean_, self.running_variance_ = running.mean, running.variance
        return self._outputs(states)

    def _update(self, rows: np.ndarray) -> None:
        # Bins without a label forget nothing: evidence fades with newer evidence, not with silence.
        if not len(rows):
            return
        d = len(self.x_)
        gamma = forgetting(self.memory_s, self.bin_s_)
        rows = rows * gamma ** (np.arange(len(rows))[::-1, None] / 2)
        most = min(1.0, self.memory_s / self.bin_s_ / self.moments_[d, d])
        self.moments_ = most * gamma ** len(rows) * self.moments_ + rows.T @ rows
        self._observe()

    @property
    def learns_online(self) -> bool:
        return self.adaptive

    @property
    def diverged_(self) -> bool:
        return not bool(np.isfinite(self.x_).all() and np.isfinite(self.projection_).all())
