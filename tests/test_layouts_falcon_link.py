"""FALCON M1, M2, H1, H2, LINK and cursor BMI: what a file says is read exactly, and each trap of these files."""

import json
import re

import h5py
import numpy as np
import pytest
from nwb_files import counts_file, spikes_file
from nwb_layouts_a import MUSCLES, benchmark_counts, bmi_file, h1_file, h2_file, link_file, m1_file, m2_file, trains

from bci_adapt.data.channels import match
from bci_adapt.data.prepare import inspect, prepare
from bci_adapt.data.session_files import read_session, write_session
from bci_adapt.errors import InputError

TRIALS_MS = [np.arange(0, 100, 20), np.arange(101, 201, 20), np.arange(190, 310, 20), np.arange(2000, 2100, 20)]
"""Starts of rows of four trials: a gap of 21 ms instead of 20, an overlap of 9 ms, a pause."""
M2_STAMPS = np.concatenate(TRIALS_MS) / 1000
STARTS_MS, SIZES = [0, 101, 190, 2000], [5, 5, 6, 5]


def counted(spikes, after_us, upto_us):
    """Spikes of every unit in (after, upto] of every row, in whole microseconds, by comparison alone."""
    table = np.zeros((len(after_us), len(spikes)), dtype=int)
    for unit, times in enumerate(spikes):
        times_us = np.rint(np.asarray(times) * 1e6).astype(int)
        inside = (times_us[None, :] > np.asarray(after_us)[:, None]) & (
            times_us[None, :] <= np.asarray(upto_us)[:, None]
        )
        table[:, unit] = inside.sum(axis=1)
    return table


def critical(stamps_us):
    """Spikes at every critical time: on each edge of 20 ms around each stamp, one microsecond before it and after."""
    times = {stamp + k * 20_000 + shift for stamp in stamps_us for k in (-1, 0, 1) for shift in (-1, 0, 1)}
    return np.sort(np.array([t for t in times if t > 0])) / 1e6


# FALCON M1 and M2: two opposite conventions


@pytest.mark.parametrize("random", [False, True])
def test_m1_rows_are_stamped_with_their_end_and_m2_rows_with_their_start(tmp_path, random):
    stamps_us = 20_000 * np.arange(60)
    spikes = trains(64, 1.2, seed=3) if random else [critical(stamps_us[i :: 7 + i]) for i in range(64)]
    session = prepare(m1_file(tmp_path / "m1.nwb", spikes=spikes, n_rows=60), 0.02)
    ends = benchmark_counts(spikes, np.arange(60) * 20 / 1000, starts=False)
    assert session.attrs["bin_edge"] == "[start, end)"
    assert random or not np.array_equal(ends, counted(spikes, stamps_us - 20_000, stamps_us))
    np.testing.assert_array_equal(session["counts"].values, ends)
    np.testing.assert_array_equal(np.rint(session["time"].values * 1e6), stamps_us)
    assert not np.array_equal(ends, counted(spikes, stamps_us, stamps_us + 20_000))  # the other convention differs

    stamps_us = np.rint(M2_STAMPS * 1e6).astype(int)
    spikes = trains(96, 2.1, seed=4) if random else [critical(stamps_us[i % 5 :: 3]) for i in range(96)]
    session = prepare(m2_file(tmp_path / "m2.nwb", spikes=spikes, stamps=M2_STAMPS), 0.02)
    starts = benchmark_counts(spikes, M2_STAMPS, starts=True)
    np.testing.assert_array_equal(session["counts"].values, starts)
    np.testing.assert_array_equal(np.rint(session["time"].values * 1e6), stamps_us + 20_000)
    assert not np.array_equal(starts, counted(spikes, stamps_us - 20_000, stamps_us))


