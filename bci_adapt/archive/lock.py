"""The lock file: which published files an experiment reads, down to the digest, so that it reads the same ones again.

``sessions.lock.toml`` has a table ``pinned`` (dandiset = version used when none is asked for) and one ``[[assets]]``
per file: dandiset, version, path, asset_id, size in bytes, and at least one digest, ``sha2-256`` or ``dandi-etag``. A
lock is of one archive: ``archive`` is the address of its API, and is not there for the DANDI archive itself. Every
value in it, as in an answer of the archive, is untrusted: it is checked before it becomes part of a path.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bci_adapt.errors import InputError
from bci_adapt.ground.locks import alone
from bci_adapt.ground.storage import write_text

NAME = "sessions.lock.toml"
DANDI_API = "https://api.dandiarchive.org/api"
"""The archive that is meant where none is named."""
DRAFT = "draft"
RECORD = ".asset.json"
PART = ".part"
PART_RECORD = ".part.json"
SHA256, ETAG = "sha2-256", "dandi-etag"
_FORMAT = 1
_MAX_COMPONENT_BYTES, _MAX_PATH_BYTES = 200, 1000
UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_HEADER = "# Written by `bci-adapt fetch`; keep it beside the config. --update moves to the latest published version.\n"


def path_fault(path: object) -> str | None:
    """Say why the path of an asset cannot become a path below the cache, or None when it can."""
    if not isinstance(path, str) or not path:
        return "is not a path"
    if not path.isprintable():
        return "has control or other invisible characters"
    if "\\" in path or ":" in path:
        return "has a backslash or a colon"
    if path.startswith("/"):
        return "is absolute"
    components = path.split("/")
    if len(path.encode()) > _MAX_PATH_BYTES or any(len(each.encode()) > _MAX_COMPONENT_BYTES for each in components):
        return f"is too long (over {_MAX_COMPONENT_BYTES} bytes in a name or {_MAX_PATH_BYTES} in all)"
    for each in components:
        if each in ("", ".", ".."):
            return f"has the component {each!r}"
        if each != each.strip() or each.endswith("."):
            return f"has the component {each!r}, with a blank at an end or a dot at the end"
        if each.lower().endswith((PART, PART_RECORD, RECORD)):
            return f"has the component {each!r}, an ending that the cache keeps for itself"
    return None


@dataclass(frozen=True, order=True)
class Asset:
    """One file of a version of a dandiset, with what its bytes must be. `InputError` for what cannot be one."""

    dandiset: str
    version: str
    path: str
    asset_id: str
    size: int
    sha256: str = ""
    dandi_etag: str = ""

    def __post_init__(self) -> None:
        check_version(self.dandiset, self.version)
        name = f"asset {self.path!r} of {self.dandiset}/{self.version}"
        if fault := path_fault(self.path):
            raise InputError(f"{name} {fault}; it is refused")
        _matching(name, "asset_id", self.asset_id, UUID)
        if type(self.size) is not int or self.size < 0:
            raise InputError(f"{name}: size must be a whole number of bytes, found {self.size!r}")
        _matching(name, SHA256, self.sha256, "([0-9a-f]{64})?")
        _matching(name, ETAG, self.dandi_etag, r"([0-9a-f]{32}-[0-9]{1,5})?")
        if not self.digests:
            raise InputError(f"{name} has neither a {SHA256} nor a {ETAG} digest: it could not be verified")

    @property
    def key(self) -> tuple[str, str, str]:
        """What identifies a file in a lock: (dandiset, version, path)."""
        return self.dandiset, self.version, self.path

    @property
    def digests(self) -> dict[str, str]:
        """The recorded digests by name, ``sha2-256`` first."""
        return {name: value for name, value in ((SHA256, self.sha256), (ETAG, self.dandi_etag)) if value}

    def same_bytes(self, other: Asset) -> bool:
        """Whether both stand for the same bytes: one size, a digest that both have, and none in which they differ."""
        common = self.digests.keys() & other.digests.keys()
        return self.size == other.size and bool(common) and all(self.digests[x] == other.digests[x] for x in common)

    def to_dict(self) -> dict[str, str | int]:
        """The fields as they stand in a lock or a record; see `asset_from`."""
        about = {"dandiset": self.dandiset, "version": self.version, "path": self.path}
        return {**about, "asset_id": self.asset_id, "size": self.size, **self.digests}


def asset_from(fields: Any) -> Asset:
    """The inverse of `Asset.to_dict`; `InputError` names a key that is missing, unknown or not what it must be."""
    if not isinstance(fields, dict):
        raise InputError(f"must be a table, found {type(fields).__name__}")
    needed, optional = ("dandiset", "version", "path", "asset_id", "size"), (SHA256, ETAG)
    if missing := [name for name in needed if name not in fields]:
        raise InputError(f"{missing[0]} is missing")
    if unknown := sorted(map(repr, fields.keys() - {*needed, *optional})):
        raise InputError(f"{unknown[0]} is not a key that is known here ({', '.join((*needed, *optional))})")
    return Asset(*(fields[name] for name in needed), *(fields.get(name, "") for name in optional))


def check_version(dandiset: object, version: object = DRAFT) -> None:
    """`InputError` unless these are a dandiset's six digits and a published version, or draft."""
    _matching("dandiset", "its number", dandiset, "[0-9]{6}", "six digits such as 000688")
    what = "a published version such as 0.250122.1735, or draft"
    _matching(f"dandiset {dandiset}", "version", version, rf"[0-9]{{1,9}}\.[0-9]{{1,9}}\.[0-9]{{1,9}}|{DRAFT}", what)


