"""DANDI 000950, FALCON H2: attempted handwriting of a person, recognised so that it can be refused with its reason."""

from __future__ import annotations

from typing import NoReturn

from bci_adapt.data.layouts.base import Layout
from bci_adapt.data.nwb import NwbFile
from bci_adapt.data.nwb_describing import Description

COUNTS = "acquisition/binned_spikes"


class FalconH2(Layout):
    """FALCON H2: handwriting, recognised and refused: its labels are sentences, there are no kinematics to decode."""

    name = "falcon_h2"
    verified_on = ""
    written_from = "falcon-challenge 1.0.2, the benchmark's own loader (dataloaders.py)"

    def matches(self, description: Description) -> tuple[float, str]:
        """See `Layout.matches`."""
        paths = description.paths()
        if COUNTS not in paths:
            return 0.0, f"no {COUNTS}"
        if "cue" not in description.trials["columns"]:
            return 0.0, f"{COUNTS}, but the trials have no cue"
        others = sorted(path for path in paths - {COUNTS} if not path.endswith("/eval_mask"))
        if others:
            return 0.0, f"{COUNTS} and cues, but {', '.join(others)} besides"
        return 1.0, f"{COUNTS} and sentences as cues: handwriting, which is recognised and cannot be prepared"

    def read(self, file: NwbFile, bin_s: float, per: str) -> NoReturn:
        """See `Layout.read`; always an `InputError`."""
        raise file.error(
            "intervals/trials/cue",
            f"holds the sentences that were written while {COUNTS} was recorded: characters, not kinematics, are the "
            "labels of this file, and a decoder of movement has no target here; choose recordings with a position, a "
            "velocity or muscle activity",
        )
