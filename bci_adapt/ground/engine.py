"""Jobs run by dask.distributed: nothing that has been done is done twice.

An experiment is a graph of `Job`. The key of a job is part of its result's file name, so *done* means *the file is
there*, and as it was written (`seals`): a result that was damaged is made again. Deleting the cache, or any part of it,
is always safe.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import importlib
import json
import logging
import os
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
import types
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bci_adapt.errors import InputError
from bci_adapt.ground import seals
from bci_adapt.ground.jobs import Job, digest, library_versions, sources
from bci_adapt.ground.storage import atomic_path, cache_root
from bci_adapt.ground.threads import one_thread

# One thread per worker: the jobs are the parallelism. Read by the libraries when they are first imported.
_ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMBA_NUM_THREADS"), "1"
)
# Dask sets a low trim threshold, which makes the allocator give every large array back to the system and fault it in
# again: BPTT takes half as long again. These limits keep freed memory; a worker's jobs need the same arrays again.
_ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": str(256 << 20), "MALLOC_MMAP_THRESHOLD_": str(32 << 20)}
_DASK_CONFIG = {
    "distributed.nanny.pre-spawn-environ": _ONE_THREAD | _ALLOCATOR,
    "distributed.scheduler.allowed-failures": 0,  # retried here instead, one by one, so that no bystander is blamed
    "distributed.scheduler.worker-ttl": None,  # compiled loops hold the GIL for minutes; that is not a dead worker
    "distributed.worker.profile.enabled": False,  # its sampling thread would disturb every measured time
}
_CONNECT_TIMEOUT_S = 10.0
_MAX_TRIES = 3  # of a job whose worker process dies
_OWNER = ".owner"


def plan(jobs: Iterable[Job]) -> tuple[list[Job], list[Job]]:
    """Return the jobs to run and the jobs whose results are there; neither looks beyond a finished job.

    The first list is in order of priority: by the expected seconds from a job's start to the end of the longest chain
    that needs it, longest first, which puts inputs before what they feed.
    """
    order: dict[Path, Job] = {}
    reused: dict[Path, Job] = {}

    def visit(job: Job) -> None:
        if job.path in order or job.path in reused:
            return
        if job.is_done:
            reused[job.path] = job
            return
        for value in job.inputs.values():
            if isinstance(value, Job):
                visit(value)
        order[job.path] = job

    for job in jobs:
        visit(job)
    urgency = _urgency(list(order.values()))
    return sorted(order.values(), key=lambda job: -urgency[job.path]), list(reused.values())


def _urgency(jobs: Sequence[Job]) -> dict[Path, float]:
    """Expected seconds from the start of each job to the end of its longest chain; `jobs` have inputs first."""
    after = {job.path: 0.0 for job in jobs}
    for job in reversed(jobs):
        after[job.path] += job.cost
        for value in job.inputs.values():
            if isinstance(value, Job) and value.path in after:
                after[value.path] = max(after[value.path], after[job.path])
    return after


# ------------------------------------------------------------------------------------------------ execution


class Progress(Protocol):
    """What `execute` tells while it works; `done` comes once for each of the `total` jobs, skipped ones too, and
    `damaged` before them, where results were not as they were written and are made again.
    """

    def start(self, total: int, reused: int) -> None: ...

    def done(self, label: str, seconds: float, ok: bool) -> None: ...

    def damaged(self, paths: Sequence[Path]) -> None: ...


@dataclass(frozen=True)
class Failure:
    """A job that raised, or whose worker kept dying: one line for the reader, the traceback for the developer."""

    label: str
    key: str
    message: str
    error: str
    is_input_error: bool


@dataclass(frozen=True)
class Skipped:
    """A job that could not start because `because`, the label of a job it needs, failed."""

    label: str
    key: str
    because: str


@dataclass(frozen=True)
class Outcome:
    """Counts of jobs executed successfully and reused, and every job that has no result."""

    executed: int
    reused: int
    failed: tuple[Failure, ...] = ()
    skipped: tuple[Skipped, ...] = ()


def execute(
    jobs: Iterable[Job],
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Run what `jobs` need and do not have yet, each job in a worker process with one thread.

    `workers` is the number of processes (default: one per CPU); 0 runs the jobs one after another in this process.
    `scheduler` is the address of a running dask scheduler instead, whose workers see the same file system. A job that
    raises is a `Failure`; what depends on it is skipped and everything else goes on. With nothing to run, nothing is
    started. An interrupt (Ctrl-C) stops the workers, removes what they had half-written and is raised again.

    Raises `InputError` if `workers` is negative, if both are given, or if nothing answers at `scheduler`.
    """
    if workers is not None and scheduler is not None:
        raise InputError(f"workers={workers} and scheduler={scheduler!r} exclude each other; give one of them")
    if workers is not None and workers < 0:
        raise InputError(f"workers must be 1 or more (or 0: in this process, one after another), got {workers}")
    to_run, reused = plan(jobs)
    if progress is not None:
        progress.start(len(to_run), len(reused))
    if not to_run:
        return Outcome(0, len(reused))
    folders = {job.path.parent for job in to_run}
    _sweep(folders)
    if (damaged := _cleared(to_run)) and progress is not None:
        progress.damaged(damaged)
    try:
        with _environment(BCI_ADAPT_CACHE=str(cache_root()), **_ONE_THREAD):
            if scheduler is not None:
                pool = _Cluster(scheduler)
            elif workers == 0:
                pool = _Serial()
            else:
                pool = _Cluster(min(workers or _cpu_count(), len(to_run)))
            with pool:
                return _run(pool, to_run, len(reused), progress)
    finally:
        _sweep(folders)


