"""One session as drift sees it: plain arrays, and its blocks of observed bins with their sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from bci_adapt.data.binning import lagged, whole_bins
from bci_adapt.data.channels import policy_of
from bci_adapt.data.drift.reported import Settings
from bci_adapt.data.sessions import kinematic_names, labels_of, same_recording, start_of
from bci_adapt.errors import InputError

Array = NDArray[np.float64]

MIN_BLOCKS = 8  # in a session; a half then has four


@dataclass(frozen=True)
class Day:
    """One session as plain arrays; what `day` reads from it.

    `counts` (n_bins, n_channels); `segment` and `observed` (n_bins,); `labels` (n_bins, n_axes) in `unit`, NaN where
    not usable, None without them; `position` likewise. `spikes` is False when `counts` holds power, which is taken as
    it is where counts have their square root taken. `start` is None when the date is not known. `named` is False where
    channels are numbers that mean nothing in another session.
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
    named: bool = True


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
        named=policy_of(session) != "none",
    )


def _kinematic(session: xr.Dataset, name: str) -> Array | None:
    """Values (n_bins, n_axes), NaN where not usable; None when there is no such variable."""
    if name not in kinematic_names(session):
        return None
    values = labels_of(session, name)
    return values if np.isfinite(values).all(axis=1).any() else None


def match(source: Day, target: Day) -> dict[str, list[str]]:
    """Return the channel labels ``common``, ``only_source``, ``only_target``, sorted; `InputError` for none common."""
    for each in (source, target):
        if not each.named and not same_recording([source.session_id, target.session_id]):
            raise InputError(
                f"{each.session_id}: its channels are columns or sorted units, whose numbers mean nothing in another "
                "session: name them, or match the sessions first: bci_adapt.match(sessions, by='pool') sums units on "
                "their electrodes, 'unit' says that equal names and by='position' that equal columns are the same"
            )
    a, b = set(source.channels), set(target.channels)
    if not a & b:
        shown = [f"{', '.join(sorted(c)[:8])}{f' and {len(c) - 8} more' if len(c) > 8 else ''}" for c in (a, b)]
        raise InputError(
            f"no channel in common: {source.session_id} has {shown[0]}; {target.session_id} has {shown[1]}. Drift is "
            "measured per channel: compare sessions of one array whose channels are named alike"
        )
    return {"common": sorted(a & b), "only_source": sorted(a - b), "only_target": sorted(b - a)}


class Side:
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
        self.draws = resample(self.n_blocks, settings.n_boot, np.random.default_rng([settings.seed, number]))

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


class Part:
    """Blocks `start` to `stop` of a side."""

    def __init__(self, side: Side, start: int, stop: int):
        self.side, self.chosen = side, slice(start, stop)
        self.seconds, self.totals, self.labelled = (
            each[self.chosen] for each in (side.seconds, side.totals, side.labelled)
        )

    def of(self, rows: Array, block: NDArray[np.integer]) -> tuple[Array, NDArray[np.integer]]:
        """Return those `rows` of the side that lie in the part, and their blocks, given the `block` of each row."""
        inside = (block >= self.chosen.start) & (block < self.chosen.stop)
        return rows[inside], block[inside]


def resample(n_blocks: int, n_boot: int, rng: np.random.Generator) -> Array:
    """Weights of blocks (1 + n_boot, n_blocks): ones, then Rao and Wu's bootstrap within each half."""
    half = n_blocks // 2
    weights = np.ones((1 + n_boot, n_blocks))
    for rows in (slice(0, half), slice(half, n_blocks)):
        n = rows.stop - rows.start
        weights[1:, rows] = rng.multinomial(n - 1, np.full(n, 1 / n), size=n_boot) * (n / (n - 1))
    return weights
