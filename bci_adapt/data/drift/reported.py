"""What is measured of drift: rates, tuning, distances of distributions, behaviour."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from bci_adapt.errors import InputError


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
    `changed`: significant at the false discovery rate. `silenced` and `appeared` name channels that cross
    `rates.ACTIVE_HZ`.
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
    components (`n_dims`, holding `variance_share` of the source's variance), without the outermost bins
    (`distances.TRIM`). `kl_nats` is (KL(p‖q) + KL(q‖p)) / 2 of Gaussians, `distances.RIDGE` times the mean variance
    added to each covariance's diagonal. `mmd2` is the squared maximum mean discrepancy (Gretton et al. 2012, J Mach
    Learn Res 13:723) with kernel exp(-d² / 2 bandwidth²), the bandwidth being the median distance in the pooled sample
    of both sessions; pairs within one block are left out, which makes it unbiased although bins are autocorrelated: it
    may be negative. p values: blocks permuted between the sides.
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
