"""NWB files of a dandiset, fetched from the DANDI archive into the cache and pinned by a lock file."""

from __future__ import annotations

import difflib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from bci_adapt.archive import cache as entries
from bci_adapt.archive.download import Progress, bytes_kept, download
from bci_adapt.archive.http import (
    MAX_REDIRECTS,
    Patience,
    PatientAdapter,
    Stopped,
    Unreachable,
    redirects_understood,
)
from bci_adapt.archive.lock import DRAFT, ETAG, NAME, SHA256, Asset, Lock, check_version, read_lock, update_lock
from bci_adapt.archive.sources.base import Source, sessions_of
from bci_adapt.errors import InputError
from bci_adapt.ground import catalog
from bci_adapt.ground.text import clean

if TYPE_CHECKING:
    import pandas as pd
    from dandi.dandiapi import DandiAPIClient, RemoteDandiset

PAGE_SIZE = 1000
MAX_ASSETS = 1_000_000
"""Longest listing of a version that is read."""
MAX_JOBS = 32
UNSTATED = "not stated"
_T = TypeVar("_T")
_R = TypeVar("_R")


def parse_dandiset(text: str) -> tuple[str, str | None]:
    """Split ``000688``, ``000688/0.250122.1735``, ``000688/draft`` or any of them after ``DANDI:``.

    Returns the dandiset's number and the version, None when none is named; `InputError` for anything else.

    >>> parse_dandiset("DANDI:000688/draft")
    ('000688', 'draft')
    """
    number, slash, version = (text[6:] if text[:6].upper() == "DANDI:" else text).partition("/")
    check_version(number, *([version] if slash else []))
    return number, version if slash else None


def subject_of(path: str) -> str:
    """The subject in an asset's name (what follows ``sub-``), or ""."""
    return _part(path, "sub-") or ""


def session_of(path: str) -> str:
    """The session in an asset's name (what follows ``ses-``), or the whole name without ending where it has none."""
    return _part(path, "ses-") or _stem(path)


def _stem(path: str) -> str:
    return path.rpartition("/")[2].removesuffix(".nwb")


def _part(path: str, prefix: str) -> str | None:
    return next((each.removeprefix(prefix) for each in _stem(path).split("_") if each.startswith(prefix)), None)


@dataclass
class Selection:
    """The files that a `Dandi` source stands for, and where each of them lies or will lie."""

    dandiset: str
    version: str
    licence: str
    files: dict[Asset, Path]
    notes: list[str] = field(default_factory=list)
    offline: str = ""
    """Why the archive is not asked for anything; "" when it can be."""

    def rows(self) -> list[dict[str, Any]]:
        """One row per file, by path: path, size and missing (bytes), state, asset_id, digest, file.

        The state is ``cached``, ``partial``, ``missing``, or ``other`` for a file with another record or size;
        digests are not computed here.
        """
        rows = []
        for asset, file in self.files.items():
            record, kept = entries.read_record(file), bytes_kept(file, asset)
            state = "partial" if kept else "missing"
            if file.exists():
                here = record is not None and record.asset == asset and file.stat().st_size == asset.size
                state = "cached" if here else "other"
            missing = 0 if state == "cached" else asset.size - kept
            about = {"path": asset.path, "size": asset.size, "missing": missing, "state": state}
            rows.append({**about, "asset_id": asset.asset_id, "digest": digest_text(asset), "file": str(file)})
        return rows


def digest_text(asset: Asset) -> str:
    """The recorded digest of an asset with its name in front: ``sha2-256:…``, else ``dandi-etag:…``."""
    name, value = next(iter(asset.digests.items()))
    return f"{name}:{value}"


