"""Job: sessions → a fitted decoder."""

from pathlib import Path
from typing import Any

from bci_adapt.decoders.base import decoder_class
from bci_adapt.errors import InputError
from bci_adapt.jobs.arrays import load_arrays


def run(parameters: dict[str, Any], inputs: dict[str, Path], out: Path) -> None:
    """Fit `decoder` (with its `constants`) on every input session in name order.

    With `stream_s` only the first so many seconds of each are used: what a decoder that adapts gets to see of a target.
    An `InputError` of the fit is raised again with the names of the sessions.
    """
    Xs, ys, resets, names = [], [], [], []
    for name in sorted(inputs):
        arrays = load_arrays(inputs[name], parameters["variable"])
        n_bins = arrays.n_stream(parameters["stream_s"])
        Xs.append(arrays.X[:n_bins])
        ys.append(arrays.y[:n_bins])
        resets.append(arrays.reset[:n_bins])
        names.append(arrays.session_id)
    decoder = decoder_class(parameters["decoder"])(**parameters["constants"])
    try:
        decoder.fit(Xs, ys, resets)
    except InputError as error:
        raise InputError(f"{parameters['decoder']} on {', '.join(names)}: {error}") from error
    decoder.save(out)
