"""Files that are either whole or absent, what JSON can hold, and digests of what is in a file."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bci_adapt.errors import InputError

NOT_THROUGH_LINKS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
"""Flags for `os.open`: a symbolic link is not followed, where the system can refuse it."""


def cache_root() -> Path:
    """Folder of everything that can be rebuilt: ``$BCI_ADAPT_CACHE``, or ``data_cache`` in the working folder."""
    return Path(os.environ.get("BCI_ADAPT_CACHE") or "data_cache").absolute()


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut (a no-op where folders cannot be opened)."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_path(target: Path, synced: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `target`; on success its file or folder is synced and renamed to `target`.

    The body may create a file or a folder at the yielded path. If it raises, whatever it wrote is removed and
    `target` is left as it was. A folder that already stands at `target` wins: the new one is discarded, because
    two writers of one content key write the same content. Without `synced` a power cut may tear it, which is twice as
    fast for small files and right where a digest tells that, and it can be made again.

    Raises `InputError` with what to do where the disk is full or read-only, or the system refuses (`refusal`).
    """
    target = Path(target)
    with told_what_to_do(target), _beside(target, synced) as temporary:
        yield temporary


@contextmanager
def _beside(target: Path, synced: bool) -> Iterator[Path]:
    target.parent.mkdir(parents=True, exist_ok=True)
    holder = Path(tempfile.mkdtemp(prefix=f".{target.name[:60]}.", suffix=".part", dir=target.parent))
    temporary = holder / target.name
    try:
        yield temporary
        if not temporary.exists():
            raise FileNotFoundError(f"nothing was written for {target}")
        for path in [temporary, *(temporary.rglob("*") if temporary.is_dir() else ())] if synced else ():
            if path.is_file():
                with open(path, "rb+") as handle:
                    os.fsync(handle.fileno())
        if not (temporary.is_dir() and target.is_dir()):
            os.replace(temporary, target)
        if synced:
            sync_folder(target.parent)
    finally:
        shutil.rmtree(holder, ignore_errors=True)


_TO_DO = {
    errno.ENOSPC: "the disk is full: free some space (bci-adapt cache clean --unused DAYS), or use another disk",
    errno.EDQUOT: "your quota of the disk is used up: free some space, or use another disk",
    errno.EROFS: "the file system is read-only: choose a folder that can be written, BCI_ADAPT_CACHE for the cache",
    errno.EACCES: "you may not read or write there: choose another folder, or have its owner allow it",
    errno.EPERM: "you may not read or write there: choose another folder, or have its owner allow it",
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n 4096)",
    errno.ENFILE: "too many files are open on this machine: close other programs, or raise the limit",
    errno.ENOTDIR: "a file is where a folder should be: move it away, or choose another folder",
    errno.EEXIST: "a file is where a folder should be: move it away, or choose another folder",
    errno.ENOMEM: "there is not enough memory: use fewer workers (--workers), or a machine with more",
}


def refusal(error: BaseException, where: Path | str = "") -> str | None:
    """What to do about an error of the operating system, in one sentence with the file; None for other errors.

    Libraries for HDF5 raise errors of other types, which name the number of the system's in their text.
    """
    if isinstance(error, MemoryError):
        return f"{where}: {_TO_DO[errno.ENOMEM]}" if where else _TO_DO[errno.ENOMEM]
    number = getattr(error, "errno", None)
    if number is None and isinstance(error, OSError | RuntimeError):
        found = re.search(r"errno = (\d+)", str(error))
        number = int(found[1]) if found else None
    if number not in _TO_DO:
        return None
    named = getattr(error, "filename", None) or where
    return f"{named}: {_TO_DO[number]}" if named else _TO_DO[number]


@contextmanager
def told_what_to_do(where: Path | str = "") -> Iterator[None]:
    """Raise `InputError` for what the operating system refuses in the body (`refusal`); `where` is written there."""
    try:
        yield
    except (OSError, RuntimeError, MemoryError) as error:
        if (said := refusal(error, where)) is None:
            raise
        raise InputError(said) from error


def write_netcdf(data: Any, path: Path, encoding: Mapping[Any, Any]) -> None:
    """Write an xarray Dataset or DataTree to `path`. The file is made in memory: on a full disk HDF5 ends the process
    when it closes its file. In a worker of dask xarray would look for a lock by the file's name, which has none here.
    """
    from dask import config

    with config.set(scheduler="synchronous"):
        content = data.to_netcdf(engine="h5netcdf", encoding=encoding)
    path.write_bytes(content)


def write_text(target: Path, text: str) -> None:
    """Write `text` (UTF-8) to `target` atomically."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def json_safe(value: Any) -> Any:
    """`value` with numpy's scalars and arrays as Python's own and every number that is not finite as None."""
    if isinstance(value, Mapping):
        return {str(name): json_safe(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    if hasattr(value, "tolist"):
        return json_safe(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
