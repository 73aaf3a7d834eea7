"""Drivers of the decoders that learn in blocks of labels: least squares, alone and beside a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bci_adapt.decoders.base import Decoder
from bci_adapt.decoders.rls import RLSDecoder
from bci_adapt.decoders.stacked import StackedDecoder
from bci_adapt.decoders.timing import delay_bins
from bci_adapt.live.drivers.base import Driver
from bci_adapt.live.drivers.network import NetworkDriver


class LinearDriver(Driver):
    """Drives an `RLSDecoder`: blocks of labels as `adapt` takes them."""

    decoder: RLSDecoder

    def __init__(self, decoder: RLSDecoder, wait: int) -> None:
        super().__init__(decoder, wait)
        self._queue = _Queue(decoder, ("waiting_features_", "waiting_labels_"))
        self.block = max(1, delay_bins(decoder.update_every_s, decoder.bin_s_))

    def forward(self, counts: np.ndarray, reset: bool) -> np.ndarray:
        """See `Driver.forward`."""
        decoder = self.decoder
        if reset:
            self._queue.clear()
        features, running, past = decoder._features(self._bins(counts, reset), continuing=True)
        if self.holds_statistics:
            running = type(running)(decoder.running_mean_, decoder.running_variance_, running.time_constant_bins)
        decoder._go_on(running, past)
        row = features[0] if self.observed else np.full(features.shape[1], np.nan)
        self._queue.add((row, np.full(self.decoder.n_outputs_, np.nan)), self._first_due(self.observed))
        self.bin += 1
        return (features @ decoder.coef_)[0]

    def _first_due(self, observed: bool) -> int:
        """Until when a new bin waits for its label; one that was not observed has none to wait for."""
        return self.bin + (self.wait + 1 if observed else self.delay)

    def give(self, i: int, y: np.ndarray) -> None:
        """See `Driver.give`."""
        self._queue.give(self.bin - i, y if np.isfinite(y).all() else np.full_like(y, np.nan), self._arrival(i))

    def overdue(self, i: int) -> None:
        """See `Driver.overdue`."""
        self._queue.overdue(self.bin - i, self.bin - 1)

    def work(self) -> None:
        """See `Driver.work`."""
        while (rows := self._queue.block(self.block, self.bin - 1)) is not None:
            self.decoder._update(*rows)

    def forget(self) -> None:
        """See `Driver.forget`."""
        self._queue.forget()

    def weights(self) -> dict[str, np.ndarray]:
        """See `Driver.weights`."""
        return {"coef": self.decoder.coef_, "P": self.decoder.P_}

    def watched(self) -> list[np.ndarray]:
        """See `Driver.watched`."""
        return [self.decoder.coef_]

    def restore(self, kept: Mapping[str, np.ndarray]) -> None:
        """See `Driver.restore`."""
        self.decoder.coef_, self.decoder.P_ = kept["coef"].copy(), kept["P"].copy()

    def sync(self) -> Decoder:
        """See `Driver.sync`."""
        self._queue.sync(self.bin)
        return self.decoder

    def go_on(self, place: Mapping[str, Any]) -> None:
        """See `Driver.go_on`."""
        super().go_on(place)
        self._queue.start_at(self.bin)


class StackedDriver(Driver):
    """Drives both parts of a `StackedDecoder`, and learns the weights between them."""

    decoder: StackedDecoder

    def __init__(self, decoder: StackedDecoder, wait: int) -> None:
        super().__init__(decoder, wait)
        self.parts = NetworkDriver(decoder, wait), LinearDriver(decoder.linear_, wait)
        self._queue = _Queue(decoder, ("waiting_pairs_", "waiting_y_"))
        self.block = max(1, delay_bins(decoder.update_every_s, decoder.bin_s_))

    def forward(self, counts: np.ndarray, reset: bool) -> np.ndarray:
        """See `Driver.forward`."""
        decoder, (network, linear) = self.decoder, self.parts
        network.holds_statistics = linear.holds_statistics = self.holds_statistics
        if reset:
            self._queue.clear()
        alone = network.forward(counts, reset)[None]
        pairs = decoder._pairs(alone, linear.forward(counts, reset)[None])
        self.observed = network.observed
        row = pairs[0] if self.observed else np.full(pairs.shape[1:], np.nan)
        self._queue.add((row, np.full(decoder.n_outputs_, np.nan)), linear._first_due(self.observed) - 1)
        self.bin += 1
        return decoder._weighed(pairs, alone)[0]

    def give(self, i: int, y: np.ndarray) -> None:
        """See `Driver.give`."""
        for part in self.parts:
            part.give(i, y)
        self._queue.give(self.bin - i, (y - self.label_mean) / self.label_scale, self._arrival(i))

    def overdue(self, i: int) -> None:
        """See `Driver.overdue`."""
        for part in self.parts:
            part.overdue(i)
        self._queue.overdue(self.bin - i, self.bin - 1)

    def work(self) -> None:
        """See `Driver.work`."""
        for part in self.parts:
            part.work()
        while (rows := self._queue.block(self.block, self.bin - 1)) is not None:
            self.decoder._weigh(*rows)

    def forget(self) -> None:
        """See `Driver.forget`."""
        for each in (*self.parts, self._queue):
            each.forget()

    def weights(self) -> dict[str, np.ndarray]:
        """See `Driver.weights`."""
        own = {name: getattr(self.decoder, name) for name in ("evidence_", "products_", "weights_")}
        network, linear = self.parts
        return network.weights() | {f"linear_{name}": each for name, each in linear.weights().items()} | own

    def watched(self) -> list[np.ndarray]:
        """See `Driver.watched`."""
        return [*self.parts[0].watched(), *self.parts[1].watched(), self.decoder.weights_]

    def restore(self, kept: Mapping[str, np.ndarray]) -> None:
        """See `Driver.restore`."""
        network, linear = self.parts
        network.restore(kept)
        linear.restore({name: kept[f"linear_{name}"] for name in linear.weights()})
        for name in ("evidence_", "products_", "weights_"):
            setattr(self.decoder, name, kept[name].copy())

    def sync(self) -> Decoder:
        """See `Driver.sync`."""
        for part in self.parts:
            part.sync()
        self._queue.sync(self.bin)
        return self.decoder

    def place(self) -> dict[str, Any]:
        """See `Driver.place`."""
        return self.parts[0].place()

    def go_on(self, place: Mapping[str, Any]) -> None:
        """See `Driver.go_on`."""
        super().go_on(place)
        for part in self.parts:
            part.go_on(place)
        self._queue.start_at(self.bin)


class _Queue:
    """Rows that wait for their labels in a decoder that learns in blocks, one for each bin of the segment, the oldest
    first; `names` are the decoder's attributes that hold them, a row's own and its label.
    """

    def __init__(self, decoder: Any, names: tuple[str, str]) -> None:
        self.decoder, self.names = decoder, names
        rows, labels = (list(getattr(decoder, name)) for name in names)
        self.rows, self.labels, self.due = rows, labels, [int(each) for each in decoder.waiting_arrives_]

    def add(self, row: tuple[np.ndarray, np.ndarray], due: int) -> None:
        """The row of a new bin, and its label, NaN."""
        self.rows.append(row[0])
        self.labels.append(row[1])
        self.due.append(due)

    def give(self, ago: int, y: np.ndarray, due: int) -> None:
        """The label of the bin `ago` bins before the next one."""
        if 0 < ago <= len(self.due):
            self.labels[-ago], self.due[-ago] = np.array(y), due

    def overdue(self, ago: int, now: int) -> None:
        """That bin waits no longer."""
        if 0 < ago <= len(self.due):
            self.due[-ago] = min(self.due[-ago], now)

    def block(self, size: int, now: int) -> tuple[np.ndarray, np.ndarray] | None:
        """The oldest `size` rows and labels, taken out, where all of them are due by the end of bin `now`."""
        if len(self.due) < size or max(self.due[:size]) > now:
            return None
        taken = np.array(self.rows[:size]), np.array(self.labels[:size])
        for each in (self.rows, self.labels, self.due):
            del each[:size]
        return taken

    def clear(self) -> None:
        """Nothing waits."""
        for each in (self.rows, self.labels, self.due):
            each.clear()

    def forget(self) -> None:
        """No row has a label."""
        self.labels = [np.full_like(each, np.nan) for each in self.labels]

    def sync(self, n_bins: int) -> None:
        """Hand the rows to the decoder, arrivals counted from its next bin, `n_bins`."""
        for name, values in zip(self.names, (self.rows, self.labels), strict=True):
            empty = getattr(self.decoder, name)[:0]
            setattr(self.decoder, name, np.array(values) if values else empty)
        self.decoder.waiting_arrives_ = np.array(self.due, np.int64) - n_bins

    def start_at(self, n_bins: int) -> None:
        """Count arrivals, those of a decoder that was saved, from its first bin again: the next one is `n_bins`."""
        self.due = [each + n_bins for each in self.due]
