"""Commands that run an experiment and write its report."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from bci_adapt.cli.common import (
    Data,
    Jobs,
    JsonFile,
    Offline,
    OwnDecoders,
    Quiet,
    Scheduler,
    Settings,
    SlurmProfile,
    TlsCa,
    TlsCert,
    TlsKey,
    Verify,
    Workers,
    app,
    err,
    noting,
    out,
    progress,
    teller,
    workplace,
    write_json,
)
from bci_adapt.errors import InputError
from bci_adapt.ground.text import clean

RECOMMENDED = Path("configs/recommended.toml")


_Shard = Annotated[
    str | None,
    typer.Option(metavar="K/N", help="Run every N-th pair from the K-th only, without a report: for job arrays."),
]


@app.command()
def run(
    config: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG.toml",
            help="An experiment, such as configs/demo.toml; when not given, the recommended decoder on your own days.",
            show_default=False,
        ),
    ] = RECOMMENDED,
    data: Data = None,
    settings: Settings = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    slurm: SlurmProfile = None,
    offline: Offline = False,
    verify: Verify = False,
    decoders: OwnDecoders = None,
    shard: _Shard = None,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Run a cross-session experiment: what is done already is reused, the rest runs in parallel; then the report.

    A job that fails costs its own arm only: the others are scored, the failure is listed and the exit code is 1.

    Example: [cyan]bci-adapt run configs/wrist.toml --data recordings/ --workers 2 --json scores.json[/]

    Example: [cyan]bci-adapt run --data recordings/[/] (configs/recommended.toml, on the last day of the folder)
    """
    from bci_adapt.experiment.config import load_config
    from bci_adapt.experiment.foreign import Foreign
    from bci_adapt.experiment.run import run_experiment

    loaded, own = load_config(config, settings or (), data), [Foreign.parse(text) for text in decoders or ()]
    part = _shard(shard) if shard is not None else None
    with progress(quiet) as bar:
        say = teller(bar, "reading recordings")
        done = run_experiment(
            loaded,
            workers=workers,
            scheduler=workplace(scheduler, (tls_ca, tls_cert, tls_key), slurm),
            progress=Jobs(bar),
            say=say,
            note=noting(quiet),
            lock=config.parent / "sessions.lock.toml",
            offline=offline,
            verify=verify,
            sure=quiet,
            command=shlex.join(["bci-adapt", *sys.argv[1:]]),
            tuned=config.parent / loaded.tuned if loaded.tuned else None,
            foreign=own,
            shard=part,
        )
    if part is not None:
        _say_shard(done, part, quiet)
        return
    tell_run(done, loaded, json_file, quiet)


def tell_run(done: Any, loaded: Any, json_file: str | None, quiet: bool) -> None:
    """Show a finished run of the config `loaded`, and write its JSON; the exit code is 1 where a job failed."""
    from bci_adapt.results.report import read_run
    from bci_adapt.results.terminal import json_payload

    found, failed = read_run(done.folder), done.manifest.jobs["failed"]
    if json_file is not None:
        jobs = {"executed": done.executed, "reused": done.reused, "failed": failed}  # of this call
        write_json(json_file, json_payload(found.stored, found.manifest, found.analysis, jobs))
    if not quiet and json_file != "-":
        _say_run(done, loaded, found)
    for each in failed:
        text = f"failed: {each['label']}: {each['error']}"
        err.print(text, style="red", markup=False, highlight=False, soft_wrap=True)
    if failed:
        raise typer.Exit(1)


def _shard(text: str) -> tuple[int, int]:
    """(k, n) of ``k/n``."""
    numbers = [int(each) if each.isdigit() else 0 for each in text.split("/")]
    if len(numbers) != 2 or not 1 <= numbers[0] <= numbers[1]:
        raise InputError(f"--shard takes K/N with K from 1 to N, such as 3/50, got {text!r}")
    return numbers[0], numbers[1]


def _say_shard(done: Any, part: tuple[int, int], quiet: bool) -> None:
    jobs = done.manifest.jobs
    if not quiet:
        out.print(
            f"shard {part[0]}/{part[1]}: {done.executed} jobs executed, {done.reused} reused; when all shards are"
        )
        out.print("done, the same command without --shard writes the report")
    for each in jobs["failed"]:
        text = f"failed: {each['label']}: {each['error']}"
        err.print(text, style="red", markup=False, highlight=False, soft_wrap=True)
    if jobs["failed"]:
        raise typer.Exit(1)


