"""Choosing rates and other settings by held-out score, every method alike, on pairs of sessions set aside for it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bci_adapt.errors import InputError
from bci_adapt.experiment.arm import Arm, described
from bci_adapt.experiment.building import Builder
from bci_adapt.experiment.config import Config
from bci_adapt.experiment.job_results import ScoreRows, read_json
from bci_adapt.experiment.pairs import Pair, require_source
from bci_adapt.experiment.preparing import prepare_sessions
from bci_adapt.experiment.tuned import choose, tuned_text
from bci_adapt.ground.engine import Progress, Workplace, execute
from bci_adapt.ground.jobs import Job
from bci_adapt.ground.storage import write_text

# Whole numbers cannot be divided for ever: the least value of each.
_LEAST = {"n_lags": 1, "lag_bins": 0, "n_latents": 1, "tune_updates": 1, "n_updates": 1, "added_updates": 1}


@dataclass
class Search:
    """The line searches of one method, one parameter of its grid after the other.

    Each starts with three values, a factor apart, around the one that the config has, and goes on past an end for as
    long as the best lies there – on all pairs, or on those without one of the targets, which is what that target is run
    with – up to `max_points` values and none past `most`. The first parameter is searched once more when the others
    are found. `points` is what was tried, where.
    """

    arm: Arm
    max_points: int
    most: Mapping[str, int] = field(default_factory=dict)
    points: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)
    stage: int = 0

    def __post_init__(self) -> None:
        self.best = {name: self.arm.value(name) for name in self.arm.grid}

    def wanted(self) -> list[dict[str, Any]]:
        """The settings to try next; none when the search is over."""
        names = list(self.arm.grid)
        names += names[:1] if len(names) > 1 else []
        while self.stage < len(names):
            name = names[self.stage]
            line = self._line(name)
            tried = sorted({point["parameters"][name] for point in line})
            if not tried:
                at = self.best[name]
                values = [self._step(name, at, -1), at, self._step(name, at, +1)]
                return [{**self.best, name: value} for value in dict.fromkeys(values)]
            found = choose(line)
            without = [choose([each for each in line if each["target"] != day]) for day in _days(line)]
            for optimum in [found, *without] if len(tried) < self.max_points else []:
                if beyond := [] if optimum is None else self._beyond(name, optimum.parameters[name], tried):
                    return [{**self.best, name: beyond[0]}]
            self.best[name] = self.best[name] if found is None else found.parameters[name]
            self.stage += 1
        return []

    def _line(self, name: str) -> list[dict[str, Any]]:
        """The points at which all other parameters are at their best so far."""
        return [each for each in self.points if {**each["parameters"], name: self.best[name]} == self.best]

    def _beyond(self, name: str, at: Any, tried: list[Any]) -> list[Any]:
        """Values past the ends of what was tried at which an optimum lies."""
        ways = [way for way, end in ((-1, tried[0]), (+1, tried[-1])) if at == end]
        return [value for way in ways if (value := self._step(name, at, way)) not in tried]

    def _step(self, name: str, value: Any, way: int) -> Any:
        factor, began = self.arm.grid[name], self.arm.value(name)
        if isinstance(value, int):
            new = round(value * factor**way)
            new = max(_LEAST[name], new if new != value else value + way)
            return min(new, self.most.get(name, new))
        steps = round(math.log(value / began) / math.log(factor)) + way  # from the start: roundings do not add up
        return float(f"{began * factor**steps:.3g}")


def _days(points: list[dict[str, Any]]) -> list[str]:
    """Target days of these points, where leaving one out leaves another."""
    days = list(dict.fromkeys(point["target"] for point in points))
    return days if len(days) > 1 else []


def tune(
    config: Config,
    *,
    workers: int | None = None,
    scheduler: Workplace | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda text: None,
    note: Callable[[str], None] = lambda text: None,
    lock: Path | None = None,
    offline: bool = False,
    verify: bool = False,
    sure: bool = False,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Run what is not there yet; returns what the file of tuned values holds: about it, and the surface.

    The score of a setting on a pair is its held-out R², averaged over variables. Every run is a cached job.

    Raises
    ------
    InputError
        when the config has no section ``[tuning]``, or fewer than two of its targets can be scored.
    """
    section = config.tuning
    if section is None:
        raise InputError("tuning: this config has no [tuning] section, which names the pairs that rates are chosen on")
    options: dict[str, Any] = {"workers": workers, "scheduler": scheduler, "progress": progress}
    prepared, pairs = prepare_sessions(
        config, section.pairs, **options, say=say, note=note, lock=lock, offline=offline, verify=verify, sure=sure
    )
    reasons = prepared.unscorable(pairs, config)
    usable = [pair for pair in pairs if not reasons[pair]]
    if len({pair.target for pair in usable}) < 2:
        why = "; ".join(filter(None, reasons.values()))
        raise InputError(f"tuning: two targets that can be scored are needed at least, got {len(usable)} pairs {why}")
    for name in dict.fromkeys(name for pair in usable for name in pair.sources):
        require_source(prepared.sessions[name], config)
    builders = prepared.builders(config, {}, None)
    most = {"tune_updates": section.max_tune_updates, "n_updates": section.max_updates}
    most["added_updates"] = section.max_updates
    searches = [
        Search(
            dataclasses.replace(arm, seeds=section.seeds if arm.cell else section.seeds[:1]), section.max_points, most
        )
        for arm in builders[usable[0].sources].arms(usable[0])
        if arm.grid and "held_out" in arm.phases
    ]
    _search(searches, builders, usable, options, say)
    about = {
        "config": config.name,
        "pairs": [{"source": pair.source, "target": pair.target} for pair in usable],
        "left_out": [{"target": pair.target, "why": why} for pair, why in reasons.items() if why],
        "seeds": list(section.seeds),
        "max_points": section.max_points,
        "score": f"held-out R² ({', '.join(config.variables)}, averaged)",
        "sessions": {name: session.attrs["source_sha256"] for name, session in prepared.sessions.items()},
        "settings": _settings(config),
        "arms": described(search.arm for search in searches),
    }
    about |= {"notes": prepared.notes} if prepared.notes else {}
    return about, [point for search in searches for point in search.points]


