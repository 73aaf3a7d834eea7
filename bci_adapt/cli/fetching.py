"""Commands about files of the archive: fetch them, and look after those in the cache."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bci_adapt.cli.common import (
    JsonFile,
    Quiet,
    Verify,
    app,
    err,
    noting,
    out,
    print_line,
    progress,
    teller,
    write_json,
)
from bci_adapt.errors import InputError
from bci_adapt.ground.text import clean

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from bci_adapt.archive.cache import Entry
    from bci_adapt.archive.selection import Selection
    from bci_adapt.archive.sources.dandi import Dandi
    from bci_adapt.experiment.inventory import Item

cache = typer.Typer(
    help="What is stored: list it, verify its digests, clean up. Fetched files lie in "
    "data_cache/raw/DANDISET/VERSION/ASSET-PATH ($BCI_ADAPT_CACHE/raw/…), each with a record *.asset.json beside it; "
    "sessions, decoders, results, compiled loops and runs can be made again.",
    no_args_is_help=True,
)
app.add_typer(cache, name="cache")

_Dandiset = Annotated[
    str | None,
    typer.Argument(metavar="DANDISET[/VERSION]", help="Only this, such as 000688; all when not given."),
]


class _Bytes:
    """Shows the bytes of many files as one bar, in MB; called from several threads."""

    def __init__(self, bar: Bar | None, what: str):
        self.bar, self.done, self.sizes = bar, dict[str, int](), dict[str, int]()
        self.task = bar.add_task(what, total=None) if bar is not None else None

    def __call__(self, path: str, done: int, size: int) -> None:
        self.done[path], self.sizes[path] = done, size
        if self.bar is not None and self.task is not None:
            mb, of = (sum([*each.values()]) // 10**6 for each in (self.done, self.sizes))
            self.bar.update(self.task, completed=mb, total=of, description=f"MB  {clean(path.rpartition('/')[2], 200)}")


Exclude = Annotated[
    list[str] | None, typer.Option(metavar="GLOB", help="Leave out files whose path is or matches this (repeat).")
]
LockFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="The lock file; data_cache/raw/sessions.lock.toml when not given.")
]
Update = Annotated[bool, typer.Option("--update", help="Pin the version given, or else the one that is published now.")]


@app.command()
def fetch(
    dandiset: Annotated[
        str,
        typer.Argument(
            metavar="DANDISET[/VERSION]",
            help="000688, 000688/0.250122.1735, 000688/draft, or the address of a page.",
        ),
    ],
    subject: Annotated[str | None, typer.Option(metavar="S", help="Only this subject: sub-S in a file's name.")] = None,
    session: Annotated[
        str | None, typer.Option(metavar="GLOB", help="Only sessions whose name matches, such as 'CO-2014*'.")
    ] = None,
    path: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Only files whose path is or matches this; * matches / too (repeat)."),
    ] = None,
    exclude: Exclude = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be fetched; write nothing.")] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Ask no server: only what is in the lock file and the cache.")
    ] = False,
    lock: LockFile = None,
    update: Update = False,
    verify: Verify = False,
    jobs: Annotated[int, typer.Option(min=1, max=32, help="Files fetched at the same time.")] = 4,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Fetch NWB files of a dandiset from the DANDI archive into the cache, and pin them in a lock file.

    The latest published version is taken and pinned, so that the same files are used until --update; a draft only when
    asked for, and then as it was pinned. What is there already is verified and not fetched again, and an interrupted
    fetch goes on where it was. Every --path must match something.
    Files lie in data_cache/raw/DANDISET/VERSION/ (those of a draft below the id of their asset).
    $DANDI_INSTANCE names another archive (raw/at/ARCHIVE/DANDISET/…).

    Example: [cyan]bci-adapt fetch 000688 --subject C --session 'CO-2013*' --dry-run[/]
    """
    from bci_adapt.archive.addresses import parse_page
    from bci_adapt.archive.sources.dandi import Dandi

    number, version, paths = parse_page(dandiset)
    with progress(quiet or json_file == "-") as bar:
        showing = _Bytes(bar, f"asking about {number}")
        source = Dandi(
            number, version, [*paths, *(path or ())], subject, session, lock,
            offline=offline, update=update, progress=showing, jobs=jobs, exclude=exclude or (), anew=verify,
            sure=quiet,
        )  # fmt: skip
        rows = _obtained(source, dry_run, quiet)
    chosen = source.select()
    if json_file is not None:
        about = {**source.datasets()[0], "lock": str(source.lock), "notes": chosen.notes, "files": rows}
        write_json(json_file, about | {"refused": chosen.refused})
    if not quiet and json_file != "-":
        _say_fetched(chosen, rows, source.lock, dry_run)
    chosen.refuse()


