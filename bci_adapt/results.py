"""The long table: its schema, its file, its summary. One row is one value; an arm is described by its columns.

A run's ``results.nc`` holds three tables as netCDF groups (dimension ``row``): ``rows`` (scores), ``curves`` (R² in
consecutive windows through adaptation stream and held-out part) and ``trajectories`` (an excerpt of decoded and true
series). Text columns are UTF-8 characters of fixed width, so that any netCDF reader opens them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from bci_adapt.errors import InputError
from bci_adapt.recovery import FEW_DAYS, Frame, compare, interval, recovery_oracle
from bci_adapt.storage import atomic_path

if TYPE_CHECKING:
    from rich.table import Table

ROWS: dict[str, type] = {
    "source": str,  # session ids; several sources are joined by "+"
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
    "rate": float,
    "seed": int,
    "phase": str,
    "metric": str,
    "value": float,
    "n_bins": int,
    "canary": bool,
    "status": str,
    "reason": str,
}
CURVES: dict[str, type] = {
    **dict.fromkeys(("source", "target", "arm", "cell"), str),
    "seed": int,
    "phase": str,
    "time_s": float,  # from the first bin of the stream to the middle of the window
    "r2": float,
}
TRAJECTORIES: dict[str, type] = {
    **dict.fromkeys(("source", "target", "arm", "cell"), str),
    "seed": int,
    "time_s": float,
    "axis": str,
    "true": float,
    "decoded": float,
}
RUN = ["source", "target", "arm", "cell", "seed"]  # what tells one run from another
SCHEMAS = {"rows": ROWS, "curves": CURVES, "trajectories": TRAJECTORIES}
OPTIONAL: dict[str, type] = {"weight_change": float}  # ‖θ_end − θ_start‖ / ‖θ_start‖ of the trained weights

ARMS = {  # known arms in order of presentation, with the words a reader sees; any other comes after them by its name
    "frozen": "frozen",
    "normaliser": "causal normaliser only",
    "readout": "readout only",
    "immediate_rmsprop_fixed": "immediate + RMSprop, fixed normaliser",
    "immediate_rmsprop": "immediate + RMSprop",
    "immediate_rmsprop_ema": "immediate + RMSprop + EMA",
    "immediate_sgd": "immediate + SGD",
    "window4_rmsprop": "4 steps of history + RMSprop",
    "rtrl_rmsprop": "RTRL + RMSprop",
    "rls": "recursive least squares",
    "ridge_oracle": "ridge, retrained",
    "network_oracle": "network, retrained",
    "persistence": "persistence",
}
# Arms that vary another one; a machine-readable summary lists them apart from the standing arms.
VARIATIONS = ("immediate_rmsprop_fixed",)
CONTROLS = ("persistence",)  # they read labels and no neuron
RETRAINED = ("ridge_oracle", "network_oracle")  # trained on the stream: their online score is of training data
CANARY = "canary:"
CELLS = {"tanh": "tanh", "gru": "GRU", "": "linear"}
USUAL_VARIABLES = ("velocity", "position")
PHASES = {"online": "online", "held_out": "held out"}
STATUSES = ("ok", "failed", "unscorable")
UNMOVED = 0.01
LEAK_FRACTION, LEAK_FLOOR = 0.5, 0.1


class Results(NamedTuple):
    """What a run's ``results.nc`` holds."""

    rows: Frame
    curves: Frame
    trajectories: Frame
    attrs: dict[str, Any]


def variables(rows: pd.DataFrame) -> list[str]:
    """Return the kinematic variables that `rows` score, the usual ones first; velocity where there are no rows."""
    found = set(rows["variable"])
    usual = [name for name in USUAL_VARIABLES if name in found]
    return usual + sorted(found - {*usual}) or ["velocity"]


