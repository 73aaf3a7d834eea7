"""Evidence that a recording changed between two sessions, beside how much it changes within one: numpy and scipy only.

Channels are matched by their labels, never by position. Everything is measured twice: between the two sessions
(`Drift.across`) and between the first and the second half of the source session (`Drift.within`), because estimates
differ by noise alone, and rates wander within an hour. The second half is cut to the length of the target, so that
the baseline never has more data, and hence never less noise, than the comparison it stands beside.

Uncertainty comes from blocks of `Settings.block_s`: bins are autocorrelated, blocks are taken as independent. Within
each half blocks are drawn with replacement, one fewer than there are, and scaled up (Rao & Wu 1988, J Am Stat Assoc
83:231), which leaves the variance of a mean unbiased for few blocks. Whatever varies over minutes still makes these
intervals too narrow; that is what the baseline shows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from bci_adapt.data.binning import bin_ticks, causal_smooth, segment_slices, segment_starts, whole_bins
from bci_adapt.data.sessions import kinematic_names, labels_of, start_of
from bci_adapt.errors import InputError

Array = NDArray[np.float64]

ACTIVE_HZ = 0.1
"""A channel that fires less than this is silent: it has no direction to change and cannot be z-scored."""
MIN_BLOCKS = 8  # in a session; a half then has four
MAX_POINTS = 1500  # bins of each side in MMD, taken evenly; time and memory grow with the square
TRIM = 0.005
"""Share of each side's bins, the farthest from the source's mean, left out of distances: seconds in which all channels
fire together (artefacts, a yank at the cable) would otherwise be the first component and decide the covariance."""
RIDGE = 1e-3  # of the mean variance, added to the diagonal of covariances before KL
N_SECTORS = 8
SUCCESS = {"r", "rewarded", "reward", "success", "successful", "correct", "hit", "true", "1", "1.0"}


@dataclass(frozen=True)
class Settings:
    """How drift is measured; stored with the result.

    `lag_s`: tuning relates the counts of the bin that ends at t to the movement of the bin that ends at t + lag_s,
    rounded to whole bins (positive: neurons lead). `block_s`: length of a bootstrap block, at least 5 s. `n_dims`,
    `smooth_s`: dimensions of the space of the distribution distances, and the time constant of the causal exponential
    smoothing before it.
    `level`: coverage of intervals. `fdr`: false discovery rate (Benjamini & Hochberg 1995) over channels.
    """

    lag_s: float = 0.1
    block_s: float = 20.0
    n_dims: int = 10
    smooth_s: float = 0.1
    n_boot: int = 500
    n_permutations: int = 999
    level: float = 0.95
    fdr: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        limits = {
            "lag_s": (-2, 2),
            "block_s": (5, 3600),
            "n_dims": (1, 100),
            "smooth_s": (0.001, 10),
            "n_boot": (50, 100_000),
            "n_permutations": (19, 100_000),
            "level": (0.5, 0.999),
            "fdr": (0.0001, 0.5),
            "seed": (0, 2**32),
        }
        for field in fields(self):
            value, (least, most) = getattr(self, field.name), limits[field.name]
            if not least <= value <= most:
                raise InputError(f"{field.name} must lie between {least:g} and {most:g}, got {value}")


@dataclass(frozen=True)
class Day:
    """One session as plain arrays; what `day` reads from it.

    `counts` (n_bins, n_channels); `segment` and `observed` (n_bins,); `labels` (n_bins, n_axes) in `unit`, NaN where
    not usable, None without them; `position` likewise. `spikes` is False when `counts` holds power, which is taken as
    it is where counts have their square root taken. `start` is None when the date is not known.
    """

    session_id: str
    start: datetime | None
    bin_s: float
    channels: list[str]
    counts: Array
    segment: NDArray[np.integer]
    observed: NDArray[np.bool_]
    labels: Array | None
    variable: str
    unit: str
    position: Array | None
    trial_results: list[str]
    trial_s: list[float]
    spikes: bool = True


@dataclass(frozen=True)
class Estimate:
    """A value and its interval at `Settings.level`; NaN where there is nothing to estimate."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class RateChange:
    """Firing rates of the channels that both sides have, in the order of `Drift.channels["common"]`.

    `log_ratio` is log(second / first) of the rates, half a spike added to each total so that a silent side stays
    finite; `low`, `high` its Welch interval over blocks, never narrower than that of a Poisson count; `p` of no change.
    `changed`: significant at the false discovery rate. `silenced` and `appeared` name channels that cross `ACTIVE_HZ`.
    """

    first_hz: list[float]
    second_hz: list[float]
    log_ratio: list[float]
    low: list[float]
    high: list[float]
    p: list[float]
    changed: list[bool]
    median_abs_log_ratio: float
    share_changed: float
    silenced: list[str]
    appeared: list[str]


