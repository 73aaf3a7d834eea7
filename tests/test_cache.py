"""The lock file and the entries of the raw cache: what is untrusted is refused, what is not ours is not touched."""

import fcntl
import hashlib
import json
import os
import random
import threading
import time
import tomllib
from dataclasses import replace
from types import SimpleNamespace

import pytest
from archive_server import DANDISET, NEW, OLD, etag_of
from hypothesis import given, settings
from hypothesis import strategies as st

from bci_adapt.archive import cache, lock
from bci_adapt.archive.lock import Asset, Lock, read_lock, update_lock, write_lock
from bci_adapt.errors import InputError

ID = "00000000-0000-4000-8000-000000000000"
DATA = random.Random(0).randbytes(5000)


def asset(path="sub-C/sub-C_ses-1.nwb", content=DATA, version=NEW, number=0):
    digest = hashlib.sha256(content).hexdigest()
    return Asset(DANDISET, version, path, ID[:-2] + f"{number:02d}", len(content), digest, etag_of(content))


def put(raw, entry, content=DATA, record=True):
    """A fetched file."""
    file = cache.file_of(raw, entry)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    if record:
        cache.write_record(file, cache.Record(entry, "spdx:CC-BY-4.0", "http://127.0.0.1/api", "2025-01-01T00:00:00"))
    return file


# Paths

HOSTILE = [
    "",
    "/etc/passwd.nwb",
    "../x.nwb",
    "a/../../x.nwb",
    "a/./x.nwb",
    "a//x.nwb",
    "a/",
    "..",
    "C:/x.nwb",
    "C:x.nwb",
    "a/x.nwb:stream",
    "a\\x.nwb",
    "..\\x.nwb",
    "a\0.nwb",
    "a\n.nwb",
    "a\x1b[2J.nwb",
    "a\x85.nwb",
    "a\u202egpj.nwb",
    "a\u200b.nwb",
    "a\xa0b.nwb",
    "a\u2028b.nwb",
    "\ud800.nwb",
    " x.nwb",
    "a /x.nwb",
    "a./x.nwb",
    "x.nwb ",
    "x.nwb.part",
    "x.nwb.PART",
    "x.nwb.part/y.nwb",
    "x.nwb.part.json",
    "x.nwb.asset.json",
    "x.nwb.Asset.JSON",
    "a" * 201,
    "é" * 101,
    "/".join(["a" * 100] * 11),
    None,
    3,
]


@pytest.mark.parametrize("path", HOSTILE)
def test_hostile_paths_are_refused(path):
    assert lock.path_fault(path)
    with pytest.raises(InputError, match="asset") as caught:
        Asset(DANDISET, NEW, path, ID, 1, "0" * 64)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("path", ["x.nwb", "sub-C/sub-C_ses-CO-20131003_behavior+ecephys.nwb", "a/b/ü €.nwb", ".a/x"])
def test_ordinary_paths_are_taken(path, tmp_path):
    assert lock.path_fault(path) is None
    assert cache.file_of(tmp_path, asset(path)) == tmp_path / DANDISET / NEW / path


@settings(deadline=None)
@given(st.text())
def test_no_path_leaves_its_folder(tmp_path_factory, path):
    if lock.path_fault(path) is None:
        base = tmp_path_factory.getbasetemp()
        file = cache.file_of(base, asset(path))
        assert os.path.normpath(file) == str(file)
        assert file.is_relative_to(base / DANDISET / NEW)
        assert str(file).isprintable()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("dandiset", "688", "six digits"),
        ("dandiset", "٠٠٠٦٨٨", "six digits"),
        ("dandiset", "000688/..", "six digits"),
        ("dandiset", "000688\n", "six digits"),
        ("version", "..", "published version"),
        ("version", "0.1", "published version"),
        ("version", "0.1.2/../..", "published version"),
        ("version", "0.1.2\n", "published version"),
        ("version", "Draft", "published version"),
        ("asset_id", "../../x", "asset_id"),
        ("asset_id", ID.replace("0", "A"), "asset_id"),
        ("asset_id", ID + "\n", "asset_id"),
        ("size", -1, "size"),
        ("size", 1.0, "size"),
        ("size", True, "size"),
        ("size", "1", "size"),
        ("sha256", "0" * 63, "sha2-256"),
        ("sha256", "G" * 64, "sha2-256"),
        ("dandi_etag", "0" * 32, "dandi-etag"),
        ("dandi_etag", None, "dandi-etag"),
    ],
)
def test_fields_of_an_asset_are_checked(field, value, message):
    with pytest.raises(InputError, match=message):
        replace(asset(), **{field: value})


