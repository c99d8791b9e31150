"""What a search has spent: counts and seconds of every kind of work, per prompt.

Only the operations of a task write here, so that no method can forget to count.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor

from plaudit.search.budget import KINDS, Budget, BudgetExceeded, Cost


class Ledger:
    """Counts `[P]` and seconds `[P]` of every kind, for P prompts under a budget that holds for each of them."""

    def __init__(self, prompts: int, budget: Budget, clock: Callable[[], float] = time.perf_counter) -> None:
        self.budget, self.clock = budget, clock
        self.counts = {kind: np.zeros(prompts, dtype=np.int64) for kind in KINDS}
        self.seconds = {kind: np.zeros(prompts) for kind in KINDS}

    @property
    def prompts(self) -> int:
        return len(self.counts[KINDS[0]])

    def require(self, kind: str, prompt: Tensor, each: int = 1) -> None:
        """Raise before any of the work on rows of the prompts `[B]` is done, if the budget does not pay for all of it."""
        limit = self.budget.limits().get(kind)
        if limit is None or not each:
            return
        after = self.counts[kind] + each * self._rows(prompt)
        if (after > limit).any():
            at = int((after > limit).argmax())
            raise BudgetExceeded(
                f"prompt {at}: {after[at]} {kind} would exceed the budget's {limit} ({self.counts[kind][at]} are spent); "
                "the method has to ask `fits` before it works"
            )

    @contextmanager
    def spending(self, kind: str, prompt: Tensor, each: int = 1) -> Iterator[None]:
        """Around work on rows of the prompts `[B]`, `each` units a row: counted when it begins, timed when it ends. Rows
        share the seconds equally."""
        self.require(kind, prompt, each)
        rows = self._rows(prompt)
        self.counts[kind] += each * rows
        started = self.clock()
        try:
            yield
        finally:
            self.seconds[kind] += (self.clock() - started) * rows / max(len(prompt), 1)

    def _rows(self, prompt: Tensor) -> np.ndarray:
        return np.bincount(prompt.numpy(), minlength=self.prompts)

    # --- reading -----------------------------------------------------------------------------------------------------

    def spent(self, prompt: int) -> Cost:
        return Cost(**{kind: int(self.counts[kind][prompt]) for kind in KINDS})

    @property
    def total(self) -> Cost:
        """Of all prompts together."""
        return Cost(**{kind: int(self.counts[kind].sum()) for kind in KINDS})

    def total_seconds(self) -> Mapping[str, float]:
        return {kind: float(self.seconds[kind].sum()) for kind in KINDS}

    def fits(self, cost: Cost) -> int | None:
        """How often every prompt can still pay for `cost`; None where no limit on counts stands against it."""
        limits = self.budget.limits()
        room = [
            max(int(limits[kind] - self.counts[kind].max()), 0) // each
            for kind in limits
            if (each := getattr(cost, kind))
        ]
        return min(room) if room else None

    def share(self) -> float:
        """How much of the tightest limit on counts is spent, 0 to 1, over all prompts."""
        limits = self.budget.limits()
        return max((self.counts[kind].sum() / (limit * self.prompts) for kind, limit in limits.items()), default=0.0)

    def to_json(self) -> dict[str, Any]:
        return {
            "total": {kind: int(self.counts[kind].sum()) for kind in KINDS},
            "seconds": {kind: round(value, 6) for kind, value in self.total_seconds().items()},
            "per_prompt": {kind: self.counts[kind].tolist() for kind in KINDS},
            "seconds_per_prompt": {kind: [round(s, 6) for s in self.seconds[kind].tolist()] for kind in KINDS},
        }
