"""Intervals cover what they say, and the tests agree with scipy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from bci_adapt.errors import InputError
from bci_adapt.ground.statistics import (
    block_bootstrap,
    days_needed,
    equivalence,
    hedges_g,
    hierarchical_bootstrap,
    holm,
    power,
    rank_correlation,
    ratio_of_means,
    sign_flip_test,
    t_interval,
    tail_probability,
    wilcoxon_test,
)

PAIR = [["a", "a"], ["p", "p"], [0, 1]]  # two seeds of one day


def test_one_level_agrees_with_scipy():
    values = np.random.default_rng(3).gamma(2, 1, 15)
    got = hierarchical_bootstrap(values, [range(15)], n_boot=40_000)
    level = 1 - 2 * tail_probability(15)
    rng = np.random.default_rng(0)
    reference = stats.bootstrap(
        (values,), np.mean, n_resamples=40_000, confidence_level=level, method="percentile", rng=rng
    ).confidence_interval
    assert got.mean == pytest.approx(values.mean())
    assert (got.low, got.high) == pytest.approx(tuple(reference), abs=0.02)
    assert 0.95 < level < 0.98, "few units widen the interval"
    assert tail_probability(10_000) == pytest.approx(0.025, abs=1e-4)


def test_every_group_counts_once_at_its_level():
    days = ["a", "a", "a", "a", "b"]
    pairs = [0, 0, 0, 1, 0]
    seeds = [0, 1, 1, 0, 0]
    values = [1.0, 2.0, 4.0, 8.0, 0.0]  # seed means 1, 3 → pair 2; pair 8 → day 5; day 0
    got = hierarchical_bootstrap(values, [days, pairs, seeds])
    assert got.mean == 2.5
    assert (got.low, got.high, got.n) == (0.0, 8.0, 2), "two days and their nests: the whole range"
    fixed = hierarchical_bootstrap(values, [days, pairs, seeds], resampled=[False, False, False])
    assert fixed.low == fixed.high == fixed.mean
    only_days = hierarchical_bootstrap(values, [days, pairs, seeds], resampled=[True, False, False])
    assert (only_days.low, only_days.high) == (0.0, 5.0)
    order = [3, 0, 4, 2, 1]
    shuffled = hierarchical_bootstrap(
        np.array(values)[order], [np.array(level)[order] for level in (days, pairs, seeds)]
    )
    assert shuffled.mean == got.mean


def test_interval_covers_the_mean_and_ignores_how_often_a_day_was_measured():
    rng = np.random.default_rng(1)
    n_days, n_seeds, n_studies = 8, 4, 250
    hits, flat_hits = 0, 0
    days = np.repeat(np.arange(n_days), n_seeds)
    for study in range(n_studies):
        values = rng.normal(0, 1, n_days)[days] + rng.normal(0, 0.3, len(days))
        nested = hierarchical_bootstrap(values, [days, np.tile(np.arange(n_seeds), n_days)], n_boot=400, seed=study)
        flat = hierarchical_bootstrap(values, [np.arange(len(values))], n_boot=400, seed=study)
        hits += nested.low <= 0 <= nested.high
        flat_hits += flat.low <= 0 <= flat.high
    assert 0.91 <= hits / n_studies <= 0.995
    assert flat_hits / n_studies < 0.8, "treating seeds as days would promise far too much"


def test_few_units_have_no_interval():
    one = hierarchical_bootstrap([0.3, 0.5], [["a", "a"], [0, 1]])
    assert (one.mean, one.n) == (0.4, 1)
    assert np.isnan([one.low, one.high]).all()
    none = hierarchical_bootstrap([], [[]])
    assert none.n == 0
    assert np.isnan(none.mean)


def test_students_interval_agrees_with_scipy():
    values = np.random.default_rng(4).normal(size=3)
    got, reference = t_interval(values), stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (got.low, got.high) == pytest.approx((reference.low, reference.high))
    assert np.isnan([t_interval([1.0]).low, t_interval([]).mean]).all()


def test_ratio_is_paired_and_covers():
    rng = np.random.default_rng(2)
    hits, widths, unpaired = 0, [], []
    for study in range(200):
        bottom = rng.normal(0.6, 0.15, 8)
        top = 0.8 * bottom + rng.normal(0, 0.03, 8)
        got = ratio_of_means(top, bottom, n_boot=400, seed=study)
        assert got.refused == ""
        assert got.ratio == pytest.approx(top.mean() / bottom.mean())
        hits += got.low <= 0.8 <= got.high
        widths.append(got.high - got.low)
        other = ratio_of_means(rng.permutation(top), bottom, n_boot=400, seed=study)
        unpaired.append(other.high - other.low)
    assert 0.9 <= hits / 200 <= 1
    assert np.mean(widths) < 0.4 * np.mean(unpaired), "days of numerator and denominator must be drawn together"


@pytest.mark.parametrize(
    ("bottom", "reason"),
    [
        ([0.5], "1 target day, at least 2"),
        ([], "0 target days, at least 2"),
        ([0.5, -0.2, 0.1], "reaches zero"),
        ([-0.5, -0.4, -0.45], "reaches zero"),
        ([0.04, 0.045, 0.042], "below 0.05"),
    ],
)
def test_ratio_is_refused_with_the_reason(bottom, reason):
    got = ratio_of_means(np.ones(len(bottom)), bottom)
    assert reason in got.refused
    assert np.isnan([got.ratio, got.low, got.high]).all()


@pytest.mark.parametrize("n", [1, 2, 5, 9])
def test_sign_flips_agree_with_enumeration_and_scipy(n):
    values = np.random.default_rng(n).normal(0.6, 1, n)
    sums = [abs(np.dot(signs, values)) for signs in itertools.product([1, -1], repeat=n)]
    got = sign_flip_test(values)
    assert got == pytest.approx(np.mean(np.array(sums) >= abs(values.sum()) - 1e-12))
    if n > 1:
        reference = stats.permutation_test(
            (values,), lambda x, axis: x.mean(axis=axis), permutation_type="samples", n_resamples=np.inf
        )
        assert got == pytest.approx(reference.pvalue)
    assert sign_flip_test(np.full(n, 0.1)) == 2.0 ** (1 - n), (
        "equal differences tie with themselves in spite of rounding"
    )


def test_sign_flips_beyond_twenty_days_are_sampled_and_seeded():
    values = np.random.default_rng(0).normal(0.3, 1, 25)
    reference = stats.ttest_1samp(values, 0).pvalue
    assert sign_flip_test(values) == sign_flip_test(values) == pytest.approx(reference, abs=0.01)
    assert np.isnan(sign_flip_test([]))


def runs(rng, n_days, n_seeds=3, n_blocks=30, day_sd=0.06, seed_sd=0.02, block_sd=0.4, level=0.4):
    """Errors and spreads of runs whose R² vary around `level` with the day, the seed, and the block of time."""
    error, spread, days, seeds = [], [], [], []
    for day in range(n_days):
        own = rng.gamma(6, 1 / 6, n_blocks)
        shift, hardness = rng.normal(0, day_sd), rng.normal(0, block_sd, n_blocks)
        for seed in range(n_seeds):
            error.append(own * (1 - level - shift - rng.normal(0, seed_sd) + 0.6 * hardness))
            spread.append(own)
            days.append(day)
            seeds.append(seed)
    return np.array(error), np.array(spread), [days, [0] * len(days), seeds]


@pytest.mark.parametrize("n_days", [6, 12])
def test_days_seeds_and_blocks_cover_and_a_bootstrap_of_blocks_alone_does_not(n_days):
    rng, n_studies, hits, naive_hits = np.random.default_rng(0), 150, 0, 0
    for number in range(n_studies):
        error, spread, levels = runs(rng, n_days)
        got = block_bootstrap(error, spread, levels, n_boot=300, seed=number)
        hits += got.low <= 0.4 <= got.high
        flat = np.random.default_rng(number).integers(0, error.size, (300, error.size))
        naive = 1 - error.ravel()[flat].sum(1) / spread.ravel()[flat].sum(1)
        naive_hits += np.quantile(naive, 0.025) <= 0.4 <= np.quantile(naive, 0.975)
    assert 0.93 <= hits / n_studies <= 1.0
    assert naive_hits / n_studies < 0.75, "the block is not the unit: its bootstrap promises far too much"


def test_blocks_give_the_mean_r2_and_without_noise_inside_days_the_interval_over_days():
    error, spread, levels = runs(np.random.default_rng(1), 5)
    got = block_bootstrap(error, spread, levels)
    scores = 1 - error.sum(1) / spread.sum(1)
    plain = hierarchical_bootstrap(scores, levels, resampled=[True, False, True])
    assert (got.mean, got.n) == (pytest.approx(plain.mean), 5)
    assert got.high - got.low > plain.high - plain.low
    assert block_bootstrap(error, spread, levels) == got, "seeded"
    # every block of a day alike, one seed: only days are left to draw
    level = np.array([0.1, 0.4, 0.2, 0.6, 0.3])
    even = np.ones((5, 8))
    alone = [list(range(5)), [0] * 5, [0] * 5]
    got = block_bootstrap(even * (1 - level)[:, None], even, alone, n_boot=20_000)
    plain = hierarchical_bootstrap(level, alone, n_boot=20_000)
    assert (got.low, got.high) == pytest.approx((plain.low, plain.high), abs=0.01)
    one = block_bootstrap(error[:3], spread[:3], [level[:3] for level in levels])
    assert one.n == 1
    assert np.isnan([one.low, one.high]).all()
    assert block_bootstrap(np.zeros((0, 3)), np.zeros((0, 3)), [[], [], []]).n == 0


def test_blocks_nest_and_may_differ_in_number_between_days():
    nan = np.nan
    error = [[1.0, 1.0, nan], [3.0, 1.0, nan], [2.0, 2.0, nan], [0.0, 1.0, 2.0]]
    spread = [[4.0, 4.0, nan], [4.0, 4.0, nan], [4.0, 4.0, nan], [4.0, 4.0, 4.0]]
    levels = [["t1", "t1", "t1", "t2"], ["a", "a", "b", "a"], [0, 1, 0, 0]]
    # pair a of t1: (0.75 + 0.5) / 2, pair b: 0.5; t2: 0.75
    got = block_bootstrap(error, spread, levels)
    assert got.mean == pytest.approx(((0.625 + 0.5) / 2 + 0.75) / 2)


def test_a_difference_is_of_the_same_blocks():
    rng = np.random.default_rng(3)
    error, spread, levels = runs(rng, 8)
    other = error + 0.05 * spread  # 0.05 of R² lower, in every block
    got = block_bootstrap(error, spread, levels, other_error=other)
    assert (got.mean, got.low, got.high) == pytest.approx((0.05, 0.05, 0.05))
    swapped = block_bootstrap(other, spread, levels, other_error=error)
    assert swapped.mean == pytest.approx(-0.05)
    shuffled = np.array([row[rng.permutation(len(row))] for row in other])
    unpaired = block_bootstrap(error, spread, levels, other_error=shuffled)
    assert unpaired.high - unpaired.low > 0.02


@pytest.mark.parametrize("n", [1, 3, 6, 11])
def test_signed_ranks_agree_with_scipy(n):
    values = np.random.default_rng(n).normal(0.5, 1, n)
    assert wilcoxon_test(values) == pytest.approx(stats.wilcoxon(values, method="exact").pvalue)


def test_signed_ranks_with_ties_and_zeros_are_exact():
    values = np.array([0.2, 0.2, -0.1, 0.3, 0.0, 0.3])
    moved = values[values != 0]
    ranks = np.array([2.5, 2.5, 1.0, 4.5, 4.5])
    observed = abs((np.sign(moved) * ranks).sum())
    sums = [abs(np.dot(signs, ranks)) for signs in itertools.product([1, -1], repeat=5)]
    assert wilcoxon_test(values) == pytest.approx(np.mean(np.array(sums) >= observed - 1e-9))
    assert wilcoxon_test([0.0, 0.0]) == 1.0
    assert np.isnan(wilcoxon_test([]))


def test_holm_agrees_with_a_table_worked_by_hand():
    p = [0.01, 0.04, 0.03, 0.005, np.nan, 0.9]
    # sorted: 0.005 × 5, 0.01 × 4, 0.03 × 3, 0.04 × 2 (below the one before it), 0.9 × 1
    assert holm(p) == pytest.approx([0.04, 0.09, 0.09, 0.025, np.nan, 0.9], nan_ok=True)
    assert holm([0.6, 0.6]).tolist() == [1.0, 1.0]
    assert holm([]).tolist() == []


def test_holm_agrees_with_statsmodels():
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    p = np.random.default_rng(0).random(12) ** 3
    assert holm(p) == pytest.approx(multitest.multipletests(p, method="holm")[1])


@pytest.mark.parametrize("n", [4, 9, 20])
def test_power_agrees_with_simulated_studies(n):
    rng, sd, n_studies = np.random.default_rng(n), 0.05, 20_000
    samples = rng.normal(0, sd, (n_studies, n))
    error = samples.std(axis=1, ddof=1) / np.sqrt(n)
    margin = 1.9 * sd * stats.t.isf(0.05, n - 1) / np.sqrt(n)
    passed = np.abs(samples.mean(axis=1)) + stats.t.isf(0.05, n - 1) * error < margin
    assert power(sd, n, margin=margin) == pytest.approx(passed.mean(), abs=0.012)
    seen = np.abs(samples.mean(axis=1) + 0.04) / error > stats.t.isf(0.025, n - 1)
    assert power(sd, n, effect=0.04) == pytest.approx(seen.mean(), abs=0.012)
    assert power(sd, n, effect=0.0) == pytest.approx(0.05)


def test_power_agrees_with_the_protocols_figures_and_days_needed_turn_it_round():
    assert power(4.4, 20, margin=3.0) == pytest.approx(0.8, abs=0.01)
    assert power(2.2, 6, margin=3.0) == pytest.approx(0.8, abs=0.03)
    assert days_needed(4.4, margin=3.0) == 20
    assert power(4.4, 19, margin=3.0) < 0.8
    for sd, effect in ((1.0, 1.0), (1.0, 0.3)):
        n = int(days_needed(sd, effect=effect))
        assert power(sd, n, effect=effect) >= 0.8 > power(sd, n - 1, effect=effect)
    assert days_needed(1.0, effect=1e-6) == np.inf
    assert power(1.0, 1, margin=3.0) == 0.0
    assert days_needed(0.0, margin=3.0) == 2


def test_power_of_the_t_test_agrees_with_statsmodels():
    stats_power = pytest.importorskip("statsmodels.stats.power")
    expected = stats_power.TTestPower().power(effect_size=0.6, nobs=12, alpha=0.05)
    assert power(1.0, 12, effect=0.6) == pytest.approx(expected)


@pytest.mark.parametrize("n", [4, 12])
def test_equivalence_errs_at_the_margin_no_more_than_it_says(n):
    rng, margin, n_studies = np.random.default_rng(n), 0.03, 400
    wrong = sum(
        equivalence(rng.normal(margin, sd, n), margin).verdict == "equivalent"
        for sd in (0.005, 0.03)
        for _ in range(n_studies // 2)
    )
    assert wrong / n_studies <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / n_studies)


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([0.001, -0.002, 0.003, 0.0, -0.001, 0.002], "equivalent"),
        ([0.012, 0.011, 0.013, 0.012, 0.01, 0.011], "equivalent"),  # apart for certain, and by less than matters
        ([0.10, 0.12, 0.09, 0.11, 0.10, 0.13], "different"),
        ([-0.10, -0.12, -0.09, -0.11, -0.10, -0.13], "different"),
        ([0.10, -0.12, 0.09, -0.11, 0.10, -0.05], "inconclusive"),
        ([0.001], "inconclusive"),
        ([], "inconclusive"),
    ],
)
def test_equivalence_is_the_inner_interval_inside_the_margin(differences, verdict):
    got = equivalence(differences, 0.03)
    assert got.verdict == verdict
    if len(differences) < 2:
        assert np.isnan([got.p, got.n_needed]).all()
        return
    inner = stats.ttest_1samp(differences, 0).confidence_interval(0.90)
    assert (got.interval.low, got.interval.high) == pytest.approx(tuple(inner))
    assert (got.p < 0.05) == (inner.low > -0.03 and inner.high < 0.03)
    sides = [
        stats.ttest_1samp(differences, bound, alternative=side).pvalue
        for bound, side in ((-0.03, "greater"), (0.03, "less"))
    ]
    assert got.p == pytest.approx(max(sides))
    assert power(np.std(differences, ddof=1), int(got.n_needed), margin=0.03) >= 0.8


def test_effect_size_is_nearly_unbiased_and_its_interval_covers():
    rng, true, n, n_studies = np.random.default_rng(5), 0.8, 8, 300
    sizes = [hedges_g(rng.normal(true, 1.0, n)) for _ in range(n_studies)]
    assert np.mean([size.mean for size in sizes]) == pytest.approx(true, abs=0.08)
    # the exact interval is of d = g / J
    correction = 1 - 3 / (4 * (n - 1) - 1)
    hits = np.mean([size.low <= correction * true <= size.high for size in sizes])
    assert 0.92 <= hits <= 0.98
    values = rng.normal(0.4, 1.0, n)
    size, p = hedges_g(values), stats.ttest_1samp(values, 0).pvalue
    assert size.mean == pytest.approx(correction * values.mean() / values.std(ddof=1), rel=0.005)
    assert (size.low > 0 or size.high < 0) == (p < 0.05), "interval and t test tell the same"
    assert hedges_g(-values).low == pytest.approx(-size.high)
    for nothing in ([0.3], [], [0.1, 0.1, 0.1]):
        assert np.isnan(hedges_g(nothing).mean)


def test_rank_correlation_agrees_with_scipy_and_counts_days():
    rng = np.random.default_rng(6)
    x = rng.normal(size=9)
    y = x + rng.normal(size=9)
    got = rank_correlation(x, y, range(9))
    assert got.mean == pytest.approx(stats.spearmanr(x, y).statistic)
    assert got.low < got.mean <= got.high <= 1.0
    twice = rank_correlation(np.repeat(x, 2), np.repeat(y, 2), np.repeat(range(9), 2))
    assert twice == got, "pairs of one day are averaged"
    assert rank_correlation(np.exp(x), y**3, range(9)).mean == pytest.approx(got.mean), "ranks only"
    assert np.isnan(rank_correlation([1, 2], [1, 2], "ab").mean)
    three = rank_correlation([1, 2, 3], [1, 2, 3], "abc")
    assert three.mean == 1.0
    assert np.isnan(three.low)
    assert np.isnan(rank_correlation([1, 1, 1, 1], [1, 2, 3, 4], "abcd").mean)


def test_rank_correlation_of_nothing_rarely_excludes_zero():
    rng = np.random.default_rng(7)
    excluded = 0
    for number in range(120):
        got = rank_correlation(*rng.normal(size=(2, 10)), range(10), n_boot=400, seed=number)
        excluded += got.low > 0 or got.high < 0
    assert excluded / 120 <= 0.10


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hierarchical_bootstrap([1.0, 2.0], [["a"]]), "one length"),
        (lambda: hierarchical_bootstrap([1.0, np.nan], [["a", "b"]]), "finite"),
        (lambda: hierarchical_bootstrap([1.0], [["a"]], resampled=[True, True]), "one flag for each of 1"),
        (lambda: ratio_of_means([1.0], [1.0, 2.0]), "one length"),
        (lambda: sign_flip_test([np.inf]), "finite"),
        (lambda: wilcoxon_test([np.nan]), "finite"),
        (lambda: holm([0.1, 1.2]), "between 0 and 1"),
        (lambda: equivalence([0.1, 0.2], 0.0), "margin must be above 0"),
        (lambda: power(1.0, 5), "either effect or margin"),
        (lambda: power(1.0, 5, effect=1.0, margin=1.0), "either effect or margin"),
        (lambda: rank_correlation([1.0], [1.0, 2.0], ["a"]), "one length"),
        (lambda: block_bootstrap([[1.0]], [[1.0, 2.0]], [["a"]] * 3), "expected error and spread"),
        (lambda: block_bootstrap([[1.0]], [[1.0]], [["a"]] * 2), "three lists"),
        (lambda: block_bootstrap([[1.0, 1.0], [1.0, np.nan]], [[1.0, 1.0], [1.0, np.nan]], PAIR), "share their blocks"),
        (lambda: block_bootstrap([[1.0], [1.0]], [[1.0], [0.0]], PAIR), "no spread"),
    ],
)
def test_refuses_what_does_not_fit(call, message):
    with pytest.raises(InputError, match=message):
        call()
