"""No decoder of a run holds more of its training days than their raw counts: forty days are as possible as four."""

import json
import subprocess
import sys

import numpy as np
import pytest

from bci_adapt.decoders.base import decoders
from bci_adapt.decoders.inputs import Bins
from bci_adapt.decoders.lags import NormalEquations, lagged
from bci_adapt.decoders.wiener import WienerDecoder
from bci_adapt.learning.normaliser import Normaliser

N_BINS, N_CHANNELS, N_DAYS = 1000, 96, 40
RAW_MB = N_BINS * N_CHANNELS * 2 / 1e6  # a day as it is stored: uint16
# Counts as they are (1), for a network the same in float32 (2), and labels and flags, which are a tenth of them.
MOST = 4.0
SMALL = {name: {"n_hidden": 4, "n_updates": 2} for name in ("online_rnn", "fine_tuned", "replaying", "stacked")}
# Peak memory of a fork that fits a decoder, in MB: forks start with what their parent holds, alike for every one.
FIT = """
import json, os, resource, sys
from pathlib import Path
import numpy as np
import torch
import bci_adapt as ba
from bci_adapt.data.labelled import session_arrays
from bci_adapt.decoders.base import decoder_class
from bci_adapt.decoders.wiener import WienerDecoder
from bci_adapt.experiment.jobs import fit
from bci_adapt.ground.threads import one_thread

class Hoarder(WienerDecoder):
    def _fit(self, sessions):
        super()._fit(list(sessions))

out, decoders, n_bins, n_channels, numbers = Path(sys.argv[1]), *(json.loads(each) for each in sys.argv[2:])
rng = np.random.default_rng(0)
velocity = np.cumsum(rng.standard_normal((n_bins, 2)), axis=0) * 0.05
rates = np.exp(0.2 * (velocity - velocity.mean(axis=0)) @ rng.standard_normal((2, n_channels)))
session = ba.session(counts=rng.poisson(rates.clip(0, 20)), target=velocity, target_kind="recorded_velocity",
                     bin_s=0.05, target_time_s=0.05 * np.arange(1, n_bins + 1), target_units="cm/s", session_id="day",
                     channels=[f"e{i}" for i in range(n_channels)])
arrays = session_arrays(session, "recorded_velocity")
fit.job_arrays = lambda parameters, path: arrays._replace(
    X=np.roll(arrays.X, int(path.name), axis=0), y=arrays.y.copy(), session_id=path.name)
for decoder, constants in decoders.items():
    kind = Hoarder if decoder == "hoarder" else decoder_class(decoder)
    fit.decoder_class = lambda name: kind
    parameters = {"decoder": decoder, "constants": constants, "n_streams": 0, "stream_s": None}
    for n_days in numbers:
        pid = os.fork()
        if pid == 0:
            with one_thread():
                fit.run(parameters, {f"session{i}": Path(str(i)) for i in range(n_days)}, out)
            print(decoder, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, flush=True)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
"""


@pytest.fixture(scope="module")
def growth_mb(tmp_path_factory):
    """By decoder, how much more memory a further day takes."""
    if not sys.platform.startswith("linux"):
        pytest.skip("the peak memory of a fork is Linux's")
    constants = {name: {"bin_s": 0.05, **SMALL.get(name, {})} for name in (*decoders(), "hoarder")}
    given = map(json.dumps, (constants, N_BINS, N_CHANNELS, [5, N_DAYS]))
    command = [sys.executable, "-c", FIT, str(tmp_path_factory.mktemp("fitted") / "decoder.npz"), *given]
    peaks = {}
    for line in subprocess.check_output(command, text=True).splitlines():
        name, peak = line.split()
        peaks.setdefault(name, []).append(float(peak))
    return {name: (many - few) / (N_DAYS - 5) for name, (few, many) in peaks.items()}


@pytest.mark.parametrize("decoder", sorted(decoders()))
def test_memory_grows_with_the_days_by_no_more_than_a_few_times_their_counts(growth_mb, decoder):
    assert growth_mb[decoder] < MOST * RAW_MB
    assert growth_mb["hoarder"] > MOST * RAW_MB, "one that keeps every day unpacked is seen"


def test_blocks_of_days_give_what_the_whole_design_matrix_gives(monkeypatch):
    """Against the design matrix and `lstsq`, which knows nothing of normal equations; lags cross no block's border."""
    rng = np.random.default_rng(0)
    sessions = []
    for day in range(3):
        n_bins = 700 + 100 * day
        reset = np.zeros(n_bins, bool)
        reset[[0, 130, 131, 400]] = True
        weight = (rng.random((n_bins, 2)) > 0.05).astype(float)
        X = np.sqrt(rng.poisson(2.0, (n_bins, 6)).astype(float))
        sessions.append(Bins(X, rng.standard_normal((n_bins, 2)) * weight, weight, rng.random(n_bins) > 0.05, reset))
    features, labels = [], []
    for bins in sessions:
        x, _ = Normaliser.fit(bins.X, bins.observed).apply(bins.X, bins.observed)
        features.append(lagged(x, np.cumsum(bins.reset), 4)[bins.usable])
        labels.append(bins.Y[bins.usable])
    phi, y = np.concatenate(features), np.concatenate(labels)
    root = np.sqrt(0.05 * len(phi)) * np.eye(phi.shape[1])[:-1]
    wanted = np.linalg.lstsq(np.vstack([phi, root]), np.vstack([y, np.zeros((len(root), 2))]), rcond=None)[0]
    for block in (1, 7, 4096):
        monkeypatch.setattr("bci_adapt.decoders.lags._BLOCK", block)
        decoder = WienerDecoder(n_lags=4, penalty=0.05)
        decoder._fit(sessions)
        assert np.abs(decoder.coef_ - wanted).max() < 1e-9 * np.abs(wanted).max()
    equations = NormalEquations()
    equations.add(phi[::2], y[::2])  # a lost block is seen
    assert np.abs(equations.solve(0.05)[0] - wanted).max() > 1e-3 * np.abs(wanted).max()
