"""The loop: what it promises whatever the cell and the rule, compiled and in plain Python."""

import functools

import numpy as np
import oracle
import pytest
import torch
from problems import M_IN, M_OUT, PAIR_NAMES, PAIRS, RULES, N, T, learner, problem

from bci_adapt.errors import InputError
from bci_adapt.learning.backends import loop as kernel
from bci_adapt.learning.cells.base import cells
from bci_adapt.learning.credit.immediate import Immediate
from bci_adapt.learning.credit.readout import Readout
from bci_adapt.learning.credit.trace import Trace
from bci_adapt.learning.credit.window import Window
from bci_adapt.learning.online import load_state, run, save_state, start
from bci_adapt.learning.optimizers import (
    LARS,
    SGD,
    Adafactor,
    AdaGrad,
    Adam,
    GroupRMSprop,
    Momentum,
    RMSprop,
    Schedule,
    Sign,
)


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


# A loop a line, the last ones with every index checked: among these is every rule but the simplest ones. Loops that are
# compiled elsewhere too – with the same optimiser, unchecked – are compiled once.
DOZEN = [
    ("tanh", Immediate(), RMSprop(1e-2), False),
    ("tanh_skip", Trace(0.6), SGD(1e-2, clip=0.5), False),
    ("gru", RULES["rtrl"], RMSprop(1e-2), False),
    ("gru", Window(4), RMSprop(1e-2), False),
    ("lstm", RULES["eprop"], RMSprop(1e-2, schedule=Schedule("cosine", length=30.0, warm_up=5.0)), False),
    ("lru_skip", RULES["rtrl"], RMSprop(1e-2), False),
    ("ssm", RULES["uoro"], RMSprop(1e-2), False),
    ("indrnn", Readout(), SGD(1e-2), False),
    ("s4d", Trace(0.6), Adafactor(1e-2, clip=0.5), False),
    ("minlstm", RULES["snap1"], Adafactor(1e-2, weight_decay=0.1), False),
    ("tanh_gate", Window(3), Adam(1e-2, weight_decay=0.1), True),
    ("gru_textbook", RULES["rtrl"], AdaGrad(1e-2), True),
    ("mgu", RULES["uoro"], LARS(1e-2), True),
    ("lstm", RULES["snap1"], GroupRMSprop(1e-2), True),
    ("leaky", RULES["rflo"], Sign(1e-3), True),
    ("lstm", RULES["sparse_rtrl"], SGD(1e-2), True),
    # Not Adafactor: a key has no gradient in the first bin of a stretch, whose rounding it would take for one.
    ("rwkv", RULES["snap1"], Momentum(1e-2), True),
    ("gru_textbook", Immediate(fresh_error=True), SGD(1e-2), True),
]


@pytest.mark.parametrize(("cell", "rule", "optimizer", "checked"), DOZEN, ids=lambda part: getattr(part, "name", part))
def test_compiled_equals_plain_python(cell, rule, optimizer, checked):
    p = problem(cells()[cell], n_bins=40, n=5)
    rng = np.random.default_rng(5)
    reset, observed = rng.random(40) < 0.1, rng.random(40) < 0.9
    weight = p.weight * (rng.random((40, 1)) < 0.8)
    stream = {"arrives": np.arange(40) + 4, "reset": reset, "observed": observed}
    results = []
    for options in ({"backend": "plain"}, {"backend": "compiled", "boundscheck": checked}):
        state = start(learner(p, rule, optimizer, average=0.9, **options), p.W, p.C, p.hidden)
        predictions, state = run(state, p.X, p.Y, weight, **stream)
        results.append([predictions, *state.arrays.values()])
    for other in results[1:]:
        for plain, fast in zip(results[0], other, strict=True):
            np.testing.assert_allclose(fast, plain, rtol=1e-11, atol=1e-12)


COMPILED = [
    (cells()[cell], name, "compiled")
    for cell, name in [("tanh", "immediate"), ("gru", "rtrl"), ("gru", "window"), ("lstm", "eprop"), ("ssm", "uoro")]
]


