"""From a recipe to the objects of a run."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from plaudit.data.sources import PromptSource, load_prompts
from plaudit.errors import RecipeError
from plaudit.models.build import build_model
from plaudit.models.latents import LatentCache
from plaudit.models.lora import add_lora
from plaudit.objectives.base import Objective
from plaudit.objectives.table import make_objective
from plaudit.ranks import ALONE, Ranks
from plaudit.recipe.rewards import EVALUATION, Learning
from plaudit.recipe.sampling import Sampler
from plaudit.recipe.schema import Recipe
from plaudit.rewards.calling.cache import default_folder
from plaudit.rewards.load import Reward, load_reward
from plaudit.rewards.suite import Suite, recipe_suite
from plaudit.sampling.base import Drawer
from plaudit.sampling.drawers import FlowDrawer, make_drawer
from plaudit.sampling.kernels import find_kernel
from plaudit.sandbox import demand
from plaudit.train.checkpoint import State
from plaudit.train.curriculum import Curriculum
from plaudit.train.rows import check_rows
from plaudit.train.trainable import Policy, Trainable


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The pieces of a run; all of them usable by hand in a notebook."""

    recipe: Recipe
    policy: Policy
    drawer: Drawer
    prompts: PromptSource
    rewards: Suite
    truth: Reward
    objective: Objective
    learners: Mapping[str, Trainable] = field(default_factory=dict)
    ranks: Ranks = ALONE
    curriculum: Curriculum = field(default_factory=Curriculum)

    @functools.cached_property
    def latents(self) -> LatentCache:
        """Of given pictures, in the user's cache."""
        return LatentCache(self.policy.model, default_folder() / "latents")

    def alone(self) -> Setup:
        """The same for one rank by itself, which may then do what the others do not."""
        if self.ranks.count == 1:
            return self
        drawer: Any = self.drawer  # a dataclass, whichever family it draws
        return replace(self, ranks=ALONE, drawer=replace(drawer, ranks=ALONE))

    @property
    def balances(self) -> bool:
        """Whether the noise of the steps is found before training."""
        return isinstance(self.recipe.sampler, Sampler) and self.recipe.sampler.level_schedule == "balanced"

    def levels(self) -> list[float]:
        """The noise of the steps, where it was found."""
        return self.drawer.levels.tolist() if self.balances and isinstance(self.drawer, FlowDrawer) else []

    def state(self) -> State:
        rewards = {
            "calibration": self.rewards.calibration(),
            "memory": self.rewards.state(),
            "counts": {reward.name: reward.caller.meter.counts() for reward in self.rewards.rewards},
        }
        own = {"snapshots": list(self.policy.snapshots), "result": self.result}
        meta = {"rewards": rewards, "curriculum": self.curriculum.state(), "levels": self.levels()}
        learned = {
            f"{name}:{key}": tensor for name, one in self.learners.items() for key, tensor in one.state().items()
        }
        return State(tensors=self.policy.state() | learned, meta=own | meta)

    def load_state(self, state: State) -> None:
        meta = state.meta
        self.policy.load_state(state.tensors)
        for name, learner in self.learners.items():
            own = {key.removeprefix(f"{name}:"): t for key, t in state.tensors.items() if key.startswith(f"{name}:")}
            learner.load_state(own)
        self.rewards.load_calibration(meta["rewards"]["calibration"])
        self.rewards.load_state(meta["rewards"]["memory"])
        for reward in self.rewards.rewards:
            reward.caller.meter.load_counts(meta["rewards"]["counts"][reward.name])
        if "curriculum" in meta:  # checkpoints of format 2 were written without one
            self.curriculum.load_state(meta["curriculum"])
        if meta.get("levels") and isinstance(self.drawer, FlowDrawer):
            self.drawer.levels.copy_(torch.tensor(meta["levels"]))

    @property
    def result(self) -> str:
        """Which weights the run is about: their average when the recipe asks for one."""
        return "ema" if self.recipe.train.ema > 0 else "current"


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a recipe names beside its model."""

    prompts: PromptSource
    rewards: Suite
    truth: Reward
    objective: Objective


def parts_of(recipe: Recipe) -> Parts:
    """What is cheap, and so comes first: a mistyped reward or path is not found after minutes of loading a model."""
    if isinstance(recipe.sampler, Sampler):
        find_kernel(recipe.sampler.kernel)
    prompts, rewards = load_prompts(recipe.prompts), recipe_suite(recipe)
    truth, objective = load_reward(EVALUATION, recipe.evaluate.reward), make_objective(recipe, rewards)
    check_rows(recipe, prompts, objective.needs.feed, objective.needs.scored)
    return Parts(prompts=prompts, rewards=rewards, truth=truth, objective=objective)


def learner_of(reward: Reward, learning: Learning) -> Trainable:
    """The network of a reward that learns."""
    function = reward.caller.function
    network = getattr(function, "network", None)
    if not isinstance(network, nn.Module) or not all(
        hasattr(function, name) for name in ("references", "losses", "lead")
    ):
        kind = reward.config.type if reward.config else function
        raise RecipeError(
            f"rewards.{reward.name}.learn: {kind} has no `network` with `references`, `losses` and `lead`: it cannot learn; use "
            "discriminator, adversarial_proxy or a class of your own (docs/objectives.md), or leave it out"
        )
    trainable = Trainable(network)
    if not trainable.trainable:
        raise RecipeError(f"rewards.{reward.name}.learn: nothing of its network is trainable; leave it out")
    trainable.optimise(learning)
    return trainable


def prepare(recipe: Recipe, ranks: Ranks = ALONE) -> Setup:
    if recipe.run.sandbox:
        demand(recipe.run.sandbox)
    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)
    parts = parts_of(recipe)
    model = build_model(recipe.model)
    if recipe.model.lora is not None:
        add_lora(model, recipe.model.lora, recipe.run.seed)
    policy = Policy(model)
    if not policy.trainable:
        raise RecipeError("model: nothing is trainable; leave model.lora out for full tuning or name its targets")
    for reward in (*parts.rewards.rewards, parts.truth):
        reward.caller.bind(policy, recipe.sampler)
    policy.optimise(recipe.train)
    learners = {
        reward.name: learner_of(reward, reward.config.learn)
        for reward in parts.rewards.rewards
        if reward.config is not None and reward.config.learn is not None
    }
    for name in (*parts.objective.snapshots, *(["ema"] if recipe.train.ema > 0 else [])):
        policy.take(name)
    return Setup(
        recipe=recipe,
        policy=policy,
        drawer=make_drawer(model, recipe.sampler, recipe.evaluate.sampler, parts.objective.needs.density, ranks),
        prompts=parts.prompts,
        rewards=parts.rewards,
        truth=parts.truth,
        objective=parts.objective,
        learners=learners,
        ranks=ranks,
    )
