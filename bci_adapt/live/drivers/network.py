"""The network's part of a live bin: the compiled loop, called on arrays that are made once.

`learning.online.run` checks and copies what it is given, which takes longer than a bin of a small network. Here all is
bound beforehand: a bin writes its numbers into the same few arrays and calls the loop's machine code. The loop is
called twice, once to predict with no update allowed, and once to learn with no bin to predict; together they do what
one call of `run` does, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bci_adapt.decoders.base import Decoder
from bci_adapt.decoders.online_rnn import OnlineDecoder
from bci_adapt.learning import online
from bci_adapt.learning.backends import loop as kernel
from bci_adapt.learning.backends.compiled import bound_loop
from bci_adapt.learning.credit.base import Net, Ring
from bci_adapt.learning.learner import State
from bci_adapt.learning.normaliser import FLOOR, Normaliser
from bci_adapt.live.drivers.base import Driver

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
        self._records = np.full(wait + 2, -1, np.int64)
        self._waits = np.zeros(wait + 2, bool)
        S, m, M = len(arrays["W"]), decoder.n_features_in_, decoder.n_outputs_
        self.features, self.weight = np.zeros((1, m)), np.zeros((1, M))
        self.observed, self.reset, self.predictions = np.zeros(1, bool), np.zeros(1, bool), np.zeros((S, 1, M))
        self._mean, self.prediction, self._last = np.zeros(M), np.zeros(M), np.zeros((S, 1, M))
        self._bind(learner)
        self._bind_statistics()

    def _bind(self, learner: Any) -> None:
        """The arguments of the loop: for a prediction, and for learning, of every member."""
        arrays, network = self.arrays, learner.network
        S, m, M = self.predictions.shape[0], self.features.shape[1], self.prediction.shape[0]
        learning = online._learning(learner)
        self._flags = {name: learning["flags"].copy() for name in ("forward", "work")}
        self._flags["forward"][2] = 0
        none = np.zeros((1, M))
        arrives = np.array([self.wait + 1])
        streams = {
            "forward": kernel.Stream(self.features, none, self.weight, arrives, self.observed, self.reset),
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
        self._loop = machine_code(function, self._calls["forward"][0])

    def _bind_statistics(self) -> None:
        running: Normaliser = self.decoder.running_
        self.mean, self.variance = running.mean.copy(), running.variance.copy()
        scale = self.decoder.metadata_.get("power_scale")
        self._scale = None if scale is None else np.asarray(scale)
        self._moves = bool(np.isfinite(running.time_constant_bins))
        self._alpha = -np.expm1(-1.0 / running.time_constant_bins)
        self._keep = 1.0 - self._alpha
        m = len(self.mean)
        self._raw, self._room = np.zeros(m), np.zeros(m)

    def forward(self, counts: np.ndarray, observed: bool, reset: bool) -> np.ndarray:
        """See `Driver.forward`."""
        self._enter(counts, observed)
        reset |= self.decoder._fresh_session
        self.decoder._fresh_session = False
        self.observed[0], self.reset[0] = observed, reset
        if reset:
            self._waits[:] = False
        at = self.bin % len(self._waits)
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

    def _enter(self, counts: np.ndarray, observed: bool) -> None:
        """Features of the bin, normalised; each step is that of `Normaliser.apply`, in arrays that are there."""
        out, raw, room = self.features[0], self._raw, self._room
        if not observed:
            out[:] = 0.0
            return
        if self._scale is None:
            np.sqrt(counts, out=raw)
        else:
            np.divide(counts, self._scale, out=raw)
        np.subtract(raw, self.mean, out=out)
        np.add(self.variance, FLOOR**2, out=room)
        np.sqrt(room, out=room)
        if not self._moves or self.holds_statistics:
            np.divide(out, room, out=out)
            return
        # v ← α keep (x − m)² + keep v needs x − m, which `out` still is.
        np.divide(out, room, out=room)
        np.multiply(out, out, out=out)
        np.multiply(out, self._keep, out=out)
        np.multiply(out, self._alpha, out=out)
        np.multiply(self.variance, self._keep, out=self.variance)
        np.add(out, self.variance, out=self.variance)
        out[:] = room
        np.multiply(raw, self._alpha, out=raw)
        np.multiply(self.mean, self._keep, out=self.mean)
        np.add(raw, self.mean, out=self.mean)

    def give(self, i: int, y: np.ndarray) -> None:
        """See `Driver.give`."""
        at = i % len(self._waits)
        if not self._waits[at]:
            return
        self._waits[at] = False
        slot, known, ring = self._records[at] % self.length, np.isfinite(y), self.arrays
        label = (y - self.label_mean) / self.label_scale
        ring["ring_label"][:, slot] = np.where(known, label, 0.0)
        ring["ring_weight"][:, slot] = known
        ring["ring_weight"][~self.decoder._learns(np.array([self.base + i]))[:, 0], slot] = 0.0
        ring["ring_arrives"][:, slot] = self.base + self._arrival(i)

    def overdue(self, i: int) -> None:
        """See `Driver.overdue`."""
        at = i % len(self._waits)
        if i >= 0 and self._waits[at]:
            self._waits[at] = False
            slot = self._records[at] % self.length
            self.arrays["ring_arrives"][:, slot] = self.base + self.bin - 1

    def work(self) -> None:
        """See `Driver.work`; no more records than a bin may."""
        counters = self.counters
        before = int(counters[0, kernel.PROCESSED])
        if not self.left or before == counters[0, kernel.RECORDS]:
            return
        if self.arrays["ring_arrives"][0, before % self.length] > self.base + self.bin - 1:
            return
        counters[:, kernel.BIN] -= 1  # the loop counts the bin, in which it predicts nothing, once more
        self._flags["work"][2] = self.left
        for call in self._calls["work"]:
            self._loop(*call)
        self.left -= int(counters[0, kernel.PROCESSED]) - before

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
        own = {"records": self._records.tolist(), "waits": self._waits.tolist()}
        return {"bin": self.bin, "base": self.base, "left": self.left, **own}

    def go_on(self, place: Mapping[str, Any]) -> None:
        """See `Driver.go_on`."""
        super().go_on(place)
        self.base, self.left = int(place["base"]), int(place["left"])
        self._records[:], self._waits[:] = place["records"], place["waits"]


def machine_code(function: Any, arguments: tuple) -> Callable[..., Any]:
    """The compiled loop for arguments of exactly these types, without the search for it that each call makes; the
    function itself where it is not compiled.
    """
    if not hasattr(function, "compile"):
        return function
    from numba import typeof

    types = tuple(typeof(each) for each in arguments)
    function.compile(types)
    return function.overloads[types].entry_point
