"""The config of one figure of the paper: TOML, checked by pydantic. It decides every number of that figure."""

from __future__ import annotations

import dataclasses
import itertools
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bci_adapt.errors import InputError
from bci_adapt.experiment.config import Count, Positive, Seeds, Unlike, read_toml
from bci_adapt.learning.cells.base import cell
from bci_adapt.learning.credit.base import rules
from bci_adapt.learning.optimizers import GROUPS, optimizers
from bci_adapt.paper.streams.base import Stream, stream
from bci_adapt.paper.tasks.base import Task, task

STAR = "star"  # a trace's decay that is the median |D_ii| of the trained networks
Scalar = bool | int | float | str
Sizes = Annotated[tuple[Count, ...], Field(min_length=1), Unlike]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StepsSection(_Section):
    """Lengths in bins (`bci_adapt.paper.jobs.task_streams.Steps`)."""

    pretrain: Count = 5000
    warm: Count = 500
    adapt: Count = 2500
    score: Count = 500
    held_out: Count = 1000

    @model_validator(mode="after")
    def _fits(self) -> StepsSection:
        if self.warm > self.pretrain or self.score > self.adapt:
            raise ValueError("warm must not exceed pretrain, nor score adapt")
        return self


class _Constants(_Section):
    """A section that takes constants of a variant beside its own keys."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Scalar | list[Scalar]] = Field(init=False)  # type: ignore[assignment]


class TrainingSection(_Constants):
    """How networks are trained before the change: online with a rule (and its constants) and a rate that falls along a
    half cosine, by BPTT with Adam, or not at all.
    """

    how: Literal["online", "bptt", "none"] = "online"
    rule: str = "window"
    optimizer: str = "rmsprop"
    learning_rate: Positive = 3e-4
    updates: Count = 600
    window: Count = 80
    burn_in: Annotated[int, Field(ge=0)] = 10
    input_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _known(self) -> TrainingSection:
        _pick(rules(), self.rule, "rule")(**self.__pydantic_extra__)
        _pick(optimizers(), self.optimizer, "optimizer")
        return self

    def parameters(self) -> dict[str, Any]:
        """What the task_pretrain job reads."""
        own = {name: getattr(self, name) for name in type(self).model_fields}
        return own | {"rule_constants": dict(self.__pydantic_extra__)}


class _Variant(_Constants):
    """A variant by its name, with its constants; `label` is what it is called on the page."""

    name: str
    label: str = ""

    @model_validator(mode="after")
    def _known(self) -> Self:
        self.made()
        return self

    @abstractmethod
    def made(self) -> Any:
        """The variant; `InputError` when there is none, or no such constant."""

    @property
    def constants(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__)

    @property
    def text(self) -> str:
        return self.label or self.name


class TaskSection(_Variant):
    """A task with its constants. Seeds whose frozen error is below `min_ratio` times the error before the change have
    nothing to recover: they are refused and counted. `training` replaces the figure's own.
    """

    min_ratio: Positive = 5.0
    training: TrainingSection | None = None
    n_hidden: Sizes | None = None
    cells: tuple[str, ...] | None = None

    def made(self) -> Task:
        return task(self.name, **self.__pydantic_extra__)  # type: ignore[arg-type]


class StreamSection(_Variant):
    """A stream with its constants, learned from the first bin on with labels each of `delays` bins late.

    The `earlier` bins at its beginning choose rates; the `n_bins` that follow are scored, untrained networks again.
    """

    earlier: Count
    n_bins: Count
    delays: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1), Unlike] = (0,)
    n_hidden: Sizes | None = None

    def made(self) -> Stream:
        return stream(self.name, **self.__pydantic_extra__)

    def late(self, delay: int) -> str:
        """What it is called with labels so many bins late."""
        return f"{self.text}, {delay} late" if delay else self.text


class MethodSection(_Constants):
    """Ways of learning: every rule with every optimiser listed, and with every value of a constant that is a list.

    Parameters
    ----------
    learns, group_rates : as of `bci_adapt.learning.online.Learner`.
    start : from the trained networks, or from untrained ones.
    drift : False runs the stream that never changes.
    rate : takes the place of the figure's shared rate.
    precision : ``float32`` keeps weights, states, traces and second moments in float32 between bins; the arithmetic
        inside a bin stays float64, so that only what storage loses is seen.
    tasks, cells, largest : labels of tasks or streams, cells, and the most hidden units, that it is run on.
    """

    rule: str | tuple[str, ...]
    optimizer: str | tuple[str, ...] = "rmsprop"
    label: str = ""
    learns: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    group_rates: dict[str, Positive] = Field(default_factory=dict)
    start: Literal["pretrained", "random"] = "pretrained"
    drift: bool = True
    rate: Positive | None = None
    precision: Literal["float64", "float32"] = "float64"
    tasks: tuple[str, ...] | None = None
    cells: tuple[str, ...] | None = None
    largest: Count | None = None

    @model_validator(mode="after")
    def _known(self) -> MethodSection:
        for group in (*(self.learns or ()), *self.group_rates):
            if group not in GROUPS:
                raise ValueError(f"unknown weight group {group!r} (known: {', '.join(GROUPS)})")
        self.methods()
        return self

    def methods(self) -> list[Method]:
        """Every combination."""
        lists = {name: value if isinstance(value, list) else [value] for name, value in self.__pydantic_extra__.items()}
        found = []
        for rule_name, optimizer_name in itertools.product(_listed(self.rule), _listed(self.optimizer)):
            kinds = {
                "rule": _pick(rules(), rule_name, "rule"),
                "optimizer": _pick(optimizers(), optimizer_name, "optimizer"),
            }
            owner = {}
            for name in lists:
                holders = [what for what, kind in kinds.items() if name in kind.__dataclass_fields__]
                if not holders:
                    raise ValueError(f"{name} is no constant of {rule_name} or {optimizer_name}")
                owner[name] = holders[0]
            for values in itertools.product(*lists.values()):
                given = dict(zip(lists, values, strict=True))
                parts = {what: {n: v for n, v in given.items() if owner[n] == what} for what in kinds}
                kinds["rule"](**{n: v for n, v in parts["rule"].items() if (n, v) != ("decay", STAR)})
                kinds["optimizer"](**parts["optimizer"])
                found.append(Method(self, rule_name, parts["rule"], optimizer_name, parts["optimizer"]))
        return found


@dataclasses.dataclass(frozen=True)
class Method:
    """One way of learning: a member of a section."""

    section: MethodSection
    rule: str
    rule_constants: dict[str, Any]
    optimizer: str
    optimizer_constants: dict[str, Any]

    @property
    def rule_text(self) -> str:
        """The rule with its constants: ``trace(0.95)``, ``trace(λ*)``, ``window(16)``."""
        values = [
            "λ*" if value == STAR else f"{value:g}"
            for value in self.rule_constants.values()
            if not isinstance(value, bool | str) or value == STAR
        ]
        texts = [value for value in self.rule_constants.values() if isinstance(value, str) and value != STAR]
        return f"{self.rule}({', '.join([*values, *texts])})" if values or texts else self.rule

    @property
    def optimizer_text(self) -> str:
        constants = ", ".join(f"{name} {value:g}" for name, value in self.optimizer_constants.items())
        return f"{self.optimizer}({constants})" if constants else self.optimizer

    @property
    def label(self) -> str:
        """Its name in tables, unique within a figure."""
        section = self.section
        if section.label:
            return section.label
        notes = [
            *([f"{' and '.join(section.learns)} only"] if section.learns else []),
            *[f"{group} rate ×{factor:g}" for group, factor in section.group_rates.items()],
            *([f"rate {section.rate:g}"] if section.rate else []),
            *(["from random weights"] if section.start == "random" else []),
            *([] if section.drift else ["no drift"]),
            *([section.precision] if section.precision != "float64" else []),
        ]
        return f"{self.rule_text} + {self.optimizer_text}" + (f" ({', '.join(notes)})" if notes else "")

    def parameters(self) -> dict[str, Any]:
        """What the jobs read."""
        section = self.section
        return {
            "rule": self.rule, "rule_constants": self.rule_constants, "optimizer": self.optimizer,
            "optimizer_constants": self.optimizer_constants, "group_rates": section.group_rates,
            "learns": section.learns, "start": section.start, "drift": section.drift, "precision": section.precision,
        }  # fmt: skip

    def runs_on(self, task_text: str, cell_name: str, n_hidden: int) -> bool:
        section = self.section
        return (
            (section.tasks is None or task_text in section.tasks)
            and (section.cells is None or cell_name in section.cells)
            and (section.largest is None or n_hidden <= section.largest)
        )


class TuningSection(_Section):
    """The search for a rate of its own: rates a `factor` apart, at most `max_points` for every method; 0 for none."""

    factor: Annotated[float, Field(gt=1)] = 10**0.5
    max_points: Annotated[int, Field(ge=0)] = 9


class GradientsSection(_Section):
    """What is looked at along a run of ``immediate`` + RMSprop after the change (`bci_adapt.learning.diagnostics`)."""

    rules: tuple[str, ...] = ("immediate",)
    exact_up_to: Annotated[int, Field(ge=0)] = 64
    n_bins: Count = 300
    every: Count = 5
    rate: Positive = 3e-4


class MemorySection(_Section):
    """Sizes whose arrays are counted, and up to which they are measured, for each rule."""

    sizes: Sizes
    measured_up_to: dict[str, int]
    n_inputs: Count = 10


class FigureConfig(_Section):
    """One figure."""

    figure: Annotated[str, Field(pattern=r"^[A-Za-z0-9]+$")]
    title: str
    about: str = ""
    seeds: Seeds = (0, 1, 2, 3, 4)
    tuning_seeds: Seeds = (100, 101)
    cells: Annotated[tuple[str, ...], Field(min_length=1), Unlike] = ("tanh",)
    n_hidden: Sizes = (64,)
    oracle: bool = True
    steps: StepsSection = StepsSection()
    training: TrainingSection = Field(default_factory=lambda: TrainingSection.model_validate({"steps": 8}))
    tuning: TuningSection = TuningSection()
    shared_rates: dict[str, Positive] = Field(default_factory=dict)
    tasks: tuple[TaskSection, ...] = ()
    streams: tuple[StreamSection, ...] = ()
    methods: tuple[MethodSection, ...] = ()
    gradients: GradientsSection | None = None
    memory: MemorySection | None = None
    runs: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> FigureConfig:
        for name in self.cells:
            cell(name)
        if set(self.seeds) & set(self.tuning_seeds):
            raise ValueError("seeds and tuning_seeds must be disjoint: rates are not chosen on what they are scored on")
        labels = [each.text for each in (*self.tasks, *self.streams)]
        names = [method.label for method in self.every_method()]
        for what, given in (("tasks", labels), ("methods", names)):
            if twice := [each for each in dict.fromkeys(given) if given.count(each) > 1]:
                raise ValueError(f"two {what} are called {twice[0]!r}; give each a label of its own")
        for method in self.every_method() if self.streams else ():
            section = method.section
            if section.precision != "float64" or not section.drift or STAR in method.rule_constants.values():
                raise ValueError(f"{method.label}: streams know no float32, no stream without drift, and no λ*")
        for section in self.methods:
            for name in section.tasks or ():
                if name not in labels:
                    raise ValueError(f"methods: no task is called {name!r} (known: {', '.join(labels)})")
        return self

    def every_method(self) -> list[Method]:
        return [method for section in self.methods for method in section.methods()]

    def shared_rate(self, method: Method) -> float:
        """The rate that every method with this optimiser also runs at."""
        return method.section.rate or self.shared_rates.get(method.optimizer, 1e-3)


def _listed(value: str | Sequence[str]) -> Sequence[str]:
    return (value,) if isinstance(value, str) else value


def _pick(known: Mapping[str, Any], name: str, what: str) -> Any:
    if name not in known:
        from bci_adapt.ground.catalog import unknown

        raise ValueError(unknown(name, known, what))
    return known[name]


def load(path: Path, quick: bool = False) -> FigureConfig:
    """Read and check the config of a figure; with `quick`, its section ``quick`` replaces the same keys.

    Raises `InputError` naming the file and the key.
    """
    raw = read_toml(path, "the config of a figure")
    smaller = raw.pop("quick", {})
    if quick:
        raw = merged(raw, smaller)
    try:
        return FigureConfig.model_validate(raw)
    except ValidationError as error:
        told = [
            f"{'.'.join(map(str, each['loc']))}: {each['msg'].removeprefix('Value error, ')}" for each in error.errors()
        ]
        raise InputError(f"{path}: " + "; ".join(told)) from None
    except (InputError, TypeError) as error:
        raise InputError(f"{path}: {error}") from None


def merged(whole: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`whole` with the values of `over`, section by section; lists are replaced."""
    result = dict(whole)
    for key, value in over.items():
        inside = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if inside else value
    return result


def finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
