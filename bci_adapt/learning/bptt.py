"""Backpropagation through time over windows (torch): how a network is trained on whole sessions – before it is asked to
adapt, when a day is added, when it is fine-tuned, and when it bounds an adapter from above.

A *stretch* is what the online state runs through without being cleared: the observed bins of one segment. A window is
`window_bins` of a stretch; its state starts at zero although the stretch's does not, so its first bins carry no loss.
A stretch that is shorter is one window by itself: it begins where the online state is zero as well, so every label of
it counts. What pads it carries no loss.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from bci_adapt.errors import InputError
from bci_adapt.ground.threads import one_thread
from bci_adapt.learning.cells.base import Network


@dataclass(frozen=True)
class Pretraining:
    """Settings of one training.

    Parameters
    ----------
    n_updates : gradient steps.
    window_bins, burn_in_bins : length of a window, and how many of its first bins carry no loss; a stretch shorter
        than a window is taken whole and without burn-in.
    batch : windows per step.
    learning_rate : of Adam, decayed to zero along a half cosine.
    input_dropout : probability that an input of a bin is zeroed. On halves of one real day (train on the first ten
        minutes, score the rest) 0.3 was best among 0.1 … 0.5, for the tanh network and the GRU.
    gain_jitter, offset_jitter : standard deviation of a gain (around 1) and an offset (in standard deviations of the
        channel) drawn per window and channel: the network should not rely on statistics that drift.
    clip : largest gradient norm.
    recency : how often a window is drawn, in proportion to one of the session after it: 1 draws from all alike.
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
    recency: float = 1.0

    def __post_init__(self):
        if self.n_updates < 0 or self.batch < 1 or self.window_bins <= self.burn_in_bins:
            raise InputError(
                f"pretraining: expected n_updates ≥ 0, batch ≥ 1 and window_bins > {self.burn_in_bins}, of which the "
                f"first carry no loss; got {self.n_updates}, {self.batch}, {self.window_bins}"
            )
        if not (0.0 <= self.input_dropout < 1.0 and 0.0 < self.recency <= 1.0):
            raise InputError(
                "pretraining: expected input_dropout in [0, 1) and recency in (0, 1], got "
                f"{self.input_dropout}, {self.recency}"
            )


class Windows(NamedTuple):
    """What may be drawn, arrays with an entry per window: its first bin, counted over the observed bins of all sessions
    joined; its bins; how many of them carry no loss at its start; how many sessions came after its own; how often it is
    drawn against the others of its session, None where all are drawn alike. `left_out`: stretches that are in no
    window, and their bins.
    """

    start: np.ndarray
    length: np.ndarray
    burn_in: np.ndarray
    age: np.ndarray
    draws: np.ndarray | None
    left_out: tuple[int, int]


