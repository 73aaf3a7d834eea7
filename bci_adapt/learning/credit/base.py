r"""What a credit rule is, and the algebra that all of them share.

Notation (PROTOCOL: P is the immediate derivative, D the state Jacobian, J the influence matrix):
``da (k, G, n)`` = ∂s'/∂a, ``ds (k, k, n)`` = ∂s'/∂s, ``va (G, n)`` = ∂v/∂a and ``vs (k, n)`` = ∂v/∂s of a second stage,
``q (k, n)`` = ∂E/∂s', ``p (G, n)`` = ∂E/∂a.

A rule sees the network's past through *records*: what one bin left behind (input vector z, gate activations, states
before and after, prediction, label). Records wait in a ring until their label arrives; then the loop calls

    prepare(net, ring, slot, first, last, constants, memory, generator, work, u, e, q)   once per record, in order
    row(i, net, ring, slot, last, constants, memory, work, q, g)                         for every unit i

``prepare`` forms the readout's features u, the output error e and the state signal q; ``row`` advances the rule's
memory of unit i and writes the gradient of weight row i to g. Record number ``last`` lies at ring position ``slot``; no
record before ``first`` belongs to this stretch. At an unlabelled record e and q are zero, and the loop calls neither
function unless the rule ``advances`` its memory there.

*Own path.* In most cells a weight of unit i acts on unit i alone, so P has entries for each weight's own unit only.
With a second stage (`Cell.make_mid`) a first-stage weight reaches every unit through v. ``immediate``, ``window``,
``rtrl`` and ``uoro`` follow all of it. Rules with a trace per weight (``trace``, ``snap1``) keep a weight's effect on
its own unit – ``own`` gives ∂s'_i/∂a_i and ∂s'_i/∂s_i along every path – so there trace(0) is close to immediate and
not equal to it; ``rflo`` and ``eprop`` refuse such cells.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from bci_adapt.errors import InputError
from bci_adapt.ground.catalog import pick, variants
from bci_adapt.learning.cells.base import Cell, Network

if TYPE_CHECKING:
    from bci_adapt.learning.backends.torch_credit import Credit

FEEDBACK = ("symmetric", "random")


class Net(NamedTuple):
    """The weights of one network, the matrix B that feeds errors back (C itself, or fixed random numbers in its place),
    and the block table, as kernels see them.
    """

    W: np.ndarray
    C: np.ndarray
    B: np.ndarray
    blocks: np.ndarray


class Ring(NamedTuple):
    """Records of one network, position r % length holding record r."""

    z: np.ndarray
    a: np.ndarray
    before: np.ndarray
    after: np.ndarray
    features: np.ndarray
    prediction: np.ndarray
    label: np.ndarray
    weight: np.ndarray
    arrives: np.ndarray


class Tools(NamedTuple):
    """Functions a rule may call, compiled or plain as the rule itself is going to be.

    ``forward(net, z, a, before, after)``, which is ``hear(net, z, a, i)`` – the first-stage activations of unit i – for
    every unit, then ``finish(net, z, a, before, after)``; ``partials(a, before, after, da, ds, va, vs)``;
    ``readout(net, after, z, u, y)``; ``error(prediction, label, weight, e)``; ``feed_back(net, e, q)``;
    ``recorded(net, ring, slot, u, e, q)``: error of the prediction as it was made, fed back through the readout as it
    is now; ``pull(net, q, da, va, p, r)``: p = ∂E/∂a and r (n,) = ∂E/∂v; ``back(net, p, r, q, ds, vs, earlier)``:
    earlier = Dᵀ q; ``jacobian(net, da, ds, va, vs, D)``: D (k n, k n) into the first rows of D; ``own(net, da, ds, va,
    vs, own_da, own_ds)``; ``scramble(x)``: the random uint64 after x. ``wrap`` is what compiles a part, for a rule that
    has parts of its own.
    """

    wrap: Callable
    hear: Callable
    finish: Callable
    forward: Callable
    partials: Callable
    readout: Callable
    error: Callable
    feed_back: Callable
    recorded: Callable
    pull: Callable
    back: Callable
    jacobian: Callable
    own: Callable
    scramble: Callable
    copy: Callable
    copy_states: Callable
    clear_states: Callable
    approach: Callable


def partial_shapes(network: Network) -> tuple[tuple[int, ...], ...]:
    """Shapes of da, ds, va, vs."""
    k, gates, n = len(network.cell.slots), len(network.cell.gates), network.n_hidden
    return (k, gates, n), (k, k, n), (gates, n), (k, n)


@dataclass(frozen=True)
class CreditRule(ABC):
    """Base of all credit rules; a frozen set of constants.

    Parameters
    ----------
    feedback : how the output error reaches the units: ``symmetric`` (through the readout's own weights) or ``random``
        (fixed random weights in their place, feedback alignment; Lillicrap et al. 2016).
    """

    name: ClassVar[str]
    description: ClassVar[str]
    advances: ClassVar[bool] = False
    learns_recurrent: ClassVar[bool] = True
    # Whether a weight may act on other units than its own within a bin (cells with a second stage).
    needs_own_weights: ClassVar[bool] = False

    feedback: str = field(default="symmetric", kw_only=True)

    def __post_init__(self):
        if self.feedback not in FEEDBACK:
            raise InputError(f"{self.name}: feedback must be one of {FEEDBACK}, got {self.feedback!r}")

    def check(self, network: Network) -> None:
        """Raise `InputError` where the rule is not defined for this network."""
        if self.needs_own_weights and network.cell.make_mid is not None:
            raise InputError(
                f"{self.name} is not defined for {network.cell.name!r}: it needs weights that act on their own unit, "
                "and the gates before the second stage reach every unit; take immediate, snap1, window or rtrl"
            )

    def constants(self, network: Network) -> np.ndarray:
        """Constants as the kernel reads them, one flat array of float64."""
        return np.zeros(1)

    @property
    def history(self) -> int:
        """How many records before the labelled one the rule reads."""
        return 0

    def memory_shape(self, network: Network) -> tuple[int, ...]:
        """Shape of what the rule carries from record to record."""
        return (network.n_hidden, 0)

    def work_shapes(self, network: Network) -> tuple[tuple[int, ...], ...]:
        """Shapes of scratch arrays, meaningless between records."""
        return ((0,),)

    @abstractmethod
    def make(self, tools: Tools) -> tuple[Callable, Callable]:
        """Return (prepare, row) in plain Python that also compiles."""

    def torch_counterpart(self, network: Network) -> type[Credit] | None:
        """The same rule in torch, derivatives by autograd, for `network`: what holds the kernel to its formula, and
        runs torch modules and accelerators. None where it has none: the torch backend then refuses it. Torch is
        imported inside, since a decoder that learns with kernels does without.
        """
        return None

    def influence(self, network: Network, memory: np.ndarray, last: int) -> np.ndarray:
        """The rule's estimate of J after record `last` as (n_slots, n_hidden, n_hidden, row_width): ∂s[k, j]/∂W[i, c]
        at [k, j, i, c]. Zero for a rule without memory; for inspection and tests.
        """
        k, n = len(network.cell.slots), network.n_hidden
        return np.zeros((k, n, n, network.row_width))


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
    cell_update, cell_partials = (wrap(function) for function in cell.make(xp))
    gates_of, slots_of = wrap(_COLUMN[len(cell.gates)]), wrap(_COLUMN[len(cell.slots)])
    cross_entropy = loss == "cross_entropy"
    features, first_stage, has_mid = cell.features, cell.n_first, cell.make_mid is not None

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

    store_gates, store_slots = wrap(_STORE[len(cell.gates)]), wrap(_STORE[len(cell.slots)])

    def step(a, before, after):
        for i in range(a.shape[1]):
            store_slots(after, i, cell_update(gates_of(a, i), slots_of(before, i)))

    step_c = wrap(step)

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

        def finish(net, z, a, before, after):
            step_c(a, before, after)

        def partials(a, before, after, da, ds, va, vs):
            local_c(a, before, after, da, ds)

    else:
        mid, mid_partials = (wrap(function) for function in cell.make_mid(xp))

        def finish(net, z, a, before, after):
            for i in range(a.shape[1]):
                z[i] = mid(gates_of(a, i), slots_of(before, i))
            for i in range(a.shape[1]):
                activate_c(net, z, a, i, first_stage, a.shape[0])
            step_c(a, before, after)

        def partials(a, before, after, da, ds, va, vs):
            local_c(a, before, after, da, ds)
            for i in range(a.shape[1]):
                by_gate, by_slot = mid_partials(gates_of(a, i), slots_of(before, i))
                for gate in range(va.shape[0]):
                    va[gate, i] = by_gate[gate]
                for k in range(vs.shape[0]):
                    vs[k, i] = by_slot[k]

    finish_c = wrap(finish)

    def forward(net, z, a, before, after):
        for i in range(a.shape[1]):
            hear_c(net, z, a, i)
        finish_c(net, z, a, before, after)

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

    return Tools(
        wrap=wrap,
        hear=hear_c,
        finish=finish_c,
        forward=wrap(forward),
        partials=wrap(partials),
        readout=wrap(readout),
        error=error_c,
        feed_back=feed_back_c,
        recorded=wrap(recorded),
        pull=wrap(pull),
        back=wrap(back),
        jacobian=wrap(jacobian),
        own=wrap(own),
        scramble=wrap(_scramble),
        copy=wrap(_copy),
        copy_states=wrap(_copy_states),
        clear_states=wrap(_clear_states),
        approach=wrap(_approach),
    )


def rules() -> dict[str, type[CreditRule]]:
    """Every credit rule, by name."""
    return variants("bci_adapt.learning.credit", CreditRule)


def rule(name: str, **constants: float) -> CreditRule:
    """Build the rule called `name`; `InputError` when there is none."""
    return pick("bci_adapt.learning.credit", CreditRule, name)(**constants)
