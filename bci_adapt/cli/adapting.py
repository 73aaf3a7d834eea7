"""Commands for use from day to day: pretrain a decoder on the days so far, adapt it to the next one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bci_adapt.cli.common import (
    ANY_FILE,
    Axes,
    JsonFile,
    MatchedBy,
    Quiet,
    Unobserved,
    app,
    noting,
    out,
    progress,
    teller,
    write_json,
)
from bci_adapt.errors import InputError

if TYPE_CHECKING:
    from bci_adapt.live.adapting import Adapted

_EVERY_MIN = 10.0
_Checkpoint = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write there where it stands; the same command goes on from it when ended."),
]
_Every = Annotated[
    float | None,
    typer.Option("--every", metavar="MINUTES", help=f"Minutes of data between checkpoints; {_EVERY_MIN:g}."),
]


@app.command()
def pretrain(
    sessions: Annotated[
        list[Path],
        typer.Argument(
            metavar="SESSION...", help="Recordings or prepared sessions of one subject, the earliest first."
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE.npz", help="Where the decoder goes.")],
    target: Annotated[
        str, typer.Option(metavar="NAME", help="What is decoded: velocity, position, or velocity,position for both.")
    ] = "velocity",
    bin_s: Annotated[
        float | None,
        typer.Option("--bin", metavar="SECONDS", help="Width of a bin; 0.05, or that of prepared sessions."),
    ] = None,
    missing: Annotated[
        str,
        typer.Option(
            metavar="refuse|drop|zero",
            help="Channels that not every session has: refuse, keep the common ones, or count as silent.",
        ),
    ] = "refuse",
    by: Annotated[
        str | None,
        typer.Option(
            metavar="electrode|unit|pool|position",
            help="What a channel is on another day; columns without names and sorted units meet only as you say.",
        ),
    ] = None,
    axes: Axes = None,
    unobserved: Unobserved = None,
    seed: Annotated[int, typer.Option(min=0, help="Of initial weights and training windows.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Train the recommended decoder on the sessions there are: one network, carried from day to day.

    It is trained on the first session and then, a little, on all so far with each that is added. Files are recordings
    (.nwb), prepared sessions (.nc) or arrays (.npz, .mat); channels are matched by name, unless --by says otherwise.

    Example: [cyan]bci-adapt pretrain mon.nwb tue.nwb wed.nwb -o decoder.npz[/]
    """
    from bci_adapt.data.axes import parsed
    from bci_adapt.live import adapting as live

    _must_end(output, ".npz", sessions)
    with progress(quiet) as bar:
        say = teller(bar, "reading sessions")
        decoder = live.pretrain(
            sessions, target, bin_s, missing, say, by, axes=parsed(axes or ()), unobserved=unobserved, seed=seed,
            note=noting(quiet),
        )  # fmt: skip
        decoder.save(output)
    if not quiet:
        _print(f"{output}  {decoder.n_features_in_} channels → {target}, trained on {len(sessions)} sessions")


