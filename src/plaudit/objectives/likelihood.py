"""Likelihood of the reference answer as reward: a policy gradient on the reasoning, and the reward's own gradient.

    L = -[ sg(A_i) log p(z_i | q) + R_theta(q, z_i, a*) ],   A_i leave-one-out (shaping.std loo)

The first part is GRPO's clipped ratio on the tokens of the reasoning z; what the model wrote as its answer is not trained. R is
the recipe's reward `policy_likelihood` in its reduction: log-probabilities l of the answer's tokens as their `mean` or `sum`,
`probability` exp(sum l), or `mean_probability` mean exp(l). Both parts are means over samples.

Shape legend: B samples, T tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from plaudit.data.prompt import Prompt
from plaudit.objectives.base import Losses, Objective
from plaudit.objectives.batch import Batch, SnapshotPolicy
from plaudit.objectives.grpo import clipped_ratio_loss
from plaudit.objectives.token_terms import TokenTerms
from plaudit.recipe.objectives import LikelihoodConfig
from plaudit.rewards.calling.request import column
from plaudit.rewards.likelihood.policy import PolicyLikelihood, with_answers

ANSWERS, REASONING = "answers", "reasoning"


def reduced(log_prob: Tensor, mask: Tensor, reduction: str) -> Tensor:
    """The reward `[B]` of log-probabilities `[B, L]`, with gradient."""
    count = mask.sum(1).clamp(min=1)
    match reduction:
        case "mean":
            return log_prob.sum(1) / count
        case "sum":
            return log_prob.sum(1)
        case "probability":
            return log_prob.sum(1).exp()
    return (log_prob.exp() * mask).sum(1) / count


class Likelihood(Objective):
    def __init__(self, config: LikelihoodConfig, reward: PolicyLikelihood, pack: int = 0) -> None:
        self.config, self.needs, self.reward, self.pack = config, config.needs, reward, pack
        self.snapshots = {"reference": None} if config.kl.weight > 0 else {}

    def prepare(self, policy: SnapshotPolicy, batch: Batch) -> Batch:
        answers, lengths = with_answers(
            policy.model,
            batch.completions.prompt_ids,
            batch.completions.rows(),
            [str(self._answer(prompt) or "") for prompt in batch.prompts],
            self.reward.delimiter,
        )
        return batch.knowing(**{ANSWERS: answers, REASONING: lengths})

    @staticmethod
    def _answer(prompt: Prompt) -> Any:
        """What the reward gets as its column `answer`."""
        return column(prompt, "answer")

    def mask(self, batch: Batch) -> Tensor:
        """One element per sample that has a reference answer."""
        answered = torch.tensor([bool(self._answer(prompt)) for prompt in batch.prompts])
        return (batch.valid & answered)[:, None]

    def terms(self, policy: SnapshotPolicy, batch: Batch) -> TokenTerms:
        return TokenTerms(policy, batch, self.pack)

    def losses(self, terms: TokenTerms) -> Losses:
        batch, config = terms.batch, self.config
        decisions = batch.completions
        place = torch.arange(decisions.mask.shape[1])
        reasoning = decisions.mask & (place < batch.extra[REASONING][:, None])
        log_ratio = (terms.log_prob - decisions.log_prob) * reasoning
        advantage = batch.credit.expand(log_ratio.shape).double()
        clipped = clipped_ratio_loss(log_ratio, advantage, config.clip_low, config.clip_high)
        answers = terms.of(batch.extra[ANSWERS])
        reward = reduced(answers.log_prob, answers.completions.mask, self.reward.reduction)
        parts = {"policy": (clipped * reasoning).sum(1, keepdim=True), "direct": -config.direct * reward[:, None]}
        drift = ((terms.log_prob - decisions.log_prob) * decisions.mask).detach()
        metrics = {
            "answer_log_prob": answers.log_prob.detach().sum(1, keepdim=True),
            "entropy": (terms.entropy.sum(1) / decisions.length)[:, None],
            "reasoning_length": batch.extra[REASONING][:, None].double(),
            "ratio/deviation": drift.expm1().abs().amax(1, keepdim=True),
            "approx_kl": ((drift.expm1() - drift).sum(1) / decisions.length)[:, None],
        }
        if config.kl.weight > 0:
            kl = (terms.kl(config.kl.scaling) * reasoning).sum(1, keepdim=True)
            parts["kl"] = config.kl.weight * kl
            metrics["kl"] = kl.detach()
        return Losses(parts=parts, weights=self.weights(batch), mask=self.mask(batch), metrics=metrics)
