"""The likelihood of a reference answer as reward, against two slow forward passes: -(A grad log p(z) + grad R)."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tests.reference.token_toys import TinyLanguage, slow_log_probs, token_batch
from torch import Tensor

from plaudit.data.prompt import Prompt
from plaudit.objectives.batch import Batch
from plaudit.objectives.likelihood import Likelihood, reduced
from plaudit.recipe.objectives import KlConfig, LikelihoodConfig
from plaudit.rewards.calling.call import call_reward
from plaudit.rewards.likelihood.policy import PolicyLikelihood
from plaudit.sampling.tokens import given_completions
from plaudit.train.learn import accumulate
from plaudit.train.trainable import Policy

REDUCTIONS = ("mean", "sum", "probability", "mean_probability")
QUESTIONS = ("3+4=", "12+7=", "3+4=")
COMPLETIONS = ("3+4=7#7", "19", "7;7#8#9")
"""Reasoning with the delimiter; without it; and with it twice, where the first counts."""
REASONING = ("3+4=7#", "19", "7;7#")
CONTEXT = ("3+4=7#", "19#", "7;7#")
ANSWERS = ("7", "19", "7")


def encoded(model: TinyLanguage, text: str) -> tuple[int, ...]:
    return tuple(i for i in model.encode_completion(text) if i not in model.end_ids)


def gradients(model: TinyLanguage) -> Tensor:
    parts = [(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in model.network.parameters()]
    return torch.cat(parts)


def prepared(reduction: str, *, valid: bool = True, **settings) -> tuple[Policy, TinyLanguage, Likelihood, Batch]:
    """Completions whose recorded log-probabilities are the current ones: before the first update."""
    model = TinyLanguage()
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.mul_(0.6)  # less certain, so that probabilities are not 0
    policy = Policy(model)
    policy.take("reference")
    prompts = model.encode([Prompt(id=q, text=q) for q in QUESTIONS])
    given = given_completions(prompts, [model.encode_completion(text) for text in COMPLETIONS])
    log_prob = torch.zeros(given.mask.shape, dtype=torch.float64)
    with torch.no_grad():
        for i, (prompt, row) in enumerate(zip(prompts, given.rows(), strict=True)):
            log_prob[i, : len(row)] = slow_log_probs(model, prompt, row, 1.0)
    batch = token_batch(dataclasses.replace(given, log_prob=log_prob), 3)
    asked = tuple(Prompt(id=q, text=q, facts={"answer": a}) for q, a in zip(QUESTIONS, ANSWERS, strict=True))
    flags = torch.tensor([True, True, valid])
    batch = dataclasses.replace(
        batch, prompts=asked, credit=dataclasses.replace(batch.credit, valid=flags), informative=flags
    )
    reward = PolicyLikelihood("#", reduction)
    reward.bind(policy, None)
    config = LikelihoodConfig(type="likelihood", reward="likelihood", **settings)
    return policy, model, Likelihood(config, reward), batch


def slow_reward(model: TinyLanguage, i: int, reduction: str) -> Tensor:
    """A forward pass of its own on question, reasoning, delimiter and answer."""
    prompt = model.encode([Prompt(id="", text=QUESTIONS[i])])[0]
    tokens = slow_log_probs(model, (*prompt, *encoded(model, CONTEXT[i])), model.encode_completion(ANSWERS[i]), 1.0)
    values = {"mean": tokens.mean(), "sum": tokens.sum(), "probability": tokens.sum().exp()}
    return values[reduction] if reduction in values else tokens.exp().mean()


def slow_policy(model: TinyLanguage, i: int) -> Tensor:
    """log p of the reasoning alone: neither of the answer that the model wrote, nor of the delimiter put there for it."""
    prompt = model.encode([Prompt(id="", text=QUESTIONS[i])])[0]
    return slow_log_probs(model, prompt, encoded(model, REASONING[i]), 1.0).sum()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("direct", (1.0, 0.3, 0.0))
def test_the_gradient_is_the_papers(reduction: str, direct: float) -> None:
    policy, model, objective, batch = prepared(reduction, direct=direct)
    loss = torch.zeros((), dtype=torch.float64)
    rewards = [slow_reward(model, i, reduction) for i in range(3)]
    for i in range(3):
        loss = loss - (batch.credit.value[i].double() * slow_policy(model, i) + direct * rewards[i]) / 3
    loss.backward()
    theirs = gradients(model)
    model.network.zero_grad()
    sums = accumulate(policy, objective, batch, 2)
    torch.testing.assert_close(gradients(model), theirs, rtol=1e-3, atol=1e-5)
    assert theirs.norm() > 1e-2
    assert sums.totals["loss/direct"] == pytest.approx(-direct * sum(r.item() for r in rewards) / 3, rel=1e-4)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_direct_part_alone_is_the_rewards_own_gradient(reduction: str) -> None:
    """No advantage: a supervised step on the answer; and it is the number that the reward gave."""
    policy, model, objective, batch = prepared(reduction)
    batch = dataclasses.replace(batch, credit=dataclasses.replace(batch.credit, value=torch.zeros(3)))
    (-sum(slow_reward(model, i, reduction) for i in range(3)) / 3).backward()
    theirs = gradients(model)
    model.network.zero_grad()
    sums = accumulate(policy, objective, batch, 8)
    torch.testing.assert_close(gradients(model), theirs, rtol=1e-3, atol=1e-5)
    scores = call_reward("r", objective.reward, batch.prompts, list(COMPLETIONS))
    assert sums.totals["loss/direct"] == pytest.approx(-sum(s.value for s in scores) / 3, rel=1e-4)
    assert theirs.norm() > 1e-3


def test_reduced_is_the_rewards_reduction() -> None:
    log_prob = torch.tensor([[-1.0, -2.0, 0.0], [-0.5, 0.0, 0.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    expected = {
        "mean": [-1.5, -0.5],
        "sum": [-3.0, -0.5],
        "probability": [torch.tensor(-3.0).double().exp(), torch.tensor(-0.5).double().exp()],
        "mean_probability": [(torch.tensor([-1.0, -2.0]).double().exp()).mean(), torch.tensor(-0.5).double().exp()],
    }
    for reduction, values in expected.items():
        torch.testing.assert_close(
            reduced(log_prob, mask, reduction), torch.tensor([float(v) for v in values]).double()
        )


def test_what_the_model_answered_itself_is_not_trained() -> None:
    """Without the direct part, other tokens after the delimiter change nothing; other reasoning does."""

    def found(texts: dict[int, str]) -> Tensor:
        policy, model, objective, batch = prepared("mean", direct=0.0)
        rows = [model.encode_completion(texts.get(i, text)) for i, text in enumerate(COMPLETIONS)]
        given = given_completions(batch.completions.prompt_ids, rows)
        batch = dataclasses.replace(
            batch, samples=dataclasses.replace(given, log_prob=torch.zeros_like(given.log_prob).nan_to_num())
        )
        own = objective.terms(policy, batch).log_prob.detach()
        batch = dataclasses.replace(batch, samples=dataclasses.replace(batch.completions, log_prob=own))
        accumulate(policy, objective, batch, 8)
        return gradients(model)

    plain = found({})
    torch.testing.assert_close(found({0: "3+4=7#9", 2: "7;7#33#2"}), plain, rtol=1e-3, atol=1e-6)
    assert (found({0: "3+4=8#7"}) - plain).norm() > 1e-2 < plain.norm()


def test_metrics_say_what_happened() -> None:
    policy, model, objective, batch = prepared("mean", kl=KlConfig(weight=0.2))
    with torch.no_grad():
        policy.snapshots["reference"] = {k: v + 0.02 for k, v in policy.snapshots["reference"].items()}
        answers = [slow_reward(model, i, "sum").item() for i in range(3)]
    sums = accumulate(policy, objective, batch, 2)
    assert sums.totals["answer_log_prob"] == pytest.approx(sum(answers) / 3, rel=1e-4)
    assert sums.totals["reasoning_length"] == pytest.approx((6 + 2 + 4) / 3)
    assert sums.totals["loss/kl"] == pytest.approx(0.2 * sums.totals["kl"], rel=1e-6) and sums.totals["kl"] > 1e-4
    assert sums.largest_deviation < 1e-4 and abs(sums.totals["approx_kl"]) < 1e-6 and sums.totals["entropy"] > 0.1


@pytest.mark.parametrize("reduction", ("mean", "probability"))
def test_the_split_changes_nothing(reduction: str) -> None:
    def run(micro_batch: int) -> tuple[Tensor, dict[str, float]]:
        policy, model, objective, batch = prepared(reduction, valid=False, kl=KlConfig(weight=0.2, scaling="k3"))
        totals = accumulate(policy, objective, batch, micro_batch).totals
        return gradients(model), totals

    whole, totals = run(8)
    found, metrics = run(1)
    assert whole.norm() > 1e-2
    torch.testing.assert_close(found, whole, rtol=1e-3, atol=1e-6)
    assert metrics == pytest.approx(totals, rel=1e-4, abs=1e-7)


def test_a_sample_without_a_score_counts_nowhere() -> None:
    policy, model, objective, batch = prepared("mean", valid=False)
    loss = (
        sum(batch.credit.value[i].double() * slow_policy(model, i) + slow_reward(model, i, "mean") for i in (0, 1)) / -2
    )
    loss.backward()
    theirs = gradients(model)
    model.network.zero_grad()
    accumulate(policy, objective, batch, 8)
    torch.testing.assert_close(gradients(model), theirs, rtol=1e-3, atol=1e-5)
