"""`ba.evaluate`: the prequential loop, held to a plain one and to river's delayed progressive validation."""

import copy
import re
import warnings

import numpy as np
import pytest

import bci_adapt as ba
from bci_adapt.data.labelled import session_arrays
from bci_adapt.decoders.kalman import KalmanDecoder
from bci_adapt.decoders.online_rnn import OnlineDecoder
from bci_adapt.decoders.rls import RLSDecoder
from bci_adapt.decoders.timing import LABEL_DELAY_S
from bci_adapt.decoders.wiener import WienerDecoder
from bci_adapt.errors import InputError
from bci_adapt.protocol.supervision import Teaching, shown, stream_of

BIN_S, N_BINS, N_STREAM, DELAY = 0.05, 420, 200, 3
LATE_S = DELAY * BIN_S


def recording(seed, n_axes=2, n_bins=N_BINS, gap=True):
    """A made session: two segments, bins without neurons or labels, two trials."""
    rng = np.random.default_rng(seed)
    velocity = np.zeros((n_bins, n_axes))
    for t in range(1, n_bins):
        velocity[t] = 0.9 * velocity[t - 1] + rng.normal(0, 1.0, n_axes)
    tuning = np.random.default_rng(1).normal(0, 0.3, (n_axes, 6)) + 0.05 * rng.normal(size=(n_axes, 6))
    counts = rng.poisson(np.exp(np.clip(velocity @ tuning, -3, 2)))
    time_s = np.round(BIN_S * (np.arange(1, n_bins + 1) + 40 * gap * (np.arange(n_bins) >= 120)), 6)
    position = BIN_S * np.cumsum(velocity, axis=0)
    session = ba.session(
        counts=counts, target=position, target_time_s=time_s, bin_s=BIN_S, session_id=f"day{seed}", channels=[*"abcdef"]
    )
    if not gap:
        return session
    session = session.drop_vars([name for name in session if str(name).startswith("trial_")])
    trials = {"start_s": [1.0, 8.0], "stop_s": [5.0, 20.0], "go_s": [np.nan] * 2, "result": ["R", "F"]}
    session = session.assign({f"trial_{name}": ("trial", np.array(each)) for name, each in trials.items()})
    session["valid"][[60, 61, 62, 300]] = False
    session["velocity_valid"][[80, 81, 150], 0] = False
    return session


@pytest.fixture(scope="module")
def days():
    return recording(0), recording(1)


def network(**constants):
    given = {"cell": "tanh", "n_hidden": 4, "n_updates": 3, "warm_up_s": 5.0, "bin_s": BIN_S, "learning_rate": 3e-3}
    return OnlineDecoder(**given | {"label_delay_s": LATE_S} | constants)


def least_squares(**constants):
    given = {"n_lags": 3, "memory_s": 20.0, "update_every_s": BIN_S, "bin_s": BIN_S, "label_delay_s": LATE_S}
    return RLSDecoder(**given | constants)


def fitted(decoder, session, target="velocity"):
    return decoder.fit(session, target)


def predicted(found):
    return found.prediction["predicted_velocity"].values


# ------------------------------------------------------------------------------------------------- the loop


def plain_loop(decoder, arrays, n_stream, delay):
    """Each bin is handed over alone, its label with the order to use it `delay` bins later."""
    decoder, online = copy.deepcopy(decoder), []
    decoder.begin()
    for t in range(n_stream):
        bin_ = slice(t, t + 1)
        decoder.partial_fit(arrays.X[bin_], arrays.y[bin_], arrays.reset[bin_], np.array([delay]))
        online.append(decoder.online_predictions_[0])
    return np.vstack([*online, decoder.predict(arrays.X[n_stream:], arrays.reset[n_stream:], continuing=True)])


