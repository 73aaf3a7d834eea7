"""Every class of unusable file: one clear error naming file or key, nothing left behind."""

import re

import h5py
import numpy as np
import pytest
from nwb_files import counts_file, spikes_file

from bci_adapt.errors import InputError
from bci_adapt.prepare import prepare_file


def truncated(path):
    whole = spikes_file(path)
    whole.write_bytes(whole.read_bytes()[:20_000])


def external_link(path):
    spikes_file(path)
    with h5py.File(path, "a") as file:
        file["acquisition/elsewhere"] = h5py.ExternalLink("/etc/hostname", "/data")


def loop(path):
    path.symlink_to(path)


def old_schema(path):
    with h5py.File(path, "w") as file:
        file.create_dataset("nwb_version", data="NWB-1.0.6")


def negative_rate(path):
    counts_file(path)
    with h5py.File(path, "a") as file:
        file["acquisition/ThresholdCrossings/starting_time"].attrs["rate"] = -20.0


def replace(path, key, value, **change):
    spikes_file(path, **change)
    with h5py.File(path, "a") as file:
        del file[key]
        file[key] = value


def with_attribute(path, key, name, value):
    counts_file(path)
    with h5py.File(path, "a") as file:
        file[key].attrs[name] = value


def sparse(path):
    """A kilobyte of file that claims eight gigabytes once read as numbers."""
    spikes_file(path)
    with h5py.File(path, "a") as file:
        del file["processing/behavior/Position/cursor_pos/data"]
        file["processing/behavior/Position/cursor_pos"].create_dataset("data", (2**29, 2), "i1", chunks=(2**20, 2))


def damaged_type(path):
    """Floats with an exponent bias that no number type has, as one flipped byte makes them."""
    spikes_file(path)
    with h5py.File(path, "a") as file:
        kind = h5py.h5t.IEEE_F64LE.copy()
        kind.set_ebias(2**40)
        holder = file["processing/behavior/Position/cursor_pos"]
        del holder["data"]
        h5py.h5d.create(holder.id, b"data", kind, h5py.h5s.create_simple((2000, 2)))


def no_target(path):
    """Spikes, and one series of which nothing says that it is movement."""
    spikes_file(path, kinematics=False)
    with h5py.File(path, "a") as file:
        file["acquisition/other/data"] = np.zeros(2000)
        file["acquisition/other/timestamps"] = TIMES


def electrode_ids(path):
    spikes_file(path)
    with h5py.File(path, "a") as file:
        table = file["general/extracellular_ephys/electrodes"]
        for name in ("id", "group_name", "label"):
            del table[name]
        table["id"] = 3