def test_an_asset_without_a_digest_is_refused():
    with pytest.raises(InputError, match="could not be verified"):
        replace(asset(), sha256="", dandi_etag="")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("a/x.nwb", "a/X.nwb"),
        ("a/x.nwb", "A/x.nwb"),
        ("a/\u00e9.nwb", "a/e\u0301.nwb"),
        ("a/ß.nwb", "a/SS.nwb"),
        ("a.nwb", "a.nwb/b.nwb"),
        ("A.nwb", "a.nwb/c/b.nwb"),
    ],
)
def test_the_second_of_two_assets_at_one_place_is_refused(first, second):
    for pair in ([first, second], [second, first]):
        assets = [asset(path, number=number) for number, path in enumerate(pair)]
        found = cache.clashes([*assets, asset("elsewhere.nwb")])
        assert [*found] == assets[1:]
        assert "one place" in found[assets[1]]
    assert cache.clashes([asset(first), asset(first), asset(second, version=OLD)]) == {}
    assert cache.clashes([asset("a/x.nwb"), asset("a/y.nwb"), asset("b/x.nwb")]) == {}


@pytest.mark.parametrize("where", [DANDISET, f"{DANDISET}/{NEW}", f"{DANDISET}/{NEW}/sub-C"])
def test_links_in_the_cache_are_not_followed(tmp_path, where):
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "raw" / where).parent.mkdir(parents=True)
    (tmp_path / "raw" / where).symlink_to(outside)
    with pytest.raises(InputError, match="symbolic link"):
        cache.file_of(tmp_path / "raw", asset())


def test_the_cache_itself_may_be_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "raw").symlink_to(tmp_path / "disk")
    put(tmp_path / "raw", asset())
    assert [entry.state for entry in cache.entries(tmp_path / "raw")] == ["complete"]


# The lock file


@pytest.fixture
def some_lock():
    assets = [asset(f"sub-C/{number}.nwb", number=number) for number in range(12)]
    assets += [asset("sub-C/1.nwb", version=OLD), replace(asset("q\"uo'te ü.nwb"), sha256="")]
    random.Random(1).shuffle(assets)
    return Lock({"000999": OLD, DANDISET: NEW}, {each.key: each for each in assets})


def test_a_lock_is_read_as_written_and_has_one_form(tmp_path, some_lock):
    write_lock(tmp_path / "a.toml", some_lock)
    assert read_lock(tmp_path / "a.toml") == some_lock
    again = Lock(dict(reversed(some_lock.pinned.items())), dict(reversed(some_lock.assets.items())))
    write_lock(tmp_path / "b.toml", again)
    assert (tmp_path / "a.toml").read_bytes() == (tmp_path / "b.toml").read_bytes()
    content = tomllib.loads((tmp_path / "a.toml").read_text())
    assert content["pinned"] == some_lock.pinned
    keys = [(each["dandiset"], each["version"], each["path"]) for each in content["assets"]]
    assert keys == sorted(keys)
    assert content["assets"][0].keys() >= {"asset_id", "size", "sha2-256", "dandi-etag"}
    assert read_lock(tmp_path / "a.toml").pinned.get(DANDISET) == NEW
    assert read_lock(tmp_path / "a.toml").pinned.get("000001") is None
    assert read_lock(tmp_path / "missing.toml").pinned.get(DANDISET) is None


