"""Jobs: a stream and a network that learns it online, or a rival of the field → prequential scores."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from bci_adapt.ground.storage import json_safe, write_text
from bci_adapt.learning import online
from bci_adapt.learning.cells.base import Network, cell
from bci_adapt.paper.jobs.task_adapt import Search
from bci_adapt.paper.jobs.task_streams import features, method_learner
from bci_adapt.paper.streams.base import Made, Rival, Scores, Stream, prequential, scored, softmax
from bci_adapt.paper.streams.base import stream as make_stream
from bci_adapt.paper.streams.rivals import all_rivals

_CHUNK = 10_000  # bins that are worked off at a time: labels of many classes take memory


def run(parameters: dict[str, Any], inputs: dict[str, Path], out: Path) -> None:
    """Choose a rate on the earlier part, then learn what follows from untrained weights, with it and the shared rate.

    Parameters: `stream` {name, constants}, `delay`, `earlier` and `n_bins` (of the part that is scored), `cell`,
    `n_hidden`, `seeds`, `tuning_seeds`, `method`, `shared_rate`, `factor`, `max_points` (as of task_adapt).

    Writes JSON: ``surface`` of the rates tried, ``interior``; ``tuned`` and ``shared``: ``rate``, per seed the numbers
    of `bci_adapt.paper.streams.base.Scores`, ``us_per_bin``.
    """
    kind = make_stream(parameters["stream"]["name"], **parameters["stream"]["constants"])
    rates, surface = Search(parameters["shared_rate"], parameters["factor"], parameters["max_points"]), []
    tuning, test = _parts(kind, parameters, tuning=True), _parts(kind, parameters, tuning=False)
    while (rate := rates.wanted()) is not None:
        found = _learned(kind, tuning, parameters["tuning_seeds"], parameters, rate)
        rates.score(rate, float(np.mean(np.where(found["failed"], np.inf, found["loss"]))))
        surface.append({"rate": rate, "loss": found["loss"], "failed": found["failed"]})
    shared = _learned(kind, test, parameters["seeds"], parameters, parameters["shared_rate"])
    tuned = None
    if rates.best is not None:
        at_shared = rates.best == parameters["shared_rate"]
        tuned = shared if at_shared else _learned(kind, test, parameters["seeds"], parameters, rates.best)
    result = {"surface": surface, "interior": rates.interior, "tuned": tuned, "shared": shared}
    write_text(out, json.dumps(json_safe(result), allow_nan=False))


def rival(parameters: dict[str, Any], inputs: dict[str, Path], out: Path) -> None:
    """Choose a constant of the rival `rival` on the earlier part, then run it on what follows.

    Parameters and result as of `run`; a rival has no shared rate. One that nothing random enters is run once.
    """
    kind = make_stream(parameters["stream"]["name"], **parameters["stream"]["constants"])
    tuning, test = _parts(kind, parameters, tuning=True), _parts(kind, parameters, tuning=False)
    grid = list(_found(kind, parameters).grid)
    surface = []
    for value in grid if len(grid) > 1 else ():
        scores = _rivalled(kind, tuning, parameters["tuning_seeds"], parameters, value)
        error = np.mean(np.where(scores["failed"], np.inf, scores["loss"]))
        surface.append({"rate": value, "loss": float(error), "failed": scores["failed"]})
    best = min(surface, key=lambda point: point["loss"])["rate"] if surface else grid[0]
    tuned = _rivalled(kind, test, parameters["seeds"], parameters, best)
    interior = min(grid) < best < max(grid) if surface else None
    result = {"surface": surface, "interior": interior, "tuned": tuned, "shared": None}
    write_text(out, json.dumps(json_safe(result), allow_nan=False))


def _parts(kind: Stream, parameters: dict[str, Any], tuning: bool) -> list[Made]:
    """The earlier part for every tuning seed, or what follows it for every seed; one stream serves all if unseeded."""
    earlier, delay = parameters["earlier"], parameters["delay"]
    seeds = parameters["tuning_seeds" if tuning else "seeds"]
    n_bins = earlier if tuning else earlier + parameters["n_bins"]
    part = slice(None, earlier) if tuning else slice(earlier, None)
    made = []
    for seed in seeds if kind.seeded else seeds[:1]:
        x, y, seen = kind.stream(n_bins, seed, earlier, delay)
        made.append(Made(x[part], y[part], {name: rows[part] for name, rows in seen.items()}))
    return made * (1 if kind.seeded else len(seeds))


def _network(parameters: dict[str, Any], made: Made) -> Network:
    return Network(cell(parameters["cell"]), made.x.shape[1], parameters["n_hidden"], made.y.shape[1])


def network_predictions(loss: str, made: Made, seed: int, parameters: dict[str, Any], rate: float) -> np.ndarray:
    """What an untrained network predicts while it learns (n_bins, n_outputs): of classes, probabilities."""
    network = _network(parameters, made)
    learner = dataclasses.replace(method_learner(network, parameters["method"], rate), loss=loss)
    state = online.start(learner, *network.initial_weights(seed), seeds=[seed])
    predictions = np.empty(made.y.shape)
    with np.errstate(over="ignore", invalid="ignore"):
        for begin in range(0, len(predictions), _CHUNK):
            part = slice(begin, begin + _CHUNK)
            arrives = np.arange(len(made.y[part])) + parameters["delay"]
            told, state = online.run(state, made.x[part], made.y[part], arrives=arrives, in_place=True)
            predictions[part] = softmax(told[0]) if loss == "cross_entropy" else told[0]
    return predictions


def _learned(kind: Stream, made: list[Made], seeds: list[int], parameters: dict[str, Any], rate: float):
    began, found = time.perf_counter(), []
    for each, seed in zip(made, seeds, strict=True):
        found.append(scored(kind.loss, each.y, network_predictions(kind.loss, each, seed, parameters, rate)))
    return _table(found, rate, (time.perf_counter() - began) / sum(len(each.y) for each in made))


def _found(kind: Stream, parameters: dict[str, Any]) -> Rival:
    return all_rivals(kind, parameters["cell"], parameters["n_hidden"], parameters["delay"])[parameters["rival"]]


def rival_predictions(kind: Stream, made: Made, seed: int, parameters: dict[str, Any], value: float) -> np.ndarray:
    """What one rival predicts (n_bins, n_outputs)."""
    found, seen = _found(kind, parameters), {"x": made.x, **made.seen}
    if found.sees == "states":
        network = _network(parameters, made)
        seen["states"] = features(network, network.initial_weights(seed)[0], made.x.astype(float))
    predictor, rows = found.make(value), seen[found.sees]
    with np.errstate(over="ignore", invalid="ignore"):
        return prequential(predictor, rows, made.y, parameters["delay"])


def _rivalled(kind: Stream, made: list[Made], seeds: list[int], parameters: dict[str, Any], value: float):
    random = kind.seeded or _found(kind, parameters).sees == "states"
    distinct = list(zip(made, seeds, strict=True))[: None if random else 1]
    began, found = time.perf_counter(), []
    for each, seed in distinct:
        found.append(scored(kind.loss, each.y, rival_predictions(kind, each, seed, parameters, value)))
    seconds = time.perf_counter() - began
    copies = 1 if random else len(seeds)
    return _table(found * copies, value, seconds / sum(len(each.y) for each, _ in distinct))


def _table(found: list[Scores], rate: float, s_per_bin: float) -> dict[str, Any]:
    rows = [dataclasses.asdict(each) for each in found]
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in rows[0]}
    return columns | {"rate": rate, "us_per_bin": 1e6 * s_per_bin}
