"""The score job: which bins and phases are scored, of which variable, and what a run leaves besides rows."""

from __future__ import annotations

import json

import numpy as np
import pytest
from long_tables import row

from bci_adapt.data.labelled import Arrays
from bci_adapt.experiment.jobs import score as job
from bci_adapt.metrics import block_sums, r2, rmse
from bci_adapt.results.table import BLOCKS, RUN, long_table

BIN_S, N_STREAM = 0.1, 1500


def arrays(seed: int, with_trials: bool = True) -> Arrays:
    rng = np.random.default_rng(seed)
    y = rng.normal(size=(4000, 4)).cumsum(axis=0) * 0.1
    y[::17, :2] = np.nan
    in_trial = np.arange(len(y)) % 50 < 30
    columns = {"velocity": slice(0, 2), "position": slice(2, 4)}
    return Arrays(
        np.zeros((len(y), 1)),
        y,
        np.zeros(len(y), bool),
        ("x", "y", "x", "y"),
        columns,
        in_trial if with_trials else None,
        np.zeros(len(y), int),
        BIN_S,
        "t1",
    )


def scored(tmp_path, monkeypatch, arms, with_trials=True, spoil=lambda stored: None):
    """Run the job on arms ``(columns, phases)``; the sessions, what was stored, and the job's tables."""
    sessions = {"target": arrays(0, with_trials), "source": arrays(1, with_trials)}
    monkeypatch.setattr(job, "job_arrays", lambda parameters, path: sessions[str(path)])
    rng = np.random.default_rng(2)
    inputs, entries = {name: name for name in sessions}, []
    truth = {"online": sessions["target"].y[:N_STREAM], "back": sessions["source"].y}
    truth |= dict.fromkeys(("held_out", "continuing"), sessions["target"].y[N_STREAM:])
    stored = {name: np.nan_to_num(y) + rng.normal(0, 0.3, y.shape) for name, y in truth.items()}
    spoil(stored)
    np.savez(tmp_path / "arm.npz", **stored, weight_change=np.array(0.2), diverged=np.array(False), n_labels=77)
    for number, (columns, phases) in enumerate(arms):
        lost = columns.pop("failed", None)
        columns = {"budget_trials": 8.0, **columns}  # JSON knows no infinity
        whole = {name: value for name, value in row(**columns).items() if name not in ("variable", "phase", "metric")}
        whole = {name: whole[name] for name in whole if name not in ("value", "n_bins", "status", "reason", "n_labels")}
        entries.append({"input": f"arm{number}", "columns": whole, "phases": list(phases)})
        if lost:
            entries[-1]["failed"] = lost
        else:
            inputs[f"arm{number}"] = tmp_path / "arm.npz"
    parameters = {
        "variables": ["velocity", "position"],
        "target_lag_bins": 0,
        "in_trial": True,
        "stream_s": N_STREAM * BIN_S,
        "arms": entries,
    }
    job.run(parameters | {"excerpt": True, "first_seed": 0}, inputs, tmp_path / "out.json")
    return sessions, stored, json.loads((tmp_path / "out.json").read_text())


def value(tables, **wanted):
    (found,) = [each for each in tables["rows"] if wanted.items() <= each.items()]
    return found["value"]


PHASES = ("online", "online_late", "held_out", "continuing", "back")


