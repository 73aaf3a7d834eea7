"""The arms of a cross-session run: what each is trained on, how it adapts, what is chosen for it by tuning.

An arm is data. `network_arms` and `linear_arms` list those of a config: the standing ones, which every run has unless
``controls.without`` names them, and the ones its ``[[arms]]`` ask for. A credit rule, an optimiser or a decoder is a
file of its own; an arm only says which of them meet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from bci_adapt.experiment.config import ArmSection, Config

SOURCE, STREAM, BOTH = "source", "stream", "both"
ONLINE, HELD_OUT = ("online", "online_late", "held_out"), ("held_out",)
LEARNING = (*ONLINE, "continuing", "back")
READOUT_RATIO = "readout_ratio"  # of a grid: the readout's learning rate over that of the other weights


# Keys of [network] that are parameters of every network's decoder.
_TRAINING = (
    *("n_members", "n_updates", "added_updates", "pretrain_rate", "added_rate", "input_dropout", "gain_jitter"),
    *("offset_jitter", "batch", "window_bins", "recency"),
)


@dataclass(frozen=True)
class Arm:
    """One way of coping with a later day.

    Parameters
    ----------
    name, cell : as in the long table (`bci_adapt.results.table.ARMS`); the cell is empty for decoders without a
    network. decoder : its class, by name; `trained_as` another class whose fitted decoder it starts from, its own when
    empty. trained_on : the source days, the target's adaptation stream, or both. fit : constants of the decoder that
    its training depends on. adapt : constants that are set before it meets the target. supervision : of the labels it
    learns from: true, intention, pseudo, none. columns : what the long table says of it besides. seeds : the seeds it
    is run with. phases : the parts that are scored; those after the stream only where the run asks for them. grid :
    parameters that tuning chooses, and the factor between values that it tries. checked : whether it has a leak canary.
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

    @property
    def learns(self) -> bool:
        """Whether it is shown labels while it adapts."""
        return self.supervision != "none"

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


def network_arms(config: Config, cell: str) -> list[Arm]:
    """The arms of one kind of network, in order."""
    from bci_adapt.experiment.config import arm_name

    network, left_out = config.network, config.controls.without
    fit = {
        "cell": cell,
        "n_hidden": network.n_hidden,
        "bin_s": config.bin_s,
        "label_delay_s": config.label_delay_s,
        "warm_up_s": network.warm_up_s,
        "normaliser_s": config.normaliser_s,
        "average": None,
        **{name: getattr(network, name) for name in _TRAINING},
    }
    # Nothing learns in these arms; the cheapest rule spares them an optimiser to warm.
    still = {"rule": "readout"}
    arms = [
        Arm(
            *("frozen", cell, "online_rnn", SOURCE, fit, still | {"normaliser_s": None}),
            columns={"normaliser": "fixed"},
            seeds=config.seeds,
            phases=(*ONLINE, "back"),
        ),
        Arm("normaliser", cell, "online_rnn", SOURCE, fit, still, seeds=config.seeds, phases=(*ONLINE, "back")),
    ]
    asked = {arm_name(section): section for section in config.arms}
    for name, section in {**_standing_sections(), **asked}.items():
        if cell in (section.cells or network.cells):
            arms.append(_adapting(config, cell, name, section, fit))
    arms.append(
        Arm(
            *("fine_tuned", cell, "fine_tuned", SOURCE, fit),
            adapt={"tune_updates": network.tune_updates, "tune_rate": network.tune_rate},
            supervision="true",
            columns={"rule": "bptt", "optimizer": "adam", "rate": network.tune_rate},
            seeds=config.seeds,
            phases=HELD_OUT,
            grid={"tune_rate": 10**0.5, "tune_updates": 2.0},
            trained_as="online_rnn",
        )
    )
    for name, trained_on, steps, n_updates in (
        ("network_oracle", STREAM, "n_updates", network.oracle_updates),
        ("joint_oracle", BOTH, "added_updates" if network.carried else "n_updates", network.joint_updates),
    ):
        arms.append(
            Arm(
                *(name, cell, "online_rnn", trained_on, fit | {steps: n_updates}, still),  # type: ignore[arg-type]
                columns={"supervision": "true", "rule": "bptt", "optimizer": "adam"},
                seeds=network.oracle_seeds or config.seeds,
                phases=HELD_OUT,
                grid={steps: 2.0},
            )
        )
    return [arm for arm in arms if arm.name not in left_out]


def _standing_sections() -> dict[str, ArmSection]:
    from bci_adapt.experiment.config import ArmSection

    immediate: Any = {"rule": "immediate", "optimizer": "rmsprop"}
    return {
        "output_bias": ArmSection(rule="readout", optimizer="rmsprop", learns=("output_bias",)),
        "readout": ArmSection(rule="readout", optimizer="rmsprop"),
        "recurrent": ArmSection(**immediate, learns=("input", "bias", "recurrent")),
        "from_random": ArmSection(**immediate, weights="random"),
        "intention": ArmSection(**immediate, supervision="intention"),
        "pseudo": ArmSection(**immediate, supervision="pseudo"),
    }


