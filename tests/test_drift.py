"""Drift between two sessions, against planted changes, closed forms and its own null."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from bci_adapt.archive.sources.simulated import Simulated
from bci_adapt.data import simulate
from bci_adapt.data.binning import lagged
from bci_adapt.data.drift import Day, Settings, behaviour, day, drift
from bci_adapt.data.drift.distances import gaussian_kl, median_distance, mmd, symmetric_kl
from bci_adapt.data.drift.sides import resample
from bci_adapt.data.drift.tuning import wrap
from bci_adapt.data.prepare import prepare
from bci_adapt.data.session_files import read_session, write_session
from bci_adapt.errors import InputError
from bci_adapt.results.figures.drift import drift_figure, short_names

BIN_S = 0.05
LAG_S = 0.1
QUICK = Settings(n_boot=200, n_permutations=199)


def velocity(n_bins, n_axes, seed):
    """Smooth movement of about 0.3 s, independent between axes, unit variance."""
    from scipy.signal import lfilter

    noise = np.random.default_rng(seed).normal(size=(n_bins + 200, n_axes))
    smooth = lfilter([1], [1, -1.7, 0.73], noise, axis=0)[200:]
    return smooth / smooth.std(axis=0)


def tuning(n_channels, n_axes=2, depth=0.3):
    """Base rate, tuning vectors and speed terms (in √spikes) of a population."""
    rng = np.random.default_rng(99)
    vectors = rng.normal(size=(n_channels, n_axes))
    return {
        "base": rng.uniform(0.8, 1.6, n_channels),
        "vectors": depth * vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
        "speed": rng.normal(0, 0.1, n_channels),
    }


def planted(seed, *, base, vectors, speed, n_bins=6000, noisy=True, lag_s=LAG_S, **change):
    """A day whose √counts are exactly tuned to the velocity `lag_s` later, or Poisson counts of that rate."""
    moved = velocity(n_bins, vectors.shape[1], seed)
    lag = round(lag_s / BIN_S)
    ahead = np.roll(moved, -lag, axis=0)
    root = base + ahead @ vectors.T + np.linalg.norm(ahead, axis=1)[:, None] * speed
    counts = np.random.default_rng(seed + 1000).poisson(np.maximum(root, 0) ** 2).astype(float) if noisy else root
    names = [f"e{i:02d}" for i in range(len(base))]
    labels = moved.copy()
    labels[: lag if lag > 0 else 0] = np.nan  # np.roll brought the end to the start
    labels[len(labels) + min(lag, 0) :] = np.nan
    day = Day(
        f"day{seed}", None, BIN_S, names, counts, np.zeros(n_bins, int), np.ones(n_bins, bool), labels, "velocity",
        "cm/s", None, [], [], noisy,
    )  # fmt: skip
    return dataclasses.replace(day, **change)


def turn(vectors, degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turned = vectors.copy()
    turned[:, :2] = vectors[:, :2] @ np.array([[c, s], [-s, c]])
    return turned


@pytest.mark.parametrize("n_axes", [1, 2, 3])
@pytest.mark.parametrize("lag_s", [0.1, 0.0, -0.1])
def test_without_noise_tuning_is_recovered_exactly(n_axes, lag_s):
    before = tuning(12, n_axes)
    after = before | {"vectors": 1.5 * (turn(before["vectors"], 30) if n_axes > 1 else -before["vectors"])}
    source, target = (planted(i, noisy=False, lag_s=lag_s, **each) for i, each in enumerate((before, after)))
    settings = dataclasses.replace(QUICK, lag_s=lag_s)
    found = drift(source, target, settings).across.tuning
    cosine = (
        (before["vectors"] * after["vectors"]).sum()
        / np.linalg.norm(before["vectors"])
        / np.linalg.norm(after["vectors"])
    )
    assert found.corrected_similarity.value == pytest.approx(cosine, abs=1e-6)
    assert found.median_log_depth_ratio.value == pytest.approx(np.log(1.5), abs=1e-6)
    assert found.turnover == {"first_only": 0, "second_only": 0, "both": 12, "neither": 0}
    if n_axes == 1:
        expected = np.full(12, 180.0)
    elif n_axes == 2:
        expected = np.full(12, 30.0)
        assert found.common_rotation_deg.value == pytest.approx(30, abs=1e-5)
    else:
        unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (before["vectors"], after["vectors"])]
        expected = np.degrees(np.arccos((unit[0] * unit[1]).sum(axis=1)))
    np.testing.assert_allclose(found.pd_change_deg, expected, atol=1e-4)
    assert all(found.pd_changed)
    wrong = drift(source, target, dataclasses.replace(settings, lag_s=lag_s + 0.3)).across.tuning
    assert abs(wrong.median_log_depth_ratio.value - np.log(1.5)) > 1e-4  # the lag and its sign matter


def test_planted_rotation_gain_and_rates_are_covered_and_their_absence_too():
    before = tuning(40)
    after = before | {"vectors": turn(before["vectors"], 25), "base": before["base"] * np.exp(0.1)}
    covered, null = [], []
    for seed in range(4):
        source = planted(10 + seed, **before)
        found = drift(source, planted(50 + seed, **after), QUICK)
        u = found.across.tuning
        assert u.common_rotation_deg.low < 25 < u.common_rotation_deg.high
        assert u.corrected_similarity.high < 1
        assert found.pd_excess_deg.low > 0
        assert found.across.rates.share_changed > 0.8
        assert found.across.distance.mmd_p < 0.05
        covered += [low <= 25 <= high for low, high in zip(u.pd_low_deg, u.pd_high_deg, strict=True) if low == low]

        same = drift(source, planted(90 + seed, **before), QUICK)
        u, rates = same.across.tuning, same.across.rates
        assert u.corrected_similarity.low < 1 < u.corrected_similarity.high
        assert same.pd_excess_deg.low < 0
        assert u.share_pd_changed < 0.06
        assert rates.share_changed < 0.06
        for change in (same.across, same.within):
            tuned = change.tuning
            null += [
                [low <= 0 <= high for low, high in zip(tuned.pd_low_deg, tuned.pd_high_deg, strict=True) if low == low],
                [low <= 0 <= high for low, high in zip(change.rates.low, change.rates.high, strict=True)],
            ]
    assert 0.90 < np.mean(covered) < 0.99
    assert 0.90 < np.mean(np.concatenate(null[0::2])) < 0.99
    assert 0.90 < np.mean(np.concatenate(null[1::2])) < 0.99


def test_shuffled_movement_leaves_no_channel_tuned():
    day = planted(3, **tuning(40))
    shuffled = dataclasses.replace(day, labels=np.roll(day.labels, 2500, axis=0))
    found = drift(shuffled, shuffled, QUICK).across.tuning
    assert sum(found.tuned_first) <= 2
    assert sum(drift(day, day, QUICK).across.tuning.tuned_first) == 40


def test_blocks_are_drawn_with_the_variance_of_a_sum():
    x = np.random.default_rng(5).normal(size=9) * np.arange(1, 10)
    weights = resample(9, 40_000, np.random.default_rng(0))
    assert (weights[0] == 1).all()
    assert weights[1:, :4].sum(axis=1) == pytest.approx(4)  # within each half
    assert weights[1:].mean(axis=0) == pytest.approx(1, abs=0.03)
    expected = 4 * x[:4].var(ddof=1) + 5 * x[4:].var(ddof=1)
    assert (weights[1:] @ x).var() == pytest.approx(expected, rel=0.03)


def test_turnover_of_tuning_of_silence_and_of_labels():
    before = tuning(20)
    flat = before["vectors"].copy()
    flat[:4] = 0
    base, speed = before["base"].copy(), before["speed"].copy()
    base[19], flat[19], speed[19] = 0, 0, 0
    source = planted(1, **before)
    target = planted(2, base=base, vectors=flat, speed=speed)
    target = dataclasses.replace(target, channels=["new", *target.channels[1:]])
    found = drift(source, target, QUICK)
    assert found.channels["only_source"] == ["e00"]
    assert found.channels["only_target"] == ["new"]
    assert found.channels["common"] == target.channels[1:]
    assert found.across.rates.silenced == ["e19"]
    assert found.across.rates.appeared == []
    assert found.across.tuning.turnover == {"first_only": 4, "second_only": 0, "both": 15, "neither": 0}
    rates = found.across.rates
    expected = np.log(0.5 / (source.counts[:, 19].sum() + 0.5))  # both lasted equally long
    assert rates.log_ratio[-1] == pytest.approx(expected)
    assert rates.high[-1] < -2
    assert rates.high[-1] - rates.low[-1] > 5  # no spikes at all is an uncertain rate, not a certain 0
    back = drift(target, source, QUICK).across
    assert back.rates.appeared == ["e19"]
    assert back.tuning.turnover["second_only"] == 4


def test_order_of_channels_is_of_no_account():
    before = tuning(15)
    source, target = planted(1, **before), planted(2, **before)
    order = np.random.default_rng(0).permutation(15)
    shuffled = [
        dataclasses.replace(day, channels=[day.channels[i] for i in o], counts=day.counts[:, o])
        for day, o in ((source, order), (target, order[::-1]))
    ]
    assert json.dumps(drift(*shuffled, QUICK).to_json()) == json.dumps(drift(source, target, QUICK).to_json())
    by_position = dataclasses.replace(target, counts=target.counts[:, order])
    assert drift(source, by_position, QUICK).across.rates.share_changed > 0.5


def test_bins_and_labels_that_are_not_valid_are_never_read():
    before = tuning(10)
    source, target = planted(1, **before), planted(2, **before)
    observed = np.ones(6000, bool)
    observed[1000:1400] = observed[5990:] = False
    masked = dataclasses.replace(source, observed=observed)
    ruined = masked.counts.copy()
    ruined[~observed] = 60000
    found, again = (
        drift(dataclasses.replace(masked, counts=counts), target, QUICK) for counts in (masked.counts, ruined)
    )
    assert json.dumps(found.to_json()) == json.dumps(again.to_json())
    assert found.across.seconds == pytest.approx((300 - 20.5, 300))

    labels = source.labels.copy()
    labels[2000:2500] = np.nan
    kept = dataclasses.replace(source, labels=labels)
    left = drift(kept, target, QUICK)
    assert left.behaviour["source"].labelled_s == pytest.approx(np.isfinite(labels).all(axis=1).sum() * BIN_S)
    assert left.across.rates == drift(source, target, QUICK).across.rates
    labels[::2, 1] = np.nan  # a label with one axis missing is none
    half = drift(kept, target, QUICK)
    assert half.behaviour["source"].labelled_s == pytest.approx(np.isfinite(labels).all(axis=1).sum() * BIN_S)


def test_lags_stay_inside_segments():
    labels, segment = np.arange(6.0)[:, None], np.array([0, 0, 0, 0, 1, 1])
    nan = np.nan
    assert np.array_equal(lagged(labels, segment, 1)[:, 0], [1, 2, 3, nan, 5, nan], equal_nan=True)
    assert np.array_equal(lagged(labels, segment, -2)[:, 0], [nan, nan, 0, 1, nan, nan], equal_nan=True)
    assert np.array_equal(lagged(labels, segment, 0), labels)
    assert np.isnan(lagged(labels, segment, 9)).all()


def test_kl_against_quadrature_and_sampling():
    from scipy.integrate import quad
    from scipy.stats import norm

    p, q = norm(0.3, 1.2), norm(-0.5, 0.8)

    def integral(a, b):
        return quad(lambda x: a.pdf(x) * (a.logpdf(x) - b.logpdf(x)), -12, 12)[0]

    found = symmetric_kl(np.array([0.3]), np.array([[1.44]]), np.array([-0.5]), np.array([[0.64]]))
    assert found == pytest.approx(0.5 * (integral(p, q) + integral(q, p)), rel=1e-9)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 4, 4))
    cov_p, cov_q, shift = a @ a.T + np.eye(4), b @ b.T + np.eye(4), rng.normal(size=4)
    plain = symmetric_kl(np.zeros(4), cov_p, shift, cov_q)
    turned = symmetric_kl(np.zeros(4), a @ cov_p @ a.T, a @ shift, a @ cov_q @ a.T)
    assert plain == pytest.approx(turned)  # the coordinates do not matter
    assert symmetric_kl(shift, cov_p, shift, cov_p) == pytest.approx(0, abs=1e-12)
    x = rng.multivariate_normal(np.zeros(4), cov_p, 30000)
    y = rng.multivariate_normal(shift, cov_q, 30000)
    blocks = np.arange(30000) // 300
    value, p_value = gaussian_kl([(x, blocks), (y, blocks)], dataclasses.replace(QUICK, n_permutations=19))
    assert value == pytest.approx(plain, rel=0.05)
    assert p_value == 0.05


def test_mmd_against_its_definition_and_the_closed_form_of_gaussians():
    rng = np.random.default_rng(1)
    x, y, width = rng.normal(size=(30, 3)), rng.normal(0.5, 1.3, size=(24, 3)), 1.7

    def kernel(a, b):
        return np.exp(-cdist(a, b, "sqeuclidean") / (2 * width**2))

    def brute(block_x, block_y):
        inside = [block[:, None] != block for block in (block_x, block_y)]
        return kernel(x, x)[inside[0]].mean() + kernel(y, y)[inside[1]].mean() - 2 * kernel(x, y).mean()

    for block_x, block_y in ((np.arange(30), np.arange(24)), (np.arange(30) // 4, np.arange(24) // 5)):
        assert mmd(x, block_x, y, block_y, width, 19, 0)[0] == pytest.approx(brute(block_x, block_y), abs=1e-12)

    def closed(shift, a, b, dims):
        """Expected kernel between isotropic Gaussians of variances a and b, `shift` apart on every axis."""
        total = a + b + width**2
        return (width**2 / total) ** (dims / 2) * np.exp(-dims * shift**2 / (2 * total))

    expected = closed(0, 1, 1, 3) + closed(0, 1.69, 1.69, 3) - 2 * closed(0.5, 1, 1.69, 3)
    values = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        sample = rng.normal(size=(150, 3)), np.arange(150), rng.normal(0.5, 1.3, size=(120, 3)), np.arange(120)
        values.append(mmd(*sample, width, 1, 0)[0])
    assert np.mean(values) == pytest.approx(expected, abs=3 * np.std(values) / np.sqrt(20))
    assert np.isnan(mmd(x, np.zeros(30, int), y, np.arange(24), width, 19, 0)).all()


def test_permuting_blocks_keeps_the_promised_rate_of_false_alarms_where_permuting_bins_does_not():
    from scipy.signal import lfilter

    by_block, by_bin, kl = [], [], []
    for seed in range(60):
        noise = np.random.default_rng(seed).normal(size=(2, 400, 2))
        x, y = lfilter([1], [1, -0.9], noise, axis=1)
        block = np.arange(400) // 40
        width = median_distance(np.concatenate([x, y]))
        by_block.append(mmd(x, block, y, block, width, 99, seed)[1])
        by_bin.append(mmd(x[::4], np.arange(100), y[::4], np.arange(100), width, 99, seed)[1])
        kl.append(gaussian_kl([(x, block), (y, block)], dataclasses.replace(QUICK, n_permutations=99, seed=seed))[1])
    assert np.mean(np.array(by_block) <= 0.05) <= 0.13  # 60 draws of 0.05: above 0.13 once in a hundred
    assert np.mean(np.array(kl) <= 0.05) <= 0.13
    assert np.mean(np.array(by_bin) <= 0.05) > 0.2
    assert 0.35 < np.mean(by_block) < 0.65


def simulated(day, severity, seed=0):
    r = simulate.recording(day, duration_s=300, n_units=40, severity=severity, seed=seed)
    counts = r.counts()
    n, names = len(counts), [f"e{i:02d}" for i in range(r.n_electrodes)]
    return r, Day(
        f"day{day}", None, BIN_S, names, counts.astype(float), np.zeros(n, int), np.ones(n, bool), r.velocity(),
        "velocity", "cm/s", None, r.behaviour.trials["result"].tolist(), [],
    )  # fmt: skip


def test_simulated_drift_is_found_and_its_absence_too():
    settings = dataclasses.replace(QUICK, block_s=15)
    _, source = simulated(0, 1.0)
    none = drift(source, simulated(210, 0.0)[1], settings)
    assert none.across.tuning.corrected_similarity.high > 1
    assert none.pd_excess_deg.low < 0
    assert none.across.rates.share_changed < 0.1
    assert none.across.tuning.share_pd_changed < 0.05
    assert none.across.distance.mmd_p > 0.05
    assert none.across.direction_distance < 0.1

    r, target = simulated(210, 1.0)
    found = drift(source, target, settings)
    assert found.across.tuning.corrected_similarity.high < 0.9
    assert found.pd_excess_deg.low > 5
    assert found.across.rates.share_changed > 0.3
    assert found.across.distance.kl_nats > 3 * none.across.distance.kl_nats
    assert found.across.distance.kl_p < 0.05
    assert set(found.across.rates.silenced) == {f"e{i:02d}" for i in np.flatnonzero(~r.units.alive)}
    kept = (r.units.generation == 0) & np.isfinite(found.across.tuning.pd_change_deg)
    error = np.array(found.across.tuning.pd_change_deg)[kept] - r.units.rotation_deg[kept]
    assert np.median(np.abs(wrap(error))) < 12  # what is planted, unit by unit
    inside = [
        abs(wrap(truth - middle)) <= half
        for truth, middle, half in zip(
            r.units.rotation_deg[kept],
            (np.array(found.across.tuning.pd_low_deg) + found.across.tuning.pd_high_deg)[kept] / 2,
            (np.array(found.across.tuning.pd_high_deg) - found.across.tuning.pd_low_deg)[kept] / 2,
            strict=True,
        )
    ]
    assert np.mean(inside) > 0.8  # position tuning turns along and leaks in, so not quite 95 %


def test_behaviour_and_directions():
    labels = np.tile([[3.0, 4.0], [-6.0, 8.0], [np.nan, 1.0]], (2000, 1))
    position = np.column_stack([np.linspace(0, 10, 6000), np.zeros(6000)])
    day = planted(
        1, **tuning(4), labels=labels, position=position, trial_results=["R", "F", "R", "R"], trial_s=[1.0, 2.0, 6.0]
    )
    told = behaviour(day)
    assert told.speed_quantiles == {"10": 5.0, "50": 7.5, "90": 10.0}
    assert told.position_range == pytest.approx([9.8, 0.0])
    assert (told.success_rate, told.n_trials, told.trial_results) == (0.75, 4, {"F": 1, "R": 3})
    assert told.median_trial_s == 2.0
    assert behaviour(dataclasses.replace(day, trial_results=["odd"])).success_rate is None
    turned = dataclasses.replace(day, labels=-labels)
    assert drift(day, turned, QUICK).across.direction_distance == 1.0
    assert drift(day, turned, QUICK).within.direction_distance == pytest.approx(0, abs=1e-3)
    one_way = dataclasses.replace(day, labels=np.abs(labels))
    assert drift(day, one_way, QUICK).across.direction_distance == pytest.approx(0.5, abs=1e-3)


def test_the_baseline_is_no_longer_than_the_target():
    before = tuning(6)
    found = drift(planted(1, n_bins=12000, **before), planted(2, n_bins=3200, **before), QUICK)
    assert found.within.seconds == pytest.approx((300, 160))
    assert found.across.seconds == pytest.approx((600, 160))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bin_s": 0.02}, "day2 at 0.02 s"),
        ({"channels": [f"x{i}" for i in range(6)]}, "no channel in common: day1 has e00, .*; day2 has x0"),
        ({"spikes": False}, "one holds spike counts and the other power"),
        ({"observed": np.arange(6000) < 1000}, "neurons are observed for 50 s, at least 8 blocks of 20 s"),
    ],
)
def test_sessions_that_cannot_be_compared(change, words):
    with pytest.raises(InputError, match=words):
        drift(planted(1, **tuning(6)), planted(2, **tuning(6), **change))


@pytest.mark.parametrize(("name", "value"), [("block_s", 2), ("lag_s", 5), ("lag_s", float("nan")), ("level", 1.0)])
def test_settings_that_make_no_sense(name, value):
    with pytest.raises(InputError, match=name):
        Settings(**{name: value})


def test_sessions_without_labels_or_with_other_ones_give_rates_and_distances():
    before = tuning(6)
    source = planted(1, **before)
    for change, words in (
        ({"labels": None}, "no velocity in day2"),
        ({"unit": "m/s"}, "tuning cannot be compared"),
        ({"labels": np.zeros((6000, 2))}, "have labels that move: no tuning"),
    ):
        found = drift(source, planted(2, **before, **change), QUICK)
        assert words in found.notes[0]
        assert found.across.tuning is None
        assert found.across.distance.kl_nats > 0
        json.dumps(found.to_json())
        drift_figure([found.to_json()])


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    source = Simulated(tmp_path_factory.mktemp("raw"), days=(0, 30, 210), duration_s=200, n_units=12)
    return [source.fetch(session_id) for session_id in source.list().index]


def test_command(call, recordings, tmp_path):
    code, out, _ = call("drift", *recordings, "--plot", tmp_path / "d.png", "--json", tmp_path / "d.json")
    assert code == 0
    assert "+30" in out
    assert "+210" in out
    assert (tmp_path / "d.png").read_bytes()[:4] == b"\x89PNG"
    told = json.loads((tmp_path / "d.json").read_text())
    assert [each["day_gap"] for each in told["targets"]] == [30, 210]
    files = [tmp_path / f"{i}.nc" for i in range(2)]
    for recording, file in zip(recordings, files, strict=False):
        prepare(recording, 0.05, out=file)
    code, out, _ = call("drift", "--json", *files)  # a recording is never taken for the file to write
    assert code == 0
    again = json.loads(out)["targets"][0]
    assert again == told["targets"][0]

    session = read_session(files[1])
    units = session.assign_attrs(channel_identity="unit").assign_coords(
        electrode=("channel", np.array([f"M1/{i // 2}" for i in range(session.sizes["channel"])]))
    )
    write_session(units, tmp_path / "units.nc")
    code, _, err = call("drift", tmp_path / "units.nc", files[0])
    assert code == 2
    assert "by = 'pool'" in " ".join(err.split())
    code, out, _ = call("drift", tmp_path / "units.nc", tmp_path / "units.nc", "--by", "pool", "--json", "-")
    assert code == 0
    assert json.loads(out)["targets"][0]["channel_policy"] == "pool"
    assert len(json.loads(out)["targets"][0]["channels"]["common"]) == 6
    code, _, err = call("drift", files[0], tmp_path / "units.nc")
    assert code == 2
    assert "sorted units" in err

    for attrs, start in (
        ({"session_start": "1925-03-03T00:00:00+00:00"}, None),
        ({"session_start": "soon"}, None),
        ({}, datetime(2014, 4, 2, 12, tzinfo=UTC)),
    ):
        assert day(session.assign_attrs(attrs)).start == start
    bare = session.drop_vars([n for n in session.data_vars if str(n) not in ("counts", "segment", "valid")])
    assert day(bare).labels is None
    assert behaviour(day(bare)).n_trials == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{0}", "missing.nwb"], "missing.nwb"),
        (["{0}", "{1}", "--variable", "velocty"], "velocty"),
        (["{0}", "{1}", "--block-s", "3"], "block_s must lie between 5"),
        (["{0}", "{1}", "--plot", "d.txt"], "must end in .png"),
    ],
)
def test_command_with_bad_input(call, recordings, arguments, message):
    code, out, err = call("drift", *[argument.format(*recordings) for argument in arguments])
    assert (code, out) == (2, "")
    assert message in err


def test_short_names():
    assert short_names(["a-1"]) == ["a-1"]
    assert short_names(["a-12", "a-13"]) == ["12", "13"]
    assert short_names(["mon", "mon"]) == ["mon", "mon"]


def test_real_sessions_drift_more_than_within_a_day(real_data):
    files = [real_data / "wrist92" / f"sub-S_ses-{day}_behavior+ecephys.nwb" for day in ("20120718", "20120822")]
    if not all(file.is_file() for file in files):
        pytest.skip("no wrist92 here")
    found = drift(*[day(prepare(file, 0.05)) for file in files], QUICK)
    assert found.day_gap == 35
    assert len(found.channels["common"]) == 96
    assert found.pd_excess_deg.low > 0
    assert found.across.distance.mmd2 > found.within.distance.mmd2
    assert found.across.rates.share_changed > found.within.rates.share_changed
    assert np.isfinite(found.across.rates.log_ratio).all()
