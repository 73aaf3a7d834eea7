"""The report: words that turn with the data, text that stays text, and a page that stands alone."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from long_tables import curves, manifest, row, study, trajectories

from bci_adapt import figures
from bci_adapt.errors import InputError
from bci_adapt.report import plain_words, render_report
from bci_adapt.results import long_table, summarise, write_results

VOID = {"meta", "br", "hr", "img", "input", "link", "path", "use", "rect"}


class Page(HTMLParser):
    """Visible text, tags that fetch something, and whether every element is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.words: list[str] = []
        self.fetches: list[str] = []
        self.scripts = 0
        self.ids: list[str] = []
        self.well_formed = True
        self.feed(text)
        self.well_formed &= not self.stack

    def handle_starttag(self, tag, attrs):
        self.scripts += tag == "script"
        for name, value in attrs:
            if name in ("src", "srcset", "data", "action") or (name.endswith("href") and not value.startswith("#")):
                self.fetches.append(f"{tag} {name}={value}")
            if name == "id":
                self.ids.append(value)
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.stack.pop()

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        self.well_formed &= bool(self.stack) and self.stack[-1] == tag
        if self.stack:
            self.stack.pop()

    def handle_data(self, data):
        if not {"style", "script"} & set(self.stack):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def make_run(folder: Path, rows, about=None, excerpt=None, through=None, attrs=None) -> Page:
    folder.mkdir(parents=True, exist_ok=True)
    through = curves(rows) if through is None else through
    excerpt = trajectories(rows) if excerpt is None else excerpt
    write_results(folder / "results.nc", rows, through, excerpt, attrs or {"unit": "cm/s"})
    (folder / "manifest.json").write_text(json.dumps(manifest() if about is None else about))
    return Page(render_report(folder).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, Page]:
    folder = tmp_path_factory.mktemp("runs") / "study"
    return folder, make_run(folder, study(4, 1))


def said(rows, title: str) -> str:
    words = {paragraph["title"]: " ".join(paragraph["sentences"]) for paragraph in plain_words(rows)}
    return words.get(title, "")


PAIRS = [  # one arm, the other, and the words when the first is higher, lower, equal
    ("normaliser", "frozen", "raised this to", "lowered this to", "without any label, made no clear difference"),
    ("immediate_rmsprop", "normaliser", "raised the score to", "lowered the score to", "on top of it made no clear"),
    (
        "immediate_rmsprop",
        "immediate_rmsprop_fixed",
        "rule scored lower",
        "rule scored higher",
        ", no clear difference",
    ),
    ("immediate_rmsprop", "readout", "was better than", "was worse than", "the readout alone there was no clear"),
    (
        "window4_rmsprop",
        "immediate_rmsprop",
        "were ahead of one",
        "were behind one",
        "history and one there was no clear",
    ),
    ("rtrl_rmsprop", "immediate_rmsprop", "RTRL was ahead", "RTRL was behind", "Between full RTRL and immediate"),
    ("immediate_rmsprop_ema", "immediate_rmsprop", "helped", "hurt", "Averaging the weights made no clear difference"),
    (
        "immediate_sgd",
        "immediate_rmsprop",
        "SGD was ahead",
        "SGD was behind",
        "Between plain SGD and RMSprop there was no",
    ),
    ("network_oracle", "immediate_rmsprop", ", ahead of adapting", ", behind adapting", ": no clear difference from"),
]


@pytest.mark.parametrize(("first", "second", "above", "below", "level"), PAIRS)
def test_words_turn_when_the_values_turn(first, second, above, below, level):
    title, phrases = "The tanh network", {above, below, level}
    rows = study(5, 1, metrics=("r2",))
    tanh, day = rows["cell"] == "tanh", rows["target"].str[-1].astype(int)
    for gap, phrase in ((0.1, above), (-0.1, below), ((-1.0) ** day * 0.1, level)):
        turned = rows.copy()
        turned.loc[tanh & (rows["arm"] == first), "value"] = 0.4 + gap
        turned.loc[tanh & (rows["arm"] == second), "value"] = 0.4
        text = said(turned, title)
        assert phrase in text
        assert not any(other in text for other in phrases - {phrase})


