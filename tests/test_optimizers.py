"""Optimisers against torch.optim where it has them, against their formula where it has not, alone and in the loop."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
from problems import gradients, learner, problem

from bci_adapt.errors import InputError
from bci_adapt.learning.cells.base import cells
from bci_adapt.learning.credit.immediate import Immediate
from bci_adapt.learning.online import run, start
from bci_adapt.learning.optimizers import (
    GROUPS,
    LARS,
    SGD,
    Adafactor,
    Adam,
    GroupRMSprop,
    Momentum,
    RMSprop,
    Schedule,
    Sign,
    optimizers,
)  # fmt: skip
from bci_adapt.learning.schedules import pace

EXAMPLES = [each for kind in optimizers().values() for each in kind.examples()]
HAS_TWIN = [each for each in EXAMPLES if each.torch_optim([torch.zeros(1, requires_grad=True)]) is not None]


def test_every_optimizer_is_held_to_torch_or_has_a_test_of_its_own():
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    apart = set(optimizers()) - {each.name for each in HAS_TWIN}
    assert [name for name in sorted(apart) if f"def test_{name}_" not in tests] == []
    assert len(apart) < len(optimizers()) / 2


def by_row(optimizer, n_steps=60, width=7):
    """Weights of one row after every update with gradients of many sizes, and those gradients."""
    rng = np.random.default_rng(3)
    theta = rng.standard_normal(width)
    update, slots = optimizer.make(), np.zeros((max(1, optimizer.n_slots), width))
    rates, path, given = np.full(width, optimizer.learning_rate), [theta.copy()], []
    for t in range(1, n_steps):
        given.append(rng.standard_normal(width) * 10.0 ** rng.integers(-4, 3))
        update(theta, given[-1], slots, rates, optimizer.hyper(), t)
        path.append(theta.copy())
    return np.array(path), np.array(given)


@pytest.mark.parametrize("ours", HAS_TWIN, ids=repr)
def test_optimizers_equal_torch(ours):
    path, given = by_row(ours)
    twin = torch.tensor(path[0].copy(), requires_grad=True)
    reference = ours.torch_optim([twin])
    for theta, g in zip(path[1:], given, strict=True):
        twin.grad = torch.tensor(g)
        reference.step()
        np.testing.assert_allclose(theta, twin.detach().numpy(), rtol=1e-12, atol=1e-12)


def test_adam_without_bias_correction_is_its_formula():
    path, given = by_row(Adam(0.1, 0.8, 0.97, 1e-7, bias_correction=False))
    m = v = np.zeros(7)
    for before, after, g in zip(path, path[1:], given, strict=False):
        m, v = 0.8 * m + 0.2 * g, 0.97 * v + 0.03 * g**2
        np.testing.assert_allclose(after, before - 0.1 * m / (np.sqrt(v) + 1e-7), rtol=1e-12, atol=1e-12)


def test_sign_is_rmsprop_without_memory():
    path, given = by_row(Sign(0.1))
    np.testing.assert_allclose(np.diff(path, axis=0), -0.1 * np.sign(given), rtol=1e-12)
    nearly, _ = by_row(RMSprop(0.1, beta2=0.0, epsilon=0.0))
    np.testing.assert_allclose(nearly, path, rtol=1e-9)


def by_group(p, W, C):
    """The weights (or gradients) of every group that the cell has."""
    of_W, of_C = p.network.groups(), np.full(C.shape[1], "readout", "U11")
    of_C[len(p.network.cell.features) * p.network.n_hidden] = "output_bias"
    parts = {group: W[:, of_W == group] for group in GROUPS[:3]} | {group: C[:, of_C == group] for group in GROUPS[3:]}
    return {group: part for group, part in parts.items() if part.size}


def moved(p, state):
    """How far the weights of every group were moved."""
    return by_group(p, state.arrays["W"][0] - p.W, state.arrays["C"][0] - p.C)


def one_update(p, optimizer, state=None, **options):
    """Weights after the label of the first bin, and the state."""
    state = state or start(learner(p, Immediate(), optimizer, **options), p.W, p.C, p.hidden)
    _, state = run(state, p.X[:1], p.Y[:1], p.weight[:1])
    return state


def first_gradients(p):
    return gradients(replace(p, X=p.X[:1], Y=p.Y[:1], weight=p.weight[:1]), Immediate())


def test_lars_trusts_each_group_by_its_norms():
    p = problem(cells()["gru"])
    weights, g = by_group(p, p.W, p.C), by_group(p, *first_gradients(p))
    found = moved(p, one_update(p, LARS(0.1, 0.0, trust=0.02)))
    assert set(found) == set(GROUPS)
    for group in GROUPS:
        trust = 0.02 * np.linalg.norm(weights[group]) / np.linalg.norm(g[group])
        np.testing.assert_allclose(found[group], -0.1 * trust * g[group], rtol=1e-8)


def test_group_rmsprop_has_one_second_moment_per_group():
    p = problem(cells()["gru"])
    g = by_group(p, *first_gradients(p))
    state = one_update(p, GroupRMSprop(0.1, beta2=0.9))
    found = moved(p, state)
    for group in GROUPS:
        scale = np.sqrt(0.1 * np.mean(g[group] ** 2)) + 1e-8
        np.testing.assert_allclose(found[group], -0.1 * g[group] / scale, rtol=1e-10)
    assert state.arrays["opt_groups"].shape == (1, len(GROUPS), 1)
    assert (state.arrays["opt_groups"] > 0).all()


def adafactor_of_torch(p, rate, update_clip=1.0):
    """Its step is rate · max(1, RMS(θ)) for the first 1/rate² updates: the rate itself where weights are below 1."""
    return torch.optim.Adafactor(p, lr=rate, eps=(None, 1.0), d=update_clip)


def test_adafactor_of_a_matrix_and_a_vector_equals_torch():
    rng = np.random.default_rng(4)
    ours, parts = Adafactor(1e-3, update_clip=1.3), np.array([(0, 6), (6, 1)])
    theta = 0.3 * rng.standard_normal((4, 7))
    matrix, vector = (torch.tensor(part.copy(), requires_grad=True) for part in (theta[:, :6], theta[:, 6]))
    theirs = adafactor_of_torch([matrix, vector], 1e-3, 1.3)
    precondition, update = ours.make_precondition(), ours.make()
    moments, clipped = np.zeros(4 * 2 + 7), 0
    for t in range(1, 60):
        g = rng.standard_normal((4, 7)) * 10.0 ** rng.integers(-4, 3, (4, 1)) * 10.0 ** rng.integers(-2, 2)
        matrix.grad, vector.grad = torch.tensor(g[:, :6].copy()), torch.tensor(g[:, 6].copy())
        theirs.step()
        precondition(g, np.ones(4), parts, moments, ours.hyper(), t)
        clipped += np.isclose(np.sqrt(np.mean(g[:, :6] ** 2)), 1.3, rtol=1e-9)
        for row in range(4):
            update(theta[row], g[row], np.zeros((0, 7)), np.full(7, 1e-3), ours.hyper(), t)
        np.testing.assert_allclose(theta[:, :6], matrix.detach().numpy(), rtol=1e-11, atol=1e-13)
        np.testing.assert_allclose(theta[:, 6], vector.detach().numpy(), rtol=1e-11, atol=1e-13)
    assert 5 < clipped < 55


@pytest.mark.parametrize("name", ["gru", "leaky", "lru_skip"])
def test_adafactor_in_the_loop_equals_torch_with_a_tensor_per_matrix(name):
    p = problem(cells()[name], n_bins=20)
    p.C *= 0.4
    W, C = parts_of(p, p.W), parts_of(p, p.C)
    twins = [torch.tensor(part.squeeze(1) if part.shape[1] == 1 else part, requires_grad=True) for part in (*W, *C)]
    theirs = adafactor_of_torch(twins, 0.01)
    state, update = torch.tensor(p.hidden[0]), p.network.cell.make(torch)[0]
    for x, y, w in zip(*(torch.tensor(v) for v in (p.X, p.Y, p.weight)), strict=True):
        whole = [twin[:, None] if twin.ndim == 1 else twin for twin in twins]
        state = oracle.step(p.network, update, torch.cat(whole[: len(W)], 1), x, state.detach())
        theirs.zero_grad()
        prediction = oracle.output(p.network, torch.cat(whole[len(W) :], 1), x, state)
        oracle.loss_of(prediction, y, w, "squared").backward()
        theirs.step()
    assert max(float(twin.detach().square().mean()) for twin in twins) < 1.0
    expected = [twin.detach().numpy().reshape(len(twin), -1) for twin in twins]
    for found, known in zip(in_the_loop(p, Adafactor(0.01), 20), (expected[: len(W)], expected[len(W) :]), strict=True):
        np.testing.assert_allclose(found, np.hstack(known), rtol=1e-10, atol=1e-12)


def parts_of(p, matrix):
    """What is a matrix of its own in W or C: every gate's inputs, constant, recurrent weights; and so on."""
    if matrix is p.W:
        return [matrix[:, columns] for *_, columns in p.network.columns()]
    one = len(p.network.cell.features) * p.network.n_hidden
    return np.split(matrix, [one, one + 1] if p.network.cell.skip else [one], axis=1)


