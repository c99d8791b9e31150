"""HAPO: a right answer is paid for being shorter than the shortest right one ever seen for its prompt."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from plaudit.data.prompt import Prompt
from plaudit.errors import RecipeError, RewardError
from plaudit.rewards.base import Card, Score
from plaudit.rewards.calling.request import Request
from plaudit.rewards.rules.lengths import scored
from plaudit.rewards.rules.outcomes import Outcome, OutcomeReward, positive


def against_history(length: int, shortest: int) -> float:
    """f(l, h) = cos(min(pi/2 * l/h, pi)): 1 at 0, 0 at l = h, -1 from 2h on. A history of 0 counts as 1."""
    return math.cos(min(math.pi / 2 * length / max(shortest, 1), math.pi))


def length_term(outcome: Outcome, shortest: int | None, floor: float) -> float:
    """Nothing at the first visit; at least `floor` for a right output; a wrong one can only lose by its length."""
    if shortest is None:
        return 0.0
    f = against_history(outcome.length, shortest)
    return max(f, floor) if outcome.correct else min(f, 0.0)


def prompt_key(prompt: Prompt) -> str:
    """Of fixed size whatever the prompt's; ids may repeat between files, so the text counts too."""
    return hashlib.blake2b(f"{prompt.id}\0{prompt.text}".encode(), digest_size=12).hexdigest()


class ShorterThanBefore(OutcomeReward):
    """A call is scored with the history before it, which then takes the call's shortest right output of each prompt, so
    the order of samples does not matter. It remembers `capacity` prompts, some 100 bytes each; past that, those that
    were not solved for the longest time are forgotten, and their next visit is a first one.
    """

    card = Card(
        summary="1 where right, plus a term for being shorter than the prompt's shortest right output so far.",
        kind="text",
        low=-1,
        high=2,
        batch_invariant=False,
        systems=("S125",),
        cost_ms=0.05,
    )

    def __init__(
        self,
        weight: float = 1.0,
        floor: float = -0.7,
        unit: str = "tokens",
        capacity: int = 100_000,
        correct: Mapping[str, Any] | None = None,
        threshold: float = 1.0,
    ) -> None:
        positive("shorter_than_before", "weight", weight)
        positive("shorter_than_before", "capacity", capacity)
        if not -1 <= floor <= 0:
            raise RecipeError(f"reward shorter_than_before: `floor` {floor:g}; allowed: -1 to 0")
        super().__init__("shorter_than_before", unit, correct, threshold)
        self.card = replace(self.card, low=min(-weight, 1 + weight * floor), high=1 + weight)
        self.weight, self.floor, self.capacity = weight, floor, capacity
        self.shortest: dict[str, int] = {}

    def worth(self, outcomes: Sequence[Outcome | Score], request: Request) -> list[Score]:
        keys = [prompt_key(prompt) for prompt in request.prompts]
        scores = [
            o if isinstance(o, Score) else self._score(o, self.shortest.get(key))
            for o, key in zip(outcomes, keys, strict=True)
        ]
        self._remember(outcomes, keys)
        return scores

    def _score(self, outcome: Outcome, shortest: int | None) -> Score:
        term = length_term(outcome, shortest, self.floor)
        return scored(float(outcome.correct) + self.weight * term, outcome, length_term=term)

    def _remember(self, outcomes: Sequence[Outcome | Score], keys: Sequence[str]) -> None:
        new: dict[str, int] = {}
        for outcome, key in zip(outcomes, keys, strict=True):
            if isinstance(outcome, Outcome) and outcome.correct:
                new[key] = min(outcome.length, new.get(key, outcome.length))
        for key in sorted(new):  # in an order of their own, so that what is forgotten does not hang on the batch's
            before = self.shortest.pop(key, new[key])
            self.shortest[key] = min(before, new[key])
        for key in list(self.shortest)[: max(0, len(self.shortest) - self.capacity)]:
            del self.shortest[key]

    def state(self) -> dict[str, Any]:
        return {"unit": self.unit, "shortest": [list(item) for item in self.shortest.items()]}  # a list keeps the order

    def load_state(self, state: Mapping[str, Any]) -> None:
        if state["unit"] != self.unit:
            raise RewardError(
                f"reward shorter_than_before: its history counts {state['unit']!r}, the recipe's `unit` is {self.unit!r}; "
                "resume with the same unit or start anew"
            )
        self.shortest = {str(key): int(length) for key, length in state["shortest"]}
