"""What is inside an NWB file: neural sources, series that may serve as targets, trials, electrodes, and what is odd."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from bci_adapt.data.nwb import (
    ELECTRODES,
    MATLAB,
    READ_ERRORS,
    TRIALS,
    NwbFile,
    flat_shape,
    spikes_of_units,
    unit_tables,
)
from bci_adapt.errors import InputError
from bci_adapt.ground.text import clean

if TYPE_CHECKING:
    from rich.console import Group

NAN_FRACTION_BYTES = 256 * 2**20
"""Largest series whose missing values `count_missing` counts."""
_COUNTS = re.compile(r"threshold.?crossing|spike.?count|binned|^counts?$", re.IGNORECASE)
_MATLAB_NAME = re.compile(r"([A-Za-z]+)_(\d{8}_\d+)")
_VOLTAGE = {"ElectricalSeries", "SpikeEventSeries"}


@dataclass(frozen=True)
class Neural:
    """A neural source: spike times of units, counts per bin, or voltage."""

    kind: str
    path: str
    shape: tuple[int, ...]
    channels: int
    unit: str
    rate_hz: float | None
    start_s: float | None
    stop_s: float | None


@dataclass(frozen=True)
class Series:
    """A time series that may serve as a target."""

    path: str
    type: str
    shape: tuple[int, ...]
    unit: str
    rate_hz: float | None
    timestamps: bool
    start_s: float | None
    stop_s: float | None
    nan_fraction: float | None = None


@dataclass
class Description:
    """What is inside an NWB file, and what would be used of it."""

    file: str
    nwb_version: str
    session_id: str
    subject: str
    session_start: str
    description: str
    neural: list[Neural] = field(default_factory=list)
    series: list[Series] = field(default_factory=list)
    trials: dict[str, Any] = field(default_factory=dict)
    electrodes: dict[str, Any] = field(default_factory=dict)
    units: dict[str, Any] = field(default_factory=dict)
    channels: list[str] = field(default_factory=list)
    unusable: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    layouts: list[dict[str, Any]] = field(default_factory=list)
    chosen: str | None = None
    why: str = ""

    def error(self, message: str) -> InputError:
        """An `InputError` about this file."""
        return InputError(f"{self.file}: {message}")

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        return asdict(self)

    def paths(self) -> set[str]:
        """Paths of all neural sources and series."""
        return {source.path for source in [*self.neural, *self.series]}

    def table(self) -> Group:
        """A renderable of rich; text of the file is never read as markup."""
        from rich.console import Group
        from rich.padding import Padding
        from rich.table import Table
        from rich.text import Text

        def grid(rows: list[tuple[str, ...]], indent: int = 0) -> Padding:
            """Rows of short cells, the last one of which folds under itself."""
            made = Table.grid(padding=(0, 2))
            for name, *more in rows:
                made.add_row(Text(name, style="dim"), *(Text(clean(value, 200) or "–") for value in more))
            return Padding(made, (0, 0, 0, indent), expand=False)

        def entry(path: str, *details: str | None) -> list[Any]:
            said = ", ".join(clean(detail, 200) for detail in details if detail)
            lines = (Text(clean(path, 200)), 2), (Text(said, style="dim"), 6)
            return [Padding(line, (0, 0, 0, indent), expand=False) for line, indent in lines]

        def heading(text: str) -> list[Text]:
            return [Text(), Text(text, style="bold")]

        about = [
            ("NWB version", self.nwb_version),
            ("session", self.session_id),
            ("subject", self.subject),
            ("start", self.session_start),
            ("description", self.description),
            ("trials", ", ".join([str(self.trials["count"]), *self.trials["columns"]])),
            ("electrodes", ", ".join([str(self.electrodes["count"]), *self.electrodes["groups"]])),
        ]
        parts: list[Any] = [Text(clean(self.file, 200), style="bold"), grid(about), *heading("Neural sources")]
        for source in self.neural:
            many = f"{source.channels} {'units' if source.kind == 'spike times' else 'channels'}"
            many = f"{source.shape[0]} bins × {many}" if source.kind == "binned counts" else many
            parts += entry(source.path, source.kind, many, source.unit, _rate_words(source), _span_words(source))
        parts += [] if self.neural else [Text("  none")]
        parts += heading("Target series")
        for series in self.series:
            size = " × ".join(map(str, series.shape))
            clock = "timestamps" if series.timestamps else _rate_words(series)
            missing = None if series.nan_fraction is None else f"{100 * series.nan_fraction:.2g} % missing"
            unit = series.unit or "no unit"
            parts += entry(series.path, series.type, size, unit, clock, _span_words(series), missing)
        parts += [] if self.series else [Text("  none")]
        if self.layouts:
            parts += heading("Layouts")
            parts += [grid([(each["name"], f"{each['score']:.2f}", each["reason"]) for each in self.layouts], 2)]
            parts += [Text(), Text(self.why, style="bold")]
        parts += [Text(f"warning: {warning}", style="yellow") for warning in self.warnings]
        return Group(*parts)


def _span_words(source: Neural | Series) -> str:
    if source.start_s is None or source.stop_s is None:
        return "span unknown"
    return f"{source.start_s:.3f} … {source.stop_s:.3f} s"


def _rate_words(source: Neural | Series) -> str:
    return "" if source.rate_hz is None else f"{source.rate_hz:.6g} Hz"


def _span(file: NwbFile, series: str, n_samples: int) -> tuple[float | None, float | None, float | None]:
    """First and last sample time and rate (None for explicit timestamps) without reading all timestamps."""
    key = f"{series}/timestamps"
    if key in file:
        stamps = file.dataset(key)
        flat = flat_shape(stamps.shape or ())
        if len(flat) != 1 or stamps.dtype.kind not in "iuf":
            raise file.error(key, f"must be numbers in one dimension, found {stamps.dtype} {stamps.shape}")
        if flat != (n_samples,):
            raise file.error(key, f"must be ({n_samples},), one per sample, found {stamps.shape}")
        try:
            first, last = (float(stamps[(row,) * stamps.ndim]) for row in (0, -1))
        except READ_ERRORS as error:
            raise file.error(key, f"cannot be read ({clean(error, 200)}); is the file complete?") from error
        return (first, last, None) if np.isfinite([first, last]).all() else (None, None, None)
    start_s, rate_hz = file.clock(series)
    return start_s, start_s + max(n_samples - 1, 0) / rate_hz, rate_hz


def _describe_series(file: NwbFile, found: Description) -> None:
    timed = file.series()
    with_data = (key.removesuffix("/data") for key in file.objects if key.endswith("/data"))
    for key in sorted({*timed, *with_data}):
        try:
            if key in timed:
                _describe_one(file, key, found)
            elif file.label(key, "neurodata_type") in ("SpatialSeries", "TimeSeries"):
                raise file.error(key, "has neither timestamps nor starting_time: not used")
        except InputError as error:
            found.warnings.append(str(error).removeprefix(f"{file.path}: "))
            found.unusable.append(key)


def _describe_one(file: NwbFile, key: str, found: Description) -> None:
    if f"{key}/data" not in file and f"{key}/data" not in file.damaged:
        raise file.error(key, "has no data")
    data = file.dataset(f"{key}/data")
    if data.shape is None or data.dtype.kind not in "iuf" or data.ndim not in (1, 2) or not data.size:
        raise file.error(key, f"is not a table of numbers ({data.dtype}, {data.shape}): not used")
    shape = tuple(int(n) for n in data.shape)
    shape = flat_shape(shape) if shape[0] == 1 else shape
    try:
        start_s, stop_s, rate_hz = _span(file, key, shape[0])
    except InputError as error:
        start_s = stop_s = rate_hz = None
        found.warnings.append(str(error).removeprefix(f"{file.path}: "))
    kind, unit = file.label(key, "neurodata_type"), file.label(f"{key}/data", "unit")
    name = key.rpartition("/")[2]
    columns = shape[1] if len(shape) == 2 else 1
    counts = _COUNTS.search(name) or unit.lower() in ("count", "counts", "spikes")
    if counts and columns < 2:
        found.warnings.append(f"{clean(key)} has {columns} channel, at least two are needed: not a neural source")
    if kind in _VOLTAGE or (counts and columns > 1):
        what = "binned counts" if counts else "voltage"
        found.neural.append(Neural(what, key, shape, columns, unit, rate_hz, start_s, stop_s))
        return
    stamped = f"{key}/timestamps" in file
    found.series.append(Series(key, kind, shape, unit, rate_hz, stamped, start_s, stop_s))


def _describe_matlab(file: NwbFile, found: Description) -> None:
    """As `_describe_series`, of the variables of a MATLAB file: stored transposed, all on the clock ``t``."""
    t = file.numbers("t").ravel()
    span = (float(t[0]), float(t[-1])) if t.size and np.isfinite(t[[0, -1]]).all() else (None, None)
    for key in file.objects:
        data = file.objects[key]
        if not isinstance(data, h5py.Dataset) or data.ndim != 2:
            continue
        shape = (int(data.shape[1]), int(data.shape[0]))
        if key == "spikes":
            found.neural.append(Neural("spike times", key, shape, shape[0], "s", None, None, None))
        elif key != "t" and data.dtype.kind == "f" and shape[0] == t.size:
            found.series.append(Series(key, "MATLAB", shape, "", None, True, *span))


IDENTIFYING = ("general/subject/subject_id", "general/session_id", "identifier", "session_start_time")
"""What `identity` reads of an NWB file."""


def identity(file: NwbFile, dated: bool = False) -> dict[str, str]:
    """Return session_id, subject and session_start (ISO 8601, UTC when the file names no zone) of a file.

    The id is that of the file with the subject in front, ``sub-C_ses-CO-20131003``, so that two subjects never share
    one, in characters that can stand in a file name. A MATLAB file says who and when in its name alone. A start that is
    no date and time is a warning and gives 1970, or an `InputError` where it must be `dated`, to order sessions by it.
    """
    if file.version == MATLAB:
        return _identity_of_name(file)
    subject = file.text("general/subject/subject_id")
    session = file.text("general/session_id") or file.text("identifier") or file.path.stem
    if subject and not session.startswith("sub-"):
        session = f"sub-{subject}_ses-{session}"
    start = file.text("session_start_time")
    try:
        moment = datetime.fromisoformat(start)
    except ValueError as error:
        if dated:
            raise file.error("session_start_time", f"must be a date and time (ISO 8601), found {start!r}") from error
        file.warn(
            f"session_start_time {start!r} is no date and time (ISO 8601): on which day this was recorded is unknown"
        )
        moment = datetime.fromtimestamp(0, UTC)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return {
        "session_id": id_of(session) or "session",
        "subject": subject,
        "session_start": moment.isoformat(),
    }


def id_of(text: str) -> str:
    """An id in characters that can stand in the name of a file."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip("-.")[:120]