@app.command()
def adapt(
    decoder: Annotated[Path, typer.Argument(metavar="DECODER.npz", help="A saved decoder, of pretrain or of adapt.")],
    session: Annotated[Path, typer.Argument(metavar="SESSION", help=ANY_FILE)],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE.npz", help="Where the adapted decoder goes.")],
    predictions: Annotated[
        Path | None, typer.Option(metavar="FILE.nc", help="Also write what it predicted, bin by bin.")
    ] = None,
    stream_s: Annotated[
        float,
        typer.Option("--stream-s", metavar="SECONDS", help="How long it adapts, at most half of the session."),
    ] = 600.0,
    missing: Annotated[
        str, typer.Option(metavar="refuse|zero", help="Channels that the session lacks: refuse, or count as silent.")
    ] = "refuse",
    by: MatchedBy = None,
    checkpoint: _Checkpoint = None,
    every_min: _Every = None,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Adapt a decoder to a session, bin by bin: each is predicted before its label, which comes late, is learned.

    The rest of the session is predicted with weights held, and both parts are scored where the session has labels. A
    session without any adapts only what needs none. The adapted decoder is where the next session begins.

    A stream of hours is kept safe by --checkpoint: ended by whatever, the same command goes on from there, to the same
    numbers, and removes the checkpoint when it is done.

    Example: [cyan]bci-adapt adapt decoder.npz thu.nwb -o thu.npz --predictions thu.nc[/]
    """
    from bci_adapt.ground.storage import json_safe
    from bci_adapt.live import adapting as live
    from bci_adapt.live import predicting

    if missing not in ("refuse", "zero"):
        raise InputError(f"--missing takes refuse or zero, got {missing!r}")
    _must_end(output, ".npz", [session])
    _check_checkpoint(checkpoint, every_min, [decoder, session, output, *([predictions] if predictions else [])])
    if predictions is not None:
        _must_end(predictions, ".nc", [session, decoder])
    with progress(quiet or json_file == "-") as bar:
        say = teller(bar, f"adapting to {session.name}")
        done = live.adapt(
            decoder, session, stream_s, missing, by, checkpoint=checkpoint,
            every_s=60.0 * (_EVERY_MIN if every_min is None else every_min), say=say, note=noting(quiet),
        )  # fmt: skip
        done.decoder.save(output)
        if predictions is not None:
            predicting.write_prediction(done.prediction, predictions)
    if json_file is not None:
        write_json(json_file, json_safe(_as_json(done, output)))
    if done.checkpoint is not None:  # what it was kept for is written
        done.checkpoint.remove()
    if not quiet and json_file != "-":
        _tell(done, output)


def _as_json(done: Adapted, output: Path) -> dict[str, Any]:
    """What ``--json`` says of an adaptation."""
    return {
        "decoder": str(output), "session_id": done.prediction.attrs["session_id"], "stream_s": done.stream_s,
        "n_labels": done.n_labels, "weight_change": getattr(done.decoder, "weight_change_", None),
        "scores": done.scores, "notes": done.notes,
        "columns": None if done.columns is None else done.columns.to_json(),
    }  # fmt: skip


def _tell(done: Adapted, output: Path) -> None:
    from rich.table import Table
    from rich.text import Text

    from bci_adapt.results.table import number

    for note in done.notes:
        out.print(f"warning: {note}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    if done.scores:
        table = Table(title="R²", title_justify="left", box=None, pad_edge=False)
        for heading in ("variable", "bins", "online", "held out"):
            table.add_column(heading, justify="right" if heading in ("online", "held out") else "left")
        found = {(row["variable"], row["bins"], row["part"]): row["r2"] for row in done.scores}
        for variable, bins in dict.fromkeys((row["variable"], row["bins"]) for row in done.scores):
            both = (number(found[variable, bins, part]) for part in ("online", "held_out"))
            table.add_row(*map(Text, (variable, bins, *both)))
        out.print(table)
    bin_s = float(done.prediction.attrs["bin_s"])
    _print(f"{output}  adapted for {done.stream_s:.0f} s, {done.n_labels * bin_s:.0f} s of it with labels")


def _check_checkpoint(checkpoint: Path | None, every_min: float | None, others: list[Path]) -> None:
    """`InputError` where checkpoints have no file, no time between them, or the file of something else."""
    if checkpoint is None and every_min is not None:
        raise InputError("--every goes with --checkpoint FILE")
    if every_min is not None and not every_min > 0.0:
        raise InputError(f"--every takes minutes, more than 0, got {every_min:g}")
    if checkpoint is not None and checkpoint.resolve() in {path.resolve() for path in others}:
        raise InputError(f"--checkpoint {checkpoint}: is an input or an output, and would be overwritten")


def _must_end(output: Path, suffix: str, inputs: list[Path]) -> None:
    """`InputError` where an output is of another kind, or would overwrite an input."""
    if output.suffix != suffix:
        raise InputError(f"{output}: must end in {suffix}")
    if output.resolve() in {path.resolve() for path in inputs}:
        raise InputError(f"{output}: is an input, and would be overwritten")


def _print(text: str) -> None:
    out.print(text, markup=False, highlight=False, soft_wrap=True)
