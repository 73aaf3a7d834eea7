"""Prediction far ahead, with the label at once or when it is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bci_adapt.paper.tasks.base import Task, require
from bci_adapt.paper.tasks.sine import phases


@dataclass(frozen=True)
class Delayed(Task):
    """Predict a sine `horizon` steps ahead across a change of its frequency.

    A horizon that is a whole number of cycles would make the present input the answer, so the default frequencies are
    not multiples of 1/50.

    Parameters
    ----------
    before, after : frequency in cycles per step.
    horizon : steps ahead.
    causal : the label of a bin comes when it can be known, `horizon` steps later; else at once, out of the future.
    noise : as of `sine`.
    """

    name: ClassVar[str] = "delayed"
    description: ClassVar[str] = "predict a sine 50 steps ahead; the label comes at once, or 50 steps later (causal)"
    ceiling: ClassVar[str] = "error 0, but for the steps before the change whose target lies behind it"
    before: float = 0.037
    after: float = 0.091
    horizon: int = 50
    causal: bool = True
    noise: float = 0.0

    @property
    def label_delay(self):
        return self.horizon if self.causal else 0

    @property
    def span(self):
        return self.horizon + 1

    def make(self, n_steps, change, rng):
        require(self.horizon >= 1, self, "a horizon of at least 1 step")
        # A stream that never changes does not do so behind its end either, where its last targets lie.
        never = n_steps + self.horizon if change == n_steps else change
        frequency = np.where(np.arange(n_steps + self.horizon) < never, self.before, self.after)
        value = np.sin(phases(frequency, rng))[:, None]
        return value[:n_steps] + self.noise * rng.standard_normal((n_steps, 1)), value[self.horizon :]
