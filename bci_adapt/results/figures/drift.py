"""Figures of drift between sessions and of a scan of bin width and lag, from the plain data of their results."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bci_adapt.results.figures.run import GREY, INK, MUTED, house_style, new_figure, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
SIGNIFICANT = 0.05


def short_names(names: Sequence[str]) -> list[str]:
    """Return session names without the beginning that all of them share.

    >>> short_names(["sub-S_ses-20120718", "sub-S_ses-20121018"])
    ['20120718', '20121018']
    """
    shared = os.path.commonprefix(list(names)) if len(set(names)) > 1 else ""  # noqa: RUF071 (names, not paths)
    while shared and shared[-1].isalnum():
        shared = shared[:-1]
    return [name[len(shared) :] for name in names]


def drift_figure(drifts: Sequence[dict[str, Any]]) -> Figure:
    """Rates, preferred directions, similarity of tuning, distances and behaviour of one source and its targets.

    `drifts` are `Drift.to_json` of `bci_adapt.data.drift`, which share their source. Grey is the source's first half
    against its second.
    """
    gaps = [each["day_gap"] for each in drifts]
    known = all(gap is not None for gap in gaps)
    if known:
        drifts = sorted(drifts, key=lambda each: each["day_gap"])
    place = [each["day_gap"] for each in drifts] if known else list(range(1, len(drifts) + 1))
    names = short_names([drifts[0]["source"], *(each["target"] for each in drifts)])
    colours = _colours(len(drifts))
    with house_style():
        figure = new_figure(5.6)
        axes = figure.subplots(2, 3)
        _rates(axes[0, 0], drifts, colours)
        _directions(axes[0, 1], drifts, colours)
        _behaviour(axes[0, 2], drifts, names, colours)
        for axis, (key, title, p) in zip(
            axes[1],
            (
                ("similarity", "tuning vectors alike", None),
                ("kl_nats", f"Gaussian KL (filled: p < {SIGNIFICANT:g})", "kl_p"),
                ("mmd2", f"MMD² (filled: p < {SIGNIFICANT:g})", "mmd_p"),
            ),
            strict=True,
        ):
            _against_gap(axis, drifts, place, colours, key, p)
            axis.set_title(title)
            axis.set_xlabel("days since the source session" if known else "target session (a date is unknown)")
            if not known:
                axis.set_xticks(place, [plain(name) for name in names[1:]], rotation=40, ha="right")
            elif len(set(place)) == 1:
                axis.set_xticks(place[:1])
        axes[1, 0].set_ylabel("similarity, noise taken out")
        axes[1, 1].set_ylabel("nats")
        axes[1, 2].set_ylabel("MMD²")
        _legend(figure, names, drifts, colours)
    return figure


def scan_figure(scan: dict[str, Any]) -> Figure:
    """R² at common resolution as a heat map over lag and bin width, and as lines beside R² of the bins as they are."""
    scores, best = scan["scores"], scan["best"]
    widths = sorted({score["bin_s"] for score in scores})
    by = {width: [score for score in scores if score["bin_s"] == width] for width in widths}
    shown = [score["r2_common"] for score in scores]
    with house_style():
        figure = new_figure(3.3)
        heat, lines = figure.subplots(1, 2)
        mesh = None
        for row, width in enumerate(widths):
            lags = 1000 * np.array([score["lag_s"] for score in by[width]])
            half = np.diff(lags) / 2 if len(lags) > 1 else np.array([500 * width])
            edges = np.concatenate([lags[:1] - half[0], lags[:-1] + half[: len(lags) - 1], lags[-1:] + half[-1]])
            values = np.array([[score["r2_common"] for score in by[width]]])
            mesh = heat.pcolormesh(
                edges, [row - 0.5, row + 0.5], values, vmin=max(min(shown), 0), vmax=max(shown), cmap="viridis"
            )
        assert mesh is not None
        heat.plot(
            1000 * best["lag_s"], widths.index(best["bin_s"]), "*", color="white", mec=INK, mew=0.6, markersize=11
        )
        heat.set_yticks(range(len(widths)), [f"{1000 * width:g}" for width in widths])
        heat.set_ylabel("bin width (ms)")
        heat.set_title(f"{scan['variable']} R² averaged to {1000 * scan['common_s']:g} ms; the star is the best")
        figure.colorbar(mesh, ax=heat, label="R²", pad=0.02)
        for width, colour in zip(widths, _colours(len(widths)), strict=True):
            lags = [1000 * score["lag_s"] for score in by[width]]
            marker = "o" if len(lags) < 25 else ""
            lines.plot(
                lags,
                [score["r2_common"] for score in by[width]],
                color=colour,
                marker=marker,
                markersize=3,
                label=f"{1000 * width:g} ms",
            )
            lines.plot(lags, [score["r2"] for score in by[width]], color=colour, linewidth=0.9, linestyle=(0, (3, 2)))
        lines.plot([], [], color=MUTED, linewidth=0.9, linestyle=(0, (3, 2)), label="bins as they are")
        lines.axvline(0, color=MUTED, linewidth=0.8)
        lines.grid(axis="y")
        lines.set_ylabel("R²")
        lines.legend(loc="best")
        for axis in (heat, lines):
            axis.set_xlabel("lag (ms), positive: neurons lead")
    return figure


def _colours(n: int) -> list[Any]:
    """A colour for each of `n` sessions, in order: told apart when few, a gradient when many."""
    if n <= len(COLOURS):
        return list(COLOURS[:n])
    import matplotlib

    return [matplotlib.colormaps["plasma"](x) for x in np.linspace(0.05, 0.88, n)]


def _rates(axis: Axes, drifts: Sequence[dict[str, Any]], colours: Sequence[Any]) -> None:
    least, clipped = 0.05, 0
    for each, colour in zip(drifts, colours, strict=True):
        rates = each["across"]["rates"]
        first, second = (np.maximum(np.array(rates[key], float), least) for key in ("first_hz", "second_hz"))
        changed = np.array(rates["changed"], bool)
        clipped += int(((first == least) | (second == least)).sum())
        axis.plot(first[changed], second[changed], "o", color=colour, markersize=2.8, alpha=0.7, mew=0)
        axis.plot(first[~changed], second[~changed], "o", color=colour, markersize=2.8, mfc="none", mew=0.6)
    axis.set_xscale("log")
    axis.set_yscale("log")
    low, high = (f(axis.get_xlim() + axis.get_ylim()) for f in (min, max))
    axis.plot([low, high], [low, high], color=MUTED, linewidth=0.8, zorder=0)
    axis.set(xlim=(low, high), ylim=(low, high), xlabel="source (Hz)", ylabel="target (Hz)")
    if clipped:
        axis.text(0.02, 0.95, f"silent: drawn at {least:g}", transform=axis.transAxes, fontsize=7, color=MUTED)
    axis.set_title("firing rates (filled: changed)")


def _directions(axis: Axes, drifts: Sequence[dict[str, Any]], colours: Sequence[Any]) -> None:
    drawn = False
    for number, (each, colour) in enumerate(zip(drifts, colours, strict=True)):
        for key, shade, width in (("within", GREY, 2.4), ("across", colour, 1.3)):
            if each[key]["tuning"] is None or (key == "within" and number):
                continue
            change = np.sort(np.abs(np.array(each[key]["tuning"]["pd_change_deg"], float)))
            change = change[np.isfinite(change)]
            if len(change):
                share = np.arange(1, len(change) + 1) / len(change)
                axis.step(
                    np.concatenate([[0], change]), np.concatenate([[0], share]), where="post", color=shade, lw=width
                )
                drawn = True
    if not drawn:
        axis.text(0.5, 0.5, "no channel tuned on both sides", transform=axis.transAxes, ha="center", color=MUTED)
    axis.set(xlim=(0, 180), ylim=(0, 1.02), xticks=[0, 45, 90, 135, 180])
    axis.set_xlabel("change of preferred direction (°)")
    axis.set_ylabel("share of channels below")
    axis.set_title("preferred directions")
    axis.grid(axis="y")


def _behaviour(axis: Axes, drifts: Sequence[dict[str, Any]], names: Sequence[str], colours: Sequence[Any]) -> None:
    days = [drifts[0]["behaviour"]["source"], *(each["behaviour"]["target"] for each in drifts)]
    drawn = False
    for row, (day, colour) in enumerate(zip(days, [INK, *colours], strict=True)):
        speed = day["speed_quantiles"]
        if speed:
            axis.plot([speed["10"], speed["90"]], [row, row], color=colour, linewidth=2.2, solid_capstyle="butt")
            axis.plot(speed["50"], row, "o", color=colour, markersize=4.5)
            drawn = True
        words = "" if day["success_rate"] is None else f"{100 * day['success_rate']:.0f} %"
        axis.text(1.02, row, words, transform=axis.get_yaxis_transform(), va="center", fontsize=7, color=MUTED)
    if any(day["success_rate"] is not None for day in days):
        axis.text(1.02, -1, "success", transform=axis.get_yaxis_transform(), va="center", fontsize=7, color=MUTED)
    axis.set_yticks(range(len(days)), [plain(name) for name in names], fontsize=7 if len(days) < 12 else 6)
    axis.set_ylim(len(days) - 0.4, -1.3)
    unit = drifts[0]["unit"]
    variable = drifts[0]["variable"]
    what = "speed" if variable.endswith("velocity") else f"size of {variable}"
    axis.set_xlabel(plain(f"{what}{f' ({unit})' if unit else ''}"))
    axis.set_title(f"{what}: median, 10th to 90th percentile" if drawn else "behaviour: no labels")
    axis.grid(axis="x")


def _value(change: dict[str, Any], key: str) -> tuple[float, float, float]:
    if key != "similarity":
        return change["distance"][key], np.nan, np.nan
    if change["tuning"] is None:
        return np.nan, np.nan, np.nan
    estimate = change["tuning"]["corrected_similarity"]
    return estimate["value"], estimate["low"], estimate["high"]


def _against_gap(
    axis: Axes, drifts: Sequence[dict[str, Any]], place: Sequence[Any], colours: Sequence[Any], key: str, p: str | None
) -> None:
    for each, x, colour in zip(drifts, place, colours, strict=True):
        for change, shade, marker in (("within", GREY, "_"), ("across", colour, "o")):
            value, low, high = _value(each[change], key)
            if np.isfinite(low):
                axis.plot([x, x], [low, high], color=shade, linewidth=1.2, alpha=0.8)
            filled = p is None or each[change]["distance"][p] < SIGNIFICANT
            face = shade if filled else "white"
            axis.plot(x, value, marker, color=shade, mfc=face, markersize=5 if marker == "o" else 9, mew=1.2)
    if key == "kl_nats":
        from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

        axis.set_yscale("log")
        low, high = axis.get_ylim()
        axis.set_ylim(low / 1.5, high * 1.5)
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 100 * low else (1.0,)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_locator(NullLocator())
    else:
        axis.axhline(1 if key == "similarity" else 0, color=MUTED, linewidth=0.8, zorder=0)
    axis.grid(axis="y")


def _legend(figure: Figure, names: Sequence[str], drifts: Sequence[dict[str, Any]], colours: Sequence[Any]) -> None:
    from matplotlib.lines import Line2D

    def label(name: str, gap: int | None) -> str:
        return plain(name) if gap is None else f"{plain(name)} ({gap:+d} d)".replace("-", "−")

    handles = [Line2D([], [], color=GREY, linewidth=2.4, label=f"within {plain(names[0])}, halves")]
    handles += [
        Line2D([], [], color=colour, marker="o", markersize=4.5, linewidth=1.3, label=label(name, each["day_gap"]))
        for name, each, colour in zip(names[1:], drifts, colours, strict=True)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 5))
