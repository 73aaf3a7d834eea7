"""Recovery and comparisons: what they pair, what they refuse, and that they turn with the data."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from long_tables import arms, blocks, row, study

from bci_adapt.results.recovery import compare, recovery_joint, recovery_oracle
from bci_adapt.results.table import long_table


def table(scores: dict[tuple[str, str], list[float]], **changes) -> object:
    """Long table of held-out R² with one value per target day."""
    return long_table(
        [
            row(arm=arm, cell=cell, target=f"t{day}", value=value, n_hidden=64 * bool(cell), **changes)
            for (arm, cell), values in scores.items()
            for day, value in enumerate(values)
        ]
    )


def test_recovery_is_a_ratio_of_means_over_days():
    rows = table(
        {
            ("frozen", "tanh"): [0.0, 0.2],
            ("immediate_rmsprop", "tanh"): [0.3, 0.8],
            ("readout", "tanh"): [-0.1, 0.1],
            ("network_oracle", "tanh"): [0.6, 0.8],
            ("frozen", ""): [0.1, 0.1],
            ("rls", ""): [0.5, 0.5],
            ("ridge_oracle", ""): [0.4, 0.4],
        }
    )
    recovered, refused = recovery_oracle(rows, arms(rows))
    means = {(entry["arm"], entry["cell"]): entry["mean"] for entry in recovered}
    assert refused == []
    assert means == pytest.approx(
        {("immediate_rmsprop", "tanh"): 75.0, ("readout", "tanh"): -100 / 6, ("rls", ""): 400 / 3}
    ), "neither clipped at 0 nor at 100, and not the mean of daily ratios (50 and 100)"
    assert all(entry["low"] <= entry["mean"] <= entry["high"] and entry["n_targets"] == 2 for entry in recovered)


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ({"frozen": [0.1, 0.1], "immediate_sgd": [0.3, 0.3]}, "no retrained tanh network in this run"),
        ({"immediate_sgd": [0.3, 0.3], "network_oracle": [0.5, 0.5]}, "no frozen tanh network in this run"),
        ({"frozen": [0.1], "immediate_sgd": [0.3], "network_oracle": [0.5]}, "1 target day, at least 2"),
        ({"frozen": [0.1, 0.6], "immediate_sgd": [0.3, 0.3], "network_oracle": [0.5, 0.5]}, "reaches zero"),
        ({"frozen": [0.46, 0.47], "immediate_sgd": [0.3, 0.3], "network_oracle": [0.5, 0.5]}, "below 0.05"),
        ({"frozen": [-1, -1], "immediate_sgd": [0.3, 0.3], "network_oracle": [0.5, 0.05]}, "reaching below 0.10"),
    ],
)
def test_recovery_is_refused_with_the_reason(scores, reason):
    rows = table({(arm, "tanh"): values for arm, values in scores.items()})
    recovered, refused = recovery_oracle(rows, arms(rows))
    assert recovered == []
    assert [(entry["arm"], entry["cell"], entry["variable"]) for entry in refused] == [
        ("immediate_sgd", "tanh", "velocity")
    ]
    assert reason in refused[0]["reason"]


def test_recovery_stays_within_an_architecture():
    rows = study(metrics=("r2",), frozen={"tanh": -0.25, "gru": -0.08, "": 0.06})
    recovered, refused = recovery_oracle(rows, arms(rows))
    means = {(entry["arm"], entry["cell"]): entry["mean"] for entry in recovered}
    assert means["immediate_rmsprop", "tanh"] == pytest.approx(100 * 0.64 / 0.79, abs=3)
    assert means["immediate_rmsprop", "gru"] == pytest.approx(100 * 0.55 / 0.65, abs=3)
    assert means["rls", ""] == pytest.approx(100 * 0.33 / 0.34, abs=5)
    assert not {"frozen", "network_oracle", "ridge_oracle", "persistence"} & {arm for arm, _ in means}
    assert not any(arm.startswith("canary") for arm, _ in means)
    rows = study(metrics=("r2",))
    _, refused = recovery_oracle(rows, arms(rows))
    reasons = {entry["arm"]: entry["reason"] for entry in refused}
    assert reasons == dict.fromkeys(("aligned", "rls"), "no frozen linear decoder in this run") | {
        "kalman_adaptive": "no frozen Kalman filter in this run"
    }


def test_each_kind_of_decoder_has_its_own_frozen_one_and_its_own_ceilings():
    rows = table(
        {
            ("frozen", "gru"): [0.0, 0.1],
            ("immediate_rmsprop", "gru"): [0.3, 0.4],
            ("fine_tuned", "gru"): [0.6, 0.7],
            ("network_oracle", "gru"): [0.6, 0.7],
            ("joint_oracle", "gru"): [0.75, 0.85],
            ("frozen", ""): [0.1, 0.1],
            ("rls", ""): [0.3, 0.3],
            ("ridge_oracle", ""): [0.5, 0.5],
            ("joint_ridge", ""): [0.6, 0.6],
            ("kalman_frozen", ""): [-0.1, -0.1],
            ("kalman_adaptive", ""): [0.1, 0.1],
            ("kalman_refit", ""): [0.3, 0.3],
            ("kalman_pv_frozen", ""): [0.0, 0.0],
            ("kalman_pv_normaliser", ""): [0.1, 0.1],
            ("kalman_pv_refit", ""): [0.4, 0.4],
            ("persistence", ""): [0.9, 0.9],
        }
    )
    for recovery, expected in (
        (
            recovery_oracle,
            {"immediate_rmsprop": 50, "fine_tuned": 100, "rls": 50, "kalman_adaptive": 50, "kalman_pv_normaliser": 25},
        ),
        (recovery_joint, {"immediate_rmsprop": 40, "fine_tuned": 80, "rls": 40}),
    ):
        recovered, refused = recovery(rows, arms(rows))
        assert {entry["arm"]: entry["mean"] for entry in recovered} == pytest.approx(expected)
        assert refused == []


def test_a_comparison_with_blocks_keeps_its_mean_and_draws_the_same_blocks_for_both_arms():
    rows = study(metrics=("r2",))
    names = ("readout", "gru"), ("immediate_rmsprop", "gru")
    stored = blocks(rows)
    plain, drawn = compare(rows, *names), compare(rows, *names, blocks=stored)
    assert plain is not None
    assert drawn is not None
    assert drawn.difference.mean == pytest.approx(plain.difference.mean)
    assert drawn.difference != plain.difference
    # an arm that errs in the same blocks, a constant factor more: only common blocks make the difference steady
    both = stored[(stored["arm"] == "readout") & (stored["cell"] == "gru")]
    twin = both.assign(arm="immediate_rmsprop", error=[1.01 * error for error in both["error"]])
    scores = rows[(rows["arm"] == "readout") & (rows["cell"] == "gru")]
    twin_scores = scores.assign(arm="immediate_rmsprop", value=1 - 1.01 * (1 - scores["value"]))
    close = compare(pd.concat([scores, twin_scores]), *names, blocks=pd.concat([both, twin]))
    assert close is not None
    assert close.difference.mean == pytest.approx(0.01 * (1 - close.first))
    assert close.difference.high - close.difference.low < 0.002
    fallen = compare(rows, *names, blocks=stored[stored["seed"] == 0])
    assert fallen is not None
    assert fallen.difference == plain.difference, "a run without blocks: no blocks are drawn"
    online = compare(rows, *names, phase="online", blocks=stored)
    assert online is not None
    assert online == compare(rows, *names, phase="online"), "blocks are of held-out scores only"


def test_rows_of_side_questions_do_not_count():
    rows = study(metrics=("r2",))
    side = rows.assign(study="delay", delay_s=0.0, value=0.99)
    everything = pd.concat([rows, side], ignore_index=True)
    names = ("immediate_rmsprop", "tanh"), ("frozen", "tanh")
    assert compare(everything, *names) == compare(rows, *names)
    assert recovery_oracle(everything, arms(rows)) == recovery_oracle(rows, arms(rows))


def test_pairs_on_seeds_of_one_network_and_on_days_for_an_oracle_of_its_own():
    rows = long_table(
        [
            row(arm=arm, target=f"t{day}", source=source, seed=seed, value=value + day / 10)
            for day in (0, 1)
            for arm, source, seed, value in [
                ("frozen", "s1", 0, 0.0),
                ("frozen", "s1", 1, 9.0),  # no adapted run from this seed: must not enter
                ("rtrl_rmsprop", "s1", 0, 0.2),
                ("network_oracle", "", 7, 0.4),
            ]
        ]
    )
    recovered, refused = recovery_oracle(rows, arms(rows))
    assert refused == []
    assert recovered[0]["mean"] == pytest.approx(50.0)
    both = compare(rows, ("rtrl_rmsprop", "tanh"), ("frozen", "tanh"))
    assert both is not None
    assert both.difference.mean == pytest.approx(0.2)
    assert compare(rows, ("rtrl_rmsprop", "tanh"), ("readout", "tanh")) is None


def test_comparison_turns_with_the_data_and_admits_ties():
    names = ("window4_rmsprop", "tanh"), ("immediate_rmsprop", "tanh")
    ahead = compare(study(metrics=("r2",)), *names)
    behind = compare(study(metrics=("r2",), window4_rmsprop={"tanh": 0.39}, immediate_rmsprop={"tanh": 0.50}), *names)
    level = compare(study(metrics=("r2",), window4_rmsprop={"tanh": 0.40}, immediate_rmsprop={"tanh": 0.40}), *names)
    assert ahead is not None
    assert behind is not None
    assert level is not None
    assert (ahead.sign, behind.sign, level.sign) == (1, -1, 0)
    assert ahead.difference.mean == pytest.approx(ahead.first - ahead.second)
    assert ahead.p == 2 / 2**6
    assert level.p > 0.05
    mirrored = compare(study(metrics=("r2",)), *names[::-1])
    assert mirrored is not None
    assert mirrored.difference.mean == pytest.approx(-ahead.difference.mean)


@pytest.mark.parametrize(
    ("second_day", "sign"), [(0.45, 1), (0.02, 0), (-0.45, 0)], ids=["alike", "same sign, unlike", "opposed"]
)
def test_two_days_are_clear_only_where_they_agree_closely(second_day, sign):
    rows = table({("readout", "tanh"): [0.5, second_day], ("frozen", "tanh"): [0.0, 0.0]})
    both = compare(rows, ("readout", "tanh"), ("frozen", "tanh"))
    assert both is not None
    assert both.sign == sign
    mirrored = compare(rows, ("frozen", "tanh"), ("readout", "tanh"))
    assert mirrored is not None
    assert mirrored.sign == -sign


def test_failed_runs_and_missing_scores_stay_out():
    rows = study(metrics=("r2",))
    spoilt = rows.copy()
    bad = (rows["arm"] == "immediate_rmsprop") & (rows["target"] == "day-10")
    spoilt.loc[bad, ["value", "status", "reason"]] = [np.nan, "failed", "diverged"]
    names = ("immediate_rmsprop", "tanh"), ("frozen", "tanh")
    full, fewer = compare(rows, *names), compare(spoilt, *names)
    assert full is not None
    assert fewer is not None
    assert (full.difference.n, fewer.difference.n) == (6, 5)
