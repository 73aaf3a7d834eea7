"""One file over HTTP: resumed by ranges, verified over its whole length, and only then given its name.

Bytes are gathered in ``<name>.part`` beside the target. ``<name>.part.json`` says which asset they belong to and which
entity tag the server gave, so that a cut, Ctrl-C or kill -9 costs only what had not arrived, and bytes of another asset
are never continued. One process at a time holds a ``.part`` (``flock``); a second one waits and takes what the first
finished. Every wait is bounded (`Patience`), and whatever a server answers ends in the file or in an `InputError`.
"""

from __future__ import annotations

import email.utils
import errno
import fcntl
import hashlib
import io
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter

from bci_adapt.archive.lock import ETAG, PART, PART_RECORD, SHA256, Asset
from bci_adapt.errors import InputError
from bci_adapt.ground.storage import sync_folder, write_text

Progress = Callable[[str, int, int], None]
"""Called from the threads that fetch with an asset's path, its bytes so far, and its size."""
CHUNK_BYTES = 2**20
MAX_ANSWER_BYTES = 256 * 2**20
"""Longest answer of an archive's API that is read."""
MAX_REDIRECTS = 10
_AGAIN = {408, 425, 429, 500, 502, 503, 504}


class Unreachable(InputError):
    """The archive gave no answer: no route, no name, refused, or still failing after every try."""


class Stopped(Exception):
    """The caller set the stop event; what has arrived is kept."""


@dataclass(frozen=True)
class Patience:
    """How long a server is borne with.

    There are at most `tries` requests for one thing, the second after `first_wait_s`, each later one after twice the
    wait before it, or after what ``Retry-After`` asks for; no wait is longer than `longest_wait_s`. A request that
    brought `worth_bytes` starts the count anew, so a file needs at most ``tries * (1 + size / worth_bytes)`` of them.
    A connection is given up when nothing comes for `read_s`, or less than `stall_bytes` in `stall_s`.
    """

    tries: int = 6
    first_wait_s: float = 1.0
    longest_wait_s: float = 60.0
    connect_s: float = 10.0
    read_s: float = 30.0
    stall_s: float = 60.0
    stall_bytes: int = 2**16
    worth_bytes: int = 8 * 2**20
    wait: Callable[[float], object] | None = None
    """Replaces the waiting itself (tests); without it, a wait ends early when the caller stops."""


PATIENCE = Patience()


class _Again(Exception):
    """This request failed in a way that another one may not."""

    def __init__(self, reason: str, *, from_zero: bool = False, retry_after: str | None = None) -> None:
        super().__init__(reason)
        self.reason, self.from_zero, self.retry_after = reason, from_zero, retry_after


class _WrongContent(Exception):
    """What came, or was announced, is not the recorded file."""


class _Tries:
    """Counts the requests for one thing and waits between them."""

    def __init__(self, what: str, patience: Patience, stop: threading.Event) -> None:
        self.what, self.patience, self.stop, self.made = what, patience, stop, 0

    def again(self, reason: str, retry_after: str | None = None) -> None:
        """Wait before the next request; `Unreachable` with `reason` when there have been enough, `Stopped`."""
        self.made += 1
        if self.made >= self.patience.tries:
            raise Unreachable(f"{self.what}: {reason}; given up after {self.made} tries")
        wait_s = retry_after_s(retry_after, self.patience.longest_wait_s)
        if wait_s is None:
            wait_s = min(self.patience.first_wait_s * 2.0 ** (self.made - 1), self.patience.longest_wait_s)
        (self.patience.wait or self.stop.wait)(wait_s)
        if self.stop.is_set():
            raise Stopped


