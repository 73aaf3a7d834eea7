"""Rules for faulty recordings, on arrays and on real sessions, none of which is known by name."""

import json
from collections import defaultdict
from itertools import pairwise

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bci_adapt.data import faults
from bci_adapt.data.from_arrays import session
from bci_adapt.data.prepare import prepare
from bci_adapt.errors import InputError

ONE = np.zeros(100, dtype=np.int32)


def test_silence_counts_only_beyond_its_limit_and_within_a_segment():
    counts = np.ones((100, 3), np.uint16)
    counts[10:30] = 0  # exactly 1 s at 50 ms
    counts[40:61] = 0
    assert np.flatnonzero(faults.silent_bins(counts, ONE, 0.05, 1.0)).tolist() == list(range(40, 61))
    halves = (np.arange(100) >= 50).astype(np.int32)
    assert not faults.silent_bins(counts, halves, 0.05, 1.0).any()
    counts[50, 1] = 1
    assert not faults.silent_bins(counts, ONE, 0.05, 1.0).any()


def test_runs_at_the_edges_of_a_recording():
    silent, still = np.zeros((100, 3), np.uint16), np.ones((100, 2))
    assert faults.silent_bins(silent, ONE, 0.05, 1.0).all()
    assert faults.still_bins(still, ONE, 0.05, 4.9, 0.0).all()
    assert not faults.silent_bins(silent, ONE, 0.05, 5.0).any()  # 100 bins last 5 s, not longer
    assert not faults.still_bins(still, ONE, 0.05, 5.0, 0.0).any()
    for rows in (slice(0, 30), slice(70, 100)):
        counts, position = np.ones((100, 3), np.uint16), np.arange(200.0).reshape(100, 2)
        counts[rows], position[rows] = 0, 7.0
        expected = list(range(rows.start, rows.stop))
        assert np.flatnonzero(faults.silent_bins(counts, ONE, 0.05, 1.0)).tolist() == expected
        assert np.flatnonzero(faults.still_bins(position, ONE, 0.05, 1.0, 0.0)).tolist() == expected
    assert faults.silent_bins(silent[:0], ONE[:0], 0.05, 1.0).shape == (0,)
    halves = (np.arange(100) >= 50).astype(np.int32)
    assert not faults.still_bins(still, halves, 0.05, 3.0, 0.0).any()
    still[60] = np.nan  # what is not known is not still, wherever the cursor rests
    assert np.flatnonzero(faults.still_bins(still - 1.0, ONE, 0.05, 2.5, 0.0)).tolist() == list(range(60))
    for row, flagged in ((49, [46, 47, 48, 49]), (50, [50, 51, 52, 53])):
        fast = np.where(np.arange(100) == row, 200.0, 0.0)[:, None]
        assert np.flatnonzero(faults.fast_bins(fast, halves, 150.0, 3)).tolist() == flagged
    assert not faults.fast_bins(np.full((100, 2), np.nan), ONE, 150.0, 3).any()


def test_units_of_length_are_understood_or_not_at_all():
    known = {"m": 100, "meters/s": 100, "cm/s": 1, "Centimeters": 1, "mm": 0.1, "millimetre per second": 0.1}
    assert {unit: faults.cm_per_unit(unit) for unit in known} == known
    assert [faults.cm_per_unit(unit) for unit in ("ms", "", "a.u.", "pixels", "s")] == [None] * 5


def test_standing_still_is_not_slow_movement():
    t = np.arange(400)[:, None]
    position = np.hstack([np.sin(t / 5.0), np.cos(t / 5.0)]) * 3
    position[100:320] = 1.0
    segment = np.zeros(400, np.int32)
    assert np.flatnonzero(faults.still_bins(position, segment, 0.05, 10.0, 0.0)).tolist() == list(range(100, 320))
    creeping = position.copy()
    creeping[100:320, 0] = 1.0 + 0.01 * np.arange(220)
    assert not faults.still_bins(creeping, segment, 0.05, 10.0, 0.1).any()
    flicker = position.copy()
    flicker[100:320, 0] += 0.05 * (np.arange(220) % 2)
    assert faults.still_bins(flicker, segment, 0.05, 10.0, 0.1).sum() >= 220
    assert not faults.still_bins(position[:290], segment[:290], 0.05, 10.0, 0.0).any()


def test_fast_bins_take_their_neighbours():
    velocity = np.zeros((100, 2))
    velocity[[1, 50]] = [120.0, 120.0]  # 170 in length
    velocity[70] = [100.0, 100.0]  # 141
    flagged = np.flatnonzero(faults.fast_bins(velocity, ONE, 150.0, 3)).tolist()
    assert flagged == [0, 1, 2, 3, 4, *range(47, 54)]


