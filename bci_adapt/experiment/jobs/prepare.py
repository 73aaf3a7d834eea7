"""Job: a recording, or arrays, → a session."""

from pathlib import Path
from typing import Any

from bci_adapt.data.faults import Thresholds
from bci_adapt.data.guarded_reading import write


def run(parameters: dict[str, Any], inputs: dict[str, Path], out: Path) -> None:
    """Prepare the file `recording` in bins of `bin_s`, with the `layout` named (or the best one when null). A session
    that is prepared already (``.nc``) is checked and taken as it is.
    """
    given = {name: value for name, value in parameters.items() if name != "thresholds"}
    write(inputs["recording"], out=out, thresholds=Thresholds(**parameters["thresholds"]), **given)
