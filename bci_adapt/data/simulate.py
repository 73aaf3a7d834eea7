"""Simulated reaching and motor cortex: cursor, trials, spike times, and drift between days. Arrays only.

Behaviour is a sum of minimum-jerk movements (Flash & Hogan 1985, J Neurosci 5:1688) between targets, with reaction
times, holds, curvature, endpoint scatter and corrections. A unit's rate is log-linear,

    log λ(t) = b + g [ R(φ) d_v · v(t + lead) / 20 cm/s + d_s |v(t + lead)| / 20 cm/s
                       + R(φ) d_p · p(t + lead) / 8 cm + d_z · z(t + lead) ],

where the latents z (preparation, a burst at movement onset, a damped rotation, slow engagement) are not in the
kinematics. Between days b, log g and φ walk at random, units are replaced by new ones and electrodes fall silent; the
parameters of all this, with what has been published about them, are in ``drift_parameters.toml``.

Everything is drawn from `numpy.random.default_rng` under the given seed: the same arguments give the same bytes, and
the drift up to a day does not depend on which other days are asked for.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from bci_adapt.errors import InputError

Array = NDArray[np.float64]

TASKS = ("centre_out", "random_target")
PARAMETERS = Path(__file__).with_name("drift_parameters.toml")
STEP_S = 0.01  # cursor samples, and steps over which a rate is constant
STEP_MS = 10
REACH_CM = 8.0  # from the centre to a centre-out target
WORKSPACE_CM = 9.0  # half the width of the square that random targets come from
SPEED_CM_S = 20.0  # unit of speed in which tuning is given
_BEHAVIOUR, _UNIT, _DRIFT, _LATENTS, _SPIKES, _PLACES = range(6)  # independent random streams of one seed


@cache
def parameters() -> dict[str, Any]:
    """Return the tables of ``drift_parameters.toml``."""
    return tomllib.loads(PARAMETERS.read_text(encoding="utf-8"))


# ---------------------------------------------------------------------------------------------------- behaviour


@dataclass(frozen=True)
class Behaviour:
    """Cursor and trials of one session; n_samples = duration_s · 100 + 1, the first at 0 s.

    `trials` maps a column to an array whose first axis is trials: start_s, stop_s, result ("R" reward, "A" abort, "F"
    fail, "I" incomplete), target_dir in radians, and target_on_s, go_s, target_id (centre-out) or go_s (n_trials, 4),
    num_attempted, num_targets (random targets). A cue that never came is NaN. `onset_s` holds the onsets of movement
    towards a target (n_reaches,), `plan` the direction of the coming reach while it is known (n_samples, 2).
    """

    time_s: Array
    position_cm: Array
    velocity_cm_s: Array
    acceleration_cm_s2: Array
    trials: dict[str, NDArray[Any]]
    onset_s: Array
    plan: Array


class _Hand:
    """A cursor that moves where it is told; collects displacements on the sample grid."""

    def __init__(self, duration_s: float, rng: np.random.Generator) -> None:
        self.rng = rng
        self.n_samples = round(duration_s / STEP_S) + 1
        self.steps = np.zeros((self.n_samples, 2))
        self.plan = np.zeros((self.n_samples, 2))
        self.at = np.zeros(2)
        self.onsets: list[float] = []

    def move(self, onset_s: float, target: Array, scatter_cm: float = 0.35, reach: bool = True) -> float:
        """Move to `target` from `onset_s` on; return when the cursor is there.

        Peak speed grows with distance within 20-40 cm/s; a minimum-jerk movement over D cm lasts 1.875 D / peak.
        """
        end = target + self.rng.normal(0.0, scatter_cm, 2)
        distance = float(np.hypot(*(end - self.at)))
        typical = 17.0 + 1.4 * distance + self.rng.normal(0.0, 2.5) - (0.0 if reach else 4.0)
        duration_s = max(1.875 * distance / np.clip(typical, 21.0, 38.0), 0.25)
        self._add(onset_s, duration_s, end - self.at, bend=self.rng.normal(0.0, 0.05))
        if reach:
            self.onsets.append(onset_s)
        self.at = end
        done_s = onset_s + duration_s
        miss = target - self.at
        if np.hypot(*miss) > 0.5:  # a correction that overlaps the end of the movement (Flash & Henis 1991)
            self._add(done_s - 0.1, 0.3, 0.8 * miss)
            self.at = self.at + 0.8 * miss
            done_s += 0.2
        return done_s

    def prepare(self, start_s: float, stop_s: float, target: Array) -> None:
        """Let the direction to `target` be known from start to stop."""
        rows = slice(round(start_s / STEP_S), round(stop_s / STEP_S))
        self.plan[rows] = (target - self.at) / max(float(np.hypot(*(target - self.at))), 1.0)

    def _add(self, onset_s: float, duration_s: float, displacement: Array, bend: float = 0.0) -> None:
        first = int(onset_s / STEP_S)
        rows = np.arange(first, min(int((onset_s + duration_s) / STEP_S) + 3, self.n_samples))
        u = np.clip((np.append(rows[0] - 1, rows) * STEP_S - onset_s) / duration_s, 0.0, 1.0)
        along = u**3 * (10 - 15 * u + 6 * u * u)
        across = 64 * bend * (u * (1 - u)) ** 3  # starts and ends with no speed and no acceleration, as `along` does
        path = along[:, None] * displacement + across[:, None] * np.array([-displacement[1], displacement[0]])
        self.steps[rows] += np.diff(path, axis=0)


def _centre_out(duration_s: float, rng: np.random.Generator) -> tuple[_Hand, dict[str, list[Any]]]:
    """Centre hold, instructed delay, reach to one of eight targets in balanced random order, hold, and back."""
    hand, centre, clock = _Hand(duration_s, rng), np.zeros(2), 0.5
    trials: dict[str, list[Any]] = {
        key: [] for key in ("start_s", "stop_s", "result", "target_on_s", "go_s", "target_id", "target_dir")
    }
    queue: list[int] = []
    while clock + 7.0 < duration_s:
        queue = queue or rng.permutation(8).tolist()
        target_id = queue.pop()
        direction = target_id * np.pi / 4
        target = REACH_CM * np.array([np.cos(direction), np.sin(direction)])
        result = str(rng.choice(["R", "A", "F", "I"], p=[0.9, 0.04, 0.03, 0.03]))
        start_s = clock
        clock = hand.move(start_s + _reaction_s(rng), centre, reach=False) + rng.uniform(0.4, 0.7)
        target_on_s, go_s = clock, clock + rng.uniform(0.5, 1.0)
        if result == "A":  # left the centre before the target came
            target_on_s = go_s = np.nan
        elif result == "I":  # gave up during the delay
            clock = target_on_s + rng.uniform(0.2, 0.45)
            go_s = np.nan
        else:
            onset_s = go_s + _reaction_s(rng)
            hand.prepare(target_on_s + 0.1, onset_s, target)
            clock = hand.move(onset_s, target, scatter_cm=1.5 if result == "F" else 0.35) + rng.uniform(0.4, 0.6)
        row = (start_s, clock, result, target_on_s, go_s, float(target_id), (direction + np.pi) % (2 * np.pi) - np.pi)
        for key, value in zip(trials, row, strict=True):
            trials[key].append(value)
        clock += rng.uniform(0.3, 0.6)
    return hand, trials


def _random_target(duration_s: float, rng: np.random.Generator) -> tuple[_Hand, dict[str, list[Any]]]:
    """Four targets in a row, each 5-15 cm from the last, the next shown when one is reached."""
    hand, clock = _Hand(duration_s, rng), 0.5
    trials: dict[str, list[Any]] = {
        key: [] for key in ("start_s", "stop_s", "result", "go_s", "num_attempted", "num_targets", "target_dir")
    }
    while clock + 8.0 < duration_s:
        start_s, cues, first = clock, np.full(4, np.nan), 0.0
        attempted = 4 if rng.random() < 0.93 else int(rng.integers(1, 4))
        clock += rng.uniform(0.3, 0.6)
        for i in range(attempted):
            while not 5.0 < np.hypot(*((target := rng.uniform(-WORKSPACE_CM, WORKSPACE_CM, 2)) - hand.at)) < 15.0:
                pass
            cues[i] = clock
            first = float(np.arctan2(*(target - hand.at)[::-1])) if i == 0 else first
            onset_s = clock + _reaction_s(rng)
            hand.prepare(clock + 0.1, onset_s, target)
            clock = hand.move(onset_s, target) + rng.uniform(0.1, 0.25)
        row = (start_s, clock, "R" if attempted == 4 else "F", cues, float(attempted), 4.0, first)
        for key, value in zip(trials, row, strict=True):
            trials[key].append(value)
        clock += rng.uniform(0.3, 0.7)
    return hand, trials


def _reaction_s(rng: np.random.Generator) -> float:
    """Reaction time: 0.2 s and a gamma tail, about 0.28 ± 0.05 s."""
    return 0.2 + float(rng.gamma(2.5, 0.032))


def behaviour(task: str, duration_s: float, rng: np.random.Generator) -> Behaviour:
    """Return the cursor and trials of a session of `task` ("centre_out" or "random_target")."""
    hand, trials = (_centre_out if task == "centre_out" else _random_target)(duration_s, rng)
    # A hand at rest still sways by a millimetre or so: white noise through two poles at 0.15 s.
    pole = np.exp(-STEP_S / 0.15)
    sway = _filter([(1 - pole) ** 2], [1, -2 * pole, pole**2], rng.normal(size=hand.steps.shape))
    position = np.cumsum(hand.steps, axis=0) + 0.05 * sway / sway.std()
    velocity = np.gradient(position, STEP_S, axis=0)
    return Behaviour(
        time_s=np.arange(hand.n_samples) / round(1 / STEP_S),
        position_cm=position,
        velocity_cm_s=velocity,
        acceleration_cm_s2=np.gradient(velocity, STEP_S, axis=0),
        trials={key: np.asarray(values) for key, values in trials.items()},
        onset_s=np.asarray(hand.onsets),
        plan=hand.plan,
    )


def _filter(numerator: list[Any], denominator: list[Any], x: NDArray[Any]) -> NDArray[Any]:
    """Recursive filter along the first axis, from rest."""
    return np.asarray(lfilter(numerator, denominator, x, axis=0))


def latents(behaviour: Behaviour, rng: np.random.Generator) -> Array:
    """Return the population's own dynamics (n_samples, 6), each column of mean 0 and variance 1.

    Columns: planned direction x and y, burst at movement onset, rotation real and imaginary, slow engagement.
    """
    p = parameters()["latents"]
    n_samples = len(behaviour.time_s)
    kick = np.zeros(n_samples)
    kick[np.minimum(np.rint(behaviour.onset_s / STEP_S).astype(int), n_samples - 1)] = 1.0
    rise, burst, slow = (np.exp(-STEP_S / p[key]) for key in ("preparation_s", "trigger_s", "slow_s"))
    turn = np.exp(STEP_S * (2j * np.pi * p["rotation_hz"] - 1 / p["rotation_decay_s"]))
    noise = rng.normal(size=(n_samples, 3))
    rotation = _filter([1], [1, -turn], kick + 0.1 * (noise[:, 0] + 1j * noise[:, 1]))
    z = np.column_stack(
        [
            _filter([1 - rise], [1, -rise], behaviour.plan),
            _filter([1], [1, -2 * burst, burst**2], kick),
            np.real(rotation),
            np.imag(rotation),
            _filter([1], [1, -slow], noise[:, 2]),
        ]
    )
    z -= z.mean(axis=0)
    return z / np.maximum(z.std(axis=0), 1e-12)


# --------------------------------------------------------------------------------------------------- population


@dataclass(frozen=True)
class Population:
    """The units of a day, one row each, after drift.

    `electrode` is the row of the electrodes table a unit lives on, `generation` counts how often it was replaced,
    `alive` is False on a silent electrode. Tuning, gain applied: `log_rate` (n_units,), `velocity` and `position`
    (n_units, 2), `speed` (n_units,), `latent` (n_units, 6), `lead_steps` of 10 ms. `rotation_deg`, `log_gain` and
    `log_baseline` say how far a unit walked since day 0 or since it was new.
    """

    electrode: NDArray[np.int64]
    generation: NDArray[np.int64]
    alive: NDArray[np.bool_]
    log_rate: Array
    velocity: Array
    speed: Array
    position: Array
    latent: Array
    lead_steps: NDArray[np.int64]
    rotation_deg: Array
    log_gain: Array
    log_baseline: Array


def _draw_unit(seed: int, unit: int, generation: int) -> Array:
    """Tuning of a unit as it is when new (14,): log_rate, velocity 2, speed, position 2, latent 6, lead_s, padding."""
    p, rng = parameters()["units"], np.random.default_rng([seed, _UNIT, unit, generation])
    velocity_angle, position_angle = rng.uniform(-np.pi, np.pi, 2)
    normal = rng.standard_normal(11)
    velocity = p["velocity_depth_median"] * np.exp(p["velocity_depth_log_sd"] * normal[0])
    position = p["position_depth_median"] * np.exp(p["position_depth_log_sd"] * normal[1])
    return np.concatenate(
        [
            [np.log(p["rate_median_hz"]) + p["rate_log_sd"] * normal[2]],
            velocity * np.array([np.cos(velocity_angle), np.sin(velocity_angle)]),
            [0.1 + p["speed_depth_sd"] * normal[3]],
            position * np.array([np.cos(position_angle), np.sin(position_angle)]),
            p["latent_depth_sd"] * normal[4:10],
            [np.clip(p["lead_s"] + p["lead_sd_s"] * normal[10], 0.0, 0.3)],
        ]
    )


def population(day: int, n_units: int, n_electrodes: int, severity: float, seed: int) -> Population:
    """Return the units as they are on `day`, after a random walk of one step a day from day 0.

    Units share electrodes only when there are more units than electrodes. The walk of a unit starts anew when the
    unit is replaced. Severity multiplies the spread of each step and the hazards.
    """
    drift = parameters()["drift"]
    rng = [np.random.default_rng([seed, _DRIFT, i]) for i in range(3)]
    places = np.random.default_rng([seed, _PLACES])
    rounds = [places.permutation(n_electrodes) for _ in range(-(-n_units // n_electrodes))]
    electrode = np.sort(np.concatenate(rounds)[:n_units])

    # Each stream is read day after day, so a longer series begins with the shorter one.
    steps = rng[0].standard_normal((day, n_units, 3))
    replaced = rng[1].random((day, n_units)) < -np.expm1(-severity * drift["turnover"]["hazard_per_day"])
    lost = rng[2].random((day, n_electrodes)) < -np.expm1(-severity * drift["electrode_loss"]["hazard_per_day"])
    generation = replaced.sum(axis=0)
    since = np.where(generation > 0, day - replaced[::-1].argmax(axis=0), 0) if day else np.zeros(n_units, int)
    walked = np.concatenate([np.zeros((1, n_units, 3)), np.cumsum(steps, axis=0)])
    walked = severity * (walked[day] - walked[since, np.arange(n_units)])
    degrees = walked[:, 0] * drift["preferred_direction"]["sd_deg_per_sqrt_day"]
    log_gain = walked[:, 1] * drift["log_gain"]["sd_per_sqrt_day"]
    log_baseline = walked[:, 2] * drift["log_baseline"]["sd_per_sqrt_day"]

    drawn = np.array([_draw_unit(seed, unit, int(k)) for unit, k in enumerate(generation)])
    angle, gain = np.radians(degrees), np.exp(log_gain)[:, None]
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return Population(
        electrode=electrode,
        generation=generation,
        alive=~lost.any(axis=0)[electrode],
        log_rate=drawn[:, 0] + log_baseline,
        velocity=gain * np.einsum("ijn,nj->ni", turn, drawn[:, 1:3]),
        speed=gain[:, 0] * drawn[:, 3],
        position=gain * np.einsum("ijn,nj->ni", turn, drawn[:, 4:6]),
        latent=gain * drawn[:, 6:12],
        lead_steps=np.rint(drawn[:, 12] / STEP_S).astype(np.int64),
        rotation_deg=degrees,
        log_gain=log_gain,
        log_baseline=log_baseline,
    )


def rates(units: Population, behaviour: Behaviour, z: Array) -> Array:
    """Return the firing rate in Hz of every unit in every step of 10 ms, (n_units, n_samples - 1)."""
    velocity = behaviour.velocity_cm_s / SPEED_CM_S
    regressors = np.column_stack([velocity, np.hypot(*velocity.T), behaviour.position_cm / REACH_CM, z])
    depths = np.column_stack([units.velocity, units.speed, units.position, units.latent])
    # not BLAS, whose sums depend on the machine and the number of threads
    log_rate = np.einsum("uk,kt->ut", depths, np.ascontiguousarray(regressors.T)) + units.log_rate[:, None]
    last = log_rate.shape[1] - 1
    ahead = np.minimum(np.arange(last)[None, :] + units.lead_steps[:, None], last)
    return np.exp(np.minimum(np.take_along_axis(log_rate, ahead, axis=1), np.log(parameters()["units"]["rate_max_hz"])))


def spikes(rate_hz: Array, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Return each unit's spike times in whole milliseconds, sorted, at most one per millisecond.

    A spike of step i falls in the milliseconds 10 i + 1 … 10 (i + 1), that is in the interval (start, end].
    """
    n_units, n_steps = rate_hz.shape
    counts = rng.poisson(rate_hz * STEP_S).ravel()
    step = np.repeat(np.arange(n_units * n_steps), counts)
    ticks = np.unique(step * STEP_MS + rng.integers(0, STEP_MS, len(step)))
    unit, ms = np.divmod(ticks, n_steps * STEP_MS)
    return np.split(ms + 1, np.searchsorted(unit, np.arange(1, n_units)))


