"""Which bin width and which lag: cross-validated ridge decoding of one session over a grid of both.

The lag is that of the label: spikes in the window that ends at t decode the bin of movement that ends at t + lag, so a
positive lag means that neurons lead the movement. Every bin width sees the same window of `history_s` seconds. Mind
what a label is: velocity derived by backward difference of binned positions lags the hand by half a bin or more, which
moves the best lag up by as much.

R² of different bin widths are not comparable as they are, because the velocity of a narrow bin is noisier. So each
score is given twice: at the bin's own resolution, and with prediction and truth averaged over the narrowest bin that
all widths divide, on the very same stretches of time for all widths and lags.

Everything the session holds goes into the choice. Numbers chosen on a target session are not independent of its test
score: scan source sessions only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from bci_adapt import metrics
from bci_adapt.data.binning import (
    TICKS_PER_S,
    bin_ticks,
    lagged,
    rebin_counts,
    rebin_rows,
    require_bin_width,
    segment_slices,
    segment_starts,
    to_ticks,
    whole_bins,
)
from bci_adapt.data.sessions import labels_of
from bci_adapt.errors import InputError

Array = NDArray[np.float64]

CAUTION = (
    "All data of this session go into the choice: numbers chosen on a target session are not independent of its test "
    "score. Scan source sessions only."
)
N_FOLDS = 5
PENALTIES = 10.0 ** np.arange(-5, 2)  # times the number of training bins, of z-scored features
MAX_FEATURES = 4000  # five square matrices of this size fit into a gigabyte
MAX_COMMON_S = 0.5  # velocity averaged over longer is not what is decoded


@dataclass(frozen=True)
class Score:
    """One bin width at one lag. R² is variance-weighted over axes, on bins that the fold's decoder never saw.

    `r2`: at the bin's own resolution; `r2_common`: averaged over `Scan.common_s`; `r2_common_sd`: its standard
    deviation over folds. `penalties`: chosen in each fold, per training bin.
    """

    bin_s: float
    lag_s: float
    r2: float
    r2_common: float
    r2_common_sd: float
    penalties: list[float]


@dataclass(frozen=True)
class Scan:
    """The whole grid; `best` has the highest `r2_common`, `notes` say where that is at an edge."""

    session_id: str
    variable: str
    unit: str
    history_s: float
    common_s: float
    block_s: float
    gap_s: float
    n_folds: int
    seconds_scored: float
    scores: list[Score]
    best: Score
    notes: list[str]
    caution: str = CAUTION

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain dictionaries, lists and numbers."""
        return asdict(self)