def _say_run(done: Any, config: Any, found: Any) -> None:
    from bci_adapt.results.table import RUN, cell_label, unscorable_outputs
    from bci_adapt.results.terminal import text_table

    manifest, analysis, arms, rows = found.manifest, found.analysis, found.arms, found.rows
    leaks, beaten = analysis.leak, analysis.not_above_persistence

    def line(text: str, style: str = "") -> None:
        out.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    if analysis.summary:
        for variable in config.variables:
            out.print(
                text_table(analysis.summary, arms, manifest.rates_tuned, variable=variable, leaks=leaks, beaten=beaten)
            )
    for met in manifest.channels:
        changed = {what: sum(len(each[what]) for each in met["targets"].values()) for what in ("zeroed", "left_out")}
        words = f"channels of {met['source']}: matched by {met['policy']}, {met['n_channels']} of them"
        words += f", {len(met['removed'])} removed by quality" if met["removed"] else ""
        words += f"; {changed['zeroed']} counted as silent on targets" if changed["zeroed"] else ""
        line(words + (f"; {changed['left_out']} of targets left out" if changed["left_out"] else ""))
    for name, (before, now) in manifest.tuned_for.items():
        line(
            f"not tuned for these settings: {config.tuned} was made with {name} = {before}, here it is {now}", "yellow"
        )
    for arm in (manifest.tuning or {}).get("untuned", []):
        line(f"no tuned value: {arms.label(arm['method'])} ({cell_label(arm['cell'])})", "yellow")
    for pair in manifest.unscorable:
        line(f"unscorable: {pair['source']} → {pair['target']}: {pair['reason']}", "yellow")
    for each in unscorable_outputs(rows):
        line(f"unscorable: {each['output']}, {each['source']} → {each['target']}: {each['reason']}", "yellow")
    runs = rows.drop_duplicates(RUN)
    if n_failed := int((runs["status"] == "failed").sum()):
        line(f"{n_failed} of {len(runs)} runs failed; their reasons are in the report", "red")
    for arm, trouble in analysis.leak_troubles.items():
        what = "leak not checked" if leaks[arm] is None else "leak canary"
        line(f"{what}: {arms.label(arm)}: {trouble}", "yellow")
    leaking = [arms.label(arm) for arm, leaks_here in leaks.items() if leaks_here]
    checked = sum(verdict is not None for verdict in leaks.values())
    if leaking:
        line(f"this setting leaks: {', '.join(leaking)} score online without neurons", "bold red")
    elif checked:
        line(f"leak canaries: none of {checked} adaptive arms scores online without neurons")
    what = "nothing to do" if not done.executed else "done"
    line(f"{what}: {done.executed} jobs executed, {done.reused} reused")
    line(f"report: {done.folder / 'report.html'}")


@app.command()
def tune(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="An experiment with a section tuning.")],
    data: Data = None,
    settings: Settings = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.json", help="Where to write; CONFIG.tuned.json when not given."),
    ] = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    slurm: SlurmProfile = None,
    offline: Offline = False,
    verify: Verify = False,
    quiet: Quiet = False,
) -> None:
    """Choose learning rates and other settings by held-out score, on the pairs of the config's section tuning.

    Every method gets the same search: three values a factor apart, then on past an end while the best lies there. The
    file holds the whole surface; a config that names it ([cyan]tuned = "CONFIG.tuned.json"[/]) runs with the values
    chosen, for each target without the pairs of that target. An interrupted tuning goes on where it was.

    Example: [cyan]bci-adapt tune configs/wrist_full.toml --data recordings/ --workers 2[/]
    """
    from bci_adapt.experiment.config import load_config
    from bci_adapt.experiment.tuning import tune as run_tuning
    from bci_adapt.experiment.tuning import write_tuned

    loaded = load_config(config, settings or (), data)
    target = output or config.with_name(f"{config.stem}.tuned.json")
    if target.suffix != ".json":
        raise InputError(f"--output {target}: must end in .json")
    with progress(quiet) as bar:
        task = bar.add_task("reading recordings", total=None) if bar is not None else None

        def say(text: str) -> None:
            if bar is not None and task is not None:
                bar.update(task, description=clean(text, 200))

        lock = config.parent / "sessions.lock.toml"
        about, surface = run_tuning(
            loaded,
            workers=workers,
            scheduler=workplace(scheduler, (tls_ca, tls_cert, tls_key), slurm),
            progress=Jobs(bar),
            say=say,
            note=noting(quiet),
            lock=lock,
            offline=offline,
            verify=verify,
            sure=quiet,
        )
    write_tuned(target, about, surface)
    if not quiet:
        _say_tuned(target)


def _say_tuned(path: Path) -> None:
    from rich.table import Table
    from rich.text import Text

    from bci_adapt.experiment.tuned import read_tuned
    from bci_adapt.results.table import cell_label, number

    tuned = read_tuned(path)
    words = tuned.words()
    table = Table("cell", "arm", "chosen", "held-out R²", "tried", "interior", box=None, padding=(0, 2, 0, 0))
    for key in tuned.methods():
        found = tuned.choice(*key)
        if found is None:
            table.add_row(cell_label(key[1]), Text(words.get(key[0], key[0])), "nothing: every setting failed")
            continue
        values = ", ".join(f"{name} {value:g}" for name, value in found.parameters.items())
        interior = "yes" if found.interior else "no"
        cells = (cell_label(found.cell), Text(words.get(found.method, found.method)), values, number(found.score, 3))
        table.add_row(*cells, str(found.n_points), interior)
    out.print(table)
    out.print(f"tuned values: {path}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def report(
    run_folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders below data_cache/runs.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE.html", help="Where the page of several runs goes.")
    ] = None,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Write the report of a finished run again, from its stored results alone; or lay several runs side by side.

    Of several runs one page (compare.html, unless -o says otherwise) says what differs in what was asked, and how the
    same arms differ on the pairs of sessions that the runs share. The JSON of one run is that of [cyan]run --json[/].

    Example: [cyan]bci-adapt report data_cache/runs/demo-0123456789[/]

    Example: [cyan]bci-adapt report data_cache/runs/wrist-0123456789 data_cache/runs/wrist-abcdef0123 -o both.html[/]
    """
    from bci_adapt.results.report import read_run, render_comparison, render_report
    from bci_adapt.results.terminal import json_payload

    if len(run_folders) == 1 and output is not None:
        raise InputError("-o: the report of one run is written into its own folder; give two runs or leave -o out")
    if len(run_folders) > 1 and json_file is not None:
        raise InputError("--json: takes one run, as run --json does; give one folder or leave --json out")
    if len(run_folders) == 1:
        written = render_report(run_folders[0])
        if json_file is not None:
            found = read_run(run_folders[0])
            write_json(json_file, json_payload(found.stored, found.manifest, found.analysis))
    else:
        written = render_comparison(run_folders, output or Path("compare.html"))
    if not quiet and json_file != "-":
        out.print(f"report: {written}", markup=False, highlight=False, soft_wrap=True)
