"""Commands about change: drift between sessions, and the choice of bin width and lag."""

from __future__ import annotations

from collections.abc import Callable
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
    teller,
    write_json,
)
from bci_adapt.errors import InputError

if TYPE_CHECKING:
    import xarray as xr
    from rich.table import Table

    from bci_adapt.data.same_columns import SameColumns

Plot = Annotated[Path | None, typer.Option("--plot", metavar="FILE.png", help="Also draw it (png, svg or pdf).")]
Variable = Annotated[str, typer.Option("--variable", metavar="NAME", help="The kinematic that neurons are related to.")]


def _check_plot(plot: Path | None) -> None:
    if plot is not None and plot.suffix not in (".png", ".svg", ".pdf"):
        raise InputError(f"--plot {plot}: must end in .png, .svg or .pdf")


By = Annotated[
    str | None,
    typer.Option(
        metavar="electrode|unit|pool|position", help="What a channel is on another day; that of SOURCE if not given."
    ),
]


@app.command()
def drift(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help=f"The earlier session. {ANY_FILE}")],
    targets: Annotated[list[Path], typer.Argument(metavar="TARGET...", help="Sessions to compare with it.")],
    bin_s: Annotated[
        float | None, typer.Option("--bin-s", help="Width of a bin in seconds; 0.05, or that of prepared sessions.")
    ] = None,
    variable: Variable = "velocity",
    lag_s: Annotated[
        float, typer.Option("--lag", help="Lag of tuning in seconds; positive: neurons lead the movement.")
    ] = 0.1,
    block_s: Annotated[
        float, typer.Option("--block-s", help="Length in seconds of a block of the bootstrap, 5 or more.")
    ] = 20.0,
    by: By = None,
    unobserved: Unobserved = None,
    plot: Plot = None,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Show what changed between sessions: rates, preferred directions, tuned channels, distributions, behaviour.

    Channels are matched by name. Sorted units and columns without names are compared with no others by themselves,
    because their numbers say nothing about another day: say --by pool to sum units on their electrodes, unit where
    units were matched across days, or position for columns that are the same. Whether columns of one name are one
    channel is asked of the counts, and told first. In parentheses: the two halves of the source session, as baseline. A
    change of behaviour changes neurons too, so that is shown as well. What a decoder loses is what [bold]run[/] shows.

    Example: [cyan]bci-adapt drift monday.nwb tuesday.nwb october.nwb --plot drift.png[/]
    """
    from bci_adapt.data import channels
    from bci_adapt.data import drift as measure
    from bci_adapt.data.guarded_reading import opened
    from bci_adapt.data.same_columns import same_columns
    from bci_adapt.data.sessions import require_one_subject
    from bci_adapt.ground.storage import json_safe

    _check_plot(plot)
    settings = measure.Settings(lag_s=lag_s, block_s=block_s)
    found, judged = [], []
    with progress(quiet or json_file == "-") as bar:
        session = opened(source, bin_s, unobserved=unobserved)
        policy = by or channels.policy_of(session)
        judged.append(channels.under(session, policy))
        first = measure.day(judged[0], variable)
        for path in one_by_one(bar, "reading", targets, lambda path: path.name):
            other = opened(path, bin_s, unobserved=unobserved)
            require_one_subject([session, other])
            judged.append(channels.under(other, policy))
            second = measure.day(judged[-1], variable)
            found.append(measure.drift(first, second, settings).to_json() | {"channel_policy": policy})
        columns = same_columns(judged)
    if variable != "velocity" and all(each["across"]["tuning"] is None for each in found) and first.labels is None:
        raise InputError(f"{source}: there is no kinematic variable {variable!r}")
    if plot is not None:
        _draw_drift(found, plot)
    if json_file is not None:
        write_json(json_file, json_safe({"source": found[0]["source"], "columns": columns.to_json(), "targets": found}))
    if not quiet and json_file != "-":
        _say_columns(columns)
        _say_drift(found, settings, plot)


def _say_columns(columns: SameColumns) -> None:
    from bci_adapt.data.same_columns import SAME

    for each in columns.sessions if columns.findings else columns.sessions[1:]:
        _line(each.sentence, "" if each.verdict == SAME else "yellow")


def _draw_drift(found: list[dict[str, Any]], plot: Path) -> None:
    from bci_adapt.results.figures.drift import drift_figure
    from bci_adapt.results.figures.run import save

    save(drift_figure(found), plot)


def _say_drift(found: list[dict[str, Any]], settings: Any, plot: Path | None) -> None:
    behaviour = {found[0]["source"]: found[0]["behaviour"]["source"]}
    behaviour |= {each["target"]: each["behaviour"]["target"] for each in found}
    _line(f"drift from {found[0]['source']}; in parentheses: the halves of that session against each other", "bold")
    out.print(_drift_table(found))
    first = found[0]
    _line(
        "Rates: median |log ratio|, share of channels changed (Benjamini-Hochberg "
        f"{100 * settings.fdr:g} %). Tuning to {first['variable']} {1000 * settings.lag_s:g} ms later: channels tuned "
        "in source only / both / target only; median change of preferred direction with its "
        f"{100 * settings.level:g} % interval, noise included, and how much it is above the halves'; correlation r of "
        "tuning vectors, and how alike they are with noise taken out (1: as before). Distances: Gaussian KL in "
        f"{first['across']['distance']['n_dims']} principal components, MMD² with p of permuted blocks."
    )
    out.print()
    out.print(_behaviour_table(behaviour, found))
    for each in found:
        for note in each["notes"]:
            _line(f"{each['target']}: {note}", "yellow")
    if plot is not None:
        _line(f"figure: {plot}")


def _line(text: str, style: str = "") -> None:
    from bci_adapt.ground.text import clean

    print_line(clean(text), style)


def _drift_table(found: list[dict[str, Any]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    from bci_adapt.ground.text import clean
    from bci_adapt.results.figures.drift import short_names

    table = Table(box=None, pad_edge=False, header_style="bold", collapse_padding=True)
    table.add_column("target")
    for name in (
        "days",
        "channels",
        "|Δlog rate|",
        "changed",
        "tuned",
        "PD change (°)",
        "above",
        "alike",
        "KL",
        "MMD² (p)",
    ):
        table.add_column(name, justify="right", no_wrap=name not in ("channels",))

    names = short_names([found[0]["source"], *(each["target"] for each in found)])[1:]
    for name, each in zip(names, found, strict=True):
        channels = {key: len(labels) for key, labels in each["channels"].items()}
        common = f"{channels['common']} +{channels['only_target']} -{channels['only_source']}"
        gap = "unknown" if each["day_gap"] is None else f"{each['day_gap']:+d}"
        across, within = _cells(each["across"]), [f"({cell})" for cell in _cells(each["within"])]
        above = _spanned(each["pd_excess_deg"], "+.0f")
        table.add_row(Text(clean(name, 40)), gap, common, *across[:4], above, *across[4:])
        table.add_row("", "", "", *within[:4], "", *within[4:], style="dim")
    return table


def _number(value: float | None, form: str) -> str:
    return "–" if value is None or value != value else format(value, form)


def _spanned(estimate: dict[str, float] | None, form: str) -> str:
    if estimate is None or estimate["value"] != estimate["value"]:
        return "–"
    return f"{estimate['value']:{form}} [{estimate['low']:{form}}, {estimate['high']:{form}}]"


def _cells(change: dict[str, Any]) -> list[str]:
    """Cells of one comparison: rates, tuning, distances."""
    rates, tuning, distance = change["rates"], change["tuning"], change["distance"]
    told = ["–"] * 3
    if tuning is not None:
        turnover = tuning["turnover"]
        told = [
            f"{turnover['first_only']}/{turnover['both']}/{turnover['second_only']}",
            _spanned(tuning["median_pd_change_deg"], ".0f"),
            f"{tuning['correlation']['value']:.2f}, {_number(tuning['corrected_similarity']['value'], '.2f')}",
        ]
    return [
        _number(rates["median_abs_log_ratio"], ".2f"),
        f"{100 * rates['share_changed']:.0f} %",
        told[0],
        told[1],
        told[2],
        _number(distance["kl_nats"], ".2f"),
        f"{_number(distance['mmd2'], '.3f')} ({_number(distance['mmd_p'], '.3f')})",
    ]


def _behaviour_table(behaviour: dict[str, dict[str, Any]], found: list[dict[str, Any]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    from bci_adapt.ground.text import clean
    from bci_adapt.results.figures.drift import short_names

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("behaviour")
    unit = clean(found[0]["unit"], 20)
    what = "speed" if found[0]["variable"].endswith("velocity") else "size"
    for name in (
        "minutes",
        "labelled",
        Text(f"{what} 10/50/90 %{f' ({unit})' if unit else ''}"),
        "direction distance",
        "range",
        "trials",
        "success",
        "trial (s)",
    ):
        table.add_column(name, justify="right")
    apart = [f"({_number(found[0]['within']['direction_distance'], '.2f')})"]
    apart += [_number(each["across"]["direction_distance"], ".2f") for each in found]
    for name, day, distance in zip(short_names(list(behaviour)), behaviour.values(), apart, strict=False):
        table.add_row(
            Text(clean(name, 40)),
            f"{day['duration_s'] / 60:.1f}",
            f"{day['labelled_s'] / 60:.1f}",
            " / ".join(f"{speed:.3g}" for speed in day["speed_quantiles"].values()) or "–",
            distance,
            " × ".join(f"{extent:.3g}" for extent in day["position_range"]) or "–",
            str(day["n_trials"]),
            "–" if day["success_rate"] is None else f"{100 * day['success_rate']:.0f} %",
            _number(day["median_trial_s"], ".1f"),
        )
    return table


@app.command()
def scan(
    session: Annotated[Path, typer.Argument(metavar="SESSION", help=f"A source session. {ANY_FILE}")],
    bins: Annotated[
        str, typer.Option("--bin", metavar="S,S,...", help="Bin widths in seconds. A .nc can only be made wider.")
    ],
    lag: Annotated[
        str,
        typer.Option(
            "--lag", metavar="FROM:TO[:STEP]", help="Lags in seconds; positive: neurons lead. Write --lag=-.1:.3."
        ),
    ] = "-0.1:0.3",
    variable: Variable = "velocity",
    history_s: Annotated[
        float | None,
        typer.Option("--history-s", help="Window of spikes, the same for all widths; their least common multiple."),
    ] = None,
    block_s: Annotated[
        float, typer.Option("--block-s", help="Length in seconds of a stretch of the cross-validation, 10 or more.")
    ] = 20.0,
    plot: Plot = None,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Score bin widths and lags by a cross-validated ridge decoder, to choose both before an experiment.

    A positive lag means that neurons lead: spikes up to t decode the movement at t + lag. Scores of different bin
    widths are compared after averaging to one common resolution. Scan source sessions only: numbers chosen on a target
    session are not independent of its test score.

    Example: [cyan]bci-adapt scan monday.nwb --bin .01,.02,.05 --lag=-.1:.3 --plot scan.png[/]
    """
    from bci_adapt.data.scan import scan as score
    from bci_adapt.ground.storage import json_safe

    _check_plot(plot)
    widths, (lags_s, step_s) = _numbers(bins, ",", "--bin"), _lags(lag)
    with progress(quiet or json_file == "-") as bar:
        found = score(
            _at_widths(session, widths, variable),
            widths,
            lags_s,
            variable=variable,
            step_s=step_s,
            history_s=history_s,
            block_s=block_s,
            say=teller(bar, "reading"),
        ).to_json()
    if plot is not None:
        from bci_adapt.results.figures.drift import scan_figure
        from bci_adapt.results.figures.run import save

        save(scan_figure(found), plot)
    if json_file is not None:
        write_json(json_file, json_safe(found))
    if not quiet and json_file != "-":
        _say_scan(found, plot)


