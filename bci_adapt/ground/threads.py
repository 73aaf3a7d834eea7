"""How many threads numerical libraries take: one, where small products follow one another."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Limit the libraries that are loaded by now to one thread each.

    Work in a process of its own has a core to itself; and threads that wait for one another over a product of a few
    hundred rows cost several times what they save, on a busy machine most of all.
    """
    from threadpoolctl import threadpool_limits

    torch = sys.modules.get("torch")
    n_threads = torch.get_num_threads() if torch else 0
    with threadpool_limits(1):
        if torch:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            if torch:
                torch.set_num_threads(n_threads)
