"""Tuning: what a search chooses on planted surfaces; a tiny tuning, from recordings to a run with its values."""

import json
import tomllib

import numpy as np
import pytest
from caches import new_cache

from bci_adapt.errors import InputError
from bci_adapt.experiment.arm import Arm
from bci_adapt.experiment.config import load_config, parse_config
from bci_adapt.experiment.preparing import open_source
from bci_adapt.experiment.run import run_experiment
from bci_adapt.experiment.tuned import choose, read_tuned, tuned_text
from bci_adapt.experiment.tuning import Search, tune, write_tuned
from bci_adapt.results import report
from bci_adapt.results.table import read_results


def search(surface, start, grid, max_points=7, targets=("a", "b"), most=None):
    """Run a search over a planted surface: a function of the setting and the target."""
    found = Search(Arm("arm", "", "wiener", "source", start, grid=grid), max_points, most or {})
    rounds = 0
    while wanted := found.wanted():
        rounds += 1
        assert rounds < 100
        for setting in wanted:
            points = [
                {"method": "arm", "cell": "", "parameters": setting, "source": "s", "target": target, "seed": 0}
                | {"score": surface(setting, target)}
                for target in targets
            ]
            assert not any(point in found.points for point in points)  # nothing is tried twice
            found.points += points
    return found


def peak(**at):
    return lambda setting, target: -sum(np.log(setting[name] / value) ** 2 for name, value in at.items())


@pytest.mark.parametrize("best", [1e-5, 1e-4, 3e-4, 1e-2])
def test_a_search_goes_on_until_its_optimum_is_interior(best):
    found = search(peak(rate=best), {"rate": 1e-4}, {"rate": 10**0.5})
    chosen = choose(found.points)
    assert chosen.interior
    assert abs(np.log10(chosen.parameters["rate"] / best)) <= 0.25 + 1e-6
    assert chosen.n_points == len({point["parameters"]["rate"] for point in found.points}) <= 7


def test_a_search_ends_at_its_budget_and_says_that_the_optimum_lies_at_the_edge():
    found = search(lambda setting, target: setting["rate"], {"rate": 1.0}, {"rate": 2.0}, max_points=5)
    chosen = choose(found.points)
    assert (chosen.n_points, chosen.parameters["rate"], chosen.interior) == (5, 8.0, False)


@pytest.mark.parametrize(("most", "interior"), [(1600, False), (6400, True)])
def test_a_search_tries_no_more_steps_than_the_most_and_says_that_its_optimum_lies_there(most, interior):
    found = search(peak(n_updates=3000), {"n_updates": 400}, {"n_updates": 2.0}, most={"n_updates": most})
    chosen = choose(found.points)
    assert max(point["parameters"]["n_updates"] for point in found.points) == most
    assert (chosen.parameters["n_updates"], chosen.interior) == (min(most, 3200), interior)


def test_steps_of_a_search_do_not_add_up_their_roundings():
    found = search(peak(rate=1.0), {"rate": 1e-2}, {"rate": 10**0.5})
    tried = sorted({point["parameters"]["rate"] for point in found.points})
    assert tried == [0.00316, 0.01, 0.0316, 0.1, 0.316, 1.0, 3.16][: len(tried)]
    assert found.best == {"rate": 1.0}


def test_two_parameters_are_searched_one_after_the_other():
    found = search(peak(rate=1.0, penalty=4.0), {"rate": 4.0, "penalty": 1.0}, {"rate": 2.0, "penalty": 2.0})
    assert choose(found.points).parameters == {"rate": 1.0, "penalty": 4.0}
    assert choose(found.points).interior
    assert found.best == {"rate": 1.0, "penalty": 4.0}


def test_the_optimum_without_a_target_is_interior_too():
    """What a target is run with is chosen without it: its rivals' optimum must not be the edge of what was tried."""
    near, far = peak(rate=1.0), peak(rate=16.0)
    found = search(
        lambda setting, target: (near if target == "a" else far)(setting, target), {"rate": 4.0}, {"rate": 2}
    )
    for target, best in (("b", 1.0), ("a", 16.0)):
        chosen = choose([point for point in found.points if point["target"] != target])
        assert (chosen.parameters["rate"], chosen.interior) == (best, True)
    assert len(search(near, {"rate": 4.0}, {"rate": 2}).points) < len(found.points)


