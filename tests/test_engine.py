"""The job engine: what a key depends on, what is run, what a failure or a dying worker leaves behind."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from textwrap import dedent

import pytest

from bci_adapt.errors import InputError
from bci_adapt.ground import engine, jobs, performing, pools, seals
from bci_adapt.ground.engine import execute, plan
from bci_adapt.ground.jobs import Job

PACKAGE = {
    "__init__.py": "from toy.unrelated import anything\nversion = 1\n",
    "work.py": """
        import json, os, signal, sys
        from typing import TYPE_CHECKING
        from bci_adapt.errors import InputError
        from . import helper
        if TYPE_CHECKING:
            from toy import only_for_checkers

        def run(parameters, inputs, out):
            from toy.deep.inner import later
            if parameters.get("input_error"):
                raise InputError("session.nwb: expected spikes, got none")
            if parameters.get("exit"):
                sys.exit(3)
            if parameters.get("as_folder"):
                out.mkdir()
                (out / "half").write_text("written")
            if parameters.get("fail"):
                raise RuntimeError("diverged")
            if "die_unless" in parameters and not os.path.exists(parameters["die_unless"]):
                open(parameters["die_unless"], "x").close()
                os.kill(os.getpid(), signal.SIGKILL)
            if parameters.get("always_die"):
                os.kill(os.getpid(), signal.SIGKILL)
            if "log" in parameters:
                with open(parameters["log"], "a") as log:
                    log.write(parameters["name"] + "\\n")
            if "fifo" in parameters:
                out.write_text("half")
                with open(parameters["fifo"], "w") as tell:
                    tell.write("in the middle")
                import threading
                threading.Event().wait(60)
            result = {"parameters": parameters, "inputs": {k: str(v) for k, v in inputs.items()}, "pid": os.getpid(),
                      "threads": os.environ.get("OMP_NUM_THREADS"), "cache": os.environ.get("BCI_ADAPT_CACHE"),
                      "heavy": sorted({"torch", "numba", "pynwb", "typer"} & set(sys.modules))}
            (out / "result.json" if out.is_dir() else out).write_text(json.dumps(result))
        """,
    "helper.py": "TABLE = 'table.toml'\n",
    "table.toml": "severity = 1\n",
    "deep/__init__.py": "",
    "deep/inner.py": "import toy.relative\nlater = 1\n",
    "relative.py": "from .deep import sibling\n",
    "deep/sibling.py": "",
    "unrelated.py": "anything = 1\n",
    "only_for_checkers.py": "",
    "variants/one.py": "import toy.base\n",
    "variants/two.py": "",
    "base.py": "",
    "lazy/__init__.py": "from toy import at_once\n\n\ndef offered():\n    from toy import heavy\n",
    "lazy/part.py": "",
    "at_once.py": "",
    "heavy.py": "",
    "takes.py": "from toy.lazy import offered\n",
    "imports.py": "import toy.lazy.part\n",
}


@pytest.fixture
def toy(tmp_path, monkeypatch) -> Path:
    """A package of job functions, importable here and in the workers, and an empty cache."""
    folder = tmp_path / "code" / "toy"
    for name, text in PACKAGE.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(dedent(text))
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.setenv("BCI_ADAPT_CACHE", str(tmp_path / "cache"))
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "toy"]:
        del sys.modules[name]


def job(stem: str = "job", inputs: dict | None = None, **parameters) -> Job:
    keys = {"modules", "suffix", "label", "cost", "kind", "function", "folder"}
    given = {name: parameters.pop(name) for name in keys & parameters.keys()}
    defaults = {"kind": "adapt", "function": "toy.work:run", "folder": "results"}
    return Job(stem=stem, parameters=parameters, inputs=inputs or {}, **(defaults | given))


class Recorder:
    def __init__(self):
        self.events = []

    def start(self, total, reused):
        self.events.append(("start", total, reused))

    def done(self, label, seconds, ok):
        assert seconds >= 0
        self.events.append((label, ok))

    def damaged(self, paths):
        self.events.append(("damaged", *(path.name for path in paths)))


def result(job: Job) -> dict:
    return json.loads((job.path / "result.json" if job.path.is_dir() else job.path).read_text())


def leftovers(tmp_path: Path) -> list[str]:
    return [str(path) for path in (tmp_path / "cache").rglob("*") if ".part" in str(path)]


@pytest.mark.parametrize(
    ("edited", "modules", "changes"),
    [
        ("work.py", (), True),
        ("helper.py", (), True),  # from . import
        ("deep/inner.py", (), True),  # imported inside a function
        ("relative.py", (), True),  # imported by an import
        ("deep/sibling.py", (), True),
        ("deep/__init__.py", (), True),  # run by importing what lies below it
        ("table.toml", (), True),  # data beside a module that names it
        ("__init__.py", (), False),  # nothing is taken from it
        ("unrelated.py", (), False),
        ("only_for_checkers.py", (), False),
        ("variants/one.py", (), False),
        ("variants/one.py", ("toy.variants.one",), True),
        ("base.py", ("toy.variants.one",), True),
        ("variants/two.py", ("toy.variants.one",), False),
        ("variants/two.py", ("toy.variants",), True),  # a package stands for all of its modules
        ("lazy/__init__.py", ("toy.lazy.part",), True),
        ("at_once.py", ("toy.lazy.part",), True),  # imported by an ``__init__`` when it is run
        ("heavy.py", ("toy.lazy.part",), False),  # imported by a function of an ``__init__`` that nobody calls
        ("heavy.py", ("toy.lazy.part", "toy.takes"), True),  # a name is taken from that ``__init__``
        ("heavy.py", ("toy.imports",), True),  # it may be used through the package
    ],
)
def test_an_edit_changes_the_keys_of_the_jobs_that_run_it_and_no_other(toy, edited, modules, changes):
    before = job(modules=modules).key
    (toy / edited).write_text((toy / edited).read_text() + "# edited\n")
    assert (job(modules=modules).key != before) is changes


def test_imports_are_found_in_every_kind_of_statement(tmp_path):
    source = tmp_path / "work.py"
    source.write_text(
        dedent("""
        import toy.a
        if x:
            import toy.b
        else:
            import toy.c
        try:
            import toy.d
        except ImportError:
            import toy.e
        finally:
            import toy.f
        with x as y:
            for z in y:
                while z:
                    import toy.g
        match x:
            case 1:
                import toy.h
        class Kind:
            from toy import i
            def method(self):
                import toy.j
                return open("table.toml"), "work.py", "two words.toml"
        if TYPE_CHECKING:
            import toy.k
        """)
    )
    found = jobs._source_at(source, 0, 0, "toy.work")
    assert found.imported - {"toy"} == {f"toy.{name}" for name in "abcdefghij"}
    assert found.imported_at_once == found.imported - {"toy.j"}
    assert found.named == {"table.toml"}


def test_a_key_is_the_digest_of_its_recipe(toy, tmp_path):
    (tmp_path / "raw").write_text("raw")
    first = job("first", number=-0.0, text="\u00e9\ud800", many=(1, [None, True]), nested={"b": 1e300, "a": 2})
    second = job("second", inputs={"of": first, "raw": tmp_path / "raw"}, versions={"none": None})
    for each in (first, second):
        assert each.key == jobs.digest(each.recipe)


def test_keys_follow_contents_and_nothing_else(toy, tmp_path, monkeypatch):
    raw, copy, other = tmp_path / "raw.nwb", tmp_path / "elsewhere" / "copy.nwb", tmp_path / "other.nwb"
    copy.parent.mkdir()
    raw.write_bytes(b"spikes")
    copy.write_bytes(b"spikes")
    other.write_bytes(b"other spikes")
    source = job("source", seed=1)
    reference = job(inputs={"raw": raw, "source": source}, a=1, b={"x": 1.5, "y": [1, 2]})
    same = [
        job(inputs={"source": source, "raw": raw}, b={"y": (1, 2), "x": 1.5}, a=1),
        job(inputs={"raw": copy, "source": source}, a=1, b={"x": 1.5, "y": [1, 2]}, label="another", cost=7.0),
        job("other stem", inputs={"raw": raw, "source": job("source", seed=1)}, a=1, b={"x": 1.5, "y": [1, 2]}),
    ]
    different = [
        job(inputs={"raw": other, "source": source}, a=1, b={"x": 1.5, "y": [1, 2]}),
        job(inputs={"raw": raw, "source": job("source", seed=2)}, a=1, b={"x": 1.5, "y": [1, 2]}),
        job(inputs={"raw": raw}, a=1, b={"x": 1.5, "y": [1, 2]}),
        job(inputs={"raw": raw, "source": source}, a=2, b={"x": 1.5, "y": [1, 2]}),
        job(inputs={"raw": raw, "source": source}, a=1, b={"x": 1.5, "y": [2, 1]}),
        job(function="toy.helper:run", inputs={"raw": raw, "source": source}, a=1, b={"x": 1.5, "y": [1, 2]}),
    ]
    assert {other.key for other in same} == {reference.key}
    assert len({reference.key, *(other.key for other in different)}) == 1 + len(different)
    raw.write_bytes(b"Spikes")  # same size: the time of change tells
    os.utime(raw, ns=(1, 1))
    assert job(inputs={"raw": raw, "source": source}, a=1, b={"x": 1.5, "y": [1, 2]}).key != reference.key
    monkeypatch.setattr(jobs, "library_versions", lambda: {"numpy": "0.1"})
    assert same[0].key == reference.key, "a key is computed once"
    assert job("source", seed=1).key != source.key, "library versions count"
    name = job("a b/..\\c:é", suffix=".nc").path.name
    assert name.startswith("a_b_.._c-")
    assert name.endswith(".nc")


def test_what_cannot_be_a_job_is_refused(toy, tmp_path):
    with pytest.raises(InputError, match=r"gone\.nwb: no such file.*'prepare monday'"):
        _ = job("monday", kind="prepare", inputs={"raw": tmp_path / "gone.nwb"}).key
    for parameters, error in [
        ({"a": float("nan")}, ValueError),
        ({"a": {1: 2}}, TypeError),
        ({"a": tmp_path}, TypeError),
    ]:
        with pytest.raises(error):
            _ = job(**parameters).key
    for arguments in ({"function": "toy.work"}, {"cost": -1.0}):
        with pytest.raises(ValueError, match="a job's"):
            job(**arguments)
    for arguments in ({"function": "toy.absent:run"}, {"modules": ("toy.absent",)}, {"modules": ("absent",)}):
        with pytest.raises(ImportError, match="absent"):
            _ = job(**arguments).key
    for arguments, message in [({"workers": -1}, "workers"), ({"workers": 1, "scheduler": "tcp://x:1"}, "exclude")]:
        with pytest.raises(InputError, match=message):
            execute([job()], **arguments)


def test_unreachable_schedulers_are_input_errors(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(pools, "_CONNECT_TIMEOUT_S", 0.3)
    for address in ("tcp://127.0.0.1:1", "nonsense://here"):
        with pytest.raises(InputError, match="no dask scheduler answers at"):
            execute([job()], scheduler=address)
    assert not job().path.exists()


def test_only_what_is_missing_is_run(toy, tmp_path, monkeypatch):
    log = str(tmp_path / "log")
    source = job("source", log=log, name="source")
    middle = job("middle", inputs={"of": source}, log=log, name="middle", folder="decoders", suffix=".npz")
    ends = [job(f"end{i}", inputs={"of": middle}, log=log, name=f"end{i}") for i in range(2)]
    again = job("end0", inputs={"of": middle}, log=log, name="end0")
    recorder = Recorder()
    outcome = execute([*ends, again], workers=0, progress=recorder)
    assert (outcome.executed, outcome.reused, outcome.failed, outcome.skipped) == (4, 0, (), ())
    assert recorder.events == [("start", 4, 0), *((f"adapt {n}", True) for n in ("source", "middle", "end0", "end1"))]
    assert result(ends[1])["inputs"] == {"of": str(middle.path)}
    assert middle.path.parent.name == "decoders"
    assert (result(source)["threads"], result(source)["cache"]) == ("1", str(tmp_path / "cache"))

    monkeypatch.setattr(engine, "Cluster", None)  # a second run starts nothing
    outcome = execute(ends)
    assert (outcome.executed, outcome.reused) == (0, 2)
    source.path.unlink()  # not needed by anything that is missing
    ends[0].path.unlink()
    assert plan(ends) == ([ends[0]], [middle, ends[1]])
    outcome = execute(ends, workers=0)
    assert (outcome.executed, outcome.reused) == (1, 2)
    assert Path(log).read_text().split() == ["source", "middle", "end0", "end1", "end0"]


def test_a_failure_stops_what_depends_on_it_and_nothing_else(toy, tmp_path):
    bad = job("bad", fail=True, as_folder=True)
    half = job("half", fail=True, seed=3)
    wrong = job("wrong", input_error=True)
    leaves = job("leaves", exit=True)
    silent = job("silent", function="toy.helper:absent")
    child = job("child", inputs={"of": bad})
    grandchild = job("grandchild", inputs={"of": child, "and": wrong})
    good = job("good", seed=1)
    recorder = Recorder()
    outcome = execute([grandchild, good, half, leaves, silent], workers=0, progress=recorder)
    failed = {failure.label: failure for failure in outcome.failed}
    assert set(failed) == {"adapt bad", "adapt half", "adapt wrong", "adapt leaves", "adapt silent"}
    assert failed["adapt bad"].message == "RuntimeError: diverged"
    assert "Traceback" in failed["adapt bad"].error
    assert failed["adapt bad"].key == bad.key
    assert failed["adapt wrong"].message == "session.nwb: expected spikes, got none"
    assert [label for label, failure in failed.items() if failure.is_input_error] == ["adapt wrong"]
    assert {skip.label for skip in outcome.skipped} == {"adapt child", "adapt grandchild"}
    assert {skip.because for skip in outcome.skipped} <= {"adapt bad", "adapt wrong"}
    assert (outcome.executed, outcome.reused) == (1, 0)
    assert len(recorder.events) == 1 + 8
    assert good.path.exists()
    left = sorted(path.name for path in good.path.parent.iterdir())
    assert left == [good.path.name, good.path.name + ".sha256"], "nothing half-written"
    assert execute([good], workers=0).reused == 1


def test_a_source_edited_after_planning_fails_the_job(toy):
    late = job()
    _ = late.key
    (toy / "helper.py").write_text("changed = True\n")
    (failure,) = execute([late], workers=0).failed
    assert failure.is_input_error
    assert "edited" in failure.message
    assert not late.path.exists()


def test_long_chains_come_first(toy, tmp_path):
    log = str(tmp_path / "log")

    def named(name, cost, **inputs):
        return job(name, inputs=inputs, cost=cost, log=log, name=name)

    root = named("root", 1.0)
    tail = named("tail", 30.0, of=root)  # root starts a chain of 31 s: more urgent than any single job
    jobs = [named("short", 2.0), named("long", 20.0), tail, named("middle", 5.0)]
    assert [each.stem for each in plan(jobs)[0]] == ["root", "tail", "long", "middle", "short"]
    assert execute(jobs, workers=1).executed == 5
    assert Path(log).read_text().split() == ["root", "tail", "long", "middle", "short"]


def test_worker_processes(toy, tmp_path, capfd, recwarn):
    """Real processes: isolation of failures, a worker killed once (retried) and one that dies each time (given up)."""
    folder = job("folder", folder="decoders", as_folder=True, die_unless=str(tmp_path / "died_once"))
    bad = job("bad", fail=True)
    deadly = job("deadly", always_die=True)
    child = job("child", inputs={"of": deadly})
    good = [job(f"good{i}", inputs={"of": folder}, seed=i) for i in range(3)]
    main = sys.modules["__main__"]
    before = dict(os.environ)
    with socket.socket() as other:
        with contextlib.suppress(OSError):  # dask's usual port, taken by another run: by this one, or one before
            other.bind(("", 8787))
            other.listen()
        outcome = execute([*good, bad, child], workers=2)
    assert sys.modules["__main__"] is main
    assert dict(os.environ) == before
    assert outcome.executed == 4
    assert {failure.label for failure in outcome.failed} == {"adapt bad", "adapt deadly"}
    assert "died 3 times" in next(f.message for f in outcome.failed if f.label == "adapt deadly")
    assert [skip.label for skip in outcome.skipped] == ["adapt child"]
    assert (tmp_path / "died_once").exists()
    for each in (folder, *good):
        found = result(each)
        assert found["pid"] != os.getpid()
        assert (found["threads"], found["cache"], found["heavy"]) == ("1", str(tmp_path / "cache"), [])
    assert leftovers(tmp_path) == []
    assert (capfd.readouterr(), list(recwarn)) == (("", ""), []), "the cluster keeps quiet"


def test_remote_scheduler(toy, tmp_path):
    from distributed import LocalCluster

    source = job("source")
    jobs = [job(f"end{i}", inputs={"of": source}, seed=i) for i in range(3)] + [job("bad", fail=True)]
    with LocalCluster(
        n_workers=1,
        threads_per_worker=2,
        processes=False,
        protocol="tcp",
        silence_logs=50,
        scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
    ) as cluster:
        outcome = execute(jobs, scheduler=cluster.scheduler_address)
        assert (outcome.executed, len(outcome.failed)) == (4, 1)
        assert cluster.scheduler_info["workers"], "somebody else's cluster is left running"
    assert result(jobs[2])["inputs"] == {"of": str(source.path)}
    assert leftovers(tmp_path) == []


def test_an_interrupt_leaves_nothing_half_written(toy, tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    listening = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    script = tmp_path / "script.py"  # without a __main__ guard: workers must not run it again
    script.write_text(
        dedent(f"""
        import signal
        from pathlib import Path
        from bci_adapt.ground.engine import execute
        from bci_adapt.ground.jobs import Job
        # A shell's background job, and so its tests, would ignore the signal.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        Path({str(tmp_path / "started")!r}).touch(exist_ok=False)
        jobs = [Job(kind="adapt", function="toy.work:run", stem=s, folder="results", parameters=p)
                for s, p in (("stuck", {{"fifo": {str(fifo)!r}}}), ("good", {{}}))]
        execute(jobs, workers=2)
        """)
    )
    child = subprocess.Popen(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(toy.parent), os.environ.get("PYTHONPATH", "")])},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert select.select([listening], [], [], 30)[0], "the job has never reached the middle of its work"
        os.killpg(child.pid, signal.SIGINT)  # as a terminal does: every process of the group
        _, errors = child.communicate(timeout=30)
    finally:
        os.close(listening)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    assert child.returncode != 0
    assert errors.rstrip().endswith("KeyboardInterrupt"), errors
    assert errors.count("Traceback") == 1, errors
    assert leftovers(tmp_path) == []
    assert not job("stuck", fifo=str(fifo)).path.exists()


def test_what_a_dead_process_left_is_swept_and_what_lives_is_not(toy, tmp_path):
    target = job("swept")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    owners = {"dead": ended.pid, "alive": os.getpid()}
    for name, pid in owners.items():
        holder = target.path.parent / f".{name}.x.part"
        holder.mkdir(parents=True)
        (holder / ".owner").write_text(json.dumps([socket.gethostname(), pid]))
    (target.path.parent / ".unsigned.x.part").mkdir()
    assert execute([target], workers=0).executed == 1
    assert {path.name for path in target.path.parent.iterdir()} == {
        target.path.name,
        target.path.name + ".sha256",
        ".alive.x.part",
        ".unsigned.x.part",
    }


def flip(path: Path) -> None:
    """Change one bit of a file, and its length in no way."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [flip, lambda path: path.write_bytes(path.read_bytes()[:-3]), Path.unlink])
