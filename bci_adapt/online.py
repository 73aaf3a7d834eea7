"""The online learner: streams of plain arrays in, predictions and a state out.

    state = start(network, rule, optimizer, W, C)
    predictions, state = run(state, X, Y, weight, arrives)

A bin is predicted before any of its labels can be used. The label of bin t becomes known at bin ``arrives[t]``; the
record of bin t waits until then and is learned from at most ``max_updates_per_bin`` records a bin. Nothing but arrays
is in a state, so a run can be stopped, stored, and resumed bit for bit.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from bci_adapt.backends import loop as kernel
from bci_adapt.backends.compiled import bound_loop
from bci_adapt.cells.base import Network
from bci_adapt.credit.base import CreditRule, Net, Ring
from bci_adapt.errors import InputError
from bci_adapt.optimizers import Optimizer
from bci_adapt.storage import atomic_path

LOSSES = ("squared", "cross_entropy")
GROUPS = ("input", "bias", "recurrent", "readout")


@dataclass(frozen=True)
class Learner:
    """What learns, and how: everything about a run that is not an array.

    Parameters
    ----------
    network, rule, optimizer : the parts.
    loss : ``squared`` (half the weighted sum of squares) or ``cross_entropy`` (labels are probabilities).
    average : decay per update of an exponential mean of the weights, which then makes the predictions; None for none.
    group_rates : multiplier of the learning rate for ``input``, ``bias``, ``recurrent`` or ``readout`` weights.
    max_updates_per_bin : how many records that wait are worked off in one bin.
    compiled : False runs the same source in plain Python (slow; for tests).
    boundscheck : check every index of the compiled kernels (slow; for tests).
    """

    network: Network
    rule: CreditRule
    optimizer: Optimizer
    loss: str = "squared"
    average: float | None = None
    group_rates: Mapping[str, float] = field(default_factory=dict)
    max_updates_per_bin: int = 4
    compiled: bool = True
    boundscheck: bool = False

    def __post_init__(self):
        if self.loss not in LOSSES:
            raise InputError(f"loss must be one of {LOSSES}, got {self.loss!r}")
        if self.average is not None and not 0.0 < self.average < 1.0:
            raise InputError(f"average must lie between 0 and 1 (or be None), got {self.average}")
        if self.max_updates_per_bin < 1:
            raise InputError(f"max_updates_per_bin must be at least 1, got {self.max_updates_per_bin}")
        for group in self.group_rates:
            if group not in GROUPS:
                raise InputError(f"group_rates: unknown weight group {group!r}; known: {', '.join(GROUPS)}")
        self.rule.check(self.network.cell)

    def rates(self) -> tuple[np.ndarray, np.ndarray]:
        """Learning rate of every column of W (row_width,) and of C (readout_width,)."""
        columns = np.array([self.group_rates.get(group, 1.0) for group in self.network.groups()])
        readout = np.full(self.network.readout_width, self.group_rates.get("readout", 1.0))
        return self.optimizer.learning_rate * columns, self.optimizer.learning_rate * readout


@dataclass(frozen=True)
class State:
    """Everything a run carries on: arrays with a leading replica axis S.

    ``arrays`` holds W, C, their optimiser arrays, the rule's memory, hidden states, the averaged network, the ring of
    records that wait for labels, and counters (S, 7): bins seen, records made, records worked off, first record of the
    stretch, updates, labels dropped by a reset, bins and labels that were not finite.
    """

    learner: Learner
    arrays: dict[str, np.ndarray]

    @property
    def n_replicas(self) -> int:
        return self.arrays["W"].shape[0]

    @property
    def finite(self) -> np.ndarray:
        """Whether every weight of each replica is finite (S,)."""
        flat = [self.arrays[name].reshape(self.n_replicas, -1) for name in ("W", "C")]
        return np.asarray(np.isfinite(np.concatenate(flat, axis=1)).all(axis=1))

    def counter(self, position: int) -> np.ndarray:
        """One counter of every replica (S,); positions are named in backends.loop."""
        return self.arrays["counters"][:, position]

    def predictor(self) -> tuple[np.ndarray, np.ndarray]:
        """The weights that make the predictions: the averaged ones where an average is kept. Shapes (S, …)."""
        averaged = self.learner.average is not None
        return (self.arrays["mean_W"], self.arrays["mean_C"]) if averaged else (self.arrays["W"], self.arrays["C"])

    def predictor_hidden(self) -> np.ndarray:
        """The hidden state that goes with `predictor` (S, n_slots, n_hidden)."""
        return self.arrays["mean_state" if self.learner.average is not None else "state"]

    def copy(self) -> State:
        return replace(self, arrays={name: array.copy() for name, array in self.arrays.items()})


def start(learner: Learner, W: np.ndarray, C: np.ndarray, hidden: np.ndarray | None = None) -> State:
    """Begin a run with these weights.

    Parameters
    ----------
    W : (S, n_hidden, row_width) or without the replica axis.
    C : (S, n_outputs, readout_width) likewise.
    hidden : initial hidden state (S, n_slots, n_hidden); zero when None.
    """
    network = learner.network
    W, C = np.array(W, float), np.array(C, float)
    if W.ndim == 2:
        W, C = W[None], C[None]
    S, n, k = W.shape[0], network.n_hidden, len(network.cell.slots)
    expected = (S, n, network.row_width), (S, network.n_outputs, network.readout_width)
    if (W.shape, C.shape) != expected:
        raise InputError(
            f"weights of {network.cell.name}: expected W {expected[0]}, C {expected[1]}; got {W.shape}, {C.shape}"
        )
    slots = learner.optimizer.n_slots
    arrays = {
        "W": np.ascontiguousarray(W),
        "C": np.ascontiguousarray(C),
        "opt_W": np.zeros((S, n, slots, network.row_width)),
        "opt_C": np.zeros((S, network.n_outputs, slots, network.readout_width)),
        "memory": np.zeros((S, *learner.rule.memory_shape(network))),
        "state": np.zeros((S, k, n)) if hidden is None else np.array(hidden, float).reshape(S, k, n),
        "output": np.zeros((S, network.n_outputs)),
        "counters": np.zeros((S, kernel.N_COUNTERS), np.int64),
    }
    kept = learner.average is not None
    arrays["mean_W"] = arrays["W"].copy() if kept else np.zeros((S, 0, 0))
    arrays["mean_C"] = arrays["C"].copy() if kept else np.zeros((S, 0, 0))
    arrays["mean_state"] = arrays["state"].copy()
    arrays["mean_output"] = np.zeros((S, network.n_outputs))
    return State(learner, arrays | _new_ring(network, S, learner.rule.history + 1))


def _new_ring(network: Network, S: int, length: int) -> dict[str, np.ndarray]:
    n, k, gates, M = network.n_hidden, len(network.cell.slots), len(network.cell.gates), network.n_outputs
    shapes = {
        "z": (network.z_width,),
        "a": (gates, n),
        "before": (k, n),
        "after": (k, n),
        "features": (network.readout_width,),
        "prediction": (M,),
        "label": (M,),
        "weight": (M,),
    }
    ring = {f"ring_{name}": np.zeros((S, length, *shape)) for name, shape in shapes.items()}
    return ring | {"ring_arrives": np.zeros((S, length), np.int64)}


def _with_ring(state: State, needed: int) -> dict[str, np.ndarray]:
    """The state's arrays with a ring of at least `needed` records; records keep their places modulo the new length."""
    arrays, old = state.arrays, state.arrays["ring_z"].shape[1]
    if old >= needed:
        return arrays
    ring = _new_ring(state.learner.network, state.n_replicas, needed)
    for s in range(state.n_replicas):
        made = int(arrays["counters"][s, kernel.RECORDS])
        records = np.arange(max(0, made - old), made)
        for name, target in ring.items():
            target[s, records % needed] = arrays[name][s, records % old]
    return arrays | ring


