"""What a layout is, and the readers that layouts share."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from bci_adapt import __version__, binning
from bci_adapt.errors import InputError
from bci_adapt.nwb import ELECTRODES, TRIALS, Description, NwbFile, column, identity, spike_table
from bci_adapt.session import BIN_EDGE, assemble
from bci_adapt.storage import file_digest

CLOCK_RATIO = 50
"""Spikes that span this many times the kinematics, or the reverse, are on another clock or in another unit."""


class Layout(ABC):
    """Where a kind of file keeps spikes, targets and valid time.

    `name` is what `list layouts` shows, `verified_on` the real file it was tried on ("" for none).
    """

    name: str
    verified_on: str = ""

    @abstractmethod
    def matches(self, description: Description) -> tuple[float, str]:
        """Return how well a file fits, 0 (not at all) to 1, and the reason in words."""

    @abstractmethod
    def read(self, file: NwbFile, bin_s: float) -> xr.Dataset:
        """Read a session with raw values: no derived velocity yet, masks only where something is missing.

        Raises `InputError` naming file and key.
        """


@dataclass(frozen=True)
class Channels:
    """Names of the channels, the channel of every unit or column, and what a name identifies."""

    names: list[str]
    index: NDArray[np.int64]
    identity: str


def electrode_names(file: NwbFile) -> list[str]:
    """Return a unique name ``group/label`` for every row of the electrodes table; [] when there is none."""
    ids = file.array(f"{ELECTRODES}/id").ravel().tolist() if f"{ELECTRODES}/id" in file else []
    groups = column(file, ELECTRODES, "group_name")
    labels = next(
        (v for n in ("label", "electrode_label", "channel_name") if (v := column(file, ELECTRODES, n)) is not None),
        None,
    )
    names = []
    for row, number in enumerate(ids):
        group = re.sub(r"^electrode_group_", "", str(groups[row])) if groups is not None else ""
        label = str(labels[row]).strip() if labels is not None else ""
        names.append(f"{group or 'array'}/{label or f'elec{number}'}")
    repeated = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set()
    return [f"{name}#{number}" if name in repeated else name for name, number in zip(names, ids, strict=True)]


def unit_channels(file: NwbFile, n_units: int, warnings: list[str]) -> Channels:
    """Return the electrodes as channels: sorted units are pooled on the electrode they were found on.

    Every electrode of an array (electrode group) that carries a unit is a channel, a silent one too, so that sessions
    between which units come and go have the same channels. Without an electrodes column each unit is a channel.
    """
    if "units/electrodes" not in file:
        return Channels([f"unit{i}" for i in range(n_units)], np.arange(n_units), "unit")
    names = electrode_names(file)
    rows = file.numbers("units/electrodes").astype(np.int64)
    if "units/electrodes_index" in file:
        ends = file.ends("units/electrodes_index")
        starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
        if ends.shape != (n_units,) or (ends <= starts).any() or ends[-1:].tolist() != [rows.size]:
            raise file.error("units/electrodes_index", f"does not give each of {n_units} units an electrode")
        if (ends - starts > 1).any():
            warnings.append(
                f"{np.count_nonzero(ends - starts > 1)} units name several electrodes: each counts on its first"
            )
        rows = rows[starts]
    if rows.shape != (n_units,) or (rows < 0).any() or (rows >= len(names)).any():
        raise file.error("units/electrodes", f"must point each of {n_units} units to one of {len(names)} electrodes")
    arrays = [name.rpartition("/")[0] for name in names]
    used = {arrays[row] for row in rows}
    kept = [row for row, array in enumerate(arrays) if array in used]
    place = {row: i for i, row in enumerate(kept)}
    index = np.asarray([place[row] for row in rows.tolist()], dtype=np.int64)
    return Channels([names[row] for row in kept], index, "electrode")


def axis_names(description: str, n_axes: int, name: str) -> list[str]:
    """Return names for the columns of a series: those its description lists, else x, y, z, else numbered ones."""
    listed = re.split(r"\s*[,;]\s*", description.strip())  # "x, y" lists names, "cursor position" does not
    if len(listed) == n_axes == len(set(listed)) > 1 and all(re.fullmatch(r"\S{1,12}", word) for word in listed):
        return listed
    return [name] if n_axes == 1 else list("xyz"[:n_axes]) if n_axes <= 3 else [f"{name}{i}" for i in range(n_axes)]


def read_trials(file: NwbFile, n_axes: int) -> dict[str, NDArray[Any]]:
    """Return the trial variables of a session; what a file does not say is NaN, an empty text or left out."""
    n_trials = file.rows(TRIALS)

    def number(*names: str) -> NDArray[np.float64] | None:
        for name in names:
            values = column(file, TRIALS, name)
            if values is not None and values.dtype.kind in "iufb":
                return values.astype(np.float64)
        return None

    def time_s(*names: str) -> NDArray[np.float64]:
        values = number(*names)
        if values is None:
            return np.full(n_trials, np.nan)
        if values.ndim == 2:  # several cues in a trial (random targets): the first that was given
            first = np.argmax(np.isfinite(values), axis=1)
            values = values[np.arange(n_trials), first] if values.shape[1] else np.full(n_trials, np.nan)
        return values.reshape(n_trials, -1)[:, 0]

    result = column(file, TRIALS, "result")
    trials = {
        "trial_start_s": time_s("start_time"),
        "trial_stop_s": time_s("stop_time"),
        "trial_go_s": time_s("go_cue_time", "go_cue_time_array"),
        "trial_result": np.full(n_trials, "") if result is None or result.ndim > 1 else result.astype(np.str_),
    }
    direction = number("target_dir")
    if direction is not None and direction.ndim == 1:
        trials["trial_target_dir"] = direction
    target = number("target_pos", "target_position", "target_center")
    if target is not None and target.shape == (n_trials, n_axes):
        trials["trial_target"] = target
    return trials


def session_attrs(
    file: NwbFile, layout: Layout, bin_s: float, channel_identity: str, warnings: list[str]
) -> dict[str, Any]:
    """Return the attributes of a session; `prepare` completes thresholds and turns the warnings into JSON."""
    about = file.text("session_description")
    if about.lower().startswith("warning"):
        warnings.insert(0, f"session_description: {about}")
    return {
        **identity(file),
        "bin_s": float(bin_s),
        "bin_edge": BIN_EDGE,
        "source_file": file.name,
        "source_sha256": file_digest(file.path),
        "layout": layout.name,
        "licence": "",
        "code_version": __version__,
        "description": about,
        "channel_identity": channel_identity,
        "warnings": [*file.warnings, *warnings],
        "thresholds": {},
    }


def read_columns(file: NwbFile, paths: list[str]) -> tuple[NDArray[np.float64], str, list[str]]:
    """Return values (n_samples, n_axes), unit and axis names of one series, or of several with one column each."""
    tables, units, names = [], [], []
    for path in paths:
        values, unit = file.values(path)
        name = path.rpartition("/")[2]
        description = file.label(path, "description")
        names += [name] if len(paths) > 1 else axis_names(description, values.shape[1], name)
        tables.append(values)
        units.append(unit)
    if len({len(table) for table in tables}) > 1 or len(set(units)) > 1:
        raise file.error(", ".join(paths), "must have one length and one unit to be columns of one target")
    return np.concatenate(tables, axis=1), units[0], names


def observed_bins(
    file: NwbFile, n_units: int, starts: NDArray[np.int64], bin_ticks: int, warnings: list[str]
) -> NDArray[np.bool_]:
    """Return the bins (n_bins,) that lie wholly inside the obs_intervals of every unit; all when there are none.

    `starts` (n_bins,) are the starts of the bins in ticks.
    """
    if "units/obs_intervals" not in file:
        return np.ones(starts.size, dtype=bool)
    intervals = file.numbers("units/obs_intervals").astype(np.float64)
    ends = file.ends("units/obs_intervals_index")
    sizes = np.diff(ends, prepend=0)
    if intervals.ndim != 2 or intervals.shape[1] != 2 or not np.isfinite(intervals).all():
        raise file.error("units/obs_intervals", f"must be finite pairs of start and stop, found {intervals.shape}")
    if ends.shape != (n_units,) or (sizes < 0).any() or ends[-1:].tolist() != [len(intervals)]:
        raise file.error("units/obs_intervals_index", f"does not divide the intervals among {n_units} units")
    if (sizes == 0).any():
        warnings.append(f"{np.count_nonzero(sizes == 0)} units have no obs_intervals: taken as observed throughout")
    order = np.argsort(starts, kind="stable")
    cover = np.zeros(starts.size + 1, dtype=np.int64)
    for stop, size in zip(ends, sizes, strict=True):
        ticks = binning.to_ticks(intervals[stop - size : stop])
        ticks = ticks[np.argsort(ticks[:, 0], kind="stable")]
        reach = np.maximum.accumulate(ticks[:, 1]) if size else ticks[:, 1]
        fresh = np.concatenate([[True], ticks[1:, 0] > reach[:-1] + 1]) if size else np.zeros(0, dtype=bool)
        first = ticks[fresh, 0]  # intervals that touch are one
        last = reach[np.concatenate([fresh[1:], [True]])] if size else reach
        begin = np.searchsorted(starts[order], first, side="left")
        end = np.searchsorted(starts[order] + bin_ticks, last, side="right")
        np.add.at(cover, begin[end > begin], 1)
        np.add.at(cover, end[end > begin], -1)
    valid = np.empty(starts.size, dtype=bool)
    valid[order] = np.cumsum(cover)[:-1] == np.count_nonzero(sizes)
    return valid


def read_spike_session(
    layout: Layout, file: NwbFile, bin_s: float, position: list[str], velocity: str | None
) -> xr.Dataset:
    """Read a session of spike times and dense kinematics with a clock of their own.

    Bins start at the first kinematic sample of a segment; a value is the mean of the samples in its bin. A pause of
    the kinematics of more than one bin (and 1.5 usual sample intervals) ends a segment, as does a clock that runs
    backwards. Rows of segments that overlap in time, where spikes could belong to either, are not `valid`.
    """
    ticks_per_bin = binning.bin_ticks(bin_s)
    warnings: list[str] = []
    values, unit, axes = read_columns(file, position)
    if not np.isfinite(values).any():
        raise file.error(f"{position[0]}/data", "has no value that is not NaN: nothing can be decoded")
    stamps_s = file.times_s(position[0], len(values))
    for other in position[1:]:
        if not np.array_equal(file.times_s(other, len(values)), stamps_s):
            raise file.error(other, f"has other timestamps than {position[0]}: they cannot be columns of one target")
    ticks = binning.to_ticks(stamps_s)
    steps = np.diff(ticks)
    usual = float(np.median(steps[steps > 0])) if (steps > 0).any() else 0.0
    if not 0 < usual <= ticks_per_bin:
        raise file.error(
            position[0],
            f"is sampled every {usual / binning.TICKS_PER_S:g} s and cannot fill bins of {bin_s:g} s: use wider bins",
        )
    backwards = np.count_nonzero(steps < 0)
    if backwards:
        warnings.append(f"the clock of {position[0]} runs backwards {backwards} times: each starts a new segment")
    cuts = np.flatnonzero((steps < 0) | (steps > max(ticks_per_bin, 1.5 * usual))) + 1
    edges = [0, *cuts.tolist(), len(ticks)]
    pieces = []
    for first, stop in pairwise(edges):
        n_bins = int(ticks[stop - 1] - ticks[first]) // ticks_per_bin
        if n_bins:
            pieces.append((first, stop, ticks[first] / binning.TICKS_PER_S, n_bins))
    n_bins = sum(piece[3] for piece in pieces)
    if not n_bins:
        raise file.error(position[0], f"does not last for one bin of {bin_s:g} s without a gap")

    spikes_s, unit_index, n_units = spike_table(file)
    if not spikes_s.size:
        raise file.error("units/spike_times", "holds no spikes")
    channels = unit_channels(file, n_units, warnings)
    if len(channels.names) < 2:
        raise file.error("units", f"offers {len(channels.names)} channel, at least two are needed")
    spike_span, signal_span = float(np.ptp(spikes_s)), float(np.ptp(stamps_s))
    if max(spike_span, signal_span) > CLOCK_RATIO * max(min(spike_span, signal_span), bin_s):
        raise file.error(
            "units/spike_times",
            f"spans {spike_span:g} s while {position[0]} spans {signal_span:g} s: seconds are expected in both, one of "
            "them seems to be in another unit (milliseconds, samples)",
        )
    unsorted = np.count_nonzero((np.diff(spikes_s) < 0) & (np.diff(unit_index) == 0))
    if unsorted:
        warnings.append(f"spike times run backwards within a unit {unsorted} times: each spike is counted at its time")

    binning.require_size(n_bins, len(channels.names))
    order = np.argsort(spikes_s, kind="stable")
    spikes_s, spike_channel = spikes_s[order], channels.index[unit_index[order]]
    starts = np.concatenate([binning.to_ticks(s) + ticks_per_bin * np.arange(n, dtype=np.int64) for *_, s, n in pieces])
    counts = np.zeros((n_bins, len(channels.names)), dtype=np.uint16)
    means = np.full((n_bins, values.shape[1]), np.nan)
    recorded = _recorded_velocity(file, velocity, stamps_s, values.shape[1], warnings)
    recorded_means = np.full_like(means, np.nan)
    segment = np.repeat(np.arange(len(pieces), dtype=np.int32), [piece[3] for piece in pieces])
    row = 0
    for first, stop, start_s, n in pieces:
        rows, samples = slice(row, row + n), slice(first, stop)
        near = slice(*np.searchsorted(spikes_s, [start_s - bin_s, start_s + (n + 1) * bin_s]))
        counts[rows] = binning.spike_counts(spikes_s[near], spike_channel[near], len(channels.names), start_s, n, bin_s)
        means[rows] = binning.signal_means(values[samples], stamps_s[samples], start_s, n, bin_s)
        if recorded is not None:
            recorded_means[rows] = binning.signal_means(recorded[0][samples], stamps_s[samples], start_s, n, bin_s)
        row += n
    valid = observed_bins(file, n_units, starts, ticks_per_bin, warnings)
    if backwards:
        valid &= ~_overlapping(starts, segment, ticks_per_bin)
    kinematics = {"position": (means, unit)}
    if recorded is not None:
        kinematics["recorded_velocity"] = (recorded_means, recorded[1])
    return assemble(
        time_s=(starts + ticks_per_bin) / binning.TICKS_PER_S,
        counts=counts,
        segment=segment,
        valid=valid,
        channels=channels.names,
        axes=axes,
        kinematics=kinematics,
        trials=read_trials(file, values.shape[1]),
        attrs=session_attrs(file, layout, bin_s, channels.identity, warnings),
    )


def _recorded_velocity(
    file: NwbFile, path: str | None, stamps_s: NDArray[np.float64], n_axes: int, warnings: list[str]
) -> tuple[NDArray[np.float64], str] | None:
    """Values and unit of the recorded velocity when it stands on the clock and the axes of the position."""
    if path is None or f"{path}/data" not in file:
        return None
    values, unit = file.values(path)
    if not np.array_equal(binning.to_ticks(file.times_s(path, len(values))), binning.to_ticks(stamps_s)):
        warnings.append(f"{path} has another clock than the position: not used, velocity is derived from position")
        return None
    if values.shape[1] != n_axes:
        warnings.append(f"{path} has {values.shape[1]} columns, the position {n_axes}: not used")
        return None
    return values, unit


def _overlapping(starts: NDArray[np.int64], segment: NDArray[np.int32], ticks_per_bin: int) -> NDArray[np.bool_]:
    """Bins that share time with a bin of another segment."""
    order = np.argsort(starts, kind="stable")
    close = np.diff(starts[order]) < ticks_per_bin
    shared = np.zeros(starts.size, dtype=bool)
    shared[order[:-1][close]] = True
    shared[order[1:][close]] = True
    return shared


def require_whole_counts(file: NwbFile, key: str) -> NDArray[np.uint16]:
    """Return binned counts (n_bins, n_channels) at `key` as uint16; `InputError` unless they are counts."""
    data = file.numbers(key)
    if data.ndim != 2:
        raise file.error(key, f"must be (bins, channels), found {data.shape}")
    if data.shape[1] < 2:
        raise file.error(key, f"has {data.shape[1]} channel, at least two are needed")
    if data.dtype.kind == "f" and not np.array_equal(data, np.rint(data)):
        raise file.error(key, "must hold whole counts per bin, found fractions or NaN")
    if data.size and not (data.min() >= 0 and data.max() <= np.iinfo(np.uint16).max):
        raise file.error(key, f"must hold counts in 0..65535, found {data.min()}..{data.max()}")
    return data.astype(np.uint16)


def bin_width_s(file: NwbFile, series: str, rate_hz: float) -> float:
    """Return the bin width of a series of counts at `rate_hz`; `InputError` unless it is whole microseconds."""
    width_s = round(binning.TICKS_PER_S / rate_hz) / binning.TICKS_PER_S
    if width_s <= 0 or abs(width_s * rate_hz - 1) > 1e-9:
        raise file.error(f"{series}/starting_time", f"has rate {rate_hz} Hz: its bins are not whole microseconds")
    try:
        binning.bin_ticks(width_s)
    except InputError as error:
        raise file.error(series, str(error)) from error
    return width_s
