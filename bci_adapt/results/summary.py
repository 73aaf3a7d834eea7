"""A run in one table: the summary of standing arms, and what leaks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bci_adapt.errors import InputError
from bci_adapt.results.arms import Arms
from bci_adapt.results.recovery import (
    FEW_DAYS,
    arm_scores,
    compare,
    compare_scores,
    interval,
    of_arm,
    standing,
)
from bci_adapt.results.table import (
    CANARY,
    MORE_PHASES,
    PHASES,
    Frame,
    cell_label,
    cell_order,
    control_of,
    number,
)

if TYPE_CHECKING:
    pass

SUSPECT_GAP = 0.03
UNMOVED = 0.01
LEAK_FRACTION, LEAK_FLOOR = 0.5, 0.1


def summarise(rows: Frame, arms: Arms, seed: int = 0, blocks: Frame | None = None) -> list[dict[str, Any]]:
    """One entry per standing arm, cell, variable, phase and metric: ``{…, mean, low, high, n_targets, note}``.

    Only values whose status is ok count. Seeds are averaged within a pair of sessions, pairs within a target day, days
    give the mean; the 95 % interval resamples days, and seeds within them (NaN below two days); with `blocks` that of a
    held-out R² resamples blocks of time too. Controls are arms of their own. `note` says when weights moved by less
    than 1 %, how many runs failed or gave no value, and when a rival is suspect. Raises `InputError` when one arm mixes
    settings that must not be pooled.
    """
    rows = standing(rows)
    summary = []
    names = ["arm", "cell", "variable", "phase", "metric"]
    for key, group in rows.groupby(names, sort=False):
        arm, cell = str(key[0]), str(key[1])
        for column in ("n_hidden", "delay_s", "label_fraction"):
            if group[column].nunique() > 1:
                raise InputError(
                    f"{column}: arm {arm!r} ({cell or 'linear'}) has several values {sorted(set(group[column]))}; "
                    "select one setting before summarising"
                )
        scorable = group[group["status"] != "unscorable"]
        ok = scorable[(scorable["status"] == "ok") & np.isfinite(scorable["value"])]
        entry = dict(zip(names, map(str, key), strict=True))
        own = of_arm(blocks, arm, cell, entry["variable"]) if key[3:] == ("held_out", "r2") else None
        mean, low, high, n = interval(ok[["target", "source", "seed", "value"]], seed, own)
        summary.append(
            {**entry, "mean": mean, "low": low, "high": high, "n_targets": n, "note": _note(arm, arms, scorable)}
        )
    _mark_suspects(summary, arms)
    return sorted(summary, key=lambda entry: _order(entry, arms))


def _mark_suspects(summary: list[dict[str, Any]], arms: Arms) -> None:
    """Note, on rivals that learn and ceilings, that score more than `SUSPECT_GAP` below the linear decoder retrained on
    the same labels, that they may be badly set: a victory over them is worth nothing.
    """
    ceiling = arms.of_cell("").ceiling
    held_out = [entry for entry in summary if entry["phase"] == "held_out" and entry["metric"] == "r2"]
    best = {entry["variable"]: entry["mean"] for entry in held_out if entry["arm"] == ceiling}
    suspects = arms.taught.intersection(arms.with_role("rival", "ceiling"))
    for entry in held_out:
        below = best.get(entry["variable"], math.nan) - entry["mean"]
        if entry["arm"] in suspects and below > SUSPECT_GAP:
            words = f"rival suspect: {number(below)} below {arms.label(ceiling)}"
            entry["note"] = "; ".join(filter(None, [entry["note"], words]))


def adaptive(rows: Frame, arms: Arms) -> list[str]:
    """Arms that learn from labels as they arrive, in order of presentation: none retrained, no control, no canary."""
    rows = standing(rows)
    learning = set(rows.loc[rows["supervision"].isin(["true", "intention"]) & (rows["control"] == ""), "arm"])
    return sorted(learning - {*arms.retrained, *arms.controls}, key=arms.place)


def leak(rows: Frame, arms: Arms, leak_fraction: float = LEAK_FRACTION) -> dict[str, bool | None]:
    """Whether each adaptive arm's online score can be had without neurons; None where no canary can tell.

    A canary is the same job with the counts shuffled in time. An arm leaks when, for any cell or variable, its canary's
    mean online R² on the pairs both share is above 0.1 and at least `leak_fraction` of the arm's own. It does not when
    every cell and variable has such a pair and none leaks.
    """
    found: dict[str, bool | None] = {}
    online = _online(rows)
    for arm in adaptive(rows, arms):
        verdicts = []
        for cell, variable in _cells_and_variables(rows, arm):
            # on the pair: with several shifts, each is a canary of the arm, whatever seeds that has
            canaries, own = (arm_scores(online, name, cell, variable, "online") for name in (CANARY + arm, arm))
            both = compare_scores(canaries, own, same_network=False)
            leaks = both and both.first > LEAK_FLOOR and both.first >= leak_fraction * both.second
            verdicts.append(None if both is None else bool(leaks))
        found[arm] = _worst(verdicts)
    return found


def not_above_persistence(rows: Frame, arms: Arms) -> dict[str, bool | None]:
    """Whether each adaptive arm's online score, at its label delay, is no better than repeating the last known label.

    True where, for any cell or variable, its mean online R² is not above that of persistence on the pairs both share:
    such an online score is no sign of decoding. None without persistence to set beside it.
    """
    found: dict[str, bool | None] = {}
    online = _online(rows)
    for arm in adaptive(rows, arms):
        verdicts = []
        for cell, variable in _cells_and_variables(rows, arm):
            each = [compare(online, (arm, cell), (control, ""), variable, "online") for control in arms.controls]
            beaten = [both.first <= both.second for both in each if both is not None]
            verdicts.append(any(beaten) if beaten else None)
        found[arm] = _worst(verdicts)
    return found


def _online(rows: Frame) -> Frame:
    return standing(rows[(rows["phase"] == "online") & (rows["metric"] == "r2")])


def _cells_and_variables(rows: Frame, arm: str) -> list[tuple[str, str]]:
    rows = standing(rows)
    return list(rows.loc[rows["arm"] == arm, ["cell", "variable"]].drop_duplicates().itertuples(index=False, name=None))


def _worst(verdicts: list[bool | None]) -> bool | None:
    return True if True in verdicts else None if None in verdicts else False


def canary_troubles(rows: Frame, arms: Arms) -> dict[str, str]:
    """What is wrong with the canaries of adaptive arms, by arm: not run, failed (how many, why), nothing to compare."""
    online, troubles = _online(rows), {}
    for arm, verdict in leak(rows, arms).items():
        runs = online[online["arm"] == CANARY + arm]
        failed = runs[runs["status"] == "failed"]
        cells = {cell for cell, _ in _cells_and_variables(rows, arm)}
        missing = sorted(cells - set(runs["cell"]), key=cell_order)
        parts = []
        if missing:
            parts.append(f"no canary was run ({', '.join(map(cell_label, missing))})")
        if len(failed):
            reasons = ", ".join(dict.fromkeys(failed["reason"]))
            parts.append(f"{len(failed)} of {len(runs)} canary runs failed ({reasons})")
        if verdict is None and not parts:
            parts.append("the arm itself has no online score on its canary's pairs")
        if parts:
            troubles[arm] = "; ".join(parts)
    return troubles


def arm_lines(
    summary: Sequence[Mapping[str, Any]], arms: Arms, variable: str = "velocity", metric: str = "r2"
) -> list[dict[str, Any]]:
    """One line per arm and cell, controls left out: ``{arm, cell, online, held_out, n_targets, note}``.

    `online` and `held_out` are entries of `summary`, or None where the arm has no such score.
    """
    lines: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in summary:
        if entry["variable"] != variable or entry["metric"] != metric or control_of(entry["arm"]):
            continue
        blank: dict[str, Any] = {
            "arm": entry["arm"],
            "cell": entry["cell"],
            **dict.fromkeys(PHASES),
            "n_targets": 0,
            "note": "",
        }
        if entry["phase"] not in PHASES:
            continue
        line = lines.setdefault((entry["cell"], entry["arm"]), blank)
        line[entry["phase"]] = entry
        line["n_targets"] = max(line["n_targets"], entry["n_targets"])
        seen = "online: training data" if entry["arm"] in arms.retrained and entry["phase"] == "online" else ""
        notes = [part for part in (line["note"], entry.get("note", ""), seen) if part]
        line["note"] = "; ".join(dict.fromkeys(notes))
    return sorted(lines.values(), key=lambda line: (cell_order(line["cell"]), arms.place(line["arm"])))


def caption(rates_tuned: bool, summary: Sequence[Mapping[str, Any]] | None = None) -> str:
    """What stands under every table of scores; `summary` adds a warning where its intervals rest on few days."""
    tuned = "rates tuned on held-out scores of other pairs" if rates_tuned else "rates not tuned"
    days = max((entry["n_targets"] for entry in summary or []), default=FEW_DAYS)
    few = f"; intervals over {days} days are too narrow" if 1 < days < FEW_DAYS else ""
    return f"{tuned}; n is target days; pairs of one day are averaged first{few}"


def score_text(entry: Mapping[str, Any] | None) -> str:
    """``0.39 [0.31, 0.46]`` with true minus signs; the mean alone without an interval; a dash without a score."""
    if entry is None or not _finite(entry["mean"]):
        return "–"
    if not (_finite(entry["low"]) and _finite(entry["high"])):
        return number(entry["mean"])
    return f"{number(entry['mean'])} [{number(entry['low'])}, {number(entry['high'])}]"


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _order(entry: Mapping[str, Any], arms: Arms) -> tuple:
    phases, metrics = [*PHASES, *MORE_PHASES], ("r2", "r2_all_bins", "r2_uniform", "pearson", "rmse")
    metric = metrics.index(entry["metric"]) if entry["metric"] in metrics else len(metrics)
    return (
        *(entry["variable"] != "velocity", entry["variable"], arms.place(entry["arm"]), cell_order(entry["cell"])),
        *(phases.index(entry["phase"]), metric, entry["metric"]),
    )


def _note(arm: str, arms: Arms, scorable: Frame) -> str:
    notes = []
    apart = arm in (*arms.retrained, *arms.controls) or control_of(arm)
    learns = (scorable["supervision"] != "none").any() and not apart
    if "weight_change" in scorable and learns:
        change = scorable.loc[scorable["status"] == "ok", "weight_change"].dropna()
        if len(change) and change.median() < UNMOVED:
            notes.append("did not adapt")
    if n_failed := int((scorable["status"] == "failed").sum()):
        notes.append(f"{n_failed} of {len(scorable)} runs failed")
    return "; ".join(notes)
