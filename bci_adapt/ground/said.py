"""Warnings without what a terminal would obey, in the process of a command and in its workers."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

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
