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

import ctypes
import functools
import gc
import importlib
import importlib.util
import multiprocessing
import os
import resource
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bci_adapt.decoders.recommendation import recommended
from bci_adapt.ground.threads import one_thread
from bci_adapt.learning import arithmetic
from bci_adapt.learning.cells.base import Network, cell
from bci_adapt.learning.credit.base import CreditRule, rule
from bci_adapt.learning.online import Learner, run, start
from bci_adapt.learning.optimizers import RMSprop

if TYPE_CHECKING:
    from rich.table import Table

TORCH, JAX = "torch autograd + torch.optim", "jax.lax.scan, jitted"
JAX_HINT = "jax is not installed, so that rival is missing; to add it: pip install 'bci-adapt[jax]'"
# Small, so that weights hardly move however long the benchmark lasts; rates do not change what an update costs.
_RATE = 1e-5
_BIN_S = 0.05
_SAME_BINS, _SAME = 50, 1e-9
_N_OUTPUTS = 2
_OTHERS = ("window", "trace", "snap1", "uoro", "eprop", "rtrl", "readout")

Say = Callable[[str], None]
Timer = Callable[[], float]  # seconds per step


@dataclass(frozen=True)
class Case:
    """A network and a rule, with RMSprop."""

    cell: str
    n: int
    m: int
    rule: CreditRule = field(default_factory=lambda: rule("immediate"))

    @functools.cached_property
    def network(self) -> Network:
        return Network(cell(self.cell), self.m, self.n, _N_OUTPUTS)

    @property
    def learner(self) -> Learner:
        return Learner(self.network, self.rule, RMSprop(_RATE))

    @property
    def label(self) -> str:
        steps = getattr(self.rule, "steps", None)
        return self.rule.name if steps is None else f"{self.rule.name}({steps})"

    @functools.cached_property
    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        return self.network.initial_weights(0)

    def stream(self, n_bins: int) -> tuple[np.ndarray, np.ndarray]:
        """Noise in (n_bins, m) and noise out (n_bins, n_outputs)."""
        rng = np.random.default_rng(1)
        return rng.standard_normal((n_bins, self.m)), rng.standard_normal((n_bins, _N_OUTPUTS))


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
    with one_thread(), _rivals() as rivals:
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


def load(case: Case) -> None:
    """Compile the loop of this case, or load it from disk."""
    _Ours(case)


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


# ------------------------------------------------------------------------------------------------ timing


def clock(call: Callable[..., Any], *arguments: Any) -> float:
    begin = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - begin


def _timer(work: Callable[[int], Any], call_s: float, most: int = 1_000_000) -> Timer:
    """Timer of ``work(k)``, which does k steps, with at most `most` of them and about `call_s` seconds per call."""
    work(1)  # compiles
    k = 1
    while k < most and (took := clock(work, k)) < 0.7 * call_s:
        k = min(most, max(k + 1, int(k * min(10.0, call_s / took))))
    return lambda: clock(work, k) / k


def _fastest(timers: dict[str, Timer], rounds: int, seldom: dict[str, Timer] | None = None) -> dict[str, float]:
    """Steps per second of each in the fastest of its calls, taking turns; those in `seldom` join every third round."""
    seldom = seldom or {}
    best = dict.fromkeys([*timers, *seldom], np.inf)
    for number in range(rounds):
        for name, timer in (timers | seldom if number % 3 == 0 else timers).items():
            best[name] = min(best[name], timer())
    return {name: 1.0 / seconds for name, seconds in best.items()}


def traced_peak(call: Callable[[], Any]) -> int:
    """Bytes that Python and numpy held at most during the call, beyond what they held before."""
    gc.collect()
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


class _Ours:
    """The product, going on with one state."""

    def __init__(self, case: Case, learner: Learner | None = None, delay: int = 0):
        self.learner, self.weights, self.delay = learner or case.learner, case.weights, delay
        self.X, self.Y = case.stream(4096)
        self.state = start(self.learner, *self.weights)
        self.work(1)

    def work(self, n_bins: int) -> np.ndarray:
        arrives = np.arange(n_bins) + self.delay
        predictions, self.state = run(self.state, self.X[:n_bins], self.Y[:n_bins], arrives=arrives, in_place=True)
        return predictions[0]

    def restart(self, n_bins: int) -> np.ndarray:
        """Predictions from the initial weights on."""
        self.state = start(self.learner, *self.weights)
        return self.work(n_bins)

    def timer(self, call_s: float) -> Timer:
        return _timer(self.work, call_s, len(self.X))

    def peak_bytes(self, n_bins: int = 4) -> int:
        del self.state  # else two of them are there
        return traced_peak(lambda: self.restart(n_bins))


