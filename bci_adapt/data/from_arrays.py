"""A session from arrays in memory, and the one door through which a file of any kind becomes a session."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from bci_adapt.data import binning, faults
from bci_adapt.data.array_files import KEYS, WORDS, arrays_of, described
from bci_adapt.data.channels import UNMATCHED_UNITS, policy_of
from bci_adapt.data.faults import Thresholds
from bci_adapt.data.layouts.clocks import require_one_clock, turns_apart
from bci_adapt.data.layouts.grids import Grid, Samples, grid_of_ends, grid_of_samples
from bci_adapt.data.layouts.reading import Kinematics, Neurons, on_grid
from bci_adapt.data.layouts.tables import Channels
from bci_adapt.data.nwb import MAX_ROWS, open_nwb
from bci_adapt.data.nwb_describing import IDENTIFYING, Description
from bci_adapt.data.nwb_describing import identity as identity_of_recording
from bci_adapt.data.prepare import finish, prepare
from bci_adapt.data.prepare import inspect as describe
from bci_adapt.data.remote import Remote
from bci_adapt.data.session_files import open_session, read_session
from bci_adapt.data.sessions import BIN_EDGE, check, kinematic_names, reserved, signed
from bci_adapt.errors import InputError
from bci_adapt.ground.storage import file_digest
from bci_adapt.ground.text import clean
from bci_adapt.ground.version import __version__

IDENTITY = ("session_id", "subject", "session_start")
UNDATED = datetime.fromtimestamp(0, UTC).isoformat()
"""The start of a session of arrays that do not say when they were recorded."""

NO_TRIALS = {**{f"trial_{name}_s": np.zeros(0) for name in ("start", "stop", "go")}, "trial_result": np.zeros(0, "U")}


class _Given:
    """Stands where readers of files expect something that words an error."""

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id

    def error(self, key: str, message: str) -> InputError:
        return InputError(f"{self.session_id}: {key} {message}")


def session(
    spikes: Sequence[ArrayLike] | ArrayLike | None = None,
    target: ArrayLike | None = None,
    target_time_s: ArrayLike | None = None,
    *,
    bin_s: float,
    spike_unit: ArrayLike | None = None,
    counts: ArrayLike | None = None,
    counts_units: str = "count",
    channels: Sequence[str] | None = None,
    axes: Sequence[str] | None = None,
    target_units: str = "",
    target_kind: str = "position",
    session_id: str = "",
    subject: str = "",
    session_start: str = "",
    thresholds: Thresholds | None = None,
    about: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Return a session of arrays in memory, with the masks and checks of a session read from a file.

    Parameters
    ----------
    spikes : spike times in seconds, one array per channel; or all of them (n_spikes,) with `spike_unit` (n_spikes,),
        the channel of each.
    counts : (n_bins, n_channels) whole counts that are binned already, in place of `spikes`: row i covers
        ``(i bin_s, (i + 1) bin_s]``, or ends at ``target_time_s[i]`` where that is given.
    counts_units : of `counts` that are none, but the power of a band: its unit, such as ``"uV"``. They are then numbers
        ≥ 0, and a bin with NaN was not observed.
    target : (n_samples, n_axes) or (n_samples,) of what is to be decoded; None for a session without labels.
    target_time_s : (n_samples,) times in seconds on the clock of the spikes. With `spikes` bins start at the first.
        A clock that is nearly that of the bins is taken for it (`layouts.grids` says how nearly, and what it costs).
    channels : names of the channels; a name means the same electrode in every session it is matched with. Without
        them channels are unknown columns, which are matched with no other session's unless by="position" says so: of
        sorted units that were not matched across days leave the names out, or hand over one train an electrode.
    target_kind : ``"position"``, from which velocity is derived, ``"recorded_velocity"``, or another name.
    target_units : of the target, such as ``"cm"`` (of a velocity ``"cm/s"``). Without it, and in units that are no
        length (``"px"``), limits in centimetres are off, which a warning says.
    session_id : a name of its own; without one the session is called by a digest of its times and counts.
    session_start : ISO 8601; the order and the distance in days of sessions come from it.

    Raises `InputError` naming the argument that cannot be used.
    """
    given = _Given(session_id or "session")
    binning.require_bin_width(bin_s)
    values = _target_values(given, target, target_kind)
    warnings: list[str] = []
    neural, times = (spikes, spike_unit, counts, counts_units), (values, target_time_s, bin_s)
    grid, samples, counted, statistics = _binned(given, *neural, *times, warnings)
    kinematics: Kinematics = {}
    if values is not None:
        binned = values if samples is None else samples.values(values)
        kinematics[target_kind] = binned, target_units, _axis_names(given, axes, binned.shape[1])
    neurons = _neurons(grid, counted, counts_units, _channels(given, channels, counted.shape[1]), statistics)
    attrs = _attrs(given, subject, session_start, bin_s, neurons.channels.identity, target_kind, warnings)
    made = on_grid(grid, neurons, kinematics, NO_TRIALS, attrs | dict(about or {}))
    finish(made, thresholds or Thresholds())
    made.attrs["session_id"] = session_id or f"session-{_content(made)}"
    _check(given, made)
    return signed(made)


