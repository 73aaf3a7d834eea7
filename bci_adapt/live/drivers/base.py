"""Decoders driven bin by bin, prediction and learning apart, in arrays that are made once.

A driver leads one fitted decoder through a session as `Decoder.adapt` would, but takes each label when it comes, not
with its bin:

    driver.forward(counts, reset)              # bin 0, 1, 2 …: its prediction
    driver.give(i, label)                      # the label of bin i has come
    driver.overdue(i)                          # bin i waits for its label no longer
    driver.work()                              # learn from what is due by the end of the last bin

The label of bin i is learned from at the end of bin max(i + delay, the last bin when it came), after those of the bins
before it: what `adapt` does with the same ``arrives``. Whether `work` is called once after a bin or often is the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

from bci_adapt.decoders.base import Decoder
from bci_adapt.decoders.inputs import Bins
from bci_adapt.decoders.timing import LABEL_DELAY_S, delay_bins


class Driver(ABC):
    """One decoder, driven. `wait` is how many bins after its own a label is waited for, at least the decoder's delay.

    Attributes
    ----------
    bin : how many bins have been predicted.
    observed : whether the last one was.
    holds_statistics : whether the running statistics of the inputs stand still.
    label_mean, label_scale : (n_outputs,) the scale of the labels in training; 0 and infinite where the decoder does
        not know it.
    """

    learns = True

    def __init__(self, decoder: Any, wait: int) -> None:
        self.decoder, self.wait = decoder, wait
        self.delay = delay_bins(getattr(decoder, "label_delay_s", LABEL_DELAY_S), decoder.bin_s_)
        self.bin, self.observed, self.holds_statistics = 0, False, False
        self.label_mean = np.asarray(getattr(decoder, "label_mean_", np.zeros(decoder.n_outputs_)))
        self.label_scale = np.asarray(getattr(decoder, "label_scale_", np.full(decoder.n_outputs_, np.inf)))

    @abstractmethod
    def forward(self, counts: np.ndarray, reset: bool) -> np.ndarray:
        """Predict the next bin of `counts` (n_channels,), floats, raw; returns (n_outputs,), which the next call
        overwrites. With `reset` it is the first bin of a segment. A bin with any that is negative or not finite was not
        `observed`.
        """

    @abstractmethod
    def give(self, i: int, y: np.ndarray) -> None:
        """The label (n_outputs,) of bin i, NaN where it is missing: once for a bin, observed, that still waits."""

    @abstractmethod
    def overdue(self, i: int) -> None:
        """Bin i, if it still waits, waits no longer: nothing is learned from it."""

    @abstractmethod
    def work(self) -> None:
        """Learn from what is due by the end of the last bin."""

    @abstractmethod
    def forget(self) -> None:
        """Labels that wait to be learned from are not: their bins count as without."""

    @abstractmethod
    def weights(self) -> dict[str, np.ndarray]:
        """All that learning moves, by name, as it is (no copies): what a roll-back brings back."""

    @abstractmethod
    def watched(self) -> list[np.ndarray]:
        """The weights whose updates a guard looks at: those that learn, as they are."""

    @abstractmethod
    def restore(self, kept: Mapping[str, np.ndarray]) -> None:
        """Bring back a copy of `weights`. The next bin must be a segment's first."""

    def sync(self) -> Decoder:
        """The decoder, standing where its driver does, to be saved."""
        return self.decoder

    def place(self) -> dict[str, Any]:
        """Where a driver stands beside its decoder, as JSON can hold it."""
        return {"bin": self.bin}

    def go_on(self, place: Mapping[str, Any]) -> None:
        """Stand at a `place` that another driver of the same decoder gave."""
        self.bin = int(place["bin"])

    def _bins(self, counts: np.ndarray, reset: bool) -> Bins:
        """One bin as decoders take it, without a label."""
        # Comparisons with NaN are false.
        self.observed = bool(np.minimum.reduce(counts) >= 0.0 and np.maximum.reduce(counts) < np.inf)
        X, none = np.where(self.observed, counts, 0.0)[None], np.zeros((1, self.decoder.n_outputs_))
        return self.decoder._featured(Bins(X, none, none, np.array([self.observed]), np.array([reset])))

    def _arrival(self, i: int) -> int:
        return max(i + self.delay, self.bin - 1)


class FixedDriver(Driver):
    """Drives a decoder that learns from no label: its statistics run, its weights stay."""

    learns = False

    def forward(self, counts: np.ndarray, reset: bool) -> np.ndarray:
        """See `Driver.forward`."""
        decoder = self.decoder
        held = {name: value for name, value in vars(decoder).items() if name.startswith("running_")}
        predicted = decoder._partial_fit(self._bins(counts, reset), None)[0]
        if self.holds_statistics:
            vars(decoder).update(held)
        self.bin += 1
        return predicted

    def give(self, i: int, y: np.ndarray) -> None:
        """A label teaches nothing."""

    def overdue(self, i: int) -> None:
        """No bin waits."""

    def work(self) -> None:
        """There is nothing to learn."""

    def forget(self) -> None:
        """Nothing waits."""

    def weights(self) -> dict[str, np.ndarray]:
        """None moves."""
        return {}

    def watched(self) -> list[np.ndarray]:
        """None moves."""
        return []

    def restore(self, kept: Mapping[str, np.ndarray]) -> None:
        """None has moved."""
