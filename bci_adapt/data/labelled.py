"""From a labelled session to the arrays that decoders compute with."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from bci_adapt.data.binning import whole_bins
from bci_adapt.data.session_files import read_session
from bci_adapt.data.sessions import labels_of


class Arrays(NamedTuple):
    """One session for a decoder of one or several kinematic variables, side by side in y.

    X (n_bins, n_channels) with NaN where not observed; y (n_bins, n_outputs) with NaN where there is no usable label;
    reset (n_bins,), True at the first bin of each segment; `axes` (n_outputs,) names of the outputs' axes and `columns`
    the outputs of each variable; `in_trial` (n_bins,), the bins inside a trial, None for a session without trials;
    `trial_end` (n_bins,), the bin in which the trial of a bin has ended (of a bin between trials: the next trial),
    n_bins where none ends after it; the bin width and the session they are of; `metadata`, what `described` says of
    them. Every decoder takes them as it takes the session.
    """

    X: np.ndarray
    y: np.ndarray
    reset: np.ndarray
    axes: tuple[str, ...]
    columns: Mapping[str, slice]
    in_trial: np.ndarray | None
    trial_end: np.ndarray
    bin_s: float
    session_id: str
    metadata: Mapping[str, Any] = MappingProxyType({})

    def part(self, bins: slice) -> Arrays:
        """These bins alone. Trials end where they did, counted from the first of them."""
        first = bins.indices(len(self.X))[0]
        inside = None if self.in_trial is None else self.in_trial[bins]
        return self._replace(
            X=self.X[bins],
            y=self.y[bins],
            reset=self.reset[bins],
            in_trial=inside,
            trial_end=self.trial_end[bins] - first,
        )

    def n_stream(self, stream_s: float | None) -> int:
        """Whole bins of the adaptation stream: the first `stream_s` seconds, at most half of the session; all when
        None.
        """
        return len(self.X) if stream_s is None else min(len(self.X) // 2, whole_bins(stream_s, self.bin_s))


@functools.lru_cache(maxsize=4)
def load_arrays(path: Path, variables: tuple[str, ...], target_lag_bins: int = 0) -> Arrays:
    """Arrays of a stored session, read once per process: its path names its content. They must not be written to."""
    arrays = session_arrays(read_session(path), variables, target_lag_bins)
    for array in (arrays.X, arrays.y, arrays.reset, arrays.in_trial, arrays.trial_end):
        if array is not None:
            array.flags.writeable = False
    return arrays


def job_arrays(parameters: Mapping[str, Any], path: Path) -> Arrays:
    """Arrays of a stored session as the `variables` and `target_lag_bins` of a job's parameters ask for them."""
    return load_arrays(path, tuple(parameters["variables"]), parameters["target_lag_bins"])


def session_arrays(session: xr.Dataset, variables: str | Sequence[str], target_lag_bins: int = 0) -> Arrays:
    """Take counts and kinematic variables, one or several, out of a session.

    With `target_lag_bins` the target of a bin is the movement that many bins before it, in its own segment: neurons
    then lead their target by so much more, and a decoder must remember. What counts as in trial moves along.

    Of a session without labels, for which no variable is named, y has no columns.

    Raises
    ------
    InputError
        when the session does not hold a variable.
    """
    names = [variables] if isinstance(variables, str) else list(variables)
    parts = [labels_of(session, name) for name in names]
    ends = np.cumsum([part.shape[1] for part in parts])
    columns = {
        name: slice(int(end) - part.shape[1], int(end)) for name, part, end in zip(names, parts, ends, strict=True)
    }
    axes = tuple(str(axis) for name in names for axis in session[str(session[name].dims[1])].values)
    y = np.concatenate(parts, axis=1) if parts else np.zeros((session.sizes["time"], 0))
    seen = session["valid"].values
    y[~seen] = np.nan
    X = session["counts"].values.astype(float)
    X[~seen] = np.nan
    segment, attrs = session["segment"].values, session.attrs
    reset = np.concatenate([[True], np.diff(segment) != 0]) if len(segment) else np.zeros(0, bool)
    in_trial, trial_end = _trials(session)
    if target_lag_bins:
        begins = np.maximum.accumulate(np.where(reset, np.arange(len(reset)), 0))
        own = np.arange(len(reset)) - target_lag_bins >= begins
        y = np.where(own[:, None], np.roll(y, target_lag_bins, axis=0), np.nan)
        in_trial = None if in_trial is None else own & np.roll(in_trial, target_lag_bins)
    bin_s, session_id = float(attrs["bin_s"]), str(attrs["session_id"])
    return Arrays(X, y, reset, axes, columns, in_trial, trial_end, bin_s, session_id, described(session, names))


