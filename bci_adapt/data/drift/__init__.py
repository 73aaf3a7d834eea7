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

import numpy as np

from bci_adapt.data.binning import bin_ticks
from bci_adapt.data.drift.distances import Distances
from bci_adapt.data.drift.movement import behaviour, direction_distance
from bci_adapt.data.drift.rates import rate_change
from bci_adapt.data.drift.reported import Change, Drift, Estimate, Settings
from bci_adapt.data.drift.sides import MIN_BLOCKS, Day, Part, Side, day, match
from bci_adapt.data.drift.tuning import fit, student_interval, tuning_change
from bci_adapt.errors import InputError

__all__ = ["Day", "Drift", "Estimate", "Settings", "behaviour", "day", "drift", "match"]


def drift(source: Day, target: Day, settings: Settings | None = None) -> Drift:
    """Compare two sessions. Sides without labels give rates and distances only, which `Drift.notes` says.

    `InputError` for different bin widths, for no channel in common (with both lists) or for too little data.
    """
    settings = settings or Settings()
    channels = match(source, target)
    _require_one_kind(source, target)
    first, second = (Side(each, channels["common"], number, settings) for number, each in enumerate((source, target)))
    notes = _why_no_tuning(first, second)
    distances = Distances(first, second, settings)
    comparable, changes, medians = not notes, [], []
    for words, parts in (("", _whole(first, second)), (" within the source", _halves(first, second))):
        tuning = None
        if comparable and min(part.labelled.sum() for part in parts) >= MIN_BLOCKS // 2:
            a, b = (fit(part, first.rms_speed) for part in parts)
            tuning, median = tuning_change(a, b, settings)
            medians.append(median)
        elif comparable:
            notes.append(
                f"fewer than {MIN_BLOCKS // 2} blocks of {settings.block_s:g} s have labels that move: no tuning{words}"
            )
        changes.append(
            Change(
                seconds=(float(parts[0].seconds.sum()), float(parts[1].seconds.sum())),
                rates=rate_change(*parts, channels["common"], settings),
                tuning=tuning,
                distance=distances.between(parts),
                direction_distance=direction_distance(*parts, first) if comparable else None,
            )
        )
    excess = None
    if len(medians) == 2 and np.isfinite(medians[0][0] - medians[1][0]):
        excess = student_interval(medians[0] - medians[1], min(first.n_blocks, second.n_blocks), settings)
    gap = (target.start.date() - source.start.date()).days if source.start and target.start else None
    return Drift(
        source=source.session_id,
        target=target.session_id,
        day_gap=gap,
        bin_s=source.bin_s,
        variable=source.variable,
        unit=source.unit,
        channels=channels,
        across=changes[0],
        within=changes[1],
        pd_excess_deg=excess,
        behaviour={"source": behaviour(source), "target": behaviour(target)},
        notes=notes,
        settings=settings,
    )


def _require_one_kind(source: Day, target: Day) -> None:
    """Raise `InputError` unless both sessions hold the same kind of counts, of equally wide bins."""
    if bin_ticks(source.bin_s) != bin_ticks(target.bin_s):
        raise InputError(
            f"{source.session_id} is binned at {source.bin_s:g} s and {target.session_id} at {target.bin_s:g} s: "
            "counts of different bins cannot be compared; prepare both with one --bin-s"
        )
    if source.variable != target.variable:
        raise InputError(f"{source.variable} of one session cannot be compared with {target.variable} of another")
    if source.spikes != target.spikes:
        raise InputError(f"{source.session_id} and {target.session_id}: one holds spike counts and the other power")


def _why_no_tuning(first: Side, second: Side) -> list[str]:
    """Why tuning of two sessions cannot be compared; [] where it can."""
    source, target = first.day, second.day
    without = [side.day.session_id for side in (first, second) if side.labels is None]
    if without:
        return [f"no {source.variable} in {' and '.join(without)}: rates and distances only"]
    if first.n_axes != second.n_axes or source.unit != target.unit:
        return [
            f"{source.variable} has {first.n_axes} axes in {source.unit!r} and {second.n_axes} in {target.unit!r}: "
            "tuning cannot be compared; rates and distances only"
        ]
    return []


def _whole(first: Side, second: Side) -> tuple[Part, Part]:
    return Part(first, 0, first.n_blocks), Part(second, 0, second.n_blocks)


def _halves(first: Side, second: Side) -> tuple[Part, Part]:
    """The halves of the first session, the second of them no longer than the other session."""
    half = first.n_blocks // 2
    return Part(first, 0, half), Part(first, half, min(first.n_blocks, half + second.n_blocks))
