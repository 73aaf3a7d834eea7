"""What a newcomer types: the config that `compare` makes of files, and `predict` with a saved decoder."""

from dataclasses import replace
from datetime import timedelta

import h5py
import numpy as np
import pytest
import xarray as xr
from caches import new_cache

from bci_adapt.archive.sources.simulated import FIRST_DAY
from bci_adapt.data import simulate
from bci_adapt.data.labelled import session_arrays
from bci_adapt.data.nwb_writing import write_recording
from bci_adapt.data.prepare import prepare
from bci_adapt.data.session_files import read_session, write_session
from bci_adapt.decoders.base import Decoder
from bci_adapt.decoders.wiener import WienerDecoder
from bci_adapt.errors import InputError
from bci_adapt.experiment.comparing import compare_config
from bci_adapt.live import predicting

KINDS = ("mon", "rates", "swapped", "late", "same")


def write_day(folder, number, kind, *, duration_s=150.0, n_units=20, subject="Sim"):
    """A recording of day `number` without any drift but what `kind` names, as an NWB file.

    ``rates``: half of the units lose three of four spikes; ``swapped``: they change places; ``late``: all spikes come
    100 ms late.
    """
    made = simulate.recording(number, duration_s=duration_s, n_units=n_units, severity=0.0)
    rng, half, spikes = np.random.default_rng(number), np.arange(0, len(made.spike_ms), 2), list(made.spike_ms)
    for unit, other in zip(half, np.roll(half, 1), strict=True):
        if kind == "rates":
            spikes[unit] = spikes[unit][rng.random(len(spikes[unit])) < 0.25]
        if kind == "swapped":
            spikes[unit] = made.spike_ms[other]
    if kind == "late":
        spikes = [ms[ms + 100 <= 1000 * duration_s] + 100 for ms in spikes]
    path = folder / f"{kind}.nwb"
    write_recording(
        path,
        replace(made, spike_ms=spikes),
        session_id=kind,
        subject=subject,
        session_start=FIRST_DAY + timedelta(days=number),
        identifier=f"test-{kind}",
    )
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("comparing")


@pytest.fixture(scope="module")
def days(folder):
    return [write_day(folder, number, kind, duration_s=60.0) for number, kind in enumerate(KINDS[:2])]


@pytest.fixture(scope="module")
def cache(folder):
    return new_cache(folder)


@pytest.fixture(autouse=True)
def _own_cache(cache, monkeypatch):
    monkeypatch.setenv("BCI_ADAPT_CACHE", str(cache))


@pytest.fixture(scope="module")
def decoder(folder, days):
    """A Wiener filter of the first day that knows its channels, as a run leaves it."""
    session = prepare(days[0], 0.05)
    fitted = WienerDecoder(n_lags=4).fit(session, "velocity")
    path = folder / "mon.npz"
    fitted.save(path)
    return path


def config(files, target=None, **options):
    given = {"bin_s": 0.05, "stream_s": 600.0, "label_delay_s": 0.5, "cells": None, "seeds": None, "quick": False}
    return compare_config(files, target, **given | options, workers=0)


# ------------------------------------------------------------------------------------------------------ compare


def test_compare_takes_the_first_file_as_source_of_every_later_one(days, folder):
    later = write_day(folder, 9, "same", duration_s=30.0)
    made = config([days[0], later, days[1]])
    assert made.pairs[0].source == ("sub-Sim_ses-mon",)
    assert made.pairs[0].targets == ("sub-Sim_ses-rates", "sub-Sim_ses-same")
    assert (made.variables, made.network.cells, made.seeds) == (("velocity",), ("tanh", "gru"), (0, 1, 2))
    assert made.sweeps.arms
    quick = config(days, quick=True, cells="gru", seeds=2)
    assert (quick.network.cells, quick.seeds, quick.sweeps.arms) == (("gru",), (0, 1), ())
    assert quick.network.n_hidden < made.network.n_hidden


