"""What a layout is."""

from __future__ import annotations

from abc import ABC, abstractmethod

import xarray as xr

from bci_adapt.data.nwb import NwbFile
from bci_adapt.data.nwb_describing import Description
from bci_adapt.data.sessions import BIN_EDGE


class Layout(ABC):
    """Where a kind of file keeps spikes, targets and valid time.

    `name` is what `list layouts` shows, `verified_on` the real files it has read ("" for none), `written_from`
    what it follows where it has read none: the published code that wrote such files, or reads them. `per` is what a
    channel is unless the caller says otherwise: an ``"electrode"`` with its units pooled, or a sorted ``"unit"``.
    `bin_edge` is to which bin a spike on an edge belongs, decided by those who published the files: on clocks of whole
    milliseconds one spike in twenty is on one.
    """

    name: str
    verified_on: str = ""
    written_from: str = ""
    per: str = "electrode"
    bin_edge: str = BIN_EDGE

    @classmethod
    def standing(cls) -> str:
        """Which real files the layout has read, or what it was written from, in words."""
        if cls.verified_on:
            return f"verified on {cls.verified_on}"
        return f"no real file read yet; written from {cls.written_from}"

    @abstractmethod
    def matches(self, description: Description) -> tuple[float, str]:
        """Return how well a file fits, 0 (not at all) to 1, and the reason in words."""

    @abstractmethod
    def read(self, file: NwbFile, bin_s: float, per: str) -> xr.Dataset:
        """Read a session with raw values: no derived velocity yet, masks only where something is missing.

        Raises `InputError` naming file and key.
        """
