"""Configs, pairs, and a whole tiny experiment on files: what is run, what is reused, what is refused."""

import json
import re
import shutil
import warnings
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from caches import new_cache

from bci_adapt.archive.sources import base as source_base
from bci_adapt.data.labelled import session_arrays
from bci_adapt.data.prepare import prepare
from bci_adapt.data.session_files import write_session
from bci_adapt.errors import InputError
from bci_adapt.experiment import preparing
from bci_adapt.experiment import run as experiment
from bci_adapt.experiment.arms import linear_arms, network_arms, standing_names
from bci_adapt.experiment.asked import ArmSection
from bci_adapt.experiment.building import Builder
from bci_adapt.experiment.common_jobs import columns_job, prepare_job
from bci_adapt.experiment.config import load_config, parse_config, to_toml
from bci_adapt.experiment.foreign import Foreign
from bci_adapt.experiment.jobs import adapt, fit, score
from bci_adapt.experiment.pairs import Pair, choose_pairs, match_channels, require_source, unscorable, unusable_halves
from bci_adapt.experiment.preparing import open_source, prepare_sessions
from bci_adapt.experiment.run import run_experiment
from bci_adapt.experiment.run_folder import tell_what_is_damaged
from bci_adapt.ground.jobs import Job
from bci_adapt.learning.credit.base import rules
from bci_adapt.learning.optimizers import optimizers
from bci_adapt.results import report
from bci_adapt.results.analysis import analyse
from bci_adapt.results.arms import Arms
from bci_adapt.results.manifest import Manifest, read_manifest
from bci_adapt.results.report import comparisons
from bci_adapt.results.summary import leak, summarise
from bci_adapt.results.table import read_results
from bci_adapt.results.terminal import json_payload

TINY = """
name = "tiny"
stream_s = 60.0
min_held_out_s = 50.0
label_delay_s = 0.2
seeds = [0, 1]

[source]
kind = "simulated"
days = [0, 40, 200]
duration_s = 120.0
n_units = 20

[[pairs]]
source = 1
targets = [2, 3]

[network]
cells = ["tanh"]
n_hidden = 6
n_updates = 40
oracle_updates = 40
warm_up_s = 10.0

[linear]
n_lags = 4
memory_s = 100.0

[sweeps]
arms = []

[controls]
without = [
    "output_bias", "readout", "recurrent", "from_random", "intention", "pseudo", "fine_tuned", "joint_oracle",
    "joint_ridge", "aligned", "kalman_frozen", "kalman_normaliser", "kalman_adaptive", "kalman_refit",
    "kalman_pv_frozen", "kalman_pv_normaliser", "kalman_pv_adaptive", "kalman_pv_refit",
]
no_drift = false
continuing = false
back = false
channels = false
cold = false
costs = false
drift = false

[[arms]]
rule = "immediate"
optimizer = "rmsprop"
learning_rate = 3e-3

[[arms]]
rule = "window"
steps = 4
optimizer = "rmsprop"
learning_rate = 3e-3
seeds = [0]
"""


ADAM = '[[arms]]\nrule = "window"\noptimizer = "adam"\nlearning_rate = 1e-3\n'


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One cache for this file, so that what a test has run the next one reuses."""
    return new_cache(tmp_path_factory.mktemp("experiment"))


@pytest.fixture(autouse=True)
def _own_cache(cache, monkeypatch, request):
    """No report is drawn, which takes longer than the run, where a test does not ask for `page`."""
    monkeypatch.setenv("BCI_ADAPT_CACHE", str(cache))
    if "page" not in request.fixturenames:
        monkeypatch.setattr(report, "render_report", lambda folder: None)


@pytest.fixture
def page():
    """The text of a run's report."""
    return lambda folder: (folder / "report.html").read_text()


def recordings(config):
    source = open_source(config)
    return [source.fetch(name) for name in source.list().index]


def planned(config):
    """Every job of an experiment by key, those that others need included."""
    prepared, pairs = prepare_sessions(config, [*config.pairs, *config.continual], workers=0)
    builders = prepared.builders(config, {}, None)
    plan = experiment._plan(config, prepared, builders, dict.fromkeys(pairs, ""), (), None)
    jobs, left = {}, [*plan.jobs(), columns_job(config, prepared.jobs)]
    while left:
        job = left.pop()
        jobs[job.key] = job
        left += [value for value in job.inputs.values() if isinstance(value, Job)]
    return jobs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("strem_s = 1", r"unknown key 'strem_s'; did you mean 'stream_s'"),
        ("[network]\nn_hiden = 3", r"'network.n_hiden'; did you mean 'n_hidden'"),
        ('name = "a/../b"', "name"),
        ("seeds = 'x'", "seeds"),
        ("rates_tuned = true", "rates_tuned"),
        ("stream_s = -3", r"stream_s: .*greater than 0, got -3"),
        ('[network]\ncells = ["lstn"]', r"unknown cell 'lstn'"),
        ('[[arms]]\nrule = "imediate"\noptimizer = "sgd"\nlearning_rate = 1', r"did you mean 'immediate'"),
        ('[[arms]]\nrule = "immediate"\noptimizer = "sdg"\nlearning_rate = 1', r"did you mean 'sgd'"),
        ('[[arms]]\nrule = "immediate"\noptimizer = "sgd"\nlearning_rate = 1\nsteps = 4', "unknown key 'steps'"),
        (f"{ADAM}stepps = 4", "arms.0: unknown key 'stepps'; did you mean 'steps'"),
        (f"{ADAM}beta_2 = 0.9", "arms.0: unknown key 'beta_2'; did you mean 'beta2'"),
        (f"{ADAM}aver = 0.9", "arms.0: unknown key 'aver'; did you mean 'average'"),
        (f"{ADAM}steps = 1.5", "arms.0: steps takes int, got 1.5"),
        (f"{ADAM}steps = true", "arms.0: steps takes int, got True"),
        (f"{ADAM}beta2 = nan", "arms.0: beta2 must be finite, got nan"),
        ("stream_s = inf", "stream_s: .* finite number, got inf"),
        (f"{ADAM}steps = 0", "arms.0: window: steps must be at least 1"),
        (f"{ADAM}beta2 = [0.9]", "arms.0.beta2"),
        (f"{ADAM}beta2 = 0.999\n{ADAM.replace('1e-3', '2e-3')}", r"two arms are 'window4_adam'"),
        ('[[arms]]\nrule = "readout"\noptimizer = "rmsprop"\nlearning_rate = 1\nseeds = [9]', "seed 9"),
        ("seeds = []", r"seeds: .* at least 1 item.*, got \[\]"),
        ("seeds = [0, -1]", r"seeds.1: .* greater than or equal to 0, got -1"),
        ("seeds = [0, 2, 2]", r"seeds: 2 is given twice, got \[0, 2, 2\]"),
        ("[network]\ncells = []", r"network.cells: .* at least 1 item.*, got \[\]"),
        ('[network]\ncells = ["gru", "gru"]', "network.cells: 'gru' is given twice"),
        ('[[arms]]\nrule = "readout"\noptimizer = "sgd"\nlearning_rate = 1\nseeds = []', r"arms.0.seeds: .*got \[\]"),
        ('[[arms]]\nrule = "readout"\noptimizer = "sgd"\nlearning_rate = 1\ncells = []', r"arms.0.cells: .*got \[\]"),
        ('[[arms]]\ndecoder = "stacked"\nprior_s = -3.0', "arms.0: prior_s: expected seconds, more than 0, got -3.0"),
        ('[[arms]]\ndecoder = "rls"\nmemory_s = 0.0', "arms.0: memory_s: expected seconds, more than 0, got 0.0"),
        ('[[arms]]\ndecoder = "wiener"\nn_lags = 0', "arms.0: n_lags: expected a whole number, 1 or more, got 0"),
        ('[[arms]]\ndecoder = "kalman"\nlag_bins = -1', "arms.0: lag_bins: expected a whole number, 0 or more, got -1"),
        ('[[arms]]\ndecoder = "wiener"\nseeds = [0]', "arms.0: seeds: the decoder wiener is the same with every seed"),
        ('[[arms]]\ndecoder = "rls"\nseeds = [0]', "arms.0: seeds: the decoder rls is the same with every seed"),
        ("this is not toml", "not valid TOML"),
    ],
)
def test_a_bad_config_names_file_and_key(tmp_path, change, message):
    base = 'name = "x"\n[source]\nkind = "folder"\n[[pairs]]\nsource = 1\ntargets = [2]\n'
    arms = "" if "arms" in change else "arms = []\n"
    head, tail = ("", change) if change.startswith("[") else (change, "")
    lines = [line for line in base.splitlines() if not (line.startswith("name") and "name" in change)]
    path = tmp_path / "bad.toml"
    path.write_text(f"{head}\n{arms}" + "\n".join(lines) + f"\n{tail}")
    with pytest.raises(InputError, match=message) as caught:
        load_config(path)
    assert str(path) in str(caught.value)


