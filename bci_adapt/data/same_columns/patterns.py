"""Patterns of correlations compared: how alike two are, and how alike shuffled columns would be."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

PERIOD = 4
"""Amplifiers and headstages make columns alike that lie 2, 4, 8 or 32 apart: shuffled columns keep this."""
REACH = 5  # of a shuffle, in columns of one place in the period
N_SHUFFLES = 99
CHANCE = 4.0  # standard deviations of shuffled columns


def beyond(first: Array, second: Array, shuffles: NDArray[np.int64]) -> tuple[float, float, float]:
    """Return the correlation of two patterns (m, m) over pairs, and mean and spread of it under `shuffles` (n, m)."""
    a, b = off_diagonal(first), off_diagonal(second)
    m = len(a)
    values = [float((a * b[np.ix_(order, order)]).sum()) / (m * (m - 1)) for order in (np.arange(m), *shuffles)]
    return values[0], float(np.mean(values[1:])), float(np.std(values[1:], ddof=1))


def off_diagonal(pattern: Array) -> Array:
    """Return a pattern of mean 0 and variance 1 off the diagonal, and 0 on it."""
    off = ~np.eye(len(pattern), dtype=bool)
    values = pattern[off]
    return np.where(off, (pattern - values.mean()) / (values.std() or 1.0), 0.0)


@lru_cache(maxsize=64)
def shuffled(place: tuple[int, ...]) -> NDArray[np.int64]:
    """Return orders (`N_SHUFFLES`, m) of columns at `place` (m,) in which no column stays and none goes far.

    Columns of one place in the period are turned among themselves by a few: what lies in the place of a column, banks
    of amplifiers among it, is kept as far as it can be, and what is a channel's own is not.
    """
    rng = np.random.default_rng(0)
    orders = np.tile(np.arange(len(place)), (N_SHUFFLES, 1))
    for rest in range(PERIOD):
        rows = np.flatnonzero(np.asarray(place) % PERIOD == rest)
        if len(rows) < 2:
            continue
        reach = min(REACH, len(rows) - 1)
        for order in orders:
            order[rows] = np.roll(rows, int(rng.choice([-1, 1])) * int(rng.integers(1, reach + 1)))
    return orders


def reliability(halves: tuple[Array, Array], place: NDArray[np.integer]) -> float:
    """Return how well a session of which `halves` gave two patterns would agree with another one that differs by noise
    alone (Spearman & Brown), beyond what shuffled columns have; 0 where that is no more than `CHANCE` would do.
    """
    if len(place) < 2:
        return 0.0
    found, chance, spread = beyond(*halves, shuffled(tuple(place.tolist())))
    half = found - chance if found - chance > CHANCE * spread else 0.0
    return 2 * half / (1 + half)
