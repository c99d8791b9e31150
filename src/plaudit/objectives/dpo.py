"""DPO on pairs, with the likelihood of the chosen answer beside it (RPO).

    m = [log p(y+) - log p_ref(y+)] - [log p(y-) - log p_ref(y-)]
    L = -(1 - s) log sigma(b m) - s log sigma(-b m)  -  eta b log p(y+)

`sft_weight` is eta, the weight that RPO derives as pessimism; with reduction `mean` the last term is -eta times the mean over
tokens, as its authors' second implementation has it.

Shape legend: P pairs, T tokens.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from plaudit.objectives.base import Losses, Objective
from plaudit.objectives.batch import Batch, SnapshotPolicy
from plaudit.objectives.token_terms import TokenTerms
from plaudit.recipe.objectives import DpoConfig
from plaudit.sampling.tokens import Completions


def dpo_loss(margin: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Of margins `[P]`: the chance that the labels are swapped is `label_smoothing`."""
    right, wrong = F.logsigmoid(beta * margin), F.logsigmoid(-beta * margin)
    return -(1 - label_smoothing) * right - label_smoothing * wrong


def token_margins(log_prob: Tensor, reference: Tensor) -> Tensor:
    """What each token adds to its answer's log-ratio `[2P, T]`; the chosen answers come first."""
    return log_prob - reference


class Dpo(Objective):
    snapshots = {"reference": None}

    def __init__(self, config: DpoConfig, pack: int = 0) -> None:
        self.config, self.needs, self.pack = config, config.needs, pack

    def mask(self, batch: Batch) -> Tensor:
        return batch.valid[:, None]

    def terms(self, policy: SnapshotPolicy, batch: Batch) -> TokenTerms:
        both = Completions.cat([batch.pairs.chosen, batch.pairs.rejected])
        return TokenTerms(policy, batch, self.pack, both)

    def losses(self, terms: TokenTerms) -> Losses:
        config, own = self.config, terms.log_prob
        chosen, rejected = token_margins(own, terms.reference.log_prob).sum(1).chunk(2)
        parts = {"policy": dpo_loss(chosen - rejected, config.beta, config.label_smoothing)[:, None]}
        log_prob, length = own.sum(1).chunk(2)[0], terms.batch.pairs.chosen.length
        if config.sft_weight > 0:
            scale = config.beta if config.sft_reduction == "sum" else 1 / length
            parts["sft"] = (-config.sft_weight * scale * log_prob)[:, None]
        metrics = {
            "rewards/chosen": config.beta * chosen,
            "rewards/rejected": config.beta * rejected,
            "rewards/margins": config.beta * (chosen - rejected),
            "rewards/accuracies": (chosen > rejected).double(),
            "logps/chosen": log_prob,
            "logps/rejected": own.sum(1).chunk(2)[1],
        }
        mask = self.mask(terms.batch)
        columns = {name: value.detach()[:, None] for name, value in metrics.items()}
        return Losses(parts=parts, weights=self.weights(terms.batch), mask=mask, metrics=columns)
