"""Charts as PNG bytes, drawn through matplotlib's objects: no pyplot, no global state, a light and a dark theme."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from plaudit.audit.measures import Change, Style, capital, category_changes, change, interval_of, number, style_of
from plaudit.audit.runs import BEFORE, Evaluation, RunRecord, Series
from plaudit.audit.statistics import Interval
from plaudit.storage import explain_write_errors

DPI = 160
PANEL_SIZE = (4.8, 3.0)  # inches
SMOOTH_FROM = 20  # steps; shorter curves are shown as they are


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


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One chart of a run: what it is called where it cannot be drawn, its title, and how it is drawn."""

    name: str
    title: str
    draw: Callable[[Axes, Theme], None]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One seed of one contestant: held-out score over a cost."""

    cost: np.ndarray
    score: np.ndarray


# --- the charts of one run -----------------------------------------------------------------------------------------


def panels(run: RunRecord) -> list[Panel]:
    """Every chart this run has data for."""
    made = (make(run) for make in (_PANELS | _OF_TEXTS).values())
    return [panel for panel in made if panel is not None]


def absent_panels(run: RunRecord) -> list[str]:
    """Names of the charts for which nothing was recorded."""
    return [name for name, make in _PANELS.items() if make(run) is None]


def panel_png(panel: Panel, theme: Theme) -> bytes:
    figure, axes = _new_figure(PANEL_SIZE, theme)
    _draw_panel(axes, panel, theme)
    return _png(figure)


def curves_png(run: RunRecord, theme: Theme = LIGHT) -> bytes | None:
    """All curves of a run in one picture; None when nothing was recorded."""
    drawn = panels(run)
    if not drawn:
        return None
    columns = min(2, len(drawn))
    rows = math.ceil(len(drawn) / columns)
    figure = _figure((PANEL_SIZE[0] * columns, PANEL_SIZE[1] * rows), theme)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, panel in zip(grid, drawn, strict=False):
        _draw_panel(axes, panel, theme)
    for axes in grid[len(drawn) :]:
        axes.set_axis_off()
    return _png(figure)


def categories_png(run: RunRecord, theme: Theme = LIGHT) -> bytes | None:
    """Held-out score of every category before and after, with intervals; None when there are no categories."""
    changes = category_changes(run)
    if not changes:
        return None
    style = style_of(run)
    figure, axes = _new_figure((max(4.8, 1.1 * len(changes) + 1.8), 3.2), theme)
    after = "after" if changes[0].finished else f"step {changes[0].step}"
    _draw_bars(axes, -0.2, [found.before for found in changes], "before", theme.before, theme)
    _draw_bars(axes, 0.2, [found.after for found in changes], after, theme.lines[0], theme)
    axes.set_xticks(range(len(changes)), [f"{found.name}\nn = {found.after.count}" for found in changes])
    axes.set_ylabel(style.truth)
    _score_axis(axes, style)
    _finish(axes, theme, title=_categories_title(changes))
    return _png(figure)


def _draw_bars(axes: Axes, offset: float, found: Sequence[Interval], label: str, color: str, theme: Theme) -> None:
    places = np.arange(len(found)) + offset
    heights = [interval.mean for interval in found]
    axes.bar(places, heights, width=0.36, color=color, label=label, zorder=2)
    errors = [[i.mean - i.low for i in found], [i.high - i.mean for i in found]]
    axes.errorbar(places, heights, yerr=errors, fmt="none", ecolor=theme.text, elinewidth=1, capsize=2.5, zorder=3)


def write_charts(run: RunRecord) -> list[Path]:
    """Write `curves.png` and `categories.png` into the run folder, as far as there is data for them."""
    drawn = {"curves.png": curves_png(run), "categories.png": categories_png(run)}
    written = {run.folder / name: png for name, png in drawn.items() if png is not None}
    for path, png in written.items():
        with explain_write_errors(path):
            path.write_bytes(png)
    return list(written)


def _categories_title(changes: Sequence[Change]) -> str:
    rose = sum(found.gain.low > 0 for found in changes)
    fell = sum(found.gain.high < 0 for found in changes)
    return f"Categories beyond noise: {rose} of {len(changes)} rose, {fell} fell"


# --- panels --------------------------------------------------------------------------------------------------------


def _heldout_panel(run: RunRecord) -> Panel | None:
    if not run.evaluations:
        return None
    style = style_of(run)

    def draw(axes: Axes, theme: Theme) -> None:
        for color, split in zip(theme.lines, run.splits(), strict=False):
            rows = sorted((row for row in run.evaluations if row.split == split and row.mean is not None), key=_step)
            _draw_evaluations(axes, rows, split, color)
        axes.set_ylabel(style.noun)
        _score_axis(axes, style)

    found = change(run)
    title = f"{capital(style.truth)}: measured before training only"
    if found is not None:
        title = f"{capital(style.truth)}: {style.score(found.before.mean)} to {style.score(found.after.mean)}"
    return Panel(name="held-out score", title=title, draw=draw)


def _draw_evaluations(axes: Axes, rows: Sequence[Evaluation], split: str, color: str) -> None:
    """A line with its 95 % band; the larger measurements before and after are filled, those in between hollow."""
    intervals = [interval_of(row) for row in rows]
    steps, means = [row.step for row in rows], [interval.mean for interval in intervals]
    axes.plot(steps, means, color=color, label=split, zorder=3)
    axes.fill_between(steps, [i.low for i in intervals], [i.high for i in intervals], color=color, alpha=0.16, lw=0)
    for row, mean in zip(rows, means, strict=True):
        face = "none" if row.label == "step" else color
        axes.plot(row.step, mean, marker="o", markersize=4.5, color=color, markerfacecolor=face, zorder=4)


def _step(row: Evaluation) -> tuple[int, bool]:
    return row.step, row.label != BEFORE


def _reward_panel(run: RunRecord) -> Panel | None:
    total = run.series("reward")
    if not len(total):
        return None
    parts = {name: run.series(f"rewards/{name}/mean") for name in run.rewards()}
    start, end = _ends(total)
    verb = "rises" if end > start else "falls"
    lines = {"reward": total} | (parts if len(parts) > 1 else {})
    title = f"Training reward {verb} from {number(start, 3)} to {number(end, 3)}"
    return Panel(name="reward", title=title, draw=_lines(lines, "mean reward of a step"))


def _loss_panel(run: RunRecord) -> Panel | None:
    lines = {key: run.series(key) for key in ("loss", "loss/policy", "loss/kl")}
    if not len(lines["loss"]):
        return None
    title = f"Loss: {number(lines['loss'].values[-1], 3)} at the last step"
    return Panel(name="loss", title=title, draw=_lines(lines, "loss"))


def _gradient_panel(run: RunRecord) -> Panel | None:
    norm = run.series("grad_norm")
    if not len(norm):
        return None
    title = f"Gradient norm: median {number(float(np.median(norm.values)), 3)}, largest {number(norm.values.max(), 3)}"
    clip = run.recipe.train.grad_clip if run.recipe else None

    def draw(axes: Axes, theme: Theme) -> None:
        _lines({"before clipping": norm}, "gradient norm (L2)", from_zero=True)(axes, theme)
        if clip is not None:
            axes.axhline(clip, color=theme.muted, linestyle="--", linewidth=1, label=f"clipped at {number(clip)}")

    return Panel(name="gradient norm", title=title, draw=draw)


def _zero_variance_panel(run: RunRecord) -> Panel | None:
    fraction = run.series("frac_reward_zero_std")
    if not len(fraction):
        return None
    start, end = _ends(fraction)
    title = f"Groups without a signal: {100 * start:.0f} % to {100 * end:.0f} %"

    def draw(axes: Axes, theme: Theme) -> None:
        _lines({"zero-variance groups": fraction}, "share of groups")(axes, theme)
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))

    return Panel(name="zero-variance fraction", title=title, draw=draw)


def _ratio_panel(run: RunRecord) -> Panel | None:
    deviation = run.series("ratio/first_step_max_dev")
    if not len(deviation):
        return None
    stated = run.series("ratio/limit").values
    limit = float(stated[-1]) if len(stated) else run.recipe.train.ratio_tolerance if run.recipe else None
    largest = float(deviation.values.max())
    title = f"Ratio at update 0: at most {number(largest, 2)} from 1" if largest else "Ratio at update 0: exactly 1"

    def draw(axes: Axes, theme: Theme) -> None:
        _lines({"largest deviation": deviation}, "|ratio - 1| at update 0")(axes, theme)
        if limit is not None:
            axes.axhline(limit, color=theme.muted, linestyle="--", linewidth=1, label=f"allowed: {limit:g}")
        # Exact agreement is common, and 0 has no logarithm.
        axes.set_yscale("symlog", linthresh=1e-9)
        axes.set_ylim(-3e-10, 100 * max(limit or 0.0, largest, 1e-9))

    return Panel(name="ratio deviation", title=title, draw=draw)


def _kl_panel(run: RunRecord) -> Panel | None:
    kl = run.series("kl")
    if not len(kl):
        return None
    title = f"KL to the reference ends at {number(kl.values[-1], 3)}"
    return Panel(name="KL", title=title, draw=_lines({"kl": kl}, "KL to the reference", from_zero=True))


def _diversity_panel(run: RunRecord) -> Panel | None:
    diversity = run.series("diversity")
    if not len(diversity):
        return None
    start, end = _ends(diversity)
    kept = f": {100 * end / start:.0f} % of the start is left" if start > 0 else ""
    label = "share of a group's pairs that differ" if run.texts else "mean pairwise pixel distance"
    return Panel(
        name="diversity",
        title=f"Diversity within groups{kept}",
        draw=_lines({"diversity": diversity}, label, from_zero=True),
    )


def _length_panel(run: RunRecord) -> Panel | None:
    length = run.series("completions/mean_length")
    if not len(length):
        return None
    start, end = _ends(length)
    title = f"Mean length goes from {number(start, 3)} to {number(end, 3)} tokens"
    return Panel(name="length", title=title, draw=_lines({"length": length}, "tokens of a completion", from_zero=True))


def _entropy_panel(run: RunRecord) -> Panel | None:
    entropy = run.series("entropy")
    if not len(entropy):
        return None
    title = f"Entropy ends at {number(entropy.values[-1], 3)} nats a token"
    return Panel(name="entropy", title=title, draw=_lines({"entropy": entropy}, "nats a token", from_zero=True))


def _pairs_panel(run: RunRecord) -> Panel | None:
    """A chosen answer whose log-probability falls is the sign of over-optimisation that DPO hides."""
    lines = {key: run.series(f"logps/{key}") for key in ("chosen", "rejected")}
    if not len(lines["chosen"]):
        return None
    start, end = _ends(lines["chosen"])
    title = (
        f"Log-probability of the chosen answers {'falls' if end < start else 'rises'} by {number(abs(end - start), 3)}"
    )
    return Panel(name="pairs", title=title, draw=_lines(lines, "log-probability of an answer"))


_PANELS: dict[str, Callable[[RunRecord], Panel | None]] = {
    "held-out score": _heldout_panel,
    "reward": _reward_panel,
    "loss": _loss_panel,
    "gradient norm": _gradient_panel,
    "zero-variance fraction": _zero_variance_panel,
    "ratio deviation": _ratio_panel,
    "KL": _kl_panel,
    "diversity": _diversity_panel,
}
_OF_TEXTS: dict[str, Callable[[RunRecord], Panel | None]] = {
    "length": _length_panel,
    "entropy": _entropy_panel,
    "pairs": _pairs_panel,
}


def _ends(found: Series) -> tuple[float, float]:
    """Means over the first and the last tenth of a curve."""
    tenth = max(len(found) // 10, 1)
    return float(found.values[:tenth].mean()), float(found.values[-tenth:].mean())


def _lines(lines: Mapping[str, Series], ylabel: str, *, from_zero: bool = False) -> Callable[[Axes, Theme], None]:
    """Draw curves over steps; long ones as a moving mean over the faint raw values."""

    def draw(axes: Axes, theme: Theme) -> None:
        drawn = {label: found for label, found in lines.items() if len(found)}
        for color, (label, found) in zip(theme.lines, drawn.items(), strict=False):
            if len(found) < SMOOTH_FROM:
                axes.plot(found.steps, found.values, color=color, label=label)
                continue
            axes.plot(found.steps, found.values, color=color, alpha=0.25, linewidth=1)
            axes.plot(found.steps, moving_mean(found.values), color=color, label=label)
        axes.set_ylabel(ylabel)
        if from_zero:
            axes.set_ylim(bottom=0)

    return draw


def moving_mean(values: np.ndarray) -> np.ndarray:
    """Centred mean over about a twelfth of the curve; at the ends over the part of the window that exists."""
    window = np.ones(2 * (len(values) // 24) + 1)
    return np.convolve(values, window, "same") / np.convolve(np.ones_like(values), window, "same")


# --- several runs --------------------------------------------------------------------------------------------------


def comparison_png(curves: Mapping[str, Mapping[str, Sequence[Curve]]], style: Style, theme: Theme = LIGHT) -> bytes:
    """Held-out score against each cost: `curves[cost label][contestant]` holds one curve a seed."""
    figure = _figure((5.4 * len(curves), 3.8), theme)
    for axes, (cost, contestants) in zip(
        figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True
    ):
        for index, (name, seeds) in enumerate(contestants.items()):
            _draw_band(axes, seeds, name, theme.lines[index % len(theme.lines)])
        axes.set_ylabel(style.truth)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        _score_axis(axes, style)
        _finish(axes, theme, title=f"{capital(style.truth)} against {cost.split(' (')[0]}", xlabel=cost)
    return _png(figure)


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


# --- shared look ---------------------------------------------------------------------------------------------------


def _figure(size: tuple[float, float], theme: Theme) -> Figure:
    figure = Figure(figsize=size, dpi=DPI, facecolor=theme.ground, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _new_figure(size: tuple[float, float], theme: Theme) -> tuple[Figure, Axes]:
    figure = _figure(size, theme)
    return figure, figure.subplots()


def _draw_panel(axes: Axes, panel: Panel, theme: Theme) -> None:
    panel.draw(axes, theme)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    _finish(axes, theme, title=panel.title, xlabel="training step")


def _score_axis(axes: Axes, style: Style) -> None:
    if style.accuracy:
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def _finish(axes: Axes, theme: Theme, *, title: str, xlabel: str | None = None) -> None:
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


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor=figure.get_facecolor())
    return buffer.getvalue()
