"""The known datasets, the configs made for them, and the way from such a config to its recordings."""

import json
from datetime import datetime
from pathlib import Path
from typing import get_args

import h5py
import numpy as np
import nwb_layouts_a
import nwb_layouts_b
import pytest
from archive_server import NEW, serving
from nwb_files import spikes_file

from bci_adapt.archive.addresses import parse_dandiset
from bci_adapt.archive.datasets import Dataset, datasets
from bci_adapt.data.channels import POLICIES, policy_of
from bci_adapt.data.layouts.base import Layout
from bci_adapt.data.prepare import prepare
from bci_adapt.errors import InputError
from bci_adapt.experiment.asked import ArmSection
from bci_adapt.experiment.config import load_config
from bci_adapt.experiment.pairs import Pair, choose_pairs, match_channels
from bci_adapt.experiment.preparing import open_source
from bci_adapt.ground.catalog import variants

KNOWN = datasets()
CONFIGS = Path(__file__).parents[1] / "configs"
OF_CONFIG = dict.fromkeys(("co_m_2014", "co_m_2015", "co_c_2015"), "000688")
OF_CONFIG |= dict.fromkeys(("indy_seven_months", "neurobench"), "indy")
GOOD = (
    'title = "t"\nwhere = "000001"\nurl = "https://x.org"\nlayout = "l"\nchannels = "unit"\nkinematics = ["velocity"]\n'
)


def test_all_are_there():
    dandisets = "000070 000128 000129 000138 000139 000140 000404 000688 000941 000950 000953 000954 001201"
    assert [*KNOWN] == [*dandisets.split(), "indy"]
    assert [name for name, dataset in KNOWN.items() if dataset.refused] == ["000950"]
    assert get_args(Dataset.model_fields["channels"].annotation) == POLICIES


@pytest.mark.parametrize("name", KNOWN)
def test_what_a_dataset_names_exists(name):
    dataset = KNOWN[name]
    layout = variants("bci_adapt.data.layouts", Layout)[dataset.layout]
    if dataset.where == "folder":
        assert not dataset.version_seen
    else:
        assert name == dataset.where
        assert dataset.url.endswith(f"/{name}")
        text = f"{name}/{dataset.version_seen}" if dataset.version_seen else name
        assert parse_dandiset(text) == (name, dataset.version_seen or None)
    assert all(trap.endswith(".") for trap in dataset.traps)
    assert len({*dataset.traps}) == len(dataset.traps)
    if dataset.refused:
        assert Layout in layout.__mro__
        assert layout.read.__annotations__["return"] == "NoReturn"


@pytest.mark.parametrize(
    ("name", "days"),
    [("000688", [210, 205, 235]), ("indy", [8, 223, 215, 5, 19, 14])],
)
def test_days_between_the_days_of_a_pair(name, days):
    moments = [[datetime.strptime(day[:8], "%Y%m%d") for day in (p.source, p.target)] for p in KNOWN[name].pairs]
    assert [(later - earlier).days for earlier, later in moments] == days


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + 'licence = "x"', "licence: Extra inputs"),
        (GOOD.replace('title = "t"\n', ""), "title: Field required"),
        (GOOD.replace("000001", "1"), "six digits"),
        (GOOD.replace("000001", "../etc"), "six digits"),
        (GOOD + 'version_seen = "1"', "published version"),
        (GOOD.replace("unit", "units"), "channels: Input should be"),
        (GOOD.replace("https:", "http:"), "url: "),
        (GOOD + "years = [2016, 2013]", "2016 is later than 2013"),
        (GOOD + '[[pairs]]\nanimal = "M"\nsource = "20140303"\ntarget = "20140929"', "animal 'M' is not among"),
        (GOOD + 'animals = ["M"]\n[[pairs]]\nanimal = "M"\nsource = "20140303"\ntarget = "20140303"', "not later than"),
        (GOOD + 'animals = ["M"]\n[[pairs]]\nanimal = "M"\nsource = "March"\ntarget = "20140303"', "pairs.0.source: "),
        (GOOD + 'refused = "no"', "either kinematics"),
        (GOOD.replace('"velocity"', ""), "either kinematics"),
        (GOOD + "years = [", "not valid TOML"),
    ],
)
def test_a_bad_file_is_named(tmp_path, text, message):
    (tmp_path / "good.toml").write_text(GOOD)
    assert datasets(tmp_path)["good"].where == "000001"
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(InputError) as caught:
        datasets(tmp_path)
    assert "bad.toml" in str(caught.value)
    assert message in str(caught.value)


