"""Checks of the recording as a whole: its clock, gaps and trials."""

from __future__ import annotations

from typing import Any

import numpy as np

from bci_adapt.data.binning import TICKS_PER_S, bin_ticks, segment_slices, to_ticks
from bci_adapt.data.qc.examined import Examined
from bci_adapt.data.qc.removal import removed_channels
from bci_adapt.data.qc.report import FLAG, PASS, Check


def check_clock(seen: Examined) -> None:
    """Check the clock, gaps, short segments, and trials that do not lie within the recording."""
    limits, ticks = seen.limits, to_ticks(seen.session["time"].values)
    segments, width = segment_slices(seen.segment), bin_ticks(seen.bin_s)
    starts = np.array([ticks[rows.start] for rows in segments]) - width
    stops = np.array([ticks[rows.stop - 1] for rows in segments])
    gaps = starts[1:] - stops[:-1]
    lost = int(gaps[gaps > 0].sum())
    share = lost / (lost + ticks.size * width)
    seen.add("clock", gaps < 0, "gaps", "time that runs backwards", f"{np.count_nonzero(gaps < 0)} times")
    seen.checks.append(
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
    seen.add(
        "short segments",
        np.repeat(short, length),
        "bins",
        f"> {100 * limits.max_short_segment_fraction:g} % in segments of < {limits.short_segment_s:g} s",
        f"segments: {np.count_nonzero(short)} of {len(segments)}",
        limits.max_short_segment_fraction,
    )
    words = f"> {100 * limits.max_bad_trials:g} % outside the recording or ending before their start"
    if not seen.session.sizes.get("trial"):
        seen.skip("trials", words, "no trials")
        return
    begin, end = (seen.session[f"trial_{name}_s"].values for name in ("start", "stop"))
    bad = ~(begin >= starts.min() / TICKS_PER_S - seen.bin_s) | ~(begin <= stops.max() / TICKS_PER_S) | (end < begin)
    seen.add("trials", bad, "trials", words, f"{np.count_nonzero(bad)} of {bad.size}", limits.max_bad_trials)


def summary(seen: Examined) -> dict[str, Any]:
    """What session it is, and how much of it was observed."""
    attrs = seen.session.attrs
    n_bins = seen.valid.size
    return {
        **{name: str(attrs.get(name, "")) for name in ("session_id", "subject", "session_start", "source_file")},
        "bin_s": seen.bin_s,
        "n_channels": int(seen.counts.shape[1]),
        "n_bins": n_bins,
        "n_segments": len(segment_slices(seen.segment)),
        "duration_s": n_bins * seen.bin_s,
        "observed_s": float(seen.valid.sum() * seen.bin_s),
        "removed_channels": removed_channels(seen.session),
    }
