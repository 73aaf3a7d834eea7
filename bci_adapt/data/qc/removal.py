"""Channels that were taken out of a session, and why: the session itself says so."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import xarray as xr

from bci_adapt.errors import InputError


def drop_channels(session: xr.Dataset, names: Sequence[str], reason: str) -> xr.Dataset:
    """Return `session` without the channels `names`; attribute ``removed_channels`` records each with `reason`.

    What an earlier call recorded is kept. `InputError` for a channel that the session lacks, for no reason, and when
    fewer than two channels would be left.
    """
    labels = session["channel"].values.tolist()
    if absent := [name for name in names if name not in set(labels)]:
        raise InputError(f"{session.attrs.get('session_id', 'session')}: no channel {', '.join(map(repr, absent))}")
    if not reason.strip():
        raise InputError("a channel is only removed with a reason")
    gone = set(names)
    keep = np.array([label not in gone for label in labels], dtype=bool)
    if np.count_nonzero(keep) < 2:
        raise InputError(
            f"{session.attrs.get('session_id', 'session')}: removing {len(gone)} of {len(labels)} channels leaves "
            "fewer than two: loosen a threshold, or leave this session out"
        )
    kept = session.isel(channel=np.flatnonzero(keep))
    return record_removed(kept, [name for name in labels if name in gone], reason)


def record_removed(session: xr.Dataset, names: Sequence[str], reason: str) -> xr.Dataset:
    """Return `session` with attribute ``removed_channels`` saying that `names` were taken out, and why."""
    removed = removed_channels(session) + [{"channel": name, "reason": reason} for name in names]
    return session.assign_attrs(removed_channels=json.dumps(removed, ensure_ascii=False))


def removed_channels(session: xr.Dataset) -> list[dict[str, str]]:
    """Return what `record_removed` wrote: a list of {channel, reason}."""
    return json.loads(session.attrs.get("removed_channels", "[]"))
