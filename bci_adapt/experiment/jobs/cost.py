"""Job: what one bin of a live session costs a decoder on this machine: time and memory."""

from __future__ import annotations

import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np

from bci_adapt.data.labelled import job_arrays
from bci_adapt.experiment.jobs.adapt import shown_of, started, taught_by
from bci_adapt.ground.storage import write_text

WARM_UP, MEASURED = 100, 1000


def run(parameters: dict[str, Any], inputs: dict[str, Path], out: Path) -> None:
    """Hand the decoder one bin of the target after another, as a live session does, and time each call.

    Parameters are those of an adapt job, and the `machine` it runs on, in words. Writes percentiles over `MEASURED`
    bins, the same of a call that does nothing (``empty_loop_us``: the clock and the loop), the bytes of the decoder's
    arrays and the peak that its calls allocate.
    """
    arrays = job_arrays(parameters, inputs["target"])
    decoder = started(parameters, inputs)
    shown = shown_of(arrays, inputs["target"], parameters["control"], taught_by(parameters)).arrays
    n_bins = min(len(shown.X), WARM_UP + MEASURED)
    rows = [(shown.X[t : t + 1], shown.y[t : t + 1]) for t in range(n_bins)]
    decoder.begin()
    taken = _timed(lambda X, y: decoder.partial_fit(X, y), rows)
    empty = _timed(lambda X, y: None, rows)
    tracemalloc.start()
    for X, y in rows[:WARM_UP]:
        decoder.partial_fit(X, y)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    p50, p95, p99 = np.percentile(taken, [50, 95, 99])
    found: dict[str, Any] = {"p50_us": p50, "p95_us": p95, "p99_us": p99, "empty_loop_us": float(np.median(empty))}
    arrays_bytes = sum(array.nbytes for array in decoder._fitted_arrays().values())
    found["machine"] = parameters["machine"]
    write_text(out, json.dumps(found | {"state_bytes": arrays_bytes, "peak_bytes": peak, "bin_s": arrays.bin_s}))


def _timed(call: Any, rows: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Microseconds of each call after the first `WARM_UP` (of half of them where there are few)."""
    taken = np.empty(len(rows))
    for i, (X, y) in enumerate(rows):
        started_at = time.perf_counter_ns()
        call(X, y)
        taken[i] = time.perf_counter_ns() - started_at
    return taken[min(WARM_UP, len(rows) // 2) :] / 1e3
