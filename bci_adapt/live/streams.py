"""What a live decoder is fed from, and where its predictions go: a session that is replayed, or lines of JSON.

A line that comes in is one of

    {"counts": [0, 2, 1], "time_s": 12.34}      a bin; null for a channel that was not observed; time_s may be missing
    {"label": [0.1, -3.2], "time_s": 11.84}     the label of the bin with this stamp; null where an output has none
    {"do": "pause"}                             or freeze, resume, checkpoint; roll_back takes "to", mark a "name"

and each bin comes out as {"prediction": […], "time_s": …, "mode": …}.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from bci_adapt.data.labelled import Arrays
from bci_adapt.decoders.timing import LABEL_DELAY_S, delay_bins
from bci_adapt.errors import InputError
from bci_adapt.ground.storage import json_safe
from bci_adapt.ground.text import clean
from bci_adapt.live import predicting
from bci_adapt.live.log import Event

LABELS = ("delay", "trial_end", "none")
_MOST = 4_000_000  # characters of a line
_DOINGS = ("pause", "freeze", "resume", "roll_back", "mark", "checkpoint")


def kind_of(text: str, kinds: tuple[str, ...], what: str) -> tuple[str, str]:
    """``kind:rest`` apart; `InputError` where it is none of `kinds` (``jsonl:…``), or there is no rest."""
    kind, _, rest = text.partition(":")
    if f"{kind}:…" not in kinds or not rest:
        raise InputError(f"{what}: expected {' or '.join(kinds)}, got {clean(text, 200)}")
    return kind, rest


def of_session(decoder_file: Path, session_file: Path, missing: str, by: str | None) -> tuple[Arrays, list[str]]:
    """A session as the decoder of a file takes it, and what is to be said of that; raises as `predicting.predict`."""
    decoder, session = predicting.opened(decoder_file, session_file, by)
    arrays, notes = predicting.match_channels(decoder, session, missing)
    return arrays._replace(metadata={**arrays.metadata, "time_s": session["time"].values}), notes


def replayed(arrays: Arrays, label_delay_s: float | None = None, labels: str = "delay") -> Iterator[Event]:
    """A session as it would come: each bin, and before it the labels that become known with it.

    Parameters
    ----------
    arrays : of `of_session`, its stamps (s) in ``metadata["time_s"]``.
    label_delay_s : how long after its bin a label comes; .5 s when None.
    labels : ``delay``; ``trial_end``, all of a trial when it has ended, in one burst; or ``none``.

    Raises
    ------
    InputError
        for labels that are to come at the end of trials where there are none.
    """
    n, time_s = len(arrays.X), np.asarray(arrays.metadata["time_s"])
    delay = delay_bins(LABEL_DELAY_S if label_delay_s is None else label_delay_s, arrays.bin_s)
    comes = np.arange(n) + delay
    if labels == "trial_end":
        if arrays.in_trial is None:
            raise InputError(f"{arrays.session_id}: --labels trial_end needs trials with a beginning and an end")
        comes = np.maximum(arrays.trial_end, comes)
    has = np.asarray(np.isfinite(arrays.y).any(axis=1)) if labels != "none" else np.zeros(n, bool)
    order = np.argsort(comes, kind="stable")
    at = 0
    for t in range(n):
        # With a delay of nothing the label of a bin comes behind it.
        while at < n and comes[order[at]] <= t - (delay == 0):
            i = order[at]
            at += 1
            if has[i]:
                yield Event("label", arrays.y[i], float(time_s[i]))
        yield Event("bin", arrays.X[t], float(time_s[t]))


def lines_of(name: str) -> Iterator[str]:
    """Lines of a file, or of standard input (``-``), as they come; one that is too long comes in pieces that are no
    JSON. `InputError` where the file cannot be read.
    """
    if name == "-":
        yield from iter(lambda: sys.stdin.readline(_MOST), "")
        return
    try:
        with open(name, encoding="utf-8", errors="replace") as file:
            yield from iter(lambda: file.readline(_MOST), "")
    except OSError as error:
        raise InputError(f"{name}: lines of JSON were expected, it cannot be read: {error.strerror}") from error


def read_lines(lines: Iterable[str], wrong: Callable[[str], None]) -> Iterator[Event]:
    """What lines of JSON say. `wrong` is told of those that say nothing, which stop nothing."""
    for line in lines:
        if line.strip():
            try:
                yield _read_line(json.loads(line))
            except (ValueError, TypeError, RecursionError) as error:  # `InputError` is a ValueError
                wrong(f"{clean(str(error), 200)}: {clean(line, 80)}")


def _read_line(said: Any) -> Event:
    if not isinstance(said, Mapping):
        raise InputError("expected an object with counts, label or do")
    stamp = said.get("time_s")
    if stamp is not None and (isinstance(stamp, bool) or not isinstance(stamp, int | float)):
        raise InputError("time_s: expected seconds")
    for name, kind in (("counts", "bin"), ("label", "label")):
        if name in said:
            return Event(kind, np.array(said[name], float), None if stamp is None else float(stamp))
    if said.get("do") in _DOINGS:
        return Event("do", dict(said), None)
    raise InputError(f"expected counts, label, or do with one of {', '.join(_DOINGS)}")


def line_of(prediction: np.ndarray, time_s: float | None, mode: str) -> str:
    """A prediction (n_outputs,) as the line that goes out."""
    return json.dumps(json_safe({"prediction": prediction, "time_s": time_s, "mode": mode})) + "\n"


def written(name: str) -> IO[str]:
    """The file that lines go to, or standard output (``-``). `InputError` where it cannot be written."""
    if name == "-":
        return sys.stdout
    try:
        return open(name, "w", encoding="utf-8", buffering=1)
    except OSError as error:
        raise InputError(f"{name}: cannot be written: {error.strerror}") from error
