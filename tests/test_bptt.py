"""BPTT over windows: its gradient against autograd of the same network, and what training promises."""

import warnings
from dataclasses import replace

import numpy as np
import oracle
import pytest
import torch
from threadpoolctl import threadpool_info

from bci_adapt.decoders.fine_tuned import FineTunedDecoder
from bci_adapt.errors import InputError
from bci_adapt.learning import bptt as pretraining
from bci_adapt.learning.bptt import Pretraining, batch, pretrain, unroll, windows
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
def test_training_learns_a_memory(cell):
    network = Network(cell, 3, 12, 2)
    data = [[part] for part in lagged_problem()]
    W, C = pretrain(network, *data, seed=1, settings=replace(SETTINGS, n_updates=250, batch=8, learning_rate=8e-3))
    X, Y, *_ = lagged_problem(seed=5)
    held = unroll(network, torch.tensor(W), torch.tensor(C), torch.tensor(X)[:, None])[:, 0].numpy()
    assert np.mean((held - Y)[5:] ** 2) < 0.2 * np.mean(Y**2)


@pytest.mark.parametrize("cell", ABLE, ids=lambda cell: cell.name)
def test_training_is_decided_by_its_seed(cell):
    network, data = Network(cell, 3, 12, 2), [[part] for part in lagged_problem()]
    few = Pretraining(n_updates=4, window_bins=30)
    first, again, other = (pretrain(network, *data, seed=seed, settings=few)[0] for seed in (1, 1, 2))
    assert np.array_equal(again, first)
    assert not np.array_equal(other, first)


def test_windows_cross_no_reset_and_use_no_missing_label():
    X, Y, weight, observed, reset = lagged_problem(400)
    network, few = Network(cells()["tanh"], 3, 4, 2), replace(SETTINGS, n_updates=30)
    spoiled, half = Y.copy(), weight.copy()
    spoiled[100:200], half[100:200] = np.nan, 0.0
    first = pretrain(network, [X], [spoiled], [half], [observed], [reset], 0, few)
    spoiled[100:200] = 1e9
    second = pretrain(network, [X], [spoiled], [half], [observed], [reset], 0, few)
    assert np.array_equal(first[0], second[0])
    assert np.isfinite(first[0]).all()
    unseen = np.zeros(400, bool)
    with pytest.raises(InputError, match="labels"):
        pretrain(network, [X], [Y], [weight], [unseen], [reset], 0, few)
    early = (np.arange(400) < 5)[:, None] * weight
    with pytest.raises(InputError, match="behind its first 5 bins"):
        pretrain(network, [X], [Y], [early], [observed], [reset], 0, few)


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


@pytest.mark.parametrize("trial_bins", [400, 20])
@pytest.mark.parametrize(("recency", "share"), [(1.0, 1 / 3), (0.5, 4 / 7), (1e-9, 1.0)])
def test_recency_is_how_often_a_session_is_drawn_against_the_next(recency, share, trial_bins):
    """Without inputs a network learns the mean of its labels: 1 in the newest of three sessions, else 0."""
    network = Network(cells()["tanh"], 3, 4, 1)
    X, weight, observed, reset = (
        np.zeros((400, 3)),
        np.ones((400, 1)),
        np.ones(400, bool),
        np.arange(400) % trial_bins == 0,
    )
    labels = [0.0 * weight, 0.0 * weight, weight]
    settings = replace(SETTINGS, n_updates=300, batch=64, learning_rate=1e-2, recency=recency)
    W, C = pretrain(network, [X] * 3, labels, [weight] * 3, [observed] * 3, [reset] * 3, 0, settings)
    said = unroll(network, torch.tensor(W), torch.tensor(C), torch.zeros(20, 1, 3, dtype=torch.float64))
    assert said[10:].mean().item() == pytest.approx(share, abs=0.05)


def test_every_window_knows_how_many_sessions_came_after_it():
    parts = [[part, part[:60], part] for part in lagged_problem(100)[2:]]
    able = windows(*parts, SETTINGS)
    assert able.age.tolist() == [2] * 71 + [1] * 31 + [0] * 71
    assert able.start.tolist() == [*range(71), *range(100, 131), *range(160, 231)]
    assert able.draws is None
    assert able.left_out == (0, 0)


