"""Truncated backpropagation through time, online: a few steps of history (Williams & Peng 1990)."""

from dataclasses import dataclass, field
from typing import ClassVar

from bci_adapt.errors import InputError
from bci_adapt.learning.credit.base import CreditRule, partial_shapes


@dataclass(frozen=True)
class Window(CreditRule):
    """TBPTT(K) of the newest label: the last K bins are recomputed with today's weights from the state before them,
    then the error is propagated back through those K bins. TBPTT(1) is immediate with a fresh error, and without delay
    immediate itself; a window that reaches back to the start of the stretch is exact. O(K · parameters) per label, and
    the optimiser is paid only once. The error is fresh by definition: ``fresh_error=False`` is refused.

    Parameters
    ----------
    steps : K, bins of history including the labelled one.
    """

    name: ClassVar[str] = "window"
    description: ClassVar[str] = "TBPTT(K): the last K bins recomputed with today's weights (Williams & Peng 1990)"
    steps: int = 4

    fresh_error: bool = field(default=True, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if not self.fresh_error:
            raise InputError("window: its bins are recomputed with today's weights, so fresh_error cannot be False")
        if self.steps < 1:
            raise InputError(f"window: steps must be at least 1, got {self.steps}")

    @classmethod
    def example(cls):
        return cls(3)

    @property
    def refreshes(self):
        """Not before the rule sees them: it recomputes its bins by itself."""
        return False

    @property
    def history(self):
        return self.steps - 1

    def work_shapes(self, network):
        k, gates, n = len(network.cell.slots), len(network.cell.gates), network.n_hidden
        steps = self.steps
        return (
            *partial_shapes(network),
            (steps, network.z_width),
            (steps, gates, n),
            (steps + 1, k, n),
            (steps, gates, n),
            (2, k, n),
            (network.n_outputs,),
            (n,),
        )

    def make(self, tools):
        forward, partials, readout = tools.forward, tools.partials, tools.readout
        error, feed_back, pull, back = tools.error, tools.feed_back, tools.pull, tools.back
        copy, copy_states, clear_states = tools.copy, tools.copy_states, tools.clear_states

        def prepare(net, ring, slot, first, last, constants, memory, generator, work, u, e, q):
            da, ds, va, vs = work[0], work[1], work[2], work[3]
            z, a, states, p, prediction, r = work[4], work[5], work[6], work[7], work[9], work[10]
            length, K = ring.z.shape[0], z.shape[0]
            steps = min(K, last - first + 1)
            one = z.shape[1] - 1 - q.shape[1]
            copy_states(states[K - steps], ring.before[(last - steps + 1) % length])
            for step in range(K - steps, K):
                copy(z[step], ring.z[(last - K + 1 + step) % length])
                copy(z[step, one + 1 :], states[step, 0])
                forward(net, z[step], a[step], states[step], states[step + 1])
            readout(net, states[K], z[K - 1], u, prediction)
            error(prediction, ring.label[slot], ring.weight[slot], e)
            feed_back(net, e, q)
            now, earlier = work[8][0], work[8][1]
            copy_states(now, q)
            for step in range(K - steps):
                clear_states(p[step])
            for behind in range(steps):
                step = K - 1 - behind
                partials(a[step], states[step], states[step + 1], da, ds, va, vs)
                pull(net, now, da, va, p[step], r)
                if behind < steps - 1:
                    back(net, p[step], r, now, ds, vs, earlier)
                    copy_states(now, earlier)

        def row(i, net, ring, slot, last, constants, memory, work, q, g):
            z, p = work[4], work[7]
            for gate in range(net.blocks.shape[0]):
                start, width, begin = net.blocks[gate, 0], net.blocks[gate, 1], net.blocks[gate, 2]
                out = g[begin : begin + width]
                newest = z.shape[0] - 1
                factor, read = p[newest, gate, i], z[newest, start : start + width]
                for j in range(width):
                    out[j] = factor * read[j]
                for step in range(newest):
                    factor, read = p[step, gate, i], z[step, start : start + width]
                    if factor != 0.0:
                        for j in range(width):
                            out[j] += factor * read[j]

        return prepare, row

    def torch_counterpart(self, network):
        from bci_adapt.learning.backends.torch_credit import Credit
        from bci_adapt.learning.backends.torch_network import backward

        class WindowCredit(Credit):
            """The last K bins recomputed from the state before them, and the error carried back through them."""

            def learn(self, net, ring, first, last, learns):
                length = ring["z"].shape[1]
                records = range(max(first, last - self.rule.steps + 1), last + 1)
                inputs = [self.record(ring, record % length).x for record in records]
                before = ring["before"][:, records[0] % length]

                def unrolled(W):
                    state = before
                    for x in inputs:
                        state = self.dynamics.step(W, x, state[:, 0], state)[0]
                    return state

                state, pull = backward(unrolled, net.W)
                u, prediction = self.readout(net.C, state, inputs[-1])
                slot = last % length
                e = self.error(prediction, ring["label"][:, slot], ring["weight"][:, slot])
                return u, e, pull(self.feed_back(net.B, e))[0] if learns else None

        return WindowCredit
