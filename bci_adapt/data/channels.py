"""Identity of channels between sessions, as a stated policy: what a channel's name says about another day.

``electrode``: channels are electrodes (threshold crossings, or units pooled on them), equal where their names are.
``unit``: channels are sorted units, equal where their names are, because whoever asks matched them across days.
``pool``: sorted units are summed on their electrode first, then matched as electrodes.
``position``: columns, equal where their numbers are, because whoever asks says so; no file and no layout does.
``none``: the numbers of channels mean nothing on another day, and a pair of sessions is refused.

Columns without names are unknown (``none``) until somebody names them or says ``position``. So are sorted units: a
sorter's number says nothing about another day, and neither does a name made of it. They meet where somebody says
``unit``, ``pool`` or ``position``; no decoder here does without knowing its channels. Threshold crossings, one train
an electrode, and units that were pooled when a file was read are electrodes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import xarray as xr

from bci_adapt.data.sessions import STATISTICS, require_one_subject, same_recording, signed
from bci_adapt.errors import InputError
from bci_adapt.ground.catalog import unknown

POLICIES = ("electrode", "unit", "pool", "position", "none")
MISSING = ("refuse", "drop", "zero")
UNMATCHED_UNITS = (
    "its channels are sorted units, and a unit's number says nothing about another session: such sessions are not "
    "matched by default. Sum the units of an electrode: by = 'pool' (channels.policy in a config, --by), or prepare "
    "the files again with per = 'electrode'; or, where the units were matched across days, by = 'unit' says that equal "
    "names are the same ones, and by = 'position' that equal columns are. Every decoder needs to know its channels"
)
"""Why sessions of sorted units do not meet by themselves, and the ways out."""


def policy_of(session: xr.Dataset) -> str:
    """Return the policy that fits a session by itself: ``electrode``, ``none`` where its channels are something else.

    A session that was matched by position, or by unit, stays so: it was said once and is kept with it.
    """
    said = str(session.attrs.get("channel_policy", ""))
    if said in ("position", "unit"):
        return said
    return "electrode" if session.attrs["channel_identity"] == "electrode" else "none"


def match(sessions: Sequence[xr.Dataset], by: str | None = None, missing: str = "refuse") -> list[xr.Dataset]:
    """Return sessions with the same channels in the same order, that of the first.

    Parameters
    ----------
    by : one of `POLICIES`; None takes the policy that fits the first session.
    missing : what happens to a channel that not every session has. ``"refuse"``: an error lists them. ``"drop"``: only
        channels common to all are kept. ``"zero"``: the first session's channels are kept, and one that a later
        session lacks counts zero there; a channel that the first lacks is left out.

    What was done is in the attributes ``channel_policy``, ``channels_left_out`` and ``channels_zeroed`` (JSON lists).
    `InputError` where the policy does not fit a session, or no two channels are left.
    """
    if not sessions:
        raise InputError("at least one session is needed")
    require_one_subject(sessions)
    by = policy_for(sessions) if by is None else by
    ready = [under(session, by) for session in sessions]
    names = common([each["channel"].values.tolist() for each in ready], [_id(each) for each in ready], missing)
    return [select(each, names, by) for each in ready]


def policy_for(sessions: Sequence[xr.Dataset]) -> str:
    """Return the policy that fits the first of `sessions`. Parts of one recording have the same channels, whatever they
    are: units by their names there, columns by their numbers.
    """
    policy = policy_of(sessions[0])
    came_from = {tuple(str(each.attrs.get(name)) for name in ("session_start", "source_sha256")) for each in sessions}
    if policy != "none" or len(came_from) > 1 or not same_recording([_id(each) for each in sessions]):
        return policy
    return "unit" if sessions[0].attrs["channel_identity"] == "unit" else "position"


def common(channels: Sequence[Sequence[str]], of: Sequence[str], missing: str) -> list[str]:
    """Return the channels on which sessions (with ids `of`) meet under the rule `missing`, in the first one's order."""
    if missing not in MISSING:
        raise InputError(unknown(missing, MISSING, "rule for missing channels"))
    first = list(channels[0])
    for name, other in zip(of[1:], channels[1:], strict=True):
        only = [(of[0], [c for c in first if c not in set(other)]), (name, [c for c in other if c not in set(first)])]
        if missing == "refuse" and any(extra for _, extra in only):
            listed = "; ".join(f"only in {who}: {_listed(extra)}" for who, extra in only if extra)
            raise InputError(
                f"channels of {of[0]} ({len(first)}) and {name} ({len(other)}) differ; {listed}. Keep the common ones "
                "with missing = 'drop', or count what is missing as silent with 'zero'"
            )
    if missing == "drop":
        everywhere = set(first).intersection(*map(set, channels[1:]))
        first = [name for name in first if name in everywhere]
    if len(first) < 2:
        raise InputError(f"{len(first)} channels are common to {', '.join(of)}; at least two are needed")
    return first


