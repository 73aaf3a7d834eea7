"""MC_Maze, MC_RTT, DANDI 000070 and the Indy recordings: exact results, and each trap of these files."""

import json

import h5py
import numpy as np
import pytest
from nwb_files import counts_file, spikes_file
from nwb_layouts_b import (
    MAZE_RESET,
    MAZE_TRIALS,
    indy,
    maze_000070,
    mc_maze,
    mc_rtt,
    other_matlab,
    path_of_hand,
    spike_trains,
)

from bci_adapt.archive.sources.folder import Folder
from bci_adapt.data.any_file import read
from bci_adapt.data.nwb import open_nwb
from bci_adapt.data.prepare import inspect, prepare
from bci_adapt.data.session_files import read_session, write_session
from bci_adapt.errors import InputError

WIDTH = 50_000  # µs


def tally(session, trains_us, early=0):
    """Counts (bins, channels) of `trains_us`, one list of times in µs for each channel: (start, end] in integers.

    With `early` 1 it is [start, end), as the Neural Latents Benchmark counts.
    """
    ends = np.rint(session["time"].values * 1e6).astype(int) - early
    return np.array([[((t > end - WIDTH) & (t <= end)).sum() for t in map(np.asarray, trains_us)] for end in ends])


def bin_means(session, t_s, values):
    """Mean of the finite samples in (start, end], by loop."""
    times = np.rint(np.asarray(t_s) * 1e6).astype(int)
    ends = np.rint(session["time"].values * 1e6).astype(int)
    return np.array([np.nanmean(values[(times > end - WIDTH) & (times <= end)], axis=0) for end in ends])


def within(session, intervals):
    """Bins that lie wholly inside one of `intervals` (s)."""
    ends = np.rint(session["time"].values * 1e6).astype(int)
    edges = np.rint(np.asarray(intervals) * 1e6).astype(int)
    return np.array([any(a <= end - WIDTH and end <= b for a, b in edges) for end in ends])


def warned(session):
    return "; ".join(json.loads(session.attrs["warnings"]))


# MC_Maze

WHOLE = [(0.5, 2.0), (2.2, 4.0), (4.1, 5.9)]


def test_mc_maze_is_read_exactly(tmp_path):
    trains = spike_trains(5, WHOLE)
    trains[0] = np.union1d(trains[0], [1_000_000, 1_000_001])  # on an edge, and just behind it
    session = prepare(mc_maze(tmp_path / "a.nwb", trains), 0.05)
    assert session.attrs["layout"] == "mc_maze"
    np.testing.assert_array_equal(np.rint(session["time"].values * 1e6), np.arange(1, 121) * WIDTH)
    assert not session["segment"].values.any()
    names = ["M1/elec0", "M1/elec1", "M1/elec2", "PMd/elec3", "PMd/elec4"]
    assert session["channel"].values.tolist() == names == session["electrode"].values.tolist()
    # Held-out units count like all others; two units share the first electrode, the second carries none.
    pooled = [np.concatenate(trains[:2]), [], trains[2], trains[3], trains[4]]
    np.testing.assert_array_equal(session["counts"].values, tally(session, pooled, early=1))
    assert session.attrs["bin_edge"] == "[start, end)"
    assert not np.array_equal(session["counts"].values, tally(session, pooled))
    assert "2 of 5 units are held out" in warned(session)
    np.testing.assert_array_equal(session["valid"].values, within(session, WHOLE))
    t = np.arange(6001) / 1000
    position, velocity = path_of_hand(t)
    np.testing.assert_allclose(session["position"].values, bin_means(session, t, position), rtol=1e-12)
    np.testing.assert_allclose(session["recorded_velocity"].values, bin_means(session, t, velocity), rtol=1e-9)
    np.testing.assert_allclose(session["cursor_position"].values, session["position"].values + 5, rtol=1e-12)
    assert session["recorded_velocity"].dims == ("time", "axis")
    assert session["cursor_position"].dims == ("time", "cursor_position_axis")
    assert (session["position"].attrs["units"], session["recorded_velocity"].attrs["units"]) == ("mm", "mm/s")
    assert "recorded velocity is not" not in warned(session)
    assert session["trial_go_s"].values.tolist() == [1.0, 2.7, 4.6]
    write_session(session, tmp_path / "a.nc")
    assert read_session(tmp_path / "a.nc").identical(session)
    alone = prepare(tmp_path / "a.nwb", 0.05, per="unit")
    assert alone["channel"].values.tolist()[:3] == ["M1/elec0/unit1", "M1/elec0/unit2", "M1/elec2/unit1"]
    np.testing.assert_array_equal(alone["counts"].values, tally(alone, trains, early=1))


