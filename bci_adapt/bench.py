"""Benchmarks: every figure beside its floor and a rival, measured in the same run on one core."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from bci_adapt.cells.base import Network, cell
from bci_adapt.credit.base import rule
from bci_adapt.online import Learner, run, start
from bci_adapt.optimizers import RMSprop


def learning(quick: bool = False) -> list[dict[str, Any]]:
    """Bins per second of immediate + RMSprop in float64 with a label at every bin, 10 bins late.

    The floor is one RMSprop update of every parameter (a square root, a division, a read and a write) as a compiled
    loop over arrays of the same size and nothing else; the rival is the same network, rule and optimiser written with
    torch autograd (hidden state detached) and torch.optim.
    """
    from threadpoolctl import threadpool_limits

    cases = [("tanh", 16, 8)] if quick else [("tanh", 64, 96), ("gru", 64, 96), ("tanh", 256, 96), ("gru", 256, 96)]
    with threadpool_limits(1):
        return [_case(name, n, m, quick) for name, n, m in cases]


def _case(name: str, n: int, m: int, quick: bool) -> dict[str, Any]:
    network = Network(cell(name), m, n, 2)
    W, C = network.initial_weights(0)
    rng = np.random.default_rng(0)
    n_bins = 300 if quick else max(2000, int(4e8 / network.n_parameters / 60))
    X, Y = rng.standard_normal((n_bins, m)), rng.standard_normal((n_bins, 2))
    state = start(Learner(network, rule("immediate"), RMSprop(1e-4)), W, C)
    arrives = np.arange(n_bins) + 10
    run(state, X[:20], Y[:20])  # compile
    steps = n_bins / _best(lambda: run(state, X, Y, arrives=arrives), 2 if quick else 5)
    floor = _floor(network.n_parameters, 200 if quick else max(200, int(1e7 / network.n_parameters)))
    rival = _torch(network, W, C, X, Y, 100 if quick else 500)
    return {
        "bench": "learning", "cell": name, "rule": "immediate", "optimizer": "rmsprop", "n": n, "m": m,
        "dtype": "float64", "backend": "compiled", "steps_per_s": steps, "floor_steps_per_s": floor,
        "ratio": steps / floor, "rivals": {"torch autograd + torch.optim": rival},
        "peak_bytes": sum(array.nbytes for array in state.arrays.values()),
    }  # fmt: skip


def _best(call: Callable[[], Any], repeats: int) -> float:
    """Shortest wall time in seconds: whatever else the machine does can only add."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return min(times)


def _floor(n_parameters: int, repeats: int) -> float:
    import numba

    update = numba.njit(error_model="numpy", fastmath={"reassoc", "contract", "nsz"})(RMSprop().make())

    @numba.njit
    def loop(theta, g, slots, rate, hyper):
        for t in range(repeats):
            update(theta, g, slots, rate, hyper, t + 1)

    rng = np.random.default_rng(0)
    theta, g, rate = rng.standard_normal(n_parameters), rng.standard_normal(n_parameters), np.full(n_parameters, 1e-9)
    arguments = theta, g, np.ones((1, n_parameters)), rate, RMSprop().hyper()
    loop(*arguments)
    return repeats / _best(lambda: loop(*arguments), 5)


def _torch(network: Network, W, C, X, Y, n_bins: int) -> float:
    import torch

    update, _ = network.cell.make(torch)
    weights = [torch.tensor(W, requires_grad=True), torch.tensor(C, requires_grad=True)]
    optimizer = torch.optim.RMSprop(weights, lr=1e-4, alpha=0.99)
    x, y, one = torch.tensor(X), torch.tensor(Y), torch.ones(1, dtype=torch.float64)
    blocks = network.blocks.tolist()

    def loop() -> None:
        state = torch.zeros(len(network.cell.slots), network.n_hidden, dtype=torch.float64)
        for t in range(min(n_bins, len(x))):
            z = torch.cat([x[t], one, state[0]])
            a = [weights[0][:, row : row + width] @ z[begin : begin + width] for begin, width, row, *_ in blocks]
            new = torch.stack(update(a, state))
            prediction = weights[1] @ torch.cat([new[network.cell.features[0]], one])
            optimizer.zero_grad()
            (0.5 * ((prediction - y[t]) ** 2).sum()).backward()
            optimizer.step()
            state = new.detach()

    return min(n_bins, len(X)) / _best(loop, 2)
