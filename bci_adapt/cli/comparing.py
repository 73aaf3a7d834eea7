"""Commands for files of one's own: compare every way of adapting, predict with a saved decoder, explain a loss."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bci_adapt.cli.common import (
    ANY_FILE,
    Axes,
    Jobs,
    JsonFile,
    MatchedBy,
    Offline,
    OwnDecoders,
    Quiet,
    Unobserved,
    Verify,
    Workers,
    app,
    noting,
    out,
    progress,
    teller,
    write_json,
)
from bci_adapt.cli.experiments import tell_run
from bci_adapt.errors import InputError

if TYPE_CHECKING:
    from bci_adapt.experiment.explain import Explanation


LabelDelay = Annotated[float, typer.Option("--label-delay", metavar="SECONDS", help="How late labels become known.")]


_Files = Annotated[
    list[Path],
    typer.Argument(metavar="SOURCE TARGET...", help=f"Files of one subject, the earliest first. {ANY_FILE}"),
]
_Target = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="What is decoded: velocity (of the position; when not given), position, or a series of the files by its "
        "path or the end of it, such as cursor_vel.",
    ),
]
_By = Annotated[
    str | None, typer.Option(metavar="electrode|unit|pool|position", help="What a channel is on another day.")
]
_Missing = Annotated[str, typer.Option(metavar="refuse|drop|zero", help="Channels that not every session has.")]


@app.command()
def compare(
    files: _Files,
    target: _Target = None,
    bin_s: Annotated[
        float | None,
        typer.Option("--bin", metavar="SECONDS", help="Width of a bin; 0.05, or that of prepared sessions."),
    ] = None,
    stream_s: Annotated[
        float,
        typer.Option("--stream", metavar="SECONDS", help="Adaptation stream of each target, at most half of it."),
    ] = 600.0,
    label_delay_s: LabelDelay = 0.5,
    cells: Annotated[str | None, typer.Option(metavar="NAMES", help="Networks: tanh,gru when not given.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Seeds of the networks; 3, or 1 with --quick.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A first look: one small network, one seed, no sweeps of the labels.")
    ] = False,
    by: _By = None,
    missing: _Missing = "refuse",
    axes: Axes = None,
    unobserved: Unobserved = None,
    decoders: OwnDecoders = None,
    workers: Workers = None,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Compare every way of adapting on your own recordings: trained on the first, tried on each later one.

    The beginning of a target is the adaptation stream, the rest is held out: ten minutes or more a file are needed for
    scores that mean something. Nothing is tuned. The config is written beside the results; [bold]run[/] repeats it, and
    is the place to change more than the options here.

    Example: [cyan]bci-adapt compare mon.nwb tue.nwb --target cursor_vel --bin .02[/]

    Example: [cyan]bci-adapt compare mon.nwb tue.nwb wed.nwb --quick --decoder mine.py:Mine[/]
    """
    from bci_adapt.data.axes import parsed
    from bci_adapt.experiment.comparing import compare_config, width_of
    from bci_adapt.experiment.foreign import Foreign
    from bci_adapt.experiment.run import run_experiment

    own = [Foreign.parse(text) for text in decoders or ()]
    with progress(quiet) as bar:
        say = teller(bar, "reading recordings")
        width_s = width_of(files) if bin_s is None else bin_s
        config = compare_config(
            files, target, bin_s=width_s, stream_s=stream_s, label_delay_s=label_delay_s, cells=cells, seeds=seeds,
            quick=quick, by=by, missing=missing, axes=parsed(axes or ()), unobserved=unobserved, workers=workers,
            progress=Jobs(bar),
        )  # fmt: skip
        done = run_experiment(
            config,
            workers=workers,
            progress=Jobs(bar),
            say=say,
            note=noting(quiet),
            command=shlex.join(["bci-adapt", *sys.argv[1:]]),
            foreign=own,
        )
    tell_run(done, config, json_file, quiet)


