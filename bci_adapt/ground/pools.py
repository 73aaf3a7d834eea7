"""What performs jobs: this process, worker processes on this machine, or the workers of a dask scheduler."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import signal
import sys
import threading
import time
import traceback
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bci_adapt.errors import InputError, WorkersLost
from bci_adapt.ground.performing import ONE_THREAD, Report, environment, perform
from bci_adapt.ground.said import refused
from bci_adapt.ground.slurm import Slurm

# Dask sets a low trim threshold, which makes the allocator give every large array back to the system and fault it in
# again: BPTT takes half as long again. These limits keep freed memory; a worker's jobs need the same arrays again.
_ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": str(256 << 20), "MALLOC_MMAP_THRESHOLD_": str(32 << 20)}
_DASK_CONFIG = {
    "distributed.nanny.pre-spawn-environ": ONE_THREAD | _ALLOCATOR,
    "distributed.scheduler.allowed-failures": 0,  # retried here instead, one by one, so that no bystander is blamed
    "distributed.scheduler.worker-ttl": None,  # compiled loops hold the GIL for minutes; that is not a dead worker
    "distributed.worker.profile.enabled": False,  # its sampling thread would disturb every measured time
}
# Pages about the cluster, which any user of the machine could read.
_NO_PAGES = {f"distributed.{each}.http.routes": [] for each in ("scheduler", "worker", "nanny")}
_CONNECT_TIMEOUT_S = 10.0
_WATCH_S = 2.0  # how often an idle wait looks whether there is anybody to wait for
_NOBODY_S = 30.0  # without any worker process for so long, which a restart never takes
_RESUME = "what was finished is kept: the same command goes on from there"
MAX_TRIES = 3  # of a job whose worker process dies
_FILES, _FILES_OF_A_WORKER = (
    32,
    12,
)  # that this process has open while it starts workers; measured: 33, 41, 62 with 1, 2, 4
_LOUD = (
    "asyncio",
    "tornado.application",
    "tornado.general",
)  # they print a traceback and go on: what matters is raised


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

    def collect(self, patience_s: float | None = None) -> list[tuple[Path, Report]]:
        done, self._done = self._done, []
        return done


@dataclass(frozen=True)
class Remote:
    """A running dask scheduler: its address, and the PEM files of TLS where they are not in dask's own configuration.

    Raises `InputError` for a file that is not there, or for files beside an address that is not ``tls://``.
    """

    address: str
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None

    def __post_init__(self) -> None:
        if self._files and not self.address.startswith("tls://"):
            raise InputError(f"TLS files go with a scheduler at tls://host:port, got {self.address!r}")
        for name, path in self._files.items():
            if not path.is_file():
                raise InputError(f"{name} {path}: no such file; expected one in PEM format")

    @property
    def _files(self) -> dict[str, Path]:
        own = {"--tls-ca": self.tls_ca, "--tls-cert": self.tls_cert, "--tls-key": self.tls_key}
        return {name: path for name, path in own.items() if path is not None}

    def connect(self, stack: contextlib.ExitStack) -> Any:
        """A client of the scheduler, which is left running; `InputError` where nothing answers."""
        from distributed import Client
        from distributed.security import Security

        names = {"--tls-ca": "tls_ca_file", "--tls-cert": "tls_client_cert", "--tls-key": "tls_client_key"}
        files = {names[name]: str(path) for name, path in self._files.items()}
        try:
            security = Security(require_encryption=True, **files) if files else None
            return Client(self.address, timeout=_CONNECT_TIMEOUT_S, set_as_default=False, security=security)
        except (OSError, ValueError, RuntimeError, ImportError, TypeError) as error:
            raise InputError(
                f"no dask scheduler answers at {self.address!r} ({error}); expected an address like tcp://host:8786 or "
                "tls://host:8786 with --tls-ca, --tls-cert and --tls-key, with a scheduler of the same dask release; "
                "leave it out to work locally"
            ) from error


class Cluster:
    """Worker processes on this machine, those of a running dask scheduler, or those that Slurm starts.

    On this machine a job is handed out only when a process is free, so the order is exactly that of the priorities;
    a remote scheduler gets every job that is ready, so that an adaptive cluster can see what there is to do. The
    processes of this machine speak TLS with keys that live as long as they do, in memory: whoever can command a
    scheduler can run anything as its user.

    Raises `WorkersLost` where worker processes do not start, or nobody is left to perform what was submitted.
    """

    def __init__(self, target: int | Remote | Slurm) -> None:
        self.slots: float = target if isinstance(target, int) else float("inf")
        self._target = target
        self._stack = contextlib.ExitStack()
        self._cluster: Any = None
        self._futures: dict[Any, Path] = {}
        self._done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._nobody_since: float | None = None

    def __enter__(self) -> Cluster:
        import dask.config
        from distributed.utils import silence_logging_cmgr

        with self._stack as stack:
            stack.enter_context(dask.config.set(_DASK_CONFIG))
            stack.enter_context(silence_logging_cmgr(logging.CRITICAL))
            stack.enter_context(_silent(_LOUD))
            if isinstance(self._target, int):
                stack.enter_context(dask.config.set(_NO_PAGES))
                self._client = self._own_processes(self._target, stack)
            else:
                self._client = self._target.connect(stack)
            stack.callback(self._client.close)
            self._stack = stack.pop_all()
        return self

    def _own_processes(self, number: int, stack: contextlib.ExitStack) -> Any:
        from distributed import Client, LocalCluster
        from distributed.security import Security

        _require_files(number)
        logging.getLogger("distributed.process").setLevel(logging.ERROR)  # it tells of what it ends at the very end
        stack.enter_context(_hidden_main())
        stack.enter_context(environment(DASK_LOGGING__DISTRIBUTED="critical"))  # of the workers
        security = Security.temporary()
        try:
            with _ignored_interrupts():  # inherited: Ctrl-C is for this process, which then stops its workers
                self._cluster = LocalCluster(
                    n_workers=number,
                    threads_per_worker=1,
                    processes=True,
                    security=security,
                    memory_limit=0,  # jobs keep nothing in dask's memory: nothing to spill, no limit to enforce
                    # asked for no dashboard at all, dask would still serve its usual port to the network
                    scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
                    silence_logs=logging.CRITICAL,
                )
            stack.callback(self._cluster.close)
            return Client(self._cluster, set_as_default=False)
        except (OSError, RuntimeError, TimeoutError) as error:
            if (said := _cause(error)) is not None:
                raise InputError(f"worker processes did not start: {said}; --workers 0 does without") from error
            raise WorkersLost(
                f"worker processes did not start ({str(error) or type(error).__name__}): were they killed, or is there "
                f"no memory or process left? --workers 0 does without; {_RESUME}"
            ) from error

    def __exit__(self, *exception: object) -> None:
        with self._stack:
            if self._futures and self._client.status == "running":  # interrupted
                self._client.cancel(list(self._futures), force=True)
                if self._cluster is not None:  # a job cannot be asked to stop; its process can be stopped
                    self._cluster.sync(_close_all, list(self._cluster.workers.values()))

    def submit(self, path: Path, task: dict[str, Any], priority: int) -> None:
        future = self._client.submit(perform, **task, pure=False, priority=priority)
        self._futures[future] = path
        future.add_done_callback(self._done.put)

    def collect(self, patience_s: float | None = None) -> list[tuple[Path, Report]]:
        """Wait for at least one job, for `patience_s` where that is given; a worker that died too often is an error
        like any other.
        """
        done = []
        while not done or not self._done.empty():
            try:
                future = self._done.get(timeout=_WATCH_S if patience_s is None else patience_s)
            except queue.Empty:
                self._require_somebody()
                if patience_s is None:
                    continue
                break
            done.append((self._futures.pop(future), self._report(future)))
        return done

    def _report(self, future: Any) -> Report:
        from distributed import KilledWorker

        if future.status in ("cancelled", "lost"):
            raise WorkersLost(f"the connection to the dask scheduler is lost: is it still running? {_RESUME}")
        try:
            return future.result()
        except KilledWorker:
            message = f"its worker process died {MAX_TRIES} times: out of memory, killed, or crashed outside Python"
            return Report(message=message, error=message, died=True)
        except Exception as error:
            return Report(message=f"{type(error).__name__}: {error}", error=traceback.format_exc())

    def _require_somebody(self) -> None:
        """`WorkersLost` where no process of this machine has been there for longer than a new one takes to start."""
        if self._cluster is None or self._cluster.scheduler.workers:
            self._nobody_since = None
            return
        self._nobody_since = self._nobody_since or time.monotonic()
        if time.monotonic() - self._nobody_since > _NOBODY_S:
            raise WorkersLost(
                f"every worker process is gone and none could be started again for {_NOBODY_S:g} s: {_RESUME}"
            )


@contextlib.contextmanager
def _silent(loggers: Sequence[str]) -> Iterator[None]:
    """Keep these from saying anything for a while."""
    before = {name: logging.getLogger(name).level for name in loggers}
    for name in loggers:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def _require_files(number: int) -> None:
    """`InputError` where this process may not open as many files as `number` worker processes need."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    needed = _FILES + _FILES_OF_A_WORKER * number
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise InputError(
            f"{number} worker processes need about {needed} open files, and no more than {hard} are allowed: raise the "
            "limit (ulimit -n 4096), or use fewer (--workers 0 needs none)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _cause(error: BaseException | None) -> str | None:
    """What the operating system refused, of an error or of what it came from (`refused`)."""
    while error is not None:
        if (said := refused(error)) is not None:
            return said
        error = error.__cause__ or error.__context__
    return None


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
