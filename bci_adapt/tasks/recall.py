"""Delayed recall: the task on which immediate derivatives must fail."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bci_adapt.tasks.base import Task, require_steps


@dataclass(frozen=True)
class Recall(Task):
    """y_t = u_{t−delay} of iid u = ±1; halfway the delay changes from `before` to `after` steps.

    Targets of the first steps, whose input lies before the stream, are NaN: no label.
    """

    name: ClassVar[str] = "recall"
    description: ClassVar[str] = "recall an iid ±1 input after a delay that changes"
    before: int = 4
    after: int = 8

    def stream(self, n_steps, seed):
        longest = max(self.before, self.after)
        require_steps(n_steps, 2 * longest + 2)
        u = np.random.default_rng(seed).choice([-1.0, 1.0], size=n_steps)
        change = n_steps // 2
        at = np.arange(n_steps)
        wanted = at - np.where(at < change, self.before, self.after)
        y = np.where(wanted >= 0, u[np.maximum(wanted, 0)], np.nan)
        return u[:, None], y[:, None], change
