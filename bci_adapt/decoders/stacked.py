"""A network and a linear decoder together: what each predicts is weighed online by how well both did (stacking)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from bci_adapt.decoders.blocks import label_blocks
from bci_adapt.decoders.inputs import Bins
from bci_adapt.decoders.online_rnn import SMALL, OnlineDecoder
from bci_adapt.decoders.rls import RLSDecoder
from bci_adapt.decoders.stored import Form, require_arrays
from bci_adapt.decoders.timing import arrival_bins, delay_bins, forgetting
from bci_adapt.errors import InputError

PRIORS = {"network": (1.0, 0.0), "mean": (0.5, 0.5)}


class StackedDecoder(OnlineDecoder):
    """An `OnlineDecoder` and an `RLSDecoder`, each as it would be alone; their predictions are added with two weights
    per output that are learned online (stacking, Wolpert 1992; by least squares, Breiman 1996).

    The pair p = (network, linear) of a bin, made before its label, waits for the label as all else does. With scaled
    labels y the weights of an output are a ridge solution towards the prior w₀, over the labels seen so far:

        A ← γ^B A + Σ p pᵀ;  b ← γ^B b + Σ p y;  w = (A + λ I)⁻¹ (b + λ w₀),

    exact least squares with forgetting for blocks of B labels of `update_every_s`; λ is `prior_s` in bins. Unlike the
    evidence, the prior does not fade.

    Parameters
    ----------
    n_lags, penalty, memory_s, update_every_s : of the linear decoder (`RLSDecoder`). Its cost grows with the square of
        lags times channels.
    prior : weights before any label: ``network`` (that alone), or the ``mean`` of both.
    prior_s : seconds of labels that the prior weighs as much as.
    weight_memory_s : e-folding time of the evidence for the weights.
    others : of the network, and where the linear decoder has them, too, of both (`OnlineDecoder`).
    """

    name: ClassVar[str] = "stacked"
    description: ClassVar[str] = "recurrent network and RLS, weighed online by recursive least squares on both"
    stored: ClassVar[Mapping[str, Form]] = {
        **OnlineDecoder.stored,
        "weights_": Form("outputs 2"),
        "evidence_": Form("outputs 2 2"),
        "products_": Form("outputs 2"),
        "waiting_pairs_": Form("waiting 2 outputs", nan=True),
        "waiting_y_": Form("waiting outputs", nan=True),
        "waiting_arrives_": Form("waiting", "int64"),
    }
    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "": {"n_lags": 3, "memory_s": 20.0, "update_every_s": 0.25, "prior_s": 5.0, **SMALL}
    }
    unmet_checks: ClassVar[Mapping[str, str]] = {
        **OnlineDecoder.unmet_checks,
        "check_do_not_raise_errors_in_init_or_set_params": "the network's parameters are handed on by name",
    }
    linear_: RLSDecoder

    def __init__(
        self,
        n_lags: int = 10,
        penalty: float = 0.05,
        memory_s: float = 250.0,
        update_every_s: float = 0.5,
        prior: str = "network",
        prior_s: float = 60.0,
        weight_memory_s: float = 300.0,
        **network: Any,
    ):
        super().__init__(**network)
        self.n_lags = n_lags
        self.penalty = penalty
        self.memory_s = memory_s
        self.update_every_s = update_every_s
        self.prior = prior
        self.prior_s = prior_s
        self.weight_memory_s = weight_memory_s

    @classmethod
    def _get_param_names(cls) -> list[str]:
        return sorted([*super()._get_param_names(), *OnlineDecoder._get_param_names()])

    def _linear_parameters(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in RLSDecoder._get_param_names()}

    # -- training ------------------------------------------------------------------------------------------------

    def _train_on(self, sessions: Sequence[Bins], extends: bool) -> None:
        super()._train_on(sessions, extends)
        self.linear_ = self._new_linear()
        self.linear_._fit(sessions)
        self.evidence_, self.products_ = np.zeros((self.n_outputs_, 2, 2)), np.zeros((self.n_outputs_, 2))
        self._solve()
        self._clear_waiting()

    def _new_linear(self) -> RLSDecoder:
        """A linear decoder of the same inputs and outputs."""
        linear = RLSDecoder(**self._linear_parameters())
        for name in ("n_features_in_", "n_outputs_", "bin_s_"):
            setattr(linear, name, getattr(self, name))
        return linear

    def _solve(self) -> None:
        """The weights (n_outputs, 2) that follow from evidence and prior."""
        if self.prior not in PRIORS:
            raise InputError(f"prior must be one of {', '.join(PRIORS)}, got {self.prior!r}")
        if not 0.0 < self.prior_s < np.inf:
            raise InputError(f"prior_s must be positive and finite, got {self.prior_s}")
        strength = self.prior_s / self.bin_s_
        wanted = self.products_ + strength * np.array(PRIORS[self.prior])
        self.weights_ = np.linalg.solve(self.evidence_ + strength * np.eye(2), wanted[:, :, None])[:, :, 0]

    def _clear_waiting(self) -> None:
        """No label is waited for: the pairs (n_waiting, 2, n_outputs) in the labels' scale, scaled labels, arrivals."""
        self.waiting_pairs_ = np.zeros((0, 2, self.n_outputs_))
        self.waiting_y_ = np.zeros((0, self.n_outputs_))
        self.waiting_arrives_ = np.zeros(0, np.int64)

    # -- the session ---------------------------------------------------------------------------------------------

    def begin(self) -> None:
        super().begin()
        self.linear_.set_params(**self._linear_parameters())
        self.linear_.begin()
        self._solve()
        self._clear_waiting()

    def _pairs(self, network: np.ndarray, linear: np.ndarray) -> np.ndarray:
        """Both predictions (n_bins, 2, n_outputs) in the labels' scale."""
        return (np.stack([network, linear], axis=1) - self.label_mean_) / self.label_scale_

    def _weighed(self, pairs: np.ndarray, network: np.ndarray) -> np.ndarray:
        """Predictions (n_bins, n_outputs); where an output is the network's alone, exactly that."""
        mixed = self._unscaled(np.einsum("tjo,oj->to", pairs, self.weights_))
        return np.where((self.weights_ == PRIORS["network"]).all(axis=1), network, mixed)

    def _predict(self, bins: Bins, continuing: bool) -> np.ndarray:
        network = super()._predict(bins, continuing)
        return self._weighed(self._pairs(network, self.linear_._predict(bins, continuing)), network)

    def _partial_fit(self, bins: Bins, arrives: Any) -> np.ndarray:
        network = super()._partial_fit(bins, arrives)
        pairs = self._pairs(network, self.linear_._partial_fit(bins, arrives))
        known = arrival_bins(arrives, len(bins.X), delay_bins(self.label_delay_s, self.bin_s_))
        # A bin without neurons has nothing to learn from, whenever its label comes.
        queue = np.concatenate([self.waiting_pairs_, np.where(bins.observed[:, None, None], pairs, np.nan)])
        labels = np.concatenate([self.waiting_y_, np.where(bins.weight > 0, self._scaled(bins), np.nan)])
        due = np.concatenate([self.waiting_arrives_, known])
        block = max(1, delay_bins(self.update_every_s, self.bin_s_))
        steps, taken = label_blocks(due, len(self.waiting_arrives_), bins.reset, block)
        predictions = np.empty_like(network)
        for stretch, blocks in steps:
            predictions[stretch] = self._weighed(pairs[stretch], network[stretch])
            for rows in blocks:
                self._weigh(queue[rows], labels[rows])
        self.waiting_pairs_, self.waiting_y_ = queue[taken:], labels[taken:]
        self.waiting_arrives_ = due[taken:] - len(bins.X)
        return predictions

    def _weigh(self, pairs: np.ndarray, y: np.ndarray) -> None:
        """Learn the weights from a block of pairs (n, 2, n_outputs) and labels (n, n_outputs)."""
        kept = np.isfinite(y) & np.isfinite(pairs).all(axis=1)
        if not kept.any():
            return
        gamma = forgetting(self.weight_memory_s, self.bin_s_)
        # Of every output only bins with a label count, and only they make what is older fade.
        newer = kept.sum(axis=0) - np.cumsum(kept, axis=0)
        share = np.where(kept, gamma**newer, 0.0)
        pairs, y = np.where(kept[:, None], pairs, 0.0), np.where(kept, y, 0.0)
        fade = gamma ** kept.sum(axis=0)
        self.evidence_ = fade[:, None, None] * self.evidence_ + np.einsum("to,tio,tjo->oij", share, pairs, pairs)
        self.products_ = fade[:, None] * self.products_ + np.einsum("to,tio,to->oi", share, pairs, y)
        self._solve()

    def _label_waiting_record(self, y: np.ndarray, delay: int) -> None:
        super()._label_waiting_record(y, delay)
        self.linear_.label_waiting(y)
        self.waiting_y_[self.waiting_arrives_ == 0] = (y - self.label_mean_) / self.label_scale_

    def with_fitted_statistics(self) -> Self:
        other = super().with_fitted_statistics()
        other.linear_ = self.linear_.with_fitted_statistics()
        return other

    @property
    def diverged_(self) -> bool:
        return super().diverged_ or self.linear_.diverged_

    # -- storage -------------------------------------------------------------------------------------------------

    def _fitted_arrays(self):
        linear = {f"linear_{key}": value for key, value in self.linear_._fitted_arrays().items()}
        return super()._fitted_arrays() | linear

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if self.prior not in PRIORS:
            raise InputError(f"prior must be one of {', '.join(PRIORS)}, got {self.prior!r}")

    def _restore(self, arrays):
        super()._restore(arrays)
        self.linear_ = self._new_linear()
        forms = {f"linear_{key}": form for key, form in RLSDecoder.stored.items()}
        require_arrays(forms, self.linear_._lengths(), arrays, self.name)
        self.linear_._restore({key: arrays[f"linear_{key}"] for key in RLSDecoder.stored})
