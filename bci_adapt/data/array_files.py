"""Files of arrays, ``.npz`` and MATLAB's, as the arguments of `from_arrays.session` that they hold by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from bci_adapt.data.nwb import MATLAB, MATLAB_VARIABLES, MAX_BYTES, NwbFile, open_nwb
from bci_adapt.data.nwb_describing import Description, Neural, Series, id_of
from bci_adapt.errors import InputError
from bci_adapt.ground.arrays import read_npz
from bci_adapt.ground.catalog import unknown
from bci_adapt.ground.text import clean

KEYS = (
    "spikes", "spike_unit", "counts", "target", "target_time_s", "channels", "axes", "target_units", "target_kind",
    "session_id", "subject", "session_start", "bin_s", "counts_units",
)  # fmt: skip

WORDS = ("target_units", "target_kind", "session_id", "subject", "session_start", "counts_units")
"""Keys that hold a text."""

NAMES = ("channels", "axes")
"""Keys that hold a text for each channel or axis."""

_TEXT = (*WORDS, *NAMES)


def arrays_of(path: Path) -> dict[str, Any] | None:
    """The arguments of `from_arrays.session`, and ``bin_s``, in an ``.npz`` or ``.mat`` file; None for other files.

    A ``.mat`` file may be of any version; one of version 7.3 with the variables of a recording (layout ``indy``) is
    none of arrays. `InputError` for a file that cannot be read, or holds something else.
    """
    if path.suffix not in (".npz", ".mat") or not path.is_file():
        return None
    found = _of_hdf5(path) if path.suffix == ".mat" and is_hdf5(path) else _stored(path)
    if found is None:
        return None
    if "header" in found and path.suffix == ".npz":
        raise InputError(f"{path}: is a saved decoder, not a recording: give the recording that it is to be used on")
    if not found:
        raise InputError(f"{path}: holds no arrays; expected spikes or counts, as bci_adapt.session takes them")
    for key in found:
        if key not in KEYS:
            needed = "; expected spikes or counts, and whatever bci_adapt.session takes by that name"
            raise InputError(f"{path}: {unknown(key, KEYS, 'array')}{needed if 'counts' not in found else ''}")
    made = {key: _value(path, key, np.asarray(value)) for key, value in found.items()}
    if "session_id" in made:
        made["session_id"] = id_of(made["session_id"]) or path.stem
    return made


def is_hdf5(path: Path) -> bool:
    """Whether a file has the signature of HDF5, at its start or behind a user block."""
    return bool(h5py.is_hdf5(path))


def _stored(path: Path) -> Mapping[str, Any]:
    """What numpy or scipy reads of a file."""
    if path.suffix == ".npz":
        return read_npz(path, "a file of arrays (npz)", MAX_BYTES)
    from scipy.io import loadmat

    try:
        return {key: value for key, value in loadmat(path, squeeze_me=True).items() if not key.startswith("__")}
    except Exception as error:  # scipy lets through whatever a damaged byte leads to
        raise InputError(f"{path}: cannot be read as arrays ({clean(error, 200)})") from error


def _of_hdf5(path: Path) -> dict[str, Any] | None:
    """What a MATLAB 7.3 file of arrays holds, turned as MATLAB shows it; None for a recording."""
    with open_nwb(path, arrays=True) as file:
        if file.version != MATLAB or all(name in file for name in MATLAB_VARIABLES):
            return None
        top = [key for key in file.objects if "/" not in key]
        return {key: _variable(file, key) if key in KEYS else None for key in top}


def _variable(file: NwbFile, key: str) -> Any:
    """A variable of a MATLAB 7.3 file as `scipy.io.loadmat` gives it of an older one, without dimensions of one."""
    kind = file.label(key, "MATLAB_class")
    if not isinstance(file.objects[key], h5py.Dataset):
        raise file.error(key, f"is a MATLAB {kind or 'struct'}: save it as an array, a cell array or a char array")
    if kind == "cell":
        cells = [cell for row in file.cells(key) for cell in row]
        made = np.empty(len(cells), dtype=object)
        for place, cell in enumerate(cells):
            made[place] = _characters(cell) if key in _TEXT else cell.T.squeeze()
        return made
    if kind == "char":
        rows = np.atleast_2d(file.array(key).T)
        return np.array([_characters(row) for row in rows], dtype=np.str_).squeeze()
    if kind == "string" or (kind not in ("logical", "single", "double") and not kind.startswith(("int", "uint"))):
        raise file.error(key, f"is a MATLAB {kind or 'object'}: save texts as char or cellstr, all else as numbers")
    if file.attribute(key, "MATLAB_empty", 0):
        return np.zeros(0)
    return np.asarray(file.array(key)).T.squeeze()


def _characters(codes: NDArray[Any]) -> str:
    """The text of MATLAB's character codes."""
    return clean("".join(map(chr, codes.T.ravel().tolist()))) if codes.dtype == np.uint16 else ""


def _value(path: Path, key: str, value: NDArray[Any]) -> Any:
    """The argument `key` of a session as a file holds it; `InputError` for text where numbers belong, or vice versa."""
    if key in NAMES and value.dtype.kind == "O" and all(isinstance(v, str) for v in value.flat):
        return [str(each) for each in value.flat]  # a MATLAB cell of names
    if key in NAMES and value.dtype.kind == "U":
        return [str(each).strip() for each in value.ravel().tolist()]
    if key in WORDS and value.dtype.kind == "U":
        return clean(value.reshape(-1)[0]) if value.size else ""
    if key == "spikes" and value.dtype.kind == "O":  # a MATLAB cell of spike times
        return [np.atleast_1d(each) for each in value.ravel()]
    if key == "bin_s" and value.dtype.kind in "iuf" and value.size == 1:
        return float(value.reshape(()))
    if key != "bin_s" and key not in _TEXT and value.dtype.kind in "iufb":
        return value
    what = "text" if key in _TEXT else "one number" if key == "bin_s" else "numbers"
    raise InputError(f"{path}: {key} must hold {what}, found {value.dtype} of shape {value.shape}")


def described(
    path: Path, kind: str, about: Mapping[str, Any], sizes: Mapping[str, tuple[int, ...]], channels: list[str]
) -> Description:
    """What a file of arrays, or a prepared session, of arrays of these `sizes` is."""
    session_id, subject, start, text = (
        str(about.get(name, "")) for name in ("session_id", "subject", "session_start", "description")
    )
    found = Description(path.name, kind, session_id, subject, start, text, channels=channels)
    width = f", bins of {about['bin_s']:g} s" if "bin_s" in about else ""
    found.why = f"{kind}{width}: read as it is, no layout is needed"
    found.trials, found.electrodes = {"count": 0, "columns": []}, {"count": len(channels), "groups": []}
    for name, size in sizes.items():
        if name in ("counts", "spikes"):
            what = "binned counts" if name == "counts" else "spike times"
            found.neural.append(Neural(what, name, size, size[-1], "", None, None, None))
        else:
            unit = dict(about.get("units", {})).get(name, "")
            found.series.append(Series(name, kind, size, unit, None, False, None, None))
    if "warnings" in about:
        found.warnings += json.loads(about["warnings"])
    return found