def test_list_datasets(call):
    code, out, _ = call("list", "datasets")
    lines = out.splitlines()
    assert code == 0
    assert [line.split()[0] for line in lines] == [*KNOWN]  # one line each, none of them wrapped
    for line, dataset in zip(lines, KNOWN.values(), strict=True):
        assert dataset.title in line
        assert f"(layout {dataset.layout}, {'refused: ' if dataset.refused else 'not verified)'}" in line
    rows = json.loads(call("list", "datasets", "--json", "-")[1])
    assert {row["name"]: row["traps"] for row in rows} == {name: [*each.traps] for name, each in KNOWN.items()}
    assert {row["name"]: row["verified_on"] for row in rows} == dict.fromkeys(KNOWN, "")


def test_list_datasets_says_where_a_layout_was_verified(call, monkeypatch):
    from bci_adapt.data.layouts.perich import Perich

    monkeypatch.setattr(Perich, "verified_on", "a file")
    lines = call("list", "datasets")[1].splitlines()
    assert [line.split()[0] for line in lines if "(layout perich, verified)" in line] == ["000688"]
    rows = json.loads(call("list", "datasets", "--json", "-")[1])
    assert [row["name"] for row in rows if row["verified_on"] == "a file"] == ["000688"]


# ------------------------------------------------------------------------------------------------ configs


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_config_can_be_read(path):
    config = load_config(path)
    assert config.name == path.stem
    assert config.label_delay_s == 0.5
    assert ("ot tuned" in path.read_text()) == (not config.tuned)


def compares_one_error_only(config) -> bool:
    """Whether immediate derivatives, whose late labels are held against the prediction as it was made, stand beside
    other rules without their counterpart of one step of history, which recomputes it.
    """
    arms = [arm for arm in config.arms if isinstance(arm, ArmSection)]
    usual = {arm.optimizer for arm in arms if arm.rule == "immediate" and arm.learns is None}
    others = {arm.rule for arm in arms} - {"immediate", "readout"}
    fresh = {arm.optimizer for arm in arms if arm.rule == "window" and arm.rule_constants.get("steps") == 1}
    return bool(usual and others) and "rmsprop" not in fresh


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_comparison_of_rules_carries_both_errors(path):
    config = load_config(path)
    assert not compares_one_error_only(config)
    arms = [arm for arm in config.arms if isinstance(arm, ArmSection)]
    without = [arm for arm in arms if (arm.rule, arm.rule_constants.get("steps")) != ("window", 1)]
    if len(without) < len(arms):
        assert compares_one_error_only(config.model_copy(update={"arms": tuple(without)}))


@pytest.mark.parametrize("name", OF_CONFIG)
def test_the_config_of_a_known_dataset(name):
    config, dataset = load_config(CONFIGS / f"{name}.toml"), KNOWN[OF_CONFIG[name]]
    assert set(config.variables) <= set(dataset.kinematics)
    assert config.channels.policy == dataset.channels
    assert config.source.kind == ("folder" if dataset.where == "folder" else "dandi")
    if config.source.kind == "dandi":
        assert (config.source.dandiset, config.source.version) == (dataset.where, dataset.version_seen)


def pairs_of(name):
    config = load_config(CONFIGS / f"{name}.toml")
    return {("+".join(section.source), target) for section in config.pairs for target in section.targets}


def test_every_known_pair_has_its_config():
    for dataset in ("000688", "indy"):
        configured = [pairs_of(name) for name, of in OF_CONFIG.items() if of == dataset]
        assert set.union(*configured) == {(pair.source, pair.target) for pair in KNOWN[dataset].pairs}
    assert pairs_of("neurobench") == {(pair.source, pair.target) for pair in KNOWN["indy"].pairs}


def test_neurobench_pairs_each_animal_in_order_of_time():
    days = ["indy_20160622_01", "indy_20160630_01", "indy_20170131_02"]
    days += ["loco_20170210_03", "loco_20170215_02", "loco_20170301_05"]
    ids = ["sub-{}_ses-{}".format(*day.split("_", 1)) for day in days]
    config = load_config(CONFIGS / "neurobench.toml")
    expected = {Pair((a,), b) for i, a in enumerate(ids) for b in ids[i + 1 :] if a[:8] == b[:8]}
    pairs = choose_pairs(config.pairs, [*ids[:3], "sub-indy_ses-20170131_01", *ids[3:]])
    assert len(pairs) == len(expected) == 6
    assert {*pairs} == expected


# ---------------------------------------------------------------------------------------- from an archive


def recording(path, animal, session, seed=0, **change):
    """The bytes of a small recording in the layout of 000688, named as its files are."""
    spikes_file(path, seed=seed, **change)
    day = f"{session[-8:-4]}-{session[-4:-2]}-{session[-2:]}T12:00:00+00:00"
    texts = {"session_start_time": day, "identifier": session}
    texts |= {"general/session_id": session, "general/subject/subject_id": animal}
    with h5py.File(path, "r+") as file:
        for name, text in texts.items():
            del file[name]
            file.create_dataset(name, data=text, dtype=h5py.string_dtype())
    return path.read_bytes()


