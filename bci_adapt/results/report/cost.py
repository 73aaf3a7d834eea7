"""The section that says what a live bin costs every arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bci_adapt.results.figures import studies as figures_study
from bci_adapt.results.report.blocks import Cell, Section, Table, blocks_of, numbers, words
from bci_adapt.results.report.run import StoredRun, figure_text
from bci_adapt.results.table import cell_label


def cost(run: StoredRun) -> Section:
    """Time per bin against the bin width, and memory."""
    costs = run.manifest.costs
    picture = run.album.picture(
        "cost",
        figures_study.cost_figure(costs, run.arms),
        "time per bin of every arm against the bin width",
        "Time of one bin, predict and learn. The dashed line is the bin itself: what is left of it keeps up with "
        "real time.",
    )
    rows = []
    for each in costs:
        width = (each.get("bin_s") or float("nan")) * 1e6
        late = (each.get("p99_us") or 0.0) > width
        times = [
            Cell(figure_text(each.get(name), 1), "bad" if late and name == "p99_us" else "")
            for name in ("p50_us", "p95_us", "p99_us")
        ]
        rows.append(
            [
                *(cell_label(each["cell"]), run.arms.label(each["arm"])),
                *times,
                figure_text(each.get("empty_loop_us"), 1),
                figure_text(100 * (each.get("p99_us") or float("nan")) / width, 2) + " %",
                *(_bytes(each.get(name)) for name in ("state_bytes", "peak_bytes")),
                "too slow" if late else "in time",
            ]
        )
    table = Table(
        f"Microseconds per bin{_machines(costs)}; memory of what the decoder holds, and the peak while it ran.",
        [
            *words("cell", "arm"),
            *numbers("p50", "p95", "p99", "empty loop", "p99 of the bin", "state", "peak"),
            *words(""),
        ],
        rows,
        grouped=True,
    )
    return Section("cost", "Cost", blocks_of(picture, table), "The cost of arms was not measured in this run.")


def _machines(costs: Sequence[Mapping[str, Any]]) -> str:
    """On which machines costs were measured."""
    found = list(dict.fromkeys(str(each["machine"]) for each in costs if each.get("machine")))
    return f" ({'; '.join(found)})" if found else ""


def _bytes(value: Any) -> str:
    if value is None or not np.isfinite(value):
        return "–"
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} B"
