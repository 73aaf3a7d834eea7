"""Which outputs of a session a score means something for: R² of one that hardly moves is a division by nothing."""

from __future__ import annotations

import numpy as np

from bci_adapt.data.labelled import Arrays

LEAST_SHARE = 0.1
"""Least variance of the held-out part, as a share of the adaptation stream's."""


def variances(arrays: Arrays, n_stream: int, in_trial: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Variance of each output, (n_outputs,), in the first `n_stream` bins and in those after them; 0 without labels.

    With `in_trial` it is that of bins inside trials, where there are trials.
    """
    scored = np.ones(len(arrays.y), bool) if arrays.in_trial is None or not in_trial else arrays.in_trial
    counted = np.where(scored[:, None], arrays.y, np.nan)
    parts = []
    for part in (counted[:n_stream], counted[n_stream:]):
        has_labels = np.isfinite(part).any(axis=0)
        parts.append(np.where(has_labels, np.nanvar(np.where(has_labels, part, 0.0), axis=0), 0.0))
    return parts[0], parts[1]


def hardly_move(early: np.ndarray, late: np.ndarray) -> np.ndarray:
    """Whether each output's variance in the held-out part, `late`, is nothing, or too little beside the stream's."""
    return (late < LEAST_SHARE * early) | (late == 0)


def still_outputs(arrays: Arrays, outputs: slice, n_stream: int, in_trial: bool = True) -> dict[int, str]:
    """Outputs of one variable (its columns `outputs`) that are in no score while the others are, by their number among
    them, with the reason: held out they do not move, or have less than `LEAST_SHARE` of the stream's variance.

    Empty where that is so of all of them: then it is the variable that cannot be scored.
    """
    early, late = (part[outputs] for part in variances(arrays, n_stream, in_trial))
    still = {
        i: f"held-out variance {late[i]:.3g} is below a tenth of the stream's {early[i]:.3g}"
        if late[i]
        else "it does not move in the held-out part"
        for i in np.flatnonzero(hardly_move(early, late)).tolist()
    }
    return still if len(still) < len(late) else {}


def named(arrays: Arrays, n_stream: int) -> dict[str, dict[str, str]]:
    """Reason by axis by variable, of the outputs that `still_outputs` leaves out; of variables that have any."""
    found = {}
    for variable, outputs in arrays.columns.items():
        axes, still = arrays.axes[outputs], still_outputs(arrays, outputs, n_stream)
        if still:
            found[variable] = {axes[i]: reason for i, reason in still.items()}
    return found
