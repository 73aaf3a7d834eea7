"""What the checks of quality control are held against."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from bci_adapt.errors import InputError


@dataclass(frozen=True)
class QcThresholds:
    """What the checks of `qc` are held against; stored with every report.

    Channels, over observed bins: `dead_rate_hz`, rates below are dead; `max_rate_hz` and `max_rate_z`, the z of the
    logarithm of the rate by median and MAD of the channels; `drift_log2` *and* `drift_z`, change of the rate from the
    first to the last third of the session, in blocks of `block_s`; `min_fano`, `max_fano`, variance over mean of the
    counts; `max_correlation` of the changes of two channels from bin to bin; `max_short_fraction` of intervals below
    1 ms (1 … 2 % is usual for sorted units; threshold crossings of several neurons have more);
    `max_coincident_fraction` of spikes in 1 ms windows in which a third of the channels spike.

    Bins: `artefact_tail` and `artefact_alpha` as in `faults.coincident_bins`; bins beyond chance are left out where
    channels are compared, and are called artefacts where `artefact_fraction` of the channels are far above their mean;
    `max_silent_fraction` of bins in stretches in which all channels are silent.

    Labels: `max_still_fraction`, `max_fast_fraction`, of bins that the rules of `Thresholds` mask as standing still
    and as implausibly fast; `jump_ratio`, `jump_range` as in `faults.position_jumps`; `max_missing_fraction` of
    samples that are NaN; `min_distinct` values of an axis; `max_saturated_fraction` of samples at an axis's largest
    or smallest value; `min_agreement` and `max_scale` (and its inverse), correlation and scale of recorded against
    derived velocity.

    Neurons against labels: the lag of best decoding is looked for from `lag_from_s` to `lag_to_s`, positive where
    neurons lead; `min_label_correlation`, held out, at the best lag; `max_lag_split_s` between the best lags of the
    two halves of the session.

    Time: `max_gap_fraction` of the time between first and last bin that lies in gaps; `short_segment_s`,
    `max_short_segment_fraction`, of bins in segments shorter than that; `max_bad_trials`, fraction of trials that do
    not lie within the recording or end before they start.
    """

    dead_rate_hz: float = 0.05
    max_rate_hz: float = 200.0
    max_rate_z: float = 5.0
    block_s: float = 10.0
    drift_log2: float = 1.0
    drift_z: float = 5.0
    min_fano: float = 0.2
    max_fano: float = 10.0
    max_correlation: float = 0.7
    max_short_fraction: float = 0.02
    max_coincident_fraction: float = 0.05
    artefact_tail: float = 0.001
    artefact_alpha: float = 0.01
    artefact_fraction: float = 1 / 3
    max_silent_fraction: float = 0.01
    max_still_fraction: float = 0.1
    max_fast_fraction: float = 0.001
    jump_ratio: float = 10.0
    jump_range: float = 0.05
    max_missing_fraction: float = 0.05
    min_distinct: int = 50
    max_saturated_fraction: float = 0.05
    min_agreement: float = 0.9
    max_scale: float = 2.0
    lag_from_s: float = -0.2
    lag_to_s: float = 0.3
    min_label_correlation: float = 0.1
    max_lag_split_s: float = 0.1
    max_gap_fraction: float = 0.1
    short_segment_s: float = 1.0
    max_short_segment_fraction: float = 0.01
    max_bad_trials: float = 0.05

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
                raise InputError(f"qc threshold {field.name} must be a number, got {value!r}")
            if value < 0 and not field.name.startswith("lag_"):
                raise InputError(f"qc threshold {field.name} must be at least 0, got {value!r}")
            if value > 1 and field.name.endswith(("fraction", "correlation", "agreement", "tail", "alpha", "trials")):
                raise InputError(f"qc threshold {field.name} must lie between 0 and 1, got {value!r}")
        for name in ("block_s", "artefact_tail", "artefact_alpha", "jump_ratio", "max_scale"):
            if not getattr(self, name) > 0:
                raise InputError(f"qc threshold {name} must be above 0, got {getattr(self, name)!r}")
        if not self.lag_from_s < self.lag_to_s:
            raise InputError(f"lag_from_s must lie below lag_to_s, got {self.lag_from_s!r} and {self.lag_to_s!r}")
        if not self.min_fano < self.max_fano:
            raise InputError(f"min_fano must lie below max_fano, got {self.min_fano!r} and {self.max_fano!r}")
        if not isinstance(self.min_distinct, int):
            raise InputError(f"qc threshold min_distinct must be a whole number, got {self.min_distinct!r}")
