"""English text, character by character."""

from __future__ import annotations

import re
import string
import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from bci_adapt.paper.streams.base import Made, Rival, Stream
from bci_adapt.paper.streams.rivals import Counts

# Printable ASCII without capitals, and the line's end.
ALPHABET = "\n" + "".join(c for c in map(chr, range(32, 127)) if c not in string.ascii_uppercase)
_OTHER = "?"


@dataclass(frozen=True)
class Characters(Stream):
    """The next character of the standard library's manual (`pydoc_data.topics`, topics in alphabetical order).

    Its alphabet of 70 is fixed beforehand: capitals become small letters, blanks that follow one another a single one,
    and what is neither printable ASCII nor a line's end a question mark.
    """

    name: ClassVar[str] = "characters"
    description: ClassVar[str] = "the next character of the Python manual, 70 different ones"
    loss: ClassVar[str] = "cross_entropy"
    n_outputs: ClassVar[int] = len(ALPHABET)

    def make(self, n_bins, seed, earlier, delay):
        codes = encoded()
        if n_bins >= len(codes):
            raise self.too_short(n_bins, len(codes) - 1)
        marked = np.eye(len(ALPHABET), dtype=np.int8)
        return Made(marked[codes[:n_bins]], marked[codes[1 : n_bins + 1]], {})

    def rivals(self, delay):
        K = len(ALPHABET)
        return {"unigram": Rival(lambda _: Counts(K)), "bigram": Rival(lambda _: Counts(K, by_row=True))}

    def origin(self) -> dict[str, str | None]:
        return {"python": ".".join(map(str, sys.version_info[:3]))}  # the text is the interpreter's own


def reduced(text: str) -> str:
    """The text in the alphabet."""
    text = re.sub(r"[^\S\n]+", " ", text.lower())
    return re.sub(f"[^{re.escape(ALPHABET)}]", _OTHER, text)


@lru_cache(maxsize=1)
def encoded() -> np.ndarray:
    """Positions in `ALPHABET` of every character of the text."""
    from pydoc_data.topics import topics

    places = {character: number for number, character in enumerate(ALPHABET)}
    return np.array([places[c] for c in reduced("\n".join(topics[name] for name in sorted(topics)))])
