"""The command that checks the quality of sessions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bci_adapt.cli.common import (
    ANY_FILE,
    JsonFile,
    Quiet,
    Unobserved,
    app,
    one_by_one,
    out,
    print_line,
    progress,
    write_json,
)
from bci_adapt.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from bci_adapt.data.qc import QcReport, QcThresholds

_SHOWN_CHANNELS = 24
_STATUS_STYLE = {"pass": "green", "flag": "bold red", "not applicable": "dim"}


@app.command()
def qc(
    sessions: Annotated[list[Path], typer.Argument(metavar="SESSION…", help=ANY_FILE)],
    bin_s: Annotated[
        float | None, typer.Option("--bin-s", help="Width of a bin in seconds; 0.05, or that of prepared sessions.")
    ] = None,
    plots: Annotated[
        Path | None, typer.Option("--plots", metavar="FOLDER", help="Also draw a page (PNG) per session into FOLDER.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A threshold other than the one shown; may be repeated."),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 when anything is flagged.")] = False,
    unobserved: Unobserved = None,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Check the quality of sessions: what looks faulty, by which threshold, and how much of it.

    Rates, dead and duplicated channels, drift within the session, artefacts, silence, implausible labels, the lag
    between neurons and labels, gaps. Nothing is changed or removed.

    Example: [cyan]bci-adapt qc data_cache/sessions/*.nc --plots qc/ --json qc.json[/]
    """
    from bci_adapt.data.guarded_reading import opened
    from bci_adapt.data.qc import qc as check
    from bci_adapt.ground.storage import json_safe

    thresholds = _thresholds(settings or [])
    reports: list[QcReport] = []
    drawn: set[str] = set()
    with progress(quiet) as bar:
        for path in one_by_one(bar, "checking", sessions, lambda path: path.name):
            report = check(opened(path, bin_s, unobserved=unobserved), thresholds)
            reports.append(report)
            if plots is not None:
                _draw(report, plots / f"{_free(path.stem, drawn)}.png")
            if not quiet and json_file != "-":
                _show(report, path)
    if not quiet and json_file != "-" and len(reports) > 1:
        out.print(_overview(reports))
    if json_file is not None:
        entries = [{"file": str(path), **report.to_json()} for path, report in zip(sessions, reports, strict=True)]
        write_json(json_file, json_safe(entries))
    if strict and any(report.flagged for report in reports):
        raise typer.Exit(1)


def _thresholds(settings: list[str]) -> QcThresholds:
    from dataclasses import fields

    from bci_adapt.data.qc import QcThresholds
    from bci_adapt.ground.catalog import unknown

    known = {field.name: type(field.default) for field in fields(QcThresholds)}
    chosen: dict[str, Any] = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in known:
            raise InputError(unknown(name, list(known), "qc threshold"))
        try:
            chosen[name] = known[name](value)
        except ValueError:
            raise InputError(f"--set {setting}: expected {name}=NUMBER, got {value!r}") from None
    return QcThresholds(**chosen)


def _free(stem: str, drawn: set[str]) -> str:
    """A name for a plot that no other file of this call has."""
    name, number = stem, 2
    while name in drawn:
        name, number = f"{stem}-{number}", number + 1
    drawn.add(name)
    return name


def _draw(report: QcReport, target: Path) -> None:
    from bci_adapt.results.figures.recordings import qc_figure
    from bci_adapt.results.figures.run import save

    save(qc_figure(report), target)


