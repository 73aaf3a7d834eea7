"""What decoders compute with: features of counts, or of a band's power, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bci_adapt.errors import InputError

if TYPE_CHECKING:
    from bci_adapt.decoders.inputs import Bins


def features_of(X: np.ndarray, known: Mapping[str, Any]) -> np.ndarray:
    """What decoders compute with, of raw values (n_bins, n_channels): the square root of counts, which steadies their
    variance; of a band's power, which has a unit and no such law, the power in each channel's own scale. `known` is the
    decoder's ``metadata_``.
    """
    scale = known.get("power_scale")
    return np.sqrt(X) if scale is None else X / np.asarray(scale)


def raw_of(features: np.ndarray, known: Mapping[str, Any]) -> np.ndarray:
    """The counts or power whose features (…, n_channels) these are."""
    scale = known.get("power_scale")
    return features**2 if scale is None else features * np.asarray(scale)


def power_scale(sessions: Sequence[Bins]) -> list[float]:
    """The scale of each channel's power in training sessions: its standard deviation within one, over all of them; of
    a channel that hardly varies (below a thousandth of the others') theirs, so that its noise is not blown up.
    """
    spread = np.sqrt(np.mean([bins.X[bins.observed].var(axis=0) for bins in sessions], axis=0))
    if not spread.max() > 1e-9 * max(bins.X.max() for bins in sessions):
        raise InputError("X: expected power that varies in some channel, got a constant in all")
    usual = np.median(spread[spread > 1e-3 * spread.max()])
    return np.where(spread > 1e-3 * usual, spread, usual).tolist()
