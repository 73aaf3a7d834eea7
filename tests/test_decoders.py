"""Every decoder through the same properties, and each against an independent computation of itself."""

import inspect

import numpy as np
import pytest
from scipy.signal import lfilter
from sklearn.base import clone
from sklearn.decomposition import FactorAnalysis
from sklearn.linear_model import Ridge

from bci_adapt.data.labelled import permuted_in_time
from bci_adapt.decoders import online_rnn
from bci_adapt.decoders.aligned import AlignedDecoder, encoder, factors, rotation
from bci_adapt.decoders.base import Decoder, decoders
from bci_adapt.decoders.fine_tuned import FineTunedDecoder
from bci_adapt.decoders.kalman import KalmanDecoder
from bci_adapt.decoders.lags import LaggedDecoder, lagged
from bci_adapt.decoders.online_rnn import OnlineDecoder
from bci_adapt.decoders.persistence import PersistenceDecoder
from bci_adapt.decoders.rls import RLSDecoder
from bci_adapt.decoders.settings import LIMITS, require_numbers
from bci_adapt.decoders.stacked import StackedDecoder
from bci_adapt.decoders.timing import delay_bins
from bci_adapt.decoders.wiener import WienerDecoder
from bci_adapt.errors import InputError
from bci_adapt.ground.catalog import variants
from bci_adapt.learning.bptt import Pretraining, pretrain
from bci_adapt.learning.cells.base import Network, cell
from bci_adapt.learning.normaliser import FLOOR, Normaliser

