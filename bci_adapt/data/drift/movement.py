"""What the animal did: a change of behaviour changes neurons too."""

from __future__ import annotations

from collections import Counter

import numpy as np

from bci_adapt.data.drift.reported import Behaviour
from bci_adapt.data.drift.sides import Day, Part, Side

N_SECTORS = 8
SUCCESS = {"r", "rewarded", "reward", "success", "successful", "correct", "hit", "true", "1", "1.0"}


def behaviour(day: Day) -> Behaviour:
    """Return what the animal did in a session."""
    labels = np.zeros((0, 1)) if day.labels is None else day.labels[np.isfinite(day.labels).all(axis=1)]
    speed = np.sqrt(np.square(labels).sum(axis=1))
    quantiles = {f"{q}": float(np.percentile(speed, q)) for q in (10, 50, 90)} if len(speed) else {}
    ranges: list[float] = []
    if day.position is not None:
        inside = day.position[np.isfinite(day.position).all(axis=1)]
        ranges = np.ptp(np.percentile(inside, [1, 99], axis=0), axis=0).tolist() if len(inside) else []
    words = [result.strip().lower() for result in day.trial_results]
    known = any(word in SUCCESS for word in words)
    return Behaviour(
        duration_s=len(day.counts) * day.bin_s,
        labelled_s=len(labels) * day.bin_s,
        speed_quantiles=quantiles,
        position_range=ranges,
        n_trials=len(words),
        trial_results=dict(sorted(Counter(day.trial_results).items())),
        success_rate=float(np.mean([word in SUCCESS for word in words])) if known else None,
        median_trial_s=float(np.median(day.trial_s)) if day.trial_s else None,
    )


def direction_distance(a: Part, b: Part, source: Side) -> float | None:
    if source.n_axes != 2 or source.day.labels is None:
        return None
    slow = 0.1 * np.nanpercentile(np.sqrt(np.square(source.day.labels).sum(axis=1)), 95)
    histograms = []
    for part in (a, b):
        assert part.side.day.labels is not None
        velocity, _ = part.of(part.side.day.labels, part.side.block)
        velocity = velocity[np.sqrt(np.square(velocity).sum(axis=1)) > slow]
        if not len(velocity):
            return None
        # sectors are centred on the axes, where targets usually lie
        turn = np.arctan2(velocity[:, 1], velocity[:, 0]) / (2 * np.pi) * N_SECTORS
        histograms.append(np.bincount(np.rint(turn).astype(int) % N_SECTORS, minlength=N_SECTORS) / len(velocity))
    return float(0.5 * np.abs(histograms[0] - histograms[1]).sum())
