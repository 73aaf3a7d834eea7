"""What people paste: addresses of dandisets, of pages about them, and of files."""

from __future__ import annotations

import re
from glob import escape
from urllib.parse import parse_qs, urlsplit

from bci_adapt.archive.api import instance
from bci_adapt.archive.lock import check_version
from bci_adapt.errors import InputError

_PAGE = re.compile(r"/dandiset/(?P<number>[0-9]{6})(/(?P<version>draft|[0-9]+\.[0-9]+\.[0-9]+))?(/files)?/?", re.ASCII)
_ASSET = re.compile(r"(/dandisets/[0-9]{6}/versions/[^/]+)?/assets/(?P<id>[0-9a-f-]{36})(/(download|info)?)?", re.ASCII)


def is_address(text: str) -> bool:
    """Whether this is where something is on the web.

    >>> is_address("https://dandiarchive.org/dandiset/000688"), is_address("000688"), is_address("C:/a.nwb")
    (True, False, False)
    """
    return bool(re.match("https?://", text, re.IGNORECASE))


def shown(text: str) -> str:
    """An address as it is printed and recorded: without its query, which may hold a signature, and without a password.
    What is no address stays as it is.

    >>> shown("https://me:secret@a.org/b.nwb?signature=s"), shown("C:/a.nwb?")
    ('https://a.org/b.nwb', 'C:/a.nwb?')
    """
    if not is_address(text):
        return text
    return re.sub("^([^/]*//)[^/]*@", r"\1", text.partition("?")[0])  # `urlsplit` refuses some of what people paste


def parse_dandiset(text: str) -> tuple[str, str | None]:
    """Split ``000688``, ``000688/0.250122.1735``, ``000688/draft`` or any of them after ``DANDI:``.

    Returns the dandiset's number and the version, None when none is named; `InputError` for anything else.

    >>> parse_dandiset("DANDI:000688/draft")
    ('000688', 'draft')
    """
    number, slash, version = (text[6:] if text[:6].upper() == "DANDI:" else text).partition("/")
    check_version(number, *([version] if slash else []))
    return number, version if slash else None


def parse_page(text: str) -> tuple[str, str | None, list[str]]:
    """Number, version and paths (none: all files) of a dandiset, as `parse_dandiset` reads it, with the path of a file
    behind the version, or as the address of the archive's page of it, which may name a file or a folder.

    `InputError` for anything else, and for a page of another archive than the one in use.
    """
    if not is_address(text):
        found = re.fullmatch(r"(?i:DANDI:)?([0-9]{6}/[^/]+)/(.+)", text, re.ASCII | re.DOTALL)
        number, version = parse_dandiset(found[1] if found else text)
        return number, version, [found[2]] if found else []
    address = urlsplit(text)
    if address.fragment.startswith("/"):  # pages of some years ago: https://…/#/dandiset/…
        address = urlsplit(f"{address.scheme}://{address.netloc}{address.fragment}")
    page = _PAGE.fullmatch(address.path)
    if page is None:
        raise InputError(
            f"{shown(text)}: is not the page of a dandiset, such as https://dandiarchive.org/dandiset/000688"
        )
    _check_host(text, address.netloc)
    where = parse_qs(address.query).get("location", [""])[0].strip("/")
    paths = [where if where.lower().endswith(".nwb") else f"{escape(where)}/*"] if where else []
    return page["number"], page["version"], paths


def asset_id_of(text: str) -> str:
    """The id in the address of an asset of the archive in use; "" where this is none."""
    used, address = urlsplit(instance().api), urlsplit(text)
    found = _ASSET.fullmatch(address.path.removeprefix(used.path).rstrip("/"))
    return found["id"] if found and address.netloc == used.netloc and address.path.startswith(used.path) else ""


def is_page(text: str) -> bool:
    """Whether this is the address of a page of a dandiset, of whatever archive."""
    address = urlsplit(text)
    return is_address(text) and bool(_PAGE.fullmatch(address.fragment.partition("?")[0] or address.path))


def _check_host(text: str, host: str) -> None:
    from dandi.consts import known_instances

    used = instance()
    if host in {urlsplit(each).netloc for each in used.urls()}:
        return
    other = next((name for name, each in known_instances.items() if any(host in url for url in each.urls())), None)
    help = f"set DANDI_INSTANCE={other}" if other else "set DANDI_INSTANCE to the address of its API"
    raise InputError(f"{shown(text)}: is not of the archive in use, {used.api}; {help}")
