"""Quality control: exactly what was planted is flagged, and nothing in sessions without a fault."""

import json

import numpy as np
import pytest
import xarray as xr

from bci_adapt.archive.sources.simulated import Simulated
from bci_adapt.data.prepare import prepare
from bci_adapt.data.qc import CHANNEL_CHECKS, FLAG, NOT_APPLICABLE, QcThresholds, drop_channels, flagged_channels, qc
from bci_adapt.data.session_files import read_session
from bci_adapt.errors import InputError
from bci_adapt.results.figures.recordings import qc_figure

N_BINS, N_CHANNELS, BIN_S, LEAD = 7200, 24, 0.05, 2  # six minutes; neurons lead by 100 ms
LABEL_CHECKS = [
    "still stretches",
    "position jumps",
    "implausible speed",
    "missing samples",
    "few values",
    "saturated axes",
    "recorded velocity",
    "neurons tell labels",
    "lag of labels",
]


def path_cm(rng, n_bins=N_BINS):
    """Smooth movement, within a few cm and below 15 cm/s."""
    phase = np.arange(n_bins)[:, None] * BIN_S * 2 * np.pi * rng.uniform(0.1, 0.7, (2, 1, 20))
    return 0.6 * np.sin(phase + rng.uniform(0, 2 * np.pi, (2, 1, 20))).sum(axis=2).T


def set_position(session, position):
    """Put positions and what follows from them, as preparation does."""
    velocity = np.full_like(position, np.nan)
    velocity[1:] = np.diff(position, axis=0) / BIN_S
    velocity[1:][np.diff(session["segment"].values) != 0] = np.nan
    for name, values, attrs in (("position", position, {}), ("velocity", velocity, {"derived": "yes"})):
        unit = {"position": "cm", "velocity": "cm/s"}[name]
        session[name] = ("time", "axis"), values, {"units": unit, **attrs}
        usable = np.isfinite(values)
        if name == "velocity":
            usable &= (np.sqrt(np.square(values).sum(axis=1)) < 150)[:, None]
        session[f"{name}_valid"] = ("time", "axis"), usable
    return session


