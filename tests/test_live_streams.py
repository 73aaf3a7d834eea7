"""`bci-adapt live`: a session replayed, or lines of JSON, in; predictions out."""

import io
import json
import runpy
import sys

import numpy as np
import pytest
from test_cli_comparing import write_day
from test_decoders import SMALL, arrays_of, same

import bci_adapt as ba
from bci_adapt.data.prepare import prepare
from bci_adapt.data.session_files import write_session
from bci_adapt.errors import InputError
from bci_adapt.live import serving
from bci_adapt.live.log import Event, replay
from bci_adapt.live.serving import Server
from bci_adapt.live.streams import of_session, read_lines, replayed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("live")
    days = [
        prepare(write_day(made, number, kind, duration_s=60.0), 0.05) for number, kind in enumerate(("mon", "rates"))
    ]
    later = days[1].copy(deep=True)
    # A gap in the middle, and a stretch that was not observed.
    second = np.arange(later.sizes["time"]) >= 700
    later["segment"].values[:] = second
    later["valid"].values[300:320] = False
    later = later.assign_coords(time=("time", later["time"].values + 10.0 * second, later["time"].attrs))
    write_session(later, made / "tue.nc")
    constants = {name: value for name, value in SMALL.items() if name != "bin_s"}
    ba.OnlineDecoder(**constants).fit(days[0], "velocity").save(made / "decoder.npz")
    return made


@pytest.fixture(scope="module")
def expected(folder):
    """The decoder after the session, and what it predicted."""
    decoder = ba.load(folder / "decoder.npz")
    return decoder, decoder.adapt(ba.open_session(folder / "tue.nc")).values


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_replayed_session_is_adapt_bit_for_bit(folder, expected, call, tmp_path):
    code, said, told = call(
        *("live", "--decoder", folder / "decoder.npz", "--source", f"replay:{folder / 'tue.nc'}"),
        *("--sink", f"jsonl:{tmp_path / 'out'}", "--log", tmp_path / "log", "--json", tmp_path / "live.json"),
        *("--checkpoint", tmp_path / "end.npz"),
    )
    assert (code, said) == (0, "")
    out = lines(tmp_path / "out")
    assert np.array_equal([each["prediction"] for each in out], expected[1])
    assert {each["mode"] for each in out} == {"learning"}
    summary = json.loads((tmp_path / "live.json").read_text())
    assert summary["state"]["bins"]["segments"] == 2
    assert summary["state"]["bins"]["unobserved"] == 20
    assert summary["latency"]["predict_us"]["p99"] > summary["latency"]["predict_us"]["p50"] > 0
    session = ba.open_session(folder / "tue.nc")
    arrays, _ = of_session(folder / "decoder.npz", folder / "tue.nc", "refuse", None)
    in_time = np.isfinite(arrays.y).all(axis=1) & session["valid"].values
    in_time[-4:] = in_time[697:700] = False  # their labels came too late
    assert summary["r2"] == pytest.approx(ba.r2(arrays.y, expected[1], in_time[:, None] & np.ones(2, bool)), rel=1e-9)
    assert "ready" in told
    assert "the stream has ended" in told
    # The log of this session is what it comes to again, and the checkpoint stands at its end.
    code, said, told = call(
        *("live", "--decoder", folder / "decoder.npz", "--source", f"replay:{folder / 'tue.nc'}"),
        *("--check", tmp_path / "log", "--sink", "none"),
    )
    assert (code, said) == (0, "")
    assert f"the same weights ({summary['weights'][:16]})" in told
    code, _, told = call(
        *("live", "--decoder", tmp_path / "end.npz", "--source", f"replay:{folder / 'tue.nc'}", "--sink", "none"),
    )
    assert code == 0
    assert "1.0 min" in told
    half = (tmp_path / "log").read_text().replace('"segment"', '"segments"', 1)
    (tmp_path / "changed").write_text(half)
    code, _, told = call(
        *("live", "--decoder", folder / "decoder.npz", "--source", f"replay:{folder / 'tue.nc'}"),
        *("--check", tmp_path / "changed", "--sink", "none"),
    )
    assert code == 2
    assert "line 2: the log says" in told


def test_lines_of_json_are_the_same_stream(folder, expected, call, tmp_path, monkeypatch):
    arrays, _ = of_session(folder / "decoder.npz", folder / "tue.nc", "refuse", None)
    made = []
    for event in replayed(arrays, 0.2):
        values = [None if value != value else value for value in event.values.tolist()]
        made.append(json.dumps({"counts" if event.kind == "bin" else "label": values, "time_s": event.time_s}))
    wrong = [
        "nonsense",
        "[1]",
        '{"counts": "many"}',
        '{"do": "dance"}',
        '{"label": [1.0], "time_s": 3.0}',
        '{"counts": []}',
    ]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join([*made[:200], *wrong, "", *made[200:]]) + "\n"))
    code, said, told = call(
        *("live", "--decoder", folder / "decoder.npz", "--source", "jsonl:-", "--json", tmp_path / "live.json")
    )
    assert code == 0
    out = [json.loads(line) for line in said.splitlines()]
    assert np.array_equal([each["prediction"] for each in out], expected[1])
    summary = json.loads((tmp_path / "live.json").read_text())
    assert (summary["unreadable"], summary["refused"]) == (4, 2)
    assert "a line says nothing, the first of its kind: Expecting value" in told
    assert "refused, the first of its kind: label: expected (2,)" in told


