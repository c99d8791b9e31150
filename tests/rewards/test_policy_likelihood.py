"""Rewards that ask the model in training about given texts, against a forward pass for each text."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from tests.reference.token_toys import TinyLanguage, slow_log_probs

from plaudit.data.prompt import Prompt
from plaudit.errors import RecipeError, RewardError
from plaudit.rewards.base import Score, Status
from plaudit.rewards.calling.call import Caller, Handling, call_reward
from plaudit.rewards.calling.request import make_request
from plaudit.rewards.likelihood.policy import (
    CompletionLikelihood,
    PairAccuracy,
    PolicyLikelihood,
    answer_perplexity,
    reasoning_length,
    with_answers,
)
from plaudit.rewards.load import find_reward
from plaudit.train.trainable import Policy


@pytest.fixture
def policy() -> Policy:
    return Policy(TinyLanguage())


def slow(model: TinyLanguage, context: str, answer: str) -> torch.Tensor:
    with torch.no_grad():
        ids = tuple(i for i in model.encode_completion(context) if i not in model.end_ids)
        return slow_log_probs(model, ids, model.encode_completion(answer), 1.0)


def bound(reward, policy: Policy):
    reward.bind(policy, None)
    return reward


def moved(policy: Policy, size: float = 0.1) -> None:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in policy.model.network.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


# --- after the model's own reasoning ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "delimiter", "expected"),
    [("1+1=2#2", "#", 6), ("#", "#", 1), ("122", "#", None), ("1;;2;3", ";;", 3)],
)
def test_reasoning_ends_with_the_first_delimiter(text: str, delimiter: str, expected: int | None) -> None:
    model = TinyLanguage()
    ids = tuple(i for i in model.encode_completion(text) if i not in model.end_ids)
    assert reasoning_length(model, ids, delimiter) == expected


def test_the_context_is_question_reasoning_and_delimiter() -> None:
    model = TinyLanguage()
    prompts = model.encode([Prompt(id="", text="1+1="), Prompt(id="", text="2+3=")])
    drawn = [model.encode_completion("2#7"), model.encode_completion("5")]
    given, lengths = with_answers(model, prompts, drawn, ["2", "5"], "#")
    assert [model.decode(ids) for ids in given.prompt_ids] == ["1+1=2#", "2+3=5#"]
    assert [model.decode(row) for row in given.rows()] == ["2", "5"]
    assert all(row[-1] in model.end_ids for row in given.rows()), "the end belongs to the answer"
    assert lengths.tolist() == [2, 1], "the delimiter that was put there is not the model's"


@pytest.mark.parametrize("reduction", ("mean", "sum", "probability", "mean_probability"))
def test_scores_are_the_slow_ones(reduction: str, policy: Policy) -> None:
    prompts = [Prompt(id=str(i), text="12+7=", facts={"answer": "19"} if i != 2 else {}) for i in range(4)]
    outputs = ["12+7=19#19", "19", "1#1", "#"]
    scores = call_reward("r", bound(PolicyLikelihood("#", reduction), policy), prompts, outputs)
    assert scores[2].status is Status.NOT_APPLICABLE
    for i, context in ((0, "12+7=12+7=19#"), (1, "12+7=19#"), (3, "12+7=#")):
        tokens = slow(policy.model, context, "19")
        values = {"mean": tokens.mean(), "sum": tokens.sum(), "probability": tokens.sum().exp()}
        expected = values.get(reduction, tokens.exp().mean())
        assert scores[i].value == pytest.approx(expected.item(), rel=1e-4, abs=1e-12)
        assert scores[i].components["tokens"] == 3
    low, high = scores[0].value, scores[1].value
    assert low != high


def test_the_answer_is_that_of_the_current_weights(policy: Policy) -> None:
    prompt = Prompt(id="", text="12+7=", facts={"answer": "19"})
    reward = bound(PolicyLikelihood("#"), policy)
    before = call_reward("r", reward, [prompt], ["19#"])[0].value
    moved(policy)
    after = call_reward("r", reward, [prompt], ["19#"])[0].value
    assert after != before and after == pytest.approx(slow(policy.model, "12+7=19#", "19").mean().item(), rel=1e-4)


def test_perplexity_averages_probabilities_over_chains() -> None:
    chances = torch.tensor([[0.5, 0.25], [1.0, 1.0]], dtype=torch.float64)
    found = answer_perplexity(chances.log(), torch.tensor([2, 3]))
    torch.testing.assert_close(found, torch.tensor([(1 / 0.375) ** 0.5, 1.0], dtype=torch.float64))
    one_good = answer_perplexity(torch.tensor([[0.0, -1000.0]]), torch.tensor([1]))
    assert one_good.item() == pytest.approx(2), "a mean of logarithms would be infinite"


# --- of pairs and demonstrations ------------------------------------------------------------------------------------


def pair(i: int, chosen: str | None, rejected: str | None) -> Prompt:
    inputs = {} if chosen is None else {"chosen": chosen, "rejected": rejected}
    return Prompt(id=str(i), text="3+4=", inputs=inputs)


def test_pair_accuracy_is_the_sign_of_the_margin(policy: Policy) -> None:
    pairs = [
        pair(0, "7#7", "8"),
        pair(1, "8", "7#7"),
        pair(2, "3+4=7#7", "9#9"),
        pair(3, None, None),
        pair(4, "1", "22#4"),
    ]
    reward = bound(PairAccuracy(), policy)
    outputs = [""] * 5
    start = call_reward("r", reward, pairs, outputs)
    assert [s.value for s in start if s.status is Status.OK] == [0.5] * 4, "nothing has moved: neither is preferred"
    before = {(p.id, k): slow(policy.model, p.text, p.inputs[k]).sum() for p in pairs for k in p.inputs}
    moved(policy)
    found = call_reward("r", reward, pairs, outputs)
    assert found[3].status is Status.NOT_APPLICABLE
    signs = set()
    for i in (0, 1, 2, 4):
        up = {k: slow(policy.model, "3+4=", pairs[i].inputs[k]).sum() - before[pairs[i].id, k] for k in pairs[i].inputs}
        margin = (up["chosen"] - up["rejected"]).item()
        assert found[i].components["margin"] == pytest.approx(margin, rel=1e-3, abs=1e-4)
        assert found[i].value == float(margin > 0)
        signs.add(found[i].value)
    assert signs == {0.0, 1.0} and found[0].value == 1 - found[1].value
    assert policy.active == "current"


def test_pair_accuracy_takes_a_reference_unless_there_is_one(policy: Policy) -> None:
    policy.take("reference")
    kept = policy.snapshots["reference"]
    moved(policy)
    bound(PairAccuracy(), policy)
    assert policy.snapshots["reference"] is kept


def test_completion_likelihood_is_the_mean_over_tokens(policy: Policy) -> None:
    prompts = [
        Prompt(id=str(i), text="3+4=", inputs={"completion": text} if text else {})
        for i, text in enumerate(("7#7", "", "8"))
    ]
    found = call_reward("r", bound(CompletionLikelihood(), policy), prompts, ["what it says", "counts", "nothing"])
    assert found[1].status is Status.NOT_APPLICABLE
    for i, text in ((0, "7#7"), (2, "8")):
        assert found[i].value == pytest.approx(slow(policy.model, "3+4=", text).mean().item(), rel=1e-4)


@pytest.mark.parametrize("name", ("policy_likelihood", "pair_accuracy", "completion_likelihood"))
def test_many_rows_are_those_of_few(name: str, policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = {"delimiter": "#"} if name == "policy_likelihood" else {}
    inputs = {"chosen": "7#7", "rejected": "19", "completion": "4;7"}
    prompts = [Prompt(id=str(i), text=f"{i + 1}+4=", facts={"answer": "7"}, inputs=inputs) for i in range(5)]
    outputs = ["7#7", "8", "9;9#2", "#", "1"]
    reward = bound(find_reward("r", name, arguments), policy)
    moved(policy)
    together = call_reward("r", reward, prompts, outputs)
    alone = [call_reward("r", reward, [p], [o])[0] for p, o in zip(prompts, outputs, strict=True)]
    monkeypatch.setattr("plaudit.rewards.likelihood.policy.ROWS", 2)
    cut = call_reward("r", reward, prompts, outputs)
    for a, b, c in zip(together, alone, cut, strict=True):
        assert a.value == pytest.approx(b.value, abs=1e-5) == pytest.approx(c.value, abs=1e-5)
        assert math.isfinite(a.value)
    assert reward.card.low <= min(s.value for s in together) and max(s.value for s in together) <= reward.card.high


# --- what a user may get wrong ---------------------------------------------------------------------------------------


def raised(reward, prompt: Prompt) -> list[Score]:
    return Caller("r", reward, Handling())(make_request([prompt], [""]))


def test_missing_columns_are_named(policy: Policy) -> None:
    bare = Prompt(id="", text="3+4=", inputs={"completion": "7"})
    with pytest.raises(RewardError, match="pair_accuracy: no prompt has `chosen` and `rejected`"):
        raised(bound(PairAccuracy(), policy), bare)
    with pytest.raises(RewardError, match="completion_likelihood: no prompt has a `completion`"):
        raised(bound(CompletionLikelihood(), policy), dataclasses.replace(bare, inputs={}))


@pytest.mark.parametrize("reward", (PolicyLikelihood("#"), PairAccuracy(), CompletionLikelihood()))
def test_it_needs_a_language_model_in_training(reward) -> None:
    prompt = Prompt(
        id="", text="3+4=", facts={"answer": "7"}, inputs={"chosen": "1", "rejected": "2", "completion": "3"}
    )
    with pytest.raises(RewardError, match="asks the model in training; use it in a recipe that trains a token model"):
        raised(reward, prompt)

    class Pictures:
        model = object()
        snapshots: dict = {}

    with pytest.raises(RecipeError, match="asks a language model for the likelihood of texts"):
        reward.bind(Pictures(), None)
