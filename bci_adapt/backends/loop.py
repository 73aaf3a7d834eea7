"""The loop: predict a bin, then learn from the labels that have arrived.

`loop` is written once. Its parts – the functions below – are placeholders that state what each must do; a backend binds
`loop` to the parts of one (cell, rule, optimiser, loss) and compiles it, or leaves it in plain Python.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Stream(NamedTuple):
    """What comes in, bin by bin: X (T, m), Y and weight (T, M), arrives (T,) relative to the first bin, flags (T,)."""

    X: np.ndarray
    Y: np.ndarray
    weight: np.ndarray
    arrives: np.ndarray
    observed: np.ndarray
    reset: np.ndarray


class Averaged(NamedTuple):
    """An exponential mean of the weights with a hidden state of its own; `decay` (1,) is 0 where it is not kept."""

    net: Any
    state: np.ndarray
    output: np.ndarray
    decay: np.ndarray


class Learning(NamedTuple):
    """The optimiser's and the rule's arrays: opt_W (n, slots, row_width), opt_C (M, slots, readout_width), opt_groups
    (4, slots), learning rates per column and scratch for the scheduled ones, constants, memory, the rule's random
    generator (1,) uint64 and scratch. `groups_W` and `groups_C` number the weight group of every column, `learns`
    (4,) says which groups learn. `schedule` belongs to `pace`; `decay` is decoupled weight decay, `clip` the largest
    gradient norm (0 for none). `flags` = (advances, learns W, updates per bin at most, has a schedule); where
    the loop gathers, gradients of all rows are formed first, into `gathered_W` and `gathered_C`, and rescaled.
    """

    opt_W: np.ndarray
    opt_C: np.ndarray
    opt_groups: np.ndarray
    rate_W: np.ndarray
    rate_C: np.ndarray
    now_W: np.ndarray
    now_C: np.ndarray
    hyper: np.ndarray
    constants: np.ndarray
    memory: np.ndarray
    generator: np.ndarray
    work: Any
    groups_W: np.ndarray
    groups_C: np.ndarray
    learns: np.ndarray
    schedule: np.ndarray
    decay: float
    clip: float
    gathered_W: np.ndarray
    gathered_C: np.ndarray
    flags: np.ndarray


# Whether gradients of all rows are formed before the first one moves: a constant of each bound loop, so that a loop
# which does not gather is not compiled with what gathering takes.
GATHERS = True

# Positions in the counters array (int64).
BIN, RECORDS, PROCESSED, FIRST, UPDATES, DROPPED, NOT_FINITE = range(7)
N_COUNTERS = 7


def forward(net, z, a, before, after) -> None:
    """Placeholder: write the gate activations a = W z and the new state."""


def readout(net, after, z, u, y) -> None:
    """Placeholder: write the readout's features u and its output y."""


def prepare(net, ring, slot, first, last, constants, memory, generator, work, u, e, q) -> None:
    """Placeholder: form u, e and q of one record (credit.base)."""


def row(i, net, ring, slot, last, constants, memory, work, q, g) -> None:
    """Placeholder: advance the memory of unit i and write the gradient of its weights (credit.base)."""


def update(theta, g, state, rate, hyper, t) -> None:
    """Placeholder: change one row of weights (optimizers)."""


def rescale(theta_squares, g_squares, counts, state, hyper, t, factors) -> None:
    """Placeholder: the factor by which the gradient of each weight group is multiplied (optimizers)."""


def pace(t, schedule) -> float:
    """Placeholder: the factor on the learning rate at update t (optimizers)."""
    return 1.0


def shrink(theta, rate, decay) -> None:
    """Placeholder: theta ← (1 − rate · decay) theta (optimizers)."""


def gather_squares(values, groups, squares, counts) -> None:
    """Placeholder: add the squares of a row (w,) and its number of columns to those of their groups (optimizers)."""


def stretch(g, groups, factors) -> None:
    """Placeholder: multiply a row (w,) by the factors of its groups (optimizers)."""


def copy(target, source) -> None:
    """Placeholder: target (w,) ← source (w,)."""


def copy_states(target, source) -> None:
    """Placeholder: target (k, n) ← source (k, n)."""


def clear_states(target) -> None:
    """Placeholder: target (k, n) ← 0."""


def approach(mean, current, share) -> None:
    """Placeholder: mean (w,) ← mean + share (current − mean)."""


