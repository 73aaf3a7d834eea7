"""Spike times to counts, signals to bin values: numpy only, time in integer ticks.

Row i of a binned array covers ``(start + i bin, start + (i + 1) bin]``: the time of a row is its bin's end, and a
spike on an edge belongs to the bin it ends. Times are rounded to ticks of one microsecond before any comparison,
so that no bin gains or loses a spike to floating-point round-off.
"""

from __future__ import annotations

from itertools import pairwise
from numbers import Real

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bci_adapt.errors import InputError

TICKS_PER_S = 1_000_000
LARGEST_S = 1e11
"""Seconds that no time reaches (3000 years): whole ticks below it fit into 64 bits."""
LONGEST_BIN_S = 5.0
"""Widest bin that a session is made of."""
MAX_CELLS = 2**29
"""Largest (bins x channels) that is binned at once; 96 channels at 20 ms reach it after 31 hours."""


def to_ticks(seconds: ArrayLike) -> NDArray[np.int64]:
    """Return times in seconds as whole ticks of 1 µs; `InputError` when one is not finite or beyond 3000 years."""
    seconds = np.asarray(seconds, dtype=np.float64)
    if not np.all(np.abs(seconds) < LARGEST_S):
        raise InputError("times must be finite seconds (NaN, infinite or absurdly large ones found)")
    return np.rint(seconds * TICKS_PER_S).astype(np.int64)


def bin_ticks(bin_s: float) -> int:
    """Return a bin width as whole ticks; `InputError` unless it is a positive whole number of microseconds.

    >>> bin_ticks(0.02)
    20000
    """
    if not isinstance(bin_s, Real) or not np.isfinite(bin_s) or bin_s <= 0 or bin_s > 1e6:
        raise InputError(f"bin_s must be a positive number of seconds, got {bin_s}")
    ticks = round(bin_s * TICKS_PER_S)
    if ticks < 1 or abs(bin_s * TICKS_PER_S - ticks) > 1e-6 * ticks:
        raise InputError(f"bin_s must be a whole number of microseconds, got {bin_s!r}")
    return ticks


def require_bin_width(bin_s: float) -> int:
    """Return the width of a bin that movement is to be decoded in, in ticks; `InputError` beyond `LONGEST_BIN_S`.

    Milliseconds in place of seconds are the slip that this is for.
    """
    ticks = bin_ticks(bin_s)
    if bin_s > LONGEST_BIN_S:
        raise InputError(
            f"a bin of {bin_s:g} s is longer than any movement ({LONGEST_BIN_S:g} s at most): widths are in seconds, "
            f"{bin_s:g} ms are {bin_s / 1000:g}"
        )
    return ticks


def whole_bins(duration_s: float, bin_s: float) -> int:
    """Return how many whole bins fit into a duration.

    >>> whole_bins(1.0, 0.02)
    50
    """
    return int(to_ticks(duration_s)) // bin_ticks(bin_s)


def require_size(n_bins: int, n_channels: int) -> None:
    """Raise `InputError` when an array of (n_bins, n_channels) would be unreasonably large."""
    if n_bins * max(n_channels, 1) > MAX_CELLS:
        raise InputError(
            f"{n_bins:,} bins of {n_channels} channels were asked for, at most {MAX_CELLS:,} values are binned at "
            "once: choose a larger bin_s, or check the units of the timestamps"
        )


