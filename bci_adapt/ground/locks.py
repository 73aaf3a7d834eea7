"""Locks between processes, on files; they end with the process that holds them, however it ends."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import portalocker

_IN_USE = "in_use"
_MARKS: dict[Path, IO[str]] = {}
"""The mark of this process in each cache it uses; held until it ends."""


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Be the only process inside, among those that name this file; others wait. The file stays, empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as handle:
        portalocker.lock(handle, portalocker.LOCK_EX)
        yield


def taken(handle: IO[bytes] | IO[str]) -> bool:
    """Take an open file for this process without waiting; False where another one holds it."""
    try:
        portalocker.lock(handle, portalocker.LOCK_EX | portalocker.LOCK_NB)
    except portalocker.LockException:
        return False
    return True


def mark_in_use(cache: Path) -> None:
    """Tell whoever cleans a cache that this process works with it, until it ends."""
    if cache in _MARKS:
        return
    with contextlib.suppress(OSError):  # nothing can be cleaned where nothing can be written
        folder = cache / _IN_USE
        folder.mkdir(parents=True, exist_ok=True)
        handle = open(folder / f"{os.getpid()}-{time.time_ns()}", "w", encoding="utf-8")  # noqa: SIM115
        if taken(handle):
            _MARKS[cache] = handle


def others_in(cache: Path) -> list[int]:
    """Process ids of other processes that work with a cache; marks of those that have ended are removed."""
    found, own = [], {handle.name for handle in _MARKS.values()}
    for path in sorted((cache / _IN_USE).glob("*-*")):
        if str(path) in own:
            continue
        with contextlib.suppress(OSError):
            with open(path, "a", encoding="utf-8") as handle:
                ended = taken(handle)
            if ended:
                path.unlink(missing_ok=True)
            else:
                found.append(int(path.name.partition("-")[0]))
    return found
