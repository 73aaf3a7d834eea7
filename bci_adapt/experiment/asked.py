"""The arms that a config asks for: what a section ``[[arms]]`` may say, and the name and words that follow from it.

Names are built from parts (`ArmSection.name`, `DecoderSection.name`) and decide which arm is which; words are what a
reader sees and decide nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from bci_adapt.decoders.settings import require_numbers
from bci_adapt.errors import InputError
from bci_adapt.ground.catalog import unknown

if TYPE_CHECKING:
    from bci_adapt.learning.credit.base import CreditRule
    from bci_adapt.learning.optimizers import Optimizer

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]


def _unlike(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if twice := [value for value in dict.fromkeys(values) if values.count(value) > 1]:
        raise ValueError(f"{twice[0]!r} is given twice")
    return values


Unlike = AfterValidator(_unlike)
Seeds = Annotated[tuple[Seed, ...], Field(min_length=1), Unlike]
Cells = Annotated[tuple[str, ...], Field(min_length=1), Unlike]
Names = Annotated[tuple[str, ...], Unlike]

# What readers call rules, in order of presentation; {} is the main constant. Any other goes by its text, after these.
_RULE_WORDS = {
    "immediate": "immediate",
    "window": "{} steps of history",
    "trace": "trace {}",
    "snap1": "SnAp-1",
    "rflo": "RFLO",
    "eprop": "e-prop",
    "uoro": "UORO",
    "rtrl": "RTRL",
}
_FIRST_OPTIMIZERS = ("rmsprop", "sgd")  # the others come after them, by name
# Places in the order of presentation: networks that are asked for, and what comes after them.
ASKED_PLACE, LATE_PLACE, OWN_PLACE = 100, 1000, 2000


class Section(BaseModel):
    """A part of a config: unknown keys are refused, and nothing is changed after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class ArmSection(Section):
    """One way of adapting a network. Its name is built from its parts (`name`).

    `learning_rate` is the config's own where none is given, or the tuned one. `learns` names the weight groups that
    learn, all when absent; `weights` at random leave out the pretraining. With `take_turns` each label teaches one of
    the ``network.n_members``; with `learn_every` only every so-many-th label teaches at all. `supervision` is by the
    true movement, by the intention (trials must carry their target) or by the decoder's own smoothed predictions
    (pseudo).

    Beside the keys below it takes every constant that its rule or its optimiser declares: ``steps`` of ``window``,
    ``beta2`` of ``rmsprop``.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, bool | int | float | str] = Field(init=False)  # type: ignore[assignment]

    rule: str
    optimizer: str
    learning_rate: Positive | None = None
    average: Annotated[float, Field(gt=0, lt=1)] | None = None
    normaliser: Literal["causal", "fixed"] = "causal"
    supervision: Literal["true", "intention", "pseudo"] = "true"
    learns: Annotated[tuple[str, ...], Field(min_length=1), Unlike] | None = None
    weights: Literal["pretrained", "random"] = "pretrained"
    take_turns: bool = False
    learn_every: Count = 1
    cells: Cells | None = None
    seeds: Seeds | None = None

    @model_validator(mode="after")
    def _declared_constants(self) -> ArmSection:
        declared = {**_constants(self.rule_type), **_constants(self.optimizer_type)}
        for key, value in self.__pydantic_extra__.items():
            if key not in declared:
                raise ValueError(unknown(key, [*type(self).model_fields, *declared], "key"))
            self.__pydantic_extra__[key] = _of_kind(key, value, declared[key].default)
        self.rule_type(**self.rule_constants)
        self.optimizer_type(**self.optimizer_constants)
        from bci_adapt.learning.optimizers import GROUPS

        for group in self.learns or ():
            if group not in GROUPS:
                raise ValueError(unknown(group, GROUPS, "weight group"))
        able = {"readout", "output_bias"} if self.rule == "readout" else {*GROUPS}
        if self.learns and able <= {*self.learns}:
            object.__setattr__(self, "learns", None)  # all that can: as where none is named
        return self

    @property
    def rule_type(self) -> type[CreditRule]:
        from bci_adapt.learning.credit.base import rules

        return _known(self.rule, rules(), "rule")

    @property
    def optimizer_type(self) -> type[Optimizer]:
        from bci_adapt.learning.optimizers import optimizers

        return _known(self.optimizer, optimizers(), "optimizer")

    @property
    def rule_constants(self) -> dict[str, Any]:
        """The constants given that are the rule's and not at its defaults."""
        declared = _constants(self.rule_type)
        given = {key: value for key, value in self.__pydantic_extra__.items() if key in declared}
        return _changed(given, declared)

    @property
    def optimizer_constants(self) -> dict[str, Any]:
        """The constants given that are the optimiser's and not at its defaults, without the learning rate."""
        declared, own = _constants(self.rule_type), _constants(self.optimizer_type)
        return _changed({key: value for key, value in self.__pydantic_extra__.items() if key not in declared}, own)

    def _main(self) -> tuple[str, Any, dict[str, Any]]:
        """The rule's main constant and its value, even where it is not given ("" without one), and the other ones that
        differ from their defaults.
        """
        declared = _constants(self.rule_type)
        main = next((name for name, each in declared.items() if not each.kw_only), "")
        others = {key: value for key, value in self.rule_constants.items() if key != main}
        return main, self.rule_constants.get(main, declared[main].default) if main else None, others

    @property
    def rule_text(self) -> str:
        """The rule with its constants, its main one even where it is not given: ``window4``, ``trace(0.5)``."""
        main, value, others = self._main()
        if not main:
            return self.rule + _listed(others)
        return f"{self.rule}{value}{_listed(others)}" if type(value) is int else self.rule + _listed(others, value)

    @property
    def optimizer_text(self) -> str:
        """The optimiser with the constants that differ from their defaults: ``rmsprop``, ``adam(beta2=0.99)``."""
        return self.optimizer + _listed(self.optimizer_constants)

    @property
    def parts(self) -> tuple[Any, ...]:
        """What tells it from other arms. Another rate, decay of an average, seed or cell makes no other arm."""
        from bci_adapt.learning.optimizers import GROUPS

        learns = None if self.learns is None else tuple(group for group in GROUPS if group in self.learns)
        flags = self.average is not None, self.take_turns, self.learn_every
        return (
            *(self.rule_text, self.optimizer_text, *flags, self.normaliser, self.supervision, learns, self.weights),
        )

    def in_full(self, learning_rate: float, cells: Iterable[str], seeds: Iterable[int]) -> tuple[Any, ...]:
        """Everything that it says, with what it leaves out at its default; the arguments are the config's own."""
        declared = {**_constants(self.rule_type), **_constants(self.optimizer_type)}
        constants = {key: each.default for key, each in declared.items()} | self.__pydantic_extra__
        rate = learning_rate if self.learning_rate is None else self.learning_rate
        return (*self.parts, constants, rate, self.average, {*(self.cells or cells)}, {*(self.seeds or seeds)})

    @property
    def name(self) -> str:
        """``window4_rmsprop_ema``; of an arm that stands in every run, the word it goes by there."""
        if (standing := _standing_names().get(self.parts)) is not None:
            return standing
        rule, optimizer, averaged, turns, every, normaliser, supervision, learns, weights = self.parts
        parts = [rule, optimizer, *(["ema"] * averaged), *(["turns"] * turns)]
        parts += [f"every{every}"] if every > 1 else []
        parts += ["fixed"] if normaliser == "fixed" else []
        parts += [f"learns({','.join(learns)})"] if learns else []
        parts += [supervision] if supervision != "true" else []
        return "_".join([*parts, *(["random"] if weights == "random" else [])])

    @property
    def words(self) -> str:
        """``4 steps of history + RMSprop + EMA``; of an arm that stands in every run, those of its own."""
        if (standing := standing_sections().get(self.name)) is not None:
            return standing.words
        main, value, others = self._main()
        todays = others.pop("fresh_error", False)
        learns, listed = self.parts[-2], _listed(others)
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        rule = _RULE_WORDS[self.rule].format(shown) + f" {listed}".rstrip() if self.rule in _RULE_WORDS else ""
        rule = rule.replace("1 steps", "1 step") if main and shown == "1" else rule
        optimizer = self.optimizer_type.__name__ + self.optimizer_text.removeprefix(self.optimizer)
        every = "second label" if self.learn_every == 2 else f"{self.learn_every} labels"
        also = [
            *(["today's error"] if todays else []),
            *([f"{' and '.join(learns)} only"] if learns else []),
            *(["fixed normaliser"] if self.normaliser == "fixed" else []),
            *(["in turns"] if self.take_turns else []),
            *([f"every {every}"] if self.learn_every > 1 else []),
            *([f"{self.supervision} labels"] if self.supervision != "true" else []),
            *(["random weights"] if self.weights == "random" else []),
        ]
        return ", ".join([" + ".join([rule or self.rule_text, optimizer, *(["EMA"] if self.average else [])]), *also])

    @property
    def place(self) -> tuple[Any, ...]:
        """Where it comes among the arms that are asked for: by rule, optimiser, then what is added to them."""
        rules = list(_RULE_WORDS)
        rule = rules.index(self.rule) if self.rule in rules else len(rules)
        first = self.optimizer in _FIRST_OPTIMIZERS
        optimizer = _FIRST_OPTIMIZERS.index(self.optimizer) if first else len(_FIRST_OPTIMIZERS)
        _, value, _ = self._main()
        number = float(value) if isinstance(value, (int, float)) else 0.0
        _, optimizer_text, averaged, turns, every, normaliser, *rest = self.parts
        also = averaged, turns, every, normaliser != "fixed", *map(str, rest)
        return (rule, self.rule, number, self.rule_text, optimizer, optimizer_text, *also)

    @property
    def is_novel(self) -> bool:
        """Whether its rule or optimiser is one that the project's own runs do not have."""
        return self.rule not in _RULE_WORDS or self.optimizer not in _FIRST_OPTIMIZERS

    def differs_in_one_part(self, other: ArmSection) -> bool:
        """Whether it is `other` but for one part."""
        return sum(own != its for own, its in zip(self.parts, other.parts, strict=True)) == 1