def select(session: xr.Dataset, names: Sequence[str], by: str | None = None) -> xr.Dataset:
    """Return the session with exactly the channels `names`, in this order; one it lacks counts zero.

    `by` is the policy under which `names` were chosen (`match`). `InputError` where it does not fit the session or the
    session has none of them.
    """
    by = policy_of(session) if by is None else by
    session = under(session, by)
    have = session["channel"].values.tolist()
    place = {name: i for i, name in enumerate(have)}
    rows = np.asarray([place.get(name, -1) for name in names])
    if (rows < 0).all():
        raise InputError(f"{_id(session)}: has none of the {len(names)} channels {_listed(list(names))}")
    made = session.isel(channel=np.maximum(rows, 0)).copy(deep=True)
    made = made.assign_coords(channel=np.asarray(list(names), dtype=np.str_))
    for name in ("counts", *STATISTICS):
        if name in made:
            made[name].values[..., rows < 0] = 0
    if "electrode" in made.coords:
        made["electrode"].values[rows < 0] = ""
    wanted = set(names)
    made.attrs |= {
        "channel_policy": by,
        "channels_left_out": json.dumps([name for name in have if name not in wanted], ensure_ascii=False),
        "channels_zeroed": json.dumps([n for n, row in zip(names, rows, strict=True) if row < 0], ensure_ascii=False),
    }
    return signed(made)


def pooled(session: xr.Dataset) -> xr.Dataset:
    """Sum the sorted units of each electrode; `InputError` where a unit's electrode is not known."""
    electrodes = session["electrode"].values.tolist() if "electrode" in session.coords else []
    if not electrodes or not all(electrodes):
        raise InputError(f"{_id(session)}: the electrodes of its units are not known, so units cannot be pooled")
    names = list(dict.fromkeys(electrodes))
    place = {name: i for i, name in enumerate(names)}
    index = [place[name] for name in electrodes]
    made = session.isel(channel=[electrodes.index(name) for name in names])
    made = made.assign_coords(channel=np.asarray(names, dtype=np.str_)).copy(deep=True)
    for name in ("counts", *STATISTICS):
        if name in session:
            values = session[name].values
            total = np.zeros((*values.shape[:-1], len(names)), dtype=np.float64 if name == "counts" else np.int64)
            for column, at in enumerate(index):
                total[..., at] += values[..., column]
            if values.dtype == np.uint16 and total.max(initial=0) > np.iinfo(np.uint16).max:
                raise InputError(f"{_id(session)}: an electrode has more than 65,535 spikes in a bin")
            made[name].values[...] = total
    made.attrs["channel_identity"] = "electrode"
    return signed(made)


def under(session: xr.Dataset, by: str) -> xr.Dataset:
    """Return the session as the policy `by` sees it; `InputError` where its channels are not what it is about."""
    if by not in POLICIES:
        raise InputError(unknown(by, POLICIES, "channel policy"))
    identity = session.attrs["channel_identity"]
    if by == "position":
        names = np.asarray([f"column{i}" for i in range(session.sizes["channel"])], dtype=np.str_)
        return signed(session.assign_coords(channel=names).assign_attrs(channel_policy=by))
    if identity in ("none", "column"):
        what = "units" if identity == "none" else "columns"
        raise InputError(
            f"{_id(session)}: its channels are {what} without names or electrodes, numbers that mean nothing in "
            "another session: such sessions cannot be matched by default. Name the channels (channels=, or labels in "
            "the file's electrodes table); pool sorted units on their electrodes, where a file says which they are; or "
            "say that equal columns are the same channels: by = 'position' (channels.policy in a config)"
        )
    if by == "none":
        if identity == "unit":
            raise InputError(f"{_id(session)}: {UNMATCHED_UNITS}")
        raise InputError(f"{_id(session)}: under the policy 'none' sessions cannot be matched")
    if by == "pool":
        return pooled(session) if identity == "unit" else session
    if by == "unit" and identity != "unit":
        raise InputError(
            f"{_id(session)}: its channels are electrodes, the policy 'unit' needs sorted units: prepare it with "
            "per = 'unit', or match by 'electrode'"
        )
    if by == "electrode" and identity == "unit":
        raise InputError(
            f"{_id(session)}: its channels are sorted units, the policy 'electrode' needs electrodes: match by 'pool' "
            "to sum the units of an electrode, or prepare it with per = 'electrode'"
        )
    return session.assign_attrs(channel_policy=by) if by == "unit" else session


def _id(session: xr.Dataset) -> str:
    return str(session.attrs.get("session_id", "session"))


def _listed(names: list[str]) -> str:
    return f"{', '.join(names[:8])}{f' and {len(names) - 8} more' if len(names) > 8 else ''}"
