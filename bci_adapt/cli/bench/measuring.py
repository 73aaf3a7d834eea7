"""How benchmarks measure: the fastest of calls that take turns, percentiles of single calls, and memory."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import resource
import sys
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

Timer = Callable[[], float]  # seconds per step


def clock(call: Callable[..., Any], *arguments: Any) -> float:
    begin = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - begin


def timer_of(work: Callable[[int], Any], call_s: float, most: int = 1_000_000) -> Timer:
    """Timer of ``work(k)``, which does k steps, with at most `most` of them and about `call_s` seconds per call."""
    work(1)  # compiles
    k = 1
    while k < most and (took := clock(work, k)) < 0.7 * call_s:
        k = min(most, max(k + 1, int(k * min(10.0, call_s / took))))
    return lambda: clock(work, k) / k


def fastest(timers: dict[str, Timer], rounds: int, seldom: dict[str, Timer] | None = None) -> dict[str, float]:
    """Steps per second of each in the fastest of its calls, taking turns; those in `seldom` join every third round."""
    seldom = seldom or {}
    best = dict.fromkeys([*timers, *seldom], np.inf)
    for number in range(rounds):
        for name, timer in (timers | seldom if number % 3 == 0 else timers).items():
            best[name] = min(best[name], timer())
    return {name: 1.0 / seconds for name, seconds in best.items()}


def traced_peak(call: Callable[[], Any]) -> int:
    """Bytes that Python and numpy held at most during the call, beyond what they held before."""
    gc.collect()
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def latencies(call: Callable[[int], Any], n_calls: int) -> np.ndarray:
    """Duration of each call in µs, after a few that are not counted."""
    for t in range(20):
        call(t)
    return np.array([1e6 * clock(call, t) for t in range(n_calls)])


def processes(n: int = 1, initializer: Callable[[], None] | None = None) -> ProcessPoolExecutor:
    """Fresh processes that take over nothing of this one's memory."""
    return ProcessPoolExecutor(n, mp_context=multiprocessing.get_context("spawn"), initializer=initializer)


_STATUS = Path("/proc/self/status")


def forget_peak() -> None:
    """Give freed memory back, which new arrays would fill unseen, and begin the peak of the resident set anew."""
    gc.collect()
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def resident() -> tuple[int, int]:
    """Bytes of this process in memory: now, and at most so far.

    On Linux ru_maxrss of a new process begins with the peak of the process that started it, so that its growth would
    come out too small; VmHWM is the process's own.
    """
    if _STATUS.exists():
        fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        now, peak = (1024 * int(fields[name].split()[0]) for name in ("VmRSS", "VmHWM"))
        return now, peak
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return peak, peak
