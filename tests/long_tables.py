"""Long tables with known contents, for the tests of everything that reads results."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from bci_adapt.experiment.arm import Arm, described
from bci_adapt.experiment.arms import arms_of
from bci_adapt.experiment.asked import ArmSection
from bci_adapt.experiment.comparisons import compared
from bci_adapt.experiment.config import parse_config
from bci_adapt.results.arms import Arms
from bci_adapt.results.table import CANARY, Results, bare_arm, control_of, long_table

NETWORK_ARMS = {
    "frozen": {"tanh": -0.25, "gru": -0.08},
    "normaliser": {"tanh": 0.22, "gru": 0.30},
    "output_bias": {"tanh": 0.24, "gru": 0.32},
    "readout": {"tanh": 0.31, "gru": 0.38},
    "recurrent": {"tanh": 0.37, "gru": 0.44},
    "immediate_rmsprop_fixed": {"tanh": 0.30, "gru": 0.37},
    "immediate_rmsprop": {"tanh": 0.39, "gru": 0.47},
    "immediate_rmsprop_ema": {"tanh": 0.41, "gru": 0.49},
    "immediate_sgd": {"tanh": 0.40, "gru": 0.45},
    "window4_rmsprop": {"tanh": 0.50, "gru": 0.58},
    "rtrl_rmsprop": {"tanh": 0.43},
    "intention": {"tanh": 0.28},
    "fine_tuned": {"tanh": 0.52, "gru": 0.58},
    "network_oracle": {"tanh": 0.54, "gru": 0.57},
    "joint_oracle": {"tanh": 0.57, "gru": 0.61},
}
OFFSETS = {"r2": 0.0, "r2_uniform": -0.02, "r2:x": 0.03, "r2:y": -0.03, "pearson": 0.2, "rmse": 2.0}
LINEAR_ARMS = {
    "aligned": 0.12,
    "kalman_adaptive": 0.23,
    "kalman_refit": 0.24,
    "rls": 0.39,
    "ridge_oracle": 0.40,
    "joint_ridge": 0.42,
    "persistence": -0.4,
}
UNLABELLED = ("frozen", "normaliser", "aligned")
RETRAINED = ("fine_tuned", "kalman_refit", "ridge_oracle", "joint_ridge", "network_oracle", "joint_oracle")
NOT_LEARNING = (*UNLABELLED, *RETRAINED, "persistence")
ADAPTIVE = tuple(arm for arm in NETWORK_ARMS | LINEAR_ARMS if arm not in NOT_LEARNING)


IMMEDIATE = {"rule": "immediate", "optimizer": "rmsprop"}
RECOMMENDED = {"rule": "window", "steps": 4, "optimizer": "rmsprop", "average": 0.997, "take_turns": True}
ASKED = [  # what a config says of the arms that do not stand in every run
    IMMEDIATE | {"normaliser": "fixed"},
    IMMEDIATE,
    IMMEDIATE | {"average": 0.999},
    {"rule": "immediate", "optimizer": "sgd"},
    {"rule": "window", "steps": 4, "optimizer": "rmsprop"},
    {"rule": "rtrl", "optimizer": "rmsprop"},
    {"rule": "window", "steps": 2, "optimizer": "adam"},
    RECOMMENDED,
]


def about(rows: Any) -> dict[str, Any]:
    """The tables that say what the arms of `rows` are and what is compared: those of a config that asks for them."""
    keys = list(dict.fromkeys((bare_arm(arm), cell) for arm, cell in zip(rows["arm"], rows["cell"], strict=True)))
    cells = list(dict.fromkeys(cell for _, cell in keys if cell)) or ["tanh"]
    base = {"name": "x", "source": {"kind": "folder"}, "pairs": [{"source": "a", "targets": ["b"]}], "arms": ASKED}
    config = parse_config(base | {"network": {"cells": ["tanh"]}}, "a test")
    listed = {}
    for arm in arms_of(config, {"velocity": 2}):
        listed |= {(arm.name, cell): replace(arm, cell=cell) for cell in (cells if arm.cell else [""])}
    own = [Arm(arm, cell, "own", "source", {}, drawn=True) for arm, cell in keys if (arm, cell) not in listed]
    asked = [section for section in config.arms if isinstance(section, ArmSection)]
    held = {arm for arm, _ in keys}
    return {
        "arms": long_table(described([*listed.values(), *own]), "arms"),
        "comparisons": long_table(compared(cells, [each for each in asked if each.name in held]), "comparisons"),
    }


def arms(rows: Any) -> Arms:
    """What a reader is told of the arms of `rows`."""
    return Arms(about(rows)["arms"])


def stored(rows: Any, **tables: Any) -> Results:
    """A run's results of `rows` alone, with other `tables`, by their kinds, where they are given."""
    empty = {kind: long_table([], kind) for kind in ("curves", "trajectories", "blocks")}
    return Results(**{"rows": rows, **empty, **about(rows), "attrs": {}, **tables})


