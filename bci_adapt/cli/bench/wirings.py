"""How much of a wiring that was mixed up on purpose is found again, and what of the decoding comes back with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from bci_adapt.cli.bench.identity import N_BEFORE, raw
from bci_adapt.data.same_columns import FOREIGN, judge
from bci_adapt.data.same_columns.files import in_own_bins
from bci_adapt.data.same_columns.wiring import known_maps, rewired, wiring
from bci_adapt.decoders.wiener import WienerDecoder

MINUTES = (1.0, 5.0, 20.0)
MIXED = "all columns"


def sessions_of(folder: Path, say: Callable[[str], None]) -> list[xr.Dataset]:
    """Read the recordings of a folder that have a velocity, in the order of their names."""
    found = []
    for path in sorted(path for path in folder.iterdir() if path.suffix in (".nwb", ".nc")):
        say(path.name)
        session = in_own_bins(path)
        if "velocity" in session:
            found.append(session)
    return found


def wirings(
    animals: Mapping[str, Sequence[xr.Dataset]],
    say: Callable[[str], None],
    minutes: Sequence[float] = MINUTES,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Mix up the columns of every ordinary day that has `N_BEFORE` before it, by one known map in turn and altogether.

    A row per animal, day, kind of mixing and minutes of its counts: the share of columns put right (`found`), of those
    said to be certain (`certain`, and `right` of them); velocity R² of ridge (ten lags) trained on the days before,
    without labels of the day: as it is (`ordinary`), mixed up (`mixed`), undone (`undone`).
    """
    rows = []
    for animal, sessions in animals.items():
        raws = [raw(each) for each in sessions]
        prints = [each.fingerprint() for each in raws]
        told = judge(prints).sessions
        keep = [i for i, each in enumerate(told) if each.verdict != FOREIGN and not raws[i].faulty]
        rng = np.random.default_rng(seed)
        for n, i in enumerate(keep[N_BEFORE:], N_BEFORE):
            say(f"{animal}: {told[i].session_id}")
            before = keep[n - N_BEFORE : n]
            m = raws[i].counts.shape[1]
            maps = known_maps(m)
            name = list(maps)[1:][n % (len(maps) - 1)]
            decoder = WienerDecoder(n_lags=10, penalty=0.15).fit([sessions[j] for j in before], "velocity")
            ordinary = decoder.score(sessions[i])
            for kind, order in ((name, maps[name]), (MIXED, rng.permutation(m))):
                mixed = rewired(sessions[i], order)
                of = {"animal": animal, "session": told[i].session_id, "mixed_by": kind, "ordinary": ordinary}
                of["mixed"] = decoder.score(mixed)
                for length in minutes:
                    found = wiring([prints[j] for j in before], raws[i].fingerprint(length, order))
                    right = order[found.order] == np.arange(m)
                    undone = decoder.score(rewired(mixed, found.order))
                    sure = {"certain": float(found.certain.mean()), "how": found.how}
                    sure["right"] = float(right[found.certain].mean()) if found.certain.any() else None
                    rows.append({**of, "minutes": length, "found": float(right.mean()), **sure, "undone": undone})
    return rows


def text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what `wirings` found as a Markdown table of means over days."""
    lines = [
        "| animal | mixed up | minutes | days | columns put right | certain, of these right | R² as it is | mixed |"
    ]
    lines[0] += " undone |"
    lines.append("| --- | --- |" + " ---: |" * 7)
    groups = dict.fromkeys((row["animal"], row["mixed_by"] == MIXED, row["minutes"]) for row in rows)
    for animal, free, length in groups:
        of = [r for r in rows if (r["animal"], r["mixed_by"] == MIXED, r["minutes"]) == (animal, free, length)]
        mean = {key: np.mean([row[key] for row in of]) for key in ("found", "certain", "ordinary", "mixed", "undone")}
        sure = [(row["right"], row["certain"]) for row in of if row["right"] is not None]
        right = f"{np.average([r for r, _ in sure], weights=[w for _, w in sure]):.0%}" if sure else "–"
        lines.append(
            f"| {animal} | {MIXED if free else 'a known map'} | {length:g} | {len(of)} | {mean['found']:.0%} | "
            f"{mean['certain']:.0%}, {right} | {mean['ordinary']:.2f} | {mean['mixed']:.2f} | {mean['undone']:.2f} |"
        )
    return "\n".join(lines)
