"""NWB files as MATLAB writes them: scalars as arrays of one, lists as rows or columns, tables in other places."""

import json

import h5py
import numpy as np
import pytest
from nwb_files import TEXT, spikes_file

import bci_adapt as ba
from bci_adapt.data.nwb import open_nwb
from bci_adapt.data.prepare import inspect, prepare
from bci_adapt.errors import InputError


def edited(path, change):
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def attributes_as_arrays(file):
    def each(_, found):
        for name in list(found.attrs):
            value = found.attrs[name]
            if isinstance(value, str):
                del found.attrs[name]
                found.attrs.create(name, np.array([value], dtype=object), dtype=TEXT)
            elif np.ndim(value) == 0:
                found.attrs[name] = np.array([[value]])

    each("/", file["/"])
    file.visititems(each)


def test_attributes_that_are_arrays_of_one_read_like_scalars(tmp_path):
    plain = prepare(spikes_file(tmp_path / "a.nwb", conversion=0.5), 0.05)
    made = prepare(edited(spikes_file(tmp_path / "b.nwb", conversion=0.5), attributes_as_arrays), 0.05)
    assert made["position"].attrs["units"] == "cm"
    assert made.drop_attrs().identical(plain.drop_attrs())
    with open_nwb(tmp_path / "b.nwb") as file:
        assert file.version == "2.6.0"
        assert file.label("processing/behavior/Position/cursor_pos", "neurodata_type") == "SpatialSeries"


def reshaped(shape, *keys):
    def change(file):
        for key in keys:
            values = file[key][()]
            attributes = dict(file[key].attrs)
            del file[key]
            file.create_dataset(key, data=values.reshape(shape)).attrs.update(attributes)

    return change


LISTS = (
    "units/spike_times", "units/spike_times_index", "units/electrodes", "units/electrodes_index", "units/id",
    "intervals/trials/id", "intervals/trials/start_time", "intervals/trials/target_dir",
    "processing/behavior/Position/cursor_pos/timestamps", "processing/behavior/Velocity/cursor_vel/timestamps",
    "general/extracellular_ephys/electrodes/id", "general/extracellular_ephys/electrodes/label",
)  # fmt: skip


@pytest.mark.parametrize("shape", [(1, -1), (-1, 1)])
def test_rows_and_columns_are_lists(tmp_path, shape):
    plain = prepare(spikes_file(tmp_path / "a.nwb"), 0.05)
    file = edited(spikes_file(tmp_path / "b.nwb"), reshaped(shape, *LISTS))
    made = prepare(file, 0.05)
    assert made.drop_attrs().identical(plain.drop_attrs())
    assert inspect(file).series[0].stop_s == inspect(tmp_path / "a.nwb").series[0].stop_s


@pytest.mark.parametrize("shape", [(-1,), (1, -1), (-1, 1)])
def test_a_signal_of_one_axis_may_be_a_row_or_a_column(tmp_path, shape):
    values = np.sin(np.arange(1, 2001) / 100.0)
    file = spikes_file(tmp_path / "a.nwb", position=values.reshape(shape), axes="x")
    edited(file, lambda file: file.__delitem__("processing/behavior/Velocity"))
    made = prepare(file, 0.01)
    assert np.array_equal(made["position"].values[:, 0], values[1:])


def test_a_table_of_units_elsewhere_is_listed_and_can_be_named(tmp_path):
    plain = prepare(spikes_file(tmp_path / "a.nwb"), 0.05)

    def moved(file):
        file.require_group("processing/ecephys")
        file.move("units", "processing/ecephys/sorted")

    alone = edited(spikes_file(tmp_path / "b.nwb"), moved)
    found = inspect(alone)
    assert [(each.kind, each.path, each.channels) for each in found.neural] == [
        ("spike times", "processing/ecephys/sorted", 4)
    ]
    assert found.chosen == "generic"
    assert "processing/ecephys/sorted" in found.why
    for options in ({}, {"spikes": "processing/ecephys/sorted"}):
        made = prepare(alone, 0.05, **options)
        assert np.array_equal(made["counts"], plain["counts"])
        assert made["channel"].values.tolist() == plain["channel"].values.tolist()

    def second(file):
        file.copy("units", "processing/ecephys/sorted")
        file["processing/ecephys/sorted/spike_times"][...] += 0.01

    both = edited(spikes_file(tmp_path / "c.nwb"), second)
    assert [each.path for each in inspect(both).neural] == ["units", "processing/ecephys/sorted"]
    assert np.array_equal(prepare(both, 0.05)["counts"], plain["counts"])
    assert not np.array_equal(prepare(both, 0.05, spikes="processing/ecephys/sorted")["counts"], plain["counts"])


@pytest.mark.parametrize("start", ["last Tuesday", "30-Jun-2016 10:00:00", ""])
def test_a_start_that_is_no_date_is_a_warning(tmp_path, start):
    def change(file):
        del file["session_start_time"]
        file.create_dataset("session_start_time", data=start, dtype=TEXT)

    made = prepare(edited(spikes_file(tmp_path / "a.nwb"), change), 0.05)
    said = [each for each in json.loads(made.attrs["warnings"]) if "is no date and time" in each]
    assert len(said) == 1
    assert start in said[0]
    ba.write_session(made, tmp_path / "a.nc")
    assert any("is no date and time" in each for each in inspect(tmp_path / "a.nwb").warnings)


def test_a_recording_without_a_spike_is_described_and_refused(tmp_path):
    silent = {"spike_times": np.zeros(0), "spike_times_index": np.zeros(4, np.int64)}
    file = spikes_file(tmp_path / "a.nwb", **silent)
    assert inspect(file).units["spikes"] == 0
    with pytest.raises(InputError, match="units/spike_times holds no spikes"):
        prepare(file, 0.05)
