"""What layouts read from the tables of a file: channels, trials, observed intervals."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bci_adapt.data import binning
from bci_adapt.data.nwb import ELECTRODES, TRIALS, NwbFile, as_list, column


@dataclass(frozen=True)
class Channels:
    """Names of the channels, the channel of every unit or column, what a name identifies, and the electrode of each.

    `identity` is ``"electrode"``, ``"unit"`` (a sorted unit with a name or an electrode of its own), ``"column"`` (of
    a table, without a name) or ``"none"`` (a sorted unit without either): numbers that mean nothing in another session.
    """

    names: list[str]
    index: NDArray[np.int64]
    identity: str
    electrodes: list[str]

    def kept(self, chosen: NDArray[np.bool_]) -> Channels:
        """These channels without those that are not `chosen` (n_channels,); units of the latter have channel -1."""
        place = np.where(chosen, np.cumsum(chosen) - 1, -1)
        names, electrodes = (
            [each for each, keep in zip(labels, chosen, strict=False) if keep]
            for labels in (self.names, self.electrodes)
        )
        return Channels(names, place[self.index], self.identity, electrodes)


def electrode_names(file: NwbFile) -> list[str]:
    """Return a unique name ``group/label`` for every row of the electrodes table; [] when there is none."""
    ids = file.numbers(f"{ELECTRODES}/id").ravel().tolist() if file.rows(ELECTRODES) else []
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
    times = Counter(names)
    return [f"{name}#{number}" if times[name] > 1 else name for name, number in zip(names, ids, strict=True)]


def note_names(file: NwbFile, warnings: list[str]) -> None:
    """Warn where no labels but ids name the electrodes: they are often no more than the numbers of rows."""
    names = electrode_names(file)
    labelled = any(f"{ELECTRODES}/{name}" in file for name in ("label", "electrode_label", "channel_name"))
    if labelled and not any("#" in name for name in names):
        return
    what = "share labels" if labelled else "have no labels"
    warnings.append(f"electrodes {what}: channels are named by their ids, the same elsewhere only if the tables are")


def electrodes_used(file: NwbFile) -> list[str]:
    """Return the names of the electrodes that carry units, or all of them where there is no units table."""
    names = electrode_names(file)
    if f"{file.units}/electrodes" not in file:
        return names
    rows = set(file.whole(f"{file.units}/electrodes").ravel().tolist())
    return [name for row, name in enumerate(names) if row in rows]


def unit_channels(
    file: NwbFile, n_units: int, per: str, warnings: list[str], rows_are_channels: bool = False
) -> Channels:
    """Return the channels of a units table: one per electrode, sorted units pooled on it, or one per unit.

    Every electrode of an array (electrode group) that carries a unit is a channel, a silent one too, so that sessions
    between which units come and go have the same channels. Without an electrodes column each unit is a channel. A
    unit is called by the table's unique ``unit_name`` or ``label``, else by its electrode and its place there. With
    `rows_are_channels` a row without either is a threshold channel, the same one in every session: a layout may know.
    """
    labels = next((v for n in ("unit_name", "label") if (v := column(file, file.units, n)) is not None), None)
    named = [str(each) for each in labels.tolist()] if labels is not None and labels.ndim == 1 else []
    named = named if len(set(named)) == n_units and all(named) else []
    on, index = f"{file.units}/electrodes", f"{file.units}/electrodes_index"
    if on not in file:
        if named:
            return Channels(named, np.arange(n_units), "unit", [""] * n_units)
        name, identity = ("column", "electrode") if rows_are_channels else ("unit", "none")
        return Channels([f"{name}{i}" for i in range(n_units)], np.arange(n_units), identity, [""] * n_units)
    names = electrode_names(file)
    rows = file.whole(on)
    if index in file:
        ends = file.ends(index)
        starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
        if ends.shape != (n_units,) or (ends <= starts).any() or ends[-1:].tolist() != [rows.size]:
            raise file.error(index, f"does not give each of {n_units} units an electrode")
        if (ends - starts > 1).any():
            warnings.append(
                f"{np.count_nonzero(ends - starts > 1)} units name several electrodes: each counts on its first"
            )
        rows = rows[starts]
    if rows.shape != (n_units,) or (rows < 0).any() or (rows >= len(names)).any():
        raise file.error(on, f"must point each of {n_units} units to one of {len(names)} electrodes")
    if per == "unit":
        theirs = [names[row] for row in rows.tolist()]
        seen: dict[str, int] = {}
        numbered = []
        for name in theirs:
            seen[name] = seen.get(name, 0) + 1
            numbered.append(f"{name}/unit{seen[name]}")
        return Channels(named or numbered, np.arange(n_units), "unit", theirs)
    arrays = [name.rpartition("/")[0] for name in names]
    used = {arrays[row] for row in rows}
    kept = [row for row, array in enumerate(arrays) if array in used]
    place = {row: i for i, row in enumerate(kept)}
    channel = np.asarray([place[row] for row in rows.tolist()], dtype=np.int64)
    kept_names = [names[row] for row in kept]
    note_names(file, warnings)
    return Channels(kept_names, channel, "electrode", kept_names)


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

    for name in ("start_time", "stop_time"):
        key = f"{TRIALS}/{name}"
        if key in file and as_list(file.numbers(key)).ndim != 1:
            raise file.error(key, f"must be one time per trial, found shape {file.numbers(key).shape}")
    result = column(file, TRIALS, "result")
    trials = {
        "trial_start_s": time_s("start_time"),
        "trial_stop_s": time_s("stop_time"),
        "trial_go_s": time_s("go_cue_time", "go_cue_time_array", "gocue_time"),
        "trial_result": np.full(n_trials, "") if result is None or result.ndim > 1 else result.astype(np.str_),
    }
    direction = number("target_dir")
    if direction is not None and direction.ndim == 1:
        trials["trial_target_dir"] = direction
    target = number("target_pos", "target_position", "target_center", "tgt_loc")
    if target is not None and target.shape == (n_trials, n_axes):
        trials["trial_target"] = target
    return trials


@dataclass(frozen=True)
class Observed:
    """When units were observed: `bins` (n_sets, n_bins) for each set of intervals, `of_unit` (n_units,) its set."""

    bins: NDArray[np.bool_]
    of_unit: NDArray[np.int64]


def observed_bins(
    file: NwbFile, n_units: int, starts: NDArray[np.int64], bin_ticks: int, warnings: list[str]
) -> Observed | None:
    """Return the bins that lie wholly inside the obs_intervals of each unit; None where the file has none.

    `starts` (n_bins,) are the starts of the bins in ticks.
    """
    key, index = f"{file.units}/obs_intervals", f"{file.units}/obs_intervals_index"
    if key not in file:
        return None
    intervals = file.numbers(key).astype(np.float64)
    ends = file.ends(index)
    sizes = np.diff(ends, prepend=0)
    if intervals.ndim != 2 or intervals.shape[1] != 2 or not (np.abs(intervals) < binning.LARGEST_S).all():
        raise file.error(key, f"must be finite pairs of start and stop, found {intervals.shape}")
    if ends.shape != (n_units,) or (sizes < 0).any() or ends[-1:].tolist() != [len(intervals)]:
        raise file.error(index, f"does not divide the intervals among {n_units} units")
    if (sizes == 0).any():
        warnings.append(f"{np.count_nonzero(sizes == 0)} units have no obs_intervals: taken as observed throughout")
    order = np.argsort(starts, kind="stable")
    sets: dict[bytes, int] = {}
    bins, of_unit = [], np.zeros(n_units, dtype=np.int64)
    for unit, (stop, size) in enumerate(zip(ends, sizes, strict=True)):
        ticks = binning.to_ticks(intervals[stop - size : stop])
        ticks = ticks[np.argsort(ticks[:, 0], kind="stable")]
        of_unit[unit] = sets.setdefault(ticks.tobytes(), len(sets))
        if len(sets) > len(bins):
            seen = np.ones(starts.size, dtype=bool)
            seen[order] = _inside(ticks, starts[order], bin_ticks) if size else True
            bins.append(seen)
    return Observed(np.asarray(bins).reshape(-1, starts.size), of_unit)


def _inside(ticks: NDArray[np.int64], starts: NDArray[np.int64], bin_ticks: int) -> NDArray[np.bool_]:
    """Bins (n_bins,) of rising `starts` wholly inside intervals (n, 2) of rising starts; those that touch are one."""
    reach = np.maximum.accumulate(ticks[:, 1])
    fresh = np.concatenate([[True], ticks[1:, 0] > reach[:-1] + 1])
    begin = np.searchsorted(starts, ticks[fresh, 0], side="left")
    end = np.searchsorted(starts + bin_ticks, reach[np.concatenate([fresh[1:], [True]])], side="right")
    cover = np.zeros(starts.size + 1, dtype=np.int64)
    np.add.at(cover, begin[end > begin], 1)
    np.add.at(cover, end[end > begin], -1)
    return np.cumsum(cover)[:-1] > 0


def judge_observed(
    observed: Observed, channels: Channels, policy: str, warnings: list[str]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return the bins (n_bins,) in which neurons count as observed, and the channels (n_channels,) that are kept.

    Where intervals differ between units a channel is observed where all its units are; an electrode without a unit is
    never in the way. `policy` ``"mask"`` keeps every channel and masks a bin that one of them misses. ``"drop"`` leaves
    out channels so that channels with units times bins that all of them were observed in is large, and masks the bins
    that one of the others misses. A warning says what it cost.
    """
    n_channels, n_bins = len(channels.names), observed.bins.shape[1]
    every = np.ones(n_channels, dtype=bool)
    everywhere = np.asarray(observed.bins.all(axis=0))
    if len(observed.bins) < 2:
        return everywhere, every
    binning.require_size(n_bins, n_channels)
    seen = np.ones((n_channels, n_bins), dtype=bool)
    for channel, own in zip(channels.index.tolist(), observed.of_unit.tolist(), strict=True):
        seen[channel] &= observed.bins[own]
    kept, with_units = every.copy(), np.unique(channels.index)
    kept[with_units] = _worth_keeping(seen[with_units])
    shared = np.asarray(seen[kept].all(axis=0))
    lost, left = n_bins - int(everywhere.sum()), n_bins - int(shared.sum())
    out = [name for name, keep in zip(channels.names, kept, strict=True) if not keep]
    listed = f"{', '.join(out[:8])}{f' and {len(out) - 8} more' if len(out) > 8 else ''}"
    if policy == "drop" and out:
        warnings.append(
            f"obs_intervals differ between units: {len(out)} of {n_channels} channels are left out ({listed}), and "
            f"{left} of {n_bins} bins are masked, {lost} if all were kept (unobserved = 'mask')"
        )
        return shared, kept
    if lost:
        warnings.append(
            f"obs_intervals differ between units: {lost} of {n_bins} bins, in which one unit or more was not observed, "
            f"are masked"
            + (
                f"; without {len(out)} of {n_channels} channels ({listed}) it would be {left}: unobserved = 'drop'"
                if out
                else ""
            )
        )
    return everywhere, every


