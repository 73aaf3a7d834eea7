"""A decoder carried through days: pretrained on the first, adapted on each that follows, half of it held out.
Beside it: one that starts every day from the pretraining, one without labels, and least squares. Copy and change it.

    python pipelines/continual.py day1.nwb day2.nwb day3.nwb … [--pretrain 2]
"""

import argparse
import copy
import sys

import numpy as np

import bci_adapt as ba
from bci_adapt.data.labelled import session_arrays
from bci_adapt.data.prepare import prepare
from bci_adapt.decoders.online_rnn import OnlineDecoder
from bci_adapt.decoders.rls import RLSDecoder
from bci_adapt.errors import InputError
from bci_adapt.metrics import r2

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
    sessions = sorted((prepare(file, BIN_S) for file in files), key=lambda session: session.attrs["session_start"])
    days = [session_arrays(session, "velocity") for session in ba.match(sessions, missing="drop")]
    first, later = days[:pretrain], days[pretrain:]
    pretrained = {"gru": OnlineDecoder(cell="gru", n_updates=n_updates), "rls": RLSDecoder(memory_s=1000.0)}
    for decoder in pretrained.values():
        decoder.fit([day.X for day in first], [day.y for day in first], [day.reset for day in first])

    scores = {name: [] for name in ARMS}
    alive = {name: copy.deepcopy(pretrained[of]) for name, (of, _, _) in ARMS.items()}
    for day in later:
        n, known = len(day.X) // 2, np.isfinite(day.y)
        for name, (of, learns, carried) in ARMS.items():
            decoder = alive[name] if carried else copy.deepcopy(pretrained[of])
            online = decoder.adapt(day.X[:n], np.where(learns, day.y, np.nan)[:n], day.reset[:n])
            held_out = decoder.predict(day.X[n:], day.reset[n:], continuing=True)
            scores[name].append((r2(day.y[:n], online, known[:n]), r2(day.y[n:], held_out, known[n:])))
            print("{}  {:22s} R² online {:5.2f}  held out {:5.2f}".format(day.session_id, name, *scores[name][-1]))
    return scores


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="day.nwb")
    parser.add_argument("--pretrain", type=int, default=1, help="number of days to pretrain on")
    try:
        main(**vars(parser.parse_args()))
    except InputError as error:
        sys.exit(f"error: {error}")
