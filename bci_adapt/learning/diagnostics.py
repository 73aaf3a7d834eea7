"""What a run's gradients look like: norms per weight group, the state Jacobian D, what lies in the past.

    diagnosis = diagnose(state, X, Y, weight, arrives)         in place of predictions, state = run(state, X, …)
    summary(diagnosis)                                         medians over the records

`diagnose` calls `online.run`, whose predictions and state it returns as they are, and then replays the trajectory
record by record with other credit rules beside it. Those are the shipped kernels too: each looks at the record that
the network learns from, with the weights as they were when it did, and moves nothing; a rule's memory is all that it
carries. RTRL beside a network is therefore as stale as RTRL that teaches one. Far from the hot path: one record costs
an RTRL step and the eigenvalues of D. Notation as in `credit.base` (PROTOCOL: D the state Jacobian ∂s_t/∂s_{t-1}, P the
immediate derivative ∂s_t/∂W at fixed s_{t-1}, J_t = D J_{t-1} + P_t the influence matrix).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bci_adapt.errors import InputError
from bci_adapt.learning.backends import loop as kernel
from bci_adapt.learning.bptt import trajectory
from bci_adapt.learning.cells.base import Network
from bci_adapt.learning.credit.base import CreditRule, partial_shapes
from bci_adapt.learning.credit.immediate import Immediate
from bci_adapt.learning.credit.rtrl import RTRL
from bci_adapt.learning.learner import Learner, State
from bci_adapt.learning.online import run, start, with_ring
from bci_adapt.learning.optimizers import GROUPS, Momentum

# The influence matrix grows as n³: beyond this many units a record takes seconds and gigabytes.
LARGEST_RTRL = 256


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` returns.

    Attributes
    ----------
    predictions, state : as `online.run` returns them.
    table : columns of equal length, one row per diagnosed record. ``bin`` – counted from the first of the call – is
        where the record was learned from, which is later than where it was made when its label was late.

        - ``grad_norm_<group>``, ``grad_rms_<group>``: Frobenius norm of the gradient, and norm / √(number of weights),
          of every weight group that the cell has (``input``, ``bias``, ``recurrent``, ``readout``, ``output_bias``), of
          the rule that learns, whether or not the group does, before clipping.
        - ``d_diagonal_mean``, ``d_diagonal_abs_mean``, ``spectral_radius``: of D over all state slots and units.
        - ``norm_<rule>``: Frobenius norm over W of each rule's gradient; ``norm_own`` of the rule that learns.
        - with RTRL among the rules: ``cosine_<rule>``, ``cosine_own`` with RTRL's gradient of W, and
          ``past_over_immediate`` = ‖D J_{t-1}‖/‖P_t‖.
        - with immediate among them too: ``norm_past`` of g_past = g_rtrl − g_immediate.
    concentration : likewise, one row per whole window of labelled records, ``bin`` that of its last one:
        ``top_share_<rule>`` and ``effective_rank_<rule>`` (``own``, ``past`` too) of the gradient *summed over the
        window*, seen as a matrix (n_hidden, row_width): the largest squared singular value as a share of all, and exp
        of the entropy of these shares. One record's gradient says little there: of immediate it has a rank of at most
        the number of gates.

    A quantity that is not defined (a cosine with a zero gradient, anything of a network that diverged) is NaN.
    """

    predictions: np.ndarray
    state: State
    table: dict[str, np.ndarray]
    concentration: dict[str, np.ndarray]


