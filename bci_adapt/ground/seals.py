"""The digest of a stored result, kept beside it: written before the result gets its name, checked before it is used.

A result is a file or a folder. Its seal, ``<name>.sha256`` beside it, holds the digests that the result may have, one a
line: two processes that make the same result at once may differ in bytes that mean nothing, and both are right.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import time
import warnings
from pathlib import Path

from bci_adapt.ground.storage import file_digest

SEAL = ".sha256"
_MOST = 8  # digests that a seal keeps
_TOUCHED_S = 3600.0
_WHOLE: dict[Path, list[tuple[str, int, int]]] = {}
"""Results that this process has found whole, with their size and time of change; nothing is hashed twice for that."""


_DAMAGED: list[Path] = []


def seal_of(path: Path) -> Path:
    """Where the seal of a result lies."""
    return path.with_name(path.name + SEAL)


def content_digest(path: Path) -> str:
    """SHA-256 of a file; of a folder, over the names and digests of everything in it."""
    if not path.is_dir():
        return file_digest(path)
    lines = (f"{each.relative_to(path).as_posix()} {file_digest(each)}" for each in _files(path))
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def seal(written: Path, path: Path) -> None:
    """Write the seal of the result `path` from the bytes that lie at `written`, a file that will be renamed to it."""
    digests = [content_digest(written), *_digests(path)]
    new = written.parent / (written.name + SEAL)
    new.write_text("".join(f"{each}\n" for each in dict.fromkeys(digests[:_MOST])), encoding="ascii")
    os.replace(new, seal_of(path))


def is_whole(path: Path) -> bool:
    """Whether a result is there and is as it was written."""
    try:
        state = _state(path)
        if _WHOLE.get(path) == state:
            return True
        if content_digest(path) not in _digests(path):
            return False
    except OSError:
        return False
    _WHOLE[path] = state
    return True


def touch(path: Path) -> None:
    """Note on the seal of a result, by its time of change, that it is used; once an hour is enough."""
    with contextlib.suppress(OSError):
        seal = seal_of(path)
        if time.time() - seal.stat().st_mtime > _TOUCHED_S:
            os.utime(seal)


class DamagedWarning(UserWarning):
    """Something stored was not as it was written, and is made again."""


def tell_damaged(path: Path, mended: str) -> None:
    """Say that a stored file was damaged, and how it is mended: as a warning, and to whoever asks `found_damaged`."""
    _DAMAGED.append(path)
    warnings.warn(f"{path}: damaged since it was written; {mended}", DamagedWarning, stacklevel=3)


def found_damaged() -> list[Path]:
    """The files that `tell_damaged` was called for in this process since this was last asked."""
    found = _DAMAGED[:]
    _DAMAGED.clear()
    return found


def remove(path: Path) -> None:
    """Remove a result and its seal."""
    _WHOLE.pop(path, None)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    seal_of(path).unlink(missing_ok=True)


def _digests(path: Path) -> list[str]:
    with contextlib.suppress(OSError, UnicodeDecodeError), open(f"{path}{SEAL}", encoding="ascii") as handle:
        return handle.read().split()
    return []


def _files(path: Path) -> list[Path]:
    """A file itself; every file in a folder."""
    return sorted(each for each in path.rglob("*") if not each.is_dir()) if path.is_dir() else [path]


def _state(path: Path) -> list[tuple[str, int, int]]:
    status = path.stat()
    if not stat.S_ISDIR(status.st_mode):
        return [(str(path), status.st_size, status.st_mtime_ns)]
    found = ((str(each), each.stat()) for each in _files(path))
    return [(name, status.st_size, status.st_mtime_ns) for name, status in found]
