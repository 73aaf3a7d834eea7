"""Simulated sessions as NWB files: valid, laid out like DANDI 000688, the same bytes every time."""

from __future__ import annotations

import os
import subprocess
import sys

import h5py
import numpy as np
import pytest

from bci_adapt.archive.sources.folder import Folder
from bci_adapt.archive.sources.simulated import Simulated
from bci_adapt.data import simulate
from bci_adapt.data.prepare import prepare
from bci_adapt.errors import InputError
from bci_adapt.ground.seals import DamagedWarning, seal_of
from bci_adapt.ground.storage import file_digest

IDS = ["sub-Sim_ses-CO-20140303", "sub-Sim_ses-CO-20140402", "sub-Sim_ses-CO-20140929"]


def source(folder, **arguments):
    return Simulated(folder, **{"duration_s": 60, "n_units": 20, "n_electrodes": 24} | arguments)


@pytest.mark.parametrize("task", simulate.TASKS)
def test_files_are_valid_nwb_and_hold_the_recording(tmp_path, task):
    import pynwb
    from nwbinspector import Importance, inspect_nwbfile

    simulated = source(tmp_path, task=task, severity=8.0, seed=2)
    path = simulated.fetch(simulated.list().index[-1])
    assert not pynwb.validate(path=str(path))
    found = [m for m in inspect_nwbfile(nwbfile_path=str(path)) if m.importance != Importance.BEST_PRACTICE_SUGGESTION]
    # the files this one imitates give a time to every sample, and reading that is what is wanted here
    assert {m.check_function_name for m in found} <= {"check_regular_timestamps"}, found

    r = simulate.recording(210, **simulated.arguments)
    with pynwb.NWBHDF5IO(str(path), "r") as io:
        file = io.read()
        assert "simulated" in file.session_description.lower()
        assert "no animal" in file.session_description
        behaviour = file.processing["behavior"]
        position = behaviour["Position"]["cursor_pos"]
        np.testing.assert_array_equal(position.data[:], r.behaviour.position_cm)
        np.testing.assert_array_equal(position.timestamps[:], np.arange(6001) / 100)
        for name, series in (("Velocity", "cursor_vel"), ("Acceleration", "cursor_acc")):
            assert isinstance(behaviour[name], pynwb.behavior.BehavioralTimeSeries)
            assert behaviour[name][series].data.shape == (6001, 2)
        electrodes = file.electrodes.to_dataframe()
        assert list(electrodes["label"]) == [f"elec{i}" for i in range(1, 25)]
        assert set(electrodes["group_name"]) == {"electrode_group_M1"}
        assert len(file.units) == len(r.spike_ms) < 20
        assert "obs_intervals" not in file.units.colnames
        for row, ms in enumerate(r.spike_ms):
            np.testing.assert_array_equal(file.units["spike_times"][row], ms / 1000)
            assert file.units["electrodes"].target.data[row] == r.unit_electrode[row]
        columns = set(file.trials.colnames)
        cue = {"go_cue_time", "target_on_time", "target_id"} if task == "centre_out" else {"go_cue_time_array"}
        assert {"start_time", "stop_time", "result", "target_dir"} | cue <= columns


def test_same_arguments_same_file_in_another_process_too(tmp_path):
    paths = [source(tmp_path / name).fetch(IDS[1]) for name in ("a", "b")]
    code = (
        "import sys; from bci_adapt.archive.sources.simulated import Simulated;"
        "print(Simulated(sys.argv[1], duration_s=60, n_units=20, n_electrodes=24).fetch(sys.argv[2]))"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "c"), IDS[1]]
    paths.append(
        subprocess.run(
            arguments, env=os.environ | {"PYTHONHASHSEED": "77"}, check=True, capture_output=True, text=True
        ).stdout.strip()
    )
    assert len({file_digest(path) for path in paths}) == 1


def test_a_file_is_reused_or_made_anew_but_never_taken_from_someone_else(tmp_path):
    table = source(tmp_path).list()
    assert list(table.index) == IDS
    assert list(table.columns) == ["path", "subject", "session_start"]
    assert not any(path.exists() for path in table["path"])
    first = source(tmp_path).fetch(IDS[0])
    assert first == table.loc[IDS[0], "path"]
    made = first.stat().st_mtime_ns
    assert source(tmp_path).fetch(IDS[0]).stat().st_mtime_ns == made
    before = file_digest(first)
    assert file_digest(source(tmp_path, seed=1).fetch(IDS[0])) != before
    assert file_digest(source(tmp_path).fetch(IDS[0])) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [first.name, first.name + ".sha256"]

    with h5py.File(first, "r+") as file:
        file["identifier"][()] = "somebody's"
    with pytest.raises(InputError, match="will not be overwritten"):
        source(tmp_path).fetch(IDS[0])
    first.write_bytes(b"not HDF5")
    with pytest.warns(DamagedWarning, match="it is simulated again"):
        source(tmp_path).fetch(IDS[0])
    assert file_digest(first) == before
    seal_of(first).unlink()  # then it is not known to be ours
    first.write_bytes(b"not HDF5")
    with pytest.raises(InputError, match="cannot read it"):
        source(tmp_path).fetch(IDS[0])
    assert first.read_bytes() == b"not HDF5"


def test_one_bit_of_a_simulated_recording_is_found_and_mended(tmp_path):
    path = source(tmp_path).fetch(IDS[0])
    before = path.read_bytes()
    path.write_bytes(before[:100_000] + bytes([before[100_000] ^ 4]) + before[100_001:])
    with pytest.warns(DamagedWarning, match="it is simulated again"):
        source(tmp_path).fetch(IDS[0])
    assert path.read_bytes() == before


def test_the_reader_finds_everything(tmp_path):
    simulated = source(tmp_path, severity=8.0, days=(0, 210), n_sessions=2)
    paths = [simulated.fetch(session_id) for session_id in simulated.list().index]
    assert Folder(tmp_path).list().equals(simulated.list())
    sessions = [prepare(path, 0.05) for path in paths]
    for path, day, session in zip(paths, (0, 210), sessions, strict=True):
        r = simulate.recording(day, **simulated.arguments)
        np.testing.assert_array_equal(session["counts"].values, r.counts())
        np.testing.assert_allclose(session["recorded_velocity"], r.velocity(), atol=1e-5, err_msg=str(path))
        assert session["valid"].values.all()
        assert session.attrs["warnings"] in ("[]", [])
        np.testing.assert_allclose(session["trial_go_s"], r.behaviour.trials["go_s"])
    assert list(sessions[0]["channel"].values) == list(sessions[1]["channel"].values)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"days": (0, 30.5)}, "days must be whole numbers"),
        ({"days": (30, 0)}, "in rising order"),
        ({"n_sessions": 2}, "n_sessions is 2 but days has 3"),
        ({"task": "maze"}, "got 'maze'"),
    ],
)
def test_bad_arguments_and_unknown_sessions(tmp_path, arguments, words):
    with pytest.raises(InputError, match=words):
        source(tmp_path, **arguments)
    with pytest.raises(InputError, match="did you mean"):
        source(tmp_path).fetch(IDS[0] + "x")
    assert not list(tmp_path.iterdir())
