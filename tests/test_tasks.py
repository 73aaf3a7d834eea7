"""Every task keeps the contract of a seeded stream with a change point; each is what it says."""

import numpy as np
import pytest

from bci_adapt.errors import InputError
from bci_adapt.tasks.base import task, tasks


@pytest.mark.parametrize("name", tasks())
def test_streams_are_seeded_and_shaped(name):
    made = task(name)
    x, y, change = made.stream(200, seed=3)
    again = made.stream(200, seed=3)
    other = made.stream(200, seed=4)
    assert x.shape[0] == y.shape[0] == 200
    assert 0 < change < 200
    assert np.array_equal(x, again[0])
    assert np.array_equal(y, again[1], equal_nan=True)
    assert not np.array_equal(x, other[0])
    with pytest.raises(InputError, match="at least"):
        made.stream(1, seed=0)


def test_sine_changes_frequency_without_a_jump():
    x, y, change = task("sine", before=0.04, after=0.1).stream(2000, seed=0)
    assert np.array_equal(x[1:], y[:-1])
    assert np.abs(np.diff(x[:, 0])).max() <= 2 * np.pi * 0.1 + 1e-9
    for part, frequency in ((x[:change, 0], 0.04), (x[change:, 0], 0.1)):
        assert np.argmax(np.abs(np.fft.rfft(part))) == round(frequency * len(part))


def test_recall_changes_its_delay():
    x, y, change = task("recall", before=2, after=5).stream(100, seed=0)
    assert np.isnan(y[:2]).all()
    assert np.array_equal(y[2:change], x[: change - 2])
    assert np.array_equal(y[change:], x[change - 5 : -5])
