"""Best-of-N: N plain samples of every prompt, and the best of them. The baseline of every comparison at equal cost."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from plaudit.errors import RecipeError
from plaudit.sampling.rollout import tiles
from plaudit.search.base import Task
from plaudit.search.rows import Found


@dataclass(frozen=True, kw_only=True)
class BestOfN:
    """`candidates` per prompt; None draws as many as the budget pays for, or until the time is up."""

    candidates: int | None = None

    def run(self, task: Task) -> Iterator[Found]:
        """Candidate by candidate over all prompts, so that an early end leaves every prompt with equally many."""
        count, P = self._count(task), len(task.prompts)
        if count is None:
            if task.deadline is None:
                raise RecipeError(
                    f"best_of_n: plain samples spend nothing of the budget {task.budget}, so it would never end; add network "
                    "calls or seconds, for example 200nfe"
                )
            size = P * max(task.tile // P, 1)
            for start in itertools.count(0, size):
                yield from _draw(task, start, start + size)
        else:
            yield from self._counted(task, count)

    def _counted(self, task: Task, count: int) -> Iterator[Found]:
        """Texts that end early leave room for more than was planned."""
        drawn, P = 0, len(task.prompts)
        while count > 0:
            yield from _draw(task, drawn * P, (drawn + count) * P)
            drawn += count
            count = 0 if self.candidates is not None else task.fits(task.sample_cost) or 0

    def _count(self, task: Task) -> int | None:
        fits = task.fits(task.sample_cost)
        if self.candidates is None:
            return fits
        if self.candidates < 1:
            raise RecipeError(f"best_of_n: {self.candidates} candidates; draw at least 1")
        if fits is not None and self.candidates > fits:
            raise RecipeError(
                f"best_of_n: the budget {task.budget} pays for {fits} of {self.candidates} candidates; give it more, or leave "
                "the option out"
            )
        return self.candidates


def _draw(task: Task, start: int, stop: int) -> Iterator[Found]:
    """Samples number `start` to `stop`, prompts turning fastest, in batches of about a tile."""
    number, P = torch.arange(start, stop), len(task.prompts)
    for rows in tiles(stop - start, task.tile):
        yield task.sample(number[rows] % P, number[rows] // P)


@dataclass(frozen=True, kw_only=True)
class Plain:
    """No search: one plain sample of every prompt."""

    def run(self, task: Task) -> Iterator[Found]:
        yield task.plain()
