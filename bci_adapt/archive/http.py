"""Requests to an archive with bounded patience: tries, waits and answers end, whatever a server does."""

from __future__ import annotations

import email.utils
import io
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter

from bci_adapt.errors import InputError

CHUNK_BYTES = 2**20
MAX_ANSWER_BYTES = 256 * 2**20
"""Longest answer of an archive's API that is read."""
MAX_REDIRECTS = 10
AGAIN = {408, 425, 429, 500, 502, 503, 504}


class Unreachable(InputError):
    """The archive gave no answer: no route, no name, refused, or still failing after every try."""


class Stopped(Exception):
    """The caller set the stop event; what has arrived is kept."""


@dataclass(frozen=True)
class Patience:
    """How long a server is borne with.

    There are at most `tries` requests for one thing, the second after `first_wait_s`, each later one after twice the
    wait before it, or after what ``Retry-After`` asks for; no wait is longer than `longest_wait_s`. A request that
    brought `worth_bytes` starts the count anew, so a file needs at most ``tries * (1 + size / worth_bytes)`` of them.
    A connection is given up when nothing comes for `read_s`, or less than `stall_bytes` in `stall_s`.
    """

    tries: int = 6
    first_wait_s: float = 1.0
    longest_wait_s: float = 60.0
    connect_s: float = 10.0
    read_s: float = 30.0
    stall_s: float = 60.0
    stall_bytes: int = 2**16
    worth_bytes: int = 8 * 2**20
    wait: Callable[[float], object] | None = None
    """Replaces the waiting itself (tests); without it, a wait ends early when the caller stops."""


PATIENCE = Patience()


def hasty(patience: Patience) -> Patience:
    """One short try, for what is not needed."""
    shorter = {name: min(getattr(patience, name), most) for name, most in _HASTY_S.items()}
    return replace(patience, tries=1, **shorter)


_HASTY_S = {"connect_s": 3.0, "read_s": 5.0, "stall_s": 5.0}


class Again(Exception):
    """This request failed in a way that another one may not."""

    def __init__(self, reason: str, *, from_zero: bool = False, retry_after: str | None = None) -> None:
        super().__init__(reason)
        self.reason, self.from_zero, self.retry_after = reason, from_zero, retry_after


class Tries:
    """Counts the requests for one thing and waits between them."""

    def __init__(self, what: str, patience: Patience, stop: threading.Event) -> None:
        self.what, self.patience, self.stop, self.made = what, patience, stop, 0

    def again(self, reason: str, retry_after: str | None = None) -> None:
        """Wait before the next request; `Unreachable` with `reason` when there have been enough, `Stopped`."""
        self.made += 1
        if self.made >= self.patience.tries:
            raise Unreachable(
                f"{self.what}: {reason}; given up after {self.made} {'try' if self.made == 1 else 'tries'}"
            )
        wait_s = retry_after_s(retry_after, self.patience.longest_wait_s)
        if wait_s is None:
            wait_s = min(self.patience.first_wait_s * 2.0 ** (self.made - 1), self.patience.longest_wait_s)
        (self.patience.wait or self.stop.wait)(wait_s)
        if self.stop.is_set():
            raise Stopped


def retry_after_s(value: str | None, longest_s: float) -> float | None:
    """Seconds that a ``Retry-After`` header asks for (a number or an HTTP date), at most `longest_s`; None if neither.

    >>> retry_after_s("7", 60.0), retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT", 60.0), retry_after_s("soon", 60.0)
    (7.0, 0.0, None)
    """
    if value is None:
        return None
    if re.fullmatch(r"[0-9]+", value.strip(), re.ASCII):
        return longest_s if len(value.strip()) > 9 else min(float(value), longest_s)
    try:
        moment = email.utils.parsedate_to_datetime(value)
        return min(max(moment.timestamp() - time.time(), 0.0), longest_s)
    except (ValueError, TypeError, OverflowError):
        return None


@contextmanager
def request(
    session: requests.Session, url: str, headers: Mapping[str, str], what: str, patience: Patience
) -> Iterator[requests.Response]:
    """The answer to a GET, its body unread."""
    with redirects_understood(what):
        try:
            timeout = (patience.connect_s, patience.read_s)
            response = session.get(url, headers=dict(headers), stream=True, timeout=timeout)
        except requests.exceptions.SSLError as error:
            raise InputError(f"{what}: no secure connection to {urlsplit(url).netloc} ({reason_of(error)})") from error
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
            raise Again(reason_of(error)) from error
    with response:
        yield response


@contextmanager
def redirects_understood(what: str) -> Iterator[None]:
    """Turn a redirect that cannot be followed into an `InputError` about `what`."""
    try:
        yield
    except InputError:
        raise
    except requests.TooManyRedirects as error:
        raise InputError(f"{what}: the archive redirects in a circle ({MAX_REDIRECTS} redirects followed)") from error
    except (
        requests.exceptions.InvalidSchema,
        requests.exceptions.MissingSchema,
        requests.exceptions.InvalidURL,
        ValueError,  # of the standard library, for what it cannot split
    ) as error:
        raise InputError(f"{what}: the archive redirects to an address that is not http or https") from error
    except requests.RequestException as error:
        raise InputError(f"{what}: the archive cannot be used ({reason_of(error)})") from error


