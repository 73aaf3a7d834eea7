"""Quality control of one session: what was measured, beside the threshold it is held against.

`qc` changes nothing and removes nothing: it says per channel, per bin and per label what looks like a fault of the
recording. `drop_channels` acts on it, and `record_removed` writes into the session what was taken out and why.
"""

from __future__ import annotations

import xarray as xr

from bci_adapt.data.qc.examined import Examined
from bci_adapt.data.qc.labels import check_labels, check_lag
from bci_adapt.data.qc.neurons import check_bins, check_channels
from bci_adapt.data.qc.recording import check_clock, summary
from bci_adapt.data.qc.removal import drop_channels, record_removed, removed_channels
from bci_adapt.data.qc.report import CHANNEL_CHECKS, FLAG, NOT_APPLICABLE, PASS, Check, QcReport, flagged_channels
from bci_adapt.data.qc.thresholds import QcThresholds
from bci_adapt.errors import InputError

__all__ = [
    "CHANNEL_CHECKS",
    "FLAG",
    "NOT_APPLICABLE",
    "PASS",
    "Check",
    "QcReport",
    "QcThresholds",
    "drop_channels",
    "flagged_channels",
    "qc",
    "record_removed",
    "removed_channels",
]


def qc(session: xr.Dataset, thresholds: QcThresholds | None = None) -> QcReport:
    """Run every check on `session`; one that does not apply, as for a session without labels, says so and why.

    `InputError` when there is no observed bin.
    """
    limits = thresholds or QcThresholds()
    if not session["valid"].values.any():
        raise InputError(
            f"{session.attrs.get('session_id', 'session')}: not a single bin in which neurons are observed"
        )
    seen = Examined(session, limits)
    channels = check_channels(seen)
    check_bins(seen)
    behaviour = check_labels(seen)
    lag = check_lag(seen)
    check_clock(seen)
    return QcReport(summary(seen), limits, seen.masks, seen.checks, channels, behaviour, lag, seen.series)
