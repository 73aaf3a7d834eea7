"""Days with other muscles: which axes are decoded is said in a config or on the command line, and dead ones leave no
mark on what several outputs are scored by.
"""

import json
import tomllib

import numpy as np
import pytest
from caches import new_cache
from test_cli_comparing import write_day
from test_experiment import TINY
from test_many_outputs import MUSCLES, with_muscles
from typer.testing import CliRunner

import bci_adapt as ba
from bci_adapt.cli import app
from bci_adapt.data.axes import named_axes, parsed, with_axes
from bci_adapt.data.prepare import prepare
from bci_adapt.decoders.base import Decoder
from bci_adapt.errors import InputError
from bci_adapt.experiment import run as running
from bci_adapt.experiment.comparing import compare_config
from bci_adapt.experiment.config import parse_config
from bci_adapt.experiment.explain import explain
from bci_adapt.experiment.jobs import counterfactual
from bci_adapt.experiment.pairs import unscorable
from bci_adapt.experiment.preparing import prepare_sessions
from bci_adapt.experiment.run import run_experiment
from bci_adapt.live import adapting
from bci_adapt.results.table import read_results, unscorable_outputs


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return new_cache(tmp_path_factory.mktemp("axes"))


@pytest.fixture(autouse=True)
def _own_cache(cache, monkeypatch):
    monkeypatch.setenv("BCI_ADAPT_CACHE", str(cache))


@pytest.fixture(scope="module")
def days(tmp_path_factory):
    """Three days: the second has its muscles in another order and no FDS, on the third ECU dies after 60 s."""
    folder = tmp_path_factory.mktemp("days")
    second, third = with_muscles(1).sel(emg_axis=["ECU", "FCR"]), with_muscles(2).copy(deep=True)
    third["emg"].values[1200:, MUSCLES.index("ECU")] = 5.0
    files = []
    for number, session in enumerate((with_muscles(0), second, third)):
        files.append(folder / f"day{number}.nc")
        ba.write_session(session, files[-1])
    return files


def config(days, targets=(2,), **change):
    raw = tomllib.loads(TINY)
    raw |= {"source": {"kind": "files", "paths": list(map(str, days))}, "variables": ["emg"], "name": "muscles"}
    raw |= {"pairs": [{"source": 1, "targets": list(targets)}], "arms": raw["arms"][:1], "seeds": [0]}
    return parse_config(raw | {"channels": {"policy": "position"}} | change, "test")


def test_axes_are_those_asked_for_in_that_order(days):
    sessions = [ba.read(file) for file in days]
    assert named_axes({"emg": ["common"]}, sessions) == {"emg": ["FCR", "ECU"]}
    cut = with_axes(sessions[1], {"emg": ["FCR"]})
    assert np.array_equal(cut["emg"].values, sessions[1].sel(emg_axis=["FCR"])["emg"].values)
    assert cut["emg_valid"].shape == cut["emg"].shape
    assert cut["movement"].shape == sessions[1]["movement"].shape
    with pytest.raises(InputError, match=r"day1: unknown axis of emg 'FDS' \(known: ECU, FCR\)"):
        named_axes({"emg": ["FCR", "FDS"]}, sessions)
    with pytest.raises(InputError, match="emg has no axis that all"):
        named_axes({"emg": ["common"]}, [with_axes(sessions[0], {"emg": ["FDS"]}), sessions[1]])
    assert parsed(["emg=ECU, FCR", "force=common"]) == {"emg": ("ECU", "FCR"), "force": ("common",)}
    for wrong in (["emg"], ["=ECU"], ["emg=ECU,,FCR"], ["emg=ECU,ECU"], ["emg=ECU", "emg=FCR"]):
        with pytest.raises(InputError, match="expected NAME=AXIS,AXIS"):
            parsed(wrong)


