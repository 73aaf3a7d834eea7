"""Scores of a decoded series against the true one.

Everywhere `y` and `prediction` are (n_bins, n_axes) in one physical unit, and `mask` is boolean, (n_bins,) or
(n_bins, n_axes): True where a bin counts. The mask is the only protection against missing values: a NaN under a True
makes the score NaN, a NaN under a False is never read. Fewer than two bins, or a target that never moves, leave
nothing to explain: the score is NaN then.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bci_adapt.errors import InputError

Array = NDArray[np.float64]
METRICS = ("r2", "r2_uniform", "pearson", "rmse")


def r2(y: ArrayLike, prediction: ArrayLike, mask: ArrayLike | None = None) -> float:
    """Variance-weighted R²: 1 − Σ squared error / Σ squared deviation of `y`, both summed over bins and axes."""
    y, prediction, mask = _door(y, prediction, mask)
    error, spread = _sums(y, prediction, mask)
    return float(_one_minus_ratio(error.sum(), spread.sum()))


def r2_axes(y: ArrayLike, prediction: ArrayLike, mask: ArrayLike | None = None) -> Array:
    """R² of each axis, (n_axes,)."""
    y, prediction, mask = _door(y, prediction, mask)
    return _one_minus_ratio(*_sums(y, prediction, mask))


def r2_uniform(y: ArrayLike, prediction: ArrayLike, mask: ArrayLike | None = None) -> float:
    """Mean over axes of the R² of each axis."""
    return float(r2_axes(y, prediction, mask).mean())


def pearson_axes(y: ArrayLike, prediction: ArrayLike, mask: ArrayLike | None = None) -> Array:
    """Pearson correlation of each axis, (n_axes,); 0 for a constant prediction, which varies with nothing."""
    y, prediction, mask = _door(y, prediction, mask)
    true, decoded = _deviations(y, mask), _deviations(prediction, mask)
    product = (true * decoded).sum(0)
    power, decoded_power = (true**2).sum(0), (decoded**2).sum(0)
    flat = decoded_power == 0
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = np.where(flat, 0.0, product / np.sqrt(power * np.where(flat, 1.0, decoded_power)))
    return np.where((power > 0) & (mask.sum(0) > 1), np.clip(correlation, -1, 1), np.nan)


def pearson(y: ArrayLike, prediction: ArrayLike, mask: ArrayLike | None = None) -> float:
    """Mean over axes of the Pearson correlation of each axis."""
    return float(pearson_axes(y, prediction, mask).mean())


def rmse(y: ArrayLike, prediction: ArrayLike, mask: ArrayLike | None = None) -> float:
    """Root of the mean squared error over all masked values, in the unit of `y`."""
    y, prediction, mask = _door(y, prediction, mask)
    error, _ = _sums(y, prediction, mask)
    return float(np.sqrt(error.sum() / mask.sum())) if mask.any() else float("nan")


def score(y: ArrayLike, prediction: ArrayLike, mask: ArrayLike | None, axes: Sequence[str]) -> dict[str, float]:
    """Every metric by its name in the long table: r2, r2_uniform, r2:<axis> …, pearson, rmse.

    `axes` names the columns of `y`. Raises `InputError` when shapes or the number of names disagree.
    """
    y, prediction, mask = _door(y, prediction, mask)
    if len(axes) != y.shape[1]:
        raise InputError(f"axes: expected {y.shape[1]} names, one for each column of y, got {list(axes)}")
    per_axis = r2_axes(y, prediction, mask)
    return {
        "r2": r2(y, prediction, mask),
        "r2_uniform": float(per_axis.mean()),
        **{f"r2:{axis}": float(value) for axis, value in zip(axes, per_axis, strict=True)},
        "pearson": pearson(y, prediction, mask),
        "rmse": rmse(y, prediction, mask),
    }


def windowed_r2(
    y: ArrayLike, prediction: ArrayLike, mask: ArrayLike | None, window_bins: int
) -> tuple[NDArray[np.int64], Array]:
    """Variance-weighted R² in consecutive windows: first bin of each window, and its score (NaN where empty).

    A last window shorter than half of `window_bins` is left out: so few bins have no variance of their own to speak of.
    """
    y, prediction, mask = _door(y, prediction, mask)
    if window_bins < 2:
        raise InputError(f"window_bins: expected at least 2 bins, got {window_bins}")
    starts = np.arange(0, max(len(y) - window_bins // 2, 0), window_bins)
    parts = [slice(start, start + window_bins) for start in starts]
    return starts, np.array([r2(y[part], prediction[part], mask[part]) for part in parts], float)


def block_sums(y: ArrayLike, prediction: ArrayLike, mask: ArrayLike | None, block_bins: int) -> tuple[Array, Array]:
    """Squared errors and squared deviations from the mean of the whole, summed over axes and the bins of each block.

    Two arrays (n_blocks,) with r2 = 1 − Σ error / Σ spread. A last block shorter than half of `block_bins` is part of
    the one before it; blocks in which no bin counts are left out.
    """
    y, prediction, mask = _door(y, prediction, mask)
    if block_bins < 1:
        raise InputError(f"block_bins: expected at least 1 bin, got {block_bins}")
    n_blocks = max(1, (len(y) + block_bins // 2) // block_bins)
    block = np.minimum(np.arange(len(y)) // block_bins, n_blocks - 1)
    error = np.where(mask, y, 0.0) - np.where(mask, prediction, 0.0)
    sums = [np.bincount(block, (each**2).sum(1), n_blocks).astype(float) for each in (error, _deviations(y, mask))]
    counted = np.bincount(block, mask.any(1), n_blocks) > 0
    return sums[0][counted], sums[1][counted]


def _door(y: ArrayLike, prediction: ArrayLike, mask: ArrayLike | None) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Arrays of one shape (n_bins, n_axes)."""
    y, prediction = np.asarray(y, float), np.asarray(prediction, float)
    if y.ndim != 2 or y.shape != prediction.shape:
        raise InputError(f"y and prediction: expected one shape (n_bins, n_axes), got {y.shape} and {prediction.shape}")
    mask = np.ones(y.shape, bool) if mask is None else np.asarray(mask)
    if mask.dtype != bool or mask.shape not in (y.shape, y.shape[:1]):
        raise InputError(
            f"mask: expected booleans of shape {y.shape[:1]} or {y.shape}, got {mask.dtype} of shape {mask.shape}"
        )
    return y, prediction, np.broadcast_to(mask if mask.ndim == 2 else mask[:, None], y.shape)


def _deviations(values: Array, mask: NDArray[np.bool_]) -> Array:
    """Masked deviations from each axis' masked mean, 0 elsewhere, and exactly 0 on an axis that never changes."""
    if not len(values):
        return values
    changes = np.where(mask, values, -np.inf).max(0) != np.where(mask, values, np.inf).min(0)
    values = np.where(mask, values, 0.0)
    return np.where(mask & changes, values - values.sum(0) / np.maximum(mask.sum(0), 1), 0.0)


def _sums(y: Array, prediction: Array, mask: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Sum of squared errors and sum of squared deviations, each (n_axes,)."""
    error = np.where(mask, y, 0.0) - np.where(mask, prediction, 0.0)
    return (error**2).sum(0), (_deviations(y, mask) ** 2).sum(0)


def _one_minus_ratio(error: Array, spread: Array) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(spread > 0, 1 - error / spread, np.nan)
