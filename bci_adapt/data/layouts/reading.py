"""The two ways in which layouts read a file: signals on a clock of their own, and rows that stand for bins already.

Both make a `Grid` of bins, count spikes into it, put every kinematic on it and assemble a session. A layout says where
things are (`Target`), which edge of its bin a row is stamped with, and nothing else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from bci_adapt.data import binning, faults
from bci_adapt.data.layouts.base import Layout
from bci_adapt.data.layouts.clocks import require_one_clock, turns_apart
from bci_adapt.data.layouts.grids import (
    GRID_TOLERANCE,
    Grid,
    grid_of_rows,
    grid_of_samples,
    grid_of_spikes,
    samples_on,
)
from bci_adapt.data.layouts.tables import (
    Channels,
    electrode_names,
    judge_observed,
    note_names,
    observed_bins,
    read_trials,
    unit_channels,
)
from bci_adapt.data.nwb import NwbFile, spike_table
from bci_adapt.data.nwb_describing import identity
from bci_adapt.data.sessions import assemble
from bci_adapt.ground.version import __version__

LARGEST_VALUE = 1e100
"""Value of a kinematic from which on it is taken as missing, as infinity is: its square is no number any more."""


@dataclass(frozen=True)
class Target:
    """A kinematic: the name it gets in the session, and the series it is read from, or several of one column each.

    `axes` name the columns where the file does not, `unit` is for files that state none. The first target that a file
    has gives the bins; with ``required`` a file without it is refused. `offset` is False where the attribute of that
    name is no offset of the values.
    """

    name: str
    paths: tuple[str, ...]
    axes: tuple[str, ...] = ()
    unit: str = ""
    required: bool = False
    offset: bool = True


@dataclass(frozen=True)
class Neurons:
    """What was recorded of neurons on a grid: counts (n_bins, n_channels), observed bins, per-channel statistics."""

    counts: NDArray[Any]
    channels: Channels
    valid: NDArray[np.bool_]
    statistics: Mapping[str, NDArray[np.int64]]
    unit: str = "count"


class Counter(Protocol):
    """Something that counts spikes into the bins of a grid: the `Grid` itself, or a benchmark's own rule."""

    def counts(
        self,
        times_s: NDArray[np.float64],
        unit_index: NDArray[np.integer],
        channel_of_unit: NDArray[np.int64],
        n_channels: int,
    ) -> NDArray[np.uint16]: ...


def read_spikes(
    file: NwbFile,
    table: tuple[NDArray[np.float64], NDArray[np.integer], int],
    grid: Grid,
    per: str,
    warnings: list[str],
    rows_are_channels: bool = False,
    *,
    key: str | None = None,
    channels: Channels | None = None,
    resets: bool = False,
    counter: Counter | None = None,
) -> Neurons:
    """Count the spikes of `table` (see `nwb.spike_table`) on `grid`, one channel per electrode or per unit.

    `counter` counts in place of `grid`. `channels` stand in for those of a units table, `key` is where the spikes are.
    `InputError` for spikes that seem to be on another clock or in another unit than the grid, that are out of order
    within a unit, or that start over in the middle (with `resets`: more often than the clock of the grid).
    """
    spikes_s, unit_index, n_units = table
    key = key or f"{file.units}/spike_times"
    if not spikes_s.size:
        raise file.error(key, "holds no spikes")
    if channels is None:
        channels = unit_channels(file, n_units, per, warnings, rows_are_channels)
    if len(channels.names) < 2:
        raise file.error(
            key.removesuffix("/spike_times"), f"offers {len(channels.names)} channel, at least two are needed"
        )
    apart_s = turns_apart(file, key, spikes_s, unit_index, len(grid.stretches()) - 1 if resets else 0)
    require_one_clock(file, key, spikes_s, grid)
    statistics = faults.spike_statistics(apart_s, unit_index, channels.index, len(channels.names))
    counts = (counter or grid).counts(spikes_s, unit_index, channels.index, len(channels.names))
    valid, observed = ~grid.overlapping, observed_bins(file, n_units, grid.starts, grid.width, warnings)
    if observed is None:
        return Neurons(counts, channels, valid, statistics)
    seen, kept = judge_observed(observed, channels, file.unobserved, warnings)
    statistics = {name: values[kept] for name, values in statistics.items()}
    return Neurons(counts[:, kept], channels.kept(kept), valid & seen, statistics)


