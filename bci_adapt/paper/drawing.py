"""The figures of the paper, drawn from the tables alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bci_adapt.paper.tables import GROUPS, Frame, architectures
from bci_adapt.results.figures.run import INK, MUTED, Drawn, house_style, legend, new_figure, plain

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#999933")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "h")
CLIPPED = (-20.0, 120.0)  # percent of recovery

Tables = Mapping[str, Frame]
Figures = list[tuple[str, Drawn, str, str]]  # name, figure, alternative text, caption


def draw(figure: str, tables: Tables) -> Figures:
    """Every picture of a figure that its tables hold something for."""
    maker = _MAKERS.get(figure)
    return [] if maker is None else [each for each in maker(tables) if each is not None]


def _decays(tables: Tables) -> Any:
    table = tables["methods"]
    if table.empty:
        return
    shown = table[
        table["rule"].str.startswith("trace") & (table["method"] == table["rule"] + " + " + table["optimizer"])
    ]
    places = {text: number for number, text in enumerate(dict.fromkeys(_by_decay(shown)["rule"]))}
    columns = list(dict.fromkeys(zip(shown["task"], shown["n_hidden"], strict=True)))
    kinds = {
        name: (colour, marker)
        for name, colour, marker in zip(dict.fromkeys(shown["optimizer"]), COLOURS, MARKERS, strict=False)
    }
    with house_style():
        figure = new_figure(6.6)
        axes = figure.subplots(3, len(columns), squeeze=False, sharex=True, sharey="row")
        for column, (task, n_hidden) in enumerate(columns):
            here = shown[(shown["task"] == task) & (shown["n_hidden"] == n_hidden)]
            for axis, value in zip(axes[:, column], ("recovery_pre_last", "recovery_pre_last", "last"), strict=True):
                axis.grid(axis="y")
                for kind, (colour, marker) in kinds.items():
                    for rates, line, face in (("tuned", "-", colour), ("shared", "--", "white")):
                        points = here[(here["optimizer"] == kind) & (here["rates"] == rates)]
                        axis.errorbar(
                            [places[text] for text in points["rule"]], points[value],
                            yerr=points["sd_pre_last"] if value != "last" else None, color=colour, marker=marker,
                            linestyle=line, markerfacecolor=face, markersize=4, linewidth=1, elinewidth=0.7,
                        )  # fmt: skip
            for axis in axes[:2, column]:
                axis.axhline(100, color=MUTED, linewidth=0.7)
                axis.axhline(0, color=MUTED, linewidth=0.7)
            for arm in ("last_frozen", "last_before"):
                axes[2, column].axhline(here[arm].mean(), color=MUTED, linewidth=0.8, linestyle=":")
            axes[0, column].set_title(plain(f"{task}, n = {n_hidden}"))
            labels = [text.removeprefix("trace(").removesuffix(")") for text in places]
            axes[2, column].set_xticks(range(len(places)), labels, fontsize=6.5)
            axes[2, column].set_xlabel("decay λ of the trace")
        _percent(axes[0, 0].yaxis, shown["recovery_pre_last"])
        axes[1, 0].set_ylim(*CLIPPED)
        axes[2, 0].set_yscale("log")
        axes[0, 0].set_ylabel("recovery, % (unclipped)")
        axes[1, 0].set_ylabel("recovery, % (clipped view)")
        axes[2, 0].set_ylabel("error, variances of the target")
        named = {f"{kind}, own rate": (*style, "-") for kind, style in kinds.items()}
        legend(figure, named | {"shared rate": (INK, "o", "--")}, hollow=len(named))
    yield (
        "F1_recovery_against_decay", Drawn(figure, shown), "Recovery against the decay of the trace",
        "Recovery (E_frozen − E_adapted)/(E_frozen − E_before) of the last bins of the adaptation: ratio of means over "
        "seeds, bars one standard deviation of the seeds. Above unclipped, below that the same between −20 and 120 %; "
        "at the bottom the errors themselves, dotted those of the frozen network after (above) and before the change.",
    )  # fmt: skip


def _percent(axis: Any, values: Frame) -> None:
    """Percentages linear up to ±200, logarithmic beyond where there are any."""
    inside = [value for value in values if np.isfinite(value)]
    low, high = min([*inside, 0.0]), max([*inside, 100.0])
    if low < -200 or high > 200:
        ticks = [-1e6, -1e5, -1e4, -1e3, -100, 0, 100, 1e3, 1e4]
        {"x": axis.axes.set_xscale, "y": axis.axes.set_yscale}[axis.axis_name]("symlog", linthresh=200)
        axis.set_ticks([tick for tick in ticks if 10 * low < tick < 10 * high])
        axis.set_major_formatter("{x:g}")


def _by_decay(table: Frame) -> Frame:
    return table.sort_values("decay", kind="stable")


def _dots(name: str, words: str, value: str = "recovery_pre_last") -> Callable[[Tables], Any]:
    """A maker of one panel per task, methods below one another: own rate filled, shared rate hollow."""
    low, high = (value.replace("recovery", edge, 1) for edge in ("low", "high"))

    def make(tables: Tables) -> Any:
        table = tables["methods"]
        if table.empty:
            return
        table = table.assign(panel=table["task"] + ", n = " + table["n_hidden"].astype(str))
        names, panels = (list(dict.fromkeys(table[column])) for column in ("method", "panel"))
        n_columns = min(3, len(panels))
        n_rows = -(-len(panels) // n_columns)
        with house_style():
            figure = new_figure(0.7 + n_rows * (0.55 + 0.17 * len(names)))
            axes = figure.subplots(n_rows, n_columns, squeeze=False, sharey=True)
            for axis in axes.ravel()[len(panels) :]:
                axis.set_axis_off()
            for axis, panel in zip(axes.ravel(), panels, strict=False):
                axis.set_title(plain(panel))
                axis.grid(axis="x")
                for edge in (0, 100):
                    axis.axvline(edge, color=MUTED, linewidth=0.7)
                for rates, offset, face in (("tuned", -0.12, COLOURS[0]), ("shared", 0.15, "white")):
                    of_kind = table[(table["panel"] == panel) & (table["rates"] == rates)]
                    for _, row in of_kind.iterrows():
                        y, x = names.index(row["method"]) + offset, row[value]
                        if not np.isfinite(x):
                            continue
                        axis.plot([row[low], row[high]], [y, y], color=COLOURS[0], linewidth=1, alpha=0.7)
                        axis.plot(x, y, "o", color=COLOURS[0], markerfacecolor=face, markersize=4)
                _percent(axis.xaxis, table.loc[table["panel"] == panel, value])
            for axis in axes[:, 0]:
                axis.set_yticks(range(len(names)), [plain(each) for each in names])
                axis.set_ylim(len(names) - 0.5, -0.5)
            for axis in axes[-1]:
                axis.set_xlabel("recovery, %")
            marks = {"own tuned rate": (COLOURS[0], "o", "none"), "shared rate": (COLOURS[0], "o", "none")}
            legend(figure, marks, hollow=1)
        yield (
            name,
            Drawn(figure, table),
            words,
            f"{words}: recovery of the last bins with its bootstrap interval, unclipped.",
        )

    return make


def _norms(tables: Tables) -> Any:
    table = tables["gradients"]
    if table.empty:
        return
    tasks = list(dict.fromkeys(table["task"]))
    with house_style():
        figure = new_figure(4.8)
        axes = figure.subplots(2, len(tasks), squeeze=False, sharex=True, sharey="row")
        for column, task in enumerate(tasks):
            means = table[table["task"] == task].groupby("n_hidden").mean(numeric_only=True)
            for row, norm in enumerate(("norm", "rms")):
                axis = axes[row, column]
                for group, colour, marker in zip(GROUPS, COLOURS, MARKERS, strict=False):
                    if f"grad_{norm}_{group}" in means:
                        axis.plot(means.index, means[f"grad_{norm}_{group}"], color=colour, marker=marker, markersize=4)
                axis.set(xscale="log", yscale="log")
                axis.grid(axis="y")
            axes[0, column].set_title(plain(task))
            axes[1, column].set_xlabel("units")
            axes[1, column].set_xticks(list(means.index), [str(n) for n in means.index])
            axes[1, column].minorticks_off()
        axes[0, 0].set_ylabel("Frobenius norm of the group")
        axes[1, 0].set_ylabel("norm per parameter")
        legend(
            figure,
            {group.replace("_", " "): (c, m, "-") for group, c, m in zip(GROUPS, COLOURS, MARKERS, strict=False)},
        )
    yield (
        "F2b_gradient_norms", Drawn(figure, table), "Gradient norms by weight group against the number of units",
        "Medians over the bins looked at, means over seeds. The two rows are the same gradients: how many times the "
        "readout's is larger depends on the norm, and on n.",
    )  # fmt: skip


def _architectures(tables: Tables) -> Any:
    table = architectures(tables)
    if table.empty:
        return
    tasks = list(dict.fromkeys(table["task"]))
    names = list(dict.fromkeys(table["cell"]))
    with house_style():
        figure = new_figure(0.9 + 0.22 * len(names))
        axes = figure.subplots(1, len(tasks), squeeze=False, sharey=True)[0]
        for axis, task in zip(axes, tasks, strict=True):
            axis.set_title(plain(task))
            axis.grid(axis="x")
            axis.axvline(0, color=MUTED, linewidth=0.7)
            for rates, offset in (("tuned", -0.14), ("shared", 0.14)):
                for _, row in table[(table["task"] == task) & (table["rates"] == rates)].iterrows():
                    colour = COLOURS[1] if row["rule_predicts_gap"] else COLOURS[0]
                    y = names.index(row["cell"]) + offset
                    axis.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=1, alpha=0.7)
                    face = colour if rates == "tuned" else "white"
                    axis.plot(row["gap"], y, "o", color=colour, markerfacecolor=face, markersize=4.5)
            _percent(axis.xaxis, table["gap"])
            axis.set_xlabel("recovery with Adam − with SGD, points")
        axes[0].set_yticks(range(len(names)), [plain(name) for name in names])
        axes[0].set_ylim(len(names) - 0.5, -0.5)
        legend(figure, {**_PREDICTED, "hollow: shared rates": (INK, "o", "none")}, hollow=2)
    yield (
        "F3_gap_by_architecture", Drawn(figure, table), "Gap between Adam and SGD for every architecture",
        "Best with Adam less best with SGD, in points of recovery, paired by seed, with Student's interval. Orange: "
        "nonlinear state and no output bypass, where the paper's rule predicts that second moments are needed.",
    )  # fmt: skip
    if "gradient_norm" in table:
        yield _gap_scatter(table)


_PREDICTED = {"rule predicts a gap": (COLOURS[1], "o", "none"), "rule predicts none": (COLOURS[0], "o", "none")}


def _gap_scatter(table: Frame) -> tuple[str, Drawn, str, str]:
    with house_style():
        figure = new_figure(3.2)
        axes = figure.subplots(1, 2, sharey=True)
        for axis, rates in zip(axes, ("tuned", "shared"), strict=True):
            axis.set_title(f"{rates} rates")
            axis.grid(axis="both")
            axis.axhline(0, color=MUTED, linewidth=0.7)
            for _, row in table[table["rates"] == rates].iterrows():
                colour = COLOURS[1] if row["rule_predicts_gap"] else COLOURS[0]
                axis.plot(row["gradient_norm"], row["gap"], "o", color=colour, markersize=4)
                axis.annotate(
                    plain(row["cell"]),
                    (row["gradient_norm"], row["gap"]),
                    fontsize=5.5,
                    xytext=(3, 2),
                    textcoords="offset points",
                )
            axis.set_xscale("log")
            _percent(axis.yaxis, table["gap"])
            axis.set_xlabel("norm of the whole gradient after the change")
        axes[0].set_ylabel("recovery with Adam − with SGD, points")
        legend(figure, _PREDICTED)
    return (
        "F3_gap_against_gradient", Drawn(figure, table), "Gap between Adam and SGD against the size of the gradient",
        "What the rule predicts (colour) against the outcome (height); beside it the rival explanation, the size of "
        "the gradient, which a rate of one's own undoes.",
    )  # fmt: skip


def _memory(tables: Tables) -> Any:
    table = tables["memory"]
    if table.empty:
        return
    with house_style():
        figure = new_figure(3.4)
        axis = figure.subplots()
        rules = list(dict.fromkeys(table["rule"]))
        styles = dict(zip(rules, zip(COLOURS, MARKERS, strict=True), strict=False))
        for name, (colour, marker) in styles.items():
            points = table[table["rule"] == name]
            axis.plot(points["n_hidden"], points["computed_bytes"], color=colour, linewidth=1)
            measured = points.dropna(subset="measured_bytes")
            axis.plot(measured["n_hidden"], measured["measured_bytes"], marker, color=colour, markersize=5)
        for power, words in ((2, "12.6 MB: 3 float32 arrays of n²"), (3, "12.9 GB: 3 float32 arrays of n³")):
            axis.plot(1024, 12 * 1024**power, "*", color=INK, markersize=8)
            axis.annotate(
                words, (1024, 12 * 1024**power), xytext=(-6, 4), textcoords="offset points", ha="right", fontsize=7
            )
        axis.set(xscale="log", yscale="log", xlabel="units", ylabel="bytes")
        axis.set_xticks(sorted(set(table["n_hidden"])), [str(n) for n in sorted(set(table["n_hidden"]))])
        axis.minorticks_off()
        axis.grid(axis="y")
        legend(figure, {name: (*style, "-") for name, style in styles.items()})
    yield (
        "F4a_memory", Drawn(figure, table), "Bytes of each credit rule against the number of units",
        "Lines: counted from the arrays, float64. Marks: peak of what a run held where it was measured. Stars: the "
        "paper's two numbers, which count three float32 arrays of n² and of n³.",
    )  # fmt: skip


def _stored(tables: Tables) -> Any:
    table = tables["stored"]
    if table.empty:
        return
    shown = table[np.isfinite(table["mean"])]
    runs = list(dict.fromkeys(shown["run"] + ", " + shown["cell"]))
    with house_style():
        figure = new_figure(0.8 + 0.2 * len(shown))
        axes = figure.subplots(
            len(runs),
            1,
            squeeze=False,
            sharex=True,
            gridspec_kw={
                "height_ratios": [max(1, (shown["run"] + ", " + shown["cell"] == name).sum()) for name in runs]
            },
        )[:, 0]
        for axis, name in zip(axes, runs, strict=True):
            points = shown[shown["run"] + ", " + shown["cell"] == name].sort_values("mean")
            y = np.arange(len(points))
            axis.barh(y, points["mean"], color=COLOURS[0], height=0.6, alpha=0.8)
            edges = [(points["mean"] - points["low"]).clip(lower=0), (points["high"] - points["mean"]).clip(lower=0)]
            axis.errorbar(points["mean"], y, xerr=edges, fmt="none", color=INK, linewidth=0.8)
            axis.set_yticks(y, [plain(text) for text in points["label"]])
            axis.set_title(plain(name))
            axis.grid(axis="x")
        axes[-1].set_xlabel("held-out R²")
    yield (
        "F4b_cross_session", Drawn(figure, table), "Held-out scores of the arms of stored cross-session runs",
        "Held-out R² of velocity with bootstrap intervals over target days; recovery beside it in the table.",
    )  # fmt: skip


def _delays(tables: Tables) -> Any:
    table = tables["runs"]
    if table.empty:
        return
    table = table[table["rates"] == ("tuned" if (table["rates"] == "tuned").any() else "shared")]
    table = table.assign(
        r2=1.0 - table["held_out"].astype(float), ridge=1.0 - table["held_out_reservoir"].astype(float)
    )
    tasks, names = (list(dict.fromkeys(table[column])) for column in ("task", "method"))
    with house_style():
        figure = new_figure(3.4)
        axis = figure.subplots()
        offsets = np.linspace(-0.3, 0.3, len(names) + 1)
        for place, task in enumerate(tasks):
            of_task = table[table["task"] == task]
            for name, offset, colour, marker in zip(names, offsets, COLOURS, MARKERS, strict=False):
                values = of_task.loc[of_task["method"] == name, "r2"].clip(lower=-0.5)
                axis.plot(np.full(len(values), place + offset), values, marker, color=colour, markersize=4, alpha=0.8)
            ceiling = of_task.groupby("seed")["ridge"].first()
            axis.plot(np.full(len(ceiling), place + offsets[-1]), ceiling, "_", color=INK, markersize=9)
        axis.set_xticks(range(len(tasks)), [plain(task) for task in tasks])
        axis.set_ylabel("held-out R²")
        axis.grid(axis="y")
        styles = {name: (c, m, "none") for name, c, m in zip(names, COLOURS, MARKERS, strict=False)}
        legend(figure, styles | {"ridge on the untrained network": (INK, "_", "none")})
    yield (
        "delays_r2", Drawn(figure, table), "Held-out R² of every credit rule on tasks with a delay",
        "A mark per seed. Where marks of immediate derivatives lie at the ridge readout of the untrained network, they "
        "learned no more than a readout.",
    )  # fmt: skip


def _contests(tables: Tables) -> Any:
    table = tables["contests"]
    if table.empty:
        return
    panels = list(dict.fromkeys(zip(table["task"], table["n_hidden"], strict=True)))
    names = list(dict.fromkeys(table.sort_values("kind", ascending=False, kind="stable")["method"]))
    n_columns = min(4, len(panels))
    n_rows = -(-len(panels) // n_columns)
    with house_style():
        figure = new_figure(0.7 + n_rows * (0.55 + 0.15 * len(names)))
        axes = figure.subplots(n_rows, n_columns, squeeze=False, sharey=True)
        for axis in axes.ravel()[len(panels) :]:
            axis.set_axis_off()
        for axis, (task, n_hidden) in zip(axes.ravel(), panels, strict=False):
            axis.set_title(plain(f"{task}, n = {n_hidden}"), fontsize=7)
            axis.grid(axis="x")
            here = table[(table["task"] == task) & (table["n_hidden"] == n_hidden)]
            best = here.loc[here["kind"] == "rival", "loss"].min()
            axis.axvline(best, color=MUTED, linewidth=0.8, linestyle=":")
            shown = here[here["loss"] < 3 * here["loss"].min()]  # what is worse is in the table
            for _, row in shown.iterrows():
                colour = COLOURS[1] if row["kind"] == "rival" else COLOURS[0]
                axis.errorbar(
                    row["loss"], names.index(row["method"]) + (0.2 if row["rates"] == "shared" else 0.0),
                    xerr=np.nan_to_num(row["loss_sd"]), fmt="o", color=colour, markersize=4, elinewidth=0.8,
                    markerfacecolor="white" if row["rates"] == "shared" else colour,
                )  # fmt: skip
        for axis in axes[:, 0]:
            axis.set_yticks(range(len(names)), [plain(each) for each in names], fontsize=6.5)
            axis.set_ylim(len(names) - 0.5, -0.5)
        for axis in axes[-1]:
            axis.set_xlabel("loss")
        marks = {"network, own rate": COLOURS[0], "rival": COLOURS[1], "hollow: shared rate": COLOURS[0]}
        legend(figure, {name: (colour, "o", "none") for name, colour in marks.items()}, hollow=2)
    yield (
        "streams_loss", Drawn(figure, table), "Prequential loss of networks and of their rivals on every stream",
        "Nats per bin; of time series the mean squared error over that of the last value. Means over seeds, bars one "
        "standard deviation; dotted the best rival. A loss three times the smallest is left to the table.",
    )  # fmt: skip


_MAKERS: dict[str, Callable[[Tables], Any]] = {
    "F1": _decays,
    "F2a": _dots("F2a_optimiser_isolation", "Recovery with immediate derivatives under every optimiser"),
    "F2b": _norms,
    "F3": _architectures,
    "F4a": _memory,
    "F4b": _stored,
    "methods": _dots("methods_recovery", "Recovery of every credit rule on every task"),
    "delays": _delays,
    "streams": _contests,
    "later": _dots("later_recovery", "Recovery of the later version's methods", "recovery_pre_held_out"),
}
