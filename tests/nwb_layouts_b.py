"""Files in the forms of MC_Maze, MC_RTT, DANDI 000070 and the Indy recordings, written with h5py alone."""

from pathlib import Path

import h5py
import numpy as np

TEXT = h5py.string_dtype()


def spike_trains(n_units, windows, rate_hz=40.0, seed=0):
    """Times of each unit in µs, rising inside each of `windows` (s), one window after the other as in a recording."""
    rng = np.random.default_rng(seed)
    trains = []
    for _ in range(n_units):
        parts = [
            np.unique(rng.integers(round(a * 1e6) + 1, round(b * 1e6), round((b - a) * rate_hz))) for a, b in windows
        ]
        trains.append(np.concatenate(parts))
    return trains


def _header(file, subject, identifier, start):
    file.attrs["nwb_version"], file.attrs["neurodata_type"], file.attrs["namespace"] = "2.4.0", "NWBFile", "core"
    file["session_description"] = "made for a test"
    file["identifier"], file["session_start_time"] = identifier, start
    file["general/subject/subject_id"] = subject


def _electrodes(file, groups):
    file["general/extracellular_ephys/electrodes/id"] = np.arange(len(groups))
    file["general/extracellular_ephys/electrodes"].create_dataset("group_name", data=groups, dtype=TEXT)


def _units(file, trains_us, electrodes, observed, heldout=None):
    """`observed` is one list of (start, stop) for each unit."""
    units = file.create_group("units")
    units["id"] = np.arange(len(trains_us))
    units["spike_times"] = np.concatenate(trains_us) / 1e6
    units["spike_times_index"] = np.cumsum([len(each) for each in trains_us])
    units["electrodes"], units["electrodes_index"] = electrodes, np.arange(1, len(trains_us) + 1)
    units["obs_intervals"] = np.concatenate([np.asarray(each, dtype=float).reshape(-1, 2) for each in observed])
    units["obs_intervals_index"] = np.cumsum([len(each) for each in observed])
    if heldout is not None:
        units["heldout"] = heldout


def _series(group, name, data, unit, timestamps=None, rate=1000.0):
    series = group.create_group(name)
    series.attrs["neurodata_type"] = "TimeSeries"
    series["data"] = data
    series["data"].attrs["unit"] = unit
    series["data"].attrs["conversion"] = 1.0
    if timestamps is not None:
        series["timestamps"] = timestamps
    else:
        series["starting_time"] = 0.0
        series["starting_time"].attrs["rate"] = rate


def path_of_hand(t):
    """A movement in mm, its velocity in mm/s."""
    return (
        np.stack([40 * np.sin(2 * t), 30 * np.cos(3 * t)], axis=1),
        np.stack([80 * np.cos(2 * t), -90 * np.sin(3 * t)], axis=1),
    )


def mc_maze(path: Path, trains_us, **change) -> Path:
    """1 kHz from 0 to 6 s without the rows in `drop`; three trials; units 0 and 1 share an electrode."""
    trials = np.array([[0.5, 2.0], [2.2, 4.0], [4.1, 5.9]])
    t = np.delete(np.arange(6001) / 1000, change.get("drop", []))
    position, velocity = path_of_hand(t)
    position[change.get("nan_rows", [])] = np.nan
    with h5py.File(path, "w") as file:
        _header(file, "Jenkins", "full_test" if not change.get("behaviour", True) else "full", "2009-09-18T00:00:00Z")
        _electrodes(file, ["M1"] * 3 + ["PMd"] * 2)
        n = len(trains_us)
        heldout = change.get("heldout", np.array([False] * (n - 2) + [True] * 2))
        observed = [trials] * (n - 1) + [change.get("last_observed", trials)]
        _units(file, trains_us, [0, 0, 2, 3, 4][:n], observed, heldout)
        if change.get("behaviour", True):
            module = file.create_group("processing/behavior")
            for name, data, unit in [
                ("hand_pos", position, "mm"),
                ("hand_vel", velocity, "mm/s"),
                ("cursor_pos", position + 5, "mm"),
                ("eye_pos", position * 0, "mm"),
            ]:
                if name not in change.get("without", ()):
                    stamps = t[:-1] if name == change.get("short") else t
                    _series(module, name, data, unit, timestamps=stamps)
        table = file.create_group("intervals/trials")
        table["id"], table["start_time"], table["stop_time"] = np.arange(3), trials[:, 0], trials[:, 1]
        table["go_cue_time"], table["move_onset_time"] = trials[:, 0] + 0.5, trials[:, 0] + 0.8
        table["target_pos"], table["target_pos_index"] = np.zeros((5, 2)), np.array([1, 3, 5])
        table.create_dataset("split", data=["train", "val", "train"], dtype=TEXT)
    return path


