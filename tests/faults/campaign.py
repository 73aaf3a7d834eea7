"""What a month on a shared server does to stored work: processes killed, disks full, files damaged, four at once.

Every scene runs a command to its end in a cache of its own, does harm, runs the same command again, and compares what
comes out with what came out unharmed. `python tests/faults/campaign.py` runs all of it and prints the table of
`docs/reliability.md`; named parts run alone.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import psutil

PAPER = Path(__file__).resolve().parents[2] / "configs" / "paper"
COMMAND = (sys.executable, "-m", "bci_adapt.cli")
CONFIG = """name = "tiny"
bin_s = 0.1
stream_s = 80.0
min_held_out_s = 40.0
seeds = [0]
[source]
kind = "simulated"
days = [0, 30, 60]
duration_s = 240.0
n_units = 12
[[pairs]]
source = 1
targets = [3]
[tuning]
max_points = 3
[[tuning.pairs]]
source = 1
targets = [2, 3]
[network]
cells = ["tanh"]
n_hidden = 8
n_updates = 15
oracle_updates = 15
joint_updates = 15
tune_updates = 15
[linear]
n_lags = 5
[sweeps]
delay_s = [0.5]
label_fraction = [1.0]
budget_s = [30.0]
budget_trials = [4]
[controls]
no_drift = false
continuing = false
back = false
cold = false
costs = false
drift = false
[[arms]]
rule = "immediate"
optimizer = "rmsprop"
learning_rate = 1e-4
"""
# What stands in every run but is not tuned here: kills of a command that takes minutes say no more.
NOT_TUNED = (
    *("output_bias", "readout", "recurrent", "pseudo", "fine_tuned", "network_oracle", "joint_oracle", "intention"),
    *("aligned", "rls", "ridge_oracle", "joint_ridge", "persistence", "normaliser", "from_random"),
    *(f"kalman_{kind}{how}" for kind in ("", "pv_") for how in ("frozen", "normaliser", "adaptive", "refit")),
)


@dataclass
class Campaign:
    """Where the scenes play, what they found, and how often."""

    folder: Path
    kernels: Path
    seed: int = 0
    workers: int = 2
    tried: Counter[str] = field(default_factory=Counter)
    survived: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        (self.folder / "tiny.toml").write_text(CONFIG)
        apart = f"[controls]\nwithout = {list(NOT_TUNED)}"
        (self.folder / "tuning.toml").write_text(CONFIG.replace("[controls]", apart))

    def note(self, scene: str, faults: str, why: str = "") -> None:
        """Count one fault of a scene; `why` says what was lost, empty where nothing was."""
        self.tried[scene] += 1
        self.survived[scene] += not why
        print(f"{scene}: {faults}: {why or 'survived'}", file=sys.stderr, flush=True)
        if why:
            self.lost.append(f"{scene}: {faults}: {why}")

    def cache(self, name: str) -> Path:
        """An empty cache with the compiled loops of this checkout."""
        cache = self.folder / name
        shutil.rmtree(cache, ignore_errors=True)
        cache.mkdir()
        (cache / "kernels").symlink_to(self.kernels)
        return cache

    def copy(self, name: str, to: str) -> Path:
        """The cache `name` once more, as it is, with the same compiled loops."""
        cache = self.folder / to
        shutil.rmtree(cache, ignore_errors=True)
        shutil.copytree(self.folder / name, cache, symlinks=True)
        return cache

    def start(self, cache: Path, *arguments: str, **environment: str) -> subprocess.Popen:
        """A command at work, in a group of processes of its own."""
        return subprocess.Popen(
            [*COMMAND, *arguments], cwd=self.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=os.environ | {"BCI_ADAPT_CACHE": str(cache)} | environment, start_new_session=True,
        )  # fmt: skip

    def done(self, cache: Path, *arguments: str, **environment: str) -> tuple[int, str]:
        """Exit code and words of a command that is let come to its end."""
        with self.start(cache, *arguments, **environment) as process:
            said, _ = process.communicate(timeout=600)
            return process.returncode, said

    def unharmed(self) -> tuple[Path, object]:
        """A cache in which the experiment has been run, and its scores."""
        cache = self.cache("whole")
        code, said = self.done(cache, *_run(self, cache))
        assert code == 0, said
        return cache, _rows(self, cache)

    def loss(self, scene: Scene, cache: Path, expected: object, says: str = "", **environment: str) -> str:
        """Run a scene's command again: what is lost, in words; nothing where it ends well, and has said `says`."""
        code, said = self.done(cache, *scene.arguments(self, cache), **environment)
        if code or "Traceback" in said:
            return f"exit code {code}: {said[-300:]}"
        if says not in said:
            return f"nothing said of {says}: {said[-300:]}"
        return "" if scene.outcome(self, cache) == expected else "another outcome"


