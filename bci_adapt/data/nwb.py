"""Open an NWB 2 file with plain HDF5 reads, describe what is in it, and hand out its parts checked.

No pynwb here: extension namespaces that cannot be loaded, old schemas and slow tables do not matter to HDF5, and the
waveforms of a units table are never touched. Whatever cannot be used is an `InputError` that names file and key.
"""

from __future__ import annotations

import errno
import math
import os
import re
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from bci_adapt.data.binning import LARGEST_S
from bci_adapt.errors import InputError
from bci_adapt.ground.text import clean

if TYPE_CHECKING:
    from rich.console import Group

MAX_BYTES = 2 * 2**30
"""Largest dataset that is read into memory, counted with 8 bytes a value."""
KEPT_BYTES = 64 * 2**20
"""Bytes of arrays that an open file keeps for the next who asks: what was described is not read anew for a session."""
MAX_OBJECTS = 100_000
"""Largest number of links in a file, counted at every place they stand; a group or dataset is reached by one."""
MAX_KEY = 1000
"""Longest path of an object inside a file, in characters: groups nest 500 deep at most."""
MAX_ROWS = 100_000
"""Largest number of rows of a table of units, trials or electrodes, and of texts that are read at once."""
MAX_COLUMNS = 10_000
"""Largest number of columns of a series."""
MAX_ATTRIBUTE_BYTES = 2**20
"""Largest attribute that is read, counted without the text that its values point to."""
MAX_TEXT_BYTES = 64 * 2**20
"""Most text that is read from a dataset: a few bytes of file can claim any amount of it."""
MAX_WARNINGS = 20
"""Most links to nothing, and other oddities of links, that are listed one by one."""
NAN_FRACTION_BYTES = 256 * 2**20
"""Largest series whose missing values `count_missing` counts."""
TRIALS = "intervals/trials"
ELECTRODES = "general/extracellular_ephys/electrodes"
MATLAB = "MATLAB 7.3"
MATLAB_VARIABLES = ("chan_names", "cursor_pos", "spikes", "t")
"""What a MATLAB file must hold to be read: the variables of the Indy and Loco recordings (layout ``indy``)."""
_MATLAB_NAME = re.compile(r"([A-Za-z]+)_(\d{8}_\d+)")
_READ_ERRORS = (OSError, RuntimeError, ValueError, TypeError, KeyError, OverflowError, MemoryError)
_COUNTS = re.compile(r"threshold.?crossing|spike.?count|binned|^counts?$", re.IGNORECASE)
_VOLTAGE = {"ElectricalSeries", "SpikeEventSeries"}