@dataclass(frozen=True)
class TuningChange:
    """Tuning: √count(t) = b0 + b · v(t + lag) + s |v(t + lag)|, b being the tuning vector, by least squares.

    Lists over common channels: `tuned_first`, `tuned_second` (b is not 0: Wald test with bootstrap covariance, at the
    false discovery rate); `depth_first`, `depth_second`, |b| at the root-mean-square speed of the first side, in
    √spikes; `pd_change_deg`, `pd_low_deg`, `pd_high_deg`, `pd_p`, `pd_changed` of preferred directions, NaN unless
    tuned on both sides. With two axes the change is signed, from the first axis towards the second, and its interval
    is of wrapped deviations and may pass ±180; with more axes it is the angle in [0, 180].

    `turnover` counts channels tuned on the first side only, the second only, both or neither. `median_pd_change_deg`
    is of |change| and includes estimation noise: compare it with the baseline, not with 0. `common_rotation_deg` is
    the mean direction of the changes (two axes). `correlation` is Pearson's, over channels and axes, of the tuning
    vectors. `corrected_similarity` is their cosine with estimation noise taken out, Σ b₁·b₂ / √(Σ b₁'·b₁″ Σ b₂'·b₂″)
    where ' and ″ are alternate blocks of one side: 1 without a change however noisy the estimates, and it can exceed 1.
    `median_log_depth_ratio` is of log(second / first) over the channels tuned on both sides.
    """

    tuned_first: list[bool]
    tuned_second: list[bool]
    depth_first: list[float]
    depth_second: list[float]
    pd_change_deg: list[float]
    pd_low_deg: list[float]
    pd_high_deg: list[float]
    pd_p: list[float]
    pd_changed: list[bool]
    turnover: dict[str, int]
    median_pd_change_deg: Estimate
    share_pd_changed: float
    common_rotation_deg: Estimate
    correlation: Estimate
    corrected_similarity: Estimate
    median_log_depth_ratio: Estimate


@dataclass(frozen=True)
class Distance:
    """How far the distributions of population activity lie apart.

    The space: √counts of channels active in the source, smoothed, z-scored by the source, on its first principal
    components (`n_dims`, holding `variance_share` of the source's variance), without the `TRIM` outermost bins.
    `kl_nats` is (KL(p‖q) + KL(q‖p)) / 2 of Gaussians, `RIDGE` times the mean variance added to each covariance's
    diagonal. `mmd2` is the squared maximum mean discrepancy (Gretton et al. 2012, J Mach Learn Res 13:723) with kernel
    exp(-d² / 2 bandwidth²), the bandwidth being the median distance in the pooled sample of both sessions; pairs within
    one block are left out, which makes it unbiased although bins are autocorrelated: it may be negative. p values:
    blocks permuted between the sides.
    """

    n_channels: int
    n_dims: int
    variance_share: float
    kl_nats: float
    kl_p: float
    mmd2: float
    mmd_p: float
    bandwidth: float


