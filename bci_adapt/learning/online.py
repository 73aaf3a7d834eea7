"""The online learner: streams of plain arrays in, predictions and a state out.

    state = start(network, rule, optimizer, W, C)
    predictions, state = run(state, X, Y, weight, arrives)

A bin is predicted before any of its labels can be used. The label of bin t becomes known at bin ``arrives[t]``; the
record of bin t waits until then and is learned from at most ``max_updates_per_bin`` records a bin. Nothing but arrays
is in a state, so a run can be stopped, stored, and resumed bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bci_adapt.errors import InputError
from bci_adapt.ground.arrays import read_npz
from bci_adapt.ground.room import require_room
from bci_adapt.ground.storage import atomic_path
from bci_adapt.learning.backends import loop as kernel
from bci_adapt.learning.backends.compiled import bound_loop
from bci_adapt.learning.cells.base import Network
from bci_adapt.learning.credit.base import Net, Ring
from bci_adapt.learning.learner import Learner, State

COMPILING = 128 << 20
"""Bytes of address space for compiling a loop, which takes 50 to 90 MB: LLVM ends the process that has too few."""


def start(
    learner: Learner,
    W: np.ndarray,
    C: np.ndarray,
    hidden: np.ndarray | None = None,
    seeds: Sequence[int] | None = None,
) -> State:
    """Begin a run with these weights.

    Parameters
    ----------
    W : (S, n_hidden, row_width) or without the replica axis.
    C : (S, n_outputs, readout_width) likewise.
    hidden : initial hidden state (S, n_slots, n_hidden); zero when None.
    seeds : (S,) of what is drawn at random – a rule's signs, the weights of a random feedback; 0 … S − 1 when None.

    Raises
    ------
    InputError
        when a shape is not the network's.
    """
    network = learner.network
    W, C = np.array(W, float), np.array(C, float)
    if W.ndim == 2:
        W, C = W[None], C[None]
    S, n, k = W.shape[0], network.n_hidden, len(network.cell.slots)
    seeds = range(S) if seeds is None else seeds
    _check_start(network, W, C, hidden, seeds)
    streams = [np.random.default_rng([seed, 0xF33D]) for seed in seeds]
    slots = learner.optimizer.n_slots
    arrays = {
        "W": np.ascontiguousarray(W),
        "C": np.ascontiguousarray(C),
        "opt_W": np.zeros((S, network.n_rows, slots, network.row_width)),
        "opt_C": np.zeros((S, network.n_outputs, slots, network.readout_width)),
        "opt_groups": np.zeros((S, *learner.optimizer.whole_shape(network))),
        "memory": np.zeros((S, *network.memory_shape(learner.rule))),
        "state": np.zeros((S, k, n)) if hidden is None else np.array(hidden, float).reshape(S, k, n),
        "output": np.zeros((S, network.n_outputs)),
        "counters": np.zeros((S, kernel.N_COUNTERS), np.int64),
        # xorshift has no way out of 0
        "generator": np.array([[rng.integers(1, 2**63)] for rng in streams], np.uint64),
    }
    # Fixed weights that feed the errors back have the size of the readout's initial ones.
    random = learner.rule.feedback == "random"
    wide = len(network.cell.features) * n if random else 0
    arrays["B"] = np.array([rng.standard_normal((network.n_outputs, wide)) / np.sqrt(max(wide, 1)) for rng in streams])
    kept = learner.average is not None
    arrays["mean_W"] = arrays["W"].copy() if kept else np.zeros((S, 0, 0))
    arrays["mean_C"] = arrays["C"].copy() if kept else np.zeros((S, 0, 0))
    arrays["mean_state"] = arrays["state"].copy()
    arrays["mean_output"] = np.zeros((S, network.n_outputs))
    return State(learner, arrays | _new_ring(network, S, learner.rule.history + 1))


def _check_start(
    network: Network, W: np.ndarray, C: np.ndarray, hidden: np.ndarray | None, seeds: Sequence[int]
) -> None:
    """Raise `InputError` where weights, hidden state or seeds are not of S replicas of this network."""
    S, n, k = W.shape[0], network.n_hidden, len(network.cell.slots)
    expected = (S, network.n_rows, network.row_width), (S, network.n_outputs, network.readout_width)
    if (W.shape, C.shape) != expected:
        raise InputError(
            f"weights of {network.cell.name}: expected W {expected[0]}, C {expected[1]}; got {W.shape}, {C.shape}"
        )
    if hidden is not None and np.size(hidden) != S * k * n:
        raise InputError(f"hidden: expected ({S}, {k}, {n}), got {np.shape(hidden)}")
    if len(seeds) != S:
        raise InputError(f"seeds: expected one for each of {S} replicas, got {len(seeds)}")


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


def with_ring(state: State, needed: int) -> dict[str, np.ndarray]:
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
    if len(arrives) == 1:  # a live session asks for every bin
        made = state.counter(kernel.RECORDS) - state.counter(kernel.PROCESSED)
        return int(made.max()) + int(observed[0])
    for s in range(state.n_replicas):
        counters, ring = state.arrays["counters"][s], state.arrays["ring_arrives"][s]
        waiting = np.arange(counters[kernel.PROCESSED], counters[kernel.RECORDS])
        # A record is worked off after the ones before it, however early its own label came.
        queue = np.maximum.accumulate(
            np.concatenate([ring[waiting % len(ring)] - counters[kernel.BIN], arrives[observed]])
        )
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
    arrays = with_ring(state, waiting + learner.rule.history + 1)
    predictions = np.empty((S, T, network.n_outputs))
    stream = kernel.Stream(X, Y, weight, arrives, observed, reset)
    if learner.backend == "torch":
        from bci_adapt.learning.backends.torch import run_loop

        run_loop(learner, arrays, stream, predictions)
    else:
        _run_kernel(learner, arrays, stream, predictions)
    return predictions, replace(state, arrays=arrays)


def _run_kernel(
    learner: Learner, arrays: dict[str, np.ndarray], stream: kernel.Stream, predictions: np.ndarray
) -> None:
    """Run the loop of the kernels over every replica, one after another, changing `arrays` and `predictions`."""
    network = learner.network
    function = bound_loop(
        network.cell,
        learner.rule,
        learner.optimizer,
        learner.loss,
        compiled=learner.backend == "compiled",
        boundscheck=learner.boundscheck,
    )
    if learner.backend == "compiled" and not getattr(function, "signatures", True):  # not compiled, or loaded, yet
        require_room(COMPILING, "compiling the loop of a network")
    learning = _learning(learner)
    decay, blocks = np.array([learner.average or 0.0]), network.blocks
    for s in range(len(predictions)):
        a = {name: array[s] for name, array in arrays.items()}
        own = {name: a[name] for name in ("opt_W", "opt_C", "opt_groups", "memory", "generator")}
        X, Y, weight = (array[min(s, len(array) - 1)] for array in stream[:3])
        function(
            kernel.Stream(X, Y, weight, *stream[3:]),
            Net(a["W"], a["C"], a["B"] if a["B"].size else a["C"], blocks),
            kernel.Averaged(
                Net(a["mean_W"], a["mean_C"], a["mean_C"], blocks), a["mean_state"], a["mean_output"], decay
            ),
            Ring(*(a[f"ring_{name}"] for name in Ring._fields)),
            kernel.Learning(**learning, **own),
            a["state"],
            a["output"],
            a["counters"],
            predictions[s],
        )


def _learning(learner: Learner) -> dict[str, Any]:
    """What `kernel.Learning` holds beside a replica's own arrays: constants, and scratch of this call's own."""
    network, known = learner.network, learner.kernel_constants
    scheduled, gathers = learner.optimizer.schedule.moves, learner.optimizer.gathers
    return known | {
        "now_W": known["rate_W"].copy() if scheduled else known["rate_W"],
        "now_C": known["rate_C"].copy() if scheduled else known["rate_C"],
        "gathered_W": np.zeros((network.n_hidden, network.row_width) if gathers else (0, 0)),
        "gathered_C": np.zeros((network.n_outputs, network.readout_width) if gathers else (0, 0)),
        "work": tuple(np.zeros(shape) for shape in learner.rule.scratch_shapes(network)),
    }


def save_state(state: State, path: Path) -> None:
    """Write a state's arrays to one npz file, atomically and without pickle."""
    with atomic_path(Path(path)) as temporary, open(temporary, "wb") as handle:
        np.savez(handle, **state.arrays)  # type: ignore[arg-type]


