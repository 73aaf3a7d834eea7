"""The exactness grid of the learning column, in float64, on the kernel source in plain Python unless said otherwise."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import oracle
import pytest
import torch

from bci_adapt.backends import loop as kernel
from bci_adapt.cells.base import Network, cells
from bci_adapt.credit.base import rules
from bci_adapt.credit.immediate import Immediate
from bci_adapt.credit.readout import Readout
from bci_adapt.credit.rtrl import RTRL
from bci_adapt.credit.trace import Trace
from bci_adapt.credit.window import Window
from bci_adapt.errors import InputError
from bci_adapt.online import Learner, load_state, run, save_state, start
from bci_adapt.optimizers import SGD, Adam, Optimizer, RMSprop, optimizers

T, M_IN, N, M_OUT = 8, 3, 4, 2
RULES = {"immediate": Immediate(), "readout": Readout(), "rtrl": RTRL(), "trace": Trace(0.7), "window": Window(3)}


@dataclass(frozen=True)
class Accumulate(Optimizer):
    """Adds up gradients and moves nothing: what a rule computes at fixed weights."""

    name: ClassVar[str] = "accumulate"
    n_slots: ClassVar[int] = 1
    description: ClassVar[str] = "Σ g"

    def make(self):
        def update(theta, g, state, rate, hyper, t):
            for j in range(theta.shape[0]):
                state[0, j] += g[j]

        return update


@dataclass
class Problem:
    """A random network in a random nonzero state, with a stream for it."""

    network: Network
    W: np.ndarray
    C: np.ndarray
    X: np.ndarray
    Y: np.ndarray
    weight: np.ndarray
    hidden: np.ndarray


def problem(cell, n_bins=T, seed=0, n=N):
    rng = np.random.default_rng(seed)
    network = Network(cell, M_IN, n, M_OUT)
    W = 0.6 * rng.standard_normal((n, network.row_width))
    C = rng.standard_normal((M_OUT, network.readout_width))
    Y = rng.random((n_bins, M_OUT))
    weight = rng.uniform(0.5, 2.0, (n_bins, M_OUT))
    hidden = rng.uniform(-0.8, 0.8, (1, len(cell.slots), n))
    return Problem(network, W, C, rng.standard_normal((n_bins, M_IN)), Y, weight, hidden)


def learner(p, rule, optimizer=None, **options):
    return Learner(p.network, rule, optimizer or Accumulate(), **({"compiled": False} | options))


def gradients(p, rule, loss="squared", **stream):
    """Summed gradients (W, C) of a rule at fixed weights."""
    state = start(learner(p, rule, loss=loss), p.W, p.C, p.hidden)
    _, state = run(state, p.X, p.Y, p.weight, **stream)
    return state.arrays["opt_W"][0, :, 0], state.arrays["opt_C"][0, :, 0]


def close(left, right, tolerance=1e-10):
    return all(
        np.max(np.abs(a - b)) <= tolerance * max(1.0, np.max(np.abs(b))) for a, b in zip(left, right, strict=True)
    )


def every_group_nonzero(p, W_gradient):
    return all(np.abs(W_gradient[:, p.network.groups() == group]).max() > 1e-6 for group in set(p.network.groups()))


def test_the_grid_covers_every_rule_of_the_folder():
    assert set(RULES) == set(rules())


@pytest.mark.parametrize("cell", cells().values(), ids=lambda cell: cell.name)
class TestEveryCell:
    def test_partials_are_the_derivatives_of_the_update(self, cell):
        rng = np.random.default_rng(1)
        update, partials = cell.make(torch)
        k, gates = len(cell.slots), len(cell.gates)
        a, s = (torch.tensor(rng.standard_normal((count, N))) for count in (gates, k))
        by_gate, by_slot = partials(a, s, torch.stack(update(a, s)))
        jac_a, jac_s = torch.autograd.functional.jacobian(lambda a, s: torch.stack(update(a, s)), (a, s))
        unit = torch.arange(N)
        for slot in range(k):
            for gate in range(gates):
                torch.testing.assert_close(by_gate[slot][gate], jac_a[slot, unit, gate, unit], rtol=0, atol=1e-12)
            for other in range(k):
                torch.testing.assert_close(by_slot[slot][other], jac_s[slot, unit, other, unit], rtol=0, atol=1e-12)
        off_diagonal = jac_a.permute(0, 2, 1, 3)[:, :, ~np.eye(N, dtype=bool)]
        assert float(off_diagonal.abs().max()) == 0.0

    @pytest.mark.parametrize("loss", ["squared", "cross_entropy"])
    def test_rtrl_is_bptt_and_so_is_a_window_over_everything(self, cell, loss):
        p = problem(cell)
        if loss == "cross_entropy":
            # The derivative is (softmax − y) only where the labels sum to one and share a weight.
            p.Y /= p.Y.sum(axis=1, keepdims=True)
            p.weight[:] = p.weight[:, :1]
        expected = oracle.gradients(p.network, p.W, p.C, p.X, p.Y, p.weight, p.hidden[0], loss)
        assert every_group_nonzero(p, expected[0])
        assert close(gradients(p, RTRL(), loss), expected)
        assert close(gradients(p, Window(T), loss), expected)

    def test_bptt_is_central_differences(self, cell):
        p = problem(cell)
        expected, _ = oracle.gradients(p.network, p.W, p.C, p.X, p.Y, p.weight, p.hidden[0])
        frozen = learner(p, Readout())

        def energy(W):
            predictions, _ = run(start(frozen, W, p.C, p.hidden), p.X)
            return 0.5 * np.sum(p.weight * (predictions[0] - p.Y) ** 2)

        numeric = np.zeros_like(p.W)
        for index in np.ndindex(p.W.shape):
            step = np.zeros_like(p.W)
            step[index] = 1e-6
            numeric[index] = (energy(p.W + step) - energy(p.W - step)) / 2e-6
        assert close([numeric], [expected], 1e-7)

    def test_immediate_is_one_step_of_history_and_a_trace_without_memory(self, cell):
        p = problem(cell)
        expected = oracle.gradients(p.network, p.W, p.C, p.X, p.Y, p.weight, p.hidden[0], truncate=1)
        for rule in (Immediate(), Window(1), Trace(0.0)):
            assert close(gradients(p, rule), expected, 1e-13), rule

    @pytest.mark.parametrize("steps", [2, 3, 5])
    def test_window_is_truncated_bptt(self, cell, steps):
        p = problem(cell)
        expected = oracle.gradients(p.network, p.W, p.C, p.X, p.Y, p.weight, p.hidden[0], truncate=steps)
        assert close(gradients(p, Window(steps)), expected)

    def test_trace_is_its_closed_form(self, cell):
        """Σ_t q_t Σ_τ λ^(t−τ) P_τ, with P and q by autograd."""
        p, decay = problem(cell), 0.7
        update, _ = cell.make(torch)
        W = torch.tensor(p.W, requires_grad=True)
        state, trace, total = torch.tensor(p.hidden[0]), 0.0, 0.0
        for x, y, w in zip(p.X, p.Y, p.weight, strict=True):
            before = state.detach()
            jacobian = torch.autograd.functional.jacobian(
                lambda W, x=x, before=before: oracle.step(p.network, update, W, torch.tensor(x), before), W
            )
            trace = decay * trace + jacobian
            state = oracle.step(p.network, update, W, torch.tensor(x), before).detach().requires_grad_()
            error = oracle.loss_of(
                oracle.output(p.network, torch.tensor(p.C), torch.tensor(x), state),
                torch.tensor(y),
                torch.tensor(w),
                "squared",
            )
            (q,) = torch.autograd.grad(error, state)
            total = total + torch.einsum("ki,kijr->jr", q, trace)
        assert close([gradients(p, Trace(decay))[0]], [total.numpy()])

    @pytest.mark.parametrize("rule", [Immediate(), Trace(0.9), Window(2), Readout()], ids=lambda rule: rule.name)
    def test_no_approximation_is_exact_on_dense_recurrence(self, cell, rule):
        p = problem(cell)
        exact = gradients(p, RTRL())
        approximate = gradients(p, rule)
        assert close(approximate[1:], exact[1:])
        assert not close(approximate[:1], exact[:1], 1e-3)

    @pytest.mark.parametrize("name", RULES)
    def test_late_labels_give_the_same_gradient_at_fixed_weights(self, cell, name):
        p = problem(cell)
        at_once = gradients(p, RULES[name])
        quiet = replace(p, X=np.vstack([p.X, p.X]), Y=np.vstack([p.Y, p.Y]), weight=np.vstack([p.weight, 0 * p.weight]))
        for arrives in (np.arange(2 * T) + 3, np.maximum(np.arange(2 * T), T)):
            assert close(gradients(quiet, RULES[name], arrives=arrives), at_once, 1e-13)

    @pytest.mark.parametrize("name", RULES)
    def test_a_reset_separates_two_streams(self, cell, name):
        p = problem(cell)
        zero = replace(p, hidden=0 * p.hidden)
        reset = np.zeros(2 * T, bool)
        reset[[0, T]] = True
        twice = replace(p, X=np.tile(p.X, (2, 1)), Y=np.tile(p.Y, (2, 1)), weight=np.tile(p.weight, (2, 1)))
        once = gradients(zero, RULES[name])
        assert close(gradients(twice, RULES[name], reset=reset), [2 * g for g in once], 1e-12)
        assert not close(gradients(twice, RULES[name]), [2 * g for g in once], 1e-6)


@pytest.mark.parametrize("cell", cells().values(), ids=lambda cell: cell.name)
def test_whole_trajectory_equals_torch_autograd_with_torch_optim(cell):
    """d = 0 with RMSprop, every step against detach + torch.optim: predictions and weights to 1e-12."""
    p = problem(cell, n_bins=20)
    W, C = (torch.tensor(v, requires_grad=True) for v in (p.W, p.C))
    optimizer = torch.optim.RMSprop([W, C], lr=1e-2, alpha=0.99, eps=1e-8)
    update, _ = cell.make(torch)
    state, expected = torch.tensor(p.hidden[0]), []
    for x, y, w in zip(p.X, p.Y, p.weight, strict=True):
        state = oracle.step(p.network, update, W, torch.tensor(x), state.detach())
        prediction = oracle.output(p.network, C, torch.tensor(x), state)
        expected.append(prediction.detach().numpy())
        optimizer.zero_grad()
        oracle.loss_of(prediction, torch.tensor(y), torch.tensor(w), "squared").backward()
        optimizer.step()
    begin = start(learner(p, Immediate(), RMSprop(1e-2)), p.W, p.C, p.hidden)
    predictions, end = run(begin, p.X, p.Y, p.weight)
    np.testing.assert_allclose(predictions[0], expected, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(end.arrays["W"][0], W.detach().numpy(), rtol=1e-12, atol=1e-13)


TORCH = {
    "sgd": (SGD(0.1), lambda p: torch.optim.SGD(p, lr=0.1)),
    "rmsprop": (RMSprop(0.1, beta2=0.95, epsilon=1e-6), lambda p: torch.optim.RMSprop(p, lr=0.1, alpha=0.95, eps=1e-6)),
    "adam": (Adam(0.1, 0.8, 0.97, 1e-7), lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.8, 0.97), eps=1e-7)),
}


@pytest.mark.parametrize("name", optimizers())
def test_optimizers_equal_torch(name):
    ours, theirs = TORCH[name]
    rng = np.random.default_rng(3)
    theta = rng.standard_normal(7)
    twin = torch.tensor(theta.copy(), requires_grad=True)
    reference, update, slots = theirs([twin]), ours.make(), np.zeros((max(1, ours.n_slots), 7))
    for t in range(1, 60):
        g = rng.standard_normal(7) * 10.0 ** rng.integers(-4, 3)
        update(theta, g, slots, np.full(7, 0.1), ours.hyper(), t)
        twin.grad = torch.tensor(g)
        reference.step()
        np.testing.assert_allclose(theta, twin.detach().numpy(), rtol=1e-12, atol=1e-12)


DOZEN = [
    (cell, rule, optimizer)
    for cell, rule, optimizer in [
        ("tanh", Immediate(), RMSprop(1e-2)),
        ("tanh", Trace(0.6), SGD(1e-2)),
        ("tanh", Window(3), Adam(1e-2)),
        ("gru", RTRL(), RMSprop(1e-2)),
        ("gru", Window(4), RMSprop(1e-2)),
        ("gru", Readout(), SGD(1e-2)),
    ]
]


@pytest.mark.parametrize(("cell", "rule", "optimizer"), DOZEN, ids=lambda part: getattr(part, "name", part))
def test_compiled_equals_plain_python_with_every_index_checked(cell, rule, optimizer):
    p = problem(cells()[cell], n_bins=40, n=5)
    rng = np.random.default_rng(5)
    reset, observed = rng.random(40) < 0.1, rng.random(40) < 0.9
    weight = p.weight * (rng.random((40, 1)) < 0.8)
    stream = {"arrives": np.arange(40) + 4, "reset": reset, "observed": observed}
    results = []
    for options in ({"compiled": False}, {"compiled": True}, {"compiled": True, "boundscheck": True}):
        state = start(learner(p, rule, optimizer, average=0.9, **options), p.W, p.C, p.hidden)
        predictions, state = run(state, p.X, p.Y, weight, **stream)
        results.append([predictions, *state.arrays.values()])
    for other in results[1:]:
        for plain, fast in zip(results[0], other, strict=True):
            np.testing.assert_allclose(fast, plain, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("cell", cells().values(), ids=lambda cell: cell.name)
class TestTheLoop:
    """Contracts of the loop itself, on compiled kernels."""

    def begin(self, cell, name, S=1, **options):
        p = problem(cell, n_bins=60, n=5, seed=7)
        options = {"average": 0.95, "compiled": True} | options
        W = np.stack([p.W + 0.01 * s for s in range(S)])
        C = np.stack([p.C - 0.01 * s for s in range(S)])
        rng = np.random.default_rng(8)
        stream = {
            "weight": p.weight * (rng.random((60, 1)) < 0.7),
            "arrives": np.minimum(np.arange(60) // 7 * 7 + 9, 66),  # bursts, as labels that come at a trial's end
            "observed": rng.random(60) < 0.9,
            "reset": rng.random(60) < 0.05,
        }
        return p, start(learner(p, RULES[name], RMSprop(3e-2), **options), W, C), stream

    def test_run_is_a_loop_of_steps_and_resumes_from_a_file_bit_for_bit(self, cell, name, tmp_path):
        p, begin, stream = self.begin(cell, name)
        whole, end = run(begin, p.X, p.Y, **stream)
        state, pieces, t = begin, [], 0
        for size in (1, 1, 1, 20, 1, 36):
            piece = slice(t, t + size)
            part = {key: value[piece] for key, value in stream.items()}
            part["arrives"] = part["arrives"] - t
            predictions, state = run(state, p.X[piece], p.Y[piece], **part)
            save_state(state, tmp_path / "state.npz")
            state = load_state(begin.learner, tmp_path / "state.npz")
            pieces.append(predictions)
            t += size
        assert t == 60
        assert np.array_equal(np.concatenate(pieces, axis=1), whole)
        for key in end.arrays:
            if not key.startswith("ring_"):  # the ring's length depends on how far ahead arrivals are known
                assert np.array_equal(end.arrays[key], state.arrays[key]), key

    def test_learning_happens_and_run_leaves_the_given_state_alone(self, cell, name):
        p, begin, stream = self.begin(cell, name)
        before = begin.copy()
        _, end = run(begin, p.X, p.Y, **stream)
        assert all(np.array_equal(before.arrays[key], begin.arrays[key]) for key in before.arrays)
        assert not np.array_equal(begin.arrays["C"], end.arrays["C"])
        assert np.array_equal(begin.arrays["W"], end.arrays["W"]) == (name == "readout")

    def test_a_label_changes_nothing_before_it_arrives(self, cell, name):
        p, begin, stream = self.begin(cell, name)
        changed, t = p.Y.copy(), 20
        changed[t:] += 5.0
        one, _ = run(begin, p.X, p.Y, **stream)
        two, _ = run(begin, p.X, changed, **stream)
        arrival = stream["arrives"][t]
        assert np.array_equal(one[:, : arrival + 1], two[:, : arrival + 1])
        assert not np.array_equal(one, two)

    def test_a_replica_runs_as_if_alone(self, cell, name):
        p, begin, stream = self.begin(cell, name, S=3)
        together, end = run(begin, p.X, p.Y, **stream)
        for s in range(3):
            alone = start(begin.learner, begin.arrays["W"][s], begin.arrays["C"][s])
            predictions, last = run(alone, p.X, p.Y, **stream)
            assert np.array_equal(predictions[0], together[s])
            assert np.array_equal(last.arrays["W"][0], end.arrays["W"][s])

    def test_what_is_not_finite_is_skipped_and_counted(self, cell, name):
        p, begin, stream = self.begin(cell, name)
        X, Y = p.X.copy(), p.Y.copy()
        X[11, 0], Y[25], Y[40, 1] = np.inf, np.nan, -np.inf
        stream |= {"observed": np.ones(60, bool), "weight": p.weight}
        predictions, end = run(begin, X, Y, **stream)
        assert end.finite.all()
        assert np.isfinite(predictions).all()
        assert end.counter(kernel.NOT_FINITE)[0] == 3
        weight, observed = p.weight.copy(), np.ones(60, bool)
        weight[25], weight[40, 1], observed[11] = 0.0, 0.0, False
        same, _ = run(begin, p.X, p.Y, **(stream | {"weight": weight, "observed": observed}))
        assert np.array_equal(same, predictions)


def test_unobserved_bins_hold_the_state_and_bursts_are_worked_off():
    p = problem(cells()["gru"], n_bins=30)
    state = start(learner(p, Immediate(), SGD(1e-2), max_updates_per_bin=2), p.W, p.C)
    observed = np.ones(30, bool)
    observed[10:15] = False
    predictions, end = run(state, p.X, p.Y, p.weight, arrives=np.maximum(np.arange(30), 20), observed=observed)
    assert (predictions[0, 10:15] == predictions[0, 9]).all()
    # 15 records wait at bin 20; two a bin, one more comes each bin: all but the last few are worked off by bin 29.
    assert end.counter(kernel.PROCESSED)[0] == 20
    assert end.counter(kernel.UPDATES)[0] == 20


def test_average_is_the_exponential_mean_with_its_own_state():
    p = problem(cells()["tanh"], n_bins=30)
    plain, averaged = (learner(p, Immediate(), SGD(0.05), average=decay) for decay in (None, 0.9))
    state, mean, hidden = start(plain, p.W, p.C), [p.W.copy(), p.C.copy()], np.zeros(N)
    predictions, end = run(start(averaged, p.W, p.C), p.X, p.Y, p.weight)
    for t in range(30):
        hidden = np.tanh(mean[0] @ np.concatenate([p.X[t], [1.0], hidden]))
        np.testing.assert_allclose(predictions[0, t], mean[1] @ np.append(hidden, 1.0), rtol=1e-12)
        _, state = run(state, p.X[t : t + 1], p.Y[t : t + 1], p.weight[t : t + 1])
        mean = [m + 0.1 * (state.arrays[key][0] - m) for m, key in zip(mean, ("W", "C"), strict=True)]
    np.testing.assert_allclose(end.predictor()[0][0], mean[0], rtol=1e-12)


def test_group_rates_hold_a_group_still():
    p = problem(cells()["gru"])
    for group in ("input", "bias", "recurrent"):
        state = start(learner(p, Immediate(), SGD(0.1), group_rates={group: 0.0}), p.W, p.C)
        _, end = run(state, p.X, p.Y, p.weight)
        moved = {
            name: not np.array_equal(
                end.arrays["W"][0][:, p.network.groups() == name], p.W[:, p.network.groups() == name]
            )
            for name in ("input", "bias", "recurrent")
        }
        assert moved == {name: name != group for name in moved}


def test_the_gru_is_torchs_own():
    """An oracle nobody here wrote: torch.nn.GRU with the same weights."""
    p = problem(cells()["gru"], n_bins=12)
    theirs = torch.nn.GRU(M_IN, N, dtype=torch.float64)
    r, u, c, h = (p.W[:, row : row + w] for _, w, row, _ in p.network.blocks)
    with torch.no_grad():
        theirs.weight_ih_l0[:] = torch.tensor(np.vstack([r[:, :M_IN], u[:, :M_IN], c[:, :M_IN]]))
        theirs.bias_ih_l0[:] = torch.tensor(np.concatenate([r[:, M_IN], u[:, M_IN], c[:, M_IN]]))
        theirs.weight_hh_l0[:] = torch.tensor(np.vstack([r[:, M_IN + 1 :], u[:, M_IN + 1 :], h[:, 1:]]))
        theirs.bias_hh_l0[:] = torch.tensor(np.concatenate([0 * r[:, 0], 0 * u[:, 0], h[:, 0]]))
        hidden, _ = theirs(torch.tensor(p.X)[:, None], torch.tensor(p.hidden))
    expected = hidden[:, 0].numpy() @ p.C[:, :N].T + p.C[:, N]
    predictions, _ = run(start(learner(p, Readout()), p.W, p.C, p.hidden), p.X)
    np.testing.assert_allclose(predictions[0], expected, rtol=1e-12, atol=1e-13)


def _bad(**change):
    p = problem(cells()["tanh"])
    arguments = {"X": p.X, "Y": p.Y, "weight": p.weight} | change
    return run(start(learner(p, Immediate(), SGD(0.1)), p.W, p.C), **arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: _bad(X=np.zeros((T, M_IN + 1))), "X: expected"),
        (lambda: _bad(Y=np.zeros((T + 1, M_OUT))), "Y: expected"),
        (lambda: _bad(weight=-np.ones((T, M_OUT))), "weight"),
        (lambda: _bad(arrives=np.arange(T)[::-1]), "arrives"),
        (lambda: _bad(arrives=np.arange(T) - 1), "arrives"),
        (lambda: _bad(reset=np.zeros(3, bool)), "reset"),
        (lambda: Trace(1.5), "decay"),
        (lambda: Window(0), "steps"),
        (lambda: learner(problem(cells()["tanh"]), Immediate(), loss="hinge"), "loss"),
        (lambda: learner(problem(cells()["tanh"]), Immediate(), average=1.0), "average"),
        (lambda: learner(problem(cells()["tanh"]), Immediate(), group_rates={"inputs": 0}), "inputs"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
