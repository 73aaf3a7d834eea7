"""A live decoder between a source and a sink, until the source ends."""

from __future__ import annotations

import array
import gc
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bci_adapt.errors import InputError
from bci_adapt.ground.text import clean
from bci_adapt.live.decoder import LiveDecoder
from bci_adapt.live.log import Event

Say = Callable[[str], None]
_USUAL = ("bins", "segments", "used")
TOLD_S = 60.0  # of data, between two lines that say how it goes


@contextmanager
def collected_once():
    """What there is now is collected and then left out of collections, which are shorter for it: they come at times of
    their own choosing.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@dataclass
class Served:
    """What became of a stream. Times are in µs, of one call each: `predict_us` with what a bin learns at its end,
    `learn_us`. `refused` counts what came and was nothing that the decoder could take.
    """

    predict_us: array.array = field(default_factory=lambda: array.array("d"))
    learn_us: array.array = field(default_factory=lambda: array.array("d"))
    refused: int = 0

    def summary(self) -> dict[str, Any]:
        """Percentiles of both, as JSON can hold them."""
        return {name: _percentiles(getattr(self, name)) for name in ("predict_us", "learn_us")}


def _percentiles(values: array.array) -> dict[str, float]:
    if not len(values):
        return {}
    at = np.percentile(np.frombuffer(values), (50, 95, 99, 100))
    return dict(zip(("p50", "p95", "p99", "max"), at.tolist(), strict=True))


class Server:
    """Leads `live` through events.

    Parameters
    ----------
    show : is given each prediction (n_outputs,), its stamp and the mode.
    speed : 1 keeps the time of the stamps, as a rig would; 0 goes as fast as it can.
    checkpoint, every_s : the file of checkpoints, and how many seconds of data lie between two; None for none.
    say, note : are told how it goes, and what should not be missed.
    """

    def __init__(
        self,
        live: LiveDecoder,
        show: Callable[[np.ndarray, float | None, str], None],
        speed: float = 0.0,
        checkpoint: Path | None = None,
        every_s: float | None = None,
        say: Say = lambda text: None,
        note: Say = lambda text: None,
    ) -> None:
        self.live, self.show, self.speed, self.checkpoint = live, show, speed, checkpoint
        self.say, self.note, self.served = say, note, Served()
        self._every = None if every_s is None else max(1, round(every_s / live.bin_s))
        self._told = max(1, round(TOLD_S / live.bin_s))
        self._mode, self._began = live.mode, None

    def run(self, events: Iterable[Event]) -> Served:
        """Lead it through all of them. A last checkpoint is written where there is one to write."""
        with collected_once():
            for event in events:
                if event.kind == "bin":
                    self._bin(event)
                elif event.kind == "label":
                    self._label(event)
                else:
                    self._do(event.values)
                if self.live.mode != self._mode:
                    self._tell_mode()
        if self.checkpoint is not None:
            self.live.checkpoint(self.checkpoint)
        return self.served

    def _bin(self, event: Event) -> None:
        if self.speed and event.time_s is not None:
            self._wait(event.time_s)
        begin = time.perf_counter_ns()
        try:
            predicted = self.live.predict(event.values, event.time_s)
        except InputError as error:
            self._refuse(str(error))
            return
        self.served.predict_us.append((time.perf_counter_ns() - begin) / 1e3)
        self.show(predicted, event.time_s, self.live.mode)
        n = self.live.bins["bins"]
        if self._every and n % self._every == 0 and self.checkpoint is not None:
            self.live.checkpoint(self.checkpoint)
        if n % self._told == 0:
            self.say(status(self.live, self.served))

    def _label(self, event: Event) -> None:
        begin = time.perf_counter_ns()
        try:
            self.live.learn(event.values, event.time_s if event.time_s is not None else float("nan"))
        except InputError as error:
            self._refuse(str(error))
            return
        self.served.learn_us.append((time.perf_counter_ns() - begin) / 1e3)

    def _do(self, asked: dict[str, Any]) -> None:
        live = self.live
        try:
            if asked["do"] == "roll_back":
                live.roll_back(str(asked.get("to", "good")))
            elif asked["do"] == "mark":
                live.mark(str(asked.get("name", "")))
            elif asked["do"] == "checkpoint":
                if self.checkpoint is None:
                    raise InputError("checkpoint: no file was named for it when this began (--checkpoint FILE)")
                live.checkpoint(self.checkpoint)
            else:
                {"pause": live.pause, "freeze": live.freeze, "resume": live.resume}[asked["do"]]()
            self.note(f"{clean(asked['do'])}, by hand")
        except InputError as error:
            self._refuse(str(error))

    def _refuse(self, why: str) -> None:
        self.served.refused += 1
        if self.served.refused == 1:
            self.note(f"refused, the first of its kind: {why}")

    def _tell_mode(self) -> None:
        self._mode, why = self.live.mode, self.live.stopped_by
        if why:
            self.note(
                f"guard {why['guard']}: {why['value']:.3g}, allowed {why['limit']:.3g}: learning has stopped, the last "
                "good weights are back"
            )

    def _wait(self, time_s: float) -> None:
        now = time.monotonic()
        if self._began is None or time_s < self._began[1]:
            self._began = now, time_s
        due = self._began[0] + (time_s - self._began[1]) / self.speed
        if due > now:
            time.sleep(min(due - now, 10.0))


def status(live: LiveDecoder, served: Served) -> str:
    """How it goes, in a line."""
    state, score = live.state, live.score
    told = {name: f"{value:.2f}" for name, value in (("R²", score), ("error", state["error"])) if value is not None}
    times = _percentiles(served.predict_us[-2000:])
    parts = [f"{live.bins['bins'] * live.bin_s / 60:.1f} min", state["mode"], *map(" ".join, told.items())]
    if times:
        parts += [f"{live.labels['used']} labels", f"predict {times['p50']:.0f} µs, p99 {times['p99']:.0f}"]
    left = {what: n for what, n in {**live.bins, **live.labels}.items() if n and what not in _USUAL}
    return "  ".join([*parts, *(f"{n} {what}" for what, n in left.items())])
