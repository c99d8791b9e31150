"""A judge's list of visual differences, summed by severity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from plaudit.recipe.base import Positive, PositiveFloat
from plaudit.rewards.base import Card, Score, Status, missing
from plaudit.rewards.judges.ask import Question
from plaudit.rewards.judges.judged import Judged, LogMetric
from plaudit.rewards.judges.read import claims, find_json

BUDGET = 50.0
BLANK = 0.99  # a picture that is nowhere darker is an empty page
SEVERITIES = (1, 2, 3, "1", "2", "3")
TEMPLATE = """A picture should look like its target. Target: {target}
Picture: {picture}
It was asked for in these words: {prompt}
Name every difference that can be seen, with a severity: 1 slight, 2 plain, 3 something is lost, surplus or wrong. Think first,
then end with a line of JSON and nothing after it: {"errors": [{"category": "...", "severity": 1, "description": "..."}]}. No
difference is {"errors": []}."""


class VisualDifferences(Judged):
    """1 + max(0, 1 - summed severities / 50) where a picture is compared with `target`; 0 for an empty page.

    The judge answers with JSON: `{"errors": [{"category", "severity" 1-3, ...}]}`. An answer that cannot be read is missing; the
    released code put severity 25 in its place.
    """

    card = Card(
        summary="summed severities of the differences that a judge sees between picture and target",
        kind="image",
        low=0,
        high=2,
        systems=("S013",),
        cost_ms=3,
    )

    def __init__(self, judge: Any, budget: PositiveFloat = BUDGET, samples: Positive = 1) -> None:
        super().__init__(judge, samples)
        self.budget = budget

    def __call__(
        self,
        prompts: Sequence[str],
        outputs: Tensor,
        target: Sequence[Tensor | None],
        log_metric: LogMetric | None = None,
    ) -> list[Score]:
        return self.judged([_asked(*row) for row in zip(prompts, outputs, target, strict=True)], log_metric)

    def score(self, text: str, fields: Mapping[str, Any]) -> Score | None:
        severities = parse_severities(text)
        if severities is None:
            return None
        total = float(sum(severities))
        return Score(
            value=severity_score(total, self.budget), components={"severity": total, "errors": float(len(severities))}
        )


def _asked(prompt: str, picture: Tensor, target: Tensor | None) -> Question | Score:
    if target is None:
        return missing(Status.NOT_APPLICABLE, "the prompt has no `target` picture")
    if picture.min() > BLANK:
        return Score(value=0.0, note="an empty page")
    return Question(template=TEMPLATE, fields={"target": target, "picture": picture, "prompt": prompt})


def severity_score(total: float, budget: float = BUDGET) -> float:
    return 1 + min(max(1 - total / budget, 0.0), 1.0)


def parse_severities(text: str) -> list[int] | None:
    """Of the errors that a judge lists; None where they cannot be read, or one has no severity of 1, 2 or 3."""
    found = find_json(text, "errors")
    listed = claims(
        found["errors"] if found else None, {"severity": lambda given: given in SEVERITIES and given is not True}
    )
    return None if listed is None else [int(item["severity"]) for item in listed]
