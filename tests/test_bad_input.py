"""Every class of unusable file: one clear error naming file and key, a raise of its own, nothing left behind."""

import functools
import gzip
import io
import json
import os
import re
import traceback
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from nwb_files import TEXT, counts_file, spikes_file
from nwb_layouts_a import h1_file, link_file, m1_file
from nwb_layouts_b import MAZE_TRIALS, maze_000070, spike_trains

import bci_adapt
from bci_adapt.data import any_file
from bci_adapt.data.prepare import inspect, prepare
from bci_adapt.data.session_files import read_session
from bci_adapt.errors import InputError

CURSOR = "processing/behavior/Position/cursor_pos"
COUNTS = "acquisition/ThresholdCrossings"
ELECTRODES = "general/extracellular_ephys/electrodes"
TIMES = np.arange(1, 2001) / 100.0
N = 4 * 200


def spikes(**change):
    """A recipe: spikes and a cursor, with one thing changed."""
    return lambda path: spikes_file(path, **change)


def counts(**change):
    return lambda path: counts_file(path, **change)


def edited(edit, make=spikes_file, **change):
    """A recipe: a sound file in which `edit` spoils something."""

    def write(path):
        make(path, **change)
        with h5py.File(path, "a") as file:
            edit(file)

    return write


def put(key, value, make=spikes_file, **change):
    """A recipe: `value` (data, or options of `create_dataset`) in place of the dataset at `key`."""

    def edit(file):
        if key in file:
            del file[key]
        file.create_dataset(key, **(value if isinstance(value, dict) else {"data": value}))

    return edited(edit, make, **change)


def mark(key, name, value, make=spikes_file):
    return edited(lambda file: file[key].attrs.__setitem__(name, value), make)


def cut(at):
    """The first `at` bytes of a sound file, or all but the last -`at`."""

    def write(path):
        whole = spikes_file(path).read_bytes()
        path.write_bytes(whole[:at])

    return write


def loop_of_folders(path):
    folder = path.parent / "loop"
    folder.symlink_to(folder)
    return folder / path.name


def header(version, how="attrs"):
    def write(path):
        with h5py.File(path, "w") as file:
            if how == "attrs":
                file.attrs["nwb_version"] = version
            else:
                file["nwb_version"] = version

    return write


def unwritten(key, shape, dtype="f8", **options):
    """A recipe: a kilobyte of file that claims any amount of numbers."""
    return put(key, {"shape": shape, "dtype": dtype, **options})


def damaged_type(file):
    """Floats with an exponent bias that no number type has, as one flipped byte makes them."""
    kind = h5py.h5t.IEEE_F64LE.copy()
    kind.set_ebias(2**40)
    del file[f"{CURSOR}/data"]
    h5py.h5d.create(file[CURSOR].id, b"data", kind, h5py.h5s.create_simple((2000, 2)))


def damaged_attribute(file):
    """The same of the number that every value of the cursor is multiplied by."""
    kind, holder = h5py.h5t.IEEE_F64LE.copy(), file[f"{CURSOR}/data"]
    kind.set_ebias(2**40)
    del holder.attrs["conversion"]
    h5py.h5a.create(holder.id, b"conversion", kind, h5py.h5s.create(h5py.h5s.SCALAR))


def damaged_header(path):
    """Nothing is left of what says that the cursor is there."""
    spikes_file(path)
    with h5py.File(path) as file:
        at = h5py.h5o.get_info(file[CURSOR].id).addr
    whole = bytearray(path.read_bytes())
    whole[at : at + 16] = bytes(16)
    path.write_bytes(whole)


def stored_elsewhere(file):
    del file[f"{CURSOR}/data"]
    file[CURSOR].create_dataset("data", (2000, 2), "f8", external=[("/etc/hostname", 0, 32_000)])


def virtual(file):
    layout = h5py.VirtualLayout((2000, 2), "f8")
    layout[:] = h5py.VirtualSource("other.h5", "data", (2000, 2))
    del file[f"{CURSOR}/data"]
    file[CURSOR].create_virtual_dataset("data", layout)


def doubling(file):
    """Seventeen groups that lead to 131,072 places."""
    group = file.create_group("general/a")
    for _ in range(17):
        below = group.create_group("a")
        group["b"] = below
        group = below


def many(file):
    group = file.create_group("general/many")
    for i in range(100_001):
        group.id.links.create_soft(b"%d" % i, b"/nowhere")


def damaged_chunk(key):
    """A recipe: a compressed dataset one chunk of which is not what was written."""

    def write(path):
        spikes_file(path)
        with h5py.File(path, "a") as file:
            values = file[key][:]
            del file[key]
            made = file.create_dataset(key, data=values, chunks=True, compression="gzip")
            at = made.id.get_chunk_info(0).byte_offset
        whole = bytearray(path.read_bytes())
        whole[at : at + 16] = bytes(16)
        path.write_bytes(whole)

    return write


