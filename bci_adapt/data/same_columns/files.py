"""Sessions of files, in the bins that they have, for whom alone the counts matter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import xarray as xr

from bci_adapt.data.channels import policy_for, under
from bci_adapt.data.guarded_reading import bins_of, inspect, opened
from bci_adapt.data.same_columns.judging import SameColumns, same_columns


def in_own_bins(path: Path) -> xr.Dataset:
    """The session of a file in the bins of its counts, spike times in those of `from_arrays.BIN_S`; raises as
    `guarded_reading.opened`.
    """
    bin_s = bins_of(path)[1]
    if bin_s is None and path.suffix == ".nwb":
        binned = [each.rate_hz for each in inspect(path).neural if each.kind == "binned counts" and each.rate_hz]
        bin_s = round(1 / binned[0], 6) if binned else None
    return opened(path, bin_s)


def of_files(paths: Sequence[Path]) -> SameColumns:
    """Judge the sessions of files under the channel policy that fits the first."""
    sessions = [in_own_bins(path) for path in paths]
    policy = policy_for(sessions)
    if policy == "none":  # unnamed channels are told to be so
        return same_columns(sessions)
    return same_columns([under(session, policy) for session in sessions])
