"""The exactness grid of the credit rules, in float64, on the kernel source in plain Python: every cell × every rule."""

import functools
import importlib
import types
from dataclasses import replace

import numpy as np
import oracle
import pytest
import torch
from problems import (
    PAIR_NAMES,
    PAIRS,
    RULES,
    N,
    T,
    accumulated,
    close,
    defined,
    dense,
    every_group_nonzero,
    gradients,
    learner,
    mutant,
    problem,
)  # fmt: skip

from bci_adapt.errors import InputError
from bci_adapt.learning.backends import compiled
from bci_adapt.learning.cells.base import cells
from bci_adapt.learning.credit import tools
from bci_adapt.learning.credit.eprop import EProp
from bci_adapt.learning.credit.immediate import Immediate
from bci_adapt.learning.credit.readout import Readout
from bci_adapt.learning.credit.rflo import RFLO
from bci_adapt.learning.credit.rtrl import RTRL
from bci_adapt.learning.credit.snap1 import SnAp1
from bci_adapt.learning.credit.sparse_rtrl import SparseRTRL
from bci_adapt.learning.credit.trace import Trace
from bci_adapt.learning.credit.uoro import UORO
from bci_adapt.learning.credit.window import Window
from bci_adapt.learning.learner import State
from bci_adapt.learning.online import run, start
from bci_adapt.learning.optimizers import SGD, RMSprop

every_cell = pytest.mark.parametrize("cell", cells().values(), ids=lambda cell: cell.name)


def bptt(p, loss="squared", **options):
    return oracle.gradients(p.network, p.W, p.C, p.X, p.Y, p.weight, p.hidden[0], loss, **options)


def kept(rule, p, seed=0):
    """1 where D (k n, k n) is followed by sparse RTRL, 0 elsewhere."""
    select = rule.make_select(types.SimpleNamespace(scramble=tools._scramble))
    generator = start(learner(p, rule), p.W, p.C, seeds=[seed]).arrays["generator"][0]
    mask, sources = np.ones((p.hidden.size,) * 2), np.zeros(rule.work_shapes(p.network)[-1])
    select(mask, sources, p.network.n_hidden, rule.constants(p.network), generator)
    return mask


def steps_by_autograd(p):
    """Of every bin at fixed weights: P, ∂s'/∂s at fixed h, ∂s'/∂h, and q."""
    update, _ = p.network.cell.make(torch)
    W, state, steps = torch.tensor(p.W), torch.tensor(p.hidden[0]), []
    for x, y, w in zip(torch.tensor(p.X), torch.tensor(p.Y), torch.tensor(p.weight), strict=True):
        P, local, heard = torch.autograd.functional.jacobian(
            lambda W, s, h, x=x: oracle.step(p.network, update, W, x, s, h), (W, state, state[0])
        )
        state = oracle.step(p.network, update, W, x, state).detach().requires_grad_()
        E_now = oracle.loss_of(oracle.output(p.network, torch.tensor(p.C), x, state), y, w, "squared")
        (q,) = torch.autograd.grad(E_now, state)
        state = state.detach()
        steps.append((P, local, heard, q))
    return steps


def filtered(p, kind, decay=0.0, steps=None):
    """Σ_t q_t E_t with E ← mask(A E + P), everything by autograd: A is D (rtrl, snap1), two paths of it (sparse_rtrl),
    the part of it that passes through no weight (eprop), or λ (trace; 0 is immediate). Also returns E_t of every bin.
    """
    k, n, width = len(p.network.cell.slots), p.network.n_hidden, p.network.row_width
    dtype = torch.float64
    E, total, traces = torch.zeros(k, n, n, width, dtype=dtype), 0.0, []
    own = torch.eye(n, dtype=dtype)[None, :, :, None]
    for P, local, heard, q in steps or steps_by_autograd(p):
        A = {"eprop": local, "trace": decay * torch.eye(k * n, dtype=dtype).reshape(k, n, k, n)}.get(kind)
        if A is None:
            A = local.clone()
            A[:, :, 0] += heard
        if kind == "sparse_rtrl":
            A = A * torch.tensor(kept(RULES[kind], p)).reshape(k, n, k, n)
        E = torch.einsum("kjlm,lmic->kjic", A, E) + P
        if kind in ("snap1", "trace"):
            E = own * E
        total = total + torch.einsum("kj,kjic->ic", q, E)
        traces.append(E.numpy())
    return total.numpy(), traces