@pytest.mark.parametrize("delay", [0, DELAY])
@pytest.mark.parametrize(
    "make",
    [network, lambda **given: network(n_members=2, take_turns=True, **given), least_squares,
     lambda **given: KalmanDecoder(bin_s=BIN_S, adaptive=True, update_every_s=BIN_S, **given)],
    ids=["network", "ensemble", "rls", "kalman"],
)  # fmt: skip
def test_evaluate_is_the_plain_loop(days, make, delay):
    source, target = days
    decoder, arrays = fitted(make(label_delay_s=delay * BIN_S), source), session_arrays(target, "velocity")
    found = ba.evaluate(decoder, target, "velocity", stream_s=N_STREAM * BIN_S)
    by_hand = plain_loop(decoder, arrays, N_STREAM, delay)
    # One product of all bins rounds otherwise than products of single ones; the network's loop has no such product.
    tolerance = 0.0 if isinstance(decoder, OnlineDecoder) else 1e-9
    np.testing.assert_allclose(predicted(found), by_hand, rtol=tolerance, atol=tolerance)
    other = plain_loop(decoder, arrays, N_STREAM, delay + 1)
    assert np.abs(other - by_hand).max() > 1e-6


def test_a_delay_that_is_asked_for_replaces_the_decoders_own(days):
    source, target = days
    asked = ba.evaluate(fitted(network(), source), target, "velocity", label_delay_s=0.0)
    own = ba.evaluate(fitted(network(label_delay_s=0.0), source), target, "velocity")
    assert np.array_equal(predicted(asked), predicted(own))
    assert (asked.label_delay_s, own.label_delay_s) == (0.0, 0.0)
    late = ba.evaluate(fitted(network(), source), target, "velocity")
    assert not np.array_equal(predicted(asked), predicted(late))
    at_end = ba.evaluate(fitted(network(), source), target, "velocity", label_delay_s="trial_end")
    assert not np.array_equal(predicted(at_end), predicted(late))
    for wrong in ("soon", -0.1, float("nan")):
        with pytest.raises(InputError, match="label_delay_s: expected seconds, 0 or more, or 'trial_end', got"):
            ba.evaluate(fitted(network(), source), target, "velocity", label_delay_s=wrong)


# ----------------------------------------------------------------------------------------- against river's


class Replayed:
    """A decoder as river sees a model: to predict a bin, it lives the stream so far again, with the labels that river
    has shown it until then and no others.
    """

    def __init__(self, decoder, arrays):
        self.decoder, self.arrays = decoder, arrays
        self.labels, self.predictions = np.full_like(arrays.y, np.nan), []

    def predict_one(self, x):
        t, arrays, decoder = x["bin"], self.arrays, copy.deepcopy(self.decoder)
        if t:
            decoder.adapt(arrays.X[:t], self.labels[:t], arrays.reset[:t])
        else:
            decoder.begin()
        bin_ = slice(t, t + 1)
        self.predictions.append(decoder.predict(arrays.X[bin_], arrays.reset[bin_], continuing=True)[0, 0])
        return self.predictions[-1]

    def learn_one(self, x, y):
        self.labels[x["bin"]] = y


def by_river(decoder, arrays, n_stream, delay):
    river = pytest.importorskip("river")
    from river import evaluate, metrics

    class Model(Replayed, river.base.Regressor):
        pass

    model, metric = Model(decoder, arrays), metrics.MSE()
    stream = [({"bin": t}, arrays.y[t, 0]) for t in range(n_stream)]
    evaluate.progressive_val_score(stream, model, metric, delay=delay)
    return np.array(model.predictions), metric.get()


