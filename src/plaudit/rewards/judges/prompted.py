"""A judge out of a recipe: `{type: judge, arguments: {template: ..., read: {type: score}, judge: {type: endpoint, ...}}}`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Protocol

from pydantic import Field

from plaudit.errors import RecipeError
from plaudit.recipe.base import Positive
from plaudit.rewards.base import Card, Kind, Score, Status, missing
from plaudit.rewards.judges.ask import PLACE, Answer, Question, made_of
from plaudit.rewards.judges.judged import Judged, LogMetric, text_worth
from plaudit.rewards.judges.read import rubric, scores, word, yes_probability

Word = Annotated[str, Field(pattern="^[^A-Z]+$")]  # in lower case; YAML reads yes and no without quotes as no texts


class Reader(Protocol):
    def __call__(self, answer: Answer) -> Score: ...


def _scaled(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low)


@dataclass(frozen=True, kw_only=True)
class ReadScore:
    """`{"score": number}`, from `low` .. `high` to 0..1."""

    low: float = 0.0
    high: float = 10.0

    def __call__(self, answer: Answer) -> Score:
        return text_worth(answer, self._read)

    def _read(self, text: str) -> Score | None:
        found = scores(text, 1, self.low, self.high)
        return None if found is None else Score(value=_scaled(found[0], self.low, self.high))


@dataclass(frozen=True, kw_only=True)
class ReadProbability:
    """The probability of the word `of` against another as the first token; the judge needs `top_logprobs` (S003)."""

    of: Word = "yes"
    against: Word = "no"

    def __call__(self, answer: Answer) -> Score:
        if answer.status is not Status.OK:
            return missing(answer.status, answer.note)
        found = yes_probability(answer, self.of, self.against)
        if found is not None:
            return Score(value=found)
        return missing(
            Status.PARSE_FAILED, f"neither {self.of!r} nor {self.against!r} is among the likeliest first tokens"
        )


@dataclass(frozen=True, kw_only=True)
class ReadWord:
    """1 where the last line is one of the words `right`, 0 where it is one of `wrong` (S105)."""

    right: Sequence[Word] = ("yes",)
    wrong: Sequence[Word] = ("no",)

    def __call__(self, answer: Answer) -> Score:
        return text_worth(answer, self._read)

    def _read(self, text: str) -> Score | None:
        said = word(text, [*self.right, *self.wrong])
        return None if said is None else Score(value=float(said in self.right))


@dataclass(frozen=True, kw_only=True)
class ReadRubric:
    """`{"points": {NAME: number}}`: the mean over those points that apply, from `low` .. `high` to 0..1 (S012, S042)."""

    points: Sequence[str]
    low: float = 0.0
    high: float = 1.0

    def __call__(self, answer: Answer) -> Score:
        return text_worth(answer, self._read)

    def _read(self, text: str) -> Score | None:
        found = rubric(text, self.points, self.low, self.high)
        if found is None:
            return None
        parts = {name: _scaled(value, self.low, self.high) for name, value in found.items()}
        return Score(value=statistics.fmean(parts.values()), components=parts)


READERS = {
    name: f"plaudit.rewards.judges.prompted:{thing.__name__}"
    for name, thing in {
        "score": ReadScore,
        "probability": ReadProbability,
        "word": ReadWord,
        "rubric": ReadRubric,
    }.items()
}


class PromptedJudge(Judged):
    """Asks what a template says. Its places are `{prompt}`, `{output}` and the names of the prompts' facts and inputs.

    `read` is `{type: score | probability | word | rubric, ...}` or the dotted path of what makes a reader; it brings an answer to
    0..1.
    `kind` says what is judged: image or text.
    """

    card = Card(
        summary="what a judge says of the output, by a template and a reader of one's own",
        kind="image",
        low=0,
        high=1,
        deterministic=False,
        systems=("S003", "S012", "S042", "S105"),
    )

    def __init__(
        self, template: str, read: Mapping[str, Any], judge: Any, kind: Kind = "image", samples: Positive = 1
    ) -> None:
        super().__init__(judge, samples)
        if "output" not in PLACE.findall(template):
            raise RecipeError("arguments.template has no place {output}: it must show the judge what it judges")
        self.template, self.read = template, _reader(read)
        self.card = replace(self.card, kind=kind)

    def __call__(
        self,
        prompts: Sequence[str],
        outputs: Sequence[Any],
        facts: Sequence[Mapping[str, Any]],
        inputs: Sequence[Mapping[str, Any]],
        log_metric: LogMetric | None = None,
    ) -> list[Score]:
        rows = zip(prompts, outputs, facts, inputs, strict=True)
        return self.judged([self._asked(*row) for row in rows], log_metric)

    def _asked(self, prompt: str, output: Any, facts: Mapping[str, Any], inputs: Mapping[str, Any]) -> Question | Score:
        fields = {**facts, **inputs, "prompt": prompt, "output": output}
        absent = [name for name in PLACE.findall(self.template) if fields.get(name) is None]
        if absent:
            return missing(Status.NOT_APPLICABLE, f"the prompt has no `{absent[0]}`, which the template shows")
        return Question(template=self.template, fields=fields)

    def worth(self, answer: Answer, fields: Mapping[str, Any]) -> Score:
        return self.read(answer)


def _reader(given: Mapping[str, Any]) -> Reader:
    options = dict(given) if isinstance(given, Mapping) else {}
    type_ = options.pop("type", None)
    if not isinstance(type_, str):
        raise RecipeError(
            f"arguments.read is {given!r}; write {{type: NAME}} with one of {', '.join(READERS)}, or a dotted path"
        )
    reader: Reader = made_of("arguments.read", type_, READERS, options)
    return reader
