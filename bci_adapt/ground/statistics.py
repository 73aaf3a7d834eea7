"""Intervals and tests whose unit is the target day, never the bin, the pair or the seed. Plain arrays only.

A resampling interval is a percentile interval of the bootstrap distribution, widened for few units: the tail
probability is Φ(−√(n/(n−1)) t_{n−1}) instead of 2.5 % (T. Hesterberg, The American Statistician 69, 2015), because the
plain one covers far less than it says when n is a handful of days. Below five days even that is too narrow, because no
resampling leaves the range of what was seen: simulated coverage is 51, 74, 91 and 95 % at n = 2, 3, 5 and 8.

Drawing seeds and blocks inside the drawn days adds their noise to that of the days, which holds it already: the
hierarchical interval errs on the wide side, the more so the less days differ from one another.
"""

from __future__ import annotations

import functools
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


class Equivalence(NamedTuple):
    """Two one-sided tests of paired differences against ± a margin.

    `verdict` is equivalent (p below alpha: `interval`, of level 1 − 2 alpha, lies inside the margin), else different
    (the two-sided t test rejects zero), else inconclusive. `n_needed` days would have 80 % power to show that arms
    which do not differ are equivalent, at the spread seen; NaN below two days.
    """

    verdict: str
    p: float
    interval: Interval
    n_needed: float


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


def block_bootstrap(
    error: ArrayLike,
    spread: ArrayLike,
    levels: Sequence[Sequence[Hashable] | NDArray],
    *,
    other_error: ArrayLike | None = None,
    n_boot: int = N_BOOT,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Mean R² of nested runs, and its bootstrap interval over target days > seeds > blocks of time.

    `error` and `spread` are (n_runs, n_blocks) sums of squares, NaN behind a run's last block; a run's R² is
    1 − Σ error / Σ spread over its blocks. `levels` holds the runs' target days, pairs and seeds, each (n_runs,). With
    `other_error`, that of another arm on the same blocks, the mean is of the differences, R² less the other's.

    Seeds are averaged within a pair, pairs within a day. A replicate draws days, inside each drawn day blocks – the
    same ones for all of its runs, which share them – and seeds inside each of its pairs; pairs are kept as they are.

    Raises `InputError` for shapes that disagree, runs of one day with different blocks, or one without spread.
    """
    error, spread = np.asarray(error, float), np.asarray(spread, float)
    other = None if other_error is None else np.asarray(other_error, float)
    shapes = [array.shape for array in (error, spread, error if other is None else other)]
    if error.ndim != 2 or len({*shapes}) > 1 or len(levels) != 3 or any(len(each) != len(error) for each in levels):
        raise InputError(
            f"block_bootstrap: expected error and spread (n_runs, n_blocks) and three lists of n_runs labels, got "
            f"{shapes} and {[len(each) for each in levels]}"
        )
    days: dict[Hashable, dict[Hashable, dict[Hashable, list[int]]]] = {}
    for run, (day, pair, label) in enumerate(zip(*levels, strict=True)):
        days.setdefault(day, {}).setdefault(pair, {}).setdefault(label, []).append(run)
    n, nan = len(days), float("nan")
    if not n:
        return Interval(nan, nan, nan, 0)
    gain, rng = error if other is None else error - other, np.random.default_rng(seed)
    drawn = rng.integers(0, n, (n_boot, n))
    replicates, means = np.zeros((n_boot, n)), []
    for number, (day, pairs) in enumerate(days.items()):
        runs = [run for seeds in pairs.values() for each in seeds.values() for run in each]
        top, bottom = _shared_blocks(day, gain[runs], spread[runs])
        slots, n_blocks = np.nonzero(drawn == number), bottom.shape[1]
        weights = np.concatenate([np.ones((1, n_blocks)), _multiplicities(rng, len(slots[0]), n_blocks)])
        with np.errstate(divide="ignore", invalid="ignore"):
            # of all blocks first, then of drawn ones
            scores = float(other is None) - (weights @ top.T) / (weights @ bottom.T)
        # a draw of blocks in which nothing moves has no R²: the run's own stands in
        scores = np.where(np.isfinite(scores), scores, scores[0])
        place = {run: column for column, run in enumerate(runs)}
        whole, again = np.zeros(len(pairs)), np.zeros((len(slots[0]), len(pairs)))
        for column, seeds in enumerate(pairs.values()):
            of_seed = np.stack([scores[:, [place[run] for run in each]].mean(1) for each in seeds.values()], axis=1)
            whole[column] = of_seed[0].mean()
            picks = rng.integers(0, len(seeds), (len(slots[0]), len(seeds)))
            again[:, column] = np.take_along_axis(of_seed[1:], picks, axis=1).mean(1)
        means.append(whole.mean())
        replicates[slots] = again.mean(1)
    low, high = _percentiles(replicates.mean(1), n, level) if n >= 2 else (nan, nan)
    return Interval(float(np.mean(means)), low, high, n)


def _shared_blocks(day: Hashable, error: Array, spread: Array) -> tuple[Array, Array]:
    """The blocks that all runs of a day share, of `error` and `spread` (n_runs, n_blocks)."""
    there = np.isfinite(spread)
    if (there != there[0]).any() or (np.isfinite(error) != there).any() or (spread[there] < 0).any():
        raise InputError(f"block_bootstrap: the runs of {day!r} do not share their blocks")
    error, spread = error[:, there[0]], spread[:, there[0]]
    if (spread.sum(1) <= 0).any():
        raise InputError(f"block_bootstrap: a run of {day!r} has no spread, so that nothing is there to explain")
    return error, spread


def _multiplicities(rng: np.random.Generator, n_draws: int, n: int) -> Array:
    """How often each of `n` blocks comes up in n draws with replacement, `n_draws` times over: (n_draws, n)."""
    picks = rng.integers(0, n, (n_draws, n)) + n * np.arange(n_draws)[:, None]
    return np.bincount(picks.ravel(), minlength=n_draws * n).reshape(n_draws, n).astype(float)


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


def wilcoxon_test(differences: ArrayLike) -> float:
    """Two-sided p of Wilcoxon's signed-rank test of paired `differences` (n,), one per day; NaN without days.

    Exact up to 20 days also where differences tie (mid-ranks) or are zero (left out), which makes it the sign-flip test
    of the signed ranks.
    """
    from scipy import stats

    values = np.asarray(differences, float)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise InputError(f"wilcoxon_test: expected a finite array (n_days,), got shape {values.shape}")
    moved = values[values != 0]
    if len(values) and not len(moved):
        return 1.0
    return sign_flip_test(np.sign(moved) * stats.rankdata(np.abs(moved)))


def holm(p_values: ArrayLike) -> Array:
    """Holm's step-down adjusted p of a family of tests (n,). A NaN stays one and is no member of the family.

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, float)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1) | np.isnan(p)).all():
        raise InputError(f"holm: expected p values (n,) between 0 and 1, got {p_values!r}")
    order = np.argsort(p)[: int(np.isfinite(p).sum())]  # NaN sorts last
    adjusted = np.full(len(p), np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1.0)
    return adjusted


