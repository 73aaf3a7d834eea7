"""From NWB files of two days to how well a decoder follows from one to the other: copy this and change it.

    python pipelines/cross_session.py monday.nwb tuesday.nwb

Everything is done here in one process; `bci-adapt run` does the same for many pairs, arms and controls, with a report.
"""

import sys

import bci_adapt as ba

BIN_S = 0.05


def main(source_file: str, target_file: str, n_updates: int = 800) -> dict[str, tuple[float, float]]:
    source, target = ba.read(source_file, BIN_S), ba.read(target_file, BIN_S)
    training = {"n_updates": n_updates}
    decoders = {
        "GRU, normaliser only": ba.OnlineDecoder(cell="gru", rule="readout", average=None, **training),
        "GRU, immediate + RMSprop": ba.OnlineDecoder(cell="gru", rule="immediate", **training),
        # immediate derivatives, too, but of the error of a late label as today's weights make it, like four steps
        "GRU, 1 step of history": ba.OnlineDecoder(cell="gru", rule="window", rule_constants={"steps": 1}, **training),
        "GRU, 4 steps of history": ba.OnlineDecoder(cell="gru", rule="window", rule_constants={"steps": 4}, **training),
        "recursive least squares": ba.RLSDecoder(memory_s=1000.0),
    }
    scores = {}
    for name, decoder in decoders.items():
        decoder.fit(source, "velocity")
        labels = "none" if "only" in name else "true"
        found = ba.evaluate(decoder, target, stream_s=600.0, supervision=labels)
        scores[name] = found.r2("online"), found.r2("held_out")
        print(f"{name:28s} R² online {scores[name][0]:5.2f}   held out {scores[name][1]:5.2f}", flush=True)
    return scores


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2])