# ------------------------------------------------------------------------------------------------ floors


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
        "arithmetic": _timer(lambda k: kernels.arithmetic(*in_l1, 1e-9, beta2, epsilon, n_parameters, k), call_s),
        "traffic": _timer(lambda k: kernels.traffic(*two, k), call_s),
        "update": _timer(lambda k: kernels.update(theta, g, slots, rate, hyper, k), call_s),
    }


def _panel_floor(case: Case, call_s: float) -> Timer:
    """Timer of the products of one bin of RTRL."""
    rng = np.random.default_rng(0)
    memory = rng.standard_normal(case.network.memory_shape(case.rule))
    size = memory.shape[1] - 1
    D = np.zeros((size + 1, size))
    D[:size] = np.linalg.qr(rng.standard_normal((size, size)))[0]  # keeps the size of what it multiplies
    return _timer(lambda k: _kernels().panels(D, memory, k), call_s)


# ------------------------------------------------------------------------------------------------ rivals


class Rivals(NamedTuple):
    """The process in which jax runs on one thread; None where jax is not installed."""

    jax: ProcessPoolExecutor | None


@contextmanager
def _rivals() -> Iterator[Rivals]:
    if importlib.util.find_spec("jax") is None:
        yield Rivals(None)
        return
    with processes(initializer=_one_jax_thread) as pool:
        yield Rivals(pool)


def processes(n: int = 1, initializer: Callable[[], None] | None = None) -> ProcessPoolExecutor:
    """Fresh processes that take over nothing of this one's memory."""
    return ProcessPoolExecutor(n, mp_context=multiprocessing.get_context("spawn"), initializer=initializer)


def _one_jax_thread() -> None:
    # Read once, when jax is imported: NPROC sizes its thread pool, the flag that of Eigen's products.
    os.environ |= {
        "NPROC": "1",
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": "1",
    }


def require_same(name: str, ours: np.ndarray, theirs: np.ndarray) -> None:
    """Raise `RuntimeError` unless a rival's predictions (n_bins, n_outputs) are ours."""
    apart = float(np.max(np.abs(ours - theirs)))
    if not apart <= _SAME:
        raise RuntimeError(
            f"{name} computes something else: over {len(ours)} bins its predictions differ from ours by {apart:.1e}, "
            f"at most {_SAME:.0e} is expected"
        )


def _parts(network: Network, W: np.ndarray) -> tuple[list[np.ndarray], list[tuple[int, int, int]]]:
    """W as one matrix per group of gates that read the same of z, and (begin, width, n_gates) of each group.

    So one would write it by hand: one product for all gates of an LSTM, and no gradient of a slice, which autograd
    fills up with zeros.
    """
    groups: list[tuple[int, int, list[np.ndarray]]] = []
    for begin, width, column, *_ in network.blocks.tolist():
        weights = W[:, column : column + width]
        if groups and groups[-1][:2] == (begin, width):
            groups[-1][2].append(weights)
        else:
            groups.append((begin, width, [weights]))
    return [np.concatenate(rows) for _, _, rows in groups], [(begin, width, len(rows)) for begin, width, rows in groups]


class TorchRival:
    """Autograd with the hidden state detached at every bin, and torch.optim.RMSprop."""

    def __init__(self, network: Network, W: np.ndarray, C: np.ndarray, X: np.ndarray, Y: np.ndarray):
        import torch

        self.network, self.at = network, 0
        self.update, _ = network.cell.make(torch)
        parts, self.groups = _parts(network, W)
        self.weights = [torch.tensor(part, requires_grad=True) for part in parts]
        self.C = torch.tensor(C, requires_grad=True)
        constants = RMSprop(_RATE)
        self.optimizer = torch.optim.RMSprop(
            [*self.weights, self.C], lr=_RATE, alpha=constants.beta2, eps=constants.epsilon
        )
        self.X, self.Y, self.one = torch.tensor(X), torch.tensor(Y), torch.ones(1, dtype=torch.float64)
        self.state = torch.zeros(len(network.cell.slots), network.n_hidden, dtype=torch.float64)

    def work(self, n_bins: int) -> np.ndarray:
        """Go on for n_bins; returns their predictions."""
        import torch

        predictions = np.empty((n_bins, self.network.n_outputs))
        features = list(self.network.cell.features)
        for t in range(n_bins):
            x, y = self.X[self.at % len(self.X)], self.Y[self.at % len(self.X)]
            self.at += 1
            z = torch.cat([x, self.one, self.state[0]])
            a = []
            for weights, (begin, width, gates) in zip(self.weights, self.groups, strict=True):
                a += torch.mv(weights, z[begin : begin + width]).chunk(gates)
            new = self.update(a, self.state)
            prediction = torch.mv(self.C, torch.cat([*(new[slot] for slot in features), self.one]))
            self.optimizer.zero_grad()
            (0.5 * (prediction - y).square().sum()).backward()
            self.optimizer.step()
            self.state = torch.stack(new).detach()
            predictions[t] = prediction.detach().numpy()
        return predictions


