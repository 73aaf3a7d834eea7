"""The command line: exit codes, messages, machine-readable output. Whole runs are in test_experiment."""

import json
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
from nwb_files import spikes_file

from bci_adapt.archive.sources.simulated import Simulated
from bci_adapt.data.session_files import read_session


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    source = Simulated(tmp_path_factory.mktemp("raw"), days=(0,), duration_s=40.0, n_units=8)
    return source.fetch(source.list().index[0])


def test_help_is_quick_and_imports_nothing_heavy():
    heavy = ("torch", "numba", "pynwb", "h5py", "xarray", "dask")
    script = f"""
import sys
sys.argv = ["bci-adapt", "--help"]
from bci_adapt import cli
try:
    cli.main()
finally:
    print("HEAVY", [name for name in {heavy} if name in sys.modules])
"""
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "HEAVY []" in said
    for command in ("inspect", "prepare", "run", "report", "list", "bench"):
        assert command in said


def test_inspect_shows_and_writes(call, recording, tmp_path):
    code, out, _ = call("inspect", recording, "--json", tmp_path / "found.json")
    assert code == 0
    assert "cursor_pos" in out
    found = json.loads((tmp_path / "found.json").read_text())
    for arguments in (
        ["inspect", recording, "--json"],
        ["inspect", "--json", recording],
        ["inspect", recording, "--json", "-"],
    ):
        code, out, _ = call(*arguments)
        assert code == 0
        assert json.loads(out) == found
    assert recording.stat().st_size > 10_000  # never taken for the file to write
    assert call("inspect", recording, "--quiet")[1] == ""


@pytest.mark.parametrize("name", ["monday.mat", "monday.npz", "monday.txt"])
def test_json_never_overwrites_what_is_no_json(call, recording, tmp_path, name):
    """A file named after --json would be written: a recording or a decoder there would be lost."""
    (tmp_path / name).write_bytes(b"precious")
    call("inspect", recording, "--json", tmp_path / name)
    assert (tmp_path / name).read_bytes() == b"precious"


def test_prepare_writes_a_session(call, recording, tmp_path):
    code, out, _ = call("prepare", recording, "--bin-s", 0.02, "--out", tmp_path / "sessions")
    assert code == 0
    written = next((tmp_path / "sessions").glob("*.nc"))
    assert written.name in out.replace("\n", "")
    session = read_session(written)
    assert session.attrs["bin_s"] == 0.02
    assert int(session["counts"].sum()) > 0
    assert np.isfinite(session["position"].values).any()
    assert call("prepare", recording.parent, "--out", tmp_path / "all", "--quiet")[:2] == (0, "")
    assert len(list((tmp_path / "all").glob("*.nc"))) == 1


@pytest.mark.parametrize("what", ["cells", "rules", "optimizers", "decoders", "layouts", "tasks"])
def test_list(call, what):
    code, out, _ = call("list", what, "--json")
    named = {each["name"]: each["description"] for each in json.loads(out)}
    assert code == 0
    assert len(named) >= 2
    assert all(len(text) > 10 for text in named.values())
    assert all(name in call("list", what)[1] for name in named)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "missing.nwb"], "missing.nwb"),
        (["prepare", "{text}"], "text.nwb"),
        (["prepare", "{recording}", "--bin-s", "-1"], "bin"),
        (["prepare", "{recording}", "--layout", "wirst"], "did you mean 'wrist'"),
        (["run", "missing.toml"], "missing.toml"),
        (["run", "{config}"], "did you mean 'stream_s'"),
        (["run", "{demo}", "--set", "network.n_hiden=3"], "did you mean 'n_hidden'"),
        (["run", "{demo}", "--data", "{empty}"], "empty"),
        (["run", "{demo}", "--workers", "-2"], "workers"),
        (["report", "{empty}"], "empty"),
        (["list", "cell"], "did you mean 'cells'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(call, recording, tmp_path, monkeypatch, request, arguments, message):
    monkeypatch.setenv("BCI_ADAPT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.nwb").write_text("not an NWB file")
    (tmp_path / "empty").mkdir()
    (tmp_path / "config.toml").write_text('name = "x"\nstrem_s = 3\n')
    places = {name: tmp_path / name for name in ("empty",)} | {"recording": recording, "text": tmp_path / "text.nwb"}
    places |= {"config": tmp_path / "config.toml", "demo": request.config.rootpath / "configs" / "demo.toml"}
    code, out, err = call(*[argument.format(**places) for argument in arguments])
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert "Traceback" not in err
    assert message in err
    left = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and "raw" not in path.parts]
    assert left == []