@pytest.mark.parametrize(
    "settings", [{"window_bins": 10}, {"batch": 0}, {"recency": 0.0}, {"recency": 1.5}, {"input_dropout": 1.0}]
)
def test_settings_that_cannot_be(settings):
    with pytest.raises(InputError, match="pretraining: expected"):
        Pretraining(**settings)


def trials(*n_bins, seed=0):
    """A session cut into trials of so many bins: X, Y, weight, observed, reset."""
    X, Y, weight, observed, _ = lagged_problem(sum(n_bins), seed)
    reset = np.zeros(len(X), bool)
    reset[np.cumsum([0, *n_bins[:-1]])] = True
    return X, Y, weight, observed, reset


class TestLongStretches:
    """Where no stretch is shorter than a window, training is the plain loop below, to the last bit."""

    @staticmethod
    def plain(network, sessions, seed, settings, shortest=30):
        """Every piece of 30 bins with a label behind its first five, drawn alike or by recency."""
        pieces, generator = [], torch.Generator().manual_seed(seed)
        for after, (X, Y, weight, observed, reset) in zip(range(len(sessions))[::-1], sessions, strict=True):
            for trial in np.split(np.arange(len(X)), np.flatnonzero(reset)):
                bins = trial[observed[trial]]
                for k in range(len(bins) - shortest + 1):
                    piece = bins[k : k + 30]
                    if (weight[piece[5:]] > 0).any():
                        pieces.append((X[piece], np.where(weight[piece] > 0, Y[piece], 0), weight[piece], after))
        W, C = (torch.tensor(part, dtype=torch.float32, requires_grad=True) for part in network.initial_weights(seed))
        adam = torch.optim.Adam([W, C], lr=settings.learning_rate)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, settings.n_updates)
        often = torch.cumsum(torch.tensor([settings.recency ** piece[3] for piece in pieces], dtype=torch.float64), 0)
        for _ in range(settings.n_updates):
            if settings.recency == 1.0:
                drawn = torch.randint(len(pieces), (settings.batch,), generator=generator)
            else:
                at = torch.rand(settings.batch, generator=generator, dtype=torch.float64) * often[-1]
                drawn = torch.searchsorted(often, at, right=True)
            x, y, w = (
                torch.tensor(np.stack([pieces[d][part] for d in drawn], axis=1), dtype=torch.float32)
                for part in range(3)
            )
            w[:5] = 0.0
            per_window = 1, settings.batch, network.n_inputs
            x = x * (1.0 + settings.gain_jitter * torch.randn(per_window, generator=generator))
            x = x + settings.offset_jitter * torch.randn(per_window, generator=generator)
            kept = torch.rand(x.shape, generator=generator) >= settings.input_dropout
            x = x * kept / (1.0 - settings.input_dropout)
            loss = (w * (unroll(network, W, C, x) - y) ** 2).sum() / w.sum().clamp(min=1.0)
            adam.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([W, C], settings.clip)
            adam.step()
            decay.step()
        return [part.detach().double().numpy() for part in (W, C)]

    @pytest.mark.parametrize("recency", [1.0, 0.5])
    def test_training_is_the_plain_loop_bit_for_bit(self, recency):
        """Gaps, missing labels and segments included; a session of windows' own length, too."""
        settings = Pretraining(n_updates=6, window_bins=30, burn_in_bins=5, batch=4, recency=recency)
        sessions = [trials(120, 50, seed=1), trials(30, 30, 31, seed=2), trials(90, seed=3)]
        sessions[0][3][100:115] = False
        sessions[0][2][10:90, 0], sessions[2][2][:40] = 0.0, 0.0
        network = Network(cells()["gru"], 3, 5, 2)
        made = pretrain(network, *(list(part) for part in zip(*sessions, strict=True)), 4, settings)
        with_one_thread = torch.get_num_threads()
        torch.set_num_threads(1)
        expected = self.plain(network, sessions, 4, settings)
        other = self.plain(network, sessions, 4, settings, shortest=31)
        torch.set_num_threads(with_one_thread)
        assert all(np.array_equal(ours, theirs) for ours, theirs in zip(made, expected, strict=True))
        assert not np.array_equal(made[0], other[0])


