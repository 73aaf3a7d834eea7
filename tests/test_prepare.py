"""From a file or a folder of files to sessions: what is chosen, what is recorded, what is refused."""

import json

import h5py
import numpy as np
import pytest
from nwb_files import counts_file, spikes_file

from bci_adapt.archive.sources.folder import Folder
from bci_adapt.data import nwb
from bci_adapt.data.any_file import identity
from bci_adapt.data.faults import Thresholds
from bci_adapt.data.prepare import inspect, prepare
from bci_adapt.data.session_files import read_session
from bci_adapt.errors import InputError
from bci_adapt.ground.storage import file_digest


def edit(path, **texts):
    with h5py.File(path, "a") as file:
        for key, value in texts.items():
            key = {"session_id": "general/session_id", "subject": "general/subject/subject_id"}.get(key, key)
            file[key][()] = value
    return path


def test_what_is_stored_with_a_session(tmp_path):
    path = counts_file(tmp_path / "a.nwb")
    written, again = tmp_path / "out" / "a.nc", tmp_path / "again.nc"
    prepare(path, 0.05, written, thresholds=Thresholds(max_speed_cm_s=1.0))
    session = read_session(written)
    assert (session.attrs["source_file"], session.attrs["source_sha256"]) == ("a.nwb", file_digest(path))
    assert json.loads(session.attrs["thresholds"])["max_speed_cm_s"] == 1.0
    assert not session["velocity_valid"].values.any()  # everything is faster than that
    assert session["position_valid"].values.all()
    assert str(tmp_path) not in json.dumps(session.attrs, default=str)
    assert prepare(path, 0.05)["velocity_valid"].values[1:].all()
    prepare(path, 0.05, again, thresholds=Thresholds(max_speed_cm_s=1.0))
    assert file_digest(again) == file_digest(written)  # the same bytes, so digests can be keys


def test_a_file_is_identified_by_a_few_of_its_objects(tmp_path, monkeypatch):
    """Hundreds are listed at once; what else is in a file is looked at when it is read."""
    path, looked, require = counts_file(tmp_path / "a.nwb"), [], nwb._require_inside
    whole = identity(path)
    with h5py.File(path, "a") as file:
        file["acquisition/elsewhere"] = h5py.ExternalLink("/etc/hostname", "/data")
    monkeypatch.setattr(nwb, "_require_inside", lambda file, key, got: (looked.append(key), require(file, key, got)))
    assert identity(path) == whole
    assert set(looked) == {"general/session_id", "general/subject/subject_id", "identifier", "session_start_time"}
    with pytest.raises(InputError, match="acquisition/elsewhere is a link to another file"):
        nwb.open_nwb(path)
    with h5py.File(path, "a") as file:
        del file["session_start_time"]
        file["session_start_time"] = h5py.ExternalLink("/etc/hostname", "/data")
    with pytest.raises(InputError, match="session_start_time is a link to another file"):
        identity(path)


def test_the_choice_is_explained_and_is_plain_json(tmp_path):
    found = inspect(spikes_file(tmp_path / "a.nwb"))
    shown = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert shown["chosen"] == "perich"
    assert "perich" in shown["why"]
    assert shown["layouts"][0]["name"] == "perich"
    assert {series["path"].rpartition("/")[2] for series in shown["series"]} == {"cursor_pos", "cursor_vel"}
    assert shown["neural"][0]["kind"] == "spike times"
    assert shown["trials"]["count"] == 2
    assert inspect(counts_file(tmp_path / "b.nwb")).chosen == "wrist"
    unlabelled = inspect(spikes_file(tmp_path / "c.nwb", kinematics=False))
    assert (unlabelled.chosen, "a session without labels" in unlabelled.why) == ("generic", True)
    with h5py.File(spikes_file(tmp_path / "d.nwb"), "a") as file:
        del file["units"]
    nothing = inspect(tmp_path / "d.nwb")
    assert nothing.chosen is None
    assert "no layout fits" in nothing.why


def test_links_inside_a_file_are_followed_and_loops_are_not(tmp_path):
    path = spikes_file(tmp_path / "a.nwb")
    expected = prepare(path, 0.05)
    with h5py.File(path, "a") as file:
        file.move("processing/behavior/Position", "acquisition/Moved")
        file["processing/behavior/Position"] = h5py.SoftLink("/acquisition/Moved")
        file["acquisition/around"] = h5py.SoftLink("/")
        file["acquisition/nowhere"] = h5py.SoftLink("/not/there")
    session = prepare(path, 0.05)
    assert np.array_equal(session["position"].values, expected["position"].values)
    assert "link to nothing" in session.attrs["warnings"]
    assert "not followed" in session.attrs["warnings"]


def test_a_folder_lists_its_sessions_as_they_were_recorded(tmp_path):
    (tmp_path / "sub-T").mkdir()
    first = edit(spikes_file(tmp_path / "z.nwb"), session_id="late", session_start_time="2020-01-02T01:00:00+00:00")
    # Later by the clock on the wall, earlier in fact.
    path = counts_file(tmp_path / "sub-T" / "a.nwb")
    second = edit(path, session_id="early", session_start_time="2020-01-02T05:00:00+09:00")
    source = Folder(tmp_path)
    table = source.list()
    assert table.index.tolist() == ["sub-T_ses-early", "sub-T_ses-late"]
    assert table["path"].tolist() == [second, first]
    assert table["subject"].tolist() == ["T", "T"]
    assert (table["session_start"].iloc[1] - table["session_start"].iloc[0]).total_seconds() == 5 * 3600
    assert source.fetch("sub-T_ses-late") == first
    with pytest.raises(InputError, match="did you mean 'sub-T_ses-early'"):
        source.fetch("sub-T_ses-earl")
    edit(second, session_id="late")
    with pytest.raises(InputError, match=r"(?=.*a\.nwb)(?=.*z\.nwb).*sub-T_ses-late"):
        source.list()
    edit(second, session_id="early", session_start_time="yesterday")
    with pytest.raises(InputError, match=r"a\.nwb.*session_start_time"):
        source.list()
    (tmp_path / "empty").mkdir()
    for folder, message in ((tmp_path / "empty", "no \\*.nwb"), (tmp_path / "none", "no such folder")):
        with pytest.raises(InputError, match=message):
            Folder(folder).list()