TIMES = np.arange(1, 2001) / 100.0
CASES = {
    "missing": (lambda path: None, "no such file"),
    "folder": (lambda path: path.mkdir(), "not a file"),
    "truncated": (truncated, "truncated"),
    "text": (lambda path: path.write_text("not NWB"), "not an HDF5 file"),
    "other hdf5": (lambda path: h5py.File(path, "w").close(), "not NWB"),
    "old schema": (old_schema, "NWB 2"),
    "symlink loop": (loop, "cannot be opened"),
    "external link": (external_link, "link to another file"),
    "no target": (no_target, "other is surely a kinematic: name one"),
    "no spikes": (
        lambda path: spikes_file(path, spike_times=np.zeros(0), spike_times_index=np.zeros(4, int)),
        "holds no spikes",
    ),
    "one channel": (lambda path: counts_file(path, n_channels=1), "at least two"),
    "one channel that spikes": (
        lambda path: counts_file(path, counts=np.tile(np.array([[1, 0, 0, 0]], np.uint16), (400, 1))),
        "1 of 4 channels ever spike",
    ),
    "all NaN": (lambda path: spikes_file(path, position=np.full((2000, 2), np.nan)), "not NaN"),
    "milliseconds": (lambda path: spikes_file(path, scale=1000.0), "another unit"),
    "kinematics in milliseconds": (lambda path: spikes_file(path, timestamps=TIMES * 1000.0), "cannot fill bins"),
    "NaN spike": (lambda path: spikes_file(path, spike_times=np.full(800, np.nan)), "spike_times"),
    "index outside": (
        lambda path: spikes_file(path, spike_times_index=np.array([200, 400, 600, 900])),
        "spike_times_index",
    ),
    "electrode outside": (lambda path: spikes_file(path, electrodes=np.array([0, 1, 2, 99])), "electrodes"),
    "timestamps too short": (lambda path: spikes_file(path, timestamps=TIMES[:-5]), "timestamps"),
    "timestamps (2, N)": (lambda path: spikes_file(path, timestamps=np.stack([TIMES, TIMES])), "timestamps"),
    "NaN timestamp": (lambda path: spikes_file(path, timestamps=np.where(TIMES == 5, np.nan, TIMES)), "timestamps"),
    "a billion bins": (spikes_file, "cannot fill bins of 1e-06 s"),
    "eight gigabytes": (sparse, "cursor_pos/data claims shape"),
    "damaged type": (damaged_type, "cursor_pos/data has a type that cannot be read"),
    "one electrode id": (electrode_ids, "electrodes"),
    "negative rate": (negative_rate, "rate"),
    "no rate": (lambda path: with_attribute(path, "acquisition/ThresholdCrossings/starting_time", "rate", "x"), "rate"),
    "conversion zero": (
        lambda path: with_attribute(path, "processing/behavior/Position/cursor_pos/data", "conversion", 0.0),
        "conversion",
    ),
    "no samples": (lambda path: spikes_file(path, position=np.zeros((0, 2)), timestamps=np.zeros(0)), "cursor_pos"),
    "scalar spike index": (
        lambda path: spikes_file(path, spike_times_index=np.int64(800)),
        "spike_times_index must be",
    ),
    "scalar electrodes index": (lambda path: replace(path, "units/electrodes_index", 4), "electrodes_index must be"),
    "scalar interval index": (
        lambda path: replace(path, "units/obs_intervals_index", 4, obs_intervals=np.array([[0.0, 20.0]])),
        "obs_intervals_index must be",
    ),
    "fractions": (lambda path: counts_file(path, counts=np.full((400, 4), 0.5)), "whole counts"),
}


@pytest.mark.parametrize("name", CASES)
def test_one_clear_error_and_nothing_left_behind(tmp_path, name):
    make, message = CASES[name]
    path, out = tmp_path / "session.nwb", tmp_path / "out"
    out.mkdir()
    make(path)
    bin_s = 1e-6 if name == "a billion bins" else 0.05
    with pytest.raises(InputError, match=message) as caught:
        prepare_file(path, out, bin_s)
    assert "session.nwb" in str(caught.value)
    assert list(out.iterdir()) == []


def test_an_unknown_layout_names_the_nearest(tmp_path):
    path = counts_file(tmp_path / "a.nwb")
    with pytest.raises(InputError, match=re.escape("did you mean 'wrist'")):
        prepare_file(path, tmp_path / "out", 0.05, layout="wrst")
    assert not (tmp_path / "out").exists()


CONFIG = """
name = "two"
stream_s = 10.0
min_held_out_s = 5.0
[source]
kind = "folder"
[[pairs]]
source = 1
targets = [2]
[network]
cells = ["tanh"]
[[arms]]
rule = "immediate"
optimizer = "rmsprop"
learning_rate = 1e-3
"""


def test_sessions_with_other_channels_are_refused_before_anything_is_fitted(call, tmp_path, monkeypatch):
    monkeypatch.setenv("BCI_ADAPT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "config.toml").write_text(CONFIG)
    (tmp_path / "data").mkdir()
    for name, n_channels in (("first", 4), ("second", 5)):
        path = counts_file(tmp_path / "data" / f"{name}.nwb", n_channels=n_channels)
        with h5py.File(path, "a") as file:
            file["general/session_id"][()] = name
    code, out, err = call("run", tmp_path / "config.toml", "--data", tmp_path / "data", "--workers", 0)
    assert (code, out) == (2, "")
    assert "sub-T_ses-first (4) and sub-T_ses-second (5) differ" in err
    assert "M1/elec4" in err
    assert not (tmp_path / "cache" / "runs").exists()
    assert not list((tmp_path / "cache").rglob("*.part"))
