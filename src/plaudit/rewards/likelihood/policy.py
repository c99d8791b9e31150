"""What the model in training thinks of given texts: of the reference answer after its own reasoning, of the better of two
answers, of a demonstration.

Shape legend: B outputs, L tokens of an answer, P prompts, Z chains of reasoning.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from plaudit.data.prompt import Prompt
from plaudit.errors import RecipeError, RewardError
from plaudit.models.tokens import Ids, TokenModel, continued
from plaudit.rewards.base import Card, Score, Status, missing
from plaudit.rewards.calling.request import Request
from plaudit.rewards.likelihood.frozen import Reduction, likelihood_score, reduction_card
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
            contexts.append(continued(prompt, (*own, *added)))
        else:
            contexts.append(continued(prompt, own[:length]))
        lengths.append(len(own) if length is None else length)
    given = given_completions(contexts, [model.encode_completion(answer) for answer in answers])
    return given, torch.tensor(lengths)


@torch.no_grad()
def token_log_probs_of(model: TokenModel, given: Completions) -> list[Tensor]:
    """Log-probabilities `[L]` of each completion's tokens, few rows at a time."""
    found = []
    for part in torch.arange(len(given)).split(ROWS):
        some = given.select(part)
        values = chosen_log_probs(replay_logits(model, some, 0), some)
        found += [row[mask] for row, mask in zip(values, some.mask, strict=True)]
    return found


def answer_perplexity(log_prob_PZ: Tensor, tokens_P: Tensor) -> Tensor:
    """exp(-(1 / |a|) log mean_z p(a | q, z)) `[P]`, of answers' log-probabilities after Z chains each (S073)."""
    assert log_prob_PZ.shape[:1] == tokens_P.shape, (log_prob_PZ.shape, tokens_P.shape)
    log_mean = log_prob_PZ.double().logsumexp(1) - math.log(log_prob_PZ.shape[1])
    return (-log_mean / tokens_P).exp()


class _AsksPolicy:
    """A reward that asks the model in training; `bind` is called before the first step."""

    name: str
    policy: Any = None

    def bind(self, policy: Any, sampler: Any) -> None:
        if not hasattr(policy.model, "encode_completion"):
            raise RecipeError(
                f"{self.name} asks a language model for the likelihood of texts; model is of another family"
            )
        self.policy = policy

    def model(self) -> TokenModel:
        if self.policy is None:
            raise RewardError(f"{self.name} asks the model in training; use it in a recipe that trains a token model")
        model: TokenModel = self.policy.model
        return model

    def given(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Tensor]:
        """Log-probabilities of the tokens of these texts, each as an answer to its prompt."""
        model = self.model()
        return token_log_probs_of(
            model, given_completions(model.encode(prompts), [model.encode_completion(text) for text in texts])
        )


class PolicyLikelihood(_AsksPolicy):
    """Likelihood of the reference `answer` after the output's reasoning, under the model that is being trained. `delimiter` is
    the text after which the answer stands."""

    name = "policy_likelihood"
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

    def __call__(
        self,
        prompts: Sequence[str],
        outputs: Sequence[str],
        answer: Sequence[str | None],
        request: Request,
        completion_ids: Sequence[Sequence[int]] | None = None,
    ) -> list[Score]:
        model = self.model()
        rows = [i for i, text in enumerate(answer) if text]
        scores = [missing(Status.NOT_APPLICABLE, "no reference answer")] * len(outputs)
        if not rows:
            return scores
        prompt_ids = model.encode([request.prompts[i] for i in rows])
        drawn = [tuple(completion_ids[i]) if completion_ids else model.encode_completion(outputs[i]) for i in rows]
        given, _ = with_answers(model, prompt_ids, drawn, [str(answer[i]) for i in rows], self.delimiter)
        for i, log_probs in zip(rows, token_log_probs_of(model, given), strict=True):
            scores[i] = likelihood_score(log_probs, self.reduction)
        return scores


# --- of data that is learned from --------------------------------------------------------------------------------------


class PairAccuracy(_AsksPolicy):
    """Whether training has moved the model towards the `chosen` answer of a prompt: log p / p_ref of it against that of
    `rejected`, summed over tokens, p_ref the model before training. Outputs are not looked at.

    A tie is half: that is every pair before training, and after it a model that has not moved.
    """

    name = "pair_accuracy"
    card = Card(
        summary="1 where the model in training has come to prefer `chosen` to `rejected`, 0.5 where it has not moved, else 0",
        kind="text",
        low=0,
        high=1,
        systems=("S119",),
        looks_at_outputs=False,
    )

    def bind(self, policy: Any, sampler: Any) -> None:
        super().bind(policy, sampler)
        if "reference" not in policy.snapshots:
            policy.take("reference")

    def __call__(
        self,
        prompts: Sequence[str],
        outputs: Sequence[str],
        request: Request,
        chosen: Sequence[str | None] | None = None,
        rejected: Sequence[str | None] | None = None,
    ) -> list[Score]:
        if chosen is None or rejected is None:
            raise RewardError(
                "pair_accuracy: no prompt has `chosen` and `rejected`; give prompts.heldout, or prompts.train, rows with both"
            )
        rows = [i for i, (a, b) in enumerate(zip(chosen, rejected, strict=True)) if a is not None and b is not None]
        scores = [missing(Status.NOT_APPLICABLE, "no pair")] * len(outputs)
        if not rows:
            return scores
        asked = [request.prompts[i] for i in rows] * 2
        texts = [str(side[i]) for side in (chosen, rejected) for i in rows]
        own = self.given(asked, texts)
        with self.policy.using("reference"):
            before = self.given(asked, texts)
        moved = torch.stack([(a - b).sum() for a, b in zip(own, before, strict=True)])
        for i, margin in zip(rows, (moved[: len(rows)] - moved[len(rows) :]).tolist(), strict=True):
            scores[i] = _preference(margin)
        return scores


def _preference(margin: float) -> Score:
    if not math.isfinite(margin):
        return missing(Status.ERRORED, f"the margin is {margin}")
    return Score(value=0.5 * ((margin > 0) + (margin >= 0)), components={"margin": margin})


class CompletionLikelihood(_AsksPolicy):
    """Mean token log-probability of the prompt's `completion` under the model in training; outputs are not looked at."""

    name = "completion_likelihood"
    card = Card(
        summary="mean token log-probability of the prompt's own `completion`, under the model in training",
        kind="text",
        high=0,
        looks_at_outputs=False,
    )

    def __call__(
        self,
        prompts: Sequence[str],
        outputs: Sequence[str],
        request: Request,
        completion: Sequence[str | None] | None = None,
    ) -> list[Score]:
        if completion is None:
            raise RewardError(
                "completion_likelihood: no prompt has a `completion`; give prompts.heldout, or prompts.train, rows with it"
            )
        rows = [i for i, text in enumerate(completion) if text is not None]
        scores = [missing(Status.NOT_APPLICABLE, "no completion")] * len(outputs)
        found = self.given([request.prompts[i] for i in rows], [str(completion[i]) for i in rows]) if rows else []
        for i, log_probs in zip(rows, found, strict=True):
            scores[i] = likelihood_score(log_probs, "mean")
        return scores
