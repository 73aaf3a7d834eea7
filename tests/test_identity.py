"""Channels without names are unknown on another day, whichever way sessions meet, unless the user says otherwise."""

import numpy as np
import pytest
from nwb_files import counts_file, spikes_file

import bci_adapt as ba
from bci_adapt.data import drift
from bci_adapt.data.channels import policy_of
from bci_adapt.data.prepare import prepare
from bci_adapt.data.session_files import read_session
from bci_adapt.errors import InputError
from bci_adapt.experiment.comparing import compare_config
from bci_adapt.experiment.pairs import match_channels
from bci_adapt.ground.jobs import Job
from bci_adapt.live import adapting

REFUSED = "by *= *'position'"


def day(number, n_bins=2000, **options):
    rng = np.random.default_rng(number)
    velocity = np.cumsum(rng.standard_normal((n_bins, 2)), axis=0) * 0.2
    velocity -= velocity.mean(axis=0)
    counts = rng.poisson(
        np.exp(np.clip(0.8 + velocity @ np.random.default_rng(9).standard_normal((2, 6)) * 0.3, -3, 3))
    )
    given = {"session_id": f"day{number}", "subject": "C", "session_start": f"2020-01-0{number + 1}T00:00:00+00:00"}
    target = np.cumsum(velocity, axis=0) * 0.05
    return ba.session(counts=counts, target=target, bin_s=0.05, target_units="cm", **given | options)


def test_columns_of_two_days_meet_only_where_the_user_says_so(tmp_path):
    first, second = day(0), day(1)
    assert policy_of(first) == "none"
    for refused in (lambda: ba.match([first, second]), lambda: ba.concat([first, second])):
        with pytest.raises(InputError, match=REFUSED):
            refused()
    with pytest.raises(InputError, match=REFUSED):
        ba.match([first, second], by="electrode")  # columns are no electrodes, whoever says so
    a, b = ba.match([first, second], by="position")
    assert np.array_equal(b["counts"], second["counts"])
    assert a["channel"].values.tolist() == b["channel"].values.tolist() == [f"column{i}" for i in range(6)]
    assert b.attrs["channel_policy"] == "position"
    # what was said is kept with the sessions, in files too
    ba.write_session(b, tmp_path / "b.nc")
    again = read_session(tmp_path / "b.nc")
    assert ba.match([a, again])[1]["counts"].equals(b["counts"])
    assert ba.concat([a, again]).sizes["time"] == 4000
    for refused in (ba.match, ba.concat):  # an id that nobody gave makes no recordings one
        with pytest.raises(InputError, match=REFUSED):
            refused([each.assign_attrs(session_id="session") for each in (first, second)])
    with pytest.raises(InputError, match="differ"):
        ba.match([first, second.isel(channel=slice(5))], by="position")
    assert ba.match([first])[0]["counts"].equals(first["counts"])  # with itself there is nothing to match


def test_names_are_matched_as_ever():
    names = [f"e{i}" for i in range(6)]
    first, second = day(0, channels=names), day(1, channels=names[::-1])
    assert ba.match([first, second])[1]["channel"].values.tolist() == names
    # by position is by position, names or not
    assert np.array_equal(ba.match([first, second], by="position")[1]["counts"], second["counts"])


def test_a_decoder_takes_the_same_word():
    first, second = day(0), day(1)
    with pytest.raises(InputError, match=REFUSED):
        ba.WienerDecoder(n_lags=3).fit(first, "velocity").predict(second)
    matched = ba.match([first, second], by="position")
    for known in (first, matched[0]):
        decoder = ba.WienerDecoder(n_lags=3).fit(known, "velocity")
        assert decoder.predict(matched[1]).shape == (2000, 2)


def test_drift_compares_no_columns_by_number(call, tmp_path):
    first, second = day(0, 8000), day(1, 8000)
    with pytest.raises(InputError, match=REFUSED):
        drift.drift(drift.day(first), drift.day(second), drift.Settings())
    for number, each in enumerate((first, second)):
        ba.write_session(each, tmp_path / f"{number}.nc")
    files = [tmp_path / "0.nc", tmp_path / "1.nc"]
    code, _, err = call("drift", *files)
    assert code == 2
    assert "position" in err
    code, out, _ = call("drift", *files, "--by", "position")
    assert code == 0
    assert "day1" in out