@dataclass(frozen=True)
class Change:
    """One comparison: of two sessions, or of the halves of one. `seconds` are those in which neurons were observed.

    `direction_distance` is half the summed difference (0 … 1) of the histograms of movement direction over 8 sectors,
    two axes only, of bins faster than a tenth of the source's 95th percentile.
    """

    seconds: tuple[float, float]
    rates: RateChange
    tuning: TuningChange | None
    distance: Distance
    direction_distance: float | None


@dataclass(frozen=True)
class Behaviour:
    """What the animal did. Speed quantiles in the unit of the labels, ranges (1st to 99th percentile) per axis."""

    duration_s: float
    labelled_s: float
    speed_quantiles: dict[str, float]
    position_range: list[float]
    n_trials: int
    trial_results: dict[str, int]
    success_rate: float | None
    median_trial_s: float | None


@dataclass(frozen=True)
class Drift:
    """What changed from `source` to `target`; `channels`: labels of ``common``, ``only_source`` and ``only_target``.

    `pd_excess_deg` is the median change of preferred directions across less that within the source; its interval comes
    from resampling the source once for both. Above 0 it says that directions drifted by more than noise. `day_gap` is
    None where a date is not known; `notes` say what could not be measured, and why.
    """

    source: str
    target: str
    day_gap: int | None
    bin_s: float
    variable: str
    unit: str
    channels: dict[str, list[str]]
    across: Change
    within: Change
    pd_excess_deg: Estimate | None
    behaviour: dict[str, Behaviour]
    notes: list[str]
    settings: Settings

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain dictionaries, lists and numbers (NaN where there is nothing to estimate)."""
        return asdict(self)


def day(session: xr.Dataset, variable: str = "velocity") -> Day:
    """Read from a session what `drift` needs; labels are None when it has no kinematic `variable`."""
    labels = _kinematic(session, variable)
    results = session["trial_result"].values.tolist() if "trial_result" in session else []
    lengths = np.zeros(0)
    if "trial_start_s" in session and "trial_stop_s" in session:
        lengths = np.asarray(session["trial_stop_s"].values - session["trial_start_s"].values, dtype=np.float64)
    return Day(
        session_id=str(session.attrs.get("session_id", "session")),
        start=start_of(session),
        bin_s=float(session.attrs["bin_s"]),
        channels=[str(label) for label in session["channel"].values],
        counts=session["counts"].values.astype(np.float64),
        segment=session["segment"].values,
        observed=session["valid"].values,
        labels=labels,
        variable=variable,
        unit=str(session[variable].attrs.get("units", "")) if labels is not None else "",
        position=_kinematic(session, "position"),
        trial_results=[str(result) for result in results],
        trial_s=lengths[np.isfinite(lengths)].tolist(),
        spikes=session["counts"].dtype.kind in "ui",
    )


def drift(source: Day, target: Day, settings: Settings | None = None) -> Drift:
    """Compare two sessions. Sides without labels give rates and distances only, which `Drift.notes` says.

    `InputError` for different bin widths, for no channel in common (with both lists) or for too little data.
    """
    settings = settings or Settings()
    channels = match(source, target)
    notes = []
    if bin_ticks(source.bin_s) != bin_ticks(target.bin_s):
        raise InputError(
            f"{source.session_id} is binned at {source.bin_s:g} s and {target.session_id} at {target.bin_s:g} s: "
            "counts of different bins cannot be compared; prepare both with one --bin-s"
        )
    if source.variable != target.variable:
        raise InputError(f"{source.variable} of one session cannot be compared with {target.variable} of another")
    if source.spikes != target.spikes:
        raise InputError(f"{source.session_id} and {target.session_id}: one holds spike counts and the other power")
    first, second = (_Side(each, channels["common"], number, settings) for number, each in enumerate((source, target)))
    without = [side.day.session_id for side in (first, second) if side.labels is None]
    if without:
        notes.append(f"no {source.variable} in {' and '.join(without)}: rates and distances only")
    elif first.n_axes != second.n_axes or source.unit != target.unit:
        notes.append(
            f"{source.variable} has {first.n_axes} axes in {source.unit!r} and {second.n_axes} in {target.unit!r}: "
            "tuning cannot be compared; rates and distances only"
        )
    half = first.n_blocks // 2
    comparisons = {
        "": (_Part(first, 0, first.n_blocks), _Part(second, 0, second.n_blocks)),
        " within the source": (
            _Part(first, 0, half),
            _Part(first, half, min(first.n_blocks, half + second.n_blocks)),
        ),
    }
    space = _Space(first, settings)
    points = {side.number: space.project(side) for side in (first, second)}
    bandwidth = _median_distance(np.concatenate([_thin(*each)[0] for each in points.values()]))
    comparable, changes, medians = not notes, [], []
    for words, parts in comparisons.items():
        tuning = None
        if comparable and min(part.labelled.sum() for part in parts) >= MIN_BLOCKS // 2:
            fits = _fit(parts[0], first.rms_speed), _fit(parts[1], first.rms_speed)
            tuning, median = _tuning_change(*fits, settings)
            medians.append(median)
        elif comparable:
            notes.append(
                f"fewer than {MIN_BLOCKS // 2} blocks of {settings.block_s:g} s have labels that move: no tuning{words}"
            )
        samples = [part.of(*points[part.side.number]) for part in parts]
        changes.append(
            Change(
                seconds=(float(parts[0].seconds.sum()), float(parts[1].seconds.sum())),
                rates=_rate_change(*parts, channels["common"], settings),
                tuning=tuning,
                distance=_distance(samples, space, bandwidth, settings),
                direction_distance=_direction_distance(*parts, first) if comparable else None,
            )
        )
    across, within = changes
    excess = None
    if len(medians) == 2 and np.isfinite(medians[0][0] - medians[1][0]):
        excess = _interval(medians[0] - medians[1], min(first.n_blocks, second.n_blocks), settings)
    gap = (target.start.date() - source.start.date()).days if source.start and target.start else None
    return Drift(
        source=source.session_id,
        target=target.session_id,
        day_gap=gap,
        bin_s=source.bin_s,
        variable=source.variable,
        unit=source.unit,
        channels=channels,
        across=across,
        within=within,
        pd_excess_deg=excess,
        behaviour={"source": behaviour(source), "target": behaviour(target)},
        notes=notes,
        settings=settings,
    )


def match(source: Day, target: Day) -> dict[str, list[str]]:
    """Return the channel labels ``common``, ``only_source``, ``only_target``, sorted; `InputError` for none common."""
    a, b = set(source.channels), set(target.channels)
    if not a & b:
        shown = [f"{', '.join(sorted(c)[:8])}{f' and {len(c) - 8} more' if len(c) > 8 else ''}" for c in (a, b)]
        raise InputError(
            f"no channel in common: {source.session_id} has {shown[0]}; {target.session_id} has {shown[1]}. Drift is "
            "measured per channel: compare sessions of one array whose channels are named alike"
        )
    return {"common": sorted(a & b), "only_source": sorted(a - b), "only_target": sorted(b - a)}


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


# ------------------------------------------------------------------------------------------------------ one session


class _Side:
    """A session on the common channels, cut into blocks of observed bins, with its sums per block."""

    def __init__(self, day: Day, common: Sequence[str], number: int, settings: Settings):
        self.day, self.number, self.spikes = day, number, day.spikes
        column = {label: i for i, label in enumerate(day.channels)}
        self.counts = day.counts[:, [column[label] for label in common]]
        self.root = np.sqrt(self.counts) if day.spikes else self.counts  # the root steadies a count's variance alone
        n_rows = whole_bins(settings.block_s, day.bin_s)
        n_observed = int(day.observed.sum())
        self.n_blocks = round(n_observed / n_rows)  # the last takes what is left over
        if self.n_blocks < MIN_BLOCKS:
            raise InputError(
                f"{day.session_id}: neurons are observed for {n_observed * day.bin_s:.0f} s, at least {MIN_BLOCKS} "
                f"blocks of {settings.block_s:g} s are needed: use a longer session or shorter blocks (5 s at least)"
            )
        self.block = np.clip((np.cumsum(day.observed) - 1) // n_rows, 0, self.n_blocks - 1)
        starts = np.searchsorted(self.block, np.arange(self.n_blocks))
        observed = day.observed.astype(np.float64)
        self.seconds = np.add.reduceat(observed, starts) * day.bin_s
        self.totals = np.add.reduceat(self.counts * observed[:, None], starts, axis=0)
        self.draws = _resample(self.n_blocks, settings.n_boot, np.random.default_rng([settings.seed, number]))

        self.labels, self.n_axes, self.rms_speed = None, 0, float("nan")
        self.labelled = np.zeros(self.n_blocks, dtype=bool)
        if day.labels is None:
            return
        self.n_axes = day.labels.shape[1]
        self.labels = lagged(day.labels, day.segment, round(settings.lag_s / day.bin_s))
        self.labels[~day.observed] = np.nan
        usable = np.asarray(np.isfinite(self.labels).all(axis=1))
        power = np.square(self.labels[usable]).sum()
        if not power > 0:  # nothing ever moves
            return
        self.rms_speed = float(np.sqrt(power / usable.sum()))
        self.labelled = np.maximum.reduceat(usable, starts)
        velocity = np.where(usable[:, None], self.labels, 0.0) / self.rms_speed
        design = np.column_stack([usable, velocity, np.sqrt(np.square(velocity).sum(axis=1))])
        edges = np.append(starts, len(self.counts))
        self.squares = np.stack([design[a:b].T @ design[a:b] for a, b in pairwise(edges)])
        self.products = np.stack([design[a:b].T @ self.root[a:b] for a, b in pairwise(edges)])


class _Part:
    """Blocks `start` to `stop` of a side."""

    def __init__(self, side: _Side, start: int, stop: int):
        self.side, self.chosen = side, slice(start, stop)
        self.seconds, self.totals, self.labelled = (
            each[self.chosen] for each in (side.seconds, side.totals, side.labelled)
        )

    def of(self, rows: Array, block: NDArray[np.integer]) -> tuple[Array, NDArray[np.integer]]:
        """Return those `rows` of the side that lie in the part, and their blocks, given the `block` of each row."""
        inside = (block >= self.chosen.start) & (block < self.chosen.stop)
        return rows[inside], block[inside]


def lagged(labels: Array, segment: NDArray[np.integer], lag_bins: int) -> Array:
    """Return row i + `lag_bins` of `labels` (n_bins, n_axes) in row i; NaN where that lies outside i's segment."""
    moved = np.full_like(labels, np.nan)
    for rows in segment_slices(segment):
        inside = labels[rows]
        n = max(len(inside) - abs(lag_bins), 0)
        a, b = max(-lag_bins, 0), max(lag_bins, 0)
        moved[rows][a : a + n] = inside[b : b + n]
    return moved


