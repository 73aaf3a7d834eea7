"""Layouts on small files in exactly their form, each with a variant that must be refused; real files where present."""

import itertools
import json
import tomllib
from pathlib import Path

import h5py
import numpy as np
import pytest
from nwb_files import counts_file, spikes_file

from bci_adapt.data.layouts.base import Layout
from bci_adapt.data.layouts.tables import _worth_keeping
from bci_adapt.data.prepare import inspect, prepare
from bci_adapt.data.session_files import read_session, write_session
from bci_adapt.data.sessions import require_same_channels, split
from bci_adapt.errors import InputError
from bci_adapt.experiment.common_jobs import prepare_job
from bci_adapt.experiment.config import parse_config
from bci_adapt.ground.catalog import variants
from bci_adapt.ground.engine import execute

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def test_every_layout_says_whether_it_was_verified():
    found = variants("bci_adapt.data.layouts", Layout)
    assert {"perich", "wrist", "generic"} <= set(found)
    assert found["perich"].verified_on == ""
    assert found["wrist"].verified_on


def test_spike_times_with_timestamps(tmp_path):
    path = spikes_file(tmp_path / "a.nwb", conversion=2.0)
    session = prepare(path, 0.05)
    assert session.attrs["layout"] == "perich"
    assert session.attrs["session_id"] == "sub-T_ses-CO-1"
    # Electrodes of the array that carries units are channels, silent ones too; two units share the first.
    assert session["channel"].values.tolist() == ["M1/elec0", "M1/elec1", "M1/elec2", "M1/elec3"]
    totals = session["counts"].values.sum(axis=0)
    assert totals[1] == 0
    rng = np.random.default_rng(0)
    units = [rng.uniform(0, 20.0, 200) for _ in range(4)]
    last = float(session["time"][-1])
    for channel, members in {0: (0, 1), 2: (2,), 3: (3,)}.items():
        assert totals[channel] == sum(((units[u] > 0.01) & (units[u] <= last)).sum() for u in members)
    assert float(session["time"][0]) == pytest.approx(0.06)  # the first bin starts at the first sample
    np.testing.assert_allclose(np.diff(session["time"].values), 0.05, atol=1e-9)
    times = np.arange(1, 2001) / 100.0
    inside = (times > 0.01) & (times <= 0.06)
    expected = 2.0 * np.stack([5 * np.sin(times[inside]), 5 * np.cos(1.3 * times[inside])], axis=1).mean(axis=0)
    np.testing.assert_allclose(session["position"][0].values, expected)
    difference = np.diff(session["position"].values, axis=0) / 0.05
    np.testing.assert_allclose(session["velocity"].values[1:], difference)
    assert not session["velocity_valid"].values[0].any()
    assert np.isnan(session["trial_go_s"].values).sum() == 0
    assert session["trial_go_s"].values.tolist() == [2.0, 12.0]
    assert session["trial_result"].values.tolist() == ["R", "F"]


def test_unobserved_time_is_missing_and_gaps_start_segments(tmp_path):
    path = spikes_file(tmp_path / "a.nwb", obs_intervals=np.array([[0.0, 8.0], [12.0, 20.0]]))
    session = prepare(path, 0.05)
    time_s, valid = session["time"].values, session["valid"].values
    assert not valid[(time_s > 8.06) & (time_s < 12.0)].any()
    assert valid[time_s < 8.0].all()
    times = np.arange(1, 2001) / 100.0
    kept = (times < 7.0) | (times > 9.0)
    position = np.stack([np.sin(times), np.cos(times)], axis=1)[kept]
    gap = prepare(spikes_file(tmp_path / "b.nwb", timestamps=times[kept], position=position), 0.05)
    assert set(gap["segment"].values.tolist()) == {0, 1}
    first = int(np.flatnonzero(gap["segment"].values == 1)[0])
    assert not gap["velocity_valid"].values[first].any()
    assert float(gap["time"][first] - gap["time"][first - 1]) > 1.9
    back = np.concatenate([times[:1000], times[500:1500]])
    again = prepare(spikes_file(tmp_path / "c.nwb", timestamps=back), 0.05)
    assert "backwards" in again.attrs["warnings"]
    assert set(again["segment"].values.tolist()) == {0, 1}
    # Where two stretches claim the same time, nobody can say to which a spike belongs.
    assert float(again["valid"].mean()) == pytest.approx(0.5, abs=0.03)


