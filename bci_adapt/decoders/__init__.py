"""Decoders: one face over recurrent and linear ones. One decoder a file, found by listing.

`recommended` is the one to use where there is no reason for another.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bci_adapt.decoders.online_rnn import OnlineDecoder

RECOMMENDED: Mapping[str, Any] = MappingProxyType(
    {
        "cell": "gru",
        "n_hidden": 128,
        "n_members": 3,
        "take_turns": True,
        "rule": "window",
        "rule_constants": {"steps": 4},
        "optimizer": "rmsprop",
        "learning_rate": 3e-4,
        "average": 0.997,
        "label_delay_s": 0.5,
    }
)
"""What the recommended decoder is set to; all else is the default of its class."""


def recommended(**constants: Any) -> OnlineDecoder:
    """The recommended decoder, not yet fitted; `constants` replace its own (``recommended(bin_s=0.02, seed=1)``)."""
    from bci_adapt.decoders.online_rnn import OnlineDecoder

    return OnlineDecoder(**{**RECOMMENDED, **constants})
