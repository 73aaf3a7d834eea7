"""Causal normaliser: an exponential mean and variance per channel, part of a decoder and saved with it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.signal import lfilter

from bci_adapt.errors import InputError

# Added to every standard deviation, in units of the features (square-root counts, or power in standard deviations of
# the training): a channel that falls silent must not be blown up until its noise fills the input.
FLOOR = 0.1


@dataclass(frozen=True)
class Normaliser:
    """Running statistics, one per channel.

    Attributes
    ----------
    mean, variance : (n_channels,) in the features' units.
    time_constant_bins : e-folding time of the statistics in bins; ``inf`` keeps them fixed.
    """

    mean: np.ndarray
    variance: np.ndarray
    time_constant_bins: float = np.inf

    @classmethod
    def fit(cls, X: np.ndarray, observed: np.ndarray | None = None, time_constant_bins: float = np.inf) -> Normaliser:
        """Statistics over all observed bins of X (n_bins, n_channels); `InputError` when there are fewer than two."""
        X = np.asarray(X, float)
        kept = X if observed is None else X[np.asarray(observed, bool)]
        if len(kept) < 2:
            raise InputError(f"normaliser: expected at least 2 observed bins to start from, got {len(kept)}")
        return cls(kept.mean(axis=0), kept.var(axis=0), time_constant_bins)

    def apply(self, X: np.ndarray, observed: np.ndarray | None = None) -> tuple[np.ndarray, Normaliser]:
        """Normalise X (n_bins, n_channels) bin by bin; each bin enters the statistics after it was normalised.

        m_t = (1 − α) m_{t−1} + α x_t and v_t = (1 − α)(v_{t−1} + α (x_t − m_{t−1})²), α = 1 − exp(−1/τ) (West 1979).
        Unobserved bins come out as zeros and enter nothing. Returns the normalised bins and the statistics after them.
        """
        X = np.asarray(X, float)
        if X.ndim != 2 or X.shape[1] != len(self.mean):
            raise InputError(f"normaliser: expected (n_bins, {len(self.mean)}) features, got {X.shape}")
        seen = np.ones(len(X), bool) if observed is None else np.asarray(observed, bool)
        out = np.zeros_like(X)
        x = X[seen]
        if not len(x):
            return out, self
        if np.isinf(self.time_constant_bins):
            out[seen] = (x - self.mean) / np.sqrt(self.variance + FLOOR**2)
            return out, self
        alpha = -np.expm1(-1.0 / self.time_constant_bins)
        keep = 1.0 - alpha
        if len(x) == 1:  # a live session: the same sums without the filter's call, which takes longer than they do
            out[seen] = (x - self.mean) / np.sqrt(self.variance + FLOOR**2)
            mean = alpha * x[0] + keep * self.mean
            variance = alpha * (keep * (x[0] - self.mean) ** 2) + keep * self.variance
            return out, Normaliser(mean, variance, self.time_constant_bins)
        mean, _ = lfilter([alpha], [1.0, -keep], x, axis=0, zi=keep * self.mean[None])
        before = np.vstack([self.mean[None], mean[:-1]])
        squares = keep * (x - before) ** 2
        variance, _ = lfilter([alpha], [1.0, -keep], squares, axis=0, zi=keep * self.variance[None])
        spread = np.vstack([self.variance[None], variance[:-1]])
        out[seen] = (x - before) / np.sqrt(spread + FLOOR**2)
        return out, replace(self, mean=mean[-1].copy(), variance=variance[-1].copy())
