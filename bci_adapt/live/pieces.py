"""A decoder led through a session piece by piece, so that only one piece is in memory as a decoder computes with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from bci_adapt.data.labelled import Arrays
from bci_adapt.decoders.base import Decoder
from bci_adapt.errors import InputError
from bci_adapt.live import predicting
from bci_adapt.live.checkpoints import Checkpoint


@dataclass
class Pieces:
    """Bins of `session` as `decoder` takes them, when their turn comes; `missing` is the rule of its channels."""

    session: xr.Dataset
    decoder: Decoder
    missing: str

    def __len__(self) -> int:
        return self.session.sizes["time"]

    def part(self, begin: int, end: int) -> tuple[Arrays, list[str]]:
        """The bins from `begin` on and before `end`, and notes; a segment goes on from one piece to the next."""
        session = self.session.isel(time=slice(begin, end))
        arrays, notes = predicting.match_channels(self.decoder, session, self.missing)
        if begin:
            segment = self.session["segment"].values
            arrays.reset[0] = segment[begin] != segment[begin - 1]
        return arrays, notes

    def without_counts(self, piece_bins: int) -> tuple[Arrays, list[str]]:
        """All bins without their counts, X (n_bins, 0): labels and trials, which scores are made of, and the notes."""
        first, notes = self.part(0, min(piece_bins, len(self)))
        parts = [first]
        for begin in range(piece_bins, len(self), piece_bins):
            parts.append(self.part(begin, min(begin + piece_bins, len(self)))[0]._replace(X=first.X[:0]))
        trials = [each.in_trial for each in parts if each.in_trial is not None]
        whole = first._replace(
            X=np.zeros((len(self), 0)),
            y=np.concatenate([each.y for each in parts]),
            reset=np.concatenate([each.reset for each in parts]),
            in_trial=np.concatenate(trials) if trials else None,
            trial_end=np.full(len(self), len(self)),
        )
        return whole, notes


@dataclass
class Led:
    """A decoder as `protocol.prequential` leads it, which takes the counts of its bins from `pieces`, `piece_bins` at a
    time, and goes on from a `checkpoint`, where there is one.
    """

    pieces: Pieces
    piece_bins: int
    checkpoint: Checkpoint | None
    say: Callable[[str], None]
    note: Callable[[str], None]

    def __post_init__(self) -> None:
        if self.checkpoint is not None and type(self.pieces.decoder).adapt is not Decoder.adapt:
            raise InputError(
                f"checkpoint: {self.pieces.decoder.name} learns from the whole of a stream at its end, and has no "
                "state in between: leave it out"
            )

    @property
    def decoder(self) -> Decoder:
        """The decoder, as it stands."""
        return self.pieces.decoder

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pieces.decoder, name)

    def adapt(self, stream: Arrays, arrives: None = None) -> np.ndarray:
        """Predictions (n_bins, n_outputs) of the stream, each bin before its label was used.

        A network predicts what it would in one piece, bit for bit; where products of matrices are cut they may round
        differently.
        """
        n_bins, bin_s, begin, done = len(stream.y), stream.bin_s, 0, []
        if self.checkpoint is not None and (found := self.checkpoint.found()) is not None:
            self.pieces.decoder, before = found
            begin, done = len(before), [before]
            place = f"{begin * bin_s / 60:.1f} of {n_bins * bin_s / 60:.1f} min (bin {begin})"
            self.note(f"going on at {place}, from {self.checkpoint.file}")
        while begin < n_bins:
            end = min(begin + self.piece_bins, n_bins)
            bins, _ = self.pieces.part(begin, end)
            online = self.decoder.partial_fit(bins).online_predictions_ if begin else self.decoder.adapt(bins)
            if self.checkpoint is not None:
                self.checkpoint.write(self.decoder, end, online)
                self.say(f"{end * bin_s / 60:.1f} of {n_bins * bin_s / 60:.1f} min")
            begin = end
            done.append(online)
        return np.concatenate(done)

    def predict(self, rest: Arrays, continuing: bool) -> np.ndarray:
        """Predictions (n_bins, n_outputs) of the last bins of the session, as many as `rest` has, with weights held."""
        bins, _ = self.pieces.part(len(self.pieces) - len(rest.y), len(self.pieces))
        return self.decoder.predict(bins, continuing=continuing)
