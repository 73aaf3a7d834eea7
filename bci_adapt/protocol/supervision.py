"""Which labels a decoder is shown, and when: supervision, delay, fraction and budget, apart from any decoder."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import xarray as xr

from bci_adapt.data.binning import whole_bins
from bci_adapt.data.labelled import Arrays
from bci_adapt.data.sessions import labels_of
from bci_adapt.decoders.timing import delay_bins
from bci_adapt.errors import InputError

SUPERVISIONS = ("true", "intention", "pseudo", "none")
# Half the width of the window over which a decoder's own predictions are smoothed before they teach it.
SMOOTHING_S = 0.25


class Stream(NamedTuple):
    """A session as one decoder meets it: its arrays, with labels where it is shown some and NaN elsewhere, and the bin
    (n_bins,) at whose end each label becomes known; None for after the decoder's own delay.
    """

    arrays: Arrays
    arrives: np.ndarray | None = None

    def until(self, end: int) -> Stream:
        """The bins before bin `end`."""
        return Stream(self.arrays.part(slice(end)), None if self.arrives is None else self.arrives[:end])

    def since(self, first: int) -> Stream:
        """The bins from bin `first` on, from which the arrival of labels is then counted."""
        arrives = None if self.arrives is None else self.arrives[first:] - first
        return Stream(self.arrays.part(slice(first, None)), arrives)

    def late(self, delay_s: float) -> Stream:
        """The same with labels that are known so many seconds after their bins; those that come with trials stay."""
        if self.arrives is not None:
            return self
        n_bins = len(self.arrays.X)
        return self._replace(arrives=np.arange(n_bins) + delay_bins(delay_s, self.arrays.bin_s))

    def with_counts(self, X: np.ndarray) -> Stream:
        """The same with other counts (n_bins, n_channels)."""
        return self._replace(arrays=self.arrays._replace(X=X))


class Teaching(NamedTuple):
    """What teaches a decoder: `supervision`, one of `SUPERVISIONS`; whether labels come when their trial has ended, not
    after the decoder's delay; which random `label_fraction` of the bins has one, drawn by `seed`; and for how many
    seconds of recording and how many trials there are any (None: no limit).
    """

    supervision: str = "true"
    at_trial_end: bool = False
    label_fraction: float = 1.0
    budget_s: float | None = None
    budget_trials: int | None = None
    seed: int = 0

    def without_budget(self) -> Teaching:
        """The same, labels never running out."""
        return self._replace(budget_s=None, budget_trials=None)


def stream_of(arrays: Arrays, teaching: Teaching, session: xr.Dataset | None = None) -> Stream:
    """What a decoder is shown of a session; `session` itself is asked for where it is taught by ``intention``.

    Raises
    ------
    InputError
        for a supervision, a fraction or a budget that is none, an intention that the session does not tell, and labels
        that come with its trials where it has none.
    """
    y, supervision = arrays.y, teaching.supervision
    if supervision not in SUPERVISIONS:
        raise InputError(f"supervision: expected one of {', '.join(SUPERVISIONS)}, got {supervision!r}")
    if not 0.0 <= teaching.label_fraction <= 1.0:
        raise InputError(f"label_fraction: expected a share from 0 to 1, got {teaching.label_fraction}")
    if teaching.budget_s is not None and not teaching.budget_s >= 0.0:
        raise InputError(f"budget_s: expected seconds, 0 or more, got {teaching.budget_s}")
    if teaching.budget_trials is not None and teaching.budget_trials < 1:
        raise InputError(f"budget_trials: expected a number of trials from 1 on, got {teaching.budget_trials}")
    if arrays.in_trial is None and (teaching.at_trial_end or teaching.budget_trials is not None):
        what = "label_delay_s='trial_end'" if teaching.at_trial_end else "budget_trials"
        raise InputError(
            f"{arrays.session_id}: {what} needs trials with a beginning and an end; this session has none: leave it out"
        )
    if supervision == "none":
        y = np.full_like(y, np.nan)
    elif supervision == "intention":
        where = next((where for name, where in arrays.columns.items() if name.endswith("velocity")), None)
        if where is None or session is None:
            raise InputError(f"{arrays.session_id}: intention teaches velocity; decode that, or leave it out")
        meant = np.full_like(y, np.nan)
        meant[:, where] = intended(session, np.linalg.norm(y[:, where], axis=1))
        y = meant
    y = shown(y, arrays.bin_s, teaching.label_fraction, teaching.budget_s, teaching.seed)
    if teaching.budget_trials:
        y[bins_of_trials(teaching.budget_trials, arrays.in_trial, arrays.trial_end) :] = np.nan
    return Stream(arrays._replace(y=y), arrays.trial_end if teaching.at_trial_end else None)


def bins_of_trials(n_trials: int, in_trial: np.ndarray | None, trial_end: np.ndarray) -> int:
    """Bins of a session up to the end of its `n_trials`-th trial; all of them where it has no more than that.

    `in_trial` and `trial_end` are those of `bci_adapt.data.labelled.Arrays`.
    """
    if in_trial is None:
        return len(trial_end)
    ends = np.unique(trial_end[in_trial])
    return int(min(ends[n_trials - 1] + 1, len(trial_end))) if n_trials <= len(ends) else len(trial_end)


def shown(y: np.ndarray, bin_s: float, fraction: float, budget_s: float | None, seed: int) -> np.ndarray:
    """Labels (n_bins, n_outputs) of a random `fraction` of the bins before `budget_s`, NaN where they are withheld.

    The budget counts recording time; the fraction is drawn bin by bin, seeded, and nested: the labels of a smaller one
    are among those of a larger one.
    """
    out = np.array(y, float)
    if budget_s is not None:
        out[whole_bins(budget_s, bin_s) :] = np.nan
    if fraction < 1.0:
        out[np.random.default_rng([seed, 0xF4AC]).random(len(out)) >= fraction] = np.nan
    return out


def intended(session: xr.Dataset, speed: np.ndarray) -> np.ndarray:
    """Velocity that the animal is taken to have meant, (n_bins, 2): as fast as it moved, straight to the cued target
    (Gilja et al. 2012, Nat Neurosci 15:1752, where it is rest inside the target); NaN outside trials and before the
    cue.

    `speed` (n_bins,) is that of the true movement. The target's place is used where the session has it, else the
    direction in which it lay from the centre.

    Raises
    ------
    InputError
        where no trial says what the target was.
    """
    has = {name: name in session for name in ("trial_target", "trial_target_dir", "trial_start_s", "trial_stop_s")}
    if not (has["trial_start_s"] and has["trial_stop_s"] and (has["trial_target"] or has["trial_target_dir"])):
        raise InputError(
            f"{session.attrs['session_id']}: intention needs trials that carry their target (trial_target or "
            "trial_target_dir); this session has none: leave the arm 'intention' out"
        )
    time_s = session["time"].values
    start_s, stop_s = session["trial_start_s"].values, session["trial_stop_s"].values
    go_s = session["trial_go_s"].values if "trial_go_s" in session else np.full(len(start_s), np.nan)
    position = labels_of(session, "position") if has["trial_target"] and "position" in session else None
    out = np.full((len(time_s), 2), np.nan)
    # Where a session has cues, a trial without one meant nothing; where it has none, all of the trial is meant.
    begin_s = go_s if np.isfinite(go_s).any() else start_s
    for trial in np.flatnonzero(np.isfinite(begin_s) & np.isfinite(start_s) & np.isfinite(stop_s)):
        bins = slice(*np.searchsorted(time_s, [begin_s[trial], stop_s[trial]], side="right"))
        if position is not None and position.shape[1] == 2 and np.isfinite(session["trial_target"].values[trial]).all():
            way = session["trial_target"].values[trial] - position[bins]
        elif has["trial_target_dir"]:
            angle = float(session["trial_target_dir"].values[trial])
            way = np.tile([np.cos(angle), np.sin(angle)], (bins.stop - bins.start, 1))
        else:
            continue
        length = np.linalg.norm(way, axis=1, keepdims=True)
        out[bins] = speed[bins, None] * np.divide(way, length, out=np.zeros_like(way), where=length != 0)
    return out


def smoothed(predictions: np.ndarray, half_bins: int) -> np.ndarray:
    """Centred moving mean over 2 · `half_bins` + 1 bins (n_bins, n_outputs), over fewer at the ends."""
    total = np.cumsum(np.vstack([np.zeros(predictions.shape[1]), predictions]), axis=0)
    bins = np.arange(len(predictions))
    first, last = np.maximum(bins - half_bins, 0), np.minimum(bins + half_bins + 1, len(predictions))
    return (total[last] - total[first]) / (last - first)[:, None]
