"""What a reward may return, made into scores."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

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
        return _checked(value)
    if value is None:
        return missing(Status.NOT_APPLICABLE)
    try:
        number = _number(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise RewardError(
            f"{key_of(name)} returned {_shown(value)}; a score is a number, None or a plaudit.Score"
        ) from error
    if not math.isfinite(number):
        return missing(Status.ERRORED, f"the reward returned {number}")
    return Score(value=number)


def _number(value: Any) -> float:
    if isinstance(value, TEXTS):
        raise TypeError("a text")
    return float(value)


def _checked(score: Score) -> Score:
    """The score with plain numbers and text in it, as files and answers hold them; one that has other things is an error."""
    changed = {}
    for part, (convert, allowed) in PARTS.items():
        given = getattr(score, part)
        try:
            found = convert(given)
        except (AttributeError, OverflowError, RuntimeError, TypeError, ValueError):
            return missing(Status.ERRORED, f"the reward returned a Score with {part}={_shown(given)}; it is {allowed}")
        if found is not given:
            changed[part] = found
    return replace(score, **changed) if changed else score


def _components(given: Any) -> Any:
    """What is None is missing."""
    if given is None:
        return None
    found = {name: math.nan if value is None else _number(value) for name, value in given.items()}
    if not all(isinstance(name, str) for name in found):
        raise TypeError("a name that is no text")
    return given if all(found[name] is given[name] for name in found) else found


def _dense(given: Any) -> Tensor | None:
    if given is None:
        return None
    if not isinstance(given, Tensor) or given.is_complex():
        raise TypeError("no tensor of real numbers")
    given.detach().double().cpu().numpy()  # raises for what has no values, or not one a place
    return given


def _note(given: Any) -> str:
    if not isinstance(given, str):
        raise TypeError("no text")
    return given


PARTS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "value": (_number, "a number"),
    "status": (Status, f"one of {', '.join(Status)}"),
    "components": (_components, "None or numbers by name"),
    "sigma": (lambda given: None if given is None else _number(given), "None or a number"),
    "dense": (_dense, "None or a tensor of real numbers"),
    "note": (_note, "a text"),
}


def in_range(score: Score, card: Card) -> Score:
    """A number that the card says cannot be is an error, not a score."""
    slack = 1e-6 * max(1.0, abs(score.value)) if score.status is Status.OK else 0.0
    if score.status is not Status.OK or card.low - slack <= score.value <= card.high + slack:
        return score
    return missing(Status.ERRORED, f"{score.value:g} is outside {card.low:g}..{card.high:g}, the range on the card")
