"""Whose columns these are, asked of the counts alone: verdicts on sessions whose truth is known by construction."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import bci_adapt as ba
from bci_adapt.cli.bench import identity as bench
from bci_adapt.data.prepare import prepare
from bci_adapt.data.same_columns import FOREIGN, PARTLY, SAME, UNSURE, agreement, judge, patterns, same_columns
from bci_adapt.data.same_columns.fingerprints import of_counts, summed
from bci_adapt.data.same_columns.packing import packed, unpacked
from bci_adapt.data.session_files import write_session
from bci_adapt.errors import InputError
from bci_adapt.experiment.config import parse_config
from bci_adapt.experiment.jobs import columns as columns_job
from bci_adapt.experiment.preparing import prepare_sessions
from bci_adapt.live import columns as remembered
from bci_adapt.results.manifest import Manifest
from bci_adapt.results.report import comparisons

M, BIN_S, MINUTES = 48, 0.1, 3
INDY = Path(__file__).parents[2] / "shared" / "data" / "indy64"


def day(seed, animal=0, drift=0.3, banks=0.0, minutes=MINUTES, m=M):
    """Counts (n_bins, m) of channels that fire with ten common signals; loadings belong to the animal and drift."""
    fixed, rng = np.random.default_rng(animal), np.random.default_rng([seed, 1])
    loadings = fixed.normal(size=(10, m)) + drift * rng.normal(size=(10, m))
    n = round(60 * minutes / BIN_S)
    signals = rng.normal(size=(n // 3 + 1, 10)).repeat(3, axis=0)[:n]
    places = rng.normal(size=(n // 3 + 1, 4)).repeat(3, axis=0)[:n]  # what the amplifier gives to every fourth column
    rate = np.log(1.5) + 0.12 * signals @ loadings + fixed.normal(size=m) * 0.4 + banks * places[:, np.arange(m) % 4]
    return rng.poisson(np.exp(np.clip(rate, -4, 3))).astype(np.uint16)


def of(counts, name, **options):
    return of_counts(counts, bin_s=BIN_S, session_id=name, **options)


@pytest.fixture(scope="module")
def days():
    return [of(day(seed), f"day{seed}") for seed in range(4)]


@pytest.fixture(scope="module")
def foreign():
    return of(day(9, animal=7), "foreign")


@pytest.mark.parametrize("at", [0, 2, 4])
def test_a_session_of_other_columns_is_named_wherever_it_stands_and_no_other(days, foreign, at):
    listed = [*days[:at], foreign, *days[at:]]
    told = judge(listed)
    assert [each.verdict for each in told.sessions] == [FOREIGN if each is foreign else SAME for each in listed]
    assert len(told.findings) == 1
    assert told.findings[0].startswith("foreign: the columns of this session are not those of the others: at most ")
    assert told.usual is not None
    assert told.usual[0] > 0.5


def test_mixed_columns_of_one_array_are_foreign_and_shuffling_them_back_makes_them_the_same(days):
    order = np.random.default_rng(3).permutation(M)
    counts = day(5)
    assert agreement(days[0], of(counts, "day5")).verdict() == SAME
    assert agreement(days[0], of(counts[:, order], "mixed")).verdict() == FOREIGN
    names = [f"column{i}" for i in order]
    assert agreement(days[0], of(counts[:, order], "named", channels=names)).verdict() == SAME


def test_columns_that_changed_places_are_named_with_the_channel_they_fit(days):
    order = np.arange(M)
    order[[3, 17, 30, 41]] = [17, 30, 41, 3]
    told = judge([*days, of(day(6)[:, order], "rewired")]).sessions
    assert [each.verdict for each in told] == [SAME] * 4 + [PARTLY]
    assert told[-1].moved == {
        "column3": "column17",
        "column17": "column30",
        "column30": "column41",
        "column41": "column3",
    }
    assert told[-1].sentence.startswith("rewired: 4 of 48 columns fit another channel")


def test_channels_replaced_by_new_ones_are_not_said_to_have_changed_places(days):
    counts = day(6)
    counts[:, [3, 17, 30, 41]] = day(6, animal=5)[:, :4]
    counts[:, 20] = 0
    assert judge([*days, of(counts, "turnover")]).sessions[-1].verdict == SAME


def test_what_an_amplifier_gives_to_columns_makes_foreign_ones_no_more_the_same():
    own, other = of(day(1, banks=0.25), "own"), of(day(2, animal=7, banks=0.25), "other")
    assert agreement(own, other).verdict() == FOREIGN
    assert agreement(own, of(day(3, banks=0.25), "later")).verdict() == SAME
    anyhow = np.stack([np.random.default_rng(seed).permutation(M) for seed in range(99)])
    for orders, beyond_chance in ((anyhow, True), (patterns.shuffled(tuple(range(M))), False)):
        found, chance, spread = patterns.beyond(own.profiles[0], other.profiles[0], orders)
        assert (found - chance > 5 * spread) is beyond_chance  # were any two columns exchangeable


def test_too_little_is_said_to_be_too_little(days):
    few = [of(day(seed, m=12), f"few{seed}") for seed in (0, 1)]
    assert judge(few).sessions[1].verdict == UNSURE
    assert "12 channels are active in both, at least 16 are needed" in judge(few).sessions[1].sentence
    assert judge(few).findings == []
    rng = np.random.default_rng(0)
    alone = of(rng.poisson(1.0, size=(1800, M)).astype(np.uint16), "alone")
    told = judge([*days, alone]).sessions[-1]
    assert told.verdict == UNSURE
    assert "differ between its own halves" in told.sentence
    with pytest.raises(InputError, match=r"short: neurons are observed for 20 s, at least 30 s"):
        of(day(0, minutes=1 / 3), "short")
    unnamed = judge([*days, of(day(5), "unnamed", named=False)])
    assert unnamed.sessions[-1].verdict == UNSURE
    assert unnamed.sessions[-1].best is None


def test_sums_of_bins_reach_over_no_gap_and_take_in_no_unobserved_bin():
    counts = np.arange(20, dtype=np.uint16)[:, None]
    observed = np.ones(20, dtype=bool)
    observed[9:11] = False
    runs = np.array([0] * 5 + [1] * 4 + [2] * 2 + [3] * 9)
    expected = [0 + 1 + 2, 5 + 6 + 7, 11 + 12 + 13, 14 + 15 + 16, 17 + 18 + 19]
    assert summed(counts, observed, runs, 3)[:, 0].tolist() == expected


def test_shuffles_move_every_column_but_within_its_place_in_the_period():
    orders = patterns.shuffled(tuple(range(32)))
    assert not (orders == np.arange(32)).any()
    assert (orders % patterns.PERIOD == np.arange(32) % patterns.PERIOD).all()
    assert (np.sort(orders, axis=1) == np.arange(32)).all()


@pytest.fixture(scope="module")
def sessions():
    return [
        ba.session(counts=day(seed, animal=7 * (seed == 2)), bin_s=BIN_S, channels=[f"e{i}" for i in range(M)])
        .isel(time=slice(0, 250 if seed == 3 else None))
        .assign_attrs(session_id=f"s{seed}", subject="S")
        for seed in range(5)
    ]


def test_sessions_are_judged_as_they_come_with_one_too_short_told(sessions):
    told = same_columns(sessions)
    assert [each.verdict for each in told.sessions] == [SAME, SAME, FOREIGN, UNSURE, SAME]
    assert "25 s" in told.sessions[3].sentence
    assert [row["session"] for row in told.to_json()["sessions"]] == ["s0", "s1", "s2", "s3", "s4"]
    assert len(told.findings) == 1


def test_matching_warns_of_foreign_columns_and_of_no_others(sessions, recwarn):
    assert [each.sizes["channel"] for each in ba.match([sessions[0], sessions[1], sessions[4]])] == [M] * 3
    assert not [each for each in recwarn if "columns" in str(each.message)]
    with pytest.warns(UserWarning, match="s2: the columns of this session are not those of the others"):
        matched = ba.match(sessions[:3])
    assert [each.sizes["channel"] for each in matched] == [M] * 3, "said, and nothing else done"


def test_commands_tell_of_foreign_columns_before_anything_else(sessions, tmp_path, call):
    files = [tmp_path / f"{number}.nc" for number in range(3)]
    for file, each in zip(files, sessions, strict=False):
        write_session(each, file)
    code, out, _ = call("drift", *files, "--json", tmp_path / "drift.json")
    assert code == 0
    assert 0 <= out.find("s2: the columns of this session are not those of the others") < out.find("drift from s0")
    told = json.loads((tmp_path / "drift.json").read_text())["columns"]["sessions"]
    assert [each["verdict"] for each in told] == [SAME, SAME, FOREIGN]


def test_the_job_of_a_run_judges_its_sessions(sessions, tmp_path):
    inputs = {}
    for number, each in enumerate([*sessions[:3]]):
        inputs[f"session{number}"] = tmp_path / f"{number}.nc"
        write_session(each, inputs[f"session{number}"])
    columns_job.run({"policy": None}, inputs, tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    assert [each["verdict"] for each in found["sessions"]] == [SAME, SAME, FOREIGN]
    assert found["findings"] == [found["sessions"][2]["sentence"]]
    columns_job.run({"policy": "unit"}, inputs, tmp_path / "found.json")
    assert json.loads((tmp_path / "found.json").read_text()) == {"sessions": [], "findings": []}


def test_the_page_of_a_run_shows_whose_columns(days, foreign):
    told = judge([*days, foreign]).to_json()["sessions"]
    heading, table = comparisons._columns(Manifest(name="x", columns=told))
    assert heading.title == "Whose columns"
    assert [str(row[1]) for row in table.rows] == [SAME] * 4 + [FOREIGN]
    assert table.rows[-1][5] == told[-1]["sentence"]
    assert table.rows[0][4].startswith("day")
    assert table.rows[0][4] != "day0", "the other session of the two"
    assert comparisons._columns(Manifest(name="x", columns=told[:1])) == []


def test_a_fingerprint_survives_the_file_of_a_decoder(days, foreign):
    back = unpacked(json.loads(json.dumps(packed(days[0]))))
    assert agreement(back, days[1]).kept == pytest.approx(agreement(days[0], days[1]).kept, abs=2e-3)
    assert agreement(back, foreign).verdict() == FOREIGN
    for name in ("profiles", "traits", "place"):
        damaged = packed(days[0]) | {name: packed(days[0])[name][:-8]}
        with pytest.raises(InputError, match="not the fingerprint of a session"):
            unpacked(damaged)


def test_a_decoder_remembers_its_days_and_holds_the_next_to_them(sessions):
    decoder = SimpleNamespace(metadata_={})
    assert remembered.judged(decoder, sessions[4]).verdict == UNSURE
    assert remembered.judged(decoder, sessions[4]).findings == []
    known, findings = remembered.known_from(sessions[:3])
    assert [each.session_id for each in known] == ["s0", "s1"]
    assert len(findings) == 1
    remembered.remember(decoder, known)
    assert remembered.judged(decoder, sessions[2], keep=True).verdict == FOREIGN
    assert [each["session"] for each in decoder.metadata_["columns"]] == ["s0", "s1"]
    assert remembered.judged(decoder, sessions[4], keep=True).verdict == SAME
    assert [each["session"] for each in decoder.metadata_["columns"]] == ["s0", "s1", "s4"]
    decoder.metadata_["columns"][0]["profiles"] = "damaged"
    assert "cannot say" in remembered.judged(decoder, sessions[4]).sentence


def test_the_bench_counts_what_is_told(days):
    whole = np.ones(round(60 * MINUTES / BIN_S), dtype=bool)
    stretch = np.zeros(whole.size, dtype=np.int64)
    raws = [bench.Raw(f"d{seed}", day(seed), BIN_S, stretch, whole) for seed in range(3)]
    raws.append(bench.Raw("other", day(8, animal=7), BIN_S, stretch, whole))
    found = bench.identity({"made": raws}, lambda _: None, minutes=(1.0,), shares=(0.0, 1.0))
    assert [row["verdict"] for row in found["sessions"]] == [SAME, SAME, SAME, FOREIGN]
    assert found["pairs"][0]["n"] == found["pairs"][0][SAME] == 3
    assert [(row["share"], row[SAME], row[FOREIGN]) for row in found["mixed"]] == [(0.0, 2, 0), (1.0, 0, 2)]
    assert "| made | other | foreign |" in bench.text(found)


@pytest.mark.skipif(not INDY.is_dir(), reason="the recordings are not here")
def test_of_real_sessions_the_one_of_other_columns_is_named_and_no_other():
    paths = sorted(INDY.glob("*.nwb"))[4:9]
    prints = []
    for path in paths:
        session = prepare(path, 0.064)
        rows = slice(round(300 / 0.064))
        prints.append(
            of_counts(session["counts"].values[rows], bin_s=0.064, session_id=str(session.attrs["session_id"]))
        )
    told = judge(prints).sessions
    assert sum(each.verdict == FOREIGN for each in told) == 1
    assert sum(each.verdict == SAME for each in told) == 4
    odd = next(each for each in told if each.verdict == FOREIGN)
    assert odd.best is not None
    assert odd.best.kept < 0.15 < min(each.best.kept for each in told if each.verdict == SAME and each.best)


def test_a_run_keeps_drops_or_refuses_sessions_of_foreign_columns(tmp_path, monkeypatch):
    monkeypatch.setenv("BCI_ADAPT_CACHE", str(tmp_path / "cache"))
    (days := tmp_path / "days").mkdir()
    for seed in range(4):
        counts = day(seed, animal=7 * (seed == 2))
        moves = np.random.default_rng(seed).normal(size=(len(counts), 2))
        written = ba.session(
            counts=counts, target=moves, target_units="cm/s", bin_s=BIN_S, channels=[f"e{i}" for i in range(M)]
        )
        write_session(written.assign_attrs(session_id=f"s{seed}", subject="S"), days / f"s{seed}.nc")

    def prepared(foreign, **pair):
        pairs = [pair or {"source": "earlier", "targets": [2, 3, 4]}]
        raw = {"name": "x", "source": {"kind": "folder", "path": str(days)}, "pairs": pairs, "bin_s": BIN_S}
        raw |= {"stream_s": 60.0, "min_held_out_s": 30.0, "identity": {"foreign": foreign}}
        raw["arms"] = [{"rule": "immediate", "optimizer": "rmsprop"}]
        config = parse_config(raw, "x")
        found, pairs = prepare_sessions(config, config.pairs, workers=0)
        return {pair.target: pair.sources for pair in pairs}, found.unscorable(pairs, config)

    every, reasons = prepared("keep")
    assert every["s3"] == ("s0", "s1", "s2")
    assert not any(reasons.values())
    every, reasons = prepared("drop")
    assert every["s3"] == ("s0", "s1")
    told = {pair.target: why for pair, why in reasons.items() if why}
    assert [*told] == ["s2"]
    assert "the columns of this session are not those of the others" in told["s2"]
    with pytest.raises(InputError, match=r"identity\.foreign = refuse: s2: the columns of this session are not"):
        prepared("refuse")
    with pytest.raises(InputError, match=r"identity\.foreign = drop: s2: .*leave these sessions out"):
        prepared("drop", source=["s0", "s1", "s2"], targets=["s3"])
