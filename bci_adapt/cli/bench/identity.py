"""How often the check of columns is wrong: on real sessions, on simulated months, with columns mixed up on purpose."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from bci_adapt.data.same_columns import FOREIGN, PARTLY, SAME, UNSURE, Fingerprint, agreement, judge
from bci_adapt.data.same_columns.files import in_own_bins
from bci_adapt.data.same_columns.fingerprints import of_counts
from bci_adapt.data.simulate import recording
from bci_adapt.errors import InputError

MINUTES = (1.0, 2.0, 5.0, 10.0, 20.0)
SHARES = (0.0, 0.1, 0.25, 0.5, 1.0)
SIMULATED_DAYS = (0, 20, 40, 90, 150, 210)
N_BEFORE = 4  # sessions before it that a session with mixed columns is held against
MIN_USABLE = 0.8
"""A session of which a smaller share of bins has neurons observed and a cursor that moves is faulty."""


@dataclass(frozen=True)
class Raw:
    """Counts (n_bins, m) of a session with what cuts them; `faulty` by `MIN_USABLE`."""

    name: str
    counts: np.ndarray
    bin_s: float
    stretch: np.ndarray
    observed: np.ndarray
    faulty: bool = False

    def fingerprint(self, minutes: float | None = None, order: np.ndarray | None = None) -> Fingerprint:
        """The fingerprint of the first `minutes`, with column i holding what column ``order[i]`` holds."""
        rows = slice(None if minutes is None else round(60 * minutes / self.bin_s))
        counts = self.counts[rows] if order is None else self.counts[rows][:, order]
        observed, stretch = self.observed[rows], self.stretch[rows]
        return of_counts(counts, bin_s=self.bin_s, stretch=stretch, observed=observed, session_id=self.name)


def raw(session: xr.Dataset) -> Raw:
    """Take from a session what is needed."""
    usable = session["valid"].values
    if "position_valid" in session:
        usable = usable & session["position_valid"].values.all(axis=1)
    return Raw(
        name=str(session.attrs["session_id"]),
        counts=session["counts"].values,
        bin_s=float(session.attrs["bin_s"]),
        stretch=session["segment"].values,
        observed=session["valid"].values,
        faulty=bool(usable.mean() < MIN_USABLE),
    )


def read(folder: Path, say: Callable[[str], None]) -> list[Raw]:
    """Read the recordings of a folder, in the order of their names; `InputError` where there are fewer than three."""
    paths = sorted(path for path in folder.iterdir() if path.suffix in (".nwb", ".nc"))
    if len(paths) < 3:
        raise InputError(f"{folder}: {len(paths)} recordings (.nwb, .nc), at least three sessions are needed")
    found = []
    for path in paths:
        say(path.name)
        found.append(raw(in_own_bins(path)))
    return found


def months(seed: int, minutes: float, n_units: int = 96) -> list[Raw]:
    """Simulate days of one animal with drift, turnover and lost electrodes (docs/simulated_drift.md)."""
    made = []
    for day in SIMULATED_DAYS:
        counts = recording(day, duration_s=60 * minutes, n_units=n_units, seed=seed).counts().astype(np.uint16)
        whole = np.ones(len(counts), dtype=bool)
        made.append(Raw(f"day {day}", counts, 0.05, np.zeros(len(counts), dtype=np.int64), whole))
    return made


def identity(
    animals: Mapping[str, Sequence[Raw]],
    say: Callable[[str], None],
    minutes: Sequence[float] = MINUTES,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure errors over `animals` (name → sessions in their order).

    ``sessions``: the verdict on every session of an animal, on all data. ``pairs``: verdicts on all pairs of ordinary
    days by minutes of data of both. ``mixed``: verdicts on each ordinary day whose columns are mixed up in part, by its
    minutes of data, held against the four ordinary days before it (whole). Ordinary is what is neither faulty nor told
    to have foreign columns when the whole list is judged. ``seconds_per_pair``: of two whole sessions, from counts.
    """
    found: dict[str, Any] = {"sessions": [], "pairs": [], "mixed": [], "seconds_per_pair": {}}
    for name, sessions in animals.items():
        say(f"{name}: sessions")
        start = time.perf_counter()
        whole = [session.fingerprint() for session in sessions[:2]]
        agreement(*whole)
        found["seconds_per_pair"][name] = time.perf_counter() - start
        whole += [session.fingerprint() for session in sessions[2:]]
        told = judge(whole)
        for session, each in zip(sessions, told.sessions, strict=True):
            found["sessions"].append({"animal": name, "faulty": session.faulty, **each.to_json()})
        keep = [
            i
            for i, (session, each) in enumerate(zip(sessions, told.sessions, strict=True))
            if not session.faulty and each.verdict != FOREIGN
        ]
        ordinary, prints = [sessions[i] for i in keep], [whole[i] for i in keep]
        longest = max(len(session.counts) * session.bin_s for session in sessions) / 60
        for length in (each for each in minutes if each <= max(longest, minutes[0]) + 1):
            say(f"{name}: {length:g} min")
            found["pairs"].append(_pairs(name, ordinary, length))
            found["mixed"] += _mixed(name, ordinary, prints, length, shares, np.random.default_rng(seed))
    return found