def test_agreement_of_velocities():
    derived = np.random.default_rng(0).standard_normal((200, 2))
    usable = np.ones((200, 2), bool)
    correlation, factor = faults.velocity_agreement(2 * derived + 5, derived, usable)
    assert (correlation, factor) == (pytest.approx(1.0), pytest.approx(2.0))
    assert np.isnan(faults.velocity_agreement(derived * 0, derived, usable)[0])
    with pytest.raises(InputError, match="silent_s"):
        faults.Thresholds(silent_s=-1)


def test_faulty_days_are_found_by_rule(real_data):
    """What the rules flag against the same facts computed from the raw arrays, for every session of the folder."""
    files = sorted((real_data / "wrist92").glob("*.nwb"))
    assert len(files) == 15
    found = {"silent": [], "still": []}
    for path in files:
        session = prepare(path, 0.05)
        with h5py.File(path) as raw:
            counts = raw["acquisition/ThresholdCrossings/data"][()]
            position = raw["processing/behavior/Position/cursor_pos/data"][()]
        all_silent = (counts.sum(axis=1) == 0).mean()
        minutes = len(position) // 1200
        parked = sum(np.ptp(position[i * 1200 : (i + 1) * 1200], axis=0).max() <= 0.1 for i in range(minutes))
        assert (1 - float(session["valid"].mean()) > 0.1) == (all_silent > 0.1), path.name
        lost = 1 - float(session["velocity_valid"].mean())
        assert (lost > 0.3) == (parked >= 6), path.name
        found["silent"] += [path.name] if all_silent > 0.1 else []
        found["still"] += [path.name] if parked >= 6 else []
        warnings = " ".join(json.loads(session.attrs["warnings"]))
        assert "recorded velocity is not the difference of position" in warnings, path.name
        assert ("every channel silent" in warnings) >= (path.name in found["silent"])
        # What is flagged stays in place.
        np.testing.assert_array_equal(session["position"].values, position)
        np.testing.assert_array_equal(session["counts"].values, counts)
    assert (len(found["silent"]), len(found["still"])) == (1, 1)


def slow_statistics(ticks, units, channel_of_unit, n_channels):
    """What `spike_statistics` counts, one spike at a time; times in ticks of 1 µs."""
    n_spikes, n_short, n_coincident = ([0] * n_channels for _ in range(3))
    of_unit, window = defaultdict(list), defaultdict(list)
    for tick, unit in zip(ticks, units, strict=True):
        n_spikes[channel_of_unit[unit]] += 1
        of_unit[unit].append(tick)
        window[-(-tick // 1000)].append(channel_of_unit[unit])  # the window that ends at or after the spike
    for unit, times in of_unit.items():
        times.sort()
        for before, after in pairwise(times):
            n_short[channel_of_unit[unit]] += after - before < 1000
    for channels in window.values():
        if len(set(channels)) >= 3 and 3 * len(set(channels)) >= n_channels:
            for channel in channels:
                n_coincident[channel] += 1
    return {"n_spikes": n_spikes, "n_short_isi": n_short, "n_coincident": n_coincident}


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 12).flatmap(
        lambda n: st.tuples(
            st.just(n),
            st.lists(st.integers(0, n - 1), min_size=1, max_size=15),
            st.lists(st.tuples(st.integers(-4000, 8000), st.integers(0, 99)), max_size=80),
        )
    )
)
def test_spike_statistics_equal_a_slow_loop(drawn):
    n_channels, channel_of_unit, spikes = drawn
    ticks, units = [tick for tick, _ in spikes], [unit % len(channel_of_unit) for _, unit in spikes]
    found = faults.spike_statistics(np.array(ticks) / 1e6, units, channel_of_unit, n_channels)
    assert {name: values.tolist() for name, values in found.items()} == slow_statistics(
        ticks, units, channel_of_unit, n_channels
    )
    assert {values.dtype for values in found.values()} == {np.dtype(np.int64)}