def test_the_first_parameter_is_searched_again_where_the_others_moved():
    def ridge(setting, target):
        rate, ratio = np.log(setting["rate"]), np.log(setting["ratio"])
        return -((rate + 0.5 * ratio) ** 2) - (ratio - np.log(4.0)) ** 2

    found = search(ridge, {"rate": 1.0, "ratio": 1.0}, {"rate": 2.0, "ratio": 2.0})
    assert found.best == {"rate": 0.5, "ratio": 4.0}


def test_whole_numbers_stay_whole_and_end_at_their_least():
    found = search(lambda setting, target: -setting["n_lags"], {"n_lags": 3}, {"n_lags": 1.5})
    tried = [point["parameters"]["n_lags"] for point in found.points]
    assert all(isinstance(value, int) for value in tried)
    assert min(tried) == 1 == choose(found.points).parameters["n_lags"]
    assert not choose(found.points).interior


def test_a_method_that_always_fails_ends_without_a_choice():
    found = search(lambda setting, target: None, {"rate": 1.0}, {"rate": 2.0})
    assert len(found.points) == 6
    assert choose(found.points) is None


def test_a_config_without_tuning_is_refused(tmp_path):
    raw = {"name": "x", "source": {"kind": "simulated"}, "pairs": [{"source": 1, "targets": [2]}], "arms": []}
    with pytest.raises(InputError, match=r"no \[tuning\] section"):
        tune(parse_config(raw, "x"))


TINY = """
name = "tuned"
stream_s = 60.0
min_held_out_s = 50.0
label_delay_s = 0.2
learning_rate = 1e-3
seeds = [0]
tuned = "tiny.tuned.json"

[source]
kind = "simulated"
days = [0, 40, 200]
duration_s = 120.0
n_units = 12

[[pairs]]
source = 1
targets = [2, 3]

[tuning]
max_points = 4

[[tuning.pairs]]
source = 1
targets = [2, 3]

[network]
cells = ["tanh"]
n_hidden = 4
n_updates = 10
warm_up_s = 10.0

[linear]
n_lags = 3

[controls]
without = ["intention", "pseudo", "recurrent", "from_random", "output_bias", "fine_tuned", "network_oracle",
  "joint_oracle", "joint_ridge", "aligned", "rls", "kalman_frozen", "kalman_normaliser", "kalman_adaptive",
  "kalman_refit", "kalman_pv_frozen", "kalman_pv_normaliser", "kalman_pv_adaptive", "kalman_pv_refit", "persistence"]
no_drift = false
costs = false
drift = false
channels = false

[sweeps]
arms = []

[[arms]]
rule = "immediate"
optimizer = "rmsprop"
"""


