"""Job: trained networks and one way of learning → how well it adapts, at its own tuned rate and at the shared one."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bci_adapt.ground.storage import json_safe, write_text
from bci_adapt.learning import online
from bci_adapt.learning.cells.base import Network, cell
from bci_adapt.paper.jobs.task_streams import FAILED, Steps, method_learner, scores, squares

_BLOCK = 100  # bins a point of a learning curve is the mean of
_SMALLEST_RATE, _LARGEST_RATE = 1e-8, 1e2
_COARSE = (0, -2, 2, -4)  # factors from the first rate, in the order in which they are tried


def run(parameters: dict[str, Any], inputs: dict[str, Path], out: Path) -> None:
    """Choose a rate on the tuning seeds, then adapt the networks of the other seeds with it and with the shared rate.

    Parameters: `cell`, `n_hidden`, `steps`, `label_delay`, `n_seeds` (the first replicas; the others are for tuning),
    `method`, `shared_rate`, `factor` between the rates tried and `max_points` of them; 0 leaves the tuning out. The
    rate chosen has the smallest held-out error, averaged over the tuning seeds, among those that `Search` tries.
    Input `networks` is what a task_pretrain job wrote.

    Writes JSON: ``surface`` of the rates tried; ``tuned`` and ``shared``: ``rate``, per seed the errors of
    `task_streams.scores`, ``failed``, ``weight_change``, ``curve``; ``interior``; ``decay`` used; ``us_per_bin``.
    """
    with np.load(inputs["networks"], allow_pickle=False) as stored:
        networks = {name: stored[name] for name in stored.files}
    n_seeds, shared, surface = parameters["n_seeds"], parameters["shared_rate"], []
    network = Network(cell(parameters["cell"]), networks["x"].shape[2], parameters["n_hidden"], networks["y"].shape[2])
    decay = float(np.median(networks["lambda_star"]))
    test, tuning = slice(0, n_seeds), slice(n_seeds, None)
    rates = Search(shared, parameters["factor"], parameters["max_points"])
    while (rate := rates.wanted()) is not None:
        found = adapt(network, networks, parameters, rate, decay, tuning)
        error = np.where(found["failed"], np.inf, found["held_out"])
        rates.score(rate, float(error.mean()))
        surface.append({"rate": rate, "held_out": found["held_out"], "failed": found["failed"]})
    at_shared = adapt(network, networks, parameters, shared, decay, test)
    best = rates.best
    at_best = None
    if best is not None:
        at_best = at_shared if best == shared else adapt(network, networks, parameters, best, decay, test)
    result = {
        "surface": surface, "tuned": at_best, "shared": at_shared, "interior": rates.interior,
        "decay": decay if parameters["method"]["rule_constants"].get("decay") == "star" else None,
    }  # fmt: skip
    write_text(out, json.dumps(json_safe(result), allow_nan=False))


class Search:
    """Rates around a first one: a coarse net, then a fine one around the best of it.

    Errors over rates have local minima: where learning is too fast to help, one rate may do less harm than its
    neighbours. So rates two factors apart are tried first, from four factors below `first` to two above it, and on past
    an end while the best lies there; then those a factor apart, until the best has two worse ones on either side or
    `max_points` are tried.
    """

    def __init__(self, first: float, factor: float, max_points: int):
        self.first, self.factor, self.max_points = first, factor, max_points
        self.scores: dict[float, float] = {}
        self.places: dict[int, float] = {}  # rates by factors from the first one

    def wanted(self) -> float | None:
        """The next rate to try; None when the search is over."""
        if len(self.places) >= self.max_points:
            return None
        place = next((place for place in self._next() if place not in self.places and self._within(place)), None)
        return None if place is None else self.places.setdefault(place, self._rate(place))

    def _next(self) -> list[int]:
        if missing := [place for place in _COARSE if place not in self.places and self._within(place)]:
            return missing
        tried = sorted(self.places)
        # Where every rate failed the smallest is the best guess.
        at = min(tried, key=lambda place: self.scores[self.places[place]])
        beyond = [at - 2] * (at == tried[0]) + [at + 2] * (at == tried[-1])
        return [*beyond, at - 1, at + 1, at - 2, at + 2]

    def _rate(self, place: int) -> float:
        return self.first * self.factor**place

    def _within(self, place: int) -> bool:
        return 0.999 * _SMALLEST_RATE <= self._rate(place) <= 1.001 * _LARGEST_RATE

    def score(self, rate: float, error: float) -> None:
        self.scores[rate] = error

    @property
    def best(self) -> float | None:
        """The rate of the smallest error; None where none was finite."""
        finite = {rate: error for rate, error in self.scores.items() if np.isfinite(error)}
        return min(finite, key=lambda rate: finite[rate]) if finite else None

    @property
    def interior(self) -> bool:
        """Whether larger and smaller rates than the best were tried."""
        best = self.best
        return best is not None and min(self.scores) < best < max(self.scores)


def adapt(
    network: Network,
    networks: dict[str, np.ndarray],
    parameters: dict[str, Any],
    rate: float,
    decay: float,
    which: slice,
) -> dict[str, Any]:
    """Errors and more of the replicas `which`, adapted at this rate."""
    steps, method = Steps(**parameters["steps"]), parameters["method"]
    still = "" if method["drift"] else "_still"
    x, y = networks[f"x{still}"][which], networks[f"y{still}"][which]
    W, C = (networks[f"{name}{'0' if method['start'] == 'random' else ''}"][which] for name in ("W", "C"))
    learner = method_learner(network, method, rate, decay)
    delay, rounded = parameters["label_delay"], method["precision"] == "float32"
    with np.errstate(over="ignore", invalid="ignore"):
        # Traces, influence and second moments are warmed on the end of the old stream, at weights held.
        warming = replace(learner, optimizer=replace(learner.optimizer, learning_rate=0.0))
        state = online.start(warming, W, C)
        warm = slice(0, steps.warm)
        _, state = _run(state, x[:, warm], y[:, warm], delay, rounded)
        state = online.handed_over(state, learner, "warm-up")
        stream = slice(steps.warm, steps.warm + steps.adapt)
        began = time.perf_counter()
        predictions, state = _run(state, x[:, stream], y[:, stream], delay, rounded)
        seconds = time.perf_counter() - began
        after = state.arrays
        held, _ = online.run(online.handed_over(state, warming, "held out"), x[:, steps.warm + steps.adapt :])
        error = squares(y[:, steps.warm :], np.concatenate([predictions, held], axis=1))
        found: dict[str, Any] = scores(error, y[:, steps.warm :], steps)
        lost = [~(np.isfinite(found[name]) & (np.array(found[name]) < FAILED)) for name in ("last", "held_out")]
        moved = np.linalg.norm((after["W"] - W).reshape(len(W), -1), axis=1)
        change = moved / np.linalg.norm(W.reshape(len(W), -1), axis=1)
    n_blocks = steps.adapt // _BLOCK
    blocks = error[:, : n_blocks * _BLOCK].reshape(len(W), n_blocks, -1)
    labelled = np.isfinite(y[:, steps.warm :][:, : n_blocks * _BLOCK]).all(axis=2).reshape(blocks.shape)
    curve = np.where(labelled, blocks, 0.0).sum(axis=2) / np.maximum(labelled.sum(axis=2), 1)
    return {
        **found, "rate": rate, "failed": (lost[0] | lost[1]).tolist(), "weight_change": change.tolist(),
        "curve": curve.tolist(), "us_per_bin": 1e6 * seconds / predictions[..., 0].size,
    }  # fmt: skip


def _run(state: online.State, x: np.ndarray, y: np.ndarray, delay: int, rounded: bool):
    """`online.run` with labels `delay` bins late; `rounded` keeps everything that a run carries on in float32."""
    if not rounded:
        return online.run(state, x, y, arrives=np.arange(x.shape[1]) + delay, in_place=True)
    predictions = np.empty(y.shape)
    for t in range(x.shape[1]):
        now = slice(t, t + 1)
        predictions[:, now], state = online.run(state, x[:, now], y[:, now], arrives=np.array([delay]), in_place=True)
        for array in state.arrays.values():
            if array.dtype == float:
                array[:] = array.astype(np.float32)
    return predictions, state
