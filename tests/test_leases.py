"""Two runs at once do the work once; a run that died holds nobody up."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from textwrap import dedent

import pytest
from test_engine import job, toy  # noqa: F401

from bci_adapt.ground import leases
from bci_adapt.ground.engine import execute
from bci_adapt.ground.leases import Leases, lease_of

N_JOBS = 150
RUN = """
import sys
from bci_adapt.ground.engine import execute
from bci_adapt.ground.jobs import Job
jobs = [Job(kind="adapt", function="toy.slow:run", stem=f"job{i}", folder="results",
            parameters={"name": f"job{i}", "log": sys.argv[1]}) for i in range(int(sys.argv[2]))]
last = Job(kind="score", function="toy.slow:run", stem="last", folder="results",
           inputs={job.stem: job for job in jobs}, parameters={"name": "last", "log": sys.argv[1]})
done = execute([last], workers=int(sys.argv[3]))
assert not done.failed and not done.skipped, done
print(done.executed, done.reused)
"""
SLOW = """
import time

def run(parameters, inputs, out):
    with open(parameters["log"], "a") as log:
        log.write(parameters["name"] + "\\n")
    time.sleep(0.03)
    out.write_text(parameters["name"])
"""


@pytest.mark.parametrize("workers", [0, 1])
def test_two_runs_at_once_do_every_job_once_and_share_them(toy, tmp_path, workers):  # noqa: F811
    (toy / "slow.py").write_text(dedent(SLOW))
    log = tmp_path / "log"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(toy.parent), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", RUN, str(log), str(N_JOBS), str(workers)]
    runs = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [run.communicate(timeout=120)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    names = log.read_text().split()
    assert len({*names}) == N_JOBS + 1
    assert len(names) <= 1.02 * (N_JOBS + 1), "at most one in fifty is done twice"
    executed = [int(each.split()[0]) for each in told]
    assert sum(executed) == len(names)
    assert min(executed) > N_JOBS / 10, "both have worked"
    assert not list((tmp_path / "cache").rglob("*.lease"))


@pytest.mark.usefixtures("toy")
def test_a_lease_is_free_when_its_holder_is_gone_and_not_before(monkeypatch):
    path = job("claimed").path
    lease = lease_of(path)
    path.parent.mkdir(parents=True)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    here, mine = socket.gethostname(), leases._owner(os.getpid())
    now, old = None, leases.EXPIRY_S + 1
    for owner, age_s, taken in [
        (mine, now, True),  # of another run of this process
        ([here, os.getpid(), mine[2] - 100], now, False),  # the number of a process that has ended is given again
        ([here, ended.pid, mine[2]], now, False),
        (["elsewhere", 1, 0.0], now, True),
        (["elsewhere", 1, 0.0], old, False),
        (mine, old, True),  # of this machine the process itself is looked at
    ]:
        lease.write_text(json.dumps(owner))
        if age_s is not None:
            os.utime(lease, (lease.stat().st_mtime - age_s,) * 2)
        with Leases() as own:
            assert own.taken(path) is taken, owner
            assert own.claim(path) is not taken, owner
        assert lease.exists() is taken
    lease.write_text("")  # about to be written
    with Leases() as own:
        assert not own.claim(path)
        monkeypatch.setattr(leases, "HEARTBEAT_S", 0.0)
        assert own.claim(path)
    assert not lease.exists()


@pytest.mark.usefixtures("toy")
def test_a_run_waits_for_what_another_is_at_and_takes_it_over_when_that_dies():
    first, second = job("first", cost=2.0), job("second")
    first.path.parent.mkdir(parents=True)
    holder = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1.5)"])
    import psutil

    owner = [socket.gethostname(), holder.pid, psutil.Process(holder.pid).create_time()]
    lease_of(first.path).write_text(json.dumps(owner))
    order = []

    class Told:
        def start(self, total, reused):
            pass

        def done(self, label, seconds, ok):
            order.append((label, holder.poll() is None))

        def damaged(self, paths):
            pass

    assert execute([first, second], workers=0, progress=Told()).executed == 2
    assert order == [("adapt second", True), ("adapt first", False)]