def test_from_recordings_to_a_run_with_tuned_values(tmp_path, monkeypatch, call):
    monkeypatch.setenv("BCI_ADAPT_CACHE", str(new_cache(tmp_path)))
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    config, values = load_config(path), tmp_path / "tiny.tuned.json"
    with pytest.raises(InputError, match="make it with bci-adapt tune"):
        run_experiment(config, workers=0, tuned=values)
    about, surface = tune(config, workers=0)
    write_tuned(values, about, surface)
    written = values.read_bytes()
    tuned = read_tuned(values)
    methods = {method for method, _ in tuned.methods()}
    assert methods == {"readout", "immediate_rmsprop", "frozen", "normaliser", "ridge_oracle"}
    assert {point["target"] for point in tuned.surface} == {pair["target"] for pair in about["pairs"]}
    # Every score of the surface is that of a run at this setting: again, it is found and not run.
    code, out, _ = call("tune", path, "--workers", "0")
    assert code == 0
    assert "interior" in out
    assert values.read_bytes() == written

    done = run_experiment(config, workers=0, tuned=values)
    rows = read_results(done.folder / "results.nc").rows
    own = rows[(rows["arm"] == "immediate_rmsprop") & (rows["metric"] == "r2") & (rows["phase"] == "held_out")]
    for target, study, rate, score in own[["target", "study", "rate", "value"]].itertuples(index=False):
        if study == "shared_rate":
            assert rate == config.learning_rate
            continue
        chosen = tuned.choice("immediate_rmsprop", "tanh", target)  # the surface without this target
        assert rate == chosen.parameters["learning_rate"]
        (point,) = [
            each["score"]
            for each in tuned.surface
            if each["method"] == "immediate_rmsprop"
            and each["target"] == target
            and each["parameters"] == chosen.parameters
        ]
        assert score == pytest.approx(point, abs=1e-12)
    assert set(own["study"]) == {"", "shared_rate"}
    manifest = json.loads((done.folder / "manifest.json").read_text())
    assert manifest["rates_tuned"]
    assert manifest["tuning"]["digest"] == tuned.digest
    assert len(manifest["tuning"]["surface"]) == len(tuned.surface)
    # The page of such a run was drawn once above; what is run from here on needs none.
    monkeypatch.setattr(report, "render_report", lambda folder: None)
    # The run's folder holds all it takes to repeat it.
    again = run_experiment(load_config(done.folder / "config.toml"), workers=0, tuned=done.folder / values.name)
    assert (again.executed, again.folder) == (0, done.folder)

    # Another value chosen is another run: the file's contents decide, not its name.
    stored = json.loads(values.read_text())
    for point in stored["surface"]:
        if point["method"] == "immediate_rmsprop":
            point["score"] = point["parameters"]["learning_rate"]
    values.write_text(tuned_text(stored["about"], stored["surface"]), encoding="utf-8")
    other = run_experiment(config, workers=0, tuned=values)
    assert other.folder != done.folder
    assert other.executed > 0


def test_what_the_archive_notes_is_shown_by_tune_and_stands_in_the_file_and_on_the_page(tmp_path, monkeypatch, call):
    """A draft, its licence and what was left out, of the recordings that values were chosen on."""
    import archive_server

    monkeypatch.setenv("BCI_ADAPT_CACHE", str(new_cache(tmp_path)))
    path, values = tmp_path / "noted.toml", tmp_path / "noted.tuned.json"
    start, stop = TINY.index("[source]"), TINY.index("[[pairs]]")
    dandi = '[source]\nkind = "dandi"\ndandiset = "000688"\nversion = "draft"\npaths = ["sub-Sim/*"]\n'
    text = (TINY[:start] + dandi + TINY[stop:]).replace("max_points = 4", "max_points = 3")
    path.write_text(
        text.replace("tiny.tuned.json", values.name).replace("no_drift = false", "no_drift = false\ncold = false")
    )
    simulated = open_source(parse_config(tomllib.loads(TINY), "tiny"))
    with archive_server.serving() as archive:
        monkeypatch.setenv("DANDI_INSTANCE", archive.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        for name in simulated.list().index:
            made = simulated.fetch(name)
            archive.add(f"sub-Sim/{made.name}", made.read_bytes(), version="draft")
        archive.add("sub-Sim/notes.txt", b"notes", version="draft")
        code, _, err = call("tune", path, "--workers", 0)
        assert code == 0, err
        stored = json.loads(values.read_text())["about"]["notes"]
        for said in ("000688/draft is a draft", "licence of 000688/draft: spdx:CC-BY-4.0", "'sub-Sim/notes.txt'"):
            assert any(said in note for note in stored), said
            assert said in " ".join(err.split())
        assert "note:" not in call("tune", path, "--workers", 0, "-q")[2]
    done = run_experiment(
        load_config(path), workers=0, tuned=values, lock=tmp_path / "sessions.lock.toml", offline=True
    )
    assert done.manifest.tuning["notes"] == json.loads(values.read_text())["about"]["notes"]
    page = (done.folder / "report.html").read_text()
    section = page[page.index("Noted of the recordings that they were chosen on") :]
    assert "000688/draft is a draft" in section
