"""Whether spikes are on the clock of the bins: times that start over, are out of order or in another unit."""

from __future__ import annotations

from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from bci_adapt.data import binning
from bci_adapt.data.layouts.grids import Grid, Worded

CLOCK_RATIO = 50
"""Spikes that span this many times the kinematics, or the reverse, are on another clock or in another unit."""
SHORTEST_CLOCK_S = 10.0
"""Spans shorter than this are not compared: a sparse unit may well be silent for most of a short recording."""


def turns_apart(
    file: Worded, key: str, spikes_s: NDArray[np.float64], unit_index: NDArray[np.integer], most: int
) -> NDArray[np.float64]:
    """Times (n_spikes,), unit by unit, with each turn of the clock moved behind the last: there no spikes are close.

    A turn begins where the times of a unit go back; `InputError` where that happens in a unit more than `most` times.
    """
    goes_back = (spikes_s[1:] < spikes_s[:-1]) & (unit_index[1:] == unit_index[:-1])
    if not goes_back.any():
        return spikes_s
    turns = np.concatenate([[0], np.cumsum(goes_back)])
    first = binning.segment_starts(unit_index)
    turn = turns - np.repeat(turns[first], np.diff(first, append=unit_index.size))
    if turn.max() > most:
        _refuse_disorder(file, key, spikes_s, unit_index, np.flatnonzero(goes_back))
    return spikes_s + turn * (float(np.ptp(spikes_s)) + 1.0)


def _refuse_disorder(
    file: Worded,
    key: str,
    spikes_s: NDArray[np.float64],
    unit_index: NDArray[np.integer],
    back: NDArray[np.int64],
) -> NoReturn:
    """Raise the `InputError` for spikes of a unit that are out of order: the times are not what they are taken for."""
    worst = back[np.argmin(spikes_s[back + 1] - spikes_s[back])]
    fall = f"unit {unit_index[worst]} goes from {spikes_s[worst]:g} s back to {spikes_s[worst + 1]:g} s"
    n_units = np.unique(unit_index[back]).size
    span = float(np.ptp(spikes_s))
    if back.size <= 3 * n_units and spikes_s[worst] - spikes_s[worst + 1] > 0.1 * span:
        raise file.error(
            key,
            f"start over in {n_units} units ({fall}): the clock was reset, so two stretches share one time; split the "
            "recording where it starts over, or put its parts on one clock",
        )
    raise file.error(
        key,
        f"are out of order {back.size} times in {n_units} units ({fall}): rising times are expected within a unit; "
        "sort them if they are right, find the fault if they are not",
    )


def require_one_clock(file: Worded, key: str, spikes_s: NDArray[np.float64], grid: Grid) -> None:
    """Raise `InputError` when the spikes and the bins cannot be on one clock in seconds."""
    spikes, bins = (float(spikes_s.min()), float(spikes_s.max())), (float(grid.ends_s.min()), float(grid.ends_s.max()))
    spans = spikes[1] - spikes[0], bins[1] - bins[0] + grid.bin_s
    if max(spans) > SHORTEST_CLOCK_S and max(spans) > CLOCK_RATIO * max(min(spans), grid.bin_s):
        raise file.error(
            key,
            f"spans {spans[0]:g} s while the bins span {spans[1]:g} s: seconds are expected in both, one of them seems "
            "to be in another unit (milliseconds, samples)",
        )
    if spikes[1] <= bins[0] - grid.bin_s or spikes[0] > bins[1]:
        raise file.error(
            key,
            f"lie between {spikes[0]:g} and {spikes[1]:g} s, the kinematics between {bins[0] - grid.bin_s:g} and "
            f"{bins[1]:g} s: they never meet, so they cannot be on one clock",
        )
