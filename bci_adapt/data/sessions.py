"""One recording session as labelled arrays: an `xarray.Dataset` of raw values, checked, stored and split.

Dimensions ``time``, ``channel``, ``axis``, ``trial``. ``time`` is the end of a bin in seconds: row i covers
``(time_i - bin_s, time_i]``. Inside a ``segment`` time is regular; a gap starts a new segment and has no rows.
Every kinematic variable carries a mask ``<name>_valid`` of its own, because velocity lacks the first bin of a segment
and bins of implausible speed, which position does not. Values flagged as implausible stay where they are.

Masks and segments are coordinates: they go along when one array is taken out of a session (``session["counts"]``). So
does what says whose channels they are, written on the coordinates ``time`` and ``channel`` (`signed`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from numbers import Real
from typing import Any

import numpy as np
import xarray as xr

from bci_adapt.data.binning import bin_ticks, to_ticks, whole_bins
from bci_adapt.errors import InputError

BIN_EDGE, FROM_START = "(start, end]", "[start, end)"
"""A spike on an edge belongs to the bin that ends there, or, where a layout says so, to the one that begins there."""
TEXT_ATTRS = [
    "session_id",
    "subject",
    "session_start",
    "bin_edge",
    "source_file",
    "source_sha256",
    "layout",
    "licence",
    "code_version",
    "description",
    "channel_identity",
    "dandiset",
    "dandiset_version",
    "asset_path",
    "parameters",
]
FIRST_REAL_YEAR = 1980
"""Archives hide dates by moving them into years before this one."""
RESERVED = {"counts", "segment", "valid", "evaluated", "time", "channel", "axis", "trial", "electrode", "session"}
"""Words of the schema, which no kinematic can have for a name."""
MASKS = ("segment", "valid")
"""Coordinates along time: which bins belong together, where neurons were observed. Kinematics have ``<name>_valid``."""
ON_CHANNELS = ("subject", "channel_identity", "channel_policy")
"""Attributes of a session that its coordinate ``channel`` carries too, as ``time`` carries ``session_id``: `signed`."""
NOBODYS = "session"
"""The id of a session to which nobody gave one: two of it need not be one recording."""
STATISTICS = ("n_spikes", "n_short_isi", "n_coincident")
"""Per-channel statistics of spike times, present only where there were spike times (`faults.spike_statistics`)."""
ATTRS = (*TEXT_ATTRS, "bin_s", "warnings", "thresholds")


def assemble(
    *,
    time_s: np.ndarray,
    counts: np.ndarray,
    segment: np.ndarray,
    valid: np.ndarray,
    channels: Sequence[str],
    kinematics: Mapping[str, tuple[np.ndarray, str, Sequence[str]]],
    trials: Mapping[str, np.ndarray],
    attrs: Mapping[str, Any],
    counts_unit: str = "count",
    electrodes: Sequence[str] = (),
    statistics: Mapping[str, np.ndarray] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Put plain arrays together as a session.

    `time_s` (n_bins,) bin ends; `counts` (n_bins, n_channels) whole counts, kept as uint16, or a power in float64 when
    `counts_unit` is not ``"count"``; `segment` (n_bins,) int; `valid` (n_bins,) bool; `kinematics` maps a name to
    values (n_bins, n_axes), their unit and the names of the axes, usable where they are not NaN; `trials` maps
    ``trial_...`` names to arrays whose first dimension is the trial; `electrodes` is the electrode of each channel
    where it is known; `statistics` maps names of `STATISTICS` to (n_channels,); `extra` holds further xarray variables.

    ``axis`` are the axes of the position, or of the first kinematic without one; a recorded velocity of as many
    columns shares them, any other kinematic has a dimension ``<name>_axis`` of its own.
    """
    for name in kinematics:
        if reserved(name):
            raise InputError(f"{attrs.get('session_id', 'session')}: a kinematic cannot be called {name!r}: reserved")
    dtype = np.uint16 if counts_unit == "count" else np.float64
    variables: dict[str, Any] = {
        "counts": (("time", "channel"), np.asarray(counts, dtype=dtype), {"units": counts_unit}),
    }
    main = "position" if "position" in kinematics else next(iter(kinematics), None)
    axes = list(kinematics[main][2]) if main is not None else []
    coords: dict[str, Any] = {
        "time": ("time", np.asarray(time_s, dtype=np.float64), {"units": "s", "long_name": "end of the bin"}),
        "channel": np.asarray(channels, dtype=np.str_),
        "axis": np.asarray(axes, dtype=np.str_),
        "segment": ("time", np.asarray(segment, dtype=np.int32)),
        "valid": ("time", np.asarray(valid, dtype=bool)),
    }
    if electrodes and any(electrodes):
        coords["electrode"] = ("channel", np.asarray(electrodes, dtype=np.str_))
    for name, (values, unit, own) in kinematics.items():
        values = np.asarray(values, dtype=np.float64)
        shares = name == main or (name == "recorded_velocity" and values.shape[1] == len(axes))
        axis = "axis" if shares else f"{name}_axis"
        if not shares:
            coords[axis] = np.asarray(list(own), dtype=np.str_)
        variables[name] = (("time", axis), values, {"units": unit})
        coords[f"{name}_valid"] = (("time", axis), np.isfinite(values))
    for name, values in trials.items():
        variables[name] = (("trial", "axis")[: values.ndim], values)
    for name, values in (statistics or {}).items():
        variables[name] = ("channel", np.asarray(values, dtype=np.int64))
    return xr.Dataset({**variables, **(extra or {})}, coords, {"Conventions": "CF-1.11", **attrs})