def _identity_of_name(file: NwbFile) -> dict[str, str]:
    found = _MATLAB_NAME.fullmatch(file.path.stem)
    try:
        day = datetime.strptime(found[2][:8], "%Y%m%d").replace(tzinfo=UTC) if found else None
    except ValueError:
        day = None
    if not found or not day:
        raise InputError(
            f"{file.path}: a MATLAB file must be named subject_yyyymmdd_number.mat, as indy_20160630_01.mat is: "
            "nothing else in it says who was recorded on which day"
        )
    return {
        "session_id": f"sub-{found[1]}_ses-{found[2]}",
        "subject": found[1],
        "session_start": day.isoformat(),
    }


def count_missing(file: NwbFile, found: Description) -> None:
    """Add to a description the fraction of values of each series that are NaN, which reads them all.

    Series of more than `NAN_FRACTION_BYTES` are left out.
    """
    for place, series in enumerate(found.series):
        key = series.path if file.version == MATLAB else f"{series.path}/data"
        dtype = file.dataset(key).dtype
        if dtype.kind != "f":
            found.series[place] = replace(series, nan_fraction=0.0)
        elif math.prod(series.shape) * dtype.itemsize <= NAN_FRACTION_BYTES:
            found.series[place] = replace(series, nan_fraction=float(np.isnan(file.array(key)).mean()))


