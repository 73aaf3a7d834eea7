"""How much of what retraining regains an arm regains: a percentage with guards, never a score by itself.

Both functions read the long table (`bci_adapt.results`) and nothing else. Scores are compared on the same pairs of
sessions, and on the same seeds where both arms start from the same network.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from bci_adapt.statistics import Interval, hierarchical_bootstrap, ratio_of_means, sign_flip_test, t_interval

Frame = Any  # a pandas.DataFrame, whose own annotations are unions that no type checker can resolve
NETWORK_ORACLE, LINEAR_ORACLE = "network_oracle", "ridge_oracle"
WITHOUT_RECOVERY = ("frozen", NETWORK_ORACLE, LINEAR_ORACLE, "persistence")
FEW_DAYS = 5
SMALLEST_DENOMINATOR, SMALLEST_CEILING = 0.05, 0.10


class Comparison(NamedTuple):
    """Two arms on the same pairs: both means, their difference (first − second), its exact sign-flip p, and a verdict.

    `sign` is +1 or −1 where the interval of the difference excludes 0, else 0: no clear difference. Below
    `FEW_DAYS` target days Student's interval of the daily differences must exclude 0 too.
    """

    first: float
    second: float
    difference: Interval
    p: float
    sign: int


def arm_scores(
    rows: Frame, arm: str, cell: str, variable: str = "velocity", phase: str = "held_out", metric: str = "r2"
) -> Frame:
    """Scores of one arm that are ok: columns source, target, seed, n_hidden, value; one row per scored run."""
    keep = (rows["arm"] == arm) & (rows["cell"] == cell) & (rows["variable"] == variable) & (rows["phase"] == phase)
    keep &= (rows["metric"] == metric) & (rows["status"] == "ok") & np.isfinite(rows["value"])
    keys = ["source", "target", "seed", "n_hidden"]
    return rows.loc[keep, [*keys, "value"]].groupby(keys, sort=False, as_index=False).mean()


def interval(scores: Frame, seed: int = 0) -> Interval:
    """Mean over target days and its bootstrap interval: seeds are averaged within a pair, then pairs within a day."""
    levels = [scores[name].tolist() for name in ("target", "source", "seed")]
    return hierarchical_bootstrap(scores["value"], levels, resampled=[True, False, True], seed=seed)


def compare(
    rows: Frame,
    first: tuple[str, str],
    second: tuple[str, str],
    variable: str = "velocity",
    phase: str = "held_out",
    metric: str = "r2",
    seed: int = 0,
) -> Comparison | None:
    """Compare two arms, each (arm, cell), pair by pair; None when they share no scored target day."""
    left, right = (arm_scores(rows, *which, variable, phase, metric) for which in (first, second))
    both = _join(left, right, same_network=first[1] == second[1])
    if both.empty:
        return None
    means = both.groupby(["target", "source"], sort=False)[["value", "other"]].mean().groupby("target", sort=False)
    days = means.mean()
    difference = interval(both.assign(value=both["value"] - both["other"]), seed)
    daily = days["value"] - days["other"]
    intervals = [difference, *([t_interval(daily)] if len(daily) < FEW_DAYS else [])]
    above, below = all(each.low > 0 for each in intervals), all(each.high < 0 for each in intervals)
    means = float(days["value"].mean()), float(days["other"].mean())
    return Comparison(*means, difference, sign_flip_test(daily), above - below)


def recovery_oracle(
    rows: Frame, metric: str = "r2", seed: int = 0
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """recovery_oracle = 100 (s_adapted − s_frozen) / (s_oracle − s_frozen), in percent, of held-out scores.

    Returns two lists: ``{arm, cell, variable, mean, low, high, n_targets}`` and, for arms that get no number,
    ``{arm, cell, variable, reason}``. The oracle is the same architecture retrained on the target's own stream:
    network_oracle of the same cell, ridge_oracle for linear arms. It is a ratio of means over target days, unclipped,
    with an interval from a bootstrap that draws the days of numerator and denominator together. Refused when fewer
    than two days are scored for all three, when the denominator's interval reaches zero, when the denominator is below
    0.05, or when the interval of the oracle's own score reaches below 0.10.
    """
    recovered, refused = [], []
    arms = rows.loc[~rows["canary"] & ~rows["arm"].isin(WITHOUT_RECOVERY), ["arm", "cell", "variable"]]
    for arm, cell, variable in arms.drop_duplicates().itertuples(index=False):
        name = {"arm": arm, "cell": cell, "variable": variable}
        result = _recovery(rows, arm, cell, variable, metric, seed)
        if isinstance(result, str):
            refused.append({**name, "reason": result})
        else:
            recovered.append({**name, **result})
    return recovered, refused


def _recovery(rows: Frame, arm: str, cell: str, variable: str, metric: str, seed: int) -> dict[str, Any] | str:
    ceiling = NETWORK_ORACLE if cell else LINEAR_ORACLE
    adapted, frozen, oracle = (
        arm_scores(rows, which, cell, variable, "held_out", metric) for which in (arm, "frozen", ceiling)
    )
    kind = f"{cell} network" if cell else "linear decoder"
    for scores, what in ((adapted, "score of this arm"), (frozen, f"frozen {kind}"), (oracle, f"retrained {kind}")):
        if scores.empty:
            return f"no {what} in this run"
    # each mean is over the same pairs of sessions; the oracle may have been trained once for all sources of a target
    start = _join(adapted, frozen, same_network=True).rename(columns={"other": "frozen"})
    table = _join(start, oracle, same_network=True).rename(columns={"other": "oracle"})
    columns = ["value", "frozen", "oracle"]
    days = table.groupby(["target", "source"], sort=False)[columns].mean().groupby("target", sort=False).mean()
    ratio = ratio_of_means(
        days["value"] - days["frozen"], days["oracle"] - days["frozen"], smallest=SMALLEST_DENOMINATOR, seed=seed
    )
    if ratio.denominator.n < 2:
        return f"{ratio.refused}: this arm, frozen and retrained {kind} share too few"
    if ratio.refused:
        return f"retrained − frozen: {ratio.refused}"
    own = interval(oracle[oracle["target"].isin(days.index)], seed)
    if own.low < SMALLEST_CEILING:
        return (
            f"the retrained {kind} itself scores {own.mean:.2f} [{own.low:.2f}, {own.high:.2f}], "
            f"reaching below {SMALLEST_CEILING:.2f}"
        )
    percent = {"mean": 100 * ratio.ratio, "low": 100 * ratio.low, "high": 100 * ratio.high}
    return {**percent, "n_targets": ratio.denominator.n}


def _join(left: Frame, right: Frame, same_network: bool) -> Frame:
    """`left` with the score of `right` in column ``other``, matched as closely as both allow.

    On pair and seed where both run the same network, else on the pair with seeds averaged; where `right` was scored
    without a source or under other seeds (an oracle trained once per target), on the target.
    """
    attempts = [["source", "target"], ["target"]]
    if same_network:
        attempts = [["source", "target", "seed", "n_hidden"], ["source", "target", "n_hidden"], ["target", "n_hidden"]]
    for keys in attempts:
        other = right.groupby(keys, sort=False, as_index=False)["value"].mean().rename(columns={"value": "other"})
        both = left.merge(other, on=keys, how="inner")
        if not both.empty:
            return both
    return left.assign(other=np.nan).iloc[:0]
