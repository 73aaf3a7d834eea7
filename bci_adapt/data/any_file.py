"""The one door through which a file of any kind becomes a session: prepared, a recording, or arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from bci_adapt.data import binning
from bci_adapt.data.array_files import KEYS, WORDS, arrays_of, described
from bci_adapt.data.channels import UNMATCHED_UNITS, policy_of
from bci_adapt.data.faults import Thresholds
from bci_adapt.data.from_arrays import UNDATED, moment_of, session
from bci_adapt.data.nwb import open_nwb
from bci_adapt.data.nwb_describing import IDENTIFYING, Description
from bci_adapt.data.nwb_describing import identity as identity_of_recording
from bci_adapt.data.prepare import inspect as describe
from bci_adapt.data.prepare import prepare
from bci_adapt.data.remote import Remote
from bci_adapt.data.session_files import open_session, read_session
from bci_adapt.data.sessions import kinematic_names
from bci_adapt.errors import InputError
from bci_adapt.ground.storage import file_digest
from bci_adapt.ground.text import clean

IDENTITY = ("session_id", "subject", "session_start")
BIN_S = 0.05
"""The width of bins in seconds where a command was given none and the file has none of its own."""


def read(
    path: Path | str | Remote, bin_s: float | None = None, fallback_s: float | None = None, **options: Any
) -> xr.Dataset:
    """Read a session from any file: ``.nc`` a prepared one, ``.nwb`` or MATLAB 7.3 a recording, ``.npz`` or another
    ``.mat`` the arguments of `session` as arrays of their names.

    `bin_s` is needed for all but ``.nc`` and arrays with a ``bin_s`` of their own; where none is given and the file has
    none, `fallback_s` takes its place. `options` are those of `prepare.prepare` or `session`. `InputError` says why a
    file cannot be taken, and what would do.
    """
    path = path if isinstance(path, Remote) else Path(path)
    options = {name: value for name, value in options.items() if not _is_nothing(value)}
    if isinstance(path, Path) and is_prepared(path):
        return _prepared(path, bin_s, options)
    arrays = _known_arrays(path) or {}
    own_s, binned = arrays.pop("bin_s", None), "counts" in arrays
    width_s = bin_s if bin_s is not None else own_s if own_s is not None else fallback_s
    if width_s is None:
        raise InputError(f"{path}: bin_s, the width of a bin in seconds, is needed to read a recording")
    if own_s is not None:
        try:
            other = binning.bin_ticks(own_s) != binning.bin_ticks(width_s)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        if binned and other:
            raise InputError(f"{path}: holds counts in bins of {own_s:g} s (its bin_s), not of {width_s:g} s")
    if isinstance(path, Remote) or not arrays:
        return prepare(path, width_s, **options)
    if wrong := [name for name in options if name not in (*KEYS, "thresholds")]:
        raise InputError(f"{path}: holds arrays, which say what they are by name and take no {', '.join(wrong)}")
    about = {"source_file": path.name, "source_sha256": file_digest(path)}
    given: dict[str, Any] = {"session_id": path.stem} | arrays | options
    try:
        made = session(**given, bin_s=width_s, about=about)
    except InputError as error:
        raise error if path.name in str(error) else InputError(f"{path}: {error}") from error
    if binned and bin_s is None and own_s is None and "target_time_s" not in arrays:
        guess = (
            f"its counts are taken for bins of {width_s:g} s: neither bin_s nor target_time_s says how wide they are"
        )
        made.attrs["warnings"] = json.dumps([*json.loads(made.attrs["warnings"]), guess], ensure_ascii=False)
    return made


def _is_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, tuple | list | dict) and not value)


def _prepared(path: Path, bin_s: float | None, options: Mapping[str, Any]) -> xr.Dataset:
    """A prepared session as it is; `InputError` where other bins, thresholds or options are asked for than it has."""
    thresholds = options.get("thresholds")
    if others := [name for name in options if name != "thresholds"]:
        raise InputError(f"{path}: a prepared session takes no options, got {', '.join(others)}")
    stored = read_session(path)
    if bin_s is not None and binning.bin_ticks(bin_s) != binning.bin_ticks(float(stored.attrs["bin_s"])):
        raise InputError(
            f"{path}: is prepared in bins of {stored.attrs['bin_s']:g} s, not of {bin_s:g} s: ask for its own width, "
            f"or prepare its recording{_named(stored)} in the other"
        )
    if thresholds not in (None, Thresholds()):
        kept = json.loads(stored.attrs["thresholds"])
        if other := [name for name, value in asdict(thresholds).items() if kept.get(name) != value]:
            raise InputError(
                f"{path}: was prepared with other thresholds ({', '.join(other)}): leave them out, or prepare its "
                f"recording{_named(stored)} anew"
            )
    return stored


def _named(stored: xr.Dataset) -> str:
    name = clean(stored.attrs["source_file"], 120)
    return f" {name}" if name else ""


def is_prepared(path: Path | Remote) -> bool:
    """Whether a file is taken for a prepared session."""
    return Path(path.name).suffix == ".nc"


def is_recording(path: Path) -> bool:
    """Whether a file is taken for a recording that is to be binned by a layout: no prepared session and no arrays."""
    return not is_prepared(path) and arrays_of(path) is None


def bins_of(path: Path) -> tuple[bool, float | None]:
    """Whether a file is binned already, and the width of bins in seconds that it states, if it does."""
    if is_prepared(path):
        with open_session(path) as stored:
            return True, float(stored.attrs["bin_s"]) if "bin_s" in stored.attrs else None
    arrays = arrays_of(path) or {}
    return "counts" in arrays, arrays.get("bin_s")


def identity(path: Path, dated: bool = False) -> dict[str, str]:
    """session_id, subject and session_start of a file of any kind; nothing is binned.

    The start is "" where arrays, or a session prepared of them, do not say when they were recorded; of a recording that
    is an `InputError` where it must be `dated`, to order sessions by it.
    """
    if is_prepared(path):
        with open_session(path) as stored:
            if missing := [key for key in IDENTITY if key not in stored.attrs]:
                raise InputError(f"{path}: not a session: attribute {missing[0]} is missing")
            found = {key: str(stored.attrs[key]) for key in IDENTITY}
        return found | ({"session_start": ""} if found["session_start"] == UNDATED else {})
    arrays = _known_arrays(path)
    if arrays is None:
        with open_nwb(path, only=IDENTIFYING) as file:
            return identity_of_recording(file, dated)
    found = {"session_id": path.stem} | {key: str(arrays[key]) for key in IDENTITY if key in arrays}
    start = str(arrays.get("session_start", ""))
    return dict.fromkeys(IDENTITY, "") | found | {"session_start": start and moment_of(str(path), start)}


def inspect(path: Path | str | Remote) -> Description:
    """Describe what `read` would make of a file of any kind, see `prepare.inspect`; nothing is binned."""
    if isinstance(path, Remote):
        return describe(path)
    path = Path(path)
    if is_prepared(path):
        with open_session(path) as stored:
            found = described(path, "prepared session", stored.attrs, _sizes(stored), _names_elsewhere(stored))
            if not found.channels and stored.attrs["channel_identity"] == "unit":
                found.warnings.append(UNMATCHED_UNITS)
            return found
    arrays = _known_arrays(path)
    if arrays is None:
        return describe(path)
    sizes = {name: np.shape(value) for name, value in arrays.items() if name in ("counts", "target")}
    if "spikes" in arrays and "spike_unit" not in arrays:
        sizes["spikes"] = (len(arrays["spikes"]),)
    elif "spikes" in arrays:
        sizes["spikes"] = (int(np.max(arrays["spike_unit"], initial=-1)) + 1,)
    what = {
        str(arrays.get("target_kind", "position")) if name == "target" else name: size for name, size in sizes.items()
    }
    units = {str(arrays.get("target_kind", "position")): str(arrays.get("target_units", ""))}
    told = (*WORDS, "bin_s")
    about = {"session_id": path.stem} | {name: arrays[name] for name in told if name in arrays} | {"units": units}
    return described(path, f"arrays ({path.suffix[1:]})", about, what, list(arrays.get("channels", ())))


def _names_elsewhere(stored: xr.Dataset) -> list[str]:
    """Names of the channels by which another session may know them; [] where they are columns or sorted units."""
    return [] if policy_of(stored) == "none" else stored["channel"].values.tolist()


def _known_arrays(path: Path | Remote) -> dict[str, Any] | None:
    return arrays_of(path) if isinstance(path, Path) else None


def _sizes(stored: xr.Dataset) -> dict[str, tuple[int, ...]]:
    return {name: stored[name].shape for name in ("counts", *kinematic_names(stored))}