def test_bench_smoke(call, tmp_path, monkeypatch):
    from bci_adapt.cli.bench import learning as bench
    from bci_adapt.cli.bench.cases import Case
    from bci_adapt.cli.bench.rivals import TORCH

    plan = bench.Plan([Case("tanh", 8, 4)], [], [], [], [], [], 1e-3, 2, 10)  # test_bench has the others
    monkeypatch.setattr(bench, "_plan", lambda quick: plan)
    code, out, _ = call("bench", "learning", "--quick", "--json", "-")
    assert code == 0
    (row,) = json.loads(out)
    assert row["rivals"][TORCH] > 0
    code, out, _ = call("bench", "learning", "--quick", "--json", tmp_path / "rows.json")
    assert code == 0
    assert "immediate + RMSprop" in out
    assert json.loads((tmp_path / "rows.json").read_text())[0].keys() == row.keys()


def test_several_files_are_compared_by_electrode(call, tmp_path):
    first = spikes_file(tmp_path / "a.nwb")
    second = spikes_file(tmp_path / "b.nwb", electrodes=np.array([0, 3, 4, 5]))
    code, out, _ = call("inspect", first, second, "--json", "-")
    assert code == 0
    (pair,) = json.loads(out)["overlap"]
    assert pair["common"] == 2
    assert (pair["only_first"], pair["only_second"]) == (["M1/elec2"], ["PMd/elec4", "PMd/elec5"])
    code, out, _ = call("inspect", first, second)
    assert "only in the second" in out
    assert "2: PMd/elec4, PMd/elec5" in out


def test_files_of_ones_own_are_read_from_the_paths_named(call, tmp_path):
    (tmp_path / "mine").mkdir()
    spikes_file(tmp_path / "mine" / "a.nwb")
    paths = ["--spikes", "units", "--target", "processing/behavior/Velocity/cursor_vel"]
    code, out, _ = call("prepare", tmp_path / "mine", *paths, "--per", "unit", "-o", tmp_path / "out", "--bin-s", 0.1)
    assert (code, "recorded_velocity" in out) == (0, True)
    session = read_session(next((tmp_path / "out").glob("*.nc")))
    assert session.attrs["layout"] == "generic"
    assert session["channel"].values.tolist()[:2] == ["M1/elec0/unit1", "M1/elec0/unit2"]
    assert json.loads(session.attrs["parameters"])["targets"] == [paths[3]]
    for wrong, message in [
        (
            ["--target", "processing/behavior/Velocity/cursor_val"],
            "did you mean 'processing/behavior/Velocity/cursor_vel'",
        ),
        (["--spikes", "unit"], "did you mean 'units'"),
        (["--per", "array"], "per='array'"),
        (["--target", "x", "--layout", "perich"], "go with the layout 'generic'"),
    ]:
        code, _, err = call("prepare", tmp_path / "mine" / "a.nwb", *wrong, "-o", tmp_path / "none")
        assert (code, message in err) == (2, True), err
    assert not (tmp_path / "none").exists()
    shutil.copy(tmp_path / "mine" / "a.nwb", tmp_path / "mine" / "b.nwb")
    before = next((tmp_path / "out").glob("*.nc")).read_bytes()
    code, _, err = call("prepare", tmp_path / "mine" / "a.nwb", tmp_path / "mine" / "b.nwb", "-o", tmp_path / "two")
    assert (code, "are one session" in err) == (1, True)
    assert next((tmp_path / "out").glob("*.nc")).read_bytes() == before


def test_one_bad_recording_does_not_cost_the_others(call, tmp_path):
    for name in ("a", "c"):
        path = spikes_file(tmp_path / f"{name}.nwb")
        with h5py.File(path, "a") as file:
            file["general/session_id"][()] = name
    (tmp_path / "b.nwb").write_text("not NWB")
    code, out, err = call("prepare", tmp_path, "-o", tmp_path / "out")
    assert (code, "b.nwb: not an HDF5 file" in err, "1 of 3 recordings" in err) == (1, True, True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "sub-T_ses-a_bin-50ms.nc",
        "sub-T_ses-c_bin-50ms.nc",
    ]
    assert out.count("4 channels") == 2