def test_words_swap_as_a_whole():
    """Exchange the values of two arms in one table: number and comparative both move."""
    rows = study(5, 1, metrics=("r2",))
    swapped = rows.copy()
    names = {"window4_rmsprop": "immediate_rmsprop", "immediate_rmsprop": "window4_rmsprop"}
    swapped["arm"] = swapped["arm"].map(lambda arm: names.get(arm, arm))
    before, after = said(rows, "The GRU network"), said(swapped, "The GRU network")
    (ahead,) = re.findall(r"Four steps of history were ahead of one \((\S+) against (\S+), \+(\S+) ", before)
    (behind,) = re.findall(r"Four steps of history were behind one \((\S+) against (\S+), −(\S+) ", after)
    assert ahead[:2] == behind[1::-1]
    assert ahead[2] == behind[2]
    ranked = said(rows, "Who is ahead")
    assert "4 steps of history + RMSprop (GRU) had the highest held-out mean" in ranked
    assert "immediate + RMSprop (GRU) had the highest held-out mean" in said(swapped, "Who is ahead")


@pytest.mark.parametrize(
    ("changes", "title", "phrase"),
    [
        ({"rls": 0.8}, "Linear decoders", "It was ahead of the GRU network"),
        ({"rls": 0.0}, "Linear decoders", "It was behind the GRU network"),
        ({"rls": 0.8, "ridge_oracle": 0.2}, "Linear decoders", "reached 0.2"),
        ({"rls": 0.8, "ridge_oracle": 0.2}, "Linear decoders", ", behind it"),
        ({"rls": 0.8}, "Who is ahead", "recursive least squares (linear) had the highest"),
        ({"immediate_rmsprop": {"tanh": 0.6, "gru": 0.4}}, "Who is ahead", "the GRU was behind the tanh"),
        ({}, "Who is ahead", "the GRU was ahead of the tanh"),
        ({"rls": 0.58, "window4_rmsprop": {"tanh": 0.1, "gru": 0.58}}, "Who is ahead", "is no clear difference"),
    ],
)
def test_words_about_linear_decoders_and_the_leader(changes, title, phrase):
    assert phrase in said(study(n_targets=5, n_seeds=1, **changes), title)


def test_words_call_nothing_clear_on_one_day_and_skip_absent_arms():
    text = said(study(1, metrics=("r2",)), "The tanh network")
    assert "made no clear difference" in text
    assert not re.search("raised|lowered|better|worse|helped|hurt", text)
    rows = study(3, 1, metrics=("r2",))
    few = rows[rows["arm"].isin(["frozen", "rls"])].reset_index(drop=True)
    assert said(few, "The GRU network").startswith("Frozen as trained")
    assert "normaliser" not in said(few, "The GRU network")
    assert plain_words(rows.iloc[:0]) == []


def test_page_is_whole_and_stands_alone(run):
    folder, page = run
    text = page.text
    assert page.well_formed
    assert page.fetches == []
    assert len(page.ids) == len(set(page.ids))
    assert (folder / "report.html").stat().st_size < 3_000_000
    assert not list(folder.glob(".*")), "no temporary left"
    for heading in ("In plain words", "Every arm", "Against the days", "Through the target", "Decoded against true"):
        assert heading in text
    for part in (
        "Never compare percentages",
        "no frozen linear decoder",
        "Rates not tuned",
        "velocity (cm/s)",
        "sha256",
    ):
        assert part in text
    assert "bci-adapt run configs/study.toml --data recordings" in text
    assert text.count("rates not tuned") >= 5, "under every table and figure of scores"
    assert "this setting leaks" not in text
    source = (folder / "report.html").read_text()
    assert source.count("<svg") == 5
    assert render_report(folder).read_text() == source, "the same run gives the same bytes"


