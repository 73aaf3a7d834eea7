"""What a task is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bci_adapt.errors import InputError
from bci_adapt.ground.catalog import pick, variants


@dataclass(frozen=True)
class Task(ABC):
    """A frozen set of constants that makes streams; what an adapting network meets is decided by the seed alone.

    Attributes
    ----------
    ceiling : what the best possible predictor reaches, in words.
    floor : its mean squared error as a share of the target's variance, where theory gives one; None where it does not.
    label_delay : bins after which the label of a bin is known; 0 is at once.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    ceiling: ClassVar[str]
    floor: ClassVar[float | None] = 0.0

    @property
    def label_delay(self) -> int:
        return 0

    @property
    def span(self) -> int:
        """Bins that the shortest stream needs on either side of its change."""
        return 1

    def stream(self, n_steps: int, seed: int, change_at: int | None = None) -> tuple[np.ndarray, np.ndarray, int]:
        """Return inputs x (n_steps, n_inputs), targets y (n_steps, n_outputs) and the step of the change.

        The change comes halfway, or at step `change_at`: 0 gives a stream that is all of it changed, `n_steps` one that
        never changes. Streams of one seed share everything that does not depend on the change. A target that is not
        finite is no label. Raises `InputError` when n_steps leaves nothing on either side of the change, and for a
        change outside the stream.
        """
        if n_steps < 2 * self.span:
            raise InputError(f"n_steps: expected at least {2 * self.span}, got {n_steps}")
        change = n_steps // 2 if change_at is None else change_at
        if not 0 <= change <= n_steps:
            raise InputError(f"change_at: expected a step from 0 to {n_steps}, got {change_at}")
        x, y = self.make(n_steps, change, np.random.default_rng(seed))
        return x, y, change

    @abstractmethod
    def make(self, n_steps: int, change: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of a stream that changes at step `change`."""


def require(holds: bool, task: Task, what: str) -> None:
    """Refuse constants of a task that make no sense."""
    if not holds:
        raise InputError(f"{task.name}: expected {what}, got {task}")


def tasks() -> dict[str, type[Task]]:
    """Every task, by name."""
    return variants("bci_adapt.paper.tasks", Task)


def task(name: str, **constants: float) -> Task:
    """Build the task called `name`; `InputError` when there is none, or no such constant."""
    kind = pick("bci_adapt.paper.tasks", Task, name)
    if unknown := [each for each in constants if each not in kind.__dataclass_fields__]:
        raise InputError(f"task {name}: no constant {unknown[0]!r} (known: {', '.join(kind.__dataclass_fields__)})")
    return kind(**constants)
