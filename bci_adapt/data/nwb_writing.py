"""Write a simulated recording as an NWB file laid out like DANDI 000688.

The same recording gives the same bytes: object ids, dates and the identifier are derived from the arguments, because
the digest of a file is what decides whether work on it must be done again.
"""

from __future__ import annotations

import uuid
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from bci_adapt.data.simulate import Recording

ARRAY = "M1"
_NAMESPACE = uuid.UUID("0b9a1c52-6f0f-5a7e-9d3e-3c1d7e5a2f10")

_TRIAL_COLUMNS = {
    "result": ("result", "trial outcome, R: reward, A: abort, F: fail, I: incomplete"),
    "target_on_s": ("target_on_time", "time when the target appears, NaN when it did not"),
    "go_s": ("go_cue_time", "time when the go cue is given, NaN when it was not"),
    "target_id": ("target_id", "number of the target, counter-clockwise from the right"),
    "target_dir": ("target_dir", "direction of the (first) target in radians"),
    "num_attempted": ("num_attempted", "number of attempted targets"),
    "num_targets": ("num_targets", "number of targets"),
}


def write_recording(
    path: Path, recording: Recording, *, session_id: str, subject: str, session_start: datetime, identifier: str
) -> None:
    """Write `recording` to `path`.

    Times are seconds from `session_start` (with a time zone); positions are in cm. A unit is named by nothing but its
    electrode, as in the files this one imitates; an electrode that lost its unit stays in the electrodes table.
    """
    import h5py
    from pynwb import NWBHDF5IO

    open_file: Any = NWBHDF5IO
    file = _nwb_file(recording, session_id, subject, session_start, identifier)
    for number, container in enumerate(_in_order(file)):
        # hdmf draws a random id for every object and offers no public way to choose it
        container._AbstractContainer__object_id = str(uuid.uuid5(_NAMESPACE, f"{identifier}/{number}"))
    # Made in memory: on a full disk HDF5 ends the process when it closes its file.
    held = h5py.File(path.name, "w", driver="core", backing_store=False)
    with held, open_file(file=held, mode="w") as io:
        io.write(file)
        held.flush()
        content = held.id.get_file_image()
    path.write_bytes(content)


def _in_order(file: Any) -> list[Any]:
    """All containers of a file, in an order that depends on their places alone."""
    return sorted(file.objects.values(), key=lambda item: [a.name for a in reversed([item, *item.get_ancestors()])])


def _nwb_file(recording: Recording, session_id: str, subject: str, session_start: datetime, identifier: str) -> Any:
    from pynwb import NWBFile, TimeSeries
    from pynwb.behavior import BehavioralTimeSeries, Position, SpatialSeries
    from pynwb.file import Subject

    task = {"centre_out": "centre-out", "random_target": "random target"}[recording.task]
    session = (
        f"SIMULATED, no animal was recorded. Spikes and cursor of a simulated monkey performing {task} reaching on day "
        f"{recording.day} of a series (drift severity {recording.severity:g}, seed {recording.seed})."
    )
    file: Any = NWBFile(
        session_description=session,
        identifier=identifier,
        session_start_time=session_start,
        timestamps_reference_time=session_start,
        file_create_date=[session_start],
        session_id=session_id,
        experiment_description=f"Simulated {task} reaching with drift between sessions",
        experimenter=["Simulator, Bci Adapt"],
        institution="none: simulated data",
        lab="none: simulated data",
        keywords=["simulated data", "motor cortex", "reaching"],
        subject=Subject(
            subject_id=subject,
            species="Macaca mulatta",
            sex="U",
            age="P6Y",
            description="Simulated: log-linear Poisson units stand for sorted units of a rhesus macaque",
        ),
    )
    _add_units(file, recording)
    _add_trials(file, recording)

    behaviour = recording.behaviour
    module = file.create_processing_module("behavior", "Processed Behavioral data")
    common = {"timestamps": behaviour.time_s, "resolution": -1.0}
    position = SpatialSeries(
        name="cursor_pos",
        description="Cursor position (x, y) on the screen.",
        data=behaviour.position_cm,
        reference_frame="(0, 0) is the centre target, x to the right, y up",
        unit="centimeters",
        **common,
    )
    module.add(Position(name="Position", spatial_series=position))
    for container, name, data, unit, axes in (
        ("Velocity", "cursor_vel", behaviour.velocity_cm_s, "cm/s", "(vx, vy)"),
        ("Acceleration", "cursor_acc", behaviour.acceleration_cm_s2, "cm/s^2", "(ax, ay)"),
    ):
        series = TimeSeries(
            name=name, description=f"Cursor {container.lower()} {axes}.", data=data, unit=unit, **common
        )
        module.add(BehavioralTimeSeries(name=container, time_series=series))
    return file


def _add_units(file: Any, recording: Recording) -> None:
    from hdmf.common import DynamicTableRegion, VectorData, VectorIndex
    from pynwb.misc import Units

    device = file.create_device(
        name=f"electrode_array_{ARRAY}",
        description=f"Simulated array of {recording.n_electrodes} electrodes in {ARRAY}",
    )
    group = file.create_electrode_group(
        name=f"electrode_group_{ARRAY}", description=device.description, location=ARRAY, device=device
    )
    file.add_electrode_column("label", "label of the electrode")
    for number in range(recording.n_electrodes):
        file.add_electrode(location=ARRAY, group=group, group_name=group.name, label=f"elec{number + 1}")
    if not recording.spike_ms:
        return
    # Whole columns: added unit by unit, pynwb keeps spike times as Python numbers, at twenty times the cost.
    # Milliseconds are divided, not multiplied by 0.001, which gives the double nearest to the true time.
    spike_times = VectorData(
        name="spike_times",
        description="the spike times for each unit",
        data=np.concatenate(recording.spike_ms) / 1000.0,
    )
    electrodes = DynamicTableRegion(
        name="electrodes",
        description="the electrodes that each spike unit came from",
        data=recording.unit_electrode,
        table=file.electrodes,
    )
    n_units = len(recording.spike_ms)
    columns = []
    for column, ends in (
        (spike_times, np.cumsum([len(ms) for ms in recording.spike_ms])),
        (electrodes, np.arange(1, n_units + 1)),
    ):
        columns += [VectorIndex(name=f"{column.name}_index", data=ends.astype(np.uint32), target=column), column]
    file.units = Units(
        name="units", description="Simulated units", id=np.arange(n_units), columns=columns, resolution=0.001
    )


def _add_trials(file: Any, recording: Recording) -> None:
    trials = recording.behaviour.trials
    several = np.ndim(trials["go_s"]) == 2
    columns = {key: _TRIAL_COLUMNS[key] for key in trials if key in _TRIAL_COLUMNS}
    if several:
        columns["go_s"] = ("go_cue_time_array", "time when the go cue of each target is given, NaN when it was not")
    for name, description in columns.values():
        file.add_trial_column(name, description)
    for row in range(len(trials["result"])):
        values = {name: trials[key][row] for key, (name, _) in columns.items()}
        file.add_trial(start_time=float(trials["start_s"][row]), stop_time=float(trials["stop_s"][row]), **values)
