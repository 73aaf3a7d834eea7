"""Files that are read over the network by ranges, and addresses that people paste, against a stand-in on loopback."""

import json
import os

import h5py
import numpy as np
import pytest
from archive_server import DANDISET, NEW, serving
from nwb_files import spikes_file

import bci_adapt as ba
from bci_adapt.archive import http, streaming
from bci_adapt.archive.addresses import asset_id_of, parse_page
from bci_adapt.archive.http import Patience
from bci_adapt.archive.streaming import RangeFile, remote
from bci_adapt.data.nwb import open_nwb, spike_table
from bci_adapt.data.prepare import prepare
from bci_adapt.errors import InputError

PATH = "sub-T/sub-T_ses-CO-20140303_behavior+ecephys.nwb"


@pytest.fixture
def archive(monkeypatch, tmp_path):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("BCI_ADAPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(http, "PATIENCE", Patience(wait=lambda _: None, read_s=1.0, tries=3))
    with serving() as archive:
        monkeypatch.setenv("DANDI_INSTANCE", archive.url)
        yield archive


@pytest.fixture
def large(archive, tmp_path):
    """A recording of 1.5 GB, nearly all of it waveforms that nobody reads, as an asset of the archive."""
    path = tmp_path / "large.nwb"
    spikes_file(path)
    with h5py.File(path, "a") as file:
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        space = h5py.h5s.create_simple((1_500_000_000 // 4 // 48, 48))
        h5py.h5d.create(file["units"].id, b"waveforms", h5py.h5t.IEEE_F32LE, space, plan)
    assert path.stat().st_size > 1.5e9
    row = archive.add(PATH, b"")
    archive.add("sub-T/sub-T_ses-other.nwb", b"")
    row["size"] = path.stat().st_size
    archive.files[row["asset_id"]] = path
    yield row, path
    path.unlink()


def page_of(archive):
    return f"{archive.url.removesuffix('/api')}/dandiset/{DANDISET}"


@pytest.mark.parametrize("kind", ["file", "asset", "dandiset", "page"])
def test_a_large_recording_is_read_by_ranges(archive, large, kind, tmp_path):
    row, path = large
    address = {
        "file": f"{archive.blob_url}/blobs/{row['asset_id']}",
        "asset": f"{archive.url}/assets/{row['asset_id']}/download/",
        "dandiset": f"{DANDISET}/{NEW}/{PATH}",
        "page": f"{page_of(archive)}/{NEW}/files?location={PATH.replace('+', '%2B')}",
    }[kind]
    session = ba.read(address, 0.05, stream=True)
    asked = archive.asked("/blobs/")
    assert len(asked) < 60
    assert archive.sent() < 8e6
    whole = prepare(path, 0.05)
    assert np.array_equal(session["counts"], whole["counts"])
    assert np.array_equal(session["position"], whole["position"], equal_nan=True)
    warnings = json.loads(session.attrs["warnings"])
    assert session.attrs["source_sha256"] == ""
    assert any("not verified" in warning for warning in warnings)
    assert not any("not verified" in warning for warning in json.loads(whole.attrs["warnings"]))
    if kind != "file":
        digest = archive.digests[row["asset_id"]]["dandi:sha2-256"]
        assert any(row["asset_id"] in warning and digest in warning for warning in warnings)
    if kind in ("dandiset", "page"):
        about = session.attrs["dandiset"], session.attrs["asset_path"], session.attrs["licence"]
        assert about == (DANDISET, PATH, "spdx:CC-BY-4.0")
    assert not (tmp_path / "cache").exists()  # nothing is stored


def test_inspect_and_prepare_stream(archive, large, call, tmp_path):
    row, _ = large
    address = f"{archive.url}/assets/{row['asset_id']}/download/"
    code, out, err = call("inspect", "--stream", address, "--json", "-")
    assert code == 0, err
    assert "units" in out
    code, out, err = call("prepare", "--stream", f"{DANDISET}/{NEW}/{PATH}", "--out", tmp_path)
    assert code == 0, err
    assert "not verified" in out + err
    for command in ("inspect", "prepare"):
        code, _, err = call(command, address)
        assert (code, "is an address" in err, "--stream" in err) == (2, True, True)
        code, _, err = call(command, "--stream", f"{DANDISET}/{NEW}")
        assert (code, "means 2 files" in err) == (2, True)


def test_what_is_read_is_what_the_file_holds(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(streaming, "KEPT_BLOCKS", 70)
    data, path = np.random.default_rng(0).bytes(250_123), tmp_path / "x.bin"
    path.write_bytes(data)
    archive.files["x"] = path
    random = np.random.default_rng(1)
    with RangeFile(f"{archive.blob_url}/blobs/x") as file:
        assert file.seek(0, os.SEEK_END) == len(data)
        for start, size in zip(random.integers(0, len(data), 100), random.integers(0, 90_000, 100), strict=True):
            file.seek(start)
            assert file.read(size) == data[start : start + size]
        file.seek(5)
        path.write_bytes(data[::-1])
        with pytest.raises(InputError, match="became another file"):
            file.read()


def test_a_run_through_a_file_costs_few_requests(archive, tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(bytes(20_000_000))
    archive.files["x"] = path
    with RangeFile(f"{archive.blob_url}/blobs/x") as file:
        while file.read(10_000):
            pass
    assert len(archive.asked()) < 15
    assert archive.sent() == 20_000_000


def test_a_signature_is_neither_printed_nor_recorded(archive, call, tmp_path):
    """All of an address that is signed, with a password, in whatever is said of it: read, refused or not found."""
    path = tmp_path / "small.nwb"
    spikes_file(path)
    archive.files["x"] = path
    host = archive.blob_url.partition("://")[2]
    signed = f"http://me:pass@{host}/blobs/x?signature=secret"
    code, out, err = call("inspect", "--stream", signed)
    assert (code, "secret" in out + err, "pass@" in out + err) == (0, False, False)
    assert f"http://{host}/blobs/x" in out + err
    assert call("inspect", "--stream", signed, "--json", tmp_path / "about.json")[0] == 0
    assert call("prepare", "--stream", signed, "--out", tmp_path / "prepared", "--bin-s", "0.05")[0] == 0
    session = ba.read(signed, 0.05, stream=True)
    for text in ((tmp_path / "about.json").read_text(), str(session.attrs)):
        assert f"http://{host}/blobs/x" in text
        assert "secret" not in text
    (prepared,) = (tmp_path / "prepared").glob("*.nc")
    assert b"secret" not in prepared.read_bytes()
    assert all("secret" in str(each.query) for each in archive.asked("/blobs/"))  # the server got it
    for arguments in (["--stream", signed.replace("/x", "/gone")], [signed]):
        code, out, err = call("inspect", *arguments)
        assert (code, "secret" in out + err, "pass@" in out + err) == (2, False, False)
    with pytest.raises(InputError, match=r"blobs/x: bin_s, the width"):
        ba.read(signed, stream=True)


def test_a_server_without_ranges_is_refused(archive):
    archive.answers["/plain.nwb"] = (200, {}, b"whole")
    with pytest.raises(InputError, match="sends whole files only, no ranges"):
        ba.read(f"{archive.blob_url}/plain.nwb", 0.05, stream=True)
    with pytest.raises(InputError, match="status 404"):
        ba.read(f"{archive.blob_url}/none.nwb", 0.05, stream=True)
    with pytest.raises(InputError, match="six digits"):
        remote("nonsense")


def test_an_archive_that_goes_away_midway_is_one_sentence(archive, large):
    row, path = large
    with h5py.File(path, "a") as file:
        times_s = file["units/spike_times"][()]
        del file["units/spike_times"]
        file["units"].create_dataset("spike_times", data=np.repeat(times_s, 100_000 // times_s.size + 1))
    place, _ = remote(f"{archive.blob_url}/blobs/{row['asset_id']}")
    with open_nwb(place) as file:
        del archive.files[row["asset_id"]]
        archive.blobs.clear()
        with pytest.raises(InputError, match="the connection was cut; given up after 3 tries") as caught:
            spike_table(file)
    assert "\n" not in str(caught.value)


def test_what_is_no_recording_is_one_sentence(archive, tmp_path):
    path = tmp_path / "x.nwb"
    path.write_bytes(b"no HDF5 at all" * 100)
    archive.files["x"] = path
    with pytest.raises(InputError, match="not a whole HDF5 file"):
        ba.read(f"{archive.blob_url}/blobs/x", 0.05, stream=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("000688", ("000688", None, [])),
        ("DANDI:000688/draft", ("000688", "draft", [])),
        ("https://dandiarchive.org/dandiset/000688", ("000688", None, [])),
        ("https://dandiarchive.org/dandiset/000688/0.250122.1735/", ("000688", "0.250122.1735", [])),
        ("https://dandiarchive.org/#/dandiset/000688/draft/files", ("000688", "draft", [])),
        (
            "https://dandiarchive.org/dandiset/000688/draft/files?location=sub-C%2F",
            ("000688", "draft", ["sub-C/*"]),
        ),
        ("https://dandiarchive.org/dandiset/000688/draft/files?location=a/b.nwb", ("000688", "draft", ["a/b.nwb"])),
        ("000688/0.250122.1735/a/b.nwb", ("000688", "0.250122.1735", ["a/b.nwb"])),
    ],
)
def test_pasted_addresses_are_understood(monkeypatch, text, expected):
    monkeypatch.delenv("DANDI_INSTANCE", raising=False)
    assert parse_page(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("https://sandbox.dandiarchive.org/dandiset/000688", "set DANDI_INSTANCE=dandi-sandbox"),
        ("https://example.org/dandiset/000688", "not of the archive in use"),
        ("https://dandiarchive.org/about", "not the page of a dandiset"),
        ("https://dandiarchive.org/dandiset/688", "not the page of a dandiset"),
    ],
)
def test_other_addresses_are_not(monkeypatch, text, message):
    monkeypatch.delenv("DANDI_INSTANCE", raising=False)
    with pytest.raises(InputError, match=message):
        parse_page(text)


def test_assets_are_those_of_the_archive_in_use(archive):
    name = "0" * 8 + "-0000-4000-8000-" + "0" * 12
    assert asset_id_of(f"{archive.url}/assets/{name}/download/") == name
    assert asset_id_of(f"{archive.url}/dandisets/000688/versions/draft/assets/{name}/") == name
    assert asset_id_of(f"https://example.org/api/assets/{name}/download/") == ""


def test_fetch_takes_the_page_of_a_dandiset(archive, call):
    archive.add(PATH, b"x" * 100)
    archive.add("sub-U/sub-U_ses-1.nwb", b"y" * 100)
    code, out, err = call("fetch", f"{page_of(archive)}/{NEW}/files?location=sub-T")
    assert code == 0, err
    assert PATH in out
    assert "sub-U" not in out
