"""Whose columns a decoder knows: its file holds fingerprints of its last days, and a new session is held to them."""

from __future__ import annotations

from collections.abc import Sequence

import xarray as xr

from bci_adapt.data.same_columns import SAME, UNSURE, ColumnsOf, Fingerprint, fingerprint, judge
from bci_adapt.data.same_columns.packing import packed, unpacked
from bci_adapt.decoders.base import Decoder
from bci_adapt.decoders.same_channels import comparable
from bci_adapt.errors import InputError
from bci_adapt.ground.text import clean

KEY = "columns"
N_DAYS = 4
"""How many of the last days with the same columns a decoder remembers."""


def known_from(sessions: Sequence[xr.Dataset]) -> tuple[list[Fingerprint], list[str]]:
    """Return the fingerprints of those sessions that share their columns, and what is to be said of the others."""
    found = []
    for session in sessions:
        try:
            found.append(fingerprint(session))
        except InputError:  # too short to tell
            continue
    told = judge(found)
    return [each for each, of in zip(found, told.sessions, strict=True) if of.verdict == SAME], told.findings


def remember(decoder: Decoder, days: Sequence[Fingerprint]) -> None:
    """Keep the fingerprints of the last of `days` with a decoder."""
    decoder.metadata_ = {**decoder.metadata_, KEY: [packed(each) for each in days[-N_DAYS:]]}


def judged(decoder: Decoder, session: xr.Dataset, keep: bool = False) -> ColumnsOf:
    """Hold a session to the days that a decoder remembers; with `keep` it is remembered, where its columns are theirs.

    A decoder that remembers none, which is of an older version or was not made by `pretrain`, cannot say.
    """
    name = str(session.attrs["session_id"])
    try:
        days = [unpacked(each) for each in decoder.metadata_.get(KEY, [])]
        own = fingerprint(comparable(session, decoder.metadata_)) if days else None
    except (InputError, TypeError) as error:
        return ColumnsOf(name, UNSURE, f"{clean(name)}: cannot say whose columns these are: {clean(error)}")
    if own is None:
        why = "the decoder remembers none of its days"
        return ColumnsOf(name, UNSURE, f"{clean(name)}: cannot say whose columns these are: {why}")
    others = [each for each in days if each.session_id != name]
    told = judge([*others, own]).sessions[-1]
    if keep and told.verdict == SAME:
        remember(decoder, [*others, own])
    return told
