"""DANDI 000070: two monkeys reaching in a maze, threshold crossings of two arrays, recorded trial by trial."""

from __future__ import annotations

import numpy as np
import xarray as xr

from bci_adapt.data.layouts.base import Layout
from bci_adapt.data.layouts.reading import Target, read_continuous
from bci_adapt.data.nwb import TRIALS, NwbFile, column
from bci_adapt.data.nwb_describing import Description

HAND = "processing/behavior/Position/Hand"
CURSOR = "processing/behavior/Position/Cursor"
EYE = "processing/behavior/Position/Eye"
ARRAYS = {"1": "PMd", "2": "M1"}
"""Names of the electrode groups, and the areas that they lie in."""


class ChurchlandMaze(Layout):
    """``Position/Hand`` with ``Cursor`` and ``Eye``, no velocity; units observed trial by trial (obs_intervals).

    The position is that of the hand. Spikes exist only inside trials: every other bin is not valid. The clock runs
    backwards in some sessions, for spikes and kinematics alike: each fall starts a segment, and where two stretches
    share one time nobody can tell whose spikes these are, so that no bin there is valid. Channels are electrodes
    named by area, ``PMd/…`` for the group "1" and ``M1/…`` for "2". The converter writes NaN as
    ``conversion``: the unit is unknown.
    """

    name = "churchland_maze"
    verified_on = ""
    written_from = "the converter of the laboratory's files (catalystneuro/shenoy-lab-to-nwb, maze_task_unsorted)"

    def matches(self, description: Description) -> tuple[float, str]:
        """See `Layout.matches`."""
        paths = description.paths() | {*description.unusable}
        if "units" not in paths:
            return 0.0, "no units with spike times"
        if not {HAND, CURSOR} <= paths:
            return 0.0, f"no {HAND} and {CURSOR}"
        if "obs_intervals" not in description.units["columns"]:
            return 0.4, f"units, {HAND} and {CURSOR}, but nothing says when units were observed"
        return 1.0, f"units with obs_intervals, {HAND} and {CURSOR}"

    def read(self, file: NwbFile, bin_s: float, per: str) -> xr.Dataset:
        """See `Layout.read`."""
        if "units/obs_intervals" not in file:
            raise file.error("units/obs_intervals", "is missing: only it says when spikes were recorded at all")
        targets = [
            Target("position", (HAND,), required=True),
            Target("cursor_position", (CURSOR,)),
            Target("eye_position", (EYE,)),
        ]
        session = read_continuous(self, file, bin_s, per, targets, resets=True)
        for name in {"channel", "electrode"} & {*session.coords}:
            labels = [_by_area(label) for label in session[name].values.tolist()]
            session = session.assign_coords({name: ("channel", np.asarray(labels, dtype=np.str_))})
        success, discarded = (column(file, TRIALS, name) for name in ("task_success", "discard_trial"))
        if all(each is not None and each.ndim == 1 and each.dtype.kind in "iufb" for each in (success, discarded)):
            result = np.where(discarded != 0, "discarded", np.where(success == 1, "success", "failure"))
            session["trial_result"] = "trial", result.astype(np.str_)
        return session


def _by_area(label: str) -> str:
    array, slash, electrode = label.partition("/")
    return f"{ARRAYS.get(array, array)}/{electrode}" if slash else label
