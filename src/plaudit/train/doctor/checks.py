"""What a check of a run looks at and says: shared by the checks of both families."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from plaudit.data.prompt import Prompt
from plaudit.objectives.batch import Batch
from plaudit.recipe.schema import Recipe
from plaudit.sampling.base import Piece
from plaudit.sampling.noise import SampleKey
from plaudit.shaping.credit import Credit

if TYPE_CHECKING:
    from plaudit.rewards.suite import ScoredBatch
    from plaudit.train.setup import Setup
    from plaudit.train.trainable import Policy


@dataclass(frozen=True, kw_only=True)
class Check:
    """One verdict; `passed` is None where the check does not apply."""

    name: str
    passed: bool | None
    value: str
    limit: str
    remedy: str
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class Patient:
    """What the checks look at: a set-up and one small rollout of it, which is drawn when a check first asks for it."""

    setup: Setup
    prompts: list[Prompt]
    keys: list[SampleKey]
    first_of_group: list[SampleKey]
    group: Tensor
    given: Piece | None = None  # a rollout to look at instead of one of its own

    @functools.cached_property
    def piece(self) -> Piece:
        """The rollout, with the recipe's own sampler."""
        if self.given is not None:
            return self.given
        return drawn(self.setup, self.prompts, self.keys, self.first_of_group)

    @property
    def recipe(self) -> Recipe:
        return self.setup.recipe

    def batch(self) -> Batch:
        """What the objective learns from, with made-up advantages of both signs."""
        if self.setup.objective.needs.feed != "rollouts":
            from plaudit.train.feeds import feed

            return feed(self.setup, 0, 0).batch
        count = len(self.keys)
        true = torch.ones(count, dtype=torch.bool)
        scored = self.setup.rewards(self.prompts, self.piece.outputs, group=self.group, completion_ids=self.piece.ids)
        return Batch(
            samples=self.piece.samples,
            prompts=tuple(self.prompts),
            keys=tuple(self.keys),
            group=self.group,
            score=scored.total,
            scores=scored.parts,
            credit=Credit(value=torch.cos(torch.arange(count).float() + 0.5), valid=true),
            informative=true,
        )

    def scored(self, prompts: Sequence[Prompt] | None = None, order: Tensor | None = None) -> ScoredBatch:
        """Scores of the outputs, or of some in another order, under their prompts or others."""
        piece = self.piece if order is None else self.piece.select(order)
        return self.setup.rewards(prompts or self.prompts, piece.outputs, completion_ids=piece.ids)


def within(name: str, value: float, limit: float, remedy: str) -> Check:
    return Check(name=name, passed=value <= limit, value=f"{value:.2e}", limit=f"<= {limit:g}", remedy=remedy)


def not_applicable(name: str, why: str) -> Check:
    return Check(name=name, passed=None, value=why, limit="", remedy="")


def admit(setup: Setup, prompts: int = 3, size: int = 4) -> Patient:
    """Prompts in groups, as a step has them, but few."""
    from plaudit.train.collect import expand_groups

    seed = setup.recipe.run.seed
    members, group, keys = expand_groups(setup.prompts.batch(0, prompts, seed), size, seed, 0)
    first = [keys[i - i % size] for i in range(len(keys))]
    return Patient(setup=setup, prompts=members, keys=keys, first_of_group=first, group=group)


@torch.no_grad()
def drawn(setup: Setup, prompts: list[Prompt], keys: list[SampleKey], first: list[SampleKey]) -> Piece:
    return setup.drawer.join(list(setup.drawer.training(prompts, keys, first)))


@contextlib.contextmanager
def nudged(policy: Policy) -> Iterator[None]:
    """Slightly other weights for a moment, so that the policy differs from its reference."""
    own = {key: parameter.data for key, parameter in policy.trainable.items()}
    try:
        for parameter in policy.trainable.values():
            parameter.data = parameter.data + 1e-3 * parameter.data.abs().mean().clamp(min=1e-2)
        yield
    finally:
        for key, parameter in policy.trainable.items():
            parameter.data = own[key]