def test_a_config_chooses_axes_and_one_that_does_not_keeps_its_keys(days):
    with pytest.raises(InputError, match=r"emg does not mean the same.*\[axes\] emg = \"common\""):
        prepare_sessions(config(days), config(days).pairs, workers=0)
    plain = config(days, targets=(3,))
    before = prepare_sessions(plain, plain.pairs, workers=0)[0].jobs
    for axes, expected in (("common", ["FCR", "ECU"]), (["ECU"], ["ECU"])):
        chosen = config(days, targets=(2, 3), axes={"emg": axes})
        prepared, _ = prepare_sessions(chosen, chosen.pairs, workers=0)
        assert all(each["emg_axis"].values.tolist() == expected for each in prepared.sessions.values())
        assert f"axes of emg: {', '.join(expected)}; left out: " in prepared.notes[-1]
        assert "FDS (in 2 of 3 sessions)" in prepared.notes[-1]
        for name, job in before.items():
            assert prepared.jobs[name].inputs["session"].key == job.key != prepared.jobs[name].key
    assert "axes" not in plain.model_dump(exclude_none=True)
    for wrong, message in (({"velocity": ["x"]}, "unknown variable 'velocity'"), ({"emg": []}, "axes.emg")):
        with pytest.raises(InputError, match=message):
            config(days, axes=wrong)


def test_the_name_of_a_run_moves_only_where_axes_are_named(days, monkeypatch):
    dumped = []
    monkeypatch.setattr(running.json, "dumps", lambda asked: dumped.append(asked[0]) or "{}")

    class Nothing:
        jobs, costs = {}, {}

    for given in (config(days), config(days, axes={"emg": "common"})):
        ran = Nothing()
        ran.config, ran.prepared, ran.plan = given, Nothing(), Nothing()
        ran.plan.jobs = list
        running._digest(ran)
    assert "axes" not in dumped[0]
    assert dumped[1]["axes"] == {"emg": ["common"]}


def test_a_run_of_days_with_other_muscles_leaves_a_dead_one_out(days, monkeypatch):
    monkeypatch.setattr("bci_adapt.results.report.render_report", lambda folder: None)
    given = config(days, targets=(2, 3), axes={"emg": "common"})
    done = run_experiment(given, workers=0)
    rows = read_results(done.folder / "results.nc").rows
    held = rows[(rows["phase"] == "held_out") & (rows["arm"] == "ridge_oracle")].set_index(["target", "metric"])
    # alive on the second day, dead in the held-out part of the third
    assert {"r2:FCR", "r2:ECU"} <= set(held.loc["day1"].index)
    assert held.loc[("day1", "r2_uniform"), "value"] == pytest.approx(
        np.mean([held.loc[("day1", f"r2:{each}"), "value"] for each in ("FCR", "ECU")])
    )
    assert held.loc[("day2", "r2:ECU"), "status"] == "unscorable"
    assert held.loc[("day2", "r2:ECU"), "reason"] == "it does not move in the held-out part"
    alone = held.loc[("day2", "r2:FCR"), "value"]
    assert alone > 0.5
    for metric in ("r2", "r2_uniform"):
        assert held.loc[("day2", metric), "value"] == pytest.approx(alone)
    assert unscorable_outputs(rows) == [
        {"source": "day0", "target": "day2", "output": "emg ECU", "reason": "it does not move in the held-out part"}
    ]
    assert not done.manifest.unscorable
    assert any(text.startswith("axes of emg: FCR, ECU") for text in done.manifest.notes)
    network, wiener = explain(done.folder, "day0:day2", workers=0)[0]
    for found, cell in ((network, "tanh"), (wiener, "")):
        own = rows[(rows["phase"] == "held_out") & (rows["target"] == "day2") & (rows["metric"] == "r2")]
        frozen = own[(own["arm"] == "frozen") & (own["cell"] == cell)]["value"].item()
        (explained,) = (row.r2 for row in found.rows if row.part == "frozen")
        assert explained == pytest.approx(frozen, abs=1e-9)
        assert found.notes[0] == "in no score: ECU: it does not move in the held-out part"
        assert max(abs(row.r2) for row in found.rows) < 10  # none is a division by nothing


