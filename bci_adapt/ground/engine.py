"""Jobs run by dask.distributed: nothing that has been done is done twice.

An experiment is a graph of `Job`. The key of a job is part of its result's file name, so *done* means *the file is
there*, and as it was written (`seals`): a result that was damaged is made again. Deleting the cache, or any part of it,
is always safe.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

from bci_adapt.errors import InputError
from bci_adapt.ground import seals
from bci_adapt.ground.jobs import Job, looking_once
from bci_adapt.ground.leases import Leases
from bci_adapt.ground.locks import mark_in_use
from bci_adapt.ground.performing import ONE_THREAD, Report, environment, sweep, task
from bci_adapt.ground.pools import MAX_TRIES, Cluster, Remote, Serial
from bci_adapt.ground.slurm import Slurm
from bci_adapt.ground.storage import cache_root

_LOOK_S = 0.3  # how often jobs that another run is at are looked after

Workplace: TypeAlias = str | Remote | Slurm
"""Where jobs are performed if not here: a running dask scheduler, or its address, or a Slurm cluster."""


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

    with looking_once():
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
    scheduler: Workplace | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Run what `jobs` need and do not have yet, each job in a worker process with one thread.

    `workers` is the number of processes (default: one per CPU); 0 runs the jobs one after another in this process.
    `scheduler` is a running dask scheduler instead, or its address, or a Slurm cluster; workers see the same file
    system. A job that
    raises is a `Failure`; what depends on it is skipped and everything else goes on. With nothing to run, nothing is
    started. An interrupt (Ctrl-C) stops the workers, removes what they had half-written and is raised again.

    Raises `InputError` if `workers` is negative, if both are given, or if nothing answers at `scheduler`, and
    `WorkersLost` where nobody is left to perform the jobs.
    """
    if workers is not None and scheduler is not None:
        raise InputError(f"workers={workers} and scheduler={scheduler!r} exclude each other; give one of them")
    if workers is not None and workers < 0:
        raise InputError(f"workers must be 1 or more (or 0: in this process, one after another), got {workers}")
    mark_in_use(cache_root())
    jobs = list(jobs)
    to_run, reused = plan(jobs)
    _touch(jobs)
    if progress is not None:
        progress.start(len(to_run), len(reused))
    if not to_run:
        return Outcome(0, len(reused))
    folders = {job.path.parent for job in to_run}
    sweep(folders)
    if (damaged := _cleared(to_run)) and progress is not None:
        progress.damaged(damaged)
    try:
        with environment(BCI_ADAPT_CACHE=str(cache_root()), **ONE_THREAD):
            if scheduler is not None:
                pool = Cluster(Remote(scheduler) if isinstance(scheduler, str) else scheduler)
            elif workers == 0:
                pool = Serial()
            else:
                pool = Cluster(min(workers or _cpu_count(), len(to_run)))
            with pool, Leases() as leases:
                return _Execution(pool, to_run, len(reused), progress, leases).outcome()
    finally:
        sweep(folders)


def _touch(jobs: Iterable[Job]) -> None:
    """Note that results are used, and those that they were made of, though nobody reads these now: what no config has
    used for long may be cleaned.
    """
    pending, seen = list(jobs), set()
    while pending:
        job = pending.pop()
        if job.path not in seen:
            seen.add(job.path)
            seals.touch(job.path)
            pending += [value for value in job.inputs.values() if isinstance(value, Job)]


def _cleared(to_run: Sequence[Job]) -> list[Path]:
    """Remove what is in the place of results that are to be made: damaged, or without a seal. Returns their paths."""
    damaged = [job.path for job in to_run if job.path.exists() and not job.is_done]
    for path in damaged:
        seals.remove(path)
    return damaged


def _dependencies(to_run: Sequence[Job]) -> tuple[dict[Path, set[Path]], dict[Path, list[Path]]]:
    """By the path of each job: what must be made before it, and the jobs that wait for it."""
    own = {job.path for job in to_run}
    missing = {
        job.path: {value.path for value in job.inputs.values() if isinstance(value, Job) and value.path in own}
        for job in to_run
    }
    dependents: dict[Path, list[Path]] = {job.path: [] for job in to_run}
    for path, needed in missing.items():
        for source in needed:
            dependents[source].append(path)
    return missing, dependents


