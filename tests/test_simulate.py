"""Simulated behaviour, units, spikes and drift."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest

from bci_adapt.cli.bench.drift import severity_table, severity_text
from bci_adapt.data import simulate
from bci_adapt.errors import InputError


def digest(value) -> str:
    """SHA-256 of every array inside a recording."""
    if dataclasses.is_dataclass(value):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return hashlib.sha256("".join(map(digest, value)).encode()).hexdigest()
    return hashlib.sha256(np.asarray(value).tobytes()).hexdigest()


@pytest.mark.parametrize("task", simulate.TASKS)
def test_the_cursor_moves_as_in_reaching(task):
    b = simulate.recording(0, task=task, duration_s=240).behaviour
    assert len(b.time_s) == 24001
    assert (b.time_s[0], b.time_s[-1]) == (0.0, 240.0)
    assert np.all(np.diff(b.time_s) > 0)
    np.testing.assert_allclose(np.gradient(b.position_cm, b.time_s, axis=0), b.velocity_cm_s, atol=1e-9)

    speed = np.hypot(*b.velocity_cm_s.T)
    peaks = np.array([speed[round(t * 100) :][:60].max() for t in b.onset_s])
    assert np.percentile(peaks, 5) > 20
    assert np.percentile(peaks, 95) < 40
    assert np.abs(b.position_cm).max() < 13
    at_onset = np.array([speed[round(t * 100)] for t in b.onset_s])
    assert np.median(at_onset) < 1.5  # a reach begins at rest

    trials = b.trials
    assert np.all(trials["stop_s"] > trials["start_s"])
    assert np.all(trials["start_s"][1:] >= trials["stop_s"][:-1])
    assert np.mean(trials["result"] == "R") > 0.75
    go = trials["go_s"] if trials["go_s"].ndim == 2 else trials["go_s"][:, None]
    go = go[np.isfinite(go)]
    assert len(go) == len(b.onset_s)
    reaction = b.onset_s - go
    assert reaction.min() > 0.19
    assert reaction.max() < 0.6
    for row in np.flatnonzero(trials["result"] == "R"):
        end = b.position_cm[round(trials["stop_s"][row] * 100)]
        if task == "centre_out":
            target = 8 * np.array([np.cos(trials["target_dir"][row]), np.sin(trials["target_dir"][row])])
            assert np.hypot(*(end - target)) < 1.5
            assert trials["start_s"][row] < trials["target_on_s"][row] < trials["go_s"][row] < trials["stop_s"][row]
        else:
            assert np.all(np.diff(trials["go_s"][row]) > 0)
            assert trials["num_attempted"][row] == 4


def test_spikes_are_whole_milliseconds_drawn_from_the_rate():
    rate_hz = np.repeat([[0.0], [5.0], [60.0]], 60_000, axis=1)
    silent, slow, fast = simulate.spikes(rate_hz, np.random.default_rng(1))
    assert len(silent) == 0
    assert len(slow) == pytest.approx(3000, abs=4 * np.sqrt(3000))
    # at 60 Hz a 10 ms step holds 0.6 spikes; those that meet in one millisecond are one
    assert len(fast) == pytest.approx(36000 * (1 - 0.6 / 20), rel=0.02)
    for ms in (slow, fast):
        assert ms.dtype == np.int64
        assert np.all(np.diff(ms) >= 1)
        assert ms.min() >= 1
        assert ms.max() <= 600_000
    assert np.bincount((fast - 1) % 10, minlength=10).std() / (len(fast) / 10) < 0.05  # no preferred millisecond


def test_units_are_tuned_and_share_dynamics_that_are_not_in_the_kinematics():
    r = simulate.recording(0, duration_s=480, seed=3)
    counts, velocity = r.counts(), r.velocity()
    assert counts.shape == (9600, 60)
    assert counts.sum() == sum(map(len, r.spike_ms))
    assert 4 < counts.mean() / 0.05 < 25
    ahead = np.column_stack([np.ones(9598), velocity[2:]])  # units lead by about 100 ms
    fitted = np.linalg.lstsq(ahead, np.sqrt(counts[:-2]), rcond=None)[0][1:].T
    angle = np.angle((fitted @ [1, 1j]) * np.conj(r.units.velocity @ [1, 1j]))
    assert np.median(np.abs(angle)) < np.radians(15)

    z = simulate.latents(r.behaviour, np.random.default_rng(0))
    np.testing.assert_allclose(z.std(axis=0), 1, rtol=1e-9)
    # Counts cleared of everything kinematic still move together: one direction holds more of their variance than
    # when each unit is shifted in time by an amount of its own.
    b = r.behaviour
    samples = np.column_stack([b.position_cm, b.velocity_cm_s, np.hypot(*b.velocity_cm_s.T), np.ones(len(z))])[2::5]
    kinematics = np.column_stack([np.roll(samples, -k, axis=0) for k in range(6)])[:9600]
    root = np.sqrt(counts)
    left = root - kinematics @ np.linalg.lstsq(kinematics, root, rcond=None)[0]
    left = left.reshape(-1, 5, 60).mean(axis=1)
    shifted = np.column_stack([np.roll(left[:, i], 20 * i) for i in range(60)])
    top, chance = (np.linalg.eigvalsh(np.cov(x.T))[-1] for x in (left, shifted))
    assert top > 2 * chance


def test_same_arguments_same_bytes_and_days_share_a_trajectory():
    arguments = {"duration_s": 60, "n_units": 70, "n_electrodes": 96, "seed": 5}
    assert digest(simulate.recording(30, **arguments)) == digest(simulate.recording(30, **arguments))
    for other in ({"seed": 6}, {"severity": 0.5}, {"task": "random_target"}):
        assert digest(simulate.recording(30, **arguments | other)) != digest(simulate.recording(30, **arguments))

    days = {day: simulate.population(day, 300, 300, 1.0, 5) for day in (0, 30, 31, 210)}
    assert digest(days[0]) == digest(simulate.population(0, 300, 300, 2.0, 5))
    assert np.all(days[0].rotation_deg == 0)
    assert days[0].alive.all()
    for earlier, later in ((0, 30), (30, 31), (31, 210)):
        assert np.all(days[later].generation >= days[earlier].generation)
        assert np.all(days[earlier].alive | ~days[later].alive)
        np.testing.assert_array_equal(days[earlier].electrode, days[later].electrode)
    same = days[210].generation == 0
    np.testing.assert_allclose(
        np.hypot(*days[0].velocity[same].T) * np.exp(days[210].log_gain[same]), np.hypot(*days[210].velocity[same].T)
    )
    step = (days[31].rotation_deg - days[30].rotation_deg)[days[31].generation == 0]
    assert step.std() == pytest.approx(
        simulate.parameters()["drift"]["preferred_direction"]["sd_deg_per_sqrt_day"], rel=0.15
    )
    since_start = days[210].rotation_deg[same].std() / days[30].rotation_deg[days[30].generation == 0].std()
    assert since_start == pytest.approx(np.sqrt(7), rel=0.25)
    replaced = (days[210].generation > 0) & (days[30].generation == 0)
    assert np.all(days[210].log_rate[replaced] != days[30].log_rate[replaced])
    p = simulate.parameters()["drift"]
    for happened, hazard in ((~same, "turnover"), (~days[210].alive, "electrode_loss")):
        expected = 1 - np.exp(-210 * p[hazard]["hazard_per_day"])
        assert happened.mean() == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / 300))
    for name, table in p.items():
        assert table["published"], name
        assert table["assumed"], name


def test_electrodes_pool_units_and_go_silent():
    r = simulate.recording(210, duration_s=60, n_units=50, n_electrodes=20, severity=20.0, seed=1)
    assert np.bincount(r.units.electrode, minlength=20).min() >= 2
    dead = np.setdiff1d(np.arange(20), r.unit_electrode)
    assert 0 < len(dead) < 20
    assert np.all(r.counts()[:, dead] == 0)
    assert len(r.spike_ms) == r.units.alive.sum() == len(r.unit_electrode)


def test_severity_one_costs_a_frozen_decoder_half_or_more_of_what_it_had():
    rows = severity_table((0.0, 0.25, 1.0), seeds=(0, 1, 2))
    by = {row["severity"]: row for row in rows}
    assert by[0.0]["frozen_r2"] == pytest.approx(by[0.0]["own_r2"], abs=0.06)
    assert by[0.0]["turnover"] == by[0.0]["rotation_sd_deg"] == 0
    assert 0.70 < by[1.0]["own_r2"] < 0.84
    assert 0.15 < by[1.0]["frozen_r2"] < 0.45
    assert by[1.0]["retrained_r2"] > 0.65
    assert by[0.0]["frozen_r2"] > by[0.25]["frozen_r2"] > by[1.0]["frozen_r2"]
    text = severity_text(rows)
    assert text.count("\n") == 4
    assert f"{by[1.0]['frozen_r2']:.2f} ± " in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"task": "maze"}, "centre_out, random_target; got 'maze'"),
        ({"day": -1}, "day must be a whole number of at least 0"),
        ({"n_units": 2.5}, "n_units must be a whole number"),
        ({"n_electrodes": 0}, "n_electrodes must be a whole number of at least 1"),
        ({"duration_s": 5}, "duration_s must lie between 30"),
        ({"severity": float("nan")}, "severity must lie between 0"),
    ],
)
def test_arguments_that_cannot_be_simulated(arguments, words):
    with pytest.raises(InputError, match=words.replace("(", r"\(")):
        simulate.recording(**arguments)
