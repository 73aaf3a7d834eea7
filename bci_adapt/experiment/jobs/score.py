"""Job: the predictions of every arm on one pair of sessions → rows of the long table, curves, an excerpt and blocks."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bci_adapt.data.labelled import Arrays, job_arrays
from bci_adapt.data.scorable import still_outputs
from bci_adapt.ground.storage import write_text
from bci_adapt.metrics import block_sums, r2, score, windowed_r2

_WINDOW_S = 60.0
_BLOCK_S = 10.0
_EXCERPT_S = 20.0


class _Part(NamedTuple):
    """What one phase is scored against: truth, which bins are of a trial (None without trials), when it begins."""

    y: np.ndarray
    in_trial: np.ndarray | None
    start_s: float


def run(parameters: dict[str, Any], inputs: dict[str, Path], out: Path) -> None:
    """Score `arms`: a list of ``{input, columns, phases}``, where `columns` are the row's own and `input` names the
    predictions (n_bins, outputs), those of all `variables` side by side. An arm whose job failed has ``failed``, the
    reason, and no such input: its rows say so. The truth of phase back is the session `source`.

    With `in_trial`, where a session has trials, scores are of bins inside trials, with ``r2_all_bins`` beside them. An
    output that cannot be scored (`still_outputs`) is in none; its own row says why.
    Standing arms that are no control have curves and blocks, and with `excerpt` a stretch of decoded and true series of
    the first seed.
    """
    arrays = job_arrays(parameters, inputs["target"])
    if not parameters["in_trial"]:
        arrays = arrays._replace(in_trial=None)
    n_stream = arrays.n_stream(parameters["stream_s"])
    parts = _parts(arrays, n_stream)
    still = {variable: still_outputs(arrays, outputs, n_stream) for variable, outputs in arrays.columns.items()}
    if "source" in inputs:
        source = job_arrays(parameters, inputs["source"])
        parts["back"] = _Part(source.y, source.in_trial if parameters["in_trial"] else None, 0.0)
    excerpt = _excerpt(parts["held_out"].y, round(_EXCERPT_S / arrays.bin_s)) if parameters["excerpt"] else None
    tables: dict[str, list[dict[str, Any]]] = {"rows": [], "curves": [], "trajectories": [], "blocks": []}
    for arm in parameters["arms"]:
        predictions, about = _predictions(arm, inputs)
        standing = not arm["columns"]["study"] and not arm["columns"]["control"]
        first = arm["columns"]["seed"] == parameters["first_seed"]
        for phase in arm["phases"]:
            for variable, every in arrays.columns.items():
                outputs = _kept(every, still[variable])
                part = parts[phase]._replace(y=parts[phase].y[:, outputs])
                predicted = predictions[phase][:, outputs] if phase in predictions else None
                axes = tuple(np.array(arrays.axes)[outputs].tolist())
                columns = arm["columns"] | {"variable": variable}
                rows = _rows(columns | {"phase": phase}, about, part, predicted, axes)
                tables["rows"] += rows
                if rows[0]["status"] == "ok":
                    tables["rows"] += _left_out(rows[0], arrays.axes[every], still[variable])
                if predicted is None or not standing or rows[0]["status"] != "ok":
                    continue
                names = ("source", "target", "variable", "arm", "cell", "seed")
                run_ = {name: columns[name] for name in names}
                if phase in ("online", "held_out"):
                    tables["curves"] += _curve(run_ | {"phase": phase}, part, predicted, arrays.bin_s)
                if phase == "held_out":
                    tables["blocks"].append(run_ | _blocks(part, predicted, arrays.bin_s))
                    if first and excerpt is not None:
                        tables["trajectories"] += _excerpted(run_, part, predicted, axes, excerpt, arrays.bin_s)
    write_text(out, json.dumps(tables, allow_nan=False))


def _kept(outputs: slice, still: Collection[int]) -> slice | list[int]:
    """The columns of a variable that are scored."""
    return [i for i in range(outputs.start, outputs.stop) if i - outputs.start not in still] if still else outputs


def _left_out(like: dict[str, Any], axes: tuple[str, ...], still: Mapping[int, str]) -> list[dict[str, Any]]:
    """Rows that say which outputs are in no score, and why."""
    why = {"value": None, "status": "unscorable"}
    return [like | why | {"metric": f"r2:{axes[i]}", "reason": reason} for i, reason in still.items()]


def _parts(arrays: Arrays, n_stream: int) -> dict[str, _Part]:
    """The phases of a target; the prediction of ``online_late`` is the end of the one of ``online``."""
    begins = {"online": 0, "online_late": n_stream // 2, "held_out": n_stream, "continuing": n_stream}
    ends = {"online": n_stream, "online_late": n_stream}
    parts = {}
    for phase, begin in begins.items():
        bins = slice(begin, ends.get(phase))
        in_trial = None if arrays.in_trial is None else arrays.in_trial[bins]
        parts[phase] = _Part(arrays.y[bins], in_trial, begin * arrays.bin_s)
    return parts


def _predictions(arm: dict[str, Any], inputs: dict[str, Path]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What an arm predicted, by phase, and the columns that its job tells: a reason where there is no prediction."""
    if reason := arm.get("failed", ""):
        return {}, {"weight_change": None, "n_labels": 0, "reason": reason}
    with np.load(inputs[arm["input"]], allow_pickle=False) as stored:
        predictions = {phase: stored["online" if phase == "online_late" else phase] for phase in arm["phases"]}
        change, diverged = float(stored["weight_change"]), bool(stored["diverged"])
        n_labels = int(stored["n_labels"])
    if "online_late" in predictions:
        whole = predictions["online_late"]
        predictions["online_late"] = whole[len(whole) // 2 :]
    about = {"weight_change": change if np.isfinite(change) else None, "n_labels": n_labels}
    return predictions, about | {"reason": "weights diverged" if diverged else ""}


def _masks(part: _Part) -> tuple[np.ndarray, np.ndarray]:
    """Which values have a label, and which of these are primary, both (n_bins, n_axes)."""
    labelled = np.isfinite(part.y)
    return labelled, labelled if part.in_trial is None else labelled & part.in_trial[:, None]


def _rows(
    columns: dict[str, Any], about: dict[str, Any], part: _Part, predicted: np.ndarray | None, axes: tuple[str, ...]
) -> list[dict[str, Any]]:
    """The rows of one run, phase and variable."""
    labelled, primary = _masks(part)
    columns = columns | about | {"n_bins": int(primary.all(axis=1).sum())}
    reason = about["reason"]
    if not reason and predicted is not None and not np.isfinite(predicted).all():
        reason = "predictions diverged"
    if reason or predicted is None:
        return [columns | {"metric": "r2", "value": None, "status": "failed", "reason": reason}]
    y = np.where(labelled, part.y, 0.0)
    values = score(y, predicted, primary, axes)
    if part.in_trial is not None:
        values["r2_all_bins"] = r2(y, predicted, labelled)
    if not np.isfinite(values["r2"]):
        reason = "no movement with labels" + ("" if part.in_trial is None else " inside a trial")
        return [columns | {"metric": "r2", "value": None, "status": "unscorable", "reason": reason}]
    # A predictor that never changes has no correlation; such a value is absent, not a failure.
    return [
        columns | {"metric": metric, "value": value if np.isfinite(value) else None, "status": "ok", "reason": ""}
        for metric, value in values.items()
    ]


def _curve(run_: dict[str, Any], part: _Part, predicted: np.ndarray, bin_s: float) -> list[dict[str, Any]]:
    labelled, primary = _masks(part)
    window = round(_WINDOW_S / bin_s)
    firsts, scores = windowed_r2(np.where(labelled, part.y, 0.0), predicted, primary, window)
    return [
        run_ | {"time_s": part.start_s + bin_s * (first + window / 2), "r2": float(value)}
        for first, value in zip(firsts.tolist(), scores, strict=True)
        if np.isfinite(value)
    ]


def _blocks(part: _Part, predicted: np.ndarray, bin_s: float) -> dict[str, list[float]]:
    labelled, primary = _masks(part)
    y = np.where(labelled, part.y, 0.0)
    error, spread = block_sums(y, predicted, primary, max(1, round(_BLOCK_S / bin_s)))
    return {"error": error.tolist(), "spread": spread.tolist()}


def _excerpted(
    run_: dict[str, Any], part: _Part, predicted: np.ndarray, axes: tuple[str, ...], excerpt: slice, bin_s: float
) -> list[dict[str, Any]]:
    time_s = part.start_s + bin_s * np.arange(excerpt.start, excerpt.stop)
    return [
        run_ | {"axis": axis, "time_s": float(t), "true": float(true), "decoded": float(decoded)}
        for j, axis in enumerate(axes)
        for t, true, decoded in zip(time_s, part.y[excerpt, j], predicted[excerpt, j], strict=True)
        if np.isfinite(true)
    ]


def _excerpt(y: np.ndarray, n_bins: int) -> slice:
    """The first stretch of this length in which every label is usable (the very first one where there is none)."""
    usable = np.concatenate([[0], np.cumsum(np.isfinite(y).all(axis=1))])
    whole = np.flatnonzero(usable[n_bins:] - usable[:-n_bins] == n_bins)
    begin = int(whole[0]) if len(whole) else 0
    return slice(begin, min(begin + n_bins, len(y)))