class _Execution:
    """A pool kept busy with the most urgent of the jobs whose inputs are there, and which no other run is at."""

    def __init__(
        self, pool: Serial | Cluster, to_run: Sequence[Job], n_reused: int, progress: Progress | None, leases: Leases
    ) -> None:
        self.pool, self.to_run, self.n_reused, self.progress, self.leases = pool, to_run, n_reused, progress, leases
        self.urgency = _urgency(to_run)
        self.rank = {job.path: index for index, job in enumerate(to_run)}
        self.missing, self.dependents = _dependencies(to_run)
        self.ready = [self.rank[path] for path, needed in self.missing.items() if not needed]
        heapq.heapify(self.ready)
        self.waiting = {path for path, needed in self.missing.items() if needed}
        self.tries = dict.fromkeys(self.rank, 0)
        self.suspects: list[int] = []  # their worker died, perhaps of another job: tried alone, when all else is done
        self.elsewhere: list[int] = []  # another run is at them
        self.looked = 0.0
        self.n_running, self.n_executed = 0, 0
        self.failed: list[Failure] = []
        self.skipped: list[Skipped] = []

    def outcome(self) -> Outcome:
        """Run everything."""
        while self.ready or self.suspects or self.n_running or self.elsewhere:
            self._look_elsewhere()
            self._hand_out()
            if self.n_running:
                for path, report in self.pool.collect(_LOOK_S if self.elsewhere else None):
                    self._take_back(path, report)
            elif self.elsewhere:
                time.sleep(_LOOK_S)
        return Outcome(self.n_executed, self.n_reused, tuple(self.failed), tuple(self.skipped))

    def _look_elsewhere(self) -> None:
        """What another run was at is ready again once it no longer is: done, which is then found, or given up."""
        if not self.elsewhere or time.monotonic() - self.looked < _LOOK_S:
            return
        self.looked = time.monotonic()
        free = [number for number in self.elsewhere if not self.leases.taken(self.to_run[number].path)]
        for number in free:
            self.elsewhere.remove(number)
            heapq.heappush(self.ready, number)

    def _hand_out(self) -> None:
        while (self.ready and self.n_running < self.pool.slots) or (self.suspects and not self.n_running):
            number = heapq.heappop(self.ready or self.suspects)
            job = self.to_run[number]
            if not self.leases.claim(job.path):
                self.elsewhere.append(number)
                continue
            self.tries[job.path] += 1
            self.pool.submit(job.path, task(job), round(1000 * self.urgency[job.path]))
            self.n_running += 1

    def _take_back(self, path: Path, report: Report) -> None:
        self.n_running -= 1
        number = self.rank[path]
        job = self.to_run[number]
        if report.died and self.tries[path] < MAX_TRIES:
            heapq.heappush(self.suspects, number)
            return
        self.leases.release(path)
        if report.damaged and self.progress is not None:
            self.progress.damaged([Path(each) for each in report.damaged])
        self._tell(job, report.seconds, report.error is None)
        if report.error is not None:
            self.failed.append(Failure(job.label, job.key, report.message, report.error, report.is_input_error))
            self._skip_after(job)
            return
        elsewhere = report.found and self.tries[path] == 1  # on a second try it is this run's own
        self.n_executed += not elsewhere
        self.n_reused += elsewhere
        for dependent in self.dependents[path]:
            self.missing[dependent].discard(path)
            if not self.missing[dependent] and dependent in self.waiting:
                self.waiting.remove(dependent)
                heapq.heappush(self.ready, self.rank[dependent])

    def _skip_after(self, job: Job) -> None:
        """What needs a job that failed, directly or not, is not started."""
        lost = list(self.dependents[job.path])
        while lost:
            dependent = lost.pop()
            if dependent in self.waiting:
                self.waiting.remove(dependent)
                lost += self.dependents[dependent]
                skip = self.to_run[self.rank[dependent]]
                self.skipped.append(Skipped(skip.label, skip.key, job.label))
                self._tell(skip, 0.0, False)

    def _tell(self, job: Job, seconds: float, ok: bool) -> None:
        if self.progress is not None:
            self.progress.done(job.label, seconds, ok)


def _cpu_count() -> int:
    from dask.system import cpu_count  # respects affinity and the quota of a container

    return cpu_count()
