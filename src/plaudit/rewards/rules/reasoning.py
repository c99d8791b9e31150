"""Rewards for the look of reasoning. The operator `lifted` lets them repair what may be false negatives."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from plaudit.recipe.base import PositiveFloat
from plaudit.rewards.base import card
from plaudit.rewards.rules.answers import find_answer, tagged

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
    part: Literal["output", "thought"] = "output",
    per_phrase: PositiveFloat = PER_PHRASE,
    penalties: bool = True,
) -> list[float]:
    """How many of forty reasoning phrases occur, less repetition and invented turns; 0 without an answer.

    `part: thought` looks for them in `<think>` alone: phrases in the answer do not count.
    """
    return [
        reasoning_pattern(thoughts(output) if part == "thought" else output, per_phrase=per_phrase, penalties=penalties)
        if find_answer(output, place)
        else 0.0
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