def describe(file: NwbFile) -> Description:
    """Describe an open file: neural sources, series, trials, electrodes and warnings, nothing chosen yet.

    What is odd inside a file that opens becomes a warning.
    """
    about = file.text("session_description")
    who = identity(file)
    found = Description(
        file.name, file.version, who["session_id"], who["subject"], who["session_start"], description=about
    )
    if about.lower().startswith("warning"):
        found.warnings.append(f"session_description: {about}")
    if "units" in file:
        found.units = {"columns": _columns(file, "units")}
    for table in unit_tables(file):
        file.units = table
        try:
            times_s, sizes = spikes_of_units(file)
        except InputError as error:
            found.warnings.append(str(error).removeprefix(f"{file.path}: "))
        else:
            span = (float(times_s.min()), float(times_s.max())) if times_s.size else (None, None)
            if table == "units":
                found.units |= {"count": sizes.size, "spikes": int(times_s.size)}
            found.neural.append(Neural("spike times", table, (sizes.size,), sizes.size, "s", None, *span))
    file.units = "units"
    (_describe_matlab if file.version == MATLAB else _describe_series)(file, found)
    found.trials = {"count": file.rows(TRIALS), "columns": _columns(file, TRIALS)}
    groups = file.strings(f"{ELECTRODES}/group_name") if f"{ELECTRODES}/group_name" in file else []
    found.electrodes = {
        "count": file.rows(ELECTRODES),
        "columns": _columns(file, ELECTRODES),
        "groups": sorted(set(groups)),
    }
    found.warnings += file.warnings
    if extensions := file.extensions():
        found.warnings.append(f"extensions {', '.join(extensions)}: their schemas are not loaded, all is plain HDF5")
    return found


def _columns(file: NwbFile, table: str) -> list[str]:
    names = [key.rpartition("/")[2] for key in file.children(table)]
    return [name for name in names if name != "id" and not name.endswith("_index")]
