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
    "no target": (lambda path: spikes_file(path, kinematics=False), "position|cursor_pos"),
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
    "NaN spike": (lambda path: spikes_file(path, spike_times=np.full(800, np.nan)), "spike_times"),
    "index outside": (
        lambda path: spikes_file(path, spike_times_index=np.array([200, 400, 600, 900])),
        "spike_times_index",
    ),
    "electrode outside": (lambda path: spikes_file(path, electrodes=np.array([0, 1, 2, 99])), "electrodes"),
    "timestamps too short": (lambda path: spikes_file(path, timestamps=TIMES[:-5]), "timestamps"),
    "timestamps (2, N)": (lambda path: spikes_file(path, timestamps=np.stack([TIMES, TIMES])), "timestamps"),
    "a billion bins": (
        lambda path: spikes_file(path, timestamps=np.linspace(0, 1000, 2000), scale=50.0),
        "bins",
    ),
    "negative rate": (negative_rate, "rate"),
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
    assert "session.nwb" in str(caught.value) or name == "a billion bins"
    assert list(out.iterdir()) == []


def test_an_unknown_layout_names_the_nearest(tmp_path):
    path = counts_file(tmp_path / "a.nwb")
    with pytest.raises(InputError, match=re.escape("did you mean 'wrist'")):
        prepare_file(path, tmp_path / "out", 0.05, layout="wrst")
    assert not (tmp_path / "out").exists()
