"""Faults of one recording, found by rules with stated thresholds: numpy only, no session is known by name."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from bci_adapt.binning import bin_ticks, segment_slices, to_ticks
from bci_adapt.errors import InputError


@dataclass(frozen=True)
class Thresholds:
    """Thresholds of the rules of this module; they are stored with every session.

    `silent_s`: bins in which every channel is silent for longer than this are not observed.
    `still_s`, `still_extent_cm`: labels are not usable while the cursor stays within the extent, on every axis, for
    longer than this (a sensor at rest flickers by its last digit, which is why the extent is not zero).
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
    return _long_runs(np.asarray(counts.sum(axis=1) == 0), segment, int(to_ticks(silent_s)) // bin_ticks(bin_s))


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
