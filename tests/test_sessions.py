"""The schema of a session: every breach is named, nothing that breaks it is written or read."""

import errno

import h5py
import numpy as np
import pytest
from nwb_files import counts_file, spikes_file

from bci_adapt.data.labelled import session_arrays
from bci_adapt.data.prepare import prepare
from bci_adapt.data.session_digest import DIGEST
from bci_adapt.data.session_files import open_session, read_session, write_session
from bci_adapt.data.sessions import check, require_same_channels, signed, split
from bci_adapt.errors import InputError


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    return prepare(counts_file(tmp_path_factory.mktemp("session") / "a.nwb"), 0.05)


def changed(session, name, value, dims=None, attrs=None):
    made = session.copy(deep=True)
    made[name] = (dims or session[name].dims, value, attrs if attrs is not None else session[name].attrs)
    return made


def poke(session, name, where, value):
    made = session.copy(deep=True)
    made[name].values[where] = value
    return made


def without(session, attr):
    made = session.copy()
    made.attrs = {key: value for key, value in session.attrs.items() if key != attr}
    return made


BREACHES = {
    "bin_s": lambda s: without(s, "bin_s"),
    "thresholds must be a JSON dict": lambda s: s.assign_attrs(thresholds="[]"),
    "warnings must be a JSON list": lambda s: s.assign_attrs(warnings="not json"),
    "bin_edge": lambda s: s.assign_attrs(bin_edge="[start, end]"),
    "bin_s must be a number": lambda s: s.assign_attrs(bin_s="0.05"),
    "subject must be text": lambda s: s.assign_attrs(subject=3),
    "counts must be uint16": lambda s: changed(s, "counts", s["counts"].values.astype(float)),
    "variable valid is missing": lambda s: s.drop_vars("valid"),
    "segment must be int32": lambda s: changed(s, "segment", s["segment"].values.astype(np.int64)),
    "segment numbers must not decrease": lambda s: poke(s, "segment", slice(0, 5), 3),
    "time must increase by bin_s": lambda s: s.assign_coords(time=s["time"].values * 2),
    "position is NaN in 1 place": lambda s: poke(s, "position", (4, 1), np.nan),
    "velocity_valid is missing": lambda s: s.drop_vars("velocity_valid"),
    "position has no attribute units": lambda s: changed(s, "position", s["position"].values, attrs={}),
    "labels of channel must be unique": lambda s: s.assign_coords(channel=["a", "a", "b", "c"]),
    "labels of channel must be text": lambda s: s.assign_coords(channel=[0, 1, 2, 3]),
    "at least two channels": lambda s: s.isel(channel=slice(0, 1)),
    "not a single bin": lambda s: s.isel(time=slice(0, 0)),
    "counts has no attribute units": lambda s: changed(s, "counts", s["counts"].values.astype(float), attrs={}),
    "counts must be finite": lambda s: changed(
        s, "counts", np.full(s["counts"].shape, np.nan), attrs={"units": "volts^2"}
    ),
    "trial_go_s is missing": lambda s: s.drop_vars("trial_go_s"),
    "trial_result must be text": lambda s: changed(s, "trial_result", np.zeros(s.sizes["trial"])),
}


@pytest.mark.parametrize("message", BREACHES)
def test_every_breach_is_named_and_nothing_is_written(session, message, tmp_path):
    broken = BREACHES[message](session)
    with pytest.raises(InputError, match=message) as caught:
        check(broken)
    assert "sub-T_ses-CO-1" in str(caught.value)
    with pytest.raises(InputError):
        write_session(broken, tmp_path / "s.nc")
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_not_sessions(session, tmp_path):
    with pytest.raises(InputError, match="no such session"):
        read_session(tmp_path / "none.nc")
    (tmp_path / "text.nc").write_text("hello")
    with pytest.raises(InputError, match=r"text\.nc: not a readable session"):
        read_session(tmp_path / "text.nc")
    session.drop_vars("valid").to_netcdf(tmp_path / "part.nc", engine="h5netcdf")
    with pytest.raises(InputError, match=r"part\.nc: not a session: .*valid is missing"):
        read_session(tmp_path / "part.nc")


