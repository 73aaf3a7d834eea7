"""What the jobs of the synthetic tasks share: streams cut into parts, errors, and networks that are run frozen."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from bci_adapt.learning import online
from bci_adapt.learning.bptt import trajectory
from bci_adapt.learning.cells.base import Network
from bci_adapt.learning.credit.base import rule
from bci_adapt.learning.optimizers import optimizer
from bci_adapt.paper.tasks.base import Task

FAILED = 1e3  # an error above so many variances of the target counts as diverged
N_LAGS, PENALTY = 10, 1e-3  # of the linear readouts


class Steps(NamedTuple):
    """Lengths in bins: trained on before the change, warmed up before it with weights held, adapted to after it, the
    last part of that which is scored, and a part behind it through which weights are held.
    """

    pretrain: int
    warm: int
    adapt: int
    score: int
    held_out: int

    @property
    def total(self) -> int:
        return self.pretrain + self.adapt + self.held_out

    @property
    def after(self) -> int:
        return self.adapt + self.held_out


def streams(task: Task, seeds: list[int], n_steps: int, change: int) -> tuple[np.ndarray, np.ndarray]:
    """x (S, n_steps, n_inputs) and y (S, n_steps, n_outputs), a stream for each seed."""
    made = [task.stream(n_steps, seed, change)[:2] for seed in seeds]
    return np.stack([x for x, _ in made]), np.stack([y for _, y in made])


def scores(error: np.ndarray, y: np.ndarray, steps: Steps) -> dict[str, list[float]]:
    """Per replica, mean squared error over the target's variance after the change: ``last`` bins of the adaptation,
    all of it (``area`` under the learning curve), and ``held_out``.

    `error` is (S, n_bins) of the bins after the change, summed over outputs, NaN without a label; y (S, n_bins, M).
    """
    spread = np.nansum(np.nanvar(y, axis=1), axis=1)
    parts = {
        "last": slice(steps.adapt - steps.score, steps.adapt),
        "area": slice(0, steps.adapt),
        "held_out": slice(steps.adapt, steps.after),
    }
    with np.errstate(over="ignore", invalid="ignore"):
        return {name: (np.nanmean(error[:, where], axis=1) / spread).tolist() for name, where in parts.items()}


def squares(y: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Squared error (S, n_bins), summed over outputs; NaN without a label, infinite where a prediction is no number."""
    with np.errstate(over="ignore", invalid="ignore"):
        apart = ((y - predictions) ** 2).sum(axis=2)
    lost = ~np.isfinite(predictions).all(axis=2) & np.isfinite(y).all(axis=2)
    return np.where(lost, np.inf, apart)


def frozen(network: Network, W: np.ndarray, C: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Predictions (S, n_bins, M) over x (S, n_bins, m) of networks W (S, …), C that do not learn, from a zero state."""
    bias = network.output_bias
    return np.stack(
        [features(network, W[s], x[s]) @ np.delete(C[s], bias, axis=1).T + C[s][:, bias] for s in range(len(W))]
    )


def features(network: Network, W: np.ndarray, x: np.ndarray) -> np.ndarray:
    """What the readout sees (n_bins, readout_width − 1), without the constant, of one network over x (n_bins, m)."""
    _, states, _ = trajectory(network, W, x[:, None])
    seen = [states[1:, slot, 0] for slot in network.cell.features]
    return np.concatenate([*seen, *([x] if network.cell.skip else [])], axis=1)


def lagged(x: np.ndarray) -> np.ndarray:
    """x (n_bins, m) and its last N_LAGS − 1 bins side by side."""
    padded = np.concatenate([np.zeros((N_LAGS - 1, x.shape[1])), x])
    return np.concatenate([padded[N_LAGS - 1 - lag : len(padded) - lag] for lag in range(N_LAGS)], axis=1)


def ridge(seen: np.ndarray, y: np.ndarray, train: slice) -> np.ndarray:
    """Predictions (n_bins, M) of a ridge regression on `seen` (n_bins, width), fitted to labelled bins of `train`."""
    known = np.isfinite(y[train]).all(axis=1)
    inside, target = seen[train][known], y[train][known]
    centre, spread = inside.mean(axis=0), np.maximum(inside.std(axis=0), 1e-12)
    Z = (inside - centre) / spread
    gram = Z.T @ Z + PENALTY * len(Z) * np.eye(Z.shape[1])
    weights = np.linalg.solve(gram, Z.T @ (target - target.mean(axis=0)))
    return (seen - centre) / spread @ weights + target.mean(axis=0)


def method_learner(network: Network, method: dict[str, Any], rate: float, decay: float | None = None) -> online.Learner:
    """The learner that a method of a figure's config names; `decay` replaces a decay given as ``"star"``."""
    constants = dict(method["rule_constants"])
    if constants.get("decay") == "star":
        constants["decay"] = decay
    return online.Learner(
        network,
        rule(method["rule"], **constants),
        optimizer(method["optimizer"], learning_rate=rate, **method["optimizer_constants"]),
        group_rates=method["group_rates"],
        learns=None if method["learns"] is None else tuple(method["learns"]),
    )
