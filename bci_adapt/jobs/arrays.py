"""From a labelled session to the plain arrays that decoders take."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xarray as xr

from bci_adapt.binning import whole_bins
from bci_adapt.sessions import labels_of, read_session


class Arrays(NamedTuple):
    """X (n_bins, n_channels) with NaN where not observed, y (n_bins, n_outputs) with NaN where there is no usable
    label, reset (n_bins,) True at the first bin of each segment, the names of the outputs, the bin width, and the
    session they are of.
    """

    X: np.ndarray
    y: np.ndarray
    reset: np.ndarray
    axes: tuple[str, ...]
    bin_s: float
    session_id: str

    def n_stream(self, stream_s: float | None) -> int:
        """Whole bins in the first `stream_s` seconds of recording (all of them when None)."""
        return len(self.X) if stream_s is None else min(len(self.X), whole_bins(stream_s, self.bin_s))


@functools.lru_cache(maxsize=4)
def load_arrays(path: Path, variable: str) -> Arrays:
    """Arrays of a stored session, read once per process: its path names its content. They must not be written to."""
    arrays = session_arrays(read_session(path), variable)
    for array in (arrays.X, arrays.y, arrays.reset):
        array.flags.writeable = False
    return arrays


def session_arrays(session: xr.Dataset, variable: str) -> Arrays:
    """Take counts and one kinematic variable out of a session.

    Raises
    ------
    InputError
        when the session does not hold the variable.
    """
    y = labels_of(session, variable)
    y[~session["valid"].values] = np.nan
    X = session["counts"].values.astype(float)
    X[~session["valid"].values] = np.nan
    segment = session["segment"].values
    reset = np.concatenate([[True], np.diff(segment) != 0]) if len(segment) else np.zeros(0, bool)
    dimension = str(session[variable].dims[1])
    axes, attrs = tuple(str(axis) for axis in session[dimension].values), session.attrs
    return Arrays(X, y, reset, axes, float(attrs["bin_s"]), str(attrs["session_id"]))


def permuted_in_time(counts: np.ndarray, seed: int) -> np.ndarray:
    """The canary's counts: the observed bins in a random order, so that no neuron knows the movement any more."""
    out = counts.copy()
    seen = np.flatnonzero(np.isfinite(counts).all(axis=1))
    out[seen] = counts[np.random.default_rng([seed, 0xCA9A]).permutation(seen)]
    return out
