"""Prompts of the `sums` world."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from plaudit.data.prompt import Prompt
from plaudit.data.sources import FileSource
from plaudit.errors import DataError
from plaudit.lab.sums import grammar
from plaudit.lab.sums.check import read_facts
from plaudit.lab.sums.traces import sample_trace
from plaudit.recipe.prompts import SumsPrompts


class SumsSource:
    """Fresh problems at every step, or passes over a fixed set of them."""

    def __init__(self, config: SumsPrompts) -> None:
        if unknown := sorted(set(config.categories or ()) - set(grammar.CATEGORIES)):
            raise DataError(f"prompts.categories: {unknown[0]!r}; allowed: {', '.join(grammar.CATEGORIES)}")
        self.config, self.categories = config, config.categories or grammar.CATEGORIES

    def batch(self, step: int, count: int, seed: int) -> list[Prompt]:
        if self.config.problems is None:
            drawn = grammar.sample_prompts("train", count, np.random.default_rng([seed, step, 1]), self.categories)
        else:
            fixed = grammar.evaluation_prompts("train", self.config.problems, self.categories)
            drawn = FileSource(train=fixed, heldout=()).batch(step, count, seed)
        return [self._answered(prompt) for prompt in drawn]

    def evaluation(self, count: int) -> dict[str, list[Prompt]]:
        return {"heldout": grammar.evaluation_prompts("heldout", count, self.categories)}

    def _answered(self, prompt: Prompt) -> Prompt:
        """The same solutions whenever a problem comes up."""
        if self.config.answers == "none":
            return prompt
        rng = np.random.default_rng([int(prompt.id[:8], 16), 5])
        if self.config.answers == "demonstrations":
            return replace(prompt, inputs={"completion": sample_trace(prompt, rng).text})
        right, wrong = (_trace(prompt, rng, correct) for correct in (True, False))
        chosen, rejected = (wrong, right) if rng.random() < self.config.noise else (right, wrong)
        return replace(prompt, inputs={"chosen": chosen, "rejected": rejected})


def _trace(prompt: Prompt, rng: np.random.Generator, correct: bool) -> str:
    """A solution as pretraining has them, drawn until it is right, or wrong."""
    while read_facts(text := sample_trace(prompt, rng).text, prompt.facts).correct is not correct:
        pass
    return text
