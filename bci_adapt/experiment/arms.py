"""The arms of a cross-session run: what each is trained on, how it adapts, what is chosen for it by tuning.

An arm is data (`bci_adapt.experiment.arm`). `network_arms` and `linear_arms` list those of a config: the standing
ones – unless ``controls.without`` names them – and the ones its ``[[arms]]`` ask for. A credit rule, an optimiser or a
decoder is a file of its own; an arm only says which of them meet.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bci_adapt.experiment.arm import (
    BOTH,
    HELD_OUT,
    KALMAN,
    KALMAN_PV,
    LEARNING,
    LINEAR,
    NETWORK,
    ONLINE,
    READOUT_RATIO,
    SOURCE,
    STREAM,
    Arm,
    Family,
)
from bci_adapt.experiment.asked import (
    ASKED_PLACE,
    LATE_PLACE,
    TRAINING,
    ArmSection,
    DecoderSection,
    configured,
    standing_sections,
)

if TYPE_CHECKING:
    from bci_adapt.experiment.config import Config


def arms_of(config: Config, n_axes: Mapping[str, int]) -> list[Arm]:
    """The arms of a config, in order; `n_axes` is the number of axes of each variable."""
    networks = [arm for cell in config.network.cells for arm in network_arms(config, cell)]
    return networks + linear_arms(config, n_axes)


def standing_names(config: Config) -> list[str]:
    """The arms that every run has unless ``controls.without`` names them, those of a Kalman filter among them."""
    first, later = _bounds(config, ""), [*_retrained(config, ""), *_linear(config), *_kalman_arms(config, {})]
    names = [*(arm.name for arm in first), *standing_sections(), *(arm.name for arm in later)]
    return list(dict.fromkeys(names))


def network_arms(config: Config, cell: str) -> list[Arm]:
    """The arms of one kind of network, in order."""
    standing = standing_sections()
    sections = {section.name: section for section in config.arms if isinstance(section, ArmSection)}
    ranked = sorted(sections, key=lambda name: sections[name].place)
    places = {name: place for place, name in enumerate(ranked, ASKED_PLACE)}
    places |= {name: each.place for name, each in standing.items()}
    arms = _bounds(config, cell)
    for name, section in {**{name: each.section for name, each in standing.items()}, **sections}.items():
        if cell in (section.cells or config.network.cells):
            arms.append(replace(_adapting(config, cell, section), order=places[name]))
    arms += _retrained(config, cell)
    arms += [
        _by_decoder(config, section, cell)
        for section in config.arms
        if isinstance(section, DecoderSection) and section.has_cells and cell in (section.cells or config.network.cells)
    ]
    return _asked_once(config, arms)


def linear_arms(config: Config, n_axes: Mapping[str, int]) -> list[Arm]:
    """The arms without a network, in order; `n_axes` is the number of axes of each variable."""
    arms = [*_linear(config), *(_kalman_arms(config, n_axes) if config.has_kalman else [])]
    arms += [
        _by_decoder(config, section, "", n_axes)
        for section in config.arms
        if isinstance(section, DecoderSection) and not section.has_cells
    ]
    return _asked_once(config, arms)


def _asked_once(config: Config, arms: list[Arm]) -> list[Arm]:
    """The arms that are not left out. One that does what another does already, whatever it is called, is that one: the
    first stays, and a decoder that is asked for with the constants of a standing arm is that arm.
    """
    names: dict[str, Arm] = {}
    for arm in arms:
        names.setdefault(arm.name, arm)
    first: dict[str, Arm] = {}
    for arm in names.values():
        about = [arm.cell, arm.decoder, arm.trained_as, arm.trained_on, {**arm.fit, **arm.adapt}, arm.supervision]
        first.setdefault(json.dumps(about, sort_keys=True, default=str), arm)
    return [arm for arm in first.values() if arm.name not in config.controls.without]


def _training(config: Config, cell: str) -> dict[str, Any]:
    """What the training of every network depends on."""
    network = config.network
    return {
        "cell": cell,
        "n_hidden": network.n_hidden,
        "bin_s": config.bin_s,
        "label_delay_s": config.label_delay_s,
        "warm_up_s": network.warm_up_s,
        "normaliser_s": config.normaliser_s,
        "average": None,
        **{name: getattr(network, name) for name in TRAINING},
    }


# Nothing learns in these arms; the cheapest rule spares them an optimiser to warm.
_STILL = {"rule": "readout"}


def _bounds(config: Config, cell: str) -> list[Arm]:
    """A network that learns nothing: as it was trained, and with the causal normaliser alone."""
    fit = _training(config, cell)
    shared: dict[str, Any] = {"seeds": config.seeds, "phases": (*ONLINE, "back"), "role": "bound", "family": NETWORK}
    return [
        Arm(
            *(NETWORK.frozen, cell, "online_rnn", SOURCE, fit, _STILL | {"normaliser_s": None}),
            columns={"normaliser": "fixed"},
            order=0,
            **shared,
        ),
        Arm(
            *(NETWORK.unlabelled, cell, "online_rnn", SOURCE, fit, _STILL),
            words="causal normaliser only",
            order=1,
            **shared,
        ),
    ]


def _adapting(config: Config, cell: str, section: ArmSection) -> Arm:
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
        *(section.name, cell, "online_rnn", SOURCE, _training(config, cell)),
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
        words=section.words,
        family=NETWORK,
        variation=section.name == f"{NETWORK.reference}_fixed",
        drawn=section.is_novel,
    )


def _retrained(config: Config, cell: str) -> list[Arm]:
    """A network trained again with the target's labels: from where it was, from the start, with the earlier days."""
    network, fit = config.network, _training(config, cell)
    shared: dict[str, Any] = {"phases": HELD_OUT, "family": NETWORK}
    arms = [
        Arm(
            *("fine_tuned", cell, "fine_tuned", SOURCE, fit),
            adapt={"tune_updates": network.tune_updates, "tune_rate": network.tune_rate},
            supervision="true",
            columns={"rule": "bptt", "optimizer": "adam", "rate": network.tune_rate},
            seeds=config.seeds,
            grid={"tune_rate": 10**0.5, "tune_updates": 2.0},
            trained_as="online_rnn",
            role="rival",
            words="fine-tuned by BPTT",
            order=LATE_PLACE + 10,
            **shared,
        )
    ]
    steps = "added_updates" if network.carried else "n_updates"
    for name, trained_on, grown, n_updates, words in (
        (NETWORK.ceiling, STREAM, "n_updates", network.oracle_updates, "network, retrained"),
        (NETWORK.joint_ceiling, BOTH, steps, network.joint_updates, "network, retrained with earlier days"),
    ):
        arms.append(
            Arm(
                *(name, cell, "online_rnn", trained_on, fit | {grown: n_updates}, _STILL),  # type: ignore[arg-type]
                columns={"supervision": "true", "rule": "bptt", "optimizer": "adam"},
                seeds=network.oracle_seeds or config.seeds,
                grid={grown: 2.0},
                role="ceiling",
                words=words,
                order=LATE_PLACE + 40 + len(arms),
                **shared,
            )
        )
    return arms


