"""Which axes of a variable are decoded: days differ in which muscles they have, and some muscles never move."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import xarray as xr

from bci_adapt.data.sessions import labels_of
from bci_adapt.errors import InputError
from bci_adapt.ground.catalog import unknown
from bci_adapt.ground.text import clean

COMMON = "common"
"""In place of names: the axes that all sessions have."""


def axes_of(session: xr.Dataset, variable: str) -> list[str]:
    """The axes of a variable, by name; `InputError` where the session does not hold it."""
    labels_of(session, variable)
    return [str(axis) for axis in session[str(session[variable].dims[1])].values]


def named_axes(asked: Mapping[str, Sequence[str]], sessions: Sequence[xr.Dataset]) -> dict[str, list[str]]:
    """Axes by variable: those `asked` for, in that order; for `COMMON` those that all sessions have, in the first's.

    Raises
    ------
    InputError
        for an axis that a session does not have, by name; for sessions without the variable, or without a common axis.
    """
    found = {}
    for variable, wanted in asked.items():
        held = [axes_of(session, variable) for session in sessions]
        if tuple(wanted) == (COMMON,):
            found[variable] = [axis for axis in held[0] if all(axis in each for each in held)]
            if not found[variable]:
                raise InputError(f"axes: {variable} has no axis that all of these sessions have")
            continue
        for session, each in zip(sessions, held, strict=True):
            for axis in wanted:
                if axis not in each:
                    told = unknown(axis, [*map(clean, each)], f"axis of {variable}")
                    raise InputError(f"axes: {clean(session.attrs['session_id'])}: {told}")
        found[variable] = list(wanted)
    return found


def with_axes(session: xr.Dataset, chosen: Mapping[str, Sequence[str]]) -> xr.Dataset:
    """The session with exactly the `chosen` axes of each variable, in this order; a dimension that two variables share
    is cut for both. `InputError` as in `named_axes`.
    """
    cut: dict[str, tuple[str, list[str]]] = {}
    for variable, axes in named_axes(chosen, [session]).items():
        dim = str(session[variable].dims[1])
        other, before = cut.setdefault(dim, (variable, axes))
        if before != axes:
            raise InputError(f"axes: {other} and {variable} share their axes: choose the same of both")
    return session.sel({dim: axes for dim, (_, axes) in cut.items()})


def parsed(texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Axes by variable from ``NAME=AXIS,AXIS`` or ``NAME=common``; `InputError` where a text says something else."""
    found: dict[str, tuple[str, ...]] = {}
    for text in texts:
        name, equals, names = text.partition("=")
        axes = tuple(each.strip() for each in names.split(","))
        if not equals or not name or not all(axes) or name in found or len({*axes}) < len(axes):
            raise InputError(f"--axes {text}: expected NAME=AXIS,AXIS (emg=FCR,ECU) or NAME={COMMON}, each once")
        found[name] = axes
    return found


def told(chosen: Mapping[str, Sequence[str]], sessions: Sequence[xr.Dataset]) -> list[str]:
    """A note for each variable: which axes are decoded, and which of whose are left out."""
    notes = []
    for variable, axes in chosen.items():
        held = [axes_of(session, variable) for session in sessions]
        out = {axis: sum(axis in each for each in held) for each in held for axis in each if axis not in axes}
        words = ", ".join(f"{clean(axis)} (in {n} of {len(held)} sessions)" for axis, n in out.items())
        notes.append(f"axes of {variable}: {', '.join(axes)}; left out: {words or 'none'}")
    return notes
