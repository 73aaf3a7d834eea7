"""Files of the archive that lie in the cache, each with a record of what its bytes must be.

A file lies at ``<cache>/raw/<dandiset>/<version>/<asset path>``, where ``<cache>`` is
`bci_adapt.ground.storage.cache_root`; one of a draft at ``<dandiset>/draft/<asset id>/<asset path>``, because another
lock may pin another asset of the same path. Files of another archive than DANDI, whose dandisets may have the same
numbers, lie below ``<cache>/raw/at/<archive>`` in the same way. Beside a file, ``<name>.asset.json`` is its record: the
asset's id, size and digests, the licence of the version, the archive and when it came. The record is written after the
bytes are verified and before they get their name, so a file that was fetched always has one. An entry counts only as
long as its bytes have the recorded size and digests. The record says when they were last computed, and of which time of
change: within a day they are not computed again unless size or time have moved. ``<name>.part`` and
``<name>.part.json`` are a download that has not ended; ``<dandiset>/<version>.listing.json`` is how the archive listed
a version (`listing`), and ``<dandiset>/draft.<digest>.listing.json`` how it listed a state of a draft.

What lies at a draft's path without an id was fetched before files of drafts had one: its bytes are used by their
digest, and nothing is written there any more.

Nothing here follows a symbolic link below ``raw``, touches a file without a record, or any other folder of ``raw``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath

from bci_adapt.archive.download import Progress, compared, part_of
from bci_adapt.archive.listing import Listing
from bci_adapt.archive.lock import DANDI_API, DRAFT, PART, PART_RECORD, RECORD, UUID, Asset, asset_from
from bci_adapt.errors import InputError
from bci_adapt.ground.locks import taken
from bci_adapt.ground.storage import NOT_THROUGH_LINKS, atomic_path, cache_root, write_text

MARGIN_BYTES = 256 * 2**20
"""What stays free on the disk after a fetch."""
COMPLETE, VERIFIED, PARTIAL, BAD = "complete", "verified", "partial", "bad"
AT, LISTING = "at", ".listing.json"
TRUSTED_S = 24 * 3600.0
"""How long digests that were computed stand for a file whose size and time of change have not moved."""
_DANDISET = "[0-9]{6}"
_TICK_S = 0.05
"""A file that changes within this time of its verification may keep its time of change: clocks of disks are coarse."""


@dataclass(frozen=True)
class Checked:
    """When a file's digests were computed (seconds since 1970), of which time of change, and its ``sha2-256``."""

    at_s: float
    mtime_ns: int
    sha256: str


@dataclass(frozen=True)
class Record:
    """What is written down beside a fetched file; `checked` is None until its digests have been computed in place."""

    asset: Asset
    licence: str
    archive: str
    fetched: str
    checked: Checked | None = None


@dataclass(frozen=True)
class Entry:
    """One file of the cache as `entries` finds it, its state one of `COMPLETE`, `VERIFIED`, `PARTIAL` or `BAD`.

    `COMPLETE` has the recorded size, `VERIFIED` the digests too; `reason` says what is `BAD`. `size` is in bytes.
    `archive` is "" for the DANDI archive, else the name of the folder in ``raw/at``.
    """

    dandiset: str
    version: str
    path: str
    file: Path
    size: int
    state: str
    reason: str = ""
    record: Record | None = None
    archive: str = ""


def raw_folder(cache: Path | None = None) -> Path:
    """Where fetched files lie: ``raw`` of `cache`, or of the one in use."""
    return (cache_root() if cache is None else Path(cache).absolute()) / "raw"


def folder_of(raw: Path, api: str) -> Path:
    """Where the files of the archive with this address lie: `raw` itself for DANDI, a folder of ``raw/at`` for others.

    >>> folder_of(Path("raw"), "https://api.sandbox.dandiarchive.org/api").as_posix()
    'raw/at/api.sandbox.dandiarchive.org'
    """
    if api == DANDI_API:
        return raw
    return raw / AT / re.sub("[^A-Za-z0-9.-]", "_", api.partition("://")[2].removesuffix("/api"))


def listing_of(folder: Path, listing: Listing) -> Path:
    """Where a listing is kept, below the `folder_of` an archive: one of each version, and of each state of a draft."""
    state = f".{listing.state}" if listing.version == DRAFT else ""
    return folder / listing.dandiset / f"{listing.version}{state}{LISTING}"


