"""SnAp-1: the diagonal of RTRL."""

from dataclasses import dataclass
from typing import ClassVar

from bci_adapt.learning.credit.own import OwnTrace


@dataclass(frozen=True)
class SnAp1(OwnTrace):
    """Of J, only the entries of each weight's own unit are kept: E ← D_ii E + ∂a z (Menick et al. 2021, SnAp-1).

    D_ii (n_slots, n_slots) includes the unit's recurrent weight to itself. Exact where recurrence is diagonal.
    """

    name: ClassVar[str] = "snap1"
    description: ClassVar[str] = "E ← D_ii E + P, RTRL masked to each weight's own unit (Menick et al. 2021)"

    def make_carry(self, tools):
        def carry(constants, ds, own_ds):
            pass

        return carry

    def torch_counterpart(self, network):
        from bci_adapt.learning.backends.torch_credit import own_traces
        from bci_adapt.learning.backends.torch_network import ModuleNetwork

        class SnAp1Traces(own_traces(network)):
            """Of a torch module, which may act on any unit within a bin, the pattern of ∂s'/∂θ is kept."""

            def unpack(self, memory, processed):
                super().unpack(memory, processed)
                self.pattern = network.pattern.to(self.device) if isinstance(network, ModuleNetwork) else None

            def advance(self, A, P, q):
                moved = self.carried(A) + P
                self.memory = moved if self.pattern is None else moved * self.pattern
                return q[..., None, :] @ self.memory

        return SnAp1Traces
