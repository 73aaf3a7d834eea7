"""Tuned values: the file that ``bci-adapt tune`` writes, and what it chooses for an arm and a target."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bci_adapt.errors import InputError
from bci_adapt.ground.storage import file_digest

FORMAT, _WITHOUT_DIGEST = "bci_adapt tuned values, 2", "bci_adapt tuned values, 1"
POINT_KEYS = ("method", "cell", "parameters", "source", "target", "seed", "score")


@dataclass(frozen=True)
class Choice:
    """What was chosen for a method: its `parameters`, their mean held-out `score` over target days, whether every one
    of them lies between smaller and larger values that were tried, and how many settings were.
    """

    method: str
    cell: str
    parameters: Mapping[str, Any]
    score: float
    interior: bool
    n_points: int


@dataclass(frozen=True)
class Tuned:
    """The surface of a tuning: one point for each method, setting, pair and seed, ``score`` None where it failed."""

    file: str
    digest: str
    about: Mapping[str, Any]
    surface: tuple[Mapping[str, Any], ...]

    def methods(self) -> list[tuple[str, str]]:
        """(method, cell) of everything that was tuned, in order."""
        return list(dict.fromkeys((point["method"], point["cell"]) for point in self.surface))

    def words(self) -> dict[str, str]:
        """What a reader calls each method, where the file says it."""
        return {str(record["arm"]): str(record["words"]) for record in self.about.get("arms", ())}

    def choice(self, method: str, cell: str, target: str = "") -> Choice | None:
        """The best setting of a method, no point on `target` looked at; None where there is none.

        The score of a setting is the mean over target days of the mean over its pairs and seeds. A setting that failed
        anywhere, or was not tried on every day, is not chosen.
        """
        points = [each for each in self.surface if (each["method"], each["cell"]) == (method, cell)]
        return choose([each for each in points if each["target"] != target])


def choose(points: Iterable[Mapping[str, Any]]) -> Choice | None:
    """The best setting among points of one method (see `Tuned.choice`)."""
    scores: dict[str, dict[str, list[float]]] = {}
    settings: dict[str, Mapping[str, Any]] = {}
    method = cell = ""
    days = set()
    for point in points:
        method, cell = point["method"], point["cell"]
        key = json.dumps(point["parameters"], sort_keys=True)
        settings[key] = point["parameters"]
        score = float("-inf") if point["score"] is None else point["score"]
        scores.setdefault(key, {}).setdefault(point["target"], []).append(score)
        days.add(point["target"])
    means = {
        key: float(np.mean([np.mean(each) for each in by_day.values()]))
        for key, by_day in scores.items()
        if by_day.keys() == days
    }
    usable = {key: mean for key, mean in means.items() if np.isfinite(mean)}
    if not usable:
        return None
    best = max(usable, key=lambda key: usable[key])
    tried = {name: sorted({settings[key][name] for key in means}) for name in settings[best]}
    interior = all(tried[name][0] < value < tried[name][-1] for name, value in settings[best].items())
    return Choice(method, cell, settings[best], usable[best], interior, len(means))


def read_tuned(path: Path) -> Tuned:
    """Read a file of tuned values; `InputError` where it is missing or something else."""
    try:
        text = path.read_text(encoding="utf-8")
        stored = json.loads(text)
        if stored["format"] not in (FORMAT, _WITHOUT_DIGEST):
            raise ValueError(f"format {stored['format']!r}")
        if stored["format"] == FORMAT and stored["content"] != _digest_of(text.rpartition('"content"')[0]):
            raise InputError(f"{path}: was damaged or changed since bci-adapt tune wrote it: tune again")
        about = dict(stored["about"])
        surface = tuple({name: point[name] for name in POINT_KEYS} for point in stored["surface"])
        for point in surface:
            values = [*point["parameters"].values(), 0.0 if point["score"] is None else point["score"]]
            if not all(isinstance(value, int | float) for value in values):
                raise ValueError(f"expected numbers, got {point}")
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: no such file; make it with bci-adapt tune, or take `tuned` out of the config"
        ) from error
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: expected values written by bci-adapt tune ({FORMAT}): {error!r}") from error
    return Tuned(path.name, file_digest(path), about, surface)


def tuned_text(about: Mapping[str, Any], surface: Iterable[Mapping[str, Any]]) -> str:
    """The text of a file of tuned values, one point a line: a change shows in a diff."""
    lines = ",\n".join(json.dumps({name: point[name] for name in POINT_KEYS}) for point in surface)
    chosen = Tuned("", "", about, tuple(surface))
    values = [
        {"method": each.method, "cell": each.cell, "parameters": each.parameters, "score": round(each.score, 4),
         "interior": each.interior, "n_points": each.n_points}
        for key in chosen.methods()
        if (each := chosen.choice(*key)) is not None
    ]  # fmt: skip
    listed = ",\n".join(json.dumps(value) for value in values)
    body = (
        f'{{"format": {json.dumps(FORMAT)},\n"about": {json.dumps(about)},\n'
        f'"chosen": [\n{listed}\n],\n"surface": [\n{lines}\n],\n'
    )
    return body + f'"content": "{_digest_of(body)}"}}\n'


def _digest_of(body: str) -> str:
    """SHA-256 of everything that stands before the digest in a file of tuned values."""
    return hashlib.sha256(body.encode()).hexdigest()