def test_adafactor_leaves_readout_rows_without_a_label_alone():
    p = problem(cells()["tanh"])
    state = start(learner(p, Immediate(), Adafactor(0.01)), p.W, p.C, p.hidden)
    of_C = p.W.shape[0] * 3 + p.W.shape[1]  # row moments of W's three matrices, and its column moments, come first

    def rows(state):
        return np.hstack([state.arrays["C"][0], state.arrays["opt_groups"][0, 0, of_C : of_C + 4].reshape(2, 2)])

    for row in (0, 1):
        weight = np.zeros_like(p.weight[:1])
        weight[0, row] = 1.0
        before = rows(state)
        _, state = run(state, p.X[:1], p.Y[:1], weight)
        changed = rows(state) != before
        assert changed[row].all()
        assert not changed[1 - row].any()


def test_a_group_without_weights_or_gradient_is_left_alone():
    p = problem(cells()["lru"])  # its state is linear: no bias beside the inputs', and C starts at zero here
    p.C[:] = 0.0
    for optimizer in (LARS(0.1), GroupRMSprop(0.1), Adafactor(0.1)):
        state = one_update(p, optimizer)
        assert state.finite.all()
        assert np.array_equal(state.arrays["W"][0], p.W)


def torch_twin(p, make, n_bins, clip=0.0):
    """Trajectory of d = 0 by detach and torch.optim over the first bins."""
    W, C = (torch.tensor(v, requires_grad=True) for v in (p.W, p.C))
    optimizer, schedule = make([W, C])
    state, update = torch.tensor(p.hidden[0]), p.network.cell.make(torch)[0]
    for x, y, w in zip(*(torch.tensor(v[:n_bins]) for v in (p.X, p.Y, p.weight)), strict=True):
        state = oracle.step(p.network, update, W, x, state.detach())
        optimizer.zero_grad()
        oracle.loss_of(oracle.output(p.network, C, x, state), y, w, "squared").backward()
        if clip:
            torch.nn.utils.clip_grad_norm_([W, C], clip)
        optimizer.step()
        if schedule is not None:
            schedule.step()
    return W.detach().numpy(), C.detach().numpy()


