"""Commands that run an experiment and write its report."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from bci_adapt.cli.common import Jobs, JsonFile, Quiet, app, err, out, progress, write_json


@app.command()
def run(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="An experiment, such as configs/demo.toml.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder of recordings to use instead of the config's own source.")
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
    offline: Annotated[bool, typer.Option("--offline", help="Use what is in the cache; ask no archive.")] = False,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Run a cross-session experiment: what is done already is reused, the rest runs in parallel; then the report.

    A job that fails costs its own arm only: the others are scored, the failure is listed and the exit code is 1.

    Example: [cyan]bci-adapt run configs/wrist.toml --data recordings/ --workers 2 --json scores.json[/]
    """
    from bci_adapt.experiment import load_config, run_experiment

    loaded = load_config(config, settings or (), data)
    with progress(quiet) as bar:
        task = bar.add_task("reading recordings", total=None) if bar is not None else None

        def say(text: str) -> None:
            if bar is not None and task is not None:
                bar.update(task, description=text)

        done = run_experiment(
            loaded,
            workers=workers,
            scheduler=scheduler,
            progress=Jobs(bar),
            say=say,
            lock=config.parent / "sessions.lock.toml",
            offline=offline,
            command=shlex.join(["bci-adapt", *sys.argv[1:]]),
        )
    from bci_adapt import results

    rows = results.read_results(done.folder / "results.nc").rows
    summary = results.summarise(rows)
    failed = done.manifest["jobs"]["failed"]
    if json_file is not None:
        jobs = {"executed": done.executed, "reused": done.reused, "failed": failed}  # of this call
        write_json(json_file, results.json_payload(rows, {**done.manifest, "jobs": jobs}, summary))
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
    for met in done.manifest["channels"]:
        changed = {what: sum(len(each[what]) for each in met["targets"].values()) for what in ("zeroed", "left_out")}
        words = f"channels of {met['source']}: matched by {met['policy']}, {met['n_channels']} of them"
        words += f", {len(met['removed'])} removed by quality" if met["removed"] else ""
        words += f"; {changed['zeroed']} counted as silent on targets" if changed["zeroed"] else ""
        line(words + (f"; {changed['left_out']} of targets left out" if changed["left_out"] else ""))
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
