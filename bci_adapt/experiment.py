"""A cross-session experiment: pairs of sessions and the arms of a config → jobs → a run folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bci_adapt import __version__
from bci_adapt.arms import Arm, linear_arms, network_arms
from bci_adapt.config import Config, ContinualSection, DandiSource, FilesSource, PairSection, SimulatedSource, to_toml
from bci_adapt.engine import Job, Outcome, Progress, execute
from bci_adapt.errors import InputError
from bci_adapt.sources.base import Source
from bci_adapt.storage import cache_root, write_text
from bci_adapt.tuned import Tuned, read_tuned

if TYPE_CHECKING:
    from bci_adapt.cells.base import Network

LEAST_LABELS_S = 1.0
KINDS = ("rows", "curves", "trajectories", "blocks")
# What a pair without drift is run with: the drift of a pair is judged beside it.
_WITHOUT_DRIFT = ("frozen", "normaliser", "network_oracle", "ridge_oracle")


# ------------------------------------------------------------------------------------------------- pairs


@dataclass(frozen=True)
class Pair:
    """Source sessions, trained on together, and a later target session, by id."""

    sources: tuple[str, ...]
    target: str

    @property
    def source(self) -> str:
        """The source sessions in one word, as the long table names them."""
        return "+".join(self.sources)


def choose_pairs(sections: Sequence[PairSection], session_ids: Sequence[str]) -> list[Pair]:
    """The pairs that sections of a config name over sessions in chronological order; a target must be later than all
    of its sources.
    """
    pairs = []
    for section in sections:
        sources = sorted({_find_session(name, session_ids) for name in section.source}, key=list(session_ids).index)
        for name in section.targets:
            target = _find_session(name, session_ids)
            if session_ids.index(target) <= session_ids.index(sources[-1]):
                raise InputError(f"pairs: target {target} is not later than its source {sources[-1]}")
            pairs.append(Pair(tuple(sources), target))
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

    arrays = session_arrays(session, config.variables)
    n_stream = arrays.n_stream(config.stream_s)
    for variable, outputs in arrays.columns.items():
        parts = arrays.y[:n_stream, outputs], arrays.y[n_stream:, outputs]
        usable_s = [config.bin_s * np.isfinite(part).all(axis=1).sum() for part in parts]
        if usable_s[1] < config.min_held_out_s:
            return (
                f"{usable_s[1]:.1f} s of usable {variable} labels are held out, "
                f"at least {config.min_held_out_s:g} s are needed"
            )
        if usable_s[0] < LEAST_LABELS_S:
            return f"no usable {variable} labels in the adaptation stream"
        early, late = (float(np.nanvar(part, axis=0).sum()) for part in parts)
        if late < 0.1 * early:
            return f"held-out {variable} variance {late:.3g} is below a tenth of the stream's {early:.3g}"
    return ""


def require_source(session: Any, config: Config) -> None:
    """Raise `InputError` unless a source session has labels a decoder can learn from: a second of them, and movement in
    every axis.
    """
    import numpy as np

    from bci_adapt.jobs.arrays import session_arrays

    arrays = session_arrays(session, config.variables)
    for variable, outputs in arrays.columns.items():
        y, wrong = arrays.y[:, outputs], ""
        usable = np.isfinite(y).all(axis=1)
        usable_s = config.bin_s * usable.sum()
        if usable_s < LEAST_LABELS_S:
            wrong = f"{usable_s:.1f} s of usable {variable} labels, at least {LEAST_LABELS_S:g} s are needed"
        elif still := [axis for axis, each in zip(arrays.axes[outputs], y[usable].T, strict=True) if np.ptp(each) == 0]:
            wrong = f"{variable} that never changes in axis {', '.join(still)}"
        if wrong:
            raise InputError(f"{arrays.session_id}: this source session has {wrong}; leave it out of pairs")


# -------------------------------------------------------------------------------------------------- jobs


def prepare_job(config: Config, recording: Path, provenance: Mapping[str, str]) -> Job:
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


def meet(config: Config, sources: Sequence[str], targets: Sequence[str], sessions: Mapping[str, Any]) -> Channels:
    """The channels of source sessions and their targets under the config's policy; `InputError` where they do not meet.

    What `channels.remove` flags on the last source is not among them, with any rule for missing channels.
    """
    from bci_adapt.channels import common, policy_of, under
    from bci_adapt.qc import flagged_channels, qc
    from bci_adapt.sessions import require_one_subject

    ids = [*sources, *targets]
    for variable in config.variables:
        _require_one_meaning(variable, [sessions[name] for name in ids])
    section, last = config.channels, sessions[sources[-1]]
    policy = section.policy or policy_of(last)
    require_one_subject([sessions[name] for name in ids])
    channels = [under(sessions[name], policy)["channel"].values.tolist() for name in ids]
    removed = flagged_channels(qc(under(last, policy)), section.remove) if section.remove else []
    names = [name for name in common(channels, ids, section.missing) if name not in set(removed)]
    if len(names) < 2:
        raise InputError(f"{sources[-1]}: channels.remove takes out {len(removed)} channels and leaves {len(names)}")
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


def _met(
    sources: Sequence[str], found: Channels, sessions: Mapping[str, Any], targets: Sequence[str]
) -> dict[str, Any]:
    """What the manifest says of the channels of a source and its targets."""
    from bci_adapt.channels import under

    entry: dict[str, Any] = {"source": "+".join(sources), "policy": found.policy, "n_channels": len(found.names)}
    entry |= {"removed": found.removed, "targets": {}}
    wanted = set(found.names)
    for name in targets:
        have = under(sessions[name], found.policy)["channel"].values.tolist()
        zeroed = [each for each in found.names if each not in set(have)]
        left_out = [each for each in have if each not in wanted and each not in set(found.removed)]
        entry["targets"][name] = {"zeroed": zeroed, "left_out": left_out}
    return entry


@dataclass
class _Scored:
    """What is run on one pair: a list of (adapt job, columns, phases)."""

    jobs: dict[str, Job] = field(default_factory=dict)
    entries: list[dict[str, Any]] = field(default_factory=list)

    def add(self, job: Job, columns: dict[str, Any], phases: Sequence[str]) -> None:
        name = f"arm{len(self.entries):04d}"
        self.jobs[name] = job
        self.entries.append({"input": name, "columns": columns, "phases": list(phases)})


@dataclass(frozen=True)
class Labels:
    """When and how many labels an arm gets: `delay_s` is seconds or ``"trial_end"``."""

    delay_s: float | str
    fraction: float
    budget_s: float

    @property
    def columns(self) -> dict[str, Any]:
        delay_s = None if isinstance(self.delay_s, str) else self.delay_s  # JSON has no infinity: see `_records`
        return {"delay_s": delay_s, "label_fraction": self.fraction, "budget_s": self.budget_s}


class Builder:
    """Builds the jobs of an experiment from sessions that have met on their channels.

    `sessions` are the jobs of sessions by id, `about` what the manifest says of them, `known` the jobs that exist
    already by key, `tuned` the tuned values.
    """

    def __init__(
        self,
        config: Config,
        sessions: Mapping[str, Job],
        about: Mapping[str, Mapping[str, Any]],
        known: dict[str, Job],
        tuned: Tuned | None = None,
    ):
        self.config, self.sessions, self.about, self.known, self.tuned = config, sessions, about, known, tuned
        self.labels = Labels(config.label_delay_s, 1.0, config.stream_s)

    # -- one job of a kind ---------------------------------------------------------------------------------------

    def fit(self, arm: Arm, pair: Pair, seed: int) -> Job:
        """The job that fits the decoder of an arm on what the arm is trained on."""
        decoder = arm.trained_as or arm.decoder
        constants = dict(arm.fit) | ({"seed": seed} if arm.cell else {})
        whole = pair.sources if arm.trained_on in ("source", "both") else ()
        streams = (pair.target,) if arm.trained_on in ("stream", "both") else ()
        what = f"{arm.cell} seed {seed}" if arm.cell else decoder
        names = [*whole, *(f"{name} (stream)" for name in streams)]
        job = Job(
            kind="pretrain",
            function="bci_adapt.jobs.pretrain:run",
            stem=f"{what}_{'_'.join(names)}",
            folder="decoders",
            suffix=".npz",
            parameters={
                "decoder": decoder,
                "constants": constants,
                "variables": self.config.variables,
                "stream_s": self.config.stream_s if streams else None,
                "n_streams": len(streams),
            },
            inputs={f"session{i}": self.sessions[name] for i, name in enumerate((*whole, *streams))},
            modules=(*_modules(decoder), *(_cell_modules(arm.cell) if arm.cell else ())),
            label=f"{'retrain' if streams else 'pretrain'} {what} on {', '.join(names)}",
            cost=1e-6 * self._n_weights(pair.target, arm.cell) * arm.fit["n_updates"] if arm.cell else 1.0,
        )
        return self.known.setdefault(job.key, job)

    def _network(self, session_id: str, cell_name: str) -> Network:
        from bci_adapt.cells.base import Network, cell

        return Network(cell(cell_name), self.about[session_id]["n_channels"], self.config.network.n_hidden, 1)

    def _n_weights(self, session_id: str, cell_name: str) -> int:
        network = self._network(session_id, cell_name)
        return network.n_hidden * network.row_width

    def _cost(self, arm: Arm, target: str) -> float:
        """Expected seconds of an adapting job: proportional to the weights, read once for each bin of history, and to
        what the rule carries from bin to bin.
        """
        scale = self.config.stream_s / 600.0
        if arm.decoder == "fine_tuned":
            return 1e-6 * self._n_weights(target, arm.cell) * arm.adapt["tune_updates"]
        if not arm.cell:
            return (8.0 if arm.name == "rls" else 2.0 if arm.learns else 0.3) * scale
        if not arm.learns:
            return 0.2
        from bci_adapt.credit.base import rule

        credit = rule(arm.adapt["rule"], **(arm.adapt["rule_constants"] or {}))
        carried = math.prod(credit.memory_shape(self._network(target, arm.cell)))
        return 3e-5 * (self._n_weights(target, arm.cell) * (1 + credit.history) + carried) * scale

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

    def _decoder_inputs(self, arm: Arm, pair: Pair, seed: int) -> tuple[dict[str, Job], set[str]]:
        """The fitted decoder and the compiled loops that an arm needs, and the modules its jobs depend on."""
        modules = {*_modules(arm.decoder), *_modules(arm.trained_as or arm.decoder)}
        inputs = {"decoder": self.fit(arm, pair, seed)}
        if arm.cell:
            modules |= {*_cell_modules(arm.cell), *_rule_modules("readout")}
            inputs["predicting"] = self.kernel(arm.cell, "readout", "rmsprop")
            if rule := arm.adapt.get("rule"):
                modules |= set(_rule_modules(rule))
                clips = bool((arm.adapt.get("optimizer_constants") or {}).get("clip"))
                inputs["learning"] = self.kernel(arm.cell, rule, arm.adapt.get("optimizer", "rmsprop"), clips)
        return inputs, modules

    def _adapt_parameters(
        self, arm: Arm, seed: int, labels: Labels, control: Mapping[str, Any] | None, parts: Sequence[str]
    ) -> dict[str, Any]:
        at_trial_end = isinstance(labels.delay_s, str)
        delay = {} if at_trial_end or labels.delay_s == self.config.label_delay_s else {"label_delay_s": labels.delay_s}
        return {
            "variables": self.config.variables,
            "stream_s": self.config.stream_s,
            "become": arm.decoder if arm.trained_as else None,
            "constants": {**arm.adapt, **delay},
            "supervision": arm.supervision,
            "at_trial_end": at_trial_end,
            "label_fraction": labels.fraction,
            "budget_s": None if labels.budget_s >= self.config.stream_s else labels.budget_s,
            "seed": seed,
            "control": control,
            "continuing": "continuing" in parts,
            "back": "back" in parts,
        }

    def adapt(
        self,
        arm: Arm,
        pair: Pair,
        seed: int,
        *,
        labels: Labels | None = None,
        control: Mapping[str, Any] | None = None,
        parts: Sequence[str] = (),
        before: Sequence[str] = (),
        name: str = "",
    ) -> Job:
        """The job that runs an arm through the pair's target; one job where sources share it (a retrained one)."""
        inputs, modules = self._decoder_inputs(arm, pair, seed)
        inputs |= {"target": self.sessions[pair.target]}
        inputs |= {f"before{i}": self.sessions[each] for i, each in enumerate(before)}
        if "back" in parts:
            inputs["source"] = self.sessions[pair.sources[-1]]
        what = " ".join(filter(None, [name or arm.name, arm.cell, f"seed {seed}" if arm.cell else ""]))
        job = Job(
            kind="adapt",
            function="bci_adapt.jobs.adapt:run",
            stem=f"{what}_{pair.target}",
            folder="results",
            suffix=".npz",
            parameters=self._adapt_parameters(arm, seed, labels or self.labels, control, parts),
            inputs=inputs,
            modules=tuple(sorted(modules)),
            label=f"{what} from {pair.source} on {pair.target}",
            cost=self._cost(arm, pair.target) * (1 + len(before) + ("continuing" in parts)),
        )
        return self.known.setdefault(job.key, job)

    def cost(self, arm: Arm, pair: Pair) -> Job:
        """The job that measures what a live bin costs an arm."""
        seed = arm.seeds[0]
        inputs, modules = self._decoder_inputs(arm, pair, seed)
        job = Job(
            kind="cost",
            function="bci_adapt.jobs.cost:run",
            stem=f"cost_{arm.name}_{arm.cell}",
            folder="results",
            suffix=".json",
            parameters=self._adapt_parameters(arm, seed, self.labels, None, ()),
            inputs={**inputs, "target": self.sessions[pair.target]},
            modules=tuple(sorted(modules)),
            label=f"cost of {arm.name} {arm.cell}".rstrip(),
            cost=1.0,
        )
        return self.known.setdefault(job.key, job)

    def drift(self, pair: Pair) -> Job:
        """The job that measures what changed between the (last) source and the target."""
        return Job(
            kind="drift",
            function="bci_adapt.jobs.drift:run",
            stem=f"drift_{pair.source}_{pair.target}",
            folder="results",
            suffix=".json",
            parameters={"variable": self.config.intended or self.config.variables[0]},
            inputs={"source": self.sessions[pair.sources[-1]], "target": self.sessions[pair.target]},
            label=f"drift {pair.source} → {pair.target}",
            cost=4.0,
        )

    def _score(self, pair: Pair, scored: _Scored, what: str, excerpt: bool = False) -> Job:
        back = any("back" in entry["phases"] for entry in scored.entries)
        return Job(
            kind="score",
            function="bci_adapt.jobs.score:run",
            stem=f"scores_{what}_{pair.source}_{pair.target}",
            folder="results",
            suffix=".json",
            parameters={
                "variables": self.config.variables,
                "stream_s": self.config.stream_s,
                "arms": scored.entries,
                "excerpt": excerpt,
                "first_seed": self.config.seeds[0],
            },
            inputs={
                "target": self.sessions[pair.target],
                **({"source": self.sessions[pair.sources[-1]]} if back else {}),
                **scored.jobs,
            },
            label=f"score {what} {pair.source} → {pair.target}",
        )

    def _columns(self, pair: Pair, arm: Arm, seed: int, prefix: str = "", **given: Any) -> dict[str, Any]:
        dates = [self.about[name]["date"] for name in (pair.sources[-1], pair.target)]
        columns = {
            "source": pair.source, "target": pair.target, "source_date": dates[0], "target_date": dates[1],
            "day_gap": _day_gap(*dates), "arm": prefix + arm.name, "decoder": arm.decoder, "cell": arm.cell,
            "n_hidden": self.config.network.n_hidden if arm.cell else 0, "rule": "", "optimizer": "", "average": "",
            "normaliser": "causal", "supervision": arm.supervision, **self.labels.columns, "rate": None, "seed": seed,
            "canary": False, "control": "", "study": "", **arm.columns,
        }  # fmt: skip
        if columns["supervision"] == "none":
            columns["budget_s"] = 0.0
        return columns | given

    # -- what is run on a pair -----------------------------------------------------------------------------------

    def arms(self, pair: Pair, tuned: bool = True, day: str = "") -> list[Arm]:
        """The arms of a pair, at their tuned values where there are any: those not chosen on its target, or on `day`,
        of which its target is a part.
        """
        config = self.config
        arms = [arm for cell in config.network.cells for arm in network_arms(config, cell)]
        arms += linear_arms(config, self.about[pair.target]["n_axes"])
        arms = [arm for arm in arms if arm.supervision != "intention" or self._has_intention(pair)]
        if self.tuned is None or not tuned:
            return arms
        chosen = [self.tuned.choice(arm.name, arm.cell, day or pair.target) if arm.grid else None for arm in arms]
        return [arm if found is None else arm.having(found.parameters) for arm, found in zip(arms, chosen, strict=True)]

    def _has_intention(self, pair: Pair) -> bool:
        return self.config.intended is not None and bool(self.about[pair.target]["has_targets"])

    def pair(self, pair: Pair, excerpt: bool = False, foreign: Sequence[Foreign] = (), sweeps: bool = False) -> Job:
        """The score job of one pair, which needs every arm's job."""
        controls, scored = self.config.controls, _Scored()
        wanted = {part for part in ("continuing", "back") if getattr(controls, part)}
        for arm in self.arms(pair):
            for seed in arm.seeds:
                first = seed == arm.seeds[0]
                parts = [phase for phase in arm.phases if phase in wanted and first]
                phases = [phase for phase in arm.phases if phase not in ("continuing", "back")] + parts
                scored.add(self.adapt(arm, pair, seed, parts=parts), self._columns(pair, arm, seed), phases)
                if first and arm.checked:
                    self._canaries(scored, arm, pair, seed)
            if sweeps and arm.name in self.config.sweeps.arms:
                self._sweeps(scored, arm, pair)
        if self.tuned is not None and sweeps:
            for arm in self.arms(pair, tuned=False):
                if "learning_rate" in arm.grid:
                    shared = arm.having({"learning_rate": self.config.learning_rate})
                    job = self.adapt(shared, pair, arm.seeds[0], name=f"shared rate {arm.name}")
                    scored.add(
                        job, self._columns(pair, shared, arm.seeds[0], study="shared_rate"), ("online", "held_out")
                    )
        for own in foreign:
            self._foreign(scored, own, pair)
        return self._score(pair, scored, "arms", excerpt)

    def _canaries(self, scored: _Scored, arm: Arm, pair: Pair, seed: int) -> None:
        """The same arm with counts that know nothing of the movement."""
        n_shifts = self.config.controls.canary_shifts
        kind = "shift" if n_shifts else "time"
        for number in range(n_shifts) if n_shifts else [seed]:
            control = {"kind": kind, "seed": number}
            job = self.adapt(arm, pair, seed, control=control, name=f"canary:{arm.name}")
            columns = self._columns(pair, arm, number, "canary:", canary=True, control="time")
            scored.add(job, columns, ("online", "held_out"))
        if self.config.controls.channels and arm.name in self.config.sweeps.arms:
            job = self.adapt(arm, pair, seed, control={"kind": "channels", "seed": seed}, name=f"channels:{arm.name}")
            columns = self._columns(pair, arm, seed, "channels:", control="channels")
            scored.add(job, columns, ("online", "held_out"))

    def _sweeps(self, scored: _Scored, arm: Arm, pair: Pair) -> None:
        """One property of the labels varied at a time, the others as in the run."""
        seed, sweeps, full = arm.seeds[0], self.config.sweeps, self.labels
        phases = [phase for phase in ("online", "held_out") if phase in arm.phases]
        settings = [("delay", dataclasses.replace(full, delay_s=delay_s)) for delay_s in sweeps.delay_s]
        settings += [("fraction", dataclasses.replace(full, fraction=fraction)) for fraction in sweeps.label_fraction]
        budgets = dict.fromkeys((*(each for each in sweeps.budget_s if each < full.budget_s), full.budget_s))
        settings += [("budget", dataclasses.replace(full, budget_s=budget_s)) for budget_s in budgets]
        for study, labels in settings:
            if labels.delay_s == "trial_end" and not self.about[pair.target]["has_trials"]:
                continue
            job = self.adapt(arm, pair, seed, labels=labels, name=f"{study} {arm.name}")
            scored.add(job, self._columns(pair, arm, seed, study=study, **labels.columns), phases)
        if self.config.controls.cold and arm.cell and "warm_up_s" in arm.fit:
            cold = dataclasses.replace(arm, adapt={**arm.adapt, "warm_up_s": 0.0})
            job = self.adapt(cold, pair, seed, name=f"cold {arm.name}")
            scored.add(job, self._columns(pair, arm, seed, study="cold"), phases)

    def _foreign(self, scored: _Scored, own: Foreign, pair: Pair) -> None:
        """A decoder of the user's own, and its canary."""
        config, seed = self.config, self.config.seeds[0]
        for permutation in (None, seed):
            job = Job(
                kind="foreign",
                function="bci_adapt.jobs.foreign:run",
                stem=f"{own.name}_{pair.target}{'' if permutation is None else '_canary'}",
                folder="results",
                suffix=".npz",
                parameters={
                    "variables": config.variables,
                    "stream_s": config.stream_s,
                    "decoder": own.name,
                    "bin_s": config.bin_s,
                    "label_delay_s": config.label_delay_s,
                    "seed": seed,
                    "permutation": permutation,
                },
                inputs={
                    "code": own.file,
                    "target": self.sessions[pair.target],
                    **{f"source{i}": self.sessions[name] for i, name in enumerate(pair.sources)},
                },
                label=f"{own.name} from {pair.source} on {pair.target}",
                cost=10.0,
            )
            prefix = "" if permutation is None else "canary:"
            arm = Arm(f"{prefix}{own.name}", "", own.name, "source", {}, supervision="true")
            columns = self._columns(pair, arm, seed, normaliser="", delay_s=own.delay_s(config.label_delay_s))
            columns |= {"canary": bool(prefix), "control": "time" if prefix else ""}
            scored.add(self.known.setdefault(job.key, job), columns, ("online", "online_late", "held_out"))

    def score_one(self, arm: Arm, pair: Pair, seed: int, what: str) -> Job:
        """The score job of one arm, held out alone."""
        scored = _Scored()
        scored.add(
            self.adapt(arm, pair, seed, name=what), self._columns(pair, arm, seed, study="tuning"), ("held_out",)
        )
        return self._score(pair, scored, what)

    def without_drift(self, source: str) -> Job:
        """The later half of a source day as the target of its earlier half."""
        halves = {}
        for half, word in enumerate(("earlier", "later")):
            job = Job(
                kind="halve",
                function="bci_adapt.jobs.halve:run",
                stem=f"{source}_{word}_half",
                folder="sessions",
                suffix=".nc",
                parameters={"half": half},
                inputs={"session": self.sessions[source]},
                label=f"{word} half of {source}",
                cost=0.3,
            )
            halves[f"{source} ({word} half)"] = self.known.setdefault(job.key, job)
        about = dict.fromkeys(halves, self.about[source])
        within = Builder(self.config, halves, about, self.known, self.tuned)
        earlier, later = halves
        pair, scored = Pair((earlier,), later), _Scored()
        wanted = {*_WITHOUT_DRIFT, *self.config.sweeps.arms}
        for arm in within.arms(pair, day=source):
            if arm.name in wanted:
                phases = [phase for phase in ("online", "held_out") if phase in arm.phases]
                columns = within._columns(pair, arm, arm.seeds[0], study="no_drift")
                scored.add(within.adapt(arm, pair, arm.seeds[0], name=f"no drift {arm.name}"), columns, phases)
        return within._score(pair, scored, "no drift")

    def continual(self, pair: Pair, before: Sequence[str], arms: Sequence[str]) -> Job:
        """Arms that come to the pair's target by way of the days `before`, with the weights those left them."""
        scored = _Scored()
        for arm in self.arms(pair):
            if arm.name in arms and arm.learns and not arm.trained_as:
                seed = arm.seeds[0]
                job = self.adapt(arm, pair, seed, before=before, name=f"continual {arm.name}")
                scored.add(job, self._columns(pair, arm, seed, study="continual"), ("online", "held_out"))
        return self._score(pair, scored, "continual")


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
    if isinstance(section, FilesSource):
        from bci_adapt.sources.files import Files

        return Files(section.paths)
    from bci_adapt.sources.folder import Folder

    if not section.path:
        raise InputError("source.path: this config needs a folder of recordings; name it with --data FOLDER")
    return Folder(section.path)