def equivalence(differences: ArrayLike, margin: float, alpha: float = 0.05) -> Equivalence:
    """Test whether the mean of paired `differences` (n,), one per day, lies within ± `margin` (TOST, Student's t)."""
    from scipy import stats

    if not margin > 0:
        raise InputError(f"equivalence: margin must be above 0, got {margin}")
    values = np.asarray(differences, float)
    inner = t_interval(values, 1 - 2 * alpha)
    if inner.n < 2:
        return Equivalence("inconclusive", float("nan"), inner, float("nan"))
    sd = float(values.std(ddof=1))
    error = max(sd / np.sqrt(inner.n), 1e-300)
    p = float(stats.t.sf((margin - abs(inner.mean)) / error, inner.n - 1))
    differs = 2 * stats.t.sf(abs(inner.mean) / error, inner.n - 1) < alpha
    verdict = "equivalent" if p < alpha else "different" if differs else "inconclusive"
    return Equivalence(verdict, p, inner, days_needed(sd, margin=margin, alpha=alpha))


def power(sd: float, n: int, *, effect: float | None = None, margin: float | None = None, alpha: float = 0.05) -> float:
    """Power over `n` days whose differences have standard deviation `sd`.

    With `effect`, of the two-sided paired t test for a true mean of that size; with `margin`, of `equivalence` for a
    true mean of zero. Exact: the noncentral t, and an integral over the distribution of the sample's deviation.
    """
    from scipy import special, stats

    if (effect is None) == (margin is None):
        raise InputError("power: give either effect or margin")
    if n < 2:
        return 0.0
    if sd <= 0:
        return 1.0 if margin is not None or effect else alpha
    critical = float(stats.t.isf(alpha / 2 if margin is None else alpha, n - 1))
    if margin is None:
        shift = abs(float(effect or 0.0)) * np.sqrt(n) / sd
        return float(stats.nct.sf(critical, n - 1, shift) + stats.nct.cdf(-critical, n - 1, shift))
    # over the sample's standard deviation in units of `sd`, up to the widest that can pass
    spread = 8 / np.sqrt(2 * (n - 1))
    low, high = max(0.0, 1 - spread), min(margin * np.sqrt(n) / (critical * sd), 1 + spread)
    if low >= high:
        return 0.0
    nodes, weights = _legendre()
    ratio = low + (high - low) * (nodes + 1) / 2
    inside = 2 * special.ndtr(margin * np.sqrt(n) / sd - critical * ratio) - 1
    density = 2 * (n - 1) * ratio * stats.chi2.pdf((n - 1) * ratio**2, n - 1)
    return float((inside * density * weights).sum() * (high - low) / 2)


