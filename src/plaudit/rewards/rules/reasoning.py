"""Rewards for the look of reasoning, and the noise that they can repair.

Reward noise is counter-based: whether a question's reward is inverted is a function of (seed, step, prompt id) alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from plaudit.errors import RewardError
from plaudit.rewards.base import Card, Score, Status, card
from plaudit.rewards.calling.call import Caller
from plaudit.rewards.calling.request import Outputs, Request
from plaudit.rewards.load import find_reward
from plaudit.rewards.rules.answers import find_answer, tagged
from plaudit.sampling.noise import SampleKey, uniform

# The forty phrases of the paper's released reward; its "makes sence" is spelt right here.
PHRASES = (
    "i need to", "we need to", "wait", "alternatively", "let me check", "let me see", "let's focus on", "we know that",
    "we can observe", "we can see", "let me try", "let's try", "let us try", "first,", "firstly,", "next,", "finally,",
    "let us first", "let's first", "let me first", "try again", "still not", "not working", "not correct",
    "does not work", "doesn't work", "makes sense", "since we", "because we", "consequently", "as a result", "thus",
    "therefore", "hence", "so that", "thereby", "if we", "given there", "for instance", "for example",
)  # fmt: skip
# Whole words, unlike the released code, for which "enthusiasm" holds "thus".
PATTERNS = tuple(re.compile(rf"(?<!\w){re.escape(phrase)}(?!\w)") for phrase in PHRASES)
PER_PHRASE = 1 / 20  # the released code's; the paper's text says 1/40
NGRAM = 20


@card(kind="text", low=0, high=1, systems=("S128",), cost_ms=0.1)
def reasoning_phrases(
    prompts: Sequence[str],
    outputs: Sequence[str],
    place: str = "tag",
    per_phrase: float = PER_PHRASE,
    penalties: bool = True,
) -> list[float]:
    """How many of forty reasoning phrases occur, less repetition and invented turns; 0 without an answer."""
    return [
        reasoning_pattern(output, per_phrase=per_phrase, penalties=penalties) if find_answer(output, place) else 0.0
        for output in outputs
    ]


def reasoning_pattern(text: str, *, per_phrase: float = PER_PHRASE, penalties: bool = True) -> float:
    """The reasoning-pattern reward (RPR) of a text, in 0..1. The paper's text has 1/40 a phrase and no penalties."""
    lowered = text.lower().replace("’", "'")
    found = min(1.0, per_phrase * sum(pattern.search(lowered) is not None for pattern in PATTERNS))
    if not penalties:
        return found
    return max(0.0, found - repetition(lowered, NGRAM) - lowered.count("user: "))


