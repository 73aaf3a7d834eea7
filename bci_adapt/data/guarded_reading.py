"""Recordings and sessions read in a child process (`ground.guarded`): what commands, jobs and notebooks read with.

A file that crashes or hangs the HDF5 library, or claims more than there is memory for, is one `InputError` that names
it. Arrays come back as they are, in numpy's own format; `any_file` and `prepare` do the same in the process itself.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from bci_adapt.data import any_file, from_arrays
from bci_adapt.data.faults import Thresholds
from bci_adapt.data.layouts.base import Layout
from bci_adapt.data.nwb_describing import Description, Neural, Series
from bci_adapt.data.remote import Remote
from bci_adapt.data.session_files import write_session
from bci_adapt.errors import InputError
from bci_adapt.ground import catalog
from bci_adapt.ground.guarded import Ended, call, warm_up

MANY = 100
"""Files that one child identifies: their limits are those of the first."""
WARM_UP = f"{__name__}:warmed_up"
"""What the reading process calls first, see `ground.guarded.warm_up`."""


def read(
    path: Path | str | Remote, bin_s: float | None = None, fallback_s: float | None = None, **options: Any
) -> xr.Dataset:
    """As `any_file.read`, with files of HDF5 read in a child process."""
    if isinstance(path, Remote) or not _guarded(path):
        return any_file.read(path, bin_s, fallback_s, **options)
    warm_up(WARM_UP)
    widths = {"bin_s": bin_s, "fallback_s": fallback_s}
    with tempfile.TemporaryDirectory(prefix="bci-adapt-") as folder:
        found = call(f"{__name__}:_read", Path(path), **widths, options=_plain(options), folder=folder)
        return _unpacked(found, Path(folder))


def opened(path: Path | str | Remote, bin_s: float | None = None, **options: Any) -> xr.Dataset:
    """The session of a file that a command was given: `read`, in bins of `any_file.BIN_S` where neither `bin_s` nor
    the file says how wide they are.
    """
    return read(path, bin_s, any_file.BIN_S, **options)


def write(path: Path | str, bin_s: float | None, out: Path, **options: Any) -> None:
    """Write the session that `read` gives to `out`; in a child process, from which nothing comes back but the file."""
    if not _guarded(path):
        write_session(any_file.read(path, bin_s, **options), out)
        return
    warm_up(WARM_UP)
    call(f"{__name__}:_write", Path(path), bin_s=bin_s, out=str(out), options=_plain(options))


def inspect(path: Path | str | Remote) -> Description:
    """As `any_file.inspect`, with files of HDF5 read in a child process."""
    if isinstance(path, Remote) or not _guarded(path):
        return any_file.inspect(path)
    found = call(f"{__name__}:_inspect", Path(path))
    for name, kind in (("neural", Neural), ("series", Series)):
        found[name] = [kind(**each | {"shape": tuple(each["shape"])}) for each in found[name]]
    return Description(**found)


def identify(paths: Sequence[Path], dated: bool) -> list[dict[str, str]]:
    """What `any_file.identity` says of each of `paths`, with files of HDF5 read in a child process.

    Many are read by one child, which a file of them may end: then each is read by its own, and the error names it.
    """
    guarded, found = [path for path in paths if _guarded(path)], dict[Path, dict[str, str]]()
    for first in range(0, len(guarded), MANY):
        some = guarded[first : first + MANY]
        try:
            found |= _identified(some, dated)
        except Ended:
            for path in some:
                found |= _identified([path], dated)
    return [found[path] if path in found else any_file.identity(path, dated) for path in paths]


def _identified(paths: Sequence[Path], dated: bool) -> dict[Path, dict[str, str]]:
    said = call(f"{__name__}:_identify", paths[0], paths=[str(path) for path in paths], dated=dated)
    return dict(zip(paths, said, strict=True))


def bins_of(path: Path) -> tuple[bool, float | None]:
    """As `any_file.bins_of`, with files of HDF5 read in a child process."""
    binned, bin_s = call(f"{__name__}:_bins_of", path) if _guarded(path) else any_file.bins_of(path)
    return binned, bin_s


def is_recording(path: Path) -> bool:
    """As `any_file.is_recording`, with files of HDF5 read in a child process."""
    return call(f"{__name__}:_is_recording", path) if _guarded(path) else any_file.is_recording(path)


def warmed_up() -> None:
    """Import what reading needs, layouts and what xarray and netCDF load when first used, before there is a file."""
    catalog.variants("bci_adapt.data.layouts", Layout)
    session = from_arrays.session(counts=np.eye(4), bin_s=0.1)
    with tempfile.TemporaryDirectory(prefix="bci-adapt-") as folder:
        write_session(session, Path(folder) / "session.nc")
        any_file.read(Path(folder) / "session.nc")


def _guarded(path: Path | str) -> bool:
    """Whether a file is one that libhdf5 or scipy reads: a damaged one can crash either."""
    path = Path(path)
    return path.is_file() and path.suffix != ".npz"


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON can hold them."""
    made = {}
    for name, value in options.items():
        if isinstance(value, Thresholds):
            value = asdict(value)
        elif isinstance(value, Mapping):
            value = dict(value)
        elif isinstance(value, Sequence) and not isinstance(value, str):
            value = list(value)
        try:
            json.dumps(value)
        except TypeError as error:
            raise InputError(f"{name} cannot be used with a recording: {error}") from error
        made[name] = value
    return made


# ------------------------------------------------------------------------------------------------ in the child


def _options(given: dict[str, Any]) -> dict[str, Any]:
    return given | ({"thresholds": Thresholds(**given["thresholds"])} if given.get("thresholds") else {})


def _read(
    path: Path, bin_s: float | None, fallback_s: float | None, options: dict[str, Any], folder: str
) -> dict[str, Any]:
    return _packed(any_file.read(path, bin_s, fallback_s, **_options(options)), Path(folder))


def _write(path: Path, bin_s: float | None, out: str, options: dict[str, Any]) -> None:
    write_session(any_file.read(path, bin_s, **_options(options)), out)


def _inspect(path: Path) -> dict[str, Any]:
    return any_file.inspect(path).to_json()


def _identify(path: Path, paths: list[str], dated: bool) -> list[dict[str, str]]:
    return [any_file.identity(Path(each), dated) for each in paths]


def _bins_of(path: Path) -> tuple[bool, float | None]:
    return any_file.bins_of(path)


def _is_recording(path: Path) -> bool:
    return any_file.is_recording(path)


# ------------------------------------------------------------------------------------------------ between the two


def _packed(session: xr.Dataset, folder: Path) -> dict[str, Any]:
    """Write the arrays of a session into `folder`; returns what else there is of it."""
    about = []
    for number, (name, variable) in enumerate(session.variables.items()):
        np.save(folder / f"{number}.npy", variable.values, allow_pickle=False)
        about.append([name, list(variable.dims), _attributes(variable.attrs), name in session.coords])
    return {"variables": about, "attributes": _attributes(session.attrs)}


def _attributes(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(name): value.tolist() if hasattr(value, "tolist") else value for name, value in attrs.items()}


def _unpacked(found: dict[str, Any], folder: Path) -> xr.Dataset:
    variables = {}
    for number, (name, dims, attrs, _) in enumerate(found["variables"]):
        variables[name] = xr.Variable(dims, np.load(folder / f"{number}.npy", allow_pickle=False), attrs)
    coords = [name for name, *_, coordinate in found["variables"] if coordinate]
    return xr.Dataset(variables, attrs=found["attributes"]).set_coords(coords)
