"""Job: a fitted decoder and a target session → what it predicts while it adapts, and afterwards with weights held."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bci_adapt.data.labelled import Arrays, job_arrays, permuted_channels, permuted_in_time, shifted_in_time
from bci_adapt.data.session_files import read_session
from bci_adapt.decoders.base import Decoder, decoder_class
from bci_adapt.decoders.timing import LABEL_DELAY_S
from bci_adapt.errors import InputError
from bci_adapt.protocol.prequential import adapted, prequential
from bci_adapt.protocol.supervision import Stream, Teaching, stream_of

SHIFT_S = 60.0  # least circular shift of a canary


def run(parameters: dict[str, Any], inputs: dict[str, Path], out: Path) -> None:
    """Run `decoder` through `target`: its first `stream_s` seconds online, the rest held out.

    Parameters: `variables`, `stream_s`; `become`, the class that a fitted decoder is turned into, or null; `constants`
    that replace the decoder's own; the fields of `bci_adapt.protocol.supervision.Teaching`; `control`, null or
    ``{kind: time | shift | channels, seed}``; `continuing` and `back`, whether those parts are wanted;
    `labels_in_fit`, whether the decoder was fitted on the stream's labels, which then count; `label_delay_s`,
    given only where a decoder is shown labels and has no such constant. Inputs `before0`, `before1` … are sessions that
    the decoder adapts to first, in order; `source` is what `back` predicts.

    Writes `bci_adapt.protocol.prequential.Predictions`.
    """
    arrays = job_arrays(parameters, inputs["target"])
    n_stream = arrays.n_stream(parameters["stream_s"])
    decoder = started(parameters, inputs)
    teaching, teaches_itself = taught_by(parameters), parameters["supervision"] == "pseudo"
    whole = shown_of(arrays, inputs["target"], parameters["control"], teaching)
    on = None
    if parameters["continuing"]:
        on = shown_of(arrays, inputs["target"], parameters["control"], teaching.without_budget())
    try:
        for name in sorted((name for name in inputs if name.startswith("before")), key=lambda name: int(name[6:])):
            before = job_arrays(parameters, inputs[name])
            earlier = shown_of(before, inputs[name], parameters["control"], teaching)
            with np.errstate(over="ignore", invalid="ignore"):  # divergence stays to be seen on the target
                adapted(decoder, earlier.until(before.n_stream(parameters["stream_s"])), teaches_itself)
        late_s = parameters.get("label_delay_s", LABEL_DELAY_S)
        found = prequential(
            decoder, whole, n_stream, continuing=on, teaches_itself=teaches_itself, label_delay_s=late_s
        )
        if parameters["labels_in_fit"]:
            found = found._replace(n_labels=int(np.isfinite(arrays.y[:n_stream]).any(axis=1).sum()))
        if parameters["back"]:
            source = job_arrays(parameters, inputs["source"])
            with np.errstate(over="ignore", invalid="ignore"):
                back = decoder.with_fitted_statistics().predict(source)
            found = found._replace(back=back)
    except InputError as error:
        raise InputError(f"{decoder.name} on {arrays.session_id}: {error}") from error
    found.save(out)


def started(parameters: dict[str, Any], inputs: dict[str, Path]) -> Decoder:
    """The decoder as it is before it meets the target."""
    decoder = Decoder.load(inputs["decoder"])
    if parameters["become"]:
        return decoder_class(parameters["become"]).of(decoder, **parameters["constants"])
    return decoder.set_params(**parameters["constants"])


def taught_by(parameters: dict[str, Any]) -> Teaching:
    """What teaches the decoder of a job with these parameters."""
    return Teaching(**{name: parameters[name] for name in Teaching._fields})


def shown_of(arrays: Arrays, path: Path, control: dict[str, Any] | None, teaching: Teaching) -> Stream:
    """What a decoder is shown of the session stored at `path`, under the control and the supervision asked for."""
    stream = stream_of(arrays, teaching, read_session(path) if teaching.supervision == "intention" else None)
    return stream if control is None else stream.with_counts(_controlled(arrays, **control))


def _controlled(arrays: Arrays, kind: str, seed: int) -> np.ndarray:
    if kind == "time":
        return permuted_in_time(arrays.X, seed)
    if kind == "shift":
        return shifted_in_time(arrays.X, seed, round(SHIFT_S / arrays.bin_s))
    return permuted_channels(arrays.X, seed)
