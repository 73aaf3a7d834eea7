"""What is asked of a DANDI archive: versions, listings and digests, through its client and with bounded patience."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from bci_adapt.archive import http
from bci_adapt.archive.http import MAX_REDIRECTS, Patience, PatientAdapter, Stopped, hasty, redirects_understood
from bci_adapt.archive.listing import About, Listing, Row, about_of
from bci_adapt.archive.lock import DANDI_API, DRAFT, check_version
from bci_adapt.errors import InputError
from bci_adapt.ground import catalog
from bci_adapt.ground.text import clean

if TYPE_CHECKING:
    from dandi.consts import DandiInstance
    from dandi.dandiapi import DandiAPIClient

PAGE_SIZE = 1000
MAX_ASSETS = 1_000_000
"""Longest listing of a version that is read."""
_T = TypeVar("_T")


class NotAllowed(InputError):
    """The archive answered that this is not for everybody."""


def address_of_archive() -> str:
    """The address of the API of the archive in use: what ``DANDI_INSTANCE`` names, else the DANDI archive."""
    return instance().api if os.environ.get("DANDI_INSTANCE") else DANDI_API


def instance() -> DandiInstance:
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


class Archive:
    """The archive that ``DANDI_INSTANCE`` names, asked with `patience`; whatever it answers is understood or an
    `InputError`.

    A token is taken from the environment, and where the archive asks for one, from where the client keeps it.
    """

    def __init__(self, patience: Patience | None, stop: threading.Event) -> None:
        self.stop = stop
        self._patience = patience or http.PATIENCE
        self.token = ""

    @cached_property
    def _client(self) -> DandiAPIClient:
        os.environ["DANDI_NO_ET"] = "1"  # it would ask another server whether it is up to date
        logging.getLogger("dandi").addHandler(logging.NullHandler())  # its errors are told once, by us
        from dandi.dandiapi import DandiAPIClient

        client = DandiAPIClient(dandi_instance=instance())
        client.api_url = client.api_url.rstrip("/")
        client.session.max_redirects = MAX_REDIRECTS
        for scheme in ("http://", "https://"):
            client.session.mount(scheme, PatientAdapter(client.api_url, self._patience, self.stop))
        self._use(client, os.environ.get(client.api_key_env_var, ""))
        return client

    def _use(self, client: DandiAPIClient, token: str) -> None:
        self.token = token
        if token:
            client.session.headers["Authorization"] = f"token {token}"

    @contextmanager
    def in_haste(self) -> Iterator[None]:
        """One short try for whatever is asked meanwhile."""
        adapters = [each for each in self._client.session.adapters.values() if isinstance(each, PatientAdapter)]
        for adapter in adapters:
            adapter.patience = hasty(self._patience)
        try:
            yield
        finally:
            for adapter in adapters:
                adapter.patience = self._patience

    def asset(self, asset_id: str) -> Row:
        """An asset by its id alone, whatever version it is of, with its digests."""

        def ask() -> Row:
            item = self._client.get(f"/assets/{asset_id}/info/")
            return _row({"asset_id": asset_id, **item})

        return self._asked(f"asset {asset_id}", ask)

    def download_address(self, asset_id: str) -> str:
        """Where the bytes of an asset are."""
        return f"{self._client.api_url}/assets/{asset_id}/download/"

    def newest(self, dandiset: str) -> str | None:
        """The version that was published last; None when there is none."""

        def ask() -> str | None:
            published = self._client.get_dandiset(dandiset).most_recent_published_version
            if published is None:
                return None
            check_version(dandiset, published.identifier)
            return published.identifier

        return self._asked(f"dandiset {dandiset}", ask)

    def about(self, dandiset: str, version: str) -> About:
        """What is said of a version."""
        client, address = self._client, f"/dandisets/{dandiset}/versions/{version}/"
        return self._asked(f"version {version} of dandiset {dandiset}", lambda: about_of(client.get(address)))

    def listing(self, dandiset: str, version: str) -> Listing:
        """All assets of a version, with their digests where the archive lists them: once they are published."""
        about = self.about(dandiset, version)
        rows = self._asked(f"the assets of {dandiset}/{version}", lambda: self._rows(dandiset, version))
        return Listing(dandiset, version, about, tuple(rows))

    def _rows(self, dandiset: str, version: str) -> list[Row]:
        """Pages are asked for one after the other: the client's own paging trusts the count that the server gives."""
        found: dict[str, Row] = {}
        ids: set[str] = set()
        page, more = 0, True
        while more:
            page += 1
            parameters = {"order": "path", "page": page, "page_size": PAGE_SIZE, "metadata": "true"}
            answer = self._client.get(f"/dandisets/{dandiset}/versions/{version}/assets/", params=parameters)
            items, more = answer["results"], answer["next"] is not None
            for item in items:
                row = _row(item)
                if row.asset_id in ids:
                    raise ValueError(f"asset {row.asset_id!r} is listed twice, page {page} is not the last")
                if row.path in found:
                    raise ValueError(f"two assets have the path {row.path!r}")
                found[row.path] = row
                ids.add(row.asset_id)
            if more and (not items or len(found) > MAX_ASSETS):
                raise ValueError(f"the list of assets does not end ({len(found):,} on {page:,} pages)")
        return [found[path] for path in sorted(found)]

    def with_digests(self, dandiset: str, version: str, row: Row) -> Row:
        """`row` with the digests of the asset's own page; `InputError` for one that cannot be asked for."""
        row.check(dandiset, version)
        address = f"/dandisets/{dandiset}/versions/{version}/assets/{row.asset_id}/"
        what = f"asset {row.path!r} of {dandiset}/{version}"
        return self._asked(what, lambda: replace(row, digests=self._client.get(address).get("digest") or {}))

    def _asked(self, what: str, ask: Callable[[], _T]) -> _T:
        """What `ask` returns; a token that the client keeps is used where the archive wants one and none was set."""
        try:
            with self._understood(what):
                return ask()
        except NotAllowed:
            if self.token or not (kept := _kept_token(self._client)):
                raise
            self._use(self._client, kept)
            with self._understood(what):
                return ask()

    @contextmanager
    def _understood(self, what: str) -> Iterator[None]:
        """Turn whatever the client raises while `what` is asked for into an `InputError`."""
        import requests
        from dandi.exceptions import NotFoundError

        archive = urlsplit(self._client.api_url).netloc
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
                    raise self._not_allowed(what, error.response) from error
                raise InputError(f"{what}: {archive} answered with status {status}") from error
            except NotFoundError as error:
                raise InputError(f"{what} is not in the archive at {archive}") from error
            except requests.RequestException:
                raise
            except (ValueError, TypeError, KeyError, AttributeError, AssertionError, RecursionError) as error:
                reason = clean(error, 200)
                raise InputError(f"{what}: {archive} answered with something unexpected ({reason})") from error

    def _not_allowed(self, what: str, response: Any) -> InputError:
        """What helps depends on who does not allow it: the archive with or without a token, or somebody between."""
        status, who = response.status_code, urlsplit(response.url or "").netloc
        if who != urlsplit(self._client.api_url).netloc:
            return InputError(f"{what}: {who}, which is not the archive, does not allow it (status {status})")
        if self.token:
            return NotAllowed(
                f"{what} is not open to the token in use (status {status}); it may have expired, or the dandiset is "
                "embargoed and you are not one of its owners"
            )
        return NotAllowed(
            f"{what} is not open (status {status}); an embargoed one needs your token in {self._client.api_key_env_var}"
        )


def no_version(dandiset: str) -> InputError:
    """The error of a dandiset that has no published version."""
    return InputError(
        f"dandiset {dandiset} has no published version; ask for {dandiset}/{DRAFT} to use its draft, which may change"
    )


def _row(item: Any) -> Row:
    if not isinstance(item["path"], str) or not isinstance(item["asset_id"], str):
        raise TypeError(f"an asset with path {item['path']!r} and asset_id {item['asset_id']!r}")
    digests = (item.get("metadata") or {}).get("digest")
    created = item.get("created")
    told = created if isinstance(created, str) else ""
    return Row(item["path"], item["asset_id"], item["size"], item.get("zarr") is not None, digests or None, told)


def _kept_token(client: DandiAPIClient) -> str:
    """The token that ``dandi`` has kept for this archive in the user's keyring; "" when it has none."""
    from dandi.keyring_utils import KeyringError, get_keyring

    try:
        return get_keyring().get_password(f"dandi-api-{client.dandi_instance.name}", "key") or ""
    except (KeyringError, OSError, RuntimeError):
        return ""
