"""Sine frequency shift."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bci_adapt.tasks.base import Task, require_steps


@dataclass(frozen=True)
class Sine(Task):
    """One-step prediction of a sine whose frequency changes halfway, its phase continuous (arXiv 2603.28750).

    Parameters
    ----------
    before, after : frequency in cycles per step on either side of the change.
    noise : standard deviation of Gaussian noise on the input (the target is clean).
    """

    name: ClassVar[str] = "sine"
    description: ClassVar[str] = "predict the next value of a sine whose frequency shifts, phase continuous"
    before: float = 0.04
    after: float = 0.1
    noise: float = 0.0

    def stream(self, n_steps, seed):
        require_steps(n_steps, 2)
        rng = np.random.default_rng(seed)
        change = n_steps // 2
        frequency = np.where(np.arange(n_steps + 1) < change, self.before, self.after)
        phase = rng.uniform(0, 2 * np.pi) + 2 * np.pi * np.concatenate([[0.0], np.cumsum(frequency[:-1])])
        value = np.sin(phase)[:, None]
        return value[:-1] + self.noise * rng.standard_normal((n_steps, 1)), value[1:], change