class Dandi(Source):
    """The NWB files of a dandiset that the globs select; what is missing in the cache is fetched.

    `version` is a published one, or ``draft`` (which changes, so a note warns of it); without it, the version that the
    lock file pins, else the latest published one, which is then pinned there. `update` asks the archive again and pins
    what is published now (or `version`). `paths` are globs on the asset's path (any of them; ``*`` matches ``/`` too),
    `session` one on the ``ses-`` part of its name, `subject` one on the ``sub-`` part.

    Files lie at ``<cache>/raw/<dandiset>/<version>/<asset path>`` (see `bci_adapt.archive.cache`); the lock file is
    ``<cache>/raw/sessions.lock.toml`` unless `lock` names another. With `offline`, or when the archive cannot be
    reached, only what is in the lock and the cache is used. `notes` says what a user should know: licence, draft,
    skipped assets, no network, damaged files fetched again. `progress` is called from several threads.
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
    ) -> None:
        """Raise `InputError` for what cannot be a dandiset or version; the archive is not asked yet."""
        check_version(dandiset, *([] if version is None else [version]))
        if not 1 <= jobs <= MAX_JOBS:
            raise InputError(f"jobs must be 1 to {MAX_JOBS} files at a time, got {jobs}")
        if offline and update:
            raise InputError("update asks the archive for its latest version, which offline forbids; choose one")
        self.dandiset, self.version = dandiset, version
        self.paths = (paths,) if isinstance(paths, str) else tuple(paths)
        self.subject, self.session = subject, session
        self.raw = entries.raw_folder(cache)
        self.lock = Path(lock) if lock is not None else self.raw / NAME
        self.offline, self.update, self.progress, self.jobs = offline, update, progress, jobs
        self.patience, self.stop = patience, threading.Event()
        self._selection: Selection | None = None
        self._listed: pd.DataFrame | None = None
        self._obtained: dict[Path, entries.Record] = {}

    # What is meant

    def select(self) -> Selection:
        """Resolve version and globs to files, without writing or fetching anything; asked once.

        `InputError` for a dandiset, version or path that does not exist (with the nearest ones), an asset whose path
        or digests cannot be accepted, and, offline, for what the lock does not hold.
        """
        if self._selection is None:
            lock = read_lock(self.lock)
            if self.offline:
                self._selection = self._from_lock(lock)
            else:
                try:
                    self._selection = self._from_archive(lock)
                except Unreachable as error:
                    if self.update:
                        raise
                    self._selection = self._from_lock(lock, error)
            entries.check_together([*self._selection.files, *self._locked(lock, self._selection.version)])
        return self._selection

    def _from_lock(self, lock: Lock, unreachable: Unreachable | None = None) -> Selection:
        offline = str(unreachable or "offline")
        why = f"{offline}, and" if unreachable else "offline:"
        version = self.version or lock.pinned.get(self.dandiset)
        if version is None:
            raise InputError(f"{why} no version of {self.dandiset} is pinned in {self.lock}; fetch it online first")
        known = lock.of(self.dandiset, version)
        if not known:
            raise InputError(f"{why} {self.lock} has no file of {self.dandiset}/{version}; fetch it online first")
        chosen = [asset for asset in known if self._matches(asset.path)]
        if not chosen:
            raise InputError(f"{why} {self._nothing(version, [asset.path for asset in known])}")
        count = f"{len(chosen)} of the {len(known)} files of {self.dandiset}/{version} in {self.lock}"
        notes = [*self._draft_note(version), f"{offline}; used are {count}, the archive may have more that match"]
        files = {asset: entries.file_of(self.raw, asset) for asset in chosen}
        records = [record for file in files.values() if (record := entries.read_record(file))]
        licence = records[0].licence if records else UNSTATED
        return Selection(self.dandiset, version, licence, files, notes, offline)

    def _from_archive(self, lock: Lock) -> Selection:
        pinned = None if self.update else lock.pinned.get(self.dandiset)
        with _answers(f"dandiset {self.dandiset}", self._client):
            version = self.version or pinned or self._latest()
            remote = self._client.get_dandiset(self.dandiset, version)
        with _answers(f"version {version} of dandiset {self.dandiset}", self._client):
            licence = _licence(remote.get_raw_metadata())
            listing = _listing(remote)
        notes = [*self._draft_note(version), f"licence of {self.dandiset}/{version}: {licence}"]
        chosen, skipped = self._chosen(version, listing, lock)
        if skipped:
            named = ", ".join(repr(path) for path in skipped[:3]) + (", …" if len(skipped) > 3 else "")
            notes.append(f"{len(skipped)} assets that are not NWB files in HDF5 are left out: {named}")
        # What the lock says about a path stands until an update; only the rest is asked for.
        assets = {} if self.update else {asset.path: asset for asset in lock.of(self.dandiset, version)}
        assets = {path: asset for path, asset in assets.items() if self._matches(path)}
        new = [item for item in chosen if item["path"] not in assets]
        with _answers(f"the assets of {self.dandiset}/{version}", self._client):
            found = self._threads(lambda item: _asset(remote, version, item), new)
        assets |= {asset.path: asset for asset in found}
        files = {asset: entries.file_of(self.raw, asset) for asset in sorted(assets.values())}
        return Selection(self.dandiset, version, licence, files, notes)

    def _latest(self) -> str:
        published = self._client.get_dandiset(self.dandiset).most_recent_published_version
        if published is None:
            raise InputError(
                f"dandiset {self.dandiset} has no published version; ask for {self.dandiset}/{DRAFT} to use its draft, "
                "which may change"
            )
        check_version(self.dandiset, published.identifier)
        return published.identifier

    def _draft_note(self, version: str) -> list[str]:
        note = f"{self.dandiset}/{DRAFT} is a draft: its files may change, and it is not pinned"
        return [note] if version == DRAFT else []

    def _chosen(
        self, version: str, listing: list[dict[str, Any]], lock: Lock
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """The NWB assets of a listing that the globs select, and the paths of other assets that they select."""
        matching = [item for item in listing if self._matches(item["path"])]
        chosen = [item for item in matching if item["path"].lower().endswith(".nwb") and item.get("zarr") is None]
        skipped = [item for item in matching if item not in chosen]
        gone = [] if self.update else [asset for asset in lock.of(self.dandiset, version) if self._matches(asset.path)]
        if chosen or gone:
            return chosen, [item["path"] for item in skipped]
        if skipped:
            path = skipped[0]["path"]
            kind = "a zarr asset (a folder)" if skipped[0].get("zarr") is not None else "not an NWB file"
            raise InputError(
                f"{self.dandiset}/{version}: {path!r} is {kind}; only NWB files in HDF5 (*.nwb) are read, and none of "
                f"them is selected"
            )
        raise InputError(self._nothing(version, [item["path"] for item in listing]))

    def _matches(self, path: str) -> bool:
        subject = (self.subject or "*").removeprefix("sub-")
        session = (self.session or "*").removeprefix("ses-")
        return (
            (not self.paths or any(fnmatchcase(path, glob) for glob in self.paths))
            and (self.subject is None or fnmatchcase(subject_of(path), subject))
            and (self.session is None or fnmatchcase(session_of(path), session))
        )

    def _nothing(self, version: str, known: list[str]) -> str:
        asked = [f"path {glob!r}" for glob in self.paths]
        asked += [f"subject {self.subject!r}"] if self.subject is not None else []
        asked += [f"session {self.session!r}"] if self.session is not None else []
        if not known:
            return f"{self.dandiset}/{version} has no assets"
        wanted = " ".join(filter(None, [*self.paths, self.subject, self.session]))
        near = difflib.get_close_matches(wanted, known, n=3, cutoff=0.0)
        nearest = ", ".join(map(repr, near))
        return f"{self.dandiset}/{version} has no NWB file with {' and '.join(asked)}; the nearest: {nearest}"

    def _locked(self, lock: Lock, version: str) -> list[Asset]:
        """What the lock goes on to hold of this version beside the selection."""
        return [asset for asset in lock.of(self.dandiset, version) if not (self.update and self._matches(asset.path))]

    # What is there

    def obtain(self) -> list[Path]:
        """Make every selected file available and return their paths, in the order of the assets' paths.

        Files in the cache are verified over their whole length. The lock file is written before anything is fetched.
        `InputError` when there is no room for all of it; when a file cannot be had, after the others were fetched.
        """
        chosen = self.select()
        faults = dict(zip(chosen.files, self._threads(self._fault, chosen.files.items()), strict=True))
        missing = {asset: chosen.files[asset] for asset, wrong in faults.items() if wrong is not None}
        if chosen.offline and missing:
            named = ", ".join(asset.path + (f" ({faults[asset]})" if faults[asset] else "") for asset in [*missing][:3])
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise InputError(f"{chosen.offline}; missing in the cache: {named}{more}; fetch it online")
        entries.check_room(self.raw, sum(asset.size - bytes_kept(file, asset) for asset, file in missing.items()))
        update_lock(self.lock, self._into_lock)
        chosen.notes += [f"{asset.path} is fetched again: {wrong}" for asset, wrong in faults.items() if wrong]
        self._threads(self._fetch_one, missing.items())
        for asset, file in chosen.files.items():
            record = entries.read_record(file)
            if record is None or record.asset != asset:  # verified above: only what is written about it is missing
                record = self._record(asset)
                entries.write_record(file, record)
            self._obtained[file] = record
        return list(chosen.files.values())

    def _fault(self, item: tuple[Asset, Path]) -> str | None:
        return entries.fault(item[1], item[0], self.progress)

    def _into_lock(self, lock: Lock) -> Lock:
        chosen = self.select()
        pin = chosen.version != DRAFT and (self.update or self.dandiset not in lock.pinned)
        pinned = lock.pinned | ({self.dandiset: chosen.version} if pin else {})
        gone = [asset for asset in lock.of(self.dandiset, chosen.version) if self.update and self._matches(asset.path)]
        return replace(lock, pinned=pinned).with_assets(chosen.files, drop=gone)

    def _record(self, asset: Asset) -> entries.Record:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return entries.Record(asset, self.select().licence, _instance().api, now)

    def _fetch_one(self, item: tuple[Asset, Path]) -> None:
        asset, file = item
        download(
            f"{self._client.api_url}/assets/{asset.asset_id}/download/",
            file,
            asset,
            token=self._token,
            verified=lambda: entries.write_record(file, self._record(asset)),
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

    # The archive

    @cached_property
    def _client(self) -> DandiAPIClient:
        """The archive's client, patient within bounds, with the token of the environment when there is one."""
        os.environ["DANDI_NO_ET"] = "1"  # it would ask another server whether it is up to date
        logging.getLogger("dandi").addHandler(logging.NullHandler())  # its errors are told once, by us
        from dandi.dandiapi import DandiAPIClient

        client = DandiAPIClient(dandi_instance=_instance())
        client.api_url = client.api_url.rstrip("/")
        client.session.max_redirects = MAX_REDIRECTS
        for scheme in ("http://", "https://"):
            client.session.mount(scheme, PatientAdapter(client.api_url, self.patience, self.stop))
        self._token = os.environ.get(client.api_key_env_var, "")
        if self._token:
            client.session.headers["Authorization"] = f"token {self._token}"
        return client


