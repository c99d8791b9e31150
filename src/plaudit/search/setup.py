"""From a recipe and what a user chooses to a task: prompts, rewards, how samples are drawn."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from plaudit.data.prompt import Prompt
from plaudit.data.sources import identify, load_prompts, read_prompts
from plaudit.errors import RecipeError
from plaudit.models.conditioning import PromptEncoder
from plaudit.models.flow import FlowModel, times_of
from plaudit.models.origin import Origin
from plaudit.models.tokens import TokenModel
from plaudit.recipe.base import Positive, PositiveFloat, Strict
from plaudit.recipe.sampling import EvaluationSampler, Sampler, TokenSampling
from plaudit.recipe.schema import UP_TO_ONE, Recipe
from plaudit.rewards.base import Card
from plaudit.rewards.scoring import RewardLike, name_of, reward_of
from plaudit.rewards.suite import Suite, load_suite, make_suite
from plaudit.search.budget import Budget
from plaudit.search.flow.task import FlowTask
from plaudit.search.text.task import TokenTask

KERNEL = "flow_sde"  # of stochastic steps, where the recipe's own sampler has none


class SearchSampler(Strict):
    """What is None comes from the recipe: steps, guidance, shift, solver and tile from `evaluate.sampler`, so that a plain
    sample is what an evaluation draws; kernel and level of the methods' stochastic steps from `sampler`."""

    steps: Positive | None = None
    guidance: Annotated[float, Field(ge=0)] | None = None
    shift: PositiveFloat | None = None
    solver: Literal["euler", "heun"] | None = None
    kernel: Literal["flow_sde", "constant_eta", "cps", "ddim_eta"] | None = None
    level: Annotated[float, Field(ge=0)] | None = None
    tile: Positive | None = None


def find_prompts(recipe: Recipe, prompts: Sequence[str | Prompt] | Path | None, count: int) -> list[Prompt]:
    """Those given, those of a file, or the recipe's held-out ones; at most `count` of a file or of the held-out."""
    if prompts is None:
        return next(iter(load_prompts(recipe.prompts).evaluation(count).values()))[:count]
    if isinstance(prompts, Path):
        return read_prompts(str(prompts), "--prompts")[:count]
    return [p if isinstance(p, Prompt) else Prompt(id=identify(p), text=p) for p in prompts]


def find_suite(origin: Origin, named: Mapping[str, Any] | None, combine: str | None) -> Suite:
    """The rewards named, or all of the recipe's; a name of one of the recipe's rewards, such as `match`, means that one.
    Several are combined by `combine`, or added by their weights as in a recipe."""
    own = origin.recipe
    if named is None:
        suite = load_suite(own.rewards, own.combine if combine is None else combine)
    else:
        suite = make_suite([reward_of(name, _resolved(own, value)) for name, value in named.items()], combine)
    if origin.calibration is not None and suite.uncalibrated:
        suite.load_calibration(json.loads(origin.calibration.read_text(encoding="utf-8")))
    return suite


def check_kinds(cards: Mapping[str, Card | None], family: str) -> None:
    """Before anything is drawn: a reward for pictures has nothing to say of texts."""
    made = "text" if family == "tokens" else "image"
    for name, card in cards.items():
        if card is not None and (card.kind == "text") != (made == "text"):
            raise RecipeError(
                f"reward {name} judges outputs of kind {card.kind}, and this model makes {made}s; `plaudit rewards list --kind "
                f"{made}` names those that fit"
            )


def _resolved(recipe: Recipe, value: RewardLike) -> RewardLike:
    named = value.get("type") if isinstance(value, Mapping) and set(value) == {"type"} else value
    return recipe.rewards.get(named, value) if isinstance(named, str) else value


def named_rewards(reward: str | Any | Mapping[str, RewardLike] | Sequence[str] | None) -> dict[str, RewardLike] | None:
    """Rewards by name: `match`, a function, several names, or a mapping of names to either."""
    if reward is None:
        return None
    if isinstance(reward, Mapping):
        return dict(reward)
    if isinstance(reward, list | tuple):
        return {name_of(one): one for one in reward}
    return {name_of(reward): reward}


def make_task(
    model: FlowModel,
    recipe: Recipe,
    prompts: Sequence[Prompt],
    suite: Suite | None,
    budget: Budget,
    *,
    sampler: SearchSampler,
    seed: int,
) -> FlowTask:
    plain, stochastic = recipe.evaluate.sampler, recipe.sampler
    assert isinstance(plain, EvaluationSampler) and isinstance(stochastic, Sampler)
    steps, guidance = sampler.steps or plain.steps, plain.guidance if sampler.guidance is None else sampler.guidance
    own_kernel = KERNEL if stochastic.kernel == "ode" else stochastic.kernel
    kernel, level = sampler.kernel or own_kernel, stochastic.level if sampler.level is None else sampler.level
    if kernel in UP_TO_ONE and level > 1:
        raise RecipeError(f"level: {level:g} for the kernel {kernel}, whose levels lie in [0, 1]")
    return FlowTask(
        model,
        prompts,
        PromptEncoder(model, capacity=max(len(prompts), 1))(prompts, guidance),
        suite,
        budget,
        times=times_of(model, steps, sampler.shift or plain.shift),
        kernel=kernel,
        level=level,
        solver=sampler.solver or plain.solver,
        tile=sampler.tile or plain.tile,
        seed=seed,
    )


def make_sampler(choices: Mapping[str, Any]) -> SearchSampler:
    try:
        return SearchSampler.model_validate({key: value for key, value in choices.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        key, allowed = ".".join(map(str, first["loc"])), ", ".join(SearchSampler.model_fields)
        raise RecipeError(
            f"search: {key}: {first['input']!r}: {first['msg']}; a flow model's sampler has {allowed}"
        ) from None


def make_token_sampling(recipe: Recipe, choices: Mapping[str, Any]) -> TokenSampling:
    """How an evaluation draws, so that a plain sample is what it draws; where that is greedy, how training does, for greedy
    candidates would all be one. `choices` that are not None replace keys of it."""
    base = next((s for s in (recipe.evaluate.sampler, recipe.sampler) if _draws(s)), recipe.evaluate.sampler)
    given = {key: value for key, value in choices.items() if value is not None}
    try:
        sampling = TokenSampling.model_validate({**base.model_dump(), **given})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        allowed = ", ".join(name for name in TokenSampling.model_fields if name not in ("type", "pack"))
        raise RecipeError(
            f"search: {key}: {first['input']!r}: {first['msg']}; a token model's sampler has {allowed}"
        ) from None
    if sampling.temperature == 0:
        raise RecipeError(
            "search: temperature 0 draws the same text every time; set evaluate.sampler.temperature, or pass temperature, "
            "above 0"
        )
    return sampling


def _draws(sampler: object) -> bool:
    return isinstance(sampler, TokenSampling) and sampler.temperature > 0


def make_token_task(
    model: TokenModel,
    prompts: Sequence[Prompt],
    suite: Suite | None,
    budget: Budget,
    *,
    sampling: TokenSampling,
    seed: int,
) -> TokenTask:
    return TokenTask(model, prompts, suite, budget, sampling=sampling, seed=seed)


def token_about(task: TokenTask) -> dict[str, Any]:
    """How the texts were drawn, for the record."""
    return task.sampling.model_dump(exclude={"pack"}) | {"tile": task.tile}
