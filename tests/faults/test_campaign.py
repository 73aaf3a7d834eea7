"""The campaign of faults in its short form; the whole of it is `make faults`."""

import pytest
from faults import campaign

from bci_adapt.ground.storage import cache_root


@pytest.fixture
def short(tmp_path):
    kernels = cache_root() / "kernels"
    kernels.mkdir(parents=True, exist_ok=True)
    return campaign.Campaign(tmp_path, kernels, seed=1, workers=0)


def test_a_killed_run_changes_no_score(short):
    campaign.kills(short, "run", 1)
    assert short.lost == []
    assert sum(short.tried.values()) == 1


def test_a_killed_fetch_loses_nothing(short):
    campaign.kills(short, "fetch", 2)
    assert short.lost == []


def test_what_is_lost_is_counted(short):
    short.note("a fault", "somewhere", "another outcome")
    short.note("a fault", "somewhere")
    assert "| a fault | 2 | 1 |" in campaign.table(short)
    assert short.lost == ["a fault: somewhere: another outcome"]
