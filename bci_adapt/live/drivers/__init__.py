"""Decoders driven bin by bin (`base`), by kind."""

from __future__ import annotations

from typing import Any

from bci_adapt.decoders.online_rnn import OnlineDecoder
from bci_adapt.decoders.rls import RLSDecoder
from bci_adapt.decoders.stacked import StackedDecoder
from bci_adapt.decoders.timing import LABEL_DELAY_S, delay_bins
from bci_adapt.errors import InputError
from bci_adapt.live.drivers.base import Driver, FixedDriver
from bci_adapt.live.drivers.blocks import LinearDriver, StackedDriver
from bci_adapt.live.drivers.network import NetworkDriver


def driver_of(decoder: Any, wait_s: float | None = None) -> Driver:
    """The driver of a fitted decoder, which stands where the decoder does.

    `wait_s` is how long after its bin a label is waited for; the decoder's own label delay when None.

    Raises
    ------
    InputError
        for a decoder that cannot be driven bin by bin, and a wait that is shorter than its label delay.
    """
    decoder.require_fitted()
    known = {StackedDecoder: StackedDriver, OnlineDecoder: NetworkDriver, RLSDecoder: LinearDriver}
    made = known.get(type(decoder)) if decoder.learns_online else FixedDriver
    if made is None:
        names = ", ".join(kind.__name__ for kind in known)
        raise InputError(
            f"live: expected a decoder that can be taught label by label ({names}), or one that learns from none, got "
            f"{type(decoder).__name__}: train one of these, or lead this one through whole stretches (partial_fit)"
        )
    delay_s, bin_s = getattr(decoder, "label_delay_s", LABEL_DELAY_S), decoder.bin_s_
    wait = delay_bins(delay_s if wait_s is None else wait_s, bin_s)
    if wait < delay_bins(delay_s, bin_s):
        raise InputError(
            f"wait_s: expected at least the decoder's label delay, {delay_s:g} s, got {wait_s:g} s: a label cannot be "
            "waited for shorter than until it is learned from"
        )
    return made(decoder, wait)
