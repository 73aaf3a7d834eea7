"""A cross-session experiment: a config's sessions are prepared, its jobs run, and a run folder is written."""

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
from typing import Any

from bci_adapt.archive.sources.base import Source
from bci_adapt.errors import InputError
from bci_adapt.experiment.arm import described
from bci_adapt.experiment.arms import standing_names
from bci_adapt.experiment.asked import ArmSection
from bci_adapt.experiment.building import Builder
from bci_adapt.experiment.common_jobs import prepare_job
from bci_adapt.experiment.comparisons import compared
from bci_adapt.experiment.config import (
    EARLIER,
    Config,
    ContinualSection,
    DandiSource,
    FilesSource,
    PairSection,
    SimulatedSource,
    to_toml,
)
from bci_adapt.experiment.foreign import Foreign
from bci_adapt.experiment.pairs import (
    Channels,
    Pair,
    choose_pairs,
    match_channels,
    matched_entry,
    require_source,
    unscorable,
    unusable_halves,
)
from bci_adapt.experiment.tuned import Tuned, read_tuned
from bci_adapt.ground.engine import Outcome, Progress, execute
from bci_adapt.ground.jobs import Job
from bci_adapt.ground.storage import cache_root, write_text
from bci_adapt.ground.version import __version__
from bci_adapt.results.manifest import MANIFEST, Manifest, read_manifest

KINDS = ("rows", "curves", "trajectories", "blocks")


@dataclass(frozen=True)
class FinishedRun:
    """A finished run: its folder, its manifest, and what was done for it."""

    folder: Path
    manifest: Manifest
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
        from bci_adapt.archive.sources.dandi import Dandi

        def fetched(path: str, done: int, size: int) -> None:
            say(f"{path}: {done / 1e6:.0f} of {size / 1e6:.0f} MB")

        return Dandi(**section.model_dump(exclude={"kind"}), lock=lock, offline=offline, progress=fetched)
    if isinstance(section, SimulatedSource):
        from bci_adapt.archive.sources.simulated import Simulated

        return Simulated(cache_root() / "raw" / "simulated", **section.model_dump(exclude={"kind"}))
    if isinstance(section, FilesSource):
        from bci_adapt.archive.sources.files import Files

        return Files(section.paths)
    from bci_adapt.archive.sources.folder import Folder

    if not section.path:
        raise InputError("source.path: this config needs a folder of recordings; name it with --data FOLDER")
    return Folder(section.path)


@dataclass(frozen=True)
class Plan:
    """Everything that an experiment has to run, once its sessions are prepared."""

    scores: list[Job]
    drift: dict[Pair, Job]
    costs: dict[tuple[str, str], Job]

    def jobs(self) -> list[Job]:
        """All of them but those that measure time, which are run alone after the others."""
        return [*self.scores, *self.drift.values()]


@dataclass
class Prepared:
    """The prepared sessions of an experiment: jobs, sessions and what is said of them, by id; which meet; and which are
    `unfit` to be one of the earlier days that a config asks for all of, with the reason.
    """

    session_ids: list[str]
    jobs: dict[str, Job]
    sessions: dict[str, Any]
    about: dict[str, dict[str, Any]]
    outcome: Outcome
    notes: list[str] = field(default_factory=list)
    datasets: list[dict[str, Any]] = field(default_factory=list)
    unfit: dict[str, str] = field(default_factory=dict)
    matched: dict[tuple[str, ...], Channels] = field(default_factory=dict)
    targets: dict[tuple[str, ...], list[str]] = field(default_factory=dict)

    @property
    def in_trial(self) -> bool:
        """Whether bins inside trials are scored: where every session has trials, so that all scores mean the same."""
        return all(each["has_trials"] for each in self.about.values())

    def pairs(self, sections: Sequence[PairSection]) -> list[Pair]:
        """The pairs that sections of the config name."""
        return choose_pairs(sections, self.session_ids, self.unfit)

    def builders(self, config: Config, known: dict[str, Job], tuned: Tuned | None) -> dict[tuple[str, ...], Builder]:
        """A builder for each group of sources, whose sessions share its channels with all of their targets."""
        builders = {}
        for sources, found in self.matched.items():
            names = [*sources, *self.targets[sources]]
            jobs = {each: found.job(self.jobs[each], self.sessions[each]) for each in names}
            own = {each: self.about[each] | {"n_channels": len(found.names)} for each in jobs}
            builders[sources] = Builder(config, jobs, own, known, tuned, self.in_trial)
        return builders