@dataclass(frozen=True)
class Scene:
    """A command, and what it leaves behind as something that can be compared."""

    name: str
    arguments: Callable[[Campaign, Path], tuple[str, ...]]
    outcome: Callable[[Campaign, Path], object]
    before: tuple[tuple[str, ...], ...] = ()  # commands that come to their end first
    archive: bool = False


def _bytes_below(folder: Path, pattern: str) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in sorted(folder.rglob(pattern)) if "kernels" not in each.parts}


def _rows(campaign: Campaign, cache: Path) -> object:
    return json.loads((cache / "out.json").read_text())["rows"]


def _surface(campaign: Campaign, cache: Path) -> object:
    return json.loads((cache / "tuned.json").read_text())["surface"]


def _claims(campaign: Campaign, cache: Path) -> object:
    rows = json.loads((cache / "paper" / "claims.json").read_text())["claims"]
    return [{name: row[name] for name in ("id", "ours", "verdict", "cases")} for row in rows]


def _arrays(name: str) -> Callable[[Campaign, Path], object]:
    def read(campaign: Campaign, cache: Path) -> object:
        with np.load(cache / name, allow_pickle=False) as stored:
            return {key: stored[key].tobytes() for key in stored.files if key != "header"}

    return read


def _days(cache: Path) -> list[str]:
    return [str(path) for path in sorted(cache.glob("raw/simulated/*.nwb"))]


def _run(campaign: Campaign, cache: Path) -> tuple[str, ...]:
    return "run", "tiny.toml", "--workers", str(campaign.workers), "-q", "--json", str(cache / "out.json")


_LISTED = (
    Scene("run", _run, _rows),
    Scene(
        "prepare",
        lambda c, cache: ("prepare", *_days(cache), "--bin-s", "0.1", "-q", "-o", str(cache / "made")),
        lambda c, cache: _bytes_below(cache / "made", "*.nc"),
        before=(("run",),),
    ),
    Scene(
        "tune",
        lambda c, cache: ("tune", "tuning.toml", "--workers", "2", "-q", "-o", str(cache / "tuned.json")),
        _surface,
    ),
    Scene(
        "pretrain",
        lambda c, cache: ("pretrain", _days(cache)[0], "-q", "--bin", "0.1", "-o", str(cache / "decoder.npz")),
        _arrays("decoder.npz"),
        before=(("run",),),
    ),
    Scene(
        "adapt",
        lambda c, cache: (
            *("adapt", str(cache / "decoder.npz"), _days(cache)[-1], "-q", "-o", str(cache / "adapted.npz")),
            *("--checkpoint", str(cache / "here.ckpt"), "--every", "0.2"),
        ),
        _arrays("adapted.npz"),
        before=(("run",), ("pretrain",)),
    ),
    Scene(
        "fetch",
        lambda c, cache: ("fetch", "000688", "-q"),
        lambda c, cache: _bytes_below(cache / "raw", "sub-*.nwb"),
        archive=True,
    ),
    Scene(
        "reproduce",
        lambda c, cache: (
            *("reproduce", "F2b", "--quick", "--workers", "2", "--out", str(cache / "paper")),
            *("--configs", str(PAPER), "-q"),
        ),
        _claims,
    ),
)
SCENES = {scene.name: scene for scene in _LISTED}


@contextmanager
def _archive(scene: Scene) -> Iterator[dict[str, str]]:
    """The environment of a scene: with an archive of its own where it fetches."""
    if not scene.archive:
        yield {}
        return
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from archive_server import nwb_bytes, serving

    with serving() as archive:
        for day in range(4):
            archive.add(f"sub-C/sub-C_ses-CO-2013100{day + 1}.nwb", nwb_bytes(f"day{day}", "C", padding=3_000_000))
        yield {"DANDI_INSTANCE": archive.url, "NO_PROXY": "127.0.0.1"}


def _prepared(campaign: Campaign, scene: Scene, name: str, environment: dict[str, str]) -> Path:
    """A cache in which everything before the scene's own command has been done."""
    cache = campaign.cache(name)
    for (earlier,) in scene.before:
        code, said = campaign.done(cache, *SCENES[earlier].arguments(campaign, cache), **environment)
        assert code == 0, said
    return cache


