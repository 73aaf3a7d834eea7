"""A cross-session experiment: a config's sessions are prepared, its jobs run, and a run folder is written."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bci_adapt.errors import InputError
from bci_adapt.experiment.arms import standing_names
from bci_adapt.experiment.building import Builder
from bci_adapt.experiment.common_jobs import columns_job
from bci_adapt.experiment.config import Config, ContinualSection
from bci_adapt.experiment.foreign import Foreign
from bci_adapt.experiment.pairs import Pair, require_source, unusable_halves
from bci_adapt.experiment.preparing import Prepared, prepare_sessions, refuse_failures
from bci_adapt.experiment.run_folder import Plan, Ran, manifest_of, manifest_of_shard, write_run
from bci_adapt.experiment.tuned import read_tuned
from bci_adapt.ground.engine import Outcome, Progress, Workplace, execute
from bci_adapt.ground.jobs import Job, looking_once
from bci_adapt.ground.storage import cache_root
from bci_adapt.results.manifest import Manifest


@dataclass(frozen=True)
class FinishedRun:
    """A finished run: its folder, its manifest, and what was done for it."""

    folder: Path
    manifest: Manifest
    executed: int
    reused: int


def run_experiment(
    config: Config,
    *,
    workers: int | None = None,
    scheduler: Workplace | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda text: None,
    note: Callable[[str], None] = lambda text: None,
    command: str = "",
    lock: Path | None = None,
    offline: bool = False,
    verify: bool = False,
    sure: bool = False,
    tuned: Path | None = None,
    foreign: Sequence[Foreign] = (),
    shard: tuple[int, int] | None = None,
) -> FinishedRun:
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
    options: dict[str, Any] = {"workers": workers, "scheduler": scheduler, "progress": progress}
    prepared, pairs = prepare_sessions(
        config, sections, **options, say=say, note=note, lock=lock, offline=offline, verify=verify, sure=sure
    )
    judged = _whose_columns(config, prepared, options, note)
    _refuse_names(config, foreign)
    reasons = prepared.unscorable(pairs, config)
    for name in dict.fromkeys(name for pair in pairs if not reasons[pair] for name in pair.sources):
        require_source(prepared.sessions[name], config)
    builders = prepared.builders(config, {}, values)
    with looking_once():
        plan = _plan(config, prepared, builders, reasons, foreign, shard)
    scores, outcomes = _executed(plan, options)
    asked = config, command, values, foreign
    ran = Ran(*asked, prepared, pairs, reasons, builders, plan, [prepared.outcome, judged, *outcomes], scores)
    folder = cache_root() / "runs" / f"{config.name}-{_digest(ran)}"
    manifest = manifest_of(ran, folder) if shard is None else manifest_of_shard(ran)
    if shard is None:
        beside = [path for path in (tuned if config.tuned else None, lock) if path is not None and path.is_file()]
        manifest = write_run(folder, ran, manifest, beside)
    return FinishedRun(folder, manifest, ran.executed, ran.reused)


def _whose_columns(
    config: Config, prepared: Prepared, options: Mapping[str, Any], note: Callable[[str], None]
) -> Outcome:
    """Judge the columns of the sessions, and tell before any score of those that are not the others'."""
    job = columns_job(config, prepared.jobs)
    outcome = execute([job], **options)
    if job.is_done:
        told = json.loads(job.path.read_text(encoding="utf-8"))
        prepared.columns += told["sessions"]
        prepared.notes += told["findings"]
        for text in told["findings"]:
            note(text)
    return outcome


def _executed(plan: Plan, options: Mapping[str, Any]) -> tuple[list[Job], list[Outcome]]:
    """Run the jobs of a plan; returns its score jobs, without what failed, and how all came out.

    Raises `InputError`, or RuntimeError for a bug, where nothing at all can be scored.
    """
    outcomes = [execute(plan.jobs(), **options), _measured(plan, **options)]
    scores = plan.scores
    if failures := _failures(outcomes[0]):
        scores = [_scored_without(job, failures) for job in plan.scores]
        if not any(job.inputs.keys() - {"target", "source"} for job in scores):
            refuse_failures(outcomes[0])
        partial = [job for job, whole in zip(scores, plan.scores, strict=True) if job.key != whole.key]
        outcomes.append(execute(partial, **options))
    if scores and not any(job.is_done for job in scores):
        for outcome in outcomes:
            refuse_failures(outcome)
    return scores, outcomes


