"""The long table: its schema and its file. One row is one value; an arm is described by its columns.

A run's ``results.nc`` holds six tables as netCDF groups (dimension ``row``): ``rows`` (scores), ``curves`` (R² in
consecutive windows through adaptation stream and held-out part), ``trajectories`` (an excerpt of decoded and true
series), ``blocks`` (squared errors and deviations of the held-out part in blocks of 10 s, along a second dimension
``block``), ``arms`` (what a reader is told of each arm, `bci_adapt.results.arms`) and ``comparisons`` (what is
compared, declared before looking, and in which words). Text columns are UTF-8 characters of fixed
width, so that any netCDF reader opens them.

The rows of a run's own question have ``study == ""`` (`standing`); every other row says which side question it answers.
Summaries, verdicts and recovery are made of standing rows.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bci_adapt.errors import InputError
from bci_adapt.ground.arrays import digest_of_arrays
from bci_adapt.ground.guarded import call, warm_up
from bci_adapt.ground.netcdf import require_plain
from bci_adapt.ground.storage import atomic_path, write_netcdf
from bci_adapt.ground.text import clean

Frame = Any  # a pandas.DataFrame, whose own annotations are unions that no type checker can resolve
ROWS: dict[str, type] = {
    "source": str,  # session ids; several sources in one word (`bci_adapt.experiment.pairs.Pair.source`)
    "target": str,
    "source_date": str,
    "target_date": str,
    "day_gap": float,  # days from source to target, NaN where unknown
    "variable": str,
    "arm": str,
    "decoder": str,
    "cell": str,  # "" for decoders without a network
    "n_hidden": int,
    "rule": str,
    "optimizer": str,
    "normaliser": str,
    "average": str,
    "supervision": str,
    "delay_s": float,
    "label_fraction": float,
    "budget_s": float,
    "budget_trials": float,  # labels of so many trials, from the first on; inf for all
    "n_labels": int,  # bins of the stream of which a label that the arm was shown became known in it
    "rate": float,
    "seed": int,
    "phase": str,
    "metric": str,
    "value": float,
    "n_bins": int,
    "canary": bool,  # control == "time"
    "control": str,  # of `CONTROL_PREFIXES`, "" for an arm that is none
    "study": str,  # of `STUDIES`, "" for a standing arm
    "status": str,
    "reason": str,
}
CURVES: dict[str, type] = {
    **dict.fromkeys(("source", "target", "variable", "arm", "cell"), str),
    "seed": int,
    "phase": str,
    "time_s": float,  # from the first bin of the stream to the middle of the window
    "r2": float,
}
TRAJECTORIES: dict[str, type] = {
    **dict.fromkeys(("source", "target", "variable", "arm", "cell"), str),
    "seed": int,
    "time_s": float,
    "axis": str,
    "true": float,
    "decoded": float,
}
BLOCKS: dict[str, type] = {  # of standing arms; R² = 1 − Σ error / Σ spread, over all blocks or over drawn ones
    **dict.fromkeys(("source", "target", "variable", "arm", "cell"), str),
    "seed": int,
    "error": list,  # squared errors, summed over axes and the primary bins of each block, float (n_blocks,)
    "spread": list,  # squared deviations from the mean of the whole held-out part, likewise
}
ARMS: dict[str, type] = {  # one row an arm and cell
    "arm": str,
    "cell": str,
    "words": str,  # what a reader sees
    "role": str,  # of `ROLES`
    "order": int,  # place in every list
    "colour": str,
    "marker": str,
    "drawn": bool,  # whether figures that show few arms show it
    "in_excerpt": bool,  # whether its decoded series are shown
    "supervision": str,
    "retrained": bool,  # trained on the whole stream: its online score, where it has one, is of training data
    "variation": bool,  # it varies another arm, and is listed apart
    "kind": str,  # what its architecture is called; then arms of that, by name: what it is judged by
    **dict.fromkeys(("frozen", "unlabelled", "ceiling", "joint_ceiling", "reference"), str),
}
COMPARISONS: dict[str, type] = {  # in order; the text of a sentence is empty where none is said
    "family": str,  # what Holm's correction is over, or which part of the verdict it is said in
    **dict.fromkeys(("first", "first_cell", "second", "second_cell"), str),
    "start": str,  # of the first arm alone: {score}
    **dict.fromkeys(("ahead", "behind", "level"), str),  # by the sign of the difference: {first}, {second}, {change}
}
ROLES = ("bound", "standing", "rival", "ceiling", "control")
RUN = ["source", "target", "arm", "cell", "seed"]  # what tells one run from another
SCHEMAS = {
    "rows": ROWS,
    "curves": CURVES,
    "trajectories": TRAJECTORIES,
    "blocks": BLOCKS,
    "arms": ARMS,
    "comparisons": COMPARISONS,
}
OPTIONAL: dict[str, type] = {"weight_change": float}  # ‖θ_end − θ_start‖ / ‖θ_start‖ of the trained weights

CANARY = "canary:"
CONTROL_PREFIXES = {"": "", "time": CANARY, "channels": "channels:"}  # kind of control → how its arm's name begins
CONTROL_WORDS = {"time": "shuffled neurons", "channels": "shuffled channels"}
CELLS = {"tanh": "tanh", "gru": "GRU", "lstm": "LSTM", "": "linear"}
USUAL_VARIABLES = ("velocity", "position")
PHASES = {"online": "online", "held_out": "held out"}  # of every arm, side by side in every table
MORE_PHASES = {
    "online_late": "online, last half",
    "continuing": "still learning, held-out part",
    "back": "back on the source day",
}
SUPERVISIONS = ("true", "intention", "pseudo", "none")
STUDIES = {  # why a row that is not of a standing arm is there; a sweep's value is in the column of `SWEPT`
    "delay": "label delay",
    "fraction": "fraction of labels",
    "budget": "seconds of labels",
    "trials": "trials of labels",
    "no_drift": "no drift: the source day's later half as target",
    "shared_rate": "one learning rate for all",
    "continual": "weights carried from day to day",
    "cold": "optimiser and traces not warmed",
}
STATUSES = ("ok", "failed", "unscorable")
DIGEST = "content_sha256"
"""The attribute of a results file that holds the digest of its tables and other attributes."""


class Results(NamedTuple):
    """What a run's ``results.nc`` holds."""

    rows: Frame
    curves: Frame
    trajectories: Frame
    blocks: Frame
    arms: Frame
    comparisons: Frame
    attrs: dict[str, Any]


