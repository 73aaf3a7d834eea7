"""What the files of the FALCON benchmark share: how bins are cut, a split in the subject's name, what is scored."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from bci_adapt.data import binning
from bci_adapt.data.layouts.grids import BLOCK

MASKS = {"evaluated": "acquisition/eval_mask"}
"""Rows the benchmark scores; a wider bin is evaluated when all its rows are."""
_SPLIT = re.compile(r"(.+?)[-_](held[-_].+)")


@dataclass(frozen=True)
class Cut:
    """Rows as the benchmark's own loader cuts them, so that counts are its counts: in double precision, where
    round-off decides on which side of an edge a spike on it falls.

    Row i counts spikes in [starts_s[i], ends_s[i]) (n_rows,), the last row also one at its end, and a bin is the rows
    of `groups` (n_bins, k).
    """

    starts_s: NDArray[np.float64]
    ends_s: NDArray[np.float64]
    groups: NDArray[np.int64]

    def counts(
        self,
        times_s: NDArray[np.float64],
        unit_index: NDArray[np.integer],
        channel_of_unit: NDArray[np.int64],
        n_channels: int,
    ) -> NDArray[np.uint16]:
        """As `grids.Grid.counts`."""
        binning.require_size(self.starts_s.size, n_channels)
        counts = np.zeros((self.starts_s.size, n_channels), dtype=np.uint16)
        last, n_counted = self.starts_s.size - 1, 0
        for first in range(0, times_s.size, BLOCK):
            own = times_s[first : first + BLOCK]
            rows = np.searchsorted(self.starts_s, own, side="right") - 1
            inside = (own < self.ends_s[rows]) | ((rows == last) & (own == self.ends_s[last]))
            rows[~inside] = -1
            n_counted += binning.add_spikes(counts, rows, channel_of_unit[unit_index[first : first + BLOCK]])
        binning.require_counted(counts, n_counted)
        return binning.rebin_counts(counts, self.groups)


def cut(stamps_s: NDArray[np.float64], groups: NDArray[np.int64], row_s: float, *, starts: bool = False) -> Cut | None:
    """The rows that are stamped `stamps_s` (n_rows,) with their ends, or with their `starts`; None where time falls.

    A row lasts `row_s` where more than that has passed since the row before, else since the end of that one.
    """
    ends = stamps_s + row_s if starts else stamps_s
    steps = np.diff(ends)
    if (steps <= 0).any():
        return None
    late = (steps > row_s) & ~np.isclose(steps, row_s)
    begins = np.where(late, ends[1:] - row_s, ends[:-1])
    return Cut(np.concatenate([[ends[0] - row_s], begins]), ends, groups)


def one_animal(session: xr.Dataset) -> xr.Dataset:
    """Name the animal without the split that its subject id carries, in place; the split goes into ``split``.

    ``MonkeyN-held-in-calib`` is the animal ``MonkeyN`` and the split ``held-in-calib``. The id of the session names the
    split too, because two splits of one day are two files.
    """
    subject, session_id = session.attrs["subject"], session.attrs["session_id"]
    found = _SPLIT.fullmatch(subject)
    animal, split = (found[1], found[2].replace("_", "-")) if found else (subject, "")
    if found:
        rest = session_id.removeprefix(f"sub-{subject}_ses-")
        named = split in rest.replace("_", "-")
        session.attrs |= {
            "subject": animal,
            "session_id": f"sub-{animal}_ses-{rest}" if named else f"sub-{animal}_ses-{rest}_{split}",
        }
    session.attrs["split"] = split
    return session
