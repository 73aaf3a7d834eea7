"""The jobs of an experiment: what a decoder is shown, when, and what comes of it, against loops and runs by hand."""

import json
from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

import bci_adapt as ba
from bci_adapt.data.labelled import load_arrays, permuted_channels, permuted_in_time, session_arrays, shifted_in_time
from bci_adapt.data.session_files import read_session, write_session
from bci_adapt.decoders.base import Decoder
from bci_adapt.decoders.online_rnn import OnlineDecoder
from bci_adapt.decoders.rls import RLSDecoder
from bci_adapt.decoders.wiener import WienerDecoder
from bci_adapt.errors import InputError
from bci_adapt.experiment.building import Builder, Labels
from bci_adapt.experiment.config import load_config, parse_config
from bci_adapt.experiment.foreign import Foreign
from bci_adapt.experiment.jobs import adapt, cost, drift, fit, foreign, halve
from bci_adapt.experiment.pairs import Pair
from bci_adapt.ground.jobs import Job
from bci_adapt.protocol.supervision import bins_of_trials, intended, shown, smoothed

BIN_S, N_BINS, N_STREAM = 0.05, 900, 400
DELAY = 4  # bins: shorter than half the window over which a decoder's own predictions are smoothed
CHANGED = 230  # where labels or counts begin to differ: inside a trial

CONFIG = {
    "name": "jobs",
    "variables": ["velocity"],
    "stream_s": N_STREAM * BIN_S,
    "label_delay_s": DELAY * BIN_S,
    "normaliser_s": 20.0,
    "learning_rate": 3e-3,
    "seeds": [0],
    "source": {"kind": "folder"},
    "pairs": [{"source": "source", "targets": ["target"]}],
    "network": {
        "cells": ["tanh"], "n_hidden": 4, "n_updates": 3, "oracle_updates": 2, "joint_updates": 2, "tune_updates": 2,
        "warm_up_s": 5.0,
    },
    "linear": {"n_lags": 3, "memory_s": 50.0, "n_latents": 2},
    "arms": [{"rule": "immediate", "optimizer": "rmsprop"}, {"rule": "window", "optimizer": "rmsprop"}],
}  # fmt: skip
LATE = Labels(DELAY * BIN_S, 1.0, N_STREAM * BIN_S)
AT_TRIAL_END = replace(LATE, delay_s="trial_end")


def recording(name, seed, n_bins=N_BINS):
    """A made session: three segments, bins without neurons, trials with places and directions of their targets."""
    rng = np.random.default_rng(seed)
    velocity = np.zeros((n_bins, 2))
    for t in range(1, n_bins):
        velocity[t] = 0.95 * velocity[t - 1] + rng.normal(0, 1.0, 2)
    tuning = np.random.default_rng(1).normal(0, 0.25, (2, 6)) + 0.05 * rng.normal(size=(2, 6))
    counts = rng.poisson(np.exp(np.clip(velocity @ tuning, -3, 2)))
    number = np.arange(1, n_bins + 1)
    time_s = np.round(BIN_S * (number + 30 * (number > 150) + 40 * (number > 600)), 6)
    session = ba.session(
        counts=counts,
        target=BIN_S * np.cumsum(velocity, axis=0),
        target_time_s=time_s,
        bin_s=BIN_S,
        session_id=name,
        channels=[*"abcdef"],
    )
    session["valid"][[60, 61, 62, 300, 500, 501]] = False
    session["velocity_valid"][[80, 81, 280], 0] = False
    starts = np.arange(1.02, time_s[-1] - 2.5, 2.4)
    angle = rng.uniform(-3, 3, len(starts))
    trials = {
        "trial_start_s": starts,
        "trial_stop_s": starts + rng.uniform(1.0, 2.0, len(starts)),
        "trial_go_s": starts + 0.3,
        "trial_result": np.full(len(starts), "R"),
        "trial_target_dir": angle,
    }
    session = session.drop_vars([name for name in session if str(name).startswith("trial_")])
    return session.assign(
        {each: ("trial", values) for each, values in trials.items()}
        | {"trial_target": (("trial", "axis"), 8 * np.stack([np.cos(angle), np.sin(angle)], axis=1))}
    )