@dataclass(frozen=True)
class Foreign:
    """A decoder class of the user's own file; it is loaded once here, to refuse it before anything runs."""

    file: Path
    name: str

    @classmethod
    def parse(cls, text: str) -> Foreign:
        """From ``mine.py:Mine``; `InputError` where that names no decoder class."""
        from bci_adapt.jobs.foreign import load_class

        file, colon, name = text.rpartition(":")
        if not colon or not name.isidentifier():
            raise InputError(f"--decoder takes FILE.py:CLASS, got {text!r}")
        load_class(Path(file), name)
        return cls(Path(file), name)

    def delay_s(self, asked_s: float) -> float:
        """The label delay it works at: none unless it can know of the delay."""
        from bci_adapt.jobs.foreign import load_class, takes

        kind = load_class(self.file, self.name)
        adapt: Any = kind.adapt  # type: ignore[attr-defined]
        told = takes(kind, "label_delay_s") or takes(adapt, "label_delay_s") or takes(adapt, "arrives")
        return asked_s if told else 0.0


@dataclass(frozen=True)
class Plan:
    """Everything that an experiment has to run, once its sessions are prepared."""

    scores: list[Job]
    drift: dict[Pair, Job]
    costs: dict[tuple[str, str], Job]

    def jobs(self) -> list[Job]:
        return [*self.scores, *self.drift.values(), *self.costs.values()]


