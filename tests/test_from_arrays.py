"""Sessions from arrays: equal to that of a file that holds the same, refused at the door when they cannot be."""

import numpy as np
import pytest
import xarray as xr
from nwb_files import counts_file, spikes_file
from scipy.io import savemat

import bci_adapt as ba
from bci_adapt.data.prepare import prepare
from bci_adapt.data.session_files import open_session, read_session, write_session
from bci_adapt.data.sessions import concat, split
from bci_adapt.errors import InputError

TIMES = np.arange(1, 2001) / 100.0
POSITION = np.stack([5 * np.sin(TIMES), 5 * np.cos(1.3 * TIMES)], axis=1)


def trains(seed=0, n=4):
    rng = np.random.default_rng(seed)
    return [np.sort(rng.uniform(0, 20.0, 200)) for _ in range(n)]


def test_arrays_and_a_file_of_the_same_are_the_same_session(tmp_path):
    from_file = prepare(spikes_file(tmp_path / "a.nwb", electrodes=np.array([0, 1, 2, 3])), 0.05)
    made = ba.session(trains(), POSITION, TIMES, bin_s=0.05, channels=from_file["channel"].values.tolist())
    names = ["counts", "position", "velocity", "velocity_valid", "segment", "valid", "n_spikes", "n_short_isi"]
    xr.testing.assert_identical(
        made[names].drop_vars("electrode", errors="ignore").drop_attrs(),
        from_file[names].drop_vars(["electrode", "recorded_velocity_valid"]).drop_attrs(),
    )
    flat = np.concatenate(trains()), np.repeat(np.arange(4), 200)
    again = ba.session(flat[0], POSITION, TIMES, bin_s=0.05, spike_unit=flat[1])
    assert np.array_equal(again["counts"], made["counts"])


def test_counts_that_are_binned_already():
    counts = np.random.default_rng(0).poisson(2.0, (100, 3))
    made = ba.session(counts=counts, target=np.arange(100.0), bin_s=0.1, target_kind="emg", target_units="mV")
    assert np.array_equal(made["counts"], counts)
    assert made["time"].values[:2].tolist() == [0.1, 0.2]
    assert made["axis"].values.tolist() == ["x"]
    assert "velocity" not in made
    ends = np.concatenate([np.arange(1, 51), np.arange(61, 111)]) / 10.0
    gap = ba.session(counts=counts, target=np.arange(100.0), target_time_s=ends, bin_s=0.1)
    assert np.flatnonzero(np.diff(gap["segment"])).tolist() == [49]
    unlabelled = ba.session(trains(), bin_s=0.05)
    assert unlabelled["counts"].values.sum() == 800
    assert unlabelled.sizes["axis"] == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "exactly one"),
        ({"spikes": trains(), "counts": np.ones((4, 4))}, "exactly one"),
        ({"spikes": trains(), "target": POSITION}, "target_time_s is needed"),
        ({"spikes": trains(), "target": POSITION, "target_time_s": TIMES[:-1]}, r"must be \(2000,\)"),
        ({"spikes": [[np.nan], [1.0]]}, "finite times"),
        ({"spikes": [[1.0]]}, "at least two"),
        ({"spikes": [1.0, 2.0], "spike_unit": [0.0, 1.0]}, "whole number per spike"),
        ({"counts": np.full((9, 2), 0.5)}, "whole numbers"),
        ({"counts": np.ones((9, 2)), "target": np.ones(8)}, "a row for each of 9 bins"),
        ({"counts": np.ones((9, 2)), "target": np.ones(9), "target_time_s": np.ones(9)}, "must rise"),
        ({"counts": np.ones((9, 2)), "channels": ["a"]}, "must name 2 channels"),
        ({"counts": np.ones((9, 2)), "target": np.ones((9, 2)), "axes": ["x"]}, "must name 2 columns"),
        ({"counts": np.ones((9, 2)), "target": "text"}, "must be numbers"),
        ({"counts": np.ones((9, 2)), "session_start": "yesterday"}, "ISO 8601"),
        ({"counts": np.ones((9, 2)), "target": np.ones(9), "target_kind": "velocity"}, "cannot be 'velocity'"),
    ],
)
def test_what_cannot_be_used_is_named(given, message):
    with pytest.raises(InputError, match=message) as caught:
        ba.session(**given, bin_s=0.05, session_id="monday")
    assert "monday" in str(caught.value)


def test_files_of_arrays_are_read_by_their_names(tmp_path):
    flat = {"spikes": np.concatenate(trains()), "spike_unit": np.repeat(np.arange(4), 200)}
    rest = {"target": POSITION, "target_time_s": TIMES, "channels": ["a", "b", "c", "d"], "target_units": "cm"}
    np.savez(tmp_path / "monday.npz", **flat, **rest)
    savemat(tmp_path / "monday.mat", flat | rest)
    sessions = [ba.read(tmp_path / f"monday.{kind}", bin_s=0.05) for kind in ("npz", "mat")]
    assert np.array_equal(sessions[0]["counts"], sessions[1]["counts"])
    assert sessions[0].attrs["session_id"] == "monday"
    assert sessions[1]["channel"].values.tolist() == ["a", "b", "c", "d"]
    np.savez(tmp_path / "odd.npz", spike=np.ones(3))
    with pytest.raises(InputError, match="did you mean 'spikes'"):
        ba.read(tmp_path / "odd.npz", bin_s=0.05)
    np.savez(tmp_path / "object.npz", spikes=np.array([[1.0], [1.0, 2.0]], dtype=object))
    with pytest.raises(InputError, match="holds Python objects, which are not read"):  # would need pickle
        ba.read(tmp_path / "object.npz", bin_s=0.05)
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(InputError, match=r"a file of arrays .* was expected, this is none"):
        ba.read(tmp_path / "text.npz", bin_s=0.05)


