"""Clusters: nobody else commands ours, and whatever is lost of one costs a sentence and no finished work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from test_engine import job, leftovers, result, toy  # noqa: F401

from bci_adapt.errors import InputError, WorkersLost
from bci_adapt.ground import pools
from bci_adapt.ground.engine import execute
from bci_adapt.ground.pools import Cluster, Remote

pytestmark = pytest.mark.usefixtures("toy")


def test_nobody_else_commands_the_workers_of_this_machine():
    from distributed import Client
    from distributed.security import Security

    with Cluster(1) as cluster:
        local = cluster._cluster
        addresses = [local.scheduler_address, *(nanny.address for nanny in local.workers.values())]
        addresses += [nanny.worker_address for nanny in local.workers.values()]
        assert len(addresses) == 3
        for address in addresses:
            assert address.startswith("tls://127.0.0.1:")
        strangers = [(addresses[0].replace("tls:", "tcp:"), None), (addresses[0], Security.temporary())]
        for address, security in strangers:
            with pytest.raises((OSError, TypeError)):
                Client(address, security=security, timeout=1, set_as_default=False)
        with Client(addresses[0], security=local.security, timeout=5, set_as_default=False) as own:  # with its keys
            assert own.submit(os.getpid).result() != os.getpid()


def test_a_scheduler_over_tls(tmp_path):
    from distributed import LocalCluster
    from distributed.security import Security

    security = Security.temporary()
    files = {"tls_ca": security.tls_ca_file, "tls_cert": security.tls_client_cert, "tls_key": security.tls_client_key}
    paths = {}
    for name, text in files.items():
        paths[name] = tmp_path / f"{name}.pem"
        paths[name].write_text(text)
    with LocalCluster(
        n_workers=1, processes=False, security=security, silence_logs=50, dashboard_address=None
    ) as cluster:
        done = execute([job("safe")], scheduler=Remote(cluster.scheduler_address, **paths))
        assert (done.executed, done.failed) == (1, ())
        with pytest.raises(InputError, match="no dask scheduler answers at 'tls"):
            execute([job("open")], scheduler=cluster.scheduler_address)
    with pytest.raises(InputError, match=r"go with a scheduler at tls://host:port, got 'tcp://here:1'"):
        Remote("tcp://here:1", **paths)
    with pytest.raises(InputError, match=r"--tls-key .*gone\.pem: no such file"):
        Remote("tls://here:1", **{**paths, "tls_key": tmp_path / "gone.pem"})


SCHEDULER = """
import signal
from distributed import LocalCluster
cluster = LocalCluster(n_workers=1, threads_per_worker=1, processes=False, protocol="tcp", silence_logs=50,
                       scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"})
print(cluster.scheduler_address, flush=True)
signal.pause()
"""


def test_a_lost_scheduler_costs_a_sentence_and_no_finished_work(toy, tmp_path):  # noqa: F811
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(toy.parent), os.environ.get("PYTHONPATH", "")])}
    other = subprocess.Popen([sys.executable, "-c", SCHEDULER], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        address = other.stdout.readline().strip()
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        first = job("first", cost=9.0)
        stuck = job("stuck", inputs={"of": first}, fifo=str(fifo))

        def kill_in_the_middle():
            with open(fifo) as told:
                told.read()
            other.send_signal(signal.SIGKILL)

        killer = threading.Thread(target=kill_in_the_middle)
        killer.start()
        with pytest.raises(WorkersLost, match=r"connection to the dask scheduler is lost.*the same command goes on"):
            execute([stuck], scheduler=address)
        killer.join()
    finally:
        other.kill()
        other.wait()
    assert first.path.exists()
    assert not stuck.path.exists()
    again = job("again", inputs={"of": first})
    outcome = execute([again], workers=0)
    assert (outcome.executed, outcome.reused) == (1, 1)
    assert leftovers(tmp_path) == []


def test_worker_processes_that_are_killed_while_they_start(tmp_path, monkeypatch):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "if '--multiprocessing-fork' in sys.orig_argv or any('spawn_main' in each for each in sys.orig_argv):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    with monkeypatch.context() as patch:
        path = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
        patch.setenv("PYTHONPATH", path)
        with pytest.raises(WorkersLost, match=r"worker processes did not start .*the same command goes on"):
            execute([job()], workers=1)
    assert execute([job()], workers=1).executed == 1


def test_nannies_that_start_no_worker_again(monkeypatch, tmp_path):
    from distributed import Nanny

    async def nothing(self, exitcode):
        self.status = type(self.status).failed

    with monkeypatch.context() as patch:
        patch.setattr(Nanny, "_on_worker_exit", nothing)
        patch.setattr(pools, "_NOBODY_S", 1.0)
        patch.setattr(pools, "_WATCH_S", 0.2)
        good = job("good", cost=5.0)
        with pytest.raises(WorkersLost, match="every worker process is gone"):
            execute([good, job("deadly", die_unless=str(tmp_path / "died_once"))], workers=1)
    assert result(good)
    assert execute([good, job("deadly", die_unless=str(tmp_path / "died_once"))], workers=1).executed == 1


def test_the_command_line_says_so_and_exits_with_1(call, monkeypatch, tmp_path):
    def lost(*arguments, **options):
        raise WorkersLost("every worker process is gone: the same command goes on from there")

    monkeypatch.setattr("bci_adapt.experiment.run.run_experiment", lost)
    config = Path(__file__).parent.parent / "configs" / "demo.toml"
    assert call("run", config) == (
        1, "", "error: every worker process is gone: the same command goes on from there\n"
    )  # fmt: skip
    for options, words in [
        (("--tls-ca", "ca.pem"), "go with --scheduler"),
        (("--slurm", "a.toml", "--scheduler", "tcp://here:1"), "exclude each other"),
        (("--scheduler", "tcp://here:1", "--tls-ca", "ca.pem"), "TLS files go with a scheduler at tls://"),
    ]:
        code, _, said = call("run", config, *options)
        assert code == 2
        assert words in said
