"""Benchmark of the way in: fetching beside the archive's own client, planning what is cached, listing many sessions.

A stand-in for the archive serves on loopback from a process of its own, so that the network costs nothing and what is
left is the clients' work. All of it is the whole command or call that a user waits for, the fastest of a few.

- ``fetch``: `bci-adapt fetch` of 8 files into an empty cache, beside `dandi download` of the same; both verify. They
  take turns (A B A B …).
- ``plan``: from an archive to verified paths, for 111 pinned and cached assets of 12 GB in all, whose digests were
  computed within the day. The files are sparse: what is measured reads none of their bytes.
- ``list``: 300 NWB files in a folder, sorted by when they were recorded; and 300 assets of an archive.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import h5py
import numpy as np

from bci_adapt.archive import cache as entries
from bci_adapt.archive.download import digests_of
from bci_adapt.archive.lock import ETAG, SHA256, Asset
from bci_adapt.archive.sources.dandi import Dandi
from bci_adapt.archive.sources.folder import Folder
from bci_adapt.cli.bench import judged
from bci_adapt.cli.bench.loopback import DANDISET, VERSION, serving
from bci_adapt.cli.bench.measuring import clock

if TYPE_CHECKING:
    from rich.table import Table

Say = Callable[[str], None]
N_FILES, FILE_BYTES, ROUNDS = 8, 48 * 2**20, 3
N_PINNED, PINNED_BYTES = 111, 12 * 10**9
N_SESSIONS = 300
LIMIT_S = 2.0


def archive(quick: bool = False, say: Say = lambda text: None) -> dict[str, Any]:
    """Measure everything; `quick` takes tiny files: a check that it works, not a figure.

    Returns `times` (seconds by name) and `aims` (each with its value, its limit and whether it is met).
    """
    folder = Path(tempfile.mkdtemp(prefix="bci-adapt-bench-"))
    try:
        with patch.dict(os.environ, {"NO_PROXY": "127.0.0.1", "DANDI_NO_ET": "1"}):
            times = _fetching(folder / "fetch", 2**16 if quick else FILE_BYTES, 1 if quick else ROUNDS, say)
            times |= _planning(folder / "plan", 5 if quick else N_PINNED, say)
            times |= _listing(folder / "list", 10 if quick else N_SESSIONS, say)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    ratio = times[OURS] / times[RIVAL]
    aims = [{"aim": f"{OURS} / {RIVAL}", "value": ratio, "limit": 1.0}]
    aims += [{"aim": f"{name} (s)", "value": times[name], "limit": LIMIT_S} for name in (PLAN, LIST, LIST_ARCHIVE)]
    return {"quick": quick, "times": times, "aims": [aim | {"met": aim["value"] <= aim["limit"]} for aim in aims]}


COMMANDS = OURS, RIVAL = "bci-adapt fetch", "dandi download"
PLAN = "plan 111 pinned, cached assets of 12 GB"
LIST, LIST_ARCHIVE = "list 300 sessions of a folder", "list 300 sessions of an archive"


def _name(number: int) -> str:
    return f"sub-C/sub-C_ses-CO-{number:08d}_behavior+ecephys.nwb"


def _claimed(n: int, size: int) -> list[dict[str, Any]]:
    """Rows of a listing whose bytes nobody asks for."""
    digests = ({"sha256": f"{number:064x}", "etag": f"{number:032x}-1"} for number in range(n))
    return [{"path": _name(number), "size": size, "file": ""} | each for number, each in enumerate(digests)]


def _fetching(folder: Path, size: int, rounds: int, say: Say) -> dict[str, float]:
    """Seconds of `bci-adapt fetch` and of `dandi download` of the same files."""
    folder.mkdir()
    rng, rows = np.random.default_rng(0), []
    for number in range(N_FILES):
        file = folder / f"{number}.bin"
        file.write_bytes(rng.bytes(size))
        found = digests_of(file)
        about = {"size": size, "sha256": found[SHA256], "etag": found[ETAG], "file": str(file)}
        rows.append({"path": _name(number), **about})
    took: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with serving(rows, folder) as url, patch.dict(os.environ, {"DANDI_INSTANCE": url}):
        for number in range(rounds):
            for name in took:
                say(f"{name}: {number + 1} of {rounds}")
                into = folder / "into"
                into.mkdir()
                took[name].append(clock(_run, name, into))
                files = [path for path in into.rglob("*.nwb") if path.stat().st_size == size]
                if len(files) != N_FILES:
                    raise RuntimeError(f"{name} brought {len(files)} of {N_FILES} files")
                shutil.rmtree(into)
    return {name: min(seconds) for name, seconds in took.items()}


def _run(name: str, into: Path) -> None:
    if name == RIVAL:
        command = [
            "-c",
            "from dandi.cli.command import main; main()",
            "download",
            "-i",
            os.environ["DANDI_INSTANCE"],
            "-o",
            str(into),
            "-J",
            "4",
        ]
        command.append(f"{os.environ['DANDI_INSTANCE']}/dandisets/{DANDISET}/versions/{VERSION}/")
    else:
        command = ["-m", "bci_adapt.cli", "fetch", f"{DANDISET}/{VERSION}", "-q"]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=into,
        env=os.environ | {"BCI_ADAPT_CACHE": str(into / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{name} failed: {done.stderr[-1000:]}")


def _planning(folder: Path, n: int, say: Say) -> dict[str, float]:
    """Seconds from a new `Dandi` to the paths of all files, verified, with lock and cache complete."""
    say("planning")
    folder.mkdir()
    size = PINNED_BYTES // N_PINNED
    rows = _claimed(n, size)
    with serving(rows, folder) as url, patch.dict(os.environ, {"DANDI_INSTANCE": url}):
        raw = entries.folder_of(entries.raw_folder(folder / "cache"), url)
        _fill(raw, rows, url)
        return {PLAN: min(clock(lambda: Dandi(DANDISET, cache=folder / "cache").obtain()) for _ in range(ROUNDS))}


def _fill(raw: Path, rows: list[dict[str, Any]], url: str) -> None:
    """Sparse files in the cache, with the records of digests that were computed a minute ago."""
    for row in rows:
        asset = Asset(DANDISET, VERSION, row["path"], row["asset_id"], row["size"], row["sha256"], row["etag"])
        file = entries.file_of(raw, asset)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        os.truncate(file, row["size"])
        moment = time.time() - 3600
        os.utime(file, (moment, moment))
        checked = entries.Checked(time.time() - 60, file.stat().st_mtime_ns, row["sha256"])
        entries.write_record(file, entries.Record(asset, "spdx:CC-BY-4.0", url, "2025-01-22T17:35:00Z", checked))


def _listing(folder: Path, n: int, say: Say) -> dict[str, float]:
    """Seconds to list sessions of a folder of small NWB files, and the assets of an archive."""
    say("listing")
    (folder / "files").mkdir(parents=True)
    for number in range(n):
        _small(folder / "files" / f"{number}.nwb", number)
    rows = _claimed(n, 10)
    times = {LIST: min(clock(lambda: Folder(folder / "files").list()) for _ in range(ROUNDS))}
    with serving(rows, folder) as url, patch.dict(os.environ, {"DANDI_INSTANCE": url}):
        caches = [folder / f"cache{number}" for number in range(ROUNDS)]
        seconds = [clock(Dandi(DANDISET, cache=cache).select) for cache in caches]
    return times | {LIST_ARCHIVE: min(seconds)}


def _small(path: Path, number: int) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["nwb_version"] = "2.6.0"
        texts = {"session_description": "a benchmark", "identifier": f"{number}", "general/session_id": f"CO-{number}"}
        texts |= {"session_start_time": f"{2000 + number // 12}-{1 + number % 12:02d}-03T12:00:00+00:00"}
        for name, text in (texts | {"general/subject/subject_id": "C"}).items():
            file.create_dataset(name, data=text, dtype=h5py.string_dtype())
        for table in range(20):  # as many objects as a small recording has
            file.create_dataset(f"processing/behavior/series{table}/data", data=np.zeros((10, 2)))


def table_of(found: dict[str, Any]) -> Table:
    """What `archive` found, beside its aims; tiny files judge none."""
    from rich.table import Table

    size = "tiny files" if found["quick"] else f"{N_FILES} files of {FILE_BYTES / 1e6:.0f} MB"
    seconds = ", ".join(f"{name} {took:.2f} s" for name, took in found["times"].items() if name in COMMANDS)
    table = Table(title=f"archive on loopback, {size}: {seconds}", title_justify="left")
    for heading in ("aim", "value", "limit", ""):
        table.add_column(heading, justify="right" if heading in ("value", "limit") else "left")
    for row in found["aims"]:
        verdict = "not judged" if found["quick"] else judged("met" if row["met"] else "not met", row["met"])
        table.add_row(row["aim"], f"{row['value']:.2f}", f"≤ {row['limit']:g}", verdict)
    return table
