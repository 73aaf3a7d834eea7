"""Streams are what they say, rivals are what their fields mean by them, and nobody sees a label before its time."""

import json

import numpy as np
import pandas as pd
import pytest
from caches import new_cache

from bci_adapt.errors import InputError
from bci_adapt.paper.jobs import stream_learn
from bci_adapt.paper.jobs.stream_learn import network_predictions, rival_predictions
from bci_adapt.paper.planning import LOOKER
from bci_adapt.paper.streams import base
from bci_adapt.paper.streams.base import FAILED, MIXED, Made, prequential, running_z, scored, softmax, stream, streams
from bci_adapt.paper.streams.characters import ALPHABET, encoded, reduced
from bci_adapt.paper.streams.rivals import Column, Counts, NoChange, Nothing, RecursiveLeastSquares, all_rivals
from bci_adapt.paper.streams.series import of_series
from bci_adapt.paper.tables import contests

N, EARLIER = 120, 40
PARAMETERS = {"cell": "tanh", "n_hidden": 4, "method": {**LOOKER, "rule": "immediate"}}


# ------------------------------------------------------------------------------------------------ streams


@pytest.mark.parametrize("name", streams())
def test_streams_are_seeded_shaped_and_know_nothing_of_what_follows(name):
    made = stream(name)
    x, y, seen = made.stream(N, 3, EARLIER, delay=2)
    assert len(x) == len(y) == N
    assert y.shape[1] == made.n_outputs
    assert np.isfinite(x).all()
    assert np.isfinite(y).all()
    if made.loss == "cross_entropy":
        assert np.array_equal(y.sum(axis=1), np.ones(N))
        assert np.isin(y, (0, 1)).all()
    shorter = made.stream(N // 2, 3, EARLIER, delay=2)
    np.testing.assert_allclose(shorter.x, x[: N // 2], rtol=1e-9, atol=1e-12)
    for of, rows in seen.items():
        np.testing.assert_allclose(shorter.seen[of], rows[: N // 2], rtol=1e-9, atol=1e-12)
    assert np.array_equal(made.stream(N, 3, EARLIER, 2).y, y)
    assert np.array_equal(made.stream(N, 4, EARLIER, 2).y, y) != made.seeded
    assert all(made.origin().values())


@pytest.mark.parametrize("name", streams())
@pytest.mark.parametrize("delay", [0, 3])
def test_no_rival_sees_a_label_before_its_time(name, delay):
    """Labels of the future in another order leave every prediction as it was until the first of them is known."""
    kind, cut = stream(name), 60
    made = kind.stream(N, 0, EARLIER, delay)
    order = np.concatenate([np.arange(cut), np.random.default_rng(0).permutation(np.arange(cut, N))])
    other = Made(made.x, made.y[order], made.seen)
    assert not np.array_equal(other.y, made.y)
    for rival, found in all_rivals(kind, "tanh", 4, delay).items():
        parameters = PARAMETERS | {"rival": rival, "delay": delay}
        told, after = (rival_predictions(kind, each, 0, parameters, found.grid[0]) for each in (made, other))
        known = cut + delay + 1  # the first prediction that may know the first label of another order
        assert np.array_equal(told[:known], after[:known]), rival
        fixed = rival in ("last value", "seasonal last value", "SNARIMAX")  # what they see is all that they learn from
        assert np.array_equal(told, after) == fixed, rival


@pytest.mark.parametrize("loss", ["squared", "cross_entropy"])
@pytest.mark.parametrize("delay", [0, 3])
def test_no_network_sees_a_label_before_its_time(loss, delay):
    rng = np.random.default_rng(0)
    x, cut = rng.standard_normal((50, 2)), 30
    y = np.eye(3)[rng.integers(0, 3, 50)] if loss == "cross_entropy" else rng.standard_normal((50, 3))
    order = np.concatenate([np.arange(cut), np.roll(np.arange(cut, 50), 7)])
    told, after = (
        network_predictions(loss, Made(x, each, {}), 0, PARAMETERS | {"delay": delay}, 0.01) for each in (y, y[order])
    )
    known = cut + delay + 1
    assert np.array_equal(told[:known], after[:known])
    assert not np.array_equal(told[known:], after[known:])
    if loss == "cross_entropy":
        np.testing.assert_allclose(told.sum(axis=1), 1.0)


def test_a_network_learns_the_same_in_chunks(monkeypatch):
    x = np.random.default_rng(0).standard_normal((50, 2))
    told = []
    for length in (10_000, 7):
        monkeypatch.setattr(stream_learn, "_CHUNK", length)
        told.append(network_predictions("squared", Made(x, x[:, :1], {}), 0, PARAMETERS | {"delay": 3}, 0.01))
    assert np.array_equal(*told)


def test_the_alphabet_is_what_its_rule_says():
    assert len(ALPHABET) == len(set(ALPHABET)) == 70
    assert reduced("A  b\t\tÄ\n\n “x”") == "a b ?\n\n ?x?"
    text = "".join(ALPHABET[code] for code in encoded())
    assert len(text) > 400_000
    assert "the python" in text
    made = stream("characters").stream(100)
    assert np.array_equal(made.x[1:], made.y[:-1])


def test_sea_concepts_are_thresholds_that_come_in_turn():
    made = stream("sea", period=50, noise=0.0)
    rows = list(made.rows(200, seed=1))
    for block, threshold in enumerate((8.0, 9.0, 7.0, 9.5)):
        for features, label in rows[50 * block : 50 * block + 50]:
            assert label == (features[0] + features[1] > threshold)


def test_agrawals_rule_is_replaced():
    """Rule 0 asks for the age alone: all but the middle third of ages are class 1, no longer after the change."""
    rows = list(stream("agrawal", period=400, perturbation=0.0).rows(800, seed=0))
    wrong = [
        [(label == 1) != (f["age"] < 40 or f["age"] >= 60) for f, label in part] for part in (rows[:400], rows[400:])
    ]
    assert not any(wrong[0])
    assert sum(wrong[1]) > 40


def test_a_series_is_cut_into_changes_lags_and_seasons():
    value = np.array([3.0, 5.0, 4.0, 8.0, 7.0, 9.0, 6.0, 2.0, 1.0, 5.0])
    x, y, seen = of_series(value, period=3, horizon=2, earlier=8)
    scale = np.std([1.0, 3.0, 3.0, 1.0, -1.0, -7.0])  # changes two ahead that are known after eight values
    np.testing.assert_allclose(y[:, 0] * scale, [1, 3, 3, 1, -1, -7, -5, 3])
    np.testing.assert_allclose(seen["value"][:, 0] * scale, value[:8])
    # At bin 5 (value 9) what is two steps ahead was 4 steps before … 7 a season before: value[5 + 2 − 3].
    np.testing.assert_allclose(seen["lags"][5] * scale, [7 - 9, 9 - 7, 9 - 8, 9 - 4])
    assert x.shape == (8, 5)


def test_series_are_those_of_the_books():
    values = {name: stream(name).values() for name in ("sunspots", "co2", "el_nino")}
    assert [len(each) for each in values.values()] == [309, 526, 732]
    assert values["sunspots"][:3].tolist() == [5.0, 11.0, 16.0]
    assert values["el_nino"][:2].tolist() == [23.11, 24.2]
    assert np.isfinite(values["co2"]).all()
    assert values["co2"][0] == pytest.approx(316.1)


@pytest.mark.parametrize(
    ("name", "constants", "asked", "message"),
    [
        ("characters", {}, (10**7,), "it has 4[0-9]+ bins"),
        ("sunspots", {}, (309,), "it has 308 bins, 309 were asked for"),
        ("sea", {"period": 0}, (10,), "a period of at least 1"),
        ("sea", {}, (10, 0, 11), "1 ≤ earlier ≤ n_bins"),
        ("sea", {"noisy": 1}, (10,), "no constant 'noisy'"),
        ("charakters", {}, (10,), "did you mean 'characters'"),
    ],
)
def test_what_a_stream_cannot_be_is_refused(name, constants, asked, message):
    with pytest.raises(InputError, match=message):
        stream(name, **constants).stream(*asked)


def test_a_package_that_is_missing_is_named_with_what_to_install(monkeypatch):
    monkeypatch.setattr(base, "installed", lambda package: None)
    for name, kind in streams().items():
        if kind.packages:
            with pytest.raises(InputError, match=r"pip install 'bci-adapt\[streams\]'"):
                stream(name).stream(10)
    assert len(stream("characters").stream(10).x) == 10


# ------------------------------------------------------------------------------------------------ rivals


def one_hot(*classes, n=2):
    return np.eye(n)[list(classes)]


def test_counts_are_smoothed_frequencies():
    y = one_hot(0, 0, 1)
    told = prequential(Counts(2), np.zeros((3, 1)), y, delay=0)
    np.testing.assert_allclose(told, [[1 / 2, 1 / 2], [1.5 / 2, 0.5 / 2], [2.5 / 3, 0.5 / 3]])
    late = prequential(Counts(2), np.zeros((3, 1)), y, delay=1)
    np.testing.assert_allclose(late, [[1 / 2, 1 / 2], [1 / 2, 1 / 2], [1.5 / 2, 0.5 / 2]])


def test_a_bigram_counts_by_the_character_before():
    text = one_hot(0, 1, 0, 1, 1)
    told = prequential(Counts(2, by_row=True, smoothing=1.0), text[:-1], text[1:], delay=0)
    np.testing.assert_allclose(told, [[1 / 2, 1 / 2], [1 / 2, 1 / 2], [1 / 3, 2 / 3], [2 / 3, 1 / 3]])


def test_no_change_tells_the_last_class_as_surely_as_it_was_right():
    y = one_hot(0, 0, 0, 1, 1)
    told = prequential(NoChange(2, 0), np.zeros((5, 1)), y, delay=0)
    np.testing.assert_allclose(told[:, 0], [1 / 2, 1 / 2, 2 / 3, 3 / 4, 1 - 3 / 5])
    late = prequential(NoChange(2, 1), np.zeros((5, 1)), y, delay=1)
    # Right at bin 2 (from bin 0), which is known at bin 4.
    np.testing.assert_allclose(late[:, 0], [1 / 2, 1 / 2, 1 / 2, 1 / 2, 2 / 3])


def test_last_value_and_last_season_are_what_they_say():
    made = of_series(np.arange(20.0) % 4, period=4, horizon=1, earlier=10)
    season = prequential(Column(0), made.seen["lags"], made.y, 0)
    np.testing.assert_allclose(season[4:], made.y[4:])
    assert scored("squared", made.y, prequential(Nothing(), made.x, made.y, 0)).loss == 1.0


@pytest.mark.parametrize("forgetting", [1.0, 0.9])
def test_recursive_least_squares_is_the_weighted_solution(forgetting):
    rng = np.random.default_rng(0)
    rows, y = rng.standard_normal((30, 3)), rng.standard_normal((30, 2))
    model = RecursiveLeastSquares(3, 2, forgetting, penalty=0.5)
    prequential(model, rows, y, 0)
    A = np.column_stack([rows, np.ones(30)])
    w = forgetting ** np.arange(29, -1, -1)
    solved = np.linalg.solve((A.T * w) @ A + 0.5 * forgetting**30 * np.eye(4), (A.T * w) @ y)
    np.testing.assert_allclose(model.weights, solved, rtol=1e-8)


def test_outputs_of_a_regression_on_classes_are_made_probabilities():
    model = RecursiveLeastSquares(1, 3, classes=True)
    model.weights[-1] = [-0.2, 0.3, 0.9]
    np.testing.assert_allclose(model.predict(np.zeros(1)), [0.0, 0.25, 0.75])
    model.weights[-1] = -1.0
    np.testing.assert_allclose(model.predict(np.zeros(1)), 1 / 3)


# ------------------------------------------------------------------------------------------------ scores


def test_scores_are_nats_and_shares_of_the_last_values_error():
    y = one_hot(0, 1, 1, 0)
    told = np.array([[0.8, 0.2], [0.4, 0.6], [1.0, 0.0], [0.5, 0.5]])
    found = scored("cross_entropy", y, told)
    p = (1 - MIXED) * np.array([0.8, 0.6, 0.0, 0.5]) + MIXED / 2
    assert found.loss == pytest.approx(-np.log(p).mean())
    assert found.late == pytest.approx(-np.log(p[2:]).mean())
    assert (found.accuracy, found.failed) == (0.75, False)
    found = scored("squared", np.array([[1.0], [2.0], [2.0], [0.0]]), np.array([[1.0], [1.0], [0.0], [0.0]]))
    assert (found.loss, found.late) == (5 / 9, 1.0)
    assert np.isnan(found.accuracy)
    for bad in (np.nan, 1e9):
        assert scored("squared", np.ones((4, 1)), np.array([[0.0], [0.0], [bad], [0.0]])).failed
    assert FAILED["cross_entropy"] > np.log(70 / MIXED)


def test_softmax_and_running_z():
    np.testing.assert_allclose(softmax(np.array([1000.0, 1000.0 + np.log(3)])), [0.25, 0.75])
    x = np.random.default_rng(0).standard_normal((50, 2)) * [1.0, 1e-3] + [0.0, 300.0]
    z = running_z(x)
    for t in (1, 10, 49):
        np.testing.assert_allclose(z[t], (x[t] - x[: t + 1].mean(axis=0)) / x[: t + 1].std(axis=0), rtol=1e-6)
    assert not running_z(np.full((5, 1), 0.1)).any()


def test_contenders_stand_best_first_and_failures_are_counted():
    row = {"task": "sea", "cell": "tanh", "n_hidden": 4, "kind": "stream", "rates": "tuned", "rate": 0.1}
    row |= {"interior": True, "late": 0.1, "accuracy": 0.9, "us_per_bin": 1.0}
    losses = [("a", 0.5, False), ("a", 0.7, False), ("b", 0.2, False), ("b", np.nan, True)]
    table = contests(pd.DataFrame([row | {"method": m, "loss": v, "failed": f} for m, v, f in losses]))
    assert table["method"].tolist() == ["b", "a"]
    assert table["loss"].tolist() == [0.2, pytest.approx(0.6)]
    assert table[["n_seeds", "n_failed"]].to_numpy().tolist() == [[2, 1], [2, 0]]


# ------------------------------------------------------------------------------------------------ one figure


TINY = """
figure = "streams"
title = "tiny"
seeds = [0, 1]
tuning_seeds = [100]
n_hidden = [4]
shared_rates = { rmsprop = 1e-3 }
tuning = { max_points = 3 }
streams = [{ name = "sunspots", earlier = 60, n_bins = 80, delays = [0, 2] }]
methods = [{ rule = "immediate" }]
"""
CLAIMS = """
[[claims]]
id = "lags"
claim = "networks do better than lags"
paper = "—"
figure = "streams"
[[claims.cases]]
when = "next year"
statistic = "stream_loss_difference"
task = "sunspots"
method = "immediate + rmsprop"
other = "linear, recursive least squares"
below = 0.0
"""


def test_a_tiny_figure_is_run_drawn_and_judged(call, tmp_path, monkeypatch):
    monkeypatch.setenv("BCI_ADAPT_CACHE", str(new_cache(tmp_path)))
    (tmp_path / "streams.toml").write_text(TINY, encoding="utf-8")
    (tmp_path / "claims.toml").write_text(CLAIMS, encoding="utf-8")
    out = tmp_path / "out"
    arguments = ("reproduce", "streams", "--configs", tmp_path, "--out", out, "--workers", 0, "--json", "-")
    code, said, told = call(*arguments)
    assert code == 0, told
    row = json.loads(said)["claims"][0]
    assert row["verdict"].split(" (")[0] in ("reproduced", "not reproduced", "inconclusive")
    table = pd.read_csv(out / "tables" / "streams_streams.csv")
    assert set(table["task"]) == {"sunspots", "sunspots, 2 late"}
    last = table[table["method"] == "last value"]
    assert (last["loss"] == 1.0).all()
    assert len(last) == 4  # two delays, two seeds
    assert set(table.loc[table["kind"] == "stream", "rates"]) == {"tuned", "shared"}
    losses = {
        name: rows.set_index("seed")["loss"] for name, rows in table[table["task"] == "sunspots"].groupby("method")
    }
    assert losses["SNARIMAX"][0] == losses["SNARIMAX"][1]
    reservoir = losses["untrained network, recursive least squares"]
    assert reservoir[0] != reservoir[1]
    assert "SNARIMAX" in (out / "claims.html").read_text(encoding="utf-8")
    assert (out / "streams_loss.svg").stat().st_size > 200
