"""Tables whose concept drifts, of the generators in river."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

import numpy as np

from bci_adapt.errors import InputError
from bci_adapt.paper.streams.base import Made, Rival, Stream, running_z
from bci_adapt.paper.streams.rivals import Counts, NoChange, RecursiveLeastSquares, RiverClassifier

_RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
_FORGETTING = (0.99, 0.997, 0.999, 0.9997, 1.0)


class Table(Stream):
    """Rows of two classes. Inputs are z-scored by the rows so far."""

    loss: ClassVar[str] = "cross_entropy"
    n_outputs: ClassVar[int] = 2
    packages: ClassVar[tuple[str, ...]] = ("river",)
    seeded: ClassVar[bool] = True
    n_features: ClassVar[int]

    @abstractmethod
    def rows(self, n_bins: int, seed: int) -> Any:
        """Pairs of river's (features by name, class)."""

    def make(self, n_bins, seed, earlier, delay):
        found = list(self.rows(n_bins, seed))
        x = np.array([list(features.values()) for features, _ in found], float)
        return Made(running_z(x), np.eye(2, dtype=np.int8)[[int(label) for _, label in found]], {})

    def rivals(self, delay):
        return {
            "majority class": Rival(lambda _: Counts(2)),
            "no change": Rival(lambda _: NoChange(2, delay)),
            "logistic regression": Rival(_logistic, _RATES),
            "Hoeffding adaptive tree": Rival(_tree),
            "linear, recursive least squares": Rival(
                lambda value: RecursiveLeastSquares(self.n_features, 2, value, classes=True), _FORGETTING
            ),
        }


def _logistic(rate: float) -> RiverClassifier:
    from river import linear_model, optim

    return RiverClassifier(linear_model.LogisticRegression(optimizer=optim.SGD(rate), intercept_lr=rate), 2)


def _tree(_: float) -> RiverClassifier:
    from river import tree

    return RiverClassifier(tree.HoeffdingAdaptiveTreeClassifier(seed=0), 2)


@dataclass(frozen=True)
class Sea(Table):
    """Three numbers, two of which add up to more than a threshold or not (Street & Kim 2001). The threshold is another
    after every `period` rows, in turn.

    Parameters
    ----------
    period : rows of one concept.
    noise : share of the labels that are wrong.
    """

    name: ClassVar[str] = "sea"
    description: ClassVar[str] = "SEA concepts: a threshold on a sum of two of three numbers jumps"
    n_features: ClassVar[int] = 3
    period: int = 2500
    noise: float = 0.1

    def rows(self, n_bins, seed):
        from river.datasets import synth

        for block, length in _blocks(self.name, n_bins, self.period):
            made = synth.SEA(variant=block % 4, noise=self.noise, seed=_seed(seed, block))
            yield from islice(made, length)


@dataclass(frozen=True)
class Agrawal(Table):
    """Nine properties of people who ask for a loan and a rule that decides (Agrawal et al. 1993); another of the ten
    rules after every `period` rows, in turn.

    Parameters
    ----------
    period : rows of one concept.
    perturbation : of numbers, after the class is decided.
    """

    name: ClassVar[str] = "agrawal"
    description: ClassVar[str] = "Agrawal's loans: the rule that decides is replaced"
    n_features: ClassVar[int] = 9
    period: int = 2500
    perturbation: float = 0.05

    def rows(self, n_bins, seed):
        from river.datasets import synth

        for block, length in _blocks(self.name, n_bins, self.period):
            made = synth.Agrawal(
                classification_function=block % 10, seed=_seed(seed, block), perturbation=self.perturbation
            )
            yield from islice(made, length)


@dataclass(frozen=True)
class Hyperplane(Table):
    """Which side of a plane in ten dimensions that turns a little with every row (Hulten et al. 2001).

    Parameters
    ----------
    turning : how far the weights of all features move per row.
    noise : share of the labels that are wrong.
    """

    name: ClassVar[str] = "hyperplane"
    description: ClassVar[str] = "a plane in ten dimensions that turns all the time"
    n_features: ClassVar[int] = 10
    turning: float = 0.001
    noise: float = 0.05

    def rows(self, n_bins, seed):
        from river.datasets import synth

        made = synth.Hyperplane(
            seed=seed,
            n_features=self.n_features,
            n_drift_features=self.n_features,
            mag_change=self.turning,
            noise_percentage=self.noise,
        )
        return islice(made, n_bins)


def _blocks(name: str, n_bins: int, period: int) -> list[tuple[int, int]]:
    if period < 1:
        raise InputError(f"stream {name}: expected a period of at least 1 row, got {period}")
    return [(block, min(period, n_bins - block * period)) for block in range(-(-n_bins // period))]


def _seed(seed: int, block: int) -> int:
    return int(np.random.default_rng([seed, block]).integers(2**31))
