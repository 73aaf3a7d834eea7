"""The source `Dandi` through the real client, against a stand-in for the archive: pins, globs, offline, hostility."""

import json
import re
import sys
import threading
import time
import tomllib
from types import SimpleNamespace

import pytest
from archive_server import DANDISET, NEW, OLD, Fault, nwb_bytes, serving

from bci_adapt.archive import cache as entries
from bci_adapt.archive import http
from bci_adapt.archive.http import Patience, PatientAdapter
from bci_adapt.archive.lock import read_lock
from bci_adapt.archive.sources import dandi as module
from bci_adapt.archive.sources.dandi import Dandi, parse_dandiset, session_of, subject_of
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
    return tmp_path / "cache" / "raw"


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
    before = {path: path.stat().st_mtime_ns for path in raw(tmp_path).rglob("*") if path.is_file()}
    archive.log.clear()
    source = make()
    assert {row["state"] for row in source.select().rows()} == {"cached"}
    assert len(source.list()) == 5
    assert archive.asked() == []
    assert archive.asked("/download/") == []
    assert len(archive.log) == 4  # licence, and three pages: digests are in the lock
    assert before == {path: path.stat().st_mtime_ns for path in raw(tmp_path).rglob("*") if path.is_file()}


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
    assert source.select().rows()[0]["state"] == "other"
    assert source.obtain() == [file]
    assert file.read_bytes() == changed
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
    assert source.select().licence == "spdx:CC-BY-4.0"
    assert any("3 of the 3 files" in note for note in source.select().notes)
    assert len(make(offline=True, session="RT*").list()) == 1
    assert archive.log == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dandiset": "000999"}, "no version of 000999 is pinned in"),
        ({"version": OLD}, f"has no file of {DANDISET}/{OLD}"),
        ({"subject": "M"}, f"offline: {DANDISET}/{NEW} has no NWB file with subject 'M'; the nearest: 'sub-C"),
    ],
)
@pytest.mark.parametrize("network", [False, True])
def test_offline_says_what_is_missing(archive, make, given, message, network, monkeypatch):
    make(subject="C").obtain()
    if network:
        monkeypatch.setenv("DANDI_INSTANCE", "http://127.0.0.1:9/api")
        message = message.replace("offline: ", "cannot be reached (connection refused), and ")
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


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/api", "http://archive.invalid/api", "http://127.0.0.1:9"])
def test_no_network_is_noticed_at_once(archive, make, monkeypatch, address):
    make(subject="C").obtain()
    waits = []
    monkeypatch.setattr(http, "PATIENCE", Patience(wait=waits.append))
    monkeypatch.setenv("DANDI_INSTANCE", address)
    if "invalid" in address:
        import socket

        def nowhere(*_, **__):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    source = make(subject="C")
    assert len(source.list()) == 3
    reason = "its name cannot be resolved" if "invalid" in address else "connection refused"
    assert any(f"cannot be reached ({reason})" in note for note in source.select().notes)
    assert waits == []
    with pytest.raises(InputError, match="cannot be reached"):
        make(subject="C", update=True).select()
    (raw(make(subject="C").raw.parent.parent) / DANDISET / NEW / C[0]).unlink()
    with pytest.raises(InputError, match=r"cannot be reached .*; missing in the cache: sub-C"):
        make(subject="C").list()


def test_an_archive_that_stays_busy_is_like_none(archive, make):
    make(subject="C").obtain()
    archive.answers[VERSION] = (503, {"Retry-After": "1000000"}, b"busy")
    source = make(subject="C")
    assert len(source.list()) == 3
    assert any("status 503; given up after 3 tries" in note for note in source.select().notes)
    assert len(archive.asked(VERSION)) > 0


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
    monkeypatch.setattr(module, "MAX_ASSETS", 200)
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
def test_hostile_paths_are_refused_before_anything_is_fetched(archive, make, tmp_path, path):
    archive.add(path, content(C[0]))
    with pytest.raises(InputError, match=r"refused|one place"):
        make().obtain()
    assert archive.asked("/download/") == []
    assert files(tmp_path) == set()
    assert len(make(session="RT*").obtain()) == 1  # the others can be had


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
        assert module._instance().api == "https://api.dandiarchive.org/api"
