"""What the engine costs: thousands of jobs that do next to nothing, each run in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.table import Table

# What each figure is, its unit, and what it should stay below.
AIMS = {
    "overhead": ("overhead of a job, in all", "ms", 12.0),
    "peak": ("memory of the main process", "MB", 300.0),
    "again": ("a second run, which executes nothing", "s", 3.0),
}
_RUN = """
import json, resource, sys, time
from pathlib import Path
started = time.perf_counter()
from bci_adapt.ground.engine import execute
from bci_adapt.ground.jobs import Job
jobs = [Job(kind="adapt", function="bci_adapt.cli.bench.tiny:run", stem="tiny", folder="bench",
            parameters={"number": i}, modules=("bci_adapt.experiment.jobs.adapt",)) for i in range(int(sys.argv[1]))]
done = execute(jobs, workers=int(sys.argv[2]))
assert not done.failed, done.failed[0]
seconds, status = time.perf_counter() - started, Path("/proc/self/status")
if status.exists():  # what getrusage says begins with the memory of whoever started this process
    peak = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"executed": done.executed, "seconds": seconds, "peak": peak / 1024}))
"""


def sweep(n_jobs: int, workers: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Seconds and memory of `n_jobs` tiny jobs, and of the same call again; the cache is a folder that is removed."""
    with tempfile.TemporaryDirectory(prefix="bci_adapt_sweep.") as folder:
        environment = os.environ | {"BCI_ADAPT_CACHE": folder}

        def run() -> dict[str, Any]:
            command = [sys.executable, "-c", _RUN, str(n_jobs), str(workers)]
            return json.loads(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)

        say(f"{n_jobs} jobs")
        first = run()
        say("again")
        again = run()
        assert (first["executed"], again["executed"]) == (n_jobs, 0)
    return {
        "n_jobs": n_jobs,
        "workers": workers,
        "overhead": 1000.0 * first["seconds"] / n_jobs,
        "peak": max(first["peak"], again["peak"]),
        "again": again["seconds"],
    }


def speed_up(config: Path, settings: list[str], say: Callable[[str], None], data: Path | None = None) -> dict[str, Any]:
    """Seconds of the jobs of an experiment with one worker and with two, each in an empty cache."""
    found: dict[str, Any] = {"config": str(config)}
    for workers in (1, 2):
        say(f"{config.stem} with {workers}")
        with tempfile.TemporaryDirectory(prefix="bci_adapt_sweep.") as folder:
            command = [sys.executable, "-m", "bci_adapt.cli", "run", str(config.absolute()), "--workers", str(workers)]
            command += [part for each in settings for part in ("--set", each)]
            command += ["--data", str(data.absolute())] if data is not None else []
            before = os.times()
            subprocess.run(
                [*command, "--quiet"], env=os.environ | {"BCI_ADAPT_CACHE": folder}, check=True, capture_output=True
            )
            found[f"seconds_{workers}"] = os.times().elapsed - before.elapsed
    found["speed_up"] = found["seconds_1"] / found["seconds_2"]
    return found


def table_of(found: dict[str, Any]) -> Table:
    """The figures beside what they should be."""
    table = Table(f"{found['n_jobs']} jobs, {found['workers']} workers", "measured", "aim", box=None, padding=(0, 2))
    for name, (words, unit, aim) in AIMS.items():
        table.add_row(words, f"{found[name]:.1f} {unit}", f"below {aim:g} {unit}")
    if "experiment" in found:
        experiment = found["experiment"]
        seconds = f"{experiment['seconds_1']:.0f} s / {experiment['seconds_2']:.0f} s"
        table.add_row(
            f"two workers against one ({Path(experiment['config']).stem}: {seconds})",
            f"{experiment['speed_up']:.2f} ×",
            "at least 1.8 ×",
        )
    return table
