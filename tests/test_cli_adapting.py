"""From day to day: `pretrain` a decoder on recordings, `adapt` it to the next, each against the same by hand."""

import inspect
import json
import os
import re
import subprocess
import sys
from functools import partial

import h5py
import numpy as np
import pytest
import xarray as xr
from test_cli_comparing import write_day

import bci_adapt as ba
from bci_adapt.data.labelled import session_arrays
from bci_adapt.data.prepare import prepare
from bci_adapt.data.session_files import write_session
from bci_adapt.decoders.base import Decoder
from bci_adapt.decoders.online_rnn import OnlineDecoder
from bci_adapt.decoders.recommendation import recommended
from bci_adapt.errors import InputError
from bci_adapt.ground.storage import cache_root
from bci_adapt.live import adapting, predicting
from bci_adapt.metrics import r2

KINDS = ("mon", "rates", "late")
SMALL = {"n_hidden": 5, "n_updates": 20, "added_updates": 5, "warm_up_s": 5.0, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("adapting")


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(adapting, "recommended", partial(ba.recommended, **SMALL))


@pytest.fixture(scope="module")
def days(folder):
    return [write_day(folder, number, kind, duration_s=60.0) for number, kind in enumerate(KINDS)]


@pytest.fixture(scope="module")
def sessions(days):
    return [prepare(day, 0.05) for day in days]


@pytest.fixture(scope="module")
def decoder(folder, days):
    """A decoder of the first two days."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapting, "recommended", partial(ba.recommended, **SMALL))
        adapting.pretrain(days[:2], seed=3).save(folder / "decoder.npz")
    return folder / "decoder.npz"


def parts(session):
    arrays = session_arrays(session, "velocity")
    return arrays.X, arrays.y, arrays.reset


def test_recommended_shows_all_that_can_be_set_and_says_no_to_the_rest():
    assert ba.recommended is recommended
    made = ba.recommended(seed=4, learning_rate=1e-5)
    assert (made.seed, made.learning_rate, made.rule, made.rule_constants) == (4, 1e-5, "window", {"steps": 4})
    assert ba.recommended(rule="rtrl").rule_constants is None
    own, shown = (inspect.signature(each).parameters for each in (OnlineDecoder, recommended))
    assert [*shown] == [*own]
    other = {"n_hidden": 128, "n_members": 3, "take_turns": True, "rule": "window", "average": 0.997}
    assert {name: shown[name].default for name in shown if shown[name].default != own[name].default} == other
    with pytest.raises(TypeError, match="n_hiden"):
        ba.recommended(n_hiden=3)


def test_pretrain_carries_one_network_through_the_days(call, days, sessions, decoder, tmp_path):
    code, said, _ = call("pretrain", *days[:2], "-o", tmp_path / "made.npz", "--seed", 3)
    assert code == 0
    assert "20 channels → velocity, trained on 2 sessions" in " ".join(said.split())
    by_hand = ba.recommended(**SMALL, seed=3, bin_s=0.05).fit(*parts(sessions[0]))
    by_hand.extend(*map(list, zip(parts(sessions[0]), parts(sessions[1]), strict=True)))
    for path in (tmp_path / "made.npz", decoder):
        found = Decoder.load(path)
        assert found.get_params() == by_hand.get_params() | {"bin_s": None}
        for key, expected in by_hand._fitted_arrays().items():
            np.testing.assert_array_equal(getattr(found, key), expected)
    assert found.metadata_["sessions"] == ["sub-Sim_ses-mon", "sub-Sim_ses-rates"]
    assert found.metadata_["channels"] == sessions[0]["channel"].values.tolist()
    assert found.metadata_["outputs"] == [{"variable": "velocity", "axes": ["x", "y"], "units": "centimeters/s"}]


def test_prepared_sessions_and_other_targets(call, sessions, tmp_path):
    """Sessions as they are prepared, in bins of their own; channels are matched by name under the rule asked for."""
    paths = [tmp_path / "0.nc", tmp_path / "1.nc"]
    order = np.random.default_rng(0).permutation(19)
    write_session(sessions[0], paths[0])
    write_session(sessions[1].isel(channel=order), paths[1])
    asked = ("--target", "velocity,position", "-o", tmp_path / "both.npz", "-q")
    code, _, said = call("pretrain", *paths, *asked)
    assert (code, "only in sub-Sim_ses-mon" in " ".join(said.split())) == (2, True)
    assert call("pretrain", *paths, *asked, "--missing", "drop")[:2] == (0, "")
    found = Decoder.load(tmp_path / "both.npz")
    assert found.n_outputs_ == 4
    assert found.metadata_["channels"] == sessions[0]["channel"].values[:19].tolist()
    kept = [session.isel(channel=slice(19)) for session in sessions[:2]]
    arrays = [session_arrays(session, ["velocity", "position"]) for session in kept]
    by_hand = ba.recommended(**SMALL, bin_s=0.05).fit(arrays[0].X, arrays[0].y, arrays[0].reset)
    by_hand.extend(*([getattr(each, key) for each in arrays] for key in ("X", "y", "reset")))
    np.testing.assert_array_equal(found.W_, by_hand.W_)


def test_adapt_is_the_decoder_adapted_by_hand(call, days, sessions, decoder, tmp_path):
    before = decoder.read_bytes()
    code, said, _ = call(
        "adapt", decoder, days[2], "-o", tmp_path / "wed.npz", "--predictions", tmp_path / "wed.nc",
        "--stream-s", 25, "--json", tmp_path / "wed.json",
    )  # fmt: skip
    assert code == 0
    assert "adapted for 25 s" in " ".join(said.split())
    assert decoder.read_bytes() == before
    X, y, reset = parts(sessions[2])
    by_hand = Decoder.load(decoder)
    online = by_hand.adapt(X[:500], y[:500], reset[:500])
    held_out = by_hand.predict(X[500:], reset[500:], continuing=True)
    with xr.open_dataset(tmp_path / "wed.nc", engine="h5netcdf", decode_times=False) as made:
        np.testing.assert_array_equal(made["predicted_velocity"], np.vstack([online, held_out]))
        np.testing.assert_array_equal(made["held_out"], np.arange(len(X)) >= 500)
        np.testing.assert_array_equal(made["time"], sessions[2]["time"])
        assert made.attrs["decoder_trained_on"] == "sub-Sim_ses-mon, sub-Sim_ses-rates"
    adapted = Decoder.load(tmp_path / "wed.npz")
    assert adapted.metadata_["adapted_to"] == ["sub-Sim_ses-late"]
    for key, expected in by_hand._fitted_arrays().items():
        np.testing.assert_array_equal(adapted._fitted_arrays()[key], expected)
    told = json.loads((tmp_path / "wed.json").read_text())
    assert told["n_labels"] == np.isfinite(y[:490]).any(axis=1).sum() > 400  # the last labels come after it
    assert told["weight_change"] == by_hand.weight_change_ > 0
    in_trial = session_arrays(sessions[2], "velocity").in_trial
    for row in told["scores"]:
        bins, predicted = {"online": (slice(500), online), "held_out": (slice(500, None), held_out)}[row["part"]]
        mask = np.isfinite(y[bins]) & (in_trial[bins, None] if row["bins"] == "in trial" else True)
        assert row["r2"] == pytest.approx(r2(y[bins], predicted, mask))
    assert [(row["part"], row["bins"]) for row in told["scores"]] == [
        (part, bins) for part in ("online", "held_out") for bins in ("in trial", "all")
    ]


def test_an_adapted_decoder_goes_on_with_the_next_session(days, sessions, decoder, tmp_path):
    adapting.adapt(decoder, days[1], stream_s=20.0).decoder.save(tmp_path / "tue.npz")
    found = adapting.adapt(tmp_path / "tue.npz", days[2], stream_s=20.0)
    by_hand = Decoder.load(decoder)
    for session in sessions[1:]:
        online = by_hand.adapt(*(part[:400] for part in parts(session)))
    np.testing.assert_array_equal(found.prediction["predicted_velocity"][:400], online)
    assert found.decoder.metadata_["adapted_to"] == ["sub-Sim_ses-rates", "sub-Sim_ses-late"]


def test_labels_beyond_the_stream_reach_nothing(sessions, decoder, tmp_path):
    write_session(sessions[2], tmp_path / "as_it_is.nc")
    other = sessions[2].copy(deep=True)
    other["velocity"].values[400:] *= -3.0
    write_session(other, tmp_path / "other.nc")
    one, two = (adapting.adapt(decoder, tmp_path / name, 20.0) for name in ("as_it_is.nc", "other.nc"))
    xr.testing.assert_equal(one.prediction["predicted_velocity"], two.prediction["predicted_velocity"])
    assert [row["r2"] for row in one.scores[:2]] == [row["r2"] for row in two.scores[:2]]
    assert one.scores[-1]["r2"] != two.scores[-1]["r2"]
    other["velocity"].values[300:] *= -3.0
    write_session(other, tmp_path / "other.nc")
    three = adapting.adapt(decoder, tmp_path / "other.nc", 20.0).prediction["predicted_velocity"].values
    apart = np.flatnonzero((three != one.prediction["predicted_velocity"].values).any(axis=1))
    assert apart[0] == 311  # the label of bin 300 comes with bin 310


def test_without_movement_only_what_needs_no_label_adapts(call, days, decoder, tmp_path):
    bare = tmp_path / "bare.nwb"
    bare.write_bytes(days[2].read_bytes())
    with h5py.File(bare, "a") as file:
        del file["processing"]
    code, said, _ = call("adapt", decoder, bare, "-o", tmp_path / "bare.npz")
    assert code == 0
    assert "no label became known in the stream" in " ".join(said.split())
    assert "R²" not in said
    code, said, _ = call("adapt", decoder, bare, "-o", tmp_path / "bare.npz", "--json")
    told = json.loads(said)
    assert (told["scores"], told["n_labels"], told["weight_change"]) == ([], 0, 0.0)
    adapted = Decoder.load(tmp_path / "bare.npz")
    assert not np.array_equal(adapted.running_.mean, adapted.mean_)


def test_a_saved_decoder_is_read_in_another_place_and_process(days, decoder, tmp_path):
    expected, _ = predicting.predict(decoder, days[2])
    (tmp_path / "moved.npz").write_bytes(decoder.read_bytes())
    env = {**os.environ, "BCI_ADAPT_CACHE": str(cache_root())}  # where compiled loops are
    script = (
        "import sys; from bci_adapt.live.predicting import predict\n"
        f"print(float(abs(predict('moved.npz', {str(days[2])!r})[0]['predicted_velocity']).sum()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    assert float(done.stdout) == float(abs(expected["predicted_velocity"]).sum())


def test_what_was_matched_by_position_is_matched_so_again(call, tmp_path, monkeypatch):
    """Columns without names: the decoder's days and each later one meet only as the user says."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in ("mon", "tue", "wed"):
        counts, target = rng.poisson(2.0, (600, 5)), np.cumsum(rng.standard_normal((600, 2)), axis=0)
        made = ba.session(counts=counts, target=target, bin_s=0.05, session_id=name, target_units="cm")
        write_session(made, tmp_path / f"{name}.nc")
    assert call("pretrain", "mon.nc", "tue.nc", "-o", "made.npz", "--by", "position")[0] == 0
    for command in (("adapt", "made.npz", "wed.nc", "-o", "wed.npz"), ("predict", "made.npz", "wed.nc", "-o", "p.nc")):
        code, _, said = call(*command)
        assert (code, "matched by position, this one was not" in " ".join(said.split())) == (2, True)
        assert "--by position" in " ".join(said.split())
        assert call(*command, "--by", "position")[0] == 0
    (wed,) = ba.match([ba.read("wed.nc")], by="position")
    by_hand = ba.load("made.npz")
    with xr.open_dataset("p.nc", engine="h5netcdf", decode_times=False) as found:
        np.testing.assert_array_equal(found["predicted_velocity"], by_hand.predict(wed))
    stream, _ = ba.split(wed, 15.0)
    by_hand.adapt(stream)
    for key, expected in by_hand._fitted_arrays().items():
        np.testing.assert_array_equal(ba.load("wed.npz")._fitted_arrays()[key], expected)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["pretrain", "rates.nwb", "mon.nwb"], "give the earliest first"),
        (["pretrain", "mon.nwb", "mon.nwb"], "given twice"),
        (["pretrain", "mon.nwb", "nowhere.nwb"], "nowhere.nwb"),
        (["pretrain", "mon.nwb", "--target", "speed"], "expected target 'speed', it holds"),
        (["pretrain", "mon.nwb", "--bin", "0"], "bin_s"),
        (["pretrain", "mon.nwb", "wide.nc"], "prepared in bins of 0.1 s"),
        (["pretrain", "mon.nwb", "metres.nc"], "velocity does not mean the same in these sessions"),
        (["pretrain", "mon.nwb", "rates.nwb", "--missing", "most"], "rule for missing channels"),
        (["pretrain", "mon.nwb", "-o", "mon.nwb"], "must end in .npz"),
        (["adapt", "decoder.npz", "late.nwb", "-o", "out.nc"], "must end in .npz"),
        (["adapt", "decoder.npz", "late.nwb", "--predictions", "out.txt"], "must end in .nc"),
        (["adapt", "decoder.npz", "metres.nc", "--predictions", "metres.nc"], "would be overwritten"),
        (["adapt", "decoder.npz", "metres.nc"], "the decoder was trained on x, y in centimeters/s"),
        (["adapt", "decoder.npz", "wide.nc"], "the decoder's are 0.05 s"),
        (["adapt", "decoder.npz", "fewer.nc"], "lacks 1 of 20"),
        (["adapt", "decoder.npz", "fewer.nc", "--missing", "drop"], "refuse or zero"),
        (["adapt", "decoder.npz", "late.nwb", "--stream-s", "0"], "stream_s must be positive"),
        (
            ["adapt", "mon.nwb", "late.nwb"],
            r"a decoder saved by bci_adapt \(npz\), this is none; .* decoder first",
        ),
    ],
)
def test_what_cannot_be_is_said_and_nothing_is_written(
    call, folder, days, sessions, decoder, tmp_path, command, message
):
    if not (folder / "wide.nc").exists():
        write_session(prepare(days[2], 0.1), folder / "wide.nc")
        write_session(sessions[2].isel(channel=slice(1, None)), folder / "fewer.nc")
        metres = sessions[2].copy(deep=True)
        metres["velocity"].attrs["units"] = "meters/s"
        write_session(metres, folder / "metres.nc")
    listed = sorted(folder.iterdir())
    given = [folder / each if each.endswith((".nwb", ".nc", ".npz", ".txt")) else each for each in command]
    given += [] if "-o" in command else ["-o", tmp_path / "out.npz"]
    code, _, said = call(*given)
    assert code == 2
    assert re.search(message, " ".join(said.split()))
    assert sorted(folder.iterdir()) == listed
    assert not [*tmp_path.iterdir()]


def test_weights_that_diverge_are_refused(days, decoder, tmp_path):
    broken = Decoder.load(decoder)
    broken.C_ = np.full_like(broken.C_, 1e308)
    broken.save(tmp_path / "broken.npz")
    with pytest.raises(InputError, match="diverged on sub-Sim_ses-late"):
        adapting.adapt(tmp_path / "broken.npz", days[2])
