"""The pipelines a scientist copies run as they stand."""

import importlib.util
import json
import runpy
import socket
import sys

import h5py
import numpy as np
import pytest
from archive_server import DANDISET, NEW, serving
from caches import new_cache
from nwb_files import spikes_file

import bci_adapt as ba
from bci_adapt.archive import http
from bci_adapt.archive.cache import folder_of
from bci_adapt.archive.http import Patience
from bci_adapt.archive.sources.simulated import Simulated
from bci_adapt.data.prepare import prepare
from bci_adapt.errors import InputError

PATHS = [f"sub-T/sub-T_ses-CO-{day}_behavior+ecephys.nwb" for day in ("20140303", "20140929", "20150101")]
GLOBS = ["sub-T/*-20140303_*", "sub-T/*-20140929_*"]


@pytest.fixture
def pipelines(request):
    return request.config.rootpath / "pipelines"


@pytest.fixture
def run(pipelines, monkeypatch, capsys):
    """Run a pipeline as a script; returns what it ended with (None when well) and its standard output."""

    def call(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        try:
            runpy.run_path(str(pipelines / name), run_name="__main__")
        except SystemExit as stop:
            return stop.code, capsys.readouterr().out
        return None, capsys.readouterr().out

    return call


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """A new cache, and no waiting for a server that does not answer."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("BCI_ADAPT_CACHE", str(new_cache(tmp_path)))
    monkeypatch.setattr(http, "PATIENCE", Patience(wait=lambda _: None, read_s=1.0, tries=2))


@pytest.fixture
def archive(quick, monkeypatch, tmp_path):
    """Three days of one animal; on the second, an array is connected that the first lacks."""
    used = [0, 1, 2, 3], [4, 3, 2, 0], [0, 1, 2, 3]
    with serving() as archive:
        for number, (path, electrodes) in enumerate(zip(PATHS, used, strict=True)):
            file = spikes_file(tmp_path / "made.nwb", seed=number, electrodes=np.array(electrodes))
            session, day = path[16:27], path[19:27]
            with h5py.File(file, "r+") as made:
                made["general/session_id"][()] = session
                made["session_start_time"][()] = f"{day[:4]}-{day[4:6]}-{day[6:]}T12:00:00+00:00"
            archive.add(path, file.read_bytes())
        monkeypatch.setenv("DANDI_INSTANCE", archive.url)
        yield archive


def imported(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    pipeline = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pipeline)
    return pipeline


def simulated(folder, days):
    source = Simulated(folder, days=days, duration_s=90.0, n_units=12)
    return [str(source.fetch(name)) for name in source.list().index]


def test_cross_session(tmp_path, pipelines, capsys):
    scores = imported(pipelines / "cross_session.py").main(*simulated(tmp_path, (0, 200)), n_updates=20)
    assert len(scores) == 5
    assert np.isfinite(list(scores.values())).all()
    assert scores["GRU, 1 step of history"] != scores["GRU, immediate + RMSprop"], "the error of late labels differs"
    assert "recursive least squares" in capsys.readouterr().out


def test_continual(tmp_path, pipelines, capsys):
    pipeline, files = imported(pipelines / "continual.py"), simulated(tmp_path, (0, 100, 200))
    scores = pipeline.main(files[::-1], n_updates=20)  # the dates inside decide, not the order of the files
    said = capsys.readouterr().out
    assert said.index("20140611") < said.index("20140919")
    assert "20140303" not in said
    assert {len(days) for days in scores.values()} == {2}
    assert np.isfinite(list(scores.values())).all()
    carried, afresh = scores["GRU, carried"], scores["GRU, afresh every day"]
    assert carried[0] == afresh[0]  # nothing has been carried yet
    assert carried[1] != afresh[1]
    assert scores["GRU, normaliser only"][0] != afresh[0]

    last = pipeline.main(files, pretrain=2, n_updates=20)
    assert {len(days) for days in last.values()} == {1}
    assert last["GRU, carried"] == last["GRU, afresh every day"]
    with pytest.raises(InputError, match="at least one of 3 files to adapt to, got 3"):
        pipeline.main(files, pretrain=3)


def test_streaming(pipelines, capsys):
    losses = imported(pipelines / "streaming.py").main("sunspots", n_hidden=8)
    assert losses["last value"] == 1.0
    assert losses["linear, recursive least squares"] < losses["seasonal last value"]
    assert "network, immediate" in capsys.readouterr().out


def test_pipelines_are_short_enough_to_copy(pipelines):
    lengths = {path.name: len(path.read_text().splitlines()) for path in pipelines.glob("*.py")}
    assert {"continual.py", "cross_session.py", "fetch_and_prepare.py", "synthetic.py"} <= set(lengths)
    assert max(lengths.values()) <= 60


def test_fetch_and_prepare(archive, run, tmp_path):
    code, said = run("fetch_and_prepare.py", DANDISET, *GLOBS, "--bin-s", "0.04")
    assert code is None, code
    folder, names = tmp_path / "cache" / "sessions", ["sub-T_ses-CO-20140303", "sub-T_ses-CO-20140929"]
    assert sorted(path.name for path in folder.iterdir()) == [f"{name}_bin-40ms.nc" for name in names]
    for name, path, others in zip(names, PATHS, ([], ["PMd/elec4", "PMd/elec5"]), strict=False):
        session = ba.read(folder / f"{name}_bin-40ms.nc", bin_s=0.04)
        alone = prepare(folder_of(tmp_path / "cache" / "raw", archive.url) / DANDISET / NEW / path, 0.04)
        assert session["channel"].values.tolist() == [f"M1/elec{i}" for i in range(4)]
        assert np.array_equal(session["counts"], alone["counts"].sel(channel=session["channel"]))
        assert json.loads(session.attrs["channels_left_out"]) == others
        asset = session.attrs["dandiset"], session.attrs["dandiset_version"], session.attrs["asset_path"]
        assert asset == (DANDISET, NEW, path)
        assert session.attrs["licence"] == "spdx:CC-BY-4.0"
        assert f"{name}: {4 + len(others)} channels, 0.3 min; decoding: best " in said
        assert f"{name}_bin-40ms.nc: 4 channels common to T, {len(others)} left out" in said
    assert "flagged: neurons tell labels (0 channels)" in said  # these spikes know nothing of the cursor
    assert "flagged: dead channels, neurons tell labels (2 channels)" in said

    sent, first = archive.sent(), {path.name: path.read_bytes() for path in folder.iterdir()}
    code, _ = run("fetch_and_prepare.py", f"{DANDISET}/{NEW}", *GLOBS, "--bin-s", "0.04")
    assert code is None
    assert archive.sent() == sent  # verified in the cache, not fetched again
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first


def test_fetch_and_prepare_goes_on_without_a_network(archive, run):
    assert run("fetch_and_prepare.py", DANDISET, *GLOBS)[0] is None
    archive.close()
    code, said = run("fetch_and_prepare.py", DANDISET, *GLOBS)
    assert code is None, code
    assert "cannot be reached" in said


def test_fetch_and_prepare_without_network_and_cache(quick, run, monkeypatch, tmp_path):
    monkeypatch.setenv("DANDI_INSTANCE", nowhere())
    code, said = run("fetch_and_prepare.py", DANDISET, *GLOBS)
    assert code.startswith("error: http://127.0.0.1")
    assert "cannot be reached" in code
    assert code.endswith("fetch it online first")
    assert "\n" not in code
    assert not said
    assert not (tmp_path / "cache" / "sessions").exists()


def test_fetch_and_prepare_refuses_what_it_cannot_find(archive, run):
    code, _ = run("fetch_and_prepare.py", DANDISET, "sub-Q/*")
    assert code.startswith(f"error: {DANDISET}/{NEW} has no NWB file with path 'sub-Q/*'")


def nowhere():
    """The address of an archive at a port that nobody listens to."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{held.getsockname()[1]}/api"
