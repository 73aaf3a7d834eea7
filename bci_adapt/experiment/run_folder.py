"""What a run leaves behind: its manifest, and the files of its folder."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bci_adapt.errors import InputError
from bci_adapt.experiment.arm import described
from bci_adapt.experiment.asked import ArmSection
from bci_adapt.experiment.building import Builder
from bci_adapt.experiment.comparisons import compared
from bci_adapt.experiment.config import Config, to_toml
from bci_adapt.experiment.foreign import Foreign
from bci_adapt.experiment.job_results import Costs, Drift, Scores, read_json
from bci_adapt.experiment.pairs import Pair, matched_entry, unusable_halves
from bci_adapt.experiment.preparing import Prepared
from bci_adapt.experiment.tuned import Tuned
from bci_adapt.ground.engine import Outcome
from bci_adapt.ground.jobs import Job
from bci_adapt.ground.seals import tell_damaged
from bci_adapt.ground.storage import file_digest, write_text
from bci_adapt.ground.version import __version__
from bci_adapt.results.manifest import MANIFEST, RESULTS, Manifest, read_manifest

KINDS = ("rows", "curves", "trajectories", "blocks")


@dataclass(frozen=True)
class Plan:
    """Everything that an experiment has to run, once its sessions are prepared."""

    scores: list[Job]
    drift: dict[Pair, Job]
    costs: dict[tuple[str, str], Job]

    def jobs(self) -> list[Job]:
        """All of them but those that measure time, which are run alone after the others."""
        return [*self.scores, *self.drift.values()]


@dataclass(frozen=True)
class Ran:
    """An experiment whose jobs have run: what was asked, what it was made of, and how its jobs came out. `reasons` says
    why a pair cannot be scored, empty where it can; `scores` are the score jobs, without the arms that failed.
    """

    config: Config
    command: str
    values: Tuned | None
    foreign: Sequence[Foreign]
    prepared: Prepared
    pairs: Sequence[Pair]
    reasons: Mapping[Pair, str]
    builders: Mapping[tuple[str, ...], Builder]
    plan: Plan
    outcomes: Sequence[Outcome]
    scores: Sequence[Job]

    @property
    def executed(self) -> int:
        """Jobs that were run."""
        return sum(each.executed for each in self.outcomes)

    @property
    def reused(self) -> int:
        """Jobs whose results were there."""
        return sum(each.reused for each in self.outcomes)


def manifest_of_shard(ran: Ran) -> Manifest:
    """The manifest of a part of a run; no folder is written of it."""
    failed = [{"label": each.label, "error": each.message} for outcome in ran.outcomes for each in outcome.failed]
    return Manifest.model_validate(
        _asked(ran) | {"jobs": {"executed": ran.executed, "reused": ran.reused, "failed": failed}}
    )


def manifest_of(ran: Ran, folder: Path) -> Manifest:
    """The manifest of a run whose folder is, or will be, `folder`."""
    prepared = ran.prepared
    manifest = _asked(ran) | {
        "channels": [
            matched_entry(sources, found, prepared.sessions, prepared.targets[sources])
            for sources, found in prepared.matched.items()
        ],
        "columns": prepared.columns,
        "primary_bins": "in trial" if prepared.in_trial else "all",
        "drift": [
            {"source": pair.source, "target": pair.target, **read_json(job, Drift)}
            for pair, job in ran.plan.drift.items()
            if job.is_done
        ],
        "costs": [
            {"arm": arm, "cell": cell, **read_json(job, Costs)}
            for (arm, cell), job in ran.plan.costs.items()
            if job.is_done
        ],
        "tuning": None if ran.values is None else _tuning(ran.values, ran.builders, ran.pairs),
        "primary": ran.config.primary.model_dump(),
        "not_tested": _not_tested(ran),
        "unfit": [{"session": name, "reason": reason} for name, reason in prepared.unfit.items()],
        "own_decoders": [{"file": str(own.file), "class": own.name} for own in ran.foreign],
    }
    return Manifest.model_validate(manifest | _jobs_and_reruns(folder, manifest, ran))


def _asked(ran: Ran) -> dict[str, Any]:
    """What the manifest says of what was asked for, and of what."""
    from bci_adapt.decoders.timing import delay_bins

    config = ran.config
    libraries = ("numpy", "scipy", "numba", "torch", "xarray", "pynwb", "scikit-learn", "distributed")
    other = differing_settings(config, ran.values) if ran.values is not None else {}
    return {
        "name": config.name,
        "command": ran.command,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": config.model_dump(mode="json"),
        "delay_bins": delay_bins(config.label_delay_s, config.bin_s),
        "rates_tuned": bool(config.tuned) and not other,
        **({"tuned_for": other} if other else {}),
        "versions": {
            "bci_adapt": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in libraries},
        },
        "sessions": list(ran.prepared.about.values()),
        "unscorable": [
            {"source": pair.source, "target": pair.target, "reason": reason}
            for pair, reason in ran.reasons.items()
            if reason
        ],
        "notes": ran.prepared.notes,
        "datasets": ran.prepared.datasets,
    }


def _jobs_and_reruns(folder: Path, manifest: Mapping[str, Any], ran: Ran) -> dict[str, Any]:
    """The entries ``jobs`` and ``reruns`` of a manifest; where the folder holds a run already, that one's date,
    command, versions and counts of jobs, with this one appended to its ``reruns``. Failures are those of the results.
    """
    failed = [
        {"label": each.label, "error": each.message, "traceback": "" if each.is_input_error else each.error}
        for outcome in ran.outcomes
        for each in outcome.failed
    ]
    executed, reused = ran.executed, ran.reused
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
        for record in read_json(job, Scores)[kind]:
            for name in ("delay_s", "budget_trials"):
                if name in record and record[name] is None:
                    record[name] = math.inf
            yield {name: math.nan if value is None else value for name, value in record.items()}


def write_run(folder: Path, ran: Ran, manifest: Manifest, beside: Sequence[Path]) -> Manifest:
    """Write a run's folder; returns the manifest with the digests of its files. `beside` are the files that its config
    needs beside itself to be run again from there.
    """
    from bci_adapt.results.report import render_report
    from bci_adapt.results.table import long_table, write_results

    tell_what_is_damaged(folder)
    config, scored = ran.config, [job for job in ran.scores if job.is_done]
    asked = [arm for arm in config.arms if isinstance(arm, ArmSection)]
    records = {kind: _records(scored, kind) for kind in KINDS}
    records |= {"arms": _described(ran), "comparisons": compared(config.network.cells, asked)}
    session = next(iter(ran.prepared.sessions.values()))
    attrs = {name: getattr(manifest, name) for name in ("name", "created", "delay_bins", "primary_bins")}
    units = {name: str(session[name].attrs.get("units", "")) for name in config.variables}
    attrs["unit"] = units[config.variables[0]]
    attrs |= {"units": json.dumps(units, ensure_ascii=False)} if len(units) > 1 else {}
    write_results(folder / RESULTS, {kind: long_table(each, kind) for kind, each in records.items()}, attrs)
    names = [RESULTS, "config.toml", *(path.name for path in beside)]
    write_text(folder / "config.toml", to_toml(config.model_dump(mode="json", exclude_none=True)))
    for path in beside:
        if path.resolve().parent != folder.resolve():
            write_text(folder / path.name, path.read_text(encoding="utf-8"))
    manifest = manifest.of_files(folder, names)
    write_text(folder / MANIFEST, manifest.text())
    render_report(folder)
    return manifest


def tell_what_is_damaged(folder: Path) -> None:
    """Name what a run's folder holds and is not as it was written, before it is written again."""
    if not (folder / MANIFEST).is_file():
        return
    try:
        earlier = read_manifest(folder / MANIFEST)
    except InputError:
        tell_damaged(folder / MANIFEST, "it is written again")
        return
    for name, digest in earlier.files.items():
        if (folder / name).is_file() and file_digest(folder / name) != digest:
            tell_damaged(folder / name, "it is written again")