_jax_call: Callable[[], np.ndarray]  # in the process of jax: the whole stream from the initial weights on


def jax_begin(network: Network, W: np.ndarray, C: np.ndarray, X: np.ndarray, Y: np.ndarray) -> np.ndarray:
    """Compile the scan over this stream, keep it for `jax_again`, return its predictions (n_bins, n_outputs)."""
    global _jax_call
    jax = importlib.import_module("jax")
    jnp, constants = jax.numpy, RMSprop(_RATE)
    update, _ = network.cell.make(jnp)
    parts, groups = _parts(network, W)
    features = list(network.cell.features)

    def loss(weights, state, x, y):
        z = jnp.concatenate([x, jnp.ones(1), jax.lax.stop_gradient(state[0])])
        a = []
        for each, (begin, width, gates) in zip(weights[:-1], groups, strict=True):
            a += jnp.split(each @ z[begin : begin + width], gates)
        new = update(a, jax.lax.stop_gradient(state))
        prediction = weights[-1] @ jnp.concatenate([*(new[slot] for slot in features), jnp.ones(1)])
        return 0.5 * jnp.sum((prediction - y) ** 2), (jnp.stack(new), prediction)

    def step(carry, bin):
        weights, squares, state = carry
        grads, (state, prediction) = jax.grad(loss, has_aux=True)(weights, state, *bin)
        beta2, epsilon = constants.beta2, constants.epsilon
        squares = [beta2 * v + (1.0 - beta2) * g * g for v, g in zip(squares, grads, strict=True)]
        moved = zip(weights, grads, squares, strict=True)
        weights = [theta - _RATE * g / (jnp.sqrt(v) + epsilon) for theta, g, v in moved]
        return (weights, squares, state), prediction

    scan = jax.jit(lambda carry, stream: jax.lax.scan(step, carry, stream))
    weights = [jnp.asarray(part) for part in [*parts, C]]
    state = jnp.zeros((len(network.cell.slots), network.n_hidden))
    begin = weights, [jnp.zeros_like(each) for each in weights], state
    stream = jnp.asarray(X), jnp.asarray(Y)
    _jax_call = lambda: np.asarray(jax.block_until_ready(scan(begin, stream))[1])  # noqa: E731
    return _jax_call()


def jax_again() -> float:
    """Seconds of one call over the stream that `jax_begin` was given."""
    return clock(_jax_call)


def _rival_timers(case: Case, ours: _Ours, rivals: Rivals, call_s: float) -> dict[str, Timer]:
    """Timers of the rivals that are there, each checked against our predictions."""
    same = ours.restart(_SAME_BINS)
    # Long enough that what a call of the scan costs is nothing beside its bins; an estimate of its time is enough.
    n_bins = int(np.clip(5.0 * call_s / (1e-5 + 4e-9 * case.network.n_parameters), _SAME_BINS, len(ours.X)))
    X, Y = ours.X[:n_bins], ours.Y[:n_bins]
    torch_rival = TorchRival(case.network, *case.weights, X, Y)
    require_same(TORCH, same, torch_rival.work(_SAME_BINS))
    timers = {TORCH: _timer(torch_rival.work, 5.0 * call_s)}
    if rivals.jax is not None:
        pool = rivals.jax
        predictions = pool.submit(jax_begin, case.network, *case.weights, X, Y).result()
        require_same(JAX, same, predictions[:_SAME_BINS])
        timers[JAX] = lambda: pool.submit(jax_again).result() / n_bins
    return timers


# ------------------------------------------------------------------------------------------------ kinds of rows


def _immediate(case: Case, plan: Plan, rivals: Rivals) -> list[dict[str, Any]]:
    return [_beside_update(case, plan, "immediate", rivals)]


def _rule(case: Case, plan: Plan, rivals: Rivals) -> list[dict[str, Any]]:
    return [_beside_update(case, plan, "rules")]


