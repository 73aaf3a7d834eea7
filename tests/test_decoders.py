"""Every decoder through the same properties, and each against an independent computation of itself."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import Ridge

from bci_adapt.catalog import variants
from bci_adapt.decoders.base import Decoder, delay_bins
from bci_adapt.decoders.lags import lagged
from bci_adapt.decoders.online_rnn import OnlineDecoder
from bci_adapt.decoders.persistence import PersistenceDecoder
from bci_adapt.decoders.rls import RLSDecoder
from bci_adapt.decoders.wiener import WienerDecoder
from bci_adapt.errors import InputError
from bci_adapt.jobs.arrays import permuted_in_time
from bci_adapt.normaliser import FLOOR, Normaliser

SMALL = {"n_hidden": 6, "n_updates": 30, "label_delay_s": 0.2, "warm_up_s": 5.0, "learning_rate": 1e-2}
DECODERS = {
    "rnn": OnlineDecoder(cell="tanh", **SMALL),
    "rnn_window": OnlineDecoder(cell="gru", rule="window", rule_constants={"steps": 3}, average=None, **SMALL),
    "rnn_rtrl": OnlineDecoder(cell="gru", rule="rtrl", **SMALL),
    "wiener": WienerDecoder(n_lags=3),
    "rls": RLSDecoder(n_lags=3, memory_s=20.0, label_delay_s=0.2, update_every_s=0.25),
    "persistence": PersistenceDecoder(label_delay_s=0.2),
}


def recording(n_bins=400, seed=0, n_channels=5, gap=True):
    """Counts that follow a smooth 2-D velocity, with an unobserved stretch, missing labels and a second segment."""
    rng = np.random.default_rng(seed)
    velocity = np.cumsum(rng.standard_normal((n_bins, 2)), axis=0)
    velocity = np.apply_along_axis(lambda v: np.convolve(v, np.ones(8) / 8, "same"), 0, velocity - velocity.mean(0))
    tuning = np.random.default_rng(99).standard_normal((2, n_channels)) / velocity.std()
    X = rng.poisson(np.exp(0.8 + 0.5 * velocity @ tuning)).astype(float)
    y, reset = velocity.copy(), np.zeros(n_bins, bool)
    if gap:
        X[60:70] = np.nan
        y[100:110] = np.nan
        y[150, 1] = np.nan
        reset[[0, 220]] = True
    return X, y, reset


@pytest.fixture(scope="module")
def fitted():
    X, y, reset = recording()
    return {name: clone(decoder).fit(X, y, reset) for name, decoder in DECODERS.items()}


def copy_of(decoder, tmp_path):
    decoder.save(tmp_path / "copy.npz")
    return Decoder.load(tmp_path / "copy.npz")


def arrays_of(decoder):
    return {key: np.array(value, copy=True) for key, value in decoder._fitted_arrays().items()}


def same(left, right, but=()):
    assert set(left) == set(right)
    return all(np.array_equal(left[key], right[key], equal_nan=True) for key in left if not key.startswith(but or "\0"))


def test_every_decoder_of_the_folder_is_here():
    assert {type(decoder).name for decoder in DECODERS.values()} == set(variants("bci_adapt.decoders", Decoder))


@pytest.mark.parametrize("name", DECODERS)
class TestEveryDecoder:
    def test_predict_is_pure_before_and_after_adapting(self, fitted, name, tmp_path):
        decoder = copy_of(fitted[name], tmp_path)
        X, y, reset = recording(seed=1)
        for _ in range(2):
            before = arrays_of(decoder)
            first, again = decoder.predict(X, reset), decoder.predict(X, reset)
            continued = decoder.predict(X, continuing=True)
            assert same(before, arrays_of(decoder))
            assert np.array_equal(first, again)
            assert np.isfinite(first).all()
            assert np.isfinite(continued).all()
            decoder.adapt(X, y, reset)

    def test_adapt_is_a_loop_of_pieces_and_of_stored_pieces(self, fitted, name, tmp_path):
        X, y, reset = recording(seed=2)
        whole = copy_of(fitted[name], tmp_path)
        expected = whole.adapt(X, y, reset)
        pieces, decoder = [], copy_of(fitted[name], tmp_path)
        decoder.begin()
        assert reset[220]  # one piece begins with a new segment
        for t in [*range(6), 6, 100, 101, 220, 233]:
            end = {6: 100, 233: 400, 101: 220, 220: 233}.get(t, t + 1)
            pieces.append(decoder.partial_fit(X[t:end], y[t:end], reset[t:end]).online_predictions_)
            decoder = copy_of(decoder, tmp_path)
        # BLAS may order a product of another height differently; the network's own loop may not.
        tolerance = {"rtol": 0, "atol": 0} if name.startswith(("rnn", "persistence")) else {"rtol": 1e-9, "atol": 1e-10}
        np.testing.assert_allclose(np.concatenate(pieces), expected, **tolerance)
        if name.startswith("rnn"):
            assert same(arrays_of(whole), arrays_of(decoder), but=("state_ring",))
            held = recording(seed=3)[0]
            assert np.array_equal(whole.predict(held, continuing=True), decoder.predict(held, continuing=True))

    def test_labels_reach_nothing_before_they_are_known(self, fitted, name, tmp_path):
        X, y, reset = recording(seed=4)
        changed, t = y.copy(), 300
        changed[t:] = -3.0 * changed[t:] + 7.0
        one, two = (copy_of(fitted[name], tmp_path).adapt(X, labels, reset) for labels in (y, changed))
        delay = delay_bins(0.2, 0.05)
        assert delay == 4
        assert np.array_equal(one[: t + delay + 1], two[: t + delay + 1])
        assert np.array_equal(one, two) == (name == "wiener")

    def test_without_labels_only_statistics_move(self, fitted, name, tmp_path):
        X, y, reset = recording(seed=5)
        decoder = copy_of(fitted[name], tmp_path)
        decoder.adapt(X, np.full_like(y, np.nan), reset)
        assert getattr(decoder, "weight_change_", 0.0) == 0.0
        for key in ("coef_", "last_"):
            if hasattr(decoder, key):
                assert np.array_equal(getattr(decoder, key), getattr(fitted[name], key))
        if name.startswith("rnn"):
            assert np.array_equal(decoder.state_.arrays["W"][0], fitted[name].W_)
            assert np.array_equal(decoder.state_.arrays["C"][0], fitted[name].C_)
            assert not np.array_equal(decoder.running_.mean, fitted[name].mean_)
        if name.startswith(("rls", "wiener")):
            assert not np.array_equal(decoder.running_mean_, fitted[name].mean_)

    def test_doors(self, fitted, name, tmp_path):
        X, y, _ = recording(seed=6)
        fresh = clone(DECODERS[name])
        for call, message in [
            (lambda: fresh.predict(X), "fit it"),
            (lambda: fitted[name].predict(X[:, :3]), "5 channels, got 3"),
            (lambda: fitted[name].predict(X[0]), "n_bins, n_channels"),
            (lambda: fitted[name].predict(X - 10), "negative"),
            (lambda: copy_of(fitted[name], tmp_path).adapt(X, y[:10]), "y: expected"),
            (lambda: copy_of(fitted[name], tmp_path).adapt(X, y[:, :1]), "2 outputs"),
            (lambda: fresh.fit(X, np.full_like(y, np.nan)), "finite labels"),
            (lambda: fresh.fit([X, X], [y]), "as many"),
            (lambda: Decoder.load(__file__), "npz"),
        ]:
            with pytest.raises(InputError, match=message):
                call()


def test_parameters_set_between_sessions_take_effect_or_are_refused(tmp_path):
    X, y, reset = recording(seed=9)
    decoder = OnlineDecoder(rule="window", rule_constants={"steps": 2}, **SMALL).fit(X, y, reset)
    decoder.adapt(X, y, reset)
    still = copy_of(decoder, tmp_path).set_params(learning_rate=0.0)
    before = still.state_.arrays["W"].copy()
    still.adapt(X, y, reset)
    assert np.array_equal(still.state_.arrays["W"], before)
    longer = copy_of(decoder, tmp_path).set_params(rule_constants={"steps": 6})
    fixed = copy_of(decoder, tmp_path).set_params(normaliser_s=None)
    assert not np.array_equal(longer.adapt(X, y, reset), decoder.adapt(X, y, reset))
    statistics = fixed.running_.mean.copy()
    fixed.adapt(X, y, reset)
    assert np.array_equal(fixed.running_.mean, statistics)
    with pytest.raises(InputError, match="'opt_W' does not belong to this cell, rule, optimiser and average"):
        copy_of(decoder, tmp_path).set_params(optimizer="adam").begin()
    decoder.set_params(optimizer="adam").save(tmp_path / "mixed.npz")
    with pytest.raises(InputError, match="opt_W"):
        Decoder.load(tmp_path / "mixed.npz")


@pytest.mark.parametrize("delay_s", [0.0, 0.2])
@pytest.mark.parametrize("rule", ["immediate", "window", "rtrl"])
def test_steps_of_a_live_session_equal_adapt(delay_s, rule, tmp_path):
    """In a live session the label handed over with a bin is that of the bin `delay` ago."""
    X, y, _ = recording(seed=7, gap=False)
    y[40:50] = np.nan
    base = OnlineDecoder(cell="gru", rule=rule, **(SMALL | {"label_delay_s": delay_s})).fit(X, y)
    decoder, delay = copy_of(base, tmp_path), delay_bins(delay_s, 0.05)
    expected = base.adapt(X, y)
    decoder.begin()
    live = [decoder.step(X[t], y[t - delay] if t >= delay else None) for t in range(len(X))]
    assert np.array_equal(np.array(live), expected)


def test_adaptation_helps_after_a_change_of_tuning_and_a_canary_does_not():
    X, y, _ = recording(n_bins=3000, seed=8, n_channels=12, gap=False)
    turned = X[:, np.roll(np.arange(12), 3)]
    decoder = OnlineDecoder(
        cell="tanh", n_hidden=16, n_updates=200, learning_rate=3e-3, average=None, label_delay_s=0.2
    )
    rls = RLSDecoder(n_lags=3, memory_s=100.0, label_delay_s=0.2)

    def score(adapted, X):
        held = adapted.predict(X[2000:], continuing=True)
        return 1 - np.sum((y[2000:] - held) ** 2) / np.sum((y[2000:] - y[2000:].mean(0)) ** 2)

    for each in (decoder, rls):
        each.fit(X, y)
        frozen = score(each, turned)
        each.adapt(turned[:2000], y[:2000])
        assert score(each, turned) > frozen + 0.3
        canary = clone(each).fit(X, y)
        shuffled = permuted_in_time(turned, seed=0)
        canary.adapt(shuffled[:2000], y[:2000])
        assert score(canary, shuffled) < 0.2


def test_normaliser_is_its_recursion_and_goes_on_bit_for_bit():
    rng = np.random.default_rng(0)
    X = rng.gamma(2.0, 1.0, (200, 3))
    observed = rng.random(200) < 0.8
    begin = Normaliser(np.array([1.0, 2.0, 3.0]), np.array([0.5, 1.0, 2.0]), time_constant_bins=30.0)
    out, end = begin.apply(X, observed)
    mean, variance, alpha = begin.mean.copy(), begin.variance.copy(), 1 - np.exp(-1 / 30.0)
    for t in range(200):
        if not observed[t]:
            assert (out[t] == 0).all()
            continue
        np.testing.assert_allclose(out[t], (X[t] - mean) / np.sqrt(variance + FLOOR**2), rtol=1e-10)
        variance = (1 - alpha) * (variance + alpha * (X[t] - mean) ** 2)
        mean = mean + alpha * (X[t] - mean)
    np.testing.assert_allclose([end.mean, end.variance], [mean, variance], rtol=1e-10)
    first, middle = begin.apply(X[:77], observed[:77])
    second, last = middle.apply(X[77:], observed[77:])
    assert np.array_equal(np.vstack([first, second]), out)
    assert np.array_equal(last.variance, end.variance)
    # Causal: what comes later changes nothing before it.
    X[150:] = 100.0
    assert np.array_equal(begin.apply(X, observed)[0][:150], out[:150])
    fixed, unmoved = Normaliser(begin.mean, begin.variance).apply(X)
    assert unmoved.mean is begin.mean
    np.testing.assert_allclose(fixed, (X - begin.mean) / np.sqrt(begin.variance + FLOOR**2))


def test_lags_do_not_cross_a_reset():
    x = np.arange(12.0).reshape(6, 2)
    out = lagged(x, np.array([0, 0, 0, 1, 1, 1]), 3)
    assert out[2].tolist() == [4, 5, 2, 3, 0, 1, 1]
    assert out[3].tolist() == [6, 7, 0, 0, 0, 0, 1]
    assert out[4].tolist() == [8, 9, 6, 7, 0, 0, 1]


def test_wiener_is_ridge():
    X, y, reset = recording()
    decoder = WienerDecoder(n_lags=3, penalty=0.1, normaliser_s=None).fit(X, y, reset)
    x = np.sqrt(np.nan_to_num(X))
    seen = np.isfinite(X).all(axis=1)
    normalised = np.where(seen[:, None], (x - x[seen].mean(0)) / np.sqrt(x[seen].var(0) + FLOOR**2), 0.0)
    features, usable = lagged(normalised, np.cumsum(reset), 3)[:, :-1], seen & np.isfinite(y).all(axis=1)
    theirs = Ridge(alpha=0.1 * usable.sum()).fit(features[usable], y[usable])
    np.testing.assert_allclose(decoder.predict(X, reset), theirs.predict(features), rtol=1e-8, atol=1e-8)


def test_rls_is_weighted_least_squares_over_source_and_stream():
    """The recursion against one direct solve, with the prior fading as the recursion says."""
    X, y, _ = recording(gap=False)
    decoder = RLSDecoder(
        n_lags=2, penalty=0.1, memory_s=10.0, normaliser_s=None, label_delay_s=0.0, update_every_s=0.25
    )
    decoder.fit(X, y)
    X2, y2, _ = recording(seed=11, gap=False)
    mean, variance = decoder.mean_, decoder.variance_

    def features(counts):
        return lagged((np.sqrt(counts) - mean) / np.sqrt(variance + FLOOR**2), np.zeros(len(counts)), 2)

    prior = np.linalg.inv(decoder.P_)
    gamma, n = 1 - 1 / 200.0, 400
    root = gamma ** (np.arange(n)[::-1, None] / 2)
    phi, target = features(X2) * root, y2 * root
    gram = gamma**n * prior + phi.T @ phi
    expected = np.linalg.solve(gram, gamma**n * prior @ decoder.coef_ + phi.T @ target)
    decoder.adapt(X2, y2)
    np.testing.assert_allclose(decoder.coef_, expected, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(np.linalg.inv(decoder.P_), gram, rtol=1e-5, atol=1e-6)


def test_persistence_is_the_label_of_long_enough_ago():
    X, y, _ = recording(gap=False)
    decoder = PersistenceDecoder(label_delay_s=0.2).fit(X, y)
    online = decoder.adapt(X, y)
    assert np.array_equal(online[5:], y[:-5])
    assert np.array_equal(decoder.predict(X)[0], decoder.predict(X)[-1])


@pytest.mark.parametrize(("delay_s", "bin_s", "bins"), [(0.5, 0.05, 10), (0.51, 0.05, 11), (0.3, 0.1, 3), (0, 0.02, 0)])
def test_delays_round_up_to_bins(delay_s, bin_s, bins):
    assert delay_bins(delay_s, bin_s) == bins


def test_permuted_counts_are_the_same_counts_elsewhere():
    X, _, _ = recording()
    shuffled = permuted_in_time(X, seed=1)
    seen = np.isfinite(X).all(axis=1)
    assert np.array_equal(np.isfinite(shuffled).all(axis=1), seen)
    assert not np.array_equal(shuffled[seen], X[seen])
    assert np.array_equal(np.sort(shuffled[seen], axis=0), np.sort(X[seen], axis=0))
