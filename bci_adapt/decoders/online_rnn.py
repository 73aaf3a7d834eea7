"""The recurrent decoder that adapts online."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np

from bci_adapt.cells.base import Network, cell
from bci_adapt.credit.base import rule
from bci_adapt.decoders.base import Bins, Decoder, delay_bins
from bci_adapt.errors import InputError
from bci_adapt.normaliser import Normaliser
from bci_adapt.online import Learner, State, adopt, handed_over, run, start
from bci_adapt.optimizers import optimizer

# A decoder's online state is stored under these prefixes.
_STATE = "state_"


class OnlineDecoder(Decoder):
    """A recurrent network, pretrained by BPTT on earlier sessions and adapted one bin at a time.

    Square-root counts pass a causal normaliser (`bci_adapt.normaliser`) and enter the network; labels are scaled to
    unit variance by the training sessions. The optimiser's second moments are warmed on the last `warm_up_s` of the
    last training session with weights held, so that the first labels of a new day do not meet an empty average.

    Parameters
    ----------
    cell, n_hidden : the network.
    rule, optimizer, learning_rate : how it adapts.
    rule_constants, optimizer_constants : their other constants by name (``{"steps": 4}`` of ``window``), None for none.
    average : decay per update of an exponential mean of the weights, which then predicts; None for none.
    normaliser_s : time constant of the running statistics in seconds; None keeps those of the last training session.
    label_delay_s : how late the label of a bin becomes known.
    bin_s : bin width, to turn seconds into bins.
    warm_up_s : stretch of the last training session on which the optimiser is warmed.
    n_updates, input_dropout : of the pretraining: gradient steps, and the probability that an input is zeroed.
    seed : of initial weights, training windows and jitter.
    """

    name: ClassVar[str] = "online_rnn"
    description: ClassVar[str] = "recurrent network, BPTT on earlier sessions, then online credit bin by bin"
    stored: ClassVar[tuple[str, ...]] = (
        "W_", "C_", "mean_", "variance_", "label_mean_", "label_scale_",
        "warm_X_", "warm_Y_", "warm_observed_", "warm_reset_",
    )  # fmt: skip

    def __init__(
        self,
        cell: str = "gru",
        n_hidden: int = 64,
        rule: str = "immediate",
        optimizer: str = "rmsprop",
        learning_rate: float = 3e-4,
        rule_constants: dict | None = None,
        optimizer_constants: dict | None = None,
        average: float | None = 0.999,
        normaliser_s: float | None = 300.0,
        label_delay_s: float = 0.5,
        bin_s: float = 0.05,
        warm_up_s: float = 60.0,
        n_updates: int = 800,
        input_dropout: float = 0.3,
        seed: int = 0,
    ):
        self.cell = cell
        self.n_hidden = n_hidden
        self.rule = rule
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.rule_constants = rule_constants
        self.optimizer_constants = optimizer_constants
        self.average = average
        self.normaliser_s = normaliser_s
        self.label_delay_s = label_delay_s
        self.bin_s = bin_s
        self.warm_up_s = warm_up_s
        self.n_updates = n_updates
        self.input_dropout = input_dropout
        self.seed = seed

    # -- parts ---------------------------------------------------------------------------------------------------

    @property
    def network_(self) -> Network:
        return Network(cell(self.cell), self.n_features_in_, self.n_hidden, self.n_outputs_)

    def _learner(self, learning_rate: float, predicting: bool = False) -> Learner:
        if predicting:
            # Prediction needs no credit; the smallest kernel does it.
            return Learner(self.network_, rule("readout"), optimizer("rmsprop", learning_rate=0.0))
        return Learner(
            self.network_,
            rule(self.rule, **(self.rule_constants or {})),
            optimizer(self.optimizer, learning_rate=learning_rate, **(self.optimizer_constants or {})),
            average=self.average,
        )

    def _normaliser(self) -> Normaliser:
        constant = np.inf if self.normaliser_s is None else self.normaliser_s / self.bin_s
        return Normaliser(self.mean_, self.variance_, constant)

    # -- training ------------------------------------------------------------------------------------------------

    def fit(self, X, y, reset=None) -> OnlineDecoder:
        """Pretrain on one or several sessions, each normalised by its own statistics (see `Decoder` for shapes).

        Raises
        ------
        InputError
            where shapes do not fit, labels are missing altogether, or no stretch is long enough for a window.
        """
        from bci_adapt.pretraining import Pretraining, pretrain

        doors = self.training_doors(X, y, reset)
        features = [np.sqrt(bins.X) for bins in doors]
        statistics = [Normaliser.fit(x, bins.observed) for x, bins in zip(features, doors, strict=True)]
        normalised = [
            norm.apply(x, bins.observed)[0] for norm, x, bins in zip(statistics, features, doors, strict=True)
        ]
        labels = np.concatenate([np.where(bins.weight > 0, bins.Y, np.nan) for bins in doors])
        self.label_mean_, self.label_scale_ = np.nanmean(labels, axis=0), np.nanstd(labels, axis=0)
        if not (self.label_scale_ > 0).all():
            raise InputError("y: expected labels that vary in every output, got a constant one")
        targets = [self._scaled(bins) for bins in doors]
        self.W_, self.C_ = pretrain(
            self.network_,
            normalised,
            targets,
            [bins.weight for bins in doors],
            [bins.observed for bins in doors],
            [bins.reset for bins in doors],
            self.seed,
            Pretraining(n_updates=self.n_updates, input_dropout=self.input_dropout),
        )
        self.mean_, self.variance_ = statistics[-1].mean, statistics[-1].variance
        last = doors[-1]
        keep = slice(max(0, len(last.X) - round(self.warm_up_s / self.bin_s)), None)
        self.warm_X_ = normalised[-1][keep]
        self.warm_Y_ = np.where(last.weight > 0, targets[-1], np.nan)[keep]
        self.warm_observed_, self.warm_reset_ = last.observed[keep], last.reset[keep]
        vars(self).pop("state_", None)
        return self

    def _scaled(self, bins: Bins) -> np.ndarray:
        return (bins.Y - self.label_mean_) / self.label_scale_

    # -- the session ---------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start a new session (see `Decoder`). Parameters that were set since the last one take effect here; one that
        gives the online state another shape (rule, optimiser, average) is refused after the first session.
        """
        self.require_fitted()
        if hasattr(self, "state_"):
            self.state_ = handed_over(self.state_, self._learner(self.learning_rate), "begin")
            self.running_ = replace(self._normaliser(), mean=self.running_.mean, variance=self.running_.variance)
        else:
            # With a learning rate of zero the weights stay and the optimiser's averages fill.
            state = start(self._learner(0.0), self.W_, self.C_)
            if len(self.warm_X_):
                weight = np.isfinite(self.warm_Y_).astype(float)
                _, state = run(
                    state,
                    self.warm_X_,
                    np.nan_to_num(self.warm_Y_),
                    weight,
                    None,
                    self.warm_observed_,
                    self.warm_reset_,
                    in_place=True,
                )
            self.state_ = State(self._learner(self.learning_rate), state.arrays)
            self.running_ = self._normaliser()
        self._fresh_session = True

    def partial_fit(self, X, y=None, reset=None) -> OnlineDecoder:
        if not hasattr(self, "state_"):
            self.begin()
        bins = self.door(X, y, reset)
        if self._fresh_session and len(bins.reset):
            bins.reset[0] = True
            self._fresh_session = False
        x, self.running_ = self.running_.apply(np.sqrt(bins.X), bins.observed)
        arrives = np.arange(len(x)) + delay_bins(self.label_delay_s, self.bin_s)
        predictions, self.state_ = run(
            self.state_, x, self._scaled(bins), bins.weight, arrives, bins.observed, bins.reset, in_place=True
        )
        self.online_predictions_ = self._unscaled(predictions[0])
        return self

    def step(self, x, y=None) -> np.ndarray:
        """Predict one bin, (n_channels,) → (n_outputs,), then learn.

        `y` (n_outputs,) is the label that became known with this bin: of the bin `label_delay_s` ago (of this one, when
        there is no delay); None or NaN when there is none.
        """
        if not hasattr(self, "state_"):
            self.begin()
        delay = delay_bins(self.label_delay_s, self.bin_s)
        now = None if y is None or delay else np.asarray(y, float)[None]
        if y is not None and delay:
            self._label_waiting_record(np.asarray(y, float), delay)
        return self.partial_fit(np.asarray(x, float)[None], now).online_predictions_[0]

    def _label_waiting_record(self, y: np.ndarray, delay: int) -> None:
        """Give the record that was made `delay` bins ago its label; nothing where that bin was not observed."""
        from bci_adapt.backends import loop as kernel

        arrays, counters = self.state_.arrays, self.state_.arrays["counters"][0]
        if self._fresh_session or counters[kernel.PROCESSED] == counters[kernel.RECORDS]:
            return
        slot = counters[kernel.PROCESSED] % arrays["ring_z"].shape[1]
        if arrays["ring_arrives"][0, slot] == counters[kernel.BIN]:
            known = np.isfinite(y)
            arrays["ring_label"][0, slot] = np.where(known, (y - self.label_mean_) / self.label_scale_, 0.0)
            arrays["ring_weight"][0, slot] = known

    def predict(self, X, reset=None, continuing: bool = False) -> np.ndarray:
        self.require_fitted()
        bins = self.door(X, None, reset)
        adapted = hasattr(self, "state_")
        W, C = self.state_.predictor() if adapted else (self.W_, self.C_)
        hidden = self.state_.predictor_hidden() if adapted and continuing else None
        running = self.running_ if adapted else self._normaliser()
        x, _ = running.apply(np.sqrt(bins.X), bins.observed)
        state = start(self._learner(0.0, predicting=True), W, C, hidden)
        if adapted and continuing:
            output = "mean_output" if self.average is not None else "output"
            state.arrays["output"][:] = self.state_.arrays[output]
        predictions, _ = run(state, x, None, None, None, bins.observed, bins.reset, in_place=True)
        return self._unscaled(predictions[0])

    def _unscaled(self, predictions: np.ndarray) -> np.ndarray:
        return predictions * self.label_scale_ + self.label_mean_

    @property
    def weight_change_(self) -> float:
        """How far adaptation moved the predicting weights: ‖θ − θ₀‖ / ‖θ₀‖ over W and C together."""
        if not hasattr(self, "state_"):
            return 0.0
        W, C = self.state_.predictor()
        moved = np.sum((W[0] - self.W_) ** 2) + np.sum((C[0] - self.C_) ** 2)
        return float(np.sqrt(moved / (np.sum(self.W_**2) + np.sum(self.C_**2))))

    @property
    def diverged_(self) -> bool:
        """Whether any weight is no longer finite."""
        return hasattr(self, "state_") and not bool(self.state_.finite.all())

    # -- storage -------------------------------------------------------------------------------------------------

    def _fitted_arrays(self):
        """The fitted arrays, and the online state where there is one: a loaded decoder goes on bit for bit."""
        arrays = super()._fitted_arrays()
        if hasattr(self, "state_"):
            arrays |= {_STATE + key: value for key, value in self.state_.arrays.items()}
            arrays |= {"running_mean": self.running_.mean, "running_variance": self.running_.variance}
            arrays["fresh_session"] = np.array(self._fresh_session)
        return arrays

    def _restore(self, arrays):
        super()._restore(arrays)
        if "running_mean" in arrays:
            online = {key.removeprefix(_STATE): value for key, value in arrays.items() if key.startswith(_STATE)}
            self.state_ = adopt(self._learner(self.learning_rate), online, "the stored decoder")
            self.running_ = replace(
                self._normaliser(), mean=arrays["running_mean"], variance=arrays["running_variance"]
            )
            self._fresh_session = bool(arrays["fresh_session"])
