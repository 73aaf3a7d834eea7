"""What the cases of the paper's claims are held to: each statistic, found in the tables of a figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bci_adapt.ground.statistics import Interval, ratio_of_means, t_interval
from bci_adapt.paper.tables import Frame, recoveries_by_seed, usable

if TYPE_CHECKING:
    from bci_adapt.paper.claims import Case


class Value(NamedTuple):
    """What a statistic found: its interval, the values it is of (one for each unit; empty for a count)."""

    interval: Interval
    values: np.ndarray


def rows_of(case: Case, tables: Mapping[str, Frame], method: str) -> Frame | str:
    """Rows of one method; text says what is missing."""
    runs = tables["runs"]
    if runs.empty:
        return "nothing was run"
    keep = (runs["task"] == case.task) & (runs["cell"] == case.cell) & (runs["method"] == method)
    keep &= runs["rates"] == case.rates
    rows = _at_size(runs[keep], case.n_hidden)
    return f"{method} on {case.task} at its {case.rates} rate has not been run" if rows.empty else rows


def _at_size(rows: Frame, n_hidden: int | None) -> Frame:
    """The rows of networks of that size, of the largest where none is asked for."""
    size = rows["n_hidden"].max() if n_hidden is None else n_hidden
    return rows[rows["n_hidden"] == size]


def _recovery(case: Case, tables: Mapping[str, Frame]) -> Value | str:
    """recovery_pre in percent of `method`: ratio of means over usable seeds."""
    rows = rows_of(case, tables, case.method)
    if isinstance(rows, str):
        return rows
    good = usable(rows)
    if len(good) < 2:
        return f"{len(good)} of {len(rows)} seeds usable"
    lost = (good[f"{case.window}_frozen"] - good[f"{case.window}_before"]).to_numpy(float)
    gained = (good[f"{case.window}_frozen"] - good[case.window]).to_numpy(float)
    found = ratio_of_means(gained, lost)
    if found.refused:
        return found.refused
    return Value(Interval(100 * found.ratio, 100 * found.low, 100 * found.high, len(good)), 100 * gained / lost)


def _recovery_difference(case: Case, tables: Mapping[str, Frame]) -> Value | str:
    """recovery_pre of `method` less that of `other` in points, paired by seed."""
    both = [rows_of(case, tables, name) for name in (case.method, case.other)]
    for each in both:
        if isinstance(each, str):
            return each
    apart = (recoveries_by_seed(both[0], case.window) - recoveries_by_seed(both[1], case.window)).dropna()
    return _of(apart)


def _r2(case: Case, tables: Mapping[str, Frame]) -> Value | str:
    """Held-out R² of `method`."""
    rows = rows_of(case, tables, case.method)
    return rows if isinstance(rows, str) else _of(_r2_by_seed(rows))


def _r2_difference(case: Case, tables: Mapping[str, Frame]) -> Value | str:
    """Held-out R² of `method` less that of `other`, in points of R² (hundredths), paired by seed."""
    both = [rows_of(case, tables, name) for name in (case.method, case.other)]
    for each in both:
        if isinstance(each, str):
            return each
    return _of(100 * (_r2_by_seed(both[0]) - _r2_by_seed(both[1])).dropna())


def _r2_above_ridge(case: Case, tables: Mapping[str, Frame]) -> Value | str:
    """Held-out R² of `method` less that of ridge on the same network untrained, paired by seed."""
    rows = rows_of(case, tables, case.method)
    if isinstance(rows, str):
        return rows
    good = rows[~rows["failed"].astype(bool)]
    return _of(good["held_out_reservoir"].astype(float) - good["held_out"].astype(float))


def _r2_by_seed(rows: Frame) -> Frame:
    good = rows[~rows["failed"].astype(bool)].set_index("seed")
    return 1.0 - good["held_out"].astype(float)


def _decay_over_star(case: Case, tables: Mapping[str, Frame]) -> Value | str:
    """0.95 / λ*, over the trained networks."""
    rows = _networks(case, tables)
    return rows if isinstance(rows, str) else _of(0.95 / rows["lambda_star"].astype(float))


def _error_before(case: Case, tables: Mapping[str, Frame]) -> Value | str:
    """E_before of the trained networks, in variances of the target: what recovery is measured against."""
    rows = _networks(case, tables)
    return rows if isinstance(rows, str) else _of(rows["before_last"].astype(float))


def _networks(case: Case, tables: Mapping[str, Frame]) -> Frame | str:
    rows = tables["networks"]
    if rows.empty:
        return "nothing was trained"
    rows = _at_size(rows[(rows["task"] == case.task) & (rows["cell"] == case.cell)], case.n_hidden)
    return f"no network was trained on {case.task} at this size" if rows.empty else rows


def _gradients(case: Case, tables: Mapping[str, Frame]) -> Value | str:
    """Median of `column` along the run, or of its ratio to the column `over`, over seeds."""
    rows = tables["gradients"]
    if rows.empty:
        return "no gradients were looked at"
    rows = _at_size(rows[(rows["task"] == case.task) & (rows["cell"] == case.cell)], case.n_hidden)
    missing = [name for name in (case.column, case.over) if name and name not in rows]
    if missing or rows.empty:
        return f"no {missing[0] if missing else 'gradients'} of {case.cell} on {case.task} at this size"
    values = rows[case.column].astype(float)
    return _of((values / rows[case.over].astype(float) if case.over else values).dropna())


def _gap(case: Case, tables: Mapping[str, Frame]) -> Value | str:
    """Best Adam less best SGD of `cell`, in points of recovery."""
    gaps = tables["gaps"]
    if gaps.empty:
        return "no pair of optimisers was run"
    keep = (gaps["task"] == case.task) & (gaps["cell"] == case.cell) & (gaps["rates"] == case.rates)
    if not keep.any():
        return f"{case.cell} on {case.task} has not been run with both optimisers"
    row = gaps[keep].iloc[0]
    return Value(Interval(row["gap"], row["low"], row["high"], int(row["n"])), np.zeros(0))


def _rule_agreement(case: Case, tables: Mapping[str, Frame]) -> Value | str:
    """Percentage of architectures on which the rule's prediction is what came out – a gap of more than 5 points, whose
    interval excludes zero, where it predicts one, and none where it does not – with its exact binomial interval.
    """
    from scipy import stats

    table = tables["architectures"]
    if table.empty:
        return "no pair of optimisers was run"
    rows = table[(table["task"] == case.task) & (table["rates"] == case.rates) & np.isfinite(table["low"])]
    if rows.empty:
        return f"no architecture was run on {case.task}"
    came_out = (rows["gap"] > 5) & (rows["low"] > 0)
    agreed, n = int((came_out == rows["rule_predicts_gap"]).sum()), len(rows)
    found = stats.binomtest(agreed, n).proportion_ci()
    return Value(Interval(100 * agreed / n, 100 * found.low, 100 * found.high, n), np.zeros(0))


def _memory_ratio(case: Case, tables: Mapping[str, Frame]) -> Value | str:
    """Counted bytes of `other` over those of `method`."""
    table = tables["memory"]
    if table.empty:
        return "no memory was counted"
    at_size = table[table["n_hidden"] == case.n_hidden].set_index("method")["computed_bytes"]
    if not {case.method, case.other} <= set(at_size.index):
        return f"not counted at n = {case.n_hidden}"
    ratio = float(at_size[case.other] / at_size[case.method])
    return Value(Interval(ratio, ratio, ratio, 1), np.zeros(0))


def _stream_loss(case: Case, tables: Mapping[str, Frame]) -> Value | str:
    """Prequential loss of `method` on a stream over seeds: nats, or a share of the last value's squared error."""
    rows = _stream_rows(case, tables, case.method)
    return rows if isinstance(rows, str) else _of(rows)


