"""Job: a task and a cell → networks trained before the change, what they score frozen, and the ceilings beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bci_adapt.ground.storage import atomic_path
from bci_adapt.learning import online
from bci_adapt.learning.bptt import Pretraining, pretrain
from bci_adapt.learning.cells.base import Network, cell
from bci_adapt.learning.credit.base import rule
from bci_adapt.learning.diagnostics import jacobian_diagonals
from bci_adapt.learning.optimizers import Schedule, optimizers
from bci_adapt.paper.jobs.task_streams import Steps, features, frozen, lagged, ridge, scores, squares, streams
from bci_adapt.paper.tasks.base import task as make_task

_DIAGONAL_BINS = 200


def run(parameters: dict[str, Any], inputs: dict[str, Path], out: Path) -> None:
    """Train a network for every seed on the stream before its change, and one, the oracle, on a stream that is
    changed all along.

    Parameters: `task` {name, constants}, `cell`, `n_hidden`, `seeds`, `steps`, `training`, `oracle` (whether).

    Writes an npz. Streams from `warm` bins before the change on: ``x, y`` with the change, ``x_still, y_still``
    without. Weights ``W, C`` trained and ``W0, C0`` untrained, all with a replica for each seed. ``lambda_star`` (S,),
    the median of |D_ii| over the last bins before the change. For each of ``before`` (trained, no change), ``frozen``
    (trained, change), ``oracle``: errors ``<name>_last``, ``_area``, ``_held_out`` (S,). For ``reservoir`` (ridge on
    the untrained network) and ``linear`` (ridge on lagged inputs), fitted to the adaptation: ``_held_out``.
    """
    task = make_task(parameters["task"]["name"], **parameters["task"]["constants"])
    steps, seeds, training = Steps(**parameters["steps"]), parameters["seeds"], parameters["training"]
    x, y = streams(task, seeds, steps.total, steps.pretrain)
    network = Network(cell(parameters["cell"]), x.shape[2], parameters["n_hidden"], y.shape[2])
    initial = [network.initial_weights(seed) for seed in seeds]
    untrained = [np.stack(part) for part in zip(*initial, strict=True)]
    before = slice(0, steps.pretrain)
    W, C = _trained(network, x[:, before], y[:, before], training, untrained, seeds, task.label_delay)

    later = slice(steps.pretrain - steps.warm, steps.total)
    x_still, y_still = (part[:, later] for part in streams(task, seeds, steps.total, steps.total))
    stored: dict[str, Any] = {
        "x": x[:, later], "y": y[:, later], "x_still": x_still, "y_still": y_still,
        "W": W, "C": C, "W0": untrained[0], "C0": untrained[1],
    }  # fmt: skip
    tested = {"before": (W, C, x_still, y_still), "frozen": (W, C, stored["x"], stored["y"])}
    if parameters["oracle"]:
        # Changed from its first bin on; the bins that are scored lie behind those it is trained on.
        x_other, y_other = (part[:, before] for part in streams(task, seeds, steps.total, 0))
        oracle = _trained(network, x_other, y_other, training, untrained, seeds, task.label_delay)
        tested["oracle"] = (*oracle, stored["x"], stored["y"])
    for name, (W_of, C_of, x_of, y_of) in tested.items():
        error = squares(y_of, frozen(network, W_of, C_of, x_of))[:, steps.warm :]
        stored |= {f"{name}_{part}": v for part, v in scores(error, y_of[:, steps.warm :], steps).items()}
    fit = slice(steps.warm, steps.warm + steps.adapt)
    for name in ("reservoir", "linear"):
        found = []
        for s in range(len(seeds)):
            x_of, y_of = stored["x"][s], stored["y"][s]
            seen = features(network, untrained[0][s], x_of) if name == "reservoir" else lagged(x_of)
            found.append(squares(y_of[None], ridge(seen, y_of, fit)[None])[0, steps.warm :])
        stored[f"{name}_held_out"] = scores(np.stack(found), stored["y"][:, steps.warm :], steps)["held_out"]
    recent = slice(max(0, steps.warm - _DIAGONAL_BINS), steps.warm)
    diagonals = [jacobian_diagonals(network, W[s], stored["x"][s, recent]) for s in range(len(seeds))]
    stored["lambda_star"] = [float(np.median(np.abs(each))) for each in diagonals]
    with atomic_path(out) as temporary, open(temporary, "wb") as handle:
        np.savez(handle, **{name: np.asarray(value) for name, value in stored.items()})  # type: ignore[arg-type]


def _trained(network: Network, x, y, training: dict[str, Any], initial, seeds, delay: int):
    """W and C (S, …) after training on x (S, n_bins, m), y; labels come `delay` bins late where training is online."""
    if training["how"] == "none":
        return initial[0].copy(), initial[1].copy()
    if training["how"] == "bptt":
        settings = Pretraining(
            n_updates=training["updates"], window_bins=training["window"], burn_in_bins=training["burn_in"],
            learning_rate=training["learning_rate"], input_dropout=training["input_dropout"],
            gain_jitter=0.0, offset_jitter=0.0,
        )  # fmt: skip
        n_bins = x.shape[1]
        no_reset, seen = np.zeros(n_bins, bool), np.ones(n_bins, bool)
        made = []
        for s, seed in enumerate(seeds):
            weight = np.isfinite(y[s]).astype(float)
            weights = initial[0][s], initial[1][s]
            made.append(pretrain(network, [x[s]], [y[s]], [weight], [seen], [no_reset], seed, settings, weights))
        return np.stack([W for W, _ in made]), np.stack([C for _, C in made])
    schedule = Schedule("cosine", float(x.shape[1]), floor=0.01)
    learner = online.Learner(
        network,
        rule(training["rule"], **training["rule_constants"]),
        optimizers()[training["optimizer"]](learning_rate=training["learning_rate"], schedule=schedule),
    )
    arrives = np.arange(x.shape[1]) + delay
    with np.errstate(over="ignore", invalid="ignore"):
        _, state = online.run(online.start(learner, *initial, seeds=seeds), x, y, arrives=arrives)
    return state.arrays["W"], state.arrays["C"]