class TestShortStretches:
    """Stretches of 1 to 29 bins, where a window has 30."""

    def test_each_is_one_window_without_burn_in(self):
        able = windows(*([part] for part in trials(4, 29, 30, 1)[2:]), SETTINGS)
        found = {int(start): (int(length), int(burn_in)) for start, length, burn_in in zip(*able[:3], strict=True)}
        assert found == {0: (4, 0), 4: (29, 0), 33: (30, 5), 63: (1, 0)}

    def test_unobserved_bins_shorten_a_stretch(self):
        *_, weight, observed, reset = trials(40, 20)
        observed[5:20] = False
        able = windows([weight], [observed], [reset], SETTINGS)
        assert list(zip(able.start.tolist(), able.length.tolist(), strict=True)) == [(0, 25), (25, 20)]

    def test_a_stretch_is_drawn_in_proportion_to_its_labelled_bins(self):
        """85 trials of 20 bins and a stretch of 100 that has three times as many windows as they are; 10 bins of the
        last trial have no label.
        """
        *_, weight, observed, reset = trials(*[20] * 85, 100)
        weight[1690:1700] = 0.0
        able = windows([weight], [observed], [reset], SETTINGS)
        often = np.bincount(np.searchsorted(np.flatnonzero(reset), able.start, side="right") - 1, able.draws)
        np.testing.assert_allclose(often, [20] * 84 + [10, 100])

    @pytest.mark.parametrize("cell", cells().values(), ids=lambda cell: cell.name)
    def test_the_gradient_of_a_batch_is_the_sum_over_stretches_unrolled_apart(self, cell):
        sizes = [4, 11, 1, 7, 13]
        X, Y, weight, observed, reset = trials(*sizes)
        weight[2:3] = 0.0
        able = windows([weight], [observed], [reset], SETTINGS)
        network = Network(cell, 3, 4, 2)
        W, C = (torch.tensor(part, requires_grad=True) for part in network.initial_weights(1))
        data = [torch.tensor(part) for part in (X, Y, weight)]

        def gradient(x, y, w):
            error = (w * (unroll(network, W, C, x) - y) ** 2).sum()
            return torch.autograd.grad(error, (W, C))

        drawn = torch.tensor([1, 0, 4, 3, 1, 2])
        x, y, w = batch(data, able, drawn)
        assert x.shape == (13, 6, 3)
        trial = zip(*(torch.split(part, sizes) for part in data), strict=True)
        apart = [gradient(*(part[:, None] for part in each)) for each in trial]
        for position, ours in enumerate(gradient(x, y, w)):
            expected = sum(apart[k][position] for k in drawn.tolist())
            torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)
            # Not so where what pads a stretch had a label.
            padded = gradient(x, y, torch.ones_like(w))[position]
            assert not torch.allclose(padded, expected, rtol=1e-3)

    def test_what_no_network_can_see_is_counted(self):
        *_, weight, observed, reset = trials(20, 12, 40, 50, 1)
        weight[20:32] = 0.0
        weight[77:122] = 0.0
        assert windows([weight] * 2, [observed] * 2, [reset] * 2, SETTINGS).left_out == (4, 2 * 62)
        assert windows([weight], [observed], [reset], replace(SETTINGS, burn_in_bins=4)).left_out == (1, 12)

    def test_a_decoder_says_what_it_leaves_out(self):
        """Short trials train it; what holds no label is counted, in `fit` and in the fine-tuning alike."""
        X, Y, weight, _, reset = trials(*[20] * 8, 3, 1)
        X, Y = np.abs(X), np.where(weight > 0, Y, 0)
        constants = {"n_hidden": 4, "n_updates": 3, "bin_s": 0.02, "tune_updates": 2, "label_delay_s": 0.06}
        with warnings.catch_warnings(action="error"):
            decoder = FineTunedDecoder(**constants).fit(X, Y, reset)
        assert "left_out" not in decoder.metadata_
        before = decoder.start_weights_[0]
        Y[-24:-4] = np.nan
        with pytest.warns(UserWarning, match=r"1 stretches \(20 bins, 0\.4 s\) hold no label"):
            decoder.fit(X, Y, reset)
        assert decoder.metadata_["left_out"] == {"stretches": 1, "bins": 20, "seconds": 0.4}
        assert not np.array_equal(before, decoder.start_weights_[0])
        # Labels come three bins late: none of a trial of three bins, nor of one, arrives before its end.
        with pytest.warns(UserWarning, match=r"3 stretches \(24 bins, 0\.48 s\)"):
            decoder.adapt(X, Y, reset)
        assert decoder.metadata_["left_out"]["bins"] == 24
        assert not np.array_equal(decoder.start_weights_[0], decoder.state_.predictor()[0][0])
