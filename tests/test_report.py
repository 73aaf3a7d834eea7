"""The report: words that turn with the data, text that stays text, and a page that stands alone."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from long_tables import about as arm_tables
from long_tables import arms as known_arms
from long_tables import blocks, curves, manifest, row, stored, study, swept, trajectories

from bci_adapt.errors import InputError
from bci_adapt.ground.seals import DamagedWarning
from bci_adapt.ground.storage import file_digest
from bci_adapt.results.arms import Arms
from bci_adapt.results.figures import run as figures
from bci_adapt.results.figures import studies as figures_study
from bci_adapt.results.points import by_pair
from bci_adapt.results.report import read_run, render_comparison, render_report
from bci_adapt.results.report.blocks import Cell, Column, Table
from bci_adapt.results.report.markdown import _table, line
from bci_adapt.results.summary import score_text, summarise
from bci_adapt.results.table import long_table, read_results, write_results
from bci_adapt.results.terminal import json_payload
from bci_adapt.results.verdict import plain_words

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
            inside = value is None or value.startswith(("#", "data:"))
            if (name in ("src", "srcset", "data", "action") or name.endswith("href")) and not inside:
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


FEW = ("frozen", "normaliser", "readout", "immediate_rmsprop", "network_oracle", "rls", "ridge_oracle", "persistence")


def few(rows, *arms: str):
    """The rows of some arms, `FEW` where none are named, and of their canaries."""
    kept = arms or FEW
    return rows[rows["arm"].isin([*kept, *(f"canary:{arm}" for arm in kept)])].reset_index(drop=True)


def store_run(folder: Path, rows, about=None, excerpt=None, through=None, attrs=None) -> None:
    """What a run leaves in its folder, without its page."""
    folder.mkdir(parents=True, exist_ok=True)
    through = curves(rows) if through is None else through
    excerpt = trajectories(rows) if excerpt is None else excerpt
    tables = {"rows": rows, "curves": through, "trajectories": excerpt, "blocks": blocks(rows), **arm_tables(rows)}
    write_results(folder / "results.nc", tables, attrs or {"unit": "cm/s"})
    (folder / "manifest.json").write_text(json.dumps(manifest() if about is None else about))


def make_run(folder: Path, rows, about=None, excerpt=None, through=None, attrs=None) -> Page:
    store_run(folder, rows, about, excerpt, through, attrs)
    return Page(render_report(folder).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, Page]:
    folder = tmp_path_factory.mktemp("runs") / "study"
    return folder, make_run(folder, few(study(4, 1), *FEW, "rtrl_rmsprop"))


def said(rows, title: str) -> str:
    words = {paragraph["title"]: " ".join(paragraph["sentences"]) for paragraph in plain_words(stored(rows))}
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
        "were ahead of immediate derivatives",
        "were behind immediate derivatives",
        "history and immediate derivatives there was no clear",
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
    rows = few(study(5, 1, metrics=("r2",)), first, second, "frozen")
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
    rows = few(study(5, 1, metrics=("r2",)), *FEW, "window4_rmsprop")
    swapped = rows.copy()
    names = {"window4_rmsprop": "immediate_rmsprop", "immediate_rmsprop": "window4_rmsprop"}
    swapped["arm"] = swapped["arm"].map(lambda arm: names.get(arm, arm))
    before, after = said(rows, "The GRU network"), said(swapped, "The GRU network")
    (ahead,) = re.findall(
        r"Four steps of history were ahead of immediate derivatives \((\S+) against (\S+), \+(\S+) ", before
    )
    (behind,) = re.findall(
        r"Four steps of history were behind immediate derivatives \((\S+) against (\S+), −(\S+) ", after
    )
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
        ({"rls": 0.8, "ridge_oracle": 0.25}, "Linear decoders", "reached 0.2"),
        ({"rls": 0.8, "ridge_oracle": 0.2}, "Linear decoders", ", behind it"),
        ({"rls": 0.8}, "Who is ahead", "recursive least squares (linear) had the highest"),
        ({"immediate_rmsprop": {"tanh": 0.6, "gru": 0.4}}, "Who is ahead", "the GRU was behind the tanh"),
        ({}, "Who is ahead", "the GRU was ahead of the tanh"),
        ({"rls": 0.58, "window4_rmsprop": {"tanh": 0.1, "gru": 0.58}}, "Who is ahead", "is no clear difference"),
    ],
)
def test_words_about_linear_decoders_and_the_leader(changes, title, phrase):
    rows = study(n_targets=5, n_seeds=1, metrics=("r2",), **changes)
    assert phrase in said(few(rows, *FEW, "window4_rmsprop"), title)


def test_words_call_nothing_clear_on_one_day_and_skip_absent_arms():
    text = said(study(1, metrics=("r2",)), "The tanh network")
    assert "one day is too few to decide" in text
    assert "no clear difference" not in text
    assert not re.search("raised|lowered|better|worse|helped|hurt", text)
    rows = study(3, 1, metrics=("r2",))
    two = few(rows, "frozen", "rls")
    assert said(two, "The GRU network").startswith("Frozen as trained")
    assert "normaliser" not in said(two, "The GRU network")
    assert plain_words(stored(rows.iloc[:0])) == []


def test_no_clear_difference_is_said_only_where_the_interval_includes_zero():
    rows = few(study(2, 1, metrics=("r2",), normaliser={"tanh": 0.5}, frozen={"tanh": 0.3}), "frozen", "normaliser")
    raised = rows["arm"] == "normaliser"
    day = rows["target"] == rows["target"].iloc[0]
    level = rows.assign(value=rows["value"] + np.where(raised & day, -0.4, 0.0))
    assert "made no clear difference" in said(level, "The tanh network"), "+.2 and −.2"
    uneven = rows.assign(value=rows["value"] + np.where(raised & day, 0.4, 0.0))
    text = said(uneven, "The tanh network")
    assert "2 days are too few to decide" in text, "+.2 and +.6"
    assert "no clear difference" not in text
    assert "raised this to" in said(rows, "The tanh network"), "+.2 twice"


SECTIONS = {
    "asked": "What was asked",
    "verdict": "In plain words",
    "data": "Data and drift",
    "scores": "Raw scores of every arm",
    "recovery": "Recovery",
    "comparisons": "Comparisons",
    "controls": "Controls: do labels leak?",
    "labels": "Label delay, fraction and budget",
    "forgetting": "Forgetting, and days in a row",
    "tuning": "Tuning",
    "pairs": "Pair by pair",
    "cost": "Cost",
    "again": "How to run it again",
}


def test_page_is_whole_and_stands_alone(run):
    folder, page = run
    text, source = page.text, (folder / "report.html").read_text(encoding="utf-8")
    assert page.well_formed
    assert page.fetches == []
    assert len(page.ids) == len(set(page.ids))
    assert (folder / "report.html").stat().st_size < 4_000_000
    assert not list(folder.glob(".*")), "no temporary left"
    headings = re.findall(r"<h2>(.*?)</h2>", source)
    assert headings == list(SECTIONS.values())
    assert re.findall(r'<li><a href="#(\w+)">', source) == [*SECTIONS], "contents lead to every section"
    assert {*SECTIONS} <= {*page.ids}
    for part in (
        "Against the days",
        "Through the target",
        "Decoded against true",
        "Never compare percentages",
        "no frozen linear decoder",
        "Rates not tuned",
        "velocity (cm/s)",
        "sha256",
        "bci-adapt run configs/study.toml --data recordings",
    ):
        assert part in text
    for lacking in (
        "Drift between the sessions was not measured",
        "No sweep of labels was run.",
        "No weights were carried",
        "Nothing was tuned",
        "The cost of arms was not measured",
    ):
        assert text.count(lacking) == 1
    assert text.count("rates not tuned") >= 5, "under every table and figure of scores"
    assert "this setting leaks" not in text
    assert source.count("<svg") == 7
    stored = (folder / "analysis.json").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bci_adapt.results.analysis.analyse", None)  # what is analysed already is not again
        assert render_report(folder).read_text() == source, "the same run gives the same bytes"
    (folder / "analysis.json").write_bytes(stored.replace(b'"digest": "', b'"digest": "other'))
    with pytest.warns(DamagedWarning, match="analysis.json"):
        assert render_report(folder).read_text() == source
    assert (folder / "analysis.json").read_bytes() == stored, "an analysis of other results is made again"
    mean = json.loads(stored)["summary"][0]["mean"]
    (folder / "analysis.json").write_bytes(stored.replace(f'"mean": {mean}'.encode(), b'"mean": 7.77', 1))
    assert (folder / "analysis.json").read_bytes() != stored
    with pytest.warns(DamagedWarning, match=r"analysis\.json: damaged since it was written; it is made again"):
        render_report(folder)
    assert (folder / "analysis.json").read_bytes() == stored, "an analysis that was changed by hand is made again"


def test_tables_are_written_as_markdown_beside_the_page(run):
    folder, _ = run
    text = (folder / "tables.md").read_text(encoding="utf-8")
    tables = [part.splitlines() for part in re.split(r"\n\n", text) if part.startswith("|")]
    for table in tables:
        assert len({re.sub(r"\\\\[|]", "", line).count("|") for line in table}) == 1, "all rows of one width"
        assert set(table[1]) <= set("| -")
    assert "## Velocity, held out" in text
    assert "## Velocity, online" in text
    found = read_results(folder / "results.nc")
    names = "rls", "", "velocity", "held_out", "r2"
    summary = summarise(found.rows, Arms(found.arms), blocks=found.blocks)
    entry = next(e for e in summary if (e["arm"], e["cell"], e["variable"], e["phase"], e["metric"]) == names)
    held_out = text.partition("## Velocity, held out")[2].splitlines()
    shown = next(line for line in held_out if line.startswith("| recursive least squares"))
    assert shown.split("|")[-2].strip() == score_text(entry), "the linear column is the last"
    assert file_digest(folder / "results.nc") in text


def test_markdown_keeps_text_in_its_cell():
    assert line("a|b", "<b>&", "two\nlines") == "| a\\|b | &lt;b>&amp; | two lines |"


def test_markdown_marks_what_the_page_marks():
    rows = [[Cell("+0.05", "strong"), Cell("leaks", "bad"), Cell("fine", "note"), "plain", Cell("", "strong")]]
    *_, row, _ = _table(Table("", [Column(str(i)) for i in range(5)], rows))
    assert row == "| **+0.05** | **leaks** | fine | plain |  |"


def test_figures_are_offered_as_svg_and_csv_inside_and_beside(run):
    folder, _ = run
    source = (folder / "report.html").read_text(encoding="utf-8")
    links = dict(re.findall(r'<a href="data:[\w/+]+;base64,([\w+/=]+)" download="(.*?)"', source))
    inside = {name: base64.b64decode(held).decode() for held, name in links.items()}
    beside = {path.name: path.read_text(encoding="utf-8") for path in (folder / "figures").iterdir()}
    assert inside == beside
    assert len(beside) == 2 * source.count("<svg")
    for name, text in beside.items():
        if name.endswith(".svg"):
            ElementTree.fromstring(text)
            assert "xmlns=" in text[:300], "a file of its own"
    arms = pd.read_csv(folder / "figures/velocity-arms-tanh.csv").set_index(["arm", "phase"])
    summary = {
        (e["arm"], e["phase"]): e
        for e in summarise(few(study(4, 1), "rtrl_rmsprop"), known_arms(study(4, 1)))
        if (e["cell"], e["metric"]) == ("tanh", "r2")
    }
    assert arms.loc[("rtrl_rmsprop", "held_out"), "mean"] == pytest.approx(
        summary["rtrl_rmsprop", "held_out"]["mean"], abs=1e-5
    )
    assert ("network_oracle", "online") not in arms.index


def test_downloads_that_would_make_the_page_large_lie_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr("bci_adapt.results.report.album.DOWNLOADS_BYTES", 0)
    page = make_run(tmp_path, few(study(2, 1, metrics=("r2",)), "frozen", "rls", "readout"))
    files = [fetch.removeprefix("a href=") for fetch in page.fetches]
    assert len(files) >= 8
    assert all((tmp_path / file).is_file() for file in files)


def test_page_says_what_leaks_what_failed_and_what_is_left_out(tmp_path):
    rows = few(study(3, metrics=("r2",)), *FEW, "immediate_sgd")
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
    arm = "an idea of one's own"
    rows = few(study(3, 1, metrics=("r2",), **{arm: {"mgu": 0.9}, "frozen": {"mgu": 0.1}}), *FEW, arm)
    diverged = (rows["arm"] == "canary:rls") & (rows["target"] == "day-11")
    rows.loc[diverged, ["value", "status", "reason"]] = [np.nan, "failed", "weights diverged"]
    page = make_run(tmp_path, rows.drop(rows.index[rows["arm"] == f"canary:{arm}"]))
    assert f"Of all arms that were not retrained, {arm} (mgu) had the highest" in page.text
    assert f"{arm} not checked no canary was run (mgu)" in page.text
    assert re.search(
        r"recursive least squares no leak linear .*; 2 of 6 canary runs failed \(weights diverged\)", page.text
    )
    known = known_arms(rows)
    for drawn in (figures.gap_figure(by_pair(rows), known), figures.curve_figure(curves(rows), known)):
        legend = [text.get_text() for text in drawn.figure.legends[0].get_texts()]
        assert arm in legend
    labels = figures.arms_figure(summarise(rows, known), known, "velocity", "mgu").figure.axes[0].get_yticklabels()
    assert [label.get_text() for label in labels] == [arm, "frozen"], "the best on top"


def test_text_from_files_is_never_markup(tmp_path):
    evil = "<script>alert(1)</script>\"'&{{ 7*7 }}"
    rows = few(study(2, 1, metrics=("r2", "pearson")))
    for column in ("source", "target"):
        rows[column] = rows[column] + evil
    about = manifest(
        name=evil,
        command=evil,
        config={evil: {evil: [evil]}},
        versions={evil: evil},
        unscorable=[{"source": evil, "target": evil, "reason": evil}],
        drift=[
            {"source": rows["source"][0], "target": target, "measures": {evil: {"value": 1.0, "low": 0.5, "high": 1.5}}}
            for target in set(rows["target"])
        ],
        costs=[{"arm": evil, "cell": evil, "p50_us": 1.0, "p95_us": 2.0, "p99_us": 3.0, "bin_s": 0.05}],
        tuning={
            "file": evil,
            "digest": evil,
            "surface": [
                {"method": evil, "cell": evil, "parameters": {evil: x, "a": evil}, "score": x} for x in (1.0, 2.0)
            ],
            "chosen": [{"method": evil, "cell": evil, "parameters": {evil: 2.0}, "score": 2.0, "interior": False}],
        },
        lock={evil: evil},
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
    (tmp_path / "manifest.json").write_text('{"name": "x"}')
    with pytest.raises(InputError, match=r"results\.nc: no such file"):
        render_report(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def check_svg(figure, name: str) -> None:
    text = figures.svg(figure, name, 'a "quoted" <name>')
    root = ElementTree.fromstring(text)  # well-formed XML
    ids = {element.get("id") for element in root.iter()} - {None}
    assert all(identifier.startswith(f"{name}-") for identifier in ids)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    assert used <= ids
    assert root.get("aria-label") == 'a "quoted" <name>'


def test_figures_draw_what_the_table_holds():
    rows = study(3, 1, metrics=("r2",))
    known = known_arms(rows)
    summary = summarise(rows, known)
    drawn = {
        "arms": figures.arms_figure(summary, known, "velocity", "tanh", {"frozen": "none"}),
        "gap": figures.gap_figure(by_pair(rows), known),
        "curve": figures.curve_figure(curves(rows), known),
        "trajectory": figures.trajectory_figure(trajectories(rows), known, unit="cm/s"),
        "controls": figures.controls_figure(summary, known),
    }
    for name, each in drawn.items():
        assert each is not None
        assert len(each.data)
        assert all(axis.get_xlabel() for axis in each.figure.axes[-1:])
        check_svg(each.figure, name)
    frozen = next(e for e in summary if (e["arm"], e["cell"], e["phase"]) == ("frozen", "tanh", "held_out"))
    (axis,) = drawn["arms"].figure.axes
    squares = [line for line in axis.lines if line.get_marker() == "s"]
    filled = [line.get_xdata()[0] for line in squares if line.get_markerfacecolor() != "white"]
    assert filled == [frozen["mean"]], "without labels: a square of its own"
    diamonds = [line for line in axis.lines if line.get_marker() == "D"]
    assert all(line.get_markerfacecolor() != "white" for line in diamonds), "retrained arms have no online score"
    wide = figures.arms_figure(summary, known, "velocity", "").figure.axes[0]
    assert wide.get_xlim() == axis.get_xlim(), "cells can be laid side by side"
    assert [axis.get_title() for axis in drawn["gap"].figure.axes] == [
        "tanh network",
        "GRU network",
        "linear decoders and controls",
    ]
    assert figures.gap_figure(by_pair(rows.assign(day_gap=np.nan)), known) is None
    lost = rows.assign(value=np.where(rows["arm"] == "frozen", -40.0, rows["value"]))
    assert figures.gap_figure(by_pair(lost), known).figure.axes[0].get_ylim()[0] > -1.5
    assert figures.arms_figure(summarise(lost, known), known, "velocity", "tanh").figure.axes[0].get_xlim()[0] > -1.5
    assert {"time"} == set(drawn["controls"].data["control"]) - {""}


def test_tuning_figure_rings_the_chosen_point_and_skips_what_failed():
    surface = [
        {"method": "rls", "cell": "", "parameters": {"rate": rate, "ratio": ratio}, "score": score}
        for ratio in (0.1, 1.0)
        for rate, score in ((1e-4, 0.1), (1e-3, 0.3 + ratio / 10), (1e-2, None))
    ]
    chosen = [{"method": "rls", "cell": "", "parameters": {"rate": 1e-3, "ratio": 1.0}, "score": 0.4}]
    known = known_arms(long_table([row(arm="rls", cell="")]))
    drawn = figures_study.tuning_figure(surface, chosen, known)
    axis = drawn.figure.axes[0]
    (ring,) = [line for line in axis.lines if line.get_markerfacecolor() == "none"]
    assert (ring.get_xdata()[0], ring.get_ydata()[0]) == (1e-3, pytest.approx(0.4))
    assert axis.get_xscale() == "log"
    assert sorted(drawn.data["score"]) == pytest.approx([0.1, 0.1, 0.31, 0.4])
    assert figures_study.tuning_figure([], [], known) is None
    assert figures_study.swept_parameter([{"memory_s": 1.0, "n": 3}, {"memory_s": 2.0, "n": 3}]) == "memory_s"
    check_svg(drawn.figure, "tuning")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, Page]:
    """A run with every side question answered."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    rows = few(study(5, 1, metrics=("r2", "r2:x")), *FEW, "joint_oracle")
    rows = pd.concat([rows, swept(5)], ignore_index=True)
    rows = rows.drop_duplicates(["source", "target", "arm", "cell", "seed", "study", "phase", "metric", *SWEPT])
    carried = rows[(rows["arm"] == "readout") & (rows["study"] == "") & (rows["phase"] == "held_out")]
    carried = carried[(carried["source"] == "day-00") & (carried["seed"] == 0)]
    rows = pd.concat([rows, carried.assign(study="continual", value=carried["value"] + 0.05)], ignore_index=True)
    pairs = rows[["source", "target"]].drop_duplicates().itertuples(index=False)
    about = manifest(
        primary_bins="in trial",
        rates_tuned=True,
        drift=[
            {
                "source": s,
                "target": t,
                "measures": {"unit_overlap": {"value": int(t[-1]) / 10, "low": 0.0, "high": 1.0}},
            }
            for s, t in pairs
        ],
        costs=[
            {"arm": "rls", "cell": "", "p50_us": 40.0, "p95_us": 60.0, "p99_us": 90.0, "empty_loop_us": 3.0}
            | {"state_bytes": 64_000, "peak_bytes": 4_100_000, "bin_s": 0.05},
            {"arm": "rtrl_rmsprop", "cell": "tanh", "p50_us": 4e4, "p95_us": 5e4, "p99_us": 6e4, "empty_loop_us": 3.0}
            | {"state_bytes": None, "peak_bytes": None, "bin_s": 0.05},
        ],
        tuning={
            "file": "tuned/wrist.json",
            "digest": "c0ffee",
            "seeds": [0],
            "surface": [
                {"method": "rls", "cell": "", "parameters": {"memory_s": m}, "score": m / 1e4} for m in (100.0, 1000.0)
            ],
            "chosen": [
                {"method": "rls", "cell": "", "parameters": {"memory_s": 1000.0}, "score": 0.1, "interior": False}
                | {"n_points": 2}
            ],
        },
    )
    about["primary"] = {"arm": "immediate_rmsprop", "cell": "gru", "against": "rls", "against_cell": ""}
    return folder, make_run(folder, rows, about)


