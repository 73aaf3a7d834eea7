"""Saved decoders: what was changed is refused, whether the file carries a digest or is older than that."""

import io
import json
import os
import socket
import zipfile

import numpy as np
import pytest

from bci_adapt.decoders.base import Decoder, decoders
from bci_adapt.decoders.online_rnn import SMALL, OnlineDecoder
from bci_adapt.decoders.rls import RLSDecoder
from bci_adapt.decoders.stored import DIGEST, HEADER
from bci_adapt.errors import InputError
from bci_adapt.ground.arrays import read_npz

MADE = [(name, example) for name, kind in sorted(decoders().items()) for example in kind.examples]


def fitted(name="rls", example="", adapted=True):
    rng = np.random.default_rng(0)
    X, y = rng.poisson(2.0, (500, 6)).astype(float), rng.standard_normal((500, 2)).cumsum(axis=0)
    kind = decoders()[name]
    decoder = kind(bin_s=0.05, **kind.examples[example]).fit(X[:400], y[:400])
    if adapted:
        labels = y[400:].copy()
        labels[::7], X[405:408] = np.nan, np.nan
        decoder.adapt(X[400:], labels)
    return decoder, X[:40]


def rewritten(path, header=(), arrays=(), digest=False, without=""):
    """The stored decoder with entries of its header and arrays replaced; with the digest it had only if asked."""
    with np.load(path) as stored:
        kept = {key: stored[key] for key in stored.files if key != without}
    told = json.loads(str(kept.pop(HEADER))) | dict(header)
    if not digest:
        told.pop(DIGEST)
    np.savez(path, **{HEADER: np.array(json.dumps(told))}, **(kept | dict(arrays)))


@pytest.mark.parametrize(("name", "example"), MADE)
def test_every_array_is_in_the_digest_and_has_a_form(name, example, tmp_path):
    decoder, X = fitted(name, example)
    decoder.save(tmp_path / "whole.npz")
    whole = (tmp_path / "whole.npz").read_bytes()
    rewritten(tmp_path / "whole.npz")
    assert np.array_equal(Decoder.load(tmp_path / "whole.npz").predict(X), decoder.predict(X))  # of an earlier version
    path = tmp_path / "changed.npz"
    for key, array in decoder._fitted_arrays().items():
        flat = np.array(array)
        if flat.size:
            flat.reshape(-1)[0] = not flat.reshape(-1)[0] if flat.dtype == bool else flat.reshape(-1)[0] + 1
            path.write_bytes(whole)
            rewritten(path, arrays={key: flat}, digest=True)
            with pytest.raises(InputError, match=r"changed\.npz: is not as it was written"):
                Decoder.load(path)
        path.write_bytes(whole)
        rewritten(path, without=key)
        with pytest.raises(InputError, match=r"changed\.npz: .*(missing|does not belong)"):
            pytest.fail(f"without {key} it is taken: {Decoder.load(path)}")
        wrong = {"shape": np.zeros((3, *array.shape), array.dtype), "type": np.zeros(array.shape, np.float32)}
        if array.size and array.dtype == float:
            wrong["infinite"] = np.full_like(array, np.inf)
        if "variance" in key or key == "label_scale_":
            wrong["negative"] = np.full_like(array, -1.0)
        for what, other in wrong.items():
            path.write_bytes(whole)
            rewritten(path, arrays={key: other})
            with pytest.raises(InputError, match=r"changed\.npz: "):
                pytest.fail(f"{key} of another {what} is taken: {Decoder.load(path)}")


