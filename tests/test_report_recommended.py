"""The recommended decoder in a report: compared with rivals, bounds and itself without one of its parts."""

from pathlib import Path

import pytest
from long_tables import about, blocks, study

from bci_adapt.experiment.comparisons import compared, recommended_section
from bci_adapt.experiment.config import load_config
from bci_adapt.ground.statistics import holm
from bci_adapt.results import studies
from bci_adapt.results.table import long_table

RECOMMENDED = recommended_section().name


def recommended(rows, stored=None, primary=None):
    """The comparisons of the recommended decoder in a run of these rows."""
    pairs = studies.declared(about(rows)["comparisons"], "recommended")
    return studies.comparisons(rows, [pair for pair in pairs if pair != primary], blocks=stored)


@pytest.fixture(scope="module")
def rows():
    return long_table(study(5, metrics=("r2",)))


def test_it_is_compared_where_it_was_run_and_only_there(rows):
    assert recommended(rows) == []
    renamed = rows.assign(arm=rows["arm"].replace({"immediate_sgd": RECOMMENDED}))
    entries = recommended(renamed, blocks(renamed))
    found = {(each["first"], each["second"]) for each in entries}
    assert {(RECOMMENDED, "rls"), (RECOMMENDED, "normaliser"), ("normaliser", "rls")} <= found
    assert not any(each["primary"] for each in entries)
    assert [each["p_holm"] for each in entries] == pytest.approx(holm([each["p_sign_flip"] for each in entries]))


def test_the_primary_comparison_is_not_tested_twice(rows):
    renamed = rows.assign(arm=rows["arm"].replace({"immediate_sgd": RECOMMENDED}))
    primary = (RECOMMENDED, "gru"), ("rls", "")
    every = recommended(renamed)
    others = recommended(renamed, primary=primary)
    pairs = [((each["first"], each["first_cell"]), (each["second"], each["second_cell"])) for each in others]
    assert len(others) == len(every) - 1
    assert primary not in pairs


def test_its_comparisons_are_those_of_the_whole_table(rows):
    pair = ("immediate_sgd", "gru"), ("rls", "")
    renamed = rows.assign(arm=rows["arm"].replace({"immediate_sgd": RECOMMENDED}))
    own = next(
        each
        for each in recommended(renamed)
        if (each["first"], each["first_cell"], each["second"]) == (RECOMMENDED, "gru", "rls")
    )
    whole = studies.comparisons(rows, [pair])[0]
    assert (own["mean"], own["low"], own["high"]) == (whole["mean"], whole["low"], whole["high"])


def test_it_is_compared_with_itself_without_each_of_its_parts():
    config = load_config(Path(__file__).parents[1] / "configs" / "wrist_recommended.toml")
    table = compared(config.network.cells, config.arms)
    against = {row["second"] for row in table if (row["family"], row["first"]) == ("recommended", RECOMMENDED)}
    without = {arm.name for arm in config.arms} - {RECOMMENDED}
    assert without < against, "the config asks for nothing else"
    assert against - without == {"rls", "ridge_oracle", "normaliser", "fine_tuned", "network_oracle", "joint_oracle"}
