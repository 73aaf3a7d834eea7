"""The source `Dandi` through the real client, against a stand-in for the archive: pins, globs, offline, hostility."""

import hashlib
import json
import os
import re
import shutil
import sys
import threading
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from archive_server import DANDISET, NEW, OLD, WHEN, Fault, nwb_bytes, serving

from bci_adapt.archive import api, http
from bci_adapt.archive import cache as entries
from bci_adapt.archive.addresses import parse_dandiset
from bci_adapt.archive.cache import folder_of
from bci_adapt.archive.choosing import Wanted, session_of, subject_of
from bci_adapt.archive.http import Patience, PatientAdapter
from bci_adapt.archive.lock import read_lock, write_lock
from bci_adapt.archive.sources.dandi import Dandi
from bci_adapt.errors import InputError

FILES = {
    f"sub-{subject}/sub-{subject}_ses-{task}-{day}_behavior+ecephys.nwb": (f"{task}-{day}", subject, day)
    for subject, task, day in [
        ("C", "CO", "20131003"),
        ("C", "RT", "20131009"),
        ("C", "CO", "20131022"),
        ("M", "CO", "20140303"),
        ("M", "CO", "20140929"),
    ]
}
C = sorted(path for path in FILES if path.startswith("sub-C"))
LATEST = f"/api/dandisets/{DANDISET}/"
VERSION = f"/api/dandisets/{DANDISET}/versions/{NEW}/"
ASSETS = f"{VERSION}assets/"


def content(path):
    session, subject, day = FILES[path]
    return nwb_bytes(session, subject, f"{day[:4]}-{day[4:6]}-{day[6:]}T12:00:00+00:00")


@pytest.fixture
def archive(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(http, "PATIENCE", Patience(wait=lambda _: None, read_s=1.0, tries=3))
    with serving() as archive:
        for path in FILES:
            archive.add(path, content(path))
        for path in C:
            archive.add(path, content(path), version=OLD)
        archive.add("dataset.mat", b"not NWB")
        archive.add("sub-C/sub-C_ses-9.nwb", b"", blob=None, zarr="z")
        archive.add("sub-C/sub-C_ses-8.nwb.zarr", b"", blob=None, zarr="z")
        monkeypatch.setenv("DANDI_INSTANCE", archive.url)
        yield archive


@pytest.fixture
def make(tmp_path):
    return lambda dandiset=DANDISET, version=None, **arguments: Dandi(
        dandiset, version, **{"cache": tmp_path / "cache"} | arguments
    )


def row_of(archive, path, version=NEW):
    return next(row for row in archive.dandisets[DANDISET][version] if row["path"] == path)


def raw(tmp_path):
    """Where files of the stand-in lie: it is not the DANDI archive."""
    return folder_of(tmp_path / "cache" / "raw", os.environ["DANDI_INSTANCE"])


def lock_of(tmp_path):
    return raw(tmp_path) / "sessions.lock.toml"


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} if folder.exists() else set()


def test_a_dandiset_as_a_source(archive, make, tmp_path):
    source = make()
    table = source.list()
    assert list(table.index) == [
        "sub-C_ses-CO-20131003",
        "sub-C_ses-RT-20131009",
        "sub-C_ses-CO-20131022",
        "sub-M_ses-CO-20140303",
        "sub-M_ses-CO-20140929",
    ]
    assert list(table.columns) == ["path", "subject", "session_start"]
    assert str(table["session_start"].dt.tz) == "UTC"
    assert list(table["subject"]) == ["C", "C", "C", "M", "M"]
    for path in FILES:
        assert (raw(tmp_path) / DANDISET / NEW / path).read_bytes() == content(path)
    assert len(archive.asked()) == 5
    asked = len(archive.log)
    path = source.fetch("sub-M_ses-CO-20140303")
    assert path == raw(tmp_path) / DANDISET / NEW / "sub-M" / path.name
    assert len(archive.log) == asked
    row = row_of(archive, f"sub-M/{path.name}")
    assert source.provenance("sub-M_ses-CO-20140303") == {
        "dandiset": DANDISET,
        "dandiset_version": NEW,
        "asset_path": f"sub-M/{path.name}",
        "licence": "spdx:CC-BY-4.0",
    }
    (chosen,) = (each for each in source.select().rows() if each["path"] == row["path"])
    assert chosen["asset_id"] == row["asset_id"]
    assert chosen["digest"] == f"sha2-256:{archive.digests[row['asset_id']]['dandi:sha2-256']}"
    with pytest.raises(InputError, match="did you mean 'sub-M_ses-CO-20140303'"):
        source.fetch("sub-M_ses-CO-20140304")
    notes = source.select().notes
    assert f"licence of {DANDISET}/{NEW}: spdx:CC-BY-4.0" in notes
    assert any("3 assets that are not NWB files in HDF5 are left out: 'dataset.mat'" in note for note in notes)
    assert len([request for request in archive.asked("/assets/") if request.path == ASSETS]) == 3  # pages


def test_everything_again_costs_no_download(archive, make, tmp_path):
    make().list()
    before = {path: path.stat().st_mtime_ns for path in raw(tmp_path).rglob("*.nwb")}
    archive.log.clear()
    source = make()
    assert {row["state"] for row in source.select().rows()} == {"cached"}
    assert len(source.list()) == 5
    assert archive.asked() == []
    assert archive.asked("/download/") == []
    assert len(archive.log) == 2  # the newest version, and what is said of this one: its listing is kept
    assert before == {path: path.stat().st_mtime_ns for path in raw(tmp_path).rglob("*.nwb")}


def test_the_client_asks_no_other_server(archive, make, monkeypatch):
    monkeypatch.delenv("DANDI_NO_ET", raising=False)
    asked = []
    telemetry = SimpleNamespace(check_available_version=lambda *given, **_: asked.append(given))
    monkeypatch.setitem(sys.modules, "etelemetry", telemetry)
    make(subject="C").select()
    assert asked == []


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, sorted(FILES)),
        ({"subject": "C"}, C),
        ({"subject": "sub-C"}, C),
        ({"subject": "?"}, sorted(FILES)),
        ({"session": "CO-2013*"}, [C[0], C[1]]),
        ({"session": "ses-RT*"}, [C[2]]),
        ({"session": "*-20131003"}, [C[0]]),
        ({"paths": ["sub-C/*RT*"]}, [C[2]]),
        ({"paths": "*RT*"}, [C[2]]),
        ({"paths": ["*20131003*", "*20140303*"]}, [C[0], sorted(FILES)[3]]),
        ({"paths": ["sub-C/*"], "session": "CO*"}, C[:2]),
        ({"paths": ["*.nwb"], "subject": "M", "session": "*0929"}, [sorted(FILES)[4]]),
    ],
)
def test_globs_select(archive, make, given, expected):
    assert [row["path"] for row in make(**given).select().rows()] == expected


def test_names_without_a_session():
    assert session_of("a/sub-Indy_desc-train_behavior+ecephys.nwb") == "sub-Indy_desc-train_behavior+ecephys"
    assert session_of("sub-C_ses-CO-1.nwb") == "CO-1"
    assert subject_of("sub-Indy/sub-Indy_desc-train.nwb") == "Indy"
    assert subject_of("sub-Indy/x.nwb") == ""


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"subject": "X"}, "no NWB file with subject 'X'; the nearest: 'sub-"),
        ({"session": "CO-2015*", "subject": "C"}, "subject 'C' and session 'CO-2015*'"),
        ({"paths": ["sub-C/sub-C_ses-CO-20131004_behavior+ecephys.nwb"]}, f"the nearest: '{C[0]}'"),
        ({"paths": ["dataset.mat"]}, "'dataset.mat' is not an NWB file"),
        ({"paths": ["*.zarr"]}, "'sub-C/sub-C_ses-8.nwb.zarr' is a zarr asset (a folder)"),
        ({"paths": ["*ses-9*"]}, "is a zarr asset"),
    ],
)
def test_nothing_selected(archive, make, given, message):
    with pytest.raises(InputError, match=re.escape(message)):
        make(**given).select()


# Versions and pins


