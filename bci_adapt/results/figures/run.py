"""Figures of a run, drawn from its long tables alone. Colours are Okabe and Ito's, told apart by shape as well.

Each function returns what it drew with the numbers in it (`Drawn`), or None where the tables hold nothing to draw;
`svg` turns a figure into text that can stand inside an HTML page or in a file of its own.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from bci_adapt.ground.storage import atomic_path
from bci_adapt.results.arms import Arms
from bci_adapt.results.summary import LEAK_FLOOR
from bci_adapt.results.table import CANARY, CONTROL_PREFIXES, PHASES, Frame, cell_label, cell_order, control_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, GRID, GREY = "#1c2530", "#5b6673", "#e3e7ec", "#9aa4af"
WIDTH_IN = 8.8
KIND_STYLE = {
    "no labels": ("#4d4d4d", "s"),
    "learns online": ("#0072B2", "o"),
    "retrained on the whole stream": ("#009E73", "D"),
    "control, no neuron": ("#D55E00", "X"),
}
RUN_STYLES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "D"), ("#CC79A7", "^"))  # runs side by side
CONTROL_STYLE = {  # prefix of an arm's name: words, colour, marker
    CANARY: ("neurons shuffled in time", "#B00020", "D"),
    CONTROL_PREFIXES["channels"]: ("channels permuted", "#4d4d4d", "s"),
}
FLOOR_R2 = -1.0  # a decoder below this is lost; how far below would flatten every other line


class Drawn(NamedTuple):
    """A figure and the numbers that stand in it, a row per mark."""

    figure: Figure
    data: Frame


def arms_figure(
    summary: Sequence[Mapping[str, Any]],
    arms: Arms,
    variable: str,
    cell: str,
    supervision: Mapping[str, str] | None = None,
) -> Drawn | None:
    """R² of every arm of one cell, best held-out score on top: held out filled, online hollow, with their intervals.

    The axis spans the scores of all cells, so that their figures can be laid side by side. `supervision` says of each
    arm what it learns from; colour and shape tell the kinds apart.
    """
    shown = [e for e in summary if (e["variable"], e["metric"]) == (variable, "r2") and finite(e["mean"])]
    shown = [e for e in shown if e["phase"] in PHASES and not control_of(e["arm"])]
    shown = [e for e in shown if e["phase"] == "held_out" or e["arm"] not in arms.retrained]  # trained on the stream
    entries = [e for e in shown if e["cell"] == cell]
    if not entries:
        return None
    held_out = {e["arm"]: e["mean"] for e in entries if e["phase"] == "held_out"}
    names = sorted({e["arm"] for e in entries}, key=lambda arm: (-held_out.get(arm, -np.inf), arms.place(arm)))
    edges = [value for e in shown for value in (e["mean"], e["low"], e["high"]) if finite(value)]
    kinds = {arm: _kind(arm, arms, (supervision or {}).get(arm, "true")) for arm in names}
    with house_style():
        figure = new_figure(0.95 + 0.2 * len(names))
        axis = figure.subplots()
        for entry in entries:
            colour, marker = KIND_STYLE[kinds[entry["arm"]]]
            online = entry["phase"] == "online"
            y = names.index(entry["arm"]) + (0.2 if online else -0.14)
            x = max(entry["mean"], FLOOR_R2)
            if finite(entry["low"]):
                ends = np.clip([entry["low"], entry["high"]], FLOOR_R2, None)
                axis.plot(ends, [y, y], color=colour, linewidth=0.8 if online else 1.8, alpha=0.7)
            face = "white" if online else colour
            axis.plot(x, y, marker, color=colour, markersize=4 if online else 5, markerfacecolor=face, linestyle="none")
        for y in range(1, len(names), 2):  # every other line shaded: the eye keeps it from name to mark
            axis.axhspan(y - 0.5, y + 0.5, color="#f4f6f8", zorder=0, linewidth=0)
        axis.set_xlim(max(min(edges) - 0.04, FLOOR_R2 - 0.04), min(max(edges) + 0.04, 1.02))
        axis.set_yticks(range(len(names)), [plain(arms.label(arm)) for arm in names])
        axis.set_ylim(len(names) - 0.5, -0.5)
        axis.axvline(0, color=MUTED, linewidth=0.8)
        axis.grid(axis="x")
        axis.set_xlabel(f"{variable} R² (filled: held out, weights frozen; hollow: online, predict then learn)")
        used = [kind for kind in KIND_STYLE if kind in kinds.values()]
        legend(figure, {kind: (*KIND_STYLE[kind], "none") for kind in used})
    columns = ["cell", "arm", "phase", "mean", "low", "high", "n_targets"]
    return Drawn(figure, pd.DataFrame([{name: e[name] for name in columns} for e in entries]))


def _kind(arm: str, arms: Arms, supervision: str) -> str:
    if arm in arms.controls:
        return "control, no neuron"
    if arm in arms.retrained:
        return "retrained on the whole stream"
    return "no labels" if supervision == "none" else "learns online"


def gap_figure(scores: Sequence[Mapping[str, Any]], arms: Arms, variable: str = "velocity") -> Drawn | None:
    """Held-out R² of each pair of sessions (`results.points.by_pair`) against the days between them, a panel per
    cell.
    """
    chosen = (variable, "held_out", "r2")
    pairs = [e for e in scores if (e["variable"], e["phase"], e["metric"]) == chosen and np.isfinite(e["day_gap"])]
    styles = _arm_styles(arms, [each["arm"] for each in pairs])
    columns = ["cell", "arm", "source", "target", "day_gap", "value"]
    pairs = pd.DataFrame([each for each in pairs if each["arm"] in styles], columns=columns)
    if pairs.empty:
        return None
    cells = cells_in_order(pairs["cell"])
    gaps = np.asarray(pairs["day_gap"], float)
    with house_style():
        figure, axes = panels(cells, 2.9)
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
        _arm_legend(figure, arms, styles, pairs)
    return Drawn(figure, pairs)


def curve_figure(curves: Frame, arms: Arms, variable: str = "velocity") -> Drawn | None:
    """R² in consecutive windows through stream and held-out part: median over pairs, with the middle half as a band.

    Retrained arms are drawn over the held-out part alone: the stream is what they were trained on.
    """
    styles = _arm_styles(arms, curves["arm"])
    shown = curves[curves["arm"].isin(list(styles)) & np.isfinite(curves["r2"]) & (curves["variable"] == variable)]
    shown = shown[(shown["phase"] == "held_out") | ~shown["arm"].isin(arms.retrained)]
    if shown.empty:
        return None
    shown = shown.groupby(["cell", "arm", "source", "target", "phase", "time_s"], sort=False, as_index=False)["r2"]
    shown = shown.mean()
    cells, data = cells_in_order(shown["cell"]), []
    stream, held_out = (shown.loc[shown["phase"] == phase, "time_s"] for phase in PHASES)
    boundary = (stream.max() + held_out.min()) / 2 / 60 if len(stream) and len(held_out) else None
    with house_style():
        figure, axes = panels(cells, 2.9)
        for axis, cell in zip(axes, cells, strict=True):
            for arm, points in _by_arm(styles, shown[shown["cell"] == cell]):
                colour, _ = styles[arm]
                quartiles = points.groupby("time_s")["r2"].quantile([0.25, 0.5, 0.75]).unstack()
                columns = {0.25: "r2_lower_quartile", 0.5: "r2_median", 0.75: "r2_upper_quartile"}
                data.append(quartiles.rename(columns=columns).reset_index().assign(cell=cell, arm=arm))
                quartiles = quartiles.clip(lower=FLOOR_R2)
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
        axes[0].set_ylabel(f"{variable} R² in windows, median over pairs")
        _arm_legend(figure, arms, styles, shown, lines=True)
    return Drawn(figure, pd.concat(data, ignore_index=True))


def trajectory_figure(trajectories: Frame, arms: Arms, variable: str = "velocity", unit: str = "") -> Drawn | None:
    """A held-out excerpt, decoded against true: an arm per row, a movement axis per column."""
    trajectories = trajectories[trajectories["variable"] == variable]
    if trajectories.empty:
        return None
    first = trajectories.iloc[0]
    pair = trajectories[(trajectories["source"] == first["source"]) & (trajectories["target"] == first["target"])]
    pair = pair[pair["arm"].map(control_of) == ""]
    available = set(zip(pair["arm"], pair["cell"], strict=True))
    runs = _excerpt(arms, available) or sorted(available)[:3]
    names = list(dict.fromkeys(pair["axis"]))[:3]
    if not runs:
        return None
    data = []
    with house_style():
        figure = new_figure(0.75 + 0.95 * len(runs))
        axes = figure.subplots(len(runs), len(names), sharex=True, sharey="col", squeeze=False)
        for row, (arm, cell) in zip(axes, runs, strict=True):
            run = pair[(pair["arm"] == arm) & (pair["cell"] == cell)]
            run = run[run["seed"] == run["seed"].min()]
            for axis, name in zip(row, names, strict=True):
                series = run[run["axis"] == name].sort_values("time_s")
                data.append(series[["cell", "arm", "seed", "axis", "time_s", "true", "decoded"]])
                seconds = series["time_s"] - series["time_s"].min()
                axis.plot(seconds, series["true"], color="#9aa4af", linewidth=2.2, solid_capstyle="round")
                axis.plot(seconds, series["decoded"], color=arms.style(arm)[0], linewidth=1.1)
                axis.grid(axis="y")
            kind = cell_label(cell) if cell else "linear"
            row[0].set_title(plain(f"{kind}: {arms.label(arm)}"), loc="left", fontsize=8)
        for axis, name in zip(axes[-1], names, strict=True):
            axis.set_xlabel(plain(f"time (s), {name} axis"))
            reach = pair.loc[pair["axis"] == name, "true"].abs().max() * 1.5
            if reach > 0:  # a lost decoder must not flatten what it should have decoded
                axis.set_ylim(-reach, reach) if variable == "velocity" else axis.set_ylim(None, None)
        figure.supylabel(plain(f"{variable}{f' ({unit})' if unit else ''}"), fontsize=8, color=INK)
        legend(figure, {"true": ("#9aa4af", "", "-"), "decoded (coloured by arm)": (INK, "", "-")})
    return Drawn(figure, pd.concat(data, ignore_index=True))


def _excerpt(arms: Arms, available: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """The arms whose excerpt is shown: of the last network, and of the linear ones the one that others are set beside;
    what is retrained comes last.
    """
    network = [cell for cell in cells_in_order(cell for _, cell in available) if cell][-1:]
    rival = arms.of_cell("").reference
    wanted = [(arm, cell) for arm in arms.in_excerpt for cell in network]
    wanted = (
        [key for key in wanted if key[0] not in arms.retrained]
        + [(rival, "")]
        + [key for key in wanted if key[0] in arms.retrained]
    )
    return [key for key in wanted if key in available]


def controls_figure(summary: Sequence[Mapping[str, Any]], arms: Arms, variable: str = "velocity") -> Drawn | None:
    """Online R² of each arm that learns, a panel per cell: itself, and with neurons shuffled in time or by channel."""
    scores = {
        (e["arm"], e["cell"]): e["mean"]
        for e in summary
        if (e["variable"], e["metric"], e["phase"]) == (variable, "r2", "online") and finite(e["mean"])
    }
    names = [name for name in scores if any((prefix + name[0], name[1]) in scores for prefix in CONTROL_STYLE)]
    names.sort(key=lambda name: arms.place(name[0]))
    if not names:
        return None
    cells, data = cells_in_order(cell for _, cell in names), []
    of_cell = {cell: [arm for arm, its in names if its == cell] for cell in cells}
    with house_style():
        figure = new_figure(0.8 + 0.32 * len(cells) + 0.2 * len(names))
        heights = [len(of_cell[cell]) + 0.5 for cell in cells]
        axes = figure.subplots(len(cells), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        for axis, cell in zip(axes, cells, strict=True):
            for y, arm in enumerate(of_cell[cell]):
                own = max(scores[arm, cell], FLOOR_R2)
                axis.plot(own, y, "o", color="#0072B2", markersize=5)
                data.append({"cell": cell, "arm": arm, "control": "", "online_r2": scores[arm, cell]})
                for prefix, (_, colour, marker) in CONTROL_STYLE.items():
                    if (value := scores.get((prefix + arm, cell))) is None:
                        continue
                    shown = max(value, FLOOR_R2)
                    axis.plot([shown, own], [y, y], color=GREY, linewidth=0.8, zorder=1)
                    axis.plot(shown, y, marker, color=colour, markersize=5, markerfacecolor="white")
                    control = control_of(prefix + arm)
                    data.append({"cell": cell, "arm": arm, "control": control, "online_r2": value})
            axis.axvline(0, color=MUTED, linewidth=0.8)
            axis.axvline(LEAK_FLOOR, color="#B00020", linewidth=0.9, linestyle=(0, (4, 3)))
            axis.set_yticks(range(len(of_cell[cell])), [plain(arms.label(arm)) for arm in of_cell[cell]])
            axis.set_ylim(len(of_cell[cell]) - 0.5, -0.5)
            axis.set_title(cell_title(cell), loc="left")
            axis.grid(axis="x")
        axes[-1].set_xlabel(f"online {variable} R²")
        entries = {"the arm itself": ("#0072B2", "o", "none")}
        entries |= {words: (colour, marker, "none") for words, colour, marker in CONTROL_STYLE.values()}
        legend(figure, entries, hollow=1)
    return Drawn(figure, pd.DataFrame(data))


def runs_figure(points: Frame, arms: Arms, variable: str) -> Drawn | None:
    """Held-out R² of the same arms in several runs, a panel per cell; `points` has cell, arm, run, mean, low, high."""
    if points.empty:
        return None
    cells, names = cells_in_order(points["cell"]), list(dict.fromkeys(points["run"]))
    styles = {name: RUN_STYLES[place % len(RUN_STYLES)] for place, name in enumerate(names)}
    of_cell = {cell: sorted(set(points.loc[points["cell"] == cell, "arm"]), key=arms.place) for cell in cells}
    with house_style():
        n_lines = sum(map(len, of_cell.values()))
        figure = new_figure(0.8 + 0.32 * len(cells) + 0.2 * n_lines)
        heights = [len(of_cell[cell]) + 0.5 for cell in cells]
        axes = figure.subplots(len(cells), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        for axis, cell in zip(axes, cells, strict=True):
            for point in points[points["cell"] == cell].itertuples(index=False):
                colour, marker = styles[point.run]
                y = of_cell[cell].index(point.arm) + 0.5 * ((names.index(point.run) + 0.5) / len(names) - 0.5)
                if finite(point.low):
                    axis.plot(np.clip([point.low, point.high], FLOOR_R2, None), [y, y], color=colour, linewidth=1.2)
                axis.plot(max(point.mean, FLOOR_R2), y, marker, color=colour, markersize=4.5)
            axis.set_yticks(range(len(of_cell[cell])), [plain(arms.label(arm)) for arm in of_cell[cell]])
            axis.set_ylim(len(of_cell[cell]) - 0.5, -0.5)
            axis.set_title(cell_title(cell), loc="left")
            axis.axvline(0, color=MUTED, linewidth=0.8)
            axis.grid(axis="x")
        axes[-1].set_xlabel(f"held-out {variable} R²")
        legend(figure, {name: (*style, "none") for name, style in styles.items()})
    return Drawn(figure, points)


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
    # matplotlib's own ids hash coordinates, whose last digits differ from run to run; a number does not
    found = dict.fromkeys(re.findall(r'\bid="([^"]+)"', text))
    numbered = {each: f"{name}-{number}" for number, each in enumerate(found)}
    text = re.sub(r'(\bid="|href="#|url\(#)([^")]+)', lambda hit: hit[1] + numbered.get(hit[2], hit[2]), text)
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


def panels(cells: list[str], height_in: float) -> tuple[Figure, Any]:
    figure = new_figure(height_in)
    axes = figure.subplots(1, len(cells), sharey=True, squeeze=False)[0]
    for axis, cell in zip(axes, cells, strict=True):
        axis.set_title(cell_title(cell))
        axis.grid(axis="y")
    return figure, axes


def cell_title(cell: str) -> str:
    return plain(f"{cell_label(cell)} network") if cell else "linear decoders and controls"


def legend(figure: Figure, entries: Mapping[str, tuple[str, str, Any]], hollow: int | None = None) -> None:
    """One legend below all panels; an entry is label → (colour, marker, line style), hollow from number `hollow` on."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour, marker=marker or None, linestyle=line, markersize=4.5, label=plain(label))
        for label, (colour, marker, line) in entries.items()
    ]
    for handle in handles[hollow:] if hollow is not None else ():
        handle.set_markerfacecolor("white")
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 4))


def _arm_legend(
    figure: Figure, arms: Arms, styles: Mapping[str, tuple[str, str]], table: Frame, lines: bool = False
) -> None:
    entries: dict[str, tuple[str, str, str]] = {}
    for arm, _ in _by_arm(styles, table):
        colour, marker = styles[arm]
        label = arms.label(arm)
        if arm in arms.retrained:  # one colour, never in one panel
            label = "retrained on the target"
        entries[label] = (colour, "" if lines else marker, "-")
    legend(figure, entries)


def _by_arm(styles: Mapping[str, tuple[str, str]], table: Frame) -> Iterator[tuple[str, Frame]]:
    for arm in styles:
        points = table[table["arm"] == arm]
        if len(points):
            yield arm, points


def _arm_styles(arms: Arms, present: Any) -> dict[str, tuple[str, str]]:
    """Colour and marker of the arms present that get a line."""
    return {arm: arms.style(arm) for arm in arms.drawn(set(present))}


def cells_in_order(cells: Any) -> list[str]:
    """Cells present, networks first, in the order of `bci_adapt.results.table.CELLS`, linear last."""
    return sorted(set(cells), key=cell_order)


def finite(value: float | None) -> bool:
    return value is not None and bool(np.isfinite(value))
