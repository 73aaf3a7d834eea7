"""Intervals and tests whose unit is the target day, never the bin, the pair or the seed. Plain arrays only.

A resampling interval is a percentile interval of the bootstrap distribution, widened for few units: the tail
probability is Φ(−√(n/(n−1)) t_{n−1}) instead of 2.5 % (T. Hesterberg, The American Statistician 69, 2015), because the
plain one covers far less than it says when n is a handful of days. Below five days even that is too narrow, because no
resampling leaves the range of what was seen: simulated coverage is 51, 74, 91 and 95 % at n = 2, 3, 5 and 8.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bci_adapt.errors import InputError

Array = NDArray[np.float64]
N_BOOT = 2000


class Interval(NamedTuple):
    """A mean with its confidence interval; `n` counts the outermost units. With n < 2 there is no interval (NaN)."""

    mean: float
    low: float
    high: float
    n: int


class Ratio(NamedTuple):
    """A ratio of means with its interval and the denominator's; `refused` says why there is none, else is empty."""

    ratio: float
    low: float
    high: float
    denominator: Interval
    refused: str


def tail_probability(n: int, level: float = 0.95) -> float:
    """Probability cut from each end of a bootstrap distribution over `n` units; 0 for n < 2."""
    from scipy import stats

    if n < 2:
        return 0.0
    return float(stats.norm.cdf(np.sqrt(n / (n - 1)) * stats.t.ppf((1 - level) / 2, n - 1)))


