"""What enters a decoder: a session, labelled arrays or plain numbers, checked and brought into one form.

This is the one way in, for a notebook, a job, a pipeline and the command line alike. Three kinds are taken:

- a **session** (`xarray.Dataset` of `bci_adapt.session`, `read`, `match` …), or its `data.labelled.Arrays`. Masks,
  segments, bin width, the names of channels and axes, and units come with it.
- **labelled arrays** (`xarray.DataArray`): counts (time, channel) and labels (time, axis), which must say of themselves
  what a session says: coordinates ``valid`` (time), ``<name>_valid`` of the labels, and ``segment`` (time) where time
  has a gap. Taken out of a session without these they are refused: bins that were masked would count. Whose
  channels they are stands on the coordinates ``time`` and ``channel`` (`data.sessions.signed`), and is checked like a
  session's; of arrays made by hand, channels with names are taken for electrodes and numbers for unknown columns.
- **plain arrays**. Nothing of them is checked but their shape, and that they are real numbers ≥ 0: columns are taken in
  the order in which they come, NaN marks what was not observed, and a gap in time is where ``reset`` is True.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import xarray as xr

from bci_adapt.data.binning import bin_ticks, to_ticks
from bci_adapt.data.labelled import Arrays, session_arrays
from bci_adapt.data.sessions import NOBODYS, ON_CHANNELS, check, kinematic_names, session_id_of, signed
from bci_adapt.decoders import same_channels
from bci_adapt.errors import InputError
from bci_adapt.ground.catalog import unknown
from bci_adapt.ground.one_by_one import OneByOne
from bci_adapt.ground.text import clean

MISSING = ("refuse", "zero")
"""What a decoder does with a session whose channels are not its own: see `match_channels`."""


class Bins(NamedTuple):
    """One session, checked: X with unobserved bins set to 0, labels with missing ones set to 0, and flags. Decoders get
    its X as `features`, the door itself counts or power.
    """

    X: np.ndarray
    Y: np.ndarray
    weight: np.ndarray
    observed: np.ndarray
    reset: np.ndarray

    @property
    def usable(self) -> np.ndarray:
        """(n_bins,) where there are neurons and a label of every output."""
        return self.observed & (self.weight > 0).all(axis=1)


def is_labelled(X: Any) -> TypeGuard[xr.Dataset | xr.DataArray | Arrays]:
    """Whether X says itself what it is: a session, its arrays, or a DataArray."""
    return isinstance(X, xr.Dataset | xr.DataArray | Arrays)


def several(X: Any) -> bool:
    """Whether X is a list of sessions, not one."""
    if isinstance(X, OneByOne):
        return True
    items: Any = X
    listed = isinstance(X, list | tuple) and not isinstance(X, Arrays)
    return listed and all(is_labelled(each) or np.ndim(each) > 1 for each in items)


def require_one(X: Any) -> None:
    """`InputError` for a list of sessions where one is expected."""
    if isinstance(X, list | tuple) and not isinstance(X, Arrays) and (several(X) or any(map(is_labelled, X))):
        raise InputError(f"X: expected one session, got a list of {len(X)}: one call for each")


def called(sessions: Sequence[Any], place: int) -> str:
    """Which of the sessions to train on the one at `place` is, to stand in a sentence."""
    session = sessions[place]
    if isinstance(session, Arrays):
        return f" in {clean(session.session_id)}"
    if isinstance(session, xr.Dataset | xr.DataArray):
        return f" in {clean(session_id_of(session))}"
    return f" in session {place + 1} of {len(sessions)}" if len(sessions) > 1 else ""


def check_settings(missing: str) -> None:
    """`InputError` for a rule for missing channels that there is not."""
    if missing not in MISSING:
        raise InputError(unknown(missing, MISSING, "rule for missing channels"))


# -- labelled ----------------------------------------------------------------------------------------------------------


def enter(
    X: Any, y: Any, known: Mapping[str, Any], bin_s: float | None = None, missing: str = "refuse",
    leave_out: bool = False, labels: bool = True,
) -> tuple[Arrays, list[str]]:  # fmt: skip
    """A session, or labelled arrays, as a decoder takes them, and notes on what had to be done for it: the door.

    `known` is the decoder's ``metadata_`` and `bin_s` the width of its bins, None where nothing is known yet. For `y`
    and `labels` see `arrays_of`, for `missing` and `leave_out` `match_channels`.
    """
    arrays = arrays_of(X, y, known, labels)
    if bin_s is None:
        return arrays, []
    if arrays.metadata:
        require_same_kind(arrays, known, bin_s)
    arrays, notes = match_channels(arrays, known, missing, leave_out)
    if labels and y is None and not arrays.columns and not known.get("outputs"):
        notes.append(
            "this decoder does not know its target: nothing is learned from labels; name it beside the session"
        )
    return arrays, notes


def arrays_of(X: Any, y: Any, known: Mapping[str, Any], labels: bool = True) -> Arrays:
    """The arrays of a session, or of labelled arrays, as a decoder that `known` describes (its ``metadata_``) takes
    them: outputs are its own, where there are any, in its own columns.

    `y` names the target or targets of a session; None: those of the decoder that the session has, NaN where it has
    none. Beside a DataArray it is the labels. Without `labels` none are looked for.

    Raises
    ------
    InputError
        for a session without the target, or one with the target in other axes or units; for DataArrays that have lost
        their masks, or whose time is not regular or not the same.
    """
    if isinstance(X, Arrays):
        if y is not None:
            raise InputError("y: the labels of a session's arrays come with them; replace them there")
        arrays = X
        if arrays.metadata:
            same_channels.policy_between(arrays.session_id, arrays.metadata, known)
    elif isinstance(X, xr.Dataset):
        arrays = _of_session(X, y, known, labels)
    elif not isinstance(X, xr.DataArray):
        require_one(X)
        raise InputError(f"X: expected a session or a DataArray of counts, got {type(X).__name__}")
    else:
        arrays = _of_data_arrays(X, y if labels else None, known)
    outputs = known.get("outputs")
    if not labels or not outputs or not arrays.metadata.get("outputs"):
        return arrays
    return _with_outputs(arrays, outputs, y)


def _of_session(session: xr.Dataset, y: Any, known: Mapping[str, Any], labels: bool) -> Arrays:
    check(session)
    session = same_channels.comparable(session, known)
    if not labels:
        names = []
    elif y is None:
        held = kinematic_names(session)
        names = [each["variable"] for each in known.get("outputs", ()) if each["variable"] in held]
    else:
        names = [y] if isinstance(y, str) else list(y) if isinstance(y, list | tuple) else []
        if not names or not all(isinstance(name, str) for name in names) or len({*names}) < len(names):
            raise InputError(
                "y: beside a session, expected the name of its target or a list of different names, got "
                f"{type(y).__name__}; it holds {', '.join(kinematic_names(session)) or 'none'}"
            )
    return session_arrays(session, names)


def _with_outputs(arrays: Arrays, outputs: Sequence[Mapping[str, Any]], y: Any) -> Arrays:
    """Labels in the columns of the decoder's `outputs`, NaN where there are none of an output.

    Where nothing was asked for by name (`y`), the decoder's axes are found by theirs: others that the session has are
    none of its outputs, as other variables are not.
    """
    own = {each["variable"]: each for each in arrays.metadata["outputs"]}
    names = [each["variable"] for each in outputs]
    foreign = [name for name in own if name not in names]
    if foreign or (y is not None and [*own] != names):
        n_outputs = sum(len(each["axes"]) for each in outputs)
        raise InputError(
            f"y: this decoder was fitted on {n_outputs} outputs, those of {', '.join(map(clean, names))}, "
            f"got {', '.join(map(clean, own))}"
        )
    labels, columns, begin = np.full((len(arrays.X), sum(len(each["axes"]) for each in outputs)), np.nan), {}, 0
    for each in outputs:
        where = slice(begin, begin + len(each["axes"]))
        begin = where.stop
        if (found := own.get(each["variable"])) is None or each["variable"] not in arrays.columns:
            continue
        meanings = [(list(one["axes"]), one["units"]) for one in (found, each)]
        if y is None and found["units"] == each["units"] and {*each["axes"]} <= {*found["axes"]}:
            place = [found["axes"].index(axis) for axis in each["axes"]]
        elif meanings[0] == meanings[1]:
            place = list(range(len(each["axes"])))
        else:
            told = [f"{', '.join(map(clean, axes))} in {clean(units) or 'no unit'}" for axes, units in meanings]
            raise InputError(
                f"{clean(arrays.session_id)}: {clean(each['variable'])} has axes {told[0]}, the decoder was trained on "
                f"{told[1]}"
            )
        labels[:, where] = arrays.y[:, arrays.columns[each["variable"]]][:, place]
        columns[each["variable"]] = where
    axes = tuple(axis for each in outputs for axis in each["axes"])
    metadata = {**arrays.metadata, "outputs": list(outputs)}
    return arrays._replace(y=labels, columns=columns, axes=axes, metadata=metadata)


def _of_data_arrays(X: xr.DataArray, y: xr.DataArray | None, known: Mapping[str, Any]) -> Arrays:
    X = same_channels.comparable(_as_session(_data_array(X, "X", ("time", "channel"))), known)["counts"]
    time_s = X["time"].values
    segment = X["segment"].values if "segment" in X.coords else np.zeros(len(X), int)
    if segment.dtype.kind not in "iu":
        raise InputError(f"X: expected segment to be whole numbers, one for each bin, got {segment.dtype}")
    inside = np.diff(segment) == 0
    steps = np.diff(to_ticks(time_s))[inside]
    if not len(steps) or steps.min() != steps.max() or steps[0] < 1:
        raise InputError(
            "X: expected times of bins that are equally far apart within a segment, at least two; where time has a gap "
            "a new segment begins (coordinate segment)"
        )
    bin_s = float(steps[0]) / 1e6
    seen = X["valid"].values
    counts = numbers(X.values, "X").astype(float)
    counts[~seen] = np.nan
    labels, outputs = np.zeros((len(X), 0)), []
    if y is not None:
        if not isinstance(y, xr.DataArray):
            raise InputError("y: beside a DataArray, expected a DataArray of labels on the same time axis")
        labels, outputs = _labels_of(y, X)
        labels[~seen] = np.nan
    reset = np.concatenate([[True], ~inside])
    metadata = {
        **{name: str(X["channel"].attrs.get(name, "")) for name in ON_CHANNELS},
        "channels": [str(name) for name in X["channel"].values],
        "outputs": outputs,
        "counts_units": str(X.attrs.get("units", "count")),
        "bin_s": bin_s,
    }
    axes = tuple(axis for each in outputs for axis in each["axes"])
    columns = {each["variable"]: slice(0, len(axes)) for each in outputs}
    no_trial = np.full(len(X), len(X))
    return Arrays(counts, labels, reset, axes, columns, None, no_trial, bin_s, session_id_of(X), metadata)


def _as_session(X: xr.DataArray) -> xr.Dataset:
    """Counts with what their coordinates say of them as the attributes that a session has."""
    named = "electrode" if X["channel"].dtype.kind in "UO" else "column"
    said = {"session_id": session_id_of(X), "channel_identity": named, **X["channel"].attrs}
    return signed(xr.Dataset({"counts": X}, attrs=said))


def _data_array(array: xr.DataArray, what: str, dims: tuple[str, str]) -> xr.DataArray:
    """A DataArray with the `dims` in this order, both with coordinates, and a mask."""
    mend = (
        "hand over the session itself – fit(session, 'velocity'), predict(session) – or plain numbers (.values), of "
        "which nothing is checked but their shape"
    )
    if set(array.dims) != set(dims) or not all(dim in array.coords for dim in dims):
        raise InputError(
            f"{what}: expected dimensions {' and '.join(dims)}, each with its coordinates, got "
            f"({', '.join(map(str, array.dims))}) with {', '.join(map(str, array.coords)) or 'none'}: {mend}"
        )
    mask = "valid" if what == "X" else f"{array.name}_valid"
    if mask not in array.coords:
        raise InputError(
            f"{what}: expected the coordinate {clean(mask)}: an array taken out of a session has lost its masks and "
            f"segments, and what was masked would count; {mend}"
        )
    if array.coords[mask].dtype != bool:
        raise InputError(
            f"{what}: expected {clean(mask)} to be true or false for each bin, got "
            f"{array.coords[mask].dtype}, as after a mean or where bins were filled in: say which count, "
            f"{what}.assign_coords({clean(mask)}=…)"
        )
    return array.transpose(*dims)


def _labels_of(y: xr.DataArray, X: xr.DataArray) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Labels (n_bins, n_axes), NaN where they are not usable, and what they are, as `described` says it."""
    others = [str(dim) for dim in y.dims if dim != "time"]
    if y.name is None or len(others) != 1:
        raise InputError(f"y: expected labels with a name and dimensions time and axis, got {y.name!r} with {y.dims}")
    y = _data_array(y, "y", ("time", others[0]))
    ids = [session_id_of(each) for each in (X, y)]
    if len({*ids} - {NOBODYS}) > 1:
        raise InputError(f"y: is of session {clean(ids[1])}, X is of {clean(ids[0])}: expected both of one session")
    try:
        xr.align(X.drop_vars(set(X.coords) - {"time"}), y.drop_vars(set(y.coords) - {"time"}), join="exact")
    except ValueError as error:
        raise InputError(
            f"y: its times are not those of X ({y.sizes['time']} and {X.sizes['time']} bins): labels and counts must "
            "share their time axis"
        ) from error
    usable = y[f"{y.name}_valid"].transpose(*y.dims, missing_dims="ignore").values
    usable = usable if usable.ndim == 2 else usable[:, None]
    labels = np.where(usable, numbers(y.values, "y"), np.nan)
    axes = [str(axis) for axis in y[others[0]].values]
    return labels, [{"variable": str(y.name), "axes": axes, "units": str(y.attrs.get("units", ""))}]


