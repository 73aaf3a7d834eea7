"""What benchmarks of online learning run: a network with a rule, and the product going on with it."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import numpy as np

from bci_adapt.cli.bench.measuring import Timer, timer_of, traced_peak
from bci_adapt.learning.cells.base import Network, cell
from bci_adapt.learning.credit.base import CreditRule, rule
from bci_adapt.learning.online import Learner, run, start
from bci_adapt.learning.optimizers import RMSprop

# Small, so that weights hardly move however long the benchmark lasts; rates do not change what an update costs.
RATE = 1e-5
N_OUTPUTS = 2


@dataclass(frozen=True)
class Case:
    """A network and a rule, with RMSprop."""

    cell: str
    n: int
    m: int
    rule: CreditRule = field(default_factory=lambda: rule("immediate"))

    @functools.cached_property
    def network(self) -> Network:
        return Network(cell(self.cell), self.m, self.n, N_OUTPUTS)

    @property
    def learner(self) -> Learner:
        return Learner(self.network, self.rule, RMSprop(RATE))

    @property
    def label(self) -> str:
        steps = getattr(self.rule, "steps", None)
        return self.rule.name if steps is None else f"{self.rule.name}({steps})"

    @functools.cached_property
    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        return self.network.initial_weights(0)

    def stream(self, n_bins: int) -> tuple[np.ndarray, np.ndarray]:
        """Noise in (n_bins, m) and noise out (n_bins, n_outputs)."""
        rng = np.random.default_rng(1)
        return rng.standard_normal((n_bins, self.m)), rng.standard_normal((n_bins, N_OUTPUTS))


class Ours:
    """The product, going on with one state."""

    def __init__(self, case: Case, learner: Learner | None = None, delay: int = 0):
        self.learner, self.weights, self.delay = learner or case.learner, case.weights, delay
        self.X, self.Y = case.stream(4096)
        self.state = start(self.learner, *self.weights)
        self.work(1)

    def work(self, n_bins: int) -> np.ndarray:
        arrives = np.arange(n_bins) + self.delay
        predictions, self.state = run(self.state, self.X[:n_bins], self.Y[:n_bins], arrives=arrives, in_place=True)
        return predictions[0]

    def restart(self, n_bins: int) -> np.ndarray:
        """Predictions from the initial weights on."""
        self.state = start(self.learner, *self.weights)
        return self.work(n_bins)

    def timer(self, call_s: float) -> Timer:
        return timer_of(self.work, call_s, len(self.X))

    def peak_bytes(self, n_bins: int = 4) -> int:
        del self.state  # else two of them are there
        return traced_peak(lambda: self.restart(n_bins))


def load(case: Case) -> None:
    """Compile the loop of this case, or load it from disk."""
    Ours(case)
