"""What a session tells of who its channels are: their correlations with one another, their rates, their variability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from bci_adapt.data.binning import segment_slices
from bci_adapt.data.channels import policy_of
from bci_adapt.data.drift.rates import ACTIVE_HZ
from bci_adapt.data.same_columns.patterns import Array, reliability
from bci_adapt.errors import InputError

PROFILES = ((0.3, 1), (0.1, 1), (1.0, 1), (0.3, 3))
"""Width in seconds of the bins in which channels are correlated, and how many common modes are taken out first. The
first one is what agreement is measured by; the others help to tell which channel is which."""
TRIM = 0.02
"""Share of the bins, the farthest from the mean, that is left out: artefacts that many channels share."""
BLOCK_S = 20.0  # halves of a session are made of every other block
MIN_S = 30.0  # of observed counts


@dataclass(frozen=True)
class Fingerprint:
    """Statistics of one session of m channels.

    `place` (m,) is the column of each channel; `active` (m,) those of at least 0.1 Hz, of power those that vary;
    `rate` (m,) the log rate; `traits` (k, m) what else marks a channel by itself; `profiles` (p, m, m) correlations
    under each of `PROFILES`, `reliability` how well those of the first agree with themselves, from the halves of the
    session: 1 without noise. `named` is False where channels are numbers that mean nothing in another session.
    """

    session_id: str
    channels: tuple[str, ...]
    place: NDArray[np.int64]
    seconds: float
    active: NDArray[np.bool_]
    rate: Array
    traits: Array
    profiles: Array
    reliability: float
    named: bool = True

    def on(self, rows: NDArray[np.integer]) -> Fingerprint:
        """Return it with the channels `rows` alone, in their order."""
        return Fingerprint(
            self.session_id,
            tuple(self.channels[row] for row in rows),
            self.place[rows],
            self.seconds,
            self.active[rows],
            self.rate[rows],
            self.traits[:, rows],
            self.profiles[:, rows][:, :, rows],
            self.reliability,
            self.named,
        )

    def wired(self, order: NDArray[np.integer]) -> Fingerprint:
        """Return it as if column i held what column ``order[i]`` holds: names and places stay."""
        moved = self.on(order)
        return Fingerprint(
            self.session_id,
            self.channels,
            self.place,
            self.seconds,
            moved.active,
            moved.rate,
            moved.traits,
            moved.profiles,
            self.reliability,
            self.named,
        )


def fingerprint(session: xr.Dataset) -> Fingerprint:
    """Read the fingerprint of a session from its counts; `InputError` for less than 30 s of observed counts."""
    counts = session["counts"].values
    return of_counts(
        counts,
        bin_s=float(session.attrs["bin_s"]),
        stretch=session["segment"].values,
        observed=session["valid"].values,
        channels=[str(name) for name in session["channel"].values],
        session_id=str(session.attrs.get("session_id", "session")),
        named=policy_of(session) != "none",
    )


def of_counts(
    counts: NDArray[np.generic],
    *,
    bin_s: float,
    stretch: NDArray[np.integer] | None = None,
    observed: NDArray[np.bool_] | None = None,
    channels: Sequence[str] = (),
    session_id: str = "session",
    named: bool = True,
) -> Fingerprint:
    """Return the fingerprint of counts (n_bins, m), or of power where they are no whole numbers.

    `stretch` (n_bins,) numbers the segments, `observed` (n_bins,) says where neurons were observed: sums reach over no
    edge of either. Channels without names get their numbers. `InputError` for less than 30 s of observed counts.
    """
    n_bins, m = counts.shape
    observed = np.ones(n_bins, dtype=bool) if observed is None else observed
    stretch = np.zeros(n_bins, dtype=np.int64) if stretch is None else stretch
    seconds = float(observed.sum() * bin_s)
    if seconds < MIN_S:
        raise InputError(
            f"{session_id}: neurons are observed for {seconds:.0f} s, at least {MIN_S:g} s are needed to tell channels "
            "by their correlations"
        )
    spikes = counts.dtype.kind in "ui"
    runs = np.concatenate([[0], np.cumsum((np.diff(stretch) != 0) | (np.diff(observed.astype(np.int8)) != 0))])
    sums = {width: summed(counts, observed, runs, max(1, round(width / bin_s))) for width, _ in PROFILES}
    mean_s = counts[observed].mean(axis=0, dtype=np.float64) / bin_s
    profiles = []
    active = mean_s >= ACTIVE_HZ if spikes else counts[observed].std(axis=0) > 0
    steady = 0.0
    for number, (width, modes) in enumerate(PROFILES):
        z, kept = residual(sums[width], modes, spikes)
        profiles.append(correlations(z))
        if number == 0:
            odd = (np.flatnonzero(kept) * width // BLOCK_S).astype(np.int64) % 2 == 1
            halves = correlations(z[~odd][:, active]), correlations(z[odd][:, active])
            steady = reliability(halves, np.flatnonzero(active))
    return Fingerprint(
        session_id=session_id,
        channels=tuple(channels) or tuple(f"column{i}" for i in range(m)),
        place=np.arange(m),
        seconds=seconds,
        active=active,
        rate=np.log(np.maximum(mean_s, 0) + ACTIVE_HZ),
        traits=np.stack([variability(sums[width], spikes) for width in (0.1, 1.0)]),
        profiles=np.stack(profiles),
        reliability=steady,
        named=named,
    )


def summed(
    counts: NDArray[np.generic], observed: NDArray[np.bool_], runs: NDArray[np.integer], n: int
) -> NDArray[np.float64]:
    """Return sums (n_sums, m) over `n` observed bins in a row of one run; what is left over at its end is left out."""
    pieces = []
    for rows in segment_slices(runs):
        whole = (rows.stop - rows.start) // n
        if whole and observed[rows.start]:
            piece = counts[rows.start : rows.start + whole * n].reshape(whole, n, -1)
            pieces.append(piece.sum(axis=1, dtype=np.float64))
    return np.concatenate(pieces) if pieces else np.zeros((0, counts.shape[1]))


def residual(sums: Array, modes: int, spikes: bool) -> tuple[Array, NDArray[np.bool_]]:
    """Return z-scores (n_kept, m) of sums without their `modes` first principal components, and which were kept."""
    x = np.sqrt(sums) if spikes else sums
    x = standard(x)
    far = np.square(x).sum(axis=1)
    kept = far <= np.quantile(far, 1 - TRIM)
    x = standard(x[kept])
    _, vectors = np.linalg.eigh(x.T @ x)
    common = vectors[:, -modes:]
    return x - (x @ common) @ common.T, kept


def standard(x: Array) -> Array:
    """Return columns of mean 0 and variance 1, a constant one zero."""
    spread = x.std(axis=0)
    return (x - x.mean(axis=0)) / np.where(spread > 0, spread, 1.0)


def correlations(x: Array) -> Array:
    """Return Pearson's correlations (m, m) of the columns of `x`; 0 for a constant one and on the diagonal."""
    z = standard(x)
    found = z.T @ z / max(len(z), 1)
    np.fill_diagonal(found, 0.0)
    return found


def variability(sums: Array, spikes: bool) -> Array:
    """Return the log Fano factor (m,) of sums, of power the log of its coefficient of variation."""
    mean, variance = sums.mean(axis=0), sums.var(axis=0)
    if spikes:
        return np.log((variance + 0.05) / (mean + 0.05))
    tiny = np.finfo(np.float64).tiny
    return 0.5 * np.log(np.maximum(variance, tiny)) - np.log(np.maximum(np.abs(mean), tiny))