def variables(rows: pd.DataFrame) -> list[str]:
    """Return the kinematic variables that `rows` score, the usual ones first; velocity where there are no rows."""
    found = set(rows["variable"])
    usual = [name for name in USUAL_VARIABLES if name in found]
    return usual + sorted(found - {*usual}) or ["velocity"]


def unscorable_outputs(rows: pd.DataFrame) -> list[dict[str, str]]:
    """Outputs that are in no score of a pair: ``{source, target, output, reason}``, once each, controls aside."""
    marked: Frame = rows[(rows["status"] == "unscorable") & (rows["metric"] != "r2") & (rows["study"] == "")]
    marked = marked[["source", "target", "variable", "metric", "reason"]].drop_duplicates()
    return [
        {"source": source, "target": target, "output": f"{variable} {metric.removeprefix('r2:')}", "reason": reason}
        for source, target, variable, metric, reason in marked.itertuples(index=False)
    ]


def long_table(records: Iterable[Mapping[str, Any]] | Frame, kind: str = "rows") -> Frame:
    """Table of one `kind` (of `SCHEMAS`) with the columns, order and types of its schema.

    Raises `InputError` naming the column that is missing, unknown, of the wrong type or out of its vocabulary.
    """
    schema = SCHEMAS[kind]
    given = records if isinstance(records, pd.DataFrame) else pd.DataFrame.from_records(list(records))
    table = given.reset_index(drop=True) if len(given) else pd.DataFrame(columns=list(given.columns) or list(schema))
    missing = [name for name in schema if name not in table]
    if missing:
        raise InputError(f"{kind}: column {missing[0]!r} is missing (expected: {', '.join(schema)})")
    types = _types(table, kind)
    for name in table:
        if name not in types:
            raise InputError(f"{kind}: column {name!r} is not in the schema (expected: {', '.join(schema)})")
    table = pd.DataFrame({name: _column(kind, name, table[name], type_) for name, type_ in types.items()})
    _check_vocabulary(table, kind)
    return table


