"""One job, performed where this is called: in a worker process, or in the process that runs the experiment."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import shutil
import socket
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bci_adapt.errors import InputError
from bci_adapt.ground import seals
from bci_adapt.ground.jobs import Job, code_digest_of, sources
from bci_adapt.ground.said import printable_warnings, refused
from bci_adapt.ground.storage import atomic_path, cache_root
from bci_adapt.ground.threads import one_thread

# One thread per worker: the jobs are the parallelism. Read by the libraries when they are first imported.
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMBA_NUM_THREADS"), "1"
)
_OWNER = ".owner"
_LOOK_S = 0.5  # how old a look at the sources of a job may be: 300 files, which cost more than the smallest jobs


@dataclass(frozen=True)
class Report:
    """What comes back from a worker, plain data: exceptions need not survive the journey."""

    seconds: float = 0.0
    found: bool = False
    message: str = ""
    error: str | None = None
    is_input_error: bool = False
    died: bool = False
    damaged: tuple[str, ...] = ()  # files besides results that were damaged and are mended


def task(job: Job) -> dict[str, Any]:
    """Arguments of `perform`: text and paths that mean the same on any machine that shares the file system."""
    return {
        "function": job.function,
        "modules": tuple(job.modules),
        "code": code_digest_of(job.recipe["sources"]),
        "parameters": job.recipe["parameters"],
        "inputs": {
            name: str(value.path if isinstance(value, Job) else Path(value).absolute())
            for name, value in job.inputs.items()
        },
        "sealed": tuple(name for name, value in job.inputs.items() if isinstance(value, Job)),
        "out": str(job.path),
        "cache": str(cache_root()),
    }


def perform(
    function: str,
    modules: tuple[str, ...],
    code: str,
    parameters: dict[str, Any],
    inputs: dict[str, str],
    sealed: tuple[str, ...],
    out: str,
    cache: str,
) -> Report:
    """Run one job where this is called, with one thread, writing its result atomically; its seal tells a torn one."""
    started = time.perf_counter()
    target = Path(out)
    try:
        if seals.is_whole(target):  # another run of the same experiment has been faster
            return Report(time.perf_counter() - started, found=True)
        with environment(BCI_ADAPT_CACHE=cache, **ONE_THREAD):
            looks = (sources(function, modules, patience_s) for patience_s in (_LOOK_S, 0.0))
            if all(code != code_digest_of(found) for found in looks):
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
            with _warnings_for_readers(), one_thread(), atomic_path(target, synced=False) as temporary:
                (temporary.parent / _OWNER).write_text(json.dumps([socket.gethostname(), os.getpid()]))
                call(parameters, {key: Path(value) for key, value in inputs.items()}, temporary)
                if temporary.exists():  # else `atomic_path` says that nothing was written
                    seals.seal(temporary, target)
        return Report(time.perf_counter() - started, damaged=tuple(map(str, seals.found_damaged())))
    except InputError as error:
        return Report(time.perf_counter() - started, False, str(error), traceback.format_exc(), True)
    except (Exception, SystemExit) as error:
        if (said := refused(error)) is not None:
            return Report(time.perf_counter() - started, False, said, traceback.format_exc(), True)
        message = f"{type(error).__name__}: {error}".removesuffix(": ")
        return Report(time.perf_counter() - started, False, message, traceback.format_exc())


@contextlib.contextmanager
def _warnings_for_readers() -> Iterator[None]:
    """Warnings of a job without what a terminal obeys; what it finds damaged is left to `Progress.damaged` to say."""
    seals.found_damaged()
    with printable_warnings(), warnings.catch_warnings():
        warnings.simplefilter("ignore", seals.DamagedWarning)
        yield


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set environment variables for a while, and undo whatever else the body sets."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def sweep(folders: Iterable[Path]) -> None:
    """Remove half-written results whose writer, a process of this machine, is gone."""
    for holder in [path for folder in folders for path in folder.glob(".*.part")]:
        if is_abandoned(holder, unsigned_s=math.inf):
            shutil.rmtree(holder, ignore_errors=True)


def is_abandoned(holder: Path, unsigned_s: float = 86400.0) -> bool:
    """Whether nobody writes any more what lies in a folder of `atomic_path`: its writer, a process of this machine, is
    gone, or nobody has signed it and it is older than `unsigned_s`.
    """
    import psutil

    try:
        host, pid = json.loads((holder / _OWNER).read_text())
        return host == socket.gethostname() and psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except (OSError, ValueError):  # not ours, or not yet signed
        with contextlib.suppress(OSError):
            return time.time() - holder.stat().st_mtime > unsigned_s
        return False
