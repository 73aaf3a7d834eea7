"""Recursive least squares: the linear decoder that adapts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from scipy.linalg import get_blas_funcs

from bci_adapt.decoders.blocks import label_blocks
from bci_adapt.decoders.inputs import Bins
from bci_adapt.decoders.lags import LaggedDecoder, NormalEquations
from bci_adapt.decoders.stored import Form
from bci_adapt.decoders.timing import arrival_bins, delay_bins, forgetting


class RLSDecoder(LaggedDecoder):
    """Recursive least squares with forgetting on lagged, normalised square-root counts (Haykin 2002, ch. 13).

    Labels that have become known are taken in blocks of `update_every_s`. A block of B bins is one exact update of the
    exponentially weighted problem (Woodbury): with Φ, Y scaled by forgetting^((age)/2),

        P ← P / γ^B;  K = P Φᵀ (I + Φ P Φᵀ)⁻¹;  W ← W + K (Y − Φ W);  P ← P − K Φ P,

    the same weights at the block's end as one update per bin. `fit` is ridge on the training sessions with their bins
    discounted by the same forgetting, so that adaptation starts warm.

    Parameters
    ----------
    n_lags, penalty, normaliser_s, bin_s, missing : as in `WienerDecoder`.
    memory_s : e-folding time of the forgetting, 1/(1 − γ) bins, in seconds.
    label_delay_s : how late the label of a bin becomes known.
    update_every_s : length of a block.
    """

    name: ClassVar[str] = "rls"
    description: ClassVar[str] = "recursive least squares with forgetting on lagged square-root counts"
    stored: ClassVar[Mapping[str, Form]] = {
        **LaggedDecoder.stored,
        "P_": Form("features features"),
        "waiting_features_": Form("waiting features", nan=True),
        "waiting_labels_": Form("waiting outputs", nan=True),
        "waiting_arrives_": Form("waiting", "int64"),
    }
    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "": {"n_lags": 3, "memory_s": 20.0, "label_delay_s": 0.2, "update_every_s": 0.25}
    }

    def __init__(
        self,
        n_lags: int = 10,
        penalty: float = 0.05,
        memory_s: float = 250.0,
        normaliser_s: float | None = 300.0,
        label_delay_s: float = 0.5,
        update_every_s: float = 0.5,
        bin_s: float | None = None,
        missing: str = "refuse",
    ):
        self.n_lags = n_lags
        self.penalty = penalty
        self.memory_s = memory_s
        self.normaliser_s = normaliser_s
        self.label_delay_s = label_delay_s
        self.update_every_s = update_every_s
        self.bin_s = bin_s
        self.missing = missing

    def _fit(self, sessions: Sequence[Bins]) -> None:
        newer = sum(int(bins.usable.sum()) for bins in sessions)
        gamma, equations = forgetting(self.memory_s, self.bin_s_), NormalEquations()
        for features, labels in self._blocks(sessions):
            newer -= len(features)
            age = newer + np.arange(len(features))[::-1]
            equations.add(features, labels, np.maximum(gamma ** (age / 2), 1e-6))
        self.coef_, self.P_ = equations.solve(self.penalty)
        self._clear_waiting()

    def _clear_waiting(self) -> None:
        self.waiting_features_ = np.zeros((0, self.n_lags * self.n_features_in_ + 1))
        self.waiting_labels_ = np.zeros((0, self.n_outputs_))
        self.waiting_arrives_ = np.zeros(0, np.int64)

    def begin(self) -> None:
        super().begin()
        self._clear_waiting()

    def _partial_fit(self, bins: Bins, arrives: Any) -> np.ndarray:
        known = arrival_bins(arrives, len(bins.X), delay_bins(self.label_delay_s, self.bin_s_))
        features, running, past = self._features(bins, continuing=True)
        # A bin without neurons has nothing to learn from, whenever its label comes.
        queue = np.vstack([self.waiting_features_, np.where(bins.observed[:, None], features, np.nan)])
        labels = np.vstack([self.waiting_labels_, np.where(bins.usable[:, None], bins.Y, np.nan)])
        due = np.concatenate([self.waiting_arrives_, known])
        block = max(1, delay_bins(self.update_every_s, self.bin_s_))
        steps, taken = label_blocks(due, len(self.waiting_arrives_), bins.reset, block)
        predictions = np.empty((len(features), self.n_outputs_))
        for stretch, blocks in steps:
            # Until the next block is due the weights stand still, so these bins are predicted at once.
            predictions[stretch] = features[stretch] @ self.coef_
            for rows in blocks:
                self._update(queue[rows], labels[rows])
        self.waiting_features_, self.waiting_labels_ = queue[taken:], labels[taken:]
        self.waiting_arrives_ = due[taken:] - len(features)
        self._go_on(running, past)
        return predictions

    def label_waiting(self, y: np.ndarray) -> None:
        """Give the bin whose label is due with the next bin its label (n_outputs,), where it has none yet: in a live
        session a label is handed over when it is known, not with its own bin.
        """
        due = (self.waiting_arrives_ == 0) & np.isfinite(self.waiting_features_).all(axis=1)
        self.waiting_labels_[due] = y if np.isfinite(y).all() else np.nan

    def _update(self, features: np.ndarray, labels: np.ndarray) -> None:
        gamma = forgetting(self.memory_s, self.bin_s_)
        kept = np.isfinite(labels).all(axis=1)
        # Bins without a label forget nothing: evidence fades with newer evidence, not with silence.
        features, labels = features[kept], labels[kept]
        if not len(features):
            return
        root = gamma ** (np.arange(len(features))[::-1, None] / 2)
        features, labels = features * root, labels * root
        fade = gamma ** len(features)
        projected = features @ self.P_ / fade
        gain = np.linalg.solve(np.eye(len(features)) + projected @ features.T, projected).T
        self.coef_ = self.coef_ + gain @ (labels - features @ self.coef_)
        # P ← P / γ^B − K Φ P in one pass over P. It is symmetric, so its transpose is the Fortran order BLAS works in.
        (gemm,) = get_blas_funcs(("gemm",), dtype=np.float64)
        self.P_ = gemm(-1.0, gain, projected, beta=1.0 / fade, c=self.P_.T, overwrite_c=True).T

    @property
    def diverged_(self) -> bool:
        return not bool(np.isfinite(self.coef_).all())