def long_table(records: Iterable[Mapping[str, Any]] | Frame, kind: str = "rows") -> Frame:
    """Table of one `kind` (rows, curves, trajectories) with the columns, order and types of its schema.

    Raises `InputError` naming the column that is missing, unknown, of the wrong type or out of its vocabulary.
    """
    schema = SCHEMAS[kind]
    given = records if isinstance(records, pd.DataFrame) else pd.DataFrame.from_records(list(records))
    table = given.reset_index(drop=True) if len(given) else pd.DataFrame(columns=list(given.columns) or list(schema))
    missing = [name for name in schema if name not in table]
    if missing:
        raise InputError(f"{kind}: column {missing[0]!r} is missing (expected: {', '.join(schema)})")
    optional = OPTIONAL if kind == "rows" else {}
    for name in table:
        if name not in schema and name not in optional:
            raise InputError(f"{kind}: column {name!r} is not in the schema (expected: {', '.join(schema)})")
    types = schema | {name: optional[name] for name in optional if name in table}
    table = pd.DataFrame({name: _column(kind, name, table[name], kind_) for name, kind_ in types.items()})
    _check_vocabulary(table, kind)
    return table


def write_results(path: Path, rows: Frame, curves: Frame, trajectories: Frame, attrs: Mapping[str, Any]) -> None:
    """Write the three tables and `attrs` (JSON-like values) to one netCDF file, atomically.

    Raises `InputError` as `long_table` does; nothing is written then.
    """
    import h5netcdf
    import xarray as xr

    tables = {"rows": rows, "curves": curves, "trajectories": trajectories}
    checked = {kind: long_table(table, kind) for kind, table in tables.items()}
    with atomic_path(Path(path)) as temporary:
        with h5netcdf.File(temporary, "w") as file:
            for name, value in attrs.items():
                # numbers and text as they are, everything else as JSON under a name that says so
                plain = isinstance(value, (str, float, int)) and not isinstance(value, bool) and value != ""
                plain = plain and not name.endswith(".json")
                file.attrs[name if plain else f"{name}.json"] = value if plain else json.dumps(value)
        for kind, table in checked.items():
            text = [name for name in table if not pd.api.types.is_numeric_dtype(table[name])]
            columns = {name: ("row", table[name].to_numpy(object if name in text else None)) for name in table}
            encoding: dict = {name: {"zlib": True, "complevel": 4} for name in table}
            for name in text if len(table) else ():
                encoding[name]["dtype"] = "S1"
            if not len(table):
                columns = {name: ("row", np.zeros(0, float if name in text else table[name].dtype)) for name in table}
            xr.Dataset(columns).to_netcdf(temporary, group=kind, mode="a", engine="h5netcdf", encoding=encoding)


def read_results(path: Path) -> Results:
    """Read a file of `write_results`, columns, types, empty text and NaN as they were written."""
    import h5netcdf
    import xarray as xr

    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected the results.nc of a run")
    try:
        with h5netcdf.File(path, "r") as file:
            stored = {name: value.item() if hasattr(value, "item") else value for name, value in file.attrs.items()}
        tables = {}
        for kind, schema in SCHEMAS.items():
            dataset = xr.load_dataset(path, group=kind, engine="h5netcdf")
            table = pd.DataFrame({name: dataset[name].to_numpy() for name in map(str, dataset.data_vars)})
            tables[kind] = long_table(table if len(table) else table.reindex(columns=list(table) or list(schema)), kind)
    except (OSError, KeyError, ValueError) as error:
        if isinstance(error, InputError):
            raise InputError(f"{path}: {error}") from error
        raise InputError(f"{path}: not a readable results file ({error}); run the experiment again") from error
    attrs = {
        name.removesuffix(".json"): json.loads(value) if name.endswith(".json") else value
        for name, value in stored.items()
    }
    return Results(**tables, attrs=attrs)