def test_edges_of_spike_statistics():
    def n(times_ms, units, channels, n_channels):
        found = faults.spike_statistics(np.array(times_ms) / 1000, units, channels, n_channels)
        return found["n_short_isi"].tolist(), found["n_coincident"].tolist()

    assert n([0.0, 1.0, 1.999, 2.999], [0] * 4, [0], 1) == ([1], [0])  # 1 ms exactly is not below it
    assert n([0.2, 0.4], [0, 1], [0, 0], 1) == ([0], [0])  # two units of a channel may fire at once
    assert n([1.0, 0.001, 0.5], [0, 1, 2], [0, 1, 2], 3)[1] == [1, 1, 1]  # one window, (0, 1] ms
    assert n([1.001, 0.001, 0.5], [0, 1, 2], [0, 1, 2], 3)[1] == [0, 0, 0]
    assert n([0.1, 0.2, 0.3], [0, 1, 2], [0, 1, 2], 9)[1] == [1, 1, 1] + [0] * 6
    assert n([0.1, 0.2, 0.3], [0, 1, 2], [0, 1, 2], 10)[1] == [0] * 10  # a third of ten are four
    assert n([], [], [], 2) == ([0, 0], [0, 0])
    for arguments in (([0.1], [1], [0], 1), ([0.1], [0], [1], 1), ([0.1], [0, 0], [0], 1), ([np.nan], [0], [0], 1)):
        with pytest.raises(InputError):
            faults.spike_statistics(*arguments)


def test_contamination_is_what_was_mixed_in():
    """A refractory train, and foreign spikes that keep their own refractory period: f is what was put in."""
    rng, duration_s = np.random.default_rng(0), 4000.0

    def train(rate_hz):
        times = np.cumsum(0.002 + rng.exponential(1 / rate_hz - 0.002, round(rate_hz * duration_s)))
        return times[times < duration_s]

    for fraction in (0.05, 0.2):
        mixed = np.concatenate([train(30 * (1 - fraction)), train(30 * fraction)])
        found = faults.spike_statistics(mixed, np.zeros(mixed.size, int), [0], 1)
        share = faults.contamination(found["n_spikes"], found["n_short_isi"], duration_s)
        assert share == pytest.approx([fraction], rel=0.1)
    assert faults.contamination(np.array([100]), np.array([0]), 10.0).tolist() == [0.0]
    assert faults.contamination(np.array([100]), np.array([50]), 10.0).tolist() == [0.5]  # beyond any mixture
    assert np.isnan(faults.contamination(np.array([0]), np.array([0]), 10.0)).all()


def test_coincidence_is_judged_by_what_chance_gives():
    rng = np.random.default_rng(0)
    valid = np.ones(20_000, bool)
    for n_channels in (6, 30, 200):
        counts = rng.poisson(rng.uniform(0.1, 3, n_channels), (20_000, n_channels)).astype(np.uint16)
        above, least = faults.coincident_bins(counts, valid, 0.001, 0.01)
        assert (above >= least).sum() == 0
        assert least < 6 + 0.1 * n_channels  # and no laxer than it must be
        counts[77] += 10
        valid[88], counts[88] = False, 50
        above, least = faults.coincident_bins(counts, valid, 0.001, 0.01)
        assert np.flatnonzero(above >= least).tolist() == [77]
        valid[88] = True


def test_correlation_is_that_of_changes_within_segments(monkeypatch):
    rng = np.random.default_rng(0)
    counts = rng.poisson(2.0, (3000, 6)).astype(np.uint16)
    counts[:, 4] = counts[:, 1]
    counts[:, 5] = 3
    slow = (3 + 3 * np.sin(np.arange(3000) / 300)).astype(np.uint16)[:, None]
    segment, use = (np.arange(3000) >= 1234).astype(np.int32), rng.random(3000) < 0.9
    pairs = (np.diff(segment) == 0) & use[1:] & use[:-1]
    changes = np.diff((counts + slow).astype(float), axis=0)[pairs]
    with np.errstate(invalid="ignore"):
        expected = np.corrcoef(changes.T)
    np.fill_diagonal(expected, 0.0)
    for chunk in (2**14, 100):
        monkeypatch.setattr(faults, "_CHUNK", chunk)
        found = faults.correlations(counts + slow, segment, use)
        np.testing.assert_allclose(found, expected, atol=1e-12)
    assert np.abs(found[0]).max() < 0.1 < np.corrcoef((counts + slow)[:, :5].T)[0, 2]  # what is slow is not shared
    assert found[1, 4] == pytest.approx(1.0)
    assert np.abs(faults.correlations(counts, segment, use)[5]).max() == 0  # never changes
    assert faults.same_as_earlier(counts, use).tolist() == [-1, -1, -1, -1, 1, -1]
    counts[~use, 4] = 60
    assert faults.same_as_earlier(counts, use)[4] == 1
    assert faults.same_as_earlier(counts, ~use)[4] == -1


