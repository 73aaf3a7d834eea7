"""The adding problem as an endless stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bci_adapt.paper.tasks.base import Task, require


@dataclass(frozen=True)
class Adding(Task):
    """A random value comes every step, and now and then a marker; y_t is the sum of the last two marked values, and
    after the change their difference (after Hochreiter & Schmidhuber 1997, whose sequences end).

    Parameters
    ----------
    gap : mean number of steps between markers, which is how long a value must be kept.
    """

    name: ClassVar[str] = "adding"
    description: ClassVar[str] = "add the last two marked inputs; after the change subtract the older one"
    ceiling: ClassVar[str] = "error 0 with a memory of two marked values, kept for `gap` steps on average"
    gap: float = 6.0

    def make(self, n_steps, change, rng):
        require(self.gap >= 1.0, self, "a gap of at least 1 step")
        value = rng.uniform(-1.0, 1.0, n_steps)
        marked = rng.random(n_steps) < 1.0 / self.gap
        seen = np.concatenate([[np.nan, np.nan], value[marked]])
        latest = np.cumsum(marked) + 1  # where in `seen` the last marked value stands
        sign = np.where(np.arange(n_steps) < change, 1.0, -1.0)
        return np.column_stack([value, marked]), (seen[latest] + sign * seen[latest - 1])[:, None]