def _content(session: xr.Dataset) -> str:
    """Eight digits of a digest of times and counts: an id by which recordings without one are told apart."""
    digest = hashlib.sha256(np.ascontiguousarray(session["time"].values).tobytes())
    digest.update(np.ascontiguousarray(session["counts"].values).tobytes())
    return digest.hexdigest()[:8]


def _target_values(given: _Given, target: ArrayLike | None, kind: str) -> NDArray[np.float64] | None:
    """The target as a table of numbers, NaN where it is not finite."""
    if reserved(kind) or not kind.isidentifier():
        raise given.error("target_kind", f"cannot be {kind!r}: 'position', 'recorded_velocity', or another word")
    if target is None:
        return None
    values = _table(given, target, "target")
    return np.where(np.isfinite(values), values, np.nan)


BIN_S = 0.05
"""The width of bins in seconds where a command was given none and the file has none of its own."""


def read(
    path: Path | str | Remote, bin_s: float | None = None, fallback_s: float | None = None, **options: Any
) -> xr.Dataset:
    """Read a session from any file: ``.nc`` a prepared one, ``.nwb`` or MATLAB 7.3 a recording, ``.npz`` or another
    ``.mat`` the arguments of `session` as arrays of their names.

    `bin_s` is needed for all but ``.nc`` and arrays with a ``bin_s`` of their own; where none is given and the file has
    none, `fallback_s` takes its place. `options` are those of `prepare.prepare` or `session`. `InputError` says why a
    file cannot be taken, and what would do.
    """
    path = path if isinstance(path, Remote) else Path(path)
    options = {name: value for name, value in options.items() if not _is_nothing(value)}
    if isinstance(path, Path) and is_prepared(path):
        return _prepared(path, bin_s, options)
    arrays = _known_arrays(path) or {}
    own_s, binned = arrays.pop("bin_s", None), "counts" in arrays
    width_s = bin_s if bin_s is not None else own_s if own_s is not None else fallback_s
    if width_s is None:
        raise InputError(f"{path}: bin_s, the width of a bin in seconds, is needed to read a recording")
    if own_s is not None:
        try:
            other = binning.bin_ticks(own_s) != binning.bin_ticks(width_s)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        if binned and other:
            raise InputError(f"{path}: holds counts in bins of {own_s:g} s (its bin_s), not of {width_s:g} s")
    if isinstance(path, Remote) or not arrays:
        return prepare(path, width_s, **options)
    if wrong := [name for name in options if name not in (*KEYS, "thresholds")]:
        raise InputError(f"{path}: holds arrays, which say what they are by name and take no {', '.join(wrong)}")
    about = {"source_file": path.name, "source_sha256": file_digest(path)}
    given: dict[str, Any] = {"session_id": path.stem} | arrays | options
    try:
        made = session(**given, bin_s=width_s, about=about)
    except InputError as error:
        raise error if path.name in str(error) else InputError(f"{path}: {error}") from error
    if binned and bin_s is None and own_s is None and "target_time_s" not in arrays:
        guess = (
            f"its counts are taken for bins of {width_s:g} s: neither bin_s nor target_time_s says how wide they are"
        )
        made.attrs["warnings"] = json.dumps([*json.loads(made.attrs["warnings"]), guess], ensure_ascii=False)
    return made


