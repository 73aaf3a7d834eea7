"""Job: a fitted decoder and a target session → what it predicts while it adapts, and afterwards with weights held."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bci_adapt.data.labelled import Arrays, job_arrays, permuted_channels, permuted_in_time, shifted_in_time
from bci_adapt.data.sessions import read_session
from bci_adapt.decoders.base import Decoder, decoder_class, delay_bins
from bci_adapt.errors import InputError
from bci_adapt.ground.storage import atomic_path
from bci_adapt.protocol.supervision import SMOOTHING_S, bins_of_trials, intended, shown, smoothed

SHIFT_S = 60.0  # least circular shift of a canary
LESSON_S = 10.0  # a decoder that teaches itself is asked for labels so often


class Stream(NamedTuple):
    """A session as one decoder meets it: counts, the labels it is shown, and when each becomes known (None: after the
    decoder's own delay).
    """

    X: np.ndarray
    y: np.ndarray
    reset: np.ndarray
    arrives: np.ndarray | None


def run(parameters: dict[str, Any], inputs: dict[str, Path], out: Path) -> None:
    """Run `decoder` through `target`: its first `stream_s` seconds online, the rest held out.

    Parameters: `variables`, `stream_s`; `become`, the class that a fitted decoder is turned into, or null; `constants`
    that replace the decoder's own; `supervision` (of `bci_adapt.protocol.supervision`), `at_trial_end` (labels come
    then, not after the delay), `label_fraction`, `budget_s` and `budget_trials` (null: no limit), `seed` of what is
    drawn; `control`, null or ``{kind: time | shift | channels, seed}``; `continuing` and `back`, whether those parts
    are wanted; `labels_in_fit`, whether the decoder was fitted on the stream's labels, which then count. Inputs
    `before0`, `before1` … are sessions that the decoder adapts to first, in order; `source` is what `back` predicts.

    Writes an npz: predictions ``online``, ``held_out``, ``continuing``, ``back`` (n_bins, n_outputs), without rows
    where not wanted; ``weight_change`` (NaN for decoders without one), ``diverged``, ``n_labels``.
    """
    arrays = job_arrays(parameters, inputs["target"])
    n_stream = arrays.n_stream(parameters["stream_s"])
    decoder = started(parameters, inputs)
    whole = met(arrays, inputs["target"], parameters, decoder)
    nothing = np.zeros((0, arrays.y.shape[1]))
    continuing, back = nothing, nothing
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # divergence is recorded below, not warned about
            for name in sorted((name for name in inputs if name.startswith("before")), key=lambda name: int(name[6:])):
                before = job_arrays(parameters, inputs[name])
                earlier = met(before, inputs[name], parameters, decoder)
                taught(decoder, part(earlier, slice(before.n_stream(parameters["stream_s"]))), parameters)
            online = taught(decoder, part(whole, slice(n_stream)), parameters)
            rest = slice(n_stream, len(arrays.X))
            held_out = decoder.predict(whole.X[rest], whole.reset[rest], continuing=True)
            known = arrays.y if parameters["labels_in_fit"] else whole.y
            n_labels = int(np.isfinite(known[:n_stream]).any(axis=1).sum())  # intention has none of positions
            change, diverged = getattr(decoder, "weight_change_", np.nan), getattr(decoder, "diverged_", False)
            if parameters["back"]:
                source = job_arrays(parameters, inputs["source"])
                back = decoder.with_fitted_statistics().predict(source.X, source.reset)
            if parameters["continuing"]:
                on = met(arrays, inputs["target"], {**parameters, "budget_s": None, "budget_trials": None}, decoder)
                continuing = taught(decoder, on_from(on, n_stream), parameters, going_on=True)
    except InputError as error:
        raise InputError(f"{decoder.name} on {arrays.session_id}: {error}") from error
    with atomic_path(out) as temporary, open(temporary, "wb") as handle:
        np.savez(
            handle,
            online=online,
            held_out=held_out,
            continuing=continuing,
            back=back,
            weight_change=np.array(change),
            diverged=np.array(diverged),
            n_labels=np.array(n_labels),
        )


def started(parameters: dict[str, Any], inputs: dict[str, Path]) -> Decoder:
    """The decoder as it is before it meets the target."""
    decoder = Decoder.load(inputs["decoder"])
    if parameters["become"]:
        return decoder_class(parameters["become"]).of(decoder, **parameters["constants"])
    return decoder.set_params(**parameters["constants"])


def met(arrays: Arrays, path: Path, parameters: dict[str, Any], decoder: Decoder) -> Stream:
    """What a decoder is shown of a session, under the control and the supervision asked for."""
    X, y = arrays.X, arrays.y
    if control := parameters["control"]:
        if control["kind"] == "time":
            X = permuted_in_time(X, control["seed"])
        elif control["kind"] == "shift":
            X = shifted_in_time(X, control["seed"], round(SHIFT_S / arrays.bin_s))
        else:
            X = permuted_channels(X, control["seed"])
    supervision = parameters["supervision"]
    if supervision == "none":
        y = np.full_like(y, np.nan)
    elif supervision == "intention":
        where = next(where for name, where in arrays.columns.items() if name.endswith("velocity"))
        meant = np.full_like(y, np.nan)
        meant[:, where] = intended(read_session(path), np.linalg.norm(y[:, where], axis=1))
        y = meant
    y = shown(y, arrays.bin_s, parameters["label_fraction"], parameters["budget_s"], parameters["seed"])
    if n_trials := parameters["budget_trials"]:
        y[bins_of_trials(n_trials, arrays.in_trial, arrays.trial_end) :] = np.nan
    return Stream(X, y, arrays.reset, arrays.trial_end if parameters["at_trial_end"] else None)


def part(stream: Stream, bins: slice) -> Stream:
    """The first bins of a stream."""
    arrives = None if stream.arrives is None else stream.arrives[bins]
    return Stream(stream.X[bins], stream.y[bins], stream.reset[bins], arrives)


def on_from(stream: Stream, first: int) -> Stream:
    """A stream from bin `first` on, the arrival of labels counted from there."""
    arrives = None if stream.arrives is None else stream.arrives[first:] - first
    return Stream(stream.X[first:], stream.y[first:], stream.reset[first:], arrives)


def taught(decoder: Decoder, stream: Stream, parameters: dict[str, Any], going_on: bool = False) -> np.ndarray:
    """Predictions (n_bins, n_outputs) of a decoder that adapts through a stream, by labels or by its own predictions;
    `going_on` with the session it is in, not with a new one.

    A decoder that teaches itself predicts a lesson of `LESSON_S` with the weights it has, smooths that over a window
    centred on each bin – which its label delay must cover, so that nothing is known before its time – and learns it.
    """
    if parameters["supervision"] != "pseudo":
        return decoder.partial_fit(*stream).online_predictions_ if going_on else decoder.adapt(*stream)  # type: ignore[attr-defined]
    bin_s: float = decoder.get_params()["bin_s"]
    half = min(round(SMOOTHING_S / bin_s), delay_bins(decoder.get_params()["label_delay_s"], bin_s))
    lesson, usable = round(LESSON_S / bin_s), np.isfinite(stream.y)
    if not going_on:
        decoder.begin()
    predictions = np.empty_like(stream.y)
    for first in range(0, len(stream.X), lesson):
        bins = slice(first, first + lesson)
        own = decoder.predict(stream.X[bins], stream.reset[bins], continuing=going_on or first > 0)
        labels = np.where(usable[bins], smoothed(own, half), np.nan)
        predictions[bins] = decoder.partial_fit(stream.X[bins], labels, stream.reset[bins]).online_predictions_  # type: ignore[attr-defined]
    return predictions
