"""A network learns a task, the task changes, the network adapts online: credit rules beside one another, and beside the
network as it was before the change and frozen. Copy and change it.

    python pipelines/synthetic.py [sine | delayed | lorenz | recall | xor | adding | electrode_drift …]
"""

import argparse
import sys

import numpy as np

from bci_adapt.errors import InputError
from bci_adapt.learning.cells.base import Network, cell
from bci_adapt.learning.credit.base import rule
from bci_adapt.learning.online import Learner, handed_over, run, start
from bci_adapt.learning.optimizers import Schedule, optimizer
from bci_adapt.paper.tasks.base import task as make_task

RULES = {"readout": {}, "immediate": {}, "trace": {"decay": 0.95}, "snap1": {}, "window": {"steps": 16}, "rtrl": {}}


def main(task: str = "sine", n_hidden: int = 32, n_before: int = 5000, n_after: int = 2500) -> dict[str, float]:
    made = make_task(task)
    x, y, change = made.stream(n_before + n_after, seed=0, change_at=n_before)
    x_still, y_still, _ = made.stream(n_before + n_after, seed=0, change_at=n_before + n_after)
    network = Network(cell("tanh"), x.shape[1], n_hidden, y.shape[1])
    arrives, last = np.arange(len(x)) + made.label_delay, slice(-n_after // 5, None)

    def learner(name: str, rate: float = 3e-4, schedule: Schedule | None = None) -> Learner:
        moves = optimizer("rmsprop", learning_rate=rate, schedule=schedule or Schedule())
        return Learner(network, rule(name, **RULES[name]), moves)

    def error(predictions: np.ndarray, target: np.ndarray) -> float:
        """Mean squared error of the last fifth after the change, in variances of the target."""
        apart = (predictions[0] - target[change:])[last] ** 2
        return float(np.nanmean(apart) / np.nanvar(target[change:][last]))

    trained = learner("window", schedule=Schedule("cosine", n_before, floor=0.01))
    _, state = run(start(trained, *network.initial_weights(0)), x[:change], y[:change], arrives=arrives[:change])
    state = handed_over(state, learner("readout"), "the trained network")
    errors = {
        "before the change": error(run(state, x_still[change:])[0], y_still),
        "frozen": error(run(state, x[change:])[0], y),
    }
    for name in RULES:
        fresh = start(learner(name), *state.predictor(), hidden=state.predictor_hidden())
        predictions, _ = run(fresh, x[change:], y[change:], arrives=arrives[change:] - change)
        errors[name] = error(predictions, y)
    for name, value in errors.items():
        print(f"{name:18s} error {value:8.5f} of the target's variance")
    return errors


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", nargs="?", default="sine")
    try:
        main(**vars(parser.parse_args()))
    except InputError as error:
        sys.exit(f"error: {error}")
