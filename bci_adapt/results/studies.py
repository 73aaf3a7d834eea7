"""What the rows beside a run's own question say: sweeps of labels, forgetting, controls of drift and rates; and the
declared comparisons of standing arms, with the statistics that go with them.

Everything here reads the long table (`bci_adapt.results.table`). Means are over target days, as in its summary; entries
are plain dicts, in the order in which the table has its arms. Controls (canaries) are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bci_adapt.ground.statistics import Interval, equivalence, hedges_g, holm, power, rank_correlation, wilcoxon_test
from bci_adapt.results.arms import Arms, Key
from bci_adapt.results.recovery import (
    arm_scores,
    by_day,
    compare,
    compare_scores,
    interval,
    paired,
    standing,
)
from bci_adapt.results.table import Frame

SWEPT = {"delay": "delay_s", "fraction": "label_fraction", "budget": "budget_s", "trials": "budget_trials"}
CEILING_FRACTION = 0.9
MARGIN = 0.03  # of R², for "equivalent"


def sweep(
    rows: Frame, study: str, variable: str = "velocity", phase: str | None = None, metric: str = "r2", seed: int = 0
) -> list[dict[str, Any]]:
    """Scores along the label delays, fractions or budgets of `study` (a key of `SWEPT`), by value.

    One ``{arm, cell, variable, phase, value, mean, low, high, n_targets}`` for each; a delay of inf is the end of the
    trial, of budgets of trials all of them. An arm's standing score on the same pairs and seeds is the point at its
    own setting.
    """
    column, points = SWEPT[study], []
    rows = _scored(rows, variable, metric, phase)
    for arm, cell in _arms(rows[rows["study"] == study]):
        for (_, name), own in _whole_sweep(rows, study, arm, cell).groupby(["arm", "phase"], sort=False):
            for value in sorted(set(own[column])):
                entry = {"arm": arm, "cell": cell, "variable": variable, "phase": name, "value": float(value)}
                points.append(entry | _over_days(own[own[column] == value], seed))
    return points


class Life(NamedTuple):
    """A decoder on the days of a run: `points` (series, order, date, mean) with no labels, some and all of them and its
    bounds; `labels`, its scores and those of the best linear decoder against seconds of labels; `ceiling`, R² or None.
    """

    arm: str
    cell: str
    points: Frame
    labels: Frame
    ceiling: float | None


def life(rows: Frame, arms: Arms, variable: str = "velocity", shown_s: Sequence[float] = (30.0, 120.0)) -> Life | None:
    """Held-out R² by target day of the first network that was swept over budgets, those of `shown_s` that there are.

    None where none was, or where all targets are of one day.
    """
    swept = sweep(rows, "budget", variable, "held_out")
    arm, cell = next(((point["arm"], point["cell"]) for point in swept if point["cell"]), ("", ""))
    scored = _scored(rows, variable, "r2", "held_out")
    budgets = sorted({point["value"] for point in swept if (point["arm"], point["cell"]) == (arm, cell)})
    shown = [budget for budget in budgets if budget in shown_s] or budgets[1:-1][:2]
    usual, of_budget = scored["study"] == "", scored["study"] == "budget"
    kind = arms.kind(arm, cell)
    lines = [("frozen", kind.frozen, usual), ("no labels", kind.unlabelled, usual)]
    lines += [(f"{value:g} s of labels", arm, of_budget & (scored["budget_s"] == value)) for value in shown]
    lines += [
        ("all labels", arm, usual),
        ("retrained on the day", kind.ceiling, usual),
        ("retrained, earlier days too", kind.joint_ceiling, usual),
    ]
    kept = [(order, name, scored[keep & (scored["arm"] == other)]) for order, (name, other, keep) in enumerate(lines)]
    canary = _scored(rows.assign(control=""), variable, "r2", "held_out")
    canary = canary[(rows["control"] == "time").loc[canary.index] & (canary["study"] == "")]
    kept.append((len(lines), "shuffled neurons", canary[canary["arm"].str.endswith(f":{arm}")]))
    records = [
        {"series": name, "order": order, "date": date or target, "mean": each["value"].mean()}
        for order, name, own in kept
        for (target, date), each in own[own["cell"] == cell].groupby(["target", "target_date"], sort=False)
    ]
    points = pd.DataFrame(records, columns=["series", "order", "date", "mean"])
    if not arm or len(set(points["date"])) < 2:
        return None
    labels = pd.DataFrame([p for p in swept if not p["cell"] or (p["arm"], p["cell"]) == (arm, cell)])
    ceilings = {entry["cell"]: entry["ceiling_r2"] for entry in time_to_ceiling(rows, arms, variable)}
    return Life(arm, cell, points, labels, ceilings.get(cell))


def time_to_ceiling(
    rows: Frame, arms: Arms, variable: str = "velocity", fraction: float = CEILING_FRACTION, seed: int = 0
) -> list[dict[str, Any]]:
    """The label budget of each arm of the budget study from which on its held-out R² reaches the ceiling's part.

    ``{arm, cell, variable, ceiling, ceiling_r2, threshold, budget_s, reached, largest_budget_s, n_targets}``. The
    ceiling is the joint oracle, else the oracle of the target alone, on the same pairs. `budget_s` is one of the
    budgets that were run, never between two of them, and None where none of them reaches the threshold.
    """
    found = []
    rows = _scored(rows, variable, "r2", "held_out")
    for arm, cell in _arms(rows[rows["study"] == "budget"]):
        kind = arms.kind(arm, cell)
        own = _whole_sweep(rows, "budget", arm, cell)
        for ceiling in (kind.joint_ceiling, kind.ceiling):
            top = arm_scores(rows, ceiling, cell, variable)
            top = top[_pairs(top).isin(_pairs(own))]
            if len(top):
                break
        else:
            continue
        own = own[_pairs(own).isin(_pairs(top))]
        best = _over_days(top, seed)
        threshold = fraction * best["mean"]
        points = {value: _over_days(own[own["budget_s"] == value], seed) for value in sorted(set(own["budget_s"]))}
        # the first budget from which every larger one reaches it: one lucky point is no arrival
        reached: list[float] = []
        for value, point in reversed(points.items()):
            if not point["mean"] >= threshold > 0:
                break
            reached.insert(0, value)
        found.append(
            {"arm": arm, "cell": cell, "variable": variable, "ceiling": ceiling, "ceiling_r2": best["mean"]}
            | {"threshold": threshold, "budget_s": float(reached[0]) if reached else None, "reached": bool(reached)}
            | {"largest_budget_s": float(max(points)), "n_targets": best["n_targets"]}
        )
    return found


def forgetting(rows: Frame, arms: Arms, variable: str = "velocity", seed: int = 0) -> list[dict[str, Any]]:
    """What adaptation cost on the source day: R² there with the adapted weights, less that of the frozen decoder.

    ``{arm, cell, variable, adapted, frozen, mean, low, high, n_targets, days}`` with `mean` the difference and `days` a
    list of ``{target, value}``: below zero, the decoder has forgotten.
    """
    found = []
    rows = _scored(standing(rows), variable, "r2", "back")
    for arm, cell in _arms(rows):
        frozen = arms.kind(arm, cell).frozen
        both = compare(rows, (arm, cell), (frozen, cell), variable, "back", seed=seed) if arm != frozen else None
        if both is None:
            continue
        days = by_day(paired(rows, (arm, cell), (frozen, cell), variable, "back"))
        changes = days["value"] - days["other"]
        daily = [{"target": str(day), "value": float(change)} for day, change in changes.items()]
        found.append(
            {"arm": arm, "cell": cell, "variable": variable, "adapted": both.first, "frozen": both.second}
            | _entry(both.difference)
            | {"days": daily}
        )
    return found


def no_drift(rows: Frame, variable: str = "velocity", seed: int = 0) -> list[dict[str, Any]]:
    """Scores on the source day's own later half, as a target without drift.

    ``{arm, cell, variable, phase, mean, low, high, n_targets, drifted}``; `drifted` is the arm's mean on later days.
    """
    found = []
    rows = _scored(rows, variable, "r2")
    own = rows[rows["study"] == "no_drift"]
    for arm, cell in _arms(own):
        for phase, scores in _of(own, arm, cell).groupby("phase", sort=False):
            later = arm_scores(rows, arm, cell, variable, str(phase))
            entry = {"arm": arm, "cell": cell, "variable": variable, "phase": phase} | _over_days(scores, seed)
            found.append(entry | {"drifted": _over_days(later, seed)["mean"]})
    return found


def beside(
    rows: Frame, study: str, variable: str = "velocity", phase: str = "held_out", seed: int = 0
) -> list[dict[str, Any]]:
    """Each arm's standing score beside its score in a study, on the pairs and seeds of both.

    ``{arm, cell, variable, phase, standing, studied, rate, studied_rate, mean, low, high, n_targets}`` with `mean` the
    difference, standing less studied; a rate is None where an arm has none or several.
    """
    found = []
    rows = _scored(rows, variable, "r2", phase)
    for arm, cell in _arms(rows[rows["study"] == study]):
        names = arm, cell, variable, phase, "r2"
        both = compare_scores(arm_scores(rows, *names), arm_scores(rows, *names, study), same_network=True, seed=seed)
        if both is None:
            continue
        rates = [set(_of(rows[rows["study"] == each], arm, cell)["rate"]) for each in ("", study)]
        single = [next(iter(rate)) if len(rate) == 1 else None for rate in rates]
        found.append(
            {"arm": arm, "cell": cell, "variable": variable, "phase": phase}
            | {"standing": both.first, "studied": both.second, "rate": single[0], "studied_rate": single[1]}
            | _entry(both.difference)
        )
    return found


def declared(comparisons: Frame, family: str) -> list[tuple[Key, Key]]:
    """The pairs of one family of a run's table of comparisons."""
    own = comparisons[comparisons["family"] == family]
    lines = own[["first", "first_cell", "second", "second_cell"]].itertuples(index=False, name=None)
    return [((first, cell), (second, other)) for first, cell, second, other in lines]