def nested(file):
    group = file.create_group("general/deep")
    for _ in range(2000):
        group = group.create_group("d")


def other_series(file):
    """One series of which nothing says that it is movement."""
    file["acquisition/other/data"] = np.zeros(2000)
    file["acquisition/other/timestamps"] = TIMES


def endless_text(path):
    """A text of a mebibyte that stands once in the file and that each of a thousand rows points to."""
    spikes_file(path)
    with h5py.File(path, "a") as file:
        del file["intervals/trials"]
        trials = file.create_group("intervals/trials")
        trials["id"] = np.arange(1000)
        text = trials.create_dataset("result", data=["x" * 2**20, *[""] * 999], dtype=TEXT)
        at = text.id.get_offset()
    whole = bytearray(path.read_bytes())
    whole[at : at + 16_000] = bytes(whole[at : at + 16]) * 1000
    path.write_bytes(whole)


def without(key):
    return lambda file: file.__delitem__(key)


def relink(file, key, to):
    del file[key]
    file[key] = h5py.SoftLink(to)


def cycle(file):
    """Two links that lead to one another."""
    relink(file, f"{CURSOR}/data", f"/{CURSOR}/back")
    file[f"{CURSOR}/back"] = h5py.SoftLink(f"/{CURSOR}/data")


def group_for_data(file):
    del file[f"{CURSOR}/data"]
    file[CURSOR].create_group("data")


def no_rate(file):
    del file[f"{COUNTS}/starting_time"].attrs["rate"]


def empty_units(file):
    for name in ("id", "spike_times", "spike_times_index", "electrodes", "electrodes_index"):
        del file[f"units/{name}"]
        file[f"units/{name}"] = np.zeros(0, int)


def same_channels(file):
    """Two electrodes that nothing tells apart."""
    table = file[ELECTRODES]
    table["id"][...] = 7
    table["label"][...] = "elec"


SORTED = np.sort(np.random.default_rng(0).uniform(0, 20.0, (4, 200)), axis=1)


def spoiled(change):
    """Spike times of the four units (4, 200), changed in place by `change`, one after the other."""
    times = SORTED.copy()
    change(times)
    return times.ravel()


def reset(times):
    """Half way through the recording the clock starts over."""
    times[:, 100:] = times[:, :100]


def shuffle(times):
    np.random.default_rng(1).permuted(times, axis=1, out=times)


def huge_attribute(path):
    counts_file(path)
    with h5py.File(path, "a", libver="latest") as file:  # above 64 KiB an attribute is stored apart
        del file[f"{COUNTS}/starting_time"]
        file[f"{COUNTS}/starting_time"] = 0.0
        file[f"{COUNTS}/starting_time"].attrs["rate"] = np.zeros(2**18)


def compound(n):
    return np.zeros(n, dtype=[("x", "f8"), ("y", "f8")])


def huge_chunk(file):
    del file[f"{CURSOR}/timestamps"]
    made = file[CURSOR].create_dataset("timestamps", (2000,), "f8", maxshape=(None,), chunks=(2**28 + 1,))
    assert made.id.get_storage_size() == 0


