"""Files of our own formats that lead out of themselves, claim what they do not hold or lie about their dimensions."""

import h5py
import long_tables
import numpy as np
import pytest

from bci_adapt.data.from_arrays import session
from bci_adapt.data.guarded_reading import read
from bci_adapt.data.session_files import open_session, read_session, write_session
from bci_adapt.errors import InputError
from bci_adapt.ground.netcdf import require_plain
from bci_adapt.results.table import DIGEST, SCHEMAS, read_results, write_results


def a_session(path):
    counts = np.random.default_rng(0).poisson(1.0, (60, 4))
    write_session(session(counts=counts, target=np.ones((60, 2)).cumsum(axis=0), bin_s=0.05), path)


def results(path):
    rows = long_tables.long_table([long_tables.row(seed=seed, value=0.1 * seed) for seed in range(3)])
    more = {"curves": long_tables.curves(rows), "blocks": long_tables.blocks(rows)}
    tables = long_tables.stored(rows, **more)._asdict()
    write_results(path, {kind: tables[kind] for kind in SCHEMAS}, {"name": "x", "list": [1, 2]})


def added(file, key, make):
    make(f"{key}_more")


def scale_list(kind):
    def change(file, key):
        listed = file[key].attrs
        if kind == "numbers":
            del listed["DIMENSION_LIST"]
            listed["DIMENSION_LIST"] = np.arange(5)
        elif kind == "too few":
            value = listed["DIMENSION_LIST"][:0]
            del listed["DIMENSION_LIST"]
            listed.create("DIMENSION_LIST", value, (0,), h5py.vlen_dtype(h5py.ref_dtype))
        else:
            value = np.empty(file[key].ndim, object)
            where = file.ref if kind == "a group" else file[key].ref
            for place in range(len(value)):
                value[place] = np.array([where], h5py.ref_dtype)
            del listed["DIMENSION_LIST"]
            listed.create("DIMENSION_LIST", value, value.shape, h5py.vlen_dtype(h5py.ref_dtype))

    return change


def odd_attribute(file, key):
    file[key].attrs.create("odd", np.zeros(1, [("a", float), ("b", int)]))


def references(file, key):
    scale = next(each for each in file[key].parent.values() if "REFERENCE_LIST" in getattr(each, "attrs", {}))
    listed = scale.attrs["REFERENCE_LIST"].copy()
    listed["dimension"] = 77
    scale.attrs.modify("REFERENCE_LIST", listed)


def virtual(file, key):
    layout = h5py.VirtualLayout((60,), float)
    layout[:] = h5py.VirtualSource("other.h5", "x", (60,))
    added(file, key, lambda key: file.create_virtual_dataset(key, layout))


CHANGES = {
    "external link": (
        lambda f, k: added(f, k, lambda key: f.__setitem__(key, h5py.ExternalLink("/etc/passwd", "/x"))), "is a link"
    ),
    "soft link": (lambda f, k: f.__setitem__(k + "2", h5py.SoftLink(f"/{k}")), "is a link"),
    "external storage": (
        lambda f, k: added(f, k, lambda key: f.create_dataset(key, (60,), float, external=[("/etc/hosts", 0, 480)])),
        "is stored in another file",
    ),
    "virtual": (virtual, "is stored in another file"),
    "a claim": (
        lambda f, k: added(f, k, lambda key: f.create_dataset(key, (10**12,), float, chunks=(1000,))), "claims shape"
    ),
    "a claim packed": (
        lambda f, k: added(f, k, lambda key: f.create_dataset(key, (10**6,) * 2, "i2", chunks=(9, 9), compression=4)),
        "claims shape",
    ),
    "a chunk": (
        lambda f, k: added(
            f, k, lambda key: f.create_dataset(key, (1,), float, maxshape=(None,), chunks=(2**28,)).__setitem__(0, 1.0)
        ),
        "chunks|claims",
    ),
    "a filter": (
        lambda f, k: added(f, k, lambda key: f.create_dataset(key, data=np.ones(60), chunks=(60,), scaleoffset=2)),
        "filter",
    ),
    "a type": (lambda f, k: added(f, k, lambda key: f.__setitem__(key, np.zeros(3, [("a", int)]))), "is of type"),
    "an attribute": (odd_attribute, "attribute odd"),
    "a large attribute": (
        lambda f, k: f.attrs.create("big", np.zeros(3 * 2**20)),
        "attribute big",
    ),
    "scales that are numbers": (scale_list("numbers"), "DIMENSION_LIST"),
    "too few scales": (scale_list("too few"), "DIMENSION_LIST"),
    "a scale that is a group": (scale_list("a group"), "leads to no dimension scale"),
    "a scale that is none": (scale_list("itself"), "leads to no dimension scale"),
    "users of a scale": (references, "REFERENCE_LIST"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_hostile_files_are_refused_before_they_are_read(change, tmp_path):
    alter, message = CHANGES[change]
    for name, make, key, readers in (
        ("s.nc", a_session, "counts", (open_session, read_session, read)),
        ("r.nc", results, "rows/value", (read_results,)),
    ):
        path = tmp_path / name
        make(path)
        require_plain(path)
        with h5py.File(path, "a", libver="latest") as file:
            alter(file, key)
        with pytest.raises(InputError, match=rf"{name}: .*({message})"):
            require_plain(path)
        for reader in readers:
            with pytest.raises(InputError, match=rf"{name}: .*again"):
                reader(path)


def test_one_changed_score_is_found(tmp_path):
    path = tmp_path / "r.nc"
    results(path)
    whole, sound = path.read_bytes(), read_results(path)
    assert DIGEST not in sound.attrs

    def change(kind, name):
        path.write_bytes(whole)
        with h5py.File(path, "a") as file:
            column = file[kind][name]
            column[...] = column[...] + 1 if column.dtype.kind in "if" else column[...][::-1]
            return bool((column[...] != h5py.File(tmp_path / "sound.nc")[kind][name][...]).any())

    (tmp_path / "sound.nc").write_bytes(whole)
    tried = 0
    for kind in SCHEMAS:
        with h5py.File(tmp_path / "sound.nc") as file:
            names = [name for name, each in file[kind].items() if isinstance(each, h5py.Dataset) and each.size]
            names = [
                name for name in names if file[kind][name].dtype.kind in "if" and "NAME" not in file[kind][name].attrs
            ]
        for name in names:
            if change(kind, name):
                tried += 1
                with pytest.raises(InputError, match=r"r\.nc: "):
                    pytest.fail(f"{kind}/{name} is taken: {read_results(path)}")
    assert tried > 5
    path.write_bytes(whole)
    with h5py.File(path, "a") as file:
        file.attrs["name"] = "y"
    with pytest.raises(InputError, match=r"r\.nc: is not as it was written"):
        read_results(path)
    with h5py.File(path, "a") as file:
        del file.attrs[DIGEST]  # as files of earlier versions are
    assert read_results(path).attrs["name"] == "y"