def _pairs(name: str, sessions: Sequence[Raw], minutes: float) -> dict[str, Any]:
    """Verdicts on all pairs of ordinary days, and the lowest agreement."""
    prints = [session.fingerprint(minutes) for session in sessions]
    pairs = [agreement(a, b) for a, b in combinations(prints, 2)]
    verdicts = [pair.verdict() for pair in pairs]
    kept = [pair.kept for pair in pairs if not pair.why]
    counted = {verdict: verdicts.count(verdict) for verdict in (SAME, UNSURE, FOREIGN)}
    low, middle = (float(np.quantile(kept, q)) if kept else float("nan") for q in (0, 0.5))
    return {"animal": name, "minutes": minutes, "n": len(pairs), **counted, "lowest": low, "median": middle}


def _mixed(
    name: str,
    sessions: Sequence[Raw],
    prints: Sequence[Fingerprint],
    minutes: float,
    shares: Sequence[float],
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    """Verdicts on days whose columns are mixed up in part; how many of the mixed and of the others are named."""
    rows = []
    for share in shares:
        verdicts, named, wrongly = [], [], []
        for i in range(1, len(sessions)):
            m = sessions[i].counts.shape[1]
            order = np.arange(m)
            chosen = rng.choice(m, round(share * m), replace=False)
            order[chosen] = chosen[rng.permutation(len(chosen))]
            session = sessions[i].fingerprint(minutes, order)
            told = judge([*prints[max(0, i - N_BEFORE) : i], session]).sessions[-1]
            verdicts.append(told.verdict)
            moved = {session.channels[column] for column in np.flatnonzero(order != np.arange(m))}
            if told.verdict != FOREIGN and moved:
                named.append(len(moved & set(told.moved)) / len(moved))
            wrongly.append(len(set(told.moved) - moved))
        counted = {verdict: verdicts.count(verdict) for verdict in (SAME, UNSURE, PARTLY, FOREIGN)}
        mean = float(np.mean(named)) if named else None
        rows.append(
            {"animal": name, "minutes": minutes, "share": share, "n": len(verdicts), **counted}
            | {"named": mean, "wrongly_named": float(np.mean(wrongly))}
        )
    return rows


def text(found: dict[str, Any]) -> str:
    """Return what `identity` found as Markdown tables."""
    lines = ["| animal | session | verdict | pattern kept | log rates |", "| --- | --- | --- | ---: | ---: |"]
    for row in found["sessions"]:
        if row["faulty"] or row["verdict"] != SAME:
            best = row["best"] or {"kept": None, "rates": None}
            kept, rates = ("–" if best[key] is None else f"{best[key]:.2f}" for key in ("kept", "rates"))
            said = row["verdict"] + (" (faulty recording)" if row["faulty"] else "")
            lines.append(f"| {row['animal']} | {row['session']} | {said} | {kept} | {rates} |")
    ordinary = sum(row["verdict"] == SAME and not row["faulty"] for row in found["sessions"])
    lines += [f"| | {ordinary} others | same | | |", ""]
    lines += ["| animal | minutes | pairs | same | cannot say | foreign | lowest kept | median |"]
    lines += ["| --- |" + " ---: |" * 7]
    for row in found["pairs"]:
        cells = [row["animal"], f"{row['minutes']:g}", *(str(row[key]) for key in ("n", SAME, UNSURE, FOREIGN))]
        lines.append(f"| {' | '.join(cells)} | {row['lowest']:.2f} | {row['median']:.2f} |")
    lengths = sorted({row["minutes"] for row in found["mixed"]})
    heads = [f"{length:g} min" for length in lengths]
    lines += ["", f"| animal | mixed up | {' | '.join(heads)} |", "| --- | ---: |" + " ---: |" * len(lengths)]
    for animal, share in dict.fromkeys((row["animal"], row["share"]) for row in found["mixed"]):
        of = {row["minutes"]: row for row in found["mixed"] if (row["animal"], row["share"]) == (animal, share)}
        lines.append(f"| {animal} | {share:.0%} | {' | '.join(_told(of.get(length)) for length in lengths)} |")
    seconds = ", ".join(f"{name} {value:.2f} s" for name, value in found["seconds_per_pair"].items())
    return "\n".join([*lines, "", f"A pair of whole sessions takes: {seconds}."])


def _told(row: dict[str, Any] | None) -> str:
    """Of how many days something was told: foreign + partly + cannot say, and the share of mixed columns named."""
    if row is None:
        return "–"
    counted = "+".join(str(row[key]) for key in (FOREIGN, PARTLY, UNSURE))
    named = "" if row["named"] is None else f", {row['named']:.0%}"
    return f"{counted} of {row['n']}{named}"