CASES: dict[str, Any] = {
    # opening
    "missing": (lambda path: None, "no such file"),
    "folder": (lambda path: path.mkdir(), "not a file"),
    "folder / pipe": (lambda path: os.mkfifo(path), "not a file"),
    "empty file": (lambda path: path.touch(), r"empty \(0 bytes\); fetch it again"),
    **{
        f"truncated / {at} bytes": (cut(at), "truncated or damaged; fetch it again")
        for at in (8, 40, 100, 600, 20_000, -1000, -1)
    },
    "not HDF5": (lambda path: path.write_text("not NWB"), "not an HDF5 file"),
    "not HDF5 / web page": (lambda path: path.write_text("<!doctype html><h1>404</h1>"), "not an HDF5 file"),
    "not HDF5 / compressed": (
        lambda path: path.write_bytes(gzip.compress(spikes_file(path).read_bytes())),
        "not an HDF5 file",
    ),
    "other HDF5": (lambda path: h5py.File(path, "w").close(), "not NWB"),
    "other version / nothing": (header(h5py.Empty("S5")), "only NWB 2"),
    "other version / 1.0 in a dataset": (header("NWB-1.0.6", "data"), "NWB-1.0.6; only NWB 2"),
    "other version / many": (header(np.zeros(1000), "data"), "NWB-1; only NWB 2"),
    "other version / 1.1": (header("1.1.0"), "NWB 1.1.0; only NWB 2"),
    "other version / future": (header("3.0"), "NWB 3.0; only NWB 2"),
    "other version / words": (header("latest"), "NWB latest; only NWB 2"),
    "symlink loop": (lambda path: path.symlink_to(path), "cannot be opened"),
    "symlink loop / folder": (loop_of_folders, "cannot be opened"),
    # where objects lead
    "external link": (
        edited(lambda file: file.__setitem__("acquisition/elsewhere", h5py.ExternalLink("/etc/hostname", "/data"))),
        "acquisition/elsewhere is a link to another file",
    ),
    "other storage": (edited(stored_elsewhere), "cursor_pos/data is stored in another file"),
    "other storage / virtual": (edited(virtual), "cursor_pos/data is stored in another file"),
    "too many objects": (edited(many), "more than 100,000"),
    "too many objects / few but everywhere": (edited(doubling), "more than 100,000"),
    "too deep": (edited(nested), "deeper than a path of 1000"),
    "too deep / name": (edited(lambda file: file.create_group("n" * 2000)), "deeper than a path of 1000"),
    "dangling link": (edited(lambda file: relink(file, f"{CURSOR}/data", "/nowhere")), "cursor_pos is missing"),
    "dangling link / cycle": (edited(cycle), "cursor_pos is missing"),
    "group for a dataset": (edited(group_for_data), "cursor_pos/data is a group, a dataset"),
    # attributes and types
    "huge attribute": (huge_attribute, "starting_time has an attribute rate of 2,097,152 bytes"),
    "damaged type": (edited(damaged_type), "cursor_pos/data has a type that cannot be read"),
    "damaged attribute": (edited(damaged_attribute), "cursor_pos/data has an unreadable attribute conversion"),
    "damaged object": (damaged_header, "behavior/Position/cursor_pos cannot be opened .* is the file complete"),
    "no numbers / compound": (put(f"{CURSOR}/data", compound(2000)), "cursor_pos/data must hold numbers"),
    "no numbers / text": (put(f"{CURSOR}/data", {"data": ["x"] * 2000, "dtype": TEXT}), "data must hold numbers"),
    "no numbers / complex": (put(f"{CURSOR}/data", np.zeros((2000, 2), complex)), "data must hold numbers"),
    "no numbers / ragged": (
        put(f"{CURSOR}/data", {"shape": (2000,), "dtype": h5py.vlen_dtype("f8")}),
        "data must hold numbers",
    ),
    "no numbers / spike times": (put("units/spike_times", compound(N)), "spike_times must hold numbers"),
    "no numbers / complex spike times": (put("units/spike_times", np.zeros(N, complex)), "must hold numbers"),
    "no numbers / electrode ids": (
        put(f"{ELECTRODES}/id", {"data": ["a"] * 6, "dtype": TEXT}),
        "electrodes/id must hold numbers",
    ),
    # sizes
    "eight gigabytes": (
        unwritten(f"{CURSOR}/data", (2**29, 2), "i1", chunks=(2**20, 2)),
        "cursor_pos/data claims shape",
    ),
    "eight gigabytes / beyond 64 bits": (
        unwritten(f"{CURSOR}/data", (2**32, 2**32), chunks=(1024, 1024)),
        "cursor_pos/data claims shape",
    ),
    "eight gigabytes / spike times": (
        unwritten("units/spike_times", (2**30,), chunks=(2**20,)),
        "spike_times claims shape",
    ),
    "never written": (unwritten(f"{CURSOR}/data", (2000, 2), chunks=(100, 2)), "cursor_pos/data of shape .* never"),
    "never written / spike times": (unwritten("units/spike_times", (N,), chunks=(100,)), "spike_times of shape"),
    "damaged chunk": (damaged_chunk(f"{CURSOR}/data"), "cursor_pos/data cannot be read"),
    "damaged chunk / spike times": (damaged_chunk("units/spike_times"), "spike_times cannot be read"),
    "damaged chunk / timestamps": (damaged_chunk(f"{CURSOR}/timestamps"), "timestamps cannot be read"),
    "holds nothing": (put("units/spike_times", h5py.Empty("f8")), "spike_times is empty"),
    "huge chunk": (edited(huge_chunk), "cursor_pos/timestamps is stored in chunks"),
    "a billion trials": (
        unwritten("intervals/trials/id", (2**40,), "i8", chunks=(1000,)),
        "intervals/trials/id claims 1,099,511,627,776 rows",
    ),
    "a million units": (
        put("units/spike_times_index", {"data": np.full(200_000, N), "compression": "gzip"}),
        "spike_times_index claims 200,000 units",
    ),
    "a billion texts": (
        unwritten("session_description", (2**28,), "S1", chunks=(1000,)),
        "session_description claims .* texts",
    ),
    "endless text": (endless_text, "trials/result holds more than 64 MiB of text"),
    "a thousand axes": (
        put(f"{CURSOR}/data", {"data": np.zeros((2, 2**20)), "compression": "gzip"}, timestamps=TIMES[:2]),
        "1,048,576 columns",
    ),
    "slow clock / a billion bins": (spikes(), "cannot fill bins of 1e-06 s", 1e-6),
    "a billion bins": (
        spikes(kinematics=False, spike_times=spoiled(lambda times: times.__setitem__((0, -1), 1e9))),
        "spike_times span 1e.09 s",
    ),
    # spikes
    "no layout / no units": (edited(lambda file: file.__delitem__("units")), "no units with spike times"),
    "no layout / no spike times": (
        edited(lambda file: file.__delitem__("units/spike_times")),
        "no units with spike times",
    ),
    "no spikes": (spikes(spike_times=np.zeros(0), spike_times_index=np.zeros(4, int)), "spike_times holds no spikes"),
    "no spikes and no clock": (
        spikes(kinematics=False, spike_times=np.zeros(0), spike_times_index=np.zeros(4, int)),
        "spike_times holds no times",
    ),
    "no spikes / no units": (edited(empty_units), "spike_times holds no spikes"),
    "no index": (edited(lambda file: file.__delitem__("units/spike_times_index")), "spike_times_index is missing"),
    "NaN spike": (
        spikes(spike_times=spoiled(lambda times: times.__setitem__((1, 50), np.nan))),
        "spike_times has 1 values",
    ),
    "NaN spike / infinite": (
        spikes(spike_times=spoiled(lambda times: times.__setitem__((1, -1), np.inf))),
        "spike_times has 1 values",
    ),
    "NaN spike / the year 32,000": (
        spikes(spike_times=spoiled(lambda times: times.__setitem__((1, -1), 1e12))),
        "spike_times has 1 values",
    ),
    "no numbers / yes and no": (put("units/spike_times", np.ones(N, bool)), "spike_times must hold numbers"),
    "no numbers / a cursor that says yes": (put(f"{CURSOR}/data", np.ones((2000, 2), bool)), "must hold numbers"),
    "no numbers / start of a trial": (
        put("intervals/trials/start_time", {"data": ["a", "b"], "dtype": TEXT}),
        "start_time must hold numbers",
    ),
    "table of spike times": (spikes(spike_times=np.zeros((N, 2))), "spike_times must be times in one dimension"),
    "unsorted spikes": (spikes(spike_times=spoiled(shuffle)), "spike_times are out of order"),
    "reset clock": (spikes(spike_times=spoiled(reset)), "spike_times start over in 4 units"),
    "milliseconds": (spikes(spike_times=SORTED.ravel() * 1000), "spike_times spans .* another unit"),
    "milliseconds / samples": (spikes(spike_times=np.rint(SORTED.ravel() * 30_000)), "another unit"),
    "another clock": (spikes(spike_times=SORTED.ravel() + 1.4e9), "spike_times lie between .* never meet"),
    "index outside": (spikes(spike_times_index=np.array([200, 400, 600, 900])), "spike_times_index does not divide"),
    "index outside / decreasing": (spikes(spike_times_index=np.array([400, 200, 600, N])), "does not divide"),
    "index outside / negative": (spikes(spike_times_index=np.array([-5, 200, 600, N])), "does not divide"),
    "index outside / short": (spikes(spike_times_index=np.array([200, 400, 600])), "does not divide"),
    "index of fractions": (
        spikes(spike_times_index=np.array([200.5, 400, 600, N])),
        "spike_times_index must hold whole",
    ),
    "index of fractions / NaN": (spikes(spike_times_index=np.array([200, np.nan, 600, N])), "must hold whole"),
    "index of fractions / unsigned": (
        spikes(spike_times_index=np.array([200, 400, 2**64 - 1, N], np.uint64)),
        "must hold whole",
    ),
    "scalar index": (spikes(spike_times_index=np.int64(N)), "spike_times_index must be one end per row"),
    "scalar index / electrodes": (put("units/electrodes_index", 4), "electrodes_index must be one end per row"),
    "scalar index / observed": (
        put("units/obs_intervals_index", 4, obs_intervals=np.array([[0.0, 20.0]])),
        "obs_intervals_index must be one end per row",
    ),
    # electrodes
    "electrode outside": (spikes(electrodes=np.array([0, 1, 2, 99])), "units/electrodes must point"),
    "electrode outside / negative": (spikes(electrodes=np.array([0, 1, 2, -1])), "units/electrodes must point"),
    "electrode outside / no table": (edited(lambda file: file.__delitem__(ELECTRODES)), "units/electrodes must point"),
    "electrode index": (put("units/electrodes_index", np.array([1, 2, 2, 4])), "electrodes_index does not give"),
    "electrode index / outside": (put("units/electrodes_index", np.array([1, 2, 3, 9])), "does not give"),
    "one electrode id": (put(f"{ELECTRODES}/id", 3), "electrodes/id must have one value per row"),
    "one electrode id / table": (put(f"{ELECTRODES}/id", np.zeros((6, 2), int)), "must have one value per row"),
    "short column": (
        put(f"{ELECTRODES}/label", {"data": ["a", "b"], "dtype": TEXT}),
        r"label must have one value per row \(6\)",
    ),
    "same channel twice": (edited(same_channels), "labels of channel must be unique"),
    "no layout / one channel": (counts(n_channels=1), "at least two"),
    "one channel that spikes / one unit": (spikes(n_units=1), "at least two"),
    "one unit": (edited(without("units/electrodes"), n_units=1), "units offers 1 channel"),
    "one channel that spikes": (
        counts(counts=np.tile(np.array([[1, 0, 0, 0]], np.uint16), (400, 1))),
        "1 of 4 channels ever spike",
    ),
    # observed intervals
    "observed / NaN": (spikes(obs_intervals=np.array([[0.0, np.nan]])), "obs_intervals must be finite pairs"),
    "observed / shape": (spikes(obs_intervals=np.zeros((4, 3))), "obs_intervals must be finite pairs"),
    "observed index": (
        put("units/obs_intervals_index", np.array([1, 2, 3, 9]), obs_intervals=np.array([[0.0, 20.0]])),
        "obs_intervals_index does not divide",
    ),
    "never observed": (spikes(obs_intervals=np.array([[50.0, 60.0]])), "neurons are observed in no bin"),
    # clocks
    "timestamps length": (spikes(timestamps=TIMES[:-5]), "cursor_pos/timestamps must be .* one per sample"),
    "timestamps length / (2, N)": (spikes(timestamps=np.stack([TIMES, TIMES])), "timestamps must be"),
    "timestamps length / none": (spikes(timestamps=np.zeros(0)), "timestamps must be"),
    "NaN timestamp": (spikes(timestamps=np.where(TIMES == 5, np.nan, TIMES)), "timestamps has 1 values"),
    "NaN timestamp / infinite": (spikes(timestamps=np.where(TIMES >= 5, np.inf, TIMES)), "timestamps has 1501 values"),
    "NaN timestamp / the year 32,000": (
        spikes(timestamps=np.where(TIMES == 20, 1e12, TIMES)),
        "timestamps has 1 values",
    ),
    "slow clock": (spikes(timestamps=TIMES * 1000.0), "cannot fill bins"),
    "standing clock": (spikes(timestamps=np.ones(2000)), "cursor_pos has times that never rise"),
    "standing clock / backwards": (spikes(timestamps=TIMES[::-1]), "never rise"),
    "shorter than a bin": (spikes(timestamps=TIMES * 0.1), "cursor_pos does not last for one bin", 5.0),
    "no clock": (edited(lambda file: file.__delitem__(f"{CURSOR}/timestamps")), "neither timestamps nor"),
    "negative rate": (mark(f"{COUNTS}/starting_time", "rate", -20.0, counts_file), "positive rate"),
    "negative rate / zero": (mark(f"{COUNTS}/starting_time", "rate", 0.0, counts_file), "positive rate"),
    "no number / rate": (mark(f"{COUNTS}/starting_time", "rate", "x", counts_file), "attribute rate that is one"),
    "no number / rate / NaN": (
        mark(f"{COUNTS}/starting_time", "rate", np.nan, counts_file),
        "attribute rate that is one",
    ),
    "no number / rate / complex": (
        mark(f"{COUNTS}/starting_time", "rate", 20j, counts_file),
        "attribute rate that is one",
    ),
    "no number / rate / many": (
        mark(f"{COUNTS}/starting_time", "rate", np.ones(3), counts_file),
        "attribute rate that is",
    ),
    "no number / rate / absent": (edited(no_rate, counts_file), "attribute rate that is one"),
    "start": (edited(lambda file: file[f"{COUNTS}/starting_time"].__setitem__((), np.nan), counts_file), "one time in"),
    "start / huge": (counts(start=1e300), "starting_time must be one time in seconds"),
    "rate that is no whole bins": (counts(rate=19.7), "not whole microseconds"),
    "rate of years": (counts(rate=1e-9), "longer than any recording"),
    # values
    "start of a trial": (put("intervals/trials/stop_time", np.zeros((2, 2))), "stop_time must be one time per trial"),
    "all NaN / infinite": (spikes(position=np.full((2000, 2), -np.inf)), "no value that is not NaN"),
    "all NaN / beyond any unit": (spikes(conversion=1e300), "no value that is not NaN"),
    "all NaN": (spikes(position=np.full((2000, 2), np.nan)), "cursor_pos/data has no value that is not NaN"),
    "conversion zero": (mark(f"{CURSOR}/data", "conversion", 0.0), "conversion 0"),
    "no number / conversion": (mark(f"{CURSOR}/data", "conversion", "a lot"), "attribute conversion that is one"),
    "no number / offset": (mark(f"{CURSOR}/data", "offset", np.nan), "attribute offset that is one"),
    "no samples": (spikes(position=np.zeros((0, 2)), timestamps=np.zeros(0)), "cursor_pos/data must be"),
    "no samples / cube": (spikes(position=np.zeros((2000, 2, 2))), "cursor_pos/data must be"),
    "no layout / no target": (edited(other_series, kinematics=False), "other is surely a kinematic: name one"),
    "fractions": (counts(counts=np.full((400, 4), 0.5)), "ThresholdCrossings/data must hold whole counts"),
    "fractions / NaN": (counts(counts=np.full((400, 4), np.nan)), "must hold whole counts"),
    "negative counts": (counts(counts=np.full((400, 4), -1)), r"must hold counts in 0\.\.65535"),
    "negative counts / huge": (counts(counts=np.full((400, 4), 70_000)), r"must hold counts in 0\.\.65535"),
    "another grid": (counts(position_rate=50.0), "cursor_pos must stand on the grid"),
    # text
    "no text": (put("session_description", compound(3)), "session_description must be text"),
    "no text / reference": (put("session_description", h5py.Reference()), "session_description must be text"),
    # bin widths, which are no part of a file
    **{f"bin width / {each}": (spikes(), "bin_s must be a positive", each) for each in (np.nan, -0.02, 0.0, np.inf)},
    "bin of milliseconds": (spikes(), "longer than any movement", 50.0),
    "fraction of a microsecond": (spikes(), "bin_s must be a whole number of microseconds", 1e-7),
}
ARGUMENTS = ("bin width", "bin of milliseconds", "fraction of a microsecond")