def _kinematic(session: xr.Dataset, name: str) -> Array | None:
    """Values (n_bins, n_axes), NaN where not usable; None when there is no such variable."""
    if name not in kinematic_names(session):
        return None
    values = labels_of(session, name)
    return values if np.isfinite(values).all(axis=1).any() else None


# ------------------------------------------------------------------------------------------------------------- rates


def _rate_change(a: _Part, b: _Part, labels: list[str], settings: Settings) -> RateChange:
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
    changed = _discoveries(p, settings.fdr)
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


def _discoveries(p: Array, rate: float) -> NDArray[np.bool_]:
    """Benjamini and Hochberg's choice among the finite p values."""
    from scipy import stats

    chosen, finite = np.zeros(p.shape, dtype=bool), np.isfinite(p)
    if finite.any():
        chosen[finite] = stats.false_discovery_control(p[finite]) <= rate
    return chosen


# ------------------------------------------------------------------------------------------------------------ tuning


def _resample(n_blocks: int, n_boot: int, rng: np.random.Generator) -> Array:
    """Weights of blocks (1 + n_boot, n_blocks): ones, then Rao and Wu's bootstrap within each half."""
    half = n_blocks // 2
    weights = np.ones((1 + n_boot, n_blocks))
    for rows in (slice(0, half), slice(half, n_blocks)):
        n = rows.stop - rows.start
        weights[1:, rows] = rng.multinomial(n - 1, np.full(n, 1 / n), size=n_boot) * (n / (n - 1))
    return weights


