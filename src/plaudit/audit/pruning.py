"""Comparing pruning schedules without sampling: from the scores of all previews of many seeds, drawn once (TTSnap, S090).

Shape legend: P prompts, N seeds, S steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from plaudit.builds.previews import RewardTensor
from plaudit.sampling.rollout import tiles
from plaudit.search.flow.prune import Plan, survivors
from plaudit.search.flow.steps import Judge, judge_previews, stock_step
from plaudit.search.flow.task import FlowTask


def reward_tensors(task: FlowTask, seeds: int, judges: Mapping[str, Judge]) -> dict[str, RewardTensor]:
    """What every judge says of all previews and final pictures of candidates 1 to `seeds`: those that pruning draws. The last
    step's preview is the picture itself and counts among the steps."""
    P = len(task.prompts)
    rows = task.start(torch.arange(P).repeat_interleave(seeds), 1 + torch.arange(seeds).repeat(P))
    steps: dict[str, list[Tensor]] = {name: [] for name in judges}
    for k in range(task.steps):
        v = task.velocity(rows, task.times[k])
        for name, judge in judges.items():
            steps[name].append(judge_previews(task, rows, v, k, judge))
        rows = stock_step(task, rows, v, k)
    end = task.times[-1]
    final = {
        name: torch.cat(
            [judge(task, task.decode(rows.select(of)), rows.prompt[of], end) for of in tiles(len(rows), task.tile)]
        )
        for name, judge in judges.items()
    }
    return {
        name: RewardTensor(
            steps=torch.stack(steps[name], 1).unflatten(0, (P, seeds)), final=final[name].unflatten(0, (P, seeds))
        )
        for name in judges
    }


def simulate_pruning(tensor: RewardTensor, plan: Plan, seeds: Tensor) -> Tensor:
    """Which seed `[P]` pruning chooses of `seeds [P, n]`, which may repeat. Without a plan: best-of-n.

    Missing scores come last; of equal ones the first, as in the search itself.
    """
    left = seeds
    for s, alive in zip(plan.at, survivors(seeds.shape[1], plan.keep)[1:], strict=True):
        left = _best(tensor.steps[:, :, s], left, alive)
    return _best(tensor.final, left, 1)[:, 0]


def _best(score: Tensor, seeds: Tensor, count: int) -> Tensor:
    own = score.gather(1, seeds).nan_to_num(nan=-torch.inf, neginf=torch.finfo(score.dtype).min)
    return seeds.gather(1, own.argsort(dim=1, descending=True, stable=True)[:, :count])


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Per prompt `[P]` the mean over bootstrap draws of the chosen picture's score, and of the gold judge's (NaN without
    one)."""

    reward: Tensor
    gold: Tensor


def bootstrap(tensor: RewardTensor, plan: Plan, seeds: int, draws: int, rng: np.random.Generator) -> Outcome:
    """What pruning `seeds` seeds is worth: subsets are drawn without repetition, anew for every prompt."""
    P, N = tensor.final.shape
    if seeds > N:
        raise ValueError(f"{seeds} seeds of a tensor with {N}; draw more trajectories first")
    judged = (tensor.final, torch.full_like(tensor.final, torch.nan) if tensor.gold is None else tensor.gold)
    found: list[list[Tensor]] = [[], []]
    for _ in range(draws):
        subset = torch.from_numpy(rng.permuted(np.tile(np.arange(N), (P, 1)), axis=1)[:, :seeds])
        chosen = simulate_pruning(tensor, plan, subset)[:, None]
        for kept, scores in zip(found, judged, strict=True):
            kept.append(scores.gather(1, chosen)[:, 0])
    reward, gold = (torch.stack(kept).nanmean(0) for kept in found)
    return Outcome(reward=reward, gold=gold)