def _table(title: str | None, *columns: str, right: tuple[str, ...] = ()) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False, padding=(0, 1, 0, 0)
    )
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def _show(report: QcReport, path: Path) -> None:
    from rich.text import Text

    from bci_adapt.data.qc import NOT_APPLICABLE, flagged_channels
    from bci_adapt.ground.text import clean

    about = report.session
    out.print()
    out.print(Text(clean(about["session_id"] or path.name), style="bold"), soft_wrap=True)
    said = f"{path}: {about['n_channels']} channels, {about['duration_s'] / 60:.1f} min (segments: "
    said += f"{about['n_segments']}), {about['observed_s'] / 60:.1f} min observed, bins of {about['bin_s']:g} s"
    if about["removed_channels"]:
        said += f"; {len(about['removed_channels'])} channels removed earlier"
    print_line(said)
    for line in _behaviour(report):
        print_line(line)

    table = _table(None, "check", "status", "flagged", "flags when", "found", right=("flagged",))
    for check in report.checks:
        counted = f"{check.n_flagged} of {check.n_total} {check.of}" if check.of else "–"
        status = Text("n/a" if check.status == NOT_APPLICABLE else check.status, style=_STATUS_STYLE[check.status])
        table.add_row(check.name, status, counted, Text(check.threshold), Text(clean(check.found, 400)))
    out.print(table)

    names = flagged_channels(report)
    if not names:
        return
    figures = {
        "rate_hz": ("Hz", ".3g"),
        "rate_z": ("z", ".1f"),
        "drift_log2": ("log2 drift", ".2f"),
        "fano": ("Fano", ".2g"),
        "correlation": ("r", ".2f"),
        "short_fraction": ("< 1 ms", ".2%"),
        "contamination": ("foreign", ".1%"),
        "coincident_fraction": ("coincident", ".1%"),
    }
    figures = {name: column for name, column in figures.items() if name in report.channels[0]}
    heads = [head for head, _ in figures.values()]
    table = _table(f"{len(names)} flagged channels", "channel", *heads, "flagged for", right=tuple(heads))
    for entry in (entry for entry in report.channels if entry["flags"]):
        if table.row_count == _SHOWN_CHANNELS:
            break
        numbers = ["–" if entry[name] is None else format(entry[name], form) for name, (_, form) in figures.items()]
        like = {"duplicated channels": f"duplicates {entry['partner']}"}
        why = [str(like.get(flag, flag)) for flag in entry["flags"]]
        table.add_row(Text(clean(entry["channel"], 40)), *numbers, Text(clean(", ".join(why), 200)))
    out.print(table)
    if len(names) > _SHOWN_CHANNELS:
        out.print(f"… and {len(names) - _SHOWN_CHANNELS} more; --json has all", style="dim", highlight=False)


def _behaviour(report: QcReport) -> list[str]:
    from bci_adapt.ground.text import clean

    behaviour, lines = report.behaviour, []
    if "speed" in behaviour:
        speed, name = behaviour["speed"], behaviour["speed_of"]
        lines.append(
            f"speed ({clean(behaviour['units'][name], 20)}, of {name}): median {speed['p50']:.3g}, 95 % below "
            f"{speed['p95']:.3g}, 99 % below {speed['p99']:.3g}"
        )
    if "range" in behaviour:
        spans = [f"{clean(axis, 20)} {low:.3g} … {high:.3g}" for axis, (low, high) in behaviour["range"].items()]
        lines.append(f"range of position ({clean(behaviour['units']['position'], 20)}): {', '.join(spans)}")
    trials = behaviour.get("trials")
    if trials and trials["n"]:
        results = ", ".join(f"{n} {clean(result, 20) or 'unnamed'}" for result, n in trials["results"].items())
        lasting = "" if trials["median_s"] is None else f", median {trials['median_s']:.2f} s"
        lines.append(f"{trials['n']} trials{lasting}: {results}")
    return lines or ["no labels"]


def _overview(reports: list[QcReport]) -> Table:
    from rich.text import Text

    from bci_adapt.data.qc import flagged_channels
    from bci_adapt.ground.text import clean

    right = ("min", "channels", "flagged", "best lag")
    table = _table(
        f"{len(reports)} sessions", "session", "min", "channels", "flagged", "best lag", "checks flagged", right=right
    )
    for report in reports:
        about, lag = report.session, report.lag
        table.add_row(
            Text(clean(about["session_id"], 60)),
            f"{about['duration_s'] / 60:.1f}",
            str(about["n_channels"]),
            str(len(flagged_channels(report))),
            f"{1000 * lag['peak_s']:g} ms" if lag else "–",
            Text(", ".join(report.flagged) or "none"),
        )
    return table
