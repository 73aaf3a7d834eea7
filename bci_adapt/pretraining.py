"""Backpropagation through time over windows (torch): how every network is trained before it is asked to adapt, and how
the retrained networks that bound an adapter from above are trained.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bci_adapt.cells.base import Network
from bci_adapt.errors import InputError


@dataclass(frozen=True)
class Pretraining:
    """Settings of one training.

    Parameters
    ----------
    n_updates : gradient steps.
    window_bins, burn_in_bins : length of a window, and how many of its first bins carry no loss: the state starts at
        zero there although the recording did not.
    batch : windows per step.
    learning_rate : of Adam, decayed to zero along a half cosine.
    input_dropout : probability that an input of a bin is zeroed. On halves of one real day (train on the first ten
        minutes, score the rest) 0.3 was best among 0.1 … 0.5, for the tanh network and the GRU.
    gain_jitter, offset_jitter : standard deviation of a gain (around 1) and an offset (in standard deviations of the
        channel) drawn per window and channel: the network should not rely on statistics that drift.
    clip : largest gradient norm.
    """

    n_updates: int = 800
    window_bins: int = 80
    burn_in_bins: int = 10
    batch: int = 16
    learning_rate: float = 3e-3
    input_dropout: float = 0.3
    gain_jitter: float = 0.1
    offset_jitter: float = 0.1
    clip: float = 1.0


def pretrain(
    network: Network,
    X: Sequence[np.ndarray],
    Y: Sequence[np.ndarray],
    weight: Sequence[np.ndarray],
    observed: Sequence[np.ndarray],
    reset: Sequence[np.ndarray],
    seed: int,
    settings: Pretraining | None = None,
    initial: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Train on one or several sessions.

    Parameters
    ----------
    X, Y, weight : per session (n_bins, n_inputs), (n_bins, n_outputs), (n_bins, n_outputs) with 0 = no label.
    observed, reset : per session (n_bins,) booleans. Unobserved bins are left out (the online state is held there); no
        window crosses a reset.
    seed : decides initial weights, windows, dropout and jitter.
    initial : weights to start from (fine-tuning); fresh ones when None.

    Returns
    -------
    W (n_hidden, row_width) and C (n_outputs, readout_width), float64.
    """
    import torch

    settings = settings or Pretraining()
    generator = torch.Generator().manual_seed(seed)
    inputs, targets, weights, starts = _windows(X, Y, weight, observed, reset, settings)
    W0, C0 = initial if initial is not None else network.initial_weights(seed)
    W = torch.tensor(W0, dtype=torch.float32, requires_grad=True)
    C = torch.tensor(C0, dtype=torch.float32, requires_grad=True)
    optimizer = torch.optim.Adam([W, C], lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.n_updates)
    span = torch.arange(settings.window_bins)
    for _ in range(settings.n_updates):
        chosen = starts[torch.randint(len(starts), (settings.batch,), generator=generator)]
        index = chosen[None, :] + span[:, None]
        x, y, w = inputs[index], targets[index], weights[index].clone()
        w[: settings.burn_in_bins] = 0.0
        shape = (1, settings.batch, network.n_inputs)
        x = x * (1.0 + settings.gain_jitter * torch.randn(shape, generator=generator))
        x = x + settings.offset_jitter * torch.randn(shape, generator=generator)
        if settings.input_dropout > 0.0:
            kept = torch.rand(x.shape, generator=generator) >= settings.input_dropout
            x = x * kept / (1.0 - settings.input_dropout)
        prediction = unroll(network, W, C, x)
        loss = (w * (prediction - y) ** 2).sum() / w.sum().clamp(min=1.0)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([W, C], settings.clip)
        optimizer.step()
        schedule.step()
    return W.detach().double().numpy(), C.detach().double().numpy()


def unroll(network: Network, W, C, x):
    """Predictions (n_bins, batch, n_outputs) of the network over x (n_bins, batch, n_inputs), from a zero state.

    Tensors on the CPU, differentiable in W and C. The backward pass is written out (`_unrolled`): from a cell's own
    partials it needs a few products per bin, where a recorded graph would take dozens of operations each way.
    """
    n = network.n_hidden
    features: Any = _unrolled().apply(W, x, network)
    prediction = features @ C[:, :n].T + C[:, n]
    return prediction + x @ C[:, n + 1 :].T if network.cell.skip else prediction


@functools.cache
def _unrolled():
    """The autograd function behind `unroll` (made on first use: torch is imported late)."""
    import torch

    class Unrolled(torch.autograd.Function):
        """Features (n_bins, batch, n_hidden) from W and x; the gradient of W is BPTT, x gets none."""

        @staticmethod
        def forward(ctx, W, x, network):
            weights, inputs = W.detach().numpy(), x.detach().numpy()
            activations, states = _forward(network, weights, inputs)
            ctx.kept = network, weights, inputs, activations, states
            return torch.from_numpy(states[1:, network.cell.feature].copy())

        @staticmethod
        def backward(ctx, *gradients):
            network, weights, inputs, activations, states = ctx.kept
            gradient = _backward(network, weights, inputs, activations, states, gradients[0].numpy())
            return torch.from_numpy(gradient), None, None

    return Unrolled


