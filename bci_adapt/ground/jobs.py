"""A job, and the key of its result: a digest of everything that can change the result, and of nothing else.

The key holds the function, the sources that it runs, the versions of the numerical libraries, the parameters, and the
contents (or keys) of the inputs. What a job imports is followed; a variant that it picks by name – a cell, a rule, a
decoder – is not found by following imports and is named in `Job.modules`, so the others of the folder do not count.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.metadata
import importlib.util
import itertools
import json
import math
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from bci_adapt.errors import InputError
from bci_adapt.ground.seals import is_whole
from bci_adapt.ground.storage import cache_root, file_digest

# Libraries whose release can change a number; their installed versions enter every key.
NUMERICAL_LIBRARIES = (
    *("h5netcdf", "h5py", "hdmf", "llvmlite", "numba", "numpy"),
    *("pandas", "pynwb", "scikit-learn", "scipy", "torch", "xarray"),
)


@dataclass(frozen=True, eq=False, kw_only=True)
class Job:
    """One function call whose result is a file or a folder in the cache.

    `function` is ``"package.module:name"``, called as ``name(parameters, inputs, out)`` with the parameters as they
    come back from JSON (tuples are lists), `inputs` as a dict of paths, and `out` the path to write. `inputs` are
    other jobs (their results) or raw files (known by their contents). `modules` are further modules whose sources
    belong to the key, for variants picked by name at run time; a package stands for every module in it. `versions`
    are those of further packages that the result comes from (None: not installed). `label` and `cost` (expected
    seconds) steer display and order only, and `stem` is the human part of the file name.
    """

    kind: str
    function: str
    stem: str
    folder: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Job | Path] = field(default_factory=dict)
    modules: tuple[str, ...] = ()
    versions: Mapping[str, str | None] = field(default_factory=dict)
    suffix: str = ""
    label: str = ""
    cost: float = 1.0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.]+:\w+", self.function):
            raise ValueError(f"a job's function reads 'package.module:name', got {self.function!r}")
        if not self.cost >= 0:
            raise ValueError(f"a job's cost is its expected seconds, 0 or more, got {self.cost!r}")
        if not self.label:
            object.__setattr__(self, "label", f"{self.kind} {self.stem}")

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """All that the key is made of, JSON-able: function, sources, versions, parameters, inputs.

        Raises `InputError` for an input file that is missing and TypeError for parameters JSON cannot hold.
        """
        return {
            "function": self.function,
            "sources": self._sources,
            "versions": library_versions() | dict(self.versions),
            "parameters": json.loads(_canonical(self.parameters)),
            "inputs": self._input_keys,
        }

    @cached_property
    def _sources(self) -> dict[str, str]:
        return sources(self.function, self.modules)

    @cached_property
    def _input_keys(self) -> dict[str, str]:
        return {
            name: value.key if isinstance(value, Job) else f"sha256:{_content(Path(value).absolute(), self.label)}"
            for name, value in self.inputs.items()
        }

    @cached_property
    def key(self) -> str:
        """SHA-256 of the recipe, in hexadecimal."""
        # Written as `_canonical` writes the recipe: what thousands of jobs share is made into text once.
        versions = _versions_text(tuple((library_versions() | dict(self.versions)).items()))
        text = (
            f'{{"function":{json.dumps(self.function)},"inputs":{_canonical(self._input_keys)},"parameters":'
            f'{_canonical(self.parameters)},"sources":{_shared_text(self._sources)},'
            f'"versions":{versions}}}'
        )
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def key_of_any_release(self) -> str:
        """The key without the versions of libraries, down to the inputs: the same for the same code on any machine."""
        inputs = {name: value.key_of_any_release for name, value in self.inputs.items() if isinstance(value, Job)}
        return digest(self.recipe | {"versions": {}, "inputs": self.recipe["inputs"] | inputs})

    @property
    def path(self) -> Path:
        """Where the result is, or will be."""
        root = _root()
        if (known := self.__dict__.get("_path")) is not None and known[0] == root:
            return known[1]
        stem = re.sub(r"[^\w.-]+", "_", self.stem, flags=re.ASCII).strip("._-")[:80] or self.kind
        self.__dict__["_path"] = root, root / self.folder / f"{stem}-{self.key[:16]}{self.suffix}"
        return self.__dict__["_path"][1]

    @property
    def is_done(self) -> bool:
        """Whether the result is there, as it was written."""
        return is_whole(self.path)


def _root() -> Path:
    """`cache_root`, which thousands of jobs ask for many times each: one given in full is made a path once."""
    given = os.environ.get("BCI_ADAPT_CACHE", "")
    return _given_root(given) if given.startswith(os.sep) else cache_root()


@lru_cache(maxsize=8)
def _given_root(given: str) -> Path:
    return cache_root()


def _canonical(value: Any) -> str:
    """JSON with sorted keys, no spaces and no NaN: equal contents give equal text."""
    return _ENCODER.encode(_plain(value))


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


def _plain(value: Any) -> Any:
    """Mappings as dicts, refusing keys that JSON would silently turn into text."""
    if isinstance(value, Mapping):
        if odd := [key for key in value if not isinstance(key, str)]:
            raise TypeError(f"the keys of a job's parameters are text, got {odd[0]!r}")
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _shared_text(found: dict[str, str]) -> str:
    """`_canonical` of what `sources` has returned."""
    look = next((each for each in _LOOKS.values() if each.found is found), None)
    if look is None:
        return _canonical(found)
    look.text = look.text or _canonical(found)
    return look.text


def code_digest_of(found: dict[str, str]) -> str:
    """SHA-256 of `sources` and the installed versions."""
    return hashlib.sha256(
        f"[{_shared_text(found)},{_versions_text(tuple(library_versions().items()))}]".encode()
    ).hexdigest()


@cache
def _versions_text(versions: tuple[tuple[str, str | None], ...]) -> str:
    return _canonical(dict(versions))


def digest(value: Any) -> str:
    """SHA-256 of what JSON can hold, in hexadecimal."""
    return hashlib.sha256(_canonical(value).encode()).hexdigest()


@cache
def library_versions() -> dict[str, str]:
    """Installed versions of `NUMERICAL_LIBRARIES`."""
    versions = {}
    for name in NUMERICAL_LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _content(path: Path, label: str) -> str:
    if not path.is_file():
        raise InputError(f"{path}: no such file, needed by {label!r}; check the data folder of the config")
    if (state := _state(path)) not in _CONTENTS:
        _CONTENTS[state] = file_digest(path)
    return _CONTENTS[state]


_CONTENTS: dict[tuple[Path, int, int], str] = {}
"""Digests of files, remembered for as long as size and time of change stay the same."""


def _state(path: Path) -> tuple[Path, int, int]:
    status = path.stat()
    return path, status.st_size, status.st_mtime_ns


def content_is(path: Path, sha256: str) -> None:
    """Tell the digest of a file to the keys of the jobs that read it, where it is known: it is not computed again."""
    _CONTENTS[_state(path)] = sha256


def sources(function: str, modules: Iterable[str] = (), patience_s: float = 0.0) -> dict[str, str]:
    """SHA-256 of each source that `function` and `modules` import, directly or not, also inside functions.

    Followed: the function's own package and this one. Importing a module also runs the ``__init__`` of the packages it
    lies in: they count, with what they import while they are run. What the functions of an ``__init__`` import counts
    only where a name is taken from it, and the outermost ``__init__``, which offers names from everywhere, counts only
    then at all. A data file that a module names and that lies beside it counts like a source.

    The same dict is returned, not to be written to, for as long as no file that was looked at has changed; for
    `patience_s` after a look with patience it is taken that none has.
    """
    modules, now = tuple(modules), time.monotonic()
    known = _LOOKS.get((function, modules))
    if known is not None and now - known.at < patience_s:
        return known.found
    if known is not None and ((_LOOKING_ONCE and known.number == _LOOKING_ONCE[-1]) or known.still_holds(function)):
        known.number, known.at = _LOOKING_ONCE[-1] if _LOOKING_ONCE else 0, now if patience_s else known.at
        return known.found
    look = _look(function, modules)
    look.number, look.at = _LOOKING_ONCE[-1] if _LOOKING_ONCE else 0, now if patience_s else look.at
    _LOOKS[function, modules] = look
    return look.found


@dataclass
class _Look:
    """What `sources` found, and the state (size, time of change; None: not there) of every file that decided it."""

    found: dict[str, str]
    roots: dict[str, str]
    states: dict[Path, tuple[int, int] | None]
    text: str = ""
    number: int = 0
    at: float = -math.inf

    def still_holds(self, function: str) -> bool:
        same_roots = self.roots == _roots(function, self.roots)
        return same_roots and all(_file_state(path) == state for path, state in self.states.items())


_LOOKS: dict[tuple[str, tuple[str, ...]], _Look] = {}
_LOOKING_ONCE: list[int] = []
_NUMBERS = itertools.count(1)


@contextlib.contextmanager
def looking_once() -> Iterator[None]:
    """Take sources to stay as they are for a moment: thousands of jobs are planned by one look at them."""
    _LOOKING_ONCE.append(_LOOKING_ONCE[-1] if _LOOKING_ONCE else next(_NUMBERS))
    try:
        yield
    finally:
        _LOOKING_ONCE.pop()


def _file_state(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _roots(function: str, packages: Iterable[str]) -> dict[str, str]:
    """Where packages lie."""
    roots: dict[str, str] = {}
    for name in packages:
        if (spec := importlib.util.find_spec(name)) is None:
            raise ImportError(f"no module named {name!r}, wanted by job function {function!r}")
        roots[name] = next(iter(spec.submodule_search_locations or [spec.origin or ""]))
    return roots


def _look(function: str, modules: tuple[str, ...]) -> _Look:
    entry = function.partition(":")[0]
    names = {__name__.partition(".")[0], *(module.partition(".")[0] for module in (entry, *modules))}
    roots = _roots(function, sorted(names))
    pending, states = [(entry, True)], {}
    for module in (entry, *modules):
        path = _module_file(module, roots[module.partition(".")[0]])
        if path is None:
            raise ImportError(f"no module named {module!r}, wanted by job function {function!r}")
        if module in modules:
            pending += [(each, True) for each in _with_all_inside(module, path)]
            # a module that comes to a package changes the folder it comes to
            folders = [path.parent, *path.parent.rglob("*")] if path.name == "__init__.py" else [path, *path.rglob("*")]
            states |= {each: _file_state(each) for each in folders if each.is_dir()}
    found: dict[str, str] = {}
    seen: set[tuple[str, bool]] = set()
    while pending:
        name, used = pending.pop()  # used: a name is taken from it; else it is only run
        root, _, below = name.partition(".")
        if root not in roots or {(name, used), (name, True)} & seen:
            continue
        seen.add((name, used))
        path, parent = _module_file(name, roots[root]), name.rpartition(".")[0]
        if path is None and below:  # an attribute of its parent
            pending.append((parent, True))
        elif below and parent != root:
            pending.append((parent, False))
        if path is None or path.suffix != ".py":
            continue
        status = path.stat()
        states[path] = status.st_size, status.st_mtime_ns
        source = _source_at(path, status.st_size, status.st_mtime_ns, name)
        found[name] = source.digest
        pending += [(each, True) for each in (source.imported if used else source.imported_at_once)]
        beside = {file: path.with_name(file) for file in source.named}
        states |= {there: _file_state(there) for there in beside.values()}
        found |= {f"{name}/{file}": _content(there, name) for file, there in beside.items() if there.is_file()}
    return _Look(dict(sorted(found.items())), roots, states)


def _with_all_inside(module: str, path: Path) -> list[str]:
    """A module; a package with every module in it."""
    if path.suffix == ".py" and path.name != "__init__.py":
        return [module]
    folder = path.parent if path.suffix == ".py" else path
    inside = (file.relative_to(folder).with_suffix("").parts for file in folder.rglob("*.py"))
    return [module, *(".".join((module, *parts)).removesuffix(".__init__") for parts in inside)]


@cache
def _module_file(name: str, root: str) -> Path | None:
    """Source file of a module, the folder of a package without ``__init__``, or None if `name` is no module.

    `root` is the folder of its outermost package, or the file of a module that lies in none. Where modules lie is
    looked up once in a process; what is in them, every time.
    """
    if root.endswith(".py"):
        return Path(root) if "." not in name else None
    base = Path(root, *name.split(".")[1:])
    files = (base / "__init__.py", base.with_name(f"{base.name}.py"))
    return next((path for path in files if path.is_file()), base if base.is_dir() else None)


class _Source(NamedTuple):
    """Digest of a source file, the dotted names it imports, those it imports as soon as it is run (not inside a
    function), and the strings in it that look like file names.
    """

    digest: str
    imported: frozenset[str]
    imported_at_once: frozenset[str]
    named: frozenset[str]


_FILE_NAME = re.compile(r"""["']([\w-]+(?:\.[\w-]+)*\.(?!py["'])[\w-]+)["']""")


@cache
def _source_at(path: Path, size: int, modified_ns: int, module: str) -> _Source:
    """What a source file holds, remembered for as long as its size and time of change stay the same."""
    text = path.read_bytes()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    imported: set[str] = set()
    at_once: set[str] = set()
    tree = ast.parse(text, filename=str(path))
    pending: list[tuple[ast.AST, bool]] = [(each, False) for each in tree.body]
    while pending:  # statements; there are none inside an expression
        node, inside = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            pending += [(each, inside) for each in node.orelse]  # the body is never run
            continue
        names = _imported_by(node, package)
        imported |= names
        if not inside:
            at_once |= names
        inside = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for part in ("body", "orelse", "finalbody", "handlers", "cases"):
            pending += [(each, inside) for each in getattr(node, part, ())]
    named = frozenset(_FILE_NAME.findall(text.decode("utf-8", "replace")))
    return _Source(hashlib.sha256(text).hexdigest(), frozenset(imported), frozenset(at_once), named)


def _imported_by(node: ast.AST, package: str) -> set[str]:
    """Dotted names that a statement of a module of `package` imports; names taken from a module may be modules."""
    if isinstance(node, ast.Import):  # ``import a.b.c`` makes a.b usable too
        parts = [alias.name.split(".") for alias in node.names]
        return {".".join(each[:n]) for each in parts for n in range(min(2, len(each)), len(each) + 1)}
    if not isinstance(node, ast.ImportFrom):
        return set()
    base = node.module or ""
    if node.level:
        base = importlib.util.resolve_name("." * node.level + base, package)
    return {f"{base}.{alias.name}" for alias in node.names}
