"""Commands about recordings take every kind of file, and one sentence says what is wrong with any of them."""

import json
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
from caches import new_cache
from nwb_files import spikes_file
from nwb_layouts_b import matlab_arrays, other_matlab
from scipy.io import savemat

import bci_adapt as ba
from bci_adapt.archive.sources.folder import Folder
from bci_adapt.data.any_file import inspect, read
from bci_adapt.data.guarded_reading import opened
from bci_adapt.data.session_files import read_session, write_session
from bci_adapt.data.sessions import session_file_name
from bci_adapt.experiment import comparing
from bci_adapt.live import adapting
from bci_adapt.results import report

KINDS = (".nwb", ".nc", ".npz", ".mat", "7.3.mat")
DURATION_S = 200.0
SMALL = {"n_hidden": 4, "n_updates": 5, "added_updates": 2, "warm_up_s": 5.0}
CONTROLS = {
    "without": [
        "output_bias", "readout", "recurrent", "from_random", "intention", "pseudo", "fine_tuned", "joint_oracle",
        "joint_ridge", "aligned", "kalman_normaliser", "kalman_adaptive", "kalman_refit", "kalman_pv_frozen",
        "kalman_pv_normaliser", "kalman_pv_adaptive", "kalman_pv_refit", "network_oracle",
    ],
} | dict.fromkeys(("no_drift", "continuing", "back", "channels", "cold", "costs", "drift"), False)  # fmt: skip
TINY = {
    "network": {"n_hidden": 4, "n_updates": 5, "oracle_updates": 5, "joint_updates": 5, "warm_up_s": 5.0},
    "sweeps": {"arms": []},
    "controls": CONTROLS,
}
CONFIG = """
name = "doors"
stream_s = 60.0
min_held_out_s = 50.0
[source]
kind = "folder"
[[pairs]]
source = 1
targets = [2]
[network]
cells = ["tanh"]
n_hidden = 4
n_updates = 5
[sweeps]
arms = []
[controls]
"""


def recording(path, day, **change):
    trains = [np.sort(np.random.default_rng(10 * day + i).uniform(0, DURATION_S, 4000)) for i in range(4)]
    spikes = {"spike_times": np.concatenate(trains), "spike_times_index": 4000 * np.arange(1, 5)}
    spikes_file(path, duration_s=DURATION_S, **spikes, **change)
    with h5py.File(path, "a") as file:
        file["general/session_id"][()] = f"day{day}"
        file["session_start_time"][()] = f"2020-01-{day + 1:02d}T00:00:00+00:00"
    return path


def arguments_of(session):
    """What `ba.session` would be given to make a session once more."""
    return {
        "counts": session["counts"].values.astype(float),
        "target": session["position"].values,
        "target_time_s": session["time"].values,
        "channels": session["channel"].values.tolist(),
        "axes": session["axis"].values.tolist(),
        "target_units": session["position"].attrs["units"],
        "bin_s": 0.05,
        **{name: session.attrs[name] for name in ("session_id", "subject", "session_start")},
    }


def as_kind(kind, path, session):
    """A file of one of the kinds but ``.nwb`` with a session in it."""
    if kind == ".nc":
        write_session(session, path)
        return path
    given = arguments_of(session)
    if kind == "7.3.mat":
        return matlab_arrays(path, **given)
    given |= {name: np.array(given[name], dtype=object if kind == ".mat" else str) for name in ("channels", "axes")}
    if kind == ".mat":
        savemat(path, given, oned_as="column")
    else:
        np.savez(path, **given)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("doors")


@pytest.fixture(scope="module")
def days(folder):
    """The same two days as files of every kind; each kind in a folder of its own."""
    made = {}
    for kind in KINDS:
        place = folder / kind.strip(".")
        place.mkdir()
        made[kind] = [place / f"day{day}{kind}" for day in range(2)]
    for day in range(2):
        session = read(recording(made[".nwb"][day], day), 0.05)
        for kind in KINDS[1:]:
            as_kind(kind, made[kind][day], session)
    return made


