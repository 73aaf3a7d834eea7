"""DANDI 000688: sorted units of primate motor cortex, cursor kinematics with explicit timestamps."""

from __future__ import annotations

import xarray as xr

from bci_adapt.data.layouts.base import Layout
from bci_adapt.data.layouts.reading import Target, read_continuous
from bci_adapt.data.nwb import NwbFile
from bci_adapt.data.nwb_describing import Description

POSITION = "processing/behavior/Position/cursor_pos"
VELOCITY = "processing/behavior/Velocity/cursor_vel"


class Perich(Layout):
    """Units with spike times and electrodes; ``cursor_pos`` and ``cursor_vel`` in ``processing/behavior``.

    A channel is an electrode (array and label) with its sorted units pooled, because sorted units are not matched
    across days. There are no obs_intervals and no waveforms are read.
    """

    name = "perich"
    verified_on = ""
    written_from = "code that reads these files (neuro-galaxy/brainsets, perich_miller_population_2018)"

    def matches(self, description: Description) -> tuple[float, str]:
        """See `Layout.matches`."""
        paths = description.paths() | {*description.unusable}  # what is there but unusable is an error of its own
        if "units" not in paths:
            return 0.0, "no units with spike times"
        if POSITION not in paths:
            return 0.0, f"no {POSITION}"
        if "electrodes" not in description.units.get("columns", ()):
            return 0.4, f"units and {POSITION}, but the units name no electrodes"
        return 1.0, f"units with electrodes and {POSITION}"

    def read(self, file: NwbFile, bin_s: float, per: str) -> xr.Dataset:
        """See `Layout.read`."""
        targets = [Target("position", (POSITION,), required=True), Target("recorded_velocity", (VELOCITY,))]
        return read_continuous(self, file, bin_s, per, targets)
