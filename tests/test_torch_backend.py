"""The torch backend: equal to the kernels array by array, and any torch module as a cell."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from problems import M_IN, M_OUT, PAIR_NAMES, PAIRS, RULES, learner, problem
from torch import nn

from bci_adapt.errors import InputError
from bci_adapt.learning.backends import loop as kernel
from bci_adapt.learning.backends.torch_network import ModuleNetwork, module_of
from bci_adapt.learning.backends.torch_optimizers import Counterpart
from bci_adapt.learning.cells.base import cells
from bci_adapt.learning.credit.base import CreditRule
from bci_adapt.learning.credit.immediate import Immediate
from bci_adapt.learning.credit.own import OwnTrace
from bci_adapt.learning.credit.readout import Readout
from bci_adapt.learning.credit.rtrl import RTRL
from bci_adapt.learning.credit.snap1 import SnAp1
from bci_adapt.learning.credit.sparse_rtrl import SparseRTRL
from bci_adapt.learning.credit.trace import Trace
from bci_adapt.learning.credit.uoro import UORO
from bci_adapt.learning.credit.window import Window
from bci_adapt.learning.online import Learner, State, load_state, run, save_state, start
from bci_adapt.learning.optimizers import SGD, Adafactor, Adam, GroupRMSprop, RMSprop, Schedule, optimizers

BINS, UNITS = 12, 3


def streamed(weight, seed=5):
    """Late and missing labels, unobserved bins, a reset while labels wait."""
    rng = np.random.default_rng(seed)
    reset, observed = np.zeros(len(weight), bool), rng.random(len(weight)) < 0.85
    reset[7] = True
    there = rng.random(weight.shape) < 0.7
    return {"weight": weight * there, "arrives": np.arange(len(weight)) + 2, "observed": observed, "reset": reset}


def outcome(p, rule, optimizer=None, **options):
    """Predictions and state after one stream from a random, nonzero state."""
    begin = start(learner(p, rule, optimizer or RMSprop(1e-2), **({"average": 0.9} | options)), p.W, p.C, p.hidden)
    return run(begin, p.X, p.Y, **streamed(p.weight))


def memory(state):
    """What a rule carries, without the scratch in RTRL's panels."""
    learner, arrays = state.learner, state.arrays
    if not isinstance(learner.rule, RTRL) or isinstance(learner.network, ModuleNetwork):
        return arrays["memory"]
    last = state.counter(kernel.PROCESSED)[0] - 1
    return np.array([learner.rule.influence(learner.network, panels, last) for panels in arrays["memory"]])


def assert_same(left, right, tolerance=1e-12):
    """Two (predictions, state) agree in every array, whole numbers exactly."""
    assert left[1].arrays.keys() == right[1].arrays.keys()
    pairs = {name: (array, right[1].arrays[name]) for name, array in left[1].arrays.items()}
    pairs |= {"memory": (memory(left[1]), memory(right[1])), "predictions": (left[0], right[0])}
    for name, (a, b) in pairs.items():
        exact = not np.issubdtype(a.dtype, np.floating)
        size = 0.0 if exact else tolerance * max(1.0, float(np.max(np.abs(b), initial=0.0)))
        np.testing.assert_allclose(a, b, rtol=0, atol=size, err_msg=name)


def agree(p, rule, optimizer=None, **options):
    plain = outcome(p, rule, optimizer, **options)
    assert plain[1].counter(kernel.UPDATES)[0] > 3
    assert plain[1].counter(kernel.DROPPED)[0] > 0
    assert_same(outcome(p, rule, optimizer, **options, backend="torch"), plain)


@pytest.mark.parametrize(("cell", "name"), PAIRS, ids=PAIR_NAMES)
def test_every_cell_and_rule_equals_the_kernels(cell, name):
    agree(problem(cell, BINS, n=UNITS), RULES[name])