@dataclass
class Prepared:
    """The prepared sessions of an experiment: jobs, sessions and what is said of them, by id; and which meet."""

    session_ids: list[str]
    jobs: dict[str, Job]
    sessions: dict[str, Any]
    about: dict[str, dict[str, Any]]
    outcome: Outcome
    met: dict[tuple[str, ...], Channels] = field(default_factory=dict)
    targets: dict[tuple[str, ...], list[str]] = field(default_factory=dict)

    def builders(self, config: Config, known: dict[str, Job], tuned: Tuned | None) -> dict[tuple[str, ...], Builder]:
        """A builder for each group of sources, whose sessions have met on their channels with all of their targets."""
        builders = {}
        for sources, found in self.met.items():
            names = [*sources, *self.targets[sources]]
            jobs = {each: found.job(self.jobs[each], self.sessions[each]) for each in names}
            own = {each: self.about[each] | {"n_channels": len(found.names)} for each in jobs}
            builders[sources] = Builder(config, jobs, own, known, tuned)
        return builders


def prepare_sessions(
    config: Config,
    sections: Sequence[PairSection],
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda text: None,
    lock: Path | None = None,
    offline: bool = False,
) -> tuple[Prepared, list[Pair]]:
    """Fetch and prepare the sessions of the pairs that `sections` name, and bring them together on their channels.

    Raises
    ------
    InputError
        when a recording cannot be used, the pairs cannot be formed, or sessions of a pair do not meet on channels.
    """
    from bci_adapt.sessions import read_session

    say("finding sessions")
    source = open_source(config, lock, offline, say)
    session_ids = [str(name) for name in source.list().index]
    pairs = choose_pairs(sections, session_ids)
    wanted = {name for pair in pairs for name in (*pair.sources, pair.target)}
    jobs = {}
    for name in [each for each in session_ids if each in wanted]:
        say(f"fetching {name}")
        jobs[name] = prepare_job(config, source.fetch(name), source.provenance(name))
    outcome = execute(jobs.values(), workers=workers, scheduler=scheduler, progress=progress)
    _refuse_failures(outcome)
    sessions = {name: read_session(job.path) for name, job in jobs.items()}
    about = {name: _about(name, session) for name, session in sessions.items()}
    prepared = Prepared(session_ids, jobs, sessions, about, outcome)
    for pair in pairs:
        prepared.targets.setdefault(pair.sources, []).append(pair.target)
    for sources, targets in prepared.targets.items():
        prepared.met[sources] = meet(config, sources, targets, sessions)
    return prepared, pairs


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
    tuned: Path | None = None,
    foreign: Sequence[Foreign] = (),
    shard: tuple[int, int] | None = None,
) -> Run:
    """Run what is not there yet and write ``runs/<name>-<hash>/`` with config, manifest, results and report.

    `tuned` is the file of tuned values that the config names, `foreign` are decoders of the user's own. With `shard`
    (k, n) only every n-th pair from the k-th is run, without a report: the last run without it finds all done.

    Raises
    ------
    InputError
        when a recording cannot be used, the pairs cannot be formed, or sessions of a pair do not meet on channels.
    """
    if config.tuned and tuned is None:
        raise InputError(f"tuned: this config takes its rates from {config.tuned}, which must lie beside it")
    values = read_tuned(tuned) if tuned is not None and config.tuned else None
    sections = [*config.pairs, *config.continual]
    prepared, pairs = prepare_sessions(
        config, sections, workers=workers, scheduler=scheduler, progress=progress, say=say, lock=lock, offline=offline
    )
    reasons = {pair: unscorable(prepared.sessions[pair.target], config) for pair in pairs}
    for name in dict.fromkeys(name for pair in pairs if not reasons[pair] for name in pair.sources):
        require_source(prepared.sessions[name], config)
    builders = prepared.builders(config, {}, values)
    plan = _plan(config, prepared, builders, reasons, foreign, shard)
    options: dict[str, Any] = {"workers": workers, "scheduler": scheduler, "progress": progress}
    outcomes = [prepared.outcome, execute(plan.jobs(), **options)]
    scores = plan.scores
    folder = cache_root() / "runs" / f"{config.name}-{_digest(config, [*prepared.jobs.values(), *plan.jobs()])}"
    if failures := _failures(outcomes[1]):
        scores = [_scored_without(job, failures) for job in plan.scores]
        if not any(job.inputs.keys() - {"target", "source"} for job in scores):
            _refuse_failures(outcomes[1])
        partial = [job for job, whole in zip(scores, plan.scores, strict=True) if job.key != whole.key]
        outcomes.append(execute(partial, **options))
    if scores and not any(job.path.exists() for job in scores):
        for outcome in outcomes:
            _refuse_failures(outcome)
    executed, reused = (sum(getattr(each, what) for each in outcomes) for what in ("executed", "reused"))
    manifest = _manifest(config, prepared.about, reasons, command)
    if shard is not None:
        failed = [{"label": each.label, "error": each.message} for outcome in outcomes for each in outcome.failed]
        return Run(
            folder, manifest | {"jobs": {"executed": executed, "reused": reused, "failed": failed}}, executed, reused
        )
    manifest |= {
        "channels": [
            _met(sources, found, prepared.sessions, prepared.targets[sources])
            for sources, found in prepared.met.items()
        ],
        "primary_bins": "in trial" if any(each["has_trials"] for each in prepared.about.values()) else "all",
        "drift": [
            {"source": pair.source, "target": pair.target, **json.loads(job.path.read_text(encoding="utf-8"))}
            for pair, job in plan.drift.items()
            if job.path.exists()
        ],
        "costs": [
            {"arm": arm, "cell": cell, **json.loads(job.path.read_text(encoding="utf-8"))}
            for (arm, cell), job in plan.costs.items()
            if job.path.exists()
        ],
        "tuning": None if values is None else _tuning(values),
        "primary": config.primary.model_dump(),
        "not_tested": _not_tested(config, prepared, pairs),
        "own_decoders": [{"file": str(own.file), "class": own.name} for own in foreign],
    }
    manifest |= _jobs_and_reruns(folder, manifest, executed, reused, outcomes)
    session = next(iter(prepared.sessions.values()))
    unit = str(session[config.variables[0]].attrs.get("units", ""))
    beside = [path for path in (tuned if config.tuned else None, lock) if path is not None and path.is_file()]
    _write_run(folder, config, manifest, [job for job in scores if job.path.exists()], unit, beside)
    return Run(folder, manifest, executed, reused)


