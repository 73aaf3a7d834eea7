"""Job: a session → its earlier or its later half, a session of its own: a pair of days between which nothing drifts."""

from pathlib import Path
from typing import Any

from bci_adapt.sessions import read_session, write_session


def run(parameters: dict[str, Any], inputs: dict[str, Path], out: Path) -> None:
    """Write the `half` (0 or 1) of `session`; its id says so."""
    session = read_session(inputs["session"])
    middle = session.sizes["time"] // 2
    bins = slice(middle) if parameters["half"] == 0 else slice(middle, None)
    session = session.isel(time=bins)
    session.attrs["session_id"] += f" ({'earlier' if parameters['half'] == 0 else 'later'} half)"
    write_session(session, out)