def test_a_source_whose_muscle_never_moves_is_refused_with_the_way_out(days, tmp_path):
    still = ba.read(days[0]).copy(deep=True)
    still["emg"].values[:, 1] = 1.0
    ba.write_session(still, tmp_path / "still.nc")
    files = [tmp_path / "still.nc", days[2]]
    with pytest.raises(InputError, match=r"never changes in axis ECU.*\[axes\]"):
        run_experiment(config(files), workers=0)
    chosen = config(files, axes={"emg": ["FCR", "FDS"]})
    prepared, pairs = prepare_sessions(chosen, chosen.pairs, workers=0)
    running.require_source(prepared.sessions["day0"], chosen)
    assert unscorable(prepared.sessions[pairs[0].target], chosen) == ""


def test_compare_takes_axes_and_what_is_done_with_bins_that_a_unit_misses(days):
    given = {"bin_s": 0.05, "stream_s": 60.0, "label_delay_s": 0.5, "cells": None, "seeds": None, "quick": True}
    made = compare_config(days, "emg", **given, axes={"emg": ("common",)}, workers=0)
    assert (made.variables, made.axes, made.unobserved) == (("emg",), {"emg": ("common",)}, None)
    assert compare_config(days, None, **given, unobserved="drop", workers=0).unobserved == "drop"
    assert compare_config(days, "emg", **given, workers=0).axes is None
    with pytest.raises(InputError, match="unknown variable 'force'"):
        compare_config(days, "emg", **given, axes={"force": ("common",)}, workers=0)


def test_explain_makes_no_choice_by_an_output_that_is_in_no_score(tmp_path):
    """Counts come 100 ms late; the second axis would have them earlier, and is larger by far."""
    monday, late = (prepare(write_day(tmp_path, number, kind), 0.05) for number, kind in ((0, "mon"), (1, "late")))
    ba.WienerDecoder(n_lags=3).fit(monday, "velocity").save(tmp_path / "decoder.npz")
    parameters = {"variables": ["velocity"], "target_lag_bins": 0, "variable": "velocity", "stream_s": 75.0}
    parameters |= {"statistics": "source", "lags": [0, -1, 1, -2, 2, -3, 3]}

    def lag(name, **more):
        ba.write_session(late, tmp_path / name)
        files = {"decoder": tmp_path / "decoder.npz", "target": tmp_path / name}
        counterfactual.run(parameters | more, files, tmp_path / "made.npz")
        with np.load(tmp_path / "made.npz") as made:
            return json.loads(str(made["chosen"]))["lag"]

    right = lag("a.nc", still=[1])
    assert right > 0
    late["velocity"].values[:, 1] = 1000 * np.nan_to_num(
        np.roll(late["velocity"].values[:, 1], 5)
    )  # large, and of counts before it
    assert lag("b.nc", still=[1]) == right
    assert lag("b.nc") == -3


def test_compare_of_sessions_takes_axes(days, monkeypatch):
    found = []

    def run(config, **_):
        found.append(config.axes)
        raise InputError("no further")

    monkeypatch.setattr("bci_adapt.experiment.run.run_experiment", run)
    for axes in ({"emg": ["FCR", "ECU"]}, {"emg": "common"}, None):
        with pytest.raises(InputError, match="no further"):
            ba.compare(days[:2], "emg", axes=axes, quick=True, workers=0)
    assert found == [{"emg": ("FCR", "ECU")}, {"emg": ("common",)}, None]


