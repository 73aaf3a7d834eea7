"""What the simulated drift does to a ridge decoder, over severities (docs/simulated_drift.md)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bci_adapt.data.simulate import Array, Recording, recording
from bci_adapt.errors import InputError


def _features(counts: NDArray[np.int64], mean: NDArray[Any], spread: NDArray[Any], n_lags: int = 10) -> Array:
    """Square-root counts, z-scored, of the current bin and those before it, and a constant."""
    x = (np.sqrt(counts) - mean) / spread
    padded = np.concatenate([np.zeros((n_lags - 1, x.shape[1])), x])
    lagged = np.lib.stride_tricks.sliding_window_view(padded, n_lags, axis=0).reshape(len(x), -1)
    return np.column_stack([lagged, np.ones(len(x))])


def _r2(truth: Array, prediction: Array) -> float:
    """Variance-weighted R²."""
    return float(1 - ((truth - prediction) ** 2).sum() / ((truth - truth.mean(axis=0)) ** 2).sum())


def ridge_scores(source: Recording, target: Recording, train_s: float = 300.0, penalty: float = 300.0) -> list[float]:
    """Return velocity R² [own day, frozen on the target day, retrained on the target day].

    A causal ridge on square-root counts, ten lags of 50 ms, z-scored by the training part; trained on the first
    `train_s` seconds of a day and scored on the rest of it. Frozen keeps weights and z-score of the source day.
    """
    n_train = round(train_s / 0.05)
    days = [(day.counts(), day.velocity()) for day in (source, target)]

    def fit(day: int) -> tuple[NDArray[Any], ...]:
        counts, velocity = days[day][0][:n_train], days[day][1][:n_train]
        root = np.sqrt(counts)
        mean, spread = root.mean(axis=0), root.std(axis=0)
        spread = np.where(spread > 0, spread, 1.0)
        x = _features(counts, mean, spread)
        penalties = np.full(x.shape[1], penalty)
        penalties[-1] = 0.0
        return np.linalg.solve(x.T @ x + np.diag(penalties), x.T @ velocity), mean, spread

    def score(model: tuple[NDArray[Any], ...], day: int) -> float:
        counts, velocity = days[day]
        return _r2(velocity[n_train:], (_features(counts, model[1], model[2]) @ model[0])[n_train:])

    first, second = fit(0), fit(1)
    return [score(first, 0), score(first, 1), score(second, 1)]


def severity_table(
    severities: Iterable[float] = (0.0, 0.25, 0.5, 1.0, 2.0),
    seeds: Sequence[int] = tuple(range(8)),
    *,
    day: int = 210,
    task: str = "centre_out",
    n_units: int = 60,
    duration_s: float = 480.0,
) -> list[dict[str, float]]:
    """Measure what drift of each severity does after `day` days, over `seeds` (animals).

    A row per severity: rotation_sd_deg, gain_sd and baseline_sd (natural log) of the units that were not replaced;
    turnover, the fraction of units replaced; lost_electrodes, a fraction; and the mean and sd over seeds, lowest and
    highest, of `ridge_scores`: own_r2, frozen_r2, retrained_r2 with ``_sd``, ``_low``, ``_high``.
    """
    if not len(seeds) or duration_s <= 330:
        raise InputError(f"at least one seed and more than 330 s are needed; got {len(seeds)} seeds, {duration_s} s")
    common: dict[str, Any] = {"task": task, "n_units": n_units, "duration_s": duration_s}
    sources = [recording(0, seed=seed, **common) for seed in seeds]
    rows = []
    for severity in severities:
        targets = [recording(day, seed=seed, severity=severity, **common) for seed in seeds]
        scores = np.array([ridge_scores(a, b) for a, b in zip(sources, targets, strict=True)])
        kept = [target.units.generation == 0 for target in targets]

        def spread(name: str, targets: list[Recording] = targets, kept: list[NDArray[np.bool_]] = kept) -> float:
            walks = [getattr(target.units, name)[same] for target, same in zip(targets, kept, strict=True)]
            return float(np.sqrt(np.mean(np.concatenate(walks) ** 2)))

        row = {
            "severity": float(severity),
            "rotation_sd_deg": spread("rotation_deg"),
            "gain_sd": spread("log_gain"),
            "baseline_sd": spread("log_baseline"),
            "turnover": float(1 - np.mean(kept)),
            "lost_electrodes": float(1 - np.mean([target.units.alive for target in targets])),
        }
        for name, values in zip(("own_r2", "frozen_r2", "retrained_r2"), scores.T, strict=True):
            row[name] = float(values.mean())
            row[f"{name}_sd"] = float(values.std(ddof=1)) if len(values) > 1 else 0.0
            row[f"{name}_low"], row[f"{name}_high"] = float(values.min()), float(values.max())
        rows.append(row)
    return rows


def severity_text(rows: list[dict[str, float]]) -> str:
    """Return the rows of `severity_table` as a Markdown table; R² as mean ± sd over seeds [lowest, highest]."""
    head = ["severity", "PD rotation sd (deg)", "log gain sd", "log baseline sd", "turnover", "lost electrodes"]
    lines = ["| " + " | ".join([*head, "own-day R²", "frozen R²", "retrained R²"]) + " |", "|" + " ---: |" * 9]
    for row in rows:
        cells = [f"{row['severity']:g}", f"{row['rotation_sd_deg']:.0f}", f"{row['gain_sd']:.2f}"]
        cells += [f"{row['baseline_sd']:.2f}", f"{row['turnover']:.0%}", f"{row['lost_electrodes']:.0%}"]
        cells += [
            f"{row[k]:.2f} ± {row[k + '_sd']:.2f} [{row[k + '_low']:.2f}, {row[k + '_high']:.2f}]"
            for k in ("own_r2", "frozen_r2", "retrained_r2")
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
