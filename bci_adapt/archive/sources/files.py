"""Recordings that are named one by one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from bci_adapt.archive.sources.folder import Folder
from bci_adapt.errors import InputError


class Files(Folder):
    """The recordings at some paths, wherever they lie, oldest session first."""

    name = "files"
    order = "given"

    def __init__(self, paths: Iterable[Path | str]) -> None:
        self._paths = [Path(path) for path in paths]
        super().__init__(Path("the files given"))

    def paths(self) -> list[Path]:
        """Return the recordings as they were named; `InputError` for one that is missing."""
        for path in self._paths:
            if not path.is_file():
                what = "not a file" if path.exists() else "no such file"
                raise InputError(f"{path}: {what}; a recording was expected")
        return self._paths
