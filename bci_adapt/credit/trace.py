"""Eligibility traces with one decay."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bci_adapt.credit.base import CreditRule
from bci_adapt.errors import InputError


@dataclass(frozen=True)
class Trace(CreditRule):
    """E_t = λ E_{t-1} + P_t, a trace per state slot and weight; ∂E_t/∂W ≈ q_t · E_t. trace(0) is immediate.

    Parameters
    ----------
    decay : λ in [0, 1).
    """

    name: ClassVar[str] = "trace"
    description: ClassVar[str] = "E ← λE + P, one decay λ for every weight"
    advances: ClassVar[bool] = True
    decay: float = 0.95

    def __post_init__(self):
        if not 0.0 <= self.decay < 1.0:
            raise InputError(f"trace: decay must lie in [0, 1), got {self.decay}")

    def constants(self):
        return np.array([self.decay])

    def memory_shape(self, network):
        return (network.n_hidden, len(network.cell.slots), network.row_width)

    def work_shapes(self, network):
        k, gates, n = len(network.cell.slots), len(network.cell.gates), network.n_hidden
        return ((k, gates, n), (k, k, n))

    def make(self, tools):
        recorded, partials = tools.recorded, tools.partials

        def prepare(net, ring, slot, first, last, constants, memory, work, u, e, q):
            recorded(net, ring, slot, u, e, q)
            partials(ring.a[slot], ring.before[slot], ring.after[slot], work[0], work[1])

        def row(i, net, ring, slot, constants, memory, work, q, g):
            z = ring.z[slot]
            g[:] = 0.0
            for k in range(q.shape[0]):
                for gate in range(net.blocks.shape[0]):
                    start, width, begin = net.blocks[gate, 0], net.blocks[gate, 1], net.blocks[gate, 2]
                    read = z[start : start + width]
                    trace = memory[i, k, begin : begin + width]
                    out = g[begin : begin + width]
                    factor, signal, decay = work[0][k, gate, i], q[k, i], constants[0]
                    for j in range(width):
                        trace[j] = decay * trace[j] + factor * read[j]
                        out[j] += signal * trace[j]

        return prepare, row
