"""The sections of the side questions: controls, labels, forgetting, days in a row, tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bci_adapt.results import studies, summary
from bci_adapt.results import table as results
from bci_adapt.results.analysis import OfDay
from bci_adapt.results.figures import run as figures
from bci_adapt.results.figures import studies as figures_study
from bci_adapt.results.recovery import Frame
from bci_adapt.results.report.blocks import Cell, Fold, Points, Section, Table, Text, blocks_of, numbers, words
from bci_adapt.results.report.run import StoredRun, figure_text, seconds, signed
from bci_adapt.results.report.sections import leak_lines
from bci_adapt.results.summary import score_text
from bci_adapt.results.table import cell_label

SWEEP_WORDS = {
    "delay": "label delay (s)",
    "fraction": "fraction of labels given",
    "budget": "seconds of labels",
    "trials": "trials of labels",
}


def controls(run: StoredRun) -> Section:
    """Controls of every arm and the verdict on leaks; the no-drift control; cold starts."""
    lines = leak_lines(run)
    verdicts = {True: Cell("this setting leaks", "bad"), None: Cell("not checked", "strong"), False: Cell("no leak")}
    table = Table(
        "Mean online R² with neurons shuffled in time, of the arm's own.",
        [*words("arm", "verdict", "shuffled, of own")],
        [[run.arms.label(line["arm"]), verdicts[line["leaks"]], line["text"]] for line in lines],
    )
    pictures = [
        run.album.picture(
            f"{variable}-controls",
            figures.controls_figure(run.summary, run.arms, variable),
            f"online {variable} R² of arms and their controls",
            f"Online {variable} R² of each arm and of its controls. A diamond right of the red line, and past the "
            "middle "
            "of its own line, is a leak. With channels permuted an arm that learns may come back; a frozen one "
            "may not.",
        )
        for variable in run.variables
    ]
    blocks = [
        Text(
            "Movement is smooth, so a decoder with fast weights can carry the last label forward and score "
            "online without "
            "any neuron. Each adaptive arm is therefore run again with its counts shuffled in time. Where that canary "
            f"keeps {100 * summary.LEAK_FRACTION:.0f} % of the arm's online R², and more than "
            f"{summary.LEAK_FLOOR:g}, the "
            "setting "
            "leaks."
        ),
        Text("No adaptive arm was run.", kind="none") if not lines else None,
        table,
        pictures,
        _channels(run),
        _without_neurons(run),
        _no_drift(run),
        _beside(run, "cold", "Cold start: optimiser and traces not warmed on the source day", "warmed", "cold"),
    ]
    return Section("controls", "Controls: do labels leak?", blocks_of(blocks))


def _channels(run: StoredRun) -> Fold:
    """Held-out scores with channels permuted beside the arm's own."""
    found = [
        entry
        for entry in run.summary
        if results.control_of(entry["arm"]) == "channels" and (entry["phase"], entry["metric"]) == ("held_out", "r2")
    ]
    rows = []
    for entry in _in_order(run, found):
        own = {**entry, "arm": results.bare_arm(entry["arm"])}
        standing = run.scores.get((own["arm"], own["cell"], own["variable"], "held_out", "r2"))
        rows.append([*_named(run, own), score_text(standing), score_text(entry)])
    title = "Channels permuted on the target: what an arm that learns regains from labels alone, held out."
    columns = [*words("cell", "arm", "variable"), *numbers("own", "channels permuted")]
    return Fold("Channels permuted", [Table(title, columns, rows, grouped=True)])


def _without_neurons(run: StoredRun) -> list[Any]:
    found = [
        f"{variable}: online {score_text(run.scores.get((arm, '', variable, 'online', 'r2')))}, "
        f"held out {score_text(run.scores[arm, '', variable, 'held_out', 'r2'])}"
        for arm in run.arms.controls
        for variable in run.variables
        if (arm, "", variable, "held_out", "r2") in run.scores
    ]
    words_ = "Persistence repeats the last known label and reads no neuron: "
    return [Text(words_ + "; ".join(found) + ".")] if found else [Text("No persistence was run.", kind="none")]


