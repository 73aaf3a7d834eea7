"""The benchmark of preparation: what it finds, that a rival must count the same, and what makes preparation fast.

No figure is judged.
"""

import io
import json

import h5py
import numpy as np
import pytest
from nwb_files import spikes_file
from rich.console import Console

from bci_adapt.cli.bench import archive as bench_archive
from bci_adapt.cli.bench import data as bench_data
from bci_adapt.data import faults, nwb
from bci_adapt.data.layouts import grids, reading
from bci_adapt.data.prepare import prepare
from bci_adapt.errors import InputError


@pytest.fixture(scope="module")
def found():
    return bench_data.data(quick=True)


@pytest.fixture
def path(tmp_path):
    bench_data.write_file(tmp_path / "plain.nwb", bench_data.QUICK)
    return tmp_path / "plain.nwb"


def test_everything_is_measured_and_every_aim_judged(found):
    ours = {"raw", "prepare, no digest", "digest", "prepare"}
    assert {(row["file"], row["what"]) for row in found["times"]} == {
        *((stored, what) for stored in (bench_data.PLAIN, bench_data.GZIP) for what in ours),
        (bench_data.PLAIN, bench_data.RIVAL),
        (bench_data.PLAIN, bench_data.RIVAL_INFORMED),
    }
    assert all(0 < row["best_s"] <= row["median_s"] for row in found["times"])
    assert len(found["aims"]) == 11
    for row in found["aims"]:
        assert row["met"] == (row["value"] <= row["limit"] if row["at_most"] else row["value"] >= row["limit"])
    assert min(found["memory"].values()) > 0
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_aims_are_ratios_of_the_fastest(found):
    best = {(row["file"], row["what"]): row["best_s"] for row in found["times"]}
    aims = {row["aim"]: row["value"] for row in found["aims"]}
    plain = bench_data.PLAIN
    assert aims[f"prepare / raw read ({plain})"] == best[plain, "prepare"] / best[plain, "raw"]
    assert aims["pynwb / prepare"] == best[plain, "pynwb"] / best[plain, "prepare"]
    assert aims["peak of tracemalloc / session"] == found["memory"]["traced"] / found["memory"]["session"]


def test_waveforms_are_not_touched(found):
    touched = found["waveforms"]
    assert touched["bytes"] >= bench_data.QUICK.n_spikes * bench_data.QUICK.n_samples * 2
    assert touched["same_when_damaged"]
    assert [row["met"] for row in found["aims"] if row["aim"] == "waveforms touched"] == [True]


def test_damaged_waveforms_cannot_be_read_unnoticed(path):
    bench_data.damage_waveforms(path)
    prepare(path, 0.02)
    with h5py.File(path) as file, pytest.raises(OSError, match="filter"):
        file["units/waveforms"][:1]


def test_a_layout_that_reads_waveforms_is_found_out(path, monkeypatch):
    bench_data.damage_waveforms(path)
    read_trials = reading.read_trials
    monkeypatch.setattr(
        reading, "read_trials", lambda file, n: (file.array("units/waveforms"), read_trials(file, n))[1]
    )
    with pytest.raises(InputError, match="units/waveforms cannot be read"):
        prepare(path, 0.02)


def test_both_ways_of_storing_give_one_session(path, tmp_path):
    bench_data.write_file(tmp_path / "gzip.nwb", bench_data.QUICK, gzip=True)
    a, b = prepare(path, 0.02), prepare(tmp_path / "gzip.nwb", 0.02)
    assert a.drop_attrs(deep=False).identical(b.drop_attrs(deep=False))
    assert a.attrs["layout"] == "perich"
    assert int(a["n_spikes"].sum()) == bench_data.QUICK.n_spikes
    assert a.sizes["channel"] == bench_data.QUICK.n_electrodes


def test_a_rival_that_counts_something_else_is_refused(path):
    session = prepare(path, 0.02)
    edges_s = np.concatenate([[0.0], session["time"].values])
    counts = bench_data.rival(path, edges_s, {"waveforms"})
    bench_data.require_same(session, path, counts)
    counts[10, 3] += 1
    with pytest.raises(RuntimeError, match="other counts"):
        bench_data.require_same(session, path, counts)


