"""A decoder class of the user's own file as an arm of a run."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bci_adapt.errors import InputError
from bci_adapt.experiment.arm import Arm
from bci_adapt.ground.jobs import Job

if TYPE_CHECKING:
    from bci_adapt.experiment.building import Builder
    from bci_adapt.experiment.pairs import Pair


@dataclass(frozen=True)
class Foreign:
    """A decoder class of the user's own file; it is loaded once here, to refuse it before anything runs."""

    file: Path
    name: str

    def code(self) -> dict[str, Path]:
        """The files that its results depend on, as inputs of a job: its own, and those beside it that it imports."""
        found, pending = [], [self.file]
        while pending:
            file = pending.pop(0)
            if file in found:
                continue
            found.append(file)
            for name in _imported(file):
                beside = self.file.parent.joinpath(*name.split("."))
                pending += [each for each in (beside.with_suffix(".py"), beside / "__init__.py") if each.is_file()]
        return {"code": found[0]} | {f"code{number}": file for number, file in enumerate(found[1:], 1)}

    @classmethod
    def parse(cls, text: str) -> Foreign:
        """From ``mine.py:Mine``; `InputError` where that names no decoder class."""
        from bci_adapt.decoders.own import load_class

        file, colon, name = text.rpartition(":")
        if not colon or not name.isidentifier():
            raise InputError(f"--decoder takes FILE.py:CLASS, got {text!r}")
        load_class(Path(file), name)
        return cls(Path(file), name)

    def predictions(self, builder: Builder, pair: Pair, seed: int, permutation: int | None) -> Job | Path:
        """The job, or the file, of what it predicts on a pair; with `permutation` of its canary."""
        config = builder.config
        job = Job(
            kind="foreign",
            function="bci_adapt.experiment.jobs.foreign:run",
            stem=f"{self.name}_{pair.target}{'' if permutation is None else '_canary'}",
            folder="results",
            suffix=".npz",
            parameters={
                "variables": config.variables,
                "target_lag_bins": config.target_lag_bins,
                "stream_s": config.stream_s,
                "decoder": self.name,
                "bin_s": config.bin_s,
                "label_delay_s": config.label_delay_s,
                "seed": seed,
                "permutation": permutation,
            },
            inputs={
                **self.code(),
                "target": builder.sessions[pair.target],
                **{f"source{i}": builder.sessions[name] for i, name in enumerate(pair.sources)},
            },
            label=f"{self.name} from {pair.source} on {pair.target}",
            cost=10.0,
        )
        return builder.known.setdefault(job.key, job)

    @property
    def arm(self) -> Arm:
        """What it is among the arms."""
        return Arm(self.name, "", self.name, "source", {}, supervision="true", drawn=True)

    def delay_s(self, asked_s: float) -> float:
        """The label delay it works at: none unless it can know of the delay."""
        from bci_adapt.decoders.own import knows_delay, load_class

        return asked_s if knows_delay(load_class(self.file, self.name)) else 0.0


def _imported(file: Path) -> list[str]:
    """Dotted names that a Python file imports, in order; names taken from a module may be modules themselves."""
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_bytes(), filename=str(file))):
        if isinstance(node, ast.Import):
            names += [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [node.module] if node.module else []
            names += [".".join(filter(None, (node.module, each.name))) for each in node.names]
    return names
