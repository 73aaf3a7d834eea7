"""From the results of a figure's jobs to tables: a row per run, and one per method with its recoveries."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd

from bci_adapt.ground.statistics import Interval, t_interval
from bci_adapt.ground.statistics import ratio_of_means as _ratio
from bci_adapt.learning.cells.base import cells
from bci_adapt.learning.optimizers import GROUPS as GROUPS

if TYPE_CHECKING:
    from bci_adapt.ground.jobs import Job

Frame = Any  # a pandas.DataFrame, whose own annotations are unions that no type checker can resolve
WINDOWS = ("last", "held_out")
GROUP = ["task", "cell", "n_hidden", "method", "rates"]
RECOVERIES = {"pre": "before", "oracle": "oracle", "rtrl": "rtrl"}  # name: the arm in the denominator
SMALLEST_DENOMINATOR = 0.05  # in variances of the target, as in decoding


class Found(Protocol):
    """What of a planned job is read (`bci_adapt.paper.planning.Entry`)."""

    @property
    def kind(self) -> str: ...
    @property
    def task(self) -> str: ...
    @property
    def cell(self) -> str: ...
    @property
    def n_hidden(self) -> int: ...
    @property
    def method(self) -> str: ...
    @property
    def job(self) -> Job: ...
    @property
    def columns(self) -> dict[str, Any]: ...


def read(entries: Sequence[Found], seeds: Sequence[int]) -> dict[str, Frame]:
    """Tables of the results that are there: ``runs``, ``networks``, ``rates`` tried, ``gradients``, ``memory``,
    ``streams``.

    ``runs`` has a row per method, kind of rate (``tuned`` or ``shared``) and seed: the errors of the adapted network
    (``last``, ``area``, ``held_out``) beside those of the same network before, frozen and of the oracle
    (``last_before`` …), all in variances of the target. ``usable`` is whether the frozen network lost enough.
    """
    tables: dict[str, list[dict[str, Any]]] = {
        name: [] for name in ("runs", "networks", "rates", "gradients", "memory", "streams")
    }
    beside: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for entry in entries:
        if not entry.job.is_done:
            continue
        key = entry.task, entry.cell, entry.n_hidden
        where = {"task": entry.task, "cell": entry.cell, "n_hidden": entry.n_hidden}
        if entry.kind == "networks":
            beside[key] = _networks(entry, seeds)
            tables["networks"] += [where | row for row in beside[key]]
            continue
        stored = json.loads(entry.job.path.read_text(encoding="utf-8"))
        named = where | {"method": entry.method} | entry.columns
        if entry.kind == "gradients":
            tables["gradients"] += [where | {"seed": s} | row for s, row in zip(seeds, stored["seeds"], strict=True)]
        elif entry.kind == "memory":
            tables["memory"].append(named | stored)
        elif entry.kind in ("stream", "rival"):
            tables["streams"] += _learned(entry, named, stored, seeds)
        else:
            tables["runs"] += _runs(named, stored, beside.get(key, []))
            tables["rates"] += [
                named | {"rate": point["rate"], "held_out": _mean(point["held_out"]), "failed": sum(point["failed"])}
                for point in stored["surface"]
            ]
    return {name: _numbers(pd.DataFrame(rows)) for name, rows in tables.items()}


def _networks(entry: Found, seeds: Sequence[int]) -> list[dict[str, Any]]:
    with np.load(entry.job.path, allow_pickle=False) as stored:
        names = [name for name in stored.files if stored[name].shape == stored["lambda_star"].shape]
        columns = {name: stored[name][: len(seeds)].tolist() for name in names}
    rows = [{"seed": seed} | {name: column[s] for name, column in columns.items()} for s, seed in enumerate(seeds)]
    for row in rows:
        row["usable"] = bool(row["frozen_last"] >= entry.columns["min_ratio"] * row["before_last"])
    return rows


def _runs(named: dict[str, Any], stored: dict[str, Any], networks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    decay = named.get("decay") if stored["decay"] is None else stored["decay"]
    for rates in ("tuned", "shared"):
        found = stored[rates]
        if found is None:
            continue
        for s, network in enumerate(networks):
            row = named | {"decay": decay, "rates": rates, "seed": network["seed"], "rate": found["rate"]}
            row |= {"interior": stored["interior"] if rates == "tuned" else None}
            row |= {name: found[name][s] for name in ("last", "area", "held_out", "failed", "weight_change")}
            row |= {"us_per_bin": found["us_per_bin"], "usable": network["usable"]}
            for arm in ("before", "frozen", "oracle"):
                row |= {f"{window}_{arm}": network.get(f"{arm}_{window}") for window in WINDOWS}
            row |= {f"held_out_{arm}": network[f"{arm}_held_out"] for arm in ("reservoir", "linear")}
            rows.append(row)
    return rows


def _learned(entry: Found, named: dict[str, Any], stored: dict[str, Any], seeds: Sequence[int]) -> list[dict[str, Any]]:
    rows = []
    for rates in ("tuned", "shared"):
        found = stored[rates]
        if found is None:
            continue
        for s, seed in enumerate(seeds):
            row = named | {"kind": entry.kind, "rates": rates, "seed": seed, "rate": found["rate"]}
            row |= {"interior": stored["interior"] if rates == "tuned" else None}
            row |= {name: found[name][s] for name in ("loss", "late", "accuracy", "failed")}
            rows.append(row | {"us_per_bin": found["us_per_bin"]})
    return rows


def contests(streams: Frame) -> Frame:
    """A row per stream, cell, size, contender and kind of rate, best first: mean loss over seeds that did not fail, its
    standard deviation, loss of the second half, accuracy, and ``n_failed`` beside ``n_seeds``.
    """
    rows = []
    for key, group in streams.groupby([*GROUP, "kind"], sort=False) if not streams.empty else ():
        fine, first = group[~group["failed"].astype(bool)], group.iloc[0]
        row = dict(zip((*GROUP, "kind"), key, strict=True)) | {name: first[name] for name in ("rate", "interior")}
        row |= {"n_seeds": len(group), "n_failed": len(group) - len(fine)}
        row |= {name: fine[name].mean() for name in ("loss", "late", "accuracy")}
        rows.append(row | {"loss_sd": fine["loss"].std(ddof=1), "us_per_bin": first["us_per_bin"]})
    table = pd.DataFrame(rows)
    if table.empty:
        return table
    order = {name: number for number, name in enumerate(dict.fromkeys(table["task"]))}
    return table.sort_values(["task", "loss"], key=lambda c: c.map(order) if c.name == "task" else c, ignore_index=True)


def _mean(values: Sequence[float | None]) -> float:
    return float(np.mean([np.inf if value is None else value for value in values]))


def _numbers(table: Frame) -> Frame:
    """Columns in which JSON's null stands for a number that is none."""
    for name in table:
        if table[name].dtype == object and not table[name].map(lambda value: isinstance(value, str)).any():
            table[name] = pd.to_numeric(table[name])
    return table


