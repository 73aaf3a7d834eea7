"""What learns, and all that a run of it carries on: `Learner` and `State`. `online` runs them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from bci_adapt.errors import InputError
from bci_adapt.learning.cells.base import Network
from bci_adapt.learning.credit.base import CreditRule
from bci_adapt.learning.optimizers import GROUPS, Optimizer

LOSSES = ("squared", "cross_entropy")
BACKENDS = ("compiled", "plain", "torch")


@dataclass(frozen=True)
class Learner:
    """What learns, and how: everything about a run that is not an array.

    Parameters
    ----------
    network, rule, optimizer : the parts.
    loss : ``squared`` (half the weighted sum of squares) or ``cross_entropy`` (labels are probabilities).
    average : decay per update of an exponential mean of the weights, which then makes the predictions; None for none.
    group_rates : multiplier of the learning rate for ``input``, ``bias``, ``recurrent``, ``readout`` or ``output_bias``
        weights.
    learns : weight groups that learn, with any rule (``("output_bias",)``, ``("recurrent",)``); all when None.
    max_updates_per_bin : how many records that wait are worked off in one bin.
    backend : ``compiled`` (numba, one CPU core), ``plain`` (the same source in plain Python; slow, for tests) or
        ``torch`` (the reference, any torch module as a cell, and accelerators).
    boundscheck : check every index of the compiled kernels (slow; for tests).
    device : where the torch backend computes.
    """

    network: Network
    rule: CreditRule
    optimizer: Optimizer
    loss: str = "squared"
    average: float | None = None
    group_rates: Mapping[str, float] = field(default_factory=dict)
    learns: tuple[str, ...] | None = None
    max_updates_per_bin: int = 4
    backend: str = "compiled"
    boundscheck: bool = False
    device: str = "cpu"

    def __post_init__(self):
        if self.loss not in LOSSES:
            raise InputError(f"loss must be one of {LOSSES}, got {self.loss!r}")
        if self.backend not in BACKENDS:
            raise InputError(f"backend must be one of {BACKENDS}, got {self.backend!r}")
        if self.backend != "torch" and self.network.needs_torch:
            raise InputError(f"{self.network.cell.name}: a torch module needs backend='torch', got {self.backend!r}")
        if self.average is not None and not 0.0 < self.average < 1.0:
            raise InputError(f"average must lie between 0 and 1 (or be None), got {self.average}")
        if self.max_updates_per_bin < 1:
            raise InputError(f"max_updates_per_bin must be at least 1, got {self.max_updates_per_bin}")
        for what, groups in (("group_rates", self.group_rates), ("learns", self.learns or ())):
            for group in groups:
                if group not in GROUPS:
                    raise InputError(f"{what}: unknown weight group {group!r}; known: {', '.join(GROUPS)}")
        if self.learns == ():
            raise InputError("learns: expected at least one weight group, or None for all, got none")
        self.rule.check(self.network)
        for what, part in (("rule", self.rule), ("optimiser", self.optimizer)):
            if self.backend == "torch" and not _has_torch_counterpart(part):
                raise InputError(
                    f"the {what} {part.name!r} brings no torch counterpart of its kernel (torch_counterpart): run it "
                    "with backend='compiled' or 'plain'"
                )

    def rates(self) -> tuple[np.ndarray, np.ndarray]:
        """Learning rate of every column of W (row_width,) and of C (readout_width,)."""
        rates = self.optimizer.learning_rate * self.multipliers()
        groups_W, groups_C = self.groups()
        return rates[groups_W], rates[groups_C]

    @property
    def learns_W(self) -> bool:
        """Whether gradients of W are formed: where they move nothing, only if no rate at all is what was asked for."""
        moves = self.rates()[0].any() or self.optimizer.learning_rate == 0.0
        return self.rule.learns_recurrent and bool(moves)

    def groups(self) -> tuple[np.ndarray, np.ndarray]:
        """Number in `GROUPS` of every column of W (row_width,) and of C (readout_width,)."""
        numbers = np.array([GROUPS.index(group) for group in self.network.groups()], np.int64)
        readout = np.full(self.network.readout_width, GROUPS.index("readout"), np.int64)
        readout[self.network.output_bias] = GROUPS.index("output_bias")
        return numbers, readout

    @functools.cached_property
    def kernel_constants(self) -> dict[str, Any]:
        """What the kernels read about this learner, worked out once: a live session asks for every bin."""
        rule, optimizer = self.rule, self.optimizer
        rate_W, rate_C = self.rates()
        groups_W, groups_C = self.groups()
        flags = [rule.advances, self.learns_W, self.max_updates_per_bin, optimizer.schedule.moves]
        return {
            "rate_W": rate_W,
            "rate_C": rate_C,
            "hyper": optimizer.hyper(),
            "constants": rule.constants(self.network),
            "groups_W": groups_W,
            "groups_C": groups_C,
            "learns": (self.multipliers() != 0.0).astype(float),
            "parts_W": self.network.parts(),
            "parts_C": self.network.readout_parts(),
            "schedule": optimizer.schedule.constants(),
            "decay": float(optimizer.weight_decay),
            "clip": float(optimizer.clip),
            "flags": np.array(flags, np.int64),
        }

    def multipliers(self) -> np.ndarray:
        """Factor on the learning rate of each group in `GROUPS`; 0 where it does not learn."""
        asked = GROUPS if self.learns is None else self.learns
        return np.array([self.group_rates.get(group, 1.0) * (group in asked) for group in GROUPS], float)


def _has_torch_counterpart(part: CreditRule | Optimizer) -> bool:
    """Whether the class that a part's kernel comes from, or a child of it, brings the counterpart of that kernel."""
    for kind in type(part).__mro__:
        if kind in (CreditRule, Optimizer):
            return False
        if "torch_counterpart" in vars(kind):
            return True
        if any(name.startswith("make") for name in vars(kind)):
            return False
    return False


@dataclass(frozen=True)
class State:
    """Everything a run carries on: arrays with a leading replica axis S.

    ``arrays`` holds W, C, their optimiser arrays, the rule's memory, hidden states, the averaged network, the ring of
    records that wait for labels, and counters (S, 7): bins seen, records made, records worked off, first record of the
    stretch, updates, labels dropped by a reset, bins and labels that were not finite.
    """

    learner: Learner
    arrays: dict[str, np.ndarray]

    @property
    def n_replicas(self) -> int:
        return self.arrays["W"].shape[0]

    @property
    def finite(self) -> np.ndarray:
        """Whether every weight of each replica is finite (S,)."""
        flat = [self.arrays[name].reshape(self.n_replicas, -1) for name in ("W", "C")]
        return np.asarray(np.isfinite(np.concatenate(flat, axis=1)).all(axis=1))

    def counter(self, position: int) -> np.ndarray:
        """One counter of every replica (S,); positions are named in backends.loop."""
        return self.arrays["counters"][:, position]

    def predictor(self) -> tuple[np.ndarray, np.ndarray]:
        """The weights that make the predictions: the averaged ones where an average is kept. Shapes (S, …)."""
        averaged = self.learner.average is not None
        return (self.arrays["mean_W"], self.arrays["mean_C"]) if averaged else (self.arrays["W"], self.arrays["C"])

    def predictor_hidden(self) -> np.ndarray:
        """The hidden state that goes with `predictor` (S, n_slots, n_hidden)."""
        return self.arrays["mean_state" if self.learner.average is not None else "state"]

    def copy(self) -> State:
        return replace(self, arrays={name: array.copy() for name, array in self.arrays.items()})
