"""The decoder that goes through the session again: against a plain loop over lists, and what it must not learn from."""

import numpy as np
import pytest

from bci_adapt.decoders.base import Decoder
from bci_adapt.decoders.online_rnn import SMALL, OnlineDecoder
from bci_adapt.decoders.replaying import EVERY_BINS, ReplayingDecoder
from bci_adapt.errors import InputError
from bci_adapt.learning.backends import loop as kernel
from bci_adapt.learning.online import State, run, start
from tests.test_arms import config, listed
from tests.test_decoders import recording

FIXED = SMALL | {"cell": "tanh", "bin_s": 0.05, "normaliser_s": None}
OWN = ("memory", "state", "output", "counters", "mean_state", "mean_output")


@pytest.fixture(scope="module")
def network():
    return OnlineDecoder(**FIXED).fit(*recording())


def replayed(network, X, y, reset=None, arrives=None, **constants):
    decoder = ReplayingDecoder.of(network, **constants)
    decoder.adapt(X, y, reset, arrives)
    return decoder


def weights(decoder):
    return {name: decoder.state_.arrays[name] for name in ("W", "C", "mean_W", "mean_C", "opt_W", "opt_C")}


def same(left, right):
    return all(np.array_equal(each, weights(right)[name]) for name, each in weights(left).items())


def by_hand(network, X, y, replay, kept, members=1):
    """The decoder told bin by bin with all bins kept in a list; labels come with a delay of four bins."""
    decoder = ReplayingDecoder.of(network, replay=0)
    decoder.begin()
    x = decoder.running_.apply(np.sqrt(X), np.ones(len(X), bool))[0]
    Y = (y - network.label_mean_) / network.label_scale_
    begin = int(decoder.state_.counter(kernel.BIN)[0])
    fresh = start(decoder.state_.learner, decoder.state_.arrays["W"], decoder.state_.arrays["C"]).arrays
    own = {name: fresh[name] for name in fresh if name in OWN or name.startswith("ring_")}
    place, rounds, told = 0, 0, 0
    for t in range(len(X)):
        decoder.partial_fit(X[t : t + 1], y[t : t + 1], np.array([t == 0]))
        now = begin + t + 1
        if now % EVERY_BINS:
            continue
        told, oldest = max(t + 1 - 4, 0), max(0, t + 1 - kept)
        if told - oldest < replay * EVERY_BINS:
            continue
        place = max(place, oldest)
        for _ in range(replay * EVERY_BINS):
            if place >= told:
                place, rounds = oldest, rounds + 1
            turn = (begin + place + rounds) % members == np.arange(members)
            weight = np.where(turn[:, None, None], 1.0, 0.0) * np.ones((members, 1, 2))
            live = decoder.state_.arrays
            own["counters"][:, kernel.UPDATES] = live["counters"][:, kernel.UPDATES]
            row = slice(place, place + 1)
            first = np.array([place == oldest])
            _, state = run(State(decoder.state_.learner, live | own), x[row], Y[row], weight, None, None, first)
            for name, each in state.arrays.items():
                if name in own:
                    own[name] = each
                else:
                    live[name][...] = each
            live["counters"][:, kernel.UPDATES] = own["counters"][:, kernel.UPDATES]
            place += 1
    return decoder


@pytest.mark.parametrize(("replay", "replay_s", "members"), [(1, 600.0, 1), (3, 600.0, 1), (2, 3.0, 1), (2, 600.0, 2)])
def test_it_is_the_plain_loop_over_what_was_told(network, replay, replay_s, members):
    X, y, _ = recording(n_bins=130, seed=3, gap=False)
    if members > 1:
        network = OnlineDecoder(**FIXED, n_members=members, take_turns=True).fit(*recording())
    found = replayed(network, X, y, replay=replay, replay_s=replay_s)
    assert same(found, by_hand(network, X, y, replay, round(replay_s / 0.05), members))
    assert not same(found, replayed(network, X, y, replay=0)), "a replay of something is not one of nothing"


def test_a_replay_of_nothing_is_the_plain_decoder(network, tmp_path):
    X, y, reset = recording(seed=4)
    network.save(tmp_path / "plain.npz")
    plain = Decoder.load(tmp_path / "plain.npz")
    assert np.array_equal(plain.adapt(X, y, reset), replayed(network, X, y, reset, replay=0).online_predictions_)


@pytest.mark.parametrize("turns", [{}, {"n_members": 2, "take_turns": True, "learn_every": 2}])
def test_steps_of_a_live_session_equal_adapt(turns):
    X, y, _ = recording(n_bins=200, seed=7, gap=False)
    y[40:50] = np.nan
    network = OnlineDecoder(**FIXED, **turns).fit(*recording())
    whole, live = replayed(network, X, y, replay=2), ReplayingDecoder.of(network, replay=2)
    live.begin()
    for t in range(len(X)):
        live.step(X[t], y[t - 4] if t >= 4 else None)
    assert same(whole, live)


def test_labels_that_a_segments_end_has_made_useless_teach_nothing(network):
    X, y, reset = recording(seed=5)
    reset[220] = True
    other = y.copy()
    other[216:220] += 50.0  # their labels would come after the segment's end
    assert same(replayed(network, X, y, reset, replay=2), replayed(network, X, other, reset, replay=2))
    other[215] += 50.0
    assert not same(replayed(network, X, y, reset, replay=2), replayed(network, X, other, reset, replay=2))


def test_a_new_session_has_forgotten_the_one_before(network):
    X, y, _ = recording(n_bins=160, seed=6, gap=False)
    decoder = replayed(network, X, y, replay=2)
    decoder.begin()
    first = decoder.told_["replay_place"][0]
    decoder.partial_fit(X, y)
    assert first == 100 + 160, "after 100 bins of warming up"
    assert decoder.told_["replay_place"][2] >= first


def test_doors(network):
    with pytest.raises(InputError, match="replay: expected a whole number, 0 or more, got -1"):
        ReplayingDecoder.of(network, replay=-1).begin()
    with pytest.raises(InputError, match=r"replay_s: expected seconds, more than 0, got 0\.0"):
        ReplayingDecoder(**FIXED, replay_s=0.0).fit(*recording())


def test_as_an_arm_it_starts_from_the_training_that_the_other_networks_have():
    asked = [{"decoder": "replaying", "rule": "window", "average": 0.99, "replay": 3, "cells": ["gru"]}]
    plain = {"rule": "window", "optimizer": "rmsprop"}
    arms = {arm.name: arm for arm in listed(config([*asked, plain], learning_rate=5e-4)) if arm.cell == "gru"}
    replaying, network = arms["replaying(average=0.99, replay=3, rule=window)"], arms["window4_rmsprop"]
    assert (replaying.trained_as, replaying.fit) == (network.decoder, network.fit)
    assert {**replaying.adapt}.items() >= {"average": 0.99, "replay": 3, "learning_rate": 5e-4}.items()
    assert replaying.phases == network.phases, "it has online scores"
    assert replaying.checked, "and a canary"
