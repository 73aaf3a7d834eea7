"""The long table: its door, its file, its summary, its leak verdict and its JSON."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from long_tables import (
    ADAPTIVE,
    LINEAR_ARMS,
    NETWORK_ARMS,
    about,
    arms,
    blocks,
    curves,
    manifest,
    row,
    stored,
    study,
    swept,
    trajectories,
)
from rich.console import Console

from bci_adapt.errors import InputError
from bci_adapt.results.analysis import Analysis, analyse
from bci_adapt.results.arms import Arms
from bci_adapt.results.manifest import MANIFEST, RESULTS, Manifest, read_manifest
from bci_adapt.results.summary import (
    adaptive,
    canary_troubles,
    caption,
    leak,
    not_above_persistence,
    summarise,
)
from bci_adapt.results.table import ROWS, SCHEMAS, control_of, long_table, number, read_results, write_results
from bci_adapt.results.terminal import json_payload, text_table

PRIMARY = {"arm": "immediate_rmsprop", "cell": "gru", "against": "rls", "against_cell": ""}


NOBODY = Arms(long_table([], "arms"))  # every arm is one that no table knows


def payload_of(rows, **about):
    """What ``--json`` would write of a run of these rows."""
    found, said = stored(rows), Manifest(**manifest(**about))
    return json_payload(found, said, analyse(found, said))


def of(verdict, records):
    """What a verdict says of records of a long table."""
    table = long_table(records)
    return verdict(table, arms(table))


@pytest.fixture(scope="module")
def rows():
    return study(5, metrics=("r2", "rmse"))


@pytest.fixture(scope="module")
def summary(rows):
    return summarise(rows, arms(rows))


@pytest.fixture(scope="module")
def payload(rows):
    """Of the whole study, in which one gap is not known and one pair could not be scored."""
    rows = rows.copy()
    rows.loc[0, "day_gap"] = np.nan
    return payload_of(rows, unscorable=[{"source": "a", "target": "b", "reason": "flat"}])


def test_file_returns_what_was_written(tmp_path):
    rows = study(2, 1, metrics=("r2", "rmse")).assign(weight_change=0.2)
    rows.loc[3, ["value", "status", "reason", "day_gap"]] = [np.nan, "failed", "naïve Σ: diverged", np.nan]
    own = blocks(rows)
    own.at[1, "error"], own.at[1, "spread"] = own.at[1, "error"][:5], own.at[1, "spread"][:5]
    tables = {"rows": rows, "curves": curves(rows), "trajectories": trajectories(rows), "blocks": own, **about(rows)}
    attrs = {"config": {"seeds": [0, 1], "none": None}, "n": 3, "rate": 0.5, "name": "é", "empty": "", "tuned": False}
    write_results(tmp_path / "results.nc", tables, attrs)
    back = read_results(tmp_path / "results.nc")
    for kind, written in tables.items():
        pd.testing.assert_frame_equal(written, getattr(back, kind))
    assert back.attrs == attrs
    assert [type(back.attrs[name]) for name in ("n", "rate", "tuned")] == [int, float, bool]
    empty = {kind: long_table([], kind) for kind in SCHEMAS}
    write_results(tmp_path / "empty.nc", empty, {})
    for kind, written in empty.items():
        pd.testing.assert_frame_equal(written, getattr(read_results(tmp_path / "empty.nc"), kind))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.nc", "results.nc"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"day_gap": "ten"}, "'day_gap' takes float, row 1 has 'ten'"),
        ({"seed": 1.5}, "'seed' takes int, row 0 has"),
        ({"cell": None}, "'cell' takes text|'cell' takes str"),
        ({"canary": 1}, "'canary' takes bool, row 1 has 1"),
        ({"rate": "3e-4"}, "'rate' takes float, row 1 has '3e-4'"),
        ({"arm": ""}, "'arm', row 1: expected the name of an arm"),
        ({"phase": "offline"}, "'phase', row 1: expected online or held_out or online_late.*, got 'offline'"),
        ({"supervision": "some"}, "'supervision', row 1: expected true or intention"),
        ({"study": "delays"}, "'study', row 1: expected '' or delay"),
        ({"control": "time"}, "'control', row 1: expected the control that the arm's name begins with, got 'time'"),
        ({"arm": "channels:frozen", "control": ""}, "'control', row 1"),
        ({"n_labels": -1}, "'n_labels', row 1"),
        ({"variable": "speed of hand"}, "'variable', row 1"),
        ({"status": "fine"}, "'status', row 1"),
        ({"canary": True}, "'canary', row 1: expected True exactly where"),
        ({"value": np.nan}, "'value', row 1: expected a finite score where status is ok"),
        ({"metric": "rmse", "value": np.inf}, "'value', row 1: expected a finite score"),
        ({"extra": 1}, "'extra' is not in the schema"),
        ({"target": "t1"}, "'value', row 1: expected one score for each run"),
    ],
)
def test_door_names_the_column(tmp_path, change, message):
    bad = [row(), row(target="t2") | change]
    with pytest.raises(InputError, match=message):
        long_table(bad)
    empty = {kind: long_table([], kind) for kind in SCHEMAS}
    with pytest.raises(InputError, match=message):
        write_results(tmp_path / "results.nc", empty | {"rows": pd.DataFrame(bad)}, {})
    assert not list(tmp_path.iterdir()), "nothing half-written"


def test_door_names_a_missing_column_and_an_unreadable_file(tmp_path):
    for name in ROWS:
        with pytest.raises(InputError, match=f"column '{name}' is missing"):
            long_table([{key: value for key, value in row().items() if key != name}])
    with pytest.raises(InputError, match=r"nothing\.nc: no such file"):
        read_results(tmp_path / "nothing.nc")
    (tmp_path / "text.nc").write_text("not a table")
    with pytest.raises(InputError, match=r"text\.nc: not a readable results file"):
        read_results(tmp_path / "text.nc")


def test_summary_averages_seeds_then_pairs_then_days():
    values = [  # day, source, seed, value: pair means 1 and 4 → day 2.5; day 0.5
        ("t1", "a", 0, 0.0),
        ("t1", "a", 1, 2.0),
        ("t1", "b", 0, 4.0),
        ("t2", "a", 0, 0.5),
    ]
    ok = [row(target=t, source=s, seed=k, value=v) for t, s, k, v in values]
    bad = row(target="t3", value=np.nan, status="failed", reason="diverged")
    faulty = row(target="t4", value=np.nan, status="unscorable", reason="target stands still")
    (entry,) = summarise(long_table([*ok, bad, faulty]), NOBODY)
    assert (entry["mean"], entry["n_targets"]) == (1.5, 2)
    assert entry["low"] <= 0.5 < 2.5 <= entry["high"]
    assert entry["note"] == "1 of 5 runs failed"
    (axis,) = summarise(long_table([row(metric="r2:z", value=np.nan), row(metric="r2:z", target="t2")]), NOBODY)
    assert (axis["n_targets"], axis["note"]) == (1, ""), "an axis that never moves has no R², which is not a failure"
    (alone,) = summarise(long_table([bad]), NOBODY)
    assert alone["n_targets"] == 0
    assert np.isnan([alone["mean"], alone["low"], alone["high"]]).all()
    assert summarise(long_table([]), NOBODY) == []


def test_summary_of_a_study_lists_every_arm_in_order(rows, summary):
    known = arms(rows)
    assert summary == summarise(rows.sample(frac=1, random_state=0).sort_index(), known), "seeded"
    names = [entry["arm"] for entry in summary]
    plain = list(dict.fromkeys(arm for arm in names if not arm.startswith("canary:")))
    assert plain == [arm for arm in known.ordered if arm in NETWORK_ARMS | LINEAR_ARMS]
    assert {"frozen", "output_bias", "fine_tuned", "joint_oracle", "kalman_refit"} < set(plain)
    assert {arm.removeprefix("canary:") for arm in names if arm.startswith("canary:")} == set(ADAPTIVE)
    entry = next(e for e in summary if (e["arm"], e["cell"]) == ("frozen", "gru") and e["phase"] == "held_out")
    assert entry["mean"] == pytest.approx(-0.08, abs=0.06)
    assert entry["low"] < entry["mean"] < entry["high"]
    assert (entry["metric"], entry["n_targets"]) == ("r2", 5)


def test_summary_says_what_did_not_adapt_and_refuses_to_pool_settings(rows):
    rows = rows[rows["arm"].isin(["frozen", "normaliser", "readout", "immediate_rmsprop", "rls"])]
    unmoved = rows.assign(weight_change=np.where(rows["arm"] == "readout", 0.004, 0.3))
    unmoved.loc[unmoved["arm"] == "frozen", "weight_change"] = 0.0
    assert {entry["arm"] for entry in summarise(unmoved, arms(rows)) if "did not adapt" in entry["note"]} == {"readout"}
    mixed = rows.assign(delay_s=np.where(rows["target"] == "day-10", 0.0, 0.5))
    with pytest.raises(InputError, match=r"delay_s: arm .* several values \[0\.0, 0\.5\]"):
        summarise(mixed, arms(rows))


@pytest.mark.parametrize(
    ("canary", "own", "verdict"),
    [(0.3, 0.5, True), (0.2, 0.5, False), (0.09, 0.1, False), (0.12, -0.3, True), (-0.5, 0.4, False)],
)
def test_leak_compares_a_canary_with_its_arm(canary, own, verdict):
    both = [
        row(arm=arm, phase="online", target=f"t{day}", value=value + day / 1000)
        for day in (0, 1)
        for arm, value in (("canary:readout", canary), ("readout", own))
    ]
    quiet = [row(arm=arm, cell="gru", phase="online", value=0.05) for arm in ("canary:readout", "readout")]
    elsewhere = row(arm="readout", phase="online", target="t9", value=5.0)  # no canary for this pair
    alone = row(arm="immediate_sgd", phase="online", value=0.4)
    assert of(leak, [*both, *quiet, elsewhere, alone]) == {"readout": verdict, "immediate_sgd": None}


def test_adaptive_arms_are_told_by_their_columns_and_none_without_a_verdict_is_silent():
    def runs(arm, values, **changes):
        return [
            row(arm=arm, phase="online", target=f"t{day}", value=value) | changes for day, value in enumerate(values)
        ]

    failed = {"value": np.nan, "status": "failed", "reason": "weights diverged"}
    records = [
        *runs("window2_adam", [0.5, 0.5]),
        *runs("canary:window2_adam", [0.0], reason=""),
        row(arm="canary:window2_adam", phase="online", target="t1") | failed,
        *runs("immediate_sgd", [0.4, 0.4]),
        *runs("rtrl_rmsprop", [0.4, 0.4]),
        *runs("canary:rtrl_rmsprop", [0.0, 0.0], **failed),
        *runs("readout", [0.4], **failed),
        *runs("canary:readout", [0.0]),
        *runs("own idea", [0.3], supervision="none"),
        *(row(arm=arm, cell="", phase="online") for arm in ("persistence", "ridge_oracle")),
    ]
    table = long_table(records)
    known = arms(table)
    assert adaptive(table, known) == ["readout", "immediate_sgd", "window2_adam", "rtrl_rmsprop"]
    verdicts = {"readout": None, "immediate_sgd": None, "rtrl_rmsprop": None, "window2_adam": False}
    assert leak(table, known) == verdicts
    assert canary_troubles(table, known) == {
        "readout": "the arm itself has no online score on its canary's pairs",
        "immediate_sgd": "no canary was run (tanh)",
        "rtrl_rmsprop": "2 of 2 canary runs failed (weights diverged)",
        "window2_adam": "1 of 2 canary runs failed (weights diverged)",
    }
    gru = row(arm="immediate_sgd", cell="gru", phase="online", value=0.4)
    both = [gru, gru | {"arm": "canary:immediate_sgd", "canary": True, "control": "time", "value": 0.3}]
    assert of(leak, [*records, *both])["immediate_sgd"] is True, "one cell that leaks is enough"
    quiet = [gru, gru | {"arm": "canary:immediate_sgd", "canary": True, "control": "time", "value": 0.0}]
    assert of(leak, [*records, *quiet])["immediate_sgd"] is None, "the other cell is not checked"
    console = Console(width=160)
    with console.capture() as capture:
        console.print(text_table(summarise(table, known), known, False, leaks=verdicts))
    assert capture.get().count("leak not checked") == 3
    assert "2 steps of history + Adam" in capture.get()
    assert payload_of(table)["leak"] == verdicts


def test_an_online_score_no_better_than_persistence_is_flagged():
    def runs(arm, value, cell="tanh", **changes):
        return [row(arm=arm, cell=cell, phase="online", target=f"t{day}", value=value, **changes) for day in (0, 1)]

    records = [*runs("readout", 0.5), *runs("readout", 0.3, "gru"), *runs("immediate_sgd", 0.5)]
    assert of(not_above_persistence, records) == {"readout": None, "immediate_sgd": None}
    table = long_table([*records, *runs("persistence", 0.4, "", rate=np.nan)])
    assert not_above_persistence(table, arms(table)) == {"readout": True, "immediate_sgd": False}


def test_side_questions_and_controls_stay_out_of_summary_leak_and_payload(rows):
    rows = rows[rows["arm"].isin(["frozen", "readout", "immediate_rmsprop", "canary:readout", "rls"])]
    channels = rows[(rows["arm"] == "readout") & (rows["target"] == "day-10")]
    channels = channels.assign(arm="channels:readout", control="channels", value=0.49)
    delayed = swept(5).assign(value=lambda table: table["value"].where(table["study"] == "", 0.9))
    side = delayed[delayed["study"] != ""]
    everything = long_table(pd.concat([rows, channels, side], ignore_index=True))
    known = arms(everything)
    plain = [entry for entry in summarise(everything, known) if entry["arm"] != "channels:readout"]
    assert plain == summarise(rows, known)
    assert leak(everything, known) == leak(rows, known), "shuffled channels leave the time courses: no canary"
    labels = [known.label(entry["arm"]) for entry in summarise(everything, known)]
    assert "readout only, shuffled channels" in labels
    payload = payload_of(everything, primary=PRIMARY)
    assert payload["refused"] == payload_of(rows)["refused"]
    assert {entry["mean"] for entry in payload["sweeps"]["delay"] if entry["value"] != 0.5} == {0.9}
    assert [entry["primary"] for entry in payload["comparisons"]].count(True) == 1


def test_blocks_widen_the_interval_and_leave_the_mean(rows):
    held_out = rows[(rows["phase"] == "held_out") & (rows["metric"] == "r2")]
    known, drawn = arms(rows), blocks(held_out)
    both = (summarise(held_out, known, blocks=each) for each in (drawn, None))
    for with_blocks, without in zip(*both, strict=True):
        assert with_blocks["mean"] == pytest.approx(without["mean"])
        if control_of(with_blocks["arm"]):
            assert with_blocks == without, "controls have no blocks"
        else:
            assert with_blocks["high"] - with_blocks["low"] > without["high"] - without["low"]


def test_an_older_file_is_refused_with_what_to_do(tmp_path, rows):
    import xarray as xr

    xr.Dataset({"value": ("row", [1.0])}).to_netcdf(tmp_path / "old.nc", group="rows", engine="h5netcdf")
    with pytest.raises(InputError, match=r"old\.nc: expected the table .* run the experiment again"):
        read_results(tmp_path / "old.nc")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"error": [1.0, np.nan]}, "'error' takes lists of sums of squares, row 0"),
        ({"error": [1.0, -1.0]}, "'error' takes lists of sums of squares, row 0"),
        ({"spread": "many"}, "'spread' takes lists of sums of squares, row 0"),
        ({"spread": [1.0]}, "'spread', row 0: expected as many blocks as of error"),
    ],
)
def test_blocks_are_sums_of_squares_of_the_same_bins(change, message):
    names = ("source", "target", "variable", "arm", "cell")
    good = dict.fromkeys(names, "a") | {"seed": 0, "error": [1.0, 2.0], "spread": [3.0, 4.0]}
    assert len(long_table([good], "blocks")) == 1
    with pytest.raises(InputError, match=message):
        long_table([good | change], "blocks")


def test_payload_is_json_and_complete(rows, payload):
    back = json.loads(json.dumps(payload, allow_nan=False))
    assert list(back) == [
        *("rows", "summary", "variations", "recovery", "refused", "leak", "not_above_persistence", "comparisons"),
        *("associations", "sweeps", "time_to_ceiling", "forgetting", "no_drift", "beside", "unscorable", "jobs"),
    ]
    assert len(back["rows"]["data"]) == len(rows)
    assert back["rows"]["columns"] == list(ROWS)
    assert dict(zip(ROWS, back["rows"]["data"][0], strict=True))["day_gap"] is None
    assert {"arm", "cell", "variable", "phase", "metric", "mean", "low", "high", "n_targets"} <= set(back["summary"][0])
    assert back["unscorable"][0]["reason"] == "flat"
    refused = {(entry["arm"], entry["against"]) for entry in back["refused"]}
    assert refused >= {("rls", "retrained"), ("rls", "jointly retrained"), ("kalman_adaptive", "retrained")}
    assert {entry["against"] for entry in back["recovery"]} == {"retrained", "jointly retrained"}
    assert {entry["leak"] for entry in back["summary"] if entry["arm"] == "rls"} == {False}
    assert set(back["leak"]) == set(ADAPTIVE)
    assert back["jobs"]["executed"] == 42


@pytest.mark.parametrize(("tuned", "words"), [(False, "rates not tuned"), (True, "rates tuned")])
def test_terminal_table(rows, summary, tuned, words):
    console = Console(width=120, record=True, file=None, quiet=False, force_terminal=False)
    beaten = {"rls": True, "readout": False, "intention": None}
    with console.capture() as capture:
        console.print(text_table(summary, arms(rows), tuned, leaks={"rls": True}, beaten=beaten))
    text = capture.get()
    assert text.count("persistence") == 2, "the arm, and the note at one that does not beat it"
    assert words in text
    assert "immediate + RMSprop" in text
    assert "−0.25 [" in text
    assert text.count("this setting leaks") == 1
    assert "canary" not in text


def test_caption_warns_of_few_days():
    entries = [[{"n_targets": n}] for n in (1, 2, 4, 5)]
    assert [("too narrow" in caption(False, entry)) for entry in entries] == [False, True, True, False]


def test_numbers_carry_a_true_minus_and_no_negative_zero():
    assert [number(value) for value in (-0.254, -0.001, 0.0, 1.005)] == ["−0.25", "0.00", "0.00", "1.00"]


def test_the_summary_in_json_holds_the_standing_arms_only(rows, summary, payload):
    known = arms(rows)
    standing = set(known.ordered) - set(known.variations)
    assert {entry["arm"].removeprefix("canary:") for entry in payload["summary"]} <= standing
    assert len(payload["summary"]) + len(payload["variations"]) == len(summary)
    assert {entry["arm"].removeprefix("canary:") for entry in payload["variations"]} == {"immediate_rmsprop_fixed"}


def test_a_rival_well_below_ridge_is_suspect():
    """On the same labels: .03 is allowed, and only held out R² counts."""
    levels = {"ridge_oracle": 0.40, "rls": 0.39, "kalman_adaptive": 0.36, "normaliser": 0.10}
    rows = long_table(
        [
            row(arm=arm, cell="", n_hidden=0, target=f"d{day}", value=level + 0.001 * day, phase=phase)
            for arm, level in levels.items()
            for day in range(5)
            for phase in ("online", "held_out")
        ]
    )
    noted = {
        (entry["arm"], entry["phase"]) for entry in summarise(rows, arms(rows)) if "rival suspect" in entry["note"]
    }
    assert noted == {("kalman_adaptive", "held_out")}


def test_one_shift_in_twenty_that_scores_is_seen_whatever_its_number():
    """Shifts are numbered in the canary's own seeds: none may be lost for want of a network with that seed."""
    own = [
        row(arm="immediate_rmsprop", cell="tanh", target=f"d{day}", seed=seed, phase="online", value=0.5)
        for day in range(3)
        for seed in (0, 1)
    ]
    shifts = [
        row(arm="canary:immediate_rmsprop", cell="tanh", target=f"d{day}", seed=shift, phase="online")
        | {"value": 0.9 if shift >= 2 else 0.0, "canary": True, "control": "time"}
        for day in range(3)
        for shift in range(20)
    ]
    assert of(leak, own + shifts) == {"immediate_rmsprop": True}
    quiet = [each | {"value": 0.0} for each in shifts]
    assert of(leak, own + quiet) == {"immediate_rmsprop": False}


