"""Job: a recording → a session."""

from pathlib import Path
from typing import Any

from bci_adapt.data.faults import Thresholds
from bci_adapt.data.guarded_reading import copy_session, prepare


def run(parameters: dict[str, Any], inputs: dict[str, Path], out: Path) -> None:
    """Prepare the file `recording` in bins of `bin_s`, with the `layout` named (or the best one when null). A session
    that is prepared already (``.nc``) is checked and taken as it is.
    """
    if inputs["recording"].suffix == ".nc":
        given = {
            name: parameters[name]
            for name in ("layout", "spikes", "targets", "per", "unobserved")
            if parameters.get(name)
        }
        copy_session(inputs["recording"], parameters["bin_s"], out, **given)
        return
    options = {name: value for name, value in parameters.items() if name not in ("bin_s", "thresholds")}
    bin_s = parameters["bin_s"]
    prepare(inputs["recording"], bin_s, out, thresholds=Thresholds(**parameters["thresholds"]), **options)