# ---------------------------------------------------------------------------------------------------- recording


@dataclass(frozen=True)
class Recording:
    """One simulated session: its arguments, behaviour, units and the spike times (ms) of the units that are alive."""

    task: str
    day: int
    severity: float
    seed: int
    n_electrodes: int
    behaviour: Behaviour
    units: Population
    spike_ms: list[NDArray[np.int64]]

    @property
    def unit_electrode(self) -> NDArray[np.int64]:
        """Electrode row of each entry of `spike_ms`."""
        return self.units.electrode[self.units.alive]

    def counts(self, bin_ms: int = 50) -> NDArray[np.int64]:
        """Return spike counts per electrode in bins (start, end], (n_bins, n_electrodes)."""
        n_bins = (len(self.behaviour.time_s) - 1) * STEP_MS // bin_ms
        table = np.zeros((self.n_electrodes, n_bins), dtype=np.int64)
        for electrode, ms in zip(self.unit_electrode, self.spike_ms, strict=True):
            table[electrode] += np.bincount((ms - 1) // bin_ms, minlength=n_bins)[:n_bins]
        return table.T

    def velocity(self, bin_ms: int = 50) -> Array:
        """Return the mean velocity in cm/s over the samples of each bin (start, end], (n_bins, 2)."""
        per_bin = bin_ms // STEP_MS
        samples = self.behaviour.velocity_cm_s[1:]
        return samples[: len(samples) // per_bin * per_bin].reshape(-1, per_bin, 2).mean(axis=1)


def check(day: int, duration_s: float, n_units: int, n_electrodes: int, task: str, severity: float, seed: int) -> None:
    """Raise `InputError` naming the first argument of `recording` that cannot be simulated."""
    if task not in TASKS:
        raise InputError(f"task must be one of {', '.join(TASKS)}; got {task!r}")
    whole = {"day": (day, 0), "n_units": (n_units, 1), "n_electrodes": (n_electrodes, 1), "seed": (seed, 0)}
    for name, (value, least) in whole.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise InputError(f"{name} must be a whole number of at least {least}; got {value!r}")
    if not 30 <= duration_s <= 86400:
        raise InputError(f"duration_s must lie between 30 and 86400 s; got {duration_s!r}")
    if not 0 <= severity <= 100:
        raise InputError(f"severity must lie between 0 (no drift) and 100; got {severity!r}")


def recording(
    day: int = 0,
    *,
    duration_s: float = 480.0,
    n_units: int = 60,
    n_electrodes: int | None = None,
    task: str = "centre_out",
    severity: float = 1.0,
    seed: int = 0,
) -> Recording:
    """Simulate the session of one day.

    Days of one (seed, severity, n_units, n_electrodes) belong to one animal: they share a trajectory of drift. By
    default there are as many electrodes as units, so a decoder sees n_units channels. Duration is rounded to whole
    seconds. Raises `InputError` for arguments that cannot be simulated.
    """
    n_electrodes = n_units if n_electrodes is None else n_electrodes
    check(day, duration_s, n_units, n_electrodes, task, severity, seed)
    purpose = [np.random.default_rng([seed, kind, day, TASKS.index(task)]) for kind in (_BEHAVIOUR, _LATENTS, _SPIKES)]
    moved = behaviour(task, round(duration_s), purpose[0])
    units = population(int(day), n_units, n_electrodes, severity, seed)
    rate_hz = rates(units, moved, latents(moved, purpose[1]))
    rate_hz[~units.alive] = 0.0
    spike_ms = spikes(rate_hz, purpose[2])
    kept = [ms for ms, alive in zip(spike_ms, units.alive, strict=True) if alive]
    return Recording(task, int(day), float(severity), int(seed), n_electrodes, moved, units, kept)
