"""Workers that a Slurm cluster starts, one job of Slurm each, described by a profile: a TOML file."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from bci_adapt.errors import InputError, WorkersLost
from bci_adapt.ground.catalog import unknown
from bci_adapt.ground.performing import ONE_THREAD
from bci_adapt.ground.storage import cache_root


@dataclass(frozen=True)
class Slurm:
    """A profile.

    Attributes
    ----------
    workers : how many jobs of Slurm work at most, each one process with one thread.
    memory : of each, such as ``"4GB"``.
    walltime : after which Slurm ends a worker, ``"HH:MM:SS"``; what it was at is then tried elsewhere.
    partition, account : of the cluster, where it asks for them.
    interface : the network interface by which workers and this process reach each other, such as ``"ib0"``.
    directives : further lines of ``#SBATCH``, such as ``"--constraint=avx2"``.
    prologue : shell lines that a worker runs first, such as ``"module load python"``.
    logs : folder of what Slurm writes about its jobs; none when empty.
    """

    workers: int
    memory: str
    walltime: str = "01:00:00"
    partition: str = ""
    account: str = ""
    interface: str = ""
    directives: tuple[str, ...] = ()
    prologue: tuple[str, ...] = ()
    logs: str = ""

    @classmethod
    def read(cls, path: Path) -> Slurm:
        """The profile of a TOML file; `InputError` for one that cannot be read, or with a key that there is not."""
        try:
            found = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise InputError(f"{path}: expected a profile of a Slurm cluster (TOML): {error}") from error
        kinds = {"workers": int, "directives": list, "prologue": list}
        for name, value in found.items():
            if name not in (names := [field.name for field in fields(cls)]):
                raise InputError(f"{path}: {unknown(name, names, 'key of a Slurm profile')}")
            kind = kinds.get(name, str)
            if not isinstance(value, kind) or (kind is list and not all(isinstance(each, str) for each in value)):
                words = {int: "a whole number", list: "a list of texts", str: "a text"}[kind]
                raise InputError(f"{path}: {name}: expected {words}, got {value!r}")
        if lacking := {"workers", "memory"} - found.keys():
            raise InputError(f"{path}: expected {' and '.join(sorted(lacking))}, such as workers = 20, memory = '4GB'")
        if found["workers"] < 1:
            raise InputError(f"{path}: workers: expected 1 or more, got {found['workers']}")
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in found.items()
        }
        return cls(**values)

    def options(self, folder: Path) -> Mapping[str, Any]:
        """What `dask_jobqueue.SLURMCluster` is called with; `folder` is seen by workers and by this process."""
        exports = [f"export {name}={value}" for name, value in ONE_THREAD.items()]
        return {
            "cores": 1,
            "processes": 1,
            "memory": self.memory,
            "walltime": self.walltime,
            "queue": self.partition or None,
            "account": self.account or None,
            "interface": self.interface or None,
            "job_extra_directives": list(self.directives),
            "job_script_prologue": [*exports, *self.prologue],
            "log_directory": self.logs or None,
            "shared_temp_directory": str(folder),
            "python": sys.executable,
            # jobs keep nothing in dask's memory; Slurm holds a worker to what it asked for
            "worker_extra_args": ["--memory-limit", "0"],
            "scheduler_options": {"dashboard": False, "dashboard_address": "127.0.0.1:0"},
        }

    def connect(self, stack: contextlib.ExitStack) -> Any:
        """A client of workers that Slurm is asked for; `stack` ends them.

        Raises `InputError` without dask-jobqueue or Slurm's commands, and `WorkersLost` where Slurm refuses.
        """
        from distributed import Client

        try:
            from dask_jobqueue import SLURMCluster  # type: ignore[import-not-found]
        except ImportError as error:
            raise InputError("--slurm needs dask-jobqueue: pip install 'bci-adapt[slurm]'") from error
        if shutil.which("sbatch") is None:
            raise InputError("--slurm: expected Slurm's sbatch on the path, found none: start this where jobs are sent")
        cache_root().mkdir(parents=True, exist_ok=True)
        # the keys of this cluster, for its user's eyes, and for as long as it lives
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".slurm.", dir=cache_root())))
        try:
            cluster = SLURMCluster(protocol="tls://", security=_keys_in(folder), **self.options(folder))
            stack.callback(cluster.close)
            cluster.scale(jobs=self.workers)
            client = Client(cluster, set_as_default=False)
        except (OSError, RuntimeError, ValueError) as error:
            raise WorkersLost(f"Slurm does not start workers: {error}; mend the profile, start again") from error
        return client


def _keys_in(folder: Path) -> Any:
    """TLS with keys of its own, in files of `folder`: a worker on another machine reads them there."""
    from distributed.security import Security

    made, files = Security.temporary(), {}
    for name in (
        "ca_file",
        *(f"{role}_{part}" for role in ("scheduler", "worker", "client") for part in ("cert", "key")),
    ):
        path = folder / f"{name}.pem"
        path.write_text(getattr(made, f"tls_{name}"), encoding="ascii")
        path.chmod(0o600)
        files[f"tls_{name}"] = str(path)
    return Security(require_encryption=True, **files)
