"""What the recurrent decoders share: a network trained by BPTT on earlier sessions, statistics, label scaling."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from bci_adapt.decoders.base import Decoder
from bci_adapt.decoders.inputs import Bins
from bci_adapt.decoders.stored import Form, require_arrays
from bci_adapt.errors import InputError
from bci_adapt.ground.one_by_one import OneByOne
from bci_adapt.learning.cells.base import Network, cell
from bci_adapt.learning.credit.base import rule
from bci_adapt.learning.normaliser import Normaliser
from bci_adapt.learning.online import Learner, State, adopt, run, start
from bci_adapt.learning.optimizers import optimizer

if TYPE_CHECKING:
    from bci_adapt.learning.bptt import Pretraining

# A decoder's online state is stored under these prefixes.
_STATE = "state_"
BLOCK = 20_000
"""Bins that are normalised and predicted at once, of any number: they are held several times over in between."""
_RUNNING = {
    "running_mean": Form("channels"),
    "running_variance": Form("channels", least=0.0),
    "fresh_session": Form(kind="bool"),
}


class PretrainedDecoder(Decoder):
    """Base of the recurrent decoders. Parameters as in its children.

    Square-root counts pass a causal normaliser (`bci_adapt.learning.normaliser`) and enter the network; labels are
    scaled to unit variance by the training sessions. While a session runs, ``state_`` and ``running_`` say where it
    stands.

    With several members, networks that differ in their seed are trained apart, adapt side by side and predict by their
    mean. W_ and C_ then have a leading axis (n_members, …).
    """

    cell: str
    n_hidden: int
    normaliser_s: float | None
    n_members: int
    n_updates: int
    added_updates: int
    pretrain_rate: float
    added_rate: float
    input_dropout: float
    gain_jitter: float
    offset_jitter: float
    batch: int
    window_bins: int
    recency: float
    seed: int
    pretrained: bool = True
    state_: State
    running_: Normaliser
    stored: ClassVar[Mapping[str, Form]] = {
        "W_": Form("members rows row_width"),
        "C_": Form("members outputs readout_width"),
        "mean_": Form("channels"),
        "variance_": Form("channels", least=0.0),
        "label_mean_": Form("outputs"),
        "label_scale_": Form("outputs", least=np.finfo(float).tiny),
    }

    @property
    def network_(self) -> Network:
        return Network(cell(self.cell), self.n_features_in_, self.n_hidden, self.n_outputs_)

    @property
    def start_weights_(self) -> tuple[np.ndarray, np.ndarray]:
        """W and C that the first session starts from: the pretrained ones, or the seed's random ones."""
        if self.pretrained:
            return self.W_, self.C_
        return _joined([self.network_.initial_weights(seed) for seed in self.member_seeds_])

    @property
    def member_seeds_(self) -> range:
        """The seed of each member's network. Ensembles of different seeds have no network in common."""
        return range(self.seed * self.n_members, (self.seed + 1) * self.n_members)

    def _learner(self) -> Learner:
        """What a session runs with; this one predicts and learns nothing: it needs no credit, the smallest kernel."""
        return Learner(self.network_, rule("readout"), optimizer("rmsprop", learning_rate=0.0))

    def _normaliser(self) -> Normaliser:
        constant = np.inf if self.normaliser_s is None else self.normaliser_s / self.bin_s_
        return Normaliser(self.mean_, self.variance_, constant)

    # -- training ------------------------------------------------------------------------------------------------

    def _fit(self, sessions: Sequence[Bins]) -> None:
        """Pretrain on one or several sessions, each normalised by its own statistics. Stretches that cannot be trained
        on are counted in a warning and in ``metadata_["left_out"]``.
        """
        self._learner()  # a rule or a constant that is none is refused before the training, not after it
        self._train_on(sessions, extends=False)

    def _extend(self, sessions: Sequence[Bins]) -> None:
        """Go on pretraining: `added_updates` gradient steps over all sessions, from the weights of the last training;
        what was learned online is left out. An optimiser of its own decays from `added_rate`; statistics are then those
        of the last session.

        Labels are scaled by all sessions, as `fit` would, and the readout is rewritten in the new scale: by itself that
        changes no prediction.
        """
        self._train_on(sessions, extends=True)

    def _train_on(self, sessions: Sequence[Bins], extends: bool) -> None:
        statistics = [Normaliser.fit(bins.X, bins.observed) for bins in sessions]

        def normalised(day: int) -> np.ndarray:
            bins = sessions[day]
            return statistics[day].apply(bins.X, bins.observed)[0]

        labels = np.concatenate([np.where(bins.weight > 0, bins.Y, np.nan) for bins in sessions])
        mean, scale = np.nanmean(labels, axis=0), np.nanstd(labels, axis=0)
        if not (scale > 0).all():
            raise InputError("y: expected labels that vary in every output, got a constant one")
        initial, seeds, settings = None, [*self.member_seeds_], self._pretraining()
        if extends:
            C = self.C_ * (self.label_scale_ / scale)[:, None]
            C[..., self.network_.output_bias] += (self.label_mean_ - mean) / scale
            initial = self.W_, C
            # Windows of another day, not the first day's draws once more.
            seeds = [int(np.random.SeedSequence([seed, len(sessions)]).generate_state(1)[0]) for seed in seeds]
            settings = self._pretraining(n_updates=self.added_updates, learning_rate=self.added_rate)
        self.label_mean_, self.label_scale_ = mean, scale
        targets = [self._scaled(bins) for bins in sessions]
        if self.pretrained:
            parts = [list(part) for part in zip(*((b.weight, b.observed, b.reset) for b in sessions), strict=True)]
            self.W_, self.C_ = self._train(
                (OneByOne(normalised, range(len(sessions))), targets, *parts), seeds, settings, initial
            )
        else:
            self.W_, self.C_ = self.start_weights_
        self.mean_, self.variance_ = statistics[-1].mean, statistics[-1].variance
        self._fitted(normalised(-1), targets[-1], sessions[-1])
        vars(self).pop("state_", None)

    def _pretraining(self, **constants: Any) -> Pretraining:
        """Settings of a training, with `constants` in place of this decoder's own."""
        from bci_adapt.learning.bptt import Pretraining

        own = {
            "n_updates": self.n_updates,
            "learning_rate": self.pretrain_rate,
            "input_dropout": self.input_dropout,
            "gain_jitter": self.gain_jitter,
            "offset_jitter": self.offset_jitter,
            "batch": self.batch,
            "window_bins": self.window_bins,
            "recency": self.recency,
        }
        return Pretraining(**(own | constants))

    def _train(
        self,
        data: tuple[Sequence[np.ndarray], ...],
        seeds: Sequence[int],
        settings: Pretraining,
        initial: tuple[np.ndarray, np.ndarray] | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """W and C of one network per seed, each trained by itself on `data` – X, Y, weight, observed and reset of
        `bptt.pretrain` – from its part of `initial`; without a leading axis where there is one network. What of `data`
        no network sees is said, and kept in ``metadata_``.
        """
        from bci_adapt.learning.bptt import pretrain, windows

        if initial is not None and not settings.n_updates:
            # Training is in single precision: without a step weights are left as they are.
            return initial
        X, Y, weight, observed, reset = data
        stretches, n_bins = windows(weight, observed, reset, settings).left_out
        self.metadata_ = {key: value for key, value in self.metadata_.items() if key != "left_out"}
        if stretches:
            left_out = {"stretches": stretches, "bins": n_bins, "seconds": round(n_bins * self.bin_s_, 6)}
            self.metadata_ = self.metadata_ | {"left_out": left_out}
            warnings.warn(
                f"{stretches} stretches ({n_bins} bins, {left_out['seconds']:g} s) hold no label that a network could "
                "be trained on and are left out",
                stacklevel=2,
            )
        W, C = (None, None) if initial is None else (each.reshape(-1, *each.shape[-2:]) for each in initial)
        members = []
        for member, seed in enumerate(seeds):
            begin = None if W is None or C is None else (W[member], C[member])
            members.append(pretrain(self.network_, X, Y, weight, observed, reset, seed, settings, begin))
        return _joined(members)

    def _fitted(self, x: np.ndarray, targets: np.ndarray, last: Bins) -> None:
        """What else a decoder keeps of the last training session: normalised bins and scaled labels."""

    def _scaled(self, bins: Bins) -> np.ndarray:
        return (bins.Y - self.label_mean_) / self.label_scale_

    def _unscaled(self, predictions: np.ndarray) -> np.ndarray:
        return predictions * self.label_scale_ + self.label_mean_

    # -- the session ---------------------------------------------------------------------------------------------

    def _normalised(self, bins: Bins) -> tuple[Bins, np.ndarray]:
        """Bins of the session, its first one marked, and normalised (n_bins, n_channels); the statistics go on."""
        if not hasattr(self, "state_"):
            self.begin()
        if self._fresh_session:
            reset = bins.reset.copy()
            reset[:1] = True
            bins, self._fresh_session = bins._replace(reset=reset), False
        x, self.running_ = self.running_.apply(bins.X, bins.observed)
        return bins, x

    def _predicting(self, continuing: bool) -> tuple[State, Normaliser]:
        """A state of its own that predicts by the weights as they are, and statistics; from where the session stands
        where it goes on.
        """
        adapted = hasattr(self, "state_")
        W, C = self.state_.predictor() if adapted else self.start_weights_
        hidden = self.state_.predictor_hidden() if adapted and continuing else None
        running = self.running_ if adapted else self._normaliser()
        state = start(PretrainedDecoder._learner(self), W, C, hidden)
        if adapted and continuing:
            output = "mean_output" if self.state_.learner.average is not None else "output"
            state.arrays["output"][:] = self.state_.arrays[output]
        return state, running

    def _predict(self, bins: Bins, continuing: bool) -> np.ndarray:
        state, running = self._predicting(continuing)
        predictions = []
        for begin in range(0, max(len(bins.X), 1), BLOCK):
            X, observed, reset = (each[begin : begin + BLOCK] for each in (bins.X, bins.observed, bins.reset))
            x, running = running.apply(X, observed)
            made, state = run(state, x, None, None, None, observed, reset, in_place=True)
            predictions.append(made.mean(axis=0))
        return self._unscaled(np.concatenate(predictions))

    def with_fitted_statistics(self) -> Self:
        other = copy.copy(self)
        other.running_ = self._normaliser()
        return other

    @property
    def weight_change_(self) -> float:
        """How far adaptation moved the predicting weights: ‖θ − θ₀‖ / ‖θ₀‖ over W and C together."""
        if not hasattr(self, "state_"):
            return 0.0
        (W, C), (W0, C0) = self.state_.predictor(), self.start_weights_
        moved = np.sum((W - W0) ** 2) + np.sum((C - C0) ** 2)
        return float(np.sqrt(moved / (np.sum(W0**2) + np.sum(C0**2))))

    @property
    def diverged_(self) -> bool:
        """Whether any weight is no longer finite."""
        return hasattr(self, "state_") and not bool(self.state_.finite.all())

    # -- storage -------------------------------------------------------------------------------------------------

    def _fitted_arrays(self):
        """The fitted arrays, and the online state where there is one: a loaded decoder goes on bit for bit."""
        arrays = super()._fitted_arrays()
        if hasattr(self, "state_"):
            arrays |= {_STATE + key: value for key, value in self.state_.arrays.items()}
            arrays |= {"running_mean": self.running_.mean, "running_variance": self.running_.variance}
            arrays["fresh_session"] = np.array(self._fresh_session)
        return arrays

    def _check_parameters(self) -> None:
        super()._check_parameters()
        self._learner()

    def _lengths(self) -> dict[str, int | None]:
        network, members = self.network_, self.n_members if self.n_members > 1 else None
        own = {"rows": network.n_rows, "row_width": network.row_width, "readout_width": network.readout_width}
        return {**super()._lengths(), "members": members, **own}

    def _restore(self, arrays):
        super()._restore(arrays)
        if any(key in _RUNNING or key.startswith(_STATE) for key in arrays):
            require_arrays(_RUNNING, self._lengths(), arrays, self.name)
            online = {key.removeprefix(_STATE): value for key, value in arrays.items() if key.startswith(_STATE)}
            require_finite(online)
            self.state_ = adopt(self._learner(), online, "the stored decoder")
            self.running_ = replace(
                self._normaliser(), mean=arrays["running_mean"], variance=arrays["running_variance"]
            )
            self._fresh_session = bool(arrays["fresh_session"])


def require_finite(state: Mapping[str, np.ndarray]) -> None:
    """`InputError`, naming the array, for numbers of a learner's state that are not finite."""
    for name, each in state.items():
        if each.dtype.kind == "f" and not np.isfinite(each).all():
            raise InputError(f"{name}: expected finite numbers, got others: its weights have diverged")


def _joined(members: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """W and C of several networks with a leading axis; of one, as they are."""
    W, C = (np.stack(each) for each in zip(*members, strict=True))
    return (W, C) if len(members) > 1 else (W[0], C[0])
