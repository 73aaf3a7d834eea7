"""The long table: its schema, its file, its summary. One row is one value; an arm is described by its columns.

A run's ``results.nc`` holds four tables as netCDF groups (dimension ``row``): ``rows`` (scores), ``curves`` (R² in
consecutive windows through adaptation stream and held-out part), ``trajectories`` (an excerpt of decoded and true
series) and ``blocks`` (squared errors and deviations of the held-out part in blocks of 10 s, along a second dimension
``block``). Text columns are UTF-8 characters of fixed width, so that any netCDF reader opens them.

The rows of a run's own question have ``study == ""`` (`standing`); every other row says which side question it answers.
Summaries, verdicts and recovery are made of standing rows.
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
from bci_adapt.ground.storage import atomic_path, json_safe
from bci_adapt.results import studies
from bci_adapt.results.recovery import (
    FEW_DAYS,
    Frame,
    arm_scores,
    compare,
    compare_scores,
    interval,
    of_arm,
    padded,
    recovery_joint,
    recovery_oracle,
    standing,
)

if TYPE_CHECKING:
    from rich.table import Table

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
    "n_labels": int,  # labels that the arm learned from
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
RUN = ["source", "target", "arm", "cell", "seed"]  # what tells one run from another
SCHEMAS = {"rows": ROWS, "curves": CURVES, "trajectories": TRAJECTORIES, "blocks": BLOCKS}
OPTIONAL: dict[str, type] = {"weight_change": float}  # ‖θ_end − θ_start‖ / ‖θ_start‖ of the trained weights

ARMS = {  # known arms in order of presentation, with the words a reader sees; any other comes after them by its name
    "frozen": "frozen",
    "normaliser": "causal normaliser only",
    "aligned": "factor analysis, aligned",
    "output_bias": "output bias only",
    "readout": "readout only",
    "recurrent": "input and recurrent weights only",
    "immediate_rmsprop_fixed": "immediate + RMSprop, fixed normaliser",
    "immediate_rmsprop": "immediate + RMSprop",
    "immediate_rmsprop_ema": "immediate + RMSprop + EMA",
    "immediate_sgd": "immediate + SGD",
    "window2_rmsprop": "2 steps of history + RMSprop",
    "window4_rmsprop": "4 steps of history + RMSprop",
    "window4_rmsprop_ema": "4 steps of history + RMSprop + EMA",
    "window4_rmsprop_ema_turns": "4 steps of history + RMSprop + EMA, in turns",
    "window4_rmsprop_ema_turns_every2": "4 steps of history + RMSprop + EMA, in turns, every second label",
    "window8_rmsprop": "8 steps of history + RMSprop",
    "trace(0.5)_rmsprop": "trace 0.5 + RMSprop",
    "snap1_rmsprop": "SnAp-1 + RMSprop",
    "rflo_rmsprop": "RFLO + RMSprop",
    "eprop_rmsprop": "e-prop + RMSprop",
    "uoro_rmsprop": "UORO + RMSprop",
    "rtrl_rmsprop": "RTRL + RMSprop",
    "from_random": "immediate + RMSprop, from random weights",
    "intention": "immediate + RMSprop, taught by the cued direction",
    "pseudo": "immediate + RMSprop, taught by itself",
    "fine_tuned": "fine-tuned by BPTT",
    "kalman_frozen": "Kalman, frozen",
    "kalman_normaliser": "Kalman, causal normaliser only",
    "kalman_adaptive": "Kalman, adaptive",
    "kalman_refit": "Kalman, retrained",
    "kalman_pv_frozen": "Kalman with position, frozen",
    "kalman_pv_normaliser": "Kalman with position, causal normaliser only",
    "kalman_pv_adaptive": "Kalman with position, adaptive",
    "kalman_pv_refit": "Kalman with position, retrained",
    "rls": "recursive least squares",
    "ridge_oracle": "ridge, retrained",
    "joint_ridge": "ridge, retrained with earlier days",
    "network_oracle": "network, retrained",
    "joint_oracle": "network, retrained with earlier days",
    "persistence": "persistence",
}
# Arms that vary another one; a machine-readable summary lists them apart from the standing arms.
VARIATIONS = ("immediate_rmsprop_fixed",)
CONTROLS = ("persistence",)  # they read labels and no neuron
RETRAINED = (  # trained on the whole stream: their online score, where they have one, is of training data
    *("fine_tuned", "kalman_refit", "kalman_pv_refit"),
    *("ridge_oracle", "joint_ridge", "network_oracle", "joint_oracle"),
)
RIVALS = (  # arms that others are measured against; ridge retrained on the same labels is what they should reach
    *("rls", "joint_ridge", "kalman_adaptive", "kalman_refit", "kalman_pv_adaptive", "kalman_pv_refit"),
    *("fine_tuned", "network_oracle", "joint_oracle"),
)
SUSPECT_GAP = 0.03
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
UNMOVED = 0.01
LEAK_FRACTION, LEAK_FLOOR = 0.5, 0.1


class Results(NamedTuple):
    """What a run's ``results.nc`` holds."""

    rows: Frame
    curves: Frame
    trajectories: Frame
    blocks: Frame
    attrs: dict[str, Any]


