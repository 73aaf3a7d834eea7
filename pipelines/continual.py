"""A decoder carried through days: pretrained on the first, adapted to each that follows, half of it or more held out.
Beside it: one that starts every day from the pretraining, one without labels, and least squares. Copy and change it.

    python pipelines/continual.py day1.nwb day2.nwb day3.nwb … [--pretrain 2]
"""

import argparse
import sys

import bci_adapt as ba
from bci_adapt.errors import InputError

BIN_S = 0.05
ARMS = {  # decoder, learns from labels, goes on with yesterday's weights
    "GRU, carried": ("gru", True, True),
    "GRU, afresh every day": ("gru", True, False),
    "GRU, normaliser only": ("gru", False, False),
    "least squares, carried": ("rls", True, True),
}


def main(files: list[str], pretrain: int = 1, n_updates: int = 800) -> dict[str, list[tuple[float, float]]]:
    if not 1 <= pretrain < len(files):
        raise InputError(f"--pretrain must leave at least one of {len(files)} files to adapt to, got {pretrain}")
    sessions = sorted((ba.read(file, BIN_S) for file in files), key=lambda session: session.attrs["session_start"])
    sessions = ba.match(sessions, missing="drop")
    first, later = sessions[:pretrain], sessions[pretrain:]
    pretrained = {"gru": ba.OnlineDecoder(cell="gru", n_updates=n_updates), "rls": ba.RLSDecoder(memory_s=1000.0)}
    for decoder in pretrained.values():
        decoder.fit(first, "velocity")

    scores = {name: [] for name in ARMS}
    alive = {name: pretrained[of] for name, (of, _, _) in ARMS.items()}
    for day in later:
        for name, (of, learns, carried) in ARMS.items():
            decoder = alive[name] if carried else pretrained[of]
            labels = "true" if learns else "none"
            found = ba.evaluate(decoder, day, supervision=labels)
            alive[name] = found.decoder
            scores[name].append((found.r2("online"), found.r2("held_out")))
            print("{}  {:22s} R² online {:5.2f}  held out {:5.2f}".format(found.session_id, name, *scores[name][-1]))
    return scores


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="day.nwb")
    parser.add_argument("--pretrain", type=int, default=1, help="number of days to pretrain on")
    try:
        main(**vars(parser.parse_args()))
    except InputError as error:
        sys.exit(f"error: {error}")
