"""Scores: agreement with scikit-learn and scipy, and what the mask does and does not protect from."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.metrics import r2_score, root_mean_squared_error

from bci_adapt import metrics
from bci_adapt.errors import InputError


@pytest.fixture(scope="module")
def series() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = rng.normal(size=(400, 3)) * [1.0, 20.0, 3.0] + [5.0, -100.0, 0.0]
    prediction = y * [0.8, 0.5, -0.1] + rng.normal(size=y.shape) * [1.0, 2.0, 3.0]
    return y, prediction, rng.random(y.shape) < 0.7


@pytest.mark.parametrize("mask_of", ["none", "bins", "axes"])
def test_agrees_with_reference_implementations(series, mask_of):
    y, prediction, by_axis = series
    mask = {"none": None, "bins": by_axis[:, 0], "axes": by_axis}[mask_of]
    full = np.ones(y.shape, bool) if mask is None else np.broadcast_to(mask.reshape(len(y), -1), y.shape)
    axes = [(y[full[:, i], i], prediction[full[:, i], i]) for i in range(3)]
    got = metrics.score(y, prediction, mask, ["x", "y", "z"])
    per_axis = [r2_score(*axis) for axis in axes]
    weights = [np.var(true) * len(true) for true, _ in axes]
    expected = {
        "r2": np.average(per_axis, weights=weights),
        "r2_uniform": np.mean(per_axis),
        **dict(zip(["r2:x", "r2:y", "r2:z"], per_axis, strict=True)),
        "pearson": np.mean([pearsonr(*axis)[0] for axis in axes]),
        "rmse": root_mean_squared_error(y[full], prediction[full]),
    }
    assert list(got) == list(expected)
    assert got == pytest.approx(expected, abs=1e-12)
    if mask_of != "axes":
        rows = full[:, 0]
        assert got["r2"] == pytest.approx(r2_score(y[rows], prediction[rows], multioutput="variance_weighted"))
        assert got["r2_uniform"] == pytest.approx(r2_score(y[rows], prediction[rows]))


def test_only_the_mask_hides_what_is_missing(series):
    y, prediction, mask = series
    clean = metrics.score(y, prediction, mask, "xyz")
    hidden = np.where(mask, y, np.nan), np.where(mask, prediction, np.inf)
    assert metrics.score(*hidden, mask, "xyz") == clean
    for spoilt in (0, 1):
        arrays = [y.copy(), prediction.copy()]
        arrays[spoilt][np.argmax(mask[:, 0]), 0] = np.nan
        got = metrics.score(*arrays, mask, "xyz")
        assert np.isnan([got[name] for name in ("r2", "r2_uniform", "r2:x", "pearson", "rmse")]).all()
        assert got["r2:y"] == clean["r2:y"]


def test_identities_and_degenerate_targets(series):
    y, _, mask = series
    mean = np.broadcast_to(np.nanmean(np.where(mask, y, np.nan), axis=0), y.shape)
    assert metrics.score(y, y, mask, "xyz") == dict.fromkeys(clean_names(), 1.0) | {"rmse": 0.0}
    assert metrics.r2(y, mean, mask) == pytest.approx(0, abs=1e-12)
    assert metrics.pearson(y, np.full(y.shape, 0.1), mask) == 0.0
    flat = y.copy()
    flat[:, 1] = 0.1  # its mean is not 0.1 in floating point
    assert np.isnan(metrics.r2_axes(flat, y, mask)).tolist() == [False, True, False]
    assert np.isnan(metrics.r2_uniform(flat, y, mask))
    assert metrics.r2(flat, y, mask) < metrics.r2(flat, flat, mask) == 1.0  # errors on a still axis count
    nothing = metrics.score(y, y, np.zeros(len(y), bool), "xyz")
    assert np.isnan(list(nothing.values())).all()


def clean_names() -> list[str]:
    return ["r2", "r2_uniform", "r2:x", "r2:y", "r2:z", "pearson"]


def test_windows_partition_the_series(series):
    y, prediction, mask = series
    starts, scores = metrics.windowed_r2(y, prediction, mask, 90)
    assert starts.tolist() == [0, 90, 180, 270]  # 40 bins are left, less than half a window
    assert scores[1] == metrics.r2(y[90:180], prediction[90:180], mask[90:180])
    assert metrics.windowed_r2(y, prediction, None, 130)[0].tolist() == [0, 130, 260]
    empty = mask.copy()
    empty[:90] = False
    assert np.isnan(metrics.windowed_r2(y, prediction, empty, 90)[1]).tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    ("y", "prediction", "mask", "names", "message"),
    [
        (np.zeros(4), np.zeros(4), None, "x", r"y and prediction: .*\(4,\)"),
        (np.zeros((4, 2)), np.zeros((4, 1)), None, "xy", r"\(4, 2\) and \(4, 1\)"),
        (np.zeros((4, 2)), np.zeros((4, 2)), np.ones(4), "xy", "mask: expected booleans"),
        (np.zeros((4, 2)), np.zeros((4, 2)), np.ones(3, bool), "xy", r"mask: .*shape \(3,\)"),
        (np.zeros((4, 2)), np.zeros((4, 2)), None, "x", "axes: expected 2 names"),
    ],
)
def test_refuses_what_does_not_fit(y, prediction, mask, names, message):
    with pytest.raises(InputError, match=message):
        metrics.score(y, prediction, mask, names)
