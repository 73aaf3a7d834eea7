"""Which assets of a version are meant: globs on path, session and subject, and what is left out."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from glob import escape


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


def organised(text: str) -> str:
    """A session's id or a glob of it as it stands in names that ``dandi organize`` gave: all but letters, digits,
    ``+`` and ``-`` became ``-``. The characters of globs stay.

    >>> organised("CO_2013.10*")
    'CO-2013-10*'
    """
    return re.sub(r"[_\\/<>:|\"'%@;,\s.]", "-", text)


@dataclass(frozen=True)
class Wanted:
    """What is asked for: assets whose path is or matches one of `paths` (any asset without them), whose session and
    subject match, and that `exclude` does not name. ``*`` matches ``/`` too.
    """

    paths: tuple[str, ...] = ()
    subject: str | None = None
    session: str | None = None
    exclude: tuple[str, ...] = ()

    def takes(self, path: str) -> bool:
        """Whether this asset is meant."""
        return (
            (not self.paths or any(_is(path, glob) for glob in self.paths))
            and (self.subject is None or _is(subject_of(path), self.subject.removeprefix("sub-")))
            and (self.session is None or self._in_session(path))
            and not any(_is(path, glob) for glob in self.exclude)
        )

    def _in_session(self, path: str) -> bool:
        """The ``ses-`` part, the name without what follows it, as sessions are called in tables, or the whole name;
        each as it was written or as `organised` writes it.
        """
        asked = str(self.session)
        names = {session_of(path), _stem(path), re.sub(r"_[^_-]*$", "", _stem(path))}
        names |= {f"sub-{subject_of(path)}_ses-{session_of(path)}"}
        bare = asked.removeprefix("ses-")
        return any(_is(name, glob) for name in names for glob in {asked, bare, organised(bare)})

    def exactly(self, known: Iterable[str]) -> Wanted:
        """The same, but what is the path of an asset that there is means that asset alone, brackets in it or not."""
        there = set(known)
        paths, exclude = (
            tuple(escape(each) if each in there else each for each in globs) for globs in (self.paths, self.exclude)
        )
        return replace(self, paths=paths, exclude=exclude)

    def is_exact(self, known: Iterable[str]) -> bool:
        """Whether every path that is asked for is the path of one asset, and is known."""
        return bool(self.paths) and set(self.paths) <= set(known)

    def idle(self, known: Collection[str]) -> list[str]:
        """What is excluded and is or matches none of the paths there are; none where no path is `known`."""
        return [glob for glob in self.exclude if known and not any(_is(path, glob) for path in known)]

    def unmet(self, known: Sequence[str], taken: Iterable[str], where: str) -> str:
        """Why this is not what there is `where`, "" when it is: nothing is meant at all, or one of `paths` is or
        matches nothing that is taken. `known` are the paths there are, `taken` those of NWB files that are meant.
        """
        taken = list(taken)
        lost = [glob for glob in self.paths if not any(_is(path, glob) for path in taken)] if taken else [*self.paths]
        if taken and not lost:
            return ""
        if not known:
            return f"{where} has no assets"
        asked = [f"path {glob!r}" for glob in lost]
        if not taken:
            asked += [f"subject {self.subject!r}"] if self.subject is not None else []
            asked += [f"session {self.session!r}"] if self.session is not None else []
            asked += [f"all but {glob!r}" for glob in self.exclude]
        wanted = " ".join(filter(None, [*lost, self.subject, self.session]))
        nearest = ", ".join(map(repr, difflib.get_close_matches(wanted, known, n=3, cutoff=0.0)))
        return f"{where} has no NWB file with {' and '.join(asked)}; the nearest: {nearest}"


def _is(text: str, glob: str) -> bool:
    """Whether `text` is, or matches, `glob`: a name with brackets in it matches itself."""
    return text == glob or fnmatchcase(text, glob)
