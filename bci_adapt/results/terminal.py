"""What a terminal and ``--json`` show of a run: views of its analysis, which compute nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bci_adapt.ground.storage import json_safe
from bci_adapt.results.analysis import Analysis
from bci_adapt.results.arms import Arms
from bci_adapt.results.manifest import Manifest
from bci_adapt.results.summary import arm_lines, caption, score_text
from bci_adapt.results.table import PHASES, Results, bare_arm, cell_label, metric_label

if TYPE_CHECKING:
    from rich.table import Table


def json_payload(
    stored: Results, manifest: Manifest, analysis: Analysis, jobs: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What ``run --json`` writes, free of NaN: rows (the long table, its columns' names and its values apart), summary,
    variations, recovery, refused, leak, not_above_persistence, comparisons, associations, sweeps, time_to_ceiling,
    forgetting, no_drift, beside, unscorable and `jobs`, those of the manifest where none are given.

    `summary` holds every standing arm but those that vary another one, controls too, `variations` those; an entry's
    `leak`, as `leak` by arm, is null where nothing can tell. `recovery` and `refused` say ``against`` which ceiling
    they are. A delay that is null is the end of the trial.
    """
    variations = Arms(stored.arms).variations
    everything = [{**entry, "leak": analysis.leak.get(entry["arm"])} for entry in analysis.summary]
    apart = [bare_arm(entry["arm"]) in variations for entry in everything]
    as_they_are = ("recovery", "refused", "leak", "not_above_persistence", "comparisons", "associations", "sweeps")
    as_they_are += ("time_to_ceiling", "forgetting", "no_drift", "beside")
    return json_safe(
        {
            "rows": {"columns": list(stored.rows.columns), "data": stored.rows.to_numpy(object).tolist()},
            "summary": [entry for entry, other in zip(everything, apart, strict=True) if not other],
            "variations": [entry for entry, other in zip(everything, apart, strict=True) if other],
            **{name: getattr(analysis, name) for name in as_they_are},
            "unscorable": manifest.unscorable,
            "jobs": dict(manifest.jobs if jobs is None else jobs),
        }
    )


def text_table(
    summary: Sequence[Mapping[str, Any]],
    arms: Arms,
    rates_tuned: bool,
    variable: str = "velocity",
    metric: str = "r2",
    leaks: Mapping[str, bool | None] | None = None,
    beaten: Mapping[str, bool | None] | None = None,
) -> Table:
    """Table of arms for a terminal: online and held-out mean [low, high] and the number of target days.

    `leaks` are the verdicts of `leak`, `beaten` those of `not_above_persistence`; arms that they flag have a note.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title=f"{variable}, {metric_label(metric)}: mean [95 % interval] over days",
    )
    for heading in ("cell", "arm"):
        table.add_column(heading, no_wrap=heading == "cell")
    for heading in (*PHASES.values(), "days"):
        table.add_column(heading, justify="right", no_wrap=True)
    lines = arm_lines(summary, arms, variable, metric)
    verdicts = {arm: [] for arm in (*(leaks or {}), *(beaten or {}))}
    for arm, leaking in (leaks or {}).items():
        verdicts[arm] += {True: ["this setting leaks"], None: ["leak not checked"]}.get(leaking, [])
    for arm, flagged in (beaten or {}).items():
        verdicts[arm] += ["online: not above persistence"] if flagged else []
    noted = any(line["note"] or verdicts.get(line["arm"]) for line in lines)
    if noted:
        table.add_column("note")
    for position, line in enumerate(lines):
        new_cell = not position or lines[position - 1]["cell"] != line["cell"]
        if new_cell and position:
            table.add_section()
        leaks_here = bool(leaks and leaks.get(line["arm"]))
        note = "; ".join(filter(None, [line["note"], *verdicts.get(line["arm"], [])]))
        scores = [score_text(line[phase]) for phase in PHASES]
        table.add_row(
            Text(cell_label(line["cell"]) if new_cell else ""),
            Text(arms.label(line["arm"])),
            *map(Text, scores),
            str(line["n_targets"]),
            *([Text(note, style="bold red" if leaks_here else "dim")] if noted else []),
        )
    table.caption = caption(rates_tuned, summary)
    return table