SMALL = online_rnn.SMALL | {"bin_s": 0.05}
BIN_S = 0.05
CLASSES = variants("bci_adapt.decoders", Decoder)
# Every decoder of the folder, by its own examples: "online_rnn", "online_rnn_window" …
DECODERS = {
    "_".join(filter(None, (name, of))): kind(bin_s=BIN_S, **constants)
    for name, kind in CLASSES.items()
    for of, constants in kind.examples.items()
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


class Fitted(dict):
    """Decoders by name, each fitted when it is first asked for: one of them alone is tested quickly."""

    def __missing__(self, name):
        X, y, reset = recording()
        self[name] = clone(DECODERS[name]).fit(X, y, reset)
        return self[name]


@pytest.fixture(scope="module")
def fitted():
    return Fitted()


def copy_of(decoder, tmp_path):
    decoder.save(tmp_path / "copy.npz")
    return Decoder.load(tmp_path / "copy.npz")


def arrays_of(decoder):
    return {key: np.array(value, copy=True) for key, value in decoder._fitted_arrays().items()}


def same(left, right, but=()):
    assert set(left) == set(right)
    return all(np.array_equal(left[key], right[key], equal_nan=True) for key in left if not key.startswith(but or "\0"))


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
        exact = decoder.name in ("online_rnn", "persistence")
        tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-9, "atol": 1e-10}
        np.testing.assert_allclose(np.concatenate(pieces), expected, **tolerance)
        if decoder.name == "online_rnn":
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
        assert np.array_equal(one, two) == (not fitted[name].learns_online)

    def test_labels_that_arrive_at_the_end_of_a_trial(self, fitted, name, tmp_path):
        X, y, reset = recording(seed=12)
        bins = np.arange(len(X))
        late, ends = (copy_of(fitted[name], tmp_path) for _ in range(2))
        assert np.array_equal(late.adapt(X, y, reset), ends.adapt(X, y, reset, arrives=bins + 4))
        assert same(arrays_of(late), arrays_of(ends))
        trial_end = (bins // 30) * 30 + 29
        whole, decoder = (copy_of(fitted[name], tmp_path) for _ in range(2))
        expected = whole.adapt(X, y, reset, arrives=trial_end)
        assert np.isfinite(expected).all()
        pieces = []
        decoder.begin()
        for t, end in [(0, 1), (1, 17), (17, 100), (100, 220), (220, 233), (233, 400)]:
            known = trial_end[t:end] - t
            pieces.append(decoder.partial_fit(X[t:end], y[t:end], reset[t:end], known).online_predictions_)
            decoder = copy_of(decoder, tmp_path)
        np.testing.assert_allclose(np.concatenate(pieces), expected, rtol=1e-8, atol=1e-9)
        changed = y.copy()
        changed[300:] += 5.0
        other = copy_of(fitted[name], tmp_path).adapt(X, changed, reset, arrives=trial_end)
        assert np.array_equal(other[:330], expected[:330])
        assert np.array_equal(other[330:], expected[330:]) == (not fitted[name].learns_online)

    def test_without_labels_only_statistics_move(self, fitted, name, tmp_path):
        X, y, reset = recording(seed=5)
        decoder = copy_of(fitted[name], tmp_path)
        decoder.adapt(X, np.full_like(y, np.nan), reset)
        assert getattr(decoder, "weight_change_", 0.0) == 0.0
        # The aligner has its alignment fitted without labels; what reads the latents stays.
        for key in ("latent_coef_",) if name == "aligned" else ("coef_", "last_", "moments_", "projection_"):
            if hasattr(decoder, key):
                assert np.array_equal(getattr(decoder, key), getattr(fitted[name], key))
        if isinstance(decoder, OnlineDecoder):
            for key, fitted_to in zip("WC", fitted[name].start_weights_, strict=True):
                assert (decoder.state_.arrays[key] == fitted_to).all()
            assert not np.array_equal(decoder.running_.mean, fitted[name].mean_)
        if isinstance(decoder, LaggedDecoder | KalmanDecoder):
            assert not np.array_equal(decoder.running_mean_, fitted[name].mean_)

    def test_doors(self, fitted, name, tmp_path):
        X, y, _ = recording(seed=6)
        fresh = clone(DECODERS[name])
        for call, message in [
            (lambda: fresh.predict(X), "fit it"),
            (lambda: fitted[name].predict(X[:, :3]), "5 channels, got 3"),
            (lambda: fitted[name].predict(X[0]), "n_bins, n_channels"),
            (lambda: fitted[name].predict(X - 10), "Negative"),
            (lambda: copy_of(fitted[name], tmp_path).adapt(X, y[:10]), "y: expected"),
            (lambda: copy_of(fitted[name], tmp_path).adapt(X, y[:, :1]), "2 outputs"),
            (lambda: fresh.fit(X, np.full_like(y, np.nan)), "finite labels"),
            *(
                (lambda known=known: copy_of(fitted[name], tmp_path).adapt(X, y, arrives=known), "arrives: expected")
                for known in (np.arange(len(X))[::-1], np.arange(len(X)) - 1, np.arange(3), np.full(len(X), 1e3))
            ),
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
@pytest.mark.parametrize(
    ("rule", "n_members", "take_turns", "learn_every"),
    [
        *(("immediate", 1, False, 1), ("window", 1, False, 1), ("rtrl", 1, False, 1), ("immediate", 2, False, 1)),
        *(("window", 2, True, 1), ("window", 2, True, 2), ("immediate", 1, False, 3)),
    ],
)
def test_steps_of_a_live_session_equal_adapt(delay_s, rule, n_members, take_turns, learn_every, tmp_path):
    """In a live session the label handed over with a bin is that of the bin `delay` ago."""
    X, y, _ = recording(seed=7, gap=False)
    y[40:50] = np.nan
    constants = SMALL | {"label_delay_s": delay_s, "n_members": n_members, "take_turns": take_turns}
    constants |= {"learn_every": learn_every}
    base = OnlineDecoder(cell="gru", rule=rule, **constants).fit(X, y)
    decoder, delay = copy_of(base, tmp_path), delay_bins(delay_s, 0.05)
    expected = base.adapt(X, y)
    decoder.begin()
    live = [decoder.step(X[t], y[t - delay] if t >= delay else None) for t in range(len(X))]
    assert np.array_equal(np.array(live), expected)


def test_adaptation_helps_after_a_change_of_tuning_and_a_canary_does_not():
    X, y, _ = recording(n_bins=3000, seed=8, n_channels=12, gap=False)
    turned = X[:, np.roll(np.arange(12), 3)]
    decoder = OnlineDecoder(
        bin_s=0.05, cell="tanh", n_hidden=16, n_updates=200, learning_rate=3e-3, average=None, label_delay_s=0.2
    )
    rls = RLSDecoder(bin_s=0.05, n_lags=3, memory_s=100.0, label_delay_s=0.2)

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
    live, running = [], begin
    for t in range(200):
        bin_, running = running.apply(X[t : t + 1], observed[t : t + 1])
        live.append(bin_[0])
    assert np.array_equal(live, out)
    assert np.array_equal(running.mean, end.mean)
    assert np.array_equal(running.variance, end.variance)
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
    decoder = WienerDecoder(bin_s=0.05, n_lags=3, penalty=0.1, normaliser_s=None).fit(X, y, reset)
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
        bin_s=0.05, n_lags=2, penalty=0.1, memory_s=10.0, normaliser_s=None, label_delay_s=0.0, update_every_s=0.25
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
    decoder = PersistenceDecoder(bin_s=0.05, label_delay_s=0.2).fit(X, y)
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


def test_rls_takes_the_same_blocks_however_late_they_come():
    X, y, _ = recording(gap=False)
    base = RLSDecoder(bin_s=0.05, n_lags=2, memory_s=10.0, label_delay_s=0.0, update_every_s=0.25)
    at_once, at_the_end = base.fit(X, y), clone(base).fit(X, y)
    at_once.adapt(X[::-1], y[::-1])
    predictions = at_the_end.adapt(X[::-1], y[::-1], arrives=np.full(len(X), len(X) - 1))
    np.testing.assert_allclose(at_the_end.coef_, at_once.coef_, rtol=1e-10)
    assert np.array_equal(predictions, clone(base).fit(X, y).adapt(X[::-1], np.full_like(y, np.nan)))


def test_persistence_holds_a_trial_until_the_next_one_ends():
    X, y, _ = recording(gap=False)
    bins = np.arange(len(X))
    decoder = PersistenceDecoder(bin_s=0.05).fit(X, y)
    online = decoder.adapt(X, y, arrives=(bins // 50) * 50 + 49)
    assert np.array_equal(online[50:], y[(bins[50:] // 50) * 50 - 1])
    assert np.array_equal(decoder.predict(X)[0], y[-1])


BASE = {"bin_s": 0.05, "cell": "gru", "n_hidden": 6, "n_updates": 20, "label_delay_s": 0.2, "average": None}


@pytest.fixture(scope="module")
def network():
    X, y, reset = recording()
    return OnlineDecoder(**BASE, warm_up_s=5.0).fit(X, y, reset)


@pytest.mark.parametrize(
    ("rule", "learns"),
    [("readout", ("output_bias",)), ("immediate", ("input", "bias", "recurrent")), ("readout", None)],
)
def test_weight_groups_that_learn(network, rule, learns, tmp_path):
    X, y, reset = recording(seed=1)
    decoder = copy_of(network, tmp_path).set_params(rule=rule, learns=learns)
    decoder.adapt(X, y, reset)
    again = copy_of(decoder, tmp_path)
    assert again.learns == learns
    moved_W, moved_C = (decoder.state_.arrays[key][0] != getattr(network, key + "_") for key in "WC")
    bias = np.arange(moved_C.shape[1]) == decoder.network_.output_bias
    of_C = {None: ~bias | bias, ("output_bias",): bias}.get(learns, np.zeros_like(bias))
    assert moved_W.any() == (rule == "immediate")
    assert moved_C.any(axis=0).tolist() == of_C.tolist()


def test_group_rates_of_zero_are_groups_that_do_not_learn(network, tmp_path):
    X, y, reset = recording(seed=1)
    masked = copy_of(network, tmp_path).set_params(learns=("readout",)).adapt(X, y, reset)
    rates = dict.fromkeys(("input", "bias", "recurrent", "output_bias"), 0.0)
    assert np.array_equal(copy_of(network, tmp_path).set_params(group_rates=rates).adapt(X, y, reset), masked)
    rates["readout"] = 2.0
    doubled = copy_of(network, tmp_path).set_params(group_rates=rates)
    fast = copy_of(network, tmp_path).set_params(learns=("readout",), learning_rate=2 * network.learning_rate)
    np.testing.assert_allclose(doubled.adapt(X, y, reset), fast.adapt(X, y, reset), rtol=1e-10)


def test_random_weights_and_a_cold_optimiser(network, tmp_path):
    X, y, reset = recording()
    random = copy_of(network, tmp_path).set_params(pretrained=False, seed=3)
    fresh = OnlineDecoder(**BASE, warm_up_s=5.0, pretrained=False, seed=3).fit(X, y, reset)
    W, C = random.network_.initial_weights(3)
    assert np.array_equal(fresh.W_, W)
    assert np.array_equal(fresh.mean_, network.mean_)
    assert np.array_equal(random.predict(X), fresh.predict(X))
    random.begin()
    assert np.array_equal(random.state_.arrays["C"][0], C)
    assert random.state_.arrays["opt_C"].any()
    assert np.array_equal(random.adapt(X, y, reset), fresh.adapt(X, y, reset))
    assert 0.0 < random.weight_change_ < 1.0
    for cold in (copy_of(network, tmp_path).set_params(warm_up_s=0.0), OnlineDecoder(**BASE, warm_up_s=0.0)):
        if not hasattr(cold, "W_"):
            cold.fit(X, y, reset)
        cold.begin()
        assert not cold.state_.arrays["opt_C"].any()


class TestPretraining:
    """What `fit` and `extend` make of sessions, against `pretrain` called by hand."""

    DAYS = tuple(recording(seed=seed) for seed in (0, 1, 2))

    def days(self, *which):
        return [list(part) for part in zip(*(self.DAYS[i] for i in which), strict=True)]

    def by_hand(self, days, seed, settings, initial=None):
        X, y, reset = days
        seen = [np.isfinite(each).all(axis=1) for each in X]
        x = []
        for each, kept in zip(X, seen, strict=True):
            root = np.sqrt(np.nan_to_num(each))
            x.append(np.where(kept[:, None], Normaliser.fit(root, kept).apply(root, kept)[0], 0.0))
        joined = np.concatenate(y)
        mean, scale = np.nanmean(joined, axis=0), np.nanstd(joined, axis=0)
        targets = [(np.nan_to_num(each) - mean) / scale for each in y]
        known = [np.isfinite(each).astype(float) for each in y]
        return pretrain(Network(cell("gru"), 5, 6, 2), x, targets, known, seen, reset, seed, settings, initial)

    def test_fit_hands_its_constants_to_pretraining(self, network):
        """The defaults of decoder and settings are the same, so that nothing changes unasked."""
        plain = OnlineDecoder(**BASE, seed=3).fit(*self.days(0, 1))
        W, C = self.by_hand(self.days(0, 1), 3, Pretraining(n_updates=20))
        assert np.array_equal(plain.W_, W)
        assert np.array_equal(plain.C_, C)
        constants = {
            "gain_jitter": 0.3, "offset_jitter": 0.2, "batch": 5, "window_bins": 40, "recency": 0.5,
            "input_dropout": 0.1,
        }  # fmt: skip
        other = OnlineDecoder(**BASE, **constants, pretrain_rate=1e-2).fit(*self.days(0, 1))
        settings = Pretraining(n_updates=20, learning_rate=1e-2, **constants)
        assert np.array_equal(other.W_, self.by_hand(self.days(0, 1), 0, settings)[0])

    def test_extending_goes_on_from_the_weights_over_all_sessions(self, tmp_path):
        base = OnlineDecoder(**BASE, added_updates=7, added_rate=1e-3).fit(*self.days(0))
        one, two = (copy_of(base, tmp_path) for _ in range(2))
        two.adapt(*self.DAYS[1])  # what is learned online is left out
        assert one.extend(*self.days(0, 1)) is one
        two.extend(*self.days(0, 1))
        assert same(arrays_of(one), arrays_of(two))
        C = base.C_ * (base.label_scale_ / one.label_scale_)[:, None]
        C[:, base.network_.output_bias] += (base.label_mean_ - one.label_mean_) / one.label_scale_
        seed = int(np.random.SeedSequence([0, 2]).generate_state(1)[0])
        settings = Pretraining(n_updates=7, learning_rate=1e-3)
        W, C = self.by_hand(self.days(0, 1), seed, settings, (base.W_, C))
        assert np.array_equal(one.W_, W)
        assert np.array_equal(one.C_, C)
        fresh = OnlineDecoder(**BASE).fit(*self.days(0, 1))
        for key in ("mean_", "variance_", "label_mean_", "label_scale_", "warm_X_", "warm_Y_"):
            np.testing.assert_array_equal(getattr(one, key), getattr(fresh, key))

    @pytest.mark.parametrize("cell_name", ["gru", "lru"])
    def test_another_label_scale_by_itself_changes_no_prediction(self, cell_name):
        X, y, reset = self.DAYS[0]
        constants = {**BASE, "cell": cell_name, "n_members": 2}
        decoder = OnlineDecoder(**constants, added_updates=0).fit(X, y, reset)
        before, scale = decoder.predict(X, reset), decoder.label_scale_
        elsewhere = 40.0 * self.DAYS[1][1] + [500.0, -3.0]
        decoder.extend([self.DAYS[1][0], X], [elsewhere, y], [reset, reset])  # statistics are those of X again
        assert (decoder.label_scale_ > 5 * scale).all()
        np.testing.assert_allclose(decoder.predict(X, reset), before, rtol=1e-9, atol=1e-9)

    def test_extending_helps_on_the_added_day(self):
        y, counts = smooth_movement(2000, 12)
        tuning = 0.4 * np.random.default_rng(2).standard_normal((2, 12))
        first, second = counts(tuning), counts(np.roll(tuning, 5, axis=1))
        decoder = OnlineDecoder(bin_s=0.05, n_hidden=12, n_updates=150, added_updates=150).fit(first[:1500], y[:1500])
        before = r2(y[1500:], decoder.predict(second[1500:]))
        decoder.extend([first[:1500], second[:1500]], [y[:1500], y[:1500]])
        assert r2(y[1500:], decoder.predict(second[1500:])) > before + 0.3
        assert r2(y[1500:], decoder.predict(first[1500:])) > 0.3

    def test_random_weights_and_closed_forms_are_extended_too(self):
        random = OnlineDecoder(**BASE, pretrained=False).fit(*self.days(0)).extend(*self.days(0, 1))
        assert np.array_equal(random.W_, random.network_.initial_weights(0)[0])
        wiener = WienerDecoder(bin_s=0.05, n_lags=2).fit(*self.days(0)).extend(*self.days(0, 1))
        assert np.array_equal(wiener.coef_, WienerDecoder(bin_s=0.05, n_lags=2).fit(*self.days(0, 1)).coef_)

    def test_doors_of_extend(self, network):
        X, y, _ = self.DAYS[1]
        decoder = clone(network).fit(*self.DAYS[0])
        before = arrays_of(decoder)
        for call, message in [
            (lambda: clone(network).extend(X, y), "fit it"),
            (lambda: decoder.extend([X, X[:, :3]], [y, y]), "5 channels, got 3"),
            (lambda: decoder.extend([X], [y[:, :1]]), "2 outputs"),
            (lambda: decoder.extend([X], [y * 0.0]), "vary in every output"),
            (lambda: clone(network).set_params(n_members=0).fit(X, y), "n_members"),
        ]:
            with pytest.raises(InputError, match=message):
                call()
        assert same(before, arrays_of(decoder))


def _numbers():
    """Every parameter of a decoder that is a number, by class; and for one class each, for all have the same table."""
    for name, kind in decoders().items():
        for parameter in inspect.signature(kind.__init__).parameters.values():
            if str(parameter.annotation).partition(" | ")[0] in ("int", "float"):
                yield name, kind, parameter


def test_every_number_of_a_decoder_has_its_limit():
    assert {parameter.name for *_, parameter in _numbers()} - {*LIMITS} == set()


@pytest.mark.parametrize("name", sorted({name for name, *_ in _numbers()}))
def test_a_number_that_cannot_be_is_one_sentence(name):
    """Refused by fit, before anything is computed; what stood in the decoder stands there still."""
    X, y, reset = recording()
    kind = decoders()[name]
    small = dict(next(iter(kind.examples.values()))) | {"bin_s": 0.05}
    for parameter in (each for found, _, each in _numbers() if found == name):
        limit = LIMITS[parameter.name]
        below = limit.least if limit.open else limit.least - 1
        wrong = ["3", True, np.nan, [1], below, *([] if limit.none else [None]), *([1.5] if limit.whole else [])]
        wrong += [limit.most + 0.5] if np.isfinite(limit.most) else [] if limit.endless else [np.inf]
        for value in wrong:
            with pytest.raises(InputError) as caught:
                kind(**small | {parameter.name: value}).fit(X, y, reset)
            said = str(caught.value)
            assert said == f"{parameter.name}: expected {limit.words}, got {value!r}"
    require_numbers({name: np.float32(0.5) for name in ("penalty", "recency")} | {"n_lags": np.int64(3)})


class TestEnsemble:
    """Several networks behind one face, against as many decoders by hand."""

    def test_members_that_take_turns_learn_every_so_many_labels_each(self):
        X, y, reset = recording()
        X2, y2, reset2 = recording(seed=1)
        fitted = SMALL | {"warm_up_s": 0.0}
        ensemble = OnlineDecoder(**fitted, n_members=2, take_turns=True, seed=1).fit(X, y, reset)
        alone = [OnlineDecoder(**fitted, seed=seed).fit(X, y, reset) for seed in (2, 3)]
        turns = [np.where((np.arange(len(y2)) % 2 == member)[:, None], y2, np.nan) for member in (0, 1)]
        expected = np.mean([each.adapt(X2, own, reset2) for each, own in zip(alone, turns, strict=True)], axis=0)
        np.testing.assert_allclose(ensemble.adapt(X2, y2, reset2), expected, rtol=1e-12, atol=1e-12)
        other = np.mean([each.fit(X, y, reset).adapt(X2, y2, reset2) for each in alone], axis=0)
        assert not np.allclose(other, expected), "every label for every member is something else"

    @pytest.mark.parametrize("n_members", [1, 2])
    def test_labels_between_those_that_are_learned_from_teach_nobody(self, n_members):
        X, y, reset = recording()
        X2, y2, reset2 = recording(seed=1)
        fitted = SMALL | {"warm_up_s": 0.0, "n_members": n_members}
        every, third = (OnlineDecoder(**fitted, learn_every=each).fit(X, y, reset) for each in (1, 3))
        some = np.where((np.arange(len(y2)) % 3 == 0)[:, None], y2, np.nan)
        np.testing.assert_array_equal(third.adapt(X2, y2, reset2), every.adapt(X2, some, reset2))
        assert 0.0 < third.weight_change_ < OnlineDecoder(**fitted).fit(X, y, reset).partial_fit(X2, y2).weight_change_
        # In turns: of every third label, the first teaches member 0, the second member 1.
        turns = OnlineDecoder(**fitted, learn_every=3, take_turns=True).fit(X, y, reset)
        assert turns._learns(np.arange(9)).tolist() == [
            [t % 3 == 0 and t // 3 % n_members == member for t in range(9)] for member in range(n_members)
        ]
        with pytest.raises(InputError, match="learn_every must be at least 1, got 0"):
            turns.set_params(learn_every=0).partial_fit(X2, y2, reset2)

    def test_is_the_mean_of_decoders_of_its_seeds(self, tmp_path):
        X, y, reset = recording()
        X2, y2, reset2 = recording(seed=1)
        held = recording(seed=2)[0]
        ensemble = OnlineDecoder(**SMALL, n_members=3, seed=2).fit(X, y, reset)
        alone = [OnlineDecoder(**SMALL, seed=seed).fit(X, y, reset) for seed in (6, 7, 8)]
        assert np.array_equal(ensemble.W_, np.stack([each.W_ for each in alone]))

        def same_mean(ours, theirs):
            np.testing.assert_allclose(ours, np.mean(np.stack(theirs), axis=0), rtol=1e-12, atol=1e-12)

        same_mean(ensemble.predict(X, reset), [each.predict(X, reset) for each in alone])
        same_mean(ensemble.adapt(X2, y2, reset2), [each.adapt(X2, y2, reset2) for each in alone])
        again = copy_of(ensemble, tmp_path)
        for one in (ensemble, again):
            same_mean(one.predict(held, continuing=True), [each.predict(held, continuing=True) for each in alone])
        assert 0.0 < again.weight_change_ < max(each.weight_change_ for each in alone)
        assert not again.diverged_
        again.state_.arrays["W"][1, 0, 0] = np.nan
        assert again.diverged_
        for each in (ensemble, *alone):
            each.set_params(added_updates=4).extend([X, X2], [y, y2], [reset, reset2])
        same_mean(ensemble.predict(X, reset), [each.predict(X, reset) for each in alone])

    def test_fine_tuned_members_are_tuned_apart(self):
        X, y, reset = recording()
        X2, y2, reset2 = recording(seed=1)
        ensemble = FineTunedDecoder.of(OnlineDecoder(**BASE, n_members=2).fit(X, y, reset), tune_updates=4)
        alone = [
            FineTunedDecoder.of(OnlineDecoder(**BASE, seed=seed).fit(X, y, reset), tune_updates=4) for seed in (0, 1)
        ]
        for each in (ensemble, *alone):
            each.adapt(X2, y2, reset2)
        for key in ("W", "C", "state"):
            theirs = np.concatenate([each.state_.arrays[key] for each in alone])
            assert np.array_equal(ensemble.state_.arrays[key], theirs)


class TestStacked:
    SETTINGS = SMALL | {"n_lags": 3, "memory_s": 50.0, "update_every_s": 0.25}

    def both(self, X, y, reset):
        """What the parts of a stack predict through a session, each by itself."""
        fit = recording()
        shared = {"bin_s": 0.05, "label_delay_s": 0.2, "n_lags": 3, "memory_s": 50.0, "update_every_s": 0.25}
        return OnlineDecoder(**SMALL).fit(*fit).adapt(X, y, reset), RLSDecoder(**shared).fit(*fit).adapt(X, y, reset)

    def test_without_labels_it_is_the_network_alone(self):
        X, y, reset = recording(seed=1)
        none = np.full_like(y, np.nan)
        stacked, network = StackedDecoder(**self.SETTINGS).fit(*recording()), OnlineDecoder(**SMALL).fit(*recording())
        assert np.array_equal(stacked.predict(X, reset), network.predict(X, reset))
        assert np.array_equal(stacked.adapt(X, none, reset), network.adapt(X, none, reset))
        held = recording(seed=2)[0]
        assert np.array_equal(stacked.predict(held, continuing=True), network.predict(held, continuing=True))

    def test_with_an_overwhelming_prior_it_is_the_prior(self):
        X, y, reset = recording(seed=1)
        network, linear = self.both(X, y, reset)
        for prior, expected in (("network", network), ("mean", (network + linear) / 2)):
            stacked = StackedDecoder(**self.SETTINGS, prior=prior, prior_s=1e12).fit(*recording())
            np.testing.assert_allclose(stacked.adapt(X, y, reset), expected, rtol=1e-7, atol=1e-7)
        # The prior can still be chosen after the fit.
        later = StackedDecoder(**self.SETTINGS, prior_s=1e12).fit(*recording()).set_params(prior="mean")
        np.testing.assert_allclose(later.adapt(X, y, reset), expected, rtol=1e-7, atol=1e-7)

    @pytest.mark.parametrize("memory_s", [1e9, 5.0])
    def test_weights_are_least_squares_of_the_labels_that_are_known(self, memory_s):
        X, y, _ = recording(seed=1)
        stacked = StackedDecoder(**self.SETTINGS, prior_s=3.0, weight_memory_s=memory_s).fit(*recording())
        found = stacked.adapt(X, y)
        network, linear = self.both(X, y, None)
        seen = np.isfinite(X).all(axis=1)
        for t in (3, 8, 9, 250, 399):
            known = np.arange(len(X)) // 5 * 5 + 4 + 4 < t  # blocks of 5 bins, the last label 4 bins late
            for output in range(2):
                rows = known & seen & np.isfinite(y[:, output])
                mean, scale = stacked.label_mean_[output], stacked.label_scale_[output]
                p = (np.stack([network, linear], axis=1)[:, :, output] - mean) / scale
                root = (1 - 0.05 / memory_s) ** (np.arange(rows.sum())[::-1, None] / 2)
                phi = np.vstack([p[rows] * root, np.sqrt(60) * np.eye(2)])
                target = np.concatenate([(y[rows, output] - mean) / scale * root[:, 0], np.sqrt(60) * np.array([1, 0])])
                weights = np.linalg.lstsq(phi, target, rcond=None)[0]
                assert found[t, output] == pytest.approx(p[t] @ weights * scale + mean, rel=1e-8, abs=1e-8)

    def test_it_leans_on_the_part_that_decodes_and_on_none_where_neurons_know_nothing(self):
        y, counts = smooth_movement(3000, 12)
        X = counts(0.4 * np.random.default_rng(2).standard_normal((2, 12)))
        mute = {
            "bin_s": 0.05,
            "pretrained": False,
            "learning_rate": 0.0,
            "average": None,
            "n_hidden": 6,
            "label_delay_s": 0.2,
        }
        shared = {"n_lags": 3, "label_delay_s": 0.2, "bin_s": 0.05}
        stacked = StackedDecoder(**mute, n_lags=3, prior_s=5.0).fit(X[:1000], y[:1000])
        linear = RLSDecoder(**shared).fit(X[:1000], y[:1000])
        for each in (stacked, linear):
            each.adapt(X[1000:2000], y[1000:2000])
        assert np.abs(stacked.weights_[:, 1] - 1.0).max() < 0.2
        scores = [r2(y[2000:], each.predict(X[2000:], continuing=True)) for each in (stacked, linear)]
        assert scores[0] > scores[1] - 0.05 > 0.3
        shuffled = permuted_in_time(X, seed=0)
        canary = StackedDecoder(**mute, n_lags=3, prior_s=5.0).fit(X[:1000], y[:1000])
        canary.adapt(shuffled[1000:2000], y[1000:2000])
        assert np.abs(canary.weights_[:, 1]).max() < 0.3
        assert r2(y[2000:], canary.predict(shuffled[2000:], continuing=True)) < 0.1

    @pytest.mark.parametrize("delay_s", [0.0, 0.2])
    def test_steps_of_a_live_session_equal_adapt(self, delay_s, tmp_path):
        """Also where bins have no neurons: the label that comes for one later is not used."""
        X, y, _ = recording(seed=7)
        base = StackedDecoder(**(self.SETTINGS | {"label_delay_s": delay_s}), n_members=2, prior_s=5.0)
        whole = base.fit(*recording())
        decoder, delay = copy_of(whole, tmp_path), delay_bins(delay_s, 0.05)
        expected = whole.adapt(X, y)
        decoder.begin()
        live = [decoder.step(X[t], y[t - delay] if t >= delay else None) for t in range(len(X))]
        np.testing.assert_allclose(np.array(live), expected, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(decoder.weights_, whole.weights_, rtol=1e-9)
        assert np.abs(whole.weights_ - [1.0, 0.0]).max() > 0.01

    def test_extended_it_is_both_parts_extended(self):
        days = [list(part) for part in zip(recording(), recording(seed=1), strict=True)]
        stacked = StackedDecoder(**self.SETTINGS, added_updates=3).fit(*recording()).extend(*days)
        network = OnlineDecoder(**SMALL, added_updates=3).fit(*recording()).extend(*days)
        assert np.array_equal(stacked.W_, network.W_)
        assert np.array_equal(stacked.linear_.coef_, RLSDecoder(bin_s=0.05, n_lags=3, memory_s=50.0).fit(*days).coef_)

    def test_doors(self):
        X, y, reset = recording()
        for parameters, message in [({"prior": "linear"}, "prior must be"), ({"prior_s": 0.0}, "prior_s")]:
            with pytest.raises(InputError, match=message):
                StackedDecoder(**self.SETTINGS, **parameters).fit(X, y, reset)
        decoder = StackedDecoder(**self.SETTINGS).fit(X, y, reset)
        with pytest.raises(InputError, match="memory_s must be longer"):
            decoder.set_params(weight_memory_s=0.01).adapt(X, y)


class TestFineTuned:
    def test_without_updates_or_labels_it_is_the_normaliser_alone(self, network, tmp_path):
        X, y, reset = recording(seed=1)
        still = copy_of(network, tmp_path).set_params(rule="readout", learning_rate=0.0)
        online = still.adapt(X, y, reset)
        held = still.predict(X, reset, continuing=True)
        for parameters, labels in (({"tune_updates": 0}, y), ({}, np.full_like(y, np.nan))):
            tuned = FineTunedDecoder.of(network, **parameters)
            assert np.array_equal(tuned.adapt(X, labels, reset), online)
            assert np.array_equal(tuned.predict(X, reset, continuing=True), held)
            assert tuned.weight_change_ == 0.0

    def test_it_is_pretraining_started_from_the_weights_on_labels_that_arrived(self, network):
        X, y, reset = recording(seed=1)
        tuned = FineTunedDecoder.of(network, tune_updates=7, tune_rate=1e-2, input_dropout=0.1)
        online = tuned.adapt(X, y, reset)
        assert np.array_equal(online, FineTunedDecoder.of(network, tune_updates=0).adapt(X, y, reset))
        x, _ = network._normaliser().apply(np.sqrt(np.nan_to_num(X)), np.isfinite(X).all(axis=1))
        known = np.isfinite(y).astype(float)
        known[[*range(216, 220), *range(396, 400)]] = 0.0  # waited at the reset, and at the end
        W, C = pretrain(
            network.network_, [x], [np.nan_to_num((y - network.label_mean_) / network.label_scale_)], [known],
            [np.isfinite(X).all(axis=1)], [reset], 0,
            Pretraining(n_updates=7, learning_rate=1e-2, input_dropout=0.1), initial=(network.W_, network.C_),
        )  # fmt: skip
        assert np.array_equal(tuned.state_.arrays["W"][0], W)
        assert np.array_equal(tuned.state_.arrays["C"][0], C)
        assert tuned.weight_change_ > 0.0

    def test_pieces_then_finish_are_adapt(self, network, tmp_path):
        X, y, reset = recording(seed=1)
        whole, decoder = (FineTunedDecoder.of(network, tune_updates=5) for _ in range(2))
        whole.adapt(X, y, reset)
        decoder.begin()
        for t in (0, 150, 350):
            end = {0: 150, 150: 350, 350: 400}[t]
            decoder.partial_fit(X[t:end], y[t:end], reset[t:end])
            decoder = copy_of(decoder, tmp_path)
        assert decoder.weight_change_ == 0.0
        decoder.finish()
        assert same(arrays_of(whole), arrays_of(decoder), but=("state_ring",))


def textbook_kalman(z, C, c, A, W, Q, P):
    """Predict, then correct, with the gain as every textbook has it."""
    x, out = np.zeros(len(A)), []
    for now in z:
        x, P = A @ x, A @ P @ A.T + W
        if np.isfinite(now).all():
            K = P @ C.T @ np.linalg.inv(C @ P @ C.T + Q)
            x, P = x + K @ (now - c - C @ x), (np.eye(len(A)) - K @ C) @ P
        out.append(x)
    return np.array(out)


def normalised(X, statistics):
    return (np.sqrt(X) - statistics.mean_) / np.sqrt(statistics.variance_ + FLOOR**2)


class TestKalman:
    @pytest.mark.parametrize("lag", [0, 2])
    def test_equals_the_textbook_recursion(self, lag):
        X, y, _ = recording(gap=False, n_bins=600)
        decoder = KalmanDecoder(bin_s=0.05, lag_bins=lag, penalty=0.1, normaliser_s=None).fit(X, y)
        x, z = (y - y.mean(0)) / y.std(0), normalised(X, decoder)
        A = np.linalg.lstsq(x[:-1], x[1:], rcond=None)[0].T
        rest = x[1:] - x[:-1] @ A.T
        here, explained = x[lag:], z[: len(z) - lag]
        H = np.linalg.lstsq(np.hstack([here, np.ones((len(here), 1))]), explained, rcond=None)[0]
        noise = explained - here @ H[:-1] - H[-1]
        Q = noise.T @ noise / len(noise) + 0.1 * np.eye(5)
        X2, _, _ = recording(seed=1, gap=False)
        X2[[7, *range(200, 230)]] = np.nan
        z2 = np.vstack([np.full((lag, 5), np.nan), normalised(X2, decoder)])[: len(X2)]
        expected = textbook_kalman(z2, H[:-1].T, H[-1], A, rest.T @ rest / len(rest), Q, x.T @ x / len(x))
        found = decoder.predict(X2)
        np.testing.assert_allclose(found, expected * y.std(0) + y.mean(0), rtol=1e-6, atol=1e-6)
        # A segment starts afresh, whatever went before.
        reset = np.arange(len(X2)) == 100
        np.testing.assert_allclose(decoder.predict(X2, reset)[100:], decoder.predict(X2[100:]), rtol=1e-9, atol=1e-10)

    def test_adaptive_without_forgetting_is_least_squares_over_source_and_stream(self):
        X, y, _ = recording(gap=False)
        X2, y2, _ = recording(seed=3, gap=False)
        parameters = {"bin_s": 0.05, "lag_bins": 0, "normaliser_s": None, "label_delay_s": 0.0, "update_every_s": 0.25}
        decoder = KalmanDecoder(adaptive=True, memory_s=np.inf, **parameters).fit(X, y)
        frozen = KalmanDecoder(**parameters).fit(X, y)
        first = decoder.adapt(X2[:5], y2[:5])
        assert np.array_equal(first, frozen.adapt(X2[:5], y2[:5]))
        decoder = KalmanDecoder(adaptive=True, memory_s=np.inf, **parameters).fit(X, y)
        decoder.adapt(X2, y2)
        states = (np.vstack([y, y2]) - y.mean(0)) / y.std(0)
        z, known = normalised(np.vstack([X, X2]), decoder), np.hstack([states, np.ones((800, 1))])
        H = np.linalg.lstsq(known, z, rcond=None)[0]
        rest = z - known @ H
        Q = rest.T @ rest / 800 + decoder.penalty * np.eye(5)
        weights = np.linalg.solve(Q, H[:-1].T)
        np.testing.assert_allclose(decoder.projection_[:-1], weights, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(decoder.projection_[-1], -H[-1] @ weights, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(decoder.information_, H[:-1] @ weights, rtol=1e-6, atol=1e-8)

    def test_short_memory_forgets_the_source(self):
        y, counts = smooth_movement(4000, 12)
        tuning = 0.4 * np.random.default_rng(2).standard_normal((2, 12))
        X, turned = counts(tuning), counts(np.roll(tuning, 5, axis=1))
        decoder = KalmanDecoder(bin_s=0.05, adaptive=True, memory_s=40.0, label_delay_s=0.2, lag_bins=0).fit(X, y)
        refit = KalmanDecoder(bin_s=0.05, lag_bins=0).fit(turned[:3000], y[:3000])
        before = r2(y[3000:], decoder.predict(turned[3000:]))
        decoder.adapt(turned[:3000], y[:3000])
        after = r2(y[3000:], decoder.predict(turned[3000:], continuing=True))
        assert after > before + 0.3
        assert after == pytest.approx(r2(y[3000:], refit.predict(turned[3000:])), abs=0.05)

    @pytest.mark.parametrize("adaptive", [False, True])
    def test_outputs_of_two_kinds_and_kinds_that_are_formed(self, adaptive):
        X, velocity, _ = recording(gap=False, n_bins=1000)
        position = np.cumsum(velocity, axis=0) * 0.05
        both = np.hstack([position, velocity])
        kinds = ("position", "position", "velocity", "velocity")
        pv = KalmanDecoder(kinds, "position_velocity", adaptive, bin_s=0.05).fit(X, both)
        # Formed from one kind alone, the state is the same state.
        from_velocity = KalmanDecoder(None, "position_velocity", adaptive, bin_s=0.05).fit(X, velocity)
        np.testing.assert_allclose(from_velocity.A_, pv.A_, atol=1e-6)
        np.testing.assert_allclose(from_velocity.adapt(X, velocity), pv.adapt(X, both)[:, 2:], atol=1e-6)
        from_position = KalmanDecoder(kinds[:2], "position_velocity", adaptive, bin_s=0.05).fit(X, position)
        np.testing.assert_allclose(from_position.A_, pv.A_, atol=0.02)
        # Physical structure: position moves by what velocity says, exactly where labels do.
        kappa = 0.05 * pv.label_scale_[2:] / pv.label_scale_[:2]
        np.testing.assert_allclose(pv.A_[:2, 2:], kappa[:, None] * pv.A_[2:, 2:], rtol=1e-8)
        np.testing.assert_allclose(pv.A_[:2, :2], np.eye(2))
        # Apart, each kind is the filter of that kind alone.
        apart = KalmanDecoder(kinds, "velocity", adaptive, bin_s=0.05).fit(X, both)
        alone = KalmanDecoder(None, "velocity", adaptive, bin_s=0.05).fit(X, velocity)
        np.testing.assert_allclose(apart.adapt(X, both)[:, 2:], alone.adapt(X, velocity), rtol=1e-8, atol=1e-10)

    def test_formed_states_do_not_cross_a_segment_or_a_call(self):
        X, y, reset = recording()
        decoder = KalmanDecoder(bin_s=0.05, state="position_velocity").fit(X, y, reset)
        whole, _ = decoder._states(y, reset, np.full(2, np.nan))
        assert np.allclose(whole[220, :2], 0.05 * y[220])
        first, carried = decoder._states(y[:300], reset[:300], np.full(2, np.nan))
        second, _ = decoder._states(y[300:], reset[300:], carried)
        np.testing.assert_allclose(np.vstack([first, second]), whole, rtol=1e-9, atol=1e-12)
        decoder = KalmanDecoder(("position", "position"), "position_velocity", bin_s=0.05).fit(X, y, reset)
        whole, _ = decoder._states(y, reset, np.full(2, np.nan))
        assert np.isnan(whole[220, 2:]).all()
        np.testing.assert_allclose(whole[221, 2:], (y[221] - y[220]) / 0.05)

    def test_silent_channels_and_few_labels_break_nothing(self):
        X, y, _ = recording(gap=False, n_channels=40)
        X[:, 3] = 0.0
        decoder = KalmanDecoder(bin_s=0.05, adaptive=True).fit(X[:30], y[:30])
        assert np.isfinite(decoder.adapt(X, y)).all()
        assert r2(y[200:], KalmanDecoder(bin_s=0.05).fit(X, y).predict(X)[200:]) > 0.3

    def test_doors(self):
        X, y, _ = recording()
        for parameters, message in [
            ({"outputs": ("velocity",)}, "outputs"),
            ({"outputs": ("velocity", "speed")}, "outputs"),
            ({"outputs": ("velocity", "position"), "state": "acceleration"}, "state must be"),
            ({"lag_bins": -1}, "lag_bins"),
        ]:
            with pytest.raises(InputError, match=message):
                KalmanDecoder(**parameters, bin_s=0.05).fit(X, y)
        with pytest.raises(InputError, match="fit it again"):
            KalmanDecoder(bin_s=0.05).fit(X, y).set_params(state="position_velocity").begin()


def smooth_movement(n_bins, n_channels, n_latents=2):
    """Smooth latents of unit variance, and counts of channels with a given tuning (n_latents, n_channels) to them."""
    rng = np.random.default_rng(1)
    smooth = lfilter([1.0], [1.0, -0.9], rng.standard_normal((n_bins, n_latents)), axis=0)
    latents = smooth / smooth.std(0)
    return latents, lambda tuning: rng.poisson(np.exp(1.0 + latents @ tuning)).astype(float)


def r2(truth, prediction):
    return 1 - np.sum((truth - prediction) ** 2) / np.sum((truth - truth.mean(0)) ** 2)


class TestAligned:
    def test_factors_are_those_of_the_bins(self):
        rng = np.random.default_rng(0)
        z = rng.standard_normal((3000, 2)) @ rng.standard_normal((2, 8)) + 0.7 * rng.standard_normal((3000, 8))
        z -= z.mean(0)
        loadings, private = factors(z.T @ z / len(z), 2)
        # Noise that is exactly uncorrelated adds what every channel has at least.
        noise = np.linalg.qr(np.hstack([np.ones((3000, 1)), z, rng.standard_normal((3000, 8))]))[0][:, 9:]
        z = z + np.sqrt(0.1 * 3000) * noise
        theirs = FactorAnalysis(2, svd_method="lapack", tol=1e-8, max_iter=5000).fit(z)
        np.testing.assert_allclose(loadings @ loadings.T, theirs.components_.T @ theirs.components_, atol=0.02)
        np.testing.assert_allclose(private, theirs.noise_variance_, atol=0.02)
        np.testing.assert_allclose(
            z @ encoder(theirs.components_.T, theirs.noise_variance_), theirs.transform(z), rtol=1e-6, atol=1e-8
        )

    def test_rotation_is_found_over_the_stable_channels(self):
        rng = np.random.default_rng(0)
        ours = rng.standard_normal((20, 3))
        turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
        theirs = ours @ turn.T
        theirs[:8] = rng.standard_normal((8, 3))
        theirs[8] = ours[9] = 0.0  # silent on one of the days
        found, kept = rotation(theirs, ours, 8)
        np.testing.assert_allclose(found, turn, atol=1e-10)
        assert set(kept) <= set(range(10, 20))
        found, _ = rotation(rng.standard_normal((20, 3)), ours, 8)
        assert np.linalg.norm(found - turn) > 0.1

    def test_realigns_over_channels_that_changed_and_not_where_nothing_stayed(self):
        """Latents drive movement and channels; half of the channels change tuning, or all of them do."""
        rng, m = np.random.default_rng(2), 30
        latents, counts = smooth_movement(6000, m, 3)
        y = latents @ rng.standard_normal((3, 2))
        tuning, other = 0.4 * rng.standard_normal((2, 3, m))
        decoder = AlignedDecoder(bin_s=0.05, n_latents=3, n_stable=12, n_lags=3).fit(counts(tuning), y)
        scores = {}
        for changed in (0, 15, m):
            X = counts(np.where(np.arange(m) < changed, other, tuning))
            frozen = r2(y[4000:], clone(decoder).set_params(align_every_s=1e6).fit(counts(tuning), y).predict(X[4000:]))
            aligned = clone(decoder).fit(counts(tuning), y)
            aligned.adapt(X[:4000], None)
            scores[changed] = frozen, r2(y[4000:], aligned.predict(X[4000:], continuing=True))
            if changed == 15:
                assert (aligned.stable_ >= 15).all()
        assert scores[0][1] > scores[0][0] - 0.05
        assert scores[15][1] > scores[15][0] + 0.2
        assert scores[m][1] < 0.3

    def test_doors(self):
        X, y, _ = recording()
        for parameters, message in [({"n_latents": 0}, "n_latents"), ({"n_latents": 2, "n_stable": 1}, "n_stable")]:
            with pytest.raises(InputError, match=message):
                AlignedDecoder(**parameters, bin_s=0.05).fit(X, y)