class DecoderSection(Section):
    """Any decoder of `bci_adapt.decoders`, by the name of its class; the decoders of the standing arms are among them.

    Beside the keys below it takes every parameter of the decoder's constructor; what is not given comes from the config
    where that says it (lags, penalties, the sizes of networks), else from the constructor. It is trained on the source
    days, the target's adaptation stream, or both. `supervision` is none for a decoder that learns from no label.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, bool | int | float | str] = Field(init=False)  # type: ignore[assignment]

    decoder: str
    trained_on: Literal["source", "stream", "both"] = "source"
    supervision: Literal["true", "none"] = "true"
    cells: Cells | None = None
    seeds: Seeds | None = None

    @model_validator(mode="after")
    def _declared_constants(self) -> DecoderSection:
        declared = self.parameters
        own = [name for name in declared if name not in OF_THE_RUN]
        for key, value in self.__pydantic_extra__.items():
            if key in OF_THE_RUN and key in declared:
                raise ValueError(f"{key} is the run's: give it outside of the arms")
            if key not in declared:
                raise ValueError(unknown(key, [*type(self).model_fields, *own], "key"))
            self.__pydantic_extra__[key] = _of_kind(key, value, declared[key])
        if self.cells and not self.has_cells:
            raise ValueError(f"cells: the decoder {self.decoder} has no network")
        require_numbers(self.__pydantic_extra__)
        if self.seeds and "seed" not in declared:
            raise ValueError(f"seeds: the decoder {self.decoder} is the same with every seed; leave them out")
        return self

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of the decoder's constructor, with their defaults."""
        from bci_adapt.decoders.base import decoders

        return _known(self.decoder, decoders(), "decoder")().get_params()

    @property
    def has_cells(self) -> bool:
        """Whether it is a network, which is run with every cell."""
        return "cell" in self.parameters

    def beside(self, usual: Mapping[str, Any]) -> DecoderSection:
        """The same section without the parameters that are given as the config's own sections give them (`usual`)."""
        same = {key for key, value in self.__pydantic_extra__.items() if key in usual and usual[key] == value}
        return type(self)(**{key: value for key, value in dict(self).items() if key not in same}) if same else self

    @property
    def told(self) -> dict[str, Any]:
        """The parameters given, without those at the constructor's default where no config says another one."""
        given = self.__pydantic_extra__
        return {
            key: given[key]
            for key, default in self.parameters.items()
            if key in given and (key in CONFIGURED or given[key] != default)
        }

    def in_full(self, learning_rate: float, cells: Iterable[str], seeds: Iterable[int]) -> tuple[Any, ...]:
        """As `ArmSection.in_full`; a rate is one of its constants."""
        told = (self.decoder, self.told, self.trained_on, self.supervision)
        return (*told, {*(self.cells or cells)}, {*(self.seeds or seeds)})

    @property
    def name(self) -> str:
        """``stacked``, ``stacked(prior=mean)``, ``wiener_stream``; of an arm that stands in every run, its word there.

        A regression learns from no label, so that of the source days only follows the statistics.
        """
        if self.decoder == "wiener" and not self.told and self.trained_on == "source":
            return "normaliser"
        parts = [self.decoder + _listed(self.told)]
        parts += [self.trained_on] if self.trained_on != "source" else []
        return "_".join([*parts, *(["unlabelled"] if self.supervision == "none" else [])])

    @property
    def words(self) -> str:
        """``stacked (prior=mean), retrained``."""
        ways = {"stream": ["retrained"], "both": ["retrained with earlier days"]}
        labels = ["no labels"] if self.supervision == "none" else []
        name = f"{self.decoder.replace('_', ' ')} {_listed(self.told)}".rstrip()
        return ", ".join([name, *ways.get(self.trained_on, []), *labels])