def test_m1_muscles_are_the_only_target(tmp_path):
    path = m1_file(tmp_path / "a.nwb", muscles=MUSCLES[::-1])
    session, wide = prepare(path, 0.02), prepare(path, 0.04)
    assert session["emg"].dims == ("time", "axis")
    assert session["axis"].values.tolist() == sorted(MUSCLES)
    assert session["emg"].attrs["units"] == "mV"
    assert not {"position", "velocity"} & set(session.data_vars)
    place = {muscle: i for i, muscle in enumerate(MUSCLES[::-1])}
    expected = np.stack([np.arange(100) * 0.25 + 100 * place[muscle] for muscle in sorted(MUSCLES)], axis=1)
    np.testing.assert_array_equal(session["emg"].values, expected)
    np.testing.assert_array_equal(wide["emg"].values, expected.reshape(50, 2, 16).mean(axis=1))
    np.testing.assert_array_equal(wide["counts"].values, session["counts"].values.reshape(50, 2, 64).sum(axis=1))
    np.testing.assert_array_equal(wide["time"].values, session["time"].values[1::2])
    mask = np.arange(100) % 7 != 3
    np.testing.assert_array_equal(session["evaluated"].values, mask)
    np.testing.assert_array_equal(wide["evaluated"].values, mask[::2] & mask[1::2])
    assert session["channel"].values[[0, 63]].tolist() == ["H_electrode_group/elec0", "I_electrode_group/elec63"]
    assert session.attrs["channel_identity"] == "electrode"  # its table has no labels, but ids
    assert "named by their ids" in session.attrs["warnings"]
    assert (session.attrs["subject"], session.attrs["split"]) == ("MonkeyL", "held-in-calib")
    assert session.attrs["session_id"] == "sub-MonkeyL_ses-L_20120924_held_in_calib"
    assert session["trial_go_s"].values.tolist() == [0.2, 1.1]
    write_session(wide, tmp_path / "s.nc")
    assert read_session(tmp_path / "s.nc").identical(wide)


def test_m1_rows_of_another_width_are_what_their_timestamps_say(tmp_path):
    spikes = trains(64, 3.0, seed=6)
    path = m1_file(tmp_path / "a.nwb", spikes=spikes, stamps=np.arange(60) * 0.05)
    expected = benchmark_counts(spikes, np.arange(60) * 0.05, starts=False, width_s=0.05)
    np.testing.assert_array_equal(prepare(path, 0.05)["counts"].values, expected)
    with pytest.raises(InputError, match=r"a\.nwb: acquisition/preprocessed_emg/APL is binned at 0\.05 s and 0\.02 s"):
        prepare(path, 0.02)


def test_m1_time_outside_of_obs_intervals_is_not_valid(tmp_path):
    session = prepare(m1_file(tmp_path / "a.nwb", observed=[[0.1, 0.5], [0.5, 1.01]]), 0.02)
    ends_us = 20_000 * np.arange(100)
    np.testing.assert_array_equal(session["valid"].values, (ends_us >= 120_000) & (ends_us <= 1_010_000))