def diagnose(
    state: State,
    X: np.ndarray,
    Y: np.ndarray | None = None,
    weight: np.ndarray | None = None,
    arrives: np.ndarray | None = None,
    observed: np.ndarray | None = None,
    reset: np.ndarray | None = None,
    *,
    rules: Sequence[CreditRule] = (Immediate(), RTRL()),
    every: int = 1,
    window: int = 50,
) -> Diagnosis:
    """Run as `online.run` does, and look at the gradients on the way.

    Parameters
    ----------
    state, X, Y, weight, arrives, observed, reset : as for `online.run`; one replica.
    rules : run beside the one that learns, on its trajectory. They start without a memory – except one that equals the
        rule that learns, which starts with its memory, signs and random feedback.
    every : diagnose every so many labelled records; memories and windows see all of them.
    window : labelled records over which gradients are summed for their singular values.

    Raises
    ------
    InputError
        where `run` or a rule would, for more than one replica, for torch modules, and for RTRL on more than 256 units.
    """
    learner = state.learner
    _check(state, rules, every, window)
    passive = [_Passive(state, rule) for rule in rules]
    own = next((each for each in passive if each.is_own), None) or _Passive(state, learner.rule)
    every_rule = [*passive, *([] if own in passive else [own])]
    collected = _Collected(learner.network, passive, own, every, window)

    predictions, end = run(state, X, Y, weight, arrives, observed, reset)
    stream = {"Y": Y, "weight": weight, "arrives": arrives, "observed": observed, "reset": reset}
    stream = {name: np.asarray(values) for name, values in stream.items() if values is not None}
    # Room for the past that a passive rule reads beside what waits.
    room = end.arrays["ring_z"].shape[1] + max((rule.history for rule in rules), default=0)
    for t, replay, W in _replayed(state, room, np.asarray(X, float), stream, every_rule):
        collected.add(t, replay, W)
    return Diagnosis(predictions, end, collected.table(), collected.concentration())


def _replayed(
    state: State, room: int, X: np.ndarray, stream: dict[str, np.ndarray], rules: Sequence[_Passive]
) -> Iterator[tuple[int, State, np.ndarray]]:
    """Run once more, record by record, with a ring of `room` records, and let the rules look at each: its bin, the
    state after it and the W (1, n_hidden, row_width) that it was learned from with.
    """
    learner = state.learner
    replay = State(replace(learner, max_updates_per_bin=1), with_ring(state.copy(), room))
    for t in range(X.shape[-2]):
        now = {
            name: values[..., t : t + 1, :] if name in ("Y", "weight") else values[t : t + 1]
            for name, values in stream.items()
        }
        if "arrives" in now:
            now["arrives"] = now["arrives"] - t
        cleared = "reset" in stream and bool(stream["reset"][t])
        if cleared:
            for each in rules:
                each.clear()
        for record_of_bin in range(learner.max_updates_per_bin):
            counters = replay.arrays["counters"][0]
            if record_of_bin > 0:
                if not _due(replay):
                    break
                # The bin goes on for its next record: as a bin without neurons, which is not counted.
                counters[kernel.BIN] -= 1
                now = {"observed": np.zeros(1, bool)}
            worked_off = counters[kernel.RECORDS if cleared and record_of_bin == 0 else kernel.PROCESSED].item()
            W, C = replay.arrays["W"].copy(), replay.arrays["C"].copy()
            _, replay = run(replay, X[..., t : t + 1, :], **now, in_place=True)
            if replay.counter(kernel.PROCESSED)[0] == worked_off:
                break
            for each in rules:
                each.look(replay, W, C)
            yield t, replay, W


def summary(diagnosis: Diagnosis) -> dict[str, float]:
    """Median of every column of the table and of the windows; NaN where no record defined it."""
    columns = {**diagnosis.concentration, **diagnosis.table}
    finite = {name: column[np.isfinite(column)] for name, column in columns.items() if name != "bin"}
    return {name: float(np.median(column)) if len(column) else float("nan") for name, column in finite.items()}


def jacobian_diagonals(network: Network, W: np.ndarray, X: np.ndarray) -> np.ndarray:
    """Diagonal of D over state slots and units (n_bins, n_slots · n_hidden) at the bins of X (n_bins, n_inputs), of a
    network with weights W (n_hidden, row_width) that runs from a zero state and does not learn.
    """
    columns, unread = _Columns(network), np.zeros(network.z_width)
    activations, states, _ = trajectory(network, W, np.asarray(X, float)[:, None])
    steps = zip(activations[:, :, 0], states[:-1, :, 0], states[1:, :, 0], strict=True)
    return np.array([_Step(columns, W, unread, *step).jacobian().diagonal() for step in steps])


