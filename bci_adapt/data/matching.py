"""Sessions brought together on their channels, with a warning where columns are not the channels that they say."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import xarray as xr

from bci_adapt.data import channels
from bci_adapt.data.same_columns import same_columns


def match(sessions: Sequence[xr.Dataset], by: str | None = None, missing: str = "refuse") -> list[xr.Dataset]:
    """Return sessions with the same channels in the same order, that of the first.

    Parameters
    ----------
    by : ``electrode``, ``unit``, ``pool``, ``position`` or ``none`` (`bci_adapt.data.channels`); None takes the policy
        that fits the first session.
    missing : what happens to a channel that not every session has. ``"refuse"``: an error lists them. ``"drop"``: only
        channels common to all are kept. ``"zero"``: the first session's channels are kept, and one that a later
        session lacks counts zero there; a channel that the first lacks is left out.

    Names and numbers are believed. Where the counts say that the columns of a session are not those of the others,
    there is a `UserWarning` (`bci_adapt.data.same_columns`); nothing is repaired.

    What was done is in the attributes ``channel_policy``, ``channels_left_out`` and ``channels_zeroed`` (JSON lists).
    `InputError` where the policy does not fit a session, or no two channels are left.
    """
    matched = channels.match(sessions, by, missing)
    if len(matched) > 1:
        for text in same_columns(matched).findings:
            warnings.warn(text, UserWarning, stacklevel=2)
    return matched
