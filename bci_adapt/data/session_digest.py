"""The digest of a session: of every number, text, name and attribute in it, however the file that holds it is laid out.

A session's file carries it as an attribute. Values are taken as they come back from netCDF, which has one kind of text
and makes a scalar of an attribute that is a list of one.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import xarray as xr

from bci_adapt.ground.arrays import digest_of

DIGEST = "content_sha256"
"""The attribute of a session's file that holds its digest. It is none of the session: whoever reads it takes it off."""


def session_digest(session: xr.Dataset) -> str:
    """SHA-256 in hexadecimal of a session's variables (name, dimensions, type, bytes, attributes, whether they are
    coordinates) and attributes, `DIGEST` aside.
    """
    return hashlib.sha256(json.dumps(sorted(_parts(session).items())).encode()).hexdigest()


def differing(session: xr.Dataset, other: xr.Dataset) -> list[str]:
    """What two sessions do not have alike, in words: ``variable counts``, ``attribute subject``."""
    one, two = _parts(session), _parts(other)
    return sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))


def _parts(session: xr.Dataset) -> dict[str, Any]:
    parts = {f"attribute {name}": _attribute(value) for name, value in session.attrs.items() if name != DIGEST}
    for name, variable in session.variables.items():
        attrs = sorted([str(key), _attribute(value)] for key, value in variable.attrs.items())
        about = [list(map(str, variable.dims)), name in session.coords, attrs, digest_of(variable.values)]
        parts[f"variable {name}"] = about
    return parts


def _attribute(value: Any) -> Any:
    """An attribute as JSON tells it apart: numbers by type and bytes, so that NaN and −0 are values, too."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, list | tuple | np.ndarray) and np.size(value) == 1:
        value = np.asarray(value, object if isinstance(value, list | tuple) else None).reshape(-1)[0]
    if isinstance(value, str):
        return str(value)
    array = np.asarray(value)
    if array.dtype.kind in "OSTU":
        return [str(each) for each in array.reshape(-1).tolist()]
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    return [array.dtype.name, list(np.shape(value)), hashlib.sha256(array.tobytes()).hexdigest()]
