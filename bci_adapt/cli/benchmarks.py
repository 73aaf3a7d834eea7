"""Commands that measure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bci_adapt.cli.common import Data, JsonFile, Settings, app, out, print_line, progress, teller, write_json

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
    from bci_adapt.cli.bench.learning import learning
    from bci_adapt.cli.bench.learning_tables import tables
    from bci_adapt.cli.bench.rivals import JAX, JAX_HINT

    with progress(json_file == "-") as bar:
        rows = learning(quick, teller(bar, "measuring"))
    if json_file is not None:
        write_json(json_file, rows)
    if json_file != "-":
        for table in tables(rows):
            out.print(table)
        if not any(JAX in row["rivals"] for row in rows):
            print_line(JAX_HINT)


@bench.command("live")
def bench_live(
    n_bins: Annotated[int, typer.Option("--bins", min=100, help="Bins of each decoder.")] = 1_000_000,
    quick: Annotated[bool, typer.Option(help="A tiny network: a check that it works, not a figure.")] = False,
    json_file: JsonFile = None,
) -> None:
    """Latency of a live bin, predicted alone and with its label, beside an empty call and the same bins in long calls.

    Example: [cyan]bci-adapt bench live --bins 20000 --json live.json[/]
    """
    from bci_adapt.cli.bench.live import measure, table

    with progress(json_file == "-") as bar:
        rows = measure(n_bins, quick, teller(bar, "measuring"))
    if json_file is not None:
        write_json(json_file, rows)
    if json_file != "-":
        out.print(table(rows))


@bench.command("data")
def bench_data(
    quick: Annotated[bool, typer.Option(help="A tiny file: a check that it works, not a figure.")] = False,
    json_file: JsonFile = None,
) -> None:
    """Time and memory from an NWB file to a session, beside raw reads and pynwb; fetching beside the archive's own
    client, planning and listing, from a stand-in on loopback (about three minutes).

    Example: [cyan]bci-adapt bench data --json bench_data.json[/]
    """
    from bci_adapt.cli.bench.archive import archive, table_of
    from bci_adapt.cli.bench.data import data, tables

    with progress(json_file == "-") as bar:
        say = teller(bar, "measuring")
        found = data(quick, say)
        found["archive"] = archive(quick, say)
    if json_file is not None:
        write_json(json_file, found)
    if json_file != "-":
        for table in [*tables(found), table_of(found["archive"])]:
            out.print(table)


@bench.command("drift")
def bench_drift(
    days: Annotated[int, typer.Option(help="Days between source and target.")] = 210,
    n_seeds: Annotated[int, typer.Option("--seeds", min=1, help="Simulated animals per severity.")] = 8,
    json_file: JsonFile = None,
) -> None:
    """What the simulated drift does to a ridge decoder, over five severities (docs/simulated_drift.md).

    Example: [cyan]bci-adapt bench drift --seeds 8[/]
    """
    from bci_adapt.cli.bench.drift import severity_table, severity_text
    from bci_adapt.ground.storage import json_safe

    with progress(json_file == "-") as bar:
        if bar is not None:
            bar.add_task("simulating", total=None)
        rows = severity_table(seeds=range(n_seeds), day=days)
    if json_file is not None:
        write_json(json_file, json_safe(rows))
    if json_file != "-":
        print(severity_text(rows))


@bench.command("stream")
def bench_stream(
    bins: Annotated[float, typer.Option(min=1, help="Bins of the stream.")] = 1e7,
    json_file: JsonFile = None,
) -> None:
    """Time per bin, memory, and the cost of a checkpoint along a stream of days (about two minutes).

    Example: [cyan]bci-adapt bench stream --bins 1e7[/]
    """
    from bci_adapt.cli.bench.stream import stream

    with progress(json_file == "-") as bar:
        rows = stream(int(bins), teller(bar, "measuring"))
    if json_file is not None:
        write_json(json_file, rows)
    if json_file != "-":
        for row in rows:
            print_line(
                f"to bin {row['bins']:>9}: {row['us_per_bin']:.2f} us a bin, {row['resident_mb']:.0f} MB resident, "
                f"checkpoint {row['store_ms']:.1f} ms, {row['file_bytes']:.0f} bytes"
            )


@bench.command("sweep")
def bench_sweep(
    n_jobs: Annotated[int, typer.Option("--jobs", min=1, help="How many tiny jobs.")] = 20_000,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 2,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="CONFIG.toml", help="Also run this experiment with one and with two workers."),
    ] = None,
    data: Data = None,
    settings: Settings = None,
    json_file: JsonFile = None,
) -> None:
    """What running a job costs beside its work, and what a second run costs that finds everything done.

    Example: [cyan]bci-adapt bench sweep --config configs/wrist.toml --data recordings/ --set targets=2[/]
    """
    from bci_adapt.cli.bench.sweep import speed_up, sweep, table_of

    with progress(json_file == "-") as bar:
        say = teller(bar, "measuring")
        found = sweep(n_jobs, workers, say)
        if config is not None:
            found["experiment"] = speed_up(config, list(settings or ()), say, data)
    if json_file is not None:
        write_json(json_file, found)
    if json_file != "-":
        out.print(table_of(found))


@bench.command("identity")
def bench_identity(
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", metavar="FOLDER", help="Recordings of one animal; several may be given."),
    ] = None,
    n_seeds: Annotated[int, typer.Option("--seeds", min=0, help="Simulated animals beside them.")] = 2,
    undo: Annotated[bool, typer.Option("--undo", help="Measure instead how much of a mixed wiring is found.")] = False,
    json_file: JsonFile = None,
) -> None:
    """How often the check of columns is wrong: on all pairs of days, on simulated months, with columns mixed up, by
    minutes of data (docs/identity.md; some minutes an animal).

    Example: [cyan]bci-adapt bench identity --data monkey_s/ --data monkey_i/ --json identity.json[/]
    """
    from bci_adapt.cli.bench import wirings
    from bci_adapt.cli.bench.identity import MINUTES, identity, months, read, text
    from bci_adapt.ground.storage import json_safe

    with progress(json_file == "-") as bar:
        say = teller(bar, "measuring")
        if undo:
            rows = wirings.wirings({folder.name: wirings.sessions_of(folder, say) for folder in data or ()}, say)
            found, told = {"wirings": rows}, wirings.text(rows)
        else:
            animals = {folder.name: read(folder, say) for folder in data or ()}
            found = identity(animals | {f"simulated {seed}": months(seed, MINUTES[-1]) for seed in range(n_seeds)}, say)
            told = text(found)
    if json_file is not None:
        write_json(json_file, json_safe(found))
    if json_file != "-":
        print(told)