def described(session: xr.Dataset, variables: Sequence[str]) -> dict[str, Any]:
    """What a decoder of these variables of a session should know of its inputs and outputs (`Decoder.metadata_`)."""
    attrs = session.attrs
    outputs = []
    for name in variables:
        axes = [str(axis) for axis in session[str(session[name].dims[1])].values]
        outputs.append({"variable": name, "axes": axes, "units": str(session[name].attrs.get("units", ""))})
    prepared = json.loads(attrs.get("parameters") or "{}")
    return {
        "channels": [str(name) for name in session["channel"].values],
        "outputs": outputs,
        "counts_units": str(session["counts"].attrs.get("units", "count")),
        "bin_s": float(attrs["bin_s"]),
        "subject": attrs.get("subject", ""),
        "channel_identity": attrs.get("channel_identity", ""),
        "channel_policy": attrs.get("channel_policy", ""),
        "per": prepared.get("per"),
        "spikes": prepared.get("spikes"),
    }


def has_trials(session: xr.Dataset) -> bool:
    """Whether a session has trials with a beginning and an end, in which bins can lie."""
    return _trials(session)[0] is not None


def _trials(session: xr.Dataset) -> tuple[np.ndarray | None, np.ndarray]:
    """`in_trial` and `trial_end` of `Arrays`; trials whose times are missing count for nothing."""
    time_s = session["time"].values
    nowhere = np.full(len(time_s), len(time_s))
    if "trial_start_s" not in session or "trial_stop_s" not in session:
        return None, nowhere
    start_s, stop_s = session["trial_start_s"].values, session["trial_stop_s"].values
    known = np.isfinite(start_s) & np.isfinite(stop_s) & (stop_s > start_s)
    if not known.any():
        return None, nowhere
    inside = np.zeros(len(time_s) + 1, int)
    first, after = (np.searchsorted(time_s, edge[known], side="right") for edge in (start_s, stop_s))
    np.add.at(inside, first, 1)
    np.add.at(inside, after, -1)
    # A trial is over in the first bin that ends at its stop or later; one that was over before the first bin in none.
    ends_s = stop_s[known & (stop_s > time_s[0] - float(session.attrs["bin_s"]))]
    over = np.unique(np.searchsorted(time_s, ends_s, side="left"))
    return np.cumsum(inside[:-1]) > 0, np.append(over, len(time_s))[np.searchsorted(over, np.arange(len(time_s)))]


def permuted_in_time(counts: np.ndarray, seed: int) -> np.ndarray:
    """The canary's counts: the observed bins in a random order, so that no neuron knows the movement any more."""
    out = counts.copy()
    seen = np.flatnonzero(np.isfinite(counts).all(axis=1))
    out[seen] = counts[np.random.default_rng([seed, 0xCA9A]).permutation(seen)]
    return out


def shifted_in_time(counts: np.ndarray, seed: int, least_bins: int) -> np.ndarray:
    """A canary that keeps what the neurons do among themselves: the observed bins, moved round by a random number of
    bins, at least `least_bins` either way (a quarter of them where there are too few).
    """
    out = counts.copy()
    seen = np.flatnonzero(np.isfinite(counts).all(axis=1))
    least = min(least_bins, len(seen) // 4)
    by = int(np.random.default_rng([seed, 0x5417]).integers(least, len(seen) - least + 1))
    out[seen] = counts[np.roll(seen, by)]
    return out


def permuted_channels(counts: np.ndarray, seed: int) -> np.ndarray:
    """Counts (n_bins, n_channels) with the channels in another order: what an array plugged in wrongly would give."""
    return counts[:, np.random.default_rng([seed, 0xC4A7]).permutation(counts.shape[1])]