class Transport(HTTPAdapter):
    """Throws away what comes with a redirect, which `requests` would read to its end, however long."""

    def build_response(self, req: requests.PreparedRequest, resp: Any) -> requests.Response:
        response = super().build_response(req, resp)
        if response.is_redirect:
            response.close()
            response.raw = io.BytesIO()
        return response


def chunks(response: requests.Response, patience: Patience, stop: threading.Event, decode: bool) -> Iterator[bytes]:
    """The body as it arrives; `Again` when it breaks off or only trickles, `Stopped`."""
    since_s, got = time.monotonic(), 0
    while True:
        if stop.is_set():
            raise Stopped
        try:
            chunk = response.raw.read1(CHUNK_BYTES, decode_content=decode)
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise Again(reason_of(error)) from error
        if not chunk:
            return
        yield chunk
        got += len(chunk)
        if (now_s := time.monotonic()) - since_s >= patience.stall_s:
            if got < patience.stall_bytes:
                raise Again(f"only {got:,} bytes came in {now_s - since_s:.0f} s")
            since_s, got = now_s, 0


def reason_of(error: BaseException) -> str:
    """Why a connection failed, in a few words; addresses and signatures in them are left out."""
    seen: list[BaseException] = []
    inner: Any = error
    while isinstance(inner, BaseException) and inner not in seen:
        seen.append(inner)
        reason = getattr(inner, "reason", None) or (inner.args[0] if inner.args else None)
        inner = inner.__cause__ or (reason if isinstance(reason, BaseException) else None) or inner.__context__
    for each in reversed(seen):
        if isinstance(each, urllib3.exceptions.NameResolutionError):
            return "its name cannot be resolved"
        if isinstance(each, TimeoutError | urllib3.exceptions.TimeoutError):
            return "no answer in time"
        if isinstance(each, OSError) and each.errno and not isinstance(each, requests.RequestException):
            return os.strerror(each.errno).lower() if each.errno > 0 else "its name cannot be resolved"
    return "the connection was cut"


class PatientAdapter(HTTPAdapter):
    """Transport for an archive's API: bounded tries, waits and answers, and no token for any other host.

    The `dandi` client waits for minutes without a network and as long as a server asks; here a host that cannot be
    reached at all is `Unreachable` at once, and everything else after `Patience`.
    """

    def __init__(self, api: str, patience: Patience | None = None, stop: threading.Event | None = None) -> None:
        super().__init__()
        self.origin = urlsplit(api)[:2]
        self.patience, self.stop = patience or PATIENCE, stop or threading.Event()

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: Any = True,
        cert: Any = None,
        proxies: Any = None,
    ) -> requests.Response:
        """Send `request` as often as it takes, and read the answer whole, whatever `stream` and `timeout` say."""
        address = urlsplit(request.url or "")
        if address[:2] != self.origin:
            request.headers.pop("Authorization", None)
        what = f"{address.scheme}://{str(address.netloc).rpartition('@')[2]}"
        timeout = (self.patience.connect_s, self.patience.read_s)
        tries = Tries(what, self.patience, self.stop)
        while True:
            try:
                response = super().send(request, True, timeout, verify, cert, proxies)
                if response.status_code in AGAIN:
                    response.close()
                    retry_after = response.headers.get("Retry-After")
                    raise Again(f"answered with status {response.status_code}", retry_after=retry_after)
                response.raw = self._whole(response, what)
                return response
            except requests.exceptions.SSLError as error:
                raise InputError(f"{what}: no secure connection ({reason_of(error)})") from error
            except (requests.ConnectionError, requests.Timeout) as error:
                if _never_connected(error):
                    raise Unreachable(f"{what}: cannot be reached ({reason_of(error)})") from error
                tries.again(reason_of(error))
            except Again as fault:
                tries.again(fault.reason, fault.retry_after)

    def _whole(self, response: requests.Response, what: str) -> io.BytesIO:
        body = io.BytesIO()
        with response:
            for chunk in chunks(response, self.patience, self.stop, decode=True):
                if body.tell() + len(chunk) > MAX_ANSWER_BYTES:
                    raise InputError(f"{what}: answers with more than {MAX_ANSWER_BYTES >> 20} MiB: not read")
                body.write(chunk)
        body.seek(0)
        return body


def _never_connected(error: requests.RequestException) -> bool:
    reason = getattr(error.args[0], "reason", None) if error.args else None
    connecting = (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError)
    return isinstance(error, requests.ConnectTimeout | requests.exceptions.ProxyError) or isinstance(reason, connecting)
