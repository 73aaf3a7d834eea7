"""The commands `fetch` and `cache`; real processes that are killed, interrupted or run side by side."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from archive_server import DANDISET, NEW, OLD, Fault, nwb_bytes, serving

from bci_adapt.archive import http
from bci_adapt.archive.cache import folder_of
from bci_adapt.archive.http import Patience
from bci_adapt.archive.lock import read_lock
from bci_adapt.archive.sources.folder import Folder

PATHS = ["sub-C/sub-C_ses-CO-20131003.nwb", "sub-C/sub-C_ses-CO-20131022.nwb", "sub-M/sub-M_ses-CO-20140303.nwb"]
CONTENT = {path: nwb_bytes(path[-11:-4], path[4], padding=100_000 * (n + 1)) for n, path in enumerate(PATHS)}


@pytest.fixture
def archive(monkeypatch, tmp_path):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("BCI_ADAPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(http, "PATIENCE", Patience(wait=lambda _: None, read_s=1.0, tries=3))
    with serving() as archive:
        for path, content in CONTENT.items():
            archive.add(path, content)
        archive.add(PATHS[0], CONTENT[PATHS[0]], version=OLD)
        archive.add("notes.txt", b"notes")
        monkeypatch.setenv("DANDI_INSTANCE", archive.url)
        yield archive


@pytest.fixture
def raw(tmp_path, archive):
    return folder_of(tmp_path / "cache" / "raw", archive.url)


def asset_id(archive, path, version=NEW):
    return next(row["asset_id"] for row in archive.dandisets[DANDISET][version] if row["path"] == path)


def test_fetch(call, archive, raw):
    code, out, err = call("fetch", DANDISET)
    assert code == 0
    for path in PATHS:
        assert path in out
        assert (raw / DANDISET / NEW / path).read_bytes() == CONTENT[path]
    assert out.count("fetched") == 3
    assert f"3 files of {DANDISET}/{NEW}" in out
    assert "licence: spdx:CC-BY-4.0" in out
    assert f"lock: {raw / 'sessions.lock.toml'}" in out
    assert "note: licence of" in err
    assert "'notes.txt'" in err
    assert archive.sent() == sum(map(len, CONTENT.values()))
    code, out, _ = call("fetch", DANDISET)
    assert (code, out.count("cached"), out.count("fetched")) == (0, 3, 0)
    assert archive.sent() == sum(map(len, CONTENT.values()))
    assert len(Folder(raw / DANDISET / NEW).list()) == 3  # parts and records are no NWB files


CONFIG = """
name = "two_days"
variables = ["velocity"]
bin_s = 0.05
stream_s = 60.0
min_held_out_s = 30.0
label_delay_s = 0.5
normaliser_s = 30.0
seeds = [0]

[source]
kind = "dandi"
dandiset = "000688"

[[pairs]]
source = "20131003"
targets = ["20131022"]

[network]
cells = ["tanh"]
n_hidden = 8
n_updates = 5
oracle_updates = 5