def read_counts(
    file: NwbFile, key: str, grid: Grid, groups: NDArray[np.int64], warnings: list[str], power: bool = False
) -> Neurons:
    """Sum the binned counts at `key` (rows, channels) over `groups` of `grid_of_rows`; of `power`, take the mean."""
    if power:
        values, unit = file.values(key.removesuffix("/data"))
        unit = unit if unit not in ("", "count") else "power"
        counts = values[groups].mean(axis=1) if groups.shape[1] > 1 else values[groups[:, 0]]
        finite = np.asarray(np.isfinite(counts).all(axis=1))
        counts = np.where(finite[:, None], counts, 0.0)
    else:
        unit, finite = "count", np.ones(len(groups), dtype=bool)
        counts = binning.rebin_counts(require_whole_counts(file, key), groups)
    series = key.removesuffix("/data")
    names, what = electrode_names(file), "electrode"
    if names and f"{series}/electrodes" in file:  # which electrode each column of the series is
        rows = file.whole(f"{series}/electrodes")
        if rows.ndim != 1 or len(set(rows.tolist())) != rows.size or not ((rows >= 0) & (rows < len(names))).all():
            raise file.error(f"{series}/electrodes", f"must point each column to one of {len(names)} electrodes")
        names = [names[row] for row in rows.tolist()]
    if len(names) != counts.shape[1]:
        if names:
            warnings.append(
                f"{len(names)} electrodes are listed for {counts.shape[1]} columns of {series}: "
                "channels are named by column"
            )
        names, what = [f"column{i}" for i in range(counts.shape[1])], "column"
    electrodes = names if what == "electrode" else []
    if what == "electrode":
        note_names(file, warnings)
    index = np.arange(len(names))
    return Neurons(counts, Channels(names, index, what, electrodes), ~grid.overlapping & finite, {}, unit)


def axis_names(description: str, n_axes: int, name: str) -> list[str]:
    """Return names for the columns of a series: those its description lists, by itself or behind a colon, else x, y, z,
    else numbered ones.
    """
    for text in (description, description.rpartition(":")[2]):
        listed = re.split(r"\s*[,;]\s*", text.strip())  # "x, y" lists names, "cursor position" does not
        if len(listed) == n_axes == len(set(listed)) > 1 and all(re.fullmatch(r"\S{1,12}", word) for word in listed):
            return listed
    return [name] if n_axes == 1 else list("xyz"[:n_axes]) if n_axes <= 3 else [f"{name}{i}" for i in range(n_axes)]


def read_columns(file: NwbFile, target: Target) -> tuple[NDArray[np.float64], str, list[str]]:
    """Return values (n_samples, n_axes), unit and axis names of one series, or of several with one column each."""
    tables, units, names = [], [], []
    for path in target.paths:
        values, unit = file.values(path, target.offset)
        values[~(np.abs(values) < LARGEST_VALUE)] = np.nan
        if len(target.paths) > 1 and values.shape[1] > 1:
            raise file.error(f"{path}/data", f"must be one column of {target.name}, found {values.shape[1]}")
        name = path.rpartition("/")[2]
        description = file.label(path, "description")
        names += [name] if len(target.paths) > 1 else axis_names(description, values.shape[1], name)
        tables.append(values)
        units.append(unit)
    where = ", ".join(target.paths)
    if len({len(table) for table in tables}) > 1 or len(set(units)) > 1:
        raise file.error(where, "must have one length and one unit to be columns of one target")
    values = tables[0] if len(tables) == 1 else np.concatenate(tables, axis=1)
    if target.axes and len(target.axes) != values.shape[1]:
        raise file.error(where, f"must have the columns {', '.join(target.axes)}, found {values.shape[1]}")
    return values, units[0] or target.unit, list(target.axes) or names