SWEPT = ("delay_s", "label_fraction", "budget_s", "rate", "variable")


def test_days_in_a_row_stand_beside_the_same_pairs_and_seeds_anew(whole):
    folder, _ = whole
    text = (folder / "tables.md").read_text(encoding="utf-8").partition("### Day by day")[2].partition("Carried on,")[0]
    days = [each.split("|")[2:5] for each in text.splitlines() if each.startswith("| readout only")]
    assert len(days) >= 4
    for _, carried, anew in days:
        assert float(carried) - float(anew) == pytest.approx(0.05, abs=0.011)


@pytest.mark.parametrize(
    "part",
    [
        "Declared before looking: immediate + RMSprop (GRU) against recursive least squares (linear)",
        "Primary scores are of bins inside trials.",
        "Primary comparison. immediate + RMSprop (GRU) is clearly ahead of recursive least squares (linear): 0.",
        "unit overlap",
        "lost by the frozen decoder",
        "recovery_joint =",
        "reaches 90 % of the ceiling",
        "No drift: the source day's later half as target.",
        "Cold start: optimiser and traces not warmed",
        "One learning rate for all",
        "Below zero, the decoder has forgotten.",
        "Carried on, beside adapting each day anew.",
        "recursive least squares 1000 0.10 2 at the edge",
        "tuned/wrist.json",
        "sha256 c0ffee",
        "40.0 60.0 90.0 3.0 0.18 % 64 kB 4.1 MB in time",
        "40000.0 50000.0 60000.0 3.0 120.00 % – – too slow",
        "day-00 → day-10, 9 days apart",
    ],
)
def test_page_answers_every_side_question(whole, part):
    assert part in whole[1].text


