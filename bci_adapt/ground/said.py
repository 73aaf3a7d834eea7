"""What a command and its workers say: warnings without what a terminal would obey, refusals of the system in words."""

from __future__ import annotations

import contextlib
import functools
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from bci_adapt.ground.seals import DamagedWarning
from bci_adapt.ground.storage import refusal
from bci_adapt.ground.text import printable

MOST = 20_000
"""Characters of an error or a warning that are shown: a file can hold a text of any length."""


_LOCK = threading.Lock()
_BODIES: list[Callable[..., str]] = []
"""For each body at work, in whatever thread, how warnings were formatted before the first of them."""


@contextlib.contextmanager
def printable_warnings() -> Iterator[None]:
    """Show every warning of the body without control characters: names and notes in them come from files. What was
    damaged and is mended is a note, without the line of code that found it.
    """
    with _LOCK:
        usual = _BODIES[0] if _BODIES else warnings.formatwarning
        _BODIES.append(usual)
        warnings.formatwarning = functools.partial(_formatted, usual)
    try:
        yield
    finally:
        with _LOCK:
            _BODIES.pop()
            if not _BODIES:
                warnings.formatwarning = usual


def _formatted(usual: Callable[..., str], message: Any, category: type[Warning], *told: Any, **more: Any) -> str:
    if issubclass(category, DamagedWarning):
        return printable(f"note: {message}\n", MOST)
    return printable(usual(message, category, *told, **more), MOST)


def refused(error: BaseException) -> str | None:
    """What to do about an error of the operating system (`refusal`), or about a library that found no memory to be
    loaded into; None for other errors.
    """
    for each in (error, error.__context__):  # llvmlite words what the loader said anew
        if isinstance(each, ImportError | OSError) and re.search(r"map segment|allocate memory", str(each)):
            return refusal(MemoryError())
    return refusal(error)
