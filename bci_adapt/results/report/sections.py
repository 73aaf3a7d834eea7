"""The sections that say what was asked and run, on what, how every arm scored, and how to run it again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bci_adapt.results import summary
from bci_adapt.results import table as results
from bci_adapt.results.figures import run as figures
from bci_adapt.results.report.blocks import (
    Cell,
    Code,
    Column,
    Fold,
    Keys,
    Points,
    Section,
    Table,
    Text,
    blocks_of,
    numbers,
    words,
)
from bci_adapt.results.report.run import StoredRun, figure_text, flat, plural, seconds
from bci_adapt.results.summary import score_text
from bci_adapt.results.table import CANARY, MORE_PHASES, PHASES, Frame, cell_label, metric_label, number

PHASE_ORDER = ("online", "online_late", "held_out", "continuing")
SUPERVISION_WORDS = {
    "true": "the true movement",
    "intention": "the cued direction",
    "pseudo": "its own predictions",
    "none": "nothing",
}


def facts(run: StoredRun) -> list[tuple[str, str]]:
    """The counts at the top of the page."""
    jobs = run.manifest.jobs
    ok = run.own[run.own["status"] == "ok"]
    failed = run.rows[run.rows["status"] == "failed"].drop_duplicates([*results.RUN, "study"])
    return [
        ("target days", str(ok["target"].nunique())),
        ("pairs of sessions", str(len(ok[["source", "target"]].drop_duplicates()))),
        ("arms", str(len(ok[["arm", "cell"]].drop_duplicates()))),
        ("seeds", str(ok["seed"].nunique())),
        ("jobs run / reused", f"{jobs['executed']} / {jobs['reused']}"),
        ("failed runs", str(max(len(failed), len(jobs["failed"])))),
    ]


def banners(run: StoredRun) -> list[Text]:
    """What a reader must know before any number: rates that were not tuned, settings that leak."""
    found = []
    if not run.rates_tuned:
        found.append(
            Text(
                "Learning rates and all other settings were fixed in the configuration beforehand. A comparison "
                "of arms "
                "here is a comparison at these rates.",
                "Rates not tuned.",
                "banner",
            )
        )
    for line in leak_lines(run):
        if line["leaks"]:
            found.append(
                Text(
                    f"Shuffled neurons keep most of its online score ({line['text']}). Do not use that score.",
                    f"{run.arms.label(line['arm'])}: this setting leaks.",
                    "banner leak",
                )
            )
    return found


def asked_words(run: StoredRun) -> str:
    """The question in one sentence, from the rows."""
    scored = run.own[run.own["status"] == "ok"]
    if scored.empty:
        return "No pair of sessions of this run was scored."
    sources, targets = scored["source"].nunique(), scored["target"].nunique()
    return (
        f"Decoders of {' and '.join(run.variables)} were trained on {sources} source {plural('session', sources)} and "
        f"tried on {targets} later target {plural('session', targets)}."
    )


def question_words(run: StoredRun) -> str:
    """What the arms saw of each target, from the rows."""
    scored = run.own[run.own["status"] == "ok"]

    def span(column: str, unit: str) -> str:
        values = np.unique(scored.loc[scored["arm"].isin(summary.adaptive(scored, run.arms)), column].dropna())
        texts = [seconds(value) for value in values]
        return f"{texts[0] if len(texts) == 1 else '–'.join([texts[0], texts[-1]])} {unit}" if texts else ""

    text = "How well does each decoder follow from one day to a later one, and what does adapting it there buy?"
    if budget := span("budget_s", "s"):
        text += f" Adaptive arms saw the first {budget} of each target as a stream"
        text += f", each label {delay} late" if (delay := span("delay_s", "s")) else ""
        text += "; everything after it is held out, with weights frozen."
    return text


def asked(run: StoredRun) -> Section:
    """What was asked: the question, the comparison declared beforehand, and the arms with what they learn from."""
    declared = None
    if run.primary:
        first, second = (run.who(*key) for key in run.primary)
        declared = Text(
            f"{first} against {second}, held out. Every other comparison is secondary.",
            "Declared before looking:",
        )
    bins = Text(f"Primary scores are{run.bins_words}.") if run.bins_words else None
    arms = run.own.drop_duplicates(["arm", "cell"])
    used = run.own[np.isfinite(run.own["rate"]) & (run.own["rate"] > 0)]
    rates = {
        key: " / ".join(f"{rate:g}" for rate in sorted(set(group["rate"])))
        for key, group in used.groupby(["arm", "cell"], sort=False)
    }
    lines = sorted(arms.itertuples(index=False), key=lambda arm: (run.cell_place(arm.cell), run.arms.place(arm.arm)))
    table = Table(
        "Every arm of this run. A rate is the learning rate of networks; a tuned one may differ from target to target.",
        [
            *words("cell", "arm", "name in the tables", "learns from", "rule", "optimiser", "normaliser"),
            *numbers("rate"),
        ],
        [
            [
                *(cell_label(arm.cell), run.arms.label(arm.arm), str(arm.arm)),
                SUPERVISION_WORDS[str(arm.supervision)],
                *(str(each or "–") for each in (arm.rule, arm.optimizer, arm.normaliser)),
                rates.get((arm.arm, arm.cell), "–"),
            ]
            for arm in lines
        ],
        grouped=True,
    )
    return Section(
        "asked",
        "What was asked",
        blocks_of(Text(question_words(run)), declared, bins, Fold(f"The {len(lines)} arms", [table])),
    )


def verdict(run: StoredRun) -> Section:
    """Held-out findings in plain words: of the first variable in full, of every other one behind a click."""
    blocks: list[Any] = []
    for variable in run.variables:
        points = [Points(each["title"], each["sentences"]) for each in run.analysis.verdict.get(variable, [])]
        blocks += points if variable == run.variables[0] else [Fold(f"The same for {variable}", points)]
    blocks = blocks_of(blocks)
    if blocks:
        blocks.append(
            Text(
                "Scores are variance-weighted R², held out. Brackets are 95 % intervals over target days; those "
                "after a "
                "signed number are intervals of the paired difference. A difference whose interval includes zero is "
                "called no clear difference. A single target day decides nothing, nor do fewer than five that disagree "
                "in size.",
                kind="fine",
            )
        )
    return Section("verdict", "In plain words", blocks, "No arm has a held-out score in this run.")


def scores(run: StoredRun) -> Section:
    """Raw scores of every arm, their figures, and what failed."""
    blocks: list[Any] = []
    for variable in run.variables:
        if len(run.variables) > 1:
            blocks.append(Text("", variable.capitalize(), "sub"))
        blocks += _scores_of(run, variable)
    return Section(
        "scores",
        "Raw scores of every arm",
        blocks_of(blocks, _left_out(run)),
        "No arm was scored in this run.",
    )


def _scores_of(run: StoredRun, variable: str) -> list[Any]:
    lines = summary.arm_lines(run.summary, run.arms, variable)
    cells = list(dict.fromkeys(line["cell"] for line in lines))
    return [
        *(_arms_picture(run, variable, cell) for cell in cells),
        _score_table(run, variable, lines),
        _other_metrics(run, variable),
        *_course_pictures(run, variable),
    ]


def _score_table(run: StoredRun, variable: str, lines: Sequence[Mapping[str, Any]]) -> Table:
    """Every arm's R² in each part, how many runs it is of, and how many failed."""
    phases = [
        phase
        for phase in PHASE_ORDER
        if phase in PHASES or any((e["arm"], e["cell"], variable, phase, "r2") in run.scores for e in lines)
    ]
    of_runs = run.held_out[run.held_out["variable"] == variable]
    n_runs = of_runs.groupby(["arm", "cell"]).size()
    n_failed = of_runs[of_runs["status"] == "failed"].groupby(["arm", "cell"]).size()

    def score(line: Mapping[str, Any], phase: str) -> Cell:
        found = run.scores.get((line["arm"], line["cell"], variable, phase, "r2"))
        return Cell(score_text(found), "strong" if phase == "held_out" else "")

    return Table(
        f"Variance-weighted R²{run.bins_words}: mean [95 % interval]; {run.caption}.",
        [
            *words("cell", "arm"),
            *(Column({**PHASES, **MORE_PHASES}[phase], "n") for phase in phases),
            *(Column("days", "n"), Column("runs", "n"), Column("failed", "n"), Column("note", "note")),
        ],
        [
            [
                *(cell_label(line["cell"]), run.arms.label(line["arm"])),
                *(score(line, phase) for phase in phases),
                str(line["n_targets"]),
                *(str(counts.get((line["arm"], line["cell"]), 0)) for counts in (n_runs, n_failed)),
                line["note"],
            ]
            for line in lines
        ],
        grouped=True,
    )