def padded(rows: Any) -> Any:
    """Arrays of several lengths as one (n_rows, longest), NaN behind their ends."""
    out = np.full((len(rows), max(map(len, rows), default=0)), np.nan)
    for line, row in zip(out, rows, strict=True):
        line[: len(row)] = row
    return out


def _types(table: Frame, kind: str) -> dict[str, type]:
    """The columns of a table of one kind, those included that need not be there."""
    optional = OPTIONAL if kind == "rows" else {}
    return SCHEMAS[kind] | {name: type_ for name, type_ in optional.items() if name in table}


def write_results(path: Path, tables: Mapping[str, Frame], attrs: Mapping[str, Any]) -> None:
    """Write the tables, by their kinds, and `attrs` (JSON-like values) to one netCDF file, atomically.

    Raises `InputError` as `long_table` does; nothing is written then.
    """
    import xarray as xr

    checked = {kind: long_table(tables[kind], kind) for kind in SCHEMAS}
    root: dict[str, Any] = {}
    for name, value in {**attrs, DIGEST: _digest(checked, attrs)}.items():
        # numbers and text as they are, everything else as JSON under a name that says so
        plain = isinstance(value, (str, float, int)) and not isinstance(value, bool) and value != ""
        plain = plain and not name.endswith(".json")
        root[name if plain else f"{name}.json"] = value if plain else json.dumps(value)
    groups, encoding = {"/": xr.Dataset(attrs=root)}, {}
    for kind, table in checked.items():
        columns, own = {}, {}
        for name, type_ in _types(table, kind).items():
            values, own[name] = table[name].to_numpy(), {"zlib": True, "complevel": 4}
            if type_ is list:
                columns[name] = (("row", "block"), padded(values))
            elif type_ is str and len(table):
                columns[name], own[name]["dtype"] = ("row", values.astype(object)), "S1"
            else:
                columns[name] = ("row", values if len(table) else np.zeros(0, float if type_ is str else type_))
        groups[f"/{kind}"], encoding[f"/{kind}"] = xr.Dataset(columns), own
    with atomic_path(Path(path)) as temporary:
        write_netcdf(xr.DataTree.from_dict(groups), temporary, encoding)


