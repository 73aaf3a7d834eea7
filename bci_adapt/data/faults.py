"""Faults of one recording, found by rules with stated thresholds: arrays only, no session is known by name."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bci_adapt.data.binning import bin_ticks, segment_slices, to_ticks
from bci_adapt.errors import InputError


@dataclass(frozen=True)
class Thresholds:
    """Thresholds of the rules of this module; they are stored with every session.

    `silent_s`: bins in which every channel is silent for longer than this are not observed.
    `still_s`, `still_extent_cm`: labels are not usable while the cursor stays within the extent, on every axis, for
    longer than this (a sensor at rest flickers by its last digit, which is why the extent is not zero), and the
    recording is what stands still, not the animal (`stuck_bins`).
    `max_speed_cm_s`, `speed_neighbours`: labels of a faster bin, and of this many bins around it, are not usable.
    `min_agreement`: recorded and derived velocity agree when their correlation is at least this.
    """

    silent_s: float = 1.0
    still_s: float = 10.0
    still_extent_cm: float = 0.1
    max_speed_cm_s: float = 150.0
    speed_neighbours: int = 3
    min_agreement: float = 0.9

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
                raise InputError(f"threshold {field.name} must be a number of at least 0, got {value!r}")
        if not isinstance(self.speed_neighbours, int):
            raise InputError(f"threshold speed_neighbours must be a whole number, got {self.speed_neighbours!r}")


JUMP = 20.0
"""Speed over its 99th percentile that no movement reaches, whatever its unit."""


def cm_per_unit(unit: str) -> float | None:
    """Return how many centimetres a unit of length is, also in a speed such as ``"cm/s"``; None when not known."""
    length = unit.lower().strip().removesuffix("/s").removesuffix("/sec").removesuffix(" per second").strip()
    for factor, symbol, prefix in ((100.0, "m", ""), (1.0, "cm", "centi"), (0.1, "mm", "milli")):
        if length == symbol or length.removesuffix("s") in (f"{prefix}meter", f"{prefix}metre"):
            return factor
    return None


def _long_runs(flags: NDArray[np.bool_], segment: NDArray[np.integer], more_than: int) -> NDArray[np.bool_]:
    """Keep the runs of True that are longer than `more_than` bins within one segment."""
    kept = np.zeros_like(flags)
    for rows in segment_slices(segment):
        edges = np.flatnonzero(np.diff(np.concatenate([[False], flags[rows], [False]]).astype(np.int8)))
        for start, stop in edges.reshape(-1, 2):
            if stop - start > more_than:
                kept[rows.start + start : rows.start + stop] = True
    return kept


def silent_bins(
    counts: NDArray[np.unsignedinteger], segment: NDArray[np.integer], bin_s: float, silent_s: float
) -> NDArray[np.bool_]:
    """Return the bins (n_bins,) of stretches longer than `silent_s` in which all of `counts` (n_bins, n) are zero."""
    return _long_runs(np.asarray(~counts.any(axis=1)), segment, int(to_ticks(silent_s)) // bin_ticks(bin_s))


def still_bins(
    position: NDArray[np.float64], segment: NDArray[np.integer], bin_s: float, still_s: float, extent: float
) -> NDArray[np.bool_]:
    """Return the bins (n_bins,) of stretches longer than `still_s` in which `position` stays within `extent`.

    `position` is (n_bins, n_axes) and `extent` is in its unit, 0 for exactly no movement. A stretch is a window in
    which no axis ranges over more than `extent`, so slow steady movement is not standing still. NaN ends a stretch.
    """
    from scipy.ndimage import maximum_filter1d, minimum_filter1d

    still = np.zeros(len(position), dtype=bool)
    n_window = int(to_ticks(still_s)) // bin_ticks(bin_s) + 1
    for rows in segment_slices(segment):
        n_starts = rows.stop - rows.start - n_window + 1
        if n_starts < 1:
            continue
        known = np.isfinite(position[rows]).all(axis=1)
        moving = np.where(np.isfinite(position[rows]), position[rows], 0.0)
        shift = -(n_window // 2)  # row i then looks at rows i … i + n_window - 1
        span = maximum_filter1d(moving, n_window, 0, origin=shift) - minimum_filter1d(moving, n_window, 0, origin=shift)
        gaps = np.concatenate([[0], np.cumsum(~known)])
        starts = (span[:n_starts] <= extent).all(axis=1) & (gaps[n_window:] == gaps[:-n_window])
        edges = np.zeros(rows.stop - rows.start + 1, dtype=np.int64)
        edges[:n_starts] += starts
        edges[n_window:] -= starts
        still[rows] = np.cumsum(edges)[:-1] > 0
    return still


STUCK_SHARE = 0.25
"""Share of steps that are exactly zero, on every axis, from which on a stretch that stands still is a stuck sensor.
Sensors of resting animals repeat a value in at most 2 % of bins (17 sessions of one animal), a stuck one in 59 to 100 %
(three bin widths)."""


def stuck_bins(
    still: NDArray[np.bool_], position: NDArray[np.float64], segment: NDArray[np.integer], silent: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Return those of the `still` bins (n_bins,) in which the recording stands still: a resting animal is no fault.

    A stretch counts when `position` (n_bins, n_axes) repeats itself exactly in at least `STUCK_SHARE` of its steps on
    every axis, which the tremor and the noise of a live sensor do not let happen, or when at least half of it is
    `silent` (n_bins,), neurons and cursor alike.
    """
    stuck = np.zeros_like(still)
    for rows in segment_slices(segment):
        edges = np.flatnonzero(np.diff(np.concatenate([[False], still[rows], [False]]).astype(np.int8)))
        for start, stop in (edges + rows.start).reshape(-1, 2):
            path = position[start:stop]
            # Means of the same samples may differ in their last digit.
            same = np.abs(np.diff(path, axis=0)) <= 1e-12 * np.abs(path).max(axis=0)
            repeats = stop - start > 1 and bool((same.mean(axis=0) >= STUCK_SHARE).all())
            stuck[start:stop] = repeats or silent[start:stop].mean() >= 0.5
    return stuck