def _worth_keeping(seen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The channels (n,), two at least, that are left when those that cost most bins are left out, one kind after
    another, and channels times bins that all of them saw is largest. `seen` (n, n_bins) is where each was observed.
    """
    kinds: dict[bytes, int] = {}
    of = np.asarray([kinds.setdefault(np.packbits(row).tobytes(), len(kinds)) for row in seen], dtype=np.int64)
    sizes = np.bincount(of)
    lacking = ~seen[[int(np.argmax(of == kind)) for kind in range(len(sizes))]]
    n_lacking, left = lacking.sum(axis=0), np.ones(len(sizes), dtype=bool)
    best, kept = -1, left.copy()
    while True:
        n_channels, n_bins = int(sizes[left].sum()), int(np.count_nonzero(n_lacking == 0))
        if n_channels * n_bins > best:
            best, kept = n_channels * n_bins, left.copy()
        gained = np.count_nonzero(lacking[:, n_lacking == 1], axis=1)
        after = np.where(left & (n_channels - sizes >= 2), (n_channels - sizes) * (n_bins + gained), -1)
        least_seen = np.where(after == after.max(), lacking.sum(axis=1), -1)
        if after.max() < 0:
            return kept[of]
        out = int(np.argmax(least_seen))
        left[out] = False
        n_lacking = n_lacking - lacking[out]
