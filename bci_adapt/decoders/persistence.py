"""A control without neurons: the last label that is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from bci_adapt.decoders.base import Decoder
from bci_adapt.decoders.inputs import Bins
from bci_adapt.decoders.stored import Form
from bci_adapt.decoders.timing import arrival_bins, delay_bins


class PersistenceDecoder(Decoder):
    """Predicts the newest label that has become known, whatever the neurons do. An online score that does not beat it
    says nothing about decoding. Where no label ever arrives (held out) it repeats the last one. A segment's end is
    nothing to it: it has no state, only the label that came last.

    Parameters
    ----------
    label_delay_s, bin_s, missing : as in `OnlineDecoder`.
    """

    name: ClassVar[str] = "persistence"
    description: ClassVar[str] = "control: the newest known label, no neurons"
    stored: ClassVar[Mapping[str, Form]] = {
        "last_": Form("outputs", nan=True),
        "waiting_": Form("waiting outputs", nan=True),
        "waiting_arrives_": Form("waiting", "int64"),
    }
    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = {"": {"label_delay_s": 0.2}}
    unmet_checks: ClassVar[Mapping[str, str]] = {
        check: why
        for check, why in Decoder.unmet_checks.items()
        if not check.endswith("_invariance")  # it looks at no neuron, in whatever order
    }

    def __init__(self, label_delay_s: float = 0.5, bin_s: float | None = None, missing: str = "refuse"):
        self.label_delay_s = label_delay_s
        self.bin_s = bin_s
        self.missing = missing

    def _fit(self, sessions: Sequence[Bins]) -> None:
        labels = np.concatenate([np.where(bins.weight > 0, bins.Y, np.nan) for bins in sessions])
        self.last_ = np.nanmean(labels, axis=0)
        self.begin()

    def begin(self) -> None:
        self.require_fitted()
        self.waiting_ = np.zeros((0, self.n_outputs_))
        self.waiting_arrives_ = np.zeros(0, np.int64)

    def _predict(self, bins: Bins, continuing: bool) -> np.ndarray:
        return np.tile(self.last_, (len(bins.X), 1))

    def _partial_fit(self, bins: Bins, arrives: Any) -> np.ndarray:
        n_bins = len(bins.X)
        known = arrival_bins(arrives, n_bins, delay_bins(self.label_delay_s, self.bin_s_))
        # A label is known to the prediction of the bin after the one in which it arrives.
        due = np.maximum.accumulate(np.concatenate([self.waiting_arrives_, known])) + 1
        queue = np.vstack([self.waiting_, np.where(bins.weight > 0, bins.Y, np.nan)])
        candidates = np.vstack([self.last_, queue])
        row = np.arange(len(candidates))[:, None]
        newest = np.maximum.accumulate(np.where(np.isfinite(candidates), row, 0), axis=0)
        done = np.searchsorted(due, np.arange(n_bins + 1), side="right")
        values = np.take_along_axis(candidates, newest[done], axis=0)
        self.last_ = values[-1]
        self.waiting_, self.waiting_arrives_ = queue[done[-1] :], due[done[-1] :] - 1 - n_bins
        return values[:-1]
