"""Decode movement from primate spike recordings as electrodes drift.

>>> import bci_adapt as ba
>>> monday = ba.session([[0.11, 0.52], [0.33]], [[0.0], [1.0], [1.5]], [0.0, 0.25, 0.6], bin_s=0.3)
>>> monday["counts"].values.tolist()
[[1, 0], [1, 1]]
"""

from __future__ import annotations

from typing import Any

from bci_adapt.ground.version import __version__ as __version__

_PUBLIC = {
    "read": "bci_adapt.data.from_arrays",
    "session": "bci_adapt.data.from_arrays",
    "write_session": "bci_adapt.data.sessions",
    "open_session": "bci_adapt.data.sessions",
    "split": "bci_adapt.data.sessions",
    "concat": "bci_adapt.data.sessions",
    "match": "bci_adapt.data.channels",
    "recommended": "bci_adapt.decoders",
    "compare": "bci_adapt.experiment.comparing",
    "evaluate": "bci_adapt.protocol.evaluation",
}


def __getattr__(name: str) -> Any:
    """Names of `_PUBLIC` are imported when first used, so that ``import bci_adapt`` stays quick."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'bci_adapt' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
