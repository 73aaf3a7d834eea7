"""RFLO: random-feedback local online learning."""

from dataclasses import dataclass, field
from typing import ClassVar

from bci_adapt.learning.credit.eprop import EProp


@dataclass(frozen=True)
class RFLO(EProp):
    """E ← leak · E + ∂a z, and the error comes back through fixed random weights (Murray 2019).

    The leak is the unit's own memory at fixed gate activations: 1 − α for the leaky cell, the gates' for gated ones –
    the eligibility of e-prop. ``feedback="symmetric"`` takes the readout's own weights.
    """

    name: ClassVar[str] = "rflo"
    description: ClassVar[str] = "E ← leak · E + P, error fed back through fixed random weights (Murray 2019)"

    feedback: str = field(default="random", kw_only=True)