def _at_widths(path: Path, widths: list[float], variable: str) -> Callable[[float], xr.Dataset]:
    """What gives the session at a bin width: one that is binned already made wider, or spikes binned anew. Counts that
    do not say how wide their bins are have the narrowest of `widths`.
    """
    from bci_adapt.data.guarded_reading import bins_of, opened
    from bci_adapt.data.scan import rebin

    binned, own_s = bins_of(path)
    if not binned:
        return lambda bin_s: opened(path, bin_s)
    whole = opened(path, min(widths) if own_s is None else own_s)
    return lambda bin_s: rebin(whole, bin_s, variable)


def _lags(text: str) -> tuple[tuple[float, float], float | None]:
    """First and last lag, and the step between lags where one is given."""
    lags = _numbers(text, ":", "--lag")
    if len(lags) not in (2, 3):
        raise InputError(f"--lag {text}: expected FROM:TO or FROM:TO:STEP in seconds, such as --lag=-.1:.3")
    return (lags[0], lags[1]), lags[2] if len(lags) == 3 else None


def _numbers(text: str, separator: str, option: str) -> list[float]:
    try:
        return [float(part) for part in text.split(separator)]
    except ValueError:
        raise InputError(f"{option} {text}: expected numbers of seconds separated by {separator!r}") from None


