"""Columns mixed up on purpose and found again: known maps surely, free assignments in part, foreign ones not at all."""

import numpy as np
import pytest
import xarray as xr

from bci_adapt.cli.bench import wirings as bench
from bci_adapt.data.same_columns.fingerprints import of_counts
from bci_adapt.data.same_columns.wiring import assigned_freely, known_maps, rewired, wiring
from bci_adapt.errors import InputError

M, BIN_S = 64, 0.1


def day(seed, animal=0, order=None, drift=0.25, minutes=3):
    """The fingerprint of a day of channels that fire with fifteen signals; loadings and rates are the animal's."""
    fixed, rng = np.random.default_rng(animal), np.random.default_rng([seed, 1])
    loadings = fixed.normal(size=(15, M)) + drift * rng.normal(size=(15, M))
    n = round(60 * minutes / BIN_S)
    signals = rng.normal(size=(n // 3 + 1, 15)).repeat(3, axis=0)[:n]
    rate = np.log(1.5) + 0.12 * signals @ loadings + fixed.normal(size=M) * 0.6
    counts = rng.poisson(np.exp(np.clip(rate, -4, 3))).astype(np.uint16)
    return of_counts(counts if order is None else counts[:, order], bin_s=BIN_S, session_id=f"day{seed}")


@pytest.fixture(scope="module")
def days():
    return [day(seed) for seed in range(4)]


def test_known_maps_are_orders_and_banks_come_in_any():
    maps = known_maps(96)
    assert all(sorted(order.tolist()) == list(range(96)) for order in maps.values())
    assert len({tuple(order) for order in maps.values()}) == len(maps)
    assert maps["banks of 32 in the order 3, 1, 2"][:3].tolist() == [64, 65, 66]
    assert [*known_maps(7)] == ["their names", "columns in reverse"]


@pytest.mark.parametrize("name", ["banks of 32 in the order 2, 1", "pairs of columns turned round"])
def test_a_known_map_is_found_and_is_certain(days, name):
    mixed_by = known_maps(M)[name]
    found = wiring(days, day(7, order=mixed_by))
    assert found.how == name, "these maps undo themselves"
    assert (mixed_by[found.order] == np.arange(M)).all()
    assert found.certain.all()
    assert found.kept > 0.3
    assert f"columns as by {name}" in found.sentence


def test_columns_all_mixed_up_are_found_and_what_is_certain_is_right(days):
    mixed_by = np.random.default_rng(0).permutation(M)
    found = wiring(days, day(7, order=mixed_by))
    right = mixed_by[found.order] == np.arange(M)
    assert found.how == "free"
    assert found.kept is None
    assert right.mean() > 0.7
    assert found.certain.mean() > 0.3
    assert right[found.certain].mean() > 0.95


def test_of_another_array_nothing_is_certain(days):
    found = wiring(days, day(9, animal=5))
    assert found.how == "free"
    assert found.certain.mean() < 0.05
    assert "no known map of columns fits" in found.sentence


def test_the_search_finds_what_equal_patterns_say():
    order = np.random.default_rng(1).permutation(M)
    one = day(0)
    assert (order[assigned_freely(one, one.wired(order))] == np.arange(M)).all()


def test_days_of_other_channels_are_refused(days):
    with pytest.raises(InputError, match="expected days with the same 32 channels"):
        wiring(days, days[0].on(np.arange(32)))


def test_a_session_is_rewired_under_its_own_names():
    session = xr.Dataset({"counts": (("time", "channel"), np.arange(6).reshape(2, 3))}, {"channel": ["a", "b", "c"]})
    made = rewired(session, np.array([2, 0, 1]))
    assert made["counts"].values.tolist() == [[2, 0, 1], [5, 3, 4]]
    assert made["channel"].values.tolist() == ["a", "b", "c"]
    assert made.attrs["columns_taken_from"] == ["c", "a", "b"]
    assert session["counts"].values.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_the_bench_weighs_what_is_certain_by_how_much_there_is():
    row = {"animal": "a", "mixed_by": bench.MIXED, "minutes": 1.0, "ordinary": 0.5, "mixed": 0.0, "undone": 0.3}
    rows = [{**row, "found": 0.4, "certain": 0.1, "right": 1.0}, {**row, "found": 0.6, "certain": 0.3, "right": 0.8}]
    rows.append({**row, "found": 0.5, "certain": 0.0, "right": None})
    said = bench.text(rows).splitlines()[-1]
    assert said == "| a | all columns | 1 | 3 | 50% | 13%, 85% | 0.50 | 0.00 | 0.30 |"
