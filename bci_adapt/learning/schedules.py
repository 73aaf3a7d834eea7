"""Schedules of the learning rate: a factor in (0, 1] that goes with the number of updates."""

from dataclasses import dataclass

import numpy as np

from bci_adapt.errors import InputError

SCHEDULES = ("constant", "exponential", "cosine", "inverse_sqrt")


@dataclass(frozen=True)
class Schedule:
    """How the learning rate changes with the number t of updates: a factor in (0, 1].

    Parameters
    ----------
    kind : ``constant``; ``exponential``, 0.5^(t/length); ``cosine``, from 1 to `floor` over `length` updates along half
        a cosine, then `floor`; ``inverse_sqrt``, 1/√(1 + t/length). t counts from the end of the warm-up.
    length : in updates.
    warm_up : updates over which the rate rises linearly from 0 first.
    floor : of the cosine.
    """

    kind: str = "constant"
    length: float = 1.0
    warm_up: float = 0.0
    floor: float = 0.0

    def __post_init__(self):
        if self.kind not in SCHEDULES:
            raise InputError(f"schedule: kind must be one of {', '.join(SCHEDULES)}, got {self.kind!r}")
        if not (self.length > 0.0 and self.warm_up >= 0.0 and 0.0 <= self.floor <= 1.0):
            raise InputError(
                "schedule: expected length > 0, warm_up ≥ 0 (updates) and floor in [0, 1], got "
                f"{self.length}, {self.warm_up}, {self.floor}"
            )

    @property
    def moves(self) -> bool:
        """Whether the rate changes at all."""
        return self.kind != "constant" or self.warm_up > 0.0

    def constants(self) -> np.ndarray:
        """What `pace` reads."""
        return np.array([float(SCHEDULES.index(self.kind)), self.length, self.warm_up, self.floor])


def pace(t, schedule):
    """Factor on the learning rate at update t ≥ 1; `schedule` as `Schedule.constants` gives it."""
    kind, length, warm_up, floor = schedule[0], schedule[1], schedule[2], schedule[3]
    if t <= warm_up:
        return t / warm_up
    since = t - warm_up
    if kind == 1.0:
        return 0.5 ** (since / length)
    if kind == 2.0:
        return floor + (1.0 - floor) * 0.5 * (1.0 + np.cos(np.pi * min(1.0, since / length)))
    if kind == 3.0:
        return 1.0 / np.sqrt(1.0 + since / length)
    return 1.0
