"""Our own netCDF files, looked at before anything is read of them: what xarray and libhdf5 would believe unchecked.

A file of ours is plain: groups and datasets, dimension scales between them, zlib. It leads out of itself nowhere, and
what it claims to hold is there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bci_adapt.errors import InputError
from bci_adapt.ground.text import clean

MOST_OBJECTS = 2000
MOST_BYTES = 16 * 2**30
"""Most that the datasets of a file unpack to, together."""
MOST_ATTRIBUTE = 16 * 2**20
PACKED = 1100
"""zlib packs no more than 1032 bytes into one."""
NO_VARIABLE = "This is a netCDF dimension but not a netCDF variable"
_FILTERS = {1: "zlib", 2: "shuffle", 3: "fletcher32"}

Refuse = Callable[[str, str], None]


def require_plain(path: Path) -> None:
    """Raise `InputError`, naming the file and what is in it, unless it is a plain netCDF-4 file.

    Refused are links out of the file and soft links, datasets that are stored elsewhere, virtual, of a type or a filter
    that netCDF has not, or larger than what is stored can be; scale lists that do not lead to scales, and more than
    `MOST_OBJECTS` objects. What libhdf5 cannot open raises whatever h5py raises.
    """
    import h5py

    def refuse(key: str, what: str) -> None:
        raise InputError(f"{path}: {clean(key, 80)} {what}")

    total, seen = 0, 0
    with h5py.File(path, "r") as file:
        _attributes(file, "/", refuse)
        pending: list[tuple[str, Any]] = [("", file)]
        while pending:
            key, group = pending.pop()
            seen += len(group)
            if seen > MOST_OBJECTS or key.count("/") > 8:
                refuse(key or "/", f"holds more than {MOST_OBJECTS} groups and datasets, or too deep ones: not read")
            for name in group:
                child = f"{key}/{name}"
                if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                    refuse(child, "is a link, out of the file or inside it: not followed")
                found = group[name]
                _attributes(found, child, refuse)
                if isinstance(found, h5py.Group):
                    pending.append((child, found))
                elif isinstance(found, h5py.Dataset):
                    total += _dataset(found, child, refuse)
                    _scales(file, found, child, refuse)
                if total > MOST_BYTES:
                    refuse(child, f"brings the file to more than {MOST_BYTES >> 30} GiB unpacked: not read")


def _attributes(found: Any, key: str, refuse: Refuse) -> None:
    import h5py

    for name in found.attrs:
        held = h5py.h5a.open(found.id, name.encode("utf-8", "surrogateescape"))
        kind = held.dtype
        if math.prod(held.shape or ()) * kind.itemsize > MOST_ATTRIBUTE:
            refuse(key, f"has an attribute {clean(name, 40)} of more than {MOST_ATTRIBUTE >> 20} MiB: not read")
        plain = kind.kind in "iufbcS" or h5py.check_string_dtype(kind) is not None
        if not plain and name not in ("DIMENSION_LIST", "REFERENCE_LIST"):
            refuse(key, f"has an attribute {clean(name, 40)} of type {clean(kind, 40)}, neither number nor text")


def _dataset(found: Any, key: str, refuse: Refuse) -> int:
    """Check how a dataset is stored; returns the bytes that it unpacks to."""
    import h5py

    if found.external or found.is_virtual:
        refuse(key, "is stored in another file: not followed")
    kind, properties = found.dtype, found.id.get_create_plist()
    if kind.kind not in "iufbcS" and h5py.check_string_dtype(kind) is None:
        refuse(key, f"is of type {clean(kind, 40)}, which is neither number nor text")
    for place in range(properties.get_nfilters()):
        if (number := properties.get_filter(place)[0]) not in _FILTERS:
            refuse(key, f"is packed with filter {number}, expected {', '.join(_FILTERS.values())}")
    if (shape := found.shape) is None:
        refuse(key, "is empty")
    size, stored = math.prod(shape or ()) * kind.itemsize, found.id.get_storage_size()
    bare = clean(found.attrs.get("NAME", ""), 100).startswith(NO_VARIABLE)
    if not bare and size > PACKED * stored:
        refuse(key, f"claims shape {found.shape}, {size:,} bytes, of which {stored:,} are stored: not read")
    if math.prod(found.chunks or ()) * kind.itemsize > max(2**26, 2 * size):
        refuse(key, f"is stored in chunks of {found.chunks}: not read")
    return 0 if bare else size


def _scales(file: Any, found: Any, key: str, refuse: Refuse) -> None:
    """Check the lists by which datasets and their dimension scales know one another: libhdf5 trusts them."""
    import h5py

    if "DIMENSION_LIST" in found.attrs:
        held = h5py.h5a.open(found.id, b"DIMENSION_LIST")
        if held.shape != (found.ndim,) or h5py.check_vlen_dtype(held.dtype) != h5py.ref_dtype:
            refuse(
                key, f"has a DIMENSION_LIST of {clean(held.dtype, 40)} {held.shape}, expected one for each dimension"
            )
        for references, length in zip(found.attrs["DIMENSION_LIST"], found.shape, strict=True):
            for each in references:
                scale = file[each] if each else None
                if not isinstance(scale, h5py.Dataset) or clean(scale.attrs.get("CLASS", "")) != "DIMENSION_SCALE":
                    refuse(key, "has a DIMENSION_LIST that leads to no dimension scale")
                elif scale.shape != (length,):
                    refuse(key, f"of shape {found.shape} has a dimension scale of shape {scale.shape}")
    if "REFERENCE_LIST" in found.attrs:
        held = h5py.h5a.open(found.id, b"REFERENCE_LIST")
        if len(held.shape) != 1 or held.dtype.names != ("dataset", "dimension"):
            refuse(key, f"has a REFERENCE_LIST of {clean(held.dtype, 40)} {held.shape}, expected pairs")
        for reference, dimension in found.attrs["REFERENCE_LIST"]:
            user = file[reference] if reference else None
            if not isinstance(user, h5py.Dataset) or not 0 <= dimension < user.ndim:
                refuse(key, "has a REFERENCE_LIST that leads to no dimension of a dataset")
