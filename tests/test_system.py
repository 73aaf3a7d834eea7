"""What the operating system refuses: one sentence with what to do, and nothing half-written."""

import errno
import os
import subprocess
import sys
import warnings

import numpy as np
import psutil
import pytest

from bci_adapt.errors import InputError
from bci_adapt.ground.said import printable_warnings, refused
from bci_adapt.ground.seals import DamagedWarning
from bci_adapt.ground.storage import atomic_path, refusal, write_text
from bci_adapt.learning import online
from bci_adapt.learning.backends import compiled
from bci_adapt.learning.cells.base import Network, cell
from bci_adapt.learning.credit.base import rule
from bci_adapt.learning.optimizers import optimizer


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full: free some space"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EACCES, "you may not read or write there"),
        (errno.EMFILE, "too many files are open"),
        (errno.ENOTDIR, "a file is where a folder should be"),
    ],
)
def test_each_refusal_says_what_to_do(tmp_path, number, words):
    target = tmp_path / "result"
    write_text(target, "before")

    def write():
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise OSError(number, os.strerror(number))

    with pytest.raises(InputError, match=rf"result.*: {words}"):
        write()
    assert target.read_text() == "before"
    assert [each.name for each in tmp_path.iterdir()] == ["result"]


def test_what_hdf5_says_in_its_own_way_is_understood_and_other_errors_stay():
    said = RuntimeError("Can't decrement id ref count (file write failed: errno = 28, error message = 'No space left')")
    assert "the disk is full" in refusal(said, "x.nc")
    assert "not enough memory" in refusal(MemoryError())
    for other in (RuntimeError("diverged"), FileNotFoundError(errno.ENOENT, "none"), ValueError("errno = 28")):
        assert refusal(other) is None
    with pytest.raises(RuntimeError, match="diverged"), atomic_path("/tmp/x") as _:
        raise RuntimeError("diverged")


def test_a_library_that_finds_no_memory_is_told_as_memory():
    no_room = ImportError("libtorch_cpu.so: failed to map segment from shared object")
    assert "not enough memory: use fewer workers" in refused(no_room)
    assert "too many files" in refused(OSError(errno.EMFILE, "Too many open files"))
    assert refused(ImportError("No module named 'torch'")) is None
    assert refused(ValueError("failed to map segment")) is None
    worded_anew = OSError("Could not find/load shared object file 'libllvmlite.so'")
    assert refused(worded_anew) is None
    worded_anew.__context__ = OSError("libllvmlite.so: failed to map segment from shared object")
    assert "not enough memory" in refused(worded_anew)


def test_a_loop_is_not_compiled_where_the_compiler_would_end_the_process(monkeypatch):
    resource = pytest.importorskip("resource")
    network = Network(cell("tanh"), 2, 2, 2)
    learner = online.Learner(network, rule("immediate"), optimizer("rmsprop"))
    state, limit = online.start(learner, *network.initial_weights(0)), [0]

    def adapt():
        return online.run(state, np.zeros((2, 2)), np.full((2, 2), 0.5))

    monkeypatch.setattr(resource, "getrlimit", lambda what: (limit[0], resource.RLIM_INFINITY))
    monkeypatch.setattr(compiled, "_compiled", {})
    limit[0] = psutil.Process().memory_info().vms + (100 << 20)
    with pytest.raises(InputError, match=r"compiling .* needs 128 MB of address space, .* leaves \d+ MB: raise it"):
        adapt()
    limit[0] = resource.RLIM_INFINITY
    adapt()
    limit[0] = 1  # what is compiled needs none
    adapt()


@pytest.mark.parametrize("blocked", ["", "sessions"])
def test_a_file_where_a_folder_should_be_is_one_sentence_of_a_command(tmp_path, blocked):
    cache = tmp_path / "cache"
    if blocked:
        cache.mkdir()
    (cache / blocked if blocked else cache).write_text("in the way")
    config = tmp_path / "tiny.toml"
    config.write_text(
        'name = "tiny"\nseeds = [0]\n[source]\nkind = "simulated"\ndays = [0, 1]\nduration_s = 120.0\n'
        '[[pairs]]\nsource = 1\ntargets = [2]\n[[arms]]\nrule = "immediate"\noptimizer = "rmsprop"\n'
    )
    said = subprocess.run(
        [sys.executable, "-m", "bci_adapt.cli", "run", str(config), "--workers", "0", "-q"],
        env=os.environ | {"BCI_ADAPT_CACHE": str(cache)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert said.returncode == 2, said.stderr
    assert "Traceback" not in said.stderr
    assert "a file is where a folder should be: move it away" in said.stderr


def test_too_few_open_files_for_worker_processes_is_one_sentence(monkeypatch):
    resource = pytest.importorskip("resource")
    from bci_adapt.ground import pools

    limits, raised = [20, 20], []
    monkeypatch.setattr(resource, "getrlimit", lambda what: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", lambda what, to: raised.append(to))
    with pytest.raises(InputError, match=r"2 worker processes need about 56 open files, .* more than 20 .*ulimit -n"):
        pools._require_files(2)
    assert raised == []
    limits[1] = 4096  # the soft limit is this process's own to raise, as far as it needs
    pools._require_files(2)
    assert raised == [(56, 4096)]
    limits[0] = 56
    pools._require_files(2)
    assert len(raised) == 1
    assert pools._cause(RuntimeError("failed to start")) is None
    inner = OSError(errno.EMFILE, "Too many open files")
    outer = RuntimeError("Nanny failed to start.")
    outer.__cause__ = inner
    assert "too many files are open" in pools._cause(outer)


def test_what_was_damaged_and_is_mended_is_a_note():
    with printable_warnings():
        note, other = (
            warnings.formatwarning(f"a\x1b[2Jb.nc: {kind.__name__}", kind, "code.py", 7, "")
            for kind in (DamagedWarning, UserWarning)
        )
    assert note.startswith("note: a")
    assert note.endswith("b.nc: DamagedWarning\n")
    assert "code.py:7: UserWarning: a" in other
    assert "\x1b" not in note + other