def unnamed(path, seed):
    import h5py

    counts_file(path, seed=seed)
    with h5py.File(path, "a") as file:
        del file["general/extracellular_ephys/electrodes"]
        del file["general/session_id"]
        file["general/session_id"] = f"day{seed}"
    return path


def test_binned_files_without_electrodes_are_columns(call, tmp_path):
    paths = [unnamed(tmp_path / f"{i}.nwb", i) for i in range(2)]
    sessions = [prepare(path, 0.05) for path in paths]
    assert sessions[0].attrs["channel_identity"] == "column"
    with pytest.raises(InputError, match=REFUSED):
        ba.match(sessions)
    assert len(ba.match(sessions, by="position")) == 2
    code, out, _ = call("inspect", *paths)
    assert code == 0
    assert "channels have no names" in out


def test_sorted_units_without_electrodes_are_refused_with_the_ways_out(tmp_path):
    import h5py

    sessions = []
    for number in range(2):
        path = spikes_file(tmp_path / f"{number}.nwb", seed=number)
        with h5py.File(path, "a") as file:
            del file["units/electrodes"], file["units/electrodes_index"]
        sessions.append(prepare(path, 0.05, layout="generic").assign_attrs(session_id=f"day{number}"))
    with pytest.raises(InputError, match=r"day0.*units without names.*pool.*by = 'position'"):
        ba.match(sessions)


@pytest.fixture(scope="module")
def sorted_units(tmp_path_factory):
    """Two days of sorted units on electrodes, between which a unit of the first electrode has come."""
    folder = tmp_path_factory.mktemp("units")
    electrodes = [np.array([0, 1, 2, 3]), np.array([0, 0, 1, 2])]
    files = [spikes_file(folder / f"{i}.nwb", seed=i, duration_s=200.0, electrodes=electrodes[i]) for i in range(2)]
    units = [ba.read(file, 0.05, per="unit").assign_attrs(session_id=f"day{i}") for i, file in enumerate(files)]
    for i, each in enumerate(units):
        each.attrs["session_start"] = f"2020-01-0{i + 1}T00:00:00+00:00"
        ba.write_session(each, folder / f"{i}.nc")
    return units, [folder / f"{i}.nc" for i in range(2)]


WAYS_OUT = ("by = 'pool'", "per = 'electrode'", "by = 'unit'", "by = 'position'", "Every decoder needs")


def test_sorted_units_of_two_days_are_refused_with_the_ways_out(sorted_units, call):
    (first, second), files = sorted_units
    assert first.attrs["channel_identity"] == "unit"
    assert set(first["channel"].values) & set(second["channel"].values)  # equal numbers, which mean nothing
    with pytest.raises(InputError) as refused:
        ba.match([first, second])
    assert all(way in str(refused.value) for way in WAYS_OUT)
    with pytest.raises(InputError, match=r"sorted units.*'pool'"):
        ba.concat([first, second])
    with pytest.raises(InputError, match=r"sorted units.*'pool'"):
        drift.drift(drift.day(first), drift.day(second), drift.Settings())
    decoder = ba.WienerDecoder(n_lags=3).fit(first, "velocity")
    for refuse in (decoder.predict, decoder.adapt, lambda each: ba.evaluate(decoder, each, stream_s=50.0)):
        with pytest.raises(InputError, match=r"day1.*sorted units.*by='pool'.*by='unit'.*by='position'"):
            refuse(second)
    with pytest.raises(InputError, match=r"day1.*sorted units"):
        ba.WienerDecoder(n_lags=3).fit([first, second], "velocity")
    for command in (("drift", *files), ("compare", *files, "--quick"), ("pretrain", *files, "-o", "d.npz")):
        code, _, err = call(*command)
        assert (code, [way for way in WAYS_OUT if way not in " ".join(err.split())]) == (2, []), command
    code, out, _ = call("inspect", *files)
    assert code == 0
    assert "unknown" in out
    assert "hold elsewhere" in out


