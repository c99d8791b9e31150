"""Which times are visited, which steps are stochastic, and how strongly.

A window is nothing but a level of zero outside of it, since level 0 of every kernel is the deterministic step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from plaudit.recipe.sampling import Sampler
from plaudit.sampling.noise import SampleKey, generator


@dataclass(frozen=True, kw_only=True)
class SamplingPlan:
    """Times `[K + 1]`, noise levels `[B, K]`, and per sample the first recorded step `[B]` of `decisions` in a row."""

    kernel: str
    times: Tensor
    levels: Tensor
    first: Tensor
    decisions: int
    solver: str = "euler"

    @property
    def steps(self) -> int:
        return len(self.times) - 1

    @property
    def velocities(self) -> int:
        """How often the network is asked for a sample's velocity; Heun looks ahead on all steps but the last."""
        return 2 * self.steps - 1 if self.solver == "heun" else self.steps

    def select(self, rows: Tensor) -> SamplingPlan:
        return replace(self, levels=self.levels[rows], first=self.first[rows])


def noise_levels(sampler: Sampler) -> Tensor:
    """Level `[K]` of every step: constant, or a cosine from `level` at the noise end down to `level_min`; balanced ones begin
    as constant."""
    if sampler.level_schedule != "cosine":
        return torch.full((sampler.steps,), sampler.level)
    progress = torch.arange(sampler.steps) / max(sampler.steps - 1, 1)
    return sampler.level_min + 0.5 * (sampler.level - sampler.level_min) * (1 + torch.cos(math.pi * progress))


def window_start(sampler: Sampler, key: SampleKey) -> int:
    """First stochastic step of a group: drawn from what its members share, so all of them agree."""
    low, high = sampler.window.start
    shared = SampleKey(seed=key.seed, step=key.step, prompt=key.prompt, index=0)
    return int(generator(shared, "window").integers(low, high + 1))


def stochastic_plan(
    sampler: Sampler,
    times: Tensor,
    keys: Sequence[SampleKey],
    group_keys: Sequence[SampleKey],
    levels: Tensor | None = None,
) -> SamplingPlan:
    """Plan of a training rollout. `group_keys` holds the key of each sample's group; `levels [K]` are the sampler's own unless
    others were found."""
    trainable = sampler.steps - 1  # the step to t = 0 is deterministic
    whole = sampler.window.size is None
    decisions = trainable if whole else min(sampler.window.size or trainable, trainable)
    start = [0 if whole else window_start(sampler, key) for key in group_keys]
    first = torch.tensor(start)
    step = torch.arange(sampler.steps)
    inside = (step >= first[:, None]) & (step < first[:, None] + decisions)
    if sampler.kernel == "ode":
        return deterministic_plan(times, len(keys))
    levels = (noise_levels(sampler) if levels is None else levels) * inside
    return SamplingPlan(kernel=sampler.kernel, times=times, levels=levels, first=first, decisions=decisions)


def deterministic_plan(times: Tensor, count: int, solver: str = "euler") -> SamplingPlan:
    zero = torch.zeros(count, len(times) - 1)
    return SamplingPlan(
        kernel="ode", times=times, levels=zero, first=torch.zeros(count, dtype=torch.long), decisions=0, solver=solver
    )