def test_the_latest_published_version_is_pinned_until_an_update(archive, make, tmp_path):
    assert make(session="*1003").select().version == NEW
    assert not lock_of(tmp_path).exists()  # selecting writes nothing
    make(session="*1003").obtain()
    assert read_lock(lock_of(tmp_path)).pinned.get(DANDISET) == NEW
    newest = "0.260101.0000"
    archive.add(C[0], content(C[0]), version=newest)
    source = make(session="*1003")
    assert source.select().version == NEW
    source.obtain()
    assert read_lock(lock_of(tmp_path)).pinned.get(DANDISET) == NEW
    source = make(session="*1003", update=True)
    assert source.select().version == newest
    source.obtain()
    assert read_lock(lock_of(tmp_path)).pinned.get(DANDISET) == newest
    assert {each.version for each in read_lock(lock_of(tmp_path)).assets.values()} == {NEW, newest}


def test_an_explicit_version_wins_and_stands_beside_the_pin(archive, make, tmp_path):
    make(session="*1003").obtain()
    assert make(version=OLD, session="*1003").obtain() == [raw(tmp_path) / DANDISET / OLD / C[0]]
    lock = read_lock(lock_of(tmp_path))
    assert lock.pinned == {DANDISET: NEW}
    assert {key[1] for key in lock.assets} == {OLD, NEW}
    assert make(session="*1003").select().version == NEW
    make(version=OLD, session="*1003", update=True).obtain()
    assert read_lock(lock_of(tmp_path)).pinned.get(DANDISET) == OLD


def test_an_explicit_version_is_pinned_where_none_is(archive, make, tmp_path):
    make(version=OLD, session="*1003").obtain()
    assert make(session="*1003").select().version == OLD


def test_a_draft_is_used_only_when_asked_for(archive, make, tmp_path):
    archive.add(C[0], content(C[0]), version="draft", dandiset="000999")
    with pytest.raises(InputError, match="no published version; ask for 000999/draft"):
        make("000999").select()
    source = make("000999", "draft")
    source.obtain()
    assert any("draft: its files may change" in note for note in source.select().notes)
    assert read_lock(lock_of(tmp_path)).pinned.get("000999") is None
    with pytest.raises(InputError, match="no published version"):
        make("000999").select()


def test_a_draft_that_changed_is_used_as_pinned_until_an_update(archive, make, tmp_path):
    row = archive.add(C[0], content(C[0]), version="draft", dandiset="000999")
    (file,) = make("000999", "draft").obtain()
    rows = archive.dandisets["000999"]["draft"]
    rows.clear()
    changed = nwb_bytes("CO-20131003", "C", "2013-10-03T13:00:00+00:00")
    new = archive.add(C[0], changed, version="draft", dandiset="000999")
    archive.log.clear()
    source = make("000999", "draft")
    assert source.obtain() == [file]
    assert archive.asked() == []
    assert source.select().rows()[0]["asset_id"] == row["asset_id"]
    source = make("000999", "draft", update=True)
    assert source.select().rows()[0]["state"] == "missing"
    assert [path.read_bytes() for path in source.obtain()] == [changed]
    assert file.read_bytes() == content(C[0])  # another lock may still pin it
    assert [each.asset_id for each in read_lock(lock_of(tmp_path)).assets.values()] == [new["asset_id"]]
    assert source.select().rows()[0]["asset_id"] == new["asset_id"]
    rows.clear()
    archive.add(C[1], content(C[1]), version="draft", dandiset="000999")
    make("000999", "draft", update=True).obtain()
    assert [each.path for each in read_lock(lock_of(tmp_path)).assets.values()] == [C[1]]  # gone from the draft


def test_a_lock_file_beside_a_config(archive, make, tmp_path):
    mine = tmp_path / "configs" / "my.lock.toml"
    make(session="*1003", lock=mine).obtain()
    assert read_lock(mine).pinned.get(DANDISET) == NEW
    assert not lock_of(tmp_path).exists()
    content = tomllib.loads(mine.read_text())
    (entry,) = content["assets"]
    row = row_of(archive, C[0])
    assert entry["path"] == C[0]
    assert entry["asset_id"] == row["asset_id"]
    assert entry["size"] == row["size"]
    assert f"dandi:{'sha2-256'}" in archive.digests[row["asset_id"]]
    assert entry["sha2-256"] == archive.digests[row["asset_id"]]["dandi:sha2-256"]


def test_a_pinned_digest_is_what_counts(archive, make, tmp_path):
    """A lock that came with a config: what the archive says about the file now does not matter."""
    make(session="*1003").obtain()
    lock = lock_of(tmp_path).read_text()
    entries.clean(raw(tmp_path), everything=True)
    row = row_of(archive, C[0])
    archive.digests[row["asset_id"]] = {"dandi:sha2-256": "1" * 64}
    make(session="*1003").obtain()
    assert lock_of(tmp_path).read_text() == lock
    digest = tomllib.loads(lock)["assets"][0]["sha2-256"]
    lock_of(tmp_path).write_text(re.sub("dandi-etag = .*", "", lock.replace(digest, "2" * 64)))
    with pytest.raises(InputError, match=f"{digest} where {'2' * 64} is recorded"):
        make(session="*1003").obtain()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("000688", ("000688", None)),
        ("000688/0.250122.1735", ("000688", "0.250122.1735")),
        ("dandi:000688/draft", ("000688", "draft")),
    ],
)
def test_parse(text, expected):
    assert parse_dandiset(text) == expected


@pytest.mark.parametrize(
    "text", ["688", "", "000688/", "000688/latest", "../..", "000688/../x", "https://x/000688", "000688/1.2.3/x"]
)
def test_parse_refuses(text):
    with pytest.raises(InputError):
        parse_dandiset(text)


@pytest.mark.parametrize(
    "arguments", [{"dandiset": "688"}, {"version": ".."}, {"jobs": 0}, {"jobs": 33}, {"offline": True, "update": True}]
)
def test_arguments_are_checked(make, arguments):
    with pytest.raises(InputError):
        make(**arguments)


# Damage, interruption, failures


def test_a_damaged_entry_is_fetched_again(archive, make, tmp_path):
    first, *_ = make(subject="C").obtain()
    first.write_bytes(first.read_bytes()[:-1] + b"x")
    archive.log.clear()
    source = make(subject="C")
    source.obtain()
    assert first.read_bytes() == content(C[0])
    assert [request.path.split("/")[2] for request in archive.asked()] == [row_of(archive, C[0])["asset_id"]]
    assert any("fetched again: sha2-256" in note for note in source.select().notes)


def test_a_foreign_file_in_the_way_is_not_overwritten(archive, make, tmp_path):
    file = raw(tmp_path) / DANDISET / NEW / C[0]
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    with pytest.raises(InputError, match="in the way"):
        make(session="*1003").obtain()
    assert file.read_text() == "mine"
    file.write_bytes(content(C[0]))  # the very file: it is taken, and gets a record
    archive.log.clear()
    make(session="*1003").obtain()
    assert archive.asked() == []
    assert entries.read_record(file).licence == "spdx:CC-BY-4.0"


def test_one_failure_does_not_cost_the_others(archive, make, tmp_path):
    for path in C[:2]:
        archive.faults[row_of(archive, path)["asset_id"]] = [Fault("status", value=(404, {}), always=True)]
    with pytest.raises(InputError, match=r"no longer in the archive .*\(and 1 more of 5 files\)"):
        make().obtain()
    assert len(entries.entries(raw(tmp_path))) == 3
    archive.faults.clear()
    archive.log.clear()
    assert len(make().obtain()) == 5
    assert len(archive.asked()) == 2


def test_a_pinned_asset_that_vanished(archive, make, tmp_path):
    make(subject="C").obtain()
    rows = archive.dandisets[DANDISET][NEW]
    rows.remove(row_of(archive, C[0]))
    assert len(make(subject="C").obtain()) == 3  # it is in the cache
    (raw(tmp_path) / DANDISET / NEW / C[0]).unlink()
    archive.blobs.pop(next(each.asset_id for each in read_lock(lock_of(tmp_path)).assets.values() if each.path == C[0]))
    with pytest.raises(InputError, match=r"20131003.*no longer in the archive"):
        make(subject="C").obtain()
    assert len(make(subject="C", update=True).obtain()) == 2