@pytest.mark.parametrize("delay", [0, 4])
@pytest.mark.parametrize("make", [network, least_squares])
def test_evaluate_is_delayed_progressive_validation(make, delay):
    """river answers before the question of the bin at which an answer is due, here it is known at that bin's end: one
    bin later.
    """
    n_stream = 60
    source, target = (recording(seed, n_axes=1, n_bins=160, gap=False) for seed in (0, 1))
    source["velocity_valid"][:], target["velocity_valid"][:] = True, True  # river has no missing labels
    source, target = (each.assign(velocity=each["velocity"].fillna(0.0)) for each in (source, target))
    target["valid"][:] = True
    decoder = fitted(make(label_delay_s=delay * BIN_S), source)
    found = ba.evaluate(decoder, target, "velocity", stream_s=n_stream * BIN_S)
    online, arrays = predicted(found)[:n_stream, 0], session_arrays(target, "velocity")
    theirs, squared_error = by_river(decoder, arrays, n_stream, delay + 1)
    # bit for bit where single bins are computed alike; a product of many bins rounds otherwise
    tolerance = 0.0 if make is network else 1e-10
    np.testing.assert_allclose(online, theirs, rtol=tolerance, atol=tolerance)
    scores = found.scores.set_index(["part", "bins"])
    assert scores.loc[("online", "all"), "rmse"] ** 2 == pytest.approx(squared_error, rel=1e-9)
    later, _ = by_river(decoder, arrays, n_stream, delay + 2)
    assert np.abs(later - online).max() > 1e-6, "a label that comes a bin later is missed"
    if not delay:
        assert np.array_equal(by_river(decoder, arrays, n_stream, None)[0], theirs), "river without a delay"


def test_a_loop_that_learns_before_it_predicts_is_another(days):
    source, target = days
    decoder, arrays = fitted(least_squares(label_delay_s=0.0), source), session_arrays(target, "velocity")
    leaking = []
    for t in range(1, N_STREAM):
        before, after = copy.deepcopy(decoder), copy.deepcopy(decoder)
        before.adapt(arrays.X[:t], arrays.y[:t], arrays.reset[:t])
        after.adapt(arrays.X[: t + 1], arrays.y[: t + 1], arrays.reset[: t + 1])
        before.coef_ = after.coef_
        bin_ = slice(t, t + 1)
        leaking.append(before.predict(arrays.X[bin_], arrays.reset[bin_], continuing=True)[0])
    honest = predicted(ba.evaluate(decoder, target, "velocity", stream_s=N_STREAM * BIN_S))[1:N_STREAM]
    known = np.isfinite(arrays.y[1:N_STREAM])
    assert ba.evaluate(decoder, target, "velocity").r2("online") < 1
    assert np.abs(np.array(leaking) - honest).max() > 0.01
    errors = [np.mean((each - arrays.y[1:N_STREAM])[known] ** 2) for each in (np.array(leaking), honest)]
    assert errors[0] < 0.95 * errors[1], "it looks better than it is"


# -------------------------------------------------------------------------------------- what it leaves alone


@pytest.mark.parametrize("make", [network, least_squares, lambda: WienerDecoder(bin_s=BIN_S)])
def test_the_callers_decoder_and_session_stay_as_they_were(days, tmp_path, make):
    source, target = days
    decoder, before = fitted(make(), source), target.copy(deep=True)
    decoder.save(tmp_path / "before.npz")
    kept = copy.deepcopy(vars(decoder))
    found = ba.evaluate(decoder, target, "velocity", continuing=True)
    decoder.save(tmp_path / "after.npz")
    assert (tmp_path / "after.npz").read_bytes() == (tmp_path / "before.npz").read_bytes()
    assert vars(decoder).keys() == kept.keys()
    assert target.identical(before)
    assert found.decoder is not decoder
    again = ba.evaluate(decoder, target, "velocity", continuing=True)
    assert np.array_equal(predicted(again), predicted(found))


