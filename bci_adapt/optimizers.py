"""Optimisers: one in-place update per weight row, each with torch.optim's definition.

An optimiser is a frozen set of constants. Its ``make()`` returns ``update(theta, g, state, rate, hyper, t)``, which
changes one row of weights: theta (w,), its gradient g (w,), the optimiser's arrays for that row state (n_slots, w),
the learning rate of every column rate (w,), the constants hyper, and t ≥ 1, the number of this update.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bci_adapt.catalog import pick, variants


@dataclass(frozen=True)
class Optimizer(ABC):
    """Base of all optimisers.

    Parameters
    ----------
    learning_rate : step size of every weight group without a multiplier of its own.
    """

    name: ClassVar[str]
    n_slots: ClassVar[int]
    description: ClassVar[str]
    learning_rate: float = 1e-3

    def hyper(self) -> np.ndarray:
        """Constants as the kernel reads them (n_constants,)."""
        return np.zeros(1)

    @abstractmethod
    def make(self) -> Callable:
        """Return the update of one row, in plain Python that also compiles."""


@dataclass(frozen=True)
class SGD(Optimizer):
    """θ ← θ − η g."""

    name: ClassVar[str] = "sgd"
    n_slots: ClassVar[int] = 0
    description: ClassVar[str] = "θ ← θ − η g"

    def make(self):
        def update(theta, g, state, rate, hyper, t):
            for j in range(theta.shape[0]):
                theta[j] -= rate[j] * g[j]

        return update


@dataclass(frozen=True)
class RMSprop(Optimizer):
    """v ← β₂ v + (1 − β₂) g²;  θ ← θ − η g / (√v + ε)  (Hinton 2012; torch.optim.RMSprop)."""

    name: ClassVar[str] = "rmsprop"
    n_slots: ClassVar[int] = 1
    description: ClassVar[str] = "v ← β₂ v + (1−β₂) g²; θ ← θ − η g/(√v + ε)  (Hinton 2012)"
    beta2: float = 0.99
    epsilon: float = 1e-8

    def hyper(self):
        return np.array([self.beta2, self.epsilon])

    def make(self):
        def update(theta, g, state, rate, hyper, t):
            beta2, epsilon = hyper[0], hyper[1]
            v = state[0]
            for j in range(theta.shape[0]):
                v[j] = beta2 * v[j] + (1.0 - beta2) * (g[j] * g[j])
                theta[j] -= rate[j] * g[j] / (np.sqrt(v[j]) + epsilon)

        return update


@dataclass(frozen=True)
class Adam(Optimizer):
    """Kingma & Ba 2015 with bias correction, as torch.optim.Adam."""

    name: ClassVar[str] = "adam"
    n_slots: ClassVar[int] = 2
    description: ClassVar[str] = "m, v exponential means of g, g²; θ ← θ − η m̂/(√v̂ + ε)  (Kingma & Ba 2015)"
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def hyper(self):
        return np.array([self.beta1, self.beta2, self.epsilon])

    def make(self):
        def update(theta, g, state, rate, hyper, t):
            beta1, beta2, epsilon = hyper[0], hyper[1], hyper[2]
            m, v = state[0], state[1]
            scale = 1.0 / (1.0 - beta1**t)
            root = np.sqrt(1.0 - beta2**t)
            for j in range(theta.shape[0]):
                m[j] = beta1 * m[j] + (1.0 - beta1) * g[j]
                v[j] = beta2 * v[j] + (1.0 - beta2) * (g[j] * g[j])
                theta[j] -= rate[j] * scale * m[j] / (np.sqrt(v[j]) / root + epsilon)

        return update


def optimizers() -> dict[str, type[Optimizer]]:
    """Every optimiser, by name."""
    return variants("bci_adapt.optimizers", Optimizer)


def optimizer(name: str, **constants: float) -> Optimizer:
    """Build the optimiser called `name`; `InputError` when there is none."""
    return pick("bci_adapt.optimizers", Optimizer, name)(**constants)
