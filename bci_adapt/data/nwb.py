"""Open an NWB 2 file with plain HDF5 reads, and hand out its parts checked.

No pynwb here: extension namespaces that cannot be loaded, old schemas and slow tables do not matter to HDF5, and the
waveforms of a units table are never touched. Whatever cannot be used is an `InputError` that names file and key. The
module is long because all that is believed of a file is checked here, in one place.
"""

from __future__ import annotations

import errno
import io
import math
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from bci_adapt.data.binning import LARGEST_S
from bci_adapt.data.remote import Remote
from bci_adapt.errors import InputError
from bci_adapt.ground.storage import file_digest
from bci_adapt.ground.text import clean

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
TRIALS = "intervals/trials"
ELECTRODES = "general/extracellular_ephys/electrodes"
MATLAB = "MATLAB 7.3"
MATLAB_VARIABLES = ("chan_names", "cursor_pos", "spikes", "t")
"""What a MATLAB file must hold to be read: the variables of the Indy and Loco recordings (layout ``indy``)."""
READ_ERRORS = (OSError, RuntimeError, ValueError, TypeError, KeyError, OverflowError, MemoryError)


class NwbFile:
    """An open NWB file: a context manager whose methods read parts of it or raise `InputError` with file and key.

    `units` is where the table of units is that its readers read, `unobserved` what they do where the intervals of
    observation differ between units (`layouts.tables.judge_observed`). What MATLAB knows as a scalar or a vector may
    stand in a file as an array of one, as a row or as a column: all of these are read alike.
    """

    def __init__(self, path: Path, h5: h5py.File) -> None:
        self.path, self.h5, self.name = path, h5, path.name
        self.version = ""
        self.warnings: list[str] = []
        self.objects: dict[str, h5py.Group | h5py.Dataset] = {}
        self.damaged: dict[str, str] = {}
        self.units, self.unobserved = "units", "mask"
        self.stream: io.RawIOBase | None = None
        self._kept: dict[str, NDArray[Any]] = {}

    def __enter__(self) -> NwbFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.h5.close()
        if self.stream is not None:
            self.stream.close()

    def __contains__(self, key: str) -> bool:
        return key in self.objects

    def sha256(self) -> str:
        """Digest of the file; "" for one that is read over the network, of which only parts are seen."""
        return "" if self.stream is not None else file_digest(self.path)

    def extensions(self) -> list[str]:
        """Names of the extensions whose schemas the file carries, readable or not."""
        try:
            names = sorted(clean(name, 100) for name in self.h5["specifications"])  # pyright: ignore[reportGeneralTypeIssues]
        except READ_ERRORS:
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
        except READ_ERRORS as error:
            raise self.error(key or "/", f"has an unreadable attribute {name} ({clean(error, 200)})") from error
        if value is None:
            raise self.error(key or "/", f"has an attribute {name} of {size:,} bytes: not read")
        if isinstance(value, np.ndarray) and value.size == 1:
            value = value.reshape(-1)[0]  # MATLAB has no scalars
        return clean(value) if isinstance(value, bytes | str) else value

    def warn(self, message: str) -> None:
        """Add a warning about this file, once however often it is noticed."""
        if message not in self.warnings:
            self.warnings.append(message)

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
        shape = flat_shape(self.dataset(key).shape or ())
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
        except READ_ERRORS as error:
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
        return as_list(values).astype(np.int64)

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
        except READ_ERRORS as error:
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
        except READ_ERRORS as error:
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
        shape = flat_shape(shape) if shape else shape
        if shape is None or len(shape) != 1:
            raise self.error(f"{table}/id", f"must have one value per row, found shape {shape}")
        if shape[0] > MAX_ROWS:
            raise self.error(f"{table}/id", f"claims {shape[0]:,} rows, more than {MAX_ROWS:,}: not read")
        return int(shape[0])

    def times_s(self, series: str, n_samples: int) -> NDArray[np.float64]:
        """Sample times (n_samples,) of a series in seconds: its timestamps, or its start and rate."""
        key = f"{series}/timestamps"
        if key in self:
            times = as_list(self.numbers(key)).astype(np.float64, copy=False)
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
        data = as_list(data) if data.shape[:1] == (1,) else data
        if data.ndim not in (1, 2) or not data.size:
            raise self.error(key, f"must be (samples,) or (samples, columns) and not empty, found {data.shape}")
        if data.ndim == 2 and data.shape[1] > MAX_COLUMNS:
            raise self.error(key, f"has {data.shape[1]:,} columns, more than {MAX_COLUMNS:,}: are its axes swapped?")
        conversion, unit = self._conversion(key)
        added = self.number(key, "offset", 0.0)
        if conversion == 0:
            raise self.error(key, "has conversion 0: every value would be the same")
        values = data.reshape(len(data), -1) * conversion
        values += added if offset else 0.0
        return values, unit

    def _conversion(self, key: str) -> tuple[float, str]:
        """The factor of the values at `key` and the unit that they have with it; one that is NaN says neither."""
        stated = np.asarray(self.attribute(key, "conversion", 1.0))
        if stated.dtype.kind == "f" and stated.size == 1 and np.isnan(stated).all():
            self.warn(f"{key} has conversion NaN: its values are taken as they are stored, their unit is unknown")
            return 1.0, ""
        return self.number(key, "conversion", 1.0), self.label(key, "unit")