def test_what_is_done_by_hand_comes_in_lines(folder, tmp_path):
    arrays, _ = of_session(folder / "decoder.npz", folder / "tue.nc", "refuse", None)
    live = ba.live(folder / "decoder.npz", log=tmp_path / "log")
    doings = [{"do": "mark", "name": "noon"}, {"do": "pause"}, {"do": "resume"}, {"do": "roll_back", "to": "noon"}]
    doings += [{"do": "freeze"}, {"do": "checkpoint"}, {"do": "roll_back", "to": "lunch"}]
    events = list(replayed(arrays, 0.2))[:300]
    for at, each in enumerate(doings):
        events[40 * at : 40 * at] = read_lines([json.dumps(each)], pytest.fail)
    notes = []
    server = Server(live, lambda *shown: None, checkpoint=tmp_path / "on.npz", note=notes.append)
    server.run(iter(events))
    live.close()
    assert live.mode == "frozen"
    assert server.served.refused == 1
    assert notes[-1].endswith("expected one of start, good, noon, got lunch")
    told = [entry["what"] for entry in lines(tmp_path / "log") if entry.get("by") == "hand"]
    assert told == ["marked", "paused", "resumed", "rolled back", "frozen", "checkpoint", "checkpoint"]
    # What was done by hand is taken from the log, not from the stream.
    assert replay(tmp_path / "log", folder / "decoder.npz", iter(events)).weights_digest == live.weights_digest
    assert ba.live(tmp_path / "on.npz").state == live.state


def test_labels_come_when_they_are_said_to(folder):
    arrays, _ = of_session(folder / "decoder.npz", folder / "tue.nc", "refuse", None)
    time_s = arrays.metadata["time_s"]

    def bins_before(labels, delay_s=0.2):
        """Of each label, by how many bins it comes behind its own."""
        n, behind = 0, []
        for event in replayed(arrays, delay_s, labels):
            n += event.kind == "bin"
            if event.kind == "label":
                behind.append(n - int(np.searchsorted(time_s, event.time_s)))
        return np.array(behind)

    assert set(bins_before("delay")) == {4}
    assert set(bins_before("delay", 0.0)) == {1}  # its own has been predicted
    assert len(bins_before("none")) == 0
    bursts = bins_before("trial_end")
    assert bursts.min() == 4
    assert bursts.max() > 10
    with pytest.raises(InputError, match="--labels trial_end needs trials"):
        list(replayed(arrays._replace(in_trial=None), 0.2, "trial_end"))


def test_the_time_of_the_stamps_is_kept(folder, monkeypatch):
    slept, now = [], [0.0]
    monkeypatch.setattr(serving.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(serving.time, "sleep", lambda s: (slept.append(s), now.__setitem__(0, now[0] + s)))
    live = ba.live(folder / "decoder.npz")
    events = [Event("bin", np.zeros(live.n_inputs), 50.0 + 0.05 * t) for t in range(21)]
    Server(live, lambda *shown: None, speed=1.0).run(events)
    assert sum(slept) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--source", "radio:1"), "--source: expected replay:… or jsonl:…, got radio:1"),
        (("--source", "jsonl:-", "--sink", "tape:1"), "--sink: expected jsonl:… or none, got tape:1"),
        (("--source", "jsonl:nowhere"), "nowhere: lines of JSON were expected, it cannot be read"),
        (("--source", "jsonl:-", "--json", "-"), "--json and --sink both go to standard output"),
        (("--source", "jsonl:-", "--speed", "2"), "--speed takes 1 or max, got '2'"),
        (("--source", "jsonl:-", "--labels", "soon"), "--labels takes delay, trial_end, none, got 'soon'"),
        (("--source", "jsonl:-", "--every", "0"), "--every takes minutes, more than 0, got 0"),
    ],
)
def test_doors(folder, call, arguments, message):
    code, _, told = call("live", "--decoder", folder / "decoder.npz", *arguments)
    assert code == 2
    assert message in told


def test_a_checkpoint_in_the_middle_goes_on(folder, expected, call, tmp_path):
    arrays, _ = of_session(folder / "decoder.npz", folder / "tue.nc", "refuse", None)
    live = ba.live(folder / "decoder.npz")
    events = list(replayed(arrays, 0.2))
    Server(live, lambda *shown: None, checkpoint=tmp_path / "half.npz").run(events[:901])
    code, said, _ = call("live", "--decoder", tmp_path / "half.npz", "--source", f"replay:{folder / 'tue.nc'}", "-q")
    assert code == 0
    rest = np.array([json.loads(line)["prediction"] for line in said.splitlines()])
    assert np.array_equal(rest, expected[1][-len(rest) :])
    assert 500 < len(rest) < 900
    assert same(arrays_of(ba.load(tmp_path / "half.npz")), arrays_of(live.decoder))


def test_the_pipeline_runs_as_it_stands(folder, request, monkeypatch, capsys, tmp_path):
    script = request.config.rootpath / "pipelines" / "live_replay.py"
    arguments = [str(folder / "decoder.npz"), str(folder / "tue.nc"), "--log", str(tmp_path / "log")]
    monkeypatch.setattr(sys, "argv", [script.name, *arguments])
    runpy.run_path(str(script), run_name="__main__")
    assert "1200 bins, " in capsys.readouterr().out
    assert lines(tmp_path / "log")[-1]["what"] == "closed"


def test_the_bench_measures_what_it_says(call):
    code, said, _ = call("bench", "live", "--quick", "--bins", "300", "--json", "-")
    rows = json.loads(said)
    assert (code, [row["labels"] for row in rows]) == (0, [False, True])
    for row in rows:
        assert row["empty_p50_us"] < row["p50_us"] <= row["p95_us"] <= row["p99_us"] <= row["max_us"]
        assert row["overhead"] == pytest.approx(row["p50_us"] / row["long_us"] - 1.0)
