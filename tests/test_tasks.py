"""Every task keeps the contract of a seeded stream with a change point; each is what it says."""

import numpy as np
import pytest

from bci_adapt.errors import InputError
from bci_adapt.paper.jobs.task_streams import lagged, ridge
from bci_adapt.paper.tasks.base import task, tasks

N = 300


@pytest.mark.parametrize("name", tasks())
def test_streams_are_seeded_and_shaped(name):
    made = task(name)
    x, y, change = made.stream(N, seed=3)
    again = made.stream(N, seed=3)
    other = made.stream(N, seed=4)
    assert x.shape[0] == y.shape[0] == N
    assert change == N // 2
    assert np.array_equal(x, again[0])
    assert np.array_equal(y, again[1], equal_nan=True)
    assert not np.array_equal(x, other[0])
    assert np.isfinite(x).all()
    assert np.isfinite(y[-N // 4 :]).all()
    with pytest.raises(InputError, match="at least"):
        made.stream(1, seed=0)
    with pytest.raises(InputError, match="change_at"):
        made.stream(N, seed=0, change_at=N + 1)


@pytest.mark.parametrize("name", tasks())
def test_nothing_differs_before_the_change_and_something_does_after_it(name):
    made = task(name)
    still, changed, all_along = (made.stream(N, 5, change_at=at) for at in (N, N // 2, 0))
    early = slice(0, N // 2 - getattr(made, "horizon", 0) - 1)  # of `delayed` the target may lie behind the change
    for part in (0, 1):
        assert np.array_equal(still[part][early], changed[part][early], equal_nan=True)
    later = slice(N // 2, N)
    apart = [not np.array_equal(a[1][later], b[1][later]) for a, b in ((still, changed), (still, all_along))]
    assert apart == [True, True]


def linear_error(x, y, where):
    """Error of the best linear readout of ten lags, fitted to and scored on `where`, over the target's variance."""
    return float(np.mean((ridge(lagged(x), y, where)[where] - y[where]) ** 2) / np.var(y[where]))


def test_sine_changes_frequency_without_a_jump():
    x, y, change = task("sine", before=0.04, after=0.1).stream(2000, seed=0)
    assert np.array_equal(x[1:], y[:-1])
    assert np.abs(np.diff(x[:, 0])).max() <= 2 * np.pi * 0.1 + 1e-9
    for part, frequency in ((x[:change, 0], 0.04), (x[change:, 0], 0.1)):
        assert np.argmax(np.abs(np.fft.rfft(part))) == round(frequency * len(part))


def test_a_sum_of_sines_has_that_many_lines():
    x, _, change = task("sine_sum", base=0.05, n_sines=3, factor=1.5).stream(4000, seed=0)
    for part, lowest in ((x[:change, 0], 0.05), (x[change:, 0], 0.075)):
        power = np.abs(np.fft.rfft(part * np.hanning(len(part)))) ** 2
        lines = [round(lowest * multiple * len(part)) for multiple in (1.0, 2**0.5, 3**0.5)]
        near = {at + offset for at in lines for offset in range(-3, 4)}
        assert power[list(near)].sum() > 0.99 * power.sum()


def test_a_delayed_label_is_the_future_and_comes_when_it_is_known():
    made = task("delayed", horizon=50)
    x, y, _ = made.stream(400, seed=1)
    assert np.array_equal(y[:-50], x[50:])
    assert (made.label_delay, task("delayed", causal=False).label_delay) == (50, 0)
    for frequency in (made.before, made.after):
        cycles = frequency * made.horizon
        assert abs(cycles - round(cycles)) > 0.1


def test_lorenz_keeps_its_attractor_and_changes_its_pace():
    _, y, change = task("lorenz", noise=0.0).stream(4000, seed=0)
    before, after = y[:change, 0], y[change:, 0]
    assert 0.8 < before.std() < 1.2
    assert 0.85 < before.std() / after.std() < 1.15
    pace = [np.abs(np.diff(part)).mean() for part in (before, after)]
    assert 1.5 < pace[1] / pace[0] < 2.5


def test_a_parameter_shift_of_lorenz_moves_it_little():
    """The example of a missing denominator: what predicts before the change predicts after it."""
    x, y, change = task("lorenz", step_after=0.05, rho_after=30.0).stream(6000, seed=0)
    told = ridge(lagged(x), y, slice(0, change))
    error = [
        float(np.mean((told - y)[part] ** 2) / np.var(y[part])) for part in (slice(0, change), slice(change, None))
    ]
    assert error[1] < 2 * error[0]


def test_recall_changes_its_delay():
    x, y, change = task("recall", before=2, after=5).stream(100, seed=0)
    assert np.isnan(y[:2]).all()
    assert np.array_equal(y[2:change], x[: change - 2])
    assert np.array_equal(y[change:], x[change - 5 : -5])


def test_xor_is_a_product_that_no_linear_filter_knows():
    x, y, change = task("xor", before=1, after=3).stream(4000, seed=0)
    assert np.array_equal(y[1:change], x[1:change] * x[: change - 1])
    assert np.array_equal(y[change:], x[change:] * x[change - 3 : -3])
    assert linear_error(x, y, slice(change, None)) > 0.95


def test_adding_sums_and_then_subtracts_what_was_marked():
    x, y, change = task("adding", gap=4.0).stream(400, seed=0)
    seen: list[float] = []
    for t in range(400):
        seen += [x[t, 0]] if x[t, 1] else []
        if len(seen) < 2:
            assert np.isnan(y[t, 0])
        else:
            assert y[t, 0] == pytest.approx(seen[-1] + (1 if t < change else -1) * seen[-2])


def test_drifted_electrodes_lose_a_linear_decoder_that_a_refit_gets_back():
    x, y, change = task("electrode_drift", severity=2.0).stream(3000, seed=0)
    frozen = ridge(lagged(x), y, slice(0, change))
    refit = ridge(lagged(x), y, slice(change, None))

    def error(told, where):
        return float(np.sum((told - y)[where] ** 2) / np.sum((y[where] - y[where].mean(axis=0)) ** 2))

    assert error(frozen, slice(0, change)) < 0.6
    assert error(refit, slice(change, None)) < 0.6
    assert error(frozen, slice(change, None)) > error(refit, slice(change, None)) + 0.2


@pytest.mark.parametrize(
    ("name", "constants", "message"),
    [
        ("sine_sum", {"n_sines": 4}, "n_sines from 1 to 3"),
        ("adding", {"gap": 0.5}, "a gap of at least 1"),
        ("sine", {"frequency": 0.1}, "no constant 'frequency'"),
        ("sinus", {}, "did you mean 'sine'"),
    ],
)
def test_constants_that_make_no_sense_are_refused(name, constants, message):
    with pytest.raises(InputError, match=message):
        task(name, **constants).stream(N, 0)