def test_page_says_what_leaks_what_failed_and_what_is_left_out(tmp_path):
    rows = study(3, metrics=("r2",))
    rows.loc[(rows["arm"] == "canary:readout") & (rows["phase"] == "online"), "value"] = 0.3
    failed = (rows["arm"] == "immediate_sgd") & (rows["target"] == "day-11")
    rows.loc[failed, ["value", "status", "reason"]] = [np.nan, "failed", "weights became infinite"]
    unscorable = [{"source": "day-00", "target": "day-17", "reason": "the target stands still"}]
    jobs = {"executed": 1, "reused": 0, "failed": [{"label": "adapt 7", "error": "out of memory"}]}
    reruns = [{"created": "2021", "command": "again", "executed": 2, "reused": 9}]
    page = make_run(tmp_path, rows, manifest(unscorable=unscorable, jobs=jobs, rates_tuned=True, reruns=reruns))
    assert "Run of 2020-05-01T12:00:00+00:00; again 2021, 2 jobs executed." in page.text
    assert "readout only: this setting leaks." in page.text
    assert re.search(r"immediate \+ SGD \(tanh\) 4 weights became infinite", page.text)
    assert re.search(r"day-00 day-17 the target stands still", page.text)
    assert "job: adapt 7 1 out of memory" in page.text
    assert "not tuned" not in page.text.lower()


def test_an_arm_and_a_cell_of_ones_own_are_in_every_part(tmp_path):
    arm = "window2 + Adam + EMA"
    rows = study(3, 1, metrics=("r2",), **{arm: {"mgu": 0.9}, "frozen": {"mgu": 0.1}})
    diverged = (rows["arm"] == "canary:rls") & (rows["target"] == "day-11")
    rows.loc[diverged, ["value", "status", "reason"]] = [np.nan, "failed", "weights diverged"]
    page = make_run(tmp_path, rows.drop(rows.index[rows["arm"] == f"canary:{arm}"]))
    assert f"Of all arms that were not retrained, {arm} (mgu) had the highest" in page.text
    assert f"{arm} not checked no canary was run (mgu)" in page.text
    assert re.search(
        r"recursive least squares no leak linear .*; 2 of 6 canary runs failed \(weights diverged\)", page.text
    )
    for figure in (figures.gap_figure(rows), figures.curve_figure(curves(rows))):
        legend = [text.get_text() for text in figure.legends[0].get_texts()]
        assert arm in legend
    assert arm in [label.get_text() for label in figures.arms_figure(summarise(rows)).axes[0].get_yticklabels()]


