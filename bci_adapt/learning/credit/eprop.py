"""e-prop: eligibility by a unit's own dynamics, without its weights."""

from dataclasses import dataclass
from typing import ClassVar

from bci_adapt.learning.credit.own import OwnTrace


@dataclass(frozen=True)
class EProp(OwnTrace):
    """E ← (∂s'/∂s) E + ∂a z, ∂s'/∂s at fixed gate activations: what a unit remembers by itself – a leak, a forget gate,
    a filter – and nothing that passes through recurrent weights (Bellec et al. 2020). With the *total* ∂E/∂s as its
    signal the sum would be BPTT; online the signal is the instantaneous one. Where the state has no dynamics of its own
    (tanh, relu, linear) it is immediate.
    """

    name: ClassVar[str] = "eprop"
    description: ClassVar[str] = "E ← (∂s'/∂s) E + P, the unit's own dynamics without its weights (Bellec et al. 2020)"
    needs_own_weights: ClassVar[bool] = True

    def make_carry(self, tools):
        copy_states = tools.copy_states

        def carry(constants, ds, own_ds):
            for k in range(ds.shape[0]):
                copy_states(own_ds[k], ds[k])

        return carry

    def torch_counterpart(self, network):
        from bci_adapt.learning.backends.torch_credit import own_traces

        class EPropTraces(own_traces(network)):
            """A = ∂s'/∂s at fixed h."""

            through_weights = False

        return EPropTraces
