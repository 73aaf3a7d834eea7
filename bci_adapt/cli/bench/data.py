"""Benchmark of preparation: from an NWB file to a session in memory, beside raw reads and the way through pynwb.

The file is written for the occasion, in the layout of DANDI 000688: 20 minutes, 200 units on 96 electrodes, a million
spikes, a cursor at 100 Hz, and doubly indexed waveforms of 48 samples a spike, which nobody here needs. It is measured
twice: as pynwb writes it, uncompressed, and with the arrays that a session needs in gzip, as archives recommend.
Everything is warm: the file is in the page cache. What is measured takes turns (A B A B …) after a round that warms up,
and the fastest counts; the rivals follow, each after a call that warms up, and the slow one is timed twice.

- ``raw``: h5py opens the file and reads the arrays a session needs; the floor.
- ``prepare, no digest``: from the file to a session in memory, without the SHA-256 of the whole file, waveforms and
  all, that a session carries as its provenance; ``digest`` is that alone and ``prepare`` is what a user waits for.
- ``pynwb``: ``units.to_dataframe()`` and np.histogram for each unit, no kinematics. ``pynwb, no waveforms`` leaves that
  column out, as one who knows would. Both must give the same counts as the session, or the benchmark stops.
- memory: in a process of its own that has prepared a small file before, the peak of tracemalloc, to which numpy
  reports, and the growth of the resident set.
- waveforms: bytes that the process asked the kernel for during ``prepare, no digest`` (Linux only), which must be fewer
  than all else in the file; and with waveforms that cannot be read without an error the session must be the same.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import h5py
import numpy as np
import xarray as xr

from bci_adapt.cli.bench import judged
from bci_adapt.cli.bench.measuring import clock, forget_peak, processes, resident, traced_peak
from bci_adapt.data import nwb, simulate
from bci_adapt.data.nwb import ELECTRODES, TRIALS
from bci_adapt.data.nwb_writing import write_recording
from bci_adapt.data.prepare import prepare
from bci_adapt.ground.storage import file_digest

if TYPE_CHECKING:
    from rich.table import Table

BIN_S = 0.02
PLAIN, GZIP = "as pynwb writes it", "gzip"
RIVAL, RIVAL_INFORMED = "pynwb", "pynwb, no waveforms"
_BEHAVIOUR = tuple(
    f"processing/behavior/{series}/{part}"
    for series in ("Position/cursor_pos", "Velocity/cursor_vel")
    for part in ("data", "timestamps")
)
NEEDED = (
    *(f"units/{name}" for name in ("spike_times", "spike_times_index", "electrodes", "electrodes_index")),
    *_BEHAVIOUR,
    *(f"{ELECTRODES}/{name}" for name in ("id", "group_name", "label")),
    *(f"{TRIALS}/{name}" for name in ("id", "start_time", "stop_time", "go_cue_time", "result", "target_dir")),
)
"""Datasets of which a session is made."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Size:
    """What is in the file, and how often each thing is timed."""

    duration_s: float = 1200.0
    n_units: int = 200
    n_electrodes: int = 96
    n_spikes: int = 1_000_000
    n_samples: int = 48
    rounds: int = 12


QUICK = Size(duration_s=60.0, n_units=20, n_electrodes=12, n_spikes=5_000, n_samples=8, rounds=2)