def _reads(network: Network) -> list[tuple[int, int, int, int, int]]:
    """Per gate: first column in W, inputs it reads, whether it reads the constant, first column of h (or −1), gate."""
    table = []
    for number, (gate, (_, _, row, h_offset)) in enumerate(
        zip(network.cell.gates, network.blocks.tolist(), strict=True)
    ):
        n_x = network.n_inputs if "x" in gate.reads else 0
        table.append((row, n_x, int("1" in gate.reads), row + h_offset if h_offset >= 0 else -1, number))
    return table


def _recurrent(network: Network, W: np.ndarray) -> tuple[list[int], np.ndarray]:
    """Gates that read h, and their recurrent weights (n_gates_h, n, n): activation of unit i from h_j at [:, i, j]."""
    reads = [(h, gate) for _, _, _, h, gate in _reads(network) if h >= 0]
    n = network.n_hidden
    return [gate for _, gate in reads], np.array([W[:, h : h + n] for h, _ in reads], W.dtype).reshape(-1, n, n)


def _forward(network: Network, W: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Activations (T, n_gates, batch, n) and states (T + 1, n_slots, batch, n) over x (T, batch, m)."""
    cell, n, (T, batch, _) = network.cell, network.n_hidden, x.shape
    update, _ = cell.make(np)
    activations = np.zeros((T, len(cell.gates), batch, n), x.dtype)
    for row, n_x, one, _, gate in _reads(network):
        if n_x:
            activations[:, gate] = x @ W[:, row : row + n_x].T
        if one:
            activations[:, gate] += W[:, row + n_x]
    gates, weights = _recurrent(network, W)
    transposed = np.ascontiguousarray(weights.transpose(0, 2, 1))
    states = np.zeros((T + 1, len(cell.slots), batch, n), x.dtype)
    every = gates == list(range(len(cell.gates)))
    for t in range(T):
        if gates:
            driven = np.matmul(states[t, 0], transposed)
            if every:
                activations[t] += driven
            else:
                activations[t, gates] += driven
        for slot, new in enumerate(update(activations[t], states[t])):
            states[t + 1, slot] = new
    return activations, states


def _backward(network: Network, W, x, activations, states, gradient: np.ndarray) -> np.ndarray:
    """∂E/∂W (n, row_width) from ∂E/∂features (T, batch, n): q ← qᵀD, p = qᵀ∂a, then one product per gate."""
    cell, n, (T, batch, _) = network.cell, network.n_hidden, x.shape
    _, partials = cell.make(np)
    by_axis = activations.transpose(1, 0, 2, 3), states[:-1].transpose(1, 0, 2, 3), states[1:].transpose(1, 0, 2, 3)
    by_gate, by_slot = partials(*by_axis)
    shape = (T, batch, n)
    da = np.array([[np.broadcast_to(v, shape) for v in row] for row in by_gate]).transpose(2, 0, 1, 3, 4)
    ds = np.array([[np.broadcast_to(v, shape) for v in row] for row in by_slot]).transpose(2, 0, 1, 3, 4)
    gates, weights = _recurrent(network, W)
    p = np.empty_like(activations)
    q = np.zeros(states.shape[1:], x.dtype)
    for t in reversed(range(T)):
        q[cell.feature] += gradient[t]
        if len(q) == 1:
            np.multiply(q, da[t, 0], out=p[t])
            q = q * ds[t, 0]
        else:
            np.einsum("kbn,kgbn->gbn", q, da[t], out=p[t])
            q = np.einsum("kbn,kjbn->jbn", q, ds[t])
        if gates:
            q[0] += np.matmul(p[t, gates], weights).sum(axis=0)
    out = np.zeros_like(W)
    flat_x, flat_h = x.reshape(T * batch, -1), states[:-1, 0].reshape(T * batch, n)
    for row, n_x, one, h, gate in _reads(network):
        signal = np.ascontiguousarray(p[:, gate]).reshape(T * batch, n).T
        out[:, row : row + n_x] = signal @ flat_x[:, :n_x]
        if one:
            out[:, row + n_x] = signal.sum(axis=1)
        if h >= 0:
            out[:, h : h + n] = signal @ flat_h
    return out


def _windows(X, Y, weight, observed, reset, settings: Pretraining):
    """Join the observed bins of all sessions; returns float32 tensors and the bins at which a window may start."""
    import torch

    inputs, targets, weights, starts, offset = [], [], [], [], 0
    for x, y, w, seen, begins in zip(X, Y, weight, observed, reset, strict=True):
        seen = np.asarray(seen, bool)
        stretch = np.cumsum(np.asarray(begins, bool))[seen]
        x, w = np.asarray(x, float)[seen], np.asarray(w, float)[seen]
        y = np.where(w > 0, np.asarray(y, float)[seen], 0.0)
        last = np.arange(len(x) - settings.window_bins + 1)
        whole = last[stretch[last] == stretch[last + settings.window_bins - 1]] if len(last) else last
        labelled = np.concatenate([[0], np.cumsum((w > 0).any(axis=1))])
        first, end = whole + settings.burn_in_bins, whole + settings.window_bins
        starts.append(offset + whole[labelled[end] > labelled[np.minimum(first, end)]])
        inputs.append(x)
        targets.append(y)
        weights.append(w)
        offset += len(x)
    allowed = np.concatenate(starts) if starts else np.array([], int)
    if not len(allowed):
        raise InputError(
            f"pretraining: expected at least one stretch of {settings.window_bins} observed bins with labels, got none"
        )
    joined = [torch.tensor(np.concatenate(parts), dtype=torch.float32) for parts in (inputs, targets, weights)]
    return *joined, torch.tensor(allowed)