def listings_of(folder: Path, dandiset: str, version: str) -> list[Path]:
    """Where listings of a version are kept below the `folder_of` an archive: of a draft several, the newest first."""
    states = "*" if version == DRAFT else ""
    found = (folder / dandiset).glob(f"{version}{states}{LISTING}")
    return sorted(found, key=lambda each: (each.stat().st_mtime_ns, each.name), reverse=True)


def file_of(raw: Path, asset: Asset) -> Path:
    """Where `asset` lies below `raw`, whether or not it is there; `InputError` when a symbolic link is on the way."""
    file = raw
    for component in _place(asset):
        file = file / component
        if file.is_symlink():
            raise InputError(
                f"{file}: is a symbolic link: not followed, {asset.path} is not fetched; remove it "
                "(to keep the cache elsewhere, set BCI_ADAPT_CACHE)"
            )
    return file


def _place(asset: Asset) -> tuple[str, ...]:
    """The components of where an asset lies; two states of a draft have different assets at one path."""
    state = (asset.asset_id,) if asset.version == DRAFT else ()
    return (asset.dandiset, asset.version, *state, *PurePosixPath(asset.path).parts)


def is_overwritten(raw: Path, asset: Asset) -> bool:
    """Whether a file of the same path lies where files of a draft lay before they had the id of their asset."""
    return asset.version == DRAFT and raw.joinpath(*asset.key).is_file()


def clashes(assets: Iterable[Asset]) -> dict[Asset, str]:
    """Assets that would lie at the place of one before them, on any file system, with the reason: the same letters, or
    a file where the other has a folder.
    """
    found: dict[Asset, str] = {}
    seen: dict[tuple[str, ...], Asset] = {}
    folders: dict[tuple[str, ...], Asset] = {}
    for asset in assets:
        folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", "/".join(_place(asset))).casefold())
        parts = tuple(folded.split("/"))
        above = [parts[:count] for count in range(1, len(parts))]
        other = seen.get(parts) or folders.get(parts) or next((seen[each] for each in above if each in seen), None)
        if other is not None and other.key != asset.key:
            found[asset] = (
                f"assets {other.path!r} and {asset.path!r} of {asset.dandiset}/{asset.version} would lie at one place; "
                "the second is refused"
            )
            continue
        seen[parts] = asset
        folders |= dict.fromkeys(above, asset)
    return found


def read_record(file: Path) -> Record | None:
    """The record beside a fetched file; None when there is none, or one that cannot be used."""
    try:
        fields = json.loads(_record_of(file).read_text(encoding="utf-8"))
        licence, archive, fetched = (fields.pop(name) for name in ("licence", "archive", "fetched"))
        if not all(isinstance(each, str) for each in (licence, archive, fetched)):
            return None
        checked = fields.pop("checked", None)
        checked = None if checked is None else Checked(**checked)
        return Record(asset_from(fields), licence, archive, fetched, checked)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):  # InputError is a ValueError
        return None


def write_record(file: Path, record: Record) -> None:
    """Write the record beside `file`, atomically."""
    about = {"licence": record.licence, "archive": record.archive, "fetched": record.fetched}
    about |= {} if record.checked is None else {"checked": asdict(record.checked)}
    write_text(_record_of(file), json.dumps(record.asset.to_dict() | about, ensure_ascii=False, indent=1) + "\n")


def _record_of(file: Path) -> Path:
    return file.with_name(file.name + RECORD)


def fault(file: Path, asset: Asset, progress: Progress | None = None, anew: bool = False) -> str | None:
    """Why the file that should be `asset` is not; "" when it is not there, None when it is.

    Its digests are computed, and that is written into its record, unless they were within `TRUSTED_S` and neither its
    size nor its time of change have moved since; always with `anew`. `InputError` when other bytes lie there that were
    not fetched: they are never overwritten.
    """
    if not file.exists():
        return ""
    record = read_record(file)
    if not anew and record is not None and _is_trusted(file, record, asset):
        return None
    wrong, sha256, before = "not a file", "", file.stat()
    if file.is_file():
        wrong, sha256 = compared(file, asset, progress)
    if wrong is None and record is not None and record.asset.same_bytes(asset):
        write_record(file, replace(record, checked=Checked(time.time(), before.st_mtime_ns, sha256)))
    if wrong is not None:
        require_record(file, asset, wrong)
    return wrong


def require_record(file: Path, asset: Asset, wrong: str = "other bytes") -> None:
    """`InputError` for a file in the place of `asset` that was not fetched: it is never overwritten."""
    if not _record_of(file).is_file():
        raise InputError(f"{file}: is in the way of {asset.path} and was not fetched ({wrong}); move it away")


