"""What length rewards stand on: how long an output is, in a named unit, and whether it is right.

Neither is guessed. A unit is `tokens` (the ids of the column `completion_ids`), `words`, `characters` or a transformers
tokenizer; being right comes from the column `correct` or from a reward. An output without them has no score.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from plaudit.errors import RecipeError, RewardError
from plaudit.optional import require
from plaudit.rewards.base import Card, Score, Status, missing
from plaudit.rewards.calling.call import Caller
from plaudit.rewards.calling.request import Request

Column = Sequence[Any] | None
ROUNDING = 1e-6
"""By how much a score may miss the threshold of being right: 0.9999999 is 1."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    correct: bool
    length: int


@functools.cache
def load_tokenizer(name: str, who: str) -> Any:
    return require("transformers", extra="transformers", who=f"reward {who}").AutoTokenizer.from_pretrained(name)


def count(texts: Sequence[str], unit: str, who: str, completion_ids: Column = None) -> list[int | Score]:
    """Lengths in `unit`; a row without the ids that `tokens` counts is missing."""
    if unit == "characters":
        return [len(text) for text in texts]
    if unit == "words":
        return [len(text.split()) for text in texts]
    if unit == "tokens":
        if completion_ids is None:
            raise RewardError(
                f"reward {who} counts tokens, but no prompt carries the column `completion_ids`; give it, or set "
                "`unit` to words, characters or a tokenizer's name or folder"
            )
        return [
            missing(Status.NOT_APPLICABLE, "no completion_ids") if ids is None else len(ids) for ids in completion_ids
        ]
    tokenizer = load_tokenizer(unit, who)
    return [len(tokenizer(text, add_special_tokens=False).input_ids) for text in texts]


def inner_caller(who: str, spec: Mapping[str, Any]) -> Caller:
    """The reward that another reward asks, from its `type` and `arguments`."""
    from plaudit.rewards.load import find_reward  # at call time: load imports the table, which names these modules

    unknown = set(spec) - {"type", "arguments"}
    if unknown or "type" not in spec:
        raise RecipeError(f"reward {who}: {dict(spec)!r}; give a `type` and optional `arguments`, nothing else")
    return Caller(who, find_reward(who, spec["type"], spec.get("arguments", {})))


class Rightness:
    """Whether outputs are right: a score of at least `threshold`, from the column `correct` or from the inner `reward`."""

    def __init__(
        self, who: str, reward: Mapping[str, Any] | None, threshold: float = 1.0, argument: str = "correct"
    ) -> None:
        self.who, self.threshold = who, threshold
        self.caller = None if reward is None else inner_caller(f"{who}.{argument}", reward)
        self.inner_rewards = () if self.caller is None else (self.caller,)
        if self.caller is not None and (card := self.caller.card) is not None and not card.low < threshold <= card.high:
            raise RecipeError(
                f"reward {who}: `threshold` {threshold:g} is outside the scale of {reward!r}, {card.low:g} to {card.high:g}; "
                "name the least score of a right output"
            )

    def __call__(self, request: Request, column: Column = None) -> list[bool | Score]:
        if self.caller is not None:
            return [self._from_score(score) for score in self.caller(request)]
        if column is None:
            raise RewardError(
                f"reward {self.who} needs to know what is right: give the column `correct`, or the argument `correct` with "
                "a reward, such as {type: boxed_answer}"
            )
        return [self._from_value(value) for value in column]

    def _from_score(self, score: Score) -> bool | Score:
        return self._reaches(score.value) if score.status is Status.OK else missing(score.status, score.note)

    def _from_value(self, value: Any) -> bool | Score:
        known = value is not None and math.isfinite(value)
        return self._reaches(value) if known else missing(Status.NOT_APPLICABLE, "`correct` is not known")

    def _reaches(self, value: float) -> bool:
        return float(value) >= self.threshold - ROUNDING


class OutcomeReward:
    """A reward of rightness and length: subclasses say what outcomes are worth.

    `unit` and `correct`, `threshold` are those of this module; without `correct`, the column of that name is read.
    """

    card: Card

    def __init__(self, who: str, unit: str, correct: Mapping[str, Any] | None, threshold: float) -> None:
        self.who, self.unit = who, unit
        self.right = Rightness(who, correct, threshold)
        self.inner_rewards = self.right.inner_rewards
        self.card = inheriting(type(self).card, self.right)

    def __call__(
        self,
        prompts: Sequence[str],
        outputs: Sequence[str],
        request: Request,
        completion_ids: Column = None,
        correct: Column = None,
    ) -> list[Score]:
        lengths = count(outputs, self.unit, self.who, completion_ids)
        rights = self.right(request, correct)
        outcomes = [_outcome(right, length) for right, length in zip(rights, lengths, strict=True)]
        return self.worth(outcomes, request)

    def worth(self, outcomes: Sequence[Outcome | Score], request: Request) -> list[Score]:
        raise NotImplementedError


def _outcome(right: bool | Score, length: int | Score) -> Outcome | Score:
    if isinstance(right, Score):
        return right
    return length if isinstance(length, Score) else Outcome(correct=right, length=length)


def inheriting(card: Card, right: Rightness) -> Card:
    """The card of a reward that asks another: the batch matters to both or to none."""
    whole = right.caller is not None and right.caller.whole_batch
    return replace(card, batch_invariant=card.batch_invariant and not whole)


def positive(who: str, name: str, value: float) -> None:
    if not value > 0:
        raise RecipeError(f"reward {who}: `{name}` {value:g}; it must be more than 0")
