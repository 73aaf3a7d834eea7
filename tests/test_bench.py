"""The benchmark of learning: what its rows hold, and that a rival must compute the same thing. No figure is judged."""

import importlib.util
import io
import json

import numpy as np
import pytest
import torch
from rich.console import Console

from bci_adapt.cli.bench import learning as bench
from bci_adapt.cli.bench.cases import Case, Ours
from bci_adapt.cli.bench.learning_tables import tables
from bci_adapt.cli.bench.rivals import (
    JAX,
    TORCH,
    Rivals,
    TorchRival,
    jax_begin,
    require_same,
    rival_timers,
    rivals_at_hand,
)
from bci_adapt.decoders.recommendation import recommended
from bci_adapt.learning.credit.base import rule

KEYS = {
    "bench", "cell", "rule", "optimizer", "n", "m", "dtype", "backend", "steps_per_s", "floor_steps_per_s", "ratio",
    "aim", "rivals", "peak_bytes",
}  # fmt: skip
HAS_JAX = importlib.util.find_spec("jax") is not None


@pytest.fixture(scope="module")
def rows():
    return bench.learning(quick=True)


def test_every_kind_has_rows_that_are_whole(rows):
    assert {row["bench"] for row in rows} == {"immediate", "rtrl", "rules", "latency", "deployed", "memory"}
    for row in rows:
        assert row.keys() >= KEYS
        figures = [value for value in [*row.values(), *row["rivals"].values()] if isinstance(value, int | float)]
        assert np.isfinite(figures).all()
        assert min(figures) > 0
        if row["bench"] == "memory":
            assert row["steps_per_s"] is row["floor_steps_per_s"] is row["ratio"] is None
        else:
            assert row["ratio"] == pytest.approx(row["steps_per_s"] / row["floor_steps_per_s"])
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


def test_the_floor_of_immediate_is_the_longer_of_its_two_parts(rows):
    row = next(row for row in rows if row["bench"] == "immediate")
    assert row["floor_steps_per_s"] == min(row["arithmetic_steps_per_s"], row["traffic_steps_per_s"])
    assert set(row["rivals"]) == ({TORCH, JAX} if HAS_JAX else {TORCH})


def test_memory_is_measured_apart(rows):
    for row in (row for row in rows if row["bench"] == "memory"):
        # What stays cannot be more than what was there at most, up to pages that were in use before.
        assert row["peak_bytes"] >= row["live_bytes"]
        assert row["rss_growth_bytes"] > 0.9 * row["live_bytes"]
        assert row["live_words"] < row["live_words_at_most"]


def test_percentiles_are_in_order(rows):
    latencies = [row for row in rows if row["bench"] in ("latency", "deployed")]
    assert [row["call"] for row in latencies] == ["run, one bin in place", "decoder.step", "recommended().step"]
    for row in latencies:
        assert row["p50_us"] <= row["p95_us"] <= row["p99_us"]
        assert row["bins"] >= 50
    assert latencies[-1]["empty_p50_us"] <= latencies[-1]["empty_p99_us"] < latencies[-1]["p50_us"]
    assert 0 < latencies[-1]["multiplications"] < latencies[-1]["fine_tuning_multiplications"]


def test_the_deployed_case_is_the_recommended_decoder():
    case, made = bench._recommended(96), recommended()
    assert (case.cell, case.n, case.m) == (made.cell, made.n_hidden, 96)
    assert case.rule == rule(made.rule, **made.rule_constants)


def test_tables_fit_100_columns(rows):
    console = Console(width=100, file=io.StringIO())
    for table in tables(rows):
        console.print(table)
        assert console.measure(table).maximum <= 100
    assert "decoder.step" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_rule_is_called_by_its_steps_too():
    assert Case("tanh", 4, 2, rule("window")).label == "window(4)"


@pytest.mark.parametrize("cell", ["tanh", "gru", "lstm"])
def test_torch_rival_computes_the_same_thing(cell):
    case = Case(cell, 12, 5)
    ours = Ours(case).restart(50)
    theirs = TorchRival(case.network, *case.weights, *case.stream(4096)).work(50)
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-9)


@pytest.mark.parametrize("broken", [{"alpha": 0.98}, {"lr": 1.1e-5}, {"eps": 1e-6}])
def test_a_rival_with_another_optimiser_is_refused(monkeypatch, broken):
    true = torch.optim.RMSprop
    monkeypatch.setattr(torch.optim, "RMSprop", lambda weights, **constants: true(weights, **{**constants, **broken}))
    case = Case("tanh", 12, 5)
    with pytest.raises(RuntimeError, match=r"torch autograd.*computes something else"):
        rival_timers(case, Ours(case), Rivals(None), 1e-3)


def test_predictions_that_are_not_numbers_are_refused():
    with pytest.raises(RuntimeError, match="computes something else"):
        require_same("a rival", np.zeros((3, 2)), np.full((3, 2), np.nan))


@pytest.mark.skipif(not HAS_JAX, reason="jax is not installed")
def test_jax_rival_computes_the_same_thing_and_is_refused_where_it_does_not():
    with rivals_at_hand() as rivals:
        assert rivals.jax is not None
        for cell in ("tanh", "gru", "lstm"):
            case = Case(cell, 12, 5)
            X, Y = case.stream(4096)
            ours = Ours(case).restart(50)
            theirs = rivals.jax.submit(jax_begin, case.network, *case.weights, X[:60], Y[:60]).result()
            require_same("jax", ours, theirs[:50])
            other = rivals.jax.submit(jax_begin, case.network, *case.weights, X[:60], -Y[:60]).result()
            with pytest.raises(RuntimeError, match="computes something else"):
                require_same("jax", ours, other[:50])


def test_without_jax_its_figures_are_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with rivals_at_hand() as rivals:
        assert rivals.jax is None


def test_the_sweep_says_what_a_job_costs_and_that_a_second_run_executes_nothing(call):
    code, told, _ = call("bench", "sweep", "--jobs", "40", "--workers", "1", "--json", "-")
    found = json.loads(told)
    assert code == 0
    assert 0 < found["overhead"] < 40 * 1000
    assert 20 < found["peak"] < 300
    assert 0 < found["again"] < 40 * found["overhead"] / 1000
