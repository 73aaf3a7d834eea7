"""Layout ``indy64``: counts in bins with the places of targets, so that intention can be the label; what layouts say of
the files they have read.
"""

import h5py
import numpy as np
import pytest
from nwb_files import counts_file
from nwb_layouts_b import MAZE_TRIALS as WINDOWS
from nwb_layouts_b import maze_000070, spike_trains

from bci_adapt.data.layouts.base import Layout
from bci_adapt.data.prepare import inspect, prepare
from bci_adapt.errors import InputError
from bci_adapt.ground.catalog import variants
from bci_adapt.protocol.supervision import intended


def with_targets(path, columns=2):
    counts_file(path)
    with h5py.File(path, "a") as file:
        table = file.require_group("intervals/trials")
        for name in [*table]:
            del table[name]
        table["id"] = np.arange(3)
        table["start_time"], table["stop_time"] = [0.5, 2.0, 4.0], [2.0, 4.0, 6.0]
        table["target_pos"] = np.array([[5.0, -2.0, 0.0], [0.0, 8.0, 0.0], [-3.0, 1.0, 0.0]])[:, :columns]
    return path


def test_a_file_with_targets_is_read_as_the_wrist_is_and_has_them(tmp_path):
    path = with_targets(tmp_path / "a.nwb")
    found = inspect(path)
    scores = {each["name"]: each["score"] for each in found.layouts}
    assert found.chosen == "indy64"
    assert scores["indy64"] > scores["wrist"] > scores["generic"]
    session = prepare(path, 0.05)
    assert session.attrs["layout"] == "indy64"
    assert session["trial_target"].values.tolist() == [[5.0, -2.0], [0.0, 8.0], [-3.0, 1.0]]
    assert session.drop_attrs(deep=False).identical(prepare(path, 0.05, layout="wrist").drop_attrs(deep=False))
    assert inspect(counts_file(tmp_path / "b.nwb")).chosen == "wrist"


def test_intention_points_from_the_position_to_the_target_of_the_trial(tmp_path):
    session = prepare(with_targets(tmp_path / "a.nwb"), 0.05)
    label = intended(session, np.full(session.sizes["time"], 2.0))
    time_s, position = session["time"].values, session["position"].values
    row = int(np.argmin(np.abs(time_s - 3.0)))
    assert np.isfinite(label[row]).all()
    toward = np.array([0.0, 8.0]) - position[row]
    np.testing.assert_allclose(label[row] / np.linalg.norm(label[row]), toward / np.linalg.norm(toward), atol=0.05)
    assert np.isnan(label[time_s < 0.45]).all()


def test_targets_that_are_no_places_are_refused(tmp_path):
    path = with_targets(tmp_path / "a.nwb", columns=3)
    with pytest.raises(
        InputError, match=r"a\.nwb: intervals/trials/target_pos must be the place of each trial's target"
    ):
        prepare(path, 0.05)


def test_real_sessions_give_intention(real_data):
    paths = sorted((real_data / "indy64").glob("*.nwb"))[:2]
    if not paths:
        pytest.skip("the recordings are not here")
    for path in paths:
        session = prepare(path, 0.064)
        assert session.attrs["layout"] == "indy64"
        assert session["position"].attrs["units"] == "cm"
        assert session["trial_target"].shape == (session.sizes["trial"], 2)
        label = intended(session, np.ones(session.sizes["time"]))
        assert np.isfinite(label).all(axis=1).mean() > 0.9
        velocity, both = session["velocity"].values, session["velocity_valid"].values.all(axis=1)
        both &= np.isfinite(label).all(axis=1)
        along = (velocity[both] * label[both]).sum(axis=1)
        assert along.mean() > 0.5 * np.linalg.norm(velocity[both], axis=1).mean()  # it does go there, mostly


def test_every_layout_says_which_real_file_it_has_read_or_what_it_was_written_from():
    for name, layout in variants("bci_adapt.data.layouts", Layout).items():
        assert bool(layout.verified_on) != bool(layout.written_from), name
        assert (layout.verified_on or layout.written_from) in layout.standing()
        assert layout.standing().startswith("verified on" if layout.verified_on else "no real file read yet")


def test_a_conversion_of_nan_says_nothing_of_the_unit(tmp_path):
    """As the converter of 000070 writes it."""
    path = maze_000070(tmp_path / "a.nwb", spike_trains(6, WINDOWS))
    sound = prepare(path, 0.02)
    with h5py.File(path, "a") as file:
        file["processing/behavior/Position/Hand/data"].attrs["conversion"] = np.nan
    session = prepare(path, 0.02)
    np.testing.assert_array_equal(session["position"].values, sound["position"].values)
    assert (sound["position"].attrs["units"], session["position"].attrs["units"]) == ("mm", "")
    assert "Hand/data has conversion NaN" in session.attrs["warnings"]
    with h5py.File(path, "a") as file:
        file["processing/behavior/Position/Hand/data"].attrs["conversion"] = np.inf
    with pytest.raises(InputError, match="conversion that is one finite number"):
        prepare(path, 0.02)