def test_shipped_configs_are_valid_and_survive_being_written(request):
    folder = request.config.rootpath / "configs"
    found = sorted(folder.glob("*.toml"))
    assert {"demo", "wrist"} <= {path.stem for path in found}
    for path in found:
        config = load_config(path)
        assert config.label_delay_s == 0.5
        import tomllib

        again = parse_config(tomllib.loads(to_toml(config.model_dump(mode="json", exclude_none=True))), "written")
        assert again == config


@pytest.mark.parametrize(
    ("keys", "name", "rule", "optimizer"),
    [
        ({"rule": "window", "steps": 4, "optimizer": "rmsprop"}, "window4_rmsprop", "window4", "rmsprop"),
        ({"rule": "window", "optimizer": "rmsprop"}, "window4_rmsprop", "window4", "rmsprop"),
        ({"rule": "readout", "optimizer": "rmsprop"}, "readout", "readout", "rmsprop"),
        ({"rule": "readout", "optimizer": "sgd"}, "readout_sgd", "readout", "sgd"),
        (
            {"rule": "immediate", "optimizer": "rmsprop", "average": 0.9},
            "immediate_rmsprop_ema",
            "immediate",
            "rmsprop",
        ),
        (
            {"rule": "window", "steps": 2, "optimizer": "adam", "average": 0.9, "normaliser": "fixed"},
            "window2_adam_ema_fixed",
            "window2",
            "adam",
        ),
        (
            {"rule": "trace", "decay": 0.5, "optimizer": "rmsprop", "beta2": 0.9, "epsilon": 1e-6},
            "trace(0.5)_rmsprop(beta2=0.9, epsilon=1e-06)",
            "trace(0.5)",
            "rmsprop(beta2=0.9, epsilon=1e-06)",
        ),
    ],
)
def test_the_name_of_an_arm_is_made_of_its_parts(keys, name, rule, optimizer):
    arm = ArmSection(**keys, learning_rate=1e-3)
    assert (arm.name, arm.rule_text, arm.optimizer_text) == (name, rule, optimizer)


def test_no_constant_has_two_owners():
    """Every constant of every rule and optimiser can be given as a plain key of an arm."""
    keys = set(ArmSection.model_fields)
    of_rules, of_optimizers = (
        {field.name for variant in variants.values() for field in fields(variant)}
        for variants in (rules(), optimizers())
    )
    assert not of_rules & of_optimizers
    assert not of_rules & keys
    assert of_optimizers & keys == {"learning_rate"}


def test_settings_and_pairs(tiny, tmp_path):
    config = load_config(tiny, ["network.n_hidden=9", "targets=3", "name=other"], data=tmp_path)
    assert (config.network.n_hidden, config.name, config.source.path) == (9, "other", str(tmp_path))
    ids = ["s-20120101", "s-20120105", "s-20120209"]
    assert [(pair.source, pair.target) for pair in choose_pairs(config.pairs, ids)] == [(ids[0], ids[2])]
    named = load_config(tiny, ["targets=20120105,20120209"])
    assert [pair.target for pair in choose_pairs(named.pairs, ids)] == ids[1:]
    for settings, message in [
        (["targets="], r"pairs.0.targets: .* at least 1 item.*, got \[\]"),
        (["targets=2,2"], "pairs.0.targets: 2 is given twice"),
        (["targets=4"], "session number 4"),
        (["targets=1"], "not later"),
        (["targets=20130101"], "no session matches"),
        (["targets=s-2012"], "3 sessions match"),
        (["nonsense"], "key=value"),
    ]:
        with pytest.raises(InputError, match=message):
            choose_pairs(load_config(tiny, settings).pairs, ids)


def test_a_tiny_experiment_from_nwb_to_report_runs_once(tiny):
    config = load_config(tiny)
    first = run_experiment(config, workers=0, command="test")
    jobs = planned(config)
    assert 30 < first.executed <= len(jobs), "of one file's tests, some share jobs"
    assert first.manifest.jobs["failed"] == []
    again = run_experiment(config, workers=0)
    assert (again.executed, again.folder) == (0, first.folder)
    assert again.reused > 0
    assert [each["session"] for each in first.manifest.columns] == [e["session_id"] for e in first.manifest.sessions]
    assert {path.name for path in first.folder.iterdir()} == {"config.toml", "manifest.json", "results.nc"}
    assert load_config(first.folder / "config.toml") == config

    stored = read_results(first.folder / "results.nc")
    rows, curves, trajectories, attrs = stored.rows, stored.curves, stored.trajectories, stored.attrs
    expected = {"frozen", "normaliser", "immediate_rmsprop", "window4_rmsprop", "rls", "ridge_oracle"}
    expected |= {"network_oracle", "persistence", "canary:immediate_rmsprop", "canary:window4_rmsprop", "canary:rls"}
    assert set(rows["arm"]) == expected
    assert (rows["status"] == "ok").all()
    per_arm = rows[rows["metric"] == "r2"].groupby(["arm", "cell", "phase"]).size()
    assert per_arm["immediate_rmsprop", "tanh", "online"] == 4  # two targets, two seeds
    assert per_arm["window4_rmsprop", "tanh", "held_out"] == 2  # one seed
    assert per_arm["canary:immediate_rmsprop", "tanh", "held_out"] == 2  # canaries run one seed
    assert ("network_oracle", "tanh", "online") not in per_arm
    assert set(rows["metric"]) == {"r2", "r2_uniform", "r2:x", "r2:y", "pearson", "rmse", "r2_all_bins"}
    assert sorted(set(rows["day_gap"])) == [40.0, 200.0]
    assert attrs["unit"] == "centimeters/s"
    assert attrs["delay_bins"] == first.manifest.delay_bins == 4
    assert len(curves)
    assert len(trajectories)

    # Statistics are followed, weights are not touched, where no label is given.
    moved = rows.groupby("arm")["weight_change"].max()
    assert moved["normaliser"] == moved["frozen"] == 0.0
    assert moved["immediate_rmsprop"] > 0.0
    payload = json_payload(stored, first.manifest, analyse(stored, first.manifest))
    assert set(payload) >= {"rows", "summary", "unscorable", "refused", "leak", "jobs"}
    assert set(payload["leak"]) == {"immediate_rmsprop", "window4_rmsprop", "rls"}
    assert payload["jobs"]["executed"] == first.executed
    json.dumps(payload, allow_nan=False)


