"""Reading in a child process: what crashes, hangs or asks for too much there is one error here, and nothing else."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from nwb_files import spikes_file

import bci_adapt as ba
from bci_adapt.data import any_file, guarded_reading
from bci_adapt.data.prepare import prepare
from bci_adapt.errors import InputError
from bci_adapt.experiment.jobs import prepare as prepare_job
from bci_adapt.ground import guarded
from bci_adapt.ground.guarded import call

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="limits are set in a forked child")


# What children are told to do; the reader finds this module through sys.path.


def say(path, **arguments):
    return {"path": str(path), "pid": os.getpid(), "cwd": str(Path.cwd()), **arguments}


def crash(path, how):
    os.kill(os.getpid(), getattr(signal, how))


def leave(path):
    os._exit(3)


def hang(path):
    while True:
        pass


def wait(path):
    time.sleep(600)


def claim(path):
    return int(np.ones(2**27).sum())


def refuse(path):
    raise InputError(f"{path}: is not what was expected")


def slip(path):
    return 1 / 0


HERE = f"{__name__}:"


@pytest.fixture
def strict(monkeypatch):
    monkeypatch.setenv(guarded.FACTOR, "0.05")  # 1.5 s of processor time, 205 MiB


def test_a_child_of_its_own_answers_each_call(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = (call(f"{HERE}say", Path("a.nwb"), x=[1, "b"]) for _ in range(2))
    assert first["x"] == [1, "b"]
    assert first["path"] == "a.nwb"
    assert first["cwd"] == str(tmp_path)
    assert len({os.getpid(), first["pid"], second["pid"]}) == 3


@pytest.mark.parametrize(
    ("function", "arguments", "said"),
    [
        ("crash", {"how": "SIGSEGV"}, "SIGSEGV"),
        ("crash", {"how": "SIGABRT"}, "SIGABRT"),
        ("crash", {"how": "SIGKILL"}, "memory"),
        ("leave", {}, "exit code 3"),
        ("hang", {}, "more than 2 s"),
        ("claim", {}, "GiB of memory"),
        ("refuse", {}, "is not what was expected"),
    ],
)
def test_what_befalls_the_child_is_one_error_that_names_the_file(strict, function, arguments, said):
    with pytest.raises(InputError, match=said) as raised:
        call(HERE + function, Path("monday.nwb"), **arguments)
    assert str(raised.value).startswith("monday.nwb: ")
    assert "\n" not in str(raised.value)
    assert call(f"{HERE}say", Path("tuesday.nwb"))["path"] == "tuesday.nwb"  # the next is read


def test_a_child_that_sleeps_is_ended_by_the_clock(strict, monkeypatch):
    monkeypatch.setattr(guarded, "WAITING", 1)
    started = time.monotonic()
    with pytest.raises(InputError, match="takes more than"):
        call(f"{HERE}wait", Path("monday.nwb"))
    assert time.monotonic() - started < 20
    monkeypatch.setattr(guarded, "WAITING", 60)  # another reader has to start, on a machine that may be busy
    assert call(f"{HERE}say", Path("tuesday.nwb"))["path"] == "tuesday.nwb"


def test_what_is_within_the_limits_passes():
    assert call(f"{HERE}claim", Path("monday.nwb")) == 2**27


def test_an_error_of_our_own_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        call(f"{HERE}slip", Path("monday.nwb"))


def test_without_limits_files_are_read_in_this_process(monkeypatch):
    monkeypatch.setenv(guarded.FACTOR, "0")
    assert call(f"{HERE}say", Path("a.nwb"))["pid"] == os.getpid()
    monkeypatch.setenv(guarded.FACTOR, "many")
    with pytest.raises(InputError, match=guarded.FACTOR):
        call(f"{HERE}say", Path("a.nwb"))


def test_limits_grow_with_the_file(tmp_path):
    path = tmp_path / "large.nwb"
    path.touch()
    small = guarded.limits_of(path)
    os.truncate(path, 2**33)
    large = guarded.limits_of(path)
    assert small == (guarded.BASE_BYTES, guarded.BASE_S)
    assert large[0] == small[0] + guarded.BYTES_PER_BYTE * 2**33
    assert large[1] > 100 * small[1]


def test_a_reader_that_was_idle_is_followed_by_another():
    before = call(f"{HERE}say", Path("a.nwb"))
    reader = guarded._READERS[os.getpid(), __name__]
    reader.kill()
    reader.wait()
    assert call(f"{HERE}say", Path("a.nwb"))["pid"] != before["pid"]


def test_no_process_to_read_in_is_said(monkeypatch):
    monkeypatch.setattr(guarded, "_READERS", {})
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(InputError, match=f"no process can be started .*{guarded.FACTOR}=0"):
        call(f"{HERE}say", Path("a.nwb"))


# Files.


def test_sessions_and_descriptions_are_those_of_this_process(tmp_path):
    path = spikes_file(tmp_path / "monday.nwb")
    here, apart = prepare(path, 0.05), ba.read(path, 0.05)
    assert apart.identical(here)
    assert list(apart.variables) == list(here.variables)
    assert list(apart.attrs) == list(here.attrs)
    assert not apart.equals(prepare(path, 0.1))
    assert guarded_reading.inspect(path) == any_file.inspect(path)
    ba.write_session(here, tmp_path / "monday.nc")
    assert ba.read(tmp_path / "monday.nc").identical(here)
    for key in ("session_id", "subject", "session_start"):
        assert guarded_reading.identify([path], True)[0][key] == here.attrs[key]


def claiming(path, n_spikes=2**28):
    """A file of some kilobytes with one stored chunk of spike times, and `n_spikes` claimed."""
    spikes_file(path)
    with h5py.File(path, "a") as file:
        times = file["units/spike_times"][:]
        del file["units/spike_times"], file["units/spike_times_index"]
        made = file.create_dataset(
            "units/spike_times", (n_spikes - 1,), "f8", chunks=(2**20,), compression="gzip", fillvalue=times[0]
        )
        made[: times.size] = times
        ends = np.linspace(0, n_spikes - 1, 5).astype(int)[1:]
        file.create_dataset("units/spike_times_index", data=ends)
    return path


def test_more_spikes_than_a_file_can_hold_end_within_limits(tmp_path, monkeypatch):
    monkeypatch.setenv(guarded.FACTOR, "0.25")  # 1 GiB
    path = claiming(tmp_path / "claims.nwb")
    assert path.stat().st_size < 2**22
    started = time.monotonic()
    for read in (lambda: ba.read(path, 0.05), lambda: _job(path, tmp_path / "out.nc")):
        with pytest.raises(InputError, match=r"claims\.nwb.*(memory|allocate)"):
            read()
    assert time.monotonic() - started < 60
    assert not (tmp_path / "out.nc").exists()


def _job(path, out):
    parameters = {"bin_s": 0.05, "layout": None, "thresholds": {}}
    prepare_job.run(parameters, {"recording": path}, out)


def test_a_job_writes_what_preparing_here_writes(tmp_path):
    path = spikes_file(tmp_path / "monday.nwb")
    _job(path, tmp_path / "out.nc")
    assert ba.read(tmp_path / "out.nc").identical(prepare(path, 0.05))
    _job(tmp_path / "out.nc", tmp_path / "again.nc")
    assert ba.read(tmp_path / "again.nc").identical(prepare(path, 0.05))


def test_arrays_that_json_cannot_hold_are_refused_by_name(tmp_path):
    path = spikes_file(tmp_path / "monday.nwb")
    with pytest.raises(InputError, match="provenance"):
        ba.read(path, 0.05, provenance={"licence": object()})


def test_the_reply_of_a_child_is_plain(tmp_path):
    session = prepare(spikes_file(tmp_path / "monday.nwb"), 0.05)
    packed = guarded_reading._packed(session, tmp_path)
    assert guarded_reading._unpacked(json.loads(json.dumps(packed)), tmp_path).identical(session)


def test_many_files_are_identified_at_once_and_the_one_that_ends_it_is_named(tmp_path, monkeypatch):
    paths = [spikes_file(tmp_path / f"{number}.nwb") for number in range(5)]
    asked = []

    def counted(function, path, **arguments):
        asked.append(path.name)
        return call(function, path, **arguments)

    monkeypatch.setattr(guarded_reading, "call", counted)
    monkeypatch.setattr(guarded_reading, "MANY", 3)
    found = guarded_reading.identify(paths, True)
    assert asked == ["0.nwb", "3.nwb"]
    assert found == [any_file.identity(path, True) for path in paths]

    def ends(function, path, *, paths, **arguments):
        if any(each.endswith("4.nwb") for each in paths):
            raise guarded.Ended(f"{path}: ended")
        return call(function, path, paths=paths, **arguments)

    monkeypatch.setattr(guarded_reading, "call", ends)
    with pytest.raises(InputError, match=r"4\.nwb: ended"):
        guarded_reading.identify(paths, True)
