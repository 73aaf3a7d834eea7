"""How much of what retraining regains an arm regains, and how two arms compare.

Everything here reads the long table and the table of arms (`bci_adapt.results.table`), and nothing else. Scores are
compared on the same pairs of sessions, and on the same seeds where both arms start from the same network. Recovery is a
percentage with guards, never a score by itself.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from bci_adapt.ground.statistics import (
    Interval,
    block_bootstrap,
    hierarchical_bootstrap,
    ratio_of_means,
    sign_flip_test,
    t_interval,
)
from bci_adapt.results.arms import Arms
from bci_adapt.results.table import Frame, padded

FEW_DAYS = 5
SMALLEST_DENOMINATOR, SMALLEST_CEILING = 0.05, 0.10


class Comparison(NamedTuple):
    """Two arms on the same pairs: both means, their difference (first − second), its exact sign-flip p, and a verdict.

    `sign` is +1 or −1 where the interval of the difference excludes 0, else 0. Below `FEW_DAYS` target days Student's
    interval of the daily differences must exclude 0 too; where only that includes it, and on a single day, which has no
    interval, the comparison is `undecided`, and no word is said of who is ahead or level.
    """

    first: float
    second: float
    difference: Interval
    p: float
    sign: int

    @property
    def undecided(self) -> bool:
        """Whether the days are too few to call it a difference or none."""
        return is_undecided(self.sign, self.difference.low, self.difference.high)


def is_undecided(sign: int, low: float, high: float) -> bool:
    """`Comparison.undecided`, of its stored parts."""
    return not sign and not low <= 0.0 <= high


def coded(rows: Frame) -> Frame:
    """The same rows with their text columns as categories: a hundred times faster to select from, for readers that ask
    thousands of questions.
    """
    text = [name for name in rows if rows[name].dtype == "str"]
    return rows.astype(dict.fromkeys(text, "category"))


def standing(rows: Frame) -> Frame:
    """The rows of a run's own question, without those of its sweeps and other side questions; controls included."""
    return rows[rows["study"] == ""]


def arm_scores(
    rows: Frame,
    arm: str,
    cell: str,
    variable: str = "velocity",
    phase: str = "held_out",
    metric: str = "r2",
    study: str = "",
) -> Frame:
    """Scores of one arm that are ok: columns source, target, seed, n_hidden, value; one row per scored run."""
    keep = (rows["arm"] == arm) & (rows["cell"] == cell) & (rows["variable"] == variable) & (rows["phase"] == phase)
    keep &= (rows["metric"] == metric) & (rows["study"] == study)
    keep &= (rows["status"] == "ok") & np.isfinite(rows["value"])
    keys = ["source", "target", "seed", "n_hidden"]
    return rows.loc[keep, [*keys, "value"]].groupby(keys, sort=False, as_index=False).mean()


def interval(scores: Frame, seed: int = 0, blocks: Frame | None = None) -> Interval:
    """Mean over target days and its bootstrap interval: seeds are averaged within a pair, then pairs within a day.

    With `blocks`, those of one arm, cell and variable that hold every one of `scores`, blocks of time are drawn too.
    """
    levels = [scores[name].tolist() for name in ("target", "source", "seed")]
    if blocks is not None and len(scores):
        stored = _stored(blocks)
        held = [stored.get(key) for key in zip(*levels, strict=True)]
        if all(each is not None for each in held):
            error, spread = (padded([each[i] for each in held if each]) for i in (0, 1))
            return block_bootstrap(error, spread, levels, seed=seed)
    return hierarchical_bootstrap(scores["value"], levels, resampled=[True, False, True], seed=seed)


def of_arm(blocks: Frame | None, arm: str, cell: str, variable: str) -> Frame | None:
    """The blocks of one arm, cell and variable; None without any."""
    if blocks is None:
        return None
    return blocks[(blocks["arm"] == arm) & (blocks["cell"] == cell) & (blocks["variable"] == variable)]


