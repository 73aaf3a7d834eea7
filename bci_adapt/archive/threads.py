"""Work on many items at the same time, as an archive allows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

from bci_adapt.errors import InputError

_T = TypeVar("_T")
_R = TypeVar("_R")


def in_threads(work: Callable[[_T], _R], items: Iterable[_T], jobs: int, stop: threading.Event) -> list[_R]:
    """Results of `work` on every item, in their order; all are tried, then the first `InputError` is raised.

    Ctrl-C, and whatever else is raised, sets `stop`, which downloads heed; what has arrived is kept.
    """
    stop.clear()
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            for future in as_completed(futures):
                error = future.exception()
                if error is not None and not isinstance(error, InputError):
                    raise error
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    failed = [error for future in futures if (error := future.exception()) is not None]
    if len(failed) > 1:
        raise type(failed[0])(f"{failed[0]} (and {len(failed) - 1} more of {len(futures)} files)") from failed[0]
    if failed:
        raise failed[0]
    return [future.result() for future in futures]