HEADERS = {
    "n_features_in_": [0, 7, -1, 1.5, "6", True, None, 10**12],
    "n_outputs_": [0, 3, "2", None],
    "bin_s_": [0.0, -1.0, "0.05", None, float("nan"), float("inf")],
    "flat_": ["no", 1],
    "decoder": ["nothing", 3, None, ["rls"], "kalman"],
    "parameters": [
        {"n_lags": -1}, {"n_lags": 4}, {"n_lags": 10**9}, {"missing": "hope"}, {"new": 1}, {"penalty": "a"}, [],
    ],
    "metadata": [
        3, [], {"channels": ["a"]}, {"channels": "abcdef"}, {"channels": ["a"] * 6}, {"outputs": [{}]}, {"outputs": 3},
        {"outputs": [{"variable": "velocity", "axes": ["x"], "units": "cm/s"}]}, {"power_scale": [1.0]},
        {"power_scale": [0.0] * 6}, {"sessions": "a"}, {"adapted_to": [1]}, {"stands_at": [1, 2]}, {"subject": 3},
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", HEADERS)
def test_headers_are_judged_as_constructors_judge(name, tmp_path):
    decoder, _ = fitted()
    decoder.save(tmp_path / "whole.npz")
    whole = (tmp_path / "whole.npz").read_bytes()
    for value in HEADERS[name]:
        given = decoder.get_params() | value if name == "parameters" and isinstance(value, dict) else value
        (tmp_path / "changed.npz").write_bytes(whole)
        rewritten(tmp_path / "changed.npz", header={name: given})
        with pytest.raises(InputError, match=r"changed\.npz: "):
            pytest.fail(f"{name} = {value!r} is taken: {Decoder.load(tmp_path / 'changed.npz')}")
    (tmp_path / "changed.npz").write_bytes(whole)
    rewritten(tmp_path / "changed.npz", header={"flat_": True}, digest=True)
    with pytest.raises(InputError, match="is not as it was written"):
        Decoder.load(tmp_path / "changed.npz")


@pytest.mark.parametrize(
    "changed",
    [
        {"cell": "none"}, {"rule": "none"}, {"optimizer": 3}, {"take_turns": "yes"}, {"n_hidden": 10**9},
        {"n_members": 0}, {"rule_constants": {"none": 1}}, {"rule_constants": [1]}, {"average": 2.0},
        {"learns": ["none"]}, {"seed": -1},
    ],
)  # fmt: skip
def test_parameters_of_networks_are_judged(changed, tmp_path):
    decoder, _ = fitted("online_rnn")
    decoder.save(tmp_path / "changed.npz")
    rewritten(tmp_path / "changed.npz", header={"parameters": decoder.get_params(deep=False) | changed})
    with pytest.raises(InputError, match=r"changed\.npz: "):
        Decoder.load(tmp_path / "changed.npz")


def test_a_decoder_that_diverged_is_not_taken(tmp_path):
    decoder, _ = fitted("online_rnn")
    decoder.state_.arrays["C"][0, 0, 0] = np.nan
    decoder.save(tmp_path / "diverged.npz")
    with pytest.raises(InputError, match=r"diverged\.npz: C: .* its weights have diverged"):
        Decoder.load(tmp_path / "diverged.npz")


def member(shape, dtype="<f8", content=b""):
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"shape": shape, "fortran_order": False, "descr": dtype})
    return out.getvalue() + content


def test_what_claims_more_than_it_holds_is_not_unpacked(tmp_path):
    decoder, _ = fitted()
    decoder.save(tmp_path / "bomb.npz")
    whole = (tmp_path / "bomb.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "bomb.npz", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.npy", member((2**24,), content=bytes(2**27)))
    assert (tmp_path / "bomb.npz").stat().st_size < len(whole) + 2**18
    with pytest.raises(InputError, match=r"bomb\.npz: unpacks to 13\d,\d{3},\d{3} bytes, at most"):
        Decoder.load(tmp_path / "bomb.npz")
    for shape in ((10**12,), (10**6, 10**6), (-1,), (2**62, 4)):
        (tmp_path / "bomb.npz").write_bytes(whole)
        with zipfile.ZipFile(tmp_path / "bomb.npz", "a") as archive:
            archive.writestr("claim.npy", member(shape))
        with pytest.raises(InputError, match=r"bomb\.npz: .*claims"):
            Decoder.load(tmp_path / "bomb.npz")
    (tmp_path / "bomb.npz").write_bytes(whole)
    with zipfile.ZipFile(tmp_path / "bomb.npz", "a") as archive:
        archive.writestr("objects.npy", member((1,), "|O", b"\x80\x04N."))
    with pytest.raises(InputError, match="Python objects"):
        Decoder.load(tmp_path / "bomb.npz")
    with zipfile.ZipFile(tmp_path / "many.npz", "w") as archive:
        for number in range(1100):
            archive.writestr(f"{number}.npy", member((0,)))
    with pytest.raises(InputError, match=r"many\.npz: holds 1100 arrays"):
        read_npz(tmp_path / "many.npz", "arrays")


def test_only_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "loop.npz").symlink_to(tmp_path / "loop.npz")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "socket.npz"))
    (tmp_path / "device.npz").symlink_to("/dev/zero")
    (tmp_path / "empty.npz").touch()
    for name in ("pipe", "folder", "loop", "socket", "device", "empty", "none"):
        with pytest.raises(InputError, match=rf"{name}\.npz: .*a decoder saved by bci_adapt"):
            Decoder.load(tmp_path / f"{name}.npz")
    listening.close()


def test_an_archive_of_any_make_is_taken_where_it_is_small(tmp_path):
    decoder, X = fitted(adapted=False)
    assert isinstance(decoder, RLSDecoder)
    decoder.save(tmp_path / "whole.npz")
    with np.load(tmp_path / "whole.npz") as stored:
        np.savez(tmp_path / "again.npz", **{key: stored[key] for key in reversed(stored.files)})
    assert np.array_equal(Decoder.load(tmp_path / "again.npz").predict(X), decoder.predict(X))


def test_numbers_of_a_search_are_in_the_digest(tmp_path):
    decoder = OnlineDecoder(bin_s=np.float64(0.05), rule="window", rule_constants={"steps": np.int64(2)}, **SMALL)
    rng = np.random.default_rng(0)
    X, y = rng.poisson(2.0, (200, 4)).astype(float), rng.standard_normal((200, 1))
    decoder.fit(X, y).save(tmp_path / "one.npz")
    assert np.array_equal(Decoder.load(tmp_path / "one.npz").predict(X), decoder.predict(X))