class NwbFile:
    """An open NWB file: a context manager whose methods read parts of it or raise `InputError` with file and key."""

    def __init__(self, path: Path, h5: h5py.File) -> None:
        self.path, self.h5, self.name = path, h5, path.name
        self.version = ""
        self.warnings: list[str] = []
        self.objects: dict[str, h5py.Group | h5py.Dataset] = {}
        self.damaged: dict[str, str] = {}
        self._kept: dict[str, NDArray[Any]] = {}

    def __enter__(self) -> NwbFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.h5.close()

    def __contains__(self, key: str) -> bool:
        return key in self.objects

    def extensions(self) -> list[str]:
        """Names of the extensions whose schemas the file carries, readable or not."""
        try:
            names = sorted(clean(name, 100) for name in self.h5["specifications"])  # pyright: ignore[reportGeneralTypeIssues]
        except _READ_ERRORS:
            return []
        return [name for name in names if name not in ("core", "hdmf-common", "hdmf-experimental")][:20]

    def error(self, key: str, message: str) -> InputError:
        """An `InputError` about `key` of this file."""
        return InputError(f"{self.path}: {key} {message}")

    def attribute(self, key: str, name: str, default: Any = None) -> Any:
        """Attribute `name` of the object at `key` (the root for ""), or `default`."""
        if key and key not in self.objects:
            raise self.error(key, f"is missing: its attribute {name} is needed")
        attributes, encoded = (self.objects[key] if key else self.h5).attrs, name.encode()
        try:
            if not h5py.h5a.exists(attributes._id, encoded):
                return default
            held = h5py.h5a.open(attributes._id, encoded)
            size = math.prod(held.shape or ()) * held.dtype.itemsize
            value = attributes[name] if size <= MAX_ATTRIBUTE_BYTES else None
        except _READ_ERRORS as error:
            raise self.error(key or "/", f"has an unreadable attribute {name} ({clean(error, 200)})") from error
        if value is None:
            raise self.error(key or "/", f"has an attribute {name} of {size:,} bytes: not read")
        return clean(value) if isinstance(value, bytes | str) else value

    def number(self, key: str, name: str, default: float | None = None) -> float:
        """Attribute `name` of the object at `key`, which must be one finite number, or `default` where it is absent."""
        value = self.attribute(key, name, default)
        found = np.asarray(value)
        if found.size != 1 or found.dtype.kind not in "iuf" or not np.isfinite(found).all():
            raise self.error(key, f"must have an attribute {name} that is one finite number, found {clean(value, 80)}")
        return float(found.reshape(()))

    def label(self, key: str, name: str) -> str:
        """Attribute `name` of the object at `key` when it is text, else ""."""
        value = self.attribute(key, name)
        return value if isinstance(value, str) else ""

    def dataset(self, key: str) -> h5py.Dataset:
        """The dataset at `key`, not read."""
        found = self.objects.get(key)
        if key in self.damaged:
            raise self.error(key, self.damaged[key])
        if found is None:
            raise self.error(key, "is missing")
        if not isinstance(found, h5py.Dataset):
            raise self.error(key, "is a group, a dataset was expected")
        if math.prod(found.chunks or ()) * found.dtype.itemsize > MAX_BYTES:  # one value needs the whole chunk
            raise self.error(key, f"is stored in chunks of {found.chunks}, more than {MAX_BYTES >> 30} GiB: not read")
        return found

    def length(self, key: str) -> int:
        """Number of rows of the dataset at `key`, not read; 0 when it is a scalar or holds nothing."""
        shape = self.dataset(key).shape
        return int(shape[0]) if shape else 0

    def array(self, key: str) -> NDArray[Any]:
        """The whole dataset at `key`, not to be written to: who asks next may get the same array, and it goes then."""
        if (kept := self._kept.pop(key, None)) is not None:
            return kept
        dataset = self.dataset(key)
        if dataset.shape is None:
            raise self.error(key, "is empty")
        size = math.prod(dataset.shape)
        if size * max(dataset.dtype.itemsize, 8) > MAX_BYTES:  # numbers become float64 or int64
            raise self.error(key, f"claims shape {dataset.shape}, more than {MAX_BYTES >> 30} GiB: not read")
        try:
            if size and not dataset.id.get_storage_size():
                raise self.error(key, f"of shape {dataset.shape} was never written: nothing is stored of it")
            values = self._texts(key, dataset) if dataset.dtype.kind == "O" else np.asarray(dataset[()])
        except InputError:
            raise
        except _READ_ERRORS as error:
            raise self.error(key, f"cannot be read ({clean(error)}); is the file complete?") from error
        values.flags.writeable = False
        if values.nbytes + sum(each.nbytes for each in self._kept.values()) <= KEPT_BYTES:
            self._kept[key] = values
        return values

    def _texts(self, key: str, dataset: h5py.Dataset) -> NDArray[Any]:
        """Values of any length, a few at a time: their number says nothing of how long they are."""
        if not dataset.shape:
            return np.asarray(dataset[()], dtype=object)
        values, left, step = [np.empty((0, *dataset.shape[1:]), dtype=object)], MAX_TEXT_BYTES, 64
        for first in range(0, len(dataset), step):
            values.append(dataset[first : first + step])
            left -= sum(len(each) for each in values[-1].ravel() if isinstance(each, bytes | np.ndarray))
            if left < 0:
                raise self.error(key, f"holds more than {MAX_TEXT_BYTES >> 20} MiB of text: not read")
        return np.concatenate(values)

    def numbers(self, key: str, flags: bool = False) -> NDArray[Any]:
        """The dataset at `key`, which must hold real numbers, or also yes and no where `flags` are as good."""
        kind = self.dataset(key).dtype.kind
        if kind not in ("iufb" if flags else "iuf"):
            raise self.error(key, f"must hold numbers, found {self.dataset(key).dtype}")
        return self.array(key)

    def whole(self, key: str) -> NDArray[np.int64]:
        """The dataset at `key`, which must hold whole numbers."""
        values = self.numbers(key)
        if values.dtype.kind in "uf" and not ((values == np.floor(values)) & (np.abs(values) < 2.0**62)).all():
            raise self.error(key, f"must hold whole numbers, found {values.dtype} with fractions, NaN or huge ones")
        return values.astype(np.int64)

    def ends(self, key: str) -> NDArray[np.int64]:
        """The index of a ragged column at `key`: where each row's values end."""
        ends = self.whole(key)
        if ends.ndim != 1:
            raise self.error(key, f"must be one end per row, found shape {ends.shape}")
        return ends

    def strings(self, key: str) -> list[str]:
        """The dataset at `key` as text, one per row."""
        dataset = self.dataset(key)
        if h5py.check_string_dtype(dataset.dtype) is None and dataset.dtype.kind not in "iufb":
            raise self.error(key, f"must be text, found {dataset.dtype}")
        if math.prod(dataset.shape or ()) > MAX_ROWS:
            raise self.error(key, f"claims {dataset.shape} texts, more than {MAX_ROWS:,}: not read")
        return [clean(value) for value in self.array(key).ravel().tolist()]

    def cells(self, key: str) -> list[list[NDArray[Any]]]:
        """The MATLAB cell array at `key`: numbers or character codes of every cell, in HDF5's order (transposed)."""
        dataset = self.dataset(key)
        shape, size = dataset.shape, dataset.size or 0
        if h5py.check_ref_dtype(dataset.dtype) is not h5py.Reference or len(shape or ()) != 2:
            raise self.error(key, f"must be a MATLAB cell array of two dimensions, found {dataset.dtype} {shape}")
        if size > MAX_OBJECTS:
            raise self.error(key, f"has {size:,} cells, more than {MAX_OBJECTS:,}: not read")
        left, rows = MAX_BYTES, []
        for i, references in enumerate(self.array(key)):
            rows.append([])
            for j, reference in enumerate(references):
                values = self._cell(f"{key}{{{j + 1},{i + 1}}}", reference, left)  # as MATLAB counts
                left -= values.size * max(values.itemsize, 8)
                rows[-1].append(values)
        return rows

    def _cell(self, name: str, reference: h5py.Reference, left: int) -> NDArray[Any]:
        """The array that a reference leads to, inside this file and not of more than `left` bytes."""
        try:
            found = self.h5[reference]
            kind = found.dtype.kind if isinstance(found, h5py.Dataset) else ""
        except _READ_ERRORS as error:
            raise self.error(name, f"leads to nothing that can be read ({clean(error, 200)})") from error
        if not isinstance(found, h5py.Dataset) or kind not in "iuf":
            raise self.error(name, "leads to something else than numbers or characters")
        _require_inside(self, name, found)
        if (found.size or 0) * max(found.dtype.itemsize, 8) > left:
            raise self.error(name, f"brings the cells to more than {MAX_BYTES >> 30} GiB: not read")
        try:
            values = np.zeros(0) if found.size is None else np.asarray(found[()])
            # MATLAB stores of what is empty its size, which holds a zero; nothing else has one dimension alone.
            return np.zeros(0) if kind == "u" and values.ndim == 1 and not values.all() else values
        except _READ_ERRORS as error:
            raise self.error(name, f"cannot be read ({clean(error, 200)}); is the file complete?") from error

    def text(self, key: str, default: str = "") -> str:
        """The scalar text at `key`, or `default` when it is absent or empty."""
        return (" ".join(self.strings(key)) if isinstance(self.objects.get(key), h5py.Dataset) else "") or default

    def children(self, key: str) -> list[str]:
        """Keys directly below the group at `key`, in alphabetical order."""
        return sorted(k for k in self.objects if k.startswith(f"{key}/") and "/" not in k[len(key) + 1 :])

    def series(self) -> list[str]:
        """Keys of everything shaped like a time series (data with a clock), in alphabetical order."""
        return sorted(
            {
                key.rpartition("/")[0]
                for key in self.objects
                if key.endswith(("/timestamps", "/starting_time")) and not key.startswith(("stimulus/", "units/"))
            }
        )

    def rows(self, table: str) -> int:
        """Number of rows of the table at `table`; 0 when it is absent."""
        shape = self.dataset(f"{table}/id").shape if f"{table}/id" in self else (0,)
        if shape is None or len(shape) != 1:
            raise self.error(f"{table}/id", f"must have one value per row, found shape {shape}")
        if shape[0] > MAX_ROWS:
            raise self.error(f"{table}/id", f"claims {shape[0]:,} rows, more than {MAX_ROWS:,}: not read")
        return int(shape[0])

    def times_s(self, series: str, n_samples: int) -> NDArray[np.float64]:
        """Sample times (n_samples,) of a series in seconds: its timestamps, or its start and rate."""
        key = f"{series}/timestamps"
        if key in self:
            times = self.numbers(key).astype(np.float64, copy=False)
            if times.shape != (n_samples,):
                raise self.error(key, f"must be ({n_samples},), one per sample, found {times.shape}")
            if n_wrong := np.count_nonzero(~(np.abs(times) < LARGEST_S)):
                raise self.error(key, f"has {n_wrong} values that are no times in seconds: NaN, infinite or 3000 years")
            return times
        start_s, rate_hz = self.clock(series)
        return start_s + np.arange(n_samples) / rate_hz

    def clock(self, series: str) -> tuple[float, float]:
        """Start in seconds and rate in Hz of a series that has no timestamps."""
        key = f"{series}/starting_time"
        if key not in self:
            stamped = f"{series}/timestamps" in self
            raise self.error(
                series,
                "has timestamps where a starting_time with a rate was expected"
                if stamped
                else "has neither timestamps nor starting_time",
            )
        start = self.numbers(key)
        rate_hz = self.number(key, "rate")
        if start.size != 1 or not np.abs(start).max() < LARGEST_S:
            raise self.error(key, f"must be one time in seconds, found {clean(start, 80)} of shape {start.shape}")
        if not 0 < rate_hz < 1e9:
            raise self.error(key, f"must have a positive rate in Hz, found {rate_hz:g}")
        return float(start.reshape(())), rate_hz

    def values(self, series: str, offset: bool = True) -> tuple[NDArray[np.float64], str]:
        """Values (n_samples, n_columns) of a series with conversion and `offset` applied, and their unit."""
        key = f"{series}/data"
        data = self.numbers(key).astype(np.float64, copy=False)
        if data.ndim not in (1, 2) or not data.size:
            raise self.error(key, f"must be (samples,) or (samples, columns) and not empty, found {data.shape}")
        if data.ndim == 2 and data.shape[1] > MAX_COLUMNS:
            raise self.error(key, f"has {data.shape[1]:,} columns, more than {MAX_COLUMNS:,}: are its axes swapped?")
        conversion, added = self.number(key, "conversion", 1.0), self.number(key, "offset", 0.0)
        if conversion == 0:
            raise self.error(key, "has conversion 0: every value would be the same")
        values = data.reshape(len(data), -1) * conversion
        values += added if offset else 0.0
        return values, self.label(key, "unit")


