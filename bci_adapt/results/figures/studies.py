"""Figures of the side questions of a run: sweeps, tuning, days in a row, drift beside scores, time per bin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bci_adapt.results.arms import Arms
from bci_adapt.results.figures.run import (
    FLOOR_R2,
    GREY,
    INK,
    MUTED,
    Drawn,
    cells_in_order,
    finite,
    house_style,
    legend,
    new_figure,
    panels,
    plain,
)
from bci_adapt.results.table import Frame, cell_label

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#882255")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
COLUMNS = 4  # of small multiples


def sweep_figure(
    points: Frame, arms: Arms, words: str, variable: str, ceilings: Mapping[str, float] | None = None
) -> Drawn | None:
    """R² of arms over the values of a sweep, a panel per cell: held out filled, online hollow and dashed.

    `points` has the columns cell, arm, value, label (of the value), phase, mean, low, high, n_targets; values stand at
    equal distances. `ceilings` (R² by cell) are dotted lines.
    """
    points = points[np.isfinite(points["mean"]) & points["phase"].isin(["online", "held_out"])]
    if points.empty:
        return None
    cells = cells_in_order(points["cell"])
    ticks = points.sort_values("value").drop_duplicates("value")
    places = {value: place for place, value in enumerate(ticks["value"])}
    names = sorted(set(points["arm"]), key=arms.place)
    with house_style():
        figure, axes = panels(cells, 2.9)
        for axis, cell in zip(axes, cells, strict=True):
            for number, arm in enumerate(names):
                colour, marker = arms.style(arm)
                of_arm = points[(points["cell"] == cell) & (points["arm"] == arm)].sort_values("value")
                for phase, face, line in (("held_out", colour, "-"), ("online", "white", "--")):
                    each = of_arm[of_arm["phase"] == phase]
                    x = each["value"].map(places) + 0.07 * (number - (len(names) - 1) / 2)
                    y = each["mean"].clip(lower=FLOOR_R2)
                    style = {"color": colour, "linestyle": line, "linewidth": 1.2 if line == "-" else 0.8}
                    axis.plot(x, y, marker=marker, markersize=4.2, markerfacecolor=face, **style)
                    if phase == "held_out":
                        low, high = each["low"].clip(lower=FLOOR_R2), each["high"]
                        axis.vlines(x, low, high, color=colour, linewidth=1.1, alpha=0.6)
            if finite((ceilings or {}).get(cell)):
                axis.axhline((ceilings or {})[cell], color=INK, linewidth=0.9, linestyle=":")
                axis.annotate(
                    "ceiling",
                    (0.99, (ceilings or {})[cell]),
                    (0, 2),
                    xycoords=axis.get_yaxis_transform(),
                    textcoords="offset points",
                    ha="right",
                    fontsize=7,
                    color=MUTED,
                )
            axis.axhline(0, color=MUTED, linewidth=0.8)
            axis.set_xticks(range(len(places)), [plain(label) for label in ticks["label"]])
            axis.set_xlabel(words)
        axes[0].set_ylabel(f"{variable} R² (filled: held out, hollow: online)")
        legend(
            figure,
            {arms.label(arm): (*arms.style(arm), "-") for arm in names},
        )
    return Drawn(figure, points.drop(columns="label"))


def continual_figure(points: Frame, arms: Arms, variable: str) -> Drawn | None:
    """Held-out R² day by day, a panel per cell: weights carried on (filled) and each day anew (hollow, dashed).

    `points` has the columns cell, arm, day (sortable text), continual (bool), mean, low, high.
    """
    if points.empty:
        return None
    points = points[np.isfinite(points["mean"])]
    if not points["continual"].any():
        return None
    cells = cells_in_order(points.loc[points["continual"], "cell"])
    days = sorted(set(points["day"]))
    names = sorted(set(points.loc[points["continual"], "arm"]), key=arms.place)
    with house_style():
        figure, axes = panels(cells, 2.9)
        for axis, cell in zip(axes, cells, strict=True):
            for arm in names:
                colour, marker = arms.style(arm)
                of_arm = points[(points["cell"] == cell) & (points["arm"] == arm)].sort_values("day")
                for carried, face, line in ((True, colour, "-"), (False, "white", "--")):
                    each = of_arm[of_arm["continual"] == carried]
                    x = [days.index(day) for day in each["day"]]
                    y = each["mean"].clip(lower=FLOOR_R2)
                    style = {"color": colour, "linestyle": line, "linewidth": 1.2 if carried else 0.8}
                    axis.plot(x, y, marker=marker, markersize=4.2, markerfacecolor=face, **style)
            axis.axhline(0, color=MUTED, linewidth=0.8)
            axis.set_xticks(range(len(days)), [plain(day) for day in days], rotation=40, ha="right")
        axes[0].set_ylabel(f"held-out {variable} R²")
        legend(
            figure,
            {arms.label(arm): (*arms.style(arm), "-") for arm in names},
        )
    return Drawn(figure, points)


def tuning_figure(
    surface: Sequence[Mapping[str, Any]], chosen: Sequence[Mapping[str, Any]], arms: Arms
) -> Drawn | None:
    """Score against learning rate, a panel per method and cell; a line per setting of the other parameters.

    The chosen point has a ring, its line is drawn dark. A method without a rate is drawn against its first parameter.
    """
    table = surface_table(surface)
    if table.empty:
        return None
    picked = {(each["method"], each["cell"]): dict(each["parameters"]) for each in chosen}
    groups = list(dict.fromkeys(zip(table["method"], table["cell"], strict=True)))
    n_rows = -(-len(groups) // COLUMNS)
    with house_style():
        figure = new_figure(0.4 + 1.75 * n_rows)
        axes = figure.subplots(n_rows, COLUMNS, squeeze=False).ravel()
        for axis, (method, cell) in zip(axes, groups, strict=False):
            lines = table[(table["method"] == method) & (table["cell"] == cell)]
            best = picked.get((method, cell), {})
            along = swept_parameter(lines["parameters"])
            series: dict[str, list[tuple[float, float, bool]]] = {}
            for parameters, score in zip(lines["parameters"], lines["score"], strict=True):
                rest = ", ".join(f"{name}={value}" for name, value in parameters.items() if name != along)
                x = parameters.get(along, 0.0)
                series.setdefault(rest, []).append((float(x), max(float(score), FLOOR_R2), parameters == best))
            for points in series.values():
                points.sort()
                here = any(is_best for *_, is_best in points)
                x, y, _ = zip(*points, strict=True)
                axis.plot(x, y, "o-", color="#0072B2" if here else GREY, markersize=2.6, linewidth=1.2 if here else 0.7)
                for x_best, y_best, is_best in points:
                    if is_best:
                        axis.plot(x_best, y_best, "o", color="#D55E00", markersize=8, markerfacecolor="none")
            if all(x > 0 for points in series.values() for x, *_ in points):
                axis.set_xscale("log")
                axis.minorticks_off()
            axis.set_title(plain(f"{arms.label(method)}\n{cell_label(cell)}"), fontsize=7)
            axis.set_xlabel(plain(along.replace("_", " ")), fontsize=7)
            axis.grid(axis="y")
        for axis in axes[len(groups) :]:
            axis.set_visible(False)
        figure.supylabel("tuning score, held-out R²", fontsize=8, color=INK)
    columns = [table[["method", "cell"]], pd.DataFrame(list(table["parameters"])), table[["score", "n_runs"]]]
    return Drawn(figure, pd.concat(columns, axis=1))


def surface_table(surface: Sequence[Mapping[str, Any]]) -> Frame:
    """The surface averaged over pairs and seeds: columns method, cell, parameters (dict), score, n_runs."""
    points: dict[tuple, list[float]] = {}
    settings: dict[tuple, dict[str, Any]] = {}
    for each in surface:
        key = each["method"], each["cell"], tuple(sorted((k, str(v)) for k, v in each["parameters"].items()))
        settings[key] = dict(each["parameters"])
        points.setdefault(key, [])
        if finite(each["score"]):
            points[key].append(float(each["score"]))
    records = [
        {"method": key[0], "cell": key[1], "parameters": settings[key], "score": np.mean(scores), "n_runs": len(scores)}
        for key, scores in points.items()
        if scores
    ]
    return pd.DataFrame(records, columns=["method", "cell", "parameters", "score", "n_runs"])


def swept_parameter(settings: Any) -> str:
    """The parameter to draw a method's scores against: its rate, else the first number that takes several values."""
    values: dict[str, set] = {}
    for parameters in settings:
        for name, value in parameters.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                values.setdefault(name, set()).add(value)
    several = [name for name in values if len(values[name]) > 1]
    return "rate" if "rate" in several else next(iter([*several, *values]), "setting")


