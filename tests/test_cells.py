"""Cells: their partials and flags are derived from their own update, and known ones from implementations of others."""

from dataclasses import replace

import numpy as np
import oracle
import pytest
import torch
from problems import M_IN, N, learner, problem
from scipy.signal import cont2discrete

from bci_adapt.learning.cells.base import Gate, Network, cells
from bci_adapt.learning.credit.readout import Readout
from bci_adapt.learning.online import run, start

every_cell = pytest.mark.parametrize("cell", cells().values(), ids=lambda cell: cell.name)


def elementwise(function, by_gate, by_slot, gates, k):
    """Hold partials (outputs by gates, outputs by slots) of an elementwise function to autograd of it."""
    rng = np.random.default_rng(1)
    a, s = (torch.tensor(rng.standard_normal((count, N))) for count in (gates, k))
    jac_a, jac_s = torch.autograd.functional.jacobian(function, (a, s))
    unit = torch.arange(N)
    for out in range(jac_a.shape[0]):
        for gate in range(gates):
            torch.testing.assert_close(by_gate(a, s)[out][gate], jac_a[out, unit, gate, unit], rtol=0, atol=1e-12)
        for slot in range(k):
            torch.testing.assert_close(by_slot(a, s)[out][slot], jac_s[out, unit, slot, unit], rtol=0, atol=1e-12)
    assert float(jac_a.permute(0, 2, 1, 3)[:, :, ~np.eye(N, dtype=bool)].abs().max()) == 0.0


@every_cell
def test_partials_are_the_derivatives_of_the_update(cell):
    update, partials = cell.make(torch)

    def new(a, s):
        return torch.stack(update(a, s))

    elementwise(
        new,
        lambda a, s: partials(a, s, new(a, s))[0],
        lambda a, s: partials(a, s, new(a, s))[1],
        len(cell.gates),
        len(cell.slots),
    )


@pytest.mark.parametrize("cell", [c for c in cells().values() if c.make_mid], ids=lambda cell: cell.name)
def test_partials_of_the_second_stage(cell):
    mid, partials = cell.make_mid(torch)
    elementwise(
        lambda a, s: mid(a, s)[None],
        lambda a, s: [partials(a, s)[0]],
        lambda a, s: [partials(a, s)[1]],
        len(cell.gates),
        len(cell.slots),
    )
    # v must not depend on gates that read it: they are not known yet.
    a, s = torch.randn(len(cell.gates), N, dtype=torch.float64), torch.randn(len(cell.slots), N, dtype=torch.float64)
    assert all(float(torch.abs(by).max()) == 0.0 for by in partials(a, s)[0][cell.n_first :])


def memory_slots(cell):
    """Slots that make up the state. A slot that the readout sees, and whose own past no update uses, is an output – h
    of the lstm, y of an output gate – unless it is all there is.
    """
    _, partials = cell.make(torch)
    rng = np.random.default_rng(2)
    a, s = (torch.tensor(rng.standard_normal((count, N))) for count in (len(cell.gates), len(cell.slots)))
    _, ds = partials(a, s, torch.stack(cell.make(torch)[0](a, s)))
    used = [any(float(torch.abs(row[j]).max()) > 0.0 for row in ds) for j in range(len(cell.slots))]
    rest = [j for j in range(len(cell.slots)) if used[j] or j not in cell.features]
    return rest or list(range(len(cell.slots)))


@every_cell
def test_output_bypass_is_what_the_input_does_to_the_output_at_a_fixed_state(cell):
    """∂y/∂x along every direction of x that leaves the new state as it is."""
    kept = memory_slots(cell)
    n, m = 3, 4 * 3 * len(kept)
    network = Network(cell, m, n, 2)
    rng = np.random.default_rng(3)
    W = torch.tensor(rng.standard_normal((n, network.row_width)) / np.sqrt(m))
    C = torch.tensor(rng.standard_normal((2, network.readout_width)))
    before = torch.tensor(rng.uniform(-0.8, 0.8, (len(cell.slots), n)))
    update, _ = cell.make(torch)

    def both(x):
        state = oracle.step(network, update, W, x, before)
        return state[kept].reshape(-1), oracle.output(network, C, x, state)

    moved, seen = torch.autograd.functional.jacobian(both, torch.tensor(rng.standard_normal(m)))
    held = torch.linalg.svd(moved).Vh[torch.linalg.matrix_rank(moved) :].T
    assert held.shape[1] >= m - n * len(kept)
    assert (float((seen @ held).abs().max()) > 1e-9) == cell.output_bypass