def methods(runs: Frame) -> Frame:
    """A row per task, cell, size, method and kind of rate: errors first, then each recovery with its interval in
    percent, or why there is none.

    Means are over seeds that are finite; ``n_failed`` counts the others and ``n_refused`` those with nothing to
    recover, which enter no recovery. ``cv`` is the standard deviation over the mean of ``last``.
    """
    if runs.empty:
        return pd.DataFrame()
    rows = []
    for key, group in runs.groupby(GROUP, sort=False):
        fine = group[~group["failed"].astype(bool)]
        row = dict(zip(GROUP, key, strict=True))
        first = group.iloc[0]
        row |= {
            name: first[name] for name in ("rule", "optimizer", "precision", "decay", "rate", "interior", "us_per_bin")
        }
        row |= {"n_seeds": len(group), "n_failed": len(group) - len(fine), "n_refused": int((~group["usable"]).sum())}
        for name in ("last_before", "last_frozen", "last", "area", "held_out", "held_out_reservoir", "held_out_linear"):
            row[name] = float(fine[name].mean()) if len(fine) else float("nan")
        row["last_sd"] = float(fine["last"].std(ddof=1)) if len(fine) > 1 else float("nan")
        row["cv"] = row["last_sd"] / row["last"] if len(fine) > 1 else float("nan")
        exact = _exact(runs, row)
        for window in WINDOWS:
            for name, arm in RECOVERIES.items():
                row |= {f"{k}_{name}_{window}": v for k, v in recovery(group, arm, window, exact).items()}
        rows.append(row)
    return pd.DataFrame(rows)


def _exact(runs: Frame, row: dict[str, Any]) -> Frame | None:
    """Errors of RTRL with the same optimiser at the same kind of rate, by seed; None without."""
    same = (runs["rule"] == "rtrl") & (runs["method"].map(lambda name: "(" not in name.removeprefix("rtrl")))
    for name in ("task", "cell", "n_hidden", "rates", "optimizer", "precision"):
        same &= runs[name] == row[name]
    return runs[same].set_index("seed") if same.any() else None