def test_no_room_is_told_before_anything_is_fetched(archive, make, tmp_path, monkeypatch):
    monkeypatch.setattr(entries, "MARGIN_BYTES", 10**18)
    with pytest.raises(InputError, match="free; nothing was downloaded"):
        make().obtain()
    assert archive.asked("/download/") == []
    assert files(tmp_path) == set()


def test_the_room_for_what_has_come_already_is_not_asked_for_again(archive, make, tmp_path, monkeypatch):
    archive.faults[row_of(archive, C[0])["asset_id"]] = [Fault("cut", 1000, always=True)]
    with pytest.raises(InputError):
        make(session="*1003").obtain()
    asked = []
    monkeypatch.setattr(entries, "check_room", lambda folder, missing: asked.append(missing))
    archive.faults.clear()
    archive.log.clear()
    source = make(session="*1003")
    (row,) = source.select().rows()
    assert row["state"] == "partial"
    source.obtain()
    assert asked == [row["size"] - 1000] == [row["missing"]] == [archive.sent()]


def test_an_interrupt_stops_the_threads(archive, make, tmp_path):
    for path in FILES:
        archive.faults[row_of(archive, path)["asset_id"]] = [Fault("drip", value=(50, 0.05), always=True)]
    told = []

    def interrupt_once(*_):
        told.append(1)
        if len(told) == 20:
            raise KeyboardInterrupt

    source = make(progress=interrupt_once)
    began_s = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        source.obtain()
    assert time.monotonic() - began_s < 2.0  # 4 files of 5 kB take 5 s
    assert [thread for thread in threading.enumerate() if "ThreadPool" in thread.name] == []
    states = [entry.state for entry in entries.entries(raw(tmp_path))]
    assert set(states) == {"partial"}
    archive.faults.clear()
    assert len(source.list()) == 5  # the same source goes on


def test_two_files_that_are_one_session(archive, make):
    archive.add("sub-C/copy.nwb", content(C[0]))
    with pytest.raises(InputError, match=r"copy\.nwb.* are all session 'sub-C_ses-CO-20131003'"):
        make(subject=None, paths=["*copy*", C[0]]).list()


def test_a_file_that_is_not_nwb_inside(archive, make):
    archive.add("sub-C/sub-C_ses-7.nwb", b"not HDF5")
    with pytest.raises(InputError, match="not an HDF5 file"):
        make(session="7").list()


# Offline


def test_offline_works_from_lock_and_cache(archive, make, tmp_path):
    make(subject="C").obtain()
    archive.log.clear()
    source = make(subject="C", offline=True)
    table = source.list()
    assert list(table.index) == ["sub-C_ses-CO-20131003", "sub-C_ses-RT-20131009", "sub-C_ses-CO-20131022"]
    assert source.provenance(table.index[0])["licence"] == "spdx:CC-BY-4.0"
    assert source.select().about.licence == "spdx:CC-BY-4.0"
    assert "offline; all that is meant is known without the archive" in source.notes()
    assert len(make(offline=True, session="RT*").list()) == 1
    assert archive.log == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dandiset": "000999"}, "no version of 000999 is pinned in"),
        ({"version": OLD}, f"has no file of {DANDISET}/{OLD}"),
        ({"subject": "X"}, f"offline: {DANDISET}/{NEW} has no NWB file with subject 'X'; the nearest: 'sub-"),
        ({"subject": "M"}, "offline; missing in the cache: sub-M/"),
    ],
)
@pytest.mark.parametrize("network", [False, True])
def test_offline_says_what_is_missing(archive, make, given, message, network, monkeypatch):
    make(subject="C").obtain()
    if network:
        archive.close()
        message = message.replace("offline", "cannot be reached (connection refused)")
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        make(offline=not network, **given).obtain()
    assert "\n" not in str(caught.value)


def test_offline_names_files_that_are_not_in_the_cache(archive, make, tmp_path):
    kept, gone, damaged = make(subject="C").obtain()
    gone.unlink()
    damaged.write_bytes(b"x")
    archive.log.clear()
    with pytest.raises(InputError, match=r"offline; missing in the cache: .*20131022.*, .*20131009.* \(1 bytes where"):
        make(subject="C", offline=True).list()
    assert archive.log == []
    assert make(session="*1003", offline=True).obtain() == [kept]


@pytest.mark.parametrize("reason", ["its name cannot be resolved", "connection refused"])
def test_no_network_is_noticed_at_once(archive, make, monkeypatch, tmp_path, reason):
    make(subject="C").obtain()
    waits = []
    monkeypatch.setattr(http, "PATIENCE", Patience(wait=waits.append))
    archive.close()
    if "name" in reason:
        import socket

        def nowhere(*_, **__):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    source = make(subject="C")
    assert len(source.list()) == 3
    assert sum(f"cannot be reached ({reason})" in note for note in source.notes()) == 1
    assert waits == []
    with pytest.raises(InputError, match=r"cannot be reached .*without --update the pinned files are used"):
        make(subject="C", update=True).select()
    (raw(tmp_path) / DANDISET / NEW / C[0]).unlink()
    with pytest.raises(InputError, match=r"cannot be reached .*; missing in the cache: sub-C"):
        make(subject="C").list()


# An archive that misbehaves


def in_turn(*answers):
    left = list(answers)
    return lambda query: left.pop(0) if len(left) > 1 else left[0]


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_the_listing_is_asked_for_again(archive, make, monkeypatch, status):
    waits = []
    monkeypatch.setattr(http, "PATIENCE", Patience(wait=waits.append))
    busy = (status, {"Retry-After": "5"} if status in (429, 503) else {}, b"")
    good = json.dumps({"results": [row_of(archive, C[0])], "next": None}).encode()
    archive.answers[ASSETS] = in_turn(busy, busy, (200, {}, good))
    assert [row["path"] for row in make().select().rows()] == [C[0]]
    assert waits == ([5.0, 5.0] if status in (429, 503) else [1.0, 2.0])


def endless(query):
    rows = [
        {"asset_id": f"{query['page']}-{n}", "path": f"{query['page']}/{n}.nwb", "size": 1, "blob": "b"}
        for n in range(50)
    ]
    return 200, {}, json.dumps({"results": rows, "next": "http://127.0.0.1:9/next", "count": 10**12}).encode()


def circular(query):
    rows = [{"asset_id": "a", "path": "a.nwb", "size": 1, "blob": "b"}]
    return 200, {}, json.dumps({"results": rows, "next": "http://127.0.0.1:9/", "count": 10**12}).encode()


def empty(query):
    return 200, {}, json.dumps({"results": [], "next": "http://127.0.0.1:9/", "count": 10**12}).encode()


def listing(*rows, following=None):
    return 200, {}, json.dumps({"results": rows, "next": following}).encode()


ROW = {"asset_id": "00000000-0000-4000-8000-000000000000", "path": "a.nwb", "size": 1, "blob": "b"}
REFUSED = [
    (ASSETS, endless, "does not end"),
    (ASSETS, circular, "listed twice"),
    (ASSETS, empty, "does not end"),
    (ASSETS, (200, {}, b"<html>"), "not JSON"),
    (ASSETS, (200, {}, b'{"results": ['), "not JSON"),
    (ASSETS, (200, {}, b""), "unexpected"),
    (ASSETS, (200, {}, b"[]"), "unexpected"),
    (ASSETS, (200, {}, b'{"results": 3, "next": null}'), "unexpected"),
    (ASSETS, (200, {}, b'{"results": [3], "next": null}'), "unexpected"),
    (ASSETS, (200, {}, b'{"results": [{"path": 3, "asset_id": "x"}], "next": null}'), "unexpected"),
    (ASSETS, listing(ROW | {"size": "1"}), "size must be"),
    (ASSETS, listing(ROW | {"size": -1}), "size must be"),
    (ASSETS, listing(ROW | {"asset_id": "../../../x"}), "asset_id must be"),
    (ASSETS, listing(ROW, ROW | {"asset_id": "1" + ROW["asset_id"][1:]}), "two assets have the path"),
    (ASSETS, listing({"path": "a.nwb", "asset_id": ROW["asset_id"]}), "unexpected"),
    (ASSETS, listing(), "has no assets"),
    (ASSETS, (404, {}, b"{}"), "is not in the archive at 127"),
    (ASSETS, (403, {}, b"{}"), "is not open .status 403.*_API_KEY"),
    (ASSETS, (401, {}, b"{}"), "is not open"),
    (ASSETS, (500, {}, b"no"), "status 500; given up after 3 tries"),
    (ASSETS, (302, {"Location": ASSETS}, b""), "in a circle"),
    (ASSETS, (302, {"Location": "ftp://127.0.0.1/"}, b""), "not http"),
    (VERSION, (404, {}, b"{}"), f"version {NEW} of dandiset {DANDISET} is not in the archive"),
    (VERSION, (200, {}, b"[]"), "unexpected"),
    (LATEST, (404, {}, b"{}"), f"dandiset {DANDISET} is not in the archive"),
    (LATEST, (403, {}, b"{}"), "embargoed"),
    (LATEST, (200, {}, b"{}"), "unexpected"),
    (LATEST, (200, {}, b"null"), "unexpected"),
    (LATEST, (418, {}, b"\x1b[2J"), "status 418"),
]


