"""Runs side by side: what differs in what was asked, the same arms on the same pairs, versions and digests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from bci_adapt.results import summary
from bci_adapt.results.arms import Arms
from bci_adapt.results.figures import run as figures
from bci_adapt.results.figures.run import cells_in_order
from bci_adapt.results.recovery import arm_scores, compare_scores
from bci_adapt.results.report.album import Album
from bci_adapt.results.report.blocks import Cell, Column, Keys, Page, Section, Table, blocks_of, numbers, words
from bci_adapt.results.report.run import StoredRun, flat, plural, probability, signed
from bci_adapt.results.summary import score_text
from bci_adapt.results.table import cell_label


def compare_page(runs: Sequence[StoredRun], folders: Sequence[str]) -> tuple[Page, Album]:
    """The page that lays `runs` (two or more, the first is what the others are compared with) side by side."""
    names = [f"{chr(65 + place)}" for place in range(len(runs))]
    album = Album()
    arms = known_arms(runs)
    variables = list(dict.fromkeys(variable for run in runs for variable in run.variables))
    targets = [set(run.own.loc[run.own["status"] == "ok", "target"]) for run in runs]
    shared = set.intersection(*targets)
    lead = "; ".join(
        f"{name} is {run.manifest.name} ({folder})" for name, run, folder in zip(names, runs, folders, strict=True)
    )
    page = Page(
        "Runs compared",
        " and ".join(run.manifest.name for run in runs),
        f"{lead}. Differences are of the same arm on the same pairs of sessions, each run less A.",
        [
            ("runs", str(len(runs))),
            ("target days shared", str(len(shared))),
            *zip((f"target days of {n}" for n in names), (str(len(t)) for t in targets), strict=True),
        ],
        [],
        [
            _asked(runs, names),
            *(_scores(runs, names, variable, album, arms) for variable in variables),
            _leaks(runs, names, arms),
            _versions(runs, names),
        ],
    )
    return page, album


def _asked(runs: Sequence[StoredRun], names: Sequence[str]) -> Section:
    """The keys of the configurations that differ."""
    configs = [dict(flat(run.config)) for run in runs]
    keys = list(dict.fromkeys(key for config in configs for key in config))
    differing = [key for key in keys if len({config.get(key) for config in configs}) > 1]
    table = Table(
        f"Keys of the configuration that differ; the other {len(keys) - len(differing)} are the same.",
        words("key", *names),
        [[key, *(config.get(key, "–") for config in configs)] for key in differing],
    )
    return Section(
        "asked", "What differs in what was asked", blocks_of(table), "Nothing: the configurations are the same."
    )


def known_arms(runs: Sequence[StoredRun]) -> Arms:
    """The arms of several runs: where two say different things of one, the first is right."""
    every = pd.concat([run.stored.arms for run in runs], ignore_index=True)
    return Arms(every.drop_duplicates(["arm", "cell"], ignore_index=True))


def _scores(runs: Sequence[StoredRun], names: Sequence[str], variable: str, album: Album, arms: Arms) -> Section:
    """Every arm of any run: its scores, and its difference from the first run's on what both share."""
    keys = {(e["arm"], e["cell"]) for run in runs for e in summary.arm_lines(run.summary, run.arms, variable)}
    cells = cells_in_order(cell for _, cell in keys)
    rows, drawn = [], []
    for arm, cell in sorted(keys, key=lambda key: (cells.index(key[1]), arms.place(key[0]))):
        entries = [run.scores.get((arm, cell, variable, "held_out", "r2")) for run in runs]
        line: list[str | Cell] = [cell_label(cell), arms.label(arm), *map(score_text, entries)]
        for name, run in zip(names[1:], runs[1:], strict=True):
            line += _difference(runs[0], run, name, arm, cell, variable)
        rows.append(line)
        for name, entry in zip(names, entries, strict=True):
            if entry is not None and np.isfinite(entry["mean"]):
                drawn.append(
                    {"cell": cell, "arm": arm, "run": name}
                    | {k: entry[k] for k in ("mean", "low", "high", "n_targets")}
                )
    columns = [*words("cell", "arm"), *numbers(*names)]
    for name in names[1:]:
        columns += [Column(f"{name} − A", "n"), Column("days", "n"), Column("p", "n"), Column("", "note")]
    table = Table(
        f"Held-out R² of {variable}: mean [95 % interval] over all target days of a run. Differences are over "
        "shared pairs "
        "alone, with paired intervals and the exact sign-flip p, uncorrected.",
        columns,
        rows,
        grouped=True,
    )
    picture = album.picture(
        f"compare-{variable}",
        figures.runs_figure(pd.DataFrame(drawn), arms, variable) if drawn else None,
        f"held-out {variable} R² of every arm in every run",
        "Held-out scores of the same arms in each run, over all target days of that run: where days differ, so "
        "do scores.",
    )
    return Section(f"scores-{variable}", f"The same arms: {variable}", blocks_of(table, picture), "No arm was scored.")


def _difference(first: StoredRun, other: StoredRun, name: str, arm: str, cell: str, variable: str) -> list[str | Cell]:
    """Difference, days, p and, where there is none, the reason."""
    left, right = (arm_scores(run.held_out, arm, cell, variable) for run in (other, first))
    for scores, whose in ((left, name), (right, "A")):
        if scores.empty:
            return ["–", "0", "–", f"not scored in {whose}"]
    if not set(left["target"]) & set(right["target"]):
        return ["–", "0", "–", "no target day is shared"]
    found = compare_scores(left, right, same_network=bool(cell))
    if found is None:
        return ["–", "0", "–", "no pair of sessions and network size is shared"]
    change = found.difference
    return [
        Cell(signed(change.mean, change.low, change.high, 3), "strong" if found.sign else ""),
        str(change.n),
        probability(found.p),
        "" if found.sign else "too few days to decide" if found.undecided else "no clear difference",
    ]


def _leaks(runs: Sequence[StoredRun], names: Sequence[str], arms: Arms) -> Section:
    verdicts = [run.analysis.leak for run in runs]
    found = sorted({arm for each in verdicts for arm in each}, key=arms.place)
    said = {True: Cell("this setting leaks", "bad"), None: Cell("not checked"), False: Cell("no leak")}
    table = Table(
        "",
        words("arm", *names),
        [[arms.label(arm), *(said[each[arm]] if arm in each else Cell("–") for each in verdicts)] for arm in found],
    )
    return Section("leaks", "Do labels leak?", blocks_of(table), "No adaptive arm was run.")


def _versions(runs: Sequence[StoredRun], names: Sequence[str]) -> Section:
    """Versions that differ, digests, and the commands."""
    versions = [run.manifest.versions for run in runs]
    versions = [
        each | {f"sha256 of {k}": v for k, v in run.digests.items()} for each, run in zip(versions, runs, strict=True)
    ]
    keys = list(dict.fromkeys(key for each in versions for key in each))
    differing = {key for key in keys if len({each.get(key) for each in versions}) > 1}
    table = Table(
        f"{len(differing)} {plural('line', len(differing))} differ.",
        words("what", *names, ""),
        [
            [key, *(each.get(key, "–") for each in versions), Cell("differs", "strong") if key in differing else ""]
            for key in keys
        ],
    )
    commands = Keys(
        [(name, run.manifest.command) for name, run in zip(names, runs, strict=True) if run.manifest.command]
    )
    return Section("again", "Versions, digests and commands", blocks_of(table, commands), "The manifests say nothing.")