def _plan(
    config: Config,
    prepared: Prepared,
    builders: Mapping[tuple[str, ...], Builder],
    reasons: Mapping[Pair, str],
    foreign: Sequence[Foreign],
    shard: tuple[int, int] | None,
) -> Plan:
    """The jobs of an experiment over its scorable pairs."""
    controls, ids = config.controls, prepared.session_ids
    pairs = [pair for pair in choose_pairs(config.pairs, ids) if not reasons[pair]]
    first_sources = pairs[0].sources if pairs else ()
    mine = pairs if shard is None else pairs[shard[0] - 1 :: shard[1]]
    scores, drift, costs = [], {}, {}
    for pair in mine:
        builder = builders[pair.sources]
        scores.append(builder.pair(pair, pair == pairs[0], foreign, sweeps=pair.sources == first_sources))
        if controls.drift:
            drift[pair] = builder.drift(pair)
    if mine and mine[0] == pairs[0]:
        if controls.costs:
            builder = builders[first_sources]
            for arm in builder.arms(pairs[0]):
                if "online" in arm.phases and not (arm.cell and arm.name == "frozen"):
                    costs[arm.name, arm.cell] = builder.cost(arm, pairs[0])
        if controls.no_drift:
            for source in dict.fromkeys(pair.sources[-1] for pair in pairs):
                sources = next(pair.sources for pair in pairs if pair.sources[-1] == source)
                scores.append(builders[sources].without_drift(source))
        for section in config.continual:
            scores += _continual(section, ids, builders, reasons)
    return Plan(scores, drift, costs)


