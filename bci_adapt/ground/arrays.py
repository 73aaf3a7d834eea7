"""Arrays in ``.npz`` files: read with limits, and told apart by a digest.

numpy trusts what a file says of itself: an archive unpacks to whatever it claims, and memory is taken for the shape
that an array's header names before there are bytes for it. Both are looked at before anything is read.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bci_adapt.errors import InputError
from bci_adapt.ground.text import clean

MOST_ARRAYS = 1000
_HEADER = 20_000  # bytes of an array's header that are looked at


def digest_of(values: np.ndarray) -> list[Any]:
    """Type, shape and digest of the bytes of an array, as JSON can hold them; texts are one type, however long."""
    if values.dtype.kind in "OTU":
        kind, content = "text", json.dumps(values.tolist(), default=str).encode()
    else:
        values = np.asarray(values, values.dtype.newbyteorder("="), order="C")
        kind, content = values.dtype.name, values.reshape(-1).view(np.uint8).data
    return [kind, list(np.shape(values)), hashlib.sha256(content).hexdigest()]


def read_npz(path: Path | str, what: str, most: int | None = None) -> dict[str, np.ndarray]:
    """Every array of an ``.npz`` file, by name.

    `what` says in a few words what the file should be. It may unpack to `most` bytes; to no more than it is long when
    None, which suits what `numpy.savez` wrote. `InputError`, naming the file, for one that is missing, no plain file, a
    claim of more, Python objects, and whatever cannot be read.
    """
    path = Path(path)
    try:
        if not path.is_file():  # a pipe would be waited for
            path.stat()
            raise InputError(f"{path}: is no file; {what} was expected")
        if not zipfile.is_zipfile(path):
            raise InputError(f"{path}: {what} was expected, this is none")
        with zipfile.ZipFile(path) as archive:
            return _arrays(path, archive, path.stat().st_size if most is None else most)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; {what} was expected") from error
    except InputError:
        raise
    except Exception as error:  # zipfile and numpy let through whatever a damaged byte leads to
        raise InputError(f"{path}: {what} was expected, it cannot be read: {clean(error, 200)}") from error


def _arrays(path: Path, archive: zipfile.ZipFile, most: int) -> dict[str, np.ndarray]:
    listed = archive.infolist()
    names = [each.filename.removesuffix(".npy") for each in listed]
    if len(listed) > MOST_ARRAYS or len(set(names)) != len(names):
        raise InputError(f"{path}: holds {len(listed)} arrays, some of one name or more than {MOST_ARRAYS}: not read")
    size = sum(each.file_size for each in listed)
    if size > most:
        raise InputError(f"{path}: unpacks to {size:,} bytes, at most {most:,} were expected: not read")
    return {name: _array(path, archive, each) for name, each in zip(names, listed, strict=True)}


def _array(path: Path, archive: zipfile.ZipFile, listed: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(listed) as member:
        start = io.BytesIO(member.read(_HEADER))
    version = np.lib.format.read_magic(start)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(start)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(start)
    name = clean(listed.filename, 80)
    if dtype.hasobject:
        raise InputError(f"{path}: {name} holds Python objects, which are not read")
    claimed, held = math.prod(shape) * dtype.itemsize, listed.file_size - start.tell()
    if claimed != held:
        raise InputError(f"{path}: {name} claims {claimed:,} bytes, shape {shape}, and holds {held:,}: damaged")
    return np.lib.format.read_array(io.BytesIO(archive.read(listed)), allow_pickle=False)


def digest_of_arrays(about: Any, arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 in hexadecimal of what JSON can hold, and arrays by name."""
    parts = [about, sorted([name, digest_of(values)] for name, values in arrays.items())]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
