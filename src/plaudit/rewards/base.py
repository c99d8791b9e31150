"""What a reward is: a function from prompts and outputs to scores, any of which may be missing."""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from plaudit.data.prompt import Prompt
from plaudit.dotted import import_dotted
from plaudit.errors import RecipeError, RewardError
from plaudit.recipe.schema import Missing, RewardConfig


class Status(StrEnum):
    OK = "ok"
    NOT_APPLICABLE = "not_applicable"
    PARSE_FAILED = "parse_failed"
    TIMED_OUT = "timed_out"
    ERRORED = "errored"
    REFUSED = "refused"


@dataclass(frozen=True, kw_only=True)
class Score:
    """One output's score. `value` is NaN exactly when `status` is not ok."""

    value: float
    status: Status = Status.OK
    components: Mapping[str, float] | None = None
    sigma: float | None = None
    dense: Tensor | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if math.isfinite(self.value) != (self.status is Status.OK):
            raise RewardError(
                f"a score of {self.value} cannot have the status {self.status}: only ok scores have a value"
            )


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a user must know of a reward before mixing it with another."""

    summary: str
    low: float
    high: float
    differentiable: bool = False
    batch_invariant: bool = True


RewardFunction = Callable[..., Any]

BUILT_IN = {
    "scene_exact": "plaudit.rewards.rules.scenes:scene_exact",
    "scene_graded": "plaudit.rewards.rules.scenes:scene_graded",
    "scene_match": "plaudit.rewards.rules.scenes:scene_match",
    "scene_proxy": "plaudit.rewards.learned.scene_proxy:SceneProxy",
    "brightness": "plaudit.rewards.rules.pixels:brightness",
}


@dataclass(frozen=True, kw_only=True)
class Reward:
    """A named, callable reward with its weight in the sum."""

    name: str
    function: RewardFunction
    weight: float = 1.0
    card: Card | None = None

    def __call__(self, prompts: Sequence[Prompt], outputs: Tensor) -> list[Score]:
        return call_reward(self.name, self.function, prompts, outputs)


def load_reward(name: str, config: RewardConfig) -> Reward:
    """Resolve a reward by built-in name or dotted path; classes are created, functions get `arguments` bound."""
    key = f"rewards.{name}.type"
    thing = import_dotted(BUILT_IN.get(config.type, config.type), key, built_in=BUILT_IN)
    if not callable(thing):
        raise RecipeError(
            f"{key}: {config.type!r} is a {type(thing).__name__}, which cannot be called; name a function or a class"
        )
    card = getattr(thing, "card", None)
    try:
        if inspect.isclass(thing):
            thing = thing(**config.arguments)
        elif config.arguments:
            thing = functools.partial(thing, **config.arguments)
    except TypeError as error:
        raise RecipeError(f"rewards.{name}.arguments: {error}") from error
    return Reward(name=name, function=thing, weight=config.weight, card=getattr(thing, "card", card))


def load_rewards(configs: Mapping[str, RewardConfig]) -> list[Reward]:
    """Rewards of a recipe. A weighted sum of several is refused unless all say that they share one range."""
    rewards = [load_reward(name, config) for name, config in configs.items()]
    ranges = {reward.name: (reward.card.low, reward.card.high) if reward.card else None for reward in rewards}
    if len(rewards) > 1 and (len(set(ranges.values())) > 1 or None in ranges.values()):
        listed = ", ".join(f"{name} {span if span else 'has no card'}" for name, span in ranges.items())
        raise RecipeError(
            f"rewards: a weighted sum needs one common range, found {listed}; give each reward a card with the same "
            "low and high, or write one reward that combines them"
        )
    return rewards


def _columns(prompts: Sequence[Prompt]) -> dict[str, list[Any]]:
    return {
        "ids": [prompt.id for prompt in prompts],
        "facts": [prompt.facts for prompt in prompts],
        "inputs": [prompt.inputs for prompt in prompts],
    }


def call_reward(name: str, function: RewardFunction, prompts: Sequence[Prompt], outputs: Tensor) -> list[Score]:
    """Call a reward the way TRL does: texts, outputs, and those extra columns that its signature asks for.

    The function gets copies of what it could change, and its random numbers come from a generator state that is put
    back afterwards, so a reward cannot influence the run except by its scores.
    """
    parameters = inspect.signature(function).parameters
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    columns = {key: copy.deepcopy(value) for key, value in _columns(prompts).items() if takes_all or key in parameters}
    output_name = next((key for key in ("outputs", "completions", "images") if key in parameters), "outputs")
    state = torch.get_rng_state()
    try:
        result = function(prompts=[prompt.text for prompt in prompts], **{output_name: outputs.clone()}, **columns)
        if inspect.isawaitable(result):
            with ThreadPoolExecutor(max_workers=1) as pool:  # a notebook's own thread already runs an event loop
                result = pool.submit(asyncio.run, _awaited(result)).result()
    except RewardError:
        raise
    except Exception as error:  # user code may raise anything; the run stops and says whose it was
        raise RewardError(
            f"rewards.{name} raised {type(error).__name__}: {error}; nothing was scored as a number"
        ) from error
    finally:
        torch.set_rng_state(state)
    return _as_scores(name, result, len(prompts))


async def _awaited(result: Any) -> Any:
    return await result


def _as_scores(name: str, result: Any, expected: int) -> list[Score]:
    try:
        values = list(result.tolist() if isinstance(result, Tensor) else result)
    except TypeError as error:
        raise RewardError(f"rewards.{name} returned {result!r}; return a list with one score per output") from error
    if len(values) != expected:
        raise RewardError(
            f"rewards.{name} returned {len(values)} scores for {expected} outputs; return one per output, None where there "
            "is none"
        )
    return [_as_score(name, value) for value in values]


def _as_score(name: str, value: Any) -> Score:
    if isinstance(value, Score):
        return value
    if value is None:
        return Score(value=math.nan, status=Status.NOT_APPLICABLE)
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise RewardError(f"rewards.{name} returned {value!r}; a score is a number, None or a plaudit.Score") from error
    if not math.isfinite(number):
        return Score(value=math.nan, status=Status.ERRORED, note=f"the reward returned {number}")
    return Score(value=number)


@dataclass(frozen=True, kw_only=True)
class ScoredBatch:
    """`total [B]` is the weighted sum, NaN where any part is missing; `parts` has every reward's own values."""

    total: Tensor
    parts: Mapping[str, Tensor]
    scores: Mapping[str, Sequence[Score]]

    @property
    def calls(self) -> int:
        return sum(len(values) for values in self.parts.values())


def score_batch(rewards: Sequence[Reward], prompts: Sequence[Prompt], outputs: Tensor) -> ScoredBatch:
    scores = {reward.name: reward(prompts, outputs) for reward in rewards}
    parts = {
        name: torch.tensor([score.value for score in batch], dtype=torch.float64) for name, batch in scores.items()
    }
    total = torch.stack([reward.weight * parts[reward.name] for reward in rewards]).sum(0)
    return ScoredBatch(total=total, parts=parts, scores=scores)


def enforce_missing(batch: ScoredBatch, missing: Missing) -> None:
    """Stop a run that is being fed nothing."""
    for name, values in batch.parts.items():
        absent = int(torch.isnan(values).sum())
        limit = 0.0 if missing.on_missing == "fail" else missing.max_missing_fraction
        if absent > limit * len(values):
            examples = [
                f"{s.status}{': ' + s.note if s.note else ''}" for s in batch.scores[name] if s.status is not Status.OK
            ]
            raise RewardError(
                f"rewards.{name}: {absent} of {len(values)} scores are missing, more than missing.max_missing_fraction "
                f"{limit:g} allows (first: {examples[0]}); mend the reward or raise the limit"
            )
