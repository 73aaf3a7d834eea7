"""Figures of recordings, drawn from plain arrays; they look like those of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bci_adapt.ground.text import clean
from bci_adapt.results.figures.run import GREY, INK, MUTED, house_style, new_figure, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bci_adapt.data.qc import QcReport

BLUE, ORANGE, SHADE = "#0072B2", "#D55E00", "#dfe4ea"
DASHED = (0, (4, 3))


def qc_figure(report: QcReport) -> Figure:
    """One page about a session: channels, their rates over time, the population, labels, and how they are related.

    Panels for which the session has nothing (no labels, no spike times) are left out. Time is that of recorded bins:
    gaps take no room and are drawn as lines.
    """
    panels: list[Any] = [["rates", "map", "map"], ["population"] * 3]
    heights = [1.9, 1.35]
    if "speed" in report.series:
        panels.append(["speed"] * 3)
        heights.append(1.35)
    beside = ["lag"] * bool(report.lag) + ["short"] * ("short_fraction" in report.series)
    panels.append(["correlation", *{0: [".", "."], 1: 2 * beside, 2: beside}[len(beside)]])
    heights.append(2.35)
    with house_style():
        figure = new_figure(sum(heights) + 0.5)
        axes = figure.subplot_mosaic(panels, height_ratios=heights, width_ratios=[1, 1, 1])
        _rates(axes["rates"], report)
        _rate_map(figure, axes["map"], report)
        _population(axes["population"], report)
        if "speed" in axes:
            _speed(axes["speed"], report)
        _correlation(figure, axes["correlation"], report)
        if "lag" in axes:
            _lag(axes["lag"], report)
        if "short" in axes:
            _short(axes["short"], report)
        about = report.session
        figure.suptitle(
            f"{_plain(about['session_id'])}: {about['n_channels']} channels, {about['duration_s'] / 60:.1f} min in "
            f"bins of {1000 * about['bin_s']:g} ms; {len(report.flagged)} of {len(report.checks)} checks flagged",
            fontsize=9,
            fontweight="bold",
            color=INK,
        )
    return figure


def _plain(text: str) -> str:
    """Text of a file as matplotlib shows it, with nothing read as mathematics."""
    return plain(clean(text, 80))


def _rates(axis: Any, report: QcReport) -> None:
    """Channels sorted by rate."""
    order, rates = _by_rate(report)
    flagged = report.series["flagged"][order]
    if "rate_hz" in report.series:
        limits = report.thresholds
        rates = np.maximum(rates, limits.dead_rate_hz / 2)  # a logarithm has no place for silence
        axis.set_yscale("log")
        top = rates.max(initial=0.0)
        for limit in (limits.dead_rate_hz, limits.max_rate_hz):
            if limit < 3 * top:
                axis.axhline(limit, color=MUTED, linewidth=0.8, linestyle=DASHED)
        axis.set_ylabel("rate (Hz)")
    else:
        axis.set_ylabel("mean band power")
    place = np.arange(len(rates))
    axis.plot(place, rates, "o", color=BLUE, markersize=2.4, linestyle="none")
    axis.plot(place[flagged], rates[flagged], "X", color=ORANGE, markersize=5, linestyle="none")
    axis.set_xlabel("channels, sorted")
    axis.set_title(f"channels, {np.count_nonzero(flagged)} flagged (×)")
    axis.grid(axis="y")


def _by_rate(report: QcReport) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Order of the channels from low to high, and their rates (or mean power) in it."""
    rates = report.series.get("rate_hz")
    if rates is None:
        rates = np.nanmean(report.series["block_rates"], axis=0)
    order = np.argsort(rates, kind="stable")
    return order, rates[order]


def _rate_map(figure: Figure, axis: Any, report: QcReport) -> None:
    """Rate of every channel over time, in blocks, against its own median over blocks."""
    rates = report.series["block_rates"][:, _by_rate(report)[0]].T
    middle = np.nanmedian(rates, axis=1, keepdims=True)
    floor = 1.0 / report.thresholds.block_s  # one spike in a block, so that rare ones do not shine
    floor = floor if "rate_hz" in report.series else 1e-12
    change = np.log2((rates + floor) / (middle + floor))
    axis.set_facecolor(SHADE)
    edges = report.series["block_starts"]
    mesh = axis.pcolormesh(edges, np.arange(len(rates) + 1), change, cmap="RdBu_r", vmin=-2, vmax=2, rasterized=True)
    bar = figure.colorbar(mesh, ax=axis, extend="both", pad=0.01, ticks=[-2, -1, 0, 1, 2])
    bar.ax.set_yticklabels(["¼", "½", "1", "2", "4"])
    bar.set_label("rate / its median")
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    axis.set_ylabel("channels, sorted")
    axis.set_xlabel("recorded time (min)")
    axis.set_title(f"rate over time, in blocks of {report.thresholds.block_s:g} s")


def _time_panel(axis: Any, report: QcReport) -> NDArray[np.float64]:
    """Prepare a panel over time: shade what is not observed, draw a line at each gap; return minutes."""
    minutes = report.series["minutes"]
    _shade(axis, ~report.series["valid"], report)
    gaps = report.series["segment_starts"][1:]
    if gaps.size <= 50:  # a recording cut into trials would be all lines
        for gap in gaps:
            axis.axvline(gap, color=MUTED, linewidth=0.6, linestyle=(0, (1, 2)))
    axis.set_xlim(0, minutes[-1] + report.session["bin_s"] / 60)
    axis.set_xlabel("recorded time (min)")
    axis.grid(axis="y")
    return minutes


