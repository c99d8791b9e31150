"""The charts of one run over its steps: which there are, what each is called, and how it is drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from plaudit.audit.measures import Findings, interval_of
from plaudit.pages.look import Theme, score_axis
from plaudit.pages.numbers import capital, number
from plaudit.runs.record import BEFORE, Evaluation, RunRecord, Series

FAR = 4  # times the largest gradient norm
HELDOUT_PANEL = "held-out score"
SMOOTH_FROM = 20  # steps; shorter curves are shown as they are


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One chart of a run: what it is called where it cannot be drawn, its title, and how it is drawn."""

    name: str
    title: str
    draw: Callable[[Axes, Theme], None]


def panels(found: Findings) -> list[Panel]:
    """Every chart this run has data for."""
    made = (_heldout_panel(found), *(make(found.run) for make in (_PANELS | _OF_TEXTS).values()))
    return [panel for panel in made if panel is not None]


def absent_panels(drawn: Sequence[Panel]) -> list[str]:
    """Names of the charts for which nothing was recorded."""
    there = {panel.name for panel in drawn}
    return [name for name in (HELDOUT_PANEL, *_PANELS) if name not in there]


def _heldout_panel(found: Findings) -> Panel | None:
    run, style, change = found.run, found.style, found.change
    if all(row.mean is None for row in run.evaluations):
        return None

    def draw(axes: Axes, theme: Theme) -> None:
        for color, split in zip(theme.lines, run.splits(), strict=False):
            rows = sorted((row for row in run.evaluations if row.split == split and row.mean is not None), key=_step)
            _draw_evaluations(axes, rows, split, color)
        axes.set_ylabel(style.noun)
        score_axis(axes, style)

    title = f"{capital(style.truth)}: measured before training only"
    if change is not None:
        title = f"{capital(style.truth)}: {style.score(change.before.mean)} to {style.score(change.after.mean)}"
    return Panel(name=HELDOUT_PANEL, title=title, draw=draw)


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
    total = run.series("loss")
    if not len(total):
        return None
    names = sorted({key for row in run.metrics for key in row if key.startswith("loss/")}, key=_policy_first)
    parts = {name: found for name in names if len(found := run.series(name))}
    lines = {"loss": total} | (parts if len(parts) > 1 else {})  # a single part is the loss itself
    title = f"Loss: {number(total.values[-1], 3)} at the last step"
    return Panel(name="loss", title=title, draw=_lines(lines, "loss"))


def _policy_first(name: str) -> tuple[bool, str]:
    return name != "loss/policy", name


def _gradient_panel(run: RunRecord) -> Panel | None:
    norm = run.series("grad_norm")
    if not len(norm):
        return None
    title = f"Gradient norm: median {number(float(np.median(norm.values)), 3)}, largest {number(norm.values.max(), 3)}"
    clip = run.recipe.train.grad_clip if run.recipe else None

    def draw(axes: Axes, theme: Theme) -> None:
        _lines({"before clipping": norm}, "gradient norm (L2)", from_zero=True)(axes, theme)
        highest = norm.values.max()
        if clip is not None and clip <= FAR * highest:  # further above it would press the curve to the ground
            axes.axhline(clip, color=theme.muted, linestyle="--", linewidth=1, label=f"clipped at {number(clip)}")
            _from_zero(axes, max(clip, highest))

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
            _from_zero(axes, max(float(found.values.max()) for found in drawn.values()))

    return draw


def _from_zero(axes: Axes, highest: float) -> None:
    """Some room above what is highest: matplotlib leaves none above a curve that is nearly level, and half of it is cut off."""
    axes.set_ylim(bottom=0, top=1.06 * highest if highest > 0 else None)


def moving_mean(values: np.ndarray) -> np.ndarray:
    """Centred mean over about a twelfth of the curve; at the ends over the part of the window that exists."""
    window = np.ones(2 * (len(values) // 24) + 1)
    return np.convolve(values, window, "same") / np.convolve(np.ones_like(values), window, "same")