@pytest.fixture(scope="module")
def cache(folder):
    return new_cache(folder)


@pytest.fixture(autouse=True)
def _small(cache, monkeypatch):
    """One cache for this file, small networks and no pages: what is tested is that files go in."""
    monkeypatch.setenv("BCI_ADAPT_CACHE", str(cache))
    monkeypatch.setattr(adapting, "recommended", partial(ba.recommended, **SMALL))
    monkeypatch.setattr(comparing, "QUICK", TINY)
    monkeypatch.setattr(comparing, "ARMS", comparing.ARMS[:1])
    monkeypatch.setattr(report, "render_report", lambda folder: None)


@pytest.fixture
def config(tmp_path):
    without = ", ".join(f'"{name}"' for name in CONTROLS["without"])
    rest = "".join(f"{name} = false\n" for name in CONTROLS if name != "without")
    path = tmp_path / "doors.toml"
    path.write_text(f'{CONFIG}without = [{without}]\n{rest}[[arms]]\nrule = "immediate"\noptimizer = "rmsprop"\n')
    return path


@pytest.fixture(scope="module")
def decoder(folder, days):
    path = folder / "decoder.npz"
    ba.WienerDecoder(n_lags=3).fit(ba.match([read(days[".nc"][0])])[0], "velocity").save(path)
    return path


def commands(file, other, decoder, config, out):
    """Every command that takes a recording, by name, on a file and one of a later day."""
    return {
        "inspect": ["inspect", file, "-q"],
        "prepare": ["prepare", file, "-o", out / "new", "-q"],
        "qc": ["qc", file, "-q"],
        "drift": ["drift", file, other, "-q", "--block-s", "10"],
        "scan": ["scan", file, "--bin", "0.05,0.1", "--lag=0:0.1", "--block-s", "10", "-q"],
        "compare": ["compare", file, other, "--quick", "--stream", "60", "--workers", "0", "-q"],
        "pretrain": ["pretrain", file, other, "-o", out / "pretrained.npz", "-q"],
        "adapt": ["adapt", decoder, file, "-o", out / "adapted.npz", "--stream-s", "60", "-q"],
        "predict": ["predict", decoder, file, "-o", out / "predicted.nc", "-q"],
        "run": ["run", config, "--data", file.parent, "--workers", "0", "-q"],
    }


