"""What performs jobs: this process, worker processes on this machine, or the workers of a dask scheduler."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
import threading
import traceback
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bci_adapt.errors import InputError
from bci_adapt.ground.performing import ONE_THREAD, Report, environment, perform

# Dask sets a low trim threshold, which makes the allocator give every large array back to the system and fault it in
# again: BPTT takes half as long again. These limits keep freed memory; a worker's jobs need the same arrays again.
_ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": str(256 << 20), "MALLOC_MMAP_THRESHOLD_": str(32 << 20)}
_DASK_CONFIG = {
    "distributed.nanny.pre-spawn-environ": ONE_THREAD | _ALLOCATOR,
    "distributed.scheduler.allowed-failures": 0,  # retried here instead, one by one, so that no bystander is blamed
    "distributed.scheduler.worker-ttl": None,  # compiled loops hold the GIL for minutes; that is not a dead worker
    "distributed.worker.profile.enabled": False,  # its sampling thread would disturb every measured time
}
_CONNECT_TIMEOUT_S = 10.0
MAX_TRIES = 3  # of a job whose worker process dies


class Serial:
    """One job after another, in this process: for debugging, and where processes cannot be started."""

    slots: float = 1

    def __init__(self) -> None:
        self._done: list[tuple[Path, Report]] = []

    def __enter__(self) -> Serial:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def submit(self, path: Path, task: dict[str, Any], priority: int) -> None:
        self._done.append((path, perform(**task)))

    def collect(self) -> list[tuple[Path, Report]]:
        done, self._done = self._done, []
        return done


class Cluster:
    """Worker processes on this machine, or (given an address) the workers of a running dask scheduler.

    On this machine a job is handed out only when a process is free, so the order is exactly that of the priorities;
    a remote scheduler gets every job that is ready, so that an adaptive cluster can see what there is to do.
    """

    def __init__(self, target: int | str) -> None:
        self.slots: float = float("inf") if isinstance(target, str) else target
        self._target = target
        self._stack = contextlib.ExitStack()
        self._cluster: Any = None
        self._futures: dict[Any, tuple[Path, Any]] = {}

    def __enter__(self) -> Cluster:
        import dask.config
        from distributed import Client, LocalCluster, as_completed

        with self._stack as stack:
            stack.enter_context(dask.config.set(_DASK_CONFIG))
            if isinstance(self._target, str):
                try:
                    client = Client(self._target, timeout=_CONNECT_TIMEOUT_S, set_as_default=False)
                except (OSError, ValueError, RuntimeError, ImportError) as error:
                    raise InputError(
                        f"no dask scheduler answers at {self._target!r} ({error}); expected an address like "
                        "tcp://host:8786 with a scheduler of the same dask release, or leave it out to work locally"
                    ) from error
            else:
                stack.enter_context(_hidden_main())
                stack.enter_context(environment(DASK_LOGGING__DISTRIBUTED="critical"))  # of the workers
                with _ignored_interrupts():  # inherited: Ctrl-C is for this process, which then stops its workers
                    cluster = LocalCluster(
                        n_workers=self._target,
                        threads_per_worker=1,
                        processes=True,
                        memory_limit=0,  # jobs keep nothing in dask's memory: nothing to spill, no limit to enforce
                        # asked for no dashboard at all, dask would still serve its usual port to the network
                        scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
                        silence_logs=logging.CRITICAL,
                    )
                stack.callback(cluster.close)
                client = Client(cluster, set_as_default=False)
                self._cluster = cluster
            stack.callback(client.close)
            self._client, self._completed = client, as_completed(loop=client.loop)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        with self._stack:
            if self._futures:  # interrupted
                self._client.cancel([future for _, future in self._futures.values()], force=True)
                if self._cluster is not None:  # a job cannot be asked to stop; its process can be stopped
                    self._cluster.sync(_close_all, list(self._cluster.workers.values()))

    def submit(self, path: Path, task: dict[str, Any], priority: int) -> None:
        future = self._client.submit(perform, **task, pure=False, priority=priority)
        self._futures[future.key] = path, future
        self._completed.add(future)

    def collect(self) -> list[tuple[Path, Report]]:
        """Wait for at least one job; a worker that died too often is an error like any other."""
        from distributed import KilledWorker

        done = []
        for future in self._completed.next_batch(block=True):
            path, _ = self._futures.pop(future.key)
            try:
                report = future.result()
            except KilledWorker:
                message = f"its worker process died {MAX_TRIES} times: out of memory, killed, or crashed outside Python"
                report = Report(message=message, error=message, died=True)
            except Exception as error:
                report = Report(message=f"{type(error).__name__}: {error}", error=traceback.format_exc())
            done.append((path, report))
        return done


async def _close_all(nannies: Sequence[Any]) -> None:
    await asyncio.gather(*(nanny.close(timeout=0.2) for nanny in nannies))


@contextlib.contextmanager
def _hidden_main() -> Iterator[None]:
    """Keep new worker processes from running the user's script again, as multiprocessing's spawn would.

    A script that is read from top to bottom then needs no ``if __name__ == "__main__"``, and no worker pays for the
    imports of a command line. Jobs are found by module name, so workers have no use for the script.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextlib.contextmanager
def _ignored_interrupts() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
