"""Sequences larger than memory: items are made as they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class OneByOne(Sequence[T], Generic[T]):
    """A sequence whose items are made, ``make(of[i])``, each time they are asked for, and not kept: whoever goes
    through it holds one at a time.
    """

    def __init__(self, make: Callable[[Any], T], of: Sequence[Any]) -> None:
        self._make, self._of = make, of

    def __len__(self) -> int:
        return len(self._of)

    def __getitem__(self, at: Any) -> Any:
        return OneByOne(self._make, self._of[at]) if isinstance(at, slice) else self._make(self._of[at])
