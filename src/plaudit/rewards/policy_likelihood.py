"""How probable the model in training finds the reference answer after its own reasoning.

Shape legend: B outputs, L tokens of an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from plaudit.errors import RecipeError, RewardError
from plaudit.models.tokens import Ids, TokenModel
from plaudit.rewards.base import Card, Score, Status, missing
from plaudit.rewards.call import Request
from plaudit.rewards.likelihood import Reduction, likelihood_score, reduction_card
from plaudit.sampling.tokens import Completions, chosen_log_probs, given_completions, replay_logits

ROWS = 64


def reasoning_length(model: TokenModel, ids: Ids, delimiter: str) -> int | None:
    """Tokens up to and including the one that completes the delimiter; None where it never comes."""
    if delimiter not in model.decode(ids):
        return None
    low, high = 1, len(ids)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if delimiter in model.decode(ids[:middle]) else (middle + 1, high)
    return low


def with_answers(
    model: TokenModel, prompt_ids: Sequence[Ids], completion_ids: Sequence[Ids], answers: Sequence[str], delimiter: str
) -> tuple[Completions, Tensor]:
    """The reference answers as completions of prompt and reasoning, and the lengths `[B]` of the reasoning in tokens.

    Reasoning ends with the delimiter, which is put there where the model did not write it. The end of the text belongs to
    the answer.
    """
    contexts, lengths = [], []
    for prompt, ids in zip(prompt_ids, completion_ids, strict=True):
        own = tuple(i for i in ids if i not in model.end_ids)
        length = reasoning_length(model, own, delimiter)
        if length is None:
            added = tuple(i for i in model.encode_completion(delimiter) if i not in model.end_ids)
            contexts.append((*prompt, *own, *added))
        else:
            contexts.append((*prompt, *own[:length]))
        lengths.append(len(own) if length is None else length)
    given = given_completions(contexts, [model.encode_completion(answer) for answer in answers])
    return given, torch.tensor(lengths)


class PolicyLikelihood:
    """Likelihood of the reference `answer` after the output's reasoning, under the model that is being trained. `delimiter` is
    the text after which the answer stands."""

    card = Card(
        summary="likelihood of the reference answer after the reasoning, under the model in training",
        kind="text",
        high=0,
        systems=("S073",),
    )

    def __init__(self, delimiter: str, reduction: Reduction = "mean") -> None:
        if not delimiter:
            raise RecipeError("policy_likelihood: delimiter is empty; give the text after which the answer stands")
        self.card = reduction_card(type(self).card, reduction, "policy_likelihood")
        self.delimiter, self.reduction = delimiter, reduction
        self.policy: Any = None

    def bind(self, policy: Any) -> None:
        self.policy = policy

    @torch.no_grad()
    def __call__(
        self,
        prompts: Sequence[str],
        outputs: Sequence[str],
        answer: Sequence[str | None],
        request: Request,
        completion_ids: Sequence[Sequence[int]] | None = None,
    ) -> list[Score]:
        if self.policy is None:
            raise RewardError(
                "policy_likelihood asks the model in training; use it in a recipe that trains a token model"
            )
        model: TokenModel = self.policy.model
        rows = [i for i, text in enumerate(answer) if text]
        scores = [missing(Status.NOT_APPLICABLE, "no reference answer")] * len(outputs)
        if not rows:
            return scores
        prompt_ids = model.encode([request.prompts[i] for i in rows])
        drawn = [tuple(completion_ids[i]) if completion_ids else model.encode_completion(outputs[i]) for i in rows]
        given, _ = with_answers(model, prompt_ids, drawn, [str(answer[i]) for i in rows], self.delimiter)
        for part in torch.arange(len(rows)).split(ROWS):
            some = given.select(part)
            found = chosen_log_probs(replay_logits(model, some, 0), some)
            for i, log_probs, mask in zip(part.tolist(), found, some.mask, strict=True):
                scores[rows[i]] = likelihood_score(log_probs[mask], self.reduction)
        return scores
