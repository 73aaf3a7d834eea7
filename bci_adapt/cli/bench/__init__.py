"""Measurements beside their limits and rivals."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text


def judged(text: str, met: bool) -> Text:
    """A cell of a table, green where its aim is met, else red; markup would be printed as it is written."""
    from rich.text import Text

    return Text(text, style="green" if met else "red")
