"""Figures of a run, drawn from its long tables alone. Colours are Okabe and Ito's, told apart by shape as well.

Each function returns a matplotlib Figure, or None where the tables hold nothing to draw; `svg` turns one into text
that can stand inside an HTML page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bci_adapt.recovery import Frame
from bci_adapt.results import ARMS, CANARY, CELLS, LEAK_FLOOR, PHASES, RETRAINED, arm_label, arm_order, cell_label
from bci_adapt.storage import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, GRID, GREY = "#1c2530", "#5b6673", "#e3e7ec", "#9aa4af"
WIDTH_IN = 8.8
ARM_STYLE = {  # the known arms worth a line of their own: colour, marker
    "frozen": ("#000000", "X"),
    "normaliser": ("#56B4E9", "v"),
    "immediate_rmsprop": ("#0072B2", "o"),
    "immediate_rmsprop_ema": ("#CC79A7", "P"),
    "window4_rmsprop": ("#D55E00", "s"),
    "network_oracle": ("#009E73", "D"),
    "rls": ("#E69F00", "^"),
    "ridge_oracle": ("#009E73", "D"),
    "persistence": ("#999999", "*"),
}
SPARE_STYLES = (("#882255", "h"), ("#44AA99", "<"), ("#999933", ">"), ("#AA4499", "d"))  # arms that are not known
CELL_STYLE = {"tanh": ("#0072B2", "o"), "gru": ("#D55E00", "s"), "": ("#009E73", "D")}
FLOOR_R2 = -1.0  # a decoder below this is lost; how far below would flatten every other line


def arms_figure(summary: list[dict[str, Any]], variable: str = "velocity") -> Figure | None:
    """R² of every arm, online beside held out, with its interval over target days."""
    entries = [e for e in summary if (e["variable"], e["metric"]) == (variable, "r2") and _finite(e["mean"])]
    entries = [e for e in entries if not e["arm"].startswith(CANARY)]
    entries = [e for e in entries if e["phase"] == "held_out" or e["arm"] not in RETRAINED]  # trained on the stream
    arms = sorted({e["arm"] for e in entries}, key=arm_order)
    cells = _cells(e["cell"] for e in entries)
    if not entries:
        return None
    with house_style():
        figure = new_figure(0.9 + 0.27 * len(arms))
        axes = figure.subplots(1, 2, sharex=True, sharey=True)
        for axis, phase in zip(axes, PHASES, strict=True):
            for entry in (e for e in entries if e["phase"] == phase):
                of_arm = _cells(e["cell"] for e in entries if e["arm"] == entry["arm"])
                shift = 0.24 * (of_arm.index(entry["cell"]) - (len(of_arm) - 1) / 2)
                colour, marker = _cell_style(entry["cell"], cells)
                y, x = arms.index(entry["arm"]) + shift, entry["mean"]
                if _finite(entry["low"]):
                    axis.plot([entry["low"], entry["high"]], [y, y], color=colour, linewidth=1.4, alpha=0.75)
                axis.plot(x, y, marker, color=colour, markersize=4.5, linestyle="none")
            axis.set_title({"online": "online: predict, then learn", "held_out": "held out: weights frozen"}[phase])
            axis.set_xlabel(f"{variable} R²")
            axis.axvline(0, color=MUTED, linewidth=0.8)
            axis.grid(axis="x")
        low = min(min(e["mean"], e["low"]) if _finite(e["low"]) else e["mean"] for e in entries)
        axes[0].set_xlim(max(low - 0.05, FLOOR_R2), None)
        axes[0].set_yticks(range(len(arms)), [arm_label(arm) for arm in arms])
        axes[0].set_ylim(len(arms) - 0.4, -0.6)
        _legend(figure, {cell_label(cell): (*_cell_style(cell, cells), "none") for cell in cells})
    return figure


def gap_figure(rows: Frame, variable: str = "velocity") -> Figure | None:
    """Held-out R² of each pair of sessions against the days between them, a panel per cell."""
    keep = (rows["variable"] == variable) & (rows["metric"] == "r2") & (rows["phase"] == "held_out")
    styles = _arm_styles(rows["arm"])
    keep &= (rows["status"] == "ok") & np.isfinite(rows["day_gap"]) & rows["arm"].isin(list(styles))
    pairs = rows[keep].groupby(["cell", "arm", "source", "target"], sort=False, as_index=False)[["day_gap", "value"]]
    pairs = pairs.mean()
    if pairs.empty:
        return None
    cells = _cells(pairs["cell"])
    gaps = pairs["day_gap"]
    with house_style():
        figure, axes = _panels(cells, 2.9)
        for axis, cell in zip(axes, cells, strict=True):
            for arm, points in _by_arm(styles, pairs[pairs["cell"] == cell]):
                colour, marker = styles[arm]
                shown = points["value"].clip(lower=FLOOR_R2)
                mean = shown.groupby(points["day_gap"]).mean()
                axis.plot(points["day_gap"], shown, marker, color=colour, markersize=3.6, alpha=0.8, linestyle="none")
                axis.plot(mean.index, mean, color=colour, linewidth=1.1, alpha=0.75)
            axis.axhline(0, color=MUTED, linewidth=0.8)
            if gaps.min() > 0 and gaps.max() > 12 * gaps.min():
                axis.set_xscale("log")
                ticks = [t for t in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if gaps.min() <= t <= gaps.max()]
                axis.set_xticks(ticks, [str(t) for t in ticks])
                axis.minorticks_off()
            axis.set_xlabel("days since the source session")
            lost = int((pairs.loc[pairs["cell"] == cell, "value"] < FLOOR_R2).sum())
            if lost:
                note = f"{lost} below {FLOOR_R2:g} drawn at {FLOOR_R2:g}".replace("-", "−")
                axis.text(0.02, 0.02, note, transform=axis.transAxes, color=MUTED, fontsize=7)
        axes[0].set_ylabel(f"held-out {variable} R²")
        _arm_legend(figure, styles, pairs)
    return figure


def curve_figure(curves: Frame) -> Figure | None:
    """R² in consecutive windows through stream and held-out part: median over pairs, with the middle half as a band.

    Retrained arms are drawn over the held-out part alone: the stream is what they were trained on.
    """
    styles = _arm_styles(curves["arm"])
    shown = curves[curves["arm"].isin(list(styles)) & np.isfinite(curves["r2"])]
    shown = shown[(shown["phase"] == "held_out") | ~shown["arm"].isin(RETRAINED)]
    if shown.empty:
        return None
    shown = shown.groupby(["cell", "arm", "source", "target", "phase", "time_s"], sort=False, as_index=False)["r2"]
    shown = shown.mean()
    cells = _cells(shown["cell"])
    stream, held_out = (shown.loc[shown["phase"] == phase, "time_s"] for phase in PHASES)
    boundary = (stream.max() + held_out.min()) / 2 / 60 if len(stream) and len(held_out) else None
    with house_style():
        figure, axes = _panels(cells, 2.9)
        for axis, cell in zip(axes, cells, strict=True):
            for arm, points in _by_arm(styles, shown[shown["cell"] == cell]):
                colour, _ = styles[arm]
                quartiles = points.groupby("time_s")["r2"].quantile([0.25, 0.5, 0.75]).unstack().clip(lower=FLOOR_R2)
                minutes = quartiles.index.to_numpy() / 60
                axis.fill_between(minutes, quartiles[0.25], quartiles[0.75], color=colour, alpha=0.13, linewidth=0)
                axis.plot(minutes, quartiles[0.5], color=colour, linewidth=1.4)
            axis.axhline(0, color=MUTED, linewidth=0.8)
            axis.set_xlabel("time in the target session (min)")
            if boundary is not None:
                axis.axvline(boundary, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
                for words, side, shift in (("learning", "right", -3), ("frozen", "left", 3)):
                    axis.annotate(
                        words,
                        (boundary, 1.015),
                        (shift, 0),
                        xycoords=axis.get_xaxis_transform(),
                        textcoords="offset points",
                        ha=side,
                        fontsize=7,
                        color=MUTED,
                    )
                axis.set_title(axis.get_title(), pad=14)
        axes[0].set_ylabel("R² in windows, median over pairs")
        _arm_legend(figure, styles, shown, lines=True)
    return figure


def trajectory_figure(trajectories: Frame, variable: str = "velocity", unit: str = "") -> Figure | None:
    """A held-out excerpt, decoded against true: an arm per row, a movement axis per column."""
    if trajectories.empty:
        return None
    first = trajectories.iloc[0]
    pair = trajectories[(trajectories["source"] == first["source"]) & (trajectories["target"] == first["target"])]
    pair = pair[~pair["arm"].str.startswith(CANARY)]
    networks = [cell for cell in _cells(pair["cell"]) if cell][-1:]
    runs = [(arm, cell) for cell in networks for arm in ("frozen", "immediate_rmsprop", "window4_rmsprop")]
    runs += [("rls", ""), *(("network_oracle", cell) for cell in networks)]
    available = set(zip(pair["arm"], pair["cell"], strict=True))
    runs = [run for run in runs if run in available] or sorted(available)[:3]
    names = list(dict.fromkeys(pair["axis"]))[:3]
    if not runs:
        return None
    with house_style():
        figure = new_figure(0.75 + 0.95 * len(runs))
        axes = figure.subplots(len(runs), len(names), sharex=True, sharey="col", squeeze=False)
        for row, (arm, cell) in zip(axes, runs, strict=True):
            run = pair[(pair["arm"] == arm) & (pair["cell"] == cell)]
            run = run[run["seed"] == run["seed"].min()]
            for axis, name in zip(row, names, strict=True):
                series = run[run["axis"] == name].sort_values("time_s")
                seconds = series["time_s"] - series["time_s"].min()
                axis.plot(seconds, series["true"], color="#9aa4af", linewidth=2.2, solid_capstyle="round")
                axis.plot(seconds, series["decoded"], color=ARM_STYLE.get(arm, (INK, ""))[0], linewidth=1.1)
                axis.grid(axis="y")
            kind = cell_label(cell) if cell else "linear"
            row[0].set_title(f"{kind}: {arm_label(arm)}", loc="left", fontsize=8)
        for axis, name in zip(axes[-1], names, strict=True):
            axis.set_xlabel(f"time (s), {name} axis")
            reach = pair.loc[pair["axis"] == name, "true"].abs().max() * 1.5
            if reach > 0:  # a lost decoder must not flatten what it should have decoded
                axis.set_ylim(-reach, reach) if variable == "velocity" else axis.set_ylim(None, None)
        figure.supylabel(f"{variable}{f' ({unit})' if unit else ''}", fontsize=8, color=INK)
        _legend(figure, {"true": ("#9aa4af", "", "-"), "decoded (coloured by arm)": (INK, "", "-")})
    return figure


def canary_figure(summary: list[dict[str, Any]], variable: str = "velocity") -> Figure | None:
    """Online R² of each adaptive arm (filled) beside its canary's (hollow), whose neurons were shuffled in time."""
    scores = {
        (e["arm"], e["cell"]): e["mean"]
        for e in summary
        if (e["variable"], e["metric"], e["phase"]) == (variable, "r2", "online") and _finite(e["mean"])
    }
    names = [(arm, cell) for arm, cell in scores if (CANARY + arm, cell) in scores]
    arms = sorted({arm for arm, _ in names}, key=arm_order)
    if not arms:
        return None
    cells = _cells(cell for _, cell in names)
    with house_style():
        figure = new_figure(0.85 + 0.27 * len(arms))
        axis = figure.subplots()
        for arm, cell in names:
            of_arm = _cells(c for a, c in names if a == arm)
            y = arms.index(arm) + 0.24 * (of_arm.index(cell) - (len(of_arm) - 1) / 2)
            colour, marker = _cell_style(cell, cells)
            own, canary = scores[arm, cell], max(scores[CANARY + arm, cell], FLOOR_R2)
            axis.plot([canary, own], [y, y], color=colour, linewidth=0.9, alpha=0.45)
            axis.plot(own, y, marker, color=colour, markersize=5)
            axis.plot(canary, y, marker, color=colour, markersize=5, markerfacecolor="white")
        axis.axvline(0, color=MUTED, linewidth=0.8)
        axis.axvline(LEAK_FLOOR, color="#B00020", linewidth=0.9, linestyle=(0, (4, 3)))
        axis.set_yticks(range(len(arms)), [arm_label(arm) for arm in arms])
        axis.set_ylim(len(arms) - 0.4, -0.6)
        axis.set_xlabel(f"online {variable} R²: filled with neurons, hollow with neurons shuffled in time")
        axis.grid(axis="x")
        _legend(figure, {cell_label(cell): (*_cell_style(cell, cells), "none") for cell in cells})
    return figure