def _require_inside(file: NwbFile, key: str, dataset: h5py.Dataset) -> None:
    if dataset.external or dataset.is_virtual:
        raise file.error(key, "is stored in another file: not followed; copy it in")


def _scan(file: NwbFile) -> None:
    """List every object by key, refusing what would lead out of this file."""
    root = file.h5["/"]
    assert isinstance(root, h5py.Group)
    pending: list[tuple[str, h5py.Group, frozenset[h5py.Group]]] = [("", root, frozenset([root]))]
    n_links, odd = 0, []
    while pending:
        key, group, above = pending.pop()
        n_links += len(group)
        if n_links > MAX_OBJECTS:
            raise InputError(f"{file.path}: has more than {MAX_OBJECTS:,} groups and datasets: not read")
        for name in group:
            child = f"{key}/{name}" if key else str(name)
            if len(child) > MAX_KEY:
                raise file.error(clean(child, 80), f"lies deeper than a path of {MAX_KEY} characters leads: not read")
            if child in ("specifications", "#refs#", "#subsystem#"):  # MATLAB's cells are reached by reference alone
                continue
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                raise file.error(child, f"is a link to another file ({clean(link.filename)}): not followed; copy it in")
            try:
                found = group[name]
            except (KeyError, OSError, RuntimeError) as error:
                if not isinstance(link, h5py.SoftLink):
                    raise file.error(child, f"cannot be opened ({clean(error)}); is the file complete?") from error
                odd.append(f"{clean(child)} is a link to nothing")
                continue
            if isinstance(found, h5py.Dataset):
                _require_inside(file, child, found)
                try:
                    found.dtype  # noqa: B018 (a type that numpy lacks, or a damaged one, raises here)
                except _READ_ERRORS as error:
                    file.damaged[child] = f"has a type that cannot be read ({clean(error, 200)})"
                    file.warnings.append(f"{clean(child)} {file.damaged[child]}: left out")
                    continue
            elif isinstance(found, h5py.Group):
                if found in above:
                    odd.append(f"{clean(child)} is a link to a group around it: not followed")
                    continue
                pending.append((child, found, above | {found}))
            else:
                continue
            file.objects[child] = found
    file.warnings += odd[:MAX_WARNINGS]
    if len(odd) > MAX_WARNINGS:
        file.warnings.append(f"{len(odd) - MAX_WARNINGS} more links lead to nothing or back")


