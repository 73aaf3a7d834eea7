"""UORO: an unbiased rank-one estimate of RTRL's influence matrix."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from bci_adapt.learning.credit.base import CreditRule, Tools, partial_shapes


@dataclass(frozen=True)
class UORO(CreditRule):
    """J is estimated by s̃ ⊗ θ̃, with a random sign ν_j = ±1 per state component and record (Tallec & Ollivier 2018):

        s̃ ← ρ₀ D s̃ + ρ₁ ν,   θ̃ ← θ̃ / ρ₀ + νᵀP / ρ₁,   ρ₀ = √(‖θ̃‖ / ‖D s̃‖),   ρ₁ = √(‖νᵀP‖ / ‖ν‖)

    E[s̃ ⊗ θ̃] = J at fixed weights; the gradient (q · s̃) θ̃ is unbiased and noisy. O(parameters) per record.
    """

    name: ClassVar[str] = "uoro"
    description: ClassVar[str] = "J ≈ s̃ ⊗ θ̃ with random signs, unbiased, rank one (Tallec & Ollivier 2018)"
    advances: ClassVar[bool] = True

    def memory_shape(self, network):
        """Unit i: its components of s̃ (n_slots), then its row of θ̃ (row_width)."""
        return (network.n_hidden, len(network.cell.slots) + network.row_width)

    def work_shapes(self, network):
        k, gates, n = len(network.cell.slots), len(network.cell.gates), network.n_hidden
        shapes = partial_shapes(network)
        # …, p and r of qᵀP, ν, D s̃, νᵀP per gate and unit, activations' motion, and (ρ₀, ρ₁, q · s̃)
        return (*shapes, (gates, n), (n,), (k, n), (k, n), (gates, n), (gates, n), (3,))

    def make_draw(self, tools: Tools) -> Callable:
        """Return ``draw(generator) -> ±1.0``: the highest bit of the next random number."""
        scramble = tools.scramble

        def draw(generator):
            generator[0] = scramble(generator[0])
            return 1.0 if (generator[0] >> np.uint64(63)) != np.uint64(0) else -1.0

        return draw

    def make(self, tools):
        recorded, partials, pull, clear_states = tools.recorded, tools.partials, tools.pull, tools.clear_states
        draw, moving = tools.wrap(self.make_draw(tools)), tools.wrap(_moving)

        def prepare(net, ring, slot, first, last, constants, memory, generator, work, u, e, q):
            recorded(net, ring, slot, u, e, q)
            da, ds, va, vs, r = work[0], work[1], work[2], work[3], work[5]
            sign, moved, p, motion, scales = work[6], work[7], work[8], work[9], work[10]
            partials(ring.a[slot], ring.before[slot], ring.after[slot], da, ds, va, vs)
            slots, n = q.shape
            z = ring.z[slot]
            # D s̃ as a directional derivative.
            clear_states(motion)
            moving(net, memory, va, vs, motion, r)
            size_state, size_weights, size_new = 0.0, 0.0, 0.0
            for k in range(slots):
                for i in range(n):
                    total = 0.0
                    for j in range(slots):
                        total += ds[k, j, i] * memory[i, j]
                    for gate in range(da.shape[1]):
                        total += da[k, gate, i] * motion[gate, i]
                    moved[k, i] = total
                    size_state += total * total
                    sign[k, i] = draw(generator)
            pull(net, sign, da, va, p, r)
            for i in range(n):
                for j in range(slots, memory.shape[1]):
                    size_weights += memory[i, j] * memory[i, j]
            for gate in range(net.blocks.shape[0]):
                start, width = net.blocks[gate, 0], net.blocks[gate, 1]
                squares, factors = 0.0, 0.0
                for j in range(start, start + width):
                    squares += z[j] * z[j]
                for i in range(n):
                    factors += p[gate, i] * p[gate, i]
                size_new += squares * factors
            # All four sizes are even in ν, which is what keeps the estimate unbiased. Where one vanishes any scale will
            # do, and 1 does.
            scales[0] = (size_weights / size_state) ** 0.25 if size_state > 0.0 and size_weights > 0.0 else 1.0
            scales[1] = (size_new / (slots * n)) ** 0.25 if size_new > 0.0 else 1.0
            scales[2] = 0.0
            for k in range(slots):
                for i in range(n):
                    memory[i, k] = scales[0] * moved[k, i] + scales[1] * sign[k, i]
                    scales[2] += q[k, i] * memory[i, k]

        def row(i, net, ring, slot, last, constants, memory, work, q, g):
            z, p, scales, slots = ring.z[slot], work[8], work[10], q.shape[0]
            estimate = memory[i, slots:]
            fade, signal = 1.0 / scales[0], scales[2]
            for gate in range(net.blocks.shape[0]):
                start, width, begin = net.blocks[gate, 0], net.blocks[gate, 1], net.blocks[gate, 2]
                read, part, out = z[start : start + width], estimate[begin : begin + width], g[begin : begin + width]
                factor = p[gate, i] / scales[1]
                for j in range(width):
                    part[j] = fade * part[j] + factor * read[j]
                    out[j] = signal * part[j]

        return prepare, row

    def torch_counterpart(self, network):
        import torch

        from bci_adapt.learning.backends.torch_credit import Credit
        from bci_adapt.learning.backends.torch_network import backward, directional

        def norm(values):
            """Frobenius norm of each replica (S, 1, 1)."""
            return values.square().sum((1, 2), keepdim=True).sqrt()

        def balance(weights, states):
            """√(weights / states), or 1 where one of them vanishes."""
            usable = (weights > 0.0) & (states > 0.0)
            return torch.where(usable, weights / torch.where(usable, states, 1.0), 1.0).sqrt()

        class RankOne(Credit):
            """s̃ (S, k, n) in `states`, θ̃ (S, R, w) in `weights`."""

            @classmethod
            def memory_shape(cls, network):
                return (len(network.cell.slots) * network.n_hidden + network.row_width,)

            def unpack(self, memory, processed):
                S, k, n = len(memory), self.k, self.n
                if self.dynamics.own:
                    self.states, self.weights = memory[:, :, :k].transpose(1, 2), memory[:, :, k:]
                else:
                    self.states, self.weights = memory[:, : k * n].view(S, k, n), memory[:, None, k * n :]

            def packed(self, processed):
                if self.dynamics.own:
                    return torch.cat([self.states.transpose(1, 2), self.weights], -1)
                return torch.cat([self.states.flatten(1), self.weights[:, 0]], -1)

            def clear(self):
                self.states, self.weights = torch.zeros_like(self.states), torch.zeros_like(self.weights)

            def gradient(self, W, record, q):
                f, before = self.dynamics.at(W, record), record.before
                moved = directional(lambda s: f(W, s[:, 0], s), before, self.states)
                _, pull = backward(lambda W: f(W, before[:, 0], before), W)
                signs = _random_signs(self.generator, moved)
                (seen,) = pull(signs)
                keep, new = balance(norm(self.weights), norm(moved)), balance(norm(seen), norm(signs))
                self.states = keep * moved + new * signs
                self.weights = self.weights / keep + seen / new
                return (q * self.states).sum((1, 2), keepdim=True) * self.weights

        return RankOne

    def influence(self, network, memory, last):
        k = len(network.cell.slots)
        return np.einsum("jk,ic->kjic", memory[:, :k], memory[:, k:])


def _moving(net, memory, va, vs, motion, r):
    """Gate activations move with h, v with both: motion (G, n) and r (n_mid,) along s̃, which `memory` holds."""
    n = motion.shape[1]
    for later in range(2):
        for gate in range(net.blocks.shape[0]):
            if net.blocks[gate, 3] >= 0 and later == 0:
                begin = net.blocks[gate, 2] + net.blocks[gate, 3]
                for i in range(n):
                    total = 0.0
                    for j in range(n):
                        total += net.W[i, begin + j] * memory[j, 0]
                    motion[gate, i] += total
            if net.blocks[gate, 4] >= 0 and later == 1:
                begin = net.blocks[gate, 2] + net.blocks[gate, 4]
                for i in range(n):
                    total = 0.0
                    for j in range(n):
                        total += net.W[i, begin + j] * r[j]
                    motion[gate, i] += total
        for i in range(r.shape[0]):
            r[i] = 0.0
            for gate in range(va.shape[0]):
                if net.blocks[gate, 4] < 0:
                    r[i] += va[gate, i] * motion[gate, i]
            for k in range(vs.shape[0]):
                r[i] += vs[k, i] * memory[i, k]


def _random_signs(generators: list[int], like: Any) -> Any:
    """Tensor of ν = ±1 (S, k, n), of the shape of `like`, by each replica's own generator, which moves on."""
    from bci_adapt.learning.backends.torch_credit import scrambled

    signs = np.empty((len(generators), like[0].numel()))
    for s, x in enumerate(generators):
        for j in range(signs.shape[1]):
            x = scrambled(x)
            signs[s, j] = 1.0 if x >> 63 else -1.0
        generators[s] = x
    return like.new_tensor(signs).view(like.shape)
