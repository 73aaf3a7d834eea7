"""What every command shares: the application, consoles, progress and JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from bci_adapt.errors import InputError
from bci_adapt.ground.text import clean, escaped, printable

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from bci_adapt.ground.engine import Workplace

Item = TypeVar("Item")
_LABEL = 200  # characters of what is being done that a progress bar shows

app = typer.Typer(
    help="""Decode movement from primate spike recordings as electrodes drift.

    [bold]inspect[/] an NWB file, [bold]prepare[/] sessions, [bold]run[/] an experiment, read its [bold]report[/].

    `bci-adapt COMMAND --help` shows an example of each.""",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Terminal(Console):
    """A console that shows any text as text: names and notes come from files, and a terminal obeys what is in them."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


# A file or pipe has no width of its own; tables are then as wide as a page.
out = Terminal(width=None if sys.stdout.isatty() else 120, markup=False, emoji=False)
err = Terminal(stderr=True, markup=False, emoji=False)

MatchedBy = Annotated[
    str | None,
    typer.Option(
        "--by",
        metavar="unit|pool|position",
        help="What a channel is on another day, where names do not tell: as the decoder's sessions were matched.",
    ),
]
ANY_FILE = "Recordings (.nwb, .mat), prepared sessions (.nc) or arrays (.npz, .mat)."

Unobserved = Annotated[
    str | None,
    typer.Option(metavar="mask|drop", help="Where units were observed at different times: mask bins, drop units."),
]
Axes = Annotated[
    list[str] | None,
    typer.Option(
        "--axes",
        metavar="NAME=AXIS,AXIS",
        help="Which axes of a target are decoded, such as emg=FCR,ECU; emg=common: those that all sessions have.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars and no tables; errors only.")]
JsonFile = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE.json", help="Also write it as JSON to FILE.json; - is standard output."),
]
Data = Annotated[
    Path | None,
    typer.Option(help="Folder of recordings, prepared sessions or arrays to use instead of the config's own source."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a value: network.n_hidden=32, targets=4,5 (repeat)."),
]
Workers = Annotated[
    int | None, typer.Option(help="Worker processes, one thread each; one per CPU when not given, 0 for none.")
]
Scheduler = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="A running dask scheduler to use instead of local workers; tls://… over TLS."),
]
_TLS = "PEM file for a tls:// scheduler; when not given, what dask's own configuration says."
TlsCa = Annotated[Path | None, typer.Option("--tls-ca", metavar="FILE", help=f"Certificate authority: {_TLS}")]
TlsCert = Annotated[Path | None, typer.Option("--tls-cert", metavar="FILE", help=f"Own certificate: {_TLS}")]
TlsKey = Annotated[Path | None, typer.Option("--tls-key", metavar="FILE", help=f"Key of it: {_TLS}")]
SlurmProfile = Annotated[
    Path | None, typer.Option("--slurm", metavar="PROFILE.toml", help="Let Slurm start the workers (docs/scale.md).")
]
Offline = Annotated[bool, typer.Option("--offline", help="Use what is in the cache; ask no archive.")]
Verify = Annotated[
    bool, typer.Option("--verify", help="Compute the digests of cached files again, however lately it was done.")
]
OwnDecoders = Annotated[
    list[str] | None,
    typer.Option(
        "--decoder",
        metavar="FILE.py:CLASS",
        help="A decoder class of your own as a further arm (repeat); the file is executed.",
    ),
]


class Jobs:
    """Shows what the engine tells, one bar per batch of jobs."""

    def __init__(self, bar: Bar | None):
        self.bar, self.task, self.left = bar, None, 0

    def start(self, total: int, reused: int) -> None:
        if self.bar is not None and total:
            self.task = self.bar.add_task(f"{total} jobs to run, {reused} there already", total=total)

    def done(self, label: str, seconds: float, ok: bool) -> None:
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, advance=1, description=clean(label if ok else f"failed: {label}", _LABEL))

    def damaged(self, paths: Sequence[Path]) -> None:
        for path in paths:
            err.print(f"note: {path}: damaged since it was written; it is made again", markup=False, soft_wrap=True)


@contextmanager
def progress(quiet: bool) -> Iterator[Bar | None]:
    """A progress display on standard error; None when quiet or not a terminal."""
    if quiet or not err.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=err, transient=True) as bar:
        yield bar


def teller(bar: Bar | None, first: str) -> Callable[[str], None]:
    """A function that shows what is being done, beginning with `first`."""
    task = None if bar is None else bar.add_task(first, total=None)

    def say(text: str) -> None:
        if bar is not None and task is not None:
            bar.update(task, description=clean(text, _LABEL))

    return say


def noting(quiet: bool) -> Callable[[str], None]:
    """A function that shows a note of a source of recordings; one that does nothing when quiet."""
    return (lambda text: None) if quiet else (lambda text: print_line(f"note: {text}", "yellow", err))


def one_by_one(bar: Bar | None, what: str, items: Sequence[Item], name: Callable[[Item], str]) -> Iterator[Item]:
    """Hand out `items` one by one, and show how many are done and the `name` of the one at hand."""
    task = None if bar is None else bar.add_task(what, total=len(items))
    for item in items:
        if bar is not None and task is not None:
            bar.update(task, description=clean(name(item), _LABEL))
        yield item
        if bar is not None and task is not None:
            bar.advance(task)


def print_line(text: str, style: str = "", to: Console = out) -> None:
    """Print a line as it is: no markup in it, no colours but `style`, no breaks that are not its own."""
    to.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def write_json(where: str, payload: Any) -> None:
    text = json.dumps(payload, ensure_ascii=False, allow_nan=False, indent=1)
    if where == "-":
        print(escaped(text))
    elif not where.endswith(".json"):
        raise InputError(f"--json {where}: must end in .json, so that nothing else is ever overwritten")
    else:
        from bci_adapt.ground.storage import write_text

        write_text(Path(where), text + "\n")


def workplace(scheduler: str | None, files: Sequence[Path | None], slurm: Path | None) -> Workplace | None:
    """Where jobs are performed if not here; `files` are those of TLS: authority, certificate, key."""
    from bci_adapt.ground.pools import Remote
    from bci_adapt.ground.slurm import Slurm

    if slurm is not None and scheduler is not None:
        raise InputError("--slurm and --scheduler exclude each other; give one of them")
    if slurm is not None:
        return Slurm.read(slurm)
    if scheduler is None:
        if any(each is not None for each in files):
            raise InputError("--tls-ca, --tls-cert, --tls-key: go with --scheduler tls://host:port, which is not given")
        return None
    return Remote(scheduler, *files)
