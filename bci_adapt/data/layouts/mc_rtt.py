"""DANDI 000129: sorted units and self-paced reaching of the Neural Latents Benchmark."""

from __future__ import annotations

import xarray as xr

from bci_adapt.data.layouts.base import Layout
from bci_adapt.data.layouts.mc_maze import note_held_out, why_not_of_the_benchmark
from bci_adapt.data.layouts.reading import Target, read_continuous
from bci_adapt.data.nwb import TRIALS, NwbFile
from bci_adapt.data.nwb_describing import Description
from bci_adapt.data.sessions import FROM_START

POSITION = "processing/behavior/cursor_pos"
FINGER = "processing/behavior/finger_pos"
VELOCITY = "processing/behavior/finger_vel"
SAMPLE_S = 0.004
"""Interval at which movement was recorded, before it was brought to 1 kHz."""


class McRtt(Layout):
    """``cursor_pos``, ``finger_pos`` and ``finger_vel`` directly in ``processing/behavior``; ``heldout`` units.

    The position is that of the cursor, whose two axes the targets share, and velocity is derived from it.
    ``finger_vel``, which the benchmark decodes, stays a kinematic of its own, ``finger_velocity``: it belongs to the
    finger in the frame of the hand tracker, of which the cursor is a scaled and mirrored view, so it is not the
    velocity of this position. ``finger_position`` has the three axes of the tracker. Trials are arbitrary cuts of
    600 ms. All units are read, held out by the benchmark or not; test files become sessions without labels. A channel
    is an electrode.
    """

    name = "mc_rtt"
    verified_on = ""
    bin_edge = FROM_START
    written_from = "the benchmark's own loader (neurallatents/nlb_tools, nwb_interface.py)"

    def matches(self, description: Description) -> tuple[float, str]:
        """See `Layout.matches`."""
        if why := why_not_of_the_benchmark(description):
            return 0.0, why
        paths = description.paths() | {*description.unusable}
        if {POSITION, FINGER} <= paths:
            return 1.0, f"units with a flag heldout, {POSITION} and {FINGER}"
        if not description.series and not description.unusable and description.subject.lower() == "indy":
            return 0.9, "units of Indy with a flag heldout and no behaviour: a test file of the benchmark"
        return 0.0, f"no {POSITION} and {FINGER}"

    def read(self, file: NwbFile, bin_s: float, per: str) -> xr.Dataset:
        """See `Layout.read`."""
        labelled = any(f"{path}/data" in file for path in (POSITION, FINGER, VELOCITY))
        targets = [
            Target("position", (POSITION,), axes=("x", "y"), unit="mm", required=labelled),
            Target("finger_position", (FINGER,)),
            Target("finger_velocity", (VELOCITY,)),
            Target("target_position", ("processing/behavior/target_pos",), unit="mm"),
        ]
        session = read_continuous(self, file, bin_s, per, targets)
        note_held_out(session, file)
        if file.rows(TRIALS):
            session.attrs["warnings"].append("trials are arbitrary cuts of 600 ms, not reaches")
        if labelled and bin_s < SAMPLE_S:
            session.attrs["warnings"].append(
                f"movement was recorded every {SAMPLE_S:g} s and then brought to 1 kHz: bins of {bin_s:g} s repeat it"
            )
        return session
