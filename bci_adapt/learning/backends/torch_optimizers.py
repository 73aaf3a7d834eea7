"""How gradients move weights in torch, by the counterpart that an optimiser brings (`Optimizer.torch_counterpart`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bci_adapt.learning.optimizers import GROUPS
from bci_adapt.learning.schedules import Schedule

if TYPE_CHECKING:
    from bci_adapt.learning.learner import Learner


class Counterpart(NamedTuple):
    """An optimiser's formulas, for all replicas at once.

    Attributes
    ----------
    update : (θ (S, R, w), its gradient g, its arrays (S, R, n_slots, w), rate (S, 1, w), number of the update
        (S, 1, 1)) → θ and arrays.
    rescale : what the gradient of each group is multiplied by: (Σ θ² (S, n_groups), Σ g², number of weights, arrays
        (S, n_groups, n_group_slots)) → factors (S, n_groups) and arrays. None where it leaves them.
    precondition : what is done to the gradient of a whole matrix: (g (S, R, w), rows with a gradient (S, R), parts
        (n_parts, 2), what is kept of it (S, …), number of the update (S, 1, 1)) → g and what is kept. None likewise.
    """

    update: Callable[..., tuple[Tensor, Tensor]]
    rescale: Callable[..., tuple[Tensor, Tensor]] | None = None
    precondition: Callable[..., tuple[Tensor, Tensor]] | None = None


class Descent:
    """The learner's optimiser on its arrays: from gradients to moved weights."""

    def __init__(self, learner: Learner, device: torch.device):
        self.optimizer, self.network, self.device = learner.optimizer, learner.network, device
        counterpart = self.optimizer.torch_counterpart()
        assert counterpart is not None  # `Learner` refuses an optimiser without one
        self.counterpart = counterpart
        rate_W, rate_C = learner.rates()
        self.rates = {"W": self._tensor(rate_W), "C": self._tensor(rate_C)}
        groups = zip("WC", learner.groups(), strict=True)
        self.groups = {name: torch.tensor(numbers, device=device) for name, numbers in groups}
        self.learning_groups = self._tensor(learner.multipliers() != 0.0)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.tensor(array, dtype=torch.float64, device=self.device)

    def move(
        self, now: dict[str, Tensor], gradients: dict[str, Tensor], rows: Mapping[str, Tensor], number: np.ndarray
    ) -> None:
        """Change W and C, and the optimiser's arrays, in `now`.

        gradients : of W (S, R, w) – where it learns – and of C (S, M, readout_width).
        rows : which rows of each have a gradient, and move.
        number : of this update, of every replica (S,).
        """
        if self.optimizer.gathers:
            self._rescale(now, gradients, rows)
        if self.counterpart.precondition is not None:
            self._precondition(now, gradients, rows, number)
        self._update(now, gradients, rows, number)

    def _rescale(self, now: dict[str, Tensor], gradients: dict[str, Tensor], rows: Mapping[str, Tensor]) -> None:
        """Clip the whole gradient, then scale that of each weight group as the optimiser asks."""
        clip, S = self.optimizer.clip, len(now["W"])
        theta_squares, g_squares, counts = torch.zeros(3, S, len(GROUPS), dtype=torch.float64, device=self.device)
        for name, g in gradients.items():
            there = rows[name][..., None].to(g)
            for total, values in ((theta_squares, now[name]), (g_squares, g), (counts, torch.ones_like(g))):
                total.index_add_(1, self.groups[name], (there * values.square()).sum(1))
        factors = torch.ones_like(counts)
        if clip > 0.0:
            norm = (g_squares * self.learning_groups).sum(1, keepdim=True).sqrt()
            factors = (clip / (norm + 1e-6)).clamp(max=1.0).expand_as(counts)
        if self.counterpart.rescale is not None:
            more, now["opt_groups"] = self.counterpart.rescale(
                theta_squares, g_squares * factors.square(), counts, now["opt_groups"]
            )
            factors = factors * more
        for name, g in gradients.items():
            gradients[name] = g * factors[:, self.groups[name]][:, None]

    def _precondition(
        self, now: dict[str, Tensor], gradients: dict[str, Tensor], rows: Mapping[str, Tensor], number: np.ndarray
    ) -> None:
        """Change the gradient of every matrix as the optimiser asks."""
        assert self.counterpart.precondition is not None
        parts = {"W": self.network.parts(), "C": self.network.readout_parts()}
        split = now["W"].shape[1] * len(parts["W"]) + now["W"].shape[2]
        moments = now["opt_groups"][:, 0]
        kept = {"W": moments[:, :split], "C": moments[:, split:]}
        count = self._tensor(number)[:, None, None]
        for name, g in gradients.items():
            gradients[name], kept[name] = self.counterpart.precondition(g, rows[name], parts[name], kept[name], count)
        now["opt_groups"] = torch.cat([kept["W"], kept["C"]], 1)[:, None]

    def _update(
        self, now: dict[str, Tensor], gradients: Mapping[str, Tensor], rows: Mapping[str, Tensor], number: np.ndarray
    ) -> None:
        count, factor = (self._tensor(v)[:, None, None] for v in (number, pace(self.optimizer.schedule, number)))
        for name, g in gradients.items():
            theta, slots, rate = now[name], now[f"opt_{name}"], factor * self.rates[name]
            shrunk = theta * (1.0 - rate * self.optimizer.weight_decay)
            moved, new = self.counterpart.update(shrunk, g, slots, rate, count)
            now[name] = torch.where(rows[name][..., None], moved, theta)
            now[f"opt_{name}"] = torch.where(rows[name][..., None, None], new, slots)


def pace(schedule: Schedule, t: np.ndarray) -> np.ndarray:
    """Factor on the learning rate at updates t (S,)."""
    since = np.maximum(t - schedule.warm_up, 0.0) / schedule.length
    factor = {
        "constant": np.ones_like(since),
        "exponential": 0.5**since,
        "cosine": schedule.floor + (1.0 - schedule.floor) * 0.5 * (1.0 + np.cos(np.pi * np.minimum(since, 1.0))),
        "inverse_sqrt": (1.0 + since) ** -0.5,
    }[schedule.kind]
    return np.where(t <= schedule.warm_up, t / max(schedule.warm_up, 1.0), factor)
