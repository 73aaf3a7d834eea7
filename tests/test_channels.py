"""Which channel of one session is which of another: every policy, every rule for what is missing."""

import json

import h5py
import numpy as np
import pytest
from nwb_files import counts_file, spikes_file

from bci_adapt.data.channels import common, match, policy_of, pooled, select
from bci_adapt.data.prepare import prepare
from bci_adapt.data.sessions import check
from bci_adapt.errors import InputError


@pytest.fixture(scope="module")
def electrodes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("channels")
    first = prepare(counts_file(folder / "a.nwb", n_channels=5), 0.05)
    second = prepare(counts_file(folder / "b.nwb", n_channels=5, seed=1), 0.05)
    # The second day lists its electrodes in another order, has lost one and has a new one.
    second = second.isel(channel=[3, 0, 4, 1]).assign_coords(channel=["M1/elec3", "M1/elec0", "M1/new", "M1/elec1"])
    return first, second.drop_vars("electrode")


def test_channels_are_matched_by_name_never_by_place(electrodes):
    first, second = electrodes
    assert policy_of(first) == "electrode"
    a, b = match([first, second], missing="drop")
    assert a["channel"].values.tolist() == b["channel"].values.tolist() == ["M1/elec0", "M1/elec1", "M1/elec3"]
    assert np.array_equal(a["counts"], first["counts"].values[:, [0, 1, 3]])
    assert np.array_equal(b["counts"], second["counts"].values[:, [1, 3, 0]])
    assert json.loads(b.attrs["channels_left_out"]) == ["M1/new"]
    assert json.loads(a.attrs["channels_left_out"]) == ["M1/elec2", "M1/elec4"]
    assert (a.attrs["channel_policy"], json.loads(a.attrs["channels_zeroed"])) == ("electrode", [])
    for each in (a, b):
        check(each)
    assert second["counts"].shape[1] == 4  # what was given is as it was


def test_a_missing_electrode_counts_zero_only_when_asked(electrodes):
    first, second = electrodes
    a, b = match([first, second], missing="zero")
    assert a["channel"].values.tolist() == b["channel"].values.tolist() == first["channel"].values.tolist()
    assert not b["counts"].values[:, [2, 4]].any()
    assert np.array_equal(b["counts"].values[:, 1], second["counts"].values[:, 3])
    assert json.loads(b.attrs["channels_zeroed"]) == ["M1/elec2", "M1/elec4"]
    with pytest.raises(InputError, match=r"only in .*: M1/elec2, M1/elec4; only in .*: M1/new"):
        match([first, second])
    assert match([first, first])[1]["counts"].equals(first["counts"])


def test_units_are_pooled_matched_by_name_or_refused(tmp_path):
    path = spikes_file(tmp_path / "a.nwb")
    per_unit, per_electrode = prepare(path, 0.05, per="unit"), prepare(path, 0.05)
    assert per_unit["channel"].values.tolist() == [
        "M1/elec0/unit1",
        "M1/elec0/unit2",
        "M1/elec2/unit1",
        "M1/elec3/unit1",
    ]
    assert policy_of(per_unit) == "none"  # a sorter's number says nothing about another day
    together = pooled(per_unit)
    want = per_electrode.sel(channel=together["channel"])
    for name in ("counts", "n_spikes", "n_short_isi"):
        assert np.array_equal(together[name], want[name])
    assert match([per_unit, per_unit], by="unit")[0].sizes["channel"] == 4
    assert match([per_unit, per_electrode], by="pool", missing="drop")[1].sizes["channel"] == 3
    for sessions, by, message in [
        ([per_unit], "electrode", "match by 'pool'"),
        ([per_electrode], "unit", "needs sorted units"),
        ([per_electrode], "none", "cannot be matched"),
        ([per_electrode], "elektrode", "did you mean 'electrode'"),
    ]:
        with pytest.raises(InputError, match=message):
            match(sessions, by=by)
    with h5py.File(spikes_file(tmp_path / "b.nwb"), "a") as file:
        del file["units/electrodes"], file["units/electrodes_index"]
    nameless = prepare(tmp_path / "b.nwb", 0.05, layout="perich")
    assert policy_of(nameless) == "none"
    with pytest.raises(InputError, match="numbers that mean nothing in another"):
        match([nameless, nameless.assign_attrs(session_start="2014-03-04T00:00:00+00:00")])
    assert len(match([nameless, nameless])) == 2  # parts of one recording are


def test_nothing_in_common_is_an_error(electrodes):
    first, _ = electrodes
    with pytest.raises(InputError, match="0 channels are common to a, b"):
        common([["x", "y"], ["u", "v"]], ["a", "b"], "drop")
    with pytest.raises(InputError, match="none of the 2 channels"):
        select(first, ["x", "y"])
    with pytest.raises(InputError, match="rule for missing"):
        common([["x", "y"]], ["a"], "ignore")


def test_two_animals_are_never_matched(electrodes):
    first, _ = electrodes
    with pytest.raises(InputError, match=r"several subjects cannot be matched: T \(.*\), U \("):
        match([first, first.assign_attrs(subject="U")])
    assert len(match([first, first.assign_attrs(subject="")])) == 2  # not stated
