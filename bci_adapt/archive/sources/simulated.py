"""Simulated sessions, written as NWB files on first use."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from bci_adapt.archive.sources.base import Source
from bci_adapt.data import simulate
from bci_adapt.errors import InputError
from bci_adapt.ground import catalog, seals
from bci_adapt.ground.storage import atomic_path, file_digest

if TYPE_CHECKING:
    import pandas as pd

SUBJECT = "Sim"
FIRST_DAY = datetime(2014, 3, 3, 12, tzinfo=UTC)


class Simulated(Source):
    """A series of sessions of one simulated monkey; see `bci_adapt.data.simulate`.

    Day 0 is 2014-03-03. `days` are the days of the sessions, as many as `n_sessions`; without it, all of `days`. Files
    lie in `folder`. A file is reused when it was made with the same arguments by the same version of the generator,
    and made anew when it was not; a file that this source did not make is never overwritten.
    """

    name = "simulated"

    def __init__(
        self,
        folder: Path | str,
        n_sessions: int | None = None,
        days: Sequence[int] = (0, 30, 210),
        duration_s: float = 480.0,
        n_units: int = 60,
        task: str = "centre_out",
        severity: float = 1.0,
        seed: int = 0,
        n_electrodes: int | None = None,
    ) -> None:
        """Raise `InputError` for arguments that cannot be simulated; nothing is written yet."""
        self.folder = Path(folder)
        self.days = [int(day) for day in days]
        if self.days != list(days) or self.days != sorted(set(self.days)) or not self.days:
            raise InputError(f"days must be whole numbers in rising order; got {list(days)}")
        if n_sessions is not None and n_sessions != len(self.days):
            raise InputError(f"n_sessions is {n_sessions} but days has {len(self.days)} ({self.days}); they must agree")
        n_electrodes = n_units if n_electrodes is None else n_electrodes
        simulate.check(self.days[0], duration_s, n_units, n_electrodes, task, severity, seed)
        self.arguments = {
            "duration_s": round(duration_s),
            "n_units": int(n_units),
            "n_electrodes": int(n_electrodes),
            "task": task,
            "severity": float(severity),
            "seed": int(seed),
        }
        self._days = {self._session_id(day): day for day in self.days}

    def _session_id(self, day: int) -> str:
        task = {"centre_out": "CO", "random_target": "RT"}[str(self.arguments["task"])]
        return f"sub-{SUBJECT}_ses-{task}-{FIRST_DAY + timedelta(days=day):%Y%m%d}"

    def _path(self, session_id: str) -> Path:
        return self.folder / f"{session_id}_behavior+ecephys.nwb"

    def list(self) -> pd.DataFrame:
        """See `Source.list`. Nothing is generated: a path may not exist until the session is fetched."""
        import pandas as pd

        rows = [(id_, self._path(id_), SUBJECT, FIRST_DAY + timedelta(days=day)) for id_, day in self._days.items()]
        table = pd.DataFrame(rows, columns=["session_id", "path", "subject", "session_start"])
        table["session_start"] = pd.to_datetime(table["session_start"], utc=True)
        return table.set_index("session_id")

    def fetch(self, session_id: str) -> Path:
        """See `Source.fetch`; `InputError` when a file that this source did not make is in the way."""
        if session_id not in self._days:
            raise InputError(f"simulated sessions: {catalog.unknown(session_id, list(self._days), 'session')}")
        path, identifier = self._path(session_id), self._identifier(session_id)
        if path.exists():
            own, whole = seals.seal_of(path).is_file(), seals.is_whole(path)
            found = _identifier_of(path, unreadable="" if own else None)
            if whole and found == identifier:
                return path
            if own and not whole:
                seals.tell_damaged(path, "it is simulated again")
        from bci_adapt.data.nwb_writing import write_recording

        recording = simulate.recording(self._days[session_id], **self.arguments)
        with atomic_path(path) as temporary:
            write_recording(
                temporary,
                recording,
                session_id=session_id,
                subject=SUBJECT,
                session_start=FIRST_DAY + timedelta(days=self._days[session_id]),
                identifier=identifier,
            )
            seals.seal(temporary, path)
        return path

    def _identifier(self, session_id: str) -> str:
        """``simulated-`` and a digest of all that decides what is in the file, the generator's own source included."""
        writer = Path(simulate.__file__).with_name("nwb_writing.py")
        sources = [file_digest(path) for path in (Path(simulate.__file__), simulate.PARAMETERS, writer)]
        text = json.dumps([session_id, self._days[session_id], self.arguments, sources], sort_keys=True)
        return f"simulated-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def _identifier_of(path: Path, unreadable: str | None = None) -> str:
    """Return the identifier inside a file; of one that cannot be read `unreadable`, where that is given. `InputError`
    unless it is a simulated NWB file.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            identifier = file["identifier"].asstr()[()]  # pyright: ignore[reportAttributeAccessIssue]
    except (OSError, KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        if unreadable is not None:
            return unreadable
        raise InputError(f"{path}: expected a simulated NWB file, cannot read it ({error}); move it away") from error
    if not str(identifier).startswith("simulated-"):
        raise InputError(f"{path}: is not a simulated file and will not be overwritten; choose another folder")
    return str(identifier)