def svg(figure: Figure, name: str, description: str) -> str:
    """`figure` as an <svg> element for an HTML page: text stays text, every id starts with `name`, no dates inside.

    `description` is read out by screen readers; it must hold no markup of its own, because it is escaped here.
    """
    import html

    buffer = io.StringIO()
    with house_style():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 inherit", text).replace(
        "px inherit", "px var(--font, sans-serif)"
    )
    label = html.escape(description, quote=True)
    return re.sub(r'width="[^"]*pt" height="[^"]*pt"|height="[^"]*pt" width="[^"]*pt"', "", text, count=1).replace(
        "<svg", f'<svg role="img" aria-label="{label}"', 1
    )


@contextmanager
def house_style() -> Iterator[None]:
    """Draw with the fonts and lines of all figures of this project."""
    import matplotlib

    settings: dict[Any, Any] = {
        "font.size": 8,
        "axes.titlesize": 8.5,
        "axes.titleweight": "bold",
        "axes.labelsize": 8,
        "axes.edgecolor": MUTED,
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.7,
        "grid.color": GRID,
        "grid.linewidth": 0.7,
        "axes.axisbelow": True,
        "xtick.labelsize": 7.5,
        "ytick.labelsize": 7.5,
        "xtick.major.width": 0.7,
        "ytick.major.width": 0.0,
        "svg.fonttype": "none",
        "svg.hashsalt": "bci_adapt",
        "legend.frameon": False,
        "legend.fontsize": 7.5,
        "axes.unicode_minus": True,
        "font.family": "DejaVu Sans",
    }
    with matplotlib.rc_context(settings):
        yield