def load_state(learner: Learner, path: Path) -> State:
    """Read back what `save_state` wrote, for the same learner; `InputError` where the arrays are not its own."""
    return adopt(learner, read_npz(path, "a stored learner state (npz)"), str(path))


def handed_over(state: State, learner: Learner, origin: str) -> State:
    """The same arrays under another learner, to be used from the next reset on; `InputError` as in `adopt`."""
    waiting = state.counter(kernel.RECORDS) - state.counter(kernel.PROCESSED)
    return adopt(learner, with_ring(state, int(waiting.max()) + learner.rule.history + 1), origin)


def adopt(learner: Learner, arrays: dict[str, np.ndarray], origin: str) -> State:
    """A state of these arrays; `InputError`, naming `origin` and the array, where one is not what `learner` works on.

    Compiled kernels do not check their indices: nothing with a wrong shape may reach them.
    """
    network = learner.network
    S = len(arrays["W"]) if np.ndim(arrays.get("W", 0)) == 3 else 1
    fresh = start(
        learner,
        np.zeros((S, network.n_rows, network.row_width)),
        np.zeros((S, network.n_outputs, network.readout_width)),
    ).arrays
    length = arrays["ring_arrives"].shape[-1] if np.ndim(arrays.get("ring_arrives", 0)) == 2 else 0
    for name, array in fresh.items():
        # The ring grows with the label delay, so its length is the state's own.
        expected = (S, length, *array.shape[2:]) if name.startswith("ring_") else array.shape
        if name not in arrays:
            raise InputError(f"{origin}: array {name!r} of the learner's state is missing")
        if arrays[name].shape != expected or arrays[name].dtype != array.dtype:
            raise InputError(
                f"{origin}: array {name!r} does not belong to this cell, rule, optimiser and average: expected "
                f"{array.dtype} {expected}, got {arrays[name].dtype} {arrays[name].shape}"
            )
    counters = arrays["counters"]
    waiting = counters[:, kernel.RECORDS] - counters[:, kernel.PROCESSED]
    if (counters < 0).any() or (waiting < 0).any() or length < waiting.max(initial=0) + learner.rule.history + 1:
        raise InputError(f"{origin}: the counters do not belong to a ring of {length} records")
    return State(learner, {name: np.require(arrays[name], requirements=["C", "W"]) for name in fresh})
