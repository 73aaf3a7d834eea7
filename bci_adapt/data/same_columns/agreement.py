"""How much of the pattern of correlations two sessions share, beyond what foreign columns share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from bci_adapt.data.same_columns.fingerprints import Fingerprint
from bci_adapt.data.same_columns.patterns import beyond, shuffled
from bci_adapt.errors import InputError
from bci_adapt.ground.text import clean

SAME, FOREIGN, UNSURE = "same", "foreign", "cannot say"
MARGIN = 0.15
"""Share of the pattern above which columns are called the same, below which foreign. The system that records gives
columns of one amplifier something in common: columns known to be foreign kept up to .07 (docs/identity.md)."""
LEVEL = 0.99  # of either verdict: one side of an interval
MIN_CHANNELS = 16
MIN_RELIABILITY = 0.2  # of the pattern of a session, from its own halves


@dataclass(frozen=True)
class Agreement:
    """Two sessions compared on the `n_channels` that are active in both.

    `correlation` is Pearson's correlation of the two patterns, over pairs of channels. `kept` is what of it is left
    after what shuffled columns have, divided by what there would be without noise (from the halves of each session):
    1 as within a session, 0 as for columns that have nothing to do with one another. `spread` is its standard error
    under shuffling, `low` and `high` bound it with a confidence of 99 % each. `rates` is the correlation of log rates,
    which decides nothing. `why` says why nothing can be said, "" where something can.
    """

    first: str
    second: str
    n_channels: int
    correlation: float
    kept: float
    spread: float
    rates: float
    why: str = ""

    def bounds(self, n_compared: int = 1) -> tuple[float, float]:
        """Bounds with a confidence of `LEVEL` each; the lower one holds for the best of `n_compared` at once."""
        low = self.kept - float(stats.norm.isf((1 - LEVEL) / n_compared)) * self.spread
        return low, self.kept + float(stats.norm.ppf(LEVEL)) * self.spread

    def verdict(self, n_compared: int = 1) -> str:
        """`SAME`, `FOREIGN` or `UNSURE`, where the bounds include the margin or nothing could be compared."""
        low, high = self.bounds(n_compared)
        if self.why:
            return UNSURE
        return SAME if low > MARGIN else FOREIGN if high < MARGIN else UNSURE


def shared(first: Fingerprint, second: Fingerprint) -> tuple[Fingerprint, Fingerprint]:
    """Return both on the channels they have in common, in the order of the first; `InputError` where there is none."""
    place = {name: i for i, name in enumerate(second.channels)}
    rows = [(i, place[name]) for i, name in enumerate(first.channels) if name in place]
    if not rows:
        raise InputError(f"no channel in common: {first.session_id} and {second.session_id}")
    a, b = (np.asarray(column) for column in zip(*rows, strict=True))
    return first.on(a), second.on(b)


def active(first: Fingerprint, second: Fingerprint) -> tuple[Fingerprint, Fingerprint]:
    """Return both, which have equal channels, on those that are active in both."""
    rows = np.flatnonzero(first.active & second.active)
    return first.on(rows), second.on(rows)


def agreement(first: Fingerprint, second: Fingerprint) -> Agreement:
    """Compare two sessions whose channels have names that mean the same, or are said to."""
    a, b = active(*shared(first, second))
    names, m = (first.session_id, second.session_id), len(a.channels)
    nothing = float("nan")
    if m < MIN_CHANNELS:
        why = f"{m} channels are active in both, at least {MIN_CHANNELS} are needed"
        return Agreement(*names, m, nothing, nothing, nothing, nothing, why)
    found, chance, spread = beyond(a.profiles[0], b.profiles[0], shuffled(tuple(a.place.tolist())))
    rates = float(np.corrcoef(a.rate, b.rate)[0, 1]) if min(a.rate.std(), b.rate.std()) > 0 else nothing
    weakest = min((a, b), key=lambda each: each.reliability)
    if weakest.reliability < MIN_RELIABILITY:
        why = (
            f"the correlations of {clean(weakest.session_id)} differ between its own halves: too little data, or "
            "channels that have nothing in common"
        )
        return Agreement(*names, m, found, nothing, nothing, rates, why)
    scale = float(np.sqrt(a.reliability * b.reliability))
    return Agreement(*names, m, found, (found - chance) / scale, spread / scale, rates)