def test_pretrain_and_adapt_know_axes_by_name(days, tmp_path):
    decoder = adapting.pretrain(days[:2], "emg", by="position", axes={"emg": ["common"]}, n_hidden=4, n_updates=3)
    assert decoder.metadata_["outputs"] == [{"variable": "emg", "axes": ["FCR", "ECU"], "units": "mV"}]
    with pytest.raises(InputError, match="unknown target 'force'"):
        adapting.pretrain(days[:2], "emg", axes={"force": ["x"]})
    decoder.save(tmp_path / "two.npz")
    found = adapting.adapt(tmp_path / "two.npz", days[2], stream_s=100.0, by="position")  # which has three muscles
    (third,) = ba.match([ba.read(days[2])], by="position")
    cut = with_axes(third, {"emg": ["FCR", "ECU"]})
    expected = Decoder.load(tmp_path / "two.npz").adapt(ba.split(cut, 100.0)[0])
    assert np.array_equal(found.prediction["predicted_emg"].values[:2000], expected.values)
    assert "emg ECU is in no score: it does not move in the held-out part" in found.notes
    # asked for by name, it is the whole variable, which the decoder does not decode
    with pytest.raises(InputError, match="emg has axes FCR, ECU, FDS"):
        Decoder.load(tmp_path / "two.npz").adapt(third, "emg")
    other = third.copy(deep=True)
    other["emg"].attrs["units"] = "V"
    with pytest.raises(InputError, match="in V, the decoder was trained on FCR, ECU in mV"):
        Decoder.load(tmp_path / "two.npz").adapt(other)


@pytest.mark.parametrize(
    "command",
    [("qc",), ("drift",), ("compare", "--target", "emg"), ("pretrain", "--target", "emg", "-o", "x.npz")],
    ids=lambda command: command[0],
)
def test_commands_that_read_recordings_say_what_happens_to_unobserved_bins(command, days, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    # a session that is prepared already takes no options: that the option reached the reader shows by its refusal
    result = CliRunner().invoke(app, [*command, *map(str, days[:2]), "--unobserved", "drop", "-q"])
    assert isinstance(result.exception, InputError)
    assert "a prepared session takes no options, got unobserved" in str(result.exception)


def test_evaluate_leaves_an_output_that_dies_out_of_every_score():
    first, second = with_muscles(0), with_muscles(1).copy(deep=True)
    decoder = ba.WienerDecoder(n_lags=3).fit(first, "emg")
    whole = ba.evaluate(decoder, second, stream_s=100.0)
    assert whole.unscorable == {}
    weak = slice(2000, None), MUSCLES.index("ECU")
    second["emg"].values[weak] = 5.0 + 0.1 * (second["emg"].values[weak] - 5.0)  # variance a hundredth
    found = ba.evaluate(decoder, second, stream_s=100.0)
    assert list(found.unscorable) == ["emg"]
    assert "below a tenth of the stream's" in found.unscorable["emg"]["ECU"]
    assert "emg without ECU" in repr(found)
    scores = found.scores.query("part == 'held_out' and bins == 'all'").iloc[0]
    assert np.isnan(scores["r2:ECU"])
    assert scores["r2_uniform"] == pytest.approx(np.mean([scores["r2:FCR"], scores["r2:FDS"]]))
    before = whole.scores.query("part == 'held_out' and bins == 'all'").iloc[0]
    assert scores["r2:FCR"] == pytest.approx(before["r2:FCR"], rel=1e-12)
    second["emg"].values[2000:] = 5.0  # where all of them die it is the variable that is not scored
    assert ba.evaluate(decoder, second, stream_s=100.0).unscorable == {}


def test_real_muscles_meet_on_those_that_all_days_have(real_data):
    files = sorted((real_data / "wrist92_emg").glob("*.nwb"))
    if not files:
        pytest.skip("no recordings with muscles")
    sessions = [ba.read(file, 0.05) for file in (files[0], files[2])]
    assert [session.sizes["emg_axis"] for session in sessions] == [16, 14]
    common = named_axes({"emg": ["common"]}, sessions)["emg"]
    assert len(common) == 14
    _, second = ba.match([with_axes(each, {"emg": common}) for each in sessions], missing="drop")
    found = ba.evaluate(ba.WienerDecoder().fit(ba.split(second, 600.0)[0], "emg"), second, stream_s=600.0)
    held = found.scores.query("part == 'held_out' and bins == 'all'").iloc[0]
    assert found.unscorable == {}
    assert np.median([held[f"r2:{axis}"] for axis in common]) > 0.4
