"""A stand-in for the DANDI archive on loopback, in a process of its own: one version of one dandiset, from a manifest.

``python -m bci_adapt.cli.bench.loopback MANIFEST.json`` prints its address and serves until its input closes. The
manifest is a list of {path, size, sha256, etag, file}; `file` holds the bytes, or is "" where nobody will ask for them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

DANDISET, VERSION = "000688", "0.250122.1735"
_WHEN = "2025-01-22T17:35:00.000000Z"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    rows: list[dict[str, Any]]
    url: str

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(address.query).items()}
        version = {"version": VERSION, "name": "a benchmark", "asset_count": len(self.rows), "size": 0}
        version |= {"created": _WHEN, "modified": _WHEN, "status": "Published"}
        match address.path.removeprefix("/api").strip("/").split("/"):
            case ["blobs", number]:
                return self._bytes(Path(self.rows[int(number)]["file"]))
            case ["assets", asset_id, "download"]:
                return self._answer(302, {"Location": f"{self.url}/blobs/{self._number(asset_id)}"}, b"")
            case ["server-info"] | ["info"]:
                about = {
                    "version": "0.1.0",
                    "services": {"api": {"url": f"{self.url}/api"}},
                    "schema_version": "0.6.10",
                }
                return self._json(about | {"cli-minimal-version": "0.1.0", "cli-bad-versions": []})
            case ["dandisets", _]:
                about = {"identifier": DANDISET, "created": _WHEN, "modified": _WHEN, "contact_person": "A, B"}
                versions = {"draft_version": version | {"version": "draft"}, "most_recent_published_version": version}
                return self._json(about | versions | {"embargo_status": "OPEN"})
            case ["dandisets", _, "versions", _]:
                return self._json({"name": "a benchmark", "version": VERSION, "license": ["spdx:CC-BY-4.0"]})
            case ["dandisets", _, "versions", _, "info"]:
                return self._json(version | {"metadata": {}})
            case ["dandisets", _, "versions", _, "assets"]:
                return self._page(query)
            case [*_, "assets", asset_id] | [*_, "assets", asset_id, "info"] as parts:
                row = self.rows[self._number(asset_id)]
                is_whole = parts[-1] == "info"
                return self._json(_asset(row) | {"metadata": _metadata(row)} if is_whole else _metadata(row))
        return self._json({"detail": "Not found."}, 404)

    def _number(self, asset_id: str) -> int:
        return uuid.UUID(asset_id).int & 0xFFFFFF

    def _page(self, query: dict[str, str]) -> None:
        page, size = int(query.get("page", 1)), int(query.get("page_size", 100))
        shown = [_asset(row) for row in self.rows[(page - 1) * size : page * size]]
        if query.get("metadata") == "true":
            shown = [asset | {"metadata": _metadata(row)} for asset, row in zip(shown, self.rows, strict=False)]
        more = page * size < len(self.rows)
        following = f"{self.url}{urlsplit(self.path).path}?page={page + 1}&page_size={size}" if more else None
        self._json({"count": len(self.rows), "next": following, "previous": None, "results": shown})

    def _json(self, content: Any, status: int = 200) -> None:
        self._answer(status, {"Content-Type": "application/json"}, json.dumps(content).encode())

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _bytes(self, file: Path) -> None:
        """The whole file: nobody resumes here."""
        size = file.stat().st_size
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.send_header("ETag", f'"{file.name}"')
        self.end_headers()
        self.wfile.flush()
        with open(file, "rb") as stream:
            if self.command != "HEAD":
                self.connection.sendfile(stream)


def _asset(row: dict[str, Any]) -> dict[str, Any]:
    about = {"asset_id": row["asset_id"], "blob": row["asset_id"], "zarr": None, "path": row["path"]}
    return about | {"size": row["size"], "created": _WHEN, "modified": _WHEN}


def _metadata(row: dict[str, Any]) -> dict[str, Any]:
    digest = {"dandi:sha2-256": row["sha256"], "dandi:dandi-etag": row["etag"]}
    return {"schemaVersion": "0.6.10", "path": row["path"], "contentSize": row["size"], "digest": digest}


def _serve(manifest: Path) -> None:
    rows = json.loads(manifest.read_text(encoding="utf-8"))
    handler = type("Handler", (_Handler,), {"rows": rows})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        handler.url = f"http://127.0.0.1:{server.server_port}"  # pyright: ignore[reportAttributeAccessIssue]
        print(handler.url, flush=True)  # pyright: ignore[reportAttributeAccessIssue]
        threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
        server.serve_forever(0.01)


@contextmanager
def serving(rows: list[dict[str, Any]], folder: Path) -> Iterator[str]:
    """Serve `rows` from a process of its own; yields the address of the API. Assets get their ids in `rows`."""
    for number, row in enumerate(rows):
        row["asset_id"] = str(uuid.UUID(int=(0xBC1 << 100) | (4 << 76) | (8 << 60) | number))
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps(rows), encoding="utf-8")
    command = [sys.executable, "-m", "bci_adapt.cli.bench.loopback", str(manifest)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield f"{server.stdout.readline().strip()}/api"
        finally:
            server.kill()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
