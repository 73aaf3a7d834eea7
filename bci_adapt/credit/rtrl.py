"""Exact real-time recurrent learning (Williams & Zipser 1989)."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bci_adapt.credit.base import CreditRule


@dataclass(frozen=True)
class RTRL(CreditRule):
    """J_t = D_t J_{t-1} + P_t, ∂E_t/∂W = q_t · J_t: exact at fixed weights, O(n² · parameters) per record.

    The influence matrix is kept as one panel (n_slots · n, row_width) per unit whose weights it follows. Row [D; qᵀD]
    times a panel gives the new panel and the gradient in one product; then the sparse immediate part is added. Weights
    change at every label and J is not reset, so J is slightly stale: that is part of the method.
    """

    name: ClassVar[str] = "rtrl"
    description: ClassVar[str] = "J ← D J + P, exact at fixed weights (Williams & Zipser 1989)"
    advances: ClassVar[bool] = True

    def memory_shape(self, network):
        return (network.n_hidden, len(network.cell.slots) * network.n_hidden, network.row_width)

    def work_shapes(self, network):
        k, gates, n = len(network.cell.slots), len(network.cell.gates), network.n_hidden
        return ((k, gates, n), (k, k, n), (k * n + 1, k * n), (k * n + 1, network.row_width))

    def make(self, tools):
        recorded, partials = tools.recorded, tools.partials
        copy, copy_states, clear_states = tools.copy, tools.copy_states, tools.clear_states

        def prepare(net, ring, slot, first, last, constants, memory, work, u, e, q):
            recorded(net, ring, slot, u, e, q)
            da, ds, D = work[0], work[1], work[2]
            partials(ring.a[slot], ring.before[slot], ring.after[slot], da, ds)
            slots, n = q.shape
            clear_states(D)
            for k in range(slots):
                for i in range(n):
                    target = D[k * n + i]
                    for gate in range(net.blocks.shape[0]):
                        if net.blocks[gate, 3] >= 0:
                            begin = net.blocks[gate, 2] + net.blocks[gate, 3]
                            weights = net.W[i, begin : begin + n]
                            factor = da[k, gate, i]
                            for j in range(n):
                                target[j] += factor * weights[j]
                    for j in range(slots):
                        target[j * n + i] += ds[k, j, i]
            signal = D[slots * n]
            for k in range(slots):
                for i in range(n):
                    if q[k, i] != 0.0:
                        source = D[k * n + i]
                        for j in range(slots * n):
                            signal[j] += q[k, i] * source[j]

        def row(i, net, ring, slot, constants, memory, work, q, g):
            z = ring.z[slot]
            da, D, product, panel = work[0], work[2], work[3], memory[i]
            slots, n = q.shape
            np.dot(D, panel, product)
            copy_states(panel, product[: slots * n])
            copy(g, product[slots * n])
            for k in range(slots):
                for gate in range(net.blocks.shape[0]):
                    start, width, begin = net.blocks[gate, 0], net.blocks[gate, 1], net.blocks[gate, 2]
                    read = z[start : start + width]
                    influence = panel[k * n + i, begin : begin + width]
                    out = g[begin : begin + width]
                    factor, signal = da[k, gate, i], q[k, i]
                    for j in range(width):
                        influence[j] += factor * read[j]
                        out[j] += signal * factor * read[j]

        return prepare, row
