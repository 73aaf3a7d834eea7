"""Address space that a limit (``ulimit -v``) leaves this process: a compiler that finds none ends the process."""

from __future__ import annotations

import contextlib

from bci_adapt.errors import InputError


def require_room(needed: int, what: str) -> None:
    """Raise `InputError` where a limit leaves this process fewer than `needed` bytes of address space for `what`."""
    left = _left()
    if left is not None and left < needed:
        raise InputError(
            f"{what} needs {needed >> 20} MB of address space, of which the limit of this process leaves "
            f"{max(left, 0) >> 20} MB: raise it (ulimit -v)"
        )


def _left() -> int | None:
    """Bytes of address space that this process may still take; None where there is no limit."""
    with contextlib.suppress(ImportError):  # Windows has no such limit
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            import psutil

            return limit - psutil.Process().memory_info().vms
    return None