def test_every_optimiser_of_the_module_has_its_counterpart_in_torch():
    for kind in optimizers().values():
        counterpart = kind().torch_counterpart()
        assert (counterpart.precondition is not None) == kind.preconditions
        assert (counterpart.rescale is not None) == (kind.whole and not kind.preconditions)


@pytest.mark.parametrize(
    ("cell", "name"),
    [(cell, name) for cell, name in PAIRS if cell.name in ("tanh_skip", "lstm", "mgu") and name != "window"],
    ids=lambda part: getattr(part, "name", part),
)
def test_every_rule_with_a_fresh_error_equals_the_kernels(cell, name):
    agree(problem(cell, BINS, n=UNITS), replace(RULES[name], fresh_error=True))


@pytest.mark.parametrize("kind", optimizers().values(), ids=lambda kind: kind.name)
@pytest.mark.parametrize("clip", [0.0, 0.3])
def test_every_optimiser_equals_the_kernels(kind, clip):
    schedule = Schedule("cosine", length=6.0, warm_up=2.0, floor=0.1)
    optimizer = kind(0.05, clip=clip, weight_decay=0.1, schedule=schedule)
    agree(problem(cells()["gru"], BINS, n=UNITS), Immediate(), optimizer, group_rates={"input": 0.5})


@pytest.mark.parametrize("kind", ["exponential", "inverse_sqrt"])
@pytest.mark.parametrize("warm_up", [0.0, 2.5])
def test_every_schedule_equals_the_kernels(kind, warm_up):
    optimizer = Adam(0.05, bias_correction=False, schedule=Schedule(kind, length=3.0, warm_up=warm_up))
    agree(problem(cells()["tanh"], BINS, n=UNITS), Immediate(), optimizer)


@pytest.mark.parametrize(
    "rule",
    [
        Immediate(feedback="random"),
        Window(3, feedback="random"),
        RTRL(feedback="random"),
        SparseRTRL(3, feedback="random"),
        UORO(feedback="random"),
        Trace(0.5, feedback="random"),
        Trace(np.random.default_rng(2).random((UNITS, 32))),
    ],
    ids=lambda rule: f"{rule.name}-{rule.feedback}",
)
def test_random_feedback_and_a_decay_per_weight_equal_the_kernels(rule):
    p = problem(cells()["lstm"], BINS, n=UNITS)
    if isinstance(rule, Trace):
        rule = replace(rule, decay=np.resize(rule.decay, p.W.shape) if np.ndim(rule.decay) else rule.decay)
    agree(p, rule)


@pytest.mark.parametrize("rule", [Immediate(), Window(2), SnAp1(), RTRL()], ids=lambda rule: rule.name)
@pytest.mark.parametrize(
    "options",
    [
        {"loss": "cross_entropy"},
        {"learns": ("readout",)},
        {"learns": ("recurrent",), "optimizer": GroupRMSprop(1e-2, clip=0.2)},
        {"max_updates_per_bin": 1, "average": None},
    ],
    ids=lambda options: "-".join(options),
)
def test_options_of_the_loop_equal_the_kernels(rule, options):
    agree(problem(cells()["tanh_skip"], BINS, n=UNITS), rule, **options)


@pytest.mark.parametrize("name", RULES)
def test_a_state_moves_between_backends(name):
    """Every other bin in torch: the same run, whatever the rule carries and however it is packed."""
    p = problem(cells()["lstm"], BINS, n=UNITS)
    stream = streamed(p.weight)
    expected, end = outcome(p, RULES[name])
    state = start(learner(p, RULES[name], RMSprop(1e-2), average=0.9), p.W, p.C, p.hidden)
    predictions = []
    for t in range(BINS):
        now = slice(t, t + 1)
        state = State(replace(state.learner, backend="torch" if t % 2 else "plain"), state.arrays)
        part = {key: value[now] for key, value in stream.items()} | {"arrives": stream["arrives"][now] - t}
        prediction, state = run(state, p.X[now], p.Y[now], **part)
        predictions.append(prediction)
    assert_same((np.concatenate(predictions, 1), state), (expected, end))