@pytest.fixture(scope="module")
def refusal(tmp_path_factory):
    """The error of a case, the line that raised it, and what was left behind; each case is made once."""

    @functools.cache
    def refuse(name):
        make, message, bin_s = (*CASES[name], 0.05)[:3]
        folder = tmp_path_factory.mktemp("case")
        path = make(folder / "session.nwb")
        path, out = path if isinstance(path, Path) else folder / "session.nwb", folder / "out"
        out.mkdir()
        with pytest.raises(InputError, match=message) as caught:
            prepare(path, bin_s, out / "session.nc")
        first = caught.value
        while isinstance(first.__cause__, InputError):
            first = first.__cause__
        frames = traceback.extract_tb(first.__traceback__)
        ours = [frame for frame in frames if Path(frame.filename).is_relative_to(Path(bci_adapt.__file__).parent)]
        return str(caught.value), (ours[-1].filename, ours[-1].lineno), list(out.iterdir())

    return refuse


@pytest.mark.parametrize("name", CASES)
def test_one_clear_error_and_nothing_left_behind(refusal, name):
    message, _, left = refusal(name)
    assert left == []
    assert "session.nwb: " in message or name.startswith(ARGUMENTS)
    assert message.count("session.nwb") <= 2
    assert message.isprintable()
    assert len(message) < 3000