def test_tables_fit_100_columns(found):
    console = Console(width=100, file=io.StringIO())
    for table in bench_data.tables(found):
        assert console.measure(table).maximum <= 100
        console.print(table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "not judged" in text  # a tiny file
    assert "prepare, no digest" in text


def test_command(call, monkeypatch, found):
    monkeypatch.setattr(bench_data, "data", lambda quick, say: found if quick else pytest.fail("not quick"))
    code, out, _ = call("bench", "data", "--quick", "--json", "-")
    assert code == 0
    assert json.loads(out) == found
    code, out, _ = call("bench", "data", "--quick")
    assert code == 0
    assert "waveforms touched" in out
    full = {**found, "size": {**found["size"], "quick": False}}
    monkeypatch.setattr(bench_data, "data", lambda quick, say: full)
    code, out, _ = call("bench", "data")
    assert code == 0
    assert " met " in out
    assert "[/]" not in out, "markup is printed as it is written"


# --------------------------------------------------------------------------- what makes preparation fast


def test_an_array_is_kept_for_the_next_who_asks_alone(tmp_path, monkeypatch):
    with nwb.open_nwb(spikes_file(tmp_path / "a.nwb")) as file:
        first = file.array("units/spike_times")
        assert file.array("units/spike_times") is first
        again = file.array("units/spike_times")
        assert again is not first
        np.testing.assert_array_equal(again, first)
        with pytest.raises(ValueError, match="read-only"):
            first[0] = 1.0
        assert file.array("units/spike_times") is again
        monkeypatch.setattr(nwb, "KEPT_BYTES", 100)
        large = file.array("units/electrodes"), file.array("processing/behavior/Velocity/cursor_vel/data")
        assert file.array("units/electrodes") is large[0]
        assert file.array("processing/behavior/Velocity/cursor_vel/data") is not large[1]


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_blocks_of_spikes_change_nothing(tmp_path, monkeypatch, block):
    path = spikes_file(tmp_path / "a.nwb")
    whole = prepare(path, 0.05)
    monkeypatch.setattr(grids, "BLOCK", block)
    monkeypatch.setattr(faults, "_SPIKES", block)
    assert prepare(path, 0.05).identical(whole)


def slow_statistics(times_ms, unit, channel_of_unit, n_channels):
    """The same figures from their definition, of times in whole milliseconds times 0.25."""
    n_spikes, n_short, n_coincident = np.zeros((3, n_channels), dtype=int)
    for u, channel in enumerate(channel_of_unit):
        own = np.sort(times_ms[unit == u])
        n_spikes[channel] += own.size
        n_short[channel] += (np.diff(own) < 1).sum()
    window, channel = np.ceil(times_ms), channel_of_unit[unit]
    for w in np.unique(window):
        if np.unique(channel[window == w]).size >= max(3, -(-n_channels // 3)):
            n_coincident += np.bincount(channel[window == w], minlength=n_channels)
    return {"n_spikes": n_spikes, "n_short_isi": n_short, "n_coincident": n_coincident}


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("places", [1, 4, 2**22])
@pytest.mark.parametrize(("n_units", "n_channels"), [(6, 4), (20, 12), (9, 9)])
def test_statistics_are_those_of_the_definition_however_windows_share_places(
    monkeypatch, in_order, places, n_units, n_channels
):
    monkeypatch.setattr(faults, "_SPIKES", 37)
    monkeypatch.setattr(faults, "_MAX_PLACES", places)
    rng = np.random.default_rng(n_units)
    unit = rng.integers(0, n_units, 400)
    times_ms = rng.integers(-400, 400, 400) / 4
    if in_order:
        order = np.lexsort((times_ms, unit))
        unit, times_ms = unit[order], times_ms[order]
    channel_of_unit = rng.integers(0, n_channels, n_units)
    found = faults.spike_statistics(times_ms / 1000, unit, channel_of_unit, n_channels)
    expected = slow_statistics(times_ms, unit, channel_of_unit, n_channels)
    assert expected["n_coincident"].any()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_fetching_planning_and_listing_are_measured_beside_their_aims():
    found = bench_archive.archive(quick=True)
    times = found["times"]
    assert set(times) == {*bench_archive.COMMANDS, bench_archive.PLAN, bench_archive.LIST, bench_archive.LIST_ARCHIVE}
    assert min(times.values()) > 0
    assert [row["value"] for row in found["aims"]] == [
        times["bci-adapt fetch"] / times["dandi download"],
        *(times[name] for name in (bench_archive.PLAN, bench_archive.LIST, bench_archive.LIST_ARCHIVE)),
    ]
    assert all(row["met"] == (row["value"] <= row["limit"]) for row in found["aims"])
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    console = Console(file=io.StringIO(), width=120)
    console.print(bench_archive.table_of(found))
    text = console.file.getvalue()
    assert "dandi download" in text
    assert "not judged" in text
    console.print(bench_archive.table_of(found | {"quick": False}))
    assert "met" in console.file.getvalue()[len(text) :]


def test_a_client_that_brings_too_little_stops_the_benchmark(monkeypatch, tmp_path):
    monkeypatch.setattr(bench_archive, "_run", lambda name, into: None)
    with pytest.raises(RuntimeError, match="brought 0 of 8 files"):
        bench_archive._fetching(tmp_path / "a", 100, 1, lambda text: None)


def test_a_plan_trusts_records_and_not_files_alone(monkeypatch, tmp_path):
    filled = bench_archive._fill

    def changed(raw, rows, url):
        filled(raw, rows, url)
        next(raw.rglob("*.nwb")).touch()  # a time of change that is not the recorded one: its bytes are read

    monkeypatch.setattr(bench_archive, "PINNED_BYTES", 111 * 1000)
    monkeypatch.setattr(bench_archive, "_fill", changed)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(InputError):
        bench_archive._planning(tmp_path / "a", 3, lambda text: None)
