"""Files that were chosen from a version of a dandiset, and what is to be said of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bci_adapt.archive import cache as entries
from bci_adapt.archive.download import Progress, bytes_kept
from bci_adapt.archive.listing import About, Listing
from bci_adapt.archive.lock import Asset
from bci_adapt.errors import InputError


@dataclass
class Selection:
    """The files that a `Dandi` source stands for, and where each of them lies or will lie."""

    dandiset: str
    version: str
    about: About
    files: dict[Asset, Path]
    folder: Path
    """Where files of this archive lie in the cache."""
    notes: list[str] = field(default_factory=list)
    offline: str = ""
    """Why the archive is not asked for anything; "" when it can be."""
    unsure: str = ""
    """Why there may be more that is meant than these files; "" when these are all."""
    refused: dict[str, str] = field(default_factory=dict)
    """Assets that are meant and cannot be had, by path, with the reason."""
    drift: dict[str, str] = field(default_factory=dict)
    """What became of an asset in the archive's draft since it was pinned (replaced, deleted), by path."""
    listing: Listing | None = None
    """What is kept of the archive's answer; None when there is nothing to keep."""
    beside: list[Asset] = field(default_factory=list)
    """What the lock pins of this version; in an update what it will pin besides the files."""
    obtained: dict[Asset, str] = field(default_factory=dict)
    """How each file came, once they were obtained."""

    def rows(self, progress: Progress | None = None, anew: bool = False) -> list[dict[str, Any]]:
        """One row per file, by path: path, size and missing (bytes), state, drift, asset_id, digest, file.

        The state is ``cached``, ``partial``, ``missing``, ``reused`` for bytes that lie in the cache under another path
        or version, ``damaged`` for other bytes, or ``other`` for a file with another record or size. Once the files
        have been obtained it is what was done: ``cached``, ``reused`` or ``fetched``. Digests are computed of what has
        changed since they were computed last, of everything with `anew`. `InputError` where obtaining would raise it.
        """
        rows, states = [], self.obtained or self._states(progress, anew)
        for asset, file in self.files.items():
            is_here = states[asset] in ("cached", "reused", "fetched")
            about = {"path": asset.path, "size": asset.size}
            about |= {"missing": 0 if is_here else asset.size - bytes_kept(file, asset), "state": states[asset]}
            about |= {"drift": self.drift.get(asset.path, ""), "asset_id": asset.asset_id}
            rows.append({**about, "digest": digest_text(asset), "file": str(file)})
        return rows

    def _states(self, progress: Progress | None, anew: bool) -> dict[Asset, str]:
        """What obtaining would find, and do."""
        states = {asset: self._state(asset, file, progress, anew) for asset, file in self.files.items()}
        lacking = [asset for asset, state in states.items() if state != "cached"]
        twins = entries.twins(self.folder, lacking) if lacking else {}
        for asset in lacking:
            if asset in twins and not entries.is_damaged(twins[asset], asset, progress, anew):
                states[asset] = "reused"
            elif bytes_kept(self.files[asset], asset):
                states[asset] = "partial"
        return states

    def _state(self, asset: Asset, file: Path, progress: Progress | None, anew: bool) -> str:
        if not file.exists():
            return "missing"
        if not entries.is_damaged(file, asset, progress, anew):
            return "cached"
        entries.require_record(file, asset)
        record = entries.read_record(file)
        here = record is not None and record.asset.same_bytes(asset) and file.stat().st_size == asset.size
        return "damaged" if here else "other"

    def refuse(self) -> None:
        """`InputError` when an asset that is meant cannot be had: each is named, the others are not touched by it."""
        if self.refused:
            named = "; ".join([*self.refused.values()][:3])
            more = f" and {len(self.refused) - 3} more" if len(self.refused) > 3 else ""
            raise InputError(f"{named}{more}; the other {len(self.files)} files can be had with --exclude of its path")


def digest_text(asset: Asset) -> str:
    """The recorded digest of an asset with its name in front: ``sha2-256:…``, else ``dandi-etag:…``."""
    name, value = next(iter(asset.digests.items()))
    return f"{name}:{value}"
