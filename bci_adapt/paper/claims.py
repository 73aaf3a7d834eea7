"""The paper's claims and what the tables say of them. Statistic, threshold and direction stand in a file that is
written before the full run; the verdict is computed from it.

A claim has one case or several, the first as the paper states it. A case *holds* when the interval of its statistic
lies wholly on the side that the claim needs, *fails* when it lies wholly on the other, and is *open* else. All hold:
reproduced. Some: only under those; a case that was not tested is none that holds. None, and the first that was tested
fails: not reproduced. Else: inconclusive, with the number of runs at which the spread seen would decide.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bci_adapt.errors import InputError
from bci_adapt.ground.statistics import Interval, days_needed, equivalence, ratio_of_means, t_interval
from bci_adapt.paper.tables import Frame, recoveries_by_seed, usable

Tables = Mapping[str, Mapping[str, Frame]]  # of every figure that has been run
REPRODUCED, NOT, ONLY, OPEN, UNTESTED = "reproduced", "not reproduced", "only under", "inconclusive", "not tested here"


class Case(BaseModel):
    """One condition under which a claim is put to the test.

    Exactly one of `above`, `below` and `within` (± that much of zero, by TOST) says what the claim needs. The other
    keys select rows of the figure's tables; which of them a statistic reads is said there.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    when: str
    statistic: str
    above: float | None = None
    below: float | None = None
    within: float | None = Field(default=None, gt=0)
    figure: str = ""
    task: str = ""
    cell: str = "tanh"
    n_hidden: int | None = None
    method: str = ""
    other: str = ""
    rates: Literal["tuned", "shared"] = "tuned"
    window: Literal["last", "held_out"] = "last"
    column: str = ""
    over: str = ""
    run: str = ""

    @model_validator(mode="after")
    def _one_direction(self) -> Case:
        if sum(each is not None for each in (self.above, self.below, self.within)) != 1:
            raise ValueError(f"{self.when}: expected one of above, below and within")
        if self.statistic not in STATISTICS:
            raise ValueError(f"{self.when}: unknown statistic {self.statistic!r} (known: {', '.join(STATISTICS)})")
        return self

    @property
    def wanted(self) -> str:
        """The threshold in words."""
        if self.within is not None:
            return f"within ±{self.within:g}"
        return f"above {self.above:g}" if self.above is not None else f"below {self.below:g}"


