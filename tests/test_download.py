"""One file over HTTP: whatever the server does, the target is the recorded file or does not exist."""

import errno
import hashlib
import json
import os
import random
import re
import threading
import time
from dataclasses import replace
from email.utils import formatdate

import pytest
from archive_server import Fault, serving
from dandischema.digests.dandietag import DandiETag

from bci_adapt.archive import download as module
from bci_adapt.archive.download import bytes_kept, digests_of, download
from bci_adapt.archive.http import MAX_REDIRECTS, Patience, Stopped, Unreachable, retry_after_s
from bci_adapt.errors import InputError

N = 300_000
DATA = random.Random(0).randbytes(N)
WAITS = [1.0, 2.0, 4.0, 8.0, 16.0]


@pytest.fixture
def archive(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as archive:
        yield archive


@pytest.fixture
def waits():
    return []


@pytest.fixture
def get(archive, tmp_path, waits):
    """Download DATA with the given faults; returns the target, or raises."""

    def run(*faults, digests=("sha2-256", "dandi-etag"), data=DATA, **arguments):
        url, asset = archive.blob(data, digests)
        archive.faults[asset.asset_id] = list(faults)
        run.asset, run.target = asset, tmp_path / "a" / "file.nwb"
        patience = replace(Patience(wait=waits.append, read_s=0.3, stall_s=0.2), **arguments.pop("patience", {}))
        download(url, run.target, asset, patience=patience, **arguments)
        return run.target

    return run


def whole(target):
    """The target is the file, and nothing else is left."""
    return target.read_bytes() == DATA and [each.name for each in target.parent.iterdir()] == [target.name]


def absent(target):
    return not target.exists()


def test_plain(archive, get, waits):
    seen, order = [], []
    target = get(
        progress=lambda *each: seen.append(each), verified=lambda: order.append((get.target.exists(), archive.sent()))
    )
    assert whole(target)
    assert order == [(False, N)]  # the bytes are there and checked, the name is not
    (request,) = archive.asked()
    assert request.range is None
    assert archive.sent() == N
    assert waits == []
    assert seen[-1] == ("sub-C/sub-C_ses-1.nwb", N, N)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


@pytest.mark.parametrize("at", ["headers", 0, 1, N // 2, N - 1])
@pytest.mark.parametrize("etags", [True, False])
def test_a_cut_costs_only_what_had_not_come(archive, get, waits, at, etags):
    archive.etags = etags
    assert whole(get(Fault("cut headers") if at == "headers" else Fault("cut", at)))
    first, second = archive.asked()
    kept = 0 if at == "headers" else at
    assert first.sent == kept
    assert second.range == (f"bytes={kept}-" if kept else None)
    assert ("If-Range" in second.headers) == (etags and kept > 0)
    assert archive.sent() == N
    assert waits == WAITS[:1]
    assert all("signature" in request.query for request in archive.asked())  # a new address for every request


def test_a_cut_that_does_not_end_is_given_up_and_kept(archive, get, waits, tmp_path):
    with pytest.raises(Unreachable, match=r"sub-C_ses-1\.nwb: .*given up after 6 tries"):
        get(Fault("cut", 1000, always=True))
    assert waits == WAITS
    assert len(archive.asked()) == 6
    assert absent(get.target)
    assert bytes_kept(get.target, get.asset) == 1000
    archive.log.clear()
    archive.faults.clear()
    url = f"{archive.url}/assets/{get.asset.asset_id}/download/"
    download(url, get.target, get.asset, patience=Patience(wait=waits.append))
    assert whole(get.target)
    assert [request.range for request in archive.asked()] == ["bytes=1000-"]
    assert archive.sent() == N - 1000


def test_progress_starts_the_count_anew(archive, get, waits):
    cuts = [Fault("cut", at) for at in range(20_000, N, 20_000)]
    assert whole(get(*cuts, patience={"worth_bytes": 20_000}))
    assert len(archive.asked()) == len(cuts) + 1 > 6
    assert set(waits) == {1.0}
    get.target.unlink()
    with pytest.raises(Unreachable):  # a byte a try is no progress
        get(*[Fault("cut", at) for at in range(20)])


@pytest.mark.parametrize("digests", [["sha2-256"], ["dandi-etag"], ["sha2-256", "dandi-etag"]])
@pytest.mark.parametrize("at", [0, N // 2, N - 1])
def test_wrong_bytes_are_fetched_once_more(archive, get, waits, digests, at):
    assert whole(get(Fault("wrong bytes", at), digests=digests))
    assert [request.range for request in archive.asked()] == [None, None]
    assert archive.sent() == 2 * N
    assert waits == []


@pytest.mark.parametrize("digest", ["sha2-256", "dandi-etag"])
def test_wrong_bytes_twice_name_both_digests(archive, get, tmp_path, digest):
    written = []
    with pytest.raises(InputError) as caught:
        get(Fault("wrong bytes", 7, always=True), digests=[digest], verified=lambda: written.append(1))
    (tmp_path / "wrong").write_bytes(DATA[:7] + bytes([DATA[7] ^ 1]) + DATA[8:])
    assert get.asset.digests[digest] in str(caught.value)
    assert digests_of(tmp_path / "wrong")[digest] in str(caught.value)
    assert len(archive.asked()) == 2
    assert list(get.target.parent.iterdir()) == []
    assert written == []


LENGTHS = [
    (Fault("shorter", 10), f"{N - 10} bytes announced where {N} are missing"),
    (Fault("longer", 10), f"{N + 10} bytes announced where {N} are missing"),
    (Fault("lying length", -10), f"{N - 10} bytes announced"),
    (Fault("lying length", 10), f"{N + 10} bytes announced"),
    (Fault("longer unannounced", 10), f"more than the {N:,} bytes"),
]


@pytest.mark.parametrize(("fault", "message"), LENGTHS)
def test_wrong_length(archive, get, fault, message):
    assert whole(get(replace(fault)))
    archive.log.clear()
    get.target.unlink()
    with pytest.raises(InputError, match=re.escape(message)):
        get(replace(fault, always=True))
    assert len(archive.asked()) == 2
    assert list(get.target.parent.iterdir()) == []


def test_wrong_length_is_seen_before_the_body(archive, get):
    seen = []
    with pytest.raises(InputError, match="announced"):
        get(Fault("longer", 10, always=True), progress=lambda *each: seen.append(each))
    assert seen == []


def test_a_body_without_length(archive, get):
    assert whole(get(Fault("no length")))
    get.target.unlink()
    assert whole(get(Fault("no length", 1000)))  # ends early: goes on
    assert archive.asked()[-1].range == "bytes=1000-"


SOON = formatdate(time.time() + 20_000, usegmt=True)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault("status", value=(429, {"Retry-After": "2"})), 2.0),
        (Fault("status", value=(503, {"Retry-After": "0"})), 0.0),
        (Fault("status", value=(503, {"Retry-After": SOON})), 60.0),
        (Fault("status", value=(503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"})), 0.0),
        (Fault("status", value=(503, {"Retry-After": "9" * 6000})), 60.0),
        (Fault("status", value=(429, {"Retry-After": "604800"})), 60.0),
        (Fault("status", value=(503, {"Retry-After": "soon"})), 1.0),
        (Fault("status", value=(500, {})), 1.0),
        (Fault("status", value=(502, {})), 1.0),
        (Fault("redirect status", value=(429, {"Retry-After": "3"})), 3.0),
        (Fault("redirect status", value=(503, {})), 1.0),
    ],
)
def test_a_busy_server_is_waited_for(archive, get, waits, fault, expected):
    assert whole(get(fault))
    assert waits == [expected]
    assert archive.sent() == N


def test_a_server_that_stays_busy(archive, get, waits):
    with pytest.raises(Unreachable, match="status 503; given up after 6 tries"):
        get(Fault("status", value=(503, {"Retry-After": "100000"}), always=True))
    assert waits == [60.0] * 5


def test_retry_after():
    now = time.time()
    assert retry_after_s(formatdate(now + 30, usegmt=True), 60.0) == pytest.approx(30.0, abs=2.0)
    for text in ("", "-3", "1.5", "nan", "١", "Wed, 99 Oct 2015 07:28:00 GMT", "Wed, 21 Oct 999999 07:28:00 GMT"):
        assert retry_after_s(text, 60.0) is None, text
    assert retry_after_s(None, 60.0) is None


REFUSALS = {404: "no longer in the archive", 410: "--update", 418: "status 418"}


@pytest.mark.parametrize(
    ("kind", "status", "message"),
    [
        *((kind, status, message) for kind in ("status", "redirect status") for status, message in REFUSALS.items()),
        ("redirect status", 401, "needs its token"),
        ("redirect status", 403, "embargoed"),
        ("status", 403, "the storage at 127.0.0.1"),  # which knows no tokens
    ],
)
def test_a_refusal_is_told_at_once(archive, get, waits, kind, status, message):
    with pytest.raises(InputError, match=re.escape(message)):
        get(Fault(kind, value=(status, {}), always=True))
    assert len(archive.log) == (2 if kind == "status" else 1)
    assert waits == []
    assert absent(get.target)


@pytest.mark.parametrize(
    ("fault", "message", "requests"),
    [
        (Fault("loop", always=True), "in a circle", MAX_REDIRECTS + 1),
        (Fault("redirect", value="ftp://127.0.0.1/file", always=True), "not http", 1),
        (Fault("redirect", value="file:///etc/passwd", always=True), "not http", 1),
        (Fault("redirect", value="data:text/plain,x", always=True), "not http", 1),
        (Fault("redirect", value="http://127.0.0.1:99999/", always=True), "not http", 1),
        (Fault("redirect", value="http://[", always=True), "not http", 1),
    ],
)
def test_redirects_that_lead_nowhere(archive, get, fault, message, requests):
    with pytest.raises(InputError, match=message) as caught:
        get(fault)
    assert "\n" not in str(caught.value)
    assert len(archive.log) == requests
    assert absent(get.target)


def test_a_redirect_to_a_closed_port_is_tried_again(archive, get, waits):
    with pytest.raises(Unreachable, match="connection refused"):
        get(Fault("redirect", value="http://127.0.0.1:9/blob?signature=secret", always=True))
    assert waits == WAITS


def test_what_comes_with_a_redirect_is_not_read(archive, get, waits):
    _, asset = archive.blob(DATA)
    endless = {"Location": f"{archive.blob_url}/blobs/{asset.asset_id}", "Content-Length": str(10**12)}
    assert whole(get(Fault("redirect status", value=(302, endless))))
    assert waits == []


@pytest.mark.parametrize("start", [0, 1000])
def test_a_drip_is_given_up_and_what_came_is_kept(archive, get, waits, start):
    begin = [Fault("cut", start)] if start else []
    with pytest.raises(Unreachable, match=r"only \d+ bytes came in"):
        get(*begin, Fault("drip", value=(1, 0.02), always=True), patience={"tries": 3})
    kept = bytes_kept(get.target, get.asset)
    assert start < kept < start + 200
    assert get.target.with_name("file.nwb.part").read_bytes() == DATA[:kept]


def test_a_silent_server_is_left_after_the_read_timeout(archive, get, waits):
    began_s = time.monotonic()
    assert whole(get(Fault("silent", value=2.0)))
    assert time.monotonic() - began_s < 1.5
    assert waits == WAITS[:1]


def test_a_server_without_ranges_starts_from_zero(archive, get):
    assert whole(get(Fault("cut", 1000), Fault("no ranges")))
    assert [request.status for request in archive.asked()] == [200, 200]
    assert archive.sent() == 1000 + N


@pytest.mark.parametrize(
    "told", ["bytes 0-299999/300000", "bytes 1001-299999/300000", "bytes 1000-1999/300000", "nonsense", ""]
)
def test_a_wrong_content_range_starts_from_zero(archive, get, told):
    assert whole(get(Fault("cut", 1000), Fault("content range", value=told)))
    assert [request.range for request in archive.asked()] == [None, "bytes=1000-", None]


def test_a_content_range_of_another_length_is_wrong_content(archive, get):
    assert whole(get(Fault("cut", 1000), Fault("content range", value=f"bytes 1000-{N - 1}/{N + 1}")))
    assert [request.range for request in archive.asked()] == [None, "bytes=1000-", None]


def test_416_starts_from_zero(archive, get):
    assert whole(get(Fault("cut", 1000), Fault("status", value=(416, {}))))
    assert [request.range for request in archive.asked()] == [None, "bytes=1000-", None]


OLD = random.Random(1).randbytes(N)


@pytest.mark.parametrize(
    ("etags", "ranges", "sent"),
    [
        (True, [None, "bytes=1000-"], 1000 + N),  # If-Range: the server sends all of it
        (False, [None, "bytes=1000-", None], 1000 + (N - 1000) + N),  # nothing but the digest tells
    ],
)
def test_a_file_that_changes_between_two_requests(archive, tmp_path, waits, etags, ranges, sent):
    archive.etags = etags
    url, asset = archive.blob(DATA)
    archive.blobs[asset.asset_id] = OLD
    archive.faults[asset.asset_id] = [Fault("cut", 1000), Fault("content", value=DATA)]
    download(url, tmp_path / "file.nwb", asset, patience=Patience(wait=waits.append))
    assert whole(tmp_path / "file.nwb")
    assert [request.range for request in archive.asked()] == ranges
    assert archive.sent() == sent
    assert waits == WAITS[:1]


def test_another_tag_tells_when_if_range_does_not(archive, tmp_path, waits):
    url, asset = archive.blob(DATA)
    module._write_tag(tmp_path / "file.nwb", asset, '"of the old file"')
    (tmp_path / "file.nwb.part").write_bytes(OLD[:1000])
    archive.faults[asset.asset_id] = [Fault("no if-range")]
    download(url, tmp_path / "file.nwb", asset, patience=Patience(wait=waits.append))
    assert whole(tmp_path / "file.nwb")
    assert [request.range for request in archive.asked()] == ["bytes=1000-", None]
    assert waits == WAITS[:1]  # seen before the body, not by the digest


def _other(asset):
    return replace(asset, asset_id="0" * 8 + asset.asset_id[8:])


@pytest.mark.parametrize(
    ("part", "tag", "ranges"),
    [
        (DATA[:500], lambda asset: asset, ["bytes=500-"]),
        (DATA[:500], None, [None]),
        (DATA[:500], _other, [None]),
        (DATA[:500], lambda asset: replace(asset, sha256="0" * 64), [None]),
        (DATA[:500], "not json", [None]),
        (DATA[:500], "[]", [None]),
        (DATA, lambda asset: asset, []),
        (DATA + b"x", lambda asset: asset, [None]),
        (b"x" * 500, lambda asset: asset, ["bytes=500-", None]),  # a disk that lost power: the digest tells
        (b"x" * N, lambda asset: asset, [None]),
    ],
)
def test_a_part_belongs_to_one_asset(archive, tmp_path, part, tag, ranges):
    url, asset = archive.blob(DATA)
    target = tmp_path / "file.nwb"
    (tmp_path / "file.nwb.part").write_bytes(part)
    if callable(tag):
        module._write_tag(target, tag(asset), "")
    elif tag is not None:
        (tmp_path / "file.nwb.part.json").write_text(tag)
    assert bytes_kept(target, asset) == (len(part) if ranges != [None] or part == b"x" * N else 0)
    download(url, target, asset)
    assert whole(target)
    assert [request.range for request in archive.asked()] == ranges
    assert all("If-Range" not in request.headers for request in archive.asked())


def test_a_weak_tag_is_not_used(archive, get):
    assert whole(get(Fault("etag", value='W/"x"'), Fault("none")))
    get.target.unlink()
    url, asset = archive.blob(DATA)
    module._write_tag(get.target, asset, "")
    archive.faults[asset.asset_id] = [Fault("etag", value='W/"x"')]
    stop = threading.Event()
    with pytest.raises(Stopped):
        download(url, get.target, asset, stop=stop, progress=lambda *_: stop.set())
    assert json.loads(get.target.with_name("file.nwb.part.json").read_text())["entity_tag"] == ""


@pytest.mark.parametrize("name", ["file.nwb.part", "file.nwb"])
def test_links_are_not_followed(archive, tmp_path, name):
    url, asset = archive.blob(DATA)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / name).symlink_to(victim)
    if name.endswith(".part"):
        with pytest.raises(InputError, match="symbolic link"):
            download(url, tmp_path / "cache" / "file.nwb", asset)
    else:
        download(url, tmp_path / "cache" / "file.nwb", asset)
    assert victim.read_text() == "precious"


def test_the_token_goes_to_the_first_host_only(archive, get):
    assert whole(get(Fault("cut", 1000), token="secret-token"))
    told = [(request.path.startswith("/blobs"), request.headers.get("Authorization")) for request in archive.log]
    assert told == [(False, "token secret-token"), (True, None)] * 2


def test_stop_keeps_what_has_come(archive, get):
    stop = threading.Event()
    with pytest.raises(Stopped):
        get(Fault("drip", value=(1000, 0.001)), stop=stop, progress=lambda _, done, __: done >= 5000 and stop.set())
    kept = bytes_kept(get.target, get.asset)
    assert 5000 <= kept < N
    archive.log.clear()
    download(f"{archive.url}/assets/{get.asset.asset_id}/download/", get.target, get.asset)
    assert whole(get.target)
    assert archive.sent() == N - kept


def test_stop_ends_a_wait(archive, tmp_path):
    url, asset = archive.blob(DATA)
    archive.faults[asset.asset_id] = [Fault("status", value=(503, {"Retry-After": "60"}), always=True)]
    stop = threading.Event()
    threading.Timer(0.1, stop.set).start()
    began_s = time.monotonic()
    with pytest.raises(Stopped):
        download(url, tmp_path / "file.nwb", asset, stop=stop)
    assert time.monotonic() - began_s < 5.0


def test_two_at_once_fetch_it_once(archive, tmp_path):
    url, asset = archive.blob(DATA)
    archive.faults[asset.asset_id] = [Fault("drip", value=(10_000, 0.01), always=True)]
    faults = []

    def fetch():
        try:
            download(url, tmp_path / "file.nwb", asset)
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=fetch) for _ in range(4)]  # flock holds between open files, threads or not
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert whole(tmp_path / "file.nwb")
    assert archive.sent() == N


def test_a_part_that_is_taken_away_before_it_is_held_is_begun_anew(archive, tmp_path, monkeypatch):
    """Another process may finish, or give up, between our opening the file and our lock on it."""
    url, asset = archive.blob(DATA)
    part, take = tmp_path / "file.nwb.part", module.taken
    moved = []

    def late(handle):
        if not moved:
            moved.append(part.rename(tmp_path / "taken"))
        return take(handle)

    monkeypatch.setattr(module, "taken", late)
    download(url, tmp_path / "file.nwb", asset)
    assert (tmp_path / "taken").read_bytes() == b""
    assert (tmp_path / "file.nwb").read_bytes() == DATA


def test_a_full_disk_is_one_sentence(archive, get, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(InputError, match="the disk is full"):
        get()
    assert absent(get.target)


def test_an_empty_file(archive, get):
    assert get(data=b"").read_bytes() == b""


def test_digests_are_those_of_the_archive(tmp_path):
    path = tmp_path / "large"
    with open(path, "wb") as handle:
        handle.write(DATA)
        handle.truncate(64 * 2**20 + 1)
    found = digests_of(path)
    assert found["dandi-etag"] == DandiETag.from_file(path).as_str()
    assert found["dandi-etag"].endswith("-2")
    assert found["sha2-256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def _random_fault(random):
    at = random.choice([0, 1, 1000, N // 2, N - 1])
    pick = [
        Fault("cut", at),
        Fault("cut headers"),
        Fault("wrong bytes", at),
        Fault("shorter", 1 + at % 1000),
        Fault("longer", 1 + at),
        Fault("longer unannounced", 1),
        Fault("lying length", random.choice([-1, 1])),
        Fault("no ranges"),
        Fault("no length"),
        Fault("content range", value="bytes 0-1/2"),
        Fault("status", value=(random.choice([416, 429, 500, 503]), {})),
        Fault("loop"),
        Fault("etag", value='"other"'),
        Fault("redirect", value="http://127.0.0.1:9/"),
    ]
    return random.choice(pick)


@pytest.mark.parametrize("seed", range(30))
def test_whatever_happens_the_target_is_the_file_or_nothing(archive, tmp_path, seed):
    choose = random.Random(seed)
    archive.etags = choose.random() < 0.7
    url, asset = archive.blob(DATA)
    target = tmp_path / "file.nwb"
    faults = [_random_fault(choose) for _ in range(choose.randrange(1, 7))]
    archive.faults[asset.asset_id] = faults
    for _ in range(20):
        try:
            download(url, target, asset, patience=Patience(wait=lambda _: None, tries=3))
        except InputError:
            assert not target.exists()
        else:
            break
    assert whole(target)