def bin_rows(ticks: NDArray[np.int64], starts: ArrayLike, n_bins: ArrayLike, bin_s: float) -> NDArray[np.int64]:
    """Return the row (n,) of each time, given in ticks and in any order, or -1 outside of all bins.

    The bins come in pieces: `starts` (n_pieces,) are the ticks at which they start, in rising order and without
    overlap, `n_bins` (n_pieces,) how many bins each has. Rows count on from piece to piece.

    >>> bin_rows(to_ticks([0.0, 0.1, 0.5, 0.61]), to_ticks([0.0, 0.5]), [2, 2], 0.1).tolist()
    [-1, 0, -1, 3]
    """
    starts, n_bins, width = np.asarray(starts, dtype=np.int64), np.asarray(n_bins, dtype=np.int64), bin_ticks(bin_s)
    if starts.size == 1:
        rows = (ticks - (starts[0] + 1)) // width
        rows[(rows < 0) | (rows >= n_bins[0])] = -1
        return rows
    piece = np.searchsorted(starts, ticks, side="left") - 1
    offset = (ticks - starts[piece] - 1) // width
    first = np.cumsum(n_bins) - n_bins
    return np.where((piece >= 0) & (offset < n_bins[piece]), first[piece] + offset, -1)


def add_spikes(counts: NDArray[np.uint16], rows: NDArray[np.int64], channel_index: NDArray[np.int64]) -> int:
    """Add spikes to `counts` (n_bins, n_channels) in place, each at its row (none at -1) and channel.

    Returns how many were added, for `require_counted`.
    """
    inside = rows >= 0
    everything = bool(inside.all())
    flat = (rows if everything else rows[inside]) * counts.shape[1]
    flat += channel_index if everything else channel_index[inside]
    np.add.at(counts.reshape(-1), flat, np.uint16(1))
    return flat.size


def require_counted(counts: NDArray[np.uint16], n_spikes: int) -> None:
    """Raise `InputError` unless `counts` add up to the `n_spikes` added: one that exceeds uint16 loses 65,536."""
    if int(counts.sum(dtype=np.uint64)) != n_spikes:
        raise InputError("a bin holds more than 65,535 spikes: choose a smaller bin_s")


def row_means(values: NDArray[np.float64], rows: NDArray[np.int64], n_bins: int) -> NDArray[np.float64]:
    """Return the mean of the finite samples of `values` (n_samples, n_axes) in each row, (n_bins, n_axes).

    `rows` (n_samples,) is the row of each sample, -1 for none; NaN where a row has no finite sample.
    """
    require_size(n_bins, values.shape[1])
    means = np.full((n_bins, values.shape[1]), np.nan)
    place = rows + 1  # what is in no row has a place of its own, which is cheaper than leaving it out
    of_all = np.bincount(place, minlength=n_bins + 1)
    for axis, column in enumerate(values.T):
        own, number = place, of_all
        if not (known := np.isfinite(column)).all():
            own, column = place[known], column[known]
            number = np.bincount(own, minlength=n_bins + 1)
        total = np.bincount(own, weights=column, minlength=n_bins + 1)
        np.divide(total[1:], number[1:], out=means[:, axis], where=number[1:] > 0)
    return means


def segment_starts(segment: ArrayLike) -> NDArray[np.int64]:
    """Return the first row of every segment of `segment` (n_bins,), in order."""
    segment = np.asarray(segment)
    return np.flatnonzero(np.concatenate([[True] if segment.size else [], np.diff(segment) != 0]))


def segment_slices(segment: ArrayLike) -> list[slice]:
    """Return the rows of every segment, in order."""
    edges = [*segment_starts(segment).tolist(), np.asarray(segment).size]
    return [slice(a, b) for a, b in pairwise(edges)]


def rebin_rows(segment: ArrayLike, bin_s: float, new_bin_s: float) -> NDArray[np.int64]:
    """Return which rows are put together when bins get wider: (n_new_bins, rows per new bin).

    Groups never cross a segment and start at its first row; rows that do not fill a last group are left out.
    `InputError` unless the old width divides the new one: binned counts can only be summed, never split.
    """
    factor, rest = divmod(bin_ticks(new_bin_s), bin_ticks(bin_s))
    if rest or factor < 1:
        raise InputError(
            f"the data are binned at {bin_s:g} s and {new_bin_s:g} s is not a whole multiple of it: counts can only be "
            f"summed, use a multiple of {bin_s:g}"
        )
    return group_rows(segment, factor)


