"""The reward's own gradient through sampling (AlignProp, DRaFT, ReFL).

    L = -r(decode(x_0)),   or |r - target|,   x_0 the end of the path from the sample's noise

What of the path carries a gradient is the objective's `truncation` (`sampling/path.py`); ReFL's `one_step` walks without any to
one of the last steps and takes the clean prediction there. Rewards are averaged over samples; a missing one has no weight.

Departures: AlignProp's code truncates a batch alike, here each sample has its own draw, so that batches can be split. ReFL's
published loss is relu(2 - r) times a scale, at one of the last 10 of 40 steps; here it is -r, and `last` says of how many.

Shape legend: B samples, * latent dimensions.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from plaudit.errors import RecipeError
from plaudit.models.flow import clean_prediction, guided_velocity, per_sample
from plaudit.objectives.base import Losses, Objective
from plaudit.objectives.batch import Batch, SnapshotPolicy
from plaudit.recipe.objectives import GradientConfig
from plaudit.recipe.rewards import Missing
from plaudit.rewards.calling.request import make_request
from plaudit.rewards.gradients import check_differentiable, differentiable_total
from plaudit.rewards.suite import Suite, enforce_share
from plaudit.sampling.noise import uniform
from plaudit.sampling.path import carried_steps, path, walked
from plaudit.sampling.rollout import Starts


@dataclass(frozen=True, kw_only=True)
class DrawnTerms:
    """Pictures `[B, *]` with a graph back to the weights, and the total `[B]` of their rewards."""

    batch: Batch
    pictures: Tensor
    total: Tensor


class RewardGradient(Objective):
    def __init__(self, config: GradientConfig, rewards: Suite, missing: Missing) -> None:
        self.config, self.needs, self.rewards, self.missing = config, config.needs, rewards, missing
        if (what := rewards.in_company) is not None:
            raise RecipeError(
                f"objective.type: gradient follows each sample's own reward, and {what} compares samples; leave it out, or use "
                "objective.type nft or grpo"
            )
        for reward in rewards.rewards:
            if reward.weight != 0:
                check_differentiable(reward)

    def mask(self, batch: Batch) -> Tensor:
        return batch.valid[:, None]

    def terms(self, policy: SnapshotPolicy, batch: Batch) -> DrawnTerms:
        with torch.enable_grad():
            pictures = policy.model.decode(self._latents(policy, batch.starts))
            request = make_request(batch.prompts, pictures, batch.group, batch.keys[0].step)
            total = differentiable_total(self.rewards, request)
        enforce_share(total.detach(), self.missing)
        if pictures.requires_grad:  # 0 times the slope of a missing score is no number
            pictures.register_hook(lambda slope: slope.masked_fill(per_sample(~total.isfinite(), slope), 0.0))
        return DrawnTerms(batch=batch, pictures=pictures, total=total)

    def _latents(self, policy: SnapshotPolicy, starts: Starts) -> Tensor:
        config, plan, model = self.config, starts.plan, policy.model
        velocity = functools.partial(guided_velocity, model, conditioning=starts.conditioning)
        x = starts.noise(model.latent_shape)
        if config.truncation == "one_step":
            return self._predicted(velocity, x, starts)
        carries = carried_steps(config.truncation, plan.steps, starts.keys, config.last)
        return walked(path(velocity, x, plan, starts.keys, carries=carries, recompute=config.recompute), x)

    def _predicted(self, velocity: functools.partial[Tensor], x: Tensor, starts: Starts) -> Tensor:
        """The clean prediction at one of the last steps, which each sample draws."""
        plan, last = starts.plan, min(self.config.last, starts.plan.steps)
        at = plan.steps - 1 - (uniform(starts.keys, "truncation", 1)[:, 0] * last).long()
        state = x
        with torch.no_grad():
            for visit in path(velocity, x, plan, starts.keys, stop=int(at.max())):
                state = torch.where(per_sample(at == visit.k + 1, x), visit.x_next, state)
        t = plan.times[at]
        return clean_prediction(state, velocity(state, t), t)

    def losses(self, terms: DrawnTerms) -> Losses:
        there, target = terms.total.isfinite(), self.config.target
        total = torch.where(there, terms.total, 0.0)
        loss = -total if target is None else (total - target).abs()
        mask = self.mask(terms.batch)
        return Losses(
            parts={"reward": loss[:, None]},
            weights=self.weights(terms.batch) * there[:, None],
            mask=mask & there[:, None],
            metrics={"reward": total.detach()[:, None]},
        )