def kills(campaign: Campaign, name: str, times: int) -> None:
    """Kill a command with all its processes at random points, then let it end: the outcome is that of no kill."""
    scene = SCENES[name]
    with _archive(scene) as environment:
        _prepared(campaign, scene, "before", environment)
        cache = campaign.copy("before", "whole")
        started = time.perf_counter()
        code, said = campaign.done(cache, *scene.arguments(campaign, cache), **environment)
        took = time.perf_counter() - started
        assert code == 0, said
        expected = scene.outcome(campaign, cache)
        for _ in range(times):
            cache, at = _killed(campaign, scene, took, environment)
            why = campaign.loss(scene, cache, expected, **environment)
            campaign.note(f"kill -9 of {name}", f"after {at:.2f} of {took:.2f} s", why)


def _killed(campaign: Campaign, scene: Scene, took: float, environment: dict[str, str]) -> tuple[Path, float]:
    """A cache in which a scene's command was killed, and after how many seconds; not one that had ended before."""
    while True:
        cache, at = campaign.copy("before", "harmed"), campaign.random.uniform(0.05, 0.95) * took
        process = campaign.start(cache, *scene.arguments(campaign, cache), **environment)
        time.sleep(at)
        if ended := process.poll() is not None:
            took *= 0.9
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if not ended:
            return cache, at


def killed_workers(campaign: Campaign, times: int) -> None:
    """Kill one process of a run that is not its first: the run goes on by itself, or the same command ends it."""
    scene = SCENES["run"]
    _, expected = campaign.unharmed()
    tried = 0
    while tried < times:
        cache = campaign.cache("harmed")
        process = campaign.start(cache, *scene.arguments(campaign, cache))
        time.sleep(campaign.random.uniform(1.0, 9.0))
        found = _others(process)
        victim, words = campaign.random.choice(found) if found else (process, "")
        victim.kill()
        said = process.communicate()[0]
        if not found:
            continue
        tried += 1
        if process.returncode not in (0, 1) or "Traceback" in said:
            why = f"exit code {process.returncode}: {said[-300:]}"
        else:
            why = campaign.loss(scene, cache, expected)
        campaign.note("kill -9 of one process of a run", words, why)


def _others(first: subprocess.Popen) -> list[tuple[psutil.Process, str]]:
    """The processes that a command has started, with their command lines; none where one has just ended. Python's
    tracker of shared memory is left alone: without it a run ends well, and Python prints tracebacks of its own.
    """
    with suppress(psutil.Error):
        found = [(each, " ".join(each.cmdline())) for each in psutil.Process(first.pid).children(recursive=True)]
        return [(each, words[-60:]) for each, words in found if "resource_tracker" not in words]
    return []


SCHEDULER = """
import signal
from distributed import LocalCluster
if __name__ == "__main__":
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, protocol="tcp", silence_logs=50, dashboard_address=None)
    print(cluster.scheduler_address, flush=True)
    signal.pause()
"""


