"""A stand-in for the DANDI archive on loopback: the API that the `dandi` client speaks, and blobs behind a redirect.

It serves what it is given and misbehaves on demand. `faults[asset_id]` is a list of `Fault`, one for each request of
that asset's bytes, the last one for ever when `Fault.always`; `answers` replaces what the API says at an address.
Everything asked is in `log`, with the bytes that were sent.
"""

from __future__ import annotations

import hashlib
import io
import json
import threading
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import h5py
from dandischema.digests.dandietag import DandiETag

from bci_adapt.archive.lock import Asset

DANDISET = "000688"
OLD, NEW = "0.240101.0001", "0.250122.1735"
WHEN = "2025-01-22T17:35:00.000000Z"


@dataclass
class Fault:
    """One way to answer a request for the bytes of an asset; offsets count from the start of the file."""

    kind: str
    at: int = 0
    value: object = None
    always: bool = False


@dataclass
class Request:
    """One request: where, with which headers, what was answered and how many bytes of the file were sent."""

    method: str
    path: str
    query: dict
    headers: dict
    status: int = 0
    sent: int = 0

    @property
    def range(self):
        return self.headers.get("Range")


@dataclass
class Archive:
    """Dandisets as {number: {version: [rows of the listing]}}, and the bytes of every asset."""

    dandisets: dict = field(default_factory=dict)
    published: dict = field(default_factory=dict)
    blobs: dict = field(default_factory=dict)
    digests: dict = field(default_factory=dict)
    files: dict = field(default_factory=dict)  # paths of files too large to be held: {asset_id: path}
    faults: dict = field(default_factory=dict)
    answers: dict = field(default_factory=dict)
    log: list = field(default_factory=list)
    licence: object = field(default_factory=lambda: ["spdx:CC-BY-4.0"])
    about: dict = field(default_factory=dict)  # further metadata of every version, such as contributor
    page_size: int = 3  # the most rows that a page of a listing has
    etags: bool = True
    url: str = ""
    blob_url: str = ""
    close: object = None  # called, nobody listens at either port any more

    def add(self, path, content=b"", version=NEW, dandiset=DANDISET, published=True, digests=None, **row):
        """Put an asset into a version; returns it as the project sees it."""
        asset_id = row.pop("asset_id", None) or str(uuid.uuid4())
        usual = {"zarr": None, "path": path, "size": len(content), "created": WHEN, "modified": WHEN}
        row = {"asset_id": asset_id, "blob": asset_id} | usual | row
        self.dandisets.setdefault(dandiset, {}).setdefault(version, []).append(row)
        if published and version != "draft":
            self.published[dandiset] = max(version, self.published.get(dandiset, ""))
        self.blobs[asset_id] = content
        found = {"dandi:sha2-256": hashlib.sha256(content).hexdigest(), "dandi:dandi-etag": etag_of(content)}
        self.digests[asset_id] = found if digests is None else digests
        return row

    def blob(self, content, digests=("sha2-256", "dandi-etag")):
        """Put bytes alone into the archive; returns (address, Asset)."""
        row = self.add("sub-C/sub-C_ses-1.nwb", content, version="draft")
        named = {"sha2-256": hashlib.sha256(content).hexdigest(), "dandi-etag": etag_of(content)}
        sha256, etag = (named[name] if name in digests else "" for name in named)
        asset = Asset(DANDISET, "draft", row["path"], row["asset_id"], len(content), sha256, etag)
        return f"{self.url}/assets/{asset.asset_id}/download/", asset

    def asked(self, part="/blobs/"):
        """The requests whose address holds `part`."""
        return [each for each in self.log if part in each.path]

    def sent(self):
        """Bytes of files sent so far."""
        return sum(each.sent for each in self.log)

    def fault(self, asset_id, where):
        """The fault of the next request of an asset's bytes, when it is one for `where` (redirect or blob)."""
        queue = self.faults.get(asset_id, [])
        if not queue or (queue[0].kind in REDIRECT_FAULTS) != (where == "redirect"):
            return Fault("none")
        return queue[0] if queue[0].always else queue.pop(0)


REDIRECT_FAULTS = {"redirect", "loop", "redirect status"}


def etag_of(content):
    etag = DandiETag(len(content))
    for part in etag.get_parts():
        etag.update(content[part.offset : part.offset + part.size])
    return etag.as_str()