@dataclass(frozen=True)
class _Fit:
    """Tuning vectors (1 + n_boot, n_axes, n_channels), of all blocks given and of alternate ones; blocks in use."""

    vectors: Array
    alternate: tuple[Array, Array]
    n_blocks: int


def _fit(part: _Part, rms_speed: float) -> _Fit:
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
    return _Fit(solve(draws), (solve(draws * alternate[0]), solve(draws * alternate[1])), len(labelled))


def _interval(draws: Array, n_blocks: int, settings: Settings) -> Estimate:
    """The first of `draws` with a Student interval from the spread of the rest."""
    from scipy import stats

    reach = float(stats.t.ppf((1 + settings.level) / 2, n_blocks - 1) * np.std(draws[1:], ddof=1))
    return Estimate(float(draws[0]), float(draws[0]) - reach, float(draws[0]) + reach)


def _tuning_change(a: _Fit, b: _Fit, settings: Settings) -> tuple[TuningChange, Array]:
    """Return the change, and the draws (1 + n_boot,) of the median change of preferred directions."""
    n_axes = a.vectors.shape[1]
    n_blocks = min(a.n_blocks, b.n_blocks)
    nothing = Estimate(*[float("nan")] * 3)

    def interval(draws: Array) -> Estimate:
        return _interval(draws, n_blocks, settings)

    tuned = [_discoveries(_wald_p(fit), settings.fdr) for fit in (a, b)]
    both = tuned[0] & tuned[1]
    depth = [np.sqrt(np.square(fit.vectors).sum(axis=1)) for fit in (a, b)]
    change = _angles(a.vectors, b.vectors)
    tails = [(1 - settings.level) / 2, (1 + settings.level) / 2]
    if n_axes == 2:
        apart = _wrap(change[1:] - change[0])
        low, high = change[0] + np.quantile(apart, tails, axis=0)
    else:
        low, high = np.quantile(change[1:], tails, axis=0)
    p = np.where(both, _direction_p(a, b, depth, n_blocks), np.nan)
    changed = _discoveries(p, settings.fdr)
    flat = [fit.vectors.reshape(len(fit.vectors), -1) for fit in (a, b)]
    centred = [each - each.mean(axis=1, keepdims=True) for each in flat]
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation = _dot(*centred) / np.sqrt(_dot(centred[0], centred[0]) * _dot(centred[1], centred[1]))
        power = [_dot(*(each.reshape(len(each), -1) for each in fit.alternate)) for fit in (a, b)]
        # a draw whose alternate blocks disagree altogether has no power left to compare with
        similarity = _dot(*flat) / np.sqrt(np.where((power[0] > 0) & (power[1] > 0), power[0] * power[1], np.nan))
        ratio = np.log(depth[1] / depth[0])
    median_ratio, rotation = nothing, nothing
    medians = np.full(len(change), np.nan)
    if both.any():
        medians = np.median(np.abs(change[:, both]), axis=1)
        median_ratio = interval(np.median(ratio[:, both], axis=1))
        if n_axes == 2:
            mean = np.degrees(np.angle(np.exp(1j * np.radians(change[:, both])).mean(axis=1)))
            rotation = interval(mean[0] + _wrap(mean - mean[0]))
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
        turnover={
            "first_only": int((tuned[0] & ~tuned[1]).sum()),
            "second_only": int((tuned[1] & ~tuned[0]).sum()),
            "both": int(both.sum()),
            "neither": int((~tuned[0] & ~tuned[1]).sum()),
        },
        median_pd_change_deg=interval(medians) if both.any() else nothing,
        share_pd_changed=float(changed[both].mean()) if both.any() else float("nan"),
        common_rotation_deg=rotation,
        correlation=interval(correlation),
        corrected_similarity=interval(similarity[finite]) if finite[0] and not noisy else nothing,
        median_log_depth_ratio=median_ratio,
    )
    return found, medians