@dataclass
class Replicas:
    """Three networks, each with weights, labels and a state of its own."""

    W: np.ndarray
    C: np.ndarray
    X: np.ndarray
    Y: np.ndarray
    weight: np.ndarray
    hidden: np.ndarray

    @classmethod
    def of(cls, cell):
        ps = [problem(cell, BINS, seed, UNITS) for seed in range(3)]
        weights = [streamed(p.weight, seed)["weight"] for seed, p in enumerate(ps)]
        names = ("W", "C", "X", "Y", "hidden")
        return cls(**{name: np.stack([getattr(p, name) for p in ps]) for name in names}, weight=np.stack(weights))


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        *((name, Adam(1e-2, clip=0.5)) for name in RULES),
        ("immediate", GroupRMSprop(1e-2)),
        ("immediate", Adafactor(1e-2)),
    ],
    ids=lambda part: getattr(part, "name", part),
)
def test_replicas_equal_lone_runs(name, optimizer):
    p = problem(cells()["gru"], BINS, n=UNITS)
    many, stream = Replicas.of(p.network.cell), streamed(p.weight) | {"weight": None}
    learns = learner(p, RULES[name], optimizer, average=0.9, backend="torch")
    together = run(start(learns, many.W, many.C, many.hidden), many.X, many.Y, **(stream | {"weight": many.weight}))
    for s in range(3):
        alone = start(learns, many.W[s], many.C[s], many.hidden[s], seeds=[s])
        alone = run(alone, many.X[s], many.Y[s], **(stream | {"weight": many.weight[s]}))
        one = State(learns, {key: array[s : s + 1] for key, array in together[1].arrays.items()})
        assert_same((together[0][s : s + 1], one), alone)


def test_replicas_out_of_step_run_one_after_another():
    p = problem(cells()["tanh"], BINS, n=UNITS)
    learns = learner(p, RTRL(), RMSprop(1e-2), backend="torch")
    begins = [start(learns, p.W, p.C, p.hidden, seeds=[0]) for _ in range(2)]
    for s, begin in enumerate(begins):
        begins[s] = run(begin, p.X[: 3 - s], p.Y[: 3 - s])[1]
    joined = {key: np.concatenate([state.arrays[key] for state in begins]) for key in begins[0].arrays}
    predictions, end = run(State(learns, joined), p.X, p.Y)
    for s, begin in enumerate(begins):
        one = State(learns, {key: array[s : s + 1] for key, array in end.arrays.items()})
        assert_same((predictions[s : s + 1], one), run(begin, p.X, p.Y))


def test_what_has_no_counterpart_of_its_kernel_is_refused_by_name():
    p = problem(cells()["tanh"], BINS, n=UNITS)

    class Unheard(Immediate):
        """Its kernel is its own, the counterpart it inherits is another's."""

        name: ClassVar[str] = "unheard"

        def make(self, tools):
            return Readout().make(tools)

    class Renamed(Immediate):
        name: ClassVar[str] = "renamed"

    for make, message in (
        (lambda: learner(p, Unheard(), SGD(), backend="torch"), "the rule 'unheard' brings no torch counterpart"),
        (lambda: learner(p, Immediate(), backend="torch"), "the optimiser 'accumulate' brings no torch counterpart"),
    ):
        with pytest.raises(InputError, match=message):
            make()
    agree(p, Renamed())
    for device in ("meteor", "cuda:99"):
        with pytest.raises(InputError, match=f"float64 on '{device}'"):
            outcome(p, Immediate(), backend="torch", device=device)


class Halved(CreditRule):
    """A rule of a user's: half of immediate, its kernel and its torch counterpart beside each other."""

    name: ClassVar[str] = "halved"
    description: ClassVar[str] = "half of immediate"

    def work_shapes(self, network):
        return Immediate().work_shapes(network)

    def make(self, tools):
        prepare, full = Immediate().make(tools)

        def row(i, net, ring, slot, last, constants, memory, work, q, g):
            full(i, net, ring, slot, last, constants, memory, work, q, g)
            g *= 0.5

        return prepare, row

    def torch_counterpart(self, network):
        class HalvedCredit(Immediate().torch_counterpart(network)):
            def gradient(self, W, record, q):
                return 0.5 * super().gradient(W, record, q)

        return HalvedCredit


