"""Job: sessions → a fitted decoder, or one that was fitted on the days before and goes on."""

from pathlib import Path
from typing import Any

from bci_adapt.data.labelled import described, job_arrays
from bci_adapt.data.sessions import open_session
from bci_adapt.decoders.base import Decoder, decoder_class
from bci_adapt.errors import InputError


def run(parameters: dict[str, Any], inputs: dict[str, Path], out: Path) -> None:
    """Fit `decoder` (with its `constants`) on the input sessions ``session0``, ``session1`` … in order.

    Of the last `n_streams` of them only the first `stream_s` seconds are used: what a decoder that adapts gets to see
    of a target. An input ``before`` is such a decoder of the days so far: it takes the `constants` and is extended, the
    sessions being those of its days and the added one. An `InputError` of the fit is raised again with the names of the
    sessions.
    """
    names = [f"session{i}" for i in range(len(inputs) - ("before" in inputs))]
    whole = len(names) - parameters["n_streams"]
    Xs, ys, resets, told = [], [], [], []
    for i, name in enumerate(names):
        arrays = job_arrays(parameters, inputs[name])
        n_bins = arrays.n_stream(None if i < whole else parameters["stream_s"])
        Xs.append(arrays.X[:n_bins])
        ys.append(arrays.y[:n_bins])
        resets.append(arrays.reset[:n_bins])
        told.append(arrays.session_id)
    constants = parameters["constants"]
    try:
        if "before" in inputs:
            decoder = Decoder.load(inputs["before"]).set_params(**constants).extend(Xs, ys, resets)
        else:
            decoder = decoder_class(parameters["decoder"])(**constants).fit(Xs, ys, resets)
    except InputError as error:
        raise InputError(f"{parameters['decoder']} on {', '.join(told)}: {error}") from error
    with open_session(inputs[names[-1]]) as session:
        decoder.about_ = described(session, parameters["variables"]) | {"sessions": told}
    decoder.save(out)
