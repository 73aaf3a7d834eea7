"""Job: a fitted decoder and a target session → what it predicts while it adapts, and afterwards with weights held."""

from pathlib import Path
from typing import Any

import numpy as np

from bci_adapt.decoders.base import Decoder
from bci_adapt.errors import InputError
from bci_adapt.jobs.arrays import load_arrays, permuted_in_time
from bci_adapt.storage import atomic_path


def run(parameters: dict[str, Any], inputs: dict[str, Path], out: Path) -> None:
    """Run `decoder` through `target`: its first `stream_s` seconds online, the rest held out.

    `constants` replace parameters of the decoder. Without `learns` it sees no label at all (statistics still run).
    `permutation` (a seed, or null) shuffles the counts in time: the canary. Writes online and held_out predictions
    (n_bins, n_outputs), weight_change (NaN for decoders without one) and diverged.
    """
    arrays = load_arrays(inputs["target"], parameters["variable"])
    n_stream = arrays.n_stream(parameters["stream_s"])
    X = arrays.X if parameters["permutation"] is None else permuted_in_time(arrays.X, parameters["permutation"])
    labels = arrays.y[:n_stream] if parameters["learns"] else np.full_like(arrays.y[:n_stream], np.nan)
    decoder = Decoder.load(inputs["decoder"]).set_params(**parameters["constants"])
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # divergence is recorded below, not warned about
            online = decoder.adapt(X[:n_stream], labels, arrays.reset[:n_stream])
            held_out = decoder.predict(X[n_stream:], arrays.reset[n_stream:], continuing=True)
    except InputError as error:
        raise InputError(f"{decoder.name} on {arrays.session_id}: {error}") from error
    with atomic_path(out) as temporary, open(temporary, "wb") as handle:
        np.savez(
            handle,
            online=online,
            held_out=held_out,
            weight_change=np.array(getattr(decoder, "weight_change_", np.nan)),
            diverged=np.array(getattr(decoder, "diverged_", False)),
        )