def reserved(name: str) -> bool:
    """Whether the schema needs a name for itself, so that no kinematic read from a file can have it."""
    derived = name in RESERVED or name in STATISTICS or name == "velocity"  # which is derived from the position
    return derived or name.startswith("trial_") or name.endswith(("_valid", "_axis"))


def with_masks(session: xr.Dataset) -> xr.Dataset:
    """The session with its masks and segments as coordinates, whatever they were."""
    masks = [str(name) for name in session.variables if name in MASKS or str(name).endswith("_valid")]
    return session.set_coords(masks)


def signed(session: xr.Dataset) -> xr.Dataset:
    """The session with what it is written on its coordinates, so that an array taken out of it says so as well."""
    channel = {name: str(session.attrs[name]) for name in ON_CHANNELS if name in session.attrs}
    time = {"session_id": str(session.attrs.get("session_id", ""))}
    return session.assign_coords(
        time=session["time"].assign_attrs(time), channel=session["channel"].assign_attrs(channel)
    )


def session_id_of(X: xr.Dataset | xr.DataArray) -> str:
    """The id of a session, or of the one that an array was taken out of; `NOBODYS` where nothing says it."""
    said = X.attrs if isinstance(X, xr.Dataset) else X["time"].attrs if "time" in X.coords else {}
    return str(said.get("session_id") or NOBODYS)


def kinematic_names(session: xr.Dataset) -> list[str]:
    """Return the names of the kinematic variables (time, axis) that have a mask, in alphabetical order."""
    return sorted(
        str(name)
        for name, value in session.data_vars.items()
        if value.dims in (("time", "axis"), ("time", f"{name}_axis")) and not str(name).endswith("_valid")
    )


def labels_of(session: xr.Dataset, name: str) -> np.ndarray:
    """Return the kinematic `name` (n_bins, n_axes), NaN where its mask says not usable.

    `InputError`, listing those there are, when the session does not hold it. Whether neurons were observed is another
    question, which `valid` answers.
    """
    if name not in (known := kinematic_names(session)):
        where = f"session {session.attrs.get('session_id', '')}"
        raise InputError(f"{where}: expected target {name!r}, it holds {', '.join(known) or 'none'}")
    return np.where(session[f"{name}_valid"].values, session[name].values.astype(np.float64), np.nan)


def start_of(session: xr.Dataset) -> datetime | None:
    """Return when a session began; None where its date is anonymised (before `FIRST_REAL_YEAR`) or is not one."""
    try:
        start = datetime.fromisoformat(str(session.attrs.get("session_start", "")))
    except ValueError:
        return None
    return start if start.year >= FIRST_REAL_YEAR else None


def check(session: xr.Dataset) -> None:
    """Raise `InputError`, naming what is wrong, unless `session` keeps the schema of this module."""
    where = str(session.attrs.get("session_id") or session.attrs.get("source_file") or "session")

    def require(holds: Any, message: str) -> None:
        if not holds:
            raise InputError(f"{where}: {message}")

    _check_attributes(session, require)
    _check_variables(session, require)
    _check_bins(session, require)
    for name, kind in {"trial_start_s": "f", "trial_stop_s": "f", "trial_go_s": "f", "trial_result": "U"}.items():
        require(name in session.data_vars, f"variable {name} is missing")
        require(session[name].dims == ("trial",), f"{name} must have dimension trial")
        require(session[name].dtype.kind == kind, f"{name} must be {'text' if kind == 'U' else 'float'}")


Require = Callable[[Any, str], None]
"""Raises `InputError` with the message given second unless what is given first holds."""