NAMES = [*commands(*[Path()] * 5)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_goes_into_every_command(days, decoder, config, call, tmp_path, kind, name):
    code, out, err = call(*commands(*days[kind], decoder, config, tmp_path)[name])
    if name == "prepare" and kind == ".nc":
        assert code == 2
        assert "is a prepared session, in bins of 0.05 s: use it as it is, or prepare the recording" in err
        return
    assert code == 0, err
    assert "Traceback" not in out + err


@pytest.mark.parametrize("kind", KINDS[1:])
def test_every_kind_gives_the_same_session(days, kind):
    """Value by value that of the recording, however it is stored; MATLAB turns arrays, which must be turned back."""
    expected, found = read(days[".nwb"][0], 0.05), read(days[kind][0])
    assert session_file_name(found) == session_file_name(expected)
    for name in ("counts", "position", "time", "channel", "axis"):
        assert np.array_equal(found[name].values, expected[name].values, equal_nan=found[name].dtype.kind == "f"), name
    described = inspect(days[kind][0])
    assert (described.session_id, described.neural[0].channels) == ("sub-T_ses-day0", 4)
    assert described.channels == expected["channel"].values.tolist()


@pytest.mark.parametrize("named", ["cell", "char"])
def test_matlab_cells_of_spike_times_and_names(tmp_path, named):
    """Version 7.3 keeps cells by reference, tables of characters turned, and what is empty as its size."""
    rng = np.random.default_rng(3)
    trains = [np.sort(rng.uniform(0, 60.0, n)) for n in (900, 700, 0, 800)]
    target_time_s = np.arange(1, 1201) * 0.05
    target = np.stack([np.sin(target_time_s), np.cos(target_time_s)], axis=1)
    names = ["e1", "e2", "e3", "e4"]
    path = matlab_arrays(
        tmp_path / "a.mat", spikes=trains, target=target, target_time_s=target_time_s, target_units="cm"
    )
    with h5py.File(path, "a") as file:
        empty = file[file["spikes"][0, 2]].name
        del file[empty]
        file[empty] = np.zeros(2, np.uint64)  # its size, as MATLAB writes
        file[empty].attrs["MATLAB_empty"] = np.uint8(1)
        file["spikes"][0, 2] = file[empty].ref
        if named == "char":
            file["channels"] = np.array([[ord(c) for c in name] for name in names], np.uint16).T
            file["channels"].attrs["MATLAB_class"] = np.bytes_("char")
        else:
            made = file.create_dataset("channels", (4, 1), h5py.ref_dtype)
            made.attrs["MATLAB_class"] = np.bytes_("cell")
            for place, name in enumerate(names):
                file[f"#refs#/name{place}"] = np.array([[ord(c)] for c in name], np.uint16)
                made[place, 0] = file[f"#refs#/name{place}"].ref
    found = read(path, 0.05)
    expected = ba.session(trains, target, target_time_s, bin_s=0.05, channels=names, target_units="cm", session_id="a")
    assert found["channel"].values.tolist() == names
    for name in ("counts", "position", "time"):
        np.testing.assert_array_equal(found[name].values, expected[name].values)
    assert found["counts"].values.sum() > 2000
    with h5py.File(path, "a") as file:
        del file["target"]
        file.create_group("target").attrs["MATLAB_class"] = np.bytes_("struct")
    with pytest.raises(ba.InputError, match="target is a MATLAB struct: save it as an array, a cell array or a char"):
        read(path, 0.05)


def spoiled(folder):
    """Files that are no recording, by what is wrong with them, and the words that say so."""
    text, damaged, hdf5, empty = (folder / name for name in ("text.nwb", "damaged.npz", "other.nwb", "empty.npz"))
    text.write_text("no recording")
    damaged.write_bytes(b"PK\x03\x04 and nothing more")
    with h5py.File(hdf5, "w") as file:
        file["x"] = np.ones(3)
    np.savez(empty)
    np.savez(folder / "spkes.npz", spkes=np.ones((9, 4)))
    savemat(folder / "struct.mat", {"trial": {"a": 1}})
    with h5py.File(matlab_arrays(folder / "words.mat", channels="a", counts=np.ones((9, 4))), "a") as file:
        file["channels"].attrs["MATLAB_class"] = np.bytes_("string")
    return {
        text: "not an HDF5 file",
        damaged: "a file of arrays (npz) was expected",
        hdf5: "not NWB",
        empty: "holds no arrays",
        folder / "spkes.npz": "did you mean 'spikes'",
        folder / "struct.mat": "unknown array 'trial'",
        folder / "words.mat": "channels is a MATLAB string: save texts as char or cellstr",
        other_matlab(folder / "other.mat"): "unknown array 'results'",
        folder / "none.nwb": "no such",
        folder / "none.npz": "no such",
        folder / "none.nc": "no such",
    }


@pytest.fixture(scope="module")
def refused(folder, days, decoder):
    (folder / "spoiled").mkdir()
    from bci_adapt.live import predicting

    cases = spoiled(folder / "spoiled")
    predicting.write_prediction(predicting.predict(decoder, days[".nc"][1])[0], folder / "spoiled" / "predicted.nc")
    return cases | {
        folder / "spoiled" / "predicted.nc": "not a session",
        decoder: "is a saved decoder, not a recording",
        days[".nwb"][0].parent: "not a file",
    }


@pytest.mark.parametrize("name", NAMES[:-1])
def test_what_is_no_recording_is_refused_by_every_command_alike(
    days, decoder, config, refused, call, tmp_path, monkeypatch, name
):
    for file, message in refused.items():
        if (name, message) == ("prepare", "not a file"):
            continue  # a folder is what prepare takes, too
        code, out, err = call(*commands(file, days[".nwb"][1], decoder, config, tmp_path)[name])
        assert code == 2, (file, out, err)
        said = " ".join(err.split())
        assert message in said, (file, err)
        assert "Traceback" not in out + err
        assert len(err.splitlines()) == 1, err
    assert list(tmp_path.iterdir()) == [config]


def test_what_is_wrong_is_one_sentence(days, call, tmp_path):
    unlabelled = recording(tmp_path / "d.nwb", 0, kinematics=False)
    nwb, prepared, arrays = (days[kind][0] for kind in (".nwb", ".nc", ".npz"))
    out = ["-o", tmp_path / "out"]
    for command, message in [
        (["scan", nwb, "--bin", ".05", "--variable", "speed"], "expected target 'speed', it holds"),
        (["scan", prepared, "--bin", ".05", "--variable", "speed"], "expected target 'speed', it holds"),
        (["scan", arrays, "--bin", ".05", "--variable", "speed"], "expected target 'speed', it holds"),
        (["scan", unlabelled, "--bin", ".05"], "expected target 'velocity', it holds none"),
        (["scan", nwb, "--bin", "50"], "50 ms are 0.05"),
        (["scan", prepared, "--bin", "50"], "50 ms are 0.05"),
        (["prepare", nwb, "--bin-s", "50", *out], "50 ms are 0.05"),
        (["qc", nwb, "--bin-s", "50"], "50 ms are 0.05"),
        (["qc", prepared, "--bin-s", ".02"], "is prepared in bins of 0.05 s, not of 0.02 s: ask for its own width"),
        (["qc", arrays, "--bin-s", ".02"], "holds counts in bins of 0.05 s (its bin_s), not of 0.02 s"),
        (
            ["compare", prepared, days[".nc"][1], "--bin", ".02", "--workers", "0"],
            "is prepared in bins of 0.05 s, not of 0.02 s",
        ),
        (["prepare", prepared, "--bin-s", ".02", *out], "in bins of 0.05 s: for bins of 0.02 s prepare the recording"),
        (["prepare", arrays, "--layout", "generic", *out], "take no layout"),
        (["run", nwb], "is no config (.toml); recordings go in with --data"),
        (["run", tmp_path], "is no config (.toml); recordings go in with --data"),
        (["run", "--data", nwb], "is a file; a folder was expected"),
    ]:
        code, said, err = call(*command)
        assert code == 2, command
        assert message in " ".join(err.split()), (command, err)
        assert "Traceback" not in said + err


def test_another_width_never_takes_the_place_of_a_session(days, call, tmp_path):
    out = tmp_path / "out"
    assert call("prepare", days[".nwb"][0], "-o", out, "-q")[0] == 0
    before = next(out.iterdir()).read_bytes()
    for bin_s in (0.05, 0.1, 0.5):
        assert call("prepare", days[".nwb"][0], "--bin-s", bin_s, "-o", out, "-q")[0] == 0
    names = sorted(path.name.rpartition("_")[2] for path in out.iterdir())
    assert names == ["bin-100ms.nc", "bin-500ms.nc", "bin-50ms.nc"]
    assert next(out.glob("*-50ms.nc")).read_bytes() == before


def test_arrays_say_how_wide_their_bins_are_or_a_warning_does(tmp_path, call):
    counts = np.random.default_rng(0).poisson(2.0, (9000, 4))
    target = np.stack([np.sin(np.arange(9000) / 9), np.cos(np.arange(9000) / 9)], axis=1)
    np.savez(tmp_path / "a.npz", counts=counts, target=target, bin_s=0.02)
    np.savez(tmp_path / "b.npz", counts=counts, target=target)
    assert opened(tmp_path / "a.npz").attrs["bin_s"] == 0.02
    guessed = opened(tmp_path / "b.npz")
    assert guessed.attrs["bin_s"] == 0.05
    assert "neither bin_s nor target_time_s says" in guessed.attrs["warnings"]
    told = [opened(tmp_path / "b.npz", 0.05), opened(tmp_path / "a.npz")]
    assert not any("neither bin_s" in each.attrs["warnings"] for each in told)
    with pytest.raises(ba.InputError, match="bin_s, the width of a bin in seconds, is needed"):
        ba.read(tmp_path / "b.npz")
    scanned = ["--lag=0:0", "--block-s", "10", "--json", "-"]
    for name, widths in (("a", "0.04,0.08"), ("b", "0.02,0.04")):  # wider ones are sums, never the same rows again
        code, out, err = call("scan", tmp_path / f"{name}.npz", "--bin", widths, *scanned)
        assert code == 0, err
        assert json.loads(out)["seconds_scored"] < 181.0
    code, _, err = call("scan", tmp_path / "a.npz", "--bin", "0.03", *scanned)
    assert (code, "0.02" in err) == (2, True)


def test_the_name_of_a_session_of_arrays_stays_in_its_folder(days, tmp_path, call):
    given = arguments_of(read_session(days[".nc"][0])) | {"session_id": "../../away"}
    np.savez(tmp_path / "a.npz", **given)
    assert call("prepare", tmp_path / "a.npz", "-o", tmp_path / "in" / "out", "-q")[0] == 0
    assert [path.name for path in tmp_path.rglob("*.nc")] == ["away_bin-50ms.nc"]
    assert (tmp_path / "in" / "out" / "away_bin-50ms.nc").is_file()


def test_a_folder_is_of_one_kind_and_says_what_it_leaves_out(days, tmp_path):
    for kind in (".npz", ".nc", ".nwb"):
        (tmp_path / days[kind][0].name).write_bytes(days[kind][0].read_bytes())
        source = Folder(tmp_path)
        assert [path.suffix for path in source.list()["path"]] == [kind]
        told = {".npz": [], ".nc": ["1 arrays"], ".nwb": ["1 prepared sessions", "1 arrays"]}[kind]
        assert all(each in " ".join(source.notes()) for each in told)
        assert bool(source.notes()) == bool(told)


def test_arrays_without_a_date_keep_their_order_which_is_said(days, tmp_path):
    given = arguments_of(read_session(days[".nc"][0]))
    undated = {name: value for name, value in given.items() if name not in ("session_start", "session_id")}
    for name in "cab":
        np.savez(tmp_path / f"{name}.npz", **undated)
    source = Folder(tmp_path)
    assert source.list().index.tolist() == ["a", "b", "c"]
    assert source.notes() == [
        "a.npz, b.npz, c.npz do not say when they were recorded: taken in the order of their names"
    ]
    np.savez(tmp_path / "d.npz", **undated, session_start="2020-01-01")
    with pytest.raises(ba.InputError, match=r"a\.npz: does not say when .*\(session_start\), d\.npz does"):
        Folder(tmp_path).list()
    np.savez(tmp_path / "d.npz", **undated, session_start="yesterday")
    with pytest.raises(ba.InputError, match=r"d\.npz: session_start must be a date and time"):
        Folder(tmp_path).list()


def test_a_prepared_session_is_not_taken_for_one_of_other_thresholds(days, config, call):
    command = ["run", config, "--data", days[".nc"][0].parent, "--workers", "0", "-q"]
    code, _, err = call(*command, "--set", "thresholds.silent_s=3")
    assert code == 2
    assert "was prepared with other thresholds (silent_s)" in err