def mc_rtt(path: Path, trains_us, **change) -> Path:
    """4.8 s at 250 Hz brought to 1 kHz, with a rate; trials of 600 ms back to back; every unit on its electrode."""
    t = np.arange(4800) / 1000
    coarse = np.arange(0, 4800 + 4, 4) / 1000
    cursor = np.stack([np.interp(t, coarse, each) for each in path_of_hand(coarse)[0].T], axis=1)
    tracker = np.stack([30 + 0 * t, -cursor[:, 0] / 10, -cursor[:, 1] / 10], axis=1)
    edges = np.arange(0, 9) * 0.6
    with h5py.File(path, "w") as file:
        _header(file, "Indy", "rtt_train", "2017-02-02T00:00:00Z")
        _electrodes(file, ["M1"] * len(trains_us))
        observed = [[[0.0, 4.8]]] * len(trains_us)
        _units(file, trains_us, np.arange(len(trains_us)), observed, np.arange(len(trains_us)) % 4 == 3)
        if change.get("behaviour", True):
            module = file.create_group("processing/behavior")
            _series(module, "cursor_pos", cursor.T if change.get("transposed") else cursor, "mm")
            _series(module, "finger_pos", tracker, "cm")
            _series(module, "finger_vel", np.gradient(tracker[:, 1:], 0.001, axis=0), "cm/s")
            _series(module, "target_pos", cursor * 0 + 10, "mm")
        table = file.create_group("intervals/trials")
        table["id"], table["start_time"], table["stop_time"] = np.arange(8), edges[:-1], edges[1:]
    return path


MAZE_TRIALS = np.array([[1.0, 2.2], [3.0, 4.2], [5.0, 6.2], [7.0, 8.2]])
MAZE_RESET = np.array([[1.0, 2.2], [3.0, 4.2], [2.2, 3.4], [5.0, 6.2]])
"""The clock starts over after the second trial; the third shares 0.4 s with the second."""


