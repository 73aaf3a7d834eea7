"""Scores point by point – of each pair, of each day, beside each measure of drift – that a run's analysis keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bci_adapt.results.arms import Arms, Key
from bci_adapt.results.recovery import paired, standing
from bci_adapt.results.table import Frame, cell_order

PAIR = ("source", "target")


def by_pair(rows: Frame) -> list[dict[str, Any]]:
    """R² of every arm on every pair, seeds averaged, in each part and by axis; `n_labels` the most of a seed."""
    kept = standing(rows)
    kept = kept[(kept["control"] == "") & (kept["status"] == "ok") & kept["metric"].str.startswith("r2")]
    keys = [*PAIR, "day_gap", "variable", "cell", "arm", "phase", "metric"]
    found = kept.groupby(keys, dropna=False, sort=False, as_index=False).agg(
        value=("value", "mean"), n_labels=("n_labels", "max")
    )
    return found.to_dict("records")


def by_day(rows: Frame, variable: str) -> list[dict[str, Any]]:
    """Held-out R² by day of weights carried through days in a row, and of the same arms anew on each day: on the pairs
    and seeds of both.
    """
    keep = (rows["variable"] == variable) & (rows["phase"] == "held_out") & (rows["metric"] == "r2")
    keep &= (rows["status"] == "ok") & (rows["control"] == "") & rows["study"].isin(["", "continual"])
    kept = rows[keep].assign(continual=rows["study"] == "continual")
    of_both = kept.loc[kept["continual"], [*PAIR, "arm", "cell", "seed"]].drop_duplicates()
    kept = kept.merge(of_both)
    kept["day"] = np.where(kept["target_date"] == "", kept["target"], kept["target_date"])
    means = kept.groupby(["variable", "cell", "arm", "day", "continual"], as_index=False)["value"].mean()
    return means.rename(columns={"value": "mean"}).to_dict("records")


def followed(rows: Frame, arms: Arms, primary: tuple[Key, Key] | None) -> Key:
    """The arm whose regained R² is set beside drift: the primary one where it was run, else the usual one of the last
    network, of the linear decoders, or one without labels.
    """
    own = standing(rows)
    own = own[own["control"] == ""]
    held = set(zip(own["arm"], own["cell"], strict=True))
    kinds = [(cell, arms.of_cell(cell)) for cell in sorted(set(rows["cell"]), key=cell_order, reverse=True)]
    usual = [(kind.reference, cell) for cell, kind in sorted(kinds, key=lambda each: not each[0])]
    usual += [(kind.unlabelled, cell) for cell, kind in kinds]
    first = [primary[0]] if primary else []
    return next((key for key in [*first, *usual] if key in held), (arms.of_cell("").frozen, ""))


def beside_drift(
    rows: Frame, arms: Arms, drift: Sequence[Mapping[str, Any]], key: Key, variable: str
) -> list[dict[str, Any]]:
    """Each measure of drift of each pair, and the held-out R² that the frozen decoder had there, that it lost (the
    ceiling less it) and that the arm `key` regained (that arm less it).
    """
    records = [
        {name: str(pair[name]) for name in PAIR}
        | {"measure": str(name)}
        | {part: _float(measure.get(part)) for part in ("value", "low", "high")}
        for pair in drift
        for name, measure in pair["measures"].items()
    ]
    if not records:
        return []
    own = standing(rows)
    own = own[(own["control"] == "") & (own["phase"] == "held_out") & (own["metric"] == "r2")]
    gaps = rows.drop_duplicates([*PAIR])[[*PAIR, "day_gap"]]
    points = pd.DataFrame(records).merge(gaps, on=[*PAIR], how="left")
    arm, cell = key
    kind = arms.of_cell(cell)
    for column, first in (("lost", kind.ceiling), ("regained", arm)):
        both = paired(own, (first, cell), (kind.frozen, cell), variable)
        both[column] = both["value"] - both["other"]
        points = points.merge(both.groupby([*PAIR], as_index=False)[column].mean(), on=[*PAIR], how="left")
    keep = (own["arm"] == kind.frozen) & (own["cell"] == cell) & (own["status"] == "ok")
    frozen = own[keep & (own["variable"] == variable)].groupby([*PAIR], as_index=False)["value"].mean()
    frozen = frozen.rename(columns={"value": "frozen"})
    points = points.merge(frozen, on=[*PAIR], how="left")
    return points.assign(variable=variable, arm=arm, cell=cell).to_dict("records")


def _float(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else float("nan")
