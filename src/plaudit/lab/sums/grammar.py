"""Problems of the `sums` world and the characters that they and their solutions are written in.

A problem is one of four kinds, by the digits of its operands; every running total is at least 0:

    digits   7+8-3+9-6=
    pair     37+85=
    mixed    52-7+18=
    triple   37+85-14=

The facts of a problem are `{"category", "operands": [37, 85, -14], "answer": "108"}`. A problem belongs to exactly one
split, by a hash of its text.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
from collections.abc import Sequence

import numpy as np

from plaudit.data.prompt import Prompt
from plaudit.errors import DataError

DIGITS = {"digits": (1, 1, 1, 1, 1), "pair": (2, 2), "mixed": (2, 1, 2), "triple": (2, 2, 2)}
CATEGORIES = tuple(DIGITS)
SPLITS = ("train", "heldout")
MAX_COMPLETION = 96  # tokens, the end included
MAX_PROMPT = 11

PAD, END = "<pad>", "<end>"
VOCABULARY = {token: index for index, token in enumerate((PAD, END, *"0123456789+-=:;?#"))}
PAD_ID, END_ID = VOCABULARY[PAD], VOCABULARY[END]
_CHARACTERS = {index: token for token, index in VOCABULARY.items() if len(token) == 1}
_CATEGORY_OF = {digits: category for category, digits in DIGITS.items()}
_PROBLEM = re.compile(r"[1-9]\d?(?:[+-][1-9]\d?)+=")


# --- problems --------------------------------------------------------------------------------------------------------


def expression(operands: Sequence[int]) -> str:
    """`37+85-14` of 37, 85, -14."""
    return "".join(f"{n:+d}" for n in operands).removeprefix("+")


def make_prompt(operands: Sequence[int]) -> Prompt:
    """The problem of these signed operands, with its facts."""
    digits = tuple(len(str(abs(n))) for n in operands)
    totals = list(itertools.accumulate(operands))
    if digits not in _CATEGORY_OF or 0 in operands or min(totals) < 0 or operands[0] < 0:
        raise DataError(
            f"sums: {expression(operands)!r} is no problem of this world; the operands have {list(DIGITS.values())} digits "
            "and no running total is negative"
        )
    text = expression(operands) + "="
    facts = {"category": _CATEGORY_OF[digits], "operands": list(operands), "answer": str(totals[-1])}
    return Prompt(id=hashlib.sha256(text.encode()).hexdigest()[:12], text=text, facts=facts)


def find_prompt(text: str) -> Prompt | None:
    """The problem of this text, with its facts; None where it is none."""
    if not _PROBLEM.fullmatch(text):
        return None
    try:
        return make_prompt([int(n) for n in re.findall(r"[+-]?\d+", text)])
    except DataError:
        return None


def split_of(prompt: Prompt) -> str:
    return "heldout" if int(prompt.id[:8], 16) % 8 == 0 else "train"


def _draw(category: str, rng: np.random.Generator) -> Prompt:
    """A problem of this category: operands and signs uniform, drawn anew while a running total is negative."""
    digits = DIGITS[category]
    while True:
        sizes = [int(rng.integers(10 ** (d - 1), 10**d)) for d in digits]
        signs = [1, *(1 - 2 * rng.integers(2, size=len(digits) - 1))]
        operands = [int(sign) * size for sign, size in zip(signs, sizes, strict=True)]
        if min(itertools.accumulate(operands)) >= 0:
            return make_prompt(operands)


def _draw_of(split: str, category: str, rng: np.random.Generator) -> Prompt:
    while split_of(prompt := _draw(category, rng)) != split:
        pass
    return prompt


def sample_prompts(
    split: str, count: int, rng: np.random.Generator, categories: Sequence[str] = CATEGORIES
) -> list[Prompt]:
    """`count` problems, categories equally likely (with replacement)."""
    _known(split, categories)
    which = rng.integers(len(categories), size=count)
    return [_draw_of(split, categories[k], rng) for k in which]


def evaluation_prompts(split: str, count: int, categories: Sequence[str] = CATEGORIES) -> list[Prompt]:
    """A fixed list of distinct problems: categories in turn. A longer list begins with the shorter one."""
    _known(split, categories)
    per_category = -(-count // len(categories))
    pools = [_fixed(split, category, per_category) for category in categories]
    return [prompt for turn in zip(*pools, strict=True) for prompt in turn][:count]


@functools.lru_cache(maxsize=64)
def _fixed(split: str, category: str, count: int) -> tuple[Prompt, ...]:
    rng = np.random.default_rng([2_024, SPLITS.index(split), CATEGORIES.index(category)])
    found: dict[str, Prompt] = {}
    misses = 0
    while len(found) < count and misses < 200:
        prompt = _draw_of(split, category, rng)
        misses = misses + 1 if prompt.id in found else 0
        found.setdefault(prompt.id, prompt)
    if len(found) == count:
        return tuple(found.values())
    raise DataError(
        f"sums: the split {split!r} has fewer than {count} problems of the category {category!r}; ask for fewer"
    )


def _known(split: str, categories: Sequence[str]) -> None:
    if split not in SPLITS:
        raise DataError(f"sums: unknown split {split!r}; allowed: {', '.join(SPLITS)}")
    for category in categories:
        if category not in CATEGORIES:
            raise DataError(f"sums: unknown category {category!r}; allowed: {', '.join(CATEGORIES)}")


# --- characters ------------------------------------------------------------------------------------------------------


def encode(text: str) -> tuple[int, ...]:
    """One token per character; nothing is added."""
    unknown = [c for c in text if c not in VOCABULARY]
    if unknown:
        raise DataError(
            f"sums: the text {text!r} has {unknown[0]!r}, which is not in the lab vocabulary; allowed characters: "
            f"{''.join(_CHARACTERS.values())}"
        )
    return tuple(VOCABULARY[c] for c in text)


def decode(ids: Sequence[int]) -> str:
    """The text of these tokens, without padding and end."""
    return "".join(_CHARACTERS[int(i)] for i in ids if int(i) not in (PAD_ID, END_ID))
