"""GRPO: a clipped likelihood ratio over the decisions of a rollout, which are denoising steps (Flow-GRPO) or tokens.

    rho = exp(log p_theta(decision) - log p_old(decision)),   L = max(-A rho, -A clip(rho, 1 - c_low, 1 + c_high)) + w KL

With importance_sampling_level sequence (GSPO) the ratio of every decision is exp(mean of the sample's log-ratios). The
divisor decides which length is favoured: dapo counts every decision alike, grpo (and GSPO) every sample, so that long samples
count less per decision; dr_grpo divides by a constant; luspo, on top of the sequence ratio, multiplies each sample by its length.

Samples of advantage 0 stay in the divisor as in TRL, or leave the loss with their KL as in flow_grpo (`zero_advantage`).

Departures: a flow's density is the exact Gaussian unless the recipe names a published scaling (the clip range belongs to it);
its step to t = 0 is deterministic and not trained.

Shape legend: B samples, D decisions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plaudit.objectives.base import Losses, Objective, divisor, in_parts, per_decision
from plaudit.objectives.batch import Batch, SnapshotPolicy
from plaudit.objectives.terms import FlowTerms
from plaudit.objectives.token_terms import TokenTerms
from plaudit.recipe.objectives import GrpoConfig
from plaudit.sampling.tokens import Completions


def clipped_ratio_loss(log_ratio_BD: Tensor, advantage_BD: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """PPO's pessimistic surrogate, unreduced; its gradient at ratio 1 is the policy gradient."""
    assert log_ratio_BD.shape == advantage_BD.shape, (log_ratio_BD.shape, advantage_BD.shape)
    ratio = log_ratio_BD.exp()
    return torch.maximum(-advantage_BD * ratio, -advantage_BD * ratio.clamp(1 - clip_low, 1 + clip_high))


def sequence_log_ratio(log_ratio_BD: Tensor, mask_BD: Tensor) -> Tensor:
    """GSPO: the mean over a sample's decisions, for each of them."""
    mean = (log_ratio_BD * mask_BD).sum(1, keepdim=True) / mask_BD.sum(1, keepdim=True).clamp(min=1)
    return mean.expand_as(log_ratio_BD)


class Grpo(Objective):
    def __init__(self, config: GrpoConfig, pack: int = 0, rows: int = 64) -> None:
        """`rows` samples at a time where no gradient is needed."""
        self.config, self.needs, self.pack, self.rows = config, config.needs, pack, rows
        self.snapshots = {"reference": None} if config.kl.weight > 0 else {}

    def mask(self, batch: Batch) -> Tensor:
        return self._scored(batch) & self._kept(batch)[:, None]

    def _kept(self, batch: Batch) -> Tensor:
        keeps = self.config.zero_advantage == "keep"
        return torch.ones_like(batch.valid) if keeps else batch.credit.moves

    @staticmethod
    def _scored(batch: Batch) -> Tensor:
        decisions = batch.samples.decisions
        assert decisions is not None, "a clipped ratio needs a rollout with stochastic decisions"
        return decisions.mask & batch.valid[:, None]

    def weights(self, batch: Batch) -> Tensor:
        return per_decision(self.mask(batch), self.config.loss_type)

    def count(self, batch: Batch) -> float:
        decisions = batch.samples.decisions
        assert decisions is not None
        return divisor(self.mask(batch), self.config.loss_type, decisions.limit)

    def computed(self, batch: Batch) -> Tensor:
        return (batch.valid if self._kl_in_loss else batch.informative) & self._kept(batch)

    @property
    def _kl_in_loss(self) -> bool:
        return self.config.kl.weight > 0 and self.config.kl.place == "loss"

    def penalty(self, policy: SnapshotPolicy, batch: Batch) -> Tensor | None:
        kl = self.config.kl
        if kl.weight == 0 or kl.place == "loss":
            return None
        mask = self._scored(batch)  # there are no advantages yet
        return kl.weight * in_parts(
            lambda part: (self.terms(policy, part).kl(kl.scaling) * self._scored(part)).sum(1), batch, self.rows
        ).masked_fill(~mask.any(1), 0.0)

    def terms(self, policy: SnapshotPolicy, batch: Batch) -> FlowTerms | TokenTerms:
        if isinstance(batch.samples, Completions):
            return TokenTerms(policy, batch, self.pack)
        return FlowTerms(policy, batch)

    def losses(self, terms: FlowTerms | TokenTerms) -> Losses:
        batch, config = terms.batch, self.config
        decisions, mask = batch.samples.decisions, self.mask(batch)
        assert decisions is not None
        log_ratio = terms.log_prob - decisions.log_prob
        advantage = batch.credit.expand(log_ratio.shape).double()
        used = sequence_log_ratio(log_ratio, mask) if config.importance_sampling_level == "sequence" else log_ratio
        parts = {"policy": clipped_ratio_loss(used, advantage, config.clip_low, config.clip_high)}
        ratio, drift = used.detach().exp(), log_ratio.detach()
        metrics = {
            "clip_ratio/low": ((ratio < 1 - config.clip_low) & (advantage < 0)).double(),
            "clip_ratio/high": ((ratio > 1 + config.clip_high) & (advantage > 0)).double(),
            "ratio/mean": ratio,
            "ratio/deviation": (drift.exp() - 1).abs(),
            "approx_kl": drift.expm1() - drift,
        }
        if isinstance(terms, TokenTerms):
            metrics["entropy"] = terms.entropy
        if self._kl_in_loss:
            kl = terms.kl(config.kl.scaling)
            parts["kl"] = config.kl.weight * kl
            metrics["kl"] = kl.detach()
        return Losses(parts=parts, weights=self.weights(batch), mask=mask, metrics=metrics)
