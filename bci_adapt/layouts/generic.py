"""Any file with spike times and a position: the first of each that is found, under a low score."""

from __future__ import annotations

import xarray as xr

from bci_adapt.layouts.base import Layout, read_spike_session
from bci_adapt.nwb import Description, NwbFile, Series, describe_open


class Generic(Layout):
    """Units with spike times, and the series in a ``Position`` container, or whose name says position.

    Several series of one column in one container (x, y, z) are the axes of one target. Velocity is always derived.
    """

    name = "generic"
    verified_on = "one mouse recording of the pynapple test data"

    def matches(self, description: Description) -> tuple[float, str]:
        """See `Layout.matches`."""
        if not any(source.kind == "spike times" for source in description.neural):
            return 0.0, "no units with spike times"
        found = _position(description)
        if not found:
            return 0.0, "no series that is a position"
        return 0.3, f"units with spike times and {', '.join(series.path for series in found)}"

    def read(self, file: NwbFile, bin_s: float) -> xr.Dataset:
        """See `Layout.read`."""
        found = _position(describe_open(file))
        if not found:
            raise file.error("processing, acquisition, analysis", "hold no series that is a position")
        return read_spike_session(self, file, bin_s, [series.path for series in found], None)


def _position(description: Description) -> list[Series]:
    """The series that make up a position: best container first, then alphabetical order of paths."""

    def rank(series: Series) -> int:
        container, _, name = series.path.rpartition("/")
        words = (container.rpartition("/")[2].lower(), name.lower())
        if words[0] == "position":
            return 0
        return 1 if "pos" in words[1] and series.type in ("SpatialSeries", "TimeSeries") else 2

    ranked = sorted((rank(series), series.path, series) for series in description.series)
    if not ranked or ranked[0][0] == 2:
        return []
    best = ranked[0][2]
    if len(best.shape) == 2 and best.shape[1] > 1:
        return [best]
    container = best.path.rpartition("/")[0]
    same = [
        series
        for level, path, series in ranked
        if level == ranked[0][0] and path.rpartition("/")[0] == container and series.shape == best.shape
    ]
    return same if ranked[0][0] == 0 else [best]