def is_trusted(file: Path, asset: Asset) -> bool:
    """Whether `file` is `asset` as far as its record, size and time of change tell; nothing is computed."""
    record = read_record(file)
    return record is not None and file.is_file() and _is_trusted(file, record, asset)


def is_damaged(file: Path, asset: Asset, progress: Progress | None = None, anew: bool = False) -> bool:
    """Whether a file has other bytes than `asset`. Its digests are computed where size or time of change are not those
    that they were computed of, and with `anew`; nothing is written.
    """
    record = read_record(file)
    if not anew and record is not None and record.asset.same_bytes(asset) and record.checked is not None:
        status = file.stat()
        if (status.st_size, status.st_mtime_ns) == (asset.size, record.checked.mtime_ns):
            return asset.sha256 not in ("", record.checked.sha256)
    return not file.is_file() or compared(file, asset, progress)[0] is not None


def _is_trusted(file: Path, record: Record, asset: Asset) -> bool:
    status, checked = file.stat(), record.checked
    return (
        checked is not None
        and record.asset.same_bytes(asset)
        and (status.st_size, status.st_mtime_ns) == (asset.size, checked.mtime_ns)
        and asset.sha256 in ("", checked.sha256)
        and checked.at_s - checked.mtime_ns / 1e9 > _TICK_S
        and 0.0 <= time.time() - checked.at_s < TRUSTED_S
    )


def require_whole(file: Path) -> None:
    """`InputError` unless a fetched file has the digests of its record, which are computed anew."""
    record = read_record(file)
    if record is None:
        raise InputError(
            f"{file}: has no record of a fetch beside it: no digest is known to verify it by; leave out --verify"
        )
    if (wrong := fault(file, record.asset, anew=True)) is not None:
        raise InputError(f"{file}: {wrong or 'is not there'}; fetch it again")


def twins(folder: Path, assets: Iterable[Asset]) -> dict[Asset, Path]:
    """Files of the same dandiset, below the `folder_of` an archive, that hold the bytes of `assets` under another path
    or version by what their records say.
    """
    wanted = {asset: file_of(folder, asset) for asset in assets}
    found: dict[Asset, Path] = {}
    for dandiset in {asset.dandiset for asset in wanted}:
        held = [each for each in _entries_below(folder, dandiset, None) if each.state == COMPLETE]
        by_size: dict[int, list[Entry]] = {}
        for entry in held:
            by_size.setdefault(entry.size, []).append(entry)
        for asset, file in wanted.items():
            for entry in by_size.get(asset.size, ()) if asset.dandiset == dandiset else ():
                if entry.file != file and entry.record is not None and entry.record.asset.same_bytes(asset):
                    found.setdefault(asset, entry.file)
    return found


def share(twin: Path, file: Path, record: Record) -> bool:
    """Make `file` the same bytes as `twin`, stored once where the disk can (a hard link), else copied; returns which.

    Neither is ever written in place, so that no later fetch can change one through the other. `InputError` where there
    is no room for a copy.
    """
    write_record(file, record)
    with atomic_path(file) as temporary:
        try:
            os.link(twin, temporary)
        except OSError:  # another disk, or one without links
            check_room(file.parent, record.asset.size)
            shutil.copy2(twin, temporary)
            return False
    return True


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
    """Every fetched or half fetched file below `raw`, by archive, dandiset, version and path; sizes are checked,
    digests not.
    """
    return [
        replace(entry, archive="" if folder == raw else folder.name)
        for folder in _archives(raw)
        for entry in _entries_below(folder, dandiset, version)
    ]


def _archives(raw: Path) -> list[Path]:
    """`raw` and the folders of the archives besides DANDI in it."""
    return [raw, *_subfolders(raw / AT, None, r"[A-Za-z0-9._-]+")] if not (raw / AT).is_symlink() else [raw]


def _entries_below(raw: Path, dandiset: str | None, version: str | None) -> list[Entry]:
    found: dict[Path, Entry] = {}
    for folder, names in _folders(raw, dandiset, version):
        for ending in (RECORD, PART_RECORD) if not _is_half_written(folder) else ():
            for file in (folder / name.removesuffix(ending) for name in names if name.endswith(ending)):
                found.setdefault(file, _entry(raw, file, ending))
    return sorted(found.values(), key=lambda entry: (entry.dandiset, entry.version, entry.path))


