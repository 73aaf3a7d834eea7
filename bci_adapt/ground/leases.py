"""Who is at which job: two runs of one experiment at once, or two shards of it, share the work instead of doubling it.

A lease is a file beside the result, ``.<name>.lease``: the machine and process of the run that has handed the job out,
which touches it as long as it lives. It is free again when it is removed, when that process is gone, or – of another
machine, whose processes cannot be seen – when nobody has touched it for `EXPIRY_S`. It saves work and guards nothing:
results are written whole or not at all, whoever makes them.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import threading
import time
from pathlib import Path

HEARTBEAT_S = 30.0
EXPIRY_S = 600.0  # a compiled loop holds up the heartbeat of a run without worker processes for minutes


def lease_of(path: Path) -> Path:
    """Where the lease of the result `path` lies."""
    return path.with_name(f".{path.name}.lease")


@functools.lru_cache(maxsize=1)
def _owner(pid: int) -> list[str | int | float]:
    import psutil

    return [socket.gethostname(), pid, psutil.Process(pid).create_time()]


def _alive(lease: Path) -> bool:
    """Whether whoever holds a lease is still at it; an unreadable one may be about to be written."""
    import psutil

    try:
        age_s = time.time() - lease.stat().st_mtime
        text = lease.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    try:
        host, pid, started = json.loads(text)
    except (ValueError, TypeError):
        return age_s < HEARTBEAT_S
    if host != socket.gethostname():
        return age_s < EXPIRY_S
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - started) < 1.0
    except (psutil.Error, TypeError, ValueError):
        return False


class Leases:
    """The leases that this process holds; they are given back at the end of the ``with``."""

    def __init__(self) -> None:
        self._held: set[Path] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="leases", daemon=True)

    def __enter__(self) -> Leases:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        for path in list(self._held):
            self.release(path)

    def claim(self, path: Path) -> bool:
        """Take the job of the result `path`; False where another run is at it."""
        if path in self._held:
            return True
        lease = lease_of(path)
        text = json.dumps(_owner(os.getpid()))
        try:
            lease.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError), open(lease, "x", encoding="utf-8") as handle:
                handle.write(text)
                self._held.add(path)
                return True
            if _alive(lease):
                return False
            lease.write_text(text, encoding="utf-8")  # two that take over at the same moment double one job
        except OSError:  # a place that cannot be written to is told of when the result is
            return True
        self._held.add(path)
        return True

    def taken(self, path: Path) -> bool:
        """Whether another run is at the job of the result `path`."""
        return path not in self._held and _alive(lease_of(path))

    def release(self, path: Path) -> None:
        """Give a job back, done or not."""
        if path in self._held:
            self._held.discard(path)
            with contextlib.suppress(OSError):
                lease_of(path).unlink()

    def _beat(self) -> None:
        while not self._over.wait(HEARTBEAT_S):
            for path in list(self._held):
                with contextlib.suppress(OSError):
                    os.utime(lease_of(path))
