"""Decoders in files: one ``.npz`` of arrays and a header in JSON, with a digest over both; no pickle.

What is read is held against what a decoder of these parameters has – `Form` says it array by array – also where the
digest is right or, in files of earlier versions, absent: compiled loops do not check their indices.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bci_adapt.decoders.settings import as_plain, may_be
from bci_adapt.errors import InputError
from bci_adapt.ground.arrays import digest_of_arrays, read_npz
from bci_adapt.ground.storage import atomic_path
from bci_adapt.ground.text import clean

DIGEST, HEADER = "sha256", "header"
WHAT = "a decoder saved by bci_adapt (npz)"


class Form(NamedTuple):
    """What a stored array is.

    `dims` names its dimensions, apart by spaces; what a name is long, the decoder says (`Decoder._lengths`: a number,
    None for a dimension that is not there), a digit is that long, and any other name is as long wherever it stands.
    `least` and `most` bound its values, `nan` lets some be missing.
    """

    dims: str = ""
    kind: str = "float64"
    least: float = -np.inf
    most: str = ""
    nan: bool = False


def write(path: Path, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write header and arrays with their digest; whole or, on any failure, not at all. `InputError` for a path that
    cannot be written and for what JSON cannot hold.
    """
    plain = json.loads(json.dumps(header, default=as_plain))
    text = json.dumps(plain | {DIGEST: digest_of_arrays(plain, arrays)})
    if path.is_dir():
        raise InputError(f"{path}: expected the file that the decoder goes to, got a folder")
    try:
        with atomic_path(path) as temporary, open(temporary, "wb") as handle:
            np.savez(handle, **{HEADER: np.array(text)}, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error}") from error


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and arrays of a file; `InputError` where it is something else, or no longer what `write` wrote."""
    if path.is_file() and not zipfile.is_zipfile(path):
        raise InputError(f"{path}: expected {WHAT}, this is none; commands take the decoder first, then the session")
    arrays = read_npz(path, WHAT)
    held = arrays.pop(HEADER, None)
    try:
        header = json.loads(str(held[()])) if held is not None and held.dtype.kind == "U" and not held.ndim else None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: {WHAT} was expected, its header cannot be read: {clean(error, 200)}") from error
    if not isinstance(header, dict):
        raise InputError(f"{path}: {WHAT} was expected, its header is none")
    digest = header.pop(DIGEST, None)
    if digest is not None and digest != digest_of_arrays(header, arrays):
        raise InputError(f"{path}: is not as it was written: damaged, copy it again or train the decoder again")
    return header, arrays


def require_arrays(
    forms: Mapping[str, Form], lengths: Mapping[str, int | None], arrays: Mapping[str, np.ndarray], of: str
) -> None:
    """`InputError`, naming the array, unless `arrays` are those that `forms` describe; others are left alone."""
    if missing := sorted(set(forms) - set(arrays)):
        raise InputError(f"arrays missing from a stored {of} decoder: {', '.join(missing)}")
    known = dict(lengths)
    for name, form in forms.items():
        array, dims = arrays[name], [dim for dim in form.dims.split() if known.get(dim, 0) is not None]
        if array.ndim == len(dims):
            for dim, length in zip(dims, array.shape, strict=True):
                known.setdefault(dim, int(dim) if dim.isdigit() else length)
        if array.shape != tuple(known.get(dim, "any") for dim in dims) or array.dtype != form.kind:
            expected = ", ".join(f"{dim} = {known.get(dim, 'any')}" for dim in dims)
            raise InputError(f"{name}: expected {form.kind} ({expected}), got {array.dtype} {array.shape}")
        most = known[form.most] if form.most else np.inf
        if form.kind == "float64" and not (np.isfinite(array) | (np.isnan(array) if form.nan else False)).all():
            raise InputError(
                f"{name}: expected finite numbers, got others: its weights have diverged, or it is damaged"
            )
        if form.kind != "bool" and ((array < form.least) | (array > most)).any():
            raise InputError(f"{name}: expected numbers of {form.least:g} to {most:g}, got some outside")


def require_sizes(header: Mapping[str, Any]) -> None:
    """`InputError` unless what a header says of inputs, outputs and bins are such numbers."""
    for name in ("n_features_in_", "n_outputs_"):
        value = header.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"{name}: expected a whole number, 1 or more, got {clean(value, 40)}")
    if not isinstance(header.get("flat_", False), bool):
        raise InputError(f"flat_: expected true or false, got {clean(header['flat_'], 40)}")


def require_width(bin_s: Any) -> None:
    """`InputError` for a width of bins that is none."""
    if bin_s is None or not may_be("bin_s", bin_s):
        raise InputError(f"bin_s_: expected seconds, more than 0, got {clean(bin_s, 40)}")


def require_kinds(parameters: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """`InputError` for parameters that are yes or no, or words, by their default, and are given as something else."""
    for name, default in defaults.items():
        if isinstance(default, bool | str) and not isinstance(parameters[name], type(default)):
            what = "true or false" if isinstance(default, bool) else "a word"
            raise InputError(f"{name}: expected {what}, got {clean(parameters[name], 40)}")


def require_metadata(about: Any, n_features: int, n_outputs: int) -> None:
    """`InputError` unless what a file says of a decoder's inputs and outputs is of these numbers of them."""
    if not _fits(about, n_features, n_outputs):
        raise InputError("what it says of its channels and outputs does not fit its weights; save it again")


def _fits(about: Any, n_features: int, n_outputs: int) -> bool:
    if not isinstance(about, dict):
        return False
    names, outputs, scale = about.get("channels"), about.get("outputs"), about.get("power_scale")
    if names is not None and not (_texts(names) and len(set(names)) == len(names) == n_features):
        return False
    if not all(_texts(about.get(key, [])) for key in ("sessions", "adapted_to")):
        return False
    spikes = about.get("spikes")
    if not (spikes is None or isinstance(spikes, str) or _texts(spikes)):
        return False
    words = [about.get(key) for key in ("counts_units", "per", "subject", "channel_identity", "channel_policy")]
    if not all(word is None or isinstance(word, str) for word in words):
        return False
    if scale is not None and not (
        isinstance(scale, list) and len(scale) == n_features and all(may_be("memory_s", each) for each in scale)
    ):
        return False
    at = about.get("stands_at")
    if at is not None and not (isinstance(at, list) and [type(each) for each in at] == [str, int, int]):
        return False
    return outputs is None or (isinstance(outputs, list) and _outputs_fit(outputs, n_outputs))


def _outputs_fit(outputs: list[Any], n_outputs: int) -> bool:
    for each in outputs:
        if not isinstance(each, dict) or not _texts(each.get("axes")):
            return False
        if not _texts([each.get("variable"), each.get("units")]):
            return False
    names = {each["variable"] for each in outputs}
    return len(names) == len(outputs) and (not outputs or sum(len(each["axes"]) for each in outputs) == n_outputs)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)
