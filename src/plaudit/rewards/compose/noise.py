"""Noise on rewards, to measure what training survives (S128).

It is counter-based: whether a score is inverted is a function of (seed, step, prompt, place in the group) alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from plaudit.sampling.noise import SampleKey, uniform


def inverted(keys: Sequence[SampleKey], probability: float) -> list[bool]:
    """Which rewards the noise inverts; equal keys share one draw."""
    return (uniform(keys, "reward noise", 1)[:, 0] < probability).tolist()


def flipped(
    scores: Tensor,
    *,
    probability: float,
    seed: int = 0,
    each: Literal["prompt", "sample"] = "prompt",
    group: Tensor,
    step: int,
    prompts: Sequence[str],
) -> Tensor:
    """1 - score with a given probability, for all outputs of a prompt and step together, or for each `sample` on its own.

    Outputs without an answer keep their score in `has * flipped(score, probability=0.2) + (1 - has) * score`.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"probability {probability:g} is not in 0..1")
    places = [0] * len(prompts) if each == "prompt" else _places(group.tolist())
    keys = [SampleKey(seed=seed, step=step, prompt=prompt, index=i) for prompt, i in zip(prompts, places, strict=True)]
    return torch.where(torch.tensor(inverted(keys, probability)), 1 - scores, scores)


def _places(group: Sequence[int]) -> list[int]:
    """Of each sample in its group."""
    before: Counter[int] = Counter()
    places = []
    for member in group:
        places.append(before[member])
        before[member] += 1
    return places