def days_needed(
    sd: float,
    *,
    effect: float | None = None,
    margin: float | None = None,
    wanted: float = 0.8,
    alpha: float = 0.05,
    most: int = 10_000,
) -> float:
    """The fewest days at which `power` reaches `wanted`; infinite beyond `most`."""
    few, many = 1, 2
    while power(sd, many, effect=effect, margin=margin, alpha=alpha) < wanted:
        few, many = many, 2 * many
        if few > most:
            return float("inf")
    while many - few > 1:  # power rises with n
        middle = (few + many) // 2
        enough = power(sd, middle, effect=effect, margin=margin, alpha=alpha) >= wanted
        few, many = (few, middle) if enough else (middle, many)
    return float(many)


def hedges_g(differences: ArrayLike, level: float = 0.95) -> Interval:
    """Hedges' g of paired `differences` (n,), one per day: mean / sd, corrected for few days, with its exact interval.

    The interval turns the noncentral t distribution of the one-sample statistic round. NaN below two days, or where all
    differences are equal.
    """
    from scipy import optimize, special, stats

    values = np.asarray(differences, float)
    n, nan = len(values), float("nan")
    sd = float(values.std(ddof=1)) if n > 1 else 0.0
    if not sd > 1e-12 * np.abs(values).max(initial=0.0):
        return Interval(nan, nan, nan, n)
    freedom = n - 1
    correction = float(
        np.exp(special.gammaln(freedom / 2) - special.gammaln((freedom - 1) / 2)) / np.sqrt(freedom / 2)
        if freedom > 1
        else 1 / np.sqrt(np.pi)
    )
    t = float(values.mean() / sd * np.sqrt(n))

    reach = abs(t) * (1 + 10 / np.sqrt(freedom)) + 10

    def limit(probability: float) -> float:
        def excess(shift: float) -> float:
            return float(stats.nct.sf(t, freedom, shift)) - probability

        return float(optimize.root_scalar(excess, bracket=(-reach, reach)).root)

    factor = float(correction / np.sqrt(n))
    tail = (1 - level) / 2
    return Interval(factor * t, factor * limit(tail), factor * limit(1 - tail), n)


@functools.cache
def _legendre() -> tuple[Array, Array]:
    return np.polynomial.legendre.leggauss(100)


def rank_correlation(
    x: ArrayLike,
    y: ArrayLike,
    days: Sequence[Hashable] | NDArray,
    *,
    n_boot: int = N_BOOT,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Spearman's correlation over days of `x` and `y` (n,), each averaged within a day first, with bootstrap interval.

    Days are drawn with replacement; a draw in which one of both is constant says nothing and is left out. NaN below
    three days, where any two points are in order, or where one of both never varies; no interval below four, nor of a
    perfect order.
    """
    x, y, days = np.asarray(x, float), np.asarray(y, float), list(days)
    if x.ndim != 1 or x.shape != y.shape or len(days) != len(x) or not (np.isfinite(x) & np.isfinite(y)).all():
        raise InputError(
            f"rank_correlation: expected finite x, y and days of one length, got {x.shape}, {y.shape}, {len(days)}"
        )
    _, where = np.unique(np.array([repr(day) for day in days]), return_inverse=True)
    n, nan = int(where.max(initial=-1)) + 1, float("nan")
    if n < 3:
        return Interval(nan, nan, nan, n)
    daily = np.stack([np.bincount(where, values, n) / np.bincount(where, minlength=n) for values in (x, y)])
    rho = float(_spearman(daily[:, None])[0])
    draws = _spearman(daily[:, np.random.default_rng(seed).integers(0, n, (n_boot, n))])
    draws = draws[np.isfinite(draws)]
    # every draw of a perfect order is perfect: that is no certainty, there is only no interval
    if n < 4 or not np.isfinite(rho) or abs(rho) > 1 - 1e-12 or not len(draws):
        return Interval(rho, nan, nan, n)
    return Interval(rho, *_percentiles(draws, n, level), n)


def _spearman(pairs: Array) -> Array:
    """Spearman's correlation of the last axis of `pairs` (2, n_draws, n); NaN where one of both is constant."""
    from scipy import stats

    ranks = stats.rankdata(pairs, axis=-1)
    ranks -= ranks.mean(-1, keepdims=True)
    power_x, power_y = (ranks**2).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (ranks[0] * ranks[1]).sum(-1) / np.sqrt(power_x * power_y)


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