def test_whole_page_has_its_figures_and_lacks_nothing(whole):
    folder, page = whole
    assert page.well_formed
    names = {path.stem for path in (folder / "figures").glob("*.svg")}
    kinds = ("delay", "fraction", "budget", "continual", "controls", "gap", "curve", "trajectory")
    assert {f"velocity-{kind}" for kind in kinds} | {"drift", "tuning", "cost"} <= names
    days = pd.read_csv(folder / "figures/velocity-days.csv")
    assert list(days["series"].unique()) == [
        *("frozen", "no labels", "30 s of labels", "120 s of labels", "all labels"),
        *("retrained on the day", "retrained, earlier days too", "shuffled neurons"),
    ]
    assert (days.groupby("series")["date"].nunique() == 5).all()
    budget = pd.read_csv(folder / "figures/velocity-budget.csv")
    assert sorted(set(budget["value"])) == [0, 5, 30, 120, 300, 600], "the standing arm is the last point"
    assert "nan" not in page.text.lower().split()
    assert (folder / "report.html").stat().st_size < 8_000_000


def test_report_writes_the_json_of_one_run(tmp_path, call):
    folder, file = tmp_path / "run", tmp_path / "scores.json"
    store_run(folder, few(study(2, 1, metrics=("r2",)), "frozen", "readout"))
    assert call("report", folder, "--json", file, "--quiet")[0] == 0
    found = read_run(folder)
    assert json.loads(file.read_text()) == json_payload(found.stored, found.manifest, found.analysis)
    assert json.loads(call("report", folder, "--json", "-")[1]) == json.loads(file.read_text())
    file.unlink()
    code, _, trouble = call("report", folder, folder, "--json", file)
    assert code != 0
    assert "--json: takes one run" in trouble
    assert not file.exists()
    (folder / "analysis.json").unlink()
    (folder / "analysis.json").mkdir()
    with pytest.raises(InputError, match=r"analysis\.json: expected a file, it is a folder"):
        read_run(folder)