@pytest.mark.parametrize(("address", "answer", "message"), REFUSED)
def test_whatever_the_archive_answers_is_one_sentence(
    archive, make, monkeypatch, tmp_path, capfd, address, answer, message
):
    monkeypatch.setattr(api, "MAX_ASSETS", 200)
    archive.answers[address] = answer
    with pytest.raises(InputError, match=message) as caught:
        make().select()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700
    assert len(archive.log) < 20
    assert files(tmp_path) == set()
    assert capfd.readouterr() == ("", "")  # the client's own logging says nothing beside it


@pytest.mark.parametrize(
    "digest",
    [
        {},
        None,
        [],
        {"dandi:sha2-256": 3},
        {"dandi:sha2-256": "../x"},
        {"dandi:dandi-etag": "x"},
        {"dandi:md5": "0" * 32},
    ],
)
def test_digests_that_cannot_be_used(archive, make, digest):
    archive.digests[row_of(archive, C[0])["asset_id"]] = digest
    with pytest.raises(InputError, match=r"digest|sha2-256|dandi-etag|unexpected"):
        make(session="*1003").select()


@pytest.mark.parametrize("kept", [["dandi:sha2-256"], ["dandi:dandi-etag"]])
def test_one_digest_is_enough(archive, make, kept):
    asset_id = row_of(archive, C[0])["asset_id"]
    archive.digests[asset_id] = {name: archive.digests[asset_id][name] for name in kept}
    source = make(session="*1003")
    source.obtain()
    assert source.select().rows()[0]["digest"].startswith(kept[0].removeprefix("dandi:"))
    archive.faults[asset_id] = [Fault("wrong bytes", 7, always=True)]
    entries.clean(source.raw, everything=True)
    with pytest.raises(InputError, match="not the recorded file, twice"):
        make(session="*1003").obtain()


HOSTILE = [
    "../../x.nwb",
    "/etc/x.nwb",
    "C:/x.nwb",
    "a\\..\\x.nwb",
    "a\0.nwb",
    "a/../../../x.nwb",
    "a//b.nwb",
    "a" * 300 + ".nwb",
]


@pytest.mark.parametrize("path", [*HOSTILE, C[0].upper().replace(".NWB", ".nwb"), f"{C[0]}/x.nwb"])
def test_a_hostile_path_costs_itself_alone_and_is_named(archive, make, tmp_path, path):
    archive.add(path, content(C[0]))
    source = make()
    assert any(path in note or repr(path)[1:-1] in note for note in source.select().notes)
    with pytest.raises(InputError, match=r"(refused|one place).*--exclude"):
        source.obtain()
    assert len(archive.asked("/download/")) == 5  # the others came
    inside = {each for each in files(tmp_path) if each.endswith(".nwb")}
    assert inside == {str(Path(row["file"]).relative_to(tmp_path)) for row in source.select().rows()}
    assert len(source.select().refused) == 1
    assert len(make(exclude=[path], cache=tmp_path / "other").obtain()) == 5


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        (["spdx:CC0-1.0", "spdx:CC-BY-4.0"], "spdx:CC0-1.0, spdx:CC-BY-4.0"),
        (None, "not stated"),
        ([], "not stated"),
        ("spdx:MIT", "spdx:MIT"),
        (["\x1b[31mred\n"], "[31mred"),
    ],
)
def test_the_licence_is_what_the_version_says(archive, make, licence, expected):
    archive.licence = licence
    source = make(session="*1003")
    source.list()
    assert source.provenance("sub-C_ses-CO-20131003")["licence"] == expected


# Credentials


def test_the_token_is_for_the_archive_alone(archive, make, monkeypatch):
    netloc = archive.url.removeprefix("http://").removesuffix("/api")
    monkeypatch.setenv(f"{netloc.upper()}_API_KEY", "secret-token")
    archive.answers[VERSION] = (302, {"Location": f"{archive.blob_url}/api/elsewhere"}, b"")
    archive.answers["/api/elsewhere"] = (200, {}, json.dumps({"license": ["x"]}).encode())
    make(session="*1003").obtain()
    told = {request.path: request.headers.get("Authorization") for request in archive.log}
    elsewhere = {path: value for path, value in told.items() if path.startswith("/blobs") or path == "/api/elsewhere"}
    assert len(elsewhere) == 2
    assert set(elsewhere.values()) == {None}
    assert {value for path, value in told.items() if path not in elsewhere} == {"token secret-token"}


def test_the_transport_takes_the_token_away(archive):
    import requests

    with requests.Session() as session:
        session.mount("http://", PatientAdapter(archive.url, Patience()))
        for url in (archive.url, archive.blob_url + "/api"):
            session.get(f"{url}/info/", headers={"Authorization": "token x"})
    assert [request.headers.get("Authorization") for request in archive.log] == ["token x", None]


def test_an_answer_has_a_longest_length(archive, monkeypatch, make):
    monkeypatch.setattr(http, "MAX_ANSWER_BYTES", 10_000)
    archive.answers[ASSETS] = (200, {}, b" " * 20_000)
    with pytest.raises(InputError, match="not read"):
        make().select()


@pytest.mark.parametrize(
    ("instance", "message"),
    [
        ("dandy", "did you mean 'dandi'"),
        ("ftp://127.0.0.1/api", "unknown archive"),
        ("http://a:b@127.0.0.1/api", "password"),
    ],
)
def test_an_archive_that_is_none(make, monkeypatch, instance, message):
    monkeypatch.setenv("DANDI_INSTANCE", instance)
    with pytest.raises(InputError, match=message) as caught:
        make().select()
    assert "a:b@" not in str(caught.value)


def test_the_known_archives_are_those_of_the_client(monkeypatch):
    for name in ("", "dandi", "https://dandiarchive.org", "https://api.dandiarchive.org/api/"):
        monkeypatch.setenv("DANDI_INSTANCE", name)
        assert api.address_of_archive() == "https://api.dandiarchive.org/api"


# What is meant is what is used


def test_a_lock_that_knows_less_than_is_meant_is_no_answer(archive, make, tmp_path):
    """The archive is away: another selection is never used in silence."""
    lock = tmp_path / "config" / "my.lock.toml"
    make(paths=C[:2], lock=lock).obtain()
    archive.close()
    with pytest.raises(InputError, match=r"cannot be reached .*missing in the cache: .*-RT-20131009_.*fetch it online"):
        make(subject="C", lock=lock).list()
    with pytest.raises(InputError, match="missing in the cache"):
        make(subject="C", lock=lock, offline=True).list()
    source = make(paths=C[:2], lock=lock)
    assert len(source.list()) == 2  # these were all that was meant
    assert source.select().unsure == ""


def test_a_cache_without_a_listing_is_sure_of_exact_paths_alone(archive, make, tmp_path):
    """As caches of earlier versions are: nothing tells whether a glob has all that it should."""
    make(paths=C[:2]).obtain()
    for path in raw(tmp_path).rglob("*.listing.json"):
        path.unlink()
    archive.close()
    assert len(make(paths=C[:2]).list()) == 2
    with pytest.raises(InputError, match=r"cannot be reached .*may not have all that is meant: --offline goes on"):
        make(subject="C").list()
    source = make(subject="C", offline=True)
    assert len(source.list()) == 2
    assert source.select().unsure
    assert any("used are 2 of the 2 files" in note for note in source.notes())


