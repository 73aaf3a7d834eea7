"""Training sessions in memory: as compact as they came, and unpacked one at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bci_adapt.decoders.inputs import Bins
from bci_adapt.ground.one_by_one import OneByOne


class Held(NamedTuple):
    """One checked session: counts as uint16 where that loses nothing, else X as it is; y with NaN where no label is."""

    X: np.ndarray
    y: np.ndarray
    observed: np.ndarray
    reset: np.ndarray

    @classmethod
    def of(cls, bins: Bins) -> Held:
        whole = bins.X.max(initial=0.0) <= np.iinfo(np.uint16).max and bool((np.floor(bins.X) == bins.X).all())
        X = bins.X.astype(np.uint16) if whole else bins.X
        return cls(X, np.where(bins.weight > 0, bins.Y, np.nan), bins.observed, bins.reset)

    def unpacked(self) -> Bins:
        """What `of` was given, bit for bit."""
        weight = np.isfinite(self.y).astype(float)
        return Bins(self.X.astype(float), np.where(weight > 0, self.y, 0.0), weight, self.observed, self.reset)


def unpacking(held: list[Held], featured: Callable[[Bins], Bins] = lambda bins: bins) -> OneByOne[Bins]:
    """The sessions as decoders take them: a day in float64 is four times its counts, so one is unpacked at a time."""
    return OneByOne(lambda one: featured(one.unpacked()), held)
