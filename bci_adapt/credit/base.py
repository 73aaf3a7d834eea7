r"""What a credit rule is, and the algebra that all of them share.

Notation (PROTOCOL: P is the immediate derivative, D the state Jacobian, J the influence matrix):
``da (k, G, n)`` = ∂s'/∂a, ``ds (k, k, n)`` = ∂s'/∂s, ``q (k, n)`` = ∂E/∂s', ``p (G, n)`` = ∂E/∂a.

A rule sees the network's past through *records*: what one bin left behind (input vector z, gate activations, states
before and after, prediction, label). Records wait in a ring until their label arrives; then the loop calls

    prepare(net, ring, slot, first, last, constants, memory, work, u, e, q)   once per record, in order
    row(i, net, ring, slot, constants, memory, work, q, g)                    for every unit i

``prepare`` forms the readout's features u, the output error e and the state signal q; ``row`` advances the rule's
memory of unit i and writes the gradient of weight row i to g. Record ``last`` lies at ring position ``slot``; no record
before ``first`` belongs to this stretch. At an unlabelled record e and q are zero, and the loop calls neither function
unless the rule ``advances`` its memory there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from bci_adapt.catalog import pick, variants
from bci_adapt.cells.base import Cell, Network


class Net(NamedTuple):
    """The weights of one network and its block table, as kernels see them."""

    W: np.ndarray
    C: np.ndarray
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
    """Functions a rule may call, compiled or plain as the rule itself is going to be."""

    forward: Callable
    partials: Callable
    readout: Callable
    error: Callable
    feed_back: Callable
    recorded: Callable
    pull: Callable
    copy: Callable
    copy_states: Callable
    clear_states: Callable
    approach: Callable


@dataclass(frozen=True)
class CreditRule(ABC):
    """Base of all credit rules; a frozen set of constants."""

    name: ClassVar[str]
    description: ClassVar[str]
    advances: ClassVar[bool] = False
    learns_recurrent: ClassVar[bool] = True

    def check(self, cell: Cell) -> None:  # noqa: B027  (a rule that is defined for every cell has nothing to check)
        """Raise `InputError` where the rule is not defined for this cell."""

    def constants(self) -> np.ndarray:
        """Constants as the kernel reads them."""
        return np.zeros(1)

    @property
    def history(self) -> int:
        """How many records before the labelled one the rule reads."""
        return 0

    def memory_shape(self, network: Network) -> tuple[int, ...]:
        """Shape of what the rule carries from record to record; the first axis is the unit whose weights it follows."""
        return (network.n_hidden, 0)

    def work_shapes(self, network: Network) -> tuple[tuple[int, ...], ...]:
        """Shapes of scratch arrays, meaningless between records."""
        return ((0,),)

    @abstractmethod
    def make(self, tools: Tools) -> tuple[Callable, Callable]:
        """Return (prepare, row) in plain Python that also compiles."""


# Column i of an array as a tuple. A compiled tuple has a fixed length, so each number of rows has its own function.
_COLUMN: dict[int, Callable] = {
    1: lambda v, i: (v[0, i],),
    2: lambda v, i: (v[0, i], v[1, i]),
    3: lambda v, i: (v[0, i], v[1, i], v[2, i]),
    4: lambda v, i: (v[0, i], v[1, i], v[2, i], v[3, i]),
    5: lambda v, i: (v[0, i], v[1, i], v[2, i], v[3, i], v[4, i]),
    6: lambda v, i: (v[0, i], v[1, i], v[2, i], v[3, i], v[4, i], v[5, i]),
}


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


def make_tools(cell: Cell, xp: Any, loss: str, feature: int, wrap: Callable) -> Tools:
    """Build the shared functions for one cell; `wrap` compiles each (or returns it as it is)."""
    cell_update, cell_partials = (wrap(function) for function in cell.make(xp))
    gates_of, slots_of = wrap(_COLUMN[len(cell.gates)]), wrap(_COLUMN[len(cell.slots)])
    cross_entropy = loss == "cross_entropy"

    def forward(net, z, a, before, after):
        W = net.W
        for gate in range(net.blocks.shape[0]):
            start, width, row = net.blocks[gate, 0], net.blocks[gate, 1], net.blocks[gate, 2]
            read = z[start : start + width]
            for i in range(W.shape[0]):
                weights = W[i, row : row + width]
                total = 0.0
                for j in range(width):
                    total += weights[j] * read[j]
                a[gate, i] = total
        for i in range(W.shape[0]):
            new = cell_update(gates_of(a, i), slots_of(before, i))
            for k in range(after.shape[0]):
                after[k, i] = new[k]

    def partials(a, before, after, da, ds):
        for i in range(a.shape[1]):
            by_gate, by_slot = cell_partials(gates_of(a, i), slots_of(before, i), slots_of(after, i))
            for k in range(da.shape[0]):
                for gate in range(da.shape[1]):
                    da[k, gate, i] = by_gate[k][gate]
                for j in range(ds.shape[1]):
                    ds[k, j, i] = by_slot[k][j]

    def readout(net, after, x, u, y):
        n = after.shape[1]
        for i in range(n):
            u[i] = after[feature, i]
        u[n] = 1.0
        for j in range(u.shape[0] - n - 1):
            u[n + 1 + j] = x[j]
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
        for k in range(q.shape[0]):
            for i in range(q.shape[1]):
                q[k, i] = 0.0
        for o in range(e.shape[0]):
            if e[o] != 0.0:
                for i in range(q.shape[1]):
                    q[feature, i] += e[o] * net.C[o, i]

    error_c, feed_back_c = wrap(error), wrap(feed_back)

    def recorded(net, ring, slot, u, e, q):
        # The error of the prediction as it was made, fed back through the readout as it is now.
        features = ring.features[slot]
        for j in range(u.shape[0]):
            u[j] = features[j]
        error_c(ring.prediction[slot], ring.label[slot], ring.weight[slot], e)
        feed_back_c(net, e, q)

    def pull(q, da, p):
        for gate in range(p.shape[0]):
            for i in range(p.shape[1]):
                p[gate, i] = q[0, i] * da[0, gate, i]
            for k in range(1, q.shape[0]):
                for i in range(p.shape[1]):
                    p[gate, i] += q[k, i] * da[k, gate, i]

    return Tools(
        forward=wrap(forward),
        partials=wrap(partials),
        readout=wrap(readout),
        error=error_c,
        feed_back=feed_back_c,
        recorded=wrap(recorded),
        pull=wrap(pull),
        copy=wrap(_copy),
        copy_states=wrap(_copy_states),
        clear_states=wrap(_clear_states),
        approach=wrap(_approach),
    )


def rules() -> dict[str, type[CreditRule]]:
    """Every credit rule, by name."""
    return variants("bci_adapt.credit", CreditRule)


def rule(name: str, **constants: float) -> CreditRule:
    """Build the rule called `name`; `InputError` when there is none."""
    return pick("bci_adapt.credit", CreditRule, name)(**constants)