def _no_drift(run: StoredRun) -> list[Any]:
    """Scores on the source day's own later half, beside those on later days."""
    lines = [entry for entry in run.analysis.no_drift if entry["phase"] == "held_out"]
    title = "No drift: the source day's later half as target"
    if not lines:
        return [Text(f"{title}: not run.", kind="none")]
    rows = [
        [*_named(run, entry), score_text(entry), figure_text(entry["drifted"]), str(entry["n_targets"])]
        for entry in _in_order(run, lines)
    ]
    columns = [*words("cell", "arm", "variable"), *numbers("same day", "later days", "days")]
    return [Table(f"{title}. Held-out R²; the days are source days.", columns, rows, grouped=True)]


def _beside(run: StoredRun, study: str, title: str, usual: str, other: str) -> list[Any]:
    """Held-out scores of a study beside those of the standing arms, on the pairs and seeds of both."""
    found = run.analysis.beside[study]
    if not found:
        return [Text(f"{title}: not run.", kind="none")]
    rated = study == "shared_rate"
    rows = []
    for entry in _in_order(run, found):
        row = [*_named(run, entry), figure_text(entry["standing"]), figure_text(entry["studied"])]
        row.append(signed(entry["mean"], entry["low"], entry["high"]))
        row += [_setting(entry[name]) for name in ("rate", "studied_rate")] if rated else []
        rows.append([*row, str(entry["n_targets"])])
    rates = [f"rate, {usual}", f"rate, {other}"] if rated else []
    columns = [*words("cell", "arm", "variable"), *numbers(usual, other, f"{usual} − {other}", *rates, "days")]
    return [Table(f"{title}. Held-out R².", columns, rows, grouped=True)]


def _named(run: StoredRun, entry: Mapping[str, Any]) -> list[str]:
    return [cell_label(entry["cell"]), run.arms.label(entry["arm"]), entry["variable"]]


