"""The recommended decoder in a report: compared with rivals, bounds and itself without one of its parts."""

from pathlib import Path

import pytest
from long_tables import blocks, study

from bci_adapt.experiment.config import arm_name, load_config
from bci_adapt.ground.statistics import holm
from bci_adapt.results import studies
from bci_adapt.results.report import comparisons
from bci_adapt.results.table import long_table


@pytest.fixture(scope="module")
def rows():
    return long_table(study(5, metrics=("r2",)))


def test_it_is_compared_where_it_was_run_and_only_there(rows):
    assert comparisons.recommended(rows, "velocity") == []
    renamed = rows.assign(arm=rows["arm"].replace({"immediate_sgd": comparisons.RECOMMENDED}))
    entries = comparisons.recommended(renamed, "velocity", blocks(renamed))
    found = {(each["first"], each["second"]) for each in entries}
    assert {(comparisons.RECOMMENDED, "rls"), (comparisons.RECOMMENDED, "normaliser"), ("normaliser", "rls")} <= found
    assert not any(each["primary"] for each in entries)
    assert [each["p_holm"] for each in entries] == pytest.approx(holm([each["p_sign_flip"] for each in entries]))


def test_the_primary_comparison_is_not_tested_twice(rows):
    renamed = rows.assign(arm=rows["arm"].replace({"immediate_sgd": comparisons.RECOMMENDED}))
    primary = (comparisons.RECOMMENDED, "gru"), ("rls", "")
    every = comparisons.recommended(renamed, "velocity")
    others = comparisons.recommended(renamed, "velocity", primary=primary)
    pairs = [((each["first"], each["first_cell"]), (each["second"], each["second_cell"])) for each in others]
    assert len(others) == len(every) - 1
    assert primary not in pairs


def test_its_comparisons_are_those_of_the_whole_table(rows):
    pair = ("immediate_sgd", "gru"), ("rls", "")
    renamed = rows.assign(arm=rows["arm"].replace({"immediate_sgd": comparisons.RECOMMENDED}))
    own = next(
        each
        for each in comparisons.recommended(renamed, "velocity")
        if (each["first"], each["first_cell"], each["second"]) == (comparisons.RECOMMENDED, "gru", "rls")
    )
    whole = studies.comparisons(rows, pair)[0]
    assert (own["mean"], own["low"], own["high"]) == (whole["mean"], whole["low"], whole["high"])


def test_names_are_those_of_its_config():
    config = load_config(Path(__file__).parents[1] / "configs" / "wrist_recommended.toml")
    assert {arm_name(arm) for arm in config.arms} == {comparisons.RECOMMENDED, *comparisons.WITHOUT_A_PART}
