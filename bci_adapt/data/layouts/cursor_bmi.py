"""DANDI 000404: two monkeys move a cursor through a brain-machine interface; counts at 60 or 200 Hz."""

from __future__ import annotations

import numpy as np
import xarray as xr

from bci_adapt.data.layouts.base import Layout
from bci_adapt.data.layouts.reading import Target, read_rows
from bci_adapt.data.nwb import NwbFile
from bci_adapt.data.nwb_describing import Description

COUNTS = "processing/behavior/spike_counts"
POSITION = "processing/behavior/cursor"
BLOCK = "processing/behavior/te_num"


class CursorBmi(Layout):
    """Cursor BMI of 000404: ``spike_counts`` (bins, units) and ``cursor`` in ``processing/behavior`` at one rate.

    Row i is the bin that starts at ``starting_time + i / rate``. Three rows of 60 Hz are the shortest bin of whole
    microseconds (50 ms). Blocks of the task (``te_num``) follow one another without a gap in time: each starts a new
    segment. A file does not say which unit a column is, so its channels are not those of another day.
    """

    name = "cursor_bmi"
    verified_on = ""
    written_from = "the listing and description of the dandiset: no published converter is known"

    def matches(self, description: Description) -> tuple[float, str]:
        """See `Layout.matches`."""
        missing = sorted({COUNTS, POSITION} - description.paths())
        if missing:
            return 0.0, f"no {', '.join(missing)}"
        return 1.0, f"{COUNTS} and {POSITION}"

    def read(self, file: NwbFile, bin_s: float, per: str) -> xr.Dataset:
        """See `Layout.read`."""
        targets = [Target("position", (POSITION,), ("x", "y"), required=True)]
        session = read_rows(
            self, file, bin_s, per, targets, edge="start", clock=COUNTS, counts=COUNTS, breaks=_block_starts(file)
        )
        return session.assign_attrs(channel_identity="none")


def _block_starts(file: NwbFile) -> list[int]:
    """First row of every block of the task but the first; [] where the file does not tell blocks apart."""
    if f"{BLOCK}/data" not in file:
        return []
    block = file.numbers(f"{BLOCK}/data").squeeze()
    rows = file.length(f"{COUNTS}/data")
    if block.shape != (rows,):
        raise file.error(f"{BLOCK}/data", f"must be one block per row of {COUNTS} ({rows}), found {block.shape}")
    return (np.flatnonzero(block[1:] != block[:-1]) + 1).tolist()