def in_threads(work: Callable[[_T], _R], items: Iterable[_T], jobs: int, stop: threading.Event) -> list[_R]:
    """Results of `work` on every item, in their order; all are tried, then the first `InputError` is raised.

    Ctrl-C, and whatever else is raised, sets `stop`, which downloads heed; what has arrived is kept.
    """
    stop.clear()
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            for future in as_completed(futures):
                error = future.exception()
                if error is not None and not isinstance(error, InputError):
                    raise error
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    failed = [error for future in futures if (error := future.exception()) is not None]
    if len(failed) > 1:
        raise type(failed[0])(f"{failed[0]} (and {len(failed) - 1} more of {len(futures)} files)") from failed[0]
    if failed:
        raise failed[0]
    return [future.result() for future in futures]


def _instance() -> Any:
    """The archive that ``DANDI_INSTANCE`` names: a name the client knows, or the address of an API (``…/api``)."""
    from dandi.consts import DandiInstance, known_instances, known_instances_rev

    name = (os.environ.get("DANDI_INSTANCE") or "dandi").rstrip("/")
    if known := known_instances.get(name) or known_instances.get(known_instances_rev.get(name, "")):
        return known
    address = urlsplit(name)
    if "@" in address.netloc:
        raise InputError("DANDI_INSTANCE: an address with a password in it is not used; set a token instead")
    if address.scheme not in ("http", "https") or not address.netloc:
        raise InputError(f"DANDI_INSTANCE: {catalog.unknown(name, known_instances, 'archive')}, or an http address")
    return DandiInstance(address.netloc, None, name if address.path else f"{name}/api")