def test_a_bin_is_observed_when_every_unit_is(tmp_path):
    observed = [np.array([[0.0, 20.0]]), np.array([[0.0, 5.0], [5.0, 20.0]]), np.array([[2.01, 19.01]])]
    path = spikes_file(tmp_path / "a.nwb", n_units=3, obs_intervals=observed)
    session = prepare(path, 0.05)
    ends = session["time"].values
    # Intervals that touch are one; a bin that is observed in part is not observed.
    np.testing.assert_array_equal(session["valid"].values, (ends - 0.05 >= 2.01 - 1e-9) & (ends <= 19.01 + 1e-9))
    assert session["velocity_valid"].values[1:].all()  # the hand was seen all the time


def test_what_one_unit_misses_costs_bins_or_the_unit_as_chosen(tmp_path):
    observed = [np.array([[0.0, 20.0]])] * 3 + [np.array([[0.0, 6.0]])]
    path = spikes_file(tmp_path / "a.nwb", obs_intervals=observed, electrodes=np.array([0, 1, 2, 3]))
    masked = prepare(path, 0.05)
    names = masked["channel"].values.tolist()
    assert prepare(path, 0.05, unobserved="mask").drop_attrs().identical(masked.drop_attrs())
    # bins start at the first sample, .01 s; the last that ends by 6 s is the 119th of 399
    assert masked["valid"].values.sum() == 119
    said = [each for each in json.loads(masked.attrs["warnings"]) if "obs_intervals differ" in each]
    assert said == [
        "obs_intervals differ between units: 280 of 399 bins, in which one unit or more was not observed, are masked; "
        f"without 1 of 4 channels ({names[3]}) it would be 0: unobserved = 'drop'"
    ]
    dropped = prepare(path, 0.05, unobserved="drop")
    assert dropped["channel"].values.tolist() == names[:3]
    assert dropped["electrode"].values.tolist() == names[:3]
    assert dropped["valid"].values.all()
    assert np.array_equal(dropped["counts"].values, masked["counts"].values[:, :3])
    assert "1 of 4 channels are left out" in dropped.attrs["warnings"]
    assert "280 if all were kept" in dropped.attrs["warnings"]
    assert json.loads(dropped.attrs["parameters"])["unobserved"] == "drop"
    with pytest.raises(InputError, match="got unobserved='silent'"):
        prepare(path, 0.05, unobserved="silent")


def test_halves_that_were_observed_at_other_times_keep_the_longer_one(tmp_path):
    observed = [np.array([[0.0, 11.0]]), np.array([[8.0, 20.0]])] * 2
    path = spikes_file(tmp_path / "a.nwb", obs_intervals=observed, electrodes=np.array([0, 1, 2, 3]))
    dropped = prepare(path, 0.05, unobserved="drop")
    ends = dropped["time"].values
    assert [name[-1] for name in dropped["channel"].values.tolist()] == ["1", "3"]
    assert np.array_equal(dropped["valid"].values, ends - 0.05 >= 8.0 - 1e-9)


def test_units_that_were_never_observed_together_are_refused_with_the_way_out(tmp_path):
    observed = [np.array([[0.0, 8.0]]), np.array([[9.0, 20.0]])] * 2
    path = spikes_file(tmp_path / "a.nwb", obs_intervals=observed, electrodes=np.array([0, 1, 2, 3]))
    with pytest.raises(InputError, match=r"observed in no bin.*without 2 of 4 channels.*unobserved = 'drop'"):
        prepare(path, 0.05)
    assert prepare(path, 0.05, unobserved="drop").sizes["channel"] == 2


def test_electrodes_without_units_do_not_outweigh_those_with(tmp_path):
    # of four electrodes two carry units, seen at other times, and half of each is all there is
    observed = [np.array([[0.0, 9.0]]), np.array([[11.0, 20.0]]), np.array([[11.0, 20.0]])]
    path = spikes_file(tmp_path / "a.nwb", n_units=3, obs_intervals=observed, electrodes=np.array([0, 1, 2]))
    dropped = prepare(path, 0.05, unobserved="drop")
    assert dropped["channel"].values.tolist() == ["M1/elec1", "M1/elec2", "M1/elec3"]
    assert np.array_equal(dropped["valid"].values, dropped["time"].values - 0.05 >= 11.0 - 1e-9)