def test_the_command_line_runs_it_and_says_what_was_done(tiny, tmp_path, call, page):
    code, said, _ = call("run", tiny, "--workers", 0, "--quiet")
    assert (code, said) == (0, "")
    code, said, _ = call("run", tiny, "--workers", 0, "--json", tmp_path / "scores.json")
    assert code == 0
    assert "nothing to do: 0 jobs executed" in said
    assert "rates not tuned" in said
    assert "report.html" in said
    payload = json.loads((tmp_path / "scores.json").read_text())
    assert payload["jobs"]["executed"] == 0
    entry = {"arm", "cell", "variable", "phase", "metric", "mean", "low", "high", "n_targets"}
    assert all(entry <= set(each) for each in payload["summary"])
    assert {each["phase"] for each in payload["summary"]} == {"online", "online_late", "held_out"}
    assert json.loads(call("run", tiny, "--workers", 0, "--json", "-")[1])["leak"].keys() == payload["leak"].keys()
    folder = Path(next(word for word in said.split() if word.endswith("report.html"))).parent
    before = page(folder)
    (folder / "report.html").unlink()
    assert call("report", folder)[0] == 0
    assert page(folder) == before


def test_a_changed_rate_reruns_only_what_depends_on_it(tiny):
    config = load_config(tiny)
    run_experiment(config, workers=0)
    before = planned(config)
    text = tiny.read_text()
    tiny.write_text(text.replace("learning_rate = 3e-3\n\n", "learning_rate = 2e-3\n\n", 1))
    config = load_config(tiny)
    new = [job for key, job in planned(config).items() if key not in before]
    assert {job.kind for job in new} == {"adapt", "score"}
    assert all("immediate_rmsprop" in job.label for job in new if job.kind == "adapt")
    assert run_experiment(config, workers=0).executed == len(new) == 2 * (2 + 1) + 2, "targets × (seeds + canary)"