def retry_after_s(value: str | None, longest_s: float) -> float | None:
    """Seconds that a ``Retry-After`` header asks for (a number or an HTTP date), at most `longest_s`; None if neither.

    >>> retry_after_s("7", 60.0), retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT", 60.0), retry_after_s("soon", 60.0)
    (7.0, 0.0, None)
    """
    if value is None:
        return None
    if re.fullmatch(r"[0-9]+", value.strip(), re.ASCII):
        return longest_s if len(value.strip()) > 9 else min(float(value), longest_s)
    try:
        moment = email.utils.parsedate_to_datetime(value)
        return min(max(moment.timestamp() - time.time(), 0.0), longest_s)
    except (ValueError, TypeError, OverflowError):
        return None


def digests_of(path: Path, progress: Callable[[int], None] | None = None) -> dict[str, str]:
    """``sha2-256`` and ``dandi-etag`` of a whole file, read once; `progress` gets the bytes read so far."""
    from dandischema.digests.dandietag import DandiETag

    sha256, done = hashlib.sha256(), 0
    with open(path, "rb") as handle:
        etag = DandiETag(os.fstat(handle.fileno()).st_size)
        for part in etag.get_parts():
            block = handle.read(part.size)
            sha256.update(block)
            etag.update(block)
            done += len(block)
            if progress is not None:
                progress(done)
    return {SHA256: sha256.hexdigest(), ETAG: etag.as_str()}


def mismatch(path: Path, asset: Asset, progress: Progress | None = None) -> str | None:
    """How a file differs from what is recorded of `asset`, with both sizes or digests; None when it does not."""
    size = path.stat().st_size
    if size != asset.size:
        return f"{size:,} bytes where {asset.size:,} are recorded"
    found = digests_of(path, (lambda done: progress(asset.path, done, asset.size)) if progress else None)
    for name, recorded in asset.digests.items():
        if found[name] != recorded:
            return f"{name} {found[name]} where {recorded} is recorded"
    return None


def part_of(target: Path) -> Path:
    """Where the bytes of `target` are gathered."""
    return target.with_name(target.name + PART)


def part_record_of(target: Path) -> Path:
    """What says which asset the bytes in `part_of` belong to."""
    return target.with_name(target.name + PART_RECORD)


def bytes_kept(target: Path, asset: Asset) -> int:
    """How many bytes of `asset` an earlier, interrupted download left beside `target`; they need not come again."""
    part = part_of(target)
    try:
        size = part.stat().st_size
    except OSError:
        return 0
    return size if size <= asset.size and _tag_of(target, asset) is not None else 0


def _tag_of(target: Path, asset: Asset) -> str | None:
    """The entity tag the kept bytes came with ("" when there was none); None when they are not bytes of `asset`."""
    try:
        record = json.loads(part_record_of(target).read_text(encoding="utf-8"))
        tag = record["entity_tag"]
        return tag if record["asset"] == asset.to_dict() and isinstance(tag, str) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _write_tag(target: Path, asset: Asset, tag: str) -> None:
    write_text(part_record_of(target), json.dumps({"asset": asset.to_dict(), "entity_tag": tag}, indent=1) + "\n")


def download(
    url: str,
    target: Path,
    asset: Asset,
    *,
    token: str = "",
    verified: Callable[[], None] | None = None,
    patience: Patience | None = None,
    stop: threading.Event | None = None,
    progress: Progress | None = None,
) -> None:
    """Fetch `asset` from `url` into `target`: whole and with its recorded size and digests, or not at all.

    `verified` is called when the bytes have passed, before they get their name; a record that it writes never
    describes unchecked bytes. `token` goes to the host of `url` only. Bytes that do not match are fetched once more
    from zero. `InputError` names the asset: not there, not allowed, not the recorded bytes (with both digests), an
    address that is not http, no room on the disk; `Unreachable` when the tries are used up. `Stopped` once `stop` is
    set. All that has arrived and may be good is kept for the next call.
    """
    patience, stop = patience or PATIENCE, stop or threading.Event()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _owned(part_of(target), patience, stop) as part:
            finished = False
            try:
                if not (target.is_file() and mismatch(target, asset) is None):  # else another process has finished it
                    _gather(part, url, target, asset, token, patience, stop, progress)
                    if verified is not None:
                        verified()
                    os.replace(part_of(target), target)
                    sync_folder(target.parent)
                finished = True
            finally:
                if finished or not bytes_kept(target, asset):
                    part_of(target).unlink(missing_ok=True)
                    part_record_of(target).unlink(missing_ok=True)
    except OSError as error:
        what = "is a symbolic link: not followed" if error.errno == errno.ELOOP else os.strerror(error.errno or 0)
        raise InputError(f"{error.filename or target}: cannot be written ({what})") from error


