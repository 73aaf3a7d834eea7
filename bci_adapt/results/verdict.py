"""A run's verdict in plain words: every number and every comparative in it is computed from the rows; of whom it tells,
and in which words, stands in the run's table of comparisons.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from bci_adapt.results import summary
from bci_adapt.results.arms import Arms, Key
from bci_adapt.results.recovery import Comparison, compare, standing
from bci_adapt.results.summary import score_text
from bci_adapt.results.table import Results, cell_label, number


def plain_words(stored: Results, variable: str = "velocity") -> list[dict[str, Any]]:
    """Held-out findings in words: ``[{title, sentences: [str, …]}, …]``, every number and comparative from the rows.

    A difference is called one only where the interval of its paired bootstrap over target days excludes zero, and "no
    clear difference" where it includes zero; of days that are too few to decide (`Comparison`) neither is said.
    """
    tell = _Teller(stored, variable)
    networks = [cell for cell in tell.cells if cell]
    paragraphs = [
        {"title": "Which adapters are worth using", "sentences": _worth_words(tell)},
        {"title": "Who is ahead", "sentences": [*tell.told("between networks", networks), *_ahead_words(tell)]},
        *(
            {"title": f"The {cell_label(cell)} network", "sentences": list(tell.told("told", [cell]))}
            for cell in networks
        ),
        {"title": "Linear decoders", "sentences": list(tell.told("told", [""]))},
    ]
    return [paragraph for paragraph in paragraphs if paragraph["sentences"]]


class _Teller:
    """Held-out scores of arms, and how two of them compare, in words."""

    def __init__(self, stored: Results, variable: str) -> None:
        self.blocks, self.arms, self.comparisons = stored.blocks, Arms(stored.arms), stored.comparisons
        rows = standing(stored.rows)
        self.rows, self.variable = rows[(rows["variable"] == variable) & (rows["metric"] == "r2")], variable
        self.held_out = self.rows[(self.rows["phase"] == "held_out") & (self.rows["control"] == "")]
        scored = self.held_out[self.held_out["status"] == "ok"]
        self.summary = {
            (entry["arm"], entry["cell"]): entry
            for entry in summary.summarise(scored, self.arms, blocks=self.blocks)
            if entry["n_targets"] and np.isfinite(entry["mean"])
        }
        lines = summary.arm_lines(list(self.summary.values()), self.arms, variable)
        self.cells = list(dict.fromkeys(line["cell"] for line in lines))

    def score(self, arm: str, cell: str) -> str | None:
        entry = self.summary.get((arm, cell))
        return score_text(entry) if entry else None

    def against(self, first: Key, second: Key) -> Comparison | None:
        if first not in self.summary or second not in self.summary:
            return None
        return compare(self.held_out, first, second, self.variable, blocks=self.blocks)

    def told(self, family: str, cells: Iterable[str]) -> Iterator[str]:
        """The sentences of one family about arms of `cells`, in the words of the table of comparisons."""
        rows = self.comparisons[self.comparisons["family"] == family]
        for row in rows[rows["first_cell"].isin(list(cells))].itertuples(index=False):
            first, second = (row.first, row.first_cell), (row.second, row.second_cell)
            score = self.score(*first)
            if score is None:
                continue
            parts = [row.start.format(score=score)] if row.start else []
            if row.second:
                parts += self.sentence(first, second, row.ahead, row.behind, row.level)
            if parts:
                yield " ".join(parts)

    def sentence(self, first: Key, second: Key, ahead: str, behind: str, level: str) -> Iterator[str]:
        """One sentence out of three, by the sign of the paired difference; none where the two share no day.

        The templates may use {first} and {second} (means on shared pairs) and {change} (first − second, with interval).
        """
        both = self.against(first, second)
        if both is None:
            return
        change = score_text(both.difference._asdict())
        change = change if change.startswith(("−", "–")) else f"+{change}"
        if both.undecided:
            yield (
                f"{number(both.first)} of {self.who(first)} against {number(both.second)} of {self.who(second)} "
                f"({change}): {self.days(both.difference.n)} too few to decide."
            )
            return
        yield {1: ahead, -1: behind, 0: level}[both.sign].format(
            first=number(both.first), second=number(both.second), change=change
        )

    @staticmethod
    def days(n: int) -> str:
        return f"{n} days are" if n > 1 else "one day is"

    def who(self, key: Key) -> str:
        return f"{self.arms.label(key[0])} ({cell_label(key[1])})"


def _ahead_words(tell: _Teller) -> list[str]:
    """Which arm that was not retrained has the highest mean, and whether its lead is clear."""
    without = {*tell.arms.retrained, *tell.arms.controls}
    adaptive = set(summary.adaptive(tell.rows, tell.arms))
    candidates = [
        key for key in tell.summary if key[0] not in without and (key[0] in adaptive or _no_labels(tell, key))
    ]
    ranked = sorted(candidates, key=lambda key: -tell.summary[key]["mean"])
    if len(ranked) < 2:
        return []
    first, second = ranked[:2]
    next_ = tell.who(second)
    best = (
        f"Of all arms that were not retrained, {tell.who(first)} had the highest held-out mean, {tell.score(*first)}."
    )
    return [
        best,
        *tell.sentence(
            *(first, second),
            f"Its lead over the next, {next_}, is clear ({{change}}).",
            f"On the pairs it shares with the next, {next_}, it is behind ({{change}}).",
            f"Its lead over the next, {next_}, is no clear difference ({{change}}).",
        ),
    ]


def _no_labels(tell: _Teller, key: Key) -> bool:
    """Whether an arm of the table learns from no label."""
    return key[0] in tell.arms.ordered and key[0] not in tell.arms.taught


def _worth_words(tell: _Teller) -> list[str]:
    """What an arm without labels gains over changing nothing, and what labels gain over the causal normaliser alone.

    Arms that leak are named and not praised; those that did not adapt are not praised either.
    """
    arms = tell.arms
    leaking = {arm for arm, leaks in summary.leak(tell.rows, arms).items() if leaks}
    adaptive = set(summary.adaptive(tell.rows, arms))
    sentences = []
    for reference, start, beyond in (
        ("frozen", "Without any label", "changing nothing"),
        ("unlabelled", "With labels", "the causal normaliser alone"),
    ):
        verdicts: dict[int, dict[str, list[str]]] = {1: {}, 0: {}, -1: {}}
        for arm, cell in sorted(tell.summary, key=lambda key: -tell.summary[key]["mean"]):
            asked = arm in adaptive if reference == "unlabelled" else _no_labels(tell, (arm, cell))
            unmoved = "did not adapt" in tell.summary[arm, cell]["note"]
            if not asked or arm in leaking or unmoved or arms.is_frozen(arm, cell):
                continue
            both = tell.against((arm, cell), (getattr(arms.kind(arm, cell), reference), cell))
            if both is not None:
                scored = f"{cell_label(cell)} {number(both.first)}"
                verdicts[both.sign].setdefault(arm, []).append(scored)
        for sign, words in ((1, "clearly better than"), (0, "no clear gain over"), (-1, "clearly worse than")):
            if verdicts[sign]:
                named = [f"{arms.label(arm)} ({', '.join(scored)})" for arm, scored in verdicts[sign].items()]
                sentences.append(f"{start}, {words} {beyond}: {'; '.join(named)}.")
    if leaking:
        named = _listed(arms.label(arm) for arm in sorted(leaking, key=arms.place))
        sentences.append(f"Not to be judged, because the setting leaks: {named}.")
    return sentences


def _listed(items: Iterable[str]) -> str:
    """``a, b and c``."""
    listed = list(items)
    return " and ".join([", ".join(listed[:-1]), listed[-1]] if len(listed) > 1 else listed)
