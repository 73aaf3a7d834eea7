"""The live decoder: bins and labels come with time stamps, one by one, and a prediction goes out at once.

    live = ba.live("tuesday.npz")
    live.warm_up()                      # before the animal: compiles
    y = live.predict(counts, time_s)    # every bin
    live.learn(label, label_time_s)     # when a label is known

On the same stream it predicts and learns what `Decoder.adapt` does, bit for bit.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from bci_adapt.decoders.base import Decoder
from bci_adapt.errors import InputError
from bci_adapt.ground.arrays import digest_of_arrays
from bci_adapt.ground.storage import json_safe
from bci_adapt.ground.text import clean
from bci_adapt.live import clock as clocks
from bci_adapt.live import standing
from bci_adapt.live.drivers import driver_of
from bci_adapt.live.guards import CANARY, ERROR, RANGE, UPDATE, Canary, Guards, Tally, Watch
from bci_adapt.live.moments import CANDIDATE, GOOD, START, Moments

LEARNING, PAUSED, FROZEN, STOPPED = "learning", "paused", "frozen", "stopped"
"""What a live decoder does: learns; predicts, its input statistics going on; predicts, nothing moving; as paused, by a
guard."""
PERIOD_S = 60.0  # between two lines of the log that sum up
_USED, _MISSING, _HELD = "used", "missing", "held"
_COUNTED = ("bins", "unobserved", "unusable", "held", "segments", clocks.REPEATED, clocks.EARLY, clocks.NO_TIME)
_OF_LABELS = (_USED, _MISSING, _HELD, "gone", "ahead", "no bin", "no time", "not observed", "duplicate")

_PLAIN = "mode", "stopped_by", "bins", "labels", "events", "_first", "_restarts", "_refusing", "_leaving"
_PLAIN += ("_stamps", "_open", "_said", "_canary_said")


class LiveDecoder:
    """A fitted decoder in use, made by `live`, whose parameters it has.

    Attributes
    ----------
    stopped_by : why it is ``stopped``: {"guard": its name, "value": what was found, "limit": what is allowed}, or {}.
    mode : ``learning``, ``paused``, ``frozen`` or ``stopped``.
    bins : {what: how many} of the bins that came: ``bins`` predicted, of them ``unobserved`` (NaN) and ``unusable``
        (negative or infinite counts) and ``held`` (the prediction was out of range, the one before it was shown),
        ``segments`` begun, and refused ones by reason (``repeated``, ``early``, ``no
        time``).
    labels : {what: how many} of the labels: ``used``; ``missing`` (all NaN: none will come); ``held`` (not learning);
        ``gone`` (its bin waits no longer); ``ahead`` (its bin is still to come); ``no bin`` (none has this time);
        ``no time``; ``not observed`` (its bin had no neurons); ``duplicate``.
    """

    def __init__(self, decoder: Decoder, wait_s: float | None, guards: Guards | None, canary: Decoder | None) -> None:
        self._driver = driver_of(decoder, wait_s)
        self.n_inputs, self.n_outputs = decoder.n_features_in_, decoder.n_outputs_
        self.bin_s, self.wait_s, self.guards = decoder.bin_s_, wait_s, guards
        self._clock = clocks.Clock(decoder.bin_s_)
        self.mode = LEARNING
        self.stopped_by: dict[str, Any] = {}
        self.bins: dict[str, int] = dict.fromkeys(_COUNTED, 0)
        self.labels: dict[str, int] = dict.fromkeys(_OF_LABELS, 0)
        self.events = 0
        self._counts, self._label, self._shown = (np.zeros(k) for k in (self.n_inputs, self.n_outputs, self.n_outputs))
        n = self._n = self._driver.wait + 2  # bins that may still be given a label, and the next
        self._stamps, self._open = [0.0] * n, [0] * n
        self._said, self._canary_said = ([[0.0] * self.n_outputs] * n for _ in range(2))
        self._first, self._restarts = 0, False
        self._moments = Moments(self._driver)
        rules = guards or Guards(error=None, update=None, range=None)
        self._watch = Watch(rules, self._driver, self.bin_s)
        self._good_bins = max(1, round(rules.good_s / self.bin_s))
        self._canary = None if canary is None else Canary(driver_of(canary, wait_s), rules, self.bin_s)
        self._period = max(1, round(PERIOD_S / self.bin_s))
        self._log: Any = None  # a `Log`, or what a replay holds to one
        self._refusing = self._leaving = ""
        self._tally = Tally(self.n_outputs)

    # -- bins and labels -------------------------------------------------------------------------------------------

    def predict(self, counts: Any, time_s: float | None = None) -> np.ndarray:
        """Predict one bin, and learn what was still to be learned at the end of the last one.

        Parameters
        ----------
        counts : (n_inputs,) counts of the bin, or power, in the order of the decoder's channels; NaN where it was not
            observed. A bin with such channels, or with negative or infinite counts, counts as unobserved: the
            prediction is held.
        time_s : when the bin ended (s, of any clock that also stamps the labels); None for the next bin. After a gap a
            new segment begins. A bin that is repeated, early or has no time is refused: nothing moves, and the last
            prediction is returned.

        Returns
        -------
        (n_outputs,) in the units of the labels.

        Raises
        ------
        InputError
            for counts of another shape, or what is no numbers.
        """
        row = self._row(counts, self.n_inputs, "counts")
        time_s = self._stamp(time_s)
        self.events += 1
        verdict = self._clock.meet(time_s)
        if verdict not in (clocks.NEXT, clocks.GAP):
            self.bins[verdict] += 1
            if verdict != self._refusing:
                self._refusing = verdict
                self._note("refused", why=verdict, stamp_s=time_s)
            return self._shown.copy()
        self._refusing = ""
        self._end_bin()
        reset = verdict == clocks.GAP or self._restarts
        if reset:
            self._begin_segment()
        driver = self._driver
        at = driver.bin % self._n
        self._counts[:] = row
        predicted = driver.forward(self._counts, reset)
        self.bins["bins"] += 1
        self._stamps[at] = self._clock.now_s if time_s is None else time_s
        self._open[at], self._said[at] = int(driver.observed), predicted.tolist()
        if not driver.observed:
            usable = np.isnan(self._counts) | (np.isfinite(self._counts) & (self._counts >= 0.0))
            self.bins["unobserved" if usable.all() else "unusable"] += 1
        if self._canary is not None:
            self._canary_said[at] = self._canary.forward(self._counts, reset).tolist()
        self._show(predicted, self._said[at])
        return self._shown.copy()

    def _end_bin(self) -> None:
        """Learn what is to be learned by the end of the last bin, and look what that has come to."""
        driver = self._driver
        driver.overdue(driver.bin - 1 - driver.wait)
        driver.work()
        if self.mode == LEARNING and driver.learns:
            if self._watch.moves_too_far():
                self._stop(UPDATE, self._watch.update_size, self._watch.guards.update)
            elif self._moments.look(self._good_bins):
                self._note("good")
        if self._log is not None and driver.bin and driver.bin % self._period == 0:
            self._note("so far", bins=dict(self.bins), labels=dict(self.labels))

    def _begin_segment(self) -> None:
        self.bins["segments"] += 1
        self._first, self._restarts = self._driver.bin, False
        self._note("segment")

    def _show(self, predicted: np.ndarray, values: list[float]) -> None:
        """Show a prediction, or, where it is out of range, go on showing the one before."""
        if self._watch.in_range(values):
            self._shown[:] = predicted
            return
        self.bins["held"] += 1
        if self.mode == LEARNING:
            self._stop(RANGE, self._watch.far(predicted), self._watch.guards.range)

    def _stop(self, guard: str, value: float, limit: float | None) -> None:
        """A guard has fired: learn no more, and go back to the last good weights."""
        self.mode, self.stopped_by = STOPPED, {"guard": guard, "value": value, "limit": limit}
        self._note("guard", **self.stopped_by)
        self._back(GOOD)

    def _back(self, to: str) -> None:
        self._moments.bring_back(to)
        self._watch.begin_anew()
        self._restarts, self._first = True, self._driver.bin

    def _note(self, what: str, **facts: Any) -> None:
        if self._log is not None:
            at = {"event": self.events, "bin": self._driver.bin, "time_s": self._clock.last_s}
            self._log.write({"what": what, **at, **facts})

    def _row(self, values: Any, n: int, what: str) -> np.ndarray:
        if type(values) is np.ndarray and values.shape == (n,) and values.dtype.kind in "fiu":
            return values  # the usual case, at no cost
        try:
            row = np.asarray(values, float)
        except (TypeError, ValueError) as error:
            raise InputError(f"{what}: expected {n} numbers, got {type(values).__name__}: {clean(error)}") from error
        if row.shape == () and n == 1:
            return row[None]
        if row.shape != (n,):
            raise InputError(f"{what}: expected ({n},), one bin in the decoder's order, got {row.shape}")
        return row

    def _stamp(self, time_s: Any) -> float | None:
        if time_s is None or type(time_s) is float:
            return time_s
        try:
            return float(time_s)
        except (TypeError, ValueError) as error:
            raise InputError(f"time_s: expected seconds, got {type(time_s).__name__}: {clean(error)}") from error

    def learn(self, label: Any, time_s: float) -> str:
        """Learn from the label of the bin that ended at `time_s`, or is within half a bin of it.

        Labels may come late, out of order, in bursts, or twice; each is learned from when it is as old as the decoder's
        label delay, after the labels of the bins before it. A bin waits `wait_s` for its label, then counts as without.

        Parameters
        ----------
        label : (n_outputs,) in the units of training; NaN where an output has none. All NaN says that none will come:
            those behind it need not wait for it.
        time_s : the stamp of its bin (s).

        Returns
        -------
        What became of it, a key of `labels`; it is counted there.

        Raises
        ------
        InputError
            for a label of another shape, or what is no numbers.
        """
        row = self._row(label, self.n_outputs, "label")
        stamp_s = self._stamp(time_s)
        self.events += 1
        what = self._taught(row, stamp_s)
        self.labels[what] += 1
        leaving = "" if what in (_USED, _MISSING) else what
        if leaving != self._leaving:
            self._leaving = leaving
            if leaving:
                self._note("label left", why=leaving, stamp_s=stamp_s)
        return what

    def _taught(self, row: np.ndarray, time_s: float | None) -> str:
        if time_s is None or not math.isfinite(time_s):
            return "no time"
        i, why = self._bin_of(time_s)
        if why:
            return why
        at, label = i % self._n, row.tolist()
        if not all(map(math.isfinite, label)):
            label = [value if math.isfinite(value) else math.nan for value in label]
        self._open[at] = 2
        self._tally.add(self._said[at], label)
        driver, canary = self._driver, self._canary
        if self.mode != LEARNING or not driver.learns:
            return _HELD
        self._label[:] = label
        driver.give(i, self._label)
        driver.work()
        if canary is not None:
            canary.driver.give(i, self._label)
        if all(value != value for value in label):
            return _MISSING
        self._judge(self._said[at], self._canary_said[at], label)
        return _USED

    def _judge(self, said: list[float], canary_said: list[float], label: list[float]) -> None:
        """Hold what was predicted against its label."""
        watch = self._watch
        error = watch.squared_error(said, label)
        if watch.errs(error, label):
            self._stop(ERROR, watch.relative_error, watch.guards.error)
        elif self._canary is not None:
            own = watch.squared_error(canary_said, label)
            scaled = ((self._label - self._driver.label_mean) / self._driver.label_scale).tolist()
            if self._canary.sings(own, error, scaled):
                self._stop(CANARY, self._canary.error.mean, self._canary.decoders.mean)

    def _bin_of(self, time_s: float) -> tuple[int, str]:
        """The bin that a stamp is of, or why there is none that waits for a label."""
        last, n, stamps, half = self._driver.bin - 1, self._n, self._stamps, 0.5 * self.bin_s
        if last < 0 or time_s > stamps[last % n] + half:
            return -1, "ahead"
        oldest = max(self._first, last - self._driver.wait, 0)
        if last < oldest or time_s < stamps[oldest % n] - half:
            return -1, "gone"
        near = min(max(last - round((stamps[last % n] - time_s) / self.bin_s), oldest), last)
        if abs(stamps[near % n] - time_s) > 0.5 * half:  # stamps tremble: a neighbour may be nearer
            within = range(max(oldest, near - 2), min(last, near + 2) + 1)
            near = min(within, key=lambda each: abs(stamps[each % n] - time_s))
            if abs(stamps[near % n] - time_s) > half:
                return -1, "no bin"
        return near, ("not observed", "", "duplicate")[self._open[near % n]]

    # -- what it does ----------------------------------------------------------------------------------------------

    def pause(self) -> None:
        """Stop learning: weights stay as they are, labels that wait or come are not used. Predictions and the running
        statistics of the inputs go on.
        """
        self._hold(PAUSED)

    def freeze(self) -> None:
        """Stop learning, and hold the running statistics of the inputs too: a fixed function of what comes in."""
        self._hold(FROZEN)

    def _hold(self, mode: str) -> None:
        self.events += 1
        self._driver.forget()
        if self._canary is not None:
            self._canary.driver.forget()
        self._driver.holds_statistics = mode == FROZEN
        self.mode = mode
        self._note(mode, by="hand")

    def resume(self) -> None:
        """Learn again, from labels that come from now on; guards begin anew."""
        self.events += 1
        self._driver.holds_statistics = False
        self.mode, self.stopped_by = LEARNING, {}
        self._watch.begin_anew()
        self._moments.begin_anew()
        self._note("resumed", by="hand")

    def mark(self, name: str) -> None:
        """Keep the weights of this moment under a `name`, to `roll_back` to. `InputError` for a name that is taken by
        what every live decoder keeps.
        """
        if name in (START, GOOD, CANDIDATE):
            raise InputError(f"mark: expected a name of your own, got {name}, which is kept without asking")
        self.events += 1
        self._moments.keep(name)
        self._note("marked", by="hand", name=name)

    def roll_back(self, to: str = GOOD) -> None:
        """Bring back the weights of a moment, and what learning remembered with them: ``good``, the last weights that
        were followed by some seconds without a guard, ``start``, the first bin, or one that was marked. Labels that
        wait are not used, and the next bin begins a new segment: both belong to other weights.

        Raises
        ------
        InputError
            for a name that was not marked.
        """
        self._moments.require(to)
        self.events += 1
        self._back(to)
        self._note("rolled back", by="hand", to=to)

    @property
    def fed(self) -> int:
        """How many bins and labels it was given, whatever became of them."""
        refused = sum(self.bins[why] for why in (clocks.REPEATED, clocks.EARLY, clocks.NO_TIME))
        return self.bins["bins"] + refused + sum(self.labels.values())

    @property
    def score(self) -> float | None:
        """Variance-weighted R² over the labels that came for bins that waited, learned from or not: each was predicted
        before its label. None before labels vary.
        """
        return self._tally.r2

    @property
    def state(self) -> dict[str, Any]:
        """What it does and has done, as JSON can hold it: `mode`, `stopped_by`, `bins`, `labels`, when the last bin
        ended (``time_s``), the rolling ``error`` and ``update`` as the guards know them, the ``moments`` that can be
        gone back to, and how many lines of the log could not be written (``log_lost``).
        """
        counted = {"bins": dict(self.bins), "labels": dict(self.labels)}
        seen = {"error": self._watch.relative_error, "update": self._watch.update_size}
        told = {"mode": self.mode, "stopped_by": dict(self.stopped_by), "time_s": self._clock.last_s}
        lost = 0 if self._log is None else self._log.lost
        return json_safe(told | counted | seen | {"moments": self._moments.names, "log_lost": lost})

    def checkpoint(self, path: Path | str) -> None:
        """Write where it stands to one file: `live` goes on from it bit for bit, and it is the file of a decoder as any
        other (`bci_adapt.load`). It is whole or, where it cannot be written, as it was, which is an `InputError`.
        """
        self._begin_checkpoint()
        arrays = {f"moment/{name}": each for name, each in self._moments.arrays().items()}
        if self._canary is not None:
            own = self._canary.driver.sync()._fitted_arrays()
            arrays |= {f"canary/{name}": each for name, each in own.items()}
        standing.write(self._driver.sync(), self._place(), arrays, Path(path))

    def _begin_checkpoint(self) -> None:
        """What a checkpoint moves: the guard on updates looks from here on, as that of who goes on from it does."""
        self.events += 1
        self._watch.begin_updates()
        self._note("checkpoint", by="hand", weights=self.weights_digest)

    def _place(self) -> dict[str, Any]:
        """Where it stands, as JSON can hold it."""
        return {
            "settings": self.settings,
            "driver": self._driver.place(),
            "clock": self._clock.place(),
            "moments": self._moments.place(),
            "watch": self._watch.place(),
            "tally": self._tally.sums,
            "canary": None if self._canary is None else self._canary.place(),
            "shown": self._shown.tolist(),
            "plain": {name: getattr(self, name) for name in _PLAIN},
        }

    def _go_on(self, place: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Stand where a checkpoint was written."""
        self._driver.go_on(place["driver"])
        self._clock.go_on(place["clock"])
        kept = {name.removeprefix("moment/"): each for name, each in arrays.items() if name.startswith("moment/")}
        self._moments.go_on(place["moments"], kept)
        self._watch.go_on(place["watch"])
        self._tally.sums = [list(map(float, each)) for each in place["tally"]]
        if self._canary is not None:
            self._canary.go_on(place["canary"])
        self._shown[:] = place["shown"]
        for name in _PLAIN:
            setattr(self, name, place["plain"][name])
        self._driver.holds_statistics = self.mode == FROZEN

    @property
    def settings(self) -> dict[str, Any]:
        """How it was made, as JSON can hold it: `wait_s`, `guards` and `canary` of `live`."""
        guards = None if self.guards is None else asdict(self.guards)
        return {"wait_s": self.wait_s, "guards": guards, "canary": self._canary is not None}

    @property
    def weights_digest(self) -> str:
        """SHA-256 of all that learning moves: two of them are equal where the weights are, bit for bit."""
        return digest_of_arrays({}, self._driver.weights())

    def close(self) -> None:
        """End the log, with what the weights have come to; the decoder can still be asked."""
        if self._log is not None:
            self._note("closed", bins=dict(self.bins), labels=dict(self.labels), weights=self.weights_digest)
            self._log.close()
            self._log = None

    @property
    def decoder(self) -> Decoder:
        """The decoder as it stands, a copy: to be saved, scored, or led through recordings."""
        return copy.deepcopy(self._driver.sync())

    def warm_up(self) -> None:
        """Compile and allocate all that a bin needs, so that the first one takes no longer than others. Nothing moves:
        it is done on a copy.
        """
        canary = None if self._canary is None else self.decoder
        other = LiveDecoder(self.decoder, self.wait_s, self.guards, canary)
        label = np.asarray(self._driver.label_mean, float)
        for i in range(self._driver.delay + 60):
            other.predict(np.zeros(self.n_inputs), i * self.bin_s)
            other.learn(label, (i - self._driver.delay) * self.bin_s)
