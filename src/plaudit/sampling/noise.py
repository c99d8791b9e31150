"""Counter-based randomness: noise = f(run seed, step, prompt, sample, stream, decision).

Nothing here has state, so the same sample comes out whatever the batch size, rank count or resume point, and a reward that
draws random numbers changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class SampleKey:
    """What identifies one sample of a run."""

    seed: int
    step: int
    prompt: str
    index: int


def generator(key: SampleKey, stream: str, decision: int = 0) -> np.random.Generator:
    """A generator of its own for one stream and decision of one sample."""
    text = f"{key.seed}|{key.step}|{key.prompt}|{key.index}|{stream}"
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little"), counter=[0, 0, 0, decision]))


def gaussian(keys: Sequence[SampleKey], stream: str, shape: Sequence[int], decision: int = 0) -> Tensor:
    """Standard normal `[B, *shape]`."""
    rows = [generator(key, stream, decision).standard_normal(tuple(shape), dtype=np.float32) for key in keys]
    return torch.from_numpy(np.stack(rows))


def uniform(keys: Sequence[SampleKey], stream: str, count: int) -> Tensor:
    """Uniform numbers `[B, count]` in [0, 1)."""
    return torch.from_numpy(np.stack([generator(key, stream).random(count, dtype=np.float32) for key in keys]))