def scan(
    load: Callable[[float], xr.Dataset],
    bins_s: Sequence[float],
    lags_s: tuple[float, float],
    *,
    variable: str = "velocity",
    step_s: float | None = None,
    history_s: float | None = None,
    block_s: float = 20.0,
    say: Callable[[str], None] = lambda text: None,
) -> Scan:
    """Score every bin width of `bins_s` at every lag from `lags_s[0]` to `lags_s[1]`, a bin apart or about `step_s`.

    `load` returns the session at a bin width: `rebin` of a session, or one prepared anew. `history_s` is the window of
    spikes, by default the common resolution, the least that sees the same of the neurons at every width.

    Cross-validation: stretches of at least `block_s` (10 s or more) within a segment go to five folds in turn, and
    bins that follow the stretch before too closely (`Scan.gap_s`, 1 s or more) are left out, so that no window and no
    lag reaches from one fold into another. Shorter segments share a stretch. The penalty of each fold is chosen by
    another fold of its training part. `InputError` for widths without a common multiple of at most 0.5 s (or the widest
    bin, if that is wider), a window that is not a multiple of every width, a variable that is not there, or too little
    data.
    """
    widths, window, common = _widths_and_window(bins_s, lags_s, history_s, block_s)
    # The last rows of a stretch see labels up to the largest lag ahead, the first ones look back; and half a second.
    gap_s = max(1.0, 0.5 + max(lags_s[1], 0.0) + max(window / TICKS_PER_S, -lags_s[0]))
    grids = []
    for width in widths:
        bin_s = width / TICKS_PER_S
        say(f"bins of {bin_s:g} s")
        session = load(bin_s)
        grids.append(_Grid(session, variable, _lags(lags_s, step_s, width), window // width, common, block_s, gap_s))
    kept = grids[0].stretches.copy()
    for grid in grids:
        for ends in grid.common_ends:
            kept = np.intersect1d(kept, ends)
    if len(kept) < 2:
        raise InputError("no stretch of time could be scored at every bin width and lag: scan fewer lags or widths")
    scores = [score for grid in grids for score in grid.scores(kept)]
    best = max(scores, key=lambda score: score.r2_common)
    session_id, unit = grids[0].session_id, grids[0].unit
    return Scan(
        session_id=session_id,
        variable=variable,
        unit=unit,
        history_s=window / TICKS_PER_S,
        common_s=common / TICKS_PER_S,
        block_s=block_s,
        gap_s=gap_s,
        n_folds=N_FOLDS,
        seconds_scored=len(kept) * common / TICKS_PER_S,
        scores=scores,
        best=best,
        notes=_edges(scores, best),
    )


def _widths_and_window(
    bins_s: Sequence[float], lags_s: tuple[float, float], history_s: float | None, block_s: float
) -> tuple[list[int], int, int]:
    """The bin widths, the window of spikes and the common resolution, all in ticks; `InputError` see `scan`."""
    widths = sorted({require_bin_width(bin_s) for bin_s in bins_s})
    if not widths:
        raise InputError("at least one bin width is needed, such as --bin 0.02,0.05")
    if not -2 <= lags_s[0] <= lags_s[1] <= 2:
        raise InputError(f"lags must be given from low to high within ±2 s, got {lags_s[0]:g} to {lags_s[1]:g}")
    if block_s < 10:
        raise InputError(f"stretches for cross-validation must last 10 s or more, got {block_s:g} s")
    common = math.lcm(*widths)
    if common > max(MAX_COMMON_S * TICKS_PER_S, widths[-1]):
        raise InputError(
            f"bin widths {', '.join(f'{w / TICKS_PER_S:g}' for w in widths)} s have no common multiple of at most "
            f"{MAX_COMMON_S:g} s, at which they could be compared: choose widths such as 0.01, 0.02, 0.05"
        )
    window = common if history_s is None else bin_ticks(history_s)
    if any(window % width for width in widths):
        raise InputError(
            f"the window of {window / TICKS_PER_S:g} s is not a whole number of bins of every width: choose a multiple "
            f"of {common / TICKS_PER_S:g} s"
        )
    return widths, window, common


def rebin(session: xr.Dataset, bin_s: float, variable: str = "velocity") -> xr.Dataset:
    """Return a session in wider bins, with `variable` its only kinematic: counts summed, movement averaged.

    A wide bin is observed, and its label usable, when all of its bins are. Averaged velocity is not quite what a
    preparation from positions at the wide bin would give. `InputError` unless `bin_s` is a whole multiple.
    """
    old_s = float(session.attrs["bin_s"])
    labels = labels_of(session, variable)
    rows = rebin_rows(session["segment"].values, old_s, bin_s)
    counts = session["counts"].values
    summed = rebin_counts(counts, rows) if counts.dtype.kind in "ui" else counts[rows].mean(axis=1)
    dims = session[variable].dims
    return xr.Dataset(
        {
            "counts": (("time", "channel"), summed),
            "segment": ("time", session["segment"].values[rows[:, 0]]),
            "valid": ("time", session["valid"].values[rows].all(axis=1)),
            variable: (dims, (wide := labels[rows].mean(axis=1)), session[variable].attrs),
            f"{variable}_valid": (dims, np.isfinite(wide)),
        },
        {"time": ("time", session["time"].values[rows[:, -1]])},
        session.attrs | {"bin_s": bin_s},
    )


def _lags(lags_s: tuple[float, float], step_s: float | None, width: int) -> list[int]:
    """Lags in whole bins of `width` ticks within the range: all of them, or those nearest to steps of `step_s`."""
    low, high = (int(to_ticks(lag)) for lag in lags_s)
    first, last = -(-low // width), high // width
    every = np.arange(first, last + 1)
    if step_s is not None:
        if not step_s > 0:
            raise InputError(f"the step between lags must be positive, got {step_s:g} s")
        wanted = np.arange(low, high + 1, bin_ticks(step_s)) / width
        every = np.unique(np.clip(np.rint(wanted).astype(int), first, last)) if len(every) else every
    if not len(every):
        raise InputError(
            f"there is no whole number of bins of {width / TICKS_PER_S:g} s between {lags_s[0]:g} and {lags_s[1]:g} s"
        )
    return every.tolist()


def _edges(scores: Sequence[Score], best: Score) -> list[str]:
    notes = []
    for name, what in (("bin_s", "bin width"), ("lag_s", "lag")):
        tried = sorted({getattr(s, name) for s in scores if name == "bin_s" or s.bin_s == best.bin_s})
        value = getattr(best, name)
        if len(tried) > 1 and value in (tried[0], tried[-1]):
            side = "smallest" if value == tried[0] else "largest"
            notes.append(f"the best {what}, {value:g} s, is the {side} that was tried: extend the range beyond it")
    if any(penalty in (PENALTIES[0], PENALTIES[-1]) for penalty in best.penalties):
        notes.append("a ridge penalty at the end of its range was chosen for the best entry")
    return notes


def fold_stretches(segment: NDArray[np.integer], n_stretch: int) -> NDArray[np.int64]:
    """Return the number of the stretch that each row of `segment` (n_bins,) belongs to.

    A segment of at least `n_stretch` rows is cut into equal stretches of at least that many; shorter ones in a row are
    put together until they reach it. No stretch holds a part of a long segment and anything else.
    """
    stretch = np.zeros(len(segment), dtype=np.int64)
    number, filled = 0, 0
    for rows in segment_slices(segment):
        length = rows.stop - rows.start
        pieces = length // n_stretch
        if filled and (pieces or filled >= n_stretch):
            number, filled = number + 1, 0
        if pieces:
            stretch[rows] = number + np.arange(length) * pieces // length
            number += pieces
        else:
            stretch[rows] = number
            filled += length
    return stretch


def _starts(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Return whether each row is the first of a run of equal values."""
    first = np.zeros(len(values), dtype=bool)
    first[segment_starts(values)] = True
    return first


def _rows_since(starts: NDArray[np.bool_]) -> NDArray[np.int64]:
    rows = np.arange(len(starts))
    return rows - np.maximum.accumulate(np.where(starts, rows, 0))


class _Grid:
    """One bin width: out-of-fold predictions at every lag."""

    def __init__(
        self,
        session: xr.Dataset,
        variable: str,
        lags: list[int],
        n_history: int,
        common: int,
        block_s: float,
        gap_s: float,
    ):
        self.session_id = str(session.attrs.get("session_id", "session"))
        labels = labels_of(session, variable)
        self.unit, self.bin_s = str(session[variable].attrs.get("units", "")), float(session.attrs["bin_s"])
        self.lags, self.n_history = lags, n_history
        counts, segment = session["counts"].values, session["segment"].values
        self.root = np.sqrt(counts, dtype=np.float64) if counts.dtype.kind in "ui" else counts
        self.n_axes = labels.shape[1]
        n_features = n_history * counts.shape[1]
        if n_features > MAX_FEATURES:
            raise InputError(
                f"{n_history} bins of {counts.shape[1]} channels are {n_features:,} features, at most {MAX_FEATURES:,} "
                "are fitted: use wider bins or a shorter window"
            )
        self.labels = np.concatenate([lagged(labels, segment, lag) for lag in lags], axis=1)

        stretch = fold_stretches(segment, whole_bins(block_s, self.bin_s))
        starts, time_s = _starts(stretch), session["time"].values
        before_s = np.concatenate([[-np.inf], time_s[np.flatnonzero(starts)[1:] - 1]])
        observed = session["valid"].values
        whole = observed & (_rows_since(_starts(segment) | _starts(observed)) >= n_history - 1)
        usable = whole & np.isfinite(self.labels).all(axis=1)
        usable &= time_s - before_s[np.cumsum(starts) - 1] >= gap_s
        self.rows = np.flatnonzero(usable)
        self.fold = stretch[self.rows] % N_FOLDS
        n_stretches = len(np.unique(stretch[self.rows]))
        if n_stretches < 2 * N_FOLDS:
            raise InputError(
                f"{self.session_id}: {n_stretches} stretches of {block_s:g} s have neurons and {variable}, at "
                f"least {2 * N_FOLDS} are needed for {N_FOLDS} folds: use a longer session or shorter ones (10 s or "
                "more)"
            )
        self.truth = self.labels[self.rows]
        self.predictions, self.penalties = self._predict()

        groups = rebin_rows(segment, self.bin_s, common / TICKS_PER_S)
        ends = to_ticks(session["time"].values)
        self.stretches = ends[groups[:, -1]]
        self.common_ends, self._common = [], []
        for number, lag in enumerate(lags):
            place = np.full(len(segment), -1)
            place[self.rows + lag] = np.arange(len(self.rows))
            members = place[groups]
            members = members[(members >= 0).all(axis=1)]
            self._common.append((members, number))
            self.common_ends.append(ends[(self.rows + lag)[members[:, -1]]])

    def _features(self, rows: NDArray[np.integer]) -> Array:
        """√counts of the bins of the window, (n_rows, n_history * n_channels)."""
        return np.concatenate([self.root[rows - back] for back in range(self.n_history)], axis=1)

    def _predict(self) -> tuple[Array, Array]:
        """Out-of-fold predictions (n_rows, n_lags * n_axes), and penalties chosen (n_lags, n_folds)."""
        y = self.truth
        size = self.n_history * self.root.shape[1] + 1
        squares, products, powers = np.zeros((N_FOLDS, size, size)), np.zeros((N_FOLDS, size, y.shape[1])), []
        for fold in range(N_FOLDS):
            inside = np.flatnonzero(self.fold == fold)
            powers.append((np.square(y[inside]).sum(axis=0), y[inside].sum(axis=0), len(inside)))
            for part in np.array_split(inside, max(len(inside) // 4096, 1)):  # the whole would not fit into memory
                x = np.column_stack([self._features(self.rows[part]), np.ones(len(part))])
                squares[fold] += x.T @ x
                products[fold] += x.T @ y[part]
        predictions = np.empty_like(y)
        chosen = np.zeros((len(self.lags), N_FOLDS))
        for fold in range(N_FOLDS):
            inner = (fold + 1) % N_FOLDS
            fitted = [k for k in range(N_FOLDS) if k not in (fold, inner)]
            spread = squares[inner], products[inner], powers[inner]
            weights = _ridge(squares[fitted].sum(axis=0), products[fitted].sum(axis=0))
            score = np.array([_r2_from_sums(w, *spread, self.n_axes) for w in weights])
            best = np.argmax(score, axis=0)
            chosen[:, fold] = PENALTIES[best]
            fitted.append(inner)
            weights = _ridge(squares[fitted].sum(axis=0), products[fitted].sum(axis=0))
            picked = weights[np.repeat(best, self.n_axes), :, np.arange(y.shape[1])].T
            inside = np.flatnonzero(self.fold == fold)
            for part in np.array_split(inside, max(len(inside) // 4096, 1)):
                predictions[part] = self._features(self.rows[part]) @ picked[:-1] + picked[-1]
        return predictions, chosen

    def scores(self, kept: NDArray[np.integer]) -> list[Score]:
        """Score every lag; `kept` holds the ends, in ticks, of the stretches at common resolution to score."""
        found = []
        for (members, number), ends, lag in zip(self._common, self.common_ends, self.lags, strict=True):
            columns = slice(number * self.n_axes, (number + 1) * self.n_axes)
            truth, decoded = self.truth[:, columns], self.predictions[:, columns]
            chosen = members[np.isin(ends, kept)]
            truth_common, decoded_common = truth[chosen].mean(axis=1), decoded[chosen].mean(axis=1)
            fold = self.fold[chosen[:, -1]]
            folds = [metrics.r2(truth_common[fold == k], decoded_common[fold == k]) for k in np.unique(fold)]
            found.append(
                Score(
                    bin_s=self.bin_s,
                    lag_s=lag * bin_ticks(self.bin_s) / TICKS_PER_S,
                    r2=metrics.r2(truth, decoded),
                    r2_common=metrics.r2(truth_common, decoded_common),
                    r2_common_sd=float(np.std(folds, ddof=1)) if len(folds) > 1 else float("nan"),
                    penalties=self.penalties[number].tolist(),
                )
            )
        return found


def _ridge(square: Array, product: Array) -> Array:
    """Weights (n_penalties, n_features + 1, n_outputs) from the sums over training bins; the constant comes last.

    Features are z-scored by the training bins; the penalty leaves the constant alone.
    """
    from scipy.linalg import cho_factor, cho_solve

    n = square[-1, -1]
    mean = square[-1, :-1] / n
    centred = square[:-1, :-1] - n * np.outer(mean, mean)
    spread = np.sqrt(np.maximum(np.diag(centred) / n, 0.0))
    spread = np.where(spread > 1e-9, spread, 1.0)
    means = product[-1] / n
    right = (product[:-1] - np.outer(mean, product[-1])) / spread[:, None]
    left = centred / np.outer(spread, spread)
    weights = np.empty((len(PENALTIES), *product.shape))
    for place, penalty in enumerate(PENALTIES):
        w = cho_solve(cho_factor(left + penalty * n * np.eye(len(left))), right) / spread[:, None]
        weights[place] = np.concatenate([w, (means - mean @ w)[None]])
    return weights


def _r2_from_sums(weights: Array, square: Array, product: Array, power: tuple[Array, Array, int], n_axes: int) -> Array:
    """Variance-weighted R² (n_lags,) of `weights` on a fold of which only the sums are kept."""
    squares, totals, n = power
    error = squares - 2 * (weights * product).sum(axis=0) + (weights * (square @ weights)).sum(axis=0)
    spread = squares - totals**2 / n
    return 1 - error.reshape(-1, n_axes).sum(axis=1) / np.maximum(spread.reshape(-1, n_axes).sum(axis=1), 1e-300)
