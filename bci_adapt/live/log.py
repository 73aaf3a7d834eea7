"""The log of a live decoder: every decision a line of JSON, and a replay of it that must come to the same weights."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from bci_adapt.errors import InputError
from bci_adapt.ground.storage import NOT_THROUGH_LINKS, json_safe
from bci_adapt.ground.text import clean
from bci_adapt.ground.version import __version__


class Event(NamedTuple):
    """What comes to a live decoder: a bin's counts (n_inputs,), or a label (n_outputs,), and the bin's stamp (s)."""

    kind: str  # "bin" or "label"
    values: Any
    time_s: float | None


class Log:
    """A file of JSON lines, each appended whole by one write; `lost` counts those that could not be written, which
    stops no decoder.
    """

    def __init__(self, path: Path | str) -> None:
        self.path, self.lost = Path(path), 0
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | NOT_THROUGH_LINKS
        try:
            self._file = os.open(self.path, flags, 0o644)
        except FileExistsError as error:
            raise InputError(f"{self.path}: expected a new file for the log, this is there: name another") from error
        except OSError as error:
            raise InputError(f"{self.path}: the log cannot be written: {error.strerror}") from error

    def write(self, entry: Mapping[str, Any]) -> None:
        """Append one line, with the time of day."""
        line = json.dumps(json_safe({**entry, "at": datetime.now(UTC).isoformat(timespec="milliseconds")}))
        try:
            os.write(self._file, (line + "\n").encode())
        except OSError:
            self.lost += 1

    def close(self) -> None:
        """Nothing more is written, and what was is on the disk."""
        try:
            os.fsync(self._file)
        except OSError:
            self.lost += 1
        os.close(self._file)


class _Against:
    """A log that is held, line by line, to the `entries` of one that was written; what was cut off does not count."""

    def __init__(self, path: Path | str, entries: list[dict[str, Any]]) -> None:
        self.path, self.entries, self.at, self.lost = path, entries, 0, 0

    def write(self, entry: Mapping[str, Any]) -> None:
        ours = json.loads(json.dumps(json_safe(dict(entry))))
        if self.at == len(self.entries):
            if ours["event"] >= self.entries[-1]["event"] and self.entries[-1]["what"] != "closed":
                return
            theirs: dict[str, Any] = {}
        else:
            theirs = {key: value for key, value in self.entries[self.at].items() if key != "at"}
        self.at += 1
        if theirs != ours:
            raise InputError(
                f"{self.path}: line {self.at}: the log says {clean(json.dumps(theirs), 300)}, its replay came to "
                f"{clean(json.dumps(ours), 300)}: another decoder, stream or version, or the log was changed"
            )

    def close(self) -> None:
        if self.at < len(self.entries):
            missed = clean(json.dumps(self.entries[self.at]), 300)
            raise InputError(f"{self.path}: line {self.at + 1}: the replay came to no such decision: {missed}")


def first_entry(live: Any) -> dict[str, Any]:
    """What a log begins with: what is needed to lead the same decoder through the same stream."""
    about = {"bin_s": live.bin_s, "n_inputs": live.n_inputs, "n_outputs": live.n_outputs}
    weights = {"weights": live.weights_digest, "decoder": live._driver.decoder.name}
    return {"version": __version__, "settings": live.settings, **about, **weights}


def read(path: Path | str) -> list[dict[str, Any]]:
    """The entries of a log; a last line that was cut, as where the power failed, is left out. `InputError` for a file
    that is none.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: the log of a live decoder was expected, it cannot be read: {error}") from error
    entries = []
    for number, line in enumerate(lines[:-1], start=1):  # what ends in no newline was not written whole
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: line {number}: expected JSON, got {clean(line, 60)}") from error
        if not isinstance(entry, dict) or not isinstance(entry.get("event"), int) or "what" not in entry:
            raise InputError(f"{path}: line {number}: expected a decision with event and what, got {clean(line, 60)}")
        entries.append(entry)
    if not entries or entries[0]["what"] != "started" or not isinstance(entries[0].get("settings"), dict):
        raise InputError(f"{path}: the log of a live decoder was expected, it begins with no start")
    return entries


def replay(path: Path | str, decoder: Any, events: Iterable[Event]) -> Any:
    """Lead a decoder through its stream again, with what was done by hand, and hold every decision to the log.

    Parameters
    ----------
    path : the log.
    decoder : the decoder, or its file, as it was when the log began: a checkpoint where it began with one.
    events : the stream: bins and labels in the order in which they came.

    Returns
    -------
    The live decoder, as it stood at the log's end.

    Raises
    ------
    InputError
        for a log that is none, another decoder, a stream that ends early, and the first decision that came out
        differently, which is named.
    """
    from bci_adapt.live.opening import live

    entries = read(path)
    led = live(decoder, **entries[0]["settings"])
    log = _Against(path, entries)
    led._log = log
    led._note("started", **first_entry(led))
    by_hand = [entry for entry in entries if entry.get("by") == "hand"]
    stream, last = iter(events), entries[-1]["event"]
    while led.events < last:
        if by_hand and by_hand[0]["event"] == led.events + 1:
            _done_by_hand(led, path, by_hand.pop(0))
        else:
            _feed(led, stream, path, last)
    if entries[-1]["what"] == "closed":
        led.close()
    log.close()
    led._log = None
    return led


def _feed(led: Any, stream: Iterator[Event], path: Path | str, last: int) -> None:
    event = next(stream, None)
    if event is None:
        raise InputError(f"{path}: the stream ends after {led.events} events, the log goes to {last}: it is of another")
    if event.kind not in ("bin", "label"):
        return  # what was done by hand stands in the log
    before = led.events
    try:
        (led.predict if event.kind == "bin" else led.learn)(event.values, event.time_s)
    except InputError:
        if led.events != before:  # else it was refused then, too
            raise


def _done_by_hand(led: Any, path: Path | str, entry: Mapping[str, Any]) -> None:
    doings: dict[str, Callable[[], Any]] = {
        "paused": led.pause,
        "frozen": led.freeze,
        "resumed": led.resume,
        "marked": lambda: led.mark(entry["name"]),
        "rolled back": lambda: led.roll_back(entry["to"]),
        "checkpoint": led._begin_checkpoint,
    }
    if entry["what"] not in doings:
        raise InputError(f"{path}: expected something that can be done by hand, got {clean(entry['what'], 60)}")
    doings[entry["what"]]()
