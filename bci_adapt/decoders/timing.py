"""From seconds to bins: delays of labels, when each arrives, and how long evidence is remembered."""

from __future__ import annotations

import math

import numpy as np

from bci_adapt.errors import InputError

LABEL_DELAY_S = 0.5  # of a decoder that does not say how late its labels are


def delay_bins(delay_s: float, bin_s: float) -> int:
    """A label delay in whole bins, rounded up (a float's last digit aside).

    >>> delay_bins(0.5, 0.05), delay_bins(0.51, 0.05)
    (10, 11)
    """
    return math.ceil(round(delay_s / bin_s, 6))


def forgetting(memory_s: float, bin_s: float) -> float:
    """Factor per bin on old evidence whose weight falls by e in `memory_s`: 1 − 1/bins; `InputError` below a bin."""
    if not memory_s > bin_s:
        raise InputError(f"memory_s must be longer than a bin ({bin_s} s), got {memory_s}")
    return 1.0 - bin_s / memory_s


def arrival_bins(arrives, n_bins: int, delay: int) -> np.ndarray:
    """When the label of each bin becomes known (n_bins,): `arrives`, checked, or `delay` bins after its own bin."""
    own = np.arange(n_bins)
    if arrives is None:
        return own + delay
    known = np.asarray(getattr(arrives, "values", arrives))
    if known.shape != (n_bins,) or not np.issubdtype(known.dtype, np.integer):
        raise InputError(f"arrives: expected ({n_bins},) whole bin numbers, got {known.dtype} {known.shape}")
    if (np.diff(known) < 0).any() or (known < own).any():
        raise InputError("arrives: expected bin numbers that never fall, none before its own bin")
    return known.astype(np.int64)
