"""Rivals of online learning, which must compute the same thing: torch autograd, and a jitted scan of jax."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from bci_adapt.cli.bench.cases import RATE, Case, Ours
from bci_adapt.cli.bench.measuring import Timer, clock, processes, timer_of
from bci_adapt.learning.cells.base import Network
from bci_adapt.learning.optimizers import RMSprop

TORCH, JAX = "torch autograd + torch.optim", "jax.lax.scan, jitted"
JAX_HINT = "jax is not installed, so that rival is missing; to add it: pip install 'bci-adapt[jax]'"
SAME_BINS, SAME = 50, 1e-9


class Rivals(NamedTuple):
    """The process in which jax runs on one thread; None where jax is not installed."""

    jax: ProcessPoolExecutor | None


@contextmanager
def rivals_at_hand() -> Iterator[Rivals]:
    if importlib.util.find_spec("jax") is None:
        yield Rivals(None)
        return
    with processes(initializer=_one_jax_thread) as pool:
        yield Rivals(pool)


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
    if not apart <= SAME:
        raise RuntimeError(
            f"{name} computes something else: over {len(ours)} bins its predictions differ from ours by {apart:.1e}, "
            f"at most {SAME:.0e} is expected"
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
        constants = RMSprop(RATE)
        self.optimizer = torch.optim.RMSprop(
            [*self.weights, self.C], lr=RATE, alpha=constants.beta2, eps=constants.epsilon
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
    jnp, constants = jax.numpy, RMSprop(RATE)
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
        weights = [theta - RATE * g / (jnp.sqrt(v) + epsilon) for theta, g, v in moved]
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


def rival_timers(case: Case, ours: Ours, rivals: Rivals, call_s: float) -> dict[str, Timer]:
    """Timers of the rivals that are there, each checked against our predictions."""
    same = ours.restart(SAME_BINS)
    # Long enough that what a call of the scan costs is nothing beside its bins; an estimate of its time is enough.
    n_bins = int(np.clip(5.0 * call_s / (1e-5 + 4e-9 * case.network.n_parameters), SAME_BINS, len(ours.X)))
    X, Y = ours.X[:n_bins], ours.Y[:n_bins]
    torch_rival = TorchRival(case.network, *case.weights, X, Y)
    require_same(TORCH, same, torch_rival.work(SAME_BINS))
    timers = {TORCH: timer_of(torch_rival.work, 5.0 * call_s)}
    if rivals.jax is not None:
        pool = rivals.jax
        predictions = pool.submit(jax_begin, case.network, *case.weights, X, Y).result()
        require_same(JAX, same, predictions[:SAME_BINS])
        timers[JAX] = lambda: pool.submit(jax_again).result() / n_bins
    return timers