def comparisons(
    rows: Frame,
    pairs: Iterable[tuple[Key, Key]],
    primary: tuple[Key, Key] | None = None,
    variable: str = "velocity",
    blocks: Frame | None = None,
    margin: float = MARGIN,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Comparisons of held-out R² with their statistics, the primary one first, then those of `pairs` that were run.

    `primary` is ((arm, cell), (arm, cell)), or None where none was declared. It is tested by itself, all others are one
    family: `p_holm` is the sign-flip p, Holm-adjusted over them.

    ``{first, first_cell, second, second_cell, variable, primary, first_mean, second_mean, mean, low, high, n_targets,
    sign, p_sign_flip, p_wilcoxon, p_holm, g, g_low, g_high, sd, margin, equivalence, equivalence_p, equivalence_low,
    equivalence_high, n_needed, power}``: `mean` is first less second, `g` Hedges' of the daily differences, `sd` their
    standard deviation, `equivalence` the verdict of two one-sided tests at ± `margin`, `n_needed` the days at which
    these would have 80 % power, and `power` that of the days there are to see a difference as large as the margin.
    """
    rows = _scored(standing(rows), variable, "r2", "held_out")
    held, entries = set(_arms(rows)), []
    family = [pair for pair in pairs if held.issuperset(pair)]
    for first, second in dict.fromkeys([primary, *family] if primary else family):
        both = compare(rows, first, second, variable, seed=seed, blocks=blocks)
        if both is None:
            continue
        days = by_day(paired(rows, first, second, variable))
        daily = (days["value"] - days["other"]).to_numpy()
        size, same = hedges_g(daily), equivalence(daily, margin)
        sd = float(daily.std(ddof=1)) if len(daily) > 1 else float("nan")
        entries.append(
            {"first": first[0], "first_cell": first[1], "second": second[0], "second_cell": second[1]}
            | {"variable": variable, "primary": (first, second) == primary}
            | {"first_mean": both.first, "second_mean": both.second}
            | _entry(both.difference)
            | {"sign": both.sign, "p_sign_flip": both.p, "p_wilcoxon": wilcoxon_test(daily), "p_holm": both.p}
            | {"g": size.mean, "g_low": size.low, "g_high": size.high, "sd": sd, "margin": margin}
            | {"equivalence": same.verdict, "equivalence_p": same.p, "n_needed": same.n_needed}
            | {"equivalence_low": same.interval.low, "equivalence_high": same.interval.high}
            | {"power": power(sd, len(daily), effect=margin) if len(daily) > 1 else float("nan")}
        )
    others = [entry for entry in entries if not entry["primary"]]
    for entry, adjusted in zip(others, holm([entry["p_sign_flip"] for entry in others]), strict=True):
        entry["p_holm"] = float(adjusted)
    return entries


def associations(
    rows: Frame,
    arms: Arms,
    drift: Iterable[Mapping[str, Any]],
    variable: str = "velocity",
    seed: int = 0,
) -> list[dict[str, Any]]:
    """How measures of drift go with the frozen decoder's loss, and with what adaptation regains, over target days.

    `drift` lists ``{source, target, measures: {name: {value, …}}}``. The loss is the retrained decoder's held-out R²
    less the frozen one's, a recovery an adapted arm's less the frozen one's: of the decoder without labels, of the one
    that others are set beside, and of rivals of the same kind that are not retrained. Returns ``{measure, outcome,
    arm, cell, variable, rho, low, high, n_targets}`` with Spearman's rho; `outcome` is loss or recovered.
    """
    rows = _scored(standing(rows), variable, "r2", "held_out")
    measured = pd.DataFrame.from_records(
        [
            {"source": pair["source"], "target": pair["target"], "measure": name, "x": measure["value"]}
            for pair in drift
            for name, measure in pair["measures"].items()
            if measure["value"] is not None and np.isfinite(measure["value"])
        ],
        columns=["source", "target", "measure", "x"],
    )
    found = []
    for cell in dict.fromkeys(rows["cell"]):
        kind = arms.of_cell(cell)
        rivals = [name for name in arms.with_role("rival") if arms.kind(name, cell) == kind]
        adapted = {kind.unlabelled, kind.reference, *rivals} - {*arms.retrained}
        for outcome, arm in [
            ("loss", kind.ceiling),
            *(("recovered", name) for name in sorted(adapted, key=arms.place)),
        ]:
            both = paired(rows, (arm, cell), (kind.frozen, cell), variable)
            gained = both.assign(y=both["value"] - both["other"])
            gained = gained.groupby(["source", "target"], sort=False, as_index=False)["y"].mean()
            for name, table in measured.merge(gained, on=["source", "target"]).groupby("measure", sort=False):
                rho = rank_correlation(table["x"], table["y"], table["target"].tolist(), seed=seed)
                found.append(
                    {
                        "measure": name,
                        "outcome": outcome,
                        "arm": kind.frozen if outcome == "loss" else arm,
                        "cell": cell,
                    }
                    | {"variable": variable, "rho": rho.mean, "low": rho.low, "high": rho.high, "n_targets": rho.n}
                )
    return found


def _scored(rows: Frame, variable: str, metric: str, phase: str | None = None) -> Frame:
    """Rows of real arms whose score is there."""
    keep = (rows["variable"] == variable) & (rows["metric"] == metric) & (rows["control"] == "")
    keep &= (rows["status"] == "ok") & np.isfinite(rows["value"])
    return rows[keep if phase is None else keep & (rows["phase"] == phase)]


def _arms(rows: Frame) -> list[Key]:
    return list(rows[["arm", "cell"]].drop_duplicates().itertuples(index=False, name=None))


def _of(rows: Frame, arm: str, cell: str) -> Frame:
    return rows[(rows["arm"] == arm) & (rows["cell"] == cell)]


def _pairs(rows: Frame) -> Any:
    return rows["source"].astype(str) + "\n" + rows["target"].astype(str)


def _whole_sweep(rows: Frame, study: str, arm: str, cell: str) -> Frame:
    """The rows of one arm in a sweep, with its standing ones on the same pairs and seeds at their own setting."""
    column = SWEPT[study]
    rows = _of(rows, arm, cell)
    own, usual = rows[rows["study"] == study], rows[rows["study"] == ""]
    runs = [_pairs(each) + "\n" + each["seed"].astype(str) + "\n" + each["phase"].astype(str) for each in (own, usual)]
    usual = usual[runs[1].isin(runs[0])]
    if study == "budget" and len(usual):
        # A stream is at most half of a session: all of a short one's labels count with all of the others'.
        longest = usual["budget_s"].max()
        whole = usual.groupby("target", observed=True)["budget_s"].max()
        everything = own["budget_s"] >= own["target"].map(whole).astype(float)
        own = own.assign(budget_s=own["budget_s"].mask(everything, longest))
        usual = usual.assign(budget_s=longest)
    return pd.concat([own, usual[~usual[column].isin(own[column])]])


def _entry(each: Interval) -> dict[str, Any]:
    return {"mean": each.mean, "low": each.low, "high": each.high, "n_targets": each.n}


def _over_days(scores: Frame, seed: int) -> dict[str, Any]:
    return _entry(interval(scores, seed))
