"""DANDI 000941, FALCON M1: reach-to-grasp of a monkey, 64 electrodes, muscle activity as the target."""

from __future__ import annotations

import xarray as xr

from bci_adapt.data.layouts.base import Layout
from bci_adapt.data.layouts.falcon import MASKS, cut, one_animal
from bci_adapt.data.layouts.grids import MILLISECOND_CLOCK
from bci_adapt.data.layouts.reading import Target, read_rows
from bci_adapt.data.nwb import NwbFile
from bci_adapt.data.nwb_describing import Description
from bci_adapt.data.sessions import FROM_START

EMG = "acquisition/preprocessed_emg"


class FalconM1(Layout):
    """FALCON M1: units with electrodes; one series per muscle in ``acquisition/preprocessed_emg``.

    Rows of 20 ms are stamped with the **end** of their bin: row i stamped t counts spikes in [t - 0.02, t), cut
    by the benchmark's own arithmetic (`falcon.cut`). The muscles are the axes of the only target, ``emg``; there is no
    position.
    """

    name = "falcon_m1"
    verified_on = ""
    written_from = (
        "falcon-challenge 1.0.2, the benchmark's own loader (dataloaders.py) and converter (m1_reachgrasp_preprocv2.py)"
    )
    bin_edge = FROM_START

    def matches(self, description: Description) -> tuple[float, str]:
        """See `Layout.matches`."""
        paths = description.paths()
        muscles = sum(path.startswith(f"{EMG}/") for path in paths)
        if "units" not in paths:
            return 0.0, "no units with spike times"
        if not muscles:
            return 0.0, f"no series in {EMG}"
        return 1.0, f"units and {muscles} muscles in {EMG}"

    def read(self, file: NwbFile, bin_s: float, per: str) -> xr.Dataset:
        """See `Layout.read`."""
        muscles = [path for path in file.children(EMG) if f"{path}/data" in file]
        if not muscles:
            raise file.error(EMG, "holds no series: muscle activity is the target")
        session = read_rows(
            self,
            file,
            bin_s,
            per,
            [Target("emg", tuple(muscles), required=True)],
            edge="end",
            clock=muscles[0],
            tolerance=MILLISECOND_CLOCK,
            masks=MASKS,
            cut=cut,
        )
        return one_animal(session)
