"""The numbers of a run's report as Markdown: small enough to be committed beside a text that quotes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from bci_adapt.results import summary
from bci_adapt.results.report.blocks import Fold, Page, Points, Section, Table, Text
from bci_adapt.results.report.run import StoredRun
from bci_adapt.results.summary import score_text
from bci_adapt.results.table import PHASES, cell_label

KEPT = ("comparisons", "controls", "labels", "forgetting", "tuning", "cost")  # sections that come after the scores
_LONGEST = 150  # rows; longer tables (a whole tuning surface) are in the page alone


def line(*cells: object) -> str:
    """A row of a table; nothing in a cell can end it or become markup."""
    return "| " + " | ".join(_plain(cell) for cell in cells) + " |"


def head(*titles: str) -> list[str]:
    """The first two rows of a table."""
    return [line(*titles), line(*("---" for _ in titles))]


def _plain(cell: object) -> str:
    text = str(cell).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    return " ".join(text.split())


def _marked(cell: object) -> str:
    """A cell that stands out on the page stands out here."""
    text = str(cell)
    return f"**{text}**" if text and getattr(cell, "kind", "") in ("strong", "bad") else text


def tables_markdown(run: StoredRun, page: Page) -> str:
    """Scores of every arm, cells side by side, then the tables of the sections `KEPT` of `page`, without figures."""
    lines = [f"# {_plain(page.title)}", "", _plain(page.lead), ""]
    lines += ["; ".join(f"{name}: {value}" for name, value in page.facts) + ".", ""]
    if digest := run.digests.get("results.nc"):
        lines += [f"Written by `bci-adapt report` from results of sha256 {digest}.", ""]
    for banner in page.banners:
        lines += [f"**{_plain(banner.title)}** {_plain(banner.text)}", ""]
    for variable in run.variables:
        for phase, title in PHASES.items():
            lines += _scores(run, variable, phase, f"{variable.capitalize()}, {title}")
    for section in page.sections:
        if section.anchor in KEPT:
            lines += list(_section(section))
    return "\n".join(lines).rstrip() + "\n"


def _scores(run: StoredRun, variable: str, phase: str, title: str) -> list[str]:
    """Arms down, cells across."""
    found = summary.arm_lines(run.summary, run.arms, variable)
    cells = [cell for cell in run.cells if any(each["cell"] == cell for each in found)]
    arms = sorted({each["arm"] for each in found if each[phase]}, key=run.arms.place)
    texts = {(each["arm"], each["cell"]): score_text(each[phase]) for each in found if each[phase]}
    if not arms:
        return []
    about = f"Variance-weighted R²{run.bins_words}: mean [95 % interval]; {run.caption}."
    body = [line(run.arms.label(arm), *(texts.get((arm, cell), "") for cell in cells)) for arm in arms]
    return [f"## {title}", "", about, "", *head("", *map(cell_label, cells)), *body, ""]


def _section(section: Section) -> Iterator[str]:
    yield from (f"## {section.title}", "")
    if not section.blocks:
        yield from (section.lacking, "")
    yield from _blocks(section.blocks)


def _blocks(blocks: Iterable[Any]) -> Iterator[str]:
    for block in blocks:
        if isinstance(block, Fold):
            yield from (f"### {_plain(block.title)}", "")
            yield from _blocks(block.blocks)
        elif isinstance(block, Text):
            title = f"**{_plain(block.title)}** " if block.title else ""
            yield from (title + _plain(block.text), "")
        elif isinstance(block, Points):
            yield from (f"**{_plain(block.title)}**", "", *(f"- {_plain(each)}" for each in block.sentences), "")
        elif isinstance(block, Table):
            yield from _table(block)


def _table(table: Table) -> Sequence[str]:
    if len(table.rows) > _LONGEST:
        return [f"({len(table.rows)} rows, in report.html.)", ""]
    caption = [_plain(table.caption), ""] if table.caption else []
    body = [line(*map(_marked, row)) for row in table.rows]
    return [*caption, *head(*(column.title for column in table.columns)), *body, ""]