def prepare_sessions(
    config: Config,
    sections: Sequence[PairSection],
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda text: None,
    note: Callable[[str], None] = lambda text: None,
    lock: Path | None = None,
    offline: bool = False,
) -> tuple[Prepared, list[Pair]]:
    """Fetch and prepare the sessions of the pairs that `sections` name, and bring them together on their channels.

    Raises
    ------
    InputError
        when a recording cannot be used, the pairs cannot be formed, or sessions of a pair do not meet on channels.
    """
    from bci_adapt.data.sessions import read_session

    say("finding sessions")
    source = open_source(config, lock, offline, say)
    try:
        session_ids = [str(name) for name in source.list().index]
    finally:
        for text in source.notes():
            note(text)
    asked = choose_pairs(sections, session_ids)
    wanted = {name for pair in asked for name in (*pair.sources, pair.target)}
    jobs = {}
    for name in [each for each in session_ids if each in wanted]:
        say(f"fetching {name}")
        jobs[name] = prepare_job(config, source.fetch(name), source.provenance(name))
    outcome = execute(jobs.values(), workers=workers, scheduler=scheduler, progress=progress)
    _refuse_failures(outcome)
    sessions = {name: read_session(job.path) for name, job in jobs.items()}
    about = {name: _about(name, session) for name, session in sessions.items()}
    prepared = Prepared(session_ids, jobs, sessions, about, outcome, [*source.notes()], [*source.datasets()])
    if any(section.source == (EARLIER,) for section in sections):
        judged = {name: unscorable(each, config, prepared.in_trial) for name, each in sessions.items()}
        prepared.unfit |= {name: reason for name, reason in judged.items() if reason}
    pairs = prepared.pairs(sections)
    for pair in pairs:
        prepared.targets.setdefault(pair.sources, []).append(pair.target)
    for sources, targets in prepared.targets.items():
        prepared.matched[sources] = match_channels(config, sources, targets, sessions)
    return prepared, pairs