def test_every_path_must_match(archive, make):
    with pytest.raises(InputError, match=r"no NWB file with path '\*2015\*'; the nearest"):
        make(paths=["*20131003*", "*2015*"]).select()
    with pytest.raises(InputError, match=r"no NWB file with path 'dataset\.mat'"):
        make(paths=[C[0], "dataset.mat"]).select()


def test_a_newer_version_is_told(archive, make):
    make(version=OLD, subject="C").obtain()
    told = f"{DANDISET}/{NEW} has been published since {OLD}, which is used "
    assert told + "until --update" in make(subject="C").select().notes
    assert told + "as asked" in make(version=OLD, subject="C").select().notes
    assert not any("published since" in note for note in make(version=NEW, subject="C").select().notes)


# Archives that are sick beside a cache that is whole


def portal(query):
    return 200, {"Content-Type": "text/html"}, b"<html>Accept our terms</html>"


SICK = {
    "errors": ([LATEST, VERSION, ASSETS], (500, {}, b"no"), "status 500; given up after 1 try"),
    "busy": ([LATEST], (429, {"Retry-After": "60"}, b"no"), "status 429; given up after 1 try"),
    "portal": ([LATEST, VERSION, ASSETS], portal, "not JSON"),
    "withdrawn version": ([VERSION, ASSETS], (404, {}, b"{}"), f"version {NEW} of dandiset {DANDISET} is not in"),
    "withdrawn dandiset": ([LATEST, VERSION, ASSETS], (404, {}, b"{}"), "is not in the archive"),
    "forbidden": ([LATEST, VERSION, ASSETS], (403, {}, b"{}"), "is not open"),
}


@pytest.mark.parametrize("sick", SICK)
def test_what_is_pinned_and_cached_does_not_wait_for_a_sick_archive(archive, make, monkeypatch, sick):
    make(subject="C").obtain()
    waits = []
    monkeypatch.setattr(http, "PATIENCE", Patience(wait=waits.append))
    addresses, answer, message = SICK[sick]
    archive.answers |= dict.fromkeys(addresses, answer)
    archive.log.clear()
    source = make(subject="C")
    assert len(source.list()) == 3
    assert sum(message in note for note in source.notes()) == 1
    assert (waits, len(archive.log) <= 2) == ([], True)
    (source.raw / DANDISET / NEW / C[0]).unlink()
    with pytest.raises(InputError, match=rf"{re.escape(message)}.*missing in the cache: {re.escape(C[0])}"):
        make(subject="C").list()


def test_a_silent_archive_costs_one_short_wait(archive, make, monkeypatch):
    make(subject="C").obtain()
    short = http.hasty(Patience())
    assert (short.tries, short.connect_s, short.read_s) == (1, 3.0, 5.0)
    monkeypatch.setattr(http, "PATIENCE", Patience(read_s=0.2))
    archive.answers[LATEST] = lambda query: (time.sleep(1.0), (200, {}, b"{}"))[1]
    began_s = time.monotonic()
    assert len(make(subject="C").list()) == 3
    assert time.monotonic() - began_s < 1.0
    assert len(archive.asked(LATEST)) >= 1


# Verification


@pytest.mark.parametrize("version", [None, "draft"])
@pytest.mark.parametrize("offline", [False, True])
def test_a_lock_that_pins_nothing_takes_over_what_a_fetch_pinned(
    archive, make, tmp_path, monkeypatch, version, offline
):
    """`fetch` writes the lock of the cache, a run reads the one beside its config."""
    for path in C:
        archive.add(path, content(path), version="draft")
    fetched = make(version=version, subject="C").obtain()
    waits = []
    patience = Patience(wait=waits.append, read_s=1.0, tries=3)
    of_version = f"/api/dandisets/{DANDISET}/versions/{version or NEW}/"
    archive.answers |= dict.fromkeys([LATEST, of_version, f"{of_version}assets/"], (500, {}, b"no"))
    archive.log.clear()
    mine = tmp_path / "configs" / "sessions.lock.toml"
    source = make(version=version, subject="C", lock=mine, offline=offline, patience=patience)
    assert source.obtain() == fetched
    assert (waits, len(archive.log)) == ([], 0 if offline else 1)
    assert any(f"{mine} pins nothing" in note and str(lock_of(tmp_path)) in note for note in source.notes())
    assert read_lock(mine) == read_lock(lock_of(tmp_path))
    again = make(version=version, subject="C", lock=mine, offline=True)
    assert again.obtain() == fetched
    assert not any("pins nothing" in note for note in again.notes())


def test_a_lock_of_the_cache_that_tells_less_than_is_meant_is_named_and_not_taken_over(
    archive, make, tmp_path, monkeypatch
):
    make(paths=[C[0]]).obtain()
    (kept,) = entries.listings_of(raw(tmp_path), DANDISET, NEW)
    kept.unlink()
    mine = tmp_path / "sessions.lock.toml"
    told = f"{lock_of(tmp_path)}, where a fetch pinned what is meant (1 files of {DANDISET}/{NEW}), does not tell"
    named = re.escape(told)
    with pytest.raises(InputError, match=rf"no version of 000688 is pinned in .*; {named}.*named one by one"):
        make(subject="C", lock=mine, offline=True).select()
    with pytest.raises(InputError, match=r"no version of 000688 is pinned in [^;]*; fetch it online first$"):
        make(subject="M", lock=mine, offline=True).select()  # of these it has none
    waits = []
    monkeypatch.setattr(http, "PATIENCE", Patience(wait=waits.append, read_s=1.0, tries=3))
    archive.answers |= dict.fromkeys([LATEST, VERSION, ASSETS], (500, {}, b"no"))
    archive.log.clear()
    with pytest.raises(InputError, match=rf"status 500; given up after 1 try.*; {named}"):
        make(subject="C", lock=mine).select()
    assert (waits, len(archive.log)) == ([], 1)
    with pytest.raises(InputError, match="given up after 3 tries"):
        make(subject="M", lock=mine).select()
    assert make(paths=[C[0]], lock=mine, offline=True).obtain()
    lock_of(tmp_path).write_text("no lock")
    assert make(paths=[C[0]], lock=mine, offline=True).obtain()  # a broken one that is not in use costs nothing


def test_an_exclude_that_leaves_out_nothing_is_told(archive, make):
    source = make(subject="C", exclude=["*nosuch*", "*RT*"])
    assert len(source.select().files) == 2
    assert [note for note in source.notes() if "leaves out nothing" in note] == [
        f"exclude '*nosuch*' leaves out nothing of {DANDISET}/{NEW}"
    ]


@pytest.fixture
def hashed(monkeypatch):
    """Names of the files whose digests are computed."""
    from bci_adapt.archive import download

    found = []

    def digests_of(path, progress=None, compute=download.digests_of):
        found.append(path.name)
        return compute(path, progress)

    monkeypatch.setattr(download, "digests_of", digests_of)
    return found


def test_verification_costs_once_a_day(archive, make, hashed, monkeypatch):
    first, second, third = make(subject="C").obtain()
    for path in (first, second, third):
        os.utime(path, (1e9, 1e9))  # long ago, and another time of change than when they came
    hashed.clear()
    make(subject="C").obtain()
    assert sorted(hashed) == sorted(path.name for path in (first, second, third))
    hashed.clear()
    make(subject="C").obtain()
    assert hashed == []
    make(subject="C", anew=True).obtain()
    assert len(hashed) == 3
    hashed.clear()
    os.utime(second, (1e9, 1e9 + 1))
    make(subject="C").obtain()
    assert hashed == [second.name]
    hashed.clear()
    size = third.stat().st_size
    third.write_bytes(b"x" * size)
    source = make(subject="C")
    source.obtain()
    assert any("fetched again" in note for note in source.notes())
    assert third.read_bytes() == content(C[2])
    hashed.clear()
    now = time.time()
    monkeypatch.setattr(entries.time, "time", lambda: now + entries.TRUSTED_S + 1.0)
    make(subject="C").obtain()
    assert len(hashed) == 3