class Doubled(SGD):
    """An optimiser of a user's: twice the step."""

    name: ClassVar[str] = "doubled"

    def make(self):
        def update(theta, g, state, rate, hyper, t):
            for j in range(theta.shape[0]):
                theta[j] -= 2.0 * rate[j] * g[j]

        return update

    def torch_counterpart(self):
        return Counterpart(lambda theta, g, slots, rate, t: (theta - 2.0 * rate * g, slots))


def test_a_rule_and_an_optimiser_of_ones_own_run_with_the_counterparts_they_bring():
    p = problem(cells()["gru"], BINS, n=UNITS)
    agree(p, Halved(), Doubled(0.05))
    module = ModuleNetwork(module_of(p.network.cell, p.network, p.W), M_IN, UNITS, M_OUT)
    moved, full = (
        run(start(module_learner(module, rule, SGD(0.1)), flat(p, p.W), p.C, p.hidden), p.X[:1], p.Y[:1])[1].arrays["W"]
        for rule in (Halved(), Immediate())
    )
    np.testing.assert_allclose(2.0 * (moved - flat(p, p.W)), full - flat(p, p.W), rtol=0, atol=1e-14)
    assert np.abs(full - flat(p, p.W)).max() > 1e-4


# Modules


class HearsNormalised(nn.Module):
    """s' = α s + tanh(W x + R norm(h)): LayerNorm over what units hear; a unit's weights reach itself alone."""

    def __init__(self):
        super().__init__()
        self.drive, self.norm = nn.Linear(M_IN, UNITS), nn.LayerNorm(UNITS)
        self.recur, self.leak = nn.Linear(UNITS, UNITS, bias=False), nn.Parameter(torch.linspace(0.2, 0.6, UNITS))

    def forward(self, x, h, s):
        return (self.leak * s[0] + torch.tanh(self.drive(x) + self.recur(self.norm(h))))[None]


class FormsNormalised(HearsNormalised):
    """LayerNorm over the activations: every weight reaches every unit within the bin."""

    def forward(self, x, h, s):
        return (self.leak * s[0] + torch.tanh(self.norm(self.drive(x) + self.recur(h))))[None]


def module_learner(network, rule, optimizer=None, **options):
    return Learner(network, rule, optimizer or RMSprop(1e-2), backend="torch", **options)


def module_problem(kind, seed=0):
    """The network of a module with random weights, and the stream of a problem of its size."""
    torch.manual_seed(seed)
    network = ModuleNetwork(kind(), M_IN, UNITS, M_OUT)
    p = problem(cells()["tanh"], BINS, seed, UNITS)
    W = network.initial_weights(0)[0] + 0.3 * np.random.default_rng(seed).standard_normal((1, network.row_width))
    return network, W, p


def last_gradient(network, W, p, rule):
    """Gradient of the last bin's error, all weights as they are: one plain step of rate 1 for the only label."""
    weight = p.weight * (np.arange(BINS) == BINS - 1)[:, None]
    _, end = run(start(module_learner(network, rule, SGD(1.0)), W, p.C, p.hidden), p.X, p.Y, weight)
    return W - end.arrays["W"][0], p.C - end.arrays["C"][0]


def bptt(network, W, p, last=BINS):
    """The same by autograd through the last bins."""
    theta, C = (torch.tensor(value, requires_grad=True) for value in (W[0], p.C))
    state = torch.tensor(p.hidden[0])
    for t, x in enumerate(torch.tensor(p.X)):
        state = network.evolve(theta, x, state[0], state)
        if t < BINS - last:
            state = state.detach()
    prediction = C @ torch.cat([state[0], torch.ones(1, dtype=C.dtype)])
    error = 0.5 * (torch.tensor(p.weight[-1]) * (prediction - torch.tensor(p.Y[-1])).square()).sum()
    by_theta, by_C = torch.autograd.grad(error, (theta, C))
    return by_theta[None].numpy(), by_C.numpy()