def match_channels(
    arrays: Arrays, known: Mapping[str, Any], missing: str = "refuse", leave_out: bool = False
) -> tuple[Arrays, list[str]]:
    """Counts with the channels of a decoder (`known`, its ``metadata_``) in its order, and notes on what that took.

    `missing` is ``refuse``: a channel that either has alone is refused, by name. Or ``zero``: one that the session
    lacks counts as silent, one that the decoder does not know is left out, which `leave_out` alone allows, too.
    """
    check_settings(missing)
    names, have = known.get("channels"), arrays.metadata.get("channels")
    if not have:
        return arrays, []
    if not names:
        metadata = {key: value for key, value in arrays.metadata.items() if key != "channels"}
        told = "this decoder does not name its channels: those of the session are taken in their order"
        return arrays._replace(metadata=metadata), [told]
    place = {name: i for i, name in enumerate(have)}
    if len(place) < len(have):
        raise InputError(f"{clean(arrays.session_id)}: expected channels of different names, got some twice")
    lacking, wanted = [name for name in names if name not in place], set(names)
    extra = [name for name in have if name not in wanted]
    refused = lacking and (missing == "refuse" or len(lacking) == len(names))
    if refused or (extra and missing == "refuse" and not leave_out):
        words = [f"the session lacks {len(lacking)} of {len(names)} ({_listed(lacking)})"] if lacking else []
        words += [f"the decoder does not know {len(extra)} of the session's ({_listed(extra)})"] if extra else []
        mend = "; missing='zero' (--missing zero) counts missing ones as silent and leaves others out"
        raise InputError(
            f"channels of {clean(arrays.session_id)} and of the decoder do not fit: {'; '.join(words)}"
            + ("" if len(lacking) == len(names) else mend)
        )
    if list(have) == list(names):
        return arrays, []
    rows = np.array([place.get(name, -1) for name in names])
    X = arrays.X[:, rows]
    X[:, rows < 0] = np.where(np.isfinite(arrays.X).all(axis=1), 0.0, np.nan)[:, None]
    notes = [f"{len(lacking)} of {len(names)} channels are missing and count as silent"] if lacking else []
    notes += [f"{len(extra)} channels of the session are left out: the decoder does not know them"] if extra else []
    return arrays._replace(X=X, metadata={**arrays.metadata, "channels": list(names)}), notes