def test_mc_maze_missing_samples_pause_it_only_where_a_bin_is_lost(tmp_path):
    trains = spike_trains(5, WHOLE)
    odd = [1503, 1504, 3010, *range(4500, 4540)]  # up to 40 ms: less than a bin
    session = prepare(mc_maze(tmp_path / "a.nwb", trains, drop=odd, nan_rows=[2000, 2001]), 0.05)
    assert not session["segment"].values.any()
    t = np.delete(np.arange(6001) / 1000, odd)
    position = path_of_hand(t)[0]
    position[[2000, 2001]] = np.nan
    np.testing.assert_allclose(session["position"].values, bin_means(session, t, position), rtol=1e-12)
    hole = prepare(mc_maze(tmp_path / "b.nwb", trains, drop=range(2501, 2621)), 0.05)
    ends = np.rint(hole["time"].values * 1e6).astype(int)
    # The second segment starts at the first sample behind the hole, 2.621 s; its first bin ends 50 ms later.
    expected = [*range(WIDTH, 2_500_001, WIDTH), *range(2_671_000, 6_000_001, WIDTH)]
    assert ends.tolist() == expected
    assert hole["segment"].values.tolist() == [0] * 50 + [1] * (len(expected) - 50)
    assert not hole["velocity_valid"].values[50].any()
    np.testing.assert_array_equal(hole["valid"].values, within(hole, WHOLE))


def test_mc_maze_time_in_which_one_unit_was_not_observed_is_missing(tmp_path):
    seen = [(0.5, 2.0), (2.2, 3.0), (4.1, 5.9)]
    path = mc_maze(tmp_path / "a.nwb", spike_trains(5, WHOLE), last_observed=np.array(seen))
    session = prepare(path, 0.05)
    np.testing.assert_array_equal(session["valid"].values, within(session, seen))


def test_mc_maze_test_files_are_sessions_without_labels(tmp_path):
    trains = spike_trains(3, WHOLE)
    path = mc_maze(tmp_path / "a.nwb", trains, behaviour=False, heldout=np.zeros(3, dtype=bool))
    session = prepare(path, 0.05)
    assert session.attrs["layout"] == "mc_maze"
    assert "position" not in session
    assert "without labels" in warned(session)
    assert "held out" not in warned(session)
    assert np.rint(session["time"].values[[0, -1]] * 1e6).tolist() == [550_000, 5_900_000]  # as obs_intervals say
    pooled = [np.concatenate(trains[:2]), [], trains[2]]
    np.testing.assert_array_equal(session["counts"].values, tally(session, pooled))
    np.testing.assert_array_equal(session["valid"].values, within(session, WHOLE))


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"short": "hand_pos"}, "hand_pos/timestamps must be"),
        ({"short": "cursor_pos"}, "cursor_pos/timestamps must be"),
        ({"without": ["hand_pos"]}, "hand_pos is missing"),
        ({"heldout": np.array([b"no"] * 5)}, "units/heldout must say"),
    ],
)
def test_mc_maze_refuses(tmp_path, change, key):
    path = mc_maze(tmp_path / "wrong.nwb", spike_trains(5, WHOLE), **change)
    with pytest.raises(InputError, match=rf"wrong\.nwb.*{key}"):
        prepare(path, 0.05, layout="mc_maze")


# MC_RTT


