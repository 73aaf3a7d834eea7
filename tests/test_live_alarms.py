"""Alarms of drift find a change, soon, and find none where there is none."""

import numpy as np
import pytest

from bci_adapt.errors import InputError
from bci_adapt.live.alarms import DETECTORS, InputShift, detector


def found(name, values, **constants):
    """Where a detector says that something has changed."""
    told = detector(name, **constants)
    return [t for t, value in enumerate(values) if told.add(float(value))]


@pytest.mark.parametrize("name", DETECTORS)
def test_a_step_is_found_soon_and_noise_is_not(name):
    if name == "adwin":
        pytest.importorskip("river")
    constants = {"threshold": {"limit": 2.0}}.get(name, {})
    noise = 1.0 + 0.3 * np.random.default_rng(0).standard_normal(1200)
    assert found(name, noise, **constants) == []
    stepped = noise + 3.0 * (np.arange(1200) >= 600)
    first = found(name, stepped, **constants)[0]
    assert 600 <= first <= 650
    # Things that get better are no alarm.
    assert found(name, noise - 3.0 * (np.arange(1200) >= 600), **constants) == []


def test_cusum_is_its_recursion():
    values = np.random.default_rng(1).standard_normal(200)
    values[100:] += 1.5
    mean, spread, total = values[:60].mean(), values[:60].std(), 0.0
    for t in range(60, 200):
        total = max(0.0, total + (values[t] - mean) / spread - 0.5)
        if total > 10.0:
            break
    assert found("cusum", values)[0] == t < 199


def test_the_shift_of_inputs_is_their_distance_from_the_training_day():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((400, 6))
    shift = InputShift(x.mean(0), x.var(0), 20)
    seconds = [value for value in map(shift.add, x) if value is not None]
    assert len(seconds) == 20
    assert np.mean(seconds) == pytest.approx(1 / 20, rel=0.3)  # the mean of 20 bins that drifted by nothing
    off = (x[:20].mean(0) - x.mean(0)) / np.sqrt(x.var(0) + 0.01)
    assert seconds[0] == pytest.approx(np.mean(off**2))
    moved = [value for value in map(shift.add, x + 1.0) if value is not None]
    assert np.mean(moved) == pytest.approx(1.0 / (x.var(0) + 0.01).mean(), rel=0.2)


def test_doors():
    with pytest.raises(InputError, match="unknown detector 'ear'"):
        detector("ear")
    with pytest.raises(InputError, match=r"cusum: .*unexpected keyword"):
        detector("cusum", delta=1.0)
