"""NWB files of a dandiset, fetched from the DANDI archive into the cache and pinned by a lock file."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bci_adapt.archive import cache as entries
from bci_adapt.archive.api import Archive, address_of_archive
from bci_adapt.archive.choosing import Wanted
from bci_adapt.archive.download import Progress, bytes_kept, download, part_of
from bci_adapt.archive.http import Patience
from bci_adapt.archive.listing import write_listing
from bci_adapt.archive.lock import DRAFT, NAME, Asset, Lock, check_version, read_lock, update_lock
from bci_adapt.archive.resolving import Resolver
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

    Files lie at ``<cache>/raw/<dandiset>/<version>/<asset path>``, those of a draft below the id of their asset (see
    `bci_adapt.archive.cache`), so that what another lock pins of it stays; the lock file is
    ``<cache>/raw/sessions.lock.toml`` unless `lock` names another. How a version was listed is kept in the cache, so
    that what is meant is known without the archive: with everything pinned and cached, an archive that cannot answer
    gets one short try and costs a note. Where it is not known, that is an error, and `offline` is the way to go on with
    what the lock and the cache hold, unless it has to be `sure` that this is all; where `lock` pins nothing yet, that
    is what a fetch pinned in the cache's own. A draft is used as it was pinned, and what became of it since is told
    asset by asset, until `update`, which moves all that the lock pins of it. `notes` says what a user should know.
    `anew` computes all digests again, however lately they were computed. `progress` is called from several threads.
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
        sure: bool = False,
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
        self.lock = Path(lock) if lock is not None else self.raw / NAME
        self.offline, self.update, self.progress, self.jobs, self.anew = offline, update, progress, jobs, anew
        self.sure = sure
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
            resolver = Resolver(
                self.dandiset, self.version, self.wanted, self._archive, self.raw, self.lock, self.offline, self.update,
                self._threads,
            )  # fmt: skip
            chosen = resolver.resolve(self._own(read_lock(self.lock)))
            if self.sure and chosen.unsure:
                raise InputError(f"{chosen.offline}; {chosen.unsure}; without --quiet these are used, with a note")
            self._selection = chosen
        return self._selection

    def _own(self, lock: Lock) -> Lock:
        if (lock.assets or lock.pinned) and lock.archive != self.api:
            raise InputError(
                f"{self.lock}: is a lock of the archive at {lock.archive}, and {self.api} is in use; set "
                "DANDI_INSTANCE to the archive of the lock, or use another lock file"
            )
        return replace(lock, archive=self.api)

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
            write_listing(entries.listing_of(self.raw, chosen.listing), chosen.listing)
        chosen.notes += [f"{asset.path} is fetched again: {wrong}" for asset, wrong in faults.items() if wrong]
        chosen.notes += [
            f"{asset.path} is fetched again: the cache kept one state of a draft at a time, and has another one of it"
            for asset in wanting
            if not self.update and asset in chosen.beside and entries.is_overwritten(self.raw, asset)
        ]
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
