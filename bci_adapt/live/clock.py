"""Which bin of a stream a time stamp is of, where clocks jump and bins are missing, repeated or early."""

from __future__ import annotations

import math

NEXT, GAP, REPEATED, EARLY, NO_TIME = "next", "gap", "repeated", "early", "no time"
PATIENCE_S = 1.0
"""How long stamps behind the clock go on regularly before the clock is taken to have been set back."""
_FOLLOWS = 0.1


class Clock:
    """The time of a stream of bins, each `bin_s` seconds, from their stamps (s, the end of a bin).

    A stamp within half a bin of where the next bin is expected is the next bin's, one after that follows a gap. One
    that is not later than the last bin is refused, unless stamps go on regularly behind the clock for `PATIENCE_S`: it
    was set back, and what follows is as after a gap.
    """

    def __init__(self, bin_s: float) -> None:
        self.bin_s = bin_s
        self.last_s: float | None = None
        self._behind, self._behind_s = 0, 0.0

    @property
    def now_s(self) -> float:
        """When the last bin ended; 0 before the first."""
        return 0.0 if self.last_s is None else self.last_s

    def next_s(self) -> float:
        """When the next bin is expected to end."""
        return self.now_s + self.bin_s

    def meet(self, time_s: float | None) -> str:
        """What a bin stamped `time_s` is, None for one without a stamp, which is the next: `NEXT`, `GAP` (also of the
        very first), or why it is refused: `REPEATED`, `EARLY`, `NO_TIME`.
        """
        if time_s is None:
            time_s = self.next_s()
        if not math.isfinite(time_s):
            return NO_TIME
        if self.last_s is None:
            self.last_s = time_s
            return GAP
        steps = (time_s - self.last_s) / self.bin_s
        if 0.5 < steps < 1.5:
            # Stamps tremble about a regular grid, which itself may be a little faster or slower than told.
            expected = self.next_s()
            self.last_s, self._behind = expected + _FOLLOWS * (time_s - expected), 0
            return NEXT
        if steps < 0.5 and not self._set_back(time_s):
            return REPEATED if steps > -0.5 else EARLY
        self.last_s, self._behind = time_s, 0
        return GAP

    def _set_back(self, time_s: float) -> bool:
        """Whether this refused stamp follows refused ones so regularly, and for so long, that they are right."""
        follows = self._behind and 0.5 < (time_s - self._behind_s) / self.bin_s < 1.5
        self._behind, self._behind_s = self._behind + 1 if follows else 1, time_s
        return self._behind * self.bin_s > PATIENCE_S

    def place(self) -> list[float | None]:
        """Where it stands, as JSON can hold it."""
        return [self.last_s, self._behind, self._behind_s]

    def go_on(self, place: list[float | None]) -> None:
        """Stand where another clock of the same bins stood."""
        last_s, behind, behind_s = place
        self.last_s = last_s
        self._behind, self._behind_s = int(behind or 0), float(behind_s or 0.0)
