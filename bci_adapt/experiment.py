"""A cross-session experiment: a config (TOML, checked by pydantic) → pairs of sessions → jobs → a run folder."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import platform
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from bci_adapt import __version__
from bci_adapt.catalog import unknown
from bci_adapt.engine import Job, Outcome, Progress, execute
from bci_adapt.errors import InputError
from bci_adapt.quality import Thresholds
from bci_adapt.sources.base import Source
from bci_adapt.storage import cache_root, write_text

if TYPE_CHECKING:
    from bci_adapt.cells.base import Network
    from bci_adapt.credit.base import CreditRule
    from bci_adapt.optimizers import Optimizer

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
LEAST_LABELS_S = 1.0


def _unlike(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if twice := [value for value in dict.fromkeys(values) if values.count(value) > 1]:
        raise ValueError(f"{twice[0]!r} is given twice")
    return values


Unlike = AfterValidator(_unlike)
Seeds = Annotated[tuple[Seed, ...], Field(min_length=1), Unlike]
Cells = Annotated[tuple[str, ...], Field(min_length=1), Unlike]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class SimulatedSource(_Section):
    """Simulated recordings, written as NWB files in the layout of DANDI 000688."""

    kind: Literal["simulated"]
    days: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 30, 210)
    duration_s: Positive = 480.0
    n_units: Count = 60
    task: Literal["centre_out", "random_target"] = "centre_out"
    severity: NotNegative = 1.0
    seed: Seed = 0


class FolderSource(_Section):
    """A folder of NWB files; `path` may be given by ``--data`` instead."""

    kind: Literal["folder"]
    path: str = ""


class DandiSource(_Section):
    """Recordings of a dandiset, fetched from the DANDI archive and pinned in ``sessions.lock.toml`` beside the config.

    `paths` are asset paths or globs of them (any of them is meant); `subject` and `session` as in ``bci-adapt fetch``.
    """

    kind: Literal["dandi"]
    dandiset: Annotated[str, Field(pattern=r"^\d{6}$")]
    version: str | None = None
    paths: tuple[str, ...] = ()
    subject: str | None = None
    session: str | None = None


class ChannelSection(_Section):
    """What makes a channel of one session the same as one of another (`bci_adapt.channels`), and which are left out.

    `remove` names checks of ``bci-adapt qc``: channels that they flag on the *source* day are taken out of the source
    and its targets; a target's own flags would need the whole of a day that is not over yet.
    """

    policy: Literal["electrode", "unit", "pool", "none"] | None = None
    missing: Literal["refuse", "drop", "zero"] = "refuse"
    remove: Annotated[tuple[str, ...], Unlike] = ()

    @model_validator(mode="after")
    def _known_checks(self) -> ChannelSection:
        from bci_adapt.qc import CHANNEL_CHECKS

        for name in self.remove:
            if name not in CHANNEL_CHECKS:
                raise ValueError(unknown(name, CHANNEL_CHECKS, "check"))
        return self


class PairSection(_Section):
    """One source day and the later days it is tried on: session numbers in chronological order (from 1), or session
    ids, or any part of an id that only one session has.
    """

    source: int | str
    targets: Annotated[tuple[int | str, ...], Field(min_length=1), Unlike]


class NetworkSection(_Section):
    """The networks that are compared, and how they are trained before they adapt."""

    cells: Cells = ("tanh", "gru")
    n_hidden: Count = 64
    n_updates: Count = 800
    oracle_updates: Count = 800
    input_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3
    warm_up_s: NotNegative = 60.0


class LinearSection(_Section):
    """The linear decoders: lags, ridge penalty per bin, and the memory of recursive least squares."""

    n_lags: Count = 10
    penalty: NotNegative = 0.05
    memory_s: Positive = 1000.0
    update_every_s: Positive = 0.5


class ArmSection(_Section):
    """One way of adapting a network. Its name is built from what it is (`arm_name`).

    Beside the keys below it takes every constant that its rule or its optimiser declares: ``steps`` of ``window``,
    ``beta2`` of ``rmsprop``.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, bool | int | float | str] = Field(init=False)  # type: ignore[assignment]

    rule: str
    optimizer: str
    learning_rate: Positive
    average: Annotated[float, Field(gt=0, lt=1)] | None = None
    normaliser: Literal["causal", "fixed"] = "causal"
    cells: Cells | None = None
    seeds: Seeds | None = None

    @model_validator(mode="after")
    def _declared_constants(self) -> ArmSection:
        declared = {**_constants(self.rule_type), **_constants(self.optimizer_type)}
        for key, value in self.__pydantic_extra__.items():
            if key not in declared:
                raise ValueError(unknown(key, [*type(self).model_fields, *declared], "key"))
            default = declared[key].default
            kind = float if default is None else type(default)
            if kind not in (bool, int, float, str):
                raise ValueError(f"{key} cannot be given in a config; it stays at its default")
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise ValueError(f"{key} takes {kind.__name__}, got {value!r}")
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{key} must be finite, got {value!r}")
        self.rule_type(**self.rule_constants)
        self.optimizer_type(**self.optimizer_constants)
        return self

    @property
    def rule_type(self) -> type[CreditRule]:
        from bci_adapt.credit.base import rules

        return _known(self.rule, rules(), "rule")

    @property
    def optimizer_type(self) -> type[Optimizer]:
        from bci_adapt.optimizers import optimizers

        return _known(self.optimizer, optimizers(), "optimizer")

    @property
    def rule_constants(self) -> dict[str, Any]:
        """The constants given that are the rule's."""
        declared = _constants(self.rule_type)
        return {key: value for key, value in self.__pydantic_extra__.items() if key in declared}

    @property
    def optimizer_constants(self) -> dict[str, Any]:
        """The constants given that are the optimiser's, without the learning rate."""
        declared = _constants(self.rule_type)
        return {key: value for key, value in self.__pydantic_extra__.items() if key not in declared}

    @property
    def rule_text(self) -> str:
        """The rule with its constants, its main one even where it is not given: ``window4``, ``trace(0.5)``."""
        main = next((name for name, each in _constants(self.rule_type).items() if not each.kw_only), None)
        others = {key: value for key, value in self.rule_constants.items() if key != main}
        if main is None:
            return self.rule + _listed(others)
        value = self.rule_constants.get(main, _constants(self.rule_type)[main].default)
        return f"{self.rule}{value}{_listed(others)}" if type(value) is int else self.rule + _listed(others, value)

    @property
    def optimizer_text(self) -> str:
        """The optimiser with the constants given: ``rmsprop``, ``adam(beta2=0.99)``."""
        return self.optimizer + _listed(self.optimizer_constants)