def _is_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, tuple | list | dict) and not value)


def _prepared(path: Path, bin_s: float | None, options: Mapping[str, Any]) -> xr.Dataset:
    """A prepared session as it is; `InputError` where other bins, thresholds or options are asked for than it has."""
    thresholds = options.get("thresholds")
    if others := [name for name in options if name != "thresholds"]:
        raise InputError(f"{path}: a prepared session takes no options, got {', '.join(others)}")
    stored = read_session(path)
    if bin_s is not None and binning.bin_ticks(bin_s) != binning.bin_ticks(float(stored.attrs["bin_s"])):
        raise InputError(
            f"{path}: is prepared in bins of {stored.attrs['bin_s']:g} s, not of {bin_s:g} s: ask for its own width, "
            f"or prepare its recording{_named(stored)} in the other"
        )
    if thresholds not in (None, Thresholds()):
        kept = json.loads(stored.attrs["thresholds"])
        if other := [name for name, value in asdict(thresholds).items() if kept.get(name) != value]:
            raise InputError(
                f"{path}: was prepared with other thresholds ({', '.join(other)}): leave them out, or prepare its "
                f"recording{_named(stored)} anew"
            )
    return stored


def _named(stored: xr.Dataset) -> str:
    name = clean(stored.attrs["source_file"], 120)
    return f" {name}" if name else ""


def is_prepared(path: Path | Remote) -> bool:
    """Whether a file is taken for a prepared session."""
    return Path(path.name).suffix == ".nc"


def is_recording(path: Path) -> bool:
    """Whether a file is taken for a recording that is to be binned by a layout: no prepared session and no arrays."""
    return not is_prepared(path) and arrays_of(path) is None


def bins_of(path: Path) -> tuple[bool, float | None]:
    """Whether a file is binned already, and the width of bins in seconds that it states, if it does."""
    if is_prepared(path):
        with open_session(path) as stored:
            return True, float(stored.attrs["bin_s"]) if "bin_s" in stored.attrs else None
    arrays = arrays_of(path) or {}
    return "counts" in arrays, arrays.get("bin_s")


def identity(path: Path, dated: bool = False) -> dict[str, str]:
    """session_id, subject and session_start of a file of any kind; nothing is binned.

    The start is "" where arrays, or a session prepared of them, do not say when they were recorded; of a recording that
    is an `InputError` where it must be `dated`, to order sessions by it.
    """
    if is_prepared(path):
        with open_session(path) as stored:
            if missing := [key for key in IDENTITY if key not in stored.attrs]:
                raise InputError(f"{path}: not a session: attribute {missing[0]} is missing")
            found = {key: str(stored.attrs[key]) for key in IDENTITY}
        return found | ({"session_start": ""} if found["session_start"] == UNDATED else {})
    arrays = _known_arrays(path)
    if arrays is None:
        with open_nwb(path, only=IDENTIFYING) as file:
            return identity_of_recording(file, dated)
    found = {"session_id": path.stem} | {key: str(arrays[key]) for key in IDENTITY if key in arrays}
    start = str(arrays.get("session_start", ""))
    return dict.fromkeys(IDENTITY, "") | found | {"session_start": start and _moment(_Given(str(path)), start)}


