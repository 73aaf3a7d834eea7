"""Every decoder as a scikit-learn estimator: its checks, search over parameters, and what `fit` must leave alone."""

from functools import partial

import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, RandomizedSearchCV
from sklearn.utils.estimator_checks import parametrize_with_checks

import bci_adapt as ba
from bci_adapt.decoders.base import Decoder
from bci_adapt.ground.catalog import variants

BIN_S = 0.05
CLASSES = variants("bci_adapt.decoders", Decoder)
# As small as it goes; a class takes what it has.
TINY = {"n_hidden": 2, "n_updates": 1, "warm_up_s": 0.1, "batch": 2, "window_bins": 11, "n_lags": 2, "tune_updates": 1}
TINY |= {"n_latents": 1, "average": None, "label_delay_s": BIN_S, "cell": "tanh", "bin_s": BIN_S}


def small(name):
    kind = CLASSES[name]
    return kind(**{key: value for key, value in TINY.items() if key in kind._get_param_names()})


@parametrize_with_checks(
    [small(name) for name in CLASSES], expected_failed_checks=lambda each: each.unmet_checks, xfail_strict=True
)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def series(n_bins=120, seed=0):
    rng = np.random.default_rng(seed)
    y = np.cumsum(rng.standard_normal((n_bins, 2)), axis=0) * 0.3
    return rng.poisson(np.exp(np.clip(0.5 + y @ rng.standard_normal((2, 5)) * 0.3, -3, 3))).astype(float), y


@pytest.mark.parametrize("name", CLASSES)
class TestEveryDecoder:
    def test_a_fit_that_fails_leaves_the_decoder_as_it_was(self, name, tmp_path, monkeypatch):
        X, y = series()
        decoder, kind = small(name).fit(X, y), CLASSES[name]
        decoder.adapt(X, y)

        def fails_late(self, sessions, fit=kind._fit):
            fit(self, sessions)
            assert self.n_features_in_ == 4, "it was trained anew"
            raise ba.InputError("late")

        decoder.save(tmp_path / "before.npz")
        before = dict(vars(decoder))
        expected = decoder.predict(X, continuing=True)
        for failing in (
            lambda: decoder.fit(X[:, :3], np.full_like(y, np.nan)),
            lambda: decoder.fit(X[:, :3], y[:5]),
            lambda: decoder.fit([X, X[:, :2]], [y, y]),
            lambda: decoder.fit(X, y + np.inf),
            lambda: decoder.extend([X, X], [y, y[:, :1]]),
            lambda: [monkeypatch.setattr(kind, "_fit", fails_late), decoder.fit(X[:, :4], y[:, :1])],
        ):
            with pytest.raises(ba.InputError):
                failing()
            assert vars(decoder).keys() == before.keys()
            assert all(vars(decoder)[key] is value for key, value in before.items())
        assert np.array_equal(decoder.predict(X, continuing=True), expected)
        decoder.save(tmp_path / "after.npz")
        with np.load(tmp_path / "before.npz") as one, np.load(tmp_path / "after.npz") as other:
            assert set(one.files) == set(other.files)
            assert all(np.array_equal(one[key], other[key], equal_nan=one[key].dtype.kind == "f") for key in one.files)

    def test_input_of_another_kind_gets_one_sentence(self, name):
        X, y = series()
        fitted = small(name).fit(X, y)
        for given, message in (
            (X + 1j, "Complex data not supported"),
            (X[:0], r"0 sample\(s\)"),
            (X[:, :0], r"0 feature\(s\)"),
            (sparse.csr_matrix(X), "got a sparse matrix"),
            (X - 50.0, "Negative values"),
            (X + np.inf, "expected finite counts"),
            ([["a", "b"]] * 4, "expected numbers"),
        ):
            for call in (lambda: small(name).fit(given, y[: given.shape[0]] if hasattr(given, "shape") else y[:4]),  # noqa: B023
                         lambda: fitted.predict(given)):  # noqa: B023  # fmt: skip
                with pytest.raises(ba.InputError, match=message) as found:
                    call()
                assert "\n" not in str(found.value)

    def test_before_fit_it_says_so(self, name):
        X, y = series()
        for call in (
            lambda fresh: fresh.predict(X),
            lambda fresh: fresh.partial_fit(X, y),
            lambda fresh: fresh.adapt(X, y),
            lambda fresh: fresh.extend([X], [y]),
            lambda fresh: fresh.score(X, y),
            lambda fresh: fresh.begin(),
            lambda fresh: fresh.save("nowhere.npz"),
        ):
            with pytest.raises(NotFittedError, match="fit it"):
                call(small(name))

    def test_tags_tell_the_truth(self, name):
        X, y = series()
        tags = small(name).__sklearn_tags__()
        assert (tags.input_tags.positive_only, tags.input_tags.allow_nan, tags.input_tags.sparse) == (True, True, False)
        assert (tags.target_tags.multi_output, tags.target_tags.required, tags.requires_fit) == (True, True, True)
        gap = X.copy()
        gap[20:23] = np.nan
        assert np.isfinite(small(name).fit(gap, y).predict(gap)).all()
        assert small(name).fit(X, y[:, 0]).predict(X).shape == (len(X),)
        assert small(name).fit(X, y[:, :1]).predict(X).shape == (len(X), 1)

    def test_parameters_survive_fit_and_clone(self, name):
        X, y = series()
        decoder = small(name)
        before = decoder.get_params()
        assert decoder.fit(X, y).get_params() == before == clone(decoder).get_params()
        assert {"bin_s", "missing"} <= set(before)


@pytest.mark.parametrize("search", [GridSearchCV, partial(RandomizedSearchCV, n_iter=2, random_state=0)])
@pytest.mark.parametrize(
    "values",
    [
        {"rule_constants": [{"steps": 1}, {"steps": 3}]},
        {"rule_constants__steps": [1, 3], "learning_rate": [1e-3]},
    ],
)
def test_constants_of_a_rule_can_be_searched(search, values):
    X, y = series()
    decoder = ba.OnlineDecoder(
        cell="tanh", rule="window", n_hidden=2, n_updates=1, warm_up_s=0.5, window_bins=11, batch=2, bin_s=BIN_S
    )
    found = search(decoder, values, cv=2).fit(X, y)
    assert len(found.cv_results_["params"]) == 2
    assert found.best_estimator_.rule_constants["steps"] in (1, 3)
    assert np.isfinite(found.cv_results_["mean_test_score"]).all()


def test_an_entry_of_a_dict_is_a_parameter():
    decoder = ba.OnlineDecoder(rule="window", rule_constants={"steps": 2})
    assert decoder.get_params()["rule_constants__steps"] == 2
    assert "rule_constants__steps" not in decoder.get_params(deep=False)
    own = decoder.rule_constants
    copy = clone(decoder).set_params(rule_constants__steps=5, optimizer_constants__beta2=0.9)
    assert (copy.rule_constants, copy.optimizer_constants) == ({"steps": 5}, {"beta2": 0.9})
    assert own == {"steps": 2}, "the dict that was handed over is nobody's to change"
    with pytest.raises(ValueError, match="Invalid parameter"):
        decoder.set_params(nonsense__steps=3)
