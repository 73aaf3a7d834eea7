"""The one prequential loop, on plain arrays: a decoder predicts each bin of a stream before its label, learns, and
predicts the rest of the session with its weights held. `bci_adapt.protocol.evaluation` is the same for sessions.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bci_adapt.decoders.timing import LABEL_DELAY_S, delay_bins
from bci_adapt.ground.storage import atomic_path
from bci_adapt.protocol.supervision import SMOOTHING_S, Stream, smoothed

LESSON_S = 10.0  # a decoder that teaches itself is asked for labels so often


class Predictions(NamedTuple):
    """What a decoder predicted of a session, by part (n_bins, n_outputs), without rows where a part was not asked for.

    ``online`` is of the stream, each bin before its label; ``held_out`` of the rest, weights held; ``continuing`` of
    the rest, still learning; ``back`` of the last training session, with the weights of the stream's end. Then the
    bins of the stream of which any label became known in it, how far the weights moved (NaN for decoders that do not
    tell), and whether they diverged, both at the stream's end.
    """

    online: np.ndarray
    held_out: np.ndarray
    continuing: np.ndarray
    back: np.ndarray
    n_labels: int
    weight_change: float
    diverged: bool

    def save(self, path: Path) -> None:
        """Write an npz, an array a field."""
        arrays: dict[str, Any] = {name: np.asarray(value) for name, value in self._asdict().items()}
        with atomic_path(path) as temporary, open(temporary, "wb") as handle:
            np.savez(handle, **arrays)


def prequential(
    decoder: Any,
    session: Stream,
    n_stream: int,
    *,
    continuing: Stream | None = None,
    teaches_itself: bool = False,
    label_delay_s: float = LABEL_DELAY_S,
) -> Predictions:
    """Lead a fitted decoder through a session: its first `n_stream` bins are the stream, the rest is held out.

    `decoder`, a `Decoder` or a user's own in an `Own`, is changed: it is afterwards as the stream left it. `continuing`
    is the session once more with what is shown to a decoder that goes on learning beyond the stream; a copy of the
    decoder does that. For `teaches_itself` see `adapted`. `label_delay_s` is how late labels become known to a decoder
    that has no such setting.
    """
    if not hasattr(decoder, "label_delay_s"):
        session = session.late(label_delay_s)
        continuing = None if continuing is None else continuing.late(label_delay_s)
    nothing = np.zeros((0, session.arrays.y.shape[1]))
    with np.errstate(over="ignore", invalid="ignore"):  # divergence is told, not warned about
        online = adapted(decoder, session.until(n_stream), teaches_itself)
        found = Predictions(
            online=online,
            held_out=decoder.predict(session.since(n_stream).arrays, continuing=True),
            continuing=nothing,
            back=nothing,
            n_labels=_labels_known(session.until(n_stream), getattr(decoder, "label_delay_s", 0.0)),
            weight_change=float(getattr(decoder, "weight_change_", np.nan)),
            diverged=bool(getattr(decoder, "diverged_", False)),
        )
        if continuing is not None:
            later = adapted(copy.deepcopy(decoder), continuing.since(n_stream), teaches_itself, going_on=True)
            found = found._replace(continuing=later)
    return found


def _labels_known(stream: Stream, label_delay_s: float) -> int:
    """Bins of a stream of which any label becomes known before its end."""
    n_bins = len(stream.arrays.y)
    late = np.arange(n_bins) + delay_bins(label_delay_s, stream.arrays.bin_s)
    arrives = late if stream.arrives is None else stream.arrives
    return int((np.isfinite(stream.arrays.y).any(axis=1) & (arrives < n_bins)).sum())


def adapted(decoder: Any, stream: Stream, teaches_itself: bool = False, going_on: bool = False) -> np.ndarray:
    """Predictions (n_bins, n_outputs) of a decoder that adapts through a stream, by labels or by its own predictions;
    `going_on` with the session it is in, not with a new one.

    A decoder that teaches itself predicts a lesson of `LESSON_S` with the weights it has, smooths that over a window
    centred on each bin – which its label delay must cover, so that nothing is known before its time – and learns it.
    """
    if not teaches_itself:
        if going_on:
            return decoder.partial_fit(stream.arrays, arrives=stream.arrives).online_predictions_
        return decoder.adapt(stream.arrays, arrives=stream.arrives)
    bin_s: float = decoder.bin_s_
    half = min(round(SMOOTHING_S / bin_s), delay_bins(decoder.get_params()["label_delay_s"], bin_s))
    lesson, predictions = round(LESSON_S / bin_s), np.empty_like(stream.arrays.y)
    if not going_on:
        decoder.begin()
    for first in range(0, len(predictions), lesson):
        bins = slice(first, first + lesson)
        part = stream.arrays.part(bins)
        own = decoder.predict(part, continuing=going_on or first > 0)
        labels = np.where(np.isfinite(part.y), smoothed(own, half), np.nan)
        predictions[bins] = decoder.partial_fit(part._replace(y=labels)).online_predictions_
    return predictions