def _described(ran: Ran) -> list[dict[str, Any]]:
    """The table of arms: those of the run, decoders of the user's own, and those that were tuned besides."""
    arms = {
        (arm.name, arm.cell): arm for pair in ran.pairs for arm in ran.builders[pair.sources].arms(pair, tuned=False)
    }
    records = described([*arms.values(), *(own.arm for own in ran.foreign)])
    known = {(record["arm"], record["cell"]) for record in records}
    tuned = ran.values.about.get("arms", ()) if ran.values is not None else ()
    return records + [record for record in tuned if (record["arm"], record["cell"]) not in known]


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


def _tuning(values: Tuned, builders: Mapping[tuple[str, ...], Builder], pairs: Sequence[Pair]) -> dict[str, Any]:
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


def _not_tested(ran: Ran) -> list[dict[str, str]]:
    """Standing arms that could not be run, and why."""
    config, prepared, pairs = ran.config, ran.prepared, ran.pairs
    entries = [{"arm": name, "why": "left out by controls.without"} for name in config.controls.without]
    for source in dict.fromkeys(pair.sources[-1] for pair in pairs) if config.controls.no_drift else ():
        if why := unusable_halves(prepared.sessions[source], config, prepared.in_trial):
            entries.append({"arm": f"no drift on {source}", "why": why})
    if config.intended is None or not any(prepared.about[pair.target]["has_targets"] for pair in pairs):
        entries.append({"arm": "intention", "why": "the trials of these sessions do not carry their targets"})
    if not config.has_kalman:
        entries.append({"arm": "kalman", "why": "it has a state for velocity and position alone"})
    return entries
