"""What a source of NWB files is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


class Source(ABC):
    """A place NWB files come from; `name` is what the command line calls it."""

    name: str

    @abstractmethod
    def list(self) -> pd.DataFrame:
        """Return the sessions in the order they were recorded.

        Index ``session_id`` (unique); columns ``path`` (Path), ``subject`` (str), ``session_start`` (UTC timestamp).
        """

    @abstractmethod
    def fetch(self, session_id: str) -> Path:
        """Return the path of a session's NWB file, after making it available; `InputError` for an unknown id."""

    def provenance(self, session_id: str) -> dict[str, str]:
        """Where a session's file is from, as attributes of the session; nothing unless the source knows."""
        return {}
