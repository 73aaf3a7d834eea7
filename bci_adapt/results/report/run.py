"""What the sections of one run's report are made from, and the words they share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from bci_adapt.results.analysis import Analysis, Score
from bci_adapt.results.arms import Arms, Key
from bci_adapt.results.figures.run import cells_in_order
from bci_adapt.results.manifest import Manifest
from bci_adapt.results.recovery import standing
from bci_adapt.results.report.album import Album
from bci_adapt.results.summary import caption
from bci_adapt.results.table import Frame, Results, cell_label, number


@dataclass(frozen=True)
class StoredRun:
    """A run as its folder holds it: manifest, tables and analysis; and the album its pictures are collected in."""

    manifest: Manifest
    stored: Results
    analysis: Analysis
    digests: Mapping[str, str] = field(default_factory=dict)
    album: Album = field(default_factory=Album)

    @property
    def rows(self) -> Frame:
        return self.stored.rows

    @cached_property
    def standing(self) -> Frame:
        """The rows of the run's own question, controls among them."""
        return standing(self.rows)

    @cached_property
    def arms(self) -> Arms:
        """What a reader is told of each arm."""
        return Arms(self.stored.arms)

    def who(self, arm: str, cell: str) -> str:
        """An arm and its cell, in words."""
        return f"{self.arms.label(arm)} ({cell_label(cell)})"

    @cached_property
    def own(self) -> Frame:
        """Standing rows of real arms."""
        return self.standing[self.standing["control"] == ""]

    @cached_property
    def held_out(self) -> Frame:
        """Held-out R² of standing real arms."""
        return self.own[(self.own["phase"] == "held_out") & (self.own["metric"] == "r2")]

    @property
    def summary(self) -> list[Score]:
        return self.analysis.summary

    @property
    def variables(self) -> list[str]:
        return self.analysis.variables

    @cached_property
    def cells(self) -> list[str]:
        """Cells of the run, networks first."""
        return cells_in_order(self.rows["cell"])

    def cell_place(self, cell: str) -> int:
        """Place of a cell in the order of presentation; those that only the tuning knows come last."""
        return self.cells.index(cell) if cell in self.cells else len(self.cells)

    @cached_property
    def scores(self) -> dict[tuple[str, str, str, str, str], Score]:
        """Entries of the summary by (arm, cell, variable, phase, metric)."""
        return {(e["arm"], e["cell"], e["variable"], e["phase"], e["metric"]): e for e in self.summary}

    @cached_property
    def supervision(self) -> dict[str, str]:
        """What each arm learns from."""
        first = self.own.drop_duplicates("arm")
        return dict(zip(first["arm"], first["supervision"], strict=True))

    @property
    def primary(self) -> tuple[Key, Key] | None:
        """The comparison that was declared before looking."""
        return self.manifest.primary_pair

    @property
    def config(self) -> Mapping[str, Any]:
        return self.manifest.config

    @property
    def rates_tuned(self) -> bool:
        return self.manifest.rates_tuned

    @cached_property
    def caption(self) -> str:
        return caption(self.rates_tuned, self.summary)

    @property
    def tuned_words(self) -> str:
        return "rates tuned" if self.rates_tuned else "rates not tuned"

    @property
    def bins_words(self) -> str:
        """Of which bins the primary scores are."""
        primary = self.manifest.primary_bins or self.stored.attrs.get("primary_bins", "")
        return {"in trial": " of bins inside trials", "all": " of all bins"}.get(str(primary), "")

    def heading(self, text: str, variable: str) -> str:
        """`text`, with the variable where the run has several."""
        return f"{text}: {variable}" if len(self.variables) > 1 else text


def plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"


def figure_text(value: Any, digits: int = 2) -> str:
    """A number with a true minus sign; a dash for none."""
    if value is None or isinstance(value, str) or not math.isfinite(value):
        return "–" if not isinstance(value, str) else value
    return number(float(value), digits)


def signed(mean: float, low: float, high: float, digits: int = 2) -> str:
    """``+0.09 [0.02, 0.16]``."""
    text = number(mean, digits)
    text = text if text.startswith("−") else f"+{text}"
    if not (np.isfinite(low) and np.isfinite(high)):
        return text if np.isfinite(mean) else "–"
    return f"{text} [{number(low, digits)}, {number(high, digits)}]"


def probability(p: float | None) -> str:
    """A p value as it is read: three digits, none below 0.001."""
    if p is None or not math.isfinite(p):
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def seconds(value: float) -> str:
    """A delay or a budget in words; infinity is the end of the trial."""
    return "trial end" if math.isinf(value) else f"{value:g}"


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """A nested config as ``(dotted.key, text)``."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from flat(item, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, (list, tuple)) and value and all(isinstance(item, Mapping) for item in value):
        for place, item in enumerate(value, 1):
            yield from flat(item, f"{prefix}.{place}")
    elif prefix:
        yield prefix, ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
