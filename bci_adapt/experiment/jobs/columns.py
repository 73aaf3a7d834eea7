"""Job: the sessions of a run → whether their columns are the same channels, by the counts alone."""

import json
from pathlib import Path
from typing import Any

from bci_adapt.data.channels import policy_for, under
from bci_adapt.data.same_columns import same_columns
from bci_adapt.data.session_files import read_session
from bci_adapt.errors import InputError
from bci_adapt.ground.storage import write_text


def run(parameters: dict[str, Any], inputs: dict[str, Path], out: Path) -> None:
    """Write what `SameColumns.to_json` says of ``session0``, ``session1`` …, and its findings, under the channel policy
    `policy`, null for the one that fits; where sessions do not meet under it there is nothing to say.
    """
    sessions = [read_session(inputs[name]) for name in sorted(inputs, key=lambda name: int(name[7:]))]
    policy = parameters["policy"] or policy_for(sessions)
    try:
        told = same_columns([under(session, policy) for session in sessions])
    except InputError:  # told where the sessions of a pair are matched
        write_text(out, json.dumps({"sessions": [], "findings": []}))
        return
    write_text(out, json.dumps(told.to_json() | {"findings": told.findings}, allow_nan=False))
