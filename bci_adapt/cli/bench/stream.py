"""A stream that goes on for days: time per bin, memory, and what a checkpoint costs, from beginning to end."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bci_adapt.cli.bench.measuring import resident
from bci_adapt.decoders.online_rnn import OnlineDecoder

PIECE = 100_000
_BIN_S, _CHANNELS = 0.05, 16


def stream(n_bins: int, say: Callable[[str], None], piece: int = PIECE) -> list[dict[str, Any]]:
    """A small network through at least `n_bins` bins, stored after every `piece` of them: a row for each tenth of the
    pieces, with medians over these: ``{bins, us_per_bin, resident_mb, store_ms, file_bytes}``.
    """
    rng, t = np.random.default_rng(0), np.arange(piece) * _BIN_S
    y = np.stack([np.sin(1.1 * t), np.sin(1.7 * t)], axis=1)
    X = rng.poisson(np.exp(0.5 + y @ rng.normal(0, 0.3, (2, _CHANNELS)))).astype(float)
    decoder = OnlineDecoder(cell="tanh", n_hidden=16, n_updates=50, warm_up_s=5.0, bin_s=_BIN_S).fit(X[:2000], y[:2000])
    decoder.begin()
    decoder.partial_fit(X[:200], y[:200])  # compiles
    pieces = []
    with tempfile.TemporaryDirectory(prefix="bci-adapt-") as folder:
        file = Path(folder) / "at.npz"
        for number in range(-(-n_bins // piece)):
            say(f"{number * piece} of {n_bins} bins")
            begin = time.process_time()
            decoder.partial_fit(X, y)
            middle = time.process_time()
            decoder.save(file)
            store = time.process_time() - middle
            pieces.append((1e6 * (middle - begin) / piece, resident()[0] / 1e6, 1e3 * store, file.stat().st_size))
    parts = np.array_split(np.arange(len(pieces)), min(10, len(pieces)))
    names = ("us_per_bin", "resident_mb", "store_ms", "file_bytes")
    medians = [np.median([pieces[i] for i in part], axis=0).tolist() for part in parts]
    return [
        {"bins": int(part[-1] + 1) * piece, **dict(zip(names, found, strict=True))}
        for part, found in zip(parts, medians, strict=True)
    ]
