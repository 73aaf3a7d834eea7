"""The variants of a folder, found by listing it: there is no registry and no table to edit."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from typing import Any

from bci_adapt.errors import InputError


def variants(package: str, base: type) -> dict[str, Any]:
    """Return every variant in `package` (a folder of modules, or a single module), by its ``name``, sorted.

    A variant is a module-level instance of `base`, or a concrete subclass of it defined in the module where it is
    found. Adding a file to the folder is all it takes; two variants of one name are an error.
    """
    found: dict[str, Any] = {}
    root = importlib.import_module(package)
    names = [info.name for info in pkgutil.iter_modules(root.__path__)] if hasattr(root, "__path__") else []
    for module in [importlib.import_module(f"{package}.{name}") for name in names] or [root]:
        for value in vars(module).values():
            if not _is_variant(value, base, module.__name__):
                continue
            if found.setdefault(value.name, value) is not value:
                raise ImportError(f"two variants named {value.name!r} in {package}")
    return dict(sorted(found.items()))


def _is_variant(value: Any, base: type, module: str) -> bool:
    if not inspect.isclass(value):
        return isinstance(value, base)
    concrete = issubclass(value, base) and not inspect.isabstract(value) and value.__module__ == module
    return concrete and isinstance(getattr(value, "name", None), str)


def pick(package: str, base: type, name: str, what: str = "") -> Any:
    """Return the variant called `name`; `InputError` names the nearest known one when there is none.

    `what` a variant is called; after its package where that is not given.
    """
    known = variants(package, base)
    if name not in known:
        raise InputError(unknown(name, known, what or package.rpartition(".")[2].rstrip("s")))
    return known[name]


def unknown(name: str, known: Any, what: str) -> str:
    """Message for an unknown `name`: the nearest known one, and all of them."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"unknown {what} {name!r}{hint} (known: {', '.join(map(str, known))})"