def test_the_decoder_that_comes_back_is_as_the_stream_left_it(days):
    source, target = days
    decoder, arrays = fitted(network(), source), session_arrays(target, "velocity")
    found = ba.evaluate(decoder, target, "velocity", continuing=True)
    stream, rest = slice(N_BINS // 2), slice(N_BINS // 2, None)
    decoder.adapt(arrays.X[stream], arrays.y[stream], arrays.reset[stream])
    held_out = decoder.predict(arrays.X[rest], arrays.reset[rest], continuing=True)
    assert np.array_equal(predicted(found)[rest], held_out)
    assert np.array_equal(found.decoder.predict(arrays.X[rest], arrays.reset[rest], continuing=True), held_out)
    assert found.weight_change == decoder.weight_change_ > 0
    assert found.decoder.metadata_["adapted_to"] == ["day1"]
    second = ba.evaluate(found.decoder, target, "velocity")
    assert not np.array_equal(predicted(second), predicted(found)), "it goes on from there"


# ------------------------------------------------------------------------------------------------- scores


def explained(y, predictions, chosen):
    """Variance-weighted R², written out."""
    error, spread = 0.0, 0.0
    for axis in range(y.shape[1]):
        used = [t for t in range(len(y)) if chosen[t] and np.isfinite(y[t, axis])]
        mean = sum(y[t, axis] for t in used) / len(used)
        error += sum((y[t, axis] - predictions[t, axis]) ** 2 for t in used)
        spread += sum((y[t, axis] - mean) ** 2 for t in used)
    return 1 - error / spread


def test_scores_are_those_of_the_parts(days):
    source, target = days
    decoder, arrays = fitted(network(), source), session_arrays(target, "velocity")
    found = ba.evaluate(decoder, target, "velocity", stream_s=N_STREAM * BIN_S, continuing=True)
    scores = found.scores.set_index(["part", "bins"])
    bins = np.arange(N_BINS)
    parts = {"online": bins < N_STREAM, "online_late": (bins >= N_STREAM // 2) & (bins < N_STREAM)}
    parts["held_out"] = bins >= N_STREAM
    for part, chosen in parts.items():
        for kind, inside in (("in trial", arrays.in_trial), ("all", np.ones(N_BINS, bool))):
            row = scores.loc[(part, kind)]
            assert row["r2"] == pytest.approx(explained(arrays.y, predicted(found), chosen & inside), abs=1e-10)
            assert row["n_bins"] == np.isfinite(arrays.y[chosen & inside]).any(axis=1).sum()
    assert not scores.loc["continuing"].equals(scores.loc["held_out"])
    assert found.r2() == scores.loc[("held_out", "in trial"), "r2"]
    assert found.r2("online", "velocity") == scores.loc[("online", "in trial"), "r2"]
    with pytest.raises(InputError, match="no part 'later'"):
        found.r2("later")
    assert np.array_equal(found.prediction["held_out"].values, bins >= N_STREAM)
    assert np.array_equal(found.prediction["velocity"].values, arrays.y, equal_nan=True)
    assert found.prediction["predicted_velocity"].attrs["units"] == target["velocity"].attrs["units"]
    assert found.n_labels == np.isfinite(arrays.y[: N_STREAM - DELAY]).any(axis=1).sum()
    said = repr(found)
    assert "day1: 10 s of stream" in said
    assert f"{found.r2():6.3f}" in said


def test_several_targets_are_scored_apart(days):
    source, target = days
    both = fitted(network(), source, ["velocity", "position"])
    found = ba.evaluate(both, target, ["velocity", "position"])
    assert {*found.scores["variable"]} == {"velocity", "position"}
    assert found.r2("held_out", "position") != found.r2("held_out", "velocity") == found.r2()
    assert found.prediction["predicted_position"].shape == (N_BINS, 2)


def test_labels_are_as_many_as_asked_for(days):
    source, target = days
    decoder, arrays = fitted(network(), source), session_arrays(target, "velocity")
    none = ba.evaluate(decoder, target, "velocity", supervision="none", continuing=True)
    assert (none.n_labels, none.weight_change) == (0, 0.0)
    parts = {part: rows.drop(columns=["variable", "part", "bins"]) for part, rows in none.scores.groupby("part")}
    np.testing.assert_allclose(parts["continuing"], parts["held_out"], rtol=1e-12)
    few = ba.evaluate(decoder, target, "velocity", label_fraction=0.3, budget_s=5.0, seed=2)
    assert few.n_labels == np.isfinite(shown(arrays.y, BIN_S, 0.3, 5.0, 2)).any(axis=1).sum()
    assert 0 < few.n_labels < 50
    one = ba.evaluate(decoder, target, "velocity", budget_trials=1)
    assert one.n_labels == np.isfinite(arrays.y[:100]).any(axis=1).sum()  # the first trial ends at 5 s
    at_end = ba.evaluate(decoder, target, "velocity", stream_s=6.0, label_delay_s="trial_end")
    assert at_end.n_labels == one.n_labels, "the second trial ends after the stream"
    never = ba.evaluate(decoder, target, "velocity", stream_s=10.0, label_delay_s=10.0)
    assert never.n_labels == 0
    unlabelled = ba.evaluate(decoder, target, "velocity", stream_s=10.0, supervision="none")
    assert np.array_equal(predicted(never), predicted(unlabelled))
    own = ba.evaluate(decoder, target, "velocity", supervision="pseudo")
    assert own.weight_change > 0
    with pytest.raises(InputError, match="expected one of true, intention, pseudo, none, got 'some'"):
        stream_of(arrays, Teaching("some"))
    for name, wrong in {"label_fraction": 1.5, "budget_s": -1.0, "budget_trials": 0}.items():
        with pytest.raises(InputError, match=f"{name}: expected"):
            ba.evaluate(decoder, target, **{name: wrong})
    with pytest.raises(InputError, match="WienerDecoder: learns from no labels"):
        ba.evaluate(fitted(WienerDecoder(), source), target, supervision="pseudo")
    with pytest.raises(InputError, match="leave the arm 'intention' out"):
        ba.evaluate(decoder, target, "velocity", supervision="intention")
    wrong = {"stream_s": (0.0, "10", None, np.nan, np.inf, True), "label_delay_s": ("2", -1.0, np.inf, [0.5])}
    wrong |= {"label_fraction": ("1", None), "budget_s": ("1",), "budget_trials": (1.5, "4"), "seed": (0.5, "0", -1)}
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(InputError, match=f"^{name}: expected .*, got {re.escape(repr(value))}$"):
                ba.evaluate(decoder, target, "velocity", **{name: value})
    assert ba.evaluate(decoder, target, "velocity", stream_s=np.float32(5)).stream_s == 5.0
    assert np.array_equal(predicted(ba.evaluate(decoder, target)), predicted(ba.evaluate(decoder, target, "velocity")))
    with pytest.raises(InputError, match="name the target"):
        ba.evaluate(network().fit(arrays.X, arrays.y, arrays.reset), target)
    with pytest.raises(InputError, match=r"expected velocity to score by, it holds position"):
        ba.evaluate(decoder, target.drop_vars(["velocity", "velocity_valid"]))


def test_weights_that_run_away_are_told(days):
    source, target = days
    wild = fitted(network(optimizer="sgd", learning_rate=1e6, average=None), source)
    found = ba.evaluate(wild, target, "velocity")
    assert found.diverged
    assert "DIVERGED" in repr(found)
    assert not ba.evaluate(fitted(network(), source), target, "velocity").diverged


# --------------------------------------------------------------------------------------- decoders of one's own


class Plain:
    """A plain class around one of ours."""

    def __init__(self, label_delay_s=LATE_S):
        self.label_delay_s, self.told = label_delay_s, {}

    def fit(self, X, y, reset):
        self.decoder = least_squares(label_delay_s=self.label_delay_s).fit(X, y, reset)

    def adapt(self, X, y, reset, arrives):
        self.told["arrives"] = arrives
        return self.decoder.adapt(X, y, reset, arrives)

    def predict(self, X, reset, continuing=False):
        self.told["continuing"] = continuing
        X[:] = np.nan if not continuing else X  # what it does to its arrays stays with it
        return self.decoder.predict(X, reset, continuing)


def test_a_decoder_of_ones_own_is_led_as_ours_is(days):
    source, target = days
    plain, before = fitted_plain(source), target.copy(deep=True)
    found = ba.evaluate(plain, target, "velocity")
    ours = ba.evaluate(fitted(least_squares(), source), target, "velocity")
    assert np.array_equal(predicted(found), predicted(ours))
    assert found.scores.equals(ours.scores)
    assert plain.told == {}, "a copy adapted"
    assert found.decoder.told["continuing"]
    assert np.array_equal(found.decoder.told["arrives"], np.arange(N_BINS // 2) + DELAY)
    assert target.identical(before)
    at_once = ba.evaluate(plain, target, "velocity", label_delay_s=0.0)
    assert not np.array_equal(predicted(at_once), predicted(found))
    with pytest.raises(InputError, match="leave out continuing"):
        ba.evaluate(plain, target, "velocity", continuing=True)
    with pytest.raises(InputError, match="int lacks fit, predict, adapt"):
        ba.evaluate(3, target, "velocity")


class AtOnce:
    """Knows of no delay: it predicts the label of the bin before, as though that were known by then."""

    def fit(self, X, y):
        return self

    def adapt(self, X, y):
        return np.vstack([np.zeros_like(y[:1]), np.nan_to_num(y[:-1])])

    def predict(self, X):
        return np.zeros((len(X), 2))


class Told(AtOnce):
    """The same, held to the delay that its adapt is told."""

    def adapt(self, X, y, label_delay_s):
        late = round(label_delay_s / BIN_S) + 1
        return np.vstack([np.zeros_like(y[:late]), np.nan_to_num(y[:-late])])


def test_a_delay_that_a_decoder_cannot_know_of_is_not_stated(days):
    _, target = days
    with pytest.warns(
        UserWarning, match="AtOnce: does not know how late labels are .* let its adapt take `arrives`"
    ) as told:
        found = ba.evaluate(AtOnce(), target, "velocity")
    assert len(told) == 1
    assert found.label_delay_s == 0.0
    assert found.n_labels == np.isfinite(session_arrays(target, "velocity").y[: N_BINS // 2]).any(axis=1).sum()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        at_once = ba.evaluate(AtOnce(), target, "velocity", label_delay_s=0.0)
        late = ba.evaluate(Told(), target, "velocity", label_delay_s=LATE_S)
    assert (at_once.label_delay_s, late.label_delay_s) == (0.0, LATE_S)
    assert ba.evaluate(Told(), target, "velocity").label_delay_s == LABEL_DELAY_S
    assert at_once.r2("online") > late.r2("online") + 0.2, "an unsaid delay would flatter it"
    with pytest.raises(InputError, match=r"label_delay_s=0\.15 would not be applied.*or give label_delay_s=0"):
        ba.evaluate(AtOnce(), target, "velocity", label_delay_s=LATE_S)
    for decoder in (AtOnce(), Told()):
        with pytest.raises(InputError, match="'trial_end' would not be applied, its adapt does not take `arrives`"):
            ba.evaluate(decoder, target, "velocity", label_delay_s="trial_end")


def test_a_decoder_that_learns_from_no_label_is_shown_them_as_late_as_others(days):
    source, target = days
    still, learning = fitted(WienerDecoder(), source), fitted(network(label_delay_s=LABEL_DELAY_S), source)
    usual, late, at_once = (ba.evaluate(still, target, label_delay_s=asked) for asked in (None, LATE_S, 0.0))
    assert [each.label_delay_s for each in (usual, late, at_once)] == [LABEL_DELAY_S, LATE_S, 0.0]
    expected = [ba.evaluate(learning, target, label_delay_s=asked).n_labels for asked in (None, LATE_S, 0.0)]
    assert [each.n_labels for each in (usual, late, at_once)] == expected
    assert expected == sorted({*expected}), "a delay leaves fewer"
    assert np.array_equal(predicted(usual), predicted(at_once))
    with_trials = ba.evaluate(still, target, stream_s=6.0, label_delay_s="trial_end")
    assert with_trials.n_labels == np.isfinite(session_arrays(target, "velocity").y[:100]).any(axis=1).sum()


def test_labels_that_come_with_trials_need_trials(days):
    source, _ = days
    decoder, bare = fitted(network(), source), recording(1, gap=False)
    for given in ({"label_delay_s": "trial_end"}, {"budget_trials": 2}):
        with pytest.raises(
            InputError, match=r"day1: .* needs trials with a beginning and an end; this session has none"
        ):
            ba.evaluate(decoder, bare, **given)
    with pytest.raises(InputError, match="leave out 'trial_end'"):
        ba.evaluate(decoder, days[1], supervision="pseudo", label_delay_s="trial_end")


def fitted_plain(source):
    plain, arrays = Plain(), session_arrays(source, "velocity")
    plain.fit(arrays.X, arrays.y, arrays.reset)
    return plain
