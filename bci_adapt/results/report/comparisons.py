"""The sections that judge: data and drift, recovery, and the declared comparisons with their statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bci_adapt.results.figures import studies as figures_study
from bci_adapt.results.figures.drift import short_names
from bci_adapt.results.manifest import Manifest
from bci_adapt.results.recovery import is_undecided
from bci_adapt.results.report.blocks import Cell, Column, Fold, Points, Section, Table, Text, blocks_of, numbers, words
from bci_adapt.results.report.run import StoredRun, figure_text, plural, probability, signed
from bci_adapt.results.table import Frame, cell_label, number

RECOVERY = {  # what the named definitions are
    "recovery_oracle": "100 (adapted − frozen) / (retrained − frozen): the ceiling is the same architecture "
    "retrained on "
    "the target's own stream alone.",
    "recovery_joint": "100 (adapted − frozen) / (jointly retrained − frozen): the ceiling is the same architecture "
    "retrained on earlier days and the same labels together.",
}


def recovery(run: StoredRun) -> Section:
    """Both named percentages side by side, and every one that is refused with its reason."""
    names = {"retrained": "recovery_oracle", "jointly retrained": "recovery_joint"}
    several = len(run.variables) > 1
    columns = [(variable, name) for variable in run.variables for name in names.values()]
    percent: dict[tuple[str, str], dict[tuple[str, str], Mapping[str, Any]]] = {}
    for entry in run.analysis.recovery:
        where = entry["variable"], names[entry["against"]]
        percent.setdefault((entry["cell"], entry["arm"]), {})[where] = entry
    reasons = [(e["cell"], e["arm"], e["variable"], names[e["against"]], e["reason"]) for e in run.analysis.refused]

    def place(key: tuple) -> tuple:
        return run.cell_place(key[0]), run.arms.place(key[1])

    table = Table(
        f"Percent of held-out R² [95 % interval], a ratio of means over target days, unclipped; {run.caption}.",
        [
            *words("cell", "arm"),
            *numbers(*(f"{name}, {variable}" if several else name for variable, name in columns), "days"),
        ],
        [
            [
                *(cell_label(key[0]), run.arms.label(key[1])),
                *(_percent(percent[key].get(column)) for column in columns),
                str(max(entry["n_targets"] for entry in percent[key].values())),
            ]
            for key in sorted(percent, key=place)
        ],
        grouped=True,
    )
    left_out = Table(
        "Refused: no percentage is printed, for the reason given.",
        words("cell", "arm", *(["variable"] if several else []), "percentage", "reason"),
        [
            [cell_label(cell), run.arms.label(arm), *([variable] if several else []), name, reason]
            for cell, arm, variable, name, reason in sorted(reasons, key=place)
        ],
        grouped=True,
    )
    blocks = [
        Text(
            "Each architecture has its own ceiling, and a low ceiling makes a high percentage. Read them beside "
            "the raw "
            "scores above.",
            "Never compare percentages of different architectures.",
        ),
        *(Text(words_, f"{name} =") for name, words_ in RECOVERY.items()),
        table,
        left_out,
    ]
    there = table.rows or left_out.rows
    return Section("recovery", "Recovery", blocks_of(*(blocks if there else [])), "No adapted arm was run.")


def _percent(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return "–"
    return f"{number(entry['mean'], 0)} % [{number(entry['low'], 0)}, {number(entry['high'], 0)}]"


def comparisons(run: StoredRun) -> Section:
    """The declared comparisons: the primary one in words and numbers, then all of them in a table."""
    blocks: list[Any] = []
    for variable in run.variables:
        first = variable == run.variables[0]  # what was declared is one comparison, of one variable
        primary = run.primary if first else None
        found = [entry for entry in run.analysis.comparisons if entry["variable"] == variable]
        if not found:
            continue
        declared = [_primary_words(run, entry) for entry in found if entry["primary"]]
        if primary and not declared:
            against = f"{run.who(*primary[0])} against {run.who(*primary[1])}"
            declared = [Text(f"The primary comparison, {against}, has no scores in this run.", kind="none")]
        of_variable = [*declared, _comparison_table(run, found)]
        if own := [entry for entry in run.analysis.recommended if entry["variable"] == variable]:
            heading = "The recommended decoder against rivals, bounds and itself without one of its parts, one family:"
            of_variable += [Text(heading), _comparison_table(run, own)]
        blocks += of_variable if first else [Fold(f"The same for {variable}", of_variable)]
    if blocks:
        blocks.append(
            Text(
                "Days are the units: scores of one day are averaged first. Sign-flip and Wilcoxon tests are exact. The "
                "primary comparison is tested by itself; Holm's correction is over all others of a table. g is "
                "Hedges' of the daily differences. Equivalence is two one-sided tests; inconclusive means that "
                "neither a difference nor "
                "equivalence could be shown. With n days no exact p can fall below 2 to the power of 1 − n.",
                kind="fine",
            )
        )
    return Section("comparisons", "Comparisons", blocks_of(blocks), "No two arms share a scored target day.")


def _primary_words(run: StoredRun, entry: Mapping[str, Any]) -> Text:
    first, second = run.who(entry["first"], entry["first_cell"]), run.who(entry["second"], entry["second_cell"])
    verdict = {1: "is clearly ahead of", -1: "is clearly behind", 0: "shows no clear difference from"}[entry["sign"]]
    if is_undecided(entry["sign"], entry["low"], entry["high"]):
        verdict = "has too few days to be compared with"
    days, margin = entry["n_targets"], f"{entry['margin']:g}"
    text = (
        f"{first} {verdict} {second}: {number(entry['first_mean'])} against {number(entry['second_mean'])}, "
        f"{signed(entry['mean'], entry['low'], entry['high'])} over {days} target {plural('day', days)}; sign-flip p "
        f"{probability(entry['p_sign_flip'])}, Wilcoxon p {probability(entry['p_wilcoxon'])}. Within ± {margin}: "
        f"{entry['equivalence']}."
    )
    if np.isfinite(entry["sd"]):
        text += (
            f" Power: the daily differences have a standard deviation of {number(entry['sd'], 3)}, so that {days} "
            "days see "
            f"a difference of {margin} with probability {entry['power']:.2f}; equivalence would need "
            f"{_days_needed(entry['n_needed'])} days for 0.8."
        )
    return Text(text, "Primary comparison.", "words")


def _days_needed(days: float) -> str:
    return "more than 10000" if np.isinf(days) else figure_text(days, 0)


def _comparison_table(run: StoredRun, found: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for entry in found:
        kind = "strong" if entry["primary"] else ""
        who = run.who(entry["first"], entry["first_cell"]), run.who(entry["second"], entry["second_cell"])
        change = signed(entry["mean"], entry["low"], entry["high"])
        rows.append(
            [
                *(Cell(name, kind) for name in who),
                *(figure_text(entry[name]) for name in ("first_mean", "second_mean")),
                Cell(change, "strong" if entry["sign"] else ""),
                str(entry["n_targets"]),
                *(probability(entry[name]) for name in ("p_sign_flip", "p_wilcoxon")),
                "primary" if entry["primary"] else probability(entry["p_holm"]),
                _effect(entry),
                entry["equivalence"],
                _days_needed(entry["n_needed"]),
                figure_text(entry["power"]),
            ]
        )
    margin = f"{found[0]['margin']:g}"
    return Table(
        "Held-out R², first less second: mean [95 % interval], in bold where it is clear.",
        [
            *words("first", "second"),
            *numbers("first", "second", "difference", "days", "p sign-flip", "p Wilcoxon", "p Holm", "g"),
            Column(f"within ± {margin}"),
            *numbers("days needed", f"power for {margin}"),
        ],
        rows,
    )


def _effect(entry: Mapping[str, Any]) -> str:
    if not np.isfinite(entry["g"]):
        return "–"
    return f"{number(entry['g'], 1)} [{number(entry['g_low'], 1)}, {number(entry['g_high'], 1)}]"


def data(run: StoredRun) -> Section:
    """Sessions, how their channels were matched, how far each pair drifted, and what that cost."""
    sessions = Table(
        "",
        [
            *words("session", "date"),
            *numbers("minutes", "channels", "valid"),
            Column("from", "note"),
            Column("warnings", "note"),
        ],
        [_session(session) for session in run.manifest.sessions],
    )
    matched = [Text(line) for line in _matched(run.manifest)]
    blocks = [
        Text("The manifest lists no session.", kind="none") if not sessions.rows else None,
        sessions,
        *_published(run.manifest),
        Fold("How channels were matched", matched) if len(matched) > 4 else matched,
        *_columns(run.manifest),
        *_drift(run),
    ]
    return Section("data", "Data and drift", blocks_of(blocks))


def _published(manifest: Manifest) -> list[Any]:
    """The datasets that recordings are from, with licence, authors and citation, and what their source noted."""
    found: list[Any] = []
    for each in manifest.datasets:
        where = f"{each['dandiset']}/{each['version']} of the archive at {each['archive']}"
        parts = [f"Licence: {each['licence']}", f"Authors: {'; '.join(each['authors'])}" if each["authors"] else ""]
        parts.append(f"Cite as: {each['citation']}" if each["citation"] else "")
        found.append(Text(f"Dandiset {where}. {'. '.join(part.rstrip('.') for part in parts if part)}.", kind="fine"))
    return [*found, Points("Noted of the recordings", manifest.notes) if manifest.notes else None]


def _columns(manifest: Manifest) -> list[Any]:
    """Whether a column is the same channel in all sessions, as their correlations say."""
    if len(manifest.columns) < 2:
        return []
    rows = []
    for entry in manifest.columns:
        best, verdict = entry.get("best") or {}, entry["verdict"]
        pair = (best.get("first", ""), best.get("second", ""))
        nearest = next((name for name in pair if name != entry["session"]), "")
        words_ = Cell(verdict, "" if verdict == "same" else "bad")
        cells = [figure_text(best.get(name)) for name in ("kept", "rates")]
        rows.append([entry["session"], words_, *cells, nearest, "" if verdict == "same" else entry["sentence"]])
    caption = (
        "Whose columns these are: the share of the pattern of correlations between channels that is kept from the "
        "session that a session agrees with best, beyond that of shuffled columns (1: as within a session, 0: as of "
        "foreign columns), and the correlation of log rates with it."
    )
    columns = [*words("session", "columns"), *numbers("kept", "log rates"), *words("nearest"), Column("", "note")]
    return [Text("", "Whose columns", "sub"), Table(caption, columns, rows)]


def _drift(run: StoredRun) -> list[Any]:
    """Measures of drift of each pair, what the frozen decoder lost there and what adaptation regained."""
    points: Frame = pd.DataFrame(run.analysis.drift)
    if points.empty:
        return [Text("Drift between the sessions was not measured in this run.", kind="none")]
    variable, arm, cell = points.iloc[0][["variable", "arm", "cell"]]
    measures = list(dict.fromkeys(points["measure"]))
    sessions = list(dict.fromkeys([*points["source"], *points["target"]]))
    names = dict(zip(sessions, short_names(sessions), strict=True))
    rows = []
    for (source, target), pair in points.groupby(["source", "target"], sort=False):
        value = {line.measure: line for line in pair.itertuples(index=False)}
        shown = [value.get(name) for name in measures]
        first = pair.iloc[0]
        rows.append(
            [
                *(names[source], names[target], figure_text(first["day_gap"], 0)),
                *(_measure(each) for each in shown),
                *(figure_text(first[name]) for name in ("frozen", "lost", "regained")),
            ]
        )
    kind = run.who(arm, cell)
    return [
        Text("", "Drift", "sub"),
        Table(
            f"Drift of each pair [95 % interval], beside held-out {variable} R² of the frozen decoder "
            f"({cell_label(cell)}), "
            f"what it lost (retrained less frozen) and what {kind} regained (adapted less frozen).",
            [
                *words("source", "target"),
                *numbers("days", *map(_measure_words, measures), "frozen R²", "lost", "regained"),
            ],
            rows,
        ),
        run.album.picture(
            "drift",
            figures_study.drift_figure(points, [("lost", "R² lost"), ("regained", "R² regained")]),
            "measures of drift against what was lost and regained",
            f"One mark is one pair of sessions: above what the frozen decoder lost, below what {kind} regained.",
        ),
        _association_table(run, variable),
    ]


def _association_table(run: StoredRun, variable: str) -> Table:
    """Correlations: a measure of drift per column, what it is set against per row."""
    found = [each for each in run.analysis.associations if each["variable"] == variable and np.isfinite(each["rho"])]
    measures = list(dict.fromkeys(each["measure"] for each in found))
    lines: dict[tuple[str, str], dict[str, Any]] = {}
    for each in found:
        lost = each["outcome"] == "loss"
        what = "lost by the frozen decoder" if lost else f"regained by {run.arms.label(each['arm'])}"
        lines.setdefault((cell_label(each["cell"]), what), {})[each["measure"]] = each

    def shown(each: Mapping[str, Any] | None) -> Cell:
        if each is None:
            return Cell("–")
        clear = np.isfinite(each["low"]) and (each["low"] > 0 or each["high"] < 0)
        return Cell(signed(each["rho"], each["low"], each["high"]), "strong" if clear else "")

    return Table(
        "How drift goes along with loss and recovery of R²: Spearman's correlation over target days [95 % "
        "interval], in "
        "bold where the interval excludes zero. Many are looked at; none is corrected.",
        [*words("cell", "R²"), *numbers("days", *map(_measure_words, measures))],
        [
            [*key, str(max(e["n_targets"] for e in line.values())), *(shown(line.get(name)) for name in measures)]
            for key, line in lines.items()
        ],
        grouped=True,
    )


def _measure(line: Any) -> str:
    if line is None or not np.isfinite(line.value):
        return "–"
    if not (np.isfinite(line.low) and np.isfinite(line.high)):
        return number(line.value)
    return f"{number(line.value)} [{number(line.low)}, {number(line.high)}]"


def _measure_words(name: str) -> str:
    return name.replace("_", " ")


def _session(session: Mapping[str, Any]) -> list[str]:
    fraction = session.get("valid_fraction")
    return [
        str(session.get("session_id", "")),
        str(session.get("date") or ""),
        figure_text(session.get("minutes"), 1),
        str(session.get("n_channels", "")),
        "–" if fraction is None else f"{100 * fraction:.1f} %",
        _origin(session),
        "; ".join(session.get("warnings") or []),
    ]


def _origin(session: Mapping[str, Any]) -> str:
    """Where a session is from: dandiset, version and path with their licence, else the file's name."""
    if not session.get("dandiset"):
        return str(session.get("source_file", ""))
    licence = session.get("licence") or "licence not stated"
    return f"DANDI {session['dandiset']}/{session.get('dandiset_version')}: {session.get('asset_path')} ({licence})"


def _matched(manifest: Manifest) -> list[str]:
    """On which channels each source and its targets met, a line per target."""
    lines = []
    for entry in manifest.channels:
        for target, changed in entry.get("targets", {}).items():
            line = f"{entry['source']} and {target} are matched by {entry['policy']}, on {entry['n_channels']} channels"
            for channels, what in (
                (entry.get("removed"), "removed by the source's quality"),
                (changed["zeroed"], "counted as silent on the target, which lacks them"),
                (changed["left_out"], "left out of the target"),
            ):
                line += f"; {what}: {', '.join(map(str, channels))}" if channels else ""
            lines.append(line + ".")
    return lines
