"""Truncated backpropagation through time, online: a few steps of history (Williams & Peng 1990)."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bci_adapt.credit.base import CreditRule
from bci_adapt.errors import InputError


@dataclass(frozen=True)
class Window(CreditRule):
    """TBPTT(K) of the newest label: the last K bins are recomputed with today's weights from the state before them,
    then the error is propagated back through those K bins. TBPTT(1) without delay is immediate; a window that reaches
    back to the start of the stretch is exact. O(K · parameters) per label, and the optimiser is paid only once.

    Parameters
    ----------
    steps : K, bins of history including the labelled one.
    """

    name: ClassVar[str] = "window"
    description: ClassVar[str] = "TBPTT(K): the last K bins recomputed with today's weights (Williams & Peng 1990)"
    steps: int = 4

    def __post_init__(self):
        if self.steps < 1:
            raise InputError(f"window: steps must be at least 1, got {self.steps}")

    def constants(self):
        return np.array([float(self.steps)])

    @property
    def history(self):
        return self.steps - 1

    def work_shapes(self, network):
        k, gates, n = len(network.cell.slots), len(network.cell.gates), network.n_hidden
        steps = self.steps
        return (
            (k, gates, n),
            (k, k, n),
            (steps, network.z_width),
            (steps, gates, n),
            (steps + 1, k, n),
            (steps, gates, n),
            (2, k, n),
            (1, network.n_outputs),
        )

    def make(self, tools):
        forward, partials, readout = tools.forward, tools.partials, tools.readout
        error, feed_back, pull = tools.error, tools.feed_back, tools.pull
        copy, copy_states, clear_states = tools.copy, tools.copy_states, tools.clear_states

        def prepare(net, ring, slot, first, last, constants, memory, work, u, e, q):
            da, ds, z, a, states, p = work[0], work[1], work[2], work[3], work[4], work[5]
            length, K = ring.z.shape[0], z.shape[0]
            steps = min(K, last - first + 1)
            n, m = q.shape[1], z.shape[1] - 1 - q.shape[1]
            copy_states(states[K - steps], ring.before[(last - steps + 1) % length])
            for step in range(K - steps, K):
                copy(z[step], ring.z[(last - K + 1 + step) % length])
                copy(z[step, m + 1 :], states[step, 0])
                forward(net, z[step], a[step], states[step], states[step + 1])
            prediction = work[7][0]
            readout(net, states[K], z[K - 1, :m], u, prediction)
            error(prediction, ring.label[slot], ring.weight[slot], e)
            feed_back(net, e, q)
            now, earlier = work[6][0], work[6][1]
            copy_states(now, q)
            for step in range(K - steps):
                clear_states(p[step])
            for back in range(steps):
                step = K - 1 - back
                partials(a[step], states[step], states[step + 1], da, ds)
                pull(now, da, p[step])
                if back == steps - 1:
                    break
                clear_states(earlier)
                for k in range(q.shape[0]):
                    for j in range(q.shape[0]):
                        for i in range(n):
                            earlier[j, i] += now[k, i] * ds[k, j, i]
                for gate in range(net.blocks.shape[0]):
                    if net.blocks[gate, 3] >= 0:
                        begin = net.blocks[gate, 2] + net.blocks[gate, 3]
                        target = earlier[0]
                        for i in range(n):
                            weights = net.W[i, begin : begin + n]
                            factor = p[step, gate, i]
                            for j in range(n):
                                target[j] += factor * weights[j]
                copy_states(now, earlier)

        def row(i, net, ring, slot, constants, memory, work, q, g):
            z, p = work[2], work[5]
            for gate in range(net.blocks.shape[0]):
                start, width, begin = net.blocks[gate, 0], net.blocks[gate, 1], net.blocks[gate, 2]
                out = g[begin : begin + width]
                newest = z.shape[0] - 1
                factor, read = p[newest, gate, i], z[newest, start : start + width]
                for j in range(width):
                    out[j] = factor * read[j]
                for step in range(newest):
                    factor, read = p[step, gate, i], z[step, start : start + width]
                    if factor != 0.0:
                        for j in range(width):
                            out[j] += factor * read[j]

        return prepare, row