def fast_bins(
    velocity: NDArray[np.float64], segment: NDArray[np.integer], max_speed: float, neighbours: int
) -> NDArray[np.bool_]:
    """Return the bins (n_bins,) faster than `max_speed`, and `neighbours` bins on either side within the segment.

    `velocity` is (n_bins, n_axes); the speed is its Euclidean norm; NaN is not fast.
    """
    fast = np.sqrt(np.square(velocity).sum(axis=1)) > max_speed
    flagged = fast.copy()
    for rows in segment_slices(segment):
        within = np.flatnonzero(fast[rows]) + rows.start
        for row in within:
            flagged[max(row - neighbours, rows.start) : min(row + neighbours + 1, rows.stop)] = True
    return flagged


def jump_limit(velocity: NDArray[np.float64]) -> float:
    """Return the speed above which movement of an unknown unit is a jump: `JUMP` times its 99th percentile.

    `velocity` is (n_bins, n_axes). Infinite where nothing moves, and where more than one bin in a thousand lies above:
    jumps are rare, and an animal that hardly ever moves does not jump.
    """
    speed = np.sqrt(np.square(velocity).sum(axis=1))
    speed = speed[np.isfinite(speed)]
    limit = JUMP * float(np.percentile(speed, 99)) if speed.size else 0.0
    return limit if limit > 0.0 and (speed > limit).mean() <= 0.001 else float("inf")


def velocity_agreement(
    recorded: NDArray[np.float64], derived: NDArray[np.float64], usable: NDArray[np.bool_]
) -> tuple[float, float]:
    """Compare recorded with derived velocity, both (n_bins, n_axes), over the `usable` entries.

    Return the correlation and the least-squares factor b of ``recorded = b derived``, pooled over axes after removing
    each axis's mean; NaN for both when nothing moves.
    """
    products = np.zeros(3)
    for a, b, use in zip(recorded.T, derived.T, usable.T, strict=True):
        use = use & np.isfinite(a) & np.isfinite(b)
        if use.any():
            x, y = a[use] - a[use].mean(), b[use] - b[use].mean()
            products += x @ y, x @ x, y @ y
    shared, recorded_power, derived_power = products
    if not recorded_power > 0 or not derived_power > 0:
        return float("nan"), float("nan")
    return float(shared / np.sqrt(recorded_power * derived_power)), float(shared / derived_power)


# ------------------------------------------------------------------------------------------------- spike times

SHORT_ISI_S = 0.001
"""Intervals below this are shorter than a neuron's refractory period; also the width of a window of coincidence."""
MIN_COINCIDENT = 3
_SPIKES, _MAX_PLACES = 2**16, 2**22  # spikes at a time, whose ticks stay in the processor's cache; 16 MiB of places