def compare(
    rows: Frame,
    first: tuple[str, str],
    second: tuple[str, str],
    variable: str = "velocity",
    phase: str = "held_out",
    metric: str = "r2",
    seed: int = 0,
    blocks: Frame | None = None,
) -> Comparison | None:
    """Compare two standing arms, each (arm, cell), pair by pair; None when they share no scored target day.

    With `blocks` the interval of a difference of held-out R² draws blocks of time too, the same ones for both arms.
    """
    left, right = (arm_scores(rows, *which, variable, phase, metric) for which in (first, second))
    of_both = None
    if blocks is not None and (phase, metric) == ("held_out", "r2"):
        of_both = of_arm(blocks, *first, variable), of_arm(blocks, *second, variable)
    return compare_scores(left, right, same_network=first[1] == second[1], seed=seed, blocks=of_both)


def compare_scores(
    left: Frame, right: Frame, *, same_network: bool, seed: int = 0, blocks: tuple[Frame, Frame] | None = None
) -> Comparison | None:
    """As `compare`, of two tables of `arm_scores` and, where there are any, the blocks of each."""
    both = _join(left, right, same_network)
    if both.empty:
        return None
    days = by_day(both)
    difference = _block_difference(both, right, blocks, seed) if blocks else None
    difference = difference or interval(both.assign(value=both["value"] - both["other"]), seed)
    daily = days["value"] - days["other"]
    intervals = [difference, *([t_interval(daily)] if len(daily) < FEW_DAYS else [])]
    above, below = all(each.low > 0 for each in intervals), all(each.high < 0 for each in intervals)
    means = float(days["value"].mean()), float(days["other"].mean())
    return Comparison(*means, difference, sign_flip_test(daily), above - below)


def paired(
    rows: Frame,
    first: tuple[str, str],
    second: tuple[str, str],
    variable: str = "velocity",
    phase: str = "held_out",
    metric: str = "r2",
) -> Frame:
    """Scores of two standing arms on what they share: columns source, target, seed, n_hidden, value, other."""
    left, right = (arm_scores(rows, *which, variable, phase, metric) for which in (first, second))
    return _join(left, right, same_network=first[1] == second[1]).drop(columns="others")


def by_day(both: Frame) -> Frame:
    """Means per target of the columns value, other … of `paired`: over seeds, then over pairs."""
    columns = [name for name in both if name not in ("source", "target", "seed", "n_hidden", "others")]
    return both.groupby(["target", "source"], sort=False)[columns].mean().groupby("target", sort=False).mean()


