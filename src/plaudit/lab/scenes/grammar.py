"""Captions of the `scenes` world and the facts they state.

A caption is one of six kinds over 6 colours x 3 shapes:

    single     a red circle
    count      three red circles
    two        a red circle and a blue square
    relation   a red circle left of a blue square
    counttwo   two red circles and a blue square
    three      a red circle, a blue square and a green triangle

The facts of a caption are `{"category", "objects": [{"count", "color", "shape"}, ...], "relation"}`; the relation, when
there is one, holds from the first object to the second. A caption belongs to exactly one split: `compositional` when it
names an attribute pair of `UNSEEN_PAIRS`, otherwise `heldout` or `train` by a hash of its text.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Sequence

import numpy as np

from plaudit.data.prompt import Prompt
from plaudit.errors import DataError

COLORS = ("red", "green", "blue", "yellow", "purple", "white")
SHAPES = ("circle", "square", "triangle")
RELATIONS = ("left", "right", "above", "below")
CATEGORIES = ("single", "count", "two", "relation", "counttwo", "three")
SPLITS = ("train", "heldout", "compositional")
UNSEEN_PAIRS = frozenset({("yellow", "circle"), ("red", "square"), ("blue", "triangle")})
MAX_OBJECTS = 4
MAX_TOKENS = 12

COUNT_WORDS = {1: "a", 2: "two", 3: "three", 4: "four"}
RELATION_WORDS = {"left": "left of", "right": "right of", "above": "above", "below": "below"}
_WORDS = (
    *COUNT_WORDS.values(),
    *COLORS,
    *SHAPES,
    *(shape + "s" for shape in SHAPES),
    *RELATIONS,
    "of",
    "and",
    ",",
)
VOCABULARY = {word: index for index, word in enumerate(_WORDS, start=1)}  # 0 is padding and the empty caption

Pair = tuple[str, str]
_PAIRS: tuple[Pair, ...] = tuple(itertools.product(COLORS, SHAPES))


def noun(count: int, pair: Pair) -> str:
    color, shape = pair
    return f"{COUNT_WORDS[count]} {color} {shape}{'s' if count > 1 else ''}"


def _make(category: str, objects: Sequence[tuple[int, Pair]], relation: str | None = None) -> Prompt:
    nouns = [noun(count, pair) for count, pair in objects]
    if relation is not None:
        text = f"{nouns[0]} {RELATION_WORDS[relation]} {nouns[1]}"
    elif len(nouns) == 3:
        text = f"{nouns[0]}, {nouns[1]} and {nouns[2]}"
    else:
        text = " and ".join(nouns)
    facts = {
        "category": category,
        "objects": [{"count": count, "color": pair[0], "shape": pair[1]} for count, pair in objects],
        "relation": relation,
    }
    spaced = " ".join(_words_of(text))  # the splits and every noise key hang on the ids
    return Prompt(id=hashlib.sha256(spaced.encode()).hexdigest()[:12], text=text, facts=facts)


def _category_prompts(category: str) -> list[Prompt]:
    distinct = list(itertools.permutations(_PAIRS, 2))
    match category:
        case "single":
            return [_make(category, [(1, pair)]) for pair in _PAIRS]
        case "count":
            return [_make(category, [(n, pair)]) for pair in _PAIRS for n in (2, 3, 4)]
        case "two":
            return [_make(category, [(1, a), (1, b)]) for a, b in distinct]
        case "relation":
            return [_make(category, [(1, a), (1, b)], r) for a, b in distinct for r in RELATIONS]
        case "counttwo":
            return [_make(category, [(n, a), (1, b)]) for a, b in distinct for n in (2, 3)]
        case "three":
            return [_make(category, [(1, p) for p in triple]) for triple in itertools.permutations(_PAIRS, 3)]
    raise DataError(f"scenes: unknown category {category!r}; allowed: {', '.join(CATEGORIES)}")


def split_of(prompt: Prompt) -> str:
    pairs = {(item["color"], item["shape"]) for item in prompt.facts["objects"]}
    if pairs & UNSEEN_PAIRS:
        return "compositional"
    return "heldout" if int(prompt.id[:8], 16) % 8 == 0 else "train"


@functools.cache
def all_prompts(split: str) -> dict[str, tuple[Prompt, ...]]:
    """Every caption of a split, by category."""
    if split not in SPLITS:
        raise DataError(f"scenes: unknown split {split!r}; allowed: {', '.join(SPLITS)}")
    return {
        category: tuple(prompt for prompt in _category_prompts(category) if split_of(prompt) == split)
        for category in CATEGORIES
    }


@functools.cache
def _by_text() -> dict[str, Prompt]:
    return {p.text: p for split in SPLITS for pool in all_prompts(split).values() for p in pool}


def find_prompt(text: str) -> Prompt | None:
    """The prompt of this caption, with its facts."""
    return _by_text().get(text.replace(" ,", ","))


def sample_prompts(
    split: str, count: int, rng: np.random.Generator, categories: Sequence[str] = CATEGORIES
) -> list[Prompt]:
    """`count` captions, categories equally likely, captions uniform within a category (with replacement)."""
    pools = [all_prompts(split)[category] for category in categories]
    which = rng.integers(len(pools), size=count)
    return [pools[k][rng.integers(len(pools[k]))] for k in which]


def evaluation_prompts(split: str, count: int, categories: Sequence[str] = CATEGORIES) -> list[Prompt]:
    """A fixed list: categories in turn, each category's captions in an order that depends on nothing but their text."""
    ordered = [sorted(all_prompts(split)[category], key=lambda prompt: prompt.id) for category in categories]
    rounds = (pool[turn % len(pool)] for turn in itertools.count() for pool in ordered)
    return list(itertools.islice(rounds, count))


def _words_of(text: str) -> list[str]:
    return text.replace(",", " , ").lower().split()


def tokenise(texts: Sequence[str]) -> np.ndarray:
    """Token ids `[B, MAX_TOKENS]`, zero-padded; the empty text is the unconditional caption."""
    ids = np.zeros((len(texts), MAX_TOKENS), dtype=np.int64)
    for row, text in enumerate(texts):
        words = _words_of(text)
        unknown = [word for word in words if word not in VOCABULARY]
        if unknown:
            raise DataError(
                f"scenes: the caption {text!r} uses {unknown[0]!r}, which is not in the lab vocabulary; "
                f"allowed words: {' '.join(VOCABULARY)}"
            )
        if len(words) > MAX_TOKENS:
            raise DataError(f"scenes: the caption {text!r} has {len(words)} words; at most {MAX_TOKENS} are read")
        ids[row, : len(words)] = [VOCABULARY[word] for word in words]
    return ids
