"""Job: a recording → a session."""

from pathlib import Path
from typing import Any

from bci_adapt.data.faults import Thresholds
from bci_adapt.data.from_arrays import read
from bci_adapt.data.prepare import prepare
from bci_adapt.data.sessions import write_session


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
        write_session(read(inputs["recording"], parameters["bin_s"], **given), out)
        return
    options = {name: value for name, value in parameters.items() if name != "thresholds"}
    prepare(inputs["recording"], out=out, thresholds=Thresholds(**parameters["thresholds"]), **options)