def spike_statistics(
    spike_times_s: ArrayLike, unit_index: ArrayLike, channel_of_unit: ArrayLike, n_channels: int
) -> dict[str, NDArray[np.int64]]:
    """Count the spikes of each channel that a single neuron cannot fire, or that half an array fires at once.

    `spike_times_s` (n_spikes,) in any order, `unit_index` (n_spikes,) the unit of each, `channel_of_unit` (n_units,)
    the channel of each unit. Returns, each (n_channels,): ``n_spikes``; ``n_short_isi``, intervals below 1 ms between
    successive spikes of one unit; ``n_coincident``, spikes in windows of 1 ms (bins of whole milliseconds, (start,
    end]) in which at least a third of all `n_channels`, and at least 3, spike. Times are compared in ticks of 1 µs.
    `InputError` when shapes or indices do not fit together.
    """
    times_s, unit = np.asarray(spike_times_s, dtype=np.float64), np.asarray(unit_index)
    channel_of_unit = np.asarray(channel_of_unit, dtype=np.int64)
    if times_s.shape != unit.shape or times_s.ndim != 1:
        raise InputError(f"one unit per spike is needed, got {unit.shape} units for {times_s.shape} spikes")
    for what, index, n in (("unit", unit, channel_of_unit.size), ("channel", channel_of_unit, n_channels)):
        if index.size and not (index.min() >= 0 and index.max() < n):
            raise InputError(f"{what} indices must lie in 0..{n - 1}, got {index.min()}..{index.max()}")
    if ((unit[1:] < unit[:-1]) | ((unit[1:] == unit[:-1]) & (times_s[1:] < times_s[:-1]))).any():
        order = np.lexsort((times_s, unit))
        times_s, unit = times_s[order], unit[order]
    width, least = bin_ticks(SHORT_ISI_S), max(MIN_COINCIDENT, -(-n_channels // 3))
    # Windows share places of a table: one in which `least` channels spike stands in a place of at least as many spikes.
    n_places = 1 << (4 * times_s.size // least).bit_length()
    in_place = np.zeros(min(n_places, _MAX_PLACES), dtype=np.int32)
    n_of_unit, short_of_unit = np.zeros((2, channel_of_unit.size), dtype=np.int64)
    for first in range(0, times_s.size, _SPIKES):
        before = max(first - 1, 0)
        ticks, own = to_ticks(times_s[before : first + _SPIKES]), unit[before : first + _SPIKES]
        close = (np.diff(ticks) < width) & (own[1:] == own[:-1])
        short_of_unit += np.bincount(own[1:][close], minlength=short_of_unit.size)
        n_of_unit += np.bincount(own[first - before :], minlength=n_of_unit.size)
        np.add.at(in_place, ((ticks[first - before :] - 1) // width) & (in_place.size - 1), np.int32(1))
    crowded, slots, channels = in_place >= least, [], []
    for first in range(0, times_s.size if crowded.any() else 0, _SPIKES):
        slot = (to_ticks(times_s[first : first + _SPIKES]) - 1) // width
        chosen = crowded[slot & (in_place.size - 1)]
        slots.append(slot[chosen])
        channels.append(channel_of_unit[unit[first : first + _SPIKES][chosen]])
    counted = {name: np.zeros(n_channels, dtype=np.int64) for name in ("n_spikes", "n_short_isi")}
    for name, of_unit in zip(counted, (n_of_unit, short_of_unit), strict=True):
        np.add.at(counted[name], channel_of_unit, of_unit)
    return counted | {"n_coincident": _coincident(slots, channels, n_channels, least)}


def _coincident(
    slots: list[NDArray[np.int64]], channels: list[NDArray[np.int64]], n_channels: int, least: int
) -> NDArray[np.int64]:
    """Spikes of each channel (n_channels,) in windows (of number `slots`) in which at least `least` channels spike."""
    if not slots:
        return np.zeros(n_channels, dtype=np.int64)
    slot, channel = np.concatenate(slots), np.concatenate(channels)
    order = np.argsort(slot)
    slot, channel = slot[order], channel[order]
    window = np.cumsum(np.diff(slot, prepend=slot[:1]) != 0)
    pairs = np.sort(window * n_channels + channel)  # sorting is many times faster than np.unique
    distinct = pairs[np.diff(pairs, prepend=-1) != 0] // n_channels
    in_window = np.bincount(distinct, minlength=int(window.max(initial=0)) + 1)
    return np.bincount(channel[in_window[window] >= least], minlength=n_channels).astype(np.int64)


def contamination(
    n_spikes: NDArray[np.integer], n_short_isi: NDArray[np.integer], duration_s: float
) -> NDArray[np.float64]:
    """Return the fraction of foreign spikes (n_channels,) that would explain the short intervals of a single unit.

    Hill, Mehta & Kleinfeld (2011, J Neurosci 31:8699): a unit of N spikes of which a fraction f comes from other
    neurons has about 2 τ N² f (1 - f) / T intervals below the refractory period τ, here 1 ms, in T seconds. f is the
    smaller root, 0.5 where even that does not explain them, NaN without spikes. Where a channel carries several
    units, f is too small: N² is more than the sum of theirs.
    """
    n = np.asarray(n_spikes, dtype=np.float64)
    pairs = 2 * SHORT_ISI_S * n**2
    share = np.divide(n_short_isi * duration_s, pairs, out=np.full(n.shape, np.nan), where=pairs > 0)
    return (1 - np.sqrt(np.maximum(1 - 4 * share, 0.0))) / 2


# ------------------------------------------------------------------------------------------------------ channels

_CHUNK = 2**14  # rows turned into float64 at a time: a day of many channels need not fit into memory thrice


def robust_z(values: NDArray[np.float64], floor: float) -> NDArray[np.float64]:
    """Return (x - median) / spread of `values`; the spread is 1.4826 MAD, at least `floor`. NaN stays NaN."""
    known = values[np.isfinite(values)]
    if not known.size:
        return np.full_like(values, np.nan)
    middle = np.median(known)
    return (values - middle) / max(1.4826 * float(np.median(np.abs(known - middle))), floor)


def coincident_bins(
    counts: NDArray[np.unsignedinteger], valid: NDArray[np.bool_], tail: float, alpha: float
) -> tuple[NDArray[np.int64], int]:
    """Count the channels that spike far above their mean in each bin, and say how many chance allows.

    A channel is far above its mean when a Poisson count of that mean is as high with a probability below `tail`.
    Returns how many channels are, (n_bins,), 0 where not `valid`, and the number, at least 3, from which that is not
    chance: the `alpha` level of the binomial with the session's own mean frequency of being far above, after
    Bonferroni over bins (the binomial bounds channels of unequal frequency: Hoeffding 1956). Neurons do fire together,
    so a bin beyond chance need not be an artefact; one in which a large part of all channels is far above is.
    """
    from scipy.stats import binom, poisson

    n_bins, n_channels = counts.shape
    mean = counts[valid].mean(axis=0) if valid.any() else np.zeros(n_channels)
    limit = np.maximum(poisson.isf(tail, mean), 0)
    above = np.zeros(n_bins, dtype=np.int64)
    for start in range(0, n_bins, _CHUNK):
        rows = slice(start, start + _CHUNK)
        above[rows] = np.where(valid[rows], (counts[rows] > limit).sum(axis=1), 0)
    n_valid = max(int(valid.sum()), 1)
    by_chance = float(binom.isf(alpha / n_valid, n_channels, above.sum() / (n_valid * n_channels))) + 1
    return above, max(int(by_chance), MIN_COINCIDENT)


def correlations(
    values: NDArray[np.number], segment: NDArray[np.integer], use: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return the correlation (n_channels, n_channels) of the changes of `values` (n_bins, n_channels) from bin to bin.

    Changes between two bins that are both in `use` and in one segment; rate that is shared over more than a few bins,
    as by movement, cancels in them, a spike that is detected on two channels does not. The diagonal, and a channel
    that never changes, are 0.
    """
    n_channels = values.shape[1]
    pairs = np.flatnonzero((np.diff(segment) == 0) & use[1:] & use[:-1])
    total, products = np.zeros(n_channels), np.zeros((n_channels, n_channels))
    for start in range(0, pairs.size, _CHUNK):
        rows = pairs[start : start + _CHUNK]
        change = values[rows + 1].astype(np.float64) - values[rows]
        total += change.sum(axis=0)
        products += change.T @ change
    covariance = products - np.outer(total, total) / max(pairs.size, 1)
    spread = np.sqrt(np.maximum(np.diag(covariance), 0.0))
    scale = np.outer(spread, spread)
    found = np.divide(covariance, scale, out=np.zeros_like(scale), where=scale > 1e-12)
    np.fill_diagonal(found, 0.0)
    return found


def same_as_earlier(values: NDArray[np.number], use: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return for each channel the first earlier one whose `values` (n_bins, n_channels) equal its own, or -1.

    Only bins in `use` count; channels that are constant there equal nothing.
    """
    first: dict[bytes, int] = {}
    same = np.full(values.shape[1], -1)
    for channel in range(values.shape[1]):
        column = np.ascontiguousarray(values[use, channel])
        if column.size and (column != column[0]).any():
            earlier = first.setdefault(hashlib.sha256(column.tobytes()).digest(), channel)
            same[channel] = earlier if earlier < channel else -1
    return same


def block_sums(values: NDArray[np.number], use: NDArray[np.bool_], n_block: int) -> NDArray[np.float64]:
    """Return sums of `values` (n_bins, n_channels) over successive blocks of `n_block` bins of those in `use`.

    (n_blocks, n_channels); bins that do not fill a last block are left out.
    """
    rows = np.flatnonzero(use)
    starts = range(0, rows.size - n_block + 1, n_block)
    sums = [values[rows[start : start + n_block]].sum(axis=0, dtype=np.float64) for start in starts]
    return np.stack(sums) if sums else np.empty((0, values.shape[1]))


def rate_drift(block_counts: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compare the last with the first third of `block_counts` (n_blocks, n_channels), spikes in blocks of equal length.

    Returns per channel log2 of the ratio of median counts (half a spike added to each), and a z: the difference of
    the medians of 2 √(count + 3/8), whose standard deviation is 1 for a Poisson count (Anscombe 1948), over the
    standard error of that difference. The spread is the MAD within thirds, at least 1. NaN for fewer than 9 blocks.
    """
    n_third = len(block_counts) // 3
    if n_third < 3:
        return np.full(block_counts.shape[1], np.nan), np.full(block_counts.shape[1], np.nan)
    first, last = block_counts[:n_third], block_counts[-n_third:]
    ratio = np.log2((np.median(last, axis=0) + 0.5) / (np.median(first, axis=0) + 0.5))
    roots = [2 * np.sqrt(part + 0.375) for part in (first, last)]
    middles = [np.median(root, axis=0) for root in roots]
    rest = np.concatenate([root - middle for root, middle in zip(roots, middles, strict=True)])
    spread = np.maximum(1.4826 * np.median(np.abs(rest), axis=0), 1.0)
    # the median of n normal numbers scatters by √(π / 2 n) of their standard deviation
    return ratio, (middles[1] - middles[0]) / (spread * np.sqrt(np.pi / n_third))


# -------------------------------------------------------------------------------------------------------- labels


def position_jumps(
    position: NDArray[np.float64], segment: NDArray[np.integer], ratio: float, fraction: float
) -> NDArray[np.bool_]:
    """Return the bins (n_bins,) into which `position` (n_bins, n_axes) jumps, or out of which it jumps back.

    A step is a jump when it exceeds `fraction` of the range of the axes (the largest range from the 1st to the 99th
    percentile) and `ratio` times the steps beside it: movement accelerates over several bins. A glitch of one bin is
    one when its two steps exceed the steps beside both and take the position back to within 2 / ratio of the step.
    """
    jumps = np.zeros(len(position), dtype=bool)
    known = np.asarray(np.isfinite(position).all(axis=1))
    if not known.any():
        return jumps
    low, high = np.percentile(position[known], [1, 99], axis=0)
    least = fraction * float((high - low).max())
    for rows in segment_slices(segment):
        p = position[rows]
        if len(p) < 4:
            continue
        step = np.sqrt(np.square(np.diff(p, axis=0)).sum(axis=1))  # step i leads into row i + 1
        beside = np.full((3, step.size), np.nan)
        beside[0, 1:], beside[1, :-1], beside[2, :-2] = step[:-1], step[1:], step[2:]
        back = np.full(step.size, np.nan)
        back[:-1] = np.sqrt(np.square(p[2:] - p[:-2]).sum(axis=1))
        with np.errstate(invalid="ignore"):
            large = step > max(least, np.finfo(float).tiny)
            once = large & (step > ratio * beside[0]) & (step > ratio * beside[1])
            glitch = large & (step > ratio * beside[0]) & (step > ratio * beside[2]) & (step > ratio * back / 2)
        jumps[rows.start + 1 : rows.stop] |= once | glitch
        jumps[rows.start + 2 : rows.stop] |= glitch[:-1]
    return jumps


def lag_moments(
    counts: NDArray[np.number],
    target: NDArray[np.float64],
    segment: NDArray[np.integer],
    use: NDArray[np.bool_],
    lags: NDArray[np.int64],
    n_blocks: int = 10,
    max_rows: int = 100_000,
) -> NDArray[np.float64]:
    """Decode `target` (n_bins, n_axes) from the square root of `counts` (n_bins, n_channels), one lag at a time.

    For each of `lags` (n_lags,), in bins, the target of bin i + lag is predicted from the counts of bin i alone:
    positive where neurons lead. Bins count where `use` is True and the target is finite at *every* lag within the
    segment, so that lags are judged on the same bins; at most `max_rows` of them, evenly spread. A ridge (penalty
    0.01 per bin on z-scored channels) is fitted to each half of the session and predicts the other. Returns the mean
    of [p, y, p², y², p y], prediction and target, in blocks of time: (2, n_blocks, n_lags, n_axes, 5), the first
    index is the half predicted; empty (0, ...) where bins are too few to say anything.
    """
    known = np.asarray(np.isfinite(target).all(axis=1))
    rows = np.flatnonzero(use)
    for lag in lags:
        rows = rows[(rows + lag >= 0) & (rows + lag < len(known))]
        rows = rows[(segment[rows + lag] == segment[rows]) & known[rows + lag]]
    rows = rows[:: max(-(-rows.size // max_rows), 1)]
    span = int(np.ptp(lags))
    middle = rows[rows.size // 2] if rows.size else 0
    halves = [rows[rows < middle - span], rows[rows >= middle]]  # no label is known to both halves
    shape = (n_blocks, lags.size, target.shape[1], 5)
    if min(map(len, halves)) < max(10 * n_blocks, 2 * counts.shape[1]):
        return np.empty((0, *shape))
    x = [np.sqrt(np.maximum(counts[half].astype(np.float64), 0.0)) for half in halves]
    y = [target[half[:, None] + lags].reshape(half.size, -1) for half in halves]
    moments = np.empty((2, *shape))
    for half in (0, 1):
        mean, spread, level = x[1 - half].mean(axis=0), x[1 - half].std(axis=0), y[1 - half].mean(axis=0)
        spread[spread < 1e-12] = np.inf  # a silent channel says nothing
        z = (x[1 - half] - mean) / spread
        gram = z.T @ z
        gram[np.diag_indices_from(gram)] += 0.01 * len(z)
        predicted = (x[half] - mean) / spread @ np.linalg.solve(gram, z.T @ (y[1 - half] - level))
        held_out = y[half] - level
        products = predicted, held_out, predicted**2, held_out**2, predicted * held_out
        parts = [np.array_split(product, n_blocks) for product in products]
        means = np.array([[part.mean(axis=0) for part in product] for product in parts])
        moments[half] = np.moveaxis(means, 0, -1).reshape(shape)
    return moments


def lag_correlation(moments: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the held-out correlation of each half and lag (..., 2, n_lags) from `lag_moments`, mean over axes.

    Any leading dimensions are kept. An axis that does not move counts as 0.
    """
    p, y, pp, yy, py = np.moveaxis(moments.mean(axis=-4), -1, 0)
    scale = np.sqrt(np.maximum((pp - p**2) * (yy - y**2), 0.0))
    return np.divide(py - p * y, scale, out=np.zeros_like(scale), where=scale > 1e-12).mean(axis=-1)


def lag_peaks(moments: NDArray[np.float64], n_draws: int = 200, seed: int = 0) -> NDArray[np.int64]:
    """Return which lag is best in each of `n_draws` bootstrap samples of the blocks of `lag_moments`, (n_draws,)."""
    n_blocks = moments.shape[1]
    drawn = np.random.default_rng(seed).integers(0, n_blocks, (n_draws, 2, n_blocks))
    samples = moments[np.arange(2)[:, None], drawn]
    return lag_correlation(samples).mean(axis=-2).argmax(axis=-1)
