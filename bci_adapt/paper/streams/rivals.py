"""Online predictors of the field, as `bci_adapt.paper.streams.base.Predictor`."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from bci_adapt.learning.cells.base import cell
from bci_adapt.paper.streams.base import Rival, Stream

RESERVOIR = "untrained network, recursive least squares"
_FORGETTING = (0.997, 0.999, 0.9999, 1.0)


def all_rivals(stream: Stream, cell_name: str, n_hidden: int, delay: int) -> dict[str, Rival]:
    """The field's own, and an exact linear readout of a network that does not learn (the reservoir)."""
    width, n_outputs = len(cell(cell_name).features) * n_hidden, stream.n_outputs

    def readout(value: float) -> RecursiveLeastSquares:
        return RecursiveLeastSquares(width, n_outputs, value, classes=stream.loss == "cross_entropy")

    return stream.rivals(delay) | {RESERVOIR: Rival(readout, _FORGETTING, sees="states")}


class Counts:
    """Class frequencies so far with additive smoothing, over all bins or by the one class that is marked in the row.

    Parameters
    ----------
    by_row : whether the row is one-hot and frequencies are kept for each of its classes (a bigram).
    smoothing : added to every count.
    """

    def __init__(self, n_classes: int, by_row: bool = False, smoothing: float = 0.5):
        self.by_row = by_row
        self.counts = np.full((n_classes if by_row else 1, n_classes), smoothing)

    def _of(self, row: np.ndarray) -> np.ndarray:
        return self.counts[int(row.argmax()) if self.by_row else 0]

    def predict(self, row):
        counts = self._of(row)
        return counts / counts.sum()

    def learn(self, row, label):
        counts = self._of(row)
        counts += label


class NoChange:
    """The last class known, with a probability of how often that was right (add-one), the others alike."""

    def __init__(self, n_classes: int, delay: int):
        self.n_classes, self.right, self.n = n_classes, 1, 2
        self.known: deque[int] = deque(maxlen=delay + 1)  # the oldest is what bin t was predicted from

    def predict(self, row):
        if not self.known:
            return np.full(self.n_classes, 1.0 / self.n_classes)
        share = self.right / self.n
        guess = np.full(self.n_classes, (1.0 - share) / (self.n_classes - 1))
        guess[self.known[-1]] = share
        return guess

    def learn(self, row, label):
        found = int(label.argmax())
        if len(self.known) == self.known.maxlen:
            self.right += found == self.known[0]
            self.n += 1
        self.known.append(found)


class Nothing:
    """No change at all: the last value."""

    def __init__(self, n_outputs: int = 1):
        self.n_outputs = n_outputs

    def predict(self, row):
        return np.zeros(self.n_outputs)

    def learn(self, row, label):
        pass


class Column(Nothing):
    """One number of the row itself, such as the change that a season ago predicts."""

    def __init__(self, position: int):
        self.position = position

    def predict(self, row):
        return row[[self.position]]


class RecursiveLeastSquares:
    """Linear regression on the row and a constant, exact after every label (Haykin 2002, ch. 13).

    Parameters
    ----------
    forgetting : factor on the past per label; 1 forgets nothing.
    penalty : of the ridge that it begins with.
    classes : make probabilities of its outputs: what is below zero counts as zero, then they sum to one.
    """

    def __init__(
        self, n_inputs: int, n_outputs: int, forgetting: float = 1.0, penalty: float = 1.0, classes: bool = False
    ):
        self.forgetting, self.classes = forgetting, classes
        self.weights = np.zeros((n_inputs + 1, n_outputs))
        self.P = np.eye(n_inputs + 1) / penalty

    def predict(self, row):
        told = np.append(row, 1.0) @ self.weights
        if not self.classes:
            return told
        told = np.maximum(told, 0.0)
        total = told.sum()
        return told / total if total > 1e-12 else np.full(len(told), 1.0 / len(told))

    def learn(self, row, label):
        row = np.append(row, 1.0)
        moved = self.P @ row
        gain = moved / (self.forgetting + row @ moved)
        self.weights += np.outer(gain, label - row @ self.weights)
        self.P = (self.P - np.outer(gain, moved)) / self.forgetting
        self.P = 0.5 * (self.P + self.P.T)  # rounding must not make it lopsided


class RiverClassifier:
    """A classifier of river."""

    def __init__(self, model: Any, n_classes: int):
        self.model, self.n_classes = model, n_classes

    def predict(self, row):
        told = self.model.predict_proba_one(_named(row))
        guess = np.array([told.get(each, 0.0) for each in range(self.n_classes)], float)
        total = guess.sum()
        return guess / total if total > 0 else np.full(self.n_classes, 1.0 / self.n_classes)

    def learn(self, row, label):
        self.model.learn_one(_named(row), int(label.argmax()))


class RiverForecaster:
    """A forecaster of river: the row is the value now, which is all that it learns from."""

    def __init__(self, model: Any, horizon: int):
        self.model, self.horizon = model, horizon

    def predict(self, row):
        value = float(row[0])
        self.model.learn_one(value)
        return np.array([self.model.forecast(horizon=self.horizon)[-1] - value])

    def learn(self, row, label):
        pass


def _named(row: np.ndarray) -> dict[int, float]:
    return dict(enumerate(row.tolist()))