def test_drift_has_unit_variance_without_drift_and_finds_it():
    rng = np.random.default_rng(0)
    rates = np.geomspace(1, 300, 3000)
    steady = rng.poisson(rates, (60, 3000)).astype(float)
    ratio, z = faults.rate_drift(steady)
    assert abs(z.mean()) < 0.1
    assert 0.75 < z.std() < 1.25
    assert np.abs(z).max() < 6
    halved = steady.copy()
    halved[40:] = rng.binomial(steady[40:].astype(int), 0.5)
    ratio, z = faults.rate_drift(halved)
    assert np.median(ratio[rates > 60]) == pytest.approx(-1, abs=0.05)
    assert z[rates > 60].max() < -5
    steady[45] = 1e4  # one bad block is not drift
    assert np.abs(faults.rate_drift(steady)[1]).max() < 6
    assert np.isnan(faults.rate_drift(steady[:8])).all()
    use = np.arange(100) % 10 > 0
    sums = faults.block_sums(np.ones((100, 2), np.uint16), use, 20)
    np.testing.assert_array_equal(sums, np.full((4, 2), 20.0))
    assert faults.block_sums(np.ones((5, 2)), use[:5], 20).shape == (0, 2)
    known = faults.robust_z(np.array([1.0, 2.0, 3.0, 100.0, np.nan]), 0.1)
    assert known[:4] == pytest.approx((np.array([1, 2, 3, 100]) - 2.5) / 1.4826)
    assert np.isnan(known[4])


def test_jumps_are_not_movement():
    t = np.arange(2000) * 0.05
    smooth = np.stack([5 * np.sin(2 * np.pi * 0.7 * t), 5 * np.cos(2 * np.pi * 0.5 * t)], axis=1)
    segment = np.zeros(2000, np.int32)

    def found(position, segment=segment):
        return np.flatnonzero(faults.position_jumps(position, segment, 10.0, 0.05)).tolist()

    assert found(smooth) == []
    for row in (1, 500, 1998):
        moved = smooth.copy()
        moved[row:] += [15.0, 0.0]
        assert found(moved) == ([row] if 1 < row < 1999 else [])  # nothing beside the first step to hold it against
    glitch = smooth.copy()
    glitch[700] += 20.0
    assert found(glitch) == [700, 701]
    parts = (np.arange(2000) >= 500).astype(np.int32)
    moved = smooth + 15.0 * parts[:, None]
    assert found(moved, parts) == []  # a gap is no jump
    lost = smooth.copy()
    lost[500:510] = np.nan
    assert found(lost) == []
    assert found(np.full((2000, 2), np.nan)) == found(np.zeros((2000, 2))) == []
    reach = np.zeros((2000, 1))
    for start in range(100, 1900, 60):  # minimum-jerk reaches of 300 ms, there and back, in bins of 50 ms
        s = np.clip((np.arange(2000) - start) / 6, 0, 1)
        reach[:, 0] += (8 if start % 120 else -8) * (10 * s**3 - 15 * s**4 + 6 * s**5)
    assert found(reach) == []


