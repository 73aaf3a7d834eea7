"""What the linear decoders share: normalised features, stacked over a few past bins, with a constant."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar, Self

import numpy as np

from bci_adapt.decoders.base import Bins, Decoder
from bci_adapt.decoders.stored import Form
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


_BLOCK = 4096  # bins whose lagged features are held at a time


class NormalEquations:
    """Least squares of any number of rows in the memory of its moments: ΦᵀΦ and ΦᵀY, summed up block by block in
    float64. `share` is the number of rows, or of discounted ones the sum of their weights.

    It solves what ridge on all rows at once by their moments would, and no worse: sums of another order differ in the
    last digits, which a penalised problem magnifies by at most (largest eigenvalue of ΦᵀΦ) / penalty.
    """

    def __init__(self) -> None:
        self.gram: np.ndarray | float = 0.0
        self.products: np.ndarray | float = 0.0
        self.share = 0.0

    def add(self, features: np.ndarray, targets: np.ndarray, root: np.ndarray | None = None) -> None:
        """Add features (n_rows, n_features) and targets (n_rows, n_outputs), each row times its `root` (n_rows,)."""
        if root is not None:
            features, targets = features * root[:, None], targets * root[:, None]
        self.gram = self.gram + features.T @ features
        self.products = self.products + features.T @ targets
        self.share += len(features) if root is None else float(np.sum(root**2))

    def solve(self, penalty: float) -> tuple[np.ndarray, np.ndarray]:
        """Weights (n_features, n_outputs) with `penalty` per row on every weight but the constant's, the last, and the
        inverse of ΦᵀΦ + penalty · share · I.

        Raises `InputError` where no row was added.
        """
        if not isinstance(self.gram, np.ndarray) or not self.share:
            raise InputError("y: expected bins with neurons in which every output has a label, got none")
        gram = self.gram.copy()
        gram[np.diag_indices(len(gram) - 1)] += penalty * self.share
        inverse = np.linalg.inv(gram)
        return inverse @ self.products, inverse


class LaggedDecoder(Decoder):
    """Base of the linear decoders: normaliser, lags, and where the session stands. Parameters as in its children."""

    coef_: np.ndarray
    n_lags: int
    normaliser_s: float | None
    stored: ClassVar[Mapping[str, Form]] = {
        "coef_": Form("features outputs"),
        **dict.fromkeys(("mean_", "running_mean_"), Form("channels")),
        **dict.fromkeys(("variance_", "running_variance_"), Form("channels", least=0.0)),
        "past_": Form("lags channels"),
    }

    def _lengths(self) -> dict[str, int | None]:
        return {**super()._lengths(), "features": self.n_lags * self.n_features_in_ + 1, "lags": self.n_lags - 1}

    def _start_statistics(self, statistics: Normaliser) -> None:
        self.mean_, self.variance_ = statistics.mean, statistics.variance
        self.running_mean_, self.running_variance_ = statistics.mean, statistics.variance
        self.past_ = np.zeros((self.n_lags - 1, len(statistics.mean)))

    def _normalised(self, given: Sequence[Bins]) -> Iterator[tuple[np.ndarray, Bins]]:
        """Features (n_bins, n_channels) of each training session, normalised by its own statistics, and the session.
        Those of the last one are kept.
        """
        for bins in given:
            statistics = Normaliser.fit(bins.X, bins.observed)
            self._start_statistics(statistics)
            yield statistics.apply(bins.X, bins.observed)[0], bins

    def _blocks(
        self, given: Sequence[Bins], latents: Callable[[np.ndarray], np.ndarray] | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Lagged features and labels of every fully labelled bin of the training sessions, `_BLOCK` bins at a time:
        the lags of a day are many times the day. With `latents` it is those of a day's bins that are lagged.
        """
        for x, bins in self._normalised(given):
            x, usable = x if latents is None else latents(x), bins.usable
            stretch = np.cumsum(bins.reset)
            for begin in range(0, len(x), _BLOCK):
                part, before = slice(begin, begin + _BLOCK), max(0, begin - self.n_lags + 1)
                reach = slice(before, part.stop)
                features = lagged(x[reach], stretch[reach], self.n_lags)[begin - before :]
                yield features[usable[part]], bins.Y[part][usable[part]]

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
