"""Benchmarks of online learning: every figure beside its floor and its rivals, measured in the same run on one core.

A label comes with every bin, is used at once, and weights move in place; everything is float64. A figure, its floor and
its rivals take turns (A B A B …) in calls of a few milliseconds and the fastest call of each counts, so that whatever
else the machine does meets all of them alike. Rows are of six kinds:

- ``immediate``: immediate + RMSprop. Floor: the longer of (a) the arithmetic of one RMSprop update of every parameter,
  on data that stay in L1, and (b) reading and writing θ and v once, as a loop that does nothing else. For information:
  the optimiser's own update over arrays of that size (``update_loop_steps_per_s``).
- ``rtrl``: exact RTRL + RMSprop. Floor: its matrix products alone, through the same np.dot, rotating through a memory
  of the same size.
- ``rules``: the other rules beside the floor of ``immediate``, for orientation.
- ``latency``: one bin per call; percentiles in µs. Floor: the same bin inside a long call of `run`.
- ``deployed``: one bin per call of the recommended decoder's ``step``, with its label. Floor: a call that does nothing,
  timed the same way (``empty_p50_us`` …): the clock and the loop. Beside it the multiplications of a bin, and of one
  gradient step of BPTT fine-tuning of the same networks (`bci_adapt.learning.arithmetic`).
- ``memory``: words per parameter (RTRL: per unit and parameter) of the arrays that stay, and of the growth of the
  resident set while `start` and `run` first work, in a process of its own. That growth holds more than the arrays: the
  stream and its converted copy, scratch, what the linear algebra library packs its operands into, and pages of code
  and of the allocator that are touched for the first time. The caller's initial weights are there before.

``peak_bytes`` is the peak of tracemalloc, to which numpy reports, during `start` and a few bins; scratch of compiled
code (O(n · gates + row width)) is not in it.

A rival must compute the same thing: its first predictions have to agree with ours to 1e-9, or the benchmark stops.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from bci_adapt.cli.bench.cases import N_OUTPUTS, RATE, Case, Ours, load
from bci_adapt.cli.bench.measuring import (
    Timer,
    fastest,
    forget_peak,
    latencies,
    processes,
    resident,
    timer_of,
    traced_peak,
)
from bci_adapt.cli.bench.rivals import Rivals, rival_timers, rivals_at_hand
from bci_adapt.decoders.recommendation import recommended
from bci_adapt.ground.threads import one_thread
from bci_adapt.learning import arithmetic
from bci_adapt.learning.credit.base import rule
from bci_adapt.learning.online import Learner, run, start
from bci_adapt.learning.optimizers import RMSprop

_BIN_S = 0.05
_OTHERS = ("window", "trace", "snap1", "uoro", "eprop", "rtrl", "readout")

Say = Callable[[str], None]


class Plan(NamedTuple):
    """What is measured; `call_s` is how long one timed call is meant to last, `calls` how many give the percentiles."""

    immediate: list[Case]
    rtrl: list[Case]
    rules: list[Case]
    latency: list[Case]
    deployed: list[Case]
    memory: list[Case]
    call_s: float
    rounds: int
    calls: int


def _recommended(m: int) -> Case:
    """The recommended decoder's network and rule."""
    made = recommended()
    return Case(made.cell, made.n_hidden, m, rule(made.rule, **(made.rule_constants or {})))


def _plan(quick: bool) -> Plan:
    rtrl = rule("rtrl")
    if quick:
        return Plan(
            immediate=[Case("tanh", 16, 8)],
            rtrl=[Case("tanh", 16, 8, rtrl)],
            rules=[Case("tanh", 16, 8, rtrl)],  # one more rule is one more loop to compile
            latency=[Case("tanh", 16, 8)],
            deployed=[Case("tanh", 16, 8)],
            memory=[Case("tanh", 256, 8), Case("tanh", 96, 8, rtrl)],
            call_s=2e-3,
            rounds=3,
            calls=50,
        )
    return Plan(
        immediate=[Case(name, n, m) for m in (10, 96) for n in (64, 256, 1024) for name in ("tanh", "gru", "lstm")],
        rtrl=[*(Case("tanh", n, 10, rtrl) for n in (64, 128, 256)), Case("gru", 64, 96, rtrl)],
        rules=[Case(name, 64, 96, rule(each)) for name in ("tanh", "gru") for each in _OTHERS],
        latency=[Case(name, n, 96) for n in (64, 256) for name in ("tanh", "gru")],
        deployed=[_recommended(m) for m in (96, 192)],
        memory=[Case("tanh", 1024, 10), Case("tanh", 512, 10, rtrl)],
        call_s=30e-3,
        rounds=15,
        calls=2000,
    )