def _beside_update(case: Case, plan: Plan, bench: str, rivals: Rivals | None = None) -> dict[str, Any]:
    """A row whose floor is the RMSprop update; with rivals where they are given."""
    ours = _Ours(case)
    peak = ours.peak_bytes()
    seldom = _rival_timers(case, ours, rivals, plan.call_s) if rivals is not None else {}
    timers = {"ours": ours.timer(plan.call_s), **_rmsprop_floor(case.network.n_parameters, plan.call_s)}
    speed = _fastest(timers, plan.rounds, seldom)
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
    ours = _Ours(case)
    peak = ours.peak_bytes()
    timers = {"ours": ours.timer(plan.call_s), "floor": _panel_floor(case, plan.call_s)}
    speed = _fastest(timers, plan.rounds)
    aim = 0.90 if case.n >= 128 else None
    figures = {"steps_per_s": speed["ours"], "floor_steps_per_s": speed["floor"], "aim": aim}
    return [_row("rtrl", case, peak, **figures)]


def _latency(case: Case, plan: Plan, rivals: Rivals) -> list[dict[str, Any]]:
    from bci_adapt.decoders.online_rnn import OnlineDecoder

    ours = _Ours(case)
    peak = ours.peak_bytes()
    rng = np.random.default_rng(2)
    counts = rng.poisson(2.0, (400, case.m)).astype(float)
    labels = rng.standard_normal((400, _N_OUTPUTS))
    # As shipped – averaged weights predict, labels come 0.5 s late – but hardly trained.
    decoder = OnlineDecoder(cell=case.cell, n_hidden=case.n, learning_rate=_RATE, n_updates=1, bin_s=_BIN_S)
    decoder.fit([counts], [labels])
    delay = round(decoder.label_delay_s / _BIN_S)

    def steps() -> None:
        for _ in range(4):
            decoder.step(counts[0], labels[0])

    def one(t: int) -> None:
        _, ours.state = run(ours.state, ours.X[t : t + 1], ours.Y[t : t + 1], in_place=True)

    rows = []
    averaging = _Ours(case, Learner(case.network, case.rule, RMSprop(_RATE), average=decoder.average), delay)
    for name, call, traced, stream in (
        ("run, one bin in place", one, peak, ours),
        ("decoder.step", lambda t: decoder.step(counts[t % 400], labels[t % 400]), traced_peak(steps), averaging),
    ):
        us = _latencies(call, plan.calls)
        floor = _fastest({"stream": stream.timer(plan.call_s)}, plan.rounds)["stream"]
        percentiles = {f"p{p}_us": float(np.percentile(us, p)) for p in (50, 95, 99)}
        steps_per_s = 1e6 / percentiles["p50_us"]
        figures = {"call": name, **percentiles, "bins": len(us), "stream_us": 1e6 / floor}
        rows.append(_row("latency", case, traced, steps_per_s=steps_per_s, floor_steps_per_s=floor, **figures))
    return rows


def _deployed(case: Case, plan: Plan, rivals: Rivals) -> list[dict[str, Any]]:
    rng = np.random.default_rng(2)
    counts = rng.poisson(2.0, (400, case.m)).astype(float)
    labels = rng.standard_normal((400, _N_OUTPUTS))
    decoder = recommended(
        cell=case.cell, n_hidden=case.n, rule=case.rule.name, rule_constants=asdict(case.rule), n_updates=1,
        learning_rate=_RATE, bin_s=_BIN_S,
    )  # fmt: skip
    decoder.fit([counts], [labels])
    us = _latencies(lambda t: decoder.step(counts[t % 400], labels[t % 400]), plan.calls)
    empty = _latencies(lambda t: None, plan.calls)
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


def _latencies(call: Callable[[int], Any], n_calls: int) -> np.ndarray:
    """Duration of each call in µs, after a few that are not counted."""
    for t in range(20):
        call(t)
    return np.array([1e6 * clock(call, t) for t in range(n_calls)])


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


_STATUS = Path("/proc/self/status")


def forget_peak() -> None:
    """Give freed memory back, which new arrays would fill unseen, and begin the peak of the resident set anew."""
    gc.collect()
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def resident() -> tuple[int, int]:
    """Bytes of this process in memory: now, and at most so far.

    On Linux ru_maxrss of a new process begins with the peak of the process that started it, so that its growth would
    come out too small; VmHWM is the process's own.
    """
    if _STATUS.exists():
        fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        now, peak = (1024 * int(fields[name].split()[0]) for name in ("VmRSS", "VmHWM"))
        return now, peak
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return peak, peak


# ------------------------------------------------------------------------------------------------ for the terminal


