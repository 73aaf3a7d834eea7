"""Quality control of one session: what was measured, beside the threshold it is held against.

`qc` changes nothing and removes nothing: it says per channel, per bin and per label what looks like a fault of the
recording. `drop_channels` acts on it, and `record_removed` writes into the session what was taken out and why.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from bci_adapt.data import faults
from bci_adapt.data.binning import TICKS_PER_S, bin_ticks, segment_slices, to_ticks
from bci_adapt.data.faults import Thresholds
from bci_adapt.data.sessions import kinematic_names, labels_of
from bci_adapt.errors import InputError

PASS, FLAG, NOT_APPLICABLE = "pass", "flag", "not applicable"
CHANNEL_CHECKS = (
    "dead channels",
    "rate outliers",
    "rate drift",
    "Fano factor",
    "duplicated channels",
    "short intervals",
    "coincident spikes",
)
MIN_RATED = 8  # channels from which a robust spread of rates means anything
RATE_SPREAD = 0.25  # least spread of log rates: five of it are a factor of 3.5
MAX_JUMP_BIN_S = 0.1  # in wider bins a whole reach is one step
MIN_LAGS = 5


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


@dataclass(frozen=True)
class Check:
    """One check: `n_flagged` of `n_total` `of` (channels, bins, …), the threshold and what was found, in words."""

    name: str
    status: str
    n_flagged: int
    n_total: int
    of: str
    threshold: str
    found: str


@dataclass(frozen=True)
class QcReport:
    """What `qc` found. Plain data but for `series`, the arrays that figures are drawn from.

    `channels` has a dictionary per channel with its figures (None where there is none) and ``flags``, the names of
    the checks that flag it; of duplicates only the later ones are flagged. `masks` are the thresholds of the rules
    that mask bins at preparation.
    """

    session: dict[str, Any]
    thresholds: QcThresholds
    masks: Thresholds
    checks: list[Check]
    channels: list[dict[str, Any]]
    behaviour: dict[str, Any]
    lag: dict[str, Any]
    series: dict[str, NDArray[Any]]

    @property
    def flagged(self) -> list[str]:
        """Names of the checks that are flagged."""
        return [check.name for check in self.checks if check.status == FLAG]

    def to_json(self) -> dict[str, Any]:
        """Return everything but `series`; numbers that are not finite are left as they are."""
        return {
            "session": self.session,
            "flagged": self.flagged,
            "flagged_channels": flagged_channels(self),
            "checks": [asdict(check) for check in self.checks],
            "channels": self.channels,
            "behaviour": self.behaviour,
            "lag": self.lag,
            "thresholds": asdict(self.thresholds),
            "mask_thresholds": asdict(self.masks),
        }


def flagged_channels(report: QcReport, checks: Iterable[str] = CHANNEL_CHECKS) -> list[str]:
    """Return the labels of the channels that any of `checks` flags, in the session's order."""
    chosen = set(checks)
    if unknown := chosen - set(CHANNEL_CHECKS):
        raise InputError(f"no check of channels: {', '.join(sorted(unknown))} (known: {', '.join(CHANNEL_CHECKS)})")
    return [entry["channel"] for entry in report.channels if chosen & set(entry["flags"])]


def drop_channels(session: xr.Dataset, names: Sequence[str], reason: str) -> xr.Dataset:
    """Return `session` without the channels `names`; attribute ``removed_channels`` records each with `reason`.

    What an earlier call recorded is kept. `InputError` for a channel that the session lacks, for no reason, and when
    fewer than two channels would be left.
    """
    labels = session["channel"].values.tolist()
    if absent := [name for name in names if name not in set(labels)]:
        raise InputError(f"{session.attrs.get('session_id', 'session')}: no channel {', '.join(map(repr, absent))}")
    if not reason.strip():
        raise InputError("a channel is only removed with a reason")
    gone = set(names)
    keep = np.array([label not in gone for label in labels], dtype=bool)
    if np.count_nonzero(keep) < 2:
        raise InputError(
            f"{session.attrs.get('session_id', 'session')}: removing {len(gone)} of {len(labels)} channels leaves "
            "fewer than two: loosen a threshold, or leave this session out"
        )
    kept = session.isel(channel=np.flatnonzero(keep))
    return record_removed(kept, [name for name in labels if name in gone], reason)


