"""Exact real-time recurrent learning (Williams & Zipser 1989)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from bci_adapt.learning.credit.base import CreditRule, Tools, partial_shapes

if TYPE_CHECKING:
    from bci_adapt.learning.backends.torch_credit import Traces


@dataclass(frozen=True)
class RTRL(CreditRule):
    """J_t = D_t J_{t-1} + P_t, ∂E_t/∂W = q_t · J_t: exact at fixed weights, O(n² · parameters) per record.

    The influence matrix is kept as one panel (n_slots · n + 1, row_width) per unit whose weights it follows. [D; qᵀD]
    times a panel gives the new panel and, as its last row, the gradient, in one product; then the sparse immediate part
    is added. One panel more than there are units is kept: a product goes where the unit before was read from, so that
    nothing is copied, and unit i of record r lies at place (i − r) mod (n + 1). Weights change at every label and J is
    not reset, so J is slightly stale: that is part of the method.
    """

    name: ClassVar[str] = "rtrl"
    description: ClassVar[str] = "J ← D J + P, exact at fixed weights (Williams & Zipser 1989)"
    advances: ClassVar[bool] = True

    def memory_shape(self, network):
        n = network.n_hidden
        return (n + 1, len(network.cell.slots) * n + 1, network.row_width)

    def work_shapes(self, network):
        k, n = len(network.cell.slots), network.n_hidden
        # …, [D; qᵀD], ∂s'/∂v, which is formed before the first row of W moves, and what `select` lists
        return (*partial_shapes(network), (k * n + 1, k * n), (k, network.n_mid, n), (0, 0))

    def make_select(self, tools: Tools) -> Callable:
        """Return ``select(D, sources, n, constants, generator)``, which clears the entries of D that are not followed
        and lists the columns of the others by unit (n, most followed) in `sources`.
        """

        def select(D, sources, n, constants, generator):
            pass

        return select

    def make_product(self) -> Callable:
        """Return ``product(D, sources, old, panel)``: panel ← D old."""

        def product(D, sources, old, panel):
            np.dot(D, old, panel)

        return product

    def make(self, tools):
        recorded, partials, jacobian = tools.recorded, tools.partials, tools.jacobian
        reach = tools.wrap(_reach)
        select, product = tools.wrap(self.make_select(tools)), tools.wrap(self.make_product())

        def prepare(net, ring, slot, first, last, constants, memory, generator, work, u, e, q):
            recorded(net, ring, slot, u, e, q)
            D = work[4]
            partials(ring.a[slot], ring.before[slot], ring.after[slot], work[0], work[1], work[2], work[3])
            jacobian(net, work[0], work[1], work[2], work[3], D)
            slots, n = q.shape
            select(D, work[6], n, constants, generator)
            reach(net, work[0], work[5])
            signal = D[slots * n]
            for j in range(slots * n):
                signal[j] = 0.0
            for k in range(slots):
                for i in range(n):
                    if q[k, i] != 0.0:
                        source = D[k * n + i]
                        for j in range(slots * n):
                            signal[j] += q[k, i] * source[j]

        def row(i, net, ring, slot, last, constants, memory, work, q, g):
            z, da, va, D, by_v = ring.z[slot], work[0], work[2], work[4], work[5]
            slots, n = q.shape
            places = memory.shape[0]
            old, panel = memory[(i - last) % places], memory[(i - last - 1) % places]
            product(D, work[6], old[: slots * n], panel)
            gradient = panel[slots * n]
            for k in range(slots):
                for gate in range(net.blocks.shape[0]):
                    start, width, begin = net.blocks[gate, 0], net.blocks[gate, 1], net.blocks[gate, 2]
                    read, factor, signal = z[start : start + width], da[k, gate, i], q[k, i]
                    influence, out = panel[k * n + i, begin : begin + width], gradient[begin : begin + width]
                    for j in range(width):
                        influence[j] += factor * read[j]
                        out[j] += signal * factor * read[j]
            # Through v_i every unit hears of unit i's first-stage weights.
            if by_v.shape[1] > 0:
                for k in range(slots):
                    for unit in range(n):
                        for gate in range(net.blocks.shape[0]):
                            factor = by_v[k, i, unit] * va[gate, i]
                            if net.blocks[gate, 4] < 0 and factor != 0.0:
                                start, width, begin = net.blocks[gate, 0], net.blocks[gate, 1], net.blocks[gate, 2]
                                read, out = z[start : start + width], gradient[begin : begin + width]
                                influence, signal = panel[k * n + unit, begin : begin + width], q[k, unit]
                                for j in range(width):
                                    influence[j] += factor * read[j]
                                    out[j] += signal * factor * read[j]
            for j in range(g.shape[0]):
                g[j] = gradient[j]

        return prepare, row

    def torch_counterpart(self, network) -> type[Traces]:
        from bci_adapt.learning.backends.torch_credit import Traces

        class Panels(Traces):
            """J over all states and weights, laid out in `memory` as the kernel keeps it."""

            def _places(self, processed):
                """Where the kernel keeps the panel (k n + 1, w) of each unit's weights."""
                return [(unit - processed) % (self.n + 1) for unit in range(self.n)]

            def unpack(self, memory, processed):
                states = self.k * self.n
                panels = memory[:, self._places(processed), :states]
                self.memory = panels.transpose(1, 2).reshape(len(memory), states, -1)

            def packed(self, processed):
                # The last row of a panel and the one panel more are scratch.
                states, S = self.k * self.n, len(self.memory)
                panels = self.memory.view(S, states, self.n, -1).transpose(1, 2)
                memory = self.memory.new_zeros(S, self.n + 1, states + 1, panels.shape[-1])
                memory[:, self._places(processed), :states] = panels
                return memory

        return Traces if network.needs_torch else Panels

    def influence(self, network, memory, last):
        k, n = len(network.cell.slots), network.n_hidden
        panels = memory[(np.arange(n) - last - 1) % (n + 1), : k * n]
        return panels.reshape(n, k, n, network.row_width).transpose(1, 2, 0, 3)


def _reach(net, da, by_v):
    """by_v (k, n_mid, n) ← ∂s'[k, unit]/∂v[i] of a second stage."""
    for k in range(by_v.shape[0]):
        for i in range(by_v.shape[1]):
            for unit in range(by_v.shape[2]):
                by_v[k, i, unit] = 0.0
                for gate in range(net.blocks.shape[0]):
                    if net.blocks[gate, 4] >= 0:
                        at = net.blocks[gate, 2] + net.blocks[gate, 4]
                        by_v[k, i, unit] += da[k, gate, unit] * net.W[unit, at + i]