def test_a_recording_that_cannot_be_used_stops_the_run_and_names_the_file(tiny, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for path in recordings(load_config(tiny)):
        shutil.copy(path, folder)
    broken = sorted(folder.iterdir())[1]
    broken.write_bytes(broken.read_bytes()[:200_000])
    with pytest.raises(InputError, match=re.escape(broken.name)):
        run_experiment(load_config(tiny, data=folder), workers=0)
    with pytest.raises(InputError, match="--data"):
        run_experiment(load_config(tiny, ["source={kind='folder'}"]), workers=0)


def test_only_what_a_pair_needs_is_fetched_and_a_folder_is_listed_once(tiny, tmp_path, monkeypatch):
    class Enough(Exception):
        pass

    def stop(*arguments, **options):
        raise Enough

    folder = tmp_path / "data"
    folder.mkdir()
    for path in recordings(load_config(tiny)):
        shutil.copy(path, folder)
    opened = []
    identity = source_base.identify
    monkeypatch.setattr(source_base, "identify", lambda *given: opened.extend(given[0]) or identity(*given))
    monkeypatch.setattr(preparing, "execute", stop)
    with pytest.raises(Enough):
        run_experiment(load_config(tiny, data=folder))
    assert len(opened) == 3
    with monkeypatch.context() as fresh:
        fresh.setenv("BCI_ADAPT_CACHE", str(tmp_path / "cache"))
        with pytest.raises(Enough):
            run_experiment(load_config(tiny, ["targets=3"]))
        assert len(list((tmp_path / "cache").rglob("*.nwb"))) == 2
        with pytest.raises(InputError, match="session number 4"):
            run_experiment(load_config(tiny, ["targets=4", "source.seed=1"]))
        assert len(list((tmp_path / "cache").rglob("*.nwb"))) == 2


def test_a_target_without_held_out_movement_is_unscorable(tiny, tmp_path):
    config = load_config(tiny)
    session = prepare(recordings(config)[0], config.bin_s)
    assert unscorable(session, config) == ""
    still = session.copy(deep=True)
    still["velocity"][1200:] *= 0.2
    assert "tenth" in unscorable(still, config)
    masked = session.copy(deep=True)
    masked["velocity_valid"][1500:] = False
    assert "15.0 s of usable velocity labels" in unscorable(masked, config)
    unseen = session.copy(deep=True)
    unseen["valid"][1500:] = False
    assert "15.0 s of usable velocity labels" in unscorable(unseen, config)
    assert "held" in unscorable(session.isel(time=slice(0, 1400)), config)
    inside = session_arrays(session, "velocity").in_trial
    rests = session.copy(deep=True)
    rests["velocity"][1200:] *= np.where(inside[1200:], 0.2, 1.0)[:, None]
    rests["velocity"][:1200] *= np.where(inside[:1200], 1.0, 5.0)[:, None]
    assert "tenth" in unscorable(rests, config, in_trial=True)
    moves = session.copy(deep=True)
    moves["velocity"][1200:] *= np.where(inside[1200:], 1.0, 0.0)[:, None]
    between = np.flatnonzero(~inside[:1200])
    moves["velocity"][between] = 500.0 * (-1.0) ** np.arange(len(between))[:, None]
    assert "tenth" in unscorable(moves, config)
    assert unscorable(moves, config, in_trial=True) == "", "bins between trials are not scored"
    assert unusable_halves(session, config) == ""
    masked["velocity_valid"][:1200] = False
    assert "usable velocity labels" in unusable_halves(masked, config)
    short = load_config(tiny, ["stream_s=100", "min_held_out_s=61"])  # of 120 s half at most are the stream
    assert "60.0 s of usable velocity labels are held out, at least 61 s" in unscorable(session, short)


def test_a_source_without_labels_is_refused_before_any_job_and_a_failing_fit_names_its_session(tiny, tmp_path):
    config = load_config(tiny)
    session = prepare(recordings(config)[0], config.bin_s)
    name = session.attrs["session_id"]
    require_source(session, config)
    blind, still, without = (session.copy(deep=True) for _ in range(3))
    blind["velocity_valid"][15:] = False  # its first bin has none
    still["velocity"][:, 1] = 3.0
    for unusable, message in [
        (blind, f"{name}: this source session has 0.7 s of usable velocity labels, at least 1 s"),
        (still, f"{name}: .* never changes in axis y"),
        (without.drop_vars(["velocity", "velocity_valid"]), f"{name}: expected target 'velocity'"),
    ]:
        with pytest.raises(InputError, match=message):
            require_source(unusable, config)
    write_session(still, tmp_path / "still.nc")
    small = {"cell": "tanh", "n_hidden": 3, "n_updates": 1}
    parameters = {
        "decoder": "online_rnn",
        "constants": small,
        "variables": ["velocity"],
        "target_lag_bins": 0,
        "stream_s": None,
    }
    parameters["n_streams"] = 0
    with pytest.raises(InputError, match=f"online_rnn on {name}: y: .* constant"):
        fit.run(parameters, {"session0": tmp_path / "still.nc"}, tmp_path / "decoder.npz")
    fit.run(parameters, {"session0": recorded(session, tmp_path)}, tmp_path / "decoder.npz")
    narrow = recorded(session.isel(channel=slice(2, None)), tmp_path)
    adapting = {
        "variables": ["velocity"],
        "target_lag_bins": 0,
        "stream_s": 60.0,
        "constants": {},
        "become": None,
        "supervision": "true",
    }
    adapting |= {"at_trial_end": False, "label_fraction": 1.0, "budget_s": None, "budget_trials": None}
    adapting |= {"seed": 0, "control": None}
    adapting |= {"continuing": False, "back": False}
    with pytest.raises(
        InputError, match=f"online_rnn on {name}: channels of {name} .* do not fit: the session lacks 2 of 20"
    ):
        adapt.run(adapting, {"decoder": tmp_path / "decoder.npz", "target": narrow}, tmp_path / "out.npz")


def recorded(session, folder):
    path = folder / f"{session.sizes['channel']}.nc"
    write_session(session, path)
    return path


def test_a_diverging_rate_is_counted_as_a_failure_and_shown(tiny):
    text = tiny.read_text().replace(
        'optimizer = "rmsprop"\nlearning_rate = 3e-3\n\n', 'optimizer = "sgd"\nlearning_rate = 1e6\n\n', 1
    )
    tiny.write_text(text.replace('name = "tiny"', 'name = "wild"'))
    done = run_experiment(load_config(tiny), workers=0)
    stored = read_results(done.folder / "results.nc")
    rows, arms = stored.rows, Arms(stored.arms)
    failed = rows[rows["status"] == "failed"]
    assert set(failed["arm"]) == {"immediate_sgd", "canary:immediate_sgd"}
    assert set(failed["reason"]) <= {"weights diverged", "predictions diverged"}
    entry = next(each for each in summarise(rows, arms) if each["arm"] == "immediate_sgd" and each["metric"] == "r2")
    assert entry["n_targets"] == 0
    assert "failed" in entry["note"]
    assert np.isfinite(rows.loc[rows["status"] == "ok", "value"]).all()


@pytest.fixture
def two_rules(tiny):
    """Two rules and two seeds on one pair, at rates that no other test has run."""
    text = tiny.read_text().replace("3e-3", "1.5e-3").replace('name = "tiny"', 'name = "partly"')
    tiny.write_text(text.replace("targets = [2, 3]", "targets = [2]"))
    return tiny


def test_a_job_that_fails_costs_its_own_arm_only_and_is_told(two_rules, call, monkeypatch, page):
    whole = adapt.run

    def without_windows(parameters, inputs, out):
        if parameters["constants"].get("rule") == "window":
            raise RuntimeError("out of luck")
        whole(parameters, inputs, out)

    monkeypatch.setattr(adapt, "run", without_windows)
    code, said, err = call("run", two_rules, "--workers", 0, "--quiet")
    assert (code, said) == (1, "")
    lines = err.strip().splitlines()
    assert len(lines) == 2, "the arm and its canary"
    assert all(line.startswith("failed: ") and line.endswith("RuntimeError: out of luck") for line in lines)
    code, said, err = call("run", two_rules, "--workers", 0)
    assert code == 1
    assert "2 of 17 runs failed" in said
    assert "leak not checked: 4 steps of history + RMSprop: 1 of 1 canary runs failed" in said
    folder = Path(next(word for word in said.split() if word.endswith("report.html"))).parent
    rows = read_results(folder / "results.nc").rows
    failed = rows[rows["status"] == "failed"]
    assert set(failed["arm"]) == {"window4_rmsprop", "canary:window4_rmsprop"}
    assert set(failed["phase"]) == {"online", "online_late", "held_out"}
    assert set(failed["reason"]) == {"RuntimeError: out of luck"}
    assert {"immediate_rmsprop", "canary:immediate_rmsprop", "rls", "frozen"} <= set(
        rows.loc[rows["value"] == rows["value"], "arm"]
    )
    manifest = json.loads((folder / "manifest.json").read_text())
    assert len(manifest["jobs"]["failed"]) == 2
    assert "out of luck" in manifest["jobs"]["failed"][0]["traceback"]
    text = page(folder)
    assert text.count("RuntimeError: out of luck") >= 3
    assert "1 of 1 runs failed" in text

    monkeypatch.setattr(adapt, "run", whole)
    mended = run_experiment(load_config(two_rules), workers=0)
    assert (mended.folder, mended.manifest.jobs["failed"]) == (folder, [])
    assert mended.executed == 3, "the two that failed, and the scores"
    assert (read_results(folder / "results.nc").rows["status"] == "ok").all()


def test_a_fit_that_fails_costs_what_starts_from_it_and_a_run_without_any_arm_is_refused(two_rules, monkeypatch):
    text = two_rules.read_text().replace("updates = 40", "updates = 3")
    text = text.replace("n_lags = 4", "n_lags = 3").replace("label_delay_s = 0.2", "label_delay_s = 0.25")
    two_rules.write_text(text)  # no fit of another test can be reused
    whole = fit.run

    def only(*allowed):
        def run(parameters, inputs, out):
            if (parameters["decoder"], parameters["constants"].get("seed")) not in allowed:
                raise InputError("no such luck")
            whole(parameters, inputs, out)

        return run

    monkeypatch.setattr(fit, "run", only())
    with pytest.raises(InputError, match="no such luck"):
        run_experiment(load_config(two_rules), workers=0)
    monkeypatch.setattr(fit, "run", only(("online_rnn", 0), ("wiener", None)))
    done = run_experiment(load_config(two_rules), workers=0)
    rows = read_results(done.folder / "results.nc").rows
    ok, failed = (rows[rows["status"] == status] for status in ("ok", "failed"))
    assert set(ok.loc[ok["cell"] == "tanh", "seed"]) == {0}
    assert set(failed.loc[failed["cell"] == "tanh", "seed"]) == {1}
    assert set(failed["arm"]) >= {"rls", "canary:rls", "persistence", "network_oracle", "immediate_rmsprop"}
    assert "pretrain tanh seed 1 on sub-Sim_ses-CO-20140303: no such luck" in set(failed["reason"])
    assert len(done.manifest.jobs["failed"]) == 4, "two networks, two linear decoders"


def test_scores_that_fail_are_counted_once_and_a_run_without_any_is_refused(tiny, monkeypatch):
    tiny.write_text(TINY[: TINY.rindex("[[arms]]")])  # one arm less: what the others predicted is there
    whole, calls = score.run, []

    def broken(parameters, inputs, out):
        calls.append(1)
        if len(calls) != 4:
            raise RuntimeError("not today")
        whole(parameters, inputs, out)

    monkeypatch.setattr(score, "run", broken)
    with pytest.raises(RuntimeError, match=r"score .* failed:\n[^$]*not today"):
        run_experiment(load_config(tiny), workers=0)
    done = run_experiment(load_config(tiny), workers=0)
    assert len(calls) == 4
    assert [each["error"] for each in done.manifest.jobs["failed"]] == ["RuntimeError: not today"]
    assert read_results(done.folder / "results.nc").rows["target"].nunique() == 1


def test_a_finished_run_keeps_its_first_manifest_and_its_place(tiny, tmp_path):
    config = load_config(tiny)
    folders = [tmp_path / name for name in ("here", "there")]
    for folder in folders:
        folder.mkdir()
        for path in recordings(config):
            shutil.copy(path, folder)
    first, second, third = (
        run_experiment(load_config(tiny, data=folder), workers=0, command=command)
        for folder, command in [(folders[0], "one"), (folders[1], "two"), (folders[0], "three")]
    )
    assert first.folder == second.folder == third.folder
    for name in ("created", "command", "jobs", "versions"):
        assert getattr(third.manifest, name) == getattr(first.manifest, name)
    assert third.manifest == read_manifest(first.folder / "manifest.json")
    assert first.manifest.reruns == []
    again = [{key: each[key] for key in ("command", "executed", "reused")} for each in third.manifest.reruns]
    assert again == [{"command": name, "executed": 0, "reused": second.reused} for name in ("two", "three")]
    assert read_results(first.folder / "results.nc").attrs["created"] == first.manifest.created
    (first.folder / "manifest.json").write_text("{")
    assert run_experiment(load_config(tiny, data=folders[0]), workers=0, command="new").manifest.command == "new"


def test_a_retrained_network_runs_once_for_all_sources_of_a_target(tiny):
    config = load_config(tiny)
    files = recordings(config)
    names = [path.stem for path in files]
    sessions = {name: prepare_job(config, path, {}) for name, path in zip(names, files, strict=True)}
    about = {"date": "2014-03-03", "n_channels": 20, "n_axes": {"velocity": 2}, "has_targets": True, "has_trials": True}
    about |= {"half_s": 60.0}
    builder = Builder(config, sessions, dict.fromkeys(names, about), {})
    scores = [builder.pair(Pair((source,), names[2])) for source in names[:2]]
    paths = [
        {
            (arm["columns"]["arm"], arm["columns"]["seed"]): score.inputs[arm["input"]].path
            for arm in score.parameters["arms"]
        }
        for score in scores
    ]
    shared = {key for key, path in paths[0].items() if paths[1][key] == path}
    assert shared == {("network_oracle", 0), ("network_oracle", 1), ("ridge_oracle", 0)}


def test_a_dandiset_is_fetched_once_pinned_and_run_again_without_a_network(tiny, monkeypatch, call, page):
    import archive_server

    text = tiny.read_text().replace("seeds = [0, 1]", "seeds = [0]")
    start, stop = text.index("[source]"), text.index("[[pairs]]")
    config = tiny.with_name("fetched.toml")
    config.write_text(
        f'{text[:start]}[source]\nkind = "dandi"\ndandiset = "000688"\npaths = ["sub-Sim/*"]\n{text[stop:]}'
    )
    with archive_server.serving() as archive:
        monkeypatch.setenv("DANDI_INSTANCE", archive.url)
        for path in recordings(load_config(tiny)):
            archive.add(f"sub-Sim/{path.name}", path.read_bytes())
        archive.about = {"contributor": [{"name": "Made, Up", "includeInCitation": True}], "citation": "Up (2025) doi"}
        archive.add("sub-Sim/notes.txt", b"notes")
        code, _, err = call("run", config, "--workers", 0, "--set", "targets=2,3")
        assert code == 0, err
        assert len(archive.asked("/blobs/")) == 3
        assert "note: licence of 000688" in err
        assert "left out: 'sub-Sim/notes.txt'" in err
    lock = (config.parent / "sessions.lock.toml").read_text()
    assert lock.count("[[assets]]") == 3
    done = run_experiment(load_config(config), workers=0, lock=config.parent / "sessions.lock.toml", offline=True)
    assert done.executed == 0
    assert any("are left out: 'sub-Sim/notes.txt'" in note for note in done.manifest.notes)
    assert any(note.startswith("offline; all that is meant is known") for note in done.manifest.notes)
    assert done.manifest.datasets[0]["authors"] == ["Made, Up"]
    about = done.manifest.sessions[0]
    assert (about["dandiset"], about["asset_path"].startswith("sub-Sim/")) == ("000688", True)
    assert about["licence"]
    text = page(done.folder)
    assert about["licence"] in text
    assert about["asset_path"] in text
    assert "Authors: Made, Up" in text
    assert "Cite as: Up (2025) doi" in text
    for note in done.manifest.notes:
        assert note.replace("&", "&amp;").replace("'", "&#39;") in text or note in text, note


def test_days_between_anonymised_dates_are_unknown(tiny, page):
    import h5py

    folder = tiny.parent / "anonymised"
    folder.mkdir()
    for number, path in enumerate(recordings(load_config(tiny))):
        with h5py.File(shutil.copy(path, folder), "a") as file:
            file["session_start_time"][()] = f"1925-01-{number + 1:02d}T00:00:00+00:00"
    done = run_experiment(load_config(tiny, ["seeds=[0]"], data=folder), workers=0)
    rows = read_results(done.folder / "results.nc").rows
    assert rows["day_gap"].isna().all()
    assert set(rows["target_date"]) == {""}
    assert [each["date"] for each in done.manifest.sessions] == ["", "", ""]
    assert "anonymised" in page(done.folder)
    assert "1925-01" not in page(done.folder)


def other_electrodes(tiny):
    """The tiny experiment's recordings in a folder; the second day has lost three electrodes and renamed a fourth."""
    import h5py

    folder = tiny.parent / "changed"
    folder.mkdir()
    for path in recordings(load_config(tiny)):
        shutil.copy(path, folder)
    with h5py.File(sorted(folder.glob("*.nwb"))[1], "a") as file:
        labels = file["general/extracellular_ephys/electrodes/label"]
        for row in (2, 5, 7):
            labels[row] = f"gone{row}"
        labels[9] = "new"
    return folder


def test_sessions_meet_on_their_channels_by_the_policy_asked_for(tiny):
    tiny.write_text(tiny.read_text().replace("seeds = [0, 1]", "seeds = [0]"))
    folder = other_electrodes(tiny)
    with pytest.raises(InputError, match=r"M1/elec3.*missing = 'drop'"):
        run_experiment(load_config(tiny, data=folder), workers=0)
    runs = {}
    for rule in ("drop", "zero"):
        done = run_experiment(load_config(tiny, [f"channels.missing={rule}"], data=folder), workers=0)
        (entry,) = done.manifest.channels
        runs[rule] = entry
        rows = read_results(done.folder / "results.nc").rows
        assert set(rows["status"]) == {"ok"}
        said = comparisons._matched(done.manifest)
        assert all(f"matched by electrode, on {entry['n_channels']} channels; " in line for line in said[:1])
    gone = ["M1/elec3", "M1/elec6", "M1/elec8", "M1/elec10"]
    changed, same = runs["zero"]["targets"].values()
    assert (runs["zero"]["policy"], runs["zero"]["n_channels"]) == ("electrode", 20)
    assert (changed["zeroed"], same) == (gone, {"zeroed": [], "left_out": []})
    assert changed["left_out"] == ["M1/gone2", "M1/gone5", "M1/gone7", "M1/new"]
    assert runs["drop"]["n_channels"] == 16
    assert [each["left_out"] for each in runs["drop"]["targets"].values()] == [changed["left_out"], gone]


def test_what_quality_flags_on_the_source_is_removed_only_when_asked(tiny):
    config = load_config(tiny, ["targets=2"])
    sessions = {path.stem: prepare(path, 0.05) for path in recordings(config)[:2]}
    source, target = sessions
    sessions[source]["counts"].values[:, 4] = 0
    sessions[target]["counts"].values[:, 6] = 0  # dead on the target only: nobody could know at its start
    whole = match_channels(config, [source], [target], sessions)
    assert (len(whole.names), whole.removed) == (20, [])
    asked = load_config(tiny, ["targets=2", 'channels.remove=["dead channels"]'])
    found = match_channels(asked, [source], [target], sessions)
    label = sessions[source]["channel"].values.tolist()[4]
    assert (found.removed, len(found.names), label in found.names) == ([label], 19, False)
    with pytest.raises(InputError, match="did you mean 'dead channels'"):
        load_config(tiny, ['channels.remove=["dead channel"]'])


def test_a_decoder_is_an_arm_by_its_name(tiny):
    text = tiny.read_text().replace('name = "tiny"', 'name = "stacked"')
    asked = '[[arms]]\ndecoder = "stacked"\nrule = "immediate"\nprior = "mean"\nprior_s = 5.0\nseeds = [0]\n'
    tiny.write_text(text[: text.index("[[arms]]")] + asked)
    config = load_config(tiny, ["targets=2"])
    done = run_experiment(config, workers=0)
    stored, name = read_results(done.folder / "results.nc"), "stacked(prior=mean, prior_s=5)"
    rows, arms = stored.rows, Arms(stored.arms)
    own = rows[(rows["arm"] == name) & (rows["metric"] == "r2")]
    assert set(own["status"]) == {"ok"}
    assert {"online", "held_out"} <= set(own["phase"])
    assert set(own["decoder"]) == {"stacked"}
    assert f"canary:{name}" in set(rows["arm"])
    assert (arms.label(name), arms.role(name)) == ("stacked (prior=mean, prior_s=5)", "rival")
    assert load_config(done.folder / "config.toml") == config


def test_arms_of_ones_own_run_with_their_constants_and_canaries(tiny):
    text = tiny.read_text().replace('name = "tiny"', 'name = "own"')
    tiny.write_text(
        text[: text.index("[[arms]]")]
        + '[[arms]]\nrule = "trace"\ndecay = 0.5\noptimizer = "adam"\nbeta2 = 0.99\nlearning_rate = 1e-3\nseeds = [1]\n'
    )
    done = run_experiment(load_config(tiny, ["targets=2"]), workers=0)
    stored = read_results(done.folder / "results.nc")
    rows = stored.rows
    own = rows[rows["arm"] == "trace(0.5)_adam(beta2=0.99)"]
    assert set(own["rule"]) == {"trace(0.5)"}
    assert set(own["optimizer"]) == {"adam(beta2=0.99)"}
    assert set(own["seed"]) == {1}
    assert set(rows.loc[rows["arm"] == "canary:trace(0.5)_adam(beta2=0.99)", "seed"]) == {1}
    assert leak(rows, Arms(stored.arms)) == {"rls": False, "trace(0.5)_adam(beta2=0.99)": False}
    assert load_config(done.folder / "config.toml") == load_config(tiny, ["targets=2"])
    plain = run_experiment(load_config(tiny, ["targets=2", "arms=[]"]), workers=0)
    assert plain.executed == 1, "a score job"
    stored = read_results(plain.folder / "results.nc")
    assert leak(stored.rows, Arms(stored.arms)) == {"rls": False}


def test_a_variable_means_the_same_in_source_and_target(tiny):
    config = load_config(tiny, ["targets=2"])
    sessions = {path.stem: prepare(path, 0.05) for path in recordings(config)[:2]}
    source, target = sessions
    match_channels(config, [source], [target], sessions)
    for change, message in [
        (lambda s: s.assign_coords(axis=["u", "v"]), "u, v in"),
        (lambda s: s.drop_vars(["velocity", "velocity_valid"]), "expected target 'velocity'"),
    ]:
        with pytest.raises(InputError, match=message):
            match_channels(config, [source], [target], sessions | {target: change(sessions[target])})
    power = sessions[target].copy(deep=True)
    power["counts"] = power["counts"].astype(float).assign_attrs(units="volts")
    with pytest.raises(InputError, match="power of a band"):
        match_channels(config, [source], [target], sessions | {target: power})


# ------------------------------------------------------------------------------------------- everything at once

EVERYTHING = (
    TINY[: TINY.index("[sweeps]")]
    .replace('"tiny"', '"everything"')
    .replace("n_updates = 40", "n_updates = 10")
    .replace("oracle_updates = 40", "oracle_updates = 10\njoint_updates = 10\ntune_updates = 5")
    + """[sweeps]
arms = ["immediate_rmsprop", "rls"]
delay_s = [0.0, 0.2, "trial_end"]
label_fraction = [1.0, 0.3, 0.1]
budget_s = [0.0, 15.0, 30.0]
budget_trials = [2, 5]

[controls]
canary_shifts = 2

[[continual]]
source = 1
targets = [2, 3]

[[arms]]
rule = "immediate"
optimizer = "rmsprop"
learning_rate = 3e-3
"""
)
OWN = """
from bci_adapt.decoders.wiener import WienerDecoder

class Mine(WienerDecoder):
    def __init__(self, bin_s=0.05, n_lags=4, penalty=0.05, normaliser_s=300.0):
        super().__init__(n_lags, penalty, normaliser_s, bin_s)
"""


@pytest.fixture(scope="module")
def everything(cache, tmp_path_factory):
    """One run with every standing arm, study and control, and a decoder of one's own."""
    folder = tmp_path_factory.mktemp("everything")
    (folder / "all.toml").write_text(EVERYTHING)
    (folder / "mine.py").write_text(OWN)
    config = load_config(folder / "all.toml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BCI_ADAPT_CACHE", str(cache))
        own = Foreign.parse(f"{folder / 'mine.py'}:Mine")
        done = run_experiment(config, workers=0, foreign=[own])
    results = read_results(done.folder / "results.nc")
    return config, done, results


def arms_of(config):
    return [*network_arms(config, "tanh"), *linear_arms(config, {"velocity": 2})]


def table(rows, *names):
    return {tuple(row) for row in rows[list(names)].itertuples(index=False)}


def test_every_arm_has_a_row_for_every_part_it_is_scored_on(everything):
    config, done, (rows, *_) = everything
    assert done.manifest.jobs["failed"] == []
    assert set(rows["status"]) == {"ok"}
    rows = rows[rows["metric"] == "r2"]
    standing = rows[(rows["study"] == "") & (rows["control"] == "") & (rows["arm"] != "Mine")]
    expected = set()
    for arm in arms_of(config):
        for seed in arm.seeds:
            phases = set(arm.phases) - (set() if seed == arm.seeds[0] else {"continuing", "back"})
            expected |= {(arm.name, arm.cell, seed, phase) for phase in phases}
    assert {name for name, *_ in expected} == {*standing_names(config), "immediate_rmsprop"}
    for target in done.manifest.sessions[1:]:
        of_target = standing[standing["target"] == target["session_id"]]
        assert table(of_target, "arm", "cell", "seed", "phase") == expected
        assert len(of_target) == len(expected)
    for arm in arms_of(config):
        own = standing[(standing["arm"] == arm.name) & (standing["cell"] == arm.cell)]
        supervision = arm.columns.get("supervision", arm.supervision)
        assert set(own["supervision"]) == {supervision}
        assert set(own["budget_s"]) == {0.0 if supervision == "none" else config.stream_s}
        assert set(own["delay_s"]) == {0.2}
        if arm.learns:
            assert own["n_labels"].min() > 100
    assert set(rows.loc[rows["phase"] == "continuing", "seed"]) == {0}


def test_controls_have_their_rows(everything):
    config, _, (rows, *_) = everything
    rows = rows[rows["metric"] == "r2"]
    checked = {(arm.name, arm.cell) for arm in arms_of(config) if arm.checked} | {("Mine", "")}
    canaries = rows[rows["control"] == "time"]
    assert (canaries["canary"] == (canaries["control"] == "time")).all()
    assert set(rows.loc[rows["canary"], "control"]) == {"time"}
    swept = {("immediate_rmsprop", "tanh")}
    expected = {(f"canary:{name}", cell, 0) for name, cell in checked}
    assert table(canaries, "arm", "cell", "seed") == expected | {(f"canary:{name}", cell, 1) for name, cell in swept}
    assert set(canaries["phase"]) == {"online", "online_late", "held_out"}
    values = canaries[canaries["phase"] == "online"].groupby(["arm", "cell", "target"])["value"].nunique()
    for name, cell in checked:
        assert set(values[f"canary:{name}", cell]) == {1 + ((name, cell) in swept)}, "two shifts are two runs"
    channels = rows[rows["control"] == "channels"]
    assert table(channels, "arm", "cell") == {("channels:immediate_rmsprop", "tanh"), ("channels:rls", "")}
    assert not channels["canary"].any()


def test_studies_have_their_rows_and_agree_with_the_run_where_they_meet(everything):
    config, done, (rows, *_) = everything
    days = [each["session_id"] for each in done.manifest.sessions]
    rows = rows[rows["metric"] == "r2"]
    assert set(rows["study"]) == {"", "delay", "fraction", "budget", "trials", "no_drift", "cold", "continual"}
    studies = dict(iter(rows.groupby("study")))
    full, stream_s = 1.0, config.stream_s
    swept = {
        "delay": {(each, full, stream_s) for each in (0.0, 0.2, np.inf)},
        "fraction": {(0.2, each, stream_s) for each in (1.0, 0.3, 0.1)},
        "budget": {(0.2, full, each) for each in (0.0, 15.0, 30.0, stream_s)},
    }
    standing = rows[(rows["study"] == "") & (rows["control"] == "") & (rows["seed"] == 0)]
    keys = ["target", "arm", "cell", "phase"]
    for name, settings in swept.items():
        part = studies[name]
        assert table(part, "delay_s", "label_fraction", "budget_s") == settings
        assert table(part, "arm", "cell") == {("immediate_rmsprop", "tanh"), ("rls", "")}
        assert set(part["phase"]) == {"online", "held_out"}
        assert set(part["target"]) == set(days[1:])
        assert len(part) == 2 * 2 * 2 * len(settings)
        same = part[(part["delay_s"] == 0.2) & (part["label_fraction"] == full) & (part["budget_s"] == stream_s)]
        both = same.merge(standing, on=keys)
        assert len(both) == len(same) == 8
        assert (both["value_x"] == both["value_y"]).all()
        assert (both["n_labels_x"] == both["n_labels_y"]).all()
    for name, column in (("fraction", "label_fraction"), ("budget", "budget_s")):
        for _, group in studies[name].groupby(keys):
            ordered = group.sort_values(column)
            assert ordered["n_labels"].is_monotonic_increasing
            assert ordered["n_labels"].nunique() == len(ordered)
    counted = {each: studies["trials"].loc[studies["trials"]["budget_trials"] == each, "n_labels"] for each in (2, 5)}
    assert 0 < counted[2].min() <= counted[2].max() < counted[5].min() < standing["n_labels"].max()
    none = studies["budget"][studies["budget"]["budget_s"] == 0.0]
    assert set(none["n_labels"]) == {0}
    unmoved = none[none["cell"] == "tanh"].merge(
        standing[standing["arm"] == "normaliser"], on=["target", "cell", "phase"]
    )
    assert np.allclose(unmoved["value_x"], unmoved["value_y"], atol=1e-12), "without labels the normaliser alone adapts"

    within = studies["no_drift"]
    assert table(within, "source", "target", "day_gap") == {
        (f"{days[0]} (earlier half)", f"{days[0]} (later half)", 0.0)
    }
    expected = {"frozen", "normaliser", "immediate_rmsprop", "network_oracle", "ridge_oracle", "rls"}
    assert set(within["arm"]) == expected
    assert table(studies["cold"], "arm", "cell") == {("immediate_rmsprop", "tanh")}
    chain = studies["continual"]
    assert table(chain, "arm", "cell", "target") == {("immediate_rmsprop", "tanh", days[2]), ("rls", "", days[2])}
    other = chain.merge(standing, on=keys)
    assert len(other) == len(chain)
    assert (other["value_x"] != other["value_y"]).all()


def test_a_decoder_of_ones_own_scores_as_the_one_it_copies(everything):
    _, done, (rows, *_) = everything
    assert [each["class"] for each in done.manifest.own_decoders] == ["Mine"]
    mine, ours = (
        rows[(rows["arm"] == name) & (rows["cell"] == "") & (rows["study"] == "")].set_index(
            ["target", "phase", "metric"]
        )
        for name in ("Mine", "normaliser")
    )
    assert len(mine) == len(ours) > 0
    assert (mine["value"] == ours["value"].loc[mine.index]).all()


def test_the_tables_and_the_manifest_of_a_whole_run(everything):
    config, done, stored = everything
    (rows, curves, trajectories, blocks), attrs = stored[:4], stored.attrs
    manifest = json.loads((done.folder / "manifest.json").read_text())
    days = [each["session_id"] for each in manifest["sessions"]]
    assert manifest["primary_bins"] == attrs["primary_bins"] == "in trial"
    assert (manifest["not_tested"], manifest["tuning"]) == ([], None)
    assert [(each["source"], each["target"]) for each in manifest["drift"]] == [(days[0], day) for day in days[1:]]
    for each in manifest["drift"]:
        assert (each["measures"], len(each["notes"])) == ({}, 1), "two minutes are too short for it, and it says so"
    costs = {(each["arm"], each["cell"]): each for each in manifest["costs"]}
    online = {(arm.name, arm.cell) for arm in arms_of(config) if "online" in arm.phases} - {("frozen", "tanh")}
    assert costs.keys() == online
    assert all(each["p50_us"] > each["empty_loop_us"] > 0 for each in costs.values())
    all_bins = rows[rows["metric"] == "r2_all_bins"]
    assert len(all_bins) == (rows["metric"] == "r2").sum()

    # A stored block is enough to have R² again: one less the errors' share of the spread.
    held_out = rows[
        (rows["metric"] == "r2") & (rows["phase"] == "held_out") & (rows["study"] == "") & (rows["control"] == "")
    ]
    scores = held_out.set_index(["target", "arm", "cell", "seed"])["value"]
    assert len(blocks) == len(held_out)
    for block in blocks.itertuples():
        again = 1.0 - np.sum(block.error) / np.sum(block.spread)
        assert again == pytest.approx(scores[block.target, block.arm, block.cell, block.seed], abs=1e-9)
    assert set(trajectories["seed"]) == {0}
    assert set(curves["phase"]) == {"online", "held_out"}


# ------------------------------------------------------------------------------- one network through all earlier days

CARRIED = (
    TINY.replace('"tiny"', '"carried"')
    .replace("days = [0, 40, 200]", "days = [0, 10, 40, 200]")
    .replace("source = 1\ntargets = [2, 3]", 'source = "earlier"\ntargets = [3, 4]')
    .replace("n_updates = 40", "n_updates = 8")
    .replace("oracle_updates = 40", "carried = true\nadded_updates = 4\noracle_updates = 8\njoint_updates = 6")
    .replace("seeds = [0, 1]", "seeds = [0]")
    .replace(', "joint_oracle"', "")
)


def test_one_network_is_carried_through_all_earlier_days(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("BCI_ADAPT_CACHE", str(cache))
    (tmp_path / "carried.toml").write_text(CARRIED)
    config = load_config(tmp_path / "carried.toml")
    prepared, pairs = prepare_sessions(config, config.pairs, workers=0)
    days = prepared.session_ids
    assert [(pair.sources, pair.target) for pair in pairs] == [
        (tuple(days[:2]), days[2]),
        (tuple(days[:3]), days[3]),
    ]
    builders = prepared.builders(config, {}, None)
    earlier, later = pairs
    arms = {arm.name: arm for arm in builders[later.sources].arms(later) if arm.cell}
    job = builders[later.sources].fit(arms["normaliser"], later, 0)
    trained = []
    while job is not None:
        trained.append([name for name in job.inputs if name.startswith("session")])
        last, job = job, job.inputs.get("before")
    assert [len(each) for each in trained] == [3, 2, 1], "a day is added at a time"
    assert last.parameters["constants"]["n_updates"] == 8
    shared = builders[earlier.sources].fit(arms["normaliser"], earlier, 0)
    assert shared.key == builders[later.sources].fit(arms["normaliser"], later, 0).inputs["before"].key
    joint = builders[later.sources].fit(arms["joint_oracle"], later, 0)
    assert joint.inputs["before"].key == builders[later.sources].fit(arms["frozen"], later, 0).key
    assert joint.parameters["constants"]["added_updates"] == 6
    assert "before" not in builders[later.sources].fit(arms["network_oracle"], later, 0).inputs

    last = load_config(tmp_path / "carried.toml", ["targets=-1,3"])
    assert [pair.target for pair in choose_pairs(last.pairs, days)] == [days[3], days[2]]
    unfit = choose_pairs(config.pairs, days, unfit={days[1]})
    assert [pair.sources for pair in unfit] == [(days[0],), (days[0], days[2])]
    with pytest.raises(InputError, match="no day before"):
        choose_pairs(config.pairs, days, unfit=days[:2])
    done = run_experiment(config, workers=0)
    rows = read_results(done.folder / "results.nc").rows
    assert (rows["status"] == "ok").all()
    assert set(rows["source"]) == {f"{days[0]}+{days[1]}", f"{days[0]}+{days[1]}+{days[2]}"}
    assert done.manifest.unfit == []
    assert Pair(("a", "b", "c", "d", "e"), "f").source == "a+3 more+e"


def test_a_decoder_of_ones_own_depends_on_the_files_beside_it_that_it_imports(tmp_path):
    (tmp_path / "mine.py").write_text("import numpy\nfrom helpers.inner import gain\nimport parts\n" + OWN)
    (tmp_path / "parts.py").write_text("import more\n")
    (tmp_path / "more.py").write_text("import parts\n")
    (tmp_path / "unrelated.py").write_text("")
    (tmp_path / "helpers").mkdir()
    (tmp_path / "helpers" / "inner.py").write_text("gain = 1.0\n")
    found = Foreign(tmp_path / "mine.py", "Mine").code()
    assert found["code"] == tmp_path / "mine.py"
    assert {path.name for path in found.values()} == {"mine.py", "inner.py", "parts.py", "more.py"}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("primary.arm=window4_rmsprob", "primary.arm: unknown arm"),
        ("primary.against=rsl", "primary.against: unknown arm 'rsl'"),
        ("primary.cell=lstm", "primary.cell: 'lstm' is not among network.cells"),
    ],
)
def test_a_declared_comparison_names_arms_of_the_run(tiny, setting, message):
    settings = ["primary.arm=immediate_rmsprop", "primary.against=rls", "primary.cell=tanh", "primary.against_cell="]
    assert load_config(tiny, settings).primary.cell == "tanh"
    with pytest.raises(InputError, match=message):
        load_config(tiny, [*settings, setting])


def test_a_run_names_what_of_its_folder_is_damaged_before_it_is_written_again(tmp_path):
    def written():
        (tmp_path / "results.nc").write_bytes(b"scores")
        (tmp_path / "manifest.json").write_text(Manifest(name="x").of_files(tmp_path, ["results.nc"]).text())

    def told():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            tell_what_is_damaged(tmp_path)
        return [str(each.message).removeprefix(f"{tmp_path}/") for each in caught]

    assert told() == [], "there is none yet"
    written()
    assert told() == []
    (tmp_path / "results.nc").write_bytes(b"scorez")
    assert told() == ["results.nc: damaged since it was written; it is written again"]
    written()
    (tmp_path / "manifest.json").write_text((tmp_path / "manifest.json").read_text().replace('"x"', '"y"'))
    assert told() == ["manifest.json: damaged since it was written; it is written again"]