def _measured(plan: Plan, workers: int | None, scheduler: Workplace | None, progress: Progress | None) -> Outcome:
    """Run the jobs that measure what a bin costs, one at a time: with nothing of this run beside them."""
    needed = {job: [each for each in job.inputs.values() if isinstance(each, Job)] for job in plan.costs.values()}
    ready = [job for job, inputs in needed.items() if all(each.is_done for each in inputs)]
    alone = None if scheduler else 0 if workers == 0 else 1
    outcome = execute(ready, workers=alone, scheduler=scheduler, progress=progress)
    # what they need was counted with the others
    return dataclasses.replace(outcome, reused=len(ready) - outcome.executed - len(outcome.failed))


def _refuse_names(config: Config, foreign: Sequence[Foreign]) -> None:
    """Refuse decoders of the user's own that go by the name of another arm: their scores would be taken for its."""
    taken = {*standing_names(config), *(section.name for section in config.arms)}
    for own in foreign:
        if own.name in taken:
            raise InputError(f"decoder {own.name}: there is an arm of this name already; rename it")
        taken.add(own.name)


def _plan(
    config: Config,
    prepared: Prepared,
    builders: Mapping[tuple[str, ...], Builder],
    reasons: Mapping[Pair, str],
    foreign: Sequence[Foreign],
    shard: tuple[int, int] | None,
) -> Plan:
    """The jobs of an experiment over its scorable pairs."""
    controls = config.controls
    pairs = [pair for pair in prepared.pairs(config.pairs) if not reasons[pair]]
    swept = next((found for each in config.pairs if (found := {*prepared.pairs([each])} & {*pairs})), set())
    mine = pairs if shard is None else pairs[shard[0] - 1 :: shard[1]]
    scores, drift, costs = [], {}, {}
    for pair in mine:
        builder = builders[pair.sources]
        scores.append(builder.pair(pair, pair == pairs[0], foreign, sweeps=pair in swept))
        if controls.drift:
            drift[pair] = builder.drift(pair)
    if mine and mine[0] == pairs[0]:
        if controls.costs:
            builder = builders[pairs[0].sources]
            for arm in builder.arms(pairs[0]):
                if "online" in arm.phases and not (arm.cell and arm.is_frozen):
                    costs[arm.name, arm.cell] = builder.cost(arm, pairs[0])
        if controls.no_drift:
            for source in dict.fromkeys(pair.sources[-1] for pair in pairs):
                sources = next(pair.sources for pair in pairs if pair.sources[-1] == source)
                if not unusable_halves(prepared.sessions[source], config, prepared.in_trial):
                    scores.append(builders[sources].without_drift(source))
        for section in config.continual:
            scores += _continual(section, prepared, builders, reasons)
    return Plan(scores, drift, costs)


def _continual(
    section: ContinualSection,
    prepared: Prepared,
    builders: Mapping[tuple[str, ...], Builder],
    reasons: Mapping[Pair, str],
) -> list[Job]:
    """The jobs of one chain of days; a day that cannot be scored is adapted through all the same."""
    days = sorted(prepared.pairs([section]), key=lambda pair: prepared.session_ids.index(pair.target))
    return [
        builders[pair.sources].continual(pair, [day.target for day in days[:number]], section.arms)
        for number, pair in enumerate(days)
        if number and not reasons[pair]
    ]


def _digest(ran: Ran) -> str:
    """What a run's folder is named by: what was asked for, and of which contents, wherever the recordings lie."""
    # A config without these is called as it was before there were any.
    unused = {"axes": True} if ran.config.axes is None else {}
    unused |= {"identity": True} if ran.config.identity.foreign == "keep" else {}
    asked = ran.config.model_dump(mode="json", exclude={"source": {"path", "paths"}, **unused})
    jobs = [*ran.prepared.jobs.values(), *ran.plan.jobs(), *ran.plan.costs.values()]
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
