"""What rewards that ask a judge share: an answer becomes a score, and several answers become one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from plaudit.rewards.base import Score, Status, missing
from plaudit.rewards.judges.ask import Answer, Cost, Judge, Question, as_judge

LogMetric = Callable[[str, float], None]


class Judged:
    """Asks `samples` times and takes the mean of the answers that can be read. Subclasses say what is asked of each output, or a
    score where nothing need be asked, and what a text is worth."""

    def __init__(self, judge: Any, samples: int = 1) -> None:
        self.judge, self.samples = as_judge(judge, samples), samples

    @property
    def waits(self) -> bool:
        return bool(getattr(self.judge.backend, "waits", False))

    def judged(self, asked: Sequence[Question | Score], log_metric: LogMetric | None) -> list[Score]:
        questions = [one for one in asked if isinstance(one, Question)]
        answers = iter(ask(self.judge, questions, self.samples, log_metric))
        return [one if isinstance(one, Score) else self._pooled(one, next(answers)) for one in asked]

    def _pooled(self, question: Question, answers: Sequence[Answer]) -> Score:
        return mean_of([self.worth(answer, question.fields) for answer in answers])

    def worth(self, answer: Answer, fields: Mapping[str, Any]) -> Score:
        return text_worth(answer, lambda text: self.score(text, fields))

    def score(self, text: str, fields: Mapping[str, Any]) -> Score | None:
        """What an answer's text is worth; None where it cannot be read."""
        raise NotImplementedError


def ask(judge: Judge, questions: Sequence[Question], samples: int, log_metric: LogMetric | None) -> list[list[Answer]]:
    """Answers, and what they cost as metrics."""
    answers = judge.ask(questions, samples)
    if log_metric is not None:
        cost = sum((answer.cost for some in answers for answer in some), Cost())
        log_metric("judge_calls", cost.calls)
        log_metric("judge_tokens", cost.tokens)
        log_metric("judge_seconds", cost.seconds)
    return answers


def text_worth(answer: Answer, read: Callable[[str], Score | None]) -> Score:
    """A declined answer and one that cannot be read are missing."""
    if answer.status is not Status.OK:
        return missing(answer.status, answer.note)
    if answer.cut:
        return missing(
            Status.PARSE_FAILED, "the judge's answer came to its limit of tokens; raise the judge's max_tokens"
        )
    return read(answer.text) or missing(
        Status.PARSE_FAILED, f"the judge's answer cannot be read: {answer.text[-120:]!r}"
    )


def mean_of(scores: Sequence[Score]) -> Score:
    """The mean of those that are there, part by part."""
    there = [score for score in scores if score.status is Status.OK]
    if len(scores) == 1 or not there:
        return scores[0]
    parts = {
        name: [score.components[name] for score in there if score.components] for name in there[0].components or ()
    }
    return Score(
        value=sum(score.value for score in there) / len(there),
        components={name: sum(values) / len(values) for name, values in parts.items()} | {"answers": float(len(there))},
    )
