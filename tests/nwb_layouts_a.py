"""FALCON, LINK and cursor-BMI files as they are published, written with h5py alone: nothing of the reader is here."""

from pathlib import Path

import h5py
import numpy as np

TEXT = h5py.string_dtype()
MUSCLES = [
    "APL",
    "BCPs",
    "DLTa",
    "DLTp",
    "ECRB",
    "ECU",
    "EDC",
    "FCR",
    "FCU",
    "FDI",
    "FDPr",
    "FDPu",
    "Hypoth",
    "PECmaj",
    "TCPlat",
    "Thenar",
]


def header(file, *, subject, identifier, start="2020-10-19T13:00:00-04:00", session_id=None, about="made for a test"):
    file.attrs.update(nwb_version="2.6.0", neurodata_type="NWBFile", namespace="core")
    texts = {
        "session_description": about,
        "identifier": identifier,
        "session_start_time": start,
        "general/subject/subject_id": subject,
    }
    for name, text in (texts | ({"general/session_id": session_id} if session_id else {})).items():
        file.create_dataset(name, data=text, dtype=TEXT)


def series(file, path, data, unit, *, kind="TimeSeries", about="no description", **clock):
    group = file.create_group(path)
    group.attrs.update(neurodata_type=kind, namespace="core", description=about)
    values = group.create_dataset("data", data=data)
    values.attrs.update(
        unit=unit, conversion=float(clock.get("conversion", 1.0)), offset=float(clock.get("offset", 0.0))
    )
    if "timestamps" in clock:
        group.create_dataset("timestamps", data=clock["timestamps"])
    else:
        group.create_dataset("starting_time", data=float(clock.get("start", 0.0))).attrs["rate"] = float(clock["rate"])
    return group


def units(file, spikes, *, electrodes=False, observed=None):
    table = file.create_group("units")
    table.attrs["neurodata_type"] = "Units"
    table["id"] = np.arange(len(spikes))
    table["spike_times"] = np.concatenate(spikes)
    table["spike_times_index"] = np.cumsum([len(each) for each in spikes]).astype(np.uint32)
    if electrodes:
        table["electrodes"] = np.arange(len(spikes))
        table["electrodes_index"] = np.arange(1, len(spikes) + 1, dtype=np.uint8)
    if observed is not None:
        table["obs_intervals"] = np.tile(np.asarray(observed, dtype=float), (len(spikes), 1))
        table["obs_intervals_index"] = np.arange(1, len(spikes) + 1) * len(observed)


def electrodes(file, groups):
    table = file.create_group("general/extracellular_ephys/electrodes")
    table.attrs["neurodata_type"] = "DynamicTable"
    table["id"] = np.arange(len(groups))
    table.create_dataset("group_name", data=groups, dtype=TEXT)


def rows(file, path, **columns):
    table = file.create_group(path)
    table.attrs["neurodata_type"] = "TimeIntervals"
    table["id"] = np.arange(len(next(iter(columns.values()))))
    for name, values in columns.items():
        text = {"dtype": TEXT} if isinstance(values[0], str) else {}
        table.create_dataset(name, data=values, **text)