def _known(name: str, variants: Mapping[str, Any], what: str) -> Any:
    if name not in variants:
        raise InputError(unknown(name, variants, what))
    return variants[name]


def _constants(variant: type) -> dict[str, dataclasses.Field]:
    """The constants that a rule or optimiser declares; its learning rate is a key of its own."""
    declared = dataclasses.fields(variant)  # type: ignore[arg-type]
    return {each.name: each for each in declared if each.name != "learning_rate"}


def _listed(constants: Mapping[str, Any], *first: Any) -> str:
    parts = [f"{value:g}" if type(value) is float else str(value) for value in first]
    parts += [f"{key}={value:g}" if type(value) is float else f"{key}={value}" for key, value in constants.items()]
    return f"({', '.join(parts)})" if parts else ""


class ThresholdSection(_Section):
    """Rules for faulty recordings (`bci_adapt.quality`)."""

    silent_s: NotNegative = Thresholds.silent_s
    still_s: NotNegative = Thresholds.still_s
    still_extent_cm: NotNegative = Thresholds.still_extent_cm
    max_speed_cm_s: NotNegative = Thresholds.max_speed_cm_s
    speed_neighbours: Annotated[int, Field(ge=0)] = Thresholds.speed_neighbours
    min_agreement: NotNegative = Thresholds.min_agreement