def test_text_from_files_is_never_markup(tmp_path):
    evil = "<script>alert(1)</script>\"'&{{ 7*7 }}"
    rows = study(2, 1, metrics=("r2", "pearson"))
    for column in ("source", "target"):
        rows[column] = rows[column] + evil
    about = manifest(
        name=evil,
        command=evil,
        config={evil: {evil: [evil]}},
        versions={evil: evil},
        unscorable=[{"source": evil, "target": evil, "reason": evil}],
        sessions=[{"session_id": evil, "date": evil, "minutes": 1.0, "n_channels": 2, "warnings": [evil]}],
        jobs={"executed": 0, "reused": 0, "failed": [{"label": evil, "error": evil}]},
    )
    rows.loc[0, ["value", "status", "reason"]] = [np.nan, "failed", evil]
    excerpt = trajectories(rows)
    excerpt["axis"] = excerpt["axis"] + evil
    page = make_run(tmp_path, rows, about, excerpt, attrs={"unit": evil})
    assert page.scripts == 1, "the report's own, and no other"
    assert page.well_formed
    assert page.text.count(evil) > 12
    assert "49" not in re.findall(r"alert\(1\)\S* (\d+)", page.text)


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([], "No pair of sessions of this run was scored"),
        ([row(value=np.nan, status="failed", reason="diverged")], "diverged"),
        ([row(value=np.nan, status="unscorable", reason="still")], "still"),
        ([row(day_gap=float("nan"))], "1 target day, at least 2"),
        ([row(arm="rls", cell="", n_hidden=0, variable="position")], "not checked"),
        ([row(cell="lstm", target=f"t{i}", arm=arm) for i in (0, 1) for arm in ("frozen", "readout")], "lstm"),
    ],
    ids=["nothing", "failed", "unscorable", "one row", "position of one arm", "unknown cell"],
)
def test_page_survives_little_data(tmp_path, records, words):
    rows = long_table(
        records
        + [r | {"arm": arm, "value": 0.5} for r in records[:1] if np.isnan(r["day_gap"]) for arm in ("readout",)]
        + [r | {"arm": arm, "value": 0.7} for r in records[:1] if np.isnan(r["day_gap"]) for arm in ("network_oracle",)]
    )
    empty = long_table([], "curves"), long_table([], "trajectories")
    page = make_run(tmp_path, rows, {"name": "small"}, empty[1], empty[0])
    assert page.well_formed
    assert words in page.text
    assert "nan" not in page.text.lower().split()


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"manifest\.json: no such file"):
        render_report(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(InputError, match=r"manifest\.json: not valid JSON"):
        render_report(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match=r"results\.nc: no such file"):
        render_report(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_figures_draw_what_the_table_holds():
    rows = study(3, 1, metrics=("r2",))
    summary = summarise(rows)
    drawn = {
        "arms": figures.arms_figure(summary),
        "gap": figures.gap_figure(rows),
        "curve": figures.curve_figure(curves(rows)),
        "trajectory": figures.trajectory_figure(trajectories(rows), unit="cm/s"),
        "canary": figures.canary_figure(summary),
    }
    for name, figure in drawn.items():
        assert figure is not None
        assert all(axis.get_xlabel() for axis in figure.axes[-1:])
        text = figures.svg(figure, name, 'a "quoted" <name>')
        root = ElementTree.fromstring(text)  # well-formed XML
        ids = {element.get("id") for element in root.iter()} - {None}
        assert all(identifier.startswith(f"{name}-") for identifier in ids)
        used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
        assert used <= ids
        assert root.get("aria-label") == 'a "quoted" <name>'
    frozen = next(e for e in summary if (e["arm"], e["cell"], e["phase"]) == ("frozen", "tanh", "held_out"))
    online, held_out = drawn["arms"].axes
    points = [line.get_xdata()[0] for line in held_out.lines if line.get_marker() == "o"]
    assert frozen["mean"] in points
    assert len(online.lines) < len(held_out.lines), "retrained arms have no online score of their own"
    assert [axis.get_title() for axis in drawn["gap"].axes] == [
        "tanh network",
        "GRU network",
        "linear decoders and controls",
    ]
    assert figures.gap_figure(rows.assign(day_gap=np.nan)) is None
    lost = rows.assign(value=np.where(rows["arm"] == "frozen", -40.0, rows["value"]))
    assert figures.gap_figure(lost).axes[0].get_ylim()[0] > -1.5


def test_importing_the_package_side_is_light():
    code = (
        "import sys, bci_adapt.report, bci_adapt.figures, bci_adapt.results; "
        "print(sorted({'torch', 'numba', 'pynwb', 'matplotlib', 'xarray', 'dask'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_browser_reports_no_error(run, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no browser on this machine")
    unwanted = ("quic", "gpu", "background-networking", "component-update", "sync")
    flags = ["--headless", "--no-sandbox", "--no-first-run", "--enable-logging=stderr", "--dump-dom"]
    flags += [f"--disable-{name}" for name in unwanted] + ["--virtual-time-budget=2000"]
    address = (run[0] / "report.html").as_uri()
    done = subprocess.run(
        [browser, *flags, f"--user-data-dir={tmp_path / 'profile'}", address],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "CONSOLE" not in done.stderr
    assert 'role="button"' in done.stdout, "headings became sortable"
    assert "In plain words" in done.stdout