def present(file: NwbFile, targets: Sequence[Target]) -> list[Target]:
    """The targets that `file` has; `InputError` for a required one that is missing, or one of which parts are."""
    found = []
    for target in targets:
        missing = [path for path in target.paths if f"{path}/data" not in file]
        for path in missing:
            if f"{path}/data" in file.damaged:
                file.dataset(f"{path}/data")
        if missing and (target.required or len(missing) < len(target.paths)):
            raise file.error(", ".join(missing), f"is missing: {target.name} is read from it")
        if not missing:
            found.append(target)
    return found


def _stamps(file: NwbFile, target: Target, n_samples: int) -> NDArray[np.float64]:
    stamps_s = file.times_s(target.paths[0], n_samples)
    for other in target.paths[1:]:
        if not np.array_equal(file.times_s(other, n_samples), stamps_s):
            raise file.error(
                other, f"has other timestamps than {target.paths[0]}: they cannot be columns of one target"
            )
    return stamps_s


def _require_a_value(file: NwbFile, target: Target, values: NDArray[np.float64]) -> None:
    if not np.isfinite(values).any():
        raise file.error(f"{target.paths[0]}/data", "has no value that is not NaN: nothing can be decoded")


Kinematics = dict[str, tuple[NDArray[np.float64], str, list[str]]]


def read_continuous(
    layout: Layout,
    file: NwbFile,
    bin_s: float,
    per: str,
    targets: Sequence[Target],
    extra: Mapping[str, Any] | None = None,
    resets: bool = False,
) -> xr.Dataset:
    """Read a session of spike times and signals with a clock of their own; a value is the mean of its bin's samples.

    The first of `targets` that the file has gives the bins (`grid_of_samples`), without any the spikes do. `extra`
    maps names to further variables, see `sessions.assemble`. With `resets` spikes may start over with that clock.
    """
    warnings: list[str] = []
    found = present(file, targets)
    table = spike_table(file)
    grid, kinematics = _read_targets(file, found, bin_s, warnings)
    grid = replace(grid or grid_of_spikes(file, table[0], bin_s), edge=layout.bin_edge)
    if not found:
        warnings.append("no kinematics in this file: a session without labels")
    neurons = read_spikes(file, table, grid, per, warnings, resets=resets)
    return session(layout, file, grid, neurons, kinematics, warnings, extra)


def _read_targets(
    file: NwbFile, targets: Sequence[Target], bin_s: float, warnings: list[str]
) -> tuple[Grid | None, Kinematics]:
    """Bins that the first of `targets` gives, None without any, and all that can stand on them."""
    kinematics: Kinematics = {}
    grid, samples, clock = None, None, None
    for target in targets:
        values, unit, axes = read_columns(file, target)
        ticks = binning.to_ticks(_stamps(file, target, len(values)))
        if grid is None or samples is None or clock is None:
            _require_a_value(file, target, values)
            grid, samples = grid_of_samples(file, target.paths[0], ticks, bin_s, warnings)
            clock = ticks
        if np.array_equal(ticks, clock):
            own = samples
        elif len(stretches := grid.stretches()) == 1:
            own = samples_on(grid, ticks, stretches[0])
        else:
            warnings.append(
                f"{target.paths[0]} has another clock than {targets[0].paths[0]}, which runs backwards: left out"
            )
            continue
        kinematics[target.name] = own.values(values), unit, axes
    return grid, kinematics