def _obtained(source: Dandi, dry_run: bool, quiet: bool) -> list[dict[str, Any]]:
    """The rows of what a source stands for, fetched unless this is a dry run; its notes are shown as they come."""
    chosen, note = source.select(), noting(quiet)
    n_notes = len(chosen.notes)
    for text in chosen.notes:
        note(text)
    if dry_run:
        return chosen.rows(source.progress, source.anew)
    try:
        source.obtain()
    finally:
        for text in chosen.notes[n_notes:]:
            note(text)
    return chosen.rows()


@cache.command("list")
def list_cache(dandiset: _Dandiset = None, json_file: JsonFile = None) -> None:
    """List what lies in the cache: fetched files one by one, everything that can be made again kind by kind, with its
    size and when it was last used. Sizes are checked, digests are not.

    Example: [cyan]bci-adapt cache list 000688[/]
    """
    from bci_adapt.archive.cache import entries
    from bci_adapt.experiment import inventory
    from bci_adapt.ground.storage import cache_root

    _show(entries(*_where(dandiset)), [] if dandiset else inventory.items(cache_root()), json_file)


@cache.command("verify")
def verify_cache(dandiset: _Dandiset = None, json_file: JsonFile = None, quiet: Quiet = False) -> None:
    """Compute the digest of everything in the cache anew; exit code 1 when something is bad, each named. What can be
    made again is, by the next command that needs it; a fetched file is fetched again.

    Example: [cyan]bci-adapt cache verify[/]
    """
    from bci_adapt.archive.cache import BAD, entries, verify
    from bci_adapt.experiment import inventory
    from bci_adapt.ground.storage import cache_root

    with progress(quiet or json_file == "-") as bar:
        showing = _Bytes(bar, "verifying")
        found = [verify(entry, showing) for entry in entries(*_where(dandiset))]
        made = [] if dandiset else inventory.items(cache_root())
        step = teller(bar, "verifying results")
        for number, each in enumerate(made):
            step(f"verifying {each.path.name}")
            made[number] = inventory.verify(each)
    _show(found, made, json_file, quiet)
    bad = [(f"{each.dandiset}/{each.version}/{each.path}", each.reason) for each in found if each.state == BAD]
    bad += [(str(each.path), each.reason) for each in made if each.state == inventory.BAD]
    for name, reason in bad:
        print_line(f"bad: {name}: {reason}", "red", err)
    if bad:
        raise typer.Exit(1)


