"""Job: a session → the same session with the channels on which it meets others."""

from pathlib import Path
from typing import Any

from bci_adapt.data.channels import select
from bci_adapt.data.qc import record_removed
from bci_adapt.data.session_files import read_session, write_session


def run(parameters: dict[str, Any], inputs: dict[str, Path], out: Path) -> None:
    """Write `session` with exactly `channels`, chosen under `policy`; channels `removed` by a rule are recorded."""
    session = select(read_session(inputs["session"]), parameters["channels"], parameters["policy"])
    if parameters["removed"]:
        session = record_removed(session, parameters["removed"], parameters["reason"])
    write_session(session, out)
