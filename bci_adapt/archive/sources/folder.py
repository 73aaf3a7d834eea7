"""Recordings, NWB or MATLAB 7.3, that already lie in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bci_adapt.archive.sources.base import Source, sessions_of
from bci_adapt.errors import InputError
from bci_adapt.ground import catalog

if TYPE_CHECKING:
    import pandas as pd


class Folder(Source):
    """All ``*.nwb`` and ``*.mat`` files below a folder, oldest session first."""

    name = "folder"

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._listed: pd.DataFrame | None = None

    def paths(self) -> list[Path]:
        """Return the recordings by name, none of them opened; `InputError` for a folder that is missing or has none."""
        if not self.path.is_dir():
            raise InputError(f"{self.path}: no such folder; a folder of recordings was expected")
        found = [path for pattern in ("*.nwb", "*.mat") for path in self.path.rglob(pattern)]
        paths = sorted(path for path in found if not path.name.startswith("."))
        if not paths:
            raise InputError(f"{self.path}: no *.nwb or *.mat file in this folder")
        return paths

    def list(self) -> pd.DataFrame:
        """See `Source.list`; `InputError` for a folder that is missing or has no recording, and for a bad file."""
        table = sessions_of(self.paths(), str(self.path))
        self._listed = table.copy()
        return table

    def fetch(self, session_id: str) -> Path:
        """See `Source.fetch`; the folder is listed once, not for every session."""
        table = self.list() if self._listed is None else self._listed
        if session_id not in table.index:
            raise InputError(f"{self.path}: {catalog.unknown(session_id, table.index, 'session')}")
        return Path(table.loc[session_id, "path"])
