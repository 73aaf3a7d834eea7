"""What is going on around a bin, from labels: what a bin's neurons are regressed on where they encode movement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def variables_of(known: Mapping[str, Any], n_outputs: int) -> list[slice]:
    """The columns of each variable among the outputs of a decoder, whose ``metadata_`` is `known`."""
    ends = np.cumsum([len(each["axes"]) for each in known.get("outputs", ())] or [n_outputs]).tolist()
    return [slice(begin, end) for begin, end in zip([0, *ends], ends, strict=False)]


def label_features(
    labels: np.ndarray, stretch: np.ndarray, reach: int, spacing: int, variables: Sequence[slice]
) -> tuple[np.ndarray, np.ndarray]:
    """Features (n_bins, n_features) of the labels within `reach` bins of every bin, and where there are any (n_bins,).

    At every `spacing`-th bin of the window they are the labels, the size of each variable (of velocity: speed) and the
    labels times it; a constant comes last. Labels (n_bins, n_outputs) are scaled, NaN where there is none: those
    between two known ones of one stretch are interpolated; a bin without a known label of every output within `reach`
    has no features. Windows end where their `stretch` (n_bins,) does, with its first or last label repeated.
    """
    n = len(labels)
    filled, known = np.zeros_like(labels), np.zeros(n, bool)
    first, last = (np.searchsorted(stretch, stretch, side=side) for side in ("left", "right"))
    for begin in np.unique(first):
        rows = np.arange(int(begin), int(last[begin]))
        near = np.ones(len(rows), bool)
        for output in range(labels.shape[1]):
            told = rows[np.isfinite(labels[rows, output])]
            if not len(told):
                near[:] = False
                continue
            filled[rows, output] = np.interp(rows, told, labels[told, output])
            after = np.searchsorted(told, rows)
            ahead = np.abs(told[np.minimum(after, len(told) - 1)] - rows)
            near &= np.minimum(ahead, np.abs(rows - told[np.maximum(after - 1, 0)])) <= reach
        known[rows] = near
    sizes = [np.linalg.norm(filled[:, variable], axis=1, keepdims=True) for variable in variables]
    times = [filled[:, variable] * size for variable, size in zip(variables, sizes, strict=True)]
    whole = np.hstack([filled, *sizes, *times])
    around = np.arange(n)[:, None] + np.arange(-reach, reach + 1, spacing)
    windows = whole[np.clip(around, first[:, None], last[:, None] - 1)].reshape(n, -1)
    return np.hstack([windows, np.ones((n, 1))]), known
