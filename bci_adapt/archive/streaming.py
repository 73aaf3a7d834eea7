"""Files that are read where they lie: ranges of bytes over HTTP, a few at a time, and kept for as long as the file is
open. Nothing of it is stored, and as nobody sees all of its bytes, nothing of it is verified.
"""

from __future__ import annotations

import io
import re
import threading
from collections import OrderedDict
from typing import Any
from urllib.parse import unquote, urlsplit

import requests

from bci_adapt.archive import http
from bci_adapt.archive.addresses import asset_id_of, is_address, is_page, parse_page, shown
from bci_adapt.archive.api import Archive
from bci_adapt.archive.http import AGAIN, MAX_REDIRECTS, Again, Patience, Transport, Tries, chunks, request
from bci_adapt.archive.selection import digest_text
from bci_adapt.data.remote import Remote
from bci_adapt.errors import InputError

BLOCK_BYTES = 2**16
MOST_BLOCKS = 64
"""Most that is asked for ahead of what is read in one go."""
KEPT_BLOCKS = 1024


class RangeFile(io.RawIOBase):
    """A file on a web server, read by ranges; seekable, not writable.

    Blocks of `BLOCK_BYTES` are kept, the latest `KEPT_BLOCKS` of them. Who reads on where the last range ended is given
    twice as much each time. `InputError` when the server sends no ranges, or another file than before.
    """

    def __init__(self, address: str, token: str = "", patience: Patience | None = None) -> None:
        super().__init__()
        self.address, self._where, self.name = address, address, shown(address)
        self._patience, self._stop = patience or http.PATIENCE, threading.Event()
        self._session = requests.Session()
        self._session.max_redirects = MAX_REDIRECTS
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, Transport())
        self._headers = {"Authorization": f"token {token}"} if token else {}
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._at, self._next, self._ahead = 0, 0, 1
        self.size, self._tag = -1, ""
        self._fetch(0, 1)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        end = min(self._at + len(view), self.size)
        done = 0
        while self._at < end:
            number, offset = divmod(self._at, BLOCK_BYTES)
            piece = self._block(number, -(-end // BLOCK_BYTES))[offset : offset + end - self._at]
            view[done : done + len(piece)] = piece
            done += len(piece)
            self._at += len(piece)
        return done

    def close(self) -> None:
        self._session.close()
        super().close()

    def _block(self, number: int, until: int) -> bytes:
        if number not in self._blocks:
            self._ahead = min(2 * self._ahead, MOST_BLOCKS) if number == self._next else 1
            count = 1
            while number + count < max(until, number + self._ahead) and count < MOST_BLOCKS:
                if number + count in self._blocks:
                    break
                count += 1
            self._fetch(number, count)
        self._blocks.move_to_end(number)
        return self._blocks[number]

    def _fetch(self, number: int, count: int) -> None:
        first = number * BLOCK_BYTES
        last = first + count * BLOCK_BYTES - 1
        data = self._range(first, last if self.size < 0 else min(last, self.size - 1))
        for start in range(0, len(data), BLOCK_BYTES):
            self._blocks[number + start // BLOCK_BYTES] = data[start : start + BLOCK_BYTES]
        while len(self._blocks) > max(KEPT_BLOCKS, MOST_BLOCKS):
            self._blocks.popitem(last=False)
        self._next = number + count

    def _range(self, first: int, last: int) -> bytes:
        tries = Tries(self.name, self._patience, self._stop)
        while True:
            headers = {"Range": f"bytes={first}-{last}", "Accept-Encoding": "identity"}
            headers |= self._headers if self._where == self.address else {}
            try:
                with request(self._session, self._where, headers, self.name, self._patience) as response:
                    if response.status_code in (401, 403) and self._where != self.address:
                        self._where = self.address  # a signed address holds for an hour
                        raise Again(f"answered with status {response.status_code}")
                    length = self._check(response, first, last)
                    data = b"".join(chunks(response, self._patience, self._stop, decode=False))
                    if len(data) != length:
                        raise Again(f"the connection ended at {len(data):,} of {length:,} bytes")
                    self._where = response.url
                    return data
            except Again as fault:
                tries.again(fault.reason, fault.retry_after)

    def _check(self, response: requests.Response, first: int, last: int) -> int:
        """How many bytes will come; `InputError` for an answer that is not this range of this file."""
        status = response.status_code
        if status in AGAIN:
            raise Again(f"answered with status {status}", retry_after=response.headers.get("Retry-After"))
        if status == 200:
            raise InputError(f"{self.name}: the server sends whole files only, no ranges; fetch it instead")
        if status != 206:
            raise InputError(f"{self.name}: the server answered with status {status} where a file was expected")
        found = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", response.headers.get("Content-Range", ""))
        if not found or int(found[1]) != first or not first <= int(found[2]) <= last:
            raise InputError(f"{self.name}: the server sent another range than was asked for; fetch it instead")
        size, tag = int(found[3]), response.headers.get("ETag", "")
        if self.size >= 0 and (size, tag) != (self.size, self._tag):
            raise InputError(f"{self.name}: became another file while it was read; read it again")
        self.size, self._tag = size, tag
        return int(found[2]) - first + 1


def remote(address: str, patience: Patience | None = None) -> tuple[Remote, dict[str, str]]:
    """A recording at an address, to be read by ranges, and its provenance as far as the archive tells it.

    The address is that of any NWB file on a web server, of an asset of the archive in use, of its page, or
    ``000688/0.250122.1735/sub-C/…nwb``. `InputError` when it is none of these, or of more than one file.
    """
    if is_page(address) or not is_address(address):
        return _of_dandiset(address, patience)
    name = unquote(urlsplit(address).path.rpartition("/")[2]) or "recording.nwb"
    if not (asset_id := asset_id_of(address)):
        said = f"read over the network from {shown(address)}: not verified, no digest of it is known"
        return Remote(name, said, lambda: RangeFile(address, patience=patience)), {}
    archive = Archive(patience, threading.Event())
    row = archive.asset(asset_id)
    told = ", ".join(f"{key.removeprefix('dandi:')} {value}" for key, value in (row.digests or {}).items())
    return _asset(archive, row.path, asset_id, told, patience), {}


def _of_dandiset(text: str, patience: Patience | None) -> tuple[Remote, dict[str, str]]:
    from bci_adapt.archive.sources.dandi import Dandi

    number, version, paths = parse_page(text)
    source = Dandi(number, version, paths, patience=patience)
    chosen = source.select()
    chosen.refuse()
    if len(chosen.files) != 1:
        some = ", ".join(asset.path for asset in [*chosen.files][:3])
        raise InputError(
            f"{shown(text)}: means {len(chosen.files)} files ({some}, …) where one is read; name one of them"
        )
    [asset] = chosen.files
    about = {"dandiset": number, "dandiset_version": chosen.version, "asset_path": asset.path}
    about["licence"] = chosen.about.licence
    told = digest_text(asset).replace(":", " ", 1)
    return _asset(Archive(patience, threading.Event()), asset.path, asset.asset_id, told, patience), about


def _asset(archive: Archive, path: str, asset_id: str, told: str, patience: Patience | None) -> Remote:
    address = archive.download_address(asset_id)
    said = f"read over the network: asset {asset_id}, {told or 'no digest'} as published, not verified"
    name = path.rpartition("/")[2]
    return Remote(name, said, lambda: RangeFile(address, archive.token, patience))
