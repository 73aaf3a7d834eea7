"""What is meant of a dandiset: a version and its files, from the lock, a kept listing and the archive."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bci_adapt.archive import cache as entries
from bci_adapt.archive.api import Archive, no_version
from bci_adapt.archive.choosing import Wanted
from bci_adapt.archive.drafts import Mixture, moved, refuse_mixture, refuse_two_states
from bci_adapt.archive.http import Unreachable
from bci_adapt.archive.listing import About, Listing, Row, read_listing
from bci_adapt.archive.lock import DRAFT, NAME, Asset, Lock, read_lock
from bci_adapt.archive.selection import Selection
from bci_adapt.errors import InputError


@dataclass(frozen=True)
class _ByFetch:
    """What the lock in the cache pins of what is asked for: which of its files are meant, and whether these are all."""

    lock: Lock
    version: str
    kept: Listing | None
    is_known: bool
    meant: list[Asset]


@dataclass(frozen=True)
class Resolver:
    """What was asked for, and where it can be looked up: `raw` is the folder of an archive in the cache, `lock` the
    lock file in use, and `in_threads` does a piece of work for each of some items, several at a time.
    """

    dandiset: str
    version: str | None
    wanted: Wanted
    archive: Archive
    raw: Path
    lock: Path
    offline: bool
    update: bool
    in_threads: Callable[[Callable[[Any], Any], Iterable[Any]], Sequence[Any]]

    @property
    def _cached(self) -> Path:
        """The lock file that `fetch` keeps in the cache."""
        return self.raw / NAME

    def _by_fetch(self, lock: Lock, is_kept: bool) -> _ByFetch | None:
        """What the lock that `fetch` keeps in the cache pins, where another one is in use that pins nothing."""
        own = self.dandiset in lock.pinned if self.version is None else lock.of(self.dandiset, self.version)
        if self.update or own or is_kept or self._cached == self.lock:
            return None
        try:
            other = read_lock(self._cached)
        except InputError:  # it is not the one in use
            return None
        version = self.version or other.pinned.get(self.dandiset)
        if version is None or other.archive != lock.archive or not (pinned := other.of(self.dandiset, version)):
            return None
        kept = self._kept(version, other)
        is_known = kept is not None or self.wanted.is_exact(asset.path for asset in pinned)
        return _ByFetch(other, version, kept, is_known, [each for each in pinned if self.wanted.takes(each.path)])

    def _taken_over(self, fetched: _ByFetch, why: str) -> Selection:
        """What a fetch pinned, used without the archive."""
        found = self._without_archive(fetched.lock, fetched.version, fetched.kept, why)
        where = f"{self.dandiset}/{fetched.version}" if self.version is not None else self.dandiset
        note = f"{self.lock} pins nothing of {where}: used is what a fetch pinned in {self._cached} ({fetched.version})"
        return replace(found, notes=[note, *found.notes], beside=[])

    def _not_taken_over(self, error: InputError, fetched: _ByFetch | None) -> InputError:
        """An error, with what a fetch pinned, where that may not be all that is meant."""
        if fetched is None or not fetched.meant:
            return error
        return type(error)(
            f"{error}; {self._cached}, where a fetch pinned what is meant ({len(fetched.meant)} files of "
            f"{self.dandiset}/{fetched.version}), does not tell whether the archive has more of it: named one by one "
            "(paths of the config) they are used"
        )

    def _are_there(self, assets: Collection[Asset]) -> bool:
        return bool(assets) and all(entries.file_of(self.raw, asset).is_file() for asset in assets)

    def resolve(self, lock: Lock) -> Selection:
        """The selection by a lock of the archive in use; see `bci_adapt.archive.sources.dandi.Dandi.select`."""
        version = self.version or (None if self.update else lock.pinned.get(self.dandiset))
        locked = [] if self.update or version is None else lock.of(self.dandiset, version)
        kept = self._kept(version, lock) if version is not None and not self.update else None
        fetched = self._by_fetch(lock, kept is not None)
        if self.offline and fetched is not None and fetched.is_known:
            return self._taken_over(fetched, "offline")
        if self.offline:
            try:
                return self._without_archive(lock, version, kept, "offline")
            except InputError as error:
                raise self._not_taken_over(error, fetched) from error
        is_known = kept is not None or self.wanted.is_exact(asset.path for asset in locked)
        is_there = self._are_there([asset for asset in locked if self.wanted.takes(asset.path)])
        is_fetched = fetched is not None and (fetched.is_known or self._are_there(fetched.meant))
        try:
            with self.archive.in_haste() if is_known or is_there or is_fetched else nullcontext():
                version, listing, notes, drift = self._ask(lock, version, kept)
        except Mixture:
            raise
        except InputError as error:
            if is_known:
                return self._without_archive(lock, version, kept, str(error))
            if fetched is not None and fetched.is_known:
                return self._taken_over(fetched, str(error))
            raise self._not_taken_over(self._advised(error, lock, version, is_there), fetched) from error
        return self._chosen(version, listing, lock, notes, drift=drift)

    def _kept(self, version: str, lock: Lock) -> Listing | None:
        """The listing of an earlier fetch where it is what the lock pins; of a draft the lock has to pin something.

        Of several states of a draft that agree with the lock, the one of which most of what is meant is pinned.
        """
        pinned = {asset.path for asset in lock.of(self.dandiset, version)}
        if version == DRAFT and not pinned:
            return None
        places = entries.listings_of(self.raw, self.dandiset, version)
        kept = [read_listing(path, self.dandiset, version) for path in places]
        agreed = [each for each in kept if each is not None and each.agrees(lock)]

        def new(listing: Listing) -> int:
            return sum(row.path not in pinned for row in listing.rows if row.is_nwb and self.wanted.takes(row.path))

        return min(agreed, key=new, default=None)

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
        newest = self.archive.newest(self.dandiset) if version != DRAFT else None
        if version is None and (version := newest) is None:
            raise no_version(self.dandiset)
        notes = self._draft_note(version)
        if newest is not None and _number(newest) > _number(version):
            how = "used as asked" if self.version else "used until --update"
            notes.append(f"{self.dandiset}/{newest} has been published since {version}, which is {how}")
        if kept is not None and version != DRAFT:
            return version, replace(kept, about=self.archive.about(self.dandiset, version)), notes, {}
        listing = self.archive.listing(self.dandiset, version)
        pinned = {} if self.update else self._pinned(lock, version, kept)
        drift = {}
        if version == DRAFT and pinned:
            drift = self._drift(listing, pinned)
            if kept is None:
                used = [asset for asset in lock.of(self.dandiset, version) if self.wanted.takes(asset.path)]
                refuse_two_states(self.lock, used, listing.rows, drift)
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
        told = row if row.digests is not None else self.archive.with_digests(self.dandiset, DRAFT, row)
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
        told = self.in_threads(lambda row: self.archive.with_digests(self.dandiset, listing.version, row), lacking)
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
        assets, refused = self._files(taken, version, rows, locked, drift or {})
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
        return Selection(
            self.dandiset,
            version,
            about,
            assets,
            self.raw,
            notes,
            offline,
            unsure,
            refused,
            drift or {},
            listing,
            beside,
        )

    def _files(
        self, taken: Iterable[str], version: str, rows: Mapping[str, Any], locked: Mapping[str, Asset],
        drift: Mapping[str, str],
    ) -> tuple[dict[Asset, Path], dict[str, str]]:  # fmt: skip
        """The assets at paths with their files, and why others have none."""
        assets: dict[Asset, Path] = {}
        refused: dict[str, str] = {}
        for path in taken:
            try:
                asset = locked.get(path) or rows[path].asset(self.dandiset, version)
                assets[asset] = entries.file_of(self.raw, asset)
            except InputError as error:
                refused[path] = str(error)
                if path in drift and path not in locked:
                    refused[path] = f"{path} was {drift[path]} in the draft before it was fetched; --update moves on"
        return assets, refused

    def _recorded(self, assets: dict[Asset, Path]) -> About:
        """What the records of fetched files say of their version."""
        found = [record for file in assets.values() if (record := entries.read_record(file)) is not None]
        return About(found[0].licence) if found else About()


def _number(version: str) -> tuple[int, ...]:
    """A published version as numbers, in the order of publication; that of a draft is the last."""
    return tuple(map(int, version.split("."))) if version != DRAFT else (2**31,)


def _refusal(check: Callable[[], object]) -> str:
    try:
        check()
    except InputError as error:
        return str(error)
    return ""
