"""The loop: predict a bin, then learn from the labels that have arrived.

`loop` is written once, with `sweep`, its pass over the rows of W. Their parts – the functions below – are placeholders
that state what each must do; a backend binds them to one (cell, rule, optimiser, loss) and compiles the whole, or
leaves it in plain Python.
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
    (n_groups, slots) or what is kept of whole matrices, learning rates per column and scratch for the scheduled ones,
    constants, memory, the rule's random generator (1,) uint64 and scratch. `groups_W` and `groups_C` number the weight
    group of every column, `learns` (n_groups,) says which groups learn; `parts_W` and `parts_C` (n_parts, 2) tell which
    columns make up a matrix of their own. `schedule` belongs to `pace`; `decay` is decoupled weight decay, `clip` the
    largest gradient norm (0 for none). `flags` = (advances, learns W, updates per bin at most, has a schedule); where
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
    parts_W: np.ndarray
    parts_C: np.ndarray
    schedule: np.ndarray
    decay: float
    clip: float
    gathered_W: np.ndarray
    gathered_C: np.ndarray
    flags: np.ndarray


# Whether gradients of all rows are formed before the first one moves: a constant of each bound loop, so that a loop
# which does not gather is not compiled with what gathering takes.
GATHERS = True
# Whether they are then changed matrix by matrix.
PRECONDITIONS = True

# Positions in the counters array (int64).
BIN, RECORDS, PROCESSED, FIRST, UPDATES, DROPPED, NOT_FINITE = range(7)
N_COUNTERS = 7


def hear(net, z, a, i) -> None:
    """Placeholder: write the first-stage gate activations of unit i (credit.base)."""


def finish(net, z, a, before, after) -> None:
    """Placeholder: write what is left of the activations, and the new state (credit.base)."""


def forward(net, z, a, before, after) -> None:
    """Placeholder: `hear` for every unit, then `finish`."""


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


def precondition(G, there, parts, moments, hyper, t) -> None:
    """Placeholder: change the gradient of a whole matrix (optimizers)."""


def pace(t, schedule) -> float:
    """Placeholder: the factor on the learning rate at update t (schedules)."""
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


def sweep(net, averaged, ring, learning, slot, record, q, g, squares, update_number, forms, moves, z, a, hears):
    """One pass over the rows of W: form the gradient of a record, move the weights, and hear the next bin.

    The three are done together because each row is then fetched from memory once: the activations of the next bin cost
    nothing more than arithmetic. `squares` (5, n_groups) gathers the sums of squares of gradients and weights, and the
    counts, of every group; row 3 holds the factors that come of them.
    """
    averages, share = averaged.decay[0] > 0.0, 1.0 - averaged.decay[0]
    for i in range(net.W.shape[0]):
        if GATHERS:
            g = learning.gathered_W[i]
        if forms:
            row(i, net, ring, slot, record, learning.constants, learning.memory, learning.work, q, g)
            if GATHERS:
                gather_squares(g, learning.groups_W, squares[0], squares[2])
                gather_squares(net.W[i], learning.groups_W, squares[1], squares[4])
        if moves:
            if GATHERS and not PRECONDITIONS:
                stretch(g, learning.groups_W, squares[3])
            if learning.decay > 0.0:
                shrink(net.W[i], learning.now_W, learning.decay)
            update(net.W[i], g, learning.opt_W[i], learning.now_W, learning.hyper, update_number)
            if averages:
                approach(averaged.net.W[i], net.W[i], share)
        if hears:
            hear(net, z, a, i)


def loop(stream, net, averaged, ring, learning, state, output, counters, predictions):
    """Run over every bin of `stream`, changing all arrays in place; predictions (T, M) are written.

    The pass over W that the last record of a bin asks for is put off until the next bin's input is there, where there
    is one: a bin is heard by weights that have just been moved, as it would be otherwise.
    """
    T, m = stream.X.shape
    n_units, n_outputs = net.W.shape[0], net.C.shape[0]
    length, width = ring.z.shape
    one = width - 1 - n_units
    z_averaged = np.empty(width)
    a_averaged = np.empty(ring.a.shape[1:])
    after_averaged = np.empty(state.shape)
    u, e, q = np.empty(net.C.shape[1]), np.empty(n_outputs), np.empty(state.shape)
    g, g_readout = np.empty(net.W.shape[1]), np.empty(net.C.shape[1])
    squares, everywhere = np.zeros((5, learning.learns.shape[0])), np.ones(n_units)
    advances, learns = learning.flags[0] != 0, learning.flags[1] != 0
    scheduled = learning.flags[3] != 0
    averages, share = averaged.decay[0] > 0.0, 1.0 - averaged.decay[0]
    offset = counters[BIN]
    # Not written as True and False: the compiler would make a version of `sweep` for each.
    yes, no = T >= 0, T < 0
    # What the pass that was put off has to do, and for which record.
    forms, moves, record, slot = no, no, counters[PROCESSED], counters[PROCESSED] % length
    for t in range(T):
        if stream.reset[t]:
            clear_states(state)
            clear_states(averaged.state)
            learning.memory[:] = 0.0
            # What the last stretch predicted is not held into this one.
            for o in range(n_outputs):
                output[o] = averaged.output[o] = 0.0
            while counters[PROCESSED] < counters[RECORDS]:
                waits = counters[PROCESSED] % length
                labelled = False
                for o in range(n_outputs):
                    if ring.weight[waits, o] > 0.0:
                        labelled = True
                if labelled:
                    counters[DROPPED] += 1
                counters[PROCESSED] += 1
            counters[FIRST] = counters[RECORDS]
        if stream.observed[t]:
            here = counters[RECORDS] % length
            z = ring.z[here]
            copy(z[one - m : one], stream.X[t])
            z[one] = 1.0
            copy(z[one + 1 :], state[0])
            copy_states(ring.before[here], state)
            sweep(
                net, averaged, ring, learning, slot, record, q, g, squares, counters[UPDATES], forms, moves,
                z, ring.a[here], yes,
            )  # fmt: skip
            forms, moves = no, no
            finish(net, z, ring.a[here], ring.before[here], ring.after[here])
            copy_states(state, ring.after[here])
            readout(net, state, z, ring.features[here], ring.prediction[here])
            copy(output, ring.prediction[here])
            copy(ring.label[here], stream.Y[t])
            copy(ring.weight[here], stream.weight[t])
            ring.arrives[here] = stream.arrives[t] + offset
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
            if ring.arrives[counters[PROCESSED] % length] > counters[BIN]:
                break
            if forms or moves:
                # Another record of this bin: the one before cannot wait.
                sweep(
                    net, averaged, ring, learning, slot, record, q, g, squares, counters[UPDATES], forms, moves,
                    ring.z[slot], a_averaged, no,
                )  # fmt: skip
                forms, moves = no, no
            record = counters[PROCESSED]
            slot = record % length
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
            forms, moves = learns, learns and labelled
            if not labelled:
                continue
            counters[UPDATES] += 1
            if scheduled:
                factor = pace(counters[UPDATES], learning.schedule)
                for j in range(learning.now_W.shape[0]):
                    learning.now_W[j] = factor * learning.rate_W[j]
                for j in range(learning.now_C.shape[0]):
                    learning.now_C[j] = factor * learning.rate_C[j]
            if GATHERS:
                clear_states(squares)
                if forms:
                    sweep(
                        net, averaged, ring, learning, slot, record, q, g, squares, counters[UPDATES], yes, no,
                        ring.z[slot], a_averaged, no,
                    )  # fmt: skip
                    forms = no
                for o in range(n_outputs):
                    if ring.weight[slot, o] > 0.0:
                        g_readout = learning.gathered_C[o]
                        for j in range(u.shape[0]):
                            g_readout[j] = e[o] * u[j]
                        gather_squares(g_readout, learning.groups_C, squares[0], squares[2])
                        gather_squares(net.C[o], learning.groups_C, squares[1], squares[4])
                clipped, total = 1.0, 0.0
                for group in range(squares.shape[1]):
                    if learning.learns[group] != 0.0:
                        total += squares[0, group]
                if learning.clip > 0.0:
                    clipped = min(1.0, learning.clip / (np.sqrt(total) + 1e-6))  # as torch's clip_grad_norm_
                for group in range(squares.shape[1]):
                    squares[3, group] = clipped
                    squares[0, group] *= clipped * clipped
                rescale(
                    squares[1],
                    squares[0],
                    squares[2],
                    learning.opt_groups,
                    learning.hyper,
                    counters[UPDATES],
                    squares[3],
                )
            if PRECONDITIONS:
                split = n_units * learning.parts_W.shape[0] + net.W.shape[1]
                moments, number = learning.opt_groups[0], counters[UPDATES]
                if learns:
                    for i in range(n_units):
                        stretch(learning.gathered_W[i], learning.groups_W, squares[3])
                    precondition(
                        learning.gathered_W, everywhere, learning.parts_W, moments[:split], learning.hyper, number
                    )
                for o in range(n_outputs):
                    stretch(learning.gathered_C[o], learning.groups_C, squares[3])
                precondition(
                    learning.gathered_C, ring.weight[slot], learning.parts_C, moments[split:], learning.hyper, number
                )
            for o in range(n_outputs):
                # A readout row without a label has no gradient and no update: its second moments must not fade.
                if ring.weight[slot, o] > 0.0:
                    if GATHERS:
                        g_readout = learning.gathered_C[o]
                        if not PRECONDITIONS:
                            stretch(g_readout, learning.groups_C, squares[3])
                    else:
                        for j in range(u.shape[0]):
                            g_readout[j] = e[o] * u[j]
                    if learning.decay > 0.0:
                        shrink(net.C[o], learning.now_C, learning.decay)
                    update(net.C[o], g_readout, learning.opt_C[o], learning.now_C, learning.hyper, counters[UPDATES])
                if averages:
                    approach(averaged.net.C[o], net.C[o], share)
        if (forms or moves) and (t + 1 == T or stream.reset[t + 1] or not stream.observed[t + 1]):
            sweep(
                net, averaged, ring, learning, slot, record, q, g, squares, counters[UPDATES], forms, moves,
                ring.z[slot], a_averaged, no,
            )  # fmt: skip
            forms, moves = no, no
        counters[BIN] += 1