def loop(stream, net, averaged, ring, learning, state, output, counters, predictions):
    """Run over every bin of `stream`, changing all arrays in place; predictions (T, M) are written."""
    T, m = stream.X.shape
    n_units, n_outputs = net.W.shape[0], net.C.shape[0]
    length, width = ring.z.shape
    one = width - 1 - n_units
    z_averaged = np.empty(width)
    a_averaged = np.empty(ring.a.shape[1:])
    after_averaged = np.empty(state.shape)
    u, e, q = np.empty(net.C.shape[1]), np.empty(n_outputs), np.empty(state.shape)
    g, g_readout = np.empty(net.W.shape[1]), np.empty(net.C.shape[1])
    theta_squares, g_squares, factors = np.empty(4), np.empty(4), np.empty(4)
    counts, spare = np.empty(4), np.empty(4)
    advances, learns = learning.flags[0] != 0, learning.flags[1] != 0
    scheduled = learning.flags[3] != 0
    rate_W, rate_C = learning.now_W, learning.now_C
    averages = averaged.decay[0] > 0.0
    share = 1.0 - averaged.decay[0]
    offset = counters[BIN]
    for t in range(T):
        if stream.reset[t]:
            clear_states(state)
            clear_states(averaged.state)
            learning.memory[:] = 0.0
            # What the last stretch predicted is not held into this one.
            for o in range(n_outputs):
                output[o] = averaged.output[o] = 0.0
            while counters[PROCESSED] < counters[RECORDS]:
                slot = counters[PROCESSED] % length
                labelled = False
                for o in range(n_outputs):
                    if ring.weight[slot, o] > 0.0:
                        labelled = True
                if labelled:
                    counters[DROPPED] += 1
                counters[PROCESSED] += 1
            counters[FIRST] = counters[RECORDS]
        if stream.observed[t]:
            slot = counters[RECORDS] % length
            z = ring.z[slot]
            copy(z[one - m : one], stream.X[t])
            z[one] = 1.0
            copy(z[one + 1 :], state[0])
            copy_states(ring.before[slot], state)
            forward(net, z, ring.a[slot], ring.before[slot], ring.after[slot])
            copy_states(state, ring.after[slot])
            readout(net, state, z, ring.features[slot], ring.prediction[slot])
            copy(output, ring.prediction[slot])
            copy(ring.label[slot], stream.Y[t])
            copy(ring.weight[slot], stream.weight[t])
            ring.arrives[slot] = stream.arrives[t] + offset
            counters[RECORDS] += 1
            if averages:
                copy(z_averaged[: one + 1], z[: one + 1])
                copy(z_averaged[one + 1 :], averaged.state[0])
                forward(averaged.net, z_averaged, a_averaged, averaged.state, after_averaged)
                copy_states(averaged.state, after_averaged)
                readout(averaged.net, averaged.state, z_averaged, u, averaged.output)
        if averages:
            copy(predictions[t], averaged.output)
        else:
            copy(predictions[t], output)

        for _ in range(learning.flags[2]):
            if counters[PROCESSED] == counters[RECORDS]:
                break
            record = counters[PROCESSED]
            slot = record % length
            if ring.arrives[slot] > counters[BIN]:
                break
            counters[PROCESSED] += 1
            labelled = False
            for o in range(n_outputs):
                if ring.weight[slot, o] > 0.0:
                    labelled = True
            if not labelled and not advances:
                continue
            prepare(
                net, ring, slot, counters[FIRST], record,
                learning.constants, learning.memory, learning.generator, learning.work, u, e, q,
            )  # fmt: skip
            if labelled:
                counters[UPDATES] += 1
                if scheduled:
                    factor = pace(counters[UPDATES], learning.schedule)
                    for j in range(rate_W.shape[0]):
                        rate_W[j] = factor * learning.rate_W[j]
                    for j in range(rate_C.shape[0]):
                        rate_C[j] = factor * learning.rate_C[j]
            n_update = counters[UPDATES]
            # Row by row: form the gradient, move the weights. Where the step depends on norms of whole groups, a first
            # pass forms and keeps all gradients, and a second one moves. One call site each keeps compilation short.
            if GATHERS:
                for group in range(4):
                    theta_squares[group] = g_squares[group] = counts[group] = 0.0
            for stage in range(2 if GATHERS else 1):
                forms, moves = stage == 0, labelled and (stage == 1 or not GATHERS)
                if learns:
                    for i in range(n_units):
                        if GATHERS:
                            g = learning.gathered_W[i]
                        if forms:
                            row(i, net, ring, slot, record, learning.constants, learning.memory, learning.work, q, g)
                            if GATHERS:
                                gather_squares(g, learning.groups_W, g_squares, counts)
                                gather_squares(net.W[i], learning.groups_W, theta_squares, spare)
                        if moves:
                            if GATHERS:
                                stretch(g, learning.groups_W, factors)
                            if learning.decay > 0.0:
                                shrink(net.W[i], rate_W, learning.decay)
                            update(net.W[i], g, learning.opt_W[i], rate_W, learning.hyper, n_update)
                            if averages:
                                approach(averaged.net.W[i], net.W[i], share)
                if not labelled:
                    break
                for o in range(n_outputs):
                    # A readout row without a label has no gradient and no update: its second moments must not fade.
                    if ring.weight[slot, o] > 0.0:
                        if GATHERS:
                            g_readout = learning.gathered_C[o]
                        if forms:
                            for j in range(u.shape[0]):
                                g_readout[j] = e[o] * u[j]
                            if GATHERS:
                                gather_squares(g_readout, learning.groups_C, g_squares, counts)
                                gather_squares(net.C[o], learning.groups_C, theta_squares, spare)
                        if moves:
                            if GATHERS:
                                stretch(g_readout, learning.groups_C, factors)
                            if learning.decay > 0.0:
                                shrink(net.C[o], rate_C, learning.decay)
                            update(net.C[o], g_readout, learning.opt_C[o], rate_C, learning.hyper, n_update)
                    if moves and averages:
                        approach(averaged.net.C[o], net.C[o], share)
                if GATHERS:  # noqa: SIM102  (a condition of its own, so that the constant prunes what it guards)
                    if forms:
                        clipped, total = 1.0, 0.0
                        for group in range(4):
                            if learning.learns[group] != 0.0:
                                total += g_squares[group]
                        if learning.clip > 0.0:
                            clipped = min(1.0, learning.clip / (np.sqrt(total) + 1e-6))  # as torch's clip_grad_norm_
                        for group in range(4):
                            factors[group] = clipped
                            g_squares[group] *= clipped * clipped
                        rescale(
                            theta_squares, g_squares, counts, learning.opt_groups, learning.hyper, n_update, factors
                        )
        counters[BIN] += 1
