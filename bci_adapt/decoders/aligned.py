"""An aligner without labels: the latent space of the day is turned onto that of the training day."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from bci_adapt.decoders.inputs import Bins
from bci_adapt.decoders.lags import LaggedDecoder, NormalEquations
from bci_adapt.decoders.stored import Form
from bci_adapt.errors import InputError
from bci_adapt.learning.normaliser import FLOOR

# A channel whose loadings are shorter than this (counts have unit variance) says nothing about the rotation; its row
# would match a row of zeros perfectly.
_SHORTEST_LOADING = 0.05
# Private variance that every channel has at least: one that was silent so far must not, with its first spike, throw the
# latents across the room.
_LEAST_PRIVATE = 0.1


def factors(second_moments: np.ndarray, n_latents: int) -> tuple[np.ndarray, np.ndarray]:
    """Factor analysis of a covariance (m, m) of normalised counts: loadings (m, n_latents), private variances (m,).

    Maximum likelihood of the covariance with `_LEAST_PRIVATE` added to every channel.
    """
    from sklearn.decomposition import FactorAnalysis
    from sklearn.exceptions import ConvergenceWarning

    # Bins that have exactly this covariance and mean 0: factor analysis reads nothing else of the data.
    m = len(second_moments)
    root = np.sqrt(m) * np.linalg.cholesky(second_moments + _LEAST_PRIVATE * np.eye(m)).T
    with warnings.catch_warnings():
        # Many latents converge slowly, and the last steps turn their axes within one subspace.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = FactorAnalysis(n_latents, svd_method="lapack", tol=1e-5).fit(np.vstack([root, -root]))
    return model.components_.T, np.maximum(model.noise_variance_, _LEAST_PRIVATE)


def encoder(loadings: np.ndarray, private: np.ndarray) -> np.ndarray:
    """E (m, n_latents) such that z E is the latents' posterior mean."""
    weighted = loadings / private[:, None]
    return weighted @ np.linalg.inv(np.eye(loadings.shape[1]) + loadings.T @ weighted)


def rotation(theirs: np.ndarray, ours: np.ndarray, n_stable: int) -> tuple[np.ndarray, np.ndarray]:
    """The rotation O that takes loadings `theirs` (m, k) onto `ours` over the channels that match best, and which.

    ‖theirs O − ours‖ is minimal over the `n_stable` channels that are left when, again and again, the rotation is
    fitted and the channel with the worst row is dropped. Returns O (k, k) and the kept channels in order.
    """
    kept = np.flatnonzero((np.linalg.norm(theirs, axis=1) > _SHORTEST_LOADING)
                          & (np.linalg.norm(ours, axis=1) > _SHORTEST_LOADING))  # fmt: skip
    while True:
        U, _, V = np.linalg.svd(theirs[kept].T @ ours[kept])
        turn = U @ V
        if len(kept) <= n_stable:
            return turn, kept
        worst = np.argmax(np.linalg.norm(theirs[kept] @ turn - ours[kept], axis=1))
        kept = np.delete(kept, worst)