@settings(deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_toml(text):
    assert tomllib.loads(f"x = {lock._quoted(text)}")["x"] == text


GOOD = f"""format = 1
[pinned]
"{DANDISET}" = "{NEW}"
[[assets]]
dandiset = "{DANDISET}"
version = "{NEW}"
path = "a/x.nwb"
asset_id = "{ID}"
size = 3
sha2-256 = "{"0" * 64}"
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("", "", None),
        ("format = 1", "format = 2", "format must be 1, found 2"),
        ("format = 1", "format = true", "format must be 1"),
        ("format = 1", "", "format must be 1, found None"),
        ("format = 1", "format = 1\nx = 1", "'x' is not a key"),
        ("format = 1", "format = = 1", "cannot be read as a lock file"),
        ("[pinned]", "[pinned", "cannot be read"),
        (f'"{NEW}"\n[[', '"draft"\n[[', f"pinned.'{DANDISET}': a draft"),
        (f'"{NEW}"\n[[', '"../.."\n[[', f"pinned.'{DANDISET}': .*version"),
        (f'"{NEW}"\n[[', "3\n[[", f"pinned.'{DANDISET}': .*found 3"),
        (f'"{DANDISET}" = ', '"../x" = ', "six digits"),
        ("[[assets]]", "[assets]", "assets must be an array"),
        ("[pinned]\n", "pinned = 3\n[x]\n", "'x' is not a key|pinned must be"),
        ('path = "a/x.nwb"\n', "", r"assets\[0\]: path is missing"),
        ('"a/x.nwb"', '"../../x.nwb"', r"assets\[0\]: asset '../../x.nwb' .* component"),
        ('"a/x.nwb"', '"a\\u0000x.nwb"', r"assets\[0\]: .*control"),
        ('"a/x.nwb"', "3", r"assets\[0\]: .*is not a path"),
        ('"a/x.nwb"', '["a"]', r"assets\[0\]: .*is not a path"),
        ("size = 3", "size = -3", r"assets\[0\]: .*size must be"),
        ("size = 3", "size = 3.0", r"assets\[0\]: .*size must be"),
        ("size = 3", "size = inf", r"assets\[0\]: .*size must be"),
        ("size = 3", "size = 3\nsha1 = 'x'", r"assets\[0\]: 'sha1' is not a key"),
        ("sha2-256 = ", "dandi-etag = ", r"assets\[0\]: .*dandi-etag must be"),
        (f'sha2-256 = "{"0" * 64}"', "", r"assets\[0\]: .*could not be verified"),
        (ID, "../x", r"assets\[0\]: .*asset_id must be"),
        ("[[assets]]", GOOD[GOOD.index("[[") :] + "[[assets]]", r"assets\[1\]: .*stands there twice"),
    ],
)
def test_a_malformed_lock_names_file_and_key(tmp_path, old, new, message):
    assert old in GOOD
    path = tmp_path / "my.lock.toml"
    path.write_text(GOOD.replace(old, new, 1) if old else GOOD)
    if message is None:
        assert len(read_lock(path).assets) == 1
        return
    with pytest.raises(InputError, match=message) as caught:
        read_lock(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("content", [b"\xff\xfe", b"\0", b"a = " + b"[" * 50_000, b"assets = [1]\nformat = 1"])
def test_a_lock_that_is_none(tmp_path, content):
    (tmp_path / "x.toml").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.toml"):
        read_lock(tmp_path / "x.toml")
    with pytest.raises(InputError):
        read_lock(tmp_path)


def test_writers_of_one_lock_do_not_lose_each_others_pins(tmp_path):
    def pin(number):
        update_lock(tmp_path / "l.toml", lambda old: (time.sleep(0.002), old.with_assets([one(number)]))[1])

    def one(number):
        return asset(f"{number}.nwb", number=number)

    threads = [threading.Thread(target=pin, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_lock(tmp_path / "l.toml").assets) == 12
    before = (tmp_path / "l.toml").stat().st_mtime_ns
    update_lock(tmp_path / "l.toml", lambda old: old)
    assert (tmp_path / "l.toml").stat().st_mtime_ns == before
    assert sorted(each.name for each in tmp_path.iterdir()) == [".l.toml.lock", "l.toml"]
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        update_lock(tmp_path / "file" / "l.toml", lambda old: old)


# Entries


def test_a_record_is_read_as_written(tmp_path):
    file = put(tmp_path, asset())
    assert cache.read_record(file).asset == asset()
    assert cache.read_record(file).licence == "spdx:CC-BY-4.0"
    written = file.with_name(file.name + ".asset.json")
    good = written.read_text()
    for bad in (
        "",
        "[]",
        "{}",
        "3",
        "null",
        "[" * 100_000,
        good.replace('"licence": "spdx', '"licence": ["spdx'),
        good[:-4],
    ):
        written.write_text(bad)
        assert cache.read_record(file) is None, bad[:20]
    written.write_text(good.replace("sub-C/", "../"))
    assert cache.read_record(file) is None


def test_an_entry_counts_only_with_size_and_digest(tmp_path):
    file = cache.file_of(tmp_path, asset())
    assert cache.fault(file, asset()) == ""
    put(tmp_path, asset())
    assert cache.fault(file, asset()) is None
    for content, message in ((DATA[:-1], "4,999 bytes where 5,000"), (DATA[:-1] + b"x", asset().sha256)):
        file.write_bytes(content)
        assert message in cache.fault(file, asset())
    for digest in ("sha256", "dandi_etag"):  # each of them is looked at
        file.write_bytes(DATA)
        assert "where 0000" in cache.fault(
            file, replace(asset(), **{digest: "0" * 32 + ("-1" if "e" in digest else "0" * 32)})
        )


def test_a_file_without_a_record_counts_when_it_is_the_asset_and_is_never_overwritten(tmp_path):
    file = put(tmp_path, asset(), record=False)
    assert cache.fault(file, asset()) is None
    file.write_text("somebody's own notes")
    with pytest.raises(InputError, match="in the way"):
        cache.fault(file, asset())


def test_room_on_the_disk(tmp_path, monkeypatch):
    usage = SimpleNamespace(free=cache.MARGIN_BYTES + 100)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda folder: usage)
    cache.check_room(tmp_path / "not" / "there", 100)
    with pytest.raises(InputError, match=r"0\.27 GB are needed .* 0\.27 GB are free; nothing was downloaded"):
        cache.check_room(tmp_path, 101)
    usage.free = 0
    cache.check_room(tmp_path, 0)


@pytest.fixture
def raw(tmp_path):
    """A cache in every state, beside folders that are not its business."""
    raw = tmp_path / "raw"
    put(raw, asset("sub-C/good.nwb"))
    put(raw, asset("sub-C/rotten.nwb", number=1), DATA[:-1] + b"x")
    put(raw, asset("sub-C/short.nwb", number=2), DATA[:-1])
    put(raw, asset("sub-C/gone.nwb", number=3)).unlink()
    put(raw, asset("sub-C/elsewhere.nwb", number=4)).rename(raw / DANDISET / NEW / "sub-C" / "moved.nwb")
    record = raw / DANDISET / NEW / "sub-C" / "elsewhere.nwb.asset.json"
    record.rename(record.with_name("moved.nwb.asset.json"))
    put(raw, asset("own.nwb"), record=False)
    put(raw, asset("old.nwb", version=OLD))
    folder = raw / DANDISET / NEW / "sub-M"
    folder.mkdir()
    (folder / "half.nwb.part").write_bytes(DATA[:100])
    (folder / "half.nwb.part.json").write_text("{}")
    (folder / "stray.nwb.part").write_bytes(DATA[:100])
    held = folder / ".half.nwb.part.json.abcd1234.part"
    held.mkdir()
    (held / "half.nwb.part.json").write_text("{}")
    os.utime(held, (0, 0))
    for other in ("simulated", "000688x", "notes"):
        put(tmp_path / other, asset())  # for its record
        (raw / other).mkdir()
        (raw / other / "x.nwb").write_text("precious")
        (raw / other / "x.nwb.part").write_text("precious")
        (raw / other / "x.nwb.part.json").write_text("{}")
    outside = tmp_path / "outside" / NEW
    outside.mkdir(parents=True)
    for name in ("x.nwb", "x.nwb.asset.json", "y.nwb.part", "y.nwb.part.json"):
        (outside / name).write_text("precious")
    (raw / "000777").symlink_to(outside.parent)
    (raw / DANDISET / "0.1.1").symlink_to(outside)
    (raw / DANDISET / NEW / "link").symlink_to(outside)
    return raw


def states(found):
    return {(entry.version, entry.path): entry.state for entry in found}


EXPECTED = {
    (NEW, "sub-C/good.nwb"): "complete",
    (NEW, "sub-C/rotten.nwb"): "complete",
    (NEW, "sub-C/short.nwb"): "bad",
    (NEW, "sub-C/gone.nwb"): "bad",
    (NEW, "sub-C/moved.nwb"): "bad",
    (NEW, "sub-M/half.nwb"): "partial",
    (OLD, "old.nwb"): "complete",
}


def test_entries_and_verify(raw):
    found = cache.entries(raw)
    assert states(found) == EXPECTED
    assert [entry.version for entry in cache.entries(raw, DANDISET, OLD)] == [OLD]
    assert cache.entries(raw, "000001") == cache.entries(raw / "missing") == []
    assert {entry.size for entry in found if entry.state == "partial"} >= {100}
    verified = {entry.path: entry for entry in map(cache.verify, found)}
    assert verified["sub-C/good.nwb"].state == verified["old.nwb"].state == "verified"
    rotten = verified["sub-C/rotten.nwb"]
    assert rotten.state == "bad"
    assert hashlib.sha256(DATA[:-1] + b"x").hexdigest() in rotten.reason
    assert asset().sha256 in rotten.reason
    assert "4,999 bytes" in verified["sub-C/short.nwb"].reason


def tree(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}


def test_clean_removes_leftovers_only(raw, tmp_path):
    before, around = tree(raw), tree(tmp_path)
    would, left = cache.clean(raw, dry_run=True)
    assert tree(raw) == before
    removed, _ = cache.clean(raw)
    assert removed == would
    base = f"{DANDISET}/{NEW}"
    gone = {f"{base}/sub-C/gone.nwb.asset.json", f"{base}/sub-M/half.nwb.part", f"{base}/sub-M/half.nwb.part.json"}
    gone.add(f"{base}/sub-M/.half.nwb.part.json.abcd1234.part/half.nwb.part.json")
    assert before - tree(raw) == gone == {str(each.relative_to(raw)) for each in removed}
    assert around - tree(tmp_path) == {f"raw/{each}" for each in gone}
    assert not (raw / base / "sub-M" / ".half.nwb.part.json.abcd1234.part").exists()
    assert left == []
    assert cache.clean(raw)[0] == []


def test_clean_all_removes_what_was_fetched_and_nothing_else(raw, tmp_path):
    around = tree(tmp_path)
    _, left = cache.clean(raw, everything=True)
    kept = tree(tmp_path)
    assert {each for each in kept if each.startswith(f"raw/{DANDISET}/")} == {
        f"raw/{DANDISET}/{NEW}/own.nwb",
        f"raw/{DANDISET}/{NEW}/sub-M/stray.nwb.part",
    }
    assert {each.name for each in left} == {"own.nwb", "stray.nwb.part"}
    assert {each for each in around - kept if not each.startswith(f"raw/{DANDISET}/")} == set()
    assert not (raw / DANDISET / OLD).exists()  # nothing is left in it
    assert all((tmp_path / "outside" / NEW / name).read_text() == "precious" for name in ("x.nwb", "y.nwb.part"))


def test_clean_of_one_version(raw):
    removed, _ = cache.clean(raw, DANDISET, OLD, everything=True)
    assert {each.name for each in removed} == {"old.nwb", "old.nwb.asset.json"}


def test_clean_leaves_what_is_being_fetched(raw):
    part = raw / DANDISET / NEW / "sub-M" / "half.nwb.part"
    put(raw, asset("sub-M/half.nwb", number=9)).unlink()  # its record is written, it has not got its name
    with open(part, "rb+") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        removed, left = cache.clean(raw, everything=True)
        assert part.exists()
        assert part.with_name("half.nwb.part.json").exists()
        assert part.with_name("half.nwb.asset.json").exists()
        assert part in left
        assert part not in removed
    assert part in cache.clean(raw)[0]


def test_a_link_in_place_of_a_file_is_removed_and_not_what_it_leads_to(raw, tmp_path):
    file = raw / DANDISET / NEW / "sub-C" / "good.nwb"
    file.unlink()
    file.symlink_to(tmp_path / "outside" / NEW / "x.nwb")
    assert states(cache.entries(raw))[NEW, "sub-C/good.nwb"] == "bad"
    cache.clean(raw, everything=True)
    assert not file.is_symlink()
    assert (tmp_path / "outside" / NEW / "x.nwb").read_text() == "precious"


def test_records_are_json_that_says_where_a_file_is_from(tmp_path):
    file = put(tmp_path, asset())
    content = json.loads(file.with_name(file.name + ".asset.json").read_text())
    assert content["dandiset"] == DANDISET
    assert content["sha2-256"] == asset().sha256
    assert content["licence"] == "spdx:CC-BY-4.0"