def require_same_kind(arrays: Arrays, known: Mapping[str, Any], bin_s: float) -> None:
    """`InputError` unless a session is in bins of `bin_s` and holds the kind of counts (or power) of the decoder's."""
    where = clean(arrays.session_id)
    if bin_ticks(arrays.bin_s) != bin_ticks(bin_s):
        raise InputError(f"{where}: is in bins of {arrays.bin_s:g} s, the decoder's are {bin_s:g} s: prepare it again")
    own, theirs = (each.get("counts_units", "count") for each in (arrays.metadata, known))
    if own != theirs:
        words = [
            "counts of spikes" if each == "count" else f"the power of a band ({clean(each)})" for each in (own, theirs)
        ]
        raise InputError(f"{where}: holds {words[0]}; the decoder was trained on {words[1]}")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(clean(name, 60) for name in names[:6]) + more


def place_of(X: xr.Dataset | xr.DataArray, row: int) -> list[Any]:
    """Where a bin of a session lies: the session, its segment, and its end in ticks; as JSON can hold it."""
    held = X.variables if isinstance(X, xr.Dataset) else X.coords
    segment = int(X["segment"].values[row]) if "segment" in held else 0
    return [session_id_of(X), segment, int(to_ticks(X["time"].values[row]))]


# -- plain -------------------------------------------------------------------------------------------------------------