def plain(text: str) -> str:
    """Return text in which matplotlib reads nothing as mathematics."""
    return text.replace("$", r"\$")


def save(figure: Figure, path: Path) -> None:
    """Write a figure atomically, as PNG, SVG or PDF by its ending."""
    with atomic_path(path) as temporary, house_style():
        figure.savefig(temporary, dpi=150)


def new_figure(height_in: float) -> Figure:
    """Return an empty figure of the width of a page."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH_IN, height_in), layout="constrained")


def _panels(cells: list[str], height_in: float) -> tuple[Figure, Any]:
    figure = new_figure(height_in)
    axes = figure.subplots(1, len(cells), sharey=True, squeeze=False)[0]
    for axis, cell in zip(axes, cells, strict=True):
        axis.set_title(f"{cell_label(cell)} network" if cell else "linear decoders and controls")
        axis.grid(axis="y")
    return figure, axes


def _legend(figure: Figure, entries: Mapping[str, tuple[str, str, Any]]) -> None:
    """One legend below all panels; an entry is label → (colour, marker, line style)."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour, marker=marker or None, linestyle=line, markersize=4.5, label=label)
        for label, (colour, marker, line) in entries.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 4))


def _arm_legend(figure: Figure, styles: Mapping[str, tuple[str, str]], table: Frame, lines: bool = False) -> None:
    entries: dict[str, tuple[str, str, str]] = {}
    for arm, _ in _by_arm(styles, table):
        colour, marker = styles[arm]
        label = arm_label(arm)
        if arm in RETRAINED:  # one colour, never in one panel
            label = "retrained on the target"
        entries[label] = (colour, "" if lines else marker, "-")
    _legend(figure, entries)


