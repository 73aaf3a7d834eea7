"""What lies in the cache: found whole or bad, kind by kind, and swept without touching what is in use."""

import json
import os
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from bci_adapt.cli import app
from bci_adapt.errors import InputError
from bci_adapt.experiment import inventory
from bci_adapt.ground import locks, seals
from bci_adapt.ground.storage import atomic_path

DAY_S = 86400.0


def stored(path, text="some result", days=0.0):
    """A sealed file, last used so many days ago."""
    with atomic_path(path) as temporary:
        temporary.write_text(text)
        seals.seal(temporary, path)
    for each in (path, seals.seal_of(path)):
        os.utime(each, (time.time() - days * DAY_S,) * 2)
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BCI_ADAPT_CACHE", str(tmp_path))
    monkeypatch.setattr(locks, "_MARKS", {})
    return tmp_path


def test_everything_that_can_be_made_again_is_verified(cache):
    good, bad = stored(cache / "results" / "a.json"), stored(cache / "decoders" / "b.npz")
    kernel = stored(cache / "kernels" / "digest" / "loop.1.nbc")
    simulated = stored(cache / "raw" / "simulated" / "day.nwb")
    seals.seal_of(stored(cache / "scan" / "old.json")).unlink()
    found = [inventory.verify(each) for each in inventory.items(cache)]
    assert {(each.kind, each.state) for each in found} == {
        ("results", "whole"), ("decoders", "whole"), ("kernels", "whole"), ("simulated", "whole"), ("scan", "no digest")
    }  # fmt: skip
    for damaged in (bad, kernel, simulated):
        damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    found = {each.path: each.state for each in map(inventory.verify, inventory.items(cache))}
    assert [found[path] for path in (good, bad, kernel.parent, simulated)] == ["whole", "bad", "bad", "bad"]
    said = CliRunner().invoke(app, ["cache", "verify", "--json", str(cache / "out.json")])
    assert said.exit_code == 1
    rows = json.loads((cache / "out.json").read_text())
    assert {row["kind"] for row in rows if row["state"] == "bad"} == {"decoders", "kernels", "simulated"}
    assert {row["file"] for row in rows if row["state"] == "whole"} == {str(good)}


def test_sizes_and_ages_are_shown_by_kind(cache):
    stored(cache / "results" / "a.json", "x" * 3_000_000, days=3)
    stored(cache / "results" / "b.json", "x" * 1_000_000, days=12)
    said = CliRunner().invoke(app, ["cache", "list"]).output
    line = next(line for line in said.splitlines() if line.startswith("results"))
    assert line.split()[:4] == ["results", "2", "4.0", "MB"]
    assert "3–12 days ago" in line


def test_only_what_was_not_used_for_so_long_is_removed(cache):
    old, new = stored(cache / "results" / "old.json", days=40), stored(cache / "results" / "new.json", days=20)
    half = cache / "results" / ".half.x.part"
    half.mkdir()
    os.utime(half, (time.time() - 2 * DAY_S,) * 2)
    young = cache / "results" / ".young.x.part"
    young.mkdir()
    fetched = cache / "raw" / "000688" / "0.1.0" / "a.nwb"
    fetched.parent.mkdir(parents=True)
    fetched.write_text("bytes")
    os.utime(fetched, (0, 0))
    gone, left = inventory.sweep(cache, 30, dry_run=True)
    assert (set(gone), left) == ({old, half}, [])
    assert old.exists()
    gone, left = inventory.sweep(cache, 30)
    assert not old.exists()
    assert not seals.seal_of(old).exists()
    assert not half.exists()
    assert young.exists()
    assert new.exists()
    assert fetched.exists(), "what was fetched has rules of its own"
    with pytest.raises(InputError, match="0 or more"):
        inventory.sweep(cache, -1)


def test_nothing_is_removed_while_another_process_works_with_the_cache(cache):
    old = stored(cache / "results" / "old.json", days=40)
    code = (
        "import sys; from pathlib import Path; from bci_adapt.ground import locks;"
        "locks.mark_in_use(Path(sys.argv[1])); print('marked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(cache)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "marked\n"
        assert locks.others_in(cache) == [other.pid]
        assert inventory.sweep(cache, 30) == ([], [old])
        other.kill()
    assert inventory.sweep(cache, 30) == ([old], [])
    assert list((cache / "in_use").iterdir()) == [], "the mark of a process that has ended is no mark"


def test_what_a_run_uses_is_no_longer_unused(cache):
    path = stored(cache / "results" / "old.json", days=40)
    seals.touch(path)
    assert inventory.sweep(cache, 30) == ([], [])
