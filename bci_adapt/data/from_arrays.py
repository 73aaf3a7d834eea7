"""A session from arrays in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from bci_adapt.data import binning, faults
from bci_adapt.data.faults import Thresholds
from bci_adapt.data.layouts.clocks import require_one_clock, turns_apart
from bci_adapt.data.layouts.grids import Grid, Samples, grid_of_ends, grid_of_samples
from bci_adapt.data.layouts.reading import Kinematics, Neurons, on_grid
from bci_adapt.data.layouts.tables import Channels
from bci_adapt.data.nwb import MAX_ROWS
from bci_adapt.data.prepare import finish
from bci_adapt.data.sessions import BIN_EDGE, check, reserved, signed
from bci_adapt.errors import InputError
from bci_adapt.ground.text import clean
from bci_adapt.ground.version import __version__

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
        "session_start": moment_of(given.session_id, session_start),
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


def moment_of(session_id: str, text: str) -> str:
    """When a session of arrays started, ISO 8601 with a zone; `UNDATED` where that is not said."""
    if not text:
        return UNDATED
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise _Given(session_id).error(
            "session_start", f"must be a date and time (ISO 8601), found {text!r}"
        ) from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).isoformat()