def flat(p, W):
    """W (n, row_width) as the parameters of `module_of` lie in θ: gate by gate."""
    return np.concatenate([part.ravel() for part in np.split(W, p.network.blocks[1:, 2], axis=1)])[None]


@pytest.mark.parametrize(("cell", "name"), PAIRS, ids=PAIR_NAMES)
def test_a_cell_given_as_a_module_learns_the_same(cell, name):
    """The generic path is the structured one, but where a second stage lets a weight reach other units: there a trace
    over all states keeps what a trace of a unit's own weights leaves out.
    """
    p, rule, optimizer = problem(cell, 6, n=UNITS), RULES[name], RMSprop(1e-2)
    network = ModuleNetwork(
        module_of(cell, p.network, p.W), M_IN, UNITS, M_OUT, cell.slots, cell.features, cell.skip, name=cell.name
    )
    np.testing.assert_array_equal(network.initial_weights(0)[0], flat(p, p.W))
    expected, end = run(start(learner(p, rule, optimizer, backend="torch"), p.W, p.C, p.hidden), p.X, p.Y, p.weight)
    begin = start(module_learner(network, rule, optimizer), flat(p, p.W), p.C, p.hidden)
    predictions, state = run(begin, p.X, p.Y, p.weight)
    moved, twin = flat(p, end.arrays["W"][0]), state.arrays["W"][0]
    if cell.make_mid is not None and isinstance(rule, OwnTrace):
        assert np.abs(twin - moved).max() > 1e-4
    else:
        np.testing.assert_allclose(twin, moved, rtol=0, atol=1e-12)
        np.testing.assert_allclose(predictions, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [HearsNormalised, FormsNormalised])
