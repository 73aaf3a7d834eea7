"""Job: a recording → a session."""

from pathlib import Path
from typing import Any

from bci_adapt.data.faults import Thresholds
from bci_adapt.data.prepare import prepare


def run(parameters: dict[str, Any], inputs: dict[str, Path], out: Path) -> None:
    """Prepare the file `recording` in bins of `bin_s`, with the `layout` named (or the best one when null)."""
    options = {name: value for name, value in parameters.items() if name != "thresholds"}
    prepare(inputs["recording"], out=out, thresholds=Thresholds(**parameters["thresholds"]), **options)