def _search(
    searches: Sequence[Search],
    builders: Mapping[tuple[str, ...], Builder],
    pairs: Sequence[Pair],
    options: Mapping[str, Any],
    say: Callable[[str], None],
) -> None:
    """Try settings, round after round, until no search wants another."""
    n_rounds = 0
    while asked := [(search, setting) for search in searches for setting in search.wanted()]:
        n_rounds += 1
        say(f"round {n_rounds}: {len(asked)} settings on {len(pairs)} pairs")
        _try(asked, builders, pairs, options)


def _try(
    asked: Sequence[tuple[Search, dict[str, Any]]],
    builders: Mapping[tuple[str, ...], Builder],
    pairs: Sequence[Pair],
    options: Mapping[str, Any],
) -> None:
    """Score settings on every pair with every seed, and add what was found to their searches."""
    jobs = [
        (search, setting, pair, seed, _scored(builders[pair.sources], search.arm, setting, pair, seed))
        for search, setting in asked
        for pair in pairs
        for seed in search.arm.seeds
    ]
    execute([job for *_, job in jobs], **options)
    for search, setting, pair, seed, job in jobs:
        score = _held_out(job) if job.is_done else None
        of = {"method": search.arm.name, "cell": search.arm.cell, "parameters": setting}
        search.points.append({**of, "source": pair.source, "target": pair.target, "seed": seed, "score": score})


def _settings(config: Config) -> dict[str, Any]:
    """What of a config the surface depends on, whatever pairs are run with it later."""
    apart = {"name", "pairs", "source", "tuning", "tuned", "seeds", "sweeps", "controls", "continual", "primary"}
    return config.model_dump(mode="json", exclude=apart, exclude_none=True)


def _scored(builder: Builder, arm: Arm, setting: Mapping[str, Any], pair: Pair, seed: int) -> Job:
    at = arm.having(setting)
    words = ", ".join(f"{name} {value:g}" for name, value in setting.items())
    return builder.score_one(at, pair, seed, f"{arm.name} {words}")


def _held_out(job: Job) -> float | None:
    """Mean over variables of the held-out R² that a score job found; None where the run failed."""
    rows = read_json(job, ScoreRows)["rows"]
    scores = [row["value"] for row in rows if row["metric"] == "r2" and row["phase"] == "held_out"]
    known = [each for each in scores if each is not None]
    return sum(known) / len(known) if known and len(known) == len(scores) else None


def write_tuned(path: Path, about: Mapping[str, Any], surface: list[dict[str, Any]]) -> None:
    """Write a file of tuned values, atomically."""
    write_text(path, tuned_text(about, surface))
