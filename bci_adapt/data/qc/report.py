"""What quality control found: the checks, and the figures of every channel."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from numpy.typing import NDArray

from bci_adapt.data.faults import Thresholds
from bci_adapt.data.qc.thresholds import QcThresholds
from bci_adapt.errors import InputError

PASS, FLAG, NOT_APPLICABLE = "pass", "flag", "not applicable"
CHANNEL_CHECKS = (
    "dead channels",
    "rate outliers",
    "rate drift",
    "Fano factor",
    "duplicated channels",
    "short intervals",
    "coincident spikes",
)


@dataclass(frozen=True)
class Check:
    """One check: `n_flagged` of `n_total` `of` (channels, bins, …), the threshold and what was found, in words."""

    name: str
    status: str
    n_flagged: int
    n_total: int
    of: str
    threshold: str
    found: str


@dataclass(frozen=True)
class QcReport:
    """What `qc` found. Plain data but for `series`, the arrays that figures are drawn from.

    `channels` has a dictionary per channel with its figures (None where there is none) and ``flags``, the names of
    the checks that flag it; of duplicates only the later ones are flagged. `masks` are the thresholds of the rules
    that mask bins at preparation.
    """

    session: dict[str, Any]
    thresholds: QcThresholds
    masks: Thresholds
    checks: list[Check]
    channels: list[dict[str, Any]]
    behaviour: dict[str, Any]
    lag: dict[str, Any]
    series: dict[str, NDArray[Any]]

    @property
    def flagged(self) -> list[str]:
        """Names of the checks that are flagged."""
        return [check.name for check in self.checks if check.status == FLAG]

    def to_json(self) -> dict[str, Any]:
        """Return everything but `series`; numbers that are not finite are left as they are."""
        return {
            "session": self.session,
            "flagged": self.flagged,
            "flagged_channels": flagged_channels(self),
            "checks": [asdict(check) for check in self.checks],
            "channels": self.channels,
            "behaviour": self.behaviour,
            "lag": self.lag,
            "thresholds": asdict(self.thresholds),
            "mask_thresholds": asdict(self.masks),
        }


def flagged_channels(report: QcReport, checks: Iterable[str] = CHANNEL_CHECKS) -> list[str]:
    """Return the labels of the channels that any of `checks` flags, in the session's order."""
    chosen = set(checks)
    if unknown := chosen - set(CHANNEL_CHECKS):
        raise InputError(f"no check of channels: {', '.join(sorted(unknown))} (known: {', '.join(CHANNEL_CHECKS)})")
    return [entry["channel"] for entry in report.channels if chosen & set(entry["flags"])]