class Bench:
    """Sessions on disk and the results of jobs on them, each run once."""

    def __init__(self, folder):
        self.folder, self.done = folder, {}
        self.sessions = {name: recording(name, seed) for seed, name in enumerate(("source", "between", "target"))}
        self.config = parse_config(CONFIG, "test")
        for name, session in self.sessions.items():
            write_session(session, self.path(name))
        about = {"n_axes": {"velocity": 2, "position": 2}, "has_targets": True, "has_trials": True, "n_channels": 6}
        about["half_s"] = N_BINS * BIN_S / 2.0
        self.about = dict.fromkeys(self.sessions, about | {"date": "2014-03-03"})
        self.pair = Pair(("source",), "target")

    def path(self, name):
        return self.folder / f"{name}.nc"

    def changed(self, name, session):
        """A further session on disk."""
        write_session(session, self.path(name))
        return self.path(name)

    def builder(self, config=None, **sessions):
        paths = {name: self.path(name) for name in self.sessions} | sessions
        return Builder(config or self.config, paths, self.about, {})

    def arms(self, config=None):
        return self.builder(config).arms(self.pair)

    def arm(self, name, cell="", config=None):
        return next(arm for arm in self.arms(config) if (arm.name, arm.cell) == (name, cell))

    def job(self, arm, config=None, sessions=None, **options):
        return self.builder(config, **(sessions or {})).adapt(arm, self.pair, 0, **options)

    def run(self, job):
        """What a job wrote: the path of its file. Loops are compiled where they are needed."""
        if job.key not in self.done:
            inputs = {
                name: self.run(value) if isinstance(value, Job) else value
                for name, value in job.inputs.items()
                if name not in ("predicting", "learning")
            }
            path = self.folder / f"{len(self.done)}{job.suffix}"
            import_module(job.function.partition(":")[0]).run(json.loads(json.dumps(job.parameters)), inputs, path)
            self.done[job.key] = path
        return self.done[job.key]

    def predict(self, arm, **options):
        with np.load(self.run(self.job(arm, **options))) as stored:
            return SimpleNamespace(**stored)

    def decoder(self, arm):
        """The fitted decoder of an arm as it meets the target."""
        job = self.job(arm)
        return adapt.started(job.parameters, {"decoder": self.run(job.inputs["decoder"])})

    def arrays(self, name="target"):
        return load_arrays(self.path(name), ("velocity",))


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("jobs"))


# ------------------------------------------------------------------------------------------------ sessions


def test_in_trial_and_trial_end_are_those_of_a_loop(bench):
    rng = np.random.default_rng(0)
    session = bench.sessions["target"]
    time_s = session["time"].values
    for begins_s in (0.0, 20.0):  # a later part still holds the trials before it
        part = session.isel(time=time_s > begins_s)
        times = part["time"].values
        start_s = rng.uniform(-2, 50, 25)
        start_s[:3], start_s[3] = times[[5, 200, 300]], np.nan
        stop_s = start_s + rng.choice([0.0, 0.05, 0.7, 3.0, -1.0, np.nan], 25)
        part = part.isel(trial=np.zeros(25, int)).assign(
            trial_start_s=("trial", start_s), trial_stop_s=("trial", stop_s)
        )
        arrays = session_arrays(part, "velocity")
        trials = [each for each in zip(start_s, stop_s, strict=True) if each[1] > each[0]]
        inside = [any(a < t <= b for a, b in trials) for t in times]
        over = [np.flatnonzero(times >= b)[0] for _, b in trials if times[0] - BIN_S < b <= times[-1]]
        ends = [min([each for each in over if each >= i], default=len(times)) for i in range(len(times))]
        assert arrays.in_trial.tolist() == inside
        assert arrays.trial_end.tolist() == ends
        assert 0 < sum(inside) < len(times)
    none = session_arrays(part.assign(trial_stop_s=part["trial_stop_s"] * np.nan), "velocity")
    assert none.in_trial is None
    assert set(none.trial_end) == {len(times)}


