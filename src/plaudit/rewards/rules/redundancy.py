"""DECS: which part of a right output's reasoning was still needed, and what each token is worth.

The reasoning is cut into chunks at words of reconsideration; the needed part ends with the first chunk that states the right
answer, and what follows up to </think> is redundant. The final answer after it is not.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from plaudit.data.prompt import Prompt
from plaudit.errors import RecipeError
from plaudit.rewards.base import Card, Score, Status, card, missing
from plaudit.rewards.calling.call import Caller
from plaudit.rewards.calling.request import Request
from plaudit.rewards.rules.outcomes import (
    Column,
    Rightness,
    inheriting,
    inner_caller,
    load_tokenizer,
    positive,
)
from plaudit.shaping.lengths import decoupled_scores

TURNS = re.compile(r"\b(?:Wait|But|Alternatively|Hmm|Let|Therefore)\b")
END_OF_THOUGHT = "</think>"
WHO = "reward needed_reasoning"


@dataclass(frozen=True, kw_only=True)
class Span:
    """Characters `start` to before `end` of an output."""

    start: int
    end: int


def chunks(
    text: str, turns: re.Pattern[str] = TURNS, thought_ends: str = END_OF_THOUGHT, lines: bool = True
) -> list[Span]:
    """The reasoning's chunks, in order and without gaps. With `lines`, a piece of one line is joined to the next.

    Departure: the text is cut at </think> first, so that words of the final answer never split it (the released code looks
    for </think> in the last piece only).
    """
    end = text.find(thought_ends)
    end = len(text) if end < 0 else end
    starts = [match.start() for match in turns.finditer(text, 0, end)]
    bounds = [0, *(s for s in starts if s > 0), end]
    spans, start = [], 0
    for left, right in itertools.pairwise(bounds):
        if right == end or not lines or "\n" in text[left:right].strip():
            spans.append(Span(start=start, end=right))
            start = right
    return [span for span in spans if span.end > span.start]


def redundant(spans: Sequence[Span], states_answer: Sequence[bool]) -> Span | None:
    """What follows the first chunk that states the answer; nothing where none does or nothing follows."""
    if True not in states_answer:
        return None
    first = list(states_answer).index(True)
    tail = Span(start=spans[first].end, end=spans[-1].end)
    return tail if tail.end > tail.start else None


def needed_share(states_answer: Sequence[bool]) -> float | None:
    """The first answering chunk's place as a share of all chunks, 1-based; None where none answers."""
    return (list(states_answer).index(True) + 1) / len(states_answer) if True in states_answer else None


def token_starts(text: str, unit: str) -> list[int]:
    """The character where each token begins; it counts as redundant when it begins in the redundant span."""
    if unit == "characters":
        return list(range(len(text)))
    if unit == "words":
        return [match.start() for match in re.finditer(r"\S+", text)]
    encoded = load_tokenizer(unit, "needed_reasoning")(text, add_special_tokens=False, return_offsets_mapping=True)
    return [start for start, _ in encoded["offset_mapping"]]


@card(kind="text", low=0, high=1, verdict=True, systems=("S095", "S096"), cost_ms=0.02)
def states_answer(prompts: Sequence[str], outputs: Sequence[str], answer: Sequence[Any]) -> list[float | Score]:
    """1 where the text contains `answer` as a whole word or number, ignoring case and spacing, else 0."""
    return [_states(text, wanted) for text, wanted in zip(outputs, answer, strict=True)]


def _states(text: str, wanted: Any) -> float | Score:
    words = str("" if wanted is None else wanted).split()
    if not words:
        return missing(Status.NOT_APPLICABLE, "no answer to look for")
    spaced = r"\s+".join(map(re.escape, words))
    pattern = rf"(?<![\w.-]){spaced}(?![\w-]|[.,]\d)"
    return float(re.search(pattern, text, re.IGNORECASE) is not None)