def read_results(path: Path) -> Results:
    """Read a file of `write_results`, columns, types, empty text and NaN as they were written.

    libhdf5 reads it in a child process (`bci_adapt.ground.guarded`). `InputError` names a file that is missing, no file
    of results, or no longer as it was written; files of earlier versions have no digest by which that is known.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected the results.nc of a run")
    warm_up(f"{__name__}:_warmed_up")
    with tempfile.TemporaryDirectory(prefix="bci-adapt-") as folder:
        attrs = call(f"{__name__}:_unpacked", path, folder=folder)
        with np.load(Path(folder) / "arrays.npz", allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    digest = attrs.pop(DIGEST, None)
    try:
        tables = {kind: _table(kind, arrays) for kind in SCHEMAS}
    except InputError as error:
        raise InputError(f"{path}: {error}; run the experiment again") from error
    if digest is not None and digest != _digest(tables, attrs):
        raise InputError(f"{path}: is not as it was written: damaged; run the experiment again")
    return Results(**tables, attrs=attrs)


def _table(kind: str, arrays: Mapping[str, Any]) -> Frame:
    """The table of one kind, of arrays by ``kind/column``."""
    columns = {name.partition("/")[2]: values for name, values in arrays.items() if name.partition("/")[0] == kind}
    if others := [name for name, values in columns.items() if values.ndim not in (1, 2)]:
        raise InputError(f"{kind}: column {others[0]!r} has {columns[others[0]].ndim} dimensions")
    if len({len(values) for values in columns.values()}) > 1:
        raise InputError(f"{kind}: its columns are not equally long")
    # rows padded with NaN to one length
    plain: dict[str, Any] = {
        name: values if values.ndim == 1 else [row[np.isfinite(row)] for row in values]
        for name, values in columns.items()
    }
    table = pd.DataFrame({name: each.astype(object) if _is_text(each) else each for name, each in plain.items()})
    schema = SCHEMAS[kind]
    return long_table(table if len(table) else table.reindex(columns=list(table) or list(schema)), kind)


def _is_text(values: Any) -> bool:
    return isinstance(values, np.ndarray) and values.dtype.kind == "U"


def _digest(tables: Mapping[str, Frame], attrs: Mapping[str, Any]) -> str:
    """SHA-256 of every value of checked tables and of attributes."""
    arrays = {}
    for kind, table in tables.items():
        for name in table:
            values = table[name].to_numpy()
            arrays[f"{kind}/{name}"] = padded(values) if SCHEMAS[kind].get(str(name)) is list else values
    return digest_of_arrays(json.loads(json.dumps(dict(attrs))), arrays)


def _warmed_up() -> None:
    """In the reader, once: import what else each child would for itself."""
    import h5netcdf  # noqa: F401
    import xarray  # noqa: F401


def _unpacked(path: Path, folder: str) -> dict[str, Any]:
    """In the child: the attributes of a file of results; its columns go to ``arrays.npz`` in `folder`."""
    import h5netcdf
    import xarray as xr

    try:
        require_plain(path)
        with h5netcdf.File(path, "r") as file:
            stored = {name: value.item() if hasattr(value, "item") else value for name, value in file.attrs.items()}
            if absent := [kind for kind in SCHEMAS if kind not in file.groups]:
                raise InputError(f"expected the table {absent[0]!r}, which it lacks")
        arrays = {}
        for kind in SCHEMAS:
            dataset = xr.load_dataset(path, group=kind, engine="h5netcdf", decode_times=False)
            for name in map(str, dataset.data_vars):
                values = dataset[name].to_numpy()
                if values.dtype.kind == "O" and not all(isinstance(each, str) for each in values.ravel()):
                    raise InputError(f"{kind}: column {name!r} takes one type, it holds several")
                arrays[f"{kind}/{name}"] = values.astype(np.str_) if values.dtype.kind in "OT" else values
        attrs = {
            name.removesuffix(".json"): json.loads(value) if name.endswith(".json") else value
            for name, value in stored.items()
        }
        json.dumps(attrs)
    except InputError as error:
        said = str(error)
        raise InputError(f"{said if str(path) in said else f'{path}: {said}'}; run the experiment again") from error
    except Exception as error:  # libraries let through whatever a damaged byte leads to
        raise InputError(
            f"{path}: not a readable results file ({clean(error, 200)}); run the experiment again"
        ) from error
    np.savez(Path(folder) / "arrays.npz", **arrays)
    return attrs


def number(value: float, digits: int = 2) -> str:
    """`value` with a true minus sign, and no minus before a rounded zero."""
    text = f"{value:.{digits}f}"
    return text.replace("-", "−") if float(text) else text.lstrip("-")


def control_of(arm: str) -> str:
    """The kind of control (``""``, time, channels) that an arm's name says it is."""
    return next((kind for kind, prefix in CONTROL_PREFIXES.items() if prefix and arm.startswith(prefix)), "")


def bare_arm(arm: str) -> str:
    """The name of the arm that a control is a control of; any other name as it is."""
    return arm.removeprefix(CONTROL_PREFIXES[control_of(arm)])


def cell_label(cell: str) -> str:
    """Words for a cell's name, its name where it has none of its own; "linear" for decoders without a network."""
    return CELLS.get(cell, cell)


def metric_label(metric: str) -> str:
    """Words for a metric's name."""
    known = {"r2": "variance-weighted R²", "r2_all_bins": "R² of all bins", "r2_uniform": "uniform R²"}
    known |= {"pearson": "Pearson r", "rmse": "RMSE"}
    return known.get(metric, metric.replace("r2:", "R² of ", 1))