def drift_figure(points: Frame, rows: Sequence[tuple[str, str]]) -> Drawn | None:
    """Pairs of sessions: each measure of drift (a column of panels) against the scores in `rows` (column, words).

    `points` has the columns source, target, measure, value, low, high and those scores, one row per pair and measure.
    """
    points = points[np.isfinite(points["value"])]
    rows = [row for row in rows if np.isfinite(points[row[0]]).any()]
    measures = list(dict.fromkeys(points["measure"]))
    if points.empty or not rows:
        return None
    n_lines = -(-len(measures) // COLUMNS)
    n_columns = -(-len(measures) // n_lines)
    with house_style():
        figure = new_figure(0.5 + 1.75 * n_lines * len(rows))
        grid = figure.subplots(n_lines * len(rows), n_columns, squeeze=False)
        used = set()
        for number, measure in enumerate(measures):
            line, column = divmod(number, n_columns)
            pairs = points[points["measure"] == measure]
            for place, (name, words) in enumerate(rows):
                axis = grid[line * len(rows) + place, column]
                used.add(axis)
                y = pairs[name].clip(lower=FLOOR_R2)
                axis.hlines(y, pairs["low"], pairs["high"], color=GREY, linewidth=0.8)
                axis.plot(pairs["value"], y, "os"[place % 2], color=COLOURS[place], markersize=3.6)
                axis.grid(axis="y")
                if column == 0:
                    axis.set_ylabel(words)
                if place == len(rows) - 1:
                    axis.set_xlabel(plain(measure.replace("_", " ")))
        for axis in grid.ravel():
            axis.set_visible(axis in used)
    return Drawn(figure, points)


def cost_figure(costs: Sequence[Mapping[str, Any]], arms: Arms) -> Drawn | None:
    """Time per bin of every arm on a log axis: p50 filled, a line to p99 with a tick at p95, the empty loop hollow."""
    cells = cells_in_order(each["cell"] for each in costs)
    known = [each for each in costs if finite(each.get("p50_us"))]
    known.sort(key=lambda each: (cells.index(each["cell"]), each["p50_us"]))
    if not known:
        return None
    with house_style():
        figure = new_figure(0.85 + 0.19 * len(known))
        axis = figure.subplots()
        for y, each in enumerate(known):
            axis.plot([each["p50_us"], each["p99_us"]], [y, y], color="#0072B2", linewidth=1.2)
            axis.plot(each["p95_us"], y, "|", color="#0072B2", markersize=7)
            axis.plot(each["p50_us"], y, "o", color="#0072B2", markersize=4.5)
            if finite(each.get("empty_loop_us")):
                axis.plot(each["empty_loop_us"], y, "o", color="#4d4d4d", markersize=4, markerfacecolor="white")
        widths = {each["bin_s"] * 1e6 for each in known if finite(each.get("bin_s"))}
        for width in widths:
            axis.axvline(width, color="#B00020", linewidth=1, linestyle=(0, (4, 3)))
        axis.set_xscale("log")
        labels = [f"{arms.label(each['arm'])} ({cell_label(each['cell'])})" for each in known]
        axis.set_yticks(range(len(known)), [plain(label) for label in labels])
        axis.set_ylim(len(known) - 0.5, -0.5)
        axis.set_xlabel("time per bin (µs)")
        axis.grid(axis="x")
        legend(
            figure,
            {
                "p50, tick at p95, line to p99": ("#0072B2", "o", "-"),
                "bin width": ("#B00020", "", (0, (4, 3))),
                "the same loop, empty": ("#4d4d4d", "o", "none"),
            },
            hollow=2,
        )
    return Drawn(figure, pd.DataFrame(known))


def days_figure(points: Frame, labels: Frame, arms: Arms, variable: str, ceiling: float | None = None) -> Drawn | None:
    """Held-out R² day by day with more and more labels, and R² against labels beside it.

    `points` has the columns series, order, date, mean: one line per series, in `order`, the bounds (no label at all,
    retrained) drawn apart from what lies between. `labels` has the columns arm, cell, value, mean, low, high: one line
    per decoder over budgets at equal distances. `ceiling` (R²) is dotted.
    """
    points, labels = points[np.isfinite(points["mean"])], labels[np.isfinite(labels["mean"])]
    if points.empty or labels.empty:
        return None
    dates = sorted(set(points["date"]))
    series = list(points.sort_values("order")["series"].unique())
    with house_style():
        figure = new_figure(3.6)
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.7, 1.0))
        styles = {name: (COLOURS[n % len(COLOURS)], MARKERS[n % len(MARKERS)], "-") for n, name in enumerate(series)}
        for name in series:
            each = points[points["series"] == name].sort_values("date")
            colour, marker, line = styles[name]
            x = [dates.index(date) for date in each["date"]]
            left.plot(x, each["mean"].clip(lower=FLOOR_R2), line, color=colour, marker=marker, markersize=4.2)
        left.set_xticks(range(len(dates)), [plain(date) for date in dates], rotation=40, ha="right")
        left.set_ylabel(f"held-out {variable} R²")
        ticks = labels.sort_values("value").drop_duplicates("value")
        places = {value: place for place, value in enumerate(ticks["value"])}
        for n, ((arm, cell), each) in enumerate(labels.groupby(["arm", "cell"], sort=False)):
            each, colour = each.sort_values("value"), (INK, GREY)[n % 2]
            x = each["value"].map(places) + 0.06 * n
            right.vlines(x, each["low"].clip(lower=FLOOR_R2), each["high"], color=colour, linewidth=1.1, alpha=0.6)
            right.plot(x, each["mean"].clip(lower=FLOOR_R2), "-", marker="os"[n % 2], color=colour, markersize=4.2)
            right.annotate(
                plain(f"{arms.label(arm)} ({cell_label(cell)})"), (x.iloc[-1], each["mean"].iloc[-1]), (0, 6),
                textcoords="offset points", ha="right", fontsize=7, color=colour,
            )  # fmt: skip
        if finite(ceiling):
            right.axhline(ceiling, color=INK, linewidth=0.9, linestyle=":")
        right.set_xticks(range(len(places)), [f"{value:g}" for value in places])
        right.set_xlabel("seconds of labels")
        for axis in (left, right):
            axis.axhline(0, color=MUTED, linewidth=0.8)
            axis.grid(axis="y")
        legend(figure, styles)
    return Drawn(figure, points)
