"""Files of the archive that lie in the cache, each with a record of what its bytes must be.

A file lies at ``<cache>/raw/<dandiset>/<version>/<asset path>``, where ``<cache>`` is
`bci_adapt.ground.storage.cache_root`. Beside it, ``<name>.asset.json`` is its record: the asset's id, size and digests,
the licence of the version, the archive and when it came. The record is written after the bytes are verified and before
they get their name, so a file that was fetched always has one. An entry counts only as long as its bytes have the
recorded size and digests. ``<name>.part`` and ``<name>.part.json`` are a download that has not ended.

Nothing here follows a symbolic link below ``raw``, touches a file without a record, or any other folder of ``raw``.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from bci_adapt.archive.download import Progress, mismatch, part_of, part_record_of
from bci_adapt.archive.lock import DRAFT, PART, PART_RECORD, RECORD, Asset, asset_from
from bci_adapt.errors import InputError
from bci_adapt.ground.storage import cache_root, write_text

MARGIN_BYTES = 256 * 2**20
"""What stays free on the disk after a fetch."""
COMPLETE, VERIFIED, PARTIAL, BAD = "complete", "verified", "partial", "bad"


@dataclass(frozen=True)
class Record:
    """What is written down beside a fetched file."""

    asset: Asset
    licence: str
    archive: str
    fetched: str


@dataclass(frozen=True)
class Entry:
    """One file of the cache as `entries` finds it, its state one of `COMPLETE`, `VERIFIED`, `PARTIAL` or `BAD`.

    `COMPLETE` has the recorded size, `VERIFIED` the digests too; `reason` says what is `BAD`. `size` is in bytes.
    """

    dandiset: str
    version: str
    path: str
    file: Path
    size: int
    state: str
    reason: str = ""
    record: Record | None = None


def raw_folder(cache: Path | None = None) -> Path:
    """Where fetched files lie: ``raw`` of `cache`, or of the one in use."""
    return (cache_root() if cache is None else Path(cache).absolute()) / "raw"


def file_of(raw: Path, asset: Asset) -> Path:
    """Where `asset` lies below `raw`, whether or not it is there; `InputError` when a symbolic link is on the way."""
    file = raw
    for component in (asset.dandiset, asset.version, *PurePosixPath(asset.path).parts):
        file = file / component
        if file.is_symlink():
            raise InputError(
                f"{file}: is a symbolic link: not followed, {asset.path} is not fetched; remove it "
                "(to keep the cache elsewhere, set BCI_ADAPT_CACHE)"
            )
    return file


def check_together(assets: Iterable[Asset]) -> None:
    """`InputError` when two assets would lie at one place, on any file system: same letters, or a file as a folder."""
    seen: dict[tuple[str, ...], Asset] = {}
    folders: dict[tuple[str, ...], Asset] = {}
    for asset in assets:
        folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", "/".join(asset.key)).casefold())
        parts = tuple(folded.split("/"))
        above = [parts[:count] for count in range(1, len(parts))]
        other = seen.get(parts) or folders.get(parts) or next((seen[each] for each in above if each in seen), None)
        if other is not None and other.key != asset.key:
            raise InputError(
                f"assets {other.path!r} and {asset.path!r} of {asset.dandiset}/{asset.version} would lie at one place; "
                "they are refused, nothing was downloaded (choose one with --path)"
            )
        seen[parts] = asset
        folders |= dict.fromkeys(above, asset)


def read_record(file: Path) -> Record | None:
    """The record beside a fetched file; None when there is none, or one that cannot be used."""
    try:
        fields = json.loads(_record_of(file).read_text(encoding="utf-8"))
        about = [fields.pop(name) for name in ("licence", "archive", "fetched")]
        if not all(isinstance(each, str) for each in about):
            return None
        return Record(asset_from(fields), *about)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):  # InputError is a ValueError
        return None


def write_record(file: Path, record: Record) -> None:
    """Write the record beside `file`, atomically."""
    about = {"licence": record.licence, "archive": record.archive, "fetched": record.fetched}
    write_text(_record_of(file), json.dumps(record.asset.to_dict() | about, ensure_ascii=False, indent=1) + "\n")


def _record_of(file: Path) -> Path:
    return file.with_name(file.name + RECORD)


def fault(file: Path, asset: Asset, progress: Progress | None = None) -> str | None:
    """Why the file that should be `asset` is not, over its whole length; "" when it is not there, None when it is.

    `InputError` when other bytes lie there that were not fetched: they are never overwritten.
    """
    if not file.exists():
        return ""
    wrong = "not a file" if not file.is_file() else mismatch(file, asset, progress)
    if wrong is not None and not _record_of(file).is_file():
        raise InputError(f"{file}: is in the way of {asset.path} and was not fetched ({wrong}); move it away")
    return wrong


def check_room(raw: Path, missing_bytes: int) -> None:
    """`InputError` unless the disk holds `missing_bytes` more and leaves `MARGIN_BYTES` free."""
    folder = next(each for each in (raw, *raw.parents) if each.exists())
    free = shutil.disk_usage(folder).free
    if missing_bytes and free < missing_bytes + MARGIN_BYTES:
        raise InputError(
            f"{folder}: {(missing_bytes + MARGIN_BYTES) / 1e9:.2f} GB are needed (with {MARGIN_BYTES / 1e9:.2f} GB to "
            f"spare) and {free / 1e9:.2f} GB are free; nothing was downloaded, set BCI_ADAPT_CACHE to a larger disk"
        )


def entries(raw: Path, dandiset: str | None = None, version: str | None = None) -> list[Entry]:
    """Every fetched or half fetched file below `raw`, by dandiset, version and path; sizes are checked, digests not."""
    found: dict[Path, Entry] = {}
    for folder, names in _folders(raw, dandiset, version):
        for ending in (RECORD, PART_RECORD) if not _is_half_written(folder) else ():
            for file in (folder / name.removesuffix(ending) for name in names if name.endswith(ending)):
                found.setdefault(file, _entry(raw, file, ending))
    return sorted(found.values(), key=lambda entry: (entry.dandiset, entry.version, entry.path))


def _entry(raw: Path, file: Path, ending: str) -> Entry:
    dandiset, version, *components = file.relative_to(raw).parts
    entry = Entry(dandiset, version, "/".join(components), file, 0, BAD)
    if ending == PART_RECORD and not _record_of(file).is_file():
        part = part_of(file)
        return replace(entry, state=PARTIAL, size=part.lstat().st_size if part.exists() else 0)
    record = read_record(file)
    if record is None or record.asset.key != (entry.dandiset, entry.version, entry.path):
        return replace(entry, reason="its record cannot be read or is of another file; fetch it again")
    entry = replace(entry, record=record, size=record.asset.size)
    if file.is_symlink() or not file.is_file():
        return replace(entry, reason="it has a record but is not there; fetch it again, or `cache clean`")
    if (size := file.stat().st_size) != entry.size:
        return replace(entry, reason=f"{size:,} bytes where {entry.size:,} are recorded")
    return replace(entry, state=COMPLETE)


def verify(entry: Entry, progress: Progress | None = None) -> Entry:
    """`entry` with its digests computed anew: `VERIFIED`, or `BAD` with the digest found and the one recorded."""
    if entry.state != COMPLETE or entry.record is None:
        return entry
    wrong = mismatch(entry.file, entry.record.asset, progress)
    return replace(entry, state=VERIFIED if wrong is None else BAD, reason=wrong or "")


def clean(
    raw: Path,
    dandiset: str | None = None,
    version: str | None = None,
    *,
    everything: bool = False,
    dry_run: bool = False,
) -> tuple[list[Path], list[Path]]:
    """Remove what interrupted fetches left: parts, and records whose file is gone; with `everything`, all that was
    fetched. Returns what was removed (with `dry_run`: would be) and what was left because it has no record or is being
    fetched at this moment.
    """
    removed: list[Path] = []
    left: list[Path] = []

    def remove(path: Path) -> None:
        removed.append(path)
        if not dry_run:
            path.unlink()

    for folder, names in _folders(raw, dandiset, version):
        present = set(names)
        if _is_half_written(folder):
            old = time.time() - folder.stat().st_mtime > 60.0  # a younger one may be at work
            if old and all(name.endswith((RECORD, PART_RECORD)) for name in names):
                for name in names:
                    remove(folder / name)
            continue
        busy = set()
        for name in names:
            if name.endswith(PART_RECORD):
                file = folder / name.removesuffix(PART_RECORD)
                if not _unless_in_use(part_of(file), remove):
                    busy.add(file.name)
                else:
                    remove(part_record_of(file))
        for name in names:
            target = name.removesuffix(RECORD)
            if not name.endswith(RECORD) or target in busy:
                continue
            if everything and target in present:
                remove(folder / target)
            if everything or target not in present:
                remove(folder / name)
        if everything:
            left += [folder / name for name in names if folder / name not in removed]
    if not dry_run:
        for folder in sorted({each.parent for each in removed}, reverse=True):
            _remove_empty(folder, raw)
    return removed, left


def _is_half_written(folder: Path) -> bool:
    """Whether a folder is that of an atomic write (`bci_adapt.ground.storage.atomic_path`), left behind when one is
    killed.
    """
    return folder.name.startswith(".") and folder.name.endswith(PART)


def _unless_in_use(part: Path, remove: Callable[[Path], None]) -> bool:
    """Remove `part` if it is there and no process is writing it; False when one is."""
    try:
        handle = os.open(part, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        remove(part)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True


def _remove_empty(folder: Path, raw: Path) -> None:
    while folder != raw and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def _folders(raw: Path, dandiset: str | None, version: str | None) -> Iterator[tuple[Path, list[str]]]:
    """Every folder of the versions of dandisets in `raw`, with the names of its files; links are not followed."""
    for top in _subfolders(raw, dandiset, r"[0-9]{6}"):
        for base in _subfolders(top, version, rf"[0-9]+\.[0-9]+\.[0-9]+|{DRAFT}"):
            for folder, folders, names in os.walk(base, followlinks=False):
                folders.sort()
                yield Path(folder), sorted(names)


def _subfolders(folder: Path, name: str | None, pattern: str) -> list[Path]:
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return [
        each
        for each in found
        if re.fullmatch(pattern, each.name, re.ASCII)
        and name in (None, each.name)
        and each.is_dir()
        and not each.is_symlink()
    ]