def _check_attributes(session: xr.Dataset, require: Require) -> None:
    missing = [name for name in ATTRS if name not in session.attrs]
    require(not missing, f"attributes missing: {', '.join(missing)}")
    for name in TEXT_ATTRS:
        require(isinstance(session.attrs[name], str), f"attribute {name} must be text")
    edge = session.attrs["bin_edge"]
    require(edge in (BIN_EDGE, FROM_START), f"bin_edge must be {BIN_EDGE!r} or {FROM_START!r}, not {edge!r}")
    for name, kind in (("warnings", list), ("thresholds", dict)):
        try:
            holds = isinstance(json.loads(session.attrs[name]), kind)
        except (TypeError, ValueError):
            holds = False
        require(holds, f"attribute {name} must be a JSON {kind.__name__}")


def _holds_power(session: xr.Dataset) -> bool:
    return "counts" in session and session["counts"].attrs.get("units") != "count"


def _check_variables(session: xr.Dataset, require: Require) -> None:
    """That every variable and coordinate of the schema is there, in its dimensions and type."""
    layouts = {"counts": ("time", "channel"), "segment": ("time",), "valid": ("time",)}
    dtypes = {"counts": np.float64 if _holds_power(session) else np.uint16, "segment": np.int32, "valid": np.bool_}
    for name in kinematic_names(session):
        dims = tuple(str(dim) for dim in session[name].dims)
        layouts |= {name: dims, f"{name}_valid": dims}
        dtypes |= {name: np.float64, f"{name}_valid": np.bool_}
    for name in STATISTICS:
        if name in session:
            layouts[name], dtypes[name] = ("channel",), np.int64
    for name, dims in layouts.items():
        require(name in session.variables, f"variable {name} is missing")
        require(session[name].dims == dims, f"{name} must have dimensions {dims}, not {session[name].dims}")
        dtype = np.dtype(dtypes[name])
        require(session[name].dtype == dtype, f"{name} must be {dtype}, not {session[name].dtype}")
    require("time" in session.coords, "coordinate time is missing")
    axes = {dims[1] for name, dims in layouts.items() if len(dims) == 2 and name != "counts"}
    for name in sorted({"channel", "axis"} | axes):
        require(name in session.coords, f"coordinate {name} is missing")
        labels = session[name].values
        require(labels.dtype.kind == "U", f"labels of {name} must be text, not {labels.dtype}")
        require(len(set(labels.tolist())) == labels.size, f"labels of {name} must be unique")
    require(session.sizes["channel"] >= 2, f"at least two channels are needed, found {session.sizes['channel']}")
    require(session.sizes["time"] > 0, "there is not a single bin")


def _check_bins(session: xr.Dataset, require: Require) -> None:
    """That time is regular inside a segment, and no value is missing where a mask calls it usable."""
    time_s, segment, bin_s = session["time"].values, session["segment"].values, session.attrs["bin_s"]
    require(isinstance(bin_s, float | int | np.number), f"attribute bin_s must be a number of seconds, not {bin_s!r}")
    require(time_s.dtype == np.float64, f"time must be float64, not {time_s.dtype}")
    ticks = bin_ticks(float(bin_s))
    steps = np.diff(to_ticks(time_s))
    inside = np.diff(segment) == 0
    require(np.all(np.diff(segment) >= 0), "segment numbers must not decrease")
    require(np.all(steps[inside] == ticks), "time must increase by bin_s from bin to bin inside a segment")
    require(isinstance(session["counts"].attrs.get("units"), str), "counts has no attribute units")
    require(
        not _holds_power(session) or np.isfinite(session["counts"].values).all(),
        "counts must be finite: what is not observed is masked by valid",
    )
    for name in kinematic_names(session):
        require(isinstance(session[name].attrs.get("units"), str), f"{name} has no attribute units")
        lost = ~np.isfinite(session[name].values) & session[f"{name}_valid"].values
        require(not lost.any(), f"{name} is NaN in {lost.sum()} places that {name}_valid calls usable")


def session_file_name(session: xr.Dataset) -> str:
    """Return the name of a session's file, with the width of its bins: another width is another file."""
    return f"{session.attrs['session_id']}_bin-{1000 * float(session.attrs['bin_s']):g}ms.nc"


