"""Prompts of the `scenes` world."""

from __future__ import annotations

import numpy as np

from plaudit.data.prompt import Prompt
from plaudit.data.sources import FileSource, preferred
from plaudit.lab.scenes import grammar
from plaudit.recipe.prompts import ScenesPrompts


class ScenesSource:
    """Captions, or pairs of a file to learn from; held out are always captions."""

    def __init__(self, config: ScenesPrompts) -> None:
        self.categories = config.categories
        self.pairs = preferred(config.pairs, None, "prompts.pairs") if config.pairs else ()

    def batch(self, step: int, count: int, seed: int) -> list[Prompt]:
        if self.pairs:
            return FileSource(train=self.pairs, heldout=()).batch(step, count, seed)
        return grammar.sample_prompts("train", count, np.random.default_rng([seed, step, 1]), self.categories)

    def evaluation(self, count: int) -> dict[str, list[Prompt]]:
        return {
            "heldout": grammar.evaluation_prompts("heldout", count, self.categories),
            "compositional": grammar.evaluation_prompts("compositional", max(count // 2, 1), self.categories),
        }
