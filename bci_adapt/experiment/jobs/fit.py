"""Job: sessions → a fitted decoder, or one that was fitted on the days before and goes on."""

from pathlib import Path
from typing import Any

from bci_adapt.data.labelled import Arrays, job_arrays
from bci_adapt.decoders.base import Decoder, decoder_class
from bci_adapt.errors import InputError
from bci_adapt.ground.one_by_one import OneByOne


def run(parameters: dict[str, Any], inputs: dict[str, Path], out: Path) -> None:
    """Fit `decoder` (with its `constants`) on the input sessions ``session0``, ``session1`` … in order.

    Of the last `n_streams` of them only the first `stream_s` seconds are used: what a decoder that adapts gets to see
    of a target. An input ``before`` is such a decoder of the days so far: it takes the `constants` and is extended, the
    sessions being those of its days and the added one. An `InputError` of the fit is raised again with the names of the
    sessions.
    """
    names = [f"session{i}" for i in range(len(inputs) - ("before" in inputs))]
    whole = len(names) - parameters["n_streams"]

    def read(number: int) -> Arrays:
        arrays = job_arrays(parameters, inputs[names[number]])
        return arrays.part(slice(arrays.n_stream(parameters["stream_s"] if number >= whole else None)))

    given = OneByOne(read, range(len(names)))
    constants = parameters["constants"]
    try:
        if "before" in inputs:
            decoder = Decoder.load(inputs["before"]).set_params(**constants).extend(given)
        else:
            decoder = decoder_class(parameters["decoder"])(**constants).fit(given)
    except InputError as error:
        told = ", ".join(each.session_id for each in given)
        raise InputError(f"{parameters['decoder']} on {told}: {error}") from error
    decoder.save(out)