@pytest.mark.parametrize("as_folder", [False, True])
def test_a_damaged_result_is_named_and_made_again(toy, damage, as_folder, tmp_path):
    log = str(tmp_path / "log")
    source = job("source", log=log, name="source", as_folder=as_folder)
    end = job("end", inputs={"of": source}, log=log, name="end")
    execute([end], workers=0)
    whole = source.path / "result.json" if as_folder else source.path
    before = whole.read_bytes()
    damage(whole)
    assert execute([end], workers=0).reused == 1, "what is not needed is not looked at"
    recorder = Recorder()
    outcome = execute([end, source], workers=0, progress=recorder)
    assert (outcome.executed, outcome.reused, outcome.failed) == (1, 1, ())
    named = [event for event in recorder.events if event[0] == "damaged"]
    gone = damage is Path.unlink and not as_folder
    assert named == ([] if gone else [("damaged", source.path.name)])
    assert json.loads(whole.read_bytes())["parameters"] == json.loads(before)["parameters"]
    assert execute([end, source], workers=0).executed == 0


def test_damage_of_the_seal_itself_costs_one_job(toy):
    source = job("source")
    execute([source], workers=0)
    flip(source.path.with_name(source.path.name + ".sha256"))
    seals._WHOLE.clear()
    assert execute([source], workers=0).executed == 1
    source.path.with_name(source.path.name + ".sha256").unlink()
    seals._WHOLE.clear()
    assert execute([source], workers=0).executed == 1