class Config(_Section):
    """Everything that decides an experiment's numbers."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
    variable: Annotated[str, Field(pattern=r"^[A-Za-z]\w*$")] = "velocity"
    bin_s: Positive = 0.05
    stream_s: Positive = 600.0
    min_held_out_s: Positive = 300.0
    label_delay_s: NotNegative = 0.5
    normaliser_s: Positive = 300.0
    seeds: Seeds = (0, 1, 2)
    rates_tuned: Literal[False] = False
    layout: str | None = None
    spikes: str | None = None
    kinematics: tuple[str, ...] = ()
    per: Literal["electrode", "unit"] | None = None
    source: Annotated[SimulatedSource | FolderSource | DandiSource, Field(discriminator="kind")]
    pairs: Annotated[tuple[PairSection, ...], Field(min_length=1)]
    network: NetworkSection = NetworkSection()
    linear: LinearSection = LinearSection()
    channels: ChannelSection = ChannelSection()
    thresholds: ThresholdSection = ThresholdSection()
    arms: tuple[ArmSection, ...]

    @model_validator(mode="after")
    def _known_variants(self) -> Config:
        from bci_adapt.cells.base import Network, cell

        for name in self.network.cells:
            cell(name)
        for arm in self.arms:
            for name in arm.cells or self.network.cells:
                arm.rule_type(**arm.rule_constants).check(Network(cell(name), 1, 1, 1))
            for name in arm.cells or ():
                if name not in self.network.cells:
                    raise ValueError(f"arm {arm_name(arm)}: cell {name!r} is not among network.cells")
            for seed in arm.seeds or ():
                if seed not in self.seeds:
                    raise ValueError(f"arm {arm_name(arm)}: seed {seed} is not among seeds")
        names = [arm_name(arm) for arm in self.arms]
        if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise ValueError(
                f"two arms are {twice[0]!r}: arms differ in rule, optimiser, constants, normaliser, or being averaged; "
                "another rate, decay of an average, seed or cell goes into another config"
            )
        return self


def arm_name(arm: ArmSection) -> str:
    """The name of an arm, from its parts: that of `bci_adapt.results.ARMS` (``window4_rmsprop``, ``readout``) for the
    arms of the published runs, else its parts in words (``window2 + Adam + EMA``).
    """
    from bci_adapt.results import ARMS

    parts = [arm.rule_text, arm.optimizer_text, *(["ema"] if arm.average else [])]
    key = "_".join(parts if parts[:2] != ["readout", "rmsprop"] else ["readout", *parts[2:]])
    key += "_fixed" if arm.normaliser == "fixed" else ""
    if key in ARMS:
        return key
    optimizer = arm.optimizer_type.__name__ + _listed(arm.optimizer_constants)
    words = [arm.rule_text, optimizer, *(["EMA"] if arm.average else [])]
    return " + ".join(words) + (", fixed normaliser" if arm.normaliser == "fixed" else "")


# -------------------------------------------------------------------------------------------- reading a config


def load_config(path: Path | str, settings: Sequence[str] = (), data: Path | str | None = None) -> Config:
    """Read and check a TOML config.

    Parameters
    ----------
    settings : ``key=value`` overrides, the key dotted (``network.n_hidden=32``), the value TOML or plain text.
        ``targets`` by itself is a comma-separated list that replaces the targets of every pair.
    data : folder of NWB files that takes the place of the config's source.

    Raises
    ------
    InputError
        naming the file and key: unreadable, not TOML, an unknown key (with the nearest known one), an impossible value.
    """
    path = Path(path)
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: expected a TOML config, it cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid TOML: {error}") from error
    for setting in settings:
        _override(raw, setting)
    if data is not None:
        raw["source"] = {"kind": "folder", "path": str(data)}
    return parse_config(raw, str(path))


def parse_config(raw: dict[str, Any], origin: str) -> Config:
    """Check a config that was read from `origin`; `InputError` as in `load_config`."""
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise InputError(f"{origin}: " + "; ".join(_explain(problem) for problem in error.errors())) from None


def _override(raw: dict[str, Any], setting: str) -> None:
    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise InputError(f"--set takes key=value, got {setting!r}")
    if key == "targets":
        targets = [int(part) if part.isdigit() and len(part) < 4 else part for part in text.split(",") if part]
        raw["pairs"] = [{**pair, "targets": targets} for pair in raw.get("pairs", [])]
        return
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *sections, last = key.split(".")
    for section in sections:
        raw = raw.setdefault(section, {})
        if not isinstance(raw, dict):
            raise InputError(f"--set {key}: {section} is a list or a value, not a section; edit the config file")
    raw[last] = value


def _explain(problem: Any) -> str:
    where = [str(part) for part in problem["loc"] if part not in ("simulated", "folder", "dandi")]
    key = ".".join(where)
    if problem["type"] == "extra_forbidden":
        known = _keys_at(problem["loc"][:-1])
        close = difflib.get_close_matches(where[-1], known, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else f" (known: {', '.join(known)})"
        return f"unknown key {key!r}{hint}"
    if problem["type"] == "missing":
        return f"key {key!r} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    given = problem.get("input")
    given = list(given) if isinstance(given, tuple) else given
    shown = f", got {given!r}" if isinstance(given, str | int | float | list) and len(repr(given)) < 80 else ""
    return f"{key}: {message}{shown}" if key else message


def _keys_at(location: Sequence[Any]) -> list[str]:
    sections: dict[str, type[_Section]] = {
        "pairs": PairSection, "network": NetworkSection, "linear": LinearSection, "arms": ArmSection,
        "thresholds": ThresholdSection, "simulated": SimulatedSource, "folder": FolderSource,
        "dandi": DandiSource, "channels": ChannelSection,
    }  # fmt: skip
    named = [sections[part] for part in location if part in sections]
    return list((named[-1] if named else Config).model_fields)


# ------------------------------------------------------------------------------------------------- pairs


@dataclass(frozen=True)
class Pair:
    """A source session and a later target session, by id."""

    source: str
    target: str


def choose_pairs(config: Config, session_ids: Sequence[str]) -> list[Pair]:
    """The pairs of a config over sessions in chronological order; a target must be later than its source."""
    pairs = []
    for section in config.pairs:
        source = _find_session(section.source, session_ids)
        for name in section.targets:
            target = _find_session(name, session_ids)
            if session_ids.index(target) <= session_ids.index(source):
                raise InputError(f"pairs: target {target} is not later than its source {source}")
            pairs.append(Pair(source, target))
    return list(dict.fromkeys(pairs))


def _find_session(name: int | str, session_ids: Sequence[str]) -> str:
    if isinstance(name, int):
        if not 1 <= name <= len(session_ids):
            raise InputError(f"pairs: session number {name} is asked for, there are {len(session_ids)}")
        return session_ids[name - 1]
    found = [name] if name in session_ids else [each for each in session_ids if name in each]
    if len(found) != 1:
        what = f"{len(found)} sessions match" if found else "no session matches"
        raise InputError(f"pairs: {what} {name!r}; there are: {', '.join(session_ids)}")
    return found[0]


def unscorable(session: Any, config: Config) -> str:
    """Why a target session gives no score; empty where it does.

    A held-out part needs `min_held_out_s` seconds of usable labels, and at least a tenth of the stream's variance: R²
    against a cursor that hardly moves is a division by nothing.
    """
    import numpy as np

    from bci_adapt.jobs.arrays import session_arrays
    from bci_adapt.sessions import split

    try:
        split(session, config.stream_s, config.min_held_out_s)
    except InputError as error:
        return str(error)
    arrays = session_arrays(session, config.variable)
    n_stream = arrays.n_stream(config.stream_s)
    y = arrays.y
    usable_s = [config.bin_s * np.isfinite(part).all(axis=1).sum() for part in (y[:n_stream], y[n_stream:])]
    if usable_s[1] < config.min_held_out_s:
        return (
            f"{usable_s[1]:.1f} s of usable {config.variable} labels are held out, "
            f"at least {config.min_held_out_s:g} s are needed"
        )
    if usable_s[0] < LEAST_LABELS_S:
        return f"no usable {config.variable} labels in the adaptation stream"
    early, late = (float(np.nanvar(part, axis=0).sum()) for part in (y[:n_stream], y[n_stream:]))
    if late < 0.1 * early:
        return f"held-out {config.variable} variance {late:.3g} is below a tenth of the stream's {early:.3g}"
    return ""


def require_source(session: Any, config: Config) -> None:
    """Raise `InputError` unless a source session has labels a decoder can learn from: a second of them, and movement in
    every axis.
    """
    import numpy as np

    from bci_adapt.jobs.arrays import session_arrays

    arrays = session_arrays(session, config.variable)
    usable = np.isfinite(arrays.y).all(axis=1)
    usable_s, wrong = config.bin_s * usable.sum(), ""
    if usable_s < LEAST_LABELS_S:
        wrong = f"{usable_s:.1f} s of usable {config.variable} labels, at least {LEAST_LABELS_S:g} s are needed"
    elif still := [axis for axis, y in zip(arrays.axes, arrays.y[usable].T, strict=True) if np.ptp(y) == 0]:
        wrong = f"{config.variable} that never changes in axis {', '.join(still)}"
    if wrong:
        raise InputError(f"{arrays.session_id}: this source session has {wrong}; leave it out of pairs")


# -------------------------------------------------------------------------------------------------- jobs


@dataclass
class _Arms:
    """What is run on one pair: a list of (adapt job, columns, phases)."""

    jobs: dict[str, Job] = field(default_factory=dict)
    entries: list[dict[str, Any]] = field(default_factory=list)

    def add(self, job: Job, columns: dict[str, Any], phases: Sequence[str] = ("online", "held_out")) -> None:
        name = f"arm{len(self.entries):03d}"
        self.jobs[name] = job
        self.entries.append({"input": name, "columns": columns, "phases": list(phases)})


def _prepare_job(config: Config, recording: Path, provenance: Mapping[str, str]) -> Job:
    return Job(
        kind="prepare",
        function="bci_adapt.jobs.prepare:run",
        stem=recording.stem,
        folder="sessions",
        suffix=".nc",
        parameters={
            "bin_s": config.bin_s,
            "layout": config.layout,
            "spikes": config.spikes,
            "targets": config.kinematics,
            "per": config.per,
            "provenance": dict(provenance),
            "thresholds": config.thresholds.model_dump(),
        },
        inputs={"recording": recording},
        modules=("bci_adapt.layouts",),
        label=f"prepare {recording.name}",
        cost=1.0,
    )


@dataclass(frozen=True)
class Channels:
    """The channels on which a source and its targets meet, by `policy`, and those `removed` by `rules` of quality."""

    names: list[str]
    policy: str
    removed: list[str]
    rules: tuple[str, ...] = ()

    def job(self, prepared: Job, session: Any) -> Job:
        """The job that brings a prepared session to these channels: `prepared` itself where it has them already."""
        from bci_adapt.channels import policy_of

        if session["channel"].values.tolist() == self.names and self.policy == policy_of(session) != "pool":
            return prepared
        return Job(
            kind="select",
            function="bci_adapt.jobs.select:run",
            stem=f"{prepared.stem}_channels",
            folder="sessions",
            suffix=".nc",
            parameters={
                "channels": self.names,
                "policy": self.policy,
                "removed": self.removed,
                "reason": f"flagged on the source session: {', '.join(self.rules)}",
            },
            inputs={"session": prepared},
            label=f"channels of {prepared.stem}",
            cost=0.5,
        )


def meet(config: Config, source: str, targets: Sequence[str], sessions: Mapping[str, Any]) -> Channels:
    """The channels of a source session and its targets under the config's policy; `InputError` where they do not meet.

    What `channels.remove` flags on the source is not among them, with any rule for missing channels.
    """
    from bci_adapt.channels import common, policy_of, under
    from bci_adapt.qc import flagged_channels, qc
    from bci_adapt.sessions import require_one_subject

    _require_one_meaning(config.variable, [sessions[name] for name in (source, *targets)])
    section = config.channels
    policy = section.policy or policy_of(sessions[source])
    ids = [source, *targets]
    require_one_subject([sessions[name] for name in ids])
    channels = [under(sessions[name], policy)["channel"].values.tolist() for name in ids]
    removed = flagged_channels(qc(under(sessions[source], policy)), section.remove) if section.remove else []
    names = [name for name in common(channels, ids, section.missing) if name not in set(removed)]
    if len(names) < 2:
        raise InputError(f"{source}: channels.remove takes out {len(removed)} channels and leaves {len(names)}")
    return Channels(names, policy, removed, section.remove)


def _require_one_meaning(variable: str, sessions: Sequence[Any]) -> None:
    """Raise `InputError` unless all sessions hold `variable`, with the same axes in the same unit, and counts."""
    from bci_adapt.sessions import labels_of

    meanings: dict[tuple[tuple[str, ...], str], str] = {}
    for session in sessions:
        labels_of(session, variable)
        axes = tuple(map(str, session[session[variable].dims[1]].values))
        meanings.setdefault((axes, str(session[variable].attrs["units"])), str(session.attrs["session_id"]))
        if session["counts"].attrs["units"] != "count":
            raise InputError(
                f"{session.attrs['session_id']}: holds the power of a band ({session['counts'].attrs['units']}); the "
                "decoders take the square root of counts, so that its scale would decide the score: not run"
            )
    if len(meanings) > 1:
        listed = "; ".join(f"{name}: {', '.join(axes)} in {unit!r}" for (axes, unit), name in meanings.items())
        raise InputError(f"{variable} does not mean the same in these sessions ({listed}): axes and unit must agree")


def _met(source: str, found: Channels, sessions: Mapping[str, Any], targets: Sequence[str]) -> dict[str, Any]:
    """What the manifest says of the channels of a source and its targets."""
    from bci_adapt.channels import under

    entry: dict[str, Any] = {"source": source, "policy": found.policy, "n_channels": len(found.names)}
    entry |= {"removed": found.removed, "targets": {}}
    wanted = set(found.names)
    for name in targets:
        have = under(sessions[name], found.policy)["channel"].values.tolist()
        zeroed = [each for each in found.names if each not in set(have)]
        left_out = [each for each in have if each not in wanted and each not in set(found.removed)]
        entry["targets"][name] = {"zeroed": zeroed, "left_out": left_out}
    return entry


class _Builder:
    """Builds the jobs of an experiment from sessions that have met on their channels."""

    def __init__(
        self, config: Config, sessions: dict[str, Job], about: dict[str, dict[str, Any]], known: dict[str, Job]
    ):
        self.config, self.sessions, self.about, self.known = config, sessions, about, known

    def fit(self, decoder: str, session_id: str, constants: dict[str, Any], stream_only: bool) -> Job:
        """The job that fits a decoder on one session (on what an adapting one would see of it, with `stream_only`)."""
        config = self.config
        network = decoder == "online_rnn"
        what = f"{constants['cell']} seed {constants['seed']}" if network else decoder
        job = Job(
            kind="pretrain",
            function="bci_adapt.jobs.pretrain:run",
            stem=f"{what}_{session_id}{'_stream' if stream_only else ''}",
            folder="decoders",
            suffix=".npz",
            parameters={
                "decoder": decoder,
                "constants": constants,
                "variable": config.variable,
                "stream_s": config.stream_s if stream_only else None,
            },
            inputs={"session": self.sessions[session_id]},
            modules=(*_modules(decoder), *(_cell_modules(constants["cell"]) if network else ())),
            label=f"{'retrain' if stream_only else 'pretrain'} {what} on {session_id}",
            cost=8e-4 * self._n_weights(session_id, constants["cell"]) if network else 1.0,
        )
        return self.known.setdefault(job.key, job)

    def _network(self, session_id: str, cell_name: str) -> Network:
        from bci_adapt.cells.base import Network, cell

        return Network(cell(cell_name), self.about[session_id]["n_channels"], self.config.network.n_hidden, 1)

    def _n_weights(self, session_id: str, cell_name: str) -> int:
        network = self._network(session_id, cell_name)
        return network.n_hidden * network.row_width

    def _learning_cost(self, session_id: str, cell_name: str, arm: ArmSection) -> float:
        """Expected seconds of an adapting job: proportional to the weights, read once for each bin of history, and to
        what the rule carries from bin to bin.
        """
        rule = arm.rule_type(**arm.rule_constants)
        carried = math.prod(rule.memory_shape(self._network(session_id, cell_name)))
        n_values = self._n_weights(session_id, cell_name) * (1 + rule.history) + carried
        return 3e-5 * n_values * self.config.stream_s / 600.0

    def kernel(self, cell: str, rule: str, optimizer: str, clips: bool = False) -> Job:
        """The job that compiles one loop. Constants do not change it, but for gradients that are clipped."""
        job = Job(
            kind="compile",
            function="bci_adapt.jobs.compile:run",
            stem=f"loop_{cell}_{rule}_{optimizer}{'_clipped' * clips}",
            folder="results",
            suffix=".json",
            parameters={"cell": cell, "rule": rule, "optimizer": optimizer, "clips": clips},
            modules=(*_cell_modules(cell), *_rule_modules(rule)),
            label=f"compile {cell}, {rule}, {optimizer}",
            cost=6.0,
        )
        return self.known.setdefault(job.key, job)

    def adapt(
        self,
        decoder: Job,
        pair: Pair,
        constants: dict[str, Any],
        learns: bool,
        permutation: int | None,
        cost: float,
        what: str,
    ) -> Job:
        """The job that runs a decoder through the pair's target; one job where sources share it (a retrained one)."""
        from bci_adapt.decoders.online_rnn import OnlineDecoder

        config = self.config
        modules = set(_modules(decoder.parameters["decoder"]))
        kernels = {}
        if cell := decoder.parameters["constants"].get("cell"):
            modules |= set(_cell_modules(cell)) | set(_rule_modules("readout"))
            kernels["predicting"] = self.kernel(cell, "readout", "rmsprop")
            learner = OnlineDecoder(**decoder.parameters["constants"]).set_params(**constants)
            modules |= set(_rule_modules(learner.rule))
            clips = bool((learner.optimizer_constants or {}).get("clip"))
            kernels["learning"] = self.kernel(cell, learner.rule, learner.optimizer, clips)
        job = Job(
            kind="adapt",
            function="bci_adapt.jobs.adapt:run",
            stem=f"{what}_{pair.target}",
            folder="results",
            suffix=".npz",
            parameters={
                "variable": config.variable,
                "stream_s": config.stream_s,
                "constants": constants,
                "learns": learns,
                "permutation": permutation,
            },
            inputs={"decoder": decoder, "target": self.sessions[pair.target], **kernels},
            modules=tuple(sorted(modules)),
            label=f"{what} from {pair.source} on {pair.target}",
            cost=cost,
        )
        return self.known.setdefault(job.key, job)

    # -- arms of one pair ----------------------------------------------------------------------------------------

    def pair(self, pair: Pair, excerpt: bool) -> Job:
        """The score job of one pair, which needs every arm's job."""
        config, arms = self.config, _Arms()
        for cell in config.network.cells:
            for seed in config.seeds:
                self._network_arms(arms, pair, cell, seed)
        self._linear_arms(arms, pair)
        return Job(
            kind="score",
            function="bci_adapt.jobs.score:run",
            stem=f"scores_{pair.source}_{pair.target}",
            folder="results",
            suffix=".json",
            parameters={
                "variable": config.variable,
                "stream_s": config.stream_s,
                "arms": arms.entries,
                "excerpt": excerpt,
                "first_seed": config.seeds[0],
            },
            inputs={"target": self.sessions[pair.target], **arms.jobs},
            label=f"score {pair.source} → {pair.target}",
        )

    def _columns(self, pair: Pair, arm: str, **given: Any) -> dict[str, Any]:
        config = self.config
        dates = [self.about[name]["date"] for name in (pair.source, pair.target)]
        columns = {
            "source": pair.source, "target": pair.target, "source_date": dates[0], "target_date": dates[1],
            "day_gap": _day_gap(*dates), "variable": config.variable, "arm": arm, "cell": "", "n_hidden": 0,
            "rule": "", "optimizer": "", "average": "", "supervision": "none", "delay_s": config.label_delay_s,
            "label_fraction": 1.0, "budget_s": 0.0, "rate": None, "seed": config.seeds[0], "canary": False,
        }  # fmt: skip
        return columns | given

    def _network_arms(self, arms: _Arms, pair: Pair, cell: str, seed: int) -> None:
        config = self.config
        network = config.network
        own = {"cell": cell, "n_hidden": network.n_hidden, "seed": seed}
        constants = own | {"bin_s": config.bin_s, "label_delay_s": config.label_delay_s, "warm_up_s": network.warm_up_s}
        constants |= {"normaliser_s": config.normaliser_s, "average": None, "input_dropout": network.input_dropout}
        trained = self.fit("online_rnn", pair.source, constants | {"n_updates": network.n_updates}, stream_only=False)
        base = own | {"decoder": "online_rnn"}

        def add(
            name: str,
            decoder: Job,
            changes: dict,
            columns: dict,
            *,
            permutations: Sequence[int | None] = (),
            cost: float = 0.2,
            phases: Sequence[str] = ("online", "held_out"),
        ) -> None:
            """An arm that learns once for each of `permutations`, or one that does not learn at all."""
            learns = bool(permutations)
            for permutation in permutations or (None,):
                canary = permutation is not None
                label = f"{'canary:' if canary else ''}{name}"
                job = self.adapt(decoder, pair, changes, learns, permutation, cost, f"{label} {cell} seed {seed}")
                budget = config.stream_s if learns else 0.0
                supervision = {"supervision": "true" if learns else "none", "budget_s": budget}
                row = base | supervision | {"canary": canary, "normaliser": "causal"} | columns
                arms.add(job, self._columns(pair, label, **row), phases)

        # Nothing learns in these arms; the cheapest rule spares them an optimiser to warm.
        still = {"rule": "readout"}
        add("frozen", trained, still | {"normaliser_s": None}, {"normaliser": "fixed"})
        add("normaliser", trained, still, {})
        for arm in config.arms:
            seeds = arm.seeds or config.seeds
            if cell not in (arm.cells or network.cells) or seed not in seeds:
                continue
            changes: dict[str, Any] = {
                "rule": arm.rule,
                "rule_constants": arm.rule_constants or None,
                "optimizer": arm.optimizer,
                "optimizer_constants": arm.optimizer_constants or None,
                "learning_rate": arm.learning_rate,
                "average": arm.average,
            }
            changes |= {"normaliser_s": None} if arm.normaliser == "fixed" else {}
            columns = {
                "rule": arm.rule_text,
                "optimizer": arm.optimizer_text,
                "rate": arm.learning_rate,
                "average": "" if arm.average is None else f"ema {arm.average}",
                "normaliser": arm.normaliser,
            }
            cost = self._learning_cost(pair.target, cell, arm)
            permutations = (None, seed) if seed == seeds[0] else (None,)
            add(arm_name(arm), trained, changes, columns, permutations=permutations, cost=cost)
        retrained = self.fit(
            "online_rnn", pair.target, constants | {"n_updates": network.oracle_updates}, stream_only=True
        )
        oracle = {"supervision": "true", "budget_s": config.stream_s, "rule": "bptt", "optimizer": "adam"}
        add("network_oracle", retrained, still, oracle, phases=("held_out",))

    def _linear_arms(self, arms: _Arms, pair: Pair) -> None:
        config, linear = self.config, self.config.linear
        shared = {
            "bin_s": config.bin_s,
            "n_lags": linear.n_lags,
            "penalty": linear.penalty,
            "normaliser_s": config.normaliser_s,
        }
        wiener = self.fit("wiener", pair.source, shared, stream_only=False)
        ridge = self.fit("wiener", pair.target, shared, stream_only=True)
        late = {"label_delay_s": config.label_delay_s}
        rls = self.fit(
            "rls",
            pair.source,
            shared | late | {"memory_s": linear.memory_s, "update_every_s": linear.update_every_s},
            stream_only=False,
        )
        persistence = self.fit("persistence", pair.source, {"bin_s": config.bin_s} | late, stream_only=False)
        labelled = {"supervision": "true", "budget_s": config.stream_s}
        both, held_out = ("online", "held_out"), ("held_out",)
        for name, fitted, changes, columns, learns, phases in [
            ("frozen", wiener, {"normaliser_s": None}, {"decoder": "wiener", "normaliser": "fixed"}, False, both),
            ("normaliser", wiener, {}, {"decoder": "wiener"}, False, both),
            ("rls", rls, {}, labelled | {"decoder": "rls", "rule": "rls", "rate": 1.0 / linear.memory_s}, True, both),
            (
                "canary:rls",
                rls,
                {},
                labelled | {"decoder": "rls", "rule": "rls", "rate": 1.0 / linear.memory_s, "canary": True},
                True,
                both,
            ),
            ("ridge_oracle", ridge, {}, labelled | {"decoder": "wiener", "rule": "ridge"}, False, held_out),
            ("persistence", persistence, {}, labelled | {"decoder": "persistence", "normaliser": ""}, True, both),
        ]:
            permutation = config.seeds[0] if name.startswith("canary:") else None
            cost = 8.0 * config.stream_s / 600.0 if learns and name != "persistence" else 0.3
            job = self.adapt(fitted, pair, changes, learns, permutation, cost, name)
            arms.add(job, self._columns(pair, name, **({"normaliser": "causal"} | columns)), phases)