def test_mc_rtt_is_read_exactly(tmp_path):
    trains = spike_trains(4, [(0, 4.8)])
    path = mc_rtt(tmp_path / "sub-Indy_desc-train_behavior+ecephys.nwb", trains)
    session = prepare(path, 0.05)
    assert session.attrs["layout"] == "mc_rtt"
    assert session.attrs["session_id"] == "sub-Indy_ses-rtt_train"  # the path names no session, the file does
    np.testing.assert_array_equal(np.rint(session["time"].values * 1e6), np.arange(1, 96) * WIDTH)
    np.testing.assert_array_equal(session["counts"].values, tally(session, trains))
    assert session["valid"].values.all()
    t = np.arange(4800) / 1000
    coarse = np.arange(0, 4804, 4) / 1000
    cursor = np.stack([np.interp(t, coarse, each) for each in path_of_hand(coarse)[0].T], axis=1)
    np.testing.assert_allclose(session["position"].values, bin_means(session, t, cursor), rtol=1e-9)
    assert session["axis"].values.tolist() == ["x", "y"]
    np.testing.assert_allclose(session["finger_position"].values[:, 1:], -session["position"].values / 10, rtol=1e-9)
    assert session["finger_position"].sizes["finger_position_axis"] == 3
    # finger_vel belongs to the tracker's frame: it is not the velocity of the cursor.
    assert "recorded_velocity" not in session
    assert session["finger_velocity"].dims == ("time", "finger_velocity_axis")
    inner = slice(1, None)
    mirrored = -10 * session["finger_velocity"].values
    assert np.corrcoef(mirrored[inner, 0], session["velocity"].values[inner, 0])[0, 1] > 0.99
    assert session["target_position"].values.tolist() == [[10, 10]] * 95
    assert "1 of 4 units are held out" in warned(session)
    assert "arbitrary cuts of 600 ms" in warned(session)
    assert "brought to 1 kHz" not in warned(session)
    assert "bins of 0.002 s repeat it" in warned(prepare(path, 0.002))


def test_mc_rtt_test_file_and_refusal(tmp_path):
    trains = spike_trains(4, [(0, 4.8)])
    session = prepare(mc_rtt(tmp_path / "a.nwb", trains, behaviour=False), 0.05)
    assert session.attrs["layout"] == "mc_rtt"
    assert "position" not in session
    np.testing.assert_array_equal(session["counts"].values, tally(session, trains))
    with pytest.raises(InputError, match=r"b\.nwb.*behavior/cursor_pos must have the columns x, y, found 4800"):
        prepare(mc_rtt(tmp_path / "b.nwb", trains, transposed=True), 0.05)


# DANDI 000070


def test_churchland_maze_is_read_exactly(tmp_path):
    trains = spike_trains(6, MAZE_TRIALS)
    session = prepare(maze_000070(tmp_path / "a.nwb", trains), 0.05)
    assert session.attrs["layout"] == "churchland_maze"
    starts = [1_000_000, 3_000_000, 5_000_000, 7_000_000]
    ends = [start + k * WIDTH for start in starts for k in range(1, 25)]  # 1.2 s of samples: 24 bins a trial
    assert np.rint(session["time"].values * 1e6).astype(int).tolist() == ends
    assert session["segment"].values.tolist() == [k for k in range(4) for _ in range(24)]
    areas = ["PMd/elec0", "PMd/elec1", "PMd/elec2", "M1/elec3", "M1/elec4", "M1/elec5"]
    assert session["channel"].values.tolist() == areas == session["electrode"].values.tolist()
    np.testing.assert_array_equal(session["counts"].values, tally(session, trains))
    assert session["valid"].values.all()
    t = np.concatenate([round(a * 1000) + np.arange(1201) for a, _ in MAZE_TRIALS]) / 1000
    hand = path_of_hand(np.arange(t.size) / 1000)[0]
    np.testing.assert_allclose(session["position"].values, bin_means(session, t, hand), rtol=1e-12)
    np.testing.assert_allclose(session["cursor_position"].values, session["position"].values + 1, rtol=1e-12)
    assert (session["eye_position"].values == 2).all()
    assert "recorded_velocity" not in session
    derived = np.diff(session["position"].values.reshape(4, 24, 2), axis=1) / 0.05
    np.testing.assert_allclose(session["velocity"].values.reshape(4, 24, 2)[:, 1:], derived)
    assert not session["velocity_valid"].values.reshape(4, 24, 2)[:, 0].any()
    assert session["trial_result"].values.tolist() == ["success", "failure", "discarded", "success"]
    np.testing.assert_array_equal(session["trial_go_s"].values, [1.4, 3.4, 5.4, np.nan])
    alone = prepare(tmp_path / "a.nwb", 0.05, per="unit")
    assert alone["channel"].values.tolist()[::5] == ["PMd/elec0/unit1", "M1/elec5/unit1"]


def test_churchland_maze_spikes_exist_only_where_every_unit_was_observed(tmp_path):
    seen = np.array([[1.0, 2.2], [3.32, 4.2], [7.0, 8.2]])
    path = maze_000070(tmp_path / "a.nwb", spike_trains(6, MAZE_TRIALS), last_observed=seen)
    session = prepare(path, 0.05)
    np.testing.assert_array_equal(session["valid"].values, within(session, seen))
    assert session["position_valid"].values.all()  # the hand was seen all the time


