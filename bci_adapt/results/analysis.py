"""A run analysed once: every interval, verdict and sentence that its page, Markdown, terminal and JSON show.

`analyse` is the one place that draws bootstraps. What it finds lies beside the results as ``analysis.json``; whoever
shows a run reads it there (`analysis_of`). It is made again when the results, the manifest or the code that analyses
are other ones, or when it is not as it was written: their digest and its own stand in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from typing_extensions import TypedDict

from bci_adapt.errors import InputError
from bci_adapt.ground import statistics
from bci_adapt.ground.seals import tell_damaged
from bci_adapt.ground.storage import file_digest, write_text
from bci_adapt.results import points, studies, summary
from bci_adapt.results.arms import Arms
from bci_adapt.results.manifest import RESULTS, Manifest, own_digest
from bci_adapt.results.recovery import recovery_joint, recovery_oracle
from bci_adapt.results.table import Results, variables
from bci_adapt.results.verdict import plain_words

ANALYSIS = "analysis.json"
BESIDE = ("shared_rate", "continual", "cold")  # studies that are set beside the standing arms


class Score(TypedDict):
    """An entry of the summary (`bci_adapt.results.summary.summarise`)."""

    arm: str
    cell: str
    variable: str
    phase: str
    metric: str
    mean: float
    low: float
    high: float
    n_targets: int
    note: str


class Recovered(TypedDict):
    """A percentage of what a ceiling regains; `against` says which ceiling."""

    arm: str
    cell: str
    variable: str
    mean: float
    low: float
    high: float
    n_targets: int
    against: str


class Refused(TypedDict):
    """A percentage that is not given, and why."""

    arm: str
    cell: str
    variable: str
    reason: str
    against: str


class Compared(TypedDict):
    """A comparison and its statistics (`bci_adapt.results.studies.comparisons`)."""

    first: str
    first_cell: str
    second: str
    second_cell: str
    variable: str
    primary: bool
    first_mean: float
    second_mean: float
    mean: float
    low: float
    high: float
    n_targets: int
    sign: int
    p_sign_flip: float
    p_wilcoxon: float
    p_holm: float
    g: float
    g_low: float
    g_high: float
    sd: float
    margin: float
    equivalence: str
    equivalence_p: float
    n_needed: float
    equivalence_low: float
    equivalence_high: float
    power: float


class Association(TypedDict):
    """How a measure of drift goes with what was lost or regained."""

    measure: str
    outcome: str
    arm: str
    cell: str
    variable: str
    rho: float
    low: float
    high: float
    n_targets: int


class Swept(TypedDict):
    """A point of a sweep of labels."""

    arm: str
    cell: str
    variable: str
    phase: str
    value: float
    mean: float
    low: float
    high: float
    n_targets: int


class Reached(TypedDict):
    """The labels with which an arm reaches a part of its ceiling."""

    arm: str
    cell: str
    variable: str
    ceiling: str
    ceiling_r2: float
    threshold: float
    budget_s: float | None
    reached: bool
    largest_budget_s: float
    n_targets: int


class Day(TypedDict):
    """A target day and a value of it."""

    target: str
    value: float


class Forgotten(TypedDict):
    """What adaptation cost on the source day."""

    arm: str
    cell: str
    variable: str
    adapted: float
    frozen: float
    mean: float
    low: float
    high: float
    n_targets: int
    days: list[Day]


class WithoutDrift(TypedDict):
    """A score on the source day's own later half, and the arm's on later days."""

    arm: str
    cell: str
    variable: str
    phase: str
    mean: float
    low: float
    high: float
    n_targets: int
    drifted: float


class Beside(TypedDict):
    """A standing score beside that of a study."""

    arm: str
    cell: str
    variable: str
    phase: str
    standing: float
    studied: float
    rate: float | None
    studied_rate: float | None
    mean: float
    low: float
    high: float
    n_targets: int


class OfPair(TypedDict):
    """R² on one pair, seeds averaged (`bci_adapt.results.points.by_pair`)."""

    source: str
    target: str
    day_gap: float
    variable: str
    cell: str
    arm: str
    phase: str
    metric: str
    value: float
    n_labels: int


class OfDay(TypedDict):
    """Held-out R² on one day, weights carried there through the days before, or anew (`points.by_day`)."""

    variable: str
    cell: str
    arm: str
    day: str
    continual: bool
    mean: float


class OfDrift(TypedDict):
    """A measure of drift of one pair, beside what was lost and regained there (`points.beside_drift`)."""

    source: str
    target: str
    measure: str
    value: float
    low: float
    high: float
    day_gap: float
    lost: float
    regained: float
    frozen: float
    variable: str
    arm: str
    cell: str


class LifePoint(TypedDict):
    """A mean of one day, of one of the lines of a decoder's life."""

    series: str
    order: int
    date: str
    mean: float


class LifeEntry(TypedDict):
    """A decoder on the days of a run (`bci_adapt.results.studies.Life`)."""

    arm: str
    cell: str
    points: list[LifePoint]
    labels: list[Swept]
    ceiling: float | None


class Paragraph(TypedDict):
    """A paragraph of the verdict."""

    title: str
    sentences: list[str]


