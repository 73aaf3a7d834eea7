"""Sweeps, ceilings, forgetting, declared comparisons and what goes with drift: tables with known answers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from long_tables import about, arms, blocks, row, study, swept

from bci_adapt.ground.statistics import holm
from bci_adapt.results import studies
from bci_adapt.results.table import STUDIES, long_table


def declared(rows):
    """What is compared in a run of these rows."""
    return studies.declared(about(rows)["comparisons"], "declared")


@pytest.fixture(scope="module")
def rows():
    return long_table(pd.concat([study(5, metrics=("r2",)), swept(5)], ignore_index=True))


def test_a_sweep_lists_values_in_order_with_the_standing_score_at_its_own(rows):
    points = studies.sweep(rows, "delay", phase="held_out")
    found = [(point["arm"], point["value"]) for point in points]
    delays = [0.0, 0.1, 0.5, 2.0, np.inf]
    assert found == [(arm, delay) for arm in ("readout", "immediate_rmsprop") for delay in delays] or found == [
        (arm, delay) for arm in ("immediate_rmsprop", "readout") for delay in delays
    ]
    means = {point["value"]: point["mean"] for point in points if point["arm"] == "immediate_rmsprop"}
    assert means[0.0] > means[2.0] > means[np.inf]
    own = rows[(rows["arm"] == "immediate_rmsprop") & (rows["cell"] == "tanh") & (rows["study"] == "")]
    own = own[(own["phase"] == "held_out") & (own["source"] == "day-00") & (own["seed"] == 0)]
    assert means[0.5] == pytest.approx(own["value"].mean()), "on the sweep's pairs and seeds alone"
    assert all(point["low"] < point["mean"] < point["high"] and point["n_targets"] == 5 for point in points)
    assert {point["phase"] for point in studies.sweep(rows, "budget")} == {"online", "held_out"}
    assert [point["value"] for point in studies.sweep(rows, "fraction", phase="online")][:4] == [0.03, 0.1, 0.3, 1.0]
    assert studies.sweep(study(3, metrics=("r2",)), "delay") == []
    assert set(studies.SWEPT) < set(STUDIES)


def budget_rows(levels: dict[float, float], **ceilings: float):
    levels_of = [("readout", value, {"study": "budget", "budget_s": budget}) for budget, value in levels.items()]
    levels_of += [(arm, value, {}) for arm, value in ceilings.items()]
    return long_table(
        [
            row(arm=arm, target=f"t{day}", value=value + day / 100, **changes)
            for arm, value, changes in levels_of
            for day in (0, 1)
        ]
    )


@pytest.mark.parametrize(
    ("levels", "ceilings", "budget", "ceiling"),
    [
        ({0: 0.1, 30: 0.44, 60: 0.46, 120: 0.5}, {"joint_oracle": 0.5, "network_oracle": 0.3}, 60.0, "joint_oracle"),
        ({0: 0.1, 30: 0.44, 60: 0.46}, {"network_oracle": 0.3}, 30.0, "network_oracle"),
        ({0: 0.1, 30: 0.2}, {"joint_oracle": 0.5}, None, "joint_oracle"),
        ({0: 0.1, 30: 0.2}, {"joint_oracle": -0.5}, None, "joint_oracle"),
        ({0: 0.1, 30: 0.2}, {"joint_oracle": 0.5, "readout": 0.49}, 600.0, "joint_oracle"),
    ],
)
def test_time_to_the_ceiling_is_one_of_the_budgets_or_not_reached(levels, ceilings, budget, ceiling):
    table = budget_rows(levels, **ceilings)
    (entry,) = studies.time_to_ceiling(table, arms(table))
    assert (entry["budget_s"], entry["reached"], entry["ceiling"]) == (budget, budget is not None, ceiling)
    assert entry["threshold"] == pytest.approx(0.9 * entry["ceiling_r2"])
    assert entry["n_targets"] == 2


def test_all_labels_of_a_short_session_count_with_all_of_the_others():
    full = {"t0": 600.0, "t1": 518.5}
    records = [row(arm="readout", target=day, value=0.4, budget_s=all_s) for day, all_s in full.items()]
    for day, all_s in full.items():
        for budget, value in ((0.0, 0.1), (30.0, 0.2), (all_s, 0.4)):
            records.append(row(arm="readout", target=day, value=value, study="budget", budget_s=budget))
    points = studies.sweep(long_table(records), "budget", phase="held_out")
    assert [(p["value"], p["mean"], p["n_targets"]) for p in points] == [
        (0.0, pytest.approx(0.1), 2), (30.0, pytest.approx(0.2), 2), (600.0, pytest.approx(0.4), 2),
    ]  # fmt: skip


def test_without_a_ceiling_there_is_no_time_to_it():
    table = budget_rows({0: 0.1, 30: 0.2})
    assert studies.time_to_ceiling(table, arms(table)) == []


def test_forgetting_no_drift_and_shared_rates(rows):
    lost = {entry["arm"]: entry for entry in studies.forgetting(rows, arms(rows))}
    assert list(lost) == ["immediate_rmsprop", "readout"] or set(lost) == {"immediate_rmsprop", "readout"}
    assert lost["readout"]["mean"] == pytest.approx(-0.3)
    assert lost["readout"]["adapted"] - lost["readout"]["frozen"] == pytest.approx(-0.3)
    assert [day["target"] for day in lost["readout"]["days"]] == [f"day-{10 + i}" for i in range(5)]
    still = {entry["arm"]: entry for entry in studies.no_drift(rows)}
    assert still["frozen"]["mean"] > 0.5 > 0 > still["frozen"]["drifted"]
    assert still["frozen"]["n_targets"] == 5
    for entry in studies.beside(rows, "shared_rate"):
        assert (entry["rate"], entry["studied_rate"]) == (3e-4, 1e-3)
        assert entry["mean"] == pytest.approx(entry["standing"] - entry["studied"])
        assert entry["mean"] == pytest.approx(0.09, abs=0.05)
    cold = studies.beside(rows, "cold")
    assert {entry["arm"] for entry in cold} == {"immediate_rmsprop", "readout"}
    assert studies.beside(rows, "continual") == []


def test_comparisons_are_declared_adjusted_and_turn_with_the_data(rows):
    stored = blocks(rows)
    primary = ("immediate_rmsprop", "gru"), ("rls", "")
    pairs = declared(rows)
    entries = studies.comparisons(rows, pairs, primary, blocks=stored)
    assert [entry["primary"] for entry in entries] == [True, *[False] * (len(entries) - 1)]
    first, *others = entries
    assert (first["first"], first["second"], first["p_holm"]) == ("immediate_rmsprop", "rls", first["p_sign_flip"])
    assert [entry["p_holm"] for entry in others] == pytest.approx(holm([entry["p_sign_flip"] for entry in others]))
    keys = [(each["first"], each["first_cell"], each["second"], each["second_cell"]) for each in entries]
    assert len(set(keys)) == len(keys)
    by_name = dict(zip(keys, entries, strict=True))
    gain = by_name["immediate_rmsprop", "tanh", "normaliser", "tanh"]
    assert gain["sign"] == 1
    assert gain["g_low"] > 0
    assert gain["equivalence"] == "different"
    level = by_name["immediate_sgd", "tanh", "immediate_rmsprop", "tanh"]
    assert abs(level["mean"]) < 0.03
    assert level["equivalence"] == "equivalent", "a hundredth apart with little spread"
    assert 2 <= level["n_needed"] <= 5
    assert level["power"] > 0.8
    none = studies.comparisons(rows, pairs)
    assert not any(entry["primary"] for entry in none)
    assert {entry["p_holm"] >= entry["p_sign_flip"] for entry in none} == {True}
    mirrored = studies.comparisons(rows, pairs, primary[::-1])[0]
    assert mirrored["mean"] == pytest.approx(-first["mean"])
    assert (mirrored["g_low"], mirrored["g_high"]) == pytest.approx((-first["g_high"], -first["g_low"]))


def test_one_day_gives_comparisons_without_verdicts():
    day = study(1, metrics=("r2",))
    entries = studies.comparisons(day, declared(day))
    assert {entry["equivalence"] for entry in entries} == {"inconclusive"}
    assert np.isnan([entry["power"] for entry in entries]).all()


def test_what_goes_with_drift_is_found_and_what_does_not_is_not():
    rng = np.random.default_rng(0)
    losses, records, drift = np.linspace(0.05, 0.6, 10), [], []
    for day, loss in enumerate(losses):
        for source in ("a", "b"):
            own = {"source": source, "target": f"t{day}"}
            scores = {"network_oracle": 0.7, "frozen": 0.7 - loss, "normaliser": 0.7 - loss + 0.1 * (day % 2)}
            records += [row(arm=arm, value=value, **own) for arm, value in scores.items()]
            measures = {"follows": loss**2, "opposes": -loss, "unrelated": rng.normal(), "missing": None}
            drift.append({**own, "measures": {name: {"value": value} for name, value in measures.items()}})
    known = arms(long_table(records))
    found = {
        (each["measure"], each["outcome"], each["arm"]): each
        for each in studies.associations(long_table(records), known, drift)
    }
    assert {key[0] for key in found} == {"follows", "opposes", "unrelated"}
    assert found["follows", "loss", "frozen"]["rho"] == pytest.approx(1.0)
    assert found["opposes", "loss", "frozen"]["rho"] == pytest.approx(-1.0)
    unrelated = found["unrelated", "loss", "frozen"]
    assert unrelated["low"] < 0 < unrelated["high"]
    assert unrelated["n_targets"] == 10, "days, not pairs"
    assert abs(found["follows", "recovered", "normaliser"]["rho"]) < 0.5
    assert studies.associations(long_table(records), known, []) == []
