"""What a reward may return, made into scores."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

from plaudit.errors import RewardError
from plaudit.recipe.rewards import key_of
from plaudit.rewards.base import Card, Score, Status, missing

TEXTS = (str, bytes, bytearray, memoryview)


def as_scores(name: str, result: Any, expected: int) -> list[Score]:
    """Scores in the order of the outputs. An iterator is asked for one more than there are outputs and no further."""
    values = result.tolist() if hasattr(result, "tolist") else result
    if isinstance(result, TEXTS) or not isinstance(values, Sequence | Iterator):  # sets and views have no order
        raise RewardError(f"{key_of(name)} returned {_shown(result)}; return a list with one score per output")
    found = list(itertools.islice(values, expected + 1))
    if len(found) != expected:
        count = len(values) if isinstance(values, Sequence) else f"more than {expected}"
        raise RewardError(
            f"{key_of(name)} returned {count if len(found) > expected else len(found)} scores for {expected} outputs; return "
            "one per output, None where there is none"
        )
    return [_as_score(name, value) for value in found]


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else text[:97] + "..."


def _as_score(name: str, value: Any) -> Score:
    if isinstance(value, Score):
        return value
    if value is None:
        return missing(Status.NOT_APPLICABLE)
    try:
        if isinstance(value, TEXTS):
            raise TypeError("a text")
        number = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise RewardError(
            f"{key_of(name)} returned {_shown(value)}; a score is a number, None or a plaudit.Score"
        ) from error
    if not math.isfinite(number):
        return missing(Status.ERRORED, f"the reward returned {number}")
    return Score(value=number)


def in_range(score: Score, card: Card) -> Score:
    """A number that the card says cannot be is an error, not a score."""
    slack = 1e-6 * max(1.0, abs(score.value)) if score.status is Status.OK else 0.0
    if score.status is not Status.OK or card.low - slack <= score.value <= card.high + slack:
        return score
    return missing(Status.ERRORED, f"{score.value:g} is outside {card.low:g}..{card.high:g}, the range on the card")
