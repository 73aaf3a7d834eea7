"""The recurrent decoder that adapts online."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from bci_adapt.decoders.inputs import Bins, is_labelled, numbers
from bci_adapt.decoders.pretrained import PretrainedDecoder
from bci_adapt.decoders.stored import Form
from bci_adapt.decoders.timing import arrival_bins, delay_bins
from bci_adapt.errors import InputError
from bci_adapt.learning.backends import loop as kernel
from bci_adapt.learning.credit.base import rule
from bci_adapt.learning.online import Learner, State, handed_over, run, start
from bci_adapt.learning.optimizers import optimizer

SMALL = {"n_hidden": 6, "n_updates": 30, "label_delay_s": 0.2, "warm_up_s": 5.0, "learning_rate": 1e-2}


class OnlineDecoder(PretrainedDecoder):
    """A recurrent network, pretrained by BPTT on earlier sessions and adapted one bin at a time.

    Square-root counts pass a causal normaliser (`bci_adapt.learning.normaliser`) and enter the network; labels are
    scaled to unit variance by the training sessions. The optimiser's second moments are warmed on the last `warm_up_s`
    of the last training session with weights held, so that the first labels of a new day do not meet an empty average.

    Parameters
    ----------
    cell, n_hidden : the network.
    n_members : networks of this kind that predict by their mean (an ensemble); ``seed * n_members`` is the seed of the
        first, so that one member is the plain decoder.
    take_turns : each label teaches one of the members, in turn, so that an ensemble learns at the cost of one network;
        every member then sees every n_members-th label, at a rate that should be so much larger.
    learn_every : only every so-many-th bin's label is learned from. Movement is smooth: labels of neighbouring bins say
        much the same, and learning is what a bin costs most.
    rule, optimizer, learning_rate : how it adapts.
    rule_constants, optimizer_constants : their other constants by name (``{"steps": 4}`` of ``window``), None for none.
    learns : weight groups that learn (`bci_adapt.learning.optimizers.GROUPS`: ``("output_bias",)``); all when None.
    group_rates : multipliers of the learning rate by weight group, None for none.
    average : decay per update of an exponential mean of the weights, which then predicts; None for none.
    normaliser_s : time constant of the running statistics in seconds; None keeps those of the last training session.
    label_delay_s : how late the label of a bin becomes known.
    bin_s : bin width in seconds, to turn seconds into bins; None: that of the sessions it is fitted on, of plain
        arrays 0.05.
    missing : what happens to a session whose channels are not the decoder's: ``refuse``, or ``zero``, by which those it
        lacks count as silent and others are left out.
    warm_up_s : stretch of the last training session on which the optimiser is warmed; 0 starts it cold. After `fit` it
        can be shortened, no longer lengthened.
    pretrained : False starts the first session from the seed's random weights; statistics, label scaling and warm-up
        still come from the training sessions.
    n_updates, pretrain_rate : of the pretraining: gradient steps, and Adam's learning rate at their start.
    added_updates, added_rate : the same for each day that `extend` adds.
    input_dropout, gain_jitter, offset_jitter, batch, window_bins, recency : of every training
        (`bci_adapt.learning.bptt.Pretraining`).
    seed : of initial weights, training windows and jitter.
    """

    name: ClassVar[str] = "online_rnn"
    description: ClassVar[str] = "recurrent network, BPTT on earlier sessions, then online credit bin by bin"
    stored: ClassVar[Mapping[str, Form]] = {
        **PretrainedDecoder.stored,
        "warm_X_": Form("warm channels"),
        "warm_Y_": Form("warm outputs", nan=True),
        **dict.fromkeys(("warm_observed_", "warm_reset_"), Form("warm", "bool")),
    }
    of_dicts: ClassVar[tuple[str, ...]] = ("rule_constants", "optimizer_constants", "group_rates")
    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "": {"cell": "tanh", **SMALL},
        "window": {"rule": "window", "rule_constants": {"steps": 3}, "average": None, **SMALL},
        "rtrl": {"rule": "rtrl", **SMALL},
        "members": {"n_members": 3, **SMALL},
        "turns": {"n_members": 3, "take_turns": True, "learn_every": 2, **SMALL},
    }

    def __init__(
        self,
        cell: str = "gru",
        n_hidden: int = 64,
        n_members: int = 1,
        take_turns: bool = False,
        learn_every: int = 1,
        rule: str = "immediate",
        optimizer: str = "rmsprop",
        learning_rate: float = 3e-4,
        rule_constants: dict | None = None,
        optimizer_constants: dict | None = None,
        learns: tuple[str, ...] | None = None,
        group_rates: dict[str, float] | None = None,
        average: float | None = 0.999,
        normaliser_s: float | None = 300.0,
        label_delay_s: float = 0.5,
        bin_s: float | None = None,
        warm_up_s: float = 60.0,
        pretrained: bool = True,
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
        seed: int = 0,
        missing: str = "refuse",
    ):
        self.cell = cell
        self.n_hidden = n_hidden
        self.n_members = n_members
        self.take_turns = take_turns
        self.learn_every = learn_every
        self.rule = rule
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.rule_constants = rule_constants
        self.optimizer_constants = optimizer_constants
        self.learns = learns
        self.group_rates = group_rates
        self.average = average
        self.normaliser_s = normaliser_s
        self.label_delay_s = label_delay_s
        self.bin_s = bin_s
        self.warm_up_s = warm_up_s
        self.pretrained = pretrained
        self.n_updates, self.added_updates = n_updates, added_updates
        self.pretrain_rate, self.added_rate = pretrain_rate, added_rate
        self.input_dropout = input_dropout
        self.gain_jitter, self.offset_jitter = gain_jitter, offset_jitter
        self.batch = batch
        self.window_bins = window_bins
        self.recency = recency
        self.seed = seed
        self.missing = missing

    def _learner(self, learning_rate: float | None = None) -> Learner:
        rate = self.learning_rate if learning_rate is None else learning_rate
        try:
            credit = rule(self.rule, **(self.rule_constants or {}))
            moves = optimizer(self.optimizer, learning_rate=rate, **(self.optimizer_constants or {}))
        except TypeError as error:  # a constant that neither declares
            raise InputError(f"rule_constants, optimizer_constants: {error}") from error
        return Learner(
            self.network_,
            credit,
            moves,
            average=self.average,
            group_rates=self.group_rates or {},
            learns=None if self.learns is None else tuple(self.learns),
        )

    def _fitted(self, x: np.ndarray, targets: np.ndarray, last: Bins) -> None:
        keep = self._warm_stretch(len(x))
        self.warm_X_ = x[keep]
        self.warm_Y_ = np.where(last.weight > 0, targets, np.nan)[keep]
        self.warm_observed_, self.warm_reset_ = last.observed[keep], last.reset[keep]

    def _warm_stretch(self, n_bins: int) -> slice:
        return slice(max(0, n_bins - round(self.warm_up_s / self.bin_s_)), None)

    # -- the session ---------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start a new session (see `Decoder`). Parameters that were set since the last one take effect here; one that
        gives the online state another shape (rule, optimiser, average) is refused after the first session.
        """
        self.require_fitted()
        if hasattr(self, "state_"):
            self.state_ = handed_over(self.state_, self._learner(), "begin")
            self.running_ = replace(self._normaliser(), mean=self.running_.mean, variance=self.running_.variance)
        else:
            # With a learning rate of zero the weights stay and the optimiser's averages fill.
            state = start(self._learner(0.0), *self.start_weights_)
            keep = self._warm_stretch(len(self.warm_X_))
            labels = self.warm_Y_[keep]
            if len(labels):
                _, state = run(
                    state,
                    self.warm_X_[keep],
                    np.nan_to_num(labels),
                    np.isfinite(labels).astype(float),
                    None,
                    self.warm_observed_[keep],
                    self.warm_reset_[keep],
                    in_place=True,
                )
            self.state_ = State(self._learner(), state.arrays)
            self.running_ = self._normaliser()
        self._fresh_session = True

    def _partial_fit(self, bins: Bins, arrives: Any) -> np.ndarray:
        bins, x = self._normalised(bins)
        known = arrival_bins(arrives, len(x), delay_bins(self.label_delay_s, self.bin_s_))
        return self._unscaled(self._go_on(bins, x, known).mean(axis=0))

    def _go_on(self, bins: Bins, x: np.ndarray, known: np.ndarray) -> np.ndarray:
        """Predict normalised bins `x` and learn; (n_members, n_bins, n_outputs) in the labels' scale."""
        predictions, self.state_ = run(
            self.state_,
            x,
            self._scaled(bins),
            self._taught(bins.weight),
            known,
            bins.observed,
            bins.reset,
            in_place=True,
        )
        return predictions

    def _taught(self, weight: np.ndarray) -> np.ndarray:
        """Weights of labels (n_bins, n_outputs), or (n_members, n_bins, n_outputs) where not all teach every member."""
        if self.learn_every < 1:
            raise InputError(f"learn_every must be at least 1, got {self.learn_every}")
        if self.learn_every == 1 and not (self.take_turns and self.n_members > 1):
            return weight
        learns = self._learns(self.state_.counter(kernel.BIN)[0] + np.arange(len(weight)))
        return np.where(learns[..., None], weight, 0.0)

    def _learns(self, bins: np.ndarray) -> np.ndarray:
        """Which members (n_members, n_bins) learn from the labels of these bins, counted since the decoder was fitted:
        all of them from every `learn_every`-th, or one, the next from the next of these.
        """
        turns, between = np.divmod(bins, self.learn_every)
        own = turns % self.n_members == np.arange(self.n_members)[:, None]
        return (between == 0) & (own if self.take_turns else np.ones_like(own))

    def step(self, x, y=None) -> np.ndarray:
        """Predict one bin, (n_channels,) → (n_outputs,), then learn.

        `y` (n_outputs,) is the label that became known with this bin: of the bin `label_delay_s` ago (of this one, when
        there is no delay); None or NaN when there is none.

        Both are plain numbers, x in the order of the decoder's channels (``metadata_["channels"]``) and NaN where the
        bin was not observed. `InputError` for a labelled row, whose names nobody would look at, and other shapes.
        """
        if not hasattr(self, "state_"):
            self.begin()  # which says so where it was never fitted
        row = _row(x, "x", self.n_features_in_)
        label = None if y is None else _row(y, "y", self.n_outputs_)
        delay = delay_bins(self.label_delay_s, self.bin_s_)
        if label is not None and delay:
            self._label_waiting_record(label, delay)
        return self.partial_fit(row[None], None if label is None or delay else label[None]).online_predictions_[0]

    def _label_waiting_record(self, y: np.ndarray, delay: int) -> None:
        """Give the record that was made `delay` bins ago its label; nothing where that bin was not observed."""
        arrays, counters = self.state_.arrays, self.state_.arrays["counters"][0]  # members count alike
        if self._fresh_session or counters[kernel.PROCESSED] == counters[kernel.RECORDS]:
            return
        slot = counters[kernel.PROCESSED] % arrays["ring_z"].shape[1]
        if arrays["ring_arrives"][0, slot] == counters[kernel.BIN]:
            known = np.isfinite(y)
            arrays["ring_label"][:, slot] = np.where(known, (y - self.label_mean_) / self.label_scale_, 0.0)
            arrays["ring_weight"][:, slot] = known
            own_bin = np.array([counters[kernel.BIN] - delay])
            arrays["ring_weight"][~self._learns(own_bin)[:, 0], slot] = 0.0


def _row(values: Any, what: str, n: int) -> np.ndarray:
    """Plain numbers (n,) of one bin; of a label, one number where there is one output, and NaN where there is none."""
    if type(values) is np.ndarray and values.shape == (n,) and values.dtype.kind in "fiu":
        return values.astype(float, copy=False)  # the usual case, at no cost
    if is_labelled(values) or hasattr(values, "iloc"):
        raise InputError(
            f"step: {what}: expected plain numbers ({n},), got {type(values).__name__}, whose names would not be "
            "looked at: hand over .values in the decoder's order, or a session, or a piece of one, to partial_fit"
        )
    row = numbers(values, f"step: {what}")
    if not row.ndim and what == "y" and (n == 1 or np.isnan(row)):
        return np.full(n, row)
    if row.shape != (n,):
        raise InputError(f"step: {what}: expected ({n},), one bin, got {row.shape}")
    return row