# Parameters of decoders that are of a whole run.
OF_THE_RUN = ("bin_s", "label_delay_s", "seed", "cell", "outputs")
# Keys of [network] that are parameters of every network's decoder.
TRAINING = (
    *("n_members", "n_updates", "added_updates", "pretrain_rate", "added_rate", "input_dropout", "gain_jitter"),
    *("offset_jitter", "batch", "window_bins", "recency"),
)
# Parameters of decoders that are the config's where a section does not give them.
CONFIGURED = (
    *TRAINING,
    *("n_hidden", "warm_up_s", "normaliser_s", "average", "learning_rate", "memory_s", "update_every_s"),
    *("n_lags", "penalty", "n_latents", "lag_bins"),
)


def configured(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of `CONFIGURED`, from the fields of a config by name."""
    sections = config["network"], config["linear"]
    held = {name: getattr(each, name) for each in sections for name in CONFIGURED if name in type(each).model_fields}
    lag_bins = round(config["linear"].kalman_lag_s / config["bin_s"])
    own = {name: config[name] for name in ("normaliser_s", "learning_rate")}
    return held | own | {"average": None, "lag_bins": lag_bins}


# What a section is told by; the tags never stand in a file.
_NETWORK, _DECODER = "a network that adapts", "a decoder"
ASKED_TAGS: dict[str, type[Section]] = {_NETWORK: ArmSection, _DECODER: DecoderSection}


def _tag(value: Any) -> str:
    named = "decoder" in value if isinstance(value, Mapping) else isinstance(value, DecoderSection)
    return _DECODER if named else _NETWORK


Asked = Annotated[Annotated[ArmSection, Tag(_NETWORK)] | Annotated[DecoderSection, Tag(_DECODER)], Discriminator(_tag)]


class Standing(NamedTuple):
    """An adapting network that every run has: what a reader calls it, its place among the arms, and its section."""

    words: str
    place: int
    section: ArmSection


@functools.cache
def standing_sections() -> dict[str, Standing]:
    """The adapting networks that every run has, by name: what learns, from what, and from where."""
    usual: Any = {"rule": "immediate", "optimizer": "rmsprop"}
    readout: Any = usual | {"rule": "readout"}
    late, words = LATE_PLACE, "immediate + RMSprop"
    return {
        "output_bias": Standing("output bias only", 3, ArmSection(**readout, learns=("output_bias",))),
        "readout": Standing("readout only", 4, ArmSection(**readout)),
        "recurrent": Standing(
            "input and recurrent weights only", 5, ArmSection(**usual, learns=("input", "bias", "recurrent"))
        ),
        "from_random": Standing(f"{words}, from random weights", late, ArmSection(**usual, weights="random")),
        "intention": Standing(
            f"{words}, taught by the cued direction", late + 1, ArmSection(**usual, supervision="intention")
        ),
        "pseudo": Standing(f"{words}, taught by itself", late + 2, ArmSection(**usual, supervision="pseudo")),
    }


@functools.cache
def _standing_names() -> dict[tuple[Any, ...], str]:
    return {each.section.parts: name for name, each in standing_sections().items()}


def repeated(names: Iterable[str]) -> str:
    """The first name that is there twice; "" where none is."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return ""


def _known(name: str, variants: Mapping[str, Any], what: str) -> Any:
    if name not in variants:
        raise InputError(unknown(name, variants, what))
    return variants[name]


def _constants(variant: type) -> dict[str, dataclasses.Field]:
    """The constants that a rule or optimiser declares; its learning rate is a key of its own."""
    declared = dataclasses.fields(variant)  # type: ignore[arg-type]
    return {each.name: each for each in declared if each.name != "learning_rate"}


def _of_kind(key: str, value: Any, default: Any) -> Any:
    """A constant in the type of its default, refused in another one; a number may take the place of none."""
    kind = float if default is None else type(default)
    if kind not in (bool, int, float, str):
        raise ValueError(f"{key} cannot be given in a config; it stays at its default")
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise ValueError(f"{key} takes {kind.__name__}, got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{key} must be finite, got {value!r}")
    return kind(value)


def _changed(given: Mapping[str, Any], declared: Mapping[str, dataclasses.Field]) -> dict[str, Any]:
    """The constants that are not at their defaults: one that is says nothing."""
    return {key: given[key] for key, each in declared.items() if key in given and given[key] != each.default}


def _listed(constants: Mapping[str, Any], *first: Any) -> str:
    parts = [_number(value) for value in first] + [f"{key}={_number(value)}" for key, value in constants.items()]
    return f"({', '.join(parts)})" if parts else ""


def _number(value: Any) -> str:
    """A constant in words: a number in as few digits as give it again."""
    if type(value) is not float:
        return str(value)
    return short if float(short := f"{value:g}") == value else repr(value)