def _arms_picture(run: StoredRun, variable: str, cell: str) -> Any:
    return run.album.picture(
        f"{variable}-arms-{cell_label(cell)}",
        figures.arms_figure(run.summary, run.arms, variable, cell, run.supervision),
        f"{variable} R² of every arm, {cell_label(cell)}",
        f"{cell_label(cell)}: every arm, best held-out score on top; the axis is the same for all cells. Online: each "
        "bin is predicted before its label is used. Held out: later bins, weights frozen. Retrained arms have no "
        "online point: the stream is what they were trained on. Bars are 95 % intervals over target days; "
        f"{run.tuned_words}.",
    )


def _course_pictures(run: StoredRun, variable: str) -> list[Any]:
    """Scores against the days between sessions and through a session, and an excerpt."""
    first = {run.variables[0]: run.stored.attrs.get("unit", "")}
    unit = str({**first, **json.loads(str(run.stored.attrs.get("units", "{}")))}.get(variable, ""))
    return [
        run.album.picture(
            f"{variable}-gap",
            figures.gap_figure(run.analysis.pairs, run.arms, variable),
            f"held-out {variable} R² against days between sessions",
            "Against the days between sessions. One point is one pair of sessions, seeds averaged; lines join the "
            f"means of equal gaps; {run.tuned_words}.",
        ),
        run.album.picture(
            f"{variable}-curve",
            figures.curve_figure(run.stored.curves, run.arms, variable),
            f"{variable} R² through the target session",
            "Through the target session: R² in consecutive windows. Lines are medians over pairs, bands the middle "
            "half. Right of the dashed line nothing is learned any more; the causal normaliser keeps running.",
        ),
        run.album.picture(
            f"{variable}-trajectory",
            figures.trajectory_figure(run.stored.trajectories, run.arms, variable, unit),
            f"decoded and true {variable} in a held-out excerpt",
            "Decoded against true: an excerpt of the held-out part of one pair. Grey is the true movement.",
        ),
    ]


