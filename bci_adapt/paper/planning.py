"""From the config of a figure to jobs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from bci_adapt.experiment.common_jobs import kernel
from bci_adapt.ground.jobs import Job
from bci_adapt.learning.cells.base import Network, cell
from bci_adapt.learning.credit.base import rule, rules
from bci_adapt.paper.config import STAR, FigureConfig, Method, StreamSection, TaskSection
from bci_adapt.paper.streams.rivals import all_rivals
from bci_adapt.paper.tasks.base import tasks

FOLDER = "paper"
LOOKER = {
    "rule": "immediate", "rule_constants": {}, "optimizer": "rmsprop", "optimizer_constants": {}, "group_rates": {},
    "learns": None, "start": "pretrained", "drift": True, "precision": "float64",
}  # fmt: skip
_NS_PER_WEIGHT, _NS_PER_MEMORY = 1.2, 0.25  # of one bin: rough, for the order of jobs only


@dataclass(frozen=True)
class Entry:
    """A job and what it is about; `method` is empty for what learns nothing."""

    kind: str  # networks, adapt, gradients, memory, stream or rival
    task: str
    cell: str
    n_hidden: int
    method: str
    job: Job
    columns: dict[str, Any] = field(default_factory=dict)


def entries(config: FigureConfig) -> list[Entry]:
    """Every job of a figure, inputs before what reads them."""
    found: list[Entry] = []
    for section in config.tasks:
        for cell_name in section.cells or config.cells:
            for n_hidden in section.n_hidden or config.n_hidden:
                networks = _networks(config, section, cell_name, n_hidden)
                found.append(
                    Entry("networks", section.text, cell_name, n_hidden, "", networks, {"min_ratio": section.min_ratio})
                )
                for method in config.every_method():
                    if method.runs_on(section.text, cell_name, n_hidden):
                        job = _adapt(config, section, cell_name, n_hidden, method, networks)
                        found.append(
                            Entry("adapt", section.text, cell_name, n_hidden, method.label, job, _columns(method))
                        )
                if config.gradients is not None:
                    job = _gradients(config, section, cell_name, n_hidden, networks)
                    found.append(Entry("gradients", section.text, cell_name, n_hidden, "", job))
    return found + _streams(config) + _memory(config)


def _columns(method: Method) -> dict[str, Any]:
    decay = method.rule_constants.get("decay")
    return {
        "rule": method.rule_text, "optimizer": method.optimizer_text, "precision": method.section.precision,
        "drift": method.section.drift, "decay": None if decay == STAR else decay,
    }  # fmt: skip


def _modules(cell_name: str, *rule_names: str) -> tuple[str, ...]:
    return (cell(cell_name).make.__module__, *(rules()[name].__module__ for name in rule_names))


def _task_module(section: TaskSection) -> str:
    return tasks()[section.name].__module__


def _networks(config: FigureConfig, section: TaskSection, cell_name: str, n_hidden: int) -> Job:
    training = section.training or config.training
    online = training.how == "online"
    n_seeds = len(config.seeds) + len(config.tuning_seeds)
    size = n_hidden * n_hidden * len(cell(cell_name).gates)
    history = rule(training.rule, **training.parameters()["rule_constants"]).history + 1
    seconds = (
        1e-6 * size * training.updates if training.how == "bptt" else 2e-9 * size * history * config.steps.pretrain
    )
    return Job(
        kind="networks",
        function="bci_adapt.paper.jobs.task_pretrain:run",
        stem=f"{section.text}_{cell_name}_{n_hidden}",
        folder=FOLDER,
        suffix=".npz",
        parameters={
            "task": {"name": section.name, "constants": section.constants},
            "cell": cell_name,
            "n_hidden": n_hidden,
            "seeds": [*config.seeds, *config.tuning_seeds],
            "steps": config.steps.model_dump(),
            "training": training.parameters(),
            "oracle": config.oracle,
        },
        inputs={"kernel": kernel(cell_name, training.rule, training.optimizer)} if online else {},
        modules=(*_modules(cell_name, *([training.rule] if online else [])), _task_module(section)),
        label=f"train {cell_name} n={n_hidden} on {section.text}",
        cost=n_seeds * (1 + config.oracle) * seconds,
    )


def _adapt(
    config: FigureConfig, section: TaskSection, cell_name: str, n_hidden: int, method: Method, networks: Job
) -> Job:
    credit = rule(method.rule, **{k: v for k, v in method.rule_constants.items() if v != STAR})
    network = Network(cell(cell_name), 1, n_hidden, 1)
    per_bin = _NS_PER_WEIGHT * network.n_parameters * (1 + credit.history)
    per_bin += _NS_PER_MEMORY * math.prod(credit.memory_shape(network)) * (n_hidden if method.rule == "rtrl" else 1)
    if method.section.precision == "float32":
        per_bin += 2e5
    n_bins = config.steps.adapt + config.steps.held_out + config.steps.warm
    n_runs = config.tuning.max_points * len(config.tuning_seeds) + 2 * len(config.seeds)
    clips = method.optimizer_constants.get("clip", 0.0) > 0.0
    return Job(
        kind="adapt",
        function="bci_adapt.paper.jobs.task_adapt:run",
        stem=f"{section.text}_{cell_name}_{n_hidden}_{method.label}",
        folder=FOLDER,
        suffix=".json",
        parameters={
            "cell": cell_name,
            "n_hidden": n_hidden,
            "steps": config.steps.model_dump(),
            "label_delay": section.made().label_delay,
            "n_seeds": len(config.seeds),
            "method": method.parameters(),
            "shared_rate": config.shared_rate(method),
            **config.tuning.model_dump(),
        },
        inputs={"networks": networks, "kernel": kernel(cell_name, method.rule, method.optimizer, clips)},
        modules=_modules(cell_name, method.rule),
        label=f"{section.text}, {cell_name} n={n_hidden}: {method.label}",
        cost=0.3 + 1e-9 * per_bin * n_bins * n_runs,
    )


def _gradients(config: FigureConfig, section: TaskSection, cell_name: str, n_hidden: int, networks: Job) -> Job:
    asked = config.gradients
    assert asked is not None
    looking = [*asked.rules, *(["rtrl"] if n_hidden <= asked.exact_up_to else [])]
    kernels = {f"kernel_{name}": kernel(cell_name, name, "momentum") for name in {*looking, "immediate"}}
    return Job(
        kind="gradients",
        function="bci_adapt.paper.jobs.task_gradients:run",
        stem=f"{section.text}_{cell_name}_{n_hidden}_gradients",
        folder=FOLDER,
        suffix=".json",
        parameters={
            "cell": cell_name,
            "n_hidden": n_hidden,
            "steps": config.steps.model_dump(),
            "label_delay": section.made().label_delay,
            "n_seeds": len(config.seeds),
            "method": LOOKER,
            "rate": asked.rate,
            "rules": looking,
            "n_bins": asked.n_bins,
            "every": asked.every,
        },
        inputs={"networks": networks, "kernel": kernel(cell_name, "immediate", "rmsprop"), **kernels},
        modules=_modules(cell_name, "immediate", *looking),
        label=f"gradients of {cell_name} n={n_hidden} on {section.text}",
        cost=len(config.seeds) * asked.n_bins * (2e-3 + 1e-10 * n_hidden**3),
    )


def _memory(config: FigureConfig) -> list[Entry]:
    if config.memory is None:
        return []
    found = []
    for method in config.every_method():
        most = config.memory.measured_up_to.get(method.rule, 0)
        for n_hidden in config.memory.sizes:
            measured = n_hidden <= most
            job = Job(
                kind="memory",
                function="bci_adapt.paper.jobs.task_memory:run",
                stem=f"memory_{method.rule_text}_{n_hidden}",
                folder=FOLDER,
                suffix=".json",
                parameters={
                    "cell": config.cells[0],
                    "n_hidden": n_hidden,
                    "n_inputs": config.memory.n_inputs,
                    "method": method.parameters(),
                    "measured": measured,
                },
                inputs={"kernel": kernel(config.cells[0], method.rule, method.optimizer)} if measured else {},
                modules=_modules(config.cells[0], method.rule),
                label=f"memory of {method.rule_text}, n={n_hidden}",
                cost=1.0 if measured else 0.1,
            )
            found.append(Entry("memory", "", config.cells[0], n_hidden, method.label, job, _columns(method)))
    return found


def _streams(config: FigureConfig) -> list[Entry]:
    found = []
    for section in config.streams:
        for delay in section.delays:
            for cell_name in config.cells:
                for n_hidden in section.n_hidden or config.n_hidden:
                    where = section.late(delay), cell_name, n_hidden
                    for method in config.every_method():
                        if method.runs_on(section.text, cell_name, n_hidden):
                            job = _learned(config, section, delay, cell_name, n_hidden, method)
                            found.append(Entry("stream", *where, method.label, job, _columns(method)))
                    for name in all_rivals(section.made(), cell_name, n_hidden, delay):
                        job = _rival(config, section, delay, cell_name, n_hidden, name)
                        found.append(Entry("rival", *where, name, job, dict.fromkeys(("rule", "optimizer"), "")))
    return found


def _stream_parameters(
    config: FigureConfig, section: StreamSection, delay: int, cell_name: str, n_hidden: int
) -> dict[str, Any]:
    return {
        "stream": {"name": section.name, "constants": section.constants},
        "delay": delay, "earlier": section.earlier, "n_bins": section.n_bins, "cell": cell_name, "n_hidden": n_hidden,
        "seeds": config.seeds, "tuning_seeds": config.tuning_seeds,
    }  # fmt: skip


def _learned(
    config: FigureConfig, section: StreamSection, delay: int, cell_name: str, n_hidden: int, method: Method
) -> Job:
    clips = method.optimizer_constants.get("clip", 0.0) > 0.0
    compiled = kernel(cell_name, method.rule, method.optimizer, clips, section.made().loss)
    credit, network = rule(method.rule, **method.rule_constants), Network(cell(cell_name), 10, n_hidden, 10)
    per_bin = _NS_PER_WEIGHT * network.n_parameters * (1 + credit.history)
    per_bin += _NS_PER_MEMORY * math.prod(credit.memory_shape(network)) * (n_hidden if method.rule == "rtrl" else 1)
    n_runs = config.tuning.max_points * len(config.tuning_seeds), 2 * len(config.seeds)
    return Job(
        kind="stream",
        function="bci_adapt.paper.jobs.stream_learn:run",
        stem=f"{section.late(delay)}_{cell_name}_{n_hidden}_{method.label}",
        folder=FOLDER,
        suffix=".json",
        parameters=_stream_parameters(config, section, delay, cell_name, n_hidden)
        | {"method": method.parameters(), "shared_rate": config.shared_rate(method), **config.tuning.model_dump()},
        inputs={"kernel": compiled},
        modules=(*_modules(cell_name, method.rule), type(section.made()).__module__),
        versions=section.made().origin(),
        label=f"{section.late(delay)}, {cell_name} n={n_hidden}: {method.label}",
        cost=0.3 + 1e-9 * per_bin * (section.earlier * n_runs[0] + section.n_bins * n_runs[1]),
    )


def _rival(config: FigureConfig, section: StreamSection, delay: int, cell_name: str, n_hidden: int, name: str) -> Job:
    return Job(
        kind="rival",
        function="bci_adapt.paper.jobs.stream_learn:rival",
        stem=f"{section.late(delay)}_{cell_name}_{n_hidden}_{name}",
        folder=FOLDER,
        suffix=".json",
        parameters=_stream_parameters(config, section, delay, cell_name, n_hidden) | {"rival": name},
        modules=(cell(cell_name).make.__module__, type(section.made()).__module__),
        versions=section.made().origin(),
        label=f"{section.late(delay)}: {name}",
        cost=0.3 + 1e-4 * section.n_bins * len(config.seeds),
    )