def _check(state: State, rules: Sequence[CreditRule], every: int, window: int) -> None:
    network = state.learner.network
    if state.n_replicas != 1:
        raise InputError(f"diagnostics: expected a state of one replica, got {state.n_replicas}")
    if network.needs_torch:
        raise InputError(f"diagnostics: {network.cell.name} is a torch module; only cells with kernels have them")
    for name, value in (("every", every), ("window", window)):
        if value < 1:
            raise InputError(f"diagnostics: {name} must be at least 1, got {value}")
    names = [rule.name for rule in rules]
    if len(set(names)) < len(names):
        raise InputError(f"diagnostics: expected rules of different names, got {', '.join(names)}")
    if any(isinstance(rule, RTRL) for rule in (*rules, state.learner.rule)) and network.n_hidden > LARGEST_RTRL:
        size = 8 * np.prod(network.memory_shape(RTRL()), dtype=float) / 2**30
        raise InputError(
            f"diagnostics: RTRL beside a run takes at most {LARGEST_RTRL} units, got n_hidden={network.n_hidden} "
            f"(an influence matrix of {size:.1f} GiB); give rules without rtrl"
        )


def _due(state: State) -> bool:
    """Whether another record could be worked off in the bin that was the last one."""
    counters, arrives = state.arrays["counters"][0], state.arrays["ring_arrives"][0]
    record = counters[kernel.PROCESSED]
    return bool(record < counters[kernel.RECORDS] and arrives[record % len(arrives)] < counters[kernel.BIN])


class _Passive:
    """A credit rule that looks on: the gradient of each record at the weights of the network that learns."""

    def __init__(self, state: State, rule: CreditRule):
        learner, network = state.learner, state.learner.network
        # m ← 0 m + g; θ ← θ − 0 m: keeps the gradient and moves nothing, by a kernel that ships.
        self.learner = Learner(
            network,
            rule,
            Momentum(0.0, momentum=0.0),
            loss=learner.loss,
            max_updates_per_bin=1,
            backend="compiled" if learner.backend == "torch" else learner.backend,
            boundscheck=learner.boundscheck,
        )
        self.rule = rule
        self.arrays = start(self.learner, state.arrays["W"], state.arrays["C"]).arrays
        self.is_own = _equal(rule, learner.rule, network)
        if self.is_own:
            self.arrays |= {name: state.arrays[name].copy() for name in ("memory", "generator")}
        if rule.feedback == learner.rule.feedback:
            self.arrays["B"] = state.arrays["B"]
        # Of the records before the run the ring may have kept fewer than a window reads: history begins there.
        made, length = int(state.counter(kernel.RECORDS)[0]), state.arrays["ring_z"].shape[1]
        self.oldest = max(0, made - length)

    def clear(self) -> None:
        """What a reset does to a rule."""
        self.arrays["memory"][:] = 0.0

    def look(self, replay: State, W: np.ndarray, C: np.ndarray) -> None:
        """Form the gradient of the record that `replay` has just learned from with the weights W, C."""
        seen = {name: array for name, array in replay.arrays.items() if name.startswith("ring_")}
        counters = replay.arrays["counters"].copy()
        counters[:, [kernel.BIN, kernel.PROCESSED]] -= 1
        counters[:, kernel.FIRST] = np.maximum(counters[:, kernel.FIRST], self.oldest)
        self.arrays |= seen | {"W": W, "C": C, "counters": counters}
        for name in ("opt_W", "opt_C"):
            self.arrays[name][:] = 0.0
        nothing = np.zeros((1, self.learner.network.n_inputs))
        run(State(self.learner, self.arrays), nothing, observed=np.zeros(1, bool), in_place=True)

    @property
    def W_gradient(self) -> np.ndarray:
        """(n_hidden, row_width)"""
        return self.arrays["opt_W"][0, :, 0]

    @property
    def C_gradient(self) -> np.ndarray:
        """(n_outputs, readout_width)"""
        return self.arrays["opt_C"][0, :, 0]


def _equal(rule: CreditRule, other: CreditRule, network: Network) -> bool:
    return (
        type(rule) is type(other)
        and (rule.feedback, rule.history, rule.fresh_error) == (other.feedback, other.history, other.fresh_error)
        and np.array_equal(rule.constants(network), other.constants(network))
    )


