"""A decoder on a rig, with a recording in the rig's place: bins and late labels as they would come, predictions as they
go out. Copy it and put your rig where the session is.

    python pipelines/live_replay.py DECODER.npz SESSION.nc [--log FILE]
"""

import argparse
import sys

import numpy as np

import bci_adapt as ba
from bci_adapt.errors import InputError


def main(decoder: str, session: str, log: str | None = None) -> dict[str, float]:
    live = ba.live(decoder, log=log)
    live.warm_up()  # compiles, before anything moves
    arrays, notes = live.decoder.matched(ba.open_session(session))
    for note in notes:
        print(f"note: {note}")
    time_s = ba.open_session(session)["time"].values
    delay = round(getattr(live.decoder, "label_delay_s", 0.5) / live.bin_s)
    for t in range(len(arrays.X)):
        if t >= delay and np.isfinite(arrays.y[t - delay]).any():
            live.learn(arrays.y[t - delay], time_s[t - delay])  # what has become known since
        live.predict(arrays.X[t], time_s[t])  # returns what the cursor is shown
        if live.mode == "stopped":
            print(f"{time_s[t]:.2f} s: guard {live.stopped_by['guard']}; the last good weights are back")
            live.resume()
    live.close()
    score = float("nan") if live.score is None else live.score
    print(f"{live.bins['bins']} bins, {live.labels['used']} labels, R² {score:.3f}")
    return {"bins": live.bins["bins"], "labels": live.labels["used"], "r2": score}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("decoder")
    parser.add_argument("session")
    parser.add_argument("--log")
    try:
        main(**vars(parser.parse_args()))
    except InputError as error:
        sys.exit(f"error: {error}")