@pytest.mark.parametrize("lead", [-3, 0, 4])
def test_lag_is_found_on_either_side(lead):
    rng = np.random.default_rng(lead + 10)
    n = 6000
    target = np.stack([np.convolve(rng.standard_normal(n + 20), np.hanning(20), "same")[:n] for _ in range(2)], axis=1)
    ahead = np.roll(target, -lead, axis=0)
    counts = rng.poisson(np.exp(0.5 + ahead @ rng.normal(0, 0.15, (2, 30)))).astype(np.uint16)
    segment = np.repeat(np.arange(4), n // 4).astype(np.int32)
    lags = np.arange(-6, 7)
    use = rng.random(n) < 0.9
    target[300:320] = np.nan
    moments = faults.lag_moments(counts, target, segment, use, lags)
    curve = faults.lag_correlation(moments)
    assert curve.shape == (2, 13)
    assert lags[curve.mean(axis=0).argmax()] == lead
    assert np.abs(lags[faults.lag_peaks(moments)] - lead).max() <= 1
    assert curve.max() > 0.7

    # The first half is decoded by weights of the second: those, written out at the best lag.
    rows = np.flatnonzero(use)
    rows = [i for i in rows if all(0 <= i + k < n and segment[i + k] == segment[i] for k in (-6, 6))]
    rows = np.array([i for i in rows if np.isfinite(target[i - 6 : i + 7]).all()])
    middle = rows[rows.size // 2]
    train, test = rows[rows >= middle], rows[rows < middle - 12]
    x, y = np.sqrt(counts[train].astype(float)), target[train + lead]
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    weights = np.linalg.solve(z.T @ z + 0.01 * len(z) * np.eye(30), z.T @ (y - y.mean(axis=0)))
    decoded = (np.sqrt(counts[test].astype(float)) - x.mean(axis=0)) / x.std(axis=0) @ weights
    blocks = [np.array_split(each, 10) for each in (decoded, target[test + lead])]
    same = np.abs(np.diff([len(part) for part in blocks[0]])).max() == 0
    expected = [np.corrcoef(decoded[:, k], target[test + lead][:, k])[0, 1] for k in (0, 1)]
    assert curve[0, lead + 6] == pytest.approx(np.mean(expected), abs=1e-10 if same else 1e-3)

    few = faults.lag_moments(counts[:80], target[:80], segment[:80], use[:80], lags)
    assert few.shape == (0, 10, 13, 2, 5)
    thin = faults.lag_moments(counts, target, segment, use, lags, max_rows=1500)
    assert lags[faults.lag_correlation(thin).mean(axis=0).argmax()] == lead
    counts[:, 3] = 0  # a dead channel changes nothing
    assert faults.lag_correlation(faults.lag_moments(counts, target, segment, use, lags)).max() > 0.6


def test_a_resting_animal_is_no_broken_recording():
    rng = np.random.default_rng(3)
    n, none = 2000, np.zeros(2000, bool)
    segment = np.zeros(n, np.int32)
    moving = np.cumsum(rng.standard_normal((n, 2)), axis=0)
    resting, stuck = moving.copy(), moving.copy()
    resting[500:900] = 3.0 + 1e-3 * rng.standard_normal((400, 2))  # a live sensor never repeats itself
    stuck[500:900] = 3.0 + 1e-2 * np.round(0.4 * rng.standard_normal((400, 2)))  # flickers by its last digit
    still = np.zeros(n, bool)
    still[500:900] = True
    for position, expected in ((resting, none), (stuck, still)):
        found = faults.still_bins(position, segment, 0.05, 10.0, 0.1)
        assert (found[500:900]).all()
        assert np.array_equal(faults.stuck_bins(found, position, segment, none)[500:900], expected[500:900])
    # neurons silent as well: nothing was recorded, whatever the noise of the sensor
    assert np.array_equal(faults.stuck_bins(still, resting, segment, still), still)
    one_axis = resting.copy()
    one_axis[500:900, 0] = 3.0
    assert not faults.stuck_bins(still, one_axis, segment, none).any()


def test_a_resting_animal_keeps_its_labels(real_data):
    rested = 0.0
    for path in sorted((real_data / "indy64").glob("*.nwb"))[2:7]:
        quality = json.loads(prepare(path, 0.064).attrs["quality"])
        assert quality["still_s"] == 0.0, path.name
        rested += quality["rest_s"]
    assert rested > 60.0


@pytest.mark.parametrize("units", ["", "px"])
def test_limits_of_length_are_off_where_the_unit_is_none(units):
    times_s = np.arange(0, 60, 0.02)
    position = np.stack([np.sin(times_s) * 400 + 600, np.cos(times_s) * 400 + 600], axis=1)
    spikes = [np.sort(np.random.default_rng(i).uniform(0, 60, 300)) for i in range(4)]
    made = session(spikes, position, times_s, bin_s=0.05, target_units=units)
    assert made["velocity_valid"].values[1:].all()
    assert made["position"].attrs["units"] == units
    said = json.loads(made.attrs["warnings"])
    assert any("no limit in cm/s applies" in each and (units or "not given") in each for each in said)
    known = session(spikes, position, times_s, bin_s=0.05, target_units="cm")
    assert not known["velocity_valid"].values.any()  # 400 cm/s: where the unit is known the limit holds


def test_a_jump_is_found_in_any_unit_and_movement_is_none():
    rng = np.random.default_rng(0)
    position = np.cumsum(rng.standard_normal((4000, 2)), axis=0) * 0.1
    jumped = position.copy()
    jumped[2000:] += 500.0
    for scale in (1.0, 37.8):  # whatever the unit is
        smooth, jump = (np.diff(scale * each, axis=0, prepend=np.nan) for each in (position, jumped))
        assert np.nanmax(np.linalg.norm(smooth, axis=1)) < faults.jump_limit(smooth)
        fast = faults.fast_bins(jump, np.zeros(4000, int), faults.jump_limit(jump), 3)
        assert np.flatnonzero(fast).tolist() == list(range(1997, 2004))
    rests = np.zeros((4000, 2))
    rests[100:115] = 3.0  # the only movement there is
    assert faults.jump_limit(rests) == np.inf
    assert faults.jump_limit(np.full((10, 2), np.nan)) == np.inf