def summarise(rows: Frame, seed: int = 0) -> list[dict[str, Any]]:
    """One entry per arm, cell, variable, phase and metric: ``{…, mean, low, high, n_targets, note}``.

    Only values whose status is ok count. Seeds are averaged within a pair of sessions, pairs within a target day, days
    give the mean; the 95 % interval resamples days, and seeds within them (NaN below two days). Canaries are arms of
    their own. `note` says when weights moved by less than 1 %, and how many runs failed or gave no value. Raises
    `InputError` when one arm mixes settings that must not be pooled.
    """
    rows = rows[rows["metric"] != ""]
    summary = []
    names = ["arm", "cell", "variable", "phase", "metric"]
    for key, group in rows.groupby(names, sort=False):
        arm, cell = str(key[0]), str(key[1])
        for column in ("n_hidden", "delay_s", "label_fraction"):
            if group[column].nunique() > 1:
                raise InputError(
                    f"{column}: arm {arm!r} ({cell or 'linear'}) has several values {sorted(set(group[column]))}; "
                    "select one setting before summarising"
                )
        scorable = group[group["status"] != "unscorable"]
        ok = scorable[(scorable["status"] == "ok") & np.isfinite(scorable["value"])]
        mean, low, high, n = interval(ok[["target", "source", "seed", "value"]], seed)
        entry = dict(zip(names, map(str, key), strict=True))
        summary.append({**entry, "mean": mean, "low": low, "high": high, "n_targets": n, "note": _note(arm, scorable)})
    return sorted(summary, key=_order)


def adaptive(rows: Frame) -> list[str]:
    """Arms that learn from labels as they arrive, in order of presentation: none retrained, no control, no canary."""
    learning = set(rows.loc[(rows["supervision"] == "true") & ~rows["canary"], "arm"])
    return sorted(learning - {*RETRAINED, *CONTROLS}, key=arm_order)


def leak(rows: Frame, leak_fraction: float = LEAK_FRACTION) -> dict[str, bool | None]:
    """Whether each adaptive arm's online score can be had without neurons; None where no canary can tell.

    A canary is the same job with the counts shuffled in time. An arm leaks when, for any cell or variable, its canary's
    mean online R² on the pairs both share is above 0.1 and at least `leak_fraction` of the arm's own. It does not when
    every cell and variable has such a pair and none leaks.
    """
    found: dict[str, bool | None] = {}
    for arm in adaptive(rows):
        verdicts = []
        for cell, variable in rows.loc[rows["arm"] == arm, ["cell", "variable"]].drop_duplicates().to_numpy():
            both = compare(rows, (CANARY + arm, cell), (arm, cell), variable, "online")
            leaks = both and both.first > LEAK_FLOOR and both.first >= leak_fraction * both.second
            verdicts.append(None if both is None else bool(leaks))
        found[arm] = True if True in verdicts else None if None in verdicts else False
    return found


def canary_troubles(rows: Frame) -> dict[str, str]:
    """What is wrong with the canaries of adaptive arms, by arm: not run, failed (how many, why), nothing to compare."""
    online = rows[(rows["phase"] == "online") & (rows["metric"] == "r2")]
    troubles = {}
    for arm, verdict in leak(rows).items():
        runs = online[online["arm"] == CANARY + arm]
        failed = runs[runs["status"] == "failed"]
        missing = sorted(set(rows.loc[rows["arm"] == arm, "cell"]) - set(runs["cell"]), key=_cell_order)
        parts = []
        if missing:
            parts.append(f"no canary was run ({', '.join(map(cell_label, missing))})")
        if len(failed):
            reasons = ", ".join(dict.fromkeys(failed["reason"]))
            parts.append(f"{len(failed)} of {len(runs)} canary runs failed ({reasons})")
        if verdict is None and not parts:
            parts.append("the arm itself has no online score on its canary's pairs")
        if parts:
            troubles[arm] = "; ".join(parts)
    return troubles


