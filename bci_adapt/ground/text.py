"""Text from files, made safe to show."""

from __future__ import annotations

import re
from typing import Any

_HIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]+")


_HIDDEN_IN_LINES = re.compile(_HIDDEN.pattern.replace(r"\x00-\x1f", r"\x00-\x09\x0b-\x1f"))


def printable(text: str, limit: int | None = None) -> str:
    """`text` of any length without what a terminal would obey, line by line; no more than `limit` characters of it."""
    if limit is not None and len(text) > limit:
        text = f"{text[: limit - 1]}…"
    return _HIDDEN_IN_LINES.sub(" ", text)


def escaped(json_text: str) -> str:
    """JSON that says the same, with all that a terminal would obey as ``\\u…``."""
    return _HIDDEN_IN_LINES.sub(lambda found: "".join(f"\\u{ord(each):04x}" for each in found[0]), json_text)


def clean(value: Any, limit: int = 2000) -> str:
    """Return text from a file as one line that is safe to print: no control or direction characters, not too long."""
    if isinstance(value, bytes):
        value = value[: 20 * limit].decode("utf-8", errors="replace")
    text = " ".join(_HIDDEN.sub(" ", str(value)[: 20 * limit]).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