def windows(
    weight: Sequence[np.ndarray], observed: Sequence[np.ndarray], reset: Sequence[np.ndarray], settings: Pretraining
) -> Windows:
    """The windows of one or several sessions that hold a label; the arguments are those of `pretrain`.

    Windows are drawn alike while every stretch is as long as one. Where some are shorter, each stretch is drawn in
    proportion to its labelled bins, so that one long stretch does not outweigh many trials beside it.
    """
    parts, left_out, offset, whole = [], np.zeros(2, int), 0, settings.window_bins
    for after, (w, seen, begins) in enumerate(zip(weight, observed, reset, strict=True), 1 - len(observed)):
        seen = np.asarray(seen, bool)
        segment = np.cumsum(np.asarray(begins, bool))[seen]
        _, first, stretch, n_bins = np.unique(segment, return_index=True, return_inverse=True, return_counts=True)
        until = np.concatenate([[0], np.cumsum((np.asarray(w, float)[seen] > 0).any(axis=1))])
        labelled = until[first + n_bins] - until[first]
        inside = np.arange(max(len(segment) - whole + 1, 0))
        inside = inside[segment[inside] == segment[inside + whole - 1]]
        inside = inside[until[inside + whole] > until[inside + settings.burn_in_bins]]
        short = np.flatnonzero((n_bins < whole) & (labelled > 0))
        own = np.concatenate([stretch[inside], short])
        n_windows = np.bincount(own, minlength=len(n_bins))
        start, length = offset + np.concatenate([inside, first[short]]), np.minimum(n_bins[own], whole)
        parts.append((start, length, np.full(len(own), -after), labelled[own] / n_windows[own]))
        left_out += np.sum(n_windows == 0), n_bins[n_windows == 0].sum()
        offset += len(segment)
    start, length, age, draws = (np.concatenate(each) for each in zip(*parts, strict=True))
    short = length < whole
    return Windows(
        start, length, np.where(short, 0, settings.burn_in_bins), age, draws if short.any() else None,
        (int(left_out[0]), int(left_out[1])),
    )  # fmt: skip


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
    W (n_hidden, row_width) and C (n_outputs, readout_width), float64. Raises `InputError` where no window holds a
    label; `windows` says what else is left out.
    """
    import torch

    settings = settings or Pretraining()
    generator = torch.Generator().manual_seed(seed)
    able = windows(weight, observed, reset, settings)
    if not len(able.start):
        raise InputError(
            f"pretraining: expected a stretch of observed bins with labels (behind its first {settings.burn_in_bins} "
            f"bins if it has {settings.window_bins} or more), got {able.left_out[0]} stretches without"
        )
    data = _joined(X, Y, weight, observed)
    draw = _drawing(able, settings, generator)
    W0, C0 = initial if initial is not None else network.initial_weights(seed)
    W = torch.tensor(W0, dtype=torch.float32, requires_grad=True)
    C = torch.tensor(C0, dtype=torch.float32, requires_grad=True)
    optimizer = torch.optim.Adam([W, C], lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.n_updates)
    with one_thread():
        for _ in range(settings.n_updates):
            x, y, w = batch(data, able, draw())
            prediction = unroll(network, W, C, _disturbed(x, settings, generator))
            loss = (w * (prediction - y) ** 2).sum() / w.sum().clamp(min=1.0)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([W, C], settings.clip)
            optimizer.step()
            schedule.step()
    return W.detach().double().numpy(), C.detach().double().numpy()


def batch(data: Sequence[Any], able: Windows, drawn: Any) -> list[Any]:
    """X, Y and weight (n_bins, n_drawn, …) of the drawn windows, as long as the longest of `able`; `data` are the same
    over all observed bins. A window that is shorter repeats its last bin; copies and burn-in weigh nothing.
    """
    import torch

    start, length, burn_in = (torch.as_tensor(each)[drawn] for each in able[:3])
    span = torch.arange(int(able.length.max()))[:, None]
    x, y, w = (part[start + torch.minimum(span, length - 1)] for part in data)
    return [x, y, w * ((span >= burn_in) & (span < length))[:, :, None]]


def _joined(X, Y, weight, observed) -> list[Any]:
    """X, Y and weight of the observed bins of all sessions, float32; Y is 0 where there is no label. The days are
    written one after another into one tensor, so that a sequence that makes them as they are asked for stays cheap.
    """
    import torch

    kept = [np.asarray(seen, bool) for seen in observed]
    ends = np.cumsum([0, *(int(seen.sum()) for seen in kept)]).tolist()
    made: list[Any] = []
    for parts in (X, Y, weight):
        joined: Any = None
        for part, seen, begin, end in zip(parts, kept, ends, ends[1:], strict=False):
            rows = np.asarray(part, float)[seen]
            joined = torch.empty((ends[-1], rows.shape[1]), dtype=torch.float32) if joined is None else joined
            joined[begin:end] = torch.from_numpy(rows)
        made.append(joined)
    x, y, w = made
    y[w <= 0] = 0.0
    return [x, y, w]


def _drawing(able: Windows, settings: Pretraining, generator: Any) -> Callable[[], Any]:
    """A function that draws the windows of the next batch (batch,)."""
    import torch

    if settings.recency == 1.0 and able.draws is None:
        return lambda: torch.randint(len(able.start), (settings.batch,), generator=generator)
    often = settings.recency ** torch.tensor(able.age).double()
    share = torch.cumsum(often if able.draws is None else often * torch.tensor(able.draws), dim=0)

    def draw():
        at = torch.rand(settings.batch, generator=generator, dtype=torch.float64)
        return torch.searchsorted(share, at * share[-1], right=True)

    return draw


def _disturbed(x: Any, settings: Pretraining, generator: Any) -> Any:
    """Inputs of a batch with a gain and an offset per window and channel, and with some left out."""
    import torch

    shape = (1, *x.shape[1:])
    x = x * (1.0 + settings.gain_jitter * torch.randn(shape, generator=generator))
    x = x + settings.offset_jitter * torch.randn(shape, generator=generator)
    if settings.input_dropout > 0.0:
        kept = torch.rand(x.shape, generator=generator) >= settings.input_dropout
        x = x * kept / (1.0 - settings.input_dropout)
    return x


def unroll(network: Network, W, C, x):
    """Predictions (n_bins, batch, n_outputs) of the network over x (n_bins, batch, n_inputs), from a zero state.

    Tensors on the CPU, differentiable in W and C. The backward pass is written out (`_unrolled`): from a cell's own
    partials it needs a few products per bin, where a recorded graph would take dozens of operations each way.
    """
    wide = len(network.cell.features) * network.n_hidden
    features: Any = _unrolled().apply(W, x, network)
    prediction = features @ C[:, :wide].T + C[:, wide]
    return prediction + x @ C[:, wide + 1 :].T if network.cell.skip else prediction


@functools.cache
def _unrolled():
    """The autograd function behind `unroll` (made on first use: torch is imported late)."""
    import torch

    class Unrolled(torch.autograd.Function):
        """Features (n_bins, batch, n_features · n_hidden) from W and x; the gradient of W is BPTT, x gets none."""

        @staticmethod
        def forward(ctx, W, x, network):
            weights, inputs = W.detach().numpy(), x.detach().numpy()
            ctx.kept = network, weights, inputs, *trajectory(network, weights, inputs)
            seen = [ctx.kept[4][1:, slot] for slot in network.cell.features]
            return torch.from_numpy(np.concatenate(seen, axis=-1))

        @staticmethod
        def backward(ctx, *gradients):
            network, weights, inputs, activations, states, v = ctx.kept
            gradient = _backward(network, weights, inputs, activations, states, v, gradients[0].numpy())
            return torch.from_numpy(gradient), None, None

    return Unrolled


def _reads(network: Network) -> list[dict[str, slice]]:
    """Per gate: the columns of W for each part of z that it reads."""
    parts: dict[str, dict[str, slice]] = {gate.name: {} for gate in network.cell.gates}
    for gate, part, where in network.columns():
        parts[gate.name][part] = where
    return list(parts.values())


def _stacked(network: Network, W: np.ndarray, part: str) -> tuple[list[int], np.ndarray]:
    """Gates that read h (or v), and their weights (n_gates_h, n, n): activation of unit i from h_j at [:, i, j]."""
    reads = [(gate, where[part]) for gate, where in enumerate(_reads(network)) if part in where]
    n = network.n_hidden
    return [gate for gate, _ in reads], np.array([W[:, where] for _, where in reads], W.dtype).reshape(-1, n, n)


def trajectory(network: Network, W: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Activations (T, n_gates, batch, n), states (T + 1, n_slots, batch, n) and v (T, batch, n; no bins without a
    second stage) over x (T, batch, m).
    """
    cell, n, (T, batch, _) = network.cell, network.n_hidden, x.shape
    update, _ = cell.make(np)
    activations = np.zeros((T, len(cell.gates), batch, n), x.dtype)
    for gate, reads in enumerate(_reads(network)):
        if "x" in reads:
            activations[:, gate] = x @ W[:, reads["x"]].T
        if "1" in reads:
            activations[:, gate] += W[:, reads["1"]][:, 0]
    gates, weights = _stacked(network, W, "h")
    transposed = np.ascontiguousarray(weights.transpose(0, 2, 1))
    later, weights_v = _stacked(network, W, "v")
    v = np.zeros((T if later else 0, batch, n), x.dtype)
    mid = cell.make_mid(np)[0] if cell.make_mid is not None else None
    states = np.zeros((T + 1, len(cell.slots), batch, n), x.dtype)
    every = gates == list(range(len(cell.gates)))
    for t in range(T):
        if gates:
            driven = np.matmul(states[t, 0], transposed)
            if every:
                activations[t] += driven
            else:
                activations[t, gates] += driven
        if mid is not None:
            v[t] = mid(activations[t], states[t])
            activations[t, later] += np.matmul(v[t], weights_v.transpose(0, 2, 1))
        for slot, new in enumerate(update(activations[t], states[t])):
            states[t + 1, slot] = new
    return activations, states, v


