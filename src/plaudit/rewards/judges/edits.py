"""EditScore: a judge of edited pictures, asked twice about each and several times over (S054)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from plaudit.recipe.base import Positive
from plaudit.rewards.base import Card, Score, Status, missing
from plaudit.rewards.judges.ask import Answer, Question
from plaudit.rewards.judges.judged import Judged, LogMetric, ask, text_worth
from plaudit.rewards.judges.read import scores

MOST = 25.0
CONSISTENCY = """The first picture was edited as the instruction says, the second came out. First: {source} Second: {edited}
Instruction: {instruction}
Score from 0 to 25 how far the edit follows the instruction (25: completely), and how far everything else was left as it was
(25: nothing beyond the instruction was changed). Reason first, then end with a line of JSON and nothing after it:
{"reasoning": "...", "score": [following, consistency]}"""
QUALITY = """A picture: {edited}
Score from 0 to 25 how natural it looks (0: the scene makes no sense at all, 25: nothing looks wrong), and how free it is of
artifacts (0: distorted or broken all over, 25: none). Reason first, then end with a line of JSON and nothing after it:
{"reasoning": "...", "score": [naturalness, artifacts]}"""

TEMPLATES = {"consistency": CONSISTENCY, "quality": QUALITY}


class EditScore(Judged):
    """O = sqrt(SC * PQ) in 0..1, where SC and PQ are the least of two scores each (S054). SC sees the source, the instruction
    and the edit, PQ the edit alone; both are asked `samples` times.

    `ensemble` scores: the mean of the passes' O; means: the O of the means of SC and of PQ. A pass of which either answer is
    missing counts for nothing; where the released code cannot read an answer, it takes the middle of the scale. The templates are
    ours, in the released answers' form.
    """

    card = Card(
        summary="how well an edit follows its instruction, spares the rest and looks, by a judge",
        kind="image",
        low=0,
        high=1,
        deterministic=False,
        systems=("S054",),
    )

    def __init__(self, judge: Any, samples: Positive = 1, ensemble: Literal["scores", "means"] = "scores") -> None:
        super().__init__(judge, samples)
        self.ensemble = ensemble

    def __call__(
        self,
        prompts: Sequence[str],
        outputs: Sequence[Tensor],
        source: Sequence[Tensor | None],
        facts: Sequence[Mapping[str, Any]],
        log_metric: LogMetric | None = None,
    ) -> list[Score]:
        rows = [
            {"instruction": prompt, "edited": edited, "source": before, "facts": known}
            for prompt, edited, before, known in zip(prompts, outputs, source, facts, strict=True)
        ]
        there = [row for row in rows if row["source"] is not None]
        questions = [
            Question(template=template, fields={**row, "aspect": aspect})
            for row in there
            for aspect, template in TEMPLATES.items()
        ]
        answers = iter(ask(self.judge, questions, self.samples, log_metric))
        return [NO_SOURCE if row["source"] is None else self._score(next(answers), next(answers)) for row in rows]

    def _score(self, consistency: Sequence[Answer], quality: Sequence[Answer]) -> Score:
        pairs = [(text_worth(sc, least), text_worth(pq, least)) for sc, pq in zip(consistency, quality, strict=True)]
        there = [
            _Pass(sc=sc.value, pq=pq.value) for sc, pq in pairs if sc.status is Status.OK and pq.status is Status.OK
        ]
        if not there:
            return next(score for pair in pairs for score in pair if score.status is not Status.OK)
        sc, pq = (sum(getattr(one, part) for one in there) / len(there) for part in ("sc", "pq"))
        value = math.sqrt(sc * pq) if self.ensemble == "means" else sum(one.overall for one in there) / len(there)
        return Score(value=value, components={"consistency": sc, "quality": pq, "passes": float(len(there))})


NO_SOURCE = missing(Status.NOT_APPLICABLE, "the prompt has no `source` picture")


@dataclass(frozen=True, kw_only=True)
class _Pass:
    """One pass's SC and PQ, in 0..1."""

    sc: float
    pq: float

    @property
    def overall(self) -> float:
        return math.sqrt(self.sc * self.pq)


def least(text: str) -> Score | None:
    found = scores(text, 2, 0.0, MOST)
    return None if found is None else Score(value=min(found) / MOST)
