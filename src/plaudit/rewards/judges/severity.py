"""A judge's list of visual differences, summed by severity."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from plaudit.dotted import import_dotted
from plaudit.rewards.base import Card, Score, Status, missing

BUDGET = 50.0
BLANK = 0.99  # a picture that is nowhere darker is an empty page

Judge = Callable[..., str]


@dataclass(frozen=True, kw_only=True)
class VisualError:
    category: str
    severity: int
    description: str = ""


class VisualDifferences:
    """1 + max(0, 1 - summed severities / 50) where a picture is compared with `target`; 0 for an empty page.

    `judge(target, picture, prompt)` answers with JSON: `{"errors": [{"category", "severity" 1-3, ...}]}`. An answer that
    cannot be read is missing; the released code put severity 25 in its place.
    """

    card = Card(
        summary="summed severities of the differences that a judge sees between picture and target",
        kind="image",
        low=0,
        high=2,
        systems=("S013",),
        cost_ms=3,
    )

    def __init__(self, judge: Judge | str, budget: float = BUDGET) -> None:
        self.judge, self.budget = as_judge(judge, "visual_differences"), budget

    def __call__(self, prompts: Sequence[str], outputs: Tensor, target: Sequence[Tensor | None]) -> list[Score]:
        return [self._score(*row) for row in zip(prompts, outputs, target, strict=True)]

    def _score(self, prompt: str, picture: Tensor, target: Tensor | None) -> Score:
        if target is None:
            return missing(Status.NOT_APPLICABLE, "the prompt has no `target` picture")
        if picture.min() > BLANK:
            return Score(value=0.0, note="an empty page")
        answer = self.judge(target, picture, prompt)
        errors = parse_errors(answer)
        if errors is None:
            return missing(Status.PARSE_FAILED, f"the judge's answer lists no errors: {answer[:120]!r}")
        total = sum(error.severity for error in errors)
        return Score(
            value=severity_score(total, self.budget),
            components={"severity": float(total), "errors": float(len(errors))},
        )


def as_judge(judge: Judge | str, who: str) -> Judge:
    """A judge is a callable or the dotted path of one."""
    return import_dotted(judge, f"rewards.{who}.arguments.judge") if isinstance(judge, str) else judge


def severity_score(total: float, budget: float = BUDGET) -> float:
    return 1 + min(max(1 - total / budget, 0.0), 1.0)


def parse_errors(text: str) -> list[VisualError] | None:
    """The errors that a judge lists; None where they cannot be read, or one has no severity of 1, 2 or 3."""
    found = find_json(text, "errors")
    listed = found.get("errors") if found is not None else None
    if not isinstance(listed, list):
        return None
    errors = [_error(item) for item in listed]
    return None if None in errors else [error for error in errors if error is not None]


def _error(item: Any) -> VisualError | None:
    severity = str(item.get("severity", "")).strip() if isinstance(item, dict) else ""
    if severity not in ("1", "2", "3"):
        return None
    return VisualError(
        category=str(item.get("category", "")), severity=int(severity), description=str(item.get("description", ""))
    )


def find_json(text: str, key: str) -> dict[str, Any] | None:
    """The last JSON object with this key that stands by itself in a judge's answer, after its thoughts.

    Read through code fences, prose around, commas before a closing bracket and Python's quotes.
    """
    spoken = text.rpartition("</think>")[2]
    found, at = None, 0
    while (start := spoken.find("{", at)) >= 0:
        end = _closing(spoken, start)
        value = _read(spoken[start:end]) if end else None
        if isinstance(value, dict) and key in value:
            found, at = value, end
        else:
            at = start + 1
    return found


def _closing(text: str, start: int) -> int | None:
    """Where the object that opens at `start` has ended; braces in quotes do not count."""
    depth, quote, at = 0, "", start
    while at < len(text):
        letter = text[at]
        if letter == "\\":
            at += 1
        elif quote:
            quote = "" if letter == quote else quote
        elif letter == '"':
            quote = letter
        elif letter in "{}":
            depth += 1 if letter == "{" else -1
            if depth == 0:
                return at + 1
        at += 1
    return None


def _read(text: str) -> Any:
    try:
        return json.loads(re.sub(r",(?=\s*[\]}])", "", text))
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