def test_m2_every_gap_starts_a_segment_and_overlap_is_not_valid(tmp_path):
    session = prepare(m2_file(tmp_path / "a.nwb", stamps=M2_STAMPS), 0.02)
    segment = np.repeat(np.arange(4), SIZES)
    np.testing.assert_array_equal(session["segment"].values, segment)
    shared = np.zeros(21, dtype=bool)
    shared[[9, 10]] = True  # (0.181, 0.201] and (0.190, 0.210]
    np.testing.assert_array_equal(session["valid"].values, ~shared)
    first = np.concatenate([[True], np.diff(segment) > 0])
    np.testing.assert_array_equal(session["velocity_valid"].values.all(axis=1), ~first)
    base = np.arange(21) ** 2 % 97
    position = 0.001 * np.stack([base, base + 10], axis=1)
    np.testing.assert_allclose(session["position"].values, position, rtol=1e-15)
    np.testing.assert_allclose(session["recorded_velocity"].values, 500 * position, rtol=1e-12)
    np.testing.assert_allclose(session["velocity"].values[~first], (np.diff(position, axis=0) / 0.02)[~first[1:]])
    assert session["axis"].values.tolist() == ["index", "mrs"]
    np.testing.assert_allclose(session["trial_target"].values, [[0.25, 0.75], [0.5, 0.1]], rtol=1e-6)

    wide = prepare(m2_file(tmp_path / "b.nwb", stamps=M2_STAMPS), 0.04)
    mask = np.arange(21) % 5 != 2
    rows = np.array([[0, 1], [2, 3], [5, 6], [7, 8], [10, 11], [12, 13], [14, 15], [16, 17], [18, 19]])
    np.testing.assert_array_equal(wide["evaluated"].values, mask[rows].all(axis=1))
    np.testing.assert_array_equal(wide["counts"].values, session["counts"].values[rows].sum(axis=1, dtype=int))
    np.testing.assert_allclose(wide["position"].values, position[rows].mean(axis=1))
    ends = [s + 40 * (i + 1) for s, n in zip(STARTS_MS, SIZES, strict=True) for i in range(n // 2)]
    np.testing.assert_allclose(1000 * wide["time"].values, ends)


def test_m2_splits_are_one_animal(tmp_path):
    splits = ["held-in-calib", "held-in-minival", "held_out_calib"]
    made = [prepare(m2_file(tmp_path / f"{s}.nwb", stamps=M2_STAMPS, split=s), 0.02) for s in splits]
    assert {session.attrs["subject"] for session in made} == {"MonkeyN"}
    assert [session.attrs["split"] for session in made] == ["held-in-calib", "held-in-minival", "held-out-calib"]
    assert made[0].attrs["session_id"] == "sub-MonkeyN_ses-2020-10-19_Run1_held-in-calib"
    assert len({session.attrs["session_id"] for session in made}) == 3
    assert match(made)[2]["channel"].values.tolist() == made[0]["channel"].values.tolist()


# FALCON H1 and H2


@pytest.mark.parametrize(
    ("rate", "offset", "start"), [(0.02, 0.0, 0.0), (0.02, 5.0, 0.0), (0.02, 0.0, 3.0), (50, 0, 0)]
)
def test_h1_rate_is_a_period_and_offset_a_start(tmp_path, rate, offset, start):
    shift = offset  # as the benchmark has it: a start is not read
    stamps_us = np.rint(shift * 1e6).astype(int) + 20_000 * np.arange(300)
    spikes = [each + shift for each in trains(176, 6.0, seed=5)]
    spikes[0] = critical(stamps_us)
    session = prepare(h1_file(tmp_path / "a.nwb", spikes=spikes, rate=rate, offset=offset, start=start), 0.02)
    assert session.attrs["layout"] == "falcon_h1"
    np.testing.assert_array_equal(np.rint(session["time"].values * 1e6), stamps_us)
    np.testing.assert_array_equal(
        session["counts"].values, benchmark_counts(spikes, shift + np.arange(300) * 0.02, False)
    )
    position = np.arange(300)[:, None] * 0.01 + np.arange(7)
    np.testing.assert_array_equal(session["position"].values, position)  # the offset is not added
    np.testing.assert_array_equal(session["recorded_velocity"].values, np.full((300, 7), 0.01))
    assert session["axis"].values.tolist() == ["tx", "ty", "tz", "rx", "g1", "g2", "g3"]
    np.testing.assert_array_equal(session["evaluated"].values, np.arange(300) >= 10)
    # A row stamped t ends at t: trials of rows 0-99, 100-149 and 150-299.
    np.testing.assert_allclose(session["trial_start_s"].values, shift + np.array([-0.02, 1.98, 2.98]))
    np.testing.assert_allclose(session["trial_stop_s"].values, shift + np.array([1.98, 2.98, 5.98]))
    assert ("is read as the period" in session.attrs["warnings"]) is (rate < 1)


def test_h1_has_neither_electrodes_nor_a_date(tmp_path):
    sessions = [prepare(h1_file(tmp_path / f"{i}.nwb", spikes=trains(176, 6.0, seed=i)), 0.02) for i in range(2)]
    assert sessions[0].attrs["channel_identity"] == "electrode"
    assert "electrode" not in sessions[0].coords
    assert sessions[0]["channel"].values[[0, 175]].tolist() == ["column0", "column175"]
    assert match(sessions)[1].sizes["channel"] == 176  # a threshold channel is the same row every day
    assert "anonymised" in sessions[0].attrs["warnings"]
    assert (sessions[0].attrs["subject"], sessions[0].attrs["split"]) == ("HumanPitt", "held-out-calib")
    assert sessions[0].attrs["session_id"] == "sub-HumanPitt_ses-HumanPitt-held_out-calib_01-01-11-17_set1"
    bare = prepare(h1_file(tmp_path / "c.nwb", trial_num=False), 0.04)
    assert bare["trial_start_s"].values.tolist() == [0.0, 0.5]
    assert bare["trial_stop_s"].values.tolist() == [0.5, 2.5]


def test_h2_is_recognised_and_refused(tmp_path):
    path = h2_file(tmp_path / "a.nwb")
    found = inspect(path)
    assert found.chosen == "falcon_h2"
    assert "cannot be prepared" in found.why
    with pytest.raises(InputError, match=r"a\.nwb: intervals/trials/cue .*characters, not kinematics"):
        prepare(path, 0.02)
    # Binned spikes with a cursor are somebody else's file.
    position = np.stack([np.arange(100.0), np.arange(100.0)], axis=1)
    assert inspect(h2_file(tmp_path / "b.nwb", cursor=position)).chosen == "generic"
    assert inspect(h2_file(tmp_path / "c.nwb", cues=False)).chosen != "falcon_h2"


# LINK


@pytest.mark.parametrize("width_ms", [20, 32])
def test_link_width_is_that_of_the_timestamps_and_trials_are_segments(tmp_path, width_ms):
    counts = np.random.default_rng(1).integers(0, 9, (125, 96)).astype(np.int16)
    path = link_file(tmp_path / "a.nwb", width_ms=width_ms, counts=counts)
    session = prepare(path, width_ms / 1000)
    assert session.attrs["layout"] == "link"
    starts = [1000.0, 1000 + 40 * width_ms + 5000, 1000 + 65 * width_ms + 10_000]
    ends = np.concatenate(
        [s + width_ms * np.arange(1, n + 1) for s, n in zip(starts, (40, 25, 60), strict=True)]
    )  # stamps are centres
    np.testing.assert_allclose(session["time"].values, ends / 1000, rtol=1e-12)
    np.testing.assert_array_equal(session["segment"].values, np.repeat([0, 1, 2], [40, 25, 60]))
    # conversion = 1e-6 stands at the counts too, which stay whole.
    assert session["counts"].dtype == np.uint16
    assert session["counts"].attrs["units"] == "count"
    np.testing.assert_array_equal(session["counts"].values, counts)
    rows = np.arange(125)
    expected = np.stack([0.3 + 0.001 * rows, 0.4 + 0.001 * rows], axis=1)
    np.testing.assert_allclose(session["position"].values, expected, rtol=1e-12)
    np.testing.assert_allclose(session["recorded_velocity"].values, np.tile([0.001, 0.002], (125, 1)))
    assert session["recorded_velocity"].attrs["units"] == "flexion units per time bin"
    assert session["axis"].values.tolist() == ["index", "mrs"]
    assert not session["velocity_valid"].values[[0, 40, 65]].any()
    assert session["channel"].values[:2].tolist() == ["Utah Array/elec95", "Utah Array/elec94"]  # as the series says
    np.testing.assert_allclose(session["trial_target"].values, [[0.1, 0.8], [0.5, 0.5], [0.9, 0.2]])
    wide = prepare(path, 2 * width_ms / 1000)
    rows = np.concatenate([np.arange(40), 40 + np.arange(24), 65 + np.arange(60)]).reshape(-1, 2)
    np.testing.assert_array_equal(wide["counts"].values, counts[rows].sum(axis=1))
    with pytest.raises(InputError, match=rf"a\.nwb: analysis/ThresholdCrossings is binned at 0\.0{width_ms // 10}"):
        prepare(path, 0.05)


@pytest.mark.parametrize("missing_ms", [2, -2])
def test_link_runs_on_through_trials_and_loses_no_label(tmp_path, missing_ms):
    rows = (40, 25, 60, 30)
    path = link_file(tmp_path / "a.nwb", width_ms=20, gap_ms=missing_ms, trial_rows=rows)
    with h5py.File(path, "r+") as file:
        for name in ("ThresholdCrossings", "SpikingBandPower", "index_position", "mrs_position"):
            stamps = file[f"analysis/{name}/timestamps"][()]
            stamps[64] -= 0.001  # the bin that spans the missing clock averages over it
            stamps[125:] += 3.0  # a trial was skipped
            file[f"analysis/{name}/timestamps"][...] = stamps
        for name in ("index_velocity", "mrs_velocity"):
            file[f"analysis/{name}/timestamps"][...] = stamps
        for name in ("start_time", "stop_time"):
            file[f"intervals/trials/{name}"][3] += 3.0
    session = prepare(path, 0.02)
    assert session.sizes["time"] == 155
    np.testing.assert_array_equal(session["segment"].values, np.repeat([0, 1], [125, 30]))
    assert np.flatnonzero(~session["velocity_valid"].values[:, 0]).tolist() == [0, 125]
    assert session["valid"].values.all()
    # Trials begin and end in the middle of the rows that are theirs, on the clock that counts bins.
    first = np.cumsum([0, *rows[:-1]])
    np.testing.assert_allclose(session["trial_start_s"].values, session["time"].values[first] - 0.01, atol=1e-9)
    last = np.cumsum(rows) - 1
    np.testing.assert_allclose(session["trial_stop_s"].values, session["time"].values[last] - 0.01, atol=1.001e-3)
    assert session["recorded_velocity"].attrs["looks_ahead"] == "forward"
    assert "looks one bin ahead" in session.attrs["warnings"]


def test_link_power_is_in_the_unit_of_the_file_and_not_counts(tmp_path):
    power = np.random.default_rng(2).uniform(5, 20, (125, 96))
    power[7, 3] = np.nan
    path = link_file(tmp_path / "a.nwb", power=power)
    session, wide = prepare(path, 0.032, layout="link_power"), prepare(path, 0.064, layout="link_power")
    kept = np.arange(125) != 7
    assert session["counts"].attrs["units"] == "volts"
    assert session["counts"].dtype == np.float64
    np.testing.assert_allclose(session["counts"].values[kept], 1e-6 * power[kept], rtol=1e-14)
    np.testing.assert_array_equal(session["valid"].values, kept)
    np.testing.assert_allclose(wide["counts"].values[4:20], 1e-6 * power[8:40].reshape(16, 2, 96).mean(axis=1))
    write_session(session, tmp_path / "s.nc")
    assert read_session(tmp_path / "s.nc").identical(session)
    assert inspect(link_file(tmp_path / "b.nwb", without=["ThresholdCrossings"])).chosen == "link_power"


# Cursor BMI


def test_sixty_hertz_rows_make_bins_of_fifty_milliseconds(tmp_path):
    counts = np.random.default_rng(3).poisson(0.5, (300, 20)).astype(float)
    path = bmi_file(tmp_path / "a.nwb", counts=counts, blocks=(300,))
    session = prepare(path, 0.05)
    assert session.attrs["layout"] == "cursor_bmi"
    np.testing.assert_array_equal(np.rint(session["time"].values * 1e6), 50_000 * np.arange(1, 101))
    np.testing.assert_array_equal(session["counts"].values, counts.reshape(100, 3, 20).sum(axis=1))
    rows = np.arange(300)
    cursor = np.stack([rows * 0.01, 2 + np.sin(rows / 9)], axis=1)
    np.testing.assert_allclose(session["position"].values, cursor.reshape(100, 3, 2).mean(axis=1))
    assert session["axis"].values.tolist() == ["x", "y"]
    assert prepare(path, 0.1).sizes["time"] == 50
    with pytest.raises(
        InputError, match=r"a\.nwb: processing/behavior/spike_counts .*multiple of 0\.05 .*microseconds"
    ):
        prepare(path, 0.02)


def test_blocks_of_the_task_are_segments_and_columns_are_of_one_day(tmp_path):
    session = prepare(bmi_file(tmp_path / "a.nwb"), 0.05)  # blocks of 190 and 110 rows: 63 and 36 bins
    np.testing.assert_array_equal(session["segment"].values, np.repeat([0, 1], [63, 36]))
    starts_us = np.concatenate([50_000 * np.arange(63), 190_000_000 // 60 + 50_000 * np.arange(36)])
    np.testing.assert_array_equal(np.rint(session["time"].values * 1e6), starts_us + 50_000)
    assert not session["velocity_valid"].values[[0, 63]].any()
    assert session["velocity_valid"].values[[62, 64]].all()
    with pytest.raises(InputError, match="cannot be matched"):
        match([session, session.assign_attrs(session_start="2020-01-02T00:00:00+00:00")])
    fast = prepare(bmi_file(tmp_path / "b.nwb", rate=200.0, unit="m"), 0.02)
    assert fast["position"].attrs["units"] == "m"
    np.testing.assert_array_equal(fast["segment"].values, np.repeat([0, 1], [47, 27]))
    assert float(fast["time"][47]) == pytest.approx(0.95 + 0.02)


# All of them

BUILDERS = {
    "falcon_m1": m1_file,
    "falcon_m2": lambda path: m2_file(path, stamps=M2_STAMPS),
    "falcon_h1": h1_file,
    "falcon_h2": h2_file,
    "link": link_file,
    "link_power": lambda path: link_file(path, without=["ThresholdCrossings"]),
    "cursor_bmi": bmi_file,
    "perich": spikes_file,
    "wrist": counts_file,
}


@pytest.mark.parametrize("name", BUILDERS)
def test_every_file_is_taken_by_its_own_layout_alone(tmp_path, name):
    found = inspect(BUILDERS[name](tmp_path / "a.nwb"))
    assert found.chosen == name
    scores = {each["name"]: each["score"] for each in found.layouts}
    rivals = {other: score for other, score in scores.items() if other in BUILDERS and other != name and score}
    assert rivals == ({"link_power": 0.8} if name == "link" else {})
    assert all(each["reason"] for each in found.layouts)


@pytest.mark.parametrize(
    ("layout", "change", "key", "message"),
    [
        ("falcon_m1", {"short": "FDI"}, "acquisition/preprocessed_emg/APL, .*FDI", "one length"),
        ("falcon_m1", {"muscles": []}, "acquisition/preprocessed_emg", "holds no series"),
        ("falcon_m1", {"mask": np.ones(90, bool)}, "acquisition/eval_mask", "grid"),
        ("falcon_m2", {"without": "finger_vel/mrs"}, "acquisition/finger_vel/mrs", "missing"),
        ("falcon_m2", {"late": "finger_pos/mrs"}, "acquisition/finger_pos/mrs", "other timestamps"),
        ("falcon_m2", {"late": "finger_vel/index"}, "acquisition/finger_vel/mrs", "other timestamps"),
        ("falcon_m2", {"mask": np.full(21, 2)}, "acquisition/eval_mask/data", "yes"),
        ("falcon_h1", {"n_numbers": 299}, "acquisition/TrialNum/data", "one number per row"),
        ("falcon_h1", {"rate": 0.0}, "acquisition/OpenLoopKinematics/starting_time", "positive rate"),
        ("link", {"counts": np.full((125, 96), 0.5)}, "analysis/ThresholdCrossings/data", "whole counts"),
        ("link", {"counts": np.ones((124, 96))}, "analysis/index_position", "grid of analysis/ThresholdCrossings"),
        ("link", {"region": np.zeros(96, int)}, "analysis/ThresholdCrossings/electrodes", "96 electrodes"),
        ("link_power", {"power": np.ones((124, 96))}, "analysis/index_position", "grid of analysis/SpikingBandPower"),
        ("cursor_bmi", {"short": 1}, "processing/behavior/cursor", "grid"),
        ("cursor_bmi", {"n_numbers": 299}, "processing/behavior/te_num/data", "one block per row"),
        ("cursor_bmi", {"rate": 57.3}, "processing/behavior/spike_counts", "microseconds"),
    ],
)
def test_a_wrong_file_is_refused_with_its_name_and_key(tmp_path, layout, change, key, message):
    builder = {"falcon_m2": m2_file, "link_power": link_file}.get(layout, BUILDERS[layout])
    path = builder(tmp_path / "wrong.nwb", **({"stamps": M2_STAMPS} if layout == "falcon_m2" else {}), **change)
    with pytest.raises(InputError) as refused:
        prepare(path, {"link": 0.032, "link_power": 0.032, "cursor_bmi": 0.05}.get(layout, 0.02), layout=layout)
    assert re.search(rf"wrong\.nwb: {key}.*{message}", str(refused.value)), str(refused.value)


def test_warnings_of_a_clean_file_are_few(tmp_path):
    (m1,) = json.loads(prepare(m1_file(tmp_path / "a.nwb"), 0.02).attrs["warnings"])
    assert "electrodes have no labels" in m1
    bmi = json.loads(prepare(bmi_file(tmp_path / "b.nwb"), 0.05).attrs["warnings"])
    assert bmi == []
