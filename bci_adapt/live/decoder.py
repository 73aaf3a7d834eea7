"""The live decoder: bins and labels come with time stamps, one by one, and a prediction goes out at once.

    live = ba.live("tuesday.npz")
    live.warm_up()                      # before the animal: compiles
    y = live.predict(counts, time_s)    # every bin
    live.learn(label, label_time_s)     # when a label is known

On the same stream it predicts and learns what `Decoder.adapt` does, bit for bit.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bci_adapt.decoders.base import Decoder
from bci_adapt.errors import InputError
from bci_adapt.ground.text import clean
from bci_adapt.live import clock as clocks
from bci_adapt.live import standing
from bci_adapt.live.drivers import driver_of

LEARNING, PAUSED, FROZEN, STOPPED = "learning", "paused", "frozen", "stopped"
"""What a live decoder does: learns; predicts, its input statistics going on; predicts, nothing moving; as paused, by a
guard."""
START = "start"
_USED, _MISSING, _HELD = "used", "missing", "held"
_COUNTED = ("bins", "unobserved", "unusable", "segments", clocks.REPEATED, clocks.EARLY, clocks.NO_TIME)
_OF_LABELS = (_USED, _MISSING, _HELD, "gone", "ahead", "no bin", "no time", "not observed", "duplicate")

_SMALL = "shown", "stamps", "open"


class LiveDecoder:
    """A fitted decoder in use, made by `live`, whose parameters it has.

    Attributes
    ----------
    mode : ``learning``, ``paused``, ``frozen`` or ``stopped``.
    bins : {what: how many} of the bins that came: ``bins`` predicted, of them ``unobserved`` (NaN) and ``unusable``
        (negative or infinite counts), ``segments`` begun, and refused ones by reason (``repeated``, ``early``, ``no
        time``).
    labels : {what: how many} of the labels: ``used``; ``missing`` (all NaN: none will come); ``held`` (not learning);
        ``gone`` (its bin waits no longer); ``ahead`` (its bin is still to come); ``no bin`` (none has this time);
        ``no time``; ``not observed`` (its bin had no neurons); ``duplicate``.
    """

    def __init__(self, decoder: Decoder, wait_s: float | None = None) -> None:
        self._driver = driver_of(decoder, wait_s)
        self.n_inputs, self.n_outputs = decoder.n_features_in_, decoder.n_outputs_
        self.bin_s, self.wait_s = decoder.bin_s_, wait_s
        self._clock = clocks.Clock(decoder.bin_s_)
        self.mode = LEARNING
        self.bins: dict[str, int] = dict.fromkeys(_COUNTED, 0)
        self.labels: dict[str, int] = dict.fromkeys(_OF_LABELS, 0)
        self.events = 0
        self._counts, self._shown = np.zeros(self.n_inputs), np.zeros(self.n_outputs)
        n = self._driver.wait + 2  # bins that may still be given a label, and the next
        self._stamps, self._open = np.zeros(n), np.zeros(n, np.int8)
        self._first, self._restarts = 0, False
        self._moments: dict[str, dict[str, np.ndarray]] = {}
        self.mark(START)

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
        self.events += 1
        verdict = self._clock.meet(time_s)
        if verdict not in (clocks.NEXT, clocks.GAP):
            self.bins[verdict] += 1
            return self._shown.copy()
        driver = self._driver
        driver.overdue(driver.bin - 1 - driver.wait)
        driver.work()
        observed = self._observed(row)
        reset = verdict == clocks.GAP or self._restarts
        if reset:
            self.bins["segments"] += 1
            self._first, self._restarts = driver.bin, False
        at = driver.bin % len(self._stamps)
        self._stamps[at], self._open[at] = self._clock.last_s if time_s is None else time_s, observed
        self.bins["bins"] += 1
        self._shown[:] = driver.forward(self._counts, observed, reset)
        return self._shown.copy()

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

    def _observed(self, row: np.ndarray) -> bool:
        """Take over the counts of a bin; whether they are such."""
        self._counts[:] = row
        # Comparisons with NaN are false.
        if np.minimum.reduce(self._counts) >= 0.0 and np.maximum.reduce(self._counts) < np.inf:
            return True
        usable = np.isnan(self._counts) | (np.isfinite(self._counts) & (self._counts >= 0.0))
        self.bins["unobserved" if usable.all() else "unusable"] += 1
        return False

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
        self.events += 1
        what = self._taught(row, time_s)
        self.labels[what] += 1
        return what

    def _taught(self, row: np.ndarray, time_s: float) -> str:
        if time_s is None or not np.isfinite(time_s):
            return "no time"
        if self.mode != LEARNING or not self._driver.learns:
            return _HELD
        i, why = self._bin_of(time_s)
        if why:
            return why
        self._open[i % len(self._open)] = 2
        y = np.where(np.isfinite(row), row, np.nan)
        self._driver.give(i, y)
        self._driver.work()
        return _USED if np.isfinite(y).any() else _MISSING

    def _bin_of(self, time_s: float) -> tuple[int, str]:
        """The bin that a stamp is of, or why there is none that waits for a label."""
        last, n = self._driver.bin - 1, len(self._stamps)
        if last < 0 or time_s > self._stamps[last % n] + 0.5 * self.bin_s:
            return -1, "ahead"
        oldest = max(self._first, last - self._driver.wait, 0)
        if last < oldest or time_s < self._stamps[oldest % n] - 0.5 * self.bin_s:
            return -1, "gone"
        near = last - round((self._stamps[last % n] - time_s) / self.bin_s)
        within = range(max(oldest, near - 2), min(last, near + 2) + 1)
        i = min(within, key=lambda each: abs(self._stamps[each % n] - time_s), default=-1)
        if i < 0 or abs(self._stamps[i % n] - time_s) > 0.5 * self.bin_s:
            return -1, "no bin"
        return i, ("not observed", "", "duplicate")[self._open[i % n]]

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
        self._driver.holds_statistics = mode == FROZEN
        self.mode = mode

    def resume(self) -> None:
        """Learn again, from labels that come from now on."""
        self.events += 1
        self._driver.holds_statistics = False
        self.mode = LEARNING

    def mark(self, name: str) -> None:
        """Keep the weights of this moment under a `name`, to `roll_back` to."""
        self._moments[name] = {key: each.copy() for key, each in self._driver.weights().items()}

    def roll_back(self, to: str = START) -> None:
        """Bring back the weights of a moment that was marked, and what learning remembered with them; ``start``, the
        first bin, is always there. Labels that wait are not used, and the next bin begins a new segment: both belong to
        other weights.

        Raises
        ------
        InputError
            for a name that was not marked.
        """
        if to not in self._moments:
            raise InputError(f"roll_back: expected one of {', '.join(map(clean, self._moments))}, got {clean(to)}")
        self.events += 1
        self._driver.forget()
        self._driver.restore(self._moments[to])
        self._restarts = True
        self._first = self._driver.bin

    @property
    def state(self) -> dict[str, Any]:
        """What it does and has done, as JSON can hold it: `mode`, `bins`, `labels`, when the last bin ended
        (``time_s``), and the moments that can be gone back to.
        """
        counted = {"bins": dict(self.bins), "labels": dict(self.labels)}
        return {"mode": self.mode, "time_s": self._clock.last_s, **counted, "moments": list(self._moments)}

    def checkpoint(self, path: Path | str) -> None:
        """Write where it stands to one file: `live` goes on from it bit for bit, and it is the file of a decoder as any
        other (`bci_adapt.load`). It is whole or, where it cannot be written, as it was, which is an `InputError`.
        """
        moments = {f"{name}/{key}": each for name, kept in self._moments.items() for key, each in kept.items()}
        small = {name: getattr(self, f"_{name}").tolist() for name in _SMALL}
        counted = {"mode": self.mode, "bins": self.bins, "labels": self.labels, "events": self.events}
        place = {
            "wait_s": self.wait_s,
            "driver": self._driver.place(),
            "clock": self._clock.place(),
            "first": self._first,
            "restarts": self._restarts,
            "moments": list(self._moments),
        }
        standing.write(self._driver.sync(), place | counted | small, moments, Path(path))

    def _go_on(self, place: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Stand where a checkpoint was written."""
        self._driver.go_on(place["driver"])
        self._clock.go_on(place["clock"])
        self.mode, self.bins, self.labels = place["mode"], dict(place["bins"]), dict(place["labels"])
        self.events, self._first, self._restarts = place["events"], place["first"], place["restarts"]
        self._driver.holds_statistics = self.mode == FROZEN
        for name in _SMALL:
            getattr(self, f"_{name}")[:] = place[name]
        for name in place["moments"]:
            self._moments[name] = {key: arrays[f"{name}/{key}"] for key in self._driver.weights()}

    @property
    def decoder(self) -> Decoder:
        """The decoder as it stands, a copy: to be saved, scored, or led through recordings."""
        return copy.deepcopy(self._driver.sync())

    def warm_up(self) -> None:
        """Compile and allocate all that a bin needs, so that the first one takes no longer than others. Nothing moves:
        it is done on a copy.
        """
        other = _begun(self.decoder, self.wait_s)
        label = np.asarray(self._driver.label_mean, float)
        for i in range(self._driver.delay + 60):
            other.predict(np.zeros(self.n_inputs), i * self.bin_s)
            other.learn(label, (i - self._driver.delay) * self.bin_s)