def _dot(a: Array, b: Array) -> Array:
    return np.einsum("ri,ri->r", a, b)


def _wrap(degrees: Array) -> Array:
    """Into [-180, 180)."""
    return (degrees + 180) % 360 - 180


def _angles(a: Array, b: Array) -> Array:
    """Angles in degrees between vectors along axis 1, (n_draws, n_channels); signed when there are two axes."""
    dot = np.einsum("rac,rac->rc", a, b)
    if a.shape[1] == 2:
        return np.degrees(np.arctan2(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0], dot))
    size = np.sqrt(np.square(a).sum(axis=1) * np.square(b).sum(axis=1))
    return np.degrees(np.arccos(np.clip(dot / np.where(size > 0, size, 1.0), -1, 1)))


def _wald_p(fit: _Fit) -> Array:
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


def _direction_p(a: _Fit, b: _Fit, depth: list[Array], n_blocks: int) -> Array:
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


# --------------------------------------------------------------------------------------------------------- distances


class _Space:
    """The low-dimensional space of a source session."""

    def __init__(self, source: _Side, settings: Settings):
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

    def _smooth(self, side: _Side) -> Array:
        """Smoothed √counts; an unobserved bin ends a stretch as a gap does, so that nothing leaks out of it."""
        day = side.day
        edges = (np.diff(day.segment) != 0) | (np.diff(day.observed.astype(np.int8)) != 0)
        stretch = np.concatenate([[0], np.cumsum(edges)])
        return causal_smooth(side.root, stretch, day.bin_s, self.settings.smooth_s)

    def _z_scores(self, side: _Side) -> tuple[Array, NDArray[np.integer]]:
        """z-scores (n_kept, n_channels) of the observed bins that are not trimmed, and the block of each."""
        rows = side.day.observed
        z = (self._smooth(side)[np.ix_(rows, self.channels)] - self.mean) / self.spread
        far = np.square(z).sum(axis=1)
        kept = far <= np.quantile(far, 1 - TRIM)
        return z[kept], side.block[rows][kept]

    def project(self, side: _Side) -> tuple[Array, NDArray[np.integer]]:
        """Bins (n_kept, n_dims) in the space, and the block of each."""
        z, block = self._z_scores(side)
        return z @ self.components, block


