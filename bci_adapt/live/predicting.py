"""A saved decoder and a session → what the animal's movement was, with no label asked for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from bci_adapt.data import channels
from bci_adapt.data.any_file import is_prepared
from bci_adapt.data.guarded_reading import is_recording, read
from bci_adapt.data.labelled import Arrays
from bci_adapt.decoders.base import Decoder
from bci_adapt.errors import InputError
from bci_adapt.ground.storage import atomic_path, file_digest, write_netcdf
from bci_adapt.ground.text import clean
from bci_adapt.ground.version import __version__
from bci_adapt.live import columns


def predict(
    decoder_file: Path, session_file: Path, missing: str = "refuse", by: str | None = None
) -> tuple[xr.Dataset, list[str]]:
    """The movement that the decoder saved in `decoder_file` reads from a session, and what is to be said about it.

    The session is a recording or a file of arrays, which is prepared in the decoder's bins, or a prepared session
    (``.nc``). Channels are
    matched by name, and those the decoder does not know are left out. `missing` says what happens to channels that the
    session lacks: ``refuse``, or ``zero``, as though they were silent. A decoder that does not know the names of its
    channels is given the session's channels as they come, if they are as many, and that is said. `by` says what makes
    two channels the same one (`channels.POLICIES`), where names do not: the decoder's sessions were matched by it.

    The decoder runs as in a new session: its normaliser goes on from bin to bin, its weights stay. Returns
    ``predicted_<variable> (time, axis)``, in the units it was trained in, on the session's own time, with the
    session's ``segment`` and ``valid``.

    Raises
    ------
    InputError
        for files that are something else, another subject, other bins, band power, or channels that do not fit.
    """
    decoder, session = opened(decoder_file, session_file, by)
    arrays, notes = match_channels(decoder, session, missing, labels=False)
    notes = [*columns.judged(decoder, session).findings, *notes]
    predicted = decoder.predict(arrays)
    if not np.isfinite(predicted).all():
        raise InputError(f"{decoder_file}: predictions are not finite: its weights have diverged")
    return prediction_of(session, predicted, decoder, decoder_file, notes), notes


def opened(decoder_file: Path, session_file: Path, by: str | None = None) -> tuple[Decoder, xr.Dataset]:
    """A saved decoder, and a session read in its bins, matched `by` where that is said. Raises as `predict`."""
    decoder = Decoder.load(decoder_file)
    session = _read(Path(session_file), decoder)
    return decoder, session if by is None else channels.match([session], by=by)[0]


def match_channels(
    decoder: Decoder, session: xr.Dataset, missing: str, labels: bool = True
) -> tuple[Arrays, list[str]]:
    """A session with exactly the channels of a decoder, and notes on how it came to them; `InputError` as in `predict`.

    `missing` is the rule of this call; channels that the decoder does not know are left out under either, and said.
    """
    return decoder.matched(session, missing=missing, leave_out=True, labels=labels)


def prediction_of(
    session: xr.Dataset, predicted: np.ndarray, decoder: Decoder, decoder_file: Path, notes: list[str]
) -> xr.Dataset:
    """Predictions (n_bins, n_outputs) of a decoder as `predict` returns them."""
    about = decoder.metadata_
    made = _dataset(session, predicted, about.get("outputs") or [_nameless(decoder.n_outputs_)])
    made.attrs |= {
        **{name: session.attrs[name] for name in ("session_id", "subject", "session_start", "source_file")},
        "source_sha256": session.attrs["source_sha256"],
        "bin_s": float(session.attrs["bin_s"]),
        "bin_edge": session.attrs["bin_edge"],
        "decoder": decoder.name,
        "decoder_file": Path(decoder_file).name,
        "decoder_sha256": file_digest(Path(decoder_file)),
        "decoder_trained_on": ", ".join(about.get("sessions", ())),
        "n_channels": decoder.n_features_in_,
        "notes": "; ".join(notes),
        "code_version": __version__,
    }
    return made


def write_prediction(prediction: xr.Dataset, path: Path) -> None:
    """Write what `predict` returned as netCDF; the file is whole or, on any failure, untouched."""
    encoding = {name: {"_FillValue": None} for name, value in prediction.variables.items() if value.dtype.kind == "f"}
    with atomic_path(Path(path)) as temporary:
        write_netcdf(prediction, temporary, encoding)


def _read(path: Path, decoder: Decoder) -> xr.Dataset:
    """The session of a file, binned and sorted into units or electrodes as the decoder's were."""
    if is_prepared(path):
        return read(path)
    about = decoder.metadata_
    told = ("per", "spikes") if is_recording(path) else ()
    return read(path, decoder.bin_s_, **{name: about[name] for name in told if about.get(name)})


def _nameless(n_outputs: int) -> dict[str, Any]:
    return {"variable": "output", "axes": [str(i) for i in range(n_outputs)], "units": ""}


def _dataset(session: xr.Dataset, predicted: np.ndarray, outputs: list[dict[str, Any]]) -> xr.Dataset:
    """Predictions (n_bins, n_outputs) as variables; variables whose axes are those of the first share ``axis``."""
    made = xr.Dataset(coords=session["valid"].coords)  # of time alone: segments and masks
    first, begin = list(outputs[0]["axes"]), 0
    for each in outputs:
        axes, name = list(each["axes"]), re.sub(r"\W+", "_", each["variable"])[:60] or "output"
        dim = "axis" if axes == first else f"{name}_axis"
        values = predicted[:, begin : begin + len(axes)]
        begin += len(axes)
        attrs = {"units": clean(each["units"], 60), "long_name": f"{name} predicted from spikes"}
        made[f"predicted_{name}"] = (("time", dim), values, attrs)
        made = made.assign_coords({dim: np.asarray([clean(axis, 60) for axis in axes], dtype=np.str_)})
    return made
