"""Recordings, prepared sessions or arrays that already lie in a folder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from bci_adapt.archive.sources.base import Source, sessions_of
from bci_adapt.data.from_arrays import UNDATED
from bci_adapt.errors import InputError
from bci_adapt.ground import catalog

if TYPE_CHECKING:
    import pandas as pd


KINDS = {"recordings": ("*.nwb", "*.mat"), "prepared sessions": ("*.nc",), "arrays": ("*.npz",)}
"""What a folder may be one of, and the names of such files; the first kind that it has any of is what it stands for."""


class Folder(Source):
    """All recordings (``*.nwb``, ``*.mat``) below a folder, oldest session first; of a folder without any its prepared
    sessions (``*.nc``), or else its arrays (``*.npz``). Files of the other kinds are left out, which a note says.
    """

    name = "folder"
    order = "of their names"

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._listed: pd.DataFrame | None = None
        self._notes: list[str] = []

    def paths(self) -> list[Path]:
        """Return the files by name, none of them opened; `InputError` for a folder that is missing or has none."""
        if self.path.is_file():
            raise InputError(f"{self.path}: is a file; a folder was expected, such as the one that it lies in")
        if not self.path.is_dir():
            raise InputError(f"{self.path}: no such folder; a folder of recordings was expected")
        found = {kind: self._named(patterns) for kind, patterns in KINDS.items()}
        kinds = [kind for kind, paths in found.items() if paths]
        if not kinds:
            raise InputError(f"{self.path}: no *.nwb or *.mat file in this folder, nor *.nc or *.npz")
        left = [f"{len(found[kind])} {kind} ({', '.join(KINDS[kind])})" for kind in kinds[1:]]
        used = f"used are the {len(found[kinds[0]])} {kinds[0]}, not"
        self._notes = [f"{self.path}: {used} {' and '.join(left)} that lie there, too"] if left else []
        return found[kinds[0]]

    def _named(self, patterns: Iterable[str]) -> list[Path]:
        found = [path for pattern in patterns for path in self.path.rglob(pattern)]
        return sorted(path for path in found if not path.name.startswith("."))

    def list(self) -> pd.DataFrame:
        """See `Source.list`; `InputError` for a folder that is missing or has no recording, and for a bad file."""
        table = sessions_of(self.paths(), str(self.path))
        if len(table) > 1 and {*table["session_start"]} == {datetime.fromisoformat(UNDATED)}:
            named = ", ".join(path.name for path in table["path"][:3]) + (" …" if len(table) > 3 else "")
            self._notes.append(f"{named} do not say when they were recorded: taken in the order {self.order}")
        self._listed = table.copy()
        return table

    def notes(self) -> Sequence[str]:
        """See `Source.notes`: what was left out, and in which order undated files are taken."""
        return [*self._notes]

    def fetch(self, session_id: str) -> Path:
        """See `Source.fetch`; the folder is listed once, not for every session."""
        table = self.list() if self._listed is None else self._listed
        if session_id not in table.index:
            raise InputError(f"{self.path}: {catalog.unknown(session_id, table.index, 'session')}")
        return Path(table.loc[session_id, "path"])
