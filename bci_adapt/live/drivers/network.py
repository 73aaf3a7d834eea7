"""The network's part of a live bin: the compiled loop, called on arrays that are made once.

`learning.online.run` checks and copies what it is given, which takes longer than a bin of a small network. Here all is
bound beforehand: a bin writes its numbers into the same few arrays and calls the loop's machine code. The loop is
called twice, once to predict with no update allowed, and once to learn with no bin to predict; together they do what
one call of `run` does, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bci_adapt.decoders.base import Decoder
from bci_adapt.decoders.online_rnn import OnlineDecoder
from bci_adapt.learning import online
from bci_adapt.learning.backends import loop as kernel
from bci_adapt.learning.backends.compiled import bound_loop
from bci_adapt.learning.credit.base import Net, Ring
from bci_adapt.learning.learner import State
from bci_adapt.learning.normaliser import Normaliser
from bci_adapt.live.drivers.base import Driver
from bci_adapt.live.drivers.compiled import machine_code, small

_LEARNED = ("W", "C", "mean_W", "mean_C", "opt_W", "opt_C", "opt_groups")


class NetworkDriver(Driver):
    """Drives an `OnlineDecoder` through its compiled loop, bit for bit as `adapt`.

    The decoder's own state is changed in place; what is kept apart, `sync` writes back.
    """

    decoder: OnlineDecoder

    def __init__(self, decoder: OnlineDecoder, wait: int) -> None:
        super().__init__(decoder, wait)
        learner = decoder.state_.learner
        # A bin waits until the end of the wait-th after it, and one is made before that.
        waiting = decoder.state_.counter(kernel.RECORDS) - decoder.state_.counter(kernel.PROCESSED)
        needed = max(wait + 2, int(waiting.max()) + 1) + learner.rule.history
        arrays = online.with_ring(decoder.state_, needed)
        decoder.state_ = State(learner, arrays)
        self.arrays, self.counters, self.length = arrays, arrays["counters"], arrays["ring_z"].shape[1]
        self.cap, self.left = learner.max_updates_per_bin, 0
        self.base = int(self.counters[0, kernel.BIN])
        self._records, self._waits = [-1] * (wait + 2), [False] * (wait + 2)
        self._advances, self._members = learner.rule.advances, decoder.n_members
        S, m, M = len(arrays["W"]), decoder.n_features_in_, decoder.n_outputs_
        self.features, self.weight = np.zeros((1, m)), np.zeros((1, M))
        self._observed, self._reset, self.predictions = np.zeros(1, bool), np.zeros(1, bool), np.zeros((S, 1, M))
        self._mean, self.prediction, self._last = np.zeros(M), np.zeros(M), np.zeros((S, 1, M))
        self._bind(learner)
        self._bind_statistics()

    def _bind(self, learner: Any) -> None:
        """The arguments of the loop: for a prediction, and for learning, of every member."""
        from numba import typeof

        arrays, network = self.arrays, learner.network
        S, m, M = self.predictions.shape[0], self.features.shape[1], self.prediction.shape[0]
        learning = online._learning(learner)
        self._flags = {name: learning["flags"].copy() for name in ("forward", "work")}
        self._flags["forward"][2] = 0
        none = np.zeros((1, M))
        arrives = np.array([self.wait + 1])
        streams = {
            "forward": kernel.Stream(self.features, none, self.weight, arrives, self._observed, self._reset),
            "work": kernel.Stream(np.zeros((1, m)), none, none, arrives, np.zeros(1, bool), np.zeros(1, bool)),
        }
        decay, blocks = np.array([learner.average or 0.0]), network.blocks
        self._calls: dict[str, list[tuple]] = {"forward": [], "work": []}
        for s in range(S):
            a = {name: array[s] for name, array in arrays.items()}
            own = {name: a[name] for name in ("opt_W", "opt_C", "opt_groups", "memory", "generator")}
            for name, calls in self._calls.items():
                given = learning | own | {"flags": self._flags[name]}
                calls.append(
                    (
                        streams[name],
                        Net(a["W"], a["C"], a["B"] if a["B"].size else a["C"], blocks),
                        kernel.Averaged(
                            Net(a["mean_W"], a["mean_C"], a["mean_C"], blocks), a["mean_state"], a["mean_output"], decay
                        ),
                        Ring(*(a[f"ring_{field}"] for field in Ring._fields)),
                        kernel.Learning(**given),
                        a["state"],
                        a["output"],
                        a["counters"],
                        (self.predictions if name == "forward" else self._last)[s],
                    )
                )
        function = bound_loop(network.cell, learner.rule, learner.optimizer, learner.loss)
        self._loop = machine_code(function, tuple(typeof(each) for each in self._calls["forward"][0]))

    def _bind_statistics(self) -> None:
        running: Normaliser = self.decoder.running_
        self.mean, self.variance = running.mean.copy(), running.variance.copy()
        scale = self.decoder.metadata_.get("power_scale")
        self._rooted, self._scale = scale is None, np.ones(len(self.mean)) if scale is None else np.array(scale, float)
        self._moves = bool(np.isfinite(running.time_constant_bins))
        self._alpha = float(-np.expm1(-1.0 / running.time_constant_bins))
        self._keep = 1.0 - self._alpha
        self._small = small()

    def forward(self, counts: np.ndarray, reset: bool) -> np.ndarray:
        """See `Driver.forward`."""
        observed = self._enter(counts)
        if not observed:
            self.features[0] = 0.0
        reset |= self.decoder._fresh_session
        self.decoder._fresh_session = False
        self.observed = self._observed[0] = observed
        self._reset[0] = reset
        n = self.wait + 2
        if reset:
            self._waits = [False] * n
        at = self.bin % n
        self._records[at], self._waits[at] = self.counters[0, kernel.RECORDS], observed
        for call in self._calls["forward"]:
            self._loop(*call)
        self.bin += 1
        self.left = self.cap
        # What `mean(axis=0)` and the decoder's `_unscaled` do, in arrays that are there.
        np.add.reduce(self.predictions[:, 0], axis=0, out=self._mean)
        np.true_divide(self._mean, len(self.predictions), out=self._mean)
        np.multiply(self._mean, self.label_scale, out=self.prediction)
        return np.add(self.prediction, self.label_mean, out=self.prediction)

    def _enter(self, counts: np.ndarray) -> bool:
        """Features of the bin, normalised; whether it was observed."""
        moves = self._moves and not self.holds_statistics
        return self._small.enter(
            counts, self._rooted, self._scale, self.mean, self.variance, self._alpha, self._keep, moves,
            self.features[0],
        )  # fmt: skip

    def give(self, i: int, y: np.ndarray) -> None:
        """See `Driver.give`."""
        at = i % (self.wait + 2)
        if not self._waits[at]:
            return
        self._waits[at] = False
        slot, ring = int(self._records[at]) % self.length, self.arrays
        turn, between = divmod(self.base + i, self.decoder.learn_every)
        member = turn % self._members if self.decoder.take_turns else -1
        if between:
            member = self._members  # a label that teaches nobody
        self._small.take(
            ring["ring_label"], ring["ring_weight"], ring["ring_arrives"], slot, y, self.label_mean, self.label_scale,
            member, self.base + self._arrival(i),
        )  # fmt: skip

    def overdue(self, i: int) -> None:
        """See `Driver.overdue`."""
        at = i % (self.wait + 2)
        if i >= 0 and self._waits[at]:
            self._waits[at] = False
            self.arrays["ring_arrives"][:, int(self._records[at]) % self.length] = self.base + self.bin - 1

    def work(self) -> None:
        """See `Driver.work`; no more records than a bin may."""
        counters = self.counters
        before, made = counters[0, kernel.PROCESSED].item(), counters[0, kernel.RECORDS].item()
        while self.left and before < made:
            slot = before % self.length
            if self.arrays["ring_arrives"][0, slot] > self.base + self.bin - 1:
                return
            if self._advances or self.arrays["ring_weight"][:, slot].any():
                break
            # A record without a label, which the loop would pass over.
            before, self.left = before + 1, self.left - 1
            counters[:, kernel.PROCESSED] = before
        else:
            return
        counters[:, kernel.BIN] -= 1  # the loop counts the bin, in which it predicts nothing, once more
        self._flags["work"][2] = self.left
        for call in self._calls["work"]:
            self._loop(*call)
        self.left -= counters[0, kernel.PROCESSED].item() - before

    def forget(self) -> None:
        """See `Driver.forget`."""
        done, made = (int(self.counters[0, at]) for at in (kernel.PROCESSED, kernel.RECORDS))
        self.arrays["ring_weight"][:, np.arange(done, made) % self.length] = 0.0

    def weights(self) -> dict[str, np.ndarray]:
        """See `Driver.weights`."""
        return {name: self.arrays[name] for name in _LEARNED} | {"updates": self.counters[:, kernel.UPDATES]}

    def watched(self) -> list[np.ndarray]:
        """See `Driver.watched`."""
        return [self.arrays["W"], self.arrays["C"]]

    def restore(self, kept: Mapping[str, np.ndarray]) -> None:
        """See `Driver.restore`."""
        for name, array in self.weights().items():
            array[...] = kept[name]

    def sync(self) -> Decoder:
        """See `Driver.sync`."""
        constant = self.decoder.running_.time_constant_bins
        self.decoder.running_ = Normaliser(self.mean.copy(), self.variance.copy(), constant)
        return self.decoder

    def place(self) -> dict[str, Any]:
        """See `Driver.place`."""
        own = {"records": list(map(int, self._records)), "waits": list(map(bool, self._waits))}
        return {"bin": self.bin, "base": self.base, "left": self.left, **own}

    def go_on(self, place: Mapping[str, Any]) -> None:
        """See `Driver.go_on`."""
        super().go_on(place)
        self.base, self.left = int(place["base"]), int(place["left"])
        self._records, self._waits = list(place["records"]), list(place["waits"])