def record_removed(session: xr.Dataset, names: Sequence[str], reason: str) -> xr.Dataset:
    """Return `session` with attribute ``removed_channels`` saying that `names` were taken out, and why."""
    removed = removed_channels(session) + [{"channel": name, "reason": reason} for name in names]
    return session.assign_attrs(removed_channels=json.dumps(removed, ensure_ascii=False))


def removed_channels(session: xr.Dataset) -> list[dict[str, str]]:
    """Return what `record_removed` wrote: a list of {channel, reason}."""
    return json.loads(session.attrs.get("removed_channels", "[]"))


def qc(session: xr.Dataset, thresholds: QcThresholds | None = None) -> QcReport:
    """Run every check on `session`; one that does not apply, as for a session without labels, says so and why.

    `InputError` when there is no observed bin.
    """
    limits = thresholds or QcThresholds()
    if not session["valid"].values.any():
        raise InputError(
            f"{session.attrs.get('session_id', 'session')}: not a single bin in which neurons are observed"
        )
    run = _Run(session, limits)
    channels = run.channels()
    run.bins()
    behaviour = run.labels()
    lag = run.relation()
    run.clock()
    return QcReport(run.summary(), limits, run.masks, run.checks, channels, behaviour, lag, run.series)


class _Run:
    """One pass over a session; each method adds to `checks` and `series`."""

    def __init__(self, session: xr.Dataset, limits: QcThresholds) -> None:
        self.session, self.limits = session, limits
        self.checks: list[Check] = []
        self.bin_s = float(session.attrs["bin_s"])
        self.counts: NDArray[Any] = session["counts"].values
        self.segment: NDArray[np.integer] = session["segment"].values
        self.valid: NDArray[np.bool_] = session["valid"].values
        self.spikes = self.counts.dtype.kind in "ui"  # otherwise band power, to which no rule of counts applies
        stored = json.loads(session.attrs.get("thresholds", "{}"))
        self.masks = Thresholds(**{f.name: stored[f.name] for f in fields(Thresholds) if f.name in stored})
        self.artefact = np.zeros(self.valid.size, dtype=bool)
        self.use = self.valid.copy()
        self.series: dict[str, NDArray[Any]] = {
            "minutes": np.arange(self.valid.size) * self.bin_s / 60.0,
            "valid": self.valid,
            "segment_starts": np.array([rows.start for rows in segment_slices(self.segment)]) * self.bin_s / 60.0,
            "channels": session["channel"].values,
        }
        if self.spikes:
            self.n_above, by_chance = faults.coincident_bins(
                self.counts, self.valid, limits.artefact_tail, limits.artefact_alpha
            )
            self.n_artefact = max(by_chance, int(np.ceil(limits.artefact_fraction * self.counts.shape[1])))
            self.artefact = self.n_above >= self.n_artefact
            # The fringes of artefacts make channels look alike: comparisons leave out all that is beyond chance.
            self.use &= self.n_above < by_chance

    def add(self, name: str, flags: Any, of: str, threshold: str, found: str, most: float = 0.0) -> None:
        """Flag a check when more than the fraction `most` of `flags` is True."""
        flags = np.asarray(flags, dtype=bool).ravel()
        n = int(np.count_nonzero(flags))
        status = FLAG if n > most * flags.size else PASS
        self.checks.append(Check(name, status, n, int(flags.size), of, threshold, found))

    def skip(self, name: str, threshold: str, why: str) -> None:
        self.checks.append(Check(name, NOT_APPLICABLE, 0, 0, "", threshold, why))

    # ---------------------------------------------------------------------------------------------- channels

    def channels(self) -> list[dict[str, Any]]:
        labels = self.series["channels"].tolist()
        values: dict[str, NDArray[Any]] = {}
        flags: dict[str, NDArray[np.bool_]] = {}
        if self.spikes:
            self._rates(values, flags)
        else:
            flags["dead channels"] = np.ptp(self.counts[self.valid], axis=0) == 0
            self.add("dead channels", flags["dead channels"], "channels", "no change at all", "band power")
            for name in ("rate outliers", "rate drift", "Fano factor"):
                self.skip(name, "", "band power, not counts")
        partner = self._duplicates(values, flags)
        self._intervals(values, flags)
        self._rate_map()
        electrodes = self.session["electrode"].values.tolist() if "electrode" in self.session.coords else None
        for name in ("rate_hz", "short_fraction"):
            if name in values:
                self.series[name] = values[name]
        self.series["flagged"] = np.any([*flags.values(), np.zeros(len(labels), dtype=bool)], axis=0)
        return [
            {
                "channel": label,
                "electrode": electrodes[i] if electrodes else None,
                **{name: float(column[i]) if np.isfinite(column[i]) else None for name, column in values.items()},
                "partner": labels[partner[i]] if partner[i] >= 0 else None,
                "flags": [name for name in CHANNEL_CHECKS if name in flags and flags[name][i]],
            }
            for i, label in enumerate(labels)
        ]

    def _rates(self, values: dict[str, NDArray[Any]], flags: dict[str, NDArray[np.bool_]]) -> None:
        limits = self.limits
        rate = self.counts[self.valid].mean(axis=0) / self.bin_s
        dead = rate < limits.dead_rate_hz
        live = ~dead
        z = np.full(rate.size, np.nan)
        if np.count_nonzero(live) >= MIN_RATED:
            z[live] = faults.robust_z(np.log(rate[live]), RATE_SPREAD)
        flags["dead channels"] = dead
        self.add("dead channels", dead, "channels", f"rate < {limits.dead_rate_hz:g} Hz", f"lowest {rate.min():.3g} Hz")
        flags["rate outliers"] = live & ((np.abs(z) > limits.max_rate_z) | (rate > limits.max_rate_hz))
        self.add(
            "rate outliers",
            flags["rate outliers"],
            "channels",
            f"|z of log rate| > {limits.max_rate_z:g} or > {limits.max_rate_hz:g} Hz",
            f"median {np.median(rate):.3g} Hz, highest {rate.max():.3g} Hz, z {_span(z)}",
        )
        n_block = max(round(limits.block_s / self.bin_s), 1)
        ratio, drift_z = faults.rate_drift(faults.block_sums(self.counts, self.use, n_block))
        ratio[dead], drift_z[dead] = np.nan, np.nan
        words = f"last / first third by ≥ {2**limits.drift_log2:g}× and |z| > {limits.drift_z:g}"
        if np.isfinite(ratio).any():
            flags["rate drift"] = (np.abs(ratio) >= limits.drift_log2) & (np.abs(drift_z) > limits.drift_z)
            self.add("rate drift", flags["rate drift"], "channels", words, f"log2 of ratio {_span(ratio)}")
        else:
            self.skip("rate drift", words, f"fewer than 9 blocks of {limits.block_s:g} s")
        mean, variance = _moments(self.counts, self.use)
        fano = np.divide(variance, mean, out=np.full(mean.size, np.nan), where=live & (mean > 0))
        flags["Fano factor"] = (fano < limits.min_fano) | (fano > limits.max_fano)
        self.add(
            "Fano factor",
            flags["Fano factor"],
            "channels",
            f"outside {limits.min_fano:g} … {limits.max_fano:g} in bins of {self.bin_s:g} s",
            f"{_span(fano)}, median {_middle(fano)}",
        )
        values |= {"rate_hz": rate, "rate_z": z, "drift_log2": ratio, "drift_z": drift_z, "fano": fano}

    def _duplicates(self, values: dict[str, NDArray[Any]], flags: dict[str, NDArray[np.bool_]]) -> NDArray[np.int64]:
        """Returns the most similar channel of each, -1 for one that is like no other."""
        correlation = faults.correlations(self.counts, self.segment, self.use)
        same = faults.same_as_earlier(self.counts, self.valid)
        pairs: NDArray[np.bool_] = np.tril(correlation > self.limits.max_correlation)
        pairs[np.flatnonzero(same >= 0), same[same >= 0]] = True
        flags["duplicated channels"] = np.asarray(pairs.any(axis=1))
        most, partner = correlation.max(axis=1), correlation.argmax(axis=1)
        for channel in np.flatnonzero(flags["duplicated channels"]):  # named beside the earlier one that it repeats
            partner[channel] = np.where(pairs[channel], correlation[channel], -1.0).argmax()
        most[same >= 0], partner[same >= 0] = 1.0, same[same >= 0]
        partner[most <= 0] = -1
        values["correlation"] = most
        labels = self.series["channels"]
        shown = [f"{labels[b]} ≈ {labels[a]}" for a, b in np.argwhere(pairs)[:3]]
        self.add(
            "duplicated channels",
            flags["duplicated channels"],
            "channels",
            f"correlation of changes > {self.limits.max_correlation:g}, or identical",
            f"highest {most.max():.2f}, {np.count_nonzero(same >= 0)} identical"
            + (f"; {', '.join(shown)}{' …' if pairs.sum() > 3 else ''}" if shown else ""),
        )
        self.series["correlation"] = correlation
        return partner

    def _intervals(self, values: dict[str, NDArray[Any]], flags: dict[str, NDArray[np.bool_]]) -> None:
        limits = self.limits
        words = {
            "short intervals": f"> {100 * limits.max_short_fraction:g} % of intervals < 1 ms",
            "coincident spikes": f"> {100 * limits.max_coincident_fraction:g} % of spikes in 1 ms with ⅓ of channels",
        }
        if "n_spikes" not in self.session:
            for name, threshold in words.items():
                self.skip(name, threshold, "no spike times: the session was made of counts")
            return
        n_spikes, n_short, n_coincident = (
            self.session[name].values for name in ("n_spikes", "n_short_isi", "n_coincident")
        )
        some = n_spikes > 0
        short, coincident = (
            np.divide(n, n_spikes, out=np.full(n_spikes.size, np.nan), where=some) for n in (n_short, n_coincident)
        )
        foreign = faults.contamination(n_spikes, n_short, float(self.valid.sum() * self.bin_s))
        values |= {"short_fraction": short, "contamination": foreign, "coincident_fraction": coincident}
        flags["short intervals"] = short > limits.max_short_fraction
        flags["coincident spikes"] = coincident > limits.max_coincident_fraction
        self.add(
            "short intervals",
            flags["short intervals"],
            "channels",
            words["short intervals"],
            f"highest {_percent(short)}; foreign spikes (Hill et al. 2011) up to {_percent(foreign)}",
        )
        self.add(
            "coincident spikes",
            flags["coincident spikes"],
            "channels",
            words["coincident spikes"],
            f"highest {_percent(coincident)}, {100 * n_coincident.sum() / max(n_spikes.sum(), 1):.2f} % of all spikes",
        )

    def _rate_map(self) -> None:
        """Mean count per second of each channel in blocks of rows; NaN where no bin of a block is observed."""
        n_block = max(round(self.limits.block_s / self.bin_s), 1)
        starts = np.arange(0, self.valid.size, n_block)
        sums = [self.counts[a : a + n_block][self.valid[a : a + n_block]].sum(axis=0, dtype=float) for a in starts]
        number = np.add.reduceat(self.valid, starts, dtype=np.int64)[:, None]
        shape = (starts.size, self.counts.shape[1])
        rates = np.divide(np.stack(sums), number * self.bin_s, out=np.full(shape, np.nan), where=number > 0)
        self.series["block_rates"] = rates
        self.series["block_starts"] = np.append(starts, self.valid.size) * self.bin_s / 60.0

    # -------------------------------------------------------------------------------------------------- bins

    def bins(self) -> None:
        limits, name = self.limits, "coincident bins"
        self.series["population"] = self.counts.sum(axis=1, dtype=float) / self.bin_s
        self.series["artefact"] = self.artefact
        if self.spikes:
            self.add(
                name,
                self.artefact[self.valid],
                "bins",
                f"≥ {self.n_artefact} of {self.counts.shape[1]} channels above their Poisson tail of "
                f"{limits.artefact_tail:g} (p < {limits.artefact_alpha:g} over all bins, ≥ "
                f"{100 * limits.artefact_fraction:.3g} %)",
                f"at most {self.n_above.max()} channels",
            )
        else:
            self.skip(name, "", "band power, not counts")
        silent = faults.silent_bins(self.counts, self.segment, self.bin_s, self.masks.silent_s)
        self.series["silent"] = silent
        self.add(
            "silent stretches",
            silent,
            "bins",
            f"> {100 * limits.max_silent_fraction:g} % in all-channel silence of > {self.masks.silent_s:g} s",
            f"{silent.sum() * self.bin_s:.1f} s, {100 * silent.mean():.1f} %",
            limits.max_silent_fraction,
        )

    # ------------------------------------------------------------------------------------------------ labels

    def labels(self) -> dict[str, Any]:
        names = kinematic_names(self.session)
        position = self.session["position"] if "position" in names else None
        self._still_and_jumps(position)
        self._speeds([name for name in names if name.endswith("velocity")])
        self._samples([name for name in names if "derived" not in self.session[name].attrs])
        self._agreement()
        behaviour: dict[str, Any] = {"units": {name: str(self.session[name].attrs.get("units", "")) for name in names}}
        if position is not None:
            low, high = np.nanpercentile(position.values, [0.1, 99.9], axis=0)
            axes = position[position.dims[1]].values.tolist()
            behaviour["range"] = {a: [float(b), float(c)] for a, b, c in zip(axes, low, high, strict=True)}
        moving = next((name for name in ("velocity", "recorded_velocity") if name in names), None)
        if moving is not None:
            usable = np.asarray(self.session[f"{moving}_valid"].values.all(axis=1))
            speed = np.sqrt(np.square(self.session[moving].values).sum(axis=1))
            self.series.update(speed=speed, speed_usable=usable)
            if usable.any():
                levels = np.percentile(speed[usable], [5, 50, 95, 99])
                behaviour["speed"] = dict(zip(("p5", "p50", "p95", "p99"), map(float, levels), strict=True))
            behaviour["speed_of"] = moving
        if "trial" in self.session.sizes:
            results, n = np.unique(self.session["trial_result"].values, return_counts=True)
            lasted = self.session["trial_stop_s"].values - self.session["trial_start_s"].values
            behaviour["trials"] = {
                "n": int(self.session.sizes["trial"]),
                "results": dict(zip(map(str, results), map(int, n), strict=True)),
                "median_s": float(np.median(lasted[np.isfinite(lasted)])) if np.isfinite(lasted).any() else None,
            }
        return behaviour

    def _still_and_jumps(self, position: xr.DataArray | None) -> None:
        limits, masks = self.limits, self.masks
        unit = "" if position is None else str(position.attrs.get("units", ""))
        scale = faults.cm_per_unit(unit)
        extent = masks.still_extent_cm / scale if scale else 0.0
        still_words = f"> {100 * limits.max_still_fraction:g} % within {extent:g} {unit} for > {masks.still_s:g} s"
        jump_words = (
            f"a step of > {100 * limits.jump_range:g} % of the range and > {limits.jump_ratio:g}× the steps beside it"
        )
        if position is None:
            self.skip("still stretches", still_words, "no position")
            self.skip("position jumps", jump_words, "no position")
            return
        still = faults.still_bins(position.values, self.segment, self.bin_s, masks.still_s, extent)
        self.series["still"] = still
        self.add(
            "still stretches",
            still,
            "bins",
            still_words,
            f"{still.sum() * self.bin_s:.1f} s, {100 * still.mean():.1f} %",
            limits.max_still_fraction,
        )
        if self.bin_s > MAX_JUMP_BIN_S:
            self.skip("position jumps", jump_words, f"bins above {MAX_JUMP_BIN_S:g} s hold a whole movement")
            return
        jumps = faults.position_jumps(position.values, self.segment, limits.jump_ratio, limits.jump_range)
        self.series["jumps"] = jumps
        first = ", ".join(f"{self.session['time'].values[row]:.2f}" for row in np.flatnonzero(jumps)[:3])
        self.add("position jumps", jumps, "bins", jump_words, f"at {first} s" if first else "none")

    def _speeds(self, names: list[str]) -> None:
        words = f"> {100 * self.limits.max_fast_fraction:g} % of bins above {self.masks.max_speed_cm_s:g} cm/s"
        limits = {name: faults.cm_per_unit(str(self.session[name].attrs.get("units", ""))) for name in names}
        known = {name: self.masks.max_speed_cm_s / scale for name, scale in limits.items() if scale}
        if not known:
            self.skip("implausible speed", words, "no velocity" if not names else "no velocity in a unit of length")
            return
        fast = {
            name: faults.fast_bins(self.session[name].values, self.segment, limit, 0) for name, limit in known.items()
        }
        worst = max(fast, key=lambda name: int(fast[name].sum()))
        self.series["fast"] = fast.get("velocity", fast[worst])
        found = ", ".join(f"{name} {flags.sum() * self.bin_s:.2f} s" for name, flags in fast.items())
        self.add("implausible speed", fast[worst], "bins", words, found, self.limits.max_fast_fraction)

    def _samples(self, names: list[str]) -> None:
        limits = self.limits
        words = {
            "missing samples": f"> {100 * limits.max_missing_fraction:g} % of samples",
            "few values": f"< {limits.min_distinct} distinct values",
            "saturated axes": f"> {100 * limits.max_saturated_fraction:g} % at the largest or smallest value",
        }
        if not names:
            for name, threshold in words.items():
                self.skip(name, threshold, "no labels")
            return
        entries: dict[str, tuple[float, int, float]] = {}  # axis → missing, distinct, saturated
        for name in names:
            axes = self.session[self.session[name].dims[1]].values.tolist()
            for axis, values in zip(axes, self.session[name].values.T, strict=True):
                known = values[np.isfinite(values)]
                if not known.size:
                    entries[f"{name} {axis}"] = 1.0, 0, 0.0
                    continue
                distinct, number = np.unique(known, return_counts=True)
                ends = max(int(number[0]), int(number[-1])) / known.size
                entries[f"{name} {axis}"] = 1 - known.size / values.size, distinct.size, ends
        missing, distinct, saturated = (np.array(each) for each in zip(*entries.values(), strict=True))
        of = list(entries)
        # fewer samples than that cannot have so many values; nothing at all is missing, not coarse
        few = (distinct > 0) & (distinct < limits.min_distinct) & (self.valid.size >= 10 * limits.min_distinct)
        full = ~few & (saturated > limits.max_saturated_fraction)
        for name, flags, found in (
            ("missing samples", missing > limits.max_missing_fraction, f"at most {100 * missing.max():.1f} %"),
            ("few values", few, f"at least {distinct.min()}"),
            ("saturated axes", full, f"at most {100 * saturated.max():.1f} %"),
        ):
            listed = ", ".join(of[i] for i in np.flatnonzero(flags))
            self.add(name, flags, "axes", words[name], f"{found}{f': {listed}' if listed else ''}")

    def _agreement(self) -> None:
        name, limits = "recorded velocity", self.limits
        words = f"correlation < {limits.min_agreement:g} or scale beyond {limits.max_scale:g}×"
        both = [each for each in ("recorded_velocity", "velocity") if each in self.session]
        if len(both) < 2 or self.session[both[0]].dims != self.session[both[1]].dims:
            self.skip(name, words, f"no {'position to derive one from' if 'velocity' not in both else 'recorded one'}")
            return
        recorded, derived = (self.session[each].values for each in both)
        usable = self.session["velocity_valid"].values
        correlation, scale = faults.velocity_agreement(recorded, derived, usable)
        units = [faults.cm_per_unit(str(self.session[each].attrs.get("units", ""))) for each in both]
        scale *= units[0] / units[1] if units[0] and units[1] else 1.0
        good = correlation >= limits.min_agreement and 1 / limits.max_scale <= scale <= limits.max_scale
        self.add(
            name,
            [not good],
            "comparison",
            words,
            f"against the difference of position: correlation {correlation:.3f}, scale {scale:.3g}",
        )

    # -------------------------------------------------------------------------------------- neurons and labels

    def relation(self) -> dict[str, Any]:
        limits, bin_s = self.limits, self.bin_s
        known = f"held-out correlation < {limits.min_label_correlation:g} at every lag"
        inside = f"best lag at an end of {1000 * limits.lag_from_s:g} … {1000 * limits.lag_to_s:g} ms, or "
        inside += f"> {1000 * limits.max_lag_split_s:g} ms apart in the halves"
        names = kinematic_names(self.session)
        variable = next((name for name in ("velocity", "position", *names) if name in names), None)
        ticks = bin_ticks(bin_s)
        first, last = (int(to_ticks(edge)) for edge in (limits.lag_from_s, limits.lag_to_s))
        lags = np.arange(-(-first // ticks), last // ticks + 1, dtype=np.int64)
        why, moments = "", np.empty(0)
        if variable is None:
            why = "no labels"
        elif lags.size < MIN_LAGS:
            why = f"{lags.size} whole bins of {bin_s:g} s fit into the lags, at least {MIN_LAGS} are needed"
        else:
            target = labels_of(self.session, variable)
            moments = faults.lag_moments(self.counts, target, self.segment, self.use, lags)
            why = "" if moments.size else "too few bins with usable labels"
        if why:
            self.skip("neurons tell labels", known, why)
            self.skip("lag of labels", inside, why)
            return {}
        halves = faults.lag_correlation(moments)
        curve = halves.mean(axis=0)
        lags_s, peak = lags * ticks / TICKS_PER_S, int(curve.argmax())
        low, high = np.percentile(lags_s[faults.lag_peaks(moments)], [5, 95])
        half_peaks = lags_s[halves.argmax(axis=1)]
        interior = 0 < peak < lags.size - 1
        lag = {
            "variable": variable,
            "lags_s": lags_s.tolist(),
            "correlation": curve.tolist(),
            "correlation_halves": halves.tolist(),
            "peak_s": float(lags_s[peak]),
            "peak_correlation": float(curve[peak]),
            "peak_low_s": float(low),
            "peak_high_s": float(high),
            "peak_halves_s": half_peaks.tolist(),
            "interior": interior,
        }
        says = curve[peak] >= limits.min_label_correlation
        best = f"best {curve[peak]:.2f} for {variable}, neurons leading by {1000 * lags_s[peak]:g} ms"
        self.add("neurons tell labels", [not says], "sessions", known, best)
        if not says:
            self.skip("lag of labels", inside, "no lag decodes")
            return lag
        apart = float(np.ptp(half_peaks)) > max(limits.max_lag_split_s, bin_s) + 1e-9
        self.add(
            "lag of labels",
            [not interior or apart],
            "sessions",
            inside,
            f"{1000 * lags_s[peak]:g} ms (90 % of bootstraps {1000 * low:g} … {1000 * high:g}; halves "
            f"{1000 * half_peaks[0]:g} and {1000 * half_peaks[1]:g})",
        )
        return lag

    # -------------------------------------------------------------------------------------------------- time

    def clock(self) -> None:
        limits, ticks = self.limits, to_ticks(self.session["time"].values)
        segments, width = segment_slices(self.segment), bin_ticks(self.bin_s)
        starts = np.array([ticks[rows.start] for rows in segments]) - width
        stops = np.array([ticks[rows.stop - 1] for rows in segments])
        gaps = starts[1:] - stops[:-1]
        lost = int(gaps[gaps > 0].sum())
        share = lost / (lost + ticks.size * width)
        self.add("clock", gaps < 0, "gaps", "time that runs backwards", f"{np.count_nonzero(gaps < 0)} times")
        self.checks.append(
            Check(
                "gaps",
                FLAG if share > limits.max_gap_fraction else PASS,
                int(np.count_nonzero(gaps > 0)),
                max(len(segments) - 1, 0),
                "gaps",
                f"> {100 * limits.max_gap_fraction:g} % of the time",
                f"{lost / TICKS_PER_S:.1f} s lost, {100 * share:.1f} %; segments: {len(segments)}",
            )
        )
        short = np.array([(rows.stop - rows.start) * width < to_ticks(limits.short_segment_s) for rows in segments])
        length = np.array([rows.stop - rows.start for rows in segments])
        self.add(
            "short segments",
            np.repeat(short, length),
            "bins",
            f"> {100 * limits.max_short_segment_fraction:g} % in segments of < {limits.short_segment_s:g} s",
            f"segments: {np.count_nonzero(short)} of {len(segments)}",
            limits.max_short_segment_fraction,
        )
        words = f"> {100 * limits.max_bad_trials:g} % outside the recording or ending before their start"
        if not self.session.sizes.get("trial"):
            self.skip("trials", words, "no trials")
            return
        begin, end = (self.session[f"trial_{name}_s"].values for name in ("start", "stop"))
        bad = (
            ~(begin >= starts.min() / TICKS_PER_S - self.bin_s) | ~(begin <= stops.max() / TICKS_PER_S) | (end < begin)
        )
        self.add("trials", bad, "trials", words, f"{np.count_nonzero(bad)} of {bad.size}", limits.max_bad_trials)

    def summary(self) -> dict[str, Any]:
        attrs = self.session.attrs
        n_bins = self.valid.size
        return {
            **{name: str(attrs.get(name, "")) for name in ("session_id", "subject", "session_start", "source_file")},
            "bin_s": self.bin_s,
            "n_channels": int(self.counts.shape[1]),
            "n_bins": n_bins,
            "n_segments": len(segment_slices(self.segment)),
            "duration_s": n_bins * self.bin_s,
            "observed_s": float(self.valid.sum() * self.bin_s),
            "removed_channels": removed_channels(self.session),
        }


def _moments(counts: NDArray[np.number], use: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and variance of each channel over the bins in `use`, exact for counts."""
    n, total, squares = max(int(use.sum()), 1), np.zeros(counts.shape[1]), np.zeros(counts.shape[1])
    for start in range(0, len(counts), 2**14):
        part = counts[start : start + 2**14][use[start : start + 2**14]].astype(np.float64)
        total += part.sum(axis=0)
        squares += np.square(part).sum(axis=0)
    return total / n, np.maximum(squares / n - (total / n) ** 2, 0.0)


def _span(values: NDArray[np.float64]) -> str:
    known = values[np.isfinite(values)]
    return f"{known.min():.2g} … {known.max():.2g}" if known.size else "not known"


def _middle(values: NDArray[np.float64]) -> str:
    known = values[np.isfinite(values)]
    return f"{np.median(known):.2g}" if known.size else "not known"


def _percent(values: NDArray[np.float64]) -> str:
    known = values[np.isfinite(values)]
    return f"{100 * known.max():.2f} %" if known.size else "not known"