class Claim(BaseModel):
    """A claim, the paper's number for it, and how it is tested here; `untested` says why it is not."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    claim: str
    paper: str
    figure: str
    unit: str = ""
    untested: str = ""
    note: str = ""
    cases: tuple[Case, ...] = ()

    @model_validator(mode="after")
    def _tested_or_not(self) -> Claim:
        if bool(self.cases) == bool(self.untested):
            raise ValueError(f"{self.id}: expected either cases or a reason in untested")
        return self


class Value(NamedTuple):
    """What a statistic found: its interval, the values it is of (one for each unit; empty for a count)."""

    interval: Interval
    values: np.ndarray


class Judged(NamedTuple):
    """A case and how it came out: ``holds``, ``fails``, ``open`` or ``missing``; `needs` runs would decide. `why`
    something is missing, or what else the reader must know.
    """

    case: Case
    outcome: str
    value: Interval | None
    needs: float
    why: str = ""


class Row(NamedTuple):
    """One line of the page; `ours` says in words what `cases` holds in numbers."""

    id: str
    claim: str
    paper: str
    ours: str
    verdict: str
    figure: str
    note: str
    cases: tuple[dict[str, Any], ...] = ()


def load_claims(path: Path) -> tuple[Claim, ...]:
    """Read the file of claims; `InputError` naming it and what is wrong."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
        claims = tuple(Claim.model_validate(each) for each in raw["claims"])
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{path}: expected TOML with [[claims]]: {error}") from error
    except ValidationError as error:
        told = [f"{'.'.join(map(str, e['loc']))}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors()]
        raise InputError(f"{path}: " + "; ".join(told)) from None
    names = [claim.id for claim in claims]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise InputError(f"{path}: two claims have the id {twice[0]!r}")
    return claims


def judge(claim: Claim, tables: Tables, quick: bool = False) -> Row:
    """The line of one claim; a `quick` run is judged at the sizes that it has."""
    about = claim.id, claim.claim, claim.paper
    if claim.untested:
        return Row(*about, "—", f"{UNTESTED} ({claim.untested})", claim.figure, claim.note)
    cases = [_smaller(case) for case in claim.cases] if quick else claim.cases
    found = [judge_case(case, claim, tables) for case in cases]
    ours = "; ".join(f"{each.case.when}: {_words(each, claim.unit)}" for each in found)
    return Row(
        *about, ours, verdict(found), claim.figure, claim.note, tuple(_plain(each, claim.unit) for each in found)
    )


def _plain(judged: Judged, unit: str) -> dict[str, Any]:
    """A judged case as JSON holds it: null where there is no number."""
    case = judged.case
    numbers = dict(zip(("mean", "low", "high", "n"), judged.value or (math.nan,) * 4, strict=True))
    numbers = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
    thresholds = {"above": case.above, "below": case.below, "within": case.within}
    return {
        "when": case.when, "found": _words(judged, unit), "outcome": judged.outcome, "why": judged.why, "unit": unit,
        "wanted": case.wanted, **thresholds, **numbers,
    }  # fmt: skip


def _smaller(case: Case) -> Case:
    """The case at whatever size there is, which its words say."""
    if case.n_hidden is None or case.statistic == "memory_ratio":
        return case
    words = case.when.replace(f"n = {case.n_hidden}", "few units")
    return case.model_copy(update={"n_hidden": None, "when": words})


def _at_size(rows: Frame, n_hidden: int | None) -> Frame:
    """The rows of networks of that size, of the largest where none is asked for."""
    size = rows["n_hidden"].max() if n_hidden is None else n_hidden
    return rows[rows["n_hidden"] == size]


def verdict(found: Sequence[Judged]) -> str:
    """The verdict of a claim's cases, the first of which is as the paper states it."""
    named = {kind: [each.case.when for each in found if each.outcome == kind] for kind in ("holds", "fails", "open")}
    if not any(named.values()):
        return f"{UNTESTED} ({found[0].why})"
    tested = [each for each in found if each.outcome != "missing"]
    if len(named["holds"]) == len(found):
        return REPRODUCED
    if named["holds"]:
        return f"{ONLY} ({'; '.join(named['holds'])})"
    if tested[0].outcome == "fails":
        return NOT
    needs = max(each.needs for each in tested if each.outcome == "open")
    return f"{OPEN} (needs n ≈ {needs:.0f})" if math.isfinite(needs) else OPEN


def judge_case(case: Case, claim: Claim, tables: Tables) -> Judged:
    """How one case came out."""
    figure = case.figure or claim.figure
    if figure not in tables:
        return Judged(case, "missing", None, math.nan, f"figure {figure} has not been run")
    found = STATISTICS[case.statistic](case, tables[figure])
    if isinstance(found, str):
        return Judged(case, "missing", None, math.nan, found)
    value, sd = found.interval, float(np.std(found.values, ddof=1)) if len(found.values) > 1 else math.nan
    edge = _at_edge(case, tables[figure])
    if case.within is not None:
        return _equivalent(case, found, sd, edge)
    threshold = case.above if case.above is not None else case.below
    assert threshold is not None
    low, high = (value.low, value.high) if math.isfinite(value.low) else (math.nan, math.nan)
    beyond, short = (
        (low > threshold, high < threshold) if case.above is not None else (high < threshold, low > threshold)
    )
    outcome = "holds" if beyond else "fails" if short else "open"
    needs = days_needed(sd, effect=value.mean - threshold) if outcome == "open" and sd > 0 else math.nan
    return Judged(case, outcome, value, needs, edge)


def _at_edge(case: Case, tables: Mapping[str, Frame]) -> str:
    """Which of a case's methods had its best rate at the edge of those tried: its optimum is not known."""
    if case.rates != "tuned":
        return ""
    both = [(name, _rows(case, tables, name)) for name in (case.method, case.other) if name and "runs" in tables]
    names = [name for name, rows in both if not isinstance(rows, str) and not rows["interior"].astype(bool).all()]
    return f"best rate at the edge of those tried: {', '.join(names)}" if names else ""


def _equivalent(case: Case, found: Value, sd: float, edge: str) -> Judged:
    """TOST: holds when the 90 % interval lies inside ± the margin, fails when it lies wholly outside."""
    assert case.within is not None
    tested = equivalence(found.values, case.within)
    inner = tested.interval
    if tested.verdict == "equivalent":
        outcome = "holds"
    else:
        outside = inner.low > case.within or inner.high < -case.within
        outcome = "fails" if outside else "open"
    return Judged(case, outcome, inner, days_needed(sd, margin=case.within) if sd > 0 else math.nan, edge)


def _words(judged: Judged, unit: str) -> str:
    if judged.value is None:
        return f"— ({judged.why})"
    mean, low, high, n = judged.value
    if not math.isfinite(low):
        text = f"{_number(mean)}{unit}"
    elif low == high:
        text = f"{_number(mean)}{unit} (counted)"
    else:
        text = f"{_number(mean)}{unit} [{_number(low)}, {_number(high)}], n = {n}"
    edge = f" ({judged.why})" if judged.why else ""
    return f"{text}; wanted {judged.case.wanted}{edge}"


def _number(value: float) -> str:
    size = abs(value)
    digits = 0 if size >= 1000 else 1 if size >= 10 else 2 if size >= 0.1 else 3
    return f"{value:,.{digits}f}".replace("-", "−")


# ------------------------------------------------------------------------------------------------ statistics


def _rows(case: Case, tables: Mapping[str, Frame], method: str) -> Frame | str:
    """Rows of one method; text says what is missing."""
    runs = tables["runs"]
    if runs.empty:
        return "nothing was run"
    keep = (runs["task"] == case.task) & (runs["cell"] == case.cell) & (runs["method"] == method)
    keep &= runs["rates"] == case.rates
    rows = _at_size(runs[keep], case.n_hidden)
    return f"{method} on {case.task} at its {case.rates} rate has not been run" if rows.empty else rows


def _recovery(case: Case, tables: Mapping[str, Frame]) -> Value | str:
    """recovery_pre in percent of `method`: ratio of means over usable seeds."""
    rows = _rows(case, tables, case.method)
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
    both = [_rows(case, tables, name) for name in (case.method, case.other)]
    for each in both:
        if isinstance(each, str):
            return each
    apart = (recoveries_by_seed(both[0], case.window) - recoveries_by_seed(both[1], case.window)).dropna()
    return _of(apart)


def _r2(case: Case, tables: Mapping[str, Frame]) -> Value | str:
    """Held-out R² of `method`."""
    rows = _rows(case, tables, case.method)
    return rows if isinstance(rows, str) else _of(_r2_by_seed(rows))


def _r2_difference(case: Case, tables: Mapping[str, Frame]) -> Value | str:
    """Held-out R² of `method` less that of `other`, in points of R² (hundredths), paired by seed."""
    both = [_rows(case, tables, name) for name in (case.method, case.other)]
    for each in both:
        if isinstance(each, str):
            return each
    return _of(100 * (_r2_by_seed(both[0]) - _r2_by_seed(both[1])).dropna())


def _r2_above_ridge(case: Case, tables: Mapping[str, Frame]) -> Value | str:
    """Held-out R² of `method` less that of ridge on the same network untrained, paired by seed."""
    rows = _rows(case, tables, case.method)
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


STATISTICS: dict[str, Callable[[Case, Mapping[str, Frame]], Value | str]] = {
    "recovery": _recovery,
    "recovery_difference": _recovery_difference,
    "r2": _r2,
    "r2_difference": _r2_difference,
    "r2_above_ridge": _r2_above_ridge,
    "decay_over_star": _decay_over_star,
    "error_before": _error_before,
    "gradients": _gradients,
    "gap": _gap,
    "rule_agreement": _rule_agreement,
    "memory_ratio": _memory_ratio,
    "stream_loss": _stream_loss,
    "stream_loss_difference": _stream_loss_difference,
    "stored_recovery": _stored_recovery,
}
