"""What rules with a trace per weight share: E ← A E + ∂a z, A a small matrix over the slots of the weight's unit."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bci_adapt.learning.credit.base import CreditRule, Tools, partial_shapes


@dataclass(frozen=True)
class OwnTrace(CreditRule):
    """A trace E (n_units, n_slots, row_width) of each weight's effect on the state of its own unit; the gradient is
    Σ_k q_k E_k. A child says what A is.
    """

    advances: ClassVar[bool] = True

    def memory_shape(self, network):
        return (network.n_hidden, len(network.cell.slots), network.row_width)

    def work_shapes(self, network):
        shapes = partial_shapes(network)
        return (*shapes, *shapes[:2], (len(network.cell.slots), network.row_width))

    @abstractmethod
    def make_carry(self, tools: Tools) -> Callable:
        """Return ``carry(constants, ds, own_ds)``, which turns own_ds (k, k, n) into A."""

    def make(self, tools):
        recorded, partials, own, copy_states = tools.recorded, tools.partials, tools.own, tools.copy_states
        carry = tools.wrap(self.make_carry(tools))

        def prepare(net, ring, slot, first, last, constants, memory, generator, work, u, e, q):
            recorded(net, ring, slot, u, e, q)
            partials(ring.a[slot], ring.before[slot], ring.after[slot], work[0], work[1], work[2], work[3])
            own(net, work[0], work[1], work[2], work[3], work[4], work[5])
            carry(constants, work[1], work[5])

        def row(i, net, ring, slot, last, constants, memory, work, q, g):
            z, trace, da, A, moved = ring.z[slot], memory[i], work[4], work[5], work[6]
            slots = trace.shape[0]
            if slots == 1:
                kept, signal, only = A[0, 0, i], q[0, i], trace[0]
                for gate in range(net.blocks.shape[0]):
                    start, width, begin = net.blocks[gate, 0], net.blocks[gate, 1], net.blocks[gate, 2]
                    read, part, out = z[start : start + width], only[begin : begin + width], g[begin : begin + width]
                    factor = da[0, gate, i]
                    for j in range(width):
                        part[j] = kept * part[j] + factor * read[j]
                        out[j] = signal * part[j]
                return
            for k in range(slots):
                target = moved[k]
                for j in range(target.shape[0]):
                    target[j] = A[k, 0, i] * trace[0, j]
                for other in range(1, slots):
                    kept = A[k, other, i]
                    if kept != 0.0:
                        source = trace[other]
                        for j in range(target.shape[0]):
                            target[j] += kept * source[j]
            copy_states(trace, moved)
            g[:] = 0.0
            for k in range(slots):
                signal = q[k, i]
                for gate in range(net.blocks.shape[0]):
                    start, width, begin = net.blocks[gate, 0], net.blocks[gate, 1], net.blocks[gate, 2]
                    read, part = z[start : start + width], trace[k, begin : begin + width]
                    out, factor = g[begin : begin + width], da[k, gate, i]
                    for j in range(width):
                        part[j] += factor * read[j]
                        out[j] += signal * part[j]

        return prepare, row

    def influence(self, network, memory, last):
        k, n = len(network.cell.slots), network.n_hidden
        J = np.zeros((k, n, n, network.row_width))
        unit = np.arange(n)
        J[:, unit, unit] = memory.transpose(1, 0, 2)
        return J
