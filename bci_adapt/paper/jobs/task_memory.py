"""Job: how many bytes a rule's arrays hold for a network, counted and measured."""

from __future__ import annotations

import gc
import json
import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np

from bci_adapt.ground.storage import write_text
from bci_adapt.learning import online
from bci_adapt.learning.cells.base import Network, cell
from bci_adapt.paper.jobs.task_streams import method_learner

_BYTES = 8  # everything is float64


def run(parameters: dict[str, Any], inputs: dict[str, Path], out: Path) -> None:
    """Count the arrays of `method` on `cell` with `n_hidden` units, and trace a few bins where `measured` asks for it.

    Writes JSON: ``computed_bytes`` of weights, the optimiser's arrays and the rule's memory; and ``measured_bytes``,
    the peak of what Python and numpy held while a run began and worked off three bins (null where not measured).
    """
    network = Network(cell(parameters["cell"]), parameters["n_inputs"], parameters["n_hidden"], 1)
    learner = method_learner(network, parameters["method"], 1e-5)
    weights = network.n_parameters * (1 + learner.optimizer.n_slots)
    computed = _BYTES * (weights + math.prod(network.memory_shape(learner.rule)))
    measured = _peak(learner) if parameters["measured"] else None
    write_text(out, json.dumps({"computed_bytes": computed, "measured_bytes": measured}))


def _peak(learner: online.Learner) -> int:
    # The weights to begin with are the caller's: the learner's own copy is what counts.
    network = learner.network
    shapes = (network.n_rows, network.row_width), (network.n_outputs, network.readout_width)
    rng = np.random.default_rng(0)
    W, C = (rng.standard_normal(shape) / np.sqrt(network.n_hidden) for shape in shapes)
    x, y = np.zeros((3, network.n_inputs)), np.zeros((3, network.n_outputs))
    # The first run compiles, and what the compiler holds is not what is measured.
    tiny = Network(network.cell, 2, 2, 1)
    online.run(
        online.start(online.Learner(tiny, learner.rule, learner.optimizer), *tiny.initial_weights(0)),
        np.zeros((2, 2)),
        np.zeros((2, 1)),
    )
    gc.collect()
    tracemalloc.start()
    try:
        online.run(online.start(learner, W, C), x, y, in_place=True)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
