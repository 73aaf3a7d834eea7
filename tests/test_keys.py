"""Keys follow what can change a result: an addition moves no key and no digest of what does not use it.

Each case is a copy of the package with one thing added or edited. A child process computes the keys of jobs of every
kind and the digests of claims in that copy; nothing is run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import portalocker
import pytest
from problems import SMALL_FIGURE

import bci_adapt

PACKAGE = Path(bci_adapt.__file__).parent
FIGURES = {
    "methods": f"""
        figure = "methods"
        {SMALL_FIGURE}
        streams = [{{ name = "characters", earlier = 100, n_bins = 200 }}]
        memory = {{ sizes = [6], measured_up_to = {{ immediate = 6 }} }}
        [[methods]]
        rule = "immediate"
        [[methods]]
        rule = "window"
        steps = 2
        """,
    "stored": 'figure = "stored"\ntitle = "stored runs"\nruns = ["demo"]\n',
    "claims": """
        [[claims]]
        id = "recovers"
        claim = "words"
        paper = "1 %"
        figure = "methods"
        cases = [{ when = "a", statistic = "recovery", task = "sine", method = "immediate + rmsprop", above = 0.0 }]
        [[claims]]
        id = "predicts"
        claim = "words"
        paper = "1"
        figure = "methods"
        [[claims.cases]]
        when = "a"
        statistic = "stream_loss"
        task = "characters"
        method = "immediate + rmsprop"
        below = 1.0
        [[claims]]
        id = "memory"
        claim = "words"
        paper = "1"
        figure = "methods"
        [[claims.cases]]
        when = "a"
        statistic = "memory_ratio"
        n_hidden = 6
        method = "immediate + rmsprop"
        other = "window(2) + rmsprop"
        above = 1.0
        [[claims]]
        id = "decodes"
        claim = "words"
        paper = "1"
        figure = "stored"
        cases = [{ when = "a", statistic = "stored_recovery", run = "demo", method = "immediate_rmsprop", above = 1.0 }]
        """,
}
PROBE = """
import json, os, sys
from pathlib import Path

import numpy, pandas, pydantic, scipy.stats, sklearn.base, xarray  # once, before the children part


def keys(configs):
    from bci_adapt.decoders.base import decoders
    from bci_adapt.experiment.building import Builder
    from bci_adapt.experiment.common_jobs import kernel, prepare_job
    from bci_adapt.experiment.config import Config
    from bci_adapt.experiment.pairs import Pair
    from bci_adapt.ground.jobs import Job
    from bci_adapt.learning.backends.compiled import sources_digest
    from bci_adapt.learning.cells.base import cells
    from bci_adapt.learning.credit.base import rules
    from bci_adapt.paper.reproduce import digests, known_figures

    found = {f"kernel of {name}": kernel(name, "immediate", "rmsprop").key for name in cells()}
    found |= {f"kernel of {name}": kernel("tanh", name, "rmsprop").key for name in rules()}
    for of_cell, of_rule in (("tanh", "immediate"), ("gru", "immediate"), ("gru", "window")):
        found[f"loop of {of_cell} {of_rule}"] = sources_digest(cells()[of_cell], rules()[of_rule]())
    fit = {"kind": "fit", "function": "bci_adapt.experiment.jobs.fit:run", "stem": "", "folder": ""}
    found |= {f"fit of {name}": Job(**fit, modules=(kind.__module__,)).key for name, kind in decoders().items()}
    arms = [{"rule": "immediate", "optimizer": "rmsprop", "learning_rate": 1e-3}]
    asked = {"name": "x", "source": {"kind": "files", "paths": ["a", "b"]}, "variables": ["velocity"], "arms": arms}
    asked |= {"network": {"cells": ["tanh"]}, "bin_s": 0.05, "pairs": [{"source": 1, "targets": [2]}]}
    config = Config.model_validate(asked)
    sessions = {name: prepare_job(config, configs / "stored.toml", {"day": name}) for name in ("a", "b")}
    found |= {f"session {name}": job.key for name, job in sessions.items()}
    for layout in ("wrist", "perich"):
        named = Config.model_validate(asked | {"layout": layout})
        found[f"prepared as {layout}"] = prepare_job(named, configs / "stored.toml", {}).key
    taken = Config.model_validate(asked | {"kinematics": ["processing/behavior/hand"]})
    found["prepared with paths"] = prepare_job(taken, configs / "stored.toml", {}).key
    found["prepared from arrays"] = prepare_job(config, configs / "arrays.npz", {}).key
    about = {"half_s": 300.0, "n_channels": 9, "n_axes": {"velocity": 2}, "date": "", "has_targets": False}
    about["has_trials"] = False
    builder, pair = Builder(config, sessions, dict.fromkeys(sessions, about), {}), Pair(("a",), "b")
    found["drift"] = builder.drift(pair).key
    for arm in builder.arms(pair):
        of_arm = {"fit": builder.fit(arm, pair, 0), "adapt": builder.adapt(arm, pair, 0)}
        of_arm |= {"score": builder.score_one(arm, pair, 0, "one")} if arm.name == "rls" else {}
        for what, job in of_arm.items():
            found[f"{what} {arm.name} {arm.cell}"] = job.key
            learning = [name for name in job.recipe["sources"] if name.startswith("bci_adapt.learning")]
            found[f"of learning in the {what} of {arm.name}"] = "something" if learning else ""
    found |= {f"figure {name}": "planned" for name in known_figures(configs)}
    return found | {f"claim {name}": value for name, value in digests(configs).items()}


