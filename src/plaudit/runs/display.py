"""What a person sees of a run while it goes on. A display is told the numbers and never changes them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from plaudit.recipe.text import visible_lines

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

RATIO_CHECK = "ratio/first_step_max_dev"

Metrics = Mapping[str, float | None]


class Display(Protocol):
    """`say` and `evaluation` may come before `begin`; `end` may come twice."""

    def begin(self, total_steps: int | None, minutes: float | None) -> None: ...

    def step(self, step: int, metrics: Metrics, seconds: float) -> None:
        """After a training step; `seconds` of training so far, as `train.minutes` counts them."""

    def evaluation(self, step: int, label: str, mean: float, low: float, high: float) -> None: ...

    def say(self, text: str) -> None: ...

    def end(self) -> None: ...


def make_display(plain: bool = False, quiet: bool = False) -> Display:
    """A progress bar on a terminal, a line that is rewritten in a notebook, lines elsewhere or when asked for."""
    if quiet:
        return Silent()
    if not plain and in_notebook():
        return NotebookDisplay()
    return PlainDisplay() if plain or not sys.stderr.isatty() else LiveDisplay()


def in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


class Silent:
    """Nothing at all."""

    def begin(self, total_steps: int | None, minutes: float | None) -> None: ...

    def step(self, step: int, metrics: Metrics, seconds: float) -> None: ...

    def evaluation(self, step: int, label: str, mean: float, low: float, high: float) -> None: ...

    def say(self, text: str) -> None: ...

    def end(self) -> None: ...


class Limits:
    """How much of a run is done: the limit that will be reached first decides."""

    def __init__(self, total_steps: int | None, minutes: float | None) -> None:
        self.total_steps = total_steps
        self.minutes = minutes

    def fraction(self, step: int, seconds: float) -> float:
        """0 to 1; 0 when neither limit is known."""
        by_steps = step / self.total_steps if self.total_steps else 0.0
        by_time = seconds / (60 * self.minutes) if self.minutes else 0.0
        return min(1.0, max(by_steps, by_time))

    def seconds_left(self, step: int, seconds: float) -> float | None:
        fraction = self.fraction(step, seconds)
        return seconds * (1 - fraction) / fraction if fraction > 0 else None

    def steps_text(self, step: int) -> str:
        return f"step {step}/{self.total_steps}" if self.total_steps else f"step {step}"


class PlainDisplay:
    """One line a step on standard output, for logs."""

    def __init__(self) -> None:
        self.limits = Limits(None, None)

    def begin(self, total_steps: int | None, minutes: float | None) -> None:
        self.limits = Limits(total_steps, minutes)

    def step(self, step: int, metrics: Metrics, seconds: float) -> None:
        self.say(self.line(step, metrics, seconds))

    def line(self, step: int, metrics: Metrics, seconds: float) -> str:
        left = duration(self.limits.seconds_left(step, seconds))
        return f"{self.limits.steps_text(step)}  {_said(metrics)}  {duration(seconds)} trained, {left} left"

    def evaluation(self, step: int, label: str, mean: float, low: float, high: float) -> None:
        self.say(evaluation_line(step, label, mean, low, high))

    def say(self, text: str) -> None:
        print(visible_lines(text), flush=True)

    def end(self) -> None: ...


class NotebookDisplay(PlainDisplay):
    """What was measured as lines, and the step in one line that is rewritten."""

    def begin(self, total_steps: int | None, minutes: float | None) -> None:
        from IPython.display import display  # a notebook has it

        super().begin(total_steps, minutes)
        self.cell = display({"text/plain": "waiting for the first step"}, raw=True, display_id=True)

    def step(self, step: int, metrics: Metrics, seconds: float) -> None:
        self.cell.update({"text/plain": self.line(step, metrics, seconds)}, raw=True)


class LiveDisplay:
    """A progress bar on standard error: step, reward, held-out accuracy, ratio check and time left."""

    def __init__(self, console: Console | None = None) -> None:
        self.limits = Limits(None, None)
        self.held_out: float | None = None
        self.progress: Progress = _make_progress(console)
        self.task: TaskID | None = None

    def begin(self, total_steps: int | None, minutes: float | None) -> None:
        self.limits = Limits(total_steps, minutes)
        if self.task is not None:  # a comparison shows many runs, one bar at a time
            self.progress.remove_task(self.task)
        self.task = self.progress.add_task("training", total=1.0, numbers="waiting for the first step")
        self.progress.start()

    def step(self, step: int, metrics: Metrics, seconds: float) -> None:
        if self.task is None:
            return
        numbers = (
            f"{self.limits.steps_text(step)}  {_said(metrics)}  held-out {number(self.held_out)}  "
            f"{duration(self.limits.seconds_left(step, seconds))} left"
        )
        self.progress.update(self.task, completed=self.limits.fraction(step, seconds), numbers=numbers)

    def evaluation(self, step: int, label: str, mean: float, low: float, high: float) -> None:
        if label.startswith("heldout"):
            self.held_out = mean
        self.say(evaluation_line(step, label, mean, low, high))

    def say(self, text: str) -> None:
        self.progress.console.print(visible_lines(text), markup=False, highlight=False)

    def end(self) -> None:
        self.progress.stop()


def _make_progress(console: Console | None) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = BarColumn(bar_width=24), TextColumn("{task.fields[numbers]}", markup=False)
    return Progress(*columns, console=console or Console(stderr=True))


def _said(metrics: Metrics) -> str:
    """Of a generator its reward, of a reward that is fitted the share of pairs in the right order."""
    if "accuracy" in metrics:
        return f"loss {number(metrics.get('loss'))}  pairs right {number(metrics.get('accuracy'))}"
    return f"reward {number(metrics.get('reward'))}  ratio check {number(metrics.get(RATIO_CHECK), '.1e')}"


def evaluation_line(step: int, label: str, mean: float, low: float, high: float) -> str:
    return f"step {step}  {label} {number(mean)} [{number(low)}, {number(high)}]"


def number(value: float | None, form: str = ".3f") -> str:
    """A metric, or n/a where an objective has none or it is missing."""
    return "n/a" if value is None or value != value else f"{value:{form}}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def summary_line(summary: Mapping[str, Any]) -> str:
    """What a run achieved, with the 95 % interval of its gain."""
    scale, unit = (100.0, " %") if summary["accuracy"] else (1.0, "")
    minutes = summary["minutes"]
    took = f"{minutes:.1f} minutes" if minutes >= 1 else duration(60 * minutes)
    split = "held-out" if summary["split"] == "heldout" else summary["split"]
    before, after = (_scaled(summary[key], scale, unit) for key in ("before", "after"))
    gain, low, high = (_scaled(summary[key], scale, "", sign="+") for key in ("gain", "gain_low", "gain_high"))
    return (
        f"{split} {'accuracy' if summary['accuracy'] else summary['reward']} {before} -> {after} "
        f"(gain {gain}, 95 % interval {low} to {high}), {took}; {summary['steps']} steps, "
        f"stopped by {summary['stopped']}"
    )


def _scaled(value: float | None, scale: float, unit: str, sign: str = "") -> str:
    return "n/a" if value is None else f"{scale * value:{sign}.{1 if scale > 1 else 3}f}{unit}"
