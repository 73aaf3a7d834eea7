"""The command line. Heavy libraries are imported by the commands that need them, so that ``--help`` is quick."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from bci_adapt.errors import InputError

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

app = typer.Typer(
    help="""Decode movement from primate spike recordings as electrodes drift.

    [bold]inspect[/] an NWB file, [bold]prepare[/] sessions, [bold]run[/] an experiment, read its [bold]report[/].

    `bci-adapt COMMAND --help` shows an example of each.""",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# A file or pipe has no width of its own; tables are then as wide as a page.
out, err = Console(width=None if sys.stdout.isatty() else 120), Console(stderr=True)

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars and no tables; errors only.")]
JsonFile = Annotated[
    str | None, typer.Option("--json", metavar="FILE", help="Also write it as JSON to FILE; - is standard output.")
]


# ------------------------------------------------------------------------------------------------ progress


class _Jobs:
    """Shows what the engine tells, one bar per batch of jobs."""

    def __init__(self, bar: Bar | None):
        self.bar, self.task, self.left = bar, None, 0

    def start(self, total: int, reused: int) -> None:
        if self.bar is not None and total:
            self.task = self.bar.add_task(f"{total} jobs to run, {reused} there already", total=total)

    def done(self, label: str, seconds: float, ok: bool) -> None:
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, advance=1, description=label if ok else f"[red]failed:[/] {label}")


@contextmanager
def _progress(quiet: bool) -> Iterator[Bar | None]:
    """A progress display on standard error; None when quiet or not a terminal."""
    if quiet or not err.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(bar_width=30), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=err, transient=True) as bar:
        yield bar


def _write_json(where: str, payload: Any) -> None:
    text = json.dumps(payload, ensure_ascii=False, allow_nan=False, indent=1)
    if where == "-":
        print(text)
    else:
        from bci_adapt.storage import write_text

        write_text(Path(where), text + "\n")


# ------------------------------------------------------------------------------------------------ commands


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE.nwb", help="An NWB 2 file.")],
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Show what is inside an NWB file, what would be used as spikes and as target, and why.

    Example: [cyan]bci-adapt inspect monday.nwb[/]
    """
    from bci_adapt.prepare import inspect as describe
    from bci_adapt.results import json_safe

    found = describe(file)
    if json_file is not None:
        _write_json(json_file, json_safe(found.to_json()))
    if not quiet and json_file != "-":
        out.print(found.table())


@app.command()
def prepare(
    recordings: Annotated[list[Path], typer.Argument(help="NWB files, or folders of them.")],
    bin_s: Annotated[float, typer.Option("--bin-s", help="Width of a bin in seconds.")] = 0.05,
    into: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the sessions; data_cache/sessions when not given.")
    ] = None,
    layout: Annotated[str | None, typer.Option(help="Read with this layout instead of the best match.")] = None,
    quiet: Quiet = False,
) -> None:
    """Bin NWB files into labelled sessions (netCDF), with faulty stretches masked by rule.

    Example: [cyan]bci-adapt prepare recordings/ --bin-s 0.05[/]
    """
    from bci_adapt.prepare import prepare_file
    from bci_adapt.session import read_session
    from bci_adapt.sources.folder import Folder
    from bci_adapt.storage import cache_root

    files: list[Path] = []
    for path in recordings:
        files += [Path(each) for each in Folder(path).list()["path"]] if path.is_dir() else [path]
    folder = into or cache_root() / "sessions"
    with _progress(quiet) as bar:
        task = bar.add_task("preparing", total=len(files)) if bar is not None else None
        for file in files:
            written = prepare_file(file, folder, bin_s, layout)
            if bar is not None and task is not None:
                bar.update(task, advance=1, description=file.name)
            if not quiet:
                session = read_session(written)
                labels = [name for name in ("position", "velocity", "recorded_velocity") if name in session]
                minutes = session.sizes["time"] * bin_s / 60.0
                out.print(
                    f"{written}  {session.sizes['channel']} channels, {minutes:.1f} min, {', '.join(labels)}",
                    highlight=False,
                    soft_wrap=True,
                )
                for warning in json.loads(session.attrs["warnings"]):
                    out.print(f"  warning: {warning}", style="yellow", markup=False, highlight=False, soft_wrap=True)


