"""One file over HTTP: resumed by ranges, verified over its whole length, and only then given its name.

Bytes are gathered in ``<name>.part`` beside the target. ``<name>.part.json`` says which asset they belong to and which
entity tag the server gave, so that a cut, Ctrl-C or kill -9 costs only what had not arrived, and bytes of another asset
are never continued. One process at a time holds a ``.part``; a second one waits and takes what the first finished.
Every wait is bounded (`Patience`), and whatever a server answers ends in the file or in an `InputError`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import requests

from bci_adapt.archive import http
from bci_adapt.archive.http import AGAIN, MAX_REDIRECTS, Again, Patience, Stopped, Transport, Tries, chunks, request
from bci_adapt.archive.lock import ETAG, PART, PART_RECORD, SHA256, Asset, asset_from
from bci_adapt.errors import InputError
from bci_adapt.ground.locks import taken
from bci_adapt.ground.storage import NOT_THROUGH_LINKS, sync_folder, write_text

Progress = Callable[[str, int, int], None]
"""Called from the threads that fetch with an asset's path, its bytes so far, and its size."""


class _WrongContent(Exception):
    """What came, or was announced, is not the recorded file."""


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


def compared(path: Path, asset: Asset, progress: Progress | None = None) -> tuple[str | None, str]:
    """How a file differs from what is recorded of `asset`, with both sizes or digests, None when it does not; and the
    ``sha2-256`` of the file, "" where its size told already.
    """
    size = path.stat().st_size
    if size != asset.size:
        return f"{size:,} bytes where {asset.size:,} are recorded", ""
    found = digests_of(path, (lambda done: progress(asset.path, done, asset.size)) if progress else None)
    for name, recorded in asset.digests.items():
        if found[name] != recorded:
            return f"{name} {found[name]} where {recorded} is recorded", found[SHA256]
    return None, found[SHA256]


def mismatch(path: Path, asset: Asset) -> str | None:
    """What `compared` says first."""
    return compared(path, asset)[0]


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
        tag, of = record["entity_tag"], asset_from(record["asset"])
        # A digest that the archive has computed since makes it no other asset.
        same = (of.key, of.asset_id) == (asset.key, asset.asset_id) and of.same_bytes(asset)
        return tag if same and isinstance(tag, str) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # InputError is a ValueError
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
    patience, stop = patience or http.PATIENCE, stop or threading.Event()
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
        handle = os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT | NOT_THROUGH_LINKS, 0o666), "r+b")
        try:
            if not taken(handle):
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
    tries = Tries(asset.path, patience, stop)
    with requests.Session() as session:
        session.max_redirects = MAX_REDIRECTS
        session.mount("http://", Transport())
        session.mount("https://", Transport())
        if token:  # requests takes it away when a redirect leads to another host
            session.headers["Authorization"] = f"token {token}"
        while (start := part.tell()) < asset.size:
            tag = _tag_of(target, asset) or ""
            headers = {"Accept-Encoding": "identity"}
            if start:
                headers |= {"Range": f"bytes={start}-"} | ({"If-Range": tag} if tag else {})
            try:
                with request(session, url, headers, asset.path, patience) as response:
                    _check_answer(response, part, target, asset, tag)
                    for chunk in chunks(response, patience, stop, decode=False):
                        if part.tell() + len(chunk) > asset.size:
                            raise _WrongContent(f"more than the {asset.size:,} bytes that are recorded")
                        part.write(chunk)
                        part.flush()
                        if progress is not None:
                            progress(asset.path, part.tell(), asset.size)
                if part.tell() < asset.size:
                    raise Again(f"the connection ended at {part.tell():,} of {asset.size:,} bytes")
            except Again as fault:
                if fault.from_zero:
                    part.truncate(0)
                    part.seek(0)
                elif part.tell() - start >= patience.worth_bytes:
                    tries.made = 0
                tries.again(fault.reason, fault.retry_after)


def _check_answer(response: requests.Response, part: BinaryIO, target: Path, asset: Asset, tag: str) -> None:
    """Make `part` stand where the body of `response` begins, or say what is wrong with it before any byte is taken."""
    start, status = part.tell(), response.status_code
    if status in AGAIN:
        raise Again(f"answered with status {status}", retry_after=response.headers.get("Retry-After"))
    if status == 416 and start:
        raise Again(f"has nothing from byte {start:,} on (status 416)", from_zero=True)
    if status in (404, 410):
        raise InputError(
            f"{asset.path}: asset {asset.asset_id} of {asset.dandiset}/{asset.version} is no longer in the archive "
            f"(status {status}); fetch with --update to move to what is published now"
        )
    if status in (401, 403):
        raise InputError(f"{asset.path}: {_not_allowed(response)}")
    if status not in (200, 206):
        raise InputError(f"{asset.path}: the archive answered with status {status} where the file was expected")
    new_tag = response.headers.get("ETag", "")
    new_tag = "" if new_tag.startswith("W/") else new_tag  # a weak one does not promise the same bytes
    if status == 206:
        found = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", response.headers.get("Content-Range", ""))
        first, last, total = found.groups() if found else ("", "", "")
        if not start or not found or int(first) != start or int(last) != asset.size - 1:
            raise Again("answered with another range than was asked for", from_zero=True)
        if total != "*" and int(total) != asset.size:
            raise _WrongContent(f"{int(total):,} bytes where {asset.size:,} are recorded")
        if tag and new_tag and new_tag != tag:
            raise Again("the file changed between two requests", from_zero=True)
    elif start:  # no ranges here, or If-Range found another file: the body is all of it
        part.truncate(0)
        part.seek(0)
    length = response.headers.get("Content-Length", "")
    if length.isascii() and length.isdigit() and length != str(asset.size - part.tell()):
        raise _WrongContent(f"{length} bytes announced where {asset.size - part.tell()} are missing")
    if new_tag != tag:
        _write_tag(target, asset, new_tag)


def _not_allowed(response: requests.Response) -> str:
    """Whose "not allowed" it is, and what helps: the archive knows tokens, its storage only signed addresses."""
    who, status = urlsplit(response.url).netloc, response.status_code
    if response.history:
        return (
            f"the storage at {who} does not allow it (status {status}), though the archive sent us there: a token does "
            "not help; check this machine's clock and proxy, and try again"
        )
    return f"the archive at {who} does not allow it (status {status}); an embargoed dandiset needs its token"