@every_cell
def test_nonlinear_state_is_what_superposition_says(cell):
    """f(x, s₁ + s₂) − f(x, s₁) − f(x, s₂) + f(x, 0) = 0 for every pair of states where the update is linear in it."""
    network, kept = Network(cell, M_IN, N, 2), memory_slots(cell)
    rng = np.random.default_rng(4)
    W = torch.tensor(rng.standard_normal((N, network.row_width)))
    x, update = torch.tensor(rng.standard_normal(M_IN)), cell.make(torch)[0]
    worst = 0.0
    for _ in range(20):
        one, two = (torch.tensor(2.0 * rng.standard_normal((len(cell.slots), N))) for _ in range(2))
        parts = [oracle.step(network, update, W, x, s)[kept] for s in (one + two, one, two, 0.0 * one)]
        worst = max(worst, float((parts[0] - parts[1] - parts[2] + parts[3]).abs().max()))
    assert (worst > 1e-9) == cell.nonlinear_state


def test_the_decisive_pairs_differ_in_their_bypass_alone():
    known = cells()
    for without, having in (
        ("tanh", "tanh_skip"),
        ("tanh", "tanh_gate"),
        ("gru", "gru_gate"),
        ("lstm_ungated", "lstm"),
        ("lru", "lru_skip"),
    ):
        assert (known[without].output_bypass, known[having].output_bypass) == (False, True)
        assert known[without].nonlinear_state == known[having].nonlinear_state
    assert (known["lru"].nonlinear_state, known["lru_tanh"].nonlinear_state) == (False, True)


def given(p, X=None):
    """Predictions with the weights as they are."""
    return run(start(learner(p, Readout()), p.W, p.C, p.hidden), p.X if X is None else X)[0][0]


def pieces(p):
    """The weights of every gate."""
    return [p.W[:, row : row + w] for _, w, row, *_ in p.network.blocks]


def test_the_gru_is_torchs_own():
    """An oracle nobody here wrote: torch.nn.GRU with the same weights."""
    p = problem(cells()["gru"], n_bins=12)
    theirs = torch.nn.GRU(M_IN, N, dtype=torch.float64)
    r, u, c, h = pieces(p)
    with torch.no_grad():
        theirs.weight_ih_l0[:] = torch.tensor(np.vstack([r[:, :M_IN], u[:, :M_IN], c[:, :M_IN]]))
        theirs.bias_ih_l0[:] = torch.tensor(np.concatenate([r[:, M_IN], u[:, M_IN], c[:, M_IN]]))
        theirs.weight_hh_l0[:] = torch.tensor(np.vstack([r[:, M_IN + 1 :], u[:, M_IN + 1 :], h[:, 1:]]))
        theirs.bias_hh_l0[:] = torch.tensor(np.concatenate([0 * r[:, 0], 0 * u[:, 0], h[:, 0]]))
        hidden, _ = theirs(torch.tensor(p.X)[:, None], torch.tensor(p.hidden))
    np.testing.assert_allclose(given(p), hidden[:, 0].numpy() @ p.C[:, :N].T + p.C[:, N], rtol=1e-12, atol=1e-13)


def test_the_lstm_is_torchs_own():
    p = problem(cells()["lstm"], n_bins=12)
    theirs = torch.nn.LSTM(M_IN, N, dtype=torch.float64)
    gates = pieces(p)
    with torch.no_grad():
        theirs.weight_ih_l0[:] = torch.tensor(np.vstack([g[:, :M_IN] for g in gates]))
        theirs.bias_ih_l0[:] = torch.tensor(np.concatenate([g[:, M_IN] for g in gates]))
        theirs.weight_hh_l0[:] = torch.tensor(np.vstack([g[:, M_IN + 1 :] for g in gates]))
        theirs.bias_hh_l0[:] = 0.0
        h, c = (torch.tensor(p.hidden[:, slot : slot + 1]) for slot in range(2))
        hidden, _ = theirs(torch.tensor(p.X)[:, None], (h, c))
    np.testing.assert_allclose(given(p), hidden[:, 0].numpy() @ p.C[:, :N].T + p.C[:, N], rtol=1e-12, atol=1e-13)


