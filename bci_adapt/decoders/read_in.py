"""A network twice: on the columns as they are, and behind a read-in that is learned anew, so that none is trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from bci_adapt.decoders.inputs import Bins
from bci_adapt.decoders.label_features import label_features, variables_of
from bci_adapt.decoders.online_rnn import SMALL, OnlineDecoder
from bci_adapt.decoders.stored import Form
from bci_adapt.decoders.timing import arrival_bins, delay_bins
from bci_adapt.ground.one_by_one import OneByOne
from bci_adapt.learning.normaliser import FLOOR, Normaliser
from bci_adapt.learning.online import run

WINDOW_S, SPACING_S = 0.5, 0.125
"""Labels this long before and after a bin, and how far apart they are taken, say what the network's inputs are then."""
N_DAYS = 4  # training sessions, the last ones, from which that is known
LEAST_SHRUNK = 0.15  # of a latent: what the read-in keeps of it is made good by no more than 1 over this
UNSURE_S = 25.0  # of labels, at which the penalty is twice what it comes to
CARRIED_S = 30.0  # of the last session's evidence with which a new one begins


class ReadInDecoder(OnlineDecoder):
    """An `OnlineDecoder` twice: once on the columns as they are, once behind a linear read-in A that is learned from
    the day's labels in closed form, so that it matters nothing which channel a column holds. Both learn online; what
    they predict is added, by shares that follow from how well each did so far.

    Training keeps what the network's inputs are, in the mean, when the labels around a bin are φ (velocity, speed and
    their product within half a second: `label_features`): u = B φ, by least squares over the last four sessions. On a
    new day the normalised counts z are regressed on it, every `read_in_every_s`, over all labels that are known,

        A = (Σ z zᵀ / n + λ I)⁻¹ Σ z (B φ)ᵀ / n,

    and because a regression shrinks what is noisy, every principal direction of B φ is stretched to the size that it
    has there. The network behind z A is the pretrained one, so its dynamics are kept. The day's own running statistics
    normalise z. Shares minimise the squared error of the sum over the last `share_memory_s`, each between 0 and 1.

    Without labels it predicts what the `OnlineDecoder` does. A bin costs twice as much.

    Parameters
    ----------
    read_in_every_s : how often the read-in and the shares are computed.
    read_in_rank : principal directions of B φ that are kept.
    read_in_penalty : λ, for normalised counts, where there are many labels; more while there are few.
    share_memory_s : e-folding time of the evidence for the shares.
    others : as in `OnlineDecoder`.
    """

    name: ClassVar[str] = "read_in"
    description: ClassVar[str] = "recurrent network twice, as it is and behind a read-in learned from the day's labels"
    stored: ClassVar[Mapping[str, Form]] = {
        **OnlineDecoder.stored,
        "encoding_": Form("label_features channels"),
        "moments_": Form("sums sums"),
        "read_in_": Form("channels channels"),
        "ready_": Form(kind="bool"),
        "share_": Form("outputs", least=0.0),
        "errors_": Form("outputs 2 2"),
        "own_sums_": Form("2 channels"),
        "own_bins_": Form(least=0.0),
        "own_mean_": Form("channels"),
        "own_variance_": Form("channels", least=0.0),
        "session_bins_": Form(kind="int64", least=0),
        "waiting_X_": Form("waiting channels"),
        "waiting_y_": Form("waiting outputs"),
        "waiting_known_": Form("waiting outputs", "bool"),
        "waiting_pairs_": Form("waiting 2 outputs"),
        **dict.fromkeys(("waiting_seen_", "waiting_ready_"), Form("waiting", "bool")),
        "waiting_arrives_": Form("waiting", "int64"),
        "waiting_stretch_": Form("waiting", "int64"),
        "taken_": Form(kind="int64", least=0, most="waiting"),
    }
    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "": {"read_in_every_s": 0.5, "share_memory_s": 5.0, **SMALL},
        "turns": {"read_in_every_s": 0.5, "n_members": 2, "take_turns": True, **SMALL},
    }
    unmet_checks: ClassVar[Mapping[str, str]] = {
        **OnlineDecoder.unmet_checks,
        "check_do_not_raise_errors_in_init_or_set_params": "the network's parameters are handed on by name",
    }

    def __init__(
        self,
        read_in_every_s: float = 5.0,
        read_in_rank: int = 20,
        read_in_penalty: float = 0.05,
        share_memory_s: float = 60.0,
        **network: Any,
    ):
        super().__init__(**network)
        self.read_in_every_s = read_in_every_s
        self.read_in_rank = read_in_rank
        self.read_in_penalty = read_in_penalty
        self.share_memory_s = share_memory_s

    @classmethod
    def _get_param_names(cls) -> list[str]:
        return sorted([*super()._get_param_names(), *OnlineDecoder._get_param_names()])

    # -- training ------------------------------------------------------------------------------------------------

    @property
    def start_weights_(self) -> tuple[np.ndarray, np.ndarray]:
        """W and C of the members as they are, then of the same behind the read-in."""
        W, C = (each.reshape(-1, *each.shape[-2:]) for each in super().start_weights_)
        return np.concatenate([W, W]), np.concatenate([C, C])

    def _train_on(self, sessions: Sequence[Bins], extends: bool) -> None:
        super()._train_on(sessions, extends)
        if not self.pretrained:  # the weights to start from stand there twice
            keep = slice(self.n_members) if self.n_members > 1 else 0
            self.W_, self.C_ = self.W_[keep], self.C_[keep]
        self.encoding_ = self._encoding(sessions)
        m, k, width = self.n_features_in_, self.n_outputs_, self.n_features_in_ + 1 + len(self.encoding_)
        self.moments_, self.read_in_, self.ready_ = np.zeros((width, width)), np.eye(m), np.array(False)
        self.share_, self.errors_ = np.zeros(k), np.zeros((k, 2, 2))
        self.own_mean_, self.own_variance_ = self.mean_, self.variance_
        self._clear()

    def _encoding(self, sessions: Sequence[Bins]) -> np.ndarray:
        """B, (n_label_features, n_channels): what normalised counts are in the mean, from features of the labels."""
        gram, products = np.zeros(()), np.zeros(())
        last = range(max(0, len(sessions) - N_DAYS), len(sessions))
        for bins in OneByOne(lambda day: sessions[day], last):
            x = Normaliser.fit(bins.X, bins.observed).apply(bins.X, bins.observed)[0]
            labels = np.where(bins.weight > 0, self._scaled(bins), np.nan)
            features, known = self._label_features(labels, np.cumsum(bins.reset))
            kept = known & bins.observed
            gram = gram + features[kept].T @ features[kept] / max(kept.sum(), 1)
            products = products + features[kept].T @ x[kept] / max(kept.sum(), 1)
        return np.linalg.solve(gram + 1e-3 * np.eye(len(products)), products)

    def _label_features(self, labels: np.ndarray, stretch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        reach, spacing = self._window_bins, max(1, round(SPACING_S / self.bin_s_))
        return label_features(labels, stretch, reach, spacing, variables_of(self.metadata_, self.n_outputs_))

    @property
    def _window_bins(self) -> int:
        return max(1, round(WINDOW_S / self.bin_s_))

    @property
    def _every(self) -> int:
        return max(1, delay_bins(self.read_in_every_s, self.bin_s_))

    def _lengths(self) -> dict[str, int | None]:
        lags = len(range(-self._window_bins, self._window_bins + 1, max(1, round(SPACING_S / self.bin_s_))))
        n = (2 * self.n_outputs_ + len(variables_of(self.metadata_, self.n_outputs_))) * lags + 1
        return {**super()._lengths(), "label_features": n, "sums": self.n_features_in_ + 1 + n}

    def _clear(self) -> None:
        """Forget what belongs to one session."""
        m, k = self.n_features_in_, self.n_outputs_
        self.own_sums_, self.own_bins_, self.session_bins_ = np.zeros((2, m)), np.array(0.0), np.array(0)
        self.waiting_X_ = np.zeros((0, m))
        self.waiting_y_, self.waiting_known_ = np.zeros((0, k)), np.zeros((0, k), bool)
        self.waiting_pairs_, self.taken_ = np.zeros((0, 2, k)), np.array(0)
        self.waiting_seen_, self.waiting_ready_ = np.zeros(0, bool), np.zeros(0, bool)
        self.waiting_arrives_, self.waiting_stretch_ = np.zeros(0, np.int64), np.zeros(0, np.int64)

    # -- the session ---------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start a new session. The read-in and the shares stay until the new session's labels say otherwise."""
        super().begin()
        n = self.moments_[self.n_features_in_, self.n_features_in_]
        self.moments_ = self.moments_ * min(1.0, CARRIED_S / self.bin_s_ / max(n, 1.0))
        self._clear()

    def _learns(self, bins: np.ndarray) -> np.ndarray:
        return np.tile(super()._learns(bins), (2, 1))

    def _partial_fit(self, bins: Bins, arrives: Any) -> np.ndarray:
        bins, x = self._normalised(bins)
        n_bins = len(x)
        known = arrival_bins(arrives, n_bins, delay_bins(self.label_delay_s, self.bin_s_))
        labels, taught = self._scaled(bins), self._taught(bins.weight)
        first = self.waiting_stretch_[-1] if len(self.waiting_stretch_) else 0
        stretch = first + np.cumsum(bins.reset)
        predictions, at = np.empty((n_bins, self.n_outputs_)), 0
        while at < n_bins:
            until = min(n_bins, at + self._every - int(self.session_bins_) % self._every)
            part = slice(at, until)
            made, self.state_ = run(
                self.state_,
                self._both(x[part], bins.X[part], self.own_mean_, self.own_variance_),
                labels[part],
                taught[..., part, :],
                known[part] - at,
                bins.observed[part],
                bins.reset[part],
                in_place=True,
            )
            pairs = self._pairs(made)
            predictions[part] = self._added(pairs)
            self._keep(bins, part, labels, pairs, known, stretch)
            self._end_of_block(until - at)
            at = until
        return self._unscaled(predictions)

    def _both(self, x: np.ndarray, X: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
        """Inputs (2 n_members, n_bins, n_channels): normalised features as they are, and read in."""
        own = (X - mean) / np.sqrt(variance + FLOOR**2) @ self.read_in_ if self.ready_ else x
        return np.repeat(np.stack([x, own]), self.n_members, axis=0)

    def _pairs(self, made: np.ndarray) -> np.ndarray:
        """Predictions (n_bins, 2, n_outputs), as they are and read in, of those of all networks."""
        return made.reshape(2, self.n_members, *made.shape[1:]).mean(axis=1).transpose(1, 0, 2)

    def _added(self, pairs: np.ndarray) -> np.ndarray:
        return pairs[:, 0] + self.share_ * (pairs[:, 1] - pairs[:, 0])

    def _keep(
        self, bins: Bins, part: slice, labels: np.ndarray, pairs: np.ndarray, known: np.ndarray, stretch: np.ndarray
    ) -> None:
        """Put bins into the queue of those whose labels, and those around them, are waited for."""
        seen = bins.observed[part]
        X = bins.X[part]
        self.own_sums_ = self.own_sums_ + np.stack([X[seen].sum(axis=0), (X[seen] ** 2).sum(axis=0)])
        self.own_bins_ = self.own_bins_ + seen.sum()
        n_bins = len(seen)
        for name, values in {
            "waiting_X_": X,
            "waiting_y_": np.where(bins.weight[part] > 0, labels[part], 0.0),
            "waiting_known_": bins.weight[part] > 0,
            "waiting_pairs_": pairs,
            "waiting_seen_": seen,
            "waiting_ready_": seen & self.ready_,
            "waiting_arrives_": known[part] - part.start,
            "waiting_stretch_": stretch[part],
        }.items():
            setattr(self, name, np.concatenate([getattr(self, name), values]))
        self.waiting_arrives_ = self.waiting_arrives_ - n_bins
        self.session_bins_ = self.session_bins_ + n_bins

    def _end_of_block(self, n_bins: int) -> None:
        """At the end of a block – others are only counted – learn the read-in and the shares from what is known."""
        if self.session_bins_ % self._every:
            return
        self.own_mean_, self.own_variance_, fade = self._own_statistics(self.own_sums_, self.own_bins_)
        self.own_sums_, self.own_bins_ = self.own_sums_ * fade, self.own_bins_ * fade
        due = self._due()
        if due > self.taken_:
            rows = slice(int(self.taken_), due)
            arrived = self.waiting_known_ & (self.waiting_arrives_ < 0)[:, None]
            here = np.where(arrived, self.waiting_y_, np.nan)
            features, known = self._label_features(here, self.waiting_stretch_)
            self._learn_shares(self.waiting_pairs_[rows], np.where(self.waiting_ready_[rows, None], here[rows], np.nan))
            self._learn_read_in(self.waiting_X_[rows], features[rows], known[rows] & self.waiting_seen_[rows])
        keep = max(0, due - 2 * self._window_bins)
        for name in ("X", "y", "known", "pairs", "seen", "ready", "arrives", "stretch"):
            setattr(self, f"waiting_{name}_", getattr(self, f"waiting_{name}_")[keep:])
        self.taken_ = np.array(due - keep)

    def _own_statistics(self, sums: np.ndarray, n: Any) -> tuple[np.ndarray, np.ndarray, float]:
        """The session's mean and variance (n_channels,) from its fading sums, and by how much these fade in a block."""
        fade = np.exp(-self._every * self.bin_s_ / self.normaliser_s) if self.normaliser_s is not None else 1.0
        if n < 2:
            return self.own_mean_, self.own_variance_, float(fade)
        mean = sums[0] / n
        return mean, np.maximum(sums[1] / n - mean**2, 0.0), float(fade)

    def _due(self) -> int:
        """How many waiting rows, the first ones, have all labels around them, or have them never."""
        n, stretch = len(self.waiting_stretch_), self.waiting_stretch_
        if not n:
            return 0
        ends = np.searchsorted(stretch, stretch, side="right") - 1
        last = np.arange(n) + 2 * self._window_bins
        over = (last < n) | (ends < n - 1)  # of a stretch that may go on, the last rows wait for those to come
        known = over & (np.maximum.accumulate(self.waiting_arrives_)[np.minimum(last, ends)] < 0)
        return max(int(self.taken_), n if known.all() else int(np.argmin(known)))

    def _learn_shares(self, pairs: np.ndarray, labels: np.ndarray) -> None:
        """Errors of both predictions (n, 2, n_outputs), and the shares that make their sum best."""
        errors = pairs - labels[:, None]
        told = np.asarray(np.isfinite(errors).all(axis=1))
        if not told.any():
            return
        errors = np.where(told[:, None], errors, 0.0)
        fade = np.exp(-told.sum(axis=0) * self.bin_s_ / self.share_memory_s)
        self.errors_ = fade[:, None, None] * self.errors_ + np.einsum("tio,tjo->oij", errors, errors)
        trusted, both, read = self.errors_[:, 0, 0], self.errors_[:, 0, 1], self.errors_[:, 1, 1]
        apart = trusted + read - 2 * both
        share = np.divide(trusted - both, apart, out=np.zeros_like(apart), where=apart > 0)
        self.share_ = np.clip(share, 0.0, 1.0)

    def _learn_read_in(self, X: np.ndarray, features: np.ndarray, known: np.ndarray) -> None:
        if not known.any():
            return
        rows = np.hstack([X[known], np.ones((known.sum(), 1)), features[known]])
        self.moments_ = self.moments_ + rows.T @ rows
        m = self.n_features_in_
        if self.moments_[m, m] >= self._every:
            self.read_in_, self.ready_ = self._solved(), np.array(True)

    def _solved(self) -> np.ndarray:
        """The read-in (n_channels, n_channels) of the moments so far."""
        m, n = self.n_features_in_, self.moments_[self.n_features_in_, self.n_features_in_]
        moments = self.moments_ / n
        mean, there = moments[m, :m], moments[m, m + 1 :]
        covariance = moments[:m, :m] - np.outer(mean, mean)
        scale = np.sqrt(np.maximum(np.diag(covariance), 0.0) + FLOOR**2)
        penalty = self.read_in_penalty * (1.0 + UNSURE_S / (n * self.bin_s_))
        shared = (moments[:m, m + 1 :] - np.outer(mean, there)) / scale[:, None] @ self.encoding_
        wanted = self.encoding_.T @ (moments[m + 1 :, m + 1 :] - np.outer(there, there)) @ self.encoding_
        regression = np.linalg.lstsq(covariance / np.outer(scale, scale) + penalty * np.eye(m), shared, rcond=None)[0]
        sizes, directions = np.linalg.eigh(wanted)
        rank = min(self.read_in_rank, int((sizes > 1e-9 * max(sizes[-1], 1e-300)).sum()))
        sizes, directions = sizes[::-1][:rank], directions[:, ::-1][:, :rank]
        shrunk = np.einsum("ai,ai->i", regression @ directions, shared @ directions) / sizes
        return regression @ (directions / np.maximum(shrunk, LEAST_SHRUNK)) @ directions.T

    def _predict(self, bins: Bins, continuing: bool) -> np.ndarray:
        state, running = self._predicting(continuing)
        own = self.own_sums_, self.own_bins_, self.own_mean_, self.own_variance_
        sums, n, mean, variance = own if continuing else (np.zeros_like(self.own_sums_), 0.0, *own[2:])
        predictions, at, passed = [np.zeros((0, self.n_outputs_))], 0, int(self.session_bins_) if continuing else 0
        while at < len(bins.X):
            until = min(len(bins.X), at + self._every - passed % self._every)
            part, seen = slice(at, until), bins.observed[at:until]
            x, running = running.apply(bins.X[part], seen)
            both = self._both(x, bins.X[part], mean, variance)
            made, state = run(state, both, None, None, None, seen, bins.reset[part], in_place=True)
            predictions.append(self._added(self._pairs(made)))
            X, passed, at = bins.X[part][seen], passed + until - at, until
            sums, n = sums + np.stack([X.sum(axis=0), (X**2).sum(axis=0)]), n + len(X)
            if not passed % self._every:
                mean, variance, fade = self._own_statistics(sums, n)
                sums, n = sums * fade, n * fade
        return self._unscaled(np.concatenate(predictions))

    def _label_waiting_record(self, y: np.ndarray, delay: int) -> None:
        super()._label_waiting_record(y, delay)
        due, known = self.waiting_arrives_ == 0, np.isfinite(y)
        self.waiting_y_[due] = np.where(known, (y - self.label_mean_) / self.label_scale_, 0.0)
        self.waiting_known_[due] = known

    def with_fitted_statistics(self) -> Self:
        other = super().with_fitted_statistics()
        other.own_mean_, other.own_variance_ = self.mean_, self.variance_
        return other