def inspect(path: Path | str | Remote) -> Description:
    """Describe what `read` would make of a file of any kind, see `prepare.inspect`; nothing is binned."""
    if isinstance(path, Remote):
        return describe(path)
    path = Path(path)
    if is_prepared(path):
        with open_session(path) as stored:
            found = described(path, "prepared session", stored.attrs, _sizes(stored), _names_elsewhere(stored))
            if not found.channels and stored.attrs["channel_identity"] == "unit":
                found.warnings.append(UNMATCHED_UNITS)
            return found
    arrays = _known_arrays(path)
    if arrays is None:
        return describe(path)
    sizes = {name: np.shape(value) for name, value in arrays.items() if name in ("counts", "target")}
    if "spikes" in arrays and "spike_unit" not in arrays:
        sizes["spikes"] = (len(arrays["spikes"]),)
    elif "spikes" in arrays:
        sizes["spikes"] = (int(np.max(arrays["spike_unit"], initial=-1)) + 1,)
    what = {
        str(arrays.get("target_kind", "position")) if name == "target" else name: size for name, size in sizes.items()
    }
    units = {str(arrays.get("target_kind", "position")): str(arrays.get("target_units", ""))}
    told = (*WORDS, "bin_s")
    about = {"session_id": path.stem} | {name: arrays[name] for name in told if name in arrays} | {"units": units}
    return described(path, f"arrays ({path.suffix[1:]})", about, what, list(arrays.get("channels", ())))


def _names_elsewhere(stored: xr.Dataset) -> list[str]:
    """Names of the channels by which another session may know them; [] where they are columns or sorted units."""
    return [] if policy_of(stored) == "none" else stored["channel"].values.tolist()


def _known_arrays(path: Path | Remote) -> dict[str, Any] | None:
    return arrays_of(path) if isinstance(path, Path) else None


def _sizes(stored: xr.Dataset) -> dict[str, tuple[int, ...]]:
    return {name: stored[name].shape for name in ("counts", *kinematic_names(stored))}


def _check(given: _Given, made: xr.Dataset) -> None:
    """Refuse what a clock of the spikes other than that of the bins leaves empty, and whatever breaks the schema."""
    usable = np.count_nonzero(made["counts"].values[made["valid"].values].any(axis=0))
    if usable < 2:
        raise given.error(
            "spikes", f"of {usable} channels fall into its bins, at least two are needed: is it one clock?"
        )
    check(made)


def _attrs(
    given: _Given,
    subject: str,
    session_start: str,
    bin_s: float,
    channel_identity: str,
    target_kind: str,
    warnings: list[str],
) -> dict[str, Any]:
    """Attributes of a session, of which `finish` completes thresholds and turns the warnings into JSON."""
    return {
        "session_id": given.session_id,
        "subject": subject,
        "session_start": _moment(given, session_start),
        "bin_s": float(bin_s),
        "bin_edge": BIN_EDGE,
        **dict.fromkeys(("source_file", "source_sha256", "licence", "description"), ""),
        **dict.fromkeys(("dandiset", "dandiset_version", "asset_path"), ""),
        "layout": "arrays",
        "code_version": __version__,
        "channel_identity": channel_identity,
        "parameters": json.dumps({"bin_s": float(bin_s), "target_kind": target_kind}),
        "warnings": warnings,
        "thresholds": {},
    }


def _numbers(given: _Given, values: Any, name: str) -> NDArray[np.float64]:
    if isinstance(values, np.ma.MaskedArray):
        raise given.error(name, "is a masked array, whose mask would be lost: hand over .astype(float).filled(np.nan)")
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise given.error(name, f"must be numbers ({clean(error, 200)})") from error


def _table(given: _Given, values: ArrayLike, name: str) -> NDArray[np.float64]:
    table = _numbers(given, values, name)
    if table.ndim not in (1, 2) or not table.size:
        raise given.error(name, f"must be (n,) or (n, columns) and not empty, found {table.shape}")
    return table.reshape(len(table), -1)


Binned = tuple[Grid, Samples | None, NDArray[Any], dict[str, NDArray[np.int64]]]
"""Bins, how rows of the target fall on them (None: one each), counts (n_bins, n_channels), statistics of spikes."""


