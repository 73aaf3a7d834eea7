"""Job: sessions → a fitted decoder, or one that was fitted on the days before and goes on."""

from pathlib import Path
from typing import Any

from bci_adapt.data.labelled import job_arrays
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
    sessions = [job_arrays(parameters, inputs[name]) for name in names]
    given = [
        each.part(slice(each.n_stream(parameters["stream_s"] if i >= whole else None)))
        for i, each in enumerate(sessions)
    ]
    constants = parameters["constants"]
    try:
        if "before" in inputs:
            decoder = Decoder.load(inputs["before"]).set_params(**constants).extend(given)
        else:
            decoder = decoder_class(parameters["decoder"])(**constants).fit(given)
    except InputError as error:
        told = ", ".join(each.session_id for each in sessions)
        raise InputError(f"{parameters['decoder']} on {told}: {error}") from error
    decoder.save(out)
