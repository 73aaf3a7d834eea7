"""Commands about recordings take every kind of file, and one sentence says what is wrong with any of them."""

import json

import h5py
import numpy as np
import pytest
from nwb_files import spikes_file
from scipy.io import savemat

from bci_adapt.data.sessions import read_session

NAMES = [f"e{i}" for i in range(4)]


@pytest.fixture
def files(tmp_path, call):
    trains = [np.sort(np.random.default_rng(i).uniform(0, 200.0, 4000)) for i in range(4)]
    spikes = {"spike_times": np.concatenate(trains), "spike_times_index": 4000 * np.arange(1, 5)}
    recording = spikes_file(tmp_path / "a.nwb", duration_s=200.0, **spikes)
    assert call("prepare", recording, "-o", tmp_path / "out", "-q")[0] == 0
    rng = np.random.default_rng(0)
    phase = np.arange(4000) / 9
    arrays = {
        "counts": rng.poisson(2.0, (4000, 4)),
        "target": np.stack([np.sin(phase), np.cos(phase)], axis=1),
        "target_units": "cm",
    }
    np.savez(tmp_path / "b.npz", channels=np.array(NAMES), **arrays)
    savemat(tmp_path / "c.mat", {"channels": np.array(NAMES, dtype=object), **arrays})
    prepared = next((tmp_path / "out").glob("*.nc"))
    return {".nwb": recording, ".nc": prepared, ".npz": tmp_path / "b.npz", ".mat": tmp_path / "c.mat"}


@pytest.mark.parametrize("kind", [".nwb", ".nc", ".npz", ".mat"])
def test_every_kind_of_file_goes_in_everywhere(files, call, tmp_path, kind):
    file = files[kind]
    code, out, _ = call("inspect", file, "--json", "-")
    assert code == 0
    found = json.loads(out)
    assert found["neural"][0]["channels"] == 4
    assert found["series"][0]["shape"][1] == 2
    assert len(found["channels"]) in (3, 4)  # of a recording, those that carry units
    assert call("inspect", file)[0] == 0
    assert call("qc", file, "-q")[0] == 0
    assert call("scan", file, "--bin", "0.05", "--lag=0:0.1", "--block-s", "10", "-q")[0] == 0
    assert call("drift", file, file, "-q", "--block-s", "10")[0] == 0
    code, _, err = call("prepare", file, "-o", tmp_path / "new", "-q")
    if kind == ".nc":
        assert (code, "is a prepared session" in err) == (2, True)
    else:
        assert code == 0
        made = read_session(next((tmp_path / "new").glob("*_bin-50ms.nc")))
        assert made.sizes["channel"] == 4
    if kind in (".npz", ".mat"):
        code, _, err = call("prepare", file, "--layout", "generic", "-o", tmp_path / "new")
        assert (code, "take no layout" in err) == (2, True)


def test_what_is_wrong_is_one_sentence(files, call, tmp_path):
    unlabelled = spikes_file(tmp_path / "d.nwb", kinematics=False, duration_s=60.0)
    text = tmp_path / "e.nwb"
    text.write_text("no recording")
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["x"] = np.ones(3)
    recording, prepared = files[".nwb"], files[".nc"]
    for command, message in [
        (["scan", recording, "--bin", ".05", "--variable", "speed"], "expected target 'speed', it holds"),
        (["scan", prepared, "--bin", ".05", "--variable", "speed"], "expected target 'speed', it holds"),
        (["scan", unlabelled, "--bin", ".05"], "expected target 'velocity', it holds none"),
        (["scan", recording, "--bin", "50"], "50 ms are 0.05"),
        (["scan", prepared, "--bin", "50"], "50 ms are 0.05"),
        (["prepare", recording, "--bin-s", "50", "-o", tmp_path / "out"], "50 ms are 0.05"),
        (["qc", files[".npz"], "--bin-s", "50"], "50 ms are 0.05"),
        (["inspect", text], "not an HDF5 file"),
        (["inspect", tmp_path / "f.h5"], "not NWB"),
        (["inspect", tmp_path / "none.npz"], "no such file"),
        (["prepare", tmp_path / "none.npz", "-o", tmp_path / "out"], "no such file"),
        (["qc", tmp_path], "not a file"),
    ]:
        code, out, err = call(*command)
        assert code == 2, command
        assert message in " ".join(err.split()), (command, err)
        assert "Traceback" not in out + err


def test_another_width_never_takes_the_place_of_a_session(files, call, tmp_path):
    before = files[".nc"].read_bytes()
    for bin_s in (0.05, 0.1, 0.5):
        assert call("prepare", files[".nwb"], "--bin-s", bin_s, "-o", tmp_path / "out", "-q")[0] == 0
    names = sorted(path.name.rpartition("_")[2] for path in (tmp_path / "out").iterdir())
    assert names == ["bin-100ms.nc", "bin-500ms.nc", "bin-50ms.nc"]
    assert files[".nc"].read_bytes() == before
