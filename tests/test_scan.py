"""The scan of bin width and lag, against planted lags and reference implementations."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr
from scipy.signal import lfilter

from bci_adapt import metrics
from bci_adapt.archive.sources.simulated import Simulated
from bci_adapt.data import scan as s
from bci_adapt.data.prepare import prepare
from bci_adapt.errors import InputError
from bci_adapt.results.figures.drift import scan_figure

BIN_S = 0.02


def session(lead_bins=0, n_bins=15_000, n_channels=8, seed=0, bin_s=BIN_S, segment=None, noise=0.0):
    """Poisson counts whose rates follow velocity `lead_bins` later; labels are velocity plus white noise."""
    rng = np.random.default_rng(seed)
    smooth = lfilter([1], [1, -1.8, 0.82], rng.normal(size=(n_bins, 2)), axis=0)
    velocity = smooth / smooth.std(axis=0)
    rates = np.exp(np.roll(velocity, -lead_bins, axis=0) @ rng.normal(0, 0.5, (2, n_channels)))
    return xr.Dataset(
        {
            "counts": (("time", "channel"), rng.poisson(rates).astype(np.uint16)),
            "segment": ("time", np.zeros(n_bins, np.int32) if segment is None else segment),
            "valid": ("time", np.ones(n_bins, bool)),
            "velocity": (("time", "axis"), velocity + noise * rng.normal(size=velocity.shape), {"units": "cm/s"}),
            "velocity_valid": (("time", "axis"), np.ones((n_bins, 2), bool)),
        },
        {"time": np.arange(1, n_bins + 1) * bin_s, "channel": [f"e{i}" for i in range(n_channels)], "axis": ["x", "y"]},
        {"bin_s": bin_s, "session_id": "made"},
    )


def rebinned(whole):
    return lambda bin_s: s.rebin(whole, bin_s)


@pytest.mark.parametrize("lead_bins", [6, 0, -4])
def test_the_planted_lag_is_found(lead_bins):
    found = s.scan(rebinned(session(lead_bins)), [BIN_S], (-0.2, 0.2))
    assert found.best.lag_s == pytest.approx(lead_bins * BIN_S)
    assert found.best.r2 > 0.5
    assert [score.lag_s for score in found.scores] == pytest.approx(np.arange(-10, 11) * BIN_S)
    assert all("penalty" in note for note in found.notes)
    assert (found.history_s, found.common_s, found.gap_s) == (BIN_S, BIN_S, 1.0)
    # at one width the common resolution is the bin's own, over bins that were scored at every lag
    assert found.best.r2_common == pytest.approx(found.best.r2, abs=0.02)


def test_without_neurons_there_is_nothing_to_decode():
    whole = session(4)
    shuffled = whole.assign(counts=whole["counts"].roll(time=5000))
    found = s.scan(rebinned(shuffled), [BIN_S, 2 * BIN_S], (-0.1, 0.1))
    assert max(max(score.r2, score.r2_common) for score in found.scores) < 0.02


def test_an_optimum_at_an_edge_is_flagged():
    load = rebinned(session(10))
    found = s.scan(load, [BIN_S], (-0.1, 0.1))
    assert "lag, 0.1 s, is the largest" in found.notes[0]
    widths = s.scan(load, [BIN_S, 2 * BIN_S], (0.2, 0.2)).notes
    assert any("bin width, 0.02 s, is the smallest" in note for note in widths)
    assert not any("lag" in note for note in widths)  # one lag is no range


def test_widths_are_compared_at_a_common_resolution():
    whole = session(0, noise=1.5)
    found = s.scan(rebinned(whole), [0.02, 0.04, 0.06], (0.0, 0.12))
    assert found.common_s == pytest.approx(0.12)
    assert found.history_s == pytest.approx(0.12)
    at_zero = {round(score.bin_s, 3): score for score in found.scores if score.lag_s == 0}
    # the noise of labels makes narrow bins look bad by themselves, not when averaged to one width
    assert at_zero[0.06].r2 > at_zero[0.04].r2 > at_zero[0.02].r2
    assert at_zero[0.02].r2_common > at_zero[0.02].r2 + 0.1
    assert at_zero[0.02].r2_common == pytest.approx(at_zero[0.06].r2_common, abs=0.05)


def test_predictions_are_those_of_a_ridge_fitted_without_the_fold_and_its_surroundings():
    from sklearn.linear_model import Ridge

    whole = session(2, n_bins=12_000)
    grid = s._Grid(whole, "velocity", [0, 2], 3, 20_000, 20.0, 1.0)
    root, y = np.sqrt(whole["counts"].values.astype(float)), grid.labels[grid.rows]
    x = np.concatenate([root[grid.rows], root[grid.rows - 1], root[grid.rows - 2]], axis=1)
    test = grid.fold == 3
    mean, spread = x[~test].mean(axis=0), x[~test].std(axis=0)
    for number in range(2):
        penalty = grid.penalties[number, 3] * (~test).sum()
        columns = slice(2 * number, 2 * number + 2)
        model = Ridge(alpha=penalty).fit((x[~test] - mean) / spread, y[~test][:, columns])
        expected = model.predict((x[test] - mean) / spread)
        np.testing.assert_allclose(grid.predictions[test][:, columns], expected, atol=1e-8)

    stretch = s.fold_stretches(whole["segment"].values, 1000)
    between = 0
    for a, b in zip(grid.rows, grid.rows[1:], strict=False):  # 1 s lies between stretches
        assert b - a == 1 or (stretch[a] + 1 == stretch[b] and b - a >= 50)
        between += b - a > 1
    assert between == stretch[-1] == 11
    assert np.array_equal(grid.labels[:-2, 2:], grid.labels[2:, :2])  # lag 2 is the label two bins later


def test_the_score_from_sums_is_the_score():
    rng = np.random.default_rng(0)
    x, y = np.column_stack([rng.normal(size=(50, 3)), np.ones(50)]), rng.normal(size=(50, 4))
    weights = rng.normal(size=(4, 4))
    power = np.square(y).sum(axis=0), y.sum(axis=0), 50
    found = s._r2_from_sums(weights, x.T @ x, x.T @ y, power, 2)
    expected = [metrics.r2(y[:, c], (x @ weights)[:, c]) for c in (slice(0, 2), slice(2, 4))]
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([25], [10 * [0] + 10 * [0], 5 * [1]]),
        ([20], [10 * [0], 10 * [1]]),
        ([4, 4, 4, 4], [12 * [0], 4 * [1]]),
        ([4, 10, 3], [4 * [0], 10 * [1], 3 * [2]]),
        ([12, 3, 3], [12 * [0], 6 * [1]]),
    ],
)
def test_stretches_stay_inside_long_segments(lengths, expected):
    segment = np.repeat(np.arange(len(lengths)), lengths)
    found = s.fold_stretches(segment, 10).tolist()
    if lengths == [25]:  # cut evenly: 13 and 12
        assert found == 13 * [0] + 12 * [1]
    else:
        assert found == sum(expected, [])  # noqa: RUF017


def test_neither_windows_nor_lags_cross_segments_or_unobserved_bins():
    segment = np.repeat(np.arange(30), 500).astype(np.int32)
    whole = session(segment=segment)
    whole = whole.assign_coords(time=whole["time"] + 5.0 * segment)
    whole["valid"].values[7250] = False
    whole["velocity_valid"].values[9250, 1] = False
    grid = s._Grid(whole, "velocity", [-1, 0, 2], 4, 20_000, 10.0, 1.0)
    expected = np.arange(3, 498) + 500 * np.arange(30)[:, None]  # three bins before it in its window, two ahead
    masked = [*range(7250, 7254), 9248, 9250, 9251]
    assert np.array_equal(grid.rows, np.setdiff1d(expected, masked))


def test_rebinning_sums_counts_and_averages_movement():
    whole = session(n_bins=1001)
    whole["velocity_valid"].values[10, 0] = False
    wide = s.rebin(whole, 0.06)
    assert wide.sizes["time"] == 333
    np.testing.assert_array_equal(wide["counts"][1], whole["counts"][3:6].sum("time"))
    np.testing.assert_allclose(wide["velocity"][1], whole["velocity"][3:6].mean("time"))
    assert wide["velocity_valid"].values[3].tolist() == [False, True]
    assert wide["velocity_valid"].values.sum() == 665
    np.testing.assert_allclose(wide["time"][:2], [0.06, 0.12])
    assert s.rebin(whole, 0.02)["counts"].equals(whole["counts"].drop_vars(["channel"]))


@pytest.mark.parametrize(
    ("bins", "lags", "options", "words"),
    [
        ([0.03], (0, 0.1), {}, "not a whole multiple"),
        ([0.01], (0, 0.1), {}, "not a whole multiple"),
        ([], (0, 0.1), {}, "at least one bin width"),
        ([0.02], (0.1, 0), {}, "from low to high"),
        ([0.02], (0, 5), {}, "within ±2 s"),
        ([0.02], (0.001, 0.002), {}, "no whole number of bins"),
        ([0.02], (0, 0.1), {"step_s": 0}, "step between lags"),
        ([0.26, 0.28], (0, 0.3), {}, "no common multiple"),
        ([0.02, 0.04], (0, 0.1), {"history_s": 0.06}, "choose a multiple of 0.04 s"),
        ([0.02], (0, 0.1), {"history_s": 12.0}, "features, at most 4,000"),
        ([0.02], (0, 0.1), {"block_s": 5}, "must last 10 s or more"),
        ([0.02], (0, 0.1), {"block_s": 60}, "at least 10 are needed"),
        ([0.02], (0, 0.1), {"variable": "position"}, "expected target 'position', it holds velocity"),
    ],
)
def test_what_cannot_be_scanned(bins, lags, options, words):
    whole, variable = session(), options.get("variable", "velocity")
    with pytest.raises(InputError, match=words):
        s.scan(lambda bin_s: s.rebin(whole, bin_s, variable), bins, lags, **options)


def test_steps_between_lags():
    found = s.scan(rebinned(session()), [0.02], (-0.1, 0.1), step_s=0.05)
    assert [round(score.lag_s, 3) for score in found.scores] == [-0.1, -0.04, 0.0, 0.04, 0.1]


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    source = Simulated(tmp_path_factory.mktemp("raw"), days=(0,), duration_s=220, n_units=20)
    return source.fetch(source.list().index[0])


def test_command(call, recording, tmp_path):
    code, out, _ = call(
        "scan",
        recording,
        "--bin",
        ".02,.05",
        "--lag=-.1:.3",
        "--plot",
        tmp_path / "s.png",
        "--json",
        tmp_path / "s.json",
    )
    assert code == 0
    assert "Scan source sessions only" in out
    assert "neurons lead" in out
    assert (tmp_path / "s.png").read_bytes()[:4] == b"\x89PNG"
    told = json.loads((tmp_path / "s.json").read_text())
    assert 0 < told["best"]["lag_s"] < 0.2  # simulated neurons lead by 100 ms
    assert told["caution"] == s.CAUTION
    prepare(recording, 0.05, out=tmp_path / "s.nc")
    code, out, _ = call("scan", tmp_path / "s.nc", "--bin", ".05", "--lag=0:.2", "--json", "-")
    assert code == 0
    one = json.loads(out)
    assert [score["bin_s"] for score in one["scores"]] == [0.05] * 5
    scan_figure(one)
    for arguments, words in (
        (["--bin", ".02"], "not a whole multiple"),
        (["--bin", ".05,x"], "expected numbers of seconds"),
        (["--bin", ".05", "--lag", "0.1"], "expected FROM:TO"),
    ):
        code, out, err = call("scan", tmp_path / "s.nc", *arguments)
        assert (code, out) == (2, "")
        assert words in err


def test_real_session(real_data):
    file = real_data / "wrist92" / "sub-S_ses-20120718_behavior+ecephys.nwb"
    if not file.is_file():
        pytest.skip("no wrist92 here")
    found = s.scan(rebinned(prepare(file, 0.05)), [0.05, 0.1], (-0.1, 0.3))
    assert 0 <= found.best.lag_s <= 0.2
    assert found.best.r2_common > 0.25
    assert all(np.isfinite([score.r2, score.r2_common, score.r2_common_sd]).all() for score in found.scores)
