"""An encoder whose vectors are obvious: a text is the direction of its word counts."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from plaudit.rewards.encoders.base import Encoder

DIMENSIONS = 64


class WordCounts(Encoder):
    name = "words"
    max_tokens = 1000
    sees_pictures = False

    def __init__(self) -> None:
        self.words: dict[str, int] = {}

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        rows = [[self.words.setdefault(word, len(self.words)) for word in re.findall(r"\w+", text)] for text in texts]
        counts = torch.stack(
            [torch.bincount(torch.tensor(row, dtype=torch.long), minlength=DIMENSIONS) for row in rows]
        )
        return F.normalize(counts.float(), dim=-1)

    def embed_tokens(self, texts: Sequence[str]) -> list[Tensor]:
        return [self.embed_texts(text.split()) if text.split() else torch.empty(0, DIMENSIONS) for text in texts]


TOY = "tests.rewards.encoders.toy:WordCounts"