def _modules(decoder: str) -> tuple[str, ...]:
    from bci_adapt.decoders.base import decoder_class

    return (decoder_class(decoder).__module__,)


def _cell_modules(name: str) -> tuple[str, ...]:
    from bci_adapt.cells.base import cell

    return (cell(name).make.__module__,)


def _rule_modules(name: str) -> tuple[str, ...]:
    from bci_adapt.credit.base import rules

    return (rules()[name].__module__,)


def _day_gap(source: str, target: str) -> float | None:
    try:
        return (datetime.fromisoformat(target) - datetime.fromisoformat(source)).total_seconds() / 86400.0
    except ValueError:
        return None


# --------------------------------------------------------------------------------------------------- run


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its manifest, and what was done for it."""

    folder: Path
    manifest: dict[str, Any]
    executed: int
    reused: int


def open_source(
    config: Config,
    lock: Path | None = None,
    offline: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Source:
    """The source of recordings that a config names; nothing is read or written yet.

    Of a dandiset, `lock` is the file that pins what is read, and `offline` keeps to what is in the cache.
    """
    section = config.source
    if isinstance(section, DandiSource):
        from bci_adapt.sources.dandi import Dandi

        def fetched(path: str, done: int, size: int) -> None:
            say(f"{path}: {done / 1e6:.0f} of {size / 1e6:.0f} MB")

        return Dandi(**section.model_dump(exclude={"kind"}), lock=lock, offline=offline, progress=fetched)
    if isinstance(section, SimulatedSource):
        from bci_adapt.sources.simulated import Simulated

        return Simulated(cache_root() / "raw" / "simulated", **section.model_dump(exclude={"kind"}))
    from bci_adapt.sources.folder import Folder

    if not section.path:
        raise InputError("source.path: this config needs a folder of recordings; name it with --data FOLDER")
    return Folder(section.path)


def run_experiment(
    config: Config,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda text: None,
    command: str = "",
    lock: Path | None = None,
    offline: bool = False,
) -> Run:
    """Run what is not there yet and write ``runs/<name>-<hash>/`` with config, manifest, results and report.

    Raises
    ------
    InputError
        when a recording cannot be used, the pairs cannot be formed, or sessions of a pair do not meet on channels.
    """
    from bci_adapt.sessions import read_session

    say("finding sessions")
    source = open_source(config, lock, offline, say)
    session_ids = [str(name) for name in source.list().index]
    pairs = choose_pairs(config, session_ids)
    needed = [name for name in session_ids if any(name in (pair.source, pair.target) for pair in pairs)]
    prepare = {}
    for name in needed:
        say(f"fetching {name}")
        prepare[name] = _prepare_job(config, source.fetch(name), source.provenance(name))
    prepared = execute(prepare.values(), workers=workers, scheduler=scheduler, progress=progress)
    _refuse_failures(prepared)
    sessions = {name: read_session(job.path) for name, job in prepare.items()}
    targets = {name: [pair.target for pair in pairs if pair.source == name] for name in needed}
    met = {name: meet(config, name, later, sessions) for name, later in targets.items() if later}
    about = {name: _about(name, session) for name, session in sessions.items()}
    reasons = {pair: unscorable(sessions[pair.target], config) for pair in pairs}
    scorable = [pair for pair in pairs if not reasons[pair]]
    for name in dict.fromkeys(pair.source for pair in scorable):
        require_source(sessions[name], config)
    known: dict[str, Job] = {}
    builders = {}
    for name, found in met.items():
        jobs = {each: found.job(prepare[each], sessions[each]) for each in (name, *targets[name])}
        own = {each: about[each] | {"n_channels": len(found.names)} for each in jobs}
        builders[name] = _Builder(config, jobs, own, known)
    scores = [builders[pair.source].pair(pair, excerpt=number == 0) for number, pair in enumerate(scorable)]
    outcomes = [prepared, execute(scores, workers=workers, scheduler=scheduler, progress=progress)]
    folder = cache_root() / "runs" / f"{config.name}-{_digest(config, [*prepare.values(), *scores])}"
    if failures := _failures(outcomes[1]):
        planned, scores = scores, [_scored_without(job, failures) for job in scores]
        if not any(job.inputs.keys() - {"target"} for job in scores):
            _refuse_failures(outcomes[1])
        partial = [job for job, whole in zip(scores, planned, strict=True) if job.key != whole.key]
        outcomes.append(execute(partial, workers=workers, scheduler=scheduler, progress=progress))
    if scores and not any(job.path.exists() for job in scores):
        for outcome in outcomes:
            _refuse_failures(outcome)
    executed, reused = (sum(getattr(each, what) for each in outcomes) for what in ("executed", "reused"))
    manifest = _manifest(config, about, reasons, command)
    manifest["channels"] = [_met(name, found, sessions, targets[name]) for name, found in met.items()]
    manifest |= _jobs_and_reruns(folder, manifest, executed, reused, outcomes)
    unit = str(next(iter(sessions.values()))[config.variable].attrs.get("units", ""))
    _write_run(folder, config, manifest, [job for job in scores if job.path.exists()], unit)
    return Run(folder, manifest, executed, reused)


def _digest(config: Config, jobs: Sequence[Job]) -> str:
    """What a run's folder is named by: what was asked for, and of which contents, wherever the recordings lie."""
    asked = config.model_dump(mode="json", exclude={"source": {"path"}})
    return hashlib.sha256(json.dumps([asked, sorted(job.key for job in jobs)]).encode()).hexdigest()[:10]