def learning(quick: bool = False, say: Say = lambda text: None) -> list[dict[str, Any]]:
    """Measure everything; `quick` takes one tiny network of each kind: a check that it works, not a figure.

    Raises
    ------
    RuntimeError
        when a rival predicts something else than `run` does.
    """
    # The library behind np.dot in compiled code is scipy's, and a limit holds only for what is loaded by then.
    import scipy.linalg  # noqa: F401  # pyright: ignore[reportUnusedImport]

    plan = _plan(quick)
    kinds = (
        ("immediate", _immediate),
        ("rtrl", _rtrl),
        ("rules", _rule),
        ("latency", _latency),
        ("deployed", _deployed),
        ("memory", _memory),
    )
    total = sum(len(getattr(plan, kind)) for kind, _ in kinds)
    rows: list[dict[str, Any]] = []
    done = 0
    say("compiling")
    _compile([case for kind, _ in kinds for case in getattr(plan, kind)])
    with one_thread(), rivals_at_hand() as rivals:
        for kind, measure in kinds:
            for case in getattr(plan, kind):
                done += 1
                say(f"{done} of {total}  {kind}: {case.label}, {case.cell}, n = {case.n}, {case.m} inputs")
                rows += measure(case, plan, rivals)
    return rows


def _compile(cases: list[Case]) -> None:
    """Put the compiled loops on disk before anything is timed, on all cores: each takes about ten seconds."""
    tiny = list({(case.cell, case.label): Case(case.cell, 8, 4, case.rule) for case in cases}.values())
    if len(tiny) > 1:
        with processes(min(len(tiny), os.cpu_count() or 1)) as pool:
            list(pool.map(load, tiny))


def _row(bench: str, case: Case, peak_bytes: int, **figures: Any) -> dict[str, Any]:
    """One row; speeds are None where the bench has none."""
    keys = ("steps_per_s", "floor_steps_per_s", "ratio", "aim")
    row = {
        "bench": bench, "cell": case.cell, "rule": case.label, "optimizer": "rmsprop", "n": case.n, "m": case.m,
        "dtype": "float64", "backend": "compiled", **dict.fromkeys(keys), "rivals": {}, "peak_bytes": peak_bytes,
    }  # fmt: skip
    row |= figures
    if row["steps_per_s"] is not None:
        row["ratio"] = row["steps_per_s"] / row["floor_steps_per_s"]
    return row


class _Kernels(NamedTuple):
    arithmetic: Callable
    traffic: Callable
    update: Callable
    panels: Callable


@functools.cache
def _kernels() -> _Kernels:
    """Compiled loops that floors are made of; each repeats its work `repeats` times."""
    import numba

    jit = numba.njit(error_model="numpy", fastmath={"reassoc", "contract", "nsz"})

    @jit
    def arithmetic(theta, v, g, rate, beta2, epsilon, n_parameters, repeats):
        for _ in range(repeats):
            left = n_parameters
            while left > 0:
                for j in range(min(theta.shape[0], left)):
                    v[j] = beta2 * v[j] + (1.0 - beta2) * (g[j] * g[j])
                    theta[j] -= rate * g[j] / (np.sqrt(v[j]) + epsilon)
                left -= theta.shape[0]

    @jit
    def traffic(theta, v, repeats):
        for _ in range(repeats):
            for j in range(theta.shape[0]):
                theta[j] = 1.0 - theta[j]
                v[j] = 1.0 - v[j]

    update = jit(RMSprop().make())

    @jit
    def updates(theta, g, slots, rate, hyper, repeats):
        for t in range(repeats):
            update(theta, g, slots, rate, hyper, t + 1)

    @jit
    def panels(D, memory, repeats):
        places, width = memory.shape[0], D.shape[1]
        for last in range(repeats):
            for i in range(places - 1):
                np.dot(D, memory[(i - last) % places][:width], memory[(i - last - 1) % places])

    return _Kernels(arithmetic, traffic, updates, panels)


