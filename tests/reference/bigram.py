"""A language model of a few words whose every text can be written down: next words depend on the last word alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from plaudit.data.prompt import Prompt
from plaudit.models.tokens import Ids

LETTERS = "^abcdefgh"  # word 0 begins a text
END = 3


class NoCache:
    """A bigram remembers nothing; it only counts the columns of its rows."""

    def __init__(self) -> None:
        self.columns = torch.zeros(0, 0)

    def select(self, rows: Tensor) -> None:
        self.columns = self.columns[rows]

    @classmethod
    def combined(cls, caches: Sequence[NoCache], combine: Callable) -> NoCache:
        made = cls()
        made.columns = combine([cache.columns[:, None, :, None] for cache in caches])[:, 0, :, 0]
        return made


class Bigram:
    """Words a, b and the end; `rows` lists the rows of each network call."""

    pad_id = 0
    packs = True
    context = None
    end_ids = frozenset({END})
    lora_targets = ()

    def __init__(self, table: Tensor | None = None, seed: int = 0) -> None:
        if table is None:
            table = torch.randn(END + 1, END + 1, generator=torch.Generator().manual_seed(seed))
            table[:, 0] = -math.inf
            table[:, END] -= 0.5
        self.table, self.network, self.rows = table, nn.Linear(1, 1), list[int]()

    def encode(self, prompts: Sequence[Prompt]) -> list[Ids]:
        return [(0,) * (1 + int(prompt.facts.get("padding", 0))) for prompt in prompts]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(LETTERS[i] for i in ids if i not in (0, END))

    def encode_completion(self, text: str) -> Ids:
        return (*(LETTERS.index(letter) for letter in text), END)

    def new_cache(self) -> NoCache:
        return NoCache()

    def logits(
        self,
        ids: Tensor,
        positions: Tensor,
        visible: Tensor,
        *,
        cache: NoCache | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        self.rows.append(len(ids))
        if cache is not None:
            old = cache.columns if cache.columns.numel() else torch.zeros(len(ids), 0)
            cache.columns = torch.cat([old, ids.float()], dim=1)
            assert visible.shape[2] == cache.columns.shape[1]
        found = self.table[ids]
        return found if keep is None else found[:, keep]

    def save(self, folder: Path) -> None:
        raise NotImplementedError


def every_text(table: Tensor, longest: int) -> dict[Ids, float]:
    """The probability of every text of at most `longest` words: those that end, and those that are cut."""
    probabilities = table.double().softmax(1)
    found: dict[Ids, float] = {}
    for length in range(1, longest + 1):
        for words in itertools.product(range(1, END), repeat=length - 1):
            for last in range(1, END + 1) if length == longest else (END,):
                text = (*words, last)
                steps = zip((0, *text), text, strict=False)
                found[text] = math.prod(float(probabilities[a, b]) for a, b in steps)
    return found


def tilted(texts: dict[Ids, float], weight: Callable[[Ids], float]) -> dict[Ids, float]:
    """Probabilities in proportion to probability times weight."""
    masses = {text: p * weight(text) for text, p in texts.items()}
    total = sum(masses.values())
    return {text: mass / total for text, mass in masses.items()}


def total_variation(first: dict[Ids, float], second: dict[Ids, float]) -> float:
    return 0.5 * sum(abs(first.get(text, 0.0) - second.get(text, 0.0)) for text in first.keys() | second.keys())
