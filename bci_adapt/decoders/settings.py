"""Which numbers parameters may be, by name: one table for constructors of decoders, the protocol and configs; and how a
file holds them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np

from bci_adapt.errors import InputError


class Limit(NamedTuple):
    """A number: in words, a whole one or not, its least and most, whether it must lie between these (`open`), and
    whether it may be None or `endless`.
    """

    words: str
    whole: bool = False
    least: float = 0.0
    most: float = math.inf
    open: bool = False
    none: bool = False
    endless: bool = False


_COUNT = Limit("a whole number, 1 or more", True, 1)
_WHOLE = Limit("a whole number, 0 or more", True)
_SECONDS = Limit("seconds, more than 0", open=True)
_SECONDS_OR_NONE = _SECONDS._replace(words="seconds, more than 0, or None", none=True)
_MEMORY = _SECONDS._replace(endless=True)
_WAIT = Limit("seconds, 0 or more")
_NOT_NEGATIVE = Limit("a number, 0 or more")

LIMITS: Mapping[str, Limit] = {
    **dict.fromkeys(("n_lags", "n_hidden", "n_members", "n_latents", "batch", "window_bins", "learn_every"), _COUNT),
    **dict.fromkeys(("n_updates", "added_updates", "tune_updates", "lag_bins", "seed", "replay"), _WHOLE),
    **dict.fromkeys(("align_every_s", "prior_s", "stream_s", "replay_s"), _SECONDS),
    **dict.fromkeys(("memory_s", "weight_memory_s", "share_memory_s"), _MEMORY),
    "read_in_rank": _COUNT,
    "bin_s": _SECONDS_OR_NONE,
    "normaliser_s": _SECONDS_OR_NONE._replace(endless=True),
    **dict.fromkeys(("label_delay_s", "update_every_s", "warm_up_s", "read_in_every_s"), _WAIT),
    **dict.fromkeys(("penalty", "learning_rate", "pretrain_rate", "added_rate", "tune_rate"), _NOT_NEGATIVE),
    **dict.fromkeys(("gain_jitter", "offset_jitter", "read_in_penalty"), _NOT_NEGATIVE),
    "n_stable": Limit("a whole number, 1 or more, or None", True, 1, none=True),
    "input_dropout": Limit("a share from 0 to 1", most=1.0),
    "recency": Limit("a factor above 0, at most 1", least=math.nextafter(0.0, 1.0), most=1.0),
    "average": Limit("a number between 0 and 1, or None", most=1.0, open=True, none=True),
    "label_fraction": Limit("a share from 0 to 1", most=1.0),
    "budget_s": Limit("seconds, 0 or more, or None", none=True),
    "budget_trials": Limit("a whole number, 1 or more, or None", True, 1, none=True),
    "seeds": Limit("a whole number, 1 or more, or None", True, 1, none=True),
    "workers": Limit("a whole number, 0 or more, or None", True, none=True),
}


def require_numbers(given: Mapping[str, Any]) -> None:
    """`InputError` for a value of `given` that is not what `LIMITS` says of its name; other names are left alone."""
    for name, value in given.items():
        if name in LIMITS and not may_be(name, value):
            raise InputError(f"{name}: expected {LIMITS[name].words}, got {value!r}")


def may_be(name: str, value: Any) -> bool:
    """Whether a value is what `LIMITS` says of a name."""
    limit = LIMITS[name]
    if value is None:
        return limit.none
    if isinstance(value, bool) or not isinstance(value, Integral if limit.whole else Real):
        return False
    number = float(value)
    if number == math.inf:
        return limit.endless
    return limit.least < number < limit.most if limit.open else limit.least <= number <= limit.most


def as_plain(value: Any) -> Any:
    """A parameter as JSON can hold it: numpy's numbers, such as a search leaves, as plain ones."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise InputError(f"save: expected parameters that are numbers, text or made of such, got {type(value).__name__}")


def from_plain(value: Any) -> Any:
    """JSON knows neither tuples nor arrays: a list was a tuple, in a dict of constants an array."""
    if isinstance(value, dict):
        return {key: np.asarray(each) if isinstance(each, list) else each for key, each in value.items()}
    return tuple(value) if isinstance(value, list) else value
