"""The config of a cross-session experiment: TOML, checked by pydantic. It decides every number and names every arm."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo, field_validator, model_validator

from bci_adapt.data.faults import Thresholds
from bci_adapt.errors import InputError
from bci_adapt.experiment.asked import (
    ASKED_TAGS,
    ArmSection,
    Asked,
    Cells,
    Count,
    DecoderSection,
    Names,
    NotNegative,
    Positive,
    Section,
    Seed,
    Seeds,
    Unlike,
    configured,
    repeated,
)
from bci_adapt.ground.catalog import unknown

_VELOCITIES = ("velocity", "recorded_velocity")


class SimulatedSource(Section):
    """Simulated recordings, written as NWB files in the layout of DANDI 000688."""

    kind: Literal["simulated"]
    days: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 30, 210)
    duration_s: Positive = 480.0
    n_units: Count = 60
    task: Literal["centre_out", "random_target"] = "centre_out"
    severity: NotNegative = 1.0
    seed: Seed = 0


class FolderSource(Section):
    """A folder of NWB files; `path` may be given by ``--data`` instead."""

    kind: Literal["folder"]
    path: str = ""


class DandiSource(Section):
    """Recordings of a dandiset, fetched from the DANDI archive and pinned in ``sessions.lock.toml`` beside the config.

    `paths` are asset paths or globs of them (all that match are meant, and each must match); `subject`, `session` and
    `exclude` as in ``bci-adapt fetch``.
    """

    kind: Literal["dandi"]
    dandiset: Annotated[str, Field(pattern=r"^\d{6}$")]
    version: str | None = None
    paths: tuple[str, ...] = ()
    subject: str | None = None
    session: str | None = None
    exclude: tuple[str, ...] = ()


class ChannelSection(Section):
    """What makes a channel of one session the same as one of another (`bci_adapt.data.channels`), and which are left
    out.

    `remove` names checks of ``bci-adapt qc``: channels that they flag on the *source* day are taken out of the source
    and its targets; a target's own flags would need the whole of a day that is not over yet.
    """

    policy: Literal["electrode", "unit", "pool", "position", "none"] | None = None
    missing: Literal["refuse", "drop", "zero"] = "refuse"
    remove: Annotated[tuple[str, ...], Unlike] = ()

    @model_validator(mode="after")
    def _known_checks(self) -> ChannelSection:
        from bci_adapt.data.qc import CHANNEL_CHECKS

        for name in self.remove:
            if name not in CHANNEL_CHECKS:
                raise ValueError(unknown(name, CHANNEL_CHECKS, "check"))
        return self


class FilesSource(Section):
    """Recordings given one by one, anywhere; what ``bci-adapt compare`` writes."""

    kind: Literal["files"]
    paths: Annotated[tuple[str, ...], Field(min_length=1), Unlike]


class IdentitySection(Section):
    """What is done with a session whose columns, by the counts alone, are not those of the others
    (`bci_adapt.data.same_columns`): told and kept (``keep``), taken out before any score, as a target and as one of the
    ``earlier`` days (``drop``), or nothing is run (``refuse``). Columns that differ in part are told.
    """

    foreign: Literal["keep", "drop", "refuse"] = "keep"


def _as_list(value: Any) -> Any:
    return (value,) if isinstance(value, int | str) else value


Which = int | str
Several = Annotated[tuple[Which, ...], BeforeValidator(_as_list), Field(min_length=1), Unlike]


EARLIER = "earlier"


class PairSection(Section):
    """Source days, trained on together, and the later days they are tried on: session numbers in chronological order
    (from 1, or from −1 backwards), or session ids, or any part of an id that only one session has.

    The source ``"earlier"`` is every day before a target that could be scored as a target itself; each target then has
    sources of its own.
    """

    source: Several
    targets: Annotated[tuple[Which, ...], Field(min_length=1), Unlike]


class ContinualSection(PairSection):
    """A decoder carried through `targets` in order: on each it goes on with the weights that the day before left it.

    `arms` are names of learning arms; the first seed is run.
    """

    arms: Names = ("immediate_rmsprop", "rls")


class NetworkSection(Section):
    """The networks that are compared, and how they are trained before they adapt: gradient steps (`n_updates`), of
    retraining on the target alone (`oracle_updates`), on source and target together (`joint_updates`), for
    `oracle_seeds` alone where they are given, and the steps and rate of fine-tuning.

    With `carried` a network is trained on the first source day and goes on for `added_updates` steps over all days so
    far with each further one; joint retraining then goes on with the target's stream as one more day. `n_members`
    networks predict by their mean, in every arm. The rest is of every training (`bci_adapt.learning.bptt.Pretraining`).
    """

    cells: Cells = ("tanh", "gru")
    n_hidden: Count = 64
    n_members: Count = 1
    n_updates: Count = 800
    carried: bool = False
    added_updates: Count = 300
    pretrain_rate: Positive = 3e-3
    added_rate: Positive = 3e-3
    oracle_updates: Count = 800
    joint_updates: Count = 800
    oracle_seeds: Seeds | None = None
    tune_updates: Count = 200
    tune_rate: Positive = 1e-3
    input_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3
    gain_jitter: NotNegative = 0.1
    offset_jitter: NotNegative = 0.1
    batch: Count = 16
    window_bins: Annotated[int, Field(ge=20)] = 80
    recency: Annotated[float, Field(gt=0, le=1)] = 1.0
    warm_up_s: NotNegative = 60.0


class LinearSection(Section):
    """The decoders without a network: lags, ridge penalty per bin, the memory of what adapts (recursive least squares,
    Kalman), the lag of the Kalman filter's neurons, and the latent dimensions of the aligner.
    """

    n_lags: Count = 10
    penalty: NotNegative = 0.05
    memory_s: Positive = 1000.0
    update_every_s: Positive = 0.5
    kalman_lag_s: NotNegative = 0.1
    n_latents: Count = 20


Delay = NotNegative | Literal["trial_end"]


class SweepSection(Section):
    """Label delay, fraction and budget (in seconds, and in trials from the first on), each swept with the others as in
    the run, for the `arms` named: first seed, pairs of the first source.
    """

    arms: Names = ("immediate_rmsprop", "rls")
    delay_s: Annotated[tuple[Delay, ...], Unlike] = (0.0, 0.1, 0.5, 2.0, "trial_end")
    label_fraction: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Unlike] = (1.0, 0.3, 0.1, 0.03)
    budget_s: Annotated[tuple[NotNegative, ...], Unlike] = (0.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0)
    budget_trials: Annotated[tuple[Count, ...], Unlike] = (4, 8, 16, 32)


class ControlSection(Section):
    """Standing arms and controls; all are on unless left out here.

    `without` names standing arms that are left out. A canary is one permutation of the counts in time; those of the
    networks in ``sweeps.arms`` on pairs of the first source are `canary_shifts` circular shifts of them instead, where
    it is not 0, which leave alone how a neuron goes on from bin to bin. `no_drift` takes the later half of a source day
    as a target; `continuing` goes on learning through the held-out part; `back` scores on the source day after
    adaptation.
    """

    without: Names = ()
    canary_shifts: Annotated[int, Field(ge=0)] = 0
    no_drift: bool = True
    continuing: bool = True
    back: bool = True
    channels: bool = True
    cold: bool = True
    costs: bool = True
    drift: bool = True


class TuningSection(Section):
    """What ``bci-adapt tune`` chooses rates and other settings on: pairs of sessions, apart from those of the run or
    not – values for a target never come from a pair with that target.

    `seeds` of the networks; at most `max_points` values of each parameter are tried, the same for every method, and no
    network is trained for more than `max_updates` steps, or fine-tuned for more than `max_tune_updates`: an optimum
    there is reported as one at the edge.
    """

    pairs: Annotated[tuple[PairSection, ...], Field(min_length=1)]
    seeds: Seeds = (0,)
    max_points: Annotated[int, Field(ge=3)] = 7
    max_updates: Count = 3200
    max_tune_updates: Count = 800


class PrimarySection(Section):
    """The one comparison that was declared before looking: `arm` of `cell` against another, held out."""

    arm: str = "immediate_rmsprop"
    cell: str = "gru"
    against: str = "rls"
    against_cell: str = ""


class ThresholdSection(Section):
    """Rules for faulty recordings (`bci_adapt.data.faults`)."""

    silent_s: NotNegative = Thresholds.silent_s
    still_s: NotNegative = Thresholds.still_s
    still_extent_cm: NotNegative = Thresholds.still_extent_cm
    max_speed_cm_s: NotNegative = Thresholds.max_speed_cm_s
    speed_neighbours: Annotated[int, Field(ge=0)] = Thresholds.speed_neighbours
    min_agreement: NotNegative = Thresholds.min_agreement


class Config(Section):
    """Everything that decides an experiment's numbers.

    `axes` names the axes of a variable that are decoded (``emg = ["FCR", "ECU"]``), or ``"common"``: those that all
    sessions of the config have. All of them where it is left out.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
    variables: Annotated[
        tuple[Annotated[str, Field(pattern=r"^[A-Za-z]\w*$")], ...],
        BeforeValidator(_as_list),
        Field(min_length=1),
        Unlike,
    ] = ("velocity",)
    bin_s: Positive = 0.05
    stream_s: Positive = 600.0
    min_held_out_s: Positive = 300.0
    label_delay_s: NotNegative = 0.5
    target_lag_s: NotNegative = 0.0
    normaliser_s: Positive = 300.0
    learning_rate: Positive = 1e-4
    tuned: Annotated[str, Field(pattern=r"^[\w.-]*$")] = ""
    seeds: Seeds = (0, 1, 2)
    layout: str | None = None
    spikes: str | None = None
    kinematics: tuple[str, ...] = ()
    per: Literal["electrode", "unit"] | None = None
    unobserved: Literal["mask", "drop"] | None = None
    axes: dict[str, Annotated[tuple[str, ...], BeforeValidator(_as_list), Field(min_length=1), Unlike]] | None = None
    source: Annotated[SimulatedSource | FolderSource | FilesSource | DandiSource, Field(discriminator="kind")]
    pairs: Annotated[tuple[PairSection, ...], Field(min_length=1)]
    continual: tuple[ContinualSection, ...] = ()
    tuning: TuningSection | None = None
    primary: PrimarySection = PrimarySection()
    network: NetworkSection = NetworkSection()
    linear: LinearSection = LinearSection()
    sweeps: SweepSection = SweepSection()
    controls: ControlSection = ControlSection()
    channels: ChannelSection = ChannelSection()
    thresholds: ThresholdSection = ThresholdSection()
    identity: IdentitySection = IdentitySection()
    arms: tuple[Asked, ...]

    @property
    def has_kalman(self) -> bool:
        """Whether a Kalman filter has a state for what is decoded."""
        known = set(self.variables) <= {"position", *_VELOCITIES}
        return known and len(set(self.variables) & set(_VELOCITIES)) < 2

    @property
    def intended(self) -> str | None:
        """The variable that an intention is a label of: the first velocity, None where none is decoded."""
        return next((name for name in self.variables if name in _VELOCITIES), None)

    @property
    def target_lag_bins(self) -> int:
        """Bins by which the target lags the movement."""
        return round(self.target_lag_s / self.bin_s)

    @property
    def kalman_lag_bins(self) -> int:
        """Bins by which the neurons of a Kalman filter lead."""
        return configured(dict(self))["lag_bins"]

    @field_validator("arms")
    @classmethod
    def _asked_once(cls, arms: tuple[Any, ...], info: ValidationInfo) -> tuple[Any, ...]:
        """Sections that say the same, some of it by leaving it out, are one arm: the first of them stays."""
        needed = {"learning_rate", "network", "linear", "seeds", "normaliser_s", "bin_s"}
        if not needed <= info.data.keys():  # they are refused by themselves
            return arms
        own = configured(info.data)
        arms = tuple(arm.beside(own) if isinstance(arm, DecoderSection) else arm for arm in arms)
        usual = info.data["learning_rate"], info.data["network"].cells, info.data["seeds"]
        first: list[tuple[tuple[Any, ...], Any]] = []
        for arm in arms:
            said = (type(arm), *arm.in_full(*usual))
            if all(said != other for other, _ in first):
                first.append((said, arm))
        return tuple(arm for _, arm in first)

    @model_validator(mode="after")
    def _known_variants(self) -> Config:
        from bci_adapt.learning.cells.base import Network, cell

        for name in self.network.cells:
            cell(name)
        for arm in self.arms:
            if isinstance(arm, ArmSection):
                for name in arm.cells or self.network.cells:
                    arm.rule_type(**arm.rule_constants).check(Network(cell(name), 1, 1, 1))
            for name in arm.cells or ():
                if name not in self.network.cells:
                    raise ValueError(f"arm {arm.name}: cell {name!r} is not among network.cells")
            for seed in arm.seeds or ():
                if seed not in self.seeds:
                    raise ValueError(f"arm {arm.name}: seed {seed} is not among seeds")
        self._refuse_unknown_arms()
        for name in self.axes or ():
            if name not in self.variables:
                raise ValueError(f"axes: {unknown(name, self.variables, 'variable')}")
        return self

    def _refuse_unknown_arms(self) -> None:
        """Arms are named by their parts: refuse names of none, and two arms of one name."""
        from bci_adapt.experiment.arms import standing_names

        names = [arm.name for arm in self.arms]
        if twice := repeated(names):
            raise ValueError(
                f"two arms are {twice!r}: arms differ in rule, optimiser, constants, normaliser, supervision, what "
                "learns, or being averaged; another rate, decay of an average, seed or cell goes into another config"
            )
        standing = standing_names(self)
        known = list(dict.fromkeys([*standing, *names]))
        for name in self.controls.without:
            if name not in standing:
                raise ValueError(f"controls.without: {unknown(name, standing, 'standing arm')}")
        declared = self.primary if self.primary != PrimarySection() else None
        for key in ("arm", "against") if declared else ():
            if getattr(declared, key) not in known:
                raise ValueError(f"primary.{key}: {unknown(getattr(declared, key), known, 'arm')}")
        for key in ("cell", "against_cell") if declared else ():
            if getattr(declared, key) not in ("", *self.network.cells):
                raise ValueError(f"primary.{key}: {getattr(declared, key)!r} is not among network.cells")
        for where, section in [("sweeps", self.sweeps), *(("continual", section) for section in self.continual)]:
            for name in section.arms if "arms" in section.model_fields_set else ():
                if name not in known:
                    raise ValueError(f"{where}.arms: {unknown(name, known, 'arm')}")


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
    if Path(path).is_dir() or Path(path).suffix in (".nwb", ".nc", ".npz", ".mat"):
        raise InputError(f"{path}: is no config (.toml); recordings go in with --data FOLDER, or with compare")
    raw = read_toml(path)
    for setting in settings:
        _override(raw, setting)
    if data is not None:
        raw["source"] = {"kind": "folder", "path": str(data)}
    return parse_config(raw, str(path))


