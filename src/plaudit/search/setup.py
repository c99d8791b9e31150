"""From names to a task: a lab model, a run folder or a recipe; prompts; rewards."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from plaudit import storage
from plaudit.data.prompt import Prompt
from plaudit.data.sources import identify, load_prompts, read_prompts
from plaudit.errors import RecipeError
from plaudit.models.build import build_model
from plaudit.models.conditioning import PromptEncoder
from plaudit.models.flow import FlowModel, times_of
from plaudit.models.lora import add_lora
from plaudit.models.origin import load_result
from plaudit.models.tokens import TokenModel
from plaudit.recipe.load import load
from plaudit.recipe.sampling import EvaluationSampler, Sampler
from plaudit.recipe.schema import UP_TO_ONE, Recipe
from plaudit.recipe.text import parse
from plaudit.rewards.base import Card
from plaudit.rewards.scoring import RewardLike, name_of, reward_of
from plaudit.rewards.suite import Suite, load_suite, make_suite
from plaudit.search.budget import Budget
from plaudit.search.config import SearchSampler
from plaudit.search.flow.task import FlowTask
from plaudit.worlds import NETWORKS, world_of

LAB = "lab/"
KERNEL = "flow_sde"  # of stochastic steps, where the recipe's own sampler has none


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What `--model` names: its recipe, and the run or checkpoint whose weights it has."""

    name: str
    recipe: Recipe
    weights: Path | None = None

    @property
    def calibration(self) -> Path | None:
        """Scales that the run measured before it began."""
        file = self.weights.parents[1] if self.weights and storage.is_complete(self.weights) else self.weights
        return file / "calibration.json" if file and (file / "calibration.json").is_file() else None


def find_origin(given: str | Mapping[str, Any]) -> Origin:
    """`lab/NAME`, a run folder or one of its checkpoints, `package.module:factory`, a recipe by name or file, or what a recipe
    has as `model:`, as a mapping or in YAML."""
    text = given if isinstance(given, str) else json.dumps(given)
    if not isinstance(given, str) or text.lstrip().startswith("{"):
        config = parse(text, f"--model {text}") if isinstance(given, str) else given
        custom = {"type": "custom"} if "factory" in config else {}
        return Origin(name=text, recipe=load({"model": {**custom, **config}}))
    if text.startswith(LAB):
        network = text.removeprefix(LAB)
        world = [world_of(network).recipe] if network in NETWORKS else []
        return Origin(name=text, recipe=load([*world, {"model": {"type": "lab", "name": network}}]))
    path = Path(text)
    run = path.resolve().parents[1] if storage.is_complete(path) else path
    if (run / "recipe.yaml").is_file():
        return Origin(name=text, recipe=load([run / "recipe.yaml"]), weights=path)
    if path.is_dir():
        raise RecipeError(f"--model {text}: the folder is neither a run nor a checkpoint of one; it has no recipe.yaml")
    if ":" in text:
        return find_origin({"factory": text})
    return Origin(name=text, recipe=load([text]))


def build_origin(origin: Origin) -> FlowModel | TokenModel:
    """The model with its weights."""
    model = build_model(origin.recipe.model)
    if origin.weights is not None:
        if origin.recipe.model.lora is not None:
            add_lora(model, origin.recipe.model.lora, origin.recipe.run.seed)
        load_result(model, origin.weights)
    return model


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