def _shared(config: Config) -> dict[str, Any]:
    """What every decoder without a network depends on."""
    return {"bin_s": config.bin_s, "normaliser_s": config.normaliser_s}


def _memory(config: Config) -> dict[str, Any]:
    return {"memory_s": config.linear.memory_s, "update_every_s": config.linear.update_every_s}


_TAUGHT: dict[str, Any] = {"supervision": "true"}
_FIXED = {"normaliser_s": None}


def _linear(config: Config) -> list[Arm]:
    """Regressions on lagged counts, the aligner, and persistence."""
    linear, seeds = config.linear, config.seeds[:1]
    late = {"label_delay_s": config.label_delay_s}
    lagged = _shared(config) | {"n_lags": linear.n_lags, "penalty": linear.penalty}
    regression, half = {"penalty": 10**0.5, "n_lags": 1.5}, 10**0.5

    def arm(name: str, decoder: str, trained_on: Any, fit: Any, adapt: Any = None, **more: Any) -> Arm:
        return Arm(name, "", decoder, trained_on, fit, adapt or {}, seeds=seeds, **more)

    bound: dict[str, Any] = {"role": "bound", "grid": regression}
    ceiling: dict[str, Any] = {"role": "ceiling", "grid": regression, "phases": HELD_OUT}
    ceiling |= {"columns": _TAUGHT | {"rule": "ridge"}}
    return [
        arm(LINEAR.frozen, "wiener", SOURCE, lagged, _FIXED, columns={"normaliser": "fixed"}, order=0, **bound),
        arm(LINEAR.unlabelled, "wiener", SOURCE, lagged, words="causal normaliser only", order=1, **bound),
        arm(
            *(LINEAR.reference, "rls", SOURCE, lagged | late | _memory(config)),
            **_TAUGHT,
            columns={"rule": "rls", "rate": 1.0 / linear.memory_s},
            phases=LEARNING,
            grid={"memory_s": half, "penalty": half, "n_lags": 1.5},
            checked=True,
            role="rival",
            words="recursive least squares",
            order=LATE_PLACE + 30,
        ),
        arm(LINEAR.ceiling, "wiener", STREAM, lagged, words="ridge, retrained", order=LATE_PLACE + 31, **ceiling),
        arm(
            *(LINEAR.joint_ceiling, "wiener", BOTH, lagged),
            words="ridge, retrained with earlier days",
            order=LATE_PLACE + 32,
            **ceiling,
        ),
        arm(
            *("aligned", "aligned", SOURCE, lagged | {"n_latents": linear.n_latents}),
            grid={"n_latents": 2.0, "penalty": half},
            role="rival",
            words="factor analysis, aligned",
            order=2,
        ),
        arm(
            *("persistence", "persistence", SOURCE, {"bin_s": config.bin_s} | late),
            **_TAUGHT,
            columns={"normaliser": ""},
            role="control",
            order=LATE_PLACE + 90,
        ),
    ]


