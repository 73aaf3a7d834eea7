"""Change of tuning: preferred directions, depths, and which channels are tuned at all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bci_adapt.data.drift.rates import discoveries
from bci_adapt.data.drift.reported import Estimate, Settings, TuningChange
from bci_adapt.data.drift.sides import Array, Part


@dataclass(frozen=True)
class Fit:
    """Tuning vectors (1 + n_boot, n_axes, n_channels), of all blocks given and of alternate ones; blocks in use."""

    vectors: Array
    alternate: tuple[Array, Array]
    n_blocks: int


def fit(part: Part, rms_speed: float) -> Fit:
    """Fit tuning to a part, in √spikes at `rms_speed`, for every draw of its blocks."""
    side = part.side
    draws, squares, products = side.draws[:, part.chosen], side.squares[part.chosen], side.products[part.chosen]

    def solve(weights: Array) -> Array:
        left, right = np.tensordot(weights, squares, 1), np.tensordot(weights, products, 1)
        # a draw without a single labelled bin gives 0 instead of an error
        size = np.maximum(np.trace(left, axis1=1, axis2=2), 1.0)
        left = left + 1e-10 * size[:, None, None] * np.eye(left.shape[-1])
        vectors = np.linalg.solve(left, right)[:, 1 : 1 + side.n_axes]
        return np.asarray(vectors * (rms_speed / side.rms_speed), dtype=np.float64)

    labelled = np.flatnonzero(part.labelled)
    alternate = np.zeros((2, draws.shape[1]))
    alternate[0, labelled[::2]] = alternate[1, labelled[1::2]] = 1.0
    return Fit(solve(draws), (solve(draws * alternate[0]), solve(draws * alternate[1])), len(labelled))


def student_interval(draws: Array, n_blocks: int, settings: Settings) -> Estimate:
    """The first of `draws` with a Student interval from the spread of the rest."""
    from scipy import stats

    reach = float(stats.t.ppf((1 + settings.level) / 2, n_blocks - 1) * np.std(draws[1:], ddof=1))
    return Estimate(float(draws[0]), float(draws[0]) - reach, float(draws[0]) + reach)


def tuning_change(a: Fit, b: Fit, settings: Settings) -> tuple[TuningChange, Array]:
    """Return the change, and the draws (1 + n_boot,) of the median change of preferred directions."""
    two_axes = a.vectors.shape[1] == 2
    n_blocks = min(a.n_blocks, b.n_blocks)
    nothing = Estimate(*[float("nan")] * 3)

    def interval(draws: Array) -> Estimate:
        return student_interval(draws, n_blocks, settings)

    tuned = [discoveries(_wald_p(fit), settings.fdr) for fit in (a, b)]
    both = tuned[0] & tuned[1]
    depth = [np.sqrt(np.square(fit.vectors).sum(axis=1)) for fit in (a, b)]
    change = _angles(a.vectors, b.vectors)
    low, high = _angle_interval(change, two_axes, settings.level)
    p = np.where(both, _direction_p(a, b, depth, n_blocks), np.nan)
    changed = discoveries(p, settings.fdr)
    correlation, similarity = _likeness(a, b)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.log(depth[1] / depth[0])
    median_ratio, rotation = nothing, nothing
    medians = np.full(len(change), np.nan)
    if both.any():
        medians = np.median(np.abs(change[:, both]), axis=1)
        median_ratio = interval(np.median(ratio[:, both], axis=1))
        if two_axes:
            mean = np.degrees(np.angle(np.exp(1j * np.radians(change[:, both])).mean(axis=1)))
            rotation = interval(mean[0] + wrap(mean - mean[0]))
    finite = np.isfinite(similarity)
    noisy = finite[0] and finite.mean() < 0.9
    found = TuningChange(
        tuned_first=tuned[0].tolist(),
        tuned_second=tuned[1].tolist(),
        depth_first=depth[0][0].tolist(),
        depth_second=depth[1][0].tolist(),
        pd_change_deg=np.where(both, change[0], np.nan).tolist(),
        pd_low_deg=np.where(both, low, np.nan).tolist(),
        pd_high_deg=np.where(both, high, np.nan).tolist(),
        pd_p=p.tolist(),
        pd_changed=changed.tolist(),
        turnover=_turnover(*tuned),
        median_pd_change_deg=interval(medians) if both.any() else nothing,
        share_pd_changed=float(changed[both].mean()) if both.any() else float("nan"),
        common_rotation_deg=rotation,
        correlation=interval(correlation),
        corrected_similarity=interval(similarity[finite]) if finite[0] and not noisy else nothing,
        median_log_depth_ratio=median_ratio,
    )
    return found, medians


def _turnover(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> dict[str, int]:
    """How many channels are tuned on which side."""
    return {
        "first_only": int((first & ~second).sum()),
        "second_only": int((second & ~first).sum()),
        "both": int((first & second).sum()),
        "neither": int((~first & ~second).sum()),
    }


def _angle_interval(change: Array, signed: bool, level: float) -> tuple[Array, Array]:
    """Bootstrap interval per channel of the angles `change` (1 + n_boot, n_channels); of wrapped ones if `signed`."""
    tails = [(1 - level) / 2, (1 + level) / 2]
    if signed:
        apart = wrap(change[1:] - change[0])
        low, high = change[0] + np.quantile(apart, tails, axis=0)
    else:
        low, high = np.quantile(change[1:], tails, axis=0)
    return low, high


def _likeness(a: Fit, b: Fit) -> tuple[Array, Array]:
    """Pearson's correlation of the tuning vectors and their cosine without estimation noise, per draw (1 + n_boot,)."""
    flat = [fit.vectors.reshape(len(fit.vectors), -1) for fit in (a, b)]
    centred = [each - each.mean(axis=1, keepdims=True) for each in flat]
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation = _dot(*centred) / np.sqrt(_dot(centred[0], centred[0]) * _dot(centred[1], centred[1]))
        power = [_dot(*(each.reshape(len(each), -1) for each in fit.alternate)) for fit in (a, b)]
        # a draw whose alternate blocks disagree altogether has no power left to compare with
        similarity = _dot(*flat) / np.sqrt(np.where((power[0] > 0) & (power[1] > 0), power[0] * power[1], np.nan))
    return correlation, similarity