def in_the_loop(p, optimizer, n_bins):
    state = start(learner(p, Immediate(), optimizer), p.W, p.C, p.hidden)
    _, state = run(state, p.X[:n_bins], p.Y[:n_bins], p.weight[:n_bins])
    return state.arrays["W"][0], state.arrays["C"][0]


def plain(optimizer):
    return optimizer, None


def warmed(optimizer, factor):
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor(step + 1))


@pytest.mark.parametrize(
    ("ours", "theirs", "clip"),
    [
        (Adam(0.05, clip=0.3), lambda p: plain(torch.optim.Adam(p, lr=0.05)), 0.3),
        (SGD(0.05, clip=0.3), lambda p: plain(torch.optim.SGD(p, lr=0.05)), 0.3),
        (Momentum(0.05, clip=1e6), lambda p: plain(torch.optim.SGD(p, lr=0.05, momentum=0.9)), 0.0),
        (Adam(0.05, weight_decay=0.3), lambda p: plain(torch.optim.AdamW(p, lr=0.05, weight_decay=0.3)), 0.0),
        (
            SGD(0.05, schedule=Schedule("exponential", length=4.0)),
            lambda p: warmed(torch.optim.SGD(p, lr=0.05), lambda t: 0.5 ** (t / 4)),
            0.0,
        ),
        (
            Adam(0.05, schedule=Schedule("cosine", length=9.0, warm_up=3.0, floor=0.1)),
            lambda p: warmed(
                torch.optim.Adam(p, lr=0.05),
                lambda t: t / 3 if t <= 3 else 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * min(1, (t - 3) / 9))),
            ),
            0.0,
        ),
    ],
    ids=["clip adam", "clip sgd", "clip nothing", "AdamW", "exponential", "warm-up and cosine"],
)
def test_clipping_decay_and_schedules_in_the_loop_equal_torch(ours, theirs, clip):
    p = problem(cells()["gru"], n_bins=20)
    expected = torch_twin(p, theirs, 20, clip)
    for found, known in zip(in_the_loop(p, ours, 20), expected, strict=True):
        np.testing.assert_allclose(found, known, rtol=1e-11, atol=1e-12)


