"""What every search works on, whatever generates, and what a method is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from plaudit.data.prompt import Prompt
from plaudit.errors import RecipeError
from plaudit.rewards.calling.request import make_request
from plaudit.rewards.gradients import differentiable_total
from plaudit.rewards.suite import Suite
from plaudit.sampling.noise import SampleKey, gaussian
from plaudit.search.budget import Budget, Cost
from plaudit.search.ledger import Ledger
from plaudit.search.rows import Found

PLAIN_STEP = -1  # `plaudit sample` and evaluations draw with this step number too, so candidate 0 is what they draw
REPEATED = 1 << 20  # a prompt that is asked for again counts its candidates from here


class TimeUp(Exception):
    """The wall clock's budget is spent. The runner ends the search with what has been found."""


class Method(Protocol):
    """A frozen dataclass of options that searches."""

    def run(self, task: Any) -> Iterator[Found]:
        """Finished, scored candidates as they come, the plain samples (candidate 0 of every prompt) first."""
        ...


class Task:
    """Prompts, reward, budget and ledger. A model family adds how a whole output is drawn: `sample` and `sample_cost`."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        suite: Suite | None,
        budget: Budget,
        *,
        tile: int = 64,
        seed: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if not prompts:
            raise RecipeError("there are no prompts to search for; give at least one")
        if suite is not None:
            check_comparable(suite)
        self.prompts, self.suite, self.budget = tuple(prompts), suite, budget
        self.tile, self.seed = tile, seed
        self.ledger = Ledger(len(prompts), budget, clock)
        self.deadline: float | None = None
        self.watch: Callable[[], None] = lambda: None
        self.first_missing: str | None = None  # why the first score that is missing is
        self.only_failed: bool | None = None  # whether every output so far met an error in its reward
        self._occurrence = _occurrences(prompts)

    def sample(self, prompt: Tensor, candidate: Tensor) -> Found:
        """Whole plain draws, scored. Those of candidate 0 are drawn even when the time is up."""
        raise NotImplementedError

    shorter = "the number of sampling steps"  # what makes a plain sample cheaper

    @property
    def sample_cost(self) -> Cost:
        """The most that one row of `sample` costs."""
        raise NotImplementedError

    def plain(self) -> Found:
        """Candidate 0 of every prompt: what the model draws without a search."""
        every = torch.arange(len(self.prompts))
        return self.sample(every, torch.zeros_like(every))

    # --- reward ------------------------------------------------------------------------------------------------------

    @property
    def calls_per_score(self) -> int:
        """Every reward of the suite judges every output."""
        return len(self.suite.rewards) if self.suite is not None else 0

    def score(self, outputs: Any, prompt: Tensor, ids: Sequence[Sequence[int]] | None = None) -> Tensor:
        """Totals `[B]` in float64 of finished outputs or previews, NaN where one is missing; `ids` are those of texts."""
        if self.suite is None:
            return torch.full((len(prompt),), torch.nan, dtype=torch.float64)
        with self.spending("reward_calls", prompt, self.calls_per_score):
            scored = self.suite(self.prompts_of(prompt), outputs, completion_ids=ids)
        if self.first_missing is None and scored.total.isnan().any():
            self.first_missing = scored.first_missing()
        self.only_failed = scored.failed() and self.only_failed is not False
        return scored.total

    def differentiable_score(self, pictures: Tensor, prompt: Tensor) -> Tensor:
        """Totals `[B]` with a graph back to the pictures; every reward in the formula must be differentiable."""
        if self.suite is None:
            raise RecipeError("this method follows the reward's gradient, and there is no reward; give one")
        with self.spending("reward_calls", prompt, self.calls_per_score):
            return differentiable_total(self.suite, make_request(self.prompts_of(prompt), pictures, prompt))

    # --- budget ------------------------------------------------------------------------------------------------------

    def fits(self, cost: Cost) -> int | None:
        """How often every prompt can still pay for `cost`; None if only time is limited: go on until `TimeUp`."""
        return self.ledger.fits(cost)

    def affords(self, cost: Cost) -> bool:
        fits = self.fits(cost)
        return fits is None or fits > 0

    @contextmanager
    def spending(self, kind: str, prompt: Tensor, each: int = 1) -> Iterator[None]:
        """Around work of a task's own operation. Raises TimeUp or BudgetExceeded before it begins."""
        if self.deadline is not None and self.ledger.clock() >= self.deadline:
            raise TimeUp
        with self.ledger.spending(kind, prompt, each):
            yield
        self.watch()

    @contextmanager
    def untimed(self, when: bool = True) -> Iterator[None]:
        """Work that is done even after the deadline."""
        before, self.deadline = self.deadline, None if when else self.deadline
        try:
            yield
        finally:
            self.deadline = before

    # --- randomness --------------------------------------------------------------------------------------------------

    def keys(self, prompt: Tensor, candidate: Tensor) -> list[SampleKey]:
        """Keys of the rows: index `candidate` of the prompt, as `plaudit sample` numbers its samples."""
        return [
            SampleKey(seed=self.seed, step=PLAIN_STEP, prompt=self.prompts[p].id, index=self._occurrence[p] + c)
            for p, c in zip(prompt.tolist(), candidate.tolist(), strict=True)
        ]

    def noise(self, prompt: Tensor, candidate: Tensor, stream: str, shape: Sequence[int], decision: int = 0) -> Tensor:
        """Standard normal `[B, *shape]`; a stream and decision of its own is new noise."""
        return gaussian(self.keys(prompt, candidate), stream, shape, decision)

    def prompts_of(self, prompt: Tensor) -> list[Prompt]:
        return [self.prompts[p] for p in prompt.tolist()]


def _occurrences(prompts: Sequence[Prompt]) -> list[int]:
    seen: dict[str, int] = {}
    starts = []
    for prompt in prompts:
        starts.append(REPEATED * seen.get(prompt.id, 0))
        seen[prompt.id] = seen.get(prompt.id, 0) + 1
    return starts


def check_comparable(suite: Suite) -> None:
    """Scores of candidates that are judged at different times must be comparable, and have one total."""
    if suite.formula is None:
        names = ", ".join(reward.name for reward in suite.rewards)
        raise RecipeError(f"a search needs one number, and {names} stand side by side; say how to combine them")
    if suite.uncalibrated:
        raise RecipeError(
            f"rewards.{suite.uncalibrated[0].name}.calibrate has still to be measured on outputs; write its numbers into the "
            "recipe (`mean` and `std`, or `low` and `high`), or search a run folder, which has them"
        )
    if (what := suite.in_company) is not None:
        raise RecipeError(
            f"{what} compares the outputs of a batch with each other or with earlier ones, so a candidate's score would "
            "depend on its company; search with rewards and operators that look at each output alone, such as clip or rescale"
        )