class AlignedDecoder(LaggedDecoder):
    """Ridge on lagged latents of a factor analysis, realigned without labels as the session goes (Degenhart et al.
    2020, Nat. Biomed. Eng. 4: 672).

    `fit` finds loadings Λ of the training sessions' normalised square-root counts and a ridge from the latents to y.
    A session starts with that encoder; every `align_every_s` factor analysis is fitted to all of its bins so far, its
    loadings are turned onto Λ by orthogonal Procrustes over the `n_stable` channels whose loadings match best, and the
    latents are those of the new loadings, turned. Labels are never looked at.

    Parameters
    ----------
    n_latents : dimensions of the latent space; fewer where there are not two channels for each.
    n_stable : channels that decide the rotation; half of them when None.
    n_lags, penalty : bins of latents that are read, and the ridge penalty per bin.
    align_every_s : how often the alignment is fitted again.
    normaliser_s, bin_s, missing : as in `WienerDecoder`.
    """

    name: ClassVar[str] = "aligned"
    description: ClassVar[str] = "factor analysis + Procrustes on stable channels, without labels; ridge on latents"
    stored: ClassVar[Mapping[str, Form]] = {
        **LaggedDecoder.stored,
        "loadings_": Form("channels latents"),
        "encoder_": Form("channels latents"),
        "latent_coef_": Form("lagged_latents outputs"),
        "moments_": Form("sums sums"),
        "session_bins_": Form(kind="int64", least=0),
        "stable_": Form("stable", "int64", 0, "last_channel"),
    }
    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "": {"n_latents": 2, "n_stable": 3, "n_lags": 3, "align_every_s": 4.0}
    }

    def __init__(
        self,
        n_latents: int = 10,
        n_stable: int | None = None,
        n_lags: int = 10,
        penalty: float = 0.05,
        align_every_s: float = 60.0,
        normaliser_s: float | None = 300.0,
        bin_s: float | None = None,
        missing: str = "refuse",
    ):
        self.n_latents = n_latents
        self.n_stable = n_stable
        self.n_lags = n_lags
        self.penalty = penalty
        self.align_every_s = align_every_s
        self.normaliser_s = normaliser_s
        self.bin_s = bin_s
        self.missing = missing

    def _fit(self, sessions: Sequence[Bins]) -> None:
        m, k = self.n_features_in_, min(self.n_latents, self.n_features_in_ // 2)
        if k < 1:
            raise InputError(
                f"n_latents: expected at least 1, and 2 channels for each, got {self.n_latents} with n_features={m}"
            )
        if self.n_stable is not None and self.n_stable < k:
            raise InputError(
                f"n_stable must be at least n_latents ({k}), or the rotation is undecided; got {self.n_stable}"
            )
        seconds, n_seen = np.zeros((m, m)), 0
        for x, bins in self._normalised(sessions):
            seen = x[bins.observed]
            seconds, n_seen = seconds + seen.T @ seen, n_seen + len(seen)
        self.loadings_, private = factors(seconds / n_seen, k)
        self.encoder_ = encoder(self.loadings_, private)
        equations = NormalEquations()
        for features, labels in self._blocks(sessions, lambda x: x @ self.encoder_):
            equations.add(features, labels)
        self.latent_coef_, _ = equations.solve(self.penalty)
        self.stable_ = np.arange(m)
        self._compose()
        self._start_session()

    def _lengths(self) -> dict[str, int | None]:
        m, latents = self.n_features_in_, min(self.n_latents, self.n_features_in_ // 2)
        own = {"latents": latents, "lagged_latents": self.n_lags * latents + 1, "sums": m + 1, "last_channel": m - 1}
        return {**super()._lengths(), **own}

    def _compose(self) -> None:
        """The weights of lagged counts: what each lag's latents weigh, behind the encoder."""
        lags = self.latent_coef_[:-1].reshape(self.n_lags, self.loadings_.shape[1], -1)
        self.coef_ = np.vstack([*(self.encoder_ @ lag for lag in lags), self.latent_coef_[-1:]])

    def _start_session(self) -> None:
        m = self.n_features_in_
        self.moments_, self.session_bins_ = np.zeros((m + 1, m + 1)), np.array(0)

    def begin(self) -> None:
        super().begin()
        self._start_session()

    @property
    def learns_online(self) -> bool:
        return False

    def _partial_fit(self, bins: Bins, arrives: Any) -> np.ndarray:
        features, running, past = self._features(bins, continuing=True)
        n_bins = len(features)
        counts = np.hstack([bins.X, np.ones((n_bins, 1))])
        every = max(1, round(self.align_every_s / self.bin_s_))
        predictions, at = np.empty((n_bins, self.n_outputs_)), 0
        while at < n_bins:
            until = min(n_bins, at + every - int(self.session_bins_) % every)
            predictions[at:until] = features[at:until] @ self.coef_
            seen = counts[at:until][bins.observed[at:until]]
            self.moments_ = self.moments_ + seen.T @ seen
            self.session_bins_ = self.session_bins_ + (until - at)
            if self.session_bins_ % every == 0:
                self._align()
            at = until
        self._go_on(running, past)
        return predictions

    def _align(self) -> None:
        n = self.moments_[-1, -1]
        if n < 2 * self.n_features_in_:  # too few bins for a covariance
            return
        mean = self.moments_[-1, :-1] / n
        covariance = self.moments_[:-1, :-1] / n - np.outer(mean, mean)
        # Normalised by the session so far, as training sessions are by themselves: what the running statistics gave
        # while they still were those of another day is not the day's own.
        scale = np.sqrt(np.diag(covariance) + FLOOR**2)
        loadings, private = factors(covariance / np.outer(scale, scale), self.loadings_.shape[1])
        n_stable = self.n_features_in_ // 2 if self.n_stable is None else self.n_stable
        turn, self.stable_ = rotation(loadings, self.loadings_, n_stable)
        # Latents of the new loadings, turned: those of loadings Λ O.
        self.encoder_ = encoder(loadings @ turn, private)
        self._compose()