def row(**changes: Any) -> dict[str, Any]:
    """One complete row; `changes` replace its columns."""
    base = {
        "source": "s1",
        "target": "t1",
        "source_date": "2020-01-01",
        "target_date": "2020-01-11",
        "day_gap": 10.0,
        "variable": "velocity",
        "arm": "frozen",
        "decoder": "online",
        "cell": "tanh",
        "n_hidden": 64,
        "rule": "",
        "optimizer": "",
        "normaliser": "",
        "average": "",
        "delay_s": 0.5,
        "label_fraction": 1.0,
        "budget_s": 600.0,
        "budget_trials": float("inf"),
        "n_labels": 12000,
        "rate": 3e-4,
        "seed": 0,
        "phase": "held_out",
        "metric": "r2",
        "value": 0.5,
        "n_bins": 9000,
        "canary": False,
        "control": "",
        "study": "",
        "status": "ok",
        "reason": "",
    }
    row = base | changes
    row["canary"] = changes.get("canary", row["arm"].startswith(CANARY))
    row["control"] = changes.get("control", control_of(row["arm"]))
    usual = "none" if row["arm"] in UNLABELLED else "intention" if row["arm"].endswith("intention") else "true"
    row["supervision"] = changes.get("supervision", usual)
    return row


def study(
    n_targets: int = 6,
    n_seeds: int = 2,
    spread: float = 0.04,
    seed: int = 0,
    metrics: tuple[str, ...] = tuple(OFFSETS),
    **arms: dict[str, float] | float,
) -> Any:
    """Long table of a whole study whose arm means are `NETWORK_ARMS` and `LINEAR_ARMS`, replaced by `arms`.

    Two sources per target; days differ by `spread` in a way all arms share, seeds by a quarter of it.
    """
    rng = np.random.default_rng(seed)
    levels: dict[tuple[str, str], float] = {}
    for arm, level in (NETWORK_ARMS | LINEAR_ARMS | arms).items():
        for cell, value in (level if isinstance(level, dict) else {"": level}).items():
            levels[arm, cell] = value
    for arm, cell in list(levels):
        if arm in ADAPTIVE:
            levels.setdefault((f"canary:{arm}", cell), 0.02)
    records = []
    for target in range(n_targets):
        day = rng.normal(0, spread)
        for source in range(2):
            for (arm, cell), level in levels.items():
                one_seed = not cell or arm.startswith(("canary:", "rtrl"))
                for replica in range(1 if one_seed else n_seeds):
                    for phase, shift in (("online", 0.01), ("held_out", 0.0)):
                        if arm == "fine_tuned" and phase == "online":
                            continue
                        noise = rng.normal(0, spread / 4)
                        records += [
                            row(
                                source=f"day-0{source}",
                                target=f"day-{10 + target}",
                                arm=arm,
                                cell=cell,
                                n_hidden=64 * bool(cell),
                                seed=replica,
                                phase=phase,
                                day_gap=9.0 * (target + 1) - source,
                                metric=metric,
                                target_date=f"2020-03-{10 + target}",
                                source_date=f"2020-01-0{1 + source}",
                                value=level + day + noise + shift + OFFSETS[metric],
                            )
                            for metric in metrics
                        ]
    return long_table(records)


def curves(rows: Any, stream_s: float = 600.0, held_out_s: float = 480.0, seed: int = 0) -> Any:
    """Windowed R² of every run in `rows`: adaptive arms rise to their score, the others stay at it."""
    rng = np.random.default_rng(seed)
    keys = ["source", "target", "variable", "arm", "cell", "seed"]
    scores = rows[(rows["metric"] == "r2") & (rows["phase"] == "held_out") & ~rows["canary"]]
    records = []
    for key in scores.itertuples(index=False):
        for start in np.arange(0, stream_s + held_out_s, 60.0):
            learned = 1 - np.exp(-(start + 60) / 200) if key.arm in ADAPTIVE else 1.0
            records.append(
                {name: getattr(key, name) for name in keys}
                | {"phase": "online" if start < stream_s else "held_out", "time_s": start + 30.0}
                | {"r2": key.value * learned + 0.1 * (learned - 1) + rng.normal(0, 0.05)}
            )
    return long_table(records, "curves")


