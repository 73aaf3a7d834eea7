"""From a labelled session to the plain arrays that decoders take."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import xarray as xr

from bci_adapt.errors import InputError


class Arrays(NamedTuple):
    """X (n_bins, n_channels) with NaN where not observed, y (n_bins, n_outputs) with NaN where there is no usable
    label, reset (n_bins,) True at the first bin of each segment, time_s (n_bins,) and the names of the outputs.
    """

    X: np.ndarray
    y: np.ndarray
    reset: np.ndarray
    time_s: np.ndarray
    axes: tuple[str, ...]


def session_arrays(session: xr.Dataset, variable: str) -> Arrays:
    """Take counts and one kinematic variable out of a session.

    Raises
    ------
    InputError
        when the session does not hold the variable.
    """
    if variable not in session:
        held = [name for name in ("position", "velocity", "recorded_velocity") if name in session]
        raise InputError(
            f"session {session.attrs.get('session_id')}: expected target {variable!r}, "
            f"it holds {', '.join(held) or 'none'}"
        )
    X = session["counts"].values.astype(float)
    X[~session["valid"].values] = np.nan
    usable = session[f"{variable}_valid"].values & session["valid"].values[:, None]
    y = np.where(usable, session[variable].values, np.nan)
    segment = session["segment"].values
    reset = np.concatenate([[True], np.diff(segment) != 0]) if len(segment) else np.zeros(0, bool)
    return Arrays(X, y, reset, session["time"].values, tuple(str(a) for a in session["axis"].values))


def permuted_in_time(counts: np.ndarray, seed: int) -> np.ndarray:
    """The canary's counts: the observed bins in a random order, so that no neuron knows the movement any more."""
    out = counts.copy()
    seen = np.flatnonzero(np.isfinite(counts).all(axis=1))
    out[seen] = counts[np.random.default_rng([seed, 0xCA9A]).permutation(seen)]
    return out


def n_stream_bins(session: xr.Dataset, stream_s: float | None) -> int:
    """Bins of the first `stream_s` seconds of recording (all of them when None)."""
    if stream_s is None:
        return session.sizes["time"]
    return min(session.sizes["time"], round(stream_s / float(session.attrs["bin_s"])))
