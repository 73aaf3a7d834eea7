"""BPTT over windows: its gradient against autograd of the same network, and what training promises."""

from dataclasses import replace

import numpy as np
import oracle
import pytest
import torch
from threadpoolctl import threadpool_info

from bci_adapt.errors import InputError
from bci_adapt.learning import bptt as pretraining
from bci_adapt.learning.bptt import Pretraining, _windows, pretrain, unroll
from bci_adapt.learning.cells.base import Network, cells


@pytest.mark.parametrize("cell", cells().values(), ids=lambda cell: cell.name)
def test_unrolled_gradient_is_autograd_of_the_plain_network(cell):
    rng = np.random.default_rng(0)
    network = Network(cell, 3, 4, 2)
    W, C = (torch.tensor(v, requires_grad=True) for v in network.initial_weights(1))
    x, y = torch.tensor(rng.standard_normal((9, 5, 3))), torch.tensor(rng.standard_normal((9, 5, 2)))
    prediction = unroll(network, W, C, x)
    gradients = torch.autograd.grad(((prediction - y) ** 2).sum(), (W, C))
    zero = torch.zeros(len(cell.slots), 4, dtype=torch.float64)
    plain = torch.stack(
        [torch.stack([p for _, p in oracle.forward(network, W, C, x[:, b], zero)]) for b in range(5)], dim=1
    )
    expected = torch.autograd.grad(((plain - y) ** 2).sum(), (W, C))
    torch.testing.assert_close(prediction, plain, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def lagged_problem(n_bins=1500, seed=0):
    """Targets that need one bin of memory."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n_bins, 3))
    Y = np.roll(X[:, :2], 1, axis=0) * 0.8
    return X, Y, np.ones_like(Y), np.ones(n_bins, bool), np.arange(n_bins) == 0


SETTINGS = Pretraining(n_updates=500, window_bins=30, burn_in_bins=5, input_dropout=0.0, gain_jitter=0, offset_jitter=0)


# Filters that only fade make a poor delay line, and nothing bounds a relu network beyond the windows it was trained on.
ABLE = [cell for name, cell in cells().items() if name not in ("mingru", "minlstm", "ssm", "relu")]


@pytest.mark.parametrize("cell", ABLE, ids=lambda cell: cell.name)
def test_training_learns_a_memory_and_is_decided_by_its_seed(cell):
    network = Network(cell, 3, 12, 2)
    data = [[part] for part in lagged_problem()]
    W, C = pretrain(network, *data, seed=1, settings=SETTINGS)
    X, Y, *_ = lagged_problem(seed=5)
    held = unroll(network, torch.tensor(W), torch.tensor(C), torch.tensor(X)[:, None])[:, 0].numpy()
    assert np.mean((held - Y)[5:] ** 2) < 0.25 * np.mean(Y**2)
    again, other = (pretrain(network, *data, seed=seed, settings=SETTINGS)[0] for seed in (1, 2))
    assert np.array_equal(again, W)
    assert not np.array_equal(other, W)


def test_windows_cross_no_reset_and_use_no_missing_label():
    X, Y, weight, observed, reset = lagged_problem(400)
    network = Network(cells()["tanh"], 3, 4, 2)
    spoiled, half = Y.copy(), weight.copy()
    spoiled[100:200], half[100:200] = np.nan, 0.0
    first = pretrain(network, [X], [spoiled], [half], [observed], [reset], 0, SETTINGS)
    spoiled[100:200] = 1e9
    second = pretrain(network, [X], [spoiled], [half], [observed], [reset], 0, SETTINGS)
    assert np.array_equal(first[0], second[0])
    assert np.isfinite(first[0]).all()
    chopped = np.arange(400) % 29 == 0
    with pytest.raises(InputError, match="30 observed bins"):
        pretrain(network, [X], [Y], [weight], [observed], [chopped], 0, SETTINGS)
    unseen = np.zeros(400, bool)
    with pytest.raises(InputError, match="labels"):
        pretrain(network, [X], [Y], [weight], [unseen], [reset], 0, SETTINGS)


def test_training_takes_one_thread_and_gives_the_others_back(monkeypatch):
    """Threads that wait for one another over small products cost several times what they save."""

    def threads():
        return [each["num_threads"] for each in threadpool_info()] + [torch.get_num_threads()]

    seen = []

    def watched(*arguments):
        seen.extend(threads())
        return unroll(*arguments)

    monkeypatch.setattr(pretraining, "unroll", watched)
    own = torch.get_num_threads()
    torch.set_num_threads(2)
    before, x = threads(), np.random.default_rng(0).standard_normal((100, 3))
    flags = np.ones(100, bool)
    pretrain(Network(cells()["tanh"], 3, 4, 1), [x], [x[:, :1]], [np.ones((100, 1))], [flags], [~flags], 0,
             Pretraining(n_updates=1))  # fmt: skip
    assert set(seen) == {1}
    assert threads() == before
    torch.set_num_threads(own)


def test_fine_tuning_starts_from_the_given_weights():
    network = Network(cells()["gru"], 3, 4, 2)
    data = [[part] for part in lagged_problem(300)]
    initial = network.initial_weights(7)
    still = Pretraining(n_updates=1, window_bins=30, learning_rate=0.0)
    W, C = pretrain(network, *data, seed=0, settings=still, initial=initial)
    np.testing.assert_allclose(W, initial[0], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(C, initial[1], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("recency", "share"), [(1.0, 1 / 3), (0.5, 4 / 7), (1e-9, 1.0)])
def test_recency_is_how_often_a_session_is_drawn_against_the_next(recency, share):
    """Without inputs a network learns the mean of its labels: 1 in the newest of three sessions, else 0."""
    network = Network(cells()["tanh"], 3, 4, 1)
    X, weight, observed, reset = np.zeros((400, 3)), np.ones((400, 1)), np.ones(400, bool), np.arange(400) == 0
    labels = [0.0 * weight, 0.0 * weight, weight]
    settings = replace(SETTINGS, n_updates=300, batch=64, learning_rate=1e-2, recency=recency)
    W, C = pretrain(network, [X] * 3, labels, [weight] * 3, [observed] * 3, [reset] * 3, 0, settings)
    said = unroll(network, torch.tensor(W), torch.tensor(C), torch.zeros(20, 1, 3, dtype=torch.float64))
    assert said[10:].mean().item() == pytest.approx(share, abs=0.05)


def test_every_window_knows_how_many_sessions_came_after_it():
    X, Y, weight, observed, reset = lagged_problem(100)
    parts = [[part, part[:60], part] for part in (X, Y, weight, observed, reset)]
    *_, starts, age = _windows(*parts, SETTINGS)
    assert age.tolist() == [2] * 71 + [1] * 31 + [0] * 71
    assert starts.tolist() == [*range(71), *range(100, 131), *range(160, 231)]


@pytest.mark.parametrize(
    "settings", [{"window_bins": 10}, {"batch": 0}, {"recency": 0.0}, {"recency": 1.5}, {"input_dropout": 1.0}]
)
def test_settings_that_cannot_be(settings):
    with pytest.raises(InputError, match="pretraining: expected"):
        Pretraining(**settings)