def _most_waiting(state: State, arrives: np.ndarray, observed: np.ndarray) -> int:
    """An upper bound of how many records wait for their labels at any bin of this run (a reset only clears some)."""
    at_most, worst = state.learner.max_updates_per_bin, 0
    for s in range(state.n_replicas):
        counters, ring = state.arrays["counters"][s], state.arrays["ring_arrives"][s]
        waiting = np.arange(counters[kernel.PROCESSED], counters[kernel.RECORDS])
        queue = np.concatenate([ring[waiting % len(ring)] - counters[kernel.BIN], arrives[observed]])
        made = len(waiting) + np.cumsum(observed)
        done = np.searchsorted(queue, np.arange(len(arrives)), side="right")
        if (np.diff(done, prepend=0) > at_most).any():
            for t, known in enumerate(done):
                done[t] = min(known, at_most + (done[t - 1] if t else 0))
        worst = max(worst, len(waiting), int(np.max(made - np.concatenate([[0], done[:-1]]), initial=0)))
    return worst


def _door(state: State, X, Y, weight, arrives, observed, reset) -> tuple[list[np.ndarray], int]:
    """Check and convert what `run` was given; returns the arrays and how many labels or bins were not finite."""
    network = state.learner.network
    # Contiguous and writeable: every call has one signature, so that a loop is compiled, and kept on disk, only once.
    X = np.require(X, float, ["C", "W"])
    if X.ndim == 2:
        X = X[None]
    if X.ndim != 3 or X.shape[2] != network.n_inputs or X.shape[0] not in (1, state.n_replicas):
        raise InputError(
            f"X: expected (n_bins, {network.n_inputs}), or one such stream for each of {state.n_replicas} replicas, "
            f"got {X.shape}"
        )
    T = X.shape[1]
    M = network.n_outputs
    if Y is None:
        Y, weight = np.zeros((1, T, M)), np.zeros((1, T, M))
    Y = np.array(Y, dtype=float)
    Y = Y[None] if Y.ndim == 2 else Y
    weight = np.ones_like(Y) if weight is None else np.array(weight, dtype=float)
    weight = weight[None] if weight.ndim == 2 else weight
    for name, array in (("Y", Y), ("weight", weight)):
        if array.shape[1:] != (T, M) or array.shape[0] not in (1, state.n_replicas):
            raise InputError(f"{name}: expected (n_bins={T}, n_outputs={M}) per replica, got {array.shape}")
    if not (weight >= 0).all():
        raise InputError("weight: expected numbers ≥ 0 (0 = no label), got negative or NaN ones")
    arrives = np.arange(T) if arrives is None else np.require(arrives, np.int64, ["C", "W"])
    if arrives.shape != (T,) or np.any(np.diff(arrives) < 0) or np.any(arrives < np.arange(T)):
        raise InputError("arrives: expected (n_bins,) bin numbers, non-decreasing and not before their own bin")
    observed = np.ones(T, bool) if observed is None else np.array(observed, dtype=bool)
    reset = np.zeros(T, bool) if reset is None else np.array(reset, dtype=bool)
    for name, flags in (("observed", observed), ("reset", reset)):
        if flags.shape != (T,):
            raise InputError(f"{name}: expected ({T},) true/false, got {flags.shape}")
    # What is not finite is not learned from: the bin counts as unobserved, the label as missing; both are counted.
    bad_bins = observed & ~np.isfinite(X).all(axis=(0, 2))
    bad_labels = (weight > 0) & ~np.isfinite(Y)
    observed = observed & ~bad_bins
    weight[bad_labels] = 0.0
    Y[~np.isfinite(Y)] = 0.0
    return [X, np.ascontiguousarray(Y), np.ascontiguousarray(weight), arrives, observed, reset], int(
        bad_bins.sum() + bad_labels.any(axis=(0, 2)).sum()
    )


