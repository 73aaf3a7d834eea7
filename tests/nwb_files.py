"""Small NWB files written with h5py alone, in the layouts that are read: no helper is shared with the readers."""

from pathlib import Path

import h5py
import numpy as np

TEXT = h5py.string_dtype()


def _series(
    parent,
    name,
    data,
    unit,
    kind,
    *,
    timestamps=None,
    rate=None,
    start=0.0,
    conversion=1.0,
    offset=0.0,
    description=None,
):
    group = parent.create_group(name)
    group.attrs["neurodata_type"], group.attrs["namespace"] = kind, "core"
    listed = "x,y" if np.ndim(data) == 2 and np.shape(data)[1] == 2 else "series"
    group.attrs["description"] = listed if description is None else description
    values = group.create_dataset("data", data=data)
    values.attrs["unit"], values.attrs["conversion"], values.attrs["offset"] = unit, conversion, offset
    if timestamps is not None:
        group.create_dataset("timestamps", data=timestamps)
    if rate is not None:
        group.create_dataset("starting_time", data=float(start)).attrs["rate"] = float(rate)
    return group


def _column(table, name, data):
    table.create_dataset(name, data=data)


def _header(file, session_id="CO-1", description="made for a test"):
    file.attrs["nwb_version"], file.attrs["neurodata_type"], file.attrs["namespace"] = "2.6.0", "NWBFile", "core"
    for name, text in {
        "session_description": description,
        "identifier": session_id,
        "session_start_time": "2014-03-03T00:00:00+00:00",
        "general/session_id": session_id,
        "general/subject/subject_id": "T",
    }.items():
        file.create_dataset(name, data=text, dtype=TEXT)


def _electrodes(file, groups, labels):
    table = file.create_group("general/extracellular_ephys/electrodes")
    table.attrs["neurodata_type"] = "DynamicTable"
    _column(table, "id", np.arange(len(labels)))
    table.create_dataset("group_name", data=groups, dtype=TEXT)
    table.create_dataset("label", data=labels, dtype=TEXT)


def spikes_file(path: Path, *, duration_s=20.0, n_units=4, seed=0, kinematics=True, scale=1.0, **change) -> Path:
    """The layout of DANDI 000688: units with electrodes, cursor_pos and cursor_vel with timestamps (100 Hz)."""
    rng = np.random.default_rng(seed)
    times = np.arange(1, round(duration_s * 100) + 1) / 100.0
    position = np.stack([5 * np.sin(times), 5 * np.cos(1.3 * times)], axis=1)
    spikes = [np.sort(rng.uniform(0, duration_s, 200)) * scale for _ in range(n_units)]
    with h5py.File(path, "w") as file:
        _header(file, description=change.get("description", "made for a test"))
        _electrodes(file, ["electrode_group_M1"] * 4 + ["electrode_group_PMd"] * 2, [f"elec{i}" for i in range(6)])
        units = file.create_group("units")
        units.attrs["neurodata_type"] = "Units"
        _column(units, "id", np.arange(n_units))
        _column(units, "spike_times", change.get("spike_times", np.concatenate(spikes)))
        _column(units, "spike_times_index", change.get("spike_times_index", np.cumsum([200] * n_units)))
        _column(units, "electrodes", change.get("electrodes", np.array([0, 0, 2, 3][:n_units])))
        _column(units, "electrodes_index", np.arange(1, n_units + 1))
        if "obs_intervals" in change:
            observed = change["obs_intervals"]  # one (n, 2) for all units, or a list of one per unit
            observed = observed if isinstance(observed, list) else [observed] * n_units
            _column(units, "obs_intervals", np.concatenate(observed))
            _column(units, "obs_intervals_index", np.cumsum([len(each) for each in observed]))
        if kinematics:
            behaviour = file.create_group("processing/behavior")
            clock = {"timestamps": change.get("timestamps", times)}
            if "rate" in change:
                clock = {"rate": change["rate"], "start": times[0]}
            data = change.get("position", position)
            scaled = {name: change[name] for name in ("conversion", "offset") if name in change}
            about = change.get("axes")
            holder = behaviour.create_group("Position")
            _series(holder, "cursor_pos", data, "cm", "SpatialSeries", description=about, **clock, **scaled)
            velocity = np.gradient(position, 0.01, axis=0)
            holder = behaviour.create_group("Velocity")
            _series(holder, "cursor_vel", velocity, "cm/s", "TimeSeries", timestamps=times)
        trials = file.create_group("intervals/trials")
        trials.attrs["neurodata_type"] = "TimeIntervals"
        for name, values in {"id": [0, 1], "start_time": [1.0, 11.0], "stop_time": [5.0, 15.0]}.items():
            _column(trials, name, np.array(values))
        _column(trials, "go_cue_time_array", np.array([[np.nan, 2.0], [12.0, np.nan]]))
        _column(trials, "target_dir", np.array([0.0, np.nan]))
        trials.create_dataset("result", data=["R", "F"], dtype=TEXT)
    return path


def counts_file(path: Path, *, n_bins=400, n_channels=4, rate=20.0, seed=0, **change) -> Path:
    """Binned threshold crossings and cursor kinematics on one grid with a rate."""
    rng = np.random.default_rng(seed)
    counts = change.get("counts", rng.poisson(1.0, (n_bins, n_channels)).astype(np.uint16))
    phase = np.arange(n_bins) / 7.0
    position = change.get("position", np.stack([3 * np.sin(phase), 3 * np.cos(phase)], axis=1))
    with h5py.File(path, "w") as file:
        _header(file)
        _electrodes(file, ["electrode_group_M1"] * n_channels, [f"elec{i}" for i in range(n_channels)])
        acquisition = file.create_group("acquisition")
        _series(
            acquisition, "ThresholdCrossings", counts, "count", "TimeSeries", rate=rate, start=change.get("start", 0.0)
        )
        holder = file.create_group("processing/behavior/Position")
        pos_rate = change.get("position_rate", rate)
        clock = {"timestamps": change["timestamps"]} if "timestamps" in change else {"rate": pos_rate}
        clock |= {"start": change.get("start", 0.0)}
        scaled = {name: change[name] for name in ("conversion", "offset") if name in change}
        _series(holder, "cursor_pos", position, "cm", "SpatialSeries", **clock, **scaled)
        if "velocity" in change:
            holder = file.create_group("processing/behavior/Velocity")
            _series(holder, "cursor_vel", change["velocity"], "cm/s", "TimeSeries", description="vx, vy", **clock)
    return path
