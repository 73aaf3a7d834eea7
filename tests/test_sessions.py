"""The schema of a session: every breach is named, nothing that breaks it is written or read."""

import numpy as np
import pytest
from nwb_files import counts_file, spikes_file

from bci_adapt.data.labelled import session_arrays
from bci_adapt.data.prepare import prepare
from bci_adapt.data.sessions import check, read_session, require_same_channels, signed, split, write_session
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

    def breaks(self, target, **_):
        target.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("xarray.Dataset.to_netcdf", breaks)
    with pytest.raises(OSError, match="no space"):
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