def test_a_file_is_whole_or_as_it_was(session, tmp_path, monkeypatch):
    path = tmp_path / "s.nc"
    write_session(session, path)
    before = path.read_bytes()

    def breaks(self, data):
        with open(self, "wb") as file:
            file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", breaks)
    with pytest.raises(InputError, match=r"s\.nc: the disk is full"):
        write_session(session, path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["s.nc"]


def test_missing_values_and_empty_tables_come_back_as_they_were(session, tmp_path):
    odd = session.isel(trial=slice(0, 0)).copy(deep=True)
    odd["position"].values[3] = np.nan, -0.0
    odd["position_valid"].values[3] = False
    odd["channel"] = ["a/ü", "b c", "", "d" * 70]
    write_session(odd, tmp_path / "s.nc")
    again = read_session(tmp_path / "s.nc")
    assert again.identical(signed(odd))
    assert again["position"].values.tobytes() == odd["position"].values.tobytes()
    assert {name: value.dtype for name, value in again.variables.items() if name != "trial_result"} == {
        name: value.dtype for name, value in odd.variables.items() if name != "trial_result"
    }


def test_a_split_is_chronological_and_shares_nothing(tmp_path):
    session = prepare(spikes_file(tmp_path / "a.nwb", duration_s=20.05), 0.05)  # 400 bins from 0.01 s on
    moved = session.copy(deep=True)
    moved["trial_start_s"].values[:] = [10.005, np.nan]
    stream, rest = split(moved, 10.0, 10.0)
    assert (stream.sizes["time"], rest.sizes["time"]) == (200, 200)
    assert np.array_equal(np.concatenate([stream["counts"], rest["counts"]]), session["counts"].values)
    assert float(stream["time"][-1]) == pytest.approx(10.01)
    assert (stream.sizes["trial"], rest.sizes["trial"]) == (1, 1)  # one without a start is not learned from
    moved["trial_start_s"].values[0] = 10.01
    assert split(moved, 10.0, 10.0)[0].sizes["trial"] == 0
    for stream_s, held_out_s, message in [(10.0, 10.1, "held out"), (30.0, 0.0, "held out"), (0.0, 1.0, "positive")]:
        with pytest.raises(InputError, match=message):
            split(moved, stream_s, held_out_s)
    between = session_arrays(session, "velocity").n_stream(10.03)  # 200.6 bins: a bin that does not fit is held out
    assert between == split(moved, 10.03, 9.0)[0].sizes["time"] == 200


def test_channels_are_compared_by_name_and_order(session):
    require_same_channels(session, session.copy(deep=True))
    other = session.assign_coords(channel=["x", *session["channel"].values[1:]])
    with pytest.raises(InputError, match=r"only in .*M1/elec0; only in .*x"):
        require_same_channels(session, other)
    with pytest.raises(InputError, match="another order"):
        require_same_channels(session, session.isel(channel=[1, 0, 2, 3]))


ATTRIBUTES = {
    "text": "über",
    "empty text": "",
    "bytes": b"abc",
    "whole": 3,
    "number": 0.1,
    "not a number": float("nan"),
    "minus zero": -0.0,
    "float32": np.float32(0.1),
    "int16": np.int16(-4),
    "uint64": np.uint64(2**63 + 1),
    "list": [1, 2],
    "list of one": [1.5],
    "tuple": (1, 2.5),
    "empty list": [],
    "array": np.arange(6, dtype=np.int16),
    "matrix": np.arange(4.0).reshape(2, 2),
    "matrix of one": np.ones((1, 1)),
    "texts": ["a", "bü", ""],
    "texts of one": ["a"],
}


@pytest.mark.parametrize("kind", ATTRIBUTES)
def test_attributes_of_every_type_come_back_and_are_in_the_digest(session, kind, tmp_path):
    path, value = tmp_path / "s.nc", ATTRIBUTES[kind]
    written = session.assign_attrs(mine=value)
    written["position"] = session["position"].assign_attrs(mine=value)
    write_session(written, path)
    again = read_session(path)
    assert DIGEST not in again.attrs
    plain = value.decode() if isinstance(value, bytes) else value
    for got in (again.attrs["mine"], again["position"].attrs["mine"]):
        assert np.array_equal(np.ravel(got), np.ravel(plain), equal_nan=not isinstance(plain, str | list))
    with open_session(path) as lazy:
        assert DIGEST not in lazy.attrs
    write_session(again, tmp_path / "again.nc")  # what was read is written as what it was
    digests = []
    for each in (path, tmp_path / "again.nc"):
        with h5py.File(each) as file:
            digests.append(file.attrs[DIGEST])
    assert digests[0] == digests[1]
    with h5py.File(path, "a") as file:
        file["position"].attrs["mine"] = "another"
    with pytest.raises(InputError, match=r"s\.nc: is not as it was written"):
        read_session(path)


def test_one_changed_value_of_a_file_is_found(session, tmp_path):
    write_session(session, tmp_path / "s.nc")
    changes = {
        "a count": lambda file: file["counts"].__setitem__((3, 1), file["counts"][3, 1] + 1),
        "a sign of zero": lambda file: file["position"].__setitem__((5, 0), -file["position"][5, 0]),
        "a mask": lambda file: file["valid"].__setitem__(7, 1 - file["valid"][7]),
        "a channel": lambda file: file["channel"].__setitem__(0, "other"),
        "a unit": lambda file: file["position"].attrs.__setitem__("units", "furlong"),
        "the subject": lambda file: file.attrs.__setitem__("subject", "other"),
        "an edge": lambda file: file["time"].__setitem__(slice(None), file["time"][:] + 0.5),
        "a new attribute": lambda file: file.attrs.__setitem__("new", 1),
        "a lost variable": lambda file: file.__delitem__("velocity_valid") or file.__delitem__("velocity"),
        "a scale": lambda file: file["position"].attrs.__setitem__("scale_factor", 2.0),
    }
    for what, change in changes.items():
        path = tmp_path / "changed.nc"
        path.write_bytes((tmp_path / "s.nc").read_bytes())
        with h5py.File(path, "a") as file:
            change(file)
        with pytest.raises(InputError, match=r"changed\.nc: (is not as it was written|not a session)"):
            pytest.fail(f"{what} is taken: {read_session(path)}")
    with h5py.File(tmp_path / "s.nc", "a") as file:
        del file.attrs[DIGEST]
        file["counts"][3, 1] += 1
    older = read_session(tmp_path / "s.nc")  # a file of an earlier version, or of the user's own, has none
    assert older["counts"].values[3, 1] == session["counts"].values[3, 1] + 1


def test_a_session_edited_and_stored_by_xarray_is_taken(session, tmp_path):
    write_session(session, tmp_path / "s.nc")
    with open_session(tmp_path / "s.nc") as lazy:
        edited = [read_session(tmp_path / "s.nc"), lazy.load()]
    for number, each in enumerate(edited):
        each["counts"].values[3, 1] += 1
        each.to_netcdf(tmp_path / f"{number}.nc", engine="h5netcdf")
        assert read_session(tmp_path / f"{number}.nc")["counts"].values[3, 1] == session["counts"].values[3, 1] + 1


def test_what_netcdf_would_change_is_not_written(session, tmp_path):
    days = session.assign(day=("time", np.full(session.sizes["time"], "2020-01-01", "M8[ns]")))
    scaled = changed(session, "position", session["position"].values, attrs={"units": "cm", "scale_factor": 2.0})
    for name, broken in {"variable day": days, "variable position": scaled}.items():
        with pytest.raises(InputError, match=rf"s\.nc: netCDF gives back as another what the session holds: {name}"):
            write_session(broken, tmp_path / "s.nc")
        assert list(tmp_path.iterdir()) == []


def test_what_the_system_refuses_is_no_fault_of_the_file(session, tmp_path, monkeypatch):
    write_session(session, tmp_path / "s.nc")

    def refused(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("xarray.open_dataset", refused)
    with pytest.raises(InputError, match=r"s\.nc: too many files are open: raise the limit"):
        read_session(tmp_path / "s.nc")
