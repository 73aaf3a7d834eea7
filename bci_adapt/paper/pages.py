"""The page of claims: self-contained HTML, Markdown and JSON from one list of rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bci_adapt.errors import InputError
from bci_adapt.ground.storage import write_text
from bci_adapt.paper.claims import NOT, ONLY, OPEN, REPRODUCED, UNTESTED
from bci_adapt.paper.drawing import Figures
from bci_adapt.paper.tables import Frame
from bci_adapt.results.report.album import Album
from bci_adapt.results.report.blocks import Cell, Column, Page, Section, Table, Text, blocks_of, render_page
from bci_adapt.results.report.markdown import head as markdown_head
from bci_adapt.results.report.markdown import line as markdown_line
from bci_adapt.results.table import number

STALE = "stale"
_KEYS = {"id", "claim", "paper", "ours", "cases", "verdict", "figure", "note", "command", "digest", "made", "quick"}
_OUTCOMES = {"holds": "holds", "fails": "does not hold", "open": "open", "missing": "not tested"}
_LONGEST = 120  # rows of a table that are shown on the page; all are in its CSV


def read_claims(path: Path) -> list[dict[str, Any]]:
    """Rows that `write_claims` wrote; `InputError` where the file is something else."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["claims"]
        if not all(set(row) >= _KEYS for row in rows):
            raise KeyError("a row lacks keys")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: expected the claims.json of bci-adapt reproduce: {error}") from error
    return list(rows)


def marked(rows: Sequence[Mapping[str, Any]], digests: Mapping[str, str]) -> list[dict[str, Any]]:
    """The rows with ``stale``: whether other code, or another entry, has made a row than stands there now; `digests`
    are those of the claims by id.
    """
    return [{**row, STALE: bool(row["digest"]) and row["digest"] != digests.get(str(row["id"]), "")} for row in rows]


def write_claims(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    figures: Sequence[tuple[str, str, str, Figures, Mapping[str, Frame]]],
) -> Path:
    """Write ``claims.json``, ``claims.md`` and ``claims.html`` into `folder`; return the path of the page.

    `figures` are (name, title, about, pictures, tables to show) of what was run.
    """
    write_text(folder / "claims.json", json.dumps({"claims": list(rows)}, ensure_ascii=False, indent=1) + "\n")
    write_text(folder / "claims.md", markdown(rows))
    album = Album()
    sections = [_claims(rows)]
    for name, title, about, pictures, tables in figures:
        blocks: list[Any] = [Text(about)] if about else []
        blocks += [album.picture(stem, drawn, alt, caption) for stem, drawn, alt, caption in pictures]
        blocks += [_table(caption, table) for caption, table in tables.items()]
        sections.append(Section(name, f"{name}: {title}", blocks_of(*blocks), "Nothing of it has been run."))
    counts = [(kind, str(sum(str(row["verdict"]).startswith(kind) for row in rows))) for kind in _ORDER]
    page = Page(
        "The paper, claim by claim",
        "Temporal credit is free? (arXiv 2603.28750)",
        "Every claim with its number in the paper, the number found here with its interval, and a verdict that is "
        "computed from a threshold fixed before the run.",
        counts,
        [Text(_QUICK, kind="banner")] if any(row["quick"] for row in rows) else [],
        sections,
    )
    write_text(folder / "claims.html", render_page(page))
    return folder / "claims.html"


_ORDER = (REPRODUCED, ONLY, NOT, OPEN, UNTESTED)
_QUICK = (
    "Quick run: small networks, short streams, few seeds. It shows that everything works; no verdict is to be taken."
)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as two Markdown tables: the claims, and every condition under which they were tested."""
    lines = ["# The paper, claim by claim", ""]
    if any(row["quick"] for row in rows):
        lines += [f"**{_QUICK}**", ""]
    lines += markdown_head("claim", "the paper", "ours, in the paper's case", "verdict", "made by")
    for row in rows:
        made = f"`{row['command']}`, code {row['digest']}, {row['made']}" if row["digest"] else "—"
        state = f"**{row['verdict']}**" + (" *(stale)*" if row.get(STALE) else "")
        lines.append(markdown_line(row["claim"], row["paper"], _ours(row), state, made))
    lines += ["", "## Every condition", ""]
    lines += markdown_head("claim", "condition", "found [95 %; of equivalence 90 %]", "")
    for row in rows:
        for case in row["cases"]:
            lines.append(markdown_line(row["claim"], case["when"], case["found"], _OUTCOMES[case["outcome"]]))
    return "\n".join(lines) + "\n"


def _ours(row: Mapping[str, Any]) -> str:
    """What was found in the first case, the paper's own."""
    text = row["cases"][0]["found"] if row["cases"] else "—"
    return text + (f" — {row['note']}" if row["note"] else "")


def _claims(rows: Sequence[Mapping[str, Any]]) -> Section:
    body, cases = [], []
    for row in rows:
        verdict = str(row["verdict"])
        kind = "bad" if verdict.startswith(NOT) else "strong" if verdict.startswith(REPRODUCED) else ""
        stale = " (stale: the code has changed)" if row.get(STALE) else ""
        made = f"{row['command']} · code {row['digest']} · {row['made']}" if row["digest"] else "—"
        shown = Cell(verdict + stale, kind)
        body.append([row["claim"], row["paper"], _ours(row), shown, row["figure"], Cell(made, "note")])
        for case in row["cases"]:
            kind = {"holds": "strong", "fails": "bad"}.get(case["outcome"], "")
            cases.append([row["claim"], case["when"], case["found"], Cell(_OUTCOMES[case["outcome"]], kind)])
    columns = [Column(title) for title in ("claim", "the paper", "ours, in the paper's case", "verdict", "figure")] + [
        Column("made by", "note")
    ]
    table = Table("Thresholds and directions stand in configs/paper/claims.toml.", columns, body)
    titles = [Column(title) for title in ("claim", "condition", "found [95 %; of equivalence 90 %]", "")]
    every = Table("Every condition under which a claim was tested; the first of each is the paper's.", titles, cases)
    return Section("claims", "Claims and verdicts", [table, every])


def _table(caption: str, table: Frame) -> Table | None:
    if table.empty:
        return None
    numeric = {name for name in table if table[name].dtype.kind in "fi"}
    columns = [Column(str(name).replace("_", " "), "n" if name in numeric else "") for name in table]
    rows = [[_shown(value) for value in line] for line in table.head(_LONGEST).itertuples(index=False)]
    more = f" The first {_LONGEST} of {len(table)} rows." if len(table) > _LONGEST else ""
    return Table(caption + more, columns, rows)


def _shown(value: Any) -> str:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        if not np.isfinite(value):
            return "–"
        size = abs(float(value))
        if size != 0 and not 1e-3 <= size < 1e5:
            return f"{value:.1e}".replace("e-0", "e−").replace("e+0", "e").replace("-", "−")
        return number(float(value), 0 if size >= 1000 else 1 if size >= 10 else 3)
    return str(value)
