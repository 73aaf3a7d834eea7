"""No text from a file commands a terminal: escapes, other directions and other lines do not come out."""

import json
import sys
import warnings

import numpy as np
import pytest
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text

import bci_adapt as ba
from bci_adapt import cli
from bci_adapt.cli.common import Jobs, Terminal, print_line, write_json
from bci_adapt.ground import performing
from bci_adapt.ground.text import clean, escaped, printable

HOSTILE = "a\x1b]0;owned\x07\x1b[2Jb\x9b31mc\u202edlrow\u2066\u200b\x7f\x00\x85e\u2028f[/red][bold]g\ud800"
OBEYED = {chr(code) for code in (*range(32), *range(0x7F, 0xA0), 0x200B, 0x202E, 0x2028, 0x2066, 0xD800)} - {"\n"}


def leaks(text):
    return sorted(OBEYED & set(text))


@pytest.mark.parametrize("text", [HOSTILE, HOSTILE * 20_000, "x" * 10**6 + "\x1b[31m"])
def test_texts_of_any_length_are_made_safe(text):
    assert not leaks(printable(text))
    assert printable(text).count("\n") == text.count("\n")
    assert len(printable(text, 500)) <= 500
    assert not leaks(clean(text))
    told = json.dumps({"said": text}, ensure_ascii=False)
    assert not leaks(escaped(told))
    assert json.loads(escaped(told)) == {"said": text}


def test_a_console_shows_text_as_text(capsys):
    console = Terminal(width=200, markup=False, emoji=False)
    table = Table(title=HOSTILE, caption=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    table.add_row(Text(HOSTILE))
    for each in (HOSTILE, Text(HOSTILE), table):
        console.print(each)
    print_line(HOSTILE * 1000, "red", console)
    write_json("-", {"said": HOSTILE})
    said = capsys.readouterr().out
    assert "[/red][bold]g" in said
    assert not leaks(said)


def test_a_terminal_gets_colours_but_no_commands_of_a_file(capsys):
    console = Terminal(width=200, force_terminal=True, color_system="standard", markup=False)
    console.print(HOSTILE, style="red", highlight=False)
    said = capsys.readouterr().out
    assert "\x1b[31m" in said  # its own
    assert not leaks(said.replace("\x1b[31m", "").replace("\x1b[0m", ""))


def test_labels_of_jobs_are_shown_as_they_are(capsys):
    with Progress(TextColumn("{task.description}", markup=False), console=Terminal(width=300)) as bar:
        jobs = Jobs(bar)
        jobs.start(2, 0)
        jobs.done(HOSTILE, 0.1, ok=True)
        jobs.done(HOSTILE * 10_000, 0.1, ok=False)
    said = capsys.readouterr().out
    assert "failed: a" in said
    assert not leaks(said)


def test_warnings_of_jobs_are_shown_as_text():
    usual = warnings.formatwarning
    with performing._warnings_for_readers():
        said = warnings.formatwarning(HOSTILE * 2, UserWarning, "job.py", 1)
    assert "UserWarning: a" in said
    assert not leaks(said)
    assert warnings.formatwarning is usual
    assert leaks(usual(HOSTILE, UserWarning, "job.py", 1))


@pytest.fixture
def hostile(tmp_path):
    """A prepared session and arrays whose every text is hostile."""
    counts = np.random.default_rng(0).poisson(1.0, (400, 4))
    made = ba.session(counts=counts, target=np.cumsum(np.ones((400, 2)), axis=0), bin_s=0.05)
    text = HOSTILE.replace("\x00", "").replace("\ud800", "")
    made = made.assign_coords(channel=[f"{number}{text}" for number in range(4)])
    made.attrs |= {
        "session_id": text, "subject": text * 1000, "source_file": text, "description": text, "layout": text,
        "licence": text, "warnings": json.dumps([text, text * 1000]),
    }  # fmt: skip
    made["position"].attrs["units"] = text
    ba.write_session(made, tmp_path / "s.nc")
    np.savez(tmp_path / "a.npz", counts=counts, channels=np.array([f"{n}{text}" for n in range(4)]), session_id=text)
    np.savez(tmp_path / "b.npz", **{text: counts})
    (tmp_path / "c.toml").write_text(f'name = "{escaped(text)}"\n', encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", "s.nc"], ["inspect", "s.nc", "--json"], ["inspect", "a.npz"], ["inspect", "b.npz"],
        ["qc", "s.nc"], ["qc", "s.nc", "--json"], ["drift", "s.nc", "s.nc"], ["run", "c.toml"],
        ["prepare", "a.npz", "--bin", "0.05", "--out", "out"], ["predict", "b.npz", "s.nc", "-o", "out.nc"],
        ["compare", "s.nc", "a.npz", "--target", "position"],
    ],
)  # fmt: skip
def test_commands_show_hostile_files_as_text(hostile, arguments, capsys, monkeypatch):
    monkeypatch.chdir(hostile)
    monkeypatch.setattr(sys, "argv", ["bci-adapt", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    assert ended.value.code in (0, 1, 2)
    assert said.out + said.err
    assert not leaks(said.out + said.err)
    assert len(said.err) < 50_000
