"""Sine frequency shift, one sine or several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bci_adapt.paper.tasks.base import Task, require


def phases(frequency: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Phase in radians at every step of a frequency in cycles per step (n,), continuous, from a random start."""
    return rng.uniform(0, 2 * np.pi) + 2 * np.pi * np.concatenate([[0.0], np.cumsum(frequency[:-1])])


@dataclass(frozen=True)
class Sine(Task):
    """One-step prediction of a sine whose frequency changes, its phase continuous (arXiv 2603.28750).

    Parameters
    ----------
    before, after : frequency in cycles per step on either side of the change.
    noise : standard deviation of Gaussian noise on the input (the target is clean).
    """

    name: ClassVar[str] = "sine"
    description: ClassVar[str] = "predict the next value of a sine whose frequency shifts, phase continuous"
    ceiling: ClassVar[str] = "error 0: two past values fix a clean sine; with noise, ever more of them"
    before: float = 0.04
    after: float = 0.1
    noise: float = 0.0

    def make(self, n_steps, change, rng):
        frequency = np.where(np.arange(n_steps + 1) < change, self.before, self.after)
        value = np.sin(phases(frequency, rng))[:, None]
        return value[:-1] + self.noise * rng.standard_normal((n_steps, 1)), value[1:]


@dataclass(frozen=True)
class SineSum(Task):
    """One-step prediction of a sum of sines, all of whose frequencies are multiplied by `factor` at the change.

    Parameters
    ----------
    base : lowest frequency in cycles per step; the others are its multiples by √2 and √3, which never repeat.
    n_sines : how many, 1 to 3.
    factor : of all frequencies.
    noise : as of `sine`.
    """

    name: ClassVar[str] = "sine_sum"
    description: ClassVar[str] = "predict the next value of a sum of sines whose frequencies shift"
    ceiling: ClassVar[str] = "error 0: twice as many past values as sines fix a clean sum"
    base: float = 0.03
    factor: float = 2.0
    n_sines: int = 3
    noise: float = 0.0

    def make(self, n_steps, change, rng):
        require(1 <= self.n_sines <= 3, self, "n_sines from 1 to 3")
        value = np.zeros((n_steps + 1, 1))
        for multiple in (1.0, 2**0.5, 3**0.5)[: self.n_sines]:
            frequency = self.base * multiple * np.where(np.arange(n_steps + 1) < change, 1.0, self.factor)
            value += np.sin(phases(frequency, rng))[:, None]
        value /= self.n_sines**0.5
        return value[:-1] + self.noise * rng.standard_normal((n_steps, 1)), value[1:]