def run_experiment(
    config: Config,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda text: None,
    note: Callable[[str], None] = lambda text: None,
    command: str = "",
    lock: Path | None = None,
    offline: bool = False,
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
    prepared, pairs = prepare_sessions(config, sections, **options, say=say, note=note, lock=lock, offline=offline)
    _refuse_names(config, foreign)
    reasons = {pair: unscorable(prepared.sessions[pair.target], config, prepared.in_trial) for pair in pairs}
    for name in dict.fromkeys(name for pair in pairs if not reasons[pair] for name in pair.sources):
        require_source(prepared.sessions[name], config)
    builders = prepared.builders(config, {}, values)
    plan = _plan(config, prepared, builders, reasons, foreign, shard)
    outcomes = [prepared.outcome, execute(plan.jobs(), **options)]
    outcomes.append(_measured(plan, **options))
    scores = plan.scores
    all_jobs = [*prepared.jobs.values(), *plan.jobs(), *plan.costs.values()]
    folder = cache_root() / "runs" / f"{config.name}-{_digest(config, all_jobs)}"
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
    manifest |= {"notes": prepared.notes, "datasets": prepared.datasets}
    if values is not None and (other := differing_settings(config, values)):
        manifest |= {"rates_tuned": False, "tuned_for": other}
    if shard is not None:
        failed = [{"label": each.label, "error": each.message} for outcome in outcomes for each in outcome.failed]
        manifest["jobs"] = {"executed": executed, "reused": reused, "failed": failed}
        return FinishedRun(folder, Manifest.model_validate(manifest), executed, reused)
    manifest |= {
        "channels": [
            matched_entry(sources, found, prepared.sessions, prepared.targets[sources])
            for sources, found in prepared.matched.items()
        ],
        "primary_bins": "in trial" if prepared.in_trial else "all",
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
        "tuning": None if values is None else _tuning(values, config, builders, pairs),
        "primary": config.primary.model_dump(),
        "not_tested": _not_tested(config, prepared, pairs),
        "unfit": [{"session": name, "reason": reason} for name, reason in prepared.unfit.items()],
        "own_decoders": [{"file": str(own.file), "class": own.name} for own in foreign],
    }
    manifest |= _jobs_and_reruns(folder, manifest, executed, reused, outcomes)
    said = Manifest.model_validate(manifest)
    session = next(iter(prepared.sessions.values()))
    unit = str(session[config.variables[0]].attrs.get("units", ""))
    beside = [path for path in (tuned if config.tuned else None, lock) if path is not None and path.is_file()]
    about = {
        "arms": _described(builders, pairs, foreign, values),
        "comparisons": compared(config.network.cells, [arm for arm in config.arms if isinstance(arm, ArmSection)]),
    }
    _write_run(folder, config, said, [job for job in scores if job.path.exists()], about, unit, beside)
    return FinishedRun(folder, said, executed, reused)


def _described(
    builders: Mapping[tuple[str, ...], Builder],
    pairs: Sequence[Pair],
    foreign: Sequence[Foreign],
    values: Tuned | None,
) -> list[dict[str, Any]]:
    """The table of arms: those of the run, decoders of the user's own, and those that were tuned besides."""
    arms = {(arm.name, arm.cell): arm for pair in pairs for arm in builders[pair.sources].arms(pair, tuned=False)}
    records = described([*arms.values(), *(own.arm for own in foreign)])
    known = {(record["arm"], record["cell"]) for record in records}
    tuned = values.about.get("arms", ()) if values is not None else ()
    return records + [record for record in tuned if (record["arm"], record["cell"]) not in known]


def _measured(plan: Plan, workers: int | None, scheduler: str | None, progress: Progress | None) -> Outcome:
    """Run the jobs that measure what a bin costs, one at a time: with nothing of this run beside them."""
    needed = {job: [each for each in job.inputs.values() if isinstance(each, Job)] for job in plan.costs.values()}
    ready = [job for job, inputs in needed.items() if all(each.path.exists() for each in inputs)]
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


_TUNED_FOR = ("variables", "bin_s", "stream_s", "label_delay_s", "target_lag_s", "normaliser_s", "linear")


def differing_settings(config: Config, values: Tuned) -> dict[str, list[Any]]:
    """Settings that the values were not tuned for: ``{name: [tuned for, asked for]}``."""
    asked, stored = config.model_dump(mode="json", exclude_none=True), values.about.get("settings", {})
    pairs = {name: (stored.get(name), asked.get(name)) for name in _TUNED_FOR}
    for name in ("n_hidden", "n_updates", "input_dropout"):
        pairs[f"network.{name}"] = stored.get("network", {}).get(name), asked["network"].get(name)
    # what came into the configs later was at its default when the values were tuned
    pairs["target_lag_s"] = stored.get("target_lag_s", 0.0), config.target_lag_s
    return {name: list(each) for name, each in pairs.items() if each[0] != each[1]}


def _tuning(
    values: Tuned, config: Config, builders: Mapping[tuple[str, ...], Builder], pairs: Sequence[Pair]
) -> dict[str, Any]:
    """What the manifest says of tuned values: the whole surface; what is best on all of it (`chosen`); what was run on
    each target, without that target's points (`used`); and arms without a value, which ran at the config's own.
    """
    chosen = [each for key in values.methods() if (each := values.choice(*key)) is not None]
    used, untuned = [], set()
    for target, pair in {pair.target: pair for pair in pairs}.items():
        for arm in builders[pair.sources].arms(pair, tuned=False):
            found = values.choice(arm.name, arm.cell, target) if arm.grid else None
            if found is not None:
                used.append({"target": target, **dataclasses.asdict(found)})
            elif arm.grid:
                untuned.add((arm.name, arm.cell))
    return {
        "file": values.file,
        "digest": values.digest,
        **values.about,
        "surface": list(values.surface),
        "chosen": [dataclasses.asdict(each) for each in chosen],
        "used": used,
        "untuned": [{"method": name, "cell": cell} for name, cell in sorted(untuned)],
    }


def _not_tested(config: Config, prepared: Prepared, pairs: Sequence[Pair]) -> list[dict[str, str]]:
    """Standing arms that could not be run, and why."""
    entries = [{"arm": name, "why": "left out by controls.without"} for name in config.controls.without]
    for source in dict.fromkeys(pair.sources[-1] for pair in pairs) if config.controls.no_drift else ():
        if why := unusable_halves(prepared.sessions[source], config, prepared.in_trial):
            entries.append({"arm": f"no drift on {source}", "why": why})
    if config.intended is None or not any(prepared.about[pair.target]["has_targets"] for pair in pairs):
        entries.append({"arm": "intention", "why": "the trials of these sessions do not carry their targets"})
    if not config.has_kalman:
        entries.append({"arm": "kalman", "why": "it has a state for velocity and position alone"})
    return entries


def _digest(config: Config, jobs: Sequence[Job]) -> str:
    """What a run's folder is named by: what was asked for, and of which contents, wherever the recordings lie."""
    asked = config.model_dump(mode="json", exclude={"source": {"path", "paths", "exclude"}})
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
    from bci_adapt.data.labelled import has_trials
    from bci_adapt.data.sessions import kinematic_names, start_of

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
        and ("trial_target_dir" in session or ("trial_target" in session and "position" in session)),
        "n_axes": {name: session.sizes[session[name].dims[1]] for name in kinematic_names(session)},
        "has_trials": has_trials(session),
        "half_s": session.sizes["time"] * float(attrs["bin_s"]) / 2.0,
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
    failed = [
        {"label": each.label, "error": each.message, "traceback": "" if each.is_input_error else each.error}
        for outcome in outcomes
        for each in outcome.failed
    ]
    this = {"created": manifest["created"], "command": manifest["command"], "executed": executed, "reused": reused}
    try:
        earlier = read_manifest(folder / MANIFEST)
        kept = {name: getattr(earlier, name) for name in ("created", "command", "versions")}
        jobs, reruns = {**earlier.jobs, "failed": failed}, [*earlier.reruns, this]
    except InputError:  # there is none, or none that is whole
        return {"jobs": {"executed": executed, "reused": reused, "failed": failed}, "reruns": []}
    return {**kept, "jobs": jobs, "reruns": reruns}


def _records(files: Sequence[Job], kind: str) -> Iterator[dict[str, Any]]:
    """The records of score jobs; a missing delay stands for labels that come at the end of a trial, missing budgets of
    trials for all of them.
    """
    for job in files:
        for record in json.loads(job.path.read_text(encoding="utf-8"))[kind]:
            for name in ("delay_s", "budget_trials"):
                if name in record and record[name] is None:
                    record[name] = math.inf
            yield {name: math.nan if value is None else value for name, value in record.items()}


def _write_run(
    folder: Path,
    config: Config,
    manifest: Manifest,
    scored: Sequence[Job],
    about: Mapping[str, list[dict[str, Any]]],
    unit: str,
    beside: Sequence[Path],
) -> None:
    """Write a run's folder; `about` holds the tables that say what its arms are and what is compared, `beside` are the
    files that its config needs beside itself to be run again from there.
    """
    from bci_adapt.results.report import render_report
    from bci_adapt.results.table import long_table, write_results

    tables = {kind: long_table(_records(scored, kind), kind) for kind in KINDS}
    tables |= {kind: long_table(records, kind) for kind, records in about.items()}
    attrs = {name: getattr(manifest, name) for name in ("name", "created", "delay_bins", "primary_bins")} | {
        "unit": unit
    }
    write_results(folder / "results.nc", tables, attrs)
    write_text(folder / "config.toml", to_toml(config.model_dump(mode="json", exclude_none=True)))
    for path in beside:
        if path.resolve().parent != folder.resolve():
            write_text(folder / path.name, path.read_text(encoding="utf-8"))
    write_text(folder / MANIFEST, manifest.text())
    render_report(folder)