def test_a_lagged_target_is_the_movement_some_bins_ago_of_its_own_segment(bench):
    session = bench.sessions["target"].copy(deep=True)
    session["segment"][N_BINS // 3 :] += 1
    plain, lagged = (session_arrays(session, "velocity", lag) for lag in (0, 4))
    for t in range(N_BINS):
        crosses = t < 4 or plain.reset[t - 3 : t + 1].any()
        expected = np.full(2, np.nan) if crosses else plain.y[t - 4]
        assert np.array_equal(lagged.y[t], expected, equal_nan=True)
        assert lagged.in_trial[t] == (not crosses and plain.in_trial[t - 4])
    assert np.array_equal(lagged.X, plain.X, equal_nan=True)
    assert np.array_equal(lagged.trial_end, plain.trial_end)


def test_several_variables_lie_side_by_side(bench):
    both = session_arrays(bench.sessions["target"], ("position", "velocity"))
    one = session_arrays(bench.sessions["target"], ("velocity",))
    assert (both.y.shape[1], both.axes, both.columns["velocity"]) == (4, ("x", "y", "x", "y"), slice(2, 4))
    assert np.array_equal(both.y[:, both.columns["velocity"]], one.y, equal_nan=True)
    assert both.n_stream(None) == N_BINS
    assert both.n_stream(1e4) == N_BINS // 2
    assert both.n_stream(N_STREAM * BIN_S) == N_STREAM


def test_two_halves_are_the_whole(bench, tmp_path):
    halves = []
    for half in (0, 1):
        halve.run({"half": half}, {"session": bench.path("target")}, tmp_path / f"{half}.nc")
        halves.append(read_session(tmp_path / f"{half}.nc"))
    assert [each.attrs["session_id"] for each in halves] == ["target (earlier half)", "target (later half)"]
    assert halves[0].sizes["time"] == N_BINS // 2
    in_time = [name for name, value in bench.sessions["target"].variables.items() if "time" in value.dims]
    joined = xr.concat([each[in_time] for each in halves], "time")
    xr.testing.assert_equal(joined, bench.sessions["target"][in_time])


# ------------------------------------------------------------------------------------------------ controls


def test_canaries_keep_what_they_should(bench):
    counts = bench.arrays().X
    seen = np.isfinite(counts).all(axis=1)
    least = 200
    for made in (permuted_in_time(counts, 3), shifted_in_time(counts, 3, least)):
        assert np.array_equal(np.isfinite(made).all(axis=1), seen)
        assert not np.array_equal(made, counts, equal_nan=True)
        assert sorted(map(tuple, made[seen])) == sorted(map(tuple, counts[seen]))
    shifts = set()
    for seed in range(20):
        rows = shifted_in_time(np.where(seen[:, None], np.arange(N_BINS)[:, None] + 0.0, np.nan), seed, least)[seen, 0]
        by = int(np.searchsorted(np.flatnonzero(seen), rows[0]))
        assert np.array_equal(rows, np.roll(np.flatnonzero(seen), -by))
        assert least <= by <= seen.sum() - least
        shifts.add(by)
    assert len(shifts) > 15
    mixed = permuted_channels(counts, 3)
    assert sorted(map(tuple, mixed[seen].T)) == sorted(map(tuple, counts[seen].T))
    assert np.array_equal(np.isfinite(mixed), np.isfinite(counts))
    assert not np.array_equal(mixed, counts, equal_nan=True)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("time", lambda X: permuted_in_time(X, 5)),
        ("shift", lambda X: shifted_in_time(X, 5, round(adapt.SHIFT_S / BIN_S))),
        ("channels", lambda X: permuted_channels(X, 5)),
    ],
)
def test_a_control_changes_counts_and_nothing_else(bench, kind, change):
    arm, arrays = bench.arm("rls"), bench.arrays()
    found = bench.predict(arm, control={"kind": kind, "seed": 5})
    decoder, X = bench.decoder(arm), change(arrays.X)
    online = decoder.adapt(X[:N_STREAM], arrays.y[:N_STREAM], arrays.reset[:N_STREAM])
    assert np.array_equal(found.online, online)
    assert np.array_equal(found.held_out, decoder.predict(X[N_STREAM:], arrays.reset[N_STREAM:], continuing=True))


# -------------------------------------------------------------------------------------------------- labels


def test_labels_of_a_smaller_share_are_among_those_of_a_larger_one():
    y = np.random.default_rng(0).normal(size=(20_000, 2))
    y[::7] = np.nan
    fractions, budgets = (1.0, 0.5, 0.3, 0.03), (None, 900.0, 300.0, 1.02, 0.0)
    for seed in (0, 1):
        kept = [np.isfinite(shown(y, BIN_S, fraction, None, seed)).all(axis=1) for fraction in fractions]
        for fraction, larger, smaller in zip(fractions[1:], kept, kept[1:], strict=False):
            assert not (smaller & ~larger).any()
            n = np.isfinite(y[:, 0]).sum()
            assert abs(smaller.sum() - fraction * n) < 5 * np.sqrt(n * fraction * (1 - fraction))
    assert not np.array_equal(shown(y, BIN_S, 0.3, None, 0), shown(y, BIN_S, 0.3, None, 1), equal_nan=True)
    for budget in budgets:
        n = len(y) if budget is None else int(budget / BIN_S)
        found = shown(y, BIN_S, 1.0, budget, 0)
        assert np.array_equal(found[:n], y[:n], equal_nan=True)
        assert np.isnan(found[n:]).all()
    both = shown(y, BIN_S, 0.3, 300.0, 0)
    assert np.array_equal(both[:6000], shown(y, BIN_S, 0.3, None, 0)[:6000], equal_nan=True)


def test_bins_of_the_first_trials_are_those_up_to_the_end_of_the_last_of_them():
    in_trial = np.array([0, 1, 1, 0, 0, 1, 1, 1, 0, 1], bool)
    trial_end = np.array([3, 3, 3, 3, 8, 8, 8, 8, 8, 10])  # the third trial does not end
    wanted = {1: 4, 2: 9, 3: 10, 4: 10}
    assert {n: bins_of_trials(n, in_trial, trial_end) for n in wanted} == wanted
    assert bins_of_trials(2, None, trial_end) == 10, "a session without trials has no limit"


