"""What a source of NWB files is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bci_adapt.data.from_arrays import UNDATED
from bci_adapt.data.guarded_reading import identify
from bci_adapt.errors import InputError

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

    def notes(self) -> Sequence[str]:
        """What a user should know about what was listed and fetched, in sentences; none before `list`."""
        return []

    def datasets(self) -> Sequence[dict[str, Any]]:
        """The published datasets that recordings are from: dandiset, version, archive, licence, authors, citation."""
        return []


def sessions_of(paths: Iterable[Path], where: str) -> pd.DataFrame:
    """Return the table of `Source.list` for files at `paths`; `InputError` when two of them are one session.

    Files that do not say when they were recorded stay in the order they came in; `InputError` where only some do not.
    """
    import pandas as pd

    listed = list(paths)
    known = identify(listed, len(listed) > 1)
    rows = [{**each, "path": path} for each, path in zip(known, listed, strict=True)]
    table = pd.DataFrame(rows).set_index("session_id")
    for session_id in table.index[table.index.duplicated()]:
        names = ", ".join(path.name for path in table.loc[[session_id], "path"])
        raise InputError(f"{where}: {names} are all session {session_id!r}; keep or select one of them")
    undated = [row["path"] for row in rows if not row["session_start"]]
    if undated and len(undated) < len(rows):
        dated = next(row["path"] for row in rows if row["session_start"])
        raise InputError(
            f"{undated[0]}: does not say when it was recorded (session_start), {dated.name} does: sessions are put in "
            "order by it, so that all have to say it, or none"
        )
    starts = table["session_start"].replace("", UNDATED)
    table["session_start"] = pd.to_datetime(starts, utc=True, format="ISO8601")
    table = table.sort_values(["session_start", "subject"], kind="stable")
    return table.loc[:, ["path", "subject", "session_start"]]