def write_file(path: Path, size: Size, gzip: bool = False) -> None:
    """Write the file of the benchmark, the same for the same arguments up to pynwb's own object ids."""
    rng = np.random.default_rng(0)
    share = rng.lognormal(0.0, 0.5, size.n_units)
    of_unit = rng.multinomial(size.n_spikes, share / share.sum())
    n_ms = round(1000 * size.duration_s)
    recording = simulate.Recording(
        task="centre_out",
        day=0,
        severity=1.0,
        seed=0,
        n_electrodes=size.n_electrodes,
        behaviour=simulate.behaviour("centre_out", size.duration_s, rng),
        units=simulate.population(0, size.n_units, size.n_electrodes, 1.0, 0),
        spike_ms=[np.sort(rng.choice(n_ms, n, replace=False, shuffle=False)) + 1 for n in of_unit],
    )
    start = datetime(2014, 3, 3, 12, tzinfo=UTC)
    write_recording(
        path, recording, session_id="CO-20140303", subject="Bench", session_start=start, identifier="benchmark"
    )
    with h5py.File(path, "r+") as file:
        units: Any = file["units"]
        if gzip:
            for key in ("units/spike_times", *_BEHAVIOUR):
                _compress(file, key)
            units["spike_times_index"].attrs["target"] = units["spike_times"].ref
        _add_waveforms(units, of_unit, size.n_samples, rng)


def _compress(file: Any, key: str) -> None:
    values, attrs = file[key][()], dict(file[key].attrs)
    del file[key]
    file.create_dataset(key, data=values, compression="gzip", chunks=True).attrs.update(attrs)


def _add_waveforms(units: Any, of_unit: np.ndarray, n_samples: int, rng: np.random.Generator) -> None:
    """Noise as one waveform for each spike: rows of samples, one row a spike, as many spikes as the unit has."""
    n_spikes = int(of_unit.sum())
    samples = rng.integers(-300, 300, (n_spikes, n_samples), dtype=np.int16)
    data = units.create_dataset("waveforms", data=samples, chunks=(min(n_spikes, 4096), n_samples))
    spikes = units.create_dataset("waveforms_index", data=np.arange(1, n_spikes + 1, dtype=np.uint32))
    rows = units.create_dataset("waveforms_index_index", data=np.cumsum(of_unit).astype(np.uint32))
    about = {"namespace": "hdmf-common", "description": "waveform of each spike"}
    data.attrs.update({"neurodata_type": "VectorData", "unit": "volts", **about})
    spikes.attrs.update({"neurodata_type": "VectorIndex", "target": data.ref, **about})
    rows.attrs.update({"neurodata_type": "VectorIndex", "target": spikes.ref, **about})
    units.attrs["colnames"] = np.asarray([*units.attrs["colnames"], "waveforms"], dtype=h5py.string_dtype())


# ------------------------------------------------------------------------------------------- what is measured


def read_raw(path: Path) -> int:
    """Read what a session needs with h5py alone; returns bytes."""
    with h5py.File(path, "r") as file:
        arrays = [np.asarray(file[key][()]) for key in NEEDED]  # pyright: ignore[reportIndexIssue]
    return sum(array.nbytes for array in arrays)


def _prepare(path: Path) -> xr.Dataset:
    return prepare(path, BIN_S)


def _without_digest(path: Path) -> xr.Dataset:
    with patch.object(nwb, "file_digest", lambda path: ""):
        return prepare(path, BIN_S)


def rival(path: Path, edges_s: np.ndarray, exclude: set[str]) -> np.ndarray:
    """Counts (n_bins, n_units) by way of pynwb; bins are closed at their end, as ours, to half a microsecond."""
    from pynwb import NWBHDF5IO

    open_file: Any = NWBHDF5IO
    with open_file(str(path), mode="r", load_namespaces=True) as io:
        table = io.read().units.to_dataframe(exclude=exclude)
        counts = [np.histogram(times, edges_s + 0.5e-6)[0] for times in table["spike_times"]]
    return np.stack(counts, axis=1)


def require_same(session: xr.Dataset, path: Path, counts: np.ndarray) -> None:
    """Raise `RuntimeError` unless a rival's counts (n_bins, n_units), pooled by electrode, are those of `session`."""
    with h5py.File(path, "r") as file:
        electrode = np.asarray(file["units/electrodes"][()])  # pyright: ignore[reportIndexIssue]
    pooled = np.zeros(session["counts"].shape, dtype=np.int64)
    np.add.at(pooled.T, electrode, counts.T)
    if not np.array_equal(pooled, session["counts"].values):
        raise RuntimeError("pynwb and np.histogram give other counts than the session: nothing can be compared")