def _failures(outcome: Outcome) -> dict[str, str]:
    """Why a job has no result, by key: what it raised, or what the job that it needs raised."""
    raised = {failure.label: failure.message for failure in outcome.failed}
    reasons = {skipped.key: f"{skipped.because}: {raised[skipped.because]}" for skipped in outcome.skipped}
    return reasons | {failure.key: failure.message for failure in outcome.failed}


def _scored_without(score: Job, failures: Mapping[str, str]) -> Job:
    """A score job that needs no job that failed: the rows of such an arm say why there is no score."""
    lost = {
        name: failures[job.key] for name, job in score.inputs.items() if isinstance(job, Job) and job.key in failures
    }
    arms = [arm | ({"failed": lost[arm["input"]]} if arm["input"] in lost else {}) for arm in score.parameters["arms"]]
    inputs = {name: value for name, value in score.inputs.items() if name not in lost}
    return dataclasses.replace(score, parameters={**score.parameters, "arms": arms}, inputs=inputs)


def _refuse_failures(outcome: Outcome) -> None:
    """Raise for jobs that failed: a recording that cannot be used is the user's to mend, anything else is a bug."""
    for failure in outcome.failed:
        if failure.is_input_error:
            raise InputError(failure.message)
    if outcome.failed:
        raise RuntimeError(f"{outcome.failed[0].label} failed:\n{outcome.failed[0].error}")