def tables(rows: list[dict[str, Any]]) -> list[Table]:
    """One table per kind of row, at most 100 columns wide; a figure that misses its aim is red."""
    kinds = {
        "immediate": _speeds,
        "rtrl": _speeds,
        "rules": _speeds,
        "latency": _latency_table,
        "deployed": _empty_table,
        "memory": _words,
    }
    found = {kind: [row for row in rows if row["bench"] == kind] for kind in kinds}
    return [kinds[kind](kind, each) for kind, each in found.items() if each]


_TITLES = {
    "immediate": "immediate + RMSprop; floor: the update's arithmetic, or its memory traffic",
    "rtrl": "exact RTRL + RMSprop; floor: its matrix products",
    "rules": "other rules + RMSprop; floor: the update, as above",
    "latency": "one bin per call, predict and learn (µs); stream: the same bin inside a long call",
    "deployed": "one bin per call of the recommended decoder (µs), beside a call that does nothing",
    "memory": "words of float64; resident: growth of the process, which holds code, scratch and the stream too",
}


def _table(kind: str, columns: tuple[str, ...]) -> Table:
    from rich.table import Table

    table = Table(title=_TITLES[kind], title_justify="left", width=None)
    for heading in columns:
        table.add_column(heading, justify="left" if heading in ("cell", "rule", "call", "per") else "right")
    return table


def _judged(text: str, value: float, aim: float | None, at_most: bool = False) -> str:
    """Coloured by whether the value meets its aim."""
    if aim is None:
        return text
    met = value <= aim if at_most else value >= aim
    return f"[green]{text}[/]" if met else f"[red]{text}[/]"


def _speeds(kind: str, rows: list[dict[str, Any]]) -> Table:
    with_rivals = kind == "immediate"
    names = ("cell", "n", "inputs", "bins/s", "floor", "ratio")
    table = _table(kind, names + (("× torch", "× jax") if with_rivals else ("rule",)) + ("peak MB",))
    for row in rows:
        cells = [row["cell"], str(row["n"]), str(row["m"])]
        cells += [f"{row[key]:,.0f}" for key in ("steps_per_s", "floor_steps_per_s")]
        cells.append(_judged(f"{row['ratio']:.2f}", row["ratio"], row["aim"]))
        if with_rivals:
            for name, aim in ((TORCH, 20.0 if row["n"] == 64 else None), (JAX, 1.3)):
                rival = row["rivals"].get(name)
                times = row["steps_per_s"] / rival if rival else 0.0
                cells.append(_judged(f"{times:.1f}", times, aim) if rival else "–")
        else:
            cells.append(row["rule"])
        table.add_row(*cells, f"{row['peak_bytes'] / 1e6:,.1f}")
    return table


def _latency_table(kind: str, rows: list[dict[str, Any]]) -> Table:
    table = _table(kind, ("cell", "n", "inputs", "call", "p50", "p95", "p99", "stream", "calls"))
    for row in rows:
        times = [f"{row[key]:,.0f}" for key in ("p50_us", "p95_us", "p99_us", "stream_us")]
        table.add_row(row["cell"], str(row["n"]), str(row["m"]), row["call"], *times, str(row["bins"]))
    return table


def _empty_table(kind: str, rows: list[dict[str, Any]]) -> Table:
    columns = "p50", "p95", "p99"
    empty = (f"empty {p}" for p in columns)
    table = _table(kind, ("cell", "rule", "n", "inputs", *columns, *empty, "M mult.", "per BPTT step"))
    for row in rows:
        times = [f"{row[f'{p}_us']:,.0f}" for p in columns] + [f"{row[f'empty_{p}_us']:,.2f}" for p in columns]
        counted = [f"{row[key] / 1e6:,.2f}" for key in ("multiplications", "fine_tuning_multiplications")]
        table.add_row(row["cell"], row["rule"], str(row["n"]), str(row["m"]), *times, *counted)
    return table


def _words(kind: str, rows: list[dict[str, Any]]) -> Table:
    table = _table(kind, ("cell", "rule", "n", "inputs", "live", "resident", "per", "live MB", "resident MB"))
    for row in rows:
        live = _judged(f"{row['live_words']:.2f}", row["live_words"], row["live_words_at_most"], at_most=True)
        megabytes = [f"{row[key] / 1e6:,.1f}" for key in ("live_bytes", "rss_growth_bytes")]
        where = row["cell"], row["rule"], str(row["n"]), str(row["m"])
        table.add_row(*where, live, f"{row['rss_growth_words']:.2f}", row["per"], *megabytes)
    return table
