"""From recordings to a decoder that is used: pretrained on the days so far, adapted to one more."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from bci_adapt.data import channels
from bci_adapt.data.axes import named_axes, told, with_axes
from bci_adapt.data.binning import bin_ticks, whole_bins
from bci_adapt.data.guarded_reading import opened
from bci_adapt.data.same_columns import ColumnsOf
from bci_adapt.data.scorable import named
from bci_adapt.data.sessions import require_one_meaning, start_of
from bci_adapt.decoders.base import Decoder
from bci_adapt.decoders.recommendation import recommended
from bci_adapt.errors import InputError
from bci_adapt.ground.catalog import unknown
from bci_adapt.ground.storage import file_digest
from bci_adapt.ground.text import clean
from bci_adapt.ground.version import __version__
from bci_adapt.live import columns, predicting
from bci_adapt.live.checkpoints import Checkpoint
from bci_adapt.live.pieces import Led, Pieces
from bci_adapt.protocol.evaluation import scores_of
from bci_adapt.protocol.prequential import prequential
from bci_adapt.protocol.supervision import Teaching, stream_of

Say = Callable[[str], None]


class Adapted(NamedTuple):
    """A decoder after a session, what it predicted there, and how well.

    `prediction` is that of `predicting.predict`, with ``held_out (time)``, True where weights were held. `scores` are
    dicts of variable, part (``online``, each bin predicted before its label; ``held_out``), bins (``in trial``,
    ``all``) and metrics, of variables with labels in the session; `n_labels` counts bins of the stream of which any
    label became known in it. `checkpoint` is where it stood on the way, if it was asked for; `columns` says whether the
    session's columns are those that the decoder knows.
    """

    decoder: Decoder
    prediction: xr.Dataset
    scores: list[dict[str, Any]]
    n_labels: int
    stream_s: float
    notes: list[str]
    checkpoint: Checkpoint | None = None
    columns: ColumnsOf | None = None


def pretrain(
    files: Sequence[Path | str],
    target: str = "velocity",
    bin_s: float | None = None,
    missing: str = "refuse",
    say: Say = lambda text: None,
    by: str | None = None,
    axes: Mapping[str, Sequence[str]] = MappingProxyType({}),
    unobserved: str | None = None,
    note: Say = lambda text: None,
    **constants: Any,
) -> Decoder:
    """The recommended decoder, trained on sessions of one subject: on the first, and extended by each further one.

    Parameters
    ----------
    files : recordings, prepared sessions (``.nc``) or arrays (``.npz``, ``.mat``), the earliest first.
    target : kinematic that is decoded, or several, separated by commas.
    bin_s : width of a bin; `any_file.BIN_S` when None, or that of the sessions that are prepared already.
    missing : what happens to channels that not every session has (`channels.match`).
    by : what makes two channels the same one (`channels.POLICIES`); None takes what fits the first session.
    axes : axes of a target that are decoded, by its name (`data.axes.named_axes`); all where it names none.
    unobserved : of recordings, where units were observed at different times, as in `prepare.prepare`.
    note : is told, before training, of sessions whose columns are not those of the others.
    constants : replace those of the decoder.

    Raises
    ------
    InputError
        for files that are something else, in another order, given twice, of other bins, axes or units, or without the
        target.
    """
    sessions = _opened([Path(file) for file in files], bin_s, unobserved, say)
    names = [each.strip() for each in target.split(",")]
    if others := [name for name in axes if name not in names]:
        raise InputError(f"axes: {unknown(others[0], names, 'target')}")
    chosen = named_axes(axes, sessions)
    for text in told(chosen, sessions):
        say(text)
    sessions = [with_axes(session, chosen) for session in sessions]
    _require_one_kind(sessions, names)
    matched = channels.match(sessions, by=by, missing=missing)
    known, findings = columns.known_from(matched)
    for text in findings:
        note(text)
    decoder = recommended(**constants)
    for n_days, latest in enumerate(matched, start=1):
        session_id = latest.attrs["session_id"]
        say(f"{n_days} of {len(matched)}: training on {session_id}")
        train = decoder.fit if n_days == 1 else decoder.extend
        try:
            train(matched[:n_days], names)
        except InputError as error:
            raise InputError(f"{session_id}: {error}") from error
    columns.remember(decoder, known)
    return decoder


def _require_one_kind(sessions: Sequence[xr.Dataset], names: Sequence[str]) -> None:
    """`InputError` unless sessions are in order of their dates, and their bins, targets, axes and units are alike."""
    for name in names:
        require_one_meaning(name, sessions)
    first, latest = sessions[0], None
    for session in sessions:
        where = clean(session.attrs["session_id"])
        if bin_ticks(float(session.attrs["bin_s"])) != bin_ticks(float(first.attrs["bin_s"])):
            raise InputError(
                f"{where}: is prepared in bins of {session.attrs['bin_s']:g} s, the first session in bins of "
                f"{first.attrs['bin_s']:g} s: prepare it again, or say --bin"
            )
        start = start_of(session)
        if start is not None and latest is not None and start < latest:
            raise InputError(f"{where}: was recorded before the session given ahead of it: give the earliest first")
        latest = start or latest


def _opened(paths: Sequence[Path], bin_s: float | None, unobserved: str | None, say: Say) -> list[xr.Dataset]:
    """The sessions to train on; `InputError` where there is none, or one file is given twice."""
    if not paths:
        raise InputError("pretrain takes at least one session")
    if len({path.resolve() for path in paths}) < len(paths):
        raise InputError("pretrain: one file is given twice")
    sessions = []
    for path in paths:
        say(f"reading {path.name}")
        sessions.append(opened(path, bin_s, unobserved=unobserved))
    return sessions


def _bins_between(every_s: float, bin_s: float) -> int:
    """Bins from one checkpoint to the next."""
    if (n_bins := whole_bins(every_s, bin_s)) < 1:
        raise InputError(f"every_s: expected at least a bin between two checkpoints, got {every_s:g} s")
    return n_bins


def adapt(
    decoder_file: Path | str,
    session_file: Path | str,
    stream_s: float = 600.0,
    missing: str = "refuse",
    by: str | None = None,
    *,
    checkpoint: Path | str | None = None,
    every_s: float = 600.0,
    say: Say = lambda text: None,
    note: Say = lambda text: None,
) -> Adapted:
    """Adapt a saved decoder through the first `stream_s` seconds of a session, at most half of it, and predict the rest
    with weights held.

    Session and decoder meet as in `predicting.predict`. Labels are used where the session has the decoder's outputs, in
    the same axes and units; without any, only what needs no label adapts.

    With `checkpoint`, a file, where the decoder stands is written there after every `every_s` seconds of the stream;
    the same call goes on from it, and comes to the same numbers as one that was never ended, bit for bit. `note` is
    told from where, `say` how far it is. It stays until ``Adapted.checkpoint`` is told to `remove` it, when what it was
    kept for is written.

    Raises
    ------
    InputError
        as `predicting.predict`, for labels in other units, and for a checkpoint that is damaged, or of another decoder,
        session, version or settings.
    """
    decoder_file, session_file = Path(decoder_file), Path(session_file)
    decoder, session = predicting.opened(decoder_file, session_file, by)
    if not stream_s > 0.0:
        raise InputError(f"stream_s must be positive, got {stream_s}")
    pieces, kept = Pieces(session, decoder, missing), None
    if checkpoint is not None:
        asked = {"decoder": file_digest(decoder_file), "session": file_digest(session_file)}
        asked |= {"stream_s": stream_s, "missing": missing, "matched_by": by, "version": __version__}
        kept = Checkpoint(Path(checkpoint), _bins_between(every_s, float(session.attrs["bin_s"])), asked)
    whose = columns.judged(decoder, session, keep=True)
    for text in whose.findings:
        note(text)
    arrays, notes = pieces.without_counts(len(pieces) if kept is None else kept.piece_bins)
    if not (n_stream := arrays.n_stream(stream_s)):
        raise InputError(f"{session_file}: {len(pieces)} bins hold no stream of {stream_s:g} s")
    led = Led(pieces, n_stream if kept is None else kept.piece_bins, kept, say, note)
    found = prequential(led, stream_of(arrays, Teaching()), n_stream)
    predicted = np.vstack([found.online, found.held_out])
    if found.diverged or not np.isfinite(predicted).all():
        raise InputError(f"{decoder_file}: diverged on {clean(session.attrs['session_id'])}; nothing is kept of it")
    decoder = led.decoder
    prediction = predicting.prediction_of(session, predicted, decoder, decoder_file, [*whose.findings, *notes])
    prediction["held_out"] = "time", np.arange(len(predicted)) >= n_stream
    scores = [row for row in scores_of(arrays, found, n_stream) if row["part"] in ("online", "held_out")]
    if not found.n_labels:
        notes = [*notes, "no label became known in the stream: only what needs none was adapted"]
    for variable, axes in named(arrays, n_stream).items():
        notes = [*notes, *(f"{variable} {clean(axis)} is in no score: {why}" for axis, why in axes.items())]
    return Adapted(
        decoder, prediction, scores, found.n_labels, n_stream * float(session.attrs["bin_s"]), notes, kept, whose
    )
