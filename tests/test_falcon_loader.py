"""FALCON M1, M2 and H1 against the benchmark's own loader, bin for bin: counts, targets, what is scored, trials.

The expectation is the loader's rule stated once more, in plain numpy on the arrays that went into the file. Where the
package is installed (``pip install falcon-challenge``) its `load_nwb` reads the same files and must say the same.
"""

from datetime import UTC, datetime
from types import SimpleNamespace

import numpy as np
import pytest
from nwb_layouts_a import benchmark_counts
from pynwb import NWBHDF5IO, NWBFile, TimeSeries
from pynwb.behavior import BehavioralTimeSeries

from bci_adapt.data.binning import to_ticks
from bci_adapt.data.prepare import prepare

N_ROWS, WIDTH_S = 400, 0.02


def spikes_near(stamps, seed, n_units=6):
    """Spikes on whole milliseconds, on every kind of edge (as floats that round-off makes differ), and anywhere."""
    rng = np.random.default_rng(seed)
    found = []
    for unit in range(n_units):
        ticks = np.arange(np.floor(stamps[0] * 1000) - 40, np.ceil(stamps[-1] * 1000) + 40)
        some = rng.choice(ticks, 300, replace=False) / 1000
        edges = rng.choice(np.concatenate([stamps, stamps + WIDTH_S, stamps - WIDTH_S]), 60)
        anywhere = rng.uniform(stamps[0] - 0.1, stamps[-1] + 0.1, 150)
        last = [stamps[-1], stamps[-1] + WIDTH_S] if unit < 3 else []
        found.append(np.sort(np.concatenate([some, edges, anywhere, last])))
    return [each[each >= 0] for each in found]


def begin(subject):
    file = NWBFile("made for a test", subject, datetime(2020, 10, 19, tzinfo=UTC), session_id="day1")
    device = file.create_device("array")
    group = file.create_electrode_group("M1_array", "array", "M1", device)
    return file, group


def finish(file, path):
    with NWBHDF5IO(str(path), "w") as io:
        io.write(file)
    return path


def add_units(file, spikes, group=None):
    for number, times in enumerate(spikes):
        if group is not None:
            file.add_electrode(group=group, location="M1")
            file.add_unit(spike_times=times, electrodes=[number])
        else:
            file.add_unit(spike_times=times)


def table(file, stamps, container, columns, unit):
    series = [
        TimeSeries(name=name, data=data, unit=unit, timestamps=stamps, description="made") for name, data in columns
    ]
    file.add_acquisition(BehavioralTimeSeries(time_series=series, name=container))


def of_m1(path):
    stamps = np.arange(0.0731, 0.0731 + N_ROWS * WIDTH_S, 1 / 50).round(4)[:N_ROWS]
    spikes, mask = spikes_near(stamps, 1), np.arange(N_ROWS) % 11 != 4
    file, group = begin("MonkeyL-held-in-calib")
    add_units(file, spikes, group)
    emg = np.random.default_rng(5).normal(size=(N_ROWS, 3))
    table(file, stamps, "preprocessed_emg", zip(["APL", "BCPl", "FDI"], emg.T, strict=True), "mV")
    file.add_acquisition(TimeSeries(name="eval_mask", data=mask, unit="bool", timestamps=stamps))
    trials = np.array([0.0731, 2.5, 4.7331])
    for start in trials:
        file.add_trial(start_time=start, stop_time=start + 1)
    change = np.zeros(N_ROWS, dtype=bool)
    change[[int(np.argmax(stamps >= start)) for start in trials]] = True
    return finish(file, path), benchmark_counts(spikes, stamps, False), "emg", emg, change, mask


def of_m2(path, stamps=None):
    stamps = np.arange(0, N_ROWS * WIDTH_S, 0.001).reshape(-1, 20)[:, -1] if stamps is None else stamps
    n = len(stamps)
    spikes, mask = spikes_near(stamps, 2), np.arange(n) % 7 != 2
    file, group = begin("MonkeyN-held-in-calib")
    add_units(file, spikes, group)
    position = np.cumsum(np.random.default_rng(6).normal(size=(n, 2)), axis=0)
    velocity = np.gradient(position, axis=0)
    for container, values in (("finger_pos", position), ("finger_vel", velocity)):
        table(file, stamps, container, zip(["index", "mrs"], values.T, strict=True), "AU")
    file.add_acquisition(TimeSeries(name="eval_mask", data=mask, unit="bool", timestamps=stamps))
    trials = np.array([0.0, stamps[20], stamps[150] + 0.001])
    for start in trials:
        file.add_trial(start_time=start, stop_time=start + 1)
    change = np.zeros(n, dtype=bool)
    change[[int(np.argmax(stamps >= start)) for start in trials]] = True
    return finish(file, path), benchmark_counts(spikes, stamps, True), "recorded_velocity", velocity, change, mask