def test_what_is_damaged_while_a_run_works_is_not_read(toy):
    source = job("source")
    end = job("end", inputs={"of": source})
    execute([source], workers=0)
    task = performing.task(end)
    flip(source.path)
    report = performing.perform(**task)
    assert report.is_input_error
    assert "was damaged, or removed, while this run worked" in report.message
    assert not end.path.exists()


def test_a_worker_looks_at_sources_once_in_a_moment(toy, monkeypatch):
    monkeypatch.setattr(jobs, "_LOOKS", {})
    first = jobs.sources("toy.work:run", (), 60.0)
    (toy / "helper.py").write_text("changed = True\n")
    assert jobs.sources("toy.work:run", (), 60.0) is first, "a moment ago"
    edited = jobs.sources("toy.work:run")
    assert edited != first, "whoever plans has no patience"
    (toy / "helper.py").write_text("changed = 'again'\n")
    now = time.monotonic()
    monkeypatch.setattr(jobs.time, "monotonic", lambda: now + 61.0)
    assert jobs.sources("toy.work:run", (), 60.0) not in (first, edited), "a moment has passed"


def test_sources_are_looked_at_again_unless_one_look_is_asked_for(toy):
    first = jobs.sources("toy.work:run")
    assert jobs.sources("toy.work:run") is first, "nothing has changed"
    with jobs.looking_once():
        assert jobs.sources("toy.work:run") == first
        (toy / "table.toml").write_text("severity = 2\n")
        assert jobs.sources("toy.work:run") == first, "a moment's look"
    edited = jobs.sources("toy.work:run")
    assert {name for name in edited if edited[name] != first[name]} == {"toy.helper/table.toml"}
    before = jobs.sources("toy.work:run", ["toy.variants"])
    (toy / "variants" / "three.py").write_text("")
    assert "toy.variants.three" in jobs.sources("toy.work:run", ["toy.variants"]).keys() - before.keys()
    any_job = job(a={"b": [1, 2.5, None, "é"]}, inputs={"of": job("source")}, modules=("toy.variants",))
    assert any_job.key == jobs.digest(any_job.recipe), "however its text is put together"
