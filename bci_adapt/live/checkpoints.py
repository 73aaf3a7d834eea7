"""Where an adaptation stands, written while it goes on: a stream of hours that ends by force is taken up where it was.

A checkpoint is the decoder as it is – weights, optimiser, rule memory, hidden state, normaliser, labels that wait –
with its place in the stream and what it is a checkpoint of, sealed (`ground.seals`); beside it, ``<name>.predictions``,
are the predictions so far, appended piece by piece, so that writing costs the same after an hour and after a week.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bci_adapt.decoders.base import Decoder
from bci_adapt.errors import InputError
from bci_adapt.ground import seals
from bci_adapt.ground.storage import atomic_path
from bci_adapt.ground.text import clean

_KEY = "checkpoint"
_NUMBER = np.dtype("<f8")


@dataclass
class Checkpoint:
    """The checkpoint `file` of what `asked` describes: names to plain values, digests of the inputs among them.

    `piece_bins` is how many bins there are between two checkpoints.
    """

    file: Path
    piece_bins: int
    asked: Mapping[str, Any]
    chain: str = ""

    @property
    def rows(self) -> Path:
        """The file of the predictions so far."""
        return self.file.with_name(self.file.name + ".predictions")

    def found(self) -> tuple[Decoder, np.ndarray] | None:
        """The decoder and its predictions so far, (n_bins, n_outputs); None where there is no checkpoint yet.

        Raises
        ------
        InputError
            for a checkpoint of something else, naming what, and for one that is damaged.
        """
        if not self.file.exists():
            return None
        if not seals.is_whole(self.file):
            raise self._unusable("is damaged, or no checkpoint")
        decoder = Decoder.load(self.file)
        kept = decoder.metadata_.get(_KEY)
        if not isinstance(kept, Mapping):
            raise self._unusable("is no checkpoint")
        asked = {**self.asked, "piece_bins": self.piece_bins}
        if others := [name for name in asked if kept["asked"].get(name) != asked[name]]:
            told = (f"{name.replace('_', ' ')} {clean(str(kept['asked'].get(name)), 20)}" for name in others)
            raise self._unusable(f"is of something else ({', '.join(told)})")
        predictions = self._read(int(kept["bins"]), decoder.n_outputs_, str(kept["chain"]))
        self._take_out(decoder)
        return decoder, predictions

    def write(self, decoder: Decoder, bins: int, predicted: np.ndarray) -> None:
        """Keep a decoder that stands before bin `bins`, and its predictions since the last time, (n, n_outputs)."""
        rows = np.ascontiguousarray(predicted, _NUMBER)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with open(self.rows, "r+b" if self.rows.exists() else "w+b") as handle:
            # what a killed process wrote beyond its last checkpoint is overwritten
            handle.seek((bins - len(rows)) * decoder.n_outputs_ * _NUMBER.itemsize)
            handle.truncate()
            handle.write(rows.tobytes())
            handle.flush()
            os.fsync(handle.fileno())
        self.chain = _linked(self.chain, rows)
        kept = {"asked": {**self.asked, "piece_bins": self.piece_bins}, "bins": bins, "chain": self.chain}
        decoder.metadata_ = {**decoder.metadata_, _KEY: kept}
        try:
            with atomic_path(self.file) as temporary:
                decoder.save(temporary)
                seals.seal(temporary, self.file)
        finally:
            self._take_out(decoder)

    def remove(self) -> None:
        """Remove what was written."""
        seals.remove(self.file)
        self.rows.unlink(missing_ok=True)

    def _read(self, bins: int, n_outputs: int, chain: str) -> np.ndarray:
        """The first `bins` predictions, whose digest must be that of the checkpoint; `chain` goes on from there."""
        size = bins * n_outputs
        try:
            found = np.fromfile(self.rows, _NUMBER, size)
        except OSError as error:
            raise self._unusable(f"has lost its predictions ({error.strerror})") from error
        if len(found) == size:
            found = found.reshape(bins, n_outputs)
            self.chain = ""
            for first in range(0, bins, self.piece_bins):
                self.chain = _linked(self.chain, found[first : first + self.piece_bins])
        if len(found) * n_outputs != size or self.chain != chain:
            raise self._unusable(f"does not fit its predictions ({self.rows.name}), which are damaged")
        return found

    def _take_out(self, decoder: Decoder) -> None:
        decoder.metadata_ = {name: value for name, value in decoder.metadata_.items() if name != _KEY}

    def _unusable(self, why: str) -> InputError:
        return InputError(f"{self.file}: this checkpoint {why}: give another file, or remove it and begin again")


def _linked(chain: str, rows: np.ndarray) -> str:
    """The digest of predictions whose earlier ones have the digest `chain`."""
    return hashlib.sha256(chain.encode() + np.ascontiguousarray(rows, _NUMBER).tobytes()).hexdigest()
