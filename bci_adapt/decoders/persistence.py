"""A control without neurons: the last label that is known."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from bci_adapt.decoders.base import Decoder, delay_bins


class PersistenceDecoder(Decoder):
    """Predicts the newest label that has become known, whatever the neurons do. An online score that does not beat it
    says nothing about decoding. Where no label ever arrives (held out) it repeats the last one. A segment's end is
    nothing to it: it has no state, only the label that came last.

    Parameters
    ----------
    label_delay_s, bin_s : as in `OnlineDecoder`.
    """

    name: ClassVar[str] = "persistence"
    description: ClassVar[str] = "control: the newest known label, no neurons"
    stored: ClassVar[tuple[str, ...]] = ("last_", "waiting_")

    def __init__(self, label_delay_s: float = 0.5, bin_s: float = 0.05):
        self.label_delay_s = label_delay_s
        self.bin_s = bin_s

    def fit(self, X, y, reset=None) -> PersistenceDecoder:
        doors = self.training_doors(X, y, reset)
        labels = np.concatenate([np.where(bins.weight > 0, bins.Y, np.nan) for bins in doors])
        self.last_ = np.nanmean(labels, axis=0)
        self.begin()
        return self

    def begin(self) -> None:
        # A label is known to the prediction of the bin after the one in which it arrives.
        self.waiting_ = np.full((delay_bins(self.label_delay_s, self.bin_s) + 1, self.n_outputs_), np.nan)

    def predict(self, X, reset=None, continuing: bool = False) -> np.ndarray:
        self.require_fitted()
        return np.tile(self.last_, (len(self.door(X, None, reset).X), 1))

    def partial_fit(self, X, y=None, reset=None) -> PersistenceDecoder:
        bins = self.door(X, y, reset)
        labels = np.where(bins.weight > 0, bins.Y, np.nan)
        queue = np.vstack([self.waiting_, labels])
        n_bins = len(labels)
        candidates = np.vstack([self.last_, queue[:n_bins]])
        newest = np.maximum.accumulate(np.where(np.isfinite(candidates), np.arange(n_bins + 1)[:, None], 0), axis=0)
        known = np.take_along_axis(candidates, newest, axis=0)
        self.online_predictions_ = known[1:]
        self.last_, self.waiting_ = known[-1], queue[n_bins:]
        return self
