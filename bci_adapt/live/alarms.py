"""Alarms of drift: a number a second in, and whether something has changed.

What is watched is either of the inputs, `InputShift`, which needs no label, or the rolling error of the predictions
(`LiveDecoder.state` has it as ``error``). What says that it has changed is one of `DETECTORS`: a plain threshold, CUSUM
(Page 1954), Page–Hinkley, or ADWIN (Bifet & Gavaldà 2007), which is `river`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from bci_adapt.errors import InputError
from bci_adapt.ground.catalog import unknown
from bci_adapt.learning.normaliser import FLOOR


class Detector(Protocol):
    """Told a number at a time."""

    def add(self, value: float) -> bool:
        """Take in a finite number; whether a change is found, whereupon it begins anew."""
        ...


class Threshold:
    """The mean of the last `n` numbers is above `limit`."""

    def __init__(self, limit: float = 1.0, n: int = 10) -> None:
        self.limit, self.n = limit, n
        self._last: list[float] = []

    def add(self, value: float) -> bool:
        """See `Detector.add`."""
        self._last = [*self._last[-self.n + 1 :], value] if self.n > 1 else [value]
        found = len(self._last) == self.n and sum(self._last) / self.n > self.limit
        if found:
            self._last = []
        return found


class Cusum:
    """Sums what lies more than `slack` above the mean of the first `n` numbers, in their standard deviations; a change
    is a sum above `limit`.
    """

    def __init__(self, limit: float = 10.0, slack: float = 0.5, n: int = 60) -> None:
        self.limit, self.slack, self.n = limit, slack, n
        self._begin()

    def _begin(self) -> None:
        self._seen, self._mean, self._squares, self._sum = 0, 0.0, 0.0, 0.0

    def add(self, value: float) -> bool:
        """See `Detector.add`."""
        if self._seen < self.n:
            self._seen += 1
            off = value - self._mean
            self._mean += off / self._seen
            self._squares += off * (value - self._mean)
            return False
        spread = max((self._squares / self.n) ** 0.5, 1e-12)
        self._sum = max(0.0, self._sum + (value - self._mean) / spread - self.slack)
        found = self._sum > self.limit
        if found:
            self._begin()
        return found


class PageHinkley:
    """The sum of what lies more than `slack` above the running mean has risen by `limit` from its lowest."""

    def __init__(self, limit: float = 50.0, slack: float = 0.05, n: int = 60) -> None:
        self.limit, self.slack, self.n = limit, slack, n
        self._begin()

    def _begin(self) -> None:
        self._seen, self._mean, self._sum, self._lowest = 0, 0.0, 0.0, 0.0

    def add(self, value: float) -> bool:
        """See `Detector.add`."""
        self._seen += 1
        self._mean += (value - self._mean) / self._seen
        self._sum += value - self._mean - self.slack
        self._lowest = min(self._lowest, self._sum)
        found = self._seen > self.n and self._sum - self._lowest > self.limit
        if found:
            self._begin()
        return found


class Adwin:
    """`river`'s ADWIN: two parts of an adaptive window differ, with a chance of `delta` that they do not. It needs the
    extra ``streams``; `InputError` where that is not installed.
    """

    def __init__(self, delta: float = 0.002) -> None:
        try:
            from river.drift import ADWIN
        except ImportError as error:
            raise InputError("adwin: needs river: pip install 'bci-adapt[streams]'") from error
        self._adwin: Any = ADWIN(delta=delta)

    def add(self, value: float) -> bool:
        """See `Detector.add`; of changes those to larger numbers alone."""
        before = self._adwin.estimation
        self._adwin.update(value)
        return bool(self._adwin.drift_detected and self._adwin.estimation > before)


DETECTORS: Mapping[str, type] = {
    "threshold": Threshold,
    "cusum": Cusum,
    "page_hinkley": PageHinkley,
    "adwin": Adwin,
}


def detector(name: str, **constants: Any) -> Detector:
    """The detector of a name, with other constants than its own; `InputError` for one that there is not."""
    if name not in DETECTORS:
        raise InputError(unknown(name, list(DETECTORS), "detector"))
    try:
        return DETECTORS[name](**constants)
    except TypeError as error:
        raise InputError(f"{name}: {error}") from error


class InputShift:
    """How far the inputs of each second lie from the last training day: the mean over channels of the squared distance
    of the second's mean, in standard deviations of that day's bins.

    Parameters
    ----------
    mean, variance : (n_channels,) of the features of that day's bins (``decoder.mean_``, ``decoder.variance_``).
    n_bins : bins of a second.
    """

    def __init__(self, mean: np.ndarray, variance: np.ndarray, n_bins: int) -> None:
        self._mean, self._spread = np.asarray(mean, float), np.sqrt(np.asarray(variance, float) + FLOOR**2)
        self._n_bins, self._seen, self._sum = n_bins, 0, np.zeros(len(self._mean))

    def add(self, features: np.ndarray) -> float | None:
        """Take in the features (n_channels,) of an observed bin; the distance when a second is full, else None."""
        self._sum += features
        self._seen += 1
        if self._seen < self._n_bins:
            return None
        off = (self._sum / self._seen - self._mean) / self._spread
        self._seen = 0
        self._sum[:] = 0.0
        return float(np.mean(off * off))
