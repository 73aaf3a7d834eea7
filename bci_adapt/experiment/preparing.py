"""The sessions of an experiment: found, fetched, prepared, and brought together on their channels."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bci_adapt.archive.sources.base import Source
from bci_adapt.errors import InputError
from bci_adapt.experiment.building import Builder
from bci_adapt.experiment.common_jobs import axes_job, columns_job, prepare_job
from bci_adapt.experiment.config import EARLIER, Config, DandiSource, FilesSource, PairSection, SimulatedSource
from bci_adapt.experiment.pairs import Channels, Pair, choose_pairs, match_channels, unscorable
from bci_adapt.experiment.tuned import Tuned
from bci_adapt.ground.engine import Outcome, Progress, Workplace, execute
from bci_adapt.ground.jobs import Job
from bci_adapt.ground.storage import cache_root


def open_source(
    config: Config,
    lock: Path | None = None,
    offline: bool = False,
    say: Callable[[str], None] = lambda text: None,
    verify: bool = False,
    sure: bool = False,
) -> Source:
    """The source of recordings that a config names; nothing is read or written yet.

    Of a dandiset, `lock` is the file that pins what is read, `offline` keeps to what is in the cache (with `sure` only
    where that is known to be all that is meant), and with `verify` the digests of what lies there are computed anew.
    Files that lie elsewhere are always digested.
    """
    section = config.source
    if isinstance(section, DandiSource):
        from bci_adapt.archive.sources.dandi import Dandi

        def fetched(path: str, done: int, size: int) -> None:
            say(f"{path}: {done / 1e6:.0f} of {size / 1e6:.0f} MB")

        chosen = section.model_dump(exclude={"kind"})
        return Dandi(**chosen, lock=lock, offline=offline, progress=fetched, anew=verify, sure=sure)
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


@dataclass
class Prepared:
    """The prepared sessions of an experiment: jobs, sessions and what is said of them, by id; which meet; and which are
    `unfit` to be one of the earlier days that a config asks for all of, with the reason; `columns` says of each whether
    its columns are those of the others, once that was asked; `foreign` says of which they are not, where the config
    leaves these out.
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
    columns: list[dict[str, Any]] = field(default_factory=list)
    foreign: dict[str, str] = field(default_factory=dict)

    @property
    def in_trial(self) -> bool:
        """Whether bins inside trials are scored: where every session has trials, so that all scores mean the same."""
        return all(each["has_trials"] for each in self.about.values())

    def pairs(self, sections: Sequence[PairSection]) -> list[Pair]:
        """The pairs that sections of the config name."""
        return choose_pairs(sections, self.session_ids, self.unfit)

    def unscorable(self, pairs: Sequence[Pair], config: Config) -> dict[Pair, str]:
        """Why the target of each pair gives no score; empty where it does."""
        return {
            pair: self.foreign.get(pair.target) or unscorable(self.sessions[pair.target], config, self.in_trial)
            for pair in pairs
        }

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
    scheduler: Workplace | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda text: None,
    note: Callable[[str], None] = lambda text: None,
    lock: Path | None = None,
    offline: bool = False,
    verify: bool = False,
    sure: bool = False,
) -> tuple[Prepared, list[Pair]]:
    """Fetch and prepare the sessions of the pairs that `sections` name, and bring them together on their channels.

    Raises
    ------
    InputError
        when a recording cannot be used, the pairs cannot be formed, or sessions of a pair do not meet on channels.
    """
    from bci_adapt.data.session_files import read_session

    say("finding sessions")
    source = open_source(config, lock, offline, say, verify, sure)
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
    refuse_failures(outcome)
    sessions = {name: read_session(job.path) for name, job in jobs.items()}
    notes = [*source.notes()]
    if config.axes:
        told = _choose_axes(config.axes, jobs, sessions)
        notes += told
        for text in told:
            note(text)
    about = {name: _metadata_of(name, session) for name, session in sessions.items()}
    prepared = Prepared(session_ids, jobs, sessions, about, outcome, notes, [*source.datasets()])
    if any(section.source == (EARLIER,) for section in sections):
        judged = {name: unscorable(each, config, prepared.in_trial) for name, each in sessions.items()}
        prepared.unfit |= {name: reason for name, reason in judged.items() if reason}
    if config.identity.foreign != "keep":
        options = {"workers": workers, "scheduler": scheduler, "progress": progress}
        _without_foreign(config, prepared, sections, execute([columns_job(config, jobs)], **options))
    pairs = prepared.pairs(sections)
    for pair in pairs:
        prepared.targets.setdefault(pair.sources, []).append(pair.target)
    for sources, targets in prepared.targets.items():
        prepared.matched[sources] = match_channels(config, sources, targets, sessions)
    return prepared, pairs


def _without_foreign(config: Config, prepared: Prepared, sections: Sequence[PairSection], outcome: Outcome) -> None:
    """Take sessions of foreign columns out of the earlier days and say why they are no targets; `InputError` where the
    config refuses them, or names one as a source.
    """
    refuse_failures(outcome)
    told = json.loads(columns_job(config, prepared.jobs).path.read_text(encoding="utf-8"))["sessions"]
    found = {
        name: each["sentence"]
        for name, each in zip(prepared.jobs, told, strict=False)  # nothing is told of sessions that do not meet
        if each["verdict"] == "foreign"
    }
    named = {name for section in sections if section.source != (EARLIER,) for name in _sources(section, prepared)}
    refused = [text for name, text in found.items() if config.identity.foreign == "refuse" or name in named]
    if refused:
        raise InputError(
            f"identity.foreign = {config.identity.foreign}: {'; '.join(refused)}; leave these sessions out of the "
            'pairs, or keep them (identity.foreign = "keep")'
        )
    prepared.foreign |= found
    prepared.unfit |= found


def _sources(section: PairSection, prepared: Prepared) -> set[str]:
    return {name for pair in choose_pairs([section], prepared.session_ids) for name in pair.sources}


def _choose_axes(asked: Mapping[str, Sequence[str]], jobs: dict[str, Job], sessions: dict[str, Any]) -> list[str]:
    """Put sessions with the axes `asked` for, and the jobs that write them, in the place of those of all axes."""
    from bci_adapt.data import axes

    chosen = axes.named_axes(asked, list(sessions.values()))
    notes = axes.told(chosen, list(sessions.values()))
    for name in sessions:
        sessions[name] = axes.with_axes(sessions[name], chosen)
        jobs[name] = axes_job(jobs[name], chosen)
    return notes


def _metadata_of(name: str, session: Any) -> dict[str, Any]:
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


def refuse_failures(outcome: Outcome) -> None:
    """Raise for jobs that failed: a recording that cannot be used is the user's to mend, anything else is a bug."""
    for failure in outcome.failed:
        if failure.is_input_error:
            raise InputError(failure.message)
    if outcome.failed:
        raise RuntimeError(f"{outcome.failed[0].label} failed:\n{outcome.failed[0].error}")
