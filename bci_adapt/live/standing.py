"""Where a live decoder stands, in the file of its decoder: a file like any other decoder's, from which it goes on."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bci_adapt.decoders import stored
from bci_adapt.decoders.base import Decoder
from bci_adapt.errors import InputError

_KEY, _ARRAYS = "live", "live_"


def write(decoder: Decoder, place: Mapping[str, Any], arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Write a decoder with a `place`, as JSON can hold it, and the `arrays` that go with it, by name; the file is whole
    or as it was. `InputError` where it cannot be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        decoder.save(Path(folder) / "decoder.npz")
        header, own = stored.read(Path(folder) / "decoder.npz")
    more = {f"{_ARRAYS}{name}": array for name, array in arrays.items()}
    stored.write(path, header | {_KEY: dict(place)}, own | more)


def read(path: Path) -> tuple[Decoder, dict[str, Any] | None, dict[str, np.ndarray]]:
    """The decoder of a file, and place and arrays as they were given to `write`; None and none where the file is of a
    decoder alone. Raises `InputError` as `Decoder.load`.
    """
    decoder = Decoder.load(path)
    header, arrays = stored.read(path)
    place = header.get(_KEY)
    if place is not None and not isinstance(place, dict):
        raise InputError(f"{path}: where it stands cannot be read; begin anew: ba.live(ba.load({str(path)!r}))")
    return decoder, place, {k.removeprefix(_ARRAYS): v for k, v in arrays.items() if k.startswith(_ARRAYS)}
