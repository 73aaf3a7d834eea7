"""Counts published per bin, with kinematics on the same grid and a rate instead of timestamps."""

from __future__ import annotations

import numpy as np
import xarray as xr

from bci_adapt import binning
from bci_adapt.layouts.base import (
    Layout,
    bin_width_s,
    electrode_names,
    read_columns,
    read_trials,
    require_whole_counts,
    session_attrs,
)
from bci_adapt.nwb import Description, NwbFile
from bci_adapt.session import assemble

COUNTS = "acquisition/ThresholdCrossings"
POSITION = "processing/behavior/Position/cursor_pos"
VELOCITY = "processing/behavior/Velocity/cursor_vel"


class Wrist(Layout):
    """``ThresholdCrossings`` (bins, channels) with a rate; ``cursor_pos`` and ``cursor_vel`` pair with it row by row.

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
        return 1.0, f"{COUNTS} and {POSITION}, both with a rate"

    def read(self, file: NwbFile, bin_s: float) -> xr.Dataset:
        """See `Layout.read`."""
        counts = require_whole_counts(file, f"{COUNTS}/data")
        start_s, rate_hz = file.clock(COUNTS)
        file_bin_s = bin_width_s(file, COUNTS, rate_hz)
        kinematics: dict[str, tuple[np.ndarray, str]] = {}
        axes: list[str] = []
        for name, path in (("position", POSITION), ("recorded_velocity", VELOCITY)):
            if name != "position" and f"{path}/data" not in file:
                continue
            values, unit, names = read_columns(file, [path])
            axes = axes or names
            if file.clock(path) != (start_s, rate_hz) or len(values) != len(counts):
                raise file.error(
                    path,
                    f"must stand on the grid of {COUNTS} ({len(counts)} rows from {start_s:g} s at {rate_hz:g} Hz), "
                    f"found {len(values)} rows, start and rate {file.clock(path)}",
                )
            if name == "position" and not np.isfinite(values).any():
                raise file.error(f"{path}/data", "has no value that is not NaN: nothing can be decoded")
            if values.shape[1] != len(axes):
                raise file.error(
                    path, f"must have as many columns as {POSITION} ({len(axes)}), found {values.shape[1]}"
                )
            kinematics[name] = (values, unit)

        segment = np.zeros(len(counts), dtype=np.int32)
        try:
            rows = binning.rebin_rows(segment, file_bin_s, bin_s)
        except ValueError as error:
            raise file.error(COUNTS, str(error)) from error
        ends_s = binning.bin_ends_s(start_s, len(counts), file_bin_s)
        names, channel_identity = electrode_names(file), "electrode"
        if len(names) != counts.shape[1]:
            names, channel_identity = [f"column{i}" for i in range(counts.shape[1])], "column"
        return assemble(
            time_s=ends_s[rows[:, -1]],
            counts=binning.rebin_counts(counts, rows),
            segment=segment[rows[:, -1]],
            valid=np.ones(len(rows), dtype=bool),
            channels=names,
            axes=axes,
            kinematics={name: (values[rows].mean(axis=1), unit) for name, (values, unit) in kinematics.items()},
            trials=read_trials(file, len(axes)),
            attrs=session_attrs(file, self, bin_s, channel_identity, []),
        )
