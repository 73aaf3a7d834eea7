"""Workers from Slurm: the profile's rules, and – under ``make test-slurm`` – a real cluster of one machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from textwrap import dedent

import pytest
from test_engine import job, leftovers, result, toy  # noqa: F401

from bci_adapt.errors import InputError
from bci_adapt.ground.engine import execute
from bci_adapt.ground.slurm import Slurm

pytestmark = pytest.mark.usefixtures("toy")
real = pytest.mark.skipif("BCI_ADAPT_TEST_SLURM" not in os.environ, reason="make test-slurm starts a cluster")


def profile(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "profile.toml"
    path.write_text(dedent(text))
    return path


def test_a_profile_says_all_and_nothing_unknown(tmp_path):
    found = Slurm.read(
        profile(tmp_path, "workers = 20\nmemory = '4GB'\nwalltime = '04:00:00'\ndirectives = ['--qos=low']")
    )
    assert found == Slurm(workers=20, memory="4GB", walltime="04:00:00", directives=("--qos=low",))
    options = found.options(tmp_path)
    assert (options["memory"], options["walltime"], options["cores"]) == ("4GB", "04:00:00", 1)
    assert "export OMP_NUM_THREADS=1" in options["job_script_prologue"]
    for text, message in [
        ("memory = '4GB'", "expected workers"),
        ("workers = 0\nmemory = '4GB'", "workers: expected 1 or more, got 0"),
        ("workers = '2'\nmemory = '4GB'", "workers: expected a whole number, got '2'"),
        ("workers = 2\nmemory = 4", "memory: expected a text, got 4"),
        ("workers = 2\nmemory = '4GB'\nprologue = [1]", "prologue: expected a list of texts"),
        ("workers = 2\nmemory = '4GB'\nqueues = 'a'", "queues"),
        ("workers = ", "expected a profile of a Slurm cluster"),
    ]:
        with pytest.raises(InputError, match=message):
            Slurm.read(profile(tmp_path, text))
    with pytest.raises(InputError, match="expected a profile"):
        Slurm.read(tmp_path / "gone.toml")


def test_without_slurm_it_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InputError, match=r"bci-adapt\[slurm\]|no.* sbatch|found none"):
        execute([job()], scheduler=Slurm(workers=1, memory="1GB"))


def queued() -> int:
    return len(subprocess.check_output(["squeue", "-h"], text=True).splitlines())


@real
def test_jobs_are_performed_by_workers_that_slurm_starts_and_ends(toy, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(toy.parent), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.chdir(tmp_path)
    once = str(tmp_path / "died_once")
    source = job("source")
    ends = [job(f"end{i}", inputs={"of": source}, seed=i) for i in range(6)]
    killed, bad = job("killed", die_unless=once), job("bad", fail=True)
    slurm = Slurm(workers=2, memory="500MB", logs=str(tmp_path / "logs"))
    done = execute([*ends, killed, bad], scheduler=slurm)
    # what a dead worker had finished, dask asks for again, and it is found
    assert (done.executed + done.reused, [each.label for each in done.failed]) == (8, ["adapt bad"])
    assert Path(once).exists(), "a worker that died was another's turn"
    assert len({result(each)["pid"] for each in ends} - {os.getpid()}) >= 1
    assert {result(each)["threads"] for each in ends} == {"1"}
    assert list((tmp_path / "logs").iterdir()), "Slurm wrote what its jobs said"
    assert execute(ends, scheduler=slurm).executed == 0
    assert leftovers(tmp_path) == []
    deadline = time.monotonic() + 20
    while queued() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert queued() == 0, "no worker is left to run up a bill"
    assert list((tmp_path / "cache").glob(".slurm*")) == [], "no key is left"


def test_the_command_line_hands_the_profile_on(call, tmp_path, monkeypatch):
    asked = []

    def run(*arguments, scheduler, **options):
        asked.append(scheduler)
        raise InputError("enough")

    monkeypatch.setattr("bci_adapt.experiment.run.run_experiment", run)
    path = profile(tmp_path, "workers = 3\nmemory = '2GB'")
    assert call("run", Path(__file__).parent.parent / "configs" / "demo.toml", "--slurm", path)[0] == 2
    assert asked == [Slurm(workers=3, memory="2GB")]
