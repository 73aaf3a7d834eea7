"""Zenodo 583331: months of self-paced reaching of the monkeys Indy and Loco, in MATLAB 7.3 files."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from bci_adapt.data import binning
from bci_adapt.data.layouts.base import Layout
from bci_adapt.data.layouts.grids import grid_of_samples
from bci_adapt.data.layouts.reading import Kinematics, read_spikes, session
from bci_adapt.data.layouts.tables import Channels
from bci_adapt.data.nwb import MATLAB, NwbFile
from bci_adapt.data.nwb_describing import Description
from bci_adapt.ground.text import clean

FINGER = ("z", "-x", "-y")
ORIENTATION = ("azimuth", "elevation", "roll")


class Indy(Layout):
    """``cursor_pos``, ``finger_pos`` and ``target_pos`` on the clock ``t`` (250 Hz); ``spikes`` by channel and unit.

    MATLAB stores arrays transposed, (columns, samples). The position is that of the cursor, in mm;
    ``finger_position`` is as the hand tracker gives it, (z, -x, -y) in cm, with ``finger_orientation`` where six
    columns exist; velocity is derived. The first unit of a channel holds the threshold crossings that were not sorted,
    the others sorted units: a channel is an electrode, named ``M1/001``, with all of them pooled, or a unit,
    ``M1/001/unsorted``, ``M1/001/unit1`` and so on. Subject and day are in the name of the file.
    """

    name = "indy"
    verified_on = ""
    written_from = "code that reads these files (neuro-galaxy/brainsets, odoherty_sabes_nonhuman_2017)"

    def matches(self, description: Description) -> tuple[float, str]:
        """See `Layout.matches`."""
        if description.nwb_version != MATLAB:
            return 0.0, f"not a {MATLAB} file"
        return 1.0, f"a {MATLAB} file with the variables of the Indy and Loco recordings"

    def read(self, file: NwbFile, bin_s: float, per: str) -> xr.Dataset:
        """See `Layout.read`."""
        warnings: list[str] = []
        t = file.numbers("t").astype(np.float64)
        if t.ndim != 2 or t.shape[0] != 1 or not np.isfinite(t).all():
            raise file.error("t", f"must be finite times in seconds of shape (1, samples), found {t.shape}")
        grid, samples = grid_of_samples(file, "t", binning.to_ticks(t[0]), bin_s, warnings)

        def means(key: str, columns: tuple[int, ...]) -> NDArray[np.float64]:
            values = file.numbers(key).astype(np.float64)
            if values.shape not in [(n, t.size) for n in columns]:
                wanted = " or ".join(f"({n}, {t.size})" for n in columns)
                raise file.error(key, f"must be {wanted}, columns by the samples of t, found {values.shape}")
            return samples.values(values.T)

        position = means("cursor_pos", (2,))
        if not np.isfinite(position).any():
            raise file.error("cursor_pos", "has no value that is not NaN: nothing can be decoded")
        kinematics: Kinematics = {"position": (position, "mm", ["x", "y"])}
        if "finger_pos" in file:
            finger = means("finger_pos", (3, 6))
            kinematics["finger_position"] = finger[:, :3], "cm", [*FINGER]
            if finger.shape[1] == 6:
                kinematics["finger_orientation"] = finger[:, 3:], "", [*ORIENTATION]
        if "target_pos" in file:
            kinematics["target_position"] = means("target_pos", (2,)), "mm", ["x", "y"]
        spikes_s, unit_index, channels = _read_units(file, per, warnings)
        table = spikes_s, unit_index, channels.index.size
        neurons = read_spikes(file, table, grid, per, warnings, key="spikes", channels=channels)
        return session(self, file, grid, neurons, kinematics, warnings)


def _read_units(
    file: NwbFile, per: str, warnings: list[str]
) -> tuple[NDArray[np.float64], NDArray[np.int64], Channels]:
    """Spike times in seconds (n_spikes,), the unit of each, and the channel of each unit that has spikes."""
    names = _channel_names(file)
    cells = file.cells("spikes")
    if any(len(row) != len(names) for row in cells):
        raise file.error("spikes", f"must be units by the {len(names)} channels of chan_names, found {len(cells[0])}")
    times, index, labels = [], [], []
    for channel, name in enumerate(names):
        for unit, row in enumerate(cells):
            values = row[channel]
            if not values.size:
                continue
            where = f"spikes{{{channel + 1},{unit + 1}}}"
            if values.dtype.kind != "f" or not np.isfinite(values).all():
                raise file.error(where, f"must be finite spike times in seconds, found {values.dtype} or NaN")
            if values.size != max(values.shape):
                warnings.append(f"{where} is a table of {values.shape}, not a list of spike times: left out")
                continue
            times.append(values.ravel().astype(np.float64))
            index.append(channel)
            labels.append(f"{name}/unit{unit}" if unit else f"{name}/unsorted")
    if not times:
        raise file.error("spikes", "holds no spikes")
    unit_index = np.repeat(np.arange(len(times)), [each.size for each in times])
    electrode = np.asarray(index, dtype=np.int64)
    if per == "unit":
        on = [names[channel] for channel in index]
        return np.concatenate(times), unit_index, Channels(labels, np.arange(len(times)), "unit", on)
    return np.concatenate(times), unit_index, Channels(names, electrode, "electrode", names)


def _channel_names(file: NwbFile) -> list[str]:
    """Names of the channels, ``M1/001`` for "M1 001"."""
    rows = file.cells("chan_names")
    if len(rows) != 1:
        raise file.error("chan_names", f"must be one name per channel, found {len(rows)} rows")
    names = []
    for codes in rows[0]:
        if codes.dtype != np.uint16 or not 0 < codes.size <= 100:
            raise file.error("chan_names", f"must be text, found {codes.dtype} {codes.shape}")
        names.append("/".join(clean("".join(map(chr, codes.ravel().tolist()))).split(" ", 1)))
    if len(set(names)) < len(names) or not all(names):
        raise file.error("chan_names", "must name every channel differently")
    return names
