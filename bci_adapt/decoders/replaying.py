"""The recurrent decoder that goes through the session so far again while it waits for the next bin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np

from bci_adapt.decoders.inputs import Bins
from bci_adapt.decoders.online_rnn import SMALL, OnlineDecoder
from bci_adapt.decoders.pretrained import require_finite
from bci_adapt.decoders.settings import require_numbers
from bci_adapt.decoders.stored import Form, require_arrays
from bci_adapt.errors import InputError
from bci_adapt.learning.backends import loop as kernel
from bci_adapt.learning.online import State, adopt, run, start

EVERY_BINS = 4
"""Bins after which the session is gone through again: often enough for even load, seldom enough for a call's cost."""
_LOST = -1  # the arrival of a label that a segment's end has made useless
_TOLD = {
    "told_X": Form("kept channels", nan=True),
    "told_Y": Form("kept outputs", nan=True),
    "told_weight": Form("kept outputs", least=0.0),
    **dict.fromkeys(("told_observed", "told_reset"), Form("kept", "bool")),
    "told_arrives": Form("kept", "int64", least=_LOST),
    "replay_place": Form("4", "int64", least=0.0),
}
_OWN = ("memory", "state", "output", "counters", "mean_state", "mean_output")
_PREFIX = "replay_own_"