def _continual(
    section: ContinualSection,
    ids: Sequence[str],
    builders: Mapping[tuple[str, ...], Builder],
    reasons: Mapping[Pair, str],
) -> list[Job]:
    """The jobs of one chain of days; a day that cannot be scored is adapted through all the same."""
    days = choose_pairs([section], ids)
    return [
        builders[pair.sources].continual(pair, [day.target for day in days[:number]], section.arms)
        for number, pair in enumerate(days)
        if number and not reasons[pair]
    ]


def _tuning(values: Tuned) -> dict[str, Any]:
    """What the manifest says of tuned values: the whole surface, and what was chosen of all of it."""
    chosen = [each for key in values.methods() if (each := values.choice(*key)) is not None]
    return {
        "file": values.file,
        "digest": values.digest,
        **values.about,
        "surface": list(values.surface),
        "chosen": [dataclasses.asdict(each) for each in chosen],
    }


def _not_tested(config: Config, prepared: Prepared, pairs: Sequence[Pair]) -> list[dict[str, str]]:
    """Standing arms that could not be run, and why."""
    entries = [{"arm": name, "why": "left out by controls.without"} for name in config.controls.without]
    if config.intended is None or not any(prepared.about[pair.target]["has_targets"] for pair in pairs):
        entries.append({"arm": "intention", "why": "the trials of these sessions do not carry their targets"})
    if not config.has_kalman:
        entries.append({"arm": "kalman", "why": "it has a state for velocity and position alone"})
    return entries


