"""What a page is made of: sections of paragraphs, tables, pictures and folds, and how they become one HTML file.

Every text is plain and escaped by the template; nothing else writes markup. A table's cell is text, or a `Cell` with a
class of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import Any, NamedTuple

STYLE, SCRIPTS = "style.css", ("sort.js", "zoom.js")


class Cell(NamedTuple):
    """A cell of a table that looks different: `kind` is a class of style.css (``strong``, ``bad``, ``note``)."""

    text: str
    kind: str = ""

    def __str__(self) -> str:
        return self.text


class Text(NamedTuple):
    """A paragraph; `title` stands in bold before it, `kind` is a class (``words``, ``fine``, ``none``, ``banner``)."""

    text: str
    title: str = ""
    kind: str = ""


class Points(NamedTuple):
    """Sentences as a list under a title."""

    title: str
    sentences: Sequence[str]


class Code(NamedTuple):
    """Lines to type."""

    text: str


class Column(NamedTuple):
    """A table's heading; `kind` is ``n`` for numbers, ``note`` for small text."""

    title: str
    kind: str = ""


class Table(NamedTuple):
    """Rows under headings. `grouped` draws a line where the first cell changes; `sortable` where order is free."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[str | Cell]]
    grouped: bool = False
    sortable: bool = True


class Keys(NamedTuple):
    """Name and value, a line each."""

    lines: Sequence[tuple[str, str]]


class Download(NamedTuple):
    """A link to something that is in the page itself (`address` is a data: URI) or beside it."""

    label: str
    address: str
    file: str


class Picture(NamedTuple):
    """A figure as <svg> text, its caption, and where to fetch it as SVG and its numbers as CSV."""

    name: str
    svg: str
    caption: str
    downloads: Sequence[Download] = ()


class Fold(NamedTuple):
    """Blocks behind a click, open without scripts on a click as well."""

    title: str
    blocks: Sequence[Any]


class Section(NamedTuple):
    """A part of the page with an anchor; without blocks it says in one line what the run lacks."""

    anchor: str
    title: str
    blocks: Sequence[Any]
    lacking: str = ""


class Page(NamedTuple):
    """A whole page: `kind` stands above the title, `facts` are the counts below the lead."""

    kind: str
    title: str
    lead: str
    facts: Sequence[tuple[str, str]]
    banners: Sequence[Text]
    sections: Sequence[Section]


def numbers(*titles: str) -> list[Column]:
    """Columns of numbers."""
    return [Column(title, "n") for title in titles]


def words(*titles: str) -> list[Column]:
    """Columns of words; those of arms get the room that their names need."""
    return [Column(title, "arm" if title == "arm" else "") for title in titles]


def blocks_of(*blocks: Any) -> list[Any]:
    """The blocks that are there: None, empty lists and tables without rows are left out, lists are laid flat."""
    flat: list[Any] = []
    for block in blocks:
        if block is None:
            continue
        inside = blocks_of(*block.blocks) if isinstance(block, Fold) else None
        if isinstance(block, list):
            flat += blocks_of(*block)
        elif isinstance(block, Fold):
            flat += [block._replace(blocks=inside)] if inside else []
        elif not (isinstance(block, Table) and not block.rows) and not (isinstance(block, Keys) and not block.lines):
            flat.append(block)
    return flat


def render_page(page: Page) -> str:
    """`page` as one HTML text that fetches nothing."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    folder = resources.files(__package__ or __name__)
    environment = Environment(
        loader=PackageLoader("bci_adapt.results.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["block"] = lambda block, name: type(block).__name__ == name
    environment.filters["drawing"] = lambda text: Markup(text)  # our own figures, escaped where they were drawn
    read = {name: Markup((folder / name).read_text(encoding="utf-8")) for name in (STYLE, *SCRIPTS)}
    script = Markup("\n").join(read[name] for name in SCRIPTS)
    return environment.get_template("page.html").render(page=page, style=read[STYLE], script=script)