def numbers(values: Any, what: str) -> np.ndarray:
    """Real numbers as an array; `InputError` for what is something else."""
    if hasattr(values, "toarray") and hasattr(values, "nnz"):
        raise InputError(f"{what}: expected dense numbers, got a sparse matrix; hand over {what}.toarray()")
    if hasattr(values, "columns") and hasattr(values, "dtypes"):
        raise InputError(
            f"{what}: expected an array, got a table, whose columns would be taken in their order; hand over a "
            f"session, a DataArray, or {what}.to_numpy()"
        )
    if isinstance(values, str | Path):
        raise InputError(f"{what}: expected numbers or a session, got text; a file is read first: bci_adapt.read(path)")
    if isinstance(values, np.ma.MaskedArray):
        raise InputError(
            f"{what}: expected plain numbers, got a masked array, whose mask would be lost; hand over "
            f"{what}.astype(float).filled(np.nan): NaN is what was not observed or is no label"
        )
    try:
        array = np.asarray(values)
        if array.dtype.kind == "c":
            raise InputError(f"{what}: expected real numbers. Complex data not supported, got {array.dtype}")
        return array.astype(float, copy=False)
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{what}: expected numbers, argument must be a string or a number: {error}") from error


def check_arrays(
    X: Any, y: Any = None, reset: Any = None, n_channels: int | None = None, n_outputs: int | None = None,
    decoder: str = "this decoder",
) -> Bins:  # fmt: skip
    """Check one session as plain arrays: X (n_bins, n_channels), y (n_bins, n_outputs) or None, reset (n_bins,) or
    None; with the numbers of channels and outputs that the decoder was fitted on, where it was.
    """
    counts = np.array(numbers(X, "X"), dtype=float)
    if counts.ndim != 2:
        raise InputError(
            f"X: expected counts (n_bins, n_channels), got an array of shape {counts.shape}. Reshape your data: "
            "X[None] is one bin"
        )
    for axis, what in ((0, "sample"), (1, "feature")):
        if not counts.shape[axis]:
            raise InputError(
                f"X: Found array with 0 {what}(s) (shape={counts.shape}) while a minimum of 1 is required: expected at "
                "least one bin and one channel"
            )
    if n_channels is not None and counts.shape[1] != n_channels:
        raise InputError(
            f"X has {counts.shape[1]} features, but {decoder} is expecting {n_channels} features as input: it was "
            f"fitted on {n_channels} channels, got {counts.shape[1]}"
        )
    if np.isinf(counts).any():
        raise InputError("X: expected finite counts, NaN where not observed, got infinity")
    observed = np.asarray(np.isfinite(counts).all(axis=1))
    counts[~observed] = 0.0
    if (counts < 0).any():
        raise InputError(
            "X: Negative values in data passed to a decoder: expected spike counts or power ≥ 0; hand over raw values, "
            "not z-scores"
        )
    labels = np.full((len(counts), n_outputs or 1), np.nan) if y is None else np.array(numbers(y, "y"), dtype=float)
    labels = labels[:, None] if labels.ndim == 1 else labels
    if labels.ndim != 2 or len(labels) != len(counts):
        raise InputError(f"y: expected ({len(counts)}, n_outputs) to go with X, got {labels.shape}")
    if n_outputs is not None and labels.shape[1] != n_outputs:
        raise InputError(f"y: {decoder} was fitted on {n_outputs} outputs, got {labels.shape[1]}")
    given = np.zeros(len(counts), bool) if reset is None else np.asarray(getattr(reset, "values", reset))
    if given.shape != (len(counts),) or (given.dtype != bool and not np.isin(given, (0, 1)).all()):
        raise InputError(f"reset: expected ({len(counts)},) true/false, got {given.dtype} {given.shape}")
    flags = given.astype(bool)
    weight = np.isfinite(labels).astype(float)
    return Bins(counts, np.where(weight > 0, labels, 0.0), weight, observed, flags)