class Analysis(BaseModel):
    """Everything that is said of a run beyond its rows; by variable where a key is a variable."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    digest: str = ""
    content: str = ""
    variables: list[str]
    summary: list[Score]
    leak: dict[str, bool | None]
    leak_troubles: dict[str, str]
    not_above_persistence: dict[str, bool | None]
    recovery: list[Recovered]
    refused: list[Refused]
    comparisons: list[Compared]
    recommended: list[Compared]
    associations: list[Association]
    sweeps: dict[str, list[Swept]]
    time_to_ceiling: list[Reached]
    forgetting: list[Forgotten]
    no_drift: list[WithoutDrift]
    beside: dict[str, list[Beside]]
    pairs: list[OfPair]
    days: list[OfDay]
    drift: list[OfDrift]
    life: dict[str, LifeEntry | None]
    verdict: dict[str, list[Paragraph]]


def analyse(stored: Results, manifest: Manifest, digest: str = "") -> Analysis:
    """Everything that can be said of a run's results; `digest` is what `analysis_of` knows it again by."""
    rows, arms = stored.rows, Arms(stored.arms)
    scores, names = rows[rows["metric"] == "r2"], variables(rows)
    recovered, refused = [], []
    for against, recovery in (("retrained", recovery_oracle), ("jointly retrained", recovery_joint)):
        for found, entries in zip((recovered, refused), recovery(rows, arms), strict=True):
            found += [entry | {"against": against} for entry in entries]
    found = {
        "digest": digest,
        "variables": names,
        "summary": summary.summarise(rows, arms, blocks=stored.blocks),
        "leak": summary.leak(rows, arms),
        "leak_troubles": summary.canary_troubles(scores, arms),
        "not_above_persistence": summary.not_above_persistence(rows, arms),
        "recovery": recovered,
        "refused": refused,
        "comparisons": list(_compared(stored, scores, manifest, "declared")),
        "recommended": list(_compared(stored, scores, manifest, "recommended")),
        "associations": [each for name in names for each in studies.associations(scores, arms, manifest.drift, name)],
        "sweeps": {
            study: [each for name in names for each in studies.sweep(scores, study, name)] for study in studies.SWEPT
        },
        "time_to_ceiling": [each for name in names for each in studies.time_to_ceiling(scores, arms, name)],
        "forgetting": [each for name in names for each in studies.forgetting(scores, arms, name)],
        "no_drift": [each for name in names for each in studies.no_drift(scores, name)],
        "beside": {study: [each for name in names for each in studies.beside(scores, study, name)] for study in BESIDE},
        "pairs": points.by_pair(rows),
        "days": [each for name in names for each in points.by_day(rows, name)],
        "drift": _beside_drift(rows, arms, manifest),
        "life": {name: _life(stored, arms, name) for name in names},
        "verdict": {name: plain_words(stored, name) for name in names},
    }
    return Analysis.model_validate(_plain(found))


def _plain(value: Any) -> Any:
    """`value` with numpy's scalars as Python's own."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def _compared(stored: Results, scores: Any, manifest: Manifest, family: str) -> Iterator[dict[str, Any]]:
    """The comparisons of one family, variable by variable; what was declared is one comparison, of the first one."""
    pairs, names = studies.declared(stored.comparisons, family), variables(stored.rows)
    for name in names:
        first = manifest.primary_pair if name == names[0] else None
        if family == "declared":
            yield from studies.comparisons(scores, pairs, first, name, stored.blocks)
        else:  # the primary one is tested by itself, among those that were declared
            others = [pair for pair in pairs if pair != first]
            yield from studies.comparisons(scores, others, None, name, stored.blocks)


def _beside_drift(rows: Any, arms: Arms, manifest: Manifest) -> list[dict[str, Any]]:
    key = points.followed(rows, arms, manifest.primary_pair)
    return points.beside_drift(rows, arms, manifest.drift, key, variables(rows)[0]) if len(rows) else []


def _life(stored: Results, arms: Arms, variable: str) -> dict[str, Any] | None:
    found = studies.life(stored.rows, arms, variable)
    if found is None:
        return None
    return found._asdict() | {part: getattr(found, part).to_dict("records") for part in ("points", "labels")}


def analysis_of(folder: Path, stored: Results, manifest: Manifest) -> Analysis:
    """The analysis of a run's folder, read where it is of these results and as it was written, else made and written.

    Raises `InputError` where its file is a folder.
    """
    path, digest = folder / ANALYSIS, _digest(folder, manifest)
    if path.is_dir():
        raise InputError(f"{path}: expected a file, it is a folder; remove it, the analysis is then made again")
    try:
        known = Analysis.model_validate_json(path.read_text(encoding="utf-8"))
        if known.content != own_digest(known):
            tell_damaged(path, "it is made again")
        elif known.digest == digest:
            return known
    except OSError:  # there is none
        pass
    except (UnicodeDecodeError, ValidationError):
        tell_damaged(path, "or made by another version; it is made again")
    made = analyse(stored, manifest, digest)
    made = made.model_copy(update={"content": own_digest(made)})
    write_text(path, made.model_dump_json(indent=1))
    return made


def _digest(folder: Path, manifest: Manifest) -> str:
    """What an analysis depends on: the run's results, what the manifest says of drift and of the primary comparison –
    not how often it was run –, and the code that analyses.
    """
    here = Path(__file__).parent
    files = [folder / RESULTS, Path(statistics.__file__), *sorted(here.glob("*.py"))]
    said = json.dumps([manifest.drift, manifest.primary_pair], sort_keys=True, default=str)
    return hashlib.sha256("\n".join([*(file_digest(file) for file in files), said]).encode()).hexdigest()
