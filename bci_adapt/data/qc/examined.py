"""A session under examination, to which every check adds what it found."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from bci_adapt.data import faults
from bci_adapt.data.binning import segment_slices
from bci_adapt.data.faults import Thresholds
from bci_adapt.data.qc.report import FLAG, NOT_APPLICABLE, PASS, Check
from bci_adapt.data.qc.thresholds import QcThresholds


class Examined:
    """A session under examination: its arrays, and the `checks` and `series` found so far.

    `use` are the bins in which channels are compared: observed, and without what is beyond chance in many channels.
    """

    def __init__(self, session: xr.Dataset, limits: QcThresholds) -> None:
        self.session, self.limits = session, limits
        self.checks: list[Check] = []
        self.bin_s = float(session.attrs["bin_s"])
        self.counts: NDArray[Any] = session["counts"].values
        self.segment: NDArray[np.integer] = session["segment"].values
        self.valid: NDArray[np.bool_] = session["valid"].values
        self.spikes = self.counts.dtype.kind in "ui"  # otherwise band power, to which no rule of counts applies
        stored = json.loads(session.attrs.get("thresholds", "{}"))
        self.masks = Thresholds(**{f.name: stored[f.name] for f in fields(Thresholds) if f.name in stored})
        self.artefact = np.zeros(self.valid.size, dtype=bool)
        self.use = self.valid.copy()
        self.series: dict[str, NDArray[Any]] = {
            "minutes": np.arange(self.valid.size) * self.bin_s / 60.0,
            "valid": self.valid,
            "segment_starts": np.array([rows.start for rows in segment_slices(self.segment)]) * self.bin_s / 60.0,
            "channels": session["channel"].values,
        }
        if self.spikes:
            self.n_above, by_chance = faults.coincident_bins(
                self.counts, self.valid, limits.artefact_tail, limits.artefact_alpha
            )
            self.n_artefact = max(by_chance, int(np.ceil(limits.artefact_fraction * self.counts.shape[1])))
            self.artefact = self.n_above >= self.n_artefact
            # The fringes of artefacts make channels look alike: comparisons leave out all that is beyond chance.
            self.use &= self.n_above < by_chance

    def add(self, name: str, flags: Any, of: str, threshold: str, found: str, most: float = 0.0) -> None:
        """Flag a check when more than the fraction `most` of `flags` is True."""
        flags = np.asarray(flags, dtype=bool).ravel()
        n = int(np.count_nonzero(flags))
        status = FLAG if n > most * flags.size else PASS
        self.checks.append(Check(name, status, n, int(flags.size), of, threshold, found))

    def skip(self, name: str, threshold: str, why: str) -> None:
        """Say why a check does not apply."""
        self.checks.append(Check(name, NOT_APPLICABLE, 0, 0, "", threshold, why))
