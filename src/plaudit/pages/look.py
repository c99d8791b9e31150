"""What all charts share: two themes, axes, and PNG bytes; matplotlib's objects, no pyplot, no global state."""

from __future__ import annotations

import io
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from plaudit.pages.numbers import Style

DPI = 160


@dataclass(frozen=True, kw_only=True)
class Theme:
    """Colours of one appearance; `lines` are told apart by readers who do not see red and green alike."""

    name: str
    ground: str
    text: str
    muted: str
    grid: str
    before: str
    lines: tuple[str, ...]


LIGHT = Theme(
    name="light",
    ground="#ffffff",
    text="#1b2430",
    muted="#5b6675",
    grid="#e4e8ee",
    before="#9aa5b4",
    lines=("#1f6feb", "#d9730d", "#0f8a6d", "#a33ea1", "#b58900", "#57606a"),
)
DARK = Theme(
    name="dark",
    ground="#161b22",
    text="#e6edf3",
    muted="#9aa6b4",
    grid="#2b333d",
    before="#6b7685",
    lines=("#58a6ff", "#f0994a", "#3fc9a4", "#d983d7", "#e0bf4a", "#aab4c0"),
)


def blank_figure(size: tuple[float, float], theme: Theme) -> Figure:
    figure = Figure(figsize=size, dpi=DPI, facecolor=theme.ground, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def new_figure(size: tuple[float, float], theme: Theme) -> tuple[Figure, Axes]:
    figure = blank_figure(size, theme)
    return figure, figure.subplots()


def score_axis(axes: Axes, style: Style) -> None:
    if style.accuracy:
        axes.set_ylim(-0.03, 1.03)  # half of a marker at 0 or 1 would be cut off
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def finish(axes: Axes, theme: Theme, *, title: str, xlabel: str | None = None) -> None:
    axes.set_facecolor(theme.ground)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(theme.grid)
    axes.tick_params(colors=theme.muted, labelsize=8, length=0)
    axes.grid(axis="y", color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    # Reward, category and contestant names may hold a dollar sign, which matplotlib would read as mathematics.
    axes.set_title(title, loc="left", color=theme.text, fontsize=10, fontweight="bold", parse_math=False)
    axes.set_xlabel(xlabel or "", color=theme.muted, fontsize=8.5, parse_math=False)
    axes.set_ylabel(axes.get_ylabel(), color=theme.muted, fontsize=8.5, parse_math=False)
    texts = axes.get_xticklabels()
    if len(axes.get_legend_handles_labels()[1]) > 1:
        texts += axes.legend(frameon=False, fontsize=8, labelcolor=theme.text).get_texts()
    for text in texts:
        text.set_parse_math(False)


def png_of(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor=figure.get_facecolor())
    return buffer.getvalue()
