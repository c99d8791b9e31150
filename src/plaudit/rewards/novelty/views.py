"""What novelty looks at in an output: a few numbers of it, and which of them count as the same.

Shape legend: B outputs, D features.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from plaudit.lab.scenes.check import detect
from plaudit.lab.scenes.grammar import COLORS, MAX_OBJECTS, SHAPES
from plaudit.rewards.novelty.bonuses import Array

COLOUR_GRID = 4  # cells a side
NUM_COLOURS = 3 * COLOUR_GRID**2
TEXT_GRAM, TEXT_BUCKETS = 3, 127
CONSTANT = 0.1  # a feature that all outputs share: a black picture or an empty text has no other


@dataclass(frozen=True, kw_only=True)
class View:
    """What novelty looks at: `values` of an output, of which `scale` is much; those equal in steps of `step` count as the
    same."""

    values: Callable[[Any], Array]
    scale: float
    step: float

    def rows(self, values_BD: Array) -> Array:
        """Features of length 1, so that no output is newer than another by being brighter or longer."""
        rows = np.hstack([values_BD / self.scale, np.full((len(values_BD), 1), CONSTANT)])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def keys(self, values_BD: Array) -> list[str]:
        levels = np.rint(values_BD / self.step).astype(np.int64)
        return [hashlib.blake2b(row.tobytes(), digest_size=8).hexdigest() for row in levels]


def colours(pictures: Sequence[Tensor] | Tensor) -> Array:
    """Mean colours of 4 x 4 cells, `[B, 48]`."""
    small = [F.adaptive_avg_pool2d(picture.detach().double(), COLOUR_GRID).flatten() for picture in pictures]
    return torch.stack(small).cpu().numpy()


def objects(pictures: Sequence[Tensor] | Tensor) -> Array:
    """How often the lab's checker sees each of its kinds of object, `[B, 18]`."""
    kinds = {pair: k for k, pair in enumerate((color, shape) for color in COLORS for shape in SHAPES)}
    counts = np.zeros((len(pictures), len(kinds)))
    for row, scene in zip(counts, detect(torch.stack(list(pictures))), strict=True):
        for thing in scene.objects:
            row[kinds[thing.pair]] += 1
    return counts


def pieces(texts: Sequence[str]) -> Array:
    """Hashed counts of the three-letter pieces of a text, `[B, 127]`, without regard to case and spacing."""
    counts = np.zeros((len(texts), TEXT_BUCKETS))
    for row, text in zip(counts, texts, strict=True):
        words = " ".join(text.casefold().split())
        padded = f"  {words}  " if words else ""
        for start in range(len(padded) - TEXT_GRAM + 1):
            row[zlib.crc32(padded[start : start + TEXT_GRAM].encode()) % TEXT_BUCKETS] += 1
    return counts


OF_PICTURES = {
    "colours": View(values=colours, scale=NUM_COLOURS**0.5, step=0.5),
    "objects": View(values=objects, scale=MAX_OBJECTS, step=1),
}
OF_TEXTS = {"pieces": View(values=pieces, scale=1, step=1)}
