"""How far the distributions of population activity lie apart, in the low-dimensional space of the source."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bci_adapt.data.binning import causal_smooth, segment_slices, segment_starts
from bci_adapt.data.drift.rates import ACTIVE_HZ
from bci_adapt.data.drift.reported import Distance, Settings
from bci_adapt.data.drift.sides import Array, Part, Side
from bci_adapt.errors import InputError

MAX_POINTS = 1500  # bins of each side in MMD, taken evenly; time and memory grow with the square
TRIM = 0.005
"""Share of each side's bins, the farthest from the source's mean, left out of distances: seconds in which all channels
fire together (artefacts, a yank at the cable) would otherwise be the first component and decide the covariance."""
RIDGE = 1e-3  # of the mean variance, added to the diagonal of covariances before KL


class Distances:
    """Distances between parts of two sessions, in the space of the first and with one kernel for all comparisons."""

    def __init__(self, source: Side, target: Side, settings: Settings):
        self.space, self.settings = _Space(source, settings), settings
        self.points = {side.number: self.space.project(side) for side in (source, target)}
        self.bandwidth = median_distance(np.concatenate([_thin(*each)[0] for each in self.points.values()]))

    def between(self, parts: tuple[Part, Part]) -> Distance:
        """Return how far the two parts lie apart."""
        samples = [part.of(*self.points[part.side.number]) for part in parts]
        a, b = (_thin(*sample) for sample in samples)
        mmd2, mmd_p = mmd(*a, *b, self.bandwidth, self.settings.n_permutations, self.settings.seed)
        kl, kl_p = gaussian_kl(samples, self.settings)
        return Distance(
            n_channels=len(self.space.channels),
            n_dims=self.space.n_dims,
            variance_share=self.space.variance_share,
            kl_nats=kl,
            kl_p=kl_p,
            mmd2=mmd2,
            mmd_p=mmd_p,
            bandwidth=self.bandwidth,
        )


class _Space:
    """The low-dimensional space of a source session."""

    def __init__(self, source: Side, settings: Settings):
        self.settings = settings
        rate = source.totals.sum(axis=0) / source.seconds.sum()
        activity = self._smooth(source)[source.day.observed]
        spread = activity.std(axis=0)
        self.channels = np.flatnonzero((rate >= ACTIVE_HZ if source.spikes else rate > 0) & (spread > 0))
        if not self.channels.size:
            raise InputError(
                f"{source.day.session_id}: none of the common channels is active: there is nothing to compare"
            )
        self.mean, self.spread = activity.mean(axis=0)[self.channels], spread[self.channels]
        z, _ = self._z_scores(source)
        values, vectors = np.linalg.eigh(z.T @ z / len(z))
        self.n_dims = min(settings.n_dims, len(self.channels))
        self.components = vectors[:, ::-1][:, : self.n_dims]
        self.variance_share = float(values[::-1][: self.n_dims].sum() / values.sum())

    def _smooth(self, side: Side) -> Array:
        """Smoothed √counts; an unobserved bin ends a stretch as a gap does, so that nothing leaks out of it."""
        day = side.day
        edges = (np.diff(day.segment) != 0) | (np.diff(day.observed.astype(np.int8)) != 0)
        stretch = np.concatenate([[0], np.cumsum(edges)])
        return causal_smooth(side.root, stretch, day.bin_s, self.settings.smooth_s)

    def _z_scores(self, side: Side) -> tuple[Array, NDArray[np.integer]]:
        """z-scores (n_kept, n_channels) of the observed bins that are not trimmed, and the block of each."""
        rows = side.day.observed
        z = (self._smooth(side)[np.ix_(rows, self.channels)] - self.mean) / self.spread
        far = np.square(z).sum(axis=1)
        kept = far <= np.quantile(far, 1 - TRIM)
        return z[kept], side.block[rows][kept]

    def project(self, side: Side) -> tuple[Array, NDArray[np.integer]]:
        """Bins (n_kept, n_dims) in the space, and the block of each."""
        z, block = self._z_scores(side)
        return z @ self.components, block


def _thin(points: Array, block: NDArray[np.integer]) -> tuple[Array, NDArray[np.integer]]:
    step = -(-len(points) // MAX_POINTS)
    return points[::step], block[::step]


def _squared_distances(points: Array) -> Array:
    norms = np.square(points).sum(axis=1)
    return np.maximum(norms[:, None] + norms - 2 * points @ points.T, 0.0)


def median_distance(points: Array) -> float:
    """Median distance between two different points; 1 when they all coincide."""
    squares = _squared_distances(points)[np.triu_indices(len(points), 1)]
    return float(np.sqrt(np.median(squares))) or 1.0


def _permuted_sides(n_first: int, n_second: int, n: int, seed: int) -> Array:
    """Which blocks are on the first side (1 + n, n_first + n_second): as they are, then permuted."""
    sides = np.zeros((1 + n, n_first + n_second))
    sides[:, :n_first] = 1.0
    sides[1:] = np.random.default_rng(seed).permuted(sides[1:], axis=1)
    return sides


def _permutation_p(values: Array) -> float:
    """Share of values at least as large as the first, which is the observed one and counts itself."""
    return float((values >= values[0] * (1 - 1e-12)).mean())


def gaussian_kl(sides: list[tuple[Array, NDArray[np.integer]]], settings: Settings) -> tuple[float, float]:
    """Symmetric KL of Gaussians fitted to both sides, and p of permuted blocks."""
    moments, n_blocks = [], []
    for points, block in sides:
        augmented = np.column_stack([np.ones(len(points)), points])
        blocks = segment_slices(block)
        n_blocks.append(len(blocks))
        moments += [augmented[rows].T @ augmented[rows] for rows in blocks]
    if min(n_blocks) < 2:
        return float("nan"), float("nan")
    first = _permuted_sides(n_blocks[0], n_blocks[1], settings.n_permutations, settings.seed)
    fitted = []
    for weights in (first, 1 - first):
        total = np.tensordot(weights, np.stack(moments), 1)
        n = total[:, :1, :1]
        mean = total[:, 0, 1:] / n[:, 0]
        covariance = total[:, 1:, 1:] / n - mean[:, :, None] * mean[:, None, :]
        size = np.trace(covariance, axis1=1, axis2=2) / mean.shape[1]
        fitted += [mean, covariance + np.maximum(RIDGE * size, 1e-12)[:, None, None] * np.eye(mean.shape[1])]
    values = symmetric_kl(*fitted)
    return float(values[0]), _permutation_p(values)


def symmetric_kl(mean_p: Array, cov_p: Array, mean_q: Array, cov_q: Array) -> Array:
    """(KL(p‖q) + KL(q‖p)) / 2 of Gaussians in nats; means (…, d), covariances (…, d, d).

    >>> float(symmetric_kl(np.zeros(1), np.eye(1), np.ones(1), np.eye(1)))
    0.5
    """
    inverse_p, inverse_q = np.linalg.inv(cov_p), np.linalg.inv(cov_q)
    apart = mean_p - mean_q
    trace = np.einsum("...ij,...ji->...", inverse_q, cov_p) + np.einsum("...ij,...ji->...", inverse_p, cov_q)
    shift = np.einsum("...i,...ij,...j->...", apart, inverse_p + inverse_q, apart)
    return np.asarray(0.25 * (trace - 2 * mean_p.shape[-1] + shift))


def mmd(
    x: Array, block_x: NDArray[np.integer], y: Array, block_y: NDArray[np.integer], bandwidth: float, n: int, seed: int
) -> tuple[float, float]:
    """Return the unbiased squared MMD of samples (n_x, d) and (n_y, d), and p of `n` permutations of blocks.

    `block_x` and `block_y` number the blocks that are independent of one another; pairs within a block are left out.
    NaN with fewer than two blocks on a side. With every point its own block it is the usual unbiased estimate.
    """
    blocks = [np.unique(block, return_inverse=True)[1] for block in (block_x, block_y)]
    n_x, n_y = (int(block.max()) + 1 if block.size else 0 for block in blocks)
    if min(n_x, n_y) < 2:
        return float("nan"), float("nan")
    points, block = np.concatenate([x, y]), np.concatenate([blocks[0], blocks[1] + n_x])
    order = np.argsort(block, kind="stable")
    points, block = points[order], block[order]
    starts = segment_starts(block)
    kernel = np.exp(_squared_distances(points) / (-2 * bandwidth**2))
    sums = np.add.reduceat(np.add.reduceat(kernel, starts, axis=0), starts, axis=1)
    sizes = np.diff(np.append(starts, len(points))).astype(np.float64)
    pairs = np.outer(sizes, sizes)
    np.fill_diagonal(sums, 0.0)
    np.fill_diagonal(pairs, 0.0)

    sides = _permuted_sides(n_x, n_y, n, seed)

    def mean(a: Array, b: Array) -> Array:
        return np.einsum("ri,ri->r", a @ sums, b) / np.einsum("ri,ri->r", a @ pairs, b)

    values = mean(sides, sides) + mean(1 - sides, 1 - sides) - 2 * mean(sides, 1 - sides)
    return float(values[0]), _permutation_p(values)
