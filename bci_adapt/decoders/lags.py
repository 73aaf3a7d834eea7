"""What the linear decoders share: normalised features, stacked over a few past bins, with a constant."""

from __future__ import annotations

import copy
from typing import ClassVar, Self

import numpy as np

from bci_adapt.decoders.base import Bins, Decoder
from bci_adapt.errors import InputError
from bci_adapt.learning.normaliser import Normaliser


def lagged(x: np.ndarray, stretch: np.ndarray, n_lags: int, before: np.ndarray | None = None) -> np.ndarray:
    """Stack x (n_bins, n_channels) with its n_lags − 1 past bins, newest first, and a column of ones.

    Lags from another stretch (`stretch` (n_bins,), a number per bin) are zero, the normalised mean. `before`
    (n_lags − 1, n_channels) holds the bins before the first one where the session goes on; zero when None.
    """
    n_bins, n_channels = x.shape
    past = np.zeros((n_lags - 1, n_channels)) if before is None else before
    joined = np.vstack([past, x])
    marks = np.concatenate([np.full(n_lags - 1, stretch[0] if n_bins else 0), stretch])
    out = np.ones((n_bins, n_lags * n_channels + 1))
    for lag in range(n_lags):
        begin = n_lags - 1 - lag
        same = marks[begin : begin + n_bins] == stretch
        out[:, lag * n_channels : (lag + 1) * n_channels] = joined[begin : begin + n_bins] * same[:, None]
    return out


def ridge(features: np.ndarray, targets: np.ndarray, penalty: float) -> tuple[np.ndarray, np.ndarray]:
    """Least squares with `penalty` per bin on every weight but the constant's (the last column).

    Returns the weights (n_features, n_outputs) and the inverse of ΦᵀΦ + penalty · n_bins · I.
    """
    gram = features.T @ features
    gram[np.diag_indices(len(gram) - 1)] += penalty * len(features)
    inverse = np.linalg.inv(gram)
    return inverse @ (features.T @ targets), inverse


class LaggedDecoder(Decoder):
    """Base of the linear decoders: normaliser, lags, and where the session stands. Parameters as in its children."""

    coef_: np.ndarray
    n_lags: int
    normaliser_s: float | None
    stored: ClassVar[tuple[str, ...]] = ("coef_", "mean_", "variance_", "running_mean_", "running_variance_", "past_")

    def _start_statistics(self, statistics: Normaliser) -> None:
        self.mean_, self.variance_ = statistics.mean, statistics.variance
        self.running_mean_, self.running_variance_ = statistics.mean, statistics.variance
        self.past_ = np.zeros((self.n_lags - 1, len(statistics.mean)))

    def _normalised(self, given: list[Bins]) -> list[np.ndarray]:
        """Features of each training session, normalised by its own statistics; the last one's are kept."""
        sessions = []
        for bins in given:
            statistics = Normaliser.fit(bins.X, bins.observed)
            sessions.append(statistics.apply(bins.X, bins.observed)[0])
        self._start_statistics(statistics)  # type: ignore[possibly-undefined]
        return sessions

    def _training_features(self, given: list[Bins]) -> tuple[np.ndarray, np.ndarray]:
        """Features and labels of every fully labelled bin, each session normalised by its own statistics."""
        return self._labelled(self._normalised(given), given)

    def _labelled(self, sessions: list[np.ndarray], given: list[Bins]) -> tuple[np.ndarray, np.ndarray]:
        """Lagged bins of `sessions` (each (n_bins, n)) and labels, where a bin is fully labelled."""
        features, labels = [], []
        for x, bins in zip(sessions, given, strict=True):
            usable = bins.observed & (bins.weight > 0).all(axis=1)
            features.append(lagged(x, np.cumsum(bins.reset), self.n_lags)[usable])
            labels.append(bins.Y[usable])
        if not any(len(each) for each in labels):
            raise InputError("y: expected bins with neurons in which every output has a label, got none")
        return np.concatenate(features), np.concatenate(labels)

    def begin(self) -> None:
        self.require_fitted()
        self.past_ = np.zeros((self.n_lags - 1, self.n_features_in_))

    def _features(self, bins: Bins, continuing: bool) -> tuple[np.ndarray, Normaliser, np.ndarray]:
        """Features of these bins, the statistics after them, and the last n_lags − 1 normalised bins."""
        constant = np.inf if self.normaliser_s is None else self.normaliser_s / self.bin_s_
        running = Normaliser(self.running_mean_, self.running_variance_, constant)
        x, running = running.apply(bins.X, bins.observed)
        # A segment that begins with the first bin hears nothing of what went before.
        goes_on = continuing and not (len(bins.reset) and bins.reset[0])
        past = self.past_ if goes_on else np.zeros_like(self.past_)
        features = lagged(x, np.cumsum(bins.reset), self.n_lags, past)
        since_reset = x[np.flatnonzero(bins.reset)[-1] :] if bins.reset.any() else np.vstack([past, x])
        padded = np.vstack([np.zeros_like(past), since_reset])
        return features, running, padded[len(padded) - len(past) :]

    def _predict(self, bins: Bins, continuing: bool) -> np.ndarray:
        features, _, _ = self._features(bins, continuing)
        return features @ self.coef_

    def with_fitted_statistics(self) -> Self:
        other = copy.copy(self)
        other.running_mean_, other.running_variance_ = self.mean_, self.variance_
        return other

    def _go_on(self, running: Normaliser, past: np.ndarray) -> None:
        self.running_mean_, self.running_variance_, self.past_ = running.mean, running.variance, past
