"""One thread while something runs, and the others back afterwards, whatever happened."""

import pytest
import torch
from threadpoolctl import threadpool_info

from bci_adapt.ground.threads import one_thread


def threads():
    return [each["num_threads"] for each in threadpool_info()] + [torch.get_num_threads()]


@pytest.mark.parametrize("fails", [False, True])
def test_threads_are_given_back(fails):
    own = torch.get_num_threads()
    torch.set_num_threads(2)
    before = threads()
    try:
        with one_thread():
            assert set(threads()) == {1}
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert threads() == before
    torch.set_num_threads(own)