def _other_metrics(run: StoredRun, variable: str) -> Fold:
    """Held-out means of every metric but the primary one, a line per arm and cell."""
    lines = summary.arm_lines(run.summary, run.arms, variable)
    keys = [key for key in run.scores if key[2:4] == (variable, "held_out") and key[4] != "r2"]
    names = list(dict.fromkeys(key[4] for key in sorted(keys, key=lambda key: list(run.scores).index(key))))

    def value(line: Mapping[str, Any], name: str) -> str:
        found = run.scores.get((line["arm"], line["cell"], variable, "held_out", name))
        return figure_text(found["mean"] if found else None)

    table = Table(
        f"Means over target days; {run.caption}. RMSE is in the unit of the recording.",
        [*words("cell", "arm"), *numbers(*map(metric_label, names))],
        [[cell_label(e["cell"]), run.arms.label(e["arm"]), *(value(e, name) for name in names)] for e in lines]
        if names
        else [],
        grouped=True,
    )
    return Fold("Other metrics, held out", [table])


def _left_out(run: StoredRun) -> list[Any]:
    """Unscorable pairs and failures: in no mean, counted here."""
    unscorable, failures, outputs = _unscorable(run), _failures(run), results.unscorable_outputs(run.rows)
    return [
        Text("", "Left out, and failed", "sub"),
        Text("Every pair of sessions could be scored.") if not unscorable else None,
        Table(
            "Unscorable pairs: in no mean, for the reason given.",
            words("source", "target", "reason"),
            [[each["source"], each["target"], each["reason"]] for each in unscorable],
            sortable=False,
        ),
        Table(
            f"Unscorable outputs: {len(outputs)} in no mean and no R² of several outputs, for the reason given.",
            words("source", "target", "output", "reason"),
            [[each["source"], each["target"], each["output"], each["reason"]] for each in outputs],
            sortable=False,
        ),
        Table(
            "Days that were trained on in no pair, where all earlier ones are asked for.",
            words("session", "reason"),
            [[str(each.get("session")), str(each.get("reason"))] for each in run.manifest.unfit],
            sortable=False,
        ),
        Text("No run failed.") if not failures else None,
        Table(
            "Failures: in no mean, counted here.",
            [*words("what"), *numbers("times"), *words("reason")],
            [[each["what"], str(each["count"]), each["reason"]] for each in failures],
            sortable=False,
        ),
    ]