def test_an_analysis_is_read_as_it_was_written_to_the_last_bit(rows):
    found, said = stored(rows), Manifest(**manifest(primary=PRIMARY))
    made = analyse(found, said, "a digest")
    back = Analysis.model_validate_json(made.model_dump_json())
    assert back.model_dump_json() == made.model_dump_json()
    assert json_payload(found, said, back) == json_payload(found, said, made)
    json.loads(made.model_dump_json(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert [each["primary"] for each in back.comparisons].count(True) == 1
    assert back.verdict["velocity"][0]["sentences"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "not the manifest of a run: Input should be an object"),
        ("{}", "not the manifest of a run: name: Field required"),
        ('{"name": "x", "job": {}}', "job: Extra inputs are not permitted"),
        ('{"name": "x", "jobs": {"executed": 1, "reused": 0}}', "jobs.failed: Field required"),
        ('{"name": "x", "sessions": [{"date": "2020"}]}', "sessions.0.session_id: Field required"),
    ],
)
def test_a_manifest_that_is_none_is_refused_by_its_key(tmp_path, text, message):
    path = tmp_path / "manifest.json"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"manifest\.json: .*{message}.*; run the experiment again"):
        read_manifest(path)
    path.write_text(Manifest(**manifest()).text())
    assert read_manifest(path) == Manifest(**manifest())


@pytest.mark.parametrize("name", [MANIFEST, RESULTS, "config.toml"])
def test_a_run_that_is_not_as_it_was_written_is_an_error_that_names_the_file(tmp_path, name):
    (tmp_path / RESULTS).write_bytes(b"results")
    (tmp_path / "config.toml").write_text("seeds = [0]")
    made = Manifest(**manifest()).of_files(tmp_path, [RESULTS, "config.toml"])
    (tmp_path / MANIFEST).write_text(made.text())
    found = read_manifest(tmp_path / MANIFEST)
    found.require_whole(tmp_path)
    assert found == made
    text = (tmp_path / name).read_text()
    (tmp_path / name).write_text(text.replace("sults", "sulst").replace("[0]", "[1]"))
    with pytest.raises(InputError, match=rf"{name}: was damaged or changed since the run wrote it"):
        read_manifest(tmp_path / MANIFEST).require_whole(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match=name):
        read_manifest(tmp_path / MANIFEST).require_whole(tmp_path)