def test_every_phase_and_variable_is_scored_against_its_own_truth(tmp_path, monkeypatch):
    sessions, stored, tables = scored(tmp_path, monkeypatch, [({"arm": "readout"}, PHASES)])
    target, source = sessions["target"], sessions["source"]
    late = slice(N_STREAM // 2, N_STREAM)
    truth = {
        "online": (target, slice(0, N_STREAM), stored["online"]),
        "online_late": (target, late, stored["online"][late]),
        "held_out": (target, slice(N_STREAM, None), stored["held_out"]),
        "continuing": (target, slice(N_STREAM, None), stored["continuing"]),
        "back": (source, slice(None), stored["back"]),
    }
    for phase, (session, bins, predicted) in truth.items():
        for variable, columns in target.columns.items():
            y, guess = session.y[bins, columns], predicted[:, columns]
            labelled = np.isfinite(y)
            inside = labelled & session.in_trial[bins, None]
            own = {"phase": phase, "variable": variable}
            assert value(tables, **own, metric="r2") == pytest.approx(r2(y, guess, inside))
            assert value(tables, **own, metric="rmse") == pytest.approx(rmse(y, guess, inside))
            assert value(tables, **own, metric="r2_all_bins") == pytest.approx(r2(y, guess, labelled))
    rows = long_table([each | {"value": np.nan if each["value"] is None else each["value"]} for each in tables["rows"]])
    assert set(rows["n_labels"]) == {77}
    assert set(rows["status"]) == {"ok"}
    assert {each["phase"] for each in tables["curves"]} == {"online", "held_out"}
    assert min(each["time_s"] for each in tables["curves"] if each["phase"] == "held_out") == N_STREAM * BIN_S + 30.0
    assert {(each["variable"], each["axis"]) for each in tables["trajectories"]} == {
        (variable, axis) for variable in target.columns for axis in "xy"
    }


def test_blocks_add_up_to_the_held_out_score(tmp_path, monkeypatch):
    _, _, tables = scored(tmp_path, monkeypatch, [({"arm": "readout"}, PHASES)])
    assert len(long_table(tables["blocks"], "blocks")) == 2
    for each in tables["blocks"]:
        assert list(each) == list(BLOCKS)
        assert len(each["error"]) == 25  # 250 s
        score = 1 - sum(each["error"]) / sum(each["spread"])
        assert score == pytest.approx(value(tables, variable=each["variable"], phase="held_out", metric="r2"))


def test_side_questions_and_controls_leave_rows_only(tmp_path, monkeypatch):
    arms = [
        ({"arm": "readout", "study": "delay", "delay_s": 0.1}, ("online", "held_out")),
        ({"arm": "canary:readout"}, ("online", "held_out")),
        ({"arm": "channels:readout"}, ("online", "held_out")),
        ({"arm": "readout", "seed": 1}, ("held_out",)),
    ]
    _, _, tables = scored(tmp_path, monkeypatch, arms)
    assert len(tables["rows"]) == 2 * 7 * (2 * 3 + 1)
    assert {tuple(each[name] for name in RUN) for each in tables["blocks"]} == {("s1", "t1", "readout", "tanh", 1)}
    assert {each["seed"] for each in tables["curves"]} == {1}
    assert tables["trajectories"] == [], "of the first seed only"


def test_without_trials_all_bins_are_primary(tmp_path, monkeypatch):
    sessions, stored, tables = scored(tmp_path, monkeypatch, [({"arm": "readout"}, ("held_out",))], with_trials=False)
    assert {each["metric"] for each in tables["rows"]} == {"r2", "r2_uniform", "r2:x", "r2:y", "pearson", "rmse"}
    y = sessions["target"].y[N_STREAM:, :2]
    assert value(tables, variable="velocity", metric="r2") == pytest.approx(
        r2(y, stored["held_out"][:, :2], np.isfinite(y))
    )


def test_failures_are_rows_of_their_own_and_only_of_what_failed(tmp_path, monkeypatch):
    def spoil(stored):
        stored["held_out"][5, 3] = np.inf

    arms = [
        ({"arm": "readout"}, ("online", "held_out")),
        ({"arm": "immediate_sgd", "failed": "no memory"}, ("held_out",)),
    ]
    _, _, tables = scored(tmp_path, monkeypatch, arms, spoil=spoil)
    status = {
        (each["arm"], each["phase"], each["variable"]): (each["status"], each["reason"]) for each in tables["rows"]
    }
    assert status == {
        ("readout", "online", "velocity"): ("ok", ""),
        ("readout", "online", "position"): ("ok", ""),
        ("readout", "held_out", "velocity"): ("ok", ""),
        ("readout", "held_out", "position"): ("failed", "predictions diverged"),
        ("immediate_sgd", "held_out", "velocity"): ("failed", "no memory"),
        ("immediate_sgd", "held_out", "position"): ("failed", "no memory"),
    }
    assert [each["variable"] for each in tables["blocks"]] == ["velocity"]


def test_a_part_without_movement_in_a_trial_is_unscorable_not_failed(tmp_path, monkeypatch):
    still = arrays(0)
    still = still._replace(in_trial=np.arange(len(still.y)) < N_STREAM)
    monkeypatch.setattr("test_score.arrays", lambda seed, with_trials: still)
    _, _, tables = scored(tmp_path, monkeypatch, [({"arm": "readout"}, ("online", "held_out"))])
    rows = [each for each in tables["rows"] if each["phase"] == "held_out"]
    assert {(each["status"], each["reason"], each["value"]) for each in rows} == {
        ("unscorable", "no movement with labels inside a trial", None)
    }
    assert {each["status"] for each in tables["rows"] if each["phase"] == "online"} == {"ok"}


def test_an_output_that_hardly_moves_held_out_is_in_no_score(tmp_path, monkeypatch):
    dying = arrays(0)
    dying.y[N_STREAM:, 1] *= 1e-3
    monkeypatch.setattr("test_score.arrays", lambda seed, with_trials: dying)
    _, stored, tables = scored(tmp_path, monkeypatch, [({"arm": "readout"}, PHASES)])
    for phase in PHASES:
        own = {"variable": "velocity", "phase": phase}
        (dead,) = [each for each in tables["rows"] if (own | {"metric": "r2:y"}).items() <= each.items()]
        assert (dead["status"], dead["value"]) == ("unscorable", None)
        assert "is below a tenth of the stream's" in dead["reason"]
        assert value(tables, **own, metric="r2") == value(tables, **own, metric="r2:x")
        assert value(tables, **own, metric="r2_uniform") == value(tables, **own, metric="r2:x")
        position = [each for each in tables["rows"] if each["variable"] == "position" and each["phase"] == phase]
        assert {each["status"] for each in position} == {"ok"}
    held = np.isfinite(dying.y[N_STREAM:]) & dying.in_trial[N_STREAM:, None]
    expected = r2(dying.y[N_STREAM:, :1], stored["held_out"][:, :1], held[:, :1])
    assert value(tables, variable="velocity", phase="held_out", metric="r2") == pytest.approx(expected)
    # with the dead axis in it the score would be another
    assert r2(np.nan_to_num(dying.y[N_STREAM:, :2]), stored["held_out"][:, :2], held[:, :2]) != pytest.approx(expected)
    assert {each["axis"] for each in tables["trajectories"] if each["variable"] == "velocity"} == {"x"}
    (blocks,) = [each for each in tables["blocks"] if each["variable"] == "velocity"]
    assert 1 - sum(blocks["error"]) / sum(blocks["spread"]) == pytest.approx(expected)


@pytest.mark.parametrize(("n_bins", "n_blocks"), [(100, 10), (104, 10), (105, 11), (4, 1), (14, 1), (15, 2)])
def test_a_short_last_block_joins_the_one_before(n_bins, n_blocks):
    rng = np.random.default_rng(0)
    y, guess = rng.normal(size=(2, n_bins, 2))
    error, spread = block_sums(y, guess, None, 10)
    assert len(error) == len(spread) == n_blocks
    assert 1 - error.sum() / spread.sum() == pytest.approx(r2(y, guess))
