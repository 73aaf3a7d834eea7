"""A decoder that is used: trained on the days so far, led through one more, from a file (`adapting`) or live."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """This package is also the function that its name promises: ``bci_adapt.live(decoder)``."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """See `bci_adapt.live.opening.live`."""
        from bci_adapt.live.opening import live

        return live(*arguments, **named)


sys.modules[__name__].__class__ = _Callable
