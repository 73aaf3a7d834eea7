"""Where the R² went: on recordings in which one thing was changed by hand, that thing is named. And `compare`."""

import json
from pathlib import Path

import pytest
from caches import new_cache
from test_cli_comparing import KINDS, write_day

from bci_adapt.data.drift import Settings, day, drift
from bci_adapt.data.prepare import prepare
from bci_adapt.errors import InputError
from bci_adapt.experiment import comparing
from bci_adapt.experiment import explain as explaining
from bci_adapt.experiment.config import load_config
from bci_adapt.experiment.explain import Row, explain
from bci_adapt.experiment.jobs import counterfactual
from bci_adapt.results.table import read_results

LESS = {
    "network": {"n_hidden": 16, "n_updates": 250, "oracle_updates": 40, "joint_updates": 10, "warm_up_s": 10.0},
    "sweeps": {"arms": []},
    "controls": {
        **dict.fromkeys(("cold", "costs", "channels", "drift", "no_drift", "continuing", "back"), False),
        "without": [
            *("output_bias", "readout", "recurrent", "from_random", "intention", "pseudo", "fine_tuned"),
            *("joint_oracle", "joint_ridge", "aligned"),
        ],
    },
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """``bci-adapt compare`` of a day with later days on which one thing is another; (arguments, folder, output)."""
    import sys
    from contextlib import redirect_stdout
    from io import StringIO

    from bci_adapt import cli

    folder = tmp_path_factory.mktemp("recordings")
    files = [str(write_day(folder, number, kind)) for number, kind in enumerate(KINDS)]
    arguments = [
        "compare",
        *files,
        "--target",
        "cursor_vel",
        "--quick",
        "--workers",
        "0",
        "--json",
        str(folder / "a.json"),
    ]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()):
        patch.setenv("BCI_ADAPT_CACHE", str(new_cache(folder)))
        patch.setattr(comparing, "QUICK", LESS)
        patch.setattr(comparing, "ARMS", comparing.ARMS[:1])
        patch.setattr(sys, "argv", ["bci-adapt", *arguments])
        with pytest.raises(SystemExit) as done:
            cli.main()
    assert not done.value.code
    return next((folder / "cache" / "runs").iterdir()), json.loads((folder / "a.json").read_text())


@pytest.fixture(autouse=True)
def _own_cache(run, monkeypatch):
    monkeypatch.setenv("BCI_ADAPT_CACHE", str(run[0].parents[1]))


def test_compare_runs_and_writes_a_config_that_says_what_it_ran(run):
    folder, payload = run
    config = load_config(folder / "config.toml")
    assert config.variables == ("recorded_velocity",)
    assert (config.pairs[0].source, len(config.pairs[0].targets)) == (("sub-Sim_ses-mon",), 4)
    assert (folder / "report.html").stat().st_size > 10_000
    rows = read_results(folder / "results.nc").rows
    assert set(rows["arm"]) >= {"frozen", "normaliser", "immediate_rmsprop", "network_oracle", "rls", "persistence"}
    assert (rows["status"] == "ok").all()
    assert payload["jobs"]["failed"] == []


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_planted_cause_is_named(run, kind):
    network, wiener = explain(run[0], f"mon:{kind}", workers=0)[0]
    wanted = {"rates": "normaliser", "swapped": "channels", "late": "lag", "same": "nothing"}[kind]
    assert wiener.cause == wanted
    assert network.cause == wanted
    rows = {row.part: row for row in wiener.rows}
    assert rows["frozen"].change is None
    for row in wiener.rows[2:]:
        assert row.change == pytest.approx(row.r2 - rows["frozen"].r2)
        assert row.change_low <= row.change <= row.change_high
    if kind == "late":  # counts come 100 ms late: those of two bins later are the right ones
        assert "100 ms later" in rows["lag"].what
        assert rows["lag"].r2 == pytest.approx(rows["own day"].r2, abs=0.1)
    if kind == "swapped":
        assert "channels at their mean" in rows["channels"].what


def test_scores_are_those_of_the_run(run):
    """The frozen decoder, the causal normaliser and the retrained ones have the score that the run's table gives."""
    rows = read_results(run[0] / "results.nc").rows
    rows = rows[(rows["metric"] == "r2") & (rows["phase"] == "held_out") & rows["target"].str.contains("rates")]
    for found in explain(run[0], "mon:rates", workers=0)[0]:
        mine = {row.part: row.r2 for row in found.rows}
        own = rows[rows["cell"] == ("" if found.decoder.startswith("Wiener") else "tanh")].set_index("arm")["value"]
        refit = "ridge_oracle" if found.decoder.startswith("Wiener") else "network_oracle"
        for part, arm in (("frozen", "frozen"), ("normaliser, causal", "normaliser"), ("labels", refit)):
            assert mine[part] == pytest.approx(own[arm], abs=1e-9)