BINS = 40


def begun(cell, name, backend, S=1):
    """A problem, its learner before the first bin, and a stream with all that can happen in one."""
    p = problem(cell, n_bins=BINS, n=3, seed=7)
    W = np.stack([p.W + 0.01 * s for s in range(S)])
    C = np.stack([p.C - 0.01 * s for s in range(S)])
    rng = np.random.default_rng(8)
    stream = {
        "weight": p.weight * (rng.random((BINS, 1)) < 0.7),
        "arrives": np.minimum(np.arange(BINS) // 7 * 7 + 9, BINS + 6),  # bursts, as labels that come at a trial's end
        "observed": rng.random(BINS) < 0.9,
        "reset": rng.random(BINS) < 0.05,
    }
    return p, start(learner(p, RULES[name], RMSprop(3e-2), average=0.95, backend=backend), W, C), stream


@functools.cache
def whole_run(cell_name, name, backend):
    """Predictions and state after that stream."""
    p, begin, stream = begun(cells()[cell_name], name, backend)
    assert stream["reset"][1:].any()
    return run(begin, p.X, p.Y, **stream)


@pytest.mark.parametrize(
    ("cell", "name", "backend"),
    [(*pair, "plain") for pair in PAIRS] + COMPILED,
    ids=PAIR_NAMES + [f"{cell.name}-{name}-compiled" for cell, name, _ in COMPILED],
)
class TestTheLoop:
    """Contracts of the loop itself, whatever the cell and rule."""

    def test_run_is_a_loop_of_steps_and_resumes_from_a_file_bit_for_bit(self, cell, name, backend, tmp_path):
        p, begin, stream = begun(cell, name, backend)
        whole, end = whole_run(cell.name, name, backend)
        state, pieces, t = begin, [], 0
        for size in (1, 1, 1, 20, 1, BINS - 24):
            piece = slice(t, t + size)
            part = {key: value[piece] for key, value in stream.items()}
            part["arrives"] = part["arrives"] - t
            predictions, state = run(state, p.X[piece], p.Y[piece], **part)
            save_state(state, tmp_path / "state.npz")
            state = load_state(begin.learner, tmp_path / "state.npz")
            pieces.append(predictions)
            t += size
        assert t == BINS
        assert np.array_equal(np.concatenate(pieces, axis=1), whole)
        for key in end.arrays:
            if not key.startswith("ring_"):  # the ring's length depends on how far ahead arrivals are known
                assert np.array_equal(end.arrays[key], state.arrays[key]), key

    def test_learning_happens_and_run_leaves_the_given_state_alone(self, cell, name, backend):
        p, begin, stream = begun(cell, name, backend)
        before = begin.copy()
        _, end = run(begin, p.X, p.Y, **stream)
        assert all(np.array_equal(before.arrays[key], begin.arrays[key]) for key in before.arrays)
        assert not np.array_equal(begin.arrays["C"], end.arrays["C"])
        assert np.array_equal(begin.arrays["W"], end.arrays["W"]) != RULES[name].learns_recurrent

    def test_a_label_changes_nothing_before_it_arrives(self, cell, name, backend):
        p, begin, stream = begun(cell, name, backend)
        changed, t = p.Y.copy(), 20
        changed[t:] += 5.0
        one, _ = whole_run(cell.name, name, backend)
        two, _ = run(begin, p.X, changed, **stream)
        arrival = stream["arrives"][t]
        assert np.array_equal(one[:, : arrival + 1], two[:, : arrival + 1])
        assert not np.array_equal(one, two)

    def test_a_replica_runs_as_if_alone(self, cell, name, backend):
        p, begin, stream = begun(cell, name, backend, S=2)
        together, end = run(begin, p.X, p.Y, **stream)
        for s in range(2):
            alone = start(begin.learner, begin.arrays["W"][s], begin.arrays["C"][s], seeds=[s])
            predictions, last = run(alone, p.X, p.Y, **stream)
            assert np.array_equal(predictions[0], together[s])
            assert np.array_equal(last.arrays["W"][0], end.arrays["W"][s])

    def test_what_is_not_finite_is_skipped_and_counted(self, cell, name, backend):
        p, begin, stream = begun(cell, name, backend)
        X, Y = p.X.copy(), p.Y.copy()
        X[11, 0], Y[25], Y[33, 1] = np.inf, np.nan, -np.inf
        stream |= {"observed": np.ones(BINS, bool), "weight": p.weight}
        predictions, end = run(begin, X, Y, **stream)
        assert end.finite.all()
        assert np.isfinite(predictions).all()
        assert end.counter(kernel.NOT_FINITE)[0] == 3
        weight, observed = p.weight.copy(), np.ones(BINS, bool)
        weight[25], weight[33, 1], observed[11] = 0.0, 0.0, False
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


def test_records_that_wait_across_calls_are_not_overwritten():
    """Labels of a later call may be known before those of an earlier one: they still wait their turn."""
    p = problem(cells()["tanh"], n_bins=60)
    late = np.concatenate([np.full(5, 50), np.arange(5, 60)])
    state = start(learner(p, Immediate(), SGD(1e-2), max_updates_per_bin=1), p.W, p.C)
    _, state = run(state, p.X[:5], p.Y[:5], p.weight[:5], arrives=late[:5])
    _, state = run(state, p.X[5:], p.Y[5:], p.weight[5:], arrives=late[5:] - 5)
    alone = start(learner(p, Immediate(), SGD(1e-2), max_updates_per_bin=1), p.W, p.C)
    _, alone = run(alone, p.X, p.Y, p.weight, arrives=np.maximum.accumulate(late))
    assert state.counter(kernel.UPDATES)[0] == alone.counter(kernel.UPDATES)[0] == 10
    assert np.array_equal(state.arrays["W"], alone.arrays["W"])


def test_a_reset_drops_labels_that_wait_and_holds_no_prediction():
    p = problem(cells()["tanh"], n_bins=12)
    weight, observed, reset = p.weight.copy(), np.ones(12, bool), np.zeros(12, bool)
    weight[[2, 7]], observed[8], reset[8] = 0.0, False, True
    state = start(learner(p, Immediate(), SGD(1e-2)), p.W, p.C)
    predictions, end = run(state, p.X, p.Y, weight, np.arange(12) + 5, observed, reset)
    # Bins 3 … 7 still wait at the reset; that of bin 7 has no label to lose.
    assert end.counter(kernel.DROPPED)[0] == 4
    assert (predictions[0, 8] == 0.0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop("memory"), "'memory' of the learner's state is missing"),
        (lambda arrays: arrays.update(opt_W=arrays["opt_W"][:, :, :0]), "'opt_W' does not belong"),
        (lambda arrays: arrays.update(counters=arrays["counters"].astype(float)), "'counters' does not belong"),
        (lambda arrays: arrays.update(ring_z=arrays["ring_z"][:, :1]), "'ring_z' does not belong"),
        (lambda arrays: arrays["counters"].__setitem__((0, kernel.RECORDS), 99), "ring of"),
        (lambda arrays: arrays.pop("W"), "'W'"),
    ],
)
def test_a_stored_state_of_something_else_is_refused(tmp_path, change, message):
    """Compiled kernels check no index, so that nothing of another shape may reach them."""
    p = problem(cells()["gru"])
    who = learner(p, RULES["trace"], RMSprop(1e-2))
    _, state = run(start(who, p.W, p.C), p.X, p.Y, arrives=np.arange(T) + 2)
    change(state.arrays)
    save_state(state, tmp_path / "state.npz")
    with pytest.raises(InputError, match=message):
        load_state(who, tmp_path / "state.npz")


def test_a_file_that_holds_no_state_is_refused(tmp_path):
    who = learner(problem(cells()["tanh"]), Immediate())
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    (tmp_path / "text.npz").write_text("nothing")
    for name in ("other.npz", "text.npz", "missing.npz"):
        with pytest.raises(InputError, match=name):
            load_state(who, tmp_path / name)