def _cleared(to_run: Sequence[Job]) -> list[Path]:
    """Remove what is in the place of results that are to be made: damaged, or without a seal. Returns their paths."""
    damaged = [job.path for job in to_run if job.path.exists() and not job.is_done]
    for path in damaged:
        seals.remove(path)
    return damaged


def _run(pool: _Serial | _Cluster, to_run: Sequence[Job], n_reused: int, progress: Progress | None) -> Outcome:
    """Keep `pool` busy with the most urgent of the jobs whose inputs are there."""
    urgency = _urgency(to_run)
    rank = {job.path: index for index, job in enumerate(to_run)}
    missing = {
        job.path: {value.path for value in job.inputs.values() if isinstance(value, Job) and value.path in rank}
        for job in to_run
    }
    dependents: dict[Path, list[Path]] = {path: [] for path in rank}
    for path, needed in missing.items():
        for source in needed:
            dependents[source].append(path)
    ready = [rank[path] for path, needed in missing.items() if not needed]
    heapq.heapify(ready)
    waiting = {path for path, needed in missing.items() if needed}
    tries = dict.fromkeys(rank, 0)
    suspects: list[int] = []  # their worker died, perhaps of another job: tried again alone, when all else is done
    n_running, n_executed = 0, 0
    failed: list[Failure] = []
    skipped: list[Skipped] = []

    def tell(job: Job, seconds: float, ok: bool) -> None:
        if progress is not None:
            progress.done(job.label, seconds, ok)

    while ready or suspects or n_running:
        while (ready and n_running < pool.slots) or (suspects and not n_running):
            job = to_run[heapq.heappop(ready or suspects)]
            tries[job.path] += 1
            pool.submit(job.path, _task(job), round(1000 * urgency[job.path]))
            n_running += 1
        for path, report in pool.collect():
            n_running -= 1
            job = to_run[rank[path]]
            if report.died and tries[path] < _MAX_TRIES:
                heapq.heappush(suspects, rank[path])
                continue
            ok = report.error is None
            if report.damaged and progress is not None:
                progress.damaged([Path(each) for each in report.damaged])
            tell(job, report.seconds, ok)
            if ok:
                elsewhere = report.found and tries[path] == 1  # on a second try it is this run's own
                n_executed += not elsewhere
                n_reused += elsewhere
                for dependent in dependents[path]:
                    missing[dependent].discard(path)
                    if not missing[dependent] and dependent in waiting:
                        waiting.remove(dependent)
                        heapq.heappush(ready, rank[dependent])
                continue
            failed.append(Failure(job.label, job.key, report.message, report.error or "", report.is_input_error))
            lost = list(dependents[path])
            while lost:
                dependent = lost.pop()
                if dependent in waiting:
                    waiting.remove(dependent)
                    lost += dependents[dependent]
                    skip = to_run[rank[dependent]]
                    skipped.append(Skipped(skip.label, skip.key, job.label))
                    tell(skip, 0.0, False)
    return Outcome(n_executed, n_reused, tuple(failed), tuple(skipped))


@dataclass(frozen=True)
class _Report:
    """What comes back from a worker, plain data: exceptions need not survive the journey."""

    seconds: float = 0.0
    found: bool = False
    message: str = ""
    error: str | None = None
    is_input_error: bool = False
    died: bool = False
    damaged: tuple[str, ...] = ()  # files besides results that were damaged and are mended


