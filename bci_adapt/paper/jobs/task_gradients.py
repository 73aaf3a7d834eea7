"""Job: trained networks → norms of their gradients after the change, by weight group, and what lies in the past."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from bci_adapt.ground.storage import json_safe, write_text
from bci_adapt.learning import online
from bci_adapt.learning.cells.base import Network, cell
from bci_adapt.learning.credit.base import rule
from bci_adapt.learning.diagnostics import diagnose, summary
from bci_adapt.paper.jobs.task_streams import Steps, method_learner


def run(parameters: dict[str, Any], inputs: dict[str, Path], out: Path) -> None:
    """Diagnose `method` at `rate` over `n_bins` after the change, looking at every `every`-th.

    Parameters as of task_adapt, and `rules` that look on. Writes JSON: ``seeds``, a list of the medians of
    `bci_adapt.learning.diagnostics.summary`, one for each replica.
    """
    with np.load(inputs["networks"], allow_pickle=False) as stored:
        networks = {name: stored[name] for name in ("x", "y", "W", "C")}
    network = Network(cell(parameters["cell"]), networks["x"].shape[2], parameters["n_hidden"], networks["y"].shape[2])
    steps = Steps(**parameters["steps"])
    learner = method_learner(network, parameters["method"], parameters["rate"])
    part = slice(steps.warm, steps.warm + parameters["n_bins"])
    rows = []
    for s in range(parameters["n_seeds"]):
        warm = online.start(learner, networks["W"][s], networks["C"][s])
        _, state = online.run(warm, networks["x"][s, : steps.warm])
        diagnosis = diagnose(
            state,
            networks["x"][s, part],
            networks["y"][s, part],
            arrives=np.arange(parameters["n_bins"]) + parameters["label_delay"],
            rules=[rule(name) for name in parameters["rules"]],
            every=parameters["every"],
        )
        rows.append(json_safe(summary(diagnosis)))
    write_text(out, json.dumps({"seeds": rows}, allow_nan=False))