def _unscorable(run: StoredRun) -> list[dict[str, str]]:
    """Pairs in no mean, with the reason, from the manifest and the rows."""
    listed: list[dict[str, Any]] = [{**entry} for entry in run.manifest.unscorable]
    known = {(entry["source"], entry["target"]) for entry in listed}
    whole = (run.rows["status"] == "unscorable") & (run.rows["metric"] == "r2")
    marked = run.rows.loc[whole, ["source", "target", "reason"]]
    for source, target, reason in marked.drop_duplicates(["source", "target"]).itertuples(index=False):
        if (source, target) not in known:
            listed.append({"source": source, "target": target, "reason": reason})
    return listed


def _failures(run: StoredRun) -> list[dict[str, Any]]:
    """Failed runs, counted by arm, question and reason, then failed jobs by label."""
    failed = run.rows[run.rows["status"] == "failed"].drop_duplicates([*results.RUN, "study"])
    lines = []
    for (arm, cell, study, reason), group in failed.groupby(["arm", "cell", "study", "reason"], sort=False):
        aside = f", {results.STUDIES.get(study, study)}" if study else ""
        lines.append(
            {"what": f"{run.arms.label(arm)} ({cell_label(cell)}{aside})", "count": len(group), "reason": reason}
        )
    jobs = run.manifest.jobs["failed"]
    return lines + [{"what": f"job: {j['label']}", "count": 1, "reason": j["error"]} for j in jobs]


def leak_lines(run: StoredRun) -> list[dict[str, Any]]:
    """Verdict of each adaptive arm: ``{arm, leaks, text}``, `leaks` None where no canary can tell; and why not."""
    troubles = run.analysis.leak_troubles
    online = [e for e in run.summary if e["phase"] == "online" and e["metric"] == "r2" and e["n_targets"]]

    def variable(entry: Mapping[str, Any]) -> str:
        return f" {entry['variable']}" if len(run.variables) > 1 else ""

    lines = []
    for arm, leaks in run.analysis.leak.items():
        parts = [
            f"{cell_label(own['cell'])}{variable(own)} {number(canary['mean'])} of {number(own['mean'])}"
            for own in online
            for canary in online
            if own["arm"] == arm and canary["arm"] == CANARY + arm
            if (own["cell"], own["variable"]) == (canary["cell"], canary["variable"])
        ]
        parts += [troubles[arm]] if arm in troubles else []
        lines.append({"arm": arm, "leaks": leaks, "text": "; ".join(parts)})
    return lines


def pairs(run: StoredRun) -> Section:
    """Every pair of sessions: a table of held-out scores per cell, then everything about each pair behind a click."""
    blocks: list[Any] = []
    for variable in run.variables:
        tables = _pair_tables(run, variable)
        blocks.append(Fold(f"Every pair: {variable}, held out", tables))
    scored: Frame = pd.DataFrame(run.analysis.pairs)
    if not scored.empty:
        ordered = scored.sort_values(["day_gap", "source", "target"])
        for (source, target), rows in ordered.groupby(["source", "target"], sort=False):
            gap = rows["day_gap"].iloc[0]
            days = f", {gap:g} {plural('day', gap)} apart" if np.isfinite(gap) else ""
            blocks.append(Fold(f"{source} → {target}{days}", [_pair_table(run, rows)]))
    return Section("pairs", "Pair by pair", blocks_of(blocks), "No pair of sessions was scored.")