def blocks(rows: Any, n_blocks: int = 24, seed: int = 0) -> Any:
    """Errors and spreads in blocks whose R² are the held-out scores of the standing arms of `rows`.

    The spread of a block is the target's, whoever decodes it; each run errs more in some blocks than in others.
    """
    rng = np.random.default_rng(seed)
    keep = (rows["metric"] == "r2") & (rows["phase"] == "held_out") & (rows["status"] == "ok")
    records, spreads = [], {}
    for run in rows[keep & (rows["control"] == "") & (rows["study"] == "")].itertuples(index=False):
        spread = spreads.setdefault((run.target, run.variable), rng.gamma(8, 100, n_blocks))
        error = spread * rng.gamma(20, 1 / 20, n_blocks)
        error *= (1 - run.value) * spread.sum() / error.sum()
        names = ("source", "target", "variable", "arm", "cell", "seed")
        records.append({name: getattr(run, name) for name in names} | {"error": error, "spread": spread})
    return long_table(records, "blocks")


def swept(n_targets: int = 5, seed: int = 0) -> Any:
    """Rows of the side questions: two arms of one cell under delays, fractions and budgets, and the rest once."""
    rng = np.random.default_rng(seed)
    columns = {"delay": "delay_s", "fraction": "label_fraction", "budget": "budget_s", "trials": "budget_trials"}
    values = {
        "delay": {0.0: 0.42, 0.1: 0.41, 2.0: 0.36, np.inf: 0.33},
        "fraction": {0.3: 0.37, 0.1: 0.33, 0.03: 0.28},
        "budget": {0.0: 0.22, 5.0: 0.25, 30.0: 0.31, 120.0: 0.36, 300.0: 0.38},
    }
    records = []
    for target in range(n_targets):
        day = rng.normal(0, 0.03)
        own = {"target": f"day-{10 + target}", "source": "day-00", "target_date": f"2020-03-{10 + target}"}
        for arm, lift in (("immediate_rmsprop", 0.0), ("readout", -0.1)):
            for study_, levels in values.items():
                records += [
                    row(arm=arm, study=study_, value=level + lift + day + rng.normal(0, 0.01), phase=phase, **own)
                    | {columns[study_]: value}
                    for value, level in levels.items()
                    for phase in ("online", "held_out")
                ]
            records += [
                row(arm=arm, study=study_, rate=rate, value=level + lift + day, **own)
                for study_, rate, level in (("no_drift", 3e-4, 0.6), ("shared_rate", 1e-3, 0.3), ("cold", 3e-4, 0.38))
            ]
            records.append(row(arm=arm, phase="back", value=0.5 + lift + day, **own))
        records.append(row(arm="frozen", phase="back", value=0.7 + day, **own))
        records.append(row(arm="frozen", study="no_drift", value=0.62 + day, **own))
    return long_table(records)


def trajectories(rows: Any, seed: int = 0, duration_s: float = 20.0, bin_s: float = 0.05) -> Any:
    """A centre-out like excerpt of one pair: smooth velocities, decoded with an error that follows the score."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(0, duration_s, bin_s)
    runs = rows[(rows["metric"] == "r2") & (rows["phase"] == "held_out") & ~rows["canary"]]
    runs = runs[(runs["source"] == runs["source"].iloc[0]) & (runs["target"] == runs["target"].iloc[-1])]
    kernel = np.hanning(21) / np.hanning(21).sum()
    true = {
        axis: 30 * np.convolve(np.sign(np.sin(time_s * rate)) * (np.sin(time_s * rate * 3.1) > 0), kernel, "same")
        for axis, rate in (("x", 0.9), ("y", 1.3))
    }
    records = []
    for run in runs[runs["seed"] == 0].itertuples(index=False):
        for axis, series in true.items():
            error = 12 * np.convolve(rng.normal(0, 1, len(time_s)), kernel, "same") * (1 - run.value) * 3
            decoded = series * max(run.value, 0) ** 0.5 + error
            records += [
                {"source": run.source, "target": run.target, "variable": run.variable, "arm": run.arm}
                | {"cell": run.cell, "seed": 0}
                | {"time_s": float(t), "axis": axis, "true": float(a), "decoded": float(b)}
                for t, a, b in zip(time_s, series, decoded, strict=True)
            ]
    return long_table(records, "trajectories")


def manifest(**changes: Any) -> dict[str, Any]:
    """What a run says about itself."""
    sessions = [
        {"session_id": f"day-{i}", "date": f"2020-03-{i}", "minutes": 20.0, "n_channels": 96, "warnings": []}
        | {"valid_fraction": 0.98}
        for i in range(10, 16)
    ]
    base = {
        "name": "study",
        "config": {"name": "study", "variable": "velocity", "delay_s": 0.5, "seeds": [0, 1], "cells": ["tanh", "gru"]},
        "created": "2020-05-01T12:00:00+00:00",
        "versions": {"bci_adapt": "0.1.0", "python": "3.11.9", "numpy": "2.4.6"},
        "jobs": {"executed": 42, "reused": 3, "failed": []},
        "unscorable": [],
        "rates_tuned": False,
        "sessions": sessions,
        "command": "bci-adapt run configs/study.toml --data recordings",
    }
    return base | changes
