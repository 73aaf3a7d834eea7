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
    """The optimiser's and the rule's arrays: opt_W (n, slots, row_width), opt_C (M, slots, readout_width), rates per
    column, constants, memory and scratch. `flags` = (advances, learns recurrent weights, updates per bin at most).
    """

    opt_W: np.ndarray
    opt_C: np.ndarray
    rate_W: np.ndarray
    rate_C: np.ndarray
    hyper: np.ndarray
    constants: np.ndarray
    memory: np.ndarray
    work: Any
    flags: np.ndarray


# Positions in the counters array (int64).
BIN, RECORDS, PROCESSED, FIRST, UPDATES, DROPPED, NOT_FINITE = range(7)
N_COUNTERS = 7


def forward(net, z, a, before, after) -> None:
    """Placeholder: write the gate activations a = W z and the new state."""


def readout(net, after, x, u, y) -> None:
    """Placeholder: write the readout's features u and its output y."""


def prepare(net, ring, slot, first, last, constants, memory, work, u, e, q) -> None:
    """Placeholder: form u, e and q of one record (credit.base)."""


def row(i, net, ring, slot, constants, memory, work, q, g) -> None:
    """Placeholder: advance the memory of unit i and write the gradient of its weights (credit.base)."""


def update(theta, g, state, rate, hyper, t) -> None:
    """Placeholder: change one row of weights (optimizers)."""


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
    length = ring.z.shape[0]
    z_averaged = np.empty(ring.z.shape[1])
    a_averaged = np.empty(ring.a.shape[1:])
    after_averaged = np.empty(state.shape)
    u, e, q = np.empty(net.C.shape[1]), np.empty(n_outputs), np.empty(state.shape)
    g, g_readout = np.empty(net.W.shape[1]), np.empty(net.C.shape[1])
    advances, learns = learning.flags[0] != 0, learning.flags[1] != 0
    averages = averaged.decay[0] > 0.0
    share = 1.0 - averaged.decay[0]
    offset = counters[BIN]
    for t in range(T):
        if stream.reset[t]:
            clear_states(state)
            clear_states(averaged.state)
            learning.memory[:] = 0.0
            counters[DROPPED] += counters[RECORDS] - counters[PROCESSED]
            counters[PROCESSED] = counters[RECORDS]
            counters[FIRST] = counters[RECORDS]
        if stream.observed[t]:
            x = stream.X[t]
            slot = counters[RECORDS] % length
            z = ring.z[slot]
            copy(z[:m], x)
            z[m] = 1.0
            copy(z[m + 1 :], state[0])
            copy_states(ring.before[slot], state)
            forward(net, z, ring.a[slot], ring.before[slot], ring.after[slot])
            copy_states(state, ring.after[slot])
            readout(net, state, x, ring.features[slot], ring.prediction[slot])
            copy(output, ring.prediction[slot])
            copy(ring.label[slot], stream.Y[t])
            copy(ring.weight[slot], stream.weight[t])
            ring.arrives[slot] = stream.arrives[t] + offset
            counters[RECORDS] += 1
            if averages:
                copy(z_averaged[: m + 1], z[: m + 1])
                copy(z_averaged[m + 1 :], averaged.state[0])
                forward(averaged.net, z_averaged, a_averaged, averaged.state, after_averaged)
                copy_states(averaged.state, after_averaged)
                readout(averaged.net, averaged.state, x, u, averaged.output)
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
                net, ring, slot, counters[FIRST], record, learning.constants, learning.memory, learning.work, u, e, q
            )
            if labelled:
                counters[UPDATES] += 1
            n_update = counters[UPDATES]
            if learns:
                for i in range(n_units):
                    row(i, net, ring, slot, learning.constants, learning.memory, learning.work, q, g)
                    if labelled:
                        update(net.W[i], g, learning.opt_W[i], learning.rate_W, learning.hyper, n_update)
                        if averages:
                            approach(averaged.net.W[i], net.W[i], share)
            if labelled:
                for o in range(n_outputs):
                    # A readout row without a label has no gradient and no update: its second moments must not fade.
                    if ring.weight[slot, o] > 0.0:
                        for j in range(u.shape[0]):
                            g_readout[j] = e[o] * u[j]
                        update(net.C[o], g_readout, learning.opt_C[o], learning.rate_C, learning.hyper, n_update)
                    if averages:
                        approach(averaged.net.C[o], net.C[o], share)
        counters[BIN] += 1
