"""Recordings from wherever they are: a file here, or an address that is read by ranges."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bci_adapt.archive.addresses import is_address, is_page, shown
from bci_adapt.data.remote import Remote
from bci_adapt.errors import InputError
from bci_adapt.ground.guarded import warm_up

if TYPE_CHECKING:
    import xarray as xr


def located(place: Path | str, stream: bool) -> tuple[Path | Remote, dict[str, str]]:
    """What a command or a call names: the path of a file, or with `stream` a remote one with its provenance.

    `InputError` for an address without `stream`: what is read over the network is not pinned and not verified, so that
    it has to be asked for.
    """
    if stream:
        if Path(place).exists():
            raise InputError(f"{place}: lies here; only an address is read over the network")
        from bci_adapt.archive.streaming import remote

        return remote(str(place))
    if isinstance(place, str) and is_address(place):
        how = "`bci-adapt fetch` brings it here" if is_page(place) else "download it"
        raise InputError(f"{shown(place)}: is an address; {how}, or read it over the network (--stream, stream=True)")
    return Path(place), {}


def read(path: Path | str, bin_s: float | None = None, *, stream: bool = False, **options: Any) -> xr.Dataset:
    """Read a session from any file: ``.nc`` a prepared one, ``.nwb`` or MATLAB 7.3 a recording, ``.npz`` or another
    ``.mat`` the arguments of `session` as arrays of their names.

    `bin_s` is needed for all but ``.nc``; `options` are those of `bci_adapt.data.prepare.prepare` or `session`. With
    `stream`, `path` is an address (`bci_adapt.archive.streaming.remote`) that is read by ranges and recorded as such.
    """
    place, provenance = located(path, stream)
    if isinstance(place, Path):
        warm_up("bci_adapt.data.guarded_reading:warmed_up")
        from bci_adapt.data import guarded_reading  # its imports take as long as those of the process that reads

        return guarded_reading.read(place, bin_s, **options)
    if bin_s is None:
        raise InputError(f"{shown(str(path))}: bin_s, the width of a bin in seconds, is needed to read a recording")
    from bci_adapt.data.prepare import prepare

    return prepare(place, bin_s, provenance=provenance, **options)
