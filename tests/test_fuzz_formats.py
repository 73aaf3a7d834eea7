"""Damaged files of every format that is read: the sound content or one clear error that names the file.

``make fuzz`` tries 2,000 of each and counts how they ended. A number that was changed is never taken in a file that we
wrote; in a text or an array that a user wrote nothing can tell, but nothing else than `InputError` may come out.
"""

import os
import traceback
from collections import Counter
from pathlib import Path

import long_tables
import numpy as np
import pytest
from scipy.io import savemat

import bci_adapt as ba
from bci_adapt.data.guarded_reading import read
from bci_adapt.data.session_files import write_session
from bci_adapt.decoders.base import Decoder
from bci_adapt.decoders.rls import RLSDecoder
from bci_adapt.errors import InputError
from bci_adapt.experiment.config import load_config
from bci_adapt.experiment.tuned import read_tuned, tuned_text
from bci_adapt.ground import guarded
from bci_adapt.results import analysis
from bci_adapt.results.manifest import MANIFEST, RESULTS, Manifest, read_manifest
from bci_adapt.results.table import SCHEMAS, read_results, write_results

SEEDS = int(os.environ.get("BCI_ADAPT_FUZZ_FORMATS", "10"))
COUNTS = np.random.default_rng(0).poisson(1.0, (60, 4))

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="limits are set in a forked child")


def session_file(path):
    write_session(ba.session(counts=COUNTS, target=np.cumsum(np.ones((60, 2)), axis=0), bin_s=0.05), path)


def results_file(path):
    rows = long_tables.long_table([long_tables.row(seed=seed, value=0.1 * seed) for seed in range(3)])
    tables = long_tables.stored(rows)._asdict()
    write_results(path, {kind: tables[kind] for kind in SCHEMAS}, {"name": "x", "list": [1, 2]})


def decoder_file(path):
    RLSDecoder(bin_s=0.05, n_lags=2).fit(COUNTS.astype(float), np.arange(120.0).reshape(60, 2)).save(path)


def tuned_file(path):
    point = {"method": "rls", "cell": "", "parameters": {"memory_s": 250.0}, "source": "a", "target": "b", "seed": 0}
    path.write_text(tuned_text({"config": "x"}, [point | {"score": 0.25}, point | {"score": 0.5, "seed": 1}]), "utf-8")


def manifest_file(path):
    path.write_text(Manifest.model_validate(long_tables.manifest()).text(), encoding="utf-8")


def analysis_file(path):
    results_file(path.parent / RESULTS)
    manifest_file(path.parent / MANIFEST)
    analysis.analysis_of(path.parent, read_results(path.parent / RESULTS), read_manifest(path.parent / MANIFEST))


def arrays_file(path):
    np.savez(path, counts=COUNTS, channels=np.array(["a", "b", "c", "d"]), bin_s=0.05)


def matlab_file(path):
    savemat(path, {"counts": COUNTS, "session_id": "monday", "bin_s": 0.05}, do_compression=False)


def config_file(path):
    path.write_bytes((Path(__file__).parent.parent / "configs" / "demo.toml").read_bytes())


def of_session(path):
    made = read(path)
    made.attrs = {name: made.attrs[name] for name in sorted(made.attrs) if name in SESSION_ATTRS}
    return {str(name): (value.dims, value.values.tobytes()) for name, value in made.variables.items()} | made.attrs


def of_results(path):
    found = read_results(path)
    return [getattr(found, kind).to_json(double_precision=15) for kind in SCHEMAS] + [found.attrs["name"]]


def of_decoder(path):
    decoder = Decoder.load(path)
    arrays = {name: value.tobytes() for name, value in decoder._fitted_arrays().items()}
    return arrays | decoder.get_params() | {"metadata": decoder.metadata_, "bin_s_": decoder.bin_s_}


def of_analysis(path):
    """What is taken of an analysis; one that is not as it was written is made again, which is refused here."""

    def again(*_):
        raise InputError(f"{path.name}: is made again")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analysis, "analyse", again)
        manifest = read_manifest(path.parent / MANIFEST)
        return analysis.analysis_of(path.parent, None, manifest).model_dump_json()


def of_arrays(path):
    return read(path, 0.05).to_dict()["data_vars"]


SESSION_ATTRS = ("session_id", "subject", "bin_s", "bin_edge", "warnings", "thresholds", "parameters", "description")
FORMATS = {  # name: what makes a sound file, what is read of it, whether we wrote it with a digest
    "session.nc": (session_file, of_session, True),
    "results.nc": (results_file, of_results, True),
    "decoder.npz": (decoder_file, of_decoder, True),
    "x.tuned.json": (tuned_file, lambda path: read_tuned(path).surface, True),
    "manifest.json": (manifest_file, lambda path: read_manifest(path).text(), True),
    "analysis.json": (analysis_file, of_analysis, True),
    "arrays.npz": (arrays_file, of_arrays, False),
    "arrays.mat": (matlab_file, of_arrays, False),
    "config.toml": (config_file, lambda path: load_config(path).model_dump(), False),
}


def damage(content, seed):
    """Flipped, replaced, lost or repeated bytes, or a file cut short: what discs, networks and hands do."""
    rng = np.random.default_rng(seed)
    broken = bytearray(content)
    if (kind := rng.integers(12)) == 0:
        return bytes(broken[: rng.integers(len(broken))])
    if kind == 1:
        first = int(rng.integers(len(broken)))
        return bytes(broken[:first] + broken[first + int(rng.integers(1, 64)) :])
    if kind == 2:
        first = int(rng.integers(len(broken)))
        return bytes(broken[:first] + broken[first : first + int(rng.integers(1, 64))] + broken[first:])
    for place in rng.integers(len(broken), size=rng.choice([1, 1, 2, 4, 16])):
        flipped = broken[place] ^ (1 << int(rng.integers(8)))
        broken[place] = int(rng.choice([flipped, rng.integers(256), 0, 255, ord("9")]))
    return bytes(broken)


def ended(path, reader, sound):
    try:
        return "same" if reader(path) == sound else "other"
    except InputError as error:
        return "refused" if path.name in str(error) else f"no file named: {error}"
    except BaseException:
        return traceback.format_exc()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_of_every_format(name, tmp_path, monkeypatch):
    monkeypatch.setenv(guarded.FACTOR, "0.2")
    make, reader, sealed = FORMATS[name]
    path = tmp_path / name
    make(path)
    content, sound = path.read_bytes(), reader(path)
    assert reader(path) == sound
    found = {}
    for seed in range(SEEDS):
        path.write_bytes(damage(content, seed))
        found[seed] = "same" if path.read_bytes() == content else ended(path, reader, sound)
    tally = Counter(how if how in ("refused", "same", "other") else "wrong" for how in found.values())
    print(f"{name}: {dict(tally)}")
    assert not {seed: how for seed, how in found.items() if how not in ("refused", "same", "other")}
    assert tally["refused"] >= SEEDS // 10  # the damage bites
    if sealed:
        assert not [seed for seed, how in found.items() if how == "other"]
