"""NWB files of a dandiset, fetched from the DANDI archive into the cache and pinned by a lock file."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bci_adapt.archive import cache as entries
from bci_adapt.archive.api import Archive, address_of_archive, no_version
from bci_adapt.archive.choosing import Wanted
from bci_adapt.archive.download import Progress, bytes_kept, download, part_of
from bci_adapt.archive.drafts import Mixture, moved, refuse_mixture
from bci_adapt.archive.http import Patience, Unreachable
from bci_adapt.archive.listing import About, Listing, Row, read_listing, write_listing
from bci_adapt.archive.lock import DRAFT, NAME, Asset, Lock, check_version, read_lock, update_lock
from bci_adapt.archive.selection import Selection
from bci_adapt.archive.sources.base import Source, sessions_of
from bci_adapt.archive.threads import in_threads
from bci_adapt.errors import InputError
from bci_adapt.ground import catalog
from bci_adapt.ground.jobs import content_is

if TYPE_CHECKING:
    import pandas as pd

MAX_JOBS = 32
_T = TypeVar("_T")
_R = TypeVar("_R")


class Dandi(Source):
    """The NWB files of a dandiset that the globs select; what is missing in the cache is fetched.

    `version` is a published one, or ``draft`` (which changes, so a note warns of it); without it, the version that the
    lock file pins, else the latest published one, which is then pinned there. `update` asks the archive again and pins
    what is published now (or `version`). `paths`, `subject`, `session` and `exclude` are those of
    `bci_adapt.archive.choosing.Wanted`; each of `paths` must match something.

    Files lie at ``<cache>/raw/<dandiset>/<version>/<asset path>`` (see `bci_adapt.archive.cache`); the lock file is
    ``<cache>/raw/sessions.lock.toml`` unless `lock` names another. How a version was listed is kept in the cache, so
    that what is meant is known without the archive: with everything pinned and cached, an archive that cannot answer
    gets one short try and costs a note. Where it is not known, that is an error, and `offline` is the way to go on with
    what the lock and the cache hold; where `lock` pins nothing yet, that is what a fetch pinned in the cache's own. A
    draft is used as it was pinned, and what became of it since is told asset by asset, until `update`, which moves all
    that the lock pins of it. `notes` says what a user should know. `anew` computes all digests again, however lately
    they were computed. `progress` is called from several threads.
    """

    name = "dandi"

    def __init__(
        self,
        dandiset: str,
        version: str | None = None,
        paths: Sequence[str] = (),
        subject: str | None = None,
        session: str | None = None,
        lock: Path | None = None,
        cache: Path | None = None,
        offline: bool = False,
        update: bool = False,
        progress: Progress | None = None,
        jobs: int = 4,
        patience: Patience | None = None,
        exclude: Sequence[str] = (),
        anew: bool = False,
    ) -> None:
        """Raise `InputError` for what cannot be a dandiset or version; the archive is not asked yet."""
        check_version(dandiset, *([] if version is None else [version]))
        if not 1 <= jobs <= MAX_JOBS:
            raise InputError(f"jobs must be 1 to {MAX_JOBS} files at a time, got {jobs}")
        if offline and update:
            raise InputError("update asks the archive for its latest version, which offline forbids; choose one")
        self.dandiset, self.version = dandiset, version
        globs = [(each,) if isinstance(each, str) else tuple(each) for each in (paths, exclude)]
        self.wanted = Wanted(globs[0], subject, session, globs[1])
        self.api = address_of_archive()
        self.raw = entries.folder_of(entries.raw_folder(cache), self.api)
        self._cached = self.raw / NAME
        self.lock = Path(lock) if lock is not None else self._cached
        self.offline, self.update, self.progress, self.jobs, self.anew = offline, update, progress, jobs, anew
        self.patience, self.stop = patience, threading.Event()
        self._selection: Selection | None = None
        self._listed: pd.DataFrame | None = None
        self._obtained: dict[Path, entries.Record] = {}

    # What is meant

    def select(self) -> Selection:
        """Resolve version and globs to files, without writing or fetching anything; asked once.

        `InputError` for a dandiset, version or path that does not exist (with the nearest ones), a lock of another
        archive, and, when the archive is not asked or does not answer, for what is not known without it.
        """
        if self._selection is None:
            self._selection = self._resolve(self._own(read_lock(self.lock)))
        return self._selection

    def _own(self, lock: Lock) -> Lock:
        if (lock.assets or lock.pinned) and lock.archive != self.api:
            raise InputError(
                f"{self.lock}: is a lock of the archive at {lock.archive}, and {self.api} is in use; set "
                "DANDI_INSTANCE to the archive of the lock, or use another lock file"
            )
        return replace(lock, archive=self.api)

    def _pinned_by_fetch(self, lock: Lock, is_kept: bool) -> Callable[[str], Selection] | None:
        """What goes on without the archive, by the lock that `fetch` keeps in the cache, where another one is in use
        that pins nothing; None where that lock does not tell all that is meant either.
        """
        own = self.dandiset in lock.pinned if self.version is None else lock.of(self.dandiset, self.version)
        if self.update or own or is_kept or self._cached == self.lock:
            return None
        try:
            other = read_lock(self._cached)
        except InputError:  # it is not the one in use
            return None
        version = self.version or other.pinned.get(self.dandiset)
        if version is None or other.archive != self.api or not other.of(self.dandiset, version):
            return None
        kept = self._kept(version, other)
        if kept is None and not self.wanted.is_exact(asset.path for asset in other.of(self.dandiset, version)):
            return None

        def chosen(why: str) -> Selection:
            found = self._without_archive(other, version, kept, why)
            where = f"{self.dandiset}/{version}" if self.version is not None else self.dandiset
            note = f"{self.lock} pins nothing of {where}: used is what a fetch pinned in {self._cached} ({version})"
            return replace(found, notes=[note, *found.notes], beside=[])

        return chosen

    def _resolve(self, lock: Lock) -> Selection:
        version = self.version or (None if self.update else lock.pinned.get(self.dandiset))
        locked = [] if self.update or version is None else lock.of(self.dandiset, version)
        kept = self._kept(version, lock) if version is not None and not self.update else None
        by_fetch = self._pinned_by_fetch(lock, kept is not None)
        if self.offline:
            return by_fetch("offline") if by_fetch else self._without_archive(lock, version, kept, "offline")
        is_known = kept is not None or self.wanted.is_exact(asset.path for asset in locked)
        meant = [asset for asset in locked if self.wanted.takes(asset.path)]
        is_there = bool(meant) and all(entries.file_of(self.raw, asset).is_file() for asset in meant)
        try:
            with self._archive.in_haste() if is_known or is_there or by_fetch else nullcontext():
                version, listing, notes, drift = self._ask(lock, version, kept)
        except Mixture:
            raise
        except InputError as error:
            if is_known:
                return self._without_archive(lock, version, kept, str(error))
            if by_fetch:
                return by_fetch(str(error))
            raise self._advised(error, lock, version, is_there) from error
        return self._chosen(version, listing, lock, notes, drift=drift)

    def _kept(self, version: str, lock: Lock) -> Listing | None:
        """The listing of an earlier fetch where it is what the lock pins; of a draft the lock has to pin something."""
        if version == DRAFT and not lock.of(self.dandiset, version):
            return None
        kept = read_listing(entries.listing_of(self.raw, self.dandiset, version), self.dandiset, version)
        return kept if kept is not None and kept.agrees(lock) else None

    def _advised(self, error: InputError, lock: Lock, version: str | None, is_there: bool) -> InputError:
        """An archive that does not answer, with what can be done without it."""
        text = str(error)
        if is_there:
            text += (
                f"; {self.lock} may not have all that is meant: --offline goes on with the files of "
                f"{self.dandiset}/{version} that it has"
            )
        elif self.update and any(key[0] == self.dandiset for key in lock.assets):
            text += "; without --update the pinned files are used"
        elif isinstance(error, Unreachable) and version is None:
            text += f", and no version of {self.dandiset} is pinned in {self.lock}; fetch it online first"
        elif isinstance(error, Unreachable) and not lock.of(self.dandiset, version or ""):
            text += f", and {self.lock} has no file of {self.dandiset}/{version}; fetch it online first"
        return type(error)(text)

    def _without_archive(self, lock: Lock, version: str | None, kept: Listing | None, why: str) -> Selection:
        """What is meant, as far as the lock and a kept listing tell."""
        if version is None:
            raise InputError(f"{why}: no version of {self.dandiset} is pinned in {self.lock}; fetch it online first")
        locked = lock.of(self.dandiset, version)
        if not locked and kept is None:
            raise InputError(f"{why}: {self.lock} has no file of {self.dandiset}/{version}; fetch it online first")
        unsure = ""
        if kept is None and not self.wanted.is_exact(asset.path for asset in locked):
            meant = sum(self.wanted.takes(asset.path) for asset in locked)
            unsure = (
                f"used are {meant} of the {len(locked)} files of {self.dandiset}/{version} in {self.lock}; the archive "
                "may have more that are meant"
            )
        notes = [*self._draft_note(version), f"{why}; " + (unsure or "all that is meant is known without the archive")]
        return self._chosen(version, kept, lock, notes, offline=why, unsure=unsure)

    def _ask(
        self, lock: Lock, version: str | None, kept: Listing | None
    ) -> tuple[str, Listing | None, list[str], dict[str, str]]:
        """Version, listing to choose from (None: the lock alone), notes and drift, as the archive tells them."""
        newest = self._archive.newest(self.dandiset) if version != DRAFT else None
        if version is None and (version := newest) is None:
            raise no_version(self.dandiset)
        notes = self._draft_note(version)
        if newest is not None and _number(newest) > _number(version):
            how = "used as asked" if self.version else "used until --update"
            notes.append(f"{self.dandiset}/{newest} has been published since {version}, which is {how}")
        if kept is not None and version != DRAFT:
            return version, replace(kept, about=self._archive.about(self.dandiset, version)), notes, {}
        listing = self._archive.listing(self.dandiset, version)
        pinned = {} if self.update else self._pinned(lock, version, kept)
        drift = {}
        if version == DRAFT and pinned:
            drift = self._drift(listing, pinned)
            notes += [
                f"{path} was {what} in the draft since it was pinned; used is the pinned one until --update"
                for path, what in drift.items()
                if self.wanted.takes(path)
            ]
            if kept is not None:
                known = {row.path for row in kept.rows}
                new = [row.path for row in listing.rows if row.path not in known and self.wanted.takes(row.path)]
                notes += [f"{path} came into the draft since it was pinned; not used until --update" for path in new]
                listing = replace(kept, about=listing.about)
            elif drift:
                meant = [row.path for row in listing.rows if row.is_nwb and self.wanted.takes(row.path)]
                refuse_mixture(self.dandiset, self.lock, meant, pinned, drift)
                return version, None, notes, drift
        return version, self._with_digests(listing, pinned, drift, lock), notes, drift

    def _pinned(self, lock: Lock, version: str, kept: Listing | None) -> dict[str, Asset | Row]:
        """What is pinned of a version by path: the rows of the listing that belongs to the lock, and what it holds."""
        rows = {row.path: row for row in kept.rows if self.wanted.takes(row.path)} if kept is not None else {}
        return {**rows, **{asset.path: asset for asset in lock.of(self.dandiset, version)}}

    def _drift(self, listing: Listing, pinned: dict[str, Asset | Row]) -> dict[str, str]:
        """What became of pinned assets in the draft: ``deleted``, or ``replaced`` by one with other bytes."""
        now, drift = {row.path: row for row in listing.rows}, {}
        for path, old in pinned.items():
            row = now.get(path)
            if row is None:
                drift[path] = "deleted"
            elif row.asset_id != old.asset_id and not self._holds_the_same(row, old):
                drift[path] = "replaced"
        return drift

    def _holds_the_same(self, row: Row, old: Asset | Row) -> bool:
        """Whether an asset got a new id and kept its bytes, as it does when its metadata are edited."""
        if not isinstance(old, Asset) or row.size != old.size:
            return False
        told = row if row.digests is not None else self._archive.with_digests(self.dandiset, DRAFT, row)
        try:
            return told.asset(self.dandiset, DRAFT).same_bytes(old)
        except InputError:  # it cannot be used, so it is not the same
            return False

    def _with_digests(
        self, listing: Listing, pinned: dict[str, Asset | Row], drift: Collection[str], lock: Lock
    ) -> Listing:
        """`listing` with the digests of what is meant or moves; those of a draft have to be asked for one by one."""
        moving = {asset.path for asset in lock.of(self.dandiset, listing.version)} if self.update else set()

        def is_lacking(row: Row) -> bool:
            if row.digests is not None or not row.is_nwb or isinstance(pinned.get(row.path), Asset):
                return False
            if row.path in drift:  # its page has gone with it
                return False
            is_used = self.wanted.takes(row.path) or row.path in moving
            return is_used and not _refusal(lambda: row.check(self.dandiset, listing.version))

        lacking = [row for row in listing.rows if is_lacking(row)]
        told = self._threads(lambda row: self._archive.with_digests(self.dandiset, listing.version, row), lacking)
        by_path = {row.path: row for row in told}
        return replace(listing, rows=tuple(by_path.get(row.path, row) for row in listing.rows))

    def _draft_note(self, version: str) -> list[str]:
        note = (
            f"{self.dandiset}/{DRAFT} is a draft: its files may change; those in use are pinned by id and digest in "
            f"{self.lock} until --update"
        )
        return [note] if version == DRAFT else []

    def _chosen(
        self,
        version: str,
        listing: Listing | None,
        lock: Lock,
        notes: list[str],
        offline: str = "",
        unsure: str = "",
        drift: dict[str, str] | None = None,
    ) -> Selection:
        """The selection; what the lock says about a path stands until an update."""
        rows = {row.path: row for row in listing.rows} if listing is not None else {}
        locked = {} if self.update else {asset.path: asset for asset in lock.of(self.dandiset, version)}
        known = sorted({*rows, *locked})
        wanted = self.wanted.exactly(known)
        meant = [path for path in known if wanted.takes(path)]
        taken = [path for path in meant if path in locked or rows[path].is_nwb]
        skipped = [path for path in meant if path not in taken]
        where = f"{self.dandiset}/{version}"
        if skipped and not taken:
            kind = "a zarr asset (a folder)" if rows[skipped[0]].is_zarr else "not an NWB file"
            raise InputError(
                f"{where}: {skipped[0]!r} is {kind}; only NWB files in HDF5 (*.nwb) are read, and none of them is "
                "selected"
            )
        if why := wanted.unmet(known, taken, where):
            raise InputError(f"{offline}: {why}" if offline else why)
        if skipped:
            named = ", ".join(map(repr, skipped[:3])) + (", …" if len(skipped) > 3 else "")
            notes.append(f"{len(skipped)} assets that are not NWB files in HDF5 are left out: {named}")
        refused: dict[str, str] = {}
        assets = {}
        for path in taken:
            try:
                asset = locked.get(path) or rows[path].asset(self.dandiset, version)
                assets[asset] = entries.file_of(self.raw, asset)
            except InputError as error:
                refused[path] = str(error)
                if drift and path in drift and path not in locked:
                    refused[path] = f"{path} was {drift[path]} in the draft before it was fetched; --update moves on"
        beside = [asset for asset in lock.of(self.dandiset, version) if not (self.update and asset.path in meant)]
        if self.update and version == DRAFT:
            beside, told = moved(beside, rows, self.lock)
            notes += told
        for asset, why in entries.clashes([*beside, *assets]).items():
            if assets.pop(asset, None) is not None:
                refused[asset.path] = why
        if refused and not assets:
            raise InputError(next(iter(refused.values())))
        notes += [f"left out: {why}" for why in refused.values()]
        about = listing.about if listing is not None else self._recorded(assets)
        notes += [f"exclude {glob!r} leaves out nothing of {where}" for glob in self.wanted.idle(rows)]
        notes.append(f"licence of {where}: {about.licence}")
        absent = [asset for asset, file in assets.items() if not file.is_file()]
        twins = entries.twins(self.raw, absent) if absent else {}
        return Selection(
            self.dandiset, version, about, assets, notes, offline, unsure, refused, drift or {}, twins, listing, beside
        )

    def _recorded(self, assets: dict[Asset, Path]) -> About:
        """What the records of fetched files say of their version."""
        found = [record for file in assets.values() if (record := entries.read_record(file)) is not None]
        return About(found[0].licence) if found else About()

    # What is there

    def obtain(self) -> list[Path]:
        """Make every selected file available and return their paths, in the order of the assets' paths.

        Files in the cache are verified (see `bci_adapt.archive.cache.fault`), and bytes that lie there under another
        version are not fetched again. The lock file is written before anything is fetched. `InputError` when there is
        no room for all of it; when a file cannot be had, after the others were fetched.
        """
        chosen = self.select()
        faults = dict(zip(chosen.files, self._threads(self._fault, chosen.files.items()), strict=True))
        missing = {asset: chosen.files[asset] for asset, wrong in faults.items() if wrong is not None}
        twins = {asset: twin for asset, twin in entries.twins(self.raw, missing).items() if self._is_sound(twin)}
        wanting = {asset: file for asset, file in missing.items() if asset not in twins}
        if chosen.offline and wanting:
            named = ", ".join(asset.path + (f" ({faults[asset]})" if faults[asset] else "") for asset in [*wanting][:3])
            more = f" and {len(wanting) - 3} more" if len(wanting) > 3 else ""
            raise InputError(f"{chosen.offline}; missing in the cache: {named}{more}; fetch it online")
        entries.check_room(self.raw, sum(asset.size - bytes_kept(file, asset) for asset, file in wanting.items()))
        update_lock(self.lock, self._into_lock)
        if chosen.listing is not None:
            write_listing(entries.listing_of(self.raw, self.dandiset, chosen.version), chosen.listing)
        chosen.notes += [f"{asset.path} is fetched again: {wrong}" for asset, wrong in faults.items() if wrong]
        if twins:
            chosen.notes.append(f"{len(twins)} files lie in the cache under another version or path: not fetched again")
        copied = [asset for asset, twin in twins.items() if not self._share(twin, missing[asset], asset)]
        if copied:
            size = sum(asset.size for asset in copied) / 1e6
            chosen.notes.append(
                f"{len(copied)} of them are stored a second time ({size:,.1f} MB): the disk of {self.raw} cannot give "
                "one file two names (hard links)"
            )
        self._threads(self._fetch_one, wanting.items())
        chosen.obtained = dict.fromkeys(chosen.files, "cached") | dict.fromkeys(twins, "reused")
        chosen.obtained |= dict.fromkeys(wanting, "fetched")
        for asset, file in chosen.files.items():
            record = entries.read_record(file)
            if record is None or record.asset != asset or record.archive != self.api:
                # its bytes are right: only what is written about it is missing, or of another version
                record = self._record(asset, record.checked if record is not None else None)
                entries.write_record(file, record)
            if record.checked is not None and entries.is_trusted(file, asset):
                content_is(file, record.checked.sha256)
            self._obtained[file] = record
        chosen.refuse()
        return list(chosen.files.values())

    def _share(self, twin: Path, file: Path, asset: Asset) -> bool:
        record = entries.read_record(twin)
        return entries.share(twin, file, self._record(asset, record.checked if record is not None else None))

    def _fault(self, item: tuple[Asset, Path]) -> str | None:
        return entries.fault(item[1], item[0], self.progress, self.anew)

    def _is_sound(self, twin: Path) -> bool:
        record = entries.read_record(twin)
        return record is not None and entries.fault(twin, record.asset, self.progress, self.anew) is None

    def _into_lock(self, lock: Lock) -> Lock:
        lock, chosen = self._own(lock), self.select()
        pin = chosen.version != DRAFT and (self.update or self.dandiset not in lock.pinned)
        pinned = lock.pinned | ({self.dandiset: chosen.version} if pin else {})
        old, drop = lock.of(self.dandiset, chosen.version), list[Asset]()
        if chosen.version != DRAFT and self.update:
            drop = [asset for asset in old if self.wanted.takes(asset.path)]
        elif chosen.version == DRAFT and self.update:  # as a whole, so that no lock holds two states of it
            drop = old
        elif chosen.version == DRAFT and old != chosen.beside and not (chosen.listing and chosen.listing.agrees(lock)):
            raise InputError(f"{self.lock}: another process moved what it pins of {self.dandiset}/{DRAFT}; start again")
        rest = chosen.beside if chosen.version == DRAFT and self.update else []
        return replace(lock, pinned=pinned).with_assets([*rest, *chosen.files], drop=drop)

    def _record(self, asset: Asset, checked: entries.Checked | None = None) -> entries.Record:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return entries.Record(asset, self.select().about.licence, self.api, now, checked)

    def _fetch_one(self, item: tuple[Asset, Path]) -> None:
        asset, file = item

        def verified() -> None:
            changed_ns = part_of(file).stat().st_mtime_ns  # which the file keeps as it gets its name
            checked = entries.Checked(time.time(), changed_ns, asset.sha256) if asset.sha256 else None
            entries.write_record(file, self._record(asset, checked))

        download(
            self._archive.download_address(asset.asset_id),
            file,
            asset,
            token=self._archive.token,
            verified=verified,
            patience=self.patience,
            stop=self.stop,
            progress=self.progress,
        )

    def _threads(self, work: Callable[[_T], _R], items: Iterable[_T]) -> Sequence[_R]:
        return in_threads(work, items, self.jobs, self.stop)

    # Source

    def list(self) -> pd.DataFrame:
        """See `Source.list`: selected files are fetched where missing; `InputError` when two are one session."""
        table = sessions_of(self.obtain(), f"dandiset {self.dandiset}")
        self._listed = table.copy()
        return table

    def fetch(self, session_id: str) -> Path:
        """See `Source.fetch`; what `list` fetched and verified is not verified again."""
        table = self.list() if self._listed is None else self._listed
        if session_id not in table.index:
            raise InputError(f"dandiset {self.dandiset}: {catalog.unknown(session_id, table.index, 'session')}")
        return Path(table.loc[session_id, "path"])

    def provenance(self, session_id: str) -> dict[str, str]:
        """See `Source.provenance`: dandiset, dandiset_version, asset_path and licence."""
        record = self._obtained[self.fetch(session_id)]
        asset = record.asset
        about = {"dandiset": asset.dandiset, "dandiset_version": asset.version, "asset_path": asset.path}
        return {**about, "licence": record.licence}

    def notes(self) -> Sequence[str]:
        """See `Source.notes`: licence, draft and its drift, what is left out, no answer, a newer version, damage."""
        return [] if self._selection is None else [*self._selection.notes]

    def datasets(self) -> Sequence[dict[str, Any]]:
        """See `Source.datasets`."""
        chosen = self.select()
        about = {"dandiset": chosen.dandiset, "version": chosen.version, "archive": self.api}
        about |= {"licence": chosen.about.licence, "authors": [*chosen.about.authors]}
        return [{**about, "citation": chosen.about.citation}]

    @cached_property
    def _archive(self) -> Archive:
        return Archive(self.patience, self.stop)


def _number(version: str) -> tuple[int, ...]:
    """A published version as numbers, in the order of publication; that of a draft is the last."""
    return tuple(map(int, version.split("."))) if version != DRAFT else (2**31,)


def _refusal(check: Callable[[], object]) -> str:
    try:
        check()
    except InputError as error:
        return str(error)
    return ""
