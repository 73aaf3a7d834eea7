"""Streams of hours: stored on the way, ended by force, gone on with – to the same numbers, in the same memory."""

import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest
import xarray as xr
from caches import new_cache
from sklearn.base import clone
from test_cli_comparing import write_day
from test_decoders import DECODERS, arrays_of, copy_of, recording, same
from typer.testing import CliRunner

import bci_adapt as ba
from bci_adapt.cli import app
from bci_adapt.data.prepare import prepare
from bci_adapt.data.session_files import write_session
from bci_adapt.decoders import pretrained
from bci_adapt.decoders.base import Decoder
from bci_adapt.errors import InputError
from bci_adapt.ground.storage import cache_root
from bci_adapt.live import adapting, checkpoints, predicting

SMALL = {"cell": "tanh", "n_hidden": 5, "n_updates": 5, "warm_up_s": 5.0, "label_delay_s": 0.3, "learning_rate": 1e-3}
EVERY_S, STREAM_S, N_STREAM, PIECE = 7.5, 65.0, 1300, 150  # eight pieces and a short one


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module", autouse=True)
def _own_cache(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BCI_ADAPT_CACHE", str(new_cache(folder)))
        yield


@pytest.fixture(scope="module")
def session(folder):
    """The file of a session with trials, and a gap where a piece begins and another in the middle of one."""
    made = prepare(write_day(folder, 1, "rates", duration_s=150.0), 0.05).copy(deep=True)
    since = np.searchsorted([3 * PIECE, 1000], np.arange(made.sizes["time"]), side="right")
    made["segment"].values[:] = since
    made = made.assign_coords(time=("time", made["time"].values + 10.0 * since, made["time"].attrs))
    write_session(made, folder / "session.nc")
    return folder / "session.nc"


@pytest.fixture(scope="module")
def decoder(folder):
    day = prepare(write_day(folder, 0, "mon", duration_s=60.0), 0.05)
    ba.OnlineDecoder(**SMALL).fit(day, "velocity").save(folder / "decoder.npz")
    ba.WienerDecoder(n_lags=3).fit(day, "velocity").save(folder / "wiener.npz")
    return folder / "decoder.npz"


@pytest.fixture(scope="module")
def uninterrupted(decoder, session):
    """What adapting gives in one go, without a checkpoint."""
    return adapting.adapt(decoder, session, STREAM_S)


def led(decoder, session, file, **options):
    return adapting.adapt(decoder, session, STREAM_S, **{"checkpoint": file, "every_s": EVERY_S} | options)


def require_same(found, expected):
    assert np.array_equal(found.prediction["predicted_velocity"], expected.prediction["predicted_velocity"])
    assert same(arrays_of(found.decoder), arrays_of(expected.decoder), but=("state_ring",))
    assert found.decoder.metadata_ == expected.decoder.metadata_
    assert json.dumps(found.scores) == json.dumps(expected.scores)
    assert (found.n_labels, found.stream_s, found.notes) == (expected.n_labels, expected.stream_s, expected.notes)


class Killed(BaseException):
    """What a process that is ended meets: nothing catches it."""


@pytest.mark.parametrize("name", sorted(DECODERS))
def test_a_stored_decoder_goes_on_bit_for_bit(name, tmp_path):
    """Everything that a decoder holds is in its file: of pieces, storing in between changes no bit."""
    X, y, reset = recording(seed=5)
    fitted = Decoder.load(_fitted(name, tmp_path))
    ends = (np.arange(len(X)) // 30) * 30 + 29  # labels of a trial come at its end, beyond a piece
    for arrives in (None, ends):
        one, other = copy_of(fitted, tmp_path), copy_of(fitted, tmp_path)
        one.begin()
        other.begin()
        for begin, end in [(0, 1), (1, 75), (75, 220), (220, 233), (233, 400)]:
            known = None if arrives is None else arrives[begin:end] - begin
            given = X[begin:end], y[begin:end], reset[begin:end], known
            assert np.array_equal(
                one.partial_fit(*given).online_predictions_, other.partial_fit(*given).online_predictions_
            )
            other = copy_of(other, tmp_path)
        assert same(arrays_of(one), arrays_of(other))
        held = recording(seed=6)[0]
        assert np.array_equal(one.predict(held, continuing=True), other.predict(held, continuing=True))


def _fitted(name, tmp_path):
    X, y, reset = recording()
    clone(DECODERS[name]).fit(X, y, reset).save(tmp_path / "fitted.npz")
    return tmp_path / "fitted.npz"


def test_pieces_of_a_session_with_stores_between_are_the_session(decoder, session, uninterrupted, tmp_path):
    whole = ba.read(session)
    mine, online = Decoder.load(decoder), []
    mine.begin()
    for begin in range(0, N_STREAM, PIECE):
        online.append(mine.partial_fit(whole.isel(time=slice(begin, min(begin + PIECE, N_STREAM)))).online_predictions_)
        mine = copy_of(mine, tmp_path)
    assert np.array_equal(np.vstack(online), uninterrupted.prediction["predicted_velocity"][:N_STREAM])
    assert same(arrays_of(mine), arrays_of(uninterrupted.decoder), but=("state_ring",))


def test_with_checkpoints_it_is_what_it_is_without(decoder, session, uninterrupted, tmp_path):
    found = led(decoder, session, tmp_path / "at")
    require_same(found, uninterrupted)
    assert found.checkpoint.file.exists()
    assert found.checkpoint.rows.stat().st_size == N_STREAM * 2 * 8
    found.checkpoint.remove()
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("where", ["before the first", "rows", "seal", "rename", "after"])
@pytest.mark.parametrize("piece", [1, 9])
def test_ended_at_any_point_it_comes_to_the_same_numbers(
    decoder, session, uninterrupted, tmp_path, monkeypatch, where, piece
):
    file, calls = tmp_path / "at", [0]
    if where == "before the first" and piece > 1:
        pytest.skip("there is one first")
    write, seal = checkpoints.Checkpoint.write, checkpoints.seals.seal

    def counted(self, *given):
        calls[0] += 1
        if calls[0] == piece and where == "before the first":
            raise Killed
        write(self, *given)
        if calls[0] == piece and where == "after":
            raise Killed

    def sealed(written, path):
        if calls[0] == piece and where == "rows":
            raise Killed  # predictions are there, of a checkpoint that is not
        seal(written, path)
        if calls[0] == piece and where in ("seal", "rename"):
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.Checkpoint, "write", counted)
        patch.setattr(checkpoints.seals, "seal", sealed)
        with pytest.raises(Killed):
            led(decoder, session, file)
    if where == "rename" and piece > 1:
        (tmp_path / "at.predictions").open("ab").write(b"half a numb")
    said = []
    require_same(led(decoder, session, file, note=said.append), uninterrupted)
    begun = piece - 1 + (where == "after")
    assert len(said) == (begun > 0)
    if begun:
        at = min(begun * PIECE, N_STREAM)
        assert said == [f"going on at {at * 0.05 / 60:.1f} of 1.1 min (bin {at}), from {file}"]


def test_a_killed_command_goes_on_from_where_it_was(decoder, session, tmp_path):
    """SIGKILL, at whatever point that is; the same command, until it is through."""
    slow = (
        "import sys, time\n"
        "from bci_adapt.live import checkpoints\n"
        "from bci_adapt.cli import app\n"
        "write = checkpoints.Checkpoint.write\n"
        "def slowly(self, *given):\n"
        "    write(self, *given); time.sleep(0.15)\n"
        "checkpoints.Checkpoint.write = slowly\n"
        "app(sys.argv[1:])\n"
    )
    environment = {**os.environ, "BCI_ADAPT_CACHE": str(cache_root())}

    def command(name, *more):
        given = ["adapt", decoder, session, "-o", f"{name}.npz", "--predictions", f"{name}.nc", "--stream-s", STREAM_S]
        return [sys.executable, "-c", slow, *map(str, [*given, *more])]

    kept = ("--checkpoint", "at", "--every", EVERY_S / 60)
    killed, begun = 0, 0
    while killed < 3:
        process = subprocess.Popen(command("killed", *kept), cwd=tmp_path, env=environment)
        limit = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < limit:
            rows = tmp_path / "at.predictions"
            if rows.exists() and rows.stat().st_size > begun:
                time.sleep(0.1 * killed)
                begun = rows.stat().st_size
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        killed += 1
    assert not (tmp_path / "killed.npz").exists()
    said = subprocess.run(command("killed", *kept), cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert "going on at" in said.stdout.decode() + said.stderr.decode()
    subprocess.run(command("whole"), cwd=tmp_path, env=environment, check=True, capture_output=True)
    one, other = (Decoder.load(tmp_path / f"{name}.npz") for name in ("killed", "whole"))
    assert same(arrays_of(one), arrays_of(other), but=("state_ring",))
    assert one.metadata_ == other.metadata_
    with (
        xr.open_dataset(tmp_path / "killed.nc", engine="h5netcdf") as mine,
        xr.open_dataset(tmp_path / "whole.nc", engine="h5netcdf") as theirs,
    ):
        xr.testing.assert_identical(mine, theirs)
    assert not [*tmp_path.glob("at*")], "a checkpoint is removed when all is written"


@pytest.fixture
def begun(decoder, session, tmp_path, monkeypatch):
    """A checkpoint after three pieces."""
    write = checkpoints.Checkpoint.write

    def thrice(self, decoder, bins, predicted):
        write(self, decoder, bins, predicted)
        if bins == 3 * PIECE:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.Checkpoint, "write", thrice)
        with pytest.raises(Killed):
            led(decoder, session, tmp_path / "at")
    return tmp_path / "at"


def test_a_checkpoint_of_something_else_is_refused_by_name(begun, decoder, session, tmp_path):
    other, later = tmp_path / "other.npz", tmp_path / "later.nc"
    changed = Decoder.load(decoder)
    changed.W_ = changed.W_ * 1.01
    changed.save(other)
    write_session(ba.read(session).assign_attrs(session_id="another"), later)
    for given, options, named in [
        ((other, session), {}, r"something else \(decoder"),
        ((decoder, later), {}, r"something else \(session"),
        ((decoder, session), {"missing": "zero"}, r"\(missing refuse\)"),
        ((decoder, session), {"every_s": 10.0}, r"\(piece bins 150\)"),
    ]:
        with pytest.raises(InputError, match=named):
            led(*given, begun, **options)
    with pytest.raises(InputError, match=r"\(stream s 65.0\)"):
        adapting.adapt(decoder, session, 30.0, checkpoint=begun, every_s=EVERY_S)
    led(decoder, session, begun)  # which is what it is of


def test_what_is_damaged_is_refused_not_gone_on_with(begun, decoder, session):
    rows = begun.with_name("at.predictions")
    for file, message in ((begun, "is damaged"), (rows, "does not fit its predictions")):
        whole = file.read_bytes()
        for wrong in (_flipped(whole, len(whole) // 2), whole[:-8]):
            file.write_bytes(wrong)
            with pytest.raises(InputError, match=message):
                led(decoder, session, begun)
        file.write_bytes(whole)
    text = rows.read_bytes()
    rows.unlink()
    with pytest.raises(InputError, match="has lost its predictions"):
        led(decoder, session, begun)
    rows.write_bytes(text)
    led(decoder, session, begun)


def _flipped(content, place):
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def test_a_file_that_is_no_checkpoint_is_left_alone(decoder, session, tmp_path):
    kept = tmp_path / "mine.npz"
    kept.write_bytes(decoder.read_bytes())
    with pytest.raises(InputError, match="no checkpoint"):
        led(decoder, session, kept)
    assert kept.read_bytes() == decoder.read_bytes()


def test_settings_that_cannot_be_are_refused(decoder, session, tmp_path):
    with pytest.raises(InputError, match="at least a bin between"):
        led(decoder, session, tmp_path / "at", every_s=0.01)
    ba.FineTunedDecoder.of(Decoder.load(decoder)).save(tmp_path / "tuned.npz")
    with pytest.raises(InputError, match="learns from the whole of a stream at its end"):
        led(tmp_path / "tuned.npz", session, tmp_path / "at")
    adapting.adapt(tmp_path / "tuned.npz", session, STREAM_S)
    asked = ["adapt", str(decoder), str(session), "-o", str(tmp_path / "out.npz")]
    for more, message in (
        (["--every", "1"], "--every goes with --checkpoint"),
        (["--checkpoint", str(tmp_path / "at"), "--every", "0"], "minutes, more than 0"),
        (["--checkpoint", str(session)], "is an input or an output"),
    ):
        result = CliRunner().invoke(app, asked + more)
        assert isinstance(result.exception, InputError)
        assert message in str(result.exception)


def test_a_linear_decoder_has_checkpoints_of_its_own(folder, decoder, session, tmp_path, monkeypatch):
    """Products of matrices may round differently where they are cut, so it is held to itself with the same pieces."""
    write = checkpoints.Checkpoint.write
    expected = led(folder / "wiener.npz", session, tmp_path / "whole")

    def ended(self, decoder, bins, predicted):
        write(self, decoder, bins, predicted)
        if bins == 2 * PIECE:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.Checkpoint, "write", ended)
        with pytest.raises(Killed):
            led(folder / "wiener.npz", session, tmp_path / "at")
    require_same(led(folder / "wiener.npz", session, tmp_path / "at"), expected)


def test_no_more_than_a_piece_is_converted_at_a_time(decoder, session, tmp_path, monkeypatch):
    sizes, match = [], predicting.match_channels

    def seen(decoder, session, *given, **named):
        sizes.append(session.sizes["time"])
        return match(decoder, session, *given, **named)

    monkeypatch.setattr(predicting, "match_channels", seen)
    led(decoder, session, tmp_path / "at")
    assert max(sizes[:-1]) == PIECE
    assert sizes[-1] == 3000 - N_STREAM  # what is held out is predicted at once


def test_prediction_in_blocks_is_prediction_at_once(tmp_path, monkeypatch):
    X, y, reset = recording(seed=2)
    decoder = ba.OnlineDecoder(**SMALL | {"n_members": 2}, bin_s=0.05).fit(X, y, reset)
    decoder.adapt(X, y, reset)
    held, _, begins = recording(seed=3)
    expected = [decoder.predict(held, begins, continuing=each) for each in (False, True)]
    for block in (1, 64, 219, 221):  # a segment begins with bin 220
        monkeypatch.setattr(pretrained, "BLOCK", block)
        for each, whole in zip((False, True), expected, strict=True):
            assert np.array_equal(decoder.predict(held, begins, continuing=each), whole)


def test_a_hundred_thousand_bins_take_no_more_memory_than_ten_thousand(tmp_path):
    """Peak of a piece, and size of the file, do not grow with the bins that went before."""
    X, y, reset = recording(5000, seed=1)
    decoder = ba.OnlineDecoder(**SMALL, bin_s=0.05).fit(X, y, reset)
    decoder.begin()
    peaks, files = [], []
    decoder.partial_fit(X, y)  # compiles
    tracemalloc.start()
    try:
        for _ in range(20):
            tracemalloc.reset_peak()
            decoder.partial_fit(X, y)
            peaks.append(tracemalloc.get_traced_memory()[1])
            decoder.save(tmp_path / "at.npz")
            files.append((tmp_path / "at.npz").stat().st_size)
    finally:
        tracemalloc.stop()
    assert decoder.state_.arrays["counters"].max() >= 100_000
    assert max(peaks[2:]) <= 1.02 * peaks[1]
    assert max(files) <= min(files) + 64  # digits of the header


def test_the_benchmark_of_a_stream_counts_its_bins():
    from bci_adapt.cli.bench.stream import stream

    rows = stream(5000, lambda text: None, piece=2000)
    assert [row["bins"] for row in rows] == [2000, 4000, 6000]
    assert all(row["us_per_bin"] > 0 and row["resident_mb"] > 10 and row["file_bytes"] > 1000 for row in rows)
