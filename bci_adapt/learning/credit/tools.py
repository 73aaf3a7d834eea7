"""The algebra that credit rules share, built for one cell: activations, errors and Jacobians (`Tools`).

Every function is plain Python that also compiles; each builder below hands over the few it makes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bci_adapt.learning.cells.base import Cell
from bci_adapt.learning.credit.base import Tools

# Column i of an array as a tuple, and the reverse. A compiled tuple has a fixed length, so each number of rows has its
# own function; an index that is not written out would keep the loop over units from being vectorised.
_COLUMN: dict[int, Callable] = {
    1: lambda v, i: (v[0, i],),
    2: lambda v, i: (v[0, i], v[1, i]),
    3: lambda v, i: (v[0, i], v[1, i], v[2, i]),
    4: lambda v, i: (v[0, i], v[1, i], v[2, i], v[3, i]),
    5: lambda v, i: (v[0, i], v[1, i], v[2, i], v[3, i], v[4, i]),
    6: lambda v, i: (v[0, i], v[1, i], v[2, i], v[3, i], v[4, i], v[5, i]),
    7: lambda v, i: (v[0, i], v[1, i], v[2, i], v[3, i], v[4, i], v[5, i], v[6, i]),
    8: lambda v, i: (v[0, i], v[1, i], v[2, i], v[3, i], v[4, i], v[5, i], v[6, i], v[7, i]),
}


def _store_1(v, i, values):
    v[0, i] = values[0]


def _store_2(v, i, values):
    v[0, i], v[1, i] = values[0], values[1]


def _store_3(v, i, values):
    v[0, i], v[1, i], v[2, i] = values[0], values[1], values[2]


def _store_4(v, i, values):
    v[0, i], v[1, i], v[2, i], v[3, i] = values[0], values[1], values[2], values[3]


def _store_5(v, i, values):
    v[0, i], v[1, i], v[2, i], v[3, i], v[4, i] = values[0], values[1], values[2], values[3], values[4]


def _store_6(v, i, values):
    v[0, i], v[1, i], v[2, i] = values[0], values[1], values[2]
    v[3, i], v[4, i], v[5, i] = values[3], values[4], values[5]


def _store_7(v, i, values):
    v[0, i], v[1, i], v[2, i], v[3, i] = values[0], values[1], values[2], values[3]
    v[4, i], v[5, i], v[6, i] = values[4], values[5], values[6]


def _store_8(v, i, values):
    v[0, i], v[1, i], v[2, i], v[3, i] = values[0], values[1], values[2], values[3]
    v[4, i], v[5, i], v[6, i], v[7, i] = values[4], values[5], values[6], values[7]


_STORE: dict[int, Callable] = dict(
    enumerate((_store_1, _store_2, _store_3, _store_4, _store_5, _store_6, _store_7, _store_8), start=1)
)


# Plain loops over one and two axes: numba compiles a slice assignment into general broadcasting, which takes long.


def _copy(target, source) -> None:
    """target (w,) ← source (w,)."""
    for j in range(target.shape[0]):
        target[j] = source[j]


def _copy_states(target, source) -> None:
    """target (k, n) ← source (k, n)."""
    for k in range(target.shape[0]):
        for i in range(target.shape[1]):
            target[k, i] = source[k, i]


def _clear_states(target) -> None:
    """target (k, n) ← 0."""
    for k in range(target.shape[0]):
        for i in range(target.shape[1]):
            target[k, i] = 0.0


def _approach(mean, current, share) -> None:
    """mean (w,) ← mean + share (current − mean)."""
    for j in range(mean.shape[0]):
        mean[j] += share * (current[j] - mean[j])


def _scramble(x):
    """The next number after x ≠ 0, both uint64: one step of xorshift64 (Marsaglia 2003)."""
    x = x ^ (x << np.uint64(13))
    x = x ^ (x >> np.uint64(7))
    return x ^ (x << np.uint64(17))


def make_tools(cell: Cell, xp: Any, loss: str, wrap: Callable) -> Tools:
    """Build the shared functions for one cell; `wrap` compiles each (or returns it as it is)."""
    hear, finish, forward = _make_forward(cell, xp, wrap)
    error, feed_back, recorded = _make_errors(cell, loss, wrap)
    pull, back = _make_backward(cell, wrap)
    return Tools(
        wrap=wrap,
        hear=hear,
        finish=finish,
        forward=forward,
        partials=_make_partials(cell, xp, wrap),
        readout=_make_readout(cell, wrap),
        error=error,
        feed_back=feed_back,
        recorded=recorded,
        pull=pull,
        back=back,
        jacobian=_make_jacobian(cell, wrap),
        own=_make_own(cell, wrap),
        scramble=wrap(_scramble),
        copy=wrap(_copy),
        copy_states=wrap(_copy_states),
        clear_states=wrap(_clear_states),
        approach=wrap(_approach),
    )


def _make_forward(cell: Cell, xp: Any, wrap: Callable) -> tuple[Callable, Callable, Callable]:
    """hear, finish and forward."""
    cell_update, first_stage = wrap(cell.make(xp)[0]), cell.n_first
    gates_of, slots_of = wrap(_COLUMN[len(cell.gates)]), wrap(_COLUMN[len(cell.slots)])
    store_slots = wrap(_STORE[len(cell.slots)])

    def activate(net, z, a, i, begin, end):
        for gate in range(begin, end):
            start, width, row = net.blocks[gate, 0], net.blocks[gate, 1], net.blocks[gate, 2]
            read, weights = z[start : start + width], net.W[i, row : row + width]
            total = 0.0
            for j in range(width):
                total += weights[j] * read[j]
            a[gate, i] = total

    activate_c = wrap(activate)

    def hear(net, z, a, i):
        activate_c(net, z, a, i, 0, first_stage)

    hear_c = wrap(hear)

    def step(a, before, after):
        for i in range(a.shape[1]):
            store_slots(after, i, cell_update(gates_of(a, i), slots_of(before, i)))

    step_c = wrap(step)

    if cell.make_mid is None:

        def finish(net, z, a, before, after):
            step_c(a, before, after)

    else:
        mid = wrap(cell.make_mid(xp)[0])

        def finish(net, z, a, before, after):
            for i in range(a.shape[1]):
                z[i] = mid(gates_of(a, i), slots_of(before, i))
            for i in range(a.shape[1]):
                activate_c(net, z, a, i, first_stage, a.shape[0])
            step_c(a, before, after)

    finish_c = wrap(finish)

    def forward(net, z, a, before, after):
        for i in range(a.shape[1]):
            hear_c(net, z, a, i)
        finish_c(net, z, a, before, after)

    return hear_c, finish_c, wrap(forward)


def _make_partials(cell: Cell, xp: Any, wrap: Callable) -> Callable:
    """partials, of one stage or two."""
    cell_partials = wrap(cell.make(xp)[1])
    gates_of, slots_of = wrap(_COLUMN[len(cell.gates)]), wrap(_COLUMN[len(cell.slots)])
    store_gates, store_slots = wrap(_STORE[len(cell.gates)]), wrap(_STORE[len(cell.slots)])

    if len(cell.slots) == 1:

        def local(a, before, after, da, ds):
            da_0, ds_0 = da[0], ds[0]
            for i in range(a.shape[1]):
                by_gate, by_slot = cell_partials(gates_of(a, i), slots_of(before, i), slots_of(after, i))
                store_gates(da_0, i, by_gate[0])
                store_slots(ds_0, i, by_slot[0])

    else:

        def local(a, before, after, da, ds):
            for i in range(a.shape[1]):
                by_gate, by_slot = cell_partials(gates_of(a, i), slots_of(before, i), slots_of(after, i))
                for k in range(da.shape[0]):
                    store_gates(da[k], i, by_gate[k])
                    store_slots(ds[k], i, by_slot[k])

    local_c = wrap(local)

    if cell.make_mid is None:

        def partials(a, before, after, da, ds, va, vs):
            local_c(a, before, after, da, ds)

    else:
        mid_partials = wrap(cell.make_mid(xp)[1])

        def partials(a, before, after, da, ds, va, vs):
            local_c(a, before, after, da, ds)
            for i in range(a.shape[1]):
                by_gate, by_slot = mid_partials(gates_of(a, i), slots_of(before, i))
                for gate in range(va.shape[0]):
                    va[gate, i] = by_gate[gate]
                for k in range(vs.shape[0]):
                    vs[k, i] = by_slot[k]

    return wrap(partials)


def _make_readout(cell: Cell, wrap: Callable) -> Callable:
    """readout."""
    features, has_mid = cell.features, cell.make_mid is not None

    def readout(net, after, z, u, y):
        n = after.shape[1]
        first_input = n if has_mid else 0
        for f in range(len(features)):
            for i in range(n):
                u[f * n + i] = after[features[f], i]
        one = len(features) * n
        u[one] = 1.0
        for j in range(u.shape[0] - one - 1):
            u[one + 1 + j] = z[first_input + j]
        for o in range(net.C.shape[0]):
            total = 0.0
            for j in range(u.shape[0]):
                total += net.C[o, j] * u[j]
            y[o] = total

    return wrap(readout)


def _make_errors(cell: Cell, loss: str, wrap: Callable) -> tuple[Callable, Callable, Callable]:
    """error, feed_back and recorded."""
    features, cross_entropy = cell.features, loss == "cross_entropy"

    def error(prediction, label, weight, e):
        # Squared loss E = 1/2 Σ w (ŷ − y)²; cross-entropy E = −Σ w y log softmax(ŷ), with Σ y = 1.
        if cross_entropy:
            top = prediction[0]
            for o in range(1, prediction.shape[0]):
                top = max(top, prediction[o])
            total = 0.0
            for o in range(prediction.shape[0]):
                total += np.exp(prediction[o] - top)
            for o in range(prediction.shape[0]):
                if weight[o] > 0.0:
                    e[o] = weight[o] * (np.exp(prediction[o] - top) / total - label[o])
                else:
                    e[o] = 0.0
        else:
            for o in range(prediction.shape[0]):
                if weight[o] > 0.0:
                    e[o] = weight[o] * (prediction[o] - label[o])
                else:
                    e[o] = 0.0

    def feed_back(net, e, q):
        n = q.shape[1]
        for k in range(q.shape[0]):
            for i in range(n):
                q[k, i] = 0.0
        for o in range(e.shape[0]):
            if e[o] != 0.0:
                for f in range(len(features)):
                    for i in range(n):
                        q[features[f], i] += e[o] * net.B[o, f * n + i]

    error_c, feed_back_c = wrap(error), wrap(feed_back)

    def recorded(net, ring, slot, u, e, q):
        seen = ring.features[slot]
        for j in range(u.shape[0]):
            u[j] = seen[j]
        error_c(ring.prediction[slot], ring.label[slot], ring.weight[slot], e)
        feed_back_c(net, e, q)

    return error_c, feed_back_c, wrap(recorded)


def _make_backward(cell: Cell, wrap: Callable) -> tuple[Callable, Callable]:
    """pull and back."""
    first_stage, has_mid = cell.n_first, cell.make_mid is not None

    def pull(net, q, da, va, p, r):
        n = q.shape[1]
        for gate in range(p.shape[0]):
            for i in range(n):
                p[gate, i] = q[0, i] * da[0, gate, i]
            for k in range(1, q.shape[0]):
                for i in range(n):
                    p[gate, i] += q[k, i] * da[k, gate, i]
        if has_mid:
            for i in range(n):
                r[i] = 0.0
            for gate in range(first_stage, p.shape[0]):
                begin = net.blocks[gate, 2]
                for i in range(n):
                    weights, factor = net.W[i, begin : begin + n], p[gate, i]
                    for j in range(n):
                        r[j] += factor * weights[j]
            for gate in range(first_stage):
                for i in range(n):
                    p[gate, i] += r[i] * va[gate, i]

    def back(net, p, r, q, ds, vs, earlier):
        n = q.shape[1]
        for j in range(q.shape[0]):
            for i in range(n):
                earlier[j, i] = 0.0
            for k in range(q.shape[0]):
                for i in range(n):
                    earlier[j, i] += q[k, i] * ds[k, j, i]
            if has_mid:
                for i in range(n):
                    earlier[j, i] += r[i] * vs[j, i]
        target = earlier[0]
        for gate in range(net.blocks.shape[0]):
            if net.blocks[gate, 3] >= 0:
                begin = net.blocks[gate, 2] + net.blocks[gate, 3]
                for i in range(n):
                    weights, factor = net.W[i, begin : begin + n], p[gate, i]
                    for j in range(n):
                        target[j] += factor * weights[j]

    return wrap(pull), wrap(back)


def _make_jacobian(cell: Cell, wrap: Callable) -> Callable:
    """jacobian."""
    first_stage, has_mid = cell.n_first, cell.make_mid is not None

    def jacobian(net, da, ds, va, vs, D):
        slots, n = ds.shape[0], ds.shape[2]
        for k in range(slots):
            for i in range(n):
                target = D[k * n + i]
                for j in range(slots * n):
                    target[j] = 0.0
                for gate in range(net.blocks.shape[0]):
                    factor = da[k, gate, i]
                    if net.blocks[gate, 3] >= 0:
                        begin = net.blocks[gate, 2] + net.blocks[gate, 3]
                        weights = net.W[i, begin : begin + n]
                        for j in range(n):
                            target[j] += factor * weights[j]
                    if has_mid and net.blocks[gate, 4] >= 0:
                        # through v_l = ρ(a_l, s_l), and through the h that its gates read
                        begin = net.blocks[gate, 2] + net.blocks[gate, 4]
                        for unit in range(n):
                            through = factor * net.W[i, begin + unit]
                            for j in range(slots):
                                target[j * n + unit] += through * vs[j, unit]
                            for other in range(first_stage):
                                if net.blocks[other, 3] >= 0:
                                    at = net.blocks[other, 2] + net.blocks[other, 3]
                                    weights, share = net.W[unit, at : at + n], through * va[other, unit]
                                    for j in range(n):
                                        target[j] += share * weights[j]
                for j in range(slots):
                    target[j * n + i] += ds[k, j, i]

    return wrap(jacobian)


def _make_own(cell: Cell, wrap: Callable) -> Callable:
    """own."""
    first_stage = cell.n_first

    def own(net, da, ds, va, vs, own_da, own_ds):
        slots, n = ds.shape[0], ds.shape[2]
        for k in range(slots):
            for gate in range(da.shape[1]):
                for i in range(n):
                    own_da[k, gate, i] = da[k, gate, i]
            for j in range(slots):
                for i in range(n):
                    own_ds[k, j, i] = ds[k, j, i]
            for gate in range(first_stage):
                if net.blocks[gate, 3] >= 0:
                    begin = net.blocks[gate, 2] + net.blocks[gate, 3]
                    for i in range(n):
                        own_ds[k, 0, i] += da[k, gate, i] * net.W[i, begin + i]
            for gate in range(first_stage, da.shape[1]):
                at = net.blocks[gate, 2]
                for i in range(n):
                    through = da[k, gate, i] * net.W[i, at + i]
                    for other in range(first_stage):
                        own_da[k, other, i] += through * va[other, i]
                    for j in range(slots):
                        own_ds[k, j, i] += through * vs[j, i]
                    # h_i reaches s_i through the v of every unit that hears it
                    for other in range(first_stage):
                        if net.blocks[other, 3] >= 0:
                            begin = net.blocks[other, 2] + net.blocks[other, 3]
                            for unit in range(n):
                                heard = va[other, unit] * net.W[unit, begin + i]
                                own_ds[k, 0, i] += da[k, gate, i] * net.W[i, at + unit] * heard

    return wrap(own)