def usable(group: Frame) -> Frame:
    """The rows of a method that can enter a recovery: something to recover, and no failure."""
    return group[group["usable"].astype(bool) & ~group["failed"].astype(bool)]


def recovery(group: Frame, arm: str, window: str, exact: Frame | None = None) -> dict[str, Any]:
    """100 (E_frozen − E_adapted)/(E_frozen − E_arm) of the rows of one method: ratio of means over seeds, unclipped,
    with a paired bootstrap interval and the spread of the per-seed ratios; ``refused`` says why there is none.
    """
    nothing = {"recovery": np.nan, "low": np.nan, "high": np.nan, "sd": np.nan}
    if not group["drift"].all():
        return nothing | {"refused": "nothing changed"}
    good = usable(group)
    if arm == "rtrl":
        if exact is None:
            return nothing | {"refused": "no RTRL beside it"}
        good = good[good["seed"].isin(exact.index[~exact["failed"].astype(bool)])]
        reached = exact.loc[good["seed"], window].to_numpy(float)
    else:
        reached = good[f"{window}_{arm}"].to_numpy(float)
    frozen = good[f"{window}_frozen"].to_numpy(float)
    if len(good) and not np.isfinite(reached).all():
        return nothing | {"refused": f"no {arm} in this run"}
    gained, lost = frozen - good[window].to_numpy(float), frozen - reached
    found = _ratio(gained, lost, smallest=SMALLEST_DENOMINATOR)
    if found.refused:
        counted = f"{len(good)} of {len(group)} seeds usable"
        return nothing | {"refused": counted if len(good) < 2 else found.refused}
    spread = float(np.std(gained / lost, ddof=1))
    return {
        "recovery": 100 * found.ratio, "low": 100 * found.low, "high": 100 * found.high, "sd": 100 * spread,
        "refused": "",
    }  # fmt: skip


def recoveries_by_seed(group: Frame, window: str = "last") -> Frame:
    """recovery_pre in percent of every usable seed, index seed."""
    good = usable(group).set_index("seed")
    lost = good[f"{window}_frozen"] - good[f"{window}_before"]
    return 100 * (good[f"{window}_frozen"] - good[window]) / lost


def best_gaps(runs: Frame, first: str = "adam", second: str = "sgd") -> Frame:
    """Per task, cell, size and kind of rate: recovery_pre of the best method with one optimiser less that of the best
    with the other, in points, paired by seed; the best has the largest mean over usable seeds. In float64.
    """
    rows = []
    runs = runs[runs["precision"] == "float64"]
    for key, group in runs.groupby(["task", "cell", "n_hidden", "rates"], sort=False):
        best = {}
        for kind in (first, second):
            of_kind = group[group["optimizer"] == kind]
            scored = {name: recoveries_by_seed(g) for name, g in of_kind.groupby("method", sort=False)}
            scored = {name: values for name, values in scored.items() if len(values)}
            if scored:
                best[kind] = scored[max(scored, key=lambda name: scored[name].mean())]
        if len(best) == 2:
            apart = (best[first] - best[second]).dropna()
            found = t_interval(apart.to_numpy(float)) if len(apart) else Interval(np.nan, np.nan, np.nan, 0)
            row = dict(zip(("task", "cell", "n_hidden", "rates"), key, strict=True))
            rows.append(
                row
                | {
                    first: best[first].mean(),
                    second: best[second].mean(),
                    "gap": found.mean,
                    "low": found.low,
                    "high": found.high,
                    "n": found.n,
                }
            )
    return pd.DataFrame(rows)


def architectures(tables: Mapping[str, Frame]) -> Frame:
    """Gaps of `best_gaps` with both flags of each cell, what the rule predicts, and the gradient's size."""
    gaps = tables["gaps"]
    if gaps.empty:
        return gaps
    known = cells()
    table = gaps.assign(
        output_bypass=[known[name].output_bypass for name in gaps["cell"]],
        nonlinear_state=[known[name].nonlinear_state for name in gaps["cell"]],
    )
    table["rule_predicts_gap"] = table["nonlinear_state"] & ~table["output_bypass"]
    gradients = tables["gradients"]
    if not gradients.empty:
        squares = gradients[[f"grad_norm_{g}" for g in GROUPS if f"grad_norm_{g}" in gradients]].fillna(0.0) ** 2
        size = gradients.assign(gradient_norm=np.sqrt(squares.sum(axis=1))).groupby(["task", "cell", "n_hidden"])
        table = table.merge(size["gradient_norm"].mean().reset_index(), on=["task", "cell", "n_hidden"], how="left")
    return table