def _kept(*spans, n_bins=20):
    seen = np.zeros((len(spans), n_bins), dtype=bool)
    for row, (first, stop) in enumerate(spans):
        seen[row, first:stop] = True
    return _worth_keeping(seen).tolist(), seen


def test_what_is_left_out_is_worth_it():
    # as long as the others together, but never with them: it goes, not they
    assert _kept((0, 11), (11, 20), (11, 20), (11, 20))[0] == [False, True, True, True]
    assert _kept((0, 10), (10, 20), (0, 10), (10, 20), (0, 10))[0] == [True, False, True, False, True]
    assert _kept((0, 20), (1, 20), (0, 19))[0] == [True, True, True]  # a bin each is not worth a channel
    assert _kept((0, 20), (0, 1))[0] == [True, True]  # two are needed
    rng = np.random.default_rng(0)
    short = 0
    for _ in range(50):  # beside every choice there is, of intervals that begin and end anywhere
        edges = np.sort(rng.integers(0, 21, (6, 2)), axis=1)
        found, seen = _kept(*edges)
        worth = {
            choice: sum(choice) * seen[np.array(choice)].all(axis=0).sum()
            for choice in itertools.product([False, True], repeat=6)
            if sum(choice) >= 2
        }
        assert worth[tuple(found)] >= worth[(True,) * 6]
        assert worth[tuple(found)] >= 0.6 * max(worth.values())
        short += worth[tuple(found)] < max(worth.values())
    assert short <= 15


def test_the_policy_is_chosen_in_a_config_and_on_the_command_line(tmp_path, call, monkeypatch):
    monkeypatch.setenv("BCI_ADAPT_CACHE", str(tmp_path / "cache"))
    observed = [np.array([[0.0, 20.0]])] * 3 + [np.array([[0.0, 6.0]])]
    path = spikes_file(tmp_path / "a.nwb", obs_intervals=observed, electrodes=np.array([0, 1, 2, 3]))
    wanted = prepare(path, 0.05, unobserved="drop")
    code, out, _ = call("prepare", path, "--unobserved", "drop", "-o", tmp_path)
    assert code == 0
    assert "280 if all were kept (unobserved = 'mask')" in " ".join(out.split())
    (written,) = tmp_path.glob("*.nc")
    assert read_session(written)["counts"].equals(wanted["counts"])
    code, _, err = call("prepare", path, "--unobserved", "silent", "-o", tmp_path)
    assert (code, "'mask'ed" in err) == (2, True)

    def job(**asked):
        raw = tomllib.loads((CONFIGS / "wrist.toml").read_text())
        return prepare_job(parse_config(raw | asked, "x"), path, {})

    default, dropping = job(), job(unobserved="drop")
    assert "unobserved" not in default.parameters  # what was prepared before stays as it was called
    assert dropping.key != default.key
    assert not execute([dropping], workers=0).failed
    assert read_session(dropping.path)["counts"].equals(wanted["counts"])
    with pytest.raises(InputError, match="unobserved"):
        job(unobserved="silent")


def test_a_rate_says_the_same_as_timestamps(tmp_path):
    stamped = prepare(spikes_file(tmp_path / "a.nwb", conversion=0.5, offset=-3.0), 0.05)
    rated = prepare(spikes_file(tmp_path / "b.nwb", conversion=0.5, offset=-3.0, rate=100.0), 0.05)
    plain = prepare(spikes_file(tmp_path / "c.nwb"), 0.05)
    for name in ("time", "counts", "position", "velocity", "recorded_velocity"):
        np.testing.assert_array_equal(rated[name].values, stamped[name].values)
    np.testing.assert_allclose(rated["position"], 0.5 * plain["position"] - 3.0, rtol=1e-12)
    assert rated["position"].attrs["units"] == "cm"


@pytest.mark.parametrize(
    ("description", "axes"),
    [("x,y", ["x", "y"]), ("east; north", ["east", "north"]), ("cursor position", ["x", "y"]), ("", ["x", "y"])],
)
def test_axes_are_named_by_a_list_and_not_by_prose(tmp_path, description, axes):
    session = prepare(spikes_file(tmp_path / "a.nwb", axes=description), 0.05)
    assert session["axis"].values.tolist() == axes