def test_explain_on_the_command_line(run, call, tmp_path):
    explain(run[0], "mon:late", workers=0)
    code, said, _ = call("explain", run[0], "mon:late", "--workers", 0, "--json", tmp_path / "why.json")
    assert code == 0
    assert "What explains it: time" in said
    assert "need not add up" in said
    payload = json.loads((tmp_path / "why.json").read_text())
    assert [each["cause"] for each in payload["decoders"]] == ["lag", "lag"]
    assert payload["jobs"]["executed"] == 0  # all of it was there


def test_explain_reads_the_cache_as_a_run_does(run, call, monkeypatch):
    given = {}

    def prepare(*arguments, **options):
        given.update(options)
        raise InputError("no further")

    monkeypatch.setattr("bci_adapt.experiment.explain.prepare_sessions", prepare)
    for options, wanted in ((["--offline", "--verify", "-q"], True), ([], False)):
        assert call("explain", run[0], "mon:late", *options)[0] == 2
        assert [given[name] for name in ("offline", "verify", "sure")] == [wanted] * 3


def test_what_the_source_notes_is_said(run, call, tmp_path):
    """Of the run's own files there is nothing to note; of a folder, that something else lies in it."""
    for path in map(Path, load_config(run[0] / "config.toml").source.paths):
        (tmp_path / path.name).symlink_to(path)
    asked = ("explain", run[0], "mon:late", "--workers", 0, "--json", tmp_path / "why.json")
    code, _, err = call(*asked)
    assert (code, "note:" in err, json.loads((tmp_path / "why.json").read_text())["notes"]) == (0, False, [])
    (tmp_path / "stray.npz").touch()
    code, _, err = call(*asked, "--data", tmp_path)
    assert code == 0, err
    assert "note: " in err
    assert "not 1 arrays (*.npz) that lie there, too" in err
    (said,) = json.loads((tmp_path / "why.json").read_text())["notes"]
    assert f"note: {said}" in err
    assert "note:" not in call(*asked, "--data", tmp_path, "-q")[2]


@pytest.mark.parametrize(
    ("pair", "options", "message"),
    [
        ("mon", (), "SOURCE:TARGET"),
        ("mon:friday", (), "no pair matches 'mon:friday': .*mon:sub-Sim_ses-late"),
        ("mon:sub", (), "4 pairs match"),
        ("mon:late", ("--variable", "position"), "this run decoded recorded_velocity"),
    ],
)
def test_a_pair_that_is_none_is_refused(run, call, pair, options, message):
    code, _, said = call("explain", run[0], pair, "--workers", 0, *options)
    assert code == 2
    import re

    assert re.search(message, said.replace("\n", " "))


def test_another_recording_than_the_run_had_is_refused(run, call, tmp_path):
    (tmp_path / "config.toml").write_text((run[0] / "config.toml").read_text())
    manifest = json.loads((run[0] / "manifest.json").read_text())
    for each in manifest["sessions"]:
        each["source_sha256"] = "0" * 64
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"content": ""}))
    code, _, said = call("explain", tmp_path, "mon:late", "--workers", 0)
    assert code == 2
    assert "not the recording of this run" in said
    assert call("explain", tmp_path / "nowhere", "mon:late")[0] == 2


def test_channels_that_changed_rank_first(tmp_path):
    """Half of the channels swap their units: they are the ones that changed most."""
    sessions = [prepare(write_day(tmp_path, number, kind), 0.05) for number, kind in ((0, "mon"), (1, "swapped"))]
    found = drift(*(day(each, "velocity") for each in sessions), Settings(n_boot=50, n_permutations=19))
    names = found.channels["common"]
    change = dict(zip(names, counterfactual.channel_changes(found), strict=True))
    swapped = {name for name in names if int(name.rpartition("elec")[2]) % 2}
    ranked = sorted(names, key=lambda name: -change[name])
    assert len(swapped & set(ranked[: len(swapped)])) >= len(swapped) - 2


ROW = Row("", "", 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("loss", "gains", "cause"),
    [
        (0.4, {"normaliser": 0.3, "channels": 0.2, "lag": 0.0}, "normaliser"),
        (0.4, {"normaliser": 0.05, "channels": 0.02, "lag": 0.0}, ""),  # an eighth of it explains little
        (0.02, {"normaliser": 0.0, "channels": 0.0, "lag": 0.06}, "lag"),  # the own day is a weak standard
        (0.02, {"normaliser": 0.01, "channels": 0.0, "lag": 0.0}, "nothing"),
        (-0.1, {"normaliser": 0.0, "channels": 0.0, "lag": 0.0}, "nothing"),
    ],
)
def test_cause(loss, gains, cause):
    rows = {part: ROW._replace(change=gain, change_low=gain - 0.01) for part, gain in gains.items()}
    assert explaining._cause(loss, rows) == cause
    unsure = {part: row._replace(change_low=-0.01) for part, row in rows.items()}
    assert explaining._cause(0.4, unsure) == ""