def _digest(config: Config, jobs: Sequence[Job]) -> str:
    """What a run's folder is named by: what was asked for, and of which contents, wherever the recordings lie."""
    asked = config.model_dump(mode="json", exclude={"source": {"path", "paths"}})
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
    from bci_adapt.sessions import kinematic_names, start_of

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
        "has_targets": {"trial_start_s", "trial_stop_s"} <= set(session)
        and bool({"trial_target", "trial_target_dir"} & set(session)),
        "n_axes": {name: session.sizes[session[name].dims[1]] for name in kinematic_names(session)},
        "has_trials": "trial_start_s" in session and bool(session.sizes.get("trial")),
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
        "rates_tuned": bool(config.tuned),
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
    """The records of score jobs; a missing delay stands for labels that come at the end of a trial."""
    for job in files:
        for record in json.loads(job.path.read_text(encoding="utf-8"))[kind]:
            if "delay_s" in record and record["delay_s"] is None:
                record["delay_s"] = math.inf
            yield {name: math.nan if value is None else value for name, value in record.items()}


def _write_run(
    folder: Path, config: Config, manifest: dict[str, Any], scored: Sequence[Job], unit: str, beside: Sequence[Path]
) -> None:
    """Write a run's folder; `beside` are files that its config needs beside itself to be run again from there."""
    from bci_adapt.report import render_report
    from bci_adapt.results import long_table, write_results

    tables = [long_table(_records(scored, kind), kind) for kind in KINDS]
    attrs = {name: manifest[name] for name in ("name", "created", "delay_bins", "primary_bins")} | {"unit": unit}
    write_results(folder / "results.nc", *tables, attrs=attrs)
    write_text(folder / "config.toml", to_toml(config.model_dump(mode="json", exclude_none=True)))
    for path in beside:
        if path.resolve().parent != folder.resolve():
            write_text(folder / path.name, path.read_text(encoding="utf-8"))
    write_text(folder / "manifest.json", json.dumps(manifest, indent=2, ensure_ascii=False))
    render_report(folder)