def _by_arm(styles: Mapping[str, tuple[str, str]], table: Frame) -> Iterator[tuple[str, Frame]]:
    for arm in styles:
        points = table[table["arm"] == arm]
        if len(points):
            yield arm, points


def _arm_styles(arms: Any) -> dict[str, tuple[str, str]]:
    """Colour and marker of the arms present that get a line: those of `ARM_STYLE`, and the ones that are not known."""
    present = set(arms)
    others = sorted(arm for arm in present if arm not in ARMS and not arm.startswith(CANARY))
    spare = {arm: SPARE_STYLES[number % len(SPARE_STYLES)] for number, arm in enumerate(others)}
    return {arm: style for arm, style in (ARM_STYLE | spare).items() if arm in present}


def _cells(cells: Any) -> list[str]:
    """Cells present, networks first, in the order of `CELLS`, linear last."""
    known = list(CELLS)
    return sorted(set(cells), key=lambda cell: (cell == "", known.index(cell) if cell in known else len(known), cell))


def _cell_style(cell: str, cells: list[str]) -> tuple[str, str]:
    spare = [("#CC79A7", "^"), ("#E69F00", "v"), ("#56B4E9", "P"), ("#000000", "X")]
    others = [name for name in cells if name not in CELL_STYLE]
    return CELL_STYLE[cell] if cell in CELL_STYLE else spare[others.index(cell) % len(spare)]


def _finite(value: float | None) -> bool:
    return value is not None and bool(np.isfinite(value))