def _pair_tables(run: StoredRun, variable: str) -> list[Table]:
    """Held-out R² of every pair (mean over seeds): one table per cell, pairs down, arms across."""
    scored: Frame = pd.DataFrame(
        each
        for each in run.analysis.pairs
        if (each["variable"], each["phase"], each["metric"]) == (variable, "held_out", "r2")
    )
    tables = []
    for cell in sorted(set(scored["cell"]) if len(scored) else (), key=run.cell_place):
        of_cell = scored[scored["cell"] == cell]
        means = of_cell.set_index(["source", "target", "day_gap", "arm"])["value"].unstack("arm")
        arms = sorted(means, key=run.arms.place)
        lines = sorted(
            zip(means.index, means[arms].to_numpy(), strict=True),
            key=lambda line: (np.isnan(line[0][2]), line[0][2], line[0][1]),
        )
        tables.append(
            Table(
                f"{cell_label(cell)}: variance-weighted R², mean over seeds; {run.tuned_words}.",
                [*words("source", "target"), *numbers("days", *map(run.arms.label, arms))],
                [
                    [source, target, figure_text(gap, 0), *(figure_text(float(value)) for value in values)]
                    for (source, target, gap), values in lines
                ],
            )
        )
    return tables


def _pair_table(run: StoredRun, rows: Any) -> Table:
    """All R² of one pair, seeds averaged: an arm per line."""
    means = rows.set_index(["variable", "cell", "arm", "phase", "metric"])["value"]
    labels = rows.groupby(["variable", "cell", "arm"])["n_labels"].max()
    axes = sorted({metric for metric in rows["metric"] if metric.startswith("r2:")})
    shown = [("online", "r2"), ("held_out", "r2"), *(("held_out", axis) for axis in axes)]
    keys = sorted(labels.index, key=lambda k: (run.variables.index(k[0]), run.cell_place(k[1]), run.arms.place(k[2])))
    several = len(run.variables) > 1
    return Table(
        "R², seeds averaged: online, held out, and held out by axis.",
        [
            *words(*(["variable"] if several else []), "cell", "arm"),
            *numbers("online", "held out", *(axis.removeprefix("r2:") for axis in axes), "labels"),
        ],
        [
            [
                *([key[0]] if several else []),
                *(cell_label(key[1]), run.arms.label(key[2])),
                *(figure_text(means.get((*key, *which))) for which in shown),
                str(labels[key]),
            ]
            for key in keys
        ],
        grouped=True,
    )


def again(run: StoredRun) -> Section:
    """Everything needed to run it again."""
    manifest = run.manifest
    command, created = manifest.command, manifest.created
    versions = list(manifest.versions.items())
    digests = [(key, f"sha256 {value}") for key, value in run.digests.items()]
    digests += [
        (f"{each.get('session_id', '')}: {each.get('source_file') or 'recording'}", f"sha256 {known}")
        for each in manifest.sessions
        if (known := each.get("source_sha256"))
    ]
    if tuning := manifest.tuning:
        digests.append((tuning["file"], f"sha256 {tuning['digest']}"))
    lock = [(str(key), str(value)) for key, value in flat(manifest.lock)]
    reruns = "".join(f"; again {each['created']}, {each['executed']} jobs executed" for each in manifest.reruns)
    seeds = ", ".join(str(seed) for seed in sorted(set(run.own["seed"])))
    return Section(
        "again",
        "How to run it again",
        blocks_of(
            Code(str(command)) if command else None,
            Text(
                "From this folder, bci-adapt run config.toml repeats the run, bit for bit on the same kind of machine; "
                "what is in the cache is reused. bci-adapt report writes this page again from the stored results."
            ),
            Text(f"Seeds: {seeds}.") if seeds else None,
            Fold("Configuration", [Keys(list(flat(run.config)))]),
            Fold("Lock of recordings", [Keys(lock)]),
            Fold("Versions and digests", [Keys(versions + digests)]),
            Text(f"Run of {created}{reruns}.", kind="fine") if created else None,
        ),
    )