def _binned(given: _Given, spikes: Any, spike_unit: Any, counts: Any, counts_units: str, *times: Any) -> Binned:
    """What of `session` it was given, spikes or counts, in bins; `times` are the other arguments of either way."""
    if (spikes is None) == (counts is None):
        raise given.error("spikes, counts", "exactly one of them is needed")
    if spikes is None:
        return _binned_counts(given, counts, counts_units, *times)
    if counts_units != "count":
        raise given.error(
            "counts_units", f"is of counts that are handed over, spikes are counted, got {counts_units!r}"
        )
    return _binned_spikes(given, spikes, spike_unit, *times)


def _binned_spikes(
    given: _Given,
    spikes: Any,
    spike_unit: ArrayLike | None,
    values: NDArray[np.float64] | None,
    target_time_s: ArrayLike | None,
    bin_s: float,
    warnings: list[str],
) -> Binned:
    times_s, index, n_channels = _spikes(given, spikes, spike_unit)
    grid, samples = _bins(given, times_s, values, target_time_s, bin_s, warnings)
    turns_apart(given, "spikes", times_s, index, 0)
    require_one_clock(given, "spikes", times_s, grid)
    every = np.arange(n_channels)
    counted = grid.counts(times_s, index, every, n_channels)
    return grid, samples, counted, faults.spike_statistics(times_s, index, every, n_channels)


def _binned_counts(
    given: _Given,
    counts: Any,
    unit: str,
    values: NDArray[np.float64] | None,
    ends_s: ArrayLike | None,
    bin_s: float,
    warnings: list[str],
) -> Binned:
    counted = _counts(given, counts) if unit == "count" else _power(given, counts, unit)
    grid = _rows(given, len(counted), ends_s, bin_s, warnings)
    if values is not None and len(values) != len(counted):
        raise given.error("target", f"must have a row for each of {len(counted)} bins, found {len(values)}")
    return grid, None, counted, {}


def _neurons(
    grid: Grid, counted: NDArray[Any], unit: str, channels: Channels, statistics: dict[str, NDArray[np.int64]]
) -> Neurons:
    """Counts, or power, of which bins with NaN were not observed and hold 0."""
    observed = np.asarray(np.isfinite(counted).all(axis=1))
    counted = np.where(observed[:, None], counted, counted.dtype.type(0))
    return Neurons(counted, channels, ~grid.overlapping & observed, statistics, unit)


def _axis_names(given: _Given, axes: Sequence[str] | None, n_axes: int) -> list[str]:
    if axes is None:
        return list("xyz")[:n_axes] if n_axes <= 3 else [f"axis{i}" for i in range(n_axes)]
    if len(axes) != n_axes:
        raise given.error("axes", f"must name {n_axes} columns, found {list(axes)}")
    return list(axes)


def _channels(given: _Given, channels: Sequence[str] | None, n_channels: int) -> Channels:
    names = [str(name) for name in channels] if channels is not None else [f"column{i}" for i in range(n_channels)]
    if len(names) != n_channels:
        raise given.error("channels", f"must name {n_channels} channels, found {len(names)}")
    return Channels(names, np.arange(n_channels), "electrode" if channels is not None else "column", [])


