"""Diagnostics: the run is left as it is, the rules beside it see what it saw, and every number is what it says."""

from dataclasses import replace

import numpy as np
import oracle
import pytest
import torch
from problems import M_IN, M_OUT, RULES, N, T, defined, dense, gradients, learner, problem

from bci_adapt.errors import InputError
from bci_adapt.learning import diagnostics
from bci_adapt.learning.backends.torch_network import ModuleNetwork, module_of
from bci_adapt.learning.cells.base import Network, cells
from bci_adapt.learning.credit.immediate import Immediate
from bci_adapt.learning.credit.readout import Readout
from bci_adapt.learning.credit.rtrl import RTRL
from bci_adapt.learning.credit.snap1 import SnAp1
from bci_adapt.learning.credit.trace import Trace
from bci_adapt.learning.credit.window import Window
from bci_adapt.learning.diagnostics import diagnose, summary
from bci_adapt.learning.online import Learner, run, start
from bci_adapt.learning.optimizers import LARS, SGD, Adam, Momentum, RMSprop, Schedule

every_cell = pytest.mark.parametrize("cell", cells().values(), ids=lambda cell: cell.name)
BINS = 40


def stream_of(p, seed=0):
    """A stream with everything in it: labels in bursts, late and missing, for one output or both; resets, gaps, NaN."""
    rng = np.random.default_rng(seed)
    bins = len(p.X)
    X, Y = p.X.copy(), p.Y.copy()
    X[rng.random(bins) < 0.05, 0] = np.nan
    Y[rng.random(Y.shape) < 0.1] = np.nan
    return {
        "X": X,
        "Y": Y,
        "weight": p.weight * (rng.random((bins, 1)) < 0.8),
        "arrives": np.minimum(np.arange(bins) // 6 * 6 + 8, bins + 2),
        "observed": rng.random(bins) < 0.9,
        "reset": rng.random(bins) < 0.08,
    }


@pytest.fixture
def watched(monkeypatch):
    """What the replay and the rules beside it did: (rule, weights a record was learned with, weights after, gradient)
    per rule and record, and the replay's last state.
    """
    looks, replays = [], []

    class Watched(diagnostics._Passive):
        def look(self, replay, W, C):
            super().look(replay, W, C)
            after = replay.arrays["W"][0].copy(), replay.arrays["C"][0].copy()
            looks.append((self.rule, (W[0], C[0]), after, (self.W_gradient.copy(), self.C_gradient.copy())))

    def watched_run(state, *arguments, **options):
        predictions, state = run(state, *arguments, **options)
        if options.get("in_place") and state.learner.optimizer != Momentum(0.0, momentum=0.0):
            replays[:] = [state]
        return predictions, state

    monkeypatch.setattr(diagnostics, "_Passive", Watched)
    monkeypatch.setattr(diagnostics, "run", watched_run)
    return looks, replays


PARTS = [
    ("tanh", Immediate(), RMSprop(1e-2)),
    ("gru", RTRL(), SGD(1e-2, clip=0.5)),
    ("gru_textbook", Window(3), Adam(1e-2)),
    ("lstm", SnAp1(), LARS(1e-2)),
    ("lru_skip", RULES["uoro"], RMSprop(1e-2, schedule=Schedule("cosine", length=30.0, warm_up=5.0))),
    ("leaky", RULES["rflo"], SGD(1e-2, weight_decay=0.1)),
    ("mingru", Readout(), SGD(1e-2)),
]


@pytest.mark.parametrize("at_most", [1, 4])
@pytest.mark.parametrize(("cell", "rule", "optimizer"), PARTS, ids=[f"{c}-{r.name}" for c, r, _ in PARTS])
def test_the_run_is_left_as_it_is_and_the_replay_is_it_again(watched, cell, rule, optimizer, at_most):
    p = problem(cells()[cell], n_bins=BINS, n=3)
    taught = learner(p, rule, optimizer, average=0.9, max_updates_per_bin=at_most)
    _, begin = run(start(taught, p.W, p.C, p.hidden), p.X[:7], p.Y[:7], arrives=np.arange(7) + 5)
    before, stream = begin.copy(), stream_of(p)
    predictions, end = run(begin, **stream)
    # Only what has come by the end is worked off: something must be left to wait, and something must have been dropped.
    assert end.counter(1) > end.counter(2)
    assert end.counter(5) > 0
    diagnosis = diagnose(begin, **stream, rules=(Immediate(), SnAp1()))
    replayed = replace(watched[1][0], learner=taught)
    np.testing.assert_array_equal(diagnosis.predictions, predictions)
    for name, array in end.arrays.items():
        np.testing.assert_array_equal(diagnosis.state.arrays[name], array, err_msg=name)
        np.testing.assert_array_equal(replayed.arrays[name], array, err_msg=name)
        np.testing.assert_array_equal(begin.arrays[name], before.arrays[name], err_msg=name)
    assert len(diagnosis.table["bin"]) == int(end.counter(4)[0] - begin.counter(4)[0])
    # A burst is worked off by several records a bin, which share a row number.
    assert (np.bincount(diagnosis.table["bin"]).max() > 1) == (at_most > 1)


OWN = [
    (cell, name)
    for cell, names in {"tanh": RULES, "gru_textbook": RULES, "lru": ("rtrl", "uoro", "trace", "window")}.items()
    for name in names
    if defined(cells()[cell], RULES[name])
]


@pytest.mark.parametrize(("cell", "name"), OWN)
def test_the_rule_that_learns_seen_from_beside_gives_the_gradient_it_learned_with(watched, cell, name):
    p = problem(cells()[cell], n_bins=BINS, n=3)
    taught = learner(p, RULES[name], SGD(1e-2))
    # In the middle of a stretch: with a memory, and with records that wait.
    _, begin = run(start(taught, p.W, p.C, p.hidden, seeds=[5]), p.X[:7], p.Y[:7], arrives=np.arange(7) + 4)
    diagnose(begin, **stream_of(p, 1), rules=(replace(RULES[name]),))
    assert len(watched[0]) > 20
    for _, before, after, gradient in watched[0]:
        for theta, moved, g in zip(before, after, gradient, strict=True):
            np.testing.assert_array_equal(theta - 1e-2 * g, moved)
    assert sum(np.abs(g).max() > 1e-6 for *_, (g, _) in watched[0]) > 15 or name == "readout"


def test_compiled_and_beside_the_torch_backend_likewise(watched):
    p = problem(cells()["gru"], n_bins=BINS, n=5)
    # The kernel of a dozen in test_online: nothing new to compile. Without momentum it is SGD.
    taught = learner(p, Window(4), Momentum(1e-2, momentum=0.0))
    stream, tables = stream_of(p), {}
    for backend in ("compiled", "torch", "plain"):
        begin = start(replace(taught, backend=backend), p.W, p.C, p.hidden)
        watched[0].clear()
        tables[backend] = diagnose(begin, **stream, rules=(Window(4),)).table
        for name, array in run(begin, **stream)[1].arrays.items():
            if not name.startswith("ring_"):  # which is longer, for what the window beside it reads
                np.testing.assert_array_equal(watched[1][0].arrays[name], array, err_msg=name)
        for _, before, after, gradient in watched[0]:
            for theta, moved, g in zip(before, after, gradient, strict=True):
                tolerance = 1e-12 if backend == "torch" else 1e-15
                np.testing.assert_allclose(moved, theta - 1e-2 * g, rtol=tolerance, atol=tolerance)
    for backend in ("compiled", "torch"):
        for name, column in tables["plain"].items():
            np.testing.assert_allclose(tables[backend][name], column, rtol=1e-9, atol=1e-12, err_msg=name)


def test_a_rule_with_a_fresh_error_is_told_from_the_one_without():
    p = problem(cells()["gru"], n_bins=BINS)
    begin = start(learner(p, Immediate(fresh_error=True), SGD(0.05)), p.W, p.C, p.hidden)
    late = np.arange(BINS) + 4
    table = diagnose(begin, p.X, p.Y, p.weight, late, rules=(Window(1), Immediate())).table
    np.testing.assert_array_equal(table["norm_own"], table["norm_window"])
    assert np.abs(table["norm_own"] / table["norm_immediate"] - 1.0).max() > 1e-2


def brute_force(p, weights=None):
    """D, D J_{t-1}, P_t and q_t of every bin, everything by autograd; at fixed weights, or at those (W, C) of each."""
    update, _ = p.network.cell.make(torch)
    state, J = torch.tensor(p.hidden[0]), None
    for t, (x, y, w) in enumerate(zip(torch.tensor(p.X), torch.tensor(p.Y), torch.tensor(p.weight), strict=True)):
        W, C = (torch.tensor(v) for v in (weights[t] if weights else (p.W, p.C)))
        P, D = torch.autograd.functional.jacobian(lambda W, s, x=x: oracle.step(p.network, update, W, x, s), (W, state))
        past = torch.einsum("kjlm,lmic->kjic", D, J) if J is not None else torch.zeros_like(P)
        J = past + P
        state = oracle.step(p.network, update, W, x, state).detach().requires_grad_()
        loss = oracle.loss_of(oracle.output(p.network, C, x, state), y, w, "squared")
        (q,) = torch.autograd.grad(loss, state)
        state = state.detach()
        yield D.reshape(q.numel(), -1).numpy(), past.numpy(), P.numpy(), q.numpy()


@every_cell
def test_every_column_is_its_definition_by_autograd(cell):
    p = problem(cell)
    # Labels three bins late: what is measured belongs to the record, not to the bin in which it is learned from.
    table = diagnose(
        start(learner(p, Immediate(), SGD(0.0)), p.W, p.C, p.hidden),
        *(np.vstack([array, array]) for array in (p.X, p.Y)),
        np.vstack([p.weight, 0 * p.weight]),
        arrives=np.arange(2 * T) + 3,
    ).table
    np.testing.assert_array_equal(table["bin"], np.arange(T) + 3)
    groups = p.network.groups()
    for t, (D, past, P, q) in enumerate(brute_force(p)):
        diagonal = np.array([D[i, i] for i in range(len(D))])
        immediate, late = (np.einsum("kj,kjic->ic", q, part) for part in (P, past))
        exact = immediate + late
        expected = {
            "d_diagonal_mean": diagonal.mean(),
            "d_diagonal_abs_mean": np.abs(diagonal).mean(),
            "spectral_radius": np.abs(np.linalg.eigvals(D)).max(),
            "past_over_immediate": np.sqrt((past**2).sum() / (P**2).sum()),
            "norm_immediate": np.sqrt((immediate**2).sum()),
            "norm_own": np.sqrt((immediate**2).sum()),
            "norm_past": np.sqrt((late**2).sum()),
            "norm_rtrl": np.sqrt((exact**2).sum()),
            "cosine_immediate": (immediate * exact).sum() / np.sqrt((immediate**2).sum() * (exact**2).sum()),
        }
        expected["cosine_own"] = expected["cosine_immediate"]
        for group in np.unique(groups):
            part = immediate[:, groups == group]
            expected[f"grad_norm_{group}"] = np.sqrt((part**2).sum())
            expected[f"grad_rms_{group}"] = np.sqrt((part**2).mean())
        step = replace(p, X=p.X[: t + 1], Y=p.Y[: t + 1], weight=p.weight[: t + 1])
        readout = gradients(step, Readout())[1]
        if t:
            readout = readout - gradients(replace(p, X=p.X[:t], Y=p.Y[:t], weight=p.weight[:t]), Readout())[1]
        bias = np.arange(readout.shape[1]) == p.network.output_bias
        for group, part in (("readout", readout[:, ~bias]), ("output_bias", readout[:, bias])):
            expected[f"grad_norm_{group}"] = np.sqrt((part**2).sum())
            expected[f"grad_rms_{group}"] = np.sqrt((part**2).mean())
        assert set(expected) == set(table) - {"bin"}
        for name, value in expected.items():
            np.testing.assert_allclose(table[name][t], value, rtol=1e-8, atol=1e-12, err_msg=f"{name}, record {t}")


@pytest.mark.parametrize("cell", ["tanh", "lstm", "gru_textbook"])
def test_rules_beside_see_the_weights_as_they_move(watched, cell):
    """J is as stale as RTRL's own would be: each D and P at the weights that its record was learned with."""
    p = problem(cells()[cell], n_bins=15)
    begin = start(learner(p, Immediate(), SGD(5e-2)), p.W, p.C, p.hidden)
    table = diagnose(begin, p.X, p.Y, p.weight).table
    looks = [[look for look in watched[0] if look[0].name == name] for name in ("immediate", "rtrl")]
    weights = [before for _, before, *_ in looks[1]]
    assert np.abs(weights[-1][0] - p.W).max() > 0.01
    for t, (D, past, P, q) in enumerate(brute_force(p, weights)):
        for seen, J in zip(looks, (P, P + past), strict=True):
            np.testing.assert_allclose(seen[t][3][0], np.einsum("kj,kjic->ic", q, J), rtol=1e-8, atol=1e-11)
        found = table["spectral_radius"][t], table["past_over_immediate"][t]
        expected = np.abs(np.linalg.eigvals(D)).max(), np.sqrt((past**2).sum() / (P**2).sum())
        np.testing.assert_allclose(found, expected, rtol=1e-8)


@every_cell
def test_snap1_points_where_rtrl_does_only_on_diagonal_recurrence(cell):
    p = problem(cell, n_bins=20)
    begin = start(learner(p, Immediate(), SGD(1e-3)), p.W, p.C)
    table = diagnose(begin, p.X, p.Y, p.weight, rules=(SnAp1(), RTRL(), Immediate())).table
    # The first record of a stretch has no past.
    assert (table["past_over_immediate"][0], table["norm_past"][0]) == pytest.approx((0.0, 0.0), abs=1e-13)
    assert np.median(table["past_over_immediate"][1:]) > 0.1
    np.testing.assert_allclose(table["cosine_immediate"][0], 1.0, rtol=1e-12)
    assert np.median(table["cosine_immediate"][1:]) < 0.999
    if dense(cell):
        assert np.median(table["cosine_snap1"][1:]) < 0.999
    else:
        np.testing.assert_allclose(table["cosine_snap1"], 1.0, rtol=1e-12)
        np.testing.assert_allclose(table["norm_snap1"], table["norm_rtrl"], rtol=1e-12)


def test_a_reset_takes_the_past_away():
    p = problem(cells()["tanh"], n_bins=20)
    begin = start(learner(p, Immediate(), SGD(1e-2)), p.W, p.C)
    table = diagnose(begin, p.X, p.Y, p.weight, reset=np.arange(20) == 12).table
    np.testing.assert_array_equal(np.flatnonzero(table["norm_past"] == 0.0), [0, 12])


def test_concentration_is_of_the_gradient_summed_over_a_window():
    p = problem(cells()["tanh"], n_bins=20)
    begin = start(learner(p, Trace(0.5), SGD(0.0)), p.W, p.C, p.hidden)
    quiet = p.weight * (np.arange(20) % 5 > 0)[:, None]
    diagnosis = diagnose(begin, p.X, p.Y, quiet, every=7, window=4)
    np.testing.assert_array_equal(diagnosis.concentration["bin"], [4, 9, 14, 19])
    np.testing.assert_array_equal(diagnosis.table["bin"], np.flatnonzero(quiet[:, 0])[::7])
    for name, rules in {"own": (Trace(0.5),), "rtrl": (RTRL(),), "past": (RTRL(), Immediate())}.items():
        total = 0.0
        for sign, rule in zip((1.0, -1.0), rules, strict=False):
            whole, first = (gradients(replace(p, X=p.X[:t], Y=p.Y[:t], weight=quiet[:t]), rule)[0] for t in (20, 15))
            total = total + sign * (whole - first)
        power = np.linalg.eigvalsh(total @ total.T)
        share = power / power.sum()
        found = [diagnosis.concentration[f"{what}_{name}"][-1] for what in ("top_share", "effective_rank")]
        np.testing.assert_allclose(found, [share.max(), np.exp(-(share * np.log(share)).sum())], rtol=1e-7)


def test_concentration_of_known_matrices():
    p = problem(cells()["tanh"], n_bins=6)
    begin = start(learner(p, Immediate(), SGD(0.0)), p.W, p.C, p.hidden)
    single = diagnose(begin, p.X, p.Y, p.weight, window=1).concentration  # one record: p ⊗ z
    np.testing.assert_allclose(single["top_share_immediate"], 1.0, rtol=1e-12)
    np.testing.assert_allclose(single["effective_rank_immediate"], 1.0, rtol=1e-10)
    assert (single["top_share_rtrl"][1:] < 0.999).all()
    measured = diagnostics._measured({"same": 1e-200 * np.eye(4, 9), "none": np.zeros((4, 9))})
    np.testing.assert_allclose([measured["top_share_same"], measured["effective_rank_same"]], [0.25, 4.0], rtol=1e-12)
    assert np.isnan([measured["top_share_none"], measured["effective_rank_none"]]).all()


def test_a_window_beside_a_run_reads_only_what_the_ring_has_kept():
    p = problem(cells()["tanh"], n_bins=20)
    begin = start(learner(p, Immediate(), SGD(0.0)), p.W, p.C, p.hidden)
    seen = {
        steps: diagnose(begin, p.X, p.Y, p.weight, rules=(Window(steps), RTRL())).table["norm_window"]
        for steps in (2, 3, 6)
    }
    _, middle = run(begin, p.X[:10], p.Y[:10], p.weight[:10])
    length = middle.arrays["ring_z"].shape[1]
    later = diagnose(middle, p.X[10:], p.Y[10:], p.weight[10:], rules=(Window(6),)).table["norm_window"]
    # The first record has no more behind it than the ring, the sixth has everything.
    np.testing.assert_allclose(later[0], seen[length + 1][10], rtol=1e-10)
    np.testing.assert_allclose(later[6:], seen[6][16:], rtol=1e-10)
    assert abs(later[0] - seen[6][10]) > 1e-6


def test_summary_is_the_medians_of_what_is_defined():
    p = problem(cells()["tanh"], n_bins=20)
    begin = start(learner(p, Immediate(), SGD(1e-2)), p.W, p.C)
    diagnosis = diagnose(begin, p.X, p.Y, p.weight, window=5)
    medians = summary(diagnosis)
    assert medians["spectral_radius"] == np.median(diagnosis.table["spectral_radius"])
    assert medians["top_share_past"] == np.median(diagnosis.concentration["top_share_past"])
    assert set(medians) == (set(diagnosis.table) | set(diagnosis.concentration)) - {"bin"}
    diagnosis.table["cosine_immediate"][::2] = np.nan
    assert summary(diagnosis)["cosine_immediate"] == np.median(diagnosis.table["cosine_immediate"][1::2])
    diagnosis.table["cosine_immediate"][:] = np.nan
    assert np.isnan(summary(diagnosis)["cosine_immediate"])


def test_a_run_without_labels_and_a_network_that_diverges():
    p = problem(cells()["linear"], n_bins=30)
    silent = diagnose(start(learner(p, Immediate(), SGD(1e-2)), p.W, p.C), p.X)
    assert {**silent.table, **silent.concentration} == {"bin": pytest.approx([])}
    assert summary(silent) == {}
    with np.errstate(all="ignore"):
        lost = diagnose(start(learner(p, Immediate(), SGD(1e3)), p.W, p.C), p.X, p.Y, p.weight, window=5)
    assert not lost.state.finite.any()
    assert len(lost.table["bin"]) == 30
    assert np.isnan(lost.table["spectral_radius"][-1])
    assert np.isnan(lost.concentration["top_share_rtrl"][-1])


def test_what_cannot_be_diagnosed_is_refused_by_name():
    p = problem(cells()["mgu"])
    begin = start(learner(p, Immediate()), p.W, p.C)
    wide = Network(cells()["tanh"], M_IN, 257, M_OUT)
    large = start(Learner(wide, Immediate(), SGD(0.0), backend="plain"), *wide.initial_weights(0))
    module = ModuleNetwork(module_of(p.network.cell, p.network), M_IN, N, M_OUT)
    opaque = start(Learner(module, Immediate(), SGD(0.0), backend="torch"), *module.initial_weights(0))
    for state, options, message in (
        (start(learner(p, Immediate()), np.stack([p.W] * 2), np.stack([p.C] * 2)), {}, "one replica, got 2"),
        (begin, {"every": 0}, "every must be at least 1"),
        (begin, {"window": 0}, "window must be at least 1"),
        (begin, {"rules": (Window(2), Window(3))}, "different names, got window, window"),
        (begin, {"rules": (RULES["eprop"],)}, "eprop is not defined for 'mgu'"),
        (opaque, {}, "is a torch module"),
        (large, {}, r"n_hidden=257 \(an influence matrix of 0.1 GiB\)"),
    ):
        with pytest.raises(InputError, match=message):
            diagnose(state, p.X, p.Y, **options)
    with pytest.raises(InputError, match="arrives"):
        diagnose(begin, p.X, p.Y, arrives=np.zeros(T))
    assert len(diagnose(large, p.X[:1], p.Y[:1], rules=(Immediate(),)).table["bin"]) == 1
