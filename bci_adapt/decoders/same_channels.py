"""Whether the channels of a session are those that a decoder knows: what either says of them decides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import xarray as xr

from bci_adapt.data import channels
from bci_adapt.data.sessions import NOBODYS
from bci_adapt.errors import InputError
from bci_adapt.ground.text import clean

SAID = ("position", "unit")
"""Policies that somebody has to say of each session: neither names nor numbers of channels tell."""


def comparable(session: xr.Dataset, known: Mapping[str, Any]) -> xr.Dataset:
    """The session as the channel policy of a decoder that `known` describes (its ``metadata_``) sees it; `InputError`
    where channels of one name, or of one place, need not be the same ones.
    """
    policy = policy_between(str(session.attrs["session_id"]), session.attrs, known)
    return session if policy is None else channels.under(session, policy)


def policy_between(session_id: str, said: Mapping[str, Any], known: Mapping[str, Any]) -> str | None:
    """The policy under which a session meets a decoder, None as it is; `said` holds its attributes.

    A session that the decoder was trained on passes, and so does one that was matched by the decoder's policy.
    `InputError` as in `comparable`.
    """
    if not known.get("channels"):
        return None
    where = clean(session_id)
    own, theirs = str(said.get("subject") or ""), str(known.get("subject") or "")
    if own and theirs and own != theirs:
        raise InputError(
            f"{where}: is of subject {clean(own)}, the decoder was trained on {clean(theirs)}: electrodes of one name "
            "are not the same in two animals"
        )
    policy, wanted = (str(each.get("channel_policy") or "") for each in (said, known))
    if policy == "position":  # its names are those it was given by then
        return None
    if session_id != NOBODYS and session_id in known.get("sessions", ()):
        return wanted if wanted in ("position", "pool") else None
    if wanted in SAID and policy != wanted:
        raise InputError(
            f"{where}: the decoder was trained on sessions that were matched by {wanted}, this one was not: say that "
            f"its channels are the same, bci_adapt.match([session], by={wanted!r}), or --by {wanted}"
        )
    identities = str(said.get("channel_identity") or ""), str(known.get("channel_identity") or "")
    if identities == ("unit", "unit") and not (policy or wanted):
        raise InputError(
            f"{where}: its channels are sorted units, as the decoder's are, and a unit's number says nothing about "
            "another session. Train and decode on the units summed on their electrodes, "
            "bci_adapt.match(sessions, by='pool') or per='electrode' when reading; or say what is the same: by='unit' "
            "where the units were matched across days, by='position' for equal columns"
        )
    if "column" in identities:
        raise InputError(
            f"{where}: its channels are columns without names, which are not matched to those of another session by "
            "their number: name them (channels=), or say that they are the same: "
            "bci_adapt.match(sessions, by='position')"
        )
    if policy == "unit" and identities == ("unit", "unit"):
        return "unit"
    return wanted or policy or ("electrode" if identities[0] == "electrode" else "none")