def _rmsprop_floor(n_parameters: int, call_s: float) -> dict[str, Timer]:
    """Timers of the arithmetic and of the traffic of one update, and of the optimiser's own."""
    kernels, rng = _kernels(), np.random.default_rng(0)
    in_l1 = [np.abs(rng.standard_normal(512)) for _ in range(3)]  # 12 KiB
    two = [rng.standard_normal(n_parameters) for _ in range(2)]
    theta, g = (rng.standard_normal(n_parameters) for _ in range(2))
    slots, rate, hyper = np.ones((1, n_parameters)), np.full(n_parameters, 1e-9), RMSprop().hyper()
    beta2, epsilon = hyper
    return {
        "arithmetic": timer_of(lambda k: kernels.arithmetic(*in_l1, 1e-9, beta2, epsilon, n_parameters, k), call_s),
        "traffic": timer_of(lambda k: kernels.traffic(*two, k), call_s),
        "update": timer_of(lambda k: kernels.update(theta, g, slots, rate, hyper, k), call_s),
    }


def _panel_floor(case: Case, call_s: float) -> Timer:
    """Timer of the products of one bin of RTRL."""
    rng = np.random.default_rng(0)
    memory = rng.standard_normal(case.network.memory_shape(case.rule))
    size = memory.shape[1] - 1
    D = np.zeros((size + 1, size))
    D[:size] = np.linalg.qr(rng.standard_normal((size, size)))[0]  # keeps the size of what it multiplies
    return timer_of(lambda k: _kernels().panels(D, memory, k), call_s)


def _immediate(case: Case, plan: Plan, rivals: Rivals) -> list[dict[str, Any]]:
    return [_beside_update(case, plan, "immediate", rivals)]


def _rule(case: Case, plan: Plan, rivals: Rivals) -> list[dict[str, Any]]:
    return [_beside_update(case, plan, "rules")]


def _beside_update(case: Case, plan: Plan, bench: str, rivals: Rivals | None = None) -> dict[str, Any]:
    """A row whose floor is the RMSprop update; with rivals where they are given."""
    ours = Ours(case)
    peak = ours.peak_bytes()
    seldom = rival_timers(case, ours, rivals, plan.call_s) if rivals is not None else {}
    timers = {"ours": ours.timer(plan.call_s), **_rmsprop_floor(case.network.n_parameters, plan.call_s)}
    speed = fastest(timers, plan.rounds, seldom)
    return _row(
        bench,
        case,
        peak,
        steps_per_s=speed["ours"],
        floor_steps_per_s=min(speed["arithmetic"], speed["traffic"]),
        aim=(0.85 if case.n >= 256 else 0.70 if case.n >= 64 else None) if bench == "immediate" else None,
        rivals={name: speed[name] for name in seldom},
        arithmetic_steps_per_s=speed["arithmetic"],
        traffic_steps_per_s=speed["traffic"],
        update_loop_steps_per_s=speed["update"],
    )


def _rtrl(case: Case, plan: Plan, rivals: Rivals) -> list[dict[str, Any]]:
    ours = Ours(case)
    peak = ours.peak_bytes()
    timers = {"ours": ours.timer(plan.call_s), "floor": _panel_floor(case, plan.call_s)}
    speed = fastest(timers, plan.rounds)
    aim = 0.90 if case.n >= 128 else None
    figures = {"steps_per_s": speed["ours"], "floor_steps_per_s": speed["floor"], "aim": aim}
    return [_row("rtrl", case, peak, **figures)]


def _latency(case: Case, plan: Plan, rivals: Rivals) -> list[dict[str, Any]]:
    from bci_adapt.decoders.online_rnn import OnlineDecoder

    ours = Ours(case)
    peak = ours.peak_bytes()
    rng = np.random.default_rng(2)
    counts = rng.poisson(2.0, (400, case.m)).astype(float)
    labels = rng.standard_normal((400, N_OUTPUTS))
    # As shipped – averaged weights predict, labels come 0.5 s late – but hardly trained.
    decoder = OnlineDecoder(cell=case.cell, n_hidden=case.n, learning_rate=RATE, n_updates=1, bin_s=_BIN_S)
    decoder.fit([counts], [labels])
    delay = round(decoder.label_delay_s / _BIN_S)

    def steps() -> None:
        for _ in range(4):
            decoder.step(counts[0], labels[0])

    def one(t: int) -> None:
        _, ours.state = run(ours.state, ours.X[t : t + 1], ours.Y[t : t + 1], in_place=True)

    rows = []
    averaging = Ours(case, Learner(case.network, case.rule, RMSprop(RATE), average=decoder.average), delay)
    for name, call, traced, stream in (
        ("run, one bin in place", one, peak, ours),
        ("decoder.step", lambda t: decoder.step(counts[t % 400], labels[t % 400]), traced_peak(steps), averaging),
    ):
        us = latencies(call, plan.calls)
        floor = fastest({"stream": stream.timer(plan.call_s)}, plan.rounds)["stream"]
        percentiles = {f"p{p}_us": float(np.percentile(us, p)) for p in (50, 95, 99)}
        steps_per_s = 1e6 / percentiles["p50_us"]
        figures = {"call": name, **percentiles, "bins": len(us), "stream_us": 1e6 / floor}
        rows.append(_row("latency", case, traced, steps_per_s=steps_per_s, floor_steps_per_s=floor, **figures))
    return rows


