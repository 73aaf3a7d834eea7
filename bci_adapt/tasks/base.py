"""What a task is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bci_adapt.catalog import pick, variants
from bci_adapt.errors import InputError


@dataclass(frozen=True)
class Task(ABC):
    """A frozen set of constants that makes streams; what an adapting network meets is decided by the seed alone."""

    name: ClassVar[str]
    description: ClassVar[str]

    @abstractmethod
    def stream(self, n_steps: int, seed: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Return inputs x (n_steps, n_inputs), targets y (n_steps, n_outputs) and the step of the change.

        Raises `InputError` when n_steps leaves nothing on either side of the change.
        """


def require_steps(n_steps: int, at_least: int) -> None:
    """Refuse a stream that is too short for its change point."""
    if n_steps < at_least:
        raise InputError(f"n_steps: expected at least {at_least}, got {n_steps}")


def tasks() -> dict[str, type[Task]]:
    """Every task, by name."""
    return variants("bci_adapt.tasks", Task)


def task(name: str, **constants: float) -> Task:
    """Build the task called `name`; `InputError` when there is none."""
    return pick("bci_adapt.tasks", Task, name)(**constants)