def open_nwb(path: Path | str) -> NwbFile:
    """Open an NWB 2 file, or a MATLAB 7.3 one with `MATLAB_VARIABLES`, for reading; use it as a context manager.

    `InputError`, naming the file, when it is missing, truncated, not HDF5, of NWB 1.x, neither, or links to others.
    """
    path = Path(path)
    try:
        if not path.is_file():
            path.stat()
            raise InputError(f"{path}: not a file; an NWB file was expected")
        if not path.stat().st_size:
            raise InputError(f"{path}: is empty (0 bytes); fetch it again")
        h5 = h5py.File(path, "r", rdcc_nbytes=2**20)  # whole arrays are read, hardly a chunk is twice
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (OSError, RuntimeError) as error:
        number = getattr(error, "errno", None)
        if number in (errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG):
            raise InputError(f"{path}: cannot be opened ({os.strerror(number)})") from error
        with path.open("rb") as raw:
            hdf5 = raw.read(8) == b"\x89HDF\r\n\x1a\n"
        if hdf5 or "truncated" in str(error):
            raise InputError(f"{path}: truncated or damaged; fetch it again ({clean(error, 200)})") from error
        raise InputError(f"{path}: not an HDF5 file, so not NWB 2 ({clean(error, 200)})") from error
    file = NwbFile(path, h5)
    try:
        version = file.attribute("", "nwb_version")
        if version is None and isinstance(old := h5.get("nwb_version"), h5py.Dataset):
            version = clean(old[()], 40) if old.shape == () else "NWB-1"
        if version is None and not _of_matlab(h5, path):
            raise InputError(f"{path}: an HDF5 file, but not NWB (no attribute nwb_version)")
        file.version = MATLAB if version is None else clean(version, 40)
        if version is not None and not file.version.removeprefix("NWB-").startswith("2"):
            raise InputError(f"{path}: written for NWB {file.version}; only NWB 2 can be read, convert it first")
        _scan(file)
        missing = [name for name in MATLAB_VARIABLES if not isinstance(file.objects.get(name), h5py.Dataset)]
        if file.version == MATLAB and missing:
            raise InputError(
                f"{path}: a {MATLAB} file without the variables {', '.join(missing)}; of these files only the Indy and "
                f"Loco recordings ({', '.join(MATLAB_VARIABLES)}) are read: convert others to NWB, or save them as .npz"
            )
    except InputError:
        h5.close()
        raise
    except _READ_ERRORS as error:
        h5.close()
        raise InputError(f"{path}: cannot be read ({clean(error, 200)}); is the file complete?") from error
    return file


