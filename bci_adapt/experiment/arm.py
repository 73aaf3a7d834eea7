"""An arm: one way of coping with a later day, with what a reader is told of it.

What results know of arms is the table that `described` makes of them.
"""

from __future__ import annotations

import colorsys
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from bci_adapt.experiment.asked import OWN_PLACE

SOURCE, STREAM, BOTH = "source", "stream", "both"
ONLINE, HELD_OUT = ("online", "online_late", "held_out"), ("held_out",)
LEARNING = (*ONLINE, "continuing", "back")
READOUT_RATIO = "readout_ratio"  # of a grid: the readout's learning rate over that of the other weights
Role = Literal["bound", "standing", "rival", "ceiling", "control"]


class Family(NamedTuple):
    """Decoders of one architecture and the arms, by name, that they are judged by: frozen, adapted without labels,
    retrained on the target's stream, and on earlier days and the stream (empty where there is none); `reference` is
    the adaptive arm that sentences set the others beside.
    """

    kind: str
    frozen: str
    unlabelled: str
    ceiling: str
    joint_ceiling: str
    reference: str


NETWORK = Family("network", "frozen", "normaliser", "network_oracle", "joint_oracle", "immediate_rmsprop")
LINEAR = Family("linear decoder", "frozen", "normaliser", "ridge_oracle", "joint_ridge", "rls")


def _kalman(name: str) -> Family:
    """The family of one kind of Kalman filter; none is retrained jointly."""
    return Family("Kalman filter", f"{name}_frozen", f"{name}_normaliser", f"{name}_refit", "", LINEAR.reference)


KALMAN, KALMAN_PV = _kalman("kalman"), _kalman("kalman_pv")

# Colour and marker. Arms that are drawn in every figure of a run have one of their own, the others take turns.
_STYLES = {
    NETWORK.frozen: ("#000000", "X"),
    NETWORK.unlabelled: ("#56B4E9", "v"),
    NETWORK.reference: ("#0072B2", "o"),
    "immediate_rmsprop_ema": ("#CC79A7", "P"),
    "window4_rmsprop": ("#D55E00", "s"),
    NETWORK.ceiling: ("#009E73", "D"),
    LINEAR.reference: ("#E69F00", "^"),
    LINEAR.ceiling: ("#009E73", "D"),
    "persistence": ("#999999", "*"),
}
_MARKERS = "h<>dpH8"
# Whose decoded series a run's excerpt shows.
_EXCERPT = (NETWORK.frozen, NETWORK.reference, "window4_rmsprop", LINEAR.reference, NETWORK.ceiling)


@dataclass(frozen=True)
class Arm:
    """One way of coping with a later day.

    Parameters
    ----------
    name, cell : as in the long table; the cell is empty for decoders without a network. decoder : its class, by name;
    `trained_as` another class whose fitted decoder it starts from, its own when empty. trained_on : the source days,
    the target's adaptation stream, or both. fit : constants of the decoder that its training depends on. adapt :
    constants that are set before it meets the target. supervision : of the labels it learns from: true, intention,
    pseudo, none. columns : what the long table says of it besides. seeds : the seeds it is run with. phases : the parts
    that are scored; those after the stream only where the run asks for them. grid : parameters that tuning chooses, and
    the factor between values that it tries. checked : whether it has a leak canary.

    role : a *bound* learns nothing, a *ceiling* is retrained, a *rival* is what others must beat, a *control* reads no
    neuron; the rest are *standing*. words : what a reader sees, the name when empty. order : place in every list.
    family : what it is judged by. variation : it varies another arm, and is listed apart. drawn : figures that show
    few arms show it, too.
    """

    name: str
    cell: str
    decoder: str
    trained_on: Literal["source", "stream", "both"]
    fit: Mapping[str, Any]
    adapt: Mapping[str, Any] = field(default_factory=dict)
    supervision: str = "none"
    columns: Mapping[str, Any] = field(default_factory=dict)
    seeds: Sequence[int] = (0,)
    phases: Sequence[str] = ONLINE
    grid: Mapping[str, float] = field(default_factory=dict)
    trained_as: str = ""
    checked: bool = False
    role: Role = "standing"
    words: str = ""
    order: int = OWN_PLACE
    family: Family = LINEAR
    variation: bool = False
    drawn: bool = False

    @property
    def learns(self) -> bool:
        """Whether it is shown labels while it adapts."""
        return self.supervision != "none"

    @property
    def retrained(self) -> bool:
        """Whether it is trained on the whole stream: no score of the stream is a prediction."""
        return "online" not in self.phases

    @property
    def is_frozen(self) -> bool:
        """Whether it is its family's frozen decoder."""
        return self.name == self.family.frozen

    def value(self, parameter: str) -> Any:
        """The value that `parameter` of the grid has now."""
        if parameter == READOUT_RATIO:
            return (self.adapt["group_rates"] or {}).get("readout", 1.0)
        return self.adapt[parameter] if parameter in self.adapt else self.fit[parameter]

    def having(self, values: Mapping[str, Any]) -> Arm:
        """The same arm with parameters of its grid at `values`."""
        fit = {**self.fit, **{name: value for name, value in values.items() if name in self.fit}}
        adapt = {**self.adapt, **{name: value for name, value in values.items() if name in self.adapt}}
        if (ratio := values.get(READOUT_RATIO)) is not None:
            adapt["group_rates"] = None if ratio == 1.0 else {"readout": ratio, "output_bias": ratio}
        rate = values.get("learning_rate", values.get("tune_rate"))
        columns = dict(self.columns) | ({} if rate is None else {"rate": rate})
        if "memory_s" in values:
            columns["rate"] = 1.0 / values["memory_s"]
        return replace(self, fit=fit, adapt=adapt, columns=columns)


def is_main(arm: Arm) -> bool:
    """Whether an arm is the frozen, the unlabelled or the retrained one of the networks or the linear decoders."""
    family = arm.family
    return family in (NETWORK, LINEAR) and arm.name in (family.frozen, family.unlabelled, family.ceiling)


def style_of(name: str) -> tuple[str, str]:
    """Colour and marker of an arm, by its name alone: the same on every page, whatever other arms there are."""
    if name in _STYLES:
        return _STYLES[name]
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
    hue, rest = number % 360 / 360, number // 360
    red, green, blue = colorsys.hls_to_rgb(hue, (0.36, 0.5)[rest % 2], 0.62)
    colour = "#{:02X}{:02X}{:02X}".format(*(round(255 * part) for part in (red, green, blue)))
    return colour, _MARKERS[rest // 2 % len(_MARKERS)]


def described(arms: Iterable[Arm]) -> list[dict[str, Any]]:
    """What results know of arms: one record each, with the columns of `bci_adapt.results.table.ARMS`."""
    records = {}
    ordered = sorted({(arm.name, arm.cell): arm for arm in arms}.values(), key=lambda arm: (arm.order, arm.name))
    for arm in ordered:
        colour, marker = style_of(arm.name)
        drawn = arm.drawn or arm.name in _STYLES
        records[arm.name, arm.cell] = {
            "arm": arm.name, "cell": arm.cell, "words": arm.words or arm.name, "role": arm.role, "order": arm.order,
            "colour": colour, "marker": marker, "drawn": drawn, "in_excerpt": arm.name in _EXCERPT,
            "supervision": str(arm.columns.get("supervision", arm.supervision)), "retrained": arm.retrained,
            "variation": arm.variation, **arm.family._asdict(),
        }  # fmt: skip
    return list(records.values())