def test_sorted_units_meet_where_somebody_says_how(sorted_units):
    (first, second), _ = sorted_units
    a, b = ba.match([first, second], by="pool", missing="drop")
    names = ["M1/elec0", "M1/elec1", "M1/elec2"]
    assert a["channel"].values.tolist() == b["channel"].values.tolist() == names
    assert np.array_equal(a["counts"], first["counts"][:, :3])
    assert np.array_equal(b["counts"][:, 0], second["counts"][:, 0] + second["counts"][:, 1])
    assert ba.WienerDecoder(n_lags=3).fit(a, "velocity").predict(b).shape == b["position"].shape
    a, b = ba.match([first, second], by="position")
    assert np.array_equal(b["counts"], second["counts"])
    a, b = ba.match([first, second], by="unit", missing="drop")
    assert a["channel"].values.tolist() == ["M1/elec0/unit1", "M1/elec1/unit1", "M1/elec2/unit1"]
    assert np.array_equal(b["counts"], second["counts"][:, [0, 2, 3]])
    # what was said is kept with the sessions and with the decoder
    assert ba.match([a, b])[1]["counts"].equals(b["counts"])
    assert ba.concat([a, b]).sizes["channel"] == 3
    assert drift.drift(drift.day(a), drift.day(b), drift.Settings()).to_json()["channels"]["common"]
    decoder = ba.WienerDecoder(n_lags=3, missing="zero").fit(a, "velocity")
    with pytest.raises(InputError, match=r"bci_adapt\.match\(\[session\], by='unit'\)"):
        decoder.predict(second)
    alone = ba.match([second], by="unit")[0]
    assert decoder.predict(alone).equals(decoder.predict(b))
    # parts of one recording meet as they are, and electrodes are matched as ever
    stream, later = ba.split(first, 100.0)
    assert ba.match([stream, later])[1]["counts"].equals(later["counts"])
    assert ba.WienerDecoder(n_lags=3).fit(stream, "velocity").predict(later).sizes["time"] == later.sizes["time"]


def test_an_experiment_meets_on_units_as_its_config_says(sorted_units):
    sessions, files = sorted_units
    asked = {"bin_s": 0.05, "stream_s": 60.0, "label_delay_s": 0.5, "cells": None, "seeds": 1, "quick": True}
    config = compare_config(files, None, **asked)
    assert config.channels.policy is None
    days = {"day0": sessions[0], "day1": sessions[1]}
    with pytest.raises(InputError, match="per = 'electrode'"):
        match_channels(config, ["day0"], ["day1"], days)
    for policy, n_channels in (("pool", 3), ("unit", 3), ("position", 4)):
        config = compare_config(files, None, by=policy, missing="drop", **asked)
        found = match_channels(config, ["day0"], ["day1"], days)
        prepared = Job(kind="prepare", function="bci_adapt.experiment.jobs.prepare:run", stem="day", folder="sessions")
        assert (found.policy, len(found.names)) == (policy, n_channels)
        assert found.job(prepared, sessions[0]).kind == "select"  # the sessions of the run say how they were matched


def test_training_over_days_takes_the_same_word(call, tmp_path):
    for number in range(2):
        ba.write_session(day(number), tmp_path / f"{number}.nc")
    files = [tmp_path / "0.nc", tmp_path / "1.nc"]
    code, _, err = call("pretrain", *files, "-o", tmp_path / "d.npz")
    assert code == 2
    assert "by = 'position'" in " ".join(err.split())
    assert not (tmp_path / "d.npz").exists()
    quick = {"n_hidden": 4, "n_updates": 3}
    trained = adapting.pretrain(files, by="position", **quick)
    assert trained.metadata_["channel_policy"] == "position"
    # the day after must be said to be matched, too
    with pytest.raises(InputError, match=r"bci_adapt\.match\(\[session\], by='position'\)"):
        trained.predict(day(2))
    assert trained.predict(ba.match([day(2)], by="position")[0]).shape == (2000, 2)
