"""DANDI 001201, LINK: finger movements of one monkey over 3.4 years, 96 channels, published in bins."""

from __future__ import annotations

import numpy as np
import xarray as xr

from bci_adapt.data.layouts.base import Layout
from bci_adapt.data.layouts.grids import MILLISECOND_CLOCK
from bci_adapt.data.layouts.reading import Target, read_rows
from bci_adapt.data.layouts.tables import read_trials
from bci_adapt.data.nwb import TRIALS, NwbFile, column
from bci_adapt.data.nwb_describing import Description

COUNTS = "analysis/ThresholdCrossings"
POWER = "analysis/SpikingBandPower"
AXES = ("index", "mrs")
POSITION = tuple(f"analysis/{finger}_position" for finger in AXES)
VELOCITY = tuple(f"analysis/{finger}_velocity" for finger in AXES)


class Link(Layout):
    """LINK: counts in ``analysis/ThresholdCrossings`` (bins, 96), one series per finger beside it.

    The width of a bin is the usual interval of the timestamps, which are taken as the **centre** of a bin: they are
    times averaged over it. Trials follow one another with gaps, each of which starts a new segment. A ``conversion`` is
    not applied to counts. A recorded velocity is per bin, not per second.
    """

    name = "link"
    verified_on = ""
    neural, score = COUNTS, 1.0

    def matches(self, description: Description) -> tuple[float, str]:
        """See `Layout.matches`."""
        paths = description.paths()
        missing = sorted({self.neural, *POSITION} - paths)
        if missing:
            return 0.0, f"no {', '.join(missing)}"
        return self.score, f"{self.neural} and {' and '.join(POSITION)}"

    def read(self, file: NwbFile, bin_s: float, per: str) -> xr.Dataset:
        """See `Layout.read`."""
        trials = read_trials(file, len(AXES))
        targets = [column(file, TRIALS, f"{finger}_target_position") for finger in AXES]
        if all(each is not None and each.ndim == 1 and each.dtype.kind in "iuf" for each in targets):
            trials["trial_target"] = np.stack([np.asarray(each, dtype=np.float64) for each in targets], axis=1)
        return read_rows(
            self,
            file,
            bin_s,
            per,
            [Target("position", POSITION, AXES, required=True), Target("recorded_velocity", VELOCITY, AXES)],
            edge="centre",
            clock=self.neural,
            counts=self.neural,
            power=self.neural == POWER,
            tolerance=MILLISECOND_CLOCK,
            trials=trials,
        )


class LinkPower(Link):
    """LINK: as ``link``, with the power of the spiking band in place of counts (``analysis/SpikingBandPower``).

    The power is in the unit of the file with its ``conversion`` applied; wider bins average it.
    """

    name = "link_power"
    neural, score = POWER, 0.8  # counts are taken where a file has both