def read_rows(
    layout: Layout,
    file: NwbFile,
    bin_s: float,
    per: str,
    targets: Sequence[Target],
    *,
    edge: str,
    clock: str,
    counts: str | None = None,
    power: bool = False,
    width_s: float | None = None,
    start_s: float | None = None,
    tolerance: float = GRID_TOLERANCE,
    breaks: Sequence[int] = (),
    runs_on: bool = False,
    resample: bool = False,
    rows_are_channels: bool = False,
    masks: Mapping[str, str] | None = None,
    cut: Callable[[NDArray[np.float64], NDArray[np.int64], float], Counter | None] | None = None,
    trials: Mapping[str, NDArray[Any]] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Read a session of rows that stand for bins already: those of the series `clock`, as in `grid_of_rows`.

    Spikes are counted in these bins, or taken from the binned series `counts` (of `power` instead of counts where the
    values are no counts). Kinematics stand on the rows one by one; with `resample` those on another clock are averaged
    over each bin. Wider bins sum whole rows of counts and average kinematics; any other width is refused. `masks` maps
    names of variables (n_bins,) to series of yes and no that hold for a bin when they hold for all its rows; one that
    the file lacks is left out, a ``~`` before the path turns it round. `cut` makes, of the stamps of rows, of the rows
    in each bin and of the width of a row in seconds, what counts spikes in place of the grid. `trials` takes the place
    of the trials table; `rows_are_channels` as in `unit_channels`.
    """
    warnings: list[str] = []
    found = present(file, targets)
    if not (n_rows := file.length(f"{clock}/data")):
        raise file.error(f"{clock}/data", "is empty")
    clocked = {"start_s": start_s, "tolerance": tolerance, "breaks": breaks, "runs_on": runs_on}
    grid, groups = grid_of_rows(file, clock, n_rows, edge, bin_s, warnings, width_s, **clocked)
    times_s, grid = file.times_s(clock, n_rows), replace(grid, edge=layout.bin_edge)
    kinematics = _targets_of_rows(file, found, clock, times_s, grid, groups, resample)
    if counts is None:
        own = cut(times_s, groups, round(grid.bin_s / groups.shape[1], 9)) if cut else None
        neurons = read_spikes(file, spike_table(file), grid, per, warnings, rows_are_channels, counter=own)
    else:
        if (n_own := file.length(f"{counts}/data")) != n_rows:
            raise file.error(f"{counts}/data", f"must have a row for each of the {n_rows} of {clock}, found {n_own}")
        if counts != clock and not np.array_equal(file.times_s(counts, n_rows), times_s):
            raise file.error(counts, f"must stand on the grid of {clock}")
        neurons = read_counts(file, f"{counts}/data", grid, groups, warnings, power)
    there = {name: path for name, path in (masks or {}).items() if f"{path.removeprefix('~')}/data" in file}
    flags = {name: ("time", _mask(file, path, clock, times_s)[groups].all(axis=1)) for name, path in there.items()}
    return session(layout, file, grid, neurons, kinematics, warnings, {**flags, **(extra or {})}, trials)


def _targets_of_rows(
    file: NwbFile,
    targets: Sequence[Target],
    clock: str,
    times_s: NDArray[np.float64],
    grid: Grid,
    groups: NDArray[np.int64],
    resample: bool,
) -> Kinematics:
    """The kinematics in bins of `groups` (n_bins, k) of the rows of `clock`, which are stamped `times_s` (n_rows,).

    A kinematic of as many rows, none of which is stamped a quarter of a row or more apart, stands on the same rows.
    """
    kinematics: Kinematics = {}
    most_s = GRID_TOLERANCE * grid.bin_s / groups.shape[1]
    for target in targets:
        values, unit, axes = read_columns(file, target)
        own_s = _stamps(file, target, len(values))
        paired = len(values) == len(times_s) and bool((np.abs(own_s - times_s) <= most_s).all())
        if not paired and resample and len(stretches := grid.stretches()) == 1:
            own = samples_on(grid, binning.to_ticks(own_s), stretches[0])
            kinematics[target.name] = own.values(values), unit, axes
            continue
        if not paired:
            raise file.error(
                target.paths[0],
                f"must stand on the grid of {clock} ({len(times_s)} rows from {times_s[0]:g} to {times_s[-1]:g} s), "
                f"found {len(values)} rows from {own_s[0]:g} to {own_s[-1]:g} s",
            )
        if target is targets[0]:
            _require_a_value(file, target, values)
        kinematics[target.name] = values[groups].mean(axis=1), unit, axes
    return kinematics


def _mask(file: NwbFile, series: str, clock: str, times_s: NDArray[np.float64]) -> NDArray[np.bool_]:
    """The series of yes and no (n_rows,) at `series`, which must stand on the rows of `clock`; turned round after ~."""
    turned, series = series.startswith("~"), series.removeprefix("~")
    values = file.numbers(f"{series}/data", flags=True).squeeze()
    same = values.shape == times_s.shape and np.array_equal(file.times_s(series, len(values)), times_s)
    if not same:
        raise file.error(series, f"must stand on the grid of {clock} ({len(times_s)} rows), found {values.shape}")
    if not np.isin(values, (0, 1)).all():
        raise file.error(f"{series}/data", "must say yes (1) or no (0) of every row")
    return values.astype(bool) ^ turned


def session(
    layout: Layout,
    file: NwbFile,
    grid: Grid,
    neurons: Neurons,
    kinematics: Kinematics,
    warnings: list[str],
    extra: Mapping[str, Any] | None = None,
    trials: Mapping[str, NDArray[Any]] | None = None,
) -> xr.Dataset:
    """Put what was read together as a session, before rules of quality are applied (`prepare` does that)."""
    n_axes = next((values.shape[1] for values, *_ in kinematics.values()), 0)
    trials = read_trials(file, n_axes) if trials is None else trials
    attrs = _attrs(file, layout, grid.bin_s, neurons.channels.identity, warnings)
    return on_grid(grid, neurons, kinematics, trials, attrs, extra)


def on_grid(
    grid: Grid,
    neurons: Neurons,
    kinematics: Kinematics,
    trials: Mapping[str, NDArray[Any]],
    attrs: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Put neurons and kinematics on the bins of `grid` together as a session, see `sessions.assemble`."""
    return assemble(
        time_s=grid.ends_s,
        counts=neurons.counts,
        counts_unit=neurons.unit,
        segment=grid.segment,
        valid=neurons.valid,
        channels=neurons.channels.names,
        electrodes=neurons.channels.electrodes,
        statistics=neurons.statistics,
        kinematics=kinematics,
        trials=trials,
        attrs=attrs,
        extra=extra,
    )


def _attrs(file: NwbFile, layout: Layout, bin_s: float, channel_identity: str, warnings: list[str]) -> dict[str, Any]:
    """Attributes of a session; `prepare` completes thresholds and provenance and turns the warnings into JSON."""
    about = file.text("session_description")
    if about.lower().startswith("warning"):
        warnings.insert(0, f"session_description: {about}")
    return {
        **identity(file),
        "bin_s": float(bin_s),
        "bin_edge": layout.bin_edge,
        "source_file": file.name,
        "source_sha256": file.sha256(),
        "layout": layout.name,
        "licence": "",
        "code_version": __version__,
        "description": about,
        "channel_identity": channel_identity,
        "dandiset": "",
        "dandiset_version": "",
        "asset_path": "",
        "parameters": json.dumps({"bin_s": float(bin_s), "layout": layout.name}),
        "warnings": [*file.warnings, *warnings],
        "thresholds": {},
    }


def note_looking_ahead(session: xr.Dataset, difference: str) -> xr.Dataset:
    """Mark the recorded velocity of a session, where it has one, as a `difference` that knows the bin to come."""
    if "recorded_velocity" in session:
        session["recorded_velocity"].attrs["looks_ahead"] = difference
        session.attrs["warnings"].append(
            f"recorded_velocity is a {difference} difference of position, which looks one bin ahead of the spikes; "
            "velocity, derived from the past alone, does not"
        )
    return session


def require_whole_counts(file: NwbFile, key: str) -> NDArray[np.uint16]:
    """Return binned counts (n_bins, n_channels) at `key` as uint16; `InputError` unless they are counts."""
    data = file.numbers(key, flags=True)
    if data.ndim != 2:
        raise file.error(key, f"must be (bins, channels), found {data.shape}")
    if len(data) == 1:
        raise file.error(key, f"holds a single row of {data.shape[1]} values: (bins, channels) is expected")
    if data.shape[1] < 2:
        raise file.error(key, f"has {data.shape[1]} channel, at least two are needed")
    if data.dtype.kind == "f" and not np.array_equal(data, np.rint(data)):
        raise file.error(key, "must hold whole counts per bin, found fractions or NaN")
    if data.size and not (data.min() >= 0 and data.max() <= np.iinfo(np.uint16).max):
        raise file.error(key, f"must hold counts in 0..65535, found {data.min()}..{data.max()}")
    return data.astype(np.uint16)