def lost_schedulers(campaign: Campaign, times: int) -> None:
    """Kill the dask scheduler of a run: one sentence, exit code 1, and the same run ends without it."""
    scene = SCENES["run"]
    _, expected = campaign.unharmed()
    script = campaign.folder / "scheduler.py"
    script.write_text(SCHEDULER)
    for _ in range(times):
        cache = campaign.cache("harmed")
        other = subprocess.Popen(
            [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert other.stdout is not None
        process = campaign.start(cache, "run", "tiny.toml", "--scheduler", other.stdout.readline().strip(), "-q")
        made = campaign.random.randrange(1, 6)
        while process.poll() is None and len(list(cache.glob("*/*.sha256"))) < made:
            time.sleep(0.05)
        os.killpg(other.pid, signal.SIGKILL)
        other.communicate()
        said = process.communicate()[0]
        if process.returncode == 1 and "Traceback" not in said and "the same command goes on" in said:
            why = campaign.loss(scene, cache, expected)
        else:
            why = f"exit code {process.returncode}: {said[-300:]}"
        campaign.note("kill -9 of the scheduler of a run", f"after {made} results", why)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 4
    path.write_bytes(content)


def _halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGED = {
    "a session": ("sessions/*.nc", ("results", "runs")),
    "a simulated recording": ("raw/simulated/*.nwb", ("sessions", "results", "decoders", "runs")),
    "a score": ("results/scores*.json", ("runs",)),
    "a prediction": ("results/immediate*.npz", ("results/scores*", "runs")),
    "a decoder": ("decoders/*.npz", ("results", "runs")),
    "a run's results": ("runs/*/results.nc", ()),
    "a run's manifest": ("runs/*/manifest.json", ()),
    "a run's analysis": ("runs/*/analysis.json", ()),
}


def damage(campaign: Campaign, kinds: tuple[str, ...] = tuple(DAMAGED)) -> None:
    """Flip a bit of a stored file, or cut it in half: the next run names it, mends it, and comes to the same scores."""
    scene = SCENES["run"]
    _, expected = campaign.unharmed()
    campaign.copy("whole", "kept")
    for kind in kinds:
        pattern, also = DAMAGED[kind]
        for harm in (_flip, _halve):
            cache = campaign.copy("kept", "whole")
            victim = campaign.random.choice(sorted(cache.glob(pattern)))
            harm(victim)
            for each in (path for gone in also for path in cache.glob(gone)):
                shutil.rmtree(each) if each.is_dir() else each.unlink()
            why = campaign.loss(scene, cache, expected, says=victim.name)
            campaign.note(f"damage of {kind}", harm.__name__, why)


@contextmanager
def _small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    """A disk of so many MB at `folder`; needs root."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def disks(campaign: Campaign, sizes: tuple[int, ...]) -> None:
    """Full and read-only disks: one sentence, exit code 2, no traceback; with room again the same command goes on."""
    if not hasattr(os, "geteuid") or os.geteuid():
        return
    scene = SCENES["run"]
    _, expected = campaign.unharmed()
    elsewhere = {"XDG_CACHE_HOME": str(campaign.folder)}  # compiled loops
    for size in sizes:
        cache = campaign.cache("harmed")
        (cache / "kernels").unlink()
        with _small_disk(cache, size or 500):
            if not size:
                subprocess.run(["mount", "-o", "remount,ro", str(cache)], check=True)
            code, said = campaign.done(cache, "run", "tiny.toml", "--workers", "2", "-q", **elsewhere)
            sentence = "the disk is full" if size else "the file system is read-only"
            if code == 2 and "Traceback" not in said and sentence in said and len(said.splitlines()) == 1:
                subprocess.run(["mount", "-o", "remount,rw,size=500m", str(cache)], check=True)
                why = campaign.loss(scene, cache, expected, **elsewhere)
            else:
                why = f"exit code {code}: {said[-300:]}"
        campaign.note("a full disk" if size else "a read-only disk", f"{size} MB", why)


def four_at_once(campaign: Campaign) -> None:
    """Four processes run the same experiment in one cache at once: each comes to the same scores."""
    _, expected = campaign.unharmed()
    cache = campaign.cache("harmed")
    runs = [
        campaign.start(cache, "run", "tiny.toml", "--workers", "1", "-q", "--json", str(cache / f"out{number}.json"))
        for number in range(4)
    ]
    said = [run.communicate()[0] for run in runs]
    for number, run in enumerate(runs):
        why = f"exit code {run.returncode}: {said[number][-300:]}" if run.returncode else ""
        if not why:
            shutil.copy(cache / f"out{number}.json", cache / "out.json")
            why = "" if _rows(campaign, cache) == expected else "another outcome"
        campaign.note("four runs in one cache", f"number {number}", why)


def table(campaign: Campaign) -> str:
    """What was tried and survived, as Markdown."""
    lines = ["| fault | tried | survived |", "|---|---|---|"]
    lines += [f"| {name} | {campaign.tried[name]} | {campaign.survived[name]} |" for name in campaign.tried]
    total, survived = sum(campaign.tried.values()), sum(campaign.survived.values())
    return "\n".join([*lines, f"| **all** | **{total}** | **{survived}** |"])


PARTS: dict[str, Callable[[Campaign], None]] = {
    **{name: partial(kills, name=name, times=8) for name in SCENES},
    "workers": partial(killed_workers, times=6),
    "scheduler": partial(lost_schedulers, times=4),
    "damage": damage,
    "disks": partial(disks, sizes=(1, 3, 6, 0)),
    "four": four_at_once,
}


def main(arguments: list[str] | None = None) -> int:
    """Run the campaign; exit code 1 where something was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all when none is given")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    if unknown := set(chosen.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    from bci_adapt.ground.storage import cache_root

    with tempfile.TemporaryDirectory() as folder:
        kernels = cache_root() / "kernels"
        kernels.mkdir(parents=True, exist_ok=True)
        campaign = Campaign(Path(folder), kernels, chosen.seed)
        for part in chosen.parts or PARTS:
            started, before = time.perf_counter(), sum(campaign.tried.values())
            PARTS[part](campaign)
            tried = sum(campaign.tried.values()) - before
            print(f"{part}: {tried} in {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    print(table(campaign))
    for line in campaign.lost:
        print(line)
    return 1 if campaign.lost else 0


if __name__ == "__main__":
    sys.exit(main())