def _about(name: str, session: Any) -> dict[str, Any]:
    from bci_adapt.sessions import start_of

    attrs = session.attrs
    return {
        "session_id": name,
        "date": start.date().isoformat() if (start := start_of(session)) else "",
        "minutes": round(session.sizes["time"] * float(attrs["bin_s"]) / 60.0, 2),
        "n_channels": session.sizes["channel"],
        "layout": attrs["layout"],
        "source_file": attrs["source_file"],
        "source_sha256": attrs["source_sha256"],
        **{key: attrs[key] for key in ("licence", "dandiset", "dandiset_version", "asset_path")},
        "warnings": json.loads(attrs["warnings"]),
        "valid_fraction": float(session["valid"].mean()),
    }


def _manifest(config: Config, about: dict, reasons: dict[Pair, str], command: str) -> dict[str, Any]:
    from bci_adapt.decoders.base import delay_bins

    libraries = ("numpy", "scipy", "numba", "torch", "xarray", "pynwb", "scikit-learn", "distributed")
    return {
        "name": config.name,
        "command": command,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": config.model_dump(mode="json"),
        "delay_bins": delay_bins(config.label_delay_s, config.bin_s),
        "rates_tuned": config.rates_tuned,
        "versions": {
            "bci_adapt": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in libraries},
        },
        "sessions": list(about.values()),
        "unscorable": [
            {"source": pair.source, "target": pair.target, "reason": reason}
            for pair, reason in reasons.items()
            if reason
        ],
    }