def _entry(raw: Path, file: Path, ending: str) -> Entry:
    dandiset, version, *components = file.relative_to(raw).parts
    by_id = version == DRAFT and len(components) > 1 and re.fullmatch(UUID, components[0], re.ASCII) is not None
    entry = Entry(dandiset, version, "/".join(components[1:] if by_id else components), file, 0, BAD)
    if ending == PART_RECORD and not _record_of(file).is_file():
        part = part_of(file)
        return replace(entry, state=PARTIAL, size=part.lstat().st_size if part.exists() else 0)
    record = read_record(file)
    places = () if record is None else (_place(record.asset), tuple("/".join(record.asset.key).split("/")))
    if record is None or (dandiset, version, *components) not in places:
        return replace(entry, reason="its record cannot be read or is of another file; fetch it again")
    entry = replace(entry, path=record.asset.path, record=record, size=record.asset.size)
    if file.is_symlink() or not file.is_file():
        return replace(entry, reason="it has a record but is not there; fetch it again, or `cache clean`")
    if (size := file.stat().st_size) != entry.size:
        return replace(entry, reason=f"{size:,} bytes where {entry.size:,} are recorded")
    return replace(entry, state=COMPLETE)


def verify(entry: Entry, progress: Progress | None = None) -> Entry:
    """`entry` with its digests computed anew: `VERIFIED`, or `BAD` with the digest found and the one recorded."""
    if entry.state != COMPLETE or entry.record is None:
        return entry
    wrong = fault(entry.file, entry.record.asset, progress, anew=True)
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
    fetched, and the listings. Returns what was removed (with `dry_run`: would be) and what was left because it has no
    record or is being fetched at this moment.
    """
    removed: list[Path] = []
    left: list[Path] = []

    def remove(path: Path) -> None:
        removed.append(path)
        if not dry_run:
            path.unlink()

    for archive in _archives(raw):
        for folder, names in _folders(archive, dandiset, version):
            left += _clean_folder(folder, names, everything, remove)
        for top in _subfolders(archive, dandiset, _DANDISET) if everything else ():
            kept = listings_of(archive, top.name, version) if version else top.glob(f"*{LISTING}")
            for listing in sorted(kept):
                remove(listing)
    if not dry_run:
        for folder in sorted({each.parent for each in removed}, reverse=True):
            _remove_empty(folder, raw)
    return removed, left


def _clean_folder(folder: Path, names: list[str], everything: bool, remove: Callable[[Path], None]) -> list[Path]:
    """Remove from one folder what `clean` removes; returns what is left in it when `everything` is to go."""
    gone: set[str] = set()

    def take(name: str) -> None:
        remove(folder / name)
        gone.add(name)

    if _is_half_written(folder):
        old = time.time() - folder.stat().st_mtime > 60.0  # a younger one may be at work
        if old and all(name.endswith((RECORD, PART_RECORD, LISTING)) for name in names):
            for name in names:
                take(name)
        return []
    present, busy = set(names), set()
    for name in names:
        if name.endswith(PART_RECORD):
            part = part_of(folder / name.removesuffix(PART_RECORD))
            if not _unless_in_use(part, lambda path: take(path.name)):
                busy.add(name.removesuffix(PART_RECORD))
            else:
                take(name)
    for name in names:
        target = name.removesuffix(RECORD)
        if not name.endswith(RECORD) or target in busy:
            continue
        if everything and target in present:
            take(target)
        if everything or target not in present:
            take(name)
    return [folder / name for name in names if name not in gone] if everything else []


def _is_half_written(folder: Path) -> bool:
    """Whether a folder is that of an atomic write (`bci_adapt.ground.storage.atomic_path`), left behind when one is
    killed.
    """
    return folder.name.startswith(".") and folder.name.endswith(PART)


def _unless_in_use(part: Path, remove: Callable[[Path], None]) -> bool:
    """Remove `part` if it is there and no process is writing it; False when one is."""
    try:
        handle = os.fdopen(os.open(part, os.O_RDWR | NOT_THROUGH_LINKS), "r+b")
    except FileNotFoundError:
        return True
    except OSError:
        return False
    with handle:
        if not taken(handle):
            return False
        remove(part)
    return True


def _remove_empty(folder: Path, raw: Path) -> None:
    while folder != raw and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def _folders(raw: Path, dandiset: str | None, version: str | None) -> Iterator[tuple[Path, list[str]]]:
    """Every folder of the versions of dandisets in `raw`, with the names of its files; links are not followed."""
    for top in _subfolders(raw, dandiset, _DANDISET):
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