def _task(job: Job) -> dict[str, Any]:
    """Arguments of `_perform`: text and paths that mean the same on any machine that shares the file system."""
    return {
        "function": job.function,
        "modules": tuple(job.modules),
        "code": digest([job.recipe["sources"], library_versions()]),
        "parameters": job.recipe["parameters"],
        "inputs": {
            name: str(value.path if isinstance(value, Job) else Path(value).absolute())
            for name, value in job.inputs.items()
        },
        "sealed": tuple(name for name, value in job.inputs.items() if isinstance(value, Job)),
        "out": str(job.path),
        "cache": str(cache_root()),
    }


def _perform(
    function: str,
    modules: tuple[str, ...],
    code: str,
    parameters: dict[str, Any],
    inputs: dict[str, str],
    sealed: tuple[str, ...],
    out: str,
    cache: str,
) -> _Report:
    """Run one job where this is called, with one thread, writing its result atomically."""
    started = time.perf_counter()
    target = Path(out)
    try:
        if seals.is_whole(target):  # another run of the same experiment has been faster
            return _Report(time.perf_counter() - started, found=True)
        with _environment(BCI_ADAPT_CACHE=cache, **_ONE_THREAD):
            if code != digest([sources(function, modules), library_versions()]):
                raise InputError(
                    f"the code or library versions behind {function} are not those this run was planned with: "
                    "a source was edited meanwhile, or a remote worker has another installation; start the run again"
                )
            for name in sealed:
                if not seals.is_whole(Path(inputs[name])):
                    raise InputError(
                        f"{inputs[name]}: was damaged, or removed, while this run worked; start the same command "
                        "again: it is made anew"
                    )
            module, _, name = function.partition(":")
            call = getattr(importlib.import_module(module), name)
            with _damage_told_by_engine(), one_thread(), atomic_path(target) as temporary:
                (temporary.parent / _OWNER).write_text(json.dumps([socket.gethostname(), os.getpid()]))
                call(parameters, {key: Path(value) for key, value in inputs.items()}, temporary)
                if temporary.exists():  # else `atomic_path` says that nothing was written
                    seals.seal(temporary, target)
        return _Report(time.perf_counter() - started, damaged=tuple(map(str, seals.found_damaged())))
    except InputError as error:
        return _Report(time.perf_counter() - started, False, str(error), traceback.format_exc(), True)
    except (Exception, SystemExit) as error:
        message = f"{type(error).__name__}: {error}".removesuffix(": ")
        return _Report(time.perf_counter() - started, False, message, traceback.format_exc())


@contextlib.contextmanager
def _damage_told_by_engine() -> Iterator[None]:
    """Leave it to `Progress.damaged` to say what a job has found damaged."""
    seals.found_damaged()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", seals.DamagedWarning)
        yield


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Set environment variables for a while, and undo whatever else the body sets."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def _cpu_count() -> int:
    from dask.system import cpu_count  # respects affinity and the quota of a container

    return cpu_count()


def _sweep(folders: Iterable[Path]) -> None:
    """Remove half-written results whose writer, a process of this machine, is gone."""
    import psutil

    for holder in [path for folder in folders for path in folder.glob(".*.part")]:
        try:
            host, pid = json.loads((holder / _OWNER).read_text())
            gone = host == socket.gethostname() and psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            gone = True
        except (OSError, ValueError):  # not ours, or not yet signed
            continue
        if gone:
            shutil.rmtree(holder, ignore_errors=True)


class _Serial:
    """One job after another, in this process: for debugging, and where processes cannot be started."""

    slots: float = 1

    def __init__(self) -> None:
        self._done: list[tuple[Path, _Report]] = []

    def __enter__(self) -> _Serial:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def submit(self, path: Path, task: dict[str, Any], priority: int) -> None:
        self._done.append((path, _perform(**task)))

    def collect(self) -> list[tuple[Path, _Report]]:
        done, self._done = self._done, []
        return done


class _Cluster:
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

    def __enter__(self) -> _Cluster:
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
                stack.enter_context(_environment(DASK_LOGGING__DISTRIBUTED="critical"))  # of the workers
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
        future = self._client.submit(_perform, **task, pure=False, priority=priority)
        self._futures[future.key] = path, future
        self._completed.add(future)

    def collect(self) -> list[tuple[Path, _Report]]:
        """Wait for at least one job; a worker that died too often is an error like any other."""
        from distributed import KilledWorker

        done = []
        for future in self._completed.next_batch(block=True):
            path, _ = self._futures.pop(future.key)
            try:
                report = future.result()
            except KilledWorker:
                message = (
                    f"its worker process died {_MAX_TRIES} times: out of memory, killed, or crashed outside Python"
                )
                report = _Report(message=message, error=message, died=True)
            except Exception as error:
                report = _Report(message=f"{type(error).__name__}: {error}", error=traceback.format_exc())
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
