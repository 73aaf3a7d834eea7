"""Job: a session → the same session with chosen axes of its variables."""

from pathlib import Path
from typing import Any

from bci_adapt.data.axes import with_axes
from bci_adapt.data.session_files import read_session, write_session


def run(parameters: dict[str, Any], inputs: dict[str, Path], out: Path) -> None:
    """Write `session` with exactly the `axes`, names by variable, in this order."""
    write_session(with_axes(read_session(inputs["session"]), parameters["axes"]), out)