def test_every_class_has_a_raise_of_its_own(refusal):
    """What is wrong is said where it is found: no two classes of faults share the line that refuses them."""
    classes = {}
    for name in CASES:
        classes.setdefault(refusal(name)[1], set()).add(name.partition(" / ")[0])
    assert [names for names in classes.values() if len(names) > 1] == []
    assert len(classes) > 60


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_file_that_may_not_be_read(tmp_path):
    path = spikes_file(tmp_path / "session.nwb")
    path.chmod(0)
    with pytest.raises(InputError, match=r"session\.nwb: cannot be opened \(Permission denied\)"):
        prepare(path, 0.05, tmp_path / "out" / "session.nc")
    assert not (tmp_path / "out").exists()


HOSTILE = "<script>alert(1)</script> [red]loud[/] \x1b[2J\x07\u202eevil"


def odd(file):
    """All that is strange and harms nothing: links to nowhere, broken extensions, bytes that are no text."""
    acquisition = file.create_group("acquisition")
    for i in range(3000):
        acquisition.id.links.create_soft(b"gone%d" % i, b"/nowhere")
    acquisition["round"], acquisition["about"] = (
        h5py.SoftLink("/acquisition/about"),
        h5py.SoftLink("/acquisition/round"),
    )
    file.attrs[".specloc"] = file["units"].ref
    file.create_group("specifications/ndx-broken/0.1")["namespace"] = np.bytes_(b"\xff{ this is no JSON")
    file["specifications/elsewhere"] = h5py.ExternalLink("other.h5", "/")
    gone = file.create_group("scratch/gone")
    file["units/electrode_group"] = np.array([gone.ref] * 4, h5py.ref_dtype)
    file["units"].attrs["table"] = gone.ref
    del file["scratch/gone"]
    file[CURSOR].attrs["description"] = HOSTILE
    file[f"{ELECTRODES}/note"] = np.array([b"\xff\xfe\x00\x1b"] * 6)
    for name, text in {
        "session_description": HOSTILE,
        f"{ELECTRODES}/label": [f"\x1b[31melec{i}" for i in range(6)],
    }.items():
        del file[name]
        file.create_dataset(name, data=text, dtype=TEXT)