def test_schedules_start_where_the_warm_up_ends_and_fall():
    for kind in ("exponential", "cosine", "inverse_sqrt"):
        factors = [pace(t, Schedule(kind, length=10.0, warm_up=4.0).constants()) for t in range(1, 40)]
        assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
        assert (np.diff(factors[3:]) <= 0.0).all()
        assert factors[4] < 1.0
    assert pace(14, Schedule("exponential", length=10.0, warm_up=4.0).constants()) == 0.5
    assert not Schedule().moves
    assert pace(7, Schedule().constants()) == 1.0


def test_a_schedule_goes_on_where_a_run_was_interrupted():
    p = problem(cells()["tanh"], n_bins=20)
    optimizer = SGD(0.1, schedule=Schedule("inverse_sqrt", length=3.0, warm_up=2.0))
    whole = in_the_loop(p, optimizer, 20)
    state = start(learner(p, Immediate(), optimizer), p.W, p.C, p.hidden)
    for piece in (slice(0, 7), slice(7, 20)):
        _, state = run(state, p.X[piece], p.Y[piece], p.weight[piece])
    assert np.array_equal(state.arrays["W"][0], whole[0])


def test_groups_that_do_not_learn_stand_still_and_are_not_counted_in_the_norm():
    p = problem(cells()["gru"])
    for optimizer in (SGD(0.1), Adam(0.1, weight_decay=0.1), LARS(0.1), SGD(0.1, clip=1e-3), Adafactor(0.1)):
        for learns in (("readout",), ("output_bias",), ("recurrent",), ("input", "bias")):
            for group, part in moved(p, one_update(p, optimizer, learns=learns)).items():
                assert part.any() == (group in learns), (optimizer.name, learns, group)
    for group in ("readout", "output_bias"):
        part = moved(p, one_update(p, SGD(1.0, clip=1e-3), learns=(group,)))[group]
        assert np.linalg.norm(part) == pytest.approx(1e-3, rel=1e-2)
    doubled = moved(p, one_update(p, SGD(0.1), group_rates={"output_bias": 2.0}))
    plain_step = moved(p, one_update(p, SGD(0.1)))
    np.testing.assert_allclose(doubled["output_bias"], 2.0 * plain_step["output_bias"], rtol=1e-10)
    np.testing.assert_allclose(doubled["readout"], plain_step["readout"], rtol=1e-10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RMSprop(beta2=1.0), "beta2"),
        (lambda: Momentum(momentum=-0.1), "momentum"),
        (lambda: Adafactor(decay_power=1.5), "decay_power"),
        (lambda: SGD(float("nan")), "learning_rate"),
        (lambda: SGD(clip=-1.0), "clip"),
        (lambda: Schedule("linear"), "kind"),
        (lambda: Schedule("cosine", length=0.0), "length"),
        (lambda: learner(problem(cells()["tanh"]), Immediate(), learns=()), "at least one"),
        (lambda: learner(problem(cells()["tanh"]), Immediate(), learns=("reedout",)), "reedout"),
    ],
)
def test_bad_constants_are_named(make, message):
    with pytest.raises(InputError, match=message):
        make()