def test_churchland_maze_clock_that_runs_backwards(tmp_path):
    trains = spike_trains(6, MAZE_RESET)
    # The same time in both turns of the clock: 0 µs apart as numbers, minutes apart in truth.
    first = trains[0][: np.argmax(np.diff(trains[0]) < 0) + 1]
    second = trains[0][first.size :]
    trains[0] = np.concatenate([np.union1d(first, [3_000_050]), np.union1d(second, [3_000_050])])
    session = prepare(maze_000070(tmp_path / "a.nwb", trains, trials=MAZE_RESET), 0.05)
    ends = np.rint(session["time"].values * 1e6).astype(int)
    starts = [round(a * 1e6) for a, _ in MAZE_RESET]
    assert ends.tolist() == [start + k * WIDTH for start in starts for k in range(1, 25)]
    assert session["segment"].values.tolist() == [k for k in range(4) for _ in range(24)]
    assert "runs backwards 1 times" in warned(session)
    near = np.abs(ends[:, None] - ends[None]) < WIDTH
    np.testing.assert_array_equal(session["valid"].values, near.sum(axis=1) == 1)
    assert 0 < session["valid"].values.mean() < 1
    np.testing.assert_array_equal(session["counts"].values, tally(session, trains))
    for unit, times in enumerate(trains):
        turn = np.cumsum(np.diff(times, prepend=times[0]) < 0)
        short = sum((np.diff(times[turn == k]) < 1000).sum() for k in (0, 1))
        assert session["n_short_isi"].values[unit] == short
    # Spikes that start over more often than the clock does, or without it, are not what they are taken for.
    twice = [np.concatenate([times, times[:5]]) for times in trains]
    with pytest.raises(InputError, match=r"b\.nwb.*units/spike_times start over"):
        prepare(maze_000070(tmp_path / "b.nwb", twice, trials=MAZE_RESET), 0.05)
    with pytest.raises(InputError, match=r"c\.nwb.*units/spike_times start over"):
        prepare(maze_000070(tmp_path / "c.nwb", trains), 0.05)
    # Of other recordings nothing is known that would explain it.
    halves = np.concatenate([np.linspace(0.5, 9.5, 100), np.linspace(0.5, 9.5, 100)])
    again = np.concatenate([np.arange(1000), np.arange(1000)]) / 100
    with pytest.raises(InputError, match=r"d\.nwb.*units/spike_times start over"):
        prepare(spikes_file(tmp_path / "d.nwb", timestamps=again, spike_times=np.tile(halves, 4)), 0.05)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"unobserved": True}, "units/obs_intervals is missing"),
        ({"short": "Hand"}, "Position/Hand/timestamps must be"),
        ({"last_observed": np.array([[1.0, np.nan]])}, "units/obs_intervals must be finite"),
    ],
)
def test_churchland_maze_refuses(tmp_path, change, key):
    path = maze_000070(tmp_path / "wrong.nwb", spike_trains(6, MAZE_TRIALS), **change)
    with pytest.raises(InputError, match=rf"wrong\.nwb.*{key}"):
        prepare(path, 0.05)


# Indy and Loco


def cells():
    """Spikes of four channels and three units: the second channel is silent, others lack a unit."""
    a = spike_trains(6, [(3000, 3010)])
    return [[a[0], a[1], None], [None, None, None], [a[2], None, a[3]], [None, a[4], a[5]]]