@contextmanager
def _owned(part: Path, patience: Patience, stop: threading.Event) -> Iterator[BinaryIO]:
    """Open `part` for appending with no other process in it; another one's file is waited for."""
    while True:
        handle = os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), "r+b")
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if stop.wait(min(0.2, patience.first_wait_s)):
                    raise Stopped from None
                continue
            # While we waited the other process may have renamed the file we hold: then it is not the .part any more.
            if part.exists() and os.path.samestat(os.fstat(handle.fileno()), part.stat(follow_symlinks=False)):
                yield handle
                return
        finally:
            handle.close()


def _gather(
    part: BinaryIO,
    url: str,
    target: Path,
    asset: Asset,
    token: str,
    patience: Patience,
    stop: threading.Event,
    progress: Progress | None,
) -> None:
    """Bring all of `asset` into `part`, verified and on the disk."""
    if not bytes_kept(target, asset):
        part.truncate(0)
        _write_tag(target, asset, "")
    wrong_before = ""
    while True:
        part.seek(0, os.SEEK_END)
        try:
            _receive(part, url, target, asset, token, patience, stop, progress)
            os.fsync(part.fileno())
            if (wrong := mismatch(part_of(target), asset)) is None:
                return
        except _WrongContent as error:
            wrong = str(error)
        part.truncate(0)
        if wrong_before:
            raise InputError(
                f"{asset.path}: what {urlsplit(url).netloc} sends is not the recorded file, twice: {wrong}; "
                "nothing was kept, try again later or report it to the archive"
            )
        wrong_before = wrong


def _receive(
    part: BinaryIO,
    url: str,
    target: Path,
    asset: Asset,
    token: str,
    patience: Patience,
    stop: threading.Event,
    progress: Progress | None,
) -> None:
    """Append to `part` until it has the recorded size, over as many requests as `patience` allows."""
    tries = _Tries(asset.path, patience, stop)
    with requests.Session() as session:
        session.max_redirects = MAX_REDIRECTS
        session.mount("http://", _Transport())
        session.mount("https://", _Transport())
        if token:  # requests takes it away when a redirect leads to another host
            session.headers["Authorization"] = f"token {token}"
        while (start := part.tell()) < asset.size:
            tag = _tag_of(target, asset) or ""
            headers = {"Accept-Encoding": "identity"}
            if start:
                headers |= {"Range": f"bytes={start}-"} | ({"If-Range": tag} if tag else {})
            try:
                with _request(session, url, headers, asset.path, patience) as response:
                    _check_answer(response, part, target, asset, tag)
                    for chunk in _chunks(response, patience, stop, decode=False):
                        if part.tell() + len(chunk) > asset.size:
                            raise _WrongContent(f"more than the {asset.size:,} bytes that are recorded")
                        part.write(chunk)
                        part.flush()
                        if progress is not None:
                            progress(asset.path, part.tell(), asset.size)
                if part.tell() < asset.size:
                    raise _Again(f"the connection ended at {part.tell():,} of {asset.size:,} bytes")
            except _Again as fault:
                if fault.from_zero:
                    part.truncate(0)
                    part.seek(0)
                elif part.tell() - start >= patience.worth_bytes:
                    tries.made = 0
                tries.again(fault.reason, fault.retry_after)