[[arms]]
rule = "readout"
optimizer = "rmsprop"
learning_rate = 1e-4
"""


def test_a_run_does_not_take_what_the_lock_happens_to_have(call, archive, tmp_path):
    """The archive is away, and of three files that the config means two were fetched."""
    config = tmp_path / "two_days.toml"
    config.write_text(CONFIG)
    lock = tmp_path / "sessions.lock.toml"
    assert call("fetch", DANDISET, "--subject", "C", "--lock", lock, "--quiet")[0] == 0
    archive.close()
    for options in ([], ["--offline"], ["--quiet"]):
        code, _, err = call("run", config, "--workers", 0, *options)
        assert code == 2
        assert f"missing in the cache: {PATHS[2]}" in err
        assert "note: " in err or "--quiet" in options
    assert lock.read_text().count("[[assets]]") == 2


def test_a_run_takes_over_what_a_fetch_pinned(call, archive, raw, tmp_path):
    config = tmp_path / "two_days.toml"
    config.write_text(CONFIG)
    assert call("fetch", DANDISET, "--quiet")[0] == 0
    archive.close()
    _, _, err = call("run", config, "--workers", 0)  # these files hold nothing to run with
    lock = tmp_path / "sessions.lock.toml"
    note = (
        f"note: {lock} pins nothing of {DANDISET}: used is what a fetch pinned in {raw / 'sessions.lock.toml'} ({NEW})"
    )
    assert note in err
    assert "missing in the cache" not in err
    assert read_lock(lock) == read_lock(raw / "sessions.lock.toml")


@pytest.mark.parametrize("command", ["run", "tune"])
def test_verify_looks_at_bytes_that_were_looked_at_today(call, archive, raw, tmp_path, command):
    """A byte that fell over, while size and time of change stayed: trusted for a day, unless --verify is said."""
    config = tmp_path / "two_days.toml"
    config.write_text(CONFIG + "[tuning]\n[[tuning.pairs]]\nsource = 1\ntargets = [2]\n")
    assert call("fetch", DANDISET, "--lock", tmp_path / "sessions.lock.toml", "--quiet")[0] == 0
    file = raw / DANDISET / NEW / PATHS[0]
    os.utime(file, (1e9, 1e9))  # another time of change than when it came, so that it is looked at once more
    assert call("fetch", DANDISET, "--lock", tmp_path / "sessions.lock.toml", "--quiet")[0] == 0
    status, whole = file.stat(), file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    _, _, err = call(command, config, "--workers", 0)  # these files hold no spikes: what is fetched is what counts here
    assert "is fetched again" not in err
    assert file.read_bytes() != whole
    _, _, err = call(command, config, "--workers", 0, "--verify")
    assert f"note: {PATHS[0]} is fetched again" in err
    assert file.read_bytes() == whole


def test_a_quiet_fetch_says_by_its_exit_code_what_it_could_not_do(call, archive, raw, tmp_path):
    code, _, err = call("fetch", DANDISET, "--path", PATHS[0], "--path", "*2015*", "--quiet")
    assert (code, "no NWB file with path '*2015*'" in err) == (2, True)
    assert call("fetch", DANDISET, "--subject", "C", "--quiet")[0] == 0
    for path in raw.rglob("*.listing.json"):
        path.unlink()
    archive.close()
    code, _, err = call("fetch", DANDISET, "--offline", "--quiet")
    assert (code, "may have more that are meant" in err) == (2, True)
    code, out, err = call("fetch", DANDISET, "--offline")
    assert (code, out.count("cached")) == (0, 2)
    assert "note: offline; used are 2 of the 2 files" in err


@pytest.mark.parametrize("command", ["run", "tune"])
def test_a_quiet_run_does_not_go_on_with_what_may_be_less_than_is_meant(call, archive, raw, tmp_path, command):
    config = tmp_path / "two_days.toml"
    config.write_text(CONFIG + "[tuning]\n[[tuning.pairs]]\nsource = 1\ntargets = [2]\n")
    assert call("fetch", DANDISET, "--lock", tmp_path / "sessions.lock.toml", "--quiet")[0] == 0
    for path in raw.rglob("*.listing.json"):
        path.unlink()
    code, _, err = call(command, config, "--workers", 0, "--offline", "--quiet")
    assert (code, "may have more that are meant; without --quiet these are used, with a note" in err) == (2, True)
    _, _, err = call(command, config, "--workers", 0, "--offline")  # goes on, to find no spikes in these files
    assert "note: offline; used are 3 of the 3 files" in err
    assert "without --quiet" not in err


def test_prepare_verifies_what_was_fetched(call, archive, raw, tmp_path):
    assert call("fetch", DANDISET, "--quiet")[0] == 0
    file = raw / DANDISET / NEW / PATHS[0]
    prepare = ["prepare", file, "-o", tmp_path / "out", "--verify"]
    assert "no units with spike times" in call(*prepare)[2]  # verified, and read
    status, whole = file.stat(), file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    code, _, err = call(*prepare)
    assert (code, "is recorded; fetch it again" in err) == (2, True)
    assert "fetch it again" not in call(*prepare[:-1])[2]
    mine = tmp_path / "mine.nwb"
    mine.write_bytes(whole)
    code, _, err = call("prepare", mine, "--verify")
    assert (code, "no record of a fetch" in err) == (2, True)
    code, _, err = call("prepare", archive.url, "--stream", "--verify")
    assert (code, "is not verified" in err) == (2, True)


def test_one_odd_name_costs_one_asset(call, archive, raw):
    archive.add("sub-C/a:b.nwb", b"odd")
    for options in (["--dry-run"], []):
        code, _, err = call("fetch", DANDISET, *options)
        assert code == 2
        assert "'sub-C/a:b.nwb'" in err
        assert "--exclude" in err
    assert all((raw / DANDISET / NEW / path).is_file() for path in PATHS)
    code, out, _ = call("fetch", DANDISET, "--exclude", "sub-C/a:b.nwb")
    assert (code, out.count("cached")) == (0, 3)


def test_what_a_dry_run_prints_is_what_the_fetch_does(call, archive, tmp_path):
    assert call("fetch", f"{DANDISET}/{OLD}", "--quiet")[0] == 0
    sent = archive.sent()
    archive.log.clear()
    _, out, _ = call("fetch", DANDISET, "--update", "--dry-run", "--json", "-")
    asked, planned = len(archive.log), json.loads(out)["files"]
    assert [row["state"] for row in planned] == ["reused", "missing", "missing"]
    archive.log.clear()
    _, out, _ = call("fetch", DANDISET, "--update", "--json", "-")
    assert [row["state"] for row in json.loads(out)["files"]] == ["reused", "fetched", "fetched"]
    assert archive.sent() == sum(row["missing"] for row in planned)
    assert sent == len(CONTENT[PATHS[0]])
    assert len([each for each in archive.log if "/blobs/" not in each.path and "/download/" not in each.path]) == asked


def test_damage_that_keeps_the_size_is_planned_fetched_and_told(call, archive, raw):
    assert call("fetch", DANDISET, "--quiet")[0] == 0
    file = raw / DANDISET / NEW / PATHS[1]
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(damaged)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in raw.rglob("*") if path.is_file()}
    _, out, _ = call("fetch", DANDISET, "--dry-run", "--json", "-")
    size = len(CONTENT[PATHS[1]])
    planned = [(row["state"], row["missing"]) for row in json.loads(out)["files"]]
    assert planned == [("cached", 0), ("damaged", size), ("cached", 0)]
    _, out, _ = call("fetch", DANDISET, "--dry-run")
    assert f"to fetch: {size / 1e6:,.1f} MB (nothing was written)" in out
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in raw.rglob("*") if path.is_file()} == before
    sent = archive.sent()
    _, out, _ = call("fetch", DANDISET, "--json", "-")
    done = [(row["state"], row["missing"]) for row in json.loads(out)["files"]]
    assert done == [("cached", 0), ("fetched", 0), ("cached", 0)]
    assert archive.sent() - sent == size
    assert file.read_bytes() == CONTENT[PATHS[1]]
    os.utime(file)  # changed in time alone: the digest is computed, and the bytes are right
    _, out, _ = call("fetch", DANDISET, "--dry-run", "--json", "-")
    assert [row["state"] for row in json.loads(out)["files"]] == ["cached"] * 3


def test_damage_beside_a_sound_twin_costs_no_fetch_and_is_planned_so(call, archive, raw):
    assert call("fetch", f"{DANDISET}/{OLD}", "--quiet")[0] == 0
    assert call("fetch", DANDISET, "--update", "--quiet")[0] == 0
    sent, file = archive.sent(), raw / DANDISET / NEW / PATHS[0]
    for damaged in (CONTENT[PATHS[0]][:-1] + b"?", b"short"):
        file.unlink()  # a hard link: its twin stays as it is
        file.write_bytes(damaged)
        _, out, _ = call("fetch", DANDISET, "--dry-run", "--json", "-")
        planned = [(row["state"], row["missing"]) for row in json.loads(out)["files"]]
        assert planned == [("reused", 0), ("cached", 0), ("cached", 0)]
        _, out, _ = call("fetch", DANDISET, "--json", "-")
        assert [(row["state"], row["missing"]) for row in json.loads(out)["files"]] == planned
        assert file.read_bytes() == CONTENT[PATHS[0]]
    assert archive.sent() == sent


def test_a_lost_record_is_planned_as_what_the_fetch_does(call, archive, raw):
    """Right bytes are taken, others are in the way."""
    assert call("fetch", DANDISET, "--quiet")[0] == 0
    file = raw / DANDISET / NEW / PATHS[1]
    for data in (CONTENT[PATHS[1]], b"mine"):
        file.write_bytes(data)
        file.with_name(f"{file.name}.asset.json").unlink()
        ends = [call("fetch", DANDISET, *options, "--json", "-") for options in (["--dry-run"], [])]
        if data == b"mine":
            assert all(code == 2 and "is in the way of" in err for code, _, err in ends)
        else:
            assert [[row["state"] for row in json.loads(out)["files"]] for _, out, _ in ends] == [["cached"] * 3] * 2


def test_a_damaged_twin_is_planned_and_told_as_fetched(call, archive, raw):
    assert call("fetch", f"{DANDISET}/{OLD}", "--quiet")[0] == 0
    twin = raw / DANDISET / OLD / PATHS[0]
    twin.write_bytes(twin.read_bytes()[:-1] + b"?")
    for options, states in (["--dry-run"], ["missing"]), ([], ["fetched"]):
        _, out, _ = call("fetch", f"{DANDISET}/{NEW}", "--path", PATHS[0], *options, "--json", "-")
        assert [row["state"] for row in json.loads(out)["files"]] == states


def test_dry_run_writes_nothing(call, archive, raw):
    call("fetch", DANDISET, "--subject", "M", "--quiet")
    before = sorted(raw.rglob("*"))
    archive.log.clear()
    code, out, _ = call("fetch", DANDISET, "--dry-run", "--json", "-")
    rows = json.loads(out)["files"]
    assert code == 0
    assert [(row["path"], row["state"]) for row in rows] == list(
        zip(PATHS, ["missing", "missing", "cached"], strict=True)
    )
    assert [row["missing"] for row in rows] == [len(CONTENT[PATHS[0]]), len(CONTENT[PATHS[1]]), 0]
    assert sorted(raw.rglob("*")) == before
    assert archive.asked("/download/") == []
    code, out, _ = call("fetch", DANDISET, "--dry-run", "--lock", raw / "other.toml")
    assert f"to fetch: {sum(map(len, CONTENT.values())) / 1e6:,.1f} MB (nothing was written)" not in out
    assert f"to fetch: {sum(len(CONTENT[path]) for path in PATHS[:2]) / 1e6:,.1f} MB (nothing was written)" in out
    assert not (raw / "other.toml").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--subject", "C"], PATHS[:2]),
        (["--session", "CO-2014*"], PATHS[2:]),
        (["--path", "*1003*", "--path", "*0303*"], [PATHS[0], PATHS[2]]),
        (["--path", "sub-C/*", "--session", "*22"], [PATHS[1]]),
    ],
)
def test_options_select(call, archive, options, expected, tmp_path):
    code, out, _ = call("fetch", DANDISET, *options, "--quiet", "--json", tmp_path / "got.json")
    got = json.loads((tmp_path / "got.json").read_text())
    assert (code, out) == (0, "")
    assert [row["path"] for row in got["files"]] == expected
    assert {row["state"] for row in got["files"]} == {"fetched"}
    assert got["version"] == NEW
    assert got["licence"] == "spdx:CC-BY-4.0"
    assert [Path(row["file"]).stat().st_size for row in got["files"]] == [row["size"] for row in got["files"]]


def test_version_lock_update_offline(call, archive, tmp_path):
    lock = tmp_path / "mine.toml"
    assert call("fetch", f"{DANDISET}/{OLD}", "--lock", lock, "--jobs", "1")[0] == 0
    assert read_lock(lock).pinned.get(DANDISET) == OLD
    assert f"files of {DANDISET}/{OLD}" in call("fetch", DANDISET, "--lock", lock)[1]
    assert f"files of {DANDISET}/{NEW}" in call("fetch", DANDISET, "--lock", lock, "--update")[1]
    assert read_lock(lock).pinned.get(DANDISET) == NEW
    archive.log.clear()
    code, out, err = call("fetch", DANDISET, "--lock", lock, "--offline")
    assert (code, archive.log) == (0, [])
    assert "3 files" in out
    assert "offline" in err


def test_a_draft_is_warned_of(call, archive):
    archive.add(PATHS[0], CONTENT[PATHS[0]], version="draft")
    code, _, err = call("fetch", f"{DANDISET}/draft")
    assert code == 0
    assert "note: 000688/draft is a draft" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fetch", "688"], "six digits"),
        (["fetch", f"{DANDISET}/latest"], "published version"),
        (["fetch", "000001"], "dandiset 000001 is not in the archive"),
        (["fetch", DANDISET, "--subject", "Z"], "the nearest"),
        (["fetch", DANDISET, "--offline"], "no version of 000688 is pinned"),
        (["fetch", DANDISET, "--offline", "--update"], "choose one"),
        (["fetch", DANDISET, "--lock", "{bad}"], "bad.toml"),
        (["fetch", DANDISET, "--lock", "{bad}/x.toml"], "bad.toml"),
        (["cache", "list", "68"], "six digits"),
        (["cache", "clean", "../.."], "six digits"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(call, archive, tmp_path, arguments, message):
    (tmp_path / "bad.toml").write_text("format = 9")
    code, out, err = call(*[each.format(bad=tmp_path / "bad.toml") for each in arguments])
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert next(line for line in err.splitlines() if not line.startswith("note: ")).startswith("error: ")
    assert archive.asked("/download/") == []


def test_no_network_is_one_line(call, archive, monkeypatch):
    monkeypatch.setenv("DANDI_INSTANCE", "http://127.0.0.1:9/api")
    code, _, err = call("fetch", DANDISET)
    assert code == 2
    assert err.count("\n") == 1
    assert "connection refused" in err


def test_cache_list_verify_clean(call, archive, raw):
    call("fetch", DANDISET, "--quiet")
    (raw / "simulated").mkdir()
    (raw / "simulated" / "x.nwb").write_text("precious")
    code, out, _ = call("cache", "list")
    assert code == 0
    assert all(path in out for path in PATHS)
    assert out.count("complete") == 3
    assert "spdx:CC-BY-4.0" in out
    code, out, _ = call("cache", "verify", "--json", "-")
    rows = json.loads(out)
    assert code == 0
    assert {row["state"] for row in rows} == {"verified"}
    assert [row["size"] for row in rows] == [len(CONTENT[path]) for path in PATHS]

    file = raw / DANDISET / NEW / PATHS[1]
    file.write_bytes(CONTENT[PATHS[1]][:-1] + b"x")
    assert call("cache", "list")[0] == 0
    code, out, err = call("cache", "verify")
    assert code == 1
    assert PATHS[1] in err
    row = archive.digests[asset_id(archive, PATHS[1])]
    assert row["dandi:sha2-256"] in err
    assert err.count("sha2-256") == 1
    assert PATHS[0] not in err
    assert call("cache", "verify", f"{DANDISET}/{OLD}")[0] == 0

    archive.faults[asset_id(archive, PATHS[1])] = [Fault("cut", 1000, always=True)]
    assert call("fetch", DANDISET)[0] == 2
    part = file.with_name(file.name + ".part")
    assert part.exists()
    code, out, _ = call("cache", "clean", "--dry-run")
    assert f"would remove {part}" in out
    assert part.exists()
    assert call("cache", "clean", "--quiet")[:2] == (0, "")
    assert not part.exists()
    assert file.exists()
    code, out, _ = call("cache", "clean", DANDISET, "--all", "--json", "-")
    assert code == 0
    assert len(json.loads(out)["removed"]) == 7  # files, their records, and how the version was listed
    assert not (raw / DANDISET).exists()
    assert (raw / "simulated" / "x.nwb").read_text() == "precious"
    assert read_lock(raw / "sessions.lock.toml").pinned.get(DANDISET) == NEW
    assert "0 files" in call("cache", "list")[1]


def test_text_from_the_archive_is_printed_clean(call, archive):
    archive.licence = ["[red]\x1b[31mCC[/red]"]
    _, out, err = call("fetch", DANDISET)
    assert "\x1b" not in out + err
    assert "[red] [31mCC[/red]" in out


# Real processes


SCRIPT = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job, and so its tests, would ignore it
from bci_adapt import cli
cli.main()
"""


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition, process):
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_fetch_goes_on_where_it_was(call, archive, raw, how):
    path = PATHS[2]
    archive.faults[asset_id(archive, path)] = [Fault("drip", value=(4096, 0.002), always=True)]
    file = raw / DANDISET / NEW / path
    part = file.with_name(file.name + ".part")
    process = start("fetch", DANDISET, "--subject", "M")
    wait_for(lambda: part.exists() and part.stat().st_size > 100_000, process)
    os.kill(process.pid, how)
    _, err = process.communicate(timeout=20)
    assert process.returncode == (-9 if how == signal.SIGKILL else 130)
    assert "Traceback" not in err
    assert not file.exists()
    assert read_lock(raw / "sessions.lock.toml").pinned.get(DANDISET) == NEW
    assert call("cache", "list")[1].count("partial") == 1
    kept = part.stat().st_size
    assert 100_000 < kept < len(CONTENT[path])
    archive.faults.clear()
    archive.log.clear()
    assert call("fetch", DANDISET, "--subject", "M", "--quiet")[0] == 0
    assert file.read_bytes() == CONTENT[path]
    (request,) = archive.asked()
    assert request.range == f"bytes={kept}-"
    assert archive.sent() == len(CONTENT[path]) - kept
    assert sorted(each.name for each in file.parent.iterdir()) == [file.name, f"{file.name}.asset.json"]


def test_two_processes_fetch_each_file_once(call, archive, raw):
    for path in PATHS:
        archive.faults[asset_id(archive, path)] = [Fault("drip", value=(8192, 0.005), always=True)]
    processes = [start("fetch", DANDISET, "--quiet") for _ in range(2)]
    said = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert archive.sent() == sum(map(len, CONTENT.values()))
    for path in PATHS:
        assert (raw / DANDISET / NEW / path).read_bytes() == CONTENT[path]
    assert call("cache", "verify", "--quiet")[0] == 0


def test_an_error_in_a_real_process_is_one_line(archive):
    process = start("fetch", "000001")  # the client's own logging would add to it, and telemetry ask another server
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("error: dandiset 000001 is not in the archive")


def test_help_teaches(call):
    for command in (["fetch"], ["cache"], ["cache", "list"], ["cache", "verify"], ["cache", "clean"]):
        code, out, _ = call(*command, "--help")
        assert code == 0
        assert "Example" in out or command == ["cache"]