def test_counts_with_a_rate(tmp_path):
    path = counts_file(tmp_path / "a.nwb", start=2.0)
    session, wider = prepare(path, 0.05), prepare(path, 0.1)
    assert session.attrs["layout"] == "wrist"
    assert float(session["time"][0]) == pytest.approx(2.05)  # row i starts at start + i / rate; time is its end
    assert np.array_equal(wider["counts"].values, session["counts"].values[0::2] + session["counts"].values[1::2])
    np.testing.assert_array_equal(wider["time"].values, session["time"].values[1::2])
    fine = session["position"].values
    np.testing.assert_allclose(wider["position"].values, (fine[0::2] + fine[1::2]) / 2, rtol=1e-12)
    np.testing.assert_allclose(wider["velocity"].values[1:], np.diff(wider["position"], axis=0) / 0.1, rtol=1e-9)
    with pytest.raises(InputError, match="multiple"):
        prepare(path, 0.03)
    velocity = np.random.default_rng(1).standard_normal((400, 2))
    scaled = counts_file(tmp_path / "b.nwb", start=2.0, conversion=10.0, offset=1.0, velocity=velocity)
    scaled = prepare(scaled, 0.05)
    np.testing.assert_allclose(scaled["position"].values, 10 * fine + 1, rtol=1e-12)
    np.testing.assert_array_equal(scaled["recorded_velocity"].values, velocity)
    assert scaled["axis"].values.tolist() == ["x", "y"]  # of the position
    assert "recorded velocity is not the difference of position" in scaled.attrs["warnings"]
    derived = session["velocity"].fillna(0).values
    noise = np.random.default_rng(2).standard_normal(derived.shape) * derived.std(axis=0)
    for recorded, warned in ((derived, False), (3.0 * derived, True), (derived + 0.7 * noise, True)):
        made = prepare(counts_file(tmp_path / "c.nwb", velocity=recorded), 0.05)
        assert ("recorded velocity is not" in made.attrs["warnings"]) is warned
    for change, message in [
        ({"position_rate": 50.0}, "grid"),
        ({"velocity": velocity[:-1]}, "grid"),
        ({"rate": 30.0}, "whole microseconds"),
    ]:
        with pytest.raises(InputError, match=rf"d\.nwb.*{message}"):
            prepare(counts_file(tmp_path / "d.nwb", **change), 0.05)


def test_a_session_survives_its_file_bit_for_bit(tmp_path):
    session = prepare(spikes_file(tmp_path / "a.nwb"), 0.05)
    write_session(session, tmp_path / "s.nc")
    again = read_session(tmp_path / "s.nc")
    assert again.identical(session)
    assert {name: value.dtype for name, value in again.variables.items()} == {
        name: value.dtype for name, value in session.variables.items()
    }
    stream, rest = split(again, 12.0, 5.0)
    assert stream.sizes["time"] == 240
    assert float(rest["time"][0]) > float(stream["time"][-1])
    assert (stream.sizes["trial"], rest.sizes["trial"]) == (2, 0)
    with pytest.raises(InputError, match="held out"):
        split(again, 18.0, 5.0)
    other = session.isel(channel=slice(0, 3))
    with pytest.raises(InputError, match="M1/elec3"):
        require_same_channels(session, other)


def test_text_from_a_file_cannot_style_the_terminal(tmp_path):
    from rich.console import Console

    found = inspect(spikes_file(tmp_path / "a.nwb", description="Warning: [red]<script>\x1b[31m"))
    console = Console(width=100, record=True)
    with console.capture() as capture:
        console.print(found.table())
    text = capture.get()
    assert "[red]<script>" in text
    assert "\x1b[31m" not in text


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_page_keeps_paths_whole_and_fits(tmp_path, width):
    from rich.console import Console

    for found in (inspect(spikes_file(tmp_path / "a.nwb")), inspect(counts_file(tmp_path / "b.nwb"))):
        console = Console(width=width)
        with console.capture() as capture:
            console.print(found.table())
        lines = capture.get().splitlines()
        assert all(len(line.rstrip()) <= width for line in lines)
        assert {source.path for source in [*found.neural, *found.series]} <= {line.strip() for line in lines}
        assert "Hz" in capture.get() or "timestamps" in capture.get()


