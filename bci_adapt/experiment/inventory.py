"""What lies in the cache, kind by kind: how much, how old, whether it is as it was written; and sweeping it.

Fetched recordings have rules of their own (`bci_adapt.archive.cache`). Everything else can be made again: results of
jobs, simulated recordings and compiled loops carry their digest beside them (`ground.seals`), runs in their manifest,
prepared sessions inside.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from bci_adapt.errors import InputError
from bci_adapt.ground import seals
from bci_adapt.ground.locks import others_in
from bci_adapt.ground.performing import is_abandoned

FETCHED, RUNS, KERNELS, SIMULATED = "raw", "runs", "kernels", "simulated"
WHOLE, BAD, UNKNOWN = "whole", "bad", "no digest"
_OWN = ("in_use",)  # folders that are none of a user's


@dataclass(frozen=True)
class Item:
    """Something in the cache that can be made again. `used` is when it was last used, in seconds since 1970; `state`
    is one of `WHOLE`, `BAD` and `UNKNOWN` once it was verified, "" before.
    """

    kind: str
    path: Path
    size: int
    used: float
    state: str = ""
    reason: str = ""


def items(root: Path) -> list[Item]:
    """Everything in a cache but fetched recordings and half-written files, by kind and name."""
    return [_item(kind, path) for kind, path in _places(root)]


def _places(root: Path) -> Iterator[tuple[str, Path]]:
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        if folder.is_symlink() or not folder.is_dir() or folder.name in _OWN:
            continue
        kind = SIMULATED if folder.name == FETCHED else folder.name
        inside = folder / SIMULATED if folder.name == FETCHED else folder
        for path in sorted(inside.iterdir()) if inside.is_dir() else ():
            if not path.name.endswith(seals.SEAL) and not path.name.startswith("."):
                yield kind, path


def _item(kind: str, path: Path) -> Item:
    inside = [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]
    beside = [seals.seal_of(path)] if seals.seal_of(path).is_file() else []
    found = [each.stat() for each in [*inside, *beside]]
    return Item(kind, path, sum(each.st_size for each in found), max((each.st_mtime for each in found), default=0.0))


def verify(item: Item) -> Item:
    """`item` with its state: its digest is computed anew."""
    try:
        if item.kind == RUNS:
            return _verified_run(item)
        if item.kind == KERNELS:
            kept = [each for each in item.path.rglob("*.nb?") if each.is_file()]
            bad = [each.name for each in kept if not seals.is_whole(each)]
            return replace(item, state=BAD if bad else WHOLE, reason=f"not as written: {', '.join(bad)}" if bad else "")
        if not seals.seal_of(item.path).is_file():
            return _verified_alone(item)
    except InputError as error:
        return replace(item, state=BAD, reason=str(error))
    whole = seals.is_whole(item.path)
    return replace(item, state=WHOLE if whole else BAD, reason="" if whole else "its bytes are not those of its digest")


def _verified_run(item: Item) -> Item:
    from bci_adapt.results.manifest import MANIFEST, read_manifest

    manifest = read_manifest(item.path / MANIFEST)
    manifest.require_whole(item.path)
    return replace(item, state=WHOLE if manifest.files else UNKNOWN)


def _verified_alone(item: Item) -> Item:
    """A file without a digest beside it: a prepared session has one inside."""
    from bci_adapt.data.session_files import read_session

    if item.path.suffix == ".nc":
        read_session(item.path)
        return replace(item, state=WHOLE)
    return replace(item, state=UNKNOWN)


def half_written(root: Path) -> list[Path]:
    """What interrupted writes left anywhere but among fetched recordings, and nobody is writing any more."""
    folders = [
        folder for folder in root.rglob(".*.part") if folder.is_dir() and folder.relative_to(root).parts[0] != FETCHED
    ]
    folders += (root / FETCHED / SIMULATED).glob(".*.part")
    return sorted(folder for folder in folders if is_abandoned(folder))


def sweep(
    root: Path, unused_days: float | None = None, dry_run: bool = False, now: Callable[[], float] = time.time
) -> tuple[list[Path], list[Path]]:
    """Remove what interrupted writes left, and with `unused_days` everything that can be made again and was not used
    for so long. Returns what was removed (with `dry_run`: would be), and what was left because a process of this
    machine works with this cache.
    """
    if unused_days is not None and not unused_days >= 0:
        raise InputError(f"unused: expected days, 0 or more, got {unused_days!r}")
    gone = half_written(root)
    old = [] if unused_days is None else [each for each in items(root) if now() - each.used > 86400 * unused_days]
    left: list[Path] = []
    if old and others_in(root):
        left, old = [each.path for each in old], []
    gone += [each.path for each in old]
    if not dry_run:
        for path in gone:
            _remove(path)
    return gone, left


def _remove(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        seals.remove(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be removed ({error.strerror})") from error


def by_kind(found: Iterable[Item]) -> dict[str, list[Item]]:
    """Items by their kind."""
    kinds: dict[str, list[Item]] = {}
    for each in found:
        kinds.setdefault(each.kind, []).append(each)
    return kinds
