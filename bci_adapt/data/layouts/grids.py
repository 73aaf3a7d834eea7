"""The bins of a session: made of the samples of a signal, of rows that are binned already, or of spikes alone.

A clock that is nearly the bin's own is taken as such, in files and in arrays alike, so that jitter, stamps in float32
or in whole milliseconds and 19.98 Hz in place of 20 cost no label. Samples of which fewer than two fall into a bin
(`Samples`) are interpolated at the ends of bins, where exact stamps give the samples themselves; their interval may be
`RATE_TOLERANCE` longer than a bin. Rows that stand for bins may be that much wider or narrower and are put on the
regular grid; where their stamps have drifted away from it by `GRID_TOLERANCE` a new segment starts, which is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bci_adapt.data import binning
from bci_adapt.data.nwb import NwbFile
from bci_adapt.data.sessions import BIN_EDGE, FROM_START
from bci_adapt.errors import InputError

GRID_TOLERANCE = 0.25
"""Fraction of a bin by which the stamp of a row may miss the regular grid before a new segment starts."""
RATE_TOLERANCE = 0.01
"""Fraction by which a clock may be slower than that of the bins (of rows: also faster) and still be taken for it."""
MILLISECOND_CLOCK = 0.02
"""The same for stamps in whole milliseconds, where a bin of 10 ms or more that is one off is another grid."""
BLOCK = 2**16
"""Spikes that are turned into ticks and rows at a time: what comes in between stays in the processor's cache."""
EDGES = {"start": Fraction(0), "centre": Fraction(1, 2), "end": Fraction(1)}
"""Where in its bin the stamp of a row stands, as a fraction of the bin."""


class Worded(Protocol):
    """Something that words an error about a part of itself: an `NwbFile`, or arrays that were given."""

    def error(self, key: str, message: str) -> InputError: ...