@contextmanager
def _answers(what: str, client: DandiAPIClient) -> Iterator[None]:
    """Turn whatever the client raises while `what` is asked for into an `InputError`."""
    import requests
    from dandi.exceptions import NotFoundError

    archive = urlsplit(client.api_url).netloc
    with redirects_understood(what):
        try:
            yield
        except (InputError, Stopped):
            raise
        except requests.JSONDecodeError as error:
            raise InputError(f"{what}: {archive} answered with something that is not JSON") from error
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else "?"
            if status == 404:
                raise InputError(f"{what} is not in the archive at {archive}") from error
            if status in (401, 403):
                reason = f"is not open (status {status}); an embargoed one needs your token in {client.api_key_env_var}"
                raise InputError(f"{what} {reason}") from error
            raise InputError(f"{what}: {archive} answered with status {status}") from error
        except NotFoundError as error:
            raise InputError(f"{what} is not in the archive at {archive}") from error
        except requests.RequestException:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, AssertionError, RecursionError) as error:
            reason = clean(error, 200)
            raise InputError(f"{what}: {archive} answered with something unexpected ({reason})") from error


def _licence(metadata: dict[str, Any]) -> str:
    stated = metadata.get("license") or []
    stated = [stated] if isinstance(stated, str) else stated
    return clean(", ".join(str(each) for each in stated), 200) or UNSTATED