def test_intention_points_at_the_target_as_fast_as_the_hand_moved(bench):
    session = bench.sessions["target"]
    time_s, position = session["time"].values, session["position"].values
    speed = np.random.default_rng(0).uniform(1, 9, N_BINS)
    stop_s, go_s = (session[f"trial_{name}_s"].values for name in ("stop", "go"))
    meant = intended(session, speed)
    direction = intended(session.drop_vars("trial_target"), speed)
    inside = np.zeros(N_BINS, bool)
    for trial, (go, stop) in enumerate(zip(go_s, stop_s, strict=True)):
        for i in np.flatnonzero((time_s > go) & (time_s <= stop)):
            inside[i] = True
            way = session["trial_target"].values[trial] - position[i]
            assert np.allclose(meant[i], speed[i] * way / np.linalg.norm(way))
            angle = session["trial_target_dir"].values[trial]
            assert np.allclose(direction[i], speed[i] * np.array([np.cos(angle), np.sin(angle)]))
    assert 100 < inside.sum() < N_BINS
    for labels in (meant, direction):
        assert np.isnan(labels[~inside]).all()
        assert np.allclose(np.linalg.norm(labels[inside], axis=1), speed[inside])

    cueless, dumb = session.copy(deep=True), session.drop_vars("trial_target").copy(deep=True)
    cueless["trial_go_s"][2] = np.nan  # no cue came: nothing was meant
    dumb["trial_target_dir"][2] = np.nan  # nobody knows where its target was
    in_third = (time_s > go_s[2]) & (time_s <= stop_s[2])
    assert in_third.any()
    for less, full in ((intended(cueless, speed), meant), (intended(dumb, speed), direction)):
        assert np.isnan(less[in_third]).all()
        assert np.array_equal(less[~in_third], full[~in_third], equal_nan=True)
    uncued = session.assign(trial_go_s=session["trial_go_s"] * np.nan)
    assert np.isfinite(intended(uncued, speed)).all(axis=1).sum() > inside.sum()
    arrived = session.copy(deep=True)
    at = np.flatnonzero(inside)[0]
    trial = np.flatnonzero((go_s < time_s[at]) & (time_s[at] <= stop_s))[0]
    arrived["trial_target"][trial] = position[at]
    assert intended(arrived, speed)[at].tolist() == [0.0, 0.0]
    with pytest.raises(InputError, match="leave the arm 'intention' out"):
        intended(session.drop_vars(["trial_target", "trial_target_dir"]), speed)


def test_intention_teaches_velocity_alone_and_says_how_many_labels_there_were(bench):
    config = bench.config.model_copy(update={"variables": ("position", "velocity")})
    arm = bench.arm("intention", "tanh", config)
    arrays = load_arrays(bench.path("target"), ("position", "velocity"))
    job = bench.job(arm, config)
    stream = adapt.shown_of(arrays, bench.path("target"), None, adapt.taught_by(job.parameters)).arrays
    assert np.isnan(stream.y[:, :2]).all()
    speed = np.linalg.norm(arrays.y[:, 2:], axis=1)
    assert np.array_equal(stream.y[:, 2:], intended(bench.sessions["target"], speed), equal_nan=True)
    n_labels = np.isfinite(stream.y[:N_STREAM, 2]).sum()
    assert bench.predict(arm, config=config).n_labels == n_labels > 50


def test_smoothing_is_a_centred_mean():
    values = np.random.default_rng(0).normal(size=(30, 2))
    found = smoothed(values, 4)
    for t in range(30):
        assert np.allclose(found[t], values[max(0, t - 4) : t + 5].mean(axis=0))
    assert np.allclose(smoothed(values, 0), values)


# ------------------------------------------------------------------------------------- nothing before its time


def learning(bench, supervision="true"):
    return [arm for arm in bench.arms() if arm.supervision == supervision]


def with_other(session, name, first):
    """The session with other values of a variable from bin `first` on."""
    out = session.copy(deep=True)
    rng = np.random.default_rng(7)
    values = out[name].values
    values[first:] = (
        rng.integers(0, 9, values[first:].shape) if name == "counts" else rng.normal(0, 9, values[first:].shape)
    )
    return out


def test_no_label_is_used_before_it_arrives(bench):
    arms = learning(bench)
    assert {arm.decoder for arm in arms} == {"online_rnn", "fine_tuned", "rls", "kalman", "persistence"}
    later = bench.changed("other_labels", with_other(bench.sessions["target"], "velocity", CHANGED))
    trial_end = bench.arrays().trial_end
    assert CHANGED + DELAY < trial_end[CHANGED] < N_STREAM - 100
    for arm in arms:
        for labels, arrival in ((LATE, CHANGED + DELAY), (AT_TRIAL_END, trial_end[CHANGED])):
            found, other = (
                bench.predict(arm, labels=labels, sessions=sessions) for sessions in ({}, {"target": later})
            )
            assert np.array_equal(found.online[: arrival + 1], other.online[: arrival + 1]), (arm.name, labels)
            if arm.decoder != "fine_tuned":  # which predicts the stream with the weights it came with
                assert not np.array_equal(found.online, other.online), (arm.name, labels)
            assert not np.array_equal(found.held_out, other.held_out), (arm.name, labels)
        late, at_end = (bench.predict(arm, labels=labels) for labels in (LATE, AT_TRIAL_END))
        part = "held_out" if arm.decoder == "fine_tuned" else "online"
        assert not np.array_equal(getattr(late, part), getattr(at_end, part)), arm.name


def test_no_count_is_used_before_it_is_there(bench):
    later = bench.changed("other_counts", with_other(bench.sessions["target"], "counts", CHANGED))
    for arm in bench.arms():
        if arm.trained_on != "source":
            continue  # its online score is of training data
        found, other = (bench.predict(arm, sessions=sessions) for sessions in ({}, {"target": later}))
        assert np.array_equal(found.online[:CHANGED], other.online[:CHANGED]), arm.name
        assert np.array_equal(found.online, other.online) == (arm.name == "persistence"), arm.name


