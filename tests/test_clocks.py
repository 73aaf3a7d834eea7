"""Clocks that are nearly the bin's own: every way into a session keeps their labels, or says how many are lost."""

import json

import numpy as np
import pytest
from nwb_files import counts_file, spikes_file

import bci_adapt as ba
from bci_adapt.data.prepare import prepare
from bci_adapt.errors import InputError


def path_of(times_s):
    return np.stack([5 * np.sin(times_s), 5 * np.cos(1.3 * times_s)], axis=1)


def trains(duration_s, n=4):
    rng = np.random.default_rng(0)
    return [np.sort(rng.uniform(0, duration_s, 400)) for _ in range(n)]


def clock(kind, duration_s=120.0):
    times_s = np.arange(0, duration_s, 1 / (19.98 if kind == "19.98 Hz" else 20.0))
    if kind == "jitter":
        times_s = times_s + np.random.default_rng(1).uniform(-2e-3, 2e-3, times_s.size)
    if kind == "milliseconds":
        times_s = np.round(times_s + np.random.default_rng(1).uniform(-5e-4, 5e-4, times_s.size), 3)
    return times_s + 10.0


KINDS = ["exact", "jitter", "19.98 Hz", "milliseconds", "float32"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_signal_sampled_once_a_bin_keeps_every_label_in_files_and_arrays(tmp_path, kind):
    times_s = clock(kind)
    stamps = times_s.astype(np.float32) if kind == "float32" else times_s
    position = path_of(times_s)
    spikes = [train + 10.0 for train in trains(120.0)]
    flat = {"spike_times": np.concatenate(spikes), "spike_times_index": np.cumsum([400] * 4)}
    file = spikes_file(tmp_path / "a.nwb", timestamps=stamps, position=position, **flat)
    for made in (prepare(file, 0.05), ba.session(spikes, position, stamps, bin_s=0.05, target_units="cm")):
        assert abs(made.sizes["time"] - 119.95 / 0.05) <= 1
        assert np.unique(made["segment"].values).size == 1
        assert np.isfinite(made["position"].values).all()
        assert np.isfinite(made["velocity"].values[1:]).all()
        assert made["velocity_valid"].values[1:].all()
        # what a bin holds is the signal at the bin's end, so neither jitter nor drift shows in the velocity
        assert np.abs(made["position"].values - path_of(made["time"].values)).max() < 0.02
        error = made["velocity"].values[1:] - np.diff(path_of(made["time"].values), axis=0) / 0.05
        assert np.abs(error).max() < (0.4 if kind == "jitter" else 0.15)


def test_exact_stamps_give_the_samples_themselves():
    times_s, position = clock("exact"), path_of(clock("exact"))
    made = ba.session([train + 10 for train in trains(120.0)], position, times_s, bin_s=0.05, target_units="cm")
    assert np.array_equal(made["position"].values, position[1:])


def test_a_missing_sample_is_missing_and_is_said():
    times_s, position = clock("jitter"), path_of(clock("jitter"))
    position[700] = np.nan
    made = ba.session([train + 10 for train in trains(120.0)], position, times_s, bin_s=0.05, target_units="cm")
    lost = np.flatnonzero(np.isnan(made["position"].values[:, 0]))
    assert 1 <= lost.size <= 2
    assert abs(made["time"].values[lost[0]] - times_s[700]) < 0.1
    assert any("position has no value in" in each for each in json.loads(made.attrs["warnings"]))


def test_a_pause_is_not_filled():
    times_s = clock("jitter")
    times_s[1200:] += 3.0
    made = ba.session([train + 10 for train in trains(125.0)], path_of(times_s), times_s, bin_s=0.05, target_units="cm")
    assert np.unique(made["segment"].values).size == 2
    gap = (made["time"].values > times_s[1199] + 0.02) & (made["time"].values < times_s[1200])
    assert not gap.any()


def test_a_slower_clock_than_the_bins_is_refused():
    times_s = np.arange(0, 100, 1 / 19.0)
    with pytest.raises(InputError, match="cannot fill bins"):
        ba.session(trains(100.0), path_of(times_s), times_s, bin_s=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_counts_on_nearly_the_clock_of_the_bins(tmp_path, kind):
    ends_s = clock(kind)
    stamps = ends_s.astype(np.float32) if kind == "float32" else ends_s
    counts, position = np.random.default_rng(2).poisson(1.0, (ends_s.size, 4)), path_of(ends_s)
    arrays = ba.session(counts=counts, target=position, target_time_s=stamps, bin_s=0.05, target_units="cm")
    assert np.array_equal(arrays["counts"].values, counts)
    assert np.array_equal(arrays["position"].values, position)
    assert np.abs(arrays["time"].values - ends_s).max() < 0.0126
    assert arrays["valid"].values.all()
    n_segments = np.unique(arrays["segment"].values).size
    assert np.count_nonzero(~np.isfinite(arrays["velocity"].values[:, 0])) == n_segments
    assert n_segments == 1 or (kind == "19.98 Hz" and n_segments < 12)
    told = [each for each in json.loads(arrays.attrs["warnings"]) if "drifts away" in each]
    assert len(told) == (kind == "19.98 Hz")


@pytest.mark.parametrize("rate", [20.0, 19.98, 20.00131])
def test_rows_with_a_rate_that_is_nearly_that_of_the_bins(tmp_path, rate):
    made = prepare(counts_file(tmp_path / "a.nwb", rate=rate), 0.05)
    assert made.sizes["time"] == 400
    said = [each for each in json.loads(made.attrs["warnings"]) if "are taken for bins of 0.05 s" in each]
    assert len(said) == (rate != 20.0)
    assert np.abs(made["time"].values - (np.arange(400) / rate + 0.05)).max() < 0.0127
    with pytest.raises(InputError, match=r"not a whole multiple|not whole microseconds"):
        prepare(counts_file(tmp_path / "b.nwb", rate=rate), 0.07)


def test_ends_of_another_width_than_was_said_are_refused():
    ends_s = np.arange(1, 101) * 0.06
    with pytest.raises(InputError, match=r"rises by 0\.06 s from bin to bin, 0\.05 s were said"):
        ba.session(counts=np.ones((100, 3)), target=np.ones(100), target_time_s=ends_s, bin_s=0.05)


def test_bins_that_are_lost_to_dropped_samples_are_reported_by_every_route(tmp_path):
    times_s = clock("exact")
    kept = np.ones(times_s.size, bool)
    kept[100::10] = False
    spikes = [train + 10.0 for train in trains(120.0)]
    flat = {"spike_times": np.concatenate(spikes), "spike_times_index": np.cumsum([400] * 4)}
    file = spikes_file(tmp_path / "a.nwb", timestamps=times_s[kept], position=path_of(times_s[kept]), **flat)
    given = ba.session(spikes, path_of(times_s[kept]), times_s[kept], bin_s=0.05)
    n_pauses = int(np.count_nonzero(~kept[:-1]))
    for session in (given, prepare(file, 0.05)):
        said = [each for each in json.loads(session.attrs["warnings"]) if " pauses " in each]
        assert len(said) == 1
        assert f"pauses {n_pauses} times" in said[0]
        assert f"{session.sizes['time']} bins are left" in said[0]
    whole = ba.session(spikes, path_of(times_s), times_s, bin_s=0.05)
    assert "pauses" not in whole.attrs["warnings"]
