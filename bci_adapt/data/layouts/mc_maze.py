"""DANDI 000128 and 000138–000140: sorted units and hand movement in a maze of the Neural Latents Benchmark."""

from __future__ import annotations

import numpy as np
import xarray as xr

from bci_adapt.data.layouts.base import Layout
from bci_adapt.data.layouts.reading import Target, read_continuous
from bci_adapt.data.nwb import NwbFile, column
from bci_adapt.data.nwb_describing import Description
from bci_adapt.data.sessions import FROM_START

POSITION = "processing/behavior/hand_pos"
VELOCITY = "processing/behavior/hand_vel"
CURSOR = "processing/behavior/cursor_pos"


class McMaze(Layout):
    """``hand_pos``, ``hand_vel`` and ``cursor_pos`` directly in ``processing/behavior``; units with a ``heldout`` flag.

    The position is that of the hand, in mm, and ``hand_vel`` its recorded velocity, which the benchmark decodes; the
    cursor is a kinematic of its own. Samples at 1 kHz are missing here and there: a pause longer than a bin starts a
    segment. Units are observed inside trials only. All units are read, held out by the benchmark or not; its test
    files have fewer of them and no behaviour, and become sessions without labels. A channel is an electrode. Spikes are
    counted in [start, end), as the benchmark's loader does.
    """

    name = "mc_maze"
    verified_on = ""
    bin_edge = FROM_START
    written_from = "the benchmark's own loader (neurallatents/nlb_tools, nwb_interface.py)"

    def matches(self, description: Description) -> tuple[float, str]:
        """See `Layout.matches`."""
        if why := why_not_of_the_benchmark(description):
            return 0.0, why
        paths = description.paths() | {*description.unusable}
        if {POSITION, VELOCITY} <= paths:
            return 1.0, f"units with a flag heldout, {POSITION} and {VELOCITY}"
        if not description.series and not description.unusable:
            return 0.5, "units with a flag heldout and no behaviour: a test file of the benchmark"
        return 0.0, f"no {POSITION} and {VELOCITY}"

    def read(self, file: NwbFile, bin_s: float, per: str) -> xr.Dataset:
        """See `Layout.read`."""
        labelled = f"{POSITION}/data" in file or f"{VELOCITY}/data" in file
        targets = [
            Target("position", (POSITION,), axes=("x", "y"), unit="mm", required=labelled),
            Target("recorded_velocity", (VELOCITY,), axes=("x", "y"), unit="mm/s"),
            Target("cursor_position", (CURSOR,), axes=("x", "y"), unit="mm"),
            Target("eye_position", ("processing/behavior/eye_pos",), unit="mm"),
        ]
        session = read_continuous(self, file, bin_s, per, targets)
        note_held_out(session, file)
        return session


def why_not_of_the_benchmark(description: Description) -> str:
    """Why a file is none of the Neural Latents Benchmark; "" where it has units with a flag ``heldout``."""
    if "units" not in description.paths() | {*description.unusable}:
        return "no units with spike times"
    return "" if "heldout" in description.units["columns"] else "units without a flag heldout"


def note_held_out(session: xr.Dataset, file: NwbFile) -> None:
    """Warn, in a session that is being read, of units that the benchmark holds out: they are read like all others."""
    held_out = column(file, "units", "heldout")
    if held_out is None or held_out.dtype.kind not in "iub" or held_out.ndim > 1:
        raise file.error("units/heldout", "must say of every unit whether the benchmark holds it out")
    if n_held_out := np.count_nonzero(held_out):
        session.attrs["warnings"].append(
            f"{n_held_out} of {held_out.size} units are held out by the benchmark: they are read like the others"
        )
