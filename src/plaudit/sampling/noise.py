"""Counter-based randomness: noise = f(run seed, step, prompt, sample, stream, decision).

Nothing here has state, so a sample's noise is the same bit for bit whatever the batch size, rank count or resume point (its
latents then agree to 1e-5: networks round differently in batches of another size), and a reward that draws random numbers changes
nothing.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from plaudit.data.prompt import Prompt


@dataclass(frozen=True, kw_only=True)
class SampleKey:
    """What identifies one sample of a run."""

    seed: int
    step: int
    prompt: str
    index: int


def numbered_keys(prompts: Sequence[Prompt], *, seed: int, step: int) -> list[SampleKey]:
    """Keys of one sample of each prompt; one that comes again counts its samples."""
    seen = Counter[str]()
    keys = []
    for prompt in prompts:
        keys.append(SampleKey(seed=seed, step=step, prompt=prompt.id, index=seen[prompt.id]))
        seen[prompt.id] += 1
    return keys


def generator(key: SampleKey, stream: str, decision: int = 0) -> np.random.Generator:
    """A generator of its own for one stream and decision of one sample."""
    return np.random.Generator(np.random.Philox(key=_number(key, stream), counter=[0, 0, 0, decision]))


def _number(key: SampleKey, stream: str) -> int:
    text = f"{key.seed}|{key.step}|{key.prompt}|{key.index}|{stream}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


class _Moving(threading.local):
    """One generator that is set to the place of one sample after the other: five times as fast as making one for each. Its
    numbers are those of `generator`."""

    def __init__(self) -> None:
        self.bits = np.random.Philox(key=0)
        self.start = self.bits.state
        self.generator = np.random.Generator(self.bits)

    def at(self, key: SampleKey, stream: str, decision: int) -> np.random.Generator:
        number = _number(key, stream)
        self.start["state"]["key"][:] = (number & 0xFFFFFFFFFFFFFFFF, number >> 64)
        self.start["state"]["counter"][3] = decision
        self.bits.state = self.start
        return self.generator


_MOVING = _Moving()


def gaussian(keys: Sequence[SampleKey], stream: str, shape: Sequence[int], decision: int = 0) -> Tensor:
    """Standard normal `[B, *shape]`."""
    size = tuple(shape)
    rows = [_MOVING.at(key, stream, decision).standard_normal(size, dtype=np.float32) for key in keys]
    return torch.from_numpy(np.stack(rows))


def uniform(keys: Sequence[SampleKey], stream: str, count: int) -> Tensor:
    """Uniform numbers `[B, count]` in [0, 1)."""
    return torch.from_numpy(np.stack([_MOVING.at(key, stream, 0).random(count, dtype=np.float32) for key in keys]))