def test_indy_is_read_exactly(tmp_path):
    given = cells()
    path = indy(tmp_path / "indy_20160630_01.mat", given)
    session = prepare(path, 0.05)
    wanted = {"layout": "indy", "subject": "indy", "session_id": "sub-indy_ses-20160630_01"}
    assert wanted.items() <= session.attrs.items()
    assert session.attrs["session_start"] == "2016-06-30T00:00:00+00:00"
    assert session["channel"].values.tolist() == ["M1/001", "M1/002", "M1/003", "S1/001"]
    assert session["electrode"].values.tolist() == session["channel"].values.tolist()
    np.testing.assert_array_equal(
        np.rint(session["time"].values * 1e6).astype(int), 3_000_000_000 + WIDTH * np.arange(1, 201)
    )
    pooled = [np.concatenate([each for each in units if each is not None] or [[]]) for units in given]
    np.testing.assert_array_equal(session["counts"].values, tally(session, pooled))
    assert session["n_spikes"].values.tolist() == [len(each) for each in pooled]
    t = 3000 + np.arange(2501) / 250
    cursor = path_of_hand(t - 3000)[0]
    np.testing.assert_allclose(session["position"].values, bin_means(session, t, cursor), rtol=1e-12)
    assert session["position"].attrs["units"] == "mm"
    assert session["finger_position_axis"].values.tolist() == ["z", "-x", "-y"]
    assert session["finger_position"].attrs["units"] == "cm"
    np.testing.assert_allclose(session["finger_position"].values[:, 1:], -session["position"].values / 10, rtol=1e-9)
    assert session["target_position"].values.tolist() == [[7, -7]] * 200
    write_session(session, tmp_path / "a.nc")
    assert read_session(tmp_path / "a.nc").identical(session)
    assert read(path, 0.05)["counts"].equals(session["counts"])


def test_indy_unsorted_and_sorted_units_apart(tmp_path):
    given = cells()
    session = prepare(indy(tmp_path / "loco_20170210_03.mat", given, orientation=True), 0.05, per="unit")
    filled = [(c, u) for c in range(4) for u in range(3) if given[c][u] is not None]
    bases = ["M1/001", "M1/002", "M1/003", "S1/001"]
    names = [f"{bases[c]}/{f'unit{u}' if u else 'unsorted'}" for c, u in filled]
    assert session["channel"].values.tolist() == names
    assert session["electrode"].values.tolist() == [bases[c] for c, _ in filled]
    np.testing.assert_array_equal(session["counts"].values, tally(session, [given[c][u] for c, u in filled]))
    assert session.attrs["subject"] == "loco"
    assert session["finger_orientation"].values.tolist() == [[1, 2, 3]] * 200
    assert session["finger_position"].sizes["finger_position_axis"] == 3


def test_indy_is_described(tmp_path):
    found = inspect(indy(tmp_path / "indy_20160630_01.mat", cells()))
    assert (found.chosen, found.nwb_version, found.session_id) == ("indy", "MATLAB 7.3", "sub-indy_ses-20160630_01")
    assert [(source.path, source.shape) for source in found.neural] == [("spikes", (4, 3))]
    shapes = {series.path: (series.shape, series.start_s, series.stop_s) for series in found.series}
    assert shapes["cursor_pos"] == ((2501, 2), 3000.0, 3010.0)
    assert {tried["name"] for tried in found.layouts if tried["score"] > 0} == {"indy"}
    with open_nwb(tmp_path / "indy_20160630_01.mat") as file:
        assert not any(key.startswith("#refs#") for key in file.objects)  # thousands in a real file, never listed


def _group(file):
    file["spikes"][0, 1] = file.create_group("somewhere").ref


def _null(file):
    file["spikes"][0, 1] = h5py.Reference()


def _text(file):
    file["spikes"][0, 1] = file["#refs#/chan_names0_0"].ref


def _elsewhere(file):
    away = file["#refs#"].create_dataset("away", (1, 3), "f8", external=[("other.bin", 0, 24)])
    file["spikes"][0, 1] = away.ref


def _object(file):
    away = file["#refs#"].create_dataset("away", (1, 3), h5py.vlen_dtype(np.float64))
    file["spikes"][0, 1] = away.ref


def _plain(file):
    del file["spikes"]
    file["spikes"] = np.zeros((3, 4))


def _turned(file):
    references = file["spikes"][()].T
    del file["spikes"]
    file.create_dataset("spikes", data=references, dtype=h5py.ref_dtype)


def _nameless(file):
    file["chan_names"][0, 1] = file["chan_names"][0, 0]


def _numbered(file):
    file["#refs#/number"] = np.array([[77.0], [49.0]])
    file["chan_names"][0, 1] = file["#refs#/number"].ref


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"upright": True}, r"cursor_pos must be \(2, 2501\), columns by the samples of t, found \(2501, 2\)"),
        ({"edit": _group}, r"spikes\{2,1\} leads to something else"),
        ({"edit": _null}, r"spikes\{2,1\} leads to nothing"),
        ({"edit": _text}, r"spikes\{2,1\} must be finite spike times"),
        ({"edit": _elsewhere}, r"spikes\{2,1\} is stored in another file"),
        ({"edit": _object}, r"spikes\{2,1\} leads to something else"),
        ({"edit": _plain}, "spikes must be a MATLAB cell array"),
        ({"edit": _turned}, "spikes must be units by the 4 channels of chan_names, found 3"),
        ({"edit": _nameless}, "chan_names must name every channel differently"),
        ({"edit": _numbered}, "chan_names must be text, found float64"),
        ({"scale": 1000.0}, "spikes spans .* another unit"),
    ],
)
def test_indy_refuses(tmp_path, change, message):
    path = indy(tmp_path / "indy_20160630_01.mat", cells(), **change)
    with pytest.raises(InputError, match=rf"indy_20160630_01\.mat: {message}"):
        prepare(path, 0.05)