def measure_memory(path: Path, small: Path) -> dict[str, int]:
    """In a process of its own: bytes of the session, peak of tracemalloc, and growth of the resident set."""
    _prepare(small)  # and with it everything that is loaded on first use
    forget_peak()
    before, _ = resident()
    session = _prepare(path)
    growth = resident()[1] - before
    n_bytes = session.nbytes
    del session
    return {"session": n_bytes, "growth": growth, "traced": traced_peak(lambda: _prepare(path))}


def _asked_for(path: Path) -> int | None:
    """Bytes that this process reads while it prepares a file without its digest; None where the kernel does not say."""
    counter = Path("/proc/self/io")
    if not counter.exists():
        return None

    def total() -> int:
        return int(counter.read_text().split("rchar:")[1].split()[0])

    begin = total()
    _without_digest(path)
    return total() - begin


def damage_waveforms(path: Path) -> int:
    """Store the waveforms anew under checksums that do not hold: reading any is an error now. Returns their bytes."""
    with h5py.File(path, "r+") as file:
        units: Any = file["units"]
        old = units["waveforms"]
        shape, dtype, chunks, n_bytes = old.shape, old.dtype, old.chunks, old.id.get_storage_size()
        del units["waveforms"]
        new = units.create_dataset("waveforms", shape, dtype, chunks=chunks, fletcher32=True)
        chunk = b"\x01" * int(np.prod(chunks)) * dtype.itemsize + b"\xff" * 4
        for first in range(0, shape[0], chunks[0]):
            new.id.write_direct_chunk((first, 0), chunk)
    return n_bytes


def data(quick: bool = False, say: Say = lambda text: None) -> dict[str, Any]:
    """Measure everything; `quick` takes a tiny file: a check that it works, not a figure.

    Returns `times` (rows of seconds), `aims` (each with its value, its limit and whether it is met) and the figures
    behind them. `RuntimeError` when a rival counts something else.
    """
    size = QUICK if quick else Size()
    folder = Path(tempfile.mkdtemp(prefix="bci-adapt-bench-"))
    try:
        return _measure(size, folder, say)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _measure(size: Size, folder: Path, say: Say) -> dict[str, Any]:
    say("writing the files")
    paths = {PLAIN: folder / "plain.nwb", GZIP: folder / "gzip.nwb"}
    for stored, path in paths.items():
        write_file(path, size, gzip=stored == GZIP)
    times: list[dict[str, Any]] = []
    for stored, path in paths.items():
        calls = {"raw": read_raw, "prepare, no digest": _without_digest, "digest": file_digest, "prepare": _prepare}
        took: dict[str, list[float]] = {name: [] for name in calls}
        for number in range(-1, size.rounds):  # the first round warms up
            say(f"{stored}: round {number + 1} of {size.rounds}")
            for name, call in calls.items():
                seconds = clock(call, path)
                took[name] += [seconds] if number >= 0 else []
        times += [_row(stored, name, seconds) for name, seconds in took.items()]

    path = paths[PLAIN]
    session = _prepare(path)
    edges_s = np.concatenate([session["time"].values[:1] - BIN_S, session["time"].values])
    for name, exclude, rounds in ((RIVAL_INFORMED, {"waveforms"}, size.rounds), (RIVAL, set[str](), 2)):
        seconds = []
        for number in range(-1, rounds):  # the first call warms up
            say(f"{name}: {number + 1} of {rounds}")
            begin = time.perf_counter()
            counts = rival(path, edges_s, exclude)
            seconds += [time.perf_counter() - begin] if number >= 0 else []
            require_same(session, path, counts)
        times.append(_row(PLAIN, name, seconds))

    say("memory")
    small = folder / "small.nwb"
    write_file(small, replace(QUICK, n_electrodes=size.n_electrodes))
    with processes() as pool:
        memory = pool.submit(measure_memory, path, small).result()

    say("waveforms")
    file_bytes, asked_bytes = path.stat().st_size, _asked_for(path)
    waveform_bytes = damage_waveforms(path)
    same = _without_digest(path).drop_attrs(deep=False).identical(session.drop_attrs(deep=False))
    return {
        "size": {
            **asdict(size),
            "quick": size == QUICK,
            "bin_s": BIN_S,
            "file_bytes": file_bytes,
            "load_average": os.getloadavg()[0],
        },
        "times": times,
        "memory": memory,
        "waveforms": {"bytes": waveform_bytes, "asked_bytes": asked_bytes, "same_when_damaged": same},
        "aims": _aims(
            {(row["file"], row["what"]): row["best_s"] for row in times},
            memory,
            same and (asked_bytes is None or asked_bytes < file_bytes - waveform_bytes),
        ),
    }


