"""Reading what may be damaged, in a child process: a crash, a hang or a claim of all memory is then one error here.

libhdf5 trusts what a file says of itself: a flipped byte can make it read out of bounds, walk in a circle, or unpack
gigabytes. No check from Python comes before that. So a *reader* process is started once, imports what it needs, and
forks a child for every file; the child has limits and hands its result back in a file of plain arrays and JSON. The
start costs what the imports cost; a file after that a few milliseconds.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bci_adapt.errors import InputError
from bci_adapt.ground.text import clean

BASE_BYTES, BYTES_PER_BYTE = 4 * 2**30, 8
"""Memory that a child may take: this much, and so many times the size of its file."""
BASE_S, BYTES_PER_S = 30.0, 2 * 2**20
"""Processor time that a child may take: this long, and a second for so many bytes of its file."""
WAITING = 4
"""How many times longer than its processor time a child may take by the clock: discs and networks are slow."""
IDLE_S = 60.0
"""A reader that is asked nothing for so long ends; the next file starts another."""
FACTOR = "BCI_ADAPT_READ_LIMITS"


class Ended(InputError):
    """A file that ended the process that read it, or ran into its limits."""


def limits_of(path: Path) -> tuple[int, float]:
    """Bytes of memory and seconds of processor time that reading `path` may take.

    ``$BCI_ADAPT_READ_LIMITS`` multiplies both; with 0 files are read in this process and there are no limits.
    """
    try:
        size = path.stat().st_size
    except OSError:
        size = 0  # whoever reads it says what is wrong
    factor = _factor()
    return int(factor * (BASE_BYTES + BYTES_PER_BYTE * size)), factor * (BASE_S + size / BYTES_PER_S)


def call(function: str, path: Path, **arguments: Any) -> Any:
    """Return what `function` (``"module:name"``) returns of `path` and `arguments`, called in a child process.

    Arguments and result are what JSON can hold; what is larger goes through a file that an argument names. Raises
    `InputError` as the function does, and `Ended` naming the file when the child crashes, hangs or asks for more
    memory than `limits_of` allows; `RuntimeError` with the child's traceback for any other exception.
    """
    if not _factor():
        return _function(function)(path, **arguments)
    memory, seconds = limits_of(path)
    with tempfile.TemporaryDirectory(prefix="bci-adapt-") as folder:
        reply = Path(folder) / "reply.json"
        request = {
            "function": function,
            "path": str(path),
            "arguments": arguments,
            "cwd": str(Path.cwd()),
            "reply": str(reply),
            "memory": memory,
            "seconds": seconds,
        }
        status = _ask(function.partition(":")[0], json.dumps(request), WAITING * seconds)
        if status is None or status != 0 or not reply.exists():
            raise Ended(f"{path}: {_ended(status, memory, seconds)}")
        said = json.loads(reply.read_text(encoding="utf-8"))
    if "input_error" in said:
        raise InputError(said["input_error"])
    if "memory" in said:
        raise Ended(f"{path}: {_greedy(memory)}")
    if "error" in said:
        raise RuntimeError(f"{path}: reading it failed\n{said['error']}")
    return said["result"]


def warm_up(function: str) -> None:
    """Start the reader of the module of `function` (``"module:name"``) and have it call that, once, without waiting.

    What the function imports is imported while this process does something else, and once for all files.
    """
    if not _factor():
        return
    with _LOCK, contextlib.suppress(OSError):  # `call` says what is wrong
        reader = _reader(function.partition(":")[0])
        if reader.pid not in _WARM and reader.stdin is not None:
            _WARM.add(reader.pid)
            reader.stdin.write(json.dumps({"warm_up": function}) + "\n")
            reader.stdin.flush()


# ------------------------------------------------------------------------------------------------ this process


_LOCK = threading.Lock()
_READERS: dict[tuple[int, str], subprocess.Popen[str]] = {}  # by process: a fork of this one must not share pipes
_WARM: set[int] = set()


def _function(name: str) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _factor() -> float:
    given = os.environ.get(FACTOR, "1")
    try:
        factor = float(given)
    except ValueError:
        factor = -1.0
    if not 0 <= factor < 1e6:
        raise InputError(
            f"{FACTOR} must be a number, 0 or more, by which limits are multiplied; got {clean(given, 40)!r}"
        )
    return factor


def _reader(module: str) -> subprocess.Popen[str]:
    key = os.getpid(), module
    reader = _READERS.get(key)
    if reader is None or reader.poll() is not None:
        _READERS[key] = reader = subprocess.Popen(
            # -P: not the current folder, in which anything may lie
            [sys.executable, "-P", "-c", f"from bci_adapt.ground.guarded import serve; serve({module!r})"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # what a C library cries while it crashes
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C is for this process; and reader and child can be ended together
        )
        _WARM.discard(reader.pid)
    return reader


def _ask(module: str, request: str, wait_s: float) -> int | None:
    """The exit status of the child that served a request; None when it was ended after `wait_s` seconds."""
    with _LOCK:
        for _ in range(2):  # a reader may end, having been idle, at this very moment
            try:
                reader = _reader(module)
            except OSError as error:
                raise InputError(
                    f"no process can be started to read files in ({clean(error, 200)}); {FACTOR}=0 reads them in this "
                    "process, where a damaged file can crash it"
                ) from error
            late = threading.Event()
            timer = threading.Timer(wait_s, lambda reader=reader, late=late: (late.set(), _end(reader)))
            timer.daemon = True
            timer.start()
            try:
                assert reader.stdin is not None
                assert reader.stdout is not None
                with contextlib.suppress(BrokenPipeError):
                    reader.stdin.write(request + "\n")
                    reader.stdin.flush()
                said = reader.stdout.readline()
            except BaseException:  # an interrupt: nobody waits for this answer any more
                _end(reader)
                raise
            finally:
                timer.cancel()
            if said:
                return int(said)
            status = reader.wait()
            if late.is_set():
                return None
            if status:
                return status
        return 0


def _end(reader: subprocess.Popen[str]) -> None:
    """End a reader and its child."""
    with contextlib.suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(reader.pid, signal.SIGKILL)
        else:
            reader.kill()


@atexit.register
def _end_all() -> None:
    for (pid, _), reader in _READERS.items():
        if pid == os.getpid() and reader.poll() is None:
            _end(reader)
            reader.wait()


def _ended(status: int | None, memory: int, seconds: float) -> str:
    """What a status other than success says of a file, in words."""
    slow = status is None or status == -getattr(signal, "SIGXCPU", 0)
    if slow:
        return (
            f"reading it takes more than {seconds:.0f} s, which no file of its size needs: damaged? Fetch or copy it "
            f"again; {FACTOR}=10 allows ten times as much"
        )
    if status == -getattr(signal, "SIGKILL", 0):
        return f"the process that read it was killed: {_greedy(memory)}"
    how = f"by {signal.Signals(-status).name}" if status is not None and status < 0 else f"with exit code {status}"
    return f"reading it ended the process that did ({how}), inside its library: damaged; fetch or copy it again"


def _greedy(memory: int) -> str:
    return (
        f"reading it takes more than {memory / 2**30:.1f} GiB of memory, or more than there is: does it claim more "
        f"than it holds? Fetch or copy it again; {FACTOR}=10 allows ten times as much"
    )


# ------------------------------------------------------------------------------------------------ the reader


def serve(module: str) -> None:
    """Be the reader: for each line of standard input, a request in JSON, a child, and its exit status as a line."""
    importlib.import_module(module)
    with contextlib.suppress(ImportError):
        import psutil  # noqa: F401 (here, and not again in every child)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    while True:
        idle = threading.Timer(IDLE_S, lambda: os._exit(0))
        idle.daemon = True
        idle.start()
        line = sys.stdin.readline()
        idle.cancel()
        idle.join()  # a thread of its own in a fork would hold what nobody lets go
        if not line:
            return
        request = json.loads(line)
        if "warm_up" in request:
            _function(request["warm_up"])()
            continue
        answers.write(f"{_served(request)}\n")
        answers.flush()


def _served(request: dict[str, Any]) -> int:
    if not hasattr(os, "fork"):
        _answer(request)
        return 0
    child = os.fork()
    if not child:
        code = 1
        try:
            _limit(request["memory"], request["seconds"])
            _answer(request)
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _limit(memory: int, seconds: float) -> None:
    """Limit this process: `memory` bytes beyond those that it has, `seconds` of processor time, no core file."""
    import resource

    import psutil

    memory = min(memory, psutil.virtual_memory().total) + psutil.Process().memory_info().vms
    for what, limit in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, int(seconds) + 1),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        with contextlib.suppress(OSError, ValueError):  # a system without this limit
            resource.setrlimit(what, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _answer(request: dict[str, Any]) -> None:
    """Call what is asked for and write what it returns, or how it failed."""
    os.chdir(request["cwd"])
    try:
        said = {"result": _function(request["function"])(Path(request["path"]), **request["arguments"])}
    except InputError as error:
        said = {"input_error": str(error)}
    except MemoryError:
        said = {"memory": True}
    except Exception:
        said = {"error": traceback.format_exc()}
    Path(request["reply"]).write_text(json.dumps(said), encoding="utf-8")
