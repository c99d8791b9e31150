"""Rewards written for TRL, verl and OpenRLHF here, and ours in theirs."""

from __future__ import annotations

import itertools
import math
import sys
import types

import pytest

from plaudit.data.prompt import Prompt
from plaudit.errors import RecipeError, RewardError
from plaudit.recipe.rewards import RewardConfig
from plaudit.rewards.adapters import ForTrl
from plaudit.rewards.base import Status, card, missing
from plaudit.rewards.calling.call import Caller
from plaudit.rewards.load import Reward, load_reward


@pytest.fixture
def theirs(monkeypatch) -> types.ModuleType:
    module = types.ModuleType("theirs")
    monkeypatch.setitem(sys.modules, "theirs", module)
    return module


ASKED = [
    Prompt(id="a", text="1+1=", facts={"answer": "2", "data_source": "gsm"}),
    Prompt(id="b", text="2+2=", facts={"answer": "4", "extra_info": {"level": 3}}),
    Prompt(id="c", text="3+3="),
]


def test_a_verl_function_gets_one_output_at_a_time(theirs) -> None:
    seen: list = []

    def compute_score(data_source, solution_str, ground_truth, extra_info=None):
        seen.append((data_source, solution_str, ground_truth, extra_info))
        return {"score": 1.0, "acc": True, "pred": "x"} if data_source == "gsm" else float(solution_str == ground_truth)

    theirs.compute_score = compute_score
    reward = load_reward("v", RewardConfig(type="verl", arguments={"function": "theirs:compute_score"}))
    found = reward(ASKED, ["2", "5", "6"])
    assert seen == [("gsm", "2", "2", None), (None, "5", "4", {"level": 3})]
    assert [s.status for s in found] == [Status.OK, Status.OK, Status.NOT_APPLICABLE]
    assert found[0].value == 1 and found[0].components == {"acc": 1.0} and found[1].value == 0


def test_what_a_verl_function_writes_into_stays_its_own(theirs) -> None:
    def compute_score(data_source, solution_str, ground_truth, extra_info=None):
        ground_truth.append("more")
        return 1.0

    theirs.compute_score = compute_score
    asked = [Prompt(id="a", text="", facts={"answer": ["2"]})]
    load_reward("v", RewardConfig(type="verl", arguments={"function": "theirs:compute_score"}))(asked, ["2"])
    assert asked[0].facts == {"answer": ["2"]}


@pytest.mark.parametrize(("returned", "status"), [(math.nan, Status.ERRORED), ({"score": math.inf}, Status.ERRORED)])
def test_a_verl_function_that_returns_no_number_scores_nothing(theirs, returned, status) -> None:
    theirs.compute_score = lambda **everything: returned
    reward = load_reward("v", RewardConfig(type="verl", arguments={"function": "theirs:compute_score"}))
    assert reward(ASKED[:1], ["2"])[0].status is status
    theirs.compute_score = lambda **everything: {"reward": 1}
    reward = load_reward("v", RewardConfig(type="verl", arguments={"function": "theirs:compute_score"}))
    with pytest.raises(RewardError, match="a mapping needs the key `score`"):
        reward(ASKED[:1], ["2"])


def test_an_openrlhf_function_gets_queries_and_labels(theirs) -> None:
    seen: list = []

    def reward_func(queries, prompts, labels):
        import torch

        seen.append((queries, prompts, labels))
        rewards = torch.tensor([0.5] * len(queries))
        return {"rewards": rewards, "scores": rewards, "extra_logs": {}}

    theirs.reward_func = reward_func
    reward = load_reward("o", RewardConfig(type="openrlhf", arguments={"function": "theirs:reward_func"}))
    assert [s.value for s in reward(ASKED, ["2", "5", "6"])] == [0.5] * 3
    assert seen == [(["1+1=2", "2+2=5", "3+3=6"], ["1+1=", "2+2=", "3+3="], ["2", "4", None])]


@pytest.mark.parametrize(
    ("returned", "message"),
    [({0.1, 0.2, 0.3}, r"rewards.o returned {.*}; return a list"), (itertools.repeat(0.5), "more than 3 scores for 3")],
    ids=("a set", "an endless one"),
)
def test_an_openrlhf_function_returns_a_list_like_any_other(theirs, returned, message: str) -> None:
    theirs.reward_func = lambda queries, prompts, labels: {"rewards": returned}
    reward = load_reward("o", RewardConfig(type="openrlhf", arguments={"function": "theirs:reward_func"}))
    with pytest.raises(RewardError, match=message):
        reward(ASKED, ["2", "5", "6"])


def test_a_function_that_is_not_there_is_named() -> None:
    with pytest.raises(RecipeError, match="cannot import 'nowhere:f'"):
        load_reward("v", RewardConfig(type="verl", arguments={"function": "nowhere:f"}))


@card(kind="text", low=0, high=1)
def matches(prompts, outputs, answer):
    """1 where the output is the answer; knows nothing of prompts without one."""
    return [
        missing(Status.NOT_APPLICABLE) if a is None else float(o == a) for o, a in zip(outputs, answer, strict=True)
    ]


def test_verls_own_layouts_of_the_truth_are_known(theirs) -> None:
    theirs.compute_score = lambda data_source, solution_str, ground_truth, extra_info=None: float(
        solution_str == ground_truth
    )
    layouts = [{"ground_truth": "2"}, {"reward_model": {"ground_truth": "2"}}, {"answer": "2"}, {"reward_model": {}}]
    asked = [Prompt(id=str(i), text="", facts=facts) for i, facts in enumerate(layouts)]
    reward = load_reward("v", RewardConfig(type="verl", arguments={"function": "theirs:compute_score"}))
    found = reward(asked, ["2"] * 4)
    assert [s.value for s in found[:3]] == [1, 1, 1] and found[3].status is Status.NOT_APPLICABLE


def test_for_trl_takes_names_and_functions() -> None:
    assert ForTrl("exact_answer", place="whole")(["q"], ["Paris"], answer=["Paris"]) == [1.0]
    assert ForTrl(matches)(["q"], ["a"], answer=["b"]) == [0.0] and ForTrl(matches).__name__ == "matches"


def test_ours_is_a_function_for_trl() -> None:
    function = ForTrl(Reward(name="matches", caller=Caller("matches", matches)))
    assert function.__name__ == "matches"
    state = types.SimpleNamespace(global_step=3)
    rest = {"completion_ids": [[1], [2], [3]], "trainer_state": state, "log_extra": None, "log_metric": None}
    assert function(prompts=["p"] * 3, completions=["2", "3", "4"], answer=["2", "2", None], **rest) == [1.0, 0.0, None]
    chat = [[{"role": "user", "content": "p"}]]
    assert function(prompts=chat, completions=[[{"role": "assistant", "content": "2"}]], answer=["2"], **rest) == [1.0]
