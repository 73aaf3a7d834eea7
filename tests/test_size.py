"""What makes the house easy to take in: few entries, short modules, short functions."""

import ast
from pathlib import Path

import bci_adapt

HOUSE = Path(bci_adapt.__file__).parent
ENTRIES, MODULE, FUNCTION = 15, 500, 60
REASONS = ("is long because", "longer than")  # how a module's docstring gives its reason
LOOP = ["loop.py:loop"]


def too_long(path, source):
    """The module where it is long without a reason, and every function that is."""
    tree = ast.parse(source)
    said = " ".join((ast.get_docstring(tree) or "").lower().split())
    found = [path.name] if len(source.splitlines()) > MODULE and not any(each in said for each in REASONS) else []
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return found + [f"{path.name}:{each.name}" for each in functions if each.end_lineno - each.lineno >= FUNCTION]


def test_the_house_can_be_taken_in():
    entries = [each.name for each in HOUSE.iterdir() if each.name != "__pycache__"]
    assert len(entries) <= ENTRIES, entries
    modules = sorted(HOUSE.rglob("*.py"))
    assert len(modules) > 100
    assert [name for path in modules for name in too_long(path, path.read_text(encoding="utf-8"))] == LOOP


def test_what_is_long_is_found():
    long_one = "def f():\n" + "    x = 1\n" * 60
    assert too_long(HOUSE / "a.py", long_one) == ["a.py:f"]
    assert too_long(HOUSE / "a.py", "x = 1\n" * 501) == ["a.py"]
    said = '"""The module is long because it is a test."""\n' + "x = 1\n" * 501
    assert too_long(HOUSE / "a.py", said) == []
