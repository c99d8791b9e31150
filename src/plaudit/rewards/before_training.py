"""Scores of what the model answered before training: what a score in training is compared with (S101)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from plaudit.data.prompt import Prompt
from plaudit.errors import RecipeError, RewardError
from plaudit.models.tokens import TokenModel
from plaudit.recipe.sampling import AnySampler, TokenSampling
from plaudit.rewards.base import Card, Score, Status
from plaudit.rewards.calling.request import Request, make_request
from plaudit.rewards.rules.outcomes import inner_caller
from plaudit.sampling.noise import SampleKey
from plaudit.sampling.tokens import draw_completions

SEED = 20_000_047
"""Of draws that no run makes: reference answers share no noise with the answers they are compared with."""


def key_of(prompt: Prompt) -> str:
    """Two prompts of one id, from two files, are two prompts."""
    return f"{prompt.id} {prompt.text}"


class ReferenceScore:
    """Score, by `reward`, of the answer that the model gave to the same prompt before training. Entries of a recipe with
    other values of `index` are other answers: `combine: par(score, ref0, ref1)` with `reward` that of `score`.

    An answer is drawn once, when its prompt first comes up, from the snapshot `reference`, by the recipe's `sampler` with noise
    of its own. What is known travels with checkpoints, so that a resumed run compares with the same numbers.
    """

    card = Card(
        summary="score of the answer that the model gave to the same prompt before training",
        kind="text",
        systems=("S101",),
    )

    def __init__(self, reward: Mapping[str, Any], index: int = 0) -> None:
        if index < 0:
            raise RecipeError(f"reference_score: `index` {index}; number the reference answers from 0")
        self.caller = inner_caller("reference_score.reward", reward)
        self.inner_rewards = (self.caller,)
        self.index = index
        self.policy: Any = None
        self.sampling: TokenSampling | None = None
        self.known: dict[str, float] = {}
        own = self.caller.card
        if own is not None:
            self.card = replace(type(self).card, low=own.low, high=own.high, higher_is_better=own.higher_is_better)

    def bind(self, policy: Any, sampler: AnySampler) -> None:
        if not isinstance(sampler, TokenSampling):
            raise RecipeError("reference_score draws texts; model is of another family, use a language model")
        self.policy, self.sampling = policy, sampler
        if "reference" not in policy.snapshots:
            policy.take("reference")

    def __call__(self, prompts: Sequence[str], outputs: Sequence[str], request: Request) -> list[Score]:
        new = {key_of(prompt): prompt for prompt in request.prompts if key_of(prompt) not in self.known}
        found = dict[str, Score]()
        if new:
            answered = list(new.values())
            scores = self.caller(make_request(answered, self.answers(answered), step=request.step))
            found = dict(zip(new, scores, strict=True))
            self.known |= {key: score.value for key, score in found.items() if score.status is Status.OK}
        keys = [key_of(prompt) for prompt in request.prompts]
        return [found[key] if key in found else Score(value=self.known[key]) for key in keys]

    @torch.no_grad()
    def answers(self, prompts: Sequence[Prompt]) -> list[str]:
        """What the model before training says to these prompts."""
        if self.policy is None or self.sampling is None:
            raise RewardError(
                "reference_score asks the model before training; use it in a recipe that trains a token model"
            )
        model: TokenModel = self.policy.model
        keys = [SampleKey(seed=SEED, step=0, prompt=prompt.id, index=self.index) for prompt in prompts]
        prompt_ids, texts = model.encode(prompts), list[str]()
        with self.policy.using("reference"):
            for start in range(0, len(prompts), self.sampling.tile):
                of = slice(start, start + self.sampling.tile)
                texts += [
                    model.decode(ids) for ids in draw_completions(model, prompt_ids[of], self.sampling, keys[of]).rows()
                ]
        return texts

    def state(self) -> dict[str, float]:
        return dict(self.known)

    def load_state(self, state: Mapping[str, float]) -> None:
        """Only adds: what the model said before training does not change, so a measurement may leave behind what it found."""
        self.known |= state
