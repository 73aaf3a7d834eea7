"""Small random networks in a random state with a stream for them, shared by the tests of the learning column."""

import types
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from bci_adapt.errors import InputError
from bci_adapt.learning.cells.base import Network, cells
from bci_adapt.learning.credit.base import rules
from bci_adapt.learning.online import Learner, run, start
from bci_adapt.learning.optimizers import Optimizer

T, M_IN, N, M_OUT = 8, 3, 4, 2
RULES = {name: kind.example() for name, kind in rules().items()}


@dataclass(frozen=True)
class Accumulate(Optimizer):
    """Adds up gradients and moves nothing: what a rule computes at fixed weights."""

    name: ClassVar[str] = "accumulate"
    n_slots: ClassVar[int] = 1
    description: ClassVar[str] = "Σ g"

    def make(self):
        def update(theta, g, state, rate, hyper, t):
            for j in range(theta.shape[0]):
                state[0, j] += g[j]

        return update


@dataclass
class Problem:
    """A random network in a random nonzero state, with a stream for it."""

    network: Network
    W: np.ndarray
    C: np.ndarray
    X: np.ndarray
    Y: np.ndarray
    weight: np.ndarray
    hidden: np.ndarray


def problem(cell, n_bins=T, seed=0, n=N):
    rng = np.random.default_rng(seed)
    network = Network(cell, M_IN, n, M_OUT)
    W = 0.6 * rng.standard_normal((n, network.row_width))
    C = rng.standard_normal((M_OUT, network.readout_width))
    Y = rng.random((n_bins, M_OUT))
    weight = rng.uniform(0.5, 2.0, (n_bins, M_OUT))
    hidden = rng.uniform(-0.8, 0.8, (1, len(cell.slots), n))
    return Problem(network, W, C, rng.standard_normal((n_bins, M_IN)), Y, weight, hidden)


def learner(p, rule, optimizer=None, **options):
    return Learner(p.network, rule, optimizer or Accumulate(), **({"backend": "plain"} | options))


def accumulated(p, rule, loss="squared", **stream):
    """The state after a run at fixed weights."""
    return run(start(learner(p, rule, loss=loss), p.W, p.C, p.hidden), p.X, p.Y, p.weight, **stream)[1]


def gradients(p, rule, loss="squared", **stream):
    """Summed gradients (W, C) of a rule at fixed weights."""
    state = accumulated(p, rule, loss, **stream)
    return state.arrays["opt_W"][0, :, 0], state.arrays["opt_C"][0, :, 0]


def close(left, right, tolerance=1e-10):
    return all(
        np.max(np.abs(a - b)) <= tolerance * max(1.0, np.max(np.abs(b))) for a, b in zip(left, right, strict=True)
    )


def every_group_nonzero(p, W_gradient):
    """Whether every gate's every part – inputs, bias, recurrent weights – has a gradient to be wrong about."""
    return all(np.abs(W_gradient[:, where]).max() > 1e-6 for _, _, where in p.network.columns())


def defined(cell, rule):
    """Whether a rule is defined for a cell."""
    try:
        rule.check(Network(cell, M_IN, N, M_OUT))
    except InputError:
        return False
    return True


def dense(cell):
    """Whether units hear of one another."""
    return any("h" in gate.reads for gate in cell.gates)


PAIRS = [(cell, name) for cell in cells().values() for name, rule in RULES.items() if defined(cell, rule)]
PAIR_NAMES = [f"{cell.name}-{name}" for cell, name in PAIRS]


def mutant(module, old, new):
    """The module with one term of its source changed."""
    source = Path(module.__file__).read_text()
    assert source.count(old) == 1, f"{module.__name__}: {old!r} is there {source.count(old)} times"
    changed = types.ModuleType(module.__name__)
    changed.__file__ = module.__file__
    exec(compile(source.replace(old, new), module.__file__, "exec"), vars(changed))
    return changed


SMALL_FIGURE = """
title = "tiny"
seeds = [0, 1]
tuning_seeds = [100]
n_hidden = [6]
oracle = false
training = { how = "bptt", updates = 60, window = 20, burn_in = 4, learning_rate = 1e-2 }
steps = { pretrain = 600, warm = 50, adapt = 300, score = 100, held_out = 100 }
shared_rates = { sgd = 1e-2, rmsprop = 1e-3, adam = 1e-3 }
tuning = { max_points = 3 }
tasks = [{ name = "sine", min_ratio = 1.2 }]
"""  # of the paper's: all that its config says, without name and methods
