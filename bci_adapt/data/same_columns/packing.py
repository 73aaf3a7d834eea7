"""A fingerprint as plain values of JSON, small enough for the file of a decoder (some 50 kB at 96 channels)."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import numpy as np

from bci_adapt.data.same_columns.fingerprints import PROFILES, Fingerprint
from bci_adapt.data.same_columns.patterns import Array
from bci_adapt.errors import InputError

_N_TRAITS = 2


def packed(found: Fingerprint) -> dict[str, Any]:
    """Return it as JSON can hold it, in half precision; `unpacked` is the way back."""
    upper = np.triu_indices(len(found.channels), 1)
    return {
        "session": found.session_id,
        "channels": list(found.channels),
        "place": found.place.tolist(),
        "seconds": found.seconds,
        "reliability": found.reliability,
        "active": found.active.tolist(),
        "traits": _text(np.vstack([found.rate, found.traits])),
        "profiles": _text(np.stack([profile[upper] for profile in found.profiles])),
    }


def unpacked(stored: Any) -> Fingerprint:
    """Return what `packed` made this of; `InputError` where it is something else."""
    try:
        names, m = tuple(map(str, stored["channels"])), len(stored["channels"])
        traits = _numbers(stored["traits"], (1 + _N_TRAITS, m))
        triangles = _numbers(stored["profiles"], (len(PROFILES), m * (m - 1) // 2))
        place, active = np.asarray(stored["place"], dtype=np.int64), np.asarray(stored["active"], dtype=np.bool_)
        seconds, reliability = float(stored["seconds"]), float(stored["reliability"])
        if place.shape != (m,) or active.shape != (m,) or not 0.0 <= reliability <= 1.0:
            raise ValueError("sizes differ")
    except (TypeError, KeyError, ValueError, OverflowError, binascii.Error) as error:
        raise InputError(f"not the fingerprint of a session: {error}") from error
    profiles = np.zeros((len(PROFILES), m, m))
    upper = np.triu_indices(m, 1)
    for profile, triangle in zip(profiles, triangles, strict=True):
        profile[upper] = triangle
        profile += profile.T
    return Fingerprint(
        str(stored["session"]), names, place, seconds, active, traits[0], traits[1:], profiles, reliability
    )


def _text(values: Array) -> str:
    return base64.b64encode(values.astype("<f2").tobytes()).decode("ascii")


def _numbers(text: str, shape: tuple[int, int]) -> Array:
    values = np.frombuffer(base64.b64decode(text, validate=True), dtype="<f2").astype(np.float64).reshape(shape)
    if not np.isfinite(values).all():
        raise ValueError("numbers are not finite")
    return values