def live(decoder: Decoder | str | Path, wait_s: float | None = None) -> LiveDecoder:
    """A decoder that is fed bin by bin: at the start of a session, or where a checkpoint of one was written.

    Parameters
    ----------
    decoder : a fitted decoder, which stays as it is, the file of one, or a file that `LiveDecoder.checkpoint` wrote. To
        begin a new session with a checkpoint: ``live(load(file))``.
    wait_s : how long after its bin a label is waited for (s), at least the decoder's label delay, which is taken when
        None (of a checkpoint: its own). Labels are learned from in the order of their bins; longer, a label may come
        later, but one that never comes holds up those behind it for as long.

    Raises
    ------
    InputError
        for a file that is no decoder, a decoder that cannot be taught label by label, a wait that is too short, and one
        that is not the checkpoint's.
    """
    if not isinstance(decoder, str | Path):
        return _begun(copy.deepcopy(decoder), wait_s)
    led, place, arrays = standing.read(Path(decoder))
    if place is None:
        return _begun(led, wait_s)
    if wait_s is not None and wait_s != place.get("wait_s"):
        raise InputError(f"{decoder}: wait_s: this session waits {place.get('wait_s')} s for labels, got {wait_s}")
    try:
        made = LiveDecoder(led, place["wait_s"])
        made._go_on(place, arrays)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        mend = f"begin anew with its decoder: ba.live(ba.load({str(decoder)!r}))"
        raise InputError(f"{decoder}: where it stands cannot be read ({clean(repr(error))}): {mend}") from error
    return made


def _begun(decoder: Decoder, wait_s: float | None) -> LiveDecoder:
    decoder.begin()
    return LiveDecoder(decoder, wait_s)