def test_the_key_of_a_job_takes_the_digest_that_was_verified(archive, make, monkeypatch):
    from bci_adapt.ground import jobs

    (path,) = make(session="*1003").obtain()
    os.utime(path, (1e9, 1e9))
    make(session="*1003").obtain()
    monkeypatch.setattr(jobs, "file_digest", lambda path: "computed")
    assert jobs._content(path, "job") == hashlib.sha256(path.read_bytes()).hexdigest()
    os.utime(path, (1e9, 1e9 + 1))
    assert jobs._content(path, "job") == "computed"


# Drafts


@pytest.fixture
def draft(archive):
    """Puts an asset into a draft, in place of the one that is there."""

    def put(path, hour=None, **about):
        rows = archive.dandisets.setdefault("000999", {}).setdefault("draft", [])
        rows[:] = [row for row in rows if row["path"] != path]
        session, subject, day = FILES[path]
        data = nwb_bytes(session, subject, f"{day[:4]}-{day[4:6]}-{day[6:]}T{hour or 12}:00:00+00:00")
        return archive.add(path, data, version="draft", dandiset="000999", **about)

    return put


def test_what_became_of_a_draft_is_told_asset_by_asset(archive, make, draft):
    for path in C[:2]:
        draft(path)
    ids = [row["asset_id"] for row in make("000999", "draft").select().rows()]
    files = make("000999", "draft").obtain()
    before = [path.read_bytes() for path in files]
    draft(C[0], 15)
    archive.dandisets["000999"]["draft"] = [r for r in archive.dandisets["000999"]["draft"] if r["path"] != C[1]]
    draft(C[2])
    archive.log.clear()
    source = make("000999", "draft")
    assert source.obtain() == files
    assert [path.read_bytes() for path in files] == before
    assert [row["asset_id"] for row in source.select().rows()] == ids
    assert [row["drift"] for row in source.select().rows()] == ["replaced", "deleted"]
    assert f"{C[0]} was replaced in the draft since it was pinned; used is the pinned one until --update" in (
        source.notes()
    )
    assert any(note.startswith(f"{C[1]} was deleted in the draft") for note in source.notes())
    assert any(note.startswith(f"{C[2]} came into the draft since it was pinned; not used") for note in source.notes())
    assert archive.asked("/download/") == []
    source = make("000999", "draft", update=True)
    after = source.obtain()
    assert [path.name for path in after] == [path.rpartition("/")[2] for path in (C[0], C[2])]
    assert {row["drift"] for row in source.select().rows()} == {""}
    assert after[0].read_bytes() != before[0]
    assert [path.read_bytes() for path in files] == before


def test_a_fresh_lock_takes_a_draft_as_it_is_now(archive, make, draft, tmp_path):
    draft(C[0])
    make("000999", "draft").obtain()
    now = draft(C[0], 15)
    source = make("000999", "draft", lock=tmp_path / "fresh.toml")
    source.obtain()
    assert [row["asset_id"] for row in source.select().rows()] == [now["asset_id"]]
    again = make("000999", "draft")  # the lock of before goes on with what it pins, fetched anew
    assert again.obtain()[0].read_bytes() == content(C[0])
    assert [row["drift"] for row in again.select().rows()] == ["replaced"]


def test_two_locks_on_a_draft_keep_their_states(archive, make, draft, tmp_path):
    """The archive forgets what it replaces: what one lock pins must not cost another what it needs."""
    old = [draft(path) for path in C[:2]]
    before = [path.read_bytes() for path in make("000999", "draft", paths=["sub-C/*"]).obtain()]
    draft(C[0], 15)
    archive.dandisets["000999"]["draft"].remove(old[1])
    draft(C[2])
    newer = {"lock": tmp_path / "newer.toml", "paths": ["sub-C/*"]}
    now = [path.read_bytes() for path in make("000999", "draft", **newer).obtain()]
    for row in old:
        del archive.blobs[row["asset_id"]]
    archive.log.clear()
    for _ in range(2):
        assert [path.read_bytes() for path in make("000999", "draft", paths=["sub-C/*"]).obtain()] == before
        assert [path.read_bytes() for path in make("000999", "draft", **newer).obtain()] == now
    assert archive.asked("/download/") == []
    archive.close()
    for arguments, count in (({"paths": ["sub-C/*"]}, 2), (newer, 2)):  # each knows its own listing, without an archive
        source = make("000999", "draft", offline=True, **arguments)
        assert len(source.obtain()) == count
        assert source.select().unsure == ""


def test_a_state_of_a_draft_that_lacks_what_came_later_stays_the_one_that_is_meant(archive, make, draft, tmp_path):
    """Two states that agree with one lock: an asset came, none was replaced."""
    draft(C[0])
    (one,) = make("000999", "draft").obtain()
    draft(C[1])
    newer = {"lock": tmp_path / "newer.toml"}
    assert len(make("000999", "draft", **newer).obtain()) == 2
    source = make("000999", "draft")
    assert source.obtain() == [one]
    assert any(note.startswith(f"{C[1]} came into the draft since it was pinned") for note in source.notes())
    assert len(make("000999", "draft", offline=True, **newer).obtain()) == 2


def as_before_ids(tmp_path):
    """Files of a draft as they lay in caches of before: at their path, with one listing."""
    base = raw(tmp_path) / "000999"
    for folder in [each for each in (base / "draft").iterdir() if each.is_dir()]:
        for file in [each for each in folder.rglob("*") if each.is_file()]:
            place = base / "draft" / file.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            file.replace(place)
        shutil.rmtree(folder)
    for listing in base.glob("draft.*.listing.json"):
        listing.replace(base / "draft.listing.json")


def test_a_draft_of_an_old_cache_is_used_by_its_digest(archive, make, draft, tmp_path):
    draft(C[0])
    draft(C[1])
    before = [path.read_bytes() for path in make("000999", "draft").obtain()]
    as_before_ids(tmp_path)
    listed = {(each.path, each.state) for each in entries.entries(raw(tmp_path), "000999")}
    assert listed == {(path, "complete") for path in C[:2]}
    archive.close()
    source = make("000999", "draft", offline=True)
    assert {row["state"] for row in source.select().rows()} == {"reused"}
    assert [path.read_bytes() for path in source.obtain()] == before
    assert {row["state"] for row in make("000999", "draft", offline=True).select().rows()} == {"cached"}
    held = entries.entries(raw(tmp_path), "000999")
    assert sorted(each.path for each in held) == sorted(C[:2] * 2)
    assert len({each.file.stat().st_ino for each in held}) == 2  # stored once
    removed, left = entries.clean(raw(tmp_path), "000999", "draft", everything=True)
    assert len(removed) == 2 * 4 + 2
    assert left == []
    assert not (raw(tmp_path) / "000999").exists()


def test_what_an_old_cache_overwrote_is_fetched_again(archive, make, draft, tmp_path):
    draft(C[0])
    make("000999", "draft").obtain()
    draft(C[0], 15)
    newer = {"lock": tmp_path / "newer.toml"}
    now = make("000999", "draft", **newer).obtain()[0].read_bytes()
    gone = raw(tmp_path) / "000999" / "draft" / next(iter(read_lock(lock_of(tmp_path)).assets.values())).asset_id
    shutil.rmtree(gone)
    as_before_ids(tmp_path)
    assert [row["state"] for row in make("000999", "draft").select().rows()] == ["missing"]
    source = make("000999", "draft")
    assert source.obtain()[0].read_bytes() == content(C[0])
    assert [note for note in source.notes() if "is fetched again" in note] == [
        f"{C[0]} is fetched again: the cache kept one state of a draft at a time, and has another one of it"
    ]
    source = make("000999", "draft", **newer)
    assert source.obtain()[0].read_bytes() == now
    assert not any("is fetched again" in note for note in source.notes())


def test_a_new_id_with_the_same_bytes_is_no_drift(archive, make, draft):
    draft(C[0])
    make("000999", "draft").obtain()
    draft(C[0])
    source = make("000999", "draft")
    source.obtain()
    assert [row["drift"] for row in source.select().rows()] == [""]