def _say_scan(found: dict[str, Any], plot: Path | None) -> None:
    from rich.table import Table

    common = f"{1000 * found['common_s']:g} ms"
    _line(f"{found['session_id']}: {found['variable']} from √counts, ridge, {found['n_folds']}-fold", "bold")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in (
        "bin (ms)",
        "best lag (ms)",
        f"R² at {common}",
        "± sd over folds",
        "R² of the bins",
        "lags scanned (ms)",
    ):
        table.add_column(name, justify="right")
    best = found["best"]
    for width in sorted({score["bin_s"] for score in found["scores"]}):
        row = [score for score in found["scores"] if score["bin_s"] == width]
        top = max(row, key=lambda score: score["r2_common"])
        table.add_row(
            f"{1000 * width:g}",
            f"{1000 * top['lag_s']:g}",
            f"{top['r2_common']:.3f}",
            f"{top['r2_common_sd']:.3f}",
            f"{top['r2']:.3f}",
            f"{1000 * row[0]['lag_s']:g} … {1000 * row[-1]['lag_s']:g}",
            style="bold" if top == best else "",
        )
    out.print(table)
    _line(
        f"Positive lag: neurons lead. Every width sees the last {1000 * found['history_s']:g} ms of spikes; compared "
        f"at {common} over {found['seconds_scored']:.0f} s, in stretches of {found['block_s']:g} s with "
        f"{found['gap_s']:g} s between folds."
    )
    for note in found["notes"]:
        _line(note, "yellow")
    _line(found["caution"], "yellow")
    if plot is not None:
        _line(f"figure: {plot}")