def test_held_out_labels_teach_only_what_goes_on_learning(bench):
    later = bench.changed("other_rest", with_other(bench.sessions["target"], "velocity", N_STREAM))
    checked = 0
    for arm in bench.arms():
        parts = [phase for phase in ("continuing",) if phase in arm.phases]
        found, other = (bench.predict(arm, sessions=each, parts=parts) for each in ({}, {"target": later}))
        assert np.array_equal(found.online, other.online), arm.name
        assert np.array_equal(found.held_out, other.held_out), arm.name
        if parts and arm.supervision == "true":
            assert np.array_equal(found.continuing[: DELAY + 1], other.continuing[: DELAY + 1]), arm.name
            assert not np.array_equal(found.continuing, other.continuing), arm.name
            checked += 1
    assert checked > 5


def test_who_teaches_itself_reads_no_label(bench):
    arm = bench.arm("pseudo", "tanh")
    strange = bench.sessions["target"].copy(deep=True)
    usable = np.flatnonzero(strange["velocity_valid"].values.all(axis=1))
    strange["velocity"].values[usable] = strange["velocity"].values[np.random.default_rng(0).permutation(usable)]
    sessions = {"target": bench.changed("strange", strange)}
    parts = ("continuing", "back")
    found, other = (bench.predict(arm, sessions=each, parts=parts) for each in ({}, sessions))
    for phase in ("online", "held_out", "continuing", "back"):
        assert np.array_equal(getattr(found, phase), getattr(other, phase)), phase
    assert not np.array_equal(found.online, bench.predict(bench.arm("normaliser", "tanh")).online)
    assert not np.array_equal(found.continuing, found.held_out), "it goes on learning"
    masked = bench.sessions["target"].copy(deep=True)
    masked["velocity_valid"][50:] = False
    sessions = {"target": bench.changed("masked", masked)}
    assert not np.array_equal(found.online, bench.predict(arm, sessions=sessions).online), "but which bins have one"


def test_labels_are_withheld_by_budget_and_fraction(bench):
    arm, y = bench.arm("rls"), bench.arrays().y[:N_STREAM]
    everything = bench.predict(arm)
    known = y[: N_STREAM - DELAY]  # the last labels come when the stream is over
    assert everything.n_labels == np.isfinite(known).any(axis=1).sum() < np.isfinite(y).any(axis=1).sum()
    few = bench.predict(arm, labels=replace(LATE, budget_s=10.0))
    assert few.n_labels == np.isfinite(y[:200]).any(axis=1).sum()
    assert np.array_equal(few.online[: 200 + DELAY], everything.online[: 200 + DELAY])
    none = bench.predict(arm, labels=replace(LATE, budget_s=0.0))
    still = bench.decoder(arm)
    nothing = np.full((N_STREAM, 2), np.nan)
    assert none.n_labels == 0
    assert np.array_equal(
        none.online, still.adapt(bench.arrays().X[:N_STREAM], nothing, bench.arrays().reset[:N_STREAM])
    )
    some = bench.predict(arm, labels=replace(LATE, fraction=0.3))
    assert 0 < some.n_labels < 0.5 * everything.n_labels


# ----------------------------------------------------------------------------------------- parts, by hand


GOES_ON = [("immediate_rmsprop", "tanh"), ("window4_rmsprop", "tanh"), ("rls", ""), ("kalman_adaptive", "")]


@pytest.mark.parametrize("labels", [LATE, AT_TRIAL_END], ids=["late", "at trial end"])
@pytest.mark.parametrize("name", GOES_ON)
def test_the_parts_of_a_run_are_those_of_a_decoder_used_by_hand(bench, name, labels):
    arm, arrays, source = bench.arm(*name), bench.arrays(), bench.arrays("source")
    found = bench.predict(arm, labels=labels, parts=("continuing", "back"))
    arrives = arrays.trial_end if labels is AT_TRIAL_END else None
    once = bench.decoder(arm).adapt(arrays.X, arrays.y, arrays.reset, arrives)
    # One product of all bins rounds otherwise than two products of parts of them.
    close = np.array_equal if arm.cell else lambda a, b: np.allclose(a, b, rtol=1e-9, atol=1e-9)
    assert close(found.online, once[:N_STREAM])
    assert close(found.continuing, once[N_STREAM:])
    decoder = bench.decoder(arm)
    stream = arrays.X[:N_STREAM], arrays.y[:N_STREAM], arrays.reset[:N_STREAM]
    decoder.adapt(*stream, None if arrives is None else arrives[:N_STREAM])
    assert np.array_equal(
        found.held_out, decoder.predict(arrays.X[N_STREAM:], arrays.reset[N_STREAM:], continuing=True)
    )
    assert not np.array_equal(found.held_out, found.continuing)

    # Back on the source day: the weights of now in a decoder that is otherwise as it was fitted.
    back = bench.decoder(arm)
    if arm.cell:
        (back.W_,), (back.C_,) = decoder.state_.predictor()
    for weights in ("coef_", "projection_", "information_"):
        if hasattr(back, weights):
            setattr(back, weights, getattr(decoder, weights))
    assert np.allclose(found.back, back.predict(source.X, source.reset), rtol=1e-9, atol=1e-9)
    assert not np.allclose(found.back, bench.decoder(arm).predict(source.X, source.reset), rtol=1e-3)