def recovery_oracle(
    rows: Frame, arms: Arms, metric: str = "r2", seed: int = 0
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """recovery_oracle = 100 (s_adapted − s_frozen) / (s_oracle − s_frozen), in percent, of held-out scores.

    Returns two lists: ``{arm, cell, variable, mean, low, high, n_targets}`` and, for arms that get no number,
    ``{arm, cell, variable, reason}``. The oracle is the same architecture retrained on the target's own stream: the
    arm's `ceiling` in the table of arms. It is a ratio of means over target days, unclipped, with an interval from a
    bootstrap that draws the days of numerator and denominator together. Refused when fewer than two days are scored for
    all three, when the denominator's interval reaches zero, when the denominator is below 0.05, or when the interval of
    the oracle's own score reaches below 0.10.
    """
    return _recoveries(rows, arms, "ceiling", "retrained", metric, seed)


def recovery_joint(
    rows: Frame, arms: Arms, metric: str = "r2", seed: int = 0
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """As `recovery_oracle`, with the ceiling retrained on earlier days and the target's stream together: the arm's
    `joint_ceiling`.
    """
    return _recoveries(rows, arms, "joint_ceiling", "jointly retrained", metric, seed)


def _recoveries(
    rows: Frame, arms: Arms, against: str, words: str, metric: str, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    rows, recovered, refused = standing(rows), [], []
    scored = rows[(rows["phase"] == "held_out") & (rows["metric"] == metric)]
    without = arms.with_role("ceiling", "control")
    judged = rows.loc[(rows["control"] == "") & ~rows["arm"].isin(without), ["arm", "cell", "variable"]]
    for arm, cell, variable in judged.drop_duplicates().itertuples(index=False):
        kind = arms.kind(arm, cell)
        ceiling = getattr(kind, against)
        if not ceiling or arm == kind.frozen:  # of some architectures nothing is retrained
            continue
        name = {"arm": arm, "cell": cell, "variable": variable}
        what = f"{cell} {kind.kind}" if cell else kind.kind
        kinds = f"frozen {what}", f"{words} {what}"
        result = _recovery(scored, (arm, kind.frozen, ceiling), cell, variable, kinds, metric, seed)
        if isinstance(result, str):
            refused.append({**name, "reason": result})
        else:
            recovered.append({**name, **result})
    return recovered, refused


def _recovery(
    rows: Frame,
    arms: tuple[str, str, str],
    cell: str,
    variable: str,
    kinds: tuple[str, str],
    metric: str,
    seed: int,
) -> dict[str, Any] | str:
    adapted, frozen, oracle = (arm_scores(rows, which, cell, variable, "held_out", metric) for which in arms)
    for scores, what in ((adapted, "score of this arm"), (frozen, kinds[0]), (oracle, kinds[1])):
        if scores.empty:
            return f"no {what} in this run"
    # each mean is over the same pairs of sessions; the oracle may have been trained once for all sources of a target
    start = _join(adapted, frozen, same_network=True).rename(columns={"other": "frozen"}).drop(columns="others")
    days = by_day(_join(start, oracle, same_network=True).rename(columns={"other": "oracle"}))
    ratio = ratio_of_means(
        days["value"] - days["frozen"], days["oracle"] - days["frozen"], smallest=SMALLEST_DENOMINATOR, seed=seed
    )
    if ratio.denominator.n < 2:
        return f"{ratio.refused}: this arm, {kinds[0]} and {kinds[1]} share too few"
    if ratio.refused:
        return f"{kinds[1].rsplit(' ', 2)[0]} − frozen: {ratio.refused}"
    own = interval(oracle[oracle["target"].isin(days.index)], seed)
    if own.low < SMALLEST_CEILING:
        return (
            f"the {kinds[1]} itself scores {own.mean:.2f} [{own.low:.2f}, {own.high:.2f}], "
            f"reaching below {SMALLEST_CEILING:.2f}"
        )
    percent = {"mean": 100 * ratio.ratio, "low": 100 * ratio.low, "high": 100 * ratio.high}
    return {**percent, "n_targets": ratio.denominator.n}


def _join(left: Frame, right: Frame, same_network: bool) -> Frame:
    """`left` with the score of `right` in column ``other``, matched as closely as both allow, and in ``others`` the
    positions of the rows of `right` that it is the mean of.

    On pair and seed where both run the same network, else on the pair with seeds averaged; where `right` was scored
    without a source or under other seeds (an oracle trained once per target), on the target.
    """
    attempts = [["source", "target"], ["target"]]
    if same_network:
        attempts = [["source", "target", "seed", "n_hidden"], ["source", "target", "n_hidden"], ["target", "n_hidden"]]
    numbered = right.assign(others=np.arange(len(right)))
    for keys in attempts:
        groups = numbered.groupby(keys, sort=False, as_index=False)
        other = groups.agg({"value": "mean", "others": list}).rename(columns={"value": "other"})
        both = left.merge(other, on=keys, how="inner")
        if not both.empty:
            return both
    return left.assign(other=np.nan, others=None).iloc[:0]


def _stored(blocks: Frame) -> dict[tuple[str, str, int], tuple[Any, Any]]:
    """Error and spread of each run of one arm, by target, source and seed."""
    keys = zip(blocks["target"], blocks["source"], blocks["seed"], strict=True)
    return dict(zip(keys, zip(blocks["error"], blocks["spread"], strict=True), strict=True))


def _block_difference(both: Frame, right: Frame, blocks: tuple[Frame, Frame], seed: int) -> Interval | None:
    """The interval of the difference over days, seeds and blocks; None where a run has no blocks of its own."""
    mine, theirs = (_stored(each) for each in blocks)
    keys = list(zip(right["target"], right["source"], right["seed"], strict=True))
    levels = [both[name].tolist() for name in ("target", "source", "seed")]
    errors, spreads, others = [], [], []
    for *key, positions in zip(*levels, both["others"], strict=True):
        own, rival = mine.get(tuple(key)), [theirs.get(keys[position]) for position in positions]
        if own is None or any(each is None or len(each[0]) != len(own[0]) for each in rival):
            return None
        errors.append(own[0])
        spreads.append(own[1])
        others.append(np.mean([each[0] for each in rival if each], axis=0))
    error, spread, other = (padded(each) for each in (errors, spreads, others))
    return block_bootstrap(error, spread, levels, other_error=other, seed=seed)
