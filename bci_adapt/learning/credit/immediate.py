"""Immediate derivatives: h_{t-1} is a constant (propagation depth d = 0)."""

from dataclasses import dataclass
from typing import ClassVar

from bci_adapt.learning.credit.base import CreditRule, partial_shapes


@dataclass(frozen=True)
class Immediate(CreditRule):
    """∂E_t/∂W ≈ p_t ⊗ z_t with p = (∂s'/∂a)ᵀ q: O(parameters) per label, no memory at all (arXiv 2603.28750).
    With ``fresh_error`` it is window(1), whatever the delay.
    """

    name: ClassVar[str] = "immediate"
    description: ClassVar[str] = "h_{t-1} held constant: p ⊗ z, no memory (d = 0)"

    def work_shapes(self, network):
        return (*partial_shapes(network), (len(network.cell.gates), network.n_hidden), (network.n_hidden,))

    def make(self, tools):
        recorded, partials, pull = tools.recorded, tools.partials, tools.pull

        def prepare(net, ring, slot, first, last, constants, memory, generator, work, u, e, q):
            recorded(net, ring, slot, u, e, q)
            partials(ring.a[slot], ring.before[slot], ring.after[slot], work[0], work[1], work[2], work[3])
            pull(net, q, work[0], work[2], work[4], work[5])

        def row(i, net, ring, slot, last, constants, memory, work, q, g):
            z = ring.z[slot]
            for gate in range(net.blocks.shape[0]):
                start, width, begin = net.blocks[gate, 0], net.blocks[gate, 1], net.blocks[gate, 2]
                read = z[start : start + width]
                out = g[begin : begin + width]
                factor = work[4][gate, i]
                for j in range(width):
                    out[j] = factor * read[j]

        return prepare, row

    def torch_counterpart(self, network):
        from bci_adapt.learning.backends.torch_credit import Credit
        from bci_adapt.learning.backends.torch_network import backward

        class ImmediateCredit(Credit):
            """qᵀ ∂f/∂θ, the state before held constant."""

            def gradient(self, W, record, q):
                f, s = self.dynamics.at(W, record), record.before
                _, pull = backward(lambda W: f(W, s[:, 0], s), W)
                return pull(q)[0]

        return ImmediateCredit
