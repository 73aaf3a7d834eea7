"""Compiled loops kept on disk: whatever was compiled where and loaded in whatever order, a loop is its own."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bci_adapt.ground import seals
from bci_adapt.learning.backends import compiled, kept
from bci_adapt.learning.cells.base import Network, cell, cells
from bci_adapt.learning.credit.base import rule
from bci_adapt.learning.online import Learner, run, start
from bci_adapt.learning.optimizers import RMSprop

SCRIPT = """
import json, sys
import test_kernel_cache as here
print(json.dumps({name: here.figures(name) for name in sys.argv[1:]}))
"""


def figures(name, backend="compiled"):
    """Predictions and final weights of a small run of one cell, summed."""
    network = Network(cell(name), 5, 6, 2)
    rng = np.random.default_rng(0)
    learner = Learner(network, rule("immediate"), RMSprop(1e-2), backend=backend)
    state = start(learner, *network.initial_weights(0))
    predictions, state = run(state, rng.standard_normal((40, 5)), rng.standard_normal((40, 2)))
    return [float(np.abs(predictions).sum()), float(np.abs(state.arrays["W"]).sum())]


def test_loops_compiled_in_different_processes_do_not_take_each_others_parts(tmp_path, request):
    """Numba numbers symbols per process: parts of two loops under one name would meet, and one serve both."""
    plain = {name: figures(name, backend="plain") for name in ("tanh", "gru")}
    folders = [str(request.config.rootpath / "tests"), str(request.config.rootpath)]
    # One hash seed makes numba number alike in every process: then names that can meet do meet.
    environment = os.environ | {"BCI_ADAPT_CACHE": str(tmp_path), "PYTHONPATH": os.pathsep.join(folders)}
    environment["PYTHONHASHSEED"] = "0"
    for order in (["tanh"], ["tanh", "gru"], ["tanh", "gru"], ["gru", "tanh"]):
        said = subprocess.run(
            [sys.executable, "-c", SCRIPT, *order], env=environment, capture_output=True, text=True, check=True
        )
        for name, found in json.loads(said.stdout).items():
            assert found == pytest.approx(plain[name], rel=1e-9), (order, name)
    kept = {path.name.split("-")[0] for path in tmp_path.rglob("*.nbi")}
    assert len(kept) == 2
    assert len(list(tmp_path.rglob("*.nbc"))) == 2  # one signature each


def test_every_part_of_a_loop_has_a_name_of_its_own(monkeypatch, tmp_path):
    import numba

    monkeypatch.setenv("BCI_ADAPT_CACHE", str(tmp_path))
    names = []
    real = numba.njit

    def recording(**options):
        decorate = real(**options)

        def wrapped(function):
            names.append(f"{function.__module__}.{function.__qualname__}")
            return decorate(function)

        return wrapped

    monkeypatch.setattr(numba, "njit", recording)
    for each in cells().values():
        for name in ("immediate", "window"):
            compiled._compile(each, rule(name), RMSprop(), "squared", False)
    assert len(names) == len(set(names)) > 40


def test_the_folder_is_named_by_what_a_loop_is_made_of():
    names = {
        (c, r): compiled.sources_digest(cell(c), rule(r)) for c in ("tanh", "gru") for r in ("immediate", "window")
    }
    assert len(set(names.values())) == 4
    assert {len(name) for name in names.values()} == {16}
    assert compiled.sources_digest(cell("tanh"), rule("window", steps=9)) == names["tanh", "window"]
    assert compiled.sources_digest(cell("tanh_skip"), rule("immediate")) == names["tanh", "immediate"]  # of one file


SMALL = """
import json, sys, warnings
from bci_adapt.learning.backends import kept
import test_kernel_cache as here
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    found = here.figures("tanh")
print(json.dumps([found, [str(each.message) for each in told]]))
"""


def in_a_process(cache, request, **environment):
    """Figures of a small run in a process of its own with this cache, and the warnings it gave."""
    folders = [str(request.config.rootpath / "tests"), str(request.config.rootpath)]
    environment = os.environ | {"BCI_ADAPT_CACHE": str(cache), "PYTHONPATH": os.pathsep.join(folders)} | environment
    said = subprocess.run([sys.executable, "-c", SMALL], env=environment, capture_output=True, text=True, check=True)
    return json.loads(said.stdout)


def test_a_kept_loop_that_is_not_as_it_was_written_is_compiled_again(tmp_path, request):
    found, told = in_a_process(tmp_path, request)
    assert not told
    data = next(tmp_path.rglob("*.nbc"))
    assert not (tmp_path / "kernels").stat().st_mode & 0o077, "nobody else reads or writes there"

    class Mischief:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    data.write_bytes(pickle.dumps(Mischief()))
    again, told = in_a_process(tmp_path, request)
    assert again == found
    assert [str(data) in each for each in told if "damaged since it was written" in each] == [True]
    assert not (tmp_path / "executed").exists()
    assert in_a_process(tmp_path, request) == [found, []], "kept again"


def test_a_cache_that_others_write_to_holds_no_compiled_code(tmp_path, monkeypatch):
    shared, own = tmp_path / "shared", tmp_path / "own"
    shared.mkdir()
    shared.chmod(0o777)
    monkeypatch.setenv("BCI_ADAPT_CACHE", str(shared))
    monkeypatch.setenv("XDG_CACHE_HOME", str(own))
    folder = kept.private_folder("here")
    assert folder.is_relative_to(own)
    assert not (shared / "kernels").exists()
    shared.chmod(0o755)
    assert kept.private_folder("here") == shared / "kernels" / "here"
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)  # both are somebody else's
    with pytest.warns(UserWarning, match="compiled in memory"):
        assert kept.private_folder("here") is None


def test_without_a_place_to_write_loops_are_compiled_in_memory(tmp_path, request):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    found, told = in_a_process(blocked / "cache", request, XDG_CACHE_HOME=str(blocked))
    assert found == pytest.approx(figures("tanh", backend="plain"), rel=1e-9)
    assert len([each for each in told if "compiled in memory" in each]) == 1


def _half(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _flipped(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def _foreign(file):
    file.write_bytes(pickle.dumps({"another": "object"}))


def _unsealed(file):
    seals.seal_of(file).unlink()


@pytest.mark.parametrize("damage", [_half, _flipped, _foreign, _unsealed])
def test_a_file_that_is_not_as_it_was_written_is_never_unpickled(tmp_path, damage):
    file = tmp_path / "loop.1.nbc"
    file.write_bytes(pickle.dumps(list(range(1000))))
    seals.seal(file, file)
    assert kept._is_usable(file)
    damage(file)
    seals._WHOLE.clear()
    with pytest.warns(seals.DamagedWarning, match=r"loop\.1\.nbc: damaged since it was written; it is compiled again"):
        assert not kept._is_usable(file)
    assert not file.exists()
    assert not seals.seal_of(file).exists()
