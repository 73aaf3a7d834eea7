"""The recurrent decoder that is trained again, by BPTT, on the labels of the new session."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from bci_adapt.decoders.inputs import Bins
from bci_adapt.decoders.pretrained import PretrainedDecoder
from bci_adapt.decoders.stored import Form
from bci_adapt.decoders.timing import arrival_bins, delay_bins
from bci_adapt.learning.online import run, start


class FineTunedDecoder(PretrainedDecoder):
    """A pretrained network that predicts a session with the weights it came with – only the normaliser runs – and is
    then fine-tuned by BPTT on every label of the session that has arrived: `adapt` ends with it; after `partial_fit`,
    call `finish`. Labels that wait at a segment's end are lost, as in `OnlineDecoder`: both learn from the same ones.

    A session in pieces is ``begin()``, `partial_fit` of each, then `finish`. `adapt` of the first piece is another
    thing, and meant to be: it is fine-tuned there, and what follows is predicted with those weights.

    Parameters
    ----------
    tune_updates, tune_rate : gradient steps of the fine-tuning, and Adam's learning rate at its start.
    others : as in `OnlineDecoder`; those of every training hold for the fine-tuning, too.
    """

    name: ClassVar[str] = "fine_tuned"
    description: ClassVar[str] = "recurrent network, fine-tuned by BPTT on the labels of the session at its end"
    stored: ClassVar[Mapping[str, Form]] = {
        **PretrainedDecoder.stored,
        "stream_X_": Form("stream channels"),
        "stream_Y_": Form("stream outputs", nan=True),
        "stream_weight_": Form("stream outputs"),
        **dict.fromkeys(("stream_observed_", "stream_reset_"), Form("stream", "bool")),
        "stream_arrives_": Form("stream", "int64"),
    }
    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "": {"n_hidden": 6, "n_updates": 30, "label_delay_s": 0.2, "tune_updates": 5}
    }

    def __init__(
        self,
        cell: str = "gru",
        n_hidden: int = 64,
        n_members: int = 1,
        normaliser_s: float | None = 300.0,
        label_delay_s: float = 0.5,
        bin_s: float | None = None,
        n_updates: int = 800,
        added_updates: int = 300,
        pretrain_rate: float = 3e-3,
        added_rate: float = 3e-3,
        input_dropout: float = 0.3,
        gain_jitter: float = 0.1,
        offset_jitter: float = 0.1,
        batch: int = 16,
        window_bins: int = 80,
        recency: float = 1.0,
        tune_updates: int = 200,
        tune_rate: float = 1e-3,
        seed: int = 0,
        missing: str = "refuse",
    ):
        self.cell = cell
        self.n_hidden = n_hidden
        self.n_members = n_members
        self.normaliser_s = normaliser_s
        self.label_delay_s = label_delay_s
        self.bin_s = bin_s
        self.n_updates = n_updates
        self.added_updates = added_updates
        self.pretrain_rate = pretrain_rate
        self.added_rate = added_rate
        self.input_dropout = input_dropout
        self.gain_jitter = gain_jitter
        self.offset_jitter = offset_jitter
        self.batch = batch
        self.window_bins = window_bins
        self.recency = recency
        self.tune_updates = tune_updates
        self.tune_rate = tune_rate
        self.seed = seed
        self.missing = missing

    @classmethod
    def of(cls, decoder: PretrainedDecoder, **parameters: Any) -> FineTunedDecoder:
        """The pretrained network of `decoder` (fitted; what it learned online is left out) as one to be fine-tuned.

        Parameters that both have are taken over; `parameters` replace them.
        """
        decoder.require_fitted()
        own = cls._get_param_names()
        shared = {name: value for name, value in decoder.get_params(deep=False).items() if name in own}
        new = cls(**(shared | parameters))
        new.n_features_in_, new.n_outputs_ = decoder.n_features_in_, decoder.n_outputs_
        new.bin_s_, new.flat_, new.metadata_ = decoder.bin_s_, decoder.flat_, decoder.metadata_
        for key in PretrainedDecoder.stored:
            setattr(new, key, getattr(decoder, key))
        new.W_, new.C_ = decoder.start_weights_
        new._clear_stream()
        return new

    def _fitted(self, x, targets, last) -> None:
        self._clear_stream()

    def _clear_stream(self) -> None:
        self.stream_X_ = np.zeros((0, self.n_features_in_))
        self.stream_Y_ = np.zeros((0, self.n_outputs_))
        self.stream_weight_ = np.zeros((0, self.n_outputs_))
        self.stream_observed_ = np.zeros(0, bool)
        self.stream_reset_ = np.zeros(0, bool)
        # Counted from the first bin of the session.
        self.stream_arrives_ = np.zeros(0, np.int64)

    def begin(self) -> None:
        self.require_fitted()
        if hasattr(self, "state_"):
            self.running_ = replace(self._normaliser(), mean=self.running_.mean, variance=self.running_.variance)
        else:
            self.state_, self.running_ = start(self._learner(), *self.start_weights_), self._normaliser()
        self._clear_stream()
        self._fresh_session = True

    @property
    def learns_online(self) -> bool:
        return False

    def _partial_fit(self, bins: Bins, arrives: Any) -> np.ndarray:
        bins, x = self._normalised(bins)
        known = arrival_bins(arrives, len(x), delay_bins(self.label_delay_s, self.bin_s_))
        predictions, self.state_ = run(self.state_, x, observed=bins.observed, reset=bins.reset, in_place=True)
        for key, values in {
            "stream_X_": x,
            "stream_Y_": self._scaled(bins),
            "stream_weight_": bins.weight,
            "stream_observed_": bins.observed,
            "stream_reset_": bins.reset,
            "stream_arrives_": known + len(self.stream_X_),
        }.items():
            setattr(self, key, np.concatenate([getattr(self, key), values]))
        return self._unscaled(predictions.mean(axis=0))

    def adapt(self, X, y=None, reset=None, arrives=None) -> Any:
        online = super().adapt(X, y, reset, arrives)
        self.finish()
        return online

    def finish(self) -> FineTunedDecoder:
        """Fine-tune on what has arrived of the session so far; without a label the weights stay as they are."""
        x, observed, reset = self.stream_X_, self.stream_observed_, self.stream_reset_
        begins = np.append(np.flatnonzero(reset), len(x))
        until = begins[np.searchsorted(begins, np.arange(len(x)), side="right")]
        weight = self.stream_weight_ * (self.stream_arrives_ < until)[:, None]
        if not (weight[observed] > 0).any() or not self.tune_updates:
            return self
        W, C = self._train(
            ([x], [self.stream_Y_], [weight], [observed], [reset]),
            self.member_seeds_,
            self._pretraining(n_updates=self.tune_updates, learning_rate=self.tune_rate),
            self.state_.predictor(),
        )
        # The hidden state is that of the new weights from here on, not one that the old ones left behind.
        _, self.state_ = run(start(self._learner(), W, C), x, observed=observed, reset=reset, in_place=True)
        return self
