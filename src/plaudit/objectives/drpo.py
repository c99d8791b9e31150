"""DRPO: right answers are weighed against each other by a preference such as brevity, wrong ones enter a contrast, so that a
long right answer is never pushed down.

    s_i = mean over tokens of log p(o_i | q)
    J = mean over groups [ sum over right omega_i s_i / sum omega  -  tau log mean over wrong exp(s_j / tau) ]
        - b/2 max(KL - d, 0)^2
    omega_i = exp(preference_i / lambda),   KL = mean over tokens of (log p_old - log p)

As in the released code the contrast enters by its gradient, softmax(s_j / tau), and the barrier as b max(KL - d, 0) KL with the
factor held fixed. Both need the whole update, so they are found before it is split. Groups all right or all wrong give
nothing and stay in the divisor.

Shape legend: B samples, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from plaudit.objectives.base import Losses, Objective, in_parts, per_decision
from plaudit.objectives.batch import Batch, SnapshotPolicy
from plaudit.objectives.token_terms import TokenTerms
from plaudit.recipe.objectives import DrpoConfig
from plaudit.shaping.lengths import barrier_weight, decoupled_credit


class Drpo(Objective):
    def __init__(self, config: DrpoConfig, pack: int = 0, updates: int = 1, rows: int = 64) -> None:
        """With one update per step the recorded log-probabilities are the current ones. `rows` samples at a time where no
        gradient is needed."""
        self.config, self.needs = config, config.needs
        self.pack, self.updates, self.rows = pack, updates, rows

    def mask(self, batch: Batch) -> Tensor:
        return batch.completions.mask & batch.valid[:, None]

    def weights(self, batch: Batch) -> Tensor:
        return per_decision(self.mask(batch), "grpo")

    def count(self, batch: Batch) -> float:
        return float(len(torch.unique(batch.group)))

    def computed(self, batch: Batch) -> Tensor:
        if "coefficient" not in batch.extra:
            return batch.valid
        needed: Tensor = (batch.extra["coefficient"] != 0) | (batch.extra["barrier"] > 0)
        return batch.valid & needed

    def prepare(self, policy: SnapshotPolicy, batch: Batch) -> Batch:
        old, mask = batch.completions.log_prob, self.mask(batch)
        total = old.sum(1) if self.updates == 1 else in_parts(self._summed(policy), batch, self.rows)
        length, config = batch.completions.length, self.config
        credit = decoupled_credit(
            total / length,
            batch.scores[config.prefer],
            batch.scores[config.correct].masked_fill(~batch.valid, torch.nan),
            batch.group,
            temperature=config.temperature,
            contrast_temperature=config.contrast_temperature,
        )
        tokens = mask.sum()
        kl: Tensor = (old.sum(1) - total)[batch.valid].sum() / tokens
        barrier = barrier_weight(kl, strength=config.barrier, margin=config.margin)
        # The barrier's mean is over tokens, the weights divide by each length and the count by the groups.
        share = length * self.count(batch) / tokens
        return batch.knowing(coefficient=credit.value.double(), barrier=barrier * share)

    def _summed(self, policy: SnapshotPolicy) -> Callable[[Batch], Tensor]:
        return lambda part: self.terms(policy, part).log_prob.sum(1)

    def terms(self, policy: SnapshotPolicy, batch: Batch) -> TokenTerms:
        return TokenTerms(policy, batch, self.pack)

    def losses(self, terms: TokenTerms) -> Losses:
        batch = terms.batch
        drift = terms.log_prob - batch.completions.log_prob
        parts = {
            "policy": -batch.extra["coefficient"][:, None] * terms.log_prob,
            "barrier": -batch.extra["barrier"][:, None] * drift,
        }
        change = drift.detach()
        metrics = {
            "ratio/deviation": change.expm1().abs(),
            "approx_kl": change.expm1() - change,
            "entropy": terms.entropy,
        }
        return Losses(parts=parts, weights=self.weights(batch), mask=self.mask(batch), metrics=metrics)