def test_two_states_of_a_draft_are_not_mixed(archive, make, draft, tmp_path):
    """A lock that came without the cache it was made beside, of a draft that has moved."""
    draft(C[0])
    draft(C[1])
    lock = tmp_path / "my.lock.toml"
    make("000999", "draft", paths=[C[0]], lock=lock).obtain()
    draft(C[0], 15)
    elsewhere = {"cache": tmp_path / "elsewhere", "lock": lock}
    with pytest.raises(InputError, match=rf"{re.escape(C[0])} was replaced.*{re.escape(C[1])}.*--update moves"):
        make("000999", "draft", **elsewhere).select()
    assert len(make("000999", "draft", paths=[C[0]], **elsewhere).obtain()) == 1  # the pinned one can still be had
    source = make("000999", "draft", lock=lock)  # where the listing that was pinned is kept, the rest of it is meant
    source.obtain()
    assert [row["state"] for row in source.select().rows()] == ["cached", "fetched"]
    assert len(make("000999", "draft", update=True, **elsewhere).obtain()) == 2


def test_a_lock_of_two_states_of_a_draft_is_refused(archive, make, draft, tmp_path):
    """As versions before wrote them: an update of some files left what was pinned of the others."""
    a, b = draft(C[0]), draft(C[1])
    make("000999", "draft").obtain()
    draft(C[1], 15, created="2025-02-01T00:00:00.5Z")
    later = draft(C[0], 15, created="2025-03-01T00:00:00Z")
    lock, elsewhere = tmp_path / "mixed.toml", {"cache": tmp_path / "elsewhere", "lock": tmp_path / "mixed.toml"}
    make("000999", "draft", paths=[C[0]], lock=lock, cache=tmp_path / "apart").obtain()
    mixed = read_lock(lock).with_assets([read_lock(lock_of(tmp_path)).assets["000999", "draft", C[1]]])
    write_lock(lock, mixed)
    told = rf"mixed.toml: pins two states of 000999/draft: {re.escape(C[0])} came 2025-03-01 .*{re.escape(C[1])} as it"
    for arguments in ({}, {"paths": C[:2]}):
        with pytest.raises(InputError, match=rf"{told} .*2025-02-01 .*--update"):
            make("000999", "draft", **elsewhere, **arguments).select()
    assert make("000999", "draft", paths=[C[1]], **elsewhere).obtain()[0].read_bytes() == content(C[1])  # one of them

    later["created"] = "2025-01-31T00:00:00Z"  # before the other was replaced: one state, which the draft has left
    assert len(make("000999", "draft", **elsewhere, paths=C[:2]).obtain()) == 2
    later["created"] = "when?"  # not known
    assert len(make("000999", "draft", **elsewhere, paths=C[:2]).obtain()) == 2
    later["created"] = "2025-03-01T00:00:00Z"
    make("000999", "draft", update=True, **elsewhere).obtain()
    assert len(make("000999", "draft", **elsewhere).obtain()) == 2
    assert {asset.asset_id for asset in read_lock(lock).assets.values()}.isdisjoint({a["asset_id"], b["asset_id"]})


def test_an_update_of_some_files_moves_all_that_a_lock_pins_of_a_draft(archive, make, draft, tmp_path):
    for path in C:
        draft(path)
    before = [path.read_bytes() for path in make("000999", "draft").obtain()]
    now = [draft(C[0], 15), draft(C[1], 16)]
    same = draft(C[2])  # a new id, the same bytes
    source = make("000999", "draft", paths=[C[0]], update=True)
    assert [path.name for path in source.obtain()] == [C[0].rpartition("/")[2]]
    assert [note for note in source.notes() if "moves too" in note] == [
        f"{lock_of(tmp_path)} pins more of 000999/draft, which moves too: {C[1]}"
    ]
    ids = {asset.path: asset.asset_id for asset in read_lock(lock_of(tmp_path)).assets.values()}
    assert ids == {row["path"]: row["asset_id"] for row in (*now, same)}
    with pytest.raises(InputError, match=rf"missing in the cache: {re.escape(C[1])};"):
        make("000999", "draft", offline=True).obtain()
    after = [path.read_bytes() for path in make("000999", "draft").obtain()]
    assert [old == new for old, new in zip(before, after, strict=True)] == [False, False, True]
    assert make("000999", "draft", offline=True).obtain()

    archive.dandisets["000999"]["draft"].remove(now[1])
    source = make("000999", "draft", paths=[C[0]], update=True)
    source.obtain()
    assert any(note.endswith(f"which has gone from the draft and leaves the lock: {C[1]}") for note in source.notes())
    assert sorted(asset.path for asset in read_lock(lock_of(tmp_path)).assets.values()) == [C[0], C[2]]


def test_a_lock_that_moves_meanwhile_takes_no_file_of_the_state_before(archive, make, draft, tmp_path):
    draft(C[0])
    draft(C[1])
    make("000999", "draft", paths=[C[0]]).obtain()
    late = make("000999", "draft", paths=[C[1]])
    late.select()
    draft(C[0], 15)
    draft(C[1], 15)
    make("000999", "draft", paths=[C[0]], update=True).obtain()
    pinned = lock_of(tmp_path).read_text()
    with pytest.raises(InputError, match="another process moved what it pins of 000999/draft; start again"):
        late.obtain()
    assert lock_of(tmp_path).read_text() == pinned


def test_an_update_of_some_files_leaves_what_is_pinned_of_a_published_version(archive, make, tmp_path):
    make(subject="C").obtain()
    make(subject="M", update=True).obtain()
    assert sorted(asset.path for asset in read_lock(lock_of(tmp_path)).assets.values()) == sorted(FILES)


# Which archive


def test_archives_are_kept_apart(archive, make, monkeypatch, tmp_path):
    (mine,) = make(session="*1003").obtain()
    lock = tmp_path / "my.lock.toml"
    make(session="*1003", lock=lock).obtain()
    assert read_lock(lock).archive == archive.url
    with serving() as other:
        changed = nwb_bytes("CO-20131003", "C", "2013-10-03T18:00:00+00:00")
        other.add(C[0], changed)
        monkeypatch.setenv("DANDI_INSTANCE", other.url)
        (theirs,) = make(session="*1003").obtain()
        assert theirs != mine
        assert (mine.read_bytes(), theirs.read_bytes()) == (content(C[0]), changed)
        with pytest.raises(InputError, match=f"lock of the archive at {archive.url}, and {other.url} is in use"):
            make(session="*1003", lock=lock).select()
        assert {entry.archive for entry in entries.entries(tmp_path / "cache" / "raw")} == {
            folder.name for folder in (raw(tmp_path), mine.parents[3])
        }
        monkeypatch.delenv("DANDI_INSTANCE")
        with pytest.raises(InputError, match=r"lock of the archive at .*api\.dandiarchive\.org/api is in use"):
            make(session="*1003", lock=lock).select()


def test_caches_and_locks_of_before_are_those_of_the_dandi_archive(archive, make, monkeypatch, tmp_path):
    """Laid out without a folder of the archive, a lock without its name, records without a time of verification."""
    make(subject="C").obtain()
    cache = tmp_path / "old" / "raw"
    cache.mkdir(parents=True)
    (raw(tmp_path) / DANDISET).rename(cache / DANDISET)
    text = lock_of(tmp_path).read_text()
    assert f'archive = "{archive.url}"\n' in text
    (cache / "sessions.lock.toml").write_text(text.replace(f'archive = "{archive.url}"\n', ""))
    for path in cache.rglob("*.asset.json"):
        fields = json.loads(path.read_text())
        path.write_text(json.dumps({key: value for key, value in fields.items() if key != "checked"}))
    for path in cache.rglob("*.listing.json"):
        path.unlink()
    monkeypatch.delenv("DANDI_INSTANCE")
    source = make(subject="C", cache=cache.parent, offline=True)
    assert len(source.list()) == 3
    assert source.lock.read_text() == (cache / "sessions.lock.toml").read_text()
    assert "archive" not in tomllib.loads(source.lock.read_text())


# Requests


