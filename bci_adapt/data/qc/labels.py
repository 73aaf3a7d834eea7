"""Checks of labels, and of how neurons and labels are related in time."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from bci_adapt.data import faults
from bci_adapt.data.binning import TICKS_PER_S, bin_ticks, to_ticks
from bci_adapt.data.qc.examined import Examined
from bci_adapt.data.sessions import kinematic_names, labels_of

MAX_JUMP_BIN_S = 0.1  # in wider bins a whole reach is one step
MIN_LAGS = 5


def check_labels(seen: Examined) -> dict[str, Any]:
    """Run every check of labels alone; return what the animal did: ranges, speeds, trials."""
    names = kinematic_names(seen.session)
    position = seen.session["position"] if "position" in names else None
    _still_and_jumps(seen, position)
    _speeds(seen, [name for name in names if name.endswith("velocity")])
    _samples(seen, [name for name in names if "derived" not in seen.session[name].attrs])
    _agreement(seen)
    behaviour: dict[str, Any] = {"units": {name: str(seen.session[name].attrs.get("units", "")) for name in names}}
    if position is not None:
        low, high = np.nanpercentile(position.values, [0.1, 99.9], axis=0)
        axes = position[position.dims[1]].values.tolist()
        behaviour["range"] = {a: [float(b), float(c)] for a, b, c in zip(axes, low, high, strict=True)}
    moving = next((name for name in ("velocity", "recorded_velocity") if name in names), None)
    if moving is not None:
        usable = np.asarray(seen.session[f"{moving}_valid"].values.all(axis=1))
        speed = np.sqrt(np.square(seen.session[moving].values).sum(axis=1))
        seen.series.update(speed=speed, speed_usable=usable)
        if usable.any():
            levels = np.percentile(speed[usable], [5, 50, 95, 99])
            behaviour["speed"] = dict(zip(("p5", "p50", "p95", "p99"), map(float, levels), strict=True))
        behaviour["speed_of"] = moving
    if "trial" in seen.session.sizes:
        results, n = np.unique(seen.session["trial_result"].values, return_counts=True)
        lasted = seen.session["trial_stop_s"].values - seen.session["trial_start_s"].values
        behaviour["trials"] = {
            "n": int(seen.session.sizes["trial"]),
            "results": dict(zip(map(str, results), map(int, n), strict=True)),
            "median_s": float(np.median(lasted[np.isfinite(lasted)])) if np.isfinite(lasted).any() else None,
        }
    return behaviour


def _still_and_jumps(seen: Examined, position: xr.DataArray | None) -> None:
    limits, masks = seen.limits, seen.masks
    unit = "" if position is None else str(position.attrs.get("units", ""))
    scale = faults.cm_per_unit(unit)
    extent = masks.still_extent_cm / scale if scale else 0.0
    still_words = f"> {100 * limits.max_still_fraction:g} % stuck within {extent:g} {unit} for > {masks.still_s:g} s"
    jump_words = (
        f"a step of > {100 * limits.jump_range:g} % of the range and > {limits.jump_ratio:g}× the steps beside it"
    )
    if position is None:
        seen.skip("still stretches", still_words, "no position")
        seen.skip("position jumps", jump_words, "no position")
        return
    resting = faults.still_bins(position.values, seen.segment, seen.bin_s, masks.still_s, extent)
    silent = faults.silent_bins(seen.counts, seen.segment, seen.bin_s, masks.silent_s)
    still = faults.stuck_bins(resting, position.values, seen.segment, silent)
    seen.series["still"] = still
    seen.add(
        "still stretches",
        still,
        "bins",
        still_words,
        f"{still.sum() * seen.bin_s:.1f} s, {100 * still.mean():.1f} %"
        + (f"; the animal at rest {(resting & ~still).sum() * seen.bin_s:.1f} s" if (resting & ~still).any() else ""),
        limits.max_still_fraction,
    )
    if seen.bin_s > MAX_JUMP_BIN_S:
        seen.skip("position jumps", jump_words, f"bins above {MAX_JUMP_BIN_S:g} s hold a whole movement")
        return
    jumps = faults.position_jumps(position.values, seen.segment, limits.jump_ratio, limits.jump_range)
    seen.series["jumps"] = jumps
    first = ", ".join(f"{seen.session['time'].values[row]:.2f}" for row in np.flatnonzero(jumps)[:3])
    seen.add("position jumps", jumps, "bins", jump_words, f"at {first} s" if first else "none")


def _speeds(seen: Examined, names: list[str]) -> None:
    words = f"> {100 * seen.limits.max_fast_fraction:g} % of bins above {seen.masks.max_speed_cm_s:g} cm/s"
    limits = {name: faults.cm_per_unit(str(seen.session[name].attrs.get("units", ""))) for name in names}
    known = {name: seen.masks.max_speed_cm_s / scale for name, scale in limits.items() if scale}
    if not known:
        seen.skip("implausible speed", words, "no velocity" if not names else "no velocity in a unit of length")
        return
    fast = {name: faults.fast_bins(seen.session[name].values, seen.segment, limit, 0) for name, limit in known.items()}
    worst = max(fast, key=lambda name: int(fast[name].sum()))
    seen.series["fast"] = fast.get("velocity", fast[worst])
    found = ", ".join(f"{name} {flags.sum() * seen.bin_s:.2f} s" for name, flags in fast.items())
    seen.add("implausible speed", fast[worst], "bins", words, found, seen.limits.max_fast_fraction)


def _samples(seen: Examined, names: list[str]) -> None:
    limits = seen.limits
    words = {
        "missing samples": f"> {100 * limits.max_missing_fraction:g} % of samples",
        "few values": f"< {limits.min_distinct} distinct values",
        "saturated axes": f"> {100 * limits.max_saturated_fraction:g} % at the largest or smallest value",
    }
    if not names:
        for name, threshold in words.items():
            seen.skip(name, threshold, "no labels")
        return
    entries: dict[str, tuple[float, int, float]] = {}  # axis → missing, distinct, saturated
    for name in names:
        axes = seen.session[seen.session[name].dims[1]].values.tolist()
        for axis, values in zip(axes, seen.session[name].values.T, strict=True):
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
    few = (distinct > 0) & (distinct < limits.min_distinct) & (seen.valid.size >= 10 * limits.min_distinct)
    full = ~few & (saturated > limits.max_saturated_fraction)
    for name, flags, found in (
        ("missing samples", missing > limits.max_missing_fraction, f"at most {100 * missing.max():.1f} %"),
        ("few values", few, f"at least {distinct.min()}"),
        ("saturated axes", full, f"at most {100 * saturated.max():.1f} %"),
    ):
        listed = ", ".join(of[i] for i in np.flatnonzero(flags))
        seen.add(name, flags, "axes", words[name], f"{found}{f': {listed}' if listed else ''}")


def _agreement(seen: Examined) -> None:
    name, limits = "recorded velocity", seen.limits
    words = f"correlation < {limits.min_agreement:g} or scale beyond {limits.max_scale:g}×"
    both = [each for each in ("recorded_velocity", "velocity") if each in seen.session]
    if len(both) < 2 or seen.session[both[0]].dims != seen.session[both[1]].dims:
        seen.skip(name, words, f"no {'position to derive one from' if 'velocity' not in both else 'recorded one'}")
        return
    recorded, derived = (seen.session[each].values for each in both)
    usable = seen.session["velocity_valid"].values
    correlation, scale = faults.velocity_agreement(recorded, derived, usable)
    units = [faults.cm_per_unit(str(seen.session[each].attrs.get("units", ""))) for each in both]
    scale *= units[0] / units[1] if units[0] and units[1] else 1.0
    good = correlation >= limits.min_agreement and 1 / limits.max_scale <= scale <= limits.max_scale
    seen.add(
        name,
        [not good],
        "comparison",
        words,
        f"against the difference of position: correlation {correlation:.3f}, scale {scale:.3g}",
    )


def check_lag(seen: Examined) -> dict[str, Any]:
    """Check at which lag neurons tell of the labels; return the curve over lags, {} where there is none."""
    limits, bin_s = seen.limits, seen.bin_s
    known = f"held-out correlation < {limits.min_label_correlation:g} at every lag"
    inside = f"best lag at an end of {1000 * limits.lag_from_s:g} … {1000 * limits.lag_to_s:g} ms, or "
    inside += f"> {1000 * limits.max_lag_split_s:g} ms apart in the halves"
    names = kinematic_names(seen.session)
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
        target = labels_of(seen.session, variable)
        moments = faults.lag_moments(seen.counts, target, seen.segment, seen.use, lags)
        why = "" if moments.size else "too few bins with usable labels"
    if why:
        seen.skip("neurons tell labels", known, why)
        seen.skip("lag of labels", inside, why)
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
    seen.add("neurons tell labels", [not says], "sessions", known, best)
    if not says:
        seen.skip("lag of labels", inside, "no lag decodes")
        return lag
    apart = float(np.ptp(half_peaks)) > max(limits.max_lag_split_s, bin_s) + 1e-9
    seen.add(
        "lag of labels",
        [not interior or apart],
        "sessions",
        inside,
        f"{1000 * lags_s[peak]:g} ms (90 % of bootstraps {1000 * low:g} … {1000 * high:g}; halves "
        f"{1000 * half_peaks[0]:g} and {1000 * half_peaks[1]:g})",
    )
    return lag
