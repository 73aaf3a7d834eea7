"""Job: a fitted decoder held as it is, and a target session changed in one respect → what it would have predicted."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np

from bci_adapt.data.drift import Drift, Settings, day, drift
from bci_adapt.data.labelled import Arrays, job_arrays
from bci_adapt.data.session_files import read_session
from bci_adapt.decoders.base import Decoder
from bci_adapt.decoders.features import features_of, raw_of
from bci_adapt.errors import InputError
from bci_adapt.ground.storage import atomic_path, write_text
from bci_adapt.learning.normaliser import Normaliser
from bci_adapt.metrics import r2

SHARES = (0.1, 0.25, 0.5, 0.75)  # of the channels, those that changed most, that are tried silent


def run(parameters: dict[str, Any], inputs: dict[str, Path], out: Path) -> None:
    """Run `decoder` through `target` with fixed weights and statistics.

    Parameters: `variables`, and the one, `variable`, that choices are made by; `stream_s`; `statistics`, whether the
    decoder's ``source`` ones are used or those of the whole ``target``; `lags`, by how many bins later counts stand for
    a bin (0: as recorded). With the input `ranking` (of `rank`) the channels that changed most are put to the decoder's
    own mean. Of lags, then of numbers of silent channels, the one is taken that scores best on the adaptation stream,
    without the outputs of `variable` (their numbers in it) that are `still` in the held-out part, where there are any.

    Writes an npz: ``predicted`` (n_bins, n_outputs) and ``chosen``, JSON of {lag, silent, note}.
    """
    arrays = job_arrays(parameters, inputs["target"])
    decoder = Decoder.load(inputs["decoder"]).set_params(normaliser_s=None)
    if parameters["statistics"] == "target":
        decoder = _with_statistics_of(decoder, arrays.X)
    stream, every = slice(arrays.n_stream(parameters["stream_s"])), arrays.columns[parameters["variable"]]
    still = {every.start + i for i in parameters.get("still", ())}
    outputs = [i for i in range(every.start, every.stop) if i not in still] if still else every
    ranking = json.loads(inputs["ranking"].read_text(encoding="utf-8")) if "ranking" in inputs else {"channels": []}
    ranked = ranking["channels"]
    silent = [round(share * len(ranked)) for share in SHARES]
    chosen, predicted, best = {"lag": 0, "silent": []}, np.zeros(0), -np.inf
    for what, values in (("lag", parameters["lags"]), ("silent", [[], *(ranked[:n] for n in dict.fromkeys(silent))])):
        for value in values:
            tried = chosen | {what: value}
            made = decoder.predict(_changed(arrays, decoder, **tried), arrays.reset)
            score = _score(arrays, made, stream, outputs)
            if score > best or not len(predicted):
                chosen, predicted, best = tried, made, score
    with atomic_path(out) as temporary, open(temporary, "wb") as handle:
        np.savez(handle, predicted=predicted, chosen=np.array(json.dumps(chosen | {"note": ranking.get("note", "")})))


def _with_statistics_of(decoder: Decoder, X: np.ndarray) -> Decoder:
    """The same weights behind a normaliser that knows the whole of X (n_bins, n_channels) beforehand."""
    seen = np.asarray(np.isfinite(X).all(axis=1))
    statistics = Normaliser.fit(features_of(np.where(seen[:, None], X, 0.0), decoder.metadata_), seen)
    other: Any = copy.copy(decoder)
    other.mean_, other.variance_ = statistics.mean, statistics.variance
    return other.with_fitted_statistics()


def _changed(arrays: Arrays, decoder: Any, lag: int, silent: list[int]) -> np.ndarray:
    """Counts (n_bins, n_channels) of `lag` bins later, within segments, some channels at the decoder's own mean."""
    X, segment, here = arrays.X.copy(), np.cumsum(arrays.reset), np.arange(len(arrays.X))
    there = np.clip(here + lag, 0, len(X) - 1)
    X[:] = arrays.X[there]
    X[(segment[there] != segment) | (there != here + lag)] = np.nan
    usual = raw_of(decoder.mean_, decoder.metadata_)
    X[:, silent] = np.where(np.isfinite(X[:, silent]), usual[silent], np.nan)
    return X


def _score(arrays: Arrays, predicted: np.ndarray, bins: slice, outputs: slice | list[int]) -> float:
    y = arrays.y[bins, outputs]
    counted = np.isfinite(y) if arrays.in_trial is None else np.isfinite(y) & arrays.in_trial[bins, None]
    return r2(np.where(counted, y, 0.0), predicted[bins, outputs], counted)


def rank(parameters: dict[str, Any], inputs: dict[str, Path], out: Path) -> None:
    """Write ``{channels, note}``: the channels of `target`, by place, from the one that changed most since `source` in
    rate and in tuning to `variable`; none, and why, where the two sessions cannot be compared.
    """
    source, target = (read_session(inputs[name]) for name in ("source", "target"))
    place = {name: i for i, name in enumerate(target["channel"].values.tolist())}
    first, second = (day(each, parameters["variable"]) for each in (source, target))
    try:
        # the order alone is wanted: few draws are enough
        found = drift(first, second, Settings(n_boot=50, n_permutations=19))
    except InputError as error:
        write_text(out, json.dumps({"channels": [], "note": str(error)}))
        return
    order = np.argsort(-channel_changes(found, first.spikes), kind="stable")
    ranked = [place[found.channels["common"][i]] for i in order]
    write_text(out, json.dumps({"channels": ranked, "note": ""}))


def channel_changes(found: Drift, spikes: bool = True) -> np.ndarray:
    """How far each common channel moved, (n_channels,) in √spikes, or in its own mean power on the first day: its mean,
    and its tuning vector at the root-mean-square speed of the first day, together. A direction that only one day has
    counts as a right angle.
    """
    rates = found.across.rates
    first, second = (found.bin_s * np.asarray(hz) for hz in (rates.first_hz, rates.second_hz))
    unit = np.ones(len(first)) if spikes else np.where(first > 0, first, np.inf)
    first, second = (np.sqrt(each) if spikes else each for each in (first, second))
    squared = (second - first) ** 2
    if (tuning := found.across.tuning) is not None:
        a, b = np.asarray(tuning.depth_first), np.asarray(tuning.depth_second)
        angle = np.nan_to_num(np.radians(np.asarray(tuning.pd_change_deg)), nan=np.pi / 2)
        squared = squared + np.maximum(a**2 + b**2 - 2 * a * b * np.cos(angle), 0.0)
    return np.sqrt(squared) / unit