def test_what_is_odd_and_harmless_changes_nothing(call, tmp_path):
    path = tmp_path / "session.nwb"
    sound = prepare(spikes_file(path), 0.05)
    edited(odd)(path)
    prepare(path, 0.05, tmp_path / "session.nc")
    session = read_session(tmp_path / "session.nc")
    for name in ("counts", "position", "velocity", "valid", "trial_start_s", "n_spikes"):
        np.testing.assert_array_equal(session[name].values, sound[name].values)
    assert session["channel"].values.tolist() == [f"M1/[31melec{i}" for i in range(4)]
    warnings = json.loads(session.attrs["warnings"])
    assert len(warnings) < 30
    assert "2982 more links lead to nothing or back" in warnings
    code, out, _ = call("inspect", path)
    assert code == 0
    assert "<script>alert(1)</script> [red]loud[/] [2J evil" in " ".join(out.split())
    assert not set(out) & {"\x1b", "\x07", "\u202e"}


def two_columns(file):
    key = "acquisition/preprocessed_emg/FDI/data"
    values = file[key][:]
    del file[key]
    file[key] = np.stack([values, values], axis=1)


def replaced(key, value):
    def edit(file):
        del file[key]
        file[key] = value

    return edit


TRIALS = "intervals/trials"
OTHER_LAYOUTS = {
    "a muscle of two columns": (m1_file, two_columns, "falcon_m1", "FDI/data must be one column of emg, found 2"),
    "a muscle without a clock": (
        m1_file,
        without("acquisition/preprocessed_emg/FDI/timestamps"),
        "falcon_m1",
        "FDI has neither timestamps nor",
    ),
    "no movement": (h1_file, without("acquisition/OpenLoopKinematics/data"), "falcon_h1", "data is missing"),
    "an offset of words": (
        h1_file,
        lambda file: file["acquisition/OpenLoopKinematics/data"].attrs.__setitem__("offset", "late"),
        "falcon_h1",
        "attribute offset that is one",
    ),
    "targets of words": (
        link_file,
        replaced(f"{TRIALS}/index_target_position", np.bytes_([b"left"] * 3)),
        "link",
        None,
    ),
    "rows that stand still": (
        link_file,
        replaced("analysis/ThresholdCrossings/timestamps", np.ones(125)),
        "link",
        "ThresholdCrossings/timestamps never rise",
    ),
    "trials judged twice": (
        lambda path: maze_000070(path, spike_trains(4, MAZE_TRIALS)),
        replaced(f"{TRIALS}/task_success", np.ones((len(MAZE_TRIALS), 2))),
        "churchland_maze",
        None,
    ),
}


