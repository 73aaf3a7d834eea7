"""What the torch counterparts of credit rules share: errors, feedback, and traces of every kind.

A rule brings its own counterpart (`CreditRule.torch_counterpart`): a child of `Credit`, which lies beside the rule's
kernel. One with a memory is ``E ← A E + ∂f/∂θ`` with the gradient ``qᵀ E``: A = λ (trace), ∂f/∂s (eprop, rflo), all of
ds'/ds (snap1, rtrl) or some of its entries (sparse_rtrl). Of a shipped cell trace, snap1, eprop and rflo keep the
entries of each weight's own unit (credit.base, *Own path*). Notation: S replicas, k slots, n units, R rows of W of
width w, M outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bci_adapt.learning.backends.loop import PROCESSED
from bci_adapt.learning.backends.torch_network import Gated, Opaque, Record, derivatives, every_state
from bci_adapt.learning.cells.base import Network


class Net(NamedTuple):
    """Weights W (S, R, w) and C (S, M, readout_width), and B (S, M, features · n), which feeds errors back."""

    W: Tensor
    C: Tensor
    B: Tensor


class Credit:
    """One rule on one network: from a labelled record the readout's features u (S, readout_width), the error e (S, M)
    and the gradient g (S, R, w). This base gives no recurrent credit (`readout`).
    """

    def __init__(
        self,
        rule: Any,
        network: Network,
        loss: str,
        dynamics: Gated | Opaque,
        arrays: Mapping[str, np.ndarray],
        device: torch.device,
    ):
        self.rule, self.network, self.loss, self.dynamics = rule, network, loss, dynamics
        self.k, self.n, self.device = len(network.cell.slots), network.n_hidden, device
        self.generator = [int(value) for value in arrays["generator"][:, 0]]
        self.unpack(torch.tensor(arrays["memory"], device=device), int(arrays["counters"][0, PROCESSED]))

    @classmethod
    def memory_shape(cls, network: Network) -> tuple[int, ...]:
        """Shape of the memory of a network without kernels (a torch module)."""
        return (0,)

    def unpack(self, memory: Tensor, processed: int) -> None:
        """Take the memory (S, …) as the kernels pack it after `processed` records."""
        self.memory = memory

    def packed(self, processed: int) -> Tensor:
        """The memory as the kernels pack it."""
        return self.memory

    def clear(self) -> None:
        """Forget: a new stretch begins."""
        self.memory = torch.zeros_like(self.memory)

    def error(self, prediction: Tensor, label: Tensor, weight: Tensor) -> Tensor:
        """∂E/∂ŷ of 1/2 Σ w (ŷ − y)², or of −Σ w y log softmax(ŷ) with Σ y = 1; zero where there is no label."""
        guess = torch.softmax(prediction, -1) if self.loss == "cross_entropy" else prediction
        return torch.where(weight > 0.0, weight * (guess - label), 0.0)

    def readout(self, C: Tensor, state: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The readout's features u and its output."""
        one = torch.ones_like(x[:, :1])
        cell = self.network.cell
        u = torch.cat([*(state[:, slot] for slot in cell.features), one, *([x] if cell.skip else [])], -1)
        return u, (C @ u[..., None])[..., 0]

    def feed_back(self, B: Tensor, e: Tensor) -> Tensor:
        """q (S, k, n): errors on the features' slots."""
        n, q = self.n, e.new_zeros(len(e), self.k, self.n)
        for position, slot in enumerate(self.network.cell.features):
            q[:, slot] += (e[:, None] @ B[:, :, position * n : (position + 1) * n])[:, 0]
        return q

    def record(self, ring: Mapping[str, Tensor], slot: int) -> Record:
        """What the bin at `slot` of the ring left behind."""
        z, first = ring["z"][:, slot], self.network.n_mid
        x = z[:, first : first + self.network.n_inputs]
        return Record(x, z[:, :first], ring["a"][:, slot], ring["before"][:, slot])

    def learn(
        self, net: Net, ring: Mapping[str, Tensor], first: int, last: int, learns: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """u, e and – where the recurrent weights learn – g of record `last`; none before `first` is of its stretch."""
        slot = last % ring["z"].shape[1]
        record, u, prediction = self.record(ring, slot), ring["features"][:, slot], ring["prediction"][:, slot]
        if self.rule.refreshes:
            s = record.before
            state, a, v = self.dynamics.step(net.W, record.x, s[:, 0], s)
            record, (u, prediction) = Record(record.x, v, a, s), self.readout(net.C, state, record.x)
        e = self.error(prediction, ring["label"][:, slot], ring["weight"][:, slot])
        g = self.gradient(net.W, record, self.feed_back(net.B, e)) if learns else None
        return u, e, g

    def gradient(self, W: Tensor, record: Record, q: Tensor) -> Tensor:
        """Advance the memory by one record; the gradient for q = ∂E/∂s' (S, k, n)."""
        return torch.zeros_like(W)


class Traces(Credit):
    """E ← A E + ∂f/∂θ over all states and weights at once, E (S, k n, R w), and the gradient qᵀ E."""

    # Whether A holds what comes back through recurrent weights, or only what a unit remembers by itself.
    through_weights: ClassVar[bool] = True

    @classmethod
    def memory_shape(cls, network: Network) -> tuple[int, ...]:
        return (len(network.cell.slots) * network.n_hidden, network.row_width)

    def gradient(self, W, record, q):
        k, n, S = self.k, self.n, len(W)
        P, by_h, A = derivatives(self.dynamics.at(W, record), W, record.before, every_state(k, n, self.device))
        if self.through_weights:
            A = with_heard(A, by_h)
        A, P = A.transpose(0, 1).reshape(S, k * n, k * n), P.transpose(0, 1).reshape(S, k * n, -1)
        return self.advance(A, P, q.reshape(S, -1)).reshape(W.shape)

    def advance(self, A: Tensor, P: Tensor, q: Tensor) -> Tensor:
        """Move E (…, states, weights) one record on; returns qᵀ E (…, 1, weights)."""
        self.memory = self.carried(A) + P
        return q[..., None, :] @ self.memory

    def carried(self, A: Tensor) -> Tensor:
        """What is left of E one record later."""
        return A @ self.memory


class OwnTraces(Traces):
    """The same for a shipped cell, of each weight's own unit only, E (S, n, k, w)."""

    def gradient(self, W, record, q):
        k, n, before = self.k, self.n, record.before
        # Where a unit hears only itself, one signal to all units gives the derivatives of each.
        signals = torch.eye(k, dtype=torch.float64, device=self.device)[..., None].expand(k, k, n)
        P, by_h, A = derivatives(self.dynamics.at(W, record, own=True), W, before, signals)
        if self.through_weights:
            A = with_heard(A, by_h)
            if record.v.shape[1]:  # a state comes back to its unit through the v of others
                f = self.dynamics.at(W, record)
                _, by_h, D = derivatives(f, W, before, every_state(k, n, self.device))
                A = with_heard(D, by_h).unflatten(0, (k, n)).diagonal(dim1=1, dim2=4)
        return self.advance(A.permute(1, 3, 0, 2), P.permute(1, 2, 0, 3), q.transpose(1, 2)).reshape(W.shape)


def own_traces(network: Network) -> type[Traces]:
    """Traces of each weight's own unit where the cell's weights act on one; of all units for a torch module."""
    return Traces if network.needs_torch else OwnTraces


def with_heard(by_s: Tensor, by_h: Tensor) -> Tensor:
    """ds'/ds (B, S, k, n) from what it is at fixed h and from ∂s'/∂h (B, S, n): h is slot 0."""
    return torch.cat([by_s[:, :, :1] + by_h[:, :, None], by_s[:, :, 1:]], 2)


def scrambled(x: int) -> int:
    """One step of xorshift64 (Marsaglia 2003)."""
    x ^= (x << 13) & 0xFFFF_FFFF_FFFF_FFFF
    x ^= x >> 7
    return x ^ (x << 17) & 0xFFFF_FFFF_FFFF_FFFF