def test_a_long_listing_costs_tens_of_requests(archive, make, tmp_path):
    archive.page_size = 1000
    for number in range(2300):
        archive.add(f"sub-C/sub-C_ses-{number:04d}.nwb", b"", dandiset="000777", digests={"dandi:sha2-256": "0" * 64})
    source = make("000777")
    rows = source.select().rows()
    assert len(rows) == 2300
    assert len(archive.log) < 10
    assert files(tmp_path) == set()


# Updates


def test_an_update_fetches_and_stores_nothing_twice(archive, make, tmp_path):
    old = make(version=OLD, subject="C").obtain()
    sent = archive.sent()
    newer = "0.260101.0000"
    archive.add(C[0], content(C[0]), version=newer, asset_id=row_of(archive, C[0], OLD)["asset_id"])
    archive.add(C[1].replace("sub-C/", "renamed/"), content(C[1]), version=newer)  # another id, the same digest
    archive.add(C[2], nwb_bytes("RT-20131009", "C", "2013-10-09T18:00:00+00:00"), version=newer)
    source = make(update=True, subject="C")
    states = {row["path"]: row["state"] for row in source.select().rows()}
    assert sorted(states.values()) == ["missing", "reused", "reused"]
    missing = sum(row["missing"] for row in source.select().rows())
    new = source.obtain()
    assert archive.sent() - sent == missing == len(archive.blobs[row_of(archive, C[2], newer)["asset_id"]])
    by_name = {path.name: path for path in old}
    same = [path for path in new if path.samefile(by_name[path.name])]
    assert len(same) == 2
    assert {record.asset.version for record in map(entries.read_record, new)} == {newer}
    old[0].unlink()  # one name less: the bytes stay
    assert new[[path.name for path in new].index(old[0].name)].read_bytes() == content(C[0])
    assert len(make(subject="C").obtain()) == 3


def test_a_disk_without_hard_links_takes_copies_and_that_is_said_once(archive, make, tmp_path, monkeypatch):
    """Nothing is sent twice either way; stored twice is only what cannot be stored once."""
    both = {}
    for links in (True, False):
        cache = tmp_path / str(links)
        old = make(version=OLD, subject="C", cache=cache).obtain()
        sent = archive.sent()
        if not links:
            monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(1, "no links")))
        source = make(version=NEW, subject="C", cache=cache)
        new = source.obtain()
        assert archive.sent() == sent
        assert [path.name for path in new] == [path.name for path in old]
        assert [path.samefile(twin) for path, twin in zip(new, old, strict=True)] == [links] * 3
        assert [path.read_bytes() for path in new] == [path.read_bytes() for path in old]
        both[links] = [note for note in source.notes() if "stored a second time" in note]
        assert sum("not fetched again" in note for note in source.notes()) == 1
    assert both[True] == []
    assert len(both[False]) == 1
    assert "3 of them" in both[False][0]


def test_a_copy_needs_room(archive, make, monkeypatch):
    make(version=OLD, subject="C").obtain()
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(1, "no links")))
    monkeypatch.setattr(entries.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(InputError, match="GB are free"):
        make(version=NEW, subject="C").obtain()


def test_a_damaged_twin_is_not_taken(archive, make):
    (old,) = make(version=OLD, session="*1003").obtain()
    old.write_bytes(b"x" * old.stat().st_size)
    (new,) = make(version=NEW, session="*1003").obtain()
    assert new.read_bytes() == content(C[0])
    assert not new.samefile(old)


# Names, tokens, digests that come later


def test_an_exact_path_with_brackets_is_itself(archive, make):
    for name in ("sub-C/sub-C_ses-a[1].nwb", "sub-C/sub-C_ses-a1.nwb"):
        archive.add(name, nwb_bytes(name))
    both = ["sub-C/sub-C_ses-a1.nwb", "sub-C/sub-C_ses-a[1].nwb"]
    for given, expected in (
        ({"paths": both[1:]}, both[1:]),
        ({"paths": both}, both),
        ({"paths": ["*-a*"], "exclude": both[1:]}, both[:1]),
        ({"paths": ["*-a[1]*"]}, both[:1]),
    ):
        assert [row["path"] for row in make(**given).select().rows()] == expected


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("CO_20131003", "sub-C_ses-CO-20131003_behavior+ecephys"),
        ("CO.2013*", "sub-C_ses-CO-20131003_behavior+ecephys"),
        ("sub-C_ses-CO-20131003", "sub-C_ses-CO-20131003_behavior+ecephys"),
        ("ses-CO-20131003", "sub-C_ses-CO-20131003_obj-1k2_behavior"),
        ("sub-Indy_desc-train", "sub-Indy_desc-train_behavior+ecephys"),
    ],
)
def test_a_session_is_found_by_what_it_is_called(asked, name):
    assert Wanted(session=asked).takes(f"sub/{name}.nwb")
    assert not Wanted(session=asked).takes("sub-C/sub-C_ses-RT-20131009_behavior.nwb")


def test_the_token_that_the_client_keeps_is_used_where_one_is_asked_for(archive, make, monkeypatch, tmp_path):
    import dandi.keyring_utils

    asked = []

    class Keyring:
        def get_password(self, service, name):
            asked.append((service, name))
            return "kept-token"

    monkeypatch.setattr(dandi.keyring_utils, "get_keyring", Keyring)
    make(session="*1003").select()
    assert asked == []  # nobody is asked to unlock anything for what is open
    archive.answers[LATEST] = in_turn((401, {}, b"{}"), (200, {}, open_answer(archive)))
    make(session="*1009").obtain()
    netloc = archive.url.removeprefix("http://").removesuffix("/api")
    assert asked == [(f"dandi-api-{netloc}", "key")]
    assert archive.asked("/download/")[-1].headers["Authorization"] == "token kept-token"
    archive.answers[LATEST] = (403, {}, b"{}")
    with pytest.raises(InputError, match="is not open to the token in use"):
        make(session="*1022", cache=tmp_path / "other").select()


def open_answer(archive):
    version = {"version": NEW, "name": "x", "asset_count": 1, "size": 0, "created": WHEN, "modified": WHEN}
    version["status"] = "Published"
    about = {"identifier": DANDISET, "created": WHEN, "modified": WHEN, "contact_person": "", "draft_version": version}
    return json.dumps(about | {"embargo_status": "OPEN", "most_recent_published_version": version}).encode()


def test_somebody_between_is_not_the_archive(archive, make):
    archive.answers[LATEST] = (302, {"Location": f"{archive.blob_url}/portal"}, b"")
    archive.answers["/portal"] = (403, {}, b"no")
    host = archive.blob_url.removeprefix("http://")
    with pytest.raises(InputError, match=f"{host}, which is not the archive, does not allow it") as caught:
        make().select()
    assert "token" not in str(caught.value)


def test_a_digest_that_comes_later_changes_nothing(archive, make, tmp_path):
    row = row_of(archive, C[0])
    whole = archive.digests[row["asset_id"]]
    archive.digests[row["asset_id"]] = {"dandi:dandi-etag": whole["dandi:dandi-etag"]}
    (file,) = make(session="*1003").obtain()
    archive.digests[row["asset_id"]] = whole
    source = make(session="*1003", update=True)
    assert [each["state"] for each in source.select().rows()] == ["cached"]
    sent = archive.sent()
    source.obtain()
    assert archive.sent() == sent
    assert entries.read_record(file).asset.sha256 == whole["dandi:sha2-256"]
    assert [each.sha256 for each in read_lock(lock_of(tmp_path)).assets.values()] == [whole["dandi:sha2-256"]]


def test_who_made_a_dandiset_and_how_to_cite_it(archive, make):
    people = [{"name": "Perich, M", "includeInCitation": True}, {"name": "Fund", "includeInCitation": False}]
    archive.about = {"contributor": [*people, {"name": "Miller, L", "roleName": ["dcite:Author"]}, "odd"]}
    archive.about["citation"] = "Perich (2025)\n10.48324/dandi"
    source = make(session="*1003")
    source.obtain()
    expected = {"authors": ["Perich, M", "Miller, L"], "citation": "Perich (2025) 10.48324/dandi"}
    archive.close()
    for each in (source, make(session="*1003")):
        assert expected.items() <= each.datasets()[0].items()
        assert each.datasets()[0]["archive"] == archive.url