def test_back_without_learning_is_the_fitted_decoder(bench):
    source = bench.arrays("source")
    for name in ("frozen", "normaliser"):
        arm = bench.arm(name, "tanh")
        assert np.array_equal(
            bench.predict(arm, parts=("back",)).back, bench.decoder(arm).predict(source.X, source.reset)
        )


@pytest.mark.parametrize("name", [*GOES_ON[:1], *GOES_ON[2:]])
def test_days_before_are_adapted_to_in_order(bench, name):
    arm, days = bench.arm(*name), ["between", "source"]
    decoder = bench.decoder(arm)
    for day in days:
        arrays = bench.arrays(day)
        decoder.adapt(arrays.X[:N_STREAM], arrays.y[:N_STREAM], arrays.reset[:N_STREAM])
    arrays = bench.arrays()
    online = decoder.adapt(arrays.X[:N_STREAM], arrays.y[:N_STREAM], arrays.reset[:N_STREAM])
    found = bench.predict(arm, before=days)
    assert np.array_equal(found.online, online)
    assert np.array_equal(
        found.held_out, decoder.predict(arrays.X[N_STREAM:], arrays.reset[N_STREAM:], continuing=True)
    )
    assert not np.array_equal(found.online, bench.predict(arm).online)
    assert not np.array_equal(found.online, bench.predict(arm, before=days[::-1]).online)


def test_retrained_decoders_see_the_stream_and_no_more(bench):
    source, target = bench.arrays("source"), bench.arrays()
    stream = target.X[:N_STREAM], target.y[:N_STREAM], target.reset[:N_STREAM]
    constants = dict(bench.arm("ridge_oracle").fit)
    alone = WienerDecoder(**constants).fit(*stream)
    joint = WienerDecoder(**constants).fit(
        *([a, b] for a, b in zip((source.X, source.y, source.reset), stream, strict=True))
    )
    for name, decoder in (("ridge_oracle", alone), ("joint_ridge", joint)):
        decoder.adapt(*stream)
        held_out = decoder.predict(target.X[N_STREAM:], target.reset[N_STREAM:], continuing=True)
        assert np.array_equal(bench.predict(bench.arm(name)).held_out, held_out)
    later = bench.changed("other_later", with_other(bench.sessions["target"], "velocity", N_STREAM))
    for name in ("network_oracle", "joint_oracle"):
        arm = bench.arm(name, "tanh")
        assert np.array_equal(bench.predict(arm).held_out, bench.predict(arm, sessions={"target": later}).held_out)


def test_a_decoder_of_the_days_before_is_extended(bench, tmp_path):
    """Carried through the days it is the decoder that is extended by hand; the day added is the last of the list."""
    days = [bench.arrays(name) for name in ("source", "between", "target")]
    constants = {"cell": "tanh", "n_hidden": 4, "n_updates": 3, "added_updates": 2, "warm_up_s": 5.0, "bin_s": BIN_S}
    parameters = {
        "decoder": "online_rnn", "constants": constants, "variables": ["velocity"], "target_lag_bins": 0,
        "stream_s": None, "n_streams": 0,
    }  # fmt: skip
    inputs = {f"session{i}": bench.path(each.session_id) for i, each in enumerate(days)}
    by_hand = OnlineDecoder(**constants).fit(days[0].X, days[0].y, days[0].reset)
    fit.run(parameters, {"session0": inputs["session0"]}, tmp_path / "1.npz")
    for n_days in (2, 3):
        before = {"before": tmp_path / f"{n_days - 1}.npz"}
        given = {name: inputs[name] for name in [*inputs][:n_days]}
        fit.run(parameters, before | given, tmp_path / f"{n_days}.npz")
        by_hand.extend(*([getattr(day, key) for day in days[:n_days]] for key in ("X", "y", "reset")))
        found = Decoder.load(tmp_path / f"{n_days}.npz")
        for key, expected in by_hand._fitted_arrays().items():
            np.testing.assert_array_equal(found._fitted_arrays()[key], expected)
    assert found.metadata_["sessions"] == ["source", "between", "target"]
    # Constants of the job replace the stored ones; a stream is what it is without a decoder before.
    other = parameters | {"constants": constants | {"added_updates": 0}, "n_streams": 1, "stream_s": N_STREAM * BIN_S}
    fit.run(
        other, {"before": tmp_path / "1.npz"} | {n: inputs[n] for n in ("session0", "session1")}, tmp_path / "s.npz"
    )
    still, first = Decoder.load(tmp_path / "s.npz"), Decoder.load(tmp_path / "1.npz")
    assert np.array_equal(still.W_, first.W_)
    stream = OnlineDecoder(**constants).fit(days[1].X[:N_STREAM], days[1].y[:N_STREAM], days[1].reset[:N_STREAM])
    assert np.array_equal(still.mean_, stream.mean_)
    with pytest.raises(InputError, match=r"online_rnn on source: .*2 outputs"):
        fit.run(parameters | {"variables": ["velocity", "position"]},
                     {"before": tmp_path / "1.npz", "session0": inputs["session0"]}, tmp_path / "x.npz")  # fmt: skip