def test_the_lru_is_a_complex_filter():
    """The same numbers from the formula in complex arithmetic (Orvieto et al. 2023, eq. 5 and 7)."""
    p = problem(cells()["lru_skip"], n_bins=12)
    nu, theta, b_re, b_im = pieces(p)
    pole = np.exp(-np.exp(nu[:, 0]) + 1j * np.exp(theta[:, 0]))
    h, C, out = p.hidden[0, 0] + 1j * p.hidden[0, 1], p.C[:, :N] - 1j * p.C[:, N : 2 * N], []
    for x in p.X:
        h = pole * h + np.sqrt(1.0 - np.abs(pole) ** 2) * ((b_re + 1j * b_im) @ np.append(x, 1.0))
        out.append((C @ h).real + p.C[:, 2 * N] + p.C[:, 2 * N + 1 :] @ x)
    np.testing.assert_allclose(given(p), out, rtol=1e-12, atol=1e-13)


def test_the_s4d_is_a_continuous_filter_held_over_each_step():
    """scipy's zero-order hold of ds/dt = A s + u, unit by unit."""
    p = problem(cells()["s4d"], n_bins=12)
    rate, frequency, step, drive = pieces(p)
    out = p.X @ p.C[:, 2 * N + 1 :].T + p.C[:, 2 * N]
    for i in range(N):
        A = np.array([[-np.exp(rate[i, 0]), -frequency[i, 0]], [frequency[i, 0], -np.exp(rate[i, 0])]])
        held = A, np.array([[1.0], [0.0]]), np.eye(2), np.zeros((2, 1))
        Ad, Bd, *_ = cont2discrete(held, np.exp(step[i, 0]), "zoh")
        s = p.hidden[0, :, i]
        for t, x in enumerate(p.X):
            s = Ad @ s + Bd[:, 0] * (drive[i] @ np.append(x, 1.0))
            out[t] += p.C[:, [i, N + i]] @ s
    np.testing.assert_allclose(given(p), out, rtol=1e-11, atol=1e-12)


def test_the_rwkv_is_a_weighted_mean_of_all_values():
    """Peng et al. 2023, written out over the whole past: the newest value has the bonus, older ones fade."""
    p = problem(cells()["rwkv"], n_bins=12)
    w, bonus, *projections = pieces(p)
    k, v, r = (np.column_stack([p.X, np.ones(12)]) @ gate.T for gate in projections)
    out = []
    for t in range(12):
        ages = np.arange(t - 1, -1, -1)[:, None]
        weights = np.vstack([np.exp(k[:t] - ages * np.exp(w[:, 0])), np.exp(k[t] + bonus[:, 0])])
        mean = (weights * v[: t + 1]).sum(0) / weights.sum(0)
        out.append(p.C[:, :N] @ (mean / (1.0 + np.exp(-r[t]))) + p.C[:, N])
    np.testing.assert_allclose(given(replace(p, hidden=0.0 * p.hidden)), out, rtol=1e-12, atol=1e-13)


def test_the_minlstm_normalises_its_gates():
    p = problem(cells()["minlstm"], n_bins=12)
    forget, take, value = pieces(p)
    h, out = p.hidden[0, 0], []
    for x in p.X:
        z = np.append(x, 1.0)
        f, i = (1.0 / (1.0 + np.exp(-gate @ z)) for gate in (forget, take))
        h = (f * h + i * (value @ z)) / (f + i)
        out.append(p.C[:, :N] @ h + p.C[:, N])
    np.testing.assert_allclose(given(p), out, rtol=1e-12, atol=1e-13)
    # Both gates shut: f/(f+i) is still their ratio.
    update, _ = cells()["minlstm"].make(np)
    np.testing.assert_allclose(update((-900.0, -900.0, 1.0), (3.0,)), 2.0, rtol=1e-12)


@every_cell
def test_initial_weights_are_seeded_and_fill_every_group(cell):
    network = Network(cell, 5, 6, 2)
    W, C = network.initial_weights(3)
    assert (W.shape, C.shape) == ((6, network.row_width), (2, network.readout_width))
    assert W.size + C.size == network.n_parameters
    again, other = network.initial_weights(3)[0], network.initial_weights(4)[0]
    assert np.array_equal(W, again)
    assert not np.array_equal(W, other)
    assert len(network.groups()) == network.row_width
    assert set(network.groups()) <= {"input", "bias", "recurrent"}
    long = np.random.default_rng(0).standard_normal((300, 5))
    predictions, _ = run(start(learner(replace(problem(cell), network=network), Readout()), W, C), long)
    assert np.isfinite(predictions).all()
    assert 1e-2 < predictions.std() < 1e2


def test_gates_that_read_the_second_stage_come_last_and_need_it():
    base = cells()["gru_textbook"]
    with pytest.raises(ValueError, match="come last"):
        replace(base, gates=base.gates[::-1])
    with pytest.raises(ValueError, match="make_mid"):
        replace(base, make_mid=None)
    with pytest.raises(ValueError, match="must read one of"):
        Gate("g", "hx")
