"""Job: a session → its earlier or its later half, a session of its own: a pair of days between which nothing drifts."""

from pathlib import Path
from typing import Any

import xarray as xr

from bci_adapt.data.session_files import read_session, write_session


def run(parameters: dict[str, Any], inputs: dict[str, Path], out: Path) -> None:
    """Write the `half` (0 or 1) of `session`; its id says so."""
    write_session(half_of(read_session(inputs["session"]), parameters["half"]), out)


def half_of(session: xr.Dataset, half: int) -> xr.Dataset:
    """The earlier (0) or later (1) half of a session, a session of its own name."""
    middle = session.sizes["time"] // 2
    part = session.isel(time=slice(middle) if half == 0 else slice(middle, None))
    return part.assign_attrs(session_id=f"{session.attrs['session_id']} ({'later' if half else 'earlier'} half)")
