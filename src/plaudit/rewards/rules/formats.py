"""Rewards for the form of an answer, whatever it says."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from plaudit.errors import RewardError
from plaudit.rewards.base import Card, Score, card
from plaudit.rewards.rules.answers import MAX_EXPRESSION, ask_algebra, boxed

THINK_ANSWER = ("think", "answer")


@card(kind="text", low=0, high=1, verdict=True, cost_ms=0.01)
def tags_strict(prompts: Sequence[str], outputs: Sequence[str], tags: Sequence[str] = THINK_ANSWER) -> list[float]:
    """1 where the text is the tagged parts, each once and in order, with only white space around them."""
    return [float(all(tag_conditions(output, tags))) for output in outputs]


@card(kind="text", low=0, high=1, cost_ms=0.01)
def tags_soft(prompts: Sequence[str], outputs: Sequence[str], tags: Sequence[str] = THINK_ANSWER) -> list[float]:
    """The fraction of the strict conditions met: each mark once, all in order, nothing outside; 1 where strict is."""
    return [sum(met) / len(met) for met in (tag_conditions(output, tags) for output in outputs)]


def tag_conditions(text: str, tags: Sequence[str]) -> list[bool]:
    """Each opening and closing mark occurs once, then (only where all do) their order, then nothing outside."""
    marks = [mark for tag in tags for mark in (f"<{tag}>", f"</{tag}>")]
    once = [text.count(mark) == 1 for mark in marks]
    places = [text.find(mark) for mark in marks]
    ordered = all(once) and places == sorted(places)
    return [*once, ordered, ordered and not _outside(text, tags).strip()]


def _outside(text: str, tags: Sequence[str]) -> str:
    for tag in tags:
        before, _, rest = text.partition(f"<{tag}>")
        text = before + rest.partition(f"</{tag}>")[2]
    return text


class RegexFormat:
    """1 where the whole text, without the white space around it, matches a regular expression.

    A prompt's fact `pattern` comes before the reward's own; a prompt without either is not judged.
    """

    card = Card(
        summary="1 where the whole text matches a regular expression",
        kind="text",
        low=0,
        high=1,
        verdict=True,
        cost_ms=0.01,
    )

    def __init__(self, pattern: str | None = None) -> None:
        self.default = pattern
        if pattern is not None:
            _compiled(pattern)

    def __call__(
        self, prompts: Sequence[str], outputs: Sequence[str], pattern: Sequence[str | None] | None = None
    ) -> list[float | None]:
        own = pattern if pattern is not None else [None] * len(outputs)
        return [self._one(output, one or self.default) for output, one in zip(outputs, own, strict=True)]

    def _one(self, output: str, pattern: str | None) -> float | None:
        return None if pattern is None else float(_compiled(pattern).fullmatch(output.strip()) is not None)


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise RewardError(f"regex_format: {pattern!r} is not a regular expression: {error}") from error


JsonType = Literal["string", "integer", "number", "boolean", "array", "object"]
JSON_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}


class JsonFormat:
    """The fraction of required keys with a value of their type; 0 unless the whole text is one JSON object.

    A code fence around it is allowed. Without required keys, any object is 1.
    """

    card = Card(
        summary="the fraction of required keys and types in a text that is a JSON object",
        kind="text",
        low=0,
        high=1,
        cost_ms=0.02,
    )

    def __init__(self, required: Mapping[str, JsonType] | None = None) -> None:
        self.required = dict(required or {})

    def __call__(self, prompts: Sequence[str], outputs: Sequence[str]) -> list[float]:
        return [self._one(output) for output in outputs]

    def _one(self, output: str) -> float:
        try:
            found = json.loads(_unfenced(output.strip()), parse_constant=_refused)
        except (ValueError, RecursionError):
            return 0.0
        if not isinstance(found, dict):
            return 0.0
        met = [key in found and _is(found[key], kind) for key, kind in self.required.items()]
        return sum(met) / len(met) if met else 1.0


def _unfenced(text: str) -> str:
    """What stands between the lines of a code fence around everything."""
    opening, _, inside = text.partition("\n")
    return inside.removesuffix("```") if opening.strip() in ("```", "```json") and inside.endswith("```") else text


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, JSON_TYPES[kind])


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


@card(kind="text", low=0, high=1, verdict=True, extra="math", systems=("S126",), cost_ms=5)
def boxed_format(prompts: Sequence[str], outputs: Sequence[str]) -> list[float | Score]:
    """1 where the last boxed expression is one that computer algebra can read."""
    return [_readable(boxed(output)) for output in outputs]


def _readable(expression: str | None) -> float | Score:
    if not expression or len(expression) > MAX_EXPRESSION:
        return 0.0
    found = ask_algebra("boxed_format", "parses", expression)
    return found if isinstance(found, Score) else float(found)
