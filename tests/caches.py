"""A cache of a test's own in which nothing is but compiled loops."""

from __future__ import annotations

from pathlib import Path

from bci_adapt.ground.storage import cache_root


def new_cache(folder: Path) -> Path:
    """``folder/cache``, made empty. Compiled loops are named by their sources: those of this checkout are linked there,
    so that no test compiles again what another one, or another process, has compiled.
    """
    kernels, cache = cache_root() / "kernels", folder / "cache"
    kernels.mkdir(parents=True, exist_ok=True)
    cache.mkdir(parents=True)
    (cache / "kernels").symlink_to(kernels.resolve(), target_is_directory=True)
    return cache