def cell_order(cell: str) -> tuple[bool, int, str]:
    return cell == "", list(CELLS).index(cell) if cell in CELLS else len(CELLS), cell


def _column(table: str, name: str, values: Any, kind: type) -> Any:
    """`values` as the schema's type, or an `InputError` that shows the first one that is not of it."""
    if kind is list:
        return _arrays(table, name, values)
    accepted = {str: str, bool: (bool, np.bool_), int: (int, np.integer), float: (int, float, np.number)}[kind]
    native = {str: "str", bool: "bool", int: "int64", float: "float64"}[kind]
    if values.dtype != native:
        for row, value in enumerate(values):
            if not isinstance(value, accepted) or (kind in (int, float) and isinstance(value, (bool, np.bool_))):
                raise InputError(
                    f"{table}: column {name!r} takes {kind.__name__}, row {row} has {value!r} ({type(value).__name__})"
                )
    elif kind is str and values.isna().any():
        raise InputError(f"{table}: column {name!r} takes text, row {int(values.isna().argmax())} has none; use ''")
    return values.astype(native)


def _arrays(table: str, name: str, values: Any) -> Any:
    out = np.empty(len(values), object)
    for row, value in enumerate(values):
        try:
            array = np.array(value, float)
        except (TypeError, ValueError):
            array = np.full(1, np.nan)
        if array.ndim != 1 or not np.isfinite(array).all() or (array < 0).any():
            raise InputError(f"{table}: column {name!r} takes lists of sums of squares, row {row} has {value!r}")
        out[row] = array
    return pd.Series(out, dtype=object)


def _check_vocabulary(table: Frame, kind: str) -> None:
    """Refuse values that no reader would understand, and scores that cannot be what they say."""

    def refuse(column: str, bad: Any, expected: str) -> None:
        if bad.any():
            row = int(bad.to_numpy().argmax())
            raise InputError(f"{kind}: column {column!r}, row {row}: expected {expected}, got {table[column][row]!r}")

    if kind == "comparisons":
        refuse("first", table["first"] == "", "the name of an arm")
        return
    refuse("arm", table["arm"].map(bare_arm) == "", f"the name of an arm, or {CANARY}ARM")
    if kind == "arms":
        refuse("role", ~table["role"].isin(ROLES), " or ".join(ROLES))
        refuse("arm", table.duplicated(["arm", "cell"]), "each arm of a cell once")
    if "phase" in table:
        phases = PHASES | (MORE_PHASES if kind == "rows" else {})
        refuse("phase", ~table["phase"].isin(list(phases)), " or ".join(phases))
    if kind == "blocks":
        refuse("spread", table["spread"].map(len) != table["error"].map(len), "as many blocks as of error")
    if kind != "rows":
        return
    refuse("variable", ~table["variable"].str.fullmatch(r"[A-Za-z]\w*"), "a word such as velocity")
    refuse("status", ~table["status"].isin(STATUSES), " or ".join(STATUSES))
    for column, words in (("supervision", SUPERVISIONS), ("study", ("", *STUDIES))):
        refuse(column, ~table[column].isin(words), " or ".join(word or "''" for word in words))
    refuse("control", table["control"] != table["arm"].map(control_of), "the control that the arm's name begins with")
    refuse("n_labels", table["n_labels"] < 0, "a number of labels")
    refuse("canary", table["canary"] != table["arm"].str.startswith(CANARY), f"True exactly where arm is {CANARY}ARM")
    ok, finite = table["status"] == "ok", np.isfinite(table["value"])
    wrong = ok & ~finite & ((table["metric"] == "r2") | np.isinf(table["value"]))
    refuse("value", wrong, "a finite score where status is ok; mark the run failed or unscorable, with the reason")
    key = [*RUN, "variable", "n_hidden", "delay_s", "label_fraction", "budget_s", "budget_trials", "rate", "study"]
    key += ["phase", "metric"]
    refuse("value", table.duplicated(key) & ok, "one score for each run, phase, metric")