def _adapting(config: Config, cell: str, name: str, section: ArmSection, fit: Mapping[str, Any]) -> Arm:
    """A network that learns bin by bin."""
    rate = config.learning_rate if section.learning_rate is None else section.learning_rate
    adapt = {
        "rule": section.rule,
        "rule_constants": section.rule_constants or None,
        "optimizer": section.optimizer,
        "optimizer_constants": section.optimizer_constants or None,
        "take_turns": section.take_turns,
        "learn_every": section.learn_every,
        "learning_rate": rate,
        "group_rates": None,
        "average": section.average,
        "learns": None if section.learns is None else list(section.learns),
    }
    step, learns_all = 10**0.5, section.learns is None and section.rule != "readout"
    adapt |= {"normaliser_s": None} if section.normaliser == "fixed" else {}
    adapt |= {"pretrained": False} if section.weights == "random" else {}
    return Arm(
        *(name, cell, "online_rnn", SOURCE, fit),
        adapt=adapt,
        supervision=section.supervision,
        columns={
            "rule": section.rule_text,
            "optimizer": section.optimizer_text,
            "rate": rate,
            "average": "" if section.average is None else f"ema {section.average}",
            "normaliser": section.normaliser,
        },
        seeds=[seed for seed in config.seeds if seed in (section.seeds or config.seeds)],
        phases=LEARNING,
        grid={"learning_rate": step} | ({READOUT_RATIO: step} if learns_all else {}),
        checked=True,
    )


def linear_arms(config: Config, n_axes: Mapping[str, int]) -> list[Arm]:
    """The arms without a network, in order; `n_axes` is the number of axes of each variable."""
    linear = config.linear
    late = {"label_delay_s": config.label_delay_s}
    shared = {"bin_s": config.bin_s, "normaliser_s": config.normaliser_s}
    lagged = shared | {"n_lags": linear.n_lags, "penalty": linear.penalty}
    regression = {"penalty": 10**0.5, "n_lags": 1.5}
    memory = {"memory_s": linear.memory_s, "update_every_s": linear.update_every_s}
    fixed = {"normaliser_s": None}
    seeds = config.seeds[:1]

    def arm(name: str, decoder: str, trained_on: Any, fit: Any, adapt: Any = None, **more: Any) -> Arm:
        return Arm(name, "", decoder, trained_on, fit, adapt or {}, seeds=seeds, **more)

    taught: dict[str, Any] = {"supervision": "true"}
    arms = [
        arm("frozen", "wiener", SOURCE, lagged, fixed, columns={"normaliser": "fixed"}, grid=regression),
        arm("normaliser", "wiener", SOURCE, lagged, grid=regression),
        arm(
            *("rls", "rls", SOURCE, lagged | late | memory),
            **taught,
            columns={"rule": "rls", "rate": 1.0 / linear.memory_s},
            phases=LEARNING,
            grid={"memory_s": 10**0.5, "penalty": 10**0.5, "n_lags": 1.5},
            checked=True,
        ),
        arm(
            *("ridge_oracle", "wiener", STREAM, lagged),
            columns=taught | {"rule": "ridge"},
            phases=HELD_OUT,
            grid=regression,
        ),
        arm(
            *("joint_ridge", "wiener", BOTH, lagged),
            columns=taught | {"rule": "ridge"},
            phases=HELD_OUT,
            grid=regression,
        ),
        arm(
            *("aligned", "aligned", SOURCE, lagged | {"n_latents": linear.n_latents}),
            grid={"n_latents": 2.0, "penalty": 10**0.5},
        ),
        arm(
            *("persistence", "persistence", SOURCE, {"bin_s": config.bin_s} | late),
            **taught,
            columns={"normaliser": ""},
        ),
    ]
    if config.has_kalman:
        kinds = {variable: "position" if variable == "position" else "velocity" for variable in config.variables}
        outputs = [kind for variable, kind in kinds.items() for _ in range(n_axes[variable])]
        for prefix, state in (("kalman_", "velocity"), ("kalman_pv_", "position_velocity")):
            fit = shared | late | {"state": state, "outputs": outputs, "lag_bins": config.kalman_lag_bins}
            lag = {"lag_bins": 2.0}
            adaptive = {"adaptive": True, **memory}
            arms += [
                arm(f"{prefix}frozen", "kalman", SOURCE, fit, fixed, columns={"normaliser": "fixed"}, grid=lag),
                arm(f"{prefix}normaliser", "kalman", SOURCE, fit, grid=lag),
                arm(
                    *(f"{prefix}adaptive", "kalman", SOURCE, fit | adaptive),
                    **taught,
                    columns={"rule": "kalman", "rate": 1.0 / linear.memory_s},
                    phases=LEARNING,
                    grid={"memory_s": 10**0.5, **lag},
                    checked=True,
                ),
                arm(
                    f"{prefix}refit",
                    "kalman",
                    STREAM,
                    fit,
                    columns=taught | {"rule": "kalman"},
                    phases=HELD_OUT,
                    grid=lag,
                ),
            ]
    return [arm for arm in arms if arm.name not in config.controls.without]