@pytest.mark.parametrize("name", OTHER_LAYOUTS)
def test_faults_in_files_of_one_layout(tmp_path, name):
    """A column beside the spikes and the movement is left out when it is odd; the movement itself is not."""
    make, edit, layout, message = OTHER_LAYOUTS[name]
    path = make(tmp_path / "session.nwb") or tmp_path / "session.nwb"
    with h5py.File(path, "a") as file:
        edit(file)
    bin_s = {"link": 0.064, "churchland_maze": 0.05}.get(layout, 0.04)
    if message is None:
        assert prepare(path, bin_s, layout=layout).attrs["layout"] == layout
        return
    with pytest.raises(InputError, match=rf"session\.nwb: .*{message}"):
        prepare(path, bin_s, layout=layout)


def test_every_file_of_an_old_schema_is_described_and_its_lack_named(real_data):
    """Files of pynwb's own tests, of schema 1.0.2 to 2.5 by their names: none holds spikes."""
    files = sorted((real_data / "nwb_real" / "pynwb_back_compat").glob("*.nwb"))
    for path in files:
        found = inspect(path)
        assert found.nwb_version.startswith("2.")
        assert found.chosen is None
        with pytest.raises(InputError, match=rf"{re.escape(path.name)}: no layout fits .*no units with spike times"):
            prepare(path, 0.05)
    assert len(files) >= 20


def npz(**change):
    """A recipe: spikes and a cursor as arrays, with some exchanged."""
    given = {"spikes": SORTED.ravel(), "spike_unit": np.repeat(range(4), 200), "target": np.ones((2000, 2))}
    return lambda path: np.savez(path, **{**given, "target_time_s": TIMES, **change})


