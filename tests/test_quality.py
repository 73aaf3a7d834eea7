"""Rules for faulty recordings, on arrays and on real sessions, none of which is known by name."""

import json

import h5py
import numpy as np
import pytest

from bci_adapt import quality
from bci_adapt.errors import InputError
from bci_adapt.prepare import prepare

ONE = np.zeros(100, dtype=np.int32)


def test_silence_counts_only_beyond_its_limit_and_within_a_segment():
    counts = np.ones((100, 3), np.uint16)
    counts[10:30] = 0  # exactly 1 s at 50 ms
    counts[40:61] = 0
    assert np.flatnonzero(quality.silent_bins(counts, ONE, 0.05, 1.0)).tolist() == list(range(40, 61))
    halves = (np.arange(100) >= 50).astype(np.int32)
    assert not quality.silent_bins(counts, halves, 0.05, 1.0).any()
    counts[50, 1] = 1
    assert not quality.silent_bins(counts, ONE, 0.05, 1.0).any()


def test_runs_at_the_edges_of_a_recording():
    silent, still = np.zeros((100, 3), np.uint16), np.ones((100, 2))
    assert quality.silent_bins(silent, ONE, 0.05, 1.0).all()
    assert quality.still_bins(still, ONE, 0.05, 4.9, 0.0).all()
    assert not quality.silent_bins(silent, ONE, 0.05, 5.0).any()  # 100 bins last 5 s, not longer
    assert not quality.still_bins(still, ONE, 0.05, 5.0, 0.0).any()
    for rows in (slice(0, 30), slice(70, 100)):
        counts, position = np.ones((100, 3), np.uint16), np.arange(200.0).reshape(100, 2)
        counts[rows], position[rows] = 0, 7.0
        expected = list(range(rows.start, rows.stop))
        assert np.flatnonzero(quality.silent_bins(counts, ONE, 0.05, 1.0)).tolist() == expected
        assert np.flatnonzero(quality.still_bins(position, ONE, 0.05, 1.0, 0.0)).tolist() == expected
    assert quality.silent_bins(silent[:0], ONE[:0], 0.05, 1.0).shape == (0,)
    halves = (np.arange(100) >= 50).astype(np.int32)
    assert not quality.still_bins(still, halves, 0.05, 3.0, 0.0).any()
    still[60] = np.nan  # what is not known is not still, wherever the cursor rests
    assert np.flatnonzero(quality.still_bins(still - 1.0, ONE, 0.05, 2.5, 0.0)).tolist() == list(range(60))
    for row, flagged in ((49, [46, 47, 48, 49]), (50, [50, 51, 52, 53])):
        fast = np.where(np.arange(100) == row, 200.0, 0.0)[:, None]
        assert np.flatnonzero(quality.fast_bins(fast, halves, 150.0, 3)).tolist() == flagged
    assert not quality.fast_bins(np.full((100, 2), np.nan), ONE, 150.0, 3).any()


def test_units_of_length_are_understood_or_not_at_all():
    known = {"m": 100, "meters/s": 100, "cm/s": 1, "Centimeters": 1, "mm": 0.1, "millimetre per second": 0.1}
    assert {unit: quality.cm_per_unit(unit) for unit in known} == known
    assert [quality.cm_per_unit(unit) for unit in ("ms", "", "a.u.", "pixels", "s")] == [None] * 5


def test_standing_still_is_not_slow_movement():
    t = np.arange(400)[:, None]
    position = np.hstack([np.sin(t / 5.0), np.cos(t / 5.0)]) * 3
    position[100:320] = 1.0
    segment = np.zeros(400, np.int32)
    assert np.flatnonzero(quality.still_bins(position, segment, 0.05, 10.0, 0.0)).tolist() == list(range(100, 320))
    creeping = position.copy()
    creeping[100:320, 0] = 1.0 + 0.01 * np.arange(220)
    assert not quality.still_bins(creeping, segment, 0.05, 10.0, 0.1).any()
    flicker = position.copy()
    flicker[100:320, 0] += 0.05 * (np.arange(220) % 2)
    assert quality.still_bins(flicker, segment, 0.05, 10.0, 0.1).sum() >= 220
    assert not quality.still_bins(position[:290], segment[:290], 0.05, 10.0, 0.0).any()


def test_fast_bins_take_their_neighbours():
    velocity = np.zeros((100, 2))
    velocity[[1, 50]] = [120.0, 120.0]  # 170 in length
    velocity[70] = [100.0, 100.0]  # 141
    flagged = np.flatnonzero(quality.fast_bins(velocity, ONE, 150.0, 3)).tolist()
    assert flagged == [0, 1, 2, 3, 4, *range(47, 54)]


def test_agreement_of_velocities():
    derived = np.random.default_rng(0).standard_normal((200, 2))
    usable = np.ones((200, 2), bool)
    correlation, factor = quality.velocity_agreement(2 * derived + 5, derived, usable)
    assert (correlation, factor) == (pytest.approx(1.0), pytest.approx(2.0))
    assert np.isnan(quality.velocity_agreement(derived * 0, derived, usable)[0])
    with pytest.raises(InputError, match="silent_s"):
        quality.Thresholds(silent_s=-1)


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
