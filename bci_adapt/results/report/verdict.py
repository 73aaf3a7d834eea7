"""A run's verdict in plain words: every number and every comparative in it is computed from the rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from bci_adapt.results import table as results
from bci_adapt.results.recovery import KALMAN, Comparison, Frame, compare, standing
from bci_adapt.results.report.blocks import sentence_list
from bci_adapt.results.table import arm_label, cell_label, number, score_text

NO_LABELS = ("normaliser", "aligned", "kalman_normaliser", "kalman_pv_normaliser")
NETWORK_RIVALS = {  # arms compared with adapting by immediate derivatives, as the subject of a sentence
    "recurrent": "Learning input and recurrent weights alone",
    "output_bias": "Learning the output bias alone",
    "from_random": "Starting from random weights",
    "intention": "Learning from the cued direction",
    "pseudo": "Learning from its own predictions",
    "fine_tuned": "Fine-tuning by BPTT on the same labels",
    "joint_oracle": "Retraining on earlier days and the same labels (the ceiling)",
}
LINEAR_RIVALS = {  # linear arms compared with recursive least squares, as the subject of a sentence
    "kalman_adaptive": "The adaptive Kalman filter",
    "kalman_refit": "The Kalman filter retrained on the target's stream",
    "aligned": "The aligned factor-analysis decoder, without labels,",
    "joint_ridge": "Ridge regression retrained on earlier days and the same labels",
}


def plain_words(rows: Frame, variable: str = "velocity", blocks: Frame | None = None) -> list[dict[str, Any]]:
    """Held-out findings in words: ``[{title, sentences: [str, …]}, …]``, every number and comparative from `rows`.

    A difference is called one only where the interval of its paired bootstrap over target days excludes zero; else the
    sentence says "no clear difference".
    """
    tell = _Teller(rows, variable, blocks)
    networks = [cell for cell in tell.cells if cell]
    paragraphs = [
        {"title": "Which adapters are worth using", "sentences": _worth_words(tell)},
        {"title": "Who is ahead", "sentences": _ahead_words(tell, networks)},
        *({"title": f"The {cell_label(cell)} network", "sentences": _network_words(tell, cell)} for cell in networks),
        {"title": "Linear decoders", "sentences": _linear_words(tell, networks)},
    ]
    return [paragraph for paragraph in paragraphs if paragraph["sentences"]]


class _Teller:
    """Held-out scores of arms, and how two of them compare, in words."""

    def __init__(self, rows: Frame, variable: str, blocks: Frame | None = None) -> None:
        self.blocks = blocks
        rows = standing(rows)
        self.rows, self.variable = rows[(rows["variable"] == variable) & (rows["metric"] == "r2")], variable
        self.held_out = self.rows[(self.rows["phase"] == "held_out") & (self.rows["control"] == "")]
        scored = self.held_out[self.held_out["status"] == "ok"]
        self.summary = {
            (entry["arm"], entry["cell"]): entry
            for entry in results.summarise(scored, blocks=blocks)
            if entry["n_targets"] and np.isfinite(entry["mean"])
        }
        self.cells = list(
            dict.fromkeys(line["cell"] for line in results.arm_lines(list(self.summary.values()), variable))
        )

    def score(self, arm: str, cell: str) -> str | None:
        entry = self.summary.get((arm, cell))
        return score_text(entry) if entry else None

    def against(self, first: tuple[str, str], second: tuple[str, str]) -> Comparison | None:
        if first not in self.summary or second not in self.summary:
            return None
        return compare(self.held_out, first, second, self.variable, blocks=self.blocks)

    def sentence(
        self, first: tuple[str, str], second: tuple[str, str], above: str, below: str, level: str
    ) -> Iterator[str]:
        """One sentence out of three, by the sign of the paired difference; none where the two share no day.

        The templates may use {first} and {second} (means on shared pairs) and {change} (first − second, with interval).
        """
        both = self.against(first, second)
        if both is None:
            return
        change = score_text(both.difference._asdict())
        template = {1: above, -1: below, 0: level}[both.sign]
        yield template.format(
            first=number(both.first),
            second=number(both.second),
            change=change if change.startswith(("−", "–")) else f"+{change}",
        )


def _network_words(tell: _Teller, cell: str) -> list[str]:
    name, immediate = cell_label(cell), ("immediate_rmsprop", cell)
    sentences = []
    if frozen := tell.score("frozen", cell):
        sentences.append(f"Frozen as trained on the source session, it scored R² {frozen} held out.")
    for first, second, above, below, level in [
        (
            ("normaliser", cell),
            ("frozen", cell),
            "The causal normaliser alone, without any label, raised this to {first} ({change}).",
            "The causal normaliser alone, without any label, lowered this to {first} ({change}).",
            "The causal normaliser alone, without any label, made no clear difference: {first} ({change}).",
        ),
        (
            immediate,
            ("normaliser", cell),
            "Adapting with immediate derivatives on top of it raised the score to {first} ({change}).",
            "Adapting with immediate derivatives on top of it lowered the score to {first} ({change}).",
            "Adapting with immediate derivatives on top of it made no clear difference: {first} ({change}).",
        ),
        (
            immediate,
            ("immediate_rmsprop_fixed", cell),
            "Without the causal normaliser the same rule scored lower, {second} (with it {change}).",
            "Without the causal normaliser the same rule scored higher, {second} (with it {change}).",
            "Without the causal normaliser the same rule scored {second}, no clear difference (with it {change}).",
        ),
        (
            immediate,
            ("readout", cell),
            "Adapting all weights was better than adapting the readout alone ({first} against {second}, {change}).",
            "Adapting all weights was worse than adapting the readout alone ({first} against {second}, {change}).",
            "Between adapting all weights and the readout alone there was no clear difference "
            "({first} against {second}, {change}).",
        ),
        (
            ("window4_rmsprop", cell),
            immediate,
            "Four steps of history were ahead of one ({first} against {second}, {change}).",
            "Four steps of history were behind one ({first} against {second}, {change}).",
            "Between four steps of history and one there was no clear difference ({first} against {second}, {change}).",
        ),
        (
            ("rtrl_rmsprop", cell),
            immediate,
            "Full RTRL was ahead of immediate derivatives ({first} against {second}, {change}).",
            "Full RTRL was behind immediate derivatives ({first} against {second}, {change}).",
            "Between full RTRL and immediate derivatives there was no clear difference "
            "({first} against {second}, {change}).",
        ),
        (
            ("immediate_rmsprop_ema", cell),
            immediate,
            "Averaging the weights helped ({change}).",
            "Averaging the weights hurt ({change}).",
            "Averaging the weights made no clear difference ({change}).",
        ),
        (
            ("immediate_sgd", cell),
            immediate,
            "Plain SGD was ahead of RMSprop ({change}).",
            "Plain SGD was behind RMSprop ({change}).",
            "Between plain SGD and RMSprop there was no clear difference ({change}).",
        ),
        (
            ("network_oracle", cell),
            immediate,
            f"The {name} network retrained on the target's own stream reached {{first}}, ahead of adapting with "
            "immediate derivatives ({change}).",
            f"The {name} network retrained on the target's own stream reached {{first}}, behind adapting with "
            "immediate derivatives ({change}).",
            f"The {name} network retrained on the target's own stream reached {{first}}: no clear difference from "
            "adapting with immediate derivatives ({change}).",
        ),
        *(
            (
                (arm, cell),
                immediate,
                f"{words} was ahead of adapting with immediate derivatives ({{first}} against {{second}}, {{change}}).",
                f"{words} was behind adapting with immediate derivatives ({{first}} against {{second}}, {{change}}).",
                f"{words} scored {{first}}; this is no clear difference from adapting with immediate derivatives "
                f"({{change}}).",
            )
            for arm, words in NETWORK_RIVALS.items()
        ),
    ]:
        sentences += tell.sentence(first, second, above, below, level)
    return sentences


def _linear_words(tell: _Teller, networks: list[str]) -> list[str]:
    sentences = []
    if rls := tell.score("rls", ""):
        sentences.append(f"Recursive least squares on lagged counts, with the same labels, scored {rls}.")
    for cell in networks:
        name = cell_label(cell)
        sentences += tell.sentence(
            ("rls", ""),
            ("immediate_rmsprop", cell),
            f"It was ahead of the {name} network adapted with immediate derivatives ({{change}}).",
            f"It was behind the {name} network adapted with immediate derivatives ({{change}}).",
            f"Between it and the {name} network adapted with immediate derivatives there was no clear difference "
            "({change}).",
        )
    sentences += tell.sentence(
        ("ridge_oracle", ""),
        ("rls", ""),
        "Ridge regression retrained on the target's stream reached {first}, ahead of it ({change}).",
        "Ridge regression retrained on the target's stream reached {first}, behind it ({change}).",
        "Ridge regression retrained on the target's stream reached {first}: no clear difference from it ({change}).",
    )
    for arm, words in LINEAR_RIVALS.items():
        if score := tell.score(arm, ""):
            against = tell.sentence(
                (arm, ""),
                ("rls", ""),
                "It was ahead of recursive least squares ({change}).",
                "It was behind recursive least squares ({change}).",
                "It was no clear difference from recursive least squares ({change}).",
            )
            sentences.append(" ".join([f"{words} scored {score}.", *against]))
    if persistence := tell.score("persistence", ""):
        sentences.append(f"Repeating the last known label, without any neuron, scored {persistence}.")
    return sentences


def _ahead_words(tell: _Teller, networks: list[str]) -> list[str]:
    sentences = []
    for one, other in zip(networks[1:], networks, strict=False):
        sentences += tell.sentence(
            ("immediate_rmsprop", one),
            ("immediate_rmsprop", other),
            f"With the same rule the {cell_label(one)} was ahead of the {cell_label(other)} "
            "({first} against {second}, {change}).",
            f"With the same rule the {cell_label(one)} was behind the {cell_label(other)} "
            "({first} against {second}, {change}).",
            f"With the same rule there was no clear difference between the {cell_label(one)} and the "
            f"{cell_label(other)} ({{first}} against {{second}}, {{change}}).",
        )
    candidates = {*results.adaptive(tell.rows), *NO_LABELS, "frozen"}
    not_retrained = [key for key in tell.summary if key[0] in candidates]
    ranked = sorted(not_retrained, key=lambda key: -tell.summary[key]["mean"])
    if len(ranked) > 1:
        first, second = ranked[:2]
        sentences.append(
            f"Of all arms that were not retrained, {_who(first)} had the highest held-out mean, {tell.score(*first)}."
        )
        sentences += tell.sentence(
            first,
            second,
            f"Its lead over the next, {_who(second)}, is clear ({{change}}).",
            f"On the pairs it shares with the next, {_who(second)}, it is behind ({{change}}).",
            f"Its lead over the next, {_who(second)}, is no clear difference ({{change}}).",
        )
    return sentences


def _worth_words(tell: _Teller) -> list[str]:
    """What an arm without labels gains over changing nothing, and what labels gain over the causal normaliser alone.

    Arms that leak are named and not praised; those that did not adapt are not praised either.
    """
    leaking = {arm for arm, leaks in results.leak(tell.rows).items() if leaks}
    sentences = []
    for arms, reference, start, beyond in (
        (NO_LABELS, "frozen", "Without any label", "changing nothing"),
        (results.adaptive(tell.rows), "normaliser", "With labels", "the causal normaliser alone"),
    ):
        verdicts: dict[int, dict[str, list[str]]] = {1: {}, 0: {}, -1: {}}
        for arm, cell in sorted(tell.summary, key=lambda key: -tell.summary[key]["mean"]):
            unmoved = "did not adapt" in tell.summary[arm, cell]["note"]
            if arm not in arms or arm in leaking or unmoved:
                continue
            family = next((each for each in KALMAN if arm.startswith(each)), "")
            both = tell.against((arm, cell), (f"{family}{reference}", cell))
            if both is not None:
                scored = f"{cell_label(cell)} {number(both.first)}"
                verdicts[both.sign].setdefault(arm, []).append(scored)
        for sign, words in ((1, "clearly better than"), (0, "no clear gain over"), (-1, "clearly worse than")):
            if verdicts[sign]:
                named = [f"{arm_label(arm)} ({', '.join(scored)})" for arm, scored in verdicts[sign].items()]
                sentences.append(f"{start}, {words} {beyond}: {'; '.join(named)}.")
    if leaking:
        named = sentence_list(arm_label(arm) for arm in sorted(leaking, key=results.arm_order))
        sentences.append(f"Not to be judged, because the setting leaks: {named}.")
    return sentences


def _who(key: tuple[str, str]) -> str:
    arm, cell = key
    return f"{arm_label(arm)} ({cell_label(cell)})"
