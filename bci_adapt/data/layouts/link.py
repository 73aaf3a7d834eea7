"""DANDI 001201, LINK: finger movements of one monkey over 3.4 years, 96 channels, published in bins."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from bci_adapt.data.binning import TICKS_PER_S, to_ticks
from bci_adapt.data.layouts.base import Layout
from bci_adapt.data.layouts.grids import starts_of_runs
from bci_adapt.data.layouts.reading import Target, note_looking_ahead, read_rows
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
    times averaged over it. Bins run on through successive trials, between which 2 ms of the clock are missing; only
    where a trial was skipped a new segment starts. So a session's time counts bins from the start of a run, and the
    times of trials are put on it. A ``conversion`` is not applied to counts. A recorded velocity is per bin, not per
    second, and a forward difference: it looks one bin ahead.
    """

    name = "link"
    verified_on = ""
    written_from = "the laboratory's own converter (chesteklab/LINK_dataset, dataset_preparation/pkl_to_nwb.py)"
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
        trials = self._on_the_clock_of_bins(file, trials)
        session = read_rows(
            self,
            file,
            bin_s,
            per,
            [Target("position", POSITION, AXES, required=True), Target("recorded_velocity", VELOCITY, AXES)],
            edge="centre",
            clock=self.neural,
            counts=self.neural,
            power=self.neural == POWER,
            runs_on=True,
            trials=trials,
        )
        return note_looking_ahead(session, "forward")

    def _on_the_clock_of_bins(self, file: NwbFile, trials: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Trials with their times moved by what is missing of the clock since the run that they lie in began."""
        n_rows = file.length(f"{self.neural}/data")
        times_s = file.times_s(self.neural, n_rows)
        steps = np.diff(to_ticks(times_s))
        if not (steps > 0).any():
            return trials
        width_s = float(np.median(steps[steps > 0])) / TICKS_PER_S
        cuts = starts_of_runs(to_ticks(times_s), width_s * TICKS_PER_S)
        first = np.repeat(cuts, np.diff([*cuts, n_rows]))
        counted_s = times_s[first] + width_s * (np.arange(n_rows) - first)
        last = np.append(cuts[1:], n_rows) - 1

        def moved(at_s: NDArray[np.float64]) -> NDArray[np.float64]:
            run = np.clip(np.searchsorted(times_s[cuts], at_s, side="right") - 1, 0, None)
            row = np.clip(np.searchsorted(times_s, at_s, side="right") - 1, 0, last[run])
            return at_s + (counted_s - times_s)[row]

        return {name: moved(values) if name.endswith("_s") else values for name, values in trials.items()}


class LinkPower(Link):
    """LINK: as ``link``, with the power of the spiking band in place of counts (``analysis/SpikingBandPower``).

    The power is in the unit of the file with its ``conversion`` applied; wider bins average it.
    """

    name = "link_power"
    neural, score = POWER, 0.8  # counts are taken where a file has both
