"""Running a method on a task: time, interruption, progress, and what is kept."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from plaudit.errors import RecipeError, RewardError, RunError
from plaudit.search.base import Method, Task, TimeUp
from plaudit.search.budget import KINDS
from plaudit.search.options import options_of
from plaudit.search.results import SearchResult
from plaudit.search.track import Tracker

Watch = Callable[[float, Tracker], None]  # share of the budget that is spent, 0 to 1, and what has been found


def run_search(
    task: Task,
    method: Method,
    *,
    name: str = "custom",
    keep_all: bool = False,
    watch: Watch = lambda share, tracker: None,
    about: Mapping[str, Any] | None = None,
) -> SearchResult:
    """Search until the method is done, the budget is spent or the user stops; what has been found by then is the result.

    Without a reward there is nothing to choose by, and the plain samples are the result.
    """
    _check_budget(task)
    tracker, clock = Tracker(len(task.prompts), keep_all), task.ledger.clock
    started = clock()
    limit = None if task.budget.seconds is None else task.budget.seconds * len(task.prompts)
    task.deadline = None if limit is None else started + limit
    task.watch = lambda: watch(max(task.ledger.share(), (clock() - started) / limit if limit else 0.0), tracker)
    stopped = "finished"
    try:
        with torch.no_grad(), interruptible():
            for found in method.run(task) if task.suite is not None else iter([task.plain()]):
                tracker.add(found)
                if task.only_failed and all(tracker.plain):
                    raise _unscored(task, tracker)  # a reward that meets an error on every plain sample is broken
                task.watch()
    except TimeUp:
        stopped = "time"
    except KeyboardInterrupt:
        stopped = "interrupted"
    finally:
        task.deadline, task.watch = None, lambda: None
    if stopped != "interrupted" and (lacking := [p for p, plain in enumerate(tracker.plain) if plain is None]):
        raise RunError(
            f"method {name} yielded no plain sample for prompt {lacking[0]}; a method yields `task.plain()` before all else"
        )
    if (
        stopped != "interrupted"
        and task.suite is not None
        and not any(one.score == one.score for one in tracker.candidates)
    ):
        raise _unscored(task, tracker)
    return SearchResult(
        prompts=task.prompts,
        method=name,
        options=options_of(method),
        budget=task.budget,
        seed=task.seed,
        stopped=stopped,
        seconds=clock() - started,
        ledger=task.ledger,
        candidates=tuple(tracker.candidates),
        best=tuple(tracker.best),
        worst=tuple(tracker.worst),
        plain=tuple(tracker.plain),
        kept=tuple(tracker.kept),
        first_missing=task.first_missing,
        about=about or {},
    )


def _unscored(task: Task, tracker: Tracker) -> RewardError:
    return RewardError(
        f"none of {len(tracker.candidates)} candidates of {len(tracker.plain)} prompts has a score ({task.first_missing}); mend "
        "the reward, or choose prompts that it can judge"
    )


def _check_budget(task: Task) -> None:
    """Every search begins with a plain sample."""
    if task.affords(task.sample_cost):
        return
    cost = task.sample_cost
    short = {kind: limit for kind, limit in task.budget.limits().items() if getattr(cost, kind) > limit}
    kind = next(kind for kind in KINDS if kind in short)
    raise RecipeError(
        f"budget {task.budget}: one plain sample costs {getattr(cost, kind)} {kind} and {short[kind]} are allowed; raise the "
        f"budget, or lower {task.shorter}"
    )


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM ends the search like Ctrl-C does, so that what has been found is written in either case."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach only the main thread
        return

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