def repetition(text: str, length: int) -> float:
    """The fraction of a text's n-grams of words that it has said before.

    The released code counts an n-gram once however often it recurs, so that a single word said for ever costs nothing.
    """
    words = text.split()
    ngrams = [tuple(words[i : i + length]) for i in range(len(words) - length + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def thoughts(text: str) -> str:
    """What stands in `<think>`; without such a part, everything."""
    inside = tagged(text, "think")
    return text if inside is None else inside


def calibrated(score: Tensor, pattern: Tensor, *, threshold: float = 0.5, weight: float = 0.1) -> Tensor:
    """Scores below the threshold, which may be false negatives, plus the weighted pattern reward; NaN stays NaN."""
    assert score.shape == pattern.shape, (score.shape, pattern.shape)
    return torch.where(score >= threshold, score, score + weight * pattern)


def inverted(keys: Sequence[SampleKey], probability: float) -> list[bool]:
    """Which rewards the noise inverts; equal keys share one draw."""
    return (uniform(keys, "reward noise", 1)[:, 0] < probability).tolist()


class _Around:
    """A reward that changes another one's scores. The other is a built-in name or a dotted path."""

    def __init__(self, reward: str, arguments: Mapping[str, Any] | None = None) -> None:
        self.inner = Caller(reward, find_reward(reward, reward, arguments or {}))
        self.inner_rewards = (self.inner,)

    def card_like_inner(self, own: Card, **changes: Any) -> Card:
        inner = self.inner.card
        if inner is None:
            return replace(own, **changes)
        shared = {name: getattr(inner, name) for name in ("kind", "extra", "untrusted", "cost_ms")}
        batch_invariant = own.batch_invariant and inner.batch_invariant
        return replace(own, **shared, batch_invariant=batch_invariant, **changes)


class _Flipped(_Around):
    card: Card

    def __init__(
        self,
        reward: str,
        probability: float,
        arguments: Mapping[str, Any] | None = None,
        seed: int = 0,
        place: str | None = None,
    ) -> None:
        super().__init__(reward, arguments)
        if not 0 <= probability <= 1:
            raise RewardError(f"the noise inverts with probability {probability}; allowed: 0 to 1")
        self.probability, self.seed, self.place = probability, seed, place
        self.card = self.card_like_inner(type(self).card)

    def __call__(self, prompts: Sequence[str], outputs: Outputs, request: Request) -> list[Score]:
        scores = self.inner(request)
        keys = [
            SampleKey(seed=self.seed, step=request.step, prompt=prompt.id, index=index)
            for prompt, index in zip(request.prompts, self.indices(request.group), strict=True)
        ]
        flips = inverted(keys, self.probability)
        return [
            self._noisy(score, flip and self._answered(output))
            for score, flip, output in zip(scores, flips, outputs, strict=True)
        ]

    def indices(self, group: Sequence[int]) -> list[int]:
        raise NotImplementedError

    def _answered(self, output: Any) -> bool:
        return self.place is None or find_answer(output, self.place) is not None

    def _noisy(self, score: Score, flip: bool) -> Score:
        if score.status is not Status.OK:
            return score
        if not 0 <= score.value <= 1:
            raise RewardError(f"rewards.{self.inner.name} gave {score.value}; only scores in 0..1 can be inverted")
        value = 1 - score.value if flip else score.value
        return Score(value=value, components={"clean": score.value}, note="inverted" if flip else "")


class FlippedByGroup(_Flipped):
    """Another reward, inverted with a given probability for all outputs of a prompt and step together.

    With `place`, an output without an answer there keeps its score.
    """

    card = Card(
        summary="another reward in 0..1, inverted at random for all outputs of a prompt together",
        kind="text",
        low=0,
        high=1,
        systems=("S128",),
    )

    def indices(self, group: Sequence[int]) -> list[int]:
        return [0] * len(group)


class FlippedBySample(_Flipped):
    """Another reward, inverted with a given probability for every output on its own: the contrast to group noise."""

    card = Card(
        summary="another reward in 0..1, inverted at random for every output on its own",
        kind="text",
        low=0,
        high=1,
        batch_invariant=False,  # the draw is that of the output's place in its group
        systems=("S128",),
    )

    def indices(self, group: Sequence[int]) -> list[int]:
        return [sum(other == member for other in group[:i]) for i, member in enumerate(group)]


class ReasoningCalibrated(_Around):
    """Another reward, whose low scores are lifted by the look of the reasoning: s, or s + weight * RPR below threshold.

    Only suspected false negatives are lifted. The phrases are counted in the thoughts alone.
    """

    card = Card(
        summary="another reward whose low scores are lifted where the thoughts look like reasoning",
        kind="text",
        systems=("S128",),
    )

    def __init__(
        self,
        reward: str,
        arguments: Mapping[str, Any] | None = None,
        threshold: float = 0.5,
        weight: float = 0.1,
        place: str = "tag",
    ) -> None:
        super().__init__(reward, arguments)
        self.threshold, self.weight, self.place = threshold, weight, place
        inner = self.inner.card
        bounds = (inner.low, max(inner.high, threshold + weight)) if inner else (-float("inf"), float("inf"))
        self.card = self.card_like_inner(type(self).card, low=bounds[0], high=bounds[1])

    def __call__(self, prompts: Sequence[str], outputs: Sequence[str], request: Request) -> list[Score]:
        scores = self.inner(request)
        return [
            self._lifted(score, output) if score.status is Status.OK else score
            for score, output in zip(scores, outputs, strict=True)
        ]

    def _lifted(self, score: Score, output: str) -> Score:
        pattern = reasoning_pattern(thoughts(output)) if find_answer(output, self.place) else 0.0
        value = calibrated(
            torch.tensor(score.value, dtype=torch.float64),
            torch.tensor(pattern, dtype=torch.float64),
            threshold=self.threshold,
            weight=self.weight,
        )
        return Score(value=float(value), components={"score": score.value, "reasoning": pattern}, sigma=score.sigma)
