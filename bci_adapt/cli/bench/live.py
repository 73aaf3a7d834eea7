"""What a live bin costs: single calls, beside an empty one and beside the same bins in one long call."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from bci_adapt.decoders.online_rnn import OnlineDecoder
from bci_adapt.decoders.recommendation import recommended
from bci_adapt.live.opening import live as live_of
from bci_adapt.live.serving import collected_once

BIN_S, N_OUTPUTS = 0.02, 2
_DISTINCT = 400  # bins that come again and again
_CALLS, _LONG = 80, _DISTINCT // 4  # calls of many bins each, and how many
_QUICK = ("tanh", 8, 1)


def cases(quick: bool) -> list[tuple[str, int, int, int]]:
    """(cell, units, members, inputs) of each decoder that is measured."""
    if quick:
        return [(*_QUICK, 5)]
    plain = [(cell, n, 1, m) for m in (96, 192) for cell in ("tanh", "gru") for n in (64, 128, 256)]
    return [("gru", 128, 3, 96), ("gru", 128, 3, 192), *plain]


def measure(n_bins: int, quick: bool = False, say: Callable[[str], None] = lambda text: None) -> list[dict[str, Any]]:
    """A row for each decoder, and each of predicting alone and with labels: percentiles in µs over `n_bins` bins
    (`p50_us` …), of an empty call (`empty_…`), a bin of a long call (`long_us`), `overhead` (the median above the
    long call, as a share of it), and how often garbage was collected (`collections`).
    """
    rows = []
    for cell, n, members, m in cases(quick):
        name = "recommended" if members > 1 else f"{cell}, n = {n}"
        say(f"{name}, m = {m}")
        decoder, X, Y = _fitted(cell, n, members, m)
        for labels in (False, True):
            rows.append({"decoder": name, "m": m, "labels": labels, **_case(decoder, X, Y, labels, n_bins)})
    return rows


def _fitted(cell: str, n: int, members: int, m: int) -> tuple[OnlineDecoder, np.ndarray, np.ndarray]:
    """A decoder as shipped but hardly trained, and bins for it: what a bin costs does not depend on what is known."""
    rng = np.random.default_rng(0)
    X, Y = rng.poisson(2.0, (_DISTINCT, m)).astype(float), rng.standard_normal((_DISTINCT, N_OUTPUTS))
    make = recommended if members > 1 else OnlineDecoder
    decoder = make(cell=cell, n_hidden=n, n_members=members, n_updates=1, bin_s=BIN_S, warm_up_s=2.0)
    return decoder.fit([X], [Y]), X, Y


def _case(decoder: OnlineDecoder, X: np.ndarray, Y: np.ndarray, labels: bool, n_bins: int) -> dict[str, Any]:
    led = live_of(decoder)
    led.warm_up()
    delay = round(decoder.label_delay_s / BIN_S)
    bins, taught = list(X), list(Y)

    def one(t: int) -> None:
        led.predict(bins[t % _DISTINCT], t * BIN_S)
        if labels and t >= delay:
            led.learn(taught[(t - delay) % _DISTINCT], (t - delay) * BIN_S)

    with collected_once():
        before = _collections()
        us = _timed(one, n_bins)
        collections = _collections() - before
        empty = _timed(lambda t: None, n_bins)
    if led.mode != "learning":
        raise RuntimeError(f"a guard fired while it was measured: {led.stopped_by}")
    told = _percentiles("", us) | _percentiles("empty_", empty)
    long_us = _long(decoder, X, Y if labels else None)
    return {**told, "long_us": long_us, "overhead": told["p50_us"] / long_us - 1.0, "collections": collections}


def _timed(call: Callable[[int], None], n: int) -> np.ndarray:
    """Duration of each call in µs."""
    out, now = np.empty(n), time.perf_counter_ns
    for t in range(n):
        begin = now()
        call(t)
        out[t] = now() - begin
    return out / 1e3


def _long(decoder: OnlineDecoder, X: np.ndarray, Y: np.ndarray | None) -> float:
    """µs a bin of long calls: the fastest of `_CALLS`, between two interruptions by the machine."""
    decoder.adapt(X, Y)
    took = []
    for call in range(_CALLS):
        part = slice(call % 4 * _LONG, call % 4 * _LONG + _LONG)
        begin = time.perf_counter()
        decoder.partial_fit(X[part], None if Y is None else Y[part])
        took.append(1e6 * (time.perf_counter() - begin) / _LONG)
    return min(took)


def _percentiles(prefix: str, us: np.ndarray) -> dict[str, float]:
    at = np.percentile(us, (50, 95, 99, 100)).tolist()
    return {f"{prefix}{name}_us": value for name, value in zip(("p50", "p95", "p99", "max"), at, strict=True)}


def _collections() -> int:
    return sum(each["collections"] for each in gc.get_stats())


def table(rows: list[dict[str, Any]]) -> Any:
    """The rows as a table for a terminal."""
    from rich.table import Table

    made = Table(title="a live bin, µs", title_justify="left", box=None, pad_edge=False)
    for heading in ("decoder", "m", "labels", "p50", "p95", "p99", "max", "empty p50", "in one call", "above it"):
        made.add_column(heading, justify="left" if heading == "decoder" else "right")
    for row in rows:
        times = [f"{row[f'{name}_us']:.1f}" for name in ("p50", "p95", "p99", "max")]
        more = [f"{row['empty_p50_us']:.2f}", f"{row['long_us']:.1f}", f"{100 * row['overhead']:.0f} %"]
        made.add_row(row["decoder"], str(row["m"]), "yes" if row["labels"] else "no", *times, *more)
    return made