def _backward(network: Network, W, x, activations, states, v, gradient: np.ndarray) -> np.ndarray:
    """∂E/∂W (n, row_width) from ∂E/∂features (T, batch, n_features · n): q ← qᵀD, p = qᵀ∂a, one product per gate."""
    cell, n, (T, batch, _) = network.cell, network.n_hidden, x.shape
    shape = (T, batch, n)

    def spread(rows: Any) -> np.ndarray:
        """Partials of every bin, with the bins first."""
        table = np.array([[np.broadcast_to(value, shape) for value in row] for row in rows])
        return table.transpose(2, 0, 1, 3, 4)

    by_axis = activations.transpose(1, 0, 2, 3), states[:-1].transpose(1, 0, 2, 3), states[1:].transpose(1, 0, 2, 3)
    da, ds = (spread(rows) for rows in cell.make(np)[1](*by_axis))
    mid_rows = cell.make_mid(np)[1](*by_axis[:2]) if cell.make_mid is not None else ((), ())
    va, vs = (spread([row])[:, 0] if row else None for row in mid_rows)
    p = np.empty_like(activations)
    q = np.zeros(states.shape[1:], x.dtype)
    gates, weights = _stacked(network, W, "h")
    later, weights_v = _stacked(network, W, "v")
    for t in reversed(range(T)):
        for position, slot in enumerate(cell.features):
            q[slot] += gradient[t, :, position * n : (position + 1) * n]
        if len(q) == 1:
            np.multiply(q, da[t, 0], out=p[t])
            q = q * ds[t, 0]
        else:
            np.einsum("kbn,kgbn->gbn", q, da[t], out=p[t])
            q = np.einsum("kbn,kjbn->jbn", q, ds[t])
        if va is not None and vs is not None:
            r = np.matmul(p[t, later], weights_v).sum(axis=0)
            p[t] += r * va[t]
            q += r * vs[t]
        if gates:
            q[0] += np.matmul(p[t, gates], weights).sum(axis=0)
    out = np.zeros_like(W)
    flat = {"x": x.reshape(T * batch, -1), "h": states[:-1, 0].reshape(T * batch, n), "v": v.reshape(-1, n)}
    for gate, reads in enumerate(_reads(network)):
        signal = np.ascontiguousarray(p[:, gate]).reshape(T * batch, n).T
        for part, where in reads.items():
            out[:, where] = signal.sum(axis=1, keepdims=True) if part == "1" else signal @ flat[part]
    return out