def nwb_bytes(session_id="CO-20131003", subject="C", start="2013-10-03T12:00:00+00:00", padding=0):
    """The bytes of a small NWB file: enough to be opened and identified."""
    holder = io.BytesIO()
    with h5py.File(holder, "w") as file:
        file.attrs["nwb_version"], file.attrs["neurodata_type"], file.attrs["namespace"] = "2.6.0", "NWBFile", "core"
        texts = {"session_description": "made for a test", "identifier": f"{subject}-{session_id}"}
        texts |= {"session_start_time": start, "general/session_id": session_id, "general/subject/subject_id": subject}
        for name, text in texts.items():
            file.create_dataset(name, data=text, dtype=h5py.string_dtype())
        file.create_dataset("scratch/padding", data=list(range(padding)))
    return holder.getvalue()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    archive: Archive

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        address = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(address.query).items()}
        self.entry = Request(self.command, address.path, query, dict(self.headers))
        self.archive.log.append(self.entry)
        try:
            self._route(address.path, query)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _route(self, path, query):
        if path.startswith("/blobs/"):
            return self._blob(path.split("/")[2])
        if path in self.archive.answers:
            answer = self.archive.answers[path]
            return self._reply(*(answer(query) if callable(answer) else answer))
        match path.removeprefix("/api").strip("/").split("/"):
            case ["server-info"] | ["info"]:
                services = {"api": {"url": self.archive.url}}
                about = {"version": "0.1", "services": services, "cli-minimal-version": "0.1", "cli-bad-versions": []}
                return self._json(about | {"schema_version": "0.6.10"})
            case ["assets", asset_id, "download"]:
                return self._redirect(asset_id)
            case ["assets", asset_id, "info"] if asset_id in self.archive.digests:
                versions = [rows for each in self.archive.dandisets.values() for rows in each.values()]
                row = next(row for rows in versions for row in rows if row["asset_id"] == asset_id)
                return self._json(row | {"metadata": {"digest": self.archive.digests[asset_id]}})
            case ["dandisets", dandiset] if dandiset in self.archive.dandisets:
                versions = self.archive.dandisets[dandiset]
                latest = self.archive.published.get(dandiset)
                about = {"identifier": dandiset, "created": WHEN, "modified": WHEN, "contact_person": "A, B"}
                about |= {"embargo_status": "OPEN", "draft_version": self._version("draft", [])}
                about["most_recent_published_version"] = self._version(latest, versions[latest]) if latest else None
                return self._json(about)
            case ["dandisets", dandiset, "versions", version, *rest] if version in self.archive.dandisets.get(
                dandiset, {}
            ):
                rows = self.archive.dandisets[dandiset][version]
                return self._in_version(version, rows, rest, query)
        return self._json({"detail": "Not found."}, 404)

    def _in_version(self, version, rows, rest, query):
        match rest:
            case []:
                licence = {} if self.archive.licence is None else {"license": self.archive.licence}
                return self._json({"name": "made for a test", "version": version} | licence | self.archive.about)
            case ["info"]:
                return self._json(self._version(version, rows) | {"metadata": {}})
            case ["assets"]:
                if query.get("order") == "path":
                    rows = sorted(rows, key=lambda row: str(row["path"]))
                page, size = int(query.get("page", 1)), min(int(query.get("page_size", 100)), self.archive.page_size)
                following = f"{self.archive.url}/next?page={page + 1}" if page * size < len(rows) else None
                shown = rows[(page - 1) * size : page * size]
                if query.get("metadata") == "true":
                    shown = [row | {"metadata": self._stored(version, row)} for row in shown]
                return self._json({"count": len(rows), "next": following, "previous": None, "results": shown})
            case ["assets", asset_id, *info] if asset_id in {row["asset_id"] for row in rows}:
                row = next(row for row in rows if row["asset_id"] == asset_id)
                metadata = {"path": row["path"], "contentSize": row["size"], "digest": self.archive.digests[asset_id]}
                return self._json(row | {"metadata": metadata} if info else metadata)
        return self._json({"detail": "Not found."}, 404)

    def _stored(self, version, row):
        """Metadata as the archive stores them: what it computes, digests too, is stored when a version is published."""
        computed = {"path": row["path"], "contentSize": row["size"], "digest": self.archive.digests[row["asset_id"]]}
        return {"schemaVersion": "0.6.10"} | (computed if version != "draft" else {})

    def _version(self, version, rows):
        about = {"version": version, "name": "made for a test", "asset_count": len(rows), "size": 0}
        return about | {"created": WHEN, "modified": WHEN, "status": "Published"}

    def _json(self, content, status=200):
        self._reply(status, {"Content-Type": "application/json"}, json.dumps(content).encode())

    def _reply(self, status, headers, body):
        self.entry.status = status
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _redirect(self, asset_id):
        fault = self.archive.fault(asset_id, "redirect")
        where = f"{self.archive.blob_url}/blobs/{asset_id}?signature=secret"
        if fault.kind == "redirect":
            where = fault.value
        if fault.kind == "loop":
            where = self.path
        if fault.kind == "redirect status":
            return self._reply(fault.value[0], fault.value[1], b"no")
        if asset_id not in self.archive.blobs:
            return self._json({"detail": "Not found."}, 404)
        return self._reply(302, {"Location": where}, b"")

    def _range_of_file(self, path):
        """Both ends of the range have to be given."""
        first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(first)
            body = file.read(min(last + 1, size) - first)
        self.entry.sent += len(body)
        where = f"bytes {first}-{first + len(body) - 1}/{size}"
        return self._reply(206, {"Content-Range": where, "ETag": f'"{path.stat().st_mtime_ns}"'}, body)

    def _blob(self, asset_id):
        if asset_id in self.archive.files:
            return self._range_of_file(self.archive.files[asset_id])
        fault = self.archive.fault(asset_id, "blob")
        content = self.archive.blobs[asset_id]
        if fault.kind == "content":
            self.archive.blobs[asset_id] = content = fault.value  # from now on
        etag = f'"{hashlib.md5(content).hexdigest()}"'
        if fault.kind == "wrong bytes":
            content = content[: fault.at] + bytes([content[fault.at] ^ 1]) + content[fault.at + 1 :]
        if fault.kind == "longer":
            content += b"x" * fault.at
        if fault.kind == "shorter":
            content = content[: len(content) - fault.at]
        start = self._start(fault, content, etag)
        if fault.kind == "silent":
            time.sleep(fault.value)
            self.close_connection = True
            return None
        if fault.kind == "cut headers":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Le")
            self.close_connection = True
            return None
        if fault.kind == "status" or start is None:
            status, headers = fault.value if fault.kind == "status" else (416, {})
            return self._reply(status, headers, b"no")
        self._send(fault, content, etag, start)
        return None

    def _start(self, fault, content, etag):
        """First byte asked for; None when there is none such."""
        asked = self.headers.get("Range")
        if asked is None or fault.kind == "no ranges":
            return 0
        given = self.headers.get("If-Range")
        if given is not None and given != etag and fault.kind != "no if-range":
            return 0
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
        return start if start < len(content) else None

    def _send(self, fault, content, etag, start):
        whole, total = self.headers.get("Range") is None or start == 0, len(content)
        self.entry.status = 200 if whole else 206
        self.send_response(self.entry.status)
        if not whole:
            told = fault.value if fault.kind == "content range" else f"bytes {start}-{total - 1}/{total}"
            self.send_header("Content-Range", told)
        length = total - start + (fault.at if fault.kind == "lying length" else 0)
        if fault.kind in ("no length", "longer unannounced"):
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(length))
        if self.archive.etags:
            self.send_header("ETag", fault.value if fault.kind == "etag" else etag)
        self.send_header("Date", formatdate(usegmt=True))
        self.end_headers()
        if self.command == "HEAD":
            return
        body = content[start:]
        if fault.kind in ("cut", "no length") and fault.at >= start:
            body = body[: fault.at - start] if fault.kind == "cut" or fault.at else body
        elif fault.kind == "cut":
            body = b""
        if fault.kind == "longer unannounced":
            body += b"x" * fault.at
        size, pause_s = fault.value if fault.kind == "drip" else (65536, 0.0)
        for first in range(0, len(body), size):
            part = body[first : first + size]
            self.entry.sent += len(part)  # before the client can have it and ask how much was sent
            try:
                self.wfile.write(part)
                self.wfile.flush()
            except OSError:
                self.entry.sent -= len(part)
                raise
            time.sleep(pause_s)
        if fault.kind in ("cut", "lying length"):
            self.close_connection = True


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        pass


@contextmanager
def serving():
    """An `Archive` whose API and blobs are served at two ports of 127.0.0.1: two hosts, as far as credentials go."""
    archive = Archive()
    handler = type("Handler", (_Handler,), {"archive": archive})
    servers = [_Server(("127.0.0.1", 0), handler) for _ in range(2)]
    archive.url, archive.blob_url = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    archive.url += "/api"
    threads = [threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True) for server in servers]
    for thread in threads:
        thread.start()

    def close():
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()

    archive.close = close
    try:
        yield archive
    finally:
        close()
