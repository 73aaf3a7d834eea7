"""Jobs: a stream and a network that learns it online, or a rival of the field → prequential scores."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bci_adapt import online
from bci_adapt.cells.base import Network, cell
from bci_adapt.jobs.task_adapt import Search
from bci_adapt.jobs.task_streams import features, method_learner
from bci_adapt.results import json_safe
from bci_adapt.storage import write_text
from bci_adapt.streams.base import Made, Rival, Stream, prequential, scored, softmax
from bci_adapt.streams.base import stream as make_stream
from bci_adapt.streams.rivals import all_rivals


def run(parameters: dict[str, Any], inputs: dict[str, Path], out: Path) -> None:
    """Choose a rate on the earlier part, then learn what follows from untrained weights, with it and the shared rate.

    Parameters: `stream` {name, constants}, `delay`, `earlier` and `n_bins` (of the part that is scored), `cell`,
    `n_hidden`, `seeds`, `tuning_seeds`, `method`, `shared_rate`, `factor`, `max_points` (as of task_adapt), `origin`.

    Writes JSON: ``surface`` of the rates tried, ``interior``; ``tuned`` and ``shared``: ``rate``, per seed the numbers
    of `bci_adapt.streams.base.Scores`, ``us_per_bin``.
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
    grid, surface = _found(kind, parameters).grid, []
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


def network_predictions(
    loss: str, made: Sequence[Made], seeds: Sequence[int], parameters: dict[str, Any], rate: float
) -> np.ndarray:
    """What networks, one a seed, predict while they learn (S, n_bins, n_outputs): probabilities where it is classes."""
    network = _network(parameters, made[0])
    learner = dataclasses.replace(method_learner(network, parameters["method"], rate), loss=loss)
    weights = [np.stack(part) for part in zip(*(network.initial_weights(seed) for seed in seeds), strict=True)]
    x, y = np.stack([each.x for each in made]), np.stack([each.y for each in made])
    arrives = np.arange(x.shape[1]) + parameters["delay"]
    with np.errstate(over="ignore", invalid="ignore"):
        told, _ = online.run(online.start(learner, *weights, seeds=seeds), x, y, arrives=arrives, in_place=True)
        return softmax(told) if loss == "cross_entropy" else told


def _learned(kind: Stream, made: list[Made], seeds: list[int], parameters: dict[str, Any], rate: float):
    began = time.perf_counter()
    told = network_predictions(kind.loss, made, seeds, parameters, rate)
    return _table(kind, made, told, rate, time.perf_counter() - began)


def _found(kind: Stream, parameters: dict[str, Any]) -> Rival:
    return all_rivals(kind, parameters["cell"], parameters["n_hidden"], parameters["delay"])[parameters["rival"]]


def rival_predictions(kind: Stream, made: Made, seed: int, parameters: dict[str, Any], value: float) -> np.ndarray:
    """What one rival predicts (n_bins, n_outputs)."""
    found, seen = _found(kind, parameters), {"x": made.x, **made.seen}
    if found.sees == "states":
        network = _network(parameters, made)
        seen["states"] = features(network, network.initial_weights(seed)[0], made.x)
    predictor, rows = found.make(value), seen[found.sees]
    with np.errstate(over="ignore", invalid="ignore"):
        return prequential(predictor, rows, made.y, parameters["delay"])


def _rivalled(kind: Stream, made: list[Made], seeds: list[int], parameters: dict[str, Any], value: float):
    began, told = time.perf_counter(), []
    random = kind.seeded or _found(kind, parameters).sees == "states"
    for each, seed in zip(made, seeds, strict=True):
        told.append(told[0] if told and not random else rival_predictions(kind, each, seed, parameters, value))
    seconds = (time.perf_counter() - began) * (1 if random else len(seeds))
    return _table(kind, made, np.stack(told), value, seconds)


def _table(kind: Stream, made: list[Made], told: np.ndarray, rate: float, seconds: float) -> dict[str, Any]:
    found = [dataclasses.asdict(scored(kind.loss, each.y, one)) for each, one in zip(made, told, strict=True)]
    columns: dict[str, Any] = {name: [row[name] for row in found] for name in found[0]}
    return columns | {"rate": rate, "us_per_bin": 1e6 * seconds / told[..., 0].size}
