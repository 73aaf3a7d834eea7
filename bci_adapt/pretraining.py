"""Backpropagation through time over windows (torch): how every network is trained before it is asked to adapt, and how
the retrained networks that bound an adapter from above are trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    input_dropout : probability that an input of a bin is zeroed.
    gain_jitter, offset_jitter : standard deviation of a gain (around 1) and an offset (in standard deviations of the
        channel) drawn per window and channel: the network should not rely on statistics that drift.
    clip : largest gradient norm.
    """

    n_updates: int = 800
    window_bins: int = 80
    burn_in_bins: int = 10
    batch: int = 16
    learning_rate: float = 3e-3
    input_dropout: float = 0.1
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

    What the gates read of the input is one product for the whole window; only what they read of h is done bin by bin.
    """
    import torch

    cell, n, m = network.cell, network.n_hidden, network.n_inputs
    update, _ = cell.make(torch)
    from_input, from_hidden, with_hidden = [], [], []
    for gate, (_, width, row, h_offset) in zip(cell.gates, network.blocks.tolist(), strict=True):
        weights = W[:, row : row + width]
        n_x = m if "x" in gate.reads else 0
        drive = weights[:, n_x] if "1" in gate.reads else torch.zeros(n, dtype=W.dtype)
        if n_x:
            drive = drive + x @ weights[:, :n_x].T
        else:
            drive = drive.expand(len(x), x.shape[1], n)
        from_input.append(drive.unbind(0))
        with_hidden.append(h_offset >= 0)
        if h_offset >= 0:
            from_hidden.append(weights[:, h_offset : h_offset + n])
    recurrent = torch.cat(from_hidden).T if from_hidden else None
    zero = torch.zeros(x.shape[1], n, dtype=W.dtype)
    state = [zero] * len(cell.slots)
    outputs = []
    for t in range(len(x)):
        parts = iter((state[0] @ recurrent).split(n, dim=1)) if recurrent is not None else iter(())
        a = [
            drive[t] + next(parts) if has_h else drive[t] for drive, has_h in zip(from_input, with_hidden, strict=True)
        ]
        state = list(update(a, state))
        outputs.append(state[cell.feature])
    features = torch.stack(outputs)
    prediction = features @ C[:, :n].T + C[:, n]
    return prediction + x @ C[:, n + 1 :].T if cell.skip else prediction


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