class NeededReasoning:
    """`dense` holds one score per token, for position-wise advantages (plaudit.shaping.lengths); `value` is their mean.

    `judge` says of each chunk whether it states the right answer: a reward that is handed the chunk as its output. The unit
    is `words`, `characters` or the policy's tokenizer, of which `dense` follows the tokens. Reasoning that is not English has
    other `turns` (a regular expression), another mark where `thought_ends`, and perhaps no `lines`.
    """

    card = Card(
        summary="Mean score of an output's tokens: redundant ones after the first right answer earn less; 0 where wrong.",
        kind="text",
        low=0,
        high=1.1,
        systems=("S096",),
    )

    def __init__(
        self,
        judge: Mapping[str, Any],
        unit: str,
        limit: int = 16_384,
        beta: float = 0.1,
        correct: Mapping[str, Any] | None = None,
        threshold: float = 1.0,
        turns: str = TURNS.pattern,
        thought_ends: str = END_OF_THOUGHT,
        lines: bool = True,
    ) -> None:
        positive("needed_reasoning", "beta", beta)
        positive("needed_reasoning", "limit", limit)
        if unit == "tokens":
            raise RecipeError(f"{WHO}: `unit` tokens does not say where in the text a token begins; name the tokenizer")
        try:
            self.split = functools.partial(chunks, turns=re.compile(turns), thought_ends=thought_ends, lines=lines)
        except re.error as error:
            raise RecipeError(f"{WHO}: `turns` {turns!r} is no regular expression: {error}") from error
        self.unit, self.limit, self.beta, self.threshold = unit, limit, beta, threshold
        self.judge: Caller = inner_caller("needed_reasoning.judge", judge)
        self.right = Rightness("needed_reasoning", correct, threshold)
        self.inner_rewards = (self.judge, *self.right.inner_rewards)
        self.card = replace(inheriting(type(self).card, self.right), high=1 + beta)

    def __call__(
        self,
        prompts: Sequence[str],
        outputs: Sequence[str],
        request: Request,
        correct: Column = None,
    ) -> list[Score]:
        rights = self.right(request, correct)
        spans = [self.split(text) if right is True else [] for text, right in zip(outputs, rights, strict=True)]
        verdicts = self._judge(request, spans)
        return [self._score(*row) for row in zip(outputs, rights, spans, verdicts, strict=True)]

    def _judge(self, request: Request, spans: Sequence[Sequence[Span]]) -> list[list[Score]]:
        """All chunks of right outputs in one call of the judge."""
        rows = [(i, span) for i, row in enumerate(spans) for span in row]
        asked = Request(
            prompts=[_without_ids(request.prompts[i]) for i, _ in rows],
            outputs=[request.outputs[i][span.start : span.end] for i, span in rows],
            group=[request.group[i] for i, _ in rows],
            step=request.step,
        )
        found: list[list[Score]] = [[] for _ in spans]
        for (i, _), score in zip(rows, self.judge(asked), strict=True):
            found[i].append(score)
        return found

    def _score(self, text: str, right: bool | Score, spans: Sequence[Span], verdicts: Sequence[Score]) -> Score:
        if isinstance(right, Score):
            return right
        broken = [v for v in verdicts if v.status not in (Status.OK, Status.PARSE_FAILED)]  # no answer in it is a "no"
        if broken:
            return missing(broken[0].status, f"the judge failed on a chunk: {broken[0].note}")
        answers = [v.status is Status.OK and v.value >= self.threshold for v in verdicts]
        starts = token_starts(text, self.unit)
        tail = redundant(spans, answers)
        wasted = torch.tensor([tail is not None and tail.start <= s < tail.end for s in starts], dtype=torch.bool)
        dense = self._dense(right, wasted)
        parts = {"correct": float(right), "redundant_tokens": float(wasted.sum()), "tokens": float(len(starts))}
        if (share := needed_share(answers)) is not None:
            parts["needed_share"] = share
        value = float(dense.double().mean()) if len(dense) else float(right) * (1 + self.beta)
        return Score(value=value, components=parts, dense=dense)

    def _dense(self, right: bool, wasted: Tensor) -> Tensor:
        length = torch.tensor([len(wasted)])
        return decoupled_scores(torch.tensor([float(right)]), length, wasted[None], limit=self.limit, beta=self.beta)[0]


def _without_ids(prompt: Prompt) -> Prompt:
    """A chunk is not the whole output, so the ids of the output are not its own."""
    facts = {key: value for key, value in prompt.facts.items() if key != "completion_ids"}
    return Prompt(id=prompt.id, text=prompt.text, facts=facts, inputs=prompt.inputs)
