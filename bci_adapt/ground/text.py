"""Text from files, made safe to show."""

from __future__ import annotations

import re
from typing import Any

_HIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]+")


def clean(value: Any, limit: int = 2000) -> str:
    """Return text from a file as one line that is safe to print: no control or direction characters, not too long."""
    if isinstance(value, bytes):
        value = value[: 20 * limit].decode("utf-8", errors="replace")
    text = " ".join(_HIDDEN.sub(" ", str(value)[: 20 * limit]).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
