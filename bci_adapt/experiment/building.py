"""From pairs of sessions and the arms of a config to jobs: what is fitted, adapted, scored and measured."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bci_adapt.experiment.arm import Arm, is_main
from bci_adapt.experiment.arms import arms_of, network_arms
from bci_adapt.experiment.common_jobs import cell_modules, decoder_modules, kernel, machine, rule_modules
from bci_adapt.experiment.config import Config
from bci_adapt.experiment.foreign import Foreign
from bci_adapt.experiment.pairs import Pair
from bci_adapt.experiment.tuned import Tuned
from bci_adapt.ground.jobs import Job

if TYPE_CHECKING:
    from bci_adapt.learning.cells.base import Network


@dataclass
class _Scored:
    """What is run on one pair: a list of (adapt job, columns, phases)."""

    jobs: dict[str, Job | Path] = field(default_factory=dict)
    entries: list[dict[str, Any]] = field(default_factory=list)

    def add(self, job: Job | Path, columns: dict[str, Any], phases: Sequence[str]) -> None:
        name = f"arm{len(self.entries):04d}"
        self.jobs[name] = job
        self.entries.append({"input": name, "columns": columns, "phases": list(phases)})


@dataclass(frozen=True)
class Labels:
    """When and how many labels an arm gets: `delay_s` is seconds or ``"trial_end"``, `budget_trials` None for all."""

    delay_s: float | str
    fraction: float
    budget_s: float
    budget_trials: int | None = None

    @property
    def columns(self) -> dict[str, Any]:
        delay_s = None if isinstance(self.delay_s, str) else self.delay_s  # JSON has no infinity: see `_records`
        columns = {"delay_s": delay_s, "label_fraction": self.fraction, "budget_s": self.budget_s}
        return columns | {"budget_trials": self.budget_trials}


class Builder:
    """Builds the jobs of an experiment from sessions that are matched on their channels.

    `sessions` are the jobs of sessions by id, `about` what the manifest says of them, `known` the jobs that exist
    already by key, `tuned` the tuned values; `in_trial` says that bins inside trials are
    scored, of every session alike.
    """

    def __init__(
        self,
        config: Config,
        sessions: Mapping[str, Job],
        about: Mapping[str, Mapping[str, Any]],
        known: dict[str, Job],
        tuned: Tuned | None = None,
        in_trial: bool = True,
    ):
        self.config, self.sessions, self.about, self.known, self.tuned = config, sessions, about, known, tuned
        self.in_trial = in_trial

    def labels(self, pair: Pair) -> Labels:
        """All labels of the pair's adaptation stream, which is at most half of the session."""
        budget_s = min(self.config.stream_s, self.about[pair.target]["half_s"])
        return Labels(self.config.label_delay_s, 1.0, budget_s)

    # -- one job of a kind ---------------------------------------------------------------------------------------

    def fit(self, arm: Arm, pair: Pair, seed: int) -> Job:
        """The job that fits the decoder of an arm on what the arm is trained on."""
        whole = pair.sources if arm.trained_on in ("source", "both") else ()
        streams = (pair.target,) if arm.trained_on in ("stream", "both") else ()
        if not (arm.cell and self.config.network.carried):
            return self._fitted(arm, whole, streams, seed)
        # as it was before the target: the steps of an arm that goes on with its stream are those of that day alone
        own = arm.trained_as or arm.decoder
        alike = [each for each in network_arms(self.config, arm.cell) if own == (each.trained_as or each.decoder)]
        common = next((each for each in alike if each.trained_on == "source"), arm)
        job = None
        for n_days in range(1, len(whole) + 1):
            job = self._fitted(common, whole[:n_days], (), seed, job)
        return self._fitted(arm, whole, streams, seed, job) if streams or job is None else job

    def _fitted(
        self, arm: Arm, whole: Sequence[str], streams: Sequence[str], seed: int, before: Job | None = None
    ) -> Job:
        """The job that trains on whole sessions and then on streams, going on from `before` where that is given."""
        decoder = arm.trained_as or arm.decoder
        constants = dict(arm.fit) | ({"seed": seed} if arm.cell else {})
        what = f"{arm.cell} seed {seed}" if arm.cell else decoder
        names = [*whole, *(f"{name} (stream)" for name in streams)]
        job = Job(
            kind="pretrain",
            function="bci_adapt.experiment.jobs.fit:run",
            stem=f"{what}_{_several(names, '_')}",
            folder="decoders",
            suffix=".npz",
            parameters={
                "decoder": decoder,
                "constants": constants,
                "variables": self.config.variables,
                "target_lag_bins": self.config.target_lag_bins,
                "stream_s": self.config.stream_s if streams else None,
                "n_streams": len(streams),
            },
            inputs={f"session{i}": self.sessions[name] for i, name in enumerate((*whole, *streams))}
            | ({} if before is None else {"before": before}),
            modules=(*decoder_modules(decoder), *(cell_modules(arm.cell) if arm.cell else ())),
            label=f"{'retrain' if streams else 'pretrain'} {what} on {_several(names)}",
            cost=1.0,
        )
        if arm.cell:
            n_updates = arm.fit["n_updates" if before is None else "added_updates"] * self.config.network.n_members
            job = dataclasses.replace(job, cost=1e-6 * self._n_weights((*whole, *streams)[-1], arm.cell) * n_updates)
        return self.known.setdefault(job.key, job)

    def _network(self, session_id: str, cell_name: str) -> Network:
        from bci_adapt.learning.cells.base import Network, cell

        return Network(cell(cell_name), self.about[session_id]["n_channels"], self.config.network.n_hidden, 1)

    def _n_weights(self, session_id: str, cell_name: str) -> int:
        network = self._network(session_id, cell_name)
        return network.n_hidden * network.row_width

    def _cost(self, arm: Arm, target: str) -> float:
        """Expected seconds of an adapting job: proportional to the weights, read once for each bin of history, and to
        what the rule carries from bin to bin.
        """
        scale, members = self.config.stream_s / 600.0, self.config.network.n_members
        if arm.decoder == "fine_tuned":
            return 1e-6 * self._n_weights(target, arm.cell) * arm.adapt["tune_updates"] * members
        if not arm.cell:
            return (8.0 if arm.decoder == "rls" else 2.0 if arm.learns else 0.3) * scale
        if not arm.learns:
            return 0.2
        from bci_adapt.learning.credit.base import rule

        credit = rule(arm.adapt["rule"], **(arm.adapt["rule_constants"] or {}))
        carried = math.prod(credit.memory_shape(self._network(target, arm.cell)))
        taught = (1 if arm.adapt["take_turns"] else members) / arm.adapt["learn_every"]
        return 3e-5 * (self._n_weights(target, arm.cell) * (1 + credit.history) + carried) * scale * taught

    def kernel(self, cell: str, rule: str, optimizer: str, clips: bool = False, fresh: bool = False) -> Job:
        """The job that compiles one loop (`kernel`)."""
        job = kernel(cell, rule, optimizer, clips, fresh=fresh)
        return self.known.setdefault(job.key, job)

    def _decoder_inputs(self, arm: Arm, pair: Pair, seed: int) -> tuple[dict[str, Job], set[str]]:
        """The fitted decoder and the compiled loops that an arm needs, and the modules its jobs depend on."""
        modules = {*decoder_modules(arm.decoder), *decoder_modules(arm.trained_as or arm.decoder)}
        inputs = {"decoder": self.fit(arm, pair, seed)}
        if arm.cell:
            modules |= {*cell_modules(arm.cell), *rule_modules("readout")}
            inputs["predicting"] = self.kernel(arm.cell, "readout", "rmsprop")
            if rule := arm.adapt.get("rule"):
                modules |= set(rule_modules(rule))
                clips = bool((arm.adapt.get("optimizer_constants") or {}).get("clip"))
                fresh = bool((arm.adapt.get("rule_constants") or {}).get("fresh_error"))
                inputs["learning"] = self.kernel(arm.cell, rule, arm.adapt.get("optimizer", "rmsprop"), clips, fresh)
        return inputs, modules

    def _adapt_parameters(
        self,
        arm: Arm,
        pair: Pair,
        seed: int,
        labels: Labels,
        control: Mapping[str, Any] | None = None,
        parts: Sequence[str] = (),
    ) -> dict[str, Any]:
        from bci_adapt.decoders.base import decoder_class

        at_trial_end = isinstance(labels.delay_s, str)
        waits = "label_delay_s" in decoder_class(arm.decoder)().get_params()
        usual = labels.delay_s == self.config.label_delay_s if waits else not arm.learns
        delay = {} if at_trial_end or usual else {"label_delay_s": labels.delay_s}
        return {
            "variables": self.config.variables,
            "target_lag_bins": self.config.target_lag_bins,
            "stream_s": self.config.stream_s,
            "become": arm.decoder if arm.trained_as else None,
            "constants": {**arm.adapt, **(delay if waits else {})},
            "supervision": arm.supervision,
            "at_trial_end": at_trial_end,
            "label_fraction": labels.fraction,
            "budget_s": None if labels.budget_s >= self.labels(pair).budget_s else labels.budget_s,
            "budget_trials": labels.budget_trials,
            "labels_in_fit": arm.trained_on != "source",
            "seed": seed,
            "control": control,
            "continuing": "continuing" in parts,
            "back": "back" in parts,
            **({} if waits else delay),
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
            function="bci_adapt.experiment.jobs.adapt:run",
            stem=f"{what}_{pair.target}",
            folder="results",
            suffix=".npz",
            parameters=self._adapt_parameters(arm, pair, seed, labels or self.labels(pair), control, parts),
            inputs=inputs,
            modules=tuple(sorted(modules)),
            label=f"{what} from {pair.source} on {pair.target}",
            cost=self._cost(arm, pair.target) * (1 + len(before) + ("continuing" in parts)),
        )
        return self.known.setdefault(job.key, job)

    def cost(self, arm: Arm, pair: Pair) -> Job:
        """The job that measures what a live bin costs an arm on this kind of machine."""
        seed = arm.seeds[0]
        inputs, modules = self._decoder_inputs(arm, pair, seed)
        job = Job(
            kind="cost",
            function="bci_adapt.experiment.jobs.cost:run",
            stem=f"cost_{arm.name}_{arm.cell}",
            folder="results",
            suffix=".json",
            parameters=self._adapt_parameters(arm, pair, seed, self.labels(pair)) | {"machine": machine()},
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
            function="bci_adapt.experiment.jobs.drift:run",
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
            function="bci_adapt.experiment.jobs.score:run",
            stem=f"scores_{what}_{pair.source}_{pair.target}",
            folder="results",
            suffix=".json",
            parameters={
                "variables": self.config.variables,
                "target_lag_bins": self.config.target_lag_bins,
                "stream_s": self.config.stream_s,
                "in_trial": self.in_trial,
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
            "normaliser": "causal", "supervision": arm.supervision, **self.labels(pair).columns, "rate": None,
            "seed": seed, "canary": False, "control": "", "study": "", **arm.columns,
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
        arms = arms_of(config, self.about[pair.target]["n_axes"])
        arms = [arm for arm in arms if arm.supervision != "intention" or self._has_intention(pair)]
        if self.tuned is None or not tuned:
            return arms
        chosen = [self.tuned.choice(arm.name, arm.cell, day or pair.target) if arm.grid else None for arm in arms]
        return [arm if found is None else arm.having(found.parameters) for arm, found in zip(arms, chosen, strict=True)]

    def _has_intention(self, pair: Pair) -> bool:
        about, variable = self.about[pair.target], self.config.intended
        planar = variable is not None and about["n_axes"].get(variable) == 2
        return planar and not self.config.target_lag_bins and bool(about["has_targets"])

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
                    self._canaries(scored, arm, pair, seed, sweeps)
            if sweeps and arm.learns and arm.name in self.config.sweeps.arms:
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

    def _canaries(self, scored: _Scored, arm: Arm, pair: Pair, seed: int, sweeps: bool) -> None:
        """The same arm with counts that know nothing of the movement."""
        shifted = sweeps and arm.cell and arm.name in self.config.sweeps.arms
        n_shifts = self.config.controls.canary_shifts if shifted else 0
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
        seed, sweeps, full = arm.seeds[0], self.config.sweeps, self.labels(pair)
        phases = [phase for phase in ("online", "held_out") if phase in arm.phases]
        settings = [("delay", dataclasses.replace(full, delay_s=delay_s)) for delay_s in sweeps.delay_s]
        settings += [("fraction", dataclasses.replace(full, fraction=fraction)) for fraction in sweeps.label_fraction]
        budgets = dict.fromkeys((*(each for each in sweeps.budget_s if each < full.budget_s), full.budget_s))
        settings += [("budget", dataclasses.replace(full, budget_s=budget_s)) for budget_s in budgets]
        # a decoder that teaches itself has its lesson when the label delay is over, whatever trials there are
        has_trials = self.about[pair.target]["has_trials"]
        if not has_trials or arm.supervision == "pseudo":
            settings = [each for each in settings if each[1].delay_s != "trial_end"]
        if has_trials:
            settings += [("trials", dataclasses.replace(full, budget_trials=each)) for each in sweeps.budget_trials]
        for study, labels in settings:
            job = self.adapt(arm, pair, seed, labels=labels, name=f"{study} {arm.name}")
            scored.add(job, self._columns(pair, arm, seed, study=study, **labels.columns), phases)
        if self.config.controls.cold and arm.decoder == "online_rnn":
            cold = dataclasses.replace(arm, adapt={**arm.adapt, "warm_up_s": 0.0})
            job = self.adapt(cold, pair, seed, name=f"cold {arm.name}")
            scored.add(job, self._columns(pair, arm, seed, study="cold"), phases)

    def _foreign(self, scored: _Scored, own: Foreign, pair: Pair) -> None:
        """A decoder of the user's own, and its canary."""
        config, seed = self.config, self.config.seeds[0]
        for permutation in (None, seed):
            prefix = "" if permutation is None else "canary:"
            columns = self._columns(
                pair, own.arm, seed, prefix, normaliser="", delay_s=own.delay_s(config.label_delay_s)
            )
            columns |= {"canary": bool(prefix), "control": "time" if prefix else ""}
            scored.add(own.predictions(self, pair, seed, permutation), columns, ("online", "online_late", "held_out"))

    def score_one(self, arm: Arm, pair: Pair, seed: int, what: str) -> Job:
        """The score job of one arm, held out alone."""
        scored = _Scored()
        scored.add(
            self.adapt(arm, pair, seed, name=what), self._columns(pair, arm, seed, study="tuning"), ("held_out",)
        )
        return self._score(pair, scored, what)

    def without_drift(self, source: str) -> Job:
        """The later half of a source day as the target of its earlier half."""
        halves: dict[str, Job] = {}
        for half, word in enumerate(("earlier", "later")):
            job = Job(
                kind="halve",
                function="bci_adapt.experiment.jobs.halve:run",
                stem=f"{source}_{word}_half",
                folder="sessions",
                suffix=".nc",
                parameters={"half": half},
                inputs={"session": self.sessions[source]},
                label=f"{word} half of {source}",
                cost=0.3,
            )
            halves[f"{source} ({word} half)"] = self.known.setdefault(job.key, job)
        half = {**self.about[source], "half_s": self.about[source]["half_s"] / 2.0}
        about = dict.fromkeys(halves, half)
        within = Builder(self.config, halves, about, self.known, self.tuned, self.in_trial)
        earlier, later = halves
        pair, scored = Pair((earlier,), later), _Scored()
        for arm in within.arms(pair, day=source):
            # the drift of a pair is judged beside its bounds and its ceiling
            if is_main(arm) or arm.name in self.config.sweeps.arms:
                phases = [phase for phase in ("online", "held_out") if phase in arm.phases]
                columns = within._columns(pair, arm, arm.seeds[0], study="no_drift")
                scored.add(within.adapt(arm, pair, arm.seeds[0], name=f"no drift {arm.name}"), columns, phases)
        return within._score(pair, scored, "no drift")

    def continual(self, pair: Pair, before: Sequence[str], arms: Sequence[str]) -> Job:
        """Arms that come to the pair's target by way of the days `before`, with the weights those left them."""
        scored = _Scored()
        for arm in self.arms(pair):
            if arm.name in arms and arm.learns and "online" in arm.phases:
                seed = arm.seeds[0]
                job = self.adapt(arm, pair, seed, before=before, name=f"continual {arm.name}")
                scored.add(job, self._columns(pair, arm, seed, study="continual"), ("online", "held_out"))
        return self._score(pair, scored, "continual")


def _several(names: Sequence[str], between: str = ", ") -> str:
    """Names in a row; of many, the first, how many more, and the last."""
    return between.join(names if len(names) < 4 else [names[0], f"{len(names) - 2} more", names[-1]])


def _day_gap(source: str, target: str) -> float | None:
    try:
        return (datetime.fromisoformat(target) - datetime.fromisoformat(source)).total_seconds() / 86400.0
    except ValueError:
        return None
