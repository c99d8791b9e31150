"""One step's samples: prompts, groups, keys, pictures, and their scores shaped to advantages."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plaudit.data.prompt import Prompt
from plaudit.models.flow import EMPTY_PROMPT, Condition, Conditioning, FlowModel
from plaudit.objectives.base import Objective
from plaudit.objectives.terms import Batch
from plaudit.recipe.schema import GrpoConfig, Recipe
from plaudit.rewards.call import make_request
from plaudit.rewards.suite import ScoredBatch, Suite, enforce_missing
from plaudit.sampling.noise import SampleKey
from plaudit.sampling.plan import stochastic_plan
from plaudit.sampling.rollout import Samples, draw, tiles
from plaudit.shaping.advantages import Advantages, group_advantage
from plaudit.train.policy import Policy


class PromptEncoder:
    """Encodes prompts once: conditions are kept by id and text (ids may repeat between files), the unconditional one for
    good."""

    def __init__(self, model: FlowModel, capacity: int = 512) -> None:
        self.model, self.capacity = model, capacity
        self.cache: dict[tuple[str, str], Condition] = {}
        self._unconditional: Condition | None = None

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Prompt], guidance: float) -> Conditioning:
        asked = [(p.id, p.text) for p in prompts]
        new = {key: p for key, p in zip(asked, prompts, strict=True) if key not in self.cache}
        if new:
            encoded = self.model.encode(list(new.values()))
            if len(self.cache) + len(new) > self.capacity:
                self.cache = {key: self.cache[key] for key in asked if key in self.cache}
            self.cache |= {key: encoded.select(torch.tensor([row])) for row, key in enumerate(new)}
        if guidance != 1.0 and self._unconditional is None:
            self._unconditional = self.model.encode([EMPTY_PROMPT])
        condition = Condition.cat([self.cache[key] for key in asked])
        return Conditioning(condition=condition, unconditional=self._unconditional, guidance=guidance)


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """Group-contiguous samples of one step. `version` is the number of optimiser updates behind the weights that drew."""

    prompts: tuple[Prompt, ...]
    group: Tensor
    batch: Batch
    outputs: Tensor
    scored: ScoredBatch
    advantages: Advantages
    version: int
    network_calls: int
    seconds_sampling: float
    seconds_scoring: float


def expand_groups(
    prompts: Sequence[Prompt], size: int, seed: int, step: int
) -> tuple[list[Prompt], Tensor, list[SampleKey]]:
    """Every prompt `size` times in a row. A prompt that comes up twice in a step goes on counting its samples, so no two
    samples share their noise."""
    seen: Counter[str] = Counter()
    members, keys = [], []
    for prompt in prompts:
        start = seen[prompt.id] * size
        seen[prompt.id] += 1
        members += [prompt] * size
        keys += [SampleKey(seed=seed, step=step, prompt=prompt.id, index=start + i) for i in range(size)]
    return members, torch.arange(len(prompts)).repeat_interleave(size), keys


def collect(
    recipe: Recipe,
    policy: Policy,
    encoder: PromptEncoder,
    objective: Objective,
    rewards: Suite,
    prompts: Sequence[Prompt],
    *,
    step: int,
    version: int,
) -> Rollout:
    """Draw, decode, score and shape one step's samples."""
    size, sampler = recipe.train.samples_per_prompt, recipe.sampler
    members, group, keys = expand_groups(prompts, size, recipe.run.seed, step)
    first_of_group = [keys[i - i % size] for i in range(len(keys))]
    started = time.perf_counter()
    conditioning = encoder(members, sampler.guidance)
    times = policy.model.schedule(sampler.steps, sampler.shift)
    plan = stochastic_plan(sampler, times, keys, first_of_group)
    density = recipe.objective.density if isinstance(recipe.objective, GrpoConfig) else "exact"
    initial_keys = first_of_group if sampler.same_noise else keys
    pieces, pictures, columns = [], [], make_request(members, members, group).columns
    with rewards.pending() as pending:
        with policy.using(objective.sampler), torch.no_grad():
            for rows in tiles(len(keys), sampler.tile):
                of = slice(int(rows[0]), int(rows[-1]) + 1)
                piece = draw(
                    policy.model,
                    conditioning.select(rows),
                    plan.select(rows),
                    keys[of],
                    tile=sampler.tile,
                    initial_keys=initial_keys[of],
                    density=density,
                )
                pieces.append(piece)
                pictures.append(policy.model.decode(piece.latents))
                pending.add(make_request(members[of], pictures[-1], group[of], step, columns))
        drawn, outputs = Samples.cat(pieces), torch.cat(pictures)
        sampled = time.perf_counter()
        scored = pending.finish(make_request(members, outputs, group, step), learn=True)
    scored = enforce_missing(scored, recipe.missing)
    shaping = recipe.shaping
    advantages = group_advantage(scored.total, group, std=shaping.std, floor=shaping.floor, clip=shaping.clip)
    batch = Batch(
        conditioning=conditioning,
        latents=drawn.latents,
        trace=drawn.trace,
        keys=tuple(keys),
        advantage=advantages.value.float(),
        valid=advantages.valid,
        informative=advantages.valid & _has_contrast(advantages.value, group),
    )
    return Rollout(
        prompts=tuple(members),
        group=group,
        batch=batch,
        outputs=outputs,
        scored=scored,
        advantages=advantages,
        version=version,
        network_calls=drawn.network_calls,
        seconds_sampling=sampled - started,
        seconds_scoring=time.perf_counter() - sampled,
    )


def _has_contrast(advantage: Tensor, group: Tensor) -> Tensor:
    """Samples `[B]` of groups with any advantage that is not zero."""
    moved = torch.zeros(int(group.max()) + 1, dtype=torch.bool)
    moved[group[advantage != 0]] = True
    return moved[group]
