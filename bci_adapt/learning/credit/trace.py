"""Eligibility traces with a decay of their own."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bci_adapt.errors import InputError
from bci_adapt.learning.credit.base import partial_shapes
from bci_adapt.learning.credit.own import OwnTrace


@dataclass(frozen=True)
class Trace(OwnTrace):
    """E_t = λ E_{t-1} + P_t, a trace per state slot and weight; ∂E_t/∂W ≈ q_t · E_t.

    trace(0) is immediate; where a cell has a second stage it is close to it and not equal, since a trace follows a
    weight's effect on its own unit alone.

    Parameters
    ----------
    decay : λ in [0, 1): one number, or one per weight (n_hidden, row_width).
    """

    name: ClassVar[str] = "trace"
    description: ClassVar[str] = "E ← λE + P, λ one number or one per weight"
    decay: float | np.ndarray = 0.95

    def __post_init__(self):
        super().__post_init__()
        decay = np.asarray(self.decay, float)
        if not ((decay >= 0.0) & (decay < 1.0)).all():
            raise InputError(f"trace: decay must lie in [0, 1), got {self.decay}")

    def check(self, network):
        super().check(network)
        expected = (network.n_rows, network.row_width)
        if np.shape(self.decay) not in ((), expected):
            raise InputError(f"trace: expected one decay, or one per weight {expected}, got {np.shape(self.decay)}")

    @classmethod
    def example(cls):
        return cls(0.7)

    def constants(self, network):
        return np.array(self.decay, float).ravel()

    def work_shapes(self, network):
        shapes = partial_shapes(network)
        return (*shapes, *shapes[:2], (1, network.row_width))

    def make_carry(self, tools):
        def carry(constants, ds, own_ds):
            pass

        return carry

    def make(self, tools):
        prepare, _ = super().make(tools)

        def row(i, net, ring, slot, last, constants, memory, work, q, g):
            z, da, decay = ring.z[slot], work[4], work[6][0]
            if constants.shape[0] == 1:
                for j in range(g.shape[0]):
                    g[j] = 0.0
                    decay[j] = constants[0]
            else:
                own = constants[i * g.shape[0] : (i + 1) * g.shape[0]]
                for j in range(g.shape[0]):
                    g[j] = 0.0
                    decay[j] = own[j]
            for k in range(q.shape[0]):
                signal = q[k, i]
                for gate in range(net.blocks.shape[0]):
                    start, width, begin = net.blocks[gate, 0], net.blocks[gate, 1], net.blocks[gate, 2]
                    read, kept = z[start : start + width], decay[begin : begin + width]
                    trace, out = memory[i, k, begin : begin + width], g[begin : begin + width]
                    factor = da[k, gate, i]
                    for j in range(width):
                        trace[j] = kept[j] * trace[j] + factor * read[j]
                        out[j] += signal * trace[j]

        return prepare, row

    def torch_counterpart(self, network):
        import torch

        from bci_adapt.learning.backends.torch_credit import own_traces

        class DecayingTraces(own_traces(network)):
            """A = λ, of every weight."""

            through_weights = False

            def unpack(self, memory, processed):
                super().unpack(memory, processed)
                decay = np.broadcast_to(self.rule.decay, (network.n_rows, network.row_width))
                self.decay = torch.tensor(decay, dtype=torch.float64, device=self.device)[:, None]

            def carried(self, A):
                return self.decay * self.memory

        return DecayingTraces
