"""Cross-session runs that are stored already, as figure F4b reads them: nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bci_adapt.ground.storage import cache_root
from bci_adapt.paper.tables import Frame
from bci_adapt.results.arms import Arms
from bci_adapt.results.manifest import MANIFEST, RESULTS, read_manifest
from bci_adapt.results.recovery import coded, recovery_oracle
from bci_adapt.results.summary import summarise
from bci_adapt.results.table import control_of, read_results

COLUMNS = (
    "run",
    "arm",
    "label",
    "cell",
    "mean",
    "low",
    "high",
    "n_targets",
    "recovery",
    "recovery_low",
    "recovery_high",
    "refused",
)


def newest(names: Sequence[str]) -> list[Path]:
    """The newest finished run of each name in the cache, in the order of `names`; names without one are left out."""
    found = []
    for name in names:
        folders = [each.parent for each in (cache_root() / "runs").glob(f"{name}-*/results.nc")]
        folders = [each for each in folders if each.name.rpartition("-")[0] == name]
        if folders:
            found.append(max(folders, key=lambda folder: (folder / "results.nc").stat().st_mtime))
    return found


def read(folders: Sequence[Path], variable: str = "velocity") -> Frame:
    """Held-out R² of every arm of every run, and recovery_oracle in percent, or why there is none."""
    rows: list[dict[str, Any]] = []
    for folder in folders:
        read_manifest(folder / MANIFEST).require_whole(folder)
        stored = read_results(folder / RESULTS)
        of_run = coded(stored.rows)
        arms = Arms(stored.arms)
        recovered, refused = recovery_oracle(of_run, arms)
        percent = {(e["arm"], e["cell"]): e for e in recovered if e["variable"] == variable}
        reasons = {(e["arm"], e["cell"]): e["reason"] for e in refused if e["variable"] == variable}
        for entry in summarise(of_run, arms, blocks=stored.blocks):
            if (entry["variable"], entry["phase"], entry["metric"]) != (variable, "held_out", "r2") or control_of(
                entry["arm"]
            ):
                continue
            key = entry["arm"], entry["cell"]
            found = percent.get(key, {})
            rows.append(
                {
                    "run": folder.name.rpartition("-")[0], "arm": entry["arm"], "label": arms.label(entry["arm"]),
                    "cell": entry["cell"] or "linear", "mean": entry["mean"], "low": entry["low"],
                    "high": entry["high"], "n_targets": entry["n_targets"], "recovery": found.get("mean"),
                    "recovery_low": found.get("low"), "recovery_high": found.get("high"),
                    "refused": reasons.get(key, ""),
                }
            )  # fmt: skip
    return pd.DataFrame(rows, columns=list(COLUMNS))