def make(seed=0, statistics=True, labels=True):
    """A session without a fault: tuned Poisson channels of different rates, smooth movement, twenty trials."""
    rng = np.random.default_rng(seed)
    position = path_cm(rng)
    ahead = np.roll(np.diff(position, axis=0, prepend=position[:1]) / BIN_S, -LEAD, axis=0)
    rate = np.exp(rng.normal(2.0, 0.6, N_CHANNELS) + ahead / 8.0 @ rng.normal(0, 0.5, (2, N_CHANNELS)))
    counts = rng.poisson(rate * BIN_S).astype(np.uint16)
    start = np.arange(20) * 15.0
    session = xr.Dataset(
        {
            "counts": (("time", "channel"), counts, {"units": "count"}),
            "segment": ("time", np.zeros(N_BINS, np.int32)),
            "valid": ("time", np.ones(N_BINS, bool)),
            "trial_start_s": ("trial", start),
            "trial_stop_s": ("trial", start + 3),
            "trial_result": ("trial", np.array(["R", "F"] * 10)),
        },
        {
            "time": np.arange(1, N_BINS + 1) * BIN_S,
            "channel": np.array([f"M1/{i}" for i in range(N_CHANNELS)]),
            "axis": np.array(["x", "y"]),
        },
        {"session_id": f"seed $_{seed}", "bin_s": BIN_S, "thresholds": "{}"},
    )
    if statistics:
        n = counts.sum(axis=0).astype(np.int64)
        for name, values in (("n_spikes", n), ("n_short_isi", n // 300), ("n_coincident", n // 1000)):
            session[name] = "channel", values
    if labels:
        set_position(session, position)
        noise = rng.normal(0, 0.3, position.shape)
        recorded = session["velocity"].values + noise
        session["recorded_velocity"] = ("time", "axis"), recorded, {"units": "cm/s"}
        session["recorded_velocity_valid"] = ("time", "axis"), np.isfinite(recorded)
    return session


@pytest.mark.parametrize("seed", range(12))
def test_nothing_is_flagged_without_a_fault(seed):
    report = qc(make(seed))
    assert report.flagged == []
    assert flagged_channels(report) == []
    assert {check.status for check in report.checks} == {"pass"}
    assert all(check.n_flagged == 0 for check in report.checks)
    assert report.lag["peak_s"] == pytest.approx(LEAD * BIN_S)


def quieter(session, rng):
    late = session["counts"].values[N_BINS // 2 :, 7]
    session["counts"].values[N_BINS // 2 :, 7] = rng.binomial(late, 0.2)


def bursts(session, rng):
    session["counts"].values[:, 9] = np.where(rng.random(N_BINS) < 0.02, 25, 0)


def leak(session, rng):
    counts = session["counts"].values
    counts[:, 11] = rng.binomial(counts[:, 4], 0.95)


def artefacts(session, rng):
    session["counts"].values[rng.choice(N_BINS, 20, replace=False)] += 6


def silence(session, rng):
    session["counts"].values[1000:1200] = 0
    session["valid"].values[1000:1200] = False


def stop(session, rng):
    steps = np.diff(session["position"].values, axis=0, prepend=0)
    steps[2000:3000] = 0
    set_position(session, steps.cumsum(axis=0))
    session["recorded_velocity"].values[2000:3000] = 0


def race(session, rng):
    position = session["position"].values.copy()
    position[4000:4020, 0] += 10.0 * np.minimum(np.arange(1, 21), np.arange(20, 0, -1))  # 200 cm/s there and back
    set_position(session, position)


def jump(session, rng):
    position = session["position"].values.copy()
    position[4000:] += 5.0
    set_position(session, position)


def glitch(session, rng):
    position = session["position"].values.copy()
    position[4000, 0] += 10.0
    set_position(session, position)


def lose(session, rng):
    position = session["position"].values.copy()
    position[3000:3720] = np.nan
    set_position(session, position)


def coarse(session, rng):
    position = session["position"].values.copy()
    step = np.ptp(position[:, 0]) / 40
    position[:, 0] = np.round(position[:, 0] / step) * step
    set_position(session, position)
    session["recorded_velocity"] = ("time", "axis"), session["velocity"].values, {"units": "cm/s"}
    session["recorded_velocity"].values[:] += rng.normal(0, 0.1, position.shape)


def clip(session, rng):
    position = session["position"].values.copy()
    position[:, 1] = np.minimum(position[:, 1], np.quantile(position[:, 1], 0.85))
    set_position(session, position)


def foreign_labels(session, rng):
    set_position(session, path_cm(np.random.default_rng(99)))
    del session["recorded_velocity"], session["recorded_velocity_valid"]


def late_labels(session, rng):
    position = session["position"].values
    set_position(session, np.concatenate([position[:1].repeat(8, axis=0), position[:-8]]))
    del session["recorded_velocity"], session["recorded_velocity_valid"]


def cut(shift_s):
    def fault(session, rng):
        session["segment"].values[N_BINS // 2 :] = 1
        time = session["time"].values.copy()
        time[N_BINS // 2 :] += shift_s
        session["time"] = time
        session["trial_stop_s"] = session["trial_start_s"] + 1e-3

    return fault


def shreds(session, rng):
    session["segment"].values[:] = (np.arange(N_BINS) // 10).clip(max=20)


def put(name, channel, value):
    def fault(session, rng):
        session[name].values[channel if name.startswith("n_") else (slice(None), channel)] = value

    return fault


def replace(name, values):
    def fault(session, rng):
        session[name] = session[name].dims, values(session[name].values, rng), session[name].attrs

    return fault


CHANNEL_FAULTS = {
    "dead": (put("counts", 3, 0), "dead channels", 3),
    "loud": (lambda s, rng: put("counts", 5, rng.poisson(15, N_BINS))(s, rng), "rate outliers", 5),
    "quieter": (quieter, "rate drift", 7),
    "bursts": (bursts, "Fano factor", 9),
    "locked to mains": (put("counts", 9, 1), "Fano factor", 9),
    "twice": (lambda s, rng: put("counts", 11, s["counts"].values[:, 4])(s, rng), "duplicated channels", 11),
    "leak": (leak, "duplicated channels", 11),
    "two neurons": (lambda s, rng: put("n_short_isi", 2, s["n_spikes"].values[2] // 20)(s, rng), "short intervals", 2),
    "shared noise": (
        lambda s, rng: put("n_coincident", 6, s["n_spikes"].values[6] // 10)(s, rng),
        "coincident spikes",
        6,
    ),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", CHANNEL_FAULTS)
def test_a_faulty_channel_is_flagged_alone(name, seed):
    fault, check, channel = CHANNEL_FAULTS[name]
    session = make(seed)
    fault(session, np.random.default_rng(seed))
    report = qc(session)
    assert report.flagged == [check]
    assert flagged_channels(report) == [f"M1/{channel}"]
    assert report.channels[channel]["flags"] == [check]
    assert next(each for each in report.checks if each.name == check).n_flagged == 1
    if check == "duplicated channels":
        assert report.channels[channel]["partner"] == "M1/4"
        assert flagged_channels(report, ["dead channels"]) == []


FAULTS = {
    "artefacts": (artefacts, "coincident bins", 20),
    "silence": (silence, "silent stretches", 200),
    "stop": (stop, "still stretches", 1001),
    "race": (race, "implausible speed", 20),
    "jump": (jump, "position jumps", 1),
    "glitch": (glitch, "position jumps", 2),
    "lose": (lose, "missing samples", 2),
    "coarse": (coarse, "few values", 1),
    "clip": (clip, "saturated axes", 1),
    "another velocity": (replace("recorded_velocity", lambda v, rng: rng.permutation(v)), "recorded velocity", 1),
    "another unit": (replace("recorded_velocity", lambda v, rng: 5 * v), "recorded velocity", 1),
    "foreign labels": (foreign_labels, "neurons tell labels", 1),
    "late labels": (late_labels, "lag of labels", 1),
    "gap": (cut(100.0), "gaps", 1),
    "clock": (cut(-30.0), "clock", 1),
    "shreds": (shreds, "short segments", 200),
    "another clock": (replace("trial_start_s", lambda v, rng: v + 1e4), "trials", 20),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_flagged_alone(name, seed):
    fault, check, n_flagged = FAULTS[name]
    session = make(seed)
    fault(session, np.random.default_rng(seed))
    report = qc(session)
    assert report.flagged == [check]
    assert next(each for each in report.checks if each.name == check).n_flagged == n_flagged
    assert flagged_channels(report) == []


def test_what_is_absent_is_not_applicable():
    report = qc(make(statistics=False, labels=False))
    status = {check.name: check.status for check in report.checks}
    assert [name for name in status if status[name] == NOT_APPLICABLE] == [
        "short intervals",
        "coincident spikes",
        *LABEL_CHECKS,
    ]
    assert report.flagged == []
    assert report.lag == {}
    assert set(CHANNEL_CHECKS) < set(status)

    power = make(statistics=False)
    power["counts"] = ("time", "channel"), power["counts"].values + 0.5, {"units": "V^2"}
    power["counts"].values[:, 3] = 1.5
    report = qc(power)
    assert report.flagged == ["dead channels"]
    assert flagged_channels(report) == ["M1/3"]
    assert "rate_hz" not in report.channels[0]
    assert "power" in next(check.found for check in report.checks if check.name == "Fano factor")
    assert qc_figure(report).axes

    power["valid"].values[:] = False
    with pytest.raises(InputError, match="not a single bin"):
        qc(power)


def test_a_report_is_plain_data_with_its_thresholds():
    limits = QcThresholds(max_correlation=0.2, dead_rate_hz=4.0)
    session = make()
    before = session.copy(deep=True)
    report = qc(session, limits)
    assert session.identical(before)  # nothing is changed, nothing removed
    found = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert found["thresholds"]["dead_rate_hz"] == 4.0
    low = (session["counts"].values.mean(axis=0) / BIN_S < 4.0).nonzero()[0]
    assert found["flagged_channels"] == [f"M1/{i}" for i in low]
    assert found["flagged"] == ["dead channels"]
    assert "rate < 4 Hz" in [check["threshold"] for check in found["checks"] if check["status"] == FLAG]
    assert found["behaviour"]["trials"] == {"n": 20, "results": {"F": 10, "R": 10}, "median_s": 3.0}
    speed = np.hypot(*session["velocity"].values[1:].T)
    assert found["behaviour"]["speed"]["p50"] == pytest.approx(np.median(speed))


@pytest.mark.parametrize(
    "wrong",
    [
        {"dead_rate_hz": -1.0},
        {"max_correlation": 1.5},
        {"block_s": 0},
        {"lag_from_s": 0.4},
        {"min_fano": 20.0},
        {"min_distinct": 1.5},
        {"max_fano": float("nan")},
        {"drift_z": "5"},
    ],
)
def test_thresholds_are_checked(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        QcThresholds(**wrong)


def test_channels_are_dropped_with_a_record():
    session = make()
    first = drop_channels(session, ["M1/3", "M1/1"], "dead")
    second = drop_channels(first, ["M1/7"], "duplicated channels")
    assert second.sizes["channel"] == N_CHANNELS - 3
    kept = [i for i in range(N_CHANNELS) if i not in (1, 3, 7)]
    np.testing.assert_array_equal(second["counts"].values, session["counts"].values[:, kept])
    assert json.loads(second.attrs["removed_channels"]) == [
        {"channel": "M1/1", "reason": "dead"},
        {"channel": "M1/3", "reason": "dead"},
        {"channel": "M1/7", "reason": "duplicated channels"},
    ]
    assert "removed_channels" not in session.attrs
    assert len(qc(second).session["removed_channels"]) == 3
    assert drop_channels(session, [], "nothing").sizes == session.sizes
    for names, reason, message in (
        (["M1/3"], " ", "reason"),
        (["M2/3"], "dead", "M2/3"),
        ([f"M1/{i}" for i in range(N_CHANNELS - 1)], "all", "fewer than two"),
    ):
        with pytest.raises(InputError, match=message):
            drop_channels(session, names, reason)
    with pytest.raises(InputError, match="gaps"):
        flagged_channels(qc(session), ["gaps"])


@pytest.mark.parametrize("change", ["whole", "no labels", "no spike times", "gaps", "nothing valid in a block"])
def test_figures_show_what_there_is(change, tmp_path):
    session = make(labels=change != "no labels", statistics=change != "no spike times")
    if change == "gaps":
        cut(100.0)(session, None)
    if change.startswith("nothing"):
        session["valid"].values[:400] = False
    report = qc(session)
    figure = qc_figure(report)
    titles = " ".join(axis.get_title() for axis in figure.axes)
    assert ("decoded best" in titles) == ("labels: " in titles) == (change != "no labels")
    assert ("refractory" in titles) == (change != "no spike times")
    figure.savefig(tmp_path / "page.png")  # the identifier holds a dollar sign


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    source = Simulated(tmp_path_factory.mktemp("raw"), days=(0,), duration_s=120.0, n_units=20)
    return source.fetch(source.list().index[0])


def test_command(call, recording, tmp_path):
    prepare(recording, 0.05, tmp_path / "monday.nc")
    files = [tmp_path / "monday.nc", recording, recording]
    code, out, _ = call("qc", *files, "--plots", tmp_path / "plots", "--json", tmp_path / "qc.json")
    assert code == 0
    for words in ("dead channels", "lag of labels", "flags when", "3 sessions"):
        assert words in out
    stems = {"monday", recording.stem, f"{recording.stem}-2"}
    assert {path.stem for path in (tmp_path / "plots").glob("*.png")} == stems
    found = json.loads((tmp_path / "qc.json").read_text())
    assert [entry["file"] for entry in found] == list(map(str, files))
    assert found[0]["checks"] == found[1]["checks"]
    assert found[0]["flagged"] == []
    assert call("qc", recording, "--strict", "--quiet")[:2] == (0, "")

    strict = ["qc", "--set", "dead_rate_hz=6", tmp_path / "monday.nc"]
    assert call(*strict, "--quiet")[:2] == (0, "")
    assert call(*strict, "--strict", "--quiet")[:2] == (1, "")
    code, out, _ = call(*strict, "--json")
    assert (code, json.loads(out)[0]["flagged"]) == (0, ["dead channels"])
    code, out, _ = call("qc", "--json", tmp_path / "monday.nc")  # never taken for the file to write
    assert (code, json.loads(out)[0]["flagged"]) == (0, [])
    assert read_session(tmp_path / "monday.nc")
    for wrong, message in (
        (["--set", "dead_rate=6"], "did you mean 'dead_rate_hz'"),
        (["--set", "dead_rate_hz=x"], "NUMBER"),
        (["--set", "min_distinct"], "NUMBER"),
    ):
        code, _, err = call("qc", recording, *wrong)
        assert (code, message in err) == (2, True)
    assert call("qc", tmp_path / "tuesday.nc")[0] == 2


def test_the_known_faults_of_real_sessions(real_data):
    """One day stands still, one is silent; most hold artefacts on most channels, and the labels lag by 100 ms."""
    found = {}
    for path in sorted((real_data / "wrist92").glob("*.nwb")):
        report = qc(prepare(path, 0.05))
        found[path.name[10:18]] = report
        assert report.lag["peak_s"] == pytest.approx(0.1)
        assert "recorded velocity" in report.flagged
        assert "trials" not in report.flagged
    assert len(found) == 15
    still = {day: next(c for c in report.checks if c.name == "still stretches") for day, report in found.items()}
    most = max(still, key=lambda day: still[day].n_flagged)
    assert still[most].n_flagged > 0.6 * still[most].n_total
    assert len(flagged_channels(found[most])) > 48  # its rates are not those of the morning either
    silent = [day for day, report in found.items() if "silent stretches" in report.flagged]
    assert len(silent) == 1
    assert sum("coincident bins" in report.flagged for report in found.values()) == 13