def _thin(points: Array, block: NDArray[np.integer]) -> tuple[Array, NDArray[np.integer]]:
    step = -(-len(points) // MAX_POINTS)
    return points[::step], block[::step]


def _squared_distances(points: Array) -> Array:
    norms = np.square(points).sum(axis=1)
    return np.maximum(norms[:, None] + norms - 2 * points @ points.T, 0.0)


def _median_distance(points: Array) -> float:
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


def _distance(
    samples: list[tuple[Array, NDArray[np.integer]]], space: _Space, bandwidth: float, settings: Settings
) -> Distance:
    a, b = (_thin(*sample) for sample in samples)
    mmd2, mmd_p = mmd(*a, *b, bandwidth, settings.n_permutations, settings.seed)
    kl, kl_p = _kl(samples, settings)
    return Distance(
        n_channels=len(space.channels),
        n_dims=space.n_dims,
        variance_share=space.variance_share,
        kl_nats=kl,
        kl_p=kl_p,
        mmd2=mmd2,
        mmd_p=mmd_p,
        bandwidth=bandwidth,
    )


def _kl(sides: list[tuple[Array, NDArray[np.integer]]], settings: Settings) -> tuple[float, float]:
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


# --------------------------------------------------------------------------------------------------------- behaviour


def _direction_distance(a: _Part, b: _Part, source: _Side) -> float | None:
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
