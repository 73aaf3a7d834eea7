"""Compiled loops on disk. Numba keeps them as pickles, which run what is in them: they are loaded from a folder of the
user's own alone (mode 700), and only as this program wrote them, which their digest says.

The folder is ``kernels`` in the cache where the cache is the user's own, else in the user's cache folder of the system
(`platformdirs`); below it one for the sources and one for the installation. Where no such folder can be written, loops
are compiled in memory, by every process for itself.
"""

from __future__ import annotations

import contextlib
import functools
import os
import stat
import sys
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from numba import config
from numba.core.caching import FunctionCache, IndexDataCacheFile

from bci_adapt.ground import seals
from bci_adapt.ground.jobs import digest
from bci_adapt.ground.storage import cache_root


def keep_on_disk(dispatcher: Any, sources: str) -> None:
    """Have a numba dispatcher load its compiled code from disk, and store it there, where a folder can be had;
    `sources` is the digest of what it is made of.
    """
    folder = private_folder(f"{sources}-{_installation()}")
    if folder is None:
        return
    before, config.CACHE_DIR = config.CACHE_DIR, str(folder)  # type: ignore[attr-defined]
    try:
        dispatcher._cache = _Kept(dispatcher.py_func)
    finally:
        config.CACHE_DIR = before  # type: ignore[attr-defined]


def private_folder(name: str) -> Path | None:
    """A folder of compiled code that nobody but the user can write to; None where there is none, which is said once."""
    for kernels in _places():
        with contextlib.suppress(OSError):
            kernels.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                kernels.mkdir(mode=0o700)
            if _is_own(kernels):
                if hasattr(os, "geteuid"):
                    kernels.chmod(0o700)
                folder = kernels / name
                folder.mkdir(mode=0o700, exist_ok=True)
                with tempfile.TemporaryFile(dir=folder):
                    return folder
    _say_in_memory()
    return None


def _places() -> Iterator[Path]:
    from platformdirs import user_cache_path

    root = cache_root()
    if not root.exists() or (_is_own(root) and not root.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
        yield root / "kernels"
    yield user_cache_path("bci_adapt", appauthor=False) / "kernels"


def _is_own(folder: Path) -> bool:
    return not hasattr(os, "geteuid") or folder.stat().st_uid == os.geteuid()


@functools.cache
def _say_in_memory() -> None:
    warnings.warn(
        "no folder of your own can be written for compiled loops: they are compiled in memory, by every process anew; "
        "set BCI_ADAPT_CACHE to a folder of yours",
        UserWarning,
        stacklevel=2,
    )


@functools.cache
def _installation() -> str:
    """Which Python, and which copy of this program, compiled a loop."""
    return digest([sys.prefix, sys.version, str(Path(__file__).parent)])[:8]


class _Kept(FunctionCache):
    """What numba keeps of one function; a file that is not as it was written is compiled again."""

    def __init__(self, py_func: Callable) -> None:
        super().__init__(py_func)
        plain = self._cache_file
        self._cache_file = _Sealed(
            cache_path=plain._cache_path,
            filename_base=plain._index_name.removesuffix(".nbi"),
            source_stamp=plain._source_stamp,
        )

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """What was kept for a signature, None where it must be compiled."""
        with contextlib.suppress(OSError):
            return super().load_overload(sig, target_context)

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep it; on a disk that is full, or no longer to be written, it stays in memory."""
        with contextlib.suppress(OSError):
            super().save_overload(sig, data)


class _Sealed(IndexDataCacheFile):
    """Numba's two files of a function, each with its digest beside it (`ground.seals`)."""

    def _load_index(self) -> dict[Any, str]:
        return super()._load_index() if _is_usable(Path(self._index_path)) else {}

    def _load_data(self, name: str) -> Any:
        if not _is_usable(Path(self._data_path(name))):
            raise FileNotFoundError(name)
        return super()._load_data(name)

    @contextlib.contextmanager
    def _open_for_write(self, filepath: str) -> Iterator[Any]:
        new, path = Path(f"{filepath}.tmp.{uuid.uuid4().hex[:16]}"), Path(filepath)
        try:
            with open(new, "wb") as file:
                yield file
            seals.seal(new, path)
            os.replace(new, path)
        finally:
            new.unlink(missing_ok=True)


def _is_usable(path: Path) -> bool:
    """Whether a kept file is as it was written; one that is not is removed, and said."""
    if not path.is_file():
        return False
    if seals.is_whole(path):
        return True
    seals.tell_damaged(path, "it is compiled again")
    seals.remove(path)
    return False
