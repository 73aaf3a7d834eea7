"""Change of firing rates, channel by channel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bci_adapt.data.drift.reported import RateChange, Settings
from bci_adapt.data.drift.sides import Array, Part

ACTIVE_HZ = 0.1
"""A channel that fires less than this is silent: it has no direction to change and cannot be z-scored."""


def rate_change(a: Part, b: Part, labels: list[str], settings: Settings) -> RateChange:
    from scipy import stats

    logs, variances, freedom, rates = [], [], [], []
    spikes = a.side.spikes
    for part in (a, b):
        seconds, totals = part.seconds, part.totals
        n, total, whole = len(seconds), totals.sum(axis=0), seconds.sum()
        extra = 0.5 if spikes else 0.0
        rate = (total + extra) / whole
        # a ratio of sums over blocks; its variance by the usual linearisation
        spread = np.square(totals - np.outer(seconds, total / whole)).sum(axis=0) * n / (n - 1) / whole**2
        with np.errstate(divide="ignore", invalid="ignore"):
            variance = spread / rate**2
            logs.append(np.log(rate))
        if spikes:
            variance = np.maximum(variance, 1 / (total + extra))
        rates.append(total / whole)
        variances.append(variance)
        freedom.append(n - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio, variance = logs[1] - logs[0], variances[0] + variances[1]
        df = variance**2 / (variances[0] ** 2 / freedom[0] + variances[1] ** 2 / freedom[1])
        reach = stats.t.ppf((1 + settings.level) / 2, df) * np.sqrt(variance)
        p = 2 * stats.t.sf(np.abs(ratio) / np.sqrt(variance), df)
    changed = discoveries(p, settings.fdr)
    active = [rate >= ACTIVE_HZ if spikes else rate > 0 for rate in rates]
    finite = np.isfinite(ratio)
    return RateChange(
        first_hz=rates[0].tolist(),
        second_hz=rates[1].tolist(),
        log_ratio=ratio.tolist(),
        low=(ratio - reach).tolist(),
        high=(ratio + reach).tolist(),
        p=p.tolist(),
        changed=changed.tolist(),
        median_abs_log_ratio=float(np.median(np.abs(ratio[finite]))) if finite.any() else float("nan"),
        share_changed=float(changed.mean()),
        silenced=[label for label, gone in zip(labels, active[0] & ~active[1], strict=True) if gone],
        appeared=[label for label, came in zip(labels, active[1] & ~active[0], strict=True) if came],
    )


def discoveries(p: Array, rate: float) -> NDArray[np.bool_]:
    """Benjamini and Hochberg's choice among the finite p values."""
    from scipy import stats

    chosen, finite = np.zeros(p.shape, dtype=bool), np.isfinite(p)
    if finite.any():
        chosen[finite] = stats.false_discovery_control(p[finite]) <= rate
    return chosen
