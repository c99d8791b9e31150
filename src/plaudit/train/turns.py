"""Who learns in a step, and how a reward learns from what was drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from plaudit.errors import RunError
from plaudit.recipe.turns import POLICY
from plaudit.rewards.learned.adversarial import Learner
from plaudit.train.feeds import Fed
from plaudit.train.setup import Setup
from plaudit.train.trainable import Trainable


@dataclass(frozen=True, kw_only=True)
class Turn:
    """Who learns, and what a gate found."""

    who: str
    metrics: Mapping[str, float] = field(default_factory=dict)


def whose_turn(setup: Setup, fed: Fed, step: int) -> Turn:
    turns = setup.recipe.turns
    if turns.gate is None:
        return Turn(who=turns.at(step))
    lead = setup.ranks.from_main(partial(_lead, setup, turns.gate, fed, step))
    return Turn(who=turns.gate if lead < 0 else POLICY, metrics={f"turns/{turns.gate}_lead": lead})


def _lead(setup: Setup, name: str, fed: Fed, step: int) -> float:
    """Of the references over what was drawn, on average."""
    learner = _learner(setup, name)
    references = learner.references.of(fed.batch.prompts, step)
    return learner.lead(fed.batch.prompts, references, _pictures(fed)).mean().item()


def teach(setup: Setup, name: str, fed: Fed, step: int) -> dict[str, float | None]:
    """A reward's updates from one rollout, made where rewards are asked; the others are told what came of it."""
    return setup.ranks.from_main(partial(_taught, setup, name, fed, step))


def _taught(setup: Setup, name: str, fed: Fed, step: int) -> dict[str, float | None]:
    learner, trainable = _learner(setup, name), setup.learners[name]
    learning = setup.recipe.rewards[name].learn
    assert learning is not None, "only rewards that learn have a turn"
    for _ in range(learning.updates):
        loss, norm = _update(learner, trainable, fed, step, setup.recipe.train.micro_batch)
    return {f"turns/{name}_loss": loss, f"turns/{name}_grad_norm": norm}


def _update(learner: Learner, trainable: Trainable, fed: Fed, step: int, size: int) -> tuple[float, float]:
    """The mean loss over the rollout, taken a few at a time, and the norm of its gradient."""
    pictures, references, total = _pictures(fed), learner.references.of(fed.batch.prompts, step), 0.0
    trainable.optimizer.zero_grad(set_to_none=True)
    for first in range(0, len(pictures), size):
        some = slice(first, first + size)
        losses = learner.losses(fed.batch.prompts[some], references[some], pictures[some], step)
        loss = losses.sum() / len(pictures)
        loss.backward()
        total += loss.item()
    norm = trainable.clipped_norm()
    if not (math.isfinite(total) and math.isfinite(norm)):
        raise RunError(
            f"step {step}: the loss of a reward that learns is {total} and the gradient norm {norm}; its optimiser step was not "
            "taken and the last checkpoint is sound. Lower its learn.lr, then go on with --resume"
        )
    trainable.move()
    return total, norm


def _learner(setup: Setup, name: str) -> Learner:
    found: Any = next(reward.caller.function for reward in setup.rewards.rewards if reward.name == name)
    return found  # type: ignore[no-any-return]


def _pictures(fed: Fed) -> Tensor:
    assert isinstance(fed.outputs, Tensor), "rewards learn from pictures; the recipe has checked this"
    return fed.outputs