def run(
    state: State,
    X: np.ndarray,
    Y: np.ndarray | None = None,
    weight: np.ndarray | None = None,
    arrives: np.ndarray | None = None,
    observed: np.ndarray | None = None,
    reset: np.ndarray | None = None,
    *,
    in_place: bool = False,
) -> tuple[np.ndarray, State]:
    """Predict every bin, then learn from what is known by then.

    Parameters
    ----------
    X : (n_bins, n_inputs), or (S, n_bins, n_inputs) with one stream per replica. A bin that is not finite counts as
        unobserved.
    Y : labels (n_bins, n_outputs), or with a replica axis; None for none. A label that is not finite is not used.
    weight : ≥ 0, as Y; 0 = no label. All ones when None.
    arrives : (n_bins,) the bin, counted from the first of this call, at which each label becomes known; at once when
        None.
    observed : (n_bins,) False where the neurons were not recorded: the hidden state and the prediction are held.
    reset : (n_bins,) True at the first bin of a new stretch: hidden state, rule memory and waiting labels are cleared.
    in_place : change `state` itself instead of a copy.

    Returns
    -------
    predictions (S, n_bins, n_outputs), each made before its own label could be used, and the new state.
    """
    (X, Y, weight, arrives, observed, reset), not_finite = _door(state, X, Y, weight, arrives, observed, reset)
    if not in_place:
        state = state.copy()
    state.arrays["counters"][:, kernel.NOT_FINITE] += not_finite
    learner, network, S, T = state.learner, state.learner.network, state.n_replicas, X.shape[1]
    waiting = _most_waiting(state, arrives, observed)
    arrays = _with_ring(state, waiting + learner.rule.history + 1)
    function = bound_loop(
        network.cell,
        learner.rule,
        learner.optimizer,
        learner.loss,
        compiled=learner.compiled,
        boundscheck=learner.boundscheck,
    )
    rate_W, rate_C = learner.rates()
    flags = np.array([learner.rule.advances, learner.rule.learns_recurrent, learner.max_updates_per_bin], np.int64)
    decay = np.array([learner.average or 0.0])
    work = tuple(np.zeros(shape) for shape in learner.rule.work_shapes(network))
    predictions = np.empty((S, T, network.n_outputs))
    hyper, constants, blocks = learner.optimizer.hyper(), learner.rule.constants(), network.blocks
    for s in range(S):
        a = {name: array[s] for name, array in arrays.items()}
        function(
            kernel.Stream(
                X[min(s, len(X) - 1)], Y[min(s, len(Y) - 1)], weight[min(s, len(weight) - 1)], arrives, observed, reset
            ),
            Net(a["W"], a["C"], blocks),
            kernel.Averaged(Net(a["mean_W"], a["mean_C"], blocks), a["mean_state"], a["mean_output"], decay),
            Ring(*(a[f"ring_{name}"] for name in Ring._fields)),
            kernel.Learning(a["opt_W"], a["opt_C"], rate_W, rate_C, hyper, constants, a["memory"], work, flags),
            a["state"],
            a["output"],
            a["counters"],
            predictions[s],
        )
    return predictions, replace(state, arrays=arrays)


def save_state(state: State, path: Path) -> None:
    """Write a state's arrays to one npz file, atomically and without pickle."""
    with atomic_path(Path(path)) as temporary, open(temporary, "wb") as handle:
        np.savez(handle, **state.arrays)  # type: ignore[arg-type]


def load_state(learner: Learner, path: Path) -> State:
    """Read back what `save_state` wrote, for the same learner; `InputError` where the shapes are not its own."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: expected a stored learner state (npz): {error}") from error
    fresh = start(learner, np.zeros((1, *arrays["W"].shape[1:])), np.zeros((1, *arrays["C"].shape[1:]))).arrays
    for name, array in fresh.items():
        # The ring grows with the label delay, so its length is the state's own.
        skip = 2 if name.startswith("ring_") else 1
        if name not in arrays or arrays[name].shape[skip:] != array.shape[skip:]:
            raise InputError(f"{path}: array {name!r} does not belong to this cell, rule, optimiser and average")
    return State(learner, arrays)