def test_indy_cells_together_are_not_larger_than_what_is_read(tmp_path, monkeypatch):
    def repeat(file):
        file["#refs#/away"] = np.sort(np.random.default_rng(0).uniform(3000, 3010, (1, 7000)))
        for j in range(4):
            file["spikes"][0, j] = file["#refs#/away"].ref

    path = indy(tmp_path / "indy_20160630_01.mat", cells(), edit=repeat)
    assert prepare(path, 0.05)["n_spikes"].values.min() >= 7000
    monkeypatch.setattr("bci_adapt.data.nwb.MAX_BYTES", 150_000)
    with pytest.raises(InputError, match=r"spikes\{3,1\} brings the cells to more than"):
        prepare(path, 0.05)
    monkeypatch.undo()
    monkeypatch.setattr("bci_adapt.data.nwb.MAX_OBJECTS", 11)
    with pytest.raises(InputError, match=r"spikes has 12 cells"):
        prepare(path, 0.05)


def test_indy_cell_that_is_no_list_is_left_out_and_said(tmp_path):
    def spoil(file):
        file["#refs#/odd"] = np.ones((2, 2))
        file["spikes"][0, 1] = file["#refs#/odd"].ref

    session = prepare(indy(tmp_path / "indy_20160630_01.mat", cells(), edit=spoil), 0.05)
    assert not session["counts"].values[:, 1].any()
    assert "spikes{2,1} is a table of (2, 2)" in warned(session)


def test_other_matlab_files_get_one_clear_error(tmp_path):
    missing = r"results_20160630_01\.mat: a MATLAB 7\.3 file without the variables chan_names, cursor_pos, spikes, t;"
    with pytest.raises(InputError, match=missing):
        prepare(other_matlab(tmp_path / "results_20160630_01.mat"), 0.05)
    for name in ("renamed.mat", "indy_20161330_01.mat"):
        with pytest.raises(InputError, match=rf"{name}: .*must be named subject_yyyymmdd_number\.mat"):
            prepare(indy(tmp_path / name, cells()), 0.05)


def test_a_folder_of_both_kinds(tmp_path):
    indy(tmp_path / "indy_20170131_02.mat", cells())
    indy(tmp_path / "indy_20160630_01.mat", cells())
    mc_maze(tmp_path / "a.nwb", spike_trains(5, WHOLE))
    folder = Folder(tmp_path)
    table = folder.list()
    assert table.index.tolist() == ["sub-Jenkins_ses-full", "sub-indy_ses-20160630_01", "sub-indy_ses-20170131_02"]
    days = table["session_start"]
    assert (days.iloc[2] - days.iloc[1]).days == 215  # seven months and one day
    assert folder.fetch("sub-indy_ses-20170131_02").name == "indy_20170131_02.mat"


def test_no_layout_takes_the_file_of_another(tmp_path):
    made = {
        "perich": spikes_file(tmp_path / "p.nwb"),
        "wrist": counts_file(tmp_path / "w.nwb"),
        "mc_maze": mc_maze(tmp_path / "m.nwb", spike_trains(5, WHOLE)),
        "mc_rtt": mc_rtt(tmp_path / "r.nwb", spike_trains(4, [(0, 4.8)])),
        "churchland_maze": maze_000070(tmp_path / "c.nwb", spike_trains(6, MAZE_TRIALS)),
        "indy": indy(tmp_path / "indy_20160630_01.mat", cells()),
    }
    mine = {"mc_maze", "mc_rtt", "churchland_maze", "indy"}
    for name, path in made.items():
        found = inspect(path)
        assert found.chosen == name
        scores = {tried["name"]: tried["score"] for tried in found.layouts}
        assert not any(scores[other] for other in mine - {name})
        assert all(tried["reason"] for tried in found.layouts)
