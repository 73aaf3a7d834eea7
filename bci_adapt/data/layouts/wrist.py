"""Counts published per bin, with kinematics on the same grid and a rate instead of timestamps."""

from __future__ import annotations

import xarray as xr

from bci_adapt.data.layouts.base import Layout
from bci_adapt.data.layouts.reading import Target, read_rows
from bci_adapt.data.nwb import NwbFile
from bci_adapt.data.nwb_describing import Description

COUNTS = "acquisition/ThresholdCrossings"
TARGET = "target_pos"
POSITION = "processing/behavior/Position/cursor_pos"
VELOCITY = "processing/behavior/Velocity/cursor_vel"
EMG = "processing/behavior/emg"


class Wrist(Layout):
    """``ThresholdCrossings`` (bins, channels) with a rate; ``cursor_pos``, ``cursor_vel`` and, where muscles were
    recorded, ``emg`` pair with it row by row.

    Row i of the file is the bin that starts at ``starting_time + i / rate``; the session's time is its end. Wider bins
    sum whole rows of counts and average kinematics; any other width is refused.
    """

    name = "wrist"
    verified_on = "15 sessions of a wrist-driven cursor, 96 threshold channels, 50 ms counts"

    def matches(self, description: Description) -> tuple[float, str]:
        """See `Layout.matches`."""
        neural = {source.path: source for source in description.neural}
        series = {found.path: found for found in description.series}
        if COUNTS not in neural:
            return 0.0, f"no {COUNTS}"
        if POSITION not in series:
            return 0.0, f"{COUNTS}, but no {POSITION}"
        if neural[COUNTS].rate_hz is None or series[POSITION].rate_hz is None:
            return 0.3, f"{COUNTS} and {POSITION}, but not both with a rate"
        if TARGET in description.trials.get("columns", ()):
            return 0.9, f"{COUNTS} and {POSITION}, both with a rate, but {TARGET} of trials besides"
        return 1.0, f"{COUNTS} and {POSITION}, both with a rate"

    def read(self, file: NwbFile, bin_s: float, per: str) -> xr.Dataset:
        """See `Layout.read`."""
        targets = [
            Target("position", (POSITION,), required=True),
            Target("recorded_velocity", (VELOCITY,)),
            Target("emg", (EMG,)),
        ]
        return read_rows(self, file, bin_s, per, targets, edge="start", clock=COUNTS, counts=COUNTS)