def trains(n_units, duration_s, *, n=40, seed=0):
    """Spikes on whole microseconds, a third of them exactly on a multiple of 20 ms."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(n_units):
        times = rng.integers(1, round(duration_s * 1e6), n)
        edges = 20_000 * rng.integers(0, round(duration_s * 50), n // 2)
        made.append(np.sort(np.concatenate([times, edges])) / 1e6)
    return made


def benchmark_counts(spikes, stamps, starts, width_s=0.02):
    """FALCON's counts (n_rows, n_units) of rows stamped with their ends, or their `starts`: edges in double precision;
    after a pause a row looks back its width, else to the end of the row before; the last one holds its own end.
    """
    ends = stamps + width_s if starts else stamps
    counts = np.zeros((ends.size, len(spikes)), dtype=int)
    for row, end in enumerate(ends):
        before = ends[row - 1] if row else -np.inf
        gap = end - before
        start = end - width_s if not row or (gap > width_s and abs(gap - width_s) > 1e-8 + 1e-5 * width_s) else before
        for unit, times in enumerate(spikes):
            inside = (times >= start) & (times < end)
            inside |= (times == end) & (row == ends.size - 1)
            counts[row, unit] = np.count_nonzero(inside)
    return counts


def m1_file(path: Path, *, spikes=None, n_rows=100, stamps=None, **change) -> Path:
    """000941: 64 units on 64 electrodes, 16 muscles in a BehavioralTimeSeries, timestamps are ends of 20 ms bins."""
    stamps = np.arange(n_rows) * 20 / 1000 if stamps is None else stamps
    n_rows = len(stamps)
    spikes = trains(64, n_rows * 0.02) if spikes is None else spikes
    with h5py.File(path, "w") as file:
        header(
            file, subject="MonkeyL-held-in-calib", identifier="L_20120924_held_in_calib", start="2012-09-24T00:00-05:00"
        )
        electrodes(file, ["H_electrode_group"] * 32 + ["I_electrode_group"] * 32)
        units(file, spikes, electrodes=True, observed=change.get("observed", [[-1.0, n_rows * 0.02 + 1]]))
        file.create_group("acquisition/preprocessed_emg").attrs["neurodata_type"] = "BehavioralTimeSeries"
        for i, muscle in enumerate(change.get("muscles", MUSCLES)):
            data = np.arange(n_rows) * 0.25 + 100 * i
            data = data[:-1] if muscle == change.get("short") else data
            series(file, f"acquisition/preprocessed_emg/{muscle}", data, "mV", timestamps=stamps[: len(data)])
        mask = change.get("mask", np.arange(n_rows) % 7 != 3)
        series(file, "acquisition/eval_mask", mask, "bool", timestamps=stamps[: len(mask)])
        rows(
            file,
            "intervals/trials",
            start_time=[0.1, 1.0],
            stop_time=[0.5, 1.5],
            gocue_time=[0.2, 1.1],
            result=["R", "R"],
            tgt_loc=[0.0, 45.0],
        )
    return path


def m2_file(path: Path, *, stamps, spikes=None, split="held-in-calib", **change) -> Path:
    """000953: 96 units on 96 electrodes, one 1-D series a finger, timestamps are starts of 20 ms bins, gaps."""
    n_rows = len(stamps)
    spikes = trains(96, float(stamps[-1]) + 0.02) if spikes is None else spikes
    with h5py.File(path, "w") as file:
        header(file, subject=f"MonkeyN-{split}", identifier="MonkeyN_10-19-13:00_held_in", session_id="2020-10-19_Run1")
        electrodes(file, ["M1_array"] * 96)
        units(file, spikes, electrodes=True, observed=change.get("observed", [[-1.0, float(stamps[-1]) + 1]]))
        for container, scale in (("finger_pos", 0.001), ("finger_vel", 0.5)):
            file.create_group(f"acquisition/{container}").attrs["neurodata_type"] = "BehavioralTimeSeries"
            for i, finger in enumerate(["index", "mrs"]):
                if f"{container}/{finger}" == change.get("without"):
                    continue
                late = 0.003 if f"{container}/{finger}" == change.get("late") else 0.0
                data = scale * (np.arange(n_rows) ** 2 % 97 + 10 * i)
                series(file, f"acquisition/{container}/{finger}", data, "AU", timestamps=stamps + late)
        mask = change.get("mask", np.arange(n_rows) % 5 != 2)
        series(file, "acquisition/eval_mask", mask, "bool", timestamps=stamps)
        rows(
            file,
            "intervals/trials",
            start_time=[float(stamps[0]), float(stamps[3])],
            stop_time=[float(stamps[2]), float(stamps[-1])],
            tgt_loc=np.array([[0.25, 0.75], [0.5, 0.1]], dtype=np.float32),
        )
    return path


def h1_file(path: Path, *, spikes=None, n_rows=300, rate=0.02, offset=0.0, start=0.0, trial_num=True, **change) -> Path:
    """000954: 176 units without electrodes, (T, 7) kinematics whose rate is a period and whose offset is a start."""
    spikes = trains(176, n_rows * 0.02) if spikes is None else spikes
    clock = {"rate": rate, "offset": offset, "start": start}
    with h5py.File(path, "w") as file:
        header(
            file,
            subject="HumanPitt-held-out-calib",
            identifier="HumanPitt-held_out-calib_01-01-11:17_set1",
            start="1925-01-01T11:17:40-05:00",
        )
        units(file, spikes)
        position = np.arange(n_rows)[:, None] * 0.01 + np.arange(7)
        axes = "tx,ty,tz,rx,g1,g2,g3"
        series(file, "acquisition/OpenLoopKinematics", position, "arbitrary", about=axes, **clock)
        velocity = np.full((n_rows, 7), 0.01)
        series(file, "acquisition/OpenLoopKinematicsVelocity", velocity, "arbitrary", about=axes, **clock)
        number = np.repeat([1.0, 2.0, 5.0], [100, 50, n_rows - 150])
        if trial_num:
            series(file, "acquisition/TrialNum", number[: change.get("n_numbers", n_rows)], "arbitrary", **clock)
        series(file, "acquisition/eval_mask", np.arange(n_rows) >= 10, "bool", **clock)
        rows(file, "intervals/epochs", start_time=[0.0, 0.5], stop_time=[0.5, 2.5])
        file["intervals/epochs"].create_dataset("tags", data=["Reach", "Intertrial"], dtype=TEXT)
        file["intervals/epochs/tags_index"] = np.array([1, 2], dtype=np.uint8)
    return path


def h2_file(path: Path, **change) -> Path:
    """000950: binned counts and the sentences that were to be written."""
    stamps = np.concatenate([np.arange(50), 550 + np.arange(50)]) * 0.02
    with h5py.File(path, "w") as file:
        header(file, subject="T5-held-in-calib", identifier="T5_2022.05.18_held_in_calib")
        counts = np.random.default_rng(0).poisson(1.0, (100, 192)).astype(float)
        series(file, "acquisition/binned_spikes", counts, "int", timestamps=stamps)
        series(file, "acquisition/eval_mask", np.ones(100, bool), "bool", timestamps=stamps)
        cues = {"cue": ["a>sentence", "another"]} if change.get("cues", True) else {}
        rows(file, "intervals/trials", start_time=[0.0, 11.0], stop_time=[1.0, 12.0], block_num=[1, 1], **cues)
        if "cursor" in change:
            series(file, "processing/behavior/Position/cursor_pos", change["cursor"], "cm", timestamps=stamps)
    return path


def link_file(path: Path, *, width_ms=32, trial_rows=(40, 25, 60), gap_ms=5000, n_channels=96, **change) -> Path:
    """001201: counts and power of bins in ``analysis``, both with conversion 1e-6, one (N, 1) series a finger."""
    stamps, start = [], 1000.0
    for n in trial_rows:
        stamps.append(start + width_ms / 2 + width_ms * np.arange(n))
        start += width_ms * n + gap_ms
    stamps = np.concatenate(stamps) / 1000
    n_rows = len(stamps)
    rng = np.random.default_rng(change.get("seed", 0))
    counts = change.get("counts", rng.poisson(1.0, (n_rows, n_channels)).astype(np.int16))
    power = change.get("power", rng.uniform(5, 20, (n_rows, n_channels)))
    region = change.get("region", np.arange(n_channels)[::-1])
    with h5py.File(path, "w") as file:
        header(file, subject="Monkey N", identifier="2020-01-02_CO_nwb", start="2020-01-02T00:00:00+00:00")
        electrodes(file, ["Utah Array"] * n_channels)
        for name, data in (("ThresholdCrossings", counts), ("SpikingBandPower", power)):
            if name in change.get("without", ()):
                continue
            made = series(
                file,
                f"analysis/{name}",
                data,
                "volts",
                kind="ElectricalSeries",
                timestamps=stamps[: len(data)],
                conversion=1e-6,
            )
            made["electrodes"] = region
        for i, finger in enumerate(["index", "mrs"]):
            position = (0.3 + 0.1 * i + 0.001 * np.arange(n_rows))[:, None]
            about = "flexion, from fully extended (0) to fully flexed (1)"
            series(file, f"analysis/{finger}_position", position, "flexion units", about=about, timestamps=stamps)
            velocity = np.full((n_rows, 1), 0.001 * (i + 1))
            series(file, f"analysis/{finger}_velocity", velocity, "flexion units per time bin", timestamps=stamps)
        first = np.cumsum([0, *trial_rows[:-1]])
        last = np.cumsum(trial_rows) - 1
        rows(
            file,
            "intervals/trials",
            start_time=stamps[first],
            stop_time=stamps[last],
            trial_number=np.arange(len(first)),
            index_target_position=np.linspace(0.1, 0.9, len(first)),
            mrs_target_position=np.linspace(0.8, 0.2, len(first)),
            target_style=["CO"] * len(first),
        )
    return path


def bmi_file(path: Path, *, rate=60.0, n_rows=300, n_units=20, blocks=(190, 110), unit="cm", **change) -> Path:
    """000404: counts, cursor and the state of the task at one rate in ``processing/behavior``, some of it text."""
    rng = np.random.default_rng(0)
    counts = change.get("counts", rng.poisson(0.5, (n_rows, n_units)).astype(float))
    cursor = np.stack([np.arange(n_rows) * 0.01, 2 + np.sin(np.arange(n_rows) / 9)], axis=1)
    with h5py.File(path, "w") as file:
        header(file, subject="monk_g", identifier="MonkeyG_session0", session_id="session0")
        put = "processing/behavior"
        series(file, f"{put}/spike_counts", counts, "cnt", about="binned spike counts used for BMI control", rate=rate)
        short = change.get("short", 0)
        series(file, f"{put}/cursor", cursor[: n_rows - short], unit, about="2D cursor position (x, y) ", rate=rate)
        series(file, f"{put}/decoder_state", np.ones((n_rows, 5)), "cm, cm/sec", rate=rate)
        series(file, f"{put}/target_state", np.ones((n_rows, 5)), "cm", rate=rate)
        series(file, f"{put}/obs_details", np.array([b"na"] * n_rows), "text", rate=rate)
        series(file, f"{put}/update_bmi", np.ones(n_rows), "binary indicator", rate=rate)
        numbers = np.repeat(4558.0 + np.arange(len(blocks)), blocks)
        series(file, f"{put}/te_num", numbers[: change.get("n_numbers", n_rows)], "int", rate=rate)
        rows(file, "intervals/trials", start_time=[0.5, 2.0], stop_time=[1.5, 3.5])
    return path