def test_runs_side_by_side(tmp_path):
    rows = few(study(4, 1, metrics=("r2",)), "frozen", "readout")
    better = rows.assign(value=rows["value"] + 0.1 * ((rows["arm"] == "readout") & (rows["metric"] == "r2")))
    elsewhere = rows.assign(target=rows["target"] + "-later")
    store_run(tmp_path / "better", better, manifest(name="<b>", config={"delay_s": 0.0, "seeds": [0, 1]}))
    store_run(tmp_path / "elsewhere", elsewhere)
    store_run(tmp_path / "first", rows)
    out = render_comparison(
        [tmp_path / "first", tmp_path / "better", tmp_path / "elsewhere"], tmp_path / "out" / "both.html"
    )
    page = Page(out.read_text(encoding="utf-8"))
    assert page.well_formed
    assert page.fetches == []
    assert "delay_s 0.5 0.0 0.5" in page.text
    assert "seeds 0, 1 0, 1" not in page.text, "what is the same is not listed"
    (line,) = re.findall(r"tanh readout only .*?(?= tanh )", page.text)
    assert re.search(r"\+0\.100 \[0\.100, 0\.100\] 4 0\.125 – 0 – no target day is shared", line)
    assert "+0.000 [0.000, 0.000] 4 1.000 no clear difference" in page.text
    assert (tmp_path / "out/figures/compare-velocity.csv").is_file()
    assert "&lt;b&gt;" in out.read_text(encoding="utf-8")
    with pytest.raises(InputError, match="two or more"):
        render_comparison([tmp_path / "first"], out)


