"""Readout only: no recurrent credit at all."""

from dataclasses import dataclass
from typing import ClassVar

from bci_adapt.learning.credit.base import CreditRule


@dataclass(frozen=True)
class Readout(CreditRule):
    """Only the readout C learns; the recurrent network is a fixed reservoir (Jaeger 2001)."""

    name: ClassVar[str] = "readout"
    description: ClassVar[str] = "only the linear readout learns"
    learns_recurrent: ClassVar[bool] = False

    def make(self, tools):
        recorded = tools.recorded

        def prepare(net, ring, slot, first, last, constants, memory, generator, work, u, e, q):
            recorded(net, ring, slot, u, e, q)

        def row(i, net, ring, slot, last, constants, memory, work, q, g):
            g[:] = 0.0

        return prepare, row

    def torch_counterpart(self, network):
        from bci_adapt.learning.backends.torch_credit import Credit

        return Credit
