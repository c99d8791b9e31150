"""How much noise a step takes: as much as leaves it as likely to gain as to lose (the calibration of DenseGRPO).

Departures: how often levels move is stated in the recipe (the paper does not say), and they stay where the kernel is defined.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from plaudit.recipe.sampling import Balance, Sampler
from plaudit.recipe.schema import UP_TO_ONE
from plaudit.sampling.drawers import FlowDrawer
from plaudit.sampling.rollout import FlowSamples
from plaudit.shaping.dense import step_gains
from plaudit.train.collect import expand_groups
from plaudit.train.credit import totals, worth_of_states
from plaudit.train.setup import Setup

BEFORE_TRAINING = -2  # the step number of noise that levels are found with; the round counts on downwards


@dataclass
class Balanced:
    """How many of a round's rollouts rose and fell at each step, round by round, and what that took."""

    rose: list[list[int]] = field(default_factory=list)
    fell: list[list[int]] = field(default_factory=list)
    network_calls: int = 0
    reward_calls: int = 0


def moved(levels: Tensor, rose: Tensor, fell: Tensor, config: Balance, largest: float) -> Tensor:
    """Levels `[D]` after a round: up where about as many rollouts `rose [D]` as `fell [D]`, else down."""
    even = (rose - fell).abs() < config.tolerance
    return (levels + torch.where(even, config.move, -config.move)).clamp(min=config.move, max=largest)


def balance_noise(setup: Setup) -> Balanced:
    """Finds the drawer's levels, from where they are."""
    drawer, sampler, found = setup.drawer, setup.recipe.sampler, Balanced()
    assert isinstance(drawer, FlowDrawer) and isinstance(sampler, Sampler), "the recipe has checked this"
    largest = 1.0 if sampler.kernel in UP_TO_ONE else torch.inf
    for turn in range(sampler.balance.rounds):
        rose, fell = _round(setup, drawer, turn, found)
        drawer.levels[: len(rose)] = moved(drawer.levels[: len(rose)], rose, fell, sampler.balance, largest)
    return found


@torch.no_grad()
def _round(setup: Setup, drawer: FlowDrawer, turn: int, found: Balanced) -> tuple[Tensor, Tensor]:
    recipe, count = setup.recipe, drawer.sampler.balance.samples
    prompts = setup.prompts.batch(turn, count, recipe.run.seed)
    prompts, group, keys = expand_groups(prompts, 1, recipe.run.seed, BEFORE_TRAINING - turn)
    piece = drawer.join(list(drawer.training(prompts, keys, keys)))
    assert isinstance(piece.samples, FlowSamples) and isinstance(piece.outputs, Tensor)
    scored = setup.ranks.from_main(partial(totals, setup, prompts, piece.outputs, group))
    worth, calls, asked = worth_of_states(setup, "full", piece.samples, prompts, group, scored.total)
    gain = step_gains(worth)
    rose, fell = (gain > 0).sum(0), (gain < 0).sum(0)
    found.rose.append(rose.tolist())
    found.fell.append(fell.tolist())
    found.network_calls += piece.samples.network_calls + calls
    found.reward_calls += scored.calls + asked
    return rose, fell
