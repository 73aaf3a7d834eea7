"""The command that runs the paper's figures again and judges its claims."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bci_adapt.cli.common import Jobs, JsonFile, Quiet, Workers, app, err, out, progress, teller, write_json
from bci_adapt.errors import InputError


@app.command()
def reproduce(
    figures: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FIGURE]...", help="F1 F2a F2b F3 F4a F4b T1 methods delays later streams, or all."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Tiny networks and few seeds, minutes in all: a check that it works.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="Where it goes: paper, or paper_quick, when not given."),
    ] = None,
    configs: Annotated[Path, typer.Option(help="Folder of the figures' configs and of claims.toml.")] = Path(
        "configs/paper"
    ),
    runs: Annotated[
        list[Path] | None,
        typer.Option("--run", metavar="RUN", help="A stored cross-session run for F4b (repeat); the newest if none."),
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(
            metavar="claims.json", help="Run nothing: say which rows of it older code has made (exit code 1)."
        ),
    ] = None,
    workers: Workers = None,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Run figures of "Temporal Credit Is Free" (arXiv 2603.28750) again and judge every claim of it.

    Each figure is a TOML file in configs/paper: networks are trained on a synthetic task, the task changes, and they
    adapt online with every credit rule and optimiser asked for – at a rate of their own, chosen on other seeds, and at
    a rate that all share. Finished jobs are reused, so an interrupted run goes on where it was.

    Written are every figure (SVG, PNG, CSV), tables, and [cyan]claims.html[/] / [cyan]claims.md[/]: claim, the paper's
    number, ours with its interval, a verdict computed from thresholds fixed in claims.toml, and the command.

    Example: [cyan]bci-adapt reproduce F1 F3 --workers 2 --out paper[/]

    Example: [cyan]bci-adapt reproduce all --quick[/]

    Example: [cyan]bci-adapt reproduce --check docs/claims.json[/]
    """
    if check is not None:
        _check(check, configs, quiet)
        return
    if not figures:
        from bci_adapt.paper.reproduce import known_figures

        raise InputError(f"reproduce: name a figure ({', '.join(known_figures(configs))}) or all")
    _require_finished(runs or ())
    from bci_adapt.paper.reproduce import reproduce as run

    target = output or Path("paper_quick" if quick else "paper")
    with progress(quiet) as bar:
        say = teller(bar, "planning")
        done = run(figures, configs, target, quick=quick, workers=workers, progress=Jobs(bar), say=say, runs=runs or ())
    _tell(done, json_file, quiet)


def _require_finished(runs: list[Path] | tuple[()]) -> None:
    for folder in runs:
        if not (folder / "results.nc").is_file():
            raise InputError(f"--run {folder}: expected the folder of a finished run, with results.nc in it")


def _tell(done: Any, json_file: str | None, quiet: bool) -> None:
    """Show what was made and write its JSON; the exit code is 1 where a job failed."""
    if json_file is not None:
        counts = {"executed": done.outcome.executed, "reused": done.outcome.reused, "failed": len(done.failed)}
        write_json(json_file, {"claims": done.rows, "jobs": counts, "page": str(done.page)})
    if not quiet and json_file != "-":
        _say(done)
    for each in done.failed:
        err.print(f"failed: {each.label}: {each.message}", style="red", markup=False, highlight=False, soft_wrap=True)
    if done.failed:
        raise typer.Exit(1)


def _say(done: Any) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("claim", "the paper", "verdict", "figure", box=None, padding=(0, 2, 0, 0))
    for row in done.rows:
        table.add_row(*(Text(str(row[name])) for name in ("claim", "paper", "verdict", "figure")))
    out.print(table)
    what = f"{done.outcome.executed} jobs executed, {done.outcome.reused} reused; page: {done.page}"
    out.print(what, markup=False, highlight=False, soft_wrap=True)


def _check(path: Path, configs: Path, quiet: bool) -> None:
    from bci_adapt.paper.pages import STALE, marked, read_claims
    from bci_adapt.paper.reproduce import digests

    rows = read_claims(path)
    now = {quick: digests(configs, quick) for quick in {bool(row["quick"]) for row in rows}}
    rows = [marked([row], now[bool(row["quick"])])[0] for row in rows]
    old = [row for row in rows if row[STALE]]
    if not quiet:
        for row in rows:
            state = "stale" if row[STALE] else "current" if row["digest"] else "not tested"
            text = f"{state:10} {row['figure']:8} {row['id']}"
            out.print(text, style="yellow" if row[STALE] else "", markup=False, highlight=False, soft_wrap=True)
    if old:
        err.print(f"{len(old)} of {len(rows)} claims were made by other code; run their figures again", style="yellow")
        raise typer.Exit(1)