def _stream_loss_difference(case: Case, tables: Mapping[str, Frame]) -> Value | str:
    """Prequential loss of `method` less that of `other`, paired by seed."""
    both: list[Any] = [_stream_rows(case, tables, name) for name in (case.method, case.other)]
    for each in both:
        if isinstance(each, str):
            return each
    return _of((both[0] - both[1]).dropna())


def _stream_rows(case: Case, tables: Mapping[str, Frame], method: str) -> Frame | str:
    table = tables["streams"]
    if table.empty:
        return "no stream was run"
    keep = (table["task"] == case.task) & (table["cell"] == case.cell) & (table["method"] == method)
    rows = table[keep & ((table["rates"] == case.rates) | (table["kind"] == "rival"))]  # a rival has one rate
    if rows.empty:
        return f"{method} on {case.task} at its {case.rates} rate has not been run"
    rows = _at_size(rows, case.n_hidden)
    return rows[~rows["failed"].astype(bool)].set_index("seed")["loss"].astype(float)


def _stored_recovery(case: Case, tables: Mapping[str, Frame]) -> Value | str:
    """recovery_oracle in percent of the arm `method` of the stored run `run`."""
    table = tables["stored"]
    rows = table[(table["run"] == case.run) & (table["arm"] == case.method) & (table["cell"] == case.cell)]
    if rows.empty:
        return f"no stored run {case.run!r} with this arm"
    row = rows.iloc[0]
    if not np.isfinite(np.asarray(row["recovery"], float)):
        return f"{case.run}: {row['refused'] or 'no recovery'}"
    return Value(
        Interval(row["recovery"], row["recovery_low"], row["recovery_high"], int(row["n_targets"])), np.zeros(0)
    )


