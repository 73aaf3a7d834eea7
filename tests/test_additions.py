"""CONTRIBUTING.md says what is touched for each kind of addition and what is run: here that is done, in a copy."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

ROOT = Path(__file__).resolve().parents[1]
CELL = """
    from dataclasses import replace
    from bci_adapt.learning.cells import plain

    extra = replace(plain.tanh, name="extra_cell")
    """
RULE = """
    from dataclasses import dataclass
    from typing import ClassVar
    from bci_adapt.learning.credit import immediate

    @dataclass(frozen=True)
    class Extra(immediate.Immediate):
        name: ClassVar[str] = "extra_rule"
    """
DECODER = """
    from typing import ClassVar
    from bci_adapt.decoders import persistence

    class Extra(persistence.PersistenceDecoder):
        name: ClassVar[str] = "extra_decoder"
    """
LAYOUT = """
    from bci_adapt.data.layouts.base import Layout

    class Extra(Layout):
        \"\"\"Nothing that anybody records.\"\"\"

        name = "extra_layout"

        def matches(self, description):
            return 0.0, "nobody records it"

        def read(self, file, bin_s, per):
            raise NotImplementedError
    """
CLAIM = """
    [[claims]]
    id = "extra"
    claim = "words"
    paper = "1 %"
    figure = "methods"
    [[claims.cases]]
    when = "n = 64"
    statistic = "recovery"
    task = "sine"
    n_hidden = 64
    method = "immediate + rmsprop"
    above = 0.0
    """
STANDS_BEFORE = "        arm(LINEAR.frozen, "
ARM = """\
        arm("extra_arm", "wiener", SOURCE, lagged | {"penalty": 123.0}, words="one more", order=1, **bound),
"""
SECTION = """
    def extra(run):
        \"\"\"Section: one more table.\"\"\"
        return Section("extra", "One more", [Table("Extra caption.", [Column("extra column")], [["extra cell"]])])
    """


def write(file: str, text: str) -> None:
    """A new file."""
    assert not Path(file).exists()
    Path(file).write_text(dedent(text), encoding="utf-8")


def append(file: str, text: str) -> None:
    Path(file).write_text(Path(file).read_text(encoding="utf-8") + dedent(text), encoding="utf-8")


def insert(file: str, before: str, text: str) -> None:
    whole = Path(file).read_text(encoding="utf-8")
    assert before in whole, file
    Path(file).write_text(whole.replace(before, text + before, 1), encoding="utf-8")


def with_section() -> None:
    append("bci_adapt/results/report/sections.py", SECTION)
    insert("bci_adapt/results/report/__init__.py", "cost.cost(run),", "sections.extra(run), ")


ADDED = {  # kind, as CONTRIBUTING.md calls it → what is done
    "a cell": lambda: write("bci_adapt/learning/cells/extra.py", CELL),
    "a credit rule": lambda: write("bci_adapt/learning/credit/extra.py", RULE),
    "a decoder": lambda: write("bci_adapt/decoders/extra.py", DECODER),
    "a layout": lambda: write("bci_adapt/data/layouts/extra.py", LAYOUT),
    "a standing arm": lambda: insert("bci_adapt/experiment/arms.py", STANDS_BEFORE, ARM),
    "a table of the report": with_section,
    "a claim": lambda: append("configs/paper/claims.toml", CLAIM),
}


@pytest.fixture(scope="module")
def guide() -> dict[str, tuple[str, str]]:
    """Kind → what is touched and what is run, as CONTRIBUTING.md says."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (an? [^|]+?) +\| ([^|]+?) +\| `([^`|]+)` +\|$", text, re.MULTILINE)
    return {kind: (touched, command) for kind, touched, command in rows}


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    """A copy of the package with one of each kind added; which files were touched is checked as it is made."""
    folder = tmp_path_factory.mktemp("house")
    for name in ("bci_adapt", "tests", "configs"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def told(folder: Path, *command: str | Path) -> str:
    """What a command says in the copy; it must succeed."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(folder / "tests")])}
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def state_of(folder: Path) -> dict[str, str]:
    paths = [path for path in folder.rglob("*") if path.suffix in (".py", ".toml")]
    return {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in paths}


@pytest.fixture(scope="module")
def extended(house, guide) -> Path:
    """The copy with one of each kind; each touches the files that the guide says, and no other."""
    assert set(ADDED) == set(guide), "a kind is added here for each row of CONTRIBUTING.md"
    before = state_of(house)
    for kind, add in ADDED.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(house)
            add()
        after = state_of(house)
        named = [each for each in re.findall(r"`([^`]+)`", guide[kind][0]) if "/" in each]
        for touched in {name for name in after if after[name] != before.get(name)}:
            assert any(touched.removeprefix("bci_adapt/").startswith(each) for each in named), (kind, touched)
        before = after
    return house


def test_what_the_guide_says_of_tests_holds(extended, guide):
    """One run of pytest for all: each command with its own file and its own words."""
    commands = {kind: command.split() for kind, (_, command) in guide.items() if command.startswith("pytest")}
    names = {"a cell": "extra_cell", "a credit rule": "tanh-extra_rule", "a decoder": "extra_decoder"}
    names |= {"a standing arm": "extra_arm"}
    wanted = {}
    for kind, (_, file, _, word) in commands.items():
        wanted[file] = word.replace("NAME", names.get(kind, "")), kind
    asked = " or ".join(f"({Path(file).stem} and {word.replace('-', ' and ')})" for file, (word, _) in wanted.items())
    said = told(extended, "-m", "pytest", "-p", "no:cacheprovider", "-rA", "-k", asked, *wanted)
    for file, (word, kind) in wanted.items():
        passed = re.findall(rf"^PASSED {re.escape(file)}\S*", said, re.MULTILINE)
        assert any(word in each or kind == "a claim" for each in passed), kind


def test_a_layout_is_listed(extended, guide):
    assert "extra_layout" in told(extended, "-m", "bci_adapt.cli", *guide["a layout"][1].split()[1:])


RUN = """
import sys
from pathlib import Path
import test_report
from long_tables import study

test_report.render_report = lambda folder: Path(folder) / "manifest.json"  # it is rendered by the command
test_report.make_run(Path(sys.argv[1]), test_report.few(study(2, 1)))
"""


def test_a_table_of_the_report_is_on_the_page(extended, guide, tmp_path):
    told(extended, "-c", RUN, tmp_path / "run")
    command = guide["a table of the report"][1].replace("RUN", str(tmp_path / "run")).split()
    told(extended, "-m", "bci_adapt.cli", *command[1:])
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "Extra caption." in page
    assert "extra cell" in page