def packed(shape, n_bytes, cut=None, unpacked=None):
    """A recipe: an archive of one array that claims `shape`, and `unpacked` bytes; its last -`cut` bytes are lost."""

    def write(path):
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"shape": shape, "fortran_order": False, "descr": "<f8"})
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("spikes.npy", header.getvalue() + bytes(n_bytes))
        whole = bytearray(path.read_bytes()[:cut])
        if unpacked is not None:
            at = whole.rindex(b"PK\x01\x02") + 24
            whole[at : at + 4] = unpacked.to_bytes(4, "little")
        path.write_bytes(whole)

    return write


ARRAYS: dict[str, Any] = {
    "empty": (lambda path: path.touch(), "a file of arrays .* expected"),
    "no archive": (lambda path: path.write_bytes(b"PK\x03\x04 and no more"), "a file of arrays .* expected"),
    "truncated": (packed((800,), 6400, cut=-40), "a file of arrays .* expected"),
    "eight terabytes": (packed((2**40,), 8), "claims 8,796,093,022,208 bytes"),
    "fewer values than claimed": (packed((800,), 80), "claims 6,400 bytes, .* holds 80"),
    "unpacks to much": (packed((800,), 6400, unpacked=0xF0000000), "unpacks to 4,026,531,840 bytes, at most"),
    "text among arrays": (npz(notes="hello"), "notes"),
    "text for times": (npz(spikes=np.array(["a"] * 800)), "spikes must hold numbers"),
    "numbers for text": (npz(session_start=np.zeros(3)), "session_start must hold text"),
    "numbers for names": (npz(axes=np.arange(2)), "axes must hold text"),
    "no channel of each spike": (npz(spikes=SORTED.ravel(), spike_unit=np.array(3)), "spike_unit must be a whole"),
    "a billion channels": (npz(spike_unit=np.full(800, 2**40)), "spike_unit must be a channel below"),
    "negative channel": (npz(spike_unit=np.full(800, -1)), "spike_unit must not be negative"),
    "NaN times": (npz(spikes=np.full(800, np.nan)), "spikes must be finite times"),
    "times of the year 32,000": (npz(spikes=np.full(800, 1e12)), "spikes must be finite times"),
    "times of the target": (npz(target_time_s=TIMES[:5]), "target_time_s must be"),
    "no channel at all": (lambda path: np.savez(path, spikes=SORTED.ravel()), "one array of times per channel"),
    "fractions": (lambda path: np.savez(path, counts=np.full((40, 4), 0.5)), "counts must be whole numbers"),
    "no counts": (lambda path: np.savez(path, counts=np.zeros((0, 4))), "counts must be .* not empty"),
    "ends of bins": (
        lambda path: np.savez(path, counts=np.ones((40, 4)), target_time_s=np.ones(7)),
        "target_time_s must be .* the end of each bin",
    ),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_in_a_file_are_judged_alike(tmp_path, name):
    make, message = ARRAYS[name]
    make(tmp_path / "session.npz")
    with pytest.raises(InputError, match=rf"session.*{message}"):
        any_file.read(tmp_path / "session.npz", 0.05)


def test_an_unknown_layout_names_the_nearest(tmp_path):
    path = counts_file(tmp_path / "a.nwb")
    with pytest.raises(InputError, match=re.escape("did you mean 'wrist'")):
        prepare(path, 0.05, tmp_path / "out" / "session.nc", layout="wrst")
    assert not (tmp_path / "out").exists()


CONFIG = """
name = "two"
stream_s = 10.0
min_held_out_s = 5.0
[source]
kind = "folder"
[[pairs]]
source = 1
targets = [2]
[network]
cells = ["tanh"]
[[arms]]
rule = "immediate"
optimizer = "rmsprop"
learning_rate = 1e-3
"""


def test_sessions_with_other_channels_are_refused_before_anything_is_fitted(call, tmp_path, monkeypatch):
    monkeypatch.setenv("BCI_ADAPT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "config.toml").write_text(CONFIG)
    (tmp_path / "data").mkdir()
    for name, n_channels in (("first", 4), ("second", 5)):
        path = counts_file(tmp_path / "data" / f"{name}.nwb", n_channels=n_channels)
        with h5py.File(path, "a") as file:
            file["general/session_id"][()] = name
    code, out, err = call("run", tmp_path / "config.toml", "--data", tmp_path / "data", "--workers", 0)
    assert (code, out) == (2, "")
    assert "sub-T_ses-first (4) and sub-T_ses-second (5) differ" in err
    assert "M1/elec4" in err
    assert not (tmp_path / "cache" / "runs").exists()
    assert not list((tmp_path / "cache").rglob("*.part"))
