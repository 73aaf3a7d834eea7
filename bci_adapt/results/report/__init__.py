"""A run's report: one self-contained HTML file, made from the run's folder and nothing else; and runs side by side."""

from __future__ import annotations

from pathlib import Path

from bci_adapt.errors import InputError
from bci_adapt.ground.storage import file_digest, write_text
from bci_adapt.results.analysis import analysis_of
from bci_adapt.results.manifest import MANIFEST, RESULTS, read_manifest
from bci_adapt.results.recovery import coded
from bci_adapt.results.report import comparisons, cost, sections, studies
from bci_adapt.results.report.blocks import Page, render_page
from bci_adapt.results.report.compare import compare_page
from bci_adapt.results.report.markdown import tables_markdown
from bci_adapt.results.report.run import StoredRun
from bci_adapt.results.table import read_results

__all__ = ["read_run", "render_comparison", "render_report"]
REPORT, TABLES = "report.html", "tables.md"


def render_report(run_folder: Path) -> Path:
    """Write ``report.html`` into `run_folder` from its manifest, results and analysis; return its path.

    What is not analysed yet is (``analysis.json``, `bci_adapt.results.analysis.analysis_of`). The file asks nothing of
    the network and needs no script to be read. Its figures and their numbers are written into ``figures/`` beside it
    too, and its tables as Markdown into ``tables.md``. Raises `InputError` naming the file that is missing or
    unreadable.
    """
    run = read_run(run_folder)
    page = Page(
        "Cross-session decoding report",
        run.manifest.name,
        sections.asked_words(run),
        sections.facts(run),
        sections.banners(run),
        [
            sections.asked(run),
            sections.verdict(run),
            comparisons.data(run),
            sections.scores(run),
            comparisons.recovery(run),
            comparisons.comparisons(run),
            studies.controls(run),
            studies.labels(run),
            studies.forgetting(run),
            studies.tuning(run),
            sections.pairs(run),
            cost.cost(run),
            sections.again(run),
        ],
    )
    text = render_page(page)
    run.album.write(Path(run_folder))
    target = Path(run_folder) / REPORT
    write_text(target, text)
    write_text(Path(run_folder) / TABLES, tables_markdown(run, page))
    return target


def render_comparison(folders: list[Path], out: Path) -> Path:
    """Write one page that lays runs side by side to `out`, its figures into ``figures/`` beside it; return its path.

    Raises `InputError` for fewer than two folders, and as `read_run` does.
    """
    if len(folders) < 2:
        raise InputError(f"render_comparison: expected two or more folders of runs, got {len(folders)}")
    runs = [read_run(folder) for folder in folders]
    page, album = compare_page(runs, [Path(folder).resolve().name for folder in folders])
    text = render_page(page)
    album.write(Path(out).parent)
    write_text(Path(out), text)
    return Path(out)


def read_run(folder: Path) -> StoredRun:
    """What a run's folder holds; raises `InputError` naming the file that is missing or unreadable."""
    folder = Path(folder)
    manifest = read_manifest(folder / MANIFEST)
    manifest.require_whole(folder)
    stored = read_results(folder / RESULTS)
    stored = stored._replace(rows=coded(stored.rows))
    analysis = analysis_of(folder, stored, manifest)
    names = ("config.toml", "sessions.lock.toml", MANIFEST, RESULTS)
    digests = {name: file_digest(folder / name) for name in names if (folder / name).is_file()}
    return StoredRun(manifest, stored, analysis, digests)
