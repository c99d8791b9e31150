"""From a recipe to a task of a token model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from plaudit.data.prompt import Prompt
from plaudit.errors import RecipeError
from plaudit.models.tokens import TokenModel
from plaudit.recipe.load import load
from plaudit.recipe.sampling import TokenSampling
from plaudit.recipe.schema import Recipe
from plaudit.rewards.suite import Suite
from plaudit.search.budget import Budget
from plaudit.search.text.task import TokenTask

TOKEN_RECIPE = "sums-grpo"  # prompts, reward and sampler of the lab's token model


def recipe_for(model: object, *, asked: bool) -> Recipe:
    """The recipe of a model that came as an object; `asked` says whether prompts came with it."""
    from plaudit.models.lab_text import LabTokenModel

    if not hasattr(model, "new_cache"):
        return load({})
    if not asked and not isinstance(model, LabTokenModel):
        raise RecipeError(f"prompts: none are given, and {type(model).__name__} brings none of its own; give some")
    return load([TOKEN_RECIPE])


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
