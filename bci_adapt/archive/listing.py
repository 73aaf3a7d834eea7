"""How an archive lists a version: its assets with their digests, its licence and its authors, kept beside the cache.

A kept listing answers what an experiment means without asking again: which assets of a version there are, and so
whether a glob has all that it should. A published version never changes, so its listing holds for ever; of a draft each
state that was pinned has one. What stands in it is as untrusted as the archive's answer: `Row.asset` checks it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bci_adapt.archive.lock import ETAG, SHA256, Asset, Lock
from bci_adapt.ground.storage import write_text
from bci_adapt.ground.text import clean

UNSTATED = "not stated"
_FORMAT = 1


@dataclass(frozen=True)
class Row:
    """An asset as it is listed, nothing of it checked but that path and asset_id are text.

    `digests` are as the archive names them (``dandi:sha2-256``), None where the listing does not tell them; `created`
    is when the asset came into the archive, "" where that is not told.
    """

    path: str
    asset_id: str
    size: Any
    is_zarr: bool = False
    digests: Any = None
    created: str = ""

    @property
    def is_nwb(self) -> bool:
        """Whether it is a file that can be read: NWB in HDF5."""
        return self.path.lower().endswith(".nwb") and not self.is_zarr

    def asset(self, dandiset: str, version: str) -> Asset:
        """The asset of this row; `InputError` for a path, id, size or digest that is none."""
        digests = self.digests if isinstance(self.digests, Mapping) else {}
        sha256, etag = (digests.get(f"dandi:{name}") or "" for name in (SHA256, ETAG))
        return Asset(dandiset, version, self.path, self.asset_id, self.size, sha256, etag)

    def check(self, dandiset: str, version: str) -> None:
        """`InputError` for a path, id or size that cannot be one, before the id becomes part of an address."""
        Asset(dandiset, version, self.path, self.asset_id, self.size, sha256="0" * 64)


@dataclass(frozen=True)
class About:
    """What the archive says of a version: its licence, who made it, and how to cite it."""

    licence: str = UNSTATED
    authors: tuple[str, ...] = ()
    citation: str = ""


@dataclass(frozen=True)
class Listing:
    """All assets of a version in the order of their paths, and what is said of the version."""

    dandiset: str
    version: str
    about: About
    rows: tuple[Row, ...]

    @property
    def state(self) -> str:
        """What tells one state of a draft from another: a digest of which asset is at which path."""
        told = json.dumps(sorted((row.path, row.asset_id) for row in self.rows))
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def agrees(self, lock: Lock) -> bool:
        """Whether all that a lock pins of this version is listed here, under the same ids."""
        ids = {row.path: row.asset_id for row in self.rows}
        return all(ids.get(asset.path) == asset.asset_id for asset in lock.of(self.dandiset, self.version))


def about_of(metadata: Mapping[str, Any]) -> About:
    """What the metadata of a version says, on one line each."""
    stated = metadata.get("license") or []
    stated = [stated] if isinstance(stated, str) else stated
    people = [each for each in metadata.get("contributor") or [] if isinstance(each, Mapping)]
    authors = [clean(each.get("name") or "", 100) for each in people if _is_author(each)]
    return About(
        clean(", ".join(str(each) for each in stated), 200) or UNSTATED,
        tuple(filter(None, authors)),
        clean(metadata.get("citation") or "", 2000),
    )


def _is_author(contributor: Mapping[str, Any]) -> bool:
    said = contributor.get("includeInCitation")
    return bool(said) if said is not None else "dcite:Author" in (contributor.get("roleName") or [])


def read_listing(path: Path, dandiset: str, version: str) -> Listing | None:
    """The listing kept in a file; None when there is none, or one that cannot be used."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if (fields["format"], fields["dandiset"], fields["version"]) != (_FORMAT, dandiset, version):
            return None
        about, rows = fields["about"], [Row(**each) for each in fields["rows"]]
        if not all(isinstance(each, str) for row in rows for each in (row.path, row.asset_id, row.created)):
            return None
        licence, authors, citation = about["licence"], about["authors"], about["citation"]
        if not all(isinstance(each, str) for each in (licence, *authors, citation)):
            return None
        return Listing(dandiset, version, About(licence, tuple(authors), citation), tuple(rows))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def write_listing(path: Path, listing: Listing) -> None:
    """Keep a listing in a file, atomically; an equal one is left as it is."""
    if read_listing(path, listing.dandiset, listing.version) == listing:
        return
    write_text(path, json.dumps({"format": _FORMAT, **asdict(listing)}, ensure_ascii=False) + "\n")