def _matching(name: str, key: str, value: object, pattern: str, expected: str = "") -> None:
    if not isinstance(value, str) or not re.fullmatch(pattern, value, re.ASCII):
        raise InputError(f"{name}: {key} must be {expected or f'text like {pattern}'}, found {value!r:.100}")


@dataclass(frozen=True)
class Lock:
    """What a lock file says: the pinned version of each dandiset, the assets by `Asset.key`, and of which archive."""

    pinned: dict[str, str]
    assets: dict[tuple[str, str, str], Asset]
    archive: str = DANDI_API

    def of(self, dandiset: str, version: str) -> list[Asset]:
        """The assets of one version, in the order of their paths."""
        return sorted(asset for asset in self.assets.values() if asset.key[:2] == (dandiset, version))

    def with_assets(self, assets: Iterable[Asset], drop: Iterable[Asset] = ()) -> Lock:
        """This lock without `drop` and with `assets`, which replace those of the same key."""
        kept = {key: asset for key, asset in self.assets.items() if key not in {each.key for each in drop}}
        return replace(self, assets=kept | {asset.key: asset for asset in assets})


def read_lock(path: Path) -> Lock:
    """Read a lock file, an empty lock when there is none; `InputError` names the file and the key at fault."""
    try:
        with open(path, "rb") as handle:
            content = tomllib.load(handle)
    except FileNotFoundError:
        return Lock({}, {})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as a lock file ({error}); move it away to fetch anew") from error
    if unknown := sorted(content.keys() - {"format", "archive", "pinned", "assets"}):
        raise InputError(f"{path}: {unknown[0]!r} is not a key of a lock file (format, archive, pinned, assets)")
    if type(content.get("format")) is not int or content["format"] != _FORMAT:
        raise InputError(f"{path}: format must be {_FORMAT}, found {content.get('format')!r}")
    pinned, tables, archive = content.get("pinned", {}), content.get("assets", []), content.get("archive", DANDI_API)
    if not isinstance(archive, str) or not re.match("https?://", archive):
        raise InputError(f"{path}: archive must be the http address of an archive's API, found {archive!r:.100}")
    if not isinstance(pinned, dict):
        raise InputError(f"{path}: pinned must be a table of dandiset = version, found {type(pinned).__name__}")
    if not isinstance(tables, list):
        raise InputError(f"{path}: assets must be an array of tables, found {type(tables).__name__}")
    for dandiset, version in pinned.items():
        try:
            check_version(dandiset, version)
        except InputError as error:
            raise InputError(f"{path}: pinned.{dandiset!r}: {error}") from error
        if version == DRAFT:
            raise InputError(f"{path}: pinned.{dandiset!r}: a draft changes and cannot be pinned")
    assets: dict[tuple[str, str, str], Asset] = {}
    for number, table in enumerate(tables):
        try:
            asset = asset_from(table)
        except InputError as error:
            raise InputError(f"{path}: assets[{number}]: {error}") from error
        if asset.key in assets:
            raise InputError(f"{path}: assets[{number}]: path {asset.path!r} stands there twice")
        assets[asset.key] = asset
    return Lock(pinned, assets, archive)


def write_lock(path: Path, lock: Lock) -> None:
    """Write a lock file atomically: the same bytes for the same content, whatever order it was gathered in."""
    of = [] if lock.archive == DANDI_API else [f"archive = {_quoted(lock.archive)}"]
    lines = [_HEADER, f"format = {_FORMAT}", *of, "", "[pinned]"]
    lines += [f"{_quoted(dandiset)} = {_quoted(version)}" for dandiset, version in sorted(lock.pinned.items())]
    for asset in sorted(lock.assets.values()):
        lines += ["", "[[assets]]"]
        fields = asset.to_dict().items()
        lines += [f"{key} = {value if isinstance(value, int) else _quoted(value)}" for key, value in fields]
    write_text(path, "\n".join(lines) + "\n")


def update_lock(path: Path, change: Callable[[Lock], Lock]) -> Lock:
    """Read a lock file, change it and write it when it differs, alone among processes; returns what it says now."""
    try:
        with alone(path.with_name(f".{path.name}.lock")):
            old = read_lock(path)
            new = change(old)
            if new != old or not path.exists():
                write_lock(path, new)
    except OSError as error:
        raise InputError(f"{path}: the lock file cannot be written ({os.strerror(error.errno or 0)})") from error
    return new


def _quoted(text: str) -> str:
    """`text` as a TOML basic string: the escapes of JSON, and DEL, which JSON leaves as it is."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
