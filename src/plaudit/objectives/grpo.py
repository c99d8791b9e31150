"""Flow-GRPO: a clipped likelihood ratio over the stochastic steps of a rollout.

    rho = exp(log p_theta(x' | x) - log p_old(x' | x)),   L = max(-A rho, -A clip(rho, 1 - c_low, 1 + c_high)) + w KL

Departures: the density is the exact Gaussian unless the recipe names a published scaling (the clip range belongs to it);
the step to t = 0 is deterministic and not trained.

Shape legend: B samples, D decisions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plaudit.objectives.base import Losses
from plaudit.objectives.terms import Batch, SnapshotPolicy, Terms
from plaudit.recipe.schema import GrpoConfig
from plaudit.sampling.kernels import kl_divergence


def clipped_ratio_loss(log_ratio_BD: Tensor, advantage_BD: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """PPO's pessimistic surrogate, unreduced; its gradient at ratio 1 is the policy gradient."""
    assert log_ratio_BD.shape == advantage_BD.shape, (log_ratio_BD.shape, advantage_BD.shape)
    ratio = log_ratio_BD.exp()
    return torch.maximum(-advantage_BD * ratio, -advantage_BD * ratio.clamp(1 - clip_low, 1 + clip_high))


class Grpo:
    needs_trace = True
    sampler = "current"

    def __init__(self, config: GrpoConfig) -> None:
        self.config = config
        self.snapshots = {"reference": None} if config.kl.weight > 0 else {}

    def mask(self, batch: Batch) -> Tensor:
        assert batch.trace is not None
        return batch.trace.mask & batch.valid[:, None]

    def computed(self, batch: Batch) -> Tensor:
        return batch.valid if self.config.kl.weight > 0 else batch.informative

    def terms(self, policy: SnapshotPolicy, batch: Batch) -> Terms:
        return Terms(policy, batch)

    def losses(self, terms: Terms) -> Losses:
        trace, config = terms.batch.trace, self.config
        assert trace is not None
        log_ratio = terms.log_prob - trace.log_prob
        advantage = terms.batch.advantage[:, None].expand_as(log_ratio).double()
        parts = {"policy": clipped_ratio_loss(log_ratio, advantage, config.clip_low, config.clip_high)}
        ratio = log_ratio.detach().exp()
        metrics = {
            "clip_ratio/low": ((ratio < 1 - config.clip_low) & (advantage < 0)).double(),
            "clip_ratio/high": ((ratio > 1 + config.clip_high) & (advantage > 0)).double(),
            "ratio/mean": ratio,
            "ratio/deviation": (ratio - 1).abs(),
        }
        if config.kl.weight > 0:
            times, next_times = (u.flatten() for u in (trace.times[:, :-1], trace.times[:, 1:]))
            kl = kl_divergence(terms.step, terms.reference.step, times, next_times, config.kl.scaling)
            parts["kl"] = config.kl.weight * kl.unflatten(0, log_ratio.shape)
            metrics["kl"] = kl.detach().unflatten(0, log_ratio.shape)
        return Losses(parts=parts, mask=self.mask(terms.batch), metrics=metrics)