def _in_order(run: StoredRun, entries: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Entries by variable, cell and arm, in order of presentation."""

    def place(entry: Mapping[str, Any]) -> tuple:
        return run.variables.index(entry["variable"]), run.cell_place(entry["cell"]), run.arms.place(entry["arm"])

    return sorted(entries, key=place)


def labels(run: StoredRun) -> Section:
    """Sweeps of label delay, fraction and budget, and the time to nine tenths of the ceiling."""
    blocks: list[Any] = []
    for study, axis in SWEEP_WORDS.items():
        title, swept = results.STUDIES[study].capitalize(), False
        for variable in run.variables:
            points = [point for point in run.analysis.sweeps[study] if point["variable"] == variable]
            if not points:
                continue
            swept = True
            ceilings = {
                entry["cell"]: entry["ceiling_r2"]
                for entry in run.analysis.time_to_ceiling
                if entry["variable"] == variable
            }
            blocks.append(
                run.album.picture(
                    f"{variable}-{study}",
                    figures_study.sweep_figure(
                        pd.DataFrame(points).assign(label=[swept_words(study, point["value"]) for point in points]),
                        run.arms,
                        axis,
                        variable,
                        ceilings if study == "budget" else {},
                    ),
                    f"{variable} R² against {axis}",
                    f"{title}: {variable} R², with 95 % intervals of the held-out mean over target days"
                    f"{'; the dotted line is the retrained ceiling' if study == 'budget' else ''}; {run.tuned_words}.",
                )
            )
            blocks.append(Fold(f"{title}: {variable} R²", [_sweep_table(run, study, points)]))
            if study == "budget":
                blocks.append(_time_to_ceiling(run, variable))
        if not swept:
            blocks.append(Text(f"{title}: not swept in this run.", kind="none"))
    blocks += [each for variable in run.variables if (each := _days_picture(run, variable)) is not None]
    lacking = all(isinstance(block, Text) for block in blocks)
    return Section(
        "labels",
        "Label delay, fraction and budget",
        blocks_of(*([] if lacking else blocks)),
        "No sweep of labels was run.",
    )


def swept_words(study: str, value: float) -> str:
    """A value of a sweep as it is read."""
    return "all" if study == "trials" and np.isinf(value) else seconds(value)


def _days_picture(run: StoredRun, variable: str) -> Any:
    """The decoder that was swept over budgets, day by day: no labels, some, all, and its bounds."""
    found = run.analysis.life[variable]
    if found is None:
        return None
    return run.album.picture(
        f"{variable}-days",
        figures_study.days_figure(
            pd.DataFrame(found["points"]), pd.DataFrame(found["labels"]), run.arms, variable, found["ceiling"]
        ),
        f"held-out {variable} R² by day and by labels",
        f"{run.who(found['arm'], found['cell'])} day by day, with no labels, some and all of them, "
        "between the frozen decoder and the retrained ones; beside it the mean over days against seconds of labels; "
        f"{run.tuned_words}.",
    )


def _sweep_table(run: StoredRun, study: str, points: Sequence[Mapping[str, Any]]) -> Table:
    online = {(p["arm"], p["cell"], p["value"]): p for p in points if p["phase"] == "online"}
    rows = []
    for point in _in_order(run, [each for each in points if each["phase"] == "held_out"]):
        key = point["arm"], point["cell"], point["value"]
        row = [f"{run.arms.label(point['arm'])} ({cell_label(point['cell'])})", swept_words(study, point["value"])]
        rows.append([*row, score_text(online.get(key)), score_text(point), str(point["n_targets"])])
    return Table("", [*words("arm"), *numbers(SWEEP_WORDS[study], "online", "held out", "days")], rows, grouped=True)


def _time_to_ceiling(run: StoredRun, variable: str) -> Table:
    found = _in_order(run, [each for each in run.analysis.time_to_ceiling if each["variable"] == variable])
    rows = []
    for entry in found:
        budget = f"{entry['budget_s']:g} s" if entry["reached"] else f"not with {entry['largest_budget_s']:g} s"
        row = [cell_label(entry["cell"]), run.arms.label(entry["arm"]), run.arms.label(entry["ceiling"])]
        row += [figure_text(entry[name]) for name in ("ceiling_r2", "threshold")]
        rows.append([*row, Cell(budget, "strong" if entry["reached"] else ""), str(entry["n_targets"])])
    return Table(
        f"{variable.capitalize()}: the smallest budget that was run with which an arm reaches "
        f"{100 * studies.CEILING_FRACTION:.0f} % of the ceiling, held out, on the same pairs.",
        [*words("cell", "arm", "ceiling"), *numbers("its R²", "threshold", "labels needed", "days")],
        rows,
        grouped=True,
    )


def forgetting(run: StoredRun) -> Section:
    """Back on the source day after adaptation, and days in a row."""
    found = {name: [e for e in run.analysis.forgetting if e["variable"] == name] for name in run.variables}
    back = {variable: _back_table(run, entries) for variable, entries in found.items() if entries}
    others = [Fold(f"The same for {variable}", [table]) for variable, table in list(back.items())[1:]]
    pictures, tables = [], []
    for variable in run.variables:
        days = [day for day in run.analysis.days if day["variable"] == variable]
        points = pd.DataFrame(days, columns=[*OfDay.__annotations__])
        pictures.append(
            run.album.picture(
                f"{variable}-continual",
                figures_study.continual_figure(points, run.arms, variable),
                f"held-out {variable} R² day by day",
                "Days in a row: weights carried from day to day (filled) and adapted anew from the source each day "
                "(hollow, dashed).",
            )
        )
        tables.append(_days_table(run, points, variable))
    return Section(
        "forgetting",
        "Forgetting, and days in a row",
        blocks_of(
            list(back.values())[:1],
            others,
            Text("No arm was taken back to its source day in this run.", kind="none") if not back else None,
            pictures,
            Fold("Day by day", tables),
            Text("No weights were carried through days in a row in this run.", kind="none")
            if not any(table.rows for table in tables)
            else _beside(run, "continual", "Carried on, beside adapting each day anew", "anew", "carried on"),
        ),
    )


def _back_table(run: StoredRun, entries: Sequence[Mapping[str, Any]]) -> Table:
    return Table(
        "Back on the source session after adaptation, with the source day's own statistics: "
        f"{entries[0]['variable']} R² of "
        "the whole session. Below zero, the decoder has forgotten.",
        [*words("cell", "arm"), *numbers("frozen", "after", "difference", "days")],
        [
            [
                *_named(run, entry)[:2],
                *(figure_text(entry[name]) for name in ("frozen", "adapted")),
                signed(entry["mean"], entry["low"], entry["high"]),
                str(entry["n_targets"]),
            ]
            for entry in _in_order(run, entries)
        ],
        grouped=True,
    )


def _days_table(run: StoredRun, points: Frame, variable: str) -> Table:
    rows = []
    wide = points.pivot(index=["cell", "arm", "day"], columns="continual", values="mean")
    for (cell, arm, day), line in sorted(
        wide.iterrows(), key=lambda item: (run.cell_place(item[0][0]), run.arms.place(item[0][1]), item[0][2])
    ):
        shown = (figure_text(line.get(carried, float("nan"))) for carried in (True, False))
        rows.append([f"{run.arms.label(arm)} ({cell_label(cell)})", str(day), *shown])
    columns = [*words("arm", "day"), *numbers("carried on", "anew")]
    return Table(f"{variable}: held-out R².", columns, rows, grouped=True)


def tuning(run: StoredRun) -> Section:
    """Chosen values, the whole surface, and the shared rate beside the tuned ones."""
    found = run.manifest.tuning
    beside = _beside(run, "shared_rate", "One learning rate for all, beside the tuned rates", "tuned", "shared rate")
    if not found:
        blocks = beside if isinstance(beside[0], Table) else []
        return Section(
            "tuning", "Tuning", blocks, "Nothing was tuned for this run: every rate stands in the configuration."
        )
    surface, chosen = found["surface"], found["chosen"]
    seeds = ", ".join(str(seed) for seed in found.get("seeds", []))
    outer, noted = any(not each.get("interior") for each in chosen), found.get("notes", [])
    return Section(
        "tuning",
        "Tuning",
        blocks_of(
            Text(
                "Values were chosen by held-out R² on other pairs of sessions than they are used for; seeds "
                f"{seeds}. From {found['file']}, sha256 {found['digest']}."
            ),
            Points("Noted of the recordings that they were chosen on", noted) if noted else None,
            _chosen_table(run, chosen),
            Text("At the edge of its grid: a wider grid might find better.", kind="fine") if outer else None,
            run.album.picture(
                "tuning",
                figures_study.tuning_figure(surface, chosen, run.arms),
                "tuning score against learning rate, a panel per method",
                "The whole surface: mean held-out R² over tuning pairs and seeds. The ring is the chosen point, its "
                "line dark; grey lines are other settings of the other parameters. Not for ranking methods: that is "
                "done on other pairs.",
            ),
            _surface(run, figures_study.surface_table(surface)),
            beside,
        ),
    )


def _chosen_table(run: StoredRun, chosen: Sequence[Mapping[str, Any]]) -> Table:
    """What was chosen for each method, and whether it stands at the edge of its grid."""
    names = list(dict.fromkeys(name for each in chosen for name in each["parameters"]))
    return Table(
        "Chosen values. Interior: the best score does not stand at the edge of its grid.",
        [
            *words("cell", "method"),
            *numbers(*(name.replace("_", " ") for name in names), "score", "tried"),
            *words("optimum"),
        ],
        [
            [
                *(cell_label(each["cell"]), run.arms.label(each["method"])),
                *(_setting(each["parameters"].get(name)) for name in names),
                figure_text(each["score"]),
                str(each.get("n_points", "")),
                Cell("interior") if each.get("interior") else Cell("at the edge", "bad"),
            ]
            for each in sorted(chosen, key=lambda c: (run.cell_place(c["cell"]), run.arms.place(c["method"])))
        ],
        grouped=True,
    )


def _surface(run: StoredRun, table: Frame) -> Fold:
    """Every point of the tuning."""
    rows = [
        [
            *(run.arms.label(point.method), cell_label(point.cell)),
            ", ".join(f"{name} {_setting(value)}" for name, value in point.parameters.items()),
            *(figure_text(point.score, 3), str(point.n_runs)),
        ]
        for point in table.itertuples(index=False)
    ]
    columns = [*words("method", "cell", "setting"), *numbers("score", "runs")]
    return Fold(f"The surface, {len(table)} points", [Table("", columns, rows, grouped=True)])


def _setting(value: Any) -> str:
    return "–" if value is None else f"{value:g}" if isinstance(value, (int, float)) else str(value)
