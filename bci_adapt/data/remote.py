"""What a recording is that is read where it lies."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Remote:
    """A file that is read over the network and never whole, so that nothing of it is verified.

    `said` is the sentence about it that a session's warnings carry; `open` gives a binary stream that can seek.
    """

    name: str
    said: str
    open: Callable[[], io.RawIOBase]

    def __str__(self) -> str:
        return self.name
