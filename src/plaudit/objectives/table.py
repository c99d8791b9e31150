"""From a recipe's `objective:` to the algorithm."""

from __future__ import annotations

import inspect

from plaudit.dotted import import_dotted, made
from plaudit.errors import RecipeError
from plaudit.objectives.base import Objective
from plaudit.objectives.dpo import Dpo
from plaudit.objectives.drpo import Drpo
from plaudit.objectives.gradient import RewardGradient
from plaudit.objectives.grpo import Grpo
from plaudit.objectives.guarded import Guarded
from plaudit.objectives.likelihood import Likelihood
from plaudit.objectives.nft import Nft
from plaudit.objectives.pairs_flow import FlowDpo, Rwr
from plaudit.objectives.sft import Sft
from plaudit.recipe.objectives import (
    CustomObjective,
    DpoConfig,
    DrpoConfig,
    FlowDpoConfig,
    GradientConfig,
    GrpoConfig,
    LikelihoodConfig,
    NftConfig,
    RwrConfig,
    SftConfig,
)
from plaudit.recipe.sampling import TokenSampling
from plaudit.recipe.schema import Recipe, check_needs
from plaudit.rewards.likelihood.policy import PolicyLikelihood
from plaudit.rewards.suite import Suite


def make_objective(recipe: Recipe, rewards: Suite) -> Objective:
    pack = recipe.sampler.pack if isinstance(recipe.sampler, TokenSampling) else 0
    match recipe.objective:
        case GrpoConfig() as config:
            return Grpo(config, pack, recipe.train.micro_batch)
        case NftConfig() as config:
            return Nft(config)
        case DrpoConfig() as config:
            return Drpo(config, pack, recipe.train.updates_per_step, recipe.train.micro_batch)
        case LikelihoodConfig() as config:
            return Likelihood(config, _own_likelihood(config, rewards), pack)
        case DpoConfig() as config:
            return Dpo(config, pack)
        case SftConfig() as config:
            return Sft(config, pack)
        case GradientConfig() as config:
            return RewardGradient(config, rewards, recipe.missing)
        case FlowDpoConfig() as config:
            return FlowDpo(config)
        case RwrConfig() as config:
            return Rwr(config)
        case CustomObjective() as config:
            return _custom(config, recipe)
    raise RecipeError(f"objective.type: {recipe.objective!r} is not known")


def _own_likelihood(config: LikelihoodConfig, rewards: Suite) -> PolicyLikelihood:
    function = next(reward.caller.function for reward in rewards.rewards if reward.name == config.reward)
    if not isinstance(function, PolicyLikelihood):
        raise RecipeError(
            f"objective.reward: {config.reward!r} is no `policy_likelihood`; only the model's own likelihood has a gradient here"
        )
    return function


def _custom(config: CustomObjective, recipe: Recipe) -> Objective:
    kind = import_dotted(config.path, "objective.class")
    if not (inspect.isclass(kind) and issubclass(kind, Objective)):
        raise RecipeError(
            f"objective.class: {config.path} is no objective; derive a class from plaudit.objectives.base.Objective"
        )
    try:
        inspect.signature(kind).bind(**config.options)
    except TypeError as error:
        raise RecipeError(f"objective.options: {error}; {config.path} takes {inspect.signature(kind)}") from error
    objective: Objective = made(config.path, "objective.class", "objective.options", config.options)
    try:
        check_needs(recipe, objective.needs)
    except ValueError as error:
        raise RecipeError(str(error)) from error
    return Guarded(objective, config.path)
