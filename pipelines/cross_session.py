"""From NWB files of two days to how well a decoder follows from one to the other: copy this and change it.

    python pipelines/cross_session.py monday.nwb tuesday.nwb

Everything is done here in one process; `bci-adapt run` does the same for many pairs, arms and controls, with a report.
"""

import sys

import numpy as np

from bci_adapt.data.labelled import session_arrays
from bci_adapt.data.prepare import prepare
from bci_adapt.data.sessions import require_same_channels
from bci_adapt.decoders.online_rnn import OnlineDecoder
from bci_adapt.decoders.rls import RLSDecoder
from bci_adapt.metrics import r2

BIN_S = 0.05


def main(source_file: str, target_file: str, n_updates: int = 800) -> dict[str, tuple[float, float]]:
    source, target = prepare(source_file, BIN_S), prepare(target_file, BIN_S)
    require_same_channels(source, target)
    day_one, day_two = session_arrays(source, "velocity"), session_arrays(target, "velocity")
    n_stream = day_two.n_stream(min(600.0, len(day_two.X) * BIN_S / 2))

    decoders = {
        "GRU, normaliser only": OnlineDecoder(cell="gru", rule="readout", average=None, n_updates=n_updates),
        "GRU, immediate + RMSprop": OnlineDecoder(cell="gru", rule="immediate", n_updates=n_updates),
        "GRU, 4 steps of history": OnlineDecoder(
            cell="gru", rule="window", rule_constants={"steps": 4}, n_updates=n_updates
        ),
        "recursive least squares": RLSDecoder(memory_s=1000.0),
    }
    scores = {}
    for name, decoder in decoders.items():
        decoder.fit(day_one.X, day_one.y, day_one.reset)
        labels = np.full_like(day_two.y, np.nan) if "only" in name else day_two.y
        online = decoder.adapt(day_two.X[:n_stream], labels[:n_stream], day_two.reset[:n_stream])
        held_out = decoder.predict(day_two.X[n_stream:], day_two.reset[n_stream:], continuing=True)
        known = np.isfinite(day_two.y)
        scores[name] = (
            r2(day_two.y[:n_stream], online, known[:n_stream]),
            r2(day_two.y[n_stream:], held_out, known[n_stream:]),
        )
        print(f"{name:28s} R² online {scores[name][0]:5.2f}   held out {scores[name][1]:5.2f}", flush=True)
    return scores


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2])