def _shade(axis: Any, flags: NDArray[np.bool_], report: QcReport, colour: str = SHADE) -> None:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    bin_min = report.session["bin_s"] / 60
    for start, stop in edges.reshape(-1, 2):
        axis.axvspan(start * bin_min, stop * bin_min, color=colour, linewidth=0, zorder=0)


def _population(axis: Any, report: QcReport) -> None:
    minutes, population = _time_panel(axis, report), report.series["population"]
    n_channels = report.session["n_channels"]
    spikes = "rate_hz" in report.series
    mean = population / n_channels
    if not spikes:
        mean = mean * report.session["bin_s"]
    axis.plot(minutes, mean, color=BLUE, linewidth=0.35, rasterized=True)
    artefact = report.series["artefact"]
    axis.plot(minutes[artefact], mean[artefact], "v", color=ORANGE, markersize=3, linestyle="none")
    axis.set_ylim(0, None)
    axis.set_ylabel("Hz per channel" if spikes else "mean power")
    seconds = np.count_nonzero(report.series["silent"]) * report.session["bin_s"]
    found = f"{np.count_nonzero(artefact)} coincident bins (▼), {seconds:.0f} s of silence"
    axis.set_title(f"population: {found}; shaded: not observed")


def _speed(axis: Any, report: QcReport) -> None:
    minutes, speed = _time_panel(axis, report), report.series["speed"]
    usable = report.series["speed_usable"] & np.isfinite(speed)
    if "still" in report.series:
        _shade(axis, report.series["still"], report, "#f3e3b3")
    top = 1.25 * float(np.max(speed[usable])) if usable.any() else 1.0
    axis.plot(minutes, np.where(usable, speed, np.nan), color=BLUE, linewidth=0.35, rasterized=True)
    marks = {"fast": ("v", ORANGE), "jumps": ("X", "#000000")}
    told = []
    for name, (marker, colour) in marks.items():
        if name in report.series:
            rows = np.flatnonzero(report.series[name] & np.isfinite(speed))
            axis.plot(
                minutes[rows],
                np.minimum(speed[rows], top * 0.97),
                marker,
                color=colour,
                markersize=3.5,
                linestyle="none",
                alpha=0.8,
            )
            told.append(
                f"{rows.size} {'implausible' if name == 'fast' else 'jumps'} ({'▼' if name == 'fast' else '×'})"
            )
    axis.set_ylim(0, top if top > 0 else 1.0)
    behaviour = report.behaviour
    unit = _plain(behaviour["units"].get(behaviour["speed_of"], ""))
    axis.set_ylabel(f"speed ({unit})" if unit else "speed")
    seconds = np.count_nonzero(report.series.get("still", ())) * report.session["bin_s"]
    axis.set_title(f"labels: {', '.join([*told, f'{seconds:.0f} s standing still (yellow)'])}")


def _correlation(figure: Figure, axis: Any, report: QcReport) -> None:
    found = report.series["correlation"]
    reach = float(np.clip(np.abs(found).max(initial=0.0), 0.2, 1.0))
    image = axis.imshow(found, cmap="RdBu_r", vmin=-reach, vmax=reach, interpolation="nearest", aspect="equal")
    bar = figure.colorbar(image, ax=axis, pad=0.02, shrink=0.8)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    axis.set_xlabel("channels")
    axis.set_ylabel("channels")
    axis.set_title(f"correlation of changes, highest {found.max(initial=0.0):.2f}")


def _lag(axis: Any, report: QcReport) -> None:
    lag = report.lag
    ms = 1000 * np.array(lag["lags_s"])
    axis.axvspan(1000 * lag["peak_low_s"], 1000 * lag["peak_high_s"], color=SHADE, linewidth=0, zorder=0)
    axis.axvline(0, color=MUTED, linewidth=0.8)
    for half, style in zip(lag["correlation_halves"], (DASHED, (0, (1, 1.5))), strict=True):
        axis.plot(ms, half, color=GREY, linewidth=1.2, linestyle=style)
    axis.plot(ms, lag["correlation"], "o-", color=BLUE, linewidth=1.4, markersize=3)
    axis.plot(1000 * lag["peak_s"], lag["peak_correlation"], "D", color=ORANGE, markersize=6)
    axis.set_xlabel("neurons lead by (ms); grey: either half")
    axis.set_ylabel("held-out correlation")
    axis.set_title(f"{_plain(lag['variable'])} is decoded best at {1000 * lag['peak_s']:g} ms".replace("-", "−"))
    axis.grid(axis="y")


def _short(axis: Any, report: QcReport) -> None:
    """Short intervals against rate: of a channel with several neurons both are high."""
    rates, short = report.series["rate_hz"], 100 * report.series["short_fraction"]
    limit = 100 * report.thresholds.max_short_fraction
    axis.axhline(limit, color=MUTED, linewidth=0.8, linestyle=DASHED)
    over = short > limit
    axis.plot(rates[~over], short[~over], "o", color=BLUE, markersize=2.8, linestyle="none", clip_on=False)
    axis.plot(rates[over], short[over], "X", color=ORANGE, markersize=5, linestyle="none")
    axis.set_ylim(0, None)
    axis.set_xlabel("rate (Hz)")
    axis.set_ylabel("intervals < 1 ms (%)")
    axis.set_title(f"refractory period, {np.count_nonzero(over)} flagged (×)")
    axis.grid(axis="y")
