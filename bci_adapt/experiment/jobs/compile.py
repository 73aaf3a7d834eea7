"""Job: compile the loop of a cell, rule, optimiser and loss, so that two workers never compile the same one at once."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from bci_adapt.ground.storage import write_text
from bci_adapt.learning import online
from bci_adapt.learning.backends.compiled import sources_digest
from bci_adapt.learning.cells.base import Network, cell
from bci_adapt.learning.credit.base import rule
from bci_adapt.learning.optimizers import optimizer


def run(parameters: dict[str, Any], inputs: dict[str, Path], out: Path) -> None:
    """Run a tiny network for two bins; the compiled loop stays in the cache folder, `out` says that it is there."""
    network = Network(cell(parameters["cell"]), 2, 2, 2)
    moves = optimizer(parameters["optimizer"], clip=1.0 if parameters["clips"] else 0.0)
    constants = {"fresh_error": True} if parameters["fresh"] else {}
    learner = online.Learner(network, rule(parameters["rule"], **constants), moves, loss=parameters["loss"])
    online.run(online.start(learner, *network.initial_weights(0)), np.zeros((2, 2)), np.full((2, 2), 0.5))
    write_text(out, json.dumps(parameters | {"sources": sources_digest(learner.network.cell, learner.rule)}))
