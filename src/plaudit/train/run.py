"""What all that is trained step by step shares: its folder, limits and checkpoints, and how it is stopped and gone on with."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from plaudit.errors import Interrupted, RewardError
from plaudit.pages.showing import Showing, Shown
from plaudit.ranks import Ranks
from plaudit.recipe.schema import Recipe
from plaudit.runs.claim import Claim, claim_for, find_run
from plaudit.runs.display import Display, Metrics, Silent, make_display, summary_line
from plaudit.runs.folder import RunFolder
from plaudit.runs.interrupt import Patience, between_steps
from plaudit.train.checkpoint import Kept, Progress, restore_checkpoint, save_checkpoint


@dataclass(frozen=True, kw_only=True, repr=False)
class RunResult(Shown):
    """Where a finished run lies and what it found."""

    folder: Path
    report: Path
    summary: Mapping[str, Any]

    def showing(self) -> Showing:
        return Showing(title=f"{summary_line(self.summary)}; report: {self.report}")


@dataclass(frozen=True, kw_only=True)
class Stepped:
    """What a step said: metrics that follow from the recipe alone, and times."""

    metrics: Metrics
    timing: Mapping[str, float]


class Training(Kept, Protocol):
    """What is trained: a generator on its rewards, a reward on preferences."""

    def start(self, folder: RunFolder, display: Display) -> Progress:
        """What comes before the first step: checks, and the measurement before training."""

    def step(self, progress: Progress) -> Stepped:
        """One step; `progress` moves only when all of it is done."""

    def between(self, folder: RunFolder, display: Display, progress: Progress, metrics: Metrics) -> None:
        """After a step: what is to be said of it, and a measurement where one is due."""

    def finish(self, folder: RunFolder, display: Display, progress: Progress) -> Callable[[str], Mapping[str, Any]]:
        """The measurement after training. What it returns keeps the result and makes the summary, from what has ended the run."""

    def again(self, folder: RunFolder) -> str:
        """How to go on with it."""


def run(
    recipe: Recipe,
    ranks: Ranks,
    prepared: Callable[[], Training],
    *,
    resume: bool,
    overwrite: bool,
    display: Display | None = None,
) -> RunResult:
    """From the claim on a folder to the summary in it. The folder is looked at before anything is loaded."""
    display = (display or make_display()) if ranks.is_main else Silent()
    ranks.from_main(lambda: find_run(recipe, resume=resume, overwrite=overwrite))
    training = prepared()
    claim = claim_for(ranks, recipe, resume=resume, overwrite=overwrite)
    try:
        return _run(training, claim, display, resume)
    finally:
        claim.release()


def _run(training: Training, claim: Claim, display: Display, resume: bool) -> RunResult:
    recipe, folder = training.recipe, claim.folder
    if resume and not claim.going_on:
        display.say(f"{folder.root} holds no checkpoint yet: the run starts over from the beginning")
    if claim.going_on:
        progress = restore_checkpoint(folder, training)
        display.say(f"resumed {folder.root} after step {progress.step}")
    else:
        progress = _started(training, folder, display)
        claim.settle()
    display.begin(recipe.train.steps, recipe.train.minutes)
    try:
        with between_steps(display.say) as patience:
            stopped = _steps(training, folder, progress, display, patience)
        if stopped is None:
            save_checkpoint(folder, training, progress)
    except KeyboardInterrupt as signal:
        said = f"stopped at once; the last checkpoint is sound in {folder.root}"
        raise Interrupted(f"{said}; {training.again(folder)}") from signal
    except RewardError as error:
        raise RewardError(
            f"{error}\nstopped after step {progress.step} in {folder.root}; {training.again(folder)}"
        ) from error
    finally:
        display.end()
    if stopped is None:
        said = f"stopped after step {progress.step}; everything is saved in {folder.root}"
        raise Interrupted(f"{said}; {training.again(folder)}")
    save_checkpoint(folder, training, progress)
    try:
        return _finished(training, folder, progress, display, stopped)
    except KeyboardInterrupt as signal:
        said = f"trained, but not measured; the last checkpoint is sound in {folder.root}"
        raise Interrupted(f"{said}; {training.again(folder)}") from signal


def _started(training: Training, folder: RunFolder, display: Display) -> Progress:
    """With a first checkpoint to come back to."""
    started = time.monotonic()
    progress = training.start(folder, display)
    progress.total_seconds = time.monotonic() - started
    save_checkpoint(folder, training, progress)
    return progress


def _steps(
    training: Training, folder: RunFolder, progress: Progress, display: Display, patience: Patience
) -> str | None:
    """Steps until a limit is reached; returns which one, or None when the user asked to stop."""
    ranks, started, before = training.ranks, time.monotonic(), progress.total_seconds
    while (reason := ranks.from_main(lambda: _limit_reached(training.recipe, progress))) is None:
        stepped = training.step(progress)
        folder.append("metrics.jsonl", {"step": progress.step, **stepped.metrics})
        folder.append("timing.jsonl", {"step": progress.step, **stepped.timing, "seconds": progress.training_seconds})
        display.step(progress.step, stepped.metrics, progress.training_seconds)
        training.between(folder, display, progress, stepped.metrics)
        progress.total_seconds = before + time.monotonic() - started
        if progress.step % training.recipe.run.save_every == 0:
            save_checkpoint(folder, training, progress)
        if ranks.from_main(lambda: patience.asked):
            return None
    return reason


def _limit_reached(recipe: Recipe, progress: Progress) -> str | None:
    train = recipe.train
    if train.steps is not None and progress.step >= train.steps:
        return f"train.steps {train.steps}"
    if train.minutes is not None and progress.training_seconds >= 60 * train.minutes:
        return f"train.minutes {train.minutes:g}"
    if train.network_calls is not None and progress.network_calls >= train.network_calls:
        return f"train.network_calls {train.network_calls}"
    return None


def _finished(training: Training, folder: RunFolder, progress: Progress, display: Display, stopped: str) -> RunResult:
    started = time.monotonic()
    keep = training.finish(folder, display, progress)
    progress.total_seconds += time.monotonic() - started
    save_checkpoint(folder, training, progress)
    summary = training.ranks.from_main(lambda: _kept(folder, keep(stopped)))
    return RunResult(folder=folder.root, report=folder.root / "report.html", summary=summary)


def _kept(folder: RunFolder, summary: Mapping[str, Any]) -> Mapping[str, Any]:
    folder.write_json("summary.json", summary)
    return summary
