"""R3 (S102): relevance under an encoder, times length and freedom from repetition for open questions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field
from torch import Tensor

from plaudit.errors import RecipeError
from plaudit.rewards.base import Card, Score, Status, missing
from plaudit.rewards.encoders.base import embed_once
from plaudit.rewards.encoders.load import load_encoder

WORDS_OF_A_FULL_ANSWER = 100
LENGTH_LIMIT = 3.0  # our cap on the length incentive
OpenBranch = Annotated[float, Field(ge=-LENGTH_LIMIT, le=LENGTH_LIMIT)]
QUERY_TYPES = ("open", "closed")
# Questions for one fact or a verdict. A column `query_type` from a better classifier overrides this.
CLOSED = re.compile(
    r"^\W*((who|whom|whose|when|where|which)\b|how (many|much|old|far|long|tall|big|often)\b"
    r"|what('s| is| was| are| were) the (name|capital|date|year|number|sum|result|value|colou?r|answer|population)\b"
    r"|(is|are|was|were|do|does|did|can|has|have|will) |(true or false|yes or no|calculate|compute|solve|translate)\b)",
    re.IGNORECASE,
)


def query_type(prompt: str) -> str:
    """`closed` where the last line of the prompt asks for one fact, else `open`."""
    lines = [line for line in prompt.strip().splitlines() if line.strip()]
    return "closed" if lines and CLOSED.match(lines[-1]) else "open"


def length_incentive(text: str) -> float:
    """Words in hundreds, at most 3."""
    return min(len(text.split()) / WORDS_OF_A_FULL_ANSWER, LENGTH_LIMIT)


def trigram_diversity(text: str) -> float:
    """Distinct trigrams of words over all of them; 1 below three words."""
    words = text.lower().split()
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    return len(set(trigrams)) / len(trigrams) if trigrams else 1.0


def matched_range(value: float, source: Sequence[float], target: Sequence[float]) -> float:
    """F: linear from `source` [5 %, 95 %] to `target`, clipped to it."""
    fraction = (value - source[0]) / (source[1] - source[0])
    return target[0] + min(max(fraction, 0.0), 1.0) * (target[1] - target[0])


def central_range(values: Sequence[float]) -> list[float]:
    """The 5 % and 95 % quantiles: what `closed_range` and `open_range` want of scores of SFT answers."""
    return np.quantile(np.asarray(values, dtype=np.float64), (0.05, 0.95)).tolist()


class RegularizedRelevance:
    """Open questions: relevance to the query x length x diversity. Closed ones: F(relevance to `reference`) x diversity.

    `query_type` may be a column with `open` or `closed`; else a word pattern decides. `closed_range` and `open_range` are
    `central_range` of the relevance to the reference, and of the open branch, on SFT answers; without them F changes
    nothing. Relevance is a cosine (the paper's dot products are unbounded).
    """

    card = Card(
        summary="relevance times length and diversity (open questions) or to the reference (closed ones)",
        kind="text",
        low=-3,
        high=3,
        cost_ms=16,
        extra="transformers",
        systems=("S102",),
    )

    def __init__(
        self,
        encoder: str = "minilm",
        closed_range: tuple[float, float] | None = None,
        open_range: tuple[OpenBranch, OpenBranch] | None = None,
    ) -> None:
        self.encoder = load_encoder(encoder)
        if (closed_range is None) != (open_range is None):
            raise RecipeError("regularized_relevance: give both closed_range and open_range, or neither")
        for name, limits in (("closed_range", closed_range), ("open_range", open_range)):
            if limits is not None and not limits[0] < limits[1]:
                raise RecipeError(f"regularized_relevance: {name} {limits}; give two rising numbers")
        self.closed_range, self.open_range = closed_range, open_range

    def __call__(
        self,
        prompts: Sequence[str],
        outputs: Sequence[str],
        reference: Sequence[str | None] | None = None,
        query_type: Sequence[str | None] | None = None,
    ) -> list[Score]:
        references = reference or [None] * len(prompts)
        kinds = [
            given or _type_of(prompt)
            for prompt, given in zip(prompts, query_type or [None] * len(prompts), strict=True)
        ]
        against = [
            prompt if kind == "open" else (answer or "")
            for prompt, kind, answer in zip(prompts, kinds, references, strict=True)
        ]
        relevance = (embed_once(self.encoder, outputs) * embed_once(self.encoder, against)).sum(-1)
        return [
            self._score(kind, answer, output, value)
            for kind, answer, output, value in zip(kinds, references, outputs, _numbers(relevance), strict=True)
        ]

    def _score(self, kind: str, reference: str | None, output: str, relevance: float) -> Score:
        if kind not in QUERY_TYPES:
            return missing(Status.NOT_APPLICABLE, f"query_type {kind!r}: allowed are open and closed")
        if kind == "closed" and not reference:
            return missing(Status.NOT_APPLICABLE, "a closed question without a reference")
        relevance = relevance if output.strip() else 0.0  # nothing is about nothing, whatever the encoder says of it
        diversity = trigram_diversity(output)
        parts = {"relevance": relevance, "length": length_incentive(output), "diversity": diversity}
        if kind == "open":
            return Score(value=relevance * parts["length"] * diversity, components=parts)
        if self.closed_range is not None and self.open_range is not None:
            relevance = matched_range(relevance, self.closed_range, self.open_range)
        return Score(value=relevance * diversity, components=parts)


_type_of = query_type  # the column of the same name hides it in `__call__`


def _numbers(values: Tensor) -> list[float]:
    return values.tolist()