class _Collected:
    """Rows of the two tables."""

    def __init__(self, network: Network, passive: list[_Passive], own: _Passive, every: int, window: int):
        self.network, self.own, self.every, self.window = network, own, every, window
        self.rules = {each.rule.name: each for each in passive}
        self.columns, (self.groups_W, self.groups_C) = _Columns(network), own.learner.groups()
        self.seen = 0
        self.rows: list[dict[str, float]] = []
        self.windows: list[dict[str, float]] = []
        self.sums: dict[str, np.ndarray] = {}

    def add(self, t: int, replay: State, W: np.ndarray) -> None:
        """The record that was learned from in bin `t`, at weights W."""
        record = int(replay.counter(kernel.PROCESSED)[0]) - 1
        slot = record % replay.arrays["ring_z"].shape[1]
        if not (replay.arrays["ring_weight"][0, slot] > 0.0).any():
            return
        g = {"own": self.own.W_gradient} | {name: each.W_gradient for name, each in self.rules.items()}
        if {"immediate", "rtrl"} <= g.keys():
            g["past"] = g["rtrl"] - g["immediate"]
        if self.seen % self.every == 0:
            kept = (replay.arrays[f"ring_{name}"][0, slot] for name in ("z", "a", "before", "after"))
            self.rows.append({"bin": t} | self._row(g, record, _Step(self.columns, W[0], *kept)))
        self.seen += 1
        self.sums = {name: self.sums.get(name, 0.0) + gradient for name, gradient in g.items()}
        if self.seen % self.window == 0:
            self.windows.append({"bin": t} | _measured(self.sums))
            self.sums = {}

    def _row(self, g: dict[str, np.ndarray], record: int, step: _Step) -> dict[str, float]:
        row: dict[str, float] = {}
        for group in GROUPS:
            of_readout = group in ("readout", "output_bias")
            gradient, groups = (self.own.C_gradient, self.groups_C) if of_readout else (g["own"], self.groups_W)
            part = gradient[:, groups == GROUPS.index(group)]
            if part.size:
                row[f"grad_norm_{group}"] = float(np.linalg.norm(part))
                row[f"grad_rms_{group}"] = row[f"grad_norm_{group}"] / part.size**0.5
        D = step.jacobian()
        diagonal = D.diagonal()
        row |= {"d_diagonal_mean": float(diagonal.mean()), "d_diagonal_abs_mean": float(np.abs(diagonal).mean())}
        finite = np.isfinite(D).all()
        row["spectral_radius"] = float(np.abs(np.linalg.eigvals(D)).max()) if finite else float("nan")
        row |= {f"norm_{name}": float(np.linalg.norm(gradient)) for name, gradient in g.items()}
        if "rtrl" in self.rules:
            exact, memory = self.rules["rtrl"].rule, self.rules["rtrl"].arrays["memory"][0]
            past = step.without_immediate(exact.influence(self.network, memory, record))
            row["past_over_immediate"] = _ratio(float(np.linalg.norm(past)), step.immediate_norm())
            for name in ("own", *self.rules):
                if name != "rtrl":
                    product = float(np.vdot(g[name], g["rtrl"]))
                    row[f"cosine_{name}"] = _ratio(product, row[f"norm_{name}"] * row["norm_rtrl"])
        return row

    def table(self) -> dict[str, np.ndarray]:
        return _stacked(self.rows)

    def concentration(self) -> dict[str, np.ndarray]:
        return _stacked(self.windows)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0.0 else float("nan")


def _measured(gradients: dict[str, np.ndarray]) -> dict[str, float]:
    """Concentration of the squared singular values of each gradient (n_hidden, row_width)."""
    row = {}
    for name, gradient in gradients.items():
        top = rank = float("nan")
        if np.isfinite(gradient).all() and gradient.any():
            # Scaled first: squares of a vanishing gradient would underflow.
            squares = np.linalg.svd(gradient / np.abs(gradient).max(), compute_uv=False) ** 2
            share = squares / squares.sum()
            top, rank = float(share[0]), float(np.exp(-np.sum(share * np.log(np.maximum(share, 1e-300)))))
        row |= {f"top_share_{name}": top, f"effective_rank_{name}": rank}
    return row


def _stacked(rows: list[dict[str, float]]) -> dict[str, np.ndarray]:
    """Columns of rows that have the same names; none at all where there is no row."""
    if not rows:
        return {"bin": np.zeros(0, np.int64)}
    return {name: np.array([row[name] for row in rows], np.int64 if name == "bin" else float) for name in rows[0]}


