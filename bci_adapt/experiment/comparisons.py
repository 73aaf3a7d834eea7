"""What is compared with what, declared before looking, and the sentences that say how it came out.

Of a run these are the rows of the table ``comparisons`` (`bci_adapt.results.table.COMPARISONS`): results look up who is
compared, and in which words, and know the name of no arm.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from bci_adapt.experiment.arm import LINEAR, NETWORK
from bci_adapt.experiment.asked import ArmSection
from bci_adapt.results.table import cell_label

Key = tuple[str, str]  # an arm's name and cell

USUAL, EMA, SGD, ONE, FOUR, RTRL = (
    *(NETWORK.reference, f"{NETWORK.reference}_ema", "immediate_sgd"),
    *("window1_rmsprop", "window4_rmsprop", "rtrl_rmsprop"),
)
# What is compared within each cell.
DECLARED = (
    (USUAL, NETWORK.unlabelled),
    (NETWORK.unlabelled, NETWORK.frozen),
    (USUAL, "output_bias"),
    (USUAL, "readout"),
    (USUAL, "recurrent"),
    (EMA, USUAL),
    (SGD, USUAL),
    (FOUR, USUAL),
    (FOUR, ONE),
    (ONE, USUAL),
    (RTRL, USUAL),
    (RTRL, FOUR),
    ("intention", USUAL),
    ("pseudo", NETWORK.unlabelled),
    ("from_random", USUAL),
    (USUAL, "fine_tuned"),
    (USUAL, NETWORK.ceiling),
    (USUAL, NETWORK.joint_ceiling),
    (LINEAR.reference, LINEAR.unlabelled),
    ("aligned", LINEAR.frozen),
    ("kalman_adaptive", "kalman_normaliser"),
    (LINEAR.reference, LINEAR.ceiling),
    (LINEAR.reference, LINEAR.joint_ceiling),
)


class Told(NamedTuple):
    """A sentence of the verdict: `start` is said of the first arm alone ({score}), then one of three by the sign of the
    difference ({first}, {second}, {change}).
    """

    start: str = ""
    ahead: str = ""
    behind: str = ""
    level: str = ""


def compared(cells: Sequence[str], asked: Iterable[ArmSection] = ()) -> list[dict[str, Any]]:
    """The records of the table of comparisons of a run with these `cells` (networks alone) and arms `asked` for."""
    records = [_record("declared", *pair) for pair in _declared(cells)]
    records += [_record("recommended", *pair) for cell in cells for pair in _of_the_recommended(cell, list(asked))]
    records += [_record("between networks", *each) for each in _between(cells)]
    records += [_record("told", *each) for cell in cells for each in _of_network(cell)]
    return records + [_record("told", *each) for each in _of_linear(cells)]


SILENT = Told()


def _record(family: str, first: Key, second: Key, told: Told = SILENT) -> dict[str, Any]:
    pair = {"first": first[0], "first_cell": first[1], "second": second[0], "second_cell": second[1]}
    return {"family": family, **pair, **told._asdict()}


def _declared(cells: Sequence[str]) -> Iterator[tuple[Key, Key]]:
    """Within cells, between networks, and of networks with the linear reference."""
    for cell in (*cells, ""):
        yield from (((first, cell), (second, cell)) for first, second in DECLARED)
    yield from (((USUAL, one), (USUAL, other)) for other, one in pairwise(cells))
    yield from (((USUAL, cell), (LINEAR.reference, "")) for cell in cells)


def recommended_section() -> ArmSection:
    """The arm that the recommended decoder is."""
    from bci_adapt.decoders.recommendation import recommended

    own = recommended()
    named = {name: getattr(own, name) for name in ("rule", "optimizer", "average", "take_turns")}
    return ArmSection(**named, **(own.rule_constants or {}))


def _of_the_recommended(cell: str, asked: list[ArmSection]) -> Iterator[tuple[Key, Key]]:
    """The recommended decoder against linear rivals, bounds and itself without one of its parts; and the decoder that
    only follows the statistics against the linear rivals.
    """
    own = recommended_section()
    if own.name not in {section.name for section in asked}:
        return
    linear = (LINEAR.reference, ""), (LINEAR.ceiling, "")
    bounds = NETWORK.unlabelled, "fine_tuned", NETWORK.ceiling, NETWORK.joint_ceiling
    without = [section.name for section in asked if section.differs_in_one_part(own)]
    yield from (((own.name, cell), rival) for rival in linear)
    yield from (((own.name, cell), (name, cell)) for name in (*bounds, *without))
    yield from (((NETWORK.unlabelled, cell), rival) for rival in linear)


# ------------------------------------------------------------------------------------------------------- sentences


def _between(cells: Sequence[str]) -> Iterator[tuple[Key, Key, Told]]:
    for other, one in pairwise(cells):
        mine, its = cell_label(one), cell_label(other)
        told = Told(
            ahead=f"With the same rule the {mine} was ahead of the {its} ({{first}} against {{second}}, {{change}}).",
            behind=f"With the same rule the {mine} was behind the {its} ({{first}} against {{second}}, {{change}}).",
            level=f"With the same rule there was no clear difference between the {mine} and the {its} "
            "({first} against {second}, {change}).",
        )
        yield (USUAL, one), (USUAL, other), told


# Arms compared with adapting by immediate derivatives, as the subject of a sentence.
_NETWORK_SUBJECTS = {
    "recurrent": "Learning input and recurrent weights alone",
    "output_bias": "Learning the output bias alone",
    "from_random": "Starting from random weights",
    "intention": "Learning from the cued direction",
    "pseudo": "Learning from its own predictions",
    "fine_tuned": "Fine-tuning by BPTT on the same labels",
    NETWORK.joint_ceiling: "Retraining on earlier days and the same labels (the ceiling)",
}
# Linear arms compared with recursive least squares, as the subject of a sentence.
_LINEAR_SUBJECTS = {
    "kalman_adaptive": "The adaptive Kalman filter",
    "kalman_refit": "The Kalman filter retrained on the target's stream",
    "aligned": "The aligned factor-analysis decoder, without labels,",
    LINEAR.joint_ceiling: "Ridge regression retrained on earlier days and the same labels",
}
_OF_USUAL = "adapting with immediate derivatives"
_BOTH = "({first} against {second}, {change})"
_NETWORK_TOLD = (
    (NETWORK.frozen, "", Told(start="Frozen as trained on the source session, it scored R² {score} held out.")),
    (
        *(NETWORK.unlabelled, NETWORK.frozen),
        Told(
            ahead="The causal normaliser alone, without any label, raised this to {first} ({change}).",
            behind="The causal normaliser alone, without any label, lowered this to {first} ({change}).",
            level="The causal normaliser alone, without any label, made no clear difference: {first} ({change}).",
        ),
    ),
    (
        *(USUAL, NETWORK.unlabelled),
        Told(
            ahead="Adapting with immediate derivatives on top of it raised the score to {first} ({change}).",
            behind="Adapting with immediate derivatives on top of it lowered the score to {first} ({change}).",
            level="Adapting with immediate derivatives on top of it made no clear difference: {first} ({change}).",
        ),
    ),
    (
        *(USUAL, f"{USUAL}_fixed"),
        Told(
            ahead="Without the causal normaliser the same rule scored lower, {second} (with it {change}).",
            behind="Without the causal normaliser the same rule scored higher, {second} (with it {change}).",
            level="Without the causal normaliser the same rule scored {second}, no clear difference (with it "
            "{change}).",
        ),
    ),
    (
        *(USUAL, "readout"),
        Told(
            ahead=f"Adapting all weights was better than adapting the readout alone {_BOTH}.",
            behind=f"Adapting all weights was worse than adapting the readout alone {_BOTH}.",
            level=f"Between adapting all weights and the readout alone there was no clear difference {_BOTH}.",
        ),
    ),
    (
        *(FOUR, USUAL),
        Told(
            ahead=f"Four steps of history were ahead of immediate derivatives {_BOTH}.",
            behind=f"Four steps of history were behind immediate derivatives {_BOTH}.",
            level=f"Between four steps of history and immediate derivatives there was no clear difference {_BOTH}.",
        ),
    ),
    # Steps of history learn a late label from the error as today's weights make it, immediate derivatives and RTRL from
    # the error as it was made. One step of history is immediate derivatives with today's error.
    (
        *(ONE, USUAL),
        Told(
            ahead=f"Immediate derivatives with the error as today's weights make it (one step of history) were ahead "
            f"of those with the error as it was made {_BOTH}.",
            behind=f"Immediate derivatives with the error as today's weights make it (one step of history) were "
            f"behind those with the error as it was made {_BOTH}.",
            level=f"Whether immediate derivatives learned from the error as today's weights make it (one step of "
            f"history) or as it was made was no clear difference {_BOTH}.",
        ),
    ),
    (
        *(FOUR, ONE),
        Told(
            ahead=f"With the same error, today's, four steps of history were ahead of one {_BOTH}.",
            behind=f"With the same error, today's, four steps of history were behind one {_BOTH}.",
            level=f"With the same error, today's, four steps of history and one showed no clear difference {_BOTH}.",
        ),
    ),
    (
        *(RTRL, USUAL),
        Told(
            ahead=f"Full RTRL was ahead of immediate derivatives {_BOTH}.",
            behind=f"Full RTRL was behind immediate derivatives {_BOTH}.",
            level=f"Between full RTRL and immediate derivatives there was no clear difference {_BOTH}.",
        ),
    ),
    (
        *(EMA, USUAL),
        Told(
            ahead="Averaging the weights helped ({change}).",
            behind="Averaging the weights hurt ({change}).",
            level="Averaging the weights made no clear difference ({change}).",
        ),
    ),
    (
        *(SGD, USUAL),
        Told(
            ahead="Plain SGD was ahead of RMSprop ({change}).",
            behind="Plain SGD was behind RMSprop ({change}).",
            level="Between plain SGD and RMSprop there was no clear difference ({change}).",
        ),
    ),
)


def _of_network(cell: str) -> Iterator[tuple[Key, Key, Told]]:
    """What is said of one kind of network."""
    for first, second, told in _NETWORK_TOLD:
        yield (first, cell), (second, cell if second else ""), told
    retrained = f"The {cell_label(cell)} network retrained on the target's own stream reached {{first}}"
    told = Told(
        ahead=f"{retrained}, ahead of {_OF_USUAL} ({{change}}).",
        behind=f"{retrained}, behind {_OF_USUAL} ({{change}}).",
        level=f"{retrained}: no clear difference from {_OF_USUAL} ({{change}}).",
    )
    yield (NETWORK.ceiling, cell), (USUAL, cell), told
    for name, subject in _NETWORK_SUBJECTS.items():
        told = Told(
            ahead=f"{subject} was ahead of {_OF_USUAL} {_BOTH}.",
            behind=f"{subject} was behind {_OF_USUAL} {_BOTH}.",
            level=f"{subject} scored {{first}}; this is no clear difference from {_OF_USUAL} ({{change}}).",
        )
        yield (name, cell), (USUAL, cell), told


def _of_linear(cells: Sequence[str]) -> Iterator[tuple[Key, Key, Told]]:
    """What is said of the decoders without a network."""
    rls, nobody = (LINEAR.reference, ""), ("", "")
    start = "Recursive least squares on lagged counts, with the same labels, scored {score}."
    yield rls, nobody, Told(start=start)
    for cell in cells:
        other = f"the {cell_label(cell)} network adapted with immediate derivatives"
        told = Told(
            ahead=f"It was ahead of {other} ({{change}}).",
            behind=f"It was behind {other} ({{change}}).",
            level=f"Between it and {other} there was no clear difference ({{change}}).",
        )
        yield rls, (USUAL, cell), told
    told = Told(
        ahead="Ridge regression retrained on the target's stream reached {first}, ahead of it ({change}).",
        behind="Ridge regression retrained on the target's stream reached {first}, behind it ({change}).",
        level="Ridge regression retrained on the target's stream reached {first}: no clear difference from it "
        "({change}).",
    )
    yield (LINEAR.ceiling, ""), rls, told
    for name, subject in _LINEAR_SUBJECTS.items():
        told = Told(
            start=f"{subject} scored {{score}}.",
            ahead="It was ahead of recursive least squares ({change}).",
            behind="It was behind recursive least squares ({change}).",
            level="It was no clear difference from recursive least squares ({change}).",
        )
        yield (name, ""), rls, told
    start = "Repeating the last known label, without any neuron, scored {score}."
    yield ("persistence", ""), nobody, Told(start=start)