@pytest.mark.parametrize(
    ("target", "variables"),
    [
        ("velocity", ("velocity",)),
        ("position", ("position",)),
        ("cursor_vel", ("recorded_velocity",)),  # the series that the layout reads under this name
        ("Velocity/cursor_vel", ("recorded_velocity",)),
        ("processing/behavior/Position/cursor_pos", ("position",)),
        ("cursor_acc", ("cursor_acc",)),  # one that the layout leaves out: read as named
    ],
)
def test_a_target_is_named_by_path_or_name(days, target, variables):
    made = config(days, target)
    assert made.variables == variables
    assert bool(made.kinematics) == (target == "cursor_acc")
    if made.kinematics:
        assert made.kinematics == ("processing/behavior/Acceleration/cursor_acc",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mon"], "two recordings or more"),
        (["mon", "mon"], "given twice"),
        (["rates", "mon"], "give the earliest recording first"),
        (["mon", "nowhere"], "no such file"),
        (["mon", "rates", "--target", "cursor_velo"], "did you mean 'cursor_vel'|unknown target 'cursor_velo'"),
        (["mon", "rates", "--bin", "0"], "bin_s"),
        (["mon", "rates", "--cells", "lstn"], "unknown cell 'lstn'"),
        (["mon", "rates", "--decoder", "mine.py"], "FILE.py:CLASS"),
    ],
)
def test_compare_says_what_cannot_be(call, folder, days, arguments, message):
    import re

    given = [folder / f"{each}.nwb" if each in ("mon", "rates", "nowhere") else each for each in arguments]
    code, _, said = call("compare", *given, "--workers", 0)
    assert code == 2
    assert re.search(message, " ".join(said.split()))


# ------------------------------------------------------------------------------------------------------ predict


def test_predict_is_the_decoder_run_through_the_session(call, decoder, days, tmp_path):
    code, said, _ = call("predict", decoder, days[1], "-o", tmp_path / "out.nc")
    assert code == 0
    assert "predicted_velocity (centimeters/s)" in said.replace("\n", "")
    session = prepare(days[1], 0.05)
    arrays = session_arrays(session, "velocity")
    with xr.open_dataset(tmp_path / "out.nc", engine="h5netcdf", decode_times=False) as made:
        expected = Decoder.load(decoder).predict(arrays.X, arrays.reset)
        np.testing.assert_array_equal(made["predicted_velocity"].values, expected)
        np.testing.assert_array_equal(made["time"].values, session["time"].values)
        assert made["predicted_velocity"].dims == ("time", "axis")
        assert made["axis"].values.tolist() == session["axis"].values.tolist()
        assert made.attrs["session_id"] == "sub-Sim_ses-rates"
        assert made.attrs["source_sha256"] == session.attrs["source_sha256"]
        assert made.attrs["decoder_trained_on"] == "sub-Sim_ses-mon"
        assert len(made.attrs["decoder_sha256"]) == 64


def test_predict_needs_no_movement(call, decoder, days, tmp_path):
    """The same spikes without kinematics in the file: the same prediction where both have bins."""
    bare = tmp_path / "bare.nwb"
    bare.write_bytes(days[1].read_bytes())
    with h5py.File(bare, "a") as file:
        del file["processing"]
    assert call("predict", decoder, days[1], "-o", tmp_path / "with.nc", "-q")[:2] == (0, "")
    assert call("predict", decoder, bare, "-o", tmp_path / "without.nc", "-q")[:2] == (0, "")
    with (
        xr.open_dataset(tmp_path / "with.nc", engine="h5netcdf", decode_times=False) as labelled,
        xr.open_dataset(tmp_path / "without.nc", engine="h5netcdf", decode_times=False) as made,
    ):
        assert made.sizes["time"] > 1000
        assert np.isfinite(made["predicted_velocity"]).all()
        both = np.corrcoef(
            labelled["predicted_velocity"].values[100:1000, 0], made["predicted_velocity"].values[100:1000, 0]
        )
        assert both[0, 1] > 0.9  # bins may lie a fraction apart


def test_channels_are_matched_by_name(decoder, days, tmp_path):
    """Another order and one more channel change nothing; a missing one is refused, or counts as silent."""
    session = prepare(days[1], 0.05)
    whole, notes = predicting.predict(decoder, days[1])
    assert notes == []
    order = np.random.default_rng(0).permutation(session.sizes["channel"])
    extra = xr.concat(
        [session.isel(channel=order), session.isel(channel=[0]).assign_coords(channel=["M1/new"])],
        "channel",
        data_vars="minimal",
    )
    write_session(extra.transpose("time", "channel", ...), tmp_path / "shuffled.nc")
    shuffled, notes = predicting.predict(decoder, tmp_path / "shuffled.nc")
    np.testing.assert_array_equal(shuffled["predicted_velocity"], whole["predicted_velocity"])
    assert "1 channels of the session are left out" in notes[0]
    write_session(session.isel(channel=slice(1, None)), tmp_path / "fewer.nc")
    with pytest.raises(InputError, match=r"lacks 1 of 20 \(M1/elec1\).*--missing zero"):
        predicting.predict(decoder, tmp_path / "fewer.nc")
    silent = session.copy(deep=True)
    silent["counts"].values[:, 0] = 0
    write_session(silent, tmp_path / "silent.nc")
    zeroed, notes = predicting.predict(decoder, tmp_path / "fewer.nc", missing="zero")
    np.testing.assert_array_equal(
        zeroed["predicted_velocity"], predicting.predict(decoder, tmp_path / "silent.nc")[0]["predicted_velocity"]
    )
    assert "1 of 20 channels are missing" in notes[0]