def _row(stored: str, what: str, seconds: list[float]) -> dict[str, Any]:
    return {"file": stored, "what": what, "best_s": min(seconds), "median_s": statistics.median(seconds)}


def _aims(best: dict[tuple[str, str], float], memory: dict[str, int], untouched: bool) -> list[dict[str, Any]]:
    aims: list[dict[str, Any]] = []

    def aim(what: str, value: float, limit: float, at_most: bool = True) -> None:
        met = value <= limit if at_most else value >= limit
        aims.append({"aim": what, "value": value, "limit": limit, "at_most": at_most, "met": met})

    for stored in (PLAIN, GZIP):
        for what in ("prepare, no digest", "prepare"):
            aim(f"{what} / raw read ({stored})", best[stored, what] / best[stored, "raw"], 3.0)
    for name in (RIVAL, RIVAL_INFORMED):
        for what in ("prepare, no digest", "prepare"):
            aim(f"{name} / {what}", best[PLAIN, name] / best[PLAIN, what], 5.0, at_most=False)
    aim("peak of tracemalloc / session", memory["traced"] / memory["session"], 3.0)
    aim("growth of the resident set / session", memory["growth"] / memory["session"], 3.0)
    aim("waveforms touched", float(not untouched), 0.0)
    return aims


def tables(found: dict[str, Any]) -> list[Table]:
    """What `data` found as two tables, at most 100 columns wide; an unmet aim is red, a tiny file judges none."""
    from rich.table import Table

    size, memory, touched = found["size"], found["memory"], found["waveforms"]
    about = f"{size['n_units']} units, {size['n_spikes']:,} spikes, {size['file_bytes'] / 1e6:,.0f} MB; milliseconds"
    times = Table(title=f"{about}; load {size['load_average']:.1f}", title_justify="left")
    for heading in ("file", "what", "best", "median"):
        times.add_column(heading, justify="right" if heading in ("best", "median") else "left")
    for row in found["times"]:
        times.add_row(row["file"], row["what"], f"{1e3 * row['best_s']:,.1f}", f"{1e3 * row['median_s']:,.1f}")
    megabytes = {name: f"{n / 1e6:,.1f}" for name, n in memory.items()}
    aims = Table(
        title=f"session {megabytes['session']} MB, peak {megabytes['traced']} MB, resident {megabytes['growth']} MB; "
        f"waveforms {touched['bytes'] / 1e6:,.1f} MB"
        + (f", {touched['asked_bytes'] / 1e6:,.1f} MB read" if touched["asked_bytes"] is not None else ""),
        title_justify="left",
    )
    for heading in ("aim", "value", "limit", ""):
        aims.add_column(heading, justify="right" if heading in ("value", "limit") else "left")
    for row in found["aims"]:
        verdict = "not judged" if size["quick"] else judged("met" if row["met"] else "not met", row["met"])
        limit = f"{'≤' if row['at_most'] else '≥'} {row['limit']:g}"
        aims.add_row(row["aim"], f"{row['value']:.2f}", limit, verdict)
    return [times, aims]
