"""The schema of a session: every breach is named, nothing that breaks it is written or read."""

import numpy as np
import pytest
from nwb_files import counts_file

from bci_adapt.errors import InputError
from bci_adapt.prepare import prepare
from bci_adapt.session import check, read_session, write_session


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
    "bin_edge": lambda s: s.assign_attrs(bin_edge="[start, end)"),
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
    "no kinematic variable": lambda s: s.drop_vars([n for n in s.data_vars if s[n].dims == ("time", "axis")]),
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