@app.command()
def predict(
    decoder: Annotated[Path, typer.Argument(metavar="DECODER.npz", help="A decoder that was saved (Decoder.save).")],
    session: Annotated[Path, typer.Argument(metavar="SESSION", help=ANY_FILE)],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE.nc", help="Where the prediction goes.")],
    missing: Annotated[
        str, typer.Option(metavar="refuse|zero", help="Channels that the session lacks: refuse, or count as silent.")
    ] = "refuse",
    by: MatchedBy = None,
    quiet: Quiet = False,
) -> None:
    """Predict movement from the spikes of a session with a saved decoder; the session needs no movement of its own.

    Channels are matched by name, the decoder's normaliser goes on from bin to bin, its weights stay. Runs leave their
    decoders in data_cache/decoders; one of your own that was fitted on a session (fit(session,
    "velocity").save("tue.npz")) knows its channels, too. FILE.nc holds predicted_<variable> (time, axis).
    Example: [cyan]bci-adapt predict tue.npz wed.nwb -o wed.nc[/]
    """
    from bci_adapt.live import predicting

    if missing not in ("refuse", "zero"):
        raise InputError(f"--missing takes refuse or zero, got {missing!r}")
    if output.suffix != ".nc":
        raise InputError(f"--output {output}: must end in .nc")
    if output.resolve() in (decoder.resolve(), session.resolve()):
        raise InputError(f"--output {output}: is the session itself, and would be overwritten")
    with progress(quiet) as bar:
        teller(bar, f"predicting {session.name}")
        made, notes = predicting.predict(decoder, session, missing, by)
        predicting.write_prediction(made, output)
    if quiet:
        return
    for note in notes:
        out.print(f"warning: {note}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    names = ", ".join(
        f"{name} ({made[name].attrs['units']})" for name in made.data_vars if str(name).startswith("pred")
    )
    minutes = made.sizes["time"] * made.attrs["bin_s"] / 60.0
    text = f"{output}  {names}, {made.sizes['time']} bins, {minutes:.1f} min"
    out.print(text, markup=False, highlight=False, soft_wrap=True)


@app.command()
def explain(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run, below data_cache/runs.")],
    pair: Annotated[str, typer.Argument(metavar="SOURCE:TARGET", help="Parts of the ids of its two sessions.")],
    variable: Annotated[
        str | None, typer.Option(metavar="NAME", help="The kinematic, of several; the run's first when not given.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the recordings, where the run was given it by --data.")
    ] = None,
    workers: Workers = None,
    offline: Offline = False,
    verify: Verify = False,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Say where the R² of a pair went: normaliser, channels, lag or labels, each by a counterfactual run.

    A decoder of the source day is held as it is, and one thing about the target is undone at a time: its statistics are
    given, the channels that changed most are put to their mean, counts are moved in time; then labels are used. How
    many channels, and which lag, is chosen on the adaptation stream; scores are of the held-out part. This is a
    diagnosis made with labels afterwards, no decoder. Parts overlap, and need not add up to the loss.

    Example: [cyan]bci-adapt explain data_cache/runs/compare-0123456789 mon:tue[/]
    """
    from bci_adapt.experiment.explain import explain as run_explain
    from bci_adapt.ground.storage import json_safe

    notes, show = list[str](), noting(quiet)

    def note(text: str) -> None:
        notes.append(text)
        show(text)

    with progress(quiet) as bar:
        say = teller(bar, "reading the run")
        found, jobs = run_explain(
            run, pair, variable=variable, data=data, workers=workers, progress=Jobs(bar), say=say, note=note,
            offline=offline, verify=verify, sure=quiet,
        )  # fmt: skip
    if json_file is not None:
        written = {"decoders": [each.to_json() for each in found], "jobs": jobs, "notes": notes}
        write_json(json_file, json_safe(written))
    if quiet or json_file == "-":
        return
    for each in found:
        _say_explanation(each)
    done = f"{jobs['executed']} jobs executed, {jobs['reused']} reused"
    out.print(f"Parts overlap and need not add up; intervals are of blocks of time in one pair. {done}", style="dim")


def _say_explanation(found: Explanation) -> None:
    from rich.table import Table
    from rich.text import Text

    from bci_adapt.results.table import number

    title = f"{found.decoder}: R² of {found.variable}, {found.source} → {found.target}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for heading in ("", "R²", "95 %", "against frozen", "95 %"):
        table.add_column(heading, justify="left" if not heading else "right", ratio=None, no_wrap=bool(heading))
    for row in found.rows:
        cells = [row.what, number(row.r2), f"{number(row.low)} … {number(row.high)}"]
        if row.change is not None and row.change_low is not None and row.change_high is not None:
            sign = "+" if row.change > 0 else ""
            cells += [sign + number(row.change), f"{number(row.change_low)} … {number(row.change_high)}"]
        table.add_row(*map(Text, cells), style="bold" if row.part == found.cause else "")
    out.print(table)
    for text in (found.words + ".", *found.notes):
        out.print(text, markup=False, highlight=False, soft_wrap=True)
    out.print()
