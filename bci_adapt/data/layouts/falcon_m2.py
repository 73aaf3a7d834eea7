"""DANDI 000953, FALCON M2: finger movements of a monkey, 96 threshold channels."""

from __future__ import annotations

from functools import partial

import xarray as xr

from bci_adapt.data.layouts.base import Layout
from bci_adapt.data.layouts.falcon import MASKS, cut, one_animal
from bci_adapt.data.layouts.grids import MILLISECOND_CLOCK
from bci_adapt.data.layouts.reading import Target, note_looking_ahead, read_rows
from bci_adapt.data.nwb import NwbFile
from bci_adapt.data.nwb_describing import Description
from bci_adapt.data.sessions import FROM_START

AXES = ("index", "mrs")
POSITION = tuple(f"acquisition/finger_pos/{finger}" for finger in AXES)
VELOCITY = tuple(f"acquisition/finger_vel/{finger}" for finger in AXES)


class FalconM2(Layout):
    """FALCON M2: units with electrodes; one series per finger in ``acquisition/finger_pos`` and ``finger_vel``.

    Rows of 20 ms are stamped with the **start** of their bin: row i stamped t counts spikes in [t, t + 0.02), cut
    by the benchmark's own arithmetic (`falcon.cut`). Time between trials is missing: every gap, of a millisecond too,
    starts a new segment. Where the last row of a trial reaches into the next trial, neither of the two rows is valid;
    of the second row only what the first left of it is counted.
    """

    name = "falcon_m2"
    verified_on = ""
    written_from = (
        "falcon-challenge 1.0.2, the benchmark's own loader (dataloaders.py) and converter (preproc/m2_preproc.py)"
    )
    bin_edge = FROM_START

    def matches(self, description: Description) -> tuple[float, str]:
        """See `Layout.matches`."""
        paths = description.paths()
        if "units" not in paths:
            return 0.0, "no units with spike times"
        missing = sorted({*POSITION, *VELOCITY} - paths)
        if missing:
            return 0.0, f"no {', '.join(missing)}"
        return 1.0, "units, and index and mrs in acquisition/finger_pos and finger_vel"

    def read(self, file: NwbFile, bin_s: float, per: str) -> xr.Dataset:
        """See `Layout.read`."""
        targets = [
            Target("position", POSITION, AXES, required=True),
            Target("recorded_velocity", VELOCITY, AXES, required=True),
        ]
        session = read_rows(
            self,
            file,
            bin_s,
            per,
            targets,
            edge="start",
            clock=POSITION[0],
            tolerance=MILLISECOND_CLOCK,
            masks=MASKS,
            cut=partial(cut, starts=True),
        )
        return one_animal(note_looking_ahead(session, "central"))
