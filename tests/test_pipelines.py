"""The pipelines a scientist copies run as they stand."""

import importlib.util

import numpy as np

from bci_adapt.sources.simulated import Simulated


def test_cross_session(tmp_path, request, capsys):
    path = request.config.rootpath / "pipelines" / "cross_session.py"
    assert len(path.read_text().splitlines()) <= 60
    spec = importlib.util.spec_from_file_location("cross_session", path)
    pipeline = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pipeline)
    source = Simulated(tmp_path, days=(0, 200), duration_s=90.0, n_units=12)
    files = [source.fetch(name) for name in source.list().index]
    scores = pipeline.main(*map(str, files), n_updates=20)
    assert len(scores) == 4
    assert np.isfinite(list(scores.values())).all()
    assert "recursive least squares" in capsys.readouterr().out
