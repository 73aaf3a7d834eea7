"""The Lorenz system, one coordinate of it seen through noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bci_adapt.paper.tasks.base import Task, require

_INNER = 0.005  # step of the integration in the system's time
_SPIN_UP = 2000
_MEAN, _SPREAD = 0.0, 7.93  # of x at the usual parameters


@dataclass(frozen=True)
class Lorenz(Task):
    """One-step prediction of the clean first coordinate of the Lorenz system from a noisy one.

    By default the *time scale* changes: the same attractor is sampled at another step. A small change of `rho` instead
    (``step_after = step_before``) is the example of a missing denominator: the frozen network hardly gets worse.

    Parameters
    ----------
    step_before, step_after : sampling step in the system's time.
    rho_before, rho_after : the Rayleigh number; sigma is 10 and beta 8/3.
    noise : standard deviation of the noise on the input, in standard deviations of the coordinate.
    """

    name: ClassVar[str] = "lorenz"
    description: ClassVar[str] = "predict the next value of the Lorenz system whose time scale (or parameter) shifts"
    ceiling: ClassVar[str] = "not known: the noise bounds what the past can tell of a chaotic state"
    floor: ClassVar[float | None] = None
    step_before: float = 0.05
    step_after: float = 0.1
    rho_before: float = 28.0
    rho_after: float = 28.0
    noise: float = 0.05

    def make(self, n_steps, change, rng):
        n_inner = [max(1, round(step / _INNER)) for step in (self.step_before, self.step_after)]
        require(min(self.step_before, self.step_after) >= _INNER, self, f"sampling steps of at least {_INNER}")
        state = np.array([1.0, 1.0, 25.0]) + rng.standard_normal(3)
        for _ in range(_SPIN_UP):
            state = _advance(state, self.rho_before)
        value = np.empty((n_steps + 1, 1))
        for t in range(n_steps + 1):
            value[t] = state[0]
            rho, repeats = (self.rho_before, n_inner[0]) if t < change else (self.rho_after, n_inner[1])
            for _ in range(repeats):
                state = _advance(state, rho)
        value = (value - _MEAN) / _SPREAD
        return value[:-1] + self.noise * rng.standard_normal((n_steps, 1)), value[1:]


def _slope(state: tuple[float, float, float], rho: float) -> tuple[float, float, float]:
    x, y, z = state
    return 10.0 * (y - x), x * (rho - z) - y, x * y - 8.0 / 3.0 * z


def _advance(state, rho: float):
    """One Runge-Kutta step of fourth order."""
    x, y, z = state
    half, whole = 0.5 * _INNER, _INNER
    a = _slope((x, y, z), rho)
    b = _slope((x + half * a[0], y + half * a[1], z + half * a[2]), rho)
    c = _slope((x + half * b[0], y + half * b[1], z + half * b[2]), rho)
    d = _slope((x + whole * c[0], y + whole * c[1], z + whole * c[2]), rho)
    sixth = whole / 6.0
    return tuple(v + sixth * (a[i] + 2 * b[i] + 2 * c[i] + d[i]) for i, v in enumerate((x, y, z)))