def split(session: xr.Dataset, stream_s: float, min_held_out_s: float = 0.0) -> tuple[xr.Dataset, xr.Dataset]:
    """Split a session in time: its first `stream_s` seconds of bins, and the rest.

    A trial goes where it starts, one without a start to the rest. `InputError` when the rest holds less than
    `min_held_out_s` seconds of bins.
    """
    bin_s = float(session.attrs["bin_s"])
    numbers = all(isinstance(each, Real) for each in (stream_s, min_held_out_s))
    if not numbers or not stream_s > 0 or not min_held_out_s >= 0:
        raise InputError(
            f"stream_s must be positive and min_held_out_s not negative, got {stream_s!r}, {min_held_out_s!r}"
        )
    n_stream = whole_bins(stream_s, bin_s)
    n_held_out = session.sizes["time"] - n_stream
    if n_held_out < 1 or n_held_out * bin_ticks(bin_s) < to_ticks(min_held_out_s):
        raise InputError(
            f"{session.attrs['session_id']}: {session.sizes['time'] * bin_s:.1f} s are recorded; after a stream of "
            f"{stream_s:g} s {max(n_held_out, 0) * bin_s:.1f} s are left, at least {min_held_out_s:g} s are to be held "
            "out: shorten the stream or leave this session out"
        )
    early = session["trial_start_s"].values < session["time"].values[n_stream] - bin_s
    if "session" in session.coords:  # a concatenation: every session has a clock of its own
        order = list(dict.fromkeys(session["session"].values.tolist()))
        cut = order.index(session["session"].values[n_stream])
        of = np.asarray([order.index(name) for name in session["trial_session"].values.tolist()], dtype=np.int64)
        early = (of < cut) | ((of == cut) & early)
    parts = (slice(None, n_stream), early), (slice(n_stream, None), ~early)
    stream, held_out = (session.isel(time=rows, trial=np.flatnonzero(chosen)) for rows, chosen in parts)
    return stream, held_out


def require_one_subject(sessions: Sequence[xr.Dataset]) -> None:
    """Raise `InputError` for sessions of several subjects: electrodes of one name are not the same in two animals."""
    subjects = {str(each.attrs.get("subject", "")): str(each.attrs.get("session_id", "session")) for each in sessions}
    subjects.pop("", None)
    if len(subjects) > 1:
        listed = ", ".join(f"{name} ({session})" for name, session in subjects.items())
        raise InputError(f"sessions of several subjects cannot be matched: {listed}; their electrodes are not the same")


def require_one_meaning(variable: str, sessions: Sequence[xr.Dataset]) -> None:
    """Raise `InputError` unless all sessions hold `variable`, with the same axes in the same unit, and the same of
    neurons: counts, or a band's power in one unit.
    """
    meanings: dict[tuple[tuple[str, ...], str], str] = {}
    held: dict[str, str] = {}
    for session in sessions:
        labels_of(session, variable)
        axes = tuple(map(str, session[session[variable].dims[1]].values))
        meanings.setdefault((axes, str(session[variable].attrs["units"])), str(session.attrs["session_id"]))
        held.setdefault(str(session["counts"].attrs["units"]), str(session.attrs["session_id"]))
    if len(held) > 1:
        told = ("counts of spikes" if unit == "count" else f"the power of a band in {unit!r}" for unit in held)
        listed = "; ".join(f"{name} holds {what}" for name, what in zip(held.values(), told, strict=True))
        raise InputError(f"{listed}: a decoder takes one of them, read both sessions with one layout")
    if len(meanings) > 1:
        listed = "; ".join(f"{name}: {', '.join(axes)} in {unit!r}" for (axes, unit), name in meanings.items())
        raise InputError(
            f"{variable} does not mean the same in these sessions ({listed}): axes and unit must agree; choose the "
            f"axes that all have, session.sel({sessions[0][variable].dims[1]}=[…]), --axes {variable}=common, or in a "
            f'config [axes] {variable} = "common"'
        )


def unknown_channels(session: xr.Dataset) -> str:
    """What the channels are of a session whose channels mean nothing in another, in words."""
    return "sorted units" if session.attrs["channel_identity"] in ("unit", "none") else "columns without names"


def same_recording(session_ids: Sequence[str]) -> bool:
    """Whether sessions are parts of one recording, by ids that somebody gave."""
    return len(session_ids) == 1 or (len(set(session_ids)) == 1 and session_ids[0] != NOBODYS)