def group_rows(segment: ArrayLike, factor: int) -> NDArray[np.int64]:
    """Return the rows that are put together when `factor` rows make one: (n_new_bins, factor), as in `rebin_rows`."""
    groups = [
        np.arange(rows.start, rows.stop - (rows.stop - rows.start) % factor).reshape(-1, factor)
        for rows in segment_slices(segment)
    ]
    return np.concatenate(groups) if groups else np.empty((0, factor), dtype=np.int64)


def rebin_counts(counts: NDArray[np.uint16], rows: NDArray[np.int64]) -> NDArray[np.uint16]:
    """Sum `counts` (n_bins, n_channels) over the groups of `rebin_rows`; `InputError` when a sum exceeds uint16."""
    if rows.shape[1] == 1:
        return counts[rows[:, 0]]
    total = counts[rows].sum(axis=1, dtype=np.uint64)
    if total.max(initial=0) > np.iinfo(np.uint16).max:
        raise InputError(f"a wider bin would hold {total.max():,} spikes, more than 65,535: choose a smaller bin_s")
    return total.astype(np.uint16)


def backward_difference(position: ArrayLike, segment: ArrayLike, bin_s: float) -> NDArray[np.float64]:
    """Return v_i = (p_i - p_{i-1}) / bin_s for `position` (n_bins, n_axes): causal; NaN in a segment's first bin."""
    position = np.asarray(position, dtype=np.float64)
    velocity = np.full_like(position, np.nan)
    velocity[1:] = np.diff(position, axis=0) / bin_s
    velocity[segment_starts(segment)] = np.nan
    return velocity


def causal_smooth(
    values: ArrayLike, segment: ArrayLike, bin_s: float, width_s: float, kind: str = "exponential"
) -> NDArray[np.float64]:
    """Smooth `values` (n_bins, n_columns) with the past alone, never across a segment.

    ``exponential``: y_i = a y_{i-1} + (1 - a) x_i with a = exp(-bin_s / width_s) and y_0 = x_0.
    ``boxcar``: the mean of the last ``round(width_s / bin_s)`` bins, of fewer at a segment's start.
    `InputError` for another kind or a width that is not positive.
    """
    from scipy.signal import lfilter

    if kind not in ("exponential", "boxcar"):
        raise InputError(f"unknown smoothing {kind!r} (known: exponential, boxcar)")
    if not np.isfinite(width_s) or width_s <= 0:
        raise InputError(f"width_s must be a positive number of seconds, got {width_s}")
    values = np.asarray(values, dtype=np.float64)
    smooth = np.empty_like(values)
    decay = float(np.exp(-bin_s / width_s))
    n_width = max(round(width_s / bin_s), 1)
    for rows in segment_slices(segment):
        x = values[rows]
        if kind == "exponential":
            smooth[rows] = lfilter([1 - decay], [1, -decay], x, axis=0, zi=decay * x[:1])[0]
        else:
            # Cancelling running sums of counts are exact; ones of a slowly moving position lose a few last digits.
            total = np.concatenate([np.zeros_like(x[:1]), np.cumsum(x, axis=0)])
            last = np.arange(1, len(x) + 1)
            first = np.maximum(last - n_width, 0)
            smooth[rows] = (total[last] - total[first]) / (last - first)[:, None]
    return smooth


def lagged(labels: NDArray[np.float64], segment: NDArray[np.integer], lag_bins: int) -> NDArray[np.float64]:
    """Return row i + `lag_bins` of `labels` (n_bins, n_axes) in row i; NaN where that lies outside i's segment."""
    moved = np.full_like(labels, np.nan)
    for rows in segment_slices(segment):
        inside = labels[rows]
        n = max(len(inside) - abs(lag_bins), 0)
        a, b = max(-lag_bins, 0), max(lag_bins, 0)
        moved[rows][a : a + n] = inside[b : b + n]
    return moved
