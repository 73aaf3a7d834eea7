"""When a decoder that learns in blocks of labels may learn which."""

from __future__ import annotations

import numpy as np


def label_blocks(
    arrives: np.ndarray, n_waiting: int, reset: np.ndarray, block: int
) -> tuple[list[tuple[slice, list[slice]]], int]:
    """When a decoder that learns in blocks may learn what.

    Parameters
    ----------
    arrives : (n_waiting + n_bins,) when the label of each queued row becomes known, counted from the first bin of this
        call: first the rows that wait since earlier calls, then those of this call.
    reset : (n_bins,) True at the first bin of a segment: rows that still wait are lost, as in the network's loop.
    block : rows that are learned together, once the last of them is known.

    Returns
    -------
    (bins, rows) in order – predict these bins, then learn these blocks of queued rows – and how many rows are done.
    """
    n_bins, steps, taken, at = len(reset), [], 0, 0
    # A row is learned after those before it, however early its own label came.
    known = np.maximum.accumulate(arrives)
    boundaries = [*np.flatnonzero(reset).tolist(), n_bins]
    for end in boundaries:
        while at < end:
            last = taken + block - 1
            due = int(known[last]) + 1 if last < len(known) else n_bins
            begin, at = at, min(max(at + 1, due), end)
            rows = []
            while (last := taken + block - 1) < n_waiting + at and known[last] < at:
                rows.append(slice(taken, last + 1))
                taken = last + 1
            steps.append((slice(begin, at), rows))
        if end < n_bins:
            taken = n_waiting + end
    return steps, taken
