"""What a stream is, how everything on it is scored, and the one protocol that everything follows."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from bci_adapt.errors import InputError
from bci_adapt.ground.catalog import pick, variants

EXTRA = "bci-adapt[streams]"
FAILED = {"squared": 1e3, "cross_entropy": 20.0}  # a mean loss above counts as diverged
MIXED = 1e-3  # share of the uniform distribution in every predicted one: no single bin costs more than ln(K / MIXED)


class Made(NamedTuple):
    """A stream: inputs x (n_bins, n_inputs), labels y (n_bins, n_outputs), and what else rivals see, by name.

    Labels are one-hot for a loss of ``cross_entropy``; for ``squared`` the change from what the last value predicts.
    """

    x: np.ndarray
    y: np.ndarray
    seen: dict[str, np.ndarray]


class Predictor(Protocol):
    """What predicts a label from a row that it sees, and learns from rows whose labels have become known."""

    def predict(self, row: np.ndarray) -> np.ndarray: ...

    def learn(self, row: np.ndarray, label: np.ndarray) -> None: ...


@dataclass(frozen=True)
class Rival:
    """A predictor of the field.

    Parameters
    ----------
    make : builds one for a value of the grid.
    grid : values tried on the earlier part, of which the best is taken.
    sees : ``x``, ``states`` (of the untrained network) or a name in `Made.seen`.
    """

    make: Callable[[float], Predictor]
    grid: tuple[float, ...] = (0.0,)
    sees: str = "x"


@dataclass(frozen=True)
class Stream(ABC):
    """A frozen set of constants that makes streams without a change point that anybody is told of.

    Attributes
    ----------
    loss : ``cross_entropy`` or ``squared``, as of `bci_adapt.learning.online.Learner`.
    packages : that must be installed besides, all in the extra ``streams``.
    n_outputs : classes, or numbers.
    seeded : whether a seed decides the stream; else there is one only.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    loss: ClassVar[str]
    n_outputs: ClassVar[int]
    packages: ClassVar[tuple[str, ...]] = ()
    seeded: ClassVar[bool] = False

    def stream(self, n_bins: int, seed: int = 0, earlier: int = 1, delay: int = 0) -> Made:
        """The first `n_bins` bins; the label of bin t becomes known right after bin t + `delay` has been predicted.

        Inputs of a bin depend on nothing later. `earlier` bins at the beginning are for choosing rates, and for the
        units of targets. Raises `InputError` for a package that is not installed and a stream that is too short.
        """
        for name in self.packages:
            if installed(name) is None:
                raise InputError(f"stream {self.name}: needs the package {name}; install it with pip install '{EXTRA}'")
        if not 1 <= earlier <= n_bins or delay < 0:
            raise InputError(f"stream {self.name}: expected 1 ≤ earlier ≤ n_bins and delay ≥ 0, got {earlier}, {delay}")
        return self.make(n_bins, seed, earlier, delay)

    @abstractmethod
    def make(self, n_bins: int, seed: int, earlier: int, delay: int) -> Made:
        """The stream, once its packages are known to be there."""

    @abstractmethod
    def rivals(self, delay: int) -> dict[str, Rival]:
        """The field's own online predictors, by name."""

    def origin(self) -> dict[str, str | None]:
        """Versions of what the data come from; None where it is not installed."""
        return {name: installed(name) for name in self.packages}

    def too_short(self, n_bins: int, there: int) -> InputError:
        return InputError(f"stream {self.name}: it has {there} bins, {n_bins} were asked for; ask for fewer")


def installed(package: str) -> str | None:
    """Version of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def streams() -> dict[str, type[Stream]]:
    """Every stream, by name."""
    return variants("bci_adapt.paper.streams", Stream)


def stream(name: str, **constants: Any) -> Stream:
    """Build the stream called `name`; `InputError` when there is none, or no such constant."""
    kind = pick("bci_adapt.paper.streams", Stream, name)
    if unknown := [each for each in constants if each not in kind.__dataclass_fields__]:
        raise InputError(f"stream {name}: no constant {unknown[0]!r} (known: {', '.join(kind.__dataclass_fields__)})")
    return kind(**constants)


def prequential(predictor: Predictor, rows: np.ndarray, labels: np.ndarray, delay: int) -> np.ndarray:
    """Predictions (n_bins, n_outputs): every bin is predicted first, then the label of `delay` bins ago is learned."""
    predictions = np.empty(labels.shape)
    for t, row in enumerate(rows):
        predictions[t] = predictor.predict(row)
        if t >= delay:
            predictor.learn(rows[t - delay], labels[t - delay])
    return predictions


def softmax(outputs: np.ndarray) -> np.ndarray:
    """Probabilities of a network's outputs (…, n_classes)."""
    raised = np.exp(outputs - outputs.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


@dataclass(frozen=True)
class Scores:
    """How one run went: mean loss of all bins, of their second half, of twenty parts; accuracy of classes."""

    loss: float
    late: float
    accuracy: float
    failed: bool
    curve: list[float] = field(default_factory=list)


def scored(loss: str, y: np.ndarray, predictions: np.ndarray) -> Scores:
    """Prequential scores of predictions (n_bins, n_outputs): probabilities, or changes.

    The loss is nats per bin, every prediction having a share `MIXED` of the uniform distribution; or the mean squared
    error over that of the last value.
    """
    n_bins, n_outputs = y.shape
    accuracy = np.nan
    with np.errstate(over="ignore", invalid="ignore"):
        if loss == "cross_entropy":
            given = np.einsum("tk,tk->t", predictions, y)
            each, spread = -np.log((1 - MIXED) * given + MIXED / n_outputs), np.ones(n_bins)
            accuracy = float(np.mean(predictions.argmax(axis=1) == y.argmax(axis=1)))
        else:
            each, spread = ((predictions - y) ** 2).sum(axis=1), (y**2).sum(axis=1)
        parts = [slice(None), slice(n_bins // 2, None), *_twentieths(n_bins)]
        whole, late, *curve = (float(each[part].mean() / spread[part].mean()) for part in parts)
    failed = not np.isfinite(predictions).all() or not whole < FAILED[loss]
    return Scores(whole, late, accuracy, failed, curve)


def _twentieths(n_bins: int) -> list[slice]:
    edges = np.linspace(0, n_bins, min(20, n_bins) + 1).astype(int)
    return [slice(low, high) for low, high in itertools.pairwise(edges)]


def running_z(values: np.ndarray) -> np.ndarray:
    """Every row of `values` (n_bins, width) in standard deviations from the mean, both of the rows so far."""
    count = np.arange(1, len(values) + 1)[:, None]
    centred = values - values[0]  # sums of squares of what is far from zero lose digits
    mean = np.cumsum(centred, axis=0) / count
    spread = np.sqrt(np.maximum(np.cumsum(centred**2, axis=0) / count - mean**2, 0.0))
    return np.where(spread > 1e-9, (centred - mean) / np.where(spread > 1e-9, spread, 1.0), 0.0)
