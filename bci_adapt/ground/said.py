"""What a command and its workers say: warnings without what a terminal would obey, refusals of the system in words."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator

from bci_adapt.ground.storage import refusal
from bci_adapt.ground.text import printable

MOST = 20_000
"""Characters of an error or a warning that are shown: a file can hold a text of any length."""


@contextlib.contextmanager
def printable_warnings() -> Iterator[None]:
    """Show every warning of the body without control characters: names and notes in them come from files."""
    usual = warnings.formatwarning
    warnings.formatwarning = lambda *told, **more: printable(usual(*told, **more), MOST)
    try:
        yield
    finally:
        warnings.formatwarning = usual


def refused(error: BaseException) -> str | None:
    """What to do about an error of the operating system (`refusal`), or about a library that found no memory to be
    loaded into; None for other errors.
    """
    no_memory = isinstance(error, ImportError) and re.search(r"map segment|allocate memory", str(error))
    return refusal(MemoryError() if no_memory else error)