def json_payload(
    rows: Frame, manifest: Mapping[str, Any], summary: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """What ``run --json`` writes: ``{rows, summary, variations, unscorable, refused, leak, jobs}``, free of NaN.

    `summary` holds every arm but `VARIATIONS`, canaries too, `variations` those; `leak` is null where nothing can tell.
    """
    everything = summarise(rows) if summary is None else summary
    apart = [entry["arm"].removeprefix(CANARY) in VARIATIONS for entry in everything]
    _, refused = recovery_oracle(rows)
    jobs = manifest.get("jobs", {})
    return json_safe(
        {
            "rows": rows.to_dict("records"),
            "summary": [entry for entry, other in zip(everything, apart, strict=True) if not other],
            "variations": [entry for entry, other in zip(everything, apart, strict=True) if other],
            "unscorable": list(manifest.get("unscorable", [])),
            "refused": refused,
            "leak": leak(rows),
            "jobs": {"executed": 0, "reused": 0, **jobs},
        }
    )


def json_safe(value: Any) -> Any:
    """`value` with numpy scalars as Python's own and every number that is not finite as None."""
    if isinstance(value, Mapping):
        return {str(name): json_safe(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_safe(item) for item in value]
    if isinstance(value, (np.generic, np.ndarray)):
        return json_safe(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def text_table(
    summary: list[dict[str, Any]],
    rates_tuned: bool,
    variable: str = "velocity",
    metric: str = "r2",
    leaks: Mapping[str, bool | None] | None = None,
) -> Table:
    """Table of arms for a terminal: online and held-out mean [low, high] and the number of target days."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title=f"{variable}, {metric_label(metric)}: mean [95 % interval] over days",
    )
    for heading in ("cell", "arm"):
        table.add_column(heading, no_wrap=heading == "cell")
    for heading in (*PHASES.values(), "days"):
        table.add_column(heading, justify="right", no_wrap=True)
    lines = arm_lines(summary, variable, metric)
    verdicts = {arm: "this setting leaks" if leaking else "leak not checked" for arm, leaking in (leaks or {}).items()}
    verdicts = {arm: words for arm, words in verdicts.items() if leaks and leaks[arm] is not False}
    noted = any(line["note"] or line["arm"] in verdicts for line in lines)
    if noted:
        table.add_column("note")
    for position, line in enumerate(lines):
        new_cell = not position or lines[position - 1]["cell"] != line["cell"]
        if new_cell and position:
            table.add_section()
        leaks_here = bool(leaks and leaks.get(line["arm"]))
        note = "; ".join(filter(None, [line["note"], verdicts.get(line["arm"], "")]))
        scores = [score_text(line[phase]) for phase in PHASES]
        table.add_row(
            Text(cell_label(line["cell"]) if new_cell else ""),
            Text(arm_label(line["arm"])),
            *map(Text, scores),
            str(line["n_targets"]),
            *([Text(note, style="bold red" if leaks_here else "dim")] if noted else []),
        )
    table.caption = caption(rates_tuned, summary)
    return table


def arm_lines(summary: list[dict[str, Any]], variable: str = "velocity", metric: str = "r2") -> list[dict[str, Any]]:
    """One line per arm and cell, canaries left out: ``{arm, cell, online, held_out, n_targets, note}``.

    `online` and `held_out` are entries of `summary`, or None where the arm has no such score.
    """
    lines: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in summary:
        if entry["variable"] != variable or entry["metric"] != metric or entry["arm"].startswith(CANARY):
            continue
        blank: dict[str, Any] = {
            "arm": entry["arm"],
            "cell": entry["cell"],
            **dict.fromkeys(PHASES),
            "n_targets": 0,
            "note": "",
        }
        line = lines.setdefault((entry["cell"], entry["arm"]), blank)
        line[entry["phase"]] = entry
        line["n_targets"] = max(line["n_targets"], entry["n_targets"])
        seen = "online: training data" if entry["arm"] in RETRAINED and entry["phase"] == "online" else ""
        notes = [part for part in (line["note"], entry.get("note", ""), seen) if part]
        line["note"] = "; ".join(dict.fromkeys(notes))
    return sorted(lines.values(), key=lambda line: (_cell_order(line["cell"]), arm_order(line["arm"])))


def caption(rates_tuned: bool, summary: list[dict[str, Any]] | None = None) -> str:
    """What stands under every table of scores; `summary` adds a warning where its intervals rest on few days."""
    tuned = "rates tuned on held-out scores of other pairs" if rates_tuned else "rates not tuned"
    days = max((entry["n_targets"] for entry in summary or []), default=FEW_DAYS)
    few = f"; intervals over {days} days are too narrow" if 1 < days < FEW_DAYS else ""
    return f"{tuned}; n is target days; pairs of one day are averaged first{few}"


def score_text(entry: Mapping[str, Any] | None) -> str:
    """``0.39 [0.31, 0.46]`` with true minus signs; the mean alone without an interval; a dash without a score."""
    if entry is None or not _finite(entry["mean"]):
        return "–"
    if not (_finite(entry["low"]) and _finite(entry["high"])):
        return number(entry["mean"])
    return f"{number(entry['mean'])} [{number(entry['low'])}, {number(entry['high'])}]"


def number(value: float, digits: int = 2) -> str:
    """`value` with a true minus sign, and no minus before a rounded zero."""
    text = f"{value:.{digits}f}"
    return text.replace("-", "−") if float(text) else text.lstrip("-")


def arm_label(arm: str) -> str:
    """Words for an arm's name; its name where it is none of `ARMS`."""
    name = ARMS.get(arm.removeprefix(CANARY), arm)
    return f"{name}, shuffled neurons" if arm.startswith(CANARY) else name


def cell_label(cell: str) -> str:
    """Words for a cell's name, its name where it has none of its own; "linear" for decoders without a network."""
    return CELLS.get(cell, cell)


def metric_label(metric: str) -> str:
    """Words for a metric's name."""
    known = {"r2": "variance-weighted R²", "r2_uniform": "uniform R²", "pearson": "Pearson r", "rmse": "RMSE"}
    return known.get(metric, metric.replace("r2:", "R² of ", 1))


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def arm_order(arm: str) -> tuple[bool, int, str]:
    """Sorting key: known arms in the order of `ARMS`, others by name, canaries last."""
    name = arm.removeprefix(CANARY)
    return arm.startswith(CANARY), list(ARMS).index(name) if name in ARMS else len(ARMS), name


def _cell_order(cell: str) -> tuple[bool, int, str]:
    return cell == "", list(CELLS).index(cell) if cell in CELLS else len(CELLS), cell


def _order(entry: Mapping[str, Any]) -> tuple:
    phases, metrics = list(PHASES), ("r2", "r2_uniform", "pearson", "rmse")
    metric = metrics.index(entry["metric"]) if entry["metric"] in metrics else len(metrics)
    return (
        *(entry["variable"] != "velocity", entry["variable"], arm_order(entry["arm"]), _cell_order(entry["cell"])),
        *(phases.index(entry["phase"]), metric, entry["metric"]),
    )


def _note(arm: str, scorable: Frame) -> str:
    notes = []
    if "weight_change" in scorable and arm in adaptive(scorable):
        change = scorable.loc[scorable["status"] == "ok", "weight_change"].dropna()
        if len(change) and change.median() < UNMOVED:
            notes.append("did not adapt")
    if n_failed := int((scorable["status"] == "failed").sum()):
        notes.append(f"{n_failed} of {len(scorable)} runs failed")
    return "; ".join(notes)


def _column(table: str, name: str, values: Any, kind: type) -> Any:
    """`values` as the schema's type, or an `InputError` that shows the first one that is not of it."""
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


def _check_vocabulary(table: Frame, kind: str) -> None:
    """Refuse values that no reader would understand, and scores that cannot be what they say."""

    def refuse(column: str, bad: Any, expected: str) -> None:
        if bad.any():
            row = int(bad.to_numpy().argmax())
            raise InputError(f"{kind}: column {column!r}, row {row}: expected {expected}, got {table[column][row]!r}")

    refuse("arm", table["arm"].str.removeprefix(CANARY) == "", f"the name of an arm, or {CANARY}ARM")
    if "phase" in table:
        refuse("phase", ~table["phase"].isin(list(PHASES)), " or ".join(PHASES))
    if kind != "rows":
        return
    refuse("variable", ~table["variable"].str.fullmatch(r"[A-Za-z]\w*"), "a word such as velocity")
    refuse("status", ~table["status"].isin(STATUSES), " or ".join(STATUSES))
    refuse("canary", table["canary"] != table["arm"].str.startswith(CANARY), f"True exactly where arm is {CANARY}ARM")
    ok, finite = table["status"] == "ok", np.isfinite(table["value"])
    wrong = ok & ~finite & ((table["metric"] == "r2") | np.isinf(table["value"]))
    refuse("value", wrong, "a finite score where status is ok; mark the run failed or unscorable, with the reason")
    key = ["source", "target", "variable", "arm", "cell", "n_hidden", "delay_s", "label_fraction", "budget_s", "rate"]
    refuse("value", table.duplicated([*key, "seed", "phase", "metric"]) & ok, "one score for each run, phase, metric")
