"""Job: a decoder class of the user's own file, trained on source sessions and run through a target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bci_adapt.data.labelled import job_arrays, permuted_in_time
from bci_adapt.decoders.own import Own, load_class
from bci_adapt.protocol.prequential import prequential
from bci_adapt.protocol.supervision import Teaching, stream_of


def run(parameters: dict[str, Any], inputs: dict[str, Path], out: Path) -> None:
    """Fit `decoder` of the file `code` on ``source0``, ``source1`` …, adapt it to the stream of ``target``, predict.

    It is told `bin_s`, `label_delay_s` and `seed` where it asks (`bci_adapt.decoders.own.Own`); `permutation`, null or
    a seed, permutes the target's counts in time. Writes what jobs/adapt.py writes.
    """
    given = {name: parameters[name] for name in ("bin_s", "label_delay_s", "seed")}
    decoder = Own(load_class(inputs["code"], parameters["decoder"]), **given)
    sources = sorted((name for name in inputs if name.startswith("source")), key=lambda name: int(name[6:]))
    sessions = [job_arrays(parameters, inputs[name]) for name in sources]
    decoder.fit(sessions)
    target = job_arrays(parameters, inputs["target"])
    stream = stream_of(target, Teaching())
    if parameters["permutation"] is not None:
        stream = stream.with_counts(permuted_in_time(target.X, parameters["permutation"]))
    prequential(decoder, stream, target.n_stream(parameters["stream_s"])).save(out)