# --------------------------------------------------------------------------------- what a bin costs, what drifted


@pytest.mark.parametrize("name", [("immediate_rmsprop", "tanh"), ("rls", "")])
def test_what_a_bin_costs(bench, tmp_path, monkeypatch, name):
    monkeypatch.setattr(cost, "WARM_UP", 10)
    monkeypatch.setattr(cost, "MEASURED", 50)
    job = bench.builder().cost(bench.arm(*name), bench.pair)
    inputs = {"decoder": bench.run(job.inputs["decoder"]), "target": bench.path("target")}
    cost.run(job.parameters, inputs, tmp_path / "cost.json")
    found = json.loads((tmp_path / "cost.json").read_text())
    assert 0 < found["empty_loop_us"] < found["p50_us"] <= found["p95_us"] <= found["p99_us"]
    assert found["state_bytes"] > 8 * 6 * 4
    assert found["peak_bytes"] > 0
    assert found["bin_s"] == BIN_S


def test_what_drifted_is_told_or_why_it_cannot_be(bench, tmp_path):
    inputs = {
        name: bench.changed(f"long_{name}", recording(name, i, 3600)) for i, name in enumerate(("source", "target"))
    }
    drift.run({"variable": "velocity"}, inputs, tmp_path / "drift.json")
    found = json.loads((tmp_path / "drift.json").read_text())
    measured = found["measures"]
    names = {"median_abs_log_rate_ratio", "share_of_rates_changed", "kl_nats", "mmd2", "pd_excess_deg"}
    assert names <= measured.keys()
    assert all(set(each) == {"value", "low", "high"} for each in measured.values())
    assert measured["kl_nats"]["value"] > 0
    excess = measured["pd_excess_deg"]
    assert excess["low"] < excess["value"] < excess["high"]
    drift.run({"variable": "velocity"}, inputs | {"target": bench.path("target")}, tmp_path / "none.json")
    none = json.loads((tmp_path / "none.json").read_text())
    assert none["measures"] == {}
    assert "observed for 45 s" in none["notes"][0]


# ---------------------------------------------------------------------------------- decoders of one's own


OWN = """
from __future__ import annotations
from dataclasses import dataclass
from bci_adapt.decoders.rls import RLSDecoder
from bci_adapt.decoders.wiener import WienerDecoder

class Same(WienerDecoder):
    pass

class Learner(RLSDecoder):
    pass

@dataclass
class Still:
    bin_s: float

    def fit(self, X, y):
        self.mean = 0.0
    def predict(self, X):
        return 0.0 * X[:, :2]
    def adapt(self, X, y):
        return 0.0 * X[:, :2] + len(y)

class Lazy:
    def fit(self, X, y): ...
    def predict(self, X): ...

class Crooked(Still):
    def predict(self, X):
        return X[1:, :2]

number = 3
"""


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


