"""What a person sees of a search while it goes on."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from plaudit.runs.display import number
from plaudit.search.results import mean_of, scores_of
from plaudit.search.run import Watch
from plaudit.search.track import Tracker

REDRAW_S, LINE_SHARE = 0.2, 0.1


@contextmanager
def showing(plain: bool) -> Iterator[Watch]:
    """A progress bar on a terminal; elsewhere, or when asked for, a line for every tenth of the budget."""
    if plain or not sys.stderr.isatty():
        yield Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = BarColumn(bar_width=24), TextColumn("{task.fields[numbers]}", markup=False)
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield Bar(bar)


class Lines:
    """One line on standard output for every tenth of the budget."""

    def __init__(self) -> None:
        self.next = LINE_SHARE

    def __call__(self, share: float, tracker: Tracker) -> None:
        if share >= self.next:
            print(numbers(share, tracker), flush=True)
            self.next = share + LINE_SHARE


class Bar:
    """A bar that is drawn a few times a second, however often it is told."""

    def __init__(self, bar: object) -> None:
        self.bar, self.drawn = bar, 0.0
        self.task = bar.add_task("searching", total=1.0, numbers="drawing the plain samples")  # type: ignore[attr-defined]

    def __call__(self, share: float, tracker: Tracker) -> None:
        now = time.monotonic()
        if now - self.drawn >= REDRAW_S:
            self.drawn = now
            self.bar.update(self.task, completed=min(share, 1.0), numbers=numbers(share, tracker))  # type: ignore[attr-defined]


def numbers(share: float, tracker: Tracker) -> str:
    spent = f"{min(share, 1.0):4.0%} of the budget"
    if not tracker.candidates:
        return f"{spent}  nothing finished yet"
    plain, best = (number(mean_of(scores_of(kept))) for kept in (tracker.plain, tracker.best))
    return f"{spent}  {len(tracker.candidates)} candidates  plain {plain}  best {best}"