class ReplayingDecoder(OnlineDecoder):
    """An `OnlineDecoder` that also learns again from labels of the session that have arrived (experience replay, Lin
    1992; here in the order of recording).

    For each new bin, `replay` bins of the session so far are gone through once more by the decoder's own rule: from the
    oldest that is kept to the youngest whose label has arrived, and from the oldest again. Weights, the optimiser's
    averages and the weights' mean are those that predict; hidden state and rule memory are the replay's own. Labels
    that were lost at a segment's end are not learned from here either. With `take_turns` a label teaches another member
    each time round. As there are ``1 + replay`` updates for a label, an `average` of ``0.999`` forgets that much
    faster.

    The work is done every `EVERY_BINS` bins, counted from the first of all, so that a session in pieces, or bin by bin,
    is the session in one. A session that begins has forgotten the one before.

    Parameters
    ----------
    replay : bins that are gone through again for each new one; 0 is the plain decoder.
    replay_s : how much of the session is kept, in seconds.
    others : as in `OnlineDecoder`.
    """

    name: ClassVar[str] = "replaying"
    description: ClassVar[str] = "online_rnn that goes through the session so far again while it waits"
    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "": {"replay": 2, "replay_s": 20.0, **SMALL},
        "turns": {"n_members": 3, "take_turns": True, "learn_every": 2, "replay": 2, "replay_s": 20.0, **SMALL},
    }
    unmet_checks: ClassVar[Mapping[str, str]] = {
        **OnlineDecoder.unmet_checks,
        "check_do_not_raise_errors_in_init_or_set_params": "the network's parameters are handed on by name",
    }

    def __init__(self, replay: int = 4, replay_s: float = 600.0, **network: Any):
        super().__init__(**network)
        self.replay = replay
        self.replay_s = replay_s

    @classmethod
    def _get_param_names(cls) -> list[str]:
        return sorted([*super()._get_param_names(), *OnlineDecoder._get_param_names()])

    @classmethod
    def of(cls, decoder: OnlineDecoder, **parameters: Any) -> Self:
        """The pretrained network of `decoder` (fitted; what it learned online is left out) as one that replays.
        `parameters` replace its own. `InputError` for one that cannot be.
        """
        decoder.require_fitted()
        shared = {name: each for name, each in decoder.get_params(deep=False).items() if name in cls._get_param_names()}
        new = cls(**(shared | parameters))
        require_numbers(new.get_params(deep=False))
        new.n_features_in_, new.n_outputs_ = decoder.n_features_in_, decoder.n_outputs_
        new.bin_s_, new.flat_, new.metadata_ = decoder.bin_s_, decoder.flat_, decoder.metadata_
        for key in OnlineDecoder.stored:
            setattr(new, key, getattr(decoder, key))
        return new

    # -- the session ---------------------------------------------------------------------------------------------

    def begin(self) -> None:
        super().begin()
        kept, channels, outputs = self._kept, self.n_features_in_, self.n_outputs_
        self.told_ = {
            "told_X": np.zeros((kept, channels)),
            "told_Y": np.zeros((kept, outputs)),
            "told_weight": np.zeros((kept, outputs)),
            "told_observed": np.zeros(kept, bool),
            "told_reset": np.zeros(kept, bool),
            "told_arrives": np.full(kept, _LOST, np.int64),
            # first bin of the session, bin after the last one that is told, bin to go on with, times round
            "replay_place": np.array([self._now, self._now, self._now, 0], np.int64),
        }
        fresh = start(self.state_.learner, self.state_.arrays["W"], self.state_.arrays["C"]).arrays
        self.own_ = {name: each for name, each in fresh.items() if _is_own(name)}

    @property
    def _kept(self) -> int:
        return max(EVERY_BINS, round(self.replay_s / self.bin_s_))

    @property
    def _now(self) -> int:
        """The bin that comes next, counted since the decoder was fitted."""
        return int(self.state_.counter(kernel.BIN)[0])

    def _go_on(self, bins: Bins, x: np.ndarray, known: np.ndarray) -> np.ndarray:
        n, begin = len(x), self._now
        ends = [*range(EVERY_BINS - begin % EVERY_BINS, n, EVERY_BINS), n] if n else []
        predictions, first = [np.zeros((len(self.member_seeds_), 0, self.n_outputs_))], 0
        for end in ends:
            part = Bins(*(each if each is None else each[first:end] for each in bins))
            self._keep(part, x[first:end], known[first:end] - first)
            predictions.append(super()._go_on(part, x[first:end], known[first:end] - first))
            if self._now % EVERY_BINS == 0:
                self._replay()
            first = end
        return np.concatenate(predictions, axis=1)

    def _keep(self, bins: Bins, x: np.ndarray, known: np.ndarray) -> None:
        """Keep bins that are about to be learned from, with their labels, for later."""
        now, told = self._now, self.told_
        for reset in np.flatnonzero(bins.reset):
            self._lose(now + int(reset))
        slots = (now + np.arange(len(x))) % self._kept
        told["told_X"][slots], told["told_Y"][slots] = x, self._scaled(bins)
        told["told_weight"][slots], told["told_observed"][slots] = bins.weight, bins.observed
        told["told_reset"][slots], told["told_arrives"][slots] = bins.reset, now + known
        for reset in np.flatnonzero(bins.reset):  # labels of this part that a reset within it makes useless
            early = slots[: int(reset)]
            lost = early[told["told_arrives"][early] >= now + reset]
            told["told_weight"][lost], told["told_arrives"][lost] = 0.0, _LOST

    def _lose(self, at: int) -> None:
        """Labels that wait when a segment begins at bin `at` are lost, here as in the loop."""
        told = self.told_
        lost = told["told_arrives"] >= at
        told["told_weight"][lost], told["told_arrives"][lost] = 0.0, _LOST

    def _label_waiting_record(self, y: np.ndarray, delay: int) -> None:
        super()._label_waiting_record(y, delay)
        if self._fresh_session:
            return
        now, told = self._now, self.told_
        slot = (now - delay) % self._kept
        if now - delay >= told["replay_place"][0] and delay < self._kept and told["told_arrives"][slot] == now:
            known = np.isfinite(y)
            told["told_Y"][slot] = np.where(known, (y - self.label_mean_) / self.label_scale_, 0.0)
            told["told_weight"][slot] = known

    def _replay(self) -> None:
        """Go through `replay` bins for each of the last `EVERY_BINS`; not before that many are told."""
        told, place, now, kept = self.told_, self.told_["replay_place"], self._now, self._kept
        oldest = max(int(place[0]), now - kept)
        place[1] = max(place[1], oldest)
        while place[1] < now and told["told_arrives"][place[1] % kept] < now:
            place[1] += 1
        left = self.replay * EVERY_BINS
        if place[1] - oldest < max(left, 1):
            return
        place[2] = max(place[2], oldest)
        while left:
            if place[2] >= place[1]:
                place[2], place[3] = oldest, place[3] + 1
            n = min(left, int(place[1] - place[2]))
            self._again(np.arange(place[2], place[2] + n), begins=int(place[2]) == oldest)
            place[2] += n
            left -= n

    def _again(self, bins: np.ndarray, begins: bool) -> None:
        """Learn from these bins, whose labels are known, once more."""
        told, slots, live = self.told_, bins % self._kept, self.state_.arrays
        learns = self._learns(bins + self.told_["replay_place"][3] * self.learn_every)
        weight = np.where(learns[..., None], told["told_weight"][slots], 0.0)
        reset = told["told_reset"][slots]
        reset[0] |= begins
        # Schedules and corrections of young averages count the updates of both.
        self.own_["counters"][:, kernel.UPDATES] = live["counters"][:, kernel.UPDATES]
        _, state = run(
            State(self.state_.learner, live | self.own_),
            told["told_X"][slots],
            told["told_Y"][slots],
            weight,
            None,
            told["told_observed"][slots],
            reset,
            in_place=True,
        )
        self.own_ = {name: state.arrays[name] for name in self.own_}
        live["counters"][:, kernel.UPDATES] = self.own_["counters"][:, kernel.UPDATES]

    # -- storage -------------------------------------------------------------------------------------------------

    def _lengths(self) -> dict[str, int | None]:
        return {**super()._lengths(), "kept": self._kept}

    def _fitted_arrays(self):
        arrays = super()._fitted_arrays()
        if hasattr(self, "state_"):
            arrays |= self.told_ | {_PREFIX + name: each for name, each in self.own_.items()}
        return arrays

    def _restore(self, arrays):
        super()._restore(arrays)
        if hasattr(self, "state_"):
            require_arrays(_TOLD, self._lengths(), arrays, self.name)
            self.told_ = {name: np.require(arrays[name], requirements=["C", "W"]) for name in _TOLD}
            own = {name.removeprefix(_PREFIX): each for name, each in arrays.items() if name.startswith(_PREFIX)}
            if missing := sorted({name for name in self.state_.arrays if _is_own(name)} - set(own)):
                named = ", ".join(_PREFIX + name for name in missing)
                raise InputError(f"arrays missing from a stored {self.name} decoder: {named}")
            require_finite(own)
            whole = adopt(self._learner(), self.state_.arrays | own, "the stored decoder's replay")
            self.own_ = {name: each for name, each in whole.arrays.items() if _is_own(name)}


def _is_own(name: str) -> bool:
    """Whether an array of a learner's state is the replay's own, beside the one of the session itself."""
    return name in _OWN or name.startswith("ring_")
