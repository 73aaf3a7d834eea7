"""Bins: edges, conservation, round-off, gaps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bci_adapt.data import binning
from bci_adapt.data.layouts.grids import Grid
from bci_adapt.errors import InputError


def grid(start_s, n_bins, bin_s):
    starts = int(binning.to_ticks(start_s)) + binning.bin_ticks(bin_s) * np.arange(n_bins)
    return Grid(starts, np.zeros(n_bins, np.int32), bin_s)


def spike_counts(times_s, channel, n_channels, start_s, n_bins, bin_s):
    """Counts of a session's own path; every spike is its own unit, which is of the channel given."""
    channel = np.asarray(channel)
    own = grid(start_s, n_bins, bin_s)
    return own.counts(np.asarray(times_s, float), np.arange(channel.size), channel, n_channels)


@pytest.mark.parametrize(
    ("duration_s", "bin_s", "n"), [(1.0, 0.02, 50), (0.3, 0.1, 3), (60.0, 0.001, 60_000), (0.7, 0.05, 14)]
)
def test_whole_bins_despite_round_off(duration_s, bin_s, n):
    assert binning.whole_bins(duration_s, bin_s) == n
    assert grid(0.0, n, bin_s).ends_s[-1] == pytest.approx(duration_s, abs=1e-9)


def test_a_spike_on_an_edge_belongs_to_the_bin_it_ends():
    edges = np.arange(51) * 0.02
    counts = spike_counts(edges, np.zeros(51, int), 1, 0.0, 50, 0.02)
    assert counts[:, 0].tolist() == [1] * 50  # the spike at the very start belongs to the bin before
    assert spike_counts([0.03, 0.031], [0, 0], 2, 0.0, 3, 0.02).tolist() == [[0, 0], [2, 0], [0, 0]]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-50_000, 250_000), max_size=60),
    st.integers(1, 4),
    st.sampled_from([0.001, 0.02, 0.05]),
    st.integers(-20_000, 20_000),
)
def test_every_spike_inside_is_counted_once(ticks, n_channels, bin_s, start):
    times, start_s, n_bins = np.array(ticks) / 1e6, start / 1e6, 4
    channel = np.arange(len(ticks)) % n_channels
    counts = spike_counts(times, channel, n_channels, start_s, n_bins, bin_s)
    width, expected = round(bin_s * 1e6), np.zeros((n_bins, n_channels), int)
    for t, c in zip(ticks, channel, strict=True):
        row = -(-(t - start) // width) - 1  # in whole numbers: the bin whose end is the first at or after t
        if 0 <= row < n_bins:
            expected[row, c] += 1
    assert counts.tolist() == expected.tolist()
    shuffled = np.random.default_rng(0).permutation(len(ticks))
    again = spike_counts(times[shuffled], channel[shuffled], n_channels, start_s, n_bins, bin_s)
    assert np.array_equal(again, counts)
    whole = spike_counts(times, channel, n_channels, start_s, 2, 2 * bin_s)
    assert np.array_equal(binning.rebin_counts(counts, binning.rebin_rows(np.zeros(4), bin_s, 2 * bin_s)), whole)


def test_rebinning_sums_whole_bins_inside_segments():
    counts = np.arange(14, dtype=np.uint16).reshape(7, 2)
    rows = binning.rebin_rows(np.array([0, 0, 0, 0, 0, 1, 1]), 0.02, 0.04)
    assert rows.tolist() == [[0, 1], [2, 3], [5, 6]]
    assert binning.rebin_counts(counts, rows).tolist() == [[2, 4], [10, 12], [22, 24]]
    for other in (0.03, 0.01):
        with pytest.raises(InputError, match="multiple"):
            binning.rebin_rows(np.zeros(7, int), 0.02, other)
    with pytest.raises(InputError, match="65,535"):
        binning.rebin_counts(np.full((2, 1), 40_000, np.uint16), np.array([[0, 1]]))


def test_means_skip_missing_samples_and_say_where_there_are_none():
    times = np.array([0.01, 0.02, 0.03, 0.05])
    values = np.array([[1.0], [3.0], [np.nan], [7.0]])
    rows = binning.bin_rows(binning.to_ticks(times), [0], [4], 0.02)
    means = binning.row_means(values, rows, 4)
    np.testing.assert_array_equal(means[:, 0], [2.0, np.nan, 7.0, np.nan])


def test_differences_and_smoothing_stay_in_the_past_and_in_their_segment():
    position = np.array([[0.0], [1.0], [3.0], [10.0], [11.0]])
    segment = np.array([0, 0, 0, 1, 1])
    velocity = binning.backward_difference(position, segment, 0.5)
    np.testing.assert_array_equal(velocity[:, 0], [np.nan, 2, 4, np.nan, 2])
    x, marks = np.random.default_rng(0).standard_normal((60, 2)), np.repeat([0, 1], 30)
    for kind in ("exponential", "boxcar"):
        smooth = binning.causal_smooth(x, marks, 0.05, 0.2, kind)
        later = x.copy()
        later[45:] = 99.0
        assert np.array_equal(binning.causal_smooth(later, marks, 0.05, 0.2, kind)[:45], smooth[:45])
        other = x.copy()
        other[:30] = -7.0
        assert np.array_equal(binning.causal_smooth(other, marks, 0.05, 0.2, kind)[30:], smooth[30:])
    decay, expected = np.exp(-0.05 / 0.2), x[0]
    for t in range(1, 30):
        expected = decay * expected + (1 - decay) * x[t]
    np.testing.assert_allclose(binning.causal_smooth(x, marks, 0.05, 0.2)[29], expected, rtol=1e-12)
    np.testing.assert_allclose(binning.causal_smooth(x, marks, 0.05, 0.2, "boxcar")[10], x[7:11].mean(0), rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: binning.bin_ticks(0), "positive"),
        (lambda: binning.bin_ticks(float("nan")), "positive"),
        (lambda: binning.bin_ticks(1 / 3e6), "whole number"),
        (lambda: spike_counts([np.nan], [0], 1, 0, 1, 0.1), "finite"),
        (lambda: spike_counts([0.1], [0], 10**9, 0, 100, 0.1), "larger bin_s"),
        (lambda: binning.causal_smooth(np.zeros((3, 1)), np.zeros(3), 0.1, 1.0, "gaussian"), "gaussian"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
