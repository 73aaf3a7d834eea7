"""Which column of a session holds which channel, where they were mixed up: known maps first, then a free assignment.

Nothing is applied here. A known map is believed where the check of columns then says *same*. A free assignment is never
believed as a whole: a column of it is certain where it follows from several days by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from bci_adapt.data.same_columns.agreement import SAME, agreement
from bci_adapt.data.same_columns.fingerprints import Fingerprint, standard
from bci_adapt.data.same_columns.moved import pooled
from bci_adapt.data.same_columns.patterns import Array, off_diagonal
from bci_adapt.errors import InputError

BANK = 32
MAX_BANKS = 4
N_VOTES = 3
"""Days that by themselves must put a channel where all together put it, for its column to be certain."""
FAR = 3.0  # standard deviations between rates (variabilities) beyond which two channels are equally unlike
PATTERN_WEIGHT = 0.1  # of a pair of columns in a pattern, against one column's rate and variability
N_ROUNDS = 40


@dataclass(frozen=True)
class Wiring:
    """Where the channels of a session are: channel i in column ``order[i]`` (m,), with `certain` (m,) saying which of
    these are; `how` names the known map, or is "free". `kept` is the share of the pattern that is kept under a known
    map (`agreement`), None for a free assignment, which was chosen for it.
    """

    session_id: str
    how: str
    order: NDArray[np.int64]
    certain: NDArray[np.bool_]
    kept: float | None = None

    @property
    def sentence(self) -> str:
        if self.kept is not None:
            return f"{self.session_id}: columns as by {self.how}: {self.kept:.2f} of the pattern is kept"
        n = int(self.certain.sum())
        return f"{self.session_id}: no known map of columns fits; {n} of {len(self.order)} channels are found elsewhere"


def wiring(days: Sequence[Fingerprint], session: Fingerprint) -> Wiring:
    """Say where the channels of `days`, which share their columns, are in `session`.

    The known map under which the session's columns are told to be the same, if there is one; else a free assignment.
    `InputError` unless all have equal channels.
    """
    if not days or any(day.channels != session.channels for day in days):
        raise InputError(f"{session.session_id}: expected days with the same {len(session.channels)} channels")
    maps = known_maps(len(session.channels))
    found = []
    for name, order in maps.items():
        each = [agreement(day, session.wired(order)) for day in days]
        best = max(each, key=lambda one: -1.0 if one.why else one.kept)
        if best.verdict(len(maps) * len(days)) == SAME:
            found.append((best.kept, name, order))
    if found:
        kept, name, order = max(found, key=lambda one: one[0])
        return Wiring(session.session_id, name, order, np.ones(len(order), dtype=bool), kept)
    order = assigned_freely(pooled(days), session)
    votes = np.sum([assigned_freely(day, session) == order for day in days], axis=0)
    return Wiring(session.session_id, "free", order, votes >= N_VOTES)


def known_maps(m: int) -> dict[str, NDArray[np.int64]]:
    """Return orders of m columns that plugs and converters make: pairs, banks or all turned round, banks exchanged."""
    own = np.arange(m)
    maps = {"their names": own, "columns in reverse": own[::-1].copy()}
    if m % 2 == 0:
        maps["pairs of columns turned round"] = own ^ 1
    n_banks = m // BANK
    if m % BANK or not 1 < n_banks <= MAX_BANKS:
        return maps
    banks = own.reshape(n_banks, BANK)
    maps["columns in reverse within each bank"] = banks[:, ::-1].ravel()
    for order in permutations(range(n_banks)):
        said = ", ".join(str(bank + 1) for bank in order)
        if order != tuple(range(n_banks)):
            maps[f"banks of {BANK} in the order {said}"] = banks[list(order)].ravel()
        if order not in (tuple(range(n_banks)), tuple(range(n_banks))[::-1]):  # those are above
            maps[f"banks of {BANK} in the order {said}, each in reverse"] = banks[list(order), ::-1].ravel()
    return maps


def assigned_freely(day: Fingerprint, session: Fingerprint) -> NDArray[np.int64]:
    """Return the columns (m,) of `session` in which the channels of `day` fit best, whatever their names.

    Rates and variability of single columns and patterns of pairs are matched together (quadratic assignment, the fast
    approximate search of Vogelstein et al. 2015) from three starts: all columns alike, the best match of single ones,
    and halfway.
    """
    single = [
        np.minimum(np.abs(standard(a[:, None]) - standard(b[:, None]).T), FAR) ** 2
        for a, b in zip((day.rate, *day.traits), (session.rate, *session.traits), strict=True)
    ]
    likeness = -0.5 * np.sum(single, axis=0)
    likeness -= likeness.mean()
    first = [off_diagonal(each) for each in day.profiles]
    second = [off_diagonal(each) for each in session.profiles]
    m = len(likeness)
    matched = np.eye(m)[linear_sum_assignment(-likeness)[1]]
    found = [_searched(likeness, first, second, share * matched + (1 - share) / m) for share in (0.0, 0.5, 1.0)]
    return max(found, key=lambda order: _fit(likeness, first, second, order))


def _searched(likeness: Array, first: Sequence[Array], second: Sequence[Array], start: Array) -> NDArray[np.int64]:
    """Climb from a doubly stochastic matrix to an assignment (Frank and Wolfe, exact steps)."""
    at = start
    for _ in range(N_ROUNDS):
        pull = PATTERN_WEIGHT * sum(
            2 * a @ at @ b for a, b in zip(first, second, strict=True)
        )  # patterns are symmetric
        step = np.eye(len(at))[linear_sum_assignment(-(likeness + pull))[1]] - at
        bend = PATTERN_WEIGHT * sum(np.sum((a @ step @ b) * step) for a, b in zip(first, second, strict=True))
        slope = float(np.sum((likeness + pull) * step))
        size = 1.0 if bend >= 0 else min(1.0, -slope / (2 * bend))
        if slope <= 1e-9 or size <= 1e-6:
            break
        at = at + size * step
    return linear_sum_assignment(-at)[1]


def _fit(likeness: Array, first: Sequence[Array], second: Sequence[Array], order: NDArray[np.int64]) -> float:
    pairs = sum(np.sum(a * b[np.ix_(order, order)]) for a, b in zip(first, second, strict=True))
    return float(likeness[np.arange(len(order)), order].sum() + PATTERN_WEIGHT * pairs)


def rewired(session: xr.Dataset, order: NDArray[np.integer]) -> xr.Dataset:
    """Return a session of which column i holds the counts of column ``order[i]``, under the name it had: the choice of
    whoever calls it, kept in the attribute ``columns_taken_from``.
    """
    columns = session["channel"].values
    counts = session["counts"]
    axis = counts.dims.index("channel")
    made = session.assign(counts=counts.copy(data=np.take(counts.values, order, axis=axis)))
    return made.assign_attrs(columns_taken_from=[str(columns[place]) for place in order])