def concat(sessions: Sequence[xr.Dataset]) -> xr.Dataset:
    """Put sessions of the same channels, axes and bins behind one another along time, oldest first.

    Each begins a new segment and keeps its own clock; coordinates ``session (time)`` and ``trial_session (trial)`` say
    which one a bin or a trial is of.
    A decoder takes it for one session: it is normalised by one set of statistics, not each day by its own as in
    ``fit([first, second])``.
    Kinematics that not all have are left out, as are statistics of spike times. `InputError` unless channels and axes
    are the same in the same order (`channels.match` makes them so) and bins are equally wide.
    """
    if not sessions:
        raise InputError("at least one session is needed")
    require_one_subject(sessions)
    unknown = [each for each in sessions if each.attrs["channel_identity"] != "electrode"]
    for each in () if same_recording([str(each.attrs["session_id"]) for each in sessions]) else unknown:
        if each.attrs.get("channel_policy") not in ("position", "unit"):
            raise InputError(
                f"{each.attrs['session_id']}: its channels are {unknown_channels(each)}, and their numbers mean "
                "nothing in another session: match them first, bci_adapt.match(sessions, by=…) with 'pool' for sorted "
                "units on their electrodes, 'unit' where units were matched across days, by='position' where equal "
                "columns are the same"
            )
    first, *others = sorted(sessions, key=lambda each: datetime.fromisoformat(each.attrs["session_start"]))
    for other in others:
        require_same_channels(first, other)
        for what, same in (
            ("axes", other["axis"].values.tolist() == first["axis"].values.tolist()),
            ("bins", bin_ticks(float(other.attrs["bin_s"])) == bin_ticks(float(first.attrs["bin_s"]))),
            ("units and columns", _meanings(other, first) == _meanings(first, other)),
        ):
            if not same:
                raise InputError(
                    f"{other.attrs['session_id']}: its {what} are not those of {first.attrs['session_id']}"
                )
    everywhere = [name for name in first.data_vars if name not in STATISTICS and all(name in each for each in others)]
    parts, n_segments = [], 0
    for each in (first, *others):
        part = each[everywhere]
        foreign = [name for name in part.coords if str(name).endswith("_valid")]
        part = part.drop_vars([name for name in foreign if str(name).removesuffix("_valid") not in everywhere])
        part = part.assign(segment=part["segment"] + np.int32(n_segments))
        n_segments = int(part["segment"].values.max()) + 1
        ids = np.repeat([str(each.attrs["session_id"])], part.sizes["time"])
        own = np.repeat([str(each.attrs["session_id"])], part.sizes["trial"])
        parts.append(part.assign_coords(session=("time", ids), trial_session=("trial", own)))
    along: dict[str, Any] = {"data_vars": "minimal", "coords": "minimal", "compat": "override", "join": "exact"}
    bins = xr.concat([part.drop_dims("trial") for part in parts], "time", **along)
    trials = xr.concat([part.drop_dims("time") for part in parts], "trial", **along)
    ids = [str(each.attrs["session_id"]) for each in (first, *others)]
    ordered = (first, *others)
    joined: dict[str, Any] = {"session_id": "+".join(ids)}
    for name in ("source_file", "source_sha256", "asset_path"):
        joined[name] = ", ".join(str(each.attrs[name]) for each in ordered)
    warnings = [f"{each.attrs['session_id']}: {w}" for each in ordered for w in json.loads(each.attrs["warnings"])]
    made = bins.merge(trials).assign_attrs(
        first.attrs | joined | {"warnings": json.dumps(warnings, ensure_ascii=False)}
    )
    made.attrs.pop("quality", None)  # figures of one session alone
    return signed(made)


def _meanings(session: xr.Dataset, other: xr.Dataset) -> dict[str, Any]:
    """Unit and columns of the counts and of every kinematic that both sessions hold."""
    shared = [name for name in kinematic_names(session) if name in other]
    columns = {name: session[str(session[name].dims[1])].values.tolist() for name in shared}
    return {name: (session[name].attrs["units"], columns.get(name)) for name in ["counts", *shared]}


def require_same_channels(a: xr.Dataset, b: xr.Dataset) -> None:
    """Raise `InputError`, listing what differs, unless two sessions have the same channels in the same order."""
    first, second = a["channel"].values.tolist(), b["channel"].values.tolist()
    if first == second:
        return
    names = [str(s.attrs.get("session_id", "session")) for s in (a, b)]

    def listed(labels: list[str]) -> str:
        return f"{', '.join(labels[:8])}{f' and {len(labels) - 8} more' if len(labels) > 8 else ''}"

    differences = [
        f"only in {name}: {listed(extra)}"
        for name, extra in zip(
            names, ([c for c in first if c not in set(second)], [c for c in second if c not in set(first)]), strict=True
        )
        if extra
    ] or ["the same channels in another order"]
    raise InputError(
        f"channels of {names[0]} ({len(first)}) and {names[1]} ({len(second)}) differ; {'; '.join(differences)}. "
        "A decoder needs the same channels on every day: choose sessions of one array, or match them first"
    )