def read_toml(path: Path | str, what: str = "a TOML config") -> dict[str, Any]:
    """What a TOML file holds; `InputError` naming it and `what` it should be where it cannot be read."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: expected {what}, it cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid TOML: {error}") from error


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
        parts = [part for part in text.split(",") if part]
        targets = [int(part) if part.removeprefix("-").isdigit() and len(part) < 4 else part for part in parts]
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
    where = [str(part) for part in problem["loc"] if part not in ("simulated", "folder", "files", "dandi", *ASKED_TAGS)]
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
    sections: dict[str, type[Section]] = {
        "pairs": PairSection, "network": NetworkSection, "linear": LinearSection, "arms": ArmSection,
        "continual": ContinualSection, "tuning": TuningSection, "primary": PrimarySection, "sweeps": SweepSection,
        "controls": ControlSection, "files": FilesSource,
        "thresholds": ThresholdSection, "simulated": SimulatedSource, "folder": FolderSource,
        "dandi": DandiSource, "channels": ChannelSection, **ASKED_TAGS,
    }  # fmt: skip
    named = [sections[part] for part in location if part in sections]
    return list((named[-1] if named else Config).model_fields)


def to_toml(values: Mapping[str, Any], prefix: str = "") -> str:
    """A config as TOML: plain values first, then sections and lists of sections, by their full names."""
    plain, sections = [], []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            sections.append(f"[{name}]\n{to_toml(value, name + '.')}")
        elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            sections += [f"[[{name}]]\n{to_toml(item, name + '.')}" for item in value]
        else:
            plain.append(f"{key} = {json.dumps(value, ensure_ascii=False)}\n")
    return "".join(plain) + ("\n" if plain and sections else "") + "\n".join(sections)