def _spikes(
    given: _Given, spikes: Any, spike_unit: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[np.int64], int]:
    if spike_unit is None:
        flat = isinstance(spikes, np.ndarray) and spikes.dtype.kind != "O" and spikes.ndim < 2
        flat = flat or not isinstance(spikes, Iterable)
        trains = [] if flat else [_numbers(given, train, "spikes") for train in spikes]
        if flat or any(train.ndim != 1 for train in trains):
            raise given.error("spikes", "must be one array of times per channel, or all times with spike_unit")
        times_s = np.concatenate(trains) if trains else np.zeros(0)
        index, n_channels = np.repeat(np.arange(len(trains)), [train.size for train in trains]), len(trains)
    else:
        times_s, index = _numbers(given, spikes, "spikes"), np.asarray(spike_unit)
        if times_s.ndim != 1 or index.shape != times_s.shape or index.dtype.kind not in "iu":
            raise given.error("spike_unit", f"must be a whole number per spike, found {index.dtype} {index.shape}")
        if index.size and index.min() < 0:
            raise given.error("spike_unit", f"must not be negative, found {index.min()}")
        if index.size and index.max() >= MAX_ROWS:
            raise given.error("spike_unit", f"must be a channel below {MAX_ROWS:,}, found {index.max()}")
        index, n_channels = index.astype(np.int64), int(index.max(initial=-1)) + 1
    if not times_s.size or not (np.abs(times_s) < binning.LARGEST_S).all():
        raise given.error("spikes", "must be finite times in seconds, and there must be some")
    if n_channels < 2:
        raise given.error("spikes", f"come from {n_channels} channel, at least two are needed")
    if spike_unit is not None:  # channel by channel, each in the order it came in
        order = np.argsort(index, kind="stable")
        times_s, index = times_s[order], index[order]
    return times_s, index, n_channels


def _counts(given: _Given, counts: Any) -> NDArray[np.uint16]:
    table = _table(given, counts, "counts")
    if not np.array_equal(table, np.rint(table)) or table.min() < 0 or table.max() > np.iinfo(np.uint16).max:
        found = f"found {table.min():g}..{table.max():g}; of a band's power say counts_units="
        raise given.error("counts", f"must be whole numbers in 0..65535, {found}")
    return table.astype(np.uint16)


def _power(given: _Given, power: Any, unit: str) -> NDArray[np.float64]:
    table = _table(given, power, "counts")
    if not unit.strip():
        raise given.error("counts_units", "must be 'count', or the unit of a band's power, found none")
    if np.isinf(table).any() or (table < 0).any() or not np.isfinite(table).any():
        raise given.error("counts", f"must be power ≥ 0 in {unit!r}, finite but for what was not observed (NaN)")
    return table


def _bins(
    given: _Given,
    times_s: NDArray[np.float64],
    values: NDArray[np.float64] | None,
    target_time_s: ArrayLike | None,
    bin_s: float,
    warnings: list[str],
) -> tuple[Grid, Samples | None]:
    if values is None:
        width, first = binning.bin_ticks(bin_s), int(binning.to_ticks(times_s.min()))
        start = (first - 1) // width * width
        n_bins = -((start - int(binning.to_ticks(times_s.max()))) // width)
        binning.require_size(n_bins, 2)
        return Grid(start + width * np.arange(n_bins), np.zeros(n_bins, dtype=np.int32), bin_s), None
    if target_time_s is None:
        raise given.error("target_time_s", "is needed: the time of each row of target in seconds")
    stamps = _numbers(given, target_time_s, "target_time_s")
    if stamps.shape != (len(values),):
        raise given.error("target_time_s", f"must be ({len(values)},), one per row of target, found {stamps.shape}")
    return grid_of_samples(given, "target_time_s", binning.to_ticks(stamps), bin_s, warnings)


def _rows(given: _Given, n_bins: int, ends_s: ArrayLike | None, bin_s: float, warnings: list[str]) -> Grid:
    if ends_s is None:
        starts = binning.bin_ticks(bin_s) * np.arange(n_bins, dtype=np.int64)
        return Grid(starts, np.zeros(n_bins, dtype=np.int32), bin_s)
    stamps = _numbers(given, ends_s, "target_time_s")
    if stamps.shape != (n_bins,):
        raise given.error("target_time_s", f"must be ({n_bins},), the end of each bin, found {stamps.shape}")
    return grid_of_ends(given, "target_time_s", binning.to_ticks(stamps), bin_s, warnings)


def _moment(given: _Given, text: str) -> str:
    if not text:
        return UNDATED
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise given.error("session_start", f"must be a date and time (ISO 8601), found {text!r}") from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).isoformat()
