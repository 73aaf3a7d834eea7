"""Monkey Indy's sessions of self-paced reaching in published bins: counts, finger position, targets of trials."""

from __future__ import annotations

import xarray as xr

from bci_adapt.data.layouts.wrist import COUNTS, POSITION, TARGET, Wrist
from bci_adapt.data.nwb import TRIALS, NwbFile
from bci_adapt.data.nwb_describing import Description


class Indy64(Wrist):
    """As ``wrist``, with the place of every trial's target in ``trials.target_pos``: the labels of intention.

    The position of a row is that of the finger at the **end** of its bin, so that it pairs with the counts of the bin
    before it.
    """

    name = "indy64"
    verified_on = "17 sessions of monkey Indy (Zenodo 583331), 96 electrodes, 64 ms counts"

    def matches(self, description: Description) -> tuple[float, str]:
        """See `Layout.matches`."""
        score, reason = super().matches(description)
        if TARGET not in description.trials.get("columns", ()):
            return 0.0, f"{reason}; the trials have no {TARGET}"
        return (1.0, f"{COUNTS} and {POSITION} with a rate, {TARGET} of trials") if score >= 0.9 else (0.0, reason)

    def read(self, file: NwbFile, bin_s: float, per: str) -> xr.Dataset:
        """See `Layout.read`."""
        session = super().read(file, bin_s, per)
        if "trial_target" not in session:
            raise file.error(
                f"{TRIALS}/{TARGET}", "must be the place of each trial's target, a number per axis of position"
            )
        return session
