"""Likelihood of completions: given ones (SFT), or the model's own that scored well (rejection-sampling fine-tuning).

    L = - mean over tokens of log p(y_t | y_<t, x)

Shape legend: B samples, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plaudit.objectives.base import Losses, Objective
from plaudit.objectives.batch import Batch, SnapshotPolicy
from plaudit.objectives.token_terms import TokenTerms
from plaudit.recipe.objectives import SftConfig

KEPT, KEPT_FRAC = "kept", "kept_frac"


def best_of_group(score: Tensor, group: Tensor) -> Tensor:
    """The first of each group's largest scores `[B]`; a group without any score has none."""
    best = torch.zeros(len(score), dtype=torch.bool)
    for g in torch.unique(group):
        members = ((group == g) & score.isfinite()).nonzero()[:, 0]
        if len(members):
            best[members[score[members].argmax()]] = True
    return best


class Sft(Objective):
    def __init__(self, config: SftConfig, pack: int = 0) -> None:
        self.config, self.needs, self.pack = config, config.needs, pack

    def prepare(self, policy: SnapshotPolicy, batch: Batch) -> Batch:
        kept = self._kept(batch)
        return batch.knowing(**{KEPT: kept, KEPT_FRAC: kept.double().mean().expand(len(batch))})

    def _kept(self, batch: Batch) -> Tensor:
        if KEPT in batch.extra:
            kept: Tensor = batch.extra[KEPT]
            return kept
        match self.config.keep:
            case "best":
                return best_of_group(batch.score, batch.group)
            case "threshold":
                assert self.config.threshold is not None
                return batch.score >= self.config.threshold
        return batch.valid

    def computed(self, batch: Batch) -> Tensor:
        return self._kept(batch)

    def mask(self, batch: Batch) -> Tensor:
        return batch.completions.mask & self._kept(batch)[:, None]

    def terms(self, policy: SnapshotPolicy, batch: Batch) -> TokenTerms:
        return TokenTerms(policy, batch, self.pack)

    def losses(self, terms: TokenTerms) -> Losses:
        batch, metrics = terms.batch, {"entropy": terms.entropy}
        if self.config.keep != "given":
            metrics[KEPT_FRAC] = batch.extra[KEPT_FRAC][:, None].expand_as(terms.log_prob)
        return Losses(
            parts={"nll": -terms.log_prob}, weights=self.weights(batch), mask=self.mask(batch), metrics=metrics
        )