def of_m2_in_pieces(path):
    """Whole milliseconds, with pauses of one and of many, and a last row that reaches into the next trial."""
    ms = np.concatenate([np.arange(100) * 20, 2001 + np.arange(100) * 20, 5003 + np.arange(100) * 20])
    return of_m2(path, np.concatenate([ms, ms[-1] + 9 + np.arange(100) * 20]) / 1000)


def of_h1(path, old=False, start=0.0):
    first = 3.46
    stamps = first + np.arange(N_ROWS) * WIDTH_S
    spikes, mask = spikes_near(stamps, 3), np.arange(N_ROWS) >= 13
    file, _ = begin("HumanPitt-held-out-calib")
    add_units(file, spikes)
    velocity = np.random.default_rng(7).normal(size=(N_ROWS, 7))
    number = np.repeat([1.0, 2.0, 5.0, 1.0], N_ROWS // 4)
    clock = {"rate": WIDTH_S, "offset": first, "starting_time": start, "unit": "arbitrary"}
    for name, data in {
        "OpenLoopKinematics": np.cumsum(velocity, axis=0),
        "OpenLoopKinematicsVelocity": velocity,
        "TrialNum": number,
        "Blacklist" if old else "eval_mask": ~mask if old else mask,
    }.items():
        file.add_acquisition(TimeSeries(name=name, data=data, **clock))
    change = np.concatenate([[False], np.diff(number) > 0])
    return finish(file, path), benchmark_counts(spikes, stamps, False), "recorded_velocity", velocity, change, mask


KINDS = {
    "m1": of_m1,
    "m2": of_m2,
    "m2 in pieces": of_m2_in_pieces,
    "h1": of_h1,
    "h1, older": lambda path: of_h1(path, old=True),
    "h1 that starts later": lambda path: of_h1(path, start=9.0),
}


def trial_rows(session, starts):
    """The row at which each trial begins, as the benchmark finds it: by the first stamp at or after its start."""
    ends = to_ticks(session["time"].values)
    stamps = ends - to_ticks(WIDTH_S) if starts else ends
    return np.searchsorted(stamps, to_ticks(session["trial_start_s"].values))


@pytest.mark.parametrize("per", [None, "unit"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_of_the_benchmarks_rule(kind, per, tmp_path):
    path, counts, variable, target, change, mask = KINDS[kind](tmp_path / "a.nwb")
    session = prepare(path, WIDTH_S, per=per)
    assert session.attrs["layout"] == f"falcon_{kind[:2]}"
    np.testing.assert_array_equal(session["counts"].values, counts)
    np.testing.assert_array_equal(session[variable].values, target)
    np.testing.assert_array_equal(session["evaluated"].values, mask)
    found = np.zeros(change.size, dtype=bool)
    rows = trial_rows(session, kind.startswith("m2"))
    if kind.startswith("h1"):  # its first trial is the first row's; a trial starts where the bin of its row does
        rows = rows[1:] + 1
    found[rows] = True
    np.testing.assert_array_equal(found, change)


@pytest.mark.parametrize("kind", KINDS)
def test_another_convention_is_another_count(kind, tmp_path):
    """The files tell the rule from the nearest wrong ones: exact edges, a last bin open at its end, the other stamp."""
    path, counts, *_ = KINDS[kind](tmp_path / "a.nwb")
    session = prepare(path, WIDTH_S)
    ends = to_ticks(session["time"].values)
    last = ends == ends[-1]
    assert counts[last].sum() > 0
    with NWBHDF5IO(str(path), "r") as io:
        spikes = [to_ticks(times) for times in io.read().units["spike_times"][:]]
    exact = np.stack([[np.count_nonzero((t >= e - 20_000) & (t < e)) for e in ends] for t in spikes], axis=1)
    assert (exact != counts).any()
    wide = prepare(path, 2 * WIDTH_S)
    assert wide["counts"].values.sum() <= counts.sum()


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_of_the_benchmarks_loader(kind, tmp_path):
    falcon = pytest.importorskip("falcon_challenge.dataloaders")
    path, *expected = KINDS[kind](tmp_path / "a.nwb")
    task = SimpleNamespace(m1=falcon.FalconTask.m1, m2=falcon.FalconTask.m2, h1=falcon.FalconTask.h1)
    counts, target, change, mask = falcon.load_nwb(path, getattr(task, kind[:2]))
    np.testing.assert_array_equal(counts, expected[0])
    np.testing.assert_array_equal(target, expected[2])
    np.testing.assert_array_equal(change, expected[3])
    np.testing.assert_array_equal(mask, expected[4])