for folder in map(Path, sys.argv[1:]):
    child = os.fork()
    if not child:
        sys.path.insert(0, str(folder))
        (folder / "keys.json").write_text(json.dumps(keys(folder / "configs")))
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(f"{folder}: its keys could not be computed")
"""


def write(name: str, text: str) -> Callable[[Path], None]:
    """An addition: a new file of the copy."""

    def added(folder: Path) -> None:
        assert not (folder / name).exists()
        (folder / name).write_text(dedent(text), encoding="utf-8")

    return added


def append(name: str, text: str) -> Callable[[Path], None]:
    """An edit: something at the end of a file."""

    def edited(folder: Path) -> None:
        path = folder / name
        path.write_text(path.read_text(encoding="utf-8") + dedent(text), encoding="utf-8")

    return edited


CELL = """
    from dataclasses import replace
    from bci_adapt.learning.cells import plain
    extra = replace(plain.tanh, name="extra")
    """
RULE = """
    from typing import ClassVar
    from bci_adapt.learning.credit import immediate
    class Extra(immediate.Immediate):
        name: ClassVar[str] = "extra"
    """
DECODER = """
    from typing import ClassVar
    from bci_adapt.decoders import persistence
    class Extra(persistence.PersistenceDecoder):
        name: ClassVar[str] = "extra"
    """
FIGURE = f"""
    figure = "another"
    {SMALL_FIGURE}
    [[methods]]
    rule = "rflo"
    """
CLAIM = """
    [[claims]]
    id = "another"
    claim = "words"
    paper = "1"
    figure = "methods"
    cases = [{ when = "a", statistic = "r2", task = "sine", method = "immediate + rmsprop", above = 0.0 }]
    """
ARM = """
    _others = linear_arms
    def linear_arms(config, n_axes):
        arms = _others(config, n_axes)
        return [*arms, replace(arms[0], name="extra", fit={**arms[0].fit, "penalty": 123.0})]
    """
DRAWING = """
    def extra(found):
        return []
    """


def reworded(folder: Path) -> None:
    """Another word for an arm, wherever it stands."""
    path = folder / "bci_adapt" / "experiment" / "arms.py"
    text = path.read_text(encoding="utf-8")
    assert '"recursive least squares"' in text
    path.write_text(text.replace('"recursive least squares"', '"least squares, recursive"'), encoding="utf-8")


def with_figure(folder: Path) -> None:
    """Another figure of the paper, and a function that draws it."""
    write("configs/another.toml", FIGURE)(folder)
    append("bci_adapt/paper/drawing.py", DRAWING)(folder)


ADDED = {  # what is added, how, and what is there then (nothing new of a word)
    "cell": (write("bci_adapt/learning/cells/extra.py", CELL), "kernel of extra"),
    "rule": (write("bci_adapt/learning/credit/extra.py", RULE), "kernel of extra"),
    "decoder": (write("bci_adapt/decoders/extra.py", DECODER), "fit of extra"),
    "arm": (append("bci_adapt/experiment/arms.py", ARM), "adapt extra"),
    "word": (reworded, ""),
    "figure": (with_figure, "figure another"),
    "claim": (append("configs/claims.toml", CLAIM), "claim another"),
}
EVERY_NETWORK = (
    "kernel of",
    "loop of",
    "adapt immediate_rmsprop tanh",
    "claim recovers",
    "claim predicts",
    "claim memory",
)
EDITED = {  # a file, and what an edit of it moves and leaves
    "data/layouts/wrist.py": (
        ("session", "prepared as wrist"),
        ("prepared as perich", "prepared with", "prepared from"),
    ),
    "data/layouts/generic.py": (("session", "prepared with paths"), ()),
    "data/layouts/grids.py": (("session", "prepared"), ()),
    "learning/cells/plain.py": (
        ("kernel of tanh", "loop of tanh immediate", "adapt immediate_rmsprop tanh", "claim recovers"),
        ("loop of gru", "adapt rls "),
    ),
    "learning/credit/window.py": (
        ("kernel of window", "loop of gru window"),
        ("loop of gru immediate", "adapt immediate_rmsprop", "claim recovers", "adapt rls "),
    ),
    "learning/credit/base.py": (EVERY_NETWORK, ("adapt rls ", "claim decodes")),
    "decoders/lags.py": (("fit rls ", "adapt rls ", "score rls "), ("claim", "adapt immediate_rmsprop")),
    "paper/case_statistics.py": (("claim",), ("fit", "adapt", "score", "kernel")),
    "results/recovery.py": (("claim decodes",), ("claim recovers", "fit", "adapt", "score", "kernel")),
}


@pytest.fixture(scope="module")
def keys(tmp_path_factory, worker_id) -> dict[str, dict[str, str]]:
    """Keys and digests by what they are of, as they are and in every copy; once, whichever processes test them."""
    base = tmp_path_factory.getbasetemp()
    stored = (base if worker_id == "master" else base.parent) / "keys.json"
    with portalocker.Lock(stored.with_suffix(".lock"), timeout=900):
        if not stored.exists():
            stored.write_text(json.dumps(_computed(tmp_path_factory.mktemp("copies"))), encoding="utf-8")
        return json.loads(stored.read_text(encoding="utf-8"))


def _computed(copies: Path) -> dict[str, dict[str, str]]:
    changes = {"as it is": lambda folder: None} | {name: change for name, (change, _) in ADDED.items()}
    changes |= {name: append(f"bci_adapt/{name}", "\n# edited\n") for name in EDITED}
    for number, change in enumerate(changes.values()):
        folder = copies / str(number)
        shutil.copytree(PACKAGE, folder / "bci_adapt")
        (folder / "configs").mkdir()
        for name, text in FIGURES.items():
            (folder / "configs" / f"{name}.toml").write_text(dedent(text), encoding="utf-8")
        (folder / "configs" / "arrays.npz").touch()
        change(folder)
    folders = [str(copies / str(number)) for number in range(len(changes))]
    environment = os.environ | {"BCI_ADAPT_CACHE": str(copies / "cache"), "PYTHONPATH": ""}
    done = subprocess.run([sys.executable, "-c", PROBE, *folders], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [json.loads((Path(folder) / "keys.json").read_text(encoding="utf-8")) for folder in folders]
    return dict(zip(changes, found, strict=True))


@pytest.mark.parametrize("what", ADDED)
def test_an_addition_moves_no_key_and_no_digest_of_what_does_not_use_it(keys, what):
    before, after = keys["as it is"], keys[what]
    assert {name for name, key in before.items() if after[name] != key} == set()
    new = ADDED[what][1]
    assert not new or any(name.startswith(new) for name in after.keys() - before.keys()), "it was not found"


def test_a_decoder_that_learns_nothing_has_keys_without_the_learning_engine(keys):
    for what in ("fit", "adapt"):
        assert keys["as it is"][f"of learning in the {what} of persistence"] == ""
        assert keys["as it is"][f"of learning in the {what} of frozen"] == "something"


@pytest.mark.parametrize("file", EDITED)
def test_an_edit_moves_what_uses_it(keys, file):
    before, after = keys["as it is"], keys[file]
    moved = {name for name, key in before.items() if after[name] != key}
    moves, leaves = EDITED[file]
    for start in moves:
        of_these = {name for name in before if name.startswith(start)}
        assert of_these, start
        assert of_these <= moved
    assert [name for name in moved if name.startswith(leaves)] == []