def _deployed(case: Case, plan: Plan, rivals: Rivals) -> list[dict[str, Any]]:
    rng = np.random.default_rng(2)
    counts = rng.poisson(2.0, (400, case.m)).astype(float)
    labels = rng.standard_normal((400, N_OUTPUTS))
    decoder = recommended(
        cell=case.cell, n_hidden=case.n, rule=case.rule.name, rule_constants=asdict(case.rule), n_updates=1,
        learning_rate=RATE, bin_s=_BIN_S,
    )  # fmt: skip
    decoder.fit([counts], [labels])
    us = latencies(lambda t: decoder.step(counts[t % 400], labels[t % 400]), plan.calls)
    empty = latencies(lambda t: None, plan.calls)
    peak = traced_peak(lambda: [decoder.step(counts[0], labels[0]) for _ in range(4)])
    percentiles = {
        f"{prefix}p{p}_us": float(np.percentile(times, p))
        for prefix, times in (("", us), ("empty_", empty))
        for p in (50, 95, 99)
    }
    speeds = {"steps_per_s": 1e6 / percentiles["p50_us"], "floor_steps_per_s": 1e6 / percentiles["empty_p50_us"]}
    network, constants = case.network, {"n_members": decoder.n_members, "take_turns": decoder.take_turns}
    counted = {
        "multiplications": arithmetic.online(
            network, case.rule, averages=decoder.average is not None, learn_every=decoder.learn_every, **constants
        ),
        "fine_tuning_multiplications": arithmetic.fine_tuning(network, n_members=decoder.n_members),
    }
    figures = {"call": "recommended().step", **percentiles, **counted, "bins": len(us)}
    return [_row("deployed", case, peak, **speeds, **figures)]


def _memory(case: Case, plan: Plan, rivals: Rivals) -> list[dict[str, Any]]:
    with processes() as pool:
        measured = pool.submit(measure_memory, case, 3 if case.rule.advances else 20).result()
    holds = case.network.n_parameters * (case.n if case.rule.advances else 1)
    figures = {
        "per": "unit · parameter" if case.rule.advances else "parameter",
        "live_bytes": measured["live"],
        "live_words": measured["live"] / 8 / holds,
        "live_words_at_most": 1.1 if case.rule.advances else 2.1,
        "rss_growth_bytes": measured["growth"],
        "rss_growth_words": measured["growth"] / 8 / holds,
    }
    return [_row("memory", case, measured["traced"], **figures)]


def measure_memory(case: Case, n_bins: int) -> dict[str, int]:
    """In a process of its own: bytes of the arrays that stay, growth of the resident set, and tracemalloc's peak."""
    load(Case(case.cell, 8, 4, case.rule))  # and everything that comes with it
    learner, network, rng = case.learner, case.network, np.random.default_rng(0)
    W = rng.standard_normal((network.n_hidden, network.row_width))  # initial_weights would leave freed memory behind
    W /= np.sqrt(network.row_width)
    C = np.zeros((network.n_outputs, network.readout_width))
    X, Y = case.stream(n_bins)

    def go(n_bins: int):
        return run(start(learner, W, C), X[:n_bins], Y[:n_bins], in_place=True)

    forget_peak()
    with one_thread():
        before, _ = resident()
        _, state = go(n_bins)
        growth = resident()[1] - before
        live = sum(array.nbytes for array in state.arrays.values())
        del state
        return {"live": live, "growth": growth, "traced": traced_peak(lambda: go(1))}
