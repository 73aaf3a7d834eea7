"""Memory for independent signs: recall, and the XOR of two of them. Immediate derivatives must fail here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bci_adapt.paper.tasks.base import Task


def _lagged(u: np.ndarray, lag: np.ndarray) -> np.ndarray:
    """u (n,) `lag` (n,) steps ago; NaN where that lies before the stream."""
    wanted = np.arange(len(u)) - lag
    return np.where(wanted >= 0, u[np.maximum(wanted, 0)], np.nan)


@dataclass(frozen=True)
class Recall(Task):
    """y_t = u_{t−delay} of iid u = ±1; at the change the delay goes from `before` to `after` steps.

    Targets of the first steps, whose input lies before the stream, are NaN: no label.
    """

    name: ClassVar[str] = "recall"
    description: ClassVar[str] = "recall an iid ±1 input after a delay that changes"
    ceiling: ClassVar[str] = "error 0 with a memory of `after` steps; without one the input says nothing: error 1"
    before: int = 4
    after: int = 8

    @property
    def span(self):
        return max(self.before, self.after) + 1

    def make(self, n_steps, change, rng):
        u = rng.choice([-1.0, 1.0], size=n_steps)
        y = _lagged(u, np.where(np.arange(n_steps) < change, self.before, self.after))
        return u[:, None], y[:, None]


@dataclass(frozen=True)
class Xor(Task):
    """y_t = u_t u_{t−delay} of iid u = ±1, the XOR in signs; at the change the delay goes from `before` to `after`.

    Unlike recall no linear readout of past inputs has any part of it.
    """

    name: ClassVar[str] = "xor"
    description: ClassVar[str] = "XOR of an iid ±1 input with itself after a delay that changes"
    ceiling: ClassVar[str] = "error 0 with a memory of `after` steps; linear filters of the input: error 1"
    before: int = 2
    after: int = 4

    @property
    def span(self):
        return max(self.before, self.after) + 1

    def make(self, n_steps, change, rng):
        u = rng.choice([-1.0, 1.0], size=n_steps)
        y = u * _lagged(u, np.where(np.arange(n_steps) < change, self.before, self.after))
        return u[:, None], y[:, None]
