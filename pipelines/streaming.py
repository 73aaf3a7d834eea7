"""A network learns the next character of English text online, from the first one on, beside a unigram and a bigram that
do the same; or any other stream, beside the predictors of its field. Copy and change it.

    python pipelines/streaming.py [characters | sea | agrawal | hyperplane | sunspots | co2 | el_nino]
"""

import argparse
import sys

import numpy as np

from bci_adapt.errors import InputError
from bci_adapt.learning.cells.base import Network, cell
from bci_adapt.learning.credit.base import rule
from bci_adapt.learning.online import Learner, run, start
from bci_adapt.learning.optimizers import optimizer
from bci_adapt.paper.streams.base import prequential, scored, softmax
from bci_adapt.paper.streams.base import stream as make_stream

RULES = {"readout": {}, "immediate": {}, "window": {"steps": 16}}
LENGTHS = {"sunspots": 300, "co2": 500, "el_nino": 700}  # of the real series; the others go on for longer


def main(stream: str = "characters", n_bins: int = 5000, n_hidden: int = 32, delay: int = 0) -> dict[str, float]:
    kind = make_stream(stream)
    n_bins = min(n_bins, LENGTHS.get(stream, n_bins))
    x, y, seen = kind.stream(n_bins, seed=0, earlier=n_bins // 3, delay=delay)
    network = Network(cell("tanh"), x.shape[1], n_hidden, y.shape[1])
    losses = {}
    for name, constants in RULES.items():
        learner = Learner(network, rule(name, **constants), optimizer("rmsprop", learning_rate=1e-3), loss=kind.loss)
        outputs, _ = run(start(learner, *network.initial_weights(0)), x, y, arrives=np.arange(n_bins) + delay)
        told = softmax(outputs[0]) if kind.loss == "cross_entropy" else outputs[0]
        losses[f"network, {name}"] = scored(kind.loss, y, told).loss
    for name, rival in kind.rivals(delay).items():
        # The middle of the constants that a figure would choose from.
        predictor, rows = rival.make(rival.grid[len(rival.grid) // 2]), {"x": x, **seen}[rival.sees]
        losses[name] = scored(kind.loss, y, prequential(predictor, rows, y, delay)).loss
    unit = "nats per bin" if kind.loss == "cross_entropy" else "of the last value's squared error"
    for name, value in losses.items():
        print(f"{name:34s} {value:8.4f} {unit}")
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stream", nargs="?", default="characters")
    parser.add_argument("--delay", type=int, default=0, help="bins after which a label becomes known")
    try:
        main(**vars(parser.parse_args()))
    except InputError as error:
        sys.exit(f"error: {error}")
