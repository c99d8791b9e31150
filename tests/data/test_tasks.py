from __future__ import annotations

import json

import numpy as np
import pytest

from plaudit.data.tasks import INSTRUCTION, decode, encode, reasoning_gym_prompts
from plaudit.errors import DataError

pytest.importorskip("reasoning_gym")


@pytest.mark.parametrize(
    "value", [(1, (2, "a")), {1: "a", 2: [(3,)]}, {"a": {"b": None, "c": True}}, [1.5, "x", ()], {(0, 1): "edge"}]
)
def test_entries_survive_json(value: object) -> None:
    assert decode(json.loads(json.dumps(encode(value)))) == value


def test_types_are_kept_and_unknown_ones_refused() -> None:
    found = decode(json.loads(json.dumps(encode((True, 1, 1.0, np.str_("a"))))))
    assert [type(one) for one in found] == [bool, int, float, str]
    with pytest.raises(DataError, match="of type set"):
        encode({"a": {1}})


def test_prompts_depend_on_their_arguments_alone() -> None:
    first, again, other = (reasoning_gym_prompts("leg_counting", 3, seed) for seed in (1, 1, 2))
    assert first == again and first != other
    assert len({prompt.id for prompt in first + other}) == 6
    assert first[0].text.endswith(INSTRUCTION)
    assert first[0].facts["task"] == "leg_counting" and first[0].facts["entry"]["answer"].isdigit()


def test_options_reach_the_task_and_the_facts() -> None:
    prompts = reasoning_gym_prompts("chain_sum", 4, 0, instruction="", min_terms=3, max_terms=3)
    assert all(prompt.text.count(" + ") + prompt.text.count(" - ") == 2 for prompt in prompts)
    assert prompts[0].facts["config"] == {"min_terms": 3, "max_terms": 3}


def test_wrong_requests_are_named() -> None:
    with pytest.raises(DataError, match=r"no task 'chainsum'; its tasks: .*chain_sum"):
        reasoning_gym_prompts("chainsum", 1, 0)
    with pytest.raises(DataError, match=r"chain_sum' with .*colour"):
        reasoning_gym_prompts("chain_sum", 1, 0, colour=1)
    with pytest.raises(DataError, match="pays for every answer"):
        reasoning_gym_prompts("game_of_life_halting", 1, 0)
