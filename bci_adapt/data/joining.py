"""Sessions put behind one another, in the order in which they were recorded."""

from __future__ import annotations

from collections.abc import Sequence

import xarray as xr

from bci_adapt.data import sessions as single
from bci_adapt.data.from_arrays import UNDATED
from bci_adapt.errors import InputError


def concat(sessions: Sequence[xr.Dataset]) -> xr.Dataset:
    """Put sessions of the same channels, axes and bins behind one another along time, oldest first; those of which none
    says when it was recorded in the order given.

    Each begins a new segment and keeps its own clock; coordinates ``session (time)`` and ``trial_session (trial)`` say
    which one a bin or a trial is of.
    A decoder takes it for one session: it is normalised by one set of statistics, not each day by its own as in
    ``fit([first, second])``.
    Kinematics that not all have are left out, as are statistics of spike times. `InputError` unless channels and axes
    are the same in the same order (`bci_adapt.match` makes them so), bins are equally wide, and all or none say when
    they were recorded.
    """
    undated = [each for each in sessions if each.attrs["session_start"] in ("", UNDATED)]
    if undated and len(undated) < len(sessions):
        dated = next(each for each in sessions if each.attrs["session_start"] not in ("", UNDATED))
        raise InputError(
            f"{undated[0].attrs['session_id']}: does not say when it was recorded (session_start), "
            f"{dated.attrs['session_id']} does: sessions are put in order by it, so that all have to say it, or none; "
            'bci_adapt.session(…, session_start="2026-01-31")'
        )
    return single.concat(sessions)
