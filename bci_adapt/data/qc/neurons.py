"""Checks of neurons: channel by channel, and bins in which many channels are odd together."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bci_adapt.data import faults
from bci_adapt.data.qc.examined import Examined
from bci_adapt.data.qc.report import CHANNEL_CHECKS

MIN_RATED = 8  # channels from which a robust spread of rates means anything
RATE_SPREAD = 0.25  # least spread of log rates: five of it are a factor of 3.5
Figures = dict[str, NDArray[Any]]
"""A figure of every channel (n_channels,), by name."""
Flags = dict[str, NDArray[np.bool_]]
"""Whether a check flags each channel (n_channels,), by the name of the check."""


def check_channels(seen: Examined) -> list[dict[str, Any]]:
    """Run every check of single channels; return a dictionary per channel, see `QcReport`."""
    labels = seen.series["channels"].tolist()
    values: Figures = {}
    flags: Flags = {}
    if seen.spikes:
        _rates(seen, values, flags)
    else:
        flags["dead channels"] = np.ptp(seen.counts[seen.valid], axis=0) == 0
        seen.add("dead channels", flags["dead channels"], "channels", "no change at all", "band power")
        for name in ("rate outliers", "rate drift", "Fano factor"):
            seen.skip(name, "", "band power, not counts")
    partner = _duplicates(seen, values, flags)
    _intervals(seen, values, flags)
    _rate_map(seen)
    electrodes = seen.session["electrode"].values.tolist() if "electrode" in seen.session.coords else None
    for name in ("rate_hz", "short_fraction"):
        if name in values:
            seen.series[name] = values[name]
    seen.series["flagged"] = np.any([*flags.values(), np.zeros(len(labels), dtype=bool)], axis=0)
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


def _rates(seen: Examined, values: Figures, flags: Flags) -> None:
    limits = seen.limits
    rate = seen.counts[seen.valid].mean(axis=0) / seen.bin_s
    dead = rate < limits.dead_rate_hz
    live = ~dead
    z = np.full(rate.size, np.nan)
    if np.count_nonzero(live) >= MIN_RATED:
        z[live] = faults.robust_z(np.log(rate[live]), RATE_SPREAD)
    flags["dead channels"] = dead
    seen.add("dead channels", dead, "channels", f"rate < {limits.dead_rate_hz:g} Hz", f"lowest {rate.min():.3g} Hz")
    flags["rate outliers"] = live & ((np.abs(z) > limits.max_rate_z) | (rate > limits.max_rate_hz))
    seen.add(
        "rate outliers",
        flags["rate outliers"],
        "channels",
        f"|z of log rate| > {limits.max_rate_z:g} or > {limits.max_rate_hz:g} Hz",
        f"median {np.median(rate):.3g} Hz, highest {rate.max():.3g} Hz, z {_span(z)}",
    )
    n_block = max(round(limits.block_s / seen.bin_s), 1)
    ratio, drift_z = faults.rate_drift(faults.block_sums(seen.counts, seen.use, n_block))
    ratio[dead], drift_z[dead] = np.nan, np.nan
    words = f"last / first third by ≥ {2**limits.drift_log2:g}× and |z| > {limits.drift_z:g}"
    if np.isfinite(ratio).any():
        flags["rate drift"] = (np.abs(ratio) >= limits.drift_log2) & (np.abs(drift_z) > limits.drift_z)
        seen.add("rate drift", flags["rate drift"], "channels", words, f"log2 of ratio {_span(ratio)}")
    else:
        seen.skip("rate drift", words, f"fewer than 9 blocks of {limits.block_s:g} s")
    mean, variance = _moments(seen.counts, seen.use)
    fano = np.divide(variance, mean, out=np.full(mean.size, np.nan), where=live & (mean > 0))
    flags["Fano factor"] = (fano < limits.min_fano) | (fano > limits.max_fano)
    seen.add(
        "Fano factor",
        flags["Fano factor"],
        "channels",
        f"outside {limits.min_fano:g} … {limits.max_fano:g} in bins of {seen.bin_s:g} s",
        f"{_span(fano)}, median {_middle(fano)}",
    )
    values |= {"rate_hz": rate, "rate_z": z, "drift_log2": ratio, "drift_z": drift_z, "fano": fano}


def _duplicates(seen: Examined, values: Figures, flags: Flags) -> NDArray[np.int64]:
    """Returns the most similar channel of each, -1 for one that is like no other."""
    correlation = faults.correlations(seen.counts, seen.segment, seen.use)
    same = faults.same_as_earlier(seen.counts, seen.valid)
    pairs: NDArray[np.bool_] = np.tril(correlation > seen.limits.max_correlation)
    pairs[np.flatnonzero(same >= 0), same[same >= 0]] = True
    flags["duplicated channels"] = np.asarray(pairs.any(axis=1))
    most, partner = correlation.max(axis=1), correlation.argmax(axis=1)
    for channel in np.flatnonzero(flags["duplicated channels"]):  # named beside the earlier one that it repeats
        partner[channel] = np.where(pairs[channel], correlation[channel], -1.0).argmax()
    most[same >= 0], partner[same >= 0] = 1.0, same[same >= 0]
    partner[most <= 0] = -1
    values["correlation"] = most
    labels = seen.series["channels"]
    shown = [f"{labels[b]} ≈ {labels[a]}" for a, b in np.argwhere(pairs)[:3]]
    seen.add(
        "duplicated channels",
        flags["duplicated channels"],
        "channels",
        f"correlation of changes > {seen.limits.max_correlation:g}, or identical",
        f"highest {most.max():.2f}, {np.count_nonzero(same >= 0)} identical"
        + (f"; {', '.join(shown)}{' …' if pairs.sum() > 3 else ''}" if shown else ""),
    )
    seen.series["correlation"] = correlation
    return partner


def _intervals(seen: Examined, values: Figures, flags: Flags) -> None:
    limits = seen.limits
    words = {
        "short intervals": f"> {100 * limits.max_short_fraction:g} % of intervals < 1 ms",
        "coincident spikes": f"> {100 * limits.max_coincident_fraction:g} % of spikes in 1 ms with ⅓ of channels",
    }
    if "n_spikes" not in seen.session:
        for name, threshold in words.items():
            seen.skip(name, threshold, "no spike times: the session was made of counts")
        return
    n_spikes, n_short, n_coincident = (
        seen.session[name].values for name in ("n_spikes", "n_short_isi", "n_coincident")
    )
    some = n_spikes > 0
    short, coincident = (
        np.divide(n, n_spikes, out=np.full(n_spikes.size, np.nan), where=some) for n in (n_short, n_coincident)
    )
    foreign = faults.contamination(n_spikes, n_short, float(seen.valid.sum() * seen.bin_s))
    values |= {"short_fraction": short, "contamination": foreign, "coincident_fraction": coincident}
    flags["short intervals"] = short > limits.max_short_fraction
    flags["coincident spikes"] = coincident > limits.max_coincident_fraction
    seen.add(
        "short intervals",
        flags["short intervals"],
        "channels",
        words["short intervals"],
        f"highest {_percent(short)}; foreign spikes (Hill et al. 2011) up to {_percent(foreign)}",
    )
    seen.add(
        "coincident spikes",
        flags["coincident spikes"],
        "channels",
        words["coincident spikes"],
        f"highest {_percent(coincident)}, {100 * n_coincident.sum() / max(n_spikes.sum(), 1):.2f} % of all spikes",
    )


def _rate_map(seen: Examined) -> None:
    """Mean count per second of each channel in blocks of rows; NaN where no bin of a block is observed."""
    n_block = max(round(seen.limits.block_s / seen.bin_s), 1)
    starts = np.arange(0, seen.valid.size, n_block)
    sums = [seen.counts[a : a + n_block][seen.valid[a : a + n_block]].sum(axis=0, dtype=float) for a in starts]
    number = np.add.reduceat(seen.valid, starts, dtype=np.int64)[:, None]
    shape = (starts.size, seen.counts.shape[1])
    rates = np.divide(np.stack(sums), number * seen.bin_s, out=np.full(shape, np.nan), where=number > 0)
    seen.series["block_rates"] = rates
    seen.series["block_starts"] = np.append(starts, seen.valid.size) * seen.bin_s / 60.0


def check_bins(seen: Examined) -> None:
    """Check for bins in which many channels fire together, and for stretches in which all are silent."""
    limits, name = seen.limits, "coincident bins"
    seen.series["population"] = seen.counts.sum(axis=1, dtype=float) / seen.bin_s
    seen.series["artefact"] = seen.artefact
    if seen.spikes:
        seen.add(
            name,
            seen.artefact[seen.valid],
            "bins",
            f"≥ {seen.n_artefact} of {seen.counts.shape[1]} channels above their Poisson tail of "
            f"{limits.artefact_tail:g} (p < {limits.artefact_alpha:g} over all bins, ≥ "
            f"{100 * limits.artefact_fraction:.3g} %)",
            f"at most {seen.n_above.max()} channels",
        )
    else:
        seen.skip(name, "", "band power, not counts")
    silent = faults.silent_bins(seen.counts, seen.segment, seen.bin_s, seen.masks.silent_s)
    seen.series["silent"] = silent
    seen.add(
        "silent stretches",
        silent,
        "bins",
        f"> {100 * limits.max_silent_fraction:g} % in all-channel silence of > {seen.masks.silent_s:g} s",
        f"{silent.sum() * seen.bin_s:.1f} s, {100 * silent.mean():.1f} %",
        limits.max_silent_fraction,
    )


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