@app.command()
def run(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="An experiment, such as configs/demo.toml.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder of NWB files to use instead of the config's own source.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a value: network.n_hidden=32, targets=4,5 (repeat)."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Worker processes, one thread each; one per CPU when not given, 0 for none.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="A running dask scheduler to use instead of local workers.")
    ] = None,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Run a cross-session experiment: what is done already is reused, the rest runs in parallel; then the report.

    A job that fails costs its own arm only: the others are scored, the failure is listed and the exit code is 1.

    Example: [cyan]bci-adapt run configs/wrist.toml --data recordings/ --workers 2 --json scores.json[/]
    """
    from bci_adapt.experiment import load_config, run_experiment

    loaded = load_config(config, settings or (), data)
    with _progress(quiet) as bar:
        task = bar.add_task("reading recordings", total=None) if bar is not None else None

        def say(text: str) -> None:
            if bar is not None and task is not None:
                bar.update(task, description=text)

        done = run_experiment(
            loaded,
            workers=workers,
            scheduler=scheduler,
            progress=_Jobs(bar),
            say=say,
            command=shlex.join(["bci-adapt", *sys.argv[1:]]),
        )
    from bci_adapt import results

    rows = results.read_results(done.folder / "results.nc").rows
    summary = results.summarise(rows)
    failed = done.manifest["jobs"]["failed"]
    if json_file is not None:
        jobs = {"executed": done.executed, "reused": done.reused, "failed": failed}  # of this call
        _write_json(json_file, results.json_payload(rows, {**done.manifest, "jobs": jobs}, summary))
    if not quiet and json_file != "-":
        _say_run(done, loaded, rows, summary)
    for each in failed:
        text = f"failed: {each['label']}: {each['error']}"
        err.print(text, style="red", markup=False, highlight=False, soft_wrap=True)
    if failed:
        raise typer.Exit(1)


def _say_run(done: Any, config: Any, rows: Any, summary: list[dict[str, Any]]) -> None:
    from bci_adapt import results

    leaks = results.leak(rows)

    def line(text: str, style: str = "") -> None:
        out.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    if summary:
        out.print(results.text_table(summary, config.rates_tuned, variable=config.variable, leaks=leaks))
    for pair in done.manifest["unscorable"]:
        line(f"unscorable: {pair['source']} → {pair['target']}: {pair['reason']}", "yellow")
    runs = rows.drop_duplicates(results.RUN)
    if n_failed := int((runs["status"] == "failed").sum()):
        line(f"{n_failed} of {len(runs)} runs failed; their reasons are in the report", "red")
    for arm, trouble in results.canary_troubles(rows).items():
        what = "leak not checked" if leaks[arm] is None else "leak canary"
        line(f"{what}: {results.arm_label(arm)}: {trouble}", "yellow")
    leaking = [results.arm_label(arm) for arm, leaks_here in leaks.items() if leaks_here]
    checked = sum(verdict is not None for verdict in leaks.values())
    if leaking:
        line(f"this setting leaks: {', '.join(leaking)} score online without neurons", "bold red")
    elif checked:
        line(f"leak canaries: none of {checked} adaptive arms scores online without neurons")
    what = "nothing to do" if not done.executed else "done"
    line(f"{what}: {done.executed} jobs executed, {done.reused} reused")
    line(f"report: {done.folder / 'report.html'}")


@app.command()
def report(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A folder below data_cache/runs.")],
    quiet: Quiet = False,
) -> None:
    """Write the report of a finished run again, from its stored results alone.

    Example: [cyan]bci-adapt report data_cache/runs/demo-0123456789[/]
    """
    from bci_adapt.report import render_report

    written = render_report(run_folder)
    if not quiet:
        out.print(f"report: {written}", markup=False, highlight=False, soft_wrap=True)


_LISTS = ("cells", "rules", "optimizers", "decoders", "layouts", "tasks")


@app.command("list")
def list_variants(
    what: Annotated[str, typer.Argument(metavar="|".join(_LISTS), help="Which folder of variants to list.")],
    json_file: JsonFile = None,
) -> None:
    """List the variants of a folder: cells, credit rules, optimisers, decoders, layouts or tasks.

    Example: [cyan]bci-adapt list rules[/]
    """
    from bci_adapt.catalog import unknown

    if what not in _LISTS:
        raise InputError(unknown(what, _LISTS, "list"))
    found = _variants(what)
    if json_file is not None:
        _write_json(json_file, [{"name": name, "description": text} for name, text in found.items()])
    if json_file != "-":
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, show_header=False, pad_edge=False)
        for name, text in found.items():
            table.add_row(Text(name, style="bold"), Text(text))
        out.print(table)


def _variants(what: str) -> dict[str, str]:
    """Name → one line about it."""
    if what == "cells":
        from bci_adapt.cells.base import cells

        return {name: cell.description for name, cell in cells().items()}
    if what == "rules":
        from bci_adapt.credit.base import rules

        return {name: rule.description for name, rule in rules().items()}
    if what == "optimizers":
        from bci_adapt.optimizers import optimizers

        return {name: optimizer.description for name, optimizer in optimizers().items()}
    if what == "decoders":
        from bci_adapt.decoders.base import decoders

        return {name: decoder.description for name, decoder in decoders().items()}
    if what == "layouts":
        from bci_adapt.catalog import variants
        from bci_adapt.layouts.base import Layout

        found = variants("bci_adapt.layouts", Layout).items()
        return {
            name: f"{(layout.__doc__ or '').strip().splitlines()[0]} "
            f"({f'verified on {layout.verified_on}' if layout.verified_on else 'not verified on a real file'})"
            for name, layout in found
        }
    from bci_adapt.tasks.base import tasks

    return {name: task.description for name, task in tasks().items()}


bench = typer.Typer(
    help="Benchmarks: figures beside their floor and a rival, measured in the same run.", no_args_is_help=True
)
app.add_typer(bench, name="bench")


@bench.command("learning")
def bench_learning(
    quick: Annotated[bool, typer.Option(help="Tiny networks: a check that it works, not a figure.")] = False,
    json_file: JsonFile = None,
) -> None:
    """Bins per second, latency and memory of online learning on one core, beside floors and rivals (a few minutes).

    Example: [cyan]bci-adapt bench learning --json bench.json[/]
    """
    from bci_adapt.bench import JAX, JAX_HINT, learning, tables

    with _progress(json_file == "-") as bar:
        task = bar.add_task("measuring", total=None) if bar is not None else None

        def say(text: str) -> None:
            if bar is not None and task is not None:
                bar.update(task, description=text)

        rows = learning(quick, say)
    if json_file is not None:
        _write_json(json_file, rows)
    if json_file != "-":
        for table in tables(rows):
            out.print(table)
        if not any(JAX in row["rivals"] for row in rows):
            out.print(JAX_HINT, markup=False, highlight=False, soft_wrap=True)


@bench.command("drift")
def bench_drift(
    days: Annotated[int, typer.Option(help="Days between source and target.")] = 210,
    n_seeds: Annotated[int, typer.Option("--seeds", min=1, help="Simulated animals per severity.")] = 8,
    json_file: JsonFile = None,
) -> None:
    """What the simulated drift does to a ridge decoder, over five severities (docs/simulated_drift.md).

    Example: [cyan]bci-adapt bench drift --seeds 8[/]
    """
    from bci_adapt.results import json_safe
    from bci_adapt.simulate import severity_table, severity_text

    with _progress(json_file == "-") as bar:
        if bar is not None:
            bar.add_task("simulating", total=None)
        rows = severity_table(seeds=range(n_seeds), day=days)
    if json_file is not None:
        _write_json(json_file, json_safe(rows))
    if json_file != "-":
        print(severity_text(rows))


def _optional_json_value(arguments: list[str]) -> list[str]:
    """Let ``--json`` stand alone for standard output; never take the NWB file that follows it for its value."""
    given = []
    for position, argument in enumerate(arguments):
        given.append(argument)
        following = arguments[position + 1] if position + 1 < len(arguments) else "--"
        if argument == "--json" and ((following.startswith("-") and following != "-") or following.endswith(".nwb")):
            given.append("-")
    return given


def main() -> None:
    """Entry point: 0 done, 1 something broke, 2 the input cannot be used (one line says why), 130 interrupted."""
    try:
        app(args=_optional_json_value(sys.argv[1:]))
    except InputError as error:
        err.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        err.print("interrupted; what was finished is kept", style="yellow")
        sys.exit(130)


if __name__ == "__main__":
    main()
