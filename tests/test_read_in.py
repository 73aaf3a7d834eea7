"""The decoder that learns its read-in anew: nothing without labels, columns that changed places with them."""

import numpy as np
import pytest
from sklearn.base import clone

from bci_adapt.decoders.label_features import label_features, variables_of
from bci_adapt.decoders.online_rnn import SMALL, OnlineDecoder
from bci_adapt.decoders.read_in import ReadInDecoder
from bci_adapt.metrics import r2

CONSTANTS = SMALL | {"bin_s": 0.05, "n_updates": 150}


def day(seed, order=None, n_bins=2400, n_channels=12):
    """Counts (n_bins, n_channels) of channels tuned to a smooth velocity and its speed; `order` mixes the columns."""
    rng = np.random.default_rng(seed)
    velocity = np.apply_along_axis(
        lambda v: np.convolve(v, np.hanning(25), "same"), 0, rng.standard_normal((n_bins, 2))
    )
    velocity /= velocity.std()
    of_channels = np.random.default_rng(7)
    tuning, to_speed = of_channels.standard_normal((2, n_channels)), of_channels.standard_normal((1, n_channels))
    drive = velocity @ tuning + np.linalg.norm(velocity, axis=1, keepdims=True) * to_speed
    X = rng.poisson(np.exp(1.0 + 0.4 * drive.clip(-4, 4))).astype(float)
    return X if order is None else X[:, order], velocity


@pytest.fixture(scope="module")
def trained():
    X, y = day(0)
    return ReadInDecoder(**CONSTANTS, read_in_every_s=2.0).fit(X, y), OnlineDecoder(**CONSTANTS).fit(X, y)


def held_out(decoder, X, y, n_stream=600):
    decoder.adapt(X[:n_stream], y[:n_stream])
    later = decoder.predict(X[n_stream:], continuing=True)
    return r2(y[n_stream:], later, np.ones_like(later, dtype=bool))


def copied(decoder, tmp_path):
    decoder.save(tmp_path / "copy.npz")
    return type(decoder).load(tmp_path / "copy.npz")


def test_without_labels_it_is_the_online_decoder_bit_for_bit(trained, tmp_path):
    X, _ = day(1)
    both = [copied(each, tmp_path) for each in trained]
    assert np.array_equal(both[0].predict(X), both[1].predict(X))
    assert np.array_equal(*(each.adapt(X) for each in both))
    assert np.array_equal(*(each.predict(X, continuing=True) for each in both))


def test_columns_that_changed_places_are_read_in(trained, tmp_path):
    """Ahead of the online decoder where columns are mixed, and not behind where they are not. Labels that
    have nothing to do with the neurons teach nothing.
    """
    order = np.random.default_rng(3).permutation(12)
    mixed, plain = day(2, order), day(2)
    read_in, online = (held_out(copied(each, tmp_path), *mixed) for each in trained)
    assert read_in > online + 0.1
    assert read_in > 0.5
    told = copied(trained[0], tmp_path)
    assert held_out(told, *plain) > held_out(copied(trained[1], tmp_path), *plain) - 0.02
    held_out(told := copied(trained[0], tmp_path), *mixed)
    assert told.share_.min() > 0.7
    X, y = mixed
    nonsense = np.roll(y, 1200, axis=0)
    assert held_out(copied(trained[0], tmp_path), X, nonsense) < 0.1


def test_what_is_learned_of_one_day_begins_the_next(trained, tmp_path):
    order = np.random.default_rng(3).permutation(12)
    decoder = copied(trained[0], tmp_path)
    held_out(decoder, *day(2, order))
    X, y = day(4, order)
    decoder.begin()
    again = decoder.adapt(X)  # no label of this day
    fresh = copied(trained[0], tmp_path).adapt(X)
    everywhere = np.ones_like(y, dtype=bool)
    assert r2(y, again, everywhere) > r2(y, fresh, everywhere) + 0.2


@pytest.mark.parametrize("take_turns", [False, True])
def test_steps_of_a_live_session_equal_adapt(trained, tmp_path, take_turns):
    X, y = (each[:300] for each in day(5, np.random.default_rng(3).permutation(12)))
    y = y.copy()
    y[40:50] = np.nan
    base = trained[0]
    if take_turns:
        base = clone(base).set_params(n_members=2, take_turns=True, n_updates=2).fit(*day(0))
    base, decoder = copied(base, tmp_path), copied(base, tmp_path)
    delay = round(base.label_delay_s / 0.05)
    expected = base.adapt(X, y)
    assert base.ready_
    decoder.begin()
    live = [decoder.step(X[t], y[t - delay] if t >= delay else None) for t in range(len(X))]
    np.testing.assert_allclose(live, expected, rtol=1e-9, atol=1e-10)


def test_features_of_labels():
    labels = np.array([[0.0, 3.0], [np.nan, np.nan], [4.0, 5.0], [6.0, 0.0], [1.0, 1.0]])
    stretch = np.array([0, 0, 0, 1, 1])
    features, known = label_features(labels, stretch, 1, 1, variables_of({}, 2))
    assert known.all()
    assert features.shape == (5, 3 * 5 + 1)
    filled = np.array([[0, 3], [2, 4], [4, 5], [6, 0], [1, 1]], float)  # between two of one stretch
    size = np.linalg.norm(filled, axis=1, keepdims=True)
    whole = np.hstack([filled, size, filled * size])
    for t, around in enumerate([(0, 0, 1), (0, 1, 2), (1, 2, 2), (3, 3, 4), (3, 4, 4)]):  # no window leaves its stretch
        np.testing.assert_allclose(features[t], [*whole[list(around)].ravel(), 1.0])
    labels[3:] = np.nan
    assert label_features(labels, stretch, 1, 1, variables_of({}, 2))[1].tolist() == [True, True, True, False, False]
    apart = {"outputs": [{"axes": ["x", "y"]}, {"axes": ["x", "y"]}]}
    assert variables_of(apart, 4) == [slice(0, 2), slice(2, 4)]
