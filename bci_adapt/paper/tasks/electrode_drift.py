"""Simulated electrode drift: spike counts of one day, then of another, months later."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from bci_adapt.data.simulate import recording
from bci_adapt.paper.tasks.base import Task, require

_BIN_MS = 50


@dataclass(frozen=True)
class ElectrodeDrift(Task):
    """Decode the velocity of a hand from simulated spike counts of day 0, and after the change of day `days`.

    Inputs are square roots of counts in bins of 50 ms, z-scored by day 0 (the units that the decoder was trained on);
    targets are velocities in standard deviations of day 0. A seed is an animal.

    Parameters
    ----------
    days : between the two recordings.
    n_units : units, each on an electrode of its own.
    severity : of the drift (`bci_adapt.data.simulate`).
    delay : bins after which the label of a bin is known.
    """

    name: ClassVar[str] = "electrode_drift"
    description: ClassVar[str] = "decode simulated spike counts of one day, then of another after months of drift"
    ceiling: ClassVar[str] = "not known: spikes are noise; a linear decoder of ten lags refitted to the day is computed"
    floor: ClassVar[float | None] = None
    days: int = 210
    n_units: int = 40
    severity: float = 1.0
    delay: int = 10

    @property
    def label_delay(self):
        return self.delay

    def make(self, n_steps, change, rng):
        require(self.delay >= 0 and self.days >= 1, self, "days of at least 1 and a delay of at least 0 bins")
        seed = int(rng.integers(2**31))
        first, second = (_day(self, day, n_steps, seed) for day in (0, self.days))
        before, moved = np.sqrt(first[0]), first[1]
        centre, spread = before.mean(axis=0), before.std(axis=0)
        spread = np.where(spread > 0, spread, 1.0)
        of_day_0 = np.arange(n_steps)[:, None] < change
        x = np.where(of_day_0, before, np.sqrt(second[0]))
        y = np.where(of_day_0, moved, second[1])
        return (x - centre) / spread, (y - moved.mean(axis=0)) / moved.std(axis=0)


@lru_cache(maxsize=8)
def _day(task: ElectrodeDrift, day: int, n_bins: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    duration_s = max(30, -(-n_bins * _BIN_MS // 1000))
    made = recording(day, duration_s=duration_s, n_units=task.n_units, severity=task.severity, seed=seed)
    return made.counts(_BIN_MS)[:n_bins], made.velocity(_BIN_MS)[:n_bins]