def foreign_run(bench, tmp_path, own, name, permutation=None, sources=("source",)):
    parameters = {
        "variables": ["velocity"],
        "target_lag_bins": 0,
        "stream_s": N_STREAM * BIN_S,
        "decoder": name,
        "bin_s": BIN_S,
        "seed": 0,
    }
    parameters |= {"label_delay_s": DELAY * BIN_S, "permutation": permutation}
    inputs = {f"source{i}": bench.path(each) for i, each in enumerate(sources)}
    foreign.run(parameters, {"code": own, "target": bench.path("target"), **inputs}, tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as stored:
        return SimpleNamespace(**stored)


@pytest.mark.parametrize(("name", "kind"), [("Same", WienerDecoder), ("Learner", RLSDecoder)])
def test_a_class_like_ours_predicts_as_ours_does(bench, tmp_path, own, name, kind):
    source, target = bench.arrays("source"), bench.arrays()
    late = {"label_delay_s": DELAY * BIN_S} if kind is RLSDecoder else {}
    for permutation in (None, 3):
        decoder = kind(bin_s=BIN_S, **late).fit(source.X, source.y, source.reset)
        X = target.X if permutation is None else permuted_in_time(target.X, permutation)
        online = decoder.adapt(X[:N_STREAM], target.y[:N_STREAM], target.reset[:N_STREAM])
        held_out = decoder.predict(X[N_STREAM:], target.reset[N_STREAM:], continuing=True)
        found = foreign_run(bench, tmp_path, own, name, permutation)
        assert np.array_equal(found.online, online)
        assert np.array_equal(found.held_out, held_out)
        known = target.y[: N_STREAM - DELAY]  # the last labels come when the stream is over
        assert found.n_labels == np.isfinite(known).any(axis=1).sum()
    again = kind(bin_s=BIN_S, **late).fit(*([bench.arrays(day)[i] for day in ("source", "between")] for i in range(3)))
    again.adapt(target.X[:N_STREAM], target.y[:N_STREAM], target.reset[:N_STREAM])
    found = foreign_run(bench, tmp_path, own, name, sources=("source", "between"))
    assert np.array_equal(found.held_out, again.predict(target.X[N_STREAM:], target.reset[N_STREAM:], continuing=True))


def test_a_plain_class_gets_only_what_it_takes(bench, tmp_path, own):
    found = foreign_run(bench, tmp_path, own, "Still")
    assert found.online.shape == (N_STREAM, 2)
    assert set(found.online[np.isfinite(found.online)]) == {float(N_STREAM)}
    with pytest.raises(InputError, match=r"Crooked.predict: expected predictions \(500, 2\), got \(499, 2\)"):
        foreign_run(bench, tmp_path, own, "Crooked")
    delays = {name: Foreign.parse(f"{own}:{name}").delay_s(0.5) for name in ("Same", "Learner", "Still")}
    assert delays == {"Same": 0.5, "Learner": 0.5, "Still": 0.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("own.py:Lazy", "class Lazy lacks adapt"),
        ("own.py:Missing", "there is no class Missing"),
        ("own.py:number", "there is no class number"),
        ("own.py", "FILE.py:CLASS"),
        ("own.py:a-b", "FILE.py:CLASS"),
        ("nothing.py:Same", "expected a Python file"),
        ("broken.py:Same", "cannot be imported: ZeroDivisionError"),
    ],
)
def test_what_is_no_decoder_is_refused_before_anything_runs(own, text, message, monkeypatch):
    monkeypatch.chdir(own.parent)
    own.with_name("broken.py").write_text("1 / 0")
    with pytest.raises(InputError, match=message):
        Foreign.parse(text)


def test_no_config_runs_code(own, tmp_path):
    marker = tmp_path / "was here"
    evil = tmp_path / "evil.py"
    evil.write_text(f"open({str(marker)!r}, 'w')\nclass Evil: fit = predict = adapt = lambda self, *a: 0\n")
    base = 'name = "x"\n{}arms = []\n[source]\nkind = "folder"\n[[pairs]]\nsource = 1\ntargets = [2]\n{}'
    arm = '[[arms]]\nrule = "{}"\noptimizer = "{}"\n'
    name = f"{evil}:Evil"
    for plain, section in [
        (f'decoder = "{name}"\n', ""), (f'decoders = ["{name}"]\n', ""), (f'foreign = ["{name}"]\n', ""),
        ("", arm.format(name, "sgd")), ("", arm.format("immediate", name)), ("", arm.format("evil", "sgd")),
        ("", f'[network]\ncells = ["{name}"]\n'), ("", '[network]\ncells = ["evil"]\n'),
        (f'layout = "{name}"\nnothing = 1\n', ""),
    ]:  # fmt: skip
        path = tmp_path / "bad.toml"
        path.write_text(base.format(plain, section).replace("arms = []\n", "" if "arms" in section else "arms = []\n"))
        with pytest.raises(InputError):
            load_config(path)
        assert not marker.exists()
    Foreign.parse(name)
    assert marker.exists(), "only what the command line names is run"


def test_started_gives_the_decoder_an_arm_asks_for(bench):
    arm = bench.arm("fine_tuned", "tanh")
    job = bench.job(arm)
    decoder = adapt.started(job.parameters, {"decoder": bench.run(job.inputs["decoder"])})
    plain = Decoder.load(bench.run(job.inputs["decoder"]))
    assert (decoder.name, plain.name) == ("fine_tuned", "online_rnn")
    assert (decoder.tune_updates, decoder.label_delay_s) == (2, DELAY * BIN_S)
    assert np.array_equal(decoder.W_, plain.W_)


def test_a_decoder_that_learns_from_no_label_is_shown_them_as_late_as_others(bench):
    """It has no delay to set, in a sweep as little as elsewhere; its rows tell one, and count its labels by it."""
    config = parse_config(CONFIG | {"arms": [{"decoder": "wiener", "penalty": 1.0}]}, "test")
    arm = next(each for each in bench.arms(config) if each.decoder == "wiener" and each.learns)
    y = bench.arrays().y[:N_STREAM]
    for delay in (0, DELAY, 20):
        late = replace(LATE, delay_s=delay * BIN_S)
        found = np.load(bench.run(bench.job(arm, config, labels=late)))
        assert found["n_labels"] == np.isfinite(y[: N_STREAM - delay]).any(axis=1).sum()
        learning = bench.predict(bench.arm("rls"), labels=late)
        assert found["n_labels"] == learning.n_labels
    at_end = np.load(bench.run(bench.job(arm, config, labels=AT_TRIAL_END)))
    assert at_end["n_labels"] == bench.predict(bench.arm("rls"), labels=AT_TRIAL_END).n_labels
