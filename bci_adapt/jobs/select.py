"""Job: a session → the same session with the channels on which it meets others."""

import json
from pathlib import Path
from typing import Any

from bci_adapt.channels import select
from bci_adapt.session import read_session, write_session


def run(parameters: dict[str, Any], inputs: dict[str, Path], out: Path) -> None:
    """Write `session` with exactly `channels`, chosen under `policy`; channels `removed` by a rule are recorded."""
    session = select(read_session(inputs["session"]), parameters["channels"], parameters["policy"])
    session.attrs["removed_channels"] = json.dumps(parameters["removed"], ensure_ascii=False)
    write_session(session, out)
