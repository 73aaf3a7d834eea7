"""Sessions in files: netCDF, whole or absent, with a digest that tells whether it is still what was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from bci_adapt.data.session_digest import DIGEST, differing, session_digest
from bci_adapt.data.sessions import check, signed, with_masks
from bci_adapt.errors import InputError
from bci_adapt.ground.netcdf import require_plain
from bci_adapt.ground.storage import atomic_path, refusal, write_netcdf
from bci_adapt.ground.text import clean

_UNREADABLE = Exception  # h5py, h5netcdf and xarray let through whatever a damaged byte leads to


def write_session(session: xr.Dataset, path: Path | str) -> None:
    """Check `session` and write it as netCDF, with its digest; the file is whole or, on any failure, untouched.

    It is read once before it gets its name: `InputError` for a session that netCDF would give back as another.
    """
    check(session)
    session = signed(with_masks(session)).drop_encoding()  # a scale of an earlier file would round
    # Without a fill value NaN and every other bit pattern come back as they were.
    encoding: dict[Any, dict[str, Any]] = {
        name: {"_FillValue": None} for name, value in session.variables.items() if value.dtype.kind == "f"
    }
    encoding["counts"] = {**encoding.get("counts", {}), "zlib": True, "complevel": 1, "shuffle": True}
    with atomic_path(Path(path)) as temporary:
        stamped = session.assign_attrs({DIGEST: session_digest(session)})
        write_netcdf(stamped, temporary, encoding)
        with open_session(temporary) as lazy:
            if lost := differing(session, lazy.load()):
                raise InputError(
                    f"{path}: netCDF gives back as another what the session holds: {clean(', '.join(lost))}; store it "
                    "as numbers or text, times as seconds, without scale_factor, add_offset or _FillValue"
                )


def read_session(path: Path | str) -> xr.Dataset:
    """Read and check a session written by `write_session`.

    `InputError` names a file that is missing, no session, or no longer as it was written: its digest says so, where it
    has one. Files of earlier versions and of the user's own have none.
    """
    lazy, digest = _opened(path)
    with lazy:
        try:
            session = lazy.load()
            check(session)
        except InputError as error:
            raise InputError(f"{path}: not a session: {error}") from error
        except _UNREADABLE as error:
            raise _unreadable(path, error) from error
    if digest is not None and digest != session_digest(session):
        raise InputError(
            f"{path}: is not as it was written: damaged, prepare it again from the recording (whoever changed it on "
            f"purpose without bci_adapt takes the attribute {DIGEST} off)"
        )
    for value in session.variables.values():
        value.encoding = {}
    session.encoding = {}
    return session


def _unreadable(path: Path | str, error: Exception) -> InputError:
    """What to say of a file that cannot be read: what the system refuses is no fault of the file."""
    damaged = f"{path}: not a readable session file ({clean(error, 200)}); prepare it again"
    return InputError(refusal(error, path) or damaged)


def open_session(path: Path | str) -> xr.Dataset:
    """Open a session without reading its arrays: each is read when it is first used. Close it, or use ``with``.

    `InputError` when the file is missing or is not a readable file of this kind; the arrays are not checked.
    """
    return _opened(path)[0]


def _opened(path: Path | str) -> tuple[xr.Dataset, Any]:
    """A session whose arrays are not read yet, and the digest that its file holds; None where it holds none."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such session file")
    try:
        require_plain(path)
        session = xr.open_dataset(path, engine="h5netcdf", decode_times=False)
        digest = session.attrs.pop(DIGEST, None)
        if missing := [name for name in ("counts", "time", "channel") if name not in session.variables]:
            session.close()
            raise InputError(f"{path}: not a session: variable {missing[0]} is missing")
        # Text comes back from netCDF as Python objects; labels are small, so they get numpy's own type at once.
        text = {str(name): _text(value) for name, value in session.variables.items() if value.dtype.kind in "OTU"}
        made = signed(with_masks(session.assign(text)))
    except InputError as error:
        raise InputError(f"{error}; prepare it again") from error
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error
    made.set_close(session.close)
    return made, digest


def _text(variable: xr.Variable) -> xr.Variable:
    return xr.Variable(variable.dims, np.asarray(variable.values.tolist(), dtype=np.str_), variable.attrs)