def test_read_takes_any_file(tmp_path):
    path = counts_file(tmp_path / "a.nwb")
    session = ba.read(path, bin_s=0.05)
    write_session(session, tmp_path / "a.nc")
    assert ba.read(tmp_path / "a.nc").identical(session)
    for call, message in [
        (lambda: ba.read(path), "bin_s"),
        (lambda: ba.read(tmp_path / "a.nc", bin_s=0.1), "prepared in bins of 0.05"),
        (lambda: ba.read(tmp_path / "a.nc", per="unit"), "no options"),
        (lambda: ba.read(tmp_path / "none.npz", bin_s=0.05), "no such file"),
    ]:
        with pytest.raises(InputError, match=message):
            call()


def test_a_session_is_opened_without_reading_it(tmp_path):
    session = prepare(counts_file(tmp_path / "a.nwb"), 0.05)
    write_session(session, tmp_path / "a.nc")
    with open_session(tmp_path / "a.nc") as lazy:
        assert not lazy["counts"].variable._in_memory
        assert lazy["counts"][5:7].values.tolist() == session["counts"][5:7].values.tolist()
        assert not lazy["counts"].variable._in_memory
    assert read_session(tmp_path / "a.nc").identical(session)


def test_days_are_put_behind_one_another(tmp_path):
    days = []
    for number, day in enumerate(("2014-03-05", "2014-03-03")):
        session = prepare(counts_file(tmp_path / f"{number}.nwb", n_bins=40, seed=number), 0.05)
        days.append(session.assign_attrs(session_start=f"{day}T00:00:00+00:00", session_id=f"day{number}"))
    both = concat(days)
    assert both.sizes["time"] == 80
    assert both["session"].values.tolist() == ["day1"] * 40 + ["day0"] * 40  # oldest first
    assert both["segment"].values.tolist() == [0] * 40 + [1] * 40
    assert np.array_equal(both["counts"], np.concatenate([days[1]["counts"], days[0]["counts"]]))
    assert both.sizes["trial"] == days[0].sizes["trial"] + days[1].sizes["trial"]
    other = days[0].assign_coords(channel=["a", "b", "c", "d"])
    for second, message in [
        (other, "channels of"),
        (days[0].assign_attrs(bin_s=0.1), "bins"),
        (days[0].assign_coords(axis=["u", "v"]), "axes"),
    ]:
        with pytest.raises(InputError, match=message):
            concat([days[1], second])


def test_days_with_and_without_a_date_are_not_put_in_an_order():
    def day(number, start=""):
        counts = np.full((9, 2), 1 + number)
        return ba.session(counts=counts, bin_s=0.1, channels=["a", "b"], session_start=start, session_id=f"day{number}")

    undated, dated = day(0), day(1, "2026-01-31")
    for days in ([undated, dated], [dated, undated, day(2)]):
        with pytest.raises(InputError, match=r"day0: does not say when it was recorded.*day1 does.*session_start"):
            ba.concat(days)
    assert ba.concat([day(3), undated])["session"].values.tolist() == ["day3"] * 9 + ["day0"] * 9  # as they were given
    assert ba.concat([dated, day(4, "2026-01-30")])["session"].values[0] == "day4"


def test_a_name_of_the_schema_is_no_name_of_a_kinematic():
    for name in ("axis", "channel", "trial_result", "n_spikes", "evaluated", "hand_axis"):
        with pytest.raises(InputError, match=r"reserved|cannot be"):
            ba.session(counts=np.ones((9, 2)), target=np.ones(9), bin_s=0.1, target_kind=name)


def test_spikes_on_another_clock_are_refused():
    for wrong in ([each * 1000.0 + 30.0 for each in trains()], [each + 1e5 for each in trains()]):
        with pytest.raises(InputError, match=r"one clock|another unit"):
            ba.session(wrong, POSITION, TIMES, bin_s=0.05)


def test_days_in_other_units_are_not_joined(tmp_path):
    session = prepare(counts_file(tmp_path / "a.nwb", n_bins=40), 0.05)
    other = session.copy(deep=True)
    other["position"].attrs["units"] = "mm"
    with pytest.raises(InputError, match="units and columns"):
        concat([session, other])


def test_a_clock_that_starts_over_is_refused():
    twice = [np.concatenate([each, each]) for each in trains()]
    with pytest.raises(InputError, match=r"start over|out of order"):
        ba.session(twice, POSITION, TIMES, bin_s=0.05)
    together = np.argsort(np.concatenate(trains()), kind="stable")  # all channels in one stream, as they were recorded
    flat = np.concatenate(trains())[together], np.repeat(np.arange(4), 200)[together]
    made = ba.session(flat[0], POSITION, TIMES, bin_s=0.05, spike_unit=flat[1])
    assert np.array_equal(made["counts"], ba.session(trains(), POSITION, TIMES, bin_s=0.05)["counts"])


def test_a_concatenation_is_split_by_the_clock_of_each_session(tmp_path):
    days = []
    for number in range(2):
        session = prepare(spikes_file(tmp_path / f"{number}.nwb"), 0.05)  # 20 s, trials from 1 and 11 s on
        start = f"2014-03-0{number + 1}T00:00:00+00:00"
        days.append(session.assign_attrs(session_id=f"day{number}", session_start=start))
    stream, rest = split(concat(days), 25.0, 5.0)
    assert stream["trial_session"].values.tolist() == ["day0", "day0", "day1"]
    assert rest["trial_session"].values.tolist() == ["day1"]
    assert rest["trial_start_s"].values.tolist() == [11.0]
