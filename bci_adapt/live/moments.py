"""Weights of moments that a live decoder can go back to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bci_adapt.errors import InputError
from bci_adapt.ground.text import clean
from bci_adapt.live.drivers import Driver

START, GOOD, CANDIDATE = "start", "good", "candidate"


class Moments:
    """Copies of what learning moves, by name: ``start``, ``good`` (weights after which, for a while, no guard fired),
    ``candidate`` (weights that will be), and those that were named.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._kept: dict[str, dict[str, np.ndarray]] = {}
        for name in (START, GOOD, CANDIDATE):
            self.keep(name)
        self._since = driver.bin

    @property
    def names(self) -> list[str]:
        """Those that can be gone back to."""
        return [name for name in self._kept if name != CANDIDATE]

    def keep(self, name: str) -> None:
        """Keep the weights of now; the arrays of an earlier moment of this name are written again."""
        weights, kept = self._driver.weights(), self._kept.get(name)
        if kept is None:
            self._kept[name] = {key: each.copy() for key, each in weights.items()}
            return
        for key, each in weights.items():
            np.copyto(kept[key], each)

    def look(self, good_bins: int) -> bool:
        """After `good_bins` quiet bins the candidate is good, and the weights of now are the next candidate; whether it
        came to that.
        """
        if self._driver.bin - self._since < good_bins:
            return False
        self._kept[GOOD], self._kept[CANDIDATE] = self._kept[CANDIDATE], self._kept[GOOD]
        self.keep(CANDIDATE)
        self._since = self._driver.bin
        return True

    def require(self, name: str) -> None:
        """`InputError` for a moment that there is not."""
        if name not in self.names:
            raise InputError(f"roll_back: expected one of {', '.join(map(clean, self.names))}, got {clean(name)}")

    def bring_back(self, name: str) -> None:
        """Weights as they were at a moment; they are the candidate again."""
        self._driver.forget()
        self._driver.restore(self._kept[name])
        self.begin_anew()

    def begin_anew(self) -> None:
        """The weights of now are the candidate."""
        self.keep(CANDIDATE)
        self._since = self._driver.bin

    def arrays(self) -> dict[str, np.ndarray]:
        """All that is kept, by moment and name."""
        return {f"{name}/{key}": each for name, kept in self._kept.items() for key, each in kept.items()}

    def place(self) -> dict[str, Any]:
        """The moments there are, as JSON can hold it."""
        return {"names": list(self._kept), "since": self._since}

    def go_on(self, place: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Hold the moments of another."""
        names, since = place["names"], place["since"]
        self._since = int(since)
        self._kept = {name: {key: arrays[f"{name}/{key}"] for key in self._driver.weights()} for name in names}