def test_channels_of_another_array_are_refused(call, decoder, days, tmp_path):
    session = prepare(days[1], 0.05)
    other = [f"PMd/{name}" for name in session["channel"].values.tolist()]
    write_session(session.assign_coords(channel=other), tmp_path / "other.nc")
    code, _, said = call("predict", decoder, tmp_path / "other.nc", "-o", tmp_path / "out.nc", "--missing", "zero")
    assert code == 2
    assert "lacks 20 of 20" in " ".join(said.split())
    assert not (tmp_path / "out.nc").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"subject": "Other"}, "is of subject"),
        ({"bin_s": 0.1}, "is in bins of 0.05 s, the decoder's are 0.1 s"),
        ({"channels": ["a", "b"]}, "does not fit its weights"),
        ({"outputs": [{"variable": "velocity", "axes": ["x"], "units": "cm/s"}]}, "does not fit its weights"),
        ({"outputs": [{"variable": 3}]}, "does not fit its weights"),
    ],
)
def test_a_decoder_that_does_not_fit_is_refused(decoder, days, tmp_path, change, message):
    write_session(prepare(days[1], 0.05), tmp_path / "tue.nc")
    other = Decoder.load(decoder)
    other.metadata_ = {**other.metadata_, **change}
    other.bin_s_ = change.get("bin_s", other.bin_s_)
    other.save(tmp_path / "other.npz")
    with pytest.raises(InputError, match=message):
        predicting.predict(tmp_path / "other.npz", tmp_path / "tue.nc")


def test_a_decoder_without_names_takes_channels_as_they_come(decoder, days, tmp_path):
    other = Decoder.load(decoder)
    other.metadata_ = {}
    other.save(tmp_path / "plain.npz")
    made, notes = predicting.predict(tmp_path / "plain.npz", days[1])
    np.testing.assert_array_equal(
        made["predicted_output"].values, predicting.predict(decoder, days[1])[0]["predicted_velocity"].values
    )
    assert "does not name its channels" in notes[0]
    session = prepare(days[1], 0.05)
    write_session(session.isel(channel=slice(1, None)), tmp_path / "fewer.nc")
    with pytest.raises(InputError, match="fitted on 20 channels, got 19"):
        predicting.predict(tmp_path / "plain.npz", tmp_path / "fewer.nc")


def test_a_decoder_fitted_on_labelled_arrays_knows_them(days, tmp_path):
    session = prepare(days[0], 0.05)
    masks = {name: session[name] for name in ("valid", "segment")}
    counts = session["counts"].assign_coords(masks)
    velocity = session["velocity"].assign_coords(velocity_valid=session["velocity_valid"])
    WienerDecoder(n_lags=2).fit(counts, velocity).save(tmp_path / "own.npz")
    known = Decoder.load(tmp_path / "own.npz").metadata_
    assert known["channels"] == session["channel"].values.tolist()
    assert known["outputs"] == [{"variable": "velocity", "axes": ["x", "y"], "units": "centimeters/s"}]


def test_predict_overwrites_nothing_of_its_own(call, decoder, days, tmp_path):
    write_session(prepare(days[1], 0.05), tmp_path / "tue.nc")
    before = (tmp_path / "tue.nc").read_bytes()
    for output, message in ((tmp_path / "tue.nc", "overwritten"), (tmp_path / "out.npz", "must end in .nc")):
        code, _, said = call("predict", decoder, tmp_path / "tue.nc", "-o", output)
        assert code == 2
        assert message in said
    assert (tmp_path / "tue.nc").read_bytes() == before
    assert call("predict", days[0], days[1], "-o", tmp_path / "out.nc")[0] == 2  # a recording is no decoder
    assert read_session(tmp_path / "tue.nc")