def mean_of_uoro(p, rule_class=UORO):
    """Gradient of UORO averaged over every pattern of signs."""

    class Enumerated(rule_class):
        def make_draw(self, tools):
            def draw(generator):
                bit = int(generator[0]) & 1
                generator[0] = np.uint64(int(generator[0]) >> 1)
                return 1.0 if bit else -1.0

            return draw

    patterns = 2 ** (len(p.X) * p.hidden.size)
    one = start(learner(p, Enumerated()), p.W, p.C, p.hidden)
    every = {name: np.repeat(array, patterns, axis=0) for name, array in one.arrays.items()}
    every["generator"] = np.arange(patterns, dtype=np.uint64)[:, None]
    _, end = run(State(one.learner, every), p.X, p.Y, p.weight, in_place=True)
    assert not end.arrays["generator"].any()  # every sign was drawn
    return end.arrays["opt_W"][:, :, 0].mean(axis=0)


@every_cell
class TestEveryCell:
    @pytest.mark.parametrize("loss", ["squared", "cross_entropy"])
    def test_rtrl_is_bptt_and_so_is_a_window_over_everything(self, cell, loss):
        p = problem(cell)
        if loss == "cross_entropy":
            # The derivative is (softmax − y) only where the labels sum to one and share a weight.
            p.Y /= p.Y.sum(axis=1, keepdims=True)
            p.weight[:] = p.weight[:, :1]
        expected = bptt(p, loss)
        assert every_group_nonzero(p, expected[0])
        assert close(gradients(p, RTRL(), loss), expected)
        assert close(gradients(p, Window(T), loss), expected)

    def test_bptt_is_central_differences(self, cell):
        p = problem(cell)
        expected, _ = bptt(p)
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
        expected = bptt(p, truncate=1)
        for rule in (Immediate(), Window(1)):
            assert close(gradients(p, rule), expected, 1e-13), rule
        # A trace follows a weight's effect on its own unit alone: a second stage goes further.
        assert close(gradients(p, Trace(0.0)), expected, 1e-13) == (cell.make_mid is None)

    @pytest.mark.parametrize("steps", [2, 3, 5])
    def test_window_is_truncated_bptt(self, cell, steps):
        p = problem(cell)
        assert close(gradients(p, Window(steps)), bptt(p, truncate=steps))

    def test_traces_are_their_recursion_by_autograd(self, cell):
        p = problem(cell)
        kinds = {"rtrl": RTRL(), "snap1": SnAp1(), "eprop": EProp(), "trace": Trace(0.7)}
        kinds["sparse_rtrl"] = RULES["sparse_rtrl"]
        steps = steps_by_autograd(p)
        for kind, rule in kinds.items():
            if defined(cell, rule):
                expected, traces = filtered(p, kind, 0.7, steps)
                assert close([gradients(p, rule)[0]], [expected]), kind
                memory = accumulated(p, rule).arrays["memory"][0]
                assert close([rule.influence(p.network, memory, T - 1)], [traces[-1]]), kind

    def test_a_decay_per_weight_is_its_own_trace(self, cell):
        p = problem(cell)
        decays = np.random.default_rng(5).choice([0.0, 0.3, 0.7], p.W.shape)
        mixed = gradients(p, Trace(decays))[0]
        for decay in (0.0, 0.3, 0.7):
            assert close([mixed[decays == decay]], [gradients(p, Trace(decay))[0][decays == decay]], 1e-13)

    def test_snap1_is_exact_where_recurrence_is_diagonal_and_only_there(self, cell):
        p = problem(cell)
        assert close(gradients(p, SnAp1()), bptt(p)) != dense(cell)

    def test_sparse_rtrl_lies_between_snap1_and_rtrl(self, cell):
        p = problem(cell)
        exact, own, some = gradients(p, RTRL()), gradients(p, SnAp1()), gradients(p, SparseRTRL(2))
        for paths in (N, N + 1):
            assert close(gradients(p, SparseRTRL(paths)), exact, 1e-12)
        # What a weight does to other units within the bin is kept.
        assert close(gradients(p, SparseRTRL(1)), own, 1e-12) == (cell.make_mid is None)
        assert close(some, exact) != dense(cell)
        assert close(some, own, 1e-3) != dense(cell)

    def test_eprop_with_the_total_signal_is_bptt(self, cell):
        """Bellec et al. 2020, eq. 1: the sum of total ∂E/∂s × eligibility, the total by one backward pass."""
        if not defined(cell, EProp()):
            return
        p = problem(cell)
        update, _ = cell.make(torch)
        W, C, states = torch.tensor(p.W), torch.tensor(p.C), [torch.tensor(p.hidden[0], requires_grad=True)]
        told, energy = [], 0.0
        for x, y, w in zip(torch.tensor(p.X), torch.tensor(p.Y), torch.tensor(p.weight), strict=True):
            # What a unit tells others, and the output, apart from what it keeps to itself.
            state = oracle.step(p.network, update, W, x, states[-1], told[-1][0] if told else states[-1][0])
            told.append(state.clone())
            told[-1].retain_grad()
            energy = energy + oracle.loss_of(oracle.output(p.network, C, x, told[-1]), y, w, "squared")
            states.append(state)
        energy.backward()
        state, total = start(learner(p, EProp()), p.W, p.C, p.hidden), 0.0
        for t in range(T):
            _, state = run(state, p.X[t : t + 1], p.Y[t : t + 1], p.weight[t : t + 1])
            E = EProp().influence(p.network, state.arrays["memory"][0], t)
            total = total + np.einsum("kj,kjic->ic", told[t].grad.numpy(), E)
        assert close([total], [bptt(p)[0]])

    def test_uoro_averaged_over_all_signs_is_rtrl(self, cell):
        slots = len(cell.slots)
        p = problem(cell, n_bins=4 if slots < 3 else 10 // slots, n=2 if slots == 1 else 1)
        assert close([mean_of_uoro(p)], [bptt(p)[0]], 1e-10)

    def test_random_feedback_takes_the_place_of_the_readout(self, cell):
        """Feeding back through B: the gradient of W is that of a network whose readout is B, at the same errors."""
        p = problem(cell)
        state = start(learner(p, Immediate(feedback="random")), p.W, p.C, p.hidden, seeds=[3])
        _, end = run(state, p.X, p.Y, p.weight)
        B = p.C.copy()
        wide = len(cell.features) * N
        B[:, :wide] = state.arrays["B"][0]
        predictions, _ = run(start(learner(p, Readout()), p.W, p.C, p.hidden), p.X)
        other, _ = run(start(learner(p, Readout()), p.W, B, p.hidden), p.X)
        shifted = replace(p, C=B, Y=other[0] - predictions[0] + p.Y)
        assert close([end.arrays["opt_W"][0, :, 0]], [gradients(shifted, Immediate())[0]], 1e-12)
        assert close([end.arrays["opt_C"][0, :, 0]], [gradients(p, Immediate())[1]], 1e-13)


APPROXIMATE = [pair for pair in PAIRS if pair[1] != "rtrl" and dense(pair[0])]


@pytest.mark.parametrize(("cell", "name"), APPROXIMATE, ids=[f"{cell.name}-{name}" for cell, name in APPROXIMATE])
def test_no_approximation_is_exact_on_dense_recurrence(cell, name):
    p = problem(cell)
    exact, approximate = gradients(p, RTRL()), gradients(p, RULES[name])
    assert close(approximate[1:], exact[1:])
    assert not close(approximate[:1], exact[:1], 1e-3)


def test_sparse_rtrl_follows_k_paths_into_every_unit_its_own_among_them():
    p = problem(cells()["lstm"], n=9)
    for paths in (1, 4, 9):
        mask = kept(SparseRTRL(paths), p)
        unit = mask[:9, :9]
        assert np.array_equal(mask, np.tile(unit, (2, 2)))
        assert (unit.sum(axis=1) == paths).all()
        assert np.diag(unit).all()
    # Every unit is as likely as any other: 400 draws of 3 out of 8.
    shares = sum(kept(SparseRTRL(4), p, seed)[:9, :9] for seed in range(400)) / 400
    np.testing.assert_allclose(shares, np.where(np.eye(9), 1.0, 3.0 / 8.0), atol=4.5 * np.sqrt(3 / 8 * 5 / 8 / 400))


def test_sparse_rtrl_draws_its_paths_once_and_for_each_replica_its_own():
    p, rule = problem(cells()["tanh"]), SparseRTRL(2)
    begin = start(learner(p, rule), np.stack([p.W] * 3), np.stack([p.C] * 3), np.tile(p.hidden, (3, 1, 1)), [0, 0, 1])
    _, end = run(begin, p.X, p.Y, p.weight)
    first, again, other = end.arrays["opt_W"][:, :, 0]
    assert np.array_equal(first, again)
    assert not close([first], [other], 1e-3)
    assert np.array_equal(end.arrays["generator"], begin.arrays["generator"])


def test_rflo_is_its_closed_form():
    """Murray 2019, eq. 4–6, written out: p ← (1 − α) p + α tanh'(u) z, Δ W ∝ (B e) p, and α's own trace likewise."""
    p = problem(cells()["leaky"])
    state = start(learner(p, RFLO()), p.W, p.C, p.hidden, seeds=[1])
    _, end = run(state, p.X, p.Y, p.weight)
    B, alpha = state.arrays["B"][0], 1.0 / (1.0 + np.exp(-p.W[:, -1]))
    h, total = p.hidden[0, 0], np.zeros_like(p.W)
    terms = []
    for x, y, w in zip(p.X, p.Y, p.weight, strict=True):
        z = np.concatenate([x, [1.0], h])
        r = np.tanh(p.W[:, :-1] @ z)
        terms.append(np.column_stack([(alpha * (1 - r**2))[:, None] * z, (r - h) * alpha * (1 - alpha)]))
        h = (1 - alpha) * h + alpha * r
        error = w * (p.C @ np.append(h, 1.0) - y)
        trace = sum((1 - alpha)[:, None] ** age * term for age, term in enumerate(terms[::-1]))
        total += (B.T @ error)[:, None] * trace
    assert close([end.arrays["opt_W"][0, :, 0]], [total], 1e-12)


def test_pairs_that_are_not_defined_are_refused_and_say_why():
    refused = {
        (cell.name, name) for cell in cells().values() for name, rule in RULES.items() if not defined(cell, rule)
    }
    second_stage = [cell.name for cell in cells().values() if cell.make_mid is not None]
    local = [name for name, rule in RULES.items() if rule.needs_own_weights]
    assert refused == {(cell, name) for cell in second_stage for name in local}
    assert {"mgu"} < set(second_stage)
    assert {"eprop"} < set(local)
    with pytest.raises(InputError, match="reach every unit; take immediate"):
        learner(problem(cells()["mgu"]), EProp())


@pytest.mark.parametrize(("cell", "name"), PAIRS, ids=PAIR_NAMES)
class TestEveryPair:
    def test_late_labels_give_the_same_gradient_at_fixed_weights(self, cell, name):
        p = problem(cell)
        at_once = gradients(p, RULES[name])
        quiet = replace(p, X=np.vstack([p.X, p.X]), Y=np.vstack([p.Y, p.Y]), weight=np.vstack([p.weight, 0 * p.weight]))
        for arrives in (np.arange(2 * T) + 3, np.maximum(np.arange(2 * T), T)):
            assert close(gradients(quiet, RULES[name], arrives=arrives), at_once, 1e-13)

    def test_a_reset_separates_two_streams(self, cell, name):
        p = problem(cell)
        zero = replace(p, hidden=0 * p.hidden)
        reset = np.zeros(2 * T, bool)
        reset[[0, T]] = True
        twice = replace(p, X=np.tile(p.X, (2, 1)), Y=np.tile(p.Y, (2, 1)), weight=np.tile(p.weight, (2, 1)))
        once, again = gradients(zero, RULES[name]), 2
        state, begin = accumulated(zero, RULES[name]), start(learner(zero, RULES[name]), p.W, p.C)
        if not np.array_equal(state.arrays["generator"], begin.arrays["generator"]):
            # It draws at every record (uoro), and goes on across a reset: the second half meets other signs.
            state.arrays["memory"][:], state.arrays["state"][:] = 0.0, 0.0
            _, state = run(state, p.X, p.Y, p.weight)
            once, again = (state.arrays["opt_W"][0, :, 0], state.arrays["opt_C"][0, :, 0]), 1
        assert close(gradients(twice, RULES[name], reset=reset), [again * g for g in once], 1e-12)
        assert not close(gradients(twice, RULES[name]), [again * g for g in once], 1e-6)


# ------------------------------------------------------------------------------------- errors of today's weights


def moving(p, rule, delay, backend="plain"):
    """Predictions and state of a run that learns from labels `delay` bins late."""
    begin = start(learner(p, rule, RMSprop(1e-2), backend=backend), p.W, p.C, p.hidden)
    return run(begin, p.X, p.Y, p.weight, arrives=np.arange(len(p.X)) + delay)


def same_run(left, right):
    """Whether two runs agree bit for bit in their predictions and weights."""
    weights = all(np.array_equal(left[1].arrays[name], right[1].arrays[name]) for name in ("W", "C", "opt_W", "opt_C"))
    return np.array_equal(left[0], right[0]) and weights


@every_cell
class TestFreshError:
    @pytest.mark.parametrize("delay", [0, 1, 6])
    def test_immediate_is_a_window_of_one_at_any_delay(self, cell, delay):
        p = problem(cell, n_bins=16)
        fresh, window, made = (moving(p, rule, delay) for rule in (Immediate(fresh_error=True), Window(1), Immediate()))
        assert same_run(fresh, window)
        assert same_run(fresh, made) == (delay == 0)

    def test_every_rule_differs_by_it_where_labels_are_late_and_only_there(self, cell):
        p = problem(cell, n_bins=10)
        for name, rule in RULES.items():
            if defined(cell, rule) and rule.refreshes is rule.fresh_error:
                fresh = replace(rule, fresh_error=True)
                assert same_run(moving(p, fresh, 0), moving(p, rule, 0)), name
                assert not np.allclose(moving(p, fresh, 4)[0], moving(p, rule, 4)[0], atol=1e-6), name
                late = np.arange(10) + 4
                still = (gradients(p, each, arrives=late) for each in (fresh, rule))
                assert all(map(np.array_equal, *still)), name

    def test_a_trace_without_memory_is_immediate_with_it_too(self, cell):
        p = problem(cell, n_bins=16)
        trace, immediate = (moving(p, rule, 4) for rule in (Trace(0.0, fresh_error=True), Immediate(fresh_error=True)))
        assert np.allclose(trace[0], immediate[0], rtol=0, atol=1e-9) == (cell.make_mid is None)


def test_a_readout_learns_from_the_prediction_of_todays_readout():
    """In closed form: least mean squares, C ← C − η w (C u − y) uᵀ with the C of the bin in which the label is there."""
    p, rate, delay = problem(cells()["gru"], n_bins=16), 0.05, 3
    features, C = [], p.C.copy()
    state = start(learner(p, Readout()), p.W, p.C, p.hidden)
    for t in range(16):
        _, state = run(state, p.X[t : t + 1])
        features.append(np.append(state.arrays["state"][0, 0], 1.0))
    for u, y, w in zip(features[:-delay], p.Y, p.weight, strict=False):
        C -= rate * np.outer(w * (C @ u - y), u)
    for rule, agrees in ((Readout(fresh_error=True), True), (Readout(), False)):
        begin = start(learner(p, rule, SGD(rate)), p.W, p.C, p.hidden)
        _, end = run(begin, p.X, p.Y, p.weight, arrives=np.arange(16) + delay)
        assert close([end.arrays["C"][0]], [C], 1e-12) == agrees


# ------------------------------------------------------------------------------------------------- mutations


def holds(identity, cell, module=None):
    """Whether an identity of the grid holds for a cell, with the rules of `module` in place of the shipped ones."""

    def pick(rule, *arguments):
        return getattr(module, type(rule).__name__, type(rule))(*arguments) if module else rule

    p = problem(cells()[cell])
    if identity == "rtrl":
        return close(gradients(p, pick(RTRL())), bptt(p))
    if identity == "window":
        return close(gradients(p, pick(Window(T), T)), bptt(p))
    if identity == "immediate":
        return close(gradients(p, pick(Immediate())), bptt(p, truncate=1))
    if identity == "uoro":
        p = problem(cells()[cell], n_bins=3, n=2 if len(cells()[cell].slots) == 1 else 1)
        return close([mean_of_uoro(p, type(pick(UORO())))], [bptt(p)[0]])
    rule = {"snap1": SnAp1(), "eprop": EProp(), "trace": Trace(0.7), "sparse_rtrl": RULES["sparse_rtrl"]}[identity]
    arguments = {"trace": (0.7,), "sparse_rtrl": (2,)}.get(identity, ())
    return close([gradients(p, pick(rule, *arguments))[0]], [filtered(p, identity, 0.7)[0]])


@functools.cache
def holds_as_shipped(identity, cell):
    """`holds` without a change: worked out once for all terms of one identity and cell."""
    return holds(identity, cell)


TERMS = [
    # identity, cell, file, term of the source, what it becomes
    ("rtrl", "gru", "tools", "target[j * n + i] += ds[k, j, i]", "pass"),
    ("rtrl", "lstm", "tools", "target[j] += factor * weights[j]\n                    if", "pass\n                    if"),
    ("rtrl", "mgu", "tools", "target[j * n + unit] += through * vs[j, unit]", "pass"),
    ("rtrl", "mgu", "tools", "target[j] += share * weights[j]", "pass"),
    ("rtrl", "gru_textbook", "rtrl", "influence[j] += factor * read[j]\n                                    out", "out"),
    ("rtrl", "gru", "rtrl", "influence[j] += factor * read[j]\n                        out", "out"),
    ("rtrl", "tanh", "rtrl", "np.dot(D, old, panel)", "panel[:] = 0.0"),
    ("rtrl", "lru_skip", "rtrl", "signal[j] += q[k, i] * source[j]", "pass"),
    ("rtrl", "tanh", "rtrl", "memory[(i - last - 1) % places]", "memory[(i - last) % places]"),
    ("sparse_rtrl", "gru", "sparse_rtrl", "D[k * n + i, slot * n + unit] = 0.0", "pass"),
    ("sparse_rtrl", "lstm", "sparse_rtrl", "target[j] += factor * source[j]", "pass"),
    ("window", "lstm", "tools", "earlier[j, i] += q[k, i] * ds[k, j, i]", "pass"),
    ("window", "mgu", "tools", "earlier[j, i] += r[i] * vs[j, i]", "pass"),
    ("window", "gru", "tools", "target[j] += factor * weights[j]\n\n", "pass\n\n"),
    ("window", "tanh", "window", "out[j] += factor * read[j]", "pass"),
    ("immediate", "gru_textbook", "tools", "p[gate, i] += r[i] * va[gate, i]", "pass"),
    ("immediate", "tanh_gate", "tools", "p[gate, i] += q[k, i] * da[k, gate, i]", "pass"),
    ("immediate", "lru", "tools", "for f in range(len(features)):\n                    for i in range(n):", "for f in range(1):\n                    for i in range(n):"),
    ("snap1", "tanh", "tools", "own_ds[k, 0, i] += da[k, gate, i] * net.W[i, begin + i]", "pass"),
    ("snap1", "mgu", "tools", "own_ds[k, 0, i] += da[k, gate, i] * net.W[i, at + unit] * heard", "pass"),
    ("snap1", "mgu", "tools", "own_ds[k, j, i] += through * vs[j, i]", "pass"),
    ("snap1", "gru_textbook", "tools", "own_da[k, other, i] += through * va[other, i]", "pass"),
    ("snap1", "lru", "own", "target[j] += kept * source[j]", "pass"),
    ("snap1", "gru", "own", "kept * part[j] + factor * read[j]", "factor * read[j]"),
    ("eprop", "lstm", "eprop", "copy_states(own_ds[k], ds[k])", "pass"),
    ("eprop", "leaky", "eprop", "copy_states(own_ds[k], ds[k])", "pass"),
    ("trace", "gru", "trace", "kept[j] * trace[j] + factor", "trace[j] + factor"),
    ("uoro", "gru", "uoro", "total += ds[k, j, i] * memory[i, j]", "pass"),
    ("uoro", "tanh", "uoro", "scales[0] * moved[k, i] + ", ""),
    ("uoro", "mgu", "uoro", "r[i] += vs[k, i] * memory[i, k]", "pass"),
    ("uoro", "tanh", "uoro", "fade * part[j] + factor", "part[j] + factor"),
]  # fmt: skip
# ruff: noqa: E501


@pytest.mark.parametrize(("identity", "cell", "file", "old", "new"), TERMS)
def test_every_identity_notices_a_dropped_term(monkeypatch, identity, cell, file, old, new):
    assert holds_as_shipped(identity, cell)
    changed = mutant(importlib.import_module(f"bci_adapt.learning.credit.{file}"), old, new)
    if file == "tools":
        monkeypatch.setattr(compiled, "make_tools", changed.make_tools)
        assert not holds(identity, cell)
        return
    if file == "own":
        shipped = importlib.import_module("bci_adapt.learning.credit.own")
        monkeypatch.setattr(shipped.OwnTrace, "make", changed.OwnTrace.make)
        assert not holds(identity, cell)
        return
    assert not holds(identity, cell, changed)


class Long(Immediate):
    """A rule of a user's that reads records before the labelled one from the ring."""

    @property
    def history(self):
        return 2


def test_bad_constants_are_named():
    for call, message in (
        (lambda: Trace(1.5), "decay"),
        (lambda: Trace(np.array([0.1, -0.1])), "decay"),
        (lambda: learner(problem(cells()["tanh"]), Trace(np.zeros(3))), "one per weight"),
        (lambda: Window(0), "steps"),
        (lambda: SparseRTRL(0), "paths"),
        (lambda: RTRL(feedback="none"), "feedback"),
        (lambda: Window(2, fresh_error=False), "fresh_error cannot be False"),
        (lambda: Long(fresh_error=True), "this rule reads 2 before it"),
    ):
        with pytest.raises(InputError, match=message):
            call()