def require_labels(sessions: Sequence[Bins], outputs: Sequence[Mapping[str, Any]]) -> None:
    """`InputError` unless every output has labels in some training session."""
    names = [f"{each['variable']} {axis}" for each in outputs for axis in each["axes"]]
    never = ~np.any([(bins.weight > 0).any(axis=0) for bins in sessions], axis=0)
    if never.any():
        told = [names[i] if names else str(i) for i in np.flatnonzero(never)]
        raise InputError(
            f"y: expected labels of every output, got none at all of {_listed(told)}; choose the others, such as "
            "session.sel(emg_axis=['FCR', 'FDS']) of muscles"
        )


# -- what comes out ----------------------------------------------------------------------------------------------------


def labelled_like(
    predicted: np.ndarray, source: xr.Dataset | xr.DataArray, outputs: Sequence[Mapping[str, Any]]
) -> xr.DataArray | xr.Dataset:
    """Predictions (n_bins, n_outputs) with the time of `source` and the names, axes and units of `outputs`: of one
    variable a DataArray (time, axis), of several a Dataset.
    """
    if not outputs:
        axes = [str(i) for i in range(predicted.shape[1])]
        outputs = [{"variable": "output", "axes": axes, "units": ""}]
    held = kinematic_names(source) if isinstance(source, xr.Dataset) else []
    made, begin, main = {}, 0, list(outputs[0]["axes"])
    for each in outputs:
        name, axes = each["variable"], list(each["axes"])
        if name in held:
            dim = str(source[name].dims[1])
        else:
            dim = "axis" if axes == main else f"{name}_axis"
        coords = {"time": source["time"], dim: np.asarray(axes, dtype=np.str_)}
        values = predicted[:, begin : begin + len(axes)]
        begin += len(axes)
        made[name] = xr.DataArray(values, coords, ("time", dim), name=name, attrs={"units": each["units"]})
    return next(iter(made.values())) if len(made) == 1 else xr.Dataset(made)
