"""Muscles, forces and several targets at once: outputs of different units and scales, each judged by itself."""

import numpy as np
import pytest
from nwb_files import counts_file
from test_power import power_day

import bci_adapt as ba
from bci_adapt.data.layouts.reading import axis_names
from bci_adapt.errors import InputError
from bci_adapt.live import adapting

MUSCLES = ["FCR", "ECU", "FDS"]


def with_muscles(number):
    """A session with a 2-D movement in 1/s and three muscles in mV: two that follow it, a thousand times apart in
    scale, and one that nothing is known of.
    """
    session = power_day(number)
    movement = session["movement"].values
    noise = np.random.default_rng(number).standard_normal(len(movement))
    emg = np.stack([1000 * (5 + movement[:, 0]), 5 + movement[:, 1], 2 + noise], axis=1)
    valid = np.ones(emg.shape, bool)
    session = session.assign(emg=(("time", "emg_axis"), emg, {"units": "mV"}))
    return session.assign_coords(emg_axis=MUSCLES, emg_valid=(("time", "emg_axis"), valid))


DECODERS = {
    "wiener": lambda: ba.WienerDecoder(n_lags=3),
    "rls": lambda: ba.RLSDecoder(n_lags=3),
    "network": lambda: ba.OnlineDecoder(cell="tanh", n_hidden=16, n_updates=300),
}


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("target", ["emg", ["movement", "emg"]])
def test_outputs_of_any_scale_are_learned_alike(name, target):
    first, second = with_muscles(0), with_muscles(1)
    decoder = DECODERS[name]().fit(first, target)
    found = ba.evaluate(decoder, second, stream_s=100.0)
    scores = found.scores.query("part == 'held_out' and bins == 'all'").set_index("variable")
    emg = scores.loc["emg"]
    # the small muscle is learned as well as the large one; what nothing is known of is not
    assert min(emg["r2:FCR"], emg["r2:ECU"]) > 0.5
    assert emg["r2:FDS"] < 0.1
    # the variance-weighted score is the large one's, the uniform one the mean of all three
    assert emg["r2"] == pytest.approx(emg["r2:FCR"], abs=0.01)
    assert emg["r2_uniform"] == pytest.approx(np.mean([emg[f"r2:{each}"] for each in MUSCLES]))
    assert found.prediction["predicted_emg"].attrs["units"] == "mV"
    assert found.prediction["predicted_emg"]["emg_axis"].values.tolist() == MUSCLES
    if target != "emg":
        assert scores.loc["movement", "r2"] > 0.5
        assert found.prediction["predicted_movement"].attrs["units"] == "1/s"
        # beside others a target is decoded as it is alone by the linear decoders
        if name == "wiener":
            alone = DECODERS[name]().fit(first, "emg").predict(second)
            np.testing.assert_allclose(found.prediction["predicted_emg"], alone, rtol=1e-6, atol=1e-6)


def test_an_output_without_labels_is_named_and_left_out_by_choice():
    session = with_muscles(0)
    session["emg_valid"].values[:, 1] = False
    for make in DECODERS.values():
        with pytest.raises(InputError, match=r"got none at all of emg ECU; choose the others.*session\.sel"):
            make().fit(session, "emg")
    chosen = session.sel(emg_axis=["FCR", "FDS"])
    assert DECODERS["wiener"]().fit(chosen, "emg").n_outputs_ == 2
    session["emg_valid"].values[::2, 1], session["emg_valid"].values[::2, 0] = True, False
    with pytest.raises(InputError, match="every output has a label"):
        DECODERS["wiener"]().fit(session, "emg")
    DECODERS["network"]().fit(session, "emg")  # which weighs each output by itself


def test_days_of_other_muscles_are_refused_with_the_way_out(tmp_path):
    first, second = with_muscles(0), with_muscles(1).sel(emg_axis=MUSCLES[:2])
    files = [tmp_path / "0.nc", tmp_path / "1.nc"]
    for session, file in zip((first, second), files, strict=True):
        ba.write_session(session, file)
    with pytest.raises(InputError, match=r"FCR, ECU, FDS in 'mV'.*FCR, ECU in 'mV'.*session\.sel\(emg_axis="):
        adapting.pretrain(files, "emg", n_hidden=4, n_updates=3)


def test_names_behind_a_colon_are_those_of_the_columns():
    assert axis_names("EMG, rectified, one column a muscle: FCR, ECU", 2, "emg") == ["FCR", "ECU"]
    assert axis_names("FCR, ECU", 2, "emg") == ["FCR", "ECU"]
    assert axis_names("two columns: the wrist, as published", 2, "emg") == ["x", "y"]  # words that are no names
    assert axis_names("muscles: FCR, ECU, FDS", 4, "emg") == ["emg0", "emg1", "emg2", "emg3"]


def test_a_wrist_file_without_muscles_has_none(tmp_path):
    assert "emg" not in ba.read(counts_file(tmp_path / "a.nwb"), 0.05)


def test_real_muscles(real_data):
    files = sorted((real_data / "wrist92_emg").glob("*.nwb"))
    if not files:
        pytest.skip("no recordings with muscles")
    session = ba.read(files[0], 0.05)
    assert session["emg_axis"].values.tolist()[:3] == ["PT", "FDS", "FDP1"]
    assert session["emg"].attrs["units"] == "a.u."
    stream, _ = ba.split(session, 600.0)
    found = ba.evaluate(ba.WienerDecoder().fit(stream, "emg"), session, stream_s=600.0).scores
    held = found[(found["part"] == "held_out") & (found["bins"] == "all")].iloc[0]
    muscles = [held[f"r2:{each}"] for each in session["emg_axis"].values]
    assert 0.4 < np.median(muscles) < 0.55  # ridge on ten lags, as the data's own description has it
    assert held["r2:FCR"] > 0.6