class TestNormalisedModules:
    def test_rtrl_and_a_window_over_everything_are_bptt(self, kind):
        network, W, p = module_problem(kind)
        expected = bptt(network, W, p)
        assert all(np.abs(part).max() > 1e-3 for part in np.split(expected[0], np.cumsum(network._sizes)[:-1], axis=1))
        for rule in (RTRL(), SparseRTRL(UNITS), Window(BINS)):
            for ours, theirs in zip(last_gradient(network, W, p, rule), expected, strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10)

    def test_immediate_and_windows_are_truncated_bptt(self, kind):
        network, W, p = module_problem(kind)
        for last, rule in ((1, Immediate()), (1, Trace(0.0)), (3, Window(3))):
            np.testing.assert_allclose(
                last_gradient(network, W, p, rule)[0], bptt(network, W, p, last)[0], rtol=0, atol=1e-12
            )

    def test_snap1_keeps_the_pattern_of_the_immediate_derivatives(self, kind):
        network, W, p = module_problem(kind)
        everywhere = {HearsNormalised: ("norm",), FormsNormalised: ("drive", "recur")}[kind]
        ours, exact = (last_gradient(network, W, p, rule)[0] for rule in (SnAp1(), RTRL()))
        for name, shape, part, *gradients in zip(
            network.shapes, network.shapes.values(), network.pattern.split(network._sizes, 1),
            *(np.split(gradient, np.cumsum(network._sizes)[:-1], 1) for gradient in (ours, exact)), strict=True,
        ):  # fmt: skip
            dense = name.startswith(everywhere)
            expected = np.ones(part.shape) if dense else np.kron(np.eye(UNITS), np.ones(np.prod(shape) // UNITS))
            np.testing.assert_array_equal(part.numpy(), expected, err_msg=name)
            assert (np.abs(gradients[0] - gradients[1]).max() < 1e-12) == dense, name

    @pytest.mark.parametrize("name", RULES)
    def test_every_rule_learns(self, kind, name):
        network, W, p = module_problem(kind)
        stream = streamed(p.weight)
        learns = module_learner(network, RULES[name], Adam(1e-2, clip=0.5), average=0.9)
        begin = start(learns, np.stack([W, 0.5 * W]), np.stack([p.C] * 2), np.stack([p.hidden[0]] * 2), seeds=[0, 0])
        predictions, end = run(begin, p.X, p.Y, **stream)
        assert np.isfinite(predictions).all()
        assert (np.abs(end.arrays["W"][0] - W).max() > 1e-4) == RULES[name].learns_recurrent
        alone = run(start(learns, W, p.C, p.hidden, seeds=[0]), p.X, p.Y, **stream)
        one = State(learns, {key: array[:1] for key, array in end.arrays.items()})
        assert_same((predictions[:1], one), alone)


class TestModuleNetwork:
    def test_the_module_given_is_left_alone(self):
        module = HearsNormalised().train()
        network = ModuleNetwork(module, M_IN, UNITS, M_OUT)
        assert module.training
        assert module.leak.dtype == torch.float32
        np.testing.assert_allclose(network.initial_weights(0)[0][0, :UNITS], module.leak.detach(), rtol=0, atol=0)

    def test_what_learns_is_what_requires_a_gradient(self):
        module = HearsNormalised()
        module.recur.requires_grad_(False)
        module.register_buffer("unused", torch.ones(2))
        network = ModuleNetwork(module, M_IN, UNITS, M_OUT)
        assert "recur.weight" not in network.shapes
        assert network.row_width == UNITS * M_IN + UNITS + 2 * UNITS + UNITS
        assert network.n_parameters == network.row_width + M_OUT * (UNITS + 1)
        p = problem(cells()["tanh"], BINS, n=UNITS)
        W, C = network.initial_weights(3)
        _, end = run(start(module_learner(network, RTRL()), W, C), p.X, p.Y)
        assert end.finite.all()

    def test_groups_have_rates_of_their_own(self):
        network = ModuleNetwork(HearsNormalised(), M_IN, UNITS, M_OUT, groups={"drive.weight": "input"})
        groups = network.groups()
        assert (groups == "input").sum() == UNITS * M_IN
        assert (groups == "recurrent").sum() == UNITS * UNITS
        W, C = network.initial_weights(0)
        p = problem(cells()["tanh"], BINS, n=UNITS)
        _, end = run(start(module_learner(network, Immediate(), learns=("input",)), W, C), p.X, p.Y)
        moved = (end.arrays["W"][0] != W)[0]
        np.testing.assert_array_equal(moved, groups == "input")

    @pytest.mark.parametrize("name", RULES)
    def test_a_module_that_vmap_cannot_run_takes_its_replicas_one_by_one(self, name):
        """torch's own LSTM, which is ours with every bias twice."""

        class Theirs(nn.Module):
            def __init__(self):
                super().__init__()
                self.cell = nn.LSTMCell(M_IN, UNITS)

            def forward(self, x, h, s):
                return torch.stack(self.cell(x, (h, s[1])))

        torch.manual_seed(0)
        network = ModuleNetwork(Theirs(), M_IN, UNITS, M_OUT, slots=("h", "c"))
        assert not network.batches
        p = problem(cells()["lstm"], BINS, n=UNITS)
        W = network.initial_weights(0)[0]
        drive, recur, bias, other = (
            part.reshape(4, UNITS, -1) for part in np.split(W[0], np.cumsum(network._sizes)[:-1])
        )
        twin = np.concatenate(np.concatenate([drive, bias + other, recur], 2), 1)
        begin = start(module_learner(network, RULES[name], SGD(0.05)), [W] * 2, [p.C] * 2, seeds=[0, 0])
        predictions, _ = run(begin, p.X, p.Y)
        np.testing.assert_allclose(predictions[1], predictions[0], rtol=0, atol=1e-14)
        if name != "uoro":  # its scales are of all parameters, however often they count
            ours = learner(p, RULES[name], SGD(0.05), group_rates={"bias": 2.0})
            expected, _ = run(start(ours, twin, p.C), p.X, p.Y)
            np.testing.assert_allclose(predictions[0], expected[0], rtol=0, atol=1e-12)

    def test_its_state_is_stored_and_goes_on(self, tmp_path):
        network, W, p = module_problem(HearsNormalised)
        learns = module_learner(network, UORO(), average=0.9)
        expected = run(start(learns, W, p.C), p.X, p.Y)
        first, state = run(start(learns, W, p.C), p.X[:5], p.Y[:5])
        save_state(state, tmp_path / "state.npz")
        second, state = run(load_state(learns, tmp_path / "state.npz"), p.X[5:], p.Y[5:])
        assert_same((np.concatenate([first, second], 1), state), expected, 0.0)

    def test_it_does_not_run_in_the_kernels(self):
        network, W, p = module_problem(HearsNormalised)
        for name in ("plain", "compiled"):
            with pytest.raises(InputError, match="torch"):
                run(start(Learner(network, Readout(), SGD(), backend=name), W, p.C), p.X)

    def test_an_error_leaves_the_state_as_it_was(self):
        class Fragile(HearsNormalised):
            def forward(self, x, h, s):
                if x[0] > 100.0:
                    raise RuntimeError("too much")
                return super().forward(x, h, s)

        network, W, p = module_problem(Fragile)
        state = start(module_learner(network, RTRL()), W, p.C)
        before = state.copy()
        X = p.X.copy()
        X[6] = 1000.0
        with pytest.raises(RuntimeError, match="too much"):
            run(state, X, p.Y, in_place=True)
        assert_same((X, state), (X, before), 0.0)

    @pytest.mark.parametrize(
        ("forward", "message"),
        [
            (lambda self, x, h, s: torch.tanh(self.drive(x)), r"return a new state, float64 \(1, 3\), got .*\(3,\)"),
            (lambda self, x, h, s: (s, s), "return a new state.* got tuple"),
            (lambda self, x, h, s: s.float() + self.drive.bias.float(), "float64 .* got torch.float32"),
            (lambda self, x, h, s: s / 0.0 + self.drive(x), "finite"),
            (lambda self, x, h, s: self.recur(x.repeat(2))[None], r"forward\(x \(3,\), h \(3,\), s \(1, 3\)\) raised"),
            (lambda self, x, h, s: s + torch.rand(3) * self.drive(x), "same state from the same arguments"),
        ],
        ids=["shape", "type", "precision", "finite", "raises", "random"],
    )
    def test_a_bad_forward_is_refused(self, forward, message):
        kind = type("Odd", (HearsNormalised,), {"forward": forward})
        with pytest.raises(InputError, match="module 'Odd'.*" + message):
            ModuleNetwork(kind(), M_IN, UNITS, M_OUT)

    def test_a_bad_module_is_refused(self):
        sizes = M_IN, UNITS, M_OUT
        with pytest.raises(InputError, match=r"expected a .*Module, got function"):
            ModuleNetwork(lambda x, h, s: s, *sizes)
        with pytest.raises(InputError, match=r"module 'quiet'.* require a gradient, got none"):
            ModuleNetwork(HearsNormalised().requires_grad_(False), *sizes, name="quiet")
        rotating = HearsNormalised()
        rotating.phase = nn.Parameter(torch.ones(2, dtype=torch.complex64))
        with pytest.raises(InputError, match="expected real parameters"):
            ModuleNetwork(rotating, *sizes)
        with pytest.raises(InputError, match="features must number some of its slots"):
            ModuleNetwork(HearsNormalised(), *sizes, features=(1,))
        for groups, message in (
            ({"drive": "input"}, "'drive', not one of its"),
            ({"leak": "readout"}, "got 'readout'"),
        ):
            with pytest.raises(InputError, match=message):
                ModuleNetwork(HearsNormalised(), *sizes, groups=groups)
