"""Which columns fit another channel better than their own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from bci_adapt.data.same_columns.agreement import active
from bci_adapt.data.same_columns.fingerprints import Fingerprint, standard
from bci_adapt.data.same_columns.patterns import Array, off_diagonal

CERTAIN, LIKELY = 2.5, 2.0
"""What a channel must gain to be taken from its column, in standard deviations of the likeness of wrong pairs. Two
columns at least have to be certain; then all likely ones are named."""
ROUNDS = 8


def pooled(sessions: Sequence[Fingerprint]) -> Fingerprint:
    """Return the mean of sessions with equal channels, which is steadier than each."""
    first = sessions[0]

    def mean(name: str) -> Array:
        return np.mean([getattr(each, name) for each in sessions], axis=0)

    return Fingerprint(
        first.session_id,
        first.channels,
        first.place,
        first.seconds,
        np.logical_and.reduce([each.active for each in sessions]),
        mean("rate"),
        mean("traits"),
        mean("profiles"),
        first.reliability,
        first.named,
    )


def moved(reference: Fingerprint, session: Fingerprint) -> dict[str, str]:
    """Return columns of `session` that hold another channel than they say: column → the channel that it fits.

    Both have equal channels, those active in both are compared. {} where no column gains enough; a channel that is gone
    or new fits no other, so it is not named.
    """
    a, b = active(reference, session)
    if len(a.channels) < 2 or (assigned(a, b, CERTAIN) == np.arange(len(a.channels))).all():
        return {}
    order = assigned(a, b, LIKELY)
    return {a.channels[row]: a.channels[i] for i, row in enumerate(order) if row != i}


def assigned(a: Fingerprint, b: Fingerprint, bonus: float) -> NDArray[np.int64]:
    """Return the column (m,) of `b` that each channel of `a` fits, its own unless another gains `bonus`.

    Profiles are correlations with columns whose channel is not certain either, so this is repeated with what was found.
    """
    m = len(a.channels)
    order = np.arange(m)
    for _ in range(ROUNDS):
        own = order[None, :] == np.arange(m)[:, None]
        _, column = linear_sum_assignment(-(likeness(a, b.wired(order)) + bonus * own))
        if (column == np.arange(m)).all():
            break
        order = order[column]
    return order


def likeness(a: Fingerprint, b: Fingerprint) -> Array:
    """Return how alike channel i of `a` and column j of `b` are (m, m), in standard deviations of wrong pairs.

    Each kind of likeness – of profiles, rates, variability – counts by how well it tells right pairs from wrong ones
    (Fisher's discriminant), taking the columns as they are for right: most of them are.
    """
    kinds = [
        np.arctanh(np.clip(row_correlations(p, q), -0.99, 0.99)) for p, q in zip(a.profiles, b.profiles, strict=True)
    ]
    for p, q in zip((a.rate, *a.traits), (b.rate, *b.traits), strict=True):
        x, y = standard(p[:, None]), standard(q[:, None])
        kinds.append(-np.abs(x - y.T))
    right = np.eye(len(a.channels), dtype=bool)
    scaled = np.stack([off_scale(kind) for kind in kinds])
    wrong_pairs, right_pairs = scaled[:, ~right], scaled[:, right]
    within = np.cov(wrong_pairs) + 0.5 * np.cov(right_pairs) + 0.1 * np.eye(len(scaled))
    weights = np.linalg.solve(within, right_pairs.mean(axis=1))
    return off_scale(np.einsum("k,kij->ij", weights, scaled))


def off_scale(values: Array) -> Array:
    """Return values (m, m) in means and standard deviations of those off the diagonal."""
    off = values[~np.eye(len(values), dtype=bool)]
    return (values - off.mean()) / (off.std() or 1.0)


def row_correlations(p: Array, q: Array) -> Array:
    """Return how row i of the pattern `p` (m, m) and row j of `q` correlate, over the columns (m, m)."""
    unit = []
    for pattern in (off_diagonal(p), off_diagonal(q)):
        rows = pattern - pattern.sum(axis=1, keepdims=True) / (len(pattern) - 1)
        np.fill_diagonal(rows, 0.0)
        size = np.sqrt(np.square(rows).sum(axis=1, keepdims=True))
        unit.append(rows / np.where(size > 0, size, 1.0))
    return unit[0] @ unit[1].T
