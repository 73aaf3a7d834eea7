"""Job: the predictions of every arm on one pair of sessions → rows of the long table, curves and an excerpt."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from bci_adapt.jobs.arrays import load_arrays
from bci_adapt.metrics import score, windowed_r2
from bci_adapt.storage import write_text

_WINDOW_S = 60.0
_EXCERPT_S = 20.0


def run(parameters: dict[str, Any], inputs: dict[str, Path], out: Path) -> None:
    """Score `arms`: a list of ``{input, columns, phases}``, where `columns` are the row's own and `input` names the
    predictions. An arm whose job failed has ``failed``, the reason, and no such input: its rows say so. With `excerpt`,
    a stretch of decoded and true series is kept.
    """
    arrays = load_arrays(inputs["target"], parameters["variable"])
    bin_s, n_stream = arrays.bin_s, arrays.n_stream(parameters["stream_s"])
    truth = {"online": arrays.y[:n_stream], "held_out": arrays.y[n_stream:]}
    start = {"online": 0.0, "held_out": n_stream * bin_s}
    excerpt = _excerpt(truth["held_out"], round(_EXCERPT_S / bin_s)) if parameters["excerpt"] else None
    rows, curves, trajectories = [], [], []
    for arm in parameters["arms"]:
        lost, columns = arm.get("failed", ""), arm["columns"]
        predictions: dict[str, Any] = {}
        change, diverged = float("nan"), False
        if not lost:
            with np.load(inputs[arm["input"]], allow_pickle=False) as stored:
                predictions = {phase: stored[phase] for phase in arm["phases"]}
                change, diverged = float(stored["weight_change"]), bool(stored["diverged"])
        short = {name: columns[name] for name in ("source", "target", "arm", "cell", "seed")}
        for phase in arm["phases"]:
            y, predicted = truth[phase], predictions.get(phase, np.empty(0))
            mask = np.isfinite(y)
            failed = lost or ("weights diverged" if diverged else "")
            failed = failed or ("" if np.isfinite(predicted).all() else "predictions diverged")
            if failed:
                values = {"r2": None}
            else:
                values = score(np.where(mask, y, 0.0), predicted, mask, arrays.axes)
                # A predictor that never changes has no correlation; such a value is absent, not a failure.
                values = {metric: value if np.isfinite(value) else None for metric, value in values.items()}
            rows += [
                columns
                | {"phase": phase, "metric": metric, "value": value, "n_bins": int(mask.all(axis=1).sum())}
                | {"weight_change": change if np.isfinite(change) else None}
                | {"status": "failed" if failed else "ok", "reason": failed}
                for metric, value in values.items()
            ]
            if failed or columns["canary"]:
                continue
            window = round(_WINDOW_S / bin_s)
            firsts, r2 = windowed_r2(np.where(mask, y, 0.0), predicted, mask, window)
            curves += [
                short | {"phase": phase, "time_s": start[phase] + bin_s * (first + window / 2), "r2": float(value)}
                for first, value in zip(firsts.tolist(), r2, strict=True)
                if np.isfinite(value)
            ]
            if excerpt is not None and phase == "held_out" and columns["seed"] == parameters["first_seed"]:
                time_s = start[phase] + bin_s * np.arange(excerpt.start, excerpt.stop)
                trajectories += [
                    short | {"axis": axis, "time_s": float(t), "true": float(true), "decoded": float(decoded)}
                    for j, axis in enumerate(arrays.axes)
                    for t, true, decoded in zip(time_s, y[excerpt, j], predicted[excerpt, j], strict=True)
                    if np.isfinite(true)
                ]
    write_text(out, json.dumps({"rows": rows, "curves": curves, "trajectories": trajectories}, allow_nan=False))


def _excerpt(y: np.ndarray, n_bins: int) -> slice:
    """The first stretch of this length in which every label is usable (the very first one where there is none)."""
    usable = np.concatenate([[0], np.cumsum(np.isfinite(y).all(axis=1))])
    whole = np.flatnonzero(usable[n_bins:] - usable[:-n_bins] == n_bins)
    begin = int(whole[0]) if len(whole) else 0
    return slice(begin, min(begin + n_bins, len(y)))