class _Columns:
    """Where the gates of a network read: their blocks in z and in a row of W, and their weights from h and from v."""

    def __init__(self, network: Network):
        n = network.n_hidden
        self.network = network
        self.z = [slice(start, start + width) for start, width, *_ in network.blocks]
        self.row = [slice(row, row + width) for _, width, row, *_ in network.blocks]
        self.h = {g: slice(row + at, row + at + n) for g, (_, _, row, at, _) in enumerate(network.blocks) if at >= 0}
        self.v = {g: slice(row + at, row + at + n) for g, (_, _, row, _, at) in enumerate(network.blocks) if at >= 0}
        self.update_partials = network.cell.make(np)[1]
        self.mid_partials = None if network.cell.make_mid is None else network.cell.make_mid(np)[1]


class _Step:
    """D and P of one record: z (z_width,), a (G, n), states before and after (k, n), at weights W (n, row_width).

    ``by_v (k, n, n)`` = ∂s'[k, j]/∂v[i] of a second stage; ∂s'[k, j]/∂a[g, i] is then δ_ij da[k, g, i] and, for gates
    before it, by_v[k, j, i] va[g, i] more.
    """

    def __init__(self, columns: _Columns, W: np.ndarray, z, a, before, after):
        self.columns, self.W, self.z = columns, W, z
        self.da, self.ds, self.va, self.vs = (np.zeros(shape) for shape in partial_shapes(columns.network))
        self.k, self.gates, self.n = self.da.shape
        by_gate, by_slot = columns.update_partials(a, before, after)
        for k in range(self.k):
            for g in range(self.gates):
                self.da[k, g] = by_gate[k][g]
            for j in range(self.k):
                self.ds[k, j] = by_slot[k][j]
        self.by_v: np.ndarray | None = None
        if columns.mid_partials is not None:
            by_gate, by_slot = columns.mid_partials(a, before)
            for g in range(self.gates):
                self.va[g] = by_gate[g]
            for j in range(self.k):
                self.vs[j] = by_slot[j]
            self.by_v = sum(
                (self.da[:, g, :, None] * W[:, where] for g, where in columns.v.items()),
                np.zeros((self.k, self.n, self.n)),
            )

    def jacobian(self) -> np.ndarray:
        """D (k n, k n): ∂s'[k, i]/∂s[j, l] at [k n + i, j n + l]."""
        D = np.zeros((self.k, self.n, self.k, self.n))
        unit = np.arange(self.n)
        for j in range(self.k):
            D[:, unit, j, unit] += self.ds[:, j]
        for g, where in self.columns.h.items():
            D[:, :, 0] += self.da[:, g, :, None] * self.W[:, where]
        if self.by_v is not None:
            for j in range(self.k):
                D[:, :, j] += self.by_v * self.vs[j]
            for g, where in self.columns.h.items():
                D[:, :, 0] += self.by_v @ (self.va[g][:, None] * self.W[:, where])
        return D.reshape(self.k * self.n, self.k * self.n)

    def _through(self, g: int) -> np.ndarray | None:
        """∂s'[k, j]/∂a[g, i] through v (k, n, n); None where there is no such way."""
        return None if self.by_v is None or g in self.columns.v else self.by_v * self.va[g]

    def immediate_norm(self) -> float:
        """‖P‖ (Frobenius): each gate's ∂s'/∂a times what it reads."""
        total = 0.0
        for g, read in enumerate(self.columns.z):
            through = self._through(g)
            by_a = self.da[:, g] if through is None else through + self.da[:, g, None] * np.eye(self.n)
            total += float(np.sum(by_a**2)) * float(np.sum(self.z[read] ** 2))
        return total**0.5

    def without_immediate(self, J: np.ndarray) -> np.ndarray:
        """D J_{t-1} = J_t − P_t, in place of J_t (k, n, n, row_width)."""
        unit = np.arange(self.n)
        for g, (read, where) in enumerate(zip(self.columns.z, self.columns.row, strict=True)):
            J[:, unit, unit, where] -= self.da[:, g, :, None] * self.z[read]
            through = self._through(g)
            if through is not None:
                J[..., where] -= through[..., None] * self.z[read]
        return J
