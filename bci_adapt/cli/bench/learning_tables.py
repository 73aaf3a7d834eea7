"""The benchmark of online learning for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bci_adapt.cli.bench import judged
from bci_adapt.cli.bench.rivals import JAX, TORCH

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text


def tables(rows: list[dict[str, Any]]) -> list[Table]:
    """One table per kind of row, at most 100 columns wide; a figure that misses its aim is red."""
    kinds = {
        "immediate": _speeds,
        "rtrl": _speeds,
        "rules": _speeds,
        "latency": _latency_table,
        "deployed": _empty_table,
        "memory": _words,
    }
    found = {kind: [row for row in rows if row["bench"] == kind] for kind in kinds}
    return [kinds[kind](kind, each) for kind, each in found.items() if each]


_TITLES = {
    "immediate": "immediate + RMSprop; floor: the update's arithmetic, or its memory traffic",
    "rtrl": "exact RTRL + RMSprop; floor: its matrix products",
    "rules": "other rules + RMSprop; floor: the update, as above",
    "latency": "one bin per call, predict and learn (µs); stream: the same bin inside a long call",
    "deployed": "one bin per call of the recommended decoder (µs), beside a call that does nothing",
    "memory": "words of float64; resident: growth of the process, which holds code, scratch and the stream too",
}


def _table(kind: str, columns: tuple[str, ...]) -> Table:
    from rich.table import Table

    table = Table(title=_TITLES[kind], title_justify="left", width=None)
    for heading in columns:
        table.add_column(heading, justify="left" if heading in ("cell", "rule", "call", "per") else "right")
    return table


def _judged(text: str, value: float, aim: float | None, at_most: bool = False) -> str | Text:
    """Coloured by whether the value meets its aim."""
    return text if aim is None else judged(text, value <= aim if at_most else value >= aim)


def _speeds(kind: str, rows: list[dict[str, Any]]) -> Table:
    with_rivals = kind == "immediate"
    names = ("cell", "n", "inputs", "bins/s", "floor", "ratio")
    table = _table(kind, names + (("× torch", "× jax") if with_rivals else ("rule",)) + ("peak MB",))
    for row in rows:
        cells = [row["cell"], str(row["n"]), str(row["m"])]
        cells += [f"{row[key]:,.0f}" for key in ("steps_per_s", "floor_steps_per_s")]
        cells.append(_judged(f"{row['ratio']:.2f}", row["ratio"], row["aim"]))
        if with_rivals:
            for name, aim in ((TORCH, 20.0 if row["n"] == 64 else None), (JAX, 1.3)):
                rival = row["rivals"].get(name)
                times = row["steps_per_s"] / rival if rival else 0.0
                cells.append(_judged(f"{times:.1f}", times, aim) if rival else "–")
        else:
            cells.append(row["rule"])
        table.add_row(*cells, f"{row['peak_bytes'] / 1e6:,.1f}")
    return table


def _latency_table(kind: str, rows: list[dict[str, Any]]) -> Table:
    table = _table(kind, ("cell", "n", "inputs", "call", "p50", "p95", "p99", "stream", "calls"))
    for row in rows:
        times = [f"{row[key]:,.0f}" for key in ("p50_us", "p95_us", "p99_us", "stream_us")]
        table.add_row(row["cell"], str(row["n"]), str(row["m"]), row["call"], *times, str(row["bins"]))
    return table


def _empty_table(kind: str, rows: list[dict[str, Any]]) -> Table:
    columns = "p50", "p95", "p99"
    empty = (f"empty {p}" for p in columns)
    table = _table(kind, ("cell", "rule", "n", "inputs", *columns, *empty, "M mult.", "per BPTT step"))
    for row in rows:
        times = [f"{row[f'{p}_us']:,.0f}" for p in columns] + [f"{row[f'empty_{p}_us']:,.2f}" for p in columns]
        counted = [f"{row[key] / 1e6:,.2f}" for key in ("multiplications", "fine_tuning_multiplications")]
        table.add_row(row["cell"], row["rule"], str(row["n"]), str(row["m"]), *times, *counted)
    return table


def _words(kind: str, rows: list[dict[str, Any]]) -> Table:
    table = _table(kind, ("cell", "rule", "n", "inputs", "live", "resident", "per", "live MB", "resident MB"))
    for row in rows:
        live = _judged(f"{row['live_words']:.2f}", row["live_words"], row["live_words_at_most"], at_most=True)
        megabytes = [f"{row[key] / 1e6:,.1f}" for key in ("live_bytes", "rss_growth_bytes")]
        where = row["cell"], row["rule"], str(row["n"]), str(row["m"])
        table.add_row(*where, live, f"{row['rss_growth_words']:.2f}", row["per"], *megabytes)
    return table