def _listing(remote: RemoteDandiset) -> list[dict[str, Any]]:
    """All assets of a version: path, asset_id, size, blob or zarr.

    Pages are asked for one after the other: the client's own paging trusts the count that the server gives.
    """
    found: dict[str, dict[str, Any]] = {}
    paths: set[str] = set()
    page = 0
    more = True
    while more:
        page += 1
        parameters = {"order": "path", "page": page, "page_size": PAGE_SIZE}
        answer = remote.client.get(f"{remote.version_api_path}assets/", params=parameters)
        items, more = answer["results"], answer["next"] is not None
        for item in items:
            if not isinstance(item["path"], str) or not isinstance(item["asset_id"], str):
                raise TypeError(f"an asset with path {item['path']!r} and asset_id {item['asset_id']!r}")
            if item["asset_id"] in found:
                raise ValueError(f"asset {item['asset_id']!r} is listed twice, page {page} is not the last")
            if item["path"] in paths:
                raise ValueError(f"two assets have the path {item['path']!r}")
            found[item["asset_id"]] = item
            paths.add(item["path"])
        if more and (not items or len(found) > MAX_ASSETS):
            raise ValueError(f"the list of assets does not end ({len(found):,} on {page:,} pages)")
    return list(found.values())


def _asset(remote: RemoteDandiset, version: str, item: dict[str, Any]) -> Asset:
    """The asset of a row of the listing, checked, with the digests of its metadata."""
    path, asset_id, size = item["path"], item["asset_id"], item["size"]
    # Checked before the id becomes part of an address; the digest stands in until the archive has told it.
    Asset(remote.identifier, version, path, asset_id, size, sha256="0" * 64)
    digests = remote.client.get(f"{remote.version_api_path}assets/{asset_id}/").get("digest") or {}
    sha256, etag = (digests.get(f"dandi:{name}") or "" for name in (SHA256, ETAG))
    return Asset(remote.identifier, version, path, asset_id, size, sha256, etag)