def flat_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of what is stored with `shape`, with a row or a column of a table taken as a list."""
    return (max(shape),) if len(shape) == 2 and min(shape) == 1 else shape


def as_list(values: NDArray[Any]) -> NDArray[Any]:
    """`values` as one dimension where they are a row or a column of a table, as they are otherwise."""
    return values.reshape(flat_shape(values.shape))


def _require_inside(file: NwbFile, key: str, dataset: h5py.Dataset) -> None:
    if dataset.external or dataset.is_virtual:
        raise file.error(key, "is stored in another file: not followed; copy it in")


def _scan(file: NwbFile, only: Collection[str] = ()) -> None:
    """List every object by key, or those of `only` and what they lie in, refusing what would lead out of this file."""
    ways = {"/".join(parts[: n + 1]) for parts in (key.split("/") for key in only) for n in range(len(parts))}
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
            if ways and child not in ways:
                continue
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
                except READ_ERRORS as error:
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


def open_nwb(path: Path | str | Remote, arrays: bool = False, only: Collection[str] = ()) -> NwbFile:
    """Open an NWB 2 file, or a MATLAB 7.3 one with `MATLAB_VARIABLES`, for reading; use it as a context manager.

    With `arrays` a MATLAB file may hold other variables. With `only` no more of an NWB file is looked at than these
    keys need: hundreds of files are told apart by a few lines of each.

    `InputError`, naming the file, when it is missing, truncated, not HDF5, of NWB 1.x, neither, or links to others.
    """
    if isinstance(path, Remote):
        return _open_remote(path)
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
    return _checked(NwbFile(path, h5), arrays, only)


def _open_remote(remote: Remote) -> NwbFile:
    stream = remote.open()
    try:
        h5 = h5py.File(stream, "r", rdcc_nbytes=2**20)
    except (OSError, RuntimeError) as error:
        stream.close()
        raise InputError(f"{remote}: not a whole HDF5 file, so not NWB 2 ({clean(error, 200)})") from error
    file = NwbFile(Path(remote.name), h5)
    file.stream = stream
    file.warn(remote.said)
    try:
        return _checked(file)
    except InputError:
        stream.close()
        raise


def _checked(file: NwbFile, arrays: bool = False, only: Collection[str] = ()) -> NwbFile:
    """An opened file whose version and objects have been looked at; `InputError`, and it is closed, when it is none."""
    path, h5 = file.path, file.h5
    try:
        version = file.attribute("", "nwb_version")
        if version is None and isinstance(old := h5.get("nwb_version"), h5py.Dataset):
            version = clean(old[()], 40) if old.shape == () else "NWB-1"
        if version is None and not _of_matlab(h5, path):
            raise InputError(f"{path}: an HDF5 file, but not NWB (no attribute nwb_version)")
        file.version = MATLAB if version is None else clean(version, 40)
        if version is not None and not file.version.removeprefix("NWB-").startswith("2"):
            raise InputError(f"{path}: written for NWB {file.version}; only NWB 2 can be read, convert it first")
        _scan(file, only if version is not None else ())
        missing = [name for name in MATLAB_VARIABLES if not isinstance(file.objects.get(name), h5py.Dataset)]
        if file.version == MATLAB and missing and not arrays:
            raise InputError(
                f"{path}: a {MATLAB} file without the variables {', '.join(missing)}; of these files only the Indy and "
                f"Loco recordings ({', '.join(MATLAB_VARIABLES)}) are read: convert others to NWB, or save them as .npz"
            )
    except InputError:
        h5.close()
        raise
    except READ_ERRORS as error:
        h5.close()
        raise InputError(f"{path}: cannot be read ({clean(error, 200)}); is the file complete?") from error
    return file


def _of_matlab(h5: h5py.File, path: Path) -> bool:
    """Whether the user block in front of the HDF5 part is a header of MATLAB 7.3."""
    if h5.userblock_size < 512 or h5.driver == "fileobj":
        return False
    with path.open("rb") as raw:
        return raw.read(len(MATLAB)) == MATLAB.encode()


def unit_tables(file: NwbFile) -> list[str]:
    """Keys of all tables of units with spike times, the one at ``units`` first."""
    found = [key.removesuffix("/spike_times") for key in file.objects if key.endswith("/spike_times")]
    return sorted((key for key in found if f"{key}/spike_times_index" in file), key=lambda key: (key != "units", key))


def spike_table(file: NwbFile) -> tuple[NDArray[np.float64], NDArray[np.integer], int]:
    """Return all spike times in seconds (n_spikes,), the row in the table of units of each, and the number of units.

    One read of the flat array and its index: a read per unit would be far slower. Times need not be
    sorted within a unit.
    """
    times_s, sizes = spikes_of_units(file)
    rows = np.arange(sizes.size, dtype=np.min_scalar_type(sizes.size))  # there are millions of spikes, few units
    return times_s, np.repeat(rows, sizes), sizes.size


def spikes_of_units(file: NwbFile) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """All spike times in seconds (n_spikes,), unit by unit, and how many each unit has (n_units,)."""
    times_s, index = finite_times_s(file, f"{file.units}/spike_times"), f"{file.units}/spike_times_index"
    ends = file.ends(index)
    if ends.size > MAX_ROWS:
        raise file.error(index, f"claims {ends.size:,} units, more than {MAX_ROWS:,}: not read")
    sizes = np.diff(ends, prepend=0)
    if (sizes < 0).any() or (ends[-1] if ends.size else 0) != times_s.size:
        raise file.error(index, f"does not divide the {times_s.size} spike times into units")
    return times_s, sizes


def finite_times_s(file: NwbFile, key: str) -> NDArray[np.float64]:
    """Return the finite times in seconds (n,) at `key`."""
    times_s = as_list(file.numbers(key)).astype(np.float64, copy=False)
    if times_s.ndim != 1:
        raise file.error(key, f"must be times in one dimension, found shape {times_s.shape}")
    if n_wrong := np.count_nonzero(~(np.abs(times_s) < LARGEST_S)):
        raise file.error(key, f"has {n_wrong} values that are no times in seconds: NaN, infinite or 3000 years")
    return times_s


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
    rows = file.rows(table)
    values = as_list(values) if values.size == rows else values
    if values.ndim < 1 or len(values) != rows:
        raise file.error(key, f"must have one value per row ({rows}), found {values.shape}")
    return values
