"""The command that leads a decoder live: bins and labels in, predictions out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bci_adapt.cli.common import JsonFile, MatchedBy, Quiet, app, err, write_json
from bci_adapt.errors import InputError
from bci_adapt.ground.text import printable

if TYPE_CHECKING:
    from bci_adapt.live.decoder import LiveDecoder
    from bci_adapt.live.log import Event
    from bci_adapt.live.serving import Served

_SOURCES, _SINKS = ("replay:…", "jsonl:…"), ("jsonl:…", "none")


_Decoder = Annotated[
    Path, typer.Option(metavar="FILE.npz", help="A saved decoder, or a checkpoint of this command to go on from.")
]
_Source = Annotated[
    str,
    typer.Option(
        metavar="replay:SESSION|jsonl:FILE", help="A session as it would come, or lines of JSON; - is standard input."
    ),
]
_Sink = Annotated[
    str,
    typer.Option(metavar="jsonl:FILE|none", help="Where each prediction goes as a line of JSON; - is standard output."),
]
_Labels = Annotated[
    str,
    typer.Option(
        metavar="delay|trial_end|none",
        help="When labels of a replayed session come: after the decoder's delay, when their trial ends, or never.",
    ),
]
_Wait = Annotated[
    float | None,
    typer.Option("--wait", metavar="SECONDS", help="How long a bin waits for its label; the decoder's delay."),
]
_Speed = Annotated[str, typer.Option(metavar="1|max", help="Replay in its own time, or as fast as it goes.")]
_Guards = Annotated[bool, typer.Option(help="Stop learning where predictions, errors or updates run away.")]
_Canary = Annotated[bool, typer.Option(help="Lead a decoder of shuffled channels along, which must not decode.")]
_Log = Annotated[
    Path | None, typer.Option(metavar="FILE.jsonl", help="A new file for every decision, a line of JSON each.")
]
_Check = Annotated[
    Path | None,
    typer.Option(metavar="LOG.jsonl", help="Hold this stream to the log of an earlier session, and write nothing."),
]
_Checkpoint = Annotated[
    Path | None,
    typer.Option(metavar="FILE.npz", help="Write there where it stands, every so often and at the end."),
]
_Every = Annotated[float, typer.Option("--every", metavar="MINUTES", help="Minutes of data between checkpoints.")]
_Missing = Annotated[
    str, typer.Option(metavar="refuse|zero", help="Channels that the session lacks: refuse, or count as silent.")
]


@app.command()
def live(
    decoder: _Decoder,
    source: _Source,
    sink: _Sink = "jsonl:-",
    labels: _Labels = "delay",
    wait_s: _Wait = None,
    speed: _Speed = "max",
    guards: _Guards = True,
    canary: _Canary = False,
    log: _Log = None,
    check: _Check = None,
    checkpoint: _Checkpoint = None,
    every_min: _Every = 10.0,
    missing: _Missing = "refuse",
    by: MatchedBy = None,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Decode live: every bin is predicted as it comes, labels are learned from when they come (docs/rig.md).

    Lines that come in are {"counts": [...], "time_s": ...}, {"label": [...], "time_s": ...} and {"do": "pause"}; each
    bin goes out as {"prediction": [...], "time_s": ..., "mode": ...}. What is to be known is said on standard error.

    Example: [cyan]bci-adapt live --decoder decoder.npz --source replay:thu.nc --sink none --json live.json[/]
    """
    from bci_adapt.ground.storage import json_safe
    from bci_adapt.live.opening import live as opened
    from bci_adapt.live.serving import Server, status

    _check(labels, speed, every_min, json_file, sink, missing)
    tell = (lambda text: None) if quiet else _tell
    wrong = _Wrong(tell)
    events = _events(source, decoder, labels, missing, by, tell, wrong)
    if check is not None:
        from bci_adapt.live.log import replay

        digest = replay(check, decoder, events).weights_digest
        tell(f"{check}: every decision came out again, and the same weights ({digest[:16]})")
        return
    led = opened(decoder, wait_s, guards, canary, log)
    if source.startswith("replay:"):
        events = islice(events, led.fed, None)  # a checkpoint has gone through these
    led.warm_up()
    tell(f"{decoder}: {led.n_inputs} inputs → {led.n_outputs} outputs, bins of {led.bin_s:g} s; ready")
    with _shown(sink) as show:
        server = Server(led, show, 0.0 if speed == "max" else 1.0, checkpoint, 60.0 * every_min, tell, tell)
        try:
            served = server.run(events)
        finally:
            led.close()
    if json_file is not None:
        write_json(json_file, json_safe(_summary(led, served, wrong.n)))
    tell(f"the stream has ended: {status(led, served)}")


class _Wrong:
    """Counts lines that say nothing, and tells of the first."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.n, self._tell = 0, tell

    def __call__(self, why: str) -> None:
        self.n += 1
        if self.n == 1:
            self._tell(f"a line says nothing, the first of its kind: {why}")


def _check(labels: str, speed: str, every_min: float, json_file: str | None, sink: str, missing: str) -> None:
    from bci_adapt.live.streams import LABELS

    if labels not in LABELS:
        raise InputError(f"--labels takes {', '.join(LABELS)}, got {labels!r}")
    if missing not in ("refuse", "zero"):
        raise InputError(f"--missing takes refuse or zero, got {missing!r}")
    if speed not in ("1", "max"):
        raise InputError(f"--speed takes 1 or max, got {speed!r}")
    if not every_min > 0.0:
        raise InputError(f"--every takes minutes, more than 0, got {every_min:g}")
    if json_file == "-" and sink == "jsonl:-":
        raise InputError("--json and --sink both go to standard output: give one of them a file, or --sink none")


def _events(
    source: str, decoder: Path, labels: str, missing: str, by: str | None, tell: Callable[[str], None], wrong: _Wrong
) -> Iterator[Event]:
    """What comes from a source; `InputError` for one that there is not."""
    from bci_adapt.decoders.base import Decoder
    from bci_adapt.live import streams

    kind, name = streams.kind_of(source, _SOURCES, "--source")
    if kind == "jsonl":
        return streams.read_lines(streams.lines_of(name), wrong)
    arrays, notes = streams.of_session(decoder, Path(name), missing, by)
    for note in notes:
        tell(note)
    return streams.replayed(arrays, getattr(Decoder.load(decoder), "label_delay_s", None), labels)


@contextmanager
def _shown(sink: str) -> Iterator[Callable[..., None]]:
    """What shows a prediction."""
    from bci_adapt.live import streams

    if sink == "none":
        yield lambda prediction, time_s, mode: None
        return
    _, name = streams.kind_of(sink, _SINKS, "--sink")
    file = streams.written(name)

    def show(prediction: Any, time_s: float | None, mode: str) -> None:
        file.write(streams.line_of(prediction, time_s, mode))
        file.flush()

    try:
        yield show
    finally:
        if name != "-":
            file.close()


def _summary(led: LiveDecoder, served: Served, unreadable: int) -> dict[str, Any]:
    return {
        "state": led.state, "r2": led.score, "latency": served.summary(), "refused": served.refused,
        "unreadable": unreadable, "settings": led.settings, "bin_s": led.bin_s, "weights": led.weights_digest,
    }  # fmt: skip


def _tell(text: str) -> None:
    err.print(printable(text), markup=False, highlight=False, soft_wrap=True)