def test_what_other_readers_get_wrong(tmp_path):
    """Public bug reports: round-off loses a bin, the last edge loses a spike, two spikes of a bin become one."""
    times = 1.0 + np.arange(101) / 100
    spikes = np.concatenate([[1.02, 1.5, 1.505, 2.0]] * 4)
    path = spikes_file(
        tmp_path / "a.nwb",
        timestamps=times,
        position=np.stack([times, times], axis=1),
        spike_times=spikes,
        spike_times_index=np.arange(4, 17, 4),
    )
    session = prepare(path, 0.02)
    assert session.sizes["time"] == 50
    own = session["counts"].values[:, 3]
    assert (own[0], own[24], own[25], own[49], own.sum()) == (1, 1, 1, 1, 4)  # 1.5 and 2.0 end their bins
    assert prepare(path, 0.1)["counts"].values[:, 3].tolist() == [1, 0, 0, 0, 1, 1, 0, 0, 0, 1]
    assert prepare(path, 0.5)["counts"].values[:, 3].tolist() == [2, 2]


def test_a_series_off_the_grid_is_not_dropped(tmp_path):
    path = spikes_file(tmp_path / "a.nwb")
    with h5py.File(path, "a") as file:
        series = file["processing/behavior/Velocity/cursor_vel"]
        stamps = 0.0037 + np.arange(1800) / 90.0
        for name, values in {"timestamps": stamps, "data": np.stack([stamps, -stamps], axis=1)}.items():
            del series[name]
            series[name] = values
    session = prepare(path, 0.05)
    assert session["recorded_velocity_valid"].values.all()
    for row in (0, 17, session.sizes["time"] - 1):
        end = float(session["time"][row])
        inside = (stamps > end - 0.05 + 1e-9) & (stamps <= end + 1e-9)
        np.testing.assert_allclose(session["recorded_velocity"].values[row, 0], stamps[inside].mean(), rtol=1e-12)


def test_spike_times_are_read_at_once_and_not_unit_by_unit(tmp_path, monkeypatch):
    n_units = 300
    path = spikes_file(
        tmp_path / "a.nwb",
        n_units=n_units,
        spike_times_index=200 * np.arange(1, n_units + 1),
        electrodes=np.arange(n_units) % 4,
    )
    reads, read = [], h5py.Dataset.__getitem__
    monkeypatch.setattr(h5py.Dataset, "__getitem__", lambda self, *args: reads.append(self.name) or read(self, *args))
    session = prepare(path, 0.05)
    assert int(session["n_spikes"].sum()) == 200 * n_units
    assert [name for name in reads if name.startswith("/units")].count("/units/spike_times") == 1
    assert sum(name.startswith("/units/") for name in reads) < 10


def test_real_files_nobody_here_wrote(real_data):
    mouse = real_data / "nwb_real" / "mouse_head_direction_A2929-200711.nwb"
    session = prepare(mouse, 0.05)
    assert session.attrs["layout"] == "generic"
    assert session.sizes["channel"] == 15
    assert float(session["position_valid"].mean()) > 0.5
    described, refused = 0, []
    for path in sorted((real_data / "nwb_real" / "pynwb_back_compat").glob("*.nwb")):
        try:
            inspect(path).table()
            described += 1
        except InputError as error:
            refused.append((path.name, str(error)))
    assert all(name in message for name, message in refused)
    assert described + len(refused) >= 20
    assert described > len(refused)


def test_generic_reads_words_and_not_fragments(tmp_path):
    from bci_adapt.data.layouts.generic import kind_of

    for path, kind in {
        "acquisition/hand_pos": "position",
        "acquisition/HandPos2": "position",
        "processing/behavior/Position/eye": "position",
        "acquisition/finger_vel": "recorded_velocity",
        "acquisition/exposure": "exposure",
        "acquisition/water_level": "water_level",
        "acquisition/emg_envelope": "emg_envelope",
    }.items():
        assert kind_of(path) == kind, path


INDEX = {"spike_times_index": np.array([3, 6]), "electrodes": np.array([0, 2])}


def test_a_file_without_labels_keeps_its_first_spike(tmp_path):
    times = np.array([1.0, 1.2, 2.0, 1.0, 1.7, 2.05])
    path = spikes_file(tmp_path / "a.nwb", kinematics=False, n_units=2, spike_times=times, **INDEX)
    assert int(prepare(path, 0.05)["counts"].sum()) == 6
