"""Intervals cover what they say, and the tests agree with scipy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from bci_adapt.errors import InputError
from bci_adapt.statistics import hierarchical_bootstrap, ratio_of_means, sign_flip_test, t_interval, tail_probability


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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hierarchical_bootstrap([1.0, 2.0], [["a"]]), "one length"),
        (lambda: hierarchical_bootstrap([1.0, np.nan], [["a", "b"]]), "finite"),
        (lambda: hierarchical_bootstrap([1.0], [["a"]], resampled=[True, True]), "one flag for each of 1"),
        (lambda: ratio_of_means([1.0], [1.0, 2.0]), "one length"),
        (lambda: sign_flip_test([np.inf]), "finite"),
    ],
)
def test_refuses_what_does_not_fit(call, message):
    with pytest.raises(InputError, match=message):
        call()
