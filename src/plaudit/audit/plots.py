"""Charts as PNG bytes: of a run, and of several."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

from plaudit.audit.measures import Change, Findings
from plaudit.audit.panels import Panel, panels
from plaudit.pages.look import LIGHT, Theme, blank_figure, finish, new_figure, png_of, score_axis
from plaudit.pages.numbers import Style, capital
from plaudit.statistics import Interval
from plaudit.storage import explain_write_errors

PANEL_SIZE = (4.8, 3.0)  # inches


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One seed of one contestant: held-out score over a cost."""

    cost: np.ndarray
    score: np.ndarray


# --- the charts of one run -----------------------------------------------------------------------------------------


def panel_png(panel: Panel, theme: Theme) -> bytes:
    figure, axes = new_figure(PANEL_SIZE, theme)
    _draw_panel(axes, panel, theme)
    return png_of(figure)


def curves_png(found: Findings, theme: Theme = LIGHT) -> bytes | None:
    """All curves of a run in one picture; None when nothing was recorded."""
    drawn = panels(found)
    if not drawn:
        return None
    columns = min(2, len(drawn))
    rows = math.ceil(len(drawn) / columns)
    figure = blank_figure((PANEL_SIZE[0] * columns, PANEL_SIZE[1] * rows), theme)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, panel in zip(grid, drawn, strict=False):
        _draw_panel(axes, panel, theme)
    for axes in grid[len(drawn) :]:
        axes.set_axis_off()
    return png_of(figure)


def categories_png(found: Findings, theme: Theme = LIGHT) -> bytes | None:
    """Held-out score of every category before and after, with intervals; None when there are no categories."""
    changes, style = found.categories[found.run.main_split], found.style
    if not changes:
        return None
    figure, axes = new_figure((max(4.8, 1.1 * len(changes) + 1.8), 3.2), theme)
    after = "after" if changes[0].finished else f"step {changes[0].step}"
    _draw_bars(axes, -0.2, [change.before for change in changes], "before", theme.before, theme)
    _draw_bars(axes, 0.2, [change.after for change in changes], after, theme.lines[0], theme)
    axes.set_xticks(range(len(changes)), [f"{change.name}\nn = {change.after.count}" for change in changes])
    axes.set_ylabel(style.truth)
    score_axis(axes, style)
    if style.accuracy:
        axes.set_ylim(bottom=0)  # bars stand on the ground
    finish(axes, theme, title=_categories_title(changes))
    return png_of(figure)


def _draw_bars(axes: Axes, offset: float, found: Sequence[Interval], label: str, color: str, theme: Theme) -> None:
    places = np.arange(len(found)) + offset
    heights = [interval.mean for interval in found]
    axes.bar(places, heights, width=0.36, color=color, label=label, zorder=2)
    errors = [[i.mean - i.low for i in found], [i.high - i.mean for i in found]]
    axes.errorbar(places, heights, yerr=errors, fmt="none", ecolor=theme.text, elinewidth=1, capsize=2.5, zorder=3)


def write_charts(found: Findings) -> list[Path]:
    """Write `curves.png` and `categories.png` into the run folder, as far as there is data for them."""
    drawn = {"curves.png": curves_png(found), "categories.png": categories_png(found)}
    written = {found.run.folder / name: png for name, png in drawn.items() if png is not None}
    for path, png in written.items():
        with explain_write_errors(path):
            path.write_bytes(png)
    return list(written)


def _categories_title(changes: Sequence[Change]) -> str:
    rose = sum(found.gain.low > 0 for found in changes)
    fell = sum(found.gain.high < 0 for found in changes)
    return f"Categories beyond noise: {rose} of {len(changes)} rose, {fell} fell"


def _draw_panel(axes: Axes, panel: Panel, theme: Theme) -> None:
    panel.draw(axes, theme)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    finish(axes, theme, title=panel.title, xlabel="training step")


# --- several runs --------------------------------------------------------------------------------------------------


def comparison_png(curves: Mapping[str, Mapping[str, Sequence[Curve]]], style: Style, theme: Theme = LIGHT) -> bytes:
    """Held-out score against each cost: `curves[cost label][contestant]` holds one curve a seed."""
    figure = blank_figure((5.4 * len(curves), 3.8), theme)
    for axes, (cost, contestants) in zip(
        figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True
    ):
        for index, (name, seeds) in enumerate(contestants.items()):
            _draw_band(axes, seeds, name, theme.lines[index % len(theme.lines)])
        axes.set_ylabel(style.truth)
        axes.xaxis.set_major_formatter(FuncFormatter(_tick))
        score_axis(axes, style)
        finish(axes, theme, title=f"{capital(style.truth)} against {cost.split(' (')[0]}", xlabel=cost)
    return png_of(figure)


def _tick(value: float, position: int | None = None) -> str:
    """Thousands as 20k; below them the number as it is, because 200m would be read as minutes."""
    return EngFormatter(sep="")(value) if abs(value) >= 1000 else f"{value:g}"


def _draw_band(axes: Axes, seeds: Sequence[Curve], name: str, color: str) -> None:
    """Mean over seeds and the range from the worst to the best, where every seed was measured; each seed faintly."""
    for curve in seeds:
        axes.plot(curve.cost, curve.score, color=color, alpha=0.3, linewidth=0.8)
    if not seeds:
        return
    end = min(curve.cost[-1] for curve in seeds)
    grid = np.unique(np.concatenate([curve.cost[curve.cost <= end] for curve in seeds]))
    scores = np.stack([np.interp(grid, curve.cost, curve.score) for curve in seeds])
    axes.fill_between(grid, scores.min(axis=0), scores.max(axis=0), color=color, alpha=0.16, linewidth=0)
    axes.plot(grid, scores.mean(axis=0), color=color, label=name, marker="o", markersize=3.5)