def _jobs_and_reruns(
    folder: Path, manifest: dict[str, Any], executed: int, reused: int, outcomes: Sequence[Outcome]
) -> dict[str, Any]:
    """The entries ``jobs`` and ``reruns`` of a manifest; where the folder holds a run already, that one's date,
    command, versions and counts of jobs, with this one appended to its ``reruns``. Failures are those of the results.
    """
    from bci_adapt.report import read_manifest

    failed = [
        {"label": each.label, "error": each.message, "traceback": "" if each.is_input_error else each.error}
        for outcome in outcomes
        for each in outcome.failed
    ]
    this = {"created": manifest["created"], "command": manifest["command"], "executed": executed, "reused": reused}
    try:
        earlier = read_manifest(folder / "manifest.json")
        kept = {name: earlier[name] for name in ("created", "command", "versions")}
        jobs, reruns = {**earlier["jobs"], "failed": failed}, [*earlier["reruns"], this]
    except (InputError, KeyError):  # there is none, or none that is whole
        return {"jobs": {"executed": executed, "reused": reused, "failed": failed}, "reruns": []}
    return {**kept, "jobs": jobs, "reruns": reruns}


def _records(files: Sequence[Job], kind: str) -> Iterator[dict[str, Any]]:
    for job in files:
        for record in json.loads(job.path.read_text(encoding="utf-8"))[kind]:
            yield {name: float("nan") if value is None else value for name, value in record.items()}


