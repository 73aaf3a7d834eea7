"""Jobs that know of no pair – a recording prepared, a loop compiled – and the modules that variants bring into keys."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

from bci_adapt.experiment.config import Config
from bci_adapt.ground import catalog
from bci_adapt.ground.jobs import Job


def machine() -> str:
    """The kind of machine this is, as far as times measured on it depend on it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()}, {os.cpu_count()} cores"
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def prepare_job(config: Config, recording: Path, provenance: Mapping[str, str]) -> Job:
    return Job(
        kind="prepare",
        function="bci_adapt.experiment.jobs.prepare:run",
        stem=recording.stem,
        folder="sessions",
        suffix=".nc",
        parameters={
            "bin_s": config.bin_s,
            "layout": config.layout,
            "spikes": config.spikes,
            "targets": config.kinematics,
            "per": config.per,
            **({"unobserved": config.unobserved} if config.unobserved else {}),
            "provenance": dict(provenance),
            "thresholds": config.thresholds.model_dump(),
        },
        inputs={"recording": recording},
        modules=_layouts_of(config, recording),
        label=f"prepare {recording.name}",
        cost=1.0,
    )


def columns_job(config: Config, sessions: Mapping[str, Job]) -> Job:
    """The job that asks the counts of all sessions whether their columns are the same channels."""
    return Job(
        kind="columns",
        function="bci_adapt.experiment.jobs.columns:run",
        stem=f"columns_{config.name}",
        folder="results",
        suffix=".json",
        parameters={"policy": config.channels.policy},
        inputs={f"session{i}": job for i, job in enumerate(sessions.values())},
        label="whose columns the sessions have",
        cost=1.0 + len(sessions),
    )


def _layouts_of(config: Config, recording: Path) -> tuple[str, ...]:
    """The layouts that decide what a file becomes: all that may be chosen, the one that is named, or none."""
    from bci_adapt.data.layouts.base import Layout

    if recording.suffix in (".nc", ".npz") or config.spikes or config.kinematics:
        return ()  # read without any, or by the one that `prepare` itself imports
    if config.layout is None:
        return ("bci_adapt.data.layouts",)
    return (catalog.pick("bci_adapt.data.layouts", Layout, config.layout).__module__,)


def axes_job(prepared: Job, axes: Mapping[str, Sequence[str]]) -> Job:
    """The job that leaves a prepared session the `axes` chosen of its variables."""
    return Job(
        kind="select",
        function="bci_adapt.experiment.jobs.axes:run",
        stem=f"{prepared.stem}_axes",
        folder="sessions",
        suffix=".nc",
        parameters={"axes": {name: list(each) for name, each in axes.items()}},
        inputs={"session": prepared},
        label=f"axes of {prepared.stem}",
        cost=0.5,
    )


def kernel(
    cell: str, rule: str, optimizer: str, clips: bool = False, loss: str = "squared", fresh: bool = False
) -> Job:
    """The job that compiles one loop. Constants do not change it, but for gradients that are clipped and for a late
    label's error that is made `fresh` (`CreditRule.fresh_error`).
    """
    other = "_fresh" * fresh + (f"_{loss}" if loss != "squared" else "")
    return Job(
        kind="compile",
        function="bci_adapt.experiment.jobs.compile:run",
        stem=f"loop_{cell}_{rule}_{optimizer}{'_clipped' * clips}{other}",
        folder="results",
        suffix=".json",
        parameters={"cell": cell, "rule": rule, "optimizer": optimizer, "clips": clips, "loss": loss, "fresh": fresh},
        modules=(*cell_modules(cell), *rule_modules(rule)),
        label=f"compile {cell}, {rule}, {optimizer}{other.replace('_', ' ')}",
        cost=6.0,
    )


def decoder_modules(decoder: str) -> tuple[str, ...]:
    from bci_adapt.decoders.base import decoder_class

    return (decoder_class(decoder).__module__,)


def cell_modules(name: str) -> tuple[str, ...]:
    from bci_adapt.learning.cells.base import cell

    return (cell(name).make.__module__,)


def rule_modules(name: str) -> tuple[str, ...]:
    from bci_adapt.learning.credit.base import rules

    return (rules()[name].__module__,)