def _of_matlab(h5: h5py.File, path: Path) -> bool:
    """Whether the user block in front of the HDF5 part is a header of MATLAB 7.3."""
    if h5.userblock_size < 512:
        return False
    with path.open("rb") as raw:
        return raw.read(len(MATLAB)) == MATLAB.encode()


def identity(file: NwbFile) -> dict[str, str]:
    """Return session_id, subject and session_start (ISO 8601, UTC when the file names no zone) of a file.

    The id is that of the file with the subject in front, ``sub-C_ses-CO-20131003``, so that two subjects never share
    one, in characters that can stand in a file name. A MATLAB file says who and when in its name alone.
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
        raise file.error("session_start_time", f"must be a date and time (ISO 8601), found {start!r}") from error
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return {
        "session_id": re.sub(r"[^A-Za-z0-9._+-]+", "-", session).strip("-.")[:120] or "session",
        "subject": subject,
        "session_start": moment.isoformat(),
    }


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


def spike_table(file: NwbFile) -> tuple[NDArray[np.float64], NDArray[np.integer], int]:
    """Return all spike times in seconds (n_spikes,), the row of `units` each belongs to, and the number of units.

    One read of the flat array and its index: a read per unit would be far slower. Times need not be
    sorted within a unit.
    """
    times_s, sizes = _spikes_of_units(file)
    rows = np.arange(sizes.size, dtype=np.min_scalar_type(sizes.size))  # there are millions of spikes, few units
    return times_s, np.repeat(rows, sizes), sizes.size


def _spikes_of_units(file: NwbFile) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """All spike times in seconds (n_spikes,), unit by unit, and how many each unit has (n_units,)."""
    times_s = finite_times_s(file, "units/spike_times")
    ends = file.ends("units/spike_times_index")
    if ends.size > MAX_ROWS:
        raise file.error("units/spike_times_index", f"claims {ends.size:,} units, more than {MAX_ROWS:,}: not read")
    sizes = np.diff(ends, prepend=0)
    if (sizes < 0).any() or (ends[-1] if ends.size else 0) != times_s.size:
        raise file.error("units/spike_times_index", f"does not divide the {times_s.size} spike times into units")
    return times_s, sizes


def finite_times_s(file: NwbFile, key: str) -> NDArray[np.float64]:
    """Return the finite times in seconds (n,) at `key`."""
    times_s = file.numbers(key).astype(np.float64, copy=False)
    if times_s.ndim != 1:
        raise file.error(key, f"must be times in one dimension, found shape {times_s.shape}")
    if n_wrong := np.count_nonzero(~(np.abs(times_s) < LARGEST_S)):
        raise file.error(key, f"has {n_wrong} values that are no times in seconds: NaN, infinite or 3000 years")
    return times_s


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

        def size(shape: tuple[int, ...]) -> str:
            return " × ".join(map(str, shape))

        def span(source: Neural | Series) -> str:
            if source.start_s is None or source.stop_s is None:
                return "span unknown"
            return f"{source.start_s:.3f} … {source.stop_s:.3f} s"

        def rate(value: float | None) -> str:
            return "" if value is None else f"{value:.6g} Hz"

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
            many = f"{source.channels} {'units' if source.path == 'units' else 'channels'}"
            many = f"{source.shape[0]} bins × {many}" if source.kind == "binned counts" else many
            parts += entry(source.path, source.kind, many, source.unit, rate(source.rate_hz), span(source))
        parts += [] if self.neural else [Text("  none")]
        parts += heading("Target series")
        for series in self.series:
            clock = "timestamps" if series.timestamps else rate(series.rate_hz)
            missing = None if series.nan_fraction is None else f"{100 * series.nan_fraction:.2g} % missing"
            unit = series.unit or "no unit"
            parts += entry(series.path, series.type, size(series.shape), unit, clock, span(series), missing)
        parts += [] if self.series else [Text("  none")]
        if self.layouts:
            parts += heading("Layouts")
            parts += [grid([(each["name"], f"{each['score']:.2f}", each["reason"]) for each in self.layouts], 2)]
            parts += [Text(), Text(self.why, style="bold")]
        parts += [Text(f"warning: {warning}", style="yellow") for warning in self.warnings]
        return Group(*parts)


def _span(file: NwbFile, series: str, n_samples: int) -> tuple[float | None, float | None, float | None]:
    """First and last sample time and rate (None for explicit timestamps) without reading all timestamps."""
    key = f"{series}/timestamps"
    if key in file:
        stamps = file.dataset(key)
        if stamps.ndim != 1 or stamps.dtype.kind not in "iuf":
            raise file.error(key, f"must be numbers in one dimension, found {stamps.dtype} {stamps.shape}")
        if stamps.shape != (n_samples,):
            raise file.error(key, f"must be ({n_samples},), one per sample, found {stamps.shape}")
        try:
            first, last = (float(stamps[row]) for row in (0, -1))
        except _READ_ERRORS as error:
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
        if "units/spike_times" in file:
            try:
                times_s, sizes = _spikes_of_units(file)
            except InputError as error:
                found.warnings.append(str(error).removeprefix(f"{file.path}: "))
            else:
                span = (float(times_s.min()), float(times_s.max())) if times_s.size else (None, None)
                found.units |= {"count": sizes.size, "spikes": int(times_s.size)}
                found.neural.append(Neural("spike times", "units", (sizes.size,), sizes.size, "s", None, *span))
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


def column(file: NwbFile, table: str, name: str) -> NDArray[Any] | None:
    """Return a plain column of a table, one value or one row of values per table row; None when it is absent.

    Text is decoded. A ragged column, or one of references, is treated as absent.
    """
    key = f"{table}/{name}"
    if not isinstance(file.objects.get(key), h5py.Dataset) or f"{key}_index" in file:
        return None
    dtype = file.dataset(key).dtype
    if dtype.kind not in "iufb" and h5py.check_string_dtype(dtype) is None:
        return None
    values = file.array(key)
    if dtype.kind not in "iufb":
        values = np.asarray(file.strings(key), dtype=np.str_).reshape(values.shape)
    if values.ndim < 1 or len(values) != file.rows(table):
        raise file.error(key, f"must have one value per row ({file.rows(table)}), found {values.shape}")
    return values