def _kalman_arms(config: Config, n_axes: Mapping[str, int]) -> list[Arm]:
    """Kalman filters of velocity, and of position and velocity together."""
    late, seeds = {"label_delay_s": config.label_delay_s}, config.seeds[:1]
    kinds = {variable: "position" if variable == "position" else "velocity" for variable in config.variables}
    outputs = [kind for variable, kind in kinds.items() for _ in range(n_axes.get(variable, 0))]
    arms: list[Arm] = []
    for family, state, words in (
        (KALMAN, "velocity", "Kalman"),
        (KALMAN_PV, "position_velocity", "Kalman with position"),
    ):
        fit = _shared(config) | late | {"state": state, "outputs": outputs, "lag_bins": config.kalman_lag_bins}
        lag, place = {"lag_bins": 2.0}, LATE_PLACE + 20 + len(arms)

        def arm(name: str, trained_on: Any, fit: Any, adapt: Any = None, *, of: Family = family, **more: Any) -> Arm:
            return Arm(name, "", "kalman", trained_on, fit, adapt or {}, seeds=seeds, family=of, **more)

        arms += [
            arm(
                *(family.frozen, SOURCE, fit, _FIXED),
                columns={"normaliser": "fixed"},
                grid=lag,
                role="bound",
                words=f"{words}, frozen",
                order=place,
            ),
            arm(
                *(family.unlabelled, SOURCE, fit),
                grid=lag,
                role="bound",
                words=f"{words}, causal normaliser only",
                order=place + 1,
            ),
            arm(
                *(family.frozen.replace("frozen", "adaptive"), SOURCE, fit | {"adaptive": True} | _memory(config)),
                **_TAUGHT,
                columns={"rule": "kalman", "rate": 1.0 / config.linear.memory_s},
                phases=LEARNING,
                grid={"memory_s": 10**0.5, **lag},
                checked=True,
                role="rival",
                words=f"{words}, adaptive",
                order=place + 2,
            ),
            arm(
                *(family.ceiling, STREAM, fit),
                columns=_TAUGHT | {"rule": "kalman"},
                phases=HELD_OUT,
                grid=lag,
                role="ceiling",
                words=f"{words}, retrained",
                order=place + 3,
            ),
        ]
    return arms


def _by_decoder(config: Config, section: DecoderSection, cell: str, n_axes: Mapping[str, int] | None = None) -> Arm:
    """Any decoder by the name of its class: its constants as given, else the config's, else its own."""
    from bci_adapt.decoders.base import decoder_class

    known = section.parameters
    usual = {"cell": cell, "bin_s": config.bin_s, "label_delay_s": config.label_delay_s, **configured(dict(config))}
    kinds = {variable: "position" if variable == "position" else "velocity" for variable in config.variables}
    usual["outputs"] = [kind for name, kind in kinds.items() for _ in range((n_axes or {}).get(name, 0))]
    set_ = {name: value for name, value in usual.items() if name in known} | section.told
    later = {name: set_.pop(name, known[name]) for name in _ONLINE_CONSTANTS if name in known}
    made_of = "online_rnn" if hasattr(decoder_class(section.decoder), "of") else ""
    if made_of:  # it starts from another decoder's training: what that has no parameter for is said when it becomes one
        from_ = decoder_class(made_of)().get_params()
        later |= {name: set_.pop(name) for name in list(set_) if name not in from_}
        if "average" in section.told and "average" in set_:  # of the weights that adapt: their training has none
            later["average"], set_["average"] = set_["average"], None
    online = section.trained_on == SOURCE and (not made_of or decoder_class(section.decoder)().learns_online)
    taught = section.supervision == "true"
    return Arm(
        *(section.name, cell, section.decoder, section.trained_on, set_, later),
        supervision=section.supervision if section.trained_on == SOURCE else "none",
        columns={"supervision": section.supervision, "rule": str(later.get("rule", "")), "rate": _rate_of(set_, later)},
        seeds=[
            seed for seed in (config.seeds if cell else config.seeds[:1]) if seed in (section.seeds or config.seeds)
        ],
        phases=(LEARNING if taught else ONLINE) if online else HELD_OUT,
        trained_as=made_of,
        checked=taught and online,
        role="rival" if section.trained_on == SOURCE else "ceiling",
        words=section.words,
        family=Family("network" if cell else "linear decoder", *_OWN_FAMILY),
        drawn=True,
    )


# Constants that a network's decoder is given before it meets the target; its training does not depend on them.
_ONLINE_CONSTANTS = (
    *("rule", "rule_constants", "optimizer", "optimizer_constants", "take_turns", "learn_every", "learning_rate"),
    *("group_rates", "learns"),
)
# Another architecture than the standing decoders has neither their frozen form nor their ceilings.
_OWN_FAMILY = ("", "", "", "", NETWORK.reference)


def _rate_of(*constants: Mapping[str, Any]) -> float | None:
    """The learning rate among constants, or that of a memory; None without either."""
    given = {name: value for each in constants for name, value in each.items()}
    memory_s = given.get("memory_s")
    return given.get("learning_rate", 1.0 / memory_s if memory_s else None)
