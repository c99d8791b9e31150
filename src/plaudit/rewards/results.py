"""What a reward may return, made into scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from plaudit.errors import RewardError
from plaudit.rewards.base import Card, Score, Status, missing


def as_scores(name: str, result: Any, expected: int) -> list[Score]:
    if isinstance(result, str | bytes | Mapping):
        raise RewardError(f"rewards.{name} returned {result!r}; return a list with one score per output")
    try:
        values = list(result.tolist() if isinstance(result, Tensor) else result)
    except TypeError as error:
        raise RewardError(f"rewards.{name} returned {result!r}; return a list with one score per output") from error
    if len(values) != expected:
        raise RewardError(
            f"rewards.{name} returned {len(values)} scores for {expected} outputs; return one per output, None where there "
            "is none"
        )
    return [_as_score(name, value) for value in values]


def _as_score(name: str, value: Any) -> Score:
    if isinstance(value, Score):
        return value
    if value is None:
        return missing(Status.NOT_APPLICABLE)
    try:
        if isinstance(value, str | bytes):
            raise TypeError("a text")
        number = float(value)
    except (TypeError, ValueError) as error:
        raise RewardError(f"rewards.{name} returned {value!r}; a score is a number, None or a plaudit.Score") from error
    if not math.isfinite(number):
        return missing(Status.ERRORED, f"the reward returned {number}")
    return Score(value=number)


def in_range(score: Score, card: Card) -> Score:
    """A number that the card says cannot be is an error, not a score."""
    slack = 1e-6 * max(1.0, abs(score.value)) if score.status is Status.OK else 0.0
    if score.status is not Status.OK or card.low - slack <= score.value <= card.high + slack:
        return score
    return missing(Status.ERRORED, f"{score.value:g} is outside {card.low:g}..{card.high:g}, the range on the card")
