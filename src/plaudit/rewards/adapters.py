"""Rewards written for other toolkits, and ours for theirs. Each is chosen by name: no signature is guessed.

verl: `compute_score(data_source, solution_str, ground_truth, extra_info=None)`, one output a call, a number or a mapping
with `score`. OpenRLHF: `reward_func(queries, prompts, labels)` on a batch, numbers or a mapping with `rewards`.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from plaudit.data.prompt import Prompt, text_of
from plaudit.dotted import import_dotted
from plaudit.errors import RewardError
from plaudit.recipe.rewards import RewardConfig
from plaudit.rewards.base import Card, RewardFunction, Score, Status, missing
from plaudit.rewards.calling.cache import source_of
from plaudit.rewards.calling.call import Caller
from plaudit.rewards.load import Reward, load_reward

TRL_COLUMNS = ("completion_ids", "trainer_state", "log_extra", "log_metric", "environments")


class VerlReward:
    """A verl `compute_score` function. Its ground truth is the fact `answer`, or in verl's own layout `ground_truth` or
    `reward_model.ground_truth`; `data_source` and `extra_info` are facts too."""

    card = Card(summary="a reward function written for verl", kind="text")

    def __init__(self, function: str, data_source: str | None = None, answer: str | None = None) -> None:
        self.function = import_dotted(function, "rewards.*.arguments.function")
        self.data_source, self.answer = data_source, answer

    def cache_identity(self) -> str:
        return source_of(self.function, "a verl function")

    def __call__(
        self, prompts: Sequence[str], outputs: Sequence[str], facts: Sequence[Mapping[str, Any]]
    ) -> list[Score | float]:
        return [self._one(output, fact) for output, fact in zip(outputs, facts, strict=True)]

    def _one(self, output: str, fact: Mapping[str, Any]) -> Score | float:
        found = self._truth(fact)
        if found is None:
            return missing(Status.NOT_APPLICABLE, f"the prompt has no fact {self.answer or 'answer or ground_truth'}")
        source = fact.get("data_source", self.data_source)
        truth, extra = copy.deepcopy((found, fact.get("extra_info")))  # the function may write into them
        result = self.function(data_source=source, solution_str=output, ground_truth=truth, extra_info=extra)
        if not isinstance(result, Mapping):
            return float(result)
        if "score" not in result:
            raise RewardError(f"a verl function returned {dict(result)!r}; a mapping needs the key `score`")
        value = float(result["score"])
        numbers = {k: float(v) for k, v in result.items() if isinstance(v, int | float) and k != "score"}
        return Score(value=value, components=numbers) if math.isfinite(value) else value

    def _truth(self, fact: Mapping[str, Any]) -> Score | float:
        if self.answer is not None:
            return fact.get(self.answer)
        model = fact.get("reward_model")
        layouts = (fact, fact, model if isinstance(model, Mapping) else {})
        keys = ("answer", "ground_truth", "ground_truth")
        return next((place[key] for place, key in zip(layouts, keys, strict=True) if place.get(key) is not None), None)


class OpenRlhfReward:
    """An OpenRLHF `reward_func`. It sees `prompt + output` as query; the fact `answer` is its label."""

    card = Card(summary="a reward function written for OpenRLHF", kind="text")

    def __init__(self, function: str, answer: str = "answer") -> None:
        self.function = import_dotted(function, "rewards.*.arguments.function")
        self.answer = answer

    def cache_identity(self) -> str:
        return source_of(self.function, "an OpenRLHF function")

    def __call__(self, prompts: Sequence[str], outputs: Sequence[str], facts: Sequence[Mapping[str, Any]]) -> Any:
        queries = [prompt + output for prompt, output in zip(prompts, outputs, strict=True)]
        result = self.function(queries, list(prompts), copy.deepcopy([fact.get(self.answer) for fact in facts]))
        if isinstance(result, Mapping):
            if "rewards" not in result:
                raise RewardError(f"an OpenRLHF function returned the keys {list(result)}; a mapping needs `rewards`")
            result = result["rewards"]
        return result


class ForTrl:
    """One of our rewards as a function that TRL's trainers accept: missing scores are None, columns become facts.

    `ForTrl("exact_answer", place="whole")`, `ForTrl("my_module:mine")`, `ForTrl(function)`, or a loaded reward.
    """

    def __init__(self, reward: Reward | str | RewardFunction, **arguments: Any) -> None:
        if isinstance(reward, str):
            name = reward.rpartition(":")[2]
            reward = load_reward(name, RewardConfig(type=reward, arguments=arguments))
        elif not isinstance(reward, Reward):
            name = getattr(reward, "__name__", type(reward).__name__)
            reward = Reward(
                name=name, caller=Caller(name, functools.partial(reward, **arguments) if arguments else reward)
            )
        self.reward, self.__name__ = reward, reward.name

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        state = columns.get("trainer_state")
        facts = {key: values for key, values in columns.items() if key not in TRL_COLUMNS}
        rows = [_prompt(prompt, {key: values[i] for key, values in facts.items()}) for i, prompt in enumerate(prompts)]
        scores = self.reward(rows, list(completions), step=getattr(state, "global_step", 0))
        return [score.value if score.status is Status.OK else None for score in scores]


def _prompt(prompt: Any, facts: Mapping[str, Any]) -> Prompt:
    text = text_of(prompt)
    return Prompt(id=text, text=text, facts=facts, inputs={} if isinstance(prompt, str) else {"messages": prompt})