def _check_answer(response: requests.Response, part: BinaryIO, target: Path, asset: Asset, tag: str) -> None:
    """Make `part` stand where the body of `response` begins, or say what is wrong with it before any byte is taken."""
    start, status = part.tell(), response.status_code
    if status in _AGAIN:
        raise _Again(f"answered with status {status}", retry_after=response.headers.get("Retry-After"))
    if status == 416 and start:
        raise _Again(f"has nothing from byte {start:,} on (status 416)", from_zero=True)
    if status in (404, 410):
        raise InputError(
            f"{asset.path}: asset {asset.asset_id} of {asset.dandiset}/{asset.version} is no longer in the archive "
            f"(status {status}); fetch with --update to move to what is published now"
        )
    if status in (401, 403):
        raise InputError(
            f"{asset.path}: the archive does not allow it (status {status}); an embargoed dandiset needs its token"
        )
    if status not in (200, 206):
        raise InputError(f"{asset.path}: the archive answered with status {status} where the file was expected")
    new_tag = response.headers.get("ETag", "")
    new_tag = "" if new_tag.startswith("W/") else new_tag  # a weak one does not promise the same bytes
    if status == 206:
        found = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", response.headers.get("Content-Range", ""))
        first, last, total = found.groups() if found else ("", "", "")
        if not start or not found or int(first) != start or int(last) != asset.size - 1:
            raise _Again("answered with another range than was asked for", from_zero=True)
        if total != "*" and int(total) != asset.size:
            raise _WrongContent(f"{int(total):,} bytes where {asset.size:,} are recorded")
        if tag and new_tag and new_tag != tag:
            raise _Again("the file changed between two requests", from_zero=True)
    elif start:  # no ranges here, or If-Range found another file: the body is all of it
        part.truncate(0)
        part.seek(0)
    length = response.headers.get("Content-Length", "")
    if length.isascii() and length.isdigit() and length != str(asset.size - part.tell()):
        raise _WrongContent(f"{length} bytes announced where {asset.size - part.tell()} are missing")
    if new_tag != tag:
        _write_tag(target, asset, new_tag)


@contextmanager
def _request(
    session: requests.Session, url: str, headers: Mapping[str, str], what: str, patience: Patience
) -> Iterator[requests.Response]:
    """The answer to a GET, its body unread."""
    with redirects_understood(what):
        try:
            timeout = (patience.connect_s, patience.read_s)
            response = session.get(url, headers=dict(headers), stream=True, timeout=timeout)
        except requests.exceptions.SSLError as error:
            raise InputError(f"{what}: no secure connection to {urlsplit(url).netloc} ({reason_of(error)})") from error
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
            raise _Again(reason_of(error)) from error
    with response:
        yield response


@contextmanager
def redirects_understood(what: str) -> Iterator[None]:
    """Turn a redirect that cannot be followed into an `InputError` about `what`."""
    try:
        yield
    except InputError:
        raise
    except requests.TooManyRedirects as error:
        raise InputError(f"{what}: the archive redirects in a circle ({MAX_REDIRECTS} redirects followed)") from error
    except (
        requests.exceptions.InvalidSchema,
        requests.exceptions.MissingSchema,
        requests.exceptions.InvalidURL,
        ValueError,  # of the standard library, for what it cannot split
    ) as error:
        raise InputError(f"{what}: the archive redirects to an address that is not http or https") from error
    except requests.RequestException as error:
        raise InputError(f"{what}: the archive cannot be used ({reason_of(error)})") from error


class _Transport(HTTPAdapter):
    """Throws away what comes with a redirect, which `requests` would read to its end, however long."""

    def build_response(self, req: requests.PreparedRequest, resp: Any) -> requests.Response:
        response = super().build_response(req, resp)
        if response.is_redirect:
            response.close()
            response.raw = io.BytesIO()
        return response


