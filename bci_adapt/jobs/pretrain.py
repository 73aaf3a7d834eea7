"""Job: sessions → a fitted decoder."""

from pathlib import Path
from typing import Any

from bci_adapt.decoders.base import decoder_class
from bci_adapt.jobs.arrays import n_stream_bins, session_arrays
from bci_adapt.session import read_session


def run(parameters: dict[str, Any], inputs: dict[str, Path], out: Path) -> None:
    """Fit `decoder` (with its `constants`) on every input session in name order.

    With `stream_s` only the first so many seconds of each are used: what a decoder that adapts gets to see of a target.
    """
    Xs, ys, resets = [], [], []
    for name in sorted(inputs):
        session = read_session(inputs[name])
        arrays = session_arrays(session, parameters["variable"])
        n_bins = n_stream_bins(session, parameters["stream_s"])
        Xs.append(arrays.X[:n_bins])
        ys.append(arrays.y[:n_bins])
        resets.append(arrays.reset[:n_bins])
    decoder_class(parameters["decoder"])(**parameters["constants"]).fit(Xs, ys, resets).save(out)
