"""What stops a live decoder from learning: guards on its error, its updates and its predictions, and a canary.

When one fires the decoder stops learning and goes back to its last good weights: those that were followed by
`Guards.good_s` seconds of bins in which none fired.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from bci_adapt.errors import InputError
from bci_adapt.live.drivers import Driver

RANGE, UPDATE, ERROR, CANARY = "range", "update", "error", "canary"
_INFINITE = (math.inf, -math.inf)
_PARTS = 10  # of a second, in each of which a part of the weights is looked at
_CANARY_SAYS = 0.2  # share of the labels' variance that a canary explains by chance
_AS_WELL = 0.5  # share of what the decoder explains that a canary may not


@dataclass(frozen=True)
class Guards:
    """Limits of a live decoder; None switches one off.

    Parameters
    ----------
    error : largest rolling squared error of the predictions, each made before its label, over about `error_s` seconds
        of labels, as a multiple of what always predicting the mean of the training would cost, in the training or in
        the same seconds, whichever is more.
    update : largest change of the weights within a second, as a share of their norm.
    range : largest distance of a prediction from the mean of the labels, in their standard deviations.
    canary_s : seconds of labels over which a canary is compared.
    good_s : how long weights must go without a guard before they count as good.
    """

    error: float | None = 4.0
    error_s: float = 10.0
    update: float | None = 0.5
    range: float | None = 10.0
    canary_s: float = 60.0
    good_s: float = 10.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            none = value is None and not field.name.endswith("_s")
            if not none and (isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf):
                raise InputError(f"guards: {field.name}: expected a number above 0, got {value!r}")


class Rolling:
    """An exponential mean over about `n` values, as of those so far."""

    def __init__(self, n: float) -> None:
        self.keep, self.total, self.share, self.n = math.exp(-1.0 / max(n, 1.0)), 0.0, 0.0, 0

    def add(self, value: float) -> None:
        """One more value."""
        self.total = self.keep * self.total + (1.0 - self.keep) * value
        self.share = self.keep * self.share + (1.0 - self.keep)
        self.n += 1

    @property
    def mean(self) -> float:
        """The mean, NaN where there is no value."""
        return self.total / self.share if self.n else math.nan

    def place(self) -> list[float]:
        """Where it stands, as JSON can hold it."""
        return [self.total, self.share, self.n]

    def go_on(self, place: list[float]) -> None:
        """Stand where another stood."""
        self.total, self.share, self.n = float(place[0]), float(place[1]), int(place[2])


class Spread:
    """The rolling variance of labels about their own rolling mean, over about `n` of them."""

    def __init__(self, n_outputs: int, n: float) -> None:
        self.means, self.variance = [Rolling(n) for _ in range(n_outputs)], Rolling(n)

    def add(self, label: list[float]) -> None:
        """One more label, scaled, NaN where an output has none."""
        total, n = 0.0, 0
        for value, mean in zip(label, self.means, strict=True):
            if value == value:
                mean.add(value)
                off = value - mean.mean
                total, n = total + off * off, n + 1
        if n:
            self.variance.add(total / n)

    def place(self) -> list[list[float]]:
        """Where it stands, as JSON can hold it."""
        return [each.place() for each in (self.variance, *self.means)]

    def go_on(self, place: list[list[float]]) -> None:
        """Stand where another stood."""
        for each, own in zip((self.variance, *self.means), place, strict=True):
            each.go_on(own)


class Tally:
    """How well labels were predicted over the whole session: variance-weighted R², as `bci_adapt.metrics.r2`."""

    def __init__(self, n_outputs: int) -> None:
        self.sums = [[0.0, 0.0, 0.0, 0.0] for _ in range(n_outputs)]  # labels; their mean; squares about it; of errors

    def add(self, prediction: list[float], label: list[float]) -> None:
        """One more label, NaN where an output has none, and what was predicted before it."""
        for own, value, wanted in zip(self.sums, prediction, label, strict=True):
            if wanted == wanted:
                own[0] += 1.0
                off = wanted - own[1]
                own[1] += off / own[0]
                own[2] += off * (wanted - own[1])
                own[3] += (value - wanted) ** 2

    @property
    def r2(self) -> float | None:
        """1 − errors / variance; None before labels vary."""
        total = sum(own[2] for own in self.sums)
        return 1.0 - sum(own[3] for own in self.sums) / total if total > 0.0 else None


class Watch:
    """The guards at work beside one driver."""

    def __init__(self, guards: Guards, driver: Driver, bin_s: float) -> None:
        self.guards, self._driver, self.bin_s = guards, driver, bin_s
        far = (guards.range or math.inf) * driver.label_scale
        self._low, self._high = (driver.label_mean - far).tolist(), (driver.label_mean + far).tolist()
        self._mean, self._scale = driver.label_mean.tolist(), driver.label_scale.tolist()
        self.error, self.cost = self._begin_errors()
        self._every = max(1, round(1.0 / bin_s / _PARTS))
        self._parts = max(1, round(1.0 / bin_s / self._every))
        self.begin_updates()

    def in_range(self, prediction: list[float]) -> bool:
        """Whether a prediction is finite and within its range."""
        for value, low, high in zip(prediction, self._low, self._high, strict=True):
            if not low <= value <= high or value in _INFINITE:
                return False
        return True

    def far(self, prediction: np.ndarray) -> float:
        """How far a prediction is from the mean of the labels, in their standard deviations."""
        return float(np.max(np.abs(prediction - self._driver.label_mean) / self._driver.label_scale))

    def squared_error(self, prediction: list[float], label: list[float]) -> float:
        """The mean over the outputs that have a label, in units of their variance; NaN where none has."""
        total, n = 0.0, 0
        for value, wanted, scale in zip(prediction, label, self._scale, strict=True):
            if wanted == wanted:
                off = (value - wanted) / scale
                total, n = total + off * off, n + 1
        return total / n if n else math.nan

    def _begin_errors(self) -> tuple[Rolling, Rolling]:
        n = self.guards.error_s / self.bin_s
        return Rolling(n), Rolling(n)

    def errs(self, error: float, label: list[float]) -> bool:
        """Take in the squared error of a prediction, and its label; whether errors are too large."""
        self.error.add(error)
        self.cost.add(self.squared_error(self._mean, label))
        enough = self.error.n * self.bin_s >= 0.5 * self.guards.error_s
        return self.guards.error is not None and enough and not self.relative_error <= self.guards.error

    @property
    def relative_error(self) -> float:
        """The rolling error, as a multiple of what predicting the mean would cost; NaN before the first label."""
        return self.error.mean / max(1.0, self.cost.mean) if self.error.n else math.nan

    def moves_too_far(self) -> bool:
        """Look at the part of the weights whose turn it is, once a bin; whether they moved too far within a second."""
        if self.guards.update is None or self._driver.bin % self._every:
            return False
        part = (self._driver.bin // self._every) % self._parts
        moved = norm = 0.0
        for array, kept in zip(self._driver.watched(), self._kept, strict=True):
            size = -(-array.size // self._parts)
            own = slice(part * size, (part + 1) * size)
            now, before = array.reshape(-1)[own], kept[own]
            before -= now
            moved += float(np.dot(before, before))
            norm += float(np.dot(now, now))
            before[:] = now
        self._moved[part], self._norm[part] = moved, norm
        return not self.update_size <= self.guards.update

    @property
    def update_size(self) -> float:
        """How far weights moved within the last second, as a share of their norm."""
        norm = sum(self._norm)
        return math.sqrt(sum(self._moved) / norm) if norm > 0.0 else 0.0

    def begin_updates(self) -> None:
        """Look at updates from the weights of now on."""
        self._kept = [array.reshape(-1).copy() for array in self._driver.watched()]
        self._moved, self._norm = [0.0] * self._parts, [0.0] * self._parts

    def begin_anew(self) -> None:
        """Forget what was seen: other weights predict from here on."""
        self.error, self.cost = self._begin_errors()
        self.begin_updates()

    def place(self) -> list[Any]:
        """Where it stands, as JSON can hold it, but for updates, which are looked at anew."""
        return [self.error.place(), self.cost.place()]

    def go_on(self, place: list[Any]) -> None:
        """Stand where another stood."""
        self.begin_updates()
        self.error.go_on(place[0])
        self.cost.go_on(place[1])


class Canary:
    """The same decoder, taught by the same labels, whose every bin has its channels in another random order: no neuron
    tells it of the movement. Where it explains half of what the decoder does, labels reach predictions by another way.
    """

    def __init__(self, driver: Driver, guards: Guards, bin_s: float, seed: int = 0) -> None:
        self.driver = driver
        self._random = np.random.default_rng([seed, 0xCA9A])
        self._counts = np.zeros(driver.decoder.n_features_in_)
        self._guards, self._bin_s, n = guards, bin_s, guards.canary_s / bin_s
        self.error, self.decoders, self._spread = Rolling(n), Rolling(n), Spread(driver.decoder.n_outputs_, n)

    def forward(self, counts: np.ndarray, reset: bool) -> np.ndarray:
        """Its prediction (n_outputs,) of a bin of counts."""
        self._counts[:] = counts
        self._random.shuffle(self._counts)
        self.driver.overdue(self.driver.bin - 1 - self.driver.wait)
        self.driver.work()
        return self.driver.forward(self._counts, reset)

    def sings(self, own: float, decoders: float, label: list[float]) -> bool:
        """Take in the squared errors of both, and the scaled label; whether the canary explains as much."""
        self._spread.add(label)
        self.error.add(own)
        self.decoders.add(decoders)
        if self.error.n * self._bin_s < 0.5 * self._guards.canary_s:
            return False
        varies = self._spread.variance.mean
        explains, decoder_explains = varies - self.error.mean, varies - self.decoders.mean
        return explains > _CANARY_SAYS * varies and explains > _AS_WELL * decoder_explains

    def place(self) -> dict[str, Any]:
        """Where it stands, as JSON can hold it, but for the arrays of its decoder."""
        errors = [self.error.place(), self.decoders.place(), self._spread.place()]
        return {"driver": self.driver.place(), "random": self._random.bit_generator.state, "errors": errors}

    def go_on(self, place: Mapping[str, Any]) -> None:
        """Stand where another canary of the same arrays stood."""
        self.driver.go_on(place["driver"])
        self._random.bit_generator.state = copy.deepcopy(place["random"])
        for each, own in zip((self.error, self.decoders, self._spread), place["errors"], strict=True):
            each.go_on(own)