def variables(rows: pd.DataFrame) -> list[str]:
    """Return the kinematic variables that `rows` score, the usual ones first; velocity where there are no rows."""
    found = set(rows["variable"])
    usual = [name for name in USUAL_VARIABLES if name in found]
    return usual + sorted(found - {*usual}) or ["velocity"]


def long_table(records: Iterable[Mapping[str, Any]] | Frame, kind: str = "rows") -> Frame:
    """Table of one `kind` (rows, curves, trajectories, blocks) with the columns, order and types of its schema.

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


def _types(table: Frame, kind: str) -> dict[str, type]:
    """The columns of a table of one kind, those included that need not be there."""
    optional = OPTIONAL if kind == "rows" else {}
    return SCHEMAS[kind] | {name: type_ for name, type_ in optional.items() if name in table}


def write_results(
    path: Path, rows: Frame, curves: Frame, trajectories: Frame, blocks: Frame, attrs: Mapping[str, Any]
) -> None:
    """Write the four tables and `attrs` (JSON-like values) to one netCDF file, atomically.

    Raises `InputError` as `long_table` does; nothing is written then.
    """
    import h5netcdf
    import xarray as xr

    tables = {"rows": rows, "curves": curves, "trajectories": trajectories, "blocks": blocks}
    checked = {kind: long_table(table, kind) for kind, table in tables.items()}
    with atomic_path(Path(path)) as temporary:
        with h5netcdf.File(temporary, "w") as file:
            for name, value in attrs.items():
                # numbers and text as they are, everything else as JSON under a name that says so
                plain = isinstance(value, (str, float, int)) and not isinstance(value, bool) and value != ""
                plain = plain and not name.endswith(".json")
                file.attrs[name if plain else f"{name}.json"] = value if plain else json.dumps(value)
        for kind, table in checked.items():
            columns, encoding = {}, {}
            for name, type_ in _types(table, kind).items():
                values, encoding[name] = table[name].to_numpy(), {"zlib": True, "complevel": 4}
                if type_ is list:
                    columns[name] = (("row", "block"), padded(values))
                elif type_ is str and len(table):
                    columns[name], encoding[name]["dtype"] = ("row", values.astype(object)), "S1"
                else:
                    columns[name] = ("row", values if len(table) else np.zeros(0, float if type_ is str else type_))
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
            if absent := [kind for kind in SCHEMAS if kind not in file.groups]:
                raise InputError(f"expected the table {absent[0]!r}, which it lacks; run the experiment again")
        tables = {}
        for kind, schema in SCHEMAS.items():
            dataset = xr.load_dataset(path, group=kind, engine="h5netcdf")
            arrays = {name: dataset[name].to_numpy() for name in map(str, dataset.data_vars)}
            # rows padded with NaN to one length
            plain = {
                name: values if values.ndim == 1 else [row[np.isfinite(row)] for row in values]
                for name, values in arrays.items()
            }
            table = pd.DataFrame(plain)
            tables[kind] = long_table(table if len(table) else table.reindex(columns=list(table) or list(schema)), kind)
    except (OSError, KeyError, ValueError) as error:
        if isinstance(error, InputError):
            words = f"{path}: {error}"
            raise InputError(words if "again" in words else f"{words}; run the experiment again") from error
        raise InputError(f"{path}: not a readable results file ({error}); run the experiment again") from error
    attrs = {
        name.removesuffix(".json"): json.loads(value) if name.endswith(".json") else value
        for name, value in stored.items()
    }
    return Results(**tables, attrs=attrs)


def summarise(rows: Frame, seed: int = 0, blocks: Frame | None = None) -> list[dict[str, Any]]:
    """One entry per standing arm, cell, variable, phase and metric: ``{…, mean, low, high, n_targets, note}``.

    Only values whose status is ok count. Seeds are averaged within a pair of sessions, pairs within a target day, days
    give the mean; the 95 % interval resamples days, and seeds within them (NaN below two days); with `blocks` that of a
    held-out R² resamples blocks of time too. Controls are arms of their own. `note` says when weights moved by less
    than 1 %, how many runs failed or gave no value, and when a rival is suspect. Raises `InputError` when one arm mixes
    settings that must not be pooled.
    """
    rows = standing(rows)
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
        entry = dict(zip(names, map(str, key), strict=True))
        own = of_arm(blocks, arm, cell, entry["variable"]) if key[3:] == ("held_out", "r2") else None
        mean, low, high, n = interval(ok[["target", "source", "seed", "value"]], seed, own)
        summary.append({**entry, "mean": mean, "low": low, "high": high, "n_targets": n, "note": _note(arm, scorable)})
    _mark_suspects(summary)
    return sorted(summary, key=_order)


def _mark_suspects(summary: list[dict[str, Any]]) -> None:
    """Note, on rivals that score more than `SUSPECT_GAP` below ridge on the same labels, that they may be badly set: a
    victory over them is worth nothing.
    """
    held_out = [entry for entry in summary if entry["phase"] == "held_out" and entry["metric"] == "r2"]
    ridge = {entry["variable"]: entry["mean"] for entry in held_out if entry["arm"] == "ridge_oracle"}
    for entry in held_out:
        below = ridge.get(entry["variable"], math.nan) - entry["mean"]
        if entry["arm"] in RIVALS and below > SUSPECT_GAP:
            words = f"rival suspect: {number(below)} below ridge, retrained"
            entry["note"] = "; ".join(filter(None, [entry["note"], words]))


def adaptive(rows: Frame) -> list[str]:
    """Arms that learn from labels as they arrive, in order of presentation: none retrained, no control, no canary."""
    rows = standing(rows)
    learning = set(rows.loc[rows["supervision"].isin(["true", "intention"]) & (rows["control"] == ""), "arm"])
    return sorted(learning - {*RETRAINED, *CONTROLS}, key=arm_order)


def leak(rows: Frame, leak_fraction: float = LEAK_FRACTION) -> dict[str, bool | None]:
    """Whether each adaptive arm's online score can be had without neurons; None where no canary can tell.

    A canary is the same job with the counts shuffled in time. An arm leaks when, for any cell or variable, its canary's
    mean online R² on the pairs both share is above 0.1 and at least `leak_fraction` of the arm's own. It does not when
    every cell and variable has such a pair and none leaks.
    """
    found: dict[str, bool | None] = {}
    online = _online(rows)
    for arm in adaptive(rows):
        verdicts = []
        for cell, variable in _cells_and_variables(rows, arm):
            # on the pair: with several shifts, each is a canary of the arm, whatever seeds that has
            canaries, own = (arm_scores(online, name, cell, variable, "online") for name in (CANARY + arm, arm))
            both = compare_scores(canaries, own, same_network=False)
            leaks = both and both.first > LEAK_FLOOR and both.first >= leak_fraction * both.second
            verdicts.append(None if both is None else bool(leaks))
        found[arm] = _worst(verdicts)
    return found


def not_above_persistence(rows: Frame) -> dict[str, bool | None]:
    """Whether each adaptive arm's online score, at its label delay, is no better than repeating the last known label.

    True where, for any cell or variable, its mean online R² is not above that of persistence on the pairs both share:
    such an online score is no sign of decoding. None without persistence to set beside it.
    """
    found: dict[str, bool | None] = {}
    online = _online(rows)
    for arm in adaptive(rows):
        verdicts = []
        for cell, variable in _cells_and_variables(rows, arm):
            both = compare(online, (arm, cell), ("persistence", ""), variable, "online")
            verdicts.append(None if both is None else both.first <= both.second)
        found[arm] = _worst(verdicts)
    return found


def _online(rows: Frame) -> Frame:
    return standing(rows[(rows["phase"] == "online") & (rows["metric"] == "r2")])


def _cells_and_variables(rows: Frame, arm: str) -> list[tuple[str, str]]:
    rows = standing(rows)
    return list(rows.loc[rows["arm"] == arm, ["cell", "variable"]].drop_duplicates().itertuples(index=False, name=None))


def _worst(verdicts: list[bool | None]) -> bool | None:
    return True if True in verdicts else None if None in verdicts else False


def canary_troubles(rows: Frame) -> dict[str, str]:
    """What is wrong with the canaries of adaptive arms, by arm: not run, failed (how many, why), nothing to compare."""
    online, troubles = _online(rows), {}
    for arm, verdict in leak(rows).items():
        runs = online[online["arm"] == CANARY + arm]
        failed = runs[runs["status"] == "failed"]
        cells = {cell for cell, _ in _cells_and_variables(rows, arm)}
        missing = sorted(cells - set(runs["cell"]), key=_cell_order)
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
    rows: Frame,
    manifest: Mapping[str, Any],
    summary: list[dict[str, Any]] | None = None,
    blocks: Frame | None = None,
) -> dict[str, Any]:
    """What ``run --json`` writes, free of NaN: rows (the long table, its columns' names and its values apart), summary,
    variations, recovery, refused, leak, not_above_persistence, comparisons, associations, sweeps, time_to_ceiling,
    forgetting, no_drift, beside, unscorable and jobs.

    `summary` holds every standing arm but `VARIATIONS`, controls too, `variations` those; an entry's `leak`, as `leak`
    by arm, is null where nothing can tell. `recovery` and `refused` say ``against`` which ceiling they are. A delay
    that is null is the end of the trial.
    """
    everything = summarise(rows, blocks=blocks) if summary is None else summary
    verdicts = leak(rows)
    everything = [{**entry, "leak": verdicts.get(entry["arm"])} for entry in everything]
    apart = [bare_arm(entry["arm"]) in VARIATIONS for entry in everything]
    recovered, refused = [], []
    for against, recovery in (("retrained", recovery_oracle), ("jointly retrained", recovery_joint)):
        for found, entries in zip((recovered, refused), recovery(rows), strict=True):
            found += [entry | {"against": against} for entry in entries]
    names, primary = variables(rows), manifest.get("primary")
    scores = rows[rows["metric"] == "r2"]
    declared = None
    if primary:
        declared = (primary["arm"], primary["cell"]), (primary["against"], primary["against_cell"])
    drift, jobs = manifest.get("drift", []), manifest.get("jobs", {})
    return json_safe(
        {
            "rows": {"columns": list(rows.columns), "data": rows.to_numpy(object).tolist()},
            "summary": [entry for entry, other in zip(everything, apart, strict=True) if not other],
            "variations": [entry for entry, other in zip(everything, apart, strict=True) if other],
            "recovery": recovered,
            "refused": refused,
            "leak": verdicts,
            "not_above_persistence": not_above_persistence(rows),
            "comparisons": [
                each
                for name in names
                for each in studies.comparisons(scores, declared if name == names[0] else None, name, blocks)
            ],
            "associations": [each for name in names for each in studies.associations(scores, drift, name)],
            "sweeps": {
                study: [each for name in names for each in studies.sweep(scores, study, name)]
                for study in studies.SWEPT
            },
            "time_to_ceiling": [each for name in names for each in studies.time_to_ceiling(scores, name)],
            "forgetting": [each for name in names for each in studies.forgetting(scores, name)],
            "no_drift": [each for name in names for each in studies.no_drift(scores, name)],
            "beside": {
                study: [each for name in names for each in studies.beside(scores, study, name)]
                for study in ("shared_rate", "continual", "cold")
            },
            "unscorable": list(manifest.get("unscorable", [])),
            "jobs": {"executed": 0, "reused": 0, **jobs},
        }
    )


def text_table(
    summary: list[dict[str, Any]],
    rates_tuned: bool,
    variable: str = "velocity",
    metric: str = "r2",
    leaks: Mapping[str, bool | None] | None = None,
    beaten: Mapping[str, bool | None] | None = None,
) -> Table:
    """Table of arms for a terminal: online and held-out mean [low, high] and the number of target days.

    `leaks` are the verdicts of `leak`, `beaten` those of `not_above_persistence`; arms that they flag have a note.
    """
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
    verdicts = {arm: [] for arm in (*(leaks or {}), *(beaten or {}))}
    for arm, leaking in (leaks or {}).items():
        verdicts[arm] += {True: ["this setting leaks"], None: ["leak not checked"]}.get(leaking, [])
    for arm, flagged in (beaten or {}).items():
        verdicts[arm] += ["online: not above persistence"] if flagged else []
    noted = any(line["note"] or verdicts.get(line["arm"]) for line in lines)
    if noted:
        table.add_column("note")
    for position, line in enumerate(lines):
        new_cell = not position or lines[position - 1]["cell"] != line["cell"]
        if new_cell and position:
            table.add_section()
        leaks_here = bool(leaks and leaks.get(line["arm"]))
        note = "; ".join(filter(None, [line["note"], *verdicts.get(line["arm"], [])]))
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
    """One line per arm and cell, controls left out: ``{arm, cell, online, held_out, n_targets, note}``.

    `online` and `held_out` are entries of `summary`, or None where the arm has no such score.
    """
    lines: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in summary:
        if entry["variable"] != variable or entry["metric"] != metric or control_of(entry["arm"]):
            continue
        blank: dict[str, Any] = {
            "arm": entry["arm"],
            "cell": entry["cell"],
            **dict.fromkeys(PHASES),
            "n_targets": 0,
            "note": "",
        }
        if entry["phase"] not in PHASES:
            continue
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


def control_of(arm: str) -> str:
    """The kind of control (``""``, time, channels) that an arm's name says it is."""
    return next((kind for kind, prefix in CONTROL_PREFIXES.items() if prefix and arm.startswith(prefix)), "")


def bare_arm(arm: str) -> str:
    """The name of the arm that a control is a control of; any other name as it is."""
    return arm.removeprefix(CONTROL_PREFIXES[control_of(arm)])


def arm_label(arm: str) -> str:
    """Words for an arm's name; its name where it is none of `ARMS`."""
    name, control = ARMS.get(bare_arm(arm), bare_arm(arm)), control_of(arm)
    return f"{name}, {CONTROL_WORDS[control]}" if control else name


def cell_label(cell: str) -> str:
    """Words for a cell's name, its name where it has none of its own; "linear" for decoders without a network."""
    return CELLS.get(cell, cell)


def metric_label(metric: str) -> str:
    """Words for a metric's name."""
    known = {"r2": "variance-weighted R²", "r2_all_bins": "R² of all bins", "r2_uniform": "uniform R²"}
    known |= {"pearson": "Pearson r", "rmse": "RMSE"}
    return known.get(metric, metric.replace("r2:", "R² of ", 1))


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def arm_order(arm: str) -> tuple[int, int, str]:
    """Sorting key: known arms in the order of `ARMS`, others by name, controls last."""
    name = bare_arm(arm)
    place = list(ARMS).index(name) if name in ARMS else len(ARMS)
    return list(CONTROL_PREFIXES).index(control_of(arm)), place, name


def _cell_order(cell: str) -> tuple[bool, int, str]:
    return cell == "", list(CELLS).index(cell) if cell in CELLS else len(CELLS), cell


def _order(entry: Mapping[str, Any]) -> tuple:
    phases, metrics = [*PHASES, *MORE_PHASES], ("r2", "r2_all_bins", "r2_uniform", "pearson", "rmse")
    metric = metrics.index(entry["metric"]) if entry["metric"] in metrics else len(metrics)
    return (
        *(entry["variable"] != "velocity", entry["variable"], arm_order(entry["arm"]), _cell_order(entry["cell"])),
        *(phases.index(entry["phase"]), metric, entry["metric"]),
    )


def _note(arm: str, scorable: Frame) -> str:
    notes = []
    learns = (scorable["supervision"] != "none").any() and arm not in (*RETRAINED, *CONTROLS) and not control_of(arm)
    if "weight_change" in scorable and learns:
        change = scorable.loc[scorable["status"] == "ok", "weight_change"].dropna()
        if len(change) and change.median() < UNMOVED:
            notes.append("did not adapt")
    if n_failed := int((scorable["status"] == "failed").sum()):
        notes.append(f"{n_failed} of {len(scorable)} runs failed")
    return "; ".join(notes)


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

    refuse("arm", table["arm"].map(bare_arm) == "", f"the name of an arm, or {CANARY}ARM")
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