@cache.command("clean")
def clean_cache(
    dandiset: _Dandiset = None,
    everything: Annotated[bool, typer.Option("--all", help="Also remove every fetched file itself.")] = False,
    unused_days: Annotated[
        float | None,
        typer.Option(
            "--unused", metavar="DAYS", help="Also remove what can be made again and was not used for so long."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be removed; remove nothing.")] = False,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Remove what interrupted fetches and runs left: *.part files, and records whose file is gone.

    Of fetched files only those that a fetch wrote are ever removed, and only with --all. While a process works with
    this cache, nothing that can be made again is removed.

    Example: [cyan]bci-adapt cache clean 000688 --all --dry-run[/]

    Example: [cyan]bci-adapt cache clean --unused 30[/]
    """
    from bci_adapt.archive.cache import clean
    from bci_adapt.experiment import inventory
    from bci_adapt.ground.storage import cache_root

    if dandiset is not None and unused_days is not None:
        raise InputError(
            "--unused is about what can be made again, a DANDISET about what was fetched: give one of them"
        )
    removed, left = clean(*_where(dandiset), everything=everything, dry_run=dry_run)
    if dandiset is None:
        swept, in_use = inventory.sweep(cache_root(), unused_days, dry_run)
        removed, left = [*removed, *swept], [*left, *in_use]
    if json_file is not None:
        write_json(json_file, {"removed": [str(each) for each in removed], "left": [str(each) for each in left]})
    if not quiet and json_file != "-":
        for each in removed:
            print_line(f"{'would remove' if dry_run else 'removed'} {each}")
        for each in left:
            print_line(f"left {each} (no record of it, or in use)")
        print_line(f"{'would be removed' if dry_run else 'removed'}: {len(removed)} files")


def _say_fetched(chosen: Selection, rows: list[dict[str, Any]], lock: Path, dry_run: bool) -> None:
    states = [row["state"] + (f" ({row['drift']} in the draft)" if row["drift"] else "") for row in rows]
    cells = ((row["path"], _size(row["size"]), state) for row, state in zip(rows, states, strict=True))
    _table(("path", "size", "state"), cells)
    total, missing = (sum(row[key] for row in rows) for key in ("size", "missing"))
    print_line(
        f"{len(rows)} files of {chosen.dandiset}/{chosen.version}, {_size(total)}; licence: {chosen.about.licence}"
    )
    print_line(f"to fetch: {_size(missing)} (nothing was written)" if dry_run else f"lock: {lock}")


def _where(dandiset: str | None) -> tuple[Path, str | None, str | None]:
    from bci_adapt.archive.addresses import parse_dandiset
    from bci_adapt.archive.cache import raw_folder

    number, version = parse_dandiset(dandiset) if dandiset is not None else (None, None)
    return raw_folder(), number, version


def _show(found: list[Entry], made: list[Item], json_file: str | None, quiet: bool = False) -> None:
    rows = []
    for each in found:
        about = {"archive": each.archive, "dandiset": each.dandiset, "version": each.version}
        about |= {"path": each.path, "size": each.size}
        licence = each.record.licence if each.record is not None else ""
        rows.append({**about, "licence": licence, "state": each.state, "reason": each.reason, "file": str(each.file)})
    if json_file is not None:
        others = [
            {"kind": each.kind, "size": each.size, "used": each.used, "state": each.state, "reason": each.reason}
            | {"file": str(each.path)}
            for each in made
        ]
        write_json(json_file, [*({"kind": "raw", **row} for row in rows), *others])
    if not quiet and json_file != "-":
        columns = ("dandiset", "version", "path", "size", "licence", "state")
        columns = ("archive", *columns) if any(row["archive"] for row in rows) else columns
        _table(columns, ([_size(row[key]) if key == "size" else row[key] for key in columns] for row in rows))
        print_line(f"{len(rows)} files, {_size(sum(row['size'] for row in rows))}")
        if made:
            _show_kinds(made)


def _show_kinds(made: list[Item]) -> None:
    """A line for each kind of what can be made again: how many, how large, when last used, and what was found bad."""
    from bci_adapt.experiment.inventory import BAD, by_kind

    lines, now = [], time.time()
    for kind, group in by_kind(made).items():
        days = sorted((now - each.used) / 86400 for each in group)
        bad = sum(each.state == BAD for each in group)
        verified = "" if not group[0].state else f"{bad} bad" if bad else "whole"
        age = f"{days[0]:.0f}–{days[-1]:.0f} days ago" if len(days) > 1 else f"{days[0]:.0f} days ago"
        lines.append((kind, str(len(group)), _size(sum(each.size for each in group)), age, verified))
    _table(("can be made again", "number", "size", "last used", "state"), lines)


def _table(columns: tuple[str, ...], rows: Iterable[Iterable[Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column == "size" else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(clean(cell)) for cell in row))
    out.print(table)


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.1f} MB"
