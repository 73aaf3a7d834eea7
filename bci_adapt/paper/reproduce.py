"""Run figures of the paper, write their pictures, tables and the page of claims."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from bci_adapt.errors import InputError
from bci_adapt.ground.catalog import unknown
from bci_adapt.ground.engine import Failure, Outcome, Progress, execute
from bci_adapt.ground.jobs import digest, sources
from bci_adapt.ground.storage import write_text
from bci_adapt.paper import drawing, pages, stored, tables
from bci_adapt.paper.claims import Case, Claim, judge, load_claims
from bci_adapt.paper.config import FigureConfig, load
from bci_adapt.paper.planning import Entry, entries
from bci_adapt.paper.tables import Frame
from bci_adapt.results.figures.run import save, svg

ALIASES = {"T1": "F1"}  # a table is made of the run of a figure
CLAIMS = "claims.toml"
_SHOWN = (
    *("task", "cell", "n_hidden", "method", "rates", "rate", "interior", "n_seeds", "n_refused", "n_failed"),
    *(
        "last_before",
        "last_frozen",
        "last",
        "last_sd",
        "cv",
        "area",
        "held_out",
        "held_out_reservoir",
        "held_out_linear",
    ),
    *("recovery_pre_last", "low_pre_last", "high_pre_last", "sd_pre_last", "refused_pre_last"),
    *("recovery_pre_held_out", "recovery_oracle_held_out", "recovery_rtrl_last", "us_per_bin"),
)

_NETWORK = (
    *("task", "cell", "n_hidden", "seed", "usable", "lambda_star", "before_last", "frozen_last", "oracle_last"),
    *("before_held_out", "frozen_held_out", "oracle_held_out", "reservoir_held_out", "linear_held_out"),
)


@dataclass(frozen=True)
class PlannedFigure:
    """A figure: its config, its jobs, and the tables of what is there of it."""

    config: FigureConfig
    entries: list[Entry]
    stored_runs: Sequence[Path] = ()

    @cached_property
    def stored(self) -> Frame:
        """What the stored runs say that the figure reads."""
        return stored.read(self.stored_runs)

    @property
    def complete(self) -> bool:
        """Whether every result is there."""
        return all(entry.job.is_done for entry in self.entries)

    def tables(self) -> dict[str, Frame]:
        """Every table, as the figure is drawn from."""
        found = self.tables_of(self.entries)
        found["methods"] = tables.methods(found["runs"])
        found["contests"] = tables.contests(found["streams"])
        return found

    def tables_of(self, read: Sequence[Entry]) -> dict[str, Frame]:
        """The tables that claims are judged by, from the results of these entries alone."""
        found = tables.read(read, self.config.seeds)
        found["gaps"] = tables.best_gaps(found["runs"]) if not found["runs"].empty else found["runs"]
        found["architectures"] = tables.architectures(found)
        return found | {"stored": self.stored}

    def read_by(self, cases: Sequence[Case]) -> list[Entry]:
        """The entries whose results any of the cases reads."""
        return [entry for entry in self.entries if any(case.reads(entry) for case in cases)]


@dataclass(frozen=True)
class Done:
    """What `reproduce` did: the page, counts of jobs, and the rows of the claims."""

    page: Path
    outcome: Outcome
    rows: list[dict[str, Any]]
    failed: tuple[Failure, ...] = field(default=())


def known_figures(folder: Path) -> list[str]:
    """Names of the figures whose configs lie in `folder`, and of the tables made of them."""
    names = sorted(path.stem for path in folder.glob("*.toml") if path.name != CLAIMS)
    if not names:
        raise InputError(f"{folder}: expected configs of figures (F1.toml …), found none")
    return names + [name for name, of in ALIASES.items() if of in names]


def plan(folder: Path, quick: bool, runs: Sequence[Path] = ()) -> dict[str, PlannedFigure]:
    """Every figure of `folder` with its jobs; nothing is run. `runs` are stored runs for figures that read some."""
    planned = {}
    for name in known_figures(folder):
        if name in ALIASES:
            continue
        path = folder / f"{name}.toml"
        config = load(path, quick)
        if config.figure != name:
            raise InputError(f"{path}: figure is {config.figure!r}; it must be the file's own name")
        of_runs = list(runs or stored.newest(config.runs)) if config.runs else []
        planned[name] = PlannedFigure(config, entries(config), of_runs)
    return planned


def reproduce(
    names: Sequence[str],
    folder: Path,
    out: Path,
    *,
    quick: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda text: None,
    runs: Sequence[Path] = (),
) -> Done:
    """Run figures (``all`` of them, or by name) of the configs in `folder` and write everything into `out`.

    Results that are there already are used. The page holds every figure whose results are complete, those of earlier
    calls too; a claim of a figure that is not says so. Raises `InputError` for an unknown figure.
    """
    known = known_figures(folder)
    for name in names:
        if name not in (*known, "all"):
            raise InputError(unknown(name, [*known, "all"], "figure"))
    planned = plan(folder, quick, runs)
    asked = list(planned) if "all" in names else list(dict.fromkeys(ALIASES.get(name, name) for name in names))
    say("planning")
    jobs = [entry.job for name in asked for entry in planned[name].entries]
    outcome = execute(jobs, workers=workers, progress=progress)
    # Of what was asked for a failed job costs its own rows only.
    complete = {name: run for name, run in planned.items() if name in asked or run.complete}
    shown = []
    for name, run in complete.items():
        say(f"drawing {name}")
        found = run.tables()
        pictures = drawing.draw(name, found)
        _write(out, name, pictures, found)
        shown.append((name, run.config.title, run.config.about, pictures, _page_tables(name, found)))
    rows = _judged(folder, planned, complete, quick)
    page = pages.write_claims(out, rows, shown)
    return Done(page, outcome, rows, outcome.failed)


def digests(folder: Path, quick: bool = False) -> dict[str, str]:
    """The digest of every claim of `folder`, as it is now."""
    planned = plan(folder, quick)
    return {claim.id: claim_digest(claim, planned, quick) for claim in load_claims(folder / CLAIMS)}


def claim_digest(claim: Claim, planned: Mapping[str, PlannedFigure], quick: bool = False) -> str:
    """Digest of what can change the row of a claim: its own entry, the code that reads results and judges them, and
    the jobs whose results its cases read, with what each is about – without the versions of libraries.

    Stored runs are data, not code: they are not part of it. No job of another claim or figure is.
    """
    readers = ["bci_adapt.paper.tables:read", "bci_adapt.paper.claims:judge"]
    results = []
    for figure, cases in claim.reads(quick).items():
        if (run := planned.get(figure)) is None:
            continue
        if run.config.runs:
            readers.append("bci_adapt.paper.stored:read")
        for entry in run.read_by(cases):
            about = [entry.kind, entry.task, entry.cell, entry.n_hidden, entry.method, entry.columns]
            results.append([figure, run.config.seeds, *about, entry.job.key_of_any_release])
    code = [sources(reader) for reader in readers]
    return digest([claim.model_dump(mode="json", exclude_unset=True), quick, code, results])[:12]


def _judged(
    folder: Path, planned: Mapping[str, PlannedFigure], complete: Mapping[str, PlannedFigure], quick: bool
) -> list[dict[str, Any]]:
    """The row of every claim, judged by the results that it reads and no other."""
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    rows = []
    for claim in load_claims(folder / CLAIMS):
        reads = {figure: cases for figure, cases in claim.reads(quick).items() if figure in complete}
        found = {figure: complete[figure].tables_of(complete[figure].read_by(cases)) for figure, cases in reads.items()}
        row = judge(claim, found, quick)._asdict()
        if claim.figure in complete:
            command = f"bci-adapt reproduce {claim.figure}{' --quick' if quick else ''}"
            row |= {"command": command, "digest": claim_digest(claim, planned, quick), "made": made}
        else:
            row |= {"command": "", "digest": "", "made": ""}
        rows.append(row | {"quick": quick})
    return rows


def _write(out: Path, name: str, pictures: drawing.Figures, found: Mapping[str, Frame]) -> None:
    for stem, drawn, alt, _ in pictures:
        write_text(out / f"{stem}.svg", _standing(svg(drawn.figure, stem, alt)))
        save(drawn.figure, out / f"{stem}.png")
        write_text(out / f"{stem}.csv", drawn.data.to_csv(index=False, float_format="%.6g"))
    for which, table in found.items():
        if not table.empty:
            write_text(out / "tables" / f"{name}_{which}.csv", table.to_csv(index=False, float_format="%.6g"))
    if name == "F1":
        write_text(out / "T1.csv", table_1(found["methods"]).to_csv(index=False, float_format="%.6g"))


def _standing(text: str) -> str:
    """An <svg> element as a file of its own."""
    return text if "xmlns=" in text else text.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)


def table_1(methods: Frame) -> Frame:
    """Table 1 of the paper: the usual decay (0.95) against none, for every optimiser, size and kind of rate."""
    if methods.empty:
        return methods
    rows = methods[methods["decay"].isin([0.0, 0.95]) & methods["rule"].str.startswith("trace")]
    return rows[[*_of(rows, _SHOWN[:7]), "decay", *_of(rows, _SHOWN[7:])]]


def _of(table: Frame, names: Sequence[str]) -> list[str]:
    return [name for name in names if name in table]


def _page_tables(name: str, found: Mapping[str, Frame]) -> dict[str, Frame]:
    """Tables that stand on the page, by caption."""
    methods, shown = found["methods"], {}
    if name == "F1":
        shown["Table 1: the usual decay against none."] = table_1(methods)
    if not methods.empty:
        caption = f"Errors first, in variances of the target; then recoveries, in percent. {_WORDS}"
        shown[caption] = methods[_of(methods, _SHOWN)]
    if name == "F3":
        shown["What the rule predicts, and what came out (points of recovery)."] = found["architectures"]
    if not found["gradients"].empty:
        numeric = found["gradients"].groupby(["task", "cell", "n_hidden"], sort=False).mean(numeric_only=True)
        shown["Medians along the run, means over seeds."] = numeric.drop(columns="seed").reset_index()
    if not found["networks"].empty:
        caption = "The networks, a row per seed: what they lost, and what they were worth before (a weak denominator?)."
        shown[caption] = found["networks"][_of(found["networks"], _NETWORK)]
    shown["Bytes."] = found["memory"]
    shown[_CONTESTS] = found["contests"]
    shown["Stored runs: held-out R² and recovery towards the retrained network, in percent."] = found["stored"]
    return {caption: table for caption, table in shown.items() if not table.empty}


_CONTESTS = (
    "Streams, the best first: prequential loss of the whole part that is scored (nats per bin; of time series the mean "
    "squared error over that of the last value), of its second half, and accuracy. Means over seeds that did not fail."
)
_WORDS = (
    "last: the end of the adaptation, predicted before learning; held out: later bins, weights frozen; reservoir: "
    "ridge on the untrained network; linear: ridge on ten lags of the input. n refused: seeds with nothing to recover; "
    "n failed: diverged."
)