def _dot(a: Array, b: Array) -> Array:
    return np.einsum("ri,ri->r", a, b)


def wrap(degrees: Array) -> Array:
    """Into [-180, 180)."""
    return (degrees + 180) % 360 - 180


def _angles(a: Array, b: Array) -> Array:
    """Angles in degrees between vectors along axis 1, (n_draws, n_channels); signed when there are two axes."""
    dot = np.einsum("rac,rac->rc", a, b)
    if a.shape[1] == 2:
        return np.degrees(np.arctan2(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0], dot))
    size = np.sqrt(np.square(a).sum(axis=1) * np.square(b).sum(axis=1))
    return np.degrees(np.arccos(np.clip(dot / np.where(size > 0, size, 1.0), -1, 1)))


def _wald_p(fit: Fit) -> Array:
    """p of no tuning per channel: Hotelling's F with the bootstrap's covariance; NaN for one that never varies."""
    from scipy import stats

    n_axes, n_blocks = fit.vectors.shape[1], fit.n_blocks
    draws = fit.vectors[1:] - fit.vectors[1:].mean(axis=0)
    covariance = np.einsum("rac,rbc->cab", draws, draws) / (len(draws) - 1)
    alive = np.linalg.det(covariance) > 0
    p = np.full(len(covariance), np.nan)
    if alive.any() and n_blocks > n_axes:
        b = fit.vectors[0].T[alive]
        wald = np.einsum("ca,ca->c", b, np.linalg.solve(covariance[alive], b[..., None])[..., 0])
        p[alive] = stats.f.sf(wald * (n_blocks - n_axes) / (n_axes * (n_blocks - 1)), n_axes, n_blocks - n_axes)
    return p


def _direction_p(a: Fit, b: Fit, depth: list[Array], n_blocks: int) -> Array:
    """p per channel that both directions are one: |difference of unit vectors|² against its bootstrap covariance.

    The sum of squares is scaled to F as Satterthwaite does, since on a sphere fewer than n_axes directions vary.
    """
    from scipy import stats

    unit = [fit.vectors / np.where(size > 0, size, 1.0)[:, None] for fit, size in zip((a, b), depth, strict=True)]
    apart = unit[1] - unit[0]
    deviation = apart[1:] - apart[0]
    covariance = np.einsum("rac,rbc->cab", deviation, deviation) / len(deviation)
    trace = np.trace(covariance, axis1=1, axis2=2)
    square = np.square(apart[0]).sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = trace**2 / np.einsum("cab,cba->c", covariance, covariance)
        p = stats.f.sf(square / trace, freedom, n_blocks - 1)
    return np.where(trace > 0, p, np.where(square > 0, 0.0, 1.0))  # with one axis the sign alone can change
