"""Bind the loop to one cell, rule, optimiser and loss, and compile it with numba – or leave it in plain Python.

Every function is plain Python in its own file. `bound_loop` gives `loop` the parts it needs as its globals, so each
combination is compiled as a whole (nothing is called through a pointer) from one source. The compiled loop is kept on
disk (`kept`) in a folder named by a digest of every source that it is made of: numba watches only the file that defines
a function, and would otherwise run stale code after an edit elsewhere.
"""

from __future__ import annotations

import functools
import itertools
import platform
import types
import uuid
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np

from bci_adapt.ground.jobs import digest, sources
from bci_adapt.learning import optimizers, schedules
from bci_adapt.learning.backends import loop as source
from bci_adapt.learning.cells.base import Cell
from bci_adapt.learning.credit.base import CreditRule
from bci_adapt.learning.credit.fresh import freshened
from bci_adapt.learning.credit.tools import make_tools
from bci_adapt.learning.optimizers import Optimizer

# What a loop is compiled from, of the modules that its parts import; torch counterparts are none of it.
_KERNEL_SOURCES = tuple(
    f"bci_adapt.learning.{name}"
    for name in (
        *("cells", "credit", "optimizers", "schedules"),
        *("backends.loop", "backends.compiled", "backends.elementary"),
    )
)
# error_model: IEEE division instead of a check that stops SIMD; the flags allow sums to be reordered, no more.
_OPTIONS: dict[str, Any] = {"error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}, "nogil": True}


# Nobody calls a loop from C, or a part of one from Python.
_OUTER: dict[str, Any] = {"no_cfunc_wrapper": True}
_INNER: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
# Parts called for every row or unit: a call would hand over dozens of arguments.
_INLINED = ("row", "update", "partials", "hear", "activate", "shrink", "approach", "stretch")
_INLINED += ("<lambda>", "_store", "fresh")


def sources_digest(cell: Cell, rule: CreditRule) -> str:
    """Digest of the sources that the loops of a cell and a rule are compiled from, and of the compiler: it names the
    folder where they are kept. Other cells and rules are no part of it.
    """
    return _digest_of(cell.make.__module__, type(rule).__module__)


@functools.cache
def _digest_of(*modules: str) -> str:
    found = sources(f"{__name__}:bound_loop", modules)
    kept = {name: value for name, value in found.items() if name.startswith(_KERNEL_SOURCES)}
    return digest([version("numba"), version("numpy"), platform.machine(), kept])[:16]


def _on_disk(*parts: Any) -> bool:
    """Only shipped parts are kept on disk: the digest does not cover what a user defines elsewhere."""
    return all(getattr(part, "__module__", "").startswith("bci_adapt.") for part in parts)


def bound_loop(
    cell: Cell, rule: CreditRule, optimizer: Optimizer, loss: str, *, compiled: bool = True, boundscheck: bool = False
) -> Callable:
    """Return the loop for these parts; compiled ones are shared by all constants of a rule or optimiser."""
    if not compiled:
        return _bind(cell, rule, optimizer, loss, np, lambda function: function)
    key = (cell, type(rule), rule.refreshes, type(optimizer), optimizer.gathers, loss, boundscheck)
    if key not in _compiled:
        _compiled[key] = _compile(cell, rule, optimizer, loss, boundscheck)
    return _compiled[key]


_compiled: dict[tuple, Callable] = {}


def _bind(cell: Cell, rule: CreditRule, optimizer: Optimizer, loss: str, xp: Any, wrap: Callable) -> types.FunctionType:
    tools = make_tools(cell, xp, loss, wrap)
    prepare, row = rule.make(tools)
    if rule.refreshes:
        prepare, row = freshened(tools, prepare, row)
    prepare, row = wrap(prepare), wrap(row)
    scope = dict(vars(source))
    scope |= {"prepare": prepare, "row": row, "update": wrap(optimizer.make())}
    scope |= {"rescale": wrap(optimizer.make_rescale()), "GATHERS": optimizer.gathers}
    scope |= {"precondition": wrap(optimizer.make_precondition()), "PRECONDITIONS": optimizer.preconditions}
    scope |= {name: wrap(getattr(optimizers, name)) for name in ("shrink", "gather_squares", "stretch")}
    scope["pace"] = wrap(schedules.pace)
    shared = ("hear", "finish", "forward", "readout", "copy", "copy_states", "clear_states", "approach")
    scope |= {name: getattr(tools, name) for name in shared}
    scope["sweep"] = wrap(_bound(source.sweep, scope))
    return _bound(source.loop, scope)


def _bound(function: types.FunctionType, scope: dict[str, Any]) -> types.FunctionType:
    """The function with `scope` as its globals."""
    bound = types.FunctionType(function.__code__, scope, function.__name__)
    bound.__module__ = source.__name__
    return bound


def _compile(cell: Cell, rule: CreditRule, optimizer: Optimizer, loss: str, boundscheck: bool) -> Callable:
    import numba

    from bci_adapt.learning.backends import elementary

    on_disk = _on_disk(cell.make, type(rule), type(optimizer)) and not boundscheck
    options = {**_OPTIONS, "boundscheck": boundscheck}
    owner = (
        f"{cell.name}_{rule.name}{'_fresh' * rule.refreshes}_{optimizer.name}{'_gathers' * optimizer.gathers}_{loss}"
    )
    if not on_disk:
        owner += f"_{uuid.uuid4().hex}"  # a cell of the user's may bear the name of a shipped one
    number = itertools.count()

    def wrap(part: types.FunctionType) -> Callable:
        inlined = part.__name__.startswith(_INLINED)
        named = _renamed(part, f"{owner}.{next(number)}.{part.__qualname__}")
        return numba.njit(**options, **_INNER, forceinline=inlined)(named)

    function = _bind(cell, rule, optimizer, loss, elementary, wrap)
    compiled = numba.njit(**options, **_OUTER)(_renamed(function, f"loop_{owner}"))
    if on_disk:
        from bci_adapt.learning.backends.kept import keep_on_disk

        keep_on_disk(compiled, sources_digest(cell, rule))
    return compiled


def _renamed(function: Callable, qualname: str) -> types.FunctionType:
    """A copy of a Python function under another qualified name.

    Numba names a compiled symbol by module, qualified name, argument types and a number counted per process. A loop
    loaded from disk brings the numbers of the process that compiled it, so parts of two loops under one name – every
    cell's `forward` is one closure's – can meet as one symbol, and the first definition silently serves both. With the
    combination and its place in it in the name, a part can only ever meet itself.
    """
    assert isinstance(function, types.FunctionType)
    copy = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__module__, copy.__qualname__ = function.__module__, qualname
    return copy
