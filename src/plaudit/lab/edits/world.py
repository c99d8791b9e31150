"""Prompts of the `edits` world."""

from __future__ import annotations

import functools

import numpy as np

from plaudit.data.prompt import Prompt
from plaudit.errors import DataError
from plaudit.lab.edits.grammar import CATEGORIES, sample_edits
from plaudit.recipe.prompts import WorldPrompts

SPLITS = ("train", "heldout", "compositional")


class EditsSource:
    """Fresh sources and instructions at every step; held-out ones are always the same."""

    def __init__(self, config: WorldPrompts) -> None:
        if unknown := sorted(set(config.categories or ()) - set(CATEGORIES)):
            raise DataError(f"prompts.categories: {unknown[0]!r}; allowed: {', '.join(CATEGORIES)}")
        self.categories = config.categories or CATEGORIES

    def batch(self, step: int, count: int, seed: int) -> list[Prompt]:
        edits = sample_edits("train", count, np.random.default_rng([seed, step, 1]), self.categories)
        return [edit.prompt for edit in edits]

    def evaluation(self, count: int) -> dict[str, list[Prompt]]:
        counts = {"heldout": count, "compositional": max(count // 2, 1)}
        return {split: list(fixed(split, number, self.categories)) for split, number in counts.items()}


@functools.cache
def fixed(split: str, count: int, categories: tuple[str, ...]) -> tuple[Prompt, ...]:
    """Categories in turn, each with a sequence of its own, so that fewer are the first of more."""
    found = []
    for number in range(count):
        category = number % len(categories)
        rng = np.random.default_rng([SPLITS.index(split), category, number // len(categories), 3])
        found.append(sample_edits(split, 1, rng, (categories[category],))[0].prompt)
    return tuple(found)