@pytest.fixture
def archive(monkeypatch, tmp_path):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("BCI_ADAPT_CACHE", str(tmp_path / "cache"))
    with serving() as archive:
        monkeypatch.setenv("DANDI_INSTANCE", archive.url)
        yield archive


def offer(archive, tmp_path, *sessions, **change):
    for number, (animal, session) in enumerate(sessions):
        content = recording(tmp_path / "made.nwb", animal, session, seed=number, **change.get(session, {}))
        archive.add(f"sub-{animal}/sub-{animal}_ses-{session}_behavior+ecephys.nwb", content)


@pytest.mark.parametrize("name", [name for name, dataset in OF_CONFIG.items() if dataset == "000688"])
def test_from_a_config_to_its_recordings(archive, tmp_path, name):
    config = load_config(CONFIGS / f"{name}.toml")
    [(source, target)] = pairs_of(name)
    [animal] = [pair.animal for pair in KNOWN["000688"].pairs if pair.source == source]
    wanted = [(animal, f"CO-{source}"), (animal, f"RT-{target}")]
    others = [("M", "CO-20140306"), ("C", "CO-20131003"), ("T" if animal == "M" else "M", f"CO-{target}")]
    # On the later day no unit is on an electrode of M1: two of the source's channels are not there.
    offer(archive, tmp_path, *wanted, *others, **{f"RT-{target}": {"electrodes": [4, 4, 5, 5]}})
    found = open_source(config, lock=tmp_path / "sessions.lock.toml")
    ids = found.list().index.tolist()
    assert ids == [f"sub-{animal}_ses-CO-{source}", f"sub-{animal}_ses-RT-{target}"]
    assert choose_pairs(config.pairs, ids) == [Pair((ids[0],), ids[1])]
    assert len(archive.asked("/blobs/")) == 2  # nothing but what the pair needs
    sessions = {each: prepare(found.fetch(each), config.bin_s, provenance=found.provenance(each)) for each in ids}
    about = [(each.attrs["layout"], each.attrs["dandiset_version"]) for each in sessions.values()]
    assert about == [(KNOWN["000688"].layout, NEW)] * 2
    have = [each["channel"].values.tolist() for each in sessions.values()]
    met = match_channels(config, ids[:1], ids[1:], sessions)
    assert have[0] != have[1]
    assert (met.names, met.policy) == (have[0], "electrode")  # by missing = "zero"


def test_a_day_with_both_tasks_is_ambiguous(archive, tmp_path):
    config = load_config(CONFIGS / "co_m_2014.toml")
    offer(archive, tmp_path, *(("M", session) for session in ("CO-20140303", "RT-20140303", "CO-20140929")))
    ids = open_source(config, lock=tmp_path / "lock.toml").list().index.tolist()
    with pytest.raises(InputError, match=r"2 sessions match '20140303'.*-CO-20140303, .*-RT-20140303"):
        choose_pairs(config.pairs, ids)


MADE = {
    "perich": lambda path: spikes_file(path),
    "falcon_m1": lambda path: nwb_layouts_a.m1_file(path),
    "falcon_m2": lambda path: nwb_layouts_a.m2_file(path, stamps=np.arange(1, 101) * 0.02),
    "falcon_h1": lambda path: nwb_layouts_a.h1_file(path),
    "link": lambda path: nwb_layouts_a.link_file(path, width_ms=50),
    "cursor_bmi": lambda path: nwb_layouts_a.bmi_file(path),
    "mc_maze": lambda path: nwb_layouts_b.mc_maze(path, TRAINS(5, [(0.5, 2.0), (2.2, 4.0), (4.1, 5.9)])),
    "churchland_maze": lambda path: nwb_layouts_b.maze_000070(path, TRAINS(6, nwb_layouts_b.MAZE_TRIALS)),
}
TRAINS = nwb_layouts_b.spike_trains


@pytest.mark.parametrize("layout", MADE)
def test_the_policy_that_a_dataset_states_is_the_one_its_sessions_get(tmp_path, layout):
    bin_s = {"falcon_m1": 0.04, "falcon_m2": 0.04, "falcon_h1": 0.04}.get(layout, 0.05)
    session = prepare(MADE[layout](tmp_path / "a.nwb"), bin_s)
    stated = {dataset.channels for dataset in KNOWN.values() if dataset.layout == layout}
    assert session.attrs["layout"] == layout
    assert stated == {policy_of(session)}