@dataclass(frozen=True)
class Grid:
    """Bins of one width: where each starts, in ticks (n_bins,), the segment of each, and the width in seconds.

    `edge` says to which bin a spike on an edge belongs.
    """

    starts: NDArray[np.int64]
    segment: NDArray[np.int32]
    bin_s: float
    edge: str = BIN_EDGE

    @property
    def width(self) -> int:
        """Width of a bin in ticks."""
        return binning.bin_ticks(self.bin_s)

    @property
    def ends_s(self) -> NDArray[np.float64]:
        """End of each bin in seconds (n_bins,)."""
        return (self.starts + binning.bin_ticks(self.bin_s)) / binning.TICKS_PER_S

    @property
    def pieces(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Start in ticks and number of bins of every segment."""
        first = binning.segment_starts(self.segment)
        return self.starts[first], np.diff(first, append=self.segment.size)

    @property
    def overlapping(self) -> NDArray[np.bool_]:
        """Bins (n_bins,) that share time with a bin of another segment, where a spike could belong to either."""
        order = np.argsort(self.starts, kind="stable")
        close = np.diff(self.starts[order]) < binning.bin_ticks(self.bin_s)
        shared = np.zeros(self.starts.size, dtype=bool)
        shared[order[:-1][close]] = True
        shared[order[1:][close]] = True
        return shared

    def stretches(self) -> list[slice]:
        """Runs of rows in which time only rises, so that a time belongs to one row at most."""
        cuts = np.flatnonzero(np.diff(self.starts) < binning.bin_ticks(self.bin_s)) + 1
        return [slice(a, b) for a, b in pairwise([0, *cuts.tolist(), self.starts.size])]

    def rows(self, ticks: NDArray[np.int64], stretch: slice) -> NDArray[np.int64]:
        """Row within `stretch` of each time in `ticks` (n,), -1 for none."""
        part = Grid(self.starts[stretch], self.segment[stretch], self.bin_s)
        return binning.bin_rows(ticks, *part.pieces, self.bin_s)

    def counts(
        self,
        times_s: NDArray[np.float64],
        unit_index: NDArray[np.integer],
        channel_of_unit: NDArray[np.int64],
        n_channels: int,
    ) -> NDArray[np.uint16]:
        """Count spikes (n_spikes,) into (n_bins, n_channels); each has a unit, and each unit (n_units,) a channel.

        `InputError` when a count exceeds uint16 or the result would be unreasonably large.
        """
        binning.require_size(self.starts.size, n_channels)
        counts = np.zeros((self.starts.size, n_channels), dtype=np.uint16)
        parts = [
            (counts[own], *Grid(self.starts[own], self.segment[own], self.bin_s).pieces) for own in self.stretches()
        ]
        n_counted = 0
        for first in range(0, times_s.size, BLOCK):
            ticks = binning.to_ticks(times_s[first : first + BLOCK]) + (self.edge == FROM_START)
            channel = channel_of_unit[unit_index[first : first + BLOCK]]
            for part, starts, n_bins in parts:
                n_counted += binning.add_spikes(part, binning.bin_rows(ticks, starts, n_bins, self.bin_s), channel)
        binning.require_counted(counts, n_counted)
        return counts


def _require_bins(file: Worded, key: str, grid: Grid) -> Grid:
    if not grid.starts.size:
        raise file.error(key, f"does not last for one bin of {grid.bin_s:g} s without a gap")
    return grid


@dataclass(frozen=True)
class Samples:
    """How samples of a signal (n_samples,) become values of bins (n_bins,): means, or values at the ends of bins.

    `rows` (n_samples,) is the bin of each sample, -1 for none. Where fewer than two samples fall into a bin, `after`
    (n_bins,) is the first sample at or after a bin's end, `before` the last one before it, -1 where there is none near
    enough, and `weight` that of `after`: the signal is interpolated linearly.
    """

    rows: NDArray[np.int64]
    n_bins: int
    before: NDArray[np.int64] | None = None
    after: NDArray[np.int64] | None = None
    weight: NDArray[np.float64] | None = None

    def values(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return `values` (n_samples, n_axes) on the bins (n_bins, n_axes), NaN where a bin has no value."""
        if self.before is None or self.after is None or self.weight is None:
            return binning.row_means(values, self.rows, self.n_bins)
        binning.require_size(self.n_bins, values.shape[1])
        found = np.full((self.n_bins, values.shape[1]), np.nan)
        exact, between = self.weight == 1, (self.weight < 1) & (self.before >= 0) & (self.after >= 0)
        found[exact] = values[self.after[exact]]
        weight, before = self.weight[between, None], values[self.before[between]]
        found[between] = before + weight * (values[self.after[between]] - before)
        return found


def _usual(steps: NDArray[np.int64]) -> float:
    """The usual interval of samples in ticks; 0 where times never rise."""
    return float(np.median(steps[steps > 0])) if (steps > 0).any() else 0.0


def _typical(steps: NDArray[np.int64]) -> float:
    """The mean interval in ticks without pauses, which whole milliseconds leave right where the usual one is not."""
    usual = _usual(steps)
    return float(steps[np.abs(steps - usual) <= usual / 2].mean()) if usual else 0.0


def _around(
    ticks: NDArray[np.int64], ends: NDArray[np.int64], longest: float, reach: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Samples `before` and `after` the `ends` of bins (n_bins,) and the weight of `after`; NaN where there are none.

    `ticks` (n_samples,) must not fall; samples further apart than `longest` have nothing between them; an end that is
    at most `reach` away from the nearest sample, and between no two, has the value of that sample.
    """
    after = np.searchsorted(ticks, ends, side="left")
    before = after - 1
    own = np.minimum(after, ticks.size - 1)
    prior = np.maximum(before, 0)
    apart = ticks[own] - ticks[prior]
    usable = (after < ticks.size) & (before >= 0) & (apart <= longest)
    weight = np.full(ends.size, np.nan)
    np.divide(ends - ticks[prior], apart, out=weight, where=usable & (apart > 0))
    exact = ticks[own] == ends
    late, early = (ends - ticks[prior], ticks[own] - ends)
    alone = ~usable & ~exact
    from_before = alone & (before >= 0) & (late <= reach)
    from_after = alone & ~from_before & (after < ticks.size) & (early >= 0) & (early <= reach)
    weight[exact | from_before | from_after] = 1.0
    return before, np.where(from_before, prior, own), weight


def samples_on(grid: Grid, ticks: NDArray[np.int64], stretch: slice) -> Samples:
    """Return how samples at `ticks` (n_samples,) of a signal with a clock of its own fall on the bins of `grid`."""
    rows, width = grid.rows(ticks, stretch), binning.bin_ticks(grid.bin_s)
    steps = np.diff(ticks)
    usual = _usual(steps)
    if not width < 2 * usual or _typical(steps) > width * (1 + RATE_TOLERANCE) or (steps < 0).any():
        return Samples(rows, grid.starts.size)
    around = _around(ticks, grid.starts + width, max(width, 1.5 * usual), GRID_TOLERANCE * width)
    return Samples(rows, grid.starts.size, *around)


def grid_of_samples(
    file: Worded, series: str, ticks: NDArray[np.int64], bin_s: float, warnings: list[str]
) -> tuple[Grid, Samples]:
    """Make bins that start at the first sample of each stretch of `series`; return them and how samples fall on them.

    A pause of more than one bin (and 1.5 usual sample intervals) ends a segment, as does a clock that runs backwards.
    """
    width = binning.bin_ticks(bin_s)
    steps = np.diff(ticks)
    usual = _usual(steps)
    if not usual:
        raise file.error(series, "has times that never rise: seconds that grow from sample to sample are expected")
    if _typical(steps) > width * (1 + RATE_TOLERANCE):
        raise file.error(
            series,
            f"is sampled every {usual / binning.TICKS_PER_S:g} s and cannot fill bins of {bin_s:g} s: use wider bins",
        )
    if backwards := np.count_nonzero(steps < 0):
        warnings.append(f"the clock of {series} runs backwards {backwards} times: each starts a new segment")
    sparse, longest = width < 2 * usual, max(width, 1.5 * usual)
    reach = int(GRID_TOLERANCE * width) if sparse else 0  # the last sample may come a little early
    cuts = np.flatnonzero((steps < 0) | (steps > longest)) + 1
    first = np.concatenate([[0], cuts]).astype(np.int64)
    last = np.concatenate([cuts, [ticks.size]]).astype(np.int64) - 1
    n_bins = (ticks[last] - ticks[first] + reach) // width
    kept = n_bins > 0
    start_row = np.cumsum(n_bins) - n_bins
    piece = np.repeat(np.arange(first.size), last - first + 1)
    offset = (ticks - ticks[first][piece] - 1) // width
    rows = np.where((offset >= 0) & (offset < n_bins[piece]), start_row[piece] + offset, -1)
    within = np.concatenate([np.arange(n) for n in n_bins[kept]]) if kept.any() else np.zeros(0, dtype=np.int64)
    starts = np.repeat(ticks[first][kept], n_bins[kept]) + width * within
    segment = np.repeat(np.arange(np.count_nonzero(kept), dtype=np.int32), n_bins[kept])
    grid = _require_bins(file, series, Grid(starts, segment, bin_s))
    if pauses := np.count_nonzero(steps > longest):
        lost_s = (steps[steps > longest] - usual).sum() / binning.TICKS_PER_S
        warnings.append(
            f"{series} pauses {pauses} times for more than {longest / binning.TICKS_PER_S:g} s ({lost_s:.3g} s without "
            f"samples in all): each starts a new segment, whose first bin has no velocity; {starts.size} bins are left"
        )
    if not sparse:
        return grid, Samples(rows, starts.size)
    # Stretches are laid behind one another, further apart than anything is interpolated: their times may overlap.
    spans = ticks[last] - ticks[first] + 4 * width
    laid = np.cumsum(spans) - spans - ticks[first]
    around = _around(ticks + laid[piece], starts + width + np.repeat(laid[kept], n_bins[kept]), longest, reach)
    return grid, Samples(rows, starts.size, *around)


def grid_of_rows(
    file: NwbFile,
    series: str,
    n_rows: int,
    edge: str,
    bin_s: float,
    warnings: list[str],
    width_s: float | None = None,
    *,
    start_s: float | None = None,
    tolerance: float = GRID_TOLERANCE,
    breaks: Sequence[int] = (),
    runs_on: bool = False,
) -> tuple[Grid, NDArray[np.int64]]:
    """Make bins of whole rows of `series`, which is binned already; return them and the rows in each (n_bins, k).

    A row is stamped with the ``"start"``, ``"centre"`` or ``"end"`` (`edge`) of its bin. The width of a row is
    `width_s`, or that of its rate, or the usual interval of its timestamps; a rate of which only several rows together
    are whole microseconds (60 Hz) gives bins of that many. A row that misses the regular grid by more than `tolerance`
    of a bin starts a new segment, as do the rows `breaks`. `start_s` takes the place of the start in the file. With
    `runs_on` a clock may drift: rows follow one another although a little of the clock is missing between them.
    """
    if edge not in EDGES:
        raise ValueError(f"edge must be one of {', '.join(EDGES)}, not {edge!r}")
    wanted, cuts = binning.bin_ticks(bin_s), [0]
    stamped = f"{series}/timestamps" in file
    if stamped:
        stamps, width = _stamped_rows(file, series, n_rows, width_s, warnings)
        typical = _typical(np.diff(stamps)) if width_s is None else float(width)
    else:
        stamps, width, typical = _rows_of_a_rate(file, series, n_rows, bin_s, width_s, start_s)
    nearly = (wanted / width).denominator != 1 and _nearly(wanted, typical)
    if nearly:
        width = Fraction(wanted, nearly)
        own, asked = (each / binning.TICKS_PER_S for each in (typical, float(width)))
        warnings.append(f"rows of {series} come every {own:.8g} s and are taken for bins of {asked:g} s")
    factor = _rows_a_bin(file, series, width, bin_s)
    if stamped or nearly:
        cuts, drifted = _off_grid(stamps, float(width), tolerance)
        if runs_on:
            cuts, drifted = starts_of_runs(stamps, float(width), tolerance), 0
        if drifted:
            warnings.append(
                f"the clock of {series} drifts away from bins of {bin_s:g} s: {drifted} new segments, whose first bins "
                "have no velocity"
            )
    cuts = sorted({*cuts, *breaks})
    segment = np.zeros(n_rows, dtype=np.int32)
    segment[cuts[1:]] = 1
    segment = np.cumsum(segment, dtype=np.int32)
    groups = binning.group_rows(segment, factor)
    anchor = np.asarray(cuts, dtype=np.int64)[segment[groups[:, 0]]]
    starts = stamps[anchor] + binning.bin_ticks(bin_s) * ((groups[:, 0] - anchor) // factor)
    starts -= int(width * EDGES[edge])
    kept, segment = np.unique(segment[groups[:, 0]], return_inverse=True)
    if lost := len(cuts) - kept.size:
        warnings.append(f"{lost} stretches of {series} are shorter than a bin of {bin_s:g} s: left out")
    return _require_bins(file, series, Grid(starts, segment.astype(np.int32), bin_s)), groups


def _rows_a_bin(file: NwbFile, series: str, width: Fraction, bin_s: float) -> int:
    """How many rows of `width` ticks make a bin; `InputError` where that is no whole number."""
    factor = binning.bin_ticks(bin_s) / width
    if factor.denominator == 1:
        return int(factor)
    shortest = float(width * width.denominator) / binning.TICKS_PER_S
    raise file.error(
        series,
        f"is binned at {float(width) / binning.TICKS_PER_S:g} s and {bin_s:g} s is not a whole multiple of it: "
        f"counts can only be summed, use a multiple of {shortest:g}"
        + (" (one row is not whole microseconds)" if width.denominator > 1 else ""),
    )


def _rows_of_a_rate(
    file: NwbFile, series: str, n_rows: int, bin_s: float, width_s: float | None, start_s: float | None
) -> tuple[NDArray[np.int64], Fraction, float]:
    """Stamps (n_rows,), width and usual interval of rows, all in ticks, by the rate of `series`."""
    own_s, rate_hz = file.clock(series)
    if width_s is None:
        typical, width = binning.TICKS_PER_S / rate_hz, _row_ticks(file, series, rate_hz, bin_s)
    else:
        typical, width = float(binning.bin_ticks(width_s)), Fraction(binning.bin_ticks(width_s))
    rows = np.arange(n_rows, dtype=np.int64)
    whole = width.denominator <= 64
    elapsed = rows * width.numerator // width.denominator if whole else np.rint(rows * float(width))
    stamps = binning.to_ticks(own_s if start_s is None else start_s) + elapsed.astype(np.int64)
    return stamps, width, typical


def _stamped_rows(
    file: NwbFile, series: str, n_rows: int, width_s: float | None, warnings: list[str]
) -> tuple[NDArray[np.int64], Fraction]:
    """Timestamps of rows in ticks (n_rows,), and the width of a row: `width_s`, or the usual interval."""
    stamps = binning.to_ticks(file.times_s(series, n_rows))
    steps = np.diff(stamps)
    if width_s is None:
        rising = steps[steps > 0]
        if not rising.size:
            raise file.error(f"{series}/timestamps", "never rise: the width of a bin cannot be told")
        width_s = float(np.median(rising)) / binning.TICKS_PER_S
    width = Fraction(binning.bin_ticks(width_s))
    if backwards := np.count_nonzero(steps < 0):
        warnings.append(f"the clock of {series} runs backwards {backwards} times: each starts a new segment")
    if repeated := np.count_nonzero(steps == 0):
        warnings.append(f"{repeated} rows of {series} repeat the time of the row before: not observed")
    return stamps, width


def _off_grid(stamps: NDArray[np.int64], width: float, tolerance: float) -> tuple[list[int], int]:
    """First row of every stretch in which no stamp misses ``first + i * width`` by more than `tolerance` of it, and how
    many of them begin because the clock had drifted away, not because it jumped.
    """
    runs = starts_of_runs(stamps, width, tolerance)
    tolerance *= width
    cuts: list[int] = []
    for first, stop in pairwise([*runs, stamps.size]):
        while first < stop:  # a clock of slightly another rate drifts off the grid and is anchored again
            cuts.append(first)
            missed = np.abs(stamps[first:stop] - stamps[first] - width * np.arange(stop - first)) > tolerance
            first = first + int(np.argmax(missed)) if missed.any() else stop
    return cuts, len(cuts) - len(runs)


def starts_of_runs(stamps: NDArray[np.int64], width: float, tolerance: float = GRID_TOLERANCE) -> list[int]:
    """First row of every stretch in which no step from stamp to stamp misses `width` by more than `tolerance` of it."""
    return [0, *(np.flatnonzero(np.abs(np.diff(stamps) - width) > tolerance * width) + 1).tolist()]


def _nearly(wanted: int, typical: float) -> int:
    """How many rows of `typical` ticks make a bin of `wanted` ticks within `RATE_TOLERANCE`; 0 where none do."""
    number = round(wanted / typical)
    return number if number and abs(number * typical / wanted - 1) <= RATE_TOLERANCE else 0


def grid_of_ends(given: Worded, key: str, ends: NDArray[np.int64], bin_s: float, warnings: list[str]) -> Grid:
    """Make the bins of rows of counts that end at `ends` (n_bins,) in ticks, under the rule of this module."""
    width = binning.bin_ticks(bin_s)
    steps = np.diff(ends)
    if (steps < (1 - GRID_TOLERANCE) * width).any():
        raise given.error(key, f"must rise by {bin_s:g} s from bin to bin (a quarter less is taken for jitter)")
    near = steps[np.abs(steps - width) <= GRID_TOLERANCE * width]
    if near.size and abs(near.mean() - width) > max(RATE_TOLERANCE, GRID_TOLERANCE / near.size) * width:
        own_s = near.mean() / binning.TICKS_PER_S
        raise given.error(key, f"rises by {own_s:g} s from bin to bin, {bin_s:g} s were said")
    cuts, drifted = _off_grid(ends, width, GRID_TOLERANCE)
    if drifted:
        warnings.append(
            f"the clock of {key} drifts away from bins of {bin_s:g} s: {drifted} new segments, whose first bins have "
            "no velocity"
        )
    number = np.zeros(ends.size, dtype=np.int32)
    number[cuts[1:]] = 1
    segment = np.cumsum(number, dtype=np.int32)
    anchor = np.asarray(cuts, dtype=np.int64)[segment]
    return Grid(ends[anchor] - width + width * (np.arange(ends.size) - anchor), segment, bin_s)


def grid_of_spikes(file: NwbFile, spikes_s: NDArray[np.float64], bin_s: float) -> Grid:
    """Make bins for a file without kinematics: from the first to the last one that holds a spike."""
    width = binning.bin_ticks(bin_s)
    observed = f"{file.units}/obs_intervals" in file
    key = f"{file.units}/{'obs_intervals' if observed else 'spike_times'}"
    times = file.numbers(key).ravel() if observed else spikes_s
    if not times.size or not np.isfinite(times).all():
        raise file.error(key, "holds no times, or NaN: nothing says how long the recording lasted")
    first, last = binning.to_ticks([times.min(), times.max()])
    start = (first if observed else first - 1) // width * width  # a bin does not hold its first edge
    n_bins = int(-((start - last) // width))
    if n_bins > binning.MAX_CELLS // 16:
        span_s = (last - first) / binning.TICKS_PER_S
        raise file.error(
            key, f"span {span_s:g} s, {n_bins:,} bins of {bin_s:g} s: choose wider bins, or find the wrong time"
        )
    return _require_bins(
        file, file.units, Grid(start + width * np.arange(n_bins), np.zeros(n_bins, dtype=np.int32), bin_s)
    )


def _row_ticks(file: NwbFile, series: str, rate_hz: float, bin_s: float) -> Fraction:
    """The ticks from row to row at `rate_hz`, whole over a few rows or nearly those of bins of `bin_s`."""
    exact = binning.TICKS_PER_S / rate_hz
    if exact > 1e6 * binning.TICKS_PER_S:
        raise file.error(series, f"has rate {rate_hz} Hz: its bins are longer than any recording")
    ticks = Fraction(exact).limit_denominator(64)
    if abs(float(ticks) / exact - 1) < 1e-9:
        return ticks
    if not _nearly(binning.bin_ticks(bin_s), exact):
        raise file.error(f"{series}/starting_time", f"has rate {rate_hz} Hz: its bins are not whole microseconds")
    return Fraction(exact)