def test_importing_the_package_side_is_light():
    code = (
        "import sys, bci_adapt.results.report, bci_adapt.results.figures.run, bci_adapt.results.table; "
        "print(sorted({'torch', 'numba', 'pynwb', 'matplotlib', 'xarray', 'dask'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


PROBE = """<script>
const said = [];
const table = document.querySelector("#scores table.sortable");
table.tHead.rows[0].cells[4].click();
const shown = [...table.tBodies[0].rows].map((row) => parseFloat(row.cells[4].textContent.replace("−", "-")));
const known = shown.filter((value) => !Number.isNaN(value));
said.push("sorted=" + known.every((value, i) => !i || value <= known[i - 1]) + known.length);
const holder = document.querySelector("figure .drawing");
holder.click();
said.push("opened=" + (document.querySelector("dialog").open && !holder.querySelector("svg")));
document.querySelector("dialog button[aria-label=larger]").click();
said.push("grown=" + document.querySelector("dialog svg").style.width);
const box = document.querySelector("dialog");
box.addEventListener("close", () => {
  said.push("back=" + Boolean(holder.querySelector("svg")));
  document.title = said.join(" ");
});
box.close();
</script></body>"""


def look(browser: str, page: Path, folder: Path) -> subprocess.CompletedProcess:
    """The page as a headless browser without a network leaves it."""
    unwanted = ("quic", "gpu", "background-networking", "component-update", "sync")
    flags = ["--headless", "--no-sandbox", "--no-first-run", "--enable-logging=stderr", "--dump-dom"]
    flags += [f"--disable-{name}" for name in unwanted] + ["--virtual-time-budget=2000"]
    flags += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / 'profile'}"]
    return subprocess.run([browser, *flags, page.as_uri()], capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def browser() -> str:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    return found or pytest.skip("no browser on this machine")


def test_browser_sorts_enlarges_and_reports_no_error(whole, browser, tmp_path):
    folder, _ = whole
    probed = tmp_path / "report.html"
    probed.write_text((folder / "report.html").read_text(encoding="utf-8").replace("</body>", PROBE), encoding="utf-8")
    done = look(browser, probed, tmp_path)
    assert "CONSOLE" not in done.stderr
    assert 'role="button"' in done.stdout, "headings became sortable"
    for anchor, title in SECTIONS.items():
        assert re.search(rf'<section id="{anchor}">\s*<h2>{re.escape(title)}</h2>', done.stdout)
    (title,) = re.findall(r"<title>(.*?)</title>", done.stdout)
    assert re.fullmatch(r"sorted=true\d\d opened=true grown=140% back=true", title)


def test_browser_runs_no_text_of_a_session(browser, tmp_path):
    evil = "</title></svg><script>alert(1);document.title='run'</script><img src=x onerror=\"document.title='run'\">"
    rows = few(study(2, 1, metrics=("r2",)), "frozen", "rls")
    rows["target"] = rows["target"] + evil
    excerpt = trajectories(rows)
    excerpt["axis"] = evil
    make_run(tmp_path / "run", rows, manifest(name=evil), excerpt, attrs={"unit": evil})
    done = look(browser, tmp_path / "run" / "report.html", tmp_path)
    assert "CONSOLE" not in done.stderr
    assert "<title>run" not in done.stdout
    assert "onerror=" in done.stdout, "it is there as text"
    assert not re.search("<img", done.stdout)