def _chunks(response: requests.Response, patience: Patience, stop: threading.Event, decode: bool) -> Iterator[bytes]:
    """The body as it arrives; `_Again` when it breaks off or only trickles, `Stopped`."""
    since_s, got = time.monotonic(), 0
    while True:
        if stop.is_set():
            raise Stopped
        try:
            chunk = response.raw.read1(CHUNK_BYTES, decode_content=decode)
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise _Again(reason_of(error)) from error
        if not chunk:
            return
        yield chunk
        got += len(chunk)
        if (now_s := time.monotonic()) - since_s >= patience.stall_s:
            if got < patience.stall_bytes:
                raise _Again(f"only {got:,} bytes came in {now_s - since_s:.0f} s")
            since_s, got = now_s, 0


def reason_of(error: BaseException) -> str:
    """Why a connection failed, in a few words; addresses and signatures in them are left out."""
    seen: list[BaseException] = []
    inner: Any = error
    while isinstance(inner, BaseException) and inner not in seen:
        seen.append(inner)
        reason = getattr(inner, "reason", None) or (inner.args[0] if inner.args else None)
        inner = inner.__cause__ or (reason if isinstance(reason, BaseException) else None) or inner.__context__
    for each in reversed(seen):
        if isinstance(each, urllib3.exceptions.NameResolutionError):
            return "its name cannot be resolved"
        if isinstance(each, TimeoutError | urllib3.exceptions.TimeoutError):
            return "no answer in time"
        if isinstance(each, OSError) and each.errno and not isinstance(each, requests.RequestException):
            return os.strerror(each.errno).lower() if each.errno > 0 else "its name cannot be resolved"
    return "the connection was cut"


class PatientAdapter(HTTPAdapter):
    """Transport for an archive's API: bounded tries, waits and answers, and no token for any other host.

    The `dandi` client waits for minutes without a network and as long as a server asks; here a host that cannot be
    reached at all is `Unreachable` at once, and everything else after `Patience`.
    """

    def __init__(self, api: str, patience: Patience | None = None, stop: threading.Event | None = None) -> None:
        super().__init__()
        self.origin = urlsplit(api)[:2]
        self.patience, self.stop = patience or PATIENCE, stop or threading.Event()

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: Any = True,
        cert: Any = None,
        proxies: Any = None,
    ) -> requests.Response:
        """Send `request` as often as it takes, and read the answer whole, whatever `stream` and `timeout` say."""
        address = urlsplit(request.url or "")
        if address[:2] != self.origin:
            request.headers.pop("Authorization", None)
        what = f"{address.scheme}://{str(address.netloc).rpartition('@')[2]}"
        timeout = (self.patience.connect_s, self.patience.read_s)
        tries = _Tries(what, self.patience, self.stop)
        while True:
            try:
                response = super().send(request, True, timeout, verify, cert, proxies)
                if response.status_code in _AGAIN:
                    response.close()
                    retry_after = response.headers.get("Retry-After")
                    raise _Again(f"answered with status {response.status_code}", retry_after=retry_after)
                response.raw = self._whole(response, what)
                return response
            except requests.exceptions.SSLError as error:
                raise InputError(f"{what}: no secure connection ({reason_of(error)})") from error
            except (requests.ConnectionError, requests.Timeout) as error:
                if _never_connected(error):
                    raise Unreachable(f"{what}: cannot be reached ({reason_of(error)})") from error
                tries.again(reason_of(error))
            except _Again as fault:
                tries.again(fault.reason, fault.retry_after)

    def _whole(self, response: requests.Response, what: str) -> io.BytesIO:
        body = io.BytesIO()
        with response:
            for chunk in _chunks(response, self.patience, self.stop, decode=True):
                if body.tell() + len(chunk) > MAX_ANSWER_BYTES:
                    raise InputError(f"{what}: answers with more than {MAX_ANSWER_BYTES >> 20} MiB: not read")
                body.write(chunk)
        body.seek(0)
        return body


def _never_connected(error: requests.RequestException) -> bool:
    reason = getattr(error.args[0], "reason", None) if error.args else None
    connecting = (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError)
    return isinstance(error, requests.ConnectTimeout | requests.exceptions.ProxyError) or isinstance(reason, connecting)
