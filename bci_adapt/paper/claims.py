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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bci_adapt.errors import InputError
from bci_adapt.ground.statistics import Interval, days_needed, equivalence
from bci_adapt.paper.case_statistics import STATISTICS, Value, rows_of
from bci_adapt.paper.tables import Frame

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

    def reads(self, entry: Any) -> bool:
        """Whether it reads the result of `entry`, a `bci_adapt.paper.planning.Entry` of its figure."""
        return STATISTICS[self.statistic].reads(self, entry)

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

    def judged(self, quick: bool) -> tuple[Case, ...]:
        """Its cases, in a `quick` run at the sizes that this has."""
        return tuple(map(_smaller, self.cases)) if quick else self.cases

    def reads(self, quick: bool) -> dict[str, list[Case]]:
        """Its cases by the figure that each reads."""
        found: dict[str, list[Case]] = {}
        for case in self.judged(quick):
            found.setdefault(case.figure or self.figure, []).append(case)
        return found


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
    found = [judge_case(case, claim, tables) for case in claim.judged(quick)]
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
    found = STATISTICS[case.statistic].find(case, tables[figure])
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
    both = [(name, rows_of(case, tables, name)) for name in (case.method, case.other) if name and "runs" in tables]
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
