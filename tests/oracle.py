"""Independent oracles: the network unrolled in torch, its gradients by autograd."""

import numpy as np
import torch

from bci_adapt.learning.cells.base import Network


def forward(network: Network, W, C, X, start, reset_at=()):
    """Unroll; X (T, m) and start (k, n) tensors. Yields (state, prediction) for every bin."""
    update, _ = network.cell.make(torch)
    state = start
    for t, x in enumerate(X):
        if t in reset_at:
            state = torch.zeros_like(state)
        yield_from_state = step(network, update, W, x, state)
        state = yield_from_state
        yield state, output(network, C, x, state)


def step(network, update, W, x, state, heard=None):
    """One bin. `heard` is the h that the gates read, where it is to be told from the unit's own state."""
    parts = {"x": x, "1": torch.ones(1, dtype=x.dtype), "h": state[0] if heard is None else heard}
    activations, at, none = [], 0, torch.zeros(network.n_hidden, dtype=x.dtype)
    for gate in network.cell.gates:
        if gate.reads.startswith("v") and "v" not in parts:
            mid, _ = network.cell.make_mid(torch)
            padded = activations + [none] * (len(network.cell.gates) - len(activations))
            parts["v"] = mid(torch.stack(padded), state)
        total = none
        for part in gate.reads:
            total = total + W[:, at : at + len(parts[part])] @ parts[part]
            at += len(parts[part])
        activations.append(total)
    return torch.stack(update(torch.stack(activations), state))


def output(network, C, x, state):
    seen = [state[slot] for slot in network.cell.features]
    return C @ torch.cat([*seen, torch.ones(1, dtype=x.dtype), *([x] if network.cell.skip else [])])


def loss_of(prediction, y, w, loss):
    if loss == "squared":
        return 0.5 * (w * (prediction - y) ** 2).sum()
    return -(w * y * torch.log_softmax(prediction, 0)).sum()


def gradients(network, W, C, X, Y, weight, start, loss="squared", truncate=None, reset_at=()):
    """Sum over bins of ∂E_t/∂(W, C), each truncated to `truncate` bins of history (None: full BPTT)."""
    X, Y, weight, start = (torch.tensor(np.asarray(v, float)) for v in (X, Y, weight, start))
    W, C = (torch.tensor(v, requires_grad=True) for v in (W, C))
    if truncate is None:
        total = sum(
            loss_of(p, y, w, loss)
            for (_, p), y, w in zip(forward(network, W, C, X, start, reset_at), Y, weight, strict=True)
        )
        return [g.numpy() for g in torch.autograd.grad(total, (W, C))]
    with torch.no_grad():
        states = [start, *(s for s, _ in forward(network, W, C, X, start))]
    sums = [torch.zeros_like(W), torch.zeros_like(C)]
    for t in range(len(X)):
        begin = max(0, t - truncate + 1)
        *_, (_, p) = forward(network, W, C, X[begin : t + 1], states[begin])
        for total, g in zip(sums, torch.autograd.grad(loss_of(p, Y[t], weight[t], loss), (W, C)), strict=True):
            total += g
    return [g.numpy() for g in sums]