def hierarchical_bootstrap(
    values: ArrayLike,
    levels: Sequence[Sequence[Hashable] | NDArray],
    *,
    resampled: Sequence[bool] | None = None,
    n_boot: int = N_BOOT,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Mean of nested groups, and its hierarchical bootstrap interval.

    `values` is (n,), finite; `levels` holds one (n,) array of labels per level, outermost first, for instance target
    day and seed. A label need be unique only inside its parent. Values that share all labels are averaged, then groups
    level by level up to the mean over the outermost units, each group counting once whatever its size. A replicate
    draws units with replacement at every level marked True in `resampled` (default: all), afresh inside each drawn
    parent, and keeps the others as they are.

    Raises `InputError` for lengths that disagree or values that are not finite.

    >>> hierarchical_bootstrap([1.0, 3.0, 6.0], [["mon", "mon", "tue"], [0, 1, 0]])
    Interval(mean=4.0, low=1.0, high=6.0, n=2)
    """
    values = np.asarray(values, float)
    if values.ndim != 1 or not levels or any(len(labels) != len(values) for labels in levels):
        raise InputError(
            f"hierarchical_bootstrap: expected values and labels of one length, got {values.shape} and "
            f"{[len(labels) for labels in levels]}"
        )
    if not np.isfinite(values).all():
        raise InputError("hierarchical_bootstrap: values must be finite; leave failed ones out and count them")
    resampled = [True] * len(levels) if resampled is None else list(resampled)
    if len(resampled) != len(levels):
        raise InputError(f"resampled: expected one flag for each of {len(levels)} levels, got {resampled}")
    if not len(values):
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    table, counts = _nest(values, levels)
    mean, n = float(_average(table, counts)), len(table)
    if n < 2:
        return Interval(mean, float("nan"), float("nan"), n)
    draws = _draw(table, counts, resampled, n_boot, np.random.default_rng(seed))
    low, high = _percentiles(draws, n, level)
    return Interval(mean, low, high, n)


def ratio_of_means(
    numerator: ArrayLike,
    denominator: ArrayLike,
    *,
    smallest: float = 0.05,
    n_boot: int = N_BOOT,
    level: float = 0.95,
    seed: int = 0,
) -> Ratio:
    """mean(numerator) / mean(denominator) over paired units, both (n,), with a paired bootstrap interval.

    Refused, with the reason, for fewer than two units, when the interval of the denominator's mean reaches zero, or
    when that mean is below `smallest`: such a ratio is noise however it comes out. A replicate whose denominator is
    not positive would mean an unbounded interval; the guard on the interval rules out all but a few in the tails,
    which count as ±infinity rather than being dropped.
    """
    top, bottom = np.asarray(numerator, float), np.asarray(denominator, float)
    if top.ndim != 1 or top.shape != bottom.shape or not (np.isfinite(top) & np.isfinite(bottom)).all():
        raise InputError(f"ratio_of_means: expected two finite arrays of one length, got {top.shape}, {bottom.shape}")
    nan, n = float("nan"), len(top)
    if n < 2:
        mean = float(bottom.mean()) if n else nan
        return Ratio(nan, nan, nan, Interval(mean, nan, nan, n), f"{n} target day{'s' * (n != 1)}, at least 2 needed")
    index = np.random.default_rng(seed).integers(0, n, (n_boot, n))
    tops, bottoms = top[index].mean(1), bottom[index].mean(1)
    below = Interval(float(bottom.mean()), *_percentiles(bottoms, n, level), n)
    if below.low <= 0:
        reason = f"the denominator's interval [{below.low:.3f}, {below.high:.3f}] reaches zero"
    elif below.mean < smallest:
        reason = f"the denominator {below.mean:.3f} is below {smallest:g}"
    else:
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = np.where(bottoms > 0, tops / bottoms, np.copysign(np.inf, tops))
        return Ratio(float(top.mean()) / below.mean, *_percentiles(ratios, n, level), below, "")
    return Ratio(nan, nan, nan, below, reason)


def sign_flip_test(differences: ArrayLike, *, n_random: int = 100_000, seed: int = 0) -> float:
    """Two-sided p of the mean of paired `differences` (n,), one per day, when every sign is as likely as its opposite.

    Exact up to 20 days (all 2^n sign patterns), `n_random` seeded patterns beyond. With n days p cannot fall below
    2^(1−n). NaN without days.
    """
    values = np.asarray(differences, float)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise InputError(f"sign_flip_test: expected a finite array (n_days,), got shape {values.shape}")
    if not len(values):
        return float("nan")
    least = abs(values.sum()) - 1e-12 * np.abs(values).sum()  # sums of the same terms differ by rounding
    if len(values) <= 20:
        sums = np.zeros(1)
        for value in values:
            sums = np.concatenate([sums + value, sums - value])
        return float((np.abs(sums) >= least).mean())
    signs = np.random.default_rng(seed).integers(0, 2, (n_random, len(values)), dtype=np.int8) * 2 - 1
    return float(((np.abs(signs @ values) >= least).sum() + 1) / (n_random + 1))


def t_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Student's interval of the mean of `values` (n,): honest for two or three days where no bootstrap can be."""
    from scipy import stats

    values = np.asarray(values, float)
    n, mean = len(values), float(values.mean()) if len(values) else float("nan")
    if n < 2:
        return Interval(mean, float("nan"), float("nan"), n)
    reach = float(stats.t.ppf((1 + level) / 2, n - 1) * values.std(ddof=1) / np.sqrt(n))
    return Interval(mean, mean - reach, mean + reach, n)


def _nest(values: Array, levels: Sequence[Sequence[Hashable] | NDArray]) -> tuple[Array, list[NDArray[np.int64]]]:
    """Values as a dense (n_outer, …, n_inner) table and, per level but the last, each group's number of children."""
    tree: dict = {}
    for value, *labels in zip(values, *levels, strict=True):
        node = tree
        for label in labels[:-1]:
            node = node.setdefault(label, {})
        node.setdefault(labels[-1], []).append(value)
    nodes: list = [((), tree)]
    sizes, children = [], []
    for _ in levels:
        sizes.append(max(len(node) for _, node in nodes))
        children.append({where: len(node) for where, node in nodes})
        nodes = [((*where, i), child) for where, node in nodes for i, child in enumerate(node.values())]
    table = np.zeros(sizes)
    for where, leaf in nodes:
        table[where] = np.mean(leaf)
    counts = [np.zeros(sizes[:depth], np.int64) for depth in range(1, len(levels))]
    for count, entries in zip(counts, children[1:], strict=True):
        for where, size in entries.items():
            count[where] = size
    return table, counts


def _average(table: Array, counts: Sequence[NDArray[np.int64]]) -> Array:
    """Average the last axes of `table` level by level, innermost first; `counts` holds how many entries are real."""
    for count in reversed(counts):
        inside = np.arange(table.shape[-1]) < count[..., None]
        table = np.where(inside, table, 0.0).sum(-1) / np.maximum(count, 1)
    return table.mean(-1)


def _draw(
    table: Array, counts: Sequence[NDArray[np.int64]], resampled: Sequence[bool], n_boot: int, rng: np.random.Generator
) -> Array:
    """Means of `n_boot` replicates, (n_boot,)."""
    n_outer = len(table)
    outer = rng.integers(0, n_outer, (n_boot, n_outer)) if resampled[0] else np.arange(n_outer)[None].repeat(n_boot, 0)
    index, drawn = (outer,), []
    for count, size, again in zip(counts, table.shape[1:], resampled[1:], strict=True):
        drawn.append(count[index])
        shape = (*drawn[-1].shape, size)
        if again:
            slot = (rng.random(shape) * drawn[-1][..., None]).astype(np.int64)
        else:
            slot = np.broadcast_to(np.arange(size), shape)
        index = (*(np.broadcast_to(i[..., None], shape) for i in index), slot)
    return _average(table[index], drawn)


def _percentiles(draws: Array, n: int, level: float) -> tuple[float, float]:
    tail = tail_probability(n, level)
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)
