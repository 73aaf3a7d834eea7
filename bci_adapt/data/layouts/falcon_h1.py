"""DANDI 000954, FALCON H1: attempted reach and grasp of a person, seven degrees of freedom, 176 threshold channels."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from bci_adapt.data.layouts.base import Layout
from bci_adapt.data.layouts.falcon import MASKS, Cut, cut, one_animal
from bci_adapt.data.layouts.reading import Target, note_looking_ahead, read_rows
from bci_adapt.data.nwb import NwbFile
from bci_adapt.data.nwb_describing import Description
from bci_adapt.data.sessions import FROM_START

POSITION = "acquisition/OpenLoopKinematics"
VELOCITY = "acquisition/OpenLoopKinematicsVelocity"
TRIAL_NUMBER = "acquisition/TrialNum"
EPOCHS = "intervals/epochs"
BLACKLIST = {"evaluated": "~acquisition/Blacklist"}


class FalconH1(Layout):
    """FALCON H1: units without electrodes; ``acquisition/OpenLoopKinematics`` and its velocity (rows, 7).

    A ``rate`` below 1 is there the period of a row in seconds, and ``offset`` is the time of the first row, not added
    to values; ``starting_time`` says nothing. Rows are stamped with the **end** of their bin: row i stamped t counts
    spikes in [t - 0.02, t), cut by the benchmark's own arithmetic (`falcon.cut`). A unit is a threshold channel, known
    by its row. A trial begins where ``TrialNum`` rises; epochs are trials where there is none. Older files have a
    ``Blacklist`` of rows that are not evaluated in place of ``eval_mask``.
    """

    name = "falcon_h1"
    verified_on = ""
    written_from = "falcon-challenge 1.0.2, the benchmark's own loader (dataloaders.py)"
    bin_edge = FROM_START

    def matches(self, description: Description) -> tuple[float, str]:
        """See `Layout.matches`."""
        paths = description.paths()
        if "units" not in paths:
            return 0.0, "no units with spike times"
        if POSITION not in paths:
            return 0.0, f"no {POSITION}"
        return 1.0, f"units and {POSITION}"

    def read(self, file: NwbFile, bin_s: float, per: str) -> xr.Dataset:
        """See `Layout.read`."""
        rate = file.clock(POSITION)[1]
        row_s = rate if rate < 1 else 1 / rate
        start_s = file.number(f"{POSITION}/data", "offset", 0.0)

        def as_the_benchmark(times_s: NDArray[np.float64], groups: NDArray[np.int64], width_s: float) -> Cut | None:
            return cut(start_s + np.arange(times_s.size, dtype=np.float64) * row_s, groups, width_s)

        session = read_rows(
            self,
            file,
            bin_s,
            per,
            [
                Target("position", (POSITION,), required=True, offset=False),
                Target("recorded_velocity", (VELOCITY,), offset=False),
            ],
            edge="end",
            clock=POSITION,
            width_s=row_s,
            start_s=start_s,
            rows_are_channels=True,
            masks=MASKS if f"{MASKS['evaluated']}/data" in file else BLACKLIST,
            cut=as_the_benchmark,
            trials=_trials(file, start_s, row_s),
        )
        if rate < 1:
            session.attrs["warnings"].append(f"the rate {rate:g} of {POSITION} is read as the period of a row in s")
        return one_animal(note_looking_ahead(session, "central"))


def _trials(file: NwbFile, start_s: float, row_s: float) -> dict[str, NDArray[Any]]:
    """Trials by rises of the trial number, a row stamped t standing for (t - row_s, t], else the epochs."""
    start = stop = np.zeros(0)
    if f"{TRIAL_NUMBER}/data" in file:
        number = file.numbers(f"{TRIAL_NUMBER}/data").squeeze()
        rows = file.length(f"{POSITION}/data")
        if number.shape != (rows,):
            raise file.error(f"{TRIAL_NUMBER}/data", f"must be one number per row ({rows}), found {number.shape}")
        first = np.flatnonzero(np.concatenate([[True], number[1:] > number[:-1]]))
        start = start_s + (first - 1) * row_s
        stop = start_s + (np.append(first[1:], rows) - 1) * row_s
    elif EPOCHS in file:
        start, stop = (file.numbers(f"{EPOCHS}/{name}").astype(np.float64) for name in ("start_time", "stop_time"))
        if start.ndim != 1 or start.shape != stop.shape:
            raise file.error(EPOCHS, f"must have a start and a stop each, found {start.shape} and {stop.shape}")
    return {
        "trial_start_s": start,
        "trial_stop_s": stop,
        "trial_go_s": np.full(start.size, np.nan),
        "trial_result": np.full(start.size, ""),
    }
