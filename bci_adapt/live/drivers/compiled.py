"""Two small loops of a live bin, compiled: in numpy each would be a dozen calls, longer than a bin of a small network.

What they compute is what `Normaliser.apply` and `OnlineDecoder` do, operation by operation, so that bits are the same:
no flag lets the compiler reorder or contract.
"""

from __future__ import annotations

import functools
import inspect
import platform
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np

from bci_adapt.learning.normaliser import FLOOR

_FLOOR_SQUARED = FLOOR**2


def enter(counts, rooted, scale, mean, variance, alpha, keep, moves, out):
    """Normalise one bin of counts (m,) into `out` (m,); the statistics move where `moves`. False, with nothing changed,
    for a bin with a count that is none.
    """
    for j in range(counts.shape[0]):
        if not (counts[j] >= 0.0 and counts[j] < np.inf):
            return False
    for j in range(counts.shape[0]):
        x = np.sqrt(counts[j]) if rooted else counts[j] / scale[j]
        off = x - mean[j]
        out[j] = off / np.sqrt(variance[j] + _FLOOR_SQUARED)
        if moves:
            mean[j] = alpha * x + keep * mean[j]
            variance[j] = alpha * (keep * (off * off)) + keep * variance[j]
    return True


def take(label, weight, arrives, slot, y, mean, scale, member, due):
    """Write the label y (M,), NaN where it is missing, into record `slot` of a ring of all members (S, length, …), to
    be learned from at bin `due`: by every member where `member` is −1, else by that one alone.
    """
    for s in range(label.shape[0]):
        arrives[s, slot] = due
        for o in range(y.shape[0]):
            known = np.isfinite(y[o])
            label[s, slot, o] = (y[o] - mean[o]) / scale[o] if known else 0.0
            weight[s, slot, o] = 1.0 if known and (member == -1 or member == s) else 0.0


class Small(NamedTuple):
    """Both, as machine code."""

    enter: Callable[..., bool]
    take: Callable[..., None]


@functools.cache
def small() -> Small:
    """Compile them, or load what was."""
    from numba import boolean, float64, int64

    vector, ring = float64[::1], float64[:, :, ::1]
    signatures: dict[Any, tuple] = {
        enter: (vector, boolean, vector, vector, vector, float64, float64, boolean, vector),
        take: (ring, ring, int64[:, ::1], int64, vector, vector, vector, int64, int64),
    }
    return Small(*(_compiled(function, types) for function, types in signatures.items()))


def _compiled(function: Callable, types: tuple) -> Callable[..., Any]:
    from numba import njit

    from bci_adapt.ground.jobs import digest
    from bci_adapt.learning.backends.kept import keep_on_disk

    dispatcher: Any = njit(error_model="numpy")(function)
    source = inspect.getsource(sys.modules[__name__])
    keep_on_disk(dispatcher, digest([version("numba"), version("numpy"), platform.machine(), source, FLOOR])[:16])
    return machine_code(dispatcher, types)


def machine_code(function: Any, types: tuple) -> Callable[..., Any]:
    """The compiled code for arguments of exactly these types, without the search for it that each call makes."""
    function.compile(types)
    return function.overloads[types].entry_point