def _write_run(folder: Path, config: Config, manifest: dict[str, Any], scored: Sequence[Job], unit: str) -> None:
    from bci_adapt.report import render_report
    from bci_adapt.results import long_table, write_results

    tables = [long_table(_records(scored, kind), kind) for kind in ("rows", "curves", "trajectories")]
    attrs = {name: manifest[name] for name in ("name", "created", "delay_bins")} | {"unit": unit}
    write_results(folder / "results.nc", *tables, attrs=attrs)
    write_text(folder / "config.toml", to_toml(config.model_dump(mode="json", exclude_none=True)))
    write_text(folder / "manifest.json", json.dumps(manifest, indent=2, ensure_ascii=False))
    render_report(folder)


def to_toml(values: dict[str, Any]) -> str:
    """A config as TOML: plain values first, then sections and lists of sections (all a config ever holds)."""
    plain, sections = [], []
    for key, value in values.items():
        if isinstance(value, dict):
            sections.append(f"[{key}]\n{to_toml(value)}")
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            sections += [f"[[{key}]]\n{to_toml(item)}" for item in value]
        else:
            plain.append(f"{key} = {json.dumps(value, ensure_ascii=False)}\n")
    return "".join(plain) + ("\n" if plain and sections else "") + "\n".join(sections)