def _of(values: Any) -> Value | str:
    array = np.asarray(values, float)
    return Value(t_interval(array), array) if len(array) > 1 else f"{len(array)} seeds usable"


class Statistic(NamedTuple):
    """How a statistic is found, and which results it reads of those of its figure.

    Parameters
    ----------
    find : (case, tables of the figure) → what was found, or in words why it was not.
    kinds : kinds of jobs (`bci_adapt.paper.planning.Entry.kind`) whose results it reads.
    selects : the keys of a case that say which of these; results that differ in another key are read too.
    """

    find: Callable[[Case, Mapping[str, Frame]], Value | str]
    kinds: tuple[str, ...]
    selects: tuple[str, ...] = ("task", "cell", "n_hidden")

    def reads(self, case: Case, entry: Any) -> bool:
        """Whether `case` reads the result of `entry` (a `bci_adapt.paper.planning.Entry`)."""
        wanted = {"task": (case.task,), "cell": (case.cell,), "method": ("", case.method, case.other)}
        wanted["n_hidden"] = (entry.n_hidden if case.n_hidden is None else case.n_hidden,)
        return entry.kind in self.kinds and all(getattr(entry, key) in wanted[key] for key in self.selects)


_OF_METHODS = ("task", "cell", "n_hidden", "method")
_RUNS, _STREAMS = ("networks", "adapt"), ("stream", "rival")
STATISTICS: dict[str, Statistic] = {
    "recovery": Statistic(_recovery, _RUNS, _OF_METHODS),
    "recovery_difference": Statistic(_recovery_difference, _RUNS, _OF_METHODS),
    "r2": Statistic(_r2, _RUNS, _OF_METHODS),
    "r2_difference": Statistic(_r2_difference, _RUNS, _OF_METHODS),
    "r2_above_ridge": Statistic(_r2_above_ridge, _RUNS, _OF_METHODS),
    "decay_over_star": Statistic(_decay_over_star, ("networks",)),
    "error_before": Statistic(_error_before, ("networks",)),
    "gradients": Statistic(_gradients, ("gradients",)),
    "gap": Statistic(_gap, _RUNS, ("task", "cell")),
    "rule_agreement": Statistic(_rule_agreement, _RUNS, ("task",)),
    "memory_ratio": Statistic(_memory_ratio, ("memory",), ("n_hidden", "method")),
    "stream_loss": Statistic(_stream_loss, _STREAMS, _OF_METHODS),
    "stream_loss_difference": Statistic(_stream_loss_difference, _STREAMS, _OF_METHODS),
    "stored_recovery": Statistic(_stored_recovery, ()),
}