def maze_000070(path: Path, trains_us, trials=MAZE_TRIALS, **change) -> Path:
    """1 kHz samples inside trials only, Position/{Hand,Cursor,Eye}, groups "1" and "2", a unit on each electrode."""
    t = np.concatenate([round(a * 1000) + np.arange(round((b - a) * 1000) + 1) for a, b in trials]) / 1000
    hand = path_of_hand(np.arange(t.size) / 1000)[0]
    n = len(trains_us)
    observed = [trials] * (n - 1) + [change.get("last_observed", trials)]
    with h5py.File(path, "w") as file:
        _header(file, "Nitschke", "20090812", "2009-08-12T00:00:00Z")
        _electrodes(file, ["1"] * (n // 2) + ["2"] * (n - n // 2))
        _units(file, trains_us, np.arange(n), observed)
        if change.get("unobserved"):
            del file["units/obs_intervals"], file["units/obs_intervals_index"]
        position = file.create_group("processing/behavior/Position")
        for name, data in {"Hand": hand, "Cursor": hand + 1, "Eye": hand * 0 + 2}.items():
            shared = h5py.SoftLink("/processing/behavior/Position/Hand/timestamps")  # as pynwb writes it
            own = t[:-1] if name == change.get("short") else t
            _series(position, name, data, "mm", timestamps=own if name == "Hand" else shared)
        table = file.create_group("intervals/trials")
        table["id"], table["start_time"], table["stop_time"] = np.arange(4), trials[:, 0], trials[:, 1]
        table["go_cue_time"] = np.append(trials[:-1, 0] + 0.4, np.nan)
        table["task_success"], table["discard_trial"] = [1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0]
        kind = np.dtype([("idx_start", "<i4"), ("count", "<i4"), ("timeseries", h5py.ref_dtype)])
        rows = np.array([(0, 1201, position["Hand"].ref)] * 4, dtype=kind)
        table["timeseries"], table["timeseries_index"] = rows, np.arange(1, 5)
    return path


def _matlab_header(path):
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Thu Jan  1 00:00:00 1970 HDF5 schema 1.00 .")


def indy(path: Path, cells_us, names=("M1 001", "M1 002", "M1 003", "S1 001"), **change) -> Path:
    """Ten seconds at 250 Hz from 3000 s on; `cells_us[channel][unit]` are spike times in µs, None an empty cell."""
    t = 3000 + np.arange(2501) / 250
    cursor, _ = path_of_hand(t - 3000)
    finger = np.stack([t * 0 + 25, -cursor[:, 0] / 10, -cursor[:, 1] / 10], axis=1)
    if change.get("orientation"):
        finger = np.concatenate([finger, np.stack([t * 0 + 1, t * 0 + 2, t * 0 + 3], axis=1)], axis=1)
    n_units = len(cells_us[0])
    with h5py.File(path, "w", userblock_size=512) as file:
        held = file.create_group("#refs#")

        def put(group, name, stored, kind):
            group[name] = stored
            group[name].attrs["MATLAB_class"] = np.bytes_(kind)
            return group[name]

        def cell(name, shape, make):
            made = file.create_dataset(name, shape, h5py.ref_dtype)
            made.attrs["MATLAB_class"] = np.bytes_("cell")
            for i in range(shape[0]):
                for j in range(shape[1]):
                    stored, kind = make(j, i)
                    inner = put(held, f"{name}{i}_{j}", stored, kind)
                    if kind == "double" and stored.ndim == 1:
                        inner.attrs["MATLAB_empty"] = np.uint8(1)
                    made[i, j] = inner.ref

        def times(channel, unit):
            given = cells_us[channel][unit]
            if given is None:
                return np.zeros(2, dtype=np.uint64), "double"
            return (np.asarray(given) / 1e6).reshape(1, -1) * change.get("scale", 1.0), "double"

        # MATLAB's samples x columns arrive in HDF5 as columns x samples.
        put(file, "t", t[None], "double")
        put(file, "cursor_pos", cursor if change.get("upright") else np.ascontiguousarray(cursor.T), "double")
        put(file, "finger_pos", np.ascontiguousarray(finger.T), "double")
        put(file, "target_pos", np.ascontiguousarray((cursor * 0 + [7, -7]).T), "double")
        cell("chan_names", (1, len(names)), lambda j, _: (np.array([[ord(c)] for c in names[j]], np.uint16), "char"))
        cell("spikes", (n_units, len(names)), times)
        cell("wf", (n_units, len(names)), lambda *_: (np.zeros((48, 2)), "double"))
        if "edit" in change:
            change["edit"](file)
    _matlab_header(path)
    return path


def matlab_arrays(path: Path, **given) -> Path:
    """Arrays and texts as MATLAB 7.3 saves them: turned, texts as codes, lists as cell arrays of references."""
    with h5py.File(path, "w", userblock_size=512) as file:
        held = file.create_group("#refs#")

        def put(group, name, value):
            text = isinstance(value, str)
            array = np.array([[ord(c)] for c in value], np.uint16) if text else np.atleast_2d(value).T
            array = array if text or np.ndim(value) != 1 else array.T  # a column, as MATLAB users keep times
            group[name] = array
            group[name].attrs["MATLAB_class"] = np.bytes_("char" if text else "double")
            return group[name].ref

        for name, value in given.items():
            if not isinstance(value, list):
                put(file, name, value)
                continue
            made = file.create_dataset(name, (1, len(value)), h5py.ref_dtype)
            made.attrs["MATLAB_class"] = np.bytes_("cell")
            for place, each in enumerate(value):
                made[0, place] = put(held, f"{name}{place}", each)
    _matlab_header(path)
    return path


def other_matlab(path: Path) -> Path:
    """A MATLAB 7.3 file with something else in it."""
    with h5py.File(path, "w", userblock_size=512) as file:
        file["results"] = np.zeros((3, 3))
    _matlab_header(path)
    return path
